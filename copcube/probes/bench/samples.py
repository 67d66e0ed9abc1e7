"""Samples of a task's data set, whatever its published format."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from copcube.errors import ImageError, MissingFileError
from copcube.probes.bench.catalogue import Task

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")

BROKEN = (ImageError, MissingFileError)
"""Exceptions after which a sample is left out."""
MOST_SKIPPED = 0.1
"""Largest share of a split that may be left out."""


@dataclass(frozen=True, eq=False)
class Sample:
    """One sample of a task.

    Parameters
    ----------
    name : str
        As in the split's file.
    images : tuple of numpy.ndarray
        One image, or two of a change, earlier and later: (bands, rows, columns) in their stored
        dtype, float64 as float32, bands as in the task's sensor, of the size that the data set
        has, or of the task's where the official readers resize.
    metadata : numpy.ndarray
        (images, 4) float64: lon (-180 to 180) and lat in degrees, days since 1970-01-01, area of
        a token in km²; NaN where unknown.
    target : numpy.ndarray
        () int64, the class; (classes,) uint8, several; (rows, columns) uint8, a class per pixel,
        `Task.ignore` where it does not count; or (rows, columns) float32, a number per pixel, NaN
        where unknown.
    """

    name: str
    images: tuple[NDArray[Any], ...]
    metadata: NDArray[np.float64]
    target: NDArray[Any]


@dataclass(frozen=True, eq=False)
class Place:
    """Target of a place, to be predicted from anything but an image.

    Parameters
    ----------
    name : str
        As of the sample.
    outline : numpy.ndarray
        (corners, 2) float64 longitudes and latitudes in degrees, in their order around it.
    target : numpy.ndarray
        (classes,) uint8, or () float64, the mean of what is known of its pixels.
    """

    name: str
    outline: NDArray[np.float64]
    target: NDArray[Any]


class Dataset(Protocol):
    """The data of one task; several threads may read it."""

    task: Task

    def names(self, split: Split) -> Sequence[str]:
        """Return the names of a split's samples, in the order of its file."""

    def read(self, split: Split, index: int) -> Sample:
        """Read one sample."""

    def place(self, split: Split, index: int) -> Place:
        """Read the target of a sample's place, if the data set has it."""


def ranges(count: int, size: int) -> list[range]:
    """Divide the numbers below a count into ranges of one size, the last of what is left."""
    return [range(start, min(start + size, count)) for start in range(0, count, size)]
