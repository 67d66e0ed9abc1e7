"""Fragments of Major TOM's images to vectors: as `copcube.embedding.partition`, for its tables.

A batch is the next `batch_size` fragments in the order of the source, or the fragments of one image
if their vectors depend on each other.
"""

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from copcube.embedding.encoders import Encoder, SharedEncoder, as_encoder
from copcube.embedding.partition import PartitionReport, not_finite, read_job
from copcube.errors import OptionError
from copcube.images import Partition, Rejected
from copcube.images.units import without_offset
from copcube.lookahead import map_ahead
from copcube.products.majortom import CoreSource, Embeddings, Fragments, Sample
from copcube.selection import Selection


def encoder_of_fragments(given: Any) -> tuple[SharedEncoder, Fragments]:
    """Return the encoder that a caller named for Major TOM's images, and its input.

    Parameters
    ----------
    given : TimmSpec, str or an encoder loaded of one
        A text is the name of an encoder.

    Raises
    ------
    OptionError
        If it is something else.
    """
    from copcube.encoder.timm_kinds import KINDS, TimmSpec

    if isinstance(given, str):
        given = TimmSpec(given)
    encoder = as_encoder(given)
    spec = getattr(encoder, "spec", None)
    if not (isinstance(encoder, SharedEncoder) and isinstance(spec, TimmSpec)):
        raise OptionError(
            f"encoder={given!r:.80} embeds no fragments of Major TOM; expected one of "
            f"{', '.join(KINDS)}, or copcube.TimmSpec(…)"
        )
    kind = spec.kind
    return encoder, Fragments(
        kind.bands,
        kind.modality,
        kind.size,
        compat=spec.compat is not None,
        by_cell=spec.by_cell,
        preprocessing=kind.in_words,
    )


def embed_fragments(
    source: CoreSource,
    partition: Partition,
    encoder: Encoder,
    *,
    selection: Selection,
    batch_size: int,
    threads: int = 2,
    strict: bool = False,
    s2_offset: int = 0,
    advance: Callable[[int], None] = lambda images: None,
) -> tuple[Embeddings, PartitionReport]:
    """Embed the fragments of one partition.

    Parameters
    ----------
    source : CoreSource
        Where the images come from.
    partition : Partition
        Which of them.
    encoder : Encoder
        What embeds them.
    selection : Selection
        Dates to take.
    batch_size : int
        Fragments per batch; has no effect if a batch is the fragments of an image.
    threads : int
        Decoding threads.
    strict : bool
        Whether the first broken image ends it.
    s2_offset : int
        What is subtracted from counts.
    advance : callable
        Called with the number of fragments after each batch.

    Returns
    -------
    rows : Embeddings
        In the order of the source.
    report : PartitionReport

    Raises
    ------
    ImageError
        With `strict`, at the first broken image.
    OSError, ReadError
        If a file or an object store cannot be read, which may be temporary.
    """
    report, key = PartitionReport(), source.fragments.modality
    done: list[Embeddings] = []

    def decode(job: Callable[[], list[Sample | Rejected]] | Rejected) -> list[Sample | Rejected]:
        if isinstance(job, Rejected):
            return [job]
        with report.timed("decoding"):
            return [_lowered(item, s2_offset) for item in read_job(job)]

    def encode(batch: list[Sample]) -> tuple[list[Sample], NDArray[np.float32]]:
        pixels = [fragment for part in batch for fragment in part.pixels]
        with report.timed("encoding"):
            # These models do not use places and dates.
            return batch, encoder(key, pixels, np.full((len(pixels), 4), np.nan))

    jobs = source.jobs(partition, selection)
    size = None if source.fragments.by_cell else batch_size
    streams = encoder.streams if encoder.streams > 1 else 0
    with (
        # An image has 30 MB once its bands are expanded, so few are held at a time.
        closing(map_ahead(decode, jobs, threads, ahead=threads)) as decoded,
        closing(map_ahead(encode, _batches(decoded, size, report, strict), streams)) as embedded,
    ):
        for batch, vectors in embedded:
            finite: NDArray[np.bool_] = np.asarray(np.isfinite(vectors).all(axis=1))
            start = 0
            for part in batch:
                here = slice(start, start := start + len(part.pixels))
                good = finite[here]
                for i in np.flatnonzero(~good).tolist():
                    broken = Rejected(part.origin, "", "broken", not_finite(part.pixels[i]))
                    report.reject(broken, strict=strict)
                done.append(replace(part.rows.take(good), embedding=vectors[here][good]))
            report.images[key] = report.images.get(key, 0) + int(finite.sum())
            advance(len(vectors))
    # A partition with nothing readable has a file as well: it is done.
    return Embeddings.concatenate(done or [_nothing(encoder.dim)]), report


def _batches(
    decoded: Iterator[list[Sample | Rejected]],
    size: int | None,
    report: PartitionReport,
    strict: bool,
) -> Iterator[list[Sample]]:
    """Collect fragments into batches of a size, or of one sample each, as parts of samples."""
    waiting: list[Sample] = []
    count = 0
    for item in report.accepted(decoded, strict=strict):
        start, whole = 0, len(item.pixels)
        while start < whole:
            end = whole if size is None else min(whole, start + size - count)
            waiting.append(item.take(slice(start, end)))
            count, start = count + end - start, end
            if size is None or count == size:
                yield waiting
                waiting, count = [], 0
    if waiting:
        yield waiting


def _lowered(item: Sample | Rejected, offset: int) -> Sample | Rejected:
    if isinstance(item, Rejected) or not offset:
        return item
    return replace(item, pixels=[without_offset(pixels, offset) for pixels in item.pixels])


def _nothing(dim: int) -> Embeddings:
    """A table of no fragments."""
    numbers, texts = np.zeros(0, np.int64), np.zeros(0, object)
    return Embeddings(
        numbers,
        numbers,
        texts,
        texts,
        numbers,
        np.zeros((0, 4), np.int64),
        np.empty((0, dim), np.float32),
        np.zeros(0),
        np.zeros(0),
    )
