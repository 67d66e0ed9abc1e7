"""Images from a GeoTIFF tree of Copernicus-Pretrain, with or without its JSON listing.

Cell, modality and date of a file follow from its path, so a partition only holds paths, and a path
is checked at each use.
"""

import errno
import hashlib
import itertools
import logging
import os
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from copcube import grid
from copcube.errors import CopcubeError, ImageError, OptionError, SourceError
from copcube.files import limits
from copcube.files.limits import demand
from copcube.files.regular import open_regular, require_open
from copcube.images.base import Image, Job, Partition, Rejected
from copcube.images.listing import listed
from copcube.images.naming import (
    Identity,
    Order,
    folder_of,
    folders_of,
    from_path,
    is_inside,
)
from copcube.images.raster import MASK, opened_bytes, places_of, read, reason
from copcube.images.tensor_form import to_tensor_form
from copcube.modalities import Modality
from copcube.selection import Selection

_DEPTH = 4
_IMAGES_PER_PARTITION = 1000
_UNPLACED, _STALE = "unplaced", "stale"
_NO_FILE = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG)

_log = logging.getLogger(__name__)


def recognise(path: str, sensors: tuple[Modality, ...] = ()) -> "GeoTiffSource | None":
    """Open a GeoTIFF tree, or the JSON listing beside it; return None if it is neither.

    Parameters
    ----------
    path : str
        A folder that holds folders such as ``s2_toa_mix/images`` or ``Sentinel-2/images``, directly
        or one level below, or a listing ``fnames_*.json.gz`` in such a folder. In a folder with
        exactly one listing, the listing decides.
    sensors : tuple of Modality
        Users' own sensors, whose folders count too.

    Raises
    ------
    SourceError
        If there are several trees or listings, or a listing without its tree.
    """
    where = os.path.abspath(path)
    if os.path.isfile(where) and where.endswith((".json", ".json.gz")):
        root = _tree(os.path.dirname(where), sensors)
        if root is None:
            raise SourceError(
                f"{path}: found no GeoTIFF tree beside this listing; unpack the images so that "
                "folders such as 's2_toa_mix' are in the same folder"
            )
        return GeoTiffSource(root, where, sensors)
    if not os.path.isdir(where):
        return None
    root = _tree(where, sensors)
    if root is None:
        return None
    listings = sorted(p for p in Path(where).glob("fnames_*") if p.name.endswith((".json", ".gz")))
    if len(listings) > 1:
        raise SourceError(
            f"{path}: found {len(listings)} listings, {', '.join(p.name for p in listings)}; "
            "give the path of the one to use"
        )
    if listings:
        _log.info(
            "reading the files listed in %s, and no others; move it away to read all images",
            listings[0],
        )
        return GeoTiffSource(root, str(listings[0]), sensors)
    return GeoTiffSource(root, None, sensors)


def _tree(folder: str, sensors: Iterable[Modality]) -> str | None:
    """Folder that holds the folders of modalities: the given one or one just below, or None."""
    folders = folders_of(sensors)
    if any(os.path.isdir(os.path.join(folder, known)) for known in folders):
        return folder
    below = sorted(
        entry.path
        for entry in os.scandir(folder)
        if not entry.name.startswith(".")
        and any(os.path.isdir(os.path.join(entry.path, known)) for known in folders)
    )
    if len(below) > 1:
        raise SourceError(f"{folder}: found several trees, {', '.join(below)}; give one of them")
    return below[0] if below else None


