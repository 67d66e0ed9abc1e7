"""The list of partitions of a build: one row each in a parquet file; each task reads one row."""

from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from copcube.arguments import whole_number
from copcube.errors import OptionError
from copcube.images import Partition

_ROW_GROUP = 64
"""Partitions in a row group of their list; a worker reads one group for each of its tasks."""

_DIGEST = "digest"


def chosen_partitions(partitions: str | int | None, count: int) -> range:
    """Return the partition numbers, from 0, that a text such as ``0-99`` or ``7`` stands for.

    Raises
    ------
    OptionError
        If it cannot be read, or names a partition that does not exist.
    """
    if partitions is None:
        return range(count)
    if not isinstance(partitions, str):
        partitions = str(whole_number(partitions, "partitions", 0))
    first, dash, last = partitions.partition("-")
    if not first.isdecimal() or not (last.isdecimal() or not dash):
        raise OptionError(
            f"partitions {partitions!r}: expected a number from 0, or a range such as 0-99"
        )
    chosen = range(int(first), int(last or first) + 1)
    if not chosen:
        raise OptionError(
            f"partitions {partitions!r}: the range ends before it begins; expected {last}-{first}"
        )
    if chosen[-1] >= count:
        has = f"{count}, numbered from 0 to {count - 1}" if count else "none"
        raise OptionError(f"partitions {partitions!r}: this source has {has}")
    return chosen


def encode_partitions(partitions: Sequence[Partition], digest: str) -> pa.Buffer:
    """Encode the list of partitions, with its digest, as a parquet file of one row each."""
    table = pa.table(
        {
            "name": pa.array([p.name for p in partitions], pa.string()),
            "images": pa.array([p.images for p in partitions], pa.int64()),
            "cells": pa.array([p.cells for p in partitions], pa.int64()),
            "paths": pa.array([p.paths for p in partitions], pa.list_(pa.string())),
        }
    ).replace_schema_metadata({_DIGEST: digest})
    sink = pa.BufferOutputStream()
    # Row groups are small: a task reads its own partition and little else of the list.
    pq.write_table(table, sink, compression="zstd", row_group_size=_ROW_GROUP)
    return sink.getvalue()


def read_digest(file: Any) -> str:
    """Read only the digest of the list of partitions in a file."""
    metadata = pq.read_schema(file).metadata or {}
    return str(metadata.get(_DIGEST.encode(), b"").decode())


def read_partitions(file: Any) -> list[Partition]:
    """Read the list of partitions back, from what `copcube.files.folders.Folder.open` returns."""
    return _partitions(pq.read_table(file))


def read_partition(file: Any, number: int) -> Partition:
    """Read one partition of the list, and little else of it."""
    group, row = divmod(number, _ROW_GROUP)
    return _partitions(pq.ParquetFile(file).read_row_group(group).slice(row, 1))[0]


def _partitions(table: pa.Table) -> list[Partition]:
    return [
        Partition(row["name"], tuple(row["paths"]), row["images"], row["cells"])
        for row in table.to_pylist()
    ]
