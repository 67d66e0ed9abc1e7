"""Facts about a file, from querying its state or from writing it."""

import hashlib
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class FileState:
    """What a file system or a store reports about a file without opening it.

    Parameters
    ----------
    size : int
        Bytes.
    stamp : str or None
        Changes whenever the file is written again: the time of its last change and its inode, or
        the entity tag of an object. None if a store gives none.
    """

    size: int
    stamp: str | None


@dataclass(frozen=True)
class Written(FileState):
    """Facts about a file just written, without reading it back.

    Parameters
    ----------
    size, stamp
        As `FileState`.
    sha256 : str
        Hexadecimal digest of the bytes in memory that were written.
    """

    sha256: str

    @classmethod
    def of(cls, data: Any, stamp: str | None) -> "Written":
        """Take size and digest of anything with the buffer protocol."""
        view = memoryview(data)
        return cls(view.nbytes, stamp, hashlib.sha256(view).hexdigest())
