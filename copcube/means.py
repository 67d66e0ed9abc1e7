"""Weighted means and spreads of cells whose rows arrive block by block.

A cell is computed when all of its rows have arrived, from all of them together and in a fixed
order. So no bit depends on how the rows are divided into blocks, nor on who computes which
cell. Rows of cells that are not complete wait; of rows that lie cell by cell these are few.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

_BLOCK = 1024
"""Rows in float64 at a time, unless a single cell has more."""

_STEP = 64
"""Rows whose deviations are held at a time: they stay in a processor's cache."""


class Means:
    """Means and spreads of n cells.

    Parameters
    ----------
    rows : int
        How many rows will arrive, those of no cell included.
    dim : int
        Length of the vectors.
    index : numpy.ndarray
        Rows of all cells, cell by cell, (m,) int64; within a cell in the order in which they
        are added.
    weight : numpy.ndarray
        Weight of each, (m,) float64.
    bounds : numpy.ndarray
        Cell i has the rows ``index[bounds[i]:bounds[i + 1]]``, at least one; (n + 1,) int64.

    Attributes
    ----------
    mean : numpy.ndarray
        (n, D) float32.
    spread : numpy.ndarray
        ``sqrt(Σ wᵢ‖xᵢ - m‖²)`` around the mean m in float64, (n,) float32.
    """

    def __init__(
        self,
        rows: int,
        dim: int,
        index: NDArray[np.int64],
        weight: NDArray[np.float64],
        bounds: NDArray[np.int64],
    ) -> None:
        n = len(bounds) - 1
        self.mean = np.empty((n, dim), np.float32)
        self.spread = np.empty(n, np.float32)
        self._index, self._weight, self._bounds = index, weight, bounds
        self._cell = np.full(rows, -1)
        self._cell[index] = np.repeat(np.arange(n), np.diff(bounds))
        starts = bounds[:-1]
        self._first = np.minimum.reduceat(index, starts) if n else starts
        self._last = np.maximum.reduceat(index, starts) if n else starts
        # Where a row waits: in which piece, and where in it. A piece goes with its last row.
        self._piece = np.full(rows, -1)
        self._place = np.zeros(rows, np.int64)
        self._pieces: dict[int, NDArray[np.float32]] = {}
        self._left: dict[int, int] = {}

    def of_block(
        self, start: int, vectors: NDArray[np.float32]
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Compute the cells that are whole in a block; return the rows and vectors of others.

        It may be called for several blocks at once.

        Parameters
        ----------
        start : int
            Number of the block's first row.
        vectors : numpy.ndarray
            Vectors of its rows, (k, D).
        """
        cell = self._cell[start : start + len(vectors)]
        used = np.flatnonzero(cell >= 0)  # all but rows that no cell is made of
        cell = cell[used]
        whole = (self._first[cell] >= start) & (self._last[cell] < start + len(vectors))
        complete = np.unique(cell[whole])
        # In the order of the rows, which then mostly lie side by side.
        for cells, rows in self._chunks(complete[np.argsort(self._first[complete])]):
            mine = rows - start
            if len(mine) == mine[-1] - mine[0] + 1 and np.all(np.diff(mine) == 1):
                x = vectors[mine[0] : mine[-1] + 1].astype(np.float64)
            else:
                x = vectors[mine].astype(np.float64)
            self._compute(cells, x)
        left = used[~whole]
        return left + start, vectors[left]

    def wait(self, rows: NDArray[np.int64], vectors: NDArray[np.float32]) -> None:
        """Take what `of_block` returned, block after block, and compute what is complete."""
        if not len(rows):
            return
        number = int(rows[0])
        self._pieces[number], self._left[number] = vectors, len(rows)
        self._piece[rows], self._place[rows] = number, np.arange(len(rows))
        cell = self._cell[rows]
        for cells, wanted in self._chunks(np.unique(cell[self._last[cell] == rows])):
            pieces = self._piece[wanted]
            x = np.empty((len(wanted), vectors.shape[1]))
            for piece in np.unique(pieces).tolist():
                mine = pieces == piece
                x[mine] = self._pieces[piece][self._place[wanted[mine]]]
                self._left[piece] -= int(mine.sum())
                if not self._left[piece]:
                    del self._pieces[piece]
            self._compute(cells, x)

    def _chunks(
        self, cells: NDArray[np.int64]
    ) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
        """Divide cells into runs of about `_BLOCK` rows; yield cells and rows of each."""
        if not len(cells):
            return
        starts, stops = self._bounds[cells], self._bounds[cells + 1]
        ends = np.cumsum(stops - starts)
        a = 0
        while a < len(cells):
            before = ends[a - 1] if a else 0
            b = max(a + 1, int(np.searchsorted(ends, before + _BLOCK, side="right")))
            yield cells[a:b], self._index[_ranges(starts[a:b], stops[a:b])]
            a = b

    def _compute(self, cells: NDArray[np.int64], x: NDArray[np.float64]) -> None:
        """Mean and spread of cells from all of their rows in order."""
        starts, stops = self._bounds[cells], self._bounds[cells + 1]
        n, lengths = len(cells), stops - starts
        bounds = np.append(0, np.cumsum(lengths)).astype(np.int32)
        # A sparse product adds the rows of a cell one after another.
        average = csr_array(
            (self._weight[_ranges(starts, stops)], np.arange(len(x), dtype=np.int32), bounds),
            (n, len(x)),
        )
        centre: NDArray[np.float64] = np.asarray(average @ x)
        cell, square = np.repeat(np.arange(n), lengths), np.empty(len(x))
        # A second pass around the mean: sums of squares around 0 would cancel.
        for start in range(0, len(x), _STEP):
            some = slice(start, start + _STEP)
            deviation = centre[cell[some]]
            np.subtract(x[some], deviation, out=deviation)
            np.square(deviation, out=deviation)
            square[some] = deviation.sum(axis=1)
        self.mean[cells] = centre
        self.spread[cells] = np.sqrt(np.asarray(average @ square))


def _ranges(starts: NDArray[np.int64], stops: NDArray[np.int64]) -> NDArray[np.int64]:
    """Join the numbers of several ranges."""
    lengths = stops - starts
    ends: NDArray[np.int64] = np.cumsum(lengths)
    numbers: NDArray[np.int64] = np.arange(ends[-1])
    numbers += np.repeat(starts - ends + lengths, lengths)
    return numbers
