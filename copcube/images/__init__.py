"""Where images come from: a source lists partitions, a partition yields images.

A **source** is a GeoTIFF tree or a set of WebDataset shards of Copernicus-Pretrain. Its
**partitions** hold whole cells, so a cell's images never span two. Reading a partition
gives **jobs**: small callables, in a fixed order, each of which decodes one file or
member when called, on any thread, and returns its images and what it had to reject.
"""

import calendar
import datetime
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from numpy.typing import NDArray

from copcube.errors import OptionError, SourceError
from copcube.modalities import select

__all__ = ["Image", "Job", "Partition", "Rejected", "Selection", "Source", "open_source"]


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
        (bands, rows, columns) in its stored dtype, perhaps read-only; NaN or, for integers,
        0 in every band where there is no data.
    origin : str
        File, and member, that it was read from.
    rescaled : bool
        Whether bands Oa01 and Oa10 came 1e9 too large and were corrected.
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
    """Something that was left out, and why.

    Parameters
    ----------
    file, member : str
        File, relative to the source's root, and member inside it ("" where there is none).
    kind : str
        ``broken``: cannot be read as what it should be; ``stale``: metadata names another
        cell; ``duplicate``: an image of the same cell, modality, patch and date came
        before; ``empty``: no valid pixel.
    reason : str
        What was expected and what was found.
    images : int
        How many images that concerns, as far as known.
    """

    file: str
    member: str
    kind: Literal["broken", "stale", "duplicate", "empty"]
    reason: str
    images: int = 1


Job = Callable[[], list[Image | Rejected]]


@dataclass(frozen=True)
class Partition:
    """A run of whole cells: the unit of embedding.

    Parameters
    ----------
    name : str
        Unique within its source, fit for a file name.
    paths : tuple of str
        Files of this partition, relative to the source's root.
    images : int or None
        How many images it holds; None where only reading can tell.
    cells : int or None
        How many cells it holds; None where only reading can tell.
    """

    name: str
    paths: tuple[str, ...]
    images: int | None = None
    cells: int | None = None


@dataclass(frozen=True)
class Selection:
    """Which images of a source to read.

    Parameters
    ----------
    modalities : tuple of str
        Keys, in the fixed order.
    start, end : str or None
        First and last date, YYYYMMDD, both inclusive; images without a date (the DEM)
        always pass.
    """

    modalities: tuple[str, ...]
    start: str | None = None
    end: str | None = None

    @classmethod
    def of(cls, modalities: Iterable[str] | None = None, dates: str | None = None) -> "Selection":
        """Make a selection from keys and a text such as ``2021`` or ``2021-03..2021-08-15``.

        Raises
        ------
        OptionError
            If a key is unknown, or the dates cannot be read or run backwards.

        Examples
        --------
        >>> Selection.of(["dem"], "2021-02")
        Selection(modalities=('dem',), start='20210201', end='20210228')
        """
        start, end = (None, None) if dates is None else _span(dates)
        return cls(select(modalities), start, end)

    def admits(self, date: str | None) -> bool:
        """Whether an image of this date is selected."""
        if date is None:
            return True
        return (self.start is None or self.start <= date) and (self.end is None or date <= self.end)


def _span(text: str) -> tuple[str | None, str | None]:
    first, dots, last = text.partition("..")
    start = _edge(first, last=False) if first or not dots else None
    end = _edge(last if dots else first, last=True) if last or not dots else None
    if start is not None and end is not None and end < start:
        raise OptionError(f"dates {text!r} end before they start")
    return start, end


def _edge(text: str, *, last: bool) -> str:
    """First or last day, YYYYMMDD, of a year, month or day such as 2021, 2021-02, 2021-02-03."""
    match = re.fullmatch(r"(\d{4})(?:-?(\d{2}))?(?:-?(\d{2}))?", text.strip())
    try:
        if match is None:
            raise ValueError
        year = int(match[1])
        month = int(match[2] or (12 if last else 1))
        day = int(match[3] or (calendar.monthrange(year, month)[1] if last else 1))
        return datetime.date(year, month, day).strftime("%Y%m%d")
    except ValueError:
        raise OptionError(
            f"{text!r} is not a date; expected a year, month or day, or two of them around "
            "'..', such as 2021, 2021-03..2021-08 or 2021-03-01..2021-08-15"
        ) from None


class Source(Protocol):
    """A place that images are read from."""

    @property
    def root(self) -> str:
        """Path or address that every `Partition.paths` is relative to."""

    @property
    def layout(self) -> Literal["geotiff", "webdataset"]:
        """Published layout of the files."""

    @property
    def reader(self) -> "Source":
        """A source that reads the same partitions and lists none: small, to be sent to workers."""

    def partitions(self) -> list[Partition]:
        """List the partitions, in a fixed order."""

    def fingerprint(self) -> str:
        """SHA-256 over the names and sizes of the source's files."""

    def count(self, partition: Partition, selection: Selection) -> Counter[str]:
        """Count the selected images of a partition by modality, without decoding any."""

    def jobs(self, partition: Partition, selection: Selection) -> Iterator[Job | Rejected]:
        """Decoding jobs of a partition, grouped by cell or by modality.

        The images of one modality always come in the same order. What can be rejected
        without decoding comes as it is.
        """


def open_source(path: str | Path) -> Source:
    """Recognise and open a GeoTIFF tree or WebDataset shards.

    Parameters
    ----------
    path : str or Path
        A GeoTIFF tree, an ``fnames_*.json.gz`` beside or inside one, a shard, a folder of
        shards, a glob, or a brace pattern such as ``example-{000000..000009}.tar``; shards
        may also lie at addresses, such as ``s3://bucket/shards`` or
        ``https://host/example-{000000..000009}.tar``.

    Raises
    ------
    SourceError
        If nothing is there or nothing in it is recognised.
    StorageError
        If an object store cannot be reached or denies access.
    """
    from copcube.images import geotiff, webdataset

    for layout in (webdataset, geotiff):
        source: Source | None = layout.recognise(str(path))  # no address goes past the first
        if source is not None:
            return source
    where = Path(path)
    if not where.exists():
        raise SourceError(f"{path}: no such file or folder")
    found = "an empty folder" if where.is_dir() and not any(where.iterdir()) else "neither"
    raise SourceError(
        f"{path}: expected a GeoTIFF tree of Copernicus-Pretrain (folders such as "
        f"'s2_toa_mix/images' or 'Sentinel-2/images') or WebDataset shards ('*.tar'), "
        f"found {found}; `copcube sample DIR` writes a small example of either"
    )
