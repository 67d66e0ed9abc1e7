"""Maps in files, read piece by piece: where the numbers lie and how to get at them.

Rows and columns are those of the file: rows from 90°N, columns from 180°W or from 0°E as its
legend says. A source is a small value: it holds paths, not handles or arrays, and pickles.
"""

import os
import tempfile
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from copcube import grid
from copcube.files.atomic import writing
from copcube.interchange.legend import Legend
from copcube.interchange.packing import Packing

Index = NDArray[np.int64]
Dims = Index | slice
Piece = tuple[Index, Index, NDArray[np.float32]]
"""Rows and columns of some filled cells, (n,), and their vectors (n, D)."""

_STEP = 1 << 24
"""Bytes of vectors read at a time."""


@dataclass(frozen=True)
class Source(ABC):
    """One map of (721, 1440, `dim`) in a file.

    Parameters
    ----------
    path : str
        Where it comes from.
    form : str
        What kind of file that is.
    dim : int
        Length of the vectors.
    packing : Packing
        How its numbers stand for vectors.
    legend : Legend
        What it says of itself.
    """

    path: str
    form: str
    dim: int
    packing: Packing = field(default_factory=Packing)
    legend: Legend = field(default_factory=Legend)

    @abstractmethod
    def read(self, rows: Index, cols: Index, dims: Dims) -> NDArray[np.float32]:
        """Cells where rows and columns cross, (rows, cols, dims) float32, NaN if missing."""

    @abstractmethod
    def sweep(self) -> Iterator[Piece]:
        """All filled cells, each once."""

    def bands(self) -> Iterator[Piece]:
        """All filled cells, one piece for each band of 45 rows, north to south."""
        spool = Spool(self.dim, self.sweep())
        cols = np.arange(grid.N_LON)
        for band in range(grid.N_BANDS):
            rows = np.arange(grid.N_LAT)[grid.Block(band, 0).rows]
            yield spool.cells(rows, cols)

    @property
    def preferred_chunks(self) -> dict[str, tuple[int, ...]]:
        """Chunk sizes along rows and columns, in ERA5's order, that read nothing twice."""
        return {}


@dataclass(frozen=True)
class Mapped(Source):
    """Numbers that lie plainly in a file, row after row; mapped into memory while read.

    Parameters
    ----------
    offset : int
        Byte of the file where they start.
    """

    offset: int = 0

    def read(self, rows: Index, cols: Index, dims: Dims) -> NDArray[np.float32]:  # noqa: D102
        step = max(1, _STEP // (4 * self.dim * max(1, len(cols))))
        out = blank(rows, cols, self.dim, dims)
        for start in range(0, len(rows), step):
            part = slice(start, start + step)
            numbers = self._numbers()[rows[part, None], cols]
            filled = self.packing.filled(numbers)
            out[part][filled] = self.packing.unpack(numbers[filled])[:, dims]
        return out

    def sweep(self) -> Iterator[Piece]:  # noqa: D102
        return self.bands()

    def bands(self) -> Iterator[Piece]:  # noqa: D102
        for band in range(grid.N_BANDS):
            rows = grid.Block(band, 0).rows
            yield piece(self._numbers()[rows], rows.start, 0, self.packing)

    def _numbers(self) -> NDArray[Any]:
        """Return a fresh mapping, so that its pages count for this read alone."""
        return np.memmap(
            self.path, self.packing.dtype, "r", self.offset, (grid.N_LAT, grid.N_LON, self.dim)
        )


@dataclass(frozen=True)
class Spooled(Source):
    """Numbers that must be decoded to be read, here all of them from the start.

    The first access reads the file once and keeps the vectors of filled cells in a temporary
    file without a name, which is mapped from then on and goes with the process. That takes
    1 GB of disk for the published map, not of memory. Every process has its own.
    """

    def read(self, rows: Index, cols: Index, dims: Dims) -> NDArray[np.float32]:  # noqa: D102
        with SPOOLING:
            spool = self._spool
        return spool.read(rows, cols, dims)

    @cached_property
    def _spool(self) -> "Spool":
        return Spool(self.dim, self.sweep())

    def __getstate__(self) -> dict[str, Any]:
        return {part.name: getattr(self, part.name) for part in fields(self)}

    def __deepcopy__(self, memo: object) -> "Spooled":
        return self


SPOOLING = threading.Lock()
"""Held while a spool is filled: by one thread at a time."""


class Spool:
    """Vectors of filled cells in a temporary file, and where each cell's is.

    One thread may add cells while others read those that are there.

    Parameters
    ----------
    dim : int
        Length of the vectors.
    pieces : iterable
        The cells, in any order.
    """

    def __init__(self, dim: int, pieces: Iterable[Piece] = ()) -> None:
        self._dim = dim
        self._place = np.full((grid.N_LAT, grid.N_LON), -1, np.int32)
        with _writing():
            self._file = tempfile.TemporaryFile(prefix="copcube-", buffering=0)  # noqa: SIM115
        self._n = 0
        try:
            for part in pieces:
                self.add(part)
        except BaseException:
            self._file.close()
            raise

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            self._file.close()

    def add(self, part: Piece) -> None:
        """Append cells."""
        row, col, vectors = part
        data = np.ascontiguousarray(vectors, np.float32).reshape(-1).view(np.uint8).data
        end = 4 * self._dim * self._n
        with _writing():
            while data:
                written = os.pwrite(self._file.fileno(), data, end)
                data, end = data[written:], end + written
        places = self._n + np.arange(len(row))
        self._n += len(row)
        self._place[row, col] = places

    def read(self, rows: Index, cols: Index, dims: Dims) -> NDArray[np.float32]:
        """Cells where rows and columns cross, as `Source.read`."""
        out = blank(rows, cols, self._dim, dims)
        y, x, place = self._find(rows, cols)
        step = max(1, _STEP // (4 * self._dim))
        for start in range(0, len(place), step):
            part = slice(start, start + step)
            out[y[part], x[part]] = self._vectors()[place[part]][:, dims]
        return out

    def cells(self, rows: Index, cols: Index) -> Piece:
        """Filled cells where rows and columns cross."""
        y, x, place = self._find(rows, cols)
        return rows[y], cols[x], self._vectors()[place]

    def _find(self, rows: Index, cols: Index) -> tuple[Index, Index, Index]:
        place = self._place[rows[:, None], cols]
        y, x = (axis.astype(np.int64) for axis in np.nonzero(place >= 0))
        return y, x, place[y, x].astype(np.int64)

    def _vectors(self) -> NDArray[np.float32]:
        if self._n == 0:  # an empty file cannot be mapped
            return np.empty((0, self._dim), np.float32)
        return np.memmap(self._file, np.float32, "r", 0, (self._n, self._dim))


def _writing() -> AbstractContextManager[None]:
    return writing(f"the temporary file in {tempfile.gettempdir()} (set TMPDIR)")


def blank(rows: Index, cols: Index, dim: int, dims: Dims) -> NDArray[np.float32]:
    """Cells where rows and columns cross, all missing, in some of `dim` dimensions."""
    width = len(np.arange(dim)[dims])
    return np.full((len(rows), len(cols), width), np.nan, np.float32)


def piece(numbers: NDArray[Any], row: int, col: int, packing: Packing) -> Piece:
    """Filled cells of a window of stored numbers (rows, cols, D) that starts at row and col."""
    filled = packing.filled(numbers)
    y, x = np.nonzero(filled)
    return y + row, x + col, packing.unpack(numbers[filled])
