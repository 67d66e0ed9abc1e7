"""Images from a GeoTIFF tree of Copernicus-Pretrain, with or without its JSON listing.

Cell, modality and date of a file follow from its path, so a partition is nothing but
paths, and a path is checked whenever it is used.
"""

import errno
import hashlib
import itertools
import logging
import os
import re
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from copcube import grid
from copcube.errors import CopcubeError, ImageError, OptionError, SourceError
from copcube.files import limits
from copcube.files.contents import HEAD, other_than
from copcube.files.limits import demand
from copcube.files.regular import open_regular, require_open
from copcube.images.bands import order
from copcube.images.base import Image, Job, Partition, Rejected
from copcube.images.listing import listed
from copcube.images.naming import (
    Identity,
    Order,
    folder_of,
    folders_of,
    from_path,
    is_inside,
    to_stored,
)
from copcube.images.tensor_form import declared_missing, to_tensor_form
from copcube.modalities import Modality
from copcube.selection import Selection

if TYPE_CHECKING:
    from affine import Affine

_DEPTH = 4
_IMAGES_PER_PARTITION = 1000
_UNPLACED, _STALE = "unplaced", "stale"
_NO_FILE = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG)

_IN_MEMORY = re.compile(r"(?:/vsimem/[0-9a-f-]{36}/)?[0-9a-f-]{36}\.tif")

_places = lru_cache(maxsize=256)(order)
"""Where the bands of a modality are; the files of a tree are mostly described alike."""

_log = logging.getLogger(__name__)


