"""One vector per image: a NumPy batch with its metadata, embedded as in a build."""

import logging
from typing import Any, get_args

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray

from copcube.arguments import as_given, one_of, whole_number
from copcube.embedding.axes import arranged, nodata_of, scales_of
from copcube.embedding.encoders import Encoder, Spec, as_encoder
from copcube.embedding.georeference import days_since_1970, within_code
from copcube.embedding.partition import DEM_DAYS, Crop, cropped, not_finite
from copcube.errors import OptionError
from copcube.images.sensors import Given, modality_of
from copcube.images.tensor_form import declared_missing, has_valid_pixel, mend, scaled, with_nan
from copcube.images.units import remedy, require_offset, strange, without_offset
from copcube.modalities import Modality

log = logging.getLogger("copcube")


def embed_batch(
    images: ArrayLike,
    modality: str | Given,
    *,
    lon: ArrayLike | None = None,
    lat: ArrayLike | None = None,
    date: Any = None,
    crop: Crop = "center",
    s2_offset: int = 0,
    encoder: Encoder | Spec | None = None,
    weights: str = "hub",
    batch_size: int | None = None,
    device: str = "auto",
    dtype: str = "auto",
) -> NDArray[np.float32]:
    """Embed whole images, one vector each, exactly as a build embeds them.

    To cut scenes into tiles, use `copcube.embed`.

    Parameters
    ----------
    images : array_like
        (…, bands, rows, columns), bands in published order, any real dtype, in the units of
        the modality; a tensor of a published shard as it is. Counts of Sentinel-2 in int16
        are taken for uint16 that wrapped, and bands Oa01 and Oa10 of Sentinel-3 may come 1e9
        too large, as in the published files. What a masked array masks is no data. Of an
        xarray.DataArray names of dimensions, labels of bands and declared nodata are heeded, as
        `copcube.embed` does.
    modality : str, or Path, mapping or Modality
        Key of the modality of all images: ``"s2_toa"``, ``"s1_grd"``…; or the description of your
        own sensor, such as a TOML file, see `copcube.sensor`.
    lon, lat : array_like, optional
        Degrees of the images' centres, for all or for each of them: they broadcast to the
        leading axes of `images`. NaN, None or what is masked is unknown.
    date : optional
        Date of all images, or of each of them: dates of any kind, see `copcube.dates.day`.
        None and NaT are unknown; the DEM has 2015-01-01 by default, as in pretraining.
    crop : {"center", "full"}
        The pretraining size from the middle of larger images (default), or everything.
    s2_offset : int
        Counts to subtract from Sentinel-2, 1000 since processing baseline 04.00.
    encoder : Encoder or copcube.EncoderSpec, optional
        The encoder, or what to load; then `weights`, `device` and `dtype` do not matter.
    weights : str
        What to load: ``"hub"``, ``"large"``, a file, ``"untrained:SEED"``.
    batch_size : int, optional
        Images to embed at once. Default: the encoder decides, as for a build.
    device, dtype : str
        Where and in what precision to run; see `copcube.encoder.EncoderSpec`. Give
        ``dtype="float32"`` to compare vectors with published ones.

    Returns
    -------
    numpy.ndarray
        (…, dim) float32; NaN for images without a valid pixel, and, logged, for those whose
        vectors are not finite.

    Raises
    ------
    OptionError
        If the images have not the bands of the modality or are no squares, or metadata or
        options do not fit them.

    Examples
    --------
    >>> import copcube                                                  # doctest: +SKIP
    >>> vectors = copcube.embed_batch(                                  # doctest: +SKIP
    ...     images, "s2_toa", lon=[11.6, -70.1], lat=48.1, date=["2021-06-01", "2021-07-11"]
    ... )
    """
    model = as_encoder(encoder, weights=weights, device=device, dtype=dtype)
    kind = modality_of(modality)
    s2_offset = require_offset(s2_offset, kind)
    if batch_size is not None:
        batch_size = whole_number(batch_size, "batch_size", 1)
    pixels = _checked(_pixels(images, kind), kind, crop)
    leading = pixels.shape[:-3]
    rows = _metadata(leading, kind, lon, lat, date).reshape(-1, 4)
    flat = pixels.reshape(-1, *pixels.shape[-3:])
    # Left out before batching, as in a build, whose batches hold only valid images.
    valid = [number for number, image in enumerate(flat) if has_valid_pixel(image, kind)]
    vectors = np.full((len(flat), model.dim), np.nan, dtype=np.float32)
    # By the side that the encoder will see, not that of the file.
    step = batch_size or model.batch_size(kind.asked, pixels.shape[-1])
    warned = False
    for start in range(0, len(valid), step):
        some = valid[start : start + step]
        mended = [without_offset(mend(flat[i], kind)[0], s2_offset) for i in some]
        found = model(kind.asked, mended, rows[some])
        for number, image, vector in zip(some, mended, found, strict=True):
            # One warning per call: a whole batch usually has the same problem.
            if not warned and (what := strange(image, kind)):
                warned = True
                log.warning("image %d has %s; %s", number, what, remedy(kind))
            if np.isfinite(vector).all():
                vectors[number] = vector
            else:
                log.warning("image %d is left out: %s", number, not_finite(image))
    return vectors.reshape(*leading, model.dim)


