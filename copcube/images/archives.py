"""The bytes of an archive, in place or from an object store."""

import os
import weakref
from typing import Protocol

from copcube.files.objects import ReadAhead, is_remote

_GLANCE = 64 << 10


class Archive(Protocol):
    """Bytes that can be read at any place, from any thread."""

    size: int
    """How many there are."""

    streamed: bool
    """Whether they are best read from front to back."""

    def read(self, start: int, length: int) -> bytes:
        """Return some of them, fewer where they end."""


class LocalArchive:
    """A file that is read in place, anywhere at the same cost.

    Parameters
    ----------
    path : str
        The file, open as long as this is in use.
    """

    streamed = False

    def __init__(self, path: str) -> None:
        self._descriptor = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._descriptor)
        self.size = os.fstat(self._descriptor).st_size

    def read(self, start: int, length: int) -> bytes:
        """See `Archive`."""
        pieces = []
        while length > 0 and (piece := os.pread(self._descriptor, length, start)):
            pieces.append(piece)
            start, length = start + len(piece), length - len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)


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
    OSError
        If it is not there or cannot be read.
    """
    if not is_remote(path):
        return LocalArchive(path)
    return ReadAhead(path) if whole else ReadAhead(path, part=_GLANCE, ahead=0)
