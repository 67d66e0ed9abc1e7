"""Weighted means and spreads of cells whose rows arrive block by block.

A cell is computed when all of its rows have arrived, from all of them together and in a fixed
order. So no bit depends on how the rows are divided into blocks, nor on which worker computes a
cell. Rows of incomplete cells wait; if rows are sorted by cell, few do.
"""

from collections.abc import Iterable, Iterator
from contextlib import closing

import numpy as np
from numpy.typing import NDArray

from copcube.lookahead import map_ahead

_WAITING = 1024
"""Rows gathered from pieces at a time, unless a single cell has more."""

_STEP = 128
"""Rows in float64 at a time: they stay in a processor's cache."""

_SMALL = 1e-4
"""Share of the mean square length below which the squared spread is computed in a second pass.

The difference of the two is off by about 1e-13 of the mean square, hence by less than 1e-8 of a
squared spread above this share: nothing that float32 could hold.
"""

_Left = tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.int64]]
"""Rows of incomplete cells, vectors, and which of these each row has."""

_Ready = tuple[NDArray[np.int64], NDArray[np.int64], list[tuple[int, NDArray[np.float32]]]]
"""Cells, their rows, and the pieces that these lie in, by number."""


class Means:
    """Means and spreads of n cells.

    Parameters
    ----------
    rows : int
        How many rows will arrive, including those of no cell.
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
        # Cells whose rows lie side by side, in order: a slice instead of a selection.
        breaks = np.cumsum(np.diff(index, prepend=index[:1] - 1) != 1)
        self._side_by_side = breaks[starts] == breaks[bounds[1:] - 1] if n else starts == 0
        # Where a row waits: in which piece, and where in it. A piece is dropped with its last row.
        self._piece = np.full(rows, -1)
        self._place = np.zeros(rows, np.int64)
        self._pieces: dict[int, NDArray[np.float32]] = {}
        self._left: dict[int, int] = {}

    def of_block(
        self,
        start: int,
        vectors: NDArray[np.float32],
        of_row: NDArray[np.int64] | None = None,
    ) -> _Left:
        """Compute the cells that are complete in a block; return what is left for `wait`.

        It may be called for several blocks at once.

        Parameters
        ----------
        start : int
            Number of the block's first row.
        vectors : numpy.ndarray
            Vectors of its rows, (k, D).
        of_row : numpy.ndarray, optional
            Which of the vectors each row has, ascending, (n,) int64, where several rows may have
            one; by default each has its own.
        """
        of_row = np.arange(len(vectors)) if of_row is None else of_row
        cell = self._cell[start : start + len(of_row)]
        used = np.flatnonzero(cell >= 0)  # all except rows of no cell
        cell = cell[used]
        whole = (self._first[cell] >= start) & (self._last[cell] < start + len(of_row))
        complete = np.unique(cell[whole])
        # In the order of the rows, which are then mostly adjacent.
        for i in complete[np.argsort(self._first[complete])].tolist():
            first, last = int(self._first[i]) - start, int(self._last[i]) - start
            if self._side_by_side[i] and of_row[last] - of_row[first] == last - first:
                mine = vectors[of_row[first] : of_row[last] + 1]
            else:
                rows = self._index[self._bounds[i] : self._bounds[i + 1]] - start
                mine = vectors[of_row[rows]]
            self._compute(i, mine)
        left = used[~whole]
        place = of_row[left]
        # If most vectors wait, they are not copied.
        if 2 * len(place) < len(vectors):
            vectors, place = vectors[place], np.arange(len(place))
        return left + start, vectors, place

    def wait(self, left: Iterable[_Left], threads: int = 0) -> None:
        """Take what `of_block` returned, block after block, and compute what is complete.

        Parameters
        ----------
        left : iterable of tuple
            What it returned, in the order of the blocks.
        threads : int
            As `copcube.lookahead.map_ahead`; cells are computed on them.
        """
        with closing(map_ahead(self._compute_all, self._complete(left), threads)) as done:
            for _ in done:
                pass

    def _complete(self, left: Iterable[_Left]) -> Iterator[_Ready]:
        """Yield runs of cells as soon as all their rows have arrived."""
        for rows, vectors, place in left:
            if not len(rows):
                continue
            number = int(rows[0])
            self._pieces[number], self._left[number] = vectors, len(rows)
            self._piece[rows], self._place[rows] = number, place
            cell = self._cell[rows]
            for cells, wanted in self._chunks(np.unique(cell[self._last[cell] == rows])):
                found = []
                numbers, counts = np.unique(self._piece[wanted], return_counts=True)
                for piece, count in zip(numbers.tolist(), counts.tolist(), strict=True):
                    found.append((piece, self._pieces[piece]))
                    self._left[piece] -= count
                    if not self._left[piece]:
                        del self._pieces[piece]
                yield cells, wanted, found

    def _compute_all(self, ready: _Ready) -> None:
        """Gather the rows of some cells from pieces, and compute the cells."""
        cells, wanted, found = ready
        x = np.empty((len(wanted), self.mean.shape[1]), np.float32)
        pieces, places = self._piece[wanted], self._place[wanted]
        for piece, vectors in found:
            mine = np.flatnonzero(pieces == piece)
            x[mine] = vectors[places[mine]]
        ends = np.cumsum(self._bounds[cells + 1] - self._bounds[cells])
        for i, some in zip(cells.tolist(), np.split(x, ends[:-1]), strict=True):
            self._compute(i, some)

    def _chunks(
        self, cells: NDArray[np.int64]
    ) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
        """Divide cells into runs of about `_WAITING` rows; yield cells and rows of each."""
        if not len(cells):
            return
        starts, stops = self._bounds[cells], self._bounds[cells + 1]
        ends = np.cumsum(stops - starts)
        a = 0
        while a < len(cells):
            before = ends[a - 1] if a else 0
            b = max(a + 1, int(np.searchsorted(ends, before + _WAITING, side="right")))
            yield cells[a:b], self._index[_ranges(starts[a:b], stops[a:b])]
            a = b

    def _compute(self, i: int, x: NDArray[np.float32]) -> None:
        """Mean and spread of cell i from all of its rows, (k, D), in order."""
        weight = self._weight[self._bounds[i] : self._bounds[i + 1]]
        mean, square = np.zeros(x.shape[1]), 0.0
        # einsum adds in the same order on every processor; what BLAS does depends on its kernel.
        for w, some in _steps(weight, x):
            mean += np.einsum("i,ij->j", w, some)
            square += float(np.einsum("i,i", w, np.einsum("ij,ij->i", some, some)))
        variance = square - float(np.einsum("i,i", mean, mean))
        if variance < _SMALL * square:
            variance = 0.0
            for w, some in _steps(weight, x):
                some -= mean
                variance += float(np.einsum("i,i", w, np.einsum("ij,ij->i", some, some)))
        self.mean[i] = mean
        self.spread[i] = np.sqrt(variance)


def _steps(
    weight: NDArray[np.float64], x: NDArray[np.float32]
) -> Iterator[tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """Weights and vectors in float64, a few rows at a time."""
    for start in range(0, len(x), _STEP):
        yield weight[start : start + _STEP], x[start : start + _STEP].astype(np.float64)


def _ranges(starts: NDArray[np.int64], stops: NDArray[np.int64]) -> NDArray[np.int64]:
    """Join the numbers of several ranges."""
    lengths = stops - starts
    ends: NDArray[np.int64] = np.cumsum(lengths)
    numbers: NDArray[np.int64] = np.arange(ends[-1])
    numbers += np.repeat(starts - ends + lengths, lengths)
    return numbers
