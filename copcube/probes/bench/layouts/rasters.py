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
from copcube.images.raster import reason


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
    outline : numpy.ndarray
        (4, 2) float64 longitudes and latitudes of the corners, around the image; NaN likewise.
    """

    pixels: NDArray[Any]
    lon: float
    lat: float
    outline: NDArray[np.float64]


def read(path: Path, bands: int, named_in: Path) -> Raster:
    """Read a raster that must have a number of bands.

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
        If it is not a GeoTIFF, or has other bands.
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
            lon, lat, outline = _places(raster)
            return Raster(raster.read(), lon, lat, outline)
    except (rasterio.errors.RasterioError, ValueError) as error:
        if isinstance(error, ImageError):
            raise
        limits.rule_out_shortage(error)
        raise ImageError(
            f"{path}: not a readable GeoTIFF ({reason(error)}); unpack the archive again"
        ) from error


def _bytes(path: Path, named_in: Path) -> bytes:
    try:
        with open_regular(path, ImageError) as file:
            demand(limits.RASTER, os.fstat(file.fileno()).st_size, f"{path}: it", ImageError)
            return file.read()
    except FileNotFoundError as error:
        raise MissingFileError(
            f"{path}: missing, but {named_in} names it; unpack the archive again"
        ) from error


def _places(raster: Any) -> tuple[float, float, NDArray[np.float64]]:
    """Longitude and latitude of the middle pixel's centre, and of the corners; else NaN."""
    from rasterio._err import CPLE_BaseError
    from rasterio.warp import transform

    # Ground control points alone leave the transform an identity, which places nothing.
    if raster.crs is None or raster.transform.is_identity:
        return math.nan, math.nan, np.full((4, 2), np.nan)
    columns, rows, to = raster.width, raster.height, raster.transform
    pixels = [(columns // 2 + 0.5, rows // 2 + 0.5)]
    pixels += [(0, 0), (0, rows), (columns, rows), (columns, 0)]
    x = [to.a * column + to.b * row + to.c for column, row in pixels]
    y = [to.d * column + to.e * row + to.f for column, row in pixels]
    if raster.crs.to_epsg() != 4326:
        try:
            x, y = transform(raster.crs, WGS84, x, y)
        except CPLE_BaseError as error:  # GDAL's own, which rasterio does not wrap here
            raise ValueError(error) from error
    # Files across 180° continue beyond it; the encoder takes -180 to 180.
    lon = x[0] - 360 * (x[0] > 180) + 360 * (x[0] < -180)
    return lon, y[0], np.array([x[1:], y[1:]], np.float64).T
