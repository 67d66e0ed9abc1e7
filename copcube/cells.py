"""Statistics of cells: the result of aggregation, from which a cube is written.

Cells are sorted by group and then in ERA5's order, north to south and west to east. They are stored
in Arrow IPC files, one record batch per band of the cube, so that writing a band reads nothing
else.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from copcube import grid
from copcube.errors import RowsError, StorageError
from copcube.files.limits import rule_out_shortage
from copcube.modalities import MODALITIES

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class Cells:
    """Statistics of n cells, sorted by (group, row, column) in ERA5's order.

    Parameters
    ----------
    grid_id : numpy.ndarray
        Published cell ids, (n,) int64.
    group : numpy.ndarray
        Index into the labels of the groups, (n,) int16; 0 without groups. Of cells that
        `copcube.balance` is to join, times m plus the number of their one modality.
    n_images : numpy.ndarray
        Images of the cell in this group, (n,) int32, at least 1.
    n_by_modality : numpy.ndarray
        The same for every modality, (n, m) int32: the eight, and other sensors behind them.
    spread : numpy.ndarray
        ``sqrt(Σ wᵢ‖xᵢ - m‖²)`` over the images, (n,) float32, in the embedding's units.
    embedding : numpy.ndarray
        Mean m over the images, (n, D) float32.
    duplicates : int
        Rows that were dropped as repeated images on the way here.
    """

    grid_id: NDArray[np.int64]
    group: NDArray[np.int16]
    n_images: NDArray[np.int32]
    n_by_modality: NDArray[np.int32]
    spread: NDArray[np.float32]
    embedding: NDArray[np.float32]
    duplicates: int = 0

    def __len__(self) -> int:
        return len(self.grid_id)

    @property
    def sort_key(self) -> NDArray[np.int64]:
        """Group, row and column as one number, (n,) int64."""
        row, col = grid.row_col(self.grid_id)
        return (self.group.astype(np.int64) * grid.N_LAT + row) * grid.N_LON + col

    def take(self, index: NDArray[Any] | slice) -> "Cells":
        """Cells chosen by ascending positions, a mask or a slice; a slice gives views."""
        return replace(self, **{name: getattr(self, name)[index] for name in _ARRAYS})

    @classmethod
    def empty(cls, dim: int, modalities: int = len(MODALITIES)) -> "Cells":
        """Return a table without cells, of vectors of length `dim`."""
        return cls(
            np.empty(0, np.int64),
            np.empty(0, np.int16),
            np.empty(0, np.int32),
            np.empty((0, modalities), np.int32),
            np.empty(0, np.float32),
            np.empty((0, dim), np.float32),
        )

    def by_band(self) -> "Iterator[tuple[int, Cells]]":
        """Divide the cells by bands of blocks, 0 (north) to 16; empty bands are left out."""
        band = grid.row_col(self.grid_id)[0] // grid.BLOCK
        for number in np.unique(band):
            yield int(number), self.take(band == number)

    @staticmethod
    def concatenate(parts: "Sequence[Cells]") -> "Cells":
        """Join disjoint cells into one sorted table.

        Raises
        ------
        RowsError
            If a cell occurs twice in the same group, vectors differ in length, or there
            are no tables.
        """
        dims = sorted({part.embedding.shape[1] for part in parts})
        if len(dims) != 1:
            raise RowsError(
                f"cells with embeddings of lengths {dims} cannot be joined; expected one length"
            )
        arrays: list[Any] = [
            np.concatenate([getattr(part, name) for part in parts]) for name in _ARRAYS
        ]
        joined = replace(Cells(*arrays), duplicates=sum(part.duplicates for part in parts))
        key = joined.sort_key
        # Parts of a sorted file come in order, and sorting vectors copies them all.
        if np.all(np.diff(key) > 0):
            return joined
        order = np.argsort(key, kind="stable")
        twice = np.flatnonzero(np.diff(key[order]) == 0)
        if len(twice):
            cell = grid.format_cell(int(joined.grid_id[order[twice[0]]]))
            raise RowsError(
                f"cell {cell} occurs twice; its rows were aggregated in several parts, which must "
                "be done together (`copcube.aggregate.combine_pass`)"
            )
        return joined.take(order)


_ARRAYS = tuple(f.name for f in fields(Cells) if f.name != "duplicates")


def encode_cells(cells: Cells) -> "pa.Buffer":
    """Cells as the bytes of an Arrow IPC file; the same cells give the same bytes."""
    import pyarrow as pa

    bands = dict(cells.by_band())
    # Without cells there is still one empty batch, which holds the length of the vectors.
    batches = [_batch(some) for some in bands.values()] or [_batch(cells)]
    about = {"duplicates": str(cells.duplicates), "bands": " ".join(map(str, bands))}
    sink = pa.BufferOutputStream()
    # Arrow rather than parquet: decoding is a view, and the files live for minutes.
    with pa.ipc.new_file(sink, batches[0].schema.with_metadata(about)) as file:
        for batch in batches:
            file.write_batch(batch)
    return sink.getvalue()


def _batch(cells: Cells) -> "pa.RecordBatch":
    import pyarrow as pa

    columns = [_column(getattr(cells, name)) for name in _ARRAYS]
    fields = [pa.field(n, c.type, nullable=False) for n, c in zip(_ARRAYS, columns, strict=True)]
    return pa.record_batch(columns, schema=pa.schema(fields))


def decode_cells(source: Any, name: str, band: int) -> Cells:
    """Cells of one band in what `encode_cells` gave, as views where that is possible.

    Parameters
    ----------
    source : str or file or buffer
        Path of a file, a file that can be read from any offset, or the bytes.
    name : str
        Where they come from, for messages.
    band : int
        Band of blocks, 0 (north) to 16.

    Raises
    ------
    FileNotFoundError
        If there is no file.
    RowsError
        If they are something else.
    StorageError
        If an object store cannot be reached or denies access.
    """
    import pyarrow as pa

    try:
        file = pa.ipc.open_file(pa.memory_map(source) if isinstance(source, str) else source)
        about = file.schema.metadata
        bands = [int(number) for number in about[b"bands"].split()]
        # The first batch is used for an absent band: its cells are left out.
        batch = file.get_batch(bands.index(band) if band in bands else 0)
        arrays: list[Any] = [_numpy(batch.column(name)) for name in _ARRAYS]
        cells = replace(Cells(*arrays), duplicates=int(about[b"duplicates"]))
    except (FileNotFoundError, StorageError):
        raise
    except (OSError, KeyError, TypeError, ValueError, pa.ArrowInvalid) as error:
        rule_out_shortage(error)
        raise RowsError(f"{name}: not a readable file of cells ({error})") from error
    return cells if band in bands else cells.take(slice(0))


def _column(values: NDArray[Any]) -> Any:
    """Column of an array; rows of a matrix become lists of fixed size.

    `pyarrow.array` would give the same, but imports pandas.
    """
    import pyarrow as pa

    flat = np.ascontiguousarray(values).reshape(-1)
    buffers = [None, pa.py_buffer(flat)]
    column = pa.Array.from_buffers(pa.from_numpy_dtype(flat.dtype), len(flat), buffers)
    return pa.FixedSizeListArray.from_arrays(column, values.shape[1]) if values.ndim > 1 else column


def _numpy(column: Any) -> NDArray[Any]:
    """View of a column without copying; lists of fixed size become rows of a matrix.

    `to_numpy` would be the same, but imports pandas.
    """
    # These columns have no nulls, so that their values need not be chosen by `flatten`.
    if hasattr(column.type, "list_size"):
        matrix = np.from_dlpack(column.values).reshape(-1, column.type.list_size)
        return matrix[column.offset : column.offset + len(column)]
    return np.from_dlpack(column)
