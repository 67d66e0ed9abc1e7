"""Pooled vectors of a task's images, computed once and kept in a folder.

    FOLDER/SPLIT-000000.npz      those of 256 samples: vectors, target, what was skipped

Files appear complete, so that a killed run continues where it was. `describe` records everything
that decides the vectors; a different description needs a different folder.
"""

import contextlib
import hashlib
import json
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from copcube.embedding.encoders import Encoder
from copcube.embedding.partition import not_finite
from copcube.errors import SourceError, in_a_line
from copcube.files.atomic import atomic_path, make_folder
from copcube.files.processors import THREADS
from copcube.lookahead import map_ahead
from copcube.probes.bench.catalogue import Task
from copcube.probes.bench.samples import (
    BROKEN,
    MOST_SKIPPED,
    SPLITS,
    Dataset,
    Sample,
    Split,
    ranges,
)
from copcube.progress import Bar, show

log = logging.getLogger("copcube")

FLIPS: tuple[tuple[int, ...], ...] = ((), (2,), (1,), (1, 2))
"""Axes of (bands, rows, columns) that are reversed in each variant of an image: none, columns,
rows, both. They are all that the official augmentation makes of it."""

_PART = 256


@dataclass(frozen=True, eq=False)
class Vectors:
    """Vectors of a split's samples, and their targets.

    Parameters
    ----------
    vectors : numpy.ndarray
        (variants, samples, dim) float32: the variants of `FLIPS`, or the first alone.
    target : numpy.ndarray
        (samples,) int64, the class; (samples, classes) uint8, several; or (samples,) float64,
        the mean of what a regression's pixels hold.
    skipped : dict
        Names of the samples left out, with reasons.
    """

    vectors: NDArray[np.float32]
    target: NDArray[Any]
    skipped: Mapping[str, str]


class _Read(NamedTuple):
    """A sample, ready for the encoder; or why there is none."""

    number: int
    image: NDArray[Any] | None
    metadata: NDArray[np.float64]
    target: NDArray[Any]
    why: str = ""


class _Embedded(NamedTuple):
    """A sample and the vectors of its variants, (variants, dim); None of what was not read."""

    sample: _Read
    vectors: NDArray[np.float32] | None


def describe(dataset: Dataset, encoder: Encoder) -> dict[str, Any]:
    """Record everything that decides the vectors of a data set.

    Where the encoder ran does not count: vectors agree to rounding.
    """
    task = dataset.task
    first = _first(dataset)
    area = np.nan if first is None else float(first.metadata[0, 3])
    return {
        "task": task.name,
        "kind": task.kind,
        "units": task.units,
        "sensor": task.described,
        "size": task.size,
        "area": str(area),
        "first": "" if first is None else _of_sample(first),
        "names": {split: _hashed("\n".join(dataset.names(split)).encode()) for split in SPLITS},
        "samples": {split: len(dataset.names(split)) for split in SPLITS},
        **{name: value for name, value in encoder.provenance.items() if name != "encoder_device"},
    }


def _first(dataset: Dataset) -> Sample | None:
    """Return the first sample to train with that can be read."""
    for index in range(len(dataset.names("train"))):
        with contextlib.suppress(*BROKEN):
            return dataset.read("train", index)
    return None


def _of_sample(sample: Sample) -> str:
    """Hash of a sample: names may be numbers that other data have as well."""
    arrays = [*sample.images, sample.metadata, sample.target]
    return _hashed(b"".join(np.ascontiguousarray(array).tobytes() for array in arrays))


def embedded(dataset: Dataset, encoder: Encoder, folder: str | Path) -> dict[Split, Vectors]:
    """Embed the images of a data set, except those whose vectors are in the folder.

    Images are resized to the task's size as they are stored and normalised afterwards: the
    weights of neighbours sum to 1, so the order does not matter.

    Parameters
    ----------
    dataset : Dataset
        The data of a task.
    encoder : Encoder
        What embeds the images; vectors are its pooled feature.
    folder : str or path-like
        Where vectors are kept, of this data set and encoder alone; made if it does not exist.

    Returns
    -------
    dict
        Vectors of each split, ``train`` with the four variants of `FLIPS`.

    Raises
    ------
    SourceError
        If more than a tenth of a split cannot be used.
    WriteError
        If the folder cannot be written.
    """
    here = Path(folder)
    make_folder(here)
    missing = {split: _missing(dataset, split, here) for split in SPLITS}
    total = sum(len(part) for parts in missing.values() for part in parts)
    if total:
        done = sum(len(dataset.names(split)) for split in SPLITS) - total
        with show(f"{dataset.task.title}, vectors", total + done, "samples", done) as bar:
            for split, parts in missing.items():
                _embed(dataset, encoder, split, parts, here, bar)
    return {split: _load(dataset, split, here) for split in SPLITS}


def can_be_used(dataset: Dataset, split: Split, index: int, why: str) -> bool:
    """Whether a sample that was left out can now be read.

    One that could be read before, and whose vector was not finite, will be left out again.
    """
    try:
        image = _resized(dataset.read(split, index).images[0], dataset.task)
    except BROKEN:
        return False
    return not_finite(image) != why


def _missing(dataset: Dataset, split: Split, here: Path) -> list[range]:
    """Parts of a split without a file, or with samples left out that can be read by now."""
    parts = ranges(len(dataset.names(split)), _PART)
    return [part for part in parts if not _is_done(dataset, split, part, here)]


def _is_done(dataset: Dataset, split: Split, part: range, here: Path) -> bool:
    path = _path(here, split, part.start)
    if not path.exists():
        return False
    with np.load(path, allow_pickle=False) as file:
        skipped = json.loads(str(file["skipped"]))
    # An unreadable file may be complete now, if the archive was fetched again.
    return all(_read(dataset, split, int(index)).image is None for index in skipped)


