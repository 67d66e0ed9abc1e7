"""Similar places: the similarity of every cell to a vector, and the most similar cells."""

from functools import partial
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from copcube.arguments import as_given, number, one_of, whole_number
from copcube.cube.caution import of_encoder
from copcube.cube.latlon import first_alike
from copcube.cube.ordered import ordered
from copcube.cube.presence import refuse_zeros
from copcube.cube.results import as_result
from copcube.cube.view import CubeView, Part
from copcube.cube.whole import part_of
from copcube.errors import OptionError
from copcube.files.processors import THREADS
from copcube.grid import Floats, on_sphere
from copcube.lookahead import map_ahead
from copcube.lookup.ranking import lowest

if TYPE_CHECKING:
    import xarray as xr

Metric = Literal["cosine", "euclidean"]

APART = 100.0
"""Default distance in km between listed places."""

EARTH_RADIUS = 6371.0088
"""Mean radius of WGS 84 in km (Moritz, 2000, doi:10.1007/s001900050278)."""

_VECTORS = 128
"""Vectors multiplied at once, so that they are read from memory once for all products."""
_LEAST_SQUARE = 1e-30
"""Sum of squares below which float32 has lost some of its terms."""


def similar(
    cube: "xr.Dataset",
    lat: float | None = None,
    lon: float | None = None,
    *,
    vector: ArrayLike | None = None,
    n: int = 20,
    metric: Metric = "cosine",
    exclude_km: float = APART,
) -> "xr.Dataset":
    """Find the places whose vectors are most like that of a place, or like any vector.

    Parameters
    ----------
    cube : xarray.Dataset
        A cube or a reduction without leading dimensions, whole or in part, lazy or not. Published
        and quantised maps, opened by the engine, work too.
    lat, lon : float, optional
        The place to compare with; its own cell is not listed.
    vector : array_like, optional
        (dim,) vector to compare with instead of a place.
    n : int
        How many of the best places to list, if there are that many.
    metric : {"cosine", "euclidean"}
        Cosine of the angle between vectors, largest first, or distance of vectors, least first.
    exclude_km : float
        Listed places are farther than this from `lat`, `lon` and each other, along great circles:
        neighbours look alike, and would fill the list. With 0 they do.

    Returns
    -------
    xarray.Dataset
        ``similarity`` (lat, lon) float32, with the metric ``euclidean`` ``distance`` instead,
        NaN where no vector is; and, along ``place``, best first, ``place_lat`` and
        ``place_lon`` in degrees, and ``place_similarity`` or ``place_distance``.

    Raises
    ------
    CubeError
        If the dataset is not a cube or has leading dimensions, or the place has no vector.
    GridError
        If the place lies outside the dataset.
    OptionError
        If the place and the vector are both given or both missing, or a value is not valid.

    Examples
    --------
    >>> found = similar(cube, 48.1, 11.6, exclude_km=500)  # doctest: +SKIP
    >>> found.to_dataframe()  # doctest: +SKIP
    """
    import xarray as xr

    n, exclude_km = check_places(n, metric, exclude_km)
    view = CubeView.of(cube).ungrouped()
    wanted, here = _wanted(view, lat, lon, vector)
    values = _scores(view, wanted, metric)
    found = np.flatnonzero(np.isfinite(values.ravel()))
    sign = 1 if metric == "euclidean" else -1
    y, x = view.field[view.lat], view.field[view.lon]
    best = best_places(y.values, x.values, sign * values, found, n, exclude_km, here)
    i, j = np.unravel_index(best, values.shape)
    name, attrs = named(metric)
    result = xr.Dataset(
        {
            name: ((view.lat, view.lon), values, attrs),
            "place_lat": ("place", y.values[i], {**y.attrs, "long_name": "latitude of the place"}),
            "place_lon": ("place", x.values[j], {**x.attrs, "long_name": "longitude of the place"}),
            f"place_{name}": ("place", values[i, j], attrs),
        },
        coords={view.lat: y.variable, view.lon: x.variable},
        attrs={
            "title": "places that look alike",
            "metric": metric,
            **({} if lat is None or lon is None else {"lat": float(lat), "lon": float(lon)}),
            **of_encoder(cube.attrs),
        },
    )
    return as_result(result)


def named(metric: Metric) -> tuple[str, dict[str, str]]:
    """Name and attributes of the scores for a metric."""
    name, how = "similarity", "cosine with"
    if metric == "euclidean":
        name, how = "distance", "distance of"
    return name, {"units": "1", "long_name": f"{how} the vector compared with"}


