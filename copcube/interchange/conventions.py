"""The Climate and Forecast conventions (CF), applied to datasets written for other software.

GDAL, QGIS, CDO and anemoi understand a file by its attributes alone: which dimension is latitude,
which reference system a field has, what is a field and what only describes one.
"""

from collections.abc import Hashable, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np

from copcube.arguments import one_of
from copcube.cube import schema
from copcube.cube.latlon import spatial_dims
from copcube.cube.results import covers_lattice, without_encoding
from copcube.cube.view import CubeView
from copcube.errors import CubeError
from copcube.modalities import families
from copcube.version import __version__

if TYPE_CHECKING:
    import xarray as xr

LAYOUTS = ("first", "separate", "last")
"""Where vectors lie in a file: components before latitude and longitude, as GDAL, CDO and CF have
bands and levels; a variable each; or after them, as in a cube."""

CONVENTIONS = "CF-1.11"
_LATLON = (("latitude", "degrees_north", "Y"), ("longitude", "degrees_east", "X"))
_TIME = {
    "standard_name": "time",
    "long_name": "time",
    "units_metadata": "leap_seconds: none",  # as NumPy counts
}
_GRID_MAPPINGS = ("crs", "spatial_ref")
_TITLES = {"embedding": "{} embeddings", "pc": "Principal components of {} embeddings"}


def numbered_names(view: CubeView) -> list[str]:
    """Names of the single components of vectors: ``pc_00`` and so on, or ``dim_000``."""
    count = view.field.shape[-1]
    stem, digits = ("pc", 2) if view.name == "pc" else ("dim", 3)
    numbers = np.arange(count)
    # A selection keeps its numbers if they are distinct.
    if view.dim in view.field.coords:
        given = view.field[view.dim].values
        if given.dtype.kind in "iu" and len(np.unique(given)) == count and given.min() >= 0:
            numbers = given
    return [f"{stem}_{number:0{digits}d}" for number in numbers.tolist()]


def _title(name: str | None, attrs: Mapping[Any, Any]) -> str:
    """Title of a dataset, from its variable of vectors and their product."""
    of = attrs.get("product")
    if "synthetic" in attrs:
        of = f"SYNTHETIC {of}" if of else "SYNTHETIC"
    of = of or ", ".join(families(str(attrs.get("modalities", "")).split()))
    return _TITLES.get(str(name), "Fields").format(of)


def numbered_attributes(view: CubeView, name: str) -> dict[Hashable, Any]:
    """Attributes of a variable that is one of a numbered series."""
    long_name = view.field.attrs.get("long_name", _title(view.name, view.dataset.attrs))
    return view.field.attrs | {"long_name": f"{long_name}: {name}"}


def laid_out(ds: "xr.Dataset", layout: str) -> "xr.Dataset":
    """Arrange the vectors of a cube or a reduction in a layout, lazily.

    Parameters
    ----------
    ds : xarray.Dataset
        Cube or reduction; with the layout ``last`` any dataset.
    layout : {"first", "separate", "last"}
        As in `LAYOUTS`.

    Returns
    -------
    xarray.Dataset
        With latitude and longitude as the last dimensions of all fields, unless ``last``.

    Raises
    ------
    CubeError
        If the dataset has no vectors.
    OptionError
        If there is no such layout.
    """
    one_of(layout, "layout", LAYOUTS)
    if layout == "last":
        return ds
    view = CubeView.of(ds)
    turned = latlon_last(ds)
    if layout == "first":
        return turned
    names = numbered_names(view)
    parts = {
        name: turned[view.name].isel({view.dim: number}, drop=True)
        for number, name in enumerate(names)
    }
    for name, part in parts.items():
        part.attrs = numbered_attributes(view, name)
    return turned.drop_vars(view.name).assign(parts)


def latlon_last(ds: "xr.Dataset") -> "xr.Dataset":
    """Transpose all fields so that latitude and longitude are their last dimensions."""
    lat, lon = spatial_dims(ds)
    turned = {n: v.transpose(..., lat, lon) for n, v in ds.items() if {lat, lon} <= {*v.dims}}
    return ds.assign(turned)


