"""A bucket in the memory of this process, behind the addresses ``s3://bucket/…``."""

from collections.abc import AsyncIterator
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
from obstore.store import MemoryStore
from zarr.abc.store import Store
from zarr.storage import ObjectStore, WrapperStore

from copcube.files.objects import stores


class Memory(MemoryStore):
    """Memory whose objects may be listed while other threads write.

    Before obstore 0.12 its own `list` keeps the interpreter to itself while it waits for a
    writer, who may wait for the interpreter; listing folder by folder does not.
    """

    __module__ = MemoryStore.__module__  # by which zarr knows obstore's

    def list(self, prefix=None):
        return SimpleNamespace(collect=lambda: self.below(prefix))

    def below(self, prefix):
        """Describe all objects below a prefix, ``None`` for those of the whole store."""
        objects, folders = [], [prefix]
        while folders:
            found = self.list_with_delimiter(folders.pop())
            objects += found["objects"]
            folders += found["common_prefixes"]
        return objects


class _Below(WrapperStore):
    """What lies below a prefix of a store: obstore's memory has no prefixes of its own."""

    def __init__(self, store, prefix=""):
        super().__init__(store)
        self.prefix = f"{prefix}/" if prefix else ""

    def _with_store(self, store):
        return type(self)(store, self.prefix.rstrip("/"))

    def with_read_only(self, read_only=False):  # which WrapperStore of zarr 3.1 lacks
        return self._with_store(self._store.with_read_only(read_only))

    def __eq__(self, other):
        return super().__eq__(other) and self.prefix == other.prefix

    __hash__ = None
    _get_many, _set_many = Store._get_many, Store._set_many
    is_empty, clear, delete_dir = Store.is_empty, Store.clear, Store.delete_dir

    async def get(self, key, prototype=None, byte_range=None):
        return await super().get(self.prefix + key, prototype, byte_range)

    async def get_partial_values(self, prototype, key_ranges):
        return [await self.get(key, prototype, span) for key, span in key_ranges]

    async def exists(self, key):
        return await super().exists(self.prefix + key)

    async def set(self, key, value):
        await super().set(self.prefix + key, value)

    async def set_if_not_exists(self, key, value):
        await super().set_if_not_exists(self.prefix + key, value)

    async def delete(self, key):
        await super().delete(self.prefix + key)

    async def list(self) -> AsyncIterator[str]:
        async for key in self.list_prefix(""):
            yield key

    async def list_prefix(self, prefix) -> AsyncIterator[str]:
        below = (self.prefix + prefix).strip("/")
        for found in self._store.store.below(below or None):
            yield found["path"].removeprefix(self.prefix)

    async def list_dir(self, prefix) -> AsyncIterator[str]:
        # Not by the store's own, which strips too much of names in zarr 3.1.
        prefix = prefix and f"{prefix.rstrip('/')}/"
        keys = [key.removeprefix(prefix) async for key in self.list_prefix(prefix)]
        for name in dict.fromkeys(key.partition("/")[0] for key in keys):
            yield name


@contextmanager
def memory_bucket():
    """Make all addresses of object stores lead to an empty memory; gives that of the bucket."""
    memory = Memory()

    def zarr_store(url):
        return _Below(ObjectStore(memory), stores.split(url)[1].strip("/"))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stores, "_store", lambda root: memory)
        patch.setattr("copcube.cube.store.zarr_store", zarr_store)
        yield "s3://bucket"
