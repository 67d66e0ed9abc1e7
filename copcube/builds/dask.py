"""Connecting to a dask cluster, or starting one on this machine."""

import contextlib
import json
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from multiprocessing import resource_tracker
from typing import TYPE_CHECKING, Any, Literal

from copcube.arguments import whole_number
from copcube.builds.executors import (
    GPU,
    PARTITIONS_PER_GPU,
    DaskExecutor,
    Executor,
    LocalExecutor,
)
from copcube.builds.guard import require_main_guard
from copcube.errors import BuildError, MissingPackageError, OptionError
from copcube.files.processors import available_processors
from copcube.files.regular import open_regular

if TYPE_CHECKING:
    from distributed import Client
    from distributed.deploy.cluster import Cluster

log = logging.getLogger("copcube")

Workers = int | Literal["auto"]

_LOOK = 0.1
"""Seconds between two checks for a scheduler's file."""

_WRITTEN = 0.5
"""Seconds after which a scheduler's file is certainly complete."""

_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@contextlib.contextmanager
def executor(client: "Client | None", workers: Workers | None, *, gpus: bool) -> Iterator[Executor]:
    """Yield an executor on a cluster, on new workers, or in this process.

    Parameters
    ----------
    client : distributed.Client, optional
        Client of a running cluster of any kind.
    workers : int or "auto", optional
        Worker processes to start on this machine; see `local_cluster`.
    gpus : bool
        Whether each new worker takes a GPU, if there are any.

    Raises
    ------
    OptionError
        If both are given.
    """
    if client is not None and workers is not None:
        raise OptionError("give a client of a cluster or a number of workers, not both")
    if client is not None:
        if not hasattr(client, "scheduler_info"):
            raise OptionError(
                f"client is {client!r:.60}; expected a distributed.Client, such as Client(address)"
            )
        _show(client)
        yield DaskExecutor(client)
    elif workers is not None:
        with local_cluster(workers, gpus=gpus) as started:
            _show(started)
            yield DaskExecutor(started)
    else:
        yield LocalExecutor()


@contextlib.contextmanager
def connect(address: str | None = None, scheduler_file: str | None = None) -> "Iterator[Client]":
    """Connect to a running dask scheduler.

    Parameters
    ----------
    address : str, optional
        Such as ``tcp://10.0.0.1:8786``.
    scheduler_file : str, optional
        JSON file that ``dask scheduler --scheduler-file`` wrote.

    Raises
    ------
    BuildError
        If no scheduler answers there, or its file does not appear while dask waits for a
        connection.
    """
    _require_distributed()
    from distributed import Client

    if scheduler_file is not None:
        address = _address(scheduler_file)
    try:
        # Not the default client: the caller's own dask arrays are computed where they were before.
        client = Client(address, set_as_default=False)
    except (OSError, ValueError) as error:
        raise BuildError(
            f"{scheduler_file or address}: no dask scheduler answers there ({error}); start one "
            "with `dask scheduler`, or let --workers start workers here"
        ) from error
    with client:
        yield client


def _address(scheduler_file: str) -> str:
    """Address in a scheduler file, once it exists; dask itself would wait forever."""
    import dask
    from dask.utils import parse_timedelta

    waiting = parse_timedelta(dask.config.get("distributed.comm.timeouts.connect"))
    deadline = time.monotonic() + waiting
    if not os.path.exists(scheduler_file):
        log.info("waiting for the scheduler that writes %s", scheduler_file)
    while not os.path.exists(scheduler_file) and time.monotonic() < deadline:
        time.sleep(_LOOK)
    try:
        return _read_address(scheduler_file)
    except ValueError:
        time.sleep(_WRITTEN)  # it may be half-written
    except OSError as error:
        raise BuildError(
            f"{scheduler_file}: {error.strerror}; start a scheduler that writes it with `dask "
            "scheduler --scheduler-file`, or let --workers start workers here"
        ) from error
    try:
        return _read_address(scheduler_file)
    except (OSError, ValueError) as error:
        raise BuildError(
            f"{scheduler_file}: expected the JSON that `dask scheduler --scheduler-file` writes, "
            f"with the scheduler's address ({error})"
        ) from error


def _read_address(scheduler_file: str) -> str:
    with open_regular(scheduler_file, BuildError) as file:
        found = json.load(file)
    if not isinstance(found, dict) or not isinstance(found.get("address"), str):
        raise ValueError("no address in it")
    return str(found["address"])


