"""From a raster to the published tensor form; scale and validity of its pixels.

The tensors of Copernicus-Pretrain were made from its rasters by kornia's
``SmallestMaxSize`` and ``CenterCrop``; `to_tensor_form` does the same with numpy:

1. the shorter side becomes S, the other ``int(S · longer/shorter)``, truncated
   (``kornia.geometry.transform.affwarp``);
2. both axes are resized bilinearly by the rule of ``torch.nn.functional.interpolate``
   with ``align_corners=True``, kornia's default, without antialiasing: of m pixels made from n,
   pixel o samples ``o·(n - 1)/(m - 1)``;
3. the window that starts at ``int((m - S) / 2)`` is kept
   (``kornia.augmentation.random_generator``);
4. integers, resized as floats, lose their fraction.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from copcube.errors import ImageError, OptionError
from copcube.modalities import MODALITIES, Modality

RESAMPLING = "bilinear, corners aligned"
"""How `to_tensor_form` resizes, as recorded in plans, rows and cubes."""

_RESCALED_BANDS = (0, 9)
_TOO_LARGE = 1e6


def to_tensor_form(pixels: NDArray[Any], modality: Modality) -> NDArray[Any]:
    """Bring a raster to the side S at which its modality is published.

    Only the pixels of the final window are computed. A raster that needs no resizing is returned as
    a view.

    Parameters
    ----------
    pixels : numpy.ndarray
        (bands, rows, columns), any size, any integer or float dtype.
    modality : Modality
        Its ``stored_size`` is S.

    Returns
    -------
    numpy.ndarray
        (bands, S, S) in the dtype of ``pixels``. Integers are truncated. A pixel of a resized
        raster is NaN if one of its source pixels is NaN.

    Raises
    ------
    ImageError
        If the array is not three-dimensional or holds no pixel.
    """
    if pixels.ndim != 3 or not pixels.size:
        raise ImageError(
            f"an array of shape {pixels.shape} is not an image; expected (bands, rows, columns), "
            "none of them 0"
        )
    size = modality.stored_size
    rows, cols = _resized(pixels.shape[1], pixels.shape[2], size)
    if (rows, cols) == pixels.shape[1:]:
        top, left = (rows - size) // 2, (cols - size) // 2
        return pixels[:, top : top + size, left : left + size]
    resized = _resize_axis(_resize_axis(pixels, 2, cols, size), 1, rows, size)
    return resized.astype(pixels.dtype, copy=False)


def mend(pixels: NDArray[Any], modality: Modality) -> tuple[NDArray[Any], bool]:
    """Undo what publishing did to pixels, in the same way for all images.

    Repeating it changes nothing.

    Parameters
    ----------
    pixels : numpy.ndarray
        (bands, rows, columns), any real dtype; NaN where there is no data.
    modality : Modality
        What they show. Pixels of sensors other than the published ones are left unchanged.

    Returns
    -------
    pixels : numpy.ndarray
        `unwrapped`; for Sentinel-3 in float32 and corrected by `rescale_s3`.
    rescaled : bool
        Whether bands of Sentinel-3 were corrected.
    """
    if modality == MODALITIES["s3_olci"]:
        with np.errstate(over="ignore"):
            return rescale_s3(pixels.astype(np.float32, copy=False))
    return unwrapped(pixels, modality), False


def unwrapped(pixels: NDArray[Any], modality: Modality) -> NDArray[Any]:
    """View int16 counts of Sentinel-2 as the uint16 that wrapped above 32767.

    Other counts and imagery of other sensors are returned unchanged.
    """
    wrapped = modality == MODALITIES["s2_toa"] and pixels.dtype.newbyteorder("=") == np.int16
    return pixels.view(pixels.dtype.str.replace("i", "u")) if wrapped else pixels


def rescale_s3(pixels: NDArray[Any]) -> tuple[NDArray[Any], bool]:
    """Undo the factor of 1e9 in bands Oa01 and Oa10 of some Sentinel-3 tensors.

    The pretraining code multiplies these two bands by 1e-9 unconditionally. Here a band is
    corrected only if its median magnitude exceeds 1e6: radiances stay below 1e5.

    Parameters
    ----------
    pixels : numpy.ndarray
        (21, rows, columns) float.

    Returns
    -------
    pixels : numpy.ndarray
        The input itself, or a corrected copy.
    rescaled : bool
        Whether any band was corrected.
    """
    wrong = [band for band in _RESCALED_BANDS if _is_too_large(pixels[band])]
    if not wrong:
        return pixels, False
    corrected = pixels.copy()
    corrected[wrong] *= 1e-9
    return corrected, True


def has_valid_pixel(pixels: NDArray[Any], modality: Modality) -> bool:
    """Whether any pixel of an image (bands, rows, columns) holds data.

    NaN and infinities are no data, as is 0 in every band if the modality says so
    (`Modality.zero_is_missing`); an elevation model of only 0 is the sea.
    """
    if not pixels.size:
        return False
    _, rows, columns = pixels.shape
    # Nearly all images have data in the middle, and one pixel is checked faster than all.
    middle = pixels.item(0, rows // 2, columns // 2)
    if math.isfinite(middle) and (middle != 0 or not modality.zero_is_missing):
        return True
    for band in pixels:
        valid = np.isfinite(band)
        if modality.zero_is_missing:
            valid &= band != 0
        if valid.any():
            return True
    return False


def declared_missing(pixels: NDArray[Any], nodata: float, modality: Modality) -> NDArray[np.bool_]:
    """Which pixels of an image (bands, rows, columns), as it is stored, equal its nodata value.

    For whole numbers, and modalities where 0 in every band means no data, a nodata value of 0 means
    pixels that are 0 in every band, since a single dark band may be 0.
    """
    with np.errstate(over="ignore"):
        equal = pixels == (pixels.dtype.type(nodata) if pixels.dtype.kind == "f" else nodata)
    if nodata == 0 and (pixels.dtype.kind != "f" or modality.zero_is_missing):
        equal &= equal.all(axis=0)
    return np.asarray(equal)


def with_nan(
    pixels: NDArray[Any], missing: NDArray[np.bool_] | None, modality: Modality
) -> NDArray[np.float32]:
    """Stored pixels as float32, NaN where they are missing."""
    with np.errstate(over="ignore"):
        found = unwrapped(pixels, modality).astype(np.float32)
    if missing is not None:
        found[missing] = np.nan
    return found


def scaled(
    pixels: NDArray[Any], scales: NDArray[Any], offsets: NDArray[Any], modality: Modality
) -> NDArray[Any]:
    """Apply the scales and offsets that a file declares for its bands.

    Counts of Sentinel-2 are used as stored, and so are the pixels of users' own sensors, whose
    statistics describe stored pixels (`takes_scales`).

    Parameters
    ----------
    pixels : numpy.ndarray
        (bands, rows, columns), in the stored dtype of the modality, NaN where there is no data.
    scales, offsets : numpy.ndarray
        (bands, 1, 1) float64.
    modality : Modality
        What they show.
    """
    if not takes_scales(modality) or not ((scales != 1) | (offsets != 0)).any():
        return pixels
    with np.errstate(over="ignore"):
        return np.asarray((pixels * scales + offsets).astype(np.float32))


def refuse_unusable_scales(scales: NDArray[Any], offsets: NDArray[Any]) -> None:
    """Refuse scales of 0, which would make all pixels equal, and values that are not finite.

    Raises
    ------
    OptionError
        If there is one.
    """
    for name, values, good in (
        ("scale", scales, np.isfinite(scales) & (scales != 0)),
        ("offset", offsets, np.isfinite(offsets)),
    ):
        if not good.all():
            raise OptionError(
                f"a {name} of {values[~good][0]:g} is declared for pixels; expected a finite "
                "number, and for a scale not 0: correct it in the file, or remove it"
            )


def takes_scales(modality: Modality) -> bool:
    """Whether declared scales and offsets are applied to a modality's pixels."""
    return modality.is_published and modality.key != "s2_toa"


