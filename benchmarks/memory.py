"""Peak memory of a build as the number of partitions grows.

    python benchmarks/memory.py [--cells 35 140] [--layout geotiff]

Each build runs in a process of its own with the full model and untrained weights.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def build(source, out):
    import copcube

    begin = time.perf_counter()
    report = copcube.build(source, out, encoder=copcube.EncoderSpec("untrained:0"))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    rows = len(list(Path(report.rows).iterdir()))
    images = sum(report.images.values())
    seconds = time.perf_counter() - begin
    print(f"{images} images, {rows} partitions: peak {peak:.2f} GB, {seconds:.0f} s", flush=True)


def main():
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--cells", type=int, nargs="+", default=[35, 140])
    options.add_argument("--layout", choices=("geotiff", "webdataset"), default="geotiff")
    options.add_argument("--build", nargs=2, help=argparse.SUPPRESS)
    chosen = options.parse_args()
    if chosen.build:
        build(*chosen.build)
        return
    from copcube.images.sample.writing import write_sample

    for cells in chosen.cells:
        with tempfile.TemporaryDirectory() as scratch:
            write_sample(Path(scratch, "images"), chosen.layout, cells=cells)
            command = [
                sys.executable,
                __file__,
                "--build",
                f"{scratch}/images",
                f"{scratch}/w.zarr",
            ]
            subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
