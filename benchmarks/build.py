"""A build's images/s against those of the bare encoder on the same batches, in one run.

    python benchmarks/build.py [--cells 12] [--layout geotiff] [--device auto]

Partition by partition, in turn: decode all batches into memory and time nothing but the
encoder; then time the whole of embedding the partition, from files to rows with a receipt.
Weights are untrained: speed does not depend on their values.
"""

import argparse
import tempfile
import time
from pathlib import Path

from copcube.builds.folder import BuildFolder
from copcube.builds.plan import BuildOptions, plan_build
from copcube.builds.tasks import EmbedTask, describe, run_embed_task
from copcube.embedding import Batch, crop_image
from copcube.encoder import EncoderSpec
from copcube.images import Image, open_source
from copcube.images.sample.writing import write_sample
from copcube.modalities import MODALITIES
from copcube.selection import Selection


def batches(source, partition, selection, sizes):
    images: dict[str, list[Image]] = {}
    for job in source.jobs(partition, selection):
        for item in job() if callable(job) else ():
            if isinstance(item, Image):
                images.setdefault(item.modality, []).append(
                    crop_image(item, MODALITIES[item.modality], "center")
                )
    for key, found in images.items():
        for i in range(0, len(found), sizes[key]):
            yield Batch.of(found[i : i + sizes[key]], MODALITIES[key])


def started(source, out, encoder, selection, threads=None):
    """Begin a build without doing anything of it; its plan and the tasks of embedding."""
    options = BuildOptions(selection, encoder, threads=threads)
    plan, partitions = plan_build(source, options, describe(options))
    folder = BuildFolder(out)
    folder.write_plan(plan)
    folder.write_partitions(partitions, plan.partitions)
    tasks = [
        EmbedTask(folder.out, plan.id, i, partition.name, source.reader, options)
        for i, partition in enumerate(partitions)
    ]
    return plan, partitions, tasks


def main():
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--cells", type=int, default=12)
    options.add_argument("--layout", choices=("geotiff", "webdataset"), default="geotiff")
    options.add_argument("--device", default="auto")
    options.add_argument("--threads", type=int, default=2)
    chosen = options.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        write_sample(Path(scratch, "images"), chosen.layout, cells=chosen.cells)
        source, selection = open_source(Path(scratch, "images")), Selection.of()
        encoder = EncoderSpec("untrained:0", device=chosen.device).load()
        out = f"{scratch}/world.zarr"
        plan, partitions, tasks = started(source, out, encoder, selection, chosen.threads)
        for batch in batches(source, partitions[0], selection, plan.batch_sizes):
            encoder(batch.modality.key, batch.pixels, batch.metadata)  # warm up
        images, bare, whole = 0, 0.0, 0.0
        for partition, task in zip(partitions, tasks, strict=True):
            for batch in batches(source, partition, selection, plan.batch_sizes):
                begin = time.perf_counter()
                encoder(batch.modality.key, batch.pixels, batch.metadata)
                bare += time.perf_counter() - begin
                images += len(batch.images)
            begin = time.perf_counter()
            run_embed_task(task)
            whole += time.perf_counter() - begin
            print(f"{images} images: build / bare encoder {bare / whole:.3f}", flush=True)
    print(f"bare encoder {images / bare:.2f} images/s, build {images / whole:.2f} images/s")


if __name__ == "__main__":
    main()
