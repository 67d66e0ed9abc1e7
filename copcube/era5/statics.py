"""ERA5's invariant fields, recognised in any file and given one name each.

Fourteen fields of ERA5 never change. CDS, ARCO-ERA5, WeatherBench2, cfgrib and CDO each name
them differently; parameter ids, short names and units are ECMWF's (codes.ecmwf.int/grib/param-db).
"""

import contextlib
import logging
import re
import tempfile
import warnings
from collections.abc import Hashable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from copcube.arguments import one_path, without_scheme
from copcube.cube.latlon import LatLon
from copcube.cube.results import as_result
from copcube.cube.store import demand_arrays
from copcube.errors import (
    CubeError,
    MissingFileError,
    MissingPackageError,
    SourceError,
    StorageError,
    in_a_line,
)
from copcube.files.contents import HEAD, first_bytes, form
from copcube.files.limits import demand_piece, rule_out_shortage
from copcube.files.netcdf_sizes import demand_variables
from copcube.files.objects import is_remote, read, zarr_store
from copcube.files.objects.stores import asking
from copcube.files.regular import require_file

if TYPE_CHECKING:
    import xarray as xr

log = logging.getLogger("copcube")


@dataclass(frozen=True)
class Static:
    """One invariant field.

    Parameters
    ----------
    param_id : int
        ECMWF's parameter id.
    name : str
        ECMWF's short name, ours too.
    kind : {"categorical", "fraction", "continuous", "angle"}
        Permitted operations: categories are neither averaged nor scaled, angles are periodic.
    units : str
        Its units.
    long_names : tuple of str
        Other names, in lower case with underscores.
    """

    param_id: int
    name: str
    kind: str
    units: str
    long_names: tuple[str, ...]


_OROGRAPHY = "sub_gridscale_orography"

STATICS = (
    Static(129, "z", "continuous", "m2 s-2", ("geopotential_at_surface", "geopotential")),
    Static(172, "lsm", "fraction", "1", ("land_sea_mask",)),
    Static(43, "slt", "categorical", "1", ("soil_type",)),
    Static(27, "cvl", "fraction", "1", ("low_vegetation_cover",)),
    Static(28, "cvh", "fraction", "1", ("high_vegetation_cover",)),
    Static(29, "tvl", "categorical", "1", ("type_of_low_vegetation",)),
    Static(30, "tvh", "categorical", "1", ("type_of_high_vegetation",)),
    Static(26, "cl", "fraction", "1", ("lake_cover",)),
    Static(228007, "dl", "continuous", "m", ("lake_depth", "lake_total_depth")),
    Static(
        160,
        "sdor",
        "continuous",
        "m",
        ("standard_deviation_of_orography", f"standard_deviation_of_{_OROGRAPHY}"),
    ),
    Static(161, "isor", "continuous", "1", (f"anisotropy_of_{_OROGRAPHY}",)),
    Static(162, "anor", "angle", "radians", (f"angle_of_{_OROGRAPHY}",)),
    Static(163, "slor", "continuous", "1", (f"slope_of_{_OROGRAPHY}",)),
    Static(
        74,
        "sdfor",
        "continuous",
        "m",
        (
            "standard_deviation_of_filtered_subgrid_orography",
            "standard_deviation_of_filtered_subgrid_orography_climatological",
        ),
    ),
)

_BY_ID = {static.param_id: static for static in STATICS}
_BY_NAME = {name: static for static in STATICS for name in (static.name, *static.long_names)}

_SINGLE = ("time", "valid_time", "number", "expver", "step", "realization", "member", "ensemble")
"""Dimensions that an ERA5 file may have with length 1 and no meaning."""
_LEVELS = ("level", "pressure_level", "isobaricinhpa", "plev", "hybrid", "model_level", "lev")


