"""Days, in all usual forms.

`day` reads all dates: those given to `copcube.embed`, those of ``time`` coordinates, the edges of a
selection, the columns of tables. It refuses what it does not understand.
"""

import datetime
import re
from typing import Any

from copcube.errors import OptionError

_TEXT = re.compile(r"\d{4}-\d{2}-\d{2}([T ].+)?|\d{8}(T.+)?", re.ASCII)
_CALENDARS = ("standard", "gregorian", "proleptic_gregorian", "noleap", "365_day")
"""Calendars of cftime (CF 1.11, section 4.4.1) with the usual days."""


def day(value: Any, what: str = "date") -> datetime.date:
    """Return the day that a value means.

    Parameters
    ----------
    value : object
        A date, datetime, pandas.Timestamp, numpy.datetime64 of a day or finer, cftime
        datetime, a text YYYY-MM-DD (with or without a time) or YYYYMMDD, or a whole number
        YYYYMMDD. Times with a zone count in UTC, others as they are.
    what : str
        What the value is, for the message.

    Raises
    ------
    OptionError
        If it is anything else: a year or month alone, days since some epoch, NaT, None.

    Examples
    --------
    >>> day("2021-06-01T23:30:00-05:00"), day(20210601)
    (datetime.date(2021, 6, 2), datetime.date(2021, 6, 1))
    """
    try:
        return _day(value)
    except (ValueError, OverflowError) as error:
        reason = f" ({error})" if str(error) else ""
        # numpy's repr() would show the type of numbers too.
        shown = repr(str(value)) if isinstance(value, str) else str(value)
        raise OptionError(
            f"{what} {shown:.80} is not a date{reason}; expected a date or datetime, or a text or "
            "number such as 2021-06-01 or 20210601"
        ) from error


def yyyymmdd(value: Any) -> str:
    """Return the day that a value means as YYYYMMDD; see `day`."""
    return day(value).strftime("%Y%m%d").zfill(8)


def since_1970(value: Any, what: str = "date") -> float:
    """Days from 1970-01-01 to the day that a value means; see `day`.

    Examples
    --------
    >>> since_1970("20150101")
    16436.0
    """
    return float((day(value, what) - datetime.date(1970, 1, 1)).days)


def is_missing(value: Any) -> bool:
    """Whether a value means a missing date: None, NaT, NaN or NA."""
    if value is None:
        return True
    # Only these differ from themselves; comparing pandas' NA gives NA.
    return str(value != value) in ("True", "<NA>")


def _day(value: Any) -> datetime.date:
    """Return the day that a value means; raise ValueError if it means none."""
    if getattr(value, "ndim", None) == 0 and not isinstance(value, str | float):
        value = _scalar(value)
    if is_missing(value):
        raise ValueError("it is missing")
    if isinstance(value, bytes):
        value = value.decode("ascii")
    if isinstance(value, float) and value.is_integer():  # as pandas reads a column with gaps
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if isinstance(value, str):
        text = value.strip()
        if not _TEXT.fullmatch(text):
            raise ValueError
        value = datetime.datetime.fromisoformat(text)
    if isinstance(value, datetime.datetime) and value.tzinfo is not None:
        value = value.astimezone(datetime.UTC)
    # Python's dates and their subclasses have no calendar; those of cftime do.
    calendar = "standard" if isinstance(value, datetime.date) else getattr(value, "calendar", None)
    if not isinstance(calendar, str) or not all(
        hasattr(value, k) for k in ("year", "month", "day")
    ):
        raise ValueError
    if calendar not in _CALENDARS:
        raise ValueError(f"of the calendar {calendar}; convert_calendar('standard') changes it")
    return datetime.date(value.year, value.month, value.day)


def _scalar(value: Any) -> Any:
    """Return a scalar or array of no dimension, of numpy or xarray, as an object of Python."""
    import numpy as np

    array = np.asarray(value)
    if array.dtype.kind == "M" and not np.isnat(array):
        if np.datetime_data(array.dtype)[0] in ("Y", "M", "W"):
            raise ValueError("a whole year, month or week")
        array = array.astype("datetime64[D]")
    if array.dtype.kind == "f" and array.dtype.itemsize < 8:
        raise ValueError(f"{array.dtype} cannot distinguish neighbouring days")
    return array.item()
