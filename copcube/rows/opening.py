"""Opening parquet files that may come from anywhere."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from copcube.errors import CopcubeError, RowsError, StorageError, in_a_line
from copcube.files.contents import refuse_other
from copcube.files.limits import rule_out_shortage
from copcube.files.objects import is_remote, open_file
from copcube.files.parquet_pages import demand_local_pages, demand_pages
from copcube.files.regular import require_file
from copcube.rows.table import COLUMNS

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq


def row_group_sizes(path: str | Path, columns: Sequence[str] = COLUMNS) -> list[int]:
    """Rows in every row group of a file.

    Parameters
    ----------
    path : str or Path
        Of the file, or an address.
    columns : sequence of str
        Columns to be read, whose pages are checked.

    Raises
    ------
    RowsError
        If the file is missing or is not parquet.
    """
    with open_parquet(path, columns=columns) as file:
        return sizes_of_groups(file.metadata)


def sizes_of_groups(footer: "pq.FileMetaData") -> list[int]:
    """Rows in every row group, as the footer of a file counts them."""
    return [footer.row_group(g).num_rows for g in range(footer.num_row_groups)]


def embedding_length(path: str | Path) -> int:
    """Length of the vectors of a file, without reading them all; 0 if it has none.

    Raises
    ------
    RowsError
        As `read_rows`.
    """
    with reading_parquet(path) as file:
        check_schema(file.schema_arrow, path)
        return vector_length(file)


def vector_length(file: "pq.ParquetFile") -> int:
    """Length of the vectors of an open file; 0 if it has none."""
    column = vectors_column(file.schema_arrow)
    kind = file.schema_arrow.field(column).type
    if hasattr(kind, "list_size"):
        return int(kind.list_size)
    for batch in file.iter_batches(64, columns=[column]):
        lengths = np.diff(np.from_dlpack(batch.column(0).offsets))
        if lengths.any():
            return int(lengths[lengths > 0][0])
    return 0


def vectors_column(schema: "pa.Schema") -> str:
    """Name of the column of vectors: ``embedding``, or ``embeddings`` in some mirrors."""
    return "embedding" if "embedding" in schema.names else "embeddings"


def open_parquet(
    path: str | Path,
    metadata: "pq.FileMetaData | None" = None,
    columns: Sequence[str] = COLUMNS,
) -> "pq.ParquetFile":
    """Open a parquet file, or one at an address; its metadata is not read again if given.

    Parameters
    ----------
    path : str or Path
        Of the file.
    metadata : pyarrow.parquet.FileMetaData, optional
        Its footer.
    columns : sequence of str
        What is to be read of it; texts among them come as dictionaries.

    Raises
    ------
    RowsError
        If it is missing or is not parquet.
    StorageError
        If an object store cannot be reached or denies access.
    OSError
        If a disk or a permission refuses.
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
                demand_pages(None, metadata, columns, str(path), RowsError)
        else:
            require_file(path, RowsError)
            if not os.path.isfile(path):
                raise FileNotFoundError
            source, size = path, 1 << 20
            if metadata is None:
                metadata = _checked(str(path), os.stat(path).st_mtime_ns, columns)
        # Texts stay in dictionaries: one long text repeated in a million rows is held once.
        texts = _texts(metadata, columns)
        return pq.ParquetFile(
            source, metadata=metadata, pre_buffer=False, buffer_size=size, read_dictionary=texts
        )
    except FileNotFoundError as error:
        raise RowsError(f"{path}: no such file") from error
    # These are also subclasses of the errors below, but not damage; arrow has its own memory error.
    except (StorageError, MemoryError):
        raise
    except (pa.ArrowException, OSError, UnicodeEncodeError) as error:
        rule_out_shortage(error)
        # Errors that pyarrow makes itself have no number; what a disk or a permission refuses has.
        if (number := getattr(error, "errno", None)) is not None:
            raise OSError(number, os.strerror(number), str(path)) from error
        if not is_remote(path):
            refuse_other(path, ("parquet",), "a parquet file", RowsError)
        raise RowsError(f"{path}: not a readable parquet file ({error})") from error