def open_static(path_or_url: str | Path) -> "xr.Dataset":
    """Open ERA5's invariant fields from a file or store, under ECMWF's short names.

    Parameters
    ----------
    path_or_url : str or Path
        A NetCDF or GRIB file, a Zarr store, or the address of one (``s3://``, ``gs://``,
        ``https://``), with the access that the environment gives, as
        `copcube.files.objects` says. Public Zarr stores need none. A file at an address is
        read into memory.

    Returns
    -------
    xarray.Dataset
        The fields of `STATICS` that are there, in that order, lazy, on ``latitude`` and
        ``longitude``, which keep their order, longitude convention and dtype. Attributes stay;
        ``kind`` says what may be done with a field, ``units`` are added where missing. Fields that
        are left out are logged.

    Raises
    ------
    CubeError
        If there is no invariant field, or two claim to be the same one.
    GridError
        If the fields are on a grid that `merge` cannot use.
    MissingFileError
        If there is no such file.
    MissingPackageError
        If reading needs a package that is not installed.
    SourceError
        If the file is of none of these kinds or is damaged.
    StorageError
        If an object store cannot be reached or denies access.

    Examples
    --------
    >>> from copcube import era5
    >>> era5.open_static("static.nc")  # doctest: +SKIP
    """
    import xarray as xr

    found: dict[str, xr.DataArray] = {}
    left_out: list[str] = []
    opened = open_fields(one_path(path_or_url, "ERA5 file", "; open them one by one"))
    for name, field in ((n, v) for ds in opened for n, v in squeezed(ds).data_vars.items()):
        static = recognise(name, field)
        if static is not None:
            # One map of a time or a level is read; everything else completely.
            shape = [n for d, n in field.sizes.items() if str(d).lower() not in _SINGLE]
            demand_piece(str(path_or_url), str(name), tuple(shape), field.dtype.itemsize, CubeError)
        if static is None or (reason := _not_invariant(field, static)):
            left_out.append(str(name) if static is None else f"{name} ({reason})")
        elif static.name in found:
            raise CubeError(
                f"{path_or_url}: {found[static.name].attrs['original_name']} and {name} both are "
                f"ERA5's {static.name}, {static.long_names[0]}; keep one of them"
            )
        else:
            found[static.name] = _canonical(field, static)
    if not found:
        raise CubeError(
            f"{path_or_url}: expected invariant fields of ERA5 "
            f"({', '.join(static.name for static in STATICS)}), found "
            f"{', '.join(left_out) or 'no variables'}"
        )
    if left_out:
        log.info("%s: left out, not invariant: %s", path_or_url, ", ".join(left_out))
    fields = {static.name: found[static.name] for static in STATICS if static.name in found}
    try:
        # By default xarray would extend fields on different grids with NaN.
        result = xr.merge(fields.values(), join="exact", compat="override")
    except ValueError as error:
        raise CubeError(f"{path_or_url}: the fields are not on one grid: {error}") from error
    result.attrs = dict(opened[0].attrs)
    result = as_result(result)

    def close() -> None:
        for ds in opened:
            ds.close()

    result.set_close(close)
    return result


def recognise(name: Hashable, field: "xr.DataArray") -> Static | None:
    """Return which invariant field a variable is, None if it is not one.

    A GRIB or CDO parameter id decides. Without one, the variable's name does, and if that
    says nothing, its long name.
    """
    for key in ("GRIB_paramId", "paramId", "param_id", "code"):
        if key in field.attrs:
            number = re.match(r"\d+", str(field.attrs[key]))
            return _BY_ID.get(int(number[0])) if number else None
    text = _words(name)
    # CDO calls a field that its tables lack var129; others add the table, 128 or 228.
    if number := re.fullmatch(r"(?:var|p|param)?_?(\d+)(?:_128|_228)?", text):
        return _BY_ID.get(int(number[1]))
    if text in _BY_NAME:
        return _BY_NAME[text]
    return _BY_NAME.get(_words(field.attrs.get("long_name", "")))


def squeezed(ds: "xr.Dataset") -> "xr.Dataset":
    """Remove dimensions of length 1 without meaning for a field, such as a single time."""
    single = [dim for dim in ds.dims if ds.sizes[dim] == 1 and str(dim).lower() in _SINGLE]
    return ds.squeeze(single)


def _not_invariant(field: "xr.DataArray", static: Static) -> str | None:
    """Say why a field of a known name is not the invariant one, None if it is."""
    # The orography and the geopotential of every pressure level share a name.
    if static.name == "z" and field.name != "geopotential_at_surface":
        level = next((str(c) for c in field.coords if str(c).lower() in _LEVELS), None)
        level = level or field.attrs.get("GRIB_typeOfLevel", "surface")
        if level != "surface":
            return f"on {level}"
    for dim in (d for d in field.dims if str(d).lower() in _SINGLE):
        first, last = (field.isel({dim: i}, drop=True) for i in (0, -1))
        if not first.equals(last):
            return f"differs along {dim}"
    return None


def _canonical(field: "xr.DataArray", static: Static) -> "xr.DataArray":
    """Return one map of a field, under our names."""
    # Fields that differ along such a dimension were refused before, so any map will do.
    further = {d: 0 for d in field.dims if str(d).lower() in _SINGLE}
    field = field.isel(further)
    axes = LatLon.of(field.to_dataset(name=static.name))
    names = {axes.lat: "latitude", axes.lon: "longitude"}
    original = str(field.name)
    field = field.rename(static.name).rename({k: v for k, v in names.items() if k != v})
    if extra := set(field.dims) - {"latitude", "longitude"}:
        raise CubeError(
            f"{original} has the dimensions {', '.join(map(str, field.dims))}; expected latitude "
            f"and longitude: select one of {' and '.join(map(str, extra))}"
        )
    field.attrs = {"units": static.units, **field.attrs, "kind": static.kind}
    field.attrs["original_name"] = original
    return field.drop_vars([c for c in field.coords if c not in field.dims])


def _words(text: object) -> str:
    return re.sub(r"[^a-z0-9]+", "_", str(text).lower()).strip("_")


