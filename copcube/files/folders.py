"""Folders of files, on a file system or in an object store, behind one small face.

A file in such a folder is there whole or not at all, and what was written stays after a
power cut: that is all a build needs to be killed at any moment.
"""

import hashlib
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Protocol

from copcube.files.atomic import atomic_path, sync, writing
from copcube.files.lock import BEAT, DEAD, LocalLockFiles, Lock, hold
from copcube.files.objects import ObjectFolder, is_remote


class Folder(Protocol):
    """Files by their names below one place, parts of a name divided by ``/``."""

    def read(self, name: str) -> bytes:
        """Return the bytes of a file.

        Raises
        ------
        FileNotFoundError
            If there is none of that name.
        """

    def open(self, name: str) -> Any:
        """Return what `pyarrow.parquet.ParquetFile` reads a file through."""

    def write(self, name: str, data: Any) -> None:
        """Write a file, whole or not at all, from anything with the buffer protocol.

        Raises
        ------
        StorageError
            If the place is full, or does not admit it.
        """

    def create(self, name: str, data: Any) -> bool:
        """Write a file if there is none of that name; whether it was written."""

    def names(self, prefix: str = "") -> list[str]:
        """Sorted names of all files that begin with a prefix."""

    def remove(self, name: str) -> None:
        """Remove a file, or all files below a folder, if they are there."""

    def flush(self, names: Iterable[str]) -> None:
        """Make files that others wrote here stay after a power cut."""

    def lock(
        self, *, shared: bool = False, beat: float = BEAT, dead: float = DEAD
    ) -> AbstractContextManager[Lock]:
        """Own the folder, against all others or only against those who want it alone.

        Parameters
        ----------
        shared : bool
            Whether others that share it may own it too.
        beat, dead : float
            As `copcube.files.lock.hold`, also for what is raised.
        """


def folder(path: str | Path) -> Folder:
    """Folder at a path or at the URL of an object store."""
    return ObjectFolder(str(path)) if is_remote(path) else LocalFolder(path)


def absolute(path: str | Path) -> str:
    """Path that means the same in every process that sees the file system; URLs as they are."""
    return str(path).rstrip("/") if is_remote(path) else os.path.abspath(path)


def checksum(place: Folder, name: str) -> list[int | str]:
    """Size in bytes and SHA-256 of a file.

    Raises
    ------
    FileNotFoundError
        If there is none of that name.
    """
    data = place.read(name)
    return [len(data), hashlib.sha256(data).hexdigest()]


class LocalFolder:
    """A folder of a file system, local or shared by several machines.

    Parameters
    ----------
    path : str or Path
        Made when the first file is written.
    """

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)

    def read(self, name: str) -> bytes:
        """See `Folder`."""
        return (self._path / name).read_bytes()

    def open(self, name: str) -> str:
        """See `Folder`."""
        return str(self._path / name)

    def write(self, name: str, data: Any) -> None:
        """See `Folder`."""
        path = self._path / name
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_path(path) as temporary:
                temporary.write_bytes(data)

    def create(self, name: str, data: Any) -> bool:
        """See `Folder`."""
        with self._scratch(name, data) as scratch:
            try:
                os.link(scratch, self._path / name)
            except FileExistsError:
                return False
            except OSError:  # no hard links here; the moment between is short
                if (self._path / name).exists():
                    return False
                os.replace(scratch, self._path / name)
        self.flush([name])
        return True

    def names(self, prefix: str = "") -> list[str]:
        """See `Folder`; hidden files are left out."""
        top = self._path / prefix.rpartition("/")[0]
        found = []
        for where, folders, files in os.walk(top):
            folders[:] = [name for name in folders if not name.startswith(".")]
            found += [os.path.join(where, name) for name in files if not name.startswith(".")]
        names = (os.path.relpath(path, self._path).replace(os.sep, "/") for path in found)
        return sorted(name for name in names if name.startswith(prefix))

    def remove(self, name: str) -> None:
        """See `Folder`."""
        path = self._path / name
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)

    def flush(self, names: Iterable[str]) -> None:
        """See `Folder`."""
        folders = {self._path}
        for name in names:
            sync(self._path / name)
            folders |= {self._path / parent for parent in Path(name).parents}
        for place in sorted(folders):
            sync(place)

    def sweep(self) -> None:
        """Remove what killed writers left half written."""
        for stray in self._path.rglob(".*.partial"):
            stray.unlink(missing_ok=True)

    def lock(
        self, *, shared: bool = False, beat: float = BEAT, dead: float = DEAD
    ) -> AbstractContextManager[Lock]:
        """See `Folder`."""
        files = LocalLockFiles(self._path)
        return hold(files, str(self._path), shared=shared, beat=beat, dead=dead)

    @contextmanager
    def _scratch(self, name: str, data: Any) -> Iterator[Path]:
        """Hidden file of this content beside a name, as long as the body runs."""
        path = self._path / name
        scratch = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                scratch.write_bytes(data)
                sync(scratch)
                yield scratch
            finally:
                scratch.unlink(missing_ok=True)
