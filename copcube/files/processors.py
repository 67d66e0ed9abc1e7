"""Processors available to this process."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_SHARERS: ContextVar[int] = ContextVar("sharers", default=1)


def available_processors() -> int:
    """Return how many processors this process may use, at least 1.

    Batch systems and containers bind a process to some of the machine's processors, which
    `os.sched_getaffinity` counts. macOS and Windows lack it: there every processor counts.
    """
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def computing_threads(most: int) -> int:
    """Return how many threads to start for computations, at most some number.

    It is 0 if only one processor is left, which the caller keeps busy alone. Were there more
    threads than processors, one would often be interrupted while the others wait for its lock.
    """
    threads = min(available_processors() // _SHARERS.get(), most)
    return threads if threads > 1 else 0


@contextmanager
def sharing(tasks: int) -> Iterator[None]:
    """Within the body, a task, share the processors with others: so many tasks run at once."""
    known = _SHARERS.set(tasks)
    try:
        yield
    finally:
        _SHARERS.reset(known)


THREADS = min(available_processors(), 8)
"""Threads that read or compute in parallel unless something else limits them."""