def open_fields(path: str) -> list["xr.Dataset"]:
    """Open fields of any kind: NetCDF, Zarr or GRIB, which gives a dataset for each variable.

    Raises
    ------
    MissingFileError, MissingPackageError, SourceError, StorageError
        As `open_static`.
    """
    path = without_scheme(path)
    if is_remote(path):
        return _open_address(path)
    if Path(path).is_dir():
        return [_open_zarr(path, path)]
    require_file(path, SourceError)
    if not Path(path).exists():
        raise MissingFileError(f"{path}: no such file; expected NetCDF, GRIB or a Zarr store")
    if _form(first_bytes(path), path) == "grib":
        return _open_grib(path, path)
    return [_open_netcdf(path, path)]


def _open_address(url: str) -> list["xr.Dataset"]:
    """Open a file or a Zarr store at an address."""
    # Python tools write Google's scheme in both ways.
    url = re.sub("^gcs://", "gs://", url)
    try:
        # Zarr stores are what an address usually holds; asking for a file costs a request.
        data = None if url.rstrip("/").endswith(".zarr") else read(url)
    except FileNotFoundError:
        data = None
    if data is None:
        return [_open_remote_zarr(url)]
    if _form(data[:HEAD], url) != "grib":
        return [_open_netcdf(data, url)]
    # ecCodes reads only files; the fields are loaded, since the file is temporary.
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        copy = Path(folder) / "fields.grib"
        copy.write_bytes(data)
        return [ds.load() for ds in _open_grib(str(copy), url)]


def _form(head: bytes | None, name: str) -> str:
    """Return the form of a file, ``netcdf``, ``hdf5`` or ``grib``, by its first bytes."""
    found, words = form(head or b"")
    if found not in ("netcdf", "hdf5", "grib"):
        raise SourceError(
            f"{name}: expected NetCDF, GRIB or a Zarr store, found {words or 'something else'}"
        )
    return found


def _open_netcdf(source: str | bytes, name: str) -> "xr.Dataset":
    """Open a NetCDF file, or the bytes of one."""
    import netCDF4
    import xarray as xr

    try:
        demand_variables(name, SourceError, None if isinstance(source, str) else source)
        if isinstance(source, str):
            return xr.open_dataset(source, engine="netcdf4")
        in_memory = netCDF4.Dataset("memory", memory=source)  # an address would be asked
        store: Any = xr.backends.NetCDF4DataStore(in_memory)  # type: ignore[no-untyped-call]
        return xr.open_dataset(store)
    except SourceError:
        raise
    except (OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
        rule_out_shortage(error)
        raise SourceError(f"{name}: the NetCDF file cannot be read ({error})") from error


def _open_grib(path: str, name: str) -> list["xr.Dataset"]:
    """Open the variables of a GRIB file, which messages call by another name."""
    import pyproj  # noqa: F401  (after ecCodes, which brings a PROJ of its own, it would crash)

    try:
        open_variables = import_module("cfgrib.xarray_store").open_variable_datasets
    except (ImportError, RuntimeError) as error:  # RuntimeError: without the ecCodes library
        raise MissingPackageError(
            f"{name} is GRIB, which needs cfgrib and ecCodes ({error}): pip install cfgrib "
            "eccodes, or convert it with grib_to_netcdf or cdo -f nc copy"
        ) from error
    try:
        # Each variable by itself, since those of one file may differ in level or time.
        # Without a path cfgrib writes no index beside the file, where it may not be allowed to.
        datasets: list[xr.Dataset] = open_variables(path, {"indexpath": ""})
    except (EOFError, OSError, ValueError) as error:
        raise SourceError(f"{name}: the GRIB file cannot be read ({error})") from error
    return datasets


def _open_remote_zarr(url: str) -> "xr.Dataset":
    """Open a Zarr store at an address, first anonymously, then with the user's credentials.

    Most copies of ERA5 are public. They refuse requests with missing or foreign credentials, or
    take half a minute to do so.
    """
    try:
        return _open_zarr(zarr_store(url, anonymous=True), url)
    except (StorageError, SourceError):
        return _open_zarr(zarr_store(url), url)


def _open_zarr(store: Any, name: str) -> "xr.Dataset":
    """Open a Zarr store of a path or an address."""
    import xarray as xr

    try:
        with warnings.catch_warnings():
            # A store without consolidated metadata only takes longer to open.
            warnings.filterwarnings("ignore", message="Failed to open Zarr store with consolid")
            # A store's refusal names the remedy; errors of a folder are named below.
            with contextlib.nullcontext() if isinstance(store, str) else asking(name):
                demand_arrays(store, name, SourceError)
                ds: xr.Dataset = xr.open_zarr(store)
    except (StorageError, SourceError):
        raise
    except Exception as error:  # damaged metadata make zarr raise almost anything
        raise SourceError(
            f"{name}: not a readable Zarr store of variables ({in_a_line(error)})"
        ) from error
    return ds
