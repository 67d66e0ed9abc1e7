"""A small cube of the whole globe for trials, made in seconds without any input.

It has the form of a real one: a vector for every cell on land, counts of images by modality and
their spread, all on ERA5's grid, so that whatever works on it works on a real one. Its values are
synthetic: smooth fields drawn at random, a belt of climates by latitude, mountains where none are.
Only the coastlines are true. Attributes, card, log and titles of maps say so.
"""

import logging
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from copcube import grid
from copcube.arguments import whole_number
from copcube.cells import Cells
from copcube.plot.coast import coastlines
from copcube.version import __version__

if TYPE_CHECKING:
    import xarray as xr

log = logging.getLogger("copcube")

DIM = 32
"""Length of the vectors; those of the published encoder have 768."""

_ATTRIBUTES: dict[str, Any] = {
    "title": "SYNTHETIC embeddings on ERA5's 0.25 degree grid, for trying things on",
    "synthetic": "drawn at random by copcube.tutorial; no satellite image was read",
    "encoder": "none: synthetic",
    # The convention of embeddings wants an address; this one leads nowhere (RFC 2606).
    "encoder_page": "https://example.org/synthetic",
    "encoder_trained": 0,
    "source": "none: synthetic",
    "history": f"copcube {__version__} tutorial",
    "dates": "none: synthetic",
    "license": "Apache-2.0",
    "references": "none: synthetic",
}

_SCALES = (96, 48, 24, 12, 6, 3)
"""Widths of the random fields' smooth features, in cells."""

_GRAVITY = 9.80665
"""Divisor that turns ERA5's geopotential into metres."""

_NOISE = 0.03
"""Standard deviation of noise that neighbours do not share; that of the fields is 1."""


def open(*, seed: int = 0) -> "xr.Dataset":
    """Make the cube in memory: 721 × 1440 cells, vectors of length 32, NaN except on land.

    Parameters
    ----------
    seed : int
        Different seeds give different values.

    Returns
    -------
    xarray.Dataset
        ``embedding`` (lat, lon, dim) float32, ``n_images`` and ``n_images_by_modality`` int32 and
        ``spread`` float32, as in a cube that `copcube.build` wrote.

    Examples
    --------
    >>> cube = copcube.tutorial.open()  # doctest: +SKIP
    >>> cube.copembed.plot.rgb()  # doctest: +SKIP
    """
    import xarray as xr

    from copcube.cube import schema

    log.warning("SYNTHETIC cube: %s, and its values mean nothing", _ATTRIBUTES["synthetic"])
    cells = _cells(seed)
    row, col = grid.row_col(cells.grid_id)
    filled = {
        "embedding": cells.embedding,
        "spread": cells.spread,
        "n_images": cells.n_images,
        "n_images_by_modality": cells.n_by_modality.T,
    }
    variables = {}
    for v in schema.variables(DIM, None, ()).values():
        values = v.values
        if values is None:
            values = np.full(v.shape, v.fill, v.dtype)
            values[(row, col) if v.dims[0] == "lat" else (slice(None), row, col)] = filled[v.name]
        variables[v.name] = (v.dims, values, v.attrs)
    attrs = schema.group_attributes(_ATTRIBUTES)
    coordinates = attrs.pop("coordinates").split()
    return xr.Dataset(variables, attrs=attrs).set_coords(coordinates)


def write(path: str | Path, *, seed: int = 0, overwrite: bool = False) -> None:
    """Write the cube as Zarr, with the schema of every cube; `copcube demo --world` does.

    Parameters
    ----------
    path : str or Path
        Folder to write.
    seed : int
        Different seeds give different values.
    overwrite : bool
        Whether to replace a cube that copcube wrote there.

    Raises
    ------
    WriteError
        If something is there already that must stay, or it cannot be written.
    """
    from copcube.cube import create, finish, write_band
    from copcube.interchange.replacing import appearing, require_free_store

    require_free_store(path, overwrite)
    log.warning("SYNTHETIC cube: %s, and its values mean nothing", _ATTRIBUTES["synthetic"])
    with appearing(path, overwrite, folder=True) as temporary:
        create(temporary, dim=DIM, attrs=_ATTRIBUTES)
        for band, cells in _cells(seed).by_band():
            write_band(temporary, band, cells)
        finish(temporary)


