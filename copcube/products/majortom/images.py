"""Images of Major TOM's Core sets, fragment by fragment: where they lie, and how they are read.

There are two forms of a set. In **parquet**, as published, a row group is a sample: identity, and
for each band the bytes of a GeoTIFF of one band in its own resolution. Only the requested bands are
read. The **tree** of the downloader has a file a band,
``<row>/<grid_cell>/<product_id>/<band>.tif``.

Bands of 20 and 60 m are brought to 10 m by repeating pixels, as Major TOM does. A sample gives 5 ×
5 fragments of 224 pixels or 3 × 3 of 384; an unreadable sample is recorded and skipped entirely, so
that a cell has all its fragments or none.
"""

import contextlib
import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from copcube.arguments import one_path
from copcube.dates import yyyymmdd
from copcube.errors import GridError, ImageError, OptionError, RowsError, SourceError
from copcube.files.objects import file_size, is_remote
from copcube.files.regular import require_open
from copcube.images import Partition, Rejected
from copcube.images.raster import MASK
from copcube.products.majortom.bands import Band, decode, has_valid_pixel, stacked
from copcube.products.majortom.columns import modality_of
from copcube.products.majortom.fragments import Fragmentation
from copcube.products.majortom.grid import GRID, PIXEL, SIDE, squares
from copcube.products.majortom.table import Embeddings
from copcube.rows import reading_parquet, rows_files, sizes_of_groups
from copcube.selection import Selection

if TYPE_CHECKING:
    import pyarrow.parquet as pq

IDENTITY = ("product_id", "grid_cell")
TIMES = ("timestamp", "product_datetime")
"""Names of the column that says when an image was taken."""

ASTRAY = 2.0
"""Most kilometres between the middle of an image and where the grid has it."""

_SAMPLES = 200
"""Samples of a tree in a partition."""

_ROW = re.compile(r"[0-9]{1,4}[UD]")
_TIME = re.compile(r"[0-9]{8}T[0-9]{6}")


@dataclass(frozen=True)
class Fragments:
    """What to embed of a set's images.

    Parameters
    ----------
    bands : tuple of str
        Names of the bands, in the order in which an encoder sees them.
    modality : str
        Key of their modality.
    size : int
        Pixels of 10 m a side of a fragment.
    compat : bool
        Whether to reproduce errors of Major TOM's embedder: boxes are transposed, and fragments
        without a valid pixel are embedded too.
    by_cell : bool
        Whether the fragments of a cell must be in one batch, and no others.
    preprocessing : str
        What an encoder does to their pixels, for the attributes of a cube.
    """

    bands: tuple[str, ...]
    modality: str
    size: int
    compat: bool = False
    by_cell: bool = False
    preprocessing: str = ""


@dataclass(frozen=True)
class Sample:
    """Fragments of one image.

    Parameters
    ----------
    rows : Embeddings
        What they are of, and where they lie; without vectors, (n, 0).
    pixels : list of numpy.ndarray
        Of each, (bands, size, size) in the stored dtype.
    origin : str
        File, and row of it, that the image was read from.
    """

    rows: Embeddings
    pixels: list[NDArray[Any]]
    origin: str

    def take(self, part: slice) -> "Sample":
        """Return some of the fragments."""
        return Sample(self.rows.take(part), self.pixels[part], self.origin)


SampleJob = Callable[[], list[Sample | Rejected]]


def open_core(path: str | Path, fragments: Fragments) -> "CoreSource":
    """Recognise and open a set of images.

    Parameters
    ----------
    path : str or Path
        A parquet file of images, a folder of them or a glob, also at an address; the folder of a
        set, with ``images`` in it; a tree of the downloader; or a folder that holds one set with
        the requested bands.
    fragments : Fragments
        What is embedded of it.

    Raises
    ------
    SourceError
        If nothing is there, or it has other columns or bands.
    StorageError
        If an object store cannot be reached or denies access.
    """
    path = one_path(path, "source")
    root = Path(path)
    if not is_remote(path) and root.is_dir():
        sets = [p for p in sorted(root.iterdir()) if p.is_dir() and not p.name.startswith(".")]
        if not any(p.name == "images" or _ROW.fullmatch(p.name) for p in sets) and not any(
            root.glob("*.parquet")
        ):
            fitting = []
            for p in sets:
                with contextlib.suppress(SourceError):
                    fitting.append(_opened(p, fragments))
            if len(fitting) != 1:
                names = ", ".join(Path(found.root).name for found in fitting)
                which = f"{names} have these bands: choose one" if fitting else "no set there does"
                raise SourceError(f"{path}: {_expected(fragments)}; {which}")
            return fitting[0]
    return _opened(path, fragments)


