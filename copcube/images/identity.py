"""Which image it is, and the last step to an `Image`, whatever file it came from."""

import datetime
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from copcube import grid
from copcube.errors import ImageError
from copcube.images import Image, Rejected
from copcube.images.pixels import has_valid_pixel, rescale_s3
from copcube.modalities import MODALITIES, ORDER


@dataclass(frozen=True)
class Identity:
    """What tells an image from all others: one that agrees in all four is a duplicate.

    Parameters
    ----------
    modality : str
        Key of its modality.
    grid_id : int
        Published id of its cell.
    local_id : str or None
        Published text form of its local patch; None for modalities without.
    date : str or None
        YYYYMMDD; None for the DEM.
    """

    modality: str
    grid_id: int
    local_id: str | None = None
    date: str | None = None

    @property
    def order(self) -> tuple[int, int, str, str]:
        """Key of the fixed order of images: modality, cell, local patch, date."""
        return ORDER[self.modality], self.grid_id, self.local_id or "", self.date or ""

    def image(self, pixels: NDArray[Any], file: str, member: str = "") -> Image | Rejected:
        """Make the image from its pixels, if any of them holds data.

        Parameters
        ----------
        pixels : numpy.ndarray
            (bands, S, S), the published tensor form, in the stored dtype.
        file, member : str
            Where they were read from.
        """
        modality, rescaled = MODALITIES[self.modality], False
        if not has_valid_pixel(pixels, modality):
            return Rejected(file, member, "empty", f"{self}: no valid pixel")
        if self.modality == "s3_olci":
            pixels, rescaled = rescale_s3(pixels)
        if self.local_id is None:
            lat, lon = grid.centre(self.grid_id)
        else:
            lat, lon = grid.parse_local(self.local_id)
        return Image(
            grid_id=self.grid_id,
            modality=self.modality,
            local_id=self.local_id,
            date=self.date,
            lon=-180.0 if lon == 180 else lon,
            lat=lat,
            pixels=pixels,
            origin=f"{file}:{member}" if member else file,
            rescaled=rescaled,
        )

    def __str__(self) -> str:
        cell = grid.format_cell(self.grid_id)
        return " ".join(filter(None, (self.modality, cell, self.local_id, self.date)))


def check_date(text: str) -> str:
    """Return a date YYYYMMDD as it is, if it is a day of the calendar.

    Raises
    ------
    ImageError
        If it is not.
    """
    try:
        if not re.fullmatch(r"\d{8}", text, re.ASCII):
            raise ValueError
        datetime.date(int(text[:4]), int(text[4:6]), int(text[6:]))
    except ValueError:
        raise ImageError(f"{text!r} is no date; expected a day such as 20210301") from None
    return text


def to_stored(pixels: NDArray[Any], modality: str) -> NDArray[Any]:
    """Bring pixels to the dtype in which a modality is handed to the encoder.

    Parameters
    ----------
    pixels : numpy.ndarray
        As read.
    modality : str
        Key of the modality.

    Returns
    -------
    numpy.ndarray
        uint16 for Sentinel-2, whose published tensors are int16 and wrap above 32767;
        float32 for all others.

    Raises
    ------
    ImageError
        If the dtype cannot be that of the modality.
    """
    dtype = pixels.dtype
    if MODALITIES[modality].tensor_dtype == "int16":
        if dtype not in (np.dtype("uint16"), np.dtype("int16")):
            raise ImageError(f"expected {modality} as uint16 or int16, found {dtype}")
        return pixels.view(np.uint16)
    if not (np.issubdtype(dtype, np.floating) or np.issubdtype(dtype, np.integer)):
        raise ImageError(f"expected {modality} as real numbers, found {dtype}")
    with np.errstate(over="ignore"):
        return pixels.astype(np.float32, copy=False)
