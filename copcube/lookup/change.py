"""What changed between two cubes of one encoder: the distance of the two vectors of every cell.

The vector of a cell is a weighted mean of n vectors of images, with weights wᵢ that sum to 1. It
would be different if other images of the same place had been taken. Its spread s and the weights
show by how much: with q = Σ wᵢ², the mean squared deviation of such a mean is

    noise² = s² q / (1 - q),

which is s² / (n - 1) if all images count equally. That is the usual unbiased estimate. It assumes
that a cell's images are drawn independently from all that could have been taken of it: if they are
more alike than that, noise is underestimated. Spread also includes the distance between modalities,
which is the same in every draw. So noise is overestimated in cells of several modalities, but not
in cubes of one, or with ``by="modality"``. If a cell has a single image, nothing is known.

Two cubes of a place that did not change differ by chance alone: the expected square of the
Euclidean distance of their vectors a and b is ``noise_a² + noise_b²``, and that of
``1 - cos(a, b)``, which is half of the squared distance of a/|a| and b/|b|, to first order at most
``(noise_a² / |a|² + noise_b² / |b|²) / 2``. What is found beyond that is change.
"""

import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from copcube.cube.caution import of_encoder
from copcube.cube.pairing import Side, pair, unlike_encoders, windows
from copcube.cube.results import as_result
from copcube.cube.schema import group_labels
from copcube.cube.view import CubeView
from copcube.cube.whole import with_maps
from copcube.errors import CubeError
from copcube.files.damage import naming_damage
from copcube.grid import Floats
from copcube.lookup.similar import APART, Metric, best_places, check_places
from copcube.modalities import SENSOR
from copcube.version import __version__

if TYPE_CHECKING:
    import xarray as xr

log = logging.getLogger("copcube")

_RECIPE = ("preprocessing", "aggregation", "aggregation_scales", "modalities")
"""Attributes that make vectors differ although the place is the same."""

_MAPS = ("n_images", "n_images_by_modality", "spread")
"""Variables that give the noise, and what vectors are made of."""

_BATCH = 8192
"""Vectors compared at once, so that their copies in float64 stay in the cache."""

_NAMES = {"euclidean": ("distance", "noise"), "cosine": ("cosine_distance", "cosine_noise")}

_ATTRS = {
    "distance": "distance of the two vectors of the cell",
    "cosine_distance": "1 - cosine of the two vectors of the cell",
    "noise": "distance that is expected where nothing changed, root of its mean square",
    "cosine_noise": "1 - cosine that is expected where nothing changed",
}


@naming_damage()
def change(
    a: "xr.Dataset",
    b: "xr.Dataset",
    *,
    n: int = 20,
    metric: Metric = "cosine",
    exclude_km: float = APART,
) -> "xr.Dataset":
    """Measure how far the vectors of every cell lie apart in two cubes of one encoder.

    Parameters
    ----------
    a, b : xarray.Dataset
        Two cubes, such as those of two years, two groups of one cube, such as
        ``years.isel(year=0)`` and ``years.isel(year=1)``, or two reductions on one basis; in any
        order, whole or in part, lazy or not. Leading dimensions must be the same in both.
    n : int
        How many of the most changed places to list, if there are that many.
    metric : {"cosine", "euclidean"}
        Which distance decides what has changed most.
    exclude_km : float
        Listed places are farther than this from each other, along great circles.

    Returns
    -------
    xarray.Dataset
        On the cells that both span, (…, lat, lon) float32 and NaN where one has no vector:
        ``distance``, ``cosine_distance`` and, for cubes with spread and counts, ``noise`` and
        ``cosine_noise``, what these would be if nothing had changed (formulas and assumptions are
        at the head of this module; NaN where a cell has a single image). Both are absent if
        fragments were shared between cells by area, as counts do not give the shares.
        ``same_modalities`` int8, 1 where both vectors are means over the same modalities, 0 where
        not and -1 where one is missing, if both cubes count them. Along ``place``, the most changed
        first: ``place_lat``, ``place_lon``, their values, and of leading dimensions the group with
        the largest change. Places are ranked by what exceeds noise: by distance² - noise², or by 1
        - cosine minus its noise. If noise is known at all, cells without it are not listed, nor are
        cells made of different modalities in `a` and `b`.

    Raises
    ------
    CubeError
        If a dataset is not a cube; if encoders, their weights or poolings, lengths of vectors,
        bases of two reductions or leading dimensions differ; or if no cell is in the extent of
        both.
    GridError
        If coordinates are not nodes of the 0.25° lattice.
    OptionError
        If `n`, `metric` or `exclude_km` is not valid.

    Examples
    --------
    >>> found = change(cube_2020, cube_2021, exclude_km=100)  # doctest: +SKIP
    >>> found.distance.where(found.distance > 2 * found.noise)  # doctest: +SKIP
    """
    n, exclude_km = check_places(n, metric, exclude_km)
    of_a, of_b = CubeView.of(a), CubeView.of(b)
    _require_comparable(of_a, of_b)
    sides = pair(*(replace(v, dataset=with_maps(v.dataset, _MAPS)) for v in (of_a, of_b)))
    values, lengths = _distances(*sides)
    noises = [_noise_squared(side) for side in sides]
    if noises[0] is not None and noises[1] is not None:
        squared = noises[0] + noises[1]
        relative = sum(
            noise / np.square(length) for noise, length in zip(noises, lengths, strict=True)
        )
        there = np.isfinite(values["distance"])
        values["noise"] = np.where(there, np.sqrt(squared), np.nan)
        values["cosine_noise"] = np.where(there, relative / 2, np.nan)
    fields = {name: v.astype(np.float32) for name, v in values.items()}
    attrs: dict[str, dict[str, Any]] = {
        name: {"units": "1", "long_name": text} for name, text in _ATTRS.items()
    }
    if (alike := _same_modalities(*sides)) is not None:
        known = np.where(np.isfinite(values["distance"]), alike, -1)
        fields["same_modalities"] = known.astype(np.int8)
        attrs["same_modalities"] = {
            "long_name": "whether both vectors are means over the same modalities",
            "flag_values": np.array([-1, 0, 1], np.int8),
            "flag_meanings": "missing no yes",
        }
    result = sides[0].on_coordinates(attrs, **fields)
    # Two selected groups each have their own label; the result belongs to neither.
    own = [
        name
        for name, c in result.coords.items()
        if not c.dims and not (name in b.coords and c.equals(b.coords[name]))
    ]
    result = result.drop_vars(own)
    result.attrs = {
        "title": "change of vectors from one cube to another",
        "metric": metric,
        "history": f"copcube {__version__} change",
        **of_encoder(a.attrs, b.attrs),
    }
    return as_result(_with_places(result, of_a, n, metric, exclude_km))