def _pixels(images: Any, kind: Modality) -> NDArray[Any]:
    """Pixels (…, bands, rows, columns) of arrays of any kind; NaN where they say it is no data."""
    if isinstance(images, xr.DataArray):
        return _labelled(images, kind)
    if hasattr(images, "detach"):  # a tensor of torch, perhaps on a GPU, which NumPy cannot ask
        images = images.detach().cpu()
        images = images.float() if str(images.dtype) == "torch.bfloat16" else images
    if isinstance(images, list | tuple) and any(map(np.ma.isMaskedArray, images)):
        images = np.ma.stack(images)
    try:
        pixels = np.asarray(images)
    except (TypeError, ValueError, RuntimeError) as error:
        raise OptionError(
            f"images is {as_given(images)}, which is not an array: {error}; expected one array (…, "
            "bands, rows, columns): give the images of each size separately"
        ) from error
    missing = np.ma.getmaskarray(images) if np.ma.isMaskedArray(images) else None
    return pixels if missing is None else _without(pixels, missing, kind)


def _without(pixels: NDArray[Any], missing: NDArray[np.bool_], kind: Modality) -> NDArray[Any]:
    """Pixels as float32, NaN where missing; unchanged if none are missing."""
    if not missing.any() or pixels.dtype.kind not in "iuf":
        return pixels
    return with_nan(pixels, missing, kind)


def _labelled(images: xr.DataArray, kind: Modality) -> NDArray[Any]:
    """Pixels (…, bands, rows, columns), bands in published order, north up, scaled."""
    whole = arranged(images, kind)
    pixels, nodata = np.moveaxis(whole.values, -1, -3), nodata_of(images)
    if nodata is not None:
        every = pixels.reshape(-1, *pixels.shape[-3:])
        missing = [declared_missing(image, nodata, kind) for image in every]
        pixels = _without(pixels, np.reshape(missing, pixels.shape), kind)
    if (scales := scales_of(whole)) is None:
        return pixels
    return scaled(pixels, *scales, kind)


def _checked(images: NDArray[Any], kind: Modality, crop: Crop) -> NDArray[Any]:
    """Crop the images, and refuse those not of the modality."""
    bands = len(kind.bands)
    if images.dtype.kind not in "iuf":
        raise OptionError(f"images has dtype {images.dtype}; expected real numbers")
    one_of(crop, "crop", get_args(Crop))
    if images.ndim < 3 or images.shape[-3] != bands:
        raise OptionError(
            f"images has shape {images.shape}; expected (…, {bands}, rows, columns), bands of "
            f"{kind.title} in this order: {', '.join(kind.bands)}"
        )
    pixels = cropped(images, kind, crop)
    rows, columns = pixels.shape[-2:]
    if rows != columns or rows < kind.kernel:
        raise OptionError(
            f"images have {rows} × {columns} pixels; expected squares of at least {kind.kernel}, "
            f"as in pretraining, which had {kind.input_size}; copcube.embed cuts larger scenes "
            "into tiles"
        )
    return pixels


def _metadata(
    leading: tuple[int, ...], kind: Modality, lon: Any, lat: Any, date: Any
) -> NDArray[np.float64]:
    """Longitude, latitude, days since 1970-01-01 and token area, (…, 4), NaN where unknown."""
    default = DEM_DAYS if kind.key == "dem" else np.nan
    days = default if date is None else days_since_1970(_unmasked(date), "date")
    given = {"lon": lon, "lat": lat, "date": days}
    metadata = np.full((*leading, 4), np.nan)
    for axis, (name, values) in enumerate(given.items()):
        try:
            numbers = _unmasked(values)
            if numbers.dtype.kind in "bcmMS":
                raise TypeError(f"it holds {numbers.dtype}")
            # As Python's own, whose errors show a text as it was given; None becomes NaN.
            metadata[..., axis] = np.asarray(numbers.tolist(), np.float64)
        except (TypeError, ValueError) as error:
            raise OptionError(
                f"{name} does not fit images of shape {leading}: {error}; expected a "
                "number for each, or one for all"
            ) from error
        unknown = int(np.isnan(metadata[..., axis]).sum())
        if unknown:
            log.warning("%d images are embedded without %s=", unknown, name)
    metadata[..., 0], metadata[..., 1] = within_code(metadata[..., 0], metadata[..., 1])
    metadata[..., 3] = kind.token_area
    return metadata


def _unmasked(values: Any) -> NDArray[Any]:
    """An array of anything, with None, or NaT, where it is masked."""
    if not np.ma.isMaskedArray(values):
        return np.asarray(values)
    if values.dtype.kind == "M":
        return np.asarray(values.filled(np.datetime64("NaT", "D")))
    found = values.data.astype(object)
    found[np.ma.getmaskarray(values)] = None
    return np.asarray(found)
