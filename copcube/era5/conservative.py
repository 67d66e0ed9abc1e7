"""Area-weighted averaging from cells of the lattice to coarser cells.

The value of a coarse cell is the mean of the filled fine cells, weighted by the area that
they share with it, so that value times covered area sums to the same over both grids: first
order conservative remapping as of Jones (1999, doi:10.1175/1520-0493(1999)127<2204:FASOCR>2.0.CO;2)
for grids along latitude and longitude, where the shared area is the product of a difference
of sines of latitude and a difference of longitudes.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from copcube import grid
from copcube.cube.latlon import LatLon
from copcube.grid import Floats, Integers

_SLIVER = 1e-4
"""Degrees below which an overlap is only rounding of coordinates."""
_SLAB = 64
"""Values of a vector that are in float64 at a time."""


@dataclass(frozen=True, eq=False)
class Overlaps:
    """Overlap of each fine cell with every coarse cell.

    Parameters
    ----------
    down : scipy.sparse.csr_array
        (coarse rows, fine rows) differences of sines.
    along : scipy.sparse.csr_array
        (coarse columns, fine columns) differences of longitude in radians.
    height, width : numpy.ndarray
        The same of the whole coarse rows and columns, (coarse rows,) and (coarse columns,).
    fine_height : numpy.ndarray
        The same of the whole fine rows.
    """

    down: csr_array
    along: csr_array
    height: Floats
    width: Floats
    fine_height: Floats

    @classmethod
    def between(cls, rows: Integers, cols: Integers, coarse: LatLon) -> Self:
        """Find the overlaps of cells of the lattice, in rows and columns, with a coarser grid."""
        north, south = grid.latitude_bounds()[rows].T
        low, high = (edge[:, np.newaxis] for edge in coarse.south_north)
        top, bottom = np.minimum(high, north), np.maximum(low, south)
        sines = np.sin(np.radians(top)) - np.sin(np.radians(bottom))
        down = np.where(top - bottom > _SLIVER, sines, 0)

        # Longitudes are compared as differences from the coarse node, -180 to 180.
        away = (grid.STEP * cols - coarse.x[:, np.newaxis] + 180) % 360 - 180
        east = np.minimum(coarse.dx / 2, away + grid.STEP / 2)
        west = np.maximum(-coarse.dx / 2, away - grid.STEP / 2)
        along = np.where(east - west > _SLIVER, east - west, 0)  # cells are at most 180° wide
        # A coarse cell overlaps few fine ones: sparse products skip all others.
        return cls(
            csr_array(down),
            csr_array(np.radians(along)),
            (np.sin(np.radians(high)) - np.sin(np.radians(low)))[:, 0],
            np.full(len(coarse.x), np.radians(coarse.dx)),
            np.sin(np.radians(north)) - np.sin(np.radians(south)),
        )

    def bands(self) -> Iterator[tuple[Self, slice]]:
        """Overlaps of some coarse rows, and the run of fine rows that they need.

        A band needs at most 45 fine rows, or those of a single coarse row.
        """
        touched = [self.down.indices[a:b] for a, b in pairwise(self.down.indptr)]
        start = 0
        while start < len(touched):
            first, last, stop = len(self.fine_height), 0, start
            for rows in touched[start:]:
                low = min(first, int(rows.min())) if rows.size else first
                high = max(last, int(rows.max()) + 1) if rows.size else last
                if stop > start and high - low > grid.BLOCK:
                    break
                first, last, stop = low, high, stop + 1
            # A band that overlaps nothing still takes one row: kernels need an array.
            fine = slice(first, last) if first < last else slice(0, 1)
            coarse = slice(start, stop)
            yield (
                type(self)(
                    self.down[coarse, fine],
                    self.along,
                    self.height[coarse],
                    self.width,
                    self.fine_height[fine],
                ),
                fine,
            )
            start = stop

    def mean(self, values: NDArray[Any]) -> NDArray[Any]:
        """Area-weighted means of vectors; those with a value that is not finite are missing.

        Parameters
        ----------
        values : numpy.ndarray
            (…, rows, columns, n) floats.

        Returns
        -------
        numpy.ndarray
            (…, coarse rows, coarse columns, n) of the same dtype, NaN where nothing is filled.
        """
        present = np.isfinite(values).all(axis=-1)
        area = self._sum(present[..., np.newaxis])
        result = np.empty((*area.shape[:-1], values.shape[-1]), values.dtype)
        for start in range(0, values.shape[-1], _SLAB):
            part = values[..., start : start + _SLAB]
            total = self._sum(np.where(present[..., np.newaxis], part, 0))
            with np.errstate(invalid="ignore"):  # 0 / 0 where nothing is filled
                result[..., start : start + _SLAB] = total / area
        return result

    def total(self, counts: NDArray[Any]) -> Floats:
        """Sums of counts (…, rows, columns, n), each shared out by area; float64."""
        densities = counts / (self.fine_height * np.radians(grid.STEP))[:, None, None]
        return self._sum(densities)

    def share(self, present: NDArray[np.bool_]) -> NDArray[np.float32]:
        """Share of every coarse cell's area that is filled, from (…, rows, columns, n)."""
        # Rounding may take a full cell a little above 1; hence the clip.
        area = (self.height[:, np.newaxis] * self.width)[..., np.newaxis]
        return np.clip(self._sum(present) / area, 0, 1).astype(np.float32)

    def _sum(self, values: NDArray[Any]) -> Floats:
        *lead, rows, cols, n = values.shape
        shape = self.down.shape[0], self.along.shape[0], n
        result = np.empty((*lead, *shape))
        for index in np.ndindex(*lead):
            flat = values[index].astype(np.float64).reshape(rows, cols * n)
            for i, row in enumerate((self.down @ flat).reshape(-1, cols, n)):
                result[(*index, i)] = self.along @ row
        return result
