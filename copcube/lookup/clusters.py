"""Classes of places: k-means of the vectors of a cube."""

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from copcube.arguments import whole_number
from copcube.cube.caution import of_encoder
from copcube.cube.latlon import first_alike
from copcube.cube.results import as_result
from copcube.cube.view import CubeView
from copcube.errors import CubeError, MissingPackageError
from copcube.grid import Floats, Integers
from copcube.pca.weighting import Weights, cell_weights

if TYPE_CHECKING:
    import xarray as xr


def cluster(
    cube: "xr.Dataset",
    n: int,
    *,
    weights: "Weights | xr.DataArray" = "area",
    seed: int = 0,
) -> "xr.Dataset":
    """Divide the places of a cube into classes of similar vectors, by k-means.

    Parameters
    ----------
    cube : xarray.Dataset
        A reduction, which is usual, or a cube, without leading dimensions. All vectors are held
        in memory.
    n : int
        Number of classes, 2 to 32,767.
    weights : "area", None or xarray.DataArray
        Weight of every cell, as in `copcube.pca.components.fit`.
    seed : int
        Seed of k-means; the same seed gives the same classes, in whatever order the cells lie.

    Returns
    -------
    xarray.Dataset
        ``cluster`` (lat, lon) int16, -1 where there is no vector, the class of most weight first;
        ``centre`` (class, dim or component) float64; ``share`` (class), of the weight of all cells
        with vectors; and the attribute ``within``, the share of the variance that is within
        classes.

    Raises
    ------
    CubeError
        If the dataset is not a cube, has leading dimensions or fewer vectors than classes.
    MissingPackageError
        If scikit-learn is not installed.
    OptionError
        If `n`, `weights` or `seed` is not valid.
    """
    import xarray as xr

    n = whole_number(n, "n", 2, 32767)  # labels are int16
    seed = whole_number(seed, "seed", 0, 2**32 - 1)
    view = CubeView.of(cube).ungrouped()
    try:
        from sklearn.cluster import KMeans
    except ImportError:
        raise MissingPackageError(
            "clustering needs scikit-learn: pip install scikit-learn"
        ) from None
    weight = cell_weights(view, weights)
    lat, lon = view.field[view.lat], view.field[view.lon]
    # k-means draws its first centres by position, so the order of the cells must be fixed.
    down = np.argsort(-lat.values, kind="stable")
    along = np.argsort(lon.values % 360, kind="stable")
    weight = weight[np.ix_(down, along)]
    if (np.diff(down) < 0).any() or (np.diff(along) < 0).any():
        view = CubeView.of(cube.isel({view.lat: down, view.lon: along}))
    x, place = _vectors(view, weight)
    if len(x) < n:
        raise CubeError(f"{len(x):,} cells hold a vector: too few for {n} classes")
    w = weight.ravel()[place]
    # With weights of mean 1 the inertia is that of the cells. Iterate until nothing moves: stopped
    # earlier, centres are not the means of their classes.
    model = KMeans(n, n_init=1, random_state=seed, tol=0).fit(x, sample_weight=w / w.mean())
    share = np.bincount(model.labels_, w, minlength=n) / w.sum()
    order = np.argsort(-share, kind="stable")
    # k-means numbers its classes at random. The argsort of the argsort is the rank of each by size.
    result = np.full(weight.size, -1, np.int16)
    result[place] = np.argsort(order)[model.labels_]
    classified = np.empty(weight.shape, np.int16)
    classified[np.ix_(down, along)] = result.reshape(weight.shape)
    # Of repeated places, such as 360° beside 0°, only the first was classified.
    classified = classified[np.ix_(first_alike(lat.values), first_alike(lon.values))]
    mean = np.average(x, axis=0, weights=w)
    whole = float(np.average(((x - mean) ** 2).sum(axis=1), weights=w))
    flags = {"flag_values": np.arange(n, dtype=np.int16), "long_name": "class of the vector"}
    classes = xr.Dataset(
        {
            "cluster": ((view.lat, view.lon), classified, {**flags, "missing": -1}),
            "centre": (
                ("class", view.dim),
                model.cluster_centers_[order].astype(np.float64),
                {"units": "1", "long_name": "mean vector of the class"},
            ),
            "share": (
                "class",
                share[order],
                {"units": "1", "long_name": "share of the weight of all cells with vectors"},
            ),
        },
        coords={
            view.lat: lat.variable,
            view.lon: lon.variable,
            "class": np.arange(n, dtype=np.int16),
        },
        attrs={
            "title": f"{n} classes of vectors by k-means",
            "seed": seed,
            "within": float(model.inertia_ / len(x) / whole) if whole else 0.0,
            **of_encoder(cube.attrs),
        },
    )
    return as_result(classes)


def _vectors(view: CubeView, weight: Floats) -> tuple[NDArray[Any], Integers]:
    """Vectors of the cells with a weight, block by block, and their flat positions."""
    position = np.arange(weight.size).reshape(weight.shape)
    vectors = [np.empty((0, view.field.shape[-1]), view.field.dtype)]
    places = [np.empty(0, np.int64)]
    for part in view.blocks():
        there, x = view.read(part)
        there = there & (weight[part] > 0)
        vectors.append(x[there])
        places.append(position[part][there])
    return np.concatenate(vectors), np.concatenate(places)