def _resized(rows: int, cols: int, size: int) -> tuple[int, int]:
    """Rows and columns once the shorter side is ``size``; the longer one is truncated.

    In kornia's order of operations, so that 960 × 965 becomes 960 × 964 as there.
    """
    aspect = cols / rows
    return (int(size / aspect), size) if aspect < 1 else (size, int(size * aspect))


def _resize_axis(pixels: NDArray[Any], axis: int, length: int, size: int) -> NDArray[Any]:
    """Resize one axis linearly to ``length`` and keep the ``size`` pixels at its centre."""
    start, old = (length - size) // 2, pixels.shape[axis]
    work = np.result_type(pixels.dtype, np.float32).type
    step = work(old - 1) / work(max(length - 1, 1))
    position = step * np.arange(start, start + size, dtype=work)
    lower = np.minimum(position.astype(np.intp), old - 1)
    upper = np.minimum(lower + 1, old - 1)
    weight = np.clip(position - lower.astype(work), 0, 1)
    weight = weight.reshape(-1, *(1,) * (pixels.ndim - 1 - axis))
    before, after = np.take(pixels, lower, axis), np.take(pixels, upper, axis)
    with np.errstate(invalid="ignore"):  # infinities become NaN
        # torch adds the first product before rounding it to float32; a sum rounded differently
        # would sometimes truncate to another integer.
        exact = before * (1 - weight).astype(np.float64)
        return np.asarray((exact + after * weight).astype(work))


def _is_too_large(band: NDArray[Any]) -> bool:
    """Whether the median of the finite absolute values of a band exceeds 1e6."""
    sizes = np.abs(band)
    # The maximum bounds the median and is found much faster.
    if not np.fmax.reduce(sizes, axis=None, initial=0) > _TOO_LARGE:
        return False
    finite = sizes[np.isfinite(sizes)]
    return bool(finite.size and np.median(finite) > _TOO_LARGE)
