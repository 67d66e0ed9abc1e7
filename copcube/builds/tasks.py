"""The tasks of a build: plain functions of a small description, wherever they run.

A description names a task and its build; everything else is read from the build's folder. So a few
hundred bytes are sent to a worker, and a few numbers come back: images, rows and cells only go to
the folder. A task may run twice, at the same time or again after its worker died; its files appear
complete and are the same every time.
"""

import hashlib
import json
import os
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cached_property, lru_cache, partial
from typing import Any

import numpy as np

from copcube import aggregate, cube
from copcube.aggregate import Aggregation, Survey
from copcube.balance import Variances, equalised
from copcube.builds.folder import BuildFolder
from copcube.builds.partitions import read_partition
from copcube.builds.plan import BuildOptions, EncoderFacts, Plan, digest
from copcube.builds.receipts import Receipt, to_json
from copcube.cells import Cells, decode_cells, encode_cells
from copcube.embedding import Encoder, embed_partition
from copcube.embedding.fragments import embed_fragments
from copcube.embedding.partition import PartitionReport
from copcube.errors import BuildError
from copcube.files.processors import available_processors
from copcube.grid import N_BANDS
from copcube.images import Partition, Rejected, Source
from copcube.modalities import SENSOR, kinds
from copcube.parts import Part, parts, runs
from copcube.products.majortom import CoreSource, encode_embeddings
from copcube.rows import encode_rows
from copcube.selection import Selection

SECONDS_BETWEEN_HEARTBEATS = 30.0
"""Seconds between a worker's notes of its progress."""

MOST_THREADS = 8
"""Decoding threads per partition, unless another number is given."""

Advance = Callable[[int], None]
"""Called with a number of finished images, parts or bands."""


def ignore(number: int) -> None:
    """Count nothing."""


def describe(options: BuildOptions) -> EncoderFacts:
    """Describe the encoder on the machine that will use it."""
    encoder, sizes = options.encoder, options.image_sizes
    # Called on the machine that embeds: the driver may have no GPU.
    known = kinds(options.sensors)
    batches = {key: encoder.batch_size(known[key].asked, size) for key, size in sizes.items()}
    return EncoderFacts(encoder.dim, dict(encoder.provenance), batches)


# Embedding a partition.


@dataclass(frozen=True)
class EmbedTask:
    """Which partition to embed.

    Parameters
    ----------
    out : str
        The future cube.
    plan : str
        Hash of its plan.
    number : int
        Number of the partition in the list.
    name : str
        Name of the partition.
    source : Source or CoreSource
        Where its images are read from.
    options : BuildOptions
        Options of the build.
    """

    out: str
    plan: str
    number: int
    name: str
    source: Source | CoreSource
    options: BuildOptions


def run_embed_task(task: EmbedTask, advance: Advance = ignore) -> Receipt:
    """Embed one partition, write its rows, then their receipt.

    Returns
    -------
    dict
        The receipt's counts, see `counts`.

    Raises
    ------
    BuildError
        If the build now has another plan, or this machine has another encoder.
    ImageError
        With `strict`, at the first broken image.
    StorageError
        If the rows cannot be written.
    """
    begin = time.perf_counter()
    folder, plan = _opened(task.out, task.plan)
    options = task.options
    with _heartbeats(folder, task.name, advance) as count:
        _require_same(plan, options.encoder)
        # Read here rather than sent: the paths of a partition of GeoTIFFs take about 100 kB.
        partition = read_partition(folder.files.open("partitions.parquet"), task.number)
        if partition.name != task.name:
            raise BuildError(f"{folder.path}: the partitions of this build were replaced")
        encode, report = _embedded(task, plan, partition, count)
        writing = time.perf_counter()
        name = f"rows/{task.name}.parquet"
        data = encode(folder.rows(task.name))
        files = {name: folder.files.write(name, data)}
        seconds = {
            "decoding": report.decoding,
            "waiting": report.waiting,
            "encoding": report.encoding,
            "writing": time.perf_counter() - writing,
            "embedding": time.perf_counter() - begin,
        }
        facts = {
            "images": report.images,
            "rescaled": report.rescaled,
            "rejected": [asdict(item) for item in _counted(report.rejected)],
            "strange": report.strange,
            "seconds": seconds,
            "host": socket.gethostname(),
            "finished": time.time(),
        }
        return counts(folder.receipts.write(plan.id, "embed", task.name, files, facts))


