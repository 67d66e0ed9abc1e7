"""Checks that pixels are in the units that the encoder was trained with.

Units cannot be inferred from numbers, but the usual mistakes give values far outside the range:
linear power instead of decibels, reflectances of 0 to 1 instead of counts, an undeclared -9999.
"""

import math
import re
from typing import Any

import numpy as np
from numpy.typing import NDArray

from copcube.arguments import whole_number
from copcube.errors import OptionError
from copcube.modalities import Modality

_SAMPLES = 8
"""Pixels per side that are examined in every band."""
_FAR = 5
"""Standard deviations from the mean within which values of any sensor are possible."""
_FEET = re.compile(r"\b(ft|foot|feet)\b", re.IGNORECASE)
_IMPOSSIBLE = (-9000.0, 1e6)
"""Values beyond this are in no unit of any modality; files use them to mark missing pixels."""


def strange(pixels: NDArray[Any], modality: Modality) -> str | None:
    """Describe values of an image that are far outside its modality's range.

    Parameters
    ----------
    pixels : numpy.ndarray
        (bands, rows, columns); NaN, infinities and, if the modality says so, 0 are no data.
    modality : Modality
        Has the units, and the range of an image's median.

    Returns
    -------
    str or None
        Such as "a median of 0.04"; None if nothing is unusual. Only some pixels are examined.
    """
    rows, columns = (max(1, length // _SAMPLES) for length in pixels.shape[1:])
    some = pixels[:, rows // 2 :: rows, columns // 2 :: columns]
    some = some[np.isfinite(some)]
    if modality.zero_is_missing:
        some = some[some != 0]
    if not some.size:
        return None
    lowest, highest = _possible(modality)
    for extreme in (float(some.min()), float(some.max())):
        if not lowest < extreme < highest:
            return f"pixels of {extreme:.7g}"
    low, high = modality.typical
    median = float(np.median(some))
    return None if low < median < high else f"a median of {median:.3g}"


def remedy(modality: Modality) -> str:
    """Describe what an image should be like, and what to do if it is not."""
    low, high = modality.typical
    median = ""
    if math.isfinite(high - low):
        median = f", with a median between {low:g} and {high:g}: {modality.remedy}"
    return (
        f"{modality.title} is expected in {modality.units}{median}, with the value of missing "
        "pixels declared as nodata"
    )


def refuse_units(given: object, modality: Modality) -> None:
    """Refuse heights that a file says are in feet: they look like any others.

    Parameters
    ----------
    given : object
        The file's units of pixels; ignored unless a text.
    modality : Modality
        What they show.

    Raises
    ------
    OptionError
        If they are heights in feet.
    """
    if modality.key == "dem" and isinstance(given, str) and _FEET.search(given):
        raise OptionError(f"heights are in {given}; expected metres (1 ft = 0.3048 m)")


def _possible(modality: Modality) -> tuple[float, float]:
    """Range of possible pixel values; for other sensors, it contains their statistics."""
    lowest, highest = _IMPOSSIBLE
    if modality.is_published:
        return lowest, highest
    bands = list(zip(modality.scale, modality.mean, modality.std, strict=True))
    ends = [(mean + _FAR * sign * std) / k for k, mean, std in bands for sign in (-1, 1)]
    return min(lowest, *ends), max(highest, *ends)


def require_offset(offset: Any, modality: Modality | None = None) -> int:
    """Check and return the offset to subtract from counts.

    Raises
    ------
    OptionError
        If it is not a whole number from 0 to 10,000, or not for Sentinel-2.
    """
    counts = " counts to subtract, 1000 for Sentinel-2 of processing baseline 04.00 or later"
    number = whole_number(offset, "s2_offset", 0, 10_000, counts)
    if number and modality is not None and modality.key != "s2_toa":
        raise OptionError(
            f"s2_offset= is for Sentinel-2 counts; these images are of {modality.title}"
        )
    return number


def without_offset(pixels: NDArray[Any], offset: int) -> NDArray[Any]:
    """Subtract from Sentinel-2 counts the offset added since baseline 04.00.

    Parameters
    ----------
    pixels : numpy.ndarray
        (bands, rows, columns), 0 or NaN where there is no data.
    offset : int
        Counts to subtract, 1000 since then; 0 for none.

    Returns
    -------
    numpy.ndarray
        In the dtype of `pixels`. Zeros stay zeros, and no other count becomes 0, since 0 means no
        data.
    """
    if not offset:
        return pixels
    if pixels.dtype.kind in "iu" and np.iinfo(pixels.dtype).max < offset:
        # All counts are below it, and NumPy 2.0 crashes when comparing them with it.
        return np.asarray(np.minimum(pixels, pixels.dtype.type(1)))
    # Not np.maximum(pixels - offset, 1): unsigned counts below the offset would wrap.
    lowered = np.where(pixels > offset, pixels - pixels.dtype.type(offset), pixels.dtype.type(1))
    return np.where(pixels > 0, lowered, pixels)
