"""Two datasets side by side: the cells that both span, read together in windows.

Cells are paired by their place on the lattice, so that orientation, order and extent may differ.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from copcube import grid
from copcube.cube.results import as_result
from copcube.cube.view import CubeView
from copcube.errors import CubeError
from copcube.grid import Integers
from copcube.provenance import ENCODER

if TYPE_CHECKING:
    import xarray as xr

Window = tuple[slice, slice]
"""A run of latitudes and one of longitudes."""

_WIDTH = 8 * grid.BLOCK
"""Columns of a window; more would cost memory without being faster."""


@dataclass(frozen=True)
class Side:
    """One of two datasets, and the positions of the common cells in it.

    Parameters
    ----------
    view : CubeView
        The dataset.
    rows, cols : numpy.ndarray
        Positions along latitude and longitude, in the order of the first dataset.
    """

    view: CubeView
    rows: Integers
    cols: Integers

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape (…, lat, lon) of the common cells."""
        return (*self.view.field.shape[:-3], len(self.rows), len(self.cols))

    def read(self, window: Window) -> tuple[NDArray[np.bool_], NDArray[Any]]:
        """Read which cells of a window hold a vector, and the vectors; see `CubeView.read`."""
        lead = (slice(None),) * len(self.view.lead)
        return self.view.read((*lead, _run(self.rows[window[0]]), _run(self.cols[window[1]])))

    def select(self, field: "xr.DataArray") -> "xr.DataArray":
        """Select the common cells of a variable, with latitude and longitude last."""
        *_, lat, lon, _ = map(str, self.view.field.dims)
        return field.isel({lat: self.rows, lon: self.cols}).transpose(..., lat, lon)

    def on_coordinates(
        self, attrs: Mapping[str, Mapping[str, Any]], **values: NDArray[Any]
    ) -> "xr.Dataset":
        """Make a dataset of values of the common cells on this side's coordinates.

        Parameters
        ----------
        attrs : mapping
            Attributes by variable name.
        **values : numpy.ndarray
            (…, lat, lon).
        """
        *cells, vector = map(str, self.view.field.dims)
        frame = self.view.field.coords.to_dataset().drop_dims(vector, errors="ignore")
        frame = frame.isel({cells[-2]: self.rows, cells[-1]: self.cols})
        return as_result(
            frame.assign({name: (cells, v, attrs[name]) for name, v in values.items()})
        )


def pair(a: CubeView, b: CubeView) -> tuple[Side, Side]:
    """Find the cells of the lattice that both datasets span, in the order of `a`.

    Raises
    ------
    CubeError
        If the leading dimensions differ, there is no such cell, or the values of vectors are in a
        different order.
    GridError
        If coordinates are not nodes of the lattice.
    """
    if a.groups != b.groups:
        dim = next(iter({**a.groups, **b.groups}))
        raise CubeError(
            f"the first has {_in_words(a.groups)}, the second {_in_words(b.groups)}; choose the "
            f"same groups of both, such as ds.isel({dim}=0), or with --groups on the command line"
        )
    demand_same_order(a.field[a.dim].values, b.field[b.dim].values)
    _, rows_a, rows_b = np.intersect1d(a.row, b.row, return_indices=True)
    _, cols_a, cols_b = np.intersect1d(a.col, b.col, return_indices=True)
    if not (len(rows_a) and len(cols_a)):
        raise CubeError("the two have no cell of the lattice in common; compare the same region")
    if a.lead != b.lead:  # the same groups in another order of dimensions
        b = CubeView(b.dataset, b.field.transpose(*a.lead, ...))
    # `intersect1d` sorts by rows of the lattice; this restores the order of `a`.
    down, along = np.argsort(rows_a), np.argsort(cols_a)
    return Side(a, rows_a[down], cols_a[along]), Side(b, rows_b[down], cols_b[along])


def demand_same_order(ours: NDArray[Any], theirs: NDArray[Any]) -> None:
    """Check that two datasets do not label different values along their vectors.

    Raises
    ------
    CubeError
        If the labels are the same in another order, as after sorting ``e1, e10, e2``, or are
        different numbers, for different parts of the vectors.
    """
    if len(ours) != len(theirs):
        return
    if {*ours.tolist()} != {*theirs.tolist()}:
        numbered = all(labels.dtype.kind in "iu" for labels in (ours, theirs))
        # Other software may count from 1, or use other names.
        if numbered and not (_is_whole(ours) and _is_whole(theirs)):
            raise CubeError(
                f"the values of vectors are numbered {ours.min()} to {ours.max()}, those of the "
                f"other dataset {theirs.min()} to {theirs.max()}: select the same ones"
            )
        return
    if (other := np.flatnonzero(ours != theirs)).size:
        raise CubeError(
            f"the values of vectors are in a different order, {ours[other[0]]} where the other "
            f"dataset has {theirs[other[0]]}: put them into the same order with .sel"
        )


def _is_whole(labels: NDArray[Any]) -> bool:
    """Whether numbers of values are complete, counted from 0 or 1."""
    return bool((np.sort(labels) - labels.min() == np.arange(len(labels))).all()) and (
        labels.min() in (0, 1)
    )


def windows(shape: tuple[int, ...]) -> Iterator[Window]:
    """Divide the last two axes of a shape into windows, narrower ones if there are groups."""
    width = max(grid.BLOCK, _WIDTH // math.prod(shape[:-2]))
    for i in range(0, shape[-2], grid.BLOCK):
        for j in range(0, shape[-1], width):
            yield slice(i, i + grid.BLOCK), slice(j, j + width)


def unlike_encoders(a: Mapping[Any, Any], b: Mapping[Any, Any]) -> tuple[str, Any, Any] | None:
    """Find how the attributes of two datasets differ about their encoder.

    Returns
    -------
    tuple or None
        Name and both values of the first attribute of `copcube.provenance.ENCODER` that both
        have and that differs; None if no attribute does.
    """
    for name in ENCODER:
        ours, theirs = a.get(name), b.get(name)
        if None not in (ours, theirs) and ours != theirs:
            return name, ours, theirs
    return None


def _in_words(groups: dict[str, tuple[str, ...]]) -> str:
    return ", ".join(f"{dim} {' '.join(v)}" for dim, v in groups.items()) or "no leading dimension"


def _run(positions: NDArray[np.int64]) -> slice | NDArray[np.int64]:
    """Return ascending neighbours as a slice, which reads without copying; others unchanged."""
    first, last = int(positions[0]), int(positions[-1])
    return slice(first, last + 1) if np.all(np.diff(positions) == 1) else positions
