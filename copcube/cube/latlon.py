"""Grids of latitude and longitude: how finely they are spaced, where they lie on the lattice.

A grid is rectilinear here: one coordinate along latitude, one along longitude. It is either
a selection of nodes of the 0.25° lattice, or a coarser regular grid whose cells reach half a
spacing around their nodes, clipped at the poles (WeatherBench2's ``equiangular with poles``
and ``without poles`` both). Coordinates may be float32, in either order, of any turn; nodes
are distinguished by their index, never by equality of floats.
"""

from collections.abc import Hashable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import numpy as np

from copcube import grid
from copcube.cube.view import spatial_dims
from copcube.errors import GridError
from copcube.grid import Floats, on_nodes

if TYPE_CHECKING:
    import xarray as xr

_NAMES = {
    "latitude": ("lat", "latitude", "lats", "latitudes", "nav_lat"),
    "longitude": ("lon", "longitude", "lons", "longitudes", "nav_lon"),
}
_REMEDY = "remap it to a regular grid first, such as with cdo remapcon,r1440x721"


@dataclass(frozen=True, eq=False)
class LatLon:
    """The grid of a dataset.

    Parameters
    ----------
    lat, lon : str
        Names of its dimensions.
    y, x : numpy.ndarray
        Coordinates along them, float64 in degrees, in the dataset's order and turn.
    dy, dx : float
        Spacing in degrees, 0.25 for nodes of the lattice.
    transposed : bool
        Whether longitude comes first.
    """

    lat: str
    lon: str
    y: Floats
    x: Floats
    dy: float
    dx: float
    transposed: bool

    @classmethod
    def of(cls, ds: "xr.Dataset") -> Self:
        """Find the grid of a dataset.

        Raises
        ------
        CubeError
            If it has no dimensions along latitude and longitude.
        GridError
            If the grid is curvilinear, reduced, Gaussian or irregular, finer than 0.25°, or
            of 0.25° between the nodes of the lattice.
        """
        _refuse_other_shapes(ds)
        lat, lon = spatial_dims(ds)
        y, x = (np.asarray(ds[name].values, np.float64) for name in (lat, lon))
        for name, values in ((lat, y), (lon, x)):
            if not np.isfinite(values).all() or values.size == 0:
                raise GridError(f"{name} has {values.size} values, not all of them finite")
        if np.abs(y).max() > 90 + grid.NEAR:
            raise GridError(
                f"{lat} reaches {y[np.abs(y).argmax()]:.6g}; expected degrees, -90 to 90"
            )
        down, along = _spacing(lat, y, circle=False), _spacing(lon, x % 360, circle=True)
        dy, dx = down or along or grid.STEP, along or down or grid.STEP
        for name, values, step in ((lat, y, dy), (lon, x, dx)):
            if step < grid.STEP + grid.NEAR and not on_nodes(values).all():
                raise GridError(
                    f"{name} lies between the nodes of the 0.25° lattice, at "
                    f"{', '.join(f'{v:.6g}' for v in values[:3])}…; expected multiples of 0.25 "
                    f"or a coarser grid: {_REMEDY}"
                )
        return cls(lat, lon, y, x, dy, dx, _transposed(ds, lat, lon))

    @property
    def on_lattice(self) -> bool:
        """Whether all points are nodes of the lattice, 0.25° apart."""
        return self.dy < grid.STEP + grid.NEAR and self.dx < grid.STEP + grid.NEAR

    @property
    def south_north(self) -> tuple[Floats, Floats]:
        """Edges of the cells along latitude in degrees, clipped at the poles."""
        return np.clip(self.y - self.dy / 2, -90, 90), np.clip(self.y + self.dy / 2, -90, 90)

    def __str__(self) -> str:
        return f"{len(self.y)} × {len(self.x)} grid of {self.dy:.4g}° × {self.dx:.4g}°"


def _spacing(name: str, degrees: Floats, *, circle: bool) -> float | None:
    """Spacing of coordinates along a line or a circle; None for a single one.

    The circle is left open where it is widest: what a region leaves out is no spacing.
    """
    places = np.sort(degrees)
    gaps = np.diff(places, append=places[0] + 360) if circle else np.diff(places)
    gaps = np.sort(gaps[gaps > grid.NEAR])
    if circle:
        # The widest gap is what a region leaves out, or the seam of the globe.
        gaps = gaps[:-1]
    if gaps.size == 0:
        return None
    least, greatest = float(gaps[0]), float(gaps[-1])
    if abs(least - grid.STEP) < grid.NEAR and on_nodes(degrees).all():
        # A selection of nodes, such as every second one here and all there, is still the lattice.
        return grid.STEP
    if greatest - least > grid.NEAR:
        raise GridError(
            f"{name} is spaced by {least:.6g}° to {greatest:.6g}°, as on a Gaussian or irregular "
            f"grid; expected a regular one: {_REMEDY}, or select places after merging"
        )
    if least < grid.STEP - grid.NEAR:
        raise GridError(
            f"{name} is spaced by {least:.6g}°; embeddings know nothing finer than 0.25°: "
            "bring the dataset to 0.25° or coarser first, such as with cdo remapcon,r1440x721"
        )
    return float(gaps.mean())


def _refuse_other_shapes(ds: "xr.Dataset") -> None:
    """Name grids whose latitude and longitude are not along dimensions of their own."""

    def along(axis: str) -> tuple[Hashable, ...] | None:
        for name, variable in ds.variables.items():
            if (
                variable.attrs.get("standard_name") == axis or str(name).lower() in _NAMES[axis]
            ) and variable.dims != (name,):
                return variable.dims
        return None

    lat, lon = along("latitude"), along("longitude")
    if not lat or not lon or any(name in ds.indexes for name in _NAMES["latitude"]):
        return
    if lat == lon and len(lat) == 1:
        raise GridError(
            f"latitude and longitude both run along {lat[0]!r} ({ds.sizes[lat[0]]:,} points), as "
            "on a reduced Gaussian or unstructured grid; expected a regular one: retrieve the "
            f"data with grid 0.25/0.25, or {_REMEDY}"
        )
    if len(lat) > 1:
        raise GridError(
            f"latitude and longitude are functions of {' and '.join(map(repr, lat))}, as on a "
            f"curvilinear or rotated grid; expected a regular one: {_REMEDY}"
        )
    raise GridError(
        f"latitude runs along {lat[0]!r} and longitude along {lon[0]!r}; expected dimensions of "
        f"their own names: swap_dims({{{lat[0]!r}: 'latitude', {lon[0]!r}: 'longitude'}})"
    )


def _transposed(ds: "xr.Dataset", lat: str, lon: str) -> bool:
    """Whether longitude comes first in the first variable that has both."""
    for variable in ds.data_vars.values():
        dims = list(variable.dims)
        if lat in dims and lon in dims:
            return dims.index(lon) < dims.index(lat)
    return False
