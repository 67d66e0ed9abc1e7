"""Where and when the tiles of an image were taken, as metadata for the model.

Images are described as xarray and rioxarray do it, by one-dimensional coordinates of pixel
centres, a CRS and a coordinate ``time``. Tiles and tokens are runs of pixels; their
positions are the middle between the first and the last pixel of a run.
"""

import logging
from collections.abc import Hashable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from copcube import grid
from copcube.dates import is_missing, since_1970
from copcube.embedding.axes import DEGREES
from copcube.embedding.partition import DEM_DAYS
from copcube.errors import OptionError
from copcube.modalities import AREA, Modality
from copcube.projecting import projected

if TYPE_CHECKING:
    from pyproj import CRS

Floats = NDArray[np.float64]

log = logging.getLogger("copcube")

_TIMES = ("time", "t", "date", "datetime", "acquisition_time", "valid_time")
"""Names that a coordinate of dates may have, the one to prefer first."""
_NOMINAL = 0.05
"""Tolerance within which pixels count as having the modality's size."""
_EDGE = 1e-3
"""Degrees from -180 or -90 within which a coordinate counts as that: the code accepts no numbers
between 0 and 1e-4 after 180 or 90 is added."""


@dataclass(frozen=True, eq=False)
class Georeference:
    """Coordinates of pixel centres along y and x, and what they mean.

    Parameters
    ----------
    y, x : xarray.DataArray
        One-dimensional, named like their dimensions, in units of the CRS.
    crs : pyproj.CRS
        Their coordinate reference system.
    """

    y: xr.DataArray
    x: xr.DataArray
    crs: "CRS"

    @classmethod
    def of(cls, images: xr.DataArray, y: Hashable, x: Hashable) -> Self | None:
        """Read it from an image whose spatial dimensions are `y` and `x`.

        Dimensions named lat and lon (or latitude, longitude) are WGS 84. None if the image
        lacks a CRS or one of the coordinates.
        """
        import rioxarray  # noqa: F401  (registers .rio)
        from pyproj import CRS

        crs = grid.WGS84 if str(x).lower() in DEGREES else images.rio.crs
        if crs is None or not {x, y} <= images.indexes.keys():
            return None
        return cls(images[y], images[x], CRS.from_user_input(crs))

    @property
    def geographic(self) -> bool:
        """Whether x and y are longitude and latitude, and not of a rotated pole."""
        return bool(self.crs.is_geographic and not self.crs.is_derived)

    def runs(self, size: int) -> tuple[Floats, Floats]:
        """First, middle and last position of every run of `size` pixels along y and x.

        Returns
        -------
        y, x : numpy.ndarray
            (3, runs) float64; longitudes continue beyond 180 or 360 where the image's jump.
        """
        y, x = (np.asarray(axis.values, dtype=np.float64) for axis in (self.y, self.x))
        # Unwrapped, or the middle of 179.9 and -179.9 would lie at 0.
        return _runs(y, size), _runs(np.unwrap(x, period=360) if self.geographic else x, size)

    def degrees(self, y: Floats, x: Floats) -> tuple[Floats, Floats]:
        """Latitude and longitude of the mesh of positions along y and x.

        Returns
        -------
        lat, lon : numpy.ndarray
            (y, x) float64, longitude in [-180, 180); NaN where the projection is not
            defined.
        """
        from pyproj import Transformer

        to_degrees = Transformer.from_crs(self.crs, grid.WGS84, always_xy=True).transform
        lon, lat = projected(to_degrees, *np.meshgrid(x, y))
        # pyproj gives infinity where a projection is not defined.
        known = np.isfinite(lon) & np.isfinite(lat) & (np.abs(lat) <= 90)
        lon = (np.where(known, lon, np.nan) + 180) % 360 - 180
        return np.where(known, lat, np.nan), lon

    def pixel_size(self, size: int) -> Floats:
        """Side in metres of a square as large as a pixel, for every tile of `size` pixels.

        The geometric mean of width and height, which are distances on the ellipsoid between
        the tile's outermost pixels, so that it holds in degrees, feet and Mercator alike.
        Returns (tiles y, tiles x) float64.
        """
        from pyproj import Geod

        (north, row, south), (west, column, east) = self.runs(size)
        spans = (
            (self.degrees(row, west), self.degrees(row, east)),
            (self.degrees(north, column), self.degrees(south, column)),
        )
        width, height = (
            projected(Geod(ellps="WGS84").inv, lon, lat, other_lon, other_lat)[2] / (size - 1)
            for (lat, lon), (other_lat, other_lon) in spans
        )
        return np.asarray(np.sqrt(width * height))

    def coordinates(self, size: int) -> dict[Hashable, Any]:
        """Coordinates of runs of `size` pixels, as `xarray.DataArray` takes them.

        The image's own along y and x; beside them, unless those are named lat and lon,
        ``lat`` and ``lon`` in two dimensions.
        """
        (_, y, _), (_, x, _) = self.runs(size)
        own: dict[Hashable, Any] = {
            self.y.name: (self.y.dims, y, self.y.attrs),
            self.x.name: (self.x.dims, self._in_own_turn(x), self.x.attrs),
        }
        if str(self.x.name).lower() in DEGREES:
            return own
        dims, (lat, lon) = (*self.y.dims, *self.x.dims), self.degrees(y, x)
        return own | {
            "lat": (dims, lat, {"standard_name": "latitude", "units": "degrees_north"}),
            "lon": (dims, lon, {"standard_name": "longitude", "units": "degrees_east"}),
        }

    def write(self, result: xr.DataArray, images: xr.DataArray, size: int) -> xr.DataArray:
        """Give a raster of runs of `size` pixels the CRS of `images`, and its GeoTransform."""
        from affine import Affine

        if images.rio.crs is None:
            return result
        (north, _, south), (west, _, east) = self.runs(size)
        dy = (south[-1] - north[0]) / (self.y.size - 1)
        dx = (east[-1] - west[0]) / (self.x.size - 1)
        name = images.rio.grid_mapping
        transform = Affine(dx * size, 0, west[0] - dx / 2, 0, dy * size, north[0] - dy / 2)
        result = result.rio.write_crs(images.rio.crs, grid_mapping_name=name)
        result.rio.write_transform(transform, grid_mapping_name=name, inplace=True)
        return result

    def _in_own_turn(self, x: Floats) -> Floats:
        """Longitudes back in the image's own turn, if its jump from one end to the other."""
        values = self.x.values
        if not self.geographic or np.abs(np.diff(values)).max() <= 180:
            return x
        west = -180 if values.min() < 0 else 0
        return (x - west) % 360 + west


