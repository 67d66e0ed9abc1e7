"""Exports chosen by the suffix of the file, and Zarr."""

import inspect
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from copcube.arguments import as_whole, one_path
from copcube.cube.results import json_attributes, without_encoding
from copcube.cube.store import compressors
from copcube.cube.view import require_dataset
from copcube.errors import OptionError
from copcube.files.damage import naming_damage
from copcube.interchange.conventions import conforming, laid_out
from copcube.interchange.geotiff import to_geotiff
from copcube.interchange.netcdf import to_netcdf
from copcube.interchange.npy import to_npy
from copcube.interchange.npz import to_npz
from copcube.interchange.packing import Exported
from copcube.interchange.parquet import to_parquet
from copcube.interchange.pieces import chunk_lengths, in_pieces
from copcube.interchange.replacing import appearing, require_free_store
from copcube.interchange.torch import to_pt

if TYPE_CHECKING:
    import xarray as xr

WRITERS: dict[str, Callable[..., Exported]] = {
    ".npz": to_npz,
    ".npy": to_npy,
    ".pt": to_pt,
    ".tif": to_geotiff,
    ".tiff": to_geotiff,
    ".nc": to_netcdf,
    ".parquet": to_parquet,
}
"""Writers by suffix."""


def export(ds: "xr.Dataset", path: str | Path, **options: Any) -> Exported:
    """Write a cube or a reduction in the format given by the file's suffix.

    Parameters
    ----------
    ds : xarray.Dataset
        Cube or reduction.
    path : str or Path
        File ending in .npz, .npy, .pt, .tif, .nc or .parquet.
    **options
        Those of `to_npz`, `to_npy`, `to_pt`, `to_geotiff`, `to_netcdf` or `to_parquet`.

    Returns
    -------
    Exported
        What was written, and the error that its data type causes.

    Raises
    ------
    OptionError
        If the suffix is unknown or the format has no such option.
    CopcubeError
        As the function that writes the format.
    """
    suffix = Path(one_path(path, "output")).suffix.lower()
    if suffix not in WRITERS:
        raise OptionError(
            f"{path}: expected a name ending in {', '.join(WRITERS)}"
            + ("; write Zarr with .to_zarr" if suffix == ".zarr" else "")
        )
    writer = WRITERS[suffix]
    # The writer's signature lists its options.
    known = [name for name in inspect.signature(writer).parameters if name not in ("ds", "path")]
    unknown = [name for name in options if name not in known]
    if unknown:
        raise OptionError(
            f"{suffix} files have no option {', '.join(unknown)}; expected {', '.join(known)}"
        )
    return writer(ds, path, **options)


@naming_damage()
def to_zarr(
    ds: "xr.Dataset",
    path: str | Path,
    *,
    layout: Literal["first", "separate", "last"] = "last",
    zarr_format: Literal[2, 3] = 3,
    overwrite: bool = False,
) -> None:
    """Write any dataset as Zarr, with the attributes that CF asks for; it appears when complete.

    Parameters
    ----------
    ds : xarray.Dataset
        Reduction, merged dataset, or part of a cube, lazy or not.
    path : str or Path
        Folder to write.
    layout : {"first", "separate", "last"}
        Where the components of vectors lie, as in `to_netcdf`; last, as in cubes, by default.
    zarr_format : {3, 2}
        Version of the format; 2 for readers that know only that, such as anemoi-datasets.
    overwrite : bool
        Replace what is there.

    Raises
    ------
    OptionError
        If there is no such layout or version.
    WriteError
        If something is already there, or it cannot be written.
    """
    require_dataset(ds, "what is to be written")
    if as_whole(zarr_format) not in (2, 3):
        raise OptionError(f"zarr_format={zarr_format!r}; expected 2 or 3")
    zarr_format = 2 if zarr_format == 2 else 3  # written as JSON
    require_free_store(path, overwrite, ds)
    written = without_encoding(laid_out(conforming(ds), layout)).unify_chunks()
    written.attrs = json_attributes(written.attrs)
    for one in written.variables.values():
        one.attrs = json_attributes(one.attrs)
    # Chunks carry a checksum, as those of a cube do.
    encoding: dict[Any, dict[str, Any]] = {
        name: {"compressors": compressors(zarr_format)} for name in written.variables
    }
    for name, variable in written.variables.items():
        if variable.chunks is not None:
            encoding[name]["chunks"] = chunk_lengths(variable)
    with appearing(path, overwrite, ds, folder=True) as temporary, warnings.catch_warnings():
        # zarr warns that consolidated metadata is not in the specification of v3; readers that do
        # not know it ignore it.
        warnings.filterwarnings("ignore", message="Consolidated metadata")
        in_pieces(written).to_zarr(
            temporary, zarr_format=zarr_format, consolidated=True, encoding=encoding
        )
