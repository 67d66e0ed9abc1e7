"""Look-alikes in a cube of the world, beside a plain product of the same bytes.

    python benchmarks/similar.py [--dim 768] [--repeat 5]

312,567 cells of 721 × 1440, drawn at random: in memory, and as Zarr on disk. The plain product
is ``embedding @ vector`` of the filled cells with NumPy; on disk it is preceded by loading the
variable with xarray, which is what people write down. Both run in turns; the medians of the
ratios are shown.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import xarray as xr

from copcube import grid
from copcube.lookup import similar

CELLS = 312_567


def world(dim):
    """A cube in memory with as many cells, in smooth bands, as the published map."""
    rng = np.random.default_rng(0)
    x = np.full((grid.N_LAT, grid.N_LON, dim), np.nan, np.float32)
    rows = np.arange(100, 100 + -(-CELLS // 720))
    there = np.zeros(x.shape[:2], bool)
    there[rows[0] : rows[-1] + 1, :720] = True
    x[there] = rng.standard_normal((int(there.sum()), dim), np.float32)
    return xr.Dataset(
        {
            "embedding": (("lat", "lon", "dim"), x),
            "n_images": (("lat", "lon"), there.astype(np.int32)),
        },
        {"lat": grid.latitudes(), "lon": grid.longitudes()},
    )


def seconds(function):
    begin = time.perf_counter()
    function()
    return time.perf_counter() - begin


def compare(name, repeat, ours, plain):
    pairs = [(seconds(ours), seconds(plain)) for _ in range(repeat)]
    a, b = (np.median(side) for side in zip(*pairs, strict=True))
    ratio = np.median([x / y for x, y in pairs])
    print(f"| {name} | {a:.2f} | {b:.2f} | {ratio:.2f} |")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dim", type=int, default=768)
    parser.add_argument("--repeat", type=int, default=5)
    arguments = parser.parse_args()
    ds = world(arguments.dim)
    vector = np.random.default_rng(1).normal(size=arguments.dim).astype(np.float32)
    x = ds.embedding.values.reshape(-1, arguments.dim)
    print("| | copcube, s | product, s | ratio |\n|---|---|---|---|")
    for metric in ("cosine", "euclidean"):
        compare(
            f"{metric}, in memory, against all of the array",
            arguments.repeat,
            lambda metric=metric: similar(ds, vector=vector, metric=metric),
            lambda: x @ vector,
        )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "world.zarr"
        encoding = {"embedding": {"chunks": (45, 45, arguments.dim)}}
        ds.to_zarr(path, encoding=encoding, zarr_format=3, consolidated=False)
        for metric in ("cosine", "euclidean"):
            compare(
                f"{metric}, from Zarr",
                arguments.repeat,
                lambda metric=metric: similar(
                    xr.open_zarr(path, consolidated=False), vector=vector, metric=metric
                ),
                lambda: xr.open_zarr(path, consolidated=False).embedding.values @ vector,
            )


if __name__ == "__main__":
    main()
