"""GeoTIFF files of other products: what they are, where they lie, windows of them."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from copcube.errors import MissingFileError, RowsError, in_a_line
from copcube.files.contents import refuse_other
from copcube.files.regular import require_file
from copcube.products.pixels import Place

if TYPE_CHECKING:
    from rasterio.io import DatasetReader


@dataclass(frozen=True)
class GeoTiff:
    """What the head of a GeoTIFF says.

    Parameters
    ----------
    place : Place
        Where its pixels lie.
    bands, height, width : int
        Its shape.
    dtypes : tuple of str
        Types of its bands.
    nodata : float or None
        Value of pixels without data, if one is named.
    """

    place: Place
    bands: int
    height: int
    width: int
    dtypes: tuple[str, ...]
    nodata: float | None


def head(path: str) -> GeoTiff:
    """Read the head of a file.

    Raises
    ------
    RowsError
        If it cannot be read, or has no coordinate reference system that is known here.
    """
    with opened(path) as file:
        epsg = file.crs.to_epsg() if file.crs else None
        place = Place.of(epsg, file.transform, path)
        return GeoTiff(place, file.count, file.height, file.width, file.dtypes, file.nodata)


def read(path: str, rows: slice, cols: slice, band: int | None = None) -> NDArray[Any]:
    """Read a window of all bands, (bands, h, w), or of one, (h, w).

    Raises
    ------
    RowsError
        If it is damaged.
    """
    window = ((rows.start, rows.stop), (cols.start, cols.stop))
    with opened(path) as file:
        return file.read(band, window=window)  # type: ignore[no-any-return]


@contextmanager
def opened(path: str) -> "Iterator[DatasetReader]":
    """Open a file while the body reads it.

    Raises
    ------
    RowsError
        If it is no GeoTIFF, or is damaged.
    """
    import rasterio
    from rasterio.errors import RasterioError

    require_file(path, RowsError)
    if not os.path.exists(path):
        raise MissingFileError(f"{path}: no such file")
    try:
        # GDAL's other drivers are kept out: some of them open what a file names.
        with rasterio.open(path, driver="GTiff") as file:
            yield file
    except RasterioError as error:
        refuse_other(path, ("tiff",), "a GeoTIFF file", RowsError)
        raise RowsError(f"{path}: not a readable GeoTIFF file ({in_a_line(error)})") from error


def find(path: str, ends: Sequence[str]) -> list[str]:
    """Files of some endings: that of a name, or those below a folder, sorted."""
    if not os.path.isdir(path):
        return [path] if path.endswith(tuple(ends)) and os.path.exists(path) else []
    return sorted(
        os.path.join(folder, name)
        for folder, _, names in os.walk(path)
        for name in names
        if name.endswith(tuple(ends)) and not name.startswith(".")
    )
