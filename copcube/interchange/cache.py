"""Decoded maps in the user's cache folder, as Zarr.

Some formats cannot be read in part: a deflated npz, a table of averages in any order, a GeoTIFF
whose tiles hold all bands. Such a map is decoded once, when its vectors are first read, into a Zarr
array of 45 × 45 cells a chunk, and is read from there, by this process and by others.

    COPCUBE_CACHE/HASH.zarr      (721, 1440, D) float32, NaN where missing, rows and columns as
                                 in the file

Its chunks are not compressed; they are read and written here, without zarr. HASH depends on path,
size and modification time of the map's files, so that a changed file is decoded again, and on
`_DECODER`. The `KEEP` most recently used entries are kept.
"""

import hashlib
import json
import logging
import os
import shutil
import sys
import threading
import uuid
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from copcube import grid
from copcube.errors import CubeError, WriteError
from copcube.files.atomic import writing
from copcube.files.objects import is_remote, version
from copcube.grid import Integers

log = logging.getLogger("copcube")

FilledCells = tuple[Integers, Integers, NDArray[np.float32]]
"""Rows and columns of cells that hold a vector, (n,), and their vectors, (n, D)."""

KEEP = 8
"""Entries kept. The published map takes 1 to 2 GB."""

_CHUNKS = "copcube_chunks"
_DECODER = "2 "
"""Version of the decoder; changes if missing cells are recognised differently."""
_TRIES = 3
_DECODING = threading.Lock()
"""Held while a map is decoded, so that only one thread of a process does it."""


def cache_folder() -> Path:
    """Folder of the decoded maps: ``COPCUBE_CACHE``, or the platform's folder for caches."""
    if named := os.environ.get("COPCUBE_CACHE"):
        return Path(named).expanduser()  # a shell does not always expand ~
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or "~/AppData/Local"
    elif sys.platform == "darwin":
        base = "~/Library/Caches"
    else:
        base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "copcube"


_REMEDY = (
    "set COPCUBE_CACHE to a folder with room for the decoded map (1 to 2 GB for the published one)"
)


class DecodedMap:
    """A map in the cache, decoded when it is first read.

    Parameters
    ----------
    files, versions : sequence of str
        Files that the map is read from, and their `versions` when it was opened.
    dim : int
        Length of its vectors.
    cells : callable
        Decodes the files: yields all filled cells, each once, in any order.
    """

    def __init__(
        self,
        files: Sequence[str],
        versions: Sequence[str],
        dim: int,
        cells: Callable[[], Iterable[FilledCells]],
    ) -> None:
        self._files, self._versions = tuple(files), tuple(versions)
        self._dim, self._cells = dim, cells

    def read(self, rows: Any, cols: Any, dims: Any) -> NDArray[np.float32]:
        """Read the cells where rows and columns cross, (rows, cols, dims) float32.

        Raises
        ------
        WriteError
            If the cache cannot be written.
        CopcubeError
            As `cells`, when the map has to be decoded.
        """
        entry = self._entry()
        for _ in range(_TRIES):
            with suppress(FileNotFoundError, NotADirectoryError):
                number = _number_of_chunks(str(entry))
                values = _read(entry, self._dim, rows, cols, dims)
                # An absent chunk stands for missing cells, and cache cleaners remove files, so a
                # reader checks that all exist.
                if number == _stored(entry):
                    return values
            self._decode(entry)
        raise WriteError(f"{entry} is removed each time it is made; {_REMEDY}")

    def _entry(self) -> Path:
        text = _DECODER + "\n".join(self._versions)
        return cache_folder() / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.zarr"

    def _decode(self, entry: Path) -> None:
        """Make the entry, unless another thread just did."""
        import zarr

        with _DECODING:
            if _whole(entry):
                return
            _remove(entry)
            temporary = entry.with_name(f".{uuid.uuid4().hex}")
            log.info("%s is decoded once into %s", ", ".join(self._files), entry)
            try:
                with writing(f"{entry} ({_REMEDY})"):
                    entry.parent.mkdir(parents=True, exist_ok=True)
                    array = zarr.create_array(
                        temporary,
                        shape=(grid.N_LAT, grid.N_LON, self._dim),
                        chunks=(grid.BLOCK, grid.BLOCK, self._dim),
                        dtype="float32",
                        fill_value=np.nan,
                        compressors=None,  # vectors hardly compress, and are read often
                        chunk_key_encoding={"name": "default", "separator": "."},  # one folder
                    )
                    try:
                        for cells in self._cells():
                            _write(temporary, self._dim, *cells)
                    finally:
                        require_unchanged(self._files, self._versions)
                    array.attrs[_CHUNKS] = _stored(temporary)
                with suppress(OSError):  # another process was faster, with the same entry
                    temporary.rename(entry)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
            _remove_oldest(entry.parent)


