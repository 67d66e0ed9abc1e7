"""Where images come from: a source lists partitions, a partition yields images.

A **source** is a GeoTIFF tree or a set of WebDataset shards of Copernicus-Pretrain. Its
**partitions** hold whole cells, so a cell's images never span two. Reading a partition gives
**jobs**: small callables, in a fixed order, each of which decodes one file or member when called,
on any thread, and returns its images and what it rejected.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from numpy.typing import NDArray

from copcube.selection import Selection


@dataclass(frozen=True)
class Image:
    """One image in the published tensor form.

    Parameters
    ----------
    grid_id : int
        Published id of its cell.
    modality : str
        Key of its modality.
    local_id : str or None
        Published text form of its local patch; None for modalities without.
    date : str or None
        YYYYMMDD; None for the DEM.
    lon, lat : float
        Centre in degrees, longitude in [-180, 180): the local patch's, else the cell's.
    pixels : numpy.ndarray
        (bands, rows, columns) in its stored dtype, possibly read-only; NaN or, for integers, 0 in
        every band where there is no data.
    origin : str
        File, and member, it was read from.
    rescaled : bool
        Whether bands Oa01 and Oa10 were 1e9 times too large and were corrected.
    """

    grid_id: int
    modality: str
    local_id: str | None
    date: str | None
    lon: float
    lat: float
    pixels: NDArray[Any]
    origin: str
    rescaled: bool = False


@dataclass(frozen=True)
class Rejected:
    """Something left out, and why.

    Parameters
    ----------
    file, member : str
        File, relative to the source's root, and member inside it ("" if there is none).
    kind : str
        ``broken``: cannot be read as what it should be; ``stale``: it is stored with a cell other
        than the one it names; ``duplicate``: an image of the same cell, modality, patch and date
        came before; ``empty``: no valid pixel; ``killer``: its partition killed the process that
        embedded it.
    reason : str
        What was expected and what was found.
    images : int
        Number of images left out, as far as known.
    """

    file: str
    member: str
    kind: Literal["broken", "stale", "duplicate", "empty", "killer"]
    reason: str
    images: int = 1


Job = Callable[[], list[Image | Rejected]]


@dataclass(frozen=True)
class Partition:
    """Consecutive whole cells: the unit of embedding.

    Parameters
    ----------
    name : str
        Unique within its source, valid in a file name.
    paths : tuple of str
        Files of this partition, relative to the source's root.
    images : int or None
        How many images it holds; None if that is known only after reading.
    cells : int or None
        How many cells it holds; None if that is known only after reading.
    """

    name: str
    paths: tuple[str, ...]
    images: int | None = None
    cells: int | None = None


class Source(Protocol):
    """Where images are read from: a GeoTIFF tree or a set of shards."""

    @property
    def root(self) -> str:
        """Path or address to which every `Partition.paths` is relative."""

    @property
    def layout(self) -> Literal["geotiff", "webdataset"]:
        """Published layout of the files."""

    @property
    def reader(self) -> "Source":
        """The same source without its list of files, small enough to send to workers."""

    def partitions(self) -> list[Partition]:
        """List the partitions, in a fixed order."""

    def fingerprint(self) -> str:
        """SHA-256 over the names and sizes of the source's files."""

    def count(self, partition: Partition, selection: Selection) -> Counter[str]:
        """Count the selected images of a partition by modality, without decoding any."""

    def jobs(self, partition: Partition, selection: Selection) -> Iterator[Job | Rejected]:
        """Yield the decoding jobs of a partition, grouped by cell or by modality.

        The images of one modality always come in the same order. For what is rejected without being
        decoded, a `Rejected` is yielded instead of a job.
        """
