"""Reading single cells out of a chunked field."""

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from copcube.cube.view import CubeView
from copcube.grid import Integers

if TYPE_CHECKING:
    import xarray as xr

Wanted = dict[tuple[int, int], tuple[Integers, Integers]]
"""Rows and columns within a chunk, by its position among the chunks."""


def gathered(view: CubeView, array: "xr.DataArray", i: Integers, j: Integers) -> NDArray[Any]:
    """Read values of cells; each chunk that holds some is read once, and no other.

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
    found = np.full((len(i), *array.shape[2:]), nothing, array.dtype)
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
    read = _by_dask if array.chunks is not None else _by_slices
    for of_chunk, values in zip(asked, read(array, wanted, starts), strict=True):
        found[of_chunk] = values
    return found


def _chunks(array: "xr.DataArray") -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Sizes of chunks along latitude and longitude: of dask, or in the file."""
    if array.chunks is not None:
        return array.chunks[0], array.chunks[1]
    stored = array.encoding.get("preferred_chunks", {})
    sizes = []
    for dim, size in zip(array.dims[:2], array.shape[:2], strict=True):
        step = int(stored.get(dim, size)) or 1
        sizes.append(tuple(min(step, size - start) for start in range(0, size, step)))
    return sizes[0], sizes[1]


def _by_slices(array: "xr.DataArray", wanted: Wanted, starts: list[Integers]) -> Any:
    variable = array.variable
    for chunk, where in wanted.items():
        rows, cols = (slice(int(s[n]), int(s[n + 1])) for s, n in zip(starts, chunk, strict=True))
        yield variable[rows, cols].values[where]


def _by_dask(array: "xr.DataArray", wanted: Wanted, starts: list[Integers]) -> Any:
    from dask.base import compute_as_if_collection

    # Vectors in one piece each: then a block of the array is a chunk of cells.
    data = array.data.rechunk(dict.fromkeys(range(2, array.ndim), -1))
    taken = data.map_blocks(partial(_take, wanted=wanted), dtype=data.dtype, meta=data._meta)
    # As `dask.compute` does, without a collection for every chunk.
    keys = [(taken.name, *where, *[0] * (array.ndim - 2)) for where in wanted]
    return compute_as_if_collection(type(taken), taken.__dask_graph__(), keys)


def _take(block: NDArray[Any], wanted: Wanted, block_id: tuple[int, ...]) -> NDArray[Any]:
    """Values of the cells that are wanted of a chunk."""
    taken: NDArray[Any] = block[wanted[block_id[:2]]]
    return taken
