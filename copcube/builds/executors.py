"""Who does the units of a build: this process, or the workers of a dask cluster.

A crew is given a function and tasks, and gives back what became of each, as they finish. On
a cluster only a window of tasks is submitted at a time, so that neither scheduler nor driver
grow with the work, and what comes back are counts: arrays never travel.

The scheduler of dask gives a task up after its worker died under it a few times, and blames
the innocent tasks that ran beside the guilty one as well, and those whose worker came to
its end in time. So tasks that were given up are done again, each alone on the whole
cluster; one that is given up then twice in a row is guilty.
"""

import itertools
import logging
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from copcube.builds.tasks import Advance, ignore, loaded
from copcube.embedding.partition import side_by_side
from copcube.errors import BuildError, CopcubeError

if TYPE_CHECKING:
    from distributed import Client, Future

log = logging.getLogger("copcube")

Task = TypeVar("Task")
Outcome = dict[str, Any] | Exception

GPU = "GPU"
"""Name of the resource that workers with a GPU offer, one a process."""

TOGETHER = 2
"""Partitions embedded at a time on a GPU: one keeps it busy while another begins or ends."""

_TRIES_ALONE = 2
_PATIENCE = 60.0
_POLL = 2.0


class KilledError(CopcubeError, RuntimeError):
    """A unit killed every worker it was given to, the last one while it ran alone."""


class Crew(Protocol):
    """Whoever does the units."""

    counts_units: bool
    """Whether `run` counts what is done within units while they run."""

    def ask(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Return what a function gives on the machine that embeds."""

    def run(
        self,
        function: Callable[..., dict[str, Any]],
        tasks: Iterable[Task],
        *,
        advance: Advance = ignore,
        embeds: bool = False,
    ) -> Iterator[tuple[Task, Outcome]]:
        """Do units in any order; yield each task with its counts, or what it failed with."""


class Here:
    """Units are done in this process: one after another, but for those that embed on a GPU."""

    counts_units = True

    def ask(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """See `Crew`."""
        return function(*arguments)

    def run(
        self,
        function: Callable[..., dict[str, Any]],
        tasks: Iterable[Task],
        *,
        advance: Advance = ignore,
        embeds: bool = False,
    ) -> Iterator[tuple[Task, Outcome]]:
        """See `Crew`; only errors of reading are given back, all others are raised."""
        todo = iter(tasks)
        first: list[Any] = list(itertools.islice(todo, 1))
        wide = embeds and any(loaded(task.encoder).streams > 1 for task in first)
        calls = (partial(_try, function, task, advance) for task in itertools.chain(first, todo))
        with side_by_side(calls, TOGETHER if wide else 1) as outcomes:
            yield from outcomes


def _try(
    function: Callable[..., dict[str, Any]], task: Task, advance: Advance
) -> tuple[Task, Outcome]:
    try:
        return task, function(task, advance)
    except CopcubeError:
        raise
    except OSError as error:
        return task, error


class Cluster:
    """Units are done by the workers of a dask cluster, which may come and go.

    Parameters
    ----------
    client : distributed.Client
        Connected to the cluster.
    """

    counts_units = False

    def __init__(self, client: "Client") -> None:
        self._client = client
        self._workers: dict[str, Any] = {}
        self._looked = self._lonely = -_PATIENCE

    def ask(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """See `Crew`."""
        ((_, outcome),) = self.run(_call, [(function, arguments)], embeds=True)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome["value"]

    def run(
        self,
        function: Callable[..., dict[str, Any]],
        tasks: Iterable[Task],
        *,
        advance: Advance = ignore,
        embeds: bool = False,
    ) -> Iterator[tuple[Task, Outcome]]:
        """See `Crew`; tasks that embed ask for a GPU where any worker offers one."""
        from distributed import KilledWorker

        todo = iter(tasks)
        running: dict[Future[Any], Task] = {}
        suspects: list[Task] = []
        try:
            while True:
                for task in itertools.islice(todo, max(0, self._window(embeds) - len(running))):
                    running[self._submit(function, task, embeds)] = task
                if not running:
                    break
                for future in self._finished(running, advance):
                    task = running.pop(future)
                    outcome = self._outcome(future)
                    if isinstance(outcome, KilledWorker):
                        suspects.append(task)
                    else:
                        yield task, outcome
            for task in suspects:
                for _ in range(_TRIES_ALONE):
                    future = self._submit(function, task, embeds)
                    running[future] = task
                    self._finished(running, advance)
                    del running[future]
                    outcome = self._outcome(future)
                    if not isinstance(outcome, KilledWorker):
                        break
                else:
                    outcome = KilledError(f"it killed its worker while it ran alone: {outcome}")
                yield task, outcome
        finally:
            if running and self._client.status == "running":
                self._client.cancel(list(running), reason="the build stopped")

    def _submit(self, function: Callable[..., Any], task: Any, embeds: bool) -> "Future[Any]":
        resources = {GPU: 1 / TOGETHER} if embeds and self._slots(gpus=True) else None
        return self._client.submit(function, task, pure=False, resources=resources)

    def _window(self, embeds: bool) -> int:
        """How many tasks to have at the scheduler: two for each that can run, and two more."""
        return 2 + 2 * ((embeds and TOGETHER * self._slots(gpus=True)) or self._slots())

    def _slots(self, *, gpus: bool = False) -> int:
        """How many tasks the workers run at once."""
        if time.monotonic() - self._looked > _POLL:
            with self._connected():
                self._workers = self._client.scheduler_info(n_workers=-1)["workers"]
            self._looked = time.monotonic()
        if gpus:
            return int(sum(w["resources"].get(GPU, 0) for w in self._workers.values()))
        return sum(w["nthreads"] for w in self._workers.values())

    def _finished(self, running: "dict[Future[Any], Any]", advance: Advance) -> "list[Future[Any]]":
        """Futures that are done, after waiting for the first of them."""
        from distributed import TimeoutError, wait

        while True:
            try:
                with self._connected(), self._client.as_current():
                    done = wait(list(running), timeout=_POLL, return_when="FIRST_COMPLETED").done
                return sorted(done, key=list(running).index)
            except TimeoutError:
                advance(0)  # nothing is done yet, but the driver may have to stop
                self._tell_if_lonely()

    @contextmanager
    def _connected(self) -> Iterator[None]:
        """Tell what to do if the scheduler is lost meanwhile.

        Raises
        ------
        BuildError
            If it is.
        """
        from distributed import TimeoutError
        from distributed.comm.core import CommClosedError

        lost: Exception | None = None
        try:
            yield
        except TimeoutError:
            if self._client.status == "running":
                raise
        except (CommClosedError, CancelledError) as error:  # the client cancels what it has lost
            lost = error
        if lost is not None or self._client.status != "running":
            raise BuildError(
                "the connection to the scheduler is lost; what was signed for is kept. Start the "
                "cluster again and give the same command to go on"
            ) from lost

    def _outcome(self, future: "Future[Any]") -> Any:
        """What a finished future holds: counts, or the error it ended with."""
        with self._connected():
            return future.result() if future.status == "finished" else future.exception()

    def _tell_if_lonely(self) -> None:
        if self._slots() or time.monotonic() - self._lonely < _PATIENCE:
            return
        self._lonely = time.monotonic()
        log.warning("no worker is there; waiting for one to join the cluster")


def _call(task: tuple[Callable[..., Any], tuple[Any, ...]], advance: Advance = ignore) -> Any:
    function, arguments = task
    return {"value": function(*arguments)}
