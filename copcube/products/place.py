"""Location of a raster's pixels: their centres, cells and areas."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from copcube import grid
from copcube.errors import RowsError
from copcube.grid import Floats, Integers
from copcube.products.majortom.grid import unproject

_SEMI_MAJOR, _ECCENTRICITY = 6378137.0, 0.0066943799901413165
"""Semi-major axis in m and squared eccentricity of WGS 84."""
_UTM_SCALE, _UTM_EAST = 0.9996, 500_000.0


@dataclass(frozen=True)
class Place:
    """Where the pixels of a raster lie.

    Parameters
    ----------
    epsg : int
        4326, or that of a UTM zone.
    left, top : float
        Outer corner of the first pixel, in metres or degrees.
    step_x, step_y : float
        From one pixel to the next along a line, and from one line to the next; `step_y` is
        negative in a raster that is stored from the north.
    """

    epsg: int
    left: float
    top: float
    step_x: float
    step_y: float

    @classmethod
    def of(cls, epsg: int | None, affine: Sequence[float], name: str) -> "Place":
        """Make a place of a code and the six numbers of an affine transform.

        Raises
        ------
        RowsError
            If there is no such reference system here, or the raster is rotated; names it.
        """
        utm = epsg is not None and epsg // 100 in (326, 327) and 1 <= epsg % 100 <= 60
        if epsg is None or not (utm or epsg == 4326):
            found = "none" if epsg is None else f"EPSG:{epsg}"
            raise RowsError(
                f"{name}: its coordinate reference system is {found}; expected a UTM zone on WGS "
                "84 "
                "(EPSG:32601 to 32660, 32701 to 32760) or EPSG:4326"
            )
        a, b, c, d, e, f = (float(number) for number in affine[:6])
        if b or d or not (a > 0 and e and math.isfinite(a + c + e + f)):
            raise RowsError(
                f"{name}: its pixels are placed by the transform {(a, b, c, d, e, f)}; expected "
                "lines from west to east, not rotated"
            )
        return cls(epsg, c, f, a, e)

    def centres(self, rows: slice, cols: slice) -> tuple[Floats, Floats]:
        """Latitudes and longitudes of the centres of pixels, (h, w)."""
        x = self.left + (np.arange(cols.start, cols.stop) + 0.5) * self.step_x
        y = self.top + (np.arange(rows.start, rows.stop) + 0.5) * self.step_y
        return self._degrees(*np.meshgrid(x, y))

    def _degrees(self, x: Floats, y: Floats) -> tuple[Floats, Floats]:
        if self.epsg == 4326:
            return np.clip(y, -90, 90), x
        lat, lon = unproject(x.ravel(), y.ravel(), np.full(x.size, self.epsg))
        return lat.reshape(x.shape), lon.reshape(x.shape)

    def cells(self, rows: slice, cols: slice) -> Integers:
        """Ids of all cells that some pixels of a tile may lie in, and perhaps of a few more."""
        # A pixel more on each side covers what the edges, lines in UTM, are curved by in degrees.
        along, down = (
            np.array([part.start - 1, (part.start + part.stop) / 2, part.stop + 1])
            for part in (cols, rows)
        )
        x, y = self.left + along * self.step_x, self.top + down * self.step_y
        lat, lon = self._degrees(*np.meshgrid(x, y))
        if self.epsg != 4326:
            lon = lon[0, 0] + (lon - lon[0, 0] + 180) % 360 - 180
        north, _ = grid.cell_at(lat.max(), 0)
        south, _ = grid.cell_at(lat.min(), 0)
        half = grid.STEP / 2
        west, east = (math.floor((v + half) / grid.STEP) for v in (lon.min(), lon.max()))
        col = np.unique(np.arange(west, min(east, west + grid.N_LON - 1) + 1) % grid.N_LON)
        row = np.arange(int(north), int(south) + 1)
        return grid.grid_id(np.repeat(row, len(col)), np.tile(col, len(row)))

    def areas(self, rows: slice, cols: slice) -> Floats:
        """Areas of pixels on the ellipsoid in m², (h, 1) or (1, w), which broadcast to (h, w)."""
        if self.epsg == 4326:
            y = self.top + (np.arange(rows.start, rows.stop) + 0.5) * self.step_y
            phi = np.radians(np.clip(y, -90, 90))
            flattened = 1 - _ECCENTRICITY * np.sin(phi) ** 2
            radii = _SEMI_MAJOR**2 * (1 - _ECCENTRICITY) / flattened**2
            degrees = np.radians(self.step_x) * np.radians(abs(self.step_y))
            return np.asarray((radii * np.cos(phi) * degrees)[:, np.newaxis])
        x = self.left + (np.arange(cols.start, cols.stop) + 0.5) * self.step_x - _UTM_EAST
        y_middle = self.top + (rows.start + rows.stop) / 2 * self.step_y
        lat, _ = unproject(np.array([_UTM_EAST]), np.array([y_middle]), np.array([self.epsg]))
        # Scale of the transverse Mercator projection by the distance from its meridian (Snyder,
        # 1987, USGS Professional Paper 1395, equation 8-8 in powers of x): off by 1e-8.
        sine = math.sin(math.radians(float(lat[0]))) ** 2
        curvature = (1 - _ECCENTRICITY * sine) ** 2 / (_SEMI_MAJOR**2 * (1 - _ECCENTRICITY))
        u = (x / _UTM_SCALE) ** 2 * curvature
        scale = _UTM_SCALE * (1 + u / 2 + u**2 / 24)
        return np.asarray((self.step_x * abs(self.step_y) / scale**2)[np.newaxis])
