"""How fast the host feeds an encoder: reading, decoding, batching, rows, but no computing.

    python benchmarks/feed.py [--cells 60] [--threads 1 2 8] [--modalities s2_toa s1_grd]

One WebDataset shard in memory-backed storage is embedded by an encoder that gathers its
images in one array, as they are sent to a GPU, and returns zeros. `all`: time and processor
time an image. `interpreter`: the same without reading and gathering, of which threads do as
many at a time as there are cores; what is left is Python, of which they do one at a time, so
one process feeds a GPU at most that fast, however many cores it has. Tensors are read in
place, and once more by `torch.load`, which is what that is compared with.
"""

import argparse
import io
import tarfile
import tempfile
import time
from pathlib import Path
from typing import Any, ClassVar
from unittest.mock import patch

import numpy as np

from copcube.embedding.partition import embed_partition
from copcube.files.processors import available_processors
from copcube.images import open_source, webdataset
from copcube.images.archives import LocalArchive
from copcube.images.naming import to_stored
from copcube.images.sample.writing import write_sample
from copcube.modalities import MODALITIES
from copcube.selection import Selection

BATCH, DIM = 64, 768


class Gathering:
    """An encoder that computes nothing."""

    streams, dim = 4, DIM
    provenance: ClassVar[dict[str, Any]] = {}

    def __init__(self, gathers):
        self.gathers, self.free = gathers, {}

    def __call__(self, modality, pixels, metadata):
        if self.gathers:
            kept = self.free.setdefault((modality, pixels[0].shape), [])
            shape = (BATCH, *pixels[0].shape)
            target = kept.pop() if kept else np.zeros(shape, pixels[0].dtype)
            for place, image in zip(target, pixels, strict=False):
                np.copyto(place, image)
            kept.append(target)
        return np.zeros((len(pixels), DIM), np.float32)


def write_shard(folder, cells):
    """Write a sample as a single shard, as many cells as those published have."""
    parts = Path(folder, "parts")
    write_sample(parts, "webdataset", cells=cells, local_patches=9, dates=12)
    with open(Path(folder, "example-000000.tar"), "wb") as shard:
        for path in sorted(parts.glob("*.tar")):
            with tarfile.open(path) as part:
                last = part.getmembers()[-1]
            size = last.offset_data + -(-last.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
            shard.write(path.read_bytes()[:size])
            path.unlink()
        parts.rmdir()
        shard.write(bytes(2 * tarfile.BLOCKSIZE))


IN_PLACE = webdataset._pixels


def loaded(archive, tensor):
    """Pixels of the images of a member, read by torch."""
    import torch

    raw = tensor.member.read(archive, 0, tensor.member.size)
    pixels = torch.load(io.BytesIO(raw), weights_only=True).numpy()
    pixels = pixels.reshape(tensor.lead + tensor.modality.shape)
    return [to_stored(pixels[index], tensor.modality) for _, index in tensor.images]


READ = LocalArchive.read
KNOWN: dict[tuple[int, int], Any] = {}


def remembered(archive, start, length):
    """Read each piece of the one shard once."""
    if (start, length) not in KNOWN:
        KNOWN[start, length] = READ(archive, start, length)
    return KNOWN[start, length]


def measured(source, keys, threads, encoder, seconds):
    """Seconds and processor seconds an image, the best of what there is time for."""
    (partition,) = source.partitions()
    selection, sizes = Selection.of(keys), dict.fromkeys(keys, BATCH)
    best = (float("inf"), float("inf"))
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        begin, used = time.perf_counter(), time.process_time()
        rows, _ = embed_partition(
            source, partition, encoder, selection=selection, batch_sizes=sizes, threads=threads
        )
        spent, used = time.perf_counter() - begin, time.process_time() - used
        best = min(best, (spent / len(rows), used / len(rows)))
    return best


def main():
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--cells", type=int, default=60)
    options.add_argument("--threads", type=int, nargs="+", default=[1, 2, 8])
    options.add_argument("--modalities", nargs="+", choices=MODALITIES, default=list(MODALITIES))
    options.add_argument("--seconds", type=float, default=5.0, help="for each figure")
    chosen = options.parse_args()
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        write_shard(folder, chosen.cells)
        source = open_source(folder)
        size = Path(folder, "example-000000.tar").stat().st_size
        print(f"a shard of {size / 1e9:.1f} GB, {available_processors()} cores")
        print("| threads | tensors | all, µs an image | of a processor | interpreter | of it |")
        print("|---|---|---|---|---|---|")
        for threads in chosen.threads:
            for tensors, pixels in ("in place", IN_PLACE), ("torch.load", loaded):
                webdataset._pixels = pixels
                figures = []
                for gathers, reading in (True, READ), (False, remembered):
                    encoder = Gathering(gathers)
                    with patch.object(LocalArchive, "read", reading):
                        for seconds in 0.1, chosen.seconds:
                            spent = measured(source, chosen.modalities, threads, encoder, seconds)
                    figures += spent
                cells = (f"{1e6 * figure:.0f}" for figure in figures)
                print(f"| {threads} | {tensors} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
