"""The common access to tables of embeddings: our rows, published ones, and other products.

To a row group of any of them belong rows on the lattice, small, and vectors, large. A product has
a module that knows its files by their columns, and reads the former; vectors are read alike.

Products with one vector per pixel (`READERS`) come in by the same door. Their row groups are blocks
of tiles, their rows stand for the lines of a tile, and `copcube.products.pixels` makes their cells.
"""

import os
from collections.abc import Callable, Generator, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from copcube import rows
from copcube.arguments import one_path
from copcube.cells import Cells
from copcube.errors import OptionError, RowsError
from copcube.files import objects
from copcube.files.objects import file_size, is_remote, sizes
from copcube.files.regular import version_of
from copcube.grid import Integers
from copcube.products import pixels
from copcube.products.alphaearth import AlphaEarth
from copcube.products.majortom import about, columns
from copcube.products.majortom import reading as majortom
from copcube.products.majortom.reading import Assign as Assign
from copcube.products.majortom.transposed import Position as Position
from copcube.products.pixels import Block, Reader
from copcube.products.tessera import Tessera
from copcube.rows import Rows

T = TypeVar("T")

READERS: tuple[Reader, ...] = (Tessera(), AlphaEarth())
"""Products with one vector per pixel, in the order in which they are tried for a folder."""

_LINES = 1 << 16
"""Lines of tiles a block stands for: as many as rows make a part, so that each block is one."""


def files(path: str | Path) -> list[Path] | list[str]:
    """Files of a name, a folder or a glob, sorted: parquet files, or those of a product.

    Raises
    ------
    RowsError
        If there are none.
    StorageError
        As `copcube.rows.rows_files`.
    """
    name = one_path(path, "rows", "; a folder or a glob names several files")
    # A store has a great many files below it, none of which is parquet.
    if _is_store(name):
        if found := next((some for reader in READERS if (some := reader.files(name))), None):
            return found
        raise RowsError(
            f"{name}: a Zarr group without zones such as utm32; expected TESSERA's store, or a "
            "folder of parquet, GeoTIFF or .npy files. For a cube, give the rows it was made from, "
            "such as world.build/rows"
        )
    if is_remote(name) and (reader := _reader(name)) and (there := reader.files(name)):
        return there
    try:
        found = [str(file) for file in rows.rows_files(name)]
    except RowsError:
        if not is_remote(name) and not os.path.isdir(name):
            raise
        for reader in READERS:
            if there := reader.files(name):
                return there
        raise
    # A glob such as tiles/*.npy takes the files of scales too.
    return [file for file in found if is_of_pixels(file) or not file.endswith(".npy")] or found


def size(file: str | Path) -> int:
    """Size in bytes of one of `files`.

    Raises
    ------
    FileNotFoundError, ReadError
        If it is not there or cannot be read.
    """
    return file_size(file) if (reader := _reader(file)) is None else reader.size(str(file))


def version(file: str | Path) -> str:
    """Text that differs if another file takes the name of one of `files`; a store by its metadata.

    Raises
    ------
    ReadError
        If an object store cannot be asked.
    """
    name = str(file)
    # Web servers may deny a folder, and stores have none.
    of_store = is_remote(name) and not os.path.splitext(name)[1]
    return objects.version(f"{name}/zarr.json" if of_store else name)


def row_group_sizes(path: str | Path) -> list[int]:
    """Rows in every row group of a file, or lines that its blocks stand for.

    Raises
    ------
    RowsError
        If the file cannot be read.
    """
    if not is_of_pixels(path):
        return rows.row_group_sizes(path)
    return [_LINES] * len(_blocks(str(path)))


def is_of_pixels(path: str | Path) -> bool:
    """Whether a file has one vector per pixel, according to its name."""
    return _reader(path) is not None


def _is_store(name: str) -> bool:
    """Whether a name is that of a Zarr group."""
    if not is_remote(name):
        return os.path.exists(os.path.join(name, "zarr.json"))
    if name.lower().endswith((".parquet", ".tif", ".tiff", ".npy")):
        return False  # known without a request
    return sizes([f"{name.rstrip('/')}/zarr.json"]) != [None]


def _reader(path: str | Path) -> Reader | None:
    return next((reader for reader in READERS if reader.owns(str(path))), None)


def _blocks(path: str) -> list[Block]:
    return _blocks_of(path, version_of(path))


@lru_cache(maxsize=1024)
def _blocks_of(path: str, _version: str) -> list[Block]:
    reader = _reader(path)
    assert reader is not None
    return pixels.blocks(reader.rasters(path))


