"""Averaging a file of AlphaEarth's form to cells, beside reading it with rasterio alone.

    python benchmarks/pixels.py [--side 4096] [--repeat 3]

A synthetic file of 64 bands of int8, tiled and compressed as the released ones, is averaged by
`copcube.products.pixels` and read block by block with rasterio, in turns. CPU seconds and the
medians of the ratios are shown, and the memory that averaging takes.
"""

import argparse
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
import rasterio
from rasterio.transform import Affine

from copcube.products import pixels
from copcube.products.alphaearth import AlphaEarthRaster

_READ = 1024


def write(path, side):
    """Smooth vectors with noise, which compress by a third as published ones do."""
    rng = np.random.default_rng(0)
    profile = {"count": 64, "height": side, "width": side, "dtype": "int8", "nodata": -128}
    profile |= {"crs": "EPSG:32632", "transform": Affine(10, 0, 560_000, 0, -10, 5_360_000)}
    profile |= {"tiled": True, "blockxsize": 1024, "blockysize": 1024, "compress": "zstd"}
    with rasterio.open(path, "w", driver="GTiff", **profile) as file:
        for band in range(64):
            values = rng.normal(rng.uniform(-40, 40), 12, (side, side))
            file.write(np.clip(values, -127, 127).astype(np.int8), band + 1)


def average(path):
    raster = AlphaEarthRaster(str(path))
    chosen = [(str(path), 0, block) for block in pixels.blocks([raster])]
    return pixels.statistics(chosen, lambda ids: np.ones(len(ids), bool), raster.dim)


def read(path, side):
    with rasterio.open(path) as file:
        for row in range(0, side, _READ):
            for col in range(0, side, _READ):
                file.read(window=((row, row + _READ), (col, col + _READ)))


def seconds(function):
    begin = time.perf_counter(), time.process_time()
    function()
    return time.perf_counter() - begin[0], time.process_time() - begin[1]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--side", type=int, default=4096)
    parser.add_argument("--repeat", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.tiff"
        write(path, arguments.side)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        pairs = [
            (seconds(lambda: average(path)), seconds(lambda: read(path, arguments.side)))
            for _ in range(arguments.repeat)
        ]
        after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    times = np.median(np.array(pairs), axis=0)
    ratios = np.median(np.array(pairs)[:, 0] / np.array(pairs)[:, 1], axis=0)
    print("| | s | CPU s |\n|---|---|---|")
    print(f"| copcube | {times[0, 0]:.2f} | {times[0, 1]:.2f} |")
    print(f"| rasterio, reading alone | {times[1, 0]:.2f} | {times[1, 1]:.2f} |")
    print(f"| ratio | {ratios[0]:.2f} | {ratios[1]:.2f} |")
    pixel = arguments.side**2 / times[0, 0] / 1e6
    print(f"{pixel:.1f} million pixels a second; memory grew by {(after - before) / 1024:.0f} MB")


if __name__ == "__main__":
    main()
