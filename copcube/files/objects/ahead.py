"""Reading an object from front to back, fetching ahead."""

from collections import OrderedDict
from concurrent.futures import Future
from threading import Lock

from copcube.errors import StorageError
from copcube.files.objects.access import read_range, stat
from copcube.files.objects.stores import REQUESTS, pool

PART = 8 << 20
KEPT = 32


class ReadAhead:
    """An object that is read in about its order, from any threads.

    It is fetched in fixed parts, some of them ahead of the foremost reader. The parts used
    last are kept, so that readers may come some way behind; a part that is gone is fetched
    again.

    Parameters
    ----------
    url : str
        The object.
    part : int
        Bytes of a part. At most `KEPT` parts are held.
    ahead : int
        Parts to fetch ahead.

    Raises
    ------
    FileNotFoundError, StorageError
        As `copcube.files.objects.stores.asking`, now and when it is read.
    """

    streamed = True

    def __init__(self, url: str, part: int = PART, ahead: int = REQUESTS) -> None:
        self.size = stat(url).size
        self._url, self._part, self._ahead = url, part, ahead
        self._parts: OrderedDict[int, Future[bytes]] = OrderedDict()
        self._foremost = 0
        self._lock = Lock()

    def read(self, start: int, length: int) -> bytes:
        """Return some bytes, fewer where the object ends."""
        stop = min(start + length, self.size)
        pieces = []
        while start < stop:
            number = start // self._part
            base = number * self._part
            future = self._fetch(number, (stop - 1) // self._part)
            try:
                piece = future.result()
            except BaseException:
                with self._lock:
                    if self._parts.get(number) is future:
                        del self._parts[number]
                raise
            pieces.append(memoryview(piece)[start - base : stop - base])
            start = base + self._part
        return b"".join(pieces)

    def _fetch(self, number: int, last: int) -> "Future[bytes]":
        """Have a part fetched, with those after it that a reader to part `last` is to need."""
        with self._lock:
            upto = min(number + self._ahead, (self.size - 1) // self._part)
            if number < self._foremost:
                upto = min(upto, last)
            self._foremost = max(self._foremost, number)
            for n in range(number, upto + 1):
                if n not in self._parts:
                    start = n * self._part
                    length = min(self._part, self.size - start)
                    self._parts[n] = pool().submit(_whole, self._url, start, length)
                self._parts.move_to_end(n)
            while len(self._parts) > max(KEPT, self._ahead + 1):
                self._parts.popitem(last=False)
            return self._parts[number]


def _whole(url: str, start: int, length: int) -> bytes:
    data = read_range(url, start, length)
    if len(data) < length:
        raise StorageError(
            f"{url}: expected {length} bytes at {start}, found {len(data)}; it changed while it "
            "was read, so start again"
        )
    return data
