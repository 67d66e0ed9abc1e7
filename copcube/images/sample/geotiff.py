"""GeoTIFF files of samples, as bytes."""

import warnings
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

_DESCRIPTION = "SYNTHETIC: drawn at random by copcube sample; no satellite image"


def geotiff(
    pixels: NDArray[Any],
    crs: str | None = None,
    corner: tuple[float, float] = (0.0, 0.0),
    step: float = 1.0,
    *,
    descriptions: Iterable[str] = (),
    nodata: float | None = None,
) -> bytes:
    """Return the bytes of a deflated GeoTIFF, whose description says that it is synthetic.

    GDAL does not report a disk that is full at the end of a file; Python does.

    Parameters
    ----------
    pixels : numpy.ndarray
        (bands, rows, columns), or (rows, columns) for one band.
    crs : str, optional
        Coordinate reference system; without it, there is no georeference.
    corner : tuple of float
        Western and northern edge.
    step : float
        Size of a pixel.
    descriptions : iterable of str
        Names of the bands.
    nodata : float, optional
        Value of missing pixels.
    """
    import rasterio
    from rasterio.errors import NotGeoreferencedWarning
    from rasterio.io import MemoryFile

    pixels = pixels if pixels.ndim == 3 else pixels[np.newaxis]
    bands, rows, cols = pixels.shape
    place: dict[str, Any] = {}
    if crs is not None:
        place["crs"] = rasterio.CRS.from_user_input(crs)
        place["transform"] = rasterio.Affine(step, 0, corner[0], 0, -step, corner[1])
    with MemoryFile() as memory, warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with memory.open(
            driver="GTiff",
            count=bands,
            height=rows,
            width=cols,
            dtype=pixels.dtype,
            nodata=nodata,
            compress="deflate",
            zlevel=1,
            **place,
        ) as raster:
            raster.update_tags(TIFFTAG_IMAGEDESCRIPTION=_DESCRIPTION)
            raster.write(pixels)
            if descriptions:
                raster.descriptions = tuple(descriptions)
        return bytes(memory.getbuffer())
