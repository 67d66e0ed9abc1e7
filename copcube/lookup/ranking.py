"""The best of many values, and of distances that are estimated at first."""

import numpy as np
from numpy.typing import NDArray

from copcube.grid import Floats, Integers

STEP = 4096
"""Values per block, of which only the smallest is examined first."""
_ROUNDING = 2.0**-24
"""Largest relative error of float32."""
_UNDERFLOW = 2.0**-146
"""Bound of what a sum loses for each product too small for float32."""


def lowest(values: NDArray[np.floating], n: int) -> Integers:
    """Positions of the n smallest values, smallest first; of equal ones the first position.

    Infinite values are left out, so there may be fewer. None may be NaN.
    """
    found = candidates(values, np.zeros(-(-len(values) // STEP)), n)
    return found[np.argsort(values[found], kind="stable")][:n]


def candidates(values: NDArray[np.floating], slack: Floats, n: int) -> Integers:
    """Positions, ascending, of all that may be among the n smallest of roughly known values.

    Parameters
    ----------
    values : numpy.ndarray
        (m,), none of them NaN; infinite ones are left out.
    slack : numpy.ndarray
        Largest possible error of the values in each block of `STEP`, (blocks,).
    n : int
        How many.
    """
    n = min(n, len(values))
    if n <= 0:
        return np.empty(0, np.int64)
    least = np.minimum.reduceat(values, np.arange(0, len(values), STEP)).astype(np.float64)
    with np.errstate(invalid="ignore"):  # for infinite values in blocks of infinite slack
        # Each of the n best blocks has a value below this, so most need not be examined.
        bound = np.partition(least + slack, n - 1)[n - 1] if n <= len(least) else np.inf
        parts = [
            i * STEP + np.flatnonzero(values[i * STEP : (i + 1) * STEP] <= bound + slack[i])
            for i in np.flatnonzero(~(least - slack > bound)).tolist()
        ]
        found = np.concatenate(parts)
        some, own = values[found], slack[found // STEP]
        bound = np.partition(some + own, n - 1)[n - 1]
        return np.asarray(found[(some - own <= bound) & (some < np.inf)])


def estimate_squares(
    y: NDArray[np.float32],
    lengths: NDArray[np.float32],
    wanted: Floats,
    values: NDArray[np.float32],
    slack: Floats,
) -> None:
    """Estimate squared distances from a vector, minus a constant, at the cost of a product.

    Parameters
    ----------
    y : numpy.ndarray
        Vectors, (n, dim).
    lengths : numpy.ndarray
        Their lengths, (n,), from `copcube.lookup.similar.lengths_of`.
    wanted : numpy.ndarray
        The vector to compare with, (dim,) float64.
    values : numpy.ndarray
        Becomes |y|² - 2 y·w, (n,).
    slack : numpy.ndarray
        Becomes, for each block of `STEP`, a bound on its difference from the squared result of
        `copcube.lookup.similar.scores`, minus |w|²; infinite where it exceeds float32's range.

    Notes
    -----
    In whatever order a product of float32 is summed, it is off by at most γ |y| |w|, γ = k u /
    (1 - k u), u = 2⁻²⁴, where k counts the roundings of a term (Higham, Accuracy and Stability of
    Numerical Algorithms, 2002, section 3.1). So |y|² - 2 y·w is off by γ (|y| + |w|)², and the
    square of what `scores` gives, whose distance d ≤ |y| + |w| is off by γ d, by 3 γ d².
    """
    terms = (len(wanted) + 8) * _ROUNDING
    gamma = terms / (1 - terms)
    starts = np.arange(0, len(y), STEP)
    with np.errstate(over="ignore", invalid="ignore"):
        near = wanted.astype(np.float32)
        length, drift = np.linalg.norm(near.astype(np.float64)), np.linalg.norm(wanted - near)
        np.matmul(y, -2 * near, out=values)
        values += lengths * lengths
        most = (1 + gamma) * np.maximum.reduceat(lengths, starts).astype(np.float64) + length
        # Very small distances are computed from the vector in float64.
        slack[:] = 4 * gamma * most**2 + 2 * drift * (most + drift) + len(wanted) * _UNDERFLOW
    if not np.isfinite(values).all():
        known = np.logical_and.reduceat(np.isfinite(values), starts)
        slack[~known] = np.inf
        values[~np.isfinite(values)] = 0
