"""Opening paths that may be anything: what is not a file is refused, and never waited for.

A pipe blocks its reader until somebody writes, and a device may yield endless bytes.
"""

import errno
import glob
import os
import re
import stat
from collections.abc import Iterator
from contextlib import suppress
from io import BufferedReader
from pathlib import Path

from copcube.errors import CopcubeError

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe (FIFO)",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def open_regular(path: str | Path, error: type[CopcubeError]) -> BufferedReader:
    """Open a regular file for reading, and nothing else.

    Raises
    ------
    CopcubeError
        The `error`, if it is a pipe, a socket, a device, a folder or a loop of links.
    OSError
        If it is not there or cannot be read.
    """
    require_file(path, error)
    file = open(path, "rb", opener=_without_waiting)  # noqa: SIM115  (the caller closes it)
    # The path may have been replaced since.
    if reason := _kind(os.fstat(file.fileno()).st_mode):
        file.close()
        raise error(f"{path}: {reason}; expected a file")
    return file


def _without_waiting(path: str, flags: int) -> int:
    # Opening a pipe waits for its writer before anything can be checked.
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def require_file(path: str | Path, error: type[CopcubeError]) -> None:
    """Refuse what is not a file before a library opens it; absent paths pass.

    Raises
    ------
    CopcubeError
        The `error`, as for `open_regular`.
    """
    if reason := not_a_file(path):
        raise error(f"{path}: {reason}; expected a file")


def matches(pattern: str) -> list[str]:
    """Sorted paths that a glob matches, as `glob.glob` with ``**`` finds them.

    Links are followed, but not by ``**``, which could loop forever. Hidden files and folders are
    matched only by name.

    Raises
    ------
    PermissionError
        If a folder in which files would be looked for may not be read.
    """
    _require_open_parents(pattern)
    head, *tail = re.split(r"(?:^|(?<=/))\*\*(?:/|$)", pattern.replace(os.sep, "/"), maxsplit=1)
    if not tail:
        return sorted(glob.glob(pattern))
    found: set[str] = set()
    for top in glob.glob(head) if head else ["."]:
        for folder, folders, _ in walk(top):
            folders[:] = [name for name in folders if not name.startswith(".")]
            inner = os.path.join(glob.escape(folder), tail[0] or "*")
            found.update(os.path.normpath(path) for path in matches(inner))
    return sorted(found)


def walk(top: str | Path) -> Iterator[tuple[str, list[str], list[str]]]:
    """Walk through a folder as `os.walk`, which silently skips what may not be read.

    Raises
    ------
    PermissionError
        If the folder, or one below, may not be read.
    """
    for folder, folders, files in os.walk(top, onerror=_refuse):
        require_open(folder)
        yield folder, folders, files


def files_below(top: str | Path) -> Iterator[str]:
    """Paths of all files below a folder, in any order; raises as `walk`."""
    for folder, _, names in walk(top):
        yield from (os.path.join(folder, name) for name in names)


def bytes_below(top: str | Path) -> int:
    """Size of all files below a folder; raises as `walk`."""
    return sum(os.stat(name).st_size for name in files_below(top))


def version_of(path: str | Path) -> str:
    """Text that changes if another file takes the name, or a Zarr folder with other metadata.

    It is empty if there is no such file, as for an address.
    """
    names = [str(path)]
    if os.path.isdir(path):
        for inside in ("zarr.json", ".z*", "*/zarr.json"):
            names += sorted(glob.glob(f"{glob.escape(names[0])}/{inside}"))
    found: list[int] = []
    for name in names:
        with suppress(OSError):
            about = os.stat(name)
            # A folder changes with each new file in it. File systems backed by a store may give a
            # file another inode at any time.
            folder = stat.S_ISDIR(about.st_mode)
            found += (about.st_ino,) if folder else (about.st_size, about.st_mtime_ns)
    return " ".join(map(str, found))


def require_open(folder: str) -> None:
    """Check that files in a folder can be reached, beyond their names.

    Raises
    ------
    PermissionError
        If not, as after ``chmod -R 644``: such files seem not to exist.
    """
    if not os.access(folder, os.R_OK | os.X_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), folder)


def _refuse(error: OSError) -> None:
    if isinstance(error, PermissionError):
        raise error


def _require_open_parents(pattern: str) -> None:
    """Check that the folders of a glob may be read; `glob.glob` skips those that may not."""
    parent = os.path.dirname(pattern)
    if parent in ("", pattern) or not glob.has_magic(pattern) or "**" in parent:
        return
    _require_open_parents(parent)
    for folder in filter(os.path.isdir, glob.glob(parent)):
        require_open(folder)


def not_a_file(path: str | Path) -> str | None:
    """Say why a path is not a file; None if it is one, or does not exist."""
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
