"""Which cells hold a vector, and where latitude and longitude are.

A dataset is taken as people leave it: sliced, transposed, with renamed dimensions, lazy or
not. What it must have is ``embedding`` (a cube) or ``pc`` (its reduction) on a latitude and
a longitude, which are recognised by CF attributes or by name.
"""

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from copcube import grid
from copcube.errors import CubeError, GridError
from copcube.grid import lattice_index

if TYPE_CHECKING:
    import xarray as xr

_VECTORS = {"embedding": "dim", "pc": "component"}
"""Variables that hold vectors, and the usual name of the dimension along them."""

_AXES = {
    "latitude": (
        ("lat", "latitude"),
        ("degrees_north", "degree_north", "degree_n", "degrees_n", "degreen", "degreesn"),
    ),
    "longitude": (
        ("lon", "longitude"),
        ("degrees_east", "degree_east", "degree_e", "degrees_e", "degreee", "degreese"),
    ),
}
"""Names and units (CF 1.11, sections 4.1 and 4.2) by standard name."""


def spatial_dims(ds: "xr.Dataset | xr.DataArray") -> tuple[str, str]:
    """Names of the dimensions along latitude and longitude.

    Parameters
    ----------
    ds : xarray.Dataset or xarray.DataArray
        With a one-dimensional coordinate along each: with the standard name or units of CF,
        or named lat, latitude, lon or longitude in upper or lower case.

    Returns
    -------
    lat, lon : str

    Raises
    ------
    CubeError
        If one is not there or there are several.
    """
    dims = next(
        (ds[name].dims for name in _VECTORS if name in getattr(ds, "data_vars", ())), ds.dims
    )
    found = []
    for axis, (names, units) in _AXES.items():
        mine = [
            str(dim)
            for dim in dims
            if dim in ds.coords
            and (
                ds[dim].attrs.get("standard_name") == axis
                or str(ds[dim].attrs.get("units", "")).lower() in units
                or str(dim).lower() in names
            )
        ]
        if len(mine) != 1:
            raise CubeError(
                f"expected one dimension of {axis} with its coordinate, found "
                f"{' and '.join(mine) or 'none'} among {', '.join(map(str, dims)) or 'no dims'}; "
                f"name it {names[0]} or give its coordinate the standard_name {axis}"
                " (a selection by one number drops a dimension: select by a list or a slice)"
            )
        found.append(mine[0])
    return found[0], found[1]


def vectors(cube: "xr.Dataset") -> "xr.DataArray":
    """The vectors of a cube or a reduction, as a view with dimensions in canonical order.

    Returns
    -------
    xarray.DataArray
        ``embedding`` or else ``pc``, (…, lat, lon, dim), lazy if it is; leading dimensions
        such as modality or season in front.

    Raises
    ------
    CubeError
        If it is no dataset, has no such variable, or that has not such dimensions.
    """
    require_dataset(cube, "an embedding cube or its reduction")
    name = next((name for name in _VECTORS if name in cube), None)
    if name is None:
        raise CubeError(
            "expected an embedding cube with a variable embedding, or its reduction with pc; "
            f"found {', '.join(map(str, cube.data_vars)) or 'no variables'}"
        )
    lat, lon = spatial_dims(cube)
    others = [dim for dim in cube[name].dims if dim not in (lat, lon)]
    along = _VECTORS[name] if _VECTORS[name] in others else others[0] if len(others) == 1 else None
    if along is None:
        raise CubeError(
            f"{name} has the dimensions {', '.join(map(str, cube[name].dims))}; expected the one "
            f"along its vectors to be named {_VECTORS[name]}; rename it"
        )
    lead = [dim for dim in others if dim != along]
    return cube[name].transpose(*lead, lat, lon, along)


def require_dataset(ds: object, what: str) -> None:
    """Check that something is a dataset, and not a path or a single array.

    Raises
    ------
    CubeError
        If it is not.
    """
    import xarray as xr

    if not isinstance(ds, xr.Dataset):
        raise CubeError(
            f"expected {what} as an xarray.Dataset, found {type(ds).__name__}; open a file with "
            "xarray.open_zarr or xarray.open_dataset, make one of an array with .to_dataset()"
        )


def filled(cube: "xr.Dataset") -> "xr.DataArray":
    """Which cells hold a vector: those with images or, where no counts are, a finite one.

    Parameters
    ----------
    cube : xarray.Dataset
        A cube or a reduction. Without ``n_images``, all vectors are read, in bounded memory.

    Returns
    -------
    xarray.DataArray
        (…, lat, lon) bool, in memory. A vector with a value that is not finite is missing.

    Raises
    ------
    CubeError
        If the dataset is no cube, or has neither counts nor NaN for what is missing but
        vectors of zeros, as the published maps do.
    """
    field = vectors(cube)
    counts = counted(cube)
    if counts is not None:
        return counts
    mask = np.zeros(field.shape[:-1], bool)
    for lead in np.ndindex(mask.shape[:-2]):
        for start in range(0, mask.shape[-2], grid.BLOCK):
            at = (*lead, slice(start, start + grid.BLOCK))
            mask[at] = present(field[at].values, zeros_allowed=field.name != "embedding")
    return _mask(field.isel({field.dims[-1]: 0}, drop=True), mask)


def counted(cube: "xr.Dataset") -> "xr.DataArray | None":
    """Cells with images, (…, lat, lon) bool in memory; None if the cube does not count."""
    dims = vectors(cube).dims[:-1]
    if "n_images" not in cube or set(cube["n_images"].dims) != set(dims):
        return None
    counts = cube["n_images"].transpose(*dims)
    return _mask(counts, counts.values > 0)


def present(values: NDArray[Any], *, zeros_allowed: bool = False) -> NDArray[np.bool_]:
    """Which vectors, along the last axis, are finite.

    Raises
    ------
    CubeError
        If zeros are not allowed and a vector is all zeros.
    """
    if not zeros_allowed:
        refuse_zeros(values)
    finite: NDArray[np.bool_] = np.isfinite(values).all(axis=-1)
    return finite


def refuse_zeros(values: NDArray[Any]) -> NDArray[Any]:
    """Return vectors, along the last axis, as they are, if none of them is all zeros.

    Raises
    ------
    CubeError
        If one is.
    """
    if (zeros := ~values.any(axis=-1)).any():
        raise CubeError(
            f"{int(zeros.sum())} cells hold vectors of zeros and the cube has no n_images to "
            "tell whether they are missing; published maps mean that by zeros: open them with "
            "engine='copembed', or set them to NaN"
        )
    return values


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


def _mask(like: "xr.DataArray", values: NDArray[np.bool_]) -> "xr.DataArray":
    mask = like.copy(data=values).rename("filled")
    mask.attrs = {"long_name": "whether the cell holds a vector"}
    mask.encoding = {}
    return mask