def _opened(path: str | Path, fragments: Fragments) -> "CoreSource":
    """Open a folder or files as a set.

    Raises
    ------
    SourceError
        If it is not one, or lacks the bands.
    """
    local, of_set = Path(path), None
    if not is_remote(path) and local.is_dir():
        if any(_ROW.fullmatch(p.name) for p in local.iterdir()):
            source = CoreSource(str(local), "tree", fragments)
            first = next(source.samples(), None)
            lacking = [b for b in fragments.bands if first is None or not source.band(first, b)]
            _require_all(lacking, first or str(local), fragments)
            return source
        if (local / "images").is_dir():
            # The set is what has a name; all others in it are not of images.
            path, of_set = local / "images", str(local)
    try:
        files = [str(file) for file in rows_files(path)]
        files = [file for file in files if Path(file).name != "metadata.parquet"]
        if not files:
            raise RowsError(f"{path}: no parquet files of images")
        if is_remote(path):
            root = os.path.dirname(files[0]) if len(files) == 1 else str(path).rstrip("/")
        else:
            root = of_set or os.path.commonpath([os.path.dirname(file) for file in files])
        with reading_parquet(files[0], columns=IDENTITY) as file:
            lacking = _lacking(file.schema_arrow.names, fragments)
    except RowsError as error:
        raise SourceError(f"{error}; {_expected(fragments)}") from error
    _require_all(lacking, files[0], fragments)
    names = tuple(file.removeprefix(root).lstrip("/") for file in files)
    return CoreSource(root, "parquet", fragments, names)


def _require_all(lacking: list[str], first: str, fragments: Fragments) -> None:
    if lacking:
        raise SourceError(
            f"{first}: {', '.join(lacking)} {'is' if len(lacking) == 1 else 'are'} missing; "
            f"{_expected(fragments)}"
        )


def _expected(fragments: Fragments) -> str:
    return (
        "expected images of Major TOM: parquet with the columns "
        f"{', '.join((*IDENTITY, TIMES[0], *fragments.bands))}, or a tree of "
        "ROW/CELL/PRODUCT/BAND.tif; `copcube sample DIR --layout majortom` writes a small example"
    )


def _lacking(names: list[str], fragments: Fragments) -> list[str]:
    lacking = [name for name in (*IDENTITY, *fragments.bands) if name not in names]
    return lacking + ([] if set(TIMES) & set(names) else [TIMES[0]])


