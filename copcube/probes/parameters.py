"""ERA5's surface variables whose statistics the paper predicts: names and units."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from copcube.errors import OptionError

if TYPE_CHECKING:
    import xarray as xr

_YEAR = 365.25
_SECONDS = 86400 * _YEAR

_TEMPERATURE = {"K": (1.0, -273.15), "degC": (1.0, 0.0)}
_RAIN = {
    "m/year": (1.0, 0.0),
    "m/month": (12.0, 0.0),
    "m/day": (_YEAR, 0.0),
    "m/s": (_SECONDS, 0.0),
    "mm/year": (1e-3, 0.0),
    "mm/month": (12e-3, 0.0),
    "mm/day": (_YEAR / 1e3, 0.0),
    "mm/s": (_SECONDS / 1e3, 0.0),
}
_PRESSURE = {"Pa": (1.0, 0.0), "hPa": (100.0, 0.0), "kPa": (1000.0, 0.0)}
_WIND = {"m/s": (1.0, 0.0)}

_SPELLINGS = {
    "kelvin": "K",
    "c": "degC",
    "°c": "degC",
    "celsius": "degC",
    "degree_celsius": "degC",
    "degrees_celsius": "degC",
    "pascal": "Pa",
    "mbar": "hPa",
    "millibar": "hPa",
    "millibars": "hPa",
}
_PER = {"s": "s", "d": "day", "day": "day", "month": "month", "mon": "month", "year": "year"}
_PER |= {"yr": "year", "a": "year", "y": "year", "days": "day", "sec": "s", "second": "s"}


@dataclass(frozen=True)
class Parameter:
    """A surface variable of ERA5 of which the paper predicts statistics.

    Parameters
    ----------
    name : str
        ECMWF's short name.
    label : str
        As a heading.
    unit : str
        The paper's.
    units : dict
        Possible units: factor and offset to the paper's.
    ids : tuple of int
        ECMWF's parameter ids.
    names : tuple of str
        Other names, in lower case with underscores.
    """

    name: str
    label: str
    unit: str
    units: Mapping[str, tuple[float, float]]
    ids: tuple[int, ...]
    names: tuple[str, ...]


PARAMETERS = (
    Parameter(
        "t2m",
        "temperature",
        "°C",
        _TEMPERATURE,
        (167,),
        ("2t", "2m_temperature", "temperature_2m", "mean_2m_air_temperature", "tas"),
    ),
    Parameter(
        "tp",
        "precipitation",
        "m/year",
        _RAIN,
        (228, 235055),
        ("total_precipitation", "mtpr", "avg_tprate", "mean_total_precipitation_rate", "pr"),
    ),
    Parameter("sp", "surface pressure", "Pa", _PRESSURE, (134,), ("surface_pressure", "ps")),
    Parameter(
        "msl",
        "sea-level pressure",
        "Pa",
        _PRESSURE,
        (151,),
        ("mean_sea_level_pressure", "mslp", "psl"),
    ),
    Parameter(
        "u10",
        "u wind",
        "m/s",
        _WIND,
        (165,),
        ("10u", "10m_u_component_of_wind", "u_component_of_wind_10m", "uas"),
    ),
    Parameter(
        "v10",
        "v wind",
        "m/s",
        _WIND,
        (166,),
        ("10v", "10m_v_component_of_wind", "v_component_of_wind_10m", "vas"),
    ),
)
"""In the order of the paper's table."""

_BY_ID = {number: p for p in PARAMETERS for number in p.ids}
_BY_NAME = {name: p for p in PARAMETERS for name in (p.name, *p.names)}

STATISTICS = {
    "mean": ("mean", "avg", "average"),
    "std": ("std", "stdev", "stddev", "sd", "spread", "standard_deviation"),
}
"""Statistics, and how names say that a variable is one."""


def recognise(field: "xr.DataArray") -> tuple[Parameter | None, str, str | None]:
    """Recognise the variable of a field, and whether it is a mean or a spread.

    Returns
    -------
    parameter : Parameter or None
        One of the paper's.
    name : str
        Its short name, or the variable's own.
    statistic : "mean", "std" or None
        According to its name or its ``cell_methods``.
    """
    text = re.sub(r"[^a-z0-9]+", "_", str(field.name).lower()).strip("_")
    statistic = None
    # Some names, such as mean_sea_level_pressure, begin like a statistic but are not one.
    if text not in _BY_NAME:
        for kind, words in STATISTICS.items():
            ends = "|".join(words)
            if match := re.fullmatch(rf"(?:(?:{ends})_(.+)|(.+)_(?:{ends}))", text):
                text, statistic = match[1] or match[2], kind
                break
    if statistic is None and "standard_deviation" in str(field.attrs.get("cell_methods", "")):
        statistic = "std"
    number = field.attrs.get("GRIB_paramId", field.attrs.get("paramId"))
    parameter = _BY_NAME.get(text)
    if parameter is None and number is not None:
        parameter = _BY_ID.get(int(number))
    own = re.sub(r"\W+", "_", text)
    return parameter, parameter.name if parameter else own, statistic


def conversion(
    field: "xr.DataArray", parameter: Parameter | None, unit: str | None
) -> tuple[float, float, str]:
    """Factor and offset from the unit of a field to the paper's, and the latter.

    Raises
    ------
    OptionError
        If the unit is missing or unknown.
    """
    given = unit if unit is not None else str(field.attrs.get("units", ""))
    if parameter is None:
        return 1.0, 0.0, given
    spelled = unit_of(given)
    averaged = str(field.attrs.get("GRIB_stepType", "")).startswith("avg")
    if spelled in ("m", "mm") and averaged:
        spelled += "/day"  # monthly means of ERA5 are of the sums of days
    if spelled not in parameter.units:
        name = str(field.name)
        example = "m/day" if parameter.name == "tp" else next(iter(parameter.units))
        why = f"is in {given!r}" if given else "has no unit"
        if spelled in ("m", "mm"):
            why += ", which does not state the time over which it is summed"
        raise OptionError(
            f"{name} {why}; expected one of {', '.join(parameter.units)}: give it as "
            f"units={{{name!r}: {example!r}}} (--units {name}={example})"
        )
    factor, offset = parameter.units[spelled]
    return factor, offset, parameter.unit


def unit_of(text: str) -> str:
    """Spell a unit as this module does.

    Examples
    --------
    >>> unit_of("kg m**-2 s**-1"), unit_of("mm day-1"), unit_of("Celsius")
    ('mm/s', 'mm/day', 'degC')
    """
    plain = re.sub(r"\*\*|\^", "", text.strip()).replace(" per ", "/").replace(" a ", "/")
    plain = re.sub(r"kg\s*m-2|kg/m2", "mm", plain)  # a litre on a square metre
    plain = re.sub(r"\s+([A-Za-z]+)-1$", r"/\1", plain)
    quantity, _, per = plain.partition("/")
    quantity = _SPELLINGS.get(quantity.strip().lower(), quantity.strip())
    return f"{quantity}/{_PER.get(per.strip().lower(), per.strip())}" if per else quantity
