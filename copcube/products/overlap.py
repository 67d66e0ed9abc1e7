"""Which cells of ERA5's lattice polygons overlap, and with which share of their areas."""

import numpy as np
from numpy.typing import NDArray

from copcube import grid
from copcube.grid import Floats, Integers

LEAST = 1e-6
"""Smallest share that counts: less is rounding along an edge."""


def overlaps(corners: Floats) -> tuple[Integers, Integers, Floats]:
    """Overlap of small polygons with the cells of the lattice.

    The share is that of the area in degrees, which for polygons of a few kilometres is that of the
    area on the ground, to the change of the cosine of latitude across them (0.2 % at 80°).

    Parameters
    ----------
    corners : numpy.ndarray
        Closed polygons as (longitude, latitude) in degrees, (n, k, 2): convex or not, without
        crossing themselves, each with continuous longitudes, of any turn.

    Returns
    -------
    polygon : numpy.ndarray
        Number of the polygon of every overlap, ascending, (m,) int64.
    cell : numpy.ndarray
        Published id of the cell, (m,) int64.
    share : numpy.ndarray
        Share of the polygon in the cell, (m,) float64. Those of one polygon sum to 1, but for
        what is smaller than `LEAST`.
    """
    lon, lat = corners[..., 0], corners[..., 1]
    # Edges of the lattice lie at odd multiples of 0.125°: numbered, cell j lies between j and j+1.
    half = grid.STEP / 2
    west, east = (np.floor((a + half) / grid.STEP).astype(np.int64) for a in _ends(lon))
    south, north = (np.floor((a + half) / grid.STEP).astype(np.int64) for a in _ends(lat))
    wide, high = east - west + 1, north - south + 1
    number = wide * high
    polygon = np.repeat(np.arange(len(corners)), number)
    within = np.arange(len(polygon)) - np.repeat(np.cumsum(number) - number, number)
    down, along = np.divmod(within, wide[polygon])
    i, j = south[polygon] + down, west[polygon] + along
    share = np.ones(len(polygon))
    # Most polygons lie in one cell, with all of their area.
    several = np.flatnonzero(number[polygon] > 1)
    if len(several):
        share[several] = _shares(corners[polygon[several]], i[several], j[several])
    kept = share > LEAST
    # Latitudes count from the equator northwards; the poles' rows hold what reaches beyond 90°.
    row = np.clip(360 - i[kept], 0, grid.N_LAT - 1)
    return polygon[kept], grid.grid_id(row, j[kept] % grid.N_LON), share[kept]


def _ends(values: Floats) -> tuple[Floats, Floats]:
    low = high = values[:, 0]
    # Column by column: NumPy is slow along a short axis.
    for column in values.T[1:]:
        low, high = np.minimum(low, column), np.maximum(high, column)
    return low, high


def _shares(corners: Floats, i: Integers, j: Integers) -> Floats:
    """Share of each polygon in one cell, given by its numbers northwards and eastwards."""
    # Relative to the cell and in its size, so that nothing cancels. Corners run along the first
    # axis: NumPy is slow along a short last one.
    x, y = (
        np.subtract(corners[..., axis].T, number * grid.STEP - grid.STEP / 2, order="C") / grid.STEP
        for axis, number in ((0, j), (1, i))
    )
    whole = 0.5 * np.abs((x[:-1] * y[1:] - x[1:] * y[:-1]).sum(axis=0))
    inside = _below(x, y, 1.0) - _below(x, y, 0.0)
    return np.asarray(np.clip(np.abs(inside) / whole, 0.0, 1.0))


def _below(x: Floats, y: Floats, top: float) -> NDArray[np.float64]:
    """Signed area of polygons between longitudes 0 and 1 of a cell and below a latitude.

    Green's theorem: the integral of min(latitude, top) along the edges, over longitude. Edges
    towards the east and towards the west cancel where they are both above it.
    """
    ax, bx, ay, by = x[:-1], x[1:], y[:-1], y[1:]
    run = bx - ax
    slope = (by - ay) / np.where(run == 0, 1.0, run)
    clipped = np.clip(x, 0.0, 1.0)
    start, stop = clipped[:-1], clipped[1:]
    begin, end = ay + slope * (start - ax), ay + slope * (stop - ax)
    low, high = np.minimum(begin, end), np.maximum(begin, end)
    # Where an edge passes the top, it is divided there: one part counts as it is, the other as top.
    passes = (low < top) & (high > top)
    under = np.where(passes, (top - low) / np.where(passes, high - low, 1.0), high <= top)
    mean = np.where(passes, (low + top) / 2, (low + high) / 2)
    return np.asarray(((stop - start) * (under * mean + (1 - under) * top)).sum(axis=0))