def statics(*, seed: int = 0) -> "xr.Dataset":
    """Make static fields of the same synthetic world, under ERA5's names.

    Parameters
    ----------
    seed : int
        The seed of the cube to which they belong.

    Returns
    -------
    xarray.Dataset
        (latitude, longitude) float32, 721 × 1440 as ERA5: ``z`` (m² s⁻²) of the mountains that the
        vectors of `open` see, 0 at sea; ``lsm``, the true coastlines, 0 or 1; ``sdor`` (m), the
        standard deviation of heights in 5 × 5 cells; ``slor``, the slope between cells.
    """
    import xarray as xr
    from scipy.ndimage import uniform_filter

    log.warning("SYNTHETIC static fields: drawn at random by copcube.tutorial")
    height = 750 * _height(_fields(_generator(seed))) * land()
    mean, mean_square = (
        uniform_filter(x, size=5, mode=("nearest", "wrap")) for x in (height, height**2)
    )
    variance = np.clip(mean_square - mean**2, 0, None)
    north = np.gradient(height, axis=0)
    east = np.gradient(np.pad(height, ((0, 0), (1, 1)), "wrap"), axis=1)[:, 1:-1]
    metres = 111_195 * grid.STEP
    # At the poles meridians meet; the row beside them stands for their slope.
    narrow = np.cos(np.radians(np.clip(grid.latitudes(), -89.75, 89.75)))[:, None]
    slope = np.hypot(north, east / narrow) / metres
    fields = {
        "z": (_GRAVITY * height, "geopotential", "m**2 s**-2"),
        "lsm": (land(), "land-sea mask", "1"),
        "sdor": (np.sqrt(variance), "standard deviation of orography", "m"),
        "slor": (slope, "slope of orography", "1"),
    }
    return xr.Dataset(
        {
            name: (("latitude", "longitude"), v.astype(np.float32), {"long_name": n, "units": u})
            for name, (v, n, u) in fields.items()
        },
        {
            "latitude": ("latitude", grid.latitudes(), {"units": "degrees_north"}),
            "longitude": ("longitude", grid.longitudes(), {"units": "degrees_east"}),
        },
        {"title": "SYNTHETIC static fields", "synthetic": "drawn at random by copcube.tutorial"},
    )


def _fields(rng: np.random.Generator) -> NDArray[np.float64]:
    """Random fields on the lattice, (6, 721, 1440)."""
    return np.stack([_smooth(rng, width) for width in _SCALES])


def _height(fields: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mountains, from 0 to about 10: a few high ones, most of the land flat."""
    return np.asarray(np.clip(fields[2] + 0.5 * fields[4], 0, None) ** 1.5)


def _generator(seed: int) -> np.random.Generator:
    return np.random.default_rng(whole_number(seed, "seed", 0))


def _cells(seed: int) -> Cells:
    """Draw the cells, in ERA5's order."""
    rng = _generator(seed)
    row, col = np.nonzero(land())
    lat = np.radians(grid.latitudes())[row]
    fields = _fields(rng)[:, row, col]
    # Warmth falls with latitude and height, drought is that of the subtropics.
    height = _height(fields)
    warmth = 4 * (np.cos(lat) - 0.6) - 0.7 * height + 0.3 * fields[1]
    drought = 2 * np.cos(6 * np.abs(lat) - np.pi) + fields[0]
    signal = np.stack([warmth, drought, height, *fields], axis=1)
    # Each explains less than the one before, as the components of real cubes.
    shrinking = 0.8 ** np.arange(signal.shape[1])
    # Orthonormal, so that every signal keeps its variance in the vectors.
    mix = np.linalg.qr(rng.normal(size=(DIM, DIM)))[0][: signal.shape[1]]
    vectors = (signal * shrinking) @ mix + 0.5 * mix.sum(axis=0)
    vectors += _NOISE * rng.standard_normal(vectors.shape)
    n = rng.poisson(np.exp(0.5 * fields[1])[:, None] * [8, 12, 6, 4, 8, 4, 4, 1])
    # A cell has one elevation model.
    n[:, -1] = 1
    # As in the published data, not every modality sees the high latitudes.
    n[np.abs(lat) > np.radians(72), :2] = 0
    return Cells(
        np.asarray(grid.grid_id(row, col), np.int64),
        np.zeros(len(row), np.int16),
        n.sum(axis=1).astype(np.int32),
        n.astype(np.int32),
        (0.3 + 0.1 * np.abs(fields[3])).astype(np.float32),
        vectors.astype(np.float32),
    )


def _smooth(rng: np.random.Generator, width: int) -> NDArray[np.float64]:
    """A random field on the lattice, (721, 1440), of mean 0 and deviation 1, without a seam."""
    from scipy.fft import irfft2, rfft2, rfftfreq

    shape = grid.N_LAT, grid.N_LON
    along, across = np.fft.fftfreq(shape[0])[:, None], rfftfreq(shape[1])
    # The transform of a Gaussian; what is multiplied by it here is smoothed all around the globe.
    spectrum = np.exp(-0.5 * (np.pi * width) ** 2 * (along**2 + across**2))
    field = irfft2(rfft2(rng.standard_normal(shape)) * spectrum, shape)
    return np.asarray((field - field.mean()) / field.std())


@cache
def land() -> NDArray[np.bool_]:
    """Which cells have their centre on land, (721, 1440), by the coastlines of the maps.

    North of a place on land lies an odd number of coastlines: the north pole is at sea. The
    lines leave out what runs along 180° and the South Pole, which no meridian crosses on its way.
    """
    # Beside the centres of the cells, so that no end of a segment lies on a meridian.
    lon = (grid.longitudes() + 180) % 360 - 180 + 0.003
    order = np.argsort(lon)
    ahead = lon[order]
    crossings = np.zeros((grid.N_LAT + 1, grid.N_LON), np.int64)
    for line in coastlines():
        for (x0, y0), (x1, y1) in pairwise(line):
            first, last = np.searchsorted(ahead, sorted((x0, x1)))
            if first == last:
                continue
            here = np.arange(first, last)
            lat = y0 + (ahead[here] - x0) / (x1 - x0) * (y1 - y0)
            below = np.ceil((90 - lat) / grid.STEP).astype(np.int64)
            np.add.at(crossings, (below, order[here]), 1)
    return np.asarray(np.cumsum(crossings, axis=0)[: grid.N_LAT] % 2 == 1)
