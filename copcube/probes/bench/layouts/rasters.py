"""One GeoTIFF of Copernicus-Bench: its bands, and where its middle pixel lies."""

import math
import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from copcube.errors import ImageError, MissingFileError
from copcube.files import limits
from copcube.files.limits import demand
from copcube.files.regular import open_regular
from copcube.grid import WGS84


@dataclass(frozen=True, eq=False)
class Raster:
    """What a file holds.

    Parameters
    ----------
    pixels : numpy.ndarray
        (bands, rows, columns) in the stored dtype.
    lon, lat : float
        Centre of the pixel (rows // 2, columns // 2) in degrees, as the official evaluation
        takes it: half a pixel off the middle where the sides are even. Longitudes are -180 to
        180. NaN without a georeference.
    """

    pixels: NDArray[Any]
    lon: float
    lat: float


def read(path: Path, bands: int, named_in: Path) -> Raster:
    """Read a raster of so many bands.

    Parameters
    ----------
    path : Path
        The file.
    bands : int
        How many it must have.
    named_in : Path
        The file that names it, for the message.

    Raises
    ------
    MissingFileError
        If it is not there.
    ImageError
        If it is no GeoTIFF, or has other bands.
    """
    import rasterio
    from rasterio.errors import NotGeoreferencedWarning
    from rasterio.io import MemoryFile

    # Threads share one list of filters, so this cannot be undone after each file.
    warnings.filterwarnings("ignore", category=NotGeoreferencedWarning)
    raw = _bytes(path, named_in)
    if not raw:
        raise ImageError(f"{path}: not a readable GeoTIFF (it is empty); unpack the archive again")
    try:
        # From memory GDAL finds no neighbouring file to read metadata from.
        with MemoryFile(raw) as memory, memory.open(driver="GTiff") as raster:
            if raster.count != bands:
                raise ImageError(
                    f"{path}: {raster.count} bands; expected {bands}: is this the folder of "
                    "another task or sensor?"
                )
            size = math.prod(raster.shape) * sum(np.dtype(d).itemsize for d in raster.dtypes)
            demand(limits.RASTER, size, f"{path}: its pixels", ImageError)
            lon, lat = _middle(raster)
            return Raster(raster.read(), lon, lat)
    except (rasterio.errors.RasterioError, ValueError) as error:
        if isinstance(error, ImageError):
            raise
        reason = error.__cause__ or error  # GDAL's own message
        raise ImageError(
            f"{path}: not a readable GeoTIFF ({reason}); unpack the archive again"
        ) from error


def _bytes(path: Path, named_in: Path) -> bytes:
    try:
        with open_regular(path, ImageError) as file:
            demand(limits.RASTER, os.fstat(file.fileno()).st_size, f"{path}: it", ImageError)
            return file.read()
    except FileNotFoundError as error:
        raise MissingFileError(
            f"{path}: not there, but {named_in} names it; unpack the archive again"
        ) from error


def _middle(raster: Any) -> tuple[float, float]:
    """Longitude and latitude of the middle pixel's centre; NaN if they cannot be known."""
    from rasterio._err import CPLE_BaseError
    from rasterio.warp import transform

    # Ground control points alone leave the transform an identity, which places nothing.
    if raster.crs is None or raster.transform.is_identity:
        return math.nan, math.nan
    column, row, to = raster.width // 2 + 0.5, raster.height // 2 + 0.5, raster.transform
    x, y = to.a * column + to.b * row + to.c, to.d * column + to.e * row + to.f
    if raster.crs.to_epsg() == 4326:
        # Files across 180° go on counting; the encoder takes -180 to 180.
        return x - 360 * (x > 180) + 360 * (x < -180), y
    try:
        (lon,), (lat,) = transform(raster.crs, WGS84, [x], [y])
    except CPLE_BaseError as error:  # GDAL's own, which rasterio does not wrap here
        raise ValueError(error) from error
    return lon, lat
