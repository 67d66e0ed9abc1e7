"""What a GPU does: images/s by modality, share of its matrix rate, the build beside it.

    python benchmarks/gpu.py [--cells 100] [--only rates build agreement] [--no-compile]
    python benchmarks/gpu.py --device cpu --quick

`rates`: images/s of each modality at the automatic batch size, in float32, in bfloat16, and
compiled; the encoder from images in memory to vectors, and the model alone from pixels on the
device. The share is FLOP of the transformer over the rate that this machine multiplies large
bfloat16 matrices at, measured in the same run. `build`: embedding partitions from WebDataset
shards in memory-backed storage against the bare encoder on the same batches. `agreement`:
cosine between float32 and bfloat16, image by image. Weights are untrained. Without a CUDA
device this says so and ends; on a CPU it measures the same, in float32 and compiled.
"""

import argparse
import os
import shutil
import tempfile
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import torch
from build import batches, started
from feed import write_shard

from copcube.builds.executors import LocalExecutor
from copcube.builds.tasks import run_embed_task
from copcube.encoder import EncoderSpec
from copcube.files.processors import available_processors
from copcube.images import open_source
from copcube.images.sample.writing import write_sample
from copcube.modalities import MODALITIES
from copcube.selection import Selection

WIDTH, DEPTH = 768, 12
COPIES = 6
"""How often the shard is built from; the copies are links, so that they take no memory."""


