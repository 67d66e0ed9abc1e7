"""Images to vectors: decode ahead on threads, batch by modality, embed, collect rows.

The order of images is the source's, and a batch is the next `batch_size` images of one
modality in that order, so the vectors of a partition do not depend on timing. Decoding and
embedding go on side by side, each a bounded number of images ahead of the next step.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from copcube.dates import since_1970
from copcube.embedding.encoders import Encoder
from copcube.errors import ImageError, StorageError
from copcube.images import Image, Job, Partition, Rejected, Source
from copcube.images.tensor_form import has_valid_pixel
from copcube.images.units import strange, without_offset
from copcube.lookahead import map_ahead
from copcube.modalities import Modality, kinds, labels, rank
from copcube.rows import Rows
from copcube.selection import Selection

log = logging.getLogger("copcube")

Crop = Literal["center", "full"]
T = TypeVar("T")

PAUSES = (0.5, 5.0)
"""Seconds to wait before a file that could not be read is read again."""

DEM_DAYS = 16436.0
"""2015-01-01 in days since 1970-01-01: the date that the DEM had in pretraining."""

_ADDING = threading.Lock()


@dataclass
class PartitionReport:
    """What happened to the images of a partition, and where the time went.

    Parameters
    ----------
    images : dict of str to int
        Images embedded, by modality.
    rescaled : int
        Sentinel-3 images whose bands Oa01 and Oa10 came 1e9 too large.
    rejected : list of Rejected
        What was left out.
    strange : dict of str to (int, str)
        By modality, how many images are far outside its statistics, with an example.
    decoding : float
        Seconds spent reading and decoding, summed over the threads.
    waiting, encoding : float
        Seconds that the partition waited for decoded images, and for the encoder.
    """

    images: dict[str, int] = field(default_factory=dict)
    rescaled: int = 0
    rejected: list[Rejected] = field(default_factory=list)
    strange: dict[str, tuple[int, str]] = field(default_factory=dict)
    decoding: float = 0.0
    waiting: float = 0.0
    encoding: float = 0.0

    @contextmanager
    def timed(self, step: Literal["decoding", "waiting", "encoding"]) -> Iterator[None]:
        """Add the seconds that the body takes to a step; any thread may do so."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            # Also for a body that fails, whose time was spent as well.
            seconds = time.perf_counter() - begin
            with _ADDING:
                setattr(self, step, getattr(self, step) + seconds)

    def note_strange(self, images: list[Image], modality: Modality) -> None:
        """Count images of one modality that are far outside its statistics."""
        for image in images:
            if what := strange(image.pixels, modality):
                count, first = self.strange.get(modality.key, (0, f"{image.origin} has {what}"))
                self.strange[modality.key] = count + 1, first

    def reject(self, item: Rejected, *, strict: bool) -> None:
        """Record what is left out.

        Raises
        ------
        ImageError
            With `strict`, if it is broken.
        """
        if strict and item.kind == "broken":
            raise ImageError(
                f"{item.file}{f' [{item.member}]' if item.member else ''}: {item.reason}; without "
                "strict, it would be recorded and skipped"
            )
        self.rejected.append(item)

    def accepted(self, decoded: Iterator[list[T | Rejected]], *, strict: bool) -> Iterator[T]:
        """Yield what was decoded, record what is left out, and measure the waiting time.

        Raises
        ------
        ImageError
            As `reject`.
        """
        while True:
            with self.timed("waiting"):
                found = next(decoded, None)
            if found is None:
                return
            for item in found:
                if isinstance(item, Rejected):
                    self.reject(item, strict=strict)
                else:
                    yield item


