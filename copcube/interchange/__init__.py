"""Reading and writing the published formats.

`copcube.interchange.engine` is the xarray engine ``copembed``, which opens published maps and our
exports as cubes; `convert` makes Zarr cubes from them; ``to_…`` and `export` write them.
"""

from copcube.interchange.convert import convert
from copcube.interchange.export import export, to_zarr
from copcube.interchange.geotiff import to_geotiff
from copcube.interchange.netcdf import to_netcdf
from copcube.interchange.npy import to_npy
from copcube.interchange.npz import to_npz
from copcube.interchange.packing import Exported
from copcube.interchange.parquet import to_parquet
from copcube.interchange.torch import to_pt

__all__ = [
    "Exported",
    "convert",
    "export",
    "to_geotiff",
    "to_netcdf",
    "to_npy",
    "to_npz",
    "to_parquet",
    "to_pt",
    "to_zarr",
]
