"""What the world build costs: arithmetic from published counts and stated assumptions.

python pipelines/cost.py

Nothing printed here was measured but the three rates that say so.
"""

import argparse
import math
from typing import NamedTuple

import numpy as np

from copcube.modalities import MODALITIES, Modality

DIM, DEPTH = 768, 12
"""Width and depth of ViT-B."""

SHARE = 0.4
"""Share of a GPU's peak that the encoder reaches (assumed)."""

CORE_FLOPS, CORE_BYTES = 94e9, 2.5e9
"""FLOP/s of the encoder, float32, and bytes/s of reading and gathering, on one core of a server's
CPU with AVX-512 (measured: ViT-B/16 at batch 8; `benchmarks/feed.py --modalities s2_toa`)."""

PYTHON = 65e-6
"""Seconds an image in which a process can do nothing else (measured: `benchmarks/feed.py`)."""

CELLS = 312_567
COUNTS = {  # published: places (local patches, or cells), images
    "s1_grd": (1_067_267, 4_227_387),
    "s2_toa": (1_067_267, 4_218_065),
    "s3_olci": (281_375, 2_189_561),
    "s5p_co": (306_097, 2_104_735),
    "s5p_no2": (291_449, 1_752_558),
    "s5p_o3": (306_218, 2_556_631),
    "s5p_so2": (262_259, 1_366_452),
    "dem": (297_665, 297_665),
}


class Machine(NamedTuple):
    """Where to build: FLOP/s reached, processes, cores that decode, bytes/s read."""

    name: str
    flops: float
    processes: int
    cores: int
    reading: float


MACHINES = (  # peaks: bfloat16 without sparsity, from the makers' data sheets
    Machine("64 cores, no GPU, disk at 1 GB/s", 64 * CORE_FLOPS, 32, 64, 1e9),
    Machine("1 × RTX 4090 (165 TFLOP/s), 16 cores, NVMe at 3 GB/s", 165e12 * SHARE, 1, 16, 3e9),
    Machine("8 × A100 (312), 64 cores, file system at 2 GB/s", 8 * 312e12 * SHARE, 8, 64, 2e9),
    Machine(
        "33 jobs of 1 × A100, 8 cores; file system at 10 GB/s", 33 * 312e12 * SHARE, 33, 264, 1e10
    ),
    Machine(
        "8 pods of 1 × L4 (121), 8 cores; bucket at 1 GB/s a pod", 8 * 121e12 * SHARE, 8, 64, 8e9
    ),
)


def flop(modality: Modality) -> float:
    """FLOP to embed one image: patch embedding, then 12 blocks over T tokens.

    A block multiplies each token with 12 D² weights (4 D² of attention, 8 D² of the MLP) and
    twice T × T × D for attention itself; a multiplication with its addition is 2 FLOP.
    """
    patches = (modality.input_size // modality.kernel) ** 2
    tokens = patches + 1
    embedding = 2 * patches * len(modality.bands) * modality.kernel**2 * DIM
    return embedding + DEPTH * (24 * tokens * DIM**2 + 4 * tokens**2 * DIM)


def stored(modality: Modality) -> float:
    """Bytes of its tensors in all shards, whose short date axes are padded."""
    image = math.prod(modality.shape) * np.dtype(modality.tensor_dtype).itemsize
    return COUNTS[modality.key][0] * modality.dates * image


def report() -> str:
    """The tables of pipelines/README.md."""
    lines = ["| modality | images | GFLOP an image | PFLOP | TB in the shards |"]
    lines += ["|---|---|---|---|---|"]
    work, volume, images = 0.0, 0.0, 0
    for key, (_, count) in COUNTS.items():
        each, size = flop(MODALITIES[key]), stored(MODALITIES[key])
        lines.append(
            f"| `{key}` | {count:,} | {each / 1e9:.1f} | {count * each / 1e15:.0f} "
            f"| {size / 1e12:.2f} |"
        )
        work, volume, images = work + count * each, volume + size, images + count
    lines.append(f"| all | {images:,} | | {work / 1e15:.0f} | {volume / 1e12:.2f} |")

    lines += ["", "| made | GB, before compression |", "|---|---|"]
    lines.append(f"| rows, {images:,} × {DIM} float32 | {images * DIM * 4 / 1e9:.1f} |")
    lines.append(f"| cube, 721 × 1440 × {DIM} float32 | {721 * 1440 * DIM * 4 / 1e9:.2f} |")
    lines.append(f"| of it in cells with images, {CELLS:,} | {CELLS * DIM * 4 / 1e9:.2f} |")

    lines += ["", "| machine | encoding h | decoding h | reading h | bottleneck |"]
    lines += ["|---|---|---|---|---|"]
    for machine in MACHINES:
        seconds = {
            "encoding": work / machine.flops,
            "decoding": max(
                volume / (machine.cores * CORE_BYTES), images * PYTHON / machine.processes
            ),
            "reading": volume / machine.reading,
        }
        hours = " | ".join(f"{each / 3600:.2f}" for each in seconds.values())
        binding = max(seconds, key=lambda stage: seconds[stage])
        lines.append(f"| {machine.name} | {hours} | {binding} |")
    lines.append(f"| downloading the shards at 1 Gbit/s | | | {volume / 125e6 / 3600:.0f} | |")
    return "\n".join(lines)


if __name__ == "__main__":
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    print(report())
