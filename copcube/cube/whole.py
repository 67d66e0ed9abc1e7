"""Reading a map at once, however many chunks it has.

A map of a cube, such as ``n_images``, has few numbers in 544 chunks, so that it can be divided with
the vectors. A dask task per chunk costs four times what zarr needs to read them all.
"""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import xarray as xr

_BYTES = 64 * 2**20
"""Most bytes read at once; the counts of twelve months take 50 MB."""


def at_once(array: "xr.DataArray") -> "xr.DataArray":
    """Read an array without dask, if it is exactly what is in a file.

    Parameters
    ----------
    array : xarray.DataArray
        In memory, or lazy.

    Returns
    -------
    xarray.DataArray
        The same in memory, if xarray opened it, it was not changed since, and it takes at most 64
        MB; otherwise the array itself, which dask computes when used.
    """
    source = opened(array) if array.nbytes <= _BYTES else None
    return array if source is None else array.copy(data=np.asarray(source))


def once(array: "xr.DataArray") -> "xr.DataArray":
    """Read as `at_once`, for several uses: compute once what dask would compute each time."""
    read = at_once(array)
    return read.compute() if read.nbytes <= _BYTES else read


def with_maps(ds: "xr.Dataset", names: Iterable[str]) -> "xr.Dataset":
    """Read, as `once` does, those maps of a dataset that several functions use, if it has them."""
    return ds.assign({name: once(ds[name]) for name in names if name in ds})


def in_parts(array: "xr.DataArray", dim: str) -> "Iterator[xr.DataArray]":
    """Divide a larger array along a dimension into parts, each read as by `at_once`.

    Parameters
    ----------
    array : xarray.DataArray
        In memory, or lazy.
    dim : str
        Dimension along which it may be divided, between chunks.

    Yields
    ------
    xarray.DataArray
        Parts in memory of at most 64 MB, or of one row of chunks; the array itself if it is not
        exactly what is in a file.
    """
    source = opened(array)
    if source is None:
        yield array
        return
    chunk, length = max(array.chunksizes[dim]), array.sizes[dim]
    step = max(1, _BYTES * length // max(1, array.nbytes * chunk)) * chunk
    for start in range(0, length, step):
        some = slice(start, start + step)
        values = np.asarray(source[tuple(some if d == dim else slice(None) for d in array.dims)])
        yield array.isel({dim: some}).copy(data=values)


def opened(array: "xr.DataArray") -> Any:
    """Return the source of a lazy array, if it is exactly what is in a file, else None.

    The source takes slices, which NumPy can read, on any thread.
    """
    if array.chunks is None:
        return None
    lazy: Any = array.variable._data
    # dask keeps an array's source under this name, in its own layer, and gives everything computed
    # from it another name.
    source = f"original-{lazy.name}"
    layer = lazy.dask.layers.get(source)
    return None if layer is None else layer[source]


def scheduled_here(array: "xr.DataArray") -> bool:
    """Whether threads of this process, not workers, compute a lazy array.

    With ``scheduler="processes"`` they do too: dask would start a pool of processes for each of
    many parts.
    """
    import dask.multiprocessing
    import dask.threaded
    from dask.base import get_scheduler

    scheduler = get_scheduler(cls=type(array.data))  # type: ignore[no-untyped-call]
    return scheduler in (dask.threaded.get, dask.multiprocessing.get)


def part_of(array: "xr.DataArray", part: tuple[Any, ...]) -> NDArray[Any]:
    """Compute one of many parts of an array, where `scheduled_here` says."""
    if array.chunks is None:
        return np.asarray(array.variable[part].values)
    scheduler = "threads" if scheduled_here(array) else None
    return np.asarray(array.variable[part].compute(scheduler=scheduler).values)
