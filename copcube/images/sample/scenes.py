"""Made-up scenes: what the eight modalities would see of smooth random covers.

A scene is a share of soil, vegetation, water and snow at every pixel, drawn from smooth
random fields. Radar and optical sensors see it through the spectra of the pure covers, in
their own units; gases and heights are fields of their own. The ranges are plausible, the
places are not real. One image in four lacks some pixels, and one Sentinel-3 image in three
has bands Oa01 and Oa10 too large by 1e9, as in published tensors.
"""

import math
from dataclasses import dataclass
from datetime import date as Date
from functools import cache, lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from copcube.modalities import MODALITIES, Modality

# Rasters of the published cell at 67.25°N: rows, columns.
_PUBLISHED_LATITUDE = 67.25
_PUBLISHED_SHAPES = {"s3_olci": (67, 174), "dem": (936, 2402)} | {
    key: (26, 66) for key in MODALITIES if key.startswith("s5p")
}

# Typical values of soil, vegetation, water and snow: dB, and top-of-atmosphere counts.
_S1_COVERS = np.array([[-10, -17.5], [-8.5, -14.5], [-20, -28], [-13, -20]])
_S2_COVERS = np.array(
    [
        [1500, 1450, 1500, 1800, 2000, 2150, 2300, 2400, 2500, 900, 15, 3100, 2600],
        [1300, 1000, 900, 600, 1000, 2500, 3100, 3200, 3400, 1100, 15, 1700, 800],
        [1450, 1150, 850, 500, 450, 400, 380, 330, 300, 150, 12, 120, 90],
        [7500, 7800, 7700, 7800, 7700, 7600, 7500, 7400, 7200, 3500, 60, 900, 700],
    ]
)
# Vertical columns in mol/m²: mean and relative deviation.
_S5P_COLUMNS = {
    "s5p_co": (0.035, 0.1),
    "s5p_no2": (2.5e-5, 0.5),
    "s5p_o3": (0.13, 0.03),
    "s5p_so2": (1.5e-4, 0.8),
}


@dataclass(frozen=True)
class Terrain:
    """The character of a landscape.

    Parameters
    ----------
    covers : tuple of float
        Usual weights of soil, vegetation, water and snow, all positive.
    elevation, relief : float
        Mean and deviation of the height in metres; below 0 lies the sea.
    """

    covers: tuple[float, float, float, float]
    elevation: float
    relief: float


def raster_shape(modality: Modality, lat: float) -> tuple[int, int]:
    """Rows and columns of a raster, as published at 67.25°N and to scale elsewhere.

    Local patches are squares in UTM, slightly turned against the patch beyond 60°. The
    others cover 28 km either way in pixels that are square in degrees, so they grow wider
    towards the poles; the pixels of Sentinel-3 grow with them, from 300 m at the equator.
    """
    if modality.local:
        return (268, 267) if abs(lat) > 60 else (264, 264)
    rows, cols = _PUBLISHED_SHAPES[modality.key]
    published, here = (math.cos(math.radians(phi)) for phi in (_PUBLISHED_LATITUDE, lat))
    scale = (1 + here) / (1 + published) if modality.key == "s3_olci" else 1.0
    return round(rows * scale), round(cols * scale * published / here)


def draw(
    modality: Modality,
    terrain: Terrain,
    lat: float,
    date: str | None,
    scene: np.random.Generator,
    image: np.random.Generator,
    shape: tuple[int, int] | None = None,
) -> NDArray[Any]:
    """Draw one raster.

    Parameters
    ----------
    modality : Modality
        The sensor and its bands.
    terrain : Terrain
        The landscape.
    lat : float
        Latitude of the centre: it sets the shape and the season.
    date : str or None
        YYYYMMDD; winter brings snow.
    scene, image : numpy.random.Generator
        Streams of the place, the same for all its dates and sensors, and of this image.
    shape : tuple of int, optional
        Rows and columns; by default as published.

    Returns
    -------
    numpy.ndarray
        (bands, rows, columns): uint16 for Sentinel-2, where missing pixels are 0 in every
        band, else float32, where they are NaN.
    """
    shape = shape or raster_shape(modality, lat)
    if modality.key == "dem":
        heights = terrain.elevation + terrain.relief * _fields(image, 1, shape)
        return np.asarray(np.maximum(heights, 0), dtype=np.float32)
    noise = image.standard_normal((len(modality.bands), *shape), dtype=np.float32)
    winter = _winter(date, lat)
    if modality.key in _S5P_COLUMNS:
        mean, deviation = _S5P_COLUMNS[modality.key]
        pixels = mean * (1 + deviation * (_fields(image, 1, shape) + 0.1 * noise + 0.5 * winter))
    else:
        covers = _covers(scene, terrain, winter, shape)
        pixels = np.tensordot(_spectra(modality.key).T, covers, axes=1)
        if modality.key == "s1_grd":
            pixels += 1.3 * noise
        else:
            pixels *= 1 + 0.08 * _fields(image, 1, shape) + 0.02 * noise
    if modality.key == "s3_olci" and image.random() < 1 / 3:
        pixels[[0, 9]] *= 1e9
    gap = _fields(image, 1, shape)[0] > (1.5 if image.random() < 1 / 4 else np.inf)
    if modality.zero_is_missing:
        counts = np.clip(np.rint(pixels), 1, 20_000).astype(np.uint16)
        counts[:, gap] = 0
        return counts
    pixels[:, gap] = np.nan
    return np.asarray(pixels, dtype=np.float32)


