"""Which cells train, validate and test: at random, or in whole squares of the globe."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from copcube.grid import Floats

Split = Literal["random", "blocks"]
Sampling = Literal["cells", "area"]

UNUSED, TRAIN, VALIDATE, TEST = -1, 0, 1, 2


def sampled(
    areas: Floats, n: int | None, sampling: Sampling, rng: np.random.Generator
) -> NDArray[np.bool_]:
    """Draw some of the cells without replacement; all if there are not more.

    Parameters
    ----------
    areas : numpy.ndarray
        (cell,) areas.
    n : int or None
        How many; None for all.
    sampling : {"cells", "area"}
        Every cell as likely, or in proportion to its area.
    rng : numpy.random.Generator
        What draws.
    """
    chosen = np.zeros(len(areas), bool)
    if n is None or n >= len(areas):
        return ~chosen
    weights = areas / areas.sum() if sampling == "area" else None
    chosen[rng.choice(len(areas), n, replace=False, p=weights)] = True
    return chosen


def parted(
    lat: Floats,
    lon: Floats,
    split: Split,
    block: float,
    shares: Sequence[float],
    rng: np.random.Generator,
) -> NDArray[np.int8]:
    """Divide cells into those that train (0), validate (1) and test (2).

    Parameters
    ----------
    lat, lon : numpy.ndarray
        (cell,) degrees.
    split : {"random", "blocks"}
        Cell by cell, or whole squares of `block` degrees.
    shares : sequence of float
        Of the cells, in this order.
    rng : numpy.random.Generator
        What draws.
    """
    if split == "random":
        unit = np.arange(len(lat))
    else:
        down = ((90 - lat) // block).astype(np.int64)
        along = (lon % 360 // block).astype(np.int64)
        _, unit = np.unique(down * 10_000 + along, return_inverse=True)
    size = np.bincount(unit)
    order = rng.permutation(len(size))
    # The middle of a square decides, so that a large one at a border goes to its nearer side.
    middle = (np.cumsum(size[order]) - size[order] / 2) / len(lat)
    of_unit = np.empty(len(size), np.int8)
    of_unit[order] = np.searchsorted(np.cumsum(shares)[:-1], middle, side="right")
    return of_unit[unit]
