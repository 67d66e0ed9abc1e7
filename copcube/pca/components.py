"""Exact principal components of a cube, streamed: fit, project, restore.

`fit` reads a cube once, block by block of the lattice and in a fixed order, so that the
result has the same bits however the cube is chunked and whether it lies on disk or in
memory. All products and sums are in float64 (`copcube.pca.moments`).
"""

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from copcube.arguments import as_given, flag, whole_number
from copcube.cube.caution import of_encoder, of_vectors
from copcube.cube.latlon import CELL
from copcube.cube.ordered import ordered
from copcube.cube.pairing import demand_same_order, unlike_encoders
from copcube.cube.results import as_result
from copcube.cube.schema import OF_CUBES_ONLY
from copcube.cube.view import CubeView, Part
from copcube.errors import CubeError, OptionError
from copcube.files.damage import naming_damage
from copcube.files.processors import THREADS
from copcube.grid import Floats
from copcube.lookahead import map_ahead
from copcube.pca.affine import Affine, map_vectors
from copcube.pca.basis import BASIS, REGRESSION, read_components, read_regression
from copcube.pca.blas import one_thread
from copcube.pca.moments import Axes, Moments
from copcube.pca.predictors import Predictors, Regression, expanded, predictor_names
from copcube.pca.weighting import Weights, cell_weights, kind_of_weights
from copcube.version import __version__

if TYPE_CHECKING:
    import xarray as xr

_CUBES_ONLY = (*OF_CUBES_ONLY, "title")
"""Prefixes of the names of attributes that do not apply to a reduction."""


@naming_damage()
def fit(
    cube: "xr.Dataset",
    k: int | float = 16,
    *,
    weights: "Weights | xr.DataArray" = "area",
    whiten: bool = False,
    given: "xr.Dataset | xr.DataArray | None" = None,
    degree: int = 1,
) -> "xr.Dataset":
    """Find the principal components of a cube's vectors.

    Parameters
    ----------
    cube : xarray.Dataset
        With ``embedding``, whole or in part, in any order of dimensions, lazy or not. A leading
        dimension such as season is not an axis of the analysis: the cells of all groups are fitted
        together.
    k : int or float
        Number of components; or, between 0 and 1, the share of variance that they shall
        explain at least.
    weights : "area", None or xarray.DataArray
        Weight of every cell: its area on the sphere, the same for all, or any (lat, lon)
        field of finite numbers ≥ 0 on the cube's own coordinates.
    whiten : bool
        Whether projections are divided by their standard deviations.
    given : xarray.Dataset or xarray.DataArray, optional
        Fields that a model has already, such as ERA5's ``z``, ``lsm``, ``sdor`` and ``slor``,
        on nodes of the lattice in any order. The components are then those of what a weighted
        linear regression of the vectors on these fields leaves over, so that each is
        uncorrelated with every one of them. Cells without one of the fields are left out.
    degree : int
        1 for the fields alone; 2 or 3 to regress on their squares and products, too.

    Returns
    -------
    xarray.Dataset
        The basis: ``components`` (component, dim) orthonormal, the entry of largest
        magnitude of each positive; ``mean`` (dim); ``explained_variance`` and, as share of
        the whole variance, ``explained_variance_ratio`` (component); all float64. Variances
        are unbiased, as scikit-learn's and those of ``numpy.cov(aweights=…)`` are. Memory
        is that of a few blocks of 45 × 45 cells. With `given` also ``regression``
        (predictor, dim) and ``predictor_mean`` (predictor), and the attribute
        ``reduction_given_explains``, the share of variance that the given fields explain;
        ``explained_variance_ratio`` is then a share of what they leave over.

    Raises
    ------
    CubeError
        If the dataset is not a cube or none of its cells holds a vector; if `given` holds no fields
        of latitude and longitude.
    GridError
        If `given` does not lie on the lattice.
    OptionError
        If `k` is larger than the rank of the vectors, or `k`, `weights` or `degree` is not valid.

    Examples
    --------
    >>> from copcube.pca.components import fit, project
    >>> basis = fit(cube, k=0.95)  # doctest: +SKIP
    >>> fields = project(cube_of_another_year, basis)  # doctest: +SKIP
    """
    view = CubeView.of(cube, "embedding")
    return as_result(_fit(view, k, weights, whiten, _predictors(view, given, degree)))