def _embedded(
    task: EmbedTask, plan: Plan, partition: Partition, count: Advance
) -> tuple[Callable[[str], Any], PartitionReport]:
    """Embed the images of a partition; return what encodes its files by name, and a report."""
    options, source = task.options, task.source
    shared: dict[str, Any] = {
        "selection": options.selection,
        "threads": options.threads or min(available_processors(), MOST_THREADS),
        "strict": options.strict,
        "s2_offset": options.s2_offset,
        "advance": count,
    }
    made_by = dict(plan.encoder)
    pixels = ("resampling", "s2_offset")
    made_by |= {key: plan.options[key] for key in pixels if key in plan.options}
    # Batch sizes come from the plan: on another machine the encoder might prefer others.
    if isinstance(source, CoreSource):
        fragments = source.fragments
        size = plan.batch_sizes[fragments.modality]
        table, report = embed_fragments(
            source, partition, options.encoder, batch_size=size, **shared
        )
        made_by["source"] = f"Major TOM, {plan.source}"
        offset = f", {options.s2_offset} subtracted from counts" if options.s2_offset else ""
        made_by["preprocessing"] = f"{fragments.preprocessing}{offset}"
        return partial(encode_embeddings, table, transposed=fragments.compat, about=made_by), report
    rows, report = embed_partition(
        source,
        partition,
        options.encoder,
        batch_sizes=plan.batch_sizes,
        sensors=options.sensors,
        crop=options.crop,
        **shared,
    )
    sensors = plan.options.get("sensors", {}).items()
    made_by |= {SENSOR + key: json.dumps(text, sort_keys=True) for key, text in sensors}
    return partial(encode_rows, rows, made_by | {"crop": options.crop}), report


def _counted(rejected: Sequence[Rejected]) -> list[Rejected]:
    """Sum up the repeated images of each archive in one entry.

    Published tensors are padded with repeated images, so nearly every member of a shard has some;
    an entry for each would make a long receipt.
    """
    kept = [item for item in rejected if item.kind != "duplicate" or not item.member]
    repeated: dict[str, list[Rejected]] = {}
    for item in rejected:
        if item.kind == "duplicate" and item.member:
            repeated.setdefault(item.file, []).append(item)
    for file, items in repeated.items():
        reason = f"images that it already holds, in {len(items)} members"
        number = sum(item.images for item in items)
        kept.append(Rejected(file, "", "duplicate", reason, number))
    return kept


def counts(receipt: Receipt) -> Receipt:
    """Return the numbers of a receipt of embedding, without its lists."""
    return {
        "images": receipt["images"],
        "rejected": sum(item["images"] for item in receipt["rejected"]),
        "seconds": receipt["seconds"],
        "strange": receipt.get("strange", {}),
        "quarantined": receipt.get("quarantined"),
    }


def _require_same(plan: Plan, encoder: Encoder) -> None:
    made_by = dict(encoder.provenance)
    for key in sorted(plan.encoder.keys() | made_by.keys()):
        if plan.encoder.get(key) != made_by.get(key):
            raise BuildError(
                f"{socket.gethostname()}: {key} is {made_by.get(key)!r} here and "
                f"{plan.encoder.get(key)!r} in the plan of this build; give all its workers the "
                "same device, dtype and weights"
            )


@contextmanager
def _heartbeats(folder: BuildFolder, name: str, advance: Advance) -> Iterator[Advance]:
    """Note the body's progress in the folder when it counts, but not too often."""
    note = f"running/{name}.json"
    state = {"host": socket.gethostname(), "pid": os.getpid(), "since": time.time()}
    done, last = 0, 0.0

    def count(images: int) -> None:
        nonlocal done, last
        done += images
        if time.time() - last >= SECONDS_BETWEEN_HEARTBEATS:
            last = time.time()
            folder.files.write(note, to_json(state | {"images": done, "seen": last}))
        advance(images)

    count(0)
    try:
        yield count
    finally:
        folder.files.remove(note)


