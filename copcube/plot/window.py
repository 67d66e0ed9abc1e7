"""Cells of a cube as pixels of a map, in degrees or in any projection of cartopy.

Every pixel shows the cell that holds its centre: nothing is interpolated, and the seam of the globe
and the poles need no special care.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from copcube import grid
from copcube.cube.view import CubeView
from copcube.errors import MissingPackageError, OptionError
from copcube.grid import STEP, Floats

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Extent = tuple[float, float, float, float]

_PIXELS = 1440
"""Columns of pixels of a projected map; a global one then has about a pixel a cell."""


@dataclass(frozen=True, eq=False)
class Window:
    """The part of the globe that a map shows.

    Parameters
    ----------
    west, east, south, north : float
        Degrees; east is greater than west, by 360 at most.
    """

    west: float
    east: float
    south: float
    north: float

    @classmethod
    def of(cls, view: CubeView, extent: Extent | None) -> Self:
        """Take the requested extent, or that of the cells of a dataset.

        Raises
        ------
        OptionError
            If the extent is empty or lies beyond a pole.
        """
        return cls(*_extent(view)) if extent is None else cls.asked(extent)

    @classmethod
    def asked(cls, extent: Extent) -> Self:
        """Take the requested extent; errors are those of `of`."""
        try:
            west, east, south, north = (float(value) for value in extent)
        except (TypeError, ValueError):
            raise OptionError(
                f"extent={extent!r}; expected (west, east, south, north) in degrees"
            ) from None
        # East of 180° may be written as less than west: from 170 to -170.
        east = east + 360 if east <= west else east
        if not (-90 <= south < north <= 90 and west < east <= west + 360):
            raise OptionError(
                f"extent={extent!r}; expected (west, east, south, north) in degrees, south below "
                "north, at most 360° wide"
            )
        return cls(west, east, south, north)

    @property
    def extent(self) -> Extent:
        """West, east, south and north."""
        return self.west, self.east, self.south, self.north

    @property
    def middle(self) -> float:
        """Latitude at which degrees are drawn in their true proportion; 0 for large maps."""
        return 0.0 if self.north - self.south > 60 else (self.north + self.south) / 2

    def points(self) -> tuple[Floats, Floats]:
        """Latitudes, north first, and longitudes of the centres of the pixels."""
        n = max(1, round((self.east - self.west) / STEP)), round((self.north - self.south) / STEP)
        # A few cells are drawn with several pixels each, so that their edges lie where they are.
        fine = max(1, min(8, _PIXELS // max(n)))
        columns, rows = n[0] * fine, max(1, n[1] * fine)
        lon = self.west + (np.arange(columns) + 0.5) * (self.east - self.west) / columns
        lat = self.north - (np.arange(rows) + 0.5) * (self.north - self.south) / rows
        return lat, lon


def draw(
    view: CubeView,
    values: NDArray[Any],
    window: Window,
    ax: "Axes",
    projection: Any,
    **options: Any,
) -> Any:
    """Draw values of the cells, (lat, lon) or (lat, lon, colour), on axes; return the image."""
    if projection is None:
        lat, lon = window.points()
        y, x = (index.ravel() for index in np.meshgrid(lat, lon, indexing="ij"))
        shape = (len(lat), len(lon))
        extent = window.extent
    else:
        y, x, shape, extent = _projected(window, ax, projection)
    inside = np.isfinite(y) & np.isfinite(x)
    i, j = view.latlon.cells_at(np.where(inside, y, 0), np.where(inside, x, 0))
    there = inside & (i >= 0) & (j >= 0)
    if projection is not None:  # the projection's rectangle reaches beyond the window
        there &= ((x - window.west) % 360 <= window.east - window.west) & (
            (y >= window.south) & (y <= window.north)
        )
    pixels = np.full((len(y), *values.shape[2:]), np.nan, np.float32)
    pixels[there] = values[i[there], j[there]]
    pixels = pixels.reshape(*shape, *values.shape[2:])
    if pixels.ndim == 3:  # no colour where no vector is
        pixels = np.concatenate([pixels, np.isfinite(pixels[..., :1])], axis=-1)
        pixels = np.nan_to_num(pixels)
    if projection is not None:
        options["transform"] = projection
    return ax.imshow(pixels, origin="upper", extent=extent, interpolation="nearest", **options)


def cartopy_projection(projection: Any) -> Any:
    """Return a projection of cartopy, of its name, itself, or None.

    Raises
    ------
    MissingPackageError
        If cartopy is not installed.
    OptionError
        If it has no projection of such a name.
    """
    if projection is None:
        return None
    try:
        import cartopy.crs
    except ImportError:
        raise MissingPackageError(
            "maps in a projection need cartopy: pip install 'copcube[plot]'; without a projection "
            "maps are drawn in degrees"
        ) from None
    if isinstance(projection, cartopy.crs.Projection):
        return projection
    known = {
        name.lower(): kind
        for name, kind in vars(cartopy.crs).items()
        if isinstance(kind, type) and issubclass(kind, cartopy.crs.Projection)
    }
    try:
        return known[str(projection).lower()]()
    except KeyError:
        raise OptionError(
            f"projection={projection!r}; expected a projection of cartopy or its name, such as "
            "Robinson, EqualEarth or NorthPolarStereo"
        ) from None
    except TypeError:
        raise OptionError(
            f"projection={projection!r} needs parameters; make it with cartopy.crs"
        ) from None


def _projected(
    window: Window, ax: Any, projection: Any
) -> tuple[Floats, Floats, tuple[int, int], Extent]:
    """Latitude and longitude of pixels that fill the axes, NaN outside the globe.

    Raises
    ------
    OptionError
        If the projection does not show the window.
    """
    import cartopy.crs

    plain = cartopy.crs.PlateCarree()
    if window.east - window.west < 360 or window.north - window.south < 180:
        try:
            ax.set_extent(window.extent, crs=plain)
        except ValueError as error:
            middle = (window.west + window.east) / 2, (window.south + window.north) / 2
            name = type(projection).__name__
            raise OptionError(
                f"the projection {name} does not show longitudes {window.west:g} to "
                f"{window.east:g} and latitudes {window.south:g} to {window.north:g}; centre it "
                f"there, such as cartopy.crs.Orthographic{middle}, or leave the projection out"
            ) from error
    else:
        ax.set_global()
    (left, right), (low, high) = ax.get_xlim(), ax.get_ylim()
    rows = max(1, round(_PIXELS * (high - low) / (right - left)))
    x = left + (np.arange(_PIXELS) + 0.5) * (right - left) / _PIXELS
    y = high - (np.arange(rows) + 0.5) * (high - low) / rows
    grid_x, grid_y = np.meshgrid(x, y)
    lonlat = plain.transform_points(projection, grid_x.ravel(), grid_y.ravel())
    lon, lat = lonlat[:, 0], lonlat[:, 1]
    # Outside the globe some projections return a place whose own point is elsewhere.
    back = projection.transform_points(plain, lon, lat)
    off = np.hypot(back[:, 0] - grid_x.ravel(), back[:, 1] - grid_y.ravel())
    lat = np.where(off < 1e-3 * (right - left), lat, np.nan)
    return lat, lon, (rows, _PIXELS), (left, right, low, high)


def _extent(view: CubeView) -> Extent:
    """West, east, south and north edges of the cells of a dataset."""
    cells = view.latlon
    south, north = cells.south_north
    lon = np.unique(cells.x % 360)
    if len(lon) == cells.columns:
        west, east = -180.0, 180.0
    else:
        # What is drawn leaves out the widest gap, so that a region across 180° is not the globe.
        last = grid.widest_gap(lon, 360)
        first = float(lon[(last + 1) % len(lon)])
        west = (first + 180) % 360 - 180 - cells.dx / 2
        east = west + (float(lon[last]) - first) % 360 + cells.dx
    return west, east, float(south.min()), float(north.max())
