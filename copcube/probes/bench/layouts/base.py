"""Common parts of the layouts: lists of samples, dates in names, metadata of images."""

import csv
import datetime
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from copcube.errors import ImageError, MissingFileError, OptionError, SourceError
from copcube.files.regular import open_regular
from copcube.images.naming import is_inside
from copcube.probes.bench.catalogue import Task
from copcube.probes.bench.layouts import rasters
from copcube.probes.bench.layouts.rasters import Raster
from copcube.probes.bench.samples import Place, Sample, Split

Area = Literal["official", "true"]
Codes = Literal["raw", "shifted"]

_EPOCH = datetime.date(1970, 1, 1)


@dataclass(eq=False)
class Layout:
    """Data of one task in its published layout; the base of all.

    Parameters
    ----------
    task : Task
        Which task.
    root : Path
        Folder of the data set.
    area : {"official", "true"}
        Area of a token as the official code states it, or the true one.
    codes : {"raw", "shifted"}
        Which codes the labels of Cloud-S3 have.
    """

    listing: ClassVar[str]
    """Name of the file that lists a split's samples, with ``{split}`` in it."""

    task: Task
    root: Path
    area: Area = "official"
    codes: Codes = "raw"
    _lists: dict[Split, list[tuple[str, Any]]] = field(default_factory=dict, init=False, repr=False)

    def names(self, split: Split) -> Sequence[str]:
        """Return the names of a split's samples, in the order of its file.

        Raises
        ------
        MissingFileError, SourceError
            If the file is not there, or is not of the published form.
        """
        return [name for name, _ in self._list(split)]

    def read(self, split: Split, index: int) -> Sample:
        """Read one sample; any number of threads may.

        Raises
        ------
        MissingFileError, SourceError, ImageError
            If a file does not exist, or is not of the published form.
        """
        return self._sample(split, *self._list(split)[index])

    def place(self, split: Split, index: int) -> Place:
        """Read the target of a sample's place, without its image.

        Raises
        ------
        OptionError
            If places of this task are far smaller than a cell, or unknown.
        MissingFileError, SourceError, ImageError, GridError
            If a file does not exist, or is not of the published form.
        """
        raise OptionError(
            f"{self.task.title} has no labels of whole cells; expected lc100cls-s3, biomass-s3, "
            "aq-no2-s5p or aq-o3-s5p"
        )

    def list_file(self, split: Split) -> Path:
        """Path of the file that lists a split's samples."""
        return self.root / self.listing.format(split=split)

    def _list(self, split: Split) -> list[tuple[str, Any]]:
        if split not in self._lists:
            self._lists[split] = self._listed(split)
        return self._lists[split]

    def _listed(self, split: Split) -> list[tuple[str, Any]]:
        """Read the name of every sample and what else is listed of it."""
        return [(name, None) for name in lines(self.list_file(split))]

    def _sample(self, split: Split, name: str, listed: Any) -> Sample:
        """Read a sample of which that is listed."""
        raise NotImplementedError

    def _raster(self, split: Split, path: str) -> Raster:
        """Read an image below the root that the split's list names."""
        bands = len(self.task.sensor.bands)
        return rasters.read(self.root / path, bands, self.list_file(split))

    def _band(self, split: Split, path: str, like: Raster | None = None) -> Raster:
        """Read a file of one band, of the size of another."""
        band = rasters.read(self.root / path, 1, self.list_file(split))
        if like is not None and (found := band.pixels.shape[1:]) != like.pixels.shape[1:]:
            rows, columns = like.pixels.shape[1:]
            raise ImageError(
                f"{self.root / path}: {found[0]} × {found[1]} pixels; expected {rows} × {columns}, "
                "as its image has: unpack the archive again"
            )
        return band

    def _metadata(
        self, raster: Raster, days: float, gsd: float | None = None
    ) -> NDArray[np.float64]:
        """(lon, lat, days, area of a token in km²) of an image as it is stored, (1, 4)."""
        area = self.task.nominal_area
        if self.area == "true":
            area = true_area(self.task, raster.pixels.shape[1:], gsd)
        return np.array([[raster.lon, raster.lat, days, area]], dtype=np.float64)


