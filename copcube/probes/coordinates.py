"""Codes of a place, from which a climate can be predicted without any image."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from copcube.grid import Floats, on_sphere

_WAVES = (1e-4, 720.0)
"""Shortest and longest wave of the encoder's code of degrees, as in `copcube.encoder`."""
_DECIMALS = 7
"""Digits of a Fourier code that hold: at the shortest wave, phases are off by 5e-9."""


def lonlat(lat: ArrayLike, lon: ArrayLike) -> Floats:
    """Longitude, -180 to 180, and latitude in degrees, (n, 2): the paper's raw coordinates."""
    return np.stack([_centred(lon), np.asarray(lat, np.float64)], axis=-1)


def fourier(lat: ArrayLike, lon: ArrayLike, width: int = 768) -> Floats:
    """Sines and cosines that Copernicus-FM is given of a place.

    Parameters
    ----------
    lat, lon : array_like
        (n,) degrees.
    width : int
        Length of the code: half of it is that of the longitude, half that of the latitude.

    Returns
    -------
    numpy.ndarray
        (n, width) float64: for ``lon + 180`` and then for ``lat + 90`` the sines and then the
        cosines at waves from 1e-4° to 720°, evenly spaced in the logarithm (arXiv:2503.11849).
        Rounded to 7 decimals, beyond which the shortest waves hold nothing but rounding.
    """
    waves = np.logspace(math.log10(_WAVES[0]), math.log10(_WAVES[1]), width // 4)
    # The encoder rounds degrees to float32 before it encodes them; nodes of the lattice stay.
    halves = (
        np.asarray(_centred(lon), np.float32) + np.float32(180),
        np.asarray(lat, np.float32) + np.float32(90),
    )
    return np.concatenate([_each(_sines, half, waves) for half in halves], axis=-1)


def xyz(lat: ArrayLike, lon: ArrayLike) -> Floats:
    """Points of the unit sphere, (n, 3)."""
    return on_sphere(lat, lon)


def harmonics(lat: ArrayLike, lon: ArrayLike, degree: int) -> Floats:
    """Real spherical harmonics of all degrees from 1 on.

    Parameters
    ----------
    lat, lon : array_like
        (n,) degrees.
    degree : int
        The last degree.

    Returns
    -------
    numpy.ndarray
        (n, (degree + 1)² - 1) float64, orthonormal on the sphere, by degree and then by order
        from -degree to degree: sines, the zonal one, cosines. Without the phase of Condon and
        Shortley. The recursion is the stable one of Holmes & Featherstone (2002,
        doi:10.1007/s00190-002-0216-2), equation 11.
    """
    legendre = _each(_legendre, np.asarray(lat, np.float64), degree)
    angle = np.radians(np.asarray(lon, np.float64))
    columns = []
    for n in range(1, degree + 1):
        for m in range(-n, n + 1):
            # Real harmonics have sines in place of negative orders and cosines of positive ones.
            turn = np.sqrt(2) * (np.sin(-m * angle) if m < 0 else np.cos(m * angle)) if m else 1.0
            columns.append(legendre[:, _place(n, abs(m))] * turn)
    return np.stack(columns, axis=-1)


def _place(n: int, m: int) -> int:
    """Where degree n and order m are along the columns of `_legendre`."""
    return n * (n + 1) // 2 + m


def _legendre(lat: Floats, degree: int) -> Floats:
    """Associated Legendre functions of sin(lat), normalised, by degree and order 0 to degree."""
    sine, cosine = np.sin(np.radians(lat)), np.cos(np.radians(lat))
    table = np.zeros((len(lat), _place(degree + 1, 0)))
    table[:, 0] = np.sqrt(1 / (4 * np.pi))
    for n in range(1, degree + 1):
        # In recurrences of the normalised functions no factorial overflows.
        diagonal = np.sqrt((2 * n + 1) / (2 * n)) * cosine
        table[:, _place(n, n)] = diagonal * table[:, _place(n - 1, n - 1)]
        for m in range(n):
            step = np.sqrt((4 * n**2 - 1) / (n**2 - m**2))
            table[:, _place(n, m)] = step * sine * table[:, _place(n - 1, m)]
            if m < n - 1:
                back = np.sqrt(((n - 1) ** 2 - m**2) / (4 * (n - 1) ** 2 - 1))
                table[:, _place(n, m)] -= step * back * table[:, _place(n - 2, m)]
    return table


def _sines(degrees: Floats, waves: Floats) -> Floats:
    phase = degrees[:, None] * (2 * np.pi / waves)
    return np.round(np.concatenate([np.sin(phase), np.cos(phase)], axis=-1), _DECIMALS)


def _each(
    function: Callable[[Floats, Any], Floats], degrees: NDArray[np.floating], argument: Any
) -> Floats:
    """Values of a function at degrees, computed once for each distinct value."""
    different, which = np.unique(degrees, return_inverse=True)
    return function(different.astype(np.float64), argument)[which]


def _centred(lon: ArrayLike) -> Floats:
    return (np.asarray(lon, np.float64) + 180) % 360 - 180
