"""Lock files in an object store."""

from contextlib import suppress
from typing import Any

from copcube.errors import WriteError
from copcube.files.lock import PREFIX, LockFile
from copcube.files.objects.access import listing
from copcube.files.objects.stores import asking, locate


class ObjectLockFiles:
    """Lock files below an address; see `copcube.files.lock.LockFiles`.

    The store must list what was just written, and must replace an object only if it has the
    requested entity tag, as S3, Google Cloud Storage and the usual servers do.

    Parameters
    ----------
    url : str
        The folder.
    """

    def __init__(self, url: str) -> None:
        self._url = url

    def create(self, name: str, data: bytes) -> None:
        """See `LockFiles`."""
        store, key = locate(f"{self._url}/{name}")
        with asking(self._url, WriteError):
            store.put(key, data)

    def names(self) -> list[str]:
        """See `LockFiles`."""
        names = (entry.name for entry in listing(self._url, deep=False))
        return [name for name in names if name.startswith(PREFIX)]

    def read(self, name: str) -> LockFile | None:
        """See `LockFiles`."""
        store, key = locate(f"{self._url}/{name}")
        try:
            with asking(self._url):
                found = store.get(key)
                data = found.bytes().to_bytes()
        except FileNotFoundError:
            return None
        # S3 compares entity tags, Google Cloud Storage version numbers.
        version = {key: found.meta[key] for key in ("e_tag", "version") if found.meta[key]}
        return LockFile(data, found.meta["last_modified"].timestamp(), version)

    def renew(self, name: str, data: bytes, version: Any) -> None:
        """See `LockFiles`."""
        self.replace(name, data, version)

    def replace(self, name: str, data: bytes, version: Any) -> bool:
        """See `LockFiles`."""
        from obstore.exceptions import PreconditionError

        store, key = locate(f"{self._url}/{name}")
        try:
            with asking(self._url, WriteError):
                store.put(key, data, mode=version)
        except (PreconditionError, FileNotFoundError):
            return False
        return True

    def remove(self, name: str) -> None:
        """See `LockFiles`."""
        store, key = locate(f"{self._url}/{name}")
        with suppress(FileNotFoundError), asking(self._url, WriteError):
            store.delete(key)
