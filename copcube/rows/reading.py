"""Reading rows of our own and of published files."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from copcube import grid
from copcube.arguments import one_path
from copcube.dates import is_missing, yyyymmdd
from copcube.errors import GridError, OptionError, RowsError
from copcube.files.objects import is_remote, listing, sizes
from copcube.files.regular import files_below, matches, require_file
from copcube.modalities import described_in, labels
from copcube.rows.opening import check_schema, reading_parquet, vector_length
from copcube.rows.table import COLUMNS, PREFIX, Rows
from copcube.rows.vectors import map_vectors

if TYPE_CHECKING:
    import pyarrow as pa


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
        _refuse_others(local)
        # A build writes its files under hidden names first.
        below = map(Path, files_below(local))
        found = [p for p in below if p.suffix.lower() == ".parquet" and not p.name.startswith(".")]
    else:
        found = [Path(name) for name in matches(str(path))]
    found = sorted(p for p in found if not p.is_dir())
    for file in found:
        require_file(file, RowsError)
    if not found:
        raise RowsError(f"{path}: no parquet files found; expected a file, a folder or a glob")
    return found


def _refuse_others(folder: Path) -> None:
    """Raise an error that names the rows belonging to a folder without rows."""
    within = folder / "rows"
    if (folder / "plan.json").is_file() and within.is_dir():
        raise RowsError(f"{folder}: the folder of a build; give its rows, {within}")
    if (folder / "zarr.json").is_file():
        raise RowsError(
            f"{folder}: a Zarr group, which holds no rows. For a cube, give the rows it was made "
            "from, such as world.build/rows"
        )


def _addresses(url: str) -> list[str]:
    if url.lower().endswith(".parquet") and sizes([url]) != [None]:
        return [url]
    names = [entry.name for entry in listing(url) if entry.name.lower().endswith(".parquet")]
    if not names:
        raise RowsError(f"{url}: no parquet files found; expected one, or a folder of them")
    return [f"{url}/{name}" for name in names if "/." not in f"/{name}"]


def read_provenance(path: str | Path) -> dict[str, str]:
    """Read what made a file's vectors; empty for files that copcube did not write.

    Raises
    ------
    RowsError
        If the file is missing or is not parquet.
    """
    with reading_parquet(path) as file:
        metadata = file.schema_arrow.metadata or {}
    return _provenance(metadata)


def _provenance(metadata: Mapping[bytes, bytes]) -> dict[str, str]:
    ours = {key: value for key, value in metadata.items() if key.startswith(PREFIX.encode())}
    # Notes of other programs, or a damaged file, may not be UTF-8.
    return {
        key.decode(errors="replace").removeprefix(PREFIX): value.decode(errors="replace")
        for key, value in sorted(ours.items())
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
        check_schema(file.schema_arrow, path)
        names = labels(described_in(_provenance(file.schema_arrow.metadata or {})))
        groups = list(range(file.num_row_groups) if row_groups is None else row_groups)
        table = file.read_row_groups(groups, columns=list(COLUMNS[:-1]))
        grid_id = parse_cells(table.column("grid_id_coord"), path)
        rows = Rows(
            grid_id,
            _modalities(table.column("modality"), names, path),
            _texts(table.column("local_id_coord")),
            _dates(table.column("date"), path),
            np.empty((len(grid_id), 0), np.float32),
            labels=names,
        )
        wanted = np.ones(len(rows), bool)
        if cells is not None:
            wanted = np.isin(grid_id, cells, invert=leave_out)
        # The small columns are read whole; of the vectors only those of wanted rows.
        if not wanted.all():
            rows = rows.take(wanted)
        dim = vector_length(file) if embedding else 0
    vectors = np.empty((len(rows), dim), np.float32)
    if embedding:
        for start, some in map_vectors(lambda *block: block, path, groups, wanted):
            vectors[start : start + len(some)] = some
    return replace(rows, embedding=vectors)


def parse_cells(column: "pa.ChunkedArray", path: str | Path) -> NDArray[np.int64]:
    """Cell ids, (n,) int64, of a column of published text forms.

    Raises
    ------
    RowsError
        If a text has another form, or its coordinates are not those of the id.
    """
    # A cell has about ninety rows, so its text is parsed once, not once per row.
    texts, code = distinct(column)
    try:
        ids = [grid.parse_cell(str(text or "")) for text in texts]
    except GridError as error:
        raise RowsError(f"{path}: column grid_id_coord: {error}") from error
    return np.array(ids, np.int64)[code]


def _modalities(
    column: "pa.ChunkedArray", names: tuple[str, ...], path: str | Path
) -> NDArray[np.int8]:
    texts, code = distinct(column)
    unknown = [str(text) for text in texts if text not in names]
    if unknown:
        raise RowsError(
            f"{path}: unknown modality {', '.join(sorted(unknown)):.400}; "
            f"expected {', '.join(names)}"
        )
    return np.array([names.index(str(text)) for text in texts], np.int8)[code]


def _dates(column: "pa.ChunkedArray", path: str | Path) -> NDArray[np.object_]:
    values, code = distinct(column)
    try:
        texts = [None if is_missing(value) else _yyyymmdd(value) for value in values]
    except OptionError as error:
        raise RowsError(f"{path}: column date: {error!s:.200}") from error
    return np.array(texts, object)[code]


@lru_cache(maxsize=4096)
def _yyyymmdd(value: Any) -> str:
    """See `yyyymmdd`; the days of a year recur in each of thousands of files."""
    return yyyymmdd(value)


def _texts(column: "pa.ChunkedArray") -> NDArray[np.object_]:
    texts, code = distinct(column)
    return texts[code]


def distinct(column: "pa.ChunkedArray") -> tuple[NDArray[np.object_], NDArray[np.int64]]:
    """Return the distinct values, None for missing or empty ones, and every row's index."""
    import pyarrow as pa

    if not pa.types.is_dictionary(column.type):
        kind = pa.string() if column.type == pa.null() else column.type
        column = column.cast(kind).dictionary_encode()
    encoded = column.unify_dictionaries().combine_chunks()
    if isinstance(encoded, pa.ChunkedArray):  # of no chunks
        return np.empty(0, object), np.empty(0, np.int64)
    # Uses the bytes directly: importing arrow's functions, or pandas, takes longer than reading.
    indices, n, start = encoded.indices, len(encoded), encoded.indices.offset
    valid, data = indices.buffers()
    all_valid = pa.Array.from_buffers(indices.type, n, [None, data], offset=start)
    place = np.from_dlpack(all_valid).astype(np.int64) + 1
    if indices.null_count:
        bits = np.unpackbits(np.frombuffer(valid, np.uint8), bitorder="little")
        place *= bits[start : start + n]
    # A dictionary may hold values that no row has, which do not matter.
    texts = [None, *encoded.dictionary.to_pylist()]
    used = np.bincount(place, minlength=len(texts)) > 0
    values = [None if texts[i] == "" else texts[i] for i in np.flatnonzero(used).tolist()]
    return np.array(values, object), (np.cumsum(used) - 1)[place]
