"""A cube or a reduction laid out on the whole lattice, as exports write it.

What is sliced, turned, flipped or renamed is put where it belongs by its coordinates; cells
outside are missing. The vectors are loaded window by window, so that memory stays bounded
however large the cube.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from copcube import grid
from copcube.cube.view import counted, vectors
from copcube.errors import CubeError, GridError, OptionError, StorageError
from copcube.grid import lattice_index
from copcube.interchange.legend import ORDERS, Legend
from copcube.interchange.packing import Packing, Tally, int8_packing, require_dtype

if TYPE_CHECKING:
    import xarray as xr

Index = NDArray[np.int64]


@dataclass(frozen=True)
class Canvas:
    """Vectors of a dataset on the rows and columns of the file to be written.

    Parameters
    ----------
    field : xarray.DataArray
        (lat, lon, dim), lazy if it is.
    counted : numpy.ndarray or None
        (lat, lon) bool: which cells hold images, if the dataset counts them.
    row, col : numpy.ndarray
        For all 721 rows and 1440 columns of the file, the position in `field`; -1 outside.
    legend : Legend
        What the file has to say of itself.
    """

    field: "xr.DataArray"
    counted: NDArray[np.bool_] | None
    row: Index
    col: Index
    legend: Legend

    @classmethod
    def of(cls, ds: "xr.Dataset", order: str = "published") -> "Canvas":
        """Lay out a dataset.

        Raises
        ------
        CubeError
            If it is no cube or reduction, or has a leading dimension.
        GridError
            If it does not lie on the lattice, or has cells twice.
        OptionError
            If the order is unknown.
        """
        if order not in ORDERS:
            raise OptionError(f"order={order!r}; expected {' or '.join(ORDERS)}")
        field = vectors(ds)
        if field.ndim != 3:
            lead = field.dims[0]
            raise CubeError(
                f"this form holds one vector a cell, the cube has {field.sizes[lead]} along "
                f"{lead}; choose one, such as with .isel({lead}=0), or write netCDF or Zarr"
            )
        lat, lon, _ = field.dims
        row, col = lattice_index(ds[lat].values, ds[lon].values)
        if order == "published":
            col = grid.published_column(col)
        counts = counted(ds)
        return cls(
            field,
            None if counts is None else counts.values,
            _positions(row, grid.N_LAT, str(lat)),
            _positions(col, grid.N_LON, str(lon)),
            Legend.of(ds, field, order),
        )

    @property
    def dim(self) -> int:
        """Length of the vectors."""
        return int(self.field.shape[-1])

    def cells(self, rows: slice, cols: slice) -> tuple[Index, Index, NDArray[np.float32]]:
        """Row and column within a window of all filled cells there, and their vectors."""
        y, x = self.row[rows], self.col[cols]
        inside_y, inside_x = np.flatnonzero(y >= 0), np.flatnonzero(x >= 0)
        values = _load(self.field, y[inside_y], x[inside_x])
        filled = np.asarray(np.isfinite(values).all(axis=-1))
        if self.counted is not None:
            filled &= self.counted[np.ix_(y[inside_y], x[inside_x])]
        at, on = np.nonzero(filled)
        return inside_y[at], inside_x[on], values[filled]

    def bands(self) -> Iterator[slice]:
        """Rows of the file, 45 at a time."""
        return (grid.Block(band, 0).rows for band in range(grid.N_BANDS))

    def packing(self, dtype: str, possible: tuple[str, ...], form: str) -> Packing:
        """How to store the vectors; int8 reads them all once to know their range.

        Raises
        ------
        CubeError
            If int8 is asked for and no cell holds a vector.
        OptionError
            If the form cannot hold the data type.
        """
        require_dtype(dtype, possible, form)
        if dtype != "int8":
            return Packing(dtype)
        parts = (self.cells(rows, slice(None))[2] for rows in self.bands())
        return int8_packing(self.dim, parts)

    def window(
        self, rows: slice, cols: slice, packing: Packing, tally: Tally
    ) -> NDArray[np.generic]:
        """Stored numbers of a window, (rows, cols, dim), and count what was packed."""
        y, x, found = self.cells(rows, cols)
        shape = len(self.row[rows]), len(self.col[cols]), self.dim
        out = np.full(shape, packing.missing, packing.dtype)
        out[y, x] = tally.pack(found)
        return out


def require_free(path: str | Path, overwrite: bool) -> Path:
    """Check that an output may be written, before any work.

    Raises
    ------
    StorageError
        If something is there already and must stay, or the folder is missing.
    """
    out = Path(path)
    if out.is_dir() and not (out / "zarr.json").is_file():
        raise StorageError(f"{path} is a folder; choose another name, or name a file in it")
    if out.exists() and not overwrite:
        raise StorageError(
            f"{path} exists already; choose another name, or replace it with overwrite=True "
            "(--overwrite)"
        )
    if not out.parent.is_dir():
        raise StorageError(f"{path} cannot be written: its folder does not exist; create it first")
    return out


def _positions(index: Index, size: int, name: str) -> Index:
    """For every row or column of the lattice, where it is in a dataset; -1 if nowhere."""
    if len(np.unique(index)) < len(index):
        raise GridError(
            f"{name} has {len(index)} values on {len(np.unique(index))} places of the lattice; "
            "expected each once: drop repeated ones, such as 360° beside 0°"
        )
    where = np.full(size, -1, np.int64)
    where[index] = np.arange(len(index))
    return where


def _load(field: "xr.DataArray", y: Index, x: Index) -> NDArray[np.float32]:
    """Values at rows y and columns x, by slices: lazy arrays are slow at lists."""
    out = np.empty((len(y), len(x), field.shape[-1]), np.float32)
    for source_y, target_y in _runs(y):
        for source_x, target_x in _runs(x):
            out[target_y[:, None], target_x] = field[source_y, source_x].values
    return out


def _runs(positions: Index) -> Iterator[tuple[slice, Index]]:
    """Cut positions into unbroken runs: the slice to load, and where its items belong."""
    order = np.argsort(positions)
    ends = np.flatnonzero(np.diff(positions[order]) != 1) + 1
    for run in np.split(order, ends):
        if len(run):
            yield slice(int(positions[run[0]]), int(positions[run[-1]]) + 1), run
