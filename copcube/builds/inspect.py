"""Inspecting a build: what it would do, its progress, and whether its rows are intact.

`estimate` reads the source and measures one batch; `status` and `validate_rows` read only the
folder, on any machine that sees it. None of them writes anything.
"""

import itertools
import json
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from copcube.arguments import one_path
from copcube.builds.folder import BuildFolder
from copcube.builds.partitions import chosen_partitions
from copcube.builds.plan import BuildOptions, Plan, plan_build
from copcube.builds.quarantine import rows_digest
from copcube.builds.receipts import Receipt
from copcube.builds.stages import complete
from copcube.builds.tasks import describe
from copcube.embedding import Batch, Encoder, crop_image
from copcube.errors import BuildError
from copcube.grid import N_BANDS, N_LAT, N_LON
from copcube.images import Image, Partition, Source
from copcube.modalities import kinds
from copcube.products.majortom import CoreSource, Sample
from copcube.progress import duration, size
from copcube.selection import Selection

LOOK = 8
"""Partitions that are sampled; the content of the others is estimated from them."""

RECENT = 600.0
"""Seconds over which the rate is averaged."""

SILENT = 180.0
"""Seconds without a heartbeat after which a worker is shown as silent."""


@dataclass(frozen=True)
class Estimate:
    """What a build would do.

    Parameters
    ----------
    partitions, done : int
        All partitions, and how many of them an earlier run finished.
    images : dict of str to int
        Images to embed in all partitions, by modality.
    counted : bool
        Whether the images of every partition were counted; otherwise they are extrapolated.
    rate : dict of str to float
        Measured images a second, by modality: decoding and encoding one batch; infinite if no
        sampled image can be read.
    rows_bytes, cube_bytes : int
        Upper bounds of the disk space for rows and cube.
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
        """Time to embed the rest at the measured rates."""
        whole = sum(count / self.rate[key] for key, count in self.images.items())
        return whole * (1 - self.done / max(self.partitions, 1))

    def __str__(self) -> str:
        """Format the estimate as a table."""
        about = "      " if self.counted else "about "
        lines = [f"{self.partitions} partitions, {self.done} of them done"]
        for key, count in self.images.items():
            rate = self.rate[key]
            speed = f"{rate:8.1f} images/s" if np.isfinite(rate) else "no sample can be read"
            lines.append(f"  {key:8} {about}{count:>10,} images, {speed}")
        lines.append(
            f"disk: rows up to {size(self.rows_bytes)}, cube up to {size(self.cube_bytes)}"
        )
        lines.append(f"time: about {duration(self.seconds)}, from one measured batch of each")
        return "\n".join(lines)


def estimate(
    source: str | Path,
    out: str | Path,
    *,
    overwrite: bool = False,
    partitions: str | int | None = None,
    **options: Any,
) -> Estimate:
    """Estimate what `copcube.build` would do with the same arguments; write nothing.

    Parameters
    ----------
    source, out, overwrite, partitions
        As in `copcube.build`.
    **options
        Modalities, sensors, dates, crop, encoder, batch_size, threads, s2_offset, balance, by and
        product, as in `copcube.build`.

    Returns
    -------
    Estimate

    Raises
    ------
    SourceError, OptionError, WeightsError, FetchError, BuildError
        As `copcube.build`, before it begins.
    """
    chosen = BuildOptions.of(**options)
    images = chosen.open(source)
    encoder = chosen.encoder
    folder = BuildFolder(out)
    folder.require_apart(source, overwrite=overwrite)
    plan, listed = plan_build(images, chosen, describe(chosen))
    listed = [listed[i] for i in chosen_partitions(partitions, len(listed))]
    if overwrite:
        folder.require_own_cube()
    else:
        plan = folder.followed(
            plan, folder.plan(), keep_batches=chosen.batch_size is None, alone=partitions is None
        )
    anew = overwrite and folder.begins_anew(plan)
    done = {} if anew else folder.receipts.done(plan.id, "embed", [p.name for p in listed])
    # Spread evenly over all partitions: the first ones may all lie in one region.
    step = max(len(listed) // LOOK, 1)
    looked = listed[::step]
    counts: Counter[str] = Counter()
    for partition in looked:
        counts.update(images.count(partition, chosen.selection))
    share = len(listed) / max(len(looked), 1)
    total = {key: round(counts[key] * share) for key in chosen.selection.modalities if counts[key]}
    if isinstance(images, CoreSource):
        rate = {key: _rate_of_fragments(images, looked, chosen, plan) for key in total}
    else:
        rate = {key: _rate(images, looked, key, chosen, encoder, plan) for key in total}
    vector = 4 * encoder.dim  # bytes
    # With groups, a cell is in each at most once.
    times = {None: 1, "season": 4, "month": 12}.get(chosen.by, sum(total.values()))
    return Estimate(
        partitions=len(listed),
        done=len(done),
        images=total,
        counted=step == 1,
        rate=rate,
        # 64 bytes for the ids, dates and modality of a row.
        rows_bytes=sum(total.values()) * (vector + 64),
        cube_bytes=min(sum(total.values()), N_LAT * N_LON * times) * vector,
    )


def _rate(
    source: Source,
    partitions: list[Partition],
    key: str,
    options: BuildOptions,
    encoder: Encoder,
    plan: Plan,
) -> float:
    """Images a second of one modality, from decoding and embedding one batch after a warm-up."""
    only = Selection((key,), options.selection.start, options.selection.end)
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
    kind = kinds(options.sensors)[key]
    batch = Batch.of([crop_image(image, kind, options.crop) for image in found[:count]], kind)
    encoder(kind.asked, batch.pixels, batch.metadata)
    begin = time.perf_counter()
    encoder(kind.asked, batch.pixels, batch.metadata)
    # One after the other, although a build does both at once: an upper bound of the time.
    return 1 / (decoding + (time.perf_counter() - begin) / len(batch.images))


def _rate_of_fragments(
    source: CoreSource, partitions: list[Partition], options: BuildOptions, plan: Plan
) -> float:
    """Fragments a second, from decoding one image and embedding a batch of it after a warm-up."""
    key = source.fragments.modality
    begin = time.perf_counter()
    jobs = itertools.chain.from_iterable(source.jobs(p, options.selection) for p in partitions)
    found = (item for job in jobs if callable(job) for item in job() if isinstance(item, Sample))
    sample = next((sample for sample in found if sample.pixels), None)
    if sample is None:
        return float("inf")
    decoding = (time.perf_counter() - begin) / len(sample.pixels)
    batch = sample.pixels if source.fragments.by_cell else sample.pixels[: plan.batch_sizes[key]]
    nowhere = np.full((len(batch), 4), np.nan)
    options.encoder(key, batch, nowhere)
    begin = time.perf_counter()
    options.encoder(key, batch, nowhere)
    return 1 / (decoding + (time.perf_counter() - begin) / len(batch))


@dataclass(frozen=True)
class Running:
    """A partition that a worker is embedding.

    Parameters
    ----------
    name : str
        Of the partition.
    host : str
        Of the worker, and its process there.
    pid : int
        The process.
    images : int
        Images embedded by the last heartbeat.
    since, seen : float
        Start and last heartbeat, in seconds since 1970-01-01 by the worker's clock.
    """

    name: str
    host: str
    pid: int
    images: int
    since: float
    seen: float


@dataclass(frozen=True)
class Status:
    """Progress of a build.

    Parameters
    ----------
    folder : str
        Of the build.
    stage : str
        ``embedding``, ``combining``, ``writing`` or ``done``.
    units, done : int
        Partitions, parts or bands of the stage, and how many of them are done.
    images : dict of str to int
        Images embedded, by modality.
    rejected : dict of str to int
        Images left out, by kind.
    rate : float or None
        Images a second over the last ten minutes; None if nothing was finished.
    seconds_left : float or None
        Time to embed the rest at this rate.
    running : list of Running
        Partitions that workers are embedding.
    failed : dict of str to str
        Tasks that failed and will be retried, with the reasons.
    quarantined : dict of str to str
        Partitions left out entirely, with the reasons.
    """

    folder: str
    stage: str
    units: int
    done: int
    images: dict[str, int] = field(default_factory=dict)
    rejected: dict[str, int] = field(default_factory=dict)
    rate: float | None = None
    seconds_left: float | None = None
    running: list[Running] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    quarantined: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        """Format the progress as lines of text."""
        unit = {"combining": "parts", "writing": "bands"}.get(self.stage, "partitions")
        # Aggregating rows involves no partitions.
        counted = f", {self.done} of {self.units} {unit} done" if self.units else ""
        lines = [f"{self.folder}: {self.stage}{counted}"]
        total = sum(self.images.values())
        if total:
            by = ", ".join(f"{key} {count:,}" for key, count in self.images.items())
            lines.append(f"images: {total:,} ({by})")
        if self.rejected:
            kinds = ", ".join(f"{count:,} {kind}" for kind, count in self.rejected.items())
            lines.append(f"left out: {kinds} images (reasons in quarantine.parquet at the end)")
        # After that it would fall every minute and say nothing about the build.
        if self.rate is not None and self.stage == "embedding":
            left = "" if self.seconds_left is None else f", {duration(self.seconds_left)} left"
            lines.append(f"rate: {self.rate:,.1f} images/s over the last ten minutes{left}")
        now = time.time()
        for r in sorted(self.running, key=lambda running: running.name):
            quiet = now - r.seen
            state = f"silent for {duration(quiet)}, dead?" if quiet > SILENT else "alive"
            lines.append(
                f"running: {r.name} on {r.host} (process {r.pid}) for "
                f"{duration(max(now - r.since, 0))}, {r.images:,} images, {state}"
            )
        lines += [f"failed: {name}: {why}" for name, why in sorted(self.failed.items())]
        lines += [f"quarantined: {name}: {why}" for name, why in sorted(self.quarantined.items())]
        return "\n".join(lines)


def status(path: str | Path) -> Status:
    """Report the progress of a build.

    Parameters
    ----------
    path : str or Path
        The build's folder, such as ``world.build``, or its cube, ``world.zarr``.

    Returns
    -------
    Status

    Raises
    ------
    BuildError
        If there is no build.
    """
    name = one_path(path, "folder").rstrip("/")
    folder = BuildFolder(f"{name.removesuffix('.build').removesuffix('.zarr')}.zarr")
    plan = folder.plan()
    if plan is None:
        raise BuildError(
            f"{path}: expected the folder of a build, such as world.build, with a plan.json in it; "
            f"found none in {folder.path}"
        )
    names = [partition.name for partition in folder.partitions()]
    receipts = dict(folder.receipts.readable("embed"))
    stage, units, done = _stage(folder, plan, len(names), len(receipts))
    return Status(
        folder=folder.path,
        stage=stage,
        units=units,
        done=done,
        running=[
            Running(name=name, **mark)
            for name, mark in _read_all(folder, "running/").items()
            if _has(_is_mark, mark)
        ],
        failed={
            name: f"{entry['reason']} (tried {entry['attempts']} times)"
            for name, entry in _read_all(folder, "failed/").items()
            if _has(lambda e: {"reason", "attempts"} <= e.keys(), entry)
        },
        quarantined={n: r["quarantined"] for n, r in receipts.items() if r.get("quarantined")},
        **_progress(receipts, len(names)),
    )


def validate_rows(out: str | Path) -> list[str]:
    """Compare the rows that a build left beside its cube with the checksums in their receipts.

    All rows are read.

    Parameters
    ----------
    out : str or Path
        The cube.

    Returns
    -------
    list of str
        Problems found; empty if there are none or there is no build folder.
    """
    folder = BuildFolder(out)
    try:
        plan = folder.plan()
        if plan is None or plan.kind != "build":
            return []
        names = [partition.name for partition in folder.partitions()]
    except BuildError as error:
        return [str(error)]
    replaced = folder.is_replacing()
    receipts = folder.receipts.done(plan.id, "embed", names, hashes=True)
    # A build trusts size and stamp, so a damaged file must be removed before it is remade.
    missing = [
        f"{folder.rows(name)}: missing, or not the rows that this build wrote; remove the file if "
        "it exists, and build again"
        for name in names
        if name not in receipts
    ]
    if not missing and complete(folder, plan, rows_digest(receipts.values())):
        return []
    # Rows that a running build has not written yet are not damage.
    if missing and folder.is_cube_of(plan) and not (replaced or folder.is_replacing()):
        return missing
    return [f"{folder.path}: belongs to an unfinished build, or to another cube"]


def _is_mark(mark: Any) -> bool:
    kinds = {"host": str, "pid": int, "images": int, "since": int | float, "seen": int | float}
    return mark.keys() == kinds.keys() and all(isinstance(mark[k], kinds[k]) for k in kinds)


def _has(form: Callable[[Any], bool], value: Any) -> bool:
    """Whether what was read from a file that may be damaged has the expected form."""
    try:
        return form(value)
    except (AttributeError, KeyError, TypeError):
        return False


def _progress(receipts: dict[str, Receipt], partitions: int) -> dict[str, Any]:
    """Compute images, what was left out, rate and time left from the partitions' receipts."""
    images: Counter[str] = Counter()
    rejected: Counter[str] = Counter()
    recent, now = 0, time.time()
    oldest = newest = now
    for receipt in receipts.values():
        images.update(receipt["images"])
        for item in receipt["rejected"]:
            rejected[item["kind"]] += item["images"]
        if now - receipt.get("finished", 0.0) < RECENT:
            recent += sum(receipt["images"].values())
            # The first partition finished in these ten minutes may have begun earlier.
            begin = receipt["finished"] - receipt["seconds"]["embedding"]
            oldest = min(oldest, begin)
            # This is a worker's clock, which may be ahead of this one.
            newest = max(newest, receipt["finished"])
    rate = recent / max(min(newest - oldest, RECENT), 1e-3) if recent else None
    left = partitions - len(receipts)
    mean = sum(images.values()) / len(receipts) if receipts else 0.0
    return {
        "images": dict(images),
        "rejected": dict(sorted(rejected.items())),
        "rate": rate,
        "seconds_left": left * mean / rate if rate and left else None,
    }