# Assembling the cube.


@dataclass(frozen=True)
class AssembleTask:
    """Which part of the rows to combine, or which band of the cube to write.

    Parameters
    ----------
    out : str
        The future cube.
    plan : str
        Hash of its plan.
    survey : str
        Hash of what its rows hold.
    number : int
        Of the part of the rows, or of the band of the cube.
    """

    out: str
    plan: str
    survey: str
    number: int

    @property
    def work(self) -> str:
        """Hash of everything that decides the bytes of the task's files."""
        return digest([self.plan, self.survey])

    @property
    def place(self) -> str:
        """Name of the folder of its files.

        A worker that outlived its driver may still write files of other work, which must not be
        mixed with these.
        """
        return self.work[:16]


def run_combine_task(task: AssembleTask, advance: Advance = ignore) -> Receipt:
    """Combine a run of parts into statistics of whole cells, then write the receipt.

    The runs come first, then the passes over cells that lie in several runs.
    """
    folder, found = _surveyed(task)
    # Tasks are numbered continuously: runs of parts first, then the passes over divided cells.
    if task.number < len(found.runs):
        run = found.parts[found.runs[task.number]]
        cells = aggregate.combine(run, found.aggregation, found.survey)
    else:
        entries = found.passes[task.number - len(found.runs)]
        cells = aggregate.combine_pass(found.parts, found.aggregation, found.survey, entries)
    files = {}
    if bands := [band for band, _ in cells.by_band()]:
        name = f"cells/{task.place}/{task.number:06d}-{bands[0]:02d}-{bands[-1]:02d}.arrow"
        files[name] = folder.files.write(name, encode_cells(cells))
    advance(1)
    facts = {"cells": len(cells)}
    folder.receipts.write(task.work, "combine", f"{task.number:06d}", files, facts)
    return facts


def run_balance_task(task: AssembleTask, advance: Advance = ignore) -> Receipt:
    """Find variances of the modalities over the cells of one band, write them, then the receipt."""
    folder, found = _surveyed(task)
    name = f"{task.number:02d}"
    data = Variances.of(_cells(folder, task, found)).to_json()
    file = f"variances/{task.place}/{name}.json"
    files = {file: folder.files.write(file, data)}
    advance(1)
    folder.receipts.write(task.work, "balance", name, files, {})
    return {}


@lru_cache(maxsize=2)
def variances_of(task: AssembleTask) -> Variances:
    """Variances of the modalities over all cells, once those of all bands are written."""
    folder, found = _surveyed(task)
    whole = Variances.zero(found.survey.dim, len(found.labels))
    for band in range(N_BANDS):
        data = folder.files.read(f"variances/{task.place}/{band:02d}.json")
        whole = whole.merged(Variances.from_json(data))
    return whole


def run_write_task(task: AssembleTask, advance: Advance = ignore) -> Receipt:
    """Write one band of blocks of the cube from the cells of all parts, then the receipt."""
    folder, found = _surveyed(task)
    cells = _cells(folder, task, found)
    if found.aggregation.balance == "variance":
        # All bands use the same number, so that one cache entry serves them all.
        cells = equalised(cells, variances_of(replace(task, number=0)))
    written = cube.write_band(folder.cube(task.place), task.number, cells)
    advance(1)
    facts = {"cells": len(cells)}
    chunks = {f"cube.zarr/{task.place}/{chunk}": known for chunk, known in written.items()}
    folder.receipts.write(task.work, "write", f"{task.number:02d}", chunks, facts)
    return facts


