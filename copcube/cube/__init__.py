"""The cube: one Zarr v3 group, a vector for every cell of ERA5's grid.

`create`, `write_band` and `finish` make one, `open_cube` opens it (as does plain
``xarray.open_zarr``), `validate` checks it, `summary` lists what it holds.
"""

from copcube.cube.replacing import foreign, overlap
from copcube.cube.store import open_cube, read_attributes
from copcube.cube.summary import CubeSummary, summary
from copcube.cube.validation import problems, validate
from copcube.cube.writing import create, finish, write_band

__all__ = [
    "CubeSummary",
    "create",
    "finish",
    "foreign",
    "open_cube",
    "overlap",
    "problems",
    "read_attributes",
    "summary",
    "validate",
    "write_band",
]
