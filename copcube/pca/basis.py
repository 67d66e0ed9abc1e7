"""What a basis is made of, and that a dataset holds one of it."""

from typing import TYPE_CHECKING

from copcube.errors import CubeError

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
        if further := [dim for dim in found if dim not in dims]:
            first = further[0]
            raise CubeError(
                f"{name} has the dimension {first} beside {' and '.join(dims)}: the dataset holds "
                f"{ds.sizes[first]} bases, as reductions do that were concatenated along {first}; "
                f"choose one with .isel({first}=0), or, if they are all the same, combine the "
                "datasets with data_vars='minimal'"
            )
        if missing := [dim for dim in dims if dim not in found]:
            first = missing[0]
            raise CubeError(
                f"{name} lacks the dimension {first}, as after a selection by one number; select "
                f"by a list, such as .isel({first}=[0])"
            )
