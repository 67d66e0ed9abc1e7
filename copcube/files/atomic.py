"""Files and folders that appear complete or not at all, and survive a power cut."""

import errno
import glob
import hashlib
import os
import random
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

from copcube.arguments import is_in_utf8, one_path
from copcube.errors import CopcubeError, StorageError, WriteError
from copcube.files.processes import machine, runs

_REMEDIES = {
    errno.ENOSPC: "the disk is full; free some space or choose another place",
    errno.EDQUOT: "your disk quota is used up; free some space or choose another place",
    errno.EFBIG: "the file system cannot hold so large a file; choose another place",
    errno.EACCES: "permission denied; choose a place you may write to",
    errno.EPERM: "operation not permitted; choose a place you may write to",
    errno.EROFS: "the file system is read-only; choose another place",
    errno.ENOENT: "its folder does not exist; create it first",
    errno.ENOTDIR: "a part of its path is a file, not a folder; choose another place",
    errno.ENAMETOOLONG: "the name is too long; choose a shorter one",
    errno.ENOTEMPTY: "something appeared there meanwhile; choose another name, or remove it",
    errno.EISDIR: "a folder of this name is in the way; remove it or choose another name",
}
NOT_UTF8 = "its path is not UTF-8, which this format needs; choose another place"
"""Why a path in other encodings, such as Latin-1, is refused."""
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Error numbers of a file system without room."""

_NEW = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | getattr(os, "O_BINARY", 0)  # only Windows has it
"""How a file to be written is opened."""

_ROOM = 4 << 20
"""Bytes written to find out whether there is room."""

_RANDOM = random.Random()
"""For names that no other process of any machine takes; not the one that users may seed."""

_ABANDONED = 24 * 3600
"""Seconds without a change after which a temporary file must belong to a killed process."""


@contextmanager
def writing(path: str | Path) -> Iterator[None]:
    """Turn a refusal of the file system into an error that names the path and the remedy.

    Parameters
    ----------
    path : str or Path
        What is being written.

    Raises
    ------
    WriteError
        If the disk is full, the folder is missing, permission is lacking and the like;
        other errors pass unchanged.
    """
    try:
        yield
    # It is an OSError too, and already names its remedy.
    except StorageError:
        raise
    except UnicodeEncodeError as error:
        if is_in_utf8(path):
            raise
        raise WriteError(f"{path} cannot be written: {NOT_UTF8}") from error
    except OSError as error:
        remedy = _REMEDIES.get(error.errno or 0)
        if remedy is None:
            raise
        raise WriteError(error.errno, f"{path} cannot be written: {remedy}") from error


@contextmanager
def _naming_lack_of_room(temporary: Path) -> Iterator[None]:
    """Find out whether a writer that gives no reason failed for lack of room.

    Raises
    ------
    OSError
        If there is no room, with the file system's message.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:
        explained = isinstance(error, CopcubeError) or getattr(error, "errno", None) is not None
        if not explained and temporary.exists():
            probe = temporary / ".room" if temporary.is_dir() else temporary
            try:
                with open(probe, "ab") as file:
                    file.write(bytes(_ROOM))
                    file.flush()
                    os.fsync(file.fileno())
            except OSError as refusal:
                if refusal.errno in FULL:
                    raise refusal from error
        raise


def vacant_folder(path: str | Path) -> Path:
    """Return a folder that is empty or does not exist.

    Raises
    ------
    OptionError
        If it is not a path.
    WriteError
        If it is not empty, or cannot be listed.
    """
    folder = Path(one_path(path, "folder"))
    with writing(folder):
        if folder.exists() and any(folder.iterdir()):
            raise WriteError(f"{folder}: not empty; choose another folder or remove this one")
    return folder


