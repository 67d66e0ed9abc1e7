"""ERA5's 0.25° lattice: cell ids, rows and columns, coordinates, bounds, areas, blocks.

The lattice has 721 × 1440 nodes; a cell is centred on its node and reaches ±0.125°.
Inside copcube there is one order, ERA5's own: row 0 is 90°N and rows go south, column 0
is 0°E and columns go east, up to 359.75°.

Published ids count differently. Copernicus-Pretrain numbers its cells from the *south*
pole and from 180°W: ``grid_id = i·1440 + j`` with ``lat = -90 + i/4`` and
``lon = -180 + j/4`` (``sample_era5_grids_land.ipynb`` of the Copernicus-FM repository;
holds for the published ids 0772176, 0906994 and 0200599). Only this module converts.

A point belongs to the cell whose half-open box holds it, closed on the north and west:
``lat in (node - 0.125, node + 0.125]`` and ``lon in [node - 0.125, node + 0.125)``. The
poles belong to rows 0 and 720, longitudes wrap, so 179.875…180 lies in the cell centred
on 180 and -180 is the same meridian as 180.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from copcube.arguments import as_given, as_whole, number
from copcube.errors import GridError, OptionError, in_a_line

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

N_LAT = 721
N_LON = 1440
STEP = 0.25
BLOCK = 45
"""Rows and columns of a block: the chunk of a cube, its unit of writing."""

NEAR = 1e-3
"""Degrees within which coordinates agree: 30 times the rounding of float32 at 360°."""

WGS84 = (
    'GEOGCRS["WGS 84",DATUM["World Geodetic System 1984",ELLIPSOID["WGS 84",6378137,'
    '298.257223563,LENGTHUNIT["metre",1]]],PRIMEM["Greenwich",0,ANGLEUNIT["degree",'
    '0.0174532925199433]],CS[ellipsoidal,2],AXIS["geodetic latitude (Lat)",north,ORDER[1],'
    'ANGLEUNIT["degree",0.0174532925199433]],AXIS["geodetic longitude (Lon)",east,ORDER[2],'
    'ANGLEUNIT["degree",0.0174532925199433]],ID["EPSG",4326]]'
)
"""Well-known text of WGS 84. The code EPSG:4326 needs PROJ's database, which on many machines
belongs to another installation and version; the text needs none."""

_ID_TEXT = re.compile(r"(\d{7})_(-?\d{1,3}\.\d{2})_(-?\d{1,3}\.\d{2})", re.ASCII)


def latitudes() -> NDArray[np.float64]:
    """Node latitudes, (721,) float64 in degrees north, 90 to -90; exact multiples of 0.25."""
    return 90.0 - STEP * np.arange(N_LAT, dtype=np.float64)


def longitudes() -> NDArray[np.float64]:
    """Node longitudes, (1440,) float64 in degrees east, 0 to 359.75; exact multiples of 0.25."""
    return STEP * np.arange(N_LON, dtype=np.float64)


def latitude_bounds() -> NDArray[np.float64]:
    """Northern and southern edge of every row, (721, 2) float64, clipped at the poles."""
    lat = latitudes()
    return np.clip(np.stack([lat + STEP / 2, lat - STEP / 2], axis=1), -90, 90)


def longitude_bounds() -> NDArray[np.float64]:
    """Western and eastern edge of every column, (1440, 2) float64, from -0.125 to 359.875."""
    lon = longitudes()
    return np.stack([lon - STEP / 2, lon + STEP / 2], axis=1)


def areas() -> NDArray[np.float64]:
    """Area of one cell of every row on the unit sphere.

    Returns
    -------
    numpy.ndarray
        (721,) float64 in steradians: ``(sin(north edge) - sin(south edge)) · 0.25°``.
        Over all cells they sum to 4π; the polar half-cells keep their real area.
    """
    north, south = np.sin(np.radians(latitude_bounds())).T
    # The band formula, not cos(lat): exact, and not zero at the poles.
    return np.asarray((north - south) * np.radians(STEP), dtype=np.float64)


@overload
def row_col(grid_id: int) -> tuple[int, int]: ...
@overload
def row_col(
    grid_id: NDArray[np.integer],
) -> tuple[NDArray[np.int64], NDArray[np.int64]]: ...
def row_col(grid_id):  # type: ignore[no-untyped-def]
    """Row and column, in ERA5's order, of published cell ids.

    Parameters
    ----------
    grid_id : int or integer array
        Published ids, 0 to 1,038,239, counted from the south pole and 180°W.

    Returns
    -------
    row, col : int or int64 array

    Raises
    ------
    GridError
        If an id lies outside the lattice.

    Examples
    --------
    >>> row_col(772176)  # 44°N, 96°W
    (184, 1056)
    """
    # For example for each cell of a table: NumPy takes twenty times as long for a single number.
    if type(grid_id) is int and 0 <= grid_id < N_LAT * N_LON:
        return N_LAT - 1 - grid_id // N_LON, (grid_id % N_LON + N_LON // 2) % N_LON
    ids = whole_numbers(grid_id, "cell ids")
    if ids.size and (ids.min() < 0 or ids.max() >= N_LAT * N_LON):
        bad = ids[(ids < 0) | (ids >= N_LAT * N_LON)].flat[0]
        raise GridError(f"cell id {bad} lies outside the lattice; ids run from 0 to 1038239")
    row, col = N_LAT - 1 - ids // N_LON, (ids % N_LON + N_LON // 2) % N_LON
    return (int(row), int(col)) if ids.ndim == 0 else (row, col)


@overload
def grid_id(row: int, col: int) -> int: ...
@overload
def grid_id(row: NDArray[np.integer], col: NDArray[np.integer]) -> NDArray[np.int64]: ...
def grid_id(row, col):  # type: ignore[no-untyped-def]
    """Published cell id of a row and column in ERA5's order; the inverse of `row_col`.

    Raises
    ------
    GridError
        If a row or column lies outside the lattice.

    Examples
    --------
    >>> grid_id(184, 1056)
    772176
    """
    r, c = whole_numbers(row, "rows"), whole_numbers(col, "columns")
    if np.any((r < 0) | (r >= N_LAT) | (c < 0) | (c >= N_LON)):
        raise GridError(f"row {row}, column {col} lies outside the 721 × 1440 lattice")
    ids = (N_LAT - 1 - r) * N_LON + (c + N_LON // 2) % N_LON
    return int(ids) if ids.ndim == 0 else ids


def published_column(col: NDArray[np.integer]) -> NDArray[np.int64]:
    """Columns of the published map that are columns in ERA5's order, and back.

    The published map (``embed_map_310k``) runs from 90°N as ERA5 does, so its rows are ours,
    but from 180°W: half a turn away, which is its own inverse.

    Examples
    --------
    >>> published_column(np.array([0, 720, 1439])).tolist()
    [720, 0, 719]
    """
    return (whole_numbers(col, "columns") + N_LON // 2) % N_LON


def centre(grid_id: int) -> tuple[float, float]:
    """Centre of a cell as (lat, lon) in degrees, longitude in [-180, 180) as published.

    Examples
    --------
    >>> centre(772176)
    (44.0, -96.0)
    """
    row, col = row_col(grid_id)
    return 90.0 - STEP * row, (STEP * col + 180.0) % 360.0 - 180.0


def cell_at(lat: ArrayLike, lon: ArrayLike) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Row and column, in ERA5's order, of the cells that hold points.

    Parameters
    ----------
    lat : array_like
        Degrees north, -90 to 90.
    lon : array_like
        Degrees east, in any convention: -180…180 and 0…360 mean the same places.

    Returns
    -------
    row, col : int64 arrays
        By the half-open rule of this module: a point on an edge belongs to the cell
        south or east of the edge.

    Raises
    ------
    GridError
        If a latitude lies beyond a pole or a coordinate is not finite.

    Examples
    --------
    >>> [int(i) for i in cell_at(48.1, 11.6)]
    [168, 46]
    """
    y, x = require_places(lat, lon)
    row = np.floor((90 + STEP / 2 - y) / STEP).astype(np.int64)
    # The modulo is repeated at the end: 359.9 rounds up to column 1440, which is column 0.
    col = np.floor((x % 360 + STEP / 2) / STEP).astype(np.int64) % N_LON
    return row, col


