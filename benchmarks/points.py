"""Vectors at the points of a table, beside xarray's own selection and a plain read of the chunks.

    python benchmarks/points.py [--dim 16] [--points 100000] [--repeat 5] [--folder FOLDER]

Points lie at random on one half of the globe's land-like band, in a cube in Zarr on disk whose
numbers are random. The rival is ``embedding.sel(lat=…, lon=…, method="nearest")`` with DataArrays
of points; the bound is reading the chunks of both variables that the points touch, whole and in
threads, with zarr alone. All run in turns; medians of wall and CPU seconds are shown, and of
the ratios.
"""

import argparse
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import xarray as xr
import zarr

from copcube import grid
from copcube.lookup import points

ROWS, COLS = slice(90, 540), slice(0, 720)
"""The cells that hold vectors: 10 × 16 chunks."""


def world(dim, path):
    rng = np.random.default_rng(0)
    x = np.full((grid.N_LAT, grid.N_LON, dim), np.nan, np.float32)
    x[ROWS, COLS] = rng.standard_normal((450, 720, dim), np.float32)
    there = np.isfinite(x[..., 0]).astype(np.int32)
    ds = xr.Dataset(
        {"embedding": (("lat", "lon", "dim"), x), "n_images": (("lat", "lon"), there)},
        {"lat": grid.latitudes(), "lon": grid.longitudes()},
    )
    chunks = {"embedding": {"chunks": (45, 45, dim)}, "n_images": {"chunks": (45, 45)}}
    ds.to_zarr(path, encoding=chunks, zarr_format=3, consolidated=False)


def selected(ds, lat, lon):
    where = {"lat": xr.DataArray(lat, dims="point"), "lon": xr.DataArray(lon, dims="point")}
    return ds.embedding.sel(where, method="nearest").values


def read(path, lat, lon):
    """Read the chunks that hold points, and drop them."""
    arrays = [zarr.open_array(path / name, mode="r") for name in ("embedding", "n_images")]
    row, col = grid.cell_at(lat, lon)
    chunks = np.unique(np.stack([row // 45, col // 45], 1), axis=0).tolist()

    def one(chunk):
        i, j = (slice(45 * n, 45 * n + 45) for n in chunk)
        return sum(np.asarray(array[i, j]).nbytes for array in arrays)

    with ThreadPoolExecutor(4) as pool:
        return sum(pool.map(one, chunks))


def seconds(function):
    wall, cpu = time.perf_counter(), time.process_time()
    function()
    return time.perf_counter() - wall, time.process_time() - cpu


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dim", type=int, default=16)
    parser.add_argument("--points", type=int, default=100_000)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where the cube stays (default: nowhere)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = (arguments.folder or Path(folder)) / f"points_{arguments.dim}.zarr"
        if not path.exists():
            world(arguments.dim, path)
        ds = xr.open_zarr(path, consolidated=False)
        rng = np.random.default_rng(1)
        lat, lon = rng.uniform(-44, 67, arguments.points), rng.uniform(0, 179, arguments.points)
        runs = {
            "points": lambda: points(ds, (lat, lon)),
            "points, bilinear": lambda: points(ds, (lat, lon), method="bilinear"),
            "xarray's sel": lambda: selected(ds, lat, lon),
            "reading the chunks": lambda: read(path, lat, lon),
        }
        for run in runs.values():
            run()
        found = [
            {name: seconds(run) for name, run in runs.items()} for _ in range(arguments.repeat)
        ]
    print("| | s | CPU s | CPU, of reading |\n|---|---|---|---|")
    for name in runs:
        wall, cpu = np.median([turn[name] for turn in found], axis=0)
        ratio = np.median([turn[name][1] / turn["reading the chunks"][1] for turn in found])
        print(f"| {name} | {wall:.2f} | {cpu:.2f} | {ratio:.2f} |")


if __name__ == "__main__":
    main()
