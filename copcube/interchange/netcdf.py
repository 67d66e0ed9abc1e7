"""netCDF: the whole dataset, for readers that know CF.

Unlike the published forms it keeps coordinates, counts and leading dimensions, and a region stays a
region. Components come before latitude and longitude, or are one variable each, so that GDAL, QGIS,
CDO and anemoi can read them; ``xarray.open_dataset`` reads all of it without copcube.
"""

import logging
import os
import re
from collections.abc import Callable, Hashable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from xarray.backends import BackendArray
from xarray.core import indexing

from copcube import grid
from copcube.arguments import flag, one_of
from copcube.cube.results import plain_attributes
from copcube.cube.schema import is_numbered
from copcube.cube.view import CubeView
from copcube.cube.whole import with_maps
from copcube.errors import CubeError, OptionError
from copcube.files.contents import refuse_other
from copcube.files.damage import naming_damage
from copcube.files.limits import rule_out_shortage
from copcube.files.netcdf_sizes import demand_variables
from copcube.files.regular import require_file
from copcube.interchange.conventions import (
    LAYOUTS,
    conforming,
    latlon_last,
    numbered_attributes,
    numbered_names,
)
from copcube.interchange.packing import Exported, Packer, Packing, int8_packing, required_dtype
from copcube.interchange.pieces import in_pieces
from copcube.interchange.replacing import appearing, require_free

if TYPE_CHECKING:
    import netCDF4
    import xarray as xr

log = logging.getLogger("copcube")

_FLOATS = Packing(missing=np.nan, zero_is_missing=False)
_SMALL: dict[str, Any] = {"zlib": True, "complevel": 1, "shuffle": True}
_DEEP = 16
"""Components in a chunk: few enough to read one component, or one cell's vector, cheaply."""
_COLON = re.compile("^(geoemb|spatial|proj)_")
"""Prefixes of attributes whose names have a colon in Zarr, which CF does not allow."""


@naming_damage()
def to_netcdf(
    ds: "xr.Dataset",
    path: str | Path,
    *,
    layout: Literal["first", "separate", "last"] | None = None,
    dtype: str = "float32",
    compress: bool = True,
    overwrite: bool = False,
) -> Exported:
    """Write a cube, a reduction or a merged dataset as CF netCDF-4, with all its variables.

    Attributes that netCDF cannot hold become JSON texts, and colons in their names underscores.

    Parameters
    ----------
    ds : xarray.Dataset
        Cube or reduction of any region, with or without leading dimensions, alone or merged with
        other fields.
    path : str or Path
        File to write, atomically.
    layout : {"first", "separate", "last"}, optional
        One variable (…, component, lat, lon), which GDAL and QGIS read as bands and CDO as
        levels (default); a variable (…, lat, lon) for each component, ``pc_00``… or
        ``dim_000``…, which anemoi wants and int8 needs (its default); or one (…, lat, lon,
        component) as in a cube. Unless ``last``, latitude and longitude are the last
        dimensions of all other fields too.
    dtype : {"float32", "int8"}
        Data type of the vectors. Int8 comes with CF's ``scale_factor`` and ``add_offset`` for each
        component, so that readers see float32 values.
    compress : bool
        Deflate.
    overwrite : bool
        Replace what is there.

    Returns
    -------
    Exported
        What was written, and the error that `dtype` causes.

    Raises
    ------
    CubeError
        If the dataset is not a cube or reduction.
    OptionError
        If netCDF has no such data type or layout, or int8 would need one scale for all components.
    WriteError
        If the file exists already or cannot be written.
    """
    import netCDF4

    out = require_free(path, overwrite, ds)
    dtype = required_dtype(dtype, ("float32", "int8"), "netCDF")
    chosen = layout
    if chosen is None:
        chosen = "separate" if dtype == "int8" else "first"
    one_of(chosen, "layout", LAYOUTS)
    if dtype == "int8" and chosen != "separate":
        raise OptionError(
            f"layout={layout!r}: CF has one scale per variable and int8 needs one per component; "
            "choose layout='separate', or dtype='float32'"
        )
    view = CubeView.of(conforming(ds))
    packing = _FLOATS
    if dtype == "int8":
        packing = int8_packing(view.field.shape[-1], (v[filled] for _, filled, v in _bands(view)))
        # Readers decode to the precision of scale and offset.
        scale, offset = (np.asarray(p, np.float32) for p in (packing.scale, packing.offset))
        packing = replace(packing, scale=scale, offset=offset)
    rest = view.dataset.drop_vars(view.name)
    rest = rest if chosen == "last" else latlon_last(rest)
    # xarray names coordinates in the fields along them; the vectors name those along no other
    # field.
    covered = [{*v.dims} for v in rest.data_vars.values()]
    others = [key for key in rest.coords if key not in rest.dims]
    rest = rest.reset_coords([k for k in others if not any({*rest[k].dims} <= c for c in covered)])
    rest.attrs = _storable(rest.attrs)
    for key, variable in rest.variables.items():
        rest[key].attrs = _storable(variable.attrs, variable.dtype)
    # With lazy maps, the file's bytes would depend on which dask thread writes first.
    rest = with_maps(rest, map(str, rest.data_vars))
    packer, compression = Packer(packing), _SMALL if flag(compress, "compress") else {}
    with appearing(path, overwrite, ds) as temporary:
        encoding = {key: _encoding(v, view, compression) for key, v in rest.variables.items()}
        write_by_xarray(in_pieces(rest), temporary, encoding)
        # The vectors are written band by band, beside what xarray wrote, to bound memory.
        with netCDF4.Dataset(temporary, "a") as file:
            write = _variables(file, view, chosen, packing, compression)
            for band, filled, values in _bands(view):
                shape = *filled.shape, view.field.shape[-1]
                numbers = np.full(shape, packing.missing, packing.dtype)
                numbers[filled] = packer.pack(values[filled])
                write(band, numbers)
    result = packer.result(str(path), view.field.shape[-1], out.stat().st_size)
    log.info("%s", result)
    return result