def _write(
    folder: Path, dim: int, rows: Integers, cols: Integers, vectors: NDArray[np.float32]
) -> None:
    """Write cells block by block; existing chunks are completed."""
    # Not through zarr, whose overhead for hundreds of chunks exceeds the writing itself.
    block = rows // grid.BLOCK * grid.N_LON + cols // grid.BLOCK
    order = np.argsort(block, kind="stable")
    for part in np.split(order, np.flatnonzero(np.diff(block[order])) + 1):
        if len(part) == 0:
            continue
        i, j = (int(index[part[0]]) // grid.BLOCK for index in (rows, cols))
        values = _chunk(folder, i, j, dim)
        if values is None:
            values = np.full((grid.BLOCK, grid.BLOCK, dim), np.nan, "<f4")
        values[rows[part] % grid.BLOCK, cols[part] % grid.BLOCK] = vectors[part]
        # NumPy's own `tofile` does not say why it could not write.
        (folder / f"c.{i}.{j}.0").write_bytes(values.data)


def _read(folder: Path, dim: int, rows: Integers, cols: Integers, dims: Any) -> NDArray[np.float32]:
    """Read the cells where rows and columns cross; those of absent chunks are NaN."""
    shape = len(rows), len(cols), len(np.arange(dim)[dims])
    values = np.full(shape, np.nan, np.float32)
    for i in np.unique(rows // grid.BLOCK).tolist():
        down = np.flatnonzero(rows // grid.BLOCK == i)
        for j in np.unique(cols // grid.BLOCK).tolist():
            along = np.flatnonzero(cols // grid.BLOCK == j)
            if (chunk := _chunk(folder, i, j, dim)) is not None:
                inside = np.ix_(rows[down] % grid.BLOCK, cols[along] % grid.BLOCK)
                values[np.ix_(down, along)] = chunk[inside][..., dims]
    return values


def _chunk(folder: Path, i: int, j: int, dim: int) -> NDArray[np.float32] | None:
    try:
        values = np.fromfile(folder / f"c.{i}.{j}.0", "<f4")
    except FileNotFoundError:
        return None
    if values.size != grid.BLOCK**2 * dim:
        _remove(folder)  # it was truncated; what is absent is decoded again
        raise FileNotFoundError(folder)
    return values.reshape(grid.BLOCK, grid.BLOCK, dim)


def versions(files: Iterable[str]) -> tuple[str, ...]:
    """Names of files or objects, each with a version that changes with its content."""
    names = ((file, file if is_remote(file) else os.path.abspath(file)) for file in files)
    return tuple(f"{name} {version(file)}" for file, name in names)


def require_unchanged(files: Sequence[str], known: Sequence[str]) -> None:
    """Check that files are those from which a map was opened.

    Raises
    ------
    CubeError
        If one was replaced, changed or removed since.
    """
    for file, then, now in zip(files, known, versions(files), strict=True):
        if then != now:
            raise CubeError(f"{file}: changed or removed since it was opened; open it again")


def _stored(folder: Path) -> int:
    """Count the files of an array's chunks."""
    return sum(name.startswith("c.") for name in os.listdir(folder))


def _whole(entry: Path) -> bool:
    """Whether an entry exists with all its chunks."""
    # The entry opened last may have been removed since.
    _number_of_chunks.cache_clear()
    try:
        return _number_of_chunks(str(entry)) == _stored(entry)
    except (OSError, KeyError):
        return False


@lru_cache(maxsize=64)
def _number_of_chunks(entry: str) -> int:
    attributes = json.loads(Path(entry, "zarr.json").read_bytes())["attributes"]
    os.utime(entry)  # `_remove_oldest` uses it
    return int(attributes[_CHUNKS])


def _remove_oldest(folder: Path) -> None:
    """Remove the least recently used entries beyond `KEEP`."""
    used = {}
    for entry in folder.glob("*.zarr"):
        with suppress(OSError):  # another process may be removing one
            used[entry] = entry.stat().st_mtime
    for entry in sorted(used, key=lambda entry: used[entry], reverse=True)[KEEP:]:
        _remove(entry)


def _remove(entry: Path) -> None:
    """Remove an entry, renaming it first so that no reader finds part of it."""
    trash = entry.with_name(f".{uuid.uuid4().hex}")
    with suppress(OSError):
        entry.rename(trash)
    _number_of_chunks.cache_clear()
    shutil.rmtree(trash, ignore_errors=True)
