"""The nearest of a million fragments, beside a plain product of the same bytes, and FAISS.

    python benchmarks/fragments.py [--rows 1000000] [--dim 768] [--repeat 5] [--files]

Vectors drawn at random, in memory. The plain products are ``x @ vector`` with NumPy, which is a
scalar product a row and no cosine, and a plain search, ``argpartition`` of it. Where faiss is
installed (``pip install faiss-cpu``), the search of its flat indices, ``faiss.knn``, takes the
same array, whose vectors have length 1, so that products are cosines. All run in turns; the medians
of the ratios are shown. The last column is the bandwidth, against that of reading the array by a
sum on as many threads. With ``--files`` the vectors are also written to parquet and searched there.
"""

import argparse
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np

from copcube.files.processors import THREADS
from copcube.lookup import Fragments
from copcube.lookup.similar import lengths_of

BEST = 20
BLOCK = 1 << 16


def table(n, dim):
    """Fragments in memory, anywhere on land or sea, of length 1."""
    rng = np.random.default_rng(0)
    x, lengths = np.empty((n, dim), np.float32), np.empty(n, np.float32)
    for start in range(0, n, BLOCK):
        some = x[start : start + BLOCK]
        rng.standard_normal(dtype=np.float32, out=some)
        some /= lengths_of(some)[:, np.newaxis]
        lengths[start : start + BLOCK] = lengths_of(some)
    lat, lon = np.degrees(np.arcsin(rng.uniform(-1, 1, n))), rng.uniform(-180, 180, n)
    return Fragments(("none",), np.array([0, n]), lat, lon, dim, x, lengths)


def in_files(found, folder):
    """Write the vectors as rows of images, some files of them."""
    from copcube import grid
    from copcube.rows import Rows, encode_rows

    number = grid.grid_id(*grid.cell_at(found.lat, found.lon))
    for start in range(0, len(found), BLOCK * 4):
        x = found.vectors[start : start + BLOCK * 4]
        none = np.full(len(x), None, object)
        code = np.zeros(len(x), np.int8)
        rows = Rows(number[start : start + len(x)], code, none, none, x)
        (Path(folder) / f"{start:09d}.parquet").write_bytes(encode_rows(rows, {}, "rows"))
    return Fragments.open(folder)


def faiss_searches(x):
    """Searches of FAISS's flat indices over an array."""
    try:
        import faiss
    except ImportError:
        return {}

    def search(metric, vector):
        return faiss.knn(vector[np.newaxis], x, BEST, metric=metric)[1][0]

    metrics = {"inner product": faiss.METRIC_INNER_PRODUCT, "L2": faiss.METRIC_L2}
    return {f"FAISS, {name}": partial(search, metric) for name, metric in metrics.items()}


def seconds(function):
    begin = time.perf_counter()
    function()
    return time.perf_counter() - begin


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=768)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--files", action="store_true", help="also search them in parquet files")
    arguments = parser.parse_args()
    found = table(arguments.rows, arguments.dim)
    x = found.vectors
    vector = np.random.default_rng(1).normal(size=arguments.dim).astype(np.float32)
    vector /= np.linalg.norm(vector)
    parts = np.array_split(x, THREADS * 4)

    def read():
        with ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(np.sum, parts))

    def best(metric, of=found):
        return of._ranked(vector.astype(np.float64), metric)(BEST)[0]

    ways = {
        "cosine": lambda: best("cosine"),
        "euclidean": lambda: best("euclidean"),
        "product": lambda: x @ vector,
        "product and argpartition": lambda: np.argpartition(-(x @ vector), BEST)[:BEST],
        "sum on threads": read,
    }
    for name, search in faiss_searches(x).items():
        same = sorted(search(vector).tolist()) == sorted(best("cosine").tolist())
        print(f"{name} lists {'the same' if same else 'OTHERS'}")
        ways[name] = partial(search, vector)
    with tempfile.TemporaryDirectory() as folder:
        if arguments.files:
            files = in_files(found, folder)
            ways["cosine, from files"] = lambda: best("cosine", files)
            ways["euclidean, from files"] = lambda: best("euclidean", files)
        times: dict[str, list[float]] = {name: [] for name in ways}
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
