"""The pixels of a GeoTIFF, read in one way for builds and for searches by an image.

Bands are found by their descriptions, rows and columns by the transform. What the nodata value or
a mask excludes is no data: a mask inside, an alpha band, or the file ``.msk`` beside the image.
Other files beside it (``.aux.xml``, ``.tfw``, ``.ovr``) say nothing.
"""

import os
import re
import uuid
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from copcube.errors import ImageError, OptionError
from copcube.files import limits
from copcube.files.contents import HEAD, other_than, refuse_other
from copcube.files.limits import demand
from copcube.files.regular import require_file
from copcube.images.bands import order
from copcube.images.naming import to_stored
from copcube.images.tensor_form import (
    declared_missing,
    refuse_unusable_scales,
    scaled,
    takes_scales,
)
from copcube.images.units import refuse_units
from copcube.modalities import Modality

MASK = ".msk"
"""Suffix that GDAL adds to an image's name for its mask."""

_IN_MEMORY = re.compile(r"(?:/vsimem/[0-9a-f-]{36}/)?[0-9a-f-]{36}\.tif(?:\.msk)?")

_places = lru_cache(maxsize=256)(order)
"""Positions of a modality's bands; most files of a tree have the same descriptions."""


@dataclass(frozen=True)
class Stored:
    """Pixels of a GeoTIFF, north up.

    Parameters
    ----------
    pixels : numpy.ndarray
        (bands, rows, columns), stored bands of the modality in its order.
    missing : numpy.ndarray or None
        Which of them are no data, (bands or 1, rows, columns); None if all are data.
    scales, offsets : numpy.ndarray
        (bands, 1, 1), as the file declares them.
    y, x : numpy.ndarray or None
        Centres of rows and columns in units of `crs`; None without a georeference.
    crs : rasterio.crs.CRS or None
        Coordinate reference system of the file.
    """

    pixels: NDArray[Any]
    missing: NDArray[np.bool_] | None
    scales: NDArray[np.float64]
    offsets: NDArray[np.float64]
    y: NDArray[np.float64] | None
    x: NDArray[np.float64] | None
    crs: Any

    def of(self, modality: Modality) -> NDArray[Any]:
        """Pixels in the stored dtype of a modality, scaled as the file declares.

        No data is NaN, or in Sentinel-2 counts 0 in every band; if only some bands of a pixel have
        no data, the counts are float32.

        Raises
        ------
        ImageError
            If the dtype cannot be that of the modality.
        """
        pixels = to_stored(self.pixels, modality)
        if self.missing is not None:
            # A single 0 would be a dark pixel.
            if pixels.dtype != np.float32 and (self.missing != self.missing.all(axis=0)).any():
                pixels = pixels.astype(np.float32)
            np.copyto(pixels, np.nan if pixels.dtype == np.float32 else 0, where=self.missing)
        return scaled(pixels, self.scales, self.offsets, modality)


@contextmanager
def opened_bytes(raw: bytes, mask: bytes | None = None) -> Iterator[Any]:
    """Open the bytes of a GeoTIFF and of the mask beside it as a rasterio dataset.

    Raises
    ------
    ImageError
        If they have another format, or the mask has another size.
    rasterio.errors.RasterioError
        If they cannot be read.
    """
    import rasterio
    from rasterio.errors import NotGeoreferencedWarning
    from rasterio.io import MemoryFile

    if (other := other_than(("tiff",), raw[:HEAD])) is not None:
        raise ImageError(f"expected a GeoTIFF, found {other}")
    # In memory GDAL can address uncompressed files directly, twice as fast for interleaved bands,
    # and finds no neighbouring file except the one it is given.
    with ExitStack() as stack:
        stack.enter_context(rasterio.Env(GTIFF_VIRTUAL_MEM_IO="YES"))
        if mask is None:
            memory = stack.enter_context(MemoryFile(raw))
        else:
            if (other := other_than(("tiff",), mask[:HEAD])) is not None:
                raise ImageError(f"{MASK}: expected a GeoTIFF, found {other}")
            # Masks have no georeference. Threads share one list of filters, so this is not undone.
            warnings.filterwarnings("ignore", category=NotGeoreferencedWarning)
            folder = str(uuid.uuid4())
            name = f"{folder}.tif"
            memory = stack.enter_context(MemoryFile(raw, dirname=folder, filename=name))
            beside = stack.enter_context(MemoryFile(mask, dirname=folder, filename=name + MASK))
        raster = stack.enter_context(memory.open(driver="GTiff"))
        if mask is not None:
            with beside.open(driver="GTiff") as of_mask:
                _check_mask(of_mask, raster, MASK)
        yield raster


