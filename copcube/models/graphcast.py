"""GraphCast, GenCast and WeatherNext 2: variables of latitude and longitude without a time.

Names are those of ``STATIC_VARS``; latitude runs from south to north, as in the published example
inputs. Two further files hold a number a variable, to be merged with the model's
``mean_by_level`` and ``stddev_by_level``: 0 and 1, since the channels are standardised.
"""

from functools import partial
from pathlib import Path

from copcube.interchange.netcdf import write_by_xarray
from copcube.models.fields import Fields, Maps
from copcube.models.form import Form, required, write_netcdf

_STATICS = {"geopotential_at_surface": "z", "land_sea_mask": "lsm"}


def statics(fields: Maps) -> Maps:
    """Take the two static fields of the model, under its names."""
    return required(fields, _STATICS, "GraphCast")


def write(fields: Fields, path: Path) -> None:
    """Write the variables."""
    write_netcdf(fields, path, dims=("lat", "lon"), ascending=True)


def _write_numbers(value: float, fields: Fields, path: Path) -> None:
    """Write a number for each channel."""
    import xarray as xr

    names = [name for name in fields.channels if name not in fields.statics]
    fingerprint = {"copcube_fingerprint": fields.attrs["copcube_fingerprint"]}
    ds = xr.Dataset({name: ((), value) for name in names}, attrs=fingerprint)
    write_by_xarray(ds, path, {name: {"dtype": "f4"} for name in names})


FORMS = {
    ".nc": Form(
        write,
        statics=statics,
        beside={
            "_mean_by_level.nc": partial(_write_numbers, 0.0),
            "_stddev_by_level.nc": partial(_write_numbers, 1.0),
        },
    )
}
