"""Linear regression by stochastic gradient descent, stopped at the best validation.

The paper of Copernicus-FM (arXiv:2503.11849) gives a spread over runs for its linear regressions,
which a closed form would not have. It states no learning rate and no number of epochs; those
here are this module's own.
"""

import numpy as np
from numpy.typing import NDArray

from copcube.grid import Floats
from copcube.probes.ridge import PartMoments, Ridge

EPOCHS = 100
BATCH = 64
MOMENTUM = 0.9
MOST_CELLS = 50_000
"""Cells whose inputs are kept in memory; 800 inputs of as many take 0.3 GB."""


def fit(
    train: PartMoments,
    x: Floats,
    y: Floats,
    validation: tuple[Floats, Floats],
    columns: NDArray[np.intp],
    targets: NDArray[np.intp],
    seed: int,
) -> Ridge:
    """Fit to cells in batches drawn at random; of each target the best epoch is kept.

    Inputs and targets are brought to mean 0 and variance 1 over the training cells. The step is
    such that, with the momentum, it is 1 over the mean squared length of an input.

    Parameters
    ----------
    train : PartMoments
        Moments of the training cells, over all columns.
    x, y : numpy.ndarray
        (cell, input) and (cell, target) of the training cells.
    validation : tuple of numpy.ndarray
        The same of the validation cells.
    columns, targets : numpy.ndarray
        Which columns of `train` these are.
    seed : int
        Of the order of the cells.

    Returns
    -------
    Ridge
        Whose `strength` is the number of epochs.
    """
    mean, scale = train.mean[columns], train.scales(columns)
    middle, spread = train.mean[targets], np.sqrt(train.variance(targets))
    x, y = (x - mean) / scale, (y - middle) / spread
    u, v = (validation[0] - mean) / scale, (validation[1] - middle) / spread
    step = (1 - MOMENTUM) / max(float(np.isfinite(scale).sum()), 1.0)
    rng = np.random.default_rng(seed)
    weight = np.zeros((len(columns), len(targets)))
    moving, best = np.zeros_like(weight), np.zeros_like(weight)
    least, epochs = (v**2).mean(axis=0), np.zeros(len(targets))
    for epoch in range(1, EPOCHS + 1):
        order = rng.permutation(len(x))
        for start in range(0, len(x), BATCH):
            some = order[start : start + BATCH]
            off = x[some] @ weight - y[some]
            moving = MOMENTUM * moving + x[some].T @ off / len(some)
            weight -= step * moving
        error = ((u @ weight - v) ** 2).mean(axis=0)
        better = error < least
        best[:, better], least[better], epochs[better] = weight[:, better], error[better], epoch
    coefficients = best * spread / scale[:, None]
    return Ridge(columns, targets, coefficients, middle - mean @ coefficients, epochs)