@contextmanager
def opened_file(path: str | Path) -> Iterator[Any]:
    """Open a GeoTIFF from anywhere; only what is requested is read.

    Raises
    ------
    ImageError
        If it does not exist, or it or the mask beside it is something else.
    rasterio.errors.RasterioError
        If it cannot be read.
    """
    import rasterio

    mask = f"{path}{MASK}"
    for file in (path, mask):
        require_file(file, ImageError)
        refuse_other(file, ("tiff",), "a GeoTIFF", ImageError)
    if not os.path.exists(path):
        raise ImageError(f"{path}: no such file")
    # GDAL's other drivers are excluded: some open what a file names.
    with (
        rasterio.Env(GDAL_PAM_ENABLED="NO"),
        rasterio.open(path, driver="GTiff", GEOREF_SOURCES="INTERNAL") as raster,
    ):
        if os.path.exists(mask):
            with rasterio.open(mask, driver="GTiff") as of_mask:
                _check_mask(of_mask, raster, mask)
        yield raster


def _check_mask(mask: Any, raster: Any, name: str) -> None:
    """Refuse a mask of another size, since GDAL would read its corner."""
    if mask.shape != raster.shape or mask.count not in (1, raster.count):
        raise ImageError(
            f"{name}: the mask has {mask.height} × {mask.width} pixels in {mask.count} bands, and "
            f"the image {raster.height} × {raster.width} in {raster.count}; expected the same"
        )
    for rows, cols in mask.block_shapes:
        demand(limits.RASTER, rows * cols, f"{name}: {rows} × {cols} pixels", ImageError)


def reason(error: Exception) -> str:
    """GDAL's own message, made reproducible: it contains a random name for a file in memory."""
    return _IN_MEMORY.sub("the file", str(error.__cause__ or error))


def places_of(raster: Any, modality: Modality) -> list[int]:
    """Find which bands of an open raster are those of a modality, in its order, from 0.

    Raises
    ------
    ImageError
        If there are too many or too few, or they hold complex numbers.
    OptionError
        If their descriptions are not understood.
    """
    count = len(modality.bands)
    found = _places(raster.descriptions, modality, described=True)
    if found is None and raster.count != count:
        raise ImageError(f"expected {count} bands of {modality.key}, found {raster.count}")
    if any(dtype.startswith("complex") for dtype in raster.dtypes):
        raise ImageError(f"expected real numbers, found {raster.dtypes[0]}")
    return list(range(count)) if found is None else found


def read(raster: Any, places: list[int], modality: Modality, side: int | None = None) -> Stored:
    """Read bands of an open raster, whole or a square from the middle of the image.

    Parameters
    ----------
    raster : rasterio.DatasetReader
        From `opened_bytes` or `opened_file`.
    places : list of int
        Positions of the bands, see `places_of`.
    modality : Modality
        What they show.
    side : int, optional
        Side of the square in pixels; nothing else is read then.

    Raises
    ------
    ImageError
        If the raster is rotated by an angle that is not a multiple of 90°, or if only ground
        control points place it.
    OptionError
        If it is smaller than the square, or declares impossible scales or units.
    """
    scales, offsets = (
        np.array(values, np.float64)[places, None, None]
        for values in (raster.scales, raster.offsets)
    )
    if takes_scales(modality):
        refuse_unusable_scales(scales, offsets)
    refuse_units(raster.units[places[0]], modality)
    turns = _turns(raster)
    window = None if side is None else _middle(raster.shape, turns, side)
    # Reading all at once is faster than one after the other.
    bands = None if places == list(range(raster.count)) else [place + 1 for place in places]
    pixels = raster.read(bands, window=window)
    missing = _missing(raster, places, pixels, modality, window)
    y = x = None
    if not raster.transform.is_identity:
        y, x = _centres(raster, turns, window)
    return Stored(
        turns.of(pixels),
        None if missing is None else turns.of(missing),
        scales,
        offsets,
        y,
        x,
        raster.crs,
    )


