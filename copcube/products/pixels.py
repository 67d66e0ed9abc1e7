"""Rasters of embeddings, one vector per pixel, averaged in streams to the cells of ERA5's lattice.

A product has a reader (`Reader`), which finds its files and opens them as rasters (`Raster`). The
rest is here: a raster is divided into **tiles** of 256 pixels per side, however much is read at a
time. The sums of a tile are made of its pixels in the order of their lines, and the sums of a cell
of its tiles in the order of file and place; so the result is the same to the last bit for any size
of blocks, number of threads and division of cells between tasks.

A pixel belongs to the cell that holds its centre, and weighs as much as its area on the ground: in
UTM that changes by up to 0.3 % across a zone, in degrees with the cosine of latitude.
"""

import math
import operator
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from copcube import grid
from copcube.cells import Cells
from copcube.errors import RowsError
from copcube.files.processors import computing_threads
from copcube.grid import Floats, Integers
from copcube.lookahead import map_ahead
from copcube.modalities import ORDER
from copcube.products.place import Place
from copcube.rows import Rows

TILE = 256
"""Pixels per side of what is summed at once; another number would change the last bits of cubes."""

BLOCK = 16
"""Tiles a side of a block, which is what a task of aggregating begins with."""

MODALITY = "s2_toa"
"""Modality under which pixels are counted: products of several sensors have no single one."""

_BYTES = 1 << 26
"""Most bytes of a raster in memory at a time, on each thread."""
_THREADS = 4

_ROUNDING = 1e-13
"""Share of the mean square below which a variance is rounding: what sums of float64 differ by."""


class Pixels(NamedTuple):
    """Stored pixels of a window.

    Attributes
    ----------
    values : numpy.ndarray
        (dim, h, w).
    valid : numpy.ndarray
        Which pixels have a vector, (h, w) bool.
    scale : numpy.ndarray, optional
        What decoded values are multiplied by, (h, w), finite everywhere.
    """

    values: NDArray[Any]
    valid: NDArray[np.bool_]
    scale: NDArray[np.float32] | None = None


class Raster(Protocol):
    """Vectors of the pixels of a year, which a reader makes from a file.

    Attributes
    ----------
    place : Place
        Where pixels lie.
    height, width, dim : int
        Lines, pixels of a line, and length of the vectors.
    year : int or None
        Which year the vectors describe, if that is said.
    """

    place: Place
    height: int
    width: int
    dim: int
    year: int | None

    def read(self, rows: slice, cols: slice) -> Pixels:
        """Read a window; called on several threads at once."""

    def decode(self, values: NDArray[Any], out: Floats) -> None:
        """Write what stored values, (h, w), stand for before they are scaled, into an array."""


class Reader(Protocol):
    """A product: its attributes, its files, and how to open them.

    Attributes
    ----------
    about : dict of str to str
        Attributes of cubes that are made of it: product, encoder, licence, source and more.
    """

    about: dict[str, str]

    def files(self, path: str) -> list[str]:
        """Find the product's files under a name, sorted; none if it is something else."""

    def owns(self, file: str) -> bool:
        """Whether one of `files` is of this product, by its name alone."""

    def rasters(self, file: str) -> Sequence[Raster]:
        """Open a file.

        Raises
        ------
        RowsError
            If it is not in the product's form; says what was found and what was expected.
        """

    def size(self, file: str) -> int:
        """Size of a file in bytes; a different size means a different source."""


class Block(NamedTuple):
    """Some tiles of a raster."""

    raster: Raster
    rows: slice
    cols: slice


def blocks(rasters: Sequence[Raster]) -> list[Block]:
    """Divide rasters into blocks of at most `BLOCK` times `BLOCK` tiles."""
    side = TILE * BLOCK
    return [
        Block(raster, rows, cols)
        for raster in rasters
        for rows in _slices(0, raster.height, side)
        for cols in _slices(0, raster.width, side)
    ]


def _slices(start: int, stop: int, step: int) -> Iterator[slice]:
    for i in range(start, stop, step):
        yield slice(i, min(i + step, stop))


def _tiles(rows: slice, cols: slice) -> Iterator[tuple[slice, slice]]:
    """Tiles of a window, which begins with a tile."""
    for down in _slices(rows.start, rows.stop, TILE):
        for along in _slices(cols.start, cols.stop, TILE):
            yield down, along


def day_of(year: int) -> str:
    """Middle of a year, so that requests for the year, or its half, include its vectors."""
    return f"{year:04d}0701"


def table(chosen: Sequence[Block]) -> Rows:
    """Rows that represent blocks when cells are counted: one per line of a tile and cell.

    Nothing is read: a cell that a tile may reach counts, though it may turn out to be empty.
    """
    found = [Rows.empty(0)]
    for block in chosen:
        cells = [np.empty(0, np.int64)]
        for rows, cols in _tiles(block.rows, block.cols):
            cells.append(np.repeat(block.raster.place.cells(rows, cols), rows.stop - rows.start))
        ids = np.concatenate(cells)
        date = None if block.raster.year is None else day_of(block.raster.year)
        found.append(
            Rows(
                ids,
                np.full(len(ids), ORDER[MODALITY], np.int8),
                np.full(len(ids), None, object),
                np.full(len(ids), date, object),
                np.empty((len(ids), 0), np.float32),
            )
        )
    return Rows.concatenate(found)


class _Sums(NamedTuple):
    """Sums over the pixels of a tile in one cell."""

    pixels: int
    weight: float
    vector: Floats
    square: float


