"""The components of a cube that are drawn, and the values at the ends of their colours."""

from typing import TYPE_CHECKING

import numpy as np

from copcube.cube.view import CubeView
from copcube.errors import OptionError

if TYPE_CHECKING:
    import xarray as xr

_DEVIATIONS = 2.5
"""Standard deviations from the mean to the end of a colour scale."""


def reduced(ds: "xr.Dataset", k: int, basis: "xr.Dataset | None") -> "xr.Dataset":
    """Return a reduction with k components: the dataset itself, or the reduction of a cube.

    Raises
    ------
    CubeError
        If the dataset is not a cube or reduction or has leading dimensions.
    OptionError
        If there are fewer components, or a basis is given beside a reduction.
    """
    from copcube.pca import project, reduce

    CubeView.of(ds).ungrouped()
    if "pc" not in ds:
        ds = reduce(ds, k) if basis is None else project(ds, basis)
    elif basis is not None:
        raise OptionError("a basis is for a cube; the dataset is a reduction, which has its own")
    if k > ds.sizes.get("component", 0) or k < 1:
        raise OptionError(
            f"component {k - 1} was requested; the reduction has 0 to {ds.sizes['component'] - 1}: "
            "reduce to more, or draw a single one (plot.component, --show component)"
        )
    return ds


def limit(fields: "xr.Dataset", i: int) -> float:
    """Value of a component at the end of its colour scale.

    Raises
    ------
    OptionError
        If the reduction has no basis beside it.
    """
    if not {"explained_variance", "explained_variance_ratio"} <= {*fields}:
        raise OptionError(
            "expected the basis of the reduction beside pc; found none: draw the dataset that "
            "reduce or project returned, not only its pc"
        )
    # Whitened components were divided by their deviations already.
    if fields.attrs.get("reduction_whiten") == 1:
        return _DEVIATIONS
    return _DEVIATIONS * float(np.sqrt(fields["explained_variance"].values[i]))
