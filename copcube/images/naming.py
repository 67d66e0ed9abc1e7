"""Identifying the image in a file or part of a tensor by its path, or its name beside the tensor.

A file of a GeoTIFF tree lies at ``<folder>/<cell>[/<local patch>]/<name with date>``; an
image of a tensor is called ``<cell>[/<local patch>][/<date>]``. Both give an `Identity`,
which makes the `Image` once its pixels are read. Published texts name longitudes before
latitudes; `grid` returns latitudes first.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from copcube import grid
from copcube.dates import yyyymmdd
from copcube.errors import ImageError, OptionError
from copcube.images.base import Image, Rejected
from copcube.images.tensor_form import has_valid_pixel, mend, unwrapped
from copcube.modalities import MODALITIES, Modality, rank

Index = tuple[int, ...]
"""Where in a tensor an image lies."""

Order = tuple[tuple[int, str], int, str, str]


@dataclass(frozen=True)
class Identity:
    """What identifies an image: two images that agree in all four fields are duplicates.

    Parameters
    ----------
    modality : str
        Key of its modality.
    grid_id : int
        Published id of its cell.
    local_id : str or None
        Published text form of its local patch; None for modalities without patches.
    date : str or None
        YYYYMMDD; None for the DEM.
    """

    modality: str
    grid_id: int
    local_id: str | None = None
    date: str | None = None

    @classmethod
    def of(cls, modality: Modality, texts: list[str], date: str | None) -> "Identity":
        """Make an identity of published texts.

        Parameters
        ----------
        modality : Modality
            What the image shows.
        texts : list of str
            Its cell and, if the modality is local, its local patch.
        date : str or None
            YYYYMMDD; None for the DEM.

        Raises
        ------
        ImageError, GridError
            If a text does not have the published form, or contradicts itself.
        """
        local_id = texts[1] if modality.local else None
        if local_id is not None:
            _parse_local(local_id)
        return cls(modality.key, _parse_cell(texts[0]), local_id, date and _check_date(date))

    @property
    def order(self) -> Order:
        """Sort key of images: modality, cell, local patch, date."""
        return rank(self.modality), self.grid_id, self.local_id or "", self.date or ""

    def image(
        self, pixels: NDArray[Any], modality: Modality, file: str, member: str = ""
    ) -> Image | Rejected:
        """Make the image from its pixels, if any of them holds data.

        Parameters
        ----------
        pixels : numpy.ndarray
            (bands, S, S), the published tensor form, in the stored dtype.
        modality : Modality
            That of the key.
        file, member : str
            Where they were read from.
        """
        if not has_valid_pixel(pixels, modality):
            return Rejected(file, member, "empty", f"{self}: no valid pixel")
        pixels, rescaled = mend(pixels, modality)
        lat, lon = _parse_local(self.local_id) if self.local_id else _centre(self.grid_id)
        return Image(
            grid_id=self.grid_id,
            modality=self.modality,
            local_id=self.local_id,
            date=self.date,
            lon=-180.0 if lon == 180 else lon,  # a local patch may name either
            lat=lat,
            pixels=pixels,
            origin=f"{file}:{member}" if member else file,
            rescaled=rescaled,
        )

    def __str__(self) -> str:
        cell = grid.format_cell(self.grid_id)
        return " ".join(filter(None, (self.modality, cell, self.local_id, self.date)))


# The images of a cell are read together, so few texts are in use at a time.
_parse_cell = lru_cache(maxsize=256)(grid.parse_cell)
_parse_local = lru_cache(maxsize=4096)(grid.parse_local)
_centre = lru_cache(maxsize=256)(grid.centre)


@lru_cache(maxsize=4096)
def _check_date(text: str) -> str:
    try:
        if text != yyyymmdd(text):  # which reads other forms too
            raise OptionError
    except OptionError:
        raise ImageError(f"{text!r} is not a date; expected a day such as 20210301") from None
    return text


def to_stored(pixels: NDArray[Any], modality: Modality) -> NDArray[Any]:
    """Convert pixels to the dtype of a modality's images.

    Parameters
    ----------
    pixels : numpy.ndarray
        As read.
    modality : Modality
        What they show.

    Returns
    -------
    numpy.ndarray
        uint16 for Sentinel-2, whose published tensors are int16 and wrap above 32767;
        float32 for all others.

    Raises
    ------
    ImageError
        If the dtype is not possible for the modality.
    """
    dtype = pixels.dtype
    if dtype == np.float32 and modality.tensor_dtype == "float32":
        return pixels
    if modality.tensor_dtype == "int16":
        if dtype not in (np.dtype("uint16"), np.dtype("int16")):
            raise ImageError(f"expected {modality.key} as uint16 or int16, found {dtype}")
        return unwrapped(pixels, modality)
    if not (np.issubdtype(dtype, np.floating) or np.issubdtype(dtype, np.integer)):
        raise ImageError(f"expected {modality.key} as real numbers, found {dtype}")
    with np.errstate(over="ignore"):
        return pixels.astype(np.float32, copy=False)


# From a path.


FOLDERS: dict[str, Modality] = {
    **{folder: modality for modality in MODALITIES.values() for folder in modality.folders},
    "s5p_l3_wgs/images/NO2_column_number_density": MODALITIES["s5p_no2"],
    "Sentinel-5P/images/NO2_column_number_density": MODALITIES["s5p_no2"],
    "Copernicus-DEM/images": MODALITIES["dem"],
    "dem/images": MODALITIES["dem"],
}
"""Modality by folder; if an image is in several folders, the file in the first is read."""


def folders_of(sensors: Iterable[Modality]) -> dict[str, Modality]:
    """Modality or user's own sensor, by folder."""
    return FOLDERS | {folder: sensor for sensor in sensors for folder in sensor.folders}


