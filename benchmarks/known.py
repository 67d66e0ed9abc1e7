"""Shards whose cube is known in closed form, and the encoder that makes it so.

Every cell has a few dates of CO and NO2, and one of them twice, as published tensors are
padded. The pixels of an image are all one number, which follows from cell, modality and date;
the encoder looks its vector up by that number, and puts lon, lat and days first. So the mean
of a cell can be written down, and the spread with it. Other scripts import this one, and so do
the workers they start.
"""

import io
import json
import multiprocessing
import tarfile
import time
import zlib
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from copcube import grid
from copcube.dates import since_1970
from copcube.modalities import ORDER

DATES = tuple(f"2021{month:02d}01" for month in range(1, 6))
KEYS = {"s5p_co": 3, "s5p_no2": 2}
"""Fewest dates of a modality; some cells have one or two more."""

_SIDE = 28
_NUMBERS = 1021


# Images.


def images(ids, key):
    """How many dates of a modality cells have."""
    return KEYS[key] + (ids if key == "s5p_co" else ids // 3) % 3


def numbers(ids, key, date):
    """Value of the pixels of images; the date by its place in `DATES`."""
    return (ids * 13 + date * 101 + ORDER[key] * 4099) % 65521


def write_shards(folder, ids, per_shard=100):
    """Write shards in the published layout, on all processors; their number."""
    folder.mkdir(parents=True)
    pieces = [ids[i : i + per_shard] for i in range(0, len(ids), per_shard)]
    paths = [folder / f"example-{i:06d}.tar" for i in range(len(pieces))]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(mp_context=context) as pool:
        list(pool.map(_write_shard, paths, pieces, chunksize=8))
    return len(pieces)


def _write_shard(path, ids):
    with open(path, "wb") as shard:
        for cell in ids.tolist():
            text, names = grid.format_cell(cell), {}
            for key in KEYS:
                dates = [*range(int(images(cell, key))), 0]
                pixels = np.empty((len(dates), 1, _SIDE, _SIDE), np.float32)
                pixels[:] = numbers(cell, key, np.array(dates)).reshape(-1, 1, 1, 1)
                _add(shard, f"{cell:07d}.{key}.pth", _saved(pixels))
                names[key] = [[f"{text}/{DATES[i]}"] for i in dates]
            _add(shard, f"{cell:07d}.json", json.dumps(names).encode())
        shard.write(bytes(2 * tarfile.BLOCKSIZE))


def _add(shard, name, data):
    member = tarfile.TarInfo(name)
    member.size = len(data)
    shard.write(member.tobuf(tarfile.USTAR_FORMAT) + data + bytes(-len(data) % 512))


def _saved(pixels):
    """What torch.save writes, its data and their checksum put into a file saved before."""
    template, start, sums = _template(pixels.shape)
    data, saved = pixels.tobytes(), bytearray(template)
    saved[start : start + len(data)] = data
    for at in sums:
        saved[at : at + 4] = zlib.crc32(data).to_bytes(4, "little")
    return bytes(saved)


@lru_cache
def _template(shape):
    import torch

    pixels = np.random.default_rng(0).random(shape, np.float32)
    buffer = io.BytesIO()
    torch.save(torch.from_numpy(pixels), buffer)
    saved, data = buffer.getvalue(), pixels.tobytes()
    start, crc = saved.index(data), zlib.crc32(data).to_bytes(4, "little")
    sums = [i for i in range(len(saved)) if saved.startswith(crc, i)]
    return saved, start, [i for i in sums if not start <= i < start + len(data)]


# Vectors.


@lru_cache
def _table(dim):
    return (np.arange(_NUMBERS)[:, None] * np.arange(1, dim + 1) % _NUMBERS).astype(np.float32)


class Stub:
    """The encoder; it sleeps for every image as long as it is told to."""

    streams = 1

    def __init__(self, dim, seconds):
        self.dim, self.seconds = dim, seconds
        self.provenance = {"encoder": "known", "encoder_trained": 0, "encoder_sha256": "none"}

    def batch_size(self, modality, size):
        return 64

    def __call__(self, modality, pixels, metadata):
        time.sleep(self.seconds * len(pixels))
        number = np.array([image[0, 0, 0] for image in pixels])
        assert (number == [image[-1, -1, -1] for image in pixels]).all()
        vectors = _table(self.dim)[number.astype(int) % _NUMBERS]
        vectors[:, :3] = metadata[:, :3]
        return vectors


@dataclass(frozen=True)
class StubSpec:
    """Description of a `Stub` that travels to workers."""

    dim: int = 768
    seconds: float = 0.0

    def load(self):
        return Stub(self.dim, self.seconds)


# The cube.


def check(cube, ids, dim):
    """Compare a cube, cell by cell, with what it must be; largest relative errors."""
    import xarray as xr

    world = xr.open_zarr(cube, chunks=None)
    row, col = grid.row_col(ids)
    errors = {"mean": 0.0, "spread": 0.0}
    for band in range(grid.N_BANDS):
        rows = grid.Block(band, 0).rows
        inside = (row >= rows.start) & (row < rows.stop)
        at = row[inside] - rows.start, col[inside]
        part = world.isel(lat=rows)
        mean, spread, count = expected(ids[inside], dim)
        vectors, found = part.embedding.values, part.n_images_by_modality
        assert np.isfinite(vectors[..., 0]).sum() == inside.sum(), f"band {band}: other cells"
        assert part.n_images.values.sum() == sum(n.sum() for n in count.values())
        for key, n in count.items():
            by_modality = found.isel(modality=ORDER[key]).values
            assert (by_modality[at] == n).all(), f"band {band}: counts of {key} differ"
        for name, ours, known in (
            ("mean", vectors[at], mean),
            ("spread", part.spread.values[at], spread),
        ):
            error = np.abs(ours - known) / (np.abs(known) + 1)
            errors[name] = max(errors[name], float(error.max(initial=0)))
    return errors


def expected(ids, dim):
    """Mean (n, dim) and spread (n,) of cells, float64, and images by modality."""
    lat, lon = (ids // 1440) / 4 - 90, (ids % 1440) / 4 - 180
    mean, square = np.zeros((len(ids), dim)), np.zeros(len(ids))
    count = {key: images(ids, key) for key in KEYS}
    for key, n in count.items():
        for date in range(int(n.max(initial=0))):
            x = _table(dim)[numbers(ids, key, date) % _NUMBERS].astype(float)
            x[:, :3] = np.stack([lon, lat, np.full(len(ids), since_1970(DATES[date]))], 1)
            weight = (date < n) / (n * len(count))
            mean += weight[:, None] * x
            square += weight * (x**2).sum(1)
    return mean, np.sqrt(square - (mean**2).sum(1)), count
