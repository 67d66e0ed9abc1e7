"""Opening files that may be anything: what is no file is refused, and never waited for.

A pipe blocks its reader until somebody writes, and a device may give bytes without end.
"""

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO

from copcube.errors import CopcubeError

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe (FIFO)",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def open_regular(path: str | Path, error: type[CopcubeError]) -> BinaryIO:
    """Open a file to be read, and nothing that is no file.

    Raises
    ------
    CopcubeError
        The `error`, if it is a pipe, a socket, a device, a folder or a loop of links.
    OSError
        If it is not there or cannot be read.
    """
    require_file(path, error)
    # What lies there may have been exchanged since: a pipe opened so does not block.
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    descriptor = os.open(path, flags)
    if reason := _kind(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise error(f"{path}: {reason}; expected a file")
    return open(descriptor, "rb")


def require_file(path: str | Path, error: type[CopcubeError]) -> None:
    """Refuse what is no file, before a library opens it; what is not there passes.

    Raises
    ------
    CopcubeError
        The `error`, as for `open_regular`.
    """
    if reason := not_a_file(path):
        raise error(f"{path}: {reason}; expected a file")


def not_a_file(path: str | Path) -> str | None:
    """Say why something that lies at a path is no file; None if it is one, or nothing is there."""
    try:
        return _kind(os.stat(path).st_mode)
    except OSError as error:
        return "not a file but a loop of links" if error.errno == errno.ELOOP else None
    except ValueError:
        return "not the name of a file"


def _kind(mode: int) -> str | None:
    if stat.S_ISREG(mode):
        return None
    return f"not a file but {_KINDS.get(stat.S_IFMT(mode), 'something else')}"
