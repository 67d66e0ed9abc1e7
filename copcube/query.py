"""The vector at a place."""

from typing import TYPE_CHECKING

import numpy as np

from copcube import grid
from copcube.errors import CubeError, GridError
from copcube.latlon import lattice_index
from copcube.mask import counted, vectors

if TYPE_CHECKING:
    import xarray as xr


def at(cube: "xr.Dataset", lat: float, lon: float) -> "xr.Dataset":
    """Select the cell that holds a point.

    Parameters
    ----------
    cube : xarray.Dataset
        A cube or a reduction on nodes of the 0.25° lattice, whole or in part, in any order.
    lat, lon : float
        Degrees north and east; -180…180 and 0…360 mean the same places.

    Returns
    -------
    xarray.Dataset
        All variables of the one cell, lazy if they were; leading dimensions stay, with NaN
        where a group has no vector.

    Raises
    ------
    GridError
        If the cell lies outside the dataset, or the point not on the globe.
    CubeError
        If the cell holds no vector in any group, or the dataset is no cube.

    Examples
    --------
    >>> at(cube, 48.1, 11.6).embedding.values  # doctest: +SKIP
    """
    field = vectors(cube)
    y, x = field.dims[-3:-1]
    rows, cols = lattice_index(field[y].values, field[x].values)
    row, col = (int(index) for index in grid.cell_at(lat, lon))
    i, j = np.flatnonzero(rows == row), np.flatnonzero(cols == col)
    node_lat, node_lon = grid.centre(grid.grid_id(row, col))
    place = f"the cell at lat {node_lat:.2f}, lon {node_lon:.2f}"
    if not (len(i) and len(j)):
        raise GridError(
            f"lat {lat:g}, lon {lon:g} lies in {place}, which this dataset does not reach; it "
            f"has {y} {field[y].values.min():g} to {field[y].values.max():g} and "
            f"{x} {field[x].values.min():g} to {field[x].values.max():g}"
        )
    cell = {y: int(i[0]), x: int(j[0])}
    mask = counted(cube)
    here = (
        field.isel(cell).notnull().values.all(axis=-1) if mask is None else mask.isel(cell).values
    )
    if not here.any():
        raise CubeError(
            f"lat {lat:g}, lon {lon:g} lies in {place}, which holds no vector: no image is "
            "there (open ocean and the poles have none)"
        )
    return cube.isel(cell)
