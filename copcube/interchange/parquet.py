"""Parquet tables of averages: one row per cell, ``grid_id_coord`` and ``embedding``.

As in ``embeddings_avg_310k.parquet``. Ids count from the south pole; a table has no reliable order,
so all of it is read once.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from copcube import grid
from copcube.errors import RowsError
from copcube.interchange.cache import FilledCells
from copcube.interchange.metadata import KEY, MapMetadata
from copcube.interchange.packing import Exported, Packing
from copcube.interchange.sources import Decoded, MapSource, demand_band
from copcube.interchange.writer import writing_map
from copcube.rows import (
    ROW_GROUP,
    check_vectors,
    parse_cells,
    reading_parquet,
    repeated,
    rows_files,
    to_vectors,
)

if TYPE_CHECKING:
    import pyarrow.parquet as pq
    import xarray as xr

COLUMNS = ("grid_id_coord", "embedding")
_BATCH = 16 * ROW_GROUP
"""Rows read at a time: about those in 45 rows of cells, so that few chunks are written twice."""


@dataclass(frozen=True)
class Averages(Decoded):
    """One or several tables of averages.

    Parameters
    ----------
    tables : tuple of str
        Their names.
    """

    tables: tuple[str, ...] = ()

    @property
    def files(self) -> tuple[str, ...]:  # noqa: D102
        return self.tables

    def cells(self) -> Iterator[FilledCells]:  # noqa: D102
        import pyarrow as pa

        seen = np.zeros((grid.N_LAT, grid.N_LON), bool)
        for name in self.tables:
            start = 0
            with reading_parquet(name) as file:
                for batch in file.iter_batches(_BATCH, columns=list(COLUMNS)):
                    ids = parse_cells(pa.chunked_array([batch.column(0)]), name)
                    row, col = grid.row_col(ids)
                    col = grid.published_column(col)
                    in_order = np.sort(ids)
                    twice = [*ids[seen[row, col]], *in_order[repeated(in_order[np.newaxis])]]
                    if twice:
                        raise RowsError(
                            f"{name}: cell {grid.format_cell(int(twice[0]))} occurs twice; "
                            "expected each cell once: give one table of averages, or parts that do "
                            "not overlap"
                        )
                    seen[row, col] = True
                    number = start + np.arange(len(ids))
                    vectors = to_vectors(batch.column(1), self.dim, name, number)
                    filled = self.packing.filled(vectors)
                    yield row[filled], col[filled], vectors[filled]
                    start += len(ids)


def open_averages(path: str) -> MapSource:
    """Find tables of averages, without reading their vectors.

    Raises
    ------
    RowsError
        If there are none, or they are other tables, or their vectors differ.
    """
    files = tuple(str(file) for file in rows_files(path))
    dims, texts = set(), set()
    for name in files:
        with reading_parquet(name) as file:
            dim = _length(file, name)
            demand_band(name, dim, 4)
            dims.add(dim)
            texts.add((file.schema_arrow.metadata or {}).get(KEY.encode()))
    if len(dims) > 1 or len(texts) > 1:
        raise RowsError(
            f"{path}: the tables hold vectors of lengths {', '.join(map(str, sorted(dims)))}, "
            "which do not belong together; open them one by one"
        )
    text = texts.pop()
    metadata = MapMetadata.loads(None if text is None else text.decode("utf-8", "replace"), path)
    metadata = replace(metadata, order="published")  # as `Averages.cells` counts columns
    return Averages(path, "parquet averages", dims.pop(), Packing(), metadata, files)


def to_parquet(
    ds: "xr.Dataset",
    path: str | Path,
    *,
    dtype: str = "float32",
    overwrite: bool = False,
) -> Exported:
    """Write a cube or a reduction as the published table of averages, sorted by cell id.

    Parameters
    ----------
    ds : xarray.Dataset
        Cube or reduction, of any region.
    path : str or Path
        File to write, atomically.
    dtype : {"float32", "float16"}
        Data type of the vectors.
    overwrite : bool
        Replace what is there.

    Returns
    -------
    Exported
        What was written, and the error that `dtype` causes.

    Raises
    ------
    CubeError, GridError
        If the dataset is not a cube or reduction on the lattice.
    OptionError
        If an option has no such value.
    WriteError
        If the file exists already or cannot be written.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    with writing_map(
        ds, path, "parquet", ("float32", "float16"), dtype=dtype, overwrite=overwrite
    ) as writer:
        schema = pa.schema(
            [
                pa.field(COLUMNS[0], pa.string(), nullable=False),
                pa.field(COLUMNS[1], pa.list_(pa.from_numpy_dtype(dtype), writer.dim)),
            ],
            metadata={KEY: writer.metadata.dumps()},
        )
        with pq.ParquetWriter(
            writer.file,
            schema,
            compression="zstd",
            compression_level=1,
            use_dictionary=False,
            column_encoding={"embedding.list.element": "BYTE_STREAM_SPLIT"},
        ) as file:
            # Published ids count from the south pole, and the table is sorted by them.
            for rows in reversed(list(grid.bands())):
                y, x, vectors = writer.cells(rows)
                # The writer's columns start at 180°W, those of `grid_id` at 0°E.
                ids = grid.grid_id(y + rows.start, grid.published_column(x))
                south_first = np.argsort(ids)
                numbers = writer.packer.pack(vectors[south_first])
                texts = [grid.format_cell(int(cell)) for cell in ids[south_first]]
                values = pa.FixedSizeListArray.from_arrays(
                    pa.array(numbers.reshape(-1)), writer.dim
                )
                batch = pa.record_batch([pa.array(texts, pa.string()), values], schema=schema)
                file.write_batch(batch, row_group_size=ROW_GROUP)
    return writer.result(path)


def _length(file: "pq.ParquetFile", name: str) -> int:
    """Length of the vectors of a table of averages.

    Raises
    ------
    RowsError
        If it is not one.
    """
    found = file.schema_arrow.names
    missing = [column for column in COLUMNS if column not in found]
    if missing:
        raise RowsError(
            f"{name}: expected the columns {' and '.join(COLUMNS)} of a table of averages; "
            f"{' and '.join(missing)} missing (found {', '.join(found) or 'none'})"
        )
    # Tables of images have the same two columns; averaging them here would be a guess.
    if "modality" in found:
        raise RowsError(
            f"{name}: holds one row per image, not averages; make a cube of it with copcube "
            "aggregate"
        )
    if file.metadata.num_rows:
        check_vectors(file.schema_arrow, name)
    kind = file.schema_arrow.field("embedding").type
    if getattr(kind, "list_size", 0) > 0:
        return int(kind.list_size)
    for batch in file.iter_batches(1, columns=["embedding"]):
        if length := len(batch.column(0)[0].as_py() or ()):
            return length
    raise RowsError(f"{name}: has no rows with vectors; get a new copy")
