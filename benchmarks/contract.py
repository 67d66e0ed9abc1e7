"""Answers of `copcube.get_embedding` beside rs-embed's rules, on one GeoTIFF and the same boxes.

    python benchmarks/contract.py [--dim 64] [--boxes 200]

The rival is written here from rs-embed's rules: the map is decoded whole, by rasterio, once; then
each box is a slice and a mean in memory. copcube opens the same file, decodes it once into its
cache, and reads from there. Numbers must be the same bits with ``compat=True``.
"""

import argparse
import math
import os
import tempfile
import time
from pathlib import Path

import numpy as np
import rasterio
import xarray as xr

import copcube
from copcube import grid
from copcube.interchange import to_geotiff


def world(dim):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((grid.N_LAT, grid.N_LON, dim), np.float32)
    x[rng.random(x.shape[:2]) > 0.3] = np.nan
    ds = xr.Dataset(
        {"embedding": (("lat", "lon", "dim"), x)},
        {"lat": grid.latitudes(), "lon": grid.longitudes()},
    )
    return ds.assign(n_images=np.isfinite(ds.embedding[..., 0]).astype(np.int32))


def decoded(path):
    with rasterio.open(path) as file:
        return np.ascontiguousarray(np.moveaxis(file.read(), 0, -1))


def plain(pixels, box):
    west, south, east, north = box
    rows = slice(math.floor((90.125 - north) / 0.25), math.ceil((90.125 - south) / 0.25))
    cols = slice(math.floor((west + 180.125) / 0.25), math.ceil((east + 180.125) / 0.25))
    return np.moveaxis(pixels[rows, cols], -1, 0).mean(axis=(1, 2))


def timed(function):
    begin = time.perf_counter()
    result = function()
    return result, time.perf_counter() - begin


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--boxes", type=int, default=200)
    arguments = parser.parse_args()
    rng = np.random.default_rng(1)
    corners = rng.uniform((-179, -60), (170, 75), (arguments.boxes, 2))
    boxes = [(x, y, x + 2, y + 1.5) for x, y in corners.tolist()]
    with tempfile.TemporaryDirectory() as folder:
        os.environ["COPCUBE_CACHE"] = folder
        path = Path(folder) / "embed_map_world.tif"
        to_geotiff(world(arguments.dim), path)
        pixels, first = timed(lambda: decoded(path))
        theirs, each = timed(lambda: [plain(pixels, box) for box in boxes])

        def ours(**options):
            return copcube.get_embeddings_batch(path, spatials=boxes, temporal=2021, **options)

        _, opening = timed(lambda: ours(compat=True))
        same, compat = timed(lambda: ours(compat=True))
        _, weighted = timed(ours)
        for a, b in zip(theirs, same, strict=True):
            np.testing.assert_array_equal(a, b.data)
    n = len(boxes)
    print(f"the same bits in {n} boxes of {arguments.dim} dimensions")
    print("| | first answer, s | each further, ms |\n|---|---|---|")
    print(f"| rs-embed's rules, all in memory | {first:.1f} | {1e3 * each / n:.2f} |")
    print(f"| get_embeddings_batch, compat | {opening:.1f} | {1e3 * compat / n:.2f} |")
    print(f"| get_embeddings_batch, by area | | {1e3 * weighted / n:.2f} |")


if __name__ == "__main__":
    main()
