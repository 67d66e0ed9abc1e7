"""One vector per tile: the frozen encoder, mapped lazily over users' own imagery.

An image is cut into square tiles that do not overlap; a tile is embedded like an image of
Copernicus-Pretrain, with the longitude and latitude of its centre, its date and the area
of a token as metadata. Over dask arrays the map is `dask.array.map_blocks`, over numpy
arrays the same function is called once.
"""

import itertools
import logging
import math
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from copcube.arguments import flag, number, numbers, whole_number
from copcube.embedding.axes import (
    GENERAL,
    arranged,
    checked_offset,
    nodata_of,
    require_images,
    scales_of,
)
from copcube.embedding.encoders import Encoder, Spec, as_encoder
from copcube.embedding.georeference import Georeference, tile_metadata
from copcube.embedding.partition import not_finite
from copcube.errors import OptionError
from copcube.images.sensors import Given, modality_of
from copcube.images.tensor_form import (
    declared_missing,
    has_valid_pixel,
    mend,
    scaled,
    with_nan,
)
from copcube.images.units import remedy, strange, without_offset
from copcube.modalities import MODALITIES, Modality

log = logging.getLogger("copcube")


def embed(
    images: xr.DataArray,
    modality: Given | None = None,
    *,
    tile: int | None = None,
    tokens: bool = False,
    encoder: Encoder | Spec | str | Path | None = None,
    weights: str = "hub",
    date: Any = None,
    batch_size: int | None = None,
    wavelengths: Sequence[float] | None = None,
    bandwidths: Sequence[float] | None = None,
    kernel_size: int = 16,
    gsd: float | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    s2_offset: int = 0,
    device: str = "auto",
    dtype: str = "auto",
) -> xr.DataArray:
    """Embed your own imagery, tile by tile; lazily if it is dask-backed.

    Parameters
    ----------
    images : xarray.DataArray
        Dimensions band, y and x in any order, by those or other usual names (``lat`` and
        ``longitude``, ``channel``…); of a single band, the band may be missing. Other dimensions,
        such as time, are leading ones, mapped independently. Any real dtype, in the units of the
        modality: Sentinel-1 in dB, Sentinel-2 in counts (reflectance × 10⁴), Sentinel-3 in counts,
        Sentinel-5P in mol m⁻², heights in metres; ``modalities.modality(key)`` says its units and
        bands. Values far outside are logged once. Bands may come in any order if they are labelled,
        by a coordinate or as rioxarray does it: ``B02``, ``blue``, ``vv``, wavelengths. Images are
        turned north up. Nodata, and scales and offsets of whole numbers, are those that rioxarray
        gives as attributes; masks of a file it applies with ``masked=True``. Counts of Sentinel-2,
        and users' own sensors, whose statistics are of stored pixels, are not scaled. Counts of
        Sentinel-2 in int16 are taken for uint16 that wrapped, as in the published tensors, and
        bands Oa01 and Oa10 of Sentinel-3 may come 1e9 too large; `mean` and `std` of one's own turn
        both off.
    modality : str, or Path, mapping or Modality, optional
        Key of the modality: ``"s2_toa"``, ``"s1_grd"``…; or the description of a user's own sensor,
        such as a TOML file, see `copcube.sensor`. Give this or `wavelengths`.
    tile : int, optional
        Side of a tile in pixels. Default: that of pretraining; of a general sensor, that
        of 14 tokens.
    tokens : bool
        Whether to give a vector a token, `kernel_size` pixels per side, instead of a vector a tile.
        (A token sees one pixel less at the right and bottom and one more at the left and top than
        its nominal square: the model pads so.)
    encoder : Encoder or copcube.EncoderSpec, optional
        The encoder, or what to load (a spec also names language embeddings, which S5P and
        the DEM need); then `weights`, `device` and `dtype` do not matter.
    weights : str
        What to load: ``"hub"``, ``"large"``, a file, ``"untrained:SEED"``.
    date : optional
        Date of all the images: a date or datetime of any kind, a text or number such as
        2021-06-01 or 20210601; see `copcube.dates.day`. Default: the coordinate ``time`` (or
        ``t``, ``date``, ``datetime``), of which NaT, None and NaN are unknown dates;
        2015-01-01 for the DEM, as in pretraining; else unknown.
    batch_size : int, optional
        Tiles to embed at once. Default: the encoder decides.
    wavelengths, bandwidths : sequence of float, optional
        Centre and width of every band in nm, in the image's order, for a sensor that is no modality
        and needs no description of its own.
    kernel_size : int
        Side of a token of a general sensor, in pixels.
    gsd : float, optional
        Size of a pixel in metres. Default: measured along the ellipsoid, tile by tile;
        the modality's, if within 5 % of that, as in pretraining, or without coordinates.
    mean, std : sequence of float, optional
        Normalisation ``(pixel - mean) / std`` by band, instead of the modality's. Default
        for a general sensor: none, the pixels are normalised already.
    s2_offset : int
        What to subtract from Sentinel-2 counts: 1000 for images of processing baseline 04.00
        or later, unless they were harmonised, as some catalogues do.
    device, dtype : str
        Where and in what precision to run; see `copcube.encoder.EncoderSpec`.

    Returns
    -------
    xarray.DataArray
        ``embedding``, float32, dimensions (leading…, y, x, dim): y and x are the centres
        of tiles, or tokens, from north to south and from west to east. Dimensions named lat
        and lon stay the dimension coordinates; all others get two-dimensional ``lat`` and
        ``lon``, if the image has a CRS. Tiles without a valid pixel are NaN, and so are those
        whose vector is not finite, which are logged. Attributes say what the encoder was.

    Raises
    ------
    OptionError
        If the arguments contradict each other, the image has not the bands or dimensions
        expected or is smaller than a tile, or labels of bands or dates are not understood.

    Examples
    --------
    >>> import copcube, rioxarray                                       # doctest: +SKIP
    >>> images = rioxarray.open_rasterio("T32UPU.tif", chunks=True)     # doctest: +SKIP
    >>> vectors = copcube.embed(images, "s2_toa", date="2024-07-01")    # doctest: +SKIP
    """
    model = as_encoder(encoder, weights=weights, device=device, dtype=dtype)
    sensor = _sensor(modality, wavelengths, bandwidths, kernel_size, mean, std)
    tokens = flag(tokens, "tokens")
    size = _tile_size(tile, sensor, tokens)
    if batch_size is not None:
        batch_size = whole_number(batch_size, "batch_size", 1)
    if gsd is not None:
        gsd = number(gsd, "gsd", ", the side of a pixel in metres")
        if not 0 < gsd < math.inf:
            raise OptionError(f"gsd is {gsd:g}; expected the side of a pixel in metres, above 0")
    require_images(images)
    s2_offset = checked_offset(images, sensor, s2_offset)
    whole = _whole_tiles(arranged(images, sensor), size)
    *leading, y, x, _ = whole.dims
    where = Georeference.of(whole, y, x)
    metadata = tile_metadata(whole, where, size, sensor, date=date, gsd=gsd)
    declared = nodata_of(images), scales_of(whole)
    task = _Task(model, sensor, size, tokens, *declared, batch_size, s2_offset, Once())
    result = xr.DataArray(
        _map(whole.data, metadata, task, model.dim),
        dims=(*leading, y, x, "dim"),
        coords={
            name: coordinate
            for name, coordinate in whole.coords.items()
            if set(coordinate.dims) <= set(leading) and name != images.rio.grid_mapping
        },
        name="embedding",
        attrs={
            "long_name": f"embedding of {sensor.title} by a frozen encoder",
            "units": "1",
            "modality": sensor.key,
            "tile_size": size,
            **({"s2_offset": s2_offset} if s2_offset else {}),
            **model.provenance,
        },
    ).drop_encoding()
    if where is None:
        return result
    return where.write(result.assign_coords(where.coordinates(task.step)), whole, task.step)