def _cells(folder: BuildFolder, task: AssembleTask, found: "Surveyed") -> Cells:
    """Cells of a task's band, from all parts."""
    band = task.number
    # Sorted by name, hence by part number: the order of the cells is always the same.
    names = [name for name in folder.files.names(f"cells/{task.place}/") if _reaches(name, band)]
    files = folder.files
    tables = [decode_cells(files.open(n), f"{folder.path}/{n}", band) for n in names]
    nothing = Cells.empty(found.survey.dim, len(found.labels))
    return Cells.concatenate([nothing, *tables])


def _reaches(name: str, band: int) -> bool:
    """Whether a file of cells, which names its first and last band, may have cells of a band."""
    first, last = name.removesuffix(".arrow").split("-")[-2:]
    return int(first) <= band <= int(last)


@dataclass(frozen=True)
class Surveyed:
    """What is known about the rows before they are combined.

    Parameters
    ----------
    aggregation : Aggregation
        How cells are aggregated.
    parts : list of Part
        Runs of row groups; the first tasks of combining take one or several each.
    survey : Survey
        What the rows hold.
    """

    aggregation: Aggregation
    parts: list[Part]
    survey: Survey

    @classmethod
    def of(cls, files: Sequence[str], aggregation: Aggregation) -> "Surveyed":
        """Survey files of rows."""
        found = parts(files)
        return cls(aggregation, found, aggregate.survey(found, aggregation))

    @property
    def labels(self) -> tuple[str, ...]:
        """What cells count: the eight modalities, and other sensors that were selected."""
        return self.aggregation.selection.labels

    @cached_property
    def runs(self) -> list[slice]:
        """Runs of parts, one for each of the first tasks of combining."""
        return runs(self.parts)

    @cached_property
    def passes(self) -> list[slice]:
        """Passes over the cells that lie in several runs, one for each further task."""
        return aggregate.passes(self.survey)

    def to_json(self, rows: str) -> bytes:
        """Return bytes that `from_json` reads, with a hash of the rows if known."""
        survey = vars(self.survey) | {key: getattr(self.survey, key).tolist() for key in _ARRAYS}
        return to_json(
            {
                "form": _FORM,
                "rows": rows,
                "aggregation": asdict(self.aggregation),
                "parts": [asdict(part) for part in self.parts],
                "survey": survey,
            }
        )

    @classmethod
    def from_json(cls, data: bytes) -> "Surveyed":
        """Read the bytes of `to_json`, in which tuples and arrays are lists."""
        found = json.loads(data)
        chosen, known = found["aggregation"], found["survey"]
        selection = chosen["selection"]
        selection = Selection(**selection | {"modalities": tuple(selection["modalities"])})
        tuples = {key: tuple(known[key]) for key in ("groups", "images_by_modality")}
        arrays = {key: np.array(known[key], np.int64) for key in _ARRAYS}
        survey = Survey(**known | tuples | arrays)
        known_parts = [Part(p["file"], tuple(p["row_groups"]), p["rows"]) for p in found["parts"]]
        aggregation = Aggregation(**chosen | {"selection": selection})
        return cls(aggregation, known_parts, survey)


_FORM = 4
"""Version of the files in ``cells/``; those of an earlier copcube are combined again."""

_ARRAYS = ("split_cell", "split_part", "split_rows")


# What a process keeps between tasks.


@lru_cache(maxsize=4)
def _opened(out: str, plan: str) -> tuple[BuildFolder, Plan]:
    folder = BuildFolder(out)
    known = folder.plan()
    if known is None or known.id != plan:
        raise BuildError(f"{folder.path}: the plan of this build was replaced; start it again")
    return folder, known


def _surveyed(task: AssembleTask) -> tuple[BuildFolder, Surveyed]:
    folder, _ = _opened(task.out, task.plan)
    return folder, _survey(task.out, task.survey)


@lru_cache(maxsize=2)
def _survey(out: str, survey: str) -> Surveyed:
    folder = BuildFolder(out)
    data = folder.files.read("survey.json")
    if digest_of(data) != survey:
        raise BuildError(f"{folder.path}: the survey of its rows was replaced; start it again")
    return Surveyed.from_json(data)


def digest_of(data: bytes) -> str:
    """Return the SHA-256 of bytes."""
    return hashlib.sha256(data).hexdigest()