@contextmanager
def atomic_path(path: str | Path, *, replace: bool = True) -> Iterator[Path]:
    """Write a file under a temporary name and move it into place when it is complete.

    The body writes the file under the yielded name. When the body ends, file and folder are flushed
    to the disk and the file takes its final name. When the body fails, the temporary file is
    removed and an existing file stays unchanged. HDF5 and GDAL do not report a full disk; that is
    checked then.

    Parameters
    ----------
    path : str or Path
        Final name; its folder must exist.
    replace : bool
        Whether to replace a file that already has the final name.

    Yields
    ------
    Path
        Temporary name in the same folder, hidden and ending in ``.partial``.

    Raises
    ------
    FileExistsError
        Without `replace`, if something has the final name at the end.
    WriteError
        As `writing`.
    """
    final = Path(path)
    temporary = Path(_hidden(final, "partial"))
    try:
        with writing(final):
            with suppress(FileNotFoundError):
                temporary.lstat()  # HDF5 takes too long a name for a lack of permission
            with _naming_lack_of_room(temporary):
                yield temporary
            # Before the rename: otherwise, after a power cut, the name could belong to an empty
            # file.
            sync(temporary)
            if replace:
                os.replace(temporary, final)
            else:
                _move_to_free_name(temporary, final)
            # The new name is an entry in the folder, which flushing the file does not flush.
            sync(final.parent)
    finally:
        with suppress(OSError):  # the earlier refusal says more
            _remove(temporary)


def write_bytes(path: str, data: Any, *, flush: bool = True) -> os.stat_result:
    """Write a file, which appears complete or not at all, with few system calls.

    This is `atomic_path` for thousands of small files.

    Parameters
    ----------
    path : str
        Its name; its folder must exist.
    data
        Its content, anything with the buffer protocol.
    flush : bool
        Whether to flush file and folder; otherwise a power cut may still lose the file.

    Returns
    -------
    os.stat_result
        State of the file before it got its name: after that, another process may replace it.

    Raises
    ------
    WriteError
        As `writing`.
    """
    temporary = _hidden(path, "partial")
    with writing(path):
        try:
            # Past Python's own files, whose objects and further calls take as long as the writing.
            file = os.open(temporary, _NEW, 0o666)
            try:
                left = memoryview(data).cast("B")
                while left:  # a system writes at most 2 GB at a time
                    left = left[os.write(file, left) :]
            finally:
                os.close(file)
            state = os.stat(temporary)
            if flush:
                sync(temporary)  # before the rename, as in `atomic_path`
            os.replace(temporary, path)
        except BaseException:
            with suppress(OSError):
                os.unlink(temporary)
            raise
        if flush:
            sync(os.path.dirname(path))
    return state


