"""Affine maps of vectors by cells and blocks of the lattice, lazy if the vectors are."""

from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from copcube import grid
from copcube.cube.presence import present
from copcube.files.processors import THREADS
from copcube.grid import Floats
from copcube.lookahead import map_ahead
from copcube.pca.blas import one_thread

if TYPE_CHECKING:
    import xarray as xr


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

    def __call__(
        self,
        x: NDArray[Any],
        counted: NDArray[np.bool_] | None = None,
        g: NDArray[Any] | None = None,
    ) -> NDArray[np.float32]:
        """Map vectors, (…, n), with their further values, (…, p), to (…, size)."""
        result = np.full((*x.shape[:-1], self.matrix.shape[1]), np.nan, np.float32)
        filled = present(x, zeros_allowed=self.zeros_allowed)
        if counted is not None:
            filled = filled & counted
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
    field: "xr.DataArray",
    function: Affine,
    name: str,
    counts: NDArray[np.bool_] | None = None,
    beside: NDArray[Any] | None = None,
) -> "xr.DataArray":
    """Map vectors, (…, lat, lon, n), to such along a dimension `name`; lazily if dask-backed.

    Blocks are the same for every kind of array, so that matrix products in them are. Where
    `counts`, (…, lat, lon), says that there is no vector the result is NaN, and blocks without
    any are not read. `beside`, (lat, lon, p), holds the further values of the cells, the same for
    all groups.
    """
    import xarray as xr

    # One block of a user's chunks could be the whole cube; and bits depend on the blocks.
    steps = (*(1 for _ in field.shape[:-3]), grid.BLOCK, grid.BLOCK)
    spans = [_spans(n, step) for n, step in zip(field.shape[:-1], steps, strict=True)]
    parts = list(product(*spans))
    size, dims = function.matrix.shape[1], (*field.dims[:-1], name)

    def given(part: Any) -> tuple[NDArray[np.bool_] | None, NDArray[Any] | None]:
        return (
            None if counts is None else counts[part],
            None if beside is None else beside[part[-2:]],
        )

    def there(part: Any) -> bool:
        return counts is None or bool(counts[part].any())

    if field.chunks is None:
        result = np.full((*field.shape[:-1], size), np.nan, np.float32)
        parts = [part for part in parts if there(part)]

        def mapped(part: Any) -> NDArray[np.float32]:
            return function(field.variable[part].values, *given(part))

        blocks = map_ahead(mapped, parts, THREADS, ahead=2 * THREADS)
        for part, block in zip(parts, blocks, strict=True):
            result[part] = block
        return xr.DataArray(result, dims=dims)

    import dask.array as da
    from dask.base import tokenize
    from dask.highlevelgraph import HighLevelGraph

    chunks = [tuple(span.stop - span.start for span in along) for along in spans]
    data = field.data.rechunk((*chunks, -1))
    key = f"map_vectors-{tokenize(data.name, function, counts, beside)}"
    # A graph of its own: `dask.array.map_blocks` would read all blocks.
    tasks: dict[Any, Any] = {}
    for index, part in zip(np.ndindex(*map(len, spans)), parts, strict=True):
        if there(part):
            tasks[(key, *index, 0)] = (function, (data.name, *index, 0), *given(part))
        else:
            shape = (*(span.stop - span.start for span in part), size)
            tasks[(key, *index, 0)] = (np.full, shape, np.nan, np.float32)
    graph = HighLevelGraph.from_collections(key, tasks, dependencies=[data])
    lazy = da.Array(graph, key, (*chunks, (size,)), np.float32)  # type: ignore[no-untyped-call]
    return xr.DataArray(lazy, dims=dims)


def _spans(size: int, step: int) -> list[slice]:
    """Cut a dimension into blocks."""
    return [slice(start, min(start + step, size)) for start in range(0, max(size, 1), step)]
