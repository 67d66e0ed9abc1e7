"""Processors available to this process."""

import os


def available_processors() -> int:
    """Return how many processors this process may use, at least 1.

    Batch systems and containers bind a process to some of the machine's processors, which
    `os.sched_getaffinity` counts. macOS and Windows lack it: there every processor counts.
    """
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


THREADS = min(available_processors(), 8)
"""Threads that read or compute in parallel unless something else limits them."""
