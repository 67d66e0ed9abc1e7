"""Major TOM's grid: ids, rows and columns, corners, UTM zones, squares of images.

Rows divide a meridian into ``ceil(π · R / d)`` steps, and the columns of a row its circle of
latitude into ``ceil(2π · R · cos φ / d)``, with R = 6378.137 km, the spacing d (10 km in all
released data) and the latitude φ of the row's southern edge. A cell is named after its corner in
the south-west: ``922D_249L`` is the 922nd row south of the equator and the 249th column west of
Greenwich, ``0U_0R`` the first north and east. There is no ``0D`` and no ``0L``.

Inside copcube row and column are signed numbers, as in the columns ``grid_row_u`` and
``grid_col_r`` of the released files: row -922, column -249.

The images of a cell are squares in UTM that begin 340 m south-west of the corner; 1068 pixels of
10 m, which is 340 m beyond a cell of 10 km on every side.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from copcube.arguments import number
from copcube.errors import GridError
from copcube.grid import Floats, Integers, require_places, whole_numbers
from copcube.projecting import projected

if TYPE_CHECKING:
    from pyproj import Proj

RADIUS = 6378.137
"""Radius of the equator in km."""

BEYOND = 340.0
"""How far an image reaches beyond the corner of its cell, to the south and to the west, in m."""

PIXEL = 10.0
"""Side of a pixel in metres, of the finest bands."""

SIDE = 1068
"""Pixels per side of a cell's image."""


