"""Grids of latitude and longitude: their spacing and their position on the lattice.

A grid is rectilinear here: one coordinate along latitude, one along longitude. It is either
a selection of nodes of the 0.25° lattice, or a coarser regular grid whose cells reach half a
spacing around their nodes, clipped at the poles (WeatherBench2's ``equiangular with poles``
and ``without poles`` both). Coordinates may be float32, in either order, of any turn; nodes
are distinguished by their index, never by equality of floats.
"""

from collections.abc import Hashable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Self

import numpy as np
from numpy.typing import ArrayLike

from copcube import grid
from copcube.errors import CubeError, GridError
from copcube.grid import Floats, Integers, on_nodes

if TYPE_CHECKING:
    import xarray as xr

CELL = "cell_degrees"
"""Attribute of averaged fields: the size of their cells in degrees of latitude and longitude.
Attribute of coordinates: the size along them, which survives arithmetic on fields."""

_AXES = {
    "latitude": (
        ("lat", "latitude", "lats", "latitudes"),
        ("degrees_north", "degree_north", "degree_n", "degrees_n", "degreen", "degreesn"),
    ),
    "longitude": (
        ("lon", "longitude", "lons", "longitudes"),
        ("degrees_east", "degree_east", "degree_e", "degrees_e", "degreee", "degreese"),
    ),
}
"""Names and units (CF 1.11, sections 4.1 and 4.2) by standard name."""
NAMES = {axis: (*names, f"nav_{names[0]}") for axis, (names, _) in _AXES.items()}
"""Names where latitude and longitude run along other dimensions, as in files of NEMO."""
_REMEDY = "remap it to a regular grid first, such as with cdo remapcon,r1440x721"