def recognise(path: str, sensors: tuple[Modality, ...] = ()) -> "GeoTiffSource | None":
    """Open a GeoTIFF tree, or the JSON listing beside it; return None if it is neither.

    Parameters
    ----------
    path : str
        A folder that holds folders such as ``s2_toa_mix/images`` or ``Sentinel-2/images``,
        itself or one level below, or a listing ``fnames_*.json.gz`` in such a folder.
        A folder with exactly one listing in it is read by that listing.
    sensors : tuple of Modality
        Sensors of one's own, whose folders count too.

    Raises
    ------
    SourceError
        If several trees or listings are there, or a listing without its tree.
    """
    where = os.path.abspath(path)
    if os.path.isfile(where) and where.endswith((".json", ".json.gz")):
        root = _tree(os.path.dirname(where), sensors)
        if root is None:
            raise SourceError(
                f"{path}: found no GeoTIFF tree beside this listing; unpack the images so that "
                "folders such as 's2_toa_mix' lie in the same folder"
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
        _log.info("reading the files listed in %s", listings[0])
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
        Path of the JSON listing that says which files to read; None reads all.
    sensors : tuple of Modality
        Sensors of one's own, whose folders lie in the tree too. All of their images are read,
        if the listing names none.
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

        Files whose path names no cell, or that are listed under another cell, come last,
        in partitions of their own, where reading rejects them.

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
            try:
                size = os.stat(os.path.join(self.root, path)).st_size if is_inside(path) else -1
            except OSError:
                size = -1
            digest.update(f"{path}\0{size}\n".encode())
        return digest.hexdigest()

    def count(self, partition: Partition, selection: Selection) -> Counter[str]:
        """Count the selected images of a partition by modality, without reading a file."""
        chosen = self._chosen(partition, selection)
        return Counter(item[1].modality for item in chosen if not isinstance(item, Rejected))

    def jobs(self, partition: Partition, selection: Selection) -> Iterator[Job | Rejected]:
        """Reading jobs, one a file, ordered by modality, cell, local patch and date.

        Files that need no reading to be rejected come first, as `Rejected`.
        """
        from rasterio.errors import NotGeoreferencedWarning

        # Threads share one list of filters, so this cannot be undone after each file.
        warnings.filterwarnings("ignore", category=NotGeoreferencedWarning)
        for item in self._chosen(partition, selection):
            yield item if isinstance(item, Rejected) else partial(self._read, *item)

    def _chosen(
        self, partition: Partition, selection: Selection
    ) -> Iterator[tuple[str, Identity, Modality] | Rejected]:
        """Yield what its path alone rejects, then the selected files in fixed order."""
        placed: list[tuple[Order, int, str, Identity]] = []
        folders = folders_of(self.sensors)
        # Of an image in several folders the file in the first one is read.
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
                reason = f"{listing} lists it under another cell than its path names"
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
            raw = _raw(os.path.join(self.root, path))
            pixels = to_tensor_form(_decode(raw, modality), modality)
        except ImageError as error:
            return [Rejected(path, "", "broken", str(error))]
        except OSError as error:
            if error.errno not in _NO_FILE or not self._is_there():
                raise
            listing = f"listed in {os.path.basename(self.fnames)}" if self.fnames else "listed"
            return [Rejected(path, "", "broken", f"{listing} but not there: {error.strerror}")]
        return [file.image(pixels, modality, path)]

    def _is_there(self) -> bool:
        """Whether the tree is where it was; moved or unmounted, it has not lost single files."""
        if self.fnames is not None:
            return os.path.exists(self.fnames)
        return os.path.isdir(self.root) and bool(os.listdir(self.root))

    def _files(self) -> Iterator[tuple[str, bool]]:
        """Yield the relative paths of all files, and whether each is listed under another cell.

        Names that are not UTF-8 get backslashes, which no accepted path has.
        """
        folders = folders_of(self.sensors)
        # Published listings know nothing of sensors of one's own.
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


def _as_text(path: str) -> str:
    return path.encode("utf-8", "backslashreplace").decode()


def _walk(root: str, folder: str, depth: int) -> Iterator[str]:
    """Yield relative paths of the GeoTIFF files below a folder, except for hidden ones."""
    try:
        # A file system lists names in any order, and the plan must not depend on it.
        entries = sorted(os.scandir(os.path.join(root, folder)), key=lambda entry: entry.name)
    except OSError as error:
        if error.errno in _NO_FILE:
            return
        raise
    # Else its files would not even be missed: of each, it would seem to be none.
    require_open(os.path.join(root, folder))
    for entry in entries:
        path = f"{folder}/{entry.name}"
        if entry.name.startswith("."):
            continue
        # What is no file is yielded too, and rejected when it is read.
        if entry.name.lower().endswith((".tif", ".tiff")) and not os.path.isdir(entry):
            yield path
        elif depth > 1 and os.path.isdir(entry):
            yield from _walk(root, path, depth - 1)


def _runs(cells: list[int], files: dict[int, list[tuple[Order, str]]]) -> Iterator[list[int]]:
    """Cut a list of cells into runs of at most about 1000 images."""
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
    """Bytes of a file, which are no more than any image has.

    Raises
    ------
    ImageError
        If it is larger, or no file.
    OSError
        If it is not there or cannot be read.
    """
    with open_regular(path, ImageError) as handle:
        demand(limits.RASTER, os.fstat(handle.fileno()).st_size, "its bytes", ImageError)
        return _bounded(handle, limits.RASTER.allowed)


def _bounded(handle: Any, limit: int) -> bytes:
    """Read an open file of at most so many bytes, which may grow meanwhile."""
    # Room for all that is asked for is taken before anything is read.
    size = os.fstat(handle.fileno()).st_size
    raw: bytes = handle.read(size + 1)
    if len(raw) > size:
        raw += handle.read(limit + 1 - len(raw))
    if len(raw) > limit:
        raise ImageError(f"expected at most {limit} bytes, found more")
    return raw


def _decode(raw: bytes, modality: Modality) -> NDArray[Any]:
    """Pixels (bands, rows, columns) of a GeoTIFF in the stored dtype of a modality.

    Bands are found by their descriptions, if they have any, and rows and columns by the
    transform. What the file's nodata value (`declared_missing`) or its mask excludes becomes NaN,
    in counts of Sentinel-2 0; scales and offsets that it declares are applied to all but these.

    Raises
    ------
    ImageError
        If it is no GeoTIFF of that modality.
    MemoryError
        If there is too little memory to find that out.
    """
    import rasterio
    from rasterio.io import MemoryFile

    bands, needed = len(modality.bands), 0
    if (other := other_than(("tiff",), raw[:HEAD])) is not None:
        raise ImageError(f"expected a GeoTIFF, found {other}")
    try:
        # From memory GDAL can address uncompressed files directly, twice as fast for
        # interleaved bands, and finds no neighbouring file to read metadata from.
        with (
            rasterio.Env(GTIFF_VIRTUAL_MEM_IO="YES"),
            MemoryFile(raw) as memory,
            memory.open(driver="GTiff") as raster,
        ):
            places = _places(raster.descriptions, modality, described=True) or range(bands)
            if raster.count != bands and places == range(bands):
                raise ImageError(f"expected {bands} bands of {modality.key}, found {raster.count}")
            _check_size(raster, modality)
            in_order = list(places) == list(range(raster.count))
            itemsize = np.dtype(raster.dtypes[0]).itemsize
            needed = 2 * raster.count * raster.height * raster.width * itemsize
            pixels = raster.read(None if in_order else [place + 1 for place in places])
            missing = _missing(raster, pixels, modality)
            if missing is not None:
                missing = _north_up(missing, raster.transform)
            pixels = _north_up(pixels, raster.transform)
            scaled = np.array([raster.scales, raster.offsets])[:, list(places), None, None]
    except ImageError:
        raise
    except OptionError as error:
        raise ImageError(str(error)) from error
    except (rasterio.errors.RasterioError, ValueError) as error:
        limits.rule_out_shortage(error, needed)
        why = reason(error)
        raise ImageError(f"not a readable GeoTIFF of {len(raw)} bytes: {why}") from error
    pixels = to_stored(pixels, modality)
    if missing is not None:
        np.copyto(pixels, np.nan if pixels.dtype == np.float32 else 0, where=missing)
    # Sentinel-2 counts are wanted as they are stored; what else is scaled is so in whole numbers.
    if pixels.dtype == np.float32 and ((scaled[0] != 1) | (scaled[1] != 0)).any():
        pixels = (pixels * scaled[0] + scaled[1]).astype(np.float32)
    return np.asarray(pixels)


def reason(error: Exception) -> str:
    """GDAL's own message, the same every time: of a file in memory it says a random name."""
    return _IN_MEMORY.sub("the file", str(error.__cause__ or error))


def _missing(raster: Any, pixels: NDArray[Any], modality: Modality) -> NDArray[np.bool_] | None:
    """Which pixels of an open raster, as they are stored, hold no data; None if all do."""
    nodata, outside = raster.nodata, masked_out(raster)
    missing = None if nodata is None else declared_missing(pixels, nodata, modality)
    if missing is None or outside is None:
        return outside if missing is None else missing
    return missing | outside


def masked_out(raster: Any) -> NDArray[np.bool_] | None:
    """Which pixels (1, rows, columns) the mask of an open raster excludes; None without one."""
    from rasterio.enums import MaskFlags

    if any(MaskFlags.per_dataset in flags for flags in raster.mask_flag_enums):
        return np.asarray(raster.dataset_mask()[None] == 0)
    return None


def _north_up(pixels: NDArray[Any], transform: "Affine") -> NDArray[Any]:
    """Turn pixels (bands, rows, columns) so that rows run southwards and columns eastwards.

    Raises
    ------
    ImageError
        If the raster is rotated by an angle that is no multiple of 90°.
    """
    if transform.is_identity:  # no georeference
        return pixels
    east, down = transform.a, transform.e
    if transform.b or transform.d:
        if east or down:
            raise ImageError(
                f"its rows and columns are rotated, by the transform {tuple(transform)[:6]}; "
                "expected a north-up raster: warp it with gdalwarp"
            )
        pixels, east, down = pixels.transpose(0, 2, 1), transform.b, transform.d
    return pixels[:, :: 1 if down < 0 else -1, :: 1 if east > 0 else -1]


def _check_size(raster: Any, modality: Modality) -> None:
    """Refuse rasters and blocks larger than any image, before memory is spent on them."""
    if any(dtype.startswith("complex") for dtype in raster.dtypes):
        raise ImageError(f"expected real numbers, found {raster.dtypes[0]}")
    for rows, cols in {raster.shape, *raster.block_shapes}:
        size = rows * cols * sum(np.dtype(dtype).itemsize for dtype in raster.dtypes)
        demand(limits.RASTER, size, f"{rows} × {cols} pixels in {raster.count} bands", ImageError)
    # The shortest side is resized to that of the tensor form, and the other in proportion.
    side = modality.shape[-1]
    long, short = max(raster.shape), max(1, min(raster.shape))
    what = f"{raster.height} × {raster.width} pixels in {raster.count} bands, resized to {side},"
    demand(limits.RASTER, raster.count * 4 * side * side * long / short, what, ImageError)