def check_places(n: object, metric: object, exclude_km: object) -> tuple[int, float]:
    """Check and return the options of a list of places: how many, and how far apart.

    Raises
    ------
    OptionError
        If one of them is not valid.
    """
    one_of(metric, "metric", get_args(Metric))
    apart = number(exclude_km, "exclude_km", ", a distance in km")
    if not 0 <= apart < np.inf:
        raise OptionError(f"exclude_km={exclude_km!r}; expected a distance in km, 0 or more")
    return whole_number(n, "n", 1), apart


def _wanted(
    view: CubeView, lat: float | None, lon: float | None, vector: ArrayLike | None
) -> tuple[Floats, tuple[int, int] | None]:
    """Return the vector to compare with, float64, and the position of its cell."""
    if (lat is None) != (lon is None) or (lat is None) == (vector is None):
        raise OptionError("give a place as lat and lon, or a vector as vector=")
    if vector is not None:
        return check_vector(vector, view.field.shape[-1:], "the cube"), None
    cell = view.at(number(lat, "lat"), number(lon, "lon"))
    wanted = cell[view.name].values.astype(np.float64)
    here = (
        int(np.flatnonzero(view.field[view.lat].values == cell[view.lat].values)[0]),
        int(np.flatnonzero(view.field[view.lon].values == cell[view.lon].values)[0]),
    )
    return check_vector(wanted, wanted.shape, "the cube"), here


def check_vector(vector: ArrayLike, shape: tuple[int, ...], whose: str) -> Floats:
    """Return a vector to compare with as float64.

    Raises
    ------
    OptionError
        If its shape differs from those it is compared with, or it is zero or not finite.
    """
    try:
        given = np.asarray(vector)
        if given.dtype.kind in "cmM":
            raise TypeError
        wanted = given.astype(np.float64)
    except (TypeError, ValueError):
        raise OptionError(f"vector is {as_given(vector)}; expected an array of numbers") from None
    if wanted.shape != shape:
        raise OptionError(f"the vector has the shape {wanted.shape}; those of {whose} have {shape}")
    # What is masked may be any number underneath.
    if np.ma.is_masked(vector) or not np.isfinite(wanted).all() or not wanted.any():
        raise OptionError("the vector to compare with is zero or not finite: nothing is like it")
    return wanted


def lengths_of(y: NDArray[np.float32]) -> NDArray[np.float32]:
    """Lengths of vectors, (n, dim) to (n,); NaN where their squares exceed float32's range."""
    with np.errstate(over="ignore"):
        squares: NDArray[np.float32] = np.vecdot(y, y)
    squares[~((squares > _LEAST_SQUARE) & np.isfinite(squares))] = np.nan
    return np.sqrt(squares)


def scores(y: NDArray[np.float32], wanted: Floats, metric: Metric) -> NDArray[np.float32]:
    """Similarity to a vector, or distance from it, of each of many, (n, dim) to (n,)."""
    result = np.empty(len(y), np.float32)
    if metric == "cosine":
        wanted = wanted / np.linalg.norm(wanted)
    for start in range(0, len(y), _VECTORS):
        result[start : start + _VECTORS] = _of_each(y[start : start + _VECTORS], wanted, metric)
    return result


def _scores(view: CubeView, wanted: Floats, metric: Metric) -> NDArray[np.float32]:
    """Similarity or distance of every cell, (lat, lon); NaN where no vector is."""
    result = np.full(view.field.shape[:2], np.nan, np.float32)
    if metric == "cosine":
        wanted = wanted / np.linalg.norm(wanted)

    def score(piece: CubeView, part: Part) -> NDArray[np.float32]:
        counts = None if piece.counts is None else piece.counts.variable[part].values
        x = part_of(piece.field, part)
        return _score(x, counts, wanted, metric, piece.zeros_allowed)

    for piece, rows, cols in ordered(view):
        parts = list(piece.blocks())
        blocks = map_ahead(partial(score, piece), parts, THREADS, ahead=2 * THREADS)
        for part, block in zip(parts, blocks, strict=True):
            result[np.ix_(rows[part[0]], cols[part[1]])] = block
    return result


