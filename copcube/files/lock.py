"""One owner of a folder at a time, on file systems that machines share and in object stores.

A process that wants a folder writes a **lock file** with a unique name into it, and then looks for
those of others. It owns the folder if it finds none, or only files that share with it or belong to
dead processes. If two come at once, each finds the other's file, because both write before they
look: they never both own the folder.

An owner renews its file every `BEAT` seconds. An owner whose file is `DEAD` seconds old, or whose
process is gone from this machine, counts as dead. Ages are differences of two times set by the file
system or the store, so the machines' clocks do not matter. A successor writes its name into the
file of a dead owner, which may only be asleep: when that owner wakes up, it renews its file, finds
the name in it and stops. Renewing cannot undo a takeover: on a file system it changes no content,
and a store refuses it.
"""

import errno
import json
import logging
import os
import socket
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from threading import Event, RLock, Thread
from typing import Any, Protocol

from copcube.errors import BuildError
from copcube.files.atomic import atomic_path, make_folder, writing
from copcube.files.processes import machine, runs

log = logging.getLogger("copcube")

BEAT = 20.0
"""Seconds after which an owner renews its lock file."""

DEAD = 120.0
"""Age of a lock file, in seconds, at which its owner counts as dead."""

PREFIX = ".lock-"
"""Prefix of the names of lock files."""

SHARED = f"{PREFIX}shared-"
"""Their prefix if the owner shares the folder."""

_SETTLE, _PAUSE, _TRIES = 2.0, 0.05, 10
_DAY = 86400.0


@dataclass(frozen=True)
class LockFile:
    """Content of a lock file, and when it was written.

    Parameters
    ----------
    data : bytes
        Content.
    modified : float
        When it was written or renewed, in seconds, by the clock of the file system or the store.
    version : Any
        Differs each time the file is written.
    """

    data: bytes
    modified: float
    version: Any


class LockFiles(Protocol):
    """Operations that a lock needs in a folder."""

    def create(self, name: str, data: bytes) -> None:
        """Write a file whose name nobody else uses."""

    def names(self) -> list[str]:
        """Names that begin with `PREFIX`, including all files whose creation has finished."""

    def read(self, name: str) -> LockFile | None:
        """Return the current file, not a cached one; None if it is gone."""

    def renew(self, name: str, data: bytes, version: Any) -> None:
        """Renew the time of a file of this version; never recreate it if it is gone."""

    def replace(self, name: str, data: bytes, version: Any) -> bool:
        """Replace this version of a file; return whether that was possible."""

    def remove(self, name: str) -> None:
        """Remove a file, if it exists."""


