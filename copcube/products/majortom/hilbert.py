"""Hilbert's curve over the globe: neighbours in a file are neighbours on the ground."""

import numpy as np
from numpy.typing import ArrayLike

from copcube.grid import Integers

_BITS = 16


def hilbert(lat: ArrayLike, lon: ArrayLike) -> Integers:
    """Places along Hilbert's curve of order 16 over the globe, int64.

    Parameters
    ----------
    lat, lon : array_like
        Degrees, longitudes -180 to 180; (n,).

    Examples
    --------
    >>> hilbert([-90, 90], [-180, -180]).tolist()
    [0, 1431655765]
    """
    most = (1 << _BITS) - 1
    x = np.clip((np.asarray(lon, np.float64) + 180) / 360 * most, 0, most).astype(np.int64)
    y = np.clip((np.asarray(lat, np.float64) + 90) / 180 * most, 0, most).astype(np.int64)
    place = np.zeros_like(x)
    # From the coarsest square to the finest, each turned as the curve passes it.
    for bit in range(_BITS - 1, -1, -1):
        right, up = (x >> bit) & 1, (y >> bit) & 1
        place += ((3 * right) ^ up) << (2 * bit)
        flip = (up == 0) & (right == 1)
        x, y = np.where(flip, most - x, x), np.where(flip, most - y, y)
        x, y = np.where(up == 0, y, x), np.where(up == 0, x, y)
    return place
