"""Exact principal components of a cube, streamed: fit, project, restore.

`fit` reads a cube once, block by block of the lattice and in a fixed order, so that the
result has the same bits however the cube is chunked and whether it lies on disk or in
memory. All products and sums are in float64 (`copcube.pca.moments`).
"""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from copcube import grid
from copcube.cube.view import CubeView, Part, present, require_dataset, spatial_dims
from copcube.errors import CubeError, OptionError
from copcube.files.processors import available_processors
from copcube.grid import Floats
from copcube.lookahead import map_ahead
from copcube.pca.blas import one_thread
from copcube.pca.moments import Axes, Moments

if TYPE_CHECKING:
    import xarray as xr

Weights = Literal["area"] | None

_BASIS = ("components", "mean", "explained_variance", "explained_variance_ratio")
_SAME_ENCODER = ("encoder_sha256", "encoder_pooling")
_CUBES_ONLY = ("geoemb:", "zarr_conventions", "copcube_schema", "coordinates", "title")
"""Beginnings of the names of attributes that are not true of a reduction."""

_NEGLIGIBLE = 1e-30
"""Weight, relative to the largest, below which a cell counts as having none: no sum in float64
notices it, and what is far smaller still would underflow when it is squared."""
_THREADS = min(available_processors(), 8)
"""Blocks at work at once; each takes some 20 MB."""


def fit(
    cube: "xr.Dataset",
    k: int | float = 16,
    *,
    weights: "Weights | xr.DataArray" = "area",
    whiten: bool = False,
) -> "xr.Dataset":
    """Find the principal components of a cube's vectors.

    Parameters
    ----------
    cube : xarray.Dataset
        With ``embedding``, whole or in part, in any order of dimensions, lazy or not. A
        leading dimension such as season is no axis of the analysis: the cells of all groups
        are fitted together.
    k : int or float
        Number of components; or, between 0 and 1, the share of variance that they shall
        explain at least.
    weights : "area", None or xarray.DataArray
        Weight of every cell: its area on the sphere, the same for all, or any (lat, lon)
        field of finite numbers ≥ 0 on the cube's own coordinates.
    whiten : bool
        Whether projections are divided by their standard deviations.

    Returns
    -------
    xarray.Dataset
        The basis: ``components`` (component, dim) orthonormal, the entry of largest
        magnitude of each positive; ``mean`` (dim); ``explained_variance`` and, as share of
        the whole variance, ``explained_variance_ratio`` (component); all float64. Variances
        are unbiased, as scikit-learn's and those of ``numpy.cov(aweights=…)`` are. Memory
        is that of a few blocks of 45 × 45 cells.

    Raises
    ------
    CubeError
        If the dataset is no cube or none of its cells holds a vector.
    OptionError
        If `k` is larger than the rank of the vectors, or `k` or `weights` is no such value.

    Examples
    --------
    >>> from copcube.pca.components import fit, project
    >>> basis = fit(cube, k=0.95)  # doctest: +SKIP
    >>> fields = project(cube_of_another_year, basis)  # doctest: +SKIP
    """
    return _fit(CubeView.of(cube, "embedding"), k, weights, whiten)


def _fit(
    view: CubeView, k: int | float, weights: "Weights | xr.DataArray", whiten: bool
) -> "xr.Dataset":
    import xarray as xr

    _check_k(k)
    axes = _axes(view, _weights(view, weights))
    n = axes.count(k)
    variance, total = axes.variance[:n], axes.variance.sum()
    numbered = view.dim not in view.field.coords
    dim = np.arange(len(axes.mean)) if numbered else view.field[view.dim].values
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
            **_provenance(view.dataset),
            "reduction": "principal components",
            "reduction_weights": _kind(weights),
            "reduction_cells": axes.cells,
            "reduction_whiten": int(whiten),
        },
    )


def reduce(
    cube: "xr.Dataset",
    k: int | float = 16,
    *,
    weights: "Weights | xr.DataArray" = "area",
    whiten: bool = False,
) -> "xr.Dataset":
    """Reduce a cube to its first principal components: `fit`, then `project`.

    Parameters and errors are those of `fit`, the result that of `project`. The cube is read
    twice; the second time, if it is dask-backed, when the result is computed or written.
    """
    view = CubeView.of(cube, "embedding")
    return _project(view, _fit(view, k, weights, whiten))


def project(cube: "xr.Dataset", basis: "xr.Dataset") -> "xr.Dataset":
    """Express the vectors of a cube on a basis, its own or another's.

    Parameters
    ----------
    cube : xarray.Dataset
        With ``embedding``, as in `fit`: another year, another region, groups or not.
    basis : xarray.Dataset
        What `fit` or `reduce` returned, or a file of it opened again; components may have
        been selected from it.

    Returns
    -------
    xarray.Dataset
        ``pc`` (…, lat, lon, component) float32 on the cube's coordinates, NaN where a vector
        is missing or its cell counts no images, with the basis. Lazy if the cube is
        dask-backed, in blocks of 45 × 45 cells whatever the cube's chunks, so that these do
        not change a bit.

    Raises
    ------
    CubeError
        If one is no dataset, the first no cube, or its vectors have another length than the
        basis or come from another encoder.
    OptionError
        If `basis` is none.
    """
    return _project(CubeView.of(cube, "embedding"), basis)