def _fit(
    view: CubeView,
    k: int | float,
    weights: "Weights | xr.DataArray",
    whiten: bool,
    predictors: Predictors | None,
) -> "xr.Dataset":
    _check_k(k)
    whiten = flag(whiten, "whiten")
    axes, regression = _axes(view, cell_weights(view, weights), predictors)
    numbered = view.dim not in view.field.coords
    dim = np.arange(len(axes.mean)) if numbered else view.field[view.dim].values
    about = {**_provenance(view.dataset, "fit"), "reduction_weights": kind_of_weights(weights)}
    basis = basis_of(axes, k, dim, about, whiten=whiten)
    if predictors is None or regression is None:
        return basis
    ratio = basis["explained_variance_ratio"]
    ratio.attrs["long_name"] = (
        "share along the component of the variance that the given fields leave over"
    )
    return basis.assign(
        regression=(
            ("predictor", "dim"),
            regression.coefficients,
            {"long_name": "change of the embedding with one unit of the predictor"},
        ),
        predictor_mean=(
            "predictor",
            regression.means,
            {"long_name": "mean of the predictor over the cells fitted"},
        ),
        predictor=(
            "predictor",
            np.arange(len(predictors.names), dtype=np.int8),
            {
                "long_name": "given field, or product of given fields, regressed on",
                "flag_values": list(range(len(predictors.names))),
                "flag_meanings": " ".join(predictors.names),
            },
        ),
    ).assign_attrs(
        reduction_given=" ".join(predictors.names),
        reduction_given_explains=regression.explained,
    )


def basis_of(
    axes: Axes, k: int | float, dim: NDArray[Any], attrs: dict[str, Any], *, whiten: bool = False
) -> "xr.Dataset":
    """First principal axes as a basis, as `fit` returns it.

    Parameters
    ----------
    axes : Axes
        All axes.
    k : int or float
        As in `fit`.
    dim : numpy.ndarray
        Coordinate of the vectors' dimension, (dim,).
    attrs : dict
        Attributes, beside those that say how the basis was found.
    whiten : bool
        Whether projections are divided by their standard deviations.

    Raises
    ------
    OptionError
        If `k` is larger than the rank of the vectors, or no such value.
    """
    import xarray as xr

    _check_k(k)
    n = axes.count(k)
    # Shares are of all variance, also of that which the first n leave.
    variance, total = axes.variance[:n], axes.variance.sum()
    return xr.Dataset(
        {
            "components": (
                ("component", "dim"),
                axes.components[:n],
                {"units": "1", "long_name": "unit vectors along the principal components"},
            ),
            "mean": ("dim", axes.mean, {"units": "1", "long_name": "mean embedding"}),
            "explained_variance": (
                "component",
                variance,
                {"units": "1", "long_name": "variance along the component"},
            ),
            "explained_variance_ratio": (
                "component",
                variance / total,
                {"units": "1", "long_name": "share of the whole variance along the component"},
            ),
        },
        coords={
            "component": (
                "component",
                np.arange(n, dtype=np.int16),
                {"units": "1", "long_name": "number of the principal component"},
            ),
            "dim": ("dim", dim, {"units": "1", "long_name": "dimension of the embedding"}),
        },
        attrs={
            **attrs,
            "reduction": "principal components",
            "reduction_cells": axes.cells,
            "reduction_whiten": int(whiten),
        },
    )


@naming_damage()
def reduce(
    cube: "xr.Dataset",
    k: int | float = 16,
    *,
    weights: "Weights | xr.DataArray" = "area",
    whiten: bool = False,
    given: "xr.Dataset | xr.DataArray | None" = None,
    degree: int = 1,
) -> "xr.Dataset":
    """Reduce a cube to its first principal components: `fit`, then `project`.

    Parameters and errors are those of `fit`, the result that of `project`. The cube is read
    twice; the second time, if it is dask-backed, when the result is computed or written.
    """
    view = CubeView.of(cube, "embedding")
    predictors = _predictors(view, given, degree)
    return _project(view, _fit(view, k, weights, whiten, predictors), predictors)


