"""Which modalities and dates are wanted."""

import calendar
import datetime
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from copcube.errors import OptionError
from copcube.modalities import select

Dates = Any
"""A text, a number or a date of any kind, or a pair of them."""


@dataclass(frozen=True)
class Selection:
    """Which images of a source to read.

    Parameters
    ----------
    modalities : tuple of str
        Keys, in the fixed order.
    start, end : str or None
        First and last date, YYYYMMDD, both inclusive; images without a date (the DEM)
        always pass.
    """

    modalities: tuple[str, ...]
    start: str | None = None
    end: str | None = None

    @classmethod
    def of(
        cls, modalities: Iterable[str] | str | None = None, dates: Dates | None = None
    ) -> "Selection":
        """Make a selection from keys and dates such as ``2021`` or ``2021-03..2021-08-15``.

        Parameters
        ----------
        modalities : iterable of str, or str
            Keys; one alone, or several with commas between them, may be a text.
        dates : str, int, date, or two of them
            A year, month or day, as text, number (2021, 202103, 20210301) or any kind of
            date; two of them with ``..`` between them, or as a pair, are the first and last.

        Raises
        ------
        OptionError
            If a key is unknown, or the dates cannot be read or run backwards.

        Examples
        --------
        >>> Selection.of(["s5p_co"], "2021-02")
        Selection(modalities=('s5p_co',), start='20210201', end='20210228')
        """
        start, end = (None, None) if dates is None else _span(_text(dates))
        chosen = select(modalities)
        # Dates choose nothing where no image has one, and then are no other selection.
        return cls(chosen, start, end) if set(chosen) != {"dem"} else cls(chosen)

    def admits(self, date: str | None) -> bool:
        """Whether an image of this date is selected."""
        if date is None:
            return True
        return (self.start is None or self.start <= date) and (self.end is None or date <= self.end)


def _text(dates: Dates) -> str:
    """Write dates of any kind as the text that stands for them."""
    if isinstance(dates, str):
        return dates
    if isinstance(dates, tuple | list) and len(dates) == 2:
        return "..".join("" if edge is None else _text(edge) for edge in dates)
    if hasattr(dates, "strftime"):  # Python's dates, pandas' and those of cftime
        return str(dates.strftime("%Y%m%d"))
    if type(dates).__name__ == "datetime64":
        return str(dates)[:10]
    return str(dates) if hasattr(dates, "__index__") else repr(dates)


def _span(text: str) -> tuple[str | None, str | None]:
    first, dots, last = text.partition("..")
    start = _edge(first, last=False) if first or not dots else None
    end = _edge(last if dots else first, last=True) if last or not dots else None
    if start is not None and end is not None and end < start:
        raise OptionError(f"dates {text!r} end before they start")
    return start, end


def _edge(text: str, *, last: bool) -> str:
    """First or last day, YYYYMMDD, of a year, month or day such as 2021, 2021-02, 2021-02-03."""
    match = re.fullmatch(r"(\d{4})(?:-?(\d{2}))?(?:-?(\d{2}))?", text.strip())
    try:
        if match is None:
            raise ValueError
        year = int(match[1])
        month = int(match[2] or (12 if last else 1))
        day = int(match[3] or (calendar.monthrange(year, month)[1] if last else 1))
        return datetime.date(year, month, day).strftime("%Y%m%d")
    except ValueError:
        raise OptionError(
            f"{text!r} is not a date; expected a year, month or day, or two of them around "
            "'..', such as 2021, 2021-03..2021-08 or 2021-03-01..2021-08-15"
        ) from None
