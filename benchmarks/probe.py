"""The climate probe on a cube of the world, beside the same work in scikit-learn.

    python benchmarks/probe.py [--cells 10000] [--all]

312,567 cells of 721 × 1440, 768 values each, as Zarr on disk; twelve months of six variables, z
and lsm. Both sides get the same cells and divisions and choose the same inputs' strengths among
the same; scikit-learn reads the vectors of the drawn cells with xarray, and fits StandardScaler
and Ridge for each strength. Each runs in a process of its own, whose peak of memory is shown.
``--all`` gives every cell to the probe, which scikit-learn has not the memory for in float64.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import xarray as xr

from copcube import grid
from copcube.probes import probe
from copcube.probes.ridge import PENALTIES
from copcube.probes.splits import parted, sampled

CELLS, DIM, SEEDS = 312_567, 768, 3
INPUTS = ["lonlat", "fourier", "embedding", "embedding+fourier", "given", "embedding+given"]
VARIABLES = {"t2m": "K", "tp": "m/day", "sp": "Pa", "msl": "Pa", "u10": "m/s", "v10": "m/s"}


def write(folder):
    """A world whose statistics are partly linear in vectors that fall off in variance."""
    rng = np.random.default_rng(0)
    shape = grid.N_LAT, grid.N_LON
    there = np.zeros(shape, bool)
    there[100 : 100 + -(-CELLS // 720), :720] = True
    n = int(there.sum())
    scores = rng.standard_normal((n, DIM), np.float32)
    turn = np.linalg.qr(rng.standard_normal((DIM, DIM)))[0].astype(np.float32)
    x = np.full((*shape, DIM), np.nan, np.float32)
    x[there] = (scores * np.float32(1.01) ** -np.arange(DIM, dtype=np.float32)) @ turn
    lattice = {"lat": grid.latitudes(), "lon": grid.longitudes()}
    ds = xr.Dataset(
        {
            "embedding": (("lat", "lon", "dim"), x),
            "n_images": (("lat", "lon"), there.astype(np.int32)),
        },
        lattice,
    )
    encoding = {"embedding": {"chunks": (45, 45, DIM)}}
    ds.to_zarr(folder / "world.zarr", encoding=encoding, zarr_format=3, consolidated=False)
    months = xr.Dataset(coords={"month": np.arange(12), **lattice})
    for m, (name, unit) in enumerate(VARIABLES.items()):
        values = rng.standard_normal((12, *shape), np.float32)
        values[:, there] += 3 * scores[:, 8 * m : 8 * m + 8].sum(axis=1)
        months[name] = ("month", "lat", "lon"), values, {"units": unit}
    months.to_netcdf(folder / "months.nc")
    statics = xr.Dataset(coords=lattice)
    for name in ("z", "lsm"):
        statics[name] = ("lat", "lon"), rng.standard_normal(shape, np.float32)
    statics.to_netcdf(folder / "statics.nc")


def opened(folder):
    world = xr.open_zarr(folder / "world.zarr", consolidated=False)
    return world, xr.open_dataset(folder / "months.nc"), xr.open_dataset(folder / "statics.nc")


def ours(folder, n, inputs=INPUTS):
    world, months, statics = opened(folder)
    found = probe(world, months, given=statics, cells=n, seeds=SEEDS, inputs=inputs)
    return found.rmse.values


def scikit_learn(folder, n):
    """The same cells, inputs and strengths."""
    from sklearn.linear_model import LinearRegression, Ridge
    from sklearn.preprocessing import StandardScaler

    from copcube.probes.coordinates import fourier, lonlat

    world, months, statics = opened(folder)
    i, j = np.nonzero(world.n_images.values > 0)
    factors = {"tp": 365.25}
    mean = [months[v].mean("month").values[i, j] * factors.get(v, 1) for v in VARIABLES]
    std = [months[v].std("month").values[i, j] * factors.get(v, 1) for v in VARIABLES]
    y = np.stack([one for pair in zip(mean, std, strict=True) for one in pair], axis=1)
    vectors = world.embedding.values
    rmse = np.empty((SEEDS, len(INPUTS), y.shape[1]))
    areas, lat, lon = grid.areas()[i], world.lat.values[i], world.lon.values[j]
    for seed in range(SEEDS):
        rng = np.random.default_rng(seed)
        drawn = sampled(areas, n, "cells", rng)
        part = parted(lat[drawn], lon[drawn], "random", 10, (0.6, 0.2, 0.2), rng)
        place = lat[drawn], lon[drawn]
        known = {
            "lonlat": lonlat(*place),
            "fourier": fourier(*place),
            "embedding": vectors[i[drawn], j[drawn]].astype(np.float64),
            "given": np.stack([statics[v].values[i, j][drawn] for v in ("z", "lsm")], axis=1),
        }
        target = y[drawn]
        for k, name in enumerate(INPUTS):
            x = np.concatenate([known[one] for one in name.split("+")], axis=1).astype(np.float64)
            x = StandardScaler().fit(x[part == 0]).transform(x)
            errors = []
            for strength in PENALTIES:
                model = LinearRegression() if strength == 0 else Ridge(strength * (part == 0).sum())
                model.fit(x[part == 0], target[part == 0])
                off = (model.predict(x) - target) ** 2
                errors.append([off[part == p].mean(axis=0) for p in (1, 2)])
            validation, test = np.moveaxis(np.array(errors), 1, 0)
            best = validation.argmin(axis=0)
            rmse[seed, k] = np.sqrt(test[best, np.arange(y.shape[1])])
    return rmse


def worker(folder, side, n):
    begin, cpu = time.perf_counter(), time.process_time()
    rmse = {"ours": ours, "sklearn": scikit_learn, "usual": usual}[side](folder, n)
    result = {
        "seconds": time.perf_counter() - begin,
        "cpu": time.process_time() - cpu,
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        "rmse": rmse.tolist(),
    }
    print(json.dumps(result))


def usual(folder, n):
    """All inputs of the default."""
    return ours(folder, n, None)


def measured(folder, side, n):
    command = [sys.executable, __file__, "--worker", side, str(folder), "--cells", str(n or 0)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def row(name, one):
    print(f"| {name} | {one['seconds']:.1f} | {one['cpu']:.1f} | {one['peak']:.2f} |", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", type=int, default=10_000)
    parser.add_argument("--all", action="store_true")
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        side, folder = arguments.worker
        worker(Path(folder), side, arguments.cells or None)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        # In a process of its own, since a child's peak counts from that of its parent.
        if os.fork() == 0:
            write(folder)
            os._exit(0)
        assert os.wait()[1] == 0
        print("| | s | CPU s | peak, GiB |\n|---|---|---|---|")
        a = measured(folder, "ours", arguments.cells)
        row("probe", a)
        b = measured(folder, "sklearn", arguments.cells)
        row("scikit-learn", b)
        row("probe, all inputs of the default", measured(folder, "usual", arguments.cells))
        if arguments.all:
            row("probe, all inputs, all cells", measured(folder, "usual", None))
        ratio, off = b["cpu"] / a["cpu"], np.abs(np.divide(a["rmse"], b["rmse"]) - 1).max()
        print(f"\nscikit-learn takes {ratio:.1f} times as much CPU; errors agree to {off:.1e}")


if __name__ == "__main__":
    main()
