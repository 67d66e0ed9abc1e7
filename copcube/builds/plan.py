"""What a build will do: fixed once, written once, and what resuming is held against.

A plan holds everything that decides the bytes of the result: the source's fingerprint,
the encoder, the options, the batch sizes and the list of partitions. Its hash names the
build, so a receipt of another plan never counts.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from copcube.errors import BuildError
from copcube.images import Partition
from copcube.version import __version__

_ROW_GROUP = 64
_DIGEST = "digest"


@dataclass(frozen=True)
class Plan:
    """Everything that decides the bytes of a build.

    Parameters
    ----------
    kind : str
        ``build`` (from images) or ``aggregate`` (from rows).
    source : str
        Name of the source, without its folder.
    fingerprint : str
        SHA-256 over the names and sizes of the source's files.
    options : dict
        What was asked for, by the names of the command line's options.
    encoder : dict
        Provenance of the encoder; empty when aggregating.
    batch_sizes : dict
        Images a batch, by modality.
    partitions : str
        SHA-256 over the list of partitions.
    version : str
        Version of copcube that planned it.
    """

    kind: str
    source: str
    fingerprint: str
    options: dict[str, Any]
    encoder: dict[str, str | int]
    batch_sizes: dict[str, int]
    partitions: str
    version: str = __version__

    @property
    def id(self) -> str:
        """SHA-256 over the plan, the name of the build."""
        return digest(asdict(self))

    def refuse_changes(self, asked: "Plan", folder: str) -> None:
        """Raise if another plan was asked for than this one, which is under way.

        Raises
        ------
        BuildError
            Naming every key that differs, with both values.
        """
        old, new = _flat(asdict(self)), _flat(asdict(replace(asked, version=self.version)))
        differing = [key for key in sorted(old.keys() | new.keys()) if old.get(key) != new.get(key)]
        if not differing:
            return
        lines = "\n".join(
            f"  {key}: was {_short(old.get(key))}, now {_short(new.get(key))}" for key in differing
        )
        raise BuildError(
            f"{folder} belongs to a build with other options:\n{lines}\n"
            "Give the same options to go on with it, another output name to keep both, or "
            "--overwrite to throw its result away and start anew"
        )


def digest(value: Any) -> str:
    """SHA-256 of a value as JSON with sorted keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def partitions_digest(partitions: Sequence[Partition]) -> str:
    """SHA-256 over a list of partitions."""
    return digest([asdict(partition) for partition in partitions])


def encode_partitions(partitions: Sequence[Partition], digest: str) -> "pa.Buffer":
    """List of partitions as the bytes of a parquet file, one row each, with their digest."""
    table = pa.table(
        {
            "name": pa.array([p.name for p in partitions], pa.string()),
            "images": pa.array([p.images for p in partitions], pa.int64()),
            "cells": pa.array([p.cells for p in partitions], pa.int64()),
            "paths": pa.array([p.paths for p in partitions], pa.list_(pa.string())),
        }
    ).replace_schema_metadata({_DIGEST: digest})
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", row_group_size=_ROW_GROUP)
    return sink.getvalue()


def read_digest(file: Any) -> str:
    """Digest of the list of partitions in a file, without reading it."""
    metadata = pq.read_schema(file).metadata or {}
    return str(metadata.get(_DIGEST.encode(), b"").decode())


def read_partitions(file: Any) -> list[Partition]:
    """Read the list of partitions back, from what `copcube.files.folders.Folder.open` returns."""
    return _partitions(pq.read_table(file))


def read_partition(file: Any, number: int) -> Partition:
    """Read one partition of the list, and little else of it."""
    group, row = divmod(number, _ROW_GROUP)
    return _partitions(pq.ParquetFile(file).read_row_group(group).slice(row, 1))[0]


def _partitions(table: "pa.Table") -> list[Partition]:
    return [
        Partition(row["name"], tuple(row["paths"]), row["images"], row["cells"])
        for row in table.to_pylist()
    ]


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, item in value.items():
        if isinstance(item, Mapping):
            flat |= _flat(item, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = list(item) if isinstance(item, tuple) else item
    return flat


def _short(value: Any) -> str:
    text = "nothing" if value is None else str(value)
    return text if len(text) <= 60 else f"{text[:16]}…"
