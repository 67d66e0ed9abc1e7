"""The table of embeddings: one row an image, in the layout of the published parquet files.

Columns are ``grid_id_coord``, ``modality``, ``local_id_coord``, ``date`` and ``embedding``,
as in ``full_chunks`` of Copernicus-Embed-025deg, so that our files and the published ones
interchange. What is written is strict and always the same bytes for the same rows; what is
read may come from elsewhere: other list types and precisions, empty strings for missing
values, further columns.
"""

import os
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from copcube import grid
from copcube.arguments import one_path
from copcube.dates import is_missing, yyyymmdd
from copcube.errors import CopcubeError, GridError, OptionError, RowsError, StorageError
from copcube.files.contents import refuse_other
from copcube.files.objects import is_remote, listing, open_file, sizes
from copcube.files.parquet_pages import demand_pages
from copcube.files.regular import matches, open_regular, require_file
from copcube.lookahead import map_ahead
from copcube.modalities import MODALITIES, ORDER

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

COLUMNS = ("grid_id_coord", "modality", "local_id_coord", "date", "embedding")
ROW_GROUP = 4096
"""Rows of a row group in files that we write: 12 MB of vectors of 768."""

_PREFIX = "copcube:"
_BATCH = 4096
_WHOLE = 16384
"""Rows of a row group that is decoded as a whole; larger ones are decoded in batches."""


T = TypeVar("T")


@dataclass(frozen=True)
class Rows:
    """Embeddings of n images.

    Parameters
    ----------
    grid_id : numpy.ndarray
        Published cell ids, (n,) int64.
    modality : numpy.ndarray
        Index into `copcube.modalities.ORDER`, (n,) int8.
    local_id, date : numpy.ndarray
        Local patch in its published text form and date YYYYMMDD, (n,) object, str or None.
    embedding : numpy.ndarray
        (n, D) float32; (n, 0) where the vectors were not read.
    """

    grid_id: NDArray[np.int64]
    modality: NDArray[np.int8]
    local_id: NDArray[np.object_]
    date: NDArray[np.object_]
    embedding: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.grid_id)

    @classmethod
    def empty(cls, dim: int) -> Self:
        """Return a table without rows, of vectors of length `dim`."""
        return cls(
            np.empty(0, np.int64),
            np.empty(0, np.int8),
            np.empty(0, object),
            np.empty(0, object),
            np.empty((0, dim), np.float32),
        )

    @cached_property
    def keys(self) -> NDArray[np.int64]:
        """Images as numbers, (4, n) int64: cell, modality, ranks of local patch and date.

        Equal columns are the same image; their lexicographic order is the canonical one.
        """
        return np.stack(
            [
                self.grid_id,
                self.modality.astype(np.int64),
                _ranks(self.local_id),
                _ranks(self.date),
            ]
        )

    def take(self, index: NDArray[Any]) -> "Rows":
        """Return the rows at some positions or of a mask, in that order."""
        return Rows(
            self.grid_id[index],
            self.modality[index],
            self.local_id[index],
            self.date[index],
            self.embedding[index],
        )

    def sorted(self) -> "Rows":
        """Rows in canonical order: cell, modality, local patch, date, None first; stable."""
        order = np.lexsort(self.keys[::-1])
        return self if np.array_equal(order, np.arange(len(self))) else self.take(order)

    @classmethod
    def concatenate(cls, parts: "Sequence[Rows]") -> Self:
        """Join tables one after another.

        Raises
        ------
        RowsError
            If their vectors have different lengths, or there are no tables.
        """
        if not parts:
            raise RowsError("no tables of embeddings to join")
        dims = sorted({part.embedding.shape[1] for part in parts})
        if len(dims) > 1:
            raise RowsError(
                f"embeddings of lengths {', '.join(map(str, dims))} cannot be joined; "
                "they come from different encoders"
            )
        return cls(
            np.concatenate([part.grid_id for part in parts]),
            np.concatenate([part.modality for part in parts]),
            np.concatenate([part.local_id for part in parts]),
            np.concatenate([part.date for part in parts]),
            np.concatenate([part.embedding for part in parts]),
        )


def describe(rows: Rows, i: int) -> str:
    """Name the image of one row for a message."""
    parts = [grid.format_cell(int(rows.grid_id[i])), list(ORDER)[rows.modality[i]]]
    parts += [str(text) for text in (rows.local_id[i], rows.date[i]) if text is not None]
    return " ".join(parts)


