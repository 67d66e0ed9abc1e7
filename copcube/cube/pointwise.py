"""Points in all accepted forms: a single one, lists, DataArrays."""

import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from copcube.errors import OptionError

if TYPE_CHECKING:
    import xarray as xr

    from copcube.cube.view import CubeView


def as_points(lat: Any, lon: Any) -> tuple["xr.DataArray", "xr.DataArray"]:
    """Return coordinates of points as float64, along the same dimensions in the same order.

    Parameters
    ----------
    lat, lon : float, array_like or xarray.DataArray
        Numbers, or both one-dimensional and of the same length, or DataArrays along the same
        dimensions. Masked values are missing.

    Returns
    -------
    lat, lon : xarray.DataArray
        Without dimensions, along ``point``, or along those of the DataArrays.

    Raises
    ------
    OptionError
        If they do not belong together, or are not numbers.
    """
    import xarray as xr

    demand_same_labels(lat, lon)
    given = []
    for name, values in (("lat", lat), ("lon", lon)):
        if isinstance(values, xr.DataArray):
            numbers = values
        else:
            try:
                # `asarray` would return the values below the mask.
                array = np.asanyarray(values)
            except ValueError:  # ragged lists of lists
                array = np.empty(0, object)
            if array.ndim > 1:
                raise OptionError(
                    f"{name} has {array.ndim} dimensions; expected a number, a list of numbers, or "
                    "a DataArray, whose dimensions have names"
                )
            # NaN where a masked array is masked
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
            "lat and lon have different labels along their dimension: pairing them would be a "
            "guess; align them with xr.align(lat, lon)"
        ) from None
    return y, x.transpose(*y.dims)


def demand_same_labels(lat: Any, lon: Any) -> None:
    """Check that two columns of pandas have the same index in the same order.

    Raises
    ------
    OptionError
        If not: pandas pairs values by label, NumPy by position.
    """
    # Only a user who has imported pandas can pass one of its columns.
    pandas = sys.modules.get("pandas")
    if pandas is None or not all(isinstance(v, pandas.Series) for v in (lat, lon)):
        return
    if len(lat) == len(lon) and not lat.index.equals(lon.index):
        raise OptionError(
            "lat and lon have different labels in their indexes: pairing them would be a guess; "
            "take both from one frame, or give their values, lat.to_numpy()"
        )


def refuse_shared(points: "xr.DataArray", view: "CubeView", further: Iterable[str] = ()) -> None:
    """Refuse points along a dimension whose name the dataset has too, such as its groups.

    Parameters
    ----------
    points : xarray.DataArray
        Points.
    view : CubeView
        The dataset.
    further : iterable of str
        Names of further variables of the result.

    Raises
    ------
    OptionError
        If so: each point would be paired with one group, or their labels would replace the
        variable.
    """
    own = {*view.dataset.dims, *view.dataset.variables, *further} - {view.lat, view.lon}
    if shared := [str(dim) for dim in points.dims if dim in own]:
        raise OptionError(
            f"the points lie along {', '.join(shared)}, a name that the dataset has too; rename "
            f"that dimension of the points, such as {shared[0]} to point"
        )


def _sizes(values: "xr.DataArray") -> str:
    return ", ".join(f"{n} along {dim}" for dim, n in values.sizes.items()) or "one value"