def write_by_xarray(
    ds: "xr.Dataset", path: str | Path, encoding: Mapping[Any, dict[str, Any]]
) -> None:
    """Let xarray write a netCDF file, so that Ctrl-C ends it.

    A signal is raised in the main thread between any two steps of Python, often just before xarray
    releases the lock under which it wrote. To close the file, xarray would then wait for that lock
    forever. Hence it writes on another thread, and the interruption waits for that thread.
    """
    # The context has the client of dask, if one was chosen with `as_current`.
    context, write = copy_context(), partial(ds.to_netcdf, engine="netcdf4", encoding=encoding)
    with ThreadPoolExecutor(1) as thread:
        thread.submit(context.run, write, path).result()


def _encoding(
    variable: "xr.Variable", view: CubeView, compression: dict[str, Any]
) -> dict[str, Any]:
    """Encoding with which xarray writes a variable beside the vectors."""
    if {view.lat, view.lon} <= {*variable.dims}:
        return compression
    return {"_FillValue": None}  # CF allows no missing values in coordinates and bounds


def _variables(
    file: "netCDF4.Dataset",
    view: CubeView,
    layout: str,
    packing: Packing,
    compression: dict[str, Any],
) -> Callable[[tuple[Any, ...], NDArray[Any]], None]:
    """Make the variables of the vectors; return a writer of bands (…, lat, lon, dim)."""
    field, sizes = view.field, {str(dim): size for dim, size in view.field.sizes.items()}
    *lead, lat, lon, dim = sizes
    chunk = dict.fromkeys(lead, 1) | {lat: grid.BLOCK, lon: grid.BLOCK, dim: _DEEP}
    for label, size in sizes.items():
        if label not in file.dimensions and not (label == dim and layout == "separate"):
            file.createDimension(label, size)

    def variable(name: str, dims: list[str], attrs: dict[Hashable, Any]) -> "netCDF4.Variable[Any]":
        made = file.createVariable(
            name,
            packing.dtype,
            dims,
            **compression,
            chunksizes=[min(chunk[label], sizes[label]) for label in dims],
            fill_value=packing.missing,
        )
        # Attributes remain if xarray did not decode; this file states its own missing values.
        attrs = {k: v for k, v in attrs.items() if k not in ("_FillValue", "missing_value")}
        made.setncatts(_storable(attrs) | _other_coordinates(field, view.dataset))
        # The numbers are already packed; netCDF4 would scale them again.
        made.set_auto_maskandscale(False)
        return made

    if layout == "first":
        whole = variable(view.name, [*lead, dim, lat, lon], field.attrs)
        return lambda band, numbers: whole.__setitem__(
            (*band[:-2], slice(None), *band[-2:]), np.moveaxis(numbers, -1, 0)
        )
    if layout == "last":
        chunk[dim] = sizes[dim]
        whole = variable(view.name, list(sizes), field.attrs)
        return whole.__setitem__
    chunk[lon] = sizes[lon]
    parts = []
    for number, name in enumerate(numbered_names(view)):
        attrs = numbered_attributes(view, name)
        if packing.scale is not None and packing.offset is not None:
            scale, offset = packing.scale[number], packing.offset[number]
            attrs |= {"scale_factor": scale, "add_offset": offset}
        parts.append(variable(name, [*lead, lat, lon], attrs))

    def write(band: tuple[Any, ...], numbers: NDArray[Any]) -> None:
        for number, part in enumerate(parts):
            part[band] = numbers[..., number]

    return write


