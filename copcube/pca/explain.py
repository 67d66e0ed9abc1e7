"""How well a model's fields explain the components of a cube, and the other way round."""

import logging
from typing import TYPE_CHECKING

import numpy as np

from copcube.arguments import whole_number
from copcube.cube.caution import of_encoder
from copcube.cube.ordered import ordered
from copcube.cube.results import as_result
from copcube.cube.view import CubeView
from copcube.errors import CubeError
from copcube.grid import Floats, require_block, squares
from copcube.pca.blas import one_thread
from copcube.pca.moments import Moments, mirrored
from copcube.pca.predictors import Predictors, expanded, slopes
from copcube.pca.weighting import Weights, cell_weights

if TYPE_CHECKING:
    import xarray as xr


log = logging.getLogger("copcube")

_FEW = 10
"""Cells per coefficient of a regression below which it fits mostly chance."""


def explain(
    fields: "xr.Dataset",
    statics: "xr.Dataset | xr.DataArray",
    *,
    weights: "Weights | xr.DataArray" = "area",
    folds: int = 5,
    block: float = 10.0,
) -> "xr.Dataset":
    """Measure how well static fields explain each component, and components each static field.

    Parameters
    ----------
    fields : xarray.Dataset
        A reduction, with ``pc``; if it has groups, the cells of all count together.
    statics : xarray.Dataset or xarray.DataArray
        Fields on nodes of the 0.25° lattice, such as ERA5's.
    weights : "area", None or xarray.DataArray
        Weight of every cell, as in `copcube.pca.components.fit`.
    folds : int
        Number of parts, 2 or more, each of which is predicted from the others.
    block : float
        Side in degrees of the squares that parts are made of. Neighbouring cells are so alike that
        parts of single cells would only measure interpolation.

    Returns
    -------
    xarray.Dataset
        Weighted shares of variance, 1 - Σw(y - ŷ)² / Σw(y - ȳ)²: ``component_r2`` (component), by
        linear regression on all static fields together; ``static_r2`` (static), on all
        components together; and of both, as ``component_r2_held_out`` and
        ``static_r2_held_out``, the same shares in held-out parts, which are negative where the mean
        over the other parts would have been the better prediction. ``pair_r2`` (component, static)
        is the squared correlation of one component and one static field, which is the share of
        either that a regression on the other explains. NaN where a field is constant.

    Raises
    ------
    CubeError
        If `fields` is not a reduction, a part has no cell with all the fields, or the others
        together have fewer than a regression has coefficients.
    GridError
        If one does not lie on the lattice.
    OptionError
        If `folds`, `block` or `weights` is not valid.
    """
    import xarray as xr

    folds = whole_number(folds, "folds", 2)
    block = require_block(block)
    view = CubeView.of(fields, "pc")
    names = expanded(statics, 1)
    predictors = Predictors.of(statics, view, names)
    parts = _moments(view, predictors, cell_weights(view, weights), folds, block)
    n = len(names)
    _demand_enough(parts, max(n, view.field.shape[-1]) + 1)
    component, component_held_out = _shares(parts, n)
    static, static_held_out = _shares([_swapped(part, n) for part in parts], view.field.shape[-1])
    unseen = ", in parts that the regression has not seen"
    forward, backward = "by the static fields", "by the components"
    numbered = "component" in fields.coords
    coords = {"component": fields["component"].variable} if numbered else {}
    result = xr.Dataset(
        {
            "component_r2": ("component", component, _share(forward)),
            "component_r2_held_out": ("component", component_held_out, _share(forward + unseen)),
            "static_r2": ("static", static, _share(backward)),
            "static_r2_held_out": ("static", static_held_out, _share(backward + unseen)),
            "pair_r2": (("component", "static"), _pairs(parts, n), _share("by one of the other")),
        },
        coords={**coords, "static": ("static", list(names))},
        attrs={
            "title": "what static fields and principal components say of each other",
            "folds": folds,
            "block_degrees": block,
            "cells": sum(part.cells for part in parts),
            **of_encoder(fields.attrs),
        },
    )
    return as_result(result)


def _share(by: str) -> dict[str, str]:
    return {"units": "1", "long_name": f"share of variance explained {by}"}


