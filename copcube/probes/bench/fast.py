"""The fast tier: nearest neighbours and linear models, fitted to convergence.

As is common practice in comparing embeddings: each image once, without flips; five nearest
neighbours; logistic regression and ridge regression, whose strengths validation chooses. Scores are
not comparable with published ones, but need neither learning rates nor seeds.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from copcube.errors import SourceError
from copcube.grid import Floats
from copcube.probes.bench.catalogue import Task
from copcube.probes.bench.metrics import SCORES, guess
from copcube.probes.ridge import PartMoments, Ridge

NEIGHBOURS = 5

STRENGTHS = tuple(float(c) for c in np.logspace(-6, 4, 40))
"""C of logistic regression among which validation chooses: the inverse of the penalty on half the
squared weights, beside the sum of the samples' losses."""

_BLOCK = 512
"""Samples whose distances to all others are computed at once."""
_STEPS = 500
_SLOPE = 1e-6
_EPS = 1e-12
_LEAST = 1e-12
"""Share of the largest variance below which an axis is rounding."""

Array = NDArray[np.float32]


def neighbours(task: Task, train: Array, target: NDArray[Any], vectors: Array) -> NDArray[Any]:
    """Predict by the `NEIGHBOURS` nearest samples, by Euclidean distance.

    Parameters
    ----------
    task : Task
        Of classification, of one class or several.
    train, vectors : numpy.ndarray
        (samples, dim) float32: those whose class is known, and those that are asked for.
    target : numpy.ndarray
        Classes of `train`.

    Returns
    -------
    numpy.ndarray
        The most frequent class, the first of several; or the share of neighbours that have each
        of several classes, (samples, classes).
    """
    # About the mean, squares lose fewer digits in the difference that a distance is.
    middle = train.mean(axis=0)
    known = train - middle
    norms = np.einsum("ij,ij->i", known, known)
    k = min(NEIGHBOURS, len(known))
    found = []
    for start in range(0, len(vectors), _BLOCK):
        # Without the norm of the vector itself, which is the same for all that are compared.
        distance = norms - 2 * ((vectors[start : start + _BLOCK] - middle) @ known.T)
        nearest = np.argpartition(distance, k - 1, axis=1)[:, :k]
        labels = target[nearest]
        if task.kind == "multilabel":
            found.append(labels.mean(axis=1))
            continue
        votes = (labels[..., None] == np.arange(len(task.classes))).sum(axis=1)
        found.append(votes.argmax(axis=1))
    return np.concatenate(found)


class Predicted(NamedTuple):
    """A model's predictions, and the strength that validation chose.

    Attributes
    ----------
    output : numpy.ndarray
        (samples,) float64.
    strength : float
        The penalty, see `copcube.probes.ridge.PENALTIES`.
    """

    output: Floats
    strength: float


class Logistic(NamedTuple):
    """Logistic regression: one of several classes, or several at once.

    Attributes
    ----------
    weight : numpy.ndarray
        (classes, dim) float64.
    bias : numpy.ndarray
        (classes,) float64.
    """

    weight: Floats
    bias: Floats

    def logits(self, vectors: Array) -> Floats:
        """Logits, (samples, classes)."""
        result: Floats = vectors @ self.weight.T + self.bias
        return result


