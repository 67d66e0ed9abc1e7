"""Data written for models: the first components of a cube on the lattice, and ERA5's fields."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from copcube import grid
from copcube.arguments import whole_number
from copcube.cube.caution import of_vectors
from copcube.cube.latlon import LatLon
from copcube.cube.presence import refuse_undecoded
from copcube.cube.results import plain_attributes
from copcube.cube.schema import OF_CUBES_ONLY
from copcube.cube.view import CubeView, require_dataset
from copcube.errors import CubeError, GridError, OptionError
from copcube.interchange.conventions import numbered_names
from copcube.interchange.writer import LaidOut
from copcube.pca.basis import require_one_basis
from copcube.pca.components import reduce
from copcube.version import __version__

if TYPE_CHECKING:
    import xarray as xr

PREFIX = "copembed"
"""Prefix of the names of channels, except a model's own fields."""

_CUBES_ONLY = (*OF_CUBES_ONLY, "Conventions")
"""Prefixes of the names of attributes that do not apply to a model's file."""


@dataclass(frozen=True, eq=False)
class Components:
    """The components of every cell, as they come out of the analysis.

    Parameters
    ----------
    values : numpy.ndarray
        (721, 1440, k) float32 in ERA5's order, 0 where missing.
    filled : numpy.ndarray
        (721, 1440) bool: which cells hold a vector.
    names : tuple of str
        Of the k channels, ``copembed_00`` and so on.
    attrs : dict
        Attributes of the cube that are true of its components, and ``copcube_fingerprint``:
        the SHA-256 of `filled` and of the values there, the same for every model.
    """

    values: NDArray[np.float32]
    filled: NDArray[np.bool_]
    names: tuple[str, ...]
    attrs: dict[str, Any]

    @classmethod
    def of(cls, ds: "xr.Dataset", k: int) -> "Components":
        """Take the first `k` components of a reduction, or of a cube, which is reduced.

        Raises
        ------
        CubeError
            If the dataset is not a cube or reduction, has groups, or no cell holds a vector.
        GridError
            If it does not lie on the lattice.
        OptionError
            If it has fewer components, or `k` is no whole number of them.
        """
        k = whole_number(k, "k", 1)
        view = CubeView.of(ds).ungrouped()
        if view.name == "embedding":
            view = CubeView.of(reduce(ds, k), "pc")
        elif view.field.shape[-1] < k:
            raise OptionError(
                f"the reduction holds {view.field.shape[-1]} components, but k={k} were requested; "
                f"reduce the cube again, to {k} or more"
            )
        require_one_basis(view.dataset)
        first = view.dataset.isel({view.dim: slice(k)})
        view = CubeView.of(first, "pc")
        laid = LaidOut(view, "era5")
        values = np.zeros((grid.N_LAT, grid.N_LON, laid.dim), np.float32)
        filled = np.zeros(values.shape[:2], bool)
        for band in grid.bands():
            row, col, vectors = laid.cells(band)
            values[band][row, col] = vectors
            filled[band][row, col] = True
        if not filled.any():
            raise CubeError(
                "no cell holds a vector: there is nothing to write; does the selected region "
                "hold land?"
            )
        digest = hashlib.sha256(np.packbits(filled).data)
        # In a fixed order of bytes, so that the fingerprint is the same on every machine.
        digest.update(np.ascontiguousarray(values[filled], "<f4").data)
        attrs = {
            key: value
            for key, value in plain_attributes(of_vectors(first.attrs)).items()
            # Plain values are what every form can hold, from HDF5 to a text in JSON.
            if isinstance(value, str | int | float) and not key.startswith(_CUBES_ONLY)
        }
        history = "\n".join(filter(None, (str(attrs.get("history", "")), f"copcube {__version__}")))
        ours = {"history": history, "copcube_fingerprint": digest.hexdigest()}
        names = (name.replace("pc_", f"{PREFIX}_", 1) for name in numbered_names(view))
        return cls(values, filled, tuple(names), attrs | ours)


def static_fields(statics: "xr.Dataset | str | Path") -> dict[str, NDArray[np.float32]]:
    """Bring fields to the lattice, in their own units.

    Parameters
    ----------
    statics : xarray.Dataset, str or Path
        Fields under ECMWF's short names on the whole lattice in any order, such as
        `copcube.era5.open_static` gives, or a file for it.

    Returns
    -------
    dict
        Name to (721, 1440) float32 in ERA5's order.

    Raises
    ------
    CubeError
        If there is no field of latitude and longitude, or one holds NaN.
    GridError
        If they do not cover the lattice.
    """
    if isinstance(statics, str | Path):
        from copcube.era5 import open_static

        statics = open_static(statics)
    require_dataset(statics, "the static fields")
    axes = LatLon.of(statics)
    if not axes.on_lattice:
        raise GridError(
            f"the static fields are on a {axes}; expected the 0.25° lattice of 721 × 1440 nodes"
        )
    rows, cols = grid.lattice_index(axes.y, axes.x)
    if len(np.unique(rows)) < grid.N_LAT or len(np.unique(cols)) < grid.N_LON:
        raise GridError(
            f"the static fields cover {len(np.unique(rows))} rows and {len(np.unique(cols))} "
            f"columns of the lattice; expected all {grid.N_LAT} × {grid.N_LON}, as models read them"
        )
    found = {}
    for name, field in statics.data_vars.items():
        if {*field.dims} != {axes.lat, axes.lon}:
            continue
        refuse_undecoded(field)
        values = np.empty((grid.N_LAT, grid.N_LON), np.float32)
        # Each row and column to its place, in whatever order and turn of longitude they came.
        values[np.ix_(rows, cols)] = field.transpose(axes.lat, axes.lon).values
        if not np.isfinite(values).all():
            raise CubeError(
                f"the static field {name} is missing in {int((~np.isfinite(values)).sum()):,} "
                "cells; models do not accept NaN: give a complete field, or leave it out"
            )
        found[str(name)] = values
    if not found:
        raise CubeError("the static fields hold no variable along only latitude and longitude")
    return found
