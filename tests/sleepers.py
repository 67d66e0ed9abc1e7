"""Drivers that stop in the midst of a build, and go on when they are woken up.

As a program it takes the images, the folder or address of the cubes, the period after which
a driver counts as dead, and the stages to stop at. It stops itself with SIGSTOP, once every
driver has come to its stage, and in the end prints what became of each.
"""

import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partialmethod

import pytest
from stub import StubEncoder

from copcube import aggregate, cube
from copcube.builds import build, executors
from copcube.builds.folder import BuildFolder
from copcube.files.objects import ObjectFolder

OPTIONS = {"encoder": StubEncoder(), "modalities": ["s5p_no2"], "threads": 1}

STAGES = {
    "embedding": (StubEncoder, "__call__"),
    "combining": (aggregate, "combine"),
    "writing": (cube, "write_band"),
    "finishing": (cube, "finish"),
    "publishing": (BuildFolder, "publish"),
    "copying": (ObjectFolder, "copy_to"),
    "sweeping": (BuildFolder, "sweep"),
}
"""What a driver is about to call when it stops."""


@contextmanager
def sleepers(
    images: str, root: str, stages: list[str], sleep: Callable[[], None], **periods: float
) -> Iterator[Callable[[], dict[str, str]]]:
    """Start a driver for each stage, which builds the cube ``root/STAGE.zarr`` in a thread.

    When each has come to its stage, one of them calls `sleep`, and all wait until that ends.
    Yields a function that waits for their ends and says what became of them, by stage.
    """
    before, after = threading.Barrier(len(stages)), threading.Barrier(len(stages))
    said: dict[str, str] = {}

    def drive(stage: str) -> None:
        try:
            build(images, f"{root}/{stage}.zarr", **OPTIONS)
            said[stage] = "finished"
        except Exception as error:
            said[stage] = f"{type(error).__name__}: {error}"
            before.abort()

    def stopping(stage: str, function: Callable[..., object]) -> Callable[..., object]:
        def call(*arguments: object, **options: object) -> object:
            thread = threading.current_thread()
            if thread.name == f"sleeper {stage}":
                thread.name = f"woken {stage}"
                if before.wait(60) == 0:
                    sleep()
                after.wait(60)
            return function(*arguments, **options)

        return call

    with pytest.MonkeyPatch.context() as patch:
        lock = BuildFolder.lock
        patch.setattr(BuildFolder, "lock", partialmethod(lock, **periods))
        # Tasks one by one, in the thread of the driver, which is known by its name.
        patch.setattr(executors, "available_processors", lambda: 1)
        for stage in stages:
            owner, name = STAGES[stage]
            patch.setattr(owner, name, stopping(stage, getattr(owner, name)))
        threads = [
            threading.Thread(target=drive, args=(s,), name=f"sleeper {s}", daemon=True)
            for s in stages
        ]
        for thread in threads:
            thread.start()

        def end() -> dict[str, str]:
            for thread in threads:
                thread.join(60)
            return said

        yield end


if __name__ == "__main__":
    images, root, dead, *stages = sys.argv[1:]

    def sleep() -> None:
        os.kill(os.getpid(), signal.SIGSTOP)

    with sleepers(images, root, stages, sleep, beat=0.1, dead=float(dead)) as end:
        print(json.dumps(end()), flush=True)
