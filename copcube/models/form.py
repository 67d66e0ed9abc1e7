"""Common parts of file formats: their description, and writing netCDF."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from copcube.era5.statics import STATICS
from copcube.errors import CubeError
from copcube.interchange.netcdf import write_by_xarray
from copcube.models.fields import MASK, Fields, Maps, on_all_rows


@dataclass(frozen=True)
class Form:
    """A kind of file that a model reads.

    Parameters
    ----------
    write : callable
        Writes `Fields` to a path that is free.
    place : callable
        Brings components and static fields to the model's places; its keyword arguments are
        the options of the form.
    statics : callable or None
        Makes the model's own fields, by the names that it calls them, of ERA5's; None if they
        have no place in the file.
    beside : mapping
        Ending that is added to the file's name → what writes a further file there.
    described : bool
        Whether the file has room for a description; a JSON text is laid beside one that has not.
    folder : bool
        Whether it is a Zarr folder.
    most : int, optional
        Number of channels that the model takes, if it takes no others.
    """

    write: Callable[[Fields, Path], None]
    place: Callable[..., Fields] = on_all_rows
    statics: Callable[[Maps], Maps] | None = None
    beside: Mapping[str, Callable[[Fields, Path], None]] = field(default_factory=dict)
    described: bool = True
    folder: bool = False
    most: int | None = None


def of_the_same_names(statics: Maps) -> Maps:
    """Keep all static fields as they are called."""
    return statics


def required(statics: Maps, names: Mapping[str, str], model: str) -> Maps:
    """Take the static fields that a model needs, by its names for them.

    Parameters
    ----------
    statics : mapping
        ERA5's fields by their short names.
    names : mapping
        The model's name for a field → ECMWF's short name, in the order of the file.
    model : str
        For messages.

    Raises
    ------
    CubeError
        If one is missing.
    """
    if missing := [short for short in names.values() if short not in statics]:
        raise CubeError(
            f"the static fields hold {', '.join(statics)}; {model} also needs {', '.join(missing)}"
        )
    return {name: statics[short] for name, short in names.items()}


def units_of(name: str) -> str:
    """Units of a static field, by ERA5's or a model's name for it; 1 for classes and others."""
    known = (static for static in STATICS if name in (static.name, *static.long_names))
    return next((static.units for static in known), "1")


def attributes(fields: Fields) -> dict[str, Any]:
    """Description for netCDF, which holds no lists of texts: names stand in one text."""
    lists = ("channels", "standardised")
    return {k: " ".join(v) if k in lists else v for k, v in fields.description().items()}


def write_netcdf(
    fields: Fields,
    path: Path,
    *,
    dims: tuple[str, str] = ("latitude", "longitude"),
    ascending: bool = False,
    transposed: bool = False,
    time: bool = False,
    units: str = "1",
) -> None:
    """Write one variable per channel, as CF netCDF.

    Parameters
    ----------
    fields : Fields
        On a grid.
    path : Path
        File to write.
    dims : tuple of str
        Names of latitude and longitude.
    ascending : bool
        Whether latitude, which comes from the north, is turned to run from south to north.
    transposed : bool
        Whether longitude comes first.
    time : bool
        Whether there is a dimension of one time.
    units : str
        Units of components and mask.
    """
    import xarray as xr

    turn = slice(None, None, -1 if ascending else 1)
    numbers = dict(zip(fields.names, zip(fields.mean, fields.std, strict=True), strict=True))
    data = {}
    for name, values in fields.channels.items():
        attrs: dict[str, Any] = {"long_name": name, "units": units_of(name)}
        if name in numbers:
            mean, std = numbers[name]
            attrs = {
                "long_name": f"standardised embedding component {name}; 0 where missing",
                "units": units,
                "standardised_mean": mean,
                "standardised_std": std,
            }
        elif name == MASK:
            attrs = {"long_name": "share of the cell that holds an embedding", "units": units}
        variable = xr.Variable(dims, values[turn], attrs)
        if transposed:
            variable = variable.transpose(*dims[::-1])
        data[name] = variable.expand_dims("time") if time else variable
    coords: dict[str, Any] = {}
    axes = (
        ("latitude", "Y", "degrees_north", fields.lat[turn]),
        ("longitude", "X", "degrees_east", fields.lon),
    )
    for dim, (name, axis, degrees, along) in zip(dims, axes, strict=True):
        attrs = {"standard_name": name, "long_name": name, "units": degrees, "axis": axis}
        coords[dim] = (dim, along, attrs)
    if time:
        # The time has no meaning; readers that expect one skip variables without it.
        when = np.array(["2000-01-01"], "datetime64[ns]")
        coords["time"] = ("time", when, {"standard_name": "time", "axis": "T"})
    ds = xr.Dataset(data, coords, {"Conventions": "CF-1.11", **attributes(fields)})
    # Nothing is missing.
    encoding: dict[str, Any] = {str(name): {"_FillValue": None} for name in ds.variables}
    for name in data:
        encoding[name] |= {"zlib": True, "complevel": 1}
    write_by_xarray(ds, path, encoding)