@dataclass(frozen=True)
class CoreSource:
    """A set of images; see `open_core`.

    Parameters
    ----------
    root : str
        Folder or address that paths are relative to.
    form : {"parquet", "tree"}
        Form of the set.
    fragments : Fragments
        What is embedded of it.
    files : tuple of str
        Parquet files; none where they are not needed.
    """

    root: str
    form: Literal["parquet", "tree"]
    fragments: Fragments
    files: tuple[str, ...] = field(default=(), repr=False)

    @property
    def layout(self) -> str:
        """Form of the files, as plans name it."""
        return f"majortom {self.form}"

    @property
    def reader(self) -> "CoreSource":
        """The same source without its list of files, which is small enough to send to workers."""
        return replace(self, files=())

    def partitions(self) -> list[Partition]:
        """List the partitions, in a fixed order: a parquet file each, or samples of a tree."""
        if self.form == "parquet":
            stems = [Path(name).stem for name in self.files]
            if len(set(stems)) < len(stems):
                stems = [f"{i:05d}-{stem}" for i, stem in enumerate(stems)]
            return [Partition(s, (f,)) for s, f in zip(stems, self.files, strict=True)]
        paths = list(self.samples())
        runs = [tuple(paths[i : i + _SAMPLES]) for i in range(0, len(paths), _SAMPLES)]
        return [
            Partition(f"{i:05d}-{run[0].split('/')[1]}", run, self._count * len(run))
            for i, run in enumerate(runs)
        ]

    @property
    def _count(self) -> int:
        return len(Fragmentation(self.fragments.size))

    def fingerprint(self) -> str:
        """SHA-256 over the names and sizes of the source's files."""
        if self.form == "parquet":
            known = [(name, file_size(self._path(name))) for name in self.files]
        else:
            known = [
                (f"{sample}/{band}{ending}", os.path.getsize(path))
                for sample in self.samples()
                for band in self.fragments.bands
                for path, ending in zip(self._files_of(sample, band), ("", MASK), strict=False)
            ]
        return hashlib.sha256(json.dumps(known).encode()).hexdigest()

    def count(self, partition: Partition, selection: Selection) -> Counter[str]:
        """Count the fragments of a partition by modality, without decoding any."""
        number = len(partition.paths)
        if self.form == "parquet":
            with reading_parquet(self._path(partition.paths[0]), columns=IDENTITY) as file:
                number = file.metadata.num_rows
        return Counter({self.fragments.modality: number * self._count})

    def jobs(self, partition: Partition, selection: Selection) -> Iterator[SampleJob | Rejected]:
        """Yield the decoding jobs of a partition: one for each sample, in the order of the files.

        A job gives the fragments of its sample, or what was rejected.
        """
        if self.form == "tree":
            for sample in partition.paths:
                yield partial(self._of_folder, sample, selection)
            return
        name = partition.paths[0]
        columns = (*IDENTITY, *TIMES, *self.fragments.bands)
        try:
            with reading_parquet(self._path(name), columns=columns) as file:
                footer, names = file.metadata, file.schema_arrow.names
        except RowsError as error:
            self._require_there(name)
            yield Rejected(name, "", "broken", str(error))
            return
        if lacking := _lacking(names, self.fragments):
            reason = f"{', '.join(lacking)} missing; {_expected(self.fragments)}"
            yield Rejected(name, "", "broken", reason, footer.num_rows)
            return
        time = next(column for column in TIMES if column in names)
        for group in range(footer.num_row_groups):
            yield partial(self._of_group, name, footer, group, time, selection)

    def _path(self, name: str) -> str:
        return f"{self.root}/{name}"

    def _require_there(self, name: str) -> None:
        """Check that a file that was found still exists: if not, it was moved or unmounted.

        Raises
        ------
        FileNotFoundError
            If it is not.
        """
        if not is_remote(self.root):
            os.stat(self._path(name))

    # The parquet form.

    def _of_group(
        self, name: str, footer: "pq.FileMetaData", group: int, time: str, selection: Selection
    ) -> list[Sample | Rejected]:
        """Decode the samples of a row group, of which there is one in released files."""
        columns = [*IDENTITY, time, *self.fragments.bands]
        number = footer.row_group(group).num_rows
        try:
            with reading_parquet(self._path(name), footer, IDENTITY) as file:
                table = file.read_row_group(group, columns=columns, use_threads=False)
        except RowsError as error:
            self._require_there(name)
            return [Rejected(name, f"row group {group}", "broken", str(error), number)]
        first = sum(sizes_of_groups(footer)[:group])
        found: list[Sample | Rejected] = []
        for i, row in enumerate(table.to_pylist()):
            raw = [[row[band]] for band in self.fragments.bands]
            member, product, cell = f"row {first + i}", row["product_id"], row["grid_cell"]
            found += self._read(name, member, product, cell, row[time], raw, selection)
        return found

    # The tree of the downloader.

    def samples(self) -> Iterator[str]:
        """Yield the folders of samples relative to the root, sorted."""
        for row in _folders(self.root):
            if _ROW.fullmatch(row):
                for cell in _folders(f"{self.root}/{row}"):
                    for product in _folders(f"{self.root}/{row}/{cell}"):
                        yield f"{row}/{cell}/{product}"

    def band(self, sample: str, name: str) -> str | None:
        """Path of the file of a band, None if there is none."""
        for suffix in (".tif", ".tiff"):
            if os.path.isfile(path := f"{self.root}/{sample}/{name}{suffix}"):
                return path
        return None

    def _files_of(self, sample: str, name: str) -> list[str]:
        """Paths of the file of a band and of the mask beside it, as far as they are there."""
        if (path := self.band(sample, name)) is None:
            return []
        return [path, path + MASK] if os.path.isfile(path + MASK) else [path]

    def _of_folder(self, sample: str, selection: Selection) -> list[Sample | Rejected]:
        _, cell, product = sample.split("/")
        raw = [
            [Path(path).read_bytes() for path in self._files_of(sample, band)]
            for band in self.fragments.bands
        ]
        if [] in raw:
            self._require_there(sample)
            require_open(self._path(sample))
        # The downloader keeps no time, but names of products hold it: the first is the sensing's.
        time = _TIME.search(product)
        return self._read(sample, "", product, cell, time[0] if time else None, raw, selection)

    # Both.

    def _read(
        self,
        file: str,
        member: str,
        product: Any,
        cell: Any,
        time: Any,
        raw: list[list[Any]],
        selection: Selection,
    ) -> list[Sample | Rejected]:
        """Decode the bands of a sample and divide it into fragments."""
        try:
            stamp = _timestamp(time)
            if (found := modality_of(product)) != (wanted := self.fragments.modality):
                raise ImageError(
                    f"product {product!r:.80} is of {found or 'an unknown sensor'}, according to "
                    f"its name; expected one of {wanted}"
                )
            if not selection.admits(stamp[:8]):
                return []
            bands = [
                _decoded(name, data) for name, data in zip(self.fragments.bands, raw, strict=True)
            ]
            finest = max(bands, key=lambda band: band.side)
            row, col = (int(n[0]) for n in GRID.parse([str(cell)]))
            if (away := _away(row, col, finest)) > ASTRAY:
                reason = (
                    f"its cell is {cell}, but the image lies {away:.1f} km from there; expected "
                    "the image of that cell: get a new copy"
                )
                return [Rejected(file, member, "stale", reason, self._count)]
            return self._divided(file, member, str(product), stamp, row, col, bands, finest)
        except (ImageError, GridError) as error:
            return [Rejected(file, member, "broken", str(error), self._count)]

    def _divided(
        self,
        file: str,
        member: str,
        product: str,
        stamp: str,
        row: int,
        col: int,
        bands: list[Band],
        finest: Band,
    ) -> list[Sample | Rejected]:
        size, side = self.fragments.size, finest.side
        if abs(finest.step - PIXEL) > 1e-6:
            raise ImageError(f"its finest pixels are of {finest.step:g} m; expected {PIXEL:g} m")
        if side < size:
            raise ImageError(f"{side} × {side} pixels; expected at least {size}")
        parts = Fragmentation(size, side)
        whole = stacked([band.pixels for band in bands], side)
        boxes = parts.boxes()
        cut = [whole[:, y : y + size, x : x + size] for x, y, *_ in boxes.tolist()]
        kept = np.array([self.fragments.compat or has_valid_pixel(p) for p in cut], bool)
        found: list[Sample | Rejected] = []
        if empty := int((~kept).sum()):
            found.append(Rejected(file, member, "empty", "no valid pixel in the fragment", empty))
        n = int(kept.sum())
        rows = Embeddings(
            grid_row=np.full(n, row),
            grid_col=np.full(n, col),
            product_id=np.full(n, product, object),
            timestamp=np.full(n, stamp, object),
            epsg=np.full(n, finest.epsg),
            box=parts.boxes(transposed=self.fragments.compat)[kept],
            embedding=np.empty((n, 0), np.float32),
            left=np.full(n, finest.left),
            top=np.full(n, finest.top),
        )
        pixels = [p for p, keep in zip(cut, kept, strict=True) if keep]
        return [*found, Sample(rows, pixels, f"{file} {member}".rstrip())]