def _sensor(
    modality: Given | None,
    wavelengths: Sequence[float] | None,
    bandwidths: Sequence[float] | None,
    kernel_size: int,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
) -> Modality:
    """Find what took the images: a published modality, or one described in its form."""
    if (modality is None) == (wavelengths is None):
        raise OptionError(
            "give either modality=, one of "
            f"{', '.join(MODALITIES)}, or wavelengths= and bandwidths= in nm"
        )
    if modality is None:
        sensor = _general_sensor(wavelengths, bandwidths, kernel_size)
    else:
        sensor = modality_of(modality)
        if bandwidths is not None or kernel_size not in (16, sensor.kernel):
            raise OptionError(
                f"bandwidths= and kernel_size= describe a general sensor; {sensor.key!r} has "
                "its own"
            )
    if mean is None and std is None:
        return sensor
    count = len(sensor.bands)
    mean = None if mean is None else numbers(mean, "mean")
    std = None if std is None else numbers(std, "std")
    if mean is None or std is None or len(mean) != count or len(std) != count:
        raise OptionError(
            f"mean has {len(mean or ())} values and std {len(std or ())}; expected {count} of "
            f"both, one per band of {sensor.title}"
        )
    if not all(map(math.isfinite, mean + std)) or min(std) <= 0:
        raise OptionError(
            f"mean is {mean} and std {std}; expected finite numbers, and deviations above 0"
        )
    return replace(
        sensor,
        scale=(1.0,) * count,
        mean=mean,
        std=std,
        typical=Modality.typical,  # any: other statistics may mean other units
    )


