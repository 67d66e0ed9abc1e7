"""A build of Major TOM's embeddings against bare timm on the same fragments, in one run.

    python benchmarks/majortom_build.py [--encoder ssl4eo-s2] [--cells 4] [--side 1068]
                                        [--device auto] [--dtype auto]

In turn, file by file: bare timm embeds batches of prepared float32 images that lie in memory, with
the model that timm itself makes, in the same dtype; then the whole of embedding the file is timed,
from parquet to rows with a receipt. A ResNet that timm makes is timed a second time with its
weights and images in the layout channels_last, in which a build has them and which is faster on
most devices. Wall time and, since other programs may be running, processor time. Weights are
untrained: speed does not depend on their values.

Smaller images (`--side`) have fewer fragments: 726 pixels give 4 of 384 in place of 9.
"""

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import timm
import torch

from copcube.builds.folder import BuildFolder
from copcube.builds.plan import BuildOptions, plan_build
from copcube.builds.tasks import EmbedTask, describe, run_embed_task
from copcube.encoder import TimmSpec
from copcube.products.majortom import Sample
from copcube.products.majortom.core_sample import write_core
from copcube.selection import Selection


def bare(kind, device, dtype, layout=torch.contiguous_format):
    """The model that timm makes, as a function of images on the CPU."""
    sides = {} if kind.architecture.startswith("resnet") else {"img_size": kind.size}
    model: Any = timm.create_model(
        kind.architecture, num_classes=0, in_chans=len(kind.bands), **sides
    ).eval()
    model = model.to(device, dtype).to(memory_format=layout)

    def embed(images):
        with torch.inference_mode():
            x = images.to(device, dtype, memory_format=layout)
            tokens = kind.pooling == "tokens"
            out = model.forward_features(x).mean(1) if tokens else model(x)
            return out.float().cpu()

    return embed


def parts(root, bands, scratch):
    """The set with a file for each sample."""
    name = "Core-S1RTC" if "vv" in bands else "Core-S2L1C" if "B01" in bands else "Core-S2RGB"
    file = pq.ParquetFile(root / name / "images/part_00001.parquet")
    for i in range(file.num_row_groups):
        pq.write_table(file.read_row_group(i), scratch / f"part_{i:05d}.parquet")
    return scratch


def prepared(sample):
    """The fragments of a sample, scaled as networks want them, not as any encoder does."""
    x = torch.from_numpy(np.stack(sample.pixels).astype(np.float32))
    return (x - x.mean()) / x.std()


def clocks():
    return np.array([time.perf_counter(), time.process_time()])


def main():
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--encoder", default="ssl4eo-s2")
    options.add_argument("--cells", type=int, default=4)
    options.add_argument("--side", type=int, default=1068)
    options.add_argument("--device", default="auto")
    options.add_argument("--dtype", default="auto")
    options.add_argument("--threads", type=int, default=2)
    chosen = options.parse_args()
    spec = TimmSpec(chosen.encoder, "untrained:0", device=chosen.device, dtype=chosen.dtype)
    with tempfile.TemporaryDirectory() as scratch:
        write_core(Path(scratch, "core"), cells=chosen.cells, side=chosen.side)
        Path(scratch, "images").mkdir()
        images = parts(Path(scratch, "core"), spec.kind.bands, Path(scratch, "images"))
        choice = BuildOptions.of(encoder=spec, product="majortom", threads=chosen.threads)
        source = choice.open(images)
        plan, partitions = plan_build(source, choice, describe(choice))
        folder = BuildFolder(f"{scratch}/world.zarr")
        folder.write_plan(plan)
        folder.write_partitions(partitions, plan.partitions)
        encoder = spec.load()
        models = {"bare timm": bare(spec.kind, encoder.device, encoder.dtype)}
        if spec.kind.architecture.startswith("resnet"):
            models["bare timm, channels_last"] = bare(
                spec.kind, encoder.device, encoder.dtype, torch.channels_last
            )
        size = plan.batch_sizes[spec.kind.modality]
        number, whole = 0, np.zeros(2)
        alone = {name: np.zeros(2) for name in models}
        for i, partition in enumerate(partitions):
            jobs = source.jobs(partition, Selection.of())
            (sample,) = (s for job in jobs if callable(job) for s in job() if isinstance(s, Sample))
            x = prepared(sample)
            for name, embed in models.items():
                if i == 0:
                    embed(x[:size])  # warm up
                    continue
                begin = clocks()
                for start in range(0, len(x), size):
                    embed(x[start : start + size])
                alone[name] += clocks() - begin
            task = EmbedTask(folder.out, plan.id, i, partition.name, source.reader, choice)
            begin = clocks()
            run_embed_task(task)
            if i:  # the first task loads the encoder
                whole += clocks() - begin
                number += len(x)
        print(
            f"{chosen.encoder}: {number} fragments in batches of {size}, {encoder.dtype} on "
            f"{encoder.device}; build {number / whole[0]:.2f} images/s"
        )
        for name, spent in alone.items():
            ratio = spent / whole
            print(
                f"{name} {number / spent[0]:.2f} images/s; build / {name}: {ratio[0]:.3f} of wall "
                f"time, {ratio[1]:.3f} of processor time"
            )


if __name__ == "__main__":
    main()
