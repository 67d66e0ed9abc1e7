"""`copcube aggregate` against the mere reading of its rows with pyarrow.

    python benchmarks/aggregate.py [--rows 300000] [--repeats 3] [--layouts clustered scattered]

The rows are written in the published layout to a temporary folder, some ninety a cell. With
`clustered` cells a file holds one region, as those of a build do; with `scattered` ones every
file has cells of the whole globe; `pandas` is one file of scattered cells as pyarrow writes it
by default, in one row group; `small` files have 300 rows of one region each. Reading is
`pyarrow.parquet.read_table` of all columns of one file after another, or, as `scan`, batch by
batch on all threads. Each runs in a process of its own, one after the other in turn, with the
files in the page cache; of each the median is shown; `start` is what a process needs to import
numpy, pyarrow and zarr. Cubes are kept to the end: for a while after a thousand files were
removed, ext4 takes a quarter of a millisecond to make a file, since it avoids their inodes.
"""

import argparse
import itertools
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import reduce

from copcube import grid
from copcube.modalities import MODALITIES
from copcube.rows import Rows, encode_rows

DIM, ROWS_A_CELL, ROWS_A_FILE, ROWS_A_SMALL_FILE = 768, 90, 30_000, 300
LAYOUTS = ("clustered", "scattered", "pandas", "small")

READ = """
import sys, pyarrow.parquet as pq
for path in sys.argv[1:]:
    pq.read_table(path)
"""
SCAN = """
import sys, pyarrow.dataset
for batch in pyarrow.dataset.dataset(sys.argv[1:]).to_batches():
    pass
"""


def cells(number, scattered):
    """Cells on land that lie together, or in any order."""
    land = reduce.land(reduce.CELLS if scattered else number)
    ids = grid.grid_id(*np.divmod(land, grid.N_LON))
    rng = np.random.default_rng(0)
    return rng.choice(ids, number, replace=False) if scattered else np.sort(ids)


def write(folder, layout, number):
    """Write rows in the published layout."""
    folder.mkdir()
    rng = np.random.default_rng(1)
    ids = cells(-(-number // ROWS_A_CELL), layout in ("scattered", "pandas"))
    cell = np.repeat(ids, ROWS_A_CELL)[:number]
    image = np.arange(number) % ROWS_A_CELL
    keys = np.array([f"{1 + i // 12:02d}{1 + i % 12:02d}" for i in range(ROWS_A_CELL)], object)
    tables = []
    size = ROWS_A_SMALL_FILE if layout == "small" else ROWS_A_FILE
    for start in range(0, number, size):
        part = slice(start, start + size)
        some = image[part]
        vectors = rng.standard_normal((len(some), DIM), np.float32)
        rows = Rows(
            cell[part],
            (some % len(MODALITIES)).astype(np.int8),
            np.full(len(some), None, object),
            ("2021" + keys[some]),
            vectors,
        )
        encoded = encode_rows(rows, {}, "rows")
        if layout == "pandas":
            tables.append(pq.read_table(pa.BufferReader(encoded)))
        else:
            (folder / f"{start:07d}.parquet").write_bytes(encoded)
    if tables:
        pq.write_table(pa.concat_tables(tables), folder / "rows.parquet")


def run(*arguments):
    """Run Python in a process of its own; seconds, processor seconds, peak memory in GB."""
    command = [sys.executable, *map(str, arguments)]
    # Modules are compiled once, as those of an installed package are, and not in every process.
    environment = os.environ | {"PYTHONDONTWRITEBYTECODE": ""}
    begin = time.perf_counter()
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, env=environment
    )
    assert process.stderr is not None
    with process.stderr as stderr:
        said = stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(said.decode())
    seconds = time.perf_counter() - begin
    return seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1e6


def main():
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--rows", type=int, default=300_000)
    options.add_argument("--repeats", type=int, default=3)
    options.add_argument("--layouts", nargs="+", choices=LAYOUTS, default=LAYOUTS)
    options.add_argument("--folder", help="for some 3 GB of files; default: the temporary one")
    chosen = options.parse_args()
    with tempfile.TemporaryDirectory(dir=chosen.folder) as scratch:
        for layout in chosen.layouts:
            folder = Path(scratch, layout)
            # In a process of its own, since a child's peak counts from that of its parent.
            if os.fork() == 0:
                write(folder, layout, chosen.rows)
                os._exit(0)
            assert os.wait()[1] == 0
            os.sync()  # else the system would write the rows while others are measured
            measure(layout, folder, chosen.repeats)
            for file in folder.iterdir():
                file.unlink()  # with their pages in memory; its cubes stay


def measure(layout, folder, repeats):
    """Run reading and aggregating in turn; print medians."""
    files = sorted(folder.iterdir())
    cubes = (folder.with_name(f"{layout}-{i}.zarr") for i in itertools.count())
    trials = {
        "start": lambda: run("-c", "import numpy, pyarrow.parquet, zarr"),
        "read": lambda: run("-c", READ, *files),
        "scan": lambda: run("-c", SCAN, *files),
        "aggregate": lambda: run("-m", "copcube", "aggregate", folder, next(cubes)),
    }
    for file in files:
        file.read_bytes()  # to the page cache
    taken: dict[str, list[tuple[float, float, float]]] = {name: [] for name in trials}
    for _ in range(repeats):
        for name, trial in trials.items():
            taken[name].append(trial())
    middle = {
        name: [median(values) for values in zip(*t, strict=True)] for name, t in taken.items()
    }
    print(f"\n{layout}\n| | s | processor s | peak GB |\n|---|---|---|---|")
    for name, (seconds, processor, peak) in middle.items():
        print(f"| {name} | {seconds:.2f} | {processor:.2f} | {peak:.2f} |")
    for name in ("read", "scan"):
        ratios = [a[0] / b[0] for a, b in zip(taken["aggregate"], taken[name], strict=True)]
        print(f"aggregate / {name}: {median(ratios):.2f}", end="; ")
    print(flush=True)


if __name__ == "__main__":
    main()
