"""Reading a map at once, in whatever number of chunks it lies.

A map of a cube, such as ``n_images``, has few numbers in 544 chunks, so that it can be divided
with the vectors. A dask task for each chunk costs four times what zarr needs to read them all.
"""

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import xarray as xr

_BYTES = 64 * 2**20
"""Most that is read at once; the counts of twelve months take 50 MB."""


def at_once(array: "xr.DataArray") -> "xr.DataArray":
    """Read an array past dask, if it is just what lies in a file.

    Parameters
    ----------
    array : xarray.DataArray
        In memory, or lazy.

    Returns
    -------
    xarray.DataArray
        The same in memory, if xarray opened it, nothing was done to it since, and it takes
        64 MB at most; otherwise the array itself, which dask computes when it is used.
    """
    source = opened(array) if array.nbytes <= _BYTES else None
    return array if source is None else array.copy(data=np.asarray(source))


def opened(array: "xr.DataArray") -> Any:
    """Return what a lazy array was made of, if it is just what lies in a file, else None.

    It takes slices, and NumPy reads what they give; any thread may do so.
    """
    if array.chunks is None:
        return None
    lazy: Any = array.variable._data
    # dask keeps what an array was made of under this name, in a layer of its own, and gives
    # everything that is computed from it another name.
    source = f"original-{lazy.name}"
    layer = lazy.dask.layers.get(source)
    return None if layer is None else layer[source]