def _general_sensor(wavelengths: Any, bandwidths: Any, kernel_size: int) -> Modality:
    wavelengths = numbers(wavelengths, "wavelengths")
    bandwidths = () if bandwidths is None else numbers(bandwidths, "bandwidths")
    count = len(wavelengths)
    if not count or count != len(bandwidths):
        raise OptionError(
            f"{count} wavelengths and {len(bandwidths)} bandwidths given; expected one of each per "
            "band, in nm"
        )
    kernel_size = whole_number(kernel_size, "kernel_size", 1)
    return Modality(
        key=GENERAL,
        title="a general sensor",
        bands=tuple(f"{wavelength:g} nm" for wavelength in wavelengths),
        gsd=0.0,  # unknown
        stored_size=14 * kernel_size,
        input_size=14 * kernel_size,
        kernel=kernel_size,
        tensor_dtype="float32",
        dates=1,
        local=False,
        folders=(),
        wavelengths=wavelengths,
        bandwidths=bandwidths,
        scale=(1.0,) * count,
        mean=(0.0,) * count,
        std=(1.0,) * count,
    )


def _tile_size(tile: int | None, sensor: Modality, tokens: bool) -> int:
    size = sensor.input_size if tile is None else whole_number(tile, "tile", 1)
    if size < max(sensor.kernel, 2):
        raise OptionError(f"tile is {size} pixels; expected at least a token of {sensor.kernel}")
    if tokens and (size % sensor.kernel or sensor.kernel < 3):
        raise OptionError(
            f"tokens of {sensor.kernel} pixels do not fill tiles of {size}; with tokens=True "
            "the tile must be a multiple of the token, and a token 3 pixels or more"
        )
    return size


def _whole_tiles(images: xr.DataArray, size: int) -> xr.DataArray:
    """Drop the rows and columns that fill no tile, and make chunks hold whole tiles."""
    *_, y, x, band = images.dims
    rows, cols = images.sizes[y], images.sizes[x]
    if rows < size or cols < size:
        raise OptionError(
            f"images of {rows} × {cols} pixels are smaller than a tile of {size}; "
            "give a smaller tile="
        )
    if rows % size or cols % size:
        log.warning(
            f"the last {rows % size} of {rows} rows and {cols % size} of {cols} columns of pixels "
            f"fill no tile of {size} and are left out"
        )
    whole = images.isel({y: slice(rows - rows % size), x: slice(cols - cols % size)})
    if whole.chunks is None:
        return whole
    chunks = {dim: _aligned(whole.chunksizes[dim], size) for dim in (y, x)}
    return whole.chunk({**chunks, band: -1})


def _aligned(chunks: tuple[int, ...], size: int) -> tuple[int, ...]:
    """Move the edges of chunks to the nearest edges of tiles."""
    edges = {round(int(edge) / size) * size for edge in np.cumsum(chunks)}
    return tuple(int(length) for length in np.diff(sorted(edges | {0})))


class Once:
    """Return True at the first call in this process, False afterwards."""

    def __init__(self) -> None:
        self._lock, self._done = threading.Lock(), False

    def __call__(self) -> bool:
        """Whether this is the first call."""
        with self._lock:
            first, self._done = not self._done, True
        return first

    def __reduce__(self) -> tuple[type["Once"], tuple[()]]:
        return Once, ()

    def __dask_tokenize__(self) -> str:
        return "once"


_ENCODING = threading.Lock()
"""Held while a batch is embedded: a user's encoder may not be thread-safe."""


@dataclass(frozen=True)
class _Task:
    """What embedding a block needs to know; small, since it is in the dask graph."""

    encoder: Any  # an Encoder that may accept other sensors and return tokens
    sensor: Modality
    tile: int
    tokens: bool
    nodata: float | None
    scales: tuple[NDArray[np.float64], NDArray[np.float64]] | None
    batch_size: int | None
    s2_offset: int
    once: Once

    @property
    def step(self) -> int:
        """Pixels from one vector to the next."""
        return self.sensor.kernel if self.tokens else self.tile


