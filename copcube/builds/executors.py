"""Who runs the tasks of a build: this process, or the workers of a dask cluster.

An executor maps a function over tasks and yields the outcome of each as it finishes. On a cluster
only a window of tasks is submitted at a time, so that neither scheduler nor driver grows with the
work. Tasks return counts: arrays never travel.

Dask's scheduler gives up a task after its worker has died a few times. It also blames innocent
tasks that ran beside the guilty one, or whose worker simply reached the end of its lifetime. So
tasks that were given up run again, each alone on the whole cluster; one that is then given up twice
in a row is guilty.
"""

import itertools
import logging
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from copcube.builds.tasks import Advance, ignore
from copcube.errors import BuildError, CopcubeError, ReadError
from copcube.files.processors import available_processors, sharing
from copcube.lookahead import map_ahead

if TYPE_CHECKING:
    from distributed import Client, Future

log = logging.getLogger("copcube")

Task = TypeVar("Task")
Outcome = Any
"""What a task returned, or the exception it failed with."""

GPU = "GPU"
"""Name of the resource that workers with a GPU offer, one per process."""

PARTITIONS_PER_GPU = 2
"""Partitions embedded at a time on a GPU: one keeps it busy while another begins or ends."""

_TRIES_ALONE = 2
_SECONDS_BETWEEN_LOOKS = 5.0
_SECONDS_BETWEEN_WARNINGS = 60.0


class KilledError(CopcubeError, RuntimeError):
    """A task killed every worker it was given to, the last one while it ran alone."""


class Executor(Protocol):
    """Runs tasks."""

    reports_progress: bool
    """Whether `map` calls `advance` while tasks run."""

    def call(self, function: Callable[[Task], Any], task: Task) -> Any:
        """Call a function on the machine that embeds; return or raise what it does."""

    def map(
        self,
        function: Callable[..., Any],
        tasks: Iterable[Task],
        *,
        advance: Advance = ignore,
        embeds: bool = False,
        at_once: int = 1,
    ) -> Iterator[tuple[Task, Outcome]]:
        """Run tasks in any order; yield each with its outcome.

        Parameters
        ----------
        function : callable
            Runs one task.
        tasks : iterable
            Descriptions of tasks, consumed as needed.
        advance : callable
            Called with the progress of tasks while they run.
        embeds : bool
            Whether the tasks need the encoder, and a GPU if there is one.
        at_once : int
            How many tasks are worth running at once in one process.
        """


class LocalExecutor:
    """Run tasks in this process, one after another unless several at once are faster."""

    reports_progress = True

    def call(self, function: Callable[[Task], Any], task: Task) -> Any:
        """See `Executor`."""
        return function(task)

    def map(
        self,
        function: Callable[..., Any],
        tasks: Iterable[Task],
        *,
        advance: Advance = ignore,
        embeds: bool = False,
        at_once: int = 1,
    ) -> Iterator[tuple[Task, Outcome]]:
        """See `Executor`; errors of reading and of memory are yielded, all others raised."""
        todo: list[Any] = list(tasks)
        on_gpu = embeds and bool(todo) and todo[0].options.encoder.streams > 1
        threads = PARTITIONS_PER_GPU if on_gpu else min(at_once, available_processors(), len(todo))

        def call(task: Task) -> tuple[Task, Outcome]:
            # Partitions wait for their files and the GPU, and share nothing else.
            with sharing(1 if embeds else max(1, threads)):
                return _attempt(function, advance, task)

        with closing(map_ahead(call, todo, threads if threads > 1 else 0)) as outcomes:
            yield from outcomes


def _attempt(function: Callable[..., Any], advance: Advance, task: Task) -> tuple[Task, Outcome]:
    try:
        return task, function(task, advance)
    except ReadError as error:
        return task, error
    except CopcubeError:  # among them WriteError, which is an OSError too: a full disk is final
        raise
    except (OSError, MemoryError) as error:
        return task, error


