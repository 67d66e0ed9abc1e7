"""Scores of Copernicus-Bench, each in two versions.

The official code scores every batch of the test split and averages, weighted by the samples in
a batch; that is what was published, and depends on the order of samples and the size of batches.
`Metric.bench` is that mean, `Metric.dataset` the score of all samples together. Percentages go
from 0 to 100. The definitions are those of torchmetrics 1.9, which the official code calls.
"""

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from copcube.errors import OptionError
from copcube.probes.bench.catalogue import Task


class Metric(Protocol):
    """A score that batches are added to, in their order."""

    def add(self, predicted: NDArray[Any], target: NDArray[Any]) -> None:
        """Add a batch: samples along the first axis."""

    @property
    def bench(self) -> float:
        """Mean over batches, weighted by their samples; NaN of none that can be scored."""

    @property
    def dataset(self) -> float:
        """Score of all samples together; NaN if they cannot be scored."""


class _Batches:
    """The mean over batches; one without anything to score does not count."""

    def __init__(self) -> None:
        self._sum = 0.0
        self._samples = 0

    def _add(self, score: float, samples: int) -> None:
        if np.isfinite(score):
            self._sum += float(score) * samples
            self._samples += samples

    @property
    def bench(self) -> float:
        """Mean over batches, weighted by their samples; NaN of none that can be scored."""
        return self._sum / self._samples if self._samples else np.nan


class Pooled(_Batches):
    """A score of which all predictions are kept.

    Parameters
    ----------
    score : callable
        `accuracy`, `average_precision`, `f1`: of predictions and targets.
    """

    def __init__(self, score: Callable[[NDArray[Any], NDArray[Any]], float]) -> None:
        super().__init__()
        self._score = score
        self._kept: list[tuple[NDArray[Any], NDArray[Any]]] = []

    def add(self, predicted: NDArray[Any], target: NDArray[Any]) -> None:
        """Add a batch: what the score is of, samples along the first axis."""
        self._kept.append((predicted, target))
        self._add(self._score(predicted, target), len(target))

    @property
    def dataset(self) -> float:
        """Score of all samples together."""
        if not self._kept:
            return np.nan
        predicted, target = (np.concatenate(side) for side in zip(*self._kept, strict=True))
        return self._score(predicted, target)


class Jaccard(_Batches):
    """Mean over classes of intersection over union, in %.

    Parameters
    ----------
    classes : int
        How many there are.
    ignore : int, optional
        Code of targets that do not count, whatever was predicted there.

    Notes
    -----
    A class that neither a prediction nor a target has is left out of the mean: of one batch for
    `bench`, of all for `dataset`.
    """

    def __init__(self, classes: int, ignore: int | None = None) -> None:
        super().__init__()
        self._classes, self._ignore = classes, ignore
        self.confusion: NDArray[np.int64] = np.zeros((classes, classes), np.int64)

    def add(self, predicted: NDArray[Any], target: NDArray[Any]) -> None:
        """Add a batch of classes, (samples, …) integers.

        Raises
        ------
        OptionError
            If a target, or a prediction where the target counts, is none of the classes.
        """
        counted = np.full(target.shape, True) if self._ignore is None else target != self._ignore
        truth, guess = target[counted].astype(np.int64), predicted[counted].astype(np.int64)
        for found, what in ((truth, "target"), (guess, "prediction")):
            if found.size and not 0 <= found.min() <= found.max() < self._classes:
                raise OptionError(
                    f"a {what} has class {found.min()} or {found.max()}; expected 0 to "
                    f"{self._classes - 1}"
                )
        # A number for each pair of target and prediction, so that one count makes the whole table.
        pairs = np.bincount(self._classes * truth + guess, minlength=self._classes**2)
        confusion = pairs.reshape(self._classes, self._classes)
        self.confusion += confusion
        self._add(jaccard(confusion), len(target))

    @property
    def dataset(self) -> float:
        """Score of all samples together."""
        return jaccard(self.confusion)


class RootMeanSquare(_Batches):
    """Root of the mean squared error over what is known, in the units of the target.

    Parameters
    ----------
    std : float
        What predictions and targets are multiplied by, if they are standardised.
    """

    def __init__(self, std: float = 1.0) -> None:
        super().__init__()
        self._std = std
        self._squares, self._known = 0.0, 0

    def add(self, predicted: NDArray[Any], target: NDArray[Any]) -> None:
        """Add a batch of numbers, (samples, …); targets that are NaN do not count."""
        off = (np.asarray(predicted, np.float64) - target)[~np.isnan(target)]
        squares = float((off**2).sum())
        self._squares += squares
        self._known += off.size
        self._add(self._std * np.sqrt(squares / off.size) if off.size else np.nan, len(target))

    @property
    def dataset(self) -> float:
        """Score of all samples together."""
        return float(self._std * np.sqrt(self._squares / self._known)) if self._known else np.nan


