"""`copcube aggregate` of Major TOM's embeddings against their mere reading, and against pandas.

    python benchmarks/majortom.py [--cells 4000] [--dim 768] [--repeats 3] [--layouts hilbert ...]

Fragments of 224 pixels, 25 a cell, of a compact region are written to a temporary folder, several
cells of it to each file: `hilbert` is our own writer's order and row groups of 128 MB; `released`
has the rows of the grid one after another, boxes transposed, plain pages and row groups of 1000
rows, as a data frame that was gathered cell by cell; `249k` is a single fragment of each of so many
cells in any order, in one file.

Reading is `pyarrow.parquet.read_table` of the columns that aggregating reads, one file after
another, or batch by batch on all threads (`scan`). pandas reads the same and takes the mean of the
vectors by cells with `groupby`. Each runs in a process of its own, one after the other in turn,
with the files in the page cache; of each the medians of seconds and of processor seconds are shown,
and the medians of their ratios to the `read` of the same turn; `start` is what a process needs to
import what aggregating does.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from copcube.products.majortom import Embeddings, Fragmentation, Grid, hilbert, writing_embeddings

LAYOUTS = ("hilbert", "released", "249k")
CELLS_A_FILE = 25_000
ENVIRONMENT = os.environ | {"PYTHONDONTWRITEBYTECODE": ""}
"""Modules are compiled once, as those of an installed package are, and not in every process."""

NEEDED = "'embedding grid_cell product_id timestamp utm_crs centre_lat centre_lon pixel_bbox'"
READ = f"""
import sys, pyarrow.parquet as pq
for path in sys.argv[1:]:
    pq.read_table(path, columns={NEEDED}.split())
"""
SCAN = f"""
import sys, pyarrow.dataset
files = pyarrow.dataset.dataset(sys.argv[1:])
for batch in files.to_batches(columns={NEEDED}.split()):
    pass
"""
PANDAS = f"""
import sys, numpy as np, pandas as pd
frame = pd.concat(pd.read_parquet(p, columns={NEEDED}.split()) for p in sys.argv[1:])
row = np.floor((90.125 - frame.centre_lat.to_numpy(float)) / 0.25).astype(int)
col = np.floor((frame.centre_lon.to_numpy(float) % 360 + 0.125) / 0.25).astype(int) % 1440
vectors = pd.DataFrame(np.stack(frame.embedding.to_numpy()))
groups = vectors.groupby(row * 1440 + col)
groups.mean(), groups.size(), groups.var(ddof=0).sum(axis=1)
"""
START = "import numpy, pyarrow.parquet, zarr"


def rows(row, col, boxes, dim, rng):
    """Embeddings of the fragments of cells."""
    n = len(row)
    row, col = np.repeat(row, len(boxes)), np.repeat(col, len(boxes))
    product = [f"S2A_MSIL1C_20230119T161811_N0509_R111_T{i % 997}" for i in range(n)]
    return Embeddings(
        row,
        col,
        np.repeat(np.array(product, object), len(boxes)),
        np.full(len(row), "20230119T161811", object),
        Grid().utm(row, col),
        np.tile(boxes, (n, 1)),
        rng.standard_normal((len(row), dim), np.float32),
    )


def write(folder, layout, number, dim):
    """Write files of one layout; return how many rows they hold."""
    folder.mkdir()
    grid, rng = Grid(), np.random.default_rng(0)
    if layout == "249k":
        row, col = grid.cells(-60, 75)
        chosen = rng.choice(len(row), number * 25, replace=False)
        row, col, boxes = row[chosen], col[chosen], np.array([[342, 342, 726, 726]])
    else:
        side = int(np.ceil(np.sqrt(number)))
        row, col = grid.cells(40, 40 + side * grid.step)
        inside = (col >= 100) & (col < 100 + side)
        row, col = row[inside][:number], col[inside][:number]
        boxes = Fragmentation(224).boxes(transposed=layout == "released")
    if layout == "hilbert":
        order = np.argsort(hilbert(*grid.centre(row, col)))
        row, col = row[order], col[order]
    step = len(row) if layout == "249k" else CELLS_A_FILE
    for start in range(0, len(row), step):
        some = slice(start, start + step)
        table = rows(row[some], col[some], boxes, dim, rng)
        path = folder / f"part_{start:06d}.parquet"
        if layout == "hilbert":
            with writing_embeddings(path, dim) as file:
                file.write(table)
        else:
            as_released(path, table, 1000 if layout == "released" else 1 << 20)
    return len(row) * len(boxes)


def as_released(path, table, group):
    """Write the columns that are read as a data frame's file has them, in the order of the rows."""
    where = table.footprints()
    columns = {
        "embedding": pa.FixedSizeListArray.from_arrays(
            pa.array(table.embedding.ravel()), table.embedding.shape[1]
        ).cast(pa.list_(pa.float32())),
        "timestamp": table.timestamp,
        "product_id": table.product_id,
        "grid_cell": Grid().names(table.grid_row, table.grid_col),
        "centre_lat": where.lat.astype(np.float32),
        "centre_lon": where.lon.astype(np.float32),
        "utm_crs": [f"EPSG:{code}" for code in table.epsg],
        "pixel_bbox": table.box.tolist(),
    }
    pq.write_table(pa.table(columns), path, row_group_size=group)


def seconds(*arguments):
    """Seconds and processor seconds of Python in a process of its own."""
    begin = time.perf_counter()
    process = subprocess.Popen([sys.executable, *map(str, arguments)], env=ENVIRONMENT)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    return time.perf_counter() - begin, usage.ru_utime + usage.ru_stime


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cells", type=int, default=4000)
    parser.add_argument("--dim", type=int, default=768)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--layouts", nargs="+", default=LAYOUTS, choices=LAYOUTS)
    parser.add_argument("--no-pandas", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        for layout in options.layouts:
            folder = Path(name) / layout
            number = write(folder, layout, options.cells, options.dim)
            files, out = sorted(folder.iterdir()), Path(name) / "out.zarr"
            code = {"start": START, "read": READ, "scan": SCAN}
            code |= {} if options.no_pandas else {"pandas": PANDAS}
            runs = {name: ("-c", text, *files) for name, text in code.items()}
            command = ("-m", "copcube", "aggregate", folder, out, "-q", "--overwrite")
            runs |= {name: (*command, "--assign", name) for name in ("centre", "area", "cell")}
            seconds(*runs["cell"])  # not "centre": its cells would not be combined again
            times: dict[str, list[tuple[float, float]]] = {key: [] for key in runs}
            for _ in range(options.repeats):
                for key, run in runs.items():
                    times[key].append(seconds(*run))
            gigabytes = sum(file.stat().st_size for file in files) / 1e9
            print(f"{layout}: {number:,} rows of {options.dim}, {gigabytes:.2f} GB")
            print("            s  × read  processor s  × read      rows/s")
            read = np.array(times["read"])
            for key, taken in times.items():
                wall, cpu = np.median(taken, axis=0)
                a, b = np.median(np.array(taken) / read, axis=0)
                print(f"  {key:7} {wall:5.2f} {a:7.2f} {cpu:12.2f} {b:7.2f} {number / wall:11,.0f}")


if __name__ == "__main__":
    main()