def lattice_index(lat: ArrayLike, lon: ArrayLike) -> tuple[Integers, Integers]:
    """Rows and columns, in ERA5's order, of coordinates that are nodes of the lattice.

    Parameters
    ----------
    lat, lon : array_like
        Degrees north and east, in any convention; float32 is enough.

    Returns
    -------
    row, col : int64 arrays

    Raises
    ------
    GridError
        If a coordinate lies more than 0.001° from every node.

    Examples
    --------
    >>> lattice_index([90, 47.75], [-0.25, 359.75])
    (array([  0, 169]), array([1439, 1439]))
    """
    y, x = np.asarray(lat, np.float64), np.asarray(lon, np.float64)
    for name, values, off in (
        ("latitude", y, ~(on_nodes(y) & (np.abs(y) < 90 + NEAR))),
        ("longitude", x, ~on_nodes(x)),
    ):
        if off.any():
            raise GridError(
                f"{name} {values[off].flat[0]:.6g} is not a node of the 0.25° lattice; expected "
                "multiples of 0.25, as in a cube before averaging or interpolation"
            )
    # Rounding, not division: float32 coordinates lie slightly beside their nodes.
    row = np.rint((90 - y) / STEP).astype(np.int64)
    return row, np.rint(x / STEP).astype(np.int64) % N_LON