def accuracy(predicted: NDArray[Any], target: NDArray[Any]) -> float:
    """Share of samples whose class was predicted, in %: both are (samples,) integers."""
    return float(100 * np.mean(predicted == target)) if len(target) else np.nan


def average_precision(scores: NDArray[Any], target: NDArray[Any]) -> float:
    """Micro average precision in %: all classes of all samples in one ranking.

    Parameters
    ----------
    scores : numpy.ndarray
        (samples, classes), larger where a class is likelier.
    target : numpy.ndarray
        (samples, classes), 1 or True where a sample has a class.

    Returns
    -------
    float
        Sum over the distinct scores of precision times the growth of recall; NaN if there is no
        class at all.
    """
    score, truth = np.ravel(scores), np.ravel(target).astype(bool)
    if not truth.any():
        return np.nan
    order = np.argsort(-score, kind="stable")
    score, found = score[order], np.cumsum(truth[order])
    # Equal scores cannot be distinguished: they count together, at the last of them.
    last = np.append(np.nonzero(np.diff(score))[0], score.size - 1)
    precision = found[last] / (last + 1)
    return float(100 * (precision * np.diff(found[last], prepend=0)).sum() / found[-1])


def f1(logits: NDArray[Any], target: NDArray[Any]) -> float:
    """Micro F1 in %, of classes whose logit is above 0, hence its sigmoid above 0.5.

    It is 0 if nothing is predicted and nothing is true.
    """
    guess, truth = logits > 0, target.astype(bool)
    both = int((guess & truth).sum())
    either = int(guess.sum()) + int(truth.sum())
    # 2 TP / (2 TP + FP + FN).
    return 200 * both / either if either else 0.0


def root_mean_square(predicted: NDArray[Any], target: NDArray[Any]) -> float:
    """Root of the mean squared difference, where the target is known."""
    return float(np.sqrt(np.nanmean((predicted - target) ** 2)))


SCORES = {
    "classification": accuracy,
    "multilabel": average_precision,
    "regression": root_mean_square,
}
"""Score of all predictions of a kind of task together."""


def jaccard(confusion: NDArray[np.int64]) -> float:
    """Mean intersection over union in %, of counts by target and prediction."""
    both = np.diag(confusion)
    either = confusion.sum(axis=0) + confusion.sum(axis=1) - both
    there = either > 0
    return float(100 * np.mean(both[there] / either[there])) if there.any() else np.nan


def metric_of(task: Task) -> Metric:
    """Make the published metric of a task.

    Its batches are: (samples,) predicted and true classes; (samples, classes) scores and truth;
    classes of pixels; or numbers of pixels, in the target's units.
    """
    match task.kind:
        case "classification":
            return Pooled(accuracy)
        case "multilabel":
            return Pooled(average_precision)
        case "regression":
            return RootMeanSquare()
        case _:
            return Jaccard(len(task.classes), task.ignore)


def guess(task: Task, logits: NDArray[Any]) -> NDArray[Any]:
    """Turn logits into what the metric takes: the likeliest class, or the logits of several."""
    return logits.argmax(axis=1) if task.kind == "classification" else logits


def fed(metric: Metric, predicted: NDArray[Any], target: NDArray[Any], batch: int) -> Metric:
    """Add all samples to a metric, in batches of the official size and in their order."""
    for start in range(0, len(target), batch):
        part = slice(start, start + batch)
        metric.add(predicted[part], target[part])
    return metric


def interval(
    score: Callable[[NDArray[Any], NDArray[Any]], float],
    predicted: NDArray[Any],
    target: NDArray[Any],
    resamples: int = 200,
) -> tuple[float, float] | tuple[None, None]:
    """Interval of 95 % of a score, from samples drawn again with replacement.

    Parameters
    ----------
    score : callable
        Of predictions and targets.
    predicted, target : numpy.ndarray
        Samples along the first axis.
    resamples : int
        How often; 0 gives None.
    """
    if not resamples:
        return None, None
    rng = np.random.default_rng(0)
    draws = rng.integers(0, len(target), (resamples, len(target)))
    found = [score(predicted[drawn], target[drawn]) for drawn in draws]
    # A draw may lack a rare class, and then has no score.
    low, high = np.nanpercentile(found, [2.5, 97.5])
    return float(low), float(high)
