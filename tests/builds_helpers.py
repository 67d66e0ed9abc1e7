"""What tests of builds share: the bytes of a folder, and what may be left in one."""

import hashlib
import multiprocessing
import os
import signal
import traceback
import warnings
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import dask
from distributed.utils import get_mp_context

SOAK = "COPCUBE_FAULTS_SEED" in os.environ
"""Whether to die more often, as ``make soak`` does."""

SEED = int(os.environ.get("COPCUBE_FAULTS_SEED", "0"))
"""Another seed, other moments of death."""


FORK = multiprocessing.get_context("forkserver")
"""Starts processes as forks of one that has imported for all of them what builds need."""

FORKED = {"distributed.worker.multiprocessing-method": "forkserver"}
"""Setting of dask by which it does the same."""

with dask.config.set(FORKED):
    get_mp_context()  # which has it import less, the first time only
FORK.set_forkserver_preload(
    [
        *("copcube.builds", "copcube.images.geotiff", "distributed.nanny", "pyarrow.parquet"),
        *("rasterio", "stub", "zarr"),
    ]
)


def run_code(code, said):
    """Run code in a process of `FORK`; return what it prints, which goes to a file before."""
    process = FORK.Process(target=_run_code, args=(code, said))
    process.start()
    process.join(120)
    assert process.exitcode == 0, said.read_text()
    return said.read_text()


def _run_code(code, said):
    warnings.simplefilter("ignore")
    with said.open("w") as file, redirect_stdout(file), redirect_stderr(file):
        try:
            exec(code, {})
        except BaseException:
            traceback.print_exc()
            raise


def run_build(images, out, *, files=None, environment=(), die_at=None, **options):
    """Build as a process of `FORK`, which knows nothing of what this one has changed.

    Parameters
    ----------
    images, out, options
        Those of `build`.
    files : int, optional
        Images of a partition of GeoTIFFs.
    environment : mapping
        Added to that of the process which was there first.
    die_at : int, optional
        Change of the file system at which the process kills itself.
    """
    from copcube.builds import build
    from copcube.images import geotiff

    os.environ.update(environment)
    if files is not None:
        geotiff._IMAGES_PER_PARTITION = files
    if die_at is not None:
        count = 0

        def mortal(function):
            def call(*arguments, **options):
                nonlocal count
                count += 1
                if count == die_at:
                    os.kill(os.getpid(), signal.SIGKILL)
                return function(*arguments, **options)

            return call

        for name in ("replace", "rename", "fsync"):
            setattr(os, name, mortal(getattr(os, name)))
    build(str(images), str(out), **options)


def contents(folder):
    """Checksum of every file below a folder."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(Path(folder).rglob("*"))
        if path.is_file()
    }


def leftovers(build_folder):
    """Names in the folder of a finished build that should be gone."""
    return {p.name for p in build_folder.iterdir()} - {
        *("plan.json", "partitions.parquet", "quarantine.parquet", "rows", "receipts")
    }


def assert_undisturbed(out, undisturbed):
    """Hold cube, rows and leftovers of a build against those of one that nobody disturbed."""
    assert contents(out) == contents(undisturbed)
    folder, known = out.with_name("world.build"), undisturbed.with_name("world.build")
    assert contents(folder / "rows") == contents(known / "rows")
    assert not leftovers(folder)
    assert [p.name for p in (folder / "receipts").iterdir()] == ["embed"]
    assert not list(folder.rglob("*.partial"))