def write_text(path: str | Path, text: str) -> None:
    """Write a text in UTF-8, which appears complete or not at all, as with `atomic_path`."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, "utf-8")


def make_folder(path: str | Path) -> None:
    """Make a folder and its missing parents; errors as in `writing`."""
    with writing(path):
        Path(path).mkdir(parents=True, exist_ok=True)


@contextmanager
def atomic_folder(path: str | Path, *, replace: bool = True, sweep: bool = True) -> Iterator[Path]:
    """Write a folder under a temporary name and move it into place when it is complete.

    Parameters
    ----------
    path : str or Path
        Final name.
    replace : bool
        Whether to replace what exists at the end. Otherwise only an empty folder may exist.
    sweep : bool
        Whether, without `replace`, to first remove what a killed process of this machine left of
        the same folder.

    Yields
    ------
    Path
        Temporary name in the same folder, hidden and ending in ``.partial``; the body makes
        the folder.

    Raises
    ------
    OSError
        Without `replace`, if something exists at the end.
    WriteError
        As `writing`.
    """
    final = Path(path)
    temporary, former = Path(_hidden(final, "partial")), Path(_hidden(final, "former"))
    if sweep and not replace:
        for stray in final.parent.glob(f".{glob.escape(final.name)}.*.partial"):
            if not _may_be_at_work(stray):
                shutil.rmtree(stray, ignore_errors=True)
    try:
        with writing(final):
            try:
                with _naming_lack_of_room(temporary):
                    yield temporary
            except WriteError as error:
                # For a file in the folder, the final name of the folder is given instead.
                if error.errno is None or str(temporary) not in str(error):
                    raise
                raise OSError(error.errno, error.strerror) from error
            if replace:
                _replace_folder(temporary, final, former)
            else:
                if final.is_dir():
                    final.rmdir()  # fails if it is not empty
                temporary.rename(final)
            sync(final.parent)
    finally:
        # Wherever this stopped, even at Ctrl-C between the two renames, something has the name.
        if os.path.exists(former) and not os.path.exists(final):
            former.rename(final)
        _discard(temporary)
        # Including what others left that were stopped here.
        strays = final.parent.glob(f".{glob.escape(final.name)}.*.former")
        for stray in list(strays) if os.path.exists(final) else ():
            with suppress(FileNotFoundError):  # another process removes it too
                _remove_all(stray)


def sweep_abandoned(path: str | Path) -> None:
    """Remove what killed processes left of a file or folder of this name, after a day."""
    final = Path(path)
    for stray in final.parent.glob(f".{glob.escape(final.name)}.*.partial"):
        with suppress(OSError):
            newest = max(found.lstat().st_mtime for found in (stray, *stray.rglob("*")))
            if time.time() - newest > _ABANDONED:
                _remove_all(stray)


def sync(path: str | Path) -> None:
    """Flush a file, or a folder's list of names, to the disk.

    If a file system cannot flush a folder, nothing is done or raised.
    """
    flags = os.O_RDONLY
    if sys.platform == "win32":
        if os.path.isdir(path):  # Windows cannot open folders; NTFS keeps a journal of names
            return
        flags = os.O_RDWR  # and flushes only what is open for writing
    handle = os.open(path, flags)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(handle)


def _hidden(final: str | Path, suffix: str) -> str:
    """Name beside a final one that no other process uses."""
    # In the same folder, since a rename is atomic only within one file system.
    folder, name = os.path.split(final)
    hidden = f".{name}.{_owner()}-{_RANDOM.getrandbits(64):016x}.{suffix}"
    return os.path.join(folder, hidden)


def _may_be_at_work(hidden: Path) -> bool:
    """Whether the process that a hidden name states may still be writing there."""
    try:
        here, pid, _ = hidden.name.split(".")[-2].split("-")
        return here != _owner().partition("-")[0] or runs(int(pid))
    except ValueError:  # a name of earlier versions
        return False


def _owner() -> str:
    """Machine and number of this process, for names of files."""
    return f"{_machine()}-{os.getpid()}"


@cache
def _machine() -> str:
    return hashlib.sha256(machine().encode()).hexdigest()[:8]


def _replace_folder(temporary: Path, final: Path, former: Path) -> None:
    """Give a folder its final name, renaming what had it."""
    while True:
        with suppress(FileNotFoundError):
            final.rename(former)  # a folder cannot replace another in one step
        try:
            temporary.rename(final)
            return
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                raise
        # Between the two renames another process gave the name to its own folder.
        _remove_all(former)


def _move_to_free_name(temporary: Path, final: Path) -> None:
    try:
        os.link(temporary, final)  # unlike a rename, a link never replaces a file
    except FileExistsError:
        raise
    except (
        OSError
    ) as error:  # no hard links here, so there is a short gap between the next two lines
        if final.exists():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(final)) from error
        os.replace(temporary, final)


def _discard(folder: Path) -> None:
    """Remove a folder in which threads of a failed writer may still be writing."""
    if not os.path.exists(folder):
        return
    try:
        # dask raises the first error while its other threads finish their work, for which zarr
        # makes the folder again.
        for pause in (0.05, 0.2, 1.0):
            shutil.rmtree(folder, ignore_errors=True)
            time.sleep(pause)
    finally:  # also at a second Ctrl-C
        shutil.rmtree(folder, ignore_errors=True)


def _remove_all(path: Path) -> None:
    """Remove a file, or a folder with its content."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        _remove(path)


def _remove(path: Path) -> None:
    """Remove a file if it exists, even if a part of its path is not a folder."""
    with suppress(FileNotFoundError, NotADirectoryError):
        path.unlink()