def on_nodes(degrees: Floats) -> NDArray[np.bool_]:
    """Whether coordinates in degrees lie within `NEAR` of multiples of 0.25."""
    return np.abs(degrees - STEP * np.rint(degrees / STEP)) < NEAR


def on_sphere(lat: ArrayLike, lon: ArrayLike) -> Floats:
    """Points of the unit sphere, (…, 3), of degrees north and east."""
    y, x = np.radians(lat), np.radians(lon)
    return np.stack([np.cos(y) * np.cos(x), np.cos(y) * np.sin(x), np.sin(y)], axis=-1)


def whole_numbers(values: ArrayLike, what: str) -> Integers:
    """Return whole numbers of any type as int64; refuse others, which NumPy would truncate.

    Raises
    ------
    GridError
        If one of them is not whole.
    """
    found = np.asarray(values)
    if found.dtype.kind == "O":
        found = np.asarray(found.tolist())
    if found.dtype.kind not in "iu" and not (
        found.dtype.kind == "f" and np.array_equal(found, np.rint(found))
    ):
        raise GridError(f"{what} are {as_given(values)}; expected whole numbers")
    return found.astype(np.int64, copy=False)


def require_places(lat: ArrayLike, lon: ArrayLike) -> tuple[Floats, Floats]:
    """Return latitudes and longitudes of points as float64, after checking that all are places.

    Raises
    ------
    GridError
        If a latitude lies beyond a pole or a coordinate is not a finite number.
    """
    try:
        y, x = np.asarray(lat, np.float64), np.asarray(lon, np.float64)
    except (TypeError, ValueError) as error:
        raise GridError(f"coordinates are not numbers: {in_a_line(error)}") from None
    if not (np.isfinite(y).all() and np.isfinite(x).all()):
        raise GridError("a point has a coordinate that is not finite; drop such points first")
    if np.any(np.abs(y) > 90):
        raise GridError(f"latitude {y[np.abs(y) > 90].flat[0]} lies beyond a pole")
    return y, x


def squares(lat: ArrayLike, lon: ArrayLike, side: float) -> tuple[Integers, Integers]:
    """Squares of latitude and longitude that points lie in, counted from 90°N and 0°E.

    Parameters
    ----------
    lat, lon : array_like
        Degrees; the shapes may differ.
    side : float
        Of a square in degrees.

    Returns
    -------
    down, along : numpy.ndarray
        Rows of squares, of the shape of `lat`, and columns, of that of `lon`.
    """
    down = (90 - np.asarray(lat, np.float64)) // side
    along = np.asarray(lon, np.float64) % 360 // side
    return down.astype(np.int64), along.astype(np.int64)


def require_rows(rows: object) -> int:
    """Return how many rows of the lattice a map has, all or all but the south pole's.

    Raises
    ------
    OptionError
        If it is neither.
    """
    count = as_whole(rows)
    if count not in (N_LAT, N_LAT - 1):
        raise OptionError(f"rows={rows!r}; expected 721, or 720 without the south pole")
    return count


def require_block(block: object) -> float:
    """Return the side in degrees of `squares` that divide the globe.

    Raises
    ------
    OptionError
        If it is not a number, or not between the side of a cell and 90°.
    """
    side = number(block, "block", " of degrees")
    if not STEP <= side <= 90:
        raise OptionError(f"block={block!r}; expected the side of a square, {STEP}° to 90°")
    return side


def widest_gap(places: NDArray[np.int64] | NDArray[np.float64], around: float) -> int:
    """Number of the place before the widest gap, of sorted places on a circle.

    Parameters
    ----------
    places : numpy.ndarray
        (n,) places, each once, n at least 1.
    around : float
        Length of the circle.
    """
    return int(np.diff(places, append=places[0] + around).argmax())


