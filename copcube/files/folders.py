"""Folders of files, on a file system or in an object store, behind one protocol.

A file in such a folder is complete or absent, and what was written survives a power cut: that is
all a build needs to be killed at any moment.
"""

import os
import shutil
import threading
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from functools import cache
from pathlib import Path
from typing import Any, Protocol

from copcube.arguments import one_path
from copcube.files.atomic import atomic_path, sync, write_bytes, writing
from copcube.files.lock import BEAT, DEAD, LocalLockFiles, Lock, hold
from copcube.files.objects import ObjectFolder, is_remote
from copcube.files.states import FileState, Written

_SYNCS = 8
"""How many files or folders are flushed at once: many take little longer than one, since the
file system writes its journal once for all that wait."""

_MAKING = threading.Lock()
"""Held while a folder is made and flushed."""


class Folder(Protocol):
    """Files by their names below one folder, parts of a name separated by ``/``."""

    def read(self, name: str) -> bytes:
        """Return the bytes of a file.

        Raises
        ------
        FileNotFoundError
            If there is no file of that name.
        """

    def open(self, name: str) -> Any:
        """Open a file for `pyarrow.parquet.ParquetFile`."""

    def write(self, name: str, data: Any, *, flush: bool = True) -> Written:
        """Write a file, completely or not at all, from anything with the buffer protocol.

        Without `flush=True` it survives a power cut only after a call of `flush`, which is cheaper
        for many files at once.

        Returns
        -------
        Written
            Size, SHA-256 and stamp of the file, known without reading it back.

        Raises
        ------
        WriteError
            If the disk is full, or permission is lacking.
        """

    def create(self, name: str, data: Any) -> bool:
        """Write a file if none has that name; return whether it was written."""

    def names(self, prefix: str = "") -> list[str]:
        """Sorted names of all files that begin with a prefix."""

    def states(self, names: Iterable[str]) -> dict[str, FileState]:
        """Size and stamp of files, by name, without opening them; absent files are left out."""

    def remove(self, name: str) -> None:
        """Remove a file, or all files below a folder, if they exist."""

    def flush(self, names: Iterable[str]) -> None:
        """Make files that others wrote here survive a power cut."""

    def lock(
        self, *, shared: bool = False, beat: float = BEAT, dead: float = DEAD
    ) -> AbstractContextManager[Lock]:
        """Own the folder, exclusively or shared with others that share it.

        Parameters
        ----------
        shared : bool
            Whether others that share it may own it too.
        beat, dead : float
            As `copcube.files.lock.hold`, also for what is raised.
        """


def open_folder(path: str | Path) -> Folder:
    """Folder at a path or at the URL of an object store."""
    return ObjectFolder(str(path)) if is_remote(path) else LocalFolder(path)


def absolute(path: str | Path) -> str:
    """Path valid in every process that sees the file system; URLs unchanged."""
    text = one_path(path, "output")
    return text.rstrip("/") if is_remote(text) else os.path.abspath(text)


class LocalFolder:
    """A folder of a file system, local or shared by several machines.

    Parameters
    ----------
    path : str or Path
        Path of the folder, made when the first file is written.
    """

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)

    def read(self, name: str) -> bytes:
        """See `Folder`."""
        return (self._path / name).read_bytes()

    def open(self, name: str) -> str:
        """See `Folder`."""
        return str(self._path / name)

    def write(self, name: str, data: Any, *, flush: bool = True) -> Written:
        """See `Folder`."""
        state = write_bytes(self._made(name, flush=flush), data, flush=flush)
        return Written.of(data, _state(state).stamp)

    def create(self, name: str, data: Any) -> bool:
        """See `Folder`."""
        try:
            with atomic_path(self._made(name), replace=False) as temporary:
                temporary.write_bytes(data)
        except FileExistsError:
            return False
        return True

    def names(self, prefix: str = "") -> list[str]:
        """See `Folder`; hidden files are left out."""
        top = self._path / prefix.rpartition("/")[0]
        found = []
        for root, folders, files in os.walk(top):
            # Changed in place, so that `os.walk` does not enter the hidden ones.
            folders[:] = [name for name in folders if not name.startswith(".")]
            found += [os.path.join(root, name) for name in files if not name.startswith(".")]
        names = (os.path.relpath(path, self._path).replace(os.sep, "/") for path in found)
        return sorted(name for name in names if name.startswith(prefix))

    def states(self, names: Iterable[str]) -> dict[str, FileState]:
        """See `Folder`; a stamp is the time of the last change, in ns, and the inode."""
        found = {}
        top = str(self._path)
        for name in names:
            try:
                # Builds request many thousands; joining pathlib paths takes as long as a request.
                found[name] = _state(os.stat(os.path.join(top, name)))
            except (FileNotFoundError, NotADirectoryError):
                continue
        return found

    def remove(self, name: str) -> None:
        """See `Folder`."""
        path = self._path / name
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)

    def flush(self, names: Iterable[str]) -> None:
        """See `Folder`."""
        files = list(names)
        if not files:
            return
        # With the parent folder, in which this one may be new.
        folders = {"..", "."}
        for inside in {*map(os.path.dirname, files)}:
            while inside:
                folders.add(inside)
                inside = os.path.dirname(inside)
        for names in (files, sorted(folders)):
            paths = [os.path.join(self._path, name) for name in names]
            runs = (paths[i::_SYNCS] for i in range(min(_SYNCS, len(paths))))
            # A failure is raised here, when its result is taken.
            list(_pool(os.getpid()).map(_sync_all, runs))

    def sweep(self) -> None:
        """Remove half-written files of killed writers."""
        for stray in self._path.rglob(".*.partial"):
            stray.unlink(missing_ok=True)

    def lock(
        self, *, shared: bool = False, beat: float = BEAT, dead: float = DEAD
    ) -> AbstractContextManager[Lock]:
        """See `Folder`."""
        files = LocalLockFiles(self._path)
        return hold(files, str(self._path), shared=shared, beat=beat, dead=dead)

    def _made(self, name: str, *, flush: bool = True) -> str:
        """Path of a file, after making its folder, which with `flush` survives a power cut."""
        path = os.path.join(self._path, name)
        inside = os.path.dirname(path)
        if not flush and os.path.isdir(inside):
            return path
        # A thread that finds another's folder waits until that one has flushed it.
        with writing(self._path), _MAKING:
            if not os.path.isdir(inside):
                # A new folder is an entry in its parent, which must be flushed to keep it.
                above = Path(path).parents if flush else ()
                new = [folder for folder in above if not folder.exists()]
                os.makedirs(inside, exist_ok=True)
                for folder in new:
                    sync(folder.parent)
        return path


@cache
def _pool(process: int) -> ThreadPoolExecutor:
    """Threads that flush files, kept by the process: starting them takes as long as their work."""
    return ThreadPoolExecutor(_SYNCS, thread_name_prefix="copcube-sync")


def _sync_all(paths: Iterable[str]) -> None:
    for path in paths:
        sync(path)


def _state(status: os.stat_result) -> FileState:
    return FileState(status.st_size, f"{status.st_mtime_ns} {status.st_ino}")
