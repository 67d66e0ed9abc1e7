"""Metadata of a cube's arrays and groups, as Zarr stores them: a ``zarr.json`` each.

The documents are those that zarr-python 3.1 writes, to the byte. They are made here since importing
zarr takes as long as aggregating tens of thousands of rows. Format: Zarr core specification,
version 3.1 (https://zarr-specs.readthedocs.io); consolidated metadata, in which a group repeats
what lies below it, as zarr-python has them.
"""

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from copcube.cube.schema import ZSTD_LEVEL, Variable

DOCUMENT = "zarr.json"
"""File of a node's metadata."""


def of_array(variable: Variable) -> dict[str, Any]:
    """Document of one array: little-endian values, compressed by zstd with checksums."""
    # Numbers of one byte have no byte order.
    endian = (
        {"configuration": {"endian": "little"}} if np.dtype(variable.dtype).itemsize > 1 else {}
    )
    zstd = {"name": "zstd", "configuration": {"level": ZSTD_LEVEL, "checksum": True}}
    names = {"dimension_names": list(variable.dims)} if variable.dims else {}
    return {
        "shape": list(variable.shape),
        "data_type": variable.dtype,
        "chunk_grid": {
            "name": "regular",
            "configuration": {"chunk_shape": list(variable.chunks)},
        },
        # All chunks in one folder: a folder for each takes longer to make than the chunk.
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "."}},
        "fill_value": "NaN" if math.isnan(variable.fill) else variable.fill,
        "codecs": [{"name": "bytes", **endian}, zstd],
        "attributes": variable.attrs,
        **names,
        "zarr_format": 3,
        "node_type": "array",
        "storage_transformers": [],
    }


def of_group(
    attributes: Mapping[str, Any], members: Mapping[str, dict[str, Any]] | None = None
) -> dict[str, Any]:
    """Document of a group.

    Parameters
    ----------
    attributes : mapping
        Its attributes.
    members : mapping, optional
        Documents of the nodes directly below it, by name, to be consolidated. A group among them
        has none.
    """
    document = {"attributes": dict(attributes), "zarr_format": 3}
    if members is not None:
        below = {
            name: of_group(member["attributes"], {}) if member["node_type"] == "group" else member
            for name, member in sorted(members.items())
        }
        document["consolidated_metadata"] = {
            "kind": "inline",
            "must_understand": False,
            "metadata": below,
        }
    return document | {"node_type": "group"}


def encoded(document: Mapping[str, Any]) -> bytes:
    """Bytes of a document."""
    return json.dumps(document, indent=2).encode()