@dataclass(frozen=True)
class _Turns:
    """How to turn a raster north up: transpose it, then reverse rows and columns."""

    across: bool = False
    rows: int = 1
    cols: int = 1

    def of(self, pixels: NDArray[Any]) -> NDArray[Any]:
        """Turn pixels (bands, rows, columns); a view."""
        turned = pixels.transpose(0, 2, 1) if self.across else pixels
        return turned[:, :: self.rows, :: self.cols]


def _turns(raster: Any) -> _Turns:
    """Find how to turn rows southwards and columns eastwards.

    Raises
    ------
    ImageError
        If the raster is rotated by an angle that is not a multiple of 90°, or if only ground
        control points place it.
    """
    transform = raster.transform
    if transform.is_identity:
        if raster.gcps[0]:
            raise ImageError(
                "its pixels are placed by ground control points, so its rows may run in any "
                "direction; expected a north-up raster: warp it with gdalwarp"
            )
        return _Turns()  # no georeference
    across = bool(transform.b or transform.d)
    if across and (transform.a or transform.e):
        raise ImageError(
            f"its rows and columns are rotated, by the transform {tuple(transform)[:6]}; "
            "expected a north-up raster: warp it with gdalwarp"
        )
    east, down = (transform.b, transform.d) if across else (transform.a, transform.e)
    return _Turns(across, 1 if down < 0 else -1, 1 if east > 0 else -1)


def _middle(shape: tuple[int, int], turns: _Turns, side: int) -> Any:
    """Window of a raster in the middle of the image, seen north up."""
    from rasterio.windows import Window

    if min(shape) < side:
        raise OptionError(
            f"{shape[0]} × {shape[1]} pixels; expected at least {side} × {side}, which the encoder "
            "sees"
        )
    steps = (turns.cols, turns.rows) if turns.across else (turns.rows, turns.cols)
    # From the other end if the line is reversed.
    top, left = (
        (length - side) // 2 if step > 0 else length - side - (length - side) // 2
        for length, step in zip(shape, steps, strict=True)
    )
    return Window(left, top, side, side)


def _centres(
    raster: Any, turns: _Turns, window: Any
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Coordinates of the centres of rows and columns, north up."""
    to, (height, width) = raster.transform, raster.shape
    rows, cols = np.arange(height) + 0.5, np.arange(width) + 0.5
    if window is not None:
        rows = rows[window.row_off : window.row_off + window.height]
        cols = cols[window.col_off : window.col_off + window.width]
    if turns.across:
        y, x = to.f + to.d * cols, to.c + to.b * rows
    else:
        y, x = to.f + to.e * rows, to.c + to.a * cols
    return y[:: turns.rows], x[:: turns.cols]


def _missing(
    raster: Any, places: list[int], pixels: NDArray[Any], modality: Modality, window: Any
) -> NDArray[np.bool_] | None:
    """Which stored pixels of an open raster hold no data; None if all hold data."""
    nodata = raster.nodata
    missing = None if nodata is None else declared_missing(pixels, nodata, modality)
    return either(missing, masked_out(raster, places, window))


def either(
    first: NDArray[np.bool_] | None, second: NDArray[np.bool_] | None
) -> NDArray[np.bool_] | None:
    """Pixels that one mask or the other excludes; None if there is neither."""
    if first is None or second is None:
        return second if first is None else first
    return first | second


def masked_out(raster: Any, places: list[int], window: Any = None) -> NDArray[np.bool_] | None:
    """Which pixels, (1 or bands, rows, columns), the masks of bands exclude; None without masks."""
    from rasterio.enums import ColorInterp, MaskFlags

    # A mask of the nodata value alone would exclude single bands that are 0, and GDAL treats an
    # alpha band as a mask only for one or three other bands without a nodata value.
    others = {MaskFlags.all_valid, MaskFlags.nodata, MaskFlags.alpha}
    kinds = [set(raster.mask_flag_enums[place]) for place in places]
    if all(MaskFlags.per_dataset in kind and MaskFlags.alpha not in kind for kind in kinds):
        return np.asarray(raster.read_masks([places[0] + 1], window=window) == 0)
    if any(own := [not kind & others for kind in kinds]):
        masks = raster.read_masks([place + 1 for place in places], window=window)
        return np.asarray((masks == 0) & np.array(own)[:, None, None])
    if ColorInterp.alpha in raster.colorinterp:
        alpha = raster.colorinterp.index(ColorInterp.alpha)
        # A band that is itself requested is not a mask of the others.
        if alpha not in places:
            return np.asarray(raster.read([alpha + 1], window=window) == 0)
    return None
