"""Mapping a function over items on threads, a bounded number of items ahead."""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def map_ahead(
    function: Callable[[T], R], items: Iterable[T], threads: int, *, ahead: int | None = None
) -> Generator[R, None, None]:
    """Map a function over items and yield the results in the order of the items.

    Items are taken, and results computed, only a bounded number ahead of the reader, so that memory
    stays bounded. If the reader may stop early, it should close the generator (see
    `contextlib.closing`): that drops calls that have not begun and waits for those that have.

    Parameters
    ----------
    function : callable
        Called with one item, on any of the threads.
    items : iterable
        Taken by the thread that reads the results.
    threads : int
        Number of threads; with 0 the reading thread makes the calls, each when it is needed.
    ahead : int, optional
        Calls submitted ahead of the reader. Default: as many as there are threads.

    Raises
    ------
    Exception
        What `function` or `items` raised, when its turn comes.

    Examples
    --------
    >>> list(map_ahead(len, ["a", "bb", "ccc"], threads=2))
    [1, 2, 3]
    """
    if threads == 0:
        yield from map(function, items)
        return
    limit = threads if ahead is None else ahead
    submitted: deque[Future[R]] = deque()
    pool = ThreadPoolExecutor(threads, thread_name_prefix="copcube")
    try:
        for item in items:
            submitted.append(pool.submit(function, item))
            if len(submitted) > limit:
                yield submitted.popleft().result()
        while submitted:
            yield submitted.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