def open_netcdf(path: str) -> "xr.Dataset":
    """Open a file of `to_netcdf`, lazily, with vectors along the last dimension.

    Raises
    ------
    CubeError
        If there is no such file, or it is not netCDF, or holds no cube or reduction.
    """
    import xarray as xr

    require_file(path, CubeError)
    if not os.path.isfile(path):
        raise CubeError(f"{path}: no such file; expected netCDF of a cube or a reduction")
    refuse_other(path, ("hdf5", "netcdf"), "netCDF of a cube or a reduction", CubeError)
    try:
        demand_variables(path, CubeError)
        ds = xr.open_dataset(path, engine="netcdf4")
    except CubeError:
        raise
    except (OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
        rule_out_shortage(error)
        raise CubeError(f"{path}: not a readable netCDF file ({error}); get a new copy") from error
    ds.attrs = {_COLON.sub(r"\1:", str(key)): value for key, value in ds.attrs.items()}
    ds = _joined(ds)
    view = CubeView.of(ds)
    field, name = view.field, view.name
    if field.dims != ds[name].dims:
        return ds.assign({name: _vectors([ds.variables[name]], field.dims)})
    # Releases before 0.2 wrote int8 as one variable with scales beside it.
    scale, offset = f"{name}_scale", f"{name}_offset"
    if scale not in ds or offset not in ds:
        return ds
    # Decoded band by band when computed; all at once would need four times the file's memory.
    lazy = field.chunk({field.dims[-3]: grid.BLOCK})
    values = (lazy * ds[scale].load() + ds[offset].load()).astype(np.float32)
    return ds.drop_vars([scale, offset]).assign({name: values.assign_attrs(field.attrs)})


def _joined(ds: "xr.Dataset") -> "xr.Dataset":
    """Join components that are one variable each, in their order in the file."""
    names = [name for name in ds.data_vars if is_numbered(name)]
    if not names or "pc" in ds or "embedding" in ds:
        return ds
    name, dim = ("pc", "component") if str(names[0]).startswith("pc") else ("embedding", "dim")
    parts = [ds.variables[key] for key in names]
    if len({(part.dims, part.dtype) for part in parts}) > 1:
        raise CubeError(f"expected {names[0]} … {names[-1]} to have the same dimensions and dtype")
    field = _vectors(parts, (*parts[0].dims, dim))
    if long_name := field.attrs.get("long_name"):
        field.attrs["long_name"] = str(long_name).removesuffix(f": {names[0]}")
    return ds.drop_vars(names).assign({name: field})


def _vectors(parts: "list[xr.Variable]", dims: tuple[Hashable, ...]) -> "xr.Variable":
    """Lazy vectors along the last dimension, from one variable or from one per component."""
    import xarray as xr

    data = indexing.LazilyIndexedArray(_Vectors(parts, dims))
    chunks = parts[0].encoding.get("preferred_chunks", {})
    return xr.Variable(dims, data, parts[0].attrs, {"preferred_chunks": chunks})


class _Vectors(BackendArray):
    """Vectors along the last dimension, read when they are indexed.

    Parameters
    ----------
    parts : list of xarray.Variable
        One variable with all `dims` in any order, or one per entry of the last, without it.
    dims : tuple
        Names of the dimensions.
    """

    def __init__(self, parts: "list[xr.Variable]", dims: tuple[Hashable, ...]) -> None:
        self._parts, self._dims = parts, dims
        sizes = {dims[-1]: len(parts)} | dict(parts[0].sizes)
        self.shape, self.dtype = tuple(sizes[dim] for dim in dims), parts[0].dtype

    def __getitem__(self, key: indexing.ExplicitIndexer) -> Any:
        return indexing.explicit_indexing_adapter(
            key, self.shape, indexing.IndexingSupport.OUTER, self._read
        )

    def _read(self, key: tuple[Any, ...]) -> NDArray[Any]:
        named = dict(zip(self._dims, key, strict=True))
        if self._dims[-1] in self._parts[0].dims:
            read = self._parts[0].isel(named)
            return read.transpose(*(dim for dim in self._dims if dim in read.dims)).values
        last = np.arange(len(self._parts))[named.pop(self._dims[-1])]
        found = [self._parts[i].isel(named).values for i in np.atleast_1d(last)]
        return np.stack(found, axis=-1) if np.ndim(last) else found[0]


def _bands(view: CubeView) -> Iterator[tuple[Any, NDArray[np.bool_], NDArray[Any]]]:
    """Positions of 45 rows of cells, which of the cells are filled, and all their vectors."""
    for lead in np.ndindex(view.field.shape[:-3]):
        for start in range(0, view.field.shape[-3], grid.BLOCK):
            band = (*lead, slice(start, start + grid.BLOCK), slice(None))
            yield band, *view.read(band)


def _other_coordinates(field: "xr.DataArray", rest: "xr.Dataset") -> dict[str, str]:
    """CF attribute that names the coordinates that are not dimensions."""
    names = sorted(str(key) for key in field.coords if key not in rest.dims)
    return {"coordinates": " ".join(names)} if names else {}


def _storable(attrs: Any, dtype: Any = None) -> dict[str, Any]:
    """Attributes in the form netCDF holds them, for a variable of this type."""
    found = {key.replace(":", "_"): v for key, v in plain_attributes(attrs).items()}
    if "flag_values" in found:  # CF requires the type of their variable
        found["flag_values"] = np.asarray(attrs["flag_values"], dtype)
    return found