def _texts(metadata: "pq.FileMetaData", columns: Sequence[str]) -> list[str]:
    """Columns of texts among those to be read that arrow can read into dictionaries."""
    found = {metadata.schema.column(i).path: i for i in range(metadata.num_columns)}
    texts = {
        name: found[name]
        for name in columns
        if name in found and metadata.schema.column(found[name]).physical_type == "BYTE_ARRAY"
    }
    texts.pop("geometry", None)
    for group in range(metadata.num_row_groups if texts else 0):
        chunks = metadata.row_group(group)
        for name, i in [*texts.items()]:
            # Arrow cannot read DELTA_BYTE_ARRAY and DELTA_LENGTH_BYTE_ARRAY so.
            if any(encoding.startswith("DELTA") for encoding in chunks.column(i).encodings):
                del texts[name]
    return list(texts)


@contextmanager
def reading_parquet(
    path: str | Path,
    metadata: "pq.FileMetaData | None" = None,
    columns: Sequence[str] = COLUMNS,
) -> Iterator["pq.ParquetFile"]:
    """Open a parquet file while the body reads it; errors name it, as in `open_parquet`.

    Raises
    ------
    RowsError
        If it is not a parquet file, or what the body reads is damaged; errors of disks and stores
        pass.
    StorageError
        As `open_parquet`.
    """
    import pyarrow as pa

    with open_parquet(path, metadata, columns) as file:
        try:
            yield file
        except (CopcubeError, MemoryError):
            raise
        except (pa.ArrowException, OSError, ValueError) as error:
            # Errors that pyarrow makes itself have no number.
            if getattr(error, "errno", None) is not None:
                raise
            rule_out_shortage(error)
            raise RowsError(f"{path}: damaged ({in_a_line(error)}); get a new copy") from error


def _checked(path: str, modified: int, columns: Sequence[str]) -> "pq.FileMetaData":
    """Footer of a file; pages of each column are looked at once while the file does not change."""
    metadata, seen = _footer(path, modified), _seen(path, modified)
    # Vectors are called either, see `vectors_column`.
    named = {*columns, "embeddings"} if "embedding" in columns else set(columns)
    if new := named - seen:
        demand_local_pages(metadata, new, path, RowsError)
        seen |= new
    return metadata


@lru_cache(maxsize=64)
def _footer(path: str, _modified: int) -> "pq.FileMetaData":
    """Footer of a file, of which a large one takes a megabyte."""
    import pyarrow.parquet as pq

    return pq.read_metadata(path)


@lru_cache(maxsize=1 << 16)
def _seen(_path: str, _modified: int) -> set[str]:
    """Names of the columns of a file whose pages were looked at, which takes longer."""
    return set()


def check_schema(schema: "pa.Schema", path: str | Path) -> None:
    """Check that a file has the columns of rows, of types that can be read as them.

    Raises
    ------
    RowsError
        If not.
    """
    import pyarrow as pa

    missing = [name for name in COLUMNS if name not in schema.names]
    if missing == [*COLUMNS[1:-1]]:
        raise RowsError(
            f"{path} has one row per cell, not one per image; `copcube convert` makes a cube of "
            "such averages"
        )
    if missing:
        raise RowsError(
            f"{path}: expected the columns {', '.join(COLUMNS)}; "
            f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing "
            f"(found {', '.join(schema.names) or 'none'})"
        )
    types = pa.types
    # Strings aside, tables hold dates as one of these.
    dates = (types.is_date, types.is_timestamp, types.is_integer, types.is_float64)
    for name in COLUMNS[:-1]:
        kind = schema.field(name).type
        # pandas writes categories as dictionaries of strings.
        kind = kind.value_type if types.is_dictionary(kind) else kind
        if name == "date" and any(test(kind) for test in dates):
            continue
        # A column without any value has the type null.
        if not (types.is_string(kind) or types.is_large_string(kind) or kind == pa.null()):
            raise RowsError(f"{path}: column {name} holds {kind}; expected strings")
    check_vectors(schema, path)


def check_vectors(schema: "pa.Schema", path: str | Path) -> None:
    """Check that a file's vectors are lists of floats.

    Raises
    ------
    RowsError
        If they are not.
    """
    import pyarrow as pa

    column = vectors_column(schema)
    kind = schema.field(column).type
    lists = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    if not (any(test(kind) for test in lists) and pa.types.is_floating(kind.value_type)):
        raise RowsError(
            f"{path}: column {column} holds {kind}; expected lists of float16, float32 or float64"
        )
