"""Levels of the encoder at the images of a dense task, and what is to be predicted of them.

Either images are embedded whenever they are asked for, augmented or not; or levels are computed
once, kept as float16, and read in any order.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from copcube.encoder import FrozenEncoder
from copcube.errors import OptionError
from copcube.files.atomic import atomic_path, writing
from copcube.files.processors import available_processors
from copcube.lookahead import map_ahead
from copcube.probes.bench.augment import Augmentation, Sampling
from copcube.probes.bench.resizing import resized, resized_target
from copcube.probes.bench.samples import SPLITS, Dataset, Sample, Split
from copcube.probes.bench.tasks import Task
from copcube.progress import show

Which = Literal["four", "last"]

_THREADS = min(available_processors(), 8)
_PART = 64
"""Images whose levels lie in one file."""
_HIGHEST = float(np.finfo(np.float16).max)


class Batch(NamedTuple):
    """Some images of a task, as a head gets them.

    Parameters
    ----------
    levels : list of Tensor
        Of (batch, dim, h, w) float32; of a change, later minus earlier.
    target : Tensor
        (batch, rows, columns): int64 classes, or float32 standardised, NaN where unknown.
    """

    levels: list[Tensor]
    target: Tensor


class Levels(Protocol):
    """Where the levels of a task come from."""

    width: int
    """Number of levels."""

    def batches(
        self,
        split: Split,
        batches: Sequence[Sequence[int]],
        generator: torch.Generator | None = None,
    ) -> Iterator[Batch]:
        """Yield batches of a split's samples, augmented if there is a generator to draw from."""


