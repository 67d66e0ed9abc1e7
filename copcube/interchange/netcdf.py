"""netCDF: the whole dataset as it is, for readers that know CF.

Unlike the published forms it keeps coordinates, counts and leading dimensions, and a region
stays a region. ``xarray.open_dataset`` reads it without copcube; int8 is decoded by the
engine ``copembed``, since CF knows one scale a variable and not one a dimension.
"""

import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from copcube import grid
from copcube.cube.view import CubeView
from copcube.errors import CubeError
from copcube.files.atomic import atomic_path
from copcube.files.contents import refuse_other
from copcube.files.damage import naming_damage
from copcube.interchange.packing import Exported, Packer, Packing, int8_packing, require_dtype
from copcube.interchange.replacing import require_free

if TYPE_CHECKING:
    import xarray as xr

log = logging.getLogger("copcube")

_FLOATS = Packing(missing=np.nan, zero_is_missing=False)
_SMALL: dict[str, Any] = {"zlib": True, "complevel": 1, "shuffle": True}


@naming_damage()
def to_netcdf(
    ds: "xr.Dataset", path: str | Path, *, dtype: str = "float32", overwrite: bool = False
) -> Exported:
    """Write a cube or a reduction as netCDF-4, with all its variables.

    Attributes that netCDF cannot hold become JSON texts.

    Parameters
    ----------
    ds : xarray.Dataset
        Cube or reduction, of any region, with leading dimensions or without.
    path : str or Path
        File to write, atomically.
    dtype : {"float32", "int8"}
        Of the vectors. Int8 comes with ``embedding_scale`` and ``embedding_offset`` (or
        ``pc_…``) along the vectors: value = code · scale + offset.
    overwrite : bool
        Replace what is there.

    Returns
    -------
    Exported
        What was written, and the error that `dtype` causes.

    Raises
    ------
    CubeError
        If the dataset is no cube or reduction.
    OptionError
        If netCDF has no such data type.
    StorageError
        If the file exists already or cannot be written.
    """
    import netCDF4

    out = require_free(path, overwrite, ds)
    require_dtype(dtype, ("float32", "int8"), "netCDF")
    view = CubeView.of(ds)
    field, name, dim = view.field, view.name, int(view.field.shape[-1])
    dims = [str(label) for label in field.dims]
    packing = _FLOATS
    if dtype == "int8":
        packing = int8_packing(dim, (v[filled] for _, filled, v in _bands(view)))
    rest = ds.drop_vars(name).drop_encoding()
    if packing.scale is not None:
        rest[f"{name}_scale"] = dims[-1], packing.scale, {"long_name": f"scale of {name}"}
        rest[f"{name}_offset"] = dims[-1], packing.offset, {"long_name": f"offset of {name}"}
    rest.attrs = _storable(rest.attrs)
    for key in rest.variables:
        rest[key].attrs = _storable(rest[key].attrs)
    packer = Packer(packing)
    with atomic_path(out) as temporary:
        rest.to_netcdf(
            temporary,
            engine="netcdf4",
            encoding={key: {"_FillValue": None} for key in rest.coords}
            | {key: _SMALL for key, value in rest.items() if value.ndim > 1},
        )
        # The vectors are written by bands, beside what xarray wrote, so that memory stays bounded.
        with netCDF4.Dataset(temporary, "a") as file:
            for label, size in zip(dims, field.shape, strict=True):
                if label not in file.dimensions:
                    file.createDimension(label, size)
            chunks = (*(1,) * (field.ndim - 3), grid.BLOCK, grid.BLOCK, dim)
            variable = file.createVariable(
                name,
                packing.dtype,
                dims,
                **_SMALL,
                chunksizes=[min(pair) for pair in zip(chunks, field.shape, strict=True)],
                fill_value=packing.missing,
            )
            variable.setncatts(_storable(field.attrs) | _other_coordinates(field, rest))
            variable.set_auto_maskandscale(False)
            for band, filled, values in _bands(view):
                numbers = np.full((*filled.shape, dim), packing.missing, packing.dtype)
                numbers[filled] = packer.pack(values[filled])
                variable[band] = numbers
        require_free(path, overwrite, ds)  # again: something may have come there meanwhile
    result = packer.result(str(path), dim, out.stat().st_size)
    log.info("%s", result)
    return result


def open_netcdf(path: str) -> "xr.Dataset":
    """Open a file of `to_netcdf`, lazily; vectors in int8 are decoded as they are read.

    Raises
    ------
    CubeError
        If there is no such file, it is no netCDF, or holds no cube or reduction.
    """
    import xarray as xr

    if not os.path.isfile(path):
        raise CubeError(f"{path}: no such file; expected netCDF of a cube or a reduction")
    refuse_other(path, ("hdf5", "netcdf"), "netCDF of a cube or a reduction", CubeError)
    try:
        ds = xr.open_dataset(path, engine="netcdf4")
    except (OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
        raise CubeError(f"{path}: not a readable netCDF file ({error}); get it anew") from error
    view = CubeView.of(ds)
    field, name = view.field, view.name
    scale, offset = f"{name}_scale", f"{name}_offset"
    if scale not in ds or offset not in ds:
        return ds
    # Decoded band by band when computed; all at once would take four times the file's memory.
    lazy = field.chunk({field.dims[-3]: grid.BLOCK})
    values = (lazy * ds[scale].load() + ds[offset].load()).astype(np.float32)
    return ds.drop_vars([scale, offset]).assign({name: values.assign_attrs(field.attrs)})


def _bands(view: CubeView) -> Iterator[tuple[Any, NDArray[np.bool_], NDArray[Any]]]:
    """Where 45 rows of cells are, which of them are filled, and all their vectors."""
    for lead in np.ndindex(view.field.shape[:-3]):
        for start in range(0, view.field.shape[-3], grid.BLOCK):
            band = (*lead, slice(start, start + grid.BLOCK), slice(None))
            yield band, *view.read(band)


def _other_coordinates(field: "xr.DataArray", rest: "xr.Dataset") -> dict[str, str]:
    """CF attribute that names the coordinates which are no dimensions."""
    names = sorted(str(key) for key in field.coords if key not in rest.dims and key != "crs")
    return {"coordinates": " ".join(names)} if names else {}


def _storable(attrs: Any) -> dict[str, Any]:
    """Attributes as netCDF holds them: texts, numbers and lists of numbers."""

    def stored(value: Any) -> Any:
        if isinstance(value, bool):
            return int(value)
        if isinstance(value, str | int | float | np.ndarray | np.generic):
            return value
        if isinstance(value, list) and all(type(v) in (int, float) for v in value) and value:
            return value
        return json.dumps(value)

    return {str(key): stored(value) for key, value in attrs.items()}