@dataclass(frozen=True)
class GeoTiffSource:
    """A tree of GeoTIFF files.

    Parameters
    ----------
    root : str
        Folder that holds the folders of the modalities.
    fnames : str or None
        Path of the JSON listing of files to read; None reads all.
    sensors : tuple of Modality
        Users' own sensors, whose folders are in the tree too. All their images are read, if the
        listing names none.
    """

    root: str
    fnames: str | None = None
    sensors: tuple[Modality, ...] = ()

    @property
    def layout(self) -> Literal["geotiff"]:
        """Published layout of the files."""
        return "geotiff"

    @property
    def reader(self) -> "GeoTiffSource":
        """The source itself, which is small."""
        return self

    def partitions(self) -> list[Partition]:
        """List runs of whole cells of one block, of about 1000 images each.

        Files whose path names no cell, or that are listed under a different cell, come last, in
        separate partitions, where reading rejects them.

        Raises
        ------
        SourceError
            If the listing cannot be read.
        """
        cells: dict[int, list[tuple[Order, str]]] = {}
        folders = folders_of(self.sensors)
        odd: dict[str, list[str]] = {_STALE: [], _UNPLACED: []}
        for path, stale in self._files():
            try:
                file = from_path(path, folders)
            except CopcubeError:
                odd[_UNPLACED].append(path)
            else:
                if stale:
                    odd[_STALE].append(path)
                else:
                    cells.setdefault(file.grid_id, []).append((file.order, path))
        found = []
        by_block = sorted(cells, key=lambda cell: (grid.block_of(cell), cell))
        for block, members in itertools.groupby(by_block, key=grid.block_of):
            for number, run in enumerate(_runs(list(members), cells)):
                paths = [path for _, path in sorted(itertools.chain(*(cells[c] for c in run)))]
                name = f"block-{block.i:02d}-{block.j:02d}-{number:03d}"
                found.append(Partition(name, tuple(paths), len(paths), len(run)))
        for name, paths in odd.items():
            for start in range(0, len(paths), _IMAGES_PER_PARTITION):
                some = tuple(sorted(paths)[start : start + _IMAGES_PER_PARTITION])
                number = start // _IMAGES_PER_PARTITION
                found.append(Partition(f"{name}-{number:03d}", some, len(some), 0))
        return found

    def fingerprint(self) -> str:
        """SHA-256 over the names and sizes of the files, and the bytes of the listing.

        Raises
        ------
        SourceError
            If the listing cannot be read.
        """
        digest = hashlib.sha256()
        if self.fnames is not None:
            with open_regular(self.fnames, SourceError) as listing:
                digest.update(hashlib.file_digest(listing, "sha256").digest())
        for path in sorted(path for path, _ in self._files()):
            inside = is_inside(path)
            size = _size(os.path.join(self.root, path)) if inside else -1
            digest.update(f"{path}\0{size}\n".encode())
            if inside and (size := _size(os.path.join(self.root, path + MASK))) >= 0:
                digest.update(f"{path}{MASK}\0{size}\n".encode())
        return digest.hexdigest()

    def count(self, partition: Partition, selection: Selection) -> Counter[str]:
        """Count the selected images of a partition by modality, without reading a file."""
        chosen = self._chosen(partition, selection)
        return Counter(item[1].modality for item in chosen if not isinstance(item, Rejected))

    def jobs(self, partition: Partition, selection: Selection) -> Iterator[Job | Rejected]:
        """Reading jobs, one a file, ordered by modality, cell, local patch and date.

        Files rejected without reading come first, as `Rejected`.
        """
        from rasterio.errors import NotGeoreferencedWarning

        # Threads share one list of filters, so this cannot be undone after each file.
        warnings.filterwarnings("ignore", category=NotGeoreferencedWarning)
        for item in self._chosen(partition, selection):
            yield item if isinstance(item, Rejected) else partial(self._read, *item)

    def _chosen(
        self, partition: Partition, selection: Selection
    ) -> Iterator[tuple[str, Identity, Modality] | Rejected]:
        """Yield files rejected by their path alone, then the selected files in fixed order."""
        placed: list[tuple[Order, int, str, Identity]] = []
        folders = folders_of(self.sensors)
        # If an image is in several folders, the file in the first is read.
        preference = {folder: number for number, folder in enumerate(folders)}
        for path in partition.paths:
            folder = folder_of(path, folders)
            if folder is not None and folders[folder].key not in selection.modalities:
                continue
            try:
                file = from_path(path, folders)
            except CopcubeError as error:
                yield Rejected(path, "", "broken", str(error))
                continue
            if not selection.admits(file.date):
                continue
            if partition.name.startswith(_STALE):
                listing = os.path.basename(self.fnames or "the listing")
                reason = f"{listing} lists it under a cell other than the one in its path"
                yield Rejected(path, "", "stale", reason)
            else:
                placed.append((file.order, preference[folder or ""], path, file))
        first: dict[Identity, str] = {}
        kinds = {modality.key: modality for modality in folders.values()}
        for *_, path, file in sorted(placed, key=lambda item: item[:3]):
            if file in first:
                yield Rejected(path, "", "duplicate", f"{file}: already in {first[file]}")
            else:
                first[file] = path
                yield path, file, kinds[file.modality]

    def _read(self, path: str, file: Identity, modality: Modality) -> list[Image | Rejected]:
        """Decode one file; runs on any thread."""
        try:
            where = os.path.join(self.root, path)
            raw, mask = _raw(where), _mask(where)
            pixels = to_tensor_form(_decode(raw, modality, mask), modality)
        except ImageError as error:
            return [Rejected(path, "", "broken", str(error))]
        except OSError as error:
            if error.errno not in _NO_FILE or not self._is_there():
                raise
            listing = f"listed in {os.path.basename(self.fnames)}" if self.fnames else "listed"
            return [Rejected(path, "", "broken", f"{listing} but not there: {error.strerror}")]
        return [file.image(pixels, modality, path)]

    def _is_there(self) -> bool:
        """Whether the tree is still there: if it was moved or unmounted, no single file is lost."""
        if self.fnames is not None:
            return os.path.exists(self.fnames)
        return os.path.isdir(self.root) and bool(os.listdir(self.root))

    def _files(self) -> Iterator[tuple[str, bool]]:
        """Yield the relative paths of all files, and whether each is listed under a different cell.

        Names that are not UTF-8 get backslashes, which no accepted path has.
        """
        folders = folders_of(self.sensors)
        # Published listings do not contain users' own sensors.
        unlisted = dict.fromkeys(folder for one in self.sensors for folder in one.folders)
        if self.fnames is None:
            unlisted = dict.fromkeys(folders)
        else:
            for path, stale in listed(self.root, self.fnames, folders):
                unlisted.pop(folder_of(path, folders) or "", None)
                yield _as_text(path), stale
        for folder in unlisted:
            for path in _walk(self.root, folder, _DEPTH):
                yield _as_text(path), False


