"""Affine maps of vectors, cell by cell and block by block of the lattice; lazily where they are."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from copcube import grid
from copcube.cube.view import present
from copcube.files.processors import available_processors
from copcube.grid import Floats
from copcube.lookahead import map_ahead
from copcube.pca.blas import one_thread

if TYPE_CHECKING:
    import xarray as xr

THREADS = min(available_processors(), 8)
"""Blocks at work at once; each takes some 20 MB."""


@dataclass(frozen=True, eq=False)
class Affine:
    """The map ``(x - before) @ matrix + after``, in float64, of vectors that are finite.

    Parameters
    ----------
    before, after : numpy.ndarray
        (n,) and (size,) float64.
    matrix : numpy.ndarray
        (n, size) float64.
    zeros_allowed : bool
        Whether a vector of zeros is one, rather than an error.
    means, slopes : numpy.ndarray, optional
        (p,) and (p, size) float64. With them the map adds ``(g - means) @ slopes``, where g
        are p further values of the cell; the result is NaN where one of them is.
    """

    before: Floats
    matrix: Floats
    after: Floats
    zeros_allowed: bool = True
    means: Floats | None = None
    slopes: Floats | None = None

    def __call__(self, x: NDArray[Any], g: NDArray[Any] | None = None) -> NDArray[np.float32]:
        """Map vectors, (…, n), with their further values, (…, p), to (…, size)."""
        result = np.full((*x.shape[:-1], self.matrix.shape[1]), np.nan, np.float32)
        filled = present(x, zeros_allowed=self.zeros_allowed)
        if g is not None:
            g = np.broadcast_to(g, (*x.shape[:-1], g.shape[-1]))
            filled = filled & np.isfinite(g).all(axis=-1)
        if filled.any():
            y = x[filled].astype(np.float64)
            y -= self.before
            # Threads of BLAS would compete with the threads that call this.
            with one_thread():
                y = y @ self.matrix + self.after
                if g is not None and self.means is not None and self.slopes is not None:
                    y += (g[filled].astype(np.float64) - self.means) @ self.slopes
            result[filled] = y
        return result


def map_vectors(
    field: "xr.DataArray", function: Affine, name: str, beside: NDArray[Any] | None = None
) -> "xr.DataArray":
    """Map vectors, (…, lat, lon, n), to such along a dimension `name`; lazily if dask-backed.

    Blocks are the same for every kind of array, so that matrix products in them are. `beside`,
    (lat, lon, p), holds the further values of the cells, the same for all groups.
    """
    import xarray as xr

    *lead, n_lat, n_lon, _ = field.shape
    size = function.matrix.shape[1]
    shape, values = (*lead, n_lat, n_lon, size), field.variable
    if field.chunks is not None:
        import dask.array as da

        # One block of a user's chunks could be the whole cube; and bits depend on the blocks.
        data = field.data.rechunk((*(1 for _ in lead), grid.BLOCK, grid.BLOCK, -1))
        arrays = [data]
        if beside is not None:
            arrays.append(da.from_array(beside, (*data.chunks[-3:-1], beside.shape[-1])))  # type: ignore[no-untyped-call]
        result = da.map_blocks(  # type: ignore[no-untyped-call]
            function,
            *arrays,
            dtype=np.float32,
            chunks=(*data.chunks[:-1], (size,)),
            # Without it dask calls the function with empty arrays, to see what it returns.
            meta=np.empty((0,) * len(shape), np.float32),
        )
    else:
        result = np.empty(shape, np.float32)
        # The blocks that dask is given above.
        parts = [
            (*group, slice(i, i + grid.BLOCK), slice(j, j + grid.BLOCK))
            for group in np.ndindex(*lead)
            for i in range(0, n_lat, grid.BLOCK)
            for j in range(0, n_lon, grid.BLOCK)
        ]

        def mapped(part: Any) -> NDArray[np.float32]:
            g = None if beside is None else beside[part[-2:]]
            return function(values[part].values, g)

        for part, block in zip(
            parts, map_ahead(mapped, parts, THREADS, ahead=2 * THREADS), strict=True
        ):
            result[part] = block
    return xr.DataArray(result, dims=(*field.dims[:-1], name))
