"""Whether pixels are in the units that the encoder was trained with.

Units cannot be read off numbers, but the usual mistakes are far outside: linear power where
decibels are expected, reflectances of 0 to 1 where counts are, -9999 that nobody declared.
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
"""Pixels a side that are looked at in every band."""
_FAR = 5
"""Standard deviations from the mean within which values of any sensor are possible."""
_FEET = re.compile(r"\b(ft|foot|feet)\b", re.IGNORECASE)
_IMPOSSIBLE = (-9000.0, 1e6)
"""What lies beyond is in no unit of any modality, but is how files mark what is missing."""


def strange(pixels: NDArray[Any], modality: Modality) -> str | None:
    """Say what of an image's values lies far outside of its modality's.

    Parameters
    ----------
    pixels : numpy.ndarray
        (bands, rows, columns); NaN, infinities and, where the modality says so, 0 are no data.
    modality : Modality
        Says its units, and in which range the median of an image lies.

    Returns
    -------
    str or None
        Such as "a median of 0.04"; None if nothing is strange. Some pixels are looked at.
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
    """Say what an image should be like, and what to do if it is not."""
    low, high = modality.typical
    median = ""
    if math.isfinite(high - low):
        median = f", with a median between {low:g} and {high:g}: {modality.remedy}"
    return (
        f"{modality.title} is expected in {modality.units}{median}, and declare as nodata what "
        "marks missing pixels"
    )


def refuse_units(given: object, modality: Modality) -> None:
    """Refuse heights that are in feet, by what a file says: they look like any others.

    Parameters
    ----------
    given : object
        What the file says of the units of pixels; anything but a text says nothing.
    modality : Modality
        What they show.

    Raises
    ------
    OptionError
        If they are heights in feet.
    """
    if modality.key == "dem" and isinstance(given, str) and _FEET.search(given):
        raise OptionError(f"heights are said to be in {given}; expected metres: 0.3048 of a foot")


def _possible(modality: Modality) -> tuple[float, float]:
    """Range in which pixels may mean something; that of other sensors holds their statistics."""
    lowest, highest = _IMPOSSIBLE
    if modality.is_published:
        return lowest, highest
    bands = list(zip(modality.scale, modality.mean, modality.std, strict=True))
    ends = [(mean + _FAR * sign * std) / k for k, mean, std in bands for sign in (-1, 1)]
    return min(lowest, *ends), max(highest, *ends)


def require_offset(offset: Any, modality: Modality | None = None) -> int:
    """Return what is to be subtracted from counts.

    Raises
    ------
    OptionError
        If it is no whole number from 0 to 10,000, or for another modality than Sentinel-2.
    """
    counts = " counts to subtract, 1000 for Sentinel-2 of processing baseline 04.00 or later"
    number = whole_number(offset, "s2_offset", 0, 10_000, counts)
    if number and modality is not None and modality.key != "s2_toa":
        raise OptionError(f"s2_offset= is of Sentinel-2 counts; images is of {modality.title}")
    return number


def without_offset(pixels: NDArray[Any], offset: int) -> NDArray[Any]:
    """Subtract from Sentinel-2 counts what they have been higher by since baseline 04.00.

    Parameters
    ----------
    pixels : numpy.ndarray
        (bands, rows, columns), 0 or NaN where there is no data.
    offset : int
        Counts to subtract, 1000 since then; 0 for none.

    Returns
    -------
    numpy.ndarray
        In the dtype of `pixels`. Zeros stay zeros, and no other count becomes one, since 0
        means no data.
    """
    if not offset:
        return pixels
    if pixels.dtype.kind in "iu" and np.iinfo(pixels.dtype).max < offset:
        # All are below it, and NumPy 2.0 crashes where they are compared with it.
        return np.asarray(np.minimum(pixels, pixels.dtype.type(1)))
    # Not np.maximum(pixels - offset, 1): unsigned counts below the offset would wrap.
    lowered = np.where(pixels > offset, pixels - pixels.dtype.type(offset), pixels.dtype.type(1))
    return np.where(pixels > 0, lowered, pixels)
