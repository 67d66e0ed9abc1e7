"""How many processors there are for this process."""

import os


def available_processors() -> int:
    """Return how many processors this process may use, at least 1.

    Batch systems and containers bind a process to some of the machine's processors.
    Python 3.13 knows how many; before, `os.sched_getaffinity` does, which macOS and Windows
    lack. There every processor of the machine counts.
    """
    if hasattr(os, "process_cpu_count"):
        return os.process_cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
