"""A bare NumPy array, as weather models read their static fields.

Makani reads (rows, 1440, D) in ERA5's order, with 721 rows or the first 720; others need components
first. Nothing in the file says what it is, so copcube does not open it.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from copcube import grid
from copcube.arguments import one_of
from copcube.interchange.packing import Exported
from copcube.interchange.writer import writing_map

if TYPE_CHECKING:
    import xarray as xr


def to_npy(
    ds: "xr.Dataset",
    path: str | Path,
    *,
    order: str = "era5",
    rows: int = 721,
    layout: Literal["last", "first"] = "last",
    dtype: str = "float32",
    overwrite: bool = False,
) -> Exported:
    """Write a cube or a reduction as one array for ``numpy.load``.

    Parameters
    ----------
    ds : xarray.Dataset
        Cube or reduction, of any region; missing cells are 0.
    path : str or Path
        File to write, atomically.
    order : {"era5", "published"}
        Whether columns run from 0°E or from 180°W.
    rows : {721, 720}
        All rows from 90°N, or all but the south pole's, as in models with an even number.
    layout : {"last", "first"}
        (rows, 1440, D), or (D, rows, 1440).
    dtype : {"float32", "float16"}
        Data type.
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
    rows = grid.require_rows(rows)
    one_of(layout, "layout", ("last", "first"))
    dtypes = ("float32", "float16")
    with (
        writing_map(
            ds, path, "npy", dtypes, dtype=dtype, order=order, overwrite=overwrite
        ) as writer,
        open(writer.file, "wb") as stream,
    ):
        dim, stored = writer.dim, np.dtype(dtype)
        shape = (rows, grid.N_LON, dim) if layout == "last" else (dim, rows, grid.N_LON)
        header: dict[str, Any] = {"shape": shape, "fortran_order": False}
        header["descr"] = np.lib.format.dtype_to_descr(stored)
        np.lib.format.write_array_header_1_0(stream, header)
        start, row = stream.tell(), grid.N_LON * stored.itemsize
        for band in grid.bands():
            part = slice(band.start, min(band.stop, rows))
            window = writer.window(part)
            if layout == "last":
                stream.write(window.data)
                continue
            # Written, not mapped: a full disk must raise an error, not a signal.
            for number in range(dim):
                stream.seek(start + (number * rows + part.start) * row)
                stream.write(np.ascontiguousarray(window[..., number]).data)
    return writer.result(path)