def _size(path: str) -> int:
    """Size of a file in bytes; -1 if it is not there."""
    try:
        return os.stat(path).st_size
    except OSError:
        return -1


def _as_text(path: str) -> str:
    return path.encode("utf-8", "backslashreplace").decode()


def _walk(root: str, folder: str, depth: int) -> Iterator[str]:
    """Yield relative paths of the GeoTIFF files below a folder, except for hidden ones."""
    try:
        # File systems list names in any order, which must not affect the plan.
        entries = sorted(os.scandir(os.path.join(root, folder)), key=lambda entry: entry.name)
    except OSError as error:
        if error.errno in _NO_FILE:
            return
        raise
    # Otherwise the folder would seem empty, and its images would be lost unnoticed.
    require_open(os.path.join(root, folder))
    for entry in entries:
        path = f"{folder}/{entry.name}"
        if entry.name.startswith("."):
            continue
        # What is not a file is yielded too, and rejected when read.
        if entry.name.lower().endswith((".tif", ".tiff")) and not os.path.isdir(entry):
            yield path
        elif depth > 1 and os.path.isdir(entry):
            yield from _walk(root, path, depth - 1)


def _runs(cells: list[int], files: dict[int, list[tuple[Order, str]]]) -> Iterator[list[int]]:
    """Divide a list of cells into runs of at most about 1000 images."""
    run: list[int] = []
    images = 0
    for cell in cells:
        if run and images + len(files[cell]) > _IMAGES_PER_PARTITION:
            yield run
            run, images = [], 0
        run.append(cell)
        images += len(files[cell])
    if run:
        yield run


# The raster.


def _raw(path: str) -> bytes:
    """Bytes of a file, after checking that it is not larger than any image.

    Raises
    ------
    ImageError
        If it is larger, or not a file.
    OSError
        If it is not there or cannot be read.
    """
    with open_regular(path, ImageError) as handle:
        size = os.fstat(handle.fileno()).st_size
        demand(limits.RASTER, size, "its bytes", ImageError)
        # Memory for the whole request is allocated before anything is read.
        raw = handle.read(size + 1)
        if len(raw) > size:  # it grows
            raw += handle.read(limits.RASTER.allowed + 1 - len(raw))
            demand(limits.RASTER, len(raw), "its bytes", ImageError, least=True)
        return raw


def _mask(path: str) -> bytes | None:
    """Bytes of the mask beside an image; None if there is none."""
    try:
        return _raw(path + MASK)
    except OSError as error:
        if error.errno not in _NO_FILE:
            raise
        return None


def _decode(raw: bytes, modality: Modality, mask: bytes | None = None) -> NDArray[Any]:
    """Pixels (bands, rows, columns) of a GeoTIFF in the stored dtype of a modality.

    They are read as `copcube.images.raster` says; `mask` holds the bytes of the file of the mask.

    Raises
    ------
    ImageError
        If it is not a GeoTIFF of that modality.
    MemoryError
        If there is too little memory to find that out.
    """
    import rasterio

    needed = 0
    try:
        with opened_bytes(raw, mask) as raster:
            places = places_of(raster, modality)
            _check_size(raster, modality)
            itemsize = np.dtype(raster.dtypes[0]).itemsize
            needed = 2 * raster.count * raster.height * raster.width * itemsize
            return read(raster, places, modality).of(modality)
    except ImageError:
        raise
    except OptionError as error:
        raise ImageError(str(error)) from error
    except (rasterio.errors.RasterioError, ValueError) as error:
        limits.rule_out_shortage(error, needed)
        raise ImageError(f"not a readable GeoTIFF of {len(raw)} bytes: {reason(error)}") from error


def _check_size(raster: Any, modality: Modality) -> None:
    """Refuse rasters and blocks larger than any image, before memory is spent on them."""
    for rows, cols in {raster.shape, *raster.block_shapes}:
        size = rows * cols * sum(np.dtype(dtype).itemsize for dtype in raster.dtypes)
        demand(limits.RASTER, size, f"{rows} × {cols} pixels in {raster.count} bands", ImageError)
    # The shorter side is resized to that of the tensor form, and the other in proportion.
    side = modality.shape[-1]
    long, short = max(raster.shape), max(1, min(raster.shape))
    what = f"{raster.height} × {raster.width} pixels in {raster.count} bands, resized to {side},"
    demand(limits.RASTER, raster.count * 4 * side * side * long / short, what, ImageError)
