"""Levels of the encoder for the images of a dense task, and their targets.

Either images are embedded whenever they are asked for, augmented or not; or levels are computed
once, kept as float16, and read in any order:

    FOLDER/SPLIT-000000-levels.npy     (64, levels, dim, h, w) float16, in the order of the split
    FOLDER/SPLIT-000000-target.npy     targets, as heads get them
    FOLDER/SPLIT-000000-skipped.json   why samples were left out, by their index; if there are any
"""

import itertools
import json
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from copcube.encoder import FrozenEncoder
from copcube.errors import OptionError, SourceError, in_a_line
from copcube.files.atomic import atomic_path, make_folder, write_text
from copcube.files.processors import THREADS
from copcube.lookahead import map_ahead
from copcube.probes.bench.augment import Augmentation, Mode
from copcube.probes.bench.catalogue import Task
from copcube.probes.bench.resizing import resized, resized_labels
from copcube.probes.bench.results import Which
from copcube.probes.bench.samples import (
    BROKEN,
    MOST_SKIPPED,
    SPLITS,
    Dataset,
    Sample,
    Split,
    ranges,
)
from copcube.progress import show

_PART = 64
"""Images whose levels lie in one file."""
_HIGHEST = float(np.finfo(np.float16).max)


class Batch(NamedTuple):
    """Some images of a task, as a head gets them.

    Parameters
    ----------
    indices : list of int
        Which of the split's samples: those that were asked for and can be read.
    levels : list of Tensor
        Of (batch, dim, h, w) float32; of a change, later minus earlier.
    target : Tensor
        (batch, rows, columns): int64 classes, or float32 standardised, NaN where unknown.
    """

    indices: list[int]
    levels: list[Tensor]
    target: Tensor


class Levels(Protocol):
    """Source of a task's levels."""

    width: int
    """Number of levels."""
    skipped: dict[tuple[Split, int], str]
    """Samples left out because they cannot be read, with reasons."""

    def batches(
        self,
        split: Split,
        batches: Sequence[Sequence[int]],
        generator: torch.Generator | None = None,
    ) -> Iterator[Batch]:
        """Yield batches of a split's samples, augmented if there is a generator to draw from."""