@dataclass(frozen=True)
class Grid:
    """Major TOM's grid of one spacing.

    Parameters
    ----------
    spacing : float
        Largest distance between neighbouring corners in km; 10 in all released data.

    Raises
    ------
    GridError
        If the spacing is not positive or larger than a meridian.

    Examples
    --------
    >>> grid = Grid()
    >>> grid.names([-922], [-249])
    array(['922D_249L'], dtype=object)
    >>> [a.tolist() for a in grid.at([-82.78], [-178.4])]
    [[-922], [-249]]
    """

    spacing: float = 10.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "spacing", number(self.spacing, "spacing", " of km"))
        if not 0 < self.spacing <= np.pi * RADIUS:
            raise GridError(
                f"a grid of spacing {self.spacing} km; expected km between 0 and 20037, such as 10"
            )

    @cached_property
    def n_rows(self) -> int:
        """Rows from pole to pole."""
        return int(np.ceil(np.pi * RADIUS / self.spacing))

    @cached_property
    def step(self) -> float:
        """Height of a row in degrees."""
        return 180.0 / self.n_rows

    @cached_property
    def lowest(self) -> int:
        """Number of the southernmost row; the northernmost is ``lowest + n_rows - 1``."""
        return -(self.n_rows // 2)

    @cached_property
    def _columns(self) -> Integers:
        """Columns of every row, from the southernmost."""
        lat = self.latitude(np.arange(self.lowest, self.lowest + self.n_rows))
        around = 2 * np.pi * RADIUS * np.cos(np.radians(lat)) / self.spacing
        # The southernmost row of an even number lies on the pole: a single cell around it.
        return np.maximum(np.ceil(around), 1).astype(np.int64)

    def latitude(self, row: ArrayLike) -> Floats:
        """Latitude of the southern edge of rows in degrees."""
        return whole_numbers(row, "rows") * 180.0 / self.n_rows

    def columns(self, row: ArrayLike) -> Integers:
        """How many columns rows have.

        Raises
        ------
        GridError
            If there is no such row.
        """
        row = whole_numbers(row, "rows")
        low, high = self.lowest, self.lowest + self.n_rows - 1
        if np.any(outside := (row < low) | (row > high)):
            raise GridError(
                f"row {row[outside].flat[0]} lies outside Major TOM's grid of {self.spacing:g} km, "
                f"whose rows run from {low} to {high}"
            )
        return np.asarray(self._columns[row - low], np.int64)

    def _require(self, row: Integers, col: Integers) -> Integers:
        """Columns of the rows of cells that are there, else an error."""
        n = self.columns(row)
        first = _westernmost(n)
        outside = (col < first) | (col >= first + n)
        if np.any(outside):
            r, c = row[outside].flat[0], col[outside].flat[0]
            low, count = first[outside].flat[0], n[outside].flat[0]
            raise GridError(
                f"column {c} lies outside row {r} of Major TOM's grid, whose columns run from "
                f"{low} to {low + count - 1}"
            )
        return n

    def corner(self, row: ArrayLike, col: ArrayLike) -> tuple[Floats, Floats]:
        """South-western corners of cells.

        Parameters
        ----------
        row, col : array_like
            Signed numbers.

        Returns
        -------
        lat, lon : numpy.ndarray
            Degrees north and east, longitudes -180 to 180; float64.

        Raises
        ------
        GridError
            If a cell is not on the grid.
        """
        r, c = np.broadcast_arrays(whole_numbers(row, "rows"), whole_numbers(col, "columns"))
        n = self._require(r, c)
        return self.latitude(r), c * 360.0 / n

    def centre(self, row: ArrayLike, col: ArrayLike) -> tuple[Floats, Floats]:
        """Middles of cells in latitude and longitude, in degrees, longitudes -180 to 180.

        Raises
        ------
        GridError
            If a cell is not on the grid.
        """
        lat, lon = self.corner(row, col)
        width = 360.0 / self.columns(np.broadcast_arrays(row, col)[0])
        return lat + self.step / 2, (lon + width / 2 + 180) % 360 - 180

    def at(self, lat: ArrayLike, lon: ArrayLike) -> tuple[Integers, Integers]:
        """Cells that hold points.

        A point on an edge belongs to the cell north or east of the edge, so that a corner belongs
        to its own cell. Longitudes wrap: where a row has an odd number of columns, its
        easternmost cell reaches across 180°.

        Parameters
        ----------
        lat, lon : array_like
            Degrees; longitudes in any convention.

        Returns
        -------
        row, col : numpy.ndarray
            Signed numbers, int64.

        Raises
        ------
        GridError
            If a coordinate is not finite or a latitude lies beyond a pole.
        """
        y, x = np.broadcast_arrays(*require_places(lat, lon))
        row = _below(y, 180.0, self.n_rows)
        # An odd number of rows leaves a gap at one pole and reaches beyond the other.
        row = np.clip(row, self.lowest, self.lowest + self.n_rows - 1)
        n = self.columns(row)
        # Wrapped only where it must be: it takes some bits, and a corner has to stay one.
        x = np.where(np.abs(x) <= 180, x, (x + 180) % 360 - 180)
        col = _below(x, 360.0, n)
        first = _westernmost(n)
        return row, (col - first) % n + first

    def names(self, row: ArrayLike, col: ArrayLike) -> NDArray[np.object_]:
        """Ids of cells, such as ``922D_249L``.

        Raises
        ------
        GridError
            If a cell is not on the grid.
        """
        r, c = np.broadcast_arrays(whole_numbers(row, "rows"), whole_numbers(col, "columns"))
        self._require(r, c)
        # Few texts are made, and many joined.
        rows, cols = self._texts
        joined: NDArray[np.object_] = rows[r - self.lowest] + cols[c + len(cols) // 2]
        return joined

    @cached_property
    def _texts(self) -> tuple[NDArray[np.object_], NDArray[np.object_]]:
        """Texts of all rows from the southernmost, with a line below, and of all columns."""
        rows = np.arange(self.lowest, self.lowest + self.n_rows).tolist()
        half = int(self._columns.max()) // 2 + 1
        cols = range(-half, half)
        return (
            np.array([f"{abs(r)}{'U' if r >= 0 else 'D'}_" for r in rows], object),
            np.array([f"{abs(c)}{'R' if c >= 0 else 'L'}" for c in cols], object),
        )

    def parse(self, names: Iterable[str]) -> tuple[Integers, Integers]:
        """Rows and columns of ids.

        Raises
        ------
        GridError
            If a text is not an id of this grid.

        Examples
        --------
        >>> [a.tolist() for a in Grid().parse(["922D_249L", "0U_0R"])]
        [[-922, 0], [-249, 0]]
        """
        rows, cols = self._numbers
        found: list[tuple[int, int]] = []
        for name in names:
            row, _, col = str(name).partition("_")
            try:
                found.append((rows[row], cols[col]))
            except KeyError:
                raise GridError(
                    f"{name!r:.60} is not an id of Major TOM's grid of {self.spacing:g} km; "
                    "expected "
                    "row and column such as '922D_249L' (U north, D south, R east, L west)"
                ) from None
        table = np.array(found, np.int64).reshape(-1, 2)
        self._require(table[:, 0], table[:, 1])
        return table[:, 0], table[:, 1]

    @cached_property
    def _numbers(self) -> tuple[dict[str, int], dict[str, int]]:
        rows, cols = self._texts
        return (
            {text[:-1]: self.lowest + i for i, text in enumerate(rows.tolist())},
            {text: i - len(cols) // 2 for i, text in enumerate(cols.tolist())},
        )

    def cells(self, south: float = -85.0, north: float = 85.0) -> tuple[Integers, Integers]:
        """All cells whose southern edge lies between two latitudes, from the south-west.

        Parameters
        ----------
        south, north : float
            Degrees, inclusive; by default those of the released data.

        Returns
        -------
        row, col : numpy.ndarray
            Signed numbers, row by row from the south, from west to east; int64.
        """
        rows = np.arange(self.lowest, self.lowest + self.n_rows)
        lat = self.latitude(rows)
        rows = rows[(lat >= number(south, "south")) & (lat <= number(north, "north"))]
        n = self.columns(rows)
        first = np.cumsum(n) - n
        return np.repeat(rows, n), np.arange(n.sum()) - np.repeat(first - _westernmost(n), n)

    def utm(self, row: ArrayLike, col: ArrayLike) -> Integers:
        """EPSG codes of the UTM zones of cells, by their corners: 32601 to 32660, 32701 to 32760.

        An image may be in a neighbouring zone if its product was; then the product's zone counts.

        Raises
        ------
        GridError
            If a cell is not on the grid.
        """
        return utm_epsg(*self.corner(row, col))


def _westernmost(n: Integers) -> Integers:
    """Number of the westernmost column of rows with n columns.

    Half of the columns, less one where an odd number has one more in the east. Where the number
    is even the column that begins at 180° is the westernmost, but for some rows (12 of the grid
    of 10 km) in which the code's own rounding puts it at 180°E: its id is then ``624R``, and no
    ``624L`` is in that row.
    """
    half = n // 2
    short = (n % 2 == 0) & (half * (360.0 / n) + -180.0 < 0)
    return np.asarray(short - half, np.int64)


def _below(values: Floats, whole: float, n: int | Integers) -> Integers:
    """Number of the last of the edges ``i · whole / n`` that is not above each value."""
    number = np.floor(values / whole * n)
    # Of an edge itself the division may fall a rounding short.
    number += (number + 1) * whole / n <= values
    number -= number * whole / n > values
    return np.asarray(number, np.int64)


def utm_epsg(lat: ArrayLike, lon: ArrayLike) -> Integers:
    """EPSG codes of the UTM zones of points, with the wider zones of Norway and Svalbard.

    Examples
    --------
    >>> utm_epsg([60, 78, -36], [4, 13, 175.7]).tolist()
    [32632, 32633, 32760]
    """
    y, x = np.broadcast_arrays(np.asarray(lat, np.float64), np.asarray(lon, np.float64))
    zone = np.asarray(np.floor((x + 180) / 6).astype(np.int64) % 60 + 1)
    zone[(y >= 56) & (y < 64) & (x >= 3) & (x < 12)] = 32
    svalbard = (y >= 72) & (y < 84)
    for west, east, code in ((0, 9, 31), (9, 21, 33), (21, 33, 35), (33, 42, 37)):
        zone[svalbard & (x >= west) & (x < east)] = code
    return np.where(y < 0, 32700, 32600) + zone


GRID = Grid()
"""The grid of all released data, which keeps its tables."""


def squares(row: ArrayLike, col: ArrayLike, epsg: ArrayLike) -> tuple[Floats, Floats]:
    """Upper left corners of the images of cells of the 10 km grid, in UTM.

    The images reach `SIDE` pixels of `PIXEL` metres to the east and to the south from there.

    Parameters
    ----------
    row, col : array_like
        Signed numbers, (n,).
    epsg : array_like
        EPSG codes of the zones of the images, (n,).

    Returns
    -------
    left, top : numpy.ndarray
        Metres east and north, (n,) float64.

    Raises
    ------
    GridError
        If a cell is not on the grid, or a code is not that of a UTM zone.
    """
    lat, lon = GRID.corner(row, col)
    east, north = project(lat, lon, whole_numbers(epsg, "EPSG codes"))
    return east - BEYOND, north - BEYOND + SIDE * PIXEL


def project(lat: Floats, lon: Floats, epsg: Integers) -> tuple[Floats, Floats]:
    """UTM coordinates of points, (n, …), each in a zone of its own, (n,): metres east and north.

    Raises
    ------
    GridError
        If a code is not that of a UTM zone.
    """
    return _by_zone(lon, lat, epsg, inverse=False)


def unproject(east: Floats, north: Floats, epsg: Integers) -> tuple[Floats, Floats]:
    """Latitudes and longitudes, -180 to 180, of UTM coordinates; the inverse of `project`."""
    lon, lat = _by_zone(east, north, epsg, inverse=True)
    return lat, lon


def _by_zone(x: Floats, y: Floats, epsg: Integers, *, inverse: bool) -> tuple[Floats, Floats]:
    out_x, out_y = np.empty(np.shape(x)), np.empty(np.shape(x))
    codes = np.unique(epsg).tolist()
    for code in codes:
        mine = epsg == code if len(codes) > 1 else slice(None)
        out_x[mine], out_y[mine] = projected(_zone(code), x[mine], y[mine], inverse=inverse)
    return out_x, out_y


@lru_cache(maxsize=128)
def _zone(code: int) -> "Proj":
    from pyproj import Proj

    south, zone = divmod(code - 32600, 100)
    if south not in (0, 1) or not 1 <= zone <= 60:
        raise GridError(
            f"EPSG:{code} is not a UTM zone; expected EPSG:32601 to 32660 or EPSG:32701 to 32760"
        )
    # By parameters and not by code, which is looked up in a database that may be of another PROJ.
    return Proj(proj="utm", zone=zone, ellps="WGS84", south=bool(south))


def codes_of(texts: Iterable[Any]) -> Integers:
    """EPSG codes of texts such as ``EPSG:32701``.

    Raises
    ------
    GridError
        If a text is something else.
    """
    found = []
    for text in texts:
        name, _, number = str(text).partition(":")
        if name.upper() != "EPSG" or not number.isdecimal():
            raise GridError(f"utm_crs is {text!r:.60}; expected a UTM zone such as 'EPSG:32701'")
        _zone(int(number))
        found.append(int(number))
    return np.array(found, np.int64)