@dataclass(frozen=True, eq=False)
class LatLon:
    """The grid of a dataset.

    Parameters
    ----------
    lat, lon : str
        Names of its dimensions.
    y, x : numpy.ndarray
        Coordinates along them, float64 in degrees, in the dataset's order and turn.
    dy, dx : float
        Spacing in degrees, 0.25 for nodes of the lattice.
    transposed : bool
        Whether longitude comes first.
    """

    lat: str
    lon: str
    y: Floats
    x: Floats
    dy: float
    dx: float
    transposed: bool

    @classmethod
    def of(cls, ds: "xr.Dataset") -> Self:
        """Find the grid of a dataset.

        Raises
        ------
        CubeError
            If it has no dimensions along latitude and longitude.
        GridError
            If the grid is curvilinear, reduced, Gaussian or irregular, finer than 0.25°, or
            of 0.25° between the nodes of the lattice.
        """
        _refuse_other_shapes(ds)
        lat, lon = spatial_dims(ds)
        y, x = (np.asarray(ds[name].values, np.float64) for name in (lat, lon))
        for name, values in ((lat, y), (lon, x)):
            if values.size == 0:
                raise GridError(f"{name} has no values: the selection is empty")
        _require_places(lat, lon, y, x)
        down, along = _spacing(lat, y, circle=False), _spacing(lon, x % 360, circle=True)
        # A single row or column has no spacing; it is taken to be that of the other axis.
        dy, dx = down or along or grid.STEP, along or down or grid.STEP
        for name, values, step in ((lat, y, dy), (lon, x, dx)):
            if step < grid.STEP + grid.NEAR and not on_nodes(values).all():
                raise GridError(
                    f"{name} lies between the nodes of the 0.25° lattice, at "
                    f"{', '.join(f'{v:.6g}' for v in values[:3])}…; expected multiples of 0.25 "
                    f"or a coarser grid: {_REMEDY}"
                )
        return cls(lat, lon, y, x, dy, dx, _transposed(ds, lat, lon))

    @classmethod
    def of_size(cls, lat: str, lon: str, y: Floats, x: Floats, size: tuple[float, float]) -> Self:
        """Grid of cells whose size in degrees is known.

        Raises
        ------
        GridError
            If a coordinate is not a place on the globe.
        """
        _require_places(lat, lon, y, x)
        return cls(lat, lon, y, x, *size, transposed=False)

    @property
    def on_lattice(self) -> bool:
        """Whether all points are nodes of the lattice, 0.25° apart."""
        return self.dy < grid.STEP + grid.NEAR and self.dx < grid.STEP + grid.NEAR

    @property
    def south_north(self) -> tuple[Floats, Floats]:
        """Edges of the cells along latitude in degrees, clipped at the poles."""
        return np.clip(self.y - self.dy / 2, -90, 90), np.clip(self.y + self.dy / 2, -90, 90)

    @property
    def areas(self) -> Floats:
        """Area of a cell of every row on the sphere, up to a common factor."""
        # It is proportional to the difference of the sines of the two parallels.
        south, north = np.sin(np.radians(self.south_north))
        return np.asarray(north - south)

    @cached_property
    def origin(self) -> tuple[float, float]:
        """Latitude of row 0 and longitude of column 0."""
        return (90.0, 0.0) if self.on_lattice else (float(self.y.max()), float(self.x[0]))

    @cached_property
    def columns(self) -> int:
        """Columns of the whole circle."""
        # A little is subtracted first, since a rounded spacing would give one column too many.
        return int(np.ceil(360 / self.dx - grid.NEAR))

    @property
    def closed(self) -> bool:
        """Whether columns meet again after a turn, as 1.5° do and 0.7° do not."""
        return abs(self.columns * self.dx - 360) < self.dx / 2

    @cached_property
    def _positions(self) -> tuple[Integers, Integers]:
        """Positions in the dataset by row and by column, -1 where there is none."""
        down = np.rint((self.origin[0] - self.y) / self.dy).astype(np.int64)
        along = np.rint((self.x - self.origin[1]) % 360 / self.dx).astype(np.int64)
        rows = first_positions(down, int(down.max()) + 1)
        return rows, first_positions(along % self.columns, self.columns)

    def located(self, row: Integers, col: Integers) -> tuple[Integers, Integers]:
        """Positions in the dataset of rows and columns of any turn; -1 outside."""
        rows, cols = self._positions
        i = np.where((row >= 0) & (row < len(rows)), rows[np.clip(row, 0, len(rows) - 1)], -1)
        return i, cols[col % self.columns]

    def cells_at(self, lat: ArrayLike, lon: ArrayLike) -> tuple[Integers, Integers]:
        """Find the cells that hold points, by the half-open rule of `copcube.grid`.

        Parameters
        ----------
        lat, lon : array_like
            Degrees north and east, any turn.

        Returns
        -------
        i, j : numpy.ndarray
            int64 positions along latitude and longitude in the dataset; -1 where it does not
            reach.

        Raises
        ------
        GridError
            If a point is not on the globe.
        """
        row, col = grid.cell_at(lat, lon)
        if not self.on_lattice:
            north, west = self.origin
            down = (north + self.dy / 2 - np.asarray(lat, np.float64)) / self.dy
            # Without nodes at the poles, the poles themselves lie on the edge of the last rows.
            row = np.floor(down).astype(np.int64)
            row = row + (north - row * self.dy > 90) - (north - row * self.dy < -90)
            along = (np.asarray(lon, np.float64) - west + self.dx / 2) % 360 / self.dx
            col = np.floor(along).astype(np.int64)
        return self.located(row, col)

    def corners(self, lat: Floats, lon: Floats) -> list[tuple[Integers, Integers, Floats]]:
        """Find the four nodes around points, with their weights in bilinear interpolation.

        Returns
        -------
        list of (i, j, weight)
            Positions as of `cells_at`, and the weights, which sum to 1 over the four.
        """
        down = (self.origin[0] - lat) / self.dy
        # From half a column west of the first, where its cells begin, in the grid's turn.
        along = ((lon - self.origin[1] + self.dx / 2) % 360 - self.dx / 2) / self.dx
        row, col = (np.floor(at).astype(np.int64) for at in (down, along))
        found = []
        for r, by_row in ((row, 1 - (down - row)), (row + 1, down - row)):
            for c, by_col in ((col, 1 - (along - col)), (col + 1, along - col)):
                found.append((*self.located(r, c), by_row * by_col))
        return found

    def __str__(self) -> str:
        return f"{len(self.y)} × {len(self.x)} grid of {self.dy:.4g}° × {self.dx:.4g}°"