class _Problem:
    """Logistic regressions on some samples, in coordinates in which they are solved fast.

    The penalty does not see a rotation, so vectors are turned to their principal axes about
    their mean, which the bias takes up. There the curvature is nearly diagonal, and what is
    solved for is scaled by what it is where the search begins, which saves most of its steps.
    """

    def __init__(self, task: Task, vectors: Array, target: NDArray[Any]) -> None:
        count = len(task.classes)
        self.several = task.kind == "multilabel"
        self.truth = target.astype(np.float64) if self.several else np.eye(count)[target]
        self.middle = vectors.mean(axis=0, dtype=np.float64)
        centred = vectors - self.middle
        values, axes = np.linalg.eigh(centred.T @ centred / len(vectors))
        # Along the others nothing varies, and the penalty keeps weights at 0.
        self.axes = axes[:, values > _LEAST * values[-1]]
        self.x = (centred @ self.axes).astype(np.float32)
        self.solution = np.zeros((count, self.axes.shape[1] + 1))

    def solve(self, strength: float) -> Logistic:
        """Find the minimum at a strength, from that of the strength before."""
        from scipy.optimize import minimize

        samples, dim = self.x.shape
        # Below, losses are a mean over the samples; in the definition of C they are a sum.
        penalty = 1 / (strength * samples)
        likely = self._likely(self._logits(self.solution))
        bent = (likely * (1 - likely)).astype(np.float32)
        curvature = np.column_stack([bent.T @ self.x**2 + penalty * samples, bent.sum(axis=0)])
        # Where all probabilities are 0 or 1 the loss is flat along the bias.
        scale = 1 / np.sqrt(curvature / samples + _EPS)

        def loss(flat: Floats) -> tuple[float, Floats]:
            weight = flat.reshape(-1, dim + 1) * scale
            value, slope = self._loss(self._logits(weight))
            value += penalty / 2 * float((weight[:, :-1] ** 2).sum())
            gradient = np.empty_like(weight)
            gradient[:, :-1] = slope.T.astype(np.float32) @ self.x + penalty * weight[:, :-1]
            gradient[:, -1] = slope.sum(axis=0)
            return value, (gradient * scale).ravel()

        found = minimize(
            loss,
            (self.solution / scale).ravel(),
            jac=True,
            method="L-BFGS-B",
            options={"maxiter": _STEPS, "gtol": _SLOPE, "ftol": 1e-8},
        )
        self.solution = found.x.reshape(-1, dim + 1) * scale
        weight = self.solution[:, :-1] @ self.axes.T
        return Logistic(weight, self.solution[:, -1] - weight @ self.middle)

    def _logits(self, weight: Floats) -> Floats:
        result: Floats = self.x @ weight[:, :-1].T.astype(np.float32) + weight[:, -1]
        return result

    def _likely(self, logits: Floats) -> Floats:
        """Probabilities of the classes."""
        if self.several:
            return 0.5 * (1 + np.tanh(logits / 2))
        odds = np.exp(logits - logits.max(axis=1, keepdims=True))
        result: Floats = odds / odds.sum(axis=1, keepdims=True)
        return result

    def _loss(self, logits: Floats) -> tuple[float, Floats]:
        """Mean over samples of the loss, and its slope by the logits."""
        slope = (self._likely(logits) - self.truth) / len(logits)
        if self.several:
            value = np.logaddexp(0, logits) - self.truth * logits
        else:
            largest = logits.max(axis=1, keepdims=True)
            total = np.log(np.exp(logits - largest).sum(axis=1)) + largest[:, 0]
            value = total - np.einsum("ij,ij->i", self.truth, logits)
        return float(value.sum() / len(logits)), slope


def logistic(
    task: Task,
    train: tuple[Array, NDArray[Any]],
    validation: tuple[Array, NDArray[Any]],
    strengths: Sequence[float] = STRENGTHS,
) -> tuple[Logistic, float, float]:
    """Fit a logistic regression whose strength serves validation best, and fit it to both.

    Parameters
    ----------
    task : Task
        Of classification, of one class or several.
    train, validation : tuple of numpy.ndarray
        (samples, dim) float32 vectors, and their classes.
    strengths : sequence of float
        C, ascending; each fit begins at the one before.

    Returns
    -------
    model : Logistic
        Fitted to both splits.
    strength : float
        The chosen C, the smallest of equals.
    score : float
        Accuracy, or micro average precision, in %, of the validation split before.

    Raises
    ------
    SourceError
        If no validation sample has a class.
    """
    problem = _Problem(task, *train)
    best = (-np.inf, strengths[0])
    for strength in strengths:
        logits = problem.solve(strength).logits(validation[0])
        score = SCORES[task.kind](guess(task, logits), validation[1])
        # Of equal scores `max` keeps the first, which has the stronger penalty.
        best = max(best, (score, strength), key=lambda pair: pair[0])
    if not np.isfinite(best[0]):
        raise SourceError(
            f"{task.title}: none of the {len(validation[1])} validation samples has any class, so "
            f"that no strength can be chosen; use the whole data set (`copcube fetch bench "
            f"{task.name}`)"
        )
    both = (np.concatenate(pair) for pair in zip(train, validation, strict=True))
    return _Problem(task, *both).solve(best[1]), best[1], best[0]


def ridge(
    train: tuple[Array, NDArray[Any]], validation: tuple[Array, NDArray[Any]], vectors: Array
) -> Predicted:
    """Predict numbers from vectors by a ridge regression whose penalty validation chooses."""
    dim = train[0].shape[1]
    # Columns are the vectors and, last, the target.
    model = Ridge.fit(_part(*train), _part(*validation), np.arange(dim), np.array([dim]))
    predicted = vectors @ model.coefficients[:, 0] + model.intercept[0]
    return Predicted(predicted, float(model.strength[0]))


def _part(vectors: Array, target: NDArray[Any]) -> PartMoments:
    """Means and scatter of vectors and target, of the samples whose target is known."""
    known = np.isfinite(target)
    columns = np.column_stack([vectors[known], target[known]]).astype(np.float64)
    mean = columns.mean(axis=0)
    columns -= mean
    return PartMoments(len(columns), mean, columns.T @ columns)
