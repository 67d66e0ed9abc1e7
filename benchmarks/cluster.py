"""What a cluster gains and costs: one worker, two, and this process alone, side by side.

    python benchmarks/cluster.py [--quick] [--only sleep real overhead]

`sleep`: an encoder that sleeps, so that processors are no limit: two workers should take half
the time. `real`: the ViT-B with untrained weights, whose threads share the processors however
many workers there are; beside it, its bare rate: the workers embed, at the same time, batches
that they hold in memory; best of three each. `overhead`: an encoder that costs nothing, on many
tiny partitions: time a partition, less what decoding the shards takes by itself. Workers are
started, and have loaded the encoder, before the clock starts.
"""

import argparse
import contextlib
import tempfile
import time
from pathlib import Path

import numpy as np
from build import batches
from known import KEYS, StubSpec, write_shards

import copcube
from copcube import grid
from copcube.builds.dask import local_cluster
from copcube.builds.plan import BuildOptions
from copcube.builds.tasks import describe
from copcube.embedding import as_encoder
from copcube.encoder import EncoderSpec
from copcube.images import open_source
from copcube.selection import Selection


@contextlib.contextmanager
def warm(workers, spec):
    """Client of so many workers that have loaded the encoder; None for this process."""
    if not workers:
        exercise(spec)
        yield None
        return
    with local_cluster(workers, gpus=False) as client:
        client.run(describe, BuildOptions(Selection(tuple(KEYS)), as_encoder(spec)))
        client.run(exercise, spec)
        yield client


def exercise(spec):
    """Embed one image, and import what decoding needs."""
    import torch  # noqa: F401

    pixels = [np.zeros((1, 28, 28), np.float32)]
    as_encoder(spec)("s5p_co", pixels, np.array([[10.0, 50.0, 16436.0, 16.0]]))


def build(source, spec, client):
    """Images, seconds in all and until the last partition was embedded."""
    with tempfile.TemporaryDirectory() as scratch:
        begin = time.time()
        out = Path(scratch, "world.zarr")
        report = copcube.build(
            source, out, modalities=list(KEYS), encoder=spec, client=client, threads=2
        )
        embedded = (Path(scratch, "world.build/receipts/embed")).iterdir()
        until = max(path.stat().st_mtime for path in embedded) - begin
        return sum(report.images.values()), report.seconds["total"], until


def shards(folder, number, cells):
    """Write so many shards of so many cells."""
    ids = grid.grid_id(*np.divmod(np.arange(400_000, 400_000 + number * cells), grid.N_LON))
    write_shards(folder, ids, cells)
    return folder


def bare(source, spec, numbers, seconds):
    """Images a second of the encoder on batches that are in memory; runs on a worker."""
    images, encoder = open_source(source), as_encoder(spec)
    selection = Selection(tuple(KEYS))
    sizes = {key: encoder.batch_size(key, 28) for key in KEYS}
    partitions = images.partitions()
    held = [b for n in numbers for b in batches(images, partitions[n], selection, sizes)]
    done, begin = 0, time.perf_counter()
    while time.perf_counter() - begin < seconds:
        for batch in held:
            encoder(batch.modality.key, batch.pixels, batch.metadata)
            done += len(batch.images)
    return done / (time.perf_counter() - begin)


def bare_rate(source, spec, client, seconds):
    """The same for all workers at once, or for this process."""
    if client is None:
        return bare(source, spec, [0, 1], seconds)
    addresses = list(client.scheduler_info()["workers"])
    futures = [
        client.submit(bare, source, spec, [2 * i, 2 * i + 1], seconds, workers=[a], pure=False)
        for i, a in enumerate(addresses)
    ]
    return sum(client.gather(futures))


def sleep(folder, quick):
    source = shards(folder / "sleep", 12 if quick else 60, 12)
    print("| an encoder that sleeps 10 ms an image | images/s | s in all | gain |")
    print("|---|---|---|---|")
    first = None
    for workers in (0, 1, 2):
        with warm(workers, StubSpec(seconds=0.01)) as client:
            images, total, until = build(source, StubSpec(seconds=0.01), client)
        first = until if workers == 1 else first
        gain = f"{first / until:.2f}" if workers else ""
        print(f"| {named(workers)} | {images / until:.1f} | {total:.1f} | {gain} |", flush=True)


def real(folder, quick):
    source, spec = shards(folder / "real", 6 if quick else 24, 3), EncoderSpec("untrained:0")
    print("| ViT-B, images of 50 tokens | build, images/s | bare encoder | build / bare | gain |")
    print("|---|---|---|---|---|")
    rate = {}
    for workers in (0, 1, 2):
        known = rate[workers] = 0.0
        with warm(workers, spec) as client:
            for _ in range(1 if quick else 3):
                known = max(known, bare_rate(source, spec, client, 2 if quick else 8))
                images, _, until = build(source, spec, client)
                rate[workers] = max(rate[workers], images / until)
        gain = f"{rate[workers] / rate[1]:.2f}" if workers else ""
        row = f"{rate[workers]:.1f} | {known:.1f} | {rate[workers] / known:.2f} | {gain}"
        print(f"| {named(workers)} | {row} |", flush=True)


def overhead(folder, quick):
    number = 100 if quick else 1000
    source = shards(folder / "tiny", number, 1)
    images, selection = open_source(source), Selection(tuple(KEYS))
    begin = time.perf_counter()
    for partition in images.partitions():
        for job in filter(callable, images.jobs(partition, selection)):
            job()
    decoding = (time.perf_counter() - begin) / number
    print(f"{number} partitions of one cell; decoding one takes {1000 * decoding:.1f} ms\n")
    print("| an encoder that costs nothing | ms a partition | less decoding | ms to assemble |")
    print("|---|---|---|---|")
    for workers in (0, 1, 2):
        with warm(workers, StubSpec()) as client:
            _, total, until = build(source, StubSpec(), client)
        each, rest = 1000 * until / number, 1000 * (total - until) / number
        less = each - 1000 * decoding / max(workers, 1)
        print(f"| {named(workers)} | {each:.1f} | {less:.1f} | {rest:.1f} |", flush=True)


def named(workers):
    return ("this process", "1 worker", "2 workers")[workers]


PARTS = {part.__name__: part for part in (sleep, real, overhead)}


def main():
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--quick", action="store_true", help="a fifth of the work")
    options.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    chosen = options.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        for name in chosen.only:
            PARTS[name](Path(scratch), chosen.quick)
            print()


if __name__ == "__main__":
    main()
