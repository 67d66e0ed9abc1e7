"""Images to vectors: decode ahead on threads, batch by modality, embed, collect rows.

The order of images is the source's, and a batch is the next `batch_size` images of one
modality in that order, so the vectors of a partition do not depend on timing. Decoding,
embedding and collecting go on side by side, each a bounded way ahead of the next.
"""

import datetime
import errno
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from copcube.embedding.encoders import Encoder
from copcube.errors import ImageError, StorageError
from copcube.images import Image, Job, Partition, Rejected, Source
from copcube.images.tensor_form import has_valid_pixel
from copcube.modalities import MODALITIES, ORDER, Modality
from copcube.rows import Rows
from copcube.selection import Selection

log = logging.getLogger("copcube")

Crop = Literal["center", "full"]

T = TypeVar("T")

PAUSES = (0.5, 5.0)
"""Seconds to wait before what could not be read is read again."""

DEM_DAYS = 16436.0
"""2015-01-01 in days since 1970-01-01: the date the DEM was given in pretraining."""


@dataclass
class Tally:
    """What happened to the images of a partition, and where the time went.

    Parameters
    ----------
    images : dict of str to int
        Images embedded, by modality.
    rescaled : int
        Sentinel-3 images whose bands Oa01 and Oa10 came 1e9 too large.
    rejected : list of Rejected
        What was left out.
    decoding : float
        Seconds spent reading and decoding, summed over the threads.
    waiting, encoding : float
        Seconds that the partition waited for decoded images, and for the encoder.
    """

    images: dict[str, int] = field(default_factory=dict)
    rescaled: int = 0
    rejected: list[Rejected] = field(default_factory=list)
    decoding: float = 0.0
    waiting: float = 0.0
    encoding: float = 0.0


def embed_partition(
    source: Source,
    partition: Partition,
    encoder: Encoder,
    *,
    selection: Selection,
    batch_sizes: Mapping[str, int],
    crop: Crop = "center",
    threads: int = 2,
    strict: bool = False,
    advance: Callable[[int], None] = lambda images: None,
) -> tuple[Rows, Tally]:
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
        Images a batch, by modality.
    crop : {"center", "full"}
        The pretraining size from the middle, or the whole stored image.
    threads : int
        Decoding threads.
    strict : bool
        Whether the first broken image ends it.
    advance : callable
        Called with the number of images after each batch.

    Returns
    -------
    rows : Rows
        One row an image, in canonical order.
    tally : Tally

    Raises
    ------
    ImageError
        With `strict`, at the first broken image.
    """
    tally = Tally()
    done: list[Rows] = []
    jobs = (_timed_job(job, tally) for job in _listed(source, partition, selection))
    with ThreadPoolExecutor(threads, thread_name_prefix="decode") as decoders:
        decoded = _timed(_ahead(jobs, decoders, 2 * threads), tally)
        batches = _batches(decoded, crop, batch_sizes, tally, strict)
        calls = (partial(_encoded, encoder, batch, tally) for batch in batches)
        with side_by_side(calls, encoder.streams) as results:
            for batch, vectors in results:
                done.append(batch.rows(vectors))
                key = batch.modality.key
                tally.images[key] = tally.images.get(key, 0) + len(batch.images)
                tally.rescaled += sum(image.rescaled for image in batch.images)
                advance(len(batch.images))
    return Rows.concatenate([Rows.empty(encoder.dim), *done]).sorted(), tally


@dataclass(frozen=True)
class Batch:
    """Images of one modality and shape, as an encoder takes them.

    Parameters
    ----------
    modality : Modality
        Their modality.
    images : list of Image
        Where each came from.
    pixels : list of numpy.ndarray
        Each (bands, rows, columns), stored dtype, cropped: views, which the encoder copies
        to where it needs them.
    metadata : numpy.ndarray
        (batch, 4) float64, see `Encoder`.
    """

    modality: Modality
    images: list[Image]
    pixels: list[NDArray[Any]]
    metadata: NDArray[np.float64]

    @classmethod
    def of(cls, images: list[Image], crop: Crop) -> "Batch":
        """Stack images of one modality."""
        modality = MODALITIES[images[0].modality]
        return cls(
            modality,
            images,
            [cropped(image.pixels, modality, crop) for image in images],
            np.array([metadata(image) for image in images]),
        )

    def rows(self, vectors: NDArray[np.float32]) -> Rows:
        """Join the images' identities with their vectors, (batch, dim) float32."""
        return Rows(
            grid_id=np.array([image.grid_id for image in self.images], dtype=np.int64),
            modality=np.full(len(self.images), ORDER[self.modality.key], dtype=np.int8),
            local_id=np.array([image.local_id for image in self.images], dtype=object),
            date=np.array([image.date for image in self.images], dtype=object),
            embedding=vectors,
        )


def cropped(pixels: NDArray[Any], modality: Modality, crop: Crop) -> NDArray[Any]:
    """Cut the pretraining size out of the middle, or keep everything.

    Parameters
    ----------
    pixels : numpy.ndarray
        (bands, rows, columns) in the published tensor form.
    modality : Modality
        Says what the pretraining size is.
    crop : {"center", "full"}
        Which.

    Returns
    -------
    numpy.ndarray
        A view, (bands, size, size).
    """
    if crop == "full":
        return pixels
    size = modality.input_size
    top, left = (pixels.shape[1] - size) // 2, (pixels.shape[2] - size) // 2
    return pixels[:, top : top + size, left : left + size]


