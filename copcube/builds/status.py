"""How a build stands, told from its folder alone, on any machine that sees it."""

import json
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from copcube.builds.folder import BuildFolder
from copcube.cube import read_attributes
from copcube.errors import BuildError
from copcube.grid import N_BANDS
from copcube.progress import duration

RECENT = 600.0
SILENT = 180.0
"""Seconds without a sign of life after which a worker is said to be silent."""


@dataclass(frozen=True)
class Running:
    """A partition that a worker is at.

    Parameters
    ----------
    name : str
        Of the partition.
    host : str
        Of the worker, and its process there.
    pid : int
        The process.
    images : int
        Images embedded by the last sign of life.
    since, seen : float
        Begin and last sign of life, seconds since 1970-01-01 by the worker's clock.
    """

    name: str
    host: str
    pid: int
    images: int
    since: float
    seen: float


@dataclass(frozen=True)
class Status:
    """How a build stands.

    Parameters
    ----------
    folder : str
        Of the build.
    stage : str
        ``embedding``, ``combining``, ``writing`` or ``done``.
    units, done : int
        Units of the stage, and how many of them are done.
    images : dict of str to int
        Images embedded, by modality.
    rejected : dict of str to int
        Images left out, by kind.
    rate : float or None
        Images a second over the last ten minutes; None where nothing was finished.
    seconds_left : float or None
        Time that embedding the rest takes at this rate.
    running : list of Running
        What workers are at.
    failed : dict of str to str
        Units that failed and will be tried again, and why.
    quarantined : dict of str to str
        Partitions left out as a whole, and why.
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
        """Write the state as lines for people."""
        unit = {"combining": "parts", "writing": "bands"}.get(self.stage, "partitions")
        lines = [f"{self.folder}: {self.stage}, {self.done} of {self.units} {unit} done"]
        total = sum(self.images.values())
        if total:
            by = ", ".join(f"{key} {count:,}" for key, count in self.images.items())
            lines.append(f"images: {total:,} ({by})")
        if self.rejected:
            kinds = ", ".join(f"{count:,} {kind}" for kind, count in self.rejected.items())
            lines.append(f"left out: {kinds} images (reasons in quarantine.parquet at the end)")
        if self.rate is not None:
            left = "" if self.seconds_left is None else f", {duration(self.seconds_left)} left"
            lines.append(f"rate: {self.rate:,.1f} images/s over the last ten minutes{left}")
        now = time.time()
        for r in sorted(self.running, key=lambda r: r.name):
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
    """Tell how a build stands.

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
    name = str(path).rstrip("/")
    folder = BuildFolder(f"{name.removesuffix('.build').removesuffix('.zarr')}.zarr")
    plan = folder.plan()
    if plan is None:
        raise BuildError(
            f"{path}: expected the folder of a build such as world.build, with a plan.json in it; "
            "found none"
        )
    names = [partition.name for partition in folder.partitions()]
    signed = _read_all(folder, "receipts/embed/")
    stage, units, done = _stage(folder, plan.id, len(names), len(signed))
    return Status(
        folder=folder.path,
        stage=stage,
        units=units,
        done=done,
        running=[Running(name=n, **mark) for n, mark in _read_all(folder, "running/").items()],
        failed={
            name: f"{entry['reason']} (tried {entry['attempts']} times)"
            for name, entry in _read_all(folder, "failed/").items()
        },
        quarantined={n: r["quarantined"] for n, r in signed.items() if r.get("quarantined")},
        **_told(signed, len(names)),
    )


def _told(signed: dict[str, Any], partitions: int) -> dict[str, Any]:
    """Images, what was left out, rate and time left, as the receipts tell them."""
    images: Counter[str] = Counter()
    rejected: Counter[str] = Counter()
    recent, oldest, now = 0, time.time(), time.time()
    for receipt in signed.values():
        images.update(receipt["images"])
        for item in receipt["rejected"]:
            rejected[item["kind"]] += item["images"]
        if now - receipt.get("finished", 0.0) < RECENT:
            recent += sum(receipt["images"].values())
            begin = receipt["finished"] - receipt["seconds"]["embedding"]
            oldest = min(oldest, begin)
    rate = recent / max(min(now - oldest, RECENT), 1e-3) if recent else None
    left = partitions - len(signed)
    mean = sum(images.values()) / len(signed) if signed else 0.0
    return {
        "images": dict(images),
        "rejected": dict(sorted(rejected.items())),
        "rate": rate,
        "seconds_left": left * mean / rate if rate and left else None,
    }


def _stage(folder: BuildFolder, plan: str, partitions: int, embedded: int) -> tuple[str, int, int]:
    """Stage, its units, and how many of them are done."""
    if embedded < partitions:
        return "embedding", partitions, embedded
    if read_attributes(folder.out).get("copcube_plan") == plan:
        return "done", partitions, partitions
    combined, written = (len(folder.files.names(f"receipts/{s}/")) for s in ("combine", "write"))
    if written or folder.files.names("receipts/create/"):
        return "writing", N_BANDS, written
    try:
        parts = len(json.loads(folder.files.read("survey.json"))["parts"])
    except FileNotFoundError:
        parts = 0
    return "combining", parts, combined


def _read_all(folder: BuildFolder, prefix: str) -> dict[str, dict[str, Any]]:
    """JSON files below a prefix by their names, those left out that vanish meanwhile."""
    found = {}
    for file in folder.files.names(prefix):
        try:
            found[file.rpartition("/")[2].removesuffix(".json")] = json.loads(
                folder.files.read(file)
            )
        except (FileNotFoundError, ValueError):
            continue
    return found
