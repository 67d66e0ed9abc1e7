"""Lazy variables in pieces of many chunks, each of which is written at once.

A dask task, and a call of zarr or netCDF, takes some milliseconds for each chunk, whatever is in
it: the maps of a cube, in 512 chunks of a few kilobytes, would take seconds.
"""

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import xarray as xr

_BYTES = 1 << 25
"""Of a piece; a chunk that is larger is one."""


def in_pieces(ds: "xr.Dataset") -> "xr.Dataset":
    """Join chunks that lie beside each other, of all variables that are lazy.

    Parameters
    ----------
    ds : xarray.Dataset
        With chunks of any lengths.

    Returns
    -------
    xarray.Dataset
        The same with fewer chunks, which end where chunks of `chunk_lengths` do.
    """
    lazy = {name: v for name, v in ds.variables.items() if v.chunks is not None}
    return ds.assign({name: ds[name].chunk(_pieces(variable)) for name, variable in lazy.items()})


def chunk_lengths(variable: "xr.Variable") -> tuple[int, ...]:
    """Lengths of the chunks of a lazy variable: those of the largest along each dimension."""
    return tuple(max(along) for along in variable.chunks or ())


def _pieces(variable: "xr.Variable") -> dict[Any, int]:
    lengths = chunk_lengths(variable)
    room = _BYTES // max(1, math.prod(lengths) * variable.dtype.itemsize)
    pieces = {}
    # Along the last dimension first, whose chunks lie beside each other in files.
    for dim, length in reversed([*zip(variable.dims, lengths, strict=True)]):
        number = max(1, min(room, -(-variable.sizes[dim] // max(1, length))))
        pieces[dim] = number * length
        room //= number
    return pieces