def _embed(
    dataset: Dataset,
    encoder: Encoder,
    split: Split,
    parts: list[range],
    here: Path,
    bar: Bar,
) -> None:
    """Embed parts of a split, and write the file of each when it is complete."""
    task = dataset.task
    flips = FLIPS if split == "train" else FLIPS[:1]
    # So that all variants of an image, which are embedded at once, fit the device.
    group = max(encoder.batch_size(task.sensor, task.size) // len(flips), 1)

    def read(index: int) -> _Read:
        return _read(dataset, split, index)

    def encode(batch: list[_Read]) -> list[_Embedded]:
        """Embed what could be read of a batch, all variants at once."""
        good = [(one.image, one.metadata) for one in batch if one.image is not None]
        vectors = np.empty((len(flips), 0, encoder.dim), np.float32)
        if good:
            images = [np.flip(image, axes) for axes in flips for image, _ in good]
            metadata = np.array([one for _, one in good] * len(flips))
            found = encoder(task.sensor, images, metadata)
            vectors = found.reshape(len(flips), len(good), -1)
        rows = iter(vectors.swapaxes(0, 1))
        return [_Embedded(one, None if one.image is None else next(rows)) for one in batch]

    indices = (index for part in parts for index in part)
    # On a CPU one call takes all cores; on a GPU one is computed while others are copied to it.
    streams = encoder.streams if encoder.streams > 1 else 0
    with (
        closing(map_ahead(read, indices, THREADS, ahead=2 * THREADS)) as samples,
        closing(map_ahead(encode, _batches(samples, parts, group), streams)) as batches,
    ):
        for part in parts:
            done: list[_Embedded] = []
            while len(done) < len(part):
                batch = next(batches)
                done += batch
                bar.advance(len(batch))
            _save(_path(here, split, part.start), done)


def _batches(samples: Iterator[_Read], parts: list[range], group: int) -> Iterator[list[_Read]]:
    """Collect samples in batches, each of one part."""
    for part in parts:
        for start in range(0, len(part), group):
            yield [next(samples) for _ in part[start : start + group]]


def _save(path: Path, part: list[_Embedded]) -> None:
    good: list[tuple[NDArray[Any], NDArray[np.float32]]] = []
    skipped: dict[int, str] = {}
    for sample, vectors in part:
        if vectors is None:
            skipped[sample.number] = sample.why
        elif not np.isfinite(vectors).all():
            assert sample.image is not None
            skipped[sample.number] = not_finite(sample.image)
        else:
            good.append((sample.target, vectors))
    arrays: dict[str, Any] = {"skipped": json.dumps(skipped)}
    if good:
        arrays["target"] = np.stack([target for target, _ in good])
        arrays["vectors"] = np.stack([vectors for _, vectors in good], axis=1)
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)


def _load(dataset: Dataset, split: Split, here: Path) -> Vectors:
    names = dataset.names(split)
    vectors, targets = [], []
    skipped: dict[str, str] = {}
    for start in range(0, len(names), _PART):
        with np.load(_path(here, split, start), allow_pickle=False) as file:
            skipped |= {names[int(i)]: why for i, why in json.loads(str(file["skipped"])).items()}
            if "vectors" in file:
                vectors.append(file["vectors"])
                targets.append(file["target"])
    title = f"{dataset.task.title}, {split}"
    if not vectors or len(skipped) > MOST_SKIPPED * len(names):
        name, why = next(iter(skipped.items()), ("", "the split is empty"))
        raise SourceError(
            f"{title}: {len(skipped)} of {len(names)} samples cannot be used, more than a tenth, "
            f"such as {name}: {why}"
        )
    if skipped:
        name, why = next(iter(skipped.items()))
        log.warning("%s: %d samples are left out, such as %s: %s", title, len(skipped), name, why)
    return Vectors(np.concatenate(vectors, axis=1), np.concatenate(targets), skipped)


def _read(dataset: Dataset, split: Split, index: int) -> _Read:
    """Read a sample and bring its image to the size that the encoder gets."""
    task = dataset.task
    try:
        sample = dataset.read(split, index)
        image = _resized(sample.images[0], task)
    except BROKEN as error:
        return _Read(index, None, np.full(4, np.nan), np.array(0), in_a_line(error))
    return _Read(index, image, sample.metadata[0], _target(sample, task))


def _target(sample: Sample, task: Task) -> NDArray[Any]:
    """Return the target of a whole image.

    Raises
    ------
    SourceError
        If it is not one of the task's classes.
    """
    target = sample.target
    if task.kind == "regression":
        with warnings.catch_warnings():  # of an image without anything known
            warnings.simplefilter("ignore", RuntimeWarning)
            return np.asarray(np.nanmean(target, dtype=np.float64))
    count = len(task.classes)
    if task.kind == "multilabel":
        fits = target.shape == (count,) and {*np.unique(target)} <= {0, 1}
        expected = f"{count} labels, 0 or 1"
    else:
        fits = target.shape == () and bool(0 <= target < count)
        expected = f"a class, 0 to {count - 1}"
    if not fits:
        raise SourceError(f"{task.title}, {sample.name}: label {target}; expected {expected}")
    return target


def _resized(image: NDArray[Any], task: Task) -> NDArray[Any]:
    if image.shape[1:] == (task.size, task.size):
        return image
    import torch

    from copcube.probes.bench.resizing import resized

    return resized(torch.from_numpy(image.astype(np.float32))[None], task.size)[0].numpy()


def _path(here: Path, split: Split, start: int) -> Path:
    return here / f"{split}-{start:06d}.npz"


def _hashed(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
