"""Whole sets of embeddings in memory, and the fragments that several sets have in common.

``unique_id`` cannot join them: it depends on the vector too, and so differs between models. A
fragment is identified by its cell, product and box.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from copcube.errors import RowsError
from copcube.grid import Integers
from copcube.products.majortom import columns, reading
from copcube.products.majortom.grid import GRID, codes_of
from copcube.products.majortom.table import SOURCES, Embeddings
from copcube.products.majortom.transposed import Position, is_swapped
from copcube.rows import distinct, map_vectors, reading_parquet, row_group_sizes, rows_files


def load(path: str | Path, footprints: Position = "auto") -> Embeddings:
    """Read a set of embeddings whole, such as one of the 249k family (0.3 to 2.2 GB).

    Parameters
    ----------
    path : str or Path
        A file, a folder of files or a glob; addresses as well.
    footprints : {"auto", "given", "swap"}
        What is done about transposed boxes; see `copcube.products.majortom.reading.read`.

    Returns
    -------
    Embeddings
        In the order of the files' names and their rows.

    Raises
    ------
    RowsError
        If there are no files, one lacks columns or holds what cannot be read, or their vectors
        differ in length.
    """
    return Embeddings.concatenate([_load(file, footprints) for file in rows_files(path)])


def _load(path: str | Path, position: Position) -> Embeddings:
    groups = range(len(row_group_sizes(path)))
    # Every check is made there; of what it finds only the place of the box matters here.
    rows = reading.read(path, groups, "centre", position)
    swapped = is_swapped(path, position)
    names = (*columns.NEEDED, *SOURCES)
    with reading_parquet(path, columns=names) as file:
        there = [name for name in names if name in file.schema_arrow.names]
        table = file.read(columns=there)
    texts = {name: distinct(table.column(name)) for name in columns.TEXTS}
    cell, crs = texts["grid_cell"], texts["utm_crs"]
    row, col = GRID.parse(cell[0])
    box = columns.boxes(table.column("pixel_bbox"), path, np.arange(len(rows)))
    every = np.ones(len(rows), bool)
    vectors = [block for _, block in map_vectors(lambda *b: b, path, groups, every)]
    url = distinct(table.column(SOURCES[0])) if SOURCES[0] in there else None
    number = table.column(SOURCES[1]).to_pylist() if SOURCES[1] in there else None
    return Embeddings(
        row[cell[1]],
        col[cell[1]],
        texts["product_id"][0][texts["product_id"][1]],
        texts["timestamp"][0][texts["timestamp"][1]],
        codes_of(crs[0])[crs[1]],
        box[:, [1, 0, 3, 2]] if swapped else box,
        np.concatenate(vectors) if vectors else np.empty((0, 0), np.float32),
        parquet_url=None if url is None else url[0][url[1]],
        parquet_row=None if number is None else np.array(number, np.int64),
    )


def common(*sets: Embeddings) -> list[Integers]:
    """Fragments that all sets have, by cell, product and box.

    Parameters
    ----------
    *sets : Embeddings
        Of several models, in any order of rows.

    Returns
    -------
    list of numpy.ndarray
        Positions in each set of the fragments that all have, in the same order for all: that of
        the first. ``sets[i].embedding[result[i]]`` are matrices with rows that belong together.

    Raises
    ------
    RowsError
        If a set has a fragment twice, or no fragment is in all of them.
    """
    keyed = [_keys(rows) for rows in sets]
    shared = set.intersection(*(set(keys) for keys in keyed)) if keyed else set()
    if not shared:
        raise RowsError(
            f"the {len(sets)} sets have no fragment in common: none with the same grid_cell, "
            "product_id and pixel_bbox; compare sets of the same images and size of fragments"
        )
    first = [key for key in keyed[0] if key in shared]
    return [np.array([keys[key] for key in first], np.int64) for keys in keyed]


_Key = tuple[object, ...]


def _keys(rows: Embeddings) -> dict[_Key, int]:
    """Position of every fragment by its key."""
    columns: Sequence[list[object]] = [
        rows.grid_row.tolist(),
        rows.grid_col.tolist(),
        rows.product_id.tolist(),
        *rows.box.T.tolist(),
    ]
    keys: dict[_Key, int] = {}
    for row, key in enumerate(zip(*columns, strict=True)):
        if keys.setdefault(key, row) == row:
            continue
        name = GRID.names(rows.grid_row[[row]], rows.grid_col[[row]])[0]
        raise RowsError(
            f"row {row} has the fragment {rows.box[row].tolist()} of cell {name} and product "
            f"{rows.product_id[row]} a second time; give the files of one model only"
        )
    return keys
