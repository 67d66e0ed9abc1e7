"""Reading single cells of a chunked field."""

from collections.abc import Hashable
from functools import partial
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray

from copcube.cube.presence import present
from copcube.cube.view import CubeView
from copcube.cube.whole import opened, scheduled_here
from copcube.files.processors import available_processors
from copcube.grid import Integers
from copcube.lookahead import map_ahead

if TYPE_CHECKING:
    import xarray as xr

Wanted = dict[tuple[int, int], tuple[Integers, Integers]]
"""Rows and columns within a chunk, by its position among the chunks."""


def gathered(view: CubeView, array: "xr.DataArray", i: Integers, j: Integers) -> NDArray[Any]:
    """Read values of cells; read each chunk that holds some once, and no others.

    Parameters
    ----------
    view : CubeView
        A cube.
    array : xarray.DataArray
        A field of it, along its latitude and longitude.
    i, j : numpy.ndarray
        (n,) positions along latitude and longitude; both -1 for no cell.

    Returns
    -------
    numpy.ndarray
        (n, …) values, with the other dimensions in their order; NaN, or 0, for no cell.
    """
    array = array.transpose(view.lat, view.lon, ...)
    nothing = np.nan if array.dtype.kind == "f" else np.zeros((), array.dtype)[()]
    found = np.empty((len(i), *array.shape[2:]), array.dtype)
    found[i < 0] = nothing
    inside = np.flatnonzero(i >= 0)
    starts = [np.append(0, np.cumsum(sizes)) for sizes in _chunks(array)]
    b, c = (
        np.searchsorted(start[1:], at[inside], side="right")
        for start, at in zip(starts, (i, j), strict=True)
    )
    order = np.lexsort((c, b))
    b, c, inside = b[order], c[order], inside[order]
    cuts = np.flatnonzero((np.diff(b, prepend=-1) != 0) | (np.diff(c, prepend=-1) != 0))
    asked = np.split(inside, cuts[1:]) if len(cuts) else []
    wanted = {
        (m, n): (i[of_chunk] - starts[0][m], j[of_chunk] - starts[1][n])
        for m, n, of_chunk in zip(b[cuts].tolist(), c[cuts].tolist(), asked, strict=True)
    }
    here = array.chunks is None or scheduled_here(array)
    # Values in a file are read without dask, whose tasks cost half as much as small chunks.
    source = array.variable if array.chunks is None else opened(array)
    if source is None or not here:
        _by_dask(array, wanted, asked, found, here)
        return found

    def read(part: tuple[tuple[tuple[int, int], tuple[Integers, Integers]], Integers]) -> None:
        (chunk, where), of_chunk = part
        rows, cols = (slice(int(s[n]), int(s[n + 1])) for s, n in zip(starts, chunk, strict=True))
        found[of_chunk] = np.asarray(source[rows, cols])[where]

    threads = 0 if array.chunks is None else available_processors()
    for _ in map_ahead(read, zip(wanted.items(), asked, strict=True), threads):
        pass
    return found


def placeless(view: CubeView) -> "dict[Hashable, xr.DataArray]":
    """Coordinates of a cube not along latitude or longitude, which a result keeps."""
    across = {view.lat, view.lon}
    return {key: c for key, c in view.dataset.coords.items() if not across & {*c.dims}}


def gathered_vectors(
    view: CubeView, i: Integers, j: Integers, *, zeros_allowed: bool
) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Read vectors of cells, (n, …, dim), and find which cells have one, (n, …).

    Parameters and errors are those of `gathered` and of `copcube.cube.presence.present`.
    """
    vectors = gathered(view, view.field, i, j)
    there = present(vectors, zeros_allowed=zeros_allowed)
    if view.images is not None:
        there &= gathered(view, view.images, i, j) > 0
    return vectors, there


def _chunks(array: "xr.DataArray") -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Sizes of chunks along latitude and longitude, in dask or in the file."""
    if array.chunks is not None:
        return array.chunks[0], array.chunks[1]
    stored = array.encoding.get("preferred_chunks", {})
    sizes = []
    for dim, size in zip(array.dims[:2], array.shape[:2], strict=True):
        step = int(stored.get(dim, size)) or 1
        sizes.append(tuple(min(step, size - start) for start in range(0, size, step)))
    return sizes[0], sizes[1]


def _by_dask(
    array: "xr.DataArray",
    wanted: Wanted,
    asked: list[Integers],
    found: NDArray[Any],
    here: bool,
) -> None:
    """Write values of cells to `found`, with one task per chunk that holds some."""
    from dask.base import compute_as_if_collection
    from dask.highlevelgraph import HighLevelGraph

    # Vectors are kept in one piece: then a block of the array is a chunk of cells.
    data = array.data.rechunk(dict.fromkeys(range(2, array.ndim), -1))
    # dask treats equal names as the same array, hence a unique name.
    name, rest = f"cells-{uuid4().hex}", (0,) * (array.ndim - 2)
    # Threads of this process write values in place; workers must send them.
    task = partial(_put, found) if here else _taken
    layer: dict[Any, Any] = {
        (name, *chunk): (task, (data.name, *chunk, *rest), *where, of_chunk)
        for (chunk, where), of_chunk in zip(wanted.items(), asked, strict=True)
    }
    graph = HighLevelGraph.from_collections(name, layer, dependencies=[data])
    scheduler = "threads" if here else None
    values = compute_as_if_collection(  # type: ignore[no-untyped-call]
        type(data), graph, [*layer], scheduler=scheduler
    )
    if not here:
        for of_chunk, of_each in zip(asked, values, strict=True):
            found[of_chunk] = of_each


def _taken(block: NDArray[Any], rows: Integers, cols: Integers, _: Integers) -> NDArray[Any]:
    taken: NDArray[Any] = block[rows, cols]
    return taken


def _put(
    found: NDArray[Any], block: NDArray[Any], rows: Integers, cols: Integers, where: Integers
) -> None:
    found[where] = block[rows, cols]
