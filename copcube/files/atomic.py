"""Files that appear whole or not at all, and stay after a power cut."""

import errno
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from copcube.errors import StorageError

_REMEDIES = {
    errno.ENOSPC: "the disk is full; free some space or choose another place",
    errno.EDQUOT: "your disk quota is used up; free some space or choose another place",
    errno.EFBIG: "the file system cannot hold so large a file; choose another place",
    errno.EACCES: "permission denied; choose a place you may write to",
    errno.EPERM: "operation not permitted; choose a place you may write to",
    errno.EROFS: "the file system is read-only; choose another place",
    errno.ENOENT: "its folder does not exist; create it first",
    errno.ENOTDIR: "a part of its path is a file, not a folder; choose another place",
    errno.EISDIR: "a folder of this name is in the way; remove it or choose another name",
}


@contextmanager
def writing(path: str | Path) -> Iterator[None]:
    """Turn a refusal of the file system into an error that names the path and the remedy.

    Parameters
    ----------
    path : str or Path
        What is being written.

    Raises
    ------
    StorageError
        If the disk is full, the folder is missing, permission is lacking and the like;
        other errors pass unchanged.
    """
    try:
        yield
    except StorageError:
        raise
    except OSError as error:
        remedy = _REMEDIES.get(error.errno or 0)
        if remedy is None:
            raise
        raise StorageError(error.errno, f"{path} cannot be written: {remedy}") from error


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Write a file under a temporary name and move it into place when it is complete.

    The body writes the file under the name it is given. When it ends, file and folder are
    flushed to the disk and the file takes its final name, replacing a former one; when it
    fails, the temporary file is removed and a former file stays as it was.

    Parameters
    ----------
    path : str or Path
        Final name; its folder must exist.

    Yields
    ------
    Path
        Temporary name in the same folder, hidden and ending in ``.partial``.

    Raises
    ------
    StorageError
        As `writing`.
    """
    final = Path(path)
    temporary = final.with_name(f".{final.name}.{uuid.uuid4().hex}.partial")
    try:
        with writing(final):
            yield temporary
            sync(temporary)
            os.replace(temporary, final)
            sync(final.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Write a folder under a temporary name and move it into place when it is complete.

    Parameters
    ----------
    path : str or Path
        Final name; what is there is replaced at the end.

    Yields
    ------
    Path
        Temporary name in the same folder, hidden and ending in ``.partial``.

    Raises
    ------
    StorageError
        As `writing`.
    """
    final = Path(path)
    name = f".{final.name}.{uuid.uuid4().hex}"
    temporary, former = final.with_name(f"{name}.partial"), final.with_name(f"{name}.former")
    try:
        with writing(final):
            yield temporary
            if final.exists():
                final.rename(former)
            temporary.rename(final)
            sync(final.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        if former.is_dir():
            shutil.rmtree(former)
        else:
            former.unlink(missing_ok=True)


def sync(path: str | Path) -> None:
    """Flush a file, or a folder's list of names, to the disk.

    File systems that cannot flush a folder are taken at their word.
    """
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(handle)
