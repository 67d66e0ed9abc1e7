"""Vectors at the points of a table, with a status for every one of them."""

from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from copcube.arguments import one_of
from copcube.cube.pointwise import refuse_shared
from copcube.cube.presence import present
from copcube.cube.results import as_result, described
from copcube.cube.schema import group_labels
from copcube.cube.view import CubeView
from copcube.files.damage import naming_damage
from copcube.grid import Floats, Integers
from copcube.lookup.gathering import gathered, placeless
from copcube.lookup.similar import EARTH_RADIUS
from copcube.lookup.tables import are_places, beside, read_table

if TYPE_CHECKING:
    import xarray as xr

Method = Literal["nearest", "bilinear"]

STATUS = ("present", "modality_missing", "no_image", "outside_cube", "not_a_place")
"""Meanings of ``status``, by its value."""
_PRESENT, _PARTLY, _EMPTY, _OUTSIDE, _NOWHERE = range(len(STATUS))
_SLAB = 4096
"""Points interpolated at once, so that their corners take little memory."""
_LEAST = 1e-3
"""Sum of weights below which no vector is near: rounding gives this much to a node's neighbours."""


@naming_damage()
def points(
    cube: "xr.Dataset",
    table: Any,
    *,
    lat: str | None = None,
    lon: str | None = None,
    method: Method = "nearest",
) -> "xr.Dataset":
    """Look up the vectors at the points of a table.

    Parameters
    ----------
    cube : xarray.Dataset
        A cube or a reduction, lazy or not, on the lattice or a grid that `merge` averaged onto.
    table : tuple, mapping, pandas or geopandas frame, xarray.Dataset, str or Path
        ``(lat, lon)`` as arrays or DataArrays, columns by name, a frame (one of geopandas with
        points in any reference system), a dataset with two variables along the same
        dimensions, or the path of a CSV or parquet file.
    lat, lon : str, optional
        Names of the columns with degrees north and east; by default those named lat, latitude,
        lon, longitude and the like, in upper or lower case, or the points of a geopandas frame.
    method : {"nearest", "bilinear"}
        The vector of the cell that holds the point, or interpolation between the four nodes
        around it, over those with a vector.

    Returns
    -------
    xarray.Dataset
        In memory, with the dimensions, the index and the order of the table, and its other columns
        as coordinates (``table_NAME`` if this dataset has its own NAME): the vectors (…, point,
        dim), NaN where there is none; ``status`` (point) int8, flags of `STATUS`; ``distance``
        (point) float32, km from the centre of the cell along a great circle; ``cell_lat``,
        ``cell_lon``; all other variables of the cell, such as ``n_images``. Only the chunks that
        hold points are read.

    Raises
    ------
    CubeError
        If the dataset is not a cube.
    OptionError
        If it is not a table, lacks the columns, or `method` is unknown. Bad rows raise nothing:
        their status says what is wrong.

    Examples
    --------
    >>> found = points(cube, "stations.csv")  # doctest: +SKIP
    >>> found.embedding.where(found.status == 0)  # doctest: +SKIP
    """
    import xarray as xr

    one_of(method, "method", get_args(Method))
    view = CubeView.of(cube)
    asked = read_table(table, lat, lon)
    refuse_shared(asked.lat, view, ("status", "distance", "cell_lat", "cell_lon"))
    dims, shape = tuple(map(str, asked.lat.dims)), asked.lat.shape
    y, x = asked.lat.values.ravel(), asked.lon.values.ravel()
    place = are_places(y, x)
    i, j = np.full((2, len(y)), -1, np.int64)
    i[place], j[place] = view.latlon.cells_at(y[place], x[place])
    inside = (i >= 0) & (j >= 0)
    i, j = np.where(inside, i, -1), np.where(inside, j, -1)

    cells = {
        name: gathered(view, variable, i, j)
        for name, variable in view.dataset.data_vars.items()
        if name != view.name and {view.lat, view.lon} <= {*variable.dims}
    }
    images = None if view.images is None else cells["n_images"]
    if method == "nearest":
        vectors, filled = _nearest(view, i, j, images)
    else:
        vectors, filled = _bilinear(view, y, x, inside)
    status = _status(view, filled, cells, inside, place)

    def of_field(values: NDArray[Any], field: "xr.DataArray") -> "xr.Variable":
        """Values of a field at the points, (n, …): their dimensions replace latitude."""
        order = [dim for dim in field.dims if dim != view.lon]
        rest = [dim for dim in order if dim != view.lat]
        values = values.reshape(*shape, *values.shape[1:])
        made = xr.Variable([*dims, *rest], values, described(field))
        return made.transpose(*(d for dim in order for d in (dims if dim == view.lat else (dim,))))

    found: dict[Any, Any] = {
        view.name: of_field(vectors, view.field),
        "status": (dims, status.reshape(shape), _FLAGS),
    }
    if method == "bilinear":
        found[view.name].attrs["long_name"] = f"{view.name}, interpolated between cells"
    # The index of a point outside is -1, which selects the NaN at the end.
    centres = [
        np.append(view.field[name].values.astype(np.float64), np.nan)[where]
        for name, where in ((view.lat, i), (view.lon, j))
    ]
    found["distance"] = (dims, _distance(y, x, *centres).reshape(shape), _DISTANCE)
    for axis, name, degrees in zip(("lat", "lon"), (view.lat, view.lon), centres, strict=True):
        own = view.field[name].attrs
        attrs = {key: own[key] for key in ("standard_name", "units") if key in own}
        found[f"cell_{axis}"] = (dims, degrees.reshape(shape), attrs)
    found |= {key: of_field(values, view.dataset[key]) for key, values in cells.items()}
    kept = placeless(view)
    own = {**asked.coords, "lat": asked.lat, "lon": asked.lon}
    taken = {*found, *kept, *view.lead, view.dim}
    named = beside({name: column.variable for name, column in own.items()}, taken)
    result = xr.Dataset(found, {**kept, **named}, view.dataset.attrs)
    for axis, name, unit in (("lat", "latitude", "north"), ("lon", "longitude", "east")):
        attrs = {"standard_name": name, "units": f"degrees_{unit}"}
        result[axis if axis in named else f"table_{axis}"].attrs = attrs
    return as_result(result, view.name)


