"""Single bands of images of Major TOM, as bytes of GeoTIFFs."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from copcube.errors import ImageError
from copcube.files import limits
from copcube.files.limits import demand
from copcube.images.raster import either, masked_out, opened_bytes, reason
from copcube.products.majortom.grid import PIXEL, SIDE


@dataclass(frozen=True)
class Band:
    """Pixels of a band and the place of its image.

    Parameters
    ----------
    pixels : numpy.ndarray
        (side, side), uint16 or float32, as stored; 0 or NaN where there is no data.
    epsg : int
        EPSG code of its UTM zone.
    left, top : float
        Upper left corner in metres.
    step : float
        Metres a pixel.
    """

    pixels: NDArray[Any]
    epsg: int
    left: float
    top: float
    step: float

    @property
    def side(self) -> int:
        """Pixels per side."""
        return len(self.pixels)


def decode(raw: bytes, mask: bytes | None = None) -> Band:
    """Decode the bytes of a GeoTIFF of one band, perhaps with the mask beside it.

    Raises
    ------
    ImageError
        If it is none, is not square or north up, or has no place in a UTM zone.
    """
    import rasterio

    try:
        with opened_bytes(raw, mask) as raster:
            rows, columns = raster.shape
            dtype = np.dtype(raster.dtypes[0])
            what = f"{rows} × {columns} pixels"
            demand(limits.RASTER, rows * columns * dtype.itemsize, what, ImageError)
            if rows != columns or rows > 4 * SIDE or dtype.kind not in "uif":
                raise ImageError(
                    f"{what} of {dtype}; expected a square of real numbers, {SIDE} a side at 10 m"
                )
            where = raster.transform
            epsg = raster.crs.to_epsg() if raster.crs else None
            pixels = raster.read([1])
            missing = None if raster.nodata is None else pixels == raster.nodata
            missing = either(missing, masked_out(raster, [0]))
    except ImageError:  # which is a ValueError
        raise
    except (rasterio.errors.RasterioError, ValueError, TypeError) as error:
        limits.rule_out_shortage(error)
        raise ImageError(f"not a readable GeoTIFF of {len(raw)} bytes: {reason(error)}") from error
    if epsg is None or not (32601 <= epsg <= 32660 or 32701 <= epsg <= 32760):
        raise ImageError(f"its coordinates are of EPSG:{epsg}; expected a UTM zone: EPSG:32601…")
    step = where.a
    if where.b or where.d or where.e != -step or step < PIXEL:
        raise ImageError(
            f"its transform is {tuple(where)[:6]}; expected north up in pixels of 10 m or more"
        )
    return Band(as_pixels(pixels, missing)[0], epsg, where.c, where.f, step)


def as_pixels(pixels: NDArray[Any], missing: NDArray[np.bool_] | None) -> NDArray[Any]:
    """Pixels as uint16, or as float32 where they do not fit, and 0 where there is no data."""
    if missing is not None:
        pixels = np.where(missing, pixels.dtype.type(0), pixels)
    wide = pixels.dtype.kind == "f" or pixels.dtype.itemsize > 2
    wide = wide or bool(pixels.size and int(pixels.min()) < 0)
    return pixels.astype(np.float32 if wide else np.uint16, copy=False)


def stacked(bands: list[NDArray[Any]], side: int) -> NDArray[Any]:
    """Bands as one array (bands, side, side), the coarser ones with repeated pixels."""
    whole = np.empty((len(bands), side, side), np.result_type(*bands))
    for target, band in zip(whole, bands, strict=True):
        times, rest = divmod(side, len(band))
        if rest:
            index = np.arange(side) * len(band) // side
            target[:] = band[index[:, np.newaxis], index]
        else:
            # Along rows first: then whole rows are copied, several times as fast.
            wide = np.repeat(band, times, axis=1)
            target.reshape(len(band), times, side)[:] = wide[:, np.newaxis]
    return whole


def has_valid_pixel(pixels: NDArray[Any]) -> bool:
    """Whether a pixel of some band is neither 0 nor NaN."""
    if pixels.dtype.kind != "f":
        return any(band.any() for band in pixels)
    return any(((band != 0) & np.isfinite(band)).any() for band in pixels)