def shortest_arc(cols: NDArray[np.int64]) -> tuple[float, float] | None:
    """Ends of the shortest arc that holds some columns: it leaves out their widest gap.

    Parameters
    ----------
    cols : numpy.ndarray
        (n,) int64 columns in ERA5's order, sorted, each once.

    Returns
    -------
    west, east : float
        Degrees of the centres of the columns at its ends, -180 to 180; None without a column.
    """
    if len(cols) == 0:
        return None
    if len(cols) == N_LON:
        return -180.0, 180.0 - STEP
    # The arc leaves out the widest gap, so a region across 180° is not the whole globe.
    last = widest_gap(cols, N_LON)
    ends = cols[(last + 1) % len(cols)], cols[last]
    west, east = ((STEP * int(col) + 180) % 360 - 180 for col in ends)
    return west, east


def format_cell(grid_id: int) -> str:
    """Published text form of a cell id, ``{grid_id:07d}_{lon:.2f}_{lat:.2f}``.

    Examples
    --------
    >>> format_cell(772176)
    '0772176_-96.00_44.00'
    """
    lat, lon = centre(grid_id)
    return f"{grid_id:07d}_{lon:.2f}_{lat:.2f}"


def parse_cell(text: str) -> int:
    """Cell id of a published text form, checked against its coordinates.

    Raises
    ------
    GridError
        If the text has another form, or its coordinates are not those of the id.

    Examples
    --------
    >>> parse_cell("0772176_-96.00_44.00")
    772176
    """
    number, lon, lat = _split(text, "cell id")
    true_lat, true_lon = centre(number)
    if (lat, lon) != (true_lat, true_lon):
        raise GridError(
            f"cell id {text!r:.80} contradicts itself: cell {number} lies at lon {true_lon:.2f}, "
            f"lat {true_lat:.2f}, not at lon {lon:.2f}, lat {lat:.2f}; "
            f"its name should be {format_cell(number)!r}"
        )
    return number


def parse_local(text: str) -> tuple[float, float]:
    """Centre (lat, lon) in degrees of a local patch, from its published text form.

    Raises
    ------
    GridError
        If the text has another form or the point is not on the globe.

    Examples
    --------
    >>> parse_local("0865831_-95.92_43.96")
    (43.96, -95.92)
    """
    _, lon, lat = _split(text, "local patch id")
    if not (-90 <= lat <= 90 and -180 <= lon <= 180):
        raise GridError(f"local patch id {text!r:.80} is not a point on the globe")
    return lat, lon


def _split(text: str, what: str) -> tuple[int, float, float]:
    # re.ASCII in the pattern: other scripts have digits too, which int() would take.
    match = _ID_TEXT.fullmatch(text)
    if match is None:
        raise GridError(
            f"{text!r} is not a {what}; expected seven digits, longitude and latitude "
            "with two decimals, such as '0772176_-96.00_44.00'"
        )
    return int(match[1]), float(match[2]), float(match[3])


@dataclass(frozen=True, order=True)
class Block:
    """One chunk of a cube: up to 45 × 45 cells.

    Parameters
    ----------
    i, j : int
        Row and column of the block, counted from 90°N and 0°E; 17 × 32 blocks in all.
    """

    i: int
    j: int

    @property
    def rows(self) -> slice:
        """Rows of the lattice in this block."""
        return slice(self.i * BLOCK, min((self.i + 1) * BLOCK, N_LAT))

    @property
    def cols(self) -> slice:
        """Columns of the lattice in this block."""
        return slice(self.j * BLOCK, min((self.j + 1) * BLOCK, N_LON))


N_BANDS = -(-N_LAT // BLOCK)
"""Rows of blocks; a band is one of them, 45 rows of cells all around the globe."""


def block_of(grid_id: int) -> Block:
    """Return the block that holds a cell.

    Examples
    --------
    >>> block_of(772176)
    Block(i=4, j=23)
    """
    row, col = row_col(grid_id)
    return Block(row // BLOCK, col // BLOCK)


def bands() -> Iterator[slice]:
    """Rows of every band of blocks, north to south."""
    return (Block(band, 0).rows for band in range(N_BANDS))


def band_blocks(band: int) -> Iterator[Block]:
    """Blocks of one band, west to east."""
    return (Block(band, j) for j in range(N_LON // BLOCK))