def tile_metadata(
    images: xr.DataArray,
    where: Georeference | None,
    size: int,
    sensor: Modality,
    *,
    date: Any = None,
    gsd: float | None = None,
) -> Floats:
    """Collect longitude, latitude, date and token area of every tile; log what is unknown.

    Parameters
    ----------
    images : xarray.DataArray
        (leading…, y, x, band), whole tiles.
    where : Georeference or None
        Where they lie.
    size : int
        Side of a tile in pixels.
    sensor : Modality
        Says the side of a token, and the size that pixels are meant to have (0: any).
    date, gsd : optional
        Date of all images (see `copcube.dates.day`) and size of a pixel in metres; by default from
        the image.

    Returns
    -------
    numpy.ndarray
        (leading…, tiles y, tiles x, 4) float64: lon and lat in degrees, days since
        1970-01-01, area of a token in km²; NaN where unknown. A leading dimension along
        which the date is the same has length 1.

    Raises
    ------
    OptionError
        If `date` is not a date, or a coordinate of dates holds something else.
    """
    *_, rows, cols, _ = images.shape
    shape = rows // size, cols // size
    days = _days(images, date, sensor)
    metadata = np.full((*days.shape, *shape, 4), np.nan)
    # The nominal size first, as in pretraining; what is measured replaces it where it differs.
    pixel = np.full(shape, sensor.gsd or np.nan)
    if where is None:
        log.warning(
            "images has no CRS or no coordinates, so the tiles are embedded without longitude and "
            "latitude; images.rio.write_crs() adds a CRS"
        )
    else:
        (_, y, _), (_, x, _) = where.runs(size)
        lat, lon = where.degrees(y, x)
        metadata[..., 0], metadata[..., 1] = within_code(lon, lat)
        measured = where.pixel_size(size)
        pixel = np.where(np.abs(measured - pixel) <= _NOMINAL * pixel, pixel, measured)
    metadata[..., 2] = days[..., np.newaxis, np.newaxis]
    area = (sensor.kernel * (pixel if gsd is None else np.full(shape, gsd)) / 1000) ** 2
    strange = (area < AREA[0]) | (area > AREA[1])
    if strange.any():
        log.warning(
            f"tokens have {area[strange][0]:.2g} km², but the model accepts {AREA[0]:g} to "
            f"{AREA[1]:g} km², so they are embedded without their area; a larger kernel_size= "
            "makes larger tokens"
        )
    metadata[..., 3] = np.where(strange, np.nan, area)
    return metadata


