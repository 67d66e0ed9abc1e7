"""Principal components of fragments: one basis, found once and stored, and projections on it."""

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from copcube.arguments import whole_number
from copcube.cube.pairing import unlike_encoders
from copcube.cube.results import as_result
from copcube.errors import OptionError
from copcube.lookahead import map_ahead
from copcube.lookup.fragments import Fragments
from copcube.pca.basis import read_components
from copcube.pca.blas import one_thread
from copcube.pca.components import basis_of
from copcube.pca.moments import Axes, Moments
from copcube.pca.predictors import predictor_names

if TYPE_CHECKING:
    import xarray as xr

_WAITING = 16384
"""Vectors multiplied at once; with fewer, merging costs more."""


def fit_fragments(fragments: Fragments, k: int | float = 3, *, every: int = 1) -> "xr.Dataset":
    """Find the principal components of fragments, all with equal weight.

    Parameters
    ----------
    fragments : Fragments
        From files, or in memory.
    k : int or float
        Number of components; or, between 0 and 1, the share of variance that they must explain.
    every : int
        Use only every n-th fragment: three components of a million match those of fifty million.

    Returns
    -------
    xarray.Dataset
        The basis, as `copcube.pca.components.fit` returns it; `to_netcdf` stores it, and other
        fragments can be projected on it too.

    Raises
    ------
    OptionError
        If `k` is larger than the rank of the vectors, or an option is not valid.
    """
    every = whole_number(every, "every", 1)
    moments = Moments.zero(fragments.dim)

    def of(x: NDArray[np.float32]) -> Moments:
        return Moments.of(x, np.ones(len(x)))

    blocks = fragments.blocks(_WAITING, every)
    with one_thread():
        # In the order of the rows, so that the sums are always bitwise equal.
        for found in map_ahead(of, (x for _, x in blocks), 2):
            moments.merge(found)
    if moments.cells < 2:
        raise OptionError(f"{moments.cells} fragments have no components; use more of them")
    # These apply to cubes on ERA5's grid, to which aggregation brings fragments.
    of_cubes = ("title", "aggregation_assign")
    about: dict[str, Any] = {k: v for k, v in fragments.about.items() if k not in of_cubes}
    about["reduction_weights"] = "none"
    return as_result(basis_of(Axes.of(moments), k, np.arange(fragments.dim), about))


def project_fragments(fragments: Fragments, basis: "xr.Dataset") -> NDArray[np.float32]:
    """Components of every fragment on a basis, (n, components) float32.

    Raises
    ------
    OptionError
        If it is not a basis, belongs to vectors of another length or encoder, or was fitted to the
        residual of given fields.
    """
    components, deviations = read_components(basis)
    if components.shape[1] != fragments.dim:
        raise OptionError(
            f"the fragments' vectors have length {fragments.dim}, those of the basis "
            f"{components.shape[1]}; use a basis of the same encoder"
        )
    if names := predictor_names(basis):
        raise OptionError(
            f"the basis is of the residual of {', '.join(names)}, fields that fragments do not "
            "have; use one fitted without given fields"
        )
    if unlike := unlike_encoders(fragments.about, basis.attrs):
        name, ours, theirs = unlike
        raise OptionError(
            f"the fragments have {name} {ours!r}, the basis was fitted on {theirs!r}; use one of "
            "the same encoder"
        )
    shift, axes = basis["mean"].values.astype(np.float64), components / deviations[:, np.newaxis]
    result = np.empty((len(fragments), len(axes)), np.float32)
    for start, x in fragments.blocks(_WAITING):
        result[start : start + len(x)] = (x.astype(np.float64) - shift) @ axes.T
    return result
