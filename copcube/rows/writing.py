"""Writing rows: always the same bytes for the same rows."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from copcube import grid
from copcube.rows.table import COLUMNS, PREFIX, Rows
from copcube.rows.vectors import require_finite

if TYPE_CHECKING:
    import pyarrow as pa

ROW_GROUP = 4096
"""Rows of a row group in files that we write: 12 MB of vectors of 768."""


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

    # Sorted here, not by the caller: the same rows must give the same bytes.
    rows = rows.sorted()
    require_finite(rows.embedding, name, np.arange(len(rows)))
    dim = rows.embedding.shape[1]
    # A cell has about ninety rows, so its text is made once.
    cells, cell = np.unique(rows.grid_id, return_inverse=True)
    texts = pa.array([grid.format_cell(int(c)) for c in cells], pa.string())
    keys = pa.array(rows.labels, pa.string())
    values = pa.array(np.ascontiguousarray(rows.embedding).reshape(-1))
    columns = [
        texts.take(pa.array(cell)),
        keys.take(pa.array(rows.modality)),
        pa.array(rows.local_id, pa.string()),
        pa.array(rows.date, pa.string()),
        pa.FixedSizeListArray.from_arrays(values, dim),
    ]
    metadata = {PREFIX + key: str(provenance[key]) for key in sorted(provenance)}
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