def conforming(ds: "xr.Dataset") -> "xr.Dataset":
    """Give a dataset the attributes that CF readers need; values are unchanged.

    Latitude and longitude are described, and every field names its grid mapping, which is made if
    there is none. Grid mappings, bounds and scalar coordinates are named in the attribute
    ``coordinates`` of the dataset, as in cubes, and not in those of fields, which CDO cannot
    handle. Attributes that name missing variables are dropped; title and history are added.

    Parameters
    ----------
    ds : xarray.Dataset
        Any dataset. Without latitude and longitude it gets only title, history and conventions.

    Returns
    -------
    xarray.Dataset
        Without encoding.

    Raises
    ------
    CubeError
        If labels have a type that only pandas knows.
    """
    _refuse_labels_of_pandas(ds)
    held = next((name for name in _TITLES if name in ds), None)
    result = without_encoding(ds)
    for name, variable in result.variables.items():
        # xarray keeps the name of a decoded grid mapping in the encoding.
        decoded = {k: v for k, v in ds[name].encoding.items() if k == "grid_mapping"}
        result[name].attrs = _present(decoded | variable.attrs, ds)
    with suppress(CubeError):
        result = _located(result, *spatial_dims(ds))
    for name, v in result.coords.items():
        if v.dtype.kind == "M":
            result[name].attrs = _TIME | v.attrs
        elif v.dtype.kind in "iuf" and v.dims in ((), (name,)) and name not in _GRID_MAPPINGS:
            result[name].attrs.setdefault("units", "1")
    beside = _beside_fields(result)
    result = result.reset_coords([name for name in beside if name in result.coords])
    attrs = dict(result.attrs)
    attrs.setdefault("title", _title(held, attrs))
    attrs.setdefault("history", f"copcube {__version__}")
    attrs["Conventions"] = CONVENTIONS
    attrs.pop("coordinates", None)
    if beside:
        attrs["coordinates"] = " ".join(beside)
    result.attrs = attrs
    return result


def _refuse_labels_of_pandas(ds: "xr.Dataset") -> None:
    """Refuse labels of several levels, periods and the like, which no format can hold."""
    from xarray.indexes import PandasMultiIndex

    for name, index in ds.xindexes.items():
        if isinstance(index, PandasMultiIndex):
            raise CubeError(
                f"the labels along {index.dim} have several levels, which netCDF and Zarr cannot "
                f"hold; turn them into coordinates with ds.reset_index({str(index.dim)!r})"
            )
        if not isinstance(kind := ds.variables[name].dtype, np.dtype):
            raise CubeError(
                f"the labels along {name} are {kind}, which netCDF and Zarr cannot hold; turn them "
                f"into texts with ds.assign_coords({name}=ds.{name}.values.astype(str))"
            )


def _present(attrs: dict[Hashable, Any], ds: "xr.Dataset") -> dict[Hashable, Any]:
    """Attributes without references to missing variables."""
    kept = dict(attrs)
    if "cell_methods" in kept and "time" not in ds.variables:
        # Cubes state that they average over time too; checkers require a coordinate of that name.
        methods = str(kept["cell_methods"]).replace("area: time: ", "area: ")
        kept["cell_methods"] = methods.replace("(comment: ", "(")
    for key in ("bounds", "grid_mapping"):
        if key in kept and kept[key] not in ds.variables:
            del kept[key]
    if "ancillary_variables" in kept:
        names = [name for name in str(kept.pop("ancillary_variables")).split() if name in ds]
        kept |= {"ancillary_variables": " ".join(names)} if names else {}
    return kept


def _located(ds: "xr.Dataset", lat: str, lon: str) -> "xr.Dataset":
    """Describe latitude, longitude and the grid mapping of all fields."""
    for dim, (name, units, axis) in zip((lat, lon), _LATLON, strict=True):
        attributes = {"standard_name": name, "long_name": name, "units": units, "axis": axis}
        if (bounds := f"{dim}_bnds") in ds.variables and dim in ds[bounds].dims:
            attributes["bounds"] = bounds
        ds[dim].attrs = attributes | ds[dim].attrs
    mapping = next((name for name in _GRID_MAPPINGS if name in ds.variables), None)
    if mapping is None:
        made = schema.variables(1, None, ())["crs"]
        mapping, ds = made.name, ds.assign_coords({made.name: ((), made.values, made.attrs)})
    attrs = dict(ds[mapping].attrs)
    attrs.setdefault("long_name", "coordinate reference system")
    # The transform is that of the whole lattice; readers derive another from the coordinates.
    if not covers_lattice(ds):
        attrs.pop("GeoTransform", None)
    ds[mapping].attrs = attrs
    for key, v in ds.data_vars.items():
        if {lat, lon} <= {*v.dims}:
            ds[key].attrs.setdefault("grid_mapping", mapping)
    return ds


def _beside_fields(ds: "xr.Dataset") -> Sequence[str]:
    """Names of variables that describe fields and are neither a field nor an axis of one.

    Scalar coordinates, such as the time of ERA5's fields, are among them: CDO cannot assign them,
    and those of a merged dataset apply to some of its fields only.
    """
    keys = ("bounds", "grid_mapping")
    named = {v.attrs[key] for v in ds.variables.values() for key in keys if key in v.attrs}
    named |= {name for name, v in ds.coords.items() if v.ndim == 0}
    return sorted(map(str, named | {name for name in _GRID_MAPPINGS if name in ds.variables}))