def numbers(depth: int, which: Which = "four") -> tuple[int, ...]:
    """Return the blocks whose outputs are the levels: 3, 5, 7 and 11 of 12.

    Raises
    ------
    OptionError
        If there are too few blocks.

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
    """Levels of images that are read and embedded at each request.

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
        self.skipped: dict[tuple[Split, int], str] = {}

    def batches(
        self,
        split: Split,
        batches: Sequence[Sequence[int]],
        generator: torch.Generator | None = None,
    ) -> Iterator[Batch]:
        """See `Levels`.

        Raises
        ------
        SourceError
            If more than a tenth of the split cannot be read.
        """

        def read(index: int) -> tuple[int, Sample | None]:
            try:
                return index, self.dataset.read(split, index)
            except BROKEN as error:
                self.skipped[split, index] = in_a_line(error)
                return index, None

        asked = itertools.chain.from_iterable(batches)
        with closing(map_ahead(read, asked, THREADS, ahead=2 * THREADS)) as ahead:
            for batch in batches:
                found = [next(ahead) for _ in batch]
                self._require(split)
                samples = [sample for _, sample in found if sample is not None]
                if samples:
                    indices = [index for index, sample in found if sample is not None]
                    yield Batch(indices, *self._embedded(samples, generator))

    def _require(self, split: Split) -> None:
        """Refuse a split with too many unreadable samples."""
        names = self.dataset.names(split)
        # A copy: the threads that read ahead may add to it meanwhile.
        lost = [index for of, index in [*self.skipped] if of == split]
        if len(lost) > MOST_SKIPPED * len(names):
            raise SourceError(
                f"{self.dataset.task.title}, {split}: {len(lost)} or more of {len(names)} samples "
                f"cannot be used, more than a tenth, such as {names[lost[0]]}: "
                f"{self.skipped[split, lost[0]]}"
            )

    def _embedded(
        self, samples: Sequence[Sample], generator: torch.Generator | None
    ) -> tuple[list[Tensor], Tensor]:
        """Levels and targets of some samples, which are augmented alike."""
        task, dates = self.dataset.task, range(len(samples[0].images))
        target = targets(samples, task).to(self.encoder.device)
        images = [
            resized(
                self.encoder.normalise(task.sensors[n], [s.images[n] for s in samples]), task.size
            )
            for n in dates
        ]
        if generator is not None:
            change = Augmentation.draw(len(samples), generator)
            images = [change(x) for x in images]
            target = change(target[:, None].float(), _mode(task))[:, 0].to(target)
        metadata = torch.from_numpy(np.stack([sample.metadata for sample in samples]))
        found = [self._tokens(images[n], metadata[:, n]) for n in dates]
        return maps(found[0] if len(found) == 1 else found[1] - found[0]), target

    def _tokens(self, images: Tensor, metadata: Tensor) -> Tensor:
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

    Raises
    ------
    SourceError
        If more than a tenth of a split cannot be read.
    WriteError
        If the folder cannot be written.
    """

    def __init__(self, source: Streamed, folder: Path) -> None:
        self.width, self.skipped, self.folder = source.width, source.skipped, folder
        self.device = source.encoder.device
        make_folder(folder)
        missing = {split: self._missing(source.dataset, split) for split in SPLITS}
        total = sum(len(part) for parts in missing.values() for part in parts)
        if total:
            with show(f"{source.dataset.task.title}, levels", total, "samples") as bar:
                for split, parts in missing.items():
                    for batch in source.batches(split, parts):
                        self._save(split, batch)
                        bar.advance(len(batch.indices))

    def batches(
        self,
        split: Split,
        batches: Sequence[Sequence[int]],
        generator: torch.Generator | None = None,
    ) -> Iterator[Batch]:
        """See `Levels`; nothing is augmented."""

        def read(asked: Sequence[int]) -> tuple[list[int], list[NDArray[Any]]]:
            indices = [index for index in asked if (split, index) not in self.skipped]
            kinds = ("levels.npy", "target.npy")
            files = {
                # Mapped, since a batch in random order needs few images of each file.
                (start, kind): np.load(self._path(split, start, kind), mmap_mode="r")
                for start in {_start(index) for index in indices}
                for kind in kinds
            }
            rows = [[files[_start(i), kind][i - _start(i)] for i in indices] for kind in kinds]
            return indices, [np.stack(row) for row in rows if row]

        with closing(map_ahead(read, batches, THREADS)) as ahead:
            for indices, arrays in ahead:
                if indices:
                    levels, target = (torch.from_numpy(x).to(self.device) for x in arrays)
                    yield Batch(indices, list(levels.float().unbind(1)), target)

    def _missing(self, dataset: Dataset, split: Split) -> list[range]:
        """Parts that are not there, or of which samples may have become readable."""
        return [
            part
            for part in ranges(len(dataset.names(split)), _PART)
            if not self._path(split, part.start, "levels.npy").exists()
            or self._path(split, part.start, "skipped.json").exists()
        ]

    def _save(self, split: Split, batch: Batch) -> None:
        start = _start(batch.indices[0])
        lost = {
            index: why
            for (of, index), why in [*self.skipped.items()]
            if of == split and _start(index) == start
        }
        rows = torch.tensor(batch.indices) - start
        # float16 ends at 65504; beyond would be infinity, which no head can learn from.
        levels = torch.stack(batch.levels, dim=1).clamp(-_HIGHEST, _HIGHEST).half()
        skipped = self._path(split, start, "skipped.json")
        if lost:
            write_text(skipped, json.dumps(lost, indent=1) + "\n")
        # The levels come last: where they are, the part is complete.
        for values, kind in ((batch.target, "target.npy"), (levels, "levels.npy")):
            # A row for every sample, read or not, so that its number says where it lies.
            whole = torch.zeros(_PART, *values.shape[1:], dtype=values.dtype)
            whole[rows] = values.cpu()
            with (
                atomic_path(self._path(split, start, kind)) as temporary,
                temporary.open("wb") as file,
            ):
                np.save(file, whole.numpy())
        if not lost:
            skipped.unlink(missing_ok=True)

    def _path(self, split: Split, start: int, kind: str) -> Path:
        return self.folder / f"{split}-{start:06d}-{kind}"


def _start(index: int) -> int:
    """First sample of the part in which a sample lies."""
    return index - index % _PART


def maps(levels: Tensor) -> list[Tensor]:
    """Lay tokens out as maps: (batch, levels, tokens, dim) to levels of (batch, dim, h, w)."""
    side = round(levels.shape[2] ** 0.5)
    return [x.reshape(len(x), -1, side, side) for x in levels.transpose(2, 3).unbind(1)]


def targets(samples: Sequence[Sample], task: Task) -> Tensor:
    """Bring targets to the size of the images: int64 classes, or standardised float32.

    Raises
    ------
    SourceError
        If there is a class that the task does not have.
    """
    stacked = torch.from_numpy(np.stack([sample.target for sample in samples]))
    stacked = resized_labels(stacked, task.size)
    if task.kind != "regression":
        classes = stacked.long()
        count = len(task.classes)
        wrong = (classes < 0) | (classes >= count)
        if task.ignore is not None:
            wrong &= classes != task.ignore
        if wrong.any():
            which = int(wrong.flatten(1).any(1).nonzero()[0, 0])
            code = int(classes[which][wrong[which]][0])
            raise SourceError(
                f"{task.title}, {samples[which].name}: class {code}; expected 0 to {count - 1}"
                + (f", or {task.ignore} where it does not count" if task.ignore is not None else "")
            )
        return classes
    mean, std = task.target
    return (stacked.float() - mean) / std


def _mode(task: Task) -> Mode:
    """How a rotation takes the pixels of a target; those of gases are rotated as images are."""
    return "bilinear" if task.sensor.key.startswith("s5p") else "nearest"