class LocalLockFiles:
    """Lock files in a folder of a file system; see `LockFiles`.

    This needs only creating, renaming, opening and touching files, which all file systems do alike
    on all machines, and no locks or hard links of the file system.

    Parameters
    ----------
    path : Path
        The folder, made if needed.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def create(self, name: str, data: bytes) -> None:
        """See `LockFiles`."""
        for tries in reversed(range(_TRIES)):
            try:
                make_folder(self._path)
                # Small and in one write: a reader of half a file could not know its owner.
                with writing(self._path), open(self._path / name, "xb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                return
            # A refused run removes the folder if it is still empty.
            except OSError as error:
                if not tries or error.errno not in (errno.EEXIST, errno.ENOENT):
                    raise

    def names(self) -> list[str]:
        """See `LockFiles`."""
        return [name for name in os.listdir(self._path) if name.startswith(PREFIX)]

    def read(self, name: str) -> LockFile | None:
        """See `LockFiles`."""
        try:
            # Network file systems ask the server when a file is opened, but not for `os.stat`.
            with open(self._path / name, "rb") as file:
                about = os.fstat(file.fileno())
                return LockFile(file.read(), about.st_mtime, about.st_mtime_ns)
        except FileNotFoundError:
            return None

    def renew(self, name: str, data: bytes, version: Any) -> None:
        """See `LockFiles`."""
        with writing(self._path), suppress(FileNotFoundError):
            os.utime(self._path / name)  # without times: the server sets them by its own clock

    def replace(self, name: str, data: bytes, version: Any) -> bool:
        """See `LockFiles`."""
        found = self.read(name)
        if found is None or found.version != version:
            return False
        with atomic_path(self._path / name) as temporary:
            temporary.write_bytes(data)
        return True

    def remove(self, name: str) -> None:
        """See `LockFiles`."""
        (self._path / name).unlink(missing_ok=True)


@dataclass(frozen=True)
class _Owner:
    """Content of a lock file; the defaults are for one that cannot be read."""

    host: str = "an unknown machine"
    machine: str = ""
    pid: int = 0
    token: str = ""
    successor: str = ""

    @classmethod
    def of(cls, file: LockFile) -> "_Owner":
        try:
            stated = json.loads(file.data)
            known = {f.name: stated[f.name] for f in fields(cls) if type(stated[f.name]) is f.type}
            return cls(**known)
        except (ValueError, TypeError, KeyError):
            return cls()

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"

    def is_gone(self) -> bool:
        """Whether it was a process of this machine that has ended."""
        if self.machine != machine():
            return False
        if self.pid == os.getpid():
            return self.token not in _OWNED  # from an earlier process with the same number
        return not runs(self.pid)


_OWNED: set[str] = set()
"""Tokens of the locks of this process."""


class Lock:
    """A folder's lock held by this process; see `hold`.

    Parameters
    ----------
    files : LockFiles
        Those of the folder.
    name : str
        Name of the folder, for messages.
    shared : bool
        Whether others that share it may hold it too.
    beat, dead : float
        As `BEAT` and `DEAD`.
    """

    def __init__(
        self, files: LockFiles, name: str, *, shared: bool, beat: float, dead: float
    ) -> None:
        token = uuid.uuid4().hex
        self._files, self._name, self._shared = files, name, shared
        self._file = (SHARED if shared else PREFIX) + token
        self._owner = _Owner(socket.gethostname(), machine(), os.getpid(), token)
        self._beat, self._dead = beat, dead
        self._proving, self._beats = RLock(), 0
        self._version: Any = None
        self._proven = _clock()
        self.lost = ""
        """Why this process is no longer the owner."""

    def prove(self) -> None:
        """Renew the lock file, and check that this process still owns it.

        Raises
        ------
        BuildError
            If another process took over.
        StorageError
            If the folder cannot be reached.
        """
        with self._proving:
            # Taken first: however slow the answer, the proof must not look more recent than it is.
            begin = _clock()
            if not self.lost:
                self._beats += 1
                # The count changes the content: an entity tag is usually a hash of it.
                self._files.renew(self._file, self._data(beats=self._beats), self._version)
                found = self._files.read(self._file)
                owner = _Owner() if found is None else _Owner.of(found)
                if found is not None and owner.token == self._owner.token and not owner.successor:
                    self._version, self._proven = found.version, begin
                    return
                self.lost = (
                    f"{self._name}: {owner.successor or 'another process'} took over this build, "
                    f"because this process gave no sign of life for {self._dead:.0f} s, or its "
                    "lock file was removed; this process stops. Once the other has ended, the same "
                    "command continues from there"
                )
            raise BuildError(self.lost)

    def check(self) -> None:
        """Do as `prove`, but read and write nothing while nobody can have taken over.

        Raises
        ------
        BuildError, StorageError
            As `prove`.
        """
        if self.lost or _clock() - self._proven > self._dead - self._beat:
            self.prove()

    def acquire(self) -> None:
        """Write a lock file, and become the owner.

        Raises
        ------
        BuildError
            If another process is the owner.
        """
        _OWNED.add(self._owner.token)
        self._files.create(self._file, self._data())
        begin = time.monotonic()
        while (found := self._look()) is not None:
            rival, is_older = found
            # If several come at once, the oldest waits for the others to withdraw.
            if is_older or time.monotonic() - begin > _SETTLE:
                raise BuildError(
                    f"{self._name}: another process is working on this build ({rival}); wait for "
                    f"it, or stop it. If it has died, start again in {self._dead:.0f} s"
                )
            time.sleep(_PAUSE)
        self.prove()

    def release(self) -> None:
        """Remove the lock file."""
        _OWNED.discard(self._owner.token)
        try:
            self._files.remove(self._file)
        except OSError as error:
            log.warning(
                "%s: its lock could not be removed (%s); to other machines this build looks active "
                "for %.0f s",
                *(self._name, error, self._dead),
            )

    @contextmanager
    def beating(self) -> Iterator[None]:
        """Renew the lock file regularly while the body runs."""
        ended = Event()

        def beat() -> None:
            while not ended.wait(self._beat):
                try:
                    self.prove()
                # Nobody would see an error in this thread; the body learns of it when it checks.
                except BuildError as error:
                    log.warning("%s", error)
                    break
                except OSError as error:  # it stays ours until another process takes it
                    log.warning("the lock of this build could not be renewed: %s", error)

        thread = Thread(target=beat, name="lock", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def _look(self) -> tuple[_Owner, bool] | None:
        """Find a live owner in the way, and whether it came first; take over from dead ones."""
        mine = self._files.read(self._file)
        if mine is None:
            raise BuildError(f"{self._name}: its files were removed meanwhile; start again")
        self._version = mine.version
        gone: list[str] = []
        dead: list[tuple[str, LockFile, _Owner]] = []
        living: list[tuple[_Owner, bool]] = []
        for name in self._files.names():
            # Hundreds of jobs may share a build; they need not read each other's files.
            if name == self._file or (self._shared and name.startswith(SHARED)):
                continue
            file = self._files.read(name)
            if file is None:
                continue
            owner, age = _Owner.of(file), mine.modified - file.modified
            if owner.successor:
                # The note stays for a day, so that an owner that sleeps long still finds it.
                gone += [name] if age > _DAY else []
            elif owner.is_gone():
                gone.append(name)
            elif age > self._dead:
                dead.append((name, file, owner))
            else:
                if age < -self._dead:  # written before the clock was set back: its age starts now
                    self._files.renew(name, file.data, file.version)
                living.append((owner, (file.modified, name) < (mine.modified, self._file)))
        if living:
            return next((rival for rival in living if rival[1]), living[0])
        for name, file, owner in dead:
            note = json.dumps(asdict(owner) | {"successor": str(self._owner)}).encode()
            if not self._files.replace(name, note, file.version):
                return owner, True  # it has just woken up
            log.warning("took over from %s, which gives no sign of life", owner)
        for name in gone:
            self._files.remove(name)
        return None

    def _data(self, **more: int) -> bytes:
        return json.dumps(asdict(self._owner) | more).encode()


@contextmanager
def hold(files: LockFiles, name: str, *, shared: bool, beat: float, dead: float) -> Iterator[Lock]:
    """Own a folder while the body runs, alone or together with others that share it.

    Parameters
    ----------
    files : LockFiles
        Those of the folder.
    name : str
        Name of the folder, for messages.
    shared : bool
        Whether others that share it may hold it too.
    beat, dead : float
        As `BEAT` and `DEAD`; all processes must agree on them.

    Yields
    ------
    Lock
        To be checked before anything is published or removed.

    Raises
    ------
    BuildError
        If another process owns it; when the body ends or fails, if another took over.
    StorageError
        If the folder cannot be reached.
    """
    lock = Lock(files, name, shared=shared, beat=beat, dead=dead)
    try:
        lock.acquire()
        with lock.beating():
            try:
                yield lock
            except Exception as error:
                # A successor may have removed what the body failed to find: then report that
                # instead.
                if str(error) != lock.lost:
                    with suppress(OSError):
                        lock.prove()
                raise
        # A body that ends as its process wakes up may end before the next beat.
        lock.check()
    finally:
        lock.release()


def _clock() -> float:
    """Seconds that include sleep of the machine, if the system counts them."""
    clock = getattr(time, "CLOCK_BOOTTIME", getattr(time, "CLOCK_MONOTONIC", None))
    return time.monotonic() if clock is None else time.clock_gettime(clock)