def cell_size(ds: "xr.Dataset", name: str, lat: str, lon: str) -> tuple[float, float] | None:
    """Find the size of a dataset's cells, in degrees of latitude and longitude.

    Nodes of many coarser grids are nodes of the lattice too, so spacing cannot distinguish means
    over coarser cells from a thinned lattice. The attribute `CELL` of the vectors does, or else
    that of the coordinates, or else their bounds.

    Parameters
    ----------
    ds : xarray.Dataset
        A cube or a reduction.
    name : str
        The variable with its vectors.
    lat, lon : str
        Names of the dimensions along latitude and longitude.

    Returns
    -------
    (float, float) or None
        None if the cells are off the lattice and only their spacing is known.

    Raises
    ------
    GridError
        If they may be either cells of the lattice or coarser ones.
    """
    y, x = (np.asarray(ds[dim].values, np.float64) for dim in (lat, lon))
    down, along = _gaps(y, circle=False), _gaps(x % 360, circle=True)
    least = [float(gaps.min(initial=np.inf)) for gaps in (down, along)]

    def possible(size: tuple[float, float]) -> bool:
        # Later interpolation gives closer nodes: cells do not overlap.
        return all(0 < s < gap + grid.NEAR for s, gap in zip(size, least, strict=True))

    for stated in (ds[name].attrs.get(CELL), _along(ds, lat, lon, least)):
        if stated is not None and possible(size := (float(stated[0]), float(stated[1]))):
            return size
    if not (on_nodes(y).all() and on_nodes(x).all()):
        return None
    if min(least) < grid.STEP + grid.NEAR or not all(map(_in_steps, (down, along))):
        return grid.STEP, grid.STEP
    bounded = _bounded(ds, lat, lon)
    if bounded is not None and possible(bounded):
        return bounded
    raise GridError(
        f"{lat} and {lon} are spaced by {least[0]:g}° and {least[1]:g}° on nodes of the 0.25° "
        "lattice, and it is not known whether the cells are that large or a selection of cells of "
        f"0.25°: set ds.{name}.attrs['{CELL}'] = [{least[0]:g}, {least[1]:g}] or = [0.25, 0.25]"
    )


def _gaps(degrees: Floats, *, circle: bool) -> Floats:
    """Ascending gaps between places along a line, or along a circle except the widest."""
    places = np.sort(degrees)
    gaps = np.diff(places, append=places[0] + 360) if circle else np.diff(places)
    gaps = np.sort(gaps[gaps > grid.NEAR])
    # The widest gap is what a region leaves out, or the seam of the globe.
    return gaps[:-1] if circle else gaps


def _in_steps(gaps: Floats) -> bool:
    """Whether all gaps are multiples of the smallest, as on a regular grid or a part of one."""
    steps = gaps / gaps.min(initial=np.inf)
    return len(gaps) > 1 and bool((np.abs(steps - np.rint(steps)) < grid.NEAR).all())


def _along(ds: "xr.Dataset", lat: str, lon: str, least: list[float]) -> tuple[float, float] | None:
    """Size of cells by the attributes of their coordinates."""
    sizes = [ds[dim].attrs.get(CELL) for dim in (lat, lon)]
    stated = [float(size) for size in sizes if size is not None]
    if not stated:
        return None
    # One of the two may have been recomputed, as when longitudes are shifted.
    height, width = (
        float(size) if size is not None else gap if np.isfinite(gap) else stated[0]
        for size, gap in zip(sizes, least, strict=True)
    )
    return height, width


