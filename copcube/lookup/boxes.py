"""Vectors of regions: boxes and polygons, pooled by area over the cells that have one."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from copcube import grid
from copcube.arguments import as_given, one_of
from copcube.cube.results import as_result, described
from copcube.cube.view import CubeView
from copcube.errors import CubeError, GridError, OptionError
from copcube.files.damage import naming_damage
from copcube.grid import Floats, Integers
from copcube.lookup.gathering import gathered_vectors, placeless
from copcube.lookup.regions import Region, box_rings, in_degrees, polygon_rings, region
from copcube.lookup.similar import EARTH_RADIUS

if TYPE_CHECKING:
    import xarray as xr

Pooling = Literal["mean", "max"]

_READ = 1 << 27
"""Bytes of vectors read at once."""


def box(
    cube: "xr.Dataset",
    west: float,
    south: float,
    east: float,
    north: float,
    *,
    pooling: Pooling | None = "mean",
) -> "xr.Dataset":
    """Pool the vectors of a box, or return its cells.

    Parameters
    ----------
    cube : xarray.Dataset
        A cube or a reduction, lazy or not, on the lattice or a grid that `merge` averaged onto.
    west, south, east, north : float
        Degrees. With an `east` that lies west of `west` the box crosses the antimeridian, as in
        GeoJSON (RFC 7946, section 5.2): 170, -20, -170, -10. A box from -180 to 180 with `north` 90
        contains the pole.
    pooling : {"mean", "max"} or None
        The mean of the vectors weighted by the area of their cells inside the region, or the
        largest of each value; None returns the cells.

    Returns
    -------
    xarray.Dataset
        The pooled vector (…, dim) over the cells that have one, in memory, with ``cells`` and
        ``cells_missing``, how many cells the region touches and how many of those have no vector;
        ``coverage``, the share of the region's area under cells with a vector; ``area``, that of
        the region in km². A region smaller than a cell has the vector of its cell. With
        ``pooling=None`` the cells themselves, lazy if they were, from north to south and west to
        east with steady longitudes, and ``fraction`` (lat, lon), the share of each cell's area
        inside the region.

    Raises
    ------
    CubeError
        If the dataset is not a cube, or no cell of the region has a vector.
    GridError
        If the dataset does not reach the region.
    OptionError
        If the corners are swapped or not places, the region is empty, or `pooling` is unknown.

    Examples
    --------
    >>> box(cube, 5, 45, 10, 48).embedding  # doctest: +SKIP
    """
    return _with_vector(_of(cube, box_rings(west, south, east, north), pooling))


def polygon(cube: "xr.Dataset", geometry: Any, *, pooling: Pooling | None = "mean") -> "xr.Dataset":
    """Pool the vectors of a polygon, or return its cells.

    Parameters
    ----------
    cube : xarray.Dataset
        As for `box`.
    geometry : mapping, str or object
        A Polygon, a MultiPolygon or a Feature, as GeoJSON or as anything with
        ``__geo_interface__``, such as a geometry of shapely, in degrees of longitude and latitude.
        Edges are straight in degrees. An edge of more than 180° is taken to cross the antimeridian,
        and a ring around a pole contains it, whether or not it closes with corners at -180 and 180.
    pooling : {"mean", "max"} or None
        As for `box`.

    Returns
    -------
    xarray.Dataset
        As of `box`.

    Raises
    ------
    CubeError, GridError
        As `box`.
    OptionError
        If the geometry is not a polygon, is empty or crosses itself, or `pooling` is unknown.
    """
    return _with_vector(_of(cube, polygon_rings(geometry), pooling))


def polygons(
    cube: "xr.Dataset", geometries: Iterable[Any], *, pooling: Pooling = "mean"
) -> "xr.Dataset":
    """Pool the vectors of many polygons; one without an answer does not affect the others.

    Parameters
    ----------
    cube : xarray.Dataset
        As for `box`.
    geometries : iterable
        Each as for `polygon`; or a series of geopandas, of any reference system.
    pooling : {"mean", "max"}
        As for `box`.

    Returns
    -------
    xarray.Dataset
        As of `polygon`, along ``region`` in the order given, with ``status`` (region): "present",
        or the reason why the vector is missing (NaN).

    Raises
    ------
    CubeError
        If the dataset is not a cube.
    OptionError
        If `pooling` is unknown, there are no geometries, or they are not a list.
    """
    import xarray as xr

    view = CubeView.of(cube)
    one_of(pooling, "pooling", get_args(Pooling))
    # Iterating a frame, a mapping or a text would give names or letters.
    named = isinstance(geometries, str | Mapping) or hasattr(geometries, "columns")
    if named or not isinstance(geometries, Iterable):
        raise OptionError(
            f"geometries is {as_given(geometries)}; expected a list of them, such as "
            "collection['features'], or frame.geometry of geopandas"
        )
    found: list[xr.Dataset] = []
    for geometry in in_degrees(geometries):
        try:
            one = _of(cube, polygon_rings(geometry), pooling)
            one = one.assign(status=_without_vector(one) or "present")
        except (OptionError, GridError, CubeError) as error:
            one = _nothing(view).assign(status=str(error))
        found.append(one)
    if not found:
        raise OptionError("there are no geometries; expected one or more")
    whole = next((one for one in found if "pooling" in one.attrs), found[0])
    result = xr.concat(found, "region", combine_attrs="override", join="override", coords="minimal")
    return as_result(result.assign_attrs(whole.attrs))


def _without_vector(pooled: "xr.Dataset") -> str | None:
    """Return why a region has no vector, None if it has one."""
    cells = int(pooled.cells)
    if (pooled.cells_missing < cells).any():
        return None
    return (
        f"none of the {cells:,} cells of the region holds a vector: no image is there "
        "(open ocean and the poles have none)"
    )


def _with_vector(found: "xr.Dataset") -> "xr.Dataset":
    """Refuse a pooled region without a vector; return anything else unchanged."""
    if "cells" in found and (reason := _without_vector(found)):
        raise CubeError(reason)
    return found


def _nothing(view: CubeView) -> "xr.Dataset":
    """Result for a region that cannot be pooled: vectors of NaN, and no cells."""
    import xarray as xr

    sizes = [view.field.sizes[dim] for dim in view.lead]
    vector = np.full((*sizes, view.field.sizes[view.dim]), np.nan, view.field.dtype)
    variables: dict[str, Any] = {
        view.name: ((*view.lead, view.dim), vector),
        "cells": ((), 0),
        "cells_missing": (view.lead, np.zeros(sizes, np.int64)),
        "coverage": (view.lead, np.zeros(sizes)),
        "area": ((), np.nan),
    }
    return xr.Dataset(variables, placeless(view))


@naming_damage()
def _of(cube: "xr.Dataset", rings: list[list[Floats]], pooling: Pooling | None) -> "xr.Dataset":
    if pooling is not None:
        one_of(pooling, "pooling", get_args(Pooling))
    view = CubeView.of(cube)
    found = region(view.latlon, rings)
    if not (found.i >= 0).any():
        raise GridError(f"the dataset does not reach the region; it has {view.extent()}")
    return _cells(view, found) if pooling is None else _pooled(view, found, pooling)


def _pooled(view: CubeView, found: Region, pooling: Pooling) -> "xr.Dataset":
    import xarray as xr

    shape = *view.field.shape[:-3], view.field.shape[-1]
    total = np.zeros(shape) if pooling == "mean" else np.full(shape, -np.inf)
    covered = np.zeros(shape[:-1])
    filled = np.zeros(shape[:-1], np.int64)
    for part in _parts(view, found.i, found.j):
        x, there = _read(view, found.i[part], found.j[part])
        area = found.area[part].reshape(-1, *[1] * (there.ndim - 1)) * there
        covered += area.sum(axis=0)
        filled += there.sum(axis=0)
        if pooling == "mean":
            total += np.einsum("n...,n...d->...d", area, x)
        else:
            x[~there] = -np.inf
            total = np.maximum(total, x.max(axis=0))
    with np.errstate(invalid="ignore"):  # 0/0 in a group without a vector
        pooled = total / covered[..., np.newaxis] if pooling == "mean" else total
    pooled[filled == 0] = np.nan
    how = {"mean": "weighted by area", "max": "largest of each value"}[pooling]
    attrs = {k: v for k, v in described(view.field).items() if k != "ancillary_variables"}
    of_region = {"mean": "mean", "max": "maximum"}[pooling]
    attrs["cell_methods"] = f"area: {of_region}"
    attrs["long_name"] = f"{view.name}, {of_region} over the region"
    lead, whole = view.lead, float(found.area.sum())
    result = xr.Dataset(
        {
            view.name: ((*lead, view.dim), pooled.astype(view.field.dtype), attrs),
            "cells": ((), len(found.i), {"long_name": "cells that the region touches"}),
            "cells_missing": (
                lead,
                len(found.i) - filled,
                {"long_name": "those of them that have no vector"},
            ),
            "coverage": (
                lead,
                covered / whole,
                {"long_name": "share of the region under cells with a vector", "units": "1"},
            ),
            "area": ((), whole * EARTH_RADIUS**2, {"units": "km2", "standard_name": "area"}),
        },
        placeless(view),
        {**view.dataset.attrs, "pooling": f"{pooling} over cells with a vector, {how}"},
    )
    return as_result(result)


def _parts(view: CubeView, i: Integers, j: Integers) -> list[Integers]:
    """Divide cells into parts of whole chunks that fit into memory."""
    inside = np.flatnonzero(i >= 0)
    step = 8 * grid.BLOCK
    key = (i[inside] // grid.BLOCK) * grid.N_LON + j[inside] // step
    inside = inside[np.argsort(key, kind="stable")]
    size = view.field.dtype.itemsize * int(np.prod(view.field.shape[:-3])) * view.field.shape[-1]
    cuts = np.flatnonzero(np.diff(np.sort(key))) + 1
    parts = np.split(inside, cuts)
    # Small parts are read together.
    merged: list[Integers] = []
    for part in parts:
        if merged and (len(merged[-1]) + len(part)) * size <= _READ:
            merged[-1] = np.concatenate([merged[-1], part])
        else:
            merged.append(part)
    return merged


def _read(view: CubeView, i: Integers, j: Integers) -> tuple[Floats, NDArray[np.bool_]]:
    """Vectors of cells as float64, (n, …, dim), 0 where there is none, and where there is one."""
    x, there = gathered_vectors(view, i, j, zeros_allowed=view.zeros_allowed)
    x = x.astype(np.float64)
    x[~there] = 0
    return x, there


def _cells(view: CubeView, found: Region) -> "xr.Dataset":
    """Cells of a region as a dataset, from north to south and from west to east."""
    inside = found.i >= 0
    rows, cols = found.i[inside], found.col[inside]
    y = view.field[view.lat].values
    i = np.unique(rows)
    i = i[np.argsort(-y[i], kind="stable")]
    col, first = np.unique(cols, return_index=True)
    j = found.j[inside][first]
    fraction = np.zeros((len(i), len(j)))
    order = np.argsort(i, kind="stable")
    # `searchsorted` needs ascending positions; `order` restores those from the north.
    row = order[np.searchsorted(i[order], rows)]
    fraction[row, np.searchsorted(col, cols)] = found.fraction[inside]
    lon = view.latlon.origin[1] + view.latlon.dx * col
    # Shifted as a whole: the first lies between -180 and 180, and the others follow.
    lon = lon - 360 * np.floor((lon[0] + 180) / 360)
    attrs = {"long_name": "share of the cell inside the region", "units": "1"}
    cells = view.select({view.lat: i, view.lon: j})
    longitude = cells[view.lon].copy(data=lon.astype(cells[view.lon].dtype))
    cells = cells.assign_coords({view.lon: longitude.variable})
    if "lon_bnds" in cells.variables:
        cells = cells.drop_vars("lon_bnds")  # of the original longitudes
    cells = cells.assign(fraction=((view.lat, view.lon), fraction, attrs))
    return as_result(cells, view.name)
