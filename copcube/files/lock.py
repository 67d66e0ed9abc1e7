"""One owner of a folder at a time, on file systems that machines share and in object stores.

A process that wants a folder writes a **lock file** of a name of its own into it, and then
looks for those of others. It owns the folder if it finds none, or only some that share with
it, or that belong to dead processes. Of two that come at once, each finds the other's file,
because both write before they look: never do both own the folder.

An owner renews its file every `BEAT` seconds. An owner whose file is `DEAD` seconds old, or
whose process is gone from this machine, counts as dead. Ages are differences of two times
that the file system or the store has set, so that the clocks of the machines do not matter.
A successor writes its name into the file of a dead owner, which may only sleep: when that
owner wakes up, it renews its file, finds the name in it and stops. Renewing cannot undo a
takeover: on a file system it changes no content, and a store refuses it.
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
"""What names of lock files begin with."""

SHARED = f"{PREFIX}shared-"
"""What they begin with if their owner shares the folder."""

_SETTLE, _PAUSE, _TRIES = 2.0, 0.05, 10
_DAY = 86400.0


@dataclass(frozen=True)
class LockFile:
    """What a lock file holds, and when it was written.

    Parameters
    ----------
    data : bytes
        Content.
    modified : float
        When it was written or renewed, in seconds, by the clock of the file system or the store.
    version : Any
        Differs between any two writings of the file.
    """

    data: bytes
    modified: float
    version: Any


class LockFiles(Protocol):
    """What a lock needs of a folder."""

    def create(self, name: str, data: bytes) -> None:
        """Write a file of a name that nobody else uses."""

    def names(self) -> list[str]:
        """Names that begin with `PREFIX`; all whose creation has ended are among them."""

    def read(self, name: str) -> LockFile | None:
        """Return a file as it is now, not as some cache remembers it; None if it is gone."""

    def renew(self, name: str, data: bytes, version: Any) -> None:
        """Make a file younger if it is of this version; never bring it back if it is gone."""

    def replace(self, name: str, data: bytes, version: Any) -> bool:
        """Write a file in place of this version; return whether that was possible."""

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""


class LocalLockFiles:
    """Lock files in a folder of a file system; see `LockFiles`.

    Only creating, renaming, opening and touching files is asked of the file system, which all
    of them do alike on all machines; locks of its own and hard links are not.

    Parameters
    ----------
    path : Path
        The folder, which is made if need be.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def create(self, name: str, data: bytes) -> None:
        """See `LockFiles`."""
        for tries in reversed(range(_TRIES)):
            try:
                make_folder(self._path)
                # Small and in one go: whoever reads it half written cannot know its owner.
                with writing(self._path), open(self._path / name, "xb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                return
            # A run that is refused removes the folder in which nothing lies yet.
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
            os.utime(self._path / name)  # without times: the server sets them by its clock

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
    """What a lock file says; the defaults stand for one that cannot be read."""

    host: str = "a machine of unknown name"
    machine: str = ""
    pid: int = 0
    token: str = ""
    successor: str = ""

    @classmethod
    def of(cls, file: LockFile) -> "_Owner":
        try:
            said = json.loads(file.data)
            known = {f.name: said[f.name] for f in fields(cls) if type(said[f.name]) is f.type}
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
            return self.token not in _OWNED  # of an earlier process that had the same number
        return not runs(self.pid)


_OWNED: set[str] = set()
"""Tokens of the locks of this process."""


class Lock:
    """A folder's lock in the hands of this process; see `hold`.

    Parameters
    ----------
    files : LockFiles
        Of the folder.
    name : str
        Of the folder, for messages.
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
        """Why this process is not the owner any more."""

    def prove(self) -> None:
        """Renew the lock file, and make sure that it is still this process's.

        Raises
        ------
        BuildError
            If another process took over.
        StorageError
            If the folder cannot be reached.
        """
        with self._proving:
            # Taken first: however slow the answer is, the proof must not look younger than it is.
            begin = _clock()
            if not self.lost:
                self._beats += 1
                # The count makes the content new: an entity tag is mostly a hash of it.
                self._files.renew(self._file, self._data(beats=self._beats), self._version)
                found = self._files.read(self._file)
                owner = _Owner() if found is None else _Owner.of(found)
                if found is not None and owner.token == self._owner.token and not owner.successor:
                    self._version, self._proven = found.version, begin
                    return
                self.lost = (
                    f"{self._name}: {owner.successor or 'another process'} took this build over, "
                    f"because this process had given no sign of life for {self._dead:.0f} s, or "
                    "its lock file was removed; this process stops and leaves everything to it. "
                    "Once it has ended, the same command goes on from there"
                )
            raise BuildError(self.lost)

    def check(self) -> None:
        """Do as `prove`, but read and write nothing as long as nobody can have taken over.

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
            If another process is.
        """
        _OWNED.add(self._owner.token)
        self._files.create(self._file, self._data())
        begin = time.monotonic()
        while (found := self._look()) is not None:
            rival, is_older = found
            # Of several that come at once the oldest waits for the others to withdraw.
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
                "%s: its lock could not be removed (%s); other machines take this build for one "
                "under way for %.0f s",
                *(self._name, error, self._dead),
            )

    @contextmanager
    def beating(self) -> Iterator[None]:
        """Renew the lock file again and again while the body runs."""
        ended = Event()

        def beat() -> None:
            while not ended.wait(self._beat):
                try:
                    self.prove()
                # Nobody would see an error of this thread; the body learns of it when it asks.
                except BuildError as error:
                    log.warning("%s", error)
                    break
                except OSError as error:  # it stays ours until somebody else takes it
                    log.warning("the lock of this build could not be renewed: %s", error)

        thread = Thread(target=beat, name="lock", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def _look(self) -> tuple[_Owner, bool] | None:
        """Look for a living owner in the way, and whether it came first; succeed the dead."""
        mine = self._files.read(self._file)
        if mine is None:
            raise BuildError(f"{self._name}: its files were removed meanwhile; start again")
        self._version = mine.version
        gone: list[str] = []
        dead: list[tuple[str, LockFile, _Owner]] = []
        living: list[tuple[_Owner, bool]] = []
        for name in self._files.names():
            # Hundreds of jobs may share a build: they need not read each other's files.
            if name == self._file or (self._shared and name.startswith(SHARED)):
                continue
            file = self._files.read(name)
            if file is None:
                continue
            owner, age = _Owner.of(file), mine.modified - file.modified
            if owner.successor:
                # The note stays for a day, so that an owner which sleeps long still finds it.
                gone += [name] if age > _DAY else []
            elif owner.is_gone():
                gone.append(name)
            elif age > self._dead:
                dead.append((name, file, owner))
            else:
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
        Of the folder.
    name : str
        Of the folder, for messages.
    shared : bool
        Whether others that share it may hold it too.
    beat, dead : float
        As `BEAT` and `DEAD`; all processes must agree on them.

    Yields
    ------
    Lock
        To be asked before anything is published or removed.

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
                # A successor may have removed what the body missed: then say that.
                if str(error) != lock.lost:
                    with suppress(OSError):
                        lock.prove()
                raise
        if lock.lost:
            raise BuildError(lock.lost)
    finally:
        lock.release()


def _clock() -> float:
    """Seconds that go on while the machine sleeps, where the system counts them."""
    clock = getattr(time, "CLOCK_BOOTTIME", getattr(time, "CLOCK_MONOTONIC", None))
    return time.monotonic() if clock is None else time.clock_gettime(clock)
