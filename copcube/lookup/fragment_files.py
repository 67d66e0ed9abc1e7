"""Metadata of each row or fragment in files: where it lies, and what it was made of."""

from pathlib import Path

import numpy as np

from copcube import grid, rows
from copcube.errors import GridError, RowsError
from copcube.files.objects import is_remote
from copcube.grid import Floats
from copcube.products import tables
from copcube.products.majortom import reading as majortom
from copcube.products.majortom.transposed import Position

_SAID = {
    "grid_cell": "cell",
    "product_id": "product",
    "timestamp": "date",
    "grid_id_coord": "cell",
    "modality": "modality",
    "date": "date",
}
"""Columns that name what a vector was made of, and their names in a list of results."""


def holds_fragments(path: str) -> bool:
    """Whether a path names tables of rows or fragments, rather than a cube or a published map."""
    local = Path(path)
    if is_remote(path) or (local.is_dir() and (local / "zarr.json").exists()):
        return False
    if local.is_file() and local.suffix.lower() != ".parquet":
        return False
    try:
        first = rows.rows_files(path)[0]
        with rows.reading_parquet(first) as file:
            names = file.schema_arrow.names
    except RowsError:
        return False
    return not {"modality", "grid_cell", "product_id"}.isdisjoint(names)


def centres(file: str, footprints: Position) -> tuple[Floats, Floats]:
    """Latitudes and longitudes of the centres of a file's rows."""
    groups = range(len(rows.row_group_sizes(file)))
    if tables.is_product(file):
        found = [majortom.centres(file, [group], footprints) for group in groups]
        none = np.empty(0)
        return (
            np.concatenate([none, *(lat for lat, _ in found)]),
            np.concatenate([none, *(lon for _, lon in found)]),
        )
    read = rows.read_rows(file, embedding=False)
    row, col = grid.row_col(read.grid_id)
    lat: Floats = np.asarray(90 - row * grid.STEP, np.float64)
    lon: Floats = np.asarray((col * grid.STEP + 180) % 360 - 180, np.float64)
    # Images of a whole cell have no place of their own.
    own = [i for i, text in enumerate(read.local_id) if text is not None]
    for i in own:
        try:
            lat[i], lon[i] = grid.parse_local(read.local_id[i])
        except GridError as error:
            raise RowsError(f"{file}: row {i}: column local_id_coord: {error}") from error
    return lat, lon


def said_of_row(file: str, number: int) -> dict[str, str]:
    """Metadata of one row in a file, without its vector and what is derived from it."""
    with rows.reading_parquet(file) as opened:
        sizes = rows.sizes_of_groups(opened.metadata)
        ends = np.cumsum(sizes)
        group = int(np.searchsorted(ends, number, side="right"))
        names = [name for name in _SAID if name in opened.schema_arrow.names]
        table = opened.read_row_group(group, columns=names)
        line = table.slice(number - (int(ends[group]) - sizes[group]), 1).to_pylist()[0]
    return {_SAID[name]: "" if value is None else str(value) for name, value in line.items()}