def _bounded(ds: "xr.Dataset", lat: str, lon: str) -> tuple[float, float] | None:
    """Size of cells by the bounds of their coordinates, if both have some."""
    sizes = []
    for dim in (lat, lon):
        bounds = str(ds[dim].attrs.get("bounds", ds[dim].encoding.get("bounds", f"{dim}_bnds")))
        if bounds not in ds.variables or ds[bounds].ndim != 2 or dim not in ds[bounds].dims:
            return None
        edges = ds[bounds].transpose(dim, ...).values
        if edges.shape[1] != 2 or edges.dtype.kind != "f" or np.isnan(edges).all():
            return None
        # Cells at the poles are half as high; a reindexed dataset has no bounds for new places.
        sizes.append(float(np.nanmax(np.abs(edges[:, 1] - edges[:, 0]))))
    return sizes[0], sizes[1]


def _require_places(lat: str, lon: str, y: Floats, x: Floats) -> None:
    for name, values in ((lat, y), (lon, x)):
        if not np.isfinite(values).all():
            raise GridError(f"{name} has {values.size} values, not all of them finite")
    if np.abs(y).max() > 90 + grid.NEAR:
        raise GridError(f"{lat} reaches {y[np.abs(y).argmax()]:.6g}; expected degrees, -90 to 90")


def first_positions(index: Integers, size: int) -> Integers:
    """First position of every row or column of the lattice in an index; -1 if absent."""
    where = np.full(size, -1, np.int64)
    # Written from the end, so that the first of several positions remains.
    where[index[::-1]] = np.arange(len(index))[::-1]
    return where


def sole_positions(index: Integers, size: int, name: str) -> Integers:
    """As `first_positions`; raise GridError, naming the axis, if a place is repeated."""
    if len(np.unique(index)) < len(index):
        raise GridError(
            f"{name} has {len(index)} values on {len(np.unique(index))} places of the lattice; "
            "expected each once: drop repeated ones, such as 360° beside 0°"
        )
    return first_positions(index, size)


def first_alike(degrees: ArrayLike) -> Integers:
    """For every latitude or longitude, the first position of its place.

    Examples
    --------
    >>> first_alike([0, 120, 240, 360]).tolist(), first_alike([90, 0, -90]).tolist()
    ([0, 1, 2, 0], [0, 1, 2])
    """
    places = np.round(np.asarray(degrees, np.float64), 6) % 360
    _, first, which = np.unique(places, return_index=True, return_inverse=True)
    return np.asarray(first[which], np.int64)


def reach(lon: ArrayLike) -> tuple[float, float]:
    """Westernmost and easternmost longitude.

    For a region across the seam of its longitudes, such as 359.75, 0 and 0.25, minimum and maximum
    would span nearly the whole globe: the result then begins west of 0, -0.25 to 0.25.

    Examples
    --------
    >>> reach([359.75, 0, 0.25]), reach(np.arange(-180, 180, 0.25)), reach([10, 5])
    ((-0.25, 0.25), (-180.0, 179.75), (5.0, 10.0))
    """
    x = np.asarray(lon, np.float64)
    places = np.unique(x % 360)
    last = grid.widest_gap(places, 360)
    west, east = float(places[(last + 1) % len(places)]), float(places[last])
    if not (east - west) % 360 + grid.NEAR < x.max() - x.min() < 360 - grid.NEAR:
        return float(x.min()), float(x.max())
    return west - 360 if west > east else west, east


