"""Ridge regression in closed form, from moments of inputs and targets.

What a linear regression needs of its data are their means and their scatter. These are summed
once, in float64, for each part of the cells (`copcube.pca.moments`); every selection of inputs
is then a selection of rows and columns, and all strengths of regularisation follow from one
decomposition. No cell is read a second time, for training, validating or testing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray

from copcube.grid import Floats
from copcube.pca.blas import one_thread
from copcube.pca.moments import Moments, mirrored

PENALTIES = (0.0, *(10.0**power for power in np.arange(-6, 2.5, 0.5)))
"""Strengths among which validation chooses: 0 is least squares, the others are relative to the
number of cells, as alpha / n of scikit-learn on inputs of unit variance."""

STEPS = tuple(10.0**power for power in np.arange(0, 6.1, 0.25))
"""Numbers of steps among which validation chooses where descent stops."""

Solver = Literal["ridge", "descent", "sgd"]

_COLLINEAR = 1e-10
"""Eigenvalue of the correlations, relative to the largest, below which inputs repeat others."""

_CONSTANT = 1e-14
"""Share of its mean square below which the variance of an input is rounding."""

Indices = NDArray[np.intp]


@dataclass(frozen=True, eq=False)
class PartMoments:
    """Means and scatter of all inputs and targets over a part of the cells.

    Parameters
    ----------
    cells : int
        Number of cells.
    mean : numpy.ndarray
        (column,) float64.
    scatter : numpy.ndarray
        (column, column) float64: Σ(x - m)(x - m)ᵀ.
    """

    cells: int
    mean: Floats
    scatter: Floats

    @classmethod
    def of(cls, moments: Moments) -> Self:
        """Take moments of cells of weight 1."""
        scatter = np.ascontiguousarray(mirrored(moments.lower))
        return cls(moments.cells, moments.mean, scatter)

    def variance(self, columns: Indices) -> Floats:
        """Variances of some columns about their means."""
        # Rounding may leave that of a constant a little below 0.
        result: Floats = np.maximum(self.scatter[columns, columns], 0) / self.cells
        return result

    def scales(self, columns: Indices) -> Floats:
        """Standard deviations of some columns; infinite for those that are constant.

        Divided by infinity, a constant input becomes 0 and gets no coefficient.
        """
        scale: Floats = np.sqrt(self.variance(columns))
        scale[scale**2 <= _CONSTANT * self.mean[columns] ** 2] = np.inf
        scale[scale == 0] = np.inf
        return scale

    def extended(self, columns: Indices, basis: Floats) -> Self:
        """Append combinations of some columns, (columns, new)."""
        across = self.scatter[:, columns] @ basis
        own = basis.T @ across[columns]
        scatter = np.block([[self.scatter, across], [across.T, own]])
        return type(self)(self.cells, np.append(self.mean, self.mean[columns] @ basis), scatter)


@dataclass(frozen=True, eq=False)
class Ridge:
    """A linear regression of several targets on several inputs.

    Parameters
    ----------
    columns, targets : numpy.ndarray
        Columns of `PartMoments` that are its inputs, and what it predicts.
    coefficients : numpy.ndarray
        (input, target) float64, in the targets' units per unit of an input.
    intercept : numpy.ndarray
        (target,) float64.
    strength : numpy.ndarray
        (target,) chosen penalties or, of descent, numbers of steps.
    """

    columns: Indices
    targets: Indices
    coefficients: Floats
    intercept: Floats
    strength: Floats

    @classmethod
    def fit(
        cls,
        train: PartMoments,
        validation: PartMoments,
        columns: Indices,
        targets: Indices,
        strengths: Sequence[float] | None = None,
        solver: Literal["ridge", "descent"] = "ridge",
    ) -> Self:
        """Fit to some cells, with the strength that serves each target best on others.

        Inputs are brought to unit variance over `train` first. Those that repeat others share
        what they explain (the solution of least norm); constant ones explain nothing.

        Parameters
        ----------
        train, validation : PartMoments
            Cells to fit to, and those that choose.
        columns, targets : numpy.ndarray
            Which of their columns.
        strengths : sequence of float, optional
            Penalties, `PENALTIES` by default; or numbers of steps, `STEPS` by default.
        solver : {"ridge", "descent"}
            Least squares with a penalty; or gradient descent from zero, stopped early, whose
            path stochastic descent follows but for its noise. After t steps of the length
            1 / (largest eigenvalue), it has the closed form of Yao, Rosasco & Caponnetto (2007,
            doi:10.1007/s00365-006-0663-2).
        """
        if strengths is None:
            strengths = PENALTIES if solver == "ridge" else STEPS
        inverse = _inverse if solver == "ridge" else _descended
        inputs = train.scatter[np.ix_(columns, columns)]
        scale = train.scales(columns)
        with one_thread():  # more of them would be slower for a matrix of this size
            values, vectors = np.linalg.eigh(inputs / train.cells / np.outer(scale, scale))
        together = train.scatter[np.ix_(columns, targets)] / train.cells / scale[:, None]
        turned = vectors.T @ together
        shrunk = [turned * inverse(values, strength)[:, None] for strength in strengths]
        paths = (vectors @ np.concatenate(shrunk, axis=1)) / scale[:, None]
        several = np.tile(targets, len(strengths))
        errors = _errors(train, validation, columns, several, paths).reshape(-1, len(targets))
        # The first of equals: the weakest penalty, or the fewest steps.
        best = errors.argmin(axis=0)
        coefficients = paths[:, best * len(targets) + np.arange(len(targets))]
        intercept = train.mean[targets] - train.mean[columns] @ coefficients
        return cls(columns, targets, coefficients, intercept, np.asarray(strengths)[best])

    def errors(self, train: PartMoments, part: PartMoments) -> Floats:
        """Mean squared error of every target over the cells of a part."""
        return _errors(train, part, self.columns, self.targets, self.coefficients)


def _inverse(values: Floats, strength: float) -> Floats:
    """What an eigenvalue is divided by; nothing of directions that are rounding."""
    if strength > 0:
        return 1 / (np.maximum(values, 0) + strength)
    there = values > _COLLINEAR * values[-1]
    return np.divide(1, values, out=np.zeros_like(values), where=there)


def _descended(values: Floats, steps: float) -> Floats:
    """What an eigenvalue has been divided by after some steps of descent."""
    values = np.maximum(values, 0)
    largest = values[-1] or 1.0
    share = values / largest
    with np.errstate(divide="ignore"):  # the largest is there after one step
        # This is 1 - (1 - share)^steps, whose digits would be lost where shares are small.
        gone = -np.expm1(steps * np.log1p(-share))
    # There the quotient has gone over to its limit, steps / largest.
    small = share < 1e-300
    return np.divide(gone, values, out=np.full_like(values, steps / largest), where=~small)


def _errors(
    train: PartMoments, part: PartMoments, columns: Indices, targets: Indices, coefficients: Floats
) -> Floats:
    """Mean squared errors of coefficients, with the means of `train`, on the cells of a part."""
    inputs = part.scatter[np.ix_(columns, columns)]
    about = (
        part.scatter[targets, targets]
        - 2 * np.einsum("pt,pt->t", part.scatter[np.ix_(columns, targets)], coefficients)
        + np.einsum("pt,pt->t", coefficients, inputs @ coefficients)
    ) / part.cells
    off = part.mean[targets] - train.mean[targets]
    off -= (part.mean[columns] - train.mean[columns]) @ coefficients
    # Rounding may leave a perfect fit a little below 0.
    result: Floats = np.maximum(about, 0) + off**2
    return result