def _project(view: CubeView, basis: "xr.Dataset") -> "xr.Dataset":
    import xarray as xr

    components, deviations = _components(basis)
    if view.field.shape[-1] != basis.sizes["dim"]:
        raise CubeError(
            f"the cube's vectors have length {view.field.shape[-1]}, those of the basis "
            f"{basis.sizes['dim']}; a basis serves cubes of the encoder it was fitted on"
        )
    for name in _SAME_ENCODER:
        ours, theirs = view.dataset.attrs.get(name), basis.attrs.get(name)
        if None not in (ours, theirs) and ours != theirs:
            raise CubeError(
                f"the cube has {name} {ours!r}, the basis was fitted on {theirs!r}: vectors of "
                "different encoders have no common axes; fit a basis on this cube"
            )
    rotate = partial(
        _affine,
        before=basis["mean"].values.astype(np.float64),
        matrix=np.ascontiguousarray(components.T) / deviations,
        after=np.zeros(len(components)),
        zeros_allowed=view.zeros_allowed,
    )
    pc = _map(view.field, rotate, "component", len(components))
    if view.counts is not None:  # what lies where no image is counted is no vector
        pc = pc.where(xr.DataArray(view.counts.variable))
    pc.attrs = {"units": "1", "long_name": "principal components of the embedding"}
    attrs = {key: value for key, value in basis.attrs.items() if key.startswith("reduction")}
    attrs = {**_provenance(view.dataset), **attrs}
    return _on_grid("pc", pc, view.dataset, basis[list(_BASIS)], attrs)


def restore(fields: "xr.Dataset") -> "xr.Dataset":
    """Turn principal components back into embeddings, as far as they go.

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
    components, deviations = _components(fields)
    expand = partial(
        _affine,
        before=np.zeros(len(components)),
        matrix=components * deviations[:, None],
        after=fields["mean"].values.astype(np.float64),
        zeros_allowed=True,
    )
    embedding = _map(view.field, expand, "dim", components.shape[1])
    embedding.attrs = {
        "units": "1",
        "long_name": f"embedding, restored from {len(components)} principal components",
    }
    basis = fields[["dim"] if "dim" in fields.coords else []]
    return _on_grid("embedding", embedding, fields, basis, fields.attrs)


def _axes(view: CubeView, weights: Floats) -> Axes:
    """Read all vectors once and find their axes; `weights` are of every cell, (lat, lon)."""
    moments = Moments.zero(view.field.shape[-1])

    def read(part: Part) -> Moments | None:
        filled, x = view.read(part)
        weighted = filled & (weights[part[-2:]] > 0)
        return Moments.of(x[weighted], weights[part[-2:]][weighted]) if weighted.any() else None

    # Blocks merge in the lattice's order, so that the sums have the same bits every time.
    parts = (part for part in view.blocks() if weights[part[-2:]].any())
    with one_thread():
        for block in map_ahead(read, parts, _THREADS, ahead=2 * _THREADS):
            if block is not None:
                moments.merge(block)
    if moments.cells == 0:
        raise CubeError(
            "no cell holds a vector, or none that does has a weight above zero: there is "
            "nothing to reduce; does the selected region hold land?"
        )
    return Axes.of(moments)


def _check_k(k: int | float) -> None:
    whole = isinstance(k, (int, np.integer)) and not isinstance(k, bool)
    share = isinstance(k, (float, np.floating))
    if not ((whole and k >= 1) or (share and 0 < k < 1)):
        raise OptionError(
            f"k={k!r}; expected a number of components, 1 or more, or a share of the variance "
            "between 0 and 1, such as 0.95"
        )


def _weights(view: CubeView, weights: "Weights | xr.DataArray") -> Floats:
    """Weight of every cell, (lat, lon), at most 1; 0 where no group has images."""
    shape = view.field.shape[-3:-1]
    used = np.ones(shape, bool)
    if view.counts is not None:
        used = np.logical_or.reduce(view.counts.values.reshape(-1, *shape))
    values = used.astype(np.float64)
    if isinstance(weights, str) and weights == "area":
        row = grid.cell_at(view.field[view.lat].values, 0)[0]
        values = np.where(used, grid.areas()[row][:, None], 0)
    elif weights is not None:
        values = np.where(used, _aligned(view, weights), 0)
        if not (np.isfinite(values) & (values >= 0)).all():
            raise OptionError(
                "weights hold values that are negative or not finite where the cube has "
                "vectors; give finite numbers ≥ 0 there"
            )
    values /= values.max(initial=0) or 1
    values[values < _NEGLIGIBLE] = 0
    return values


def _kind(weights: "Weights | xr.DataArray") -> str:
    return "none" if weights is None else weights if isinstance(weights, str) else "given"


def _aligned(view: CubeView, weights: "xr.DataArray") -> Floats:
    """Values of a field of weights, (lat, lon), after checking that it is on the cube's cells."""
    import xarray as xr

    if not isinstance(weights, xr.DataArray):
        raise OptionError(f"weights={weights!r}; expected 'area', None or a DataArray")
    ours, theirs = (view.lat, view.lon), spatial_dims(weights)
    if weights.ndim != 2:
        raise OptionError(f"weights have the dimensions {weights.dims}; expected {theirs} alone")
    for a, b in zip(ours, theirs, strict=True):
        if not np.array_equal(view.field[a].values, weights[b].values):
            raise OptionError(
                f"weights have another {b} than the cube: expected the same values in the same "
                "order; bring them there with weights.reindex_like(cube)"
            )
    return weights.transpose(*theirs).values.astype(np.float64)


