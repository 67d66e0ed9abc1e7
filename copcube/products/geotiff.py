"""GeoTIFF files of other products: what they are, where they lie, windows of them.

A file at an address is read by GDAL through `copcube.files.objects`, only the bytes that a window
needs: with the same credentials, repetitions and messages as everything else there.
"""

import itertools
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO

from numpy.typing import NDArray

from copcube.errors import (
    CopcubeError,
    MissingFileError,
    MissingPackageError,
    RowsError,
    in_a_line,
)
from copcube.files import limits
from copcube.files.contents import refuse_other
from copcube.files.objects import is_remote, listing, open_file, sizes
from copcube.files.regular import files_below, require_file
from copcube.products.place import Place

if TYPE_CHECKING:
    from rasterio.io import DatasetReader


@dataclass(frozen=True)
class GeoTiff:
    """Header of a GeoTIFF.

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
    """Read the header of a file.

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
    """Open a file, or one at an address, while the body reads it.

    Raises
    ------
    RowsError
        If it is not a GeoTIFF, or is damaged.
    ReadError
        If an object store cannot be reached or denies access.
    MissingPackageError
        If it is an address and rasterio is older than 1.4.
    """
    import rasterio
    from rasterio.errors import RasterioError

    remote = _Remote(path) if is_remote(path) else None
    if remote is None:
        require_file(path, RowsError)
        if not os.path.exists(path):
            raise MissingFileError(f"{path}: no such file")
    elif tuple(map(int, rasterio.__version__.split(".")[:2])) < (1, 4):
        raise MissingPackageError(
            f"{path}: GeoTIFF files at addresses need rasterio 1.4, found {rasterio.__version__}; "
            "install it with: pip install 'rasterio>=1.4'"
        )
    how = {} if remote is None else {"opener": remote.open}
    try:
        # GDAL's other drivers are kept out: some of them open what a file names.
        with rasterio.open(remote.name if remote else path, driver="GTiff", **how) as file:
            yield file
            if remote is not None and remote.failed is not None:
                raise remote.failed
    except RasterioError as error:
        if remote is None:
            refuse_other(path, ("tiff",), "a GeoTIFF file", RowsError)
        elif remote.failed is not None:
            raise remote.failed from error
        limits.rule_out_shortage(error)
        why = in_a_line(error.__cause__ or error)  # GDAL's own message
        raise RowsError(f"{path}: not a readable GeoTIFF file ({why})") from error


class _Remote:
    """Opener of a file at an address for GDAL.

    Parameters
    ----------
    url : str
        The address.

    Attributes
    ----------
    name : str
        How GDAL calls it: a name of its own each time, since files are distinguished by folders.
    failed : Exception or None
        The first error of reading, which GDAL would not pass on.
    """

    _numbers = itertools.count()

    def __init__(self, url: str) -> None:
        self._url = url
        self.name = f"/{next(self._numbers)}/{os.path.basename(url)}"
        self.failed: Exception | None = None

    def open(self, name: str, mode: str = "rb") -> "_Guarded":
        """Open the file; those beside it, which GDAL looks for, are not there."""
        if name != self.name:
            raise FileNotFoundError(name)
        try:
            return _Guarded(open_file(self._url), self)
        except FileNotFoundError:
            self.failed = MissingFileError(f"{self._url}: no such file")
            raise
        except (CopcubeError, OSError) as error:
            self.failed = error
            raise


class _Guarded:
    """A file of which GDAL reads: errors are kept, and look like the end of the file."""

    def __init__(self, file: BinaryIO, remote: _Remote) -> None:
        self._file, self._remote = file, remote
        self.seek, self.tell, self.close = file.seek, file.tell, file.close

    def __enter__(self) -> "_Guarded":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def read(self, size: int = -1) -> bytes:
        try:
            return self._file.read(size)
        except (CopcubeError, OSError) as error:
            self._remote.failed = self._remote.failed or error
            return b""


def find(path: str, ends: Sequence[str]) -> list[str]:
    """Files of some endings: that of a name or an address, or those below a folder, sorted.

    Endings are in small letters; names may have them in capital ones.

    Raises
    ------
    ReadError
        If an object store cannot be reached, denies access or cannot be listed.
    """
    if is_remote(path):
        if ends_as(path, ends):
            return [path] if sizes([path]) != [None] else []
        names = (entry.name for entry in listing(path) if ends_as(entry.name, ends))
        return [f"{path.rstrip('/')}/{name}" for name in names if "/." not in f"/{name}"]
    if not os.path.isdir(path):
        return [path] if ends_as(path, ends) and os.path.exists(path) else []
    below = (file for file in files_below(path) if ends_as(file, ends))
    return sorted(file for file in below if not os.path.basename(file).startswith("."))


def ends_as(name: str, ends: Sequence[str]) -> bool:
    """Whether a name has one of some endings, in small or in capital letters."""
    return name.lower().endswith(tuple(ends))
