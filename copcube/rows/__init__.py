"""The table of embeddings: one row per image, in the layout of the published parquet files.

Columns are ``grid_id_coord``, ``modality``, ``local_id_coord``, ``date`` and ``embedding``,
as in ``full_chunks`` of Copernicus-Embed-025deg, so that our files and the published ones
interchange. What is written is strict and always the same bytes for the same rows; what is
read may come from elsewhere: other list types and precisions, empty strings for missing
values, further columns.
"""

from copcube.rows.opening import (
    check_vectors,
    embedding_length,
    reading_parquet,
    row_group_sizes,
    sizes_of_groups,
    vector_length,
)
from copcube.rows.reading import distinct, parse_cells, read_provenance, read_rows, rows_files
from copcube.rows.table import COLUMNS, Rows, describe, repeated
from copcube.rows.vectors import are_finite, flattened, map_vectors, to_vectors
from copcube.rows.writing import ROW_GROUP, encode_rows

__all__ = [
    "COLUMNS",
    "ROW_GROUP",
    "Rows",
    "are_finite",
    "check_vectors",
    "describe",
    "distinct",
    "embedding_length",
    "encode_rows",
    "flattened",
    "map_vectors",
    "parse_cells",
    "read_provenance",
    "read_rows",
    "reading_parquet",
    "repeated",
    "row_group_sizes",
    "rows_files",
    "sizes_of_groups",
    "to_vectors",
    "vector_length",
]
