"""The cells of a probe: their places, values and moments."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from copcube import grid
from copcube.cube.view import CubeView, Part
from copcube.files.processors import THREADS
from copcube.grid import Floats
from copcube.lookahead import map_ahead
from copcube.pca.moments import Moments
from copcube.probes.inputs import Layout
from copcube.probes.ridge import PartMoments
from copcube.probes.splits import TEST, TRAIN, VALIDATE

_ROWS = 4096
"""Cells whose table is in memory at a time."""


@dataclass(frozen=True, eq=False)
class ProbeCells:
    """Cells that hold everything requested.

    Parameters
    ----------
    view : CubeView
        The cube.
    i, j : numpy.ndarray
        (cell,) positions along its latitude and longitude.
    given, targets : numpy.ndarray
        (cell, field) values.
    """

    view: CubeView
    i: NDArray[np.intp]
    j: NDArray[np.intp]
    given: NDArray[Any]
    targets: Floats

    @classmethod
    def of(
        cls,
        view: CubeView,
        there: NDArray[np.bool_],
        given: NDArray[Any] | None,
        targets: Floats,
    ) -> Self:
        """Take the cells, (lat, lon), that are there, of fields (lat, lon, field)."""
        i, j = np.nonzero(there)
        fields = np.zeros((len(i), 0)) if given is None else given[i, j]
        return cls(view, i, j, fields, targets[i, j])

    @cached_property
    def lat(self) -> Floats:
        """(cell,) degrees north."""
        return grid.latitudes()[self.view.row][self.i]

    @cached_property
    def lon(self) -> Floats:
        """(cell,) degrees east."""
        return grid.longitudes()[self.view.col][self.j]

    @property
    def areas(self) -> Floats:
        """(cell,) steradians."""
        return grid.areas()[self.view.row][self.i]

    def vectors(self, which: NDArray[np.intp]) -> NDArray[Any]:
        """Vectors of some cells, (which, dim)."""
        result = np.empty((len(which), self.view.field.shape[-1]), self.view.field.dtype)
        for at, read in self._blocks(which):
            result[at] = read
        return result

    def _blocks(self, which: NDArray[np.intp]) -> Iterator[tuple[NDArray[np.intp], NDArray[Any]]]:
        """Vectors of some cells, block by block, and where those of a block are among them."""
        place = np.full(self.view.field.shape[:2], -1)
        place[self.i[which], self.j[which]] = np.arange(len(which))
        parts = [part for part in self.view.blocks() if (place[part] >= 0).any()]

        def read(part: Part) -> tuple[NDArray[np.intp], NDArray[Any]]:
            filled, x = self.view.read(part)
            here = place[part] >= 0
            # A vector that is counted may still be masked; such a cell is found by its NaN.
            return place[part][here], np.where(filled[here][:, None], x[here], np.nan)

        return map_ahead(read, parts, THREADS)

    def table(
        self, layout: Layout, which: NDArray[np.intp], vectors: NDArray[Any] | None
    ) -> NDArray[np.float64]:
        """Inputs and targets of some cells, (which, column)."""
        others = {"given": self.given[which], "targets": self.targets[which]}
        if vectors is not None:
            others["embedding"] = vectors
        return layout.table(self.lat[which], self.lon[which], others)

    def parts(
        self,
        layout: Layout,
        part_of: NDArray[np.int8],
        vectors: NDArray[Any] | None,
        used: NDArray[np.intp],
    ) -> list[dict[int, PartMoments]]:
        """Moments of training, validating and testing cells, for every seed.

        Parameters
        ----------
        layout : Layout
            Columns of the table.
        part_of : numpy.ndarray
            (seed, cell) of `used`, as `copcube.probes.splits` numbers them.
        vectors : numpy.ndarray or None
            (used, dim) of the cells.
        used : numpy.ndarray
            Which of the cells.
        """
        sums = [
            {part: Moments.zero(layout.width) for part in (TRAIN, VALIDATE, TEST)} for _ in part_of
        ]
        # Cells that belong to the same part for every seed are summed once for all seeds.
        codes, code = np.unique(part_of, axis=1, return_inverse=True)
        for n, parts in enumerate(codes.T):
            alike = np.flatnonzero(code == n)
            total = Moments.zero(layout.width)
            for start in range(0, len(alike), _ROWS):
                rows = alike[start : start + _ROWS]
                x = self.table(layout, used[rows], None if vectors is None else vectors[rows])
                total.merge(Moments.of(x, np.ones(len(rows))))
            for seed, part in enumerate(parts):
                # Cells of no part were not drawn by this seed.
                if part in sums[seed]:
                    sums[seed][int(part)].merge(total)
        return [{part: PartMoments.of(m) for part, m in one.items()} for one in sums]

    def residuals(
        self,
        layout: Layout,
        models: Sequence[tuple[Floats, Floats]],
        unseen: NDArray[np.bool_],
        reads_vectors: bool,
    ) -> NDArray[np.float32]:
        """Truth minus prediction, averaged over the models that have not seen a cell.

        Parameters
        ----------
        layout : Layout
            Columns of the table.
        models : sequence of tuple
            Coefficients (column, target) and intercepts (target,) of every seed.
        unseen : numpy.ndarray
            (seed, cell) whether it took no part in training and validating.
        reads_vectors : bool
            Whether the models need the vectors, all of which are then read.

        Returns
        -------
        numpy.ndarray
            (lat, lon, target) float32, NaN where every model has seen the cell.
        """
        n = self.targets.shape[1]
        result = np.full((*self.view.field.shape[:2], n), np.nan, np.float32)
        wanted = np.flatnonzero(unseen.any(axis=0))
        columns = slice(0, layout.places["targets"].start)
        pieces: Iterator[tuple[NDArray[np.intp], NDArray[Any] | None]]
        if reads_vectors:
            pieces = ((wanted[at], read) for at, read in self._blocks(wanted))
        else:
            pieces = ((wanted[a : a + _ROWS], None) for a in range(0, len(wanted), _ROWS))
        for which, vectors in pieces:
            x = self.table(layout, which, vectors)[:, columns]
            total = np.zeros((len(which), n))
            for seed, (coefficients, intercept) in enumerate(models):
                off = self.targets[which] - (x @ coefficients + intercept)
                total += np.where(unseen[seed, which][:, None], off, 0)
            result[self.i[which], self.j[which]] = total / unseen[:, which].sum(axis=0)[:, None]
        return result
