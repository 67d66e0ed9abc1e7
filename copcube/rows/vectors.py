"""Vectors of parquet files: decoded on threads, checked, as float32."""

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from copcube.errors import RowsError
from copcube.files.objects import is_remote
from copcube.lookahead import map_ahead
from copcube.rows.opening import reading_parquet, sizes_of_groups, vector_length, vectors_column
from copcube.rows.pages import (
    VALUES,
    IrregularError,
    Pages,
    column_index,
    decode,
    find_pages,
)

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

_BATCH = 4096
_WHOLE = 16384
"""Rows of a row group that a thread decodes as a whole, where its pages are not of the plain kind.
"""
T = TypeVar("T")


def are_finite(path: str | Path) -> bool:
    """Whether all vectors of a file are finite.

    Raises
    ------
    RowsError
        If the file is missing or is not parquet.
    """
    with reading_parquet(path) as file:
        batches = file.iter_batches(_BATCH, columns=["embedding"])
        return all(
            np.isfinite(batch.column(0).flatten().to_numpy(zero_copy_only=False)).all()
            for batch in batches
        )


def map_vectors(
    function: Callable[[int, NDArray[np.float32]], T],
    path: str | Path,
    row_groups: Sequence[int],
    wanted: NDArray[np.bool_],
    number: int = 0,
    *,
    threads: int = 0,
) -> Generator[T, None, None]:
    """Call a function with the vectors of wanted rows, block by block; yield what it returns.

    A block is a row group, or some thousand rows of a large one, so that memory is bounded
    whatever the size of row groups. Row groups, and of most local files even pages, without a
    wanted row are neither read nor decompressed.

    Parameters
    ----------
    function : callable
        Called with the number of the block's first row, counting wanted rows only, and its
        vectors, (n, D) float32, on any of the threads.
    path : str or Path
        Parquet file, or the address of one.
    row_groups : sequence of int
        Row groups to read.
    wanted : numpy.ndarray
        Which of their rows to take, (N,) bool.
    number : int
        Number of the first of them.
    threads : int
        As `copcube.lookahead.map_ahead`.

    Raises
    ------
    RowsError
        As `read_rows`.
    """
    with reading_parquet(path) as file:

        def call(block: tuple[int, Callable[[], NDArray[np.float32]]]) -> T:
            start, vectors = block
            return function(start, vectors())

        blocks = _blocks(file, path, row_groups, wanted, number)
        # Small row groups are decoded faster than the reader may come back for the next one.
        with closing(map_ahead(call, blocks, threads, ahead=2 * threads)) as results:
            yield from results


