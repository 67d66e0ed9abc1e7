"""Lazy variables in pieces of many chunks, each written at once.

A dask task, or a call to zarr or netCDF, takes some milliseconds per chunk of any size: the maps of
a cube, in 512 chunks of a few kilobytes, would take seconds.
"""

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import xarray as xr

_BYTES = 1 << 25
"""Bytes of a piece; a larger chunk is a piece by itself."""


def in_pieces(ds: "xr.Dataset") -> "xr.Dataset":
    """Join neighbouring chunks of all lazy variables.

    Parameters
    ----------
    ds : xarray.Dataset
        Dataset with chunks of any lengths.

    Returns
    -------
    xarray.Dataset
        The same with fewer chunks, which end where chunks of `chunk_lengths` do.
    """
    lazy = {name: v for name, v in ds.variables.items() if v.chunks is not None}
    return ds.assign({name: ds[name].chunk(_pieces(variable)) for name, variable in lazy.items()})


def chunk_lengths(variable: "xr.Variable") -> tuple[int, ...]:
    """Chunk lengths of a lazy variable: the largest along each dimension."""
    return tuple(max(along) for along in variable.chunks or ())


def _pieces(variable: "xr.Variable") -> dict[Any, int]:
    lengths = chunk_lengths(variable)
    room = _BYTES // max(1, math.prod(lengths) * variable.dtype.itemsize)
    pieces = {}
    # The last dimension comes first: its chunks are adjacent in files.
    for dim, length in reversed([*zip(variable.dims, lengths, strict=True)]):
        number = max(1, min(room, -(-variable.sizes[dim] // max(1, length))))
        pieces[dim] = number * length
        room //= number
    return pieces
