"""The selected modalities and dates."""

import calendar
import datetime
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from copcube.dates import yyyymmdd
from copcube.errors import OptionError
from copcube.modalities import labels, select


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
        cls,
        modalities: Iterable[str] | str | None = None,
        dates: Any = None,
        others: Iterable[str] = (),
    ) -> "Selection":
        """Make a selection from keys and dates.

        Parameters
        ----------
        modalities : iterable of str, or str, optional
            Keys; all by default. One alone, or several with commas between them, may be a text.
        dates : optional
            A year, month or day, such as ``2021``, ``2021-02`` or whatever
            `copcube.dates.day` takes; or two of them, as a pair or a text
            ``2021-03..2021-08-15``, of which one may be left out.
        others : iterable of str
            Keys of users' own sensors, which may be chosen too.

        Raises
        ------
        OptionError
            If a key is unknown, or the dates cannot be read or run backwards.

        Examples
        --------
        >>> Selection.of(["s5p_co"], "2021-02")
        Selection(modalities=('s5p_co',), start='20210201', end='20210228')
        """
        start, end = (None, None) if dates is None else _span(dates)
        chosen = select(modalities, others)
        # Dates have no effect if no image has one, and then do not change the selection.
        return cls(chosen, start, end) if set(chosen) != {"dem"} else cls(chosen)

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of what tables and cubes count: the eight modalities, and other chosen keys."""
        return labels(self.modalities)

    def admits(self, date: str | None) -> bool:
        """Whether an image of this date is selected."""
        if date is None:
            return True
        return (self.start is None or self.start <= date) and (self.end is None or date <= self.end)


def _span(dates: Any) -> tuple[str | None, str | None]:
    first, last = dates, dates
    if isinstance(dates, str) and ".." in dates:
        first, last = (text or None for text in dates.split("..", 1))
    elif isinstance(dates, slice):
        first, last = dates.start, dates.stop
    elif isinstance(dates, tuple | list) and len(dates) == 2:
        first, last = dates
    start = None if first is None else _edge(first, last=False)
    end = None if last is None else _edge(last, last=True)
    if start is not None and end is not None and end < start:
        raise OptionError(f"dates {dates!r} end before they start")
    return start, end


def _edge(value: Any, *, last: bool) -> str:
    """First or last day, YYYYMMDD, of a year, month or day such as 2021, 2021-02, 2021-02-03."""
    text = "" if isinstance(value, bool) else str(value).strip()
    match = re.fullmatch(r"(\d{4})(?:-?(\d{2}))?", text, re.ASCII)
    try:
        if match is None:
            return yyyymmdd(value)
        year = int(match[1])
        month = int(match[2] or (12 if last else 1))
        day = calendar.monthrange(year, month)[1] if last else 1
        return yyyymmdd(datetime.date(year, month, day))
    except (ValueError, OptionError):
        raise OptionError(
            f"{value!r:.80} is not a date; expected a year, month or day, or two of them around "
            "'..', such as 2021, 2021-03..2021-08 or 2021-03-01..2021-08-15"
        ) from None
