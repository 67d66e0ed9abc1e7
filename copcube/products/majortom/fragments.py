"""Fragments of a cell's image: where they begin, their footprints on the ground.

An image of 1068 pixels is divided into 5 × 5 fragments of 224, or 3 × 3 of 384, as
``grid_cell_fragment.py`` of Major TOM does it. Fragments are counted row by row from the upper
left; the box of one is ``[x0, y0, x1, y1]``: columns x and rows y of the image, from its upper
left, ends excluded. Fragments of other sizes may leave a few pixels between them, as they do there.

Major TOM's embedder (at f7078cd, and as its notebook 05 shows) takes the row of a fragment for
its column and the other way round, in the box and hence in the footprint: they are
**transposed**, up to 8.4 km off inside the cell. `Fragmentation.boxes` gives either.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from copcube.arguments import whole_number
from copcube.errors import OptionError
from copcube.grid import Floats, Integers
from copcube.products.majortom.grid import PIXEL, SIDE, unproject

OVERLAP = 0.1
"""Overlap of neighbouring fragments that is aimed at, as a share of their side."""


@dataclass(frozen=True)
class Fragmentation:
    """How a square image is divided into fragments.

    Parameters
    ----------
    size : int
        Pixels per side of a fragment, such as 224 or 384.
    image : int
        Pixels per side of the image.

    Raises
    ------
    OptionError
        If a fragment is larger than the image, or has no pixel.

    Examples
    --------
    >>> Fragmentation(224).starts.tolist(), Fragmentation(384).starts.tolist()
    ([0, 211, 422, 633, 844], [0, 342, 684])
    """

    size: int = 224
    image: int = SIDE

    def __post_init__(self) -> None:
        for name in ("size", "image"):
            object.__setattr__(self, name, whole_number(getattr(self, name), name, 1))
        if self.size > self.image:
            raise OptionError(
                f"fragments of {self.size} pixels of images of {self.image}; expected from 1 to "
                f"{self.image}, such as 224 or 384"
            )

    @property
    def starts(self) -> Integers:
        """First pixel of the fragments along one side, (k,) int64."""
        rest = self.image - self.size
        if rest == 0:
            return np.zeros(1, np.int64)
        # Python rounds halves to even, as NumPy does there.
        steps = max(1, round(rest / (self.size - OVERLAP * self.size)))
        stride = self.size - int(np.ceil(self.size - rest / steps))
        starts = stride * np.arange(steps + 1)
        # What the strides leave at the border is covered by shifting the last one to it.
        starts[-1] = rest
        return starts

    def __len__(self) -> int:
        return len(self.starts) ** 2

    def boxes(self, *, transposed: bool = False) -> Integers:
        """Boxes ``[x0, y0, x1, y1]`` of the fragments, row by row, (k², 4) int64.

        Parameters
        ----------
        transposed : bool
            Whether x is the row and y the column, as in the released files.
        """
        down, along = (a.ravel() for a in np.meshgrid(self.starts, self.starts, indexing="ij"))
        x, y = (down, along) if transposed else (along, down)
        return np.stack([x, y, x + self.size, y + self.size], axis=1)


@dataclass(frozen=True)
class Footprints:
    """Where fragments lie.

    Parameters
    ----------
    utm : numpy.ndarray
        Corners as (east, north) in metres, (n, 5, 2): from the north-east clockwise, the first
        again at the end, as in the released files.
    corners : numpy.ndarray
        The same as (longitude, latitude) in degrees, (n, 5, 2). Longitudes of one footprint are
        continuous: across 180° they continue beyond it.
    lat, lon : numpy.ndarray
        Centroid in the plane of longitude and latitude, (n,); longitudes -180 to 180.
    """

    utm: Floats
    corners: Floats
    lat: Floats
    lon: Floats


def footprints(left: Floats, top: Floats, epsg: Integers, boxes: NDArray[np.integer]) -> Footprints:
    """Footprints of fragments, computed from their boxes.

    Parameters
    ----------
    left, top : numpy.ndarray
        Upper left corner of the image of each, in metres, (n,); see `squares`.
    epsg : numpy.ndarray
        EPSG code of its UTM zone, (n,).
    boxes : numpy.ndarray
        Its box, (n, 4). Transposed boxes give transposed footprints.

    Raises
    ------
    GridError
        If a code is not that of a UTM zone.
    """
    x, y = _corners(left, top, boxes)
    corners = _in_degrees(x, y, epsg)
    centre = _centroids(corners)
    return Footprints(_closed(x, y), corners, centre[:, 1], (centre[:, 0] + 180) % 360 - 180)


def outlines(left: Floats, top: Floats, epsg: Integers, boxes: NDArray[np.integer]) -> Floats:
    """`Footprints.corners` alone, of what `footprints` takes."""
    return _in_degrees(*_corners(left, top, boxes), epsg)


def _corners(left: Floats, top: Floats, boxes: NDArray[np.integer]) -> tuple[Floats, Floats]:
    """Metres east and north of the four corners, (n, 4) each."""
    west, north, east, south = (boxes * PIXEL).T
    x = np.stack([east, east, west, west], axis=1) + left[:, np.newaxis]
    y = top[:, np.newaxis] - np.stack([north, south, south, north], axis=1)
    return x, y


def _in_degrees(x: Floats, y: Floats, epsg: Integers) -> Floats:
    lat, lon = unproject(x, y, epsg)
    return continuous(_closed(lon, lat))


def continuous(corners: Floats) -> Floats:
    """Polygons as `Footprints.corners`, in place: their longitudes continue across 180°."""
    lon = corners[..., 0]
    east = lon - lon[:, :1] + 180
    # The remainder of what lies within is itself, and slow to find.
    if east.size and not 0 <= east.min() <= east.max() < 360:
        east %= 360
    corners[..., 0] = lon[:, :1] + (east - 180)
    return corners


def _closed(x: Floats, y: Floats) -> Floats:
    """Polygons of four corners, the first again at the end, (n, 5, 2)."""
    corners = np.empty((len(x), 5, 2))
    corners[:, :4, 0], corners[:, :4, 1] = x, y
    corners[:, 4] = corners[:, 0]
    return corners


def _centroids(corners: Floats) -> Floats:
    """Centroids (n, 2) of closed polygons (n, k, 2) in the plane."""
    origin = corners[:, :1]
    a, b = (corners - origin)[:, :-1], (corners - origin)[:, 1:]
    cross = a[..., 0] * b[..., 1] - b[..., 0] * a[..., 1]
    moment = ((a + b) * cross[..., np.newaxis]).sum(axis=1)
    return np.asarray(origin[:, 0] + moment / (3 * cross.sum(axis=1, keepdims=True)))
