"""A build of the world's size without its hardware: does anything grow with the work?

    python benchmarks/scale.py [--cells 312567] [--quick] [--shuffled] [--folder DIR] [--profile]

Real shards in the published layout, but only of Sentinel-5P, go through the real path, two
workers of a cluster, with an encoder that costs nothing and whose cube is known in closed
form (known.py). Meanwhile the memory of driver and scheduler, which share a process, and the
tasks at the scheduler are sampled; then every cell is checked. 25 GB of disk are needed, and
3,126 shards of 100 cells take about ten minutes on two cores. `--shuffled` scatters the
cells over the shards, so that every one of them touches the whole globe. README.md says what
was found, and what breaks first at ten times that.
"""

import argparse
import contextlib
import cProfile
import json
import os
import pstats
import tempfile
import threading
import time
from pathlib import Path
from statistics import median

import numpy as np
import psutil
import reduce
from known import KEYS, StubSpec, check, write_shards

import copcube
from copcube import grid
from copcube.builds.dask import local_cluster
from copcube.progress import size

STAGES = ("planning", "embedding", "surveying", "combining", "writing", "finishing")
SECONDS_BETWEEN_SAMPLES = 0.5


class Watch(threading.Thread):
    """Looks at a build from outside while it runs."""

    def __init__(self, out, partitions, client):
        super().__init__(daemon=True)
        self.out, self.folder, self.partitions = out, out.with_suffix(".build"), partitions
        self.scheduler, self.process = client.cluster.scheduler, psutil.Process()
        self.samples, self.over = [], threading.Event()

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *error):
        self.over.set()
        self.join()

    def run(self):
        while not self.over.wait(SECONDS_BETWEEN_SAMPLES):
            workers = [0]
            for child in self.process.children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    workers.append(child.memory_info().rss)
            done = len(self.signed("embed"))
            self.samples.append(
                {
                    "time": time.perf_counter(),
                    "stage": self.stage(done),
                    "done": done / self.partitions,
                    "driver": self.process.memory_info().rss,
                    "cpu": sum(self.process.cpu_times()[:2]),
                    "worker": max(workers),
                    "tasks": len(self.scheduler.tasks),
                }
            )

    def stage(self, done):
        if self.out.exists():
            return "finishing"
        if done < self.partitions:
            return "embedding" if done or list_of(self.folder / "running") else "planning"
        if not (self.folder / "survey.json").exists():
            return "surveying"
        if not self.signed("create"):
            return "combining"
        return "writing" if len(self.signed("write")) < grid.N_BANDS else "finishing"

    def signed(self, stage):
        return list_of(self.folder / "receipts" / stage)

    def report(self):
        during = [s for s in self.samples if s["stage"] in ("planning", "embedding")]
        print("| at | driver and scheduler | its CPU a partition | worker | tasks at once |")
        print("|---|---|---|---|---|")
        before = during[0]
        for percent in (1, 10, 50, 90, 100):
            seen = [s for s in during if s["done"] <= percent / 100]
            at, tasks = seen[-1], max(s["tasks"] for s in seen)
            number = (at["done"] - before["done"]) * self.partitions
            cpu = (at["cpu"] - before["cpu"]) / number * 1000 if number else 0.0
            memory = f"{size(at['driver'])} | {cpu:.1f} ms | {size(at['worker'])}"
            print(f"| {percent} % | {memory} | {tasks} |")
            before = at
        last = self.samples[-1]
        print(f"| the end | {size(last['driver'])} | | {size(last['worker'])} | |")
        peak = max(s["driver"] for s in self.samples)
        print(f"\npeak of driver and scheduler {size(peak)}")
        for name in STAGES:
            times = [s["time"] for s in self.samples if s["stage"] == name]
            if times:
                seconds = len(times) * (last["time"] - self.samples[0]["time"]) / len(self.samples)
                print(f"{name:10} {seconds:8.1f} s")


def list_of(folder):
    with contextlib.suppress(FileNotFoundError):
        return [name for name in os.listdir(folder) if not name.startswith(".")]
    return []


def report_partitions(folder):
    """Time that partitions took, early and late."""
    paths = (folder / "receipts/embed").iterdir()
    receipts = sorted((json.loads(p.read_text()) for p in paths), key=lambda r: r["finished"])
    n, tenth = len(receipts), max(1, len(receipts) // 10)
    for name, start in (("first", 0), ("middle", (n - tenth) // 2), ("last", n - tenth)):
        some = receipts[start : start + tenth]
        seconds = median(r["seconds"]["embedding"] for r in some)
        wall = (some[-1]["finished"] - some[0]["finished"]) / max(1, len(some) - 1)
        print(
            f"{name} tenth: a partition {seconds:.3f} s on its worker, one done every {wall:.3f} s"
        )
    total = {key: sum(r["seconds"][key] for r in receipts) / n for key in receipts[0]["seconds"]}
    print("mean seconds:", ", ".join(f"{key} {value:.3f}" for key, value in total.items()))


def main():
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--cells", type=int, default=312_567)
    options.add_argument("--quick", action="store_true", help="3,000 cells")
    options.add_argument("--dim", type=int, default=768)
    options.add_argument("--shuffled", action="store_true", help="scatter cells over shards")
    options.add_argument("--folder", help="for some 25 GB of files; default: the temporary one")
    options.add_argument("--profile", action="store_true", help="where the driver spends its time")
    chosen = options.parse_args()
    cells = 3_000 if chosen.quick else chosen.cells
    ids = np.sort(grid.grid_id(*np.divmod(reduce.land(cells), grid.N_LON)))
    if chosen.shuffled:
        ids = np.random.default_rng(0).permutation(ids)
    with tempfile.TemporaryDirectory(dir=chosen.folder) as scratch:
        source, out = Path(scratch, "shards"), Path(scratch, "world.zarr")
        begin = time.perf_counter()
        partitions = write_shards(source, ids)
        written = sum(path.stat().st_size for path in source.iterdir())
        seconds = time.perf_counter() - begin
        print(f"{partitions} shards of {size(written)} written in {seconds:.0f} s", flush=True)
        profile = cProfile.Profile()
        with (
            local_cluster(2, gpus=False) as client,
            Watch(out, partitions, client) as watch,
            profile if chosen.profile else contextlib.nullcontext(),
        ):
            report = copcube.build(
                source, out, modalities=list(KEYS), encoder=StubSpec(chosen.dim), client=client
            )
        rows, total = sum(report.images.values()), report.seconds["total"]
        print(f"{cells:,} cells, {rows:,} rows in {total:.0f} s, {rows / total:.0f} rows/s\n")
        watch.report()
        report_partitions(out.with_suffix(".build"))
        report_sizes(out)
        if chosen.profile:
            pstats.Stats(profile).sort_stats("tottime").print_stats(20)
        begin = time.perf_counter()
        errors = check(out, ids, chosen.dim)
        assert max(errors.values()) < 1e-6, errors
        seconds = time.perf_counter() - begin
        print(f"every cell as it must be, within {errors} (checked in {seconds:.0f} s)")


def report_sizes(out):
    folder = out.with_suffix(".build")
    for name in ("partitions.parquet", "plan.json", "receipts/embed", "rows"):
        path = folder / name
        files = path.iterdir() if path.is_dir() else [path]
        print(f"{name:20} {size(sum(f.stat().st_size for f in files))}")


if __name__ == "__main__":
    main()
