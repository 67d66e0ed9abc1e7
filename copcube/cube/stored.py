"""Reading only the stored chunks of a cube.

Most of the globe is sea, whose chunks are not stored. zarr looks for each of them, which costs a
request each if the cube is at an address.
"""

import itertools
from collections.abc import Iterator
from contextlib import closing, suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from copcube.cube.chunks import Chunks
from copcube.cube.store import chunk_name
from copcube.errors import CubeError, StorageError
from copcube.files.damage import UNDECODABLE
from copcube.files.folders import open_folder
from copcube.files.limits import rule_out_shortage
from copcube.files.objects import is_remote
from copcube.lookahead import map_ahead

UNREADABLE = (OSError, *UNDECODABLE)
"""Exceptions raised by reading a damaged chunk."""

_REQUESTS = 8
"""Chunks of a store requested at once."""


class StoredChunks:
    """Read parts of a cube's arrays; list its files once.

    Parameters
    ----------
    path : str or Path
        The cube.
    """

    def __init__(self, path: str | Path) -> None:
        self._folder = open_folder(path)
        self._forms: dict[str, Chunks | None] = {}
        self._threads = _REQUESTS if is_remote(path) else 0
        # A listing names a thousand chunks per request; each absent chunk would cost one. None for
        # web servers, and for buckets whose files may be read but not listed.
        self._stored: set[str] | None = None
        with suppress(StorageError):
            self._stored = set(self._folder.names())

    def may_hold(self, array: Any, index: tuple[int, ...]) -> bool:
        """Whether a chunk is stored, or may be, if nothing can be listed."""
        return self._stored is None or chunk_name(array, index) in self._stored

    def windows(
        self, array: Any, part: tuple[slice, ...]
    ) -> Iterator[tuple[tuple[int, ...], tuple[slice, ...], NDArray[Any] | Exception]]:
        """Read the stored chunks of a part of an array, one by one.

        Parameters
        ----------
        array : zarr.Array
            Of the cube.
        part : tuple of slice
            With both ends, for each dimension.

        Yields
        ------
        index : tuple of int
            Index of a chunk that overlaps the part.
        window : tuple of slice
            Position of its values in the part.
        values : numpy.ndarray or Exception
            Its values there, or an exception of `UNREADABLE` if it is damaged.
        """
        form = self.form(array)
        windows = [w for w in overlapping(array, part) if self.may_hold(array, w[0])]
        with closing(map_ahead(partial(self._read, form, array), windows, self._threads)) as found:
            for (index, window), values in zip(windows, found, strict=True):
                if values is not None:
                    here = tuple(
                        slice(a.start - b.start, a.stop - b.start)
                        for a, b in zip(window, part, strict=True)
                    )
                    yield index, here, values

    def values(self, array: Any) -> Iterator[tuple[tuple[slice, ...], NDArray[Any]]]:
        """Read the stored chunks of a whole map, (…, lat, lon), in parts.

        Parameters
        ----------
        array : zarr.Array
            Of the cube.

        Yields
        ------
        window : tuple of slice
            A part of the array.
        values : numpy.ndarray
            Its values.

        Raises
        ------
        OSError, ValueError, RuntimeError
            What zarr raises if a chunk is damaged.
        """
        whole = tuple(slice(0, n) for n in array.shape)
        if self._stored is None:
            # zarr requests many chunks at once; one by one, each would wait for its answer. Groups
            # or modalities are read one after the other, since all may take 400 MB.
            first = range(array.shape[0] if array.ndim > 2 else 0)
            for window in [(slice(i, i + 1), *whole[1:]) for i in first] or [whole]:
                yield window, np.asarray(array[window])
            return
        for _, window, found in self.windows(array, whole):
            # zarr meets the damage again, and `naming_damage` finds the chunk in its error.
            yield window, np.asarray(array[window]) if isinstance(found, Exception) else found

    def form(self, array: Any) -> Chunks | None:
        """How chunks are stored, if listed and copcube's, so that they can be decoded here."""
        if self._stored is None:
            return None
        if array.path not in self._forms:
            try:
                about = self._folder.read(f"{array.path}/zarr.json")
                self._forms[array.path] = Chunks.of(array.path, about)
            except (FileNotFoundError, CubeError):
                self._forms[array.path] = None
        return self._forms[array.path]

    def _read(
        self, form: Chunks | None, array: Any, part: tuple[tuple[int, ...], tuple[slice, ...]]
    ) -> NDArray[Any] | Exception | None:
        """Values of a window of a chunk, or the exception from reading it; None if not stored."""
        index, window = part
        try:
            if form is None:
                return np.asarray(array[window])
            data = self._folder.read(chunk_name(array, index))
            starts = [i * c for i, c in zip(index, form.chunks, strict=True)]
            inside = (slice(w.start - s, w.stop - s) for w, s in zip(window, starts, strict=True))
            return form.unpack(data)[tuple(inside)]
        except FileNotFoundError:
            return None
        except UNREADABLE as error:
            rule_out_shortage(error)
            return error


def overlapping(
    array: Any, part: tuple[slice, ...]
) -> Iterator[tuple[tuple[int, ...], tuple[slice, ...]]]:
    """Chunks that overlap a part of an array, and the window of each in the part."""
    ranges = [range(k.start // c, -(-k.stop // c)) for k, c in zip(part, array.chunks, strict=True)]
    for index in itertools.product(*ranges):
        yield (
            index,
            tuple(
                slice(max(i * c, k.start), min((i + 1) * c, k.stop))
                for i, c, k in zip(index, array.chunks, part, strict=True)
            ),
        )