def _components(basis: "xr.Dataset") -> tuple[Floats, Floats]:
    """Components, (component, dim), and what projections on them are divided by."""
    require_dataset(basis, "the basis of a reduction")
    missing = [name for name in _BASIS if name not in basis]
    missing += [name for name in ("reduction_whiten",) if name not in basis.attrs]
    if missing:
        raise OptionError(
            f"expected the basis of a reduction, found no {', '.join(missing)}; give what "
            "fit or reduce returned, with its attributes"
        )
    components = basis["components"].transpose("component", "dim").values.astype(np.float64)
    variance = basis["explained_variance"].values.astype(np.float64)
    whiten = int(basis.attrs["reduction_whiten"]) == 1
    return components, np.sqrt(variance) if whiten else np.ones(len(components))


def _map(
    field: "xr.DataArray", function: Callable[[NDArray[Any]], NDArray[Any]], name: str, size: int
) -> "xr.DataArray":
    """Map blocks of vectors, (…, lat, lon, n), to such of `size`; lazily if dask-backed.

    Blocks are the same for every kind of array, so that matrix products in them are.
    """
    import xarray as xr

    *lead, n_lat, n_lon, _ = field.shape
    shape, values = (*lead, n_lat, n_lon, size), field.variable
    if field.chunks is not None:
        import dask.array as da

        # One block of a user's chunks could be the whole cube; and bits depend on the blocks.
        data = field.data.rechunk((*(1 for _ in lead), grid.BLOCK, grid.BLOCK, -1))
        result = da.map_blocks(  # type: ignore[no-untyped-call]
            function,
            data,
            dtype=np.float32,
            chunks=(*data.chunks[:-1], (size,)),
            meta=np.empty((0,) * len(shape), np.float32),
        )
    else:
        result = np.empty(shape, np.float32)
        parts = [
            (*group, slice(i, i + grid.BLOCK), slice(j, j + grid.BLOCK))
            for group in np.ndindex(*lead)
            for i in range(0, n_lat, grid.BLOCK)
            for j in range(0, n_lon, grid.BLOCK)
        ]
        blocks = map_ahead(
            lambda part: function(values[part].values), parts, _THREADS, ahead=2 * _THREADS
        )
        for part, block in zip(parts, blocks, strict=True):
            result[part] = block
    return xr.DataArray(result, dims=(*field.dims[:-1], name))


def _affine(
    x: NDArray[Any], *, before: Floats, matrix: Floats, after: Floats, zeros_allowed: bool
) -> NDArray[np.float32]:
    """``(x - before) @ matrix + after`` in float64 where x is finite along the last axis."""
    result = np.full((*x.shape[:-1], matrix.shape[1]), np.nan, np.float32)
    filled = present(x, zeros_allowed=zeros_allowed)
    if filled.any():
        y = x[filled].astype(np.float64)
        y -= before
        with one_thread():
            result[filled] = y @ matrix + after
    return result


def _on_grid(
    name: str, result: "xr.DataArray", source: "xr.Dataset", basis: "xr.Dataset", attrs: Any
) -> "xr.Dataset":
    """Dataset of a result and its basis, with the coordinates of the source's cells."""
    bounds = {coordinate.attrs.get("bounds") for coordinate in source.coords.values()}
    coords = {
        key: coordinate.variable
        for key, coordinate in source.coords.items()
        if set(coordinate.dims) <= set(result.dims[:-1]) or key in bounds
    }
    if "crs" in coords:
        result.attrs["grid_mapping"] = "crs"
    return basis.assign({name: result}).assign_coords(coords).assign_attrs(attrs)


def _provenance(cube: "xr.Dataset") -> dict[str, Any]:
    """Attributes of a cube that are true of its reduction and that any format can hold."""
    return {
        key: value
        for key, value in cube.attrs.items()
        if isinstance(value, (str, int, float, np.number)) and not key.startswith(_CUBES_ONLY)
    }
