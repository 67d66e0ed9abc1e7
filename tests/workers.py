"""Encoders that do things to the workers they run on; their vectors are the stub's."""

import os
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

from distributed import KilledWorker, get_worker
from stub import StubEncoder


class Misbehaving(StubEncoder):
    """A stub that first asks its spec what to do."""

    def __init__(self, spec: "WorkerSpec") -> None:
        super().__init__(spec.seconds)
        self.spec = spec

    def __call__(self, modality, pixels, metadata):
        self.spec.misbehave(metadata)
        return super().__call__(modality, pixels, metadata)


@dataclass(frozen=True)
class WorkerSpec:
    """An encoder that behaves well and keeps a diary.

    Parameters
    ----------
    diary : str
        Folder where every load and every call leaves a file.
    seconds : float
        How long an image takes.
    """

    diary: str
    seconds: float = 0.0

    def load(self) -> Misbehaving:
        self.note("load")
        return Misbehaving(self)

    def note(self, what: str) -> None:
        try:
            worker = f"{get_worker().name}@{get_worker().address}".replace("/", "_")
        except ValueError:  # in this process, without a cluster
            worker = None
        Path(self.diary, f"{what}|{os.getpid()}|{worker}|{time.monotonic_ns()}").touch()

    def noted(self, what: str) -> list[int]:
        """Processes of the entries of a kind."""
        return [int(p.name.split("|")[1]) for p in Path(self.diary).glob(f"{what}|*")]

    def workers(self) -> set[str]:
        """Names and addresses of the workers that have embedded anything."""
        return {p.name.split("|")[2] for p in Path(self.diary).glob("call|*")}

    def misbehave(self, metadata) -> None:
        self.note("call")


@dataclass(frozen=True)
class DiesOnce(WorkerSpec):
    """Kills its worker the first time that anything is embedded."""

    def misbehave(self, metadata) -> None:
        self.note("call")
        try:
            # Two workers may embed at once; one of them makes the file.
            Path(self.diary, "first").touch(exist_ok=False)
        except FileExistsError:
            return
        self.note("death")
        os.kill(os.getpid(), signal.SIGKILL)


@dataclass(frozen=True)
class KillsAt(WorkerSpec):
    """Kills its worker at every image of some places, given as longitude and latitude.

    With `really` false it raises what the scheduler of dask raises for a task whose workers
    died, and the worker lives.
    """

    places: tuple[tuple[float, float], ...] = field(default=())
    really: bool = True

    def misbehave(self, metadata) -> None:
        self.note("call")
        if {tuple(row[:2]) for row in metadata.tolist()} & set(self.places):
            self.note("death")
            if not self.really:
                raise KilledWorker("task", SimpleNamespace(address="nowhere"), 0)
            time.sleep(0.5)  # a nanny starts no worker again that dies while it is starting
            os.kill(os.getpid(), signal.SIGKILL)


@dataclass(frozen=True)
class Broken(WorkerSpec):
    """Embeds nothing."""

    def misbehave(self, metadata) -> None:
        self.note("call")
        raise RuntimeError("no such kernel image")