_FLAGS = {
    "long_name": "what is known of the point",
    "flag_values": np.arange(len(STATUS), dtype=np.int8),
    "flag_meanings": " ".join(STATUS),
}
_DISTANCE = {"long_name": "distance from the centre of the cell", "units": "km"}


def _status(
    view: CubeView,
    filled: NDArray[np.bool_],
    cells: dict[Any, NDArray[Any]],
    inside: NDArray[np.bool_],
    place: NDArray[np.bool_],
) -> NDArray[np.int8]:
    """Status of every point, given which groups have vectors, (n, …)."""
    of_groups = tuple(range(1, filled.ndim))
    whole: NDArray[np.bool_] = np.ones(len(filled), bool)
    if "modality" in view.lead:
        whole = np.asarray(filled.all(axis=of_groups))
    elif (counts := cells.get("n_images_by_modality")) is not None:
        dims = view.dataset["n_images_by_modality"].dims
        rest = [d for d in dims if d not in (view.lat, view.lon)]
        by_modality = np.moveaxis(counts, 1 + rest.index("modality"), -1)
        here = np.asarray((by_modality > 0).any(axis=tuple(range(1, counts.ndim - 1))))
        whole = np.asarray(here[:, _wanted(view)].all(axis=1))
    status = np.where(whole, _PRESENT, _PARTLY)
    status[~filled.any(axis=of_groups)] = _EMPTY
    status[~inside] = _OUTSIDE
    status[~place] = _NOWHERE
    return status.astype(np.int8)


def _wanted(view: CubeView) -> list[int]:
    """Positions of the modalities that a cell can have: those in the cube."""
    names = group_labels(view.dataset["modality"])
    of_cube = str(view.dataset.attrs.get("modalities", " ".join(names))).split()
    return [n for n, name in enumerate(names) if name in of_cube]


def _distance(y: Floats, x: Floats, lat: Floats, lon: Floats) -> NDArray[np.float32]:
    """Kilometres between points and the centres of their cells, by the haversine formula."""
    # Invalid points may be infinite.
    with np.errstate(invalid="ignore"):
        half = np.sin(np.radians(lat - y) / 2) ** 2
        half += (
            np.cos(np.radians(lat)) * np.cos(np.radians(y)) * np.sin(np.radians(lon - x) / 2) ** 2
        )
    return np.asarray(2 * EARTH_RADIUS * np.arcsin(np.sqrt(half)), np.float32)


def _nearest(
    view: CubeView, i: Integers, j: Integers, images: NDArray[Any] | None
) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Vectors of cells, (n, …, dim), and which cells have one, (n, …)."""
    vectors = gathered(view, view.field, i, j)
    filled = np.zeros(vectors.shape[:-1], bool)
    inside = i >= 0
    for start in range(0, len(vectors), _SLAB):
        part = slice(start, start + _SLAB)
        filled[part][inside[part]] = present(
            vectors[part][inside[part]], zeros_allowed=view.zeros_allowed
        )
    if images is not None:
        filled &= images > 0
    vectors[~filled] = np.nan
    return vectors, filled


def _bilinear(
    view: CubeView, y: Floats, x: Floats, inside: NDArray[np.bool_]
) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Interpolate vectors between the nodes around points, using those that have one."""
    corners = view.latlon.corners(y[inside], x[inside])
    rows, cols, weights = (np.stack(part) for part in zip(*corners, strict=True))
    usable = (rows >= 0) & (cols >= 0) & (weights > 0)
    width = view.field.sizes[view.lon]
    # Each cell is read once, however many points need it.
    cells, of_corner = np.unique((rows * width + cols)[usable], return_inverse=True)
    at = np.zeros(rows.shape, np.int64)
    at[usable] = of_corner
    i, j = cells // width, cells % width
    images = None if view.images is None else gathered(view, view.images, i, j)
    known, there = _nearest(view, i, j, images)
    known[~there] = 0
    vectors = np.full((len(y), *known.shape[1:]), np.nan, known.dtype)
    filled = np.zeros(vectors.shape[:-1], bool)
    where = np.flatnonzero(inside)
    for start in range(0, len(where), _SLAB):
        part = slice(start, start + _SLAB)
        total = np.zeros((len(where[part]), *known.shape[1:]), known.dtype)
        weight = np.zeros(total.shape[:-1])
        for corner in range(4):
            of_point = np.where(usable[corner, part], weights[corner, part], 0)
            of_each = of_point.reshape(-1, *[1] * (there.ndim - 1)) * there[at[corner, part]]
            total += of_each[..., np.newaxis].astype(known.dtype) * known[at[corner, part]]
            weight += of_each
        weight[weight < _LEAST] = np.nan
        filled[where[part]] = np.isfinite(weight)
        vectors[where[part]] = total / weight[..., np.newaxis].astype(known.dtype)
    return vectors, filled