def flop(modality):
    """FLOP of the transformer for one image, patch embedding included."""
    tokens = ((modality.input_size + 2) // modality.kernel) ** 2 + 1
    block = 24 * tokens * WIDTH**2 + 4 * tokens**2 * WIDTH
    patches = 2 * (tokens - 1) * len(modality.bands) * modality.kernel**2 * WIDTH
    return DEPTH * block + patches


def wait(device):
    if device == "cuda":
        torch.cuda.synchronize()


def rate(call, device, seconds, at_once=8):
    """Calls a second, the best of three times, after two calls that are not counted.

    On a GPU so many calls are made before it is waited for.
    """
    for _ in range(2):
        call()
    best = 0.0
    for _ in range(3):
        wait(device)
        done, begin = 0, time.perf_counter()
        while not done or time.perf_counter() - begin < seconds / 3:
            for _ in range(at_once if device == "cuda" else 1):
                call()
                done += 1
            wait(device)
        best = max(best, done / (time.perf_counter() - begin))
    return best


def matrix_rate(device, dtype, side, seconds):
    """FLOP/s of the product of two square matrices."""
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    with torch.inference_mode():
        return 2 * side**3 * rate(lambda: torch.mm(a, b, out=out), device, seconds)


def drawn(modality, number):
    """Images as they are stored, cropped as for the encoder, and their metadata."""
    shape, size = modality.shape, modality.input_size
    dtype = np.uint16 if modality.tensor_dtype == "int16" else np.float32
    rng, edge = np.random.default_rng(0), (modality.stored_size - size) // 2
    stored = [rng.integers(1, 4000, shape).astype(dtype) for _ in range(min(number, 64))]
    pixels = [image[:, edge : edge + size, edge : edge + size] for image in stored]
    pixels = [pixels[i % len(pixels)] for i in range(number)]
    return pixels, np.tile([10.0, 50.0, 18700.0, modality.token_area], (number, 1))


def encoder_rate(encoder, modality, device, seconds):
    """Images a second from memory to vectors, as many calls at once as in a build."""
    number = encoder.batch_size(modality.key, modality.input_size)
    pixels, metadata = drawn(modality, number)
    calls = 8 * encoder.streams if device == "cuda" else 1
    with ThreadPoolExecutor(encoder.streams) as pool:

        def one_after_another():
            list(pool.map(lambda _: encoder(modality.key, pixels, metadata), range(calls)))

        return calls * number * rate(one_after_another, device, seconds, at_once=1)


def model_rate(encoder, modality, device, seconds):
    """Images a second of the model alone, from normalised pixels on the device."""
    number = encoder.batch_size(modality.key, modality.input_size)
    size, bands = modality.input_size, len(modality.bands)
    x = torch.randn(number, bands, size, size, device=device)
    metadata = torch.from_numpy(drawn(modality, 1)[1]).repeat(number, 1)
    call = partial(encoder.embed_normalised, modality, x, metadata)
    return number * rate(call, device, seconds)


def rates(chosen, keys):
    seconds = 1.0 if chosen.quick else 4.0
    side, kind = (1024, torch.float32) if chosen.device == "cpu" else (8192, torch.bfloat16)
    peak = matrix_rate(chosen.device, kind, side, seconds)
    name = str(kind).removeprefix("torch.")
    print(f"{name} matrices of {side}: {peak / 1e12:.2f} TFLOP/s\n")
    forms = [("float32", False)] + [("bfloat16", False)] * (chosen.device == "cuda")
    forms += [] if chosen.no_compile else [(forms[-1][0], True)]
    print("| modality | dtype | batch | GFLOP an image | encoder, images/s | model | share |")
    print("|---|---|---|---|---|---|---|")
    for dtype, compiled in forms:
        spec = EncoderSpec("untrained:0", device=chosen.device, dtype=dtype, compile=compiled)
        encoder = spec.load()
        for key in keys:
            modality = MODALITIES[key]
            begin = time.perf_counter()
            number = encoder.batch_size(key, modality.input_size)
            encoder(key, *drawn(modality, number))
            first = time.perf_counter() - begin
            whole = encoder_rate(encoder, modality, chosen.device, seconds)
            alone = model_rate(encoder, modality, chosen.device, seconds)
            share = alone * flop(modality) / peak
            form = f"{dtype}, compiled in {first:.0f} s" if compiled else dtype
            row = f"{number} | {flop(modality) / 1e9:.1f} | {whole:.1f} | {alone:.1f}"
            print(f"| {key} | {form} | {row} | {share:.0%} |", flush=True)
        del encoder
        torch.cuda.empty_cache()


def linked_shard(folder, cells):
    """A shard of the published size, which is there several times by links."""
    folder.mkdir()
    write_shard(folder, cells)
    (path,) = folder.glob("*.tar")
    for i in range(1, COPIES):
        os.link(path, path.with_name(f"{path.stem}-{i}.tar"))
    return open_source(folder)


def build(chosen, keys):
    """The bare encoder on a partition's batches in memory, then the whole of as many partitions."""
    selection = Selection.of(keys)
    with tempfile.TemporaryDirectory(dir=chosen.folder) as scratch:
        source = linked_shard(Path(scratch, "images"), chosen.cells)
        spec = EncoderSpec("untrained:0", device=chosen.device, compile=chosen.compile)
        encoder = spec.load()
        out = f"{scratch}/world.zarr"
        plan, partitions, tasks = started(source, out, encoder, selection, chosen.threads)
        held = list(batches(source, partitions[0], selection, plan.batch_sizes))
        totals = defaultdict(float)
        with ThreadPoolExecutor(encoder.streams) as pool:

            def bare():
                calls = [pool.submit(encoder, b.modality.key, b.pixels, b.metadata) for b in held]
                for call in calls:
                    call.result()

            bare()  # warm up
            number = 2 if chosen.quick else COPIES
            begin = time.perf_counter()
            for _ in range(number):
                bare()
            totals["bare"] = time.perf_counter() - begin
        begin = time.perf_counter()
        for _, counts in LocalExecutor().map(run_embed_task, tasks[:number], embeds=True):
            if isinstance(counts, Exception):
                raise counts
            totals["images"] += sum(counts["images"].values())
            for key, value in counts["seconds"].items():
                totals[key] += value
        totals["build"] = time.perf_counter() - begin
        images = totals["images"]
        print(f"{images:.0f} images from shards in {chosen.folder}, {chosen.threads} threads:")
        print(f"bare encoder {images / totals['bare']:.1f} images/s,", end=" ")
        print(f"build {images / totals['build']:.1f} images/s,", end=" ")
        print(f"build / bare {totals['bare'] / totals['build']:.2f}")
        parts = ("decoding", "waiting", "encoding", "writing", "embedding")
        print("seconds:", ", ".join(f"{key} {totals[key]:.1f}" for key in parts))


def agreement(chosen, keys):
    """Least cosine of an image between the encoder in float32 and in bfloat16."""
    selection = Selection.of(keys)
    with tempfile.TemporaryDirectory(dir=chosen.folder) as scratch:
        write_sample(Path(scratch, "images"), "webdataset", cells=2 if chosen.quick else 24)
        source = open_source(Path(scratch, "images"))
        exact, rounded = (
            EncoderSpec("untrained:0", device=chosen.device, dtype=dtype).load()
            for dtype in ("float32", "bfloat16")
        )
        sizes = {key: exact.batch_size(key, MODALITIES[key].input_size) for key in keys}
        least: dict[str, float] = defaultdict(lambda: 1.0)
        number: dict[str, int] = defaultdict(int)
        for partition in source.partitions():
            for batch in batches(source, partition, selection, sizes):
                key = batch.modality.key
                if chosen.quick and number[key]:
                    continue
                a, b = (e(key, batch.pixels, batch.metadata) for e in (exact, rounded))
                norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
                least[key] = min(least[key], float(((a * b).sum(1) / norms).min()))
                number[key] += len(a)
        print("| modality | images | least cosine of float32 and bfloat16 |")
        print("|---|---|---|")
        for key in keys:
            if number[key]:
                print(f"| {key} | {number[key]} | {least[key]:.5f} |")


PARTS = {part.__name__: part for part in (rates, build, agreement)}


def main():
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    options.add_argument("--quick", action="store_true", help="little of everything")
    options.add_argument(
        "--cells", type=int, default=100, help="in a shard of the build; 2 GB a hundred"
    )
    options.add_argument("--threads", type=int, default=min(8, available_processors()))
    options.add_argument("--modalities", nargs="+", choices=MODALITIES, default=list(MODALITIES))
    options.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    options.add_argument("--compile", action="store_true", help="compile for the build, too")
    options.add_argument("--no-compile", action="store_true", help="leave the compiled rates out")
    options.add_argument("--folder", default="/dev/shm", help="where the shards lie")
    chosen = options.parse_args()
    if chosen.device == "cuda" and not torch.cuda.is_available():
        print(f"torch {torch.__version__} sees no CUDA device here: nothing measured.")
        print("`--device cpu --quick` runs the same steps on a processor.")
        return
    chosen.cells = 2 if chosen.quick else chosen.cells
    if (free := shutil.disk_usage(chosen.folder).free) < 5e7 * chosen.cells:
        options.error(f"{chosen.folder} has {free / 1e9:.1f} GB; give another --folder or --cells")
    device = torch.cuda.get_device_name() if chosen.device == "cuda" else "CPU"
    print(f"{device}, torch {torch.__version__}, {torch.get_num_threads()} threads")
    for name in chosen.only:
        PARTS[name](chosen, chosen.modalities)
        print()


if __name__ == "__main__":
    main()
