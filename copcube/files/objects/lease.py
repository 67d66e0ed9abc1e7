"""Holding a folder of an object store against other processes.

A store has no locks, but it can write an object only if there is none, or only if it is
still the one that was read. A **lease** is an object written so, and written again every
`BEAT` seconds as long as its holder lives. Who is not seen to write for `DEAD` seconds is
taken for dead. Time is the store's own throughout: the age of a lease is that of the object
compared with one written just now, so the clocks of the machines do not matter.
"""

import json
import logging
import os
import socket
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from threading import Event, Thread
from typing import TYPE_CHECKING, Any

from copcube.errors import BuildError, StorageError
from copcube.files.objects.access import listing, stat
from copcube.files.objects.stores import asking, locate

if TYPE_CHECKING:
    from obstore import ObjectMeta, PutResult, UpdateVersion

BEAT, DEAD = 20.0, 120.0

_log = logging.getLogger("copcube")


@contextmanager
def leased(url: str, *, shared: bool = False) -> Iterator[None]:
    """Hold a folder against all others, or only against those who want it alone.

    The store must be able to write conditionally (``If-None-Match``, ``If-Match``), as S3,
    Google Cloud Storage and the usual servers do; one that ignores the condition lets two
    holders in.

    Parameters
    ----------
    url : str
        The folder. The lease is its object ``lock``, a shared one lies in ``.shared/``.
    shared : bool
        Whether others that share it may hold it too.

    Raises
    ------
    BuildError
        If another process holds it, or, at the end, took it over because this one was not
        seen for too long.
    StorageError
        If the store cannot be reached.
    """
    lease = _Lease(f"{url}/.shared/{uuid.uuid4().hex}" if shared else f"{url}/lock")
    lease.take(url)
    try:
        others = [f"{url}/lock"] if shared else _shared(url)
        for other in others:
            if (holder := _look(other)) and not holder.is_dead(url):
                raise BuildError(holder.refusal(url))
        with lease.kept():
            yield
    finally:
        lease.drop()
    if lease.lost:
        raise BuildError(
            f"{url}: another process took this build over, because this one was not seen for "
            f"{DEAD:.0f} s; the build is its now"
        )


def _shared(url: str) -> list[str]:
    return [f"{url}/.shared/{entry.name}" for entry in listing(f"{url}/.shared")]


@dataclass(frozen=True)
class _Holder:
    """Who wrote a lease, and when; `version` is what a store knows this writing by."""

    version: "UpdateVersion"
    modified: datetime
    host: str
    machine: str
    pid: int
    token: str

    def is_dead(self, url: str) -> bool:
        if self.machine == _machine() and not _runs(self.pid):
            return True
        return (_now(url) - self.modified).total_seconds() > DEAD

    def refusal(self, url: str) -> str:
        return (
            f"{url}: another process ({self.host}, pid {self.pid}) is working on this build; "
            f"wait for it, or stop it (it is taken for dead {DEAD:.0f} s after its last sign)"
        )


def _look(url: str) -> _Holder | None:
    """Read a lease; None if there is none."""
    store, key = locate(url)
    try:
        with asking(url):
            found = store.get(key)
            meta, text = found.meta, found.bytes().to_bytes()
    except FileNotFoundError:
        return None
    about: dict[str, Any] = {"host": "of unknown name", "machine": "", "pid": 0, "token": ""}
    with suppress(ValueError, TypeError, KeyError):
        said = json.loads(text)
        about = {key: said[key] for key in about}
    return _Holder(_version(meta), meta["last_modified"], **about)


def _version(said: "ObjectMeta | PutResult") -> "UpdateVersion":
    """What the store said of a version of an object, to ask for it again."""
    version: UpdateVersion = {}
    if said["e_tag"] is not None:
        version["e_tag"] = said["e_tag"]
    if said["version"] is not None:
        version["version"] = said["version"]
    return version


def _now(url: str) -> datetime:
    """The store's time."""
    probe = f"{url}/.now-{uuid.uuid4().hex}"
    store, key = locate(probe)
    with asking(probe):
        store.put(key, b"")
    try:
        return stat(probe).modified
    finally:
        with asking(probe):
            store.delete(key)


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _machine() -> str:
    """What tells the machine, and the container, in which a pid means one process."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return f"{socket.gethostname()} {uuid.getnode():x}"


class _Lease:
    """One object that says who holds the folder."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._token = uuid.uuid4().hex
        self._beats = 0
        self._version: UpdateVersion | None = None
        self.lost = False

    def take(self, url: str) -> None:
        """Write the lease, in place of a dead one if need be."""
        for _ in range(3):
            if self._write(None):
                return
            holder = _look(self._url)
            if holder is None:
                continue
            if not holder.is_dead(url):
                raise BuildError(holder.refusal(url))
            if self._write(holder.version):
                _log.info("took over from (%s, pid %d), which is gone", holder.host, holder.pid)
                return
        raise BuildError(f"{url}: several processes want to work on this build; start one")

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Write the lease again and again while the body runs."""
        ended = Event()

        def beat() -> None:
            while not ended.wait(BEAT) and not self.lost:
                try:
                    self.lost = not self._write(self._version)
                except StorageError as error:
                    _log.warning("the lock of this build could not be kept: %s", error)
            if self.lost:
                _log.warning("%s: another process took this build over", self._url)

        thread = Thread(target=beat, name="lease", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def drop(self) -> None:
        """Remove the lease if it is still ours."""
        with suppress(StorageError, FileNotFoundError):
            holder = _look(self._url)
            if holder is not None and holder.token == self._token:
                store, key = locate(self._url)
                with asking(self._url):
                    store.delete(key)

    def _write(self, version: "UpdateVersion | None") -> bool:
        """Write the lease in place of a version of it, or of none; whether that was possible."""
        from obstore.exceptions import AlreadyExistsError, PreconditionError

        self._beats += 1
        text = json.dumps(
            {
                "host": socket.gethostname(),
                "machine": _machine(),
                "pid": os.getpid(),
                "token": self._token,
                "beats": self._beats,
            }
        ).encode()
        store, key = locate(self._url)
        try:
            with asking(self._url):
                written = store.put(key, text, mode="create" if version is None else version)
            self._version = _version(written)
        except (AlreadyExistsError, PreconditionError, FileNotFoundError):
            holder = _look(self._url)  # ours, if only the answer to an earlier try was lost
            if holder is None or holder.token != self._token:
                return False
            self._version = holder.version
        return True
