"""The best of many values, and of distances of which only bounds are known at first."""

import numpy as np
from numpy.typing import NDArray

from copcube.grid import Floats, Integers

_STEP = 8192
"""Values of a block, of which only the least is looked at first."""
_ROUNDING = 2.0**-24
"""Most by which float32 is off, relatively."""
_UNDERFLOW = 2.0**-147
"""Twice what a product may lose that is too small for float32; its square root is 7e-23."""


def lowest(values: NDArray[np.floating], n: int) -> Integers:
    """Positions of the n least values, the least first; of equal ones the first position.

    Infinite values are left out, so that there may be fewer. None may be NaN.
    """
    found = candidates(values, values, n)
    return found[np.argsort(values[found], kind="stable")][:n]


def candidates(lower: NDArray[np.floating], upper: NDArray[np.floating], n: int) -> Integers:
    """Positions, ascending, of all values that may be among the n least.

    Parameters
    ----------
    lower, upper : numpy.ndarray
        Bounds of the values, (m,), none of them NaN. Where the lower one is infinite, the value
        is left out.
    n : int
        How many.
    """
    n = min(n, len(lower))
    if n <= 0:
        return np.empty(0, np.int64)
    least = np.minimum.reduceat(upper, np.arange(0, len(upper), _STEP))
    # Some n values are no larger than the least of the n best blocks, so that most values are
    # compared once and never sorted.
    bound = np.partition(least, n - 1)[n - 1] if n <= len(least) else np.inf
    found = np.flatnonzero(lower <= bound)
    low, bound = lower[found], np.partition(upper[found], n - 1)[n - 1]
    return np.asarray(found[(low <= bound) & (low < np.inf)])


def distance_bounds(
    y: NDArray[np.float32], lengths: Floats, wanted: Floats
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Bounds of the distances of vectors from one, at the cost of one product.

    Parameters
    ----------
    y : numpy.ndarray
        Vectors, (n, dim).
    lengths : numpy.ndarray
        Theirs, (n,), as `copcube.lookup.similar.lengths_of` gives them.
    wanted : numpy.ndarray
        What they are compared with, (dim,) float64.

    Returns
    -------
    lower, upper : numpy.ndarray
        (n,) float32, between which lies what `copcube.lookup.similar.scores` gives. Where the
        product leaves the range of float32 they are 0 and infinite.

    Notes
    -----
    |y - w|² = |y|² - 2 y·w + |w|², and in whatever order a product of float32 is summed, it is
    off by at most γ |y| |w|, γ = dim u / (1 - dim u), u = 2⁻²⁴ (Higham, Accuracy and Stability
    of Numerical Algorithms, 2002, section 3.1). Sums of squares are off by at most γ of
    themselves, the differences that `scores` squares by u.
    """
    near = wanted.astype(np.float32)
    terms = (len(wanted) + 4) * _ROUNDING
    gamma = terms / (1 - terms) * (1 + 4 * terms)
    length, drift = (float(np.linalg.norm(v)) for v in (near.astype(np.float64), wanted - near))
    with np.errstate(over="ignore", invalid="ignore"):
        product = (y @ near).astype(np.float64)
        square = lengths**2 - 2 * product + length**2
        slack = gamma * (lengths + length) ** 2 + len(wanted) * _UNDERFLOW
        lower = np.sqrt(np.maximum(square - slack, 0)) * (1 - gamma) - drift
        upper = np.sqrt(np.maximum(square + slack, 0)) * (1 + gamma) + drift
        unknown = ~np.isfinite(product)
        lower[unknown], upper[unknown] = 0, np.inf
        return lower.astype(np.float32), upper.astype(np.float32)