def _folders(path: str) -> list[str]:
    require_open(path)
    with os.scandir(path) as entries:
        return sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))


def _decoded(name: str, raw: list[Any]) -> Band:
    if raw in ([], [None]):
        raise ImageError(f"band {name} is missing")
    try:
        return decode(*raw)
    except ImageError as error:
        raise ImageError(f"band {name}: {error}") from error


def _timestamp(time: Any) -> str:
    """Time of a product as YYYYMMDDThhmmss.

    Raises
    ------
    ImageError
        If it is not one, or its day does not exist.
    """
    text = time.strftime("%Y%m%dT%H%M%S") if hasattr(time, "strftime") else str(time)
    plain = re.sub(r"[-:]|\.[0-9]+|Z$|\+00:?00$", "", text.strip()).replace(" ", "T")
    try:
        if _TIME.fullmatch(plain) and yyyymmdd(plain):
            return plain
    except OptionError:
        pass
    raise ImageError(f"timestamp is {time!r:.40}; expected one such as '20210704T101559'")


def _away(row: int, col: int, band: Band) -> float:
    """Kilometres between the middle of an image and where the grid has that of its cell."""
    codes = np.array([band.epsg])
    left, top = (float(a[0]) for a in squares(np.array([row]), np.array([col]), codes))
    half, ours = PIXEL * SIDE / 2, PIXEL * band.side / 2
    return float(np.hypot(left + half - band.left - ours, top - half - band.top + ours)) / 1000
