"""Dividing cells into training, validation and test, at random or in squares of the globe."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from copcube.errors import CubeError
from copcube.grid import Floats, squares

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
        Cell by cell, or whole squares.
    block : float
        Side of a square, degrees.
    shares : sequence of float
        Of the cells, in this order.
    rng : numpy.random.Generator
        What draws.
    """
    if split == "random":
        unit = np.arange(len(lat))
    else:
        down, along = squares(lat, lon, block)
        # The finest squares are 1440 in a row, so that each gets a number of its own.
        _, unit = np.unique(down * 10_000 + along, return_inverse=True)
    size = np.bincount(unit)
    order = rng.permutation(len(size))
    # The middle of a square decides, so that a large one at a border goes to its nearer side.
    middle = (np.cumsum(size[order]) - size[order] / 2) / len(lat)
    of_unit = np.empty(len(size), np.int8)
    of_unit[order] = np.searchsorted(np.cumsum(shares)[:-1], middle, side="right")
    return of_unit[unit]


def divided(
    places: tuple[Floats, Floats, Floats],
    seeds: Sequence[int],
    n: int | None,
    sampling: Sampling,
    split: Split,
    block: float,
    shares: Sequence[float],
) -> tuple[NDArray[np.int8], NDArray[np.bool_]]:
    """Draw cells and divide them, for every seed.

    Parameters
    ----------
    places : tuple of numpy.ndarray
        (cell,) degrees north and east, and areas.
    seeds : sequence of int
        Of NumPy's generators.
    n, sampling, split, block, shares
        As for `sampled` and `parted`.

    Returns
    -------
    part_of : numpy.ndarray
        (seed, cell) part, or -1 of those that were not drawn.
    unseen : numpy.ndarray
        (seed, cell) whether a cell neither trains nor validates, nor lies in such a square.
    """
    lat, lon, areas = places
    part_of = np.full((len(seeds), len(lat)), UNUSED, np.int8)
    unseen = np.empty(part_of.shape, bool)
    for s, seed in enumerate(seeds):
        rng = np.random.default_rng(seed)
        drawn = sampled(areas, n, sampling, rng)
        if split == "random":
            part_of[s, drawn] = parted(lat[drawn], lon[drawn], split, block, shares, rng)
            unseen[s] = (part_of[s] == UNUSED) | (part_of[s] == TEST)
        else:
            # A cell that was not drawn may still lie beside one that trains.
            whole = parted(lat, lon, split, block, shares, rng)
            part_of[s, drawn] = whole[drawn]
            unseen[s] = whole == TEST
    return part_of, unseen


def refuse_empty(part_of: NDArray[np.int8], split: Split, shares: Sequence[float]) -> None:
    """Refuse a division that leaves a part with too few cells.

    Raises
    ------
    CubeError
        If one has fewer than 5.
    """
    least = min(int((one == part).sum()) for one in part_of for part in (TRAIN, VALIDATE, TEST))
    if least < 5:
        remedy = "smaller blocks (block), " if split == "blocks" else ""
        raise CubeError(
            f"a part has only {least} cells; expected 5 or more each to train, validate and test: "
            f"choose {remedy}other shares than {', '.join(f'{s:.3g}' for s in shares)}, or "
            "more cells"
        )