@contextlib.contextmanager
def local_cluster(workers: Workers, *, gpus: bool = True) -> "Iterator[Client]":
    """Start worker processes on this machine; a worker that dies is started again.

    Parameters
    ----------
    workers : int or "auto"
        How many; ``auto`` is one for each visible GPU, or else for every two processors.
    gpus : bool
        Whether to give each worker a GPU of its own, as the resource ``GPU``.

    Raises
    ------
    OptionError
        If there are more workers than GPUs, or the number is invalid; if the running script would
        start itself again in every worker.
    """
    _require_distributed()
    number = None
    if not (isinstance(workers, str) and workers == "auto"):
        number = whole_number(workers, "workers", 1)
    require_main_guard()
    import dask
    from distributed import Client, Nanny, Scheduler, SpecCluster
    from distributed.system import MEMORY_LIMIT

    devices = visible_gpus() if gpus else []
    processors = available_processors()
    # Two processors a worker: one embeds while the other decodes.
    if number is None:
        number = len(devices) or max(1, processors // 2)
    if devices and number > len(devices):
        raise OptionError(f"{number} workers for {len(devices)} GPUs; give each GPU one worker")
    threads = max(1, processors // number)
    spec: dict[int, Any] = {}
    for i in range(number):
        options: dict[str, Any] = {
            "nthreads": PARTITIONS_PER_GPU if devices else 1,
            "host": "127.0.0.1",
            "memory_limit": MEMORY_LIMIT // number,  # dask's own choice depends on nthreads
            "silence_logs": logging.WARNING,
        }
        if devices:
            options["env"] = {"CUDA_VISIBLE_DEVICES": devices[i]}
            options["resources"] = {GPU: 1}
        # A nanny restarts a worker that died.
        spec[i] = {"cls": Nanny, "options": options}
    # Anyone who reaches a scheduler can run code through it, so it listens on this machine only.
    address = {"host": "127.0.0.1", "dashboard_address": f":{_free_port(8787)}"}
    scheduler = {"cls": Scheduler, "options": address}
    settings = {
        "distributed.comm.timeouts.connect": "60s",
        # Dask's defaults would give the encoder one thread and make it return memory at once.
        "distributed.nanny.pre-spawn-environ": dict.fromkeys(_THREADS, threads),
    }
    with _environment_kept(), dask.config.set(settings):
        with _interrupts_held():
            cluster = SpecCluster(workers=spec, scheduler=scheduler, silence_logs=logging.CRITICAL)
        with closing_cluster(cluster), Client(cluster, set_as_default=False) as client:
            yield client


@contextlib.contextmanager
def closing_cluster(cluster: "Cluster") -> Iterator[None]:
    """Close a cluster at the end; workers that are slow to die do not hide an earlier error."""
    try:
        yield
    finally:
        # A busy machine may not end them in time; by then they were killed.
        with contextlib.suppress(TimeoutError):
            cluster.close()


@contextlib.contextmanager
def _interrupts_held() -> Iterator[None]:
    """Hold back signals until this ends, and keep Ctrl-C from processes started meanwhile.

    A terminal sends Ctrl-C to the workers as well, but only this process decides what happens to
    them. A cluster that is interrupted while it starts can no longer be closed.
    """
    resource_tracker.ensure_running()  # starting it with the first worker would release the signals
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    came: list[int] = []
    handlers = {}
    # These signals end workers, so they are not blocked; those that end this process still do.
    in_main_thread = threading.current_thread() is threading.main_thread()
    for number in (signal.SIGTERM, signal.SIGHUP):
        if in_main_thread and callable(handler := signal.getsignal(number)):
            signal.signal(number, lambda which, frame: came.append(which))
            handlers[number] = handler
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        for which in came:
            signal.raise_signal(which)


@contextlib.contextmanager
def _environment_kept() -> Iterator[None]:
    """Undo what starting workers leaves in this process's environment."""
    before = dict(os.environ)
    try:
        yield
    finally:
        for name in _THREADS:
            os.environ.pop(name, None)
            if name in before:
                os.environ[name] = before[name]


def _free_port(wanted: int) -> int:
    """Return the port if it is free, else 0, which means any."""
    with socket.socket() as probe:
        return 0 if probe.connect_ex(("127.0.0.1", wanted)) == 0 else wanted


def visible_gpus() -> list[str]:
    """Return the CUDA devices that this process may use, as ``CUDA_VISIBLE_DEVICES`` names them."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        # Users hide all devices with -1, which names none.
        return [name for name in named.split(",") if name and name != "-1"]
    from copcube.encoder.devices import cuda_devices

    return [str(i) for i in range(cuda_devices())]


def _require_distributed() -> None:
    try:
        import distributed  # noqa: F401
    except ImportError as error:
        raise MissingPackageError(
            "workers need the package distributed; pip install 'copcube[build]'"
        ) from error


def _show(client: "Client") -> None:
    log.info(
        "scheduler %s, dashboard %s",
        client.scheduler.address if client.scheduler else "unknown",
        client.dashboard_link or "none",
    )
