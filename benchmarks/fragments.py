"""The nearest of a million fragments, beside a plain product of the same bytes.

    python benchmarks/fragments.py [--rows 1000000] [--dim 768] [--repeat 5]

Vectors drawn at random, in memory. The plain products are ``x @ vector`` with NumPy, which is a
scalar product a row and no cosine, and a plain search, ``argpartition`` of it. All run in turns;
the medians of the ratios are shown. The last line is the bandwidth, against that of reading the
array by a sum on as many threads.
"""

import argparse
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from copcube.lookup import Fragments
from copcube.lookup.similar import THREADS, lengths_of


def table(n, dim):
    """Fragments in memory, anywhere on land or sea."""
    rng = np.random.default_rng(0)
    x = np.empty((n, dim), np.float32)
    for start in range(0, n, 1 << 16):
        some = x[start : start + (1 << 16)]
        rng.standard_normal(dtype=np.float32, out=some)
    lat, lon = np.degrees(np.arcsin(rng.uniform(-1, 1, n))), rng.uniform(-180, 180, n)
    return Fragments(("none",), np.array([0, n]), lat, lon, dim, x, lengths_of(x))


def seconds(function):
    begin = time.perf_counter()
    function()
    return time.perf_counter() - begin


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=768)
    parser.add_argument("--repeat", type=int, default=5)
    arguments = parser.parse_args()
    found = table(arguments.rows, arguments.dim)
    x = found.vectors
    vector = np.random.default_rng(1).normal(size=arguments.dim).astype(np.float32)
    parts = np.array_split(x, THREADS * 4)

    def read():
        with ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(np.sum, parts))

    def best(metric):
        rank = found.scores(vector, metric)
        found._apart(rank if metric == "euclidean" else -rank, 20, 0, None)

    ways = {
        "cosine": lambda: best("cosine"),
        "euclidean": lambda: best("euclidean"),
        "product": lambda: x @ vector,
        "product and argpartition": lambda: np.argpartition(-(x @ vector), 20)[:20],
        "sum on threads": read,
    }
    times = {name: [] for name in ways}
    for _ in range(arguments.repeat):
        for name, way in ways.items():
            times[name].append(seconds(way))
    size = x.nbytes / 1e9
    print("| | s | GB/s | of the product | of the bandwidth |\n|---|---|---|---|---|")
    for name, some in times.items():
        of_product = np.median(np.divide(some, times["product"]))
        of_reading = np.median(np.divide(times["sum on threads"], some))
        median = np.median(some)
        print(
            f"| {name} | {median:.3f} | {size / median:.1f} | {of_product:.2f} | {of_reading:.2f} |"
        )


if __name__ == "__main__":
    main()