def embed_partition(
    source: Source,
    partition: Partition,
    encoder: Encoder,
    *,
    selection: Selection,
    batch_sizes: Mapping[str, int],
    sensors: Iterable[Modality] = (),
    crop: Crop = "center",
    threads: int = 2,
    strict: bool = False,
    s2_offset: int = 0,
    advance: Callable[[int], None] = lambda images: None,
) -> tuple[Rows, PartitionReport]:
    """Embed the images of one partition.

    Parameters
    ----------
    source : Source
        Where the images come from.
    partition : Partition
        Which of them.
    encoder : Encoder
        What embeds them.
    selection : Selection
        Modalities and dates to take.
    batch_sizes : mapping of str to int
        Images per batch, by modality.
    sensors : iterable of Modality
        Users' own sensors with images in the source.
    crop : {"center", "full"}
        The pretraining size from the middle, or the whole stored image.
    threads : int
        Decoding threads.
    strict : bool
        Whether the first broken image ends it.
    s2_offset : int
        What is subtracted from Sentinel-2 counts.
    advance : callable
        Called with the number of images after each batch.

    Returns
    -------
    rows : Rows
        One row per image, in the order of the batches; `copcube.rows.encode_rows` sorts them.
    report : PartitionReport

    Raises
    ------
    ImageError
        With `strict`, at the first broken image.
    OSError, ReadError
        If a file or an object store cannot be read, which may be temporary.
    """
    report, known = PartitionReport(), kinds(sensors)
    done = [Rows.empty(encoder.dim)]

    def decode(job: Job | Rejected) -> list[Image | Rejected]:
        if isinstance(job, Rejected):
            return [job]
        with report.timed("decoding"):
            return [_prepared(item, known, crop, s2_offset) for item in read_job(job)]

    def encode(batch: Batch) -> tuple[Batch, NDArray[np.float32]]:
        with report.timed("encoding"):
            return batch, encoder(batch.modality.asked, batch.pixels, batch.metadata)

    jobs = source.jobs(partition, selection)
    # On a CPU one call uses all cores, and a separate thread would only lose this thread's warm
    # memory.
    streams = encoder.streams if encoder.streams > 1 else 0
    with (
        closing(map_ahead(decode, jobs, threads, ahead=2 * threads)) as decoded,
        closing(
            map_ahead(encode, _batches(decoded, known, batch_sizes, report, strict), streams)
        ) as embedded,
    ):
        for whole, every in embedded:
            batch, vectors, rejected = _finite(whole, every)
            for item in rejected:
                report.reject(item, strict=strict)
            done.append(batch.rows(vectors))
            key = batch.modality.key
            report.images[key] = report.images.get(key, 0) + len(batch.images)
            report.rescaled += sum(image.rescaled for image in batch.images)
            # All images count: those left out are the most unusual.
            report.note_strange(whole.images, whole.modality)
            advance(len(whole.images))
    return Rows.concatenate(done), report


@dataclass(frozen=True)
class Batch:
    """Images of one modality and shape, as an encoder takes them.

    Parameters
    ----------
    modality : Modality
        Their modality.
    images : list of Image
        Cropped, with the pixels that the encoder is to see, (bands, rows, columns).
    metadata : numpy.ndarray
        (batch, 4) float64, see `Encoder`.
    """

    modality: Modality
    images: list[Image]
    metadata: NDArray[np.float64]

    @classmethod
    def of(cls, images: list[Image], modality: Modality) -> "Batch":
        """Collect cropped images of one modality, and their metadata."""
        rows = np.array([metadata(image, modality) for image in images])
        return cls(modality, images, rows)

    @property
    def pixels(self) -> list[NDArray[Any]]:
        """Pixels of the images in their stored dtype, which the encoder copies once."""
        return [image.pixels for image in self.images]

    def rows(self, vectors: NDArray[np.float32]) -> Rows:
        """Join the images' identities with their vectors, (batch, dim) float32."""
        names = labels([self.modality.key])
        code = names.index(self.modality.key)
        return Rows(
            grid_id=np.array([image.grid_id for image in self.images], dtype=np.int64),
            modality=np.full(len(self.images), code, dtype=np.int8),
            local_id=np.array([image.local_id for image in self.images], dtype=object),
            date=np.array([image.date for image in self.images], dtype=object),
            embedding=vectors,
            labels=names,
        )


def _finite(
    batch: Batch, vectors: NDArray[np.float32]
) -> tuple[Batch, NDArray[np.float32], list[Rejected]]:
    """Take images out of a batch whose vectors, (batch, dim), are not finite."""
    finite: NDArray[np.bool_] = np.asarray(np.isfinite(vectors).all(axis=1))
    if finite.all():
        return batch, vectors, []
    kept, rejected = [], []
    for image, good in zip(batch.images, finite, strict=True):
        if good:
            kept.append(image)
        else:
            rejected.append(Rejected(image.origin, "", "broken", not_finite(image.pixels)))
    return Batch(batch.modality, kept, batch.metadata[finite]), vectors[finite], rejected


