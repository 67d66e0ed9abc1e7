"""Statistics of cells: what aggregation makes of the images and a cube is written from.

Cells are sorted by group and then in ERA5's order, north to south and west to east, so that
a band of a cube is one run a group. They are kept in Arrow IPC files that are mapped into
memory: a band is read without touching the rest.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from copcube import grid
from copcube.errors import RowsError
from copcube.storage import atomic_path


@dataclass(frozen=True)
class Cells:
    """Statistics of n cells, sorted by (group, row, column) in ERA5's order.

    Parameters
    ----------
    grid_id : numpy.ndarray
        Published cell ids, (n,) int64.
    group : numpy.ndarray
        Index into the labels of the groups, (n,) int16; 0 without groups.
    n_images : numpy.ndarray
        Images of the cell in this group, (n,) int32, at least 1.
    n_by_modality : numpy.ndarray
        The same for every modality, (n, 8) int32.
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
    def place(self) -> NDArray[np.int64]:
        """Sorting key, (n,) int64: group, row and column as one number."""
        row, col = grid.row_col(self.grid_id)
        return (self.group.astype(np.int64) * grid.N_LAT + row) * grid.N_LON + col

    def take(self, index: NDArray[Any] | slice) -> "Cells":
        """Cells chosen by ascending positions, a mask or a slice; a slice gives views."""
        return replace(self, **{name: getattr(self, name)[index] for name in _ARRAYS})

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
        place = joined.place
        if np.all(np.diff(place) > 0):
            return joined
        order = np.argsort(place, kind="stable")
        twice = np.flatnonzero(np.diff(place[order]) == 0)
        if len(twice):
            cell = grid.format_cell(int(joined.grid_id[order[twice[0]]]))
            raise RowsError(
                f"cell {cell} comes twice; its rows were aggregated in several parts, which "
                "must be done together (`combine_split`)"
            )
        return joined.take(order)


_ARRAYS = tuple(f.name for f in fields(Cells) if f.name != "duplicates")


def write_cells(path: str | Path, cells: Cells) -> None:
    """Write cells as an Arrow IPC file, atomically; the same cells give the same bytes.

    Raises
    ------
    StorageError
        If the file cannot be written.
    """
    import pyarrow as pa

    columns = [
        pa.array(cells.grid_id),
        pa.array(cells.group),
        pa.array(cells.n_images),
        _lists(cells.n_by_modality),
        pa.array(cells.spread),
        _lists(cells.embedding),
    ]
    schema = pa.schema(
        [pa.field(name, c.type, nullable=False) for name, c in zip(_ARRAYS, columns, strict=True)],
        metadata={"duplicates": str(cells.duplicates)},
    )
    with atomic_path(path) as temporary, pa.ipc.new_file(str(temporary), schema) as file:
        file.write_batch(pa.record_batch(columns, schema=schema))


def read_cells(path: str | Path, band: int | None = None) -> Cells:
    """Read cells, or those of one band of 45 rows, as views of the mapped file.

    Parameters
    ----------
    path : str or Path
        File of `write_cells`.
    band : int, optional
        Band of blocks, 0 (north) to 16.

    Raises
    ------
    RowsError
        If the file is missing or is not one of cells.
    """
    import pyarrow as pa

    try:
        with pa.memory_map(str(path)) as mapped:
            file = pa.ipc.open_file(mapped)
            batch = file.get_batch(0)
            duplicates = int(file.schema.metadata[b"duplicates"])
        arrays: list[Any] = [_numpy(batch.column(name)) for name in _ARRAYS]
    except (OSError, KeyError, TypeError, pa.ArrowInvalid) as error:
        raise RowsError(f"{path}: not a readable file of cells ({error})") from error
    cells = replace(Cells(*arrays), duplicates=duplicates)
    if band is None:
        return cells
    groups = np.arange(int(cells.group.max(initial=0)) + 1)
    rows = grid.Block(band, 0).rows
    place = cells.place
    start = np.searchsorted(place, (groups * grid.N_LAT + rows.start) * grid.N_LON)
    stop = np.searchsorted(place, (groups * grid.N_LAT + rows.stop) * grid.N_LON)
    runs = [cells.take(slice(a, b)) for a, b in zip(start, stop, strict=True)]
    if len(runs) == 1:
        return runs[0]
    return replace(Cells.concatenate(runs), duplicates=duplicates)


def _lists(values: NDArray[Any]) -> Any:
    import pyarrow as pa

    flat = pa.array(np.ascontiguousarray(values).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, values.shape[1])


def _numpy(column: Any) -> NDArray[Any]:
    """View of a column without copying; lists of fixed size become rows of a matrix."""
    if hasattr(column.type, "list_size"):
        width = column.type.list_size
        return np.asarray(column.flatten().to_numpy()).reshape(len(column), width)
    return np.asarray(column.to_numpy())
