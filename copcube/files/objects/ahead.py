"""Reading an object from front to back, fetching ahead."""

from collections import OrderedDict
from concurrent.futures import Future
from threading import Lock

from copcube.errors import ReadError
from copcube.files.objects.access import read_range, stat
from copcube.files.objects.stores import REQUESTS, pool

PART = 8 << 20
KEPT = 32


class ReadAhead:
    """An object that is read roughly from front to back, by any number of threads.

    It is fetched in parts of a fixed size, some of them ahead of the foremost reader. The most
    recently used parts are kept, so that other readers may lag behind; a dropped part is fetched
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
    FileNotFoundError, ReadError
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
        """Return some bytes, fewer at the object's end."""
        stop = min(start + length, self.size)
        parts = []
        while start < stop:
            number = start // self._part
            base = number * self._part
            future = self._fetch(number, (stop - 1) // self._part)
            try:
                part = future.result()
            except BaseException:
                # Forget the failed part, so that the next reader fetches it again.
                with self._lock:
                    if self._parts.get(number) is future:
                        del self._parts[number]
                raise
            parts.append(memoryview(part)[start - base : stop - base])
            start = base + self._part
        return b"".join(parts)

    def _fetch(self, number: int, last: int) -> "Future[bytes]":
        """Start to fetch a part and those after it, unless present; return the part.

        The foremost reader gets `ahead` more parts; one that lags behind gets only those up to the
        part `last` that it requested.
        """
        with self._lock:
            upto = min(number + self._ahead, (self.size - 1) // self._part)
            if number < self._foremost:
                upto = min(upto, last)
            self._foremost = max(self._foremost, number)
            for n in range(number, upto + 1):
                if n not in self._parts:
                    start = n * self._part
                    length = min(self._part, self.size - start)
                    self._parts[n] = pool().submit(_read_part, self._url, start, length)
                self._parts.move_to_end(n)
            # With fewer, parts just requested could be dropped before they are read.
            while len(self._parts) > max(KEPT, self._ahead + 1):
                self._parts.popitem(last=False)
            return self._parts[number]


def _read_part(url: str, start: int, length: int) -> bytes:
    data = read_range(url, start, length)
    if len(data) < length:
        raise ReadError(
            f"{url}: expected {length} bytes at {start}, found {len(data)}; it changed while it "
            "was read; start again"
        )
    return data
