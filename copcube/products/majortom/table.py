"""The table of embeddings of fragments, in memory, and the names of its columns in files."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from copcube.errors import RowsError
from copcube.grid import Floats, Integers
from copcube.products.majortom.fragments import Footprints, footprints
from copcube.products.majortom.grid import squares

COLUMNS = (
    "unique_id",
    "embedding",
    "timestamp",
    "product_id",
    "grid_cell",
    "grid_row_u",
    "grid_col_r",
    "geometry",
    "centre_lat",
    "centre_lon",
    "utm_footprint",
    "utm_crs",
    "pixel_bbox",
)
"""Columns of the released files, in their order."""

SOURCES = ("parquet_url", "parquet_row")
"""Further columns of the 249k family: where the image of a row lies."""

LICENCE = "CC-BY-SA-4.0"
"""Licence of Major TOM's images and embeddings; what is made of them keeps it."""


@dataclass(frozen=True)
class Embeddings:
    """Embeddings of n fragments.

    Parameters
    ----------
    grid_row, grid_col : numpy.ndarray
        Cell of each, as signed numbers, (n,) int64.
    product_id, timestamp : numpy.ndarray
        Product of its image, and when that was taken as ``YYYYMMDDThhmmss``; (n,) object, str.
    epsg : numpy.ndarray
        EPSG code of the UTM zone of its image, (n,) int64.
    box : numpy.ndarray
        Its box in the image, ``[x0, y0, x1, y1]`` in pixels of 10 m, (n, 4) int64.
    embedding : numpy.ndarray
        (n, D) float32.
    left, top : numpy.ndarray, optional
        Upper left corner of its image in metres, (n,) float64; by default where the 10 km grid has
        it.
    parquet_url, parquet_row : numpy.ndarray, optional
        Where its image lies, (n,) object and int64; only in sets such as those of 249k rows.
    """

    grid_row: Integers
    grid_col: Integers
    product_id: NDArray[np.object_]
    timestamp: NDArray[np.object_]
    epsg: Integers
    box: Integers
    embedding: NDArray[np.float32]
    left: Floats | None = None
    top: Floats | None = None
    parquet_url: NDArray[np.object_] | None = None
    parquet_row: Integers | None = None

    def __len__(self) -> int:
        return len(self.grid_row)

    def take(self, index: NDArray[Any] | slice) -> "Embeddings":
        """Return the rows at some positions, of a mask or of a slice, in that order."""
        columns: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        chosen: dict[str, Any] = {k: v if v is None else v[index] for k, v in columns.items()}
        return Embeddings(**chosen)

    @classmethod
    def concatenate(cls, parts: "Sequence[Embeddings]") -> "Embeddings":
        """Join tables one after another.

        Raises
        ------
        RowsError
            If there are none, their vectors differ in length, or only some have a column.
        """
        dims = sorted({part.embedding.shape[1] for part in parts})
        if len(dims) != 1:
            raise RowsError(
                f"embeddings of lengths {dims or 'none'} cannot be joined; expected one model's"
            )
        joined: dict[str, Any] = {}
        for name in (f.name for f in fields(cls)):
            columns = [getattr(part, name) for part in parts]
            given = [column for column in columns if column is not None]
            if 0 < len(given) < len(columns):
                raise RowsError(f"some tables have {name} and some do not; add it to all of them")
            joined[name] = np.concatenate(given) if given else None
        return cls(**joined)

    def footprints(self) -> Footprints:
        """Where the fragments lie, computed from their boxes.

        Raises
        ------
        GridError
            If a cell is not on the grid.
        """
        left, top = self.left, self.top
        if left is None or top is None:
            left, top = squares(self.grid_row, self.grid_col, self.epsg)
        return footprints(left, top, self.epsg, self.box)