def is_inside(path: str) -> bool:
    """Whether a relative path stays inside the root, without "..", "." or backslashes."""
    return path.isprintable() and not any(
        part in ("", ".", "..") or "\\" in part for part in path.split("/")
    )


def folder_of(path: str, folders: Mapping[str, Modality] = FOLDERS) -> str | None:
    """Folder of a modality that contains a relative path; None if there is none."""
    parts = path.split("/")
    return next((f for n in (3, 2, 1) if (f := "/".join(parts[:n])) in folders), None)


def from_path(path: str, folders: Mapping[str, Modality] = FOLDERS) -> Identity:
    """Identify the image of a file by its relative path alone.

    Parameters
    ----------
    path : str
        Path in the tree.
    folders : mapping of str to Modality
        Modality of each folder; by default the published ones.

    Raises
    ------
    ImageError, GridError
        If the path leaves the tree, or its folder, cell, local patch or date is not one.
    """
    folder = folder_of(path, folders)
    if not is_inside(path):
        raise ImageError(f"{path!r} is not a path inside the tree")
    if folder is None:
        raise ImageError(
            f"{path!r} is not in the folder of a modality, such as 's2_toa_mix/images'"
        )
    modality = folders[folder]
    *texts, name = path[len(folder) + 1 :].split("/")
    if len(texts) != 1 + modality.local:
        expected = "<cell>/<local patch>/<file>" if modality.local else "<cell>/<file>"
        raise ImageError(f"expected {folder}/{expected}, found {path!r}")
    return Identity.of(modality, texts, _date(name, modality))


_DATES = {
    "s5p": (r"(\d{4})-(\d{2})-(\d{2})", "2021-03-01_2021-04-01.tif"),
    "published": (r"(\d{8})T", "…20210301T…"),
    # Eight digits may be a number of anything else, such as of a scene.
    "own": (
        r"(?<!\d)((?:19|20)\d{2})-?(0[1-9]|1[0-2])-?(0[1-9]|[12]\d|3[01])(?!\d)",
        "2021-03-01.tif or …_20210301_….tif",
    ),
}
"""Pattern of the date in the name of a file, and an example."""


def _date(name: str, modality: Modality) -> str | None:
    if modality.dates == 1:
        return None
    published = "s5p" if modality.key.startswith("s5p") else "published"
    pattern, expected = _DATES[published if modality.key in MODALITIES else "own"]
    # `\d` matches the digits of every script without re.ASCII.
    match = re.search(pattern, name, re.ASCII)
    if match is None:
        raise ImageError(f"found no date in the name {name!r}; expected one such as {expected}")
    return "".join(match.groups())


# From the names beside a tensor.


def from_names(names: Any, modality: Modality) -> tuple[Index, list[tuple[Identity, Index]]]:
    """Leading axes of a tensor and every image in it, from the names beside it.

    Parameters
    ----------
    names : object
        Unpacked JSON: nested lists of names, of any content.
    modality : Modality
        What the tensor shows.

    Returns
    -------
    lead : tuple of int
        Length of the axes before the bands: local patches, dates.
    images : list of (Identity, tuple of int)
        Every image and its index along these axes.

    Raises
    ------
    ImageError, GridError
        If the names are not nested like the tensor, or do not have the published form.
    """
    if names is None:
        raise ImageError(
            f"it does not name the images of {modality.key}; expected a list under that key"
        )
    depth = int(modality.local) + int(modality.dates > 1)
    lead: list[int] = []
    level = names
    for _ in range(depth):
        if not (isinstance(level, list) and level):
            raise ImageError(f"{modality.key}: expected lists {depth} deep, found {names!r:.80}")
        lead.append(len(level))
        level = level[0]
    images = []
    for index in np.ndindex(*lead):
        name = names
        for axis, i in enumerate(index):
            if not (isinstance(name, list) and len(name) == lead[axis]):
                raise ImageError(
                    f"{modality.key}: expected {' × '.join(map(str, lead))} names, "
                    f"found {name!r:.80} among them"
                )
            name = name[i]
        images.append((_from_name(_leaf(name), modality), index))
    return tuple(lead), images


def _leaf(name: Any) -> str:
    """Take a name out of the lists of length one that collation adds around it."""
    for _ in range(2):
        if isinstance(name, list) and len(name) == 1:
            name = name[0]
    if not isinstance(name, str):
        raise ImageError(f"expected the name of an image, found {name!r:.80}")
    return name


def _from_name(name: str, modality: Modality) -> Identity:
    parts = name.split("/")
    if len(parts) != 1 + modality.local + (modality.dates > 1):
        form = "<cell>" + "/<local patch>" * modality.local + "/<date>" * (modality.dates > 1)
        raise ImageError(f"{modality.key}: expected a name {form}, found {name!r:.80}")
    return Identity.of(modality, parts, parts[-1] if modality.dates > 1 else None)
