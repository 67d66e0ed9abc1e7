"""Requests as rs-embed describes them: its own objects, mappings, or plain values.

rs-embed is not imported: any object with its field names is understood.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from math import cos, isfinite, radians
from typing import Any

import numpy as np

from copcube.errors import SpecError

_METRES = 111_320.0
"""Metres per degree of latitude, as in rs-embed."""

Corners = tuple[float, float, float, float]
"""West, south, east, north in degrees."""


@dataclass(frozen=True)
class Temporal:
    """A calendar year, or a range of days whose end is not in it."""

    year: int | None = None
    start: str | None = None
    end: str | None = None

    @property
    def years(self) -> range:
        """All its calendar years."""
        if self.year is not None:
            return range(self.year, self.year + 1)
        first, last = (date.fromisoformat(str(day)) for day in (self.start, self.end))
        # The end is not in the range, so an end on 1 January excludes its year.
        ends_with_year = (last.month, last.day) == (1, 1)
        return range(first.year, last.year + (not ends_with_year))


@dataclass(frozen=True)
class Output:
    """One vector of a region, or all its cells."""

    mode: str = "pooled"
    pooling: str = "mean"
    grid_orientation: str = "north_up"


def corners_of(spatial: Any, *, strict: bool) -> Corners:
    """Corners of a place.

    Parameters
    ----------
    spatial : object, mapping or sequence
        With minlon, minlat, maxlon, maxlat, or lon, lat, buffer_m; or four numbers, or three.
    strict : bool
        Whether to refuse a box across the antimeridian, as rs-embed does, and to let a buffer reach
        beyond a pole.

    Raises
    ------
    SpecError
        If it is neither.
    """
    fields = _fields(spatial, ("minlon", "minlat", "maxlon", "maxlat", "crs"))
    point = _fields(spatial, ("lon", "lat", "buffer_m", "crs"))
    if is_list(spatial):
        names = {4: ("minlon", "minlat", "maxlon", "maxlat"), 3: ("lon", "lat", "buffer_m")}
        named = dict(zip(names.get(len(spatial), ()), spatial, strict=False))
        fields, point = (named, {}) if len(spatial) == 4 else ({}, named)
    if "minlon" in fields:
        west, south, east, north = _numbers(fields, ("minlon", "minlat", "maxlon", "maxlat"))
        if strict and not -180 <= west < east <= 180:
            raise SpecError(
                f"minlon={west:g}, maxlon={east:g}; expected -180 <= minlon < maxlon <= 180"
            )
    elif "buffer_m" in point:
        lon, lat, metres = _numbers(point, ("lon", "lat", "buffer_m"))
        if metres <= 0:
            raise SpecError(f"buffer_m={metres:g}; expected metres, more than 0")
        if abs(lat) > 90:
            raise SpecError(f"lat={lat:g}; expected degrees, -90 to 90")
        dlat = metres / _METRES
        # At a pole a degree of longitude has no length to divide by.
        dlon = metres / (_METRES * max(1e-6, cos(radians(lat))))
        if not strict and (abs(lat) + dlat >= 90 or dlon >= 180):
            return -180.0, max(lat - dlat, -90), 180.0, min(lat + dlat, 90)
        return lon - dlon, lat - dlat, lon + dlon, lat + dlat
    else:
        raise SpecError(
            f"the place is a {type(spatial).__name__}; expected minlon, minlat, maxlon, maxlat, or "
            "lon, lat, buffer_m"
        )
    if not -90 <= south < north <= 90:
        raise SpecError(
            f"minlat={south:g}, maxlat={north:g}; expected -90 <= minlat < maxlat <= 90"
        )
    return west, south, east, north


def temporal_of(temporal: Any) -> Temporal | None:
    """Time of a request: None, a year, two days, a mapping or rs-embed's TemporalSpec.

    Raises
    ------
    SpecError
        If it is none of them.
    """
    if temporal is None:
        return None
    if is_list(temporal):
        if len(temporal) != 2:
            raise SpecError(f"the time has {len(temporal)} parts; expected a first and a last day")
        fields = {"mode": "range", "start": temporal[0], "end": temporal[1]}
    elif isinstance(temporal, int | np.integer | str) and not isinstance(temporal, bool):
        fields = {"mode": "year", "year": temporal}
    else:
        fields = _fields(temporal, ("mode", "year", "start", "end"))
    match fields.get("mode"):
        case "year":
            try:
                year = int(fields["year"])
            except (TypeError, ValueError, KeyError):
                raise SpecError(f"year={fields.get('year')!r}; expected a calendar year") from None
            if not 1 <= year <= 9999:
                raise SpecError(f"year={year}; expected 1 to 9999")
            return Temporal(year=year)
        case "range":
            # Only these fields of rs-embed's object: the attribute `year` of a range is a function.
            start, end = fields.get("start"), fields.get("end")
            try:
                in_order = date.fromisoformat(str(start)) < date.fromisoformat(str(end))
            except ValueError:
                raise SpecError(
                    f"start={start!r}, end={end!r}; expected days, YYYY-MM-DD"
                ) from None
            if not in_order:
                raise SpecError(f"start={start} is not before end={end}")
            return Temporal(start=str(start), end=str(end))
    raise SpecError(
        f"the time is a {type(temporal).__name__} of mode {fields.get('mode')!r}; expected a year, "
        "two days, or None"
    )


def output_of(output: Any) -> Output:
    """Requested output: None, "pooled", "mean", "max", "grid", a mapping or an OutputSpec.

    Raises
    ------
    SpecError
        If it is none of them.
    """
    if output is None:
        return Output()
    if isinstance(output, str):
        fields = {"mode": "pooled", "pooling": output} if output in ("mean", "max") else {}
        fields = fields or {"mode": output}
    else:
        fields = _fields(output, ("mode", "pooling", "grid_orientation"))
    found = Output(**{key: str(value) for key, value in fields.items() if value is not None})
    if (
        (fields.get("mode") not in ("pooled", "grid"))
        or found.pooling not in ("mean", "max")
        or found.grid_orientation not in ("north_up", "native")
    ):
        raise SpecError(
            f"output={output!r}; expected pooled or grid, and mean or max: 'mean', 'max', 'grid'"
        )
    return found


def is_list(value: Any) -> bool:
    """Whether an object holds several values in order, such as the bounds of a geometry."""
    listed = isinstance(value, Sequence) and not isinstance(value, str)
    return listed or (isinstance(value, np.ndarray) and value.ndim > 0)


def _fields(spec: Any, names: tuple[str, ...]) -> dict[str, Any]:
    """Those of some fields that an object or a mapping has."""
    if isinstance(spec, Mapping):
        return {name: spec[name] for name in names if name in spec}
    return {name: getattr(spec, name) for name in names if hasattr(spec, name)}


def _numbers(fields: Mapping[str, Any], names: tuple[str, ...]) -> list[float]:
    """Fields as finite numbers, in degrees of EPSG:4326."""
    if (crs := fields.get("crs", "EPSG:4326")) != "EPSG:4326":
        raise SpecError(f"crs={crs!r}; expected EPSG:4326")
    try:
        found = [float(fields[name]) for name in names]
    except (KeyError, TypeError, ValueError):
        found = [float("nan")]
    if not all(map(isfinite, found)):
        raise SpecError(f"{', '.join(names)} are not all numbers: {dict(fields)}")
    return found