def numbers(depth: int, which: Which = "four") -> tuple[int, ...]:
    """Return the blocks whose outputs are the levels: 3, 5, 7 and 11 of 12.

    Examples
    --------
    >>> numbers(24)
    (7, 11, 15, 23)
    """
    four = tuple(depth * n // 12 - 1 for n in (4, 6, 8, 12))
    if min(four) < 0 or len({*four}) < len(four):
        raise OptionError(f"the encoder has {depth} blocks; expected 5 or more for four levels")
    return four if which == "four" else four[-1:]


class Streamed:
    """Levels of images that are read and embedded whenever they are asked for.

    Parameters
    ----------
    dataset : Dataset
        Of a task of segmentation, change or regression.
    encoder : FrozenEncoder
        The encoder; its device is where batches lie.
    which : {"four", "last"}
        Which levels.
    """

    def __init__(self, dataset: Dataset, encoder: FrozenEncoder, which: Which = "four") -> None:
        self.dataset, self.encoder = dataset, encoder
        self.numbers = numbers(encoder.depth, which)
        self.width = len(self.numbers)

    def batches(
        self,
        split: Split,
        batches: Sequence[Sequence[int]],
        generator: torch.Generator | None = None,
    ) -> Iterator[Batch]:
        """See `Levels`."""
        task = self.dataset.task

        def read(indices: Sequence[int]) -> list[Sample]:
            return [self.dataset.read(split, index) for index in indices]

        with closing(map_ahead(read, batches, _THREADS)) as ahead:
            for samples in ahead:
                target = targets(samples, task).to(self.encoder.device)
                images = [
                    self._images([sample.images[date] for sample in samples])
                    for date in range(len(samples[0].images))
                ]
                if generator is not None:
                    change = Augmentation.draw(len(samples), generator)
                    images = [change(x) for x in images]
                    target = change(target[:, None].float(), _sampling(task))[:, 0].to(target)
                metadata = torch.from_numpy(np.stack([sample.metadata for sample in samples]))
                found = [self._embedded(x, metadata[:, n]) for n, x in enumerate(images)]
                levels = found[0] if len(found) == 1 else found[1] - found[0]
                yield Batch(maps(levels), target)

    def _images(self, pixels: Sequence[np.ndarray]) -> Tensor:
        """Normalise images and bring them to the size that the encoder gets."""
        task = self.dataset.task
        # Files of one task may differ by a few pixels.
        one_shape = len({image.shape for image in pixels}) == 1
        groups = [pixels] if one_shape else [[image] for image in pixels]
        found = [resized(self.encoder.normalise(task.sensor, some), task) for some in groups]
        return torch.cat(found)

    def _embedded(self, images: Tensor, metadata: Tensor) -> Tensor:
        """Embed in steps that fit the device: (batch, levels, tokens, dim)."""
        task = self.dataset.task
        step = self.encoder.batch_size(task.sensor, task.size)
        found = [
            self.encoder.embed_normalised(
                task.sensor, images[a : a + step], metadata[a : a + step], levels=self.numbers
            )
            for a in range(0, len(images), step)
        ]
        # Tensors of inference mode cannot take part in the training of a head; their copy can.
        return torch.cat(found).clone()


class Cached:
    """Levels that are computed once and kept in a folder, without augmentation.

    Parameters
    ----------
    source : Streamed
        What computes them.
    folder : Path
        Where they lie, or will: of this data set, encoder and selection of levels alone.
    """

    def __init__(self, source: Streamed, folder: Path) -> None:
        self.width, self.folder = source.width, folder
        self.device = source.encoder.device
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        missing = [
            (split, start)
            for split in SPLITS
            for start in range(0, len(source.dataset.names(split)), _PART)
            if not self._path(split, start, "levels").exists()
        ]
        with show(f"levels of {source.dataset.task.title}", len(missing), "files") as bar:
            for split, start in missing:
                end = min(start + _PART, len(source.dataset.names(split)))
                (batch,) = source.batches(split, [range(start, end)])
                levels = torch.stack(batch.levels, dim=1).clamp(-_HIGHEST, _HIGHEST)
                self._save(split, start, "target", batch.target.cpu().numpy())
                # The levels come last: where they are, the file is complete.
                self._save(split, start, "levels", levels.half().cpu().numpy())
                bar.advance()

    def batches(
        self,
        split: Split,
        batches: Sequence[Sequence[int]],
        generator: torch.Generator | None = None,
    ) -> Iterator[Batch]:
        """See `Levels`; nothing is augmented."""

        def read(indices: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
            levels, target = (
                np.stack([self._opened(split, i, kind)[i % _PART] for i in indices])
                for kind in ("levels", "target")
            )
            return levels, target

        with closing(map_ahead(read, batches, _THREADS)) as ahead:
            for levels, target in ahead:
                x = torch.from_numpy(levels).to(self.device).float()
                yield Batch(list(x.unbind(1)), torch.from_numpy(target).to(self.device))

    def _opened(self, split: Split, index: int, kind: str) -> np.ndarray:
        return np.load(self._path(split, index - index % _PART, kind), mmap_mode="r")

    def _path(self, split: Split, start: int, kind: str) -> Path:
        return self.folder / f"{split}-{start:06d}-{kind}.npy"

    def _save(self, split: Split, start: int, kind: str, values: np.ndarray) -> None:
        path = self._path(split, start, kind)
        with atomic_path(path) as temporary, temporary.open("wb") as file:
            np.save(file, values)


def key_of(source: Streamed) -> str:
    """Name of the levels of a data set, an encoder and a selection: 16 digits of a hash."""
    dataset = source.dataset
    places = [dataset.read(split, 0).metadata.tolist() for split in SPLITS]
    said = {
        "task": repr(dataset.task),
        "names": {split: list(dataset.names(split)) for split in SPLITS},
        "places": places,
        "levels": source.numbers,
        "encoder": source.encoder.provenance,
    }
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:16]


def maps(levels: Tensor) -> list[Tensor]:
    """Lay tokens out as maps: (batch, levels, tokens, dim) to levels of (batch, dim, h, w)."""
    side = round(levels.shape[2] ** 0.5)
    return list(levels.transpose(2, 3).unflatten(3, (side, side)).unbind(1))


def targets(samples: Sequence[Sample], task: Task) -> Tensor:
    """Bring targets to the size of the images: int64 classes, or standardised float32."""
    stacked = torch.stack(
        [resized_target(torch.from_numpy(sample.target), task) for sample in samples]
    )
    if task.kind != "regression":
        return stacked.long()
    mean, std = task.target
    return (stacked.float() - mean) / std


def _sampling(task: Task) -> Sampling:
    """How a rotation takes the pixels of a target; those of gases are rotated as images are."""
    return "bilinear" if task.sensor.key.startswith("s5p") else "nearest"