def spatial_dims(ds: "xr.Dataset | xr.DataArray") -> tuple[str, str]:
    """Names of the dimensions along latitude and longitude.

    Parameters
    ----------
    ds : xarray.Dataset or xarray.DataArray
        With a one-dimensional coordinate along each: with the standard name or units of CF,
        or named lat, latitude, lon or longitude in upper or lower case.

    Returns
    -------
    lat, lon : str

    Raises
    ------
    CubeError
        If one is missing or there are several.
    GridError
        If one holds no numbers.
    """
    names_of_both = []
    for axis, (names, units) in _AXES.items():
        candidates = [
            str(dim)
            for dim in ds.dims
            if dim in ds.coords
            and (
                ds[dim].attrs.get("standard_name") == axis
                or str(ds[dim].attrs.get("units", "")).lower() in units
                or str(dim).lower() in names
            )
        ]
        # Two candidates are refused too: choosing one would be a guess.
        if len(candidates) != 1:
            raise CubeError(
                f"expected one dimension of {axis} with its coordinate, found "
                f"{' and '.join(candidates) or 'none'} among "
                f"{', '.join(map(str, ds.dims)) or 'no dims'}; name it {names[0]} or give its "
                f"coordinate the standard_name {axis} (a selection by one number drops a "
                "dimension: select by a list or a slice)"
            )
        if (kind := ds[candidates[0]].dtype).kind not in "iuf":
            raise GridError(f"{candidates[0]} holds {kind} values; expected degrees as numbers")
        names_of_both.append(candidates[0])
    return names_of_both[0], names_of_both[1]


def _spacing(name: str, degrees: Floats, *, circle: bool) -> float | None:
    """Spacing of coordinates along a line or a circle; None for a single one.

    The circle is open at its widest gap: what a region leaves out is not a spacing.
    """
    gaps = _gaps(degrees, circle=circle)
    if gaps.size == 0:
        return None
    least, greatest = float(gaps[0]), float(gaps[-1])
    if abs(least - grid.STEP) < grid.NEAR and on_nodes(degrees).all():
        # A selection of nodes, even an uneven one, is still on the lattice.
        return grid.STEP
    if greatest - least > grid.NEAR:
        raise GridError(
            f"{name} is spaced by {least:.6g}° to {greatest:.6g}°, as on a Gaussian or irregular "
            f"grid; expected a regular one: {_REMEDY}, or select places after merging"
        )
    if least < grid.STEP - grid.NEAR:
        raise GridError(
            f"{name} is spaced by {least:.6g}°; embeddings are not finer than 0.25°: bring the "
            "dataset to 0.25° or coarser first, such as with cdo remapcon,r1440x721"
        )
    return float(gaps.mean())


def _refuse_other_shapes(ds: "xr.Dataset") -> None:
    """Refuse grids whose latitude and longitude do not run along their own dimensions."""

    def along(axis: str) -> tuple[Hashable, ...] | None:
        for name, variable in ds.variables.items():
            if (
                variable.attrs.get("standard_name") == axis or str(name).lower() in NAMES[axis]
            ) and variable.dims != (name,):
                return variable.dims
        return None

    lat, lon = along("latitude"), along("longitude")
    if not lat or not lon or any(name in ds.indexes for name in NAMES["latitude"]):
        return
    if lat == lon and len(lat) == 1:
        raise GridError(
            f"latitude and longitude both run along {lat[0]!r} ({ds.sizes[lat[0]]:,} points), as "
            "on a reduced Gaussian or unstructured grid; expected a regular one: retrieve the "
            f"data with grid 0.25/0.25, or {_REMEDY}"
        )
    if len(lat) > 1:
        raise GridError(
            f"latitude and longitude are functions of {' and '.join(map(repr, lat))}, as on a "
            f"curvilinear or rotated grid; expected a regular one: {_REMEDY}"
        )
    raise GridError(
        f"latitude runs along {lat[0]!r} and longitude along {lon[0]!r}; expected dimensions with "
        f"their own names: swap_dims({{{lat[0]!r}: 'latitude', {lon[0]!r}: 'longitude'}})"
    )


def _transposed(ds: "xr.Dataset", lat: str, lon: str) -> bool:
    """Whether longitude comes first in the first variable that has both."""
    for variable in ds.data_vars.values():
        dims = list(variable.dims)
        if lat in dims and lon in dims:
            return dims.index(lon) < dims.index(lat)
    return False