def _require_comparable(a: CubeView, b: CubeView) -> None:
    """Check that vectors of two datasets have common axes; warn about other differences."""
    if unlike := unlike_encoders(a.dataset.attrs, b.dataset.attrs):
        name, ours, theirs = unlike
        raise CubeError(
            f"{name} is {ours!r} in the first cube and {theirs!r} in the second: the distance "
            "between vectors of different encoders says nothing about places; `compare` measures "
            "their agreement"
        )
    if a.name != b.name or a.field.shape[-1] != b.field.shape[-1]:
        raise CubeError(
            f"the first has {a.name} of length {a.field.shape[-1]}, the second {b.name} of "
            f"length {b.field.shape[-1]}; give two cubes of one encoder, or two reductions on one "
            "basis"
        )
    if a.name == "pc" and not _same_basis(a.dataset, b.dataset):
        raise CubeError(
            "the two reductions have different bases, or none beside pc, so their components may "
            "mean different things; project both cubes on one basis with `project`"
        )
    for name in _RECIPE:
        ours, theirs = a.dataset.attrs.get(name), b.dataset.attrs.get(name)
        if None not in (ours, theirs) and ours != theirs:
            log.warning(
                "%s is %r in the first cube and %r in the second: part of the distance comes from "
                "that",
                *(name, ours, theirs),
            )


def _same_basis(a: "xr.Dataset", b: "xr.Dataset") -> bool:
    """Whether two reductions record the same basis."""
    whole = all(name in ds for ds in (a, b) for name in ("components", "mean"))
    same = whole and all(np.array_equal(a[n].values, b[n].values) for n in ("components", "mean"))
    return same and a.attrs.get("reduction_whiten") == b.attrs.get("reduction_whiten")


def _distances(a: Side, b: Side) -> tuple[dict[str, Floats], tuple[Floats, Floats]]:
    """Both distances, and the lengths of the vectors of both sides, (…, lat, lon) float64."""
    distance, cosine, length_a, length_b = (np.full(a.shape, np.nan) for _ in range(4))
    for window in windows(a.shape):
        (in_a, vectors_a), (in_b, vectors_b) = a.read(window), b.read(window)
        if not (both := in_a & in_b).any():
            continue
        x, y = vectors_a[both], vectors_b[both]
        found = np.empty((4, len(x)))
        for start in range(0, len(x), _BATCH):
            part = slice(start, start + _BATCH)
            found[:, part] = _of_pairs(x[part].astype(np.float64), y[part].astype(np.float64))
        for field, value in zip((distance, cosine, length_a, length_b), found, strict=True):
            field[..., *window][both] = value
    return {"distance": distance, "cosine_distance": cosine}, (length_a, length_b)


