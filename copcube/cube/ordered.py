"""Cells in the order of the lattice, for reading a dataset block by block.

Shuffled rows or columns form blocks of single cells. Computing block by block would read, and
multiply, each cell alone.
"""

from collections.abc import Iterator

import numpy as np

from copcube import grid
from copcube.cube.view import CubeView
from copcube.grid import Integers

_BYTES = 1 << 29
"""Bytes of vectors read at once: each chunk of a shuffled dask array needs many others."""
_RUNS = 4
"""Runs of neighbours per block above which cells count as shuffled."""


def ordered(view: CubeView) -> Iterator[tuple[CubeView, Integers, Integers]]:
    """Bring shuffled cells into the order of the lattice, a few rows of blocks at a time.

    Parameters
    ----------
    view : CubeView
        A cube or a reduction.

    Yields
    ------
    view : CubeView
        The dataset itself, or parts of it from north to south and from 0°E, in memory.
    rows, cols : numpy.ndarray
        Their positions along latitude and longitude of the dataset.
    """
    y, x = (np.asarray(view.field[dim].values, np.float64) for dim in (view.lat, view.lon))
    row, col = grid.cell_at(y, 0)[0], grid.cell_at(0, x)[1]
    if not (_shuffled(row) or _shuffled(col)):
        yield view, np.arange(len(y)), np.arange(len(x))
        return
    down, along = np.lexsort((-y, row)), np.lexsort((x % 360, col))
    names = [view.name, "n_images"] if view.images is not None else [view.name]
    most = max(1, _BYTES * len(y) // view.field.nbytes)
    # Divided between blocks, so that none is cut, if enough rows hold one.
    ends = np.append(np.flatnonzero(np.diff(row[down] // grid.BLOCK)) + 1, len(down))
    start = 0
    while start < len(down):
        whole = ends[(ends > start) & (ends <= start + most)]
        stop = int(whole[-1]) if whole.size else min(start + most, len(down))
        rows = down[start:stop]
        some = view.dataset[names].isel({view.lat: rows, view.lon: along}).compute()
        yield CubeView.of(some), rows, along
        start = stop


def _shuffled(index: Integers) -> bool:
    """Whether neighbours on the lattice are not adjacent."""
    blocks = index // grid.BLOCK
    return int(np.count_nonzero(np.diff(blocks))) >= _RUNS * len(np.unique(blocks))
