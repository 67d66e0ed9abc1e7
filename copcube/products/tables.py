"""One door to tables of embeddings: our rows, the published ones, and those of other products.

To a row group of any of them belong rows on the lattice, small, and vectors, large. A product has
a module that tells its files by their columns, and reads the former; vectors are read alike.
"""

import os
from collections.abc import Callable, Generator, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from copcube import rows
from copcube.errors import OptionError
from copcube.files.objects import is_remote
from copcube.products.majortom import reading as majortom
from copcube.products.majortom.reading import Assign, Position
from copcube.rows import Rows

__all__ = [
    "Assign",
    "Position",
    "embedding_length",
    "is_product",
    "map_vectors",
    "provenance",
    "read",
    "remarks",
]

T = TypeVar("T")


def is_product(path: str | Path) -> bool:
    """Whether a file holds embeddings of another product, and not rows of images.

    Raises
    ------
    RowsError
        If the file is missing or is not parquet.
    """
    there = not is_remote(path) and os.path.exists(path)
    return _is_product(str(path), os.stat(path).st_mtime_ns if there else 0)


@lru_cache(maxsize=4096)
def _is_product(path: str, _changed: int) -> bool:
    with rows.reading_parquet(path) as file:
        return majortom.is_majortom(file.schema_arrow)


def embedding_length(path: str | Path) -> int:
    """Length of the vectors of a file, without reading them all; 0 if it has none.

    Raises
    ------
    RowsError
        If it cannot be read, or lacks columns.
    """
    if not is_product(path):
        return rows.embedding_length(path)
    with rows.reading_parquet(path) as file:
        majortom.check(file.schema_arrow, path)
        return rows.vector_length(file)


def provenance(path: str | Path, assign: Assign, position: Position) -> dict[str, str]:
    """What made a file's vectors, and how they come to cells, for the attributes of a cube.

    Raises
    ------
    RowsError
        If it cannot be read.
    OptionError
        If rows name their cells themselves and something else is asked for.
    """
    if is_product(path):
        return majortom.provenance(path, assign, position)
    if (assign, position) != ("centre", "auto"):
        raise OptionError(
            f"{path}: these rows name their cells, so that assign={assign!r} and "
            f"footprints={position!r} mean nothing for them; both are for embeddings of Major TOM"
        )
    return rows.read_provenance(path)


def remarks(files: Sequence[str | Path], assign: Assign, position: Position) -> Iterator[str]:
    """Say in sentences what must be known of how rows of files come to cells.

    Raises
    ------
    RowsError
        If a file cannot be read.
    """
    return majortom.remarks([file for file in files if is_product(file)], assign, position)


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
    if is_product(path):
        return majortom.read(path, row_groups, assign, position)
    return rows.read_rows(path, row_groups, embedding=False)


def map_vectors(
    function: Callable[[int, NDArray[np.float32]], T],
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
    function, path, row_groups, number, threads
        As there.
    table : Rows
        What `read` gave for these row groups.
    wanted : numpy.ndarray
        Which of its rows to take, (n,) bool. A vector whose image is in several cells comes as
        often as its rows are wanted.
    """
    if table.source is None:
        return rows.map_vectors(function, path, row_groups, wanted, number, threads=threads)
    times = np.bincount(table.source[wanted], minlength=_number_of_rows(path, row_groups))
    held = times > 0
    times = times[held]
    first = number + np.cumsum(times) - times

    def repeated(start: int, vectors: NDArray[np.float32]) -> T:
        some = times[start : start + len(vectors)]
        # Most blocks have a fragment across an edge; those that have none are not copied.
        vectors = vectors if (some == 1).all() else np.repeat(vectors, some, axis=0)
        return function(int(first[start]), vectors)

    return rows.map_vectors(repeated, path, row_groups, held, threads=threads)


def _number_of_rows(path: str | Path, row_groups: Sequence[int]) -> int:
    sizes = rows.row_group_sizes(path)
    return sum(sizes[group] for group in row_groups)
