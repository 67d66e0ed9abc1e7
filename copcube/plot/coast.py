"""Coastlines of the world, for orientation on maps.

`coast.npy` is made of the countries of Natural Earth at 1:110 million (naturalearthdata.com,
public domain), dissolved into land; what lies along 180° and the South Pole is left out. It
holds hundredths of degrees, longitude and latitude, and a row of -32768 between lines.
"""

from functools import cache
from pathlib import Path

import numpy as np

from copcube.grid import Floats

_BETWEEN = -32768


@cache
def coastlines() -> tuple[Floats, ...]:
    """Return lines of points, (n, 2) float64 degrees east and north, -180 to 180."""
    points = np.load(Path(__file__).with_name("coast.npy"), allow_pickle=False)
    ends = np.flatnonzero(points[:, 0] == _BETWEEN)
    starts = [0, *(ends[:-1] + 1).tolist()]
    return tuple(
        points[start:end] / 100.0 for start, end in zip(starts, ends.tolist(), strict=True)
    )
