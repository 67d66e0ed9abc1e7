"""Resizing as the official readers do it, with OpenCV's rules, in numpy.

Cubic convolution (Keys 1981, doi:10.1109/TASSP.1981.1163711) with a = -0.75, OpenCV's choice,
between pixel centres: pixel o of m made of n samples ``(o + 0.5) · n/m - 0.5``, the border's
pixels are repeated outwards, and there is no antialiasing. Both axes are separate, so an image
is multiplied by a matrix from either side.
"""

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

_A = -0.75


def cubic(pixels: NDArray[Any], size: int) -> NDArray[Any]:
    """Resize images to squares by cubic convolution, as ``cv2.INTER_CUBIC``.

    Parameters
    ----------
    pixels : numpy.ndarray
        (…, rows, columns) without NaN.
    size : int
        Side of the result.

    Returns
    -------
    numpy.ndarray
        (…, size, size) in the same dtype. Results overshoot; integers are rounded, halves to
        even, and held in the range of their dtype.
    """
    rows, columns = pixels.shape[-2:]
    if (rows, columns) == (size, size):
        return pixels
    down, across = _weights(size, rows), _weights(size, columns)
    # One large product an axis: a product a band would have BLAS share out each over the cores.
    wide = np.tensordot(pixels.astype(np.float32, copy=False), across, axes=(-1, 1))
    resized = np.moveaxis(np.tensordot(down, wide, axes=(1, -2)), 0, -2)
    if np.issubdtype(pixels.dtype, np.integer):
        info = np.iinfo(pixels.dtype)
        resized = np.clip(np.rint(resized), info.min, info.max)
    return np.ascontiguousarray(resized, dtype=pixels.dtype)


def nearest(pixels: NDArray[Any], size: int) -> NDArray[Any]:
    """Resize images to squares by taking pixels, as ``cv2.INTER_NEAREST``.

    Pixel o of m made of n is ``⌊o · n/m⌋``: the upper left one of those that it covers.
    """
    down, across = (_places(size, n) for n in pixels.shape[-2:])
    return pixels[..., down[:, None], across]


@lru_cache(maxsize=64)
def _weights(size: int, length: int) -> NDArray[np.float32]:
    """Weights (size, length) of cubic convolution along an axis; rows sum to 1."""
    position = (np.arange(size) + 0.5) * length / size - 0.5
    first = np.floor(position).astype(int)
    near = position - first
    # The second and third neighbours lie within one pixel, the others within two.
    weights = np.stack([_far(1 + near), _close(near), _close(1 - near), _far(2 - near)])
    matrix = np.zeros((size, length))
    for shift, weight in enumerate(weights, -1):
        np.add.at(matrix, (np.arange(size), np.clip(first + shift, 0, length - 1)), weight)
    return matrix.astype(np.float32)


def _close(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return ((_A + 2) * x - (_A + 3)) * x * x + 1


def _far(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return ((_A * x - 5 * _A) * x + 8 * _A) * x - 4 * _A


@lru_cache(maxsize=64)
def _places(size: int, length: int) -> NDArray[np.intp]:
    # OpenCV divides 1 by the ratio of the sides, which rounds differently from length / size.
    step = 1 / (size / length)
    return np.minimum((np.arange(size) * step).astype(np.intp), length - 1)
