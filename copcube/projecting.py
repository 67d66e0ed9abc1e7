"""Calling pyproj with arrays of any size."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray


def projected(
    function: Callable[..., Any], *arrays: NDArray[Any], **options: Any
) -> tuple[NDArray[np.float64], ...]:
    """Call a function of pyproj, and return arrays of the shape of those given.

    Parameters
    ----------
    function : callable
        Of pyproj: it takes coordinates as arrays of one shape, and returns several arrays.
    *arrays : numpy.ndarray
        Coordinates.
    **options
        Passed on.
    """
    if arrays[0].size != 1:
        return tuple(np.asarray(values, np.float64) for values in function(*arrays, **options))
    # With NumPy before 2.4 pyproj takes an array of one value for a number: NumPy warns of that,
    # and the shape is lost.
    values = function(*(float(array.item()) for array in arrays), **options)
    return tuple(np.full(arrays[0].shape, value, np.float64) for value in values)
