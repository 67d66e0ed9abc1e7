"""Common form of the datasets that this package's functions return.

xarray passes on a variable's encoding: filters of a Zarr 2 store, the packing of a netCDF file, an
unlimited dimension. It only applies to the file that was read, and writers fail on it or, worse,
follow it. A result therefore has none, its attributes have types that every format holds, and its
dask arrays are divided at the same places, so that ``.chunksizes``, ``.map_blocks`` and whatever
divides a dataset by its chunks work.
"""

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from copcube import grid
from copcube.cube.latlon import spatial_dims
from copcube.cube.schema import GEO_TRANSFORM
from copcube.errors import CopcubeError

if TYPE_CHECKING:
    import xarray as xr

_OF_CF = ("grid_mapping", "bounds", "ancillary_variables", "cell_measures", "formula_terms")
"""Attributes that xarray moves to the encoding when it opens with ``decode_coords="all"``."""


def as_result(ds: "xr.Dataset", like: str | None = None) -> "xr.Dataset":
    """Prepare a dataset to be returned: no encoding, plain attributes, equal chunks.

    Parameters
    ----------
    ds : xarray.Dataset
        Any dataset.
    like : str, optional
        The variable whose chunks all others take along shared dimensions. Without one, or if it is
        not a dask array, chunks are divided until they agree.

    Returns
    -------
    xarray.Dataset
        A new dataset with the same values. Its attributes are texts, numbers, lists and arrays
        of numbers; others have become JSON texts. Nothing that was lazy is computed.
    """
    # First, since some attributes are in the encoding, which is removed next.
    attributes = {key: described(v) for key, v in ds.variables.items()}
    for attrs in attributes.values():
        # Readers would place a region, or a single cell, where the whole globe begins.
        if attrs.get("GeoTransform") == GEO_TRANSFORM and not covers_lattice(ds):
            del attrs["GeoTransform"]
    ds = without_encoding(ds)
    ds.attrs = plain_attributes(ds.attrs)
    for key, attrs in attributes.items():
        ds[key].attrs = attrs
    return _chunked_alike(ds, like)


def covers_lattice(ds: "xr.Dataset") -> bool:
    """Whether latitude and longitude are those of the whole lattice, in its order."""
    try:
        lat, lon = spatial_dims(ds)
    except CopcubeError:
        return False
    return np.array_equal(ds[lat], grid.latitudes()) and np.array_equal(ds[lon], grid.longitudes())


def without_encoding(ds: "xr.Dataset") -> "xr.Dataset":
    """Copy a dataset without its encoding; nothing that was lazy is computed."""
    # Older xarray's `drop_encoding` reads what is neither read yet nor a dask array.
    ds = ds.copy()
    ds.encoding = {}
    for variable in ds.variables.values():
        variable.encoding = {}
    return ds


def described(variable: "xr.Variable | xr.DataArray") -> dict[str, Any]:
    """Attributes of a variable, plain, with those that xarray keeps in the encoding."""
    moved = {name: variable.encoding[name] for name in _OF_CF if name in variable.encoding}
    return plain_attributes({**variable.attrs, **moved})


def plain_attributes(attrs: Mapping[Any, Any]) -> dict[str, Any]:
    """Attributes as any format holds them: texts, numbers, and lists and arrays of numbers."""
    return {str(key): _plain(value) for key, value in attrs.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic):
        if value.dtype.kind == "f" and value.dtype.itemsize not in (4, 8):
            value = value.astype(np.float64)  # netCDF has no other floats
        if value.dtype.kind in "iuf" and value.ndim < 2:  # not timedeltas or complex numbers
            return value
        value = _listed(value)
    if isinstance(value, bytes):
        value = value.decode(errors="replace")
    if isinstance(value, bool):  # netCDF has no booleans
        return int(value)
    if isinstance(value, str) or _is_number(value):
        return value
    if isinstance(value, list | tuple) and value:
        numbers = [v.item() if isinstance(v, np.number) else v for v in value]
        if all(map(_is_number, numbers)):
            return numbers
    text = json.dumps(value, default=known_to_json)
    # What becomes a plain text, such as a time or a path, needs no quotes.
    return known if isinstance(known := json.loads(text), str) else text


def _is_number(value: Any) -> bool:
    return type(value) is float or (type(value) is int and -(2**63) <= value < 2**63)


def known_to_json(value: Any) -> Any:
    """Convert what JSON cannot hold: NumPy's values to Python's, times to texts."""
    return _listed(value) if isinstance(value, np.ndarray | np.generic) else str(value)


def _listed(value: NDArray[Any] | np.generic) -> Any:
    """Return NumPy's values as Python's, times as texts (nanoseconds would become numbers)."""
    if value.dtype.kind in "mM":
        value = np.array([str(time) for time in value.ravel()], object).reshape(value.shape)
    return value.tolist()


def json_attributes(attrs: Mapping[Any, Any]) -> dict[str, Any]:
    """Attributes as Zarr holds them; what is not JSON, such as a time, becomes a text."""
    plain = {}
    for key, value in attrs.items():
        try:
            of_numpy = isinstance(value, np.ndarray | np.generic) and value.dtype.kind not in "mM"
            json.dumps(value.tolist() if of_numpy else value)
            plain[str(key)] = value
        except TypeError:
            plain[str(key)] = _plain(value)
    return plain


def _chunked_alike(ds: "xr.Dataset", like: str | None) -> "xr.Dataset":
    wanted = {} if like is None else ds[like].variable.chunksizes
    changed = {}
    for key, v in ds.variables.items():
        cuts = v.chunksizes
        new = {dim: wanted[dim] for dim in cuts if cuts[dim] != wanted.get(dim, cuts[dim])}
        if new:
            changed[key] = v.chunk(new)
    ds = ds.assign(changed)
    try:
        _ = ds.chunksizes
    except ValueError:  # from xarray, about chunks that disagree
        ds = ds.unify_chunks()
    return ds
