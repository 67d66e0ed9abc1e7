"""The parts of a basis, checking that a dataset holds one basis, and reading it."""

from typing import TYPE_CHECKING

import numpy as np

from copcube.cube.view import require_dataset
from copcube.errors import CubeError, OptionError
from copcube.grid import Floats

if TYPE_CHECKING:
    import xarray as xr

BASIS = {
    "components": ("component", "dim"),
    "mean": ("dim",),
    "explained_variance": ("component",),
    "explained_variance_ratio": ("component",),
}
"""Dimensions of the parts of a basis."""

REGRESSION = {"regression": ("predictor", "dim"), "predictor_mean": ("predictor",)}
"""Those it has besides if it was fitted on what given fields leave over."""


def require_one_basis(ds: "xr.Dataset") -> None:
    """Check that each part of a basis that is there has its own dimensions and no other.

    Raises
    ------
    CubeError
        If a dimension is missing, or there is another, as after concatenating reductions.
    """
    for name, dims in (BASIS | REGRESSION).items():
        if name not in ds:
            continue
        found = tuple(map(str, ds[name].dims))
        further = [dim for dim in found if dim not in dims]
        missing = [dim for dim in dims if dim not in found]
        if further and missing:
            raise CubeError(
                f"{name} has the dimensions {', '.join(found)}; expected {' and '.join(dims)}: "
                f"ds.rename({{{further[0]!r}: {missing[0]!r}}})"
            )
        if further:
            first = further[0]
            raise CubeError(
                f"{name} has the dimension {first} beside {' and '.join(dims)}: the dataset holds "
                f"{ds.sizes[first]} bases, as reductions do that were concatenated along {first}; "
                f"choose one with .isel({first}=0), or, if they are all the same, combine the "
                "datasets with data_vars='minimal'"
            )
        if missing:
            first = missing[0]
            raise CubeError(
                f"{name} lacks the dimension {first}, as after a selection by one number; select "
                f"by a list, such as .isel({first}=[0])"
            )


def read_components(basis: "xr.Dataset") -> tuple[Floats, Floats]:
    """Components of a basis, (component, dim), and what projections on them are divided by.

    Raises
    ------
    CubeError
        If it is not a dataset, or as `require_one_basis`.
    OptionError
        If it is not a basis.
    """
    require_dataset(basis, "the basis of a reduction")
    missing = [name for name in BASIS if name not in basis]
    if "reduction_whiten" not in basis.attrs:
        missing.append("reduction_whiten")
    if missing:
        raise OptionError(
            f"expected the basis of a reduction, found no {', '.join(missing)}; give what "
            "fit or reduce returned, with its attributes"
        )
    require_one_basis(basis)
    components = basis["components"].transpose("component", "dim").values.astype(np.float64)
    variance = basis["explained_variance"].values.astype(np.float64)
    whiten = int(basis.attrs["reduction_whiten"]) == 1
    return components, np.sqrt(variance) if whiten else np.ones(len(components))


def read_regression(basis: "xr.Dataset") -> tuple[Floats, Floats]:
    """Read the coefficients of a basis fitted on a residual, and the means of its predictors.

    Returns
    -------
    coefficients, means : numpy.ndarray
        (predictor, dim) and (predictor,) float64.

    Raises
    ------
    OptionError
        If the means are not there.
    """
    if "predictor_mean" not in basis:
        raise OptionError("expected the basis of a reduction, found no predictor_mean")
    coefficients = basis["regression"].transpose("predictor", "dim").values.astype(np.float64)
    return coefficients, basis["predictor_mean"].values.astype(np.float64)