def _stage(folder: BuildFolder, plan: Plan, partitions: int, embedded: int) -> tuple[str, int, int]:
    """Find the stage, the number of its tasks, and how many of them are done."""
    # A build that has just begun has not listed its partitions; aggregating rows has none.
    if embedded < partitions or (plan.kind == "build" and not partitions):
        return "embedding", partitions, embedded
    # The folder does not record whether the name of its cube ends in .zarr.
    names = folder.out, folder.out.removesuffix(".zarr")
    if any(BuildFolder(name).is_cube_of(plan) for name in names):
        return "done", partitions, partitions
    combined, written = (len(folder.receipts.names(s)) for s in ("combine", "write"))
    if written or folder.receipts.names("create"):
        return "writing", N_BANDS, written
    try:
        parts = len(json.loads(folder.files.read("survey.json"))["parts"])
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        parts = 0
    return "combining", parts, combined


def _read_all(folder: BuildFolder, prefix: str) -> dict[str, dict[str, Any]]:
    """Read JSON files below a prefix, by name; skip those that vanish meanwhile."""
    found = {}
    for file in folder.files.names(prefix):
        try:
            found[Path(file).stem] = json.loads(folder.files.read(file))
        # A worker removes its note when its partition is done, perhaps while this reads.
        except (FileNotFoundError, ValueError):
            continue
    return found
