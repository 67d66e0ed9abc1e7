"""A folder of an object store."""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, suppress
from typing import Any

from copcube.errors import BuildError, OptionError, WriteError
from copcube.files.lock import BEAT, DEAD, Lock, hold
from copcube.files.objects.access import listing, open_file, read
from copcube.files.objects.lockfiles import ObjectLockFiles
from copcube.files.objects.stores import asking, locate, pool, split
from copcube.files.states import FileState, Written

ONE_PUT = 32 << 20
"""Bytes up to which a file is sent in one request; larger ones appear with their last part."""


class ObjectFolder:
    """Objects below an address, as a `copcube.files.folders.Folder`.

    Every object is complete or absent, and durable.

    Parameters
    ----------
    url : str
        Such as ``s3://bucket/world.build``.
    """

    def __init__(self, url: str) -> None:
        self._url = url.rstrip("/")

    def read(self, name: str) -> bytes:
        """See `Folder`."""
        return read(self._at(name))

    def open(self, name: str) -> Any:
        """See `Folder`."""
        return open_file(self._at(name))

    def write(self, name: str, data: Any, *, flush: bool = True) -> Written:
        """See `Folder`; written objects are always durable."""
        store, key = locate(self._at(name))
        with asking(self._at(name), WriteError):
            put = store.put(key, memoryview(data).cast("B"), chunk_size=ONE_PUT)
        return Written.of(data, put["e_tag"])

    def create(self, name: str, data: Any) -> bool:
        """See `Folder`; of several processes at once only one succeeds."""
        from obstore.exceptions import AlreadyExistsError

        store, key = locate(self._at(name))
        try:
            with asking(self._at(name), WriteError):
                store.put(key, memoryview(data).cast("B"), mode="create")
        except AlreadyExistsError:
            # The store decides, in one request: looking first would leave a gap.
            return False
        return True

    def names(self, prefix: str = "") -> list[str]:
        """See `Folder`; hidden files are left out."""
        above, slash, _ = prefix.rpartition("/")
        names = (f"{above}{slash}{entry.name}" for entry in listing(self._at(above)))
        return [n for n in names if n.startswith(prefix) and "/." not in f"/{n}"]

    def states(self, names: Iterable[str]) -> dict[str, FileState]:
        """See `Folder`; a stamp is an entity tag."""
        wanted = set(names)
        found = {}
        # A listing of a thousand names costs as much as one request.
        for top in sorted({name.partition("/")[0] for name in wanted if "/" in name}):
            for entry in listing(self._at(top)):
                found[f"{top}/{entry.name}"] = FileState(entry.size, entry.tag)
        if any("/" not in name for name in wanted):
            for entry in listing(self._url, deep=False):
                found[entry.name] = FileState(entry.size, entry.tag)
        return {name: state for name, state in found.items() if name in wanted}

    def remove(self, name: str) -> None:
        """See `Folder`."""
        url = self._at(name)
        store, key = locate(url)
        below = [f"{key}/{entry.name}".lstrip("/") for entry in listing(url)]
        with suppress(FileNotFoundError), asking(url, WriteError):
            store.delete([key, *below] if name else below)

    def flush(self, names: Iterable[str]) -> None:
        """See `Folder`; nothing to do."""

    def copy_to(self, url: str, *, last: str, check: Callable[[], None] = lambda: None) -> None:
        """Copy all files to another address of the same bucket, inside the store.

        Parameters
        ----------
        url : str
            Target; existing objects without a counterpart stay.
        last : str
            File that is copied after all others; it must not exist before.
        check : callable
            Called before every file is copied; an exception ends the copying.

        Raises
        ------
        BuildError
            If another process wrote the last file there meanwhile.
        OptionError
            If it is in a different bucket.
        FileNotFoundError, WriteError
            As `copcube.files.objects.stores.asking`.
        """
        other = ObjectFolder(url)
        if split(url)[0] != split(self._url)[0]:
            raise OptionError(f"{url}: expected an address in the bucket of {self._url}")

        def copy(name: str) -> None:
            check()
            store, key = locate(self._at(name))
            with asking(self._at(name), WriteError):
                store.copy(key, locate(other._at(name))[1])

        names = [entry.name for entry in listing(self._url)]
        list(pool().map(copy, (name for name in names if name != last)))
        check()
        data = self.read(last)
        # The same bytes may come from this copy itself, if its answer was lost.
        if not other.create(last, data) and other.read(last) != data:
            raise BuildError(f"{url}: another process wrote a cube there meanwhile")

    def lock(
        self, *, shared: bool = False, beat: float = BEAT, dead: float = DEAD
    ) -> AbstractContextManager[Lock]:
        """See `Folder`."""
        return hold(ObjectLockFiles(self._url), self._url, shared=shared, beat=beat, dead=dead)

    def _at(self, name: str) -> str:
        return f"{self._url}/{name}" if name else self._url
