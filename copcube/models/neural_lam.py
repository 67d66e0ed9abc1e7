"""Neural-LAM: one variable per channel on the model's own grid, for mllam-data-prep.

A recipe of mllam-data-prep stacks the variables to ``static_feature`` and the two dimensions of
the grid to ``grid_index``; its coordinates must be those of the model's other inputs.
"""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from copcube.arguments import one_path
from copcube.cube.latlon import NAMES
from copcube.era5.statics import open_fields
from copcube.errors import GridError
from copcube.grid import cell_at
from copcube.models.components import Components
from copcube.models.fields import Fields, Maps, on_lattice
from copcube.models.form import Form, of_the_same_names, units_of

if TYPE_CHECKING:
    import xarray as xr


def on_grid(
    components: Components, statics: Maps, *, grid: "xr.Dataset | str | Path | None" = None
) -> Fields:
    """Take components at the points of a grid, of the cells that hold them.

    They are standardised on these points, all of which weigh alike: such grids have cells of
    about one size, and the mean of the region is what a missing point shall have.

    Parameters
    ----------
    components : Components
        What is written.
    statics : mapping
        Name to (721, 1440).
    grid : xarray.Dataset, str or Path, optional
        Dataset, netCDF or Zarr with latitude and longitude of every point, along two dimensions;
        by default the lattice itself.

    Raises
    ------
    GridError
        If there are no such coordinates.
    MissingFileError, SourceError
        If there is no such file, or it cannot be read.
    """
    if grid is None:
        return on_lattice(components, statics)
    with _opened(grid) as ds:
        lat, lon = (_found(ds, axis) for axis in ("latitude", "longitude"))
        if lat.ndim != 2 or {*lat.dims} != {*lon.dims}:
            raise GridError(
                f"{lat.name} lies along {', '.join(map(str, lat.dims)) or 'nothing'}, {lon.name} "
                f"along {', '.join(map(str, lon.dims)) or 'nothing'}; expected both along the "
                "same two dimensions of the grid"
            )
        dims = tuple(map(str, lat.dims))
        y, x = (np.asarray(v.transpose(*dims).values, np.float64) for v in (lat, lon))
        # Loaded now, since the file is closed when they are written.
        coords = {name: ds.variables[name].load() for name in dims if name in ds.variables}
    row, col = cell_at(y, x)
    fields = Fields.standardised(
        components,
        components.values[row, col],
        components.filled[row, col].astype(np.float32),
        np.ones(y.shape),
        y,
        x,
        {name: values[row, col] for name, values in statics.items()},
    )
    alike = "all points alike that lie in a cell with a vector"
    return replace(fields, dims=dims, coords=coords, weights=alike)


def _opened(grid: "xr.Dataset | str | Path") -> "xr.Dataset":
    import xarray as xr

    if isinstance(grid, xr.Dataset):
        return grid.copy(deep=False)  # which is closed without closing the caller's
    return open_fields(one_path(grid, "grid"))[0]


def _found(ds: "xr.Dataset", axis: str) -> "xr.DataArray":
    for key, v in ds.variables.items():
        if v.attrs.get("standard_name") == axis or str(key).lower() in NAMES[axis]:
            return ds[key]
    raise GridError(
        f"the grid holds {', '.join(map(str, ds.variables)) or 'nothing'}; expected "
        f"{axis} of every point, named {axis} or {NAMES[axis][0]}"
    )


def write(fields: Fields, path: Path) -> None:
    """Write the variables as Zarr."""
    import xarray as xr

    data: dict[str, Any] = {n: (fields.dims, v) for n, v in fields.channels.items()}
    coords = dict(fields.coords)
    along = fields.dims if fields.lat.ndim == 2 else None
    axes = ("latitude", "degrees_north", fields.lat), ("longitude", "degrees_east", fields.lon)
    for name, units, values in axes:
        coords[name] = (along or name, values, {"standard_name": name, "units": units})
    ds = xr.Dataset(data, coords, fields.description())
    for name in data:
        # mllam-data-prep asks each variable for its units and its name in words.
        ds[name].attrs = {"units": units_of(name), "long_name": name}
    ds.to_zarr(path, zarr_format=2, consolidated=True)


FORMS = {".zarr": Form(write, on_grid, of_the_same_names, folder=True)}
