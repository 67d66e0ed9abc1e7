"""Files and folders that appear whole or not at all, and stay after a power cut."""

import errno
import glob
import hashlib
import os
import shutil
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

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
    errno.ENOTEMPTY: "something came there meanwhile; choose another name, or remove that folder",
    errno.EISDIR: "a folder of this name is in the way; remove it or choose another name",
}
NOT_UTF8 = "its path is not in UTF-8, as this form needs it; choose another place"
"""Why a path of other bytes, such as names in Latin-1, is refused."""
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What a file system says where it has no room."""

_ROOM = 4 << 20
"""Bytes that are written to find out whether there was room for more."""

_ABANDONED = 24 * 3600
"""Seconds without a change after which a temporary file is surely that of a killed process."""


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
    # It is an OSError too, and names its remedy already.
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
    """Find out whether a writer failed for lack of room, if it gives no reason.

    Raises
    ------
    OSError
        If there is no room, as the file system says it.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:
        said = isinstance(error, CopcubeError) or getattr(error, "errno", None) is not None
        if not said and temporary.exists():
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
    """Return a folder that holds nothing, or is not there.

    Raises
    ------
    OptionError
        If it is no path.
    WriteError
        If it holds something, or cannot be listed.
    """
    folder = Path(one_path(path, "folder"))
    with writing(folder):
        if folder.exists() and any(folder.iterdir()):
            raise WriteError(f"{folder}: not empty; give another folder or remove this one")
    return folder


@contextmanager
def atomic_path(path: str | Path, *, replace: bool = True, flush: bool = True) -> Iterator[Path]:
    """Write a file under a temporary name and move it into place when it is complete.

    The body writes the file under the name it gets. When the body ends, file and folder are
    flushed to the disk and the file takes its final name. When the body fails, the temporary
    file is removed and a former file stays as it was. HDF5 and GDAL do not say that a disk is
    full; whether it is, is found out then.

    Parameters
    ----------
    path : str or Path
        Final name; its folder must exist.
    replace : bool
        Whether a file that has the final name already is replaced.
    flush : bool
        Whether to flush file and folder; without, a power cut may still take the file.

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
    temporary = _hidden(final, "partial")
    try:
        with writing(final):
            with _naming_lack_of_room(temporary):
                yield temporary
            if flush:
                # Before the rename, or after a power cut the name could stand for an empty file.
                sync(temporary)
            if replace:
                os.replace(temporary, final)
            else:
                _move_to_free_name(temporary, final)
            if flush:
                # The new name is an entry of the folder, which flushing the file does not flush.
                sync(final.parent)
    finally:
        with suppress(OSError):  # what was refused before says more
            _remove(temporary)


def write_text(path: str | Path, text: str) -> None:
    """Write a text in UTF-8, which appears whole or not at all, as with `atomic_path`."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, "utf-8")


def make_folder(path: str | Path) -> None:
    """Make a folder and those above it that are missing; failures as of `writing`."""
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
        Whether what is there at the end is replaced. Otherwise only an empty folder may be
        there.
    sweep : bool
        Whether, without `replace`, what a killed process of this machine left of the same folder
        is removed first.

    Yields
    ------
    Path
        Temporary name in the same folder, hidden and ending in ``.partial``; the body makes
        the folder.

    Raises
    ------
    OSError
        Without `replace`, if something is there at the end.
    WriteError
        As `writing`.
    """
    final = Path(path)
    temporary, former = _hidden(final, "partial"), _hidden(final, "former")
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
                # About a file in the folder: the folder is named instead, by its final name.
                if error.errno is None or str(temporary) not in str(error):
                    raise
                raise OSError(error.errno, error.strerror) from error
            if replace:
                _replace_folder(temporary, final, former)
            else:
                if final.is_dir():
                    final.rmdir()  # refuses if there is something in it
                temporary.rename(final)
            sync(final.parent)
    finally:
        # Wherever this stopped, at Ctrl-C between the two renames too, something has the name.
        if os.path.exists(former) and not os.path.exists(final):
            former.rename(final)
        _discard(temporary)
        # With what others left that were stopped just here.
        strays = final.parent.glob(f".{glob.escape(final.name)}.*.former")
        for stray in list(strays) if os.path.exists(final) else ():
            with suppress(FileNotFoundError):  # another process removes it too
                _remove_all(stray)


def sweep_abandoned(path: str | Path) -> None:
    """Remove what killed processes left of a file or folder of this name, a day later."""
    final = Path(path)
    for stray in final.parent.glob(f".{glob.escape(final.name)}.*.partial"):
        with suppress(OSError):
            newest = max(found.lstat().st_mtime for found in (stray, *stray.rglob("*")))
            if time.time() - newest > _ABANDONED:
                _remove_all(stray)


def sync(path: str | Path) -> None:
    """Flush a file, or a folder's list of names, to the disk.

    Where a file system cannot flush a folder, nothing is done and nothing is raised.
    """
    flags = os.O_RDONLY
    if sys.platform == "win32":
        if os.path.isdir(path):  # Windows opens no folders; NTFS keeps a journal of names
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


def _hidden(final: Path, suffix: str) -> Path:
    """Name beside a final one that no other process uses."""
    # In the same folder, since a rename is one step only inside of one file system.
    return final.with_name(f".{final.name}.{_owner()}-{uuid.uuid4().hex[:16]}.{suffix}")


def _may_be_at_work(hidden: Path) -> bool:
    """Whether the process that a hidden name states may still be writing there."""
    try:
        here, pid, _ = hidden.name.split(".")[-2].split("-")
        return here != _owner().partition("-")[0] or runs(int(pid))
    except ValueError:  # a name of earlier versions
        return False


def _owner() -> str:
    """Machine and number of this process, for names of files."""
    return f"{hashlib.sha256(machine().encode()).hexdigest()[:8]}-{os.getpid()}"


def _replace_folder(temporary: Path, final: Path, former: Path) -> None:
    """Give a folder its final name, and what has that name another one."""
    while True:
        with suppress(FileNotFoundError):
            final.rename(former)  # a folder cannot replace another in one step
        try:
            temporary.rename(final)
            return
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                raise
        # Between the two renames another process gave its own folder the name.
        _remove_all(former)


def _move_to_free_name(temporary: Path, final: Path) -> None:
    try:
        os.link(temporary, final)  # unlike a rename, a link never replaces a file
    except FileExistsError:
        raise
    except OSError as error:  # no hard links here: between the next two lines is a short gap
        if final.exists():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(final)) from error
        os.replace(temporary, final)


def _discard(folder: Path) -> None:
    """Remove a folder in which threads of a writer that failed may still be writing."""
    # dask raises the first error while its other threads finish what they are at.
    for pause in (0.05, 0.2, 1.0):
        if not os.path.exists(folder):
            return
        shutil.rmtree(folder, ignore_errors=True)
        time.sleep(pause)


def _remove_all(path: Path) -> None:
    """Remove a file, or a folder with all that lies in it."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        _remove(path)


def _remove(path: Path) -> None:
    """Remove a file if it is there, also where a part of its path is no folder."""
    with suppress(FileNotFoundError, NotADirectoryError):
        path.unlink()
