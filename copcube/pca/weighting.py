"""Weights of a cube's cells: by area, all equal, or from a field of weights."""

from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from copcube import grid
from copcube.arguments import as_given
from copcube.cube.latlon import first_alike, spatial_dims
from copcube.cube.view import CubeView
from copcube.errors import GridError, OptionError
from copcube.grid import Floats

if TYPE_CHECKING:
    import xarray as xr

Weights = Literal["area"] | None

_NEGLIGIBLE = 1e-30
"""Weight, relative to the largest, below which a cell counts as having none: no sum in float64
notices it, and much smaller ones would underflow when squared."""


def cell_weights(view: CubeView, weights: "Weights | xr.DataArray") -> Floats:
    """Weight of every cell, (lat, lon), at most 1; 0 where no group has images.

    Of repeated places, such as 360° beside 0°, only the first has a weight.

    Raises
    ------
    OptionError
        If given weights are negative or not finite where there are vectors.
    """
    shape = view.field.shape[-3:-1]
    used: NDArray[np.bool_] = np.ones(shape, bool)
    if view.counts is not None:
        used = np.logical_or.reduce(view.counts.values.reshape(-1, *shape))
    down, along = (first_alike(view.field[dim].values) for dim in (view.lat, view.lon))
    used = used & (down == np.arange(len(down)))[:, None] & (along == np.arange(len(along)))
    values = used.astype(np.float64)
    if isinstance(weights, str) and weights == "area":
        values = np.where(used, _areas(view)[:, None], 0)
    elif weights is not None:
        values = np.where(used, _aligned(view, weights), 0)
        if not (np.isfinite(values) & (values >= 0)).all():
            raise OptionError(
                "weights hold values that are negative or not finite where the cube has "
                "vectors; give finite numbers ≥ 0 there"
            )
    values /= values.max(initial=0) or 1
    values[values < _NEGLIGIBLE] = 0
    return values


def _areas(view: CubeView) -> Floats:
    """Area of a cell of every row, (lat,), up to a common factor."""
    try:
        cells = view.latlon
    except GridError:  # cells of an irregular grid have no known size: those of the lattice stand
        cells = None
    if cells is None or cells.on_lattice:
        return grid.areas()[grid.cell_at(view.field[view.lat].values, 0)[0]]
    return cells.areas


def kind_of_weights(weights: "Weights | xr.DataArray") -> str:
    """Name the kind of weights, for the attributes of a reduction."""
    return "none" if weights is None else weights if isinstance(weights, str) else "given"


def _aligned(view: CubeView, weights: "xr.DataArray") -> Floats:
    """Values of a field of weights, (lat, lon), after checking that it is on the cube's cells."""
    import xarray as xr

    if not isinstance(weights, xr.DataArray):
        raise OptionError(f"weights={as_given(weights)}; expected 'area', None or a DataArray")
    if weights.dims in ((view.lat,), (view.lon,)):  # such as the cosine of latitude
        every = view.field.isel({d: 0 for d in view.field.dims if d not in (view.lat, view.lon)})
        weights = weights.broadcast_like(every, exclude=weights.dims)
    ours, theirs = (view.lat, view.lon), spatial_dims(weights)
    if weights.ndim != 2:
        raise OptionError(f"weights have the dimensions {weights.dims}; expected only {theirs}")
    for a, b in zip(ours, theirs, strict=True):
        if not np.array_equal(view.field[a].values, weights[b].values):
            raise OptionError(
                f"weights differ from the cube in {b}: expected the same values in the same order; "
                "align them with weights.reindex_like(cube)"
            )
    return weights.transpose(*theirs).values.astype(np.float64)
