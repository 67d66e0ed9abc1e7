"""Progress of long work: a bar for each stage on a terminal, plain log lines elsewhere."""

import logging
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress as Bars
    from rich.progress import TaskID

log = logging.getLogger("copcube")

SECONDS_BETWEEN_LINES = 10.0


class Bar:
    """Progress of a stage.

    Parameters
    ----------
    title : str
        What is being done.
    total : int or None
        How many units there are, if known.
    unit : str
        What a unit is, in the plural.
    skipped : int
        Units that were done before this run.

    Attributes
    ----------
    note : str
        Further text to show; set it before `advance`.
    """

    def __init__(self, title: str, total: int | None, unit: str, skipped: int) -> None:
        self.title, self.total, self.unit, self.skipped = title, total, unit, skipped
        self.done = 0
        self.note = ""
        self._begin = time.monotonic()
        self._counting = threading.Lock()

    def advance(self, units: int = 1) -> None:
        """Count units as done; may be called from any thread."""
        with self._counting:
            self.done += units
            self._show()

    def expect(self, total: int | None) -> None:
        """Set the number of units, as far as known."""
        self.total = total

    @property
    def rate(self) -> float:
        """Units done a second in this run."""
        return self.done / max(time.monotonic() - self._begin, 1e-9)

    @property
    def seconds_left(self) -> float | None:
        """Seconds to the end at this rate, if it can be estimated."""
        if self.total is None or not self.done:
            return None
        # An estimated total may turn out too small.
        return max(self.total - self.skipped - self.done, 0) / self.rate

    def line(self) -> str:
        """State of the work in one line."""
        seen = self.done + self.skipped
        total = "" if self.total is None else f"/{self.total}"
        return ", ".join([f"{self.title}: {seen}{total} {self.unit}", *self.pace()])

    def pace(self) -> list[str]:
        """Rate, time left and note, as far as there are any."""
        parts = [f"{self.rate:.1f} {self.unit}/s"] if self.done else []
        if (left := self.seconds_left) is not None and left >= 1:
            parts.append(f"{duration(left)} left")
        return [*parts, self.note] if self.note else parts

    def _show(self) -> None:
        """Show the state; a bar that is not shown does nothing."""


class _Line(Bar):
    def __init__(self, title: str, total: int | None, unit: str, skipped: int) -> None:
        super().__init__(title, total, unit, skipped)
        self._shown = self._begin

    def _show(self) -> None:
        if time.monotonic() - self._shown >= SECONDS_BETWEEN_LINES:
            self._shown = time.monotonic()
            log.info("%s", self.line())


class _RichBar(Bar):
    bars: "Bars"
    task: "TaskID"

    def _show(self) -> None:
        done = self.done + self.skipped
        state = ", ".join(self.pace())
        self.bars.update(self.task, total=self.total, completed=done, state=state)


@contextmanager
def show(title: str, total: int | None, unit: str, skip: int = 0) -> Iterator[Bar]:
    """Show a stage while it runs, of which an earlier run did the first `skip` units.

    On a terminal where the ``copcube`` logger shows messages it is a bar; elsewhere a
    log line every ten seconds, and one at the end.
    """
    # rich takes 0.1 s to import, and a bar in a log file is unreadable.
    if log.isEnabledFor(logging.INFO) and log.handlers and sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
        from rich.progress import Progress as Bars

        columns = [
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[unit]}, {task.fields[state]}"),
        ]
        with Bars(*columns, console=Console(stderr=True)) as bars:
            bar = _RichBar(title, total, unit, skip)
            bar.bars, bar.task = bars, bars.add_task(title, total=total, unit=unit, state="")
            yield bar
        return
    line = _Line(title, total, unit, skip)
    yield line
    log.info("%s", line.line())


def duration(seconds: float) -> str:
    """Write seconds for display.

    Examples
    --------
    >>> duration(7384)
    '2 h 3 min'
    >>> duration(12.34)
    '12 s'
    """
    minutes, hours = seconds / 60, seconds / 3600
    if hours >= 48:
        return f"{hours / 24:.0f} days"
    if hours >= 1:
        return f"{int(hours)} h {int(minutes % 60)} min"
    if minutes >= 1:
        return f"{int(minutes)} min {int(seconds % 60)} s"
    return f"{seconds:.0f} s"


def size(count: float) -> str:
    """Write a number of bytes for display.

    Examples
    --------
    >>> size(841_216_664)
    '841 MB'
    """
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 1000 or unit == "TB":
            return f"{count:.0f} {unit}" if count >= 10 or unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError
