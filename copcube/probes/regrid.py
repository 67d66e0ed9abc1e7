"""From any grid along latitude and longitude to the cells of a cube.

`copcube.era5.merge` takes vectors to coarser grids; here statistics come to the lattice. Along
each axis a cell takes values by index where the grid has nodes of the lattice, the mean over
its extent where the grid is as fine or finer, and else what lies between two nodes, linearly.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Self

import numpy as np
from scipy.sparse import csr_array

from copcube import grid
from copcube.cube.latlon import spatial_dims
from copcube.cube.view import CubeView
from copcube.errors import GridError
from copcube.grid import Floats

if TYPE_CHECKING:
    import xarray as xr

_APART = 1.5
"""Usual spacings beyond which a gap is left open, such as the outside of a region."""
_COVERED = 0.5
"""Share of a cell's extent that must hold values for their mean to be that of the cell."""

How = Literal["by index", "averaged", "interpolated"]


@dataclass(frozen=True, eq=False)
class Regrid:
    """How the values of a grid become those of a cube's cells.

    Parameters
    ----------
    lat, lon : str
        Dimensions of the grid.
    down, along : scipy.sparse.csr_array
        (cells, nodes) weights along latitude and longitude; a row sums to the share of its cell
        that the grid reaches.
    how : {"by index", "averaged", "interpolated"}
        The coarsest that is done along one of the axes.
    """

    lat: str
    lon: str
    down: csr_array
    along: csr_array
    how: How

    @classmethod
    def between(cls, ds: "xr.Dataset | xr.DataArray", view: CubeView) -> Self:
        """Find the weights from a dataset's grid to the cells of a cube.

        Raises
        ------
        CubeError
            If the dataset has no dimensions along latitude and longitude.
        GridError
            If the two have no place in common.
        """
        lat, lon = spatial_dims(ds)
        wanted_y, wanted_x = grid.latitudes()[view.row], grid.longitudes()[view.col]
        down, how_down = _weights(np.asarray(ds[lat], np.float64), wanted_y, circle=False)
        along, how_along = _weights(np.asarray(ds[lon], np.float64), wanted_x, circle=True)
        if not (down.nnz and along.nnz):
            y, x = ds[lat].values, ds[lon].values
            raise GridError(
                f"the statistics reach from {lat} {y.min():g} to {y.max():g} and {lon} "
                f"{x.min():g} to {x.max():g}, where the cube has no cell"
            )
        order: tuple[How, ...] = ("by index", "averaged", "interpolated")
        # A value by index is a mean of one, so that the way of the other axis serves both.
        how = order[max(order.index(how_down), order.index(how_along))]
        return cls(lat, lon, down, along, how)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the cube."""
        return self.down.shape[0], self.along.shape[0]

    def __call__(self, values: Floats) -> Floats:
        """Bring values, (nodes along lat, nodes along lon), to (rows, columns) of the cube.

        A mean is over the values that are there, if they cover half of the cell; between two
        nodes both must be there. NaN elsewhere.
        """
        if self.how == "by index":
            result = np.full(self.shape, np.nan)
            rows, cols = (np.flatnonzero(np.diff(m.indptr)) for m in (self.down, self.along))
            # A row has one node or none, so that the indices are those of the rows that have.
            result[np.ix_(rows, cols)] = values[np.ix_(self.down.indices, self.along.indices)]
            return result
        there = np.isfinite(values)
        total = self._sum(np.where(there, values, 0))
        weight = self._sum(there.astype(np.float64))
        # Half, or all, but for the rounding of shares that sum to it.
        least = (_COVERED if self.how == "averaged" else 1) - 1e-6
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(weight >= least, total / weight, np.nan)

    def _sum(self, values: Floats) -> Floats:
        result: Floats = (self.along @ (self.down @ values).T).T
        return result


def _weights(nodes: Floats, cells: Floats, *, circle: bool) -> tuple[csr_array, How]:
    """Weights of nodes for the centres of cells, (cells, nodes), and what they do."""
    if not np.isfinite(nodes).all() or nodes.size == 0:
        raise GridError("coordinates of the statistics are missing or not finite")
    places = nodes % 360 if circle else nodes
    # A repeated meridian, such as 0° and 360° or nearly so, counts once.
    places, index = np.unique(np.round(places, 6), return_index=True)
    step = float(np.median(np.diff(places))) if len(places) > 1 else grid.STEP
    if circle:
        # Once around and a little more on either side, so that no cell lies at a seam.
        places = np.concatenate([places - 360, places, places + 360])
        index = np.tile(index, 3)
        cells = cells % 360
    shape = len(cells), len(nodes)
    if grid.on_nodes(nodes).all() and step <= grid.STEP + grid.NEAR:
        nearest = _nearest(places, cells)
        same = np.abs(places[nearest] - cells) < grid.NEAR
        rows = np.flatnonzero(same)
        return csr_array((np.ones(len(rows)), (rows, index[nearest[rows]])), shape), "by index"
    if step <= grid.STEP + grid.NEAR:
        return _means(places, index, cells, step, shape, circle=circle), "averaged"
    return _between(places, index, cells, step, shape), "interpolated"


def _around(places: Floats, cells: Floats) -> tuple[np.ndarray, np.ndarray]:
    """Places to the left and to the right of cells; the outermost two for a cell outside."""
    right = np.clip(np.searchsorted(places, cells), 1, max(len(places) - 1, 1))
    right = np.minimum(right, len(places) - 1)
    return np.maximum(right - 1, 0), right


def _nearest(places: Floats, cells: Floats) -> np.ndarray:
    left, right = _around(places, cells)
    return np.where(cells - places[left] <= places[right] - cells, left, right)


def _means(
    places: Floats,
    index: np.ndarray,
    cells: Floats,
    step: float,
    shape: tuple[int, int],
    *,
    circle: bool,
) -> csr_array:
    """Shares of each cell's extent, in area, that the extents of nodes cover."""

    def measure(edges: Floats) -> Floats:
        # Areas go with the difference of longitudes, and with that of the sines of latitudes.
        return edges if circle else np.sin(np.radians(np.clip(edges, -90, 90)))

    low, high = cells - grid.STEP / 2, cells + grid.STEP / 2
    first = np.searchsorted(places + step / 2, low, side="right")
    last = np.searchsorted(places - step / 2, high, side="left")
    count = np.maximum(last - first, 0)
    rows = np.repeat(np.arange(len(cells)), count)
    at = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count - first, count)
    top = np.minimum(high[rows], places[at] + step / 2)
    bottom = np.maximum(low[rows], places[at] - step / 2)
    shared = np.maximum(measure(top) - measure(bottom), 0)
    whole = measure(high) - measure(low)
    return csr_array((shared / whole[rows], (rows, index[at])), shape)


def _between(
    places: Floats, index: np.ndarray, cells: Floats, step: float, shape: tuple[int, int]
) -> csr_array:
    """Linear interpolation; half a step beyond the last node, its own value."""
    left, right = _around(places, cells)
    gap = places[right] - places[left]
    inside = (cells >= places[left]) & (cells <= places[right]) & (gap <= _APART * step)
    share = np.divide(cells - places[left], gap, out=np.zeros_like(cells), where=inside & (gap > 0))
    nearest = _nearest(places, cells)
    near = ~inside & (np.abs(places[nearest] - cells) <= step / 2 + grid.NEAR)
    a, b = np.flatnonzero(inside), np.flatnonzero(near)
    rows = np.concatenate([a, a, b])
    weights = np.concatenate([1 - share[a], share[a], np.ones(len(b))])
    result = csr_array(
        (weights, (rows, np.concatenate([index[left[a]], index[right[a]], index[nearest[b]]]))),
        shape,
    )
    result.eliminate_zeros()  # a node without weight may hold anything
    return result