def _of_pairs(x: Floats, y: Floats) -> tuple[Floats, Floats, Floats, Floats]:
    """Distances and lengths of pairs of vectors, (n, dim); zeros have no cosine."""
    of_x, of_y = np.linalg.norm(x, axis=1), np.linalg.norm(y, axis=1)
    distance = np.linalg.norm(x - y, axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        # 1 - cos as half a square of differences: near 1, the cosine itself has lost digits.
        between = x / of_x[:, np.newaxis] - y / of_y[:, np.newaxis]
    return distance, np.square(between).sum(axis=1) / 2, of_x, of_y


def _noise_squared(side: Side) -> Floats | None:
    """Mean squared deviation of a cell's mean of images, (…, lat, lon); None if unknown."""
    ds, dims = side.view.dataset, side.view.field.dims[:-1]
    known = side.view.name == "embedding" and all(
        name in ds and set(ds[name].dims) == set(dims) for name in ("spread", "n_images")
    )
    # A sliver of a fragment counts as 1: such counts do not give the weights.
    if not known or "weighted by the share" in str(ds.attrs.get("aggregation_assign")):
        return None
    how = str(ds.attrs.get("aggregation", ""))
    if ds.attrs.get("aggregation_by") == "modality" or "all images alike" in how:
        squares = _inverse(_values(side, ds["n_images"], dims))
    elif "means of the modalities" in how and "n_images_by_modality" in ds:
        number = _values(side, ds["n_images_by_modality"], ("modality", *dims))
        kinds = (number > 0).sum(axis=0)
        # Each of M modalities has the weight 1/M, which its n images share.
        squares = np.where(number > 0, _inverse(number), 0).sum(axis=0) * _inverse(kinds) ** 2
    else:
        return None
    spread = _values(side, ds["spread"], dims).astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        # 1 means a single image, which has no spread to judge by.
        return np.where(squares < 1, spread**2 * squares / (1 - squares), np.nan)


def _inverse(number: NDArray[Any]) -> Floats:
    with np.errstate(divide="ignore"):
        return np.where(number > 0, 1 / number, np.nan)


def _same_modalities(a: Side, b: Side) -> NDArray[np.bool_] | None:
    """Which vectors are means over the same modalities; None if a cube does not count them."""
    name = "n_images_by_modality"
    numbered = set()
    there: list[dict[tuple[str, str | None], NDArray[np.bool_]]] = []
    for side in (a, b):
        dims = ("modality", *side.view.field.dims[:-1])
        ds = side.view.dataset
        if "modality" in side.view.lead or name not in ds or set(ds[name].dims) != set(dims):
            return None
        # Sensors with one key but two descriptions are different.
        keys = [(key, ds.attrs.get(SENSOR + key)) for key in group_labels(ds["modality"])]
        numbered.add(all(key.isdigit() for key, _ in keys))
        there.append(dict(zip(keys, _values(side, ds[name], dims) > 0, strict=True)))
    if len(numbered) > 1:  # the flags of one were lost, and numbers do not name modalities
        return None
    nothing = np.zeros(a.shape, bool)
    pairs = [[images.get(key, nothing) for images in there] for key in there[0] | there[1]]
    return np.asarray(np.all([ours == theirs for ours, theirs in pairs], axis=0))


def _values(side: Side, field: "xr.DataArray", dims: tuple[Any, ...]) -> NDArray[Any]:
    """Values of a variable beside the vectors, for the cells that both have."""
    return np.asarray(side.select(field.transpose(*dims)).values)


def _with_places(
    result: "xr.Dataset", view: CubeView, n: int, metric: Metric, exclude_km: float
) -> "xr.Dataset":
    """Add the most changed places."""
    value, noise = _NAMES[metric]
    # 1 - cos is already half a square, so squares are compared in both metrics.
    power = 2 if metric == "euclidean" else 1
    beyond = result[value].values.astype(np.float64) ** power
    if noise in result:
        beyond -= result[noise].values.astype(np.float64) ** power
    beyond[~np.isfinite(beyond)] = -np.inf
    if "same_modalities" in result:
        # Different modalities move a vector although the place may not have changed.
        beyond[result["same_modalities"].values == 0] = -np.inf
    lat, lon = result[view.lat], result[view.lon]
    groups = beyond.reshape(-1, len(lat), len(lon))
    # A place is listed once, with the group in which it changed most.
    most, rank = groups.argmax(axis=0), -groups.max(axis=0)
    found = np.flatnonzero(np.isfinite(rank))
    best = best_places(lat.values, lon.values, rank, found, n, exclude_km)
    i, j = np.unravel_index(best, rank.shape)
    lead = np.unravel_index(most[i, j], result[value].shape[:-2]) if view.lead else ()
    places = {
        "place_lat": (lat.values[i], {**lat.attrs, "long_name": "latitude of the place"}),
        "place_lon": (lon.values[j], {**lon.attrs, "long_name": "longitude of the place"}),
        **{
            f"place_{dim}": (result[dim].values[index], result[dim].attrs)
            for dim, index in zip(view.lead, lead, strict=True)
        },
        **{
            f"place_{name}": (result[name].values[*lead, i, j], result[name].attrs)
            for name in _ATTRS
            if name in result
        },
    }
    return result.assign({name: ("place", *rest) for name, rest in places.items()})