@naming_damage()
def project(
    cube: "xr.Dataset",
    basis: "xr.Dataset",
    *,
    given: "xr.Dataset | xr.DataArray | None" = None,
) -> "xr.Dataset":
    """Express the vectors of a cube on a basis, its own or another's.

    Parameters
    ----------
    cube : xarray.Dataset
        With ``embedding``, as in `fit`: another year, another region, groups or not.
    basis : xarray.Dataset
        What `fit` or `reduce` returned, or a file of it opened again; components may have
        been selected from it.
    given : xarray.Dataset or xarray.DataArray, optional
        The given fields on the cube's cells, for a basis that was fitted on what they leave
        over; by default those that `reduce` put beside its result.

    Returns
    -------
    xarray.Dataset
        ``pc`` (…, lat, lon, component) float32 on the cube's coordinates, NaN where a vector
        or a given field is missing or the cell counts no images, with the basis and, as
        ``predictors`` (lat, lon, predictor) float32, the given fields. Lazy if the cube is
        dask-backed, in blocks of 45 × 45 cells whatever the cube's chunks, so that these do
        not change a bit.

    Raises
    ------
    CubeError
        If one is not a dataset, the first is not a cube, or its vectors have a different length
        from the basis or come from a different encoder.
    OptionError
        If `basis` is not a basis, or `given` is passed for a basis fitted without given fields.
    """
    view = CubeView.of(cube, "embedding")
    names = predictor_names(basis)
    if not names and given is not None:
        raise OptionError(
            "the basis was fitted on the vectors themselves, so given fields change nothing: leave "
            "given out, or fit a basis with it"
        )
    if not names:
        return _project(view, basis, None)
    if given is None:
        return _project(view, basis, Predictors.stored(basis, view))
    return _project(view, basis, Predictors.of(given, view, names))


def _project(view: CubeView, basis: "xr.Dataset", predictors: Predictors | None) -> "xr.Dataset":
    components, deviations = read_components(basis)
    if view.field.shape[-1] != basis.sizes["dim"]:
        raise CubeError(
            f"the cube's vectors have length {view.field.shape[-1]}, those of the basis "
            f"{basis.sizes['dim']}; a basis serves cubes of the encoder it was fitted on"
        )
    demand_same_order(view.field[view.dim].values, basis["dim"].values)
    if unlike := unlike_encoders(view.dataset.attrs, basis.attrs):
        name, ours, theirs = unlike
        raise CubeError(
            f"the cube has {name} {ours!r}, the basis was fitted on {theirs!r}: vectors of "
            "different encoders have no common axes; fit a basis on this cube"
        )
    # Whitening is a scale of each axis, and so part of the same product.
    matrix = np.ascontiguousarray(components.T) / deviations
    rotate = Affine(
        before=basis["mean"].values.astype(np.float64),
        matrix=matrix,
        after=np.zeros(len(components)),
        zeros_allowed=view.zeros_allowed,
    )
    beside = None
    if predictors is not None:
        coefficients, means = read_regression(basis)
        beside = predictors.values
        rotate = replace(rotate, means=means, slopes=-coefficients @ matrix)
    counts = None if view.counts is None else view.counts.values
    pc = map_vectors(view.field, rotate, "component", counts, beside)
    of = "the embedding" if predictors is None else "what the given fields leave of the embedding"
    pc.attrs = {"units": "1", "long_name": f"principal components of {of}"}
    attrs = {key: value for key, value in basis.attrs.items() if key.startswith("reduction")}
    # A cube that lost its attributes is of the same encoder, of which there may be a caution.
    attrs = {**of_encoder(basis.attrs), **_provenance(view.dataset, "reduce"), **attrs}
    parts = basis[list(BASIS)]
    if predictors is not None:
        parts = basis[[*BASIS, *REGRESSION]].assign(
            predictors=(
                (view.lat, view.lon, "predictor"),
                predictors.values,
                {"long_name": "given fields, in their own units, and their products"},
            )
        )
    return _on_grid("pc", pc, view.dataset, parts, attrs)


@naming_damage()
def restore(fields: "xr.Dataset") -> "xr.Dataset":
    """Restore embeddings from principal components, as far as possible.

    What given fields explained of the embeddings, where the basis was fitted on what they leave
    over, is added again.

    Parameters
    ----------
    fields : xarray.Dataset
        What `project` or `reduce` returned; cells and components may have been selected.

    Returns
    -------
    xarray.Dataset
        ``embedding`` (…, lat, lon, dim) float32, NaN where ``pc`` is; lazy if it is.

    Raises
    ------
    CubeError
        If there is no ``pc``.
    OptionError
        If its basis is not with it.
    """
    view = CubeView.of(fields, "pc")
    components, deviations = read_components(fields)
    expand = Affine(
        before=np.zeros(len(components)),
        matrix=components * deviations[:, None],
        after=fields["mean"].values.astype(np.float64),
    )
    beside = None
    if predictor_names(fields):
        if "predictors" not in fields:
            raise OptionError(
                "expected the variable predictors, the given fields that the basis was fitted "
                "on, beside pc; restore what reduce or project returned"
            )
        coefficients, means = read_regression(fields)
        beside = fields["predictors"].transpose(view.lat, view.lon, "predictor").values
        expand = replace(expand, means=means, slopes=coefficients)
    embedding = map_vectors(view.field, expand, "dim", beside=beside)
    embedding.attrs = {
        "units": "1",
        "long_name": f"embedding, restored from {len(components)} principal components",
    }
    basis = fields[["dim"] if "dim" in fields.coords else []]
    return _on_grid("embedding", embedding, fields, basis, _provenance(fields, "restore"))