def _map(pixels: Any, metadata: NDArray[np.float64], task: _Task, dim: int) -> Any:
    """Embed (leading…, y, x, band) to (leading…, y / step, x / step, dim)."""
    if isinstance(pixels, np.ndarray):
        return _embed_block(pixels, metadata, task)
    import dask.array as da

    *leading, rows, cols, _ = pixels.chunks
    tiles = [tuple(length // task.tile for length in axis) for axis in (rows, cols)]
    vectors = [tuple(length // task.step for length in axis) for axis in (rows, cols)]
    # Where the date is the same along a leading dimension, metadata has length 1 there.
    axes = [axis if n > 1 else (1,) for axis, n in zip(leading, metadata.shape, strict=False)]
    return da.map_blocks(  # type: ignore[no-untyped-call]
        _embed_block,
        pixels,
        da.from_array(metadata, (*axes, *tiles, (4,))),  # type: ignore[no-untyped-call]
        task,
        chunks=(*leading, *vectors, (dim,)),
        dtype=np.float32,
        meta=np.empty((0,) * pixels.ndim, dtype=np.float32),
    )


def _embed_block(
    pixels: NDArray[Any], metadata: NDArray[np.float64], task: _Task
) -> NDArray[np.float32]:
    """Embed the tiles of one block, row by row, in batches."""
    encoder, sensor, tile = task.encoder, task.sensor, task.tile
    *leading, rows, cols, bands = pixels.shape
    ny, nx, side = rows // tile, cols // tile, tile // task.step
    images = np.einsum(
        "...aibjc->...abcij", pixels.reshape(*leading, ny, tile, nx, tile, bands)
    )  # a view, (leading…, tiles y, tiles x, band, tile, tile)
    metadata = np.broadcast_to(metadata, (*leading, ny, nx, 4))
    vectors = np.full((*leading, ny, nx, side, side, encoder.dim), np.nan, dtype=np.float32)
    name = sensor.asked
    options: dict[str, Any] = {"tokens": True} if task.tokens else {}
    valid = _valid_tiles(images, task)
    count = task.batch_size or encoder.batch_size(name, tile)
    while batch := list(itertools.islice(valid, count)):
        at = tuple(np.transpose([index for index, _ in batch]))
        stack = np.stack([image for _, image in batch])
        with _ENCODING:
            found = encoder(name, stack, metadata[at], **options)
        found = _without_infinite(found, stack, metadata[at])
        vectors[at] = found.reshape(-1, side, side, encoder.dim)
    rows_of_vectors: NDArray[np.float32] = np.einsum("...abijd->...aibjd", vectors)
    return rows_of_vectors.reshape(*leading, ny * side, nx * side, encoder.dim)


def _without_infinite(
    vectors: NDArray[np.float32], stack: NDArray[np.float32], metadata: NDArray[np.float64]
) -> NDArray[np.float32]:
    """Set vectors (tiles, …) with values that are not finite to NaN, and name their tiles."""
    finite = np.isfinite(vectors).all(axis=-1, keepdims=True)
    if finite.all():
        return vectors
    for tile in np.flatnonzero(~finite.reshape(len(vectors), -1).all(axis=1)):
        lon, lat = metadata[tile, :2]
        place = f" at lat {lat:.4f}, lon {lon:.4f}" if np.isfinite(lat) else ""
        log.warning(f"the tile{place} is left out: {not_finite(stack[tile])}")
    return np.where(finite, vectors, np.float32(np.nan))


def _valid_tiles(
    images: NDArray[Any], task: _Task
) -> Iterator[tuple[tuple[int, ...], NDArray[np.float32]]]:
    """Tiles that hold data, with their index, as float32; NaN where nodata is declared."""
    sensor, nodata = task.sensor, task.nodata
    for index in np.ndindex(images.shape[:-3]):
        stored = images[index]
        missing = None if nodata is None else declared_missing(stored, nodata, sensor)
        image = with_nan(stored, missing, sensor)
        if task.scales is not None:
            image = scaled(image, *task.scales, sensor)
        if has_valid_pixel(image, sensor):
            image = without_offset(mend(image, sensor)[0], task.s2_offset)
            if (what := strange(image, sensor)) and task.once():
                log.warning(f"images has {what}; {remedy(sensor)}")
            yield index, image