def statistics(
    chosen: Sequence[tuple[str, int, Block]],
    wanted: Callable[[Integers], NDArray[np.bool_]],
    dim: int,
) -> Cells:
    """Statistics of cells, all of whose pixels lie in some blocks.

    Parameters
    ----------
    chosen : sequence of (str, int, Block)
        File and group of each block, and the block.
    wanted : callable
        Returns which cells, given their ids, are to be computed.
    dim : int
        Length of the vectors.

    Returns
    -------
    Cells
        ``n_images`` counts pixels; the weights of mean and spread are areas.

    Raises
    ------
    RowsError
        If a file cannot be read.
    """
    side = TILE * max(1, math.isqrt(_BYTES // (dim * TILE * TILE)))
    windows = [
        (file, group, Block(block.raster, rows, cols))
        for file, group, block in chosen
        for rows in _slices(block.rows.start, block.rows.stop, side)
        for cols in _slices(block.cols.start, block.cols.stop, side)
    ]

    def call(item: tuple[str, int, Block]) -> list[tuple[tuple[int, int], tuple[Any, ...], _Sums]]:
        file, group, window = item
        year = window.raster.year or 0
        return [
            ((group, cell), (file, year, *at), sums) for cell, at, sums in _window(window, wanted)
        ]

    found: defaultdict[tuple[int, int], list[tuple[tuple[Any, ...], _Sums]]] = defaultdict(list)
    with closing(map_ahead(call, windows, computing_threads(_THREADS))) as results:
        for result in results:
            for key, order, sums in result:
                found[key].append((order, sums))
    return _cells(found, dim)


def _window(
    window: Block, wanted: Callable[[Integers], NDArray[np.bool_]]
) -> Iterator[tuple[int, tuple[int, int], _Sums]]:
    """Sums of the tiles of a window: cell, first line and column of the tile, sums."""
    tiles = [
        (rows, cols, cells[mask], len(cells) == 1)
        for rows, cols in _tiles(window.rows, window.cols)
        if (mask := wanted(cells := window.raster.place.cells(rows, cols))).any()
    ]
    if not tiles:
        return
    pixels = window.raster.read(window.rows, window.cols)
    for rows, cols, cells, alone in tiles:
        down = slice(rows.start - window.rows.start, rows.stop - window.rows.start)
        along = slice(cols.start - window.cols.start, cols.stop - window.cols.start)
        if (valid := pixels.valid[down, along]).any():
            scale = None if pixels.scale is None else pixels.scale[down, along]
            tile = Pixels(pixels.values[:, down, along], valid, scale)
            for cell, sums in _tile(window.raster, tile, rows, cols, cells, alone=alone):
                yield cell, (rows.start, cols.start), sums


def _tile(
    raster: Raster, tile: Pixels, rows: slice, cols: slice, cells: Integers, *, alone: bool
) -> Iterator[tuple[int, _Sums]]:
    """Sums of one tile for each of some cells that it has pixels in."""
    inside = [(int(cells[0]), tile.valid)]
    if not alone:
        ids = grid.grid_id(*grid.cell_at(*raster.place.centres(rows, cols)))
        inside = [(int(cell), tile.valid & (ids == cell)) for cell in cells]
    areas = np.broadcast_to(raster.place.areas(rows, cols), tile.valid.shape)
    inside = [(cell, mask) for cell, mask in inside if mask.any()]
    weights = [np.where(mask, areas, 0.0).ravel() for _, mask in inside]
    vectors = np.empty((len(inside), len(tile.values)))
    # Memory that is used again for each band is not asked for, and zeroed, each time.
    x, product = (np.empty(tile.valid.shape) for _ in range(2))
    square = np.zeros_like(x)
    # Band by band, so that what is decoded stays in the processor's cache.
    for band, values in enumerate(tile.values):
        raster.decode(values, x)
        if tile.scale is not None:
            x *= tile.scale
        for i, weight in enumerate(weights):
            vectors[i, band] = np.einsum("i,i", weight, x.ravel())
        np.multiply(x, x, out=product)
        square += product
    for (cell, mask), weight, vector in zip(inside, weights, vectors, strict=True):
        total = float(np.einsum("i->", weight))
        yield (
            cell,
            _Sums(int(mask.sum()), total, vector, float(np.einsum("i,i", weight, square.ravel()))),
        )


def _cells(found: dict[tuple[int, int], list[tuple[tuple[Any, ...], _Sums]]], dim: int) -> Cells:
    """Cells of the sums of their tiles."""
    n = len(found)
    keys = np.array(list(found), np.int64).reshape(n, 2)
    pixels, spread = np.zeros(n, np.int64), np.zeros(n, np.float32)
    mean = np.empty((n, dim), np.float32)
    for i, tiles in enumerate(found.values()):
        # In the order of file and place, whichever of them was read first.
        tiles.sort(key=lambda item: item[0])
        total = _Sums(0, 0.0, np.zeros(dim), 0.0)
        for _, sums in tiles:
            total = _Sums(*map(operator.add, total, sums))
        exact = total.vector / total.weight
        if not np.isfinite(exact).all():
            raise RowsError(
                f"{tiles[0][0][0]}: vectors in cell {grid.format_cell(int(keys[i, 1]))} are not "
                "finite; get a new copy of the file"
            )
        mean[i], pixels[i] = exact, total.pixels
        whole = total.square / total.weight
        variance = whole - float(np.einsum("i,i", exact, exact))
        if total.pixels > 1 and variance > _ROUNDING * whole:
            spread[i] = math.sqrt(variance)
    counts = np.zeros((n, len(ORDER)), np.int32)
    counts[:, ORDER[MODALITY]] = pixels
    cells = Cells(
        keys[:, 1], keys[:, 0].astype(np.int16), pixels.astype(np.int32), counts, spread, mean
    )
    return cells.take(np.argsort(cells.sort_key))