def _winter(date: str | None, lat: float) -> float:
    """1 in mid-winter of a place, -1 in its mid-summer."""
    if date is None:
        return 0.0
    day = Date.fromisoformat(date).timetuple().tm_yday
    return math.copysign(1, lat) * math.cos(2 * math.pi * (day - 15) / 365)


def _covers(
    rng: np.random.Generator, terrain: Terrain, winter: float, shape: tuple[int, int]
) -> NDArray[np.float32]:
    """Shares of the four covers at every pixel, (4, rows, columns), by softmax."""
    usual = np.log(terrain.covers) + 0.4 * rng.standard_normal(4)
    season = winter * np.array([0, -0.7, 0, 2.5])
    shares = 2 * _fields(rng, 4, shape)
    shares += (usual + season).astype(np.float32)[:, None, None]
    np.exp(shares, out=shares)
    shares /= shares.sum(axis=0)
    return shares


@cache
def _spectra(key: str) -> NDArray[np.float32]:
    """Values of the pure covers, (4, bands) float32.

    Sentinel-3 sees the reflectances of Sentinel-2 under a sun of 5778 K at 45°, in counts.
    """
    if key == "s1_grd":
        return _S1_COVERS.astype(np.float32)
    if key == "s2_toa":
        return _S2_COVERS.astype(np.float32)
    s2, s3 = MODALITIES["s2_toa"], MODALITIES["s3_olci"]
    nm = np.array(s3.wavelengths)
    reflectance = np.array([np.interp(nm, s2.wavelengths or (), c) / 1e4 for c in _S2_COVERS])
    # Planck's law in W m⁻² µm⁻¹ sr⁻¹, 2hc²/λ⁵ / (exp(hc/λkT) - 1), by the sun's 6.8e-5 sr.
    sunlight = 1.191e23 / nm**5 / np.expm1(1.4388e7 / (nm * 5778)) * 6.8e-5
    radiance = reflectance * sunlight * math.cos(math.pi / 4) / math.pi
    return np.asarray(radiance / s3.scale, dtype=np.float32)


def _fields(rng: np.random.Generator, count: int, shape: tuple[int, int]) -> NDArray[np.float32]:
    """Independent smooth fields, (count, rows, columns), normal with unit variance.

    A sum of octaves; each spreads coarse noise by Gaussian bumps, one axis at a time.
    """
    rows, cols = shape
    total = np.zeros((count, rows, cols), dtype=np.float32)
    for bumps, variance in ((3, 0.55), (9, 0.3), (27, 0.15)):
        across = round(bumps * cols / rows)
        coarse = rng.standard_normal((count, bumps, across), dtype=np.float32)
        coarse *= np.float32(math.sqrt(variance))
        total += _bumps(rows, bumps) @ coarse @ _bumps(cols, across).T
    return total


@lru_cache(maxsize=64)
def _bumps(length: int, count: int) -> NDArray[np.float32]:
    """Gaussian bumps along an axis, (length, count), each row of unit norm."""
    position = (np.arange(length) + 0.5) * count / length
    weights = np.exp(-(((position[:, None] - np.arange(count) - 0.5) / 0.8) ** 2) / 2)
    weights /= np.linalg.norm(weights, axis=1, keepdims=True)
    return weights.astype(np.float32)
