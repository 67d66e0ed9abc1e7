"""What a build would do: images, disk and time, from a look at the source and one batch."""

import itertools
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from copcube.aggregate import Aggregation
from copcube.builds.api import image_sizes, plan_build
from copcube.builds.folder import BuildFolder
from copcube.builds.plan import Plan
from copcube.builds.tasks import describe, loaded
from copcube.embedding import Batch, Crop, Encoder, Spec
from copcube.images import Image, Partition, Source, open_source
from copcube.progress import duration, size
from copcube.selection import Selection

LOOK = 8
"""Partitions looked into; what the others hold is estimated from them."""


@dataclass(frozen=True)
class Estimate:
    """What a build would do.

    Parameters
    ----------
    partitions, done : int
        Units of embedding, and how many of them an earlier run has finished.
    images : dict of str to int
        Images to embed by modality, of all partitions.
    counted : bool
        Whether every partition was looked into, or the images are extrapolated.
    rate : dict of str to float
        Measured images a second, by modality: decoding and encoding one batch.
    rows_bytes, cube_bytes : int
        Disk that the rows and the cube take at most.
    """

    partitions: int
    done: int
    images: dict[str, int]
    counted: bool
    rate: dict[str, float]
    rows_bytes: int
    cube_bytes: int

    @property
    def seconds(self) -> float:
        """Time that embedding what is left takes at the measured rates."""
        whole = sum(count / self.rate[key] for key, count in self.images.items())
        return whole * (1 - self.done / max(self.partitions, 1))

    def __str__(self) -> str:
        """Write the estimate as a table for people."""
        about = "      " if self.counted else "about "
        lines = [f"{self.partitions} partitions, {self.done} of them done"]
        for key, count in self.images.items():
            lines.append(f"  {key:8} {about}{count:>10,} images, {self.rate[key]:8.1f} images/s")
        lines.append(
            f"disk: rows up to {size(self.rows_bytes)}, cube up to {size(self.cube_bytes)}"
        )
        lines.append(f"time: about {duration(self.seconds)}, from one measured batch of each")
        return "\n".join(lines)


def estimate(
    source: str | Path,
    out: str | Path,
    *,
    modalities: Iterable[str] | None = None,
    dates: str | None = None,
    crop: Crop = "center",
    encoder: Encoder | Spec | None = None,
    batch_size: int | None = None,
    threads: int | None = None,
) -> Estimate:
    """Say what `copcube.build` would do with the same arguments; write nothing.

    Returns
    -------
    Estimate

    Raises
    ------
    SourceError, OptionError, WeightsError, FetchError
        As `copcube.build`.
    """
    from copcube.encoder import EncoderSpec

    selection = Selection.of(modalities, dates)
    images = open_source(source)
    model = loaded(encoder or EncoderSpec())
    facts = describe(model, image_sizes(selection, crop))
    plan, partitions = plan_build(images, facts, Aggregation(selection=selection), crop, batch_size)
    done = len(BuildFolder(out).receipts(plan.id, "embed", [p.name for p in partitions]))
    step = max(len(partitions) // LOOK, 1)
    looked = partitions[::step]
    counts: Counter[str] = Counter()
    for partition in looked:
        counts.update(images.count(partition, selection))
    share = len(partitions) / len(looked)
    total = {key: round(counts[key] * share) for key in selection.modalities if counts[key]}
    rate = {key: _rate(images, looked, key, selection, model, plan, crop) for key in total}
    vector = 4 * model.dim
    return Estimate(
        partitions=len(partitions),
        done=done,
        images=total,
        counted=step == 1,
        rate=rate,
        rows_bytes=sum(total.values()) * (vector + 64),
        cube_bytes=min(sum(total.values()), 721 * 1440) * vector,
    )


def _rate(
    source: Source,
    partitions: list[Partition],
    key: str,
    selection: Selection,
    encoder: Encoder,
    plan: Plan,
    crop: Crop,
) -> float:
    """Images a second of one modality: decode and embed one batch, the model warmed up."""
    only = Selection((key,), selection.start, selection.end)
    count = plan.batch_sizes[key]
    found: list[Image] = []
    begin = time.perf_counter()
    for job in itertools.chain.from_iterable(source.jobs(p, only) for p in partitions):
        if callable(job):
            found += [item for item in job() if isinstance(item, Image)]
        if len(found) >= count:
            break
    decoding = (time.perf_counter() - begin) / max(len(found), 1)
    if not found:
        return float("inf")
    batch = Batch.of(found[:count], crop)
    encoder(key, batch.pixels, batch.metadata)
    begin = time.perf_counter()
    encoder(key, batch.pixels, batch.metadata)
    return 1 / (decoding + (time.perf_counter() - begin) / len(batch.images))
