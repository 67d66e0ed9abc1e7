"""The page for a browser of a cube with all cells of the globe: size, and times to make and open.

    python benchmarks/page.py [--dim 768] [--repeat 3]

721 × 1440 vectors that follow smooth fields, with noise of which no neighbour knows, or which are
nothing but noise, the worst that there is to pack. Making the page is compared with `reduce` alone.
The browser is headless Chromium; its first picture is there before the page is read to its end.
"""

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import xarray as xr

from copcube import grid, pca, plot

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))
from browser import Browser, found


def world(dim, noise):
    """A cube in memory, every cell filled: ten waves and noise."""
    rng = np.random.default_rng(0)
    lat, lon = np.radians(grid.latitudes())[:, None], np.radians(grid.longitudes())
    waves = [np.cos(n * lat + n) * np.cos((n % 5 + 1) * lon - n) / n for n in range(1, 11)]
    mix = rng.standard_normal((len(waves), dim), np.float32)
    x = noise * rng.standard_normal((grid.N_LAT, grid.N_LON, dim), np.float32)
    for row in range(grid.N_LAT):
        x[row] += np.stack([wave[row] for wave in waves], axis=-1).astype(np.float32) @ mix
    counts = rng.integers(1, 500, x.shape[:2], np.int32)
    return xr.Dataset(
        {"embedding": (("lat", "lon", "dim"), x), "n_images": (("lat", "lon"), counts)},
        {"lat": grid.latitudes(), "lon": grid.longitudes()},
    )


def opened(browser, path):
    """Milliseconds to the first picture, and until all is read, of one opening."""
    browser.open(path, "#show=rgb,0,1,2")
    first = browser.run("performance.getEntriesByName('first picture')[0].startTime")
    return first, browser.run("performance.getEntriesByType('navigation')[0].domComplete")


def alike(browser):
    """Milliseconds from a click to the list of places."""
    return browser.run(
        "(async (start) => { await ask(48, 11); return performance.now() - start })"
        "(performance.now())"
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dim", type=int, default=768)
    parser.add_argument("--repeat", type=int, default=3)
    arguments = parser.parse_args()
    browser = Browser(found())
    print(
        "| cube | reduce, s | page, s | components | MB | first picture, s | all read, s "
        "| look-alikes, s |\n|---|---|---|---|---|---|---|---|"
    )
    with tempfile.TemporaryDirectory() as folder:
        for name, noise in (("smooth", 0.05), ("noise", 3.0)):
            ds, path = world(arguments.dim, noise), Path(folder, f"{name}.html")
            begin = time.perf_counter()
            pca.reduce(ds, 16).load()
            reduced = time.perf_counter() - begin
            begin = time.perf_counter()
            done = plot.page(ds, path)
            made = time.perf_counter() - begin
            del ds
            times = [(*opened(browser, path), alike(browser)) for _ in range(arguments.repeat)]
            seconds = " | ".join(
                f"{statistics.median(column) / 1000:.2f}" for column in zip(*times, strict=True)
            )
            print(
                f"| {name} | {reduced:.1f} | {made:.1f} | {done.dim} | {done.size / 1e6:.1f} "
                f"| {seconds} |",
                flush=True,
            )
    browser.close()


if __name__ == "__main__":
    main()
