"""Listing and reading the objects of a store."""

import io
import os
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, TypeVar

from copcube.errors import ReadError
from copcube.files.objects.stores import asking, is_remote, locate, pool, split
from copcube.files.regular import version_of

if TYPE_CHECKING:
    from obstore import ObjectMeta

_BUFFER = 256 << 10
_TRIES, _PAUSE = 3, 1.0
T = TypeVar("T")


@dataclass(frozen=True)
class Entry:
    """A store's description of an object.

    Parameters
    ----------
    name : str
        Its key below the address that was listed.
    size : int
        Bytes.
    modified : datetime
        When it was written, by the store's clock.
    tag : str or None
        Entity tag of its content, if the store gives one.
    """

    name: str
    size: int
    modified: datetime
    tag: str | None


def stat(url: str) -> Entry:
    """Ask the store for size, time and tag of one object.

    Raises
    ------
    FileNotFoundError, ReadError, OptionError
        As `copcube.files.objects.stores.asking`.
    """
    store, key = locate(url)
    with asking(url):
        return _entry(store.head(key), "")


def file_size(path: str | Path) -> int:
    """Size in bytes of a file or an object.

    Raises
    ------
    FileNotFoundError, ReadError
        If it is not there or cannot be read.
    """
    return stat(str(path)).size if is_remote(path) else os.stat(path).st_size


def sizes(urls: Iterable[str]) -> list[int | None]:
    """Sizes in bytes of several objects, from simultaneous requests; None for absent ones.

    Raises
    ------
    ReadError
        If a store cannot be asked.
    """

    def size(url: str) -> int | None:
        try:
            return stat(url).size
        except FileNotFoundError:
            return None

    return list(pool().map(size, urls))


def version(path: str | Path) -> str:
    """Text that changes if another file or object takes the name; empty if there is none.

    Raises
    ------
    ReadError
        If a store cannot be asked.
    """
    if not is_remote(path):
        return version_of(path)
    with suppress(FileNotFoundError):
        entry = stat(str(path))
        return f"{entry.size} {entry.modified.isoformat()} {entry.tag}"
    return ""


def listing(url: str, *, deep: bool = True) -> list[Entry]:
    """Objects below an address, sorted by name.

    Parameters
    ----------
    url : str
        A bucket, or a prefix in it up to a ``/``, which may be left out.
    deep : bool
        Whether to descend below further ``/``; otherwise deeper objects are left out.

    Raises
    ------
    ReadError
        If the store cannot be listed, which is true of all ``https://`` addresses.
    """
    store, key = locate(url)
    if split(url)[0].startswith("http"):
        raise ReadError(f"{url}: web servers do not list folders; name the files themselves")
    key = key.strip("/")
    with asking(url):
        if deep:
            found = list(store.list(key or None).collect())
        else:
            found = list(store.list_with_delimiter(key or None)["objects"])
    above = f"{key}/" if key else ""
    return sorted((_entry(meta, above) for meta in found), key=lambda entry: entry.name)


def _entry(meta: "ObjectMeta", above: str) -> Entry:
    name = meta["path"].removeprefix(above)
    return Entry(name, meta["size"], meta["last_modified"], meta["e_tag"])


def read(url: str) -> bytes:
    """All bytes of an object.

    Raises
    ------
    FileNotFoundError, ReadError
        As `copcube.files.objects.stores.asking`.
    """
    return read_range(url, 0, None)


def read_range(url: str, start: int, length: int | None) -> bytes:
    """Read some bytes of an object, fewer at its end.

    Parameters
    ----------
    url : str
        The object.
    start : int
        The first byte, at or before the end of the object.
    length : int or None
        How many, at least 1; None for all.

    Raises
    ------
    FileNotFoundError, ReadError
        As `copcube.files.objects.stores.asking`.
    """
    store, key = locate(url)

    def ask() -> bytes:
        if length is None:
            return store.get(key).bytes().to_bytes()
        return store.get_range(key, start=start, length=length).to_bytes()

    return insisting(url, ask)


def insisting(url: str, ask: Callable[[], T]) -> T:
    """Call a function that reads from a store, again if it fails; return its result.

    Parameters
    ----------
    url : str
        What is read, for messages.
    ask : callable
        Called up to three times.

    Raises
    ------
    FileNotFoundError, ReadError
        As `copcube.files.objects.stores.asking`.
    """
    for _ in range(_TRIES - 1):
        # obstore repeats failed requests, but not one whose body was truncated.
        with suppress(ReadError), asking(url):
            return ask()
        time.sleep(_PAUSE)
    with asking(url):
        return ask()


class _File(io.RawIOBase):
    """An object as a file that can be read from any offset.

    pyarrow does not accept obstore's own reader, which lacks `closed`.
    """

    def __init__(self, url: str) -> None:
        self._url, self._size, self._at = url, stat(url).size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        self._at = base + offset
        return self._at

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        length = min(len(buffer), self._size - self._at)
        # A store answers a range beyond the end with an error, whereas a file returns no bytes.
        if length <= 0:
            return 0
        data = read_range(self._url, self._at, length)
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


def open_file(url: str) -> BinaryIO:
    """Open an object as a file that can be read from any offset, as pyarrow needs.

    Raises
    ------
    FileNotFoundError, ReadError
        As `copcube.files.objects.stores.asking`, now and when it is read.
    """
    # pyarrow reads small pieces, each of which would be a separate request.
    return io.BufferedReader(_File(url), _BUFFER)
