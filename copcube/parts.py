"""Files of rows in parts: runs of row groups, which tasks combine, several of small files at once.

The small columns of a part, all except its vectors, are read twice: to find its cells, and to
combine them. In between they are kept, for as many rows as fit comfortably in memory.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from copcube.products import tables
from copcube.products.tables import Assign, Position
from copcube.rows import Rows

_ROWS, _ROWS_OF_PRODUCT = 1 << 16, 1 << 20
_RUN = 1 << 14
"""Most rows of a run of several parts."""
_KEPT = 1 << 21
"""Most rows kept: about 70 MB without their vectors."""


@dataclass(frozen=True)
class Part:
    """A run of row groups of one file, which are combined by one task.

    Parameters
    ----------
    file : str
        Path of the parquet file.
    row_groups : tuple of int
        Row groups, ascending.
    rows : int
        How many rows they hold.
    """

    file: str
    row_groups: tuple[int, ...]
    rows: int


def parts(files: Sequence[str | Path], max_rows: int | None = None) -> list[Part]:
    """Divide files into parts of at most `max_rows` rows, or of one row group if larger.

    Parameters
    ----------
    files : sequence of path
        Parquet files of rows.
    max_rows : int, optional
        Bound of a part; combining one takes at most about 3 kB of memory a row of 768 values.
        Default: 65,536; of embeddings of Major TOM 1,048,576, which a released file has fewer of:
        its rows run along the grid, so that only those of three of its rows wait at a time.

    Raises
    ------
    RowsError
        If a file is missing or is not parquet.
    """
    found = []
    for file in sorted({str(file) for file in files}):
        groups: list[int] = []
        rows = 0
        most = max_rows or (_ROWS_OF_PRODUCT if tables.is_product(file) else _ROWS)
        if tables.is_of_pixels(file):
            most = 1  # a block is a part: it belongs to one year, and takes long enough
        for group, size in enumerate(tables.row_group_sizes(file)):
            if groups and rows + size > most:
                found.append(Part(file, tuple(groups), rows))
                groups, rows = [], 0
            if size:
                groups.append(group)
                rows += size
        if groups:
            found.append(Part(file, tuple(groups), rows))
    return found


def runs(parts: Sequence[Part]) -> list[slice]:
    """Divide parts into runs for one task each, which combines the parts of several small files.

    Each task writes and flushes some files, which takes as long as combining a thousand rows.
    """
    starts, rows = [], _RUN
    for number, part in enumerate(parts):
        rows += part.rows
        if rows > _RUN or tables.is_of_pixels(part.file):
            starts.append(number)
            rows = part.rows
    return [slice(a, b) for a, b in pairwise([*starts, len(parts)])]


def read_part(part: Part, assign: Assign, position: Position) -> Rows:
    """Read the rows of a part without their vectors, as `copcube.products.tables.read` does.

    Raises
    ------
    RowsError
        As that function.
    """
    if (found := _kept.rows.get((part, assign, position))) is None:
        found = tables.read(part.file, part.row_groups, assign, position)
        if _kept.users and _kept.number + len(found) <= _KEPT:
            _kept.rows[part, assign, position] = found
            _kept.number += len(found)
    return found


@contextmanager
def keeping_rows() -> Iterator[None]:
    """Keep what `read_part` reads while the body runs, in which files must not change."""
    _kept.users += 1
    try:
        yield
    finally:
        _kept.users -= 1
        if not _kept.users:
            _kept.rows.clear()
            _kept.number = 0


@dataclass
class _Kept:
    """Kept columns, their number of rows, and how many builds of this process use them.

    The number is updated incrementally, since there may be tens of thousands of files.
    """

    rows: dict[tuple[Part, Assign, Position], Rows] = field(default_factory=dict)
    number: int = 0
    users: int = 0


_kept = _Kept()