def within_code(lon: Floats, lat: Floats) -> tuple[Floats, Floats]:
    """Longitudes in [-180, 180) and latitudes that the model's Fourier code accepts.

    Raises
    ------
    OptionError
        If a longitude is beyond 360° or a latitude beyond 90°.
    """
    for name, values, most in (("lon", lon, 360), ("lat", lat, 90)):
        beyond = values[np.abs(values) > most]
        if beyond.size:
            raise OptionError(f"{name} is {beyond[0]:g}; expected degrees, at most {most} from 0")
    # Only values beyond are wrapped, since wrapping rounds.
    lon = np.where((lon >= -180) & (lon < 180), lon, (lon + 180) % 360 - 180)
    return np.where(lon < _EDGE - 180, -180, lon), np.where(lat < _EDGE - 90, -90, lat)


def _days(images: xr.DataArray, date: Any, sensor: Modality) -> Floats:
    """Days since 1970-01-01 along the leading dimensions, length 1 where they agree."""
    leading = images.dims[:-3]
    if date is not None:
        return np.full((1,) * len(leading), since_1970(date))
    name = next((name for name in _TIMES if name in images.coords), None)
    if name is not None:
        time = images.coords[name]
        if not set(time.dims) <= set(leading):
            raise OptionError(
                f"the coordinate {name} of images runs along {', '.join(map(str, time.dims))}; "
                "expected one date for each image as a whole: give date=, or drop_vars() it"
            )
        time = time.expand_dims([dim for dim in leading if dim not in time.dims])
        return days_since_1970(time.transpose(*leading).values, f"the coordinate {name} of images:")
    if sensor.key == "dem":
        return np.full((1,) * len(leading), DEM_DAYS)
    log.warning(
        "images has no time coordinate of dates, so the tiles are embedded without a date; "
        "date= gives one"
    )
    return np.full((1,) * len(leading), np.nan)


def days_since_1970(times: NDArray[Any], what: str) -> Floats:
    """Days since 1970-01-01 of an array of dates of any kind; NaN where one is missing."""
    # Only whole days: the model has seen no others, and its fastest wave takes one day. Whole
    # years, months and weeks are not days: `since_1970` refuses them.
    if times.dtype.kind == "M" and np.datetime_data(times.dtype)[0] not in ("Y", "M", "W"):
        days = times.astype("datetime64[D]") - np.datetime64(0, "D")
        return np.asarray(days / np.timedelta64(1, "D"))
    return np.reshape(
        # Indexed rather than iterated, so that numbers keep the type they are stored in.
        [
            np.nan if is_missing(times[index]) else since_1970(times[index], what)
            for index in np.ndindex(times.shape)
        ],
        times.shape,
    ).astype(np.float64)


def _runs(positions: Floats, size: int) -> Floats:
    first, last = positions[::size], positions[size - 1 :: size]
    return np.stack([first, (first + last) / 2, last])