def metadata(image: Image) -> tuple[float, float, float, float]:
    """Longitude, latitude, days since 1970-01-01 and token area (km²) of an image.

    The DEM, which has no date, gets 2015-01-01, as in pretraining.
    """
    days = DEM_DAYS if image.date is None else days_since_1970(image.date)
    return image.lon, image.lat, days, MODALITIES[image.modality].token_area


@lru_cache(maxsize=4096)
def days_since_1970(date: str) -> float:
    """Days from 1970-01-01 to a date YYYYMMDD.

    Examples
    --------
    >>> days_since_1970("20150101")
    16436.0
    """
    day = datetime.datetime.strptime(date, "%Y%m%d").date()
    return float((day - datetime.date(1970, 1, 1)).days)


def _ahead(calls: Iterable[Callable[[], T]], pool: ThreadPoolExecutor, number: int) -> Iterator[T]:
    """Make calls on a pool, a bounded number ahead, and give what they return in order."""
    waiting: deque[Future[T]] = deque()
    try:
        for call in calls:
            waiting.append(pool.submit(call))
            if len(waiting) > number:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()


@contextmanager
def side_by_side(calls: Iterable[Callable[[], T]], number: int) -> Iterator[Iterator[T]]:
    """Make calls, so many at once, and give what they return in order.

    Parameters
    ----------
    calls : iterable of callable
        Taken as they are needed.
    number : int
        How many threads make them. With 1 they are made on this one: on a CPU, a thread of
        its own would only cost the encoder its warm memory.

    Yields
    ------
    iterator
        What they return; what is under way is waited for at the end.
    """
    if number == 1:
        yield (call() for call in calls)
        return
    with ThreadPoolExecutor(number, thread_name_prefix="copcube") as pool:
        yield _ahead(calls, pool, number)


def _timed_job(job: Job | Rejected, tally: Tally) -> Callable[[], list[Image | Rejected]]:
    """Make of what a source gives a call that is timed, and patient where reading fails."""
    if isinstance(job, Rejected):
        return lambda: [job]

    def call() -> list[Image | Rejected]:
        begin = time.perf_counter()
        try:
            return _patiently(job)
        finally:
            with _COUNTING:
                tally.decoding += time.perf_counter() - begin

    return call


_COUNTING = threading.Lock()


def _listed(source: Source, partition: Partition, selection: Selection) -> Iterator[Job | Rejected]:
    with _reading():
        yield from source.jobs(partition, selection)


def _patiently(job: Job) -> list[Image | Rejected]:
    """Do a job, and again after a pause where the file system fails."""
    with _reading():
        for pause in PAUSES:
            try:
                return job()
            except StorageError:  # of an object store, which was asked with patience already
                raise
            except OSError as error:
                log.warning("%s; reading it again in %.1f s", error, pause)
                time.sleep(pause)
        return job()


@contextmanager
def _reading() -> Iterator[None]:
    """Tell a store that cannot be read, which may recover, from one that cannot be written."""
    try:
        yield
    except StorageError as error:
        raise OSError(error.errno or errno.EIO, str(error)) from error


def _encoded(encoder: Encoder, batch: "Batch", tally: Tally) -> "tuple[Batch, NDArray[np.float32]]":
    begin = time.perf_counter()
    vectors = encoder(batch.modality.key, batch.pixels, batch.metadata)
    with _COUNTING:
        tally.encoding += time.perf_counter() - begin
    return batch, vectors


def _timed(results: Iterator[list[Image | Rejected]], tally: Tally) -> Iterator[Image | Rejected]:
    while True:
        begin = time.perf_counter()
        found = next(results, None)
        tally.waiting += time.perf_counter() - begin
        if found is None:
            return
        yield from found


def _batches(
    found: Iterable[Image | Rejected],
    crop: Crop,
    sizes: Mapping[str, int],
    tally: Tally,
    strict: bool,
) -> Iterator[Batch]:
    def images() -> Iterator[Image]:
        for item in found:
            if isinstance(item, Rejected):
                reject(item)
            elif has_valid_pixel(cropped(item.pixels, (m := MODALITIES[item.modality]), crop), m):
                yield item
            else:
                reject(Rejected(item.origin, "", "empty", "no valid pixel in the crop"))

    def reject(item: Rejected) -> None:
        if strict and item.kind == "broken":
            raise ImageError(
                f"{item.file}{f' [{item.member}]' if item.member else ''}: {item.reason}; "
                "without strict it would be recorded and skipped"
            )
        tally.rejected.append(item)

    collected: dict[str, list[Image]] = {}
    for image in images():
        batch = collected.setdefault(image.modality, [])
        batch.append(image)
        if len(batch) == sizes[image.modality]:
            yield Batch.of(collected.pop(image.modality), crop)
    for key in sorted(collected, key=ORDER.__getitem__):
        yield Batch.of(collected[key], crop)
