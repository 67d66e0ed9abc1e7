"""Maps in files: where the numbers lie and how to read them.

Rows and columns are those of the file: rows from 90°N, columns from 180°W or 0°E according to its
metadata. A source is a small value: it holds paths, not handles or arrays, and pickles.
"""

import itertools
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from copcube import grid
from copcube.errors import CubeError
from copcube.files import limits
from copcube.files.limits import demand
from copcube.grid import Integers
from copcube.interchange.cache import DecodedMap, FilledCells, require_unchanged
from copcube.interchange.metadata import MapMetadata
from copcube.interchange.packing import Packing

Dims = Integers | slice

_BYTES = 1 << 24
"""Bytes of vectors read at a time."""


@dataclass(frozen=True)
class MapSource(ABC):
    """One map of (721, 1440, `dim`) in a file.

    Parameters
    ----------
    path : str
        Path of the file.
    form : str
        Format of the file.
    dim : int
        Length of the vectors.
    packing : Packing
        How its numbers encode vectors.
    metadata : MapMetadata
        Its description of itself.
    versions : tuple of str
        Result of `versions` for its files when it was found.
    """

    path: str
    form: str
    dim: int
    packing: Packing = field(default_factory=Packing)
    metadata: MapMetadata = field(default_factory=MapMetadata)
    versions: tuple[str, ...] = field(default=(), kw_only=True)

    @property
    def files(self) -> tuple[str, ...]:
        """Files that the map is read from."""
        return (self.path,)

    @abstractmethod
    def read(self, rows: Integers, cols: Integers, dims: Dims) -> NDArray[np.float32]:
        """Cells where rows and columns cross, (rows, cols, dims) float32, NaN if missing."""

    @abstractmethod
    def bands(self) -> Iterator[FilledCells]:
        """All filled cells, for each band of 45 rows, north to south."""

    @property
    def preferred_chunks(self) -> dict[str, int]:
        """Chunk sizes along rows and columns that read nothing twice."""
        return {}


@dataclass(frozen=True)
class InPlace(MapSource):
    """Numbers stored contiguously, row after row, and read in place.

    Parameters
    ----------
    offset : int
        Position in bytes where they start.
    """

    offset: int = 0

    def read(self, rows: Integers, cols: Integers, dims: Dims) -> NDArray[np.float32]:  # noqa: D102
        # A few rows at a time, since unpacking and masking copy what is read.
        step = max(1, _BYTES // (4 * self.dim * max(1, len(cols))))
        width = len(np.arange(self.dim)[dims])
        out = np.full((len(rows), len(cols), width), np.nan, np.float32)
        for start in range(0, len(rows), step):
            part = slice(start, start + step)
            numbers = self._numbers(rows[part], cols)
            # Only a whole vector shows whether it is missing, so `dims` are selected afterwards.
            filled = self.packing.filled(numbers)
            out[part][filled] = self.packing.unpack(numbers[filled])[:, dims]
        return out

    def bands(self) -> Iterator[FilledCells]:  # noqa: D102
        every = np.arange(grid.N_LON)
        for rows in grid.bands():
            # A row has 4 MB, which fits in a processor's cache; a band 200 MB, mostly of missing
            # cells.
            read = ((n, self._numbers(np.array([n]), every)) for n in range(rows.start, rows.stop))
            found = [filled_cells(numbers, row, 0, self.packing) for row, numbers in read]
            y, x, vectors = (np.concatenate(parts) for parts in zip(*found, strict=True))
            yield y, x, vectors

    def _numbers(self, rows: Integers, cols: Integers) -> NDArray[Any]:
        """Read the stored numbers of the cells where rows and columns cross."""
        numbers = np.empty((len(rows), len(cols), self.dim), self.packing.dtype)
        vector = self.dim * numbers.itemsize
        ends = np.flatnonzero(np.diff(cols) != 1) + 1
        starts = [0, *ends.tolist(), len(cols)] if len(cols) else []
        # Read, not mapped: if the file is truncated meanwhile, a mapping kills the process.
        try:
            with open(self.path, "rb") as file:
                for i, row in enumerate(rows.tolist()):
                    for begin, end in itertools.pairwise(starts):
                        cell = row * grid.N_LON + int(cols[begin])
                        file.seek(self.offset + cell * vector)
                        if file.readinto(numbers[i, begin:end].data) != (end - begin) * vector:
                            raise CubeError(f"{self.path}: cut off; get a new copy")
        finally:
            require_unchanged(self.files, self.versions)
        return numbers


@dataclass(frozen=True)
class Decoded(MapSource):
    """Numbers that must be decoded: once, into a Zarr array in the cache."""

    @abstractmethod
    def cells(self) -> Iterator[FilledCells]:
        """Decode the file: yield all filled cells, each once, in any order."""

    def read(self, rows: Integers, cols: Integers, dims: Dims) -> NDArray[np.float32]:  # noqa: D102
        decoded = DecodedMap(self.files, self.versions, self.dim, self.cells)
        return decoded.read(rows, cols, dims)

    def bands(self) -> Iterator[FilledCells]:  # noqa: D102
        for rows in grid.bands():
            vectors = self.read(np.arange(grid.N_LAT)[rows], np.arange(grid.N_LON), slice(None))
            yield filled_cells(vectors, rows.start, 0, Packing(missing=np.nan))

    @property
    def preferred_chunks(self) -> dict[str, int]:  # noqa: D102
        return {"lat": grid.BLOCK, "lon": grid.BLOCK}


def demand_band(path: str, dim: int, itemsize: int) -> None:
    """Refuse vectors so long that a band of 45 rows is too large to decode at once.

    Parameters
    ----------
    path : str
        File of the map.
    dim : int
        Length of its vectors.
    itemsize : int
        Bytes per number in it.

    Raises
    ------
    CubeError
        If they are too long.
    """
    # Vectors become float32, whatever their stored type.
    needed = grid.BLOCK * grid.N_LON * dim * max(itemsize, 4)
    what = f"{path}: 45 rows of cells with vectors of length {dim}"
    demand(limits.PIECE, needed, what, CubeError)


def filled_cells(numbers: NDArray[Any], row: int, col: int, packing: Packing) -> FilledCells:
    """Filled cells of a window of stored numbers (rows, cols, D) that starts at row and col."""
    filled = packing.filled(numbers)
    y, x = np.nonzero(filled)
    return y + row, x + col, packing.unpack(numbers[filled])