def _moments(
    view: CubeView, weights: Floats, beside: NDArray[Any] | None, part: Part
) -> Moments | None:
    """Moments of the vectors of a block, with what stands beside them; None if there are none."""
    filled, x = view.read(part)
    weighted = filled & (weights[part[-2:]] > 0)
    if not weighted.any():
        return None
    x = x[weighted]
    if beside is not None:
        x = np.concatenate([beside[part[-2:]][weighted], x], axis=-1)
    return Moments.of(x, weights[part[-2:]][weighted])


def _axes(
    view: CubeView, weights: Floats, predictors: Predictors | None
) -> tuple[Axes, Regression | None]:
    """Read all vectors once and find their axes; `weights` are of every cell, (lat, lon)."""
    n = 0 if predictors is None else len(predictors.names)
    moments = Moments.zero(n + view.field.shape[-1])
    if predictors is not None:
        weights = np.where(predictors.there(), weights, 0)

    with one_thread():
        for piece, rows, cols in ordered(view):
            here = np.ix_(rows, cols)
            of_piece = weights[here]
            beside = None if predictors is None else predictors.values[here]
            read = partial(_moments, piece, of_piece, beside)
            # Blocks merge in the lattice's order, so that the sums have the same bits every time.
            parts = [part for part in piece.blocks() if of_piece[part[-2:]].any()]
            for block in map_ahead(read, parts, THREADS, ahead=2 * THREADS):
                if block is not None:
                    moments.merge(block)
    if moments.cells == 0:
        raise CubeError(
            "no cell holds a vector, or none that does has a weight above zero"
            f"{' and all given fields' if n else ''}: there is nothing to reduce; does the "
            "selected region hold land?"
        )
    if not n:
        return Axes.of(moments), None
    regression, residuals = Regression.of(moments, n)
    # Variance left by rounding after the predictors explained it does not count.
    largest = float(np.diag(moments.covariance)[n:].max())
    return Axes.of(residuals, largest), regression


def _predictors(
    view: CubeView, given: "xr.Dataset | xr.DataArray | None", degree: int
) -> Predictors | None:
    if given is None:
        if whole_number(degree, "degree", 1, 3) != 1:
            raise OptionError(f"degree={degree} applies to given fields, but none are given")
        return None
    return Predictors.of(given, view, expanded(given, degree))


def _check_k(k: int | float) -> None:
    whole = isinstance(k, (int, np.integer)) and not isinstance(k, bool)
    share = isinstance(k, (float, np.floating))
    if not ((whole and k >= 1) or (share and 0 < k < 1)):
        raise OptionError(
            f"k={as_given(k)}; expected a number of components, 1 or more, or a share of the "
            "variance between 0 and 1, such as 0.95"
        )


def _on_grid(
    name: str, result: "xr.DataArray", source: "xr.Dataset", basis: "xr.Dataset", attrs: Any
) -> "xr.Dataset":
    """Dataset of a result and its basis, with the coordinates of the source's cells."""
    bounds = {coordinate.attrs.get("bounds") for coordinate in source.coords.values()}
    coords = {
        key: coordinate.variable
        for key, coordinate in source.coords.items()
        # Bounds have a dimension of their own, which no result has.
        if set(coordinate.dims) <= set(result.dims[:-1]) or key in bounds
    }
    if "crs" in coords:
        result.attrs["grid_mapping"] = "crs"
    of = source["embedding" if name == "pc" else "pc"].attrs
    if CELL in of:  # cells of a coarser grid, whose nodes may be nodes of the lattice
        result.attrs[CELL] = of[CELL]
    made = basis.assign({name: result}).assign_coords(coords)
    made.attrs = attrs  # those of the basis may be of another cube
    return as_result(made, name)


def _provenance(ds: "xr.Dataset", then: str) -> dict[str, Any]:
    """Attributes that also apply to results of a dataset, in a form that any format can hold."""
    attrs = {
        key: value
        for key, value in of_vectors(ds.attrs).items()
        if isinstance(value, (str, int, float, np.number)) and not key.startswith(_CUBES_ONLY)
    }
    history = filter(None, (attrs.get("history"), f"copcube {__version__} {then}"))
    return attrs | {"history": "\n".join(map(str, history))}