def true_area(task: Task, shape: tuple[int, ...], gsd: float | None = None) -> float:
    """Area of a token in km², once an image of a shape was resized to the task's size.

    Parameters
    ----------
    task : Task
        Its sensor says how many pixels a token has, and how large those of a file are.
    shape : tuple of int
        Rows and columns of the file.
    gsd : float, optional
        Size of the file's pixels in metres, where it is not that of the sensor.

    Examples
    --------
    >>> from copcube.probes.bench.catalogue import find
    >>> round(true_area(find("eurosat-s2"), (64, 64)), 5)
    0.00209
    """
    side = task.sensor.kernel * (task.sensor.gsd if gsd is None else gsd) / 1000
    # The more an image is enlarged, the less ground a token covers.
    return side**2 * math.prod(shape) / task.size**2


def lines(path: Path) -> list[str]:
    """Read a list of names, one a line, none of which leaves the folder.

    Raises
    ------
    MissingFileError, SourceError
        If it does not exist, is not text, or names paths outside.
    """
    found = []
    for number, line in enumerate(text_of(path).splitlines(), 1):
        if name := line.strip():
            found.append(inside(name, path, number))
    return found


def rows(path: Path, columns: int, *, header: bool) -> list[list[str]]:
    """Read a CSV file of a number of columns; paths are in the first.

    Raises
    ------
    MissingFileError, SourceError
        If it does not exist, is not text, or has other columns.
    """
    # A blank line, such as the last one, is a row without columns.
    table = [row for row in csv.reader(text_of(path).splitlines()) if row]
    for number, row in enumerate(table, 1):
        if len(row) != columns:
            raise SourceError(
                f"{path}: line {number} has {len(row)} columns; expected {columns}: is this the "
                "file of another task? unpack the archive again"
            )
        inside(row[0], path, number)
    return table[1:] if header else table


def by_name(path: Path, columns: int, *, header: bool) -> dict[str, list[str]]:
    """Read a CSV file whose first column names its rows: the other columns by name.

    Raises
    ------
    MissingFileError, SourceError
        As `rows`, or if two rows of a name differ.
    """
    found: dict[str, list[str]] = {}
    for name, *values in rows(path, columns, header=header):
        # The same line twice does no harm.
        if found.setdefault(name, values) != values:
            raise SourceError(f"{path}: {name} occurs twice, with different values; expected once")
    return found


def inside(name: str, path: Path, number: int | str) -> str:
    """Return a name that a line of a file gives, if it stays inside the folder.

    Raises
    ------
    SourceError
        If it does not.
    """
    if not is_inside(name):
        raise SourceError(
            f"{path}: line {number} names {name!r:.120}; expected a path inside the data set"
        )
    return name


def flags(values: Sequence[str], path: Path, name: str) -> NDArray[np.uint8]:
    """Return the columns 0 or 1 that say which classes a sample has.

    Raises
    ------
    SourceError
        If there is another value.
    """
    stripped = [value.strip() for value in values]
    if not set(stripped) <= {"0", "1"}:
        wrong = next(value for value in stripped if value not in ("0", "1"))
        raise SourceError(f"{path}: {name} has the label {wrong!r:.40}; expected 0 or 1")
    return np.array([value == "1" for value in stripped], dtype=np.uint8)


def days(text: str, path: str) -> float:
    """Whole days from 1970-01-01 to a date, YYYYMMDD or YYYY-MM-DD, in a file's name.

    Raises
    ------
    ImageError
        If it is not a date.
    """
    try:
        return float((datetime.date.fromisoformat(text) - _EPOCH).days)
    except ValueError as error:
        raise ImageError(
            f"{path}: found {text!r:.40} in place of a date in its name; expected one such as "
            "20200422"
        ) from error


def part(name: str, index: int, separator: str = "_") -> str:
    """Return one part of a name, empty if it has fewer."""
    parts = name.split(separator)
    return parts[index] if index < len(parts) else ""


def text_of(path: Path) -> str:
    """Read the text of a list of samples.

    Raises
    ------
    MissingFileError, SourceError
        If it does not exist, or is not text.
    """
    try:
        with open_regular(path, SourceError) as file:
            # Spreadsheets put a mark of byte order before what they save.
            return file.read().decode("utf-8-sig")
    except FileNotFoundError as error:
        raise MissingFileError(
            f"{path}: missing; it lists the samples of a split: unpack the whole archive again"
        ) from error
    except UnicodeDecodeError as error:
        raise SourceError(
            f"{path}: not text in UTF-8 ({error}); unpack the archive again"
        ) from error
