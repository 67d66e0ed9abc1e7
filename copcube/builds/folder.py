"""The folder of a build: plan, receipts, rows, cells, and one driver at a time.

    world.build/
      plan.json  partitions.parquet  quarantine.parquet
      rows/NAME.parquet              one file a partition
      cells/NAME.arrow               statistics of its cells, until the cube is done
      receipts/STAGE/NAME.json       one a finished unit
      cube.zarr                      the cube until it is whole, then renamed

A unit counts as done when its receipt names this plan and its files have the recorded
sizes and checksums. A receipt is written last, after its files are on the disk, so
killing a build at any moment loses only what had no receipt.
"""

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from copcube.builds.plan import Plan
from copcube.errors import BuildError
from copcube.storage import atomic_path, writing

Receipt = dict[str, Any]


class BuildFolder:
    """The folder beside a cube that its build works in.

    Parameters
    ----------
    out : Path
        The cube, such as ``world.zarr``; the folder is ``world.build``.
    """

    def __init__(self, out: Path) -> None:
        self.out = out
        self.path = out.with_name(out.name.removesuffix(".zarr") + ".build")
        self.cube = self.path / "cube.zarr"
        self.rows = self.path / "rows"
        self.cells = self.path / "cells"
        self.quarantine = self.path / "quarantine.parquet"
        self.partitions = self.path / "partitions.parquet"
        self.replaced = self.path / "replaced.zarr"
        self._plan = self.path / "plan.json"

    def plan(self) -> Plan | None:
        """Return the plan of the build under way, if any.

        Raises
        ------
        BuildError
            If the file is there and is no plan.
        """
        try:
            return Plan(**json.loads(self._plan.read_text("utf-8")))
        except FileNotFoundError:
            return None
        except (ValueError, TypeError) as error:
            raise BuildError(
                f"{self._plan}: expected the plan of a build, found something else ({error}); "
                "--overwrite starts anew"
            ) from error

    def write_plan(self, plan: Plan) -> None:
        """Write the plan."""
        with atomic_path(self._plan) as temporary:
            temporary.write_text(json.dumps(asdict(plan), indent=1, sort_keys=True), "utf-8")

    def prepare(self) -> None:
        """Make the folders and sweep what a killed writer left behind.

        Raises
        ------
        StorageError
            If they cannot be made.
        """
        with writing(self.path):
            for folder in (self.rows, self.cells, self.path / "receipts"):
                folder.mkdir(parents=True, exist_ok=True)
            for stray in self.path.rglob(".*.partial"):
                stray.unlink()

    def clear(self) -> None:
        """Remove everything in the folder but its lock."""
        for entry in self.path.iterdir() if self.path.exists() else ():
            if entry.name == "lock":
                continue
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()

    def set_aside(self) -> None:
        """Move a cube that is to be replaced out of the way, until its successor is done."""
        if self.out.exists():
            shutil.rmtree(self.replaced, ignore_errors=True)
            self.out.rename(self.replaced)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the build against other drivers on this machine and its file systems.

        Raises
        ------
        BuildError
            If another process holds it.
        """
        with writing(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(descriptor)
            raise BuildError(
                f"{self.path}: another process is working on this build; wait for it, or stop it"
            ) from error
        try:
            yield
        finally:
            os.close(descriptor)

    def receipt(self, plan: Plan, stage: str, name: str) -> Receipt | None:
        """Receipt of a unit, if it is done: of this plan, with its files as recorded."""
        try:
            receipt: Receipt = json.loads(self._receipt(stage, name).read_text("utf-8"))
            if receipt["plan"] != plan.id or not all(
                _checksum(self.path / file) == known for file, known in receipt["files"].items()
            ):
                return None
        except (FileNotFoundError, ValueError, KeyError):
            return None
        return receipt

    def sign(
        self, plan: Plan, stage: str, name: str, files: list[Path], facts: Mapping[str, Any]
    ) -> Receipt:
        """Write the receipt of a unit whose files are on the disk, and return it."""
        path = self._receipt(stage, name)
        path.parent.mkdir(exist_ok=True)
        receipt = {
            "plan": plan.id,
            "files": {str(f.relative_to(self.path)): _checksum(f) for f in files},
            **facts,
        }
        with atomic_path(path) as temporary:
            temporary.write_text(json.dumps(receipt, sort_keys=True), "utf-8")
        return receipt

    def _receipt(self, stage: str, name: str) -> Path:
        return self.path / "receipts" / stage / f"{name}.json"


def _checksum(path: Path) -> list[int | str]:
    with path.open("rb") as file:
        return [os.fstat(file.fileno()).st_size, hashlib.file_digest(file, "sha256").hexdigest()]