class DaskExecutor:
    """Run tasks on the workers of a dask cluster, which may come and go.

    Parameters
    ----------
    client : distributed.Client
        Connected to the cluster.
    """

    reports_progress = False

    def __init__(self, client: "Client") -> None:
        self._client = client
        self._warned = float("-inf")

    def call(self, function: Callable[[Task], Any], task: Task) -> Any:
        """See `Executor`."""
        ((_, outcome),) = self.map(function, [task], embeds=True)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def map(
        self,
        function: Callable[..., Any],
        tasks: Iterable[Task],
        *,
        advance: Advance = ignore,
        embeds: bool = False,
        at_once: int = 1,
    ) -> Iterator[tuple[Task, Outcome]]:
        """See `Executor`; tasks that embed request a GPU if any worker offers one."""
        from distributed import KilledWorker

        suspects: list[Task] = []
        for task, outcome in self._completed(function, tasks, advance, embeds):
            if isinstance(outcome, KilledWorker):
                suspects.append(task)
            else:
                yield task, outcome
        for task in suspects:
            for _ in range(_TRIES_ALONE):
                ((_, outcome),) = self._completed(function, [task], advance, embeds)
                if not isinstance(outcome, KilledWorker):
                    break
            else:
                outcome = KilledError(f"it killed its worker while it ran alone: {outcome}")
            yield task, outcome

    def _completed(
        self, function: Callable[..., Any], tasks: Iterable[Task], advance: Advance, embeds: bool
    ) -> Iterator[tuple[Task, Outcome]]:
        """Submit tasks, a window of them at a time; yield each when it is completed."""
        from distributed import as_completed

        todo = iter(tasks)
        running: dict[Future[Any], Task] = {}
        try:
            while True:
                # Workers may have come or gone since the last look.
                window, resources = self._look(embeds)
                completed = as_completed(loop=self._client.loop, timeout=_SECONDS_BETWEEN_LOOKS)
                completed.update(running)
                while True:
                    for task in itertools.islice(todo, max(0, window - len(running))):
                        with self._connected():
                            # If resubmitted, a pure task would get its first outcome from dask.
                            future = self._client.submit(function, task, pure=False, **resources)
                        running[future] = task
                        completed.add(future)
                    if not running:
                        return
                    try:
                        future = next(completed)
                    except TimeoutError:
                        advance(0)  # nothing is done yet, but the driver may have to stop
                        break
                    yield running.pop(future), self._outcome(future)
        finally:
            if running and self._client.status == "running":
                self._client.cancel(list(running), reason="the build stopped")

    def _look(self, embeds: bool) -> tuple[int, dict[str, Any]]:
        """Count the workers and their GPUs.

        Returns
        -------
        window : int
            How many tasks to have at the scheduler: two for each that can run, and two more,
            so that a worker that ends one need not wait for the driver.
        resources : dict
            What a task requests, as an option of `Client.submit`.
        """
        with self._connected():
            # Some versions of distributed report five workers only, unless all are asked for.
            workers = self._client.scheduler_info(n_workers=-1)["workers"].values()
        gpus = sum(worker["resources"].get(GPU, 0) for worker in workers) if embeds else 0
        if gpus:
            resources = {"resources": {GPU: 1 / PARTITIONS_PER_GPU}}
            return 2 + 2 * PARTITIONS_PER_GPU * int(gpus), resources
        if not workers and time.monotonic() - self._warned > _SECONDS_BETWEEN_WARNINGS:
            self._warned = time.monotonic()
            log.warning("the cluster has no workers; waiting for one to join")
        return 2 + 2 * sum(worker["nthreads"] for worker in workers), {}

    def _outcome(self, future: "Future[Any]") -> Outcome:
        """What a task returned, or the error it ended with."""
        with self._connected():
            if future.status == "error":
                return future.exception()
            return future.result()  # raises CancelledError if the client has lost it

    @contextmanager
    def _connected(self) -> Iterator[None]:
        """Raise an error that says what to do if the scheduler is lost while the body runs.

        Raises
        ------
        BuildError
            If it is.
        """
        from distributed.comm.core import CommClosedError

        lost: Exception | None = None
        try:
            yield
        except Exception as error:
            # The client cancels what it has lost, even if it finds the scheduler again.
            cancelled = isinstance(error, CommClosedError | CancelledError)
            if self._client.status == "running" and not cancelled:
                raise
            lost = error
        if lost is not None or self._client.status != "running":
            raise BuildError(
                "the connection to the scheduler is lost; all finished work is kept. Start the "
                "cluster again and give the same command to continue"
            ) from lost
