"""Zarr: the whole dataset as it is, lazily."""

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from copcube.files.atomic import atomic_folder
from copcube.interchange.canvas import require_free

if TYPE_CHECKING:
    import xarray as xr


def to_zarr(ds: "xr.Dataset", path: str | Path, *, overwrite: bool = False) -> None:
    """Write any dataset as Zarr; it appears when it is whole.

    Parameters
    ----------
    ds : xarray.Dataset
        Reduction, merged dataset, or part of a cube, lazy or not.
    path : str or Path
        Folder to write.
    overwrite : bool
        Replace what is there.

    Raises
    ------
    StorageError
        If something is there already, or it cannot be written.
    """
    with atomic_folder(require_free(path, overwrite)) as temporary, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Consolidated metadata")
        ds.drop_encoding().unify_chunks().to_zarr(temporary, zarr_format=3, consolidated=True)
