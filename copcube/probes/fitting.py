"""Regressions of a probe: every input, for every seed, fitted and tested."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from copcube.grid import Floats
from copcube.pca.blas import one_thread
from copcube.probes import sgd
from copcube.probes.inputs import Input, Layout
from copcube.probes.ridge import Indices, PartMoments, Ridge, Solver
from copcube.probes.splits import TEST, TRAIN, VALIDATE

log = logging.getLogger("copcube")

_NO_SCATTER = 1e-12
"""Scatter along an axis, relative to the largest, below which most of it is rounding."""


@dataclass(frozen=True)
class Fitter:
    """How regressions are fitted to the cells of every seed.

    Parameters
    ----------
    layout : Layout
        Columns of the table.
    solver : str
        As in `copcube.probes.climate.probe`.
    seeds : sequence of int
        Of the divisions.
    rotated : bool
        Whether components are those of the training cells; else of a reduction, its own.
    table : callable
        Returns the table, (cell, column), of the cells of a part by the division of a seed, which
        is given by its number among all.
    """

    layout: Layout
    solver: Solver
    seeds: Sequence[int]
    rotated: bool
    table: Callable[[int, int], Floats]

    def fit(
        self,
        parts: Sequence[Mapping[int, PartMoments]],
        chosen: Sequence[Input],
        mapped: Input | None,
    ) -> tuple[Floats, Floats, Floats, list[tuple[Floats, Floats]]]:
        """Fit and test every input for every seed.

        Returns
        -------
        rmse, r2, strength : numpy.ndarray
            (seed, input, target) errors, shares of variance, and what validation chose.
        models : list of tuple
            Of each seed, coefficients on the table's columns and intercepts, for the mapped input.
        """
        layout, at = self.layout, self.layout.columns_of("targets")
        rmse = np.empty((len(parts), len(chosen), len(at)))
        r2, strength, models = np.empty_like(rmse), np.empty_like(rmse), []
        most = max(one.components for one in chosen)
        for s, by_part in enumerate(parts):
            basis = None
            if most:
                vectors = layout.columns_of("embedding")
                # Of the training cells only: otherwise test cells would have shaped their own
                # inputs.
                basis = _basis(by_part[TRAIN], vectors, most, rotated=self.rotated)
                by_part = {part: one.extended(vectors, basis) for part, one in by_part.items()}
            for n, one in enumerate(chosen):
                columns = layout.columns(one)
                fitted = self._fit(s, by_part, columns, basis)
                errors = fitted.errors(by_part[TRAIN], by_part[TEST])
                rmse[s, n], strength[s, n] = np.sqrt(errors), fitted.strength
                r2[s, n] = 1 - errors / by_part[TEST].variance(at)
                if one == mapped:
                    models.append(_flat(fitted, layout, basis))
            log.info("seed %d of %d is done", s + 1, len(parts))
        return rmse, r2, strength, models

    def _fit(
        self,
        number: int,
        by_part: Mapping[int, PartMoments],
        columns: Indices,
        basis: Floats | None,
    ) -> Ridge:
        """Fit to the cells of the seed of some number; components are on a basis."""
        train, at = by_part[TRAIN], self.layout.columns_of("targets")
        if self.solver != "sgd":
            return Ridge.fit(train, by_part[VALIDATE], columns, at, solver=self.solver)

        def values(part: int) -> tuple[Floats, Floats]:
            table = self.table(number, part)
            if basis is not None:
                table = np.hstack([table, table[:, self.layout.places["embedding"]] @ basis])
            return table[:, columns], table[:, at]

        seed = self.seeds[number]
        return sgd.fit(train, *values(TRAIN), values(VALIDATE), columns, at, seed)


def _basis(train: PartMoments, columns: Indices, k: int, *, rotated: bool) -> Floats:
    """Axes of the first k components of the training cells, (dim, k); of a reduction its own.

    Axes along which the training cells do not vary are zero, so that they explain nothing.
    """
    if not rotated:
        return np.eye(len(columns), k)
    with one_thread():
        scatter, axes = np.linalg.eigh(train.scatter[np.ix_(columns, columns)])
    axes[:, scatter <= _NO_SCATTER * scatter[-1]] = 0
    # `eigh` sorts ascending, and the first component has the largest variance.
    return np.ascontiguousarray(axes[:, ::-1][:, :k])


def _flat(fitted: Ridge, layout: Layout, basis: Floats | None) -> tuple[Floats, Floats]:
    """Coefficients on all columns of the table, (column, target), and intercepts."""
    inputs = layout.places["targets"].start
    behind = 0 if basis is None else basis.shape[1]
    full = np.zeros((layout.width + behind, len(fitted.targets)))
    full[fitted.columns] = fitted.coefficients
    if basis is not None:
        # What is linear in components is linear in the vectors that they are made of.
        full[layout.places["embedding"]] += basis @ full[layout.width :]
    return full[:inputs], fitted.intercept
