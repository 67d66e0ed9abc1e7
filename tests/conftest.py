"""Fixtures shared by all tests."""

import gc
import logging
import os
import shutil
import sys
from collections import Counter, OrderedDict
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import timedelta
from pathlib import Path
from types import FrameType

import psutil
import pytest
from hypothesis import settings
from s3_server import Web, make_bucket, serve_s3, serve_web

from copcube.files.objects import access, stores

# Examples open files and start threads, whose time says nothing of the code.
settings.register_profile("copcube", deadline=None)
settings.load_profile("copcube")

MEMORY_DISK = Path("/dev/shm")
MEMORY_OF_TESTS = 4_000_000_000
"""Bytes that a process of tests takes at most, with two encoders and a map of the globe."""


def pytest_configure(config: pytest.Config) -> None:
    """Folders of tests lie in memory where there is plenty: a disk makes them wait for a third."""
    # All tests together keep 1.3 GB at most.
    if (
        os.access(MEMORY_DISK, os.W_OK)
        and shutil.disk_usage(MEMORY_DISK).free > 4e9
        and psutil.virtual_memory().available > 8e9
    ):
        os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(MEMORY_DISK))


@pytest.hookimpl(wrapper=True)
def pytest_xdist_auto_num_workers() -> Generator[None, int, int]:
    """One process more than there are cores, where memory suffices: many tests wait for others."""
    processes = yield
    return max(1, min(processes + 1, psutil.virtual_memory().available // MEMORY_OF_TESTS))


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """What is imported is never garbage, and to search it again and again takes seconds."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Decoded maps go to a folder of the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COPCUBE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session", autouse=True)
def no_flushing() -> Iterator[None]:
    """Nothing that a test writes has to survive a power cut; flushing to the disk takes long.

    Tests of what is flushed when patch `os.fsync` themselves; child processes do flush.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(autouse=True)
def log() -> None:
    """Undo what the command line does to the log before each test, whatever ran it last.

    Fixtures of a module run before those of a test, so that what they find cannot be kept here.
    """
    logger = logging.getLogger("copcube")
    logger.handlers[:], logger.propagate = [], True
    logger.setLevel(logging.NOTSET)


@pytest.fixture
def no_encoders(monkeypatch: pytest.MonkeyPatch) -> None:
    """No encoder of another test is there already, and none of this one stays."""
    from copcube.embedding import encoders

    monkeypatch.setattr(encoders, "_LOADED", OrderedDict())


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real data and reference outputs; the test is skipped where it is absent."""
    if not SHARED.is_dir():
        pytest.skip(f"no {SHARED}: real data is not part of a checkout")
    return SHARED


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """Endpoint of an S3 server on this machine."""
    with serve_s3() as endpoint:
        yield endpoint


@pytest.fixture
def bucket(s3_endpoint: str, quick: None, monkeypatch: pytest.MonkeyPatch) -> str:
    """Address of an empty bucket, which the environment says how to reach."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_endpoint)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    make_bucket(s3_endpoint, "bucket")
    return "s3://bucket"


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> str:
    """Address of an empty bucket in the memory of this process; zarr cannot open it."""
    from memory_bucket import Memory

    store = Memory()
    monkeypatch.setattr(stores, "_store", lambda root, prefix="": store)
    return "s3://bucket"


@pytest.fixture
def web(quick: None) -> Iterator[Web]:
    """Web server on this machine."""
    with serve_web() as state:
        yield state


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Stores opened anew for the test, which do not wait long before they try again."""
    backoff = {"init_backoff": timedelta(milliseconds=1), "max_backoff": timedelta(seconds=0.1)}
    monkeypatch.setattr(stores, "_RETRY", {"max_retries": 2, "backoff": backoff})
    monkeypatch.setattr(access, "_PAUSE", 0.01)
    stores._store.cache_clear()
    yield
    stores._store.cache_clear()


@pytest.fixture
def calls() -> Callable[..., AbstractContextManager[Counter[str]]]:
    """Count by qualified name how often functions of the named files run in a block."""

    @contextmanager
    def counting(*files: str) -> Iterator[Counter[str]]:
        count: Counter[str] = Counter()

        def note(frame: FrameType, event: str, _: object) -> None:
            code = frame.f_code
            if event == "call" and Path(code.co_filename).name in files:
                count[code.co_qualname] += 1

        before = sys.getprofile()
        sys.setprofile(note)
        try:
            yield count
        finally:
            sys.setprofile(before)

    return counting
