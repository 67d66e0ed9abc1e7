"""WeatherGenerator: vectors of stations in a Zarr store, as its reader of AlphaEarth has them.

``data`` (station, date, channel, y, x), ``dates`` (date) and ``metadata`` (station), whose fields
``lat`` and ``lon`` are found by name. Stations in cells without a vector are left out, so that the
reader answers its ``missing_value`` for them; with 0 that is the mean, and 0 of the mask.
"""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from copcube import grid
from copcube.errors import CubeError, OptionError
from copcube.lookup.tables import are_places, read_table
from copcube.models.components import Components
from copcube.models.fields import Fields, Maps, on_lattice
from copcube.models.form import Form

log = logging.getLogger("copcube")

_DATE = "2021-01-01"
"""The reader takes the store's nearest date, which is always the only one."""
_CHUNK = 1024
"""Stations per chunk."""


def at_stations(
    components: Components,
    statics: Maps,
    *,
    stations: Any = None,
) -> Fields:
    """Take components at stations, of the cells that hold them, standardised on all cells.

    Parameters
    ----------
    components : Components
        What is written.
    statics : mapping
        Ignored: there are none.
    stations : table, optional
        What `copcube.lookup.points.points` takes, such as a frame, or a CSV or parquet file, with
        the columns lat and lon; by default the centres of all cells with a vector.

    Raises
    ------
    CubeError
        If no station lies in a cell with a vector.
    OptionError
        If the table cannot be read, has no such columns, or no row of it is a place.
    """
    if stations is None:
        row, col = np.nonzero(components.filled)
        lat, lon = grid.latitudes()[row], grid.longitudes()[col]
    else:
        lat, lon = _places(stations)
    row, col = grid.cell_at(lat, lon)
    there = components.filled[row, col]
    if not there.all():
        log.warning(
            "%d of %d stations lie in cells without a vector and are left out",
            np.count_nonzero(~there),
            len(there),
        )
    if not there.any():
        raise CubeError("no station lies in a cell with a vector: there is nothing to write")
    laid = on_lattice(components, statics)
    at = row[there], col[there]
    values, mask = laid.values[:, *at], laid.mask[at]
    return replace(laid, values=values, mask=mask, lat=lat[there], lon=lon[there])


def _places(stations: Any) -> tuple[grid.Floats, grid.Floats]:
    """Degrees of the rows that are places; others are counted and left out."""
    table = read_table(stations, None, None)
    lat, lon = table.lat.values.ravel(), table.lon.values.ravel()
    places = are_places(lat, lon)
    if not places.any():
        raise OptionError(f"none of {len(places)} rows of the table of stations is a place")
    if not places.all():
        log.warning("%d rows of the table are not places and are left out", (~places).sum())
    return lat[places], lon[places]


def write(fields: Fields, path: Path) -> None:
    """Write the store in version 2 of Zarr, which has types with fields."""
    import zarr

    channels = np.stack(list(fields.channels.values()), axis=-1)
    stations, count = channels.shape
    group = zarr.open_group(path, mode="w", zarr_format=2)
    places = np.zeros(stations, [("lat", "<f8"), ("lon", "<f8")])
    places["lat"], places["lon"] = fields.lat, fields.lon
    arrays: dict[str, Any] = {
        # AlphaEarth has dates and pixels of a station; a vector of a cell is one of each.
        "data": channels.reshape(stations, 1, count, 1, 1),
        "dates": np.array([_DATE], "datetime64[ns]"),
        "metadata": places,
    }
    for name, values in arrays.items():
        chunks = (min(_CHUNK, len(values)), *values.shape[1:])
        group.create_array(name, shape=values.shape, dtype=values.dtype, chunks=chunks)[:] = values
    group.attrs.update(fields.description())


FORMS = {".zarr": Form(write, at_stations, folder=True)}
