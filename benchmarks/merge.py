"""Time to merge a global reduction with ERA5, on its own grid and on others.

    python benchmarks/merge.py [--k 16]

Fields are random on 312,567 cells of the lattice. Beside it stands what one would write with
xarray alone, `reindex(method="nearest")` after turning the longitudes by hand; it takes the
nearest node on a coarse grid too, where `merge` averages by area.
"""

import argparse
from collections.abc import Callable
from functools import partial
from time import perf_counter

import numpy as np
import xarray as xr

from copcube import era5, grid

CELLS = 312_567
GRIDS = {
    "721 × 1440, ERA5's own": (grid.latitudes(), grid.longitudes()),
    "721 × 1440, ascending, -180…180": (grid.latitudes()[::-1], np.arange(-180, 180, 0.25)),
    "121 × 240 (1.5°)": (np.linspace(-90, 90, 121), np.arange(0, 360, 1.5)),
    "32 × 64 (5.625°)": (np.arange(-87.1875, 90, 5.625), np.arange(0, 360, 5.625)),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--k", type=int, default=16, help="components (default: 16)")
    fields = reduction(parser.parse_args().k)
    print(f"{'onto':34}{'merge':>10}{'xarray':>10}")
    for name, (lat, lon) in GRIDS.items():
        z = np.zeros((len(lat), len(lon)), np.float32)
        onto = xr.Dataset(
            {"z": (("latitude", "longitude"), z)}, coords={"latitude": lat, "longitude": lon}
        )
        ours = best(partial(era5.merge, fields, onto, mask=True))
        theirs = best(partial(nearest, fields, onto))
        print(f"{name:34}{ours:>8.3f} s{theirs:>8.3f} s")


def reduction(k: int) -> xr.Dataset:
    rng = np.random.default_rng(0)
    pc = rng.normal(size=(grid.N_LAT * grid.N_LON, k)).astype(np.float32)
    pc[rng.permutation(len(pc))[CELLS:]] = np.nan
    return xr.Dataset(
        {"pc": (("lat", "lon", "component"), pc.reshape(grid.N_LAT, grid.N_LON, k))},
        coords={"lat": grid.latitudes(), "lon": grid.longitudes()},
    )


def nearest(fields: xr.Dataset, onto: xr.Dataset) -> xr.Dataset:
    turned = fields.rename(lat="latitude", lon="longitude")
    turned = turned.reindex(latitude=onto.latitude, method="nearest", tolerance=1)
    turned = turned.reindex(longitude=onto.longitude % 360, method="nearest", tolerance=1)
    return onto.assign(pc=turned.pc.assign_coords(longitude=onto.longitude))


def best(function: Callable[[], object], times: int = 5) -> float:
    seconds = []
    for _ in range(times):
        start = perf_counter()
        function()
        seconds.append(perf_counter() - start)
    return min(seconds)


if __name__ == "__main__":
    main()
