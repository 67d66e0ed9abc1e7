"""Helpers shared by the commands."""

import argparse
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from copcube.errors import printable

if TYPE_CHECKING:
    from rich.table import Table

Arguments = argparse.Namespace
Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"

TABLES = {".csv": "csv", ".md": "markdown", ".tex": "latex"}
"""Extensions of tables of scores, and the names of their formats."""


def command(
    commands: Commands,
    name: str,
    run: Callable[[Arguments], int | None],
    summary: str,
    example: str,
    details: str = "",
) -> argparse.ArgumentParser:
    """Add a command, with an example in its help."""
    made: argparse.ArgumentParser = commands.add_parser(
        name,
        help=summary,
        description=f"{summary[0].upper()}{summary[1:]}.\n\n{details}".rstrip(),
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    # Added to every command rather than the root, so that they may follow the command's name.
    made.add_argument("--quiet", "-q", action="store_true", help="only warnings and errors")
    made.add_argument("--debug", action="store_true", help="show the traceback of an error")
    made.set_defaults(run=run)
    return made


def overwrite(command: argparse.ArgumentParser) -> None:
    """Add the option to replace what exists."""
    command.add_argument("--overwrite", action="store_true", help="replace an existing output")


def positive(text: str) -> int:
    """Read a positive whole number."""
    if not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"expected a positive whole number, got {text!r}")
    return int(text)


def add_model(command: argparse.ArgumentParser) -> None:
    """Add the options for which weights to load, and the device to use."""
    command.add_argument(
        "--weights",
        default="hub",
        metavar="hub|large|PATH|untrained:SEED",
        help="the published weights (default), those of the larger model, a local file, or "
        "meaningless ones for tests",
    )
    command.add_argument(
        "--language", metavar="PATH", help="the variables' language embeddings (default: found)"
    )
    command.add_argument("--device", default="auto", help="auto (default), cpu, cuda, cuda:1")


_WIDE = 120
"""Width in characters that a table of numbers may have on any terminal."""
_WHOLE = 1 << 16
"""Width of a table in a file or a pipe, in which no line is wrapped."""


def say(text: object) -> None:
    """Print a result without control characters, since parts of it may come from files."""
    print(printable(str(text), lines=True))


def show(cube: str | Path) -> None:
    """Print what a cube holds as a table."""
    from copcube.cube import summary

    table(str(cube), summary(cube).lines())


def table(title: str, lines: Iterable[tuple[str, str]]) -> None:
    """Print names and texts as a table."""
    from rich.table import Table
    from rich.text import Text

    made = Table(title=Text(printable(title)), show_header=False, title_justify="left")
    _fill(made, lines)


def columns(heads: Iterable[str], rows: Iterable[Sequence[str]]) -> None:
    """Print rows of texts below their column heads."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    _fill(Table(*heads, box=SIMPLE_HEAD), rows, _WIDE)


def _fill(table: "Table", rows: Iterable[Sequence[str]], most: int = 0) -> None:
    """Print a table; one no wider than `most` characters, or not on a terminal, is never cut."""
    from rich.console import Console
    from rich.text import Text

    for row in rows:
        # As plain text: content of files may look like rich's markup.
        table.add_row(*(Text(printable(text, lines=True)) for text in row))
    console = Console()
    most = most if console.is_terminal else _WHOLE
    # A line that the terminal wraps can still be read, but a name that was cut cannot.
    needed = console.measure(table, options=console.options.update(width=most)).maximum
    if console.width < needed <= most:
        console = Console(width=needed)
    console.print(table)
