"""Reading the bytes of an archive in place, on disk or in an object store."""

import os
import weakref
from typing import Protocol

from copcube.errors import SourceError
from copcube.files.objects import ReadAhead, is_remote
from copcube.files.regular import open_regular

_HEADER_BYTES = 64 << 10
"""Bytes fetched at once from an object store if only headers are read."""


class Archive(Protocol):
    """Bytes that any thread can read at any position."""

    size: int
    """Number of bytes."""

    streamed: bool
    """Whether reading from front to back is faster than reading at any position."""

    def read(self, start: int, length: int) -> bytes:
        """Return bytes from a position on, fewer than asked for at the end of the archive."""


class LocalArchive:
    """A file on disk, read at any position at the same cost.

    Parameters
    ----------
    path : str
        The file, which stays open until this object is collected.
    """

    streamed = False

    def __init__(self, path: str) -> None:
        file = open_regular(path, SourceError)
        self._descriptor = file.fileno()
        weakref.finalize(self, file.close)
        self.size = os.fstat(self._descriptor).st_size

    def read(self, start: int, length: int) -> bytes:
        """See `Archive`."""
        # A single call may return less than requested, at most 2 GiB on Linux.
        parts = []
        while length > 0 and (part := os.pread(self._descriptor, length, start)):
            parts.append(part)
            start, length = start + len(part), length - len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)


def open_archive(path: str, *, whole: bool) -> Archive:
    """Open an archive at a path or an address, without a copy.

    Parameters
    ----------
    path : str
        A file or an object.
    whole : bool
        Whether all of it is to be read, from front to back; an object is then fetched
        ahead, else in small parts as they are needed.

    Raises
    ------
    SourceError
        If it is a pipe or anything else that is not a file.
    OSError
        If it does not exist or cannot be read.
    """
    if not is_remote(path):
        return LocalArchive(path)
    return ReadAhead(path) if whole else ReadAhead(path, part=_HEADER_BYTES, ahead=0)
