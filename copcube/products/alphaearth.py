"""AlphaEarth Foundations' annual Satellite Embedding: GeoTIFF files of 64 bands of int8, in UTM.

A value v of the vector is stored as q, with v = sign(q) · (q / 127.5)², and -128 in pixels without
data (developers.google.com/earth-engine/guides/aef_on_gcs_readme). Released files lie in folders
named after year and zone, ``2025/54N/….tiff``. Some have their first line in the south; either
order is taken, as the file's transform says. Overviews are not used: their vectors were brought to
length 1 again, so that they are no means.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from copcube.errors import RowsError
from copcube.files.folders import absolute
from copcube.files.objects import file_size
from copcube.grid import Floats
from copcube.products import geotiff
from copcube.products.pixels import Pixels, Raster

DIM = 64
NODATA = -128
_ENDS = (".tif", ".tiff")
_YEAR = re.compile(r"(?<!\d)20[12]\d(?!\d)")


class AlphaEarthRaster:
    """One file; see `copcube.products.pixels.Raster`.

    Parameters
    ----------
    path : str
        Of the file.

    Raises
    ------
    RowsError
        If it is not in the released form.
    """

    def __init__(self, path: str) -> None:
        head = geotiff.head(path)
        types = sorted(set(head.dtypes))
        if head.bands != DIM or types != ["int8"]:
            raise RowsError(
                f"{path}: it has {head.bands} bands of {', '.join(types)}; files of AlphaEarth's "
                f"embeddings have {DIM} of int8. Dequantised or reduced files are not accepted; "
                "get the released files. Images are embedded by `copcube build`"
            )
        if head.nodata not in (None, NODATA):
            raise RowsError(
                f"{path}: it marks pixels without data by {head.nodata:g}; expected {NODATA}, as "
                "in the released files"
            )
        self.path, self.place, self.dim = path, head.place, DIM
        self.height, self.width = head.height, head.width
        self.year = _year(path)

    def read(self, rows: slice, cols: slice) -> Pixels:
        """Read a window; see `copcube.products.pixels.Raster`."""
        values = geotiff.read(self.path, rows, cols)
        return Pixels(values, (values != NODATA).all(axis=0))

    def decode(self, values: NDArray[Any], out: Floats) -> None:
        """Decode values; see `copcube.products.pixels.Raster`."""
        # All bytes are in the table, so that "clip" changes none; it needs no copy of `out`.
        np.take(_LEVELS, values.view(np.uint8), mode="clip", out=out)


def _year(path: str) -> int | None:
    """Year of a file: that of a folder called so, else what its own name says, or a folder's."""
    # Wherever the command runs, so that a name such as 54N/a.tiff lies in the same folder.
    *folders, name = Path(absolute(path)).parts[-3:]
    nearest = folders[::-1]
    exact = [match[0] for part in nearest if (match := _YEAR.fullmatch(part))]
    named = [match[0] for part in (name, *nearest) if (match := _YEAR.search(part))]
    return next(map(int, exact + named), None)


_STEPS = np.arange(256, dtype=np.uint8).view(np.int8) / 127.5
_LEVELS = np.sign(_STEPS) * _STEPS**2
"""Value of each byte."""


class AlphaEarth:
    """The product; see `copcube.products.pixels.Reader`."""

    about = {  # noqa: RUF012 (the protocol's attribute; nobody changes it)
        "product": "AlphaEarth Foundations Satellite Embedding V1",
        "encoder": "AlphaEarth Foundations",
        "title": "AlphaEarth embeddings on ERA5's 0.25 degree grid",
        "license": "CC-BY-4.0",
        "attribution": "The AlphaEarth Foundations Satellite Embedding dataset is produced by "
        "Google and Google DeepMind.",
        "references": "https://arxiv.org/abs/2507.22291",
        "source": "AlphaEarth Foundations Satellite Embedding, annual, 10 m",
        "preprocessing": "dequantised from int8: sign(q) (q / 127.5)^2",
    }

    def files(self, path: str) -> list[str]:
        """Find files; see `copcube.products.pixels.Reader`."""
        return geotiff.find(path, _ENDS)

    def owns(self, file: str) -> bool:
        """Recognise one by its name; see `copcube.products.pixels.Reader`."""
        return geotiff.ends_as(file, _ENDS)

    def rasters(self, file: str) -> Sequence[Raster]:
        """Open one; see `copcube.products.pixels.Reader`."""
        return [AlphaEarthRaster(file)]

    def size(self, file: str) -> int:
        """Size in bytes; see `copcube.products.pixels.Reader`."""
        return file_size(file)