def _score(
    x: NDArray[Any],
    counted: NDArray[np.bool_] | None,
    wanted: Floats,
    metric: Metric,
    zeros_allowed: bool,
) -> NDArray[np.float32]:
    """Scores of vectors, (rows, cols, dim), to (rows, cols)."""
    result = np.full(x.shape[:2], np.nan, np.float32)
    step = max(1, _VECTORS // x.shape[1])
    for start in range(0, len(x), step):
        rows = slice(start, start + step)
        # Where no image is counted there is no vector, and nothing need be read.
        y = x[rows].reshape(-1, x.shape[2]) if counted is None else x[rows][counted[rows]]
        # A sum of squares soon exceeds the range of float16.
        y = y.astype(np.float32) if y.dtype == np.float16 else y
        if not zeros_allowed:
            refuse_zeros(y)
        scores = _of_each(y, wanted, metric)
        if counted is None:
            result[rows] = scores.reshape(result[rows].shape)
        else:
            result[rows][counted[rows]] = scores
    return result


def _of_each(y: NDArray[Any], wanted: Floats, metric: Metric) -> NDArray[np.floating]:
    """Scores of vectors, (n, dim), in their precision; NaN where one is not finite.

    For the cosine, `wanted` has the length 1.
    """
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        # The expansion |y|² - 2y·w + |w|² would lose small differences of near vectors.
        x = y - wanted.astype(y.dtype) if metric == "euclidean" else y
        squares: NDArray[np.floating] = np.vecdot(x, x)
        scores: NDArray[np.floating] = np.sqrt(squares)
        if metric == "cosine":
            scores = (y @ wanted.astype(y.dtype)) / scores
    # Squares of very large and tiny values exceed float32's range; such vectors are few.
    beyond = ~((squares > _LEAST_SQUARE) & np.isfinite(squares))
    if beyond.any():
        scores[beyond] = np.nan
        beyond[beyond] = np.isfinite(y[beyond]).all(axis=1)
        x = y[beyond].astype(np.float64)
        # Zeros have no direction, and some distances exceed float32's range.
        with np.errstate(over="ignore", invalid="ignore"):
            if metric == "euclidean":
                scores[beyond] = np.linalg.norm(x - wanted, axis=1)
            else:
                scores[beyond] = x @ wanted / np.linalg.norm(x, axis=1)
    return scores


def best_places(
    lat: Floats,
    lon: Floats,
    rank: NDArray[Any],
    found: NDArray[np.intp],
    n: int,
    exclude_km: float,
    here: tuple[int, int] | None = None,
) -> NDArray[np.intp]:
    """Find the n places of lowest rank, apart from each other.

    Parameters
    ----------
    lat, lon : numpy.ndarray
        Degrees of the rows and of the columns.
    rank : numpy.ndarray
        (lat, lon).
    found : numpy.ndarray
        Flat positions among which to choose, ascending.
    n : int
        How many places, if there are that many.
    exclude_km : float
        They are farther than this from each other and from `here`.
    here : tuple of int, optional
        Row and column of a place to leave out.

    Returns
    -------
    numpy.ndarray
        Flat positions, lowest rank first; of equal ones the first position.
    """
    width, rank = len(lon), rank.ravel()
    # A repeated place, such as 360° beside 0°, is listed once.
    rows, cols = (first_alike(degrees) == np.arange(len(degrees)) for degrees in (lat, lon))
    found = found[rows[found // width] & cols[found % width]]
    if here is not None:
        found = found[found != here[0] * width + here[1]]
    if exclude_km == 0:
        return found[lowest(rank[found], min(n, len(found)))]
    found = found[np.isfinite(rank[found])]
    found = found[np.argsort(rank[found], kind="stable")]
    points = on_sphere(lat[found // width], lon[found % width])
    start = None if here is None else on_sphere(lat[here[0]], lon[here[1]])
    return found[first_apart(points, n, exclude_km, start)]


def first_apart(points: Floats, n: int, exclude_km: float, here: Floats | None = None) -> list[int]:
    """First n points that lie farther than a distance from each other.

    Parameters
    ----------
    points : numpy.ndarray
        On the unit sphere, (m, 3), the best first.
    n : int
        How many, if there are that many.
    exclude_km : float
        The distance.
    here : numpy.ndarray, optional
        A point that they must be this far from too, (3,).
    """
    chord = float(2 * np.sin(min(exclude_km / EARTH_RADIUS, np.pi) / 2))
    left = np.ones(len(points), bool) if here is None else _chords(points, here) > chord
    chosen: list[int] = []
    while left.any() and len(chosen) < n:
        chosen.append(int(np.argmax(left)))
        left &= _chords(points, points[chosen[-1]]) > chord
    return chosen


def _chords(points: Floats, point: Floats) -> Floats:
    """Chords through the unit sphere, which grow with distances along it."""
    return np.asarray(np.linalg.norm(points - point, axis=-1))