def repeated(keys: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Find what repeats what lies before it.

    Parameters
    ----------
    keys : numpy.ndarray
        (k, n) int64, in an order in which equal columns are neighbours, such as
        `Rows.keys` of sorted rows.

    Returns
    -------
    numpy.ndarray
        (n,) bool, true where a column equals the one before.
    """
    same = np.zeros(keys.shape[1], bool)
    same[1:] = (np.diff(keys) == 0).all(axis=0)
    return same


def rows_files(path: str | Path) -> list[Path] | list[str]:
    """Parquet files of a file name, a folder (searched to its bottom) or a glob, sorted.

    The address of a parquet file or of a folder of them gives addresses.

    Raises
    ------
    RowsError
        If there are none.
    StorageError
        If an object store cannot be reached, denies access or cannot be listed.
    """
    path = one_path(path, "rows", "; a folder or a glob names several files")
    if is_remote(path):
        return _addresses(path.rstrip("/"))
    local = Path(path)
    if not local.is_dir():
        require_file(local, RowsError)
    if local.is_file():
        return [local]
    if local.is_dir():
        # A build writes its files under hidden names first.
        found = [p for p in local.rglob("*.parquet") if not p.name.startswith(".")]
    else:
        found = [Path(name) for name in matches(str(path))]
    found = sorted(p for p in found if not p.is_dir())
    for file in found:
        require_file(file, RowsError)
    if not found:
        raise RowsError(f"{path}: no parquet files there; expected a file, a folder or a glob")
    return found


def _addresses(url: str) -> list[str]:
    if url.endswith(".parquet") and sizes([url]) != [None]:
        return [url]
    names = [entry.name for entry in listing(url) if entry.name.endswith(".parquet")]
    if not names:
        raise RowsError(f"{url}: no parquet files there; expected one, or a folder of them")
    return [f"{url}/{name}" for name in names if not f"/{name}".count("/.")]


def encode_rows(rows: Rows, provenance: dict[str, str | int], name: str | Path) -> "pa.Buffer":
    """Return rows in canonical order as the bytes of a parquet file.

    The same rows, in whatever order, always give the same bytes.

    Parameters
    ----------
    rows : Rows
        In any order.
    provenance : dict
        What made the vectors; goes into the schema's metadata under ``copcube:`` keys.
    name : str or Path
        Name of the file, for messages.

    Raises
    ------
    RowsError
        If a vector holds a value that is not finite.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    # Sorted here and not left to the caller: the same rows are to be the same bytes.
    rows = rows.sorted()
    _require_finite(rows.embedding, name, np.arange(len(rows)))
    dim = rows.embedding.shape[1]
    # A cell has some ninety rows, so that its text is made once.
    cells, cell = np.unique(rows.grid_id, return_inverse=True)
    texts = pa.array([grid.format_cell(int(c)) for c in cells], pa.string())
    keys = pa.array(list(MODALITIES), pa.string())
    values = pa.array(np.ascontiguousarray(rows.embedding).reshape(-1))
    columns = [
        texts.take(pa.array(cell)),
        keys.take(pa.array(rows.modality)),
        pa.array(rows.local_id, pa.string()),
        pa.array(rows.date, pa.string()),
        pa.FixedSizeListArray.from_arrays(values, dim),
    ]
    metadata = {_PREFIX + key: str(provenance[key]) for key in sorted(provenance)}
    schema = pa.schema(
        [
            pa.field(name, column.type, nullable=name in ("local_id_coord", "date"))
            for name, column in zip(COLUMNS, columns, strict=True)
        ],
        metadata=metadata,
    )
    sink = pa.BufferOutputStream()
    pq.write_table(
        pa.Table.from_arrays(columns, schema=schema),
        sink,
        row_group_size=ROW_GROUP,
        compression="zstd",
        compression_level=1,
        use_dictionary=list(COLUMNS[:-1]),
        # The bytes of floats compress only where those of equal weight lie together.
        column_encoding={"embedding.list.element": "BYTE_STREAM_SPLIT"},
    )
    return sink.getvalue()


def read_provenance(path: str | Path) -> dict[str, str]:
    """Read what made a file's vectors; empty for files that copcube did not write.

    Raises
    ------
    RowsError
        If the file is missing or is not parquet.
    """
    with reading_parquet(path) as file:
        metadata = file.schema_arrow.metadata or {}
    found = {key.decode(): value.decode() for key, value in metadata.items()}
    return {
        key.removeprefix(_PREFIX): value
        for key, value in sorted(found.items())
        if key.startswith(_PREFIX)
    }


def read_rows(
    path: str | Path,
    row_groups: Sequence[int] | None = None,
    cells: NDArray[np.int64] | None = None,
    *,
    leave_out: bool = False,
    embedding: bool = True,
) -> Rows:
    """Read rows of our own or of published files, in the order of the file.

    Lists, large lists and fixed-size lists of float16, float32 or float64 are accepted, and
    strings of any kind; an empty string counts as missing. Memory stays near the size of
    the result.

    Parameters
    ----------
    path : str or Path
        Parquet file, or the address of one.
    row_groups : sequence of int, optional
        Row groups to read; all by default.
    cells : numpy.ndarray, optional
        Cell ids to keep, int64; all by default. The vectors of row groups without them are
        not decoded.
    leave_out : bool
        Whether to keep all cells but those.
    embedding : bool
        Whether to read the vectors; without them `Rows.embedding` is (n, 0).

    Raises
    ------
    RowsError
        If the file is missing, is not parquet, lacks columns, names an unknown modality or
        a cell whose id contradicts its coordinates, or holds a vector that is missing, of
        another length than the others or not finite.
    """
    with reading_parquet(path) as file:
        _check_schema(file.schema_arrow, path)
        groups = list(range(file.num_row_groups) if row_groups is None else row_groups)
        table = file.read_row_groups(groups, columns=list(COLUMNS[:-1]))
        grid_id = parse_cells(table.column("grid_id_coord"), path)
        rows = Rows(
            grid_id,
            _modalities(table.column("modality"), path),
            _texts(table.column("local_id_coord")),
            _dates(table.column("date"), path),
            np.empty((len(grid_id), 0), np.float32),
        )
        wanted = np.ones(len(rows), bool)
        if cells is not None:
            wanted = np.isin(grid_id, cells, invert=leave_out)
        # The small columns are read whole; of the vectors only those of wanted rows.
        if not wanted.all():
            rows = rows.take(wanted)
        dim = _length(file) if embedding else 0
    vectors = np.empty((len(rows), dim), np.float32)
    if embedding:
        for start, some in map_vectors(lambda *block: block, path, groups, wanted):
            vectors[start : start + len(some)] = some
    return replace(rows, embedding=vectors)


def row_group_sizes(path: str | Path) -> list[int]:
    """Rows in every row group of a file.

    Raises
    ------
    RowsError
        If the file is missing or is not parquet.
    """
    with open_parquet(path) as file:
        return [file.metadata.row_group(g).num_rows for g in range(file.num_row_groups)]


def embedding_length(path: str | Path) -> int:
    """Length of the vectors of a file, without reading them all; 0 if it has none.

    Raises
    ------
    RowsError
        As `read_rows`.
    """
    with reading_parquet(path) as file:
        _check_schema(file.schema_arrow, path)
        return _length(file)


def _length(file: "pq.ParquetFile") -> int:
    kind = file.schema_arrow.field("embedding").type
    if hasattr(kind, "list_size"):
        return int(kind.list_size)
    for batch in file.iter_batches(64, columns=["embedding"]):
        for length in batch.column(0).value_lengths().to_pylist():
            if length:
                return int(length)
    return 0


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


def open_parquet(path: str | Path, metadata: "pq.FileMetaData | None" = None) -> "pq.ParquetFile":
    """Open a parquet file, or one at an address; its metadata is not read again if given.

    Raises
    ------
    RowsError
        If it is missing or is not parquet.
    StorageError
        If an object store cannot be reached or denies access.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        if is_remote(path):
            # Not all of a row group at once, but pieces of this size: a group may take gigabytes.
            source: Any = open_file(str(path))
            size = 8 << 20
            if metadata is None:
                metadata = pq.read_metadata(source)
                demand_pages(None, metadata, COLUMNS, str(path), RowsError)
        else:
            require_file(path, RowsError)
            if not os.path.isfile(path):
                raise FileNotFoundError
            source, size = path, 1 << 20
            if metadata is None:
                metadata = _checked(str(path), os.stat(path).st_mtime_ns)
        # Texts stay in dictionaries: one long text repeated in a million rows is held once.
        flat = {metadata.schema.column(i).path for i in range(metadata.num_columns)}
        texts = [name for name in COLUMNS[:-1] if name in flat]
        return pq.ParquetFile(
            source, metadata=metadata, pre_buffer=False, buffer_size=size, read_dictionary=texts
        )
    except FileNotFoundError as error:
        raise RowsError(f"{path}: no such file") from error
    # It is an OSError too, and says more than the message below would.
    except StorageError:
        raise
    except (pa.ArrowException, OSError) as error:
        if not is_remote(path):
            refuse_other(path, ("parquet",), "a parquet file", RowsError)
        raise RowsError(f"{path}: not a readable parquet file ({error})") from error


@contextmanager
def reading_parquet(
    path: str | Path, metadata: "pq.FileMetaData | None" = None
) -> Iterator["pq.ParquetFile"]:
    """Open a parquet file while the body reads it; errors name it, as those of `open_parquet`.

    Raises
    ------
    RowsError
        If it is no parquet file, or what the body reads of it is damaged; errors of disks and
        stores pass.
    StorageError
        As `open_parquet`.
    """
    import pyarrow as pa

    with open_parquet(path, metadata) as file:
        try:
            yield file
        except CopcubeError:
            raise
        except (pa.ArrowException, OSError, ValueError) as error:
            # Errors that pyarrow makes itself have no number.
            if getattr(error, "errno", None) is not None:
                raise
            words = " ".join(str(error).split())[:300]
            raise RowsError(f"{path}: damaged ({words}); get it anew") from error


@lru_cache(maxsize=64)
def _checked(path: str, _modified: int) -> "pq.FileMetaData":
    """Footer of a file whose pages were looked at, once for as long as it does not change."""
    import pyarrow.parquet as pq

    metadata = pq.read_metadata(path)
    with open_regular(path, RowsError) as file:

        def read(start: int, length: int) -> bytes:
            file.seek(start)
            return file.read(length)

        demand_pages(read, metadata, COLUMNS, path, RowsError)
    return metadata


def _check_schema(schema: "pa.Schema", path: str | Path) -> None:
    import pyarrow as pa

    missing = [name for name in COLUMNS if name not in schema.names]
    if missing:
        raise RowsError(
            f"{path}: expected the columns {', '.join(COLUMNS)}; "
            f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing "
            f"(found {', '.join(schema.names) or 'none'})"
        )
    for name in COLUMNS[:-1]:
        kind = schema.field(name).type
        # pandas writes categories as dictionaries of strings.
        kind = kind.value_type if pa.types.is_dictionary(kind) else kind
        if name == "date" and any(test(kind) for test in _dates_of(pa.types)):
            continue
        if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or kind == pa.null()):
            raise RowsError(f"{path}: column {name} holds {kind}; expected strings")
    kind = schema.field("embedding").type
    lists = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    if not (any(test(kind) for test in lists) and pa.types.is_floating(kind.value_type)):
        raise RowsError(
            f"{path}: column embedding holds {kind}; expected lists of float16, float32 or float64"
        )


def _dates_of(types: Any) -> tuple[Any, ...]:
    """Tests of pyarrow for the types, beside strings, in which tables hold dates."""
    return types.is_date, types.is_timestamp, types.is_integer, types.is_float64


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
    whatever the size of row groups. Row groups without a wanted row are neither read nor
    decompressed.

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
        with closing(map_ahead(call, blocks, threads)) as results:
            yield from results


def _blocks(
    file: "pq.ParquetFile",
    path: str | Path,
    groups: Sequence[int],
    wanted: NDArray[np.bool_],
    number: int,
) -> Iterator[tuple[int, Callable[[], NDArray[np.float32]]]]:
    """Number of the first wanted row of each block, and what gives the block's vectors."""
    sizes = np.array([file.metadata.row_group(g).num_rows for g in range(file.num_row_groups)])
    first, dim = np.cumsum(sizes) - sizes, _length(file)
    masks = np.split(wanted, np.cumsum(sizes[list(groups)]))[:-1]
    for group, mask in zip(groups, masks, strict=True):
        if not mask.any():
            continue
        # Any thread may open the file again and read a row group. What is large, or far away,
        # is read here, one batch after another.
        if sizes[group] <= _WHOLE and not is_remote(path):
            yield number, partial(_read_group, path, file.metadata, group, mask, first[group], dim)
        else:
            for start, vectors in _batches(file, path, group, mask, first[group], dim, _BATCH):
                yield number + start, partial(np.asarray, vectors)
        number += int(mask.sum())


def _read_group(
    path: str | Path,
    metadata: "pq.FileMetaData",
    group: int,
    wanted: NDArray[np.bool_],
    first: int,
    dim: int,
) -> NDArray[np.float32]:
    vectors = np.empty((int(wanted.sum()), dim), np.float32)
    with reading_parquet(path, metadata) as file:
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
    for batch in file.iter_batches(size, row_groups=[group], columns=["embedding"]):
        column, mask = batch.column(0), wanted[start : start + len(batch)]
        if mask.any():
            chosen = column if mask.all() else column.filter(mask)
            number = first + start + np.flatnonzero(mask)
            yield filled, to_vectors(chosen, dim, path, number)
            filled += len(number)
        start += len(batch)


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
        lengths = np.from_dlpack(column.value_lengths())
    dim = dim or int(lengths[0])
    if dim == 0 or np.any(lengths != dim):
        bad = int(np.argmax(lengths != dim)) if dim else 0
        raise RowsError(
            f"{path}: row {number[bad]} has an embedding of length {lengths[bad]}; "
            f"expected {dim or 'more'}, as the rows before"
        )
    values = column.flatten()
    # A null becomes NaN. Without one the values are taken as they lie, past `to_numpy`, which
    # would import pandas.
    flat: NDArray[Any] = (
        values.to_numpy(zero_copy_only=False) if values.null_count else np.from_dlpack(values)
    )
    # What is beyond float32 becomes infinite, and is refused as that.
    with np.errstate(over="ignore"):
        vectors: NDArray[np.float32] = flat.reshape(-1, dim).astype(np.float32, copy=False)
    _require_finite(vectors, path, number)
    return vectors


def _require_finite(
    vectors: NDArray[np.float32], path: str | Path, number: NDArray[np.int64]
) -> None:
    for start in range(0, len(vectors), _BATCH // 8):
        finite = np.isfinite(vectors[start : start + _BATCH // 8])
        if not finite.all():
            row = number[start + int(np.argmin(finite.all(axis=1)))]
            raise RowsError(
                f"{path}: the embedding of row {row}, of length {vectors.shape[1]}, holds a "
                "value that is not finite in float32; drop such rows first"
            )


def parse_cells(column: "pa.ChunkedArray", path: str | Path) -> NDArray[np.int64]:
    """Cell ids, (n,) int64, of a column of published text forms.

    Raises
    ------
    RowsError
        If a text has another form, or its coordinates are not those of the id.
    """
    texts, code = _encode(column)
    try:
        ids = [grid.parse_cell(text or "") for text in texts]
    except GridError as error:
        raise RowsError(f"{path}: column grid_id_coord: {error}") from error
    return np.array(ids, np.int64)[code]


def _modalities(column: "pa.ChunkedArray", path: str | Path) -> NDArray[np.int8]:
    texts, code = _encode(column)
    unknown = [str(text) for text in texts if text not in ORDER]
    if unknown:
        raise RowsError(
            f"{path}: unknown modality {', '.join(sorted(unknown)):.400}; "
            f"expected {', '.join(MODALITIES)}"
        )
    return np.array([ORDER[str(text)] for text in texts], np.int8)[code]


def _dates(column: "pa.ChunkedArray", path: str | Path) -> NDArray[np.object_]:
    values, code = _encode(column)
    try:
        texts = [None if is_missing(value) else yyyymmdd(value) for value in values]
    except OptionError as error:
        raise RowsError(f"{path}: column date: {error!s:.200}") from error
    return np.array(texts, object)[code]


def _texts(column: "pa.ChunkedArray") -> NDArray[np.object_]:
    texts, code = _encode(column)
    return texts[code]


def _encode(column: "pa.ChunkedArray") -> tuple[NDArray[np.object_], NDArray[np.int64]]:
    """Return the distinct values, None for missing or empty ones, and every row's index."""
    import pyarrow as pa

    if not pa.types.is_dictionary(column.type):
        kind = pa.string() if column.type == pa.null() else column.type
        column = column.cast(kind).dictionary_encode()
    encoded = column.unify_dictionaries().combine_chunks()
    if isinstance(encoded, pa.ChunkedArray):  # of no chunks
        return np.empty(0, object), np.empty(0, np.int64)
    # A dictionary may hold values of no row, which are nobody's fault.
    indices = np.from_dlpack(encoded.indices.fill_null(-1))
    used, code = np.unique(indices, return_inverse=True)
    found = encoded.dictionary.take(pa.array(used[used >= 0])).to_pylist()
    values = [None] * int((used < 0).sum()) + [None if value == "" else value for value in found]
    return np.array(values, object), code.astype(np.int64)


def _ranks(texts: NDArray[np.object_]) -> NDArray[np.int64]:
    """Return the rank of every text among the distinct ones, from 1; 0 for None."""
    every = texts.tolist()
    rank = {text: i for i, text in enumerate(sorted(set(every) - {None}), 1)} | {None: 0}
    return np.array([rank[text] for text in every], np.int64)
