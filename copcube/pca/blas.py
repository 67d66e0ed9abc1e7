"""Matrix products on one thread each, when many of them run in parallel.

BLAS libraries split every product over all cores. If a pool of threads works on blocks, that only
makes the cores wait for each other; on one thread each, products are also the same on machines with
any number of cores.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

_LOCK = threading.Lock()
_inside = 0
_limit: Any = None


@contextmanager
def one_thread() -> Iterator[None]:
    """Keep BLAS to one thread until the last of all blocks under this manager has ended.

    The number of threads belongs to the process; hence the count of those inside. With a BLAS
    that threadpoolctl does not know, nothing happens.
    """
    global _inside, _limit
    with _LOCK:
        _inside += 1
        if _inside == 1:
            _limit = _controller().limit(limits=1, user_api="blas")
    try:
        yield
    finally:
        with _LOCK:
            _inside -= 1
            if _inside == 0 and _limit is not None:
                _limit.restore_original_limits()
                _limit = None


@cache
def _controller() -> Any:
    """Find the BLAS libraries of the process once, for that takes a while.

    NumPy and SciPy each bring one; both are loaded when `copcube.pca.moments` is imported.
    """
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()
