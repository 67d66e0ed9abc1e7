"""Points as people give them: one, lists of them, DataArrays of them."""

from typing import TYPE_CHECKING, Any

import numpy as np

from copcube.errors import OptionError

if TYPE_CHECKING:
    import xarray as xr

    from copcube.cube.view import CubeView


def as_points(lat: Any, lon: Any) -> tuple["xr.DataArray", "xr.DataArray"]:
    """Coordinates of points as float64, along the same dimensions in the same order.

    Parameters
    ----------
    lat, lon : float, array_like or xarray.DataArray
        Numbers, or both one-dimensional and of the same length, or DataArrays along the same
        dimensions.

    Returns
    -------
    lat, lon : xarray.DataArray
        Without dimensions, along ``point``, or along those of the DataArrays.

    Raises
    ------
    OptionError
        If they do not belong together, or are no numbers.
    """
    import xarray as xr

    given = []
    for name, values in (("lat", lat), ("lon", lon)):
        if isinstance(values, xr.DataArray):
            numbers = values
        else:
            try:
                array = np.asarray(values)
            except ValueError:  # lists of lists of different lengths
                array = np.empty(0, object)
            if array.ndim > 1:
                raise OptionError(
                    f"{name} has {array.ndim} dimensions; expected a number, a list of numbers, or "
                    "a DataArray, whose dimensions have names"
                )
            numbers = xr.DataArray(array, dims=["point"][: array.ndim])
        if numbers.dtype.kind not in "iuf":
            raise OptionError(f"{name}={values!r}; expected degrees as numbers")
        given.append(numbers.astype(np.float64))
    y, x = given
    if {*y.sizes.items()} != {*x.sizes.items()}:
        raise OptionError(
            f"lat has {_sizes(y)}, lon {_sizes(x)}; expected as many latitudes as longitudes, "
            "along the same dimension"
        )
    try:
        xr.align(y, x, join="exact")
    except ValueError:
        raise OptionError(
            "lat and lon have other labels along their dimension: which latitude belongs to which "
            "longitude is a guess; align them, xr.align(lat, lon)"
        ) from None
    return y, x.transpose(*y.dims)


def refuse_shared(points: "xr.DataArray", view: "CubeView") -> None:
    """Refuse points along a dimension of the dataset itself, such as its groups.

    Raises
    ------
    OptionError
        If they are: each point would be paired with one of the groups.
    """
    own = {*view.dataset.dims} - {view.lat, view.lon}
    if shared := [str(dim) for dim in points.dims if dim in own]:
        raise OptionError(
            f"the points lie along {', '.join(shared)}, which is a dimension of the dataset too; "
            f"rename it in theirs, such as {shared[0]} to point"
        )


def _sizes(values: "xr.DataArray") -> str:
    return ", ".join(f"{n} along {dim}" for dim, n in values.sizes.items()) or "one value"