def pixel_cells(
    chosen: Sequence[tuple[str, Sequence[int], int]],
    wanted: Callable[[Integers], NDArray[np.bool_]],
    dim: int,
) -> Cells:
    """Statistics of cells, all of whose pixels lie in some blocks.

    Parameters
    ----------
    chosen : sequence of (str, sequence of int, int)
        File, numbers of blocks, and group to which they belong.
    wanted, dim
        As `copcube.products.pixels.statistics`.

    Raises
    ------
    RowsError
        If a file cannot be read.
    """
    found = [
        (file, group, _blocks(file)[number])
        for file, numbers, group in chosen
        for number in numbers
    ]
    return pixels.statistics(found, wanted, dim)


def is_product(path: str | Path) -> bool:
    """Whether a file holds embeddings of another product, and not rows of images.

    Raises
    ------
    RowsError
        If the file is missing or is not parquet.
    """
    if is_of_pixels(path):
        return True
    return _is_product(str(path), version_of(path))


@lru_cache(maxsize=4096)
def _is_product(path: str, _version: str) -> bool:
    with rows.reading_parquet(path) as file:
        return columns.is_majortom(file.schema_arrow)


def embedding_length(path: str | Path) -> int:
    """Length of the vectors of a file, without reading them all; 0 if it has none.

    Raises
    ------
    RowsError
        If it cannot be read, or lacks columns.
    """
    if is_of_pixels(path):
        return next((block.raster.dim for block in _blocks(str(path))), 0)
    if not is_product(path):
        return rows.embedding_length(path)
    with rows.reading_parquet(path) as file:
        columns.check(file.schema_arrow, path)
        return rows.vector_length(file)


def provenance(path: str | Path, assign: Assign, position: Position) -> dict[str, str]:
    """What made a file's vectors, and how they come to cells, for the attributes of a cube.

    Raises
    ------
    RowsError
        If it cannot be read.
    OptionError
        If rows name their cells themselves but something else is requested.
    """
    reader = _reader(path)
    if reader is None and is_product(path):
        return about.provenance(path, assign, position)
    if (assign, position) != ("centre", "auto"):
        why = "these rows name their cells" if reader is None else "pixels have only a centre"
        raise OptionError(
            f"{path}: {why}, so assign={assign!r} and footprints={position!r} do not apply; both "
            "are for embeddings of Major TOM"
        )
    if reader is not None:
        years = sorted({block.raster.year for block in _blocks(str(path)) if block.raster.year})
        of_years = {"product_years": " ".join(map(str, years))} if years else {}
        return reader.about | _OF_PIXELS | of_years
    return rows.read_provenance(path)


_OF_PIXELS = {
    "aggregation_assign": "to the cell that holds the centre of the pixel",
    "aggregation_weights": "area of the pixel on the ellipsoid",
    "n_images_comment": "pixels, all of them counted under s2_toa, whatever sensors they are of",
}


def remarks(files: Sequence[str | Path], assign: Assign, position: Position) -> Iterator[str]:
    """Describe what users must know about how rows of files are assigned to cells.

    Raises
    ------
    RowsError
        If a file cannot be read.
    """
    fragments = [file for file in files if not is_of_pixels(file) and is_product(file)]
    return about.remarks(fragments, assign, position)


def read(path: str | Path, row_groups: Sequence[int], assign: Assign, position: Position) -> Rows:
    """Read rows of some row groups without their vectors, in the order of the file.

    Parameters
    ----------
    path, row_groups
        As `copcube.rows.read_rows`.
    assign, position
        As `copcube.products.majortom.reading.read`.

    Raises
    ------
    RowsError
        As these.
    """
    if is_of_pixels(path):
        return pixels.table([_blocks(str(path))[number] for number in row_groups])
    if is_product(path):
        return majortom.read(path, row_groups, assign, position)
    return rows.read_rows(path, row_groups, embedding=False)


def map_vectors(
    function: Callable[..., T],
    path: str | Path,
    row_groups: Sequence[int],
    table: Rows,
    wanted: NDArray[np.bool_],
    number: int = 0,
    *,
    threads: int = 0,
) -> Generator[T, None, None]:
    """Call a function with the vectors of wanted rows, as `copcube.rows.map_vectors`.

    Parameters
    ----------
    function : callable
        As there. Where an image may be in several cells, so that several rows have one vector, a
        third argument tells which of the block's vectors each row has, ascending, (n,) int64.
    path, row_groups, number, threads
        As there.
    table : Rows
        What `read` gave for these row groups.
    wanted : numpy.ndarray
        Which of its rows to take, (n,) bool.
    """
    if table.source is None:
        return rows.map_vectors(function, path, row_groups, wanted, number, threads=threads)
    groups = rows.row_group_sizes(path)
    fragments = sum(groups[group] for group in row_groups)
    times = np.bincount(table.source[wanted], minlength=fragments)
    held = times > 0
    times = times[held]
    first = number + np.cumsum(times) - times

    def repeated(start: int, vectors: NDArray[np.float32]) -> T:
        some = times[start : start + len(vectors)]
        return function(int(first[start]), vectors, np.repeat(np.arange(len(vectors)), some))

    return rows.map_vectors(repeated, path, row_groups, held, threads=threads)