def _moments(
    view: CubeView, predictors: Predictors, weights: Floats, folds: int, block: float
) -> list[Moments]:
    """Moments of (static fields, components) of each part of the globe."""
    n = len(predictors.names)
    weights = np.where(predictors.there(), weights, 0)
    # Along a row of squares the parts follow each other; the next row begins two further on.
    down, along = squares(view.field[view.lat].values, view.field[view.lon].values, block)
    square = 2 * down[:, None] + along
    if folds > (most := int(np.ptp(square)) + 1):
        raise CubeError(
            f"{folds - most} of {folds} parts have no cell, since squares of {block:g}° make "
            f"{most} parts here; choose fewer folds or smaller blocks"
        )
    fold = square % folds
    parts = [Moments.zero(n + view.field.shape[-1]) for _ in range(folds)]
    with one_thread():
        for piece, rows, cols in ordered(view):
            these = np.ix_(rows, cols)
            g, w, number = predictors.values[these], weights[these], fold[these]
            for part in piece.blocks():
                filled, x = piece.read(part)
                where = part[-2:]
                joint = np.concatenate([g[where], x], axis=-1, dtype=np.float64)
                for i in range(folds):
                    here = filled & (w[where] > 0) & (number[where] == i)
                    if here.any():
                        parts[i].merge(Moments.of(joint[here], w[where][here]))
    if empty := [i for i, part in enumerate(parts) if not part.cells]:
        raise CubeError(
            f"{len(empty)} of {folds} parts have no cell with a vector and all static fields; "
            "choose fewer folds or smaller blocks"
        )
    return parts


def _demand_enough(parts: list[Moments], coefficients: int) -> None:
    """Refuse fewer cells than coefficients, and warn of few."""
    fewest = sum(part.cells for part in parts) - max(part.cells for part in parts)
    if fewest < _FEW * coefficients:
        few = f"{fewest:,} cells, without one of the parts, for {coefficients} coefficients"
        if fewest <= coefficients:
            raise CubeError(f"too few cells for a regression: {few}; give a larger region")
        log.warning("few cells: %s; the held-out shares are mostly chance", few)


def _swapped(part: Moments, n: int) -> Moments:
    """Moments of vectors whose first n values are put at their end."""
    order = np.roll(np.arange(len(part.mean)), -n)
    lower = np.asfortranarray(np.tril(mirrored(part.lower)[np.ix_(order, order)]))
    return Moments(part.cells, part.weight, part.square, part.mean[order], lower)


def _shares(parts: list[Moments], n: int) -> tuple[Floats, Floats]:
    """R² of what follows the first n values, on these: seen, and predicted from other parts."""
    whole = _merged(parts)
    scatter = np.diag(whole.lower)[n:].copy()
    scatter[scatter == 0] = np.nan  # a constant has no variance to explain
    seen = _squares(whole, whole, n)
    unseen = sum(
        _squares(_merged([*parts[:i], *parts[i + 1 :]]), part, n) for i, part in enumerate(parts)
    )
    return 1 - seen / scatter, 1 - unseen / scatter


def _pairs(parts: list[Moments], n: int) -> Floats:
    """Squared correlations of what follows the first n values with each of these."""
    lower = _merged(parts).lower
    scatter = np.diag(lower).copy()
    scatter[scatter == 0] = np.nan
    pairs: Floats = lower[n:, :n] ** 2 / np.outer(scatter[n:], scatter[:n])
    return pairs


def _merged(parts: list[Moments]) -> Moments:
    whole = Moments.zero(len(parts[0].mean))
    for part in parts:
        whole.merge(part)
    return whole


def _squares(train: Moments, test: Moments, n: int) -> Floats:
    """Weighted sum of squared errors, on the cells of `test`, of the regression on `train`."""
    coefficients = slopes(train, n)
    lower = test.lower
    predictors = mirrored(lower[:n, :n])
    # Σw(y - ŷ)² about the part's own means, and what the means are off by.
    about = (
        np.diag(lower)[n:]
        - 2 * np.einsum("yp,py->y", lower[n:, :n], coefficients)
        + np.einsum("py,pq,qy->y", coefficients, predictors, coefficients)
    )
    off = test.mean[n:] - train.mean[n:] - (test.mean[:n] - train.mean[:n]) @ coefficients
    result: Floats = about + test.weight * off**2
    return result