def not_finite(pixels: NDArray[Any]) -> str:
    """Say that an image (bands, rows, columns) has a vector that is not finite, and likely why."""
    values = pixels[np.isfinite(pixels)]
    reach = f"from {values.min():.4g} to {values.max():.4g}" if values.size else "nowhere finite"
    return (
        f"its vector holds values that are not finite; its pixels are {reach}: some may mark "
        "missing data without being declared as nodata, or have other units"
    )


def cropped(pixels: NDArray[Any], modality: Modality, crop: Crop) -> NDArray[Any]:
    """Crop the pretraining size from the middle, or keep everything.

    Parameters
    ----------
    pixels : numpy.ndarray
        (…, bands, rows, columns); a side not longer than the size stays.
    modality : Modality
        Says what the pretraining size is.
    crop : {"center", "full"}
        Which.

    Returns
    -------
    numpy.ndarray
        A view, (…, bands, size, size).
    """
    if crop == "full":
        return pixels
    size = modality.input_size
    top, left = (max(0, (side - size) // 2) for side in pixels.shape[-2:])
    return pixels[..., top : top + size, left : left + size]


def crop_image(image: Image, modality: Modality, crop: Crop) -> Image:
    """Crop the pixels of an image; see `cropped`."""
    return replace(image, pixels=cropped(image.pixels, modality, crop))


def metadata(image: Image, modality: Modality) -> tuple[float, float, float, float]:
    """Longitude, latitude, days since 1970-01-01 and token area (km²) of an image.

    The DEM, which has no date, gets 2015-01-01, as in pretraining; NaN means unknown.
    """
    days = DEM_DAYS if modality.key == "dem" else np.nan
    if image.date is not None:
        days = since_1970(image.date)
    return image.lon, image.lat, days, modality.token_area


def read_job(job: Callable[[], T]) -> T:
    """Run a job; if a file cannot be read, run it again after a pause.

    Network file systems fail for seconds at a time. If the last try fails as well, the error
    is raised, and the build embeds the whole partition again later.
    """
    # In place, since the whole partition would have to be decoded again.
    for pause in PAUSES:
        try:
            return job()
        except StorageError:  # from an object store, whose client has tried several times
            raise
        except OSError as error:
            log.warning("%s; reading it again in %.1f s", error, pause)
            time.sleep(pause)
    return job()


def _prepared(
    item: Image | Rejected, known: Mapping[str, Modality], crop: Crop, s2_offset: int
) -> Image | Rejected:
    """Crop an image, and reject it if no valid pixel is left; correct its counts."""
    if isinstance(item, Rejected):
        return item
    modality = known[item.modality]
    image = crop_image(item, modality, crop)
    # The source has found a valid pixel in the whole image.
    is_smaller = image.pixels.shape != item.pixels.shape
    if is_smaller and not has_valid_pixel(image.pixels, modality):
        return Rejected(item.origin, "", "empty", "no valid pixel in the crop")
    if s2_offset and image.modality == "s2_toa":
        return replace(image, pixels=without_offset(image.pixels, s2_offset))
    return image


def _batches(
    decoded: Iterator[list[Image | Rejected]],
    known: Mapping[str, Modality],
    sizes: Mapping[str, int],
    report: PartitionReport,
    strict: bool,
) -> Iterator[Batch]:
    """Collect decoded images by modality; yield each batch when it is full, the rest at the end."""
    collected: dict[str, list[Image]] = {}
    for item in report.accepted(decoded, strict=strict):
        images = collected.setdefault(item.modality, [])
        images.append(item)
        # Counted by modality, so that where batches end does not depend on how modalities mix.
        if len(images) == sizes[item.modality]:
            yield Batch.of(collected.pop(item.modality), known[item.modality])
    # In a fixed order: the first image of each modality may come at any time.
    for key in sorted(collected, key=rank):
        yield Batch.of(collected[key], known[key])
