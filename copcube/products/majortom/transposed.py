"""Whether the fragments of a file of embeddings are transposed.

In the released files they are (`copcube.products.majortom.fragments`), so that boxes, footprints
and centres are up to 8.4 km off. The order of a cell's rows shows it: fragments are embedded row by
row, so x must advance from one to the next; if y and the centre's latitude do, rows and columns
were exchanged.
"""

from functools import lru_cache
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from copcube.arguments import one_of
from copcube.files.regular import version_of
from copcube.grid import Floats, Integers
from copcube.products.majortom.columns import boxes, check, floats
from copcube.rows import distinct, read_provenance, reading_parquet

Position = Literal["auto", "given", "swap"]
Order = Literal["right", "transposed", "unknown"]

_LOOK = 4096
"""Rows examined to find the meaning of boxes."""


def is_swapped(path: str | Path, position: Position) -> bool:
    """Whether the rows and columns of a file's fragments are to be exchanged.

    Parameters
    ----------
    path : str or Path
        Parquet file, or the address of one.
    position : {"auto", "given", "swap"}
        How to treat transposed fragments: correct those found, none, or all.

    Raises
    ------
    RowsError
        If the file cannot be read.
    """
    one_of(position, "footprints", get_args(Position))
    return position == "swap" or (position == "auto" and order_of(path) == "transposed")


def order_of(path: str | Path) -> Order:
    """Whether the boxes of a file's fragments are right or transposed, or this is unknown.

    Raises
    ------
    RowsError
        If the file cannot be read.
    """
    return _order_of(str(path), version_of(path))


@lru_cache(maxsize=4096)
def _order_of(path: str, _version: str) -> Order:
    noted = read_provenance(path).get("footprints")
    if noted in ("right", "transposed"):
        return noted  # type: ignore[return-value]
    columns = ("grid_cell", "product_id", "centre_lat", "centre_lon", "pixel_bbox")
    with reading_parquet(path, columns=columns) as file:
        check(file.schema_arrow, path)
        batch = next(file.iter_batches(_LOOK, columns=list(columns)), None)
    if batch is None:
        return "unknown"
    import pyarrow as pa

    table = pa.Table.from_batches([batch])
    cell, product = (distinct(table.column(name))[1] for name in columns[:2])
    lat, lon = (floats(table.column(name)) for name in columns[2:4])
    box = boxes(table.column("pixel_bbox"), path, np.arange(len(table)))
    return order(cell, product, lat, lon, box)


def order(cell: Integers, product: Integers, lat: Floats, lon: Floats, box: Integers) -> Order:
    """Whether fragments, in the order in which they were embedded, have right or transposed boxes.

    Parameters
    ----------
    cell, product : numpy.ndarray
        Numbers of cell and product of each, (n,).
    lat, lon : numpy.ndarray
        Centres in degrees, (n,).
    box : numpy.ndarray
        Boxes, (n, 4).

    Returns
    -------
    {"right", "transposed", "unknown"}
        Unknown if the rows of a cell do not stand side by side in a raster, as in files that were
        sorted otherwise, or a cell has a single fragment.
    """
    if (box[:, 0] == box[:, 1]).all():
        return "right"  # as the central fragment alone: it is its own transpose
    same = (np.diff(cell) == 0) & (np.diff(product) == 0)
    x, y = np.diff(box[:, 0])[same], np.diff(box[:, 1])[same]
    north = np.abs(np.diff(lat)[same])
    east = np.abs(np.diff(lon)[same] * np.cos(np.radians(lat[1:][same])))
    # Steps of a raster go forward along one side, or back to its beginning on the next line.
    along_x = (x > 0) & (y == 0) & (east > north)
    along_y = (y > 0) & (x == 0) & (east < north)
    next_line = ((x < 0) & (y > 0)) | ((x > 0) & (y < 0))
    if not (along_x | along_y | next_line).all():
        return "unknown"
    if along_x.any() and not along_y.any():
        return "right"
    if along_y.any() and not along_x.any():
        return "transposed"
    return "unknown"
