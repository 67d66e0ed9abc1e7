"""Steps common to all exports: lay out a dataset on the lattice, pack it, write all or nothing.

A dataset that is sliced, rotated, flipped or renamed is written where its coordinates say; cells
outside are missing. Vectors are loaded window by window, so that memory stays bounded however large
the cube.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from copcube import grid
from copcube.arguments import one_of
from copcube.cube.view import CubeView, how_to_select
from copcube.errors import CubeError
from copcube.grid import Integers
from copcube.interchange.cache import FilledCells
from copcube.interchange.conventions import numbered_names
from copcube.interchange.metadata import ORDERS, MapMetadata
from copcube.interchange.packing import Exported, Packer, Packing, int8_packing, required_dtype
from copcube.interchange.replacing import appearing, require_free
from copcube.pca.basis import require_one_basis

if TYPE_CHECKING:
    import xarray as xr

log = logging.getLogger("copcube")

_RUNS = 16
"""Number of runs in a window from which they are read at once."""


class LaidOut:
    """A cube or a reduction on all rows and columns of the lattice.

    Parameters
    ----------
    view : CubeView
        The dataset, without leading dimensions.
    order : {"published", "era5"}
        Whether columns run from 180°W or from 0°E.
    """

    def __init__(self, view: CubeView, order: str) -> None:
        self._view = view
        rows, cols = view.positions()
        # Published maps begin at 180°W, the lattice at 0°E.
        shift = grid.published_column(np.arange(grid.N_LON)) if order == "published" else ...
        self._rows, self._cols = rows, np.empty_like(cols)
        self._cols[shift] = cols

    @property
    def dim(self) -> int:
        """Length of the vectors."""
        return int(self._view.field.shape[-1])

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the single components, such as those of a file's bands."""
        return tuple(numbered_names(self._view))

    def cells(self, rows: slice, cols: slice = slice(None)) -> FilledCells:
        """Rows and columns, within a window, of all its filled cells, and their vectors."""
        # An empty part comes first: a window may hold nothing of the dataset.
        parts = [(np.empty(0, np.int64),) * 2 + (np.empty((0, self.dim), np.float32),)]
        for y, to_y in _runs(self._rows[rows]):
            for x, to_x in _runs(self._cols[cols]):
                filled, vectors = self._view.read((y, x))
                i, j = np.nonzero(filled)
                parts.append((to_y[i], to_x[j], vectors[filled].astype(np.float32, copy=False)))
        row, col, found = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        return row, col, found


class MapWriter(LaidOut):
    """A cube or a reduction on all rows and columns of a file that is being written.

    Parameters
    ----------
    view : CubeView
        The dataset to write, without leading dimensions.
    order : {"published", "era5"}
        Whether the file's columns run from 180°W or from 0°E.
    dtype : str
        Stored data type; int8 reads all vectors once to find their range.
    file : Path
        Temporary name of the file.
    """

    def __init__(self, view: CubeView, order: str, dtype: str, file: Path) -> None:
        super().__init__(view, order)
        self.metadata = MapMetadata.of(view, order)
        self.file = file
        if dtype == "int8":
            self.packing = int8_packing(self.dim, (self.cells(r)[2] for r in grid.bands()))
        else:
            self.packing = Packing(dtype)
        self.packer = Packer(self.packing)

    def window(self, rows: slice, cols: slice = slice(None)) -> NDArray[np.generic]:
        """Stored numbers of a window, (rows, cols, dim)."""
        y, x, vectors = self.cells(rows, cols)
        shape = len(self._rows[rows]), len(self._cols[cols]), self.dim
        out = np.full(shape, self.packing.missing, self.packing.dtype)
        out[y, x] = self.packer.pack(vectors)
        return out

    def result(self, path: str | Path) -> Exported:
        """Sum up what was written, once the file is in place."""
        exported = self.packer.result(str(path), self.dim, Path(path).stat().st_size)
        log.info("%s", exported)
        return exported


@contextmanager
def writing_map(
    ds: "xr.Dataset",
    path: str | Path,
    form: str,
    dtypes: tuple[str, ...],
    *,
    dtype: str,
    order: str = "published",
    overwrite: bool = False,
) -> Iterator[MapWriter]:
    """Check a dataset and a name; yield a writer whose file appears when the body ends.

    Parameters
    ----------
    ds : xarray.Dataset
        Cube or reduction, of any region.
    path : str or Path
        Final name of the file.
    form : str
        Name of the format, for messages.
    dtypes : tuple of str
        Data types that the format can hold.
    dtype, order, overwrite
        As for the functions that write a format.

    Raises
    ------
    CubeError
        If the dataset is not a cube or reduction, has a leading dimension or several bases, or no
        vector from which to find the range of int8.
    GridError
        If it does not lie on the lattice, or has cells twice.
    OptionError
        If order or data type is unknown.
    WriteError
        If the file exists already or cannot be written.
    """
    require_free(path, overwrite, ds)
    one_of(order, "order", ORDERS)
    view = CubeView.of(ds)
    if view.lead:
        lead = view.lead[0]
        raise CubeError(
            f"this format holds one vector per cell, but the cube has {view.field.sizes[lead]} "
            "along "
            f"{lead}; select one, {how_to_select(lead)}, or write netCDF or Zarr"
        )
    require_one_basis(ds)
    dtype = required_dtype(dtype, dtypes, form)
    with appearing(path, overwrite, ds) as temporary:
        yield MapWriter(view, order, dtype, temporary)


def _runs(positions: Integers) -> Iterator[tuple[slice | Integers, Integers]]:
    """Divide positions into unbroken runs: the slice to load, and where its items belong.

    Slices are loaded, since lazy arrays are slow with lists; but if runs are many, as in a shuffled
    dataset, it would be read row by row. -1 means nowhere.
    """
    order = np.argsort(positions)
    order = order[positions[order] >= 0]
    ends = np.flatnonzero(np.diff(positions[order]) != 1) + 1
    if len(ends) >= _RUNS:
        yield positions[order], order
        return
    for run in np.split(order, ends):
        if len(run):
            yield slice(int(positions[run[0]]), int(positions[run[-1]]) + 1), run
