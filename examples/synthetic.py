"""A small world to try the examples on: a cube and ERA5 fields."""

import numpy as np
import xarray as xr

from copcube import grid

DIM = 8


def era5_static() -> xr.Dataset:
    """Two invariant fields as CDS delivers them."""
    lat, lon = np.meshgrid(grid.latitudes(), grid.longitudes(), indexing="ij")
    waves = np.cos(np.radians(2 * lat)) * np.cos(np.radians(3 * lon)) + 0.3 * np.sin(lat / 5)
    dims = ("latitude", "longitude")
    z = 9.80665 * 3000 * np.clip(waves - 0.6, 0, None)
    return xr.Dataset(
        {
            "z": (dims, z.astype("f4"), {"long_name": "Geopotential", "units": "m**2 s**-2"}),
            "lsm": (dims, (waves > 0.6).astype("f4"), {"long_name": "Land-sea mask", "units": "1"}),
        },
        {"latitude": grid.latitudes(), "longitude": grid.longitudes()},
    )


def cube(seed: int = 0, noise: float = 0.1) -> xr.Dataset:
    """Vectors that follow height and latitude, on land; NaN elsewhere."""
    era5 = era5_static().rename(latitude="lat", longitude="lon")
    land = era5.lsm.values > 0
    signal = np.stack(
        [era5.z.values / 3e4, np.sin(np.radians(era5.lat.values))[:, None] + 0 * land]
    )
    mix = np.random.default_rng(0).normal(size=(2, DIM))
    vectors = np.einsum("kij,kd->ijd", signal, mix)
    vectors += noise * np.random.default_rng(seed).normal(size=vectors.shape)
    vectors[~land] = np.nan
    dims = ("lat", "lon")
    return xr.Dataset(
        {
            "embedding": ((*dims, "dim"), vectors.astype("f4")),
            "n_images": (dims, land.astype("i4")),
        },
        {"lat": era5.lat, "lon": era5.lon},
        {"encoder": "none: synthetic", "encoder_trained": 0},
    )
