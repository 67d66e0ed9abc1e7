"""The official protocol of classification, on vectors that were computed before.

Of the published protocol only flips change the images from epoch to epoch, and they leave four
variants of each. With the vectors of all four, what is trained is a batch norm without parameters
and a linear map; every step is a few products of small matrices. Only random draws differ from
those of the official code: see github.com/zhu-xlab/Copernicus-FM at da95635.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from copcube.errors import SourceError
from copcube.grid import Floats
from copcube.probes.bench.catalogue import Task
from copcube.probes.bench.metrics import fed, guess, metric_of
from copcube.probes.bench.results import EPOCHS
from copcube.probes.bench.vectors import Vectors

_WEIGHT_DECAY = np.float32(1e-4)
_EPS = np.float32(1e-6)
_MOMENTUM = np.float32(0.1)
"""Of the running means of the batch norm."""
# The official draw is cut off at ±2, 200 standard deviations away: a plain normal one.
_INITIAL_STD = 0.01

Array = NDArray[np.float32]


class Head(NamedTuple):
    """The trained parameters, and the statistics of the batch norm.

    Attributes
    ----------
    weight : numpy.ndarray
        (classes, dim) float32.
    bias : numpy.ndarray
        (classes,) float32.
    mean, variance : numpy.ndarray
        (dim,) float32, running.
    """

    weight: Array
    bias: Array
    mean: Array
    variance: Array

    def logits(self, vectors: Array) -> Array:
        """Logits, (n, classes), of vectors, (n, dim), with the running means."""
        folded = self.weight / np.sqrt(self.variance + _EPS)
        result: Array = vectors @ folded.T + (self.bias - folded @ self.mean)
        return result

    def copy(self) -> "Head":
        """Copy the arrays, which training changes in place."""
        return Head(*(array.copy() for array in self))


@dataclass(frozen=True, eq=False)
class Trained:
    """The head of the epoch that validated best.

    Parameters
    ----------
    head : Head
        The head.
    epoch : int
        Its epoch, counted from 1.
    validation : float
        Its score on the validation split, over batches, as the official code chooses.
    """

    head: Head
    epoch: int
    validation: float


def one_cycle(step: int, steps: int, rate: float) -> tuple[float, float]:
    """Learning rate and momentum at a step of the one-cycle schedule without a warm-up.

    The rate falls along a cosine to 1/250,000 of its start, while momentum, which the schedule
    cycles as well, rises from 0.85 to 0.95 (torch's `OneCycleLR` with ``pct_start=0``).

    Parameters
    ----------
    step : int
        From 0.
    steps : int
        Of all epochs.
    rate : float
        The largest.

    Examples
    --------
    >>> [round(value, 6) for value in one_cycle(1999, 4000, 1.0)]
    [0.500002, 0.9]
    """
    turned = 1 + np.cos(np.pi * (step + 1) / steps)
    least = rate / 250_000
    return float(least + (rate - least) / 2 * turned), float(0.95 - 0.05 * turned)


def initial(dim: int, classes: int, rng: np.random.Generator) -> Head:
    """Draw an untrained head."""
    weight = _INITIAL_STD * rng.standard_normal((classes, dim))
    # As torch draws the bias of a linear layer.
    bias = rng.uniform(-1, 1, classes) / np.sqrt(dim)
    means = np.zeros(dim, np.float32), np.ones(dim, np.float32)
    return Head(weight.astype(np.float32), bias.astype(np.float32), *means)


def batches(
    samples: int, variants: int, batch: int, rng: np.random.Generator
) -> Iterator[tuple[NDArray[np.intp], NDArray[np.intp]]]:
    """Draw the batches of an epoch: variant and sample of each; the last part batch is dropped."""
    order = rng.permutation(samples)
    flips = rng.integers(0, variants, samples)
    for start in range(0, samples - batch + 1, batch):
        part = slice(start, start + batch)
        yield flips[part], order[part]


def train(
    task: Task, train: Vectors, validation: Vectors, *, epochs: int = EPOCHS, seed: int = 0
) -> Trained:
    """Train the head of a task of classification, of one class or several.

    Parameters
    ----------
    task : Task
        Says the learning rate, the size of batches, and the loss: cross entropy, or the mean over
        classes of the logistic loss.
    train, validation : Vectors
        The splits; of `train` with any variants.
    epochs : int
        How often each sample is seen.
    seed : int
        Of initial values, order and flips.

    Raises
    ------
    SourceError
        If there are fewer samples than a batch, or nothing that validates.
    """
    variants, samples, dim = train.vectors.shape
    steps = epochs * (samples // task.batch)
    if not steps or not len(validation.target):
        raise SourceError(
            f"{task.title}: {samples} training and {len(validation.target)} validation samples; "
            f"expected at least {task.batch} (a batch) and 1"
        )
    rng = np.random.default_rng(seed)
    head = initial(dim, len(task.classes), rng)
    speed = np.zeros_like(head.weight), np.zeros_like(head.bias)
    best: Trained | None = None
    step = 0
    for epoch in range(1, epochs + 1):
        for flips, order in batches(samples, variants, task.batch, rng):
            rate, momentum = one_cycle(step, steps, task.rate)
            _step(head, speed, train.vectors[flips, order], train.target[order], rate, momentum)
            step += 1
        logits = head.logits(validation.vectors[0])
        score = fed(metric_of(task), guess(task, logits), validation.target, task.batch).bench
        if best is None or score > best.validation:
            best = Trained(head.copy(), epoch, score)
    assert best is not None
    return best


def _step(
    head: Head,
    speed: tuple[Array, Array],
    x: Array,
    target: NDArray[Any],
    rate: float,
    momentum: float,
) -> None:
    """One step of stochastic gradient descent, in place."""
    count = np.float32(len(x))
    mean = x.mean(axis=0)
    x -= mean
    variance = np.einsum("ij,ij->j", x, x) / count
    x /= np.sqrt(variance + _EPS)
    head.mean[:] += _MOMENTUM * (mean - head.mean)
    # The running variance is that of the population, that of a batch is not, as in torch.
    head.variance[:] += _MOMENTUM * (variance * (count / (count - 1)) - head.variance)
    slope = _slope(x @ head.weight.T + head.bias, target)
    slopes: tuple[Floats | Array, ...] = slope.T @ x, slope.sum(axis=0)
    for values, moving, gradient in zip(head[:2], speed, slopes, strict=True):
        moving *= np.float32(momentum)
        moving += gradient
        # Decay is part of the gradient that momentum gathers, also of the bias, as in torch's SGD.
        moving += _WEIGHT_DECAY * values
        values -= np.float32(rate) * moving


def _slope(logits: Array, target: NDArray[Any]) -> Array:
    """Derivative of the mean loss by the logits, (batch, classes)."""
    if target.ndim == 1:
        slope: Array = np.exp(logits - logits.max(axis=1, keepdims=True))
        slope /= slope.sum(axis=1, keepdims=True)
        slope[np.arange(len(target)), target] -= 1
        slope /= np.float32(len(target))
        return slope
    # The logistic function by tanh, which overflows nowhere.
    likely = np.float32(0.5) * (1 + np.tanh(logits / 2))
    result: Array = (likely - target.astype(np.float32)) / np.float32(target.size)
    return result