def _blocks(
    file: "pq.ParquetFile",
    path: str | Path,
    groups: Sequence[int],
    wanted: NDArray[np.bool_],
    number: int,
) -> Iterator[tuple[int, Callable[[], NDArray[np.float32]]]]:
    """Number of the first wanted row of each block, and what gives the block's vectors."""
    sizes = np.array(sizes_of_groups(file.metadata))
    first, dim = np.cumsum(sizes) - sizes, vector_length(file)
    masks = np.split(wanted, np.cumsum(sizes[list(groups)]))[:-1]
    column = column_index(file.metadata, vectors_column(file.schema_arrow))
    with nullcontext() if is_remote(path) else open(path, "rb") as near:
        for group, mask in zip(groups, masks, strict=True):
            if not mask.any():
                continue
            # Any thread may open the file again and read some of the rows.
            read = partial(_read_group, path, file.metadata, group, first[group], dim)
            if near and (pages := find_pages(near, path, file.metadata, group, column, dim)):
                step = max(1, VALUES // dim)
                for start in range(0, len(mask), step):
                    some = mask[start : start + step]
                    if some.any():
                        before = number + int(mask[:start].sum())
                        yield before, partial(_read_pages, pages, start, some, read)
            elif near and sizes[group] <= _WHOLE:
                yield number, partial(read, mask)
            else:
                # What is large, or far away, is read here, one batch after another.
                for start, vectors in _batches(file, path, group, mask, first[group], dim, _BATCH):
                    yield number + start, partial(np.asarray, vectors)
            number += int(mask.sum())


def _read_pages(
    pages: Pages,
    start: int,
    wanted: NDArray[np.bool_],
    read: Callable[[NDArray[np.bool_]], NDArray[np.float32]],
) -> NDArray[np.float32]:
    """Vectors of the wanted ones of some rows of a row group."""
    with suppress(IrregularError, OSError, ValueError, IndexError):
        vectors = decode(pages, start, wanted)
        if np.isfinite(vectors).all():
            return vectors
    # Arrow reports any error.
    mask = np.zeros(pages.rows, bool)
    mask[start : start + len(wanted)] = wanted
    return read(mask)


def _read_group(
    path: str | Path,
    metadata: "pq.FileMetaData",
    group: int,
    first: int,
    dim: int,
    wanted: NDArray[np.bool_],
) -> NDArray[np.float32]:
    vectors = np.empty((int(wanted.sum()), dim), np.float32)
    with reading_parquet(path, metadata, ()) as file:
        # Batches that stay in the processor's cache until they are copied.
        for start, some in _batches(file, path, group, wanted, first, dim, _BATCH // 8):
            vectors[start : start + len(some)] = some
    return vectors


def _batches(
    file: "pq.ParquetFile",
    path: str | Path,
    group: int,
    wanted: NDArray[np.bool_],
    first: int,
    dim: int,
    size: int,
) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """How many wanted vectors of a row group came before each batch, and those of the batch."""
    start = filled = 0
    columns = [vectors_column(file.schema_arrow)]
    last = int(np.flatnonzero(wanted)[-1])
    for batch in file.iter_batches(size, row_groups=[group], columns=columns):
        column, mask = batch.column(0), wanted[start : start + len(batch)]
        if mask.any():
            chosen = column if mask.all() else column.filter(_booleans(mask))
            number = first + start + np.flatnonzero(mask)
            yield filled, to_vectors(chosen, dim, path, number)
            filled += len(number)
        start += len(batch)
        if start > last:
            return  # what is left of the row group need not be decoded


def flattened(lists: "pa.Array") -> "pa.Array":
    """Values of the lists of an array, one list after another; missing ones have none."""
    # Arrow's own way imports all of its functions, which takes longer than most reading.
    if lists.null_count or not hasattr(lists, "offsets"):
        return lists.flatten()
    ends = np.from_dlpack(lists.offsets)
    return lists.values.slice(ends[0], ends[-1] - ends[0])


def _booleans(mask: NDArray[np.bool_]) -> "pa.BooleanArray":
    """Arrow's form of a mask, past `pyarrow.array`, which would import pandas."""
    import pyarrow as pa

    bits = pa.py_buffer(np.packbits(mask, bitorder="little"))
    return pa.Array.from_buffers(pa.bool_(), len(mask), [None, bits])


def to_vectors(
    column: "pa.Array", dim: int, path: str | Path, number: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Vectors (n, dim) of a list column; dim 0 takes the length of the first."""
    import pyarrow as pa

    if column.null_count:
        bad = int(np.flatnonzero(column.is_null())[0])
        raise RowsError(f"{path}: row {number[bad]} has no embedding; drop such rows first")
    if pa.types.is_fixed_size_list(column.type):
        lengths = np.full(len(column), column.type.list_size)
    else:
        lengths = np.diff(np.from_dlpack(column.offsets))
    dim = dim or int(lengths[0])
    if dim == 0 or np.any(lengths != dim):
        bad = int(np.argmax(lengths != dim)) if dim else 0
        raise RowsError(
            f"{path}: row {number[bad]} has an embedding of length {lengths[bad]}; expected "
            f"{dim or 'more'}, as in the rows before"
        )
    values = flattened(column)
    # A null becomes NaN. Without one the values are taken as they lie, past `to_numpy`, which
    # would import pandas.
    flat: NDArray[Any] = (
        values.to_numpy(zero_copy_only=False) if values.null_count else np.from_dlpack(values)
    )
    # Values beyond float32 become infinite, and are refused as such.
    with np.errstate(over="ignore"):
        vectors: NDArray[np.float32] = flat.reshape(-1, dim).astype(np.float32, copy=False)
    require_finite(vectors, path, number)
    return vectors


def require_finite(
    vectors: NDArray[np.float32], path: str | Path, number: NDArray[np.int64]
) -> None:
    """Check that vectors, (n, dim), of some rows are finite in float32.

    Raises
    ------
    RowsError
        If one is not; the message names its row.
    """
    for start in range(0, len(vectors), _BATCH // 8):
        finite = np.isfinite(vectors[start : start + _BATCH // 8])
        if not finite.all():
            row = number[start + int(np.argmin(finite.all(axis=1)))]
            raise RowsError(
                f"{path}: the embedding of row {row}, of length {vectors.shape[1]}, holds a "
                "value that is not finite in float32; drop such rows first"
            )
