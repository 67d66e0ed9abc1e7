"""Files of embeddings in Major TOM's columns, released or our own, as rows on ERA5's lattice.

Accepted are 13 columns or 15, of which those in `NEEDED` are read, ``embedding`` or
``embeddings``, lists of any kind and floats of any precision.

In the released files fragments are transposed (`copcube.products.majortom.fragments`), so that
their boxes, footprints and centres are up to 8.4 km off. `order_of` finds that out by the order of
the rows of a cell: fragments are embedded row by row, so that from one to the next x must advance;
where y does, and the latitude of the centre, rows and columns were exchanged. Then they are put
back: x and y of the box change places, and the centre is that of the box in the cell's image.
"""

import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn, get_args

import numpy as np
from numpy.typing import NDArray

from copcube import grid as lattice
from copcube.dates import yyyymmdd
from copcube.errors import GridError, OptionError, RowsError
from copcube.files.objects import is_remote
from copcube.grid import Floats, Integers
from copcube.modalities import ORDER
from copcube.products.majortom.fragments import footprints
from copcube.products.majortom.grid import GRID, PIXEL, codes_of, squares, unproject
from copcube.products.majortom.table import LICENCE
from copcube.products.overlap import overlaps
from copcube.rows import Rows, check_vectors, distinct, read_provenance, reading_parquet

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

Assign = Literal["centre", "area", "cell"]
Position = Literal["auto", "given", "swap"]
Order = Literal["right", "transposed", "unknown"]

TEXTS = ("grid_cell", "product_id", "timestamp", "utm_crs")
NEEDED = (*TEXTS, "centre_lat", "centre_lon", "pixel_bbox")

FAR = 12.0
"""Most kilometres between the centre of a fragment and that of its cell; 7.5 in 10.68 km images."""

_KM = 111.32
"""Kilometres of a degree of latitude."""

_LOOK = 4096
"""Rows that are looked at to find how boxes are meant."""

_MOST = 1 << 14
"""Pixels that no image has a side of; those of Core have 1068."""

_MODALITIES = {"S1": "s1_grd", "S2": "s2_toa", "Co": "dem", "DE": "dem"}
"""Modality by the beginning of a product's name: that of the sensor, whatever the level."""

_SET = re.compile(r"Core-[A-Za-z0-9_.-]+")
_POLYGON = np.dtype([("head", "u1", 13), ("points", "<f8", (5, 2))])


def is_majortom(schema: "pa.Schema") -> bool:
    """Whether a file's columns are Major TOM's, perhaps not all of them."""
    return "grid_cell" in schema.names or {"pixel_bbox", "centre_lat"} <= set(schema.names)


def check(schema: "pa.Schema", path: str | Path) -> None:
    """Check that a file has the columns that are read.

    Raises
    ------
    RowsError
        If it has not.
    """
    names = set(schema.names)
    vectors = {"embedding", "embeddings"} & names
    missing = [name for name in NEEDED if name not in names]
    missing += [] if vectors else ["embedding"]
    if missing:
        raise RowsError(
            f"{path}: embeddings of Major TOM have the columns embedding, {', '.join(NEEDED)}; "
            f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing "
            f"(found {', '.join(schema.names)})"
        )
    check_vectors(schema, path)


def read(path: str | Path, row_groups: Sequence[int], assign: Assign, position: Position) -> Rows:
    """Read rows without their vectors, in the order of the file.

    Parameters
    ----------
    path : str or Path
        Parquet file, or the address of one.
    row_groups : sequence of int
        Row groups to read.
    assign : {"centre", "area", "cell"}
        To which cells of the lattice a fragment belongs: that of its centre; all that it overlaps,
        with the share of its footprint as weight; or that of the centre of its Major TOM cell.
    position : {"auto", "given", "swap"}
        What is done about transposed fragments: those that are found to be are put back; none; all.

    Returns
    -------
    Rows
        With `Rows.identity`; with "area" also `Rows.weight` and `Rows.source`, and a row for
        every cell that a fragment overlaps.

    Raises
    ------
    RowsError
        If the file cannot be read, lacks columns, an id is none or contradicts its centre, a
        centre lies outside the globe, or a product is of no known sensor.
    """
    swap = position == "swap" or (position == "auto" and order_of(path) == "transposed")
    outlines = assign == "area"
    with reading_parquet(path, columns=(*NEEDED, *["geometry"] * outlines)) as file:
        check(file.schema_arrow, path)
        outlines &= "geometry" in file.schema_arrow.names
        names = [*NEEDED, *["geometry"] * outlines]
        table = file.read_row_groups(list(row_groups), columns=names)
        number = _numbers(file, row_groups)
    part = _Part(path, table, number, swap=swap)
    rows = part.rows(*part.cell_centres() if assign == "cell" else (part.lat, part.lon))
    if assign != "area" or not len(rows):
        return rows
    source, cell, share = overlaps(part.corners(table))
    return replace(rows.take(source), grid_id=cell, weight=share, source=source)


def centres(
    path: str | Path, row_groups: Sequence[int], position: Position
) -> tuple[Floats, Floats]:
    """Latitudes and longitudes of the centres of fragments, in the order of the file.

    Parameters and errors are those of `read`.
    """
    swap = position == "swap" or (position == "auto" and order_of(path) == "transposed")
    with reading_parquet(path, columns=NEEDED) as file:
        check(file.schema_arrow, path)
        table = file.read_row_groups(list(row_groups), columns=list(NEEDED))
        part = _Part(path, table, _numbers(file, row_groups), swap=swap)
    return part.lat, part.lon


class _Part:
    """Some row groups of a file: where their fragments lie, and what they are of."""

    def __init__(
        self, path: str | Path, table: "pa.Table", number: Integers, *, swap: bool
    ) -> None:
        self._path, self._number = path, number
        columns = {name: distinct(table.column(name)) for name in TEXTS}
        self._cell_text, self._cell = columns["grid_cell"]
        self._product_text, self._product = columns["product_id"]
        self._time_text, self._time = columns["timestamp"]
        row, col = self._each("grid_cell", self._cell_text, self._cell, GRID.parse)
        crs = self._each("utm_crs", *columns["utm_crs"], lambda texts: (codes_of(texts),))
        self.row, self.col, self.epsg = (
            row[self._cell],
            col[self._cell],
            crs[0][columns["utm_crs"][1]],
        )
        self._middles = GRID.centre(row, col)
        self.lat, self.lon = (_floats(table.column(f"centre_{axis}")) for axis in ("lat", "lon"))
        self.box = boxes(table.column("pixel_bbox"), path, number)
        self._check_centres()
        self.moved = np.zeros(len(number), bool)
        if swap:
            self.box = self.box[:, [1, 0, 3, 2]]
            self.moved = self.box[:, 0] != self.box[:, 1]
            self._place(self.moved)

    def _each(self, name: str, texts: Any, code: Integers, parse: Any) -> Any:
        """Parse the distinct texts of a column; an error names the first row that has it."""
        try:
            return parse(texts)
        except GridError:
            for i, text in enumerate(texts):
                try:
                    parse([text])
                except GridError as error:
                    row = self._number[int(np.argmax(code == i))]
                    raise RowsError(f"{self._path}: row {row}: {error}") from error
            raise

    def cell_centres(self) -> tuple[Floats, Floats]:
        """Latitudes and longitudes of the centres of the fragments' cells."""
        lat, lon = self._middles
        return lat[self._cell], lon[self._cell]

    def _check_centres(self) -> None:
        """Check that centres lie on the globe and near their cells.

        Across 180° the released centroids are means of longitudes on both sides, thus near 0; such
        centres are made anew.
        """
        on_globe = (np.abs(self.lat) <= 90) & (np.abs(self.lon) <= 180)
        if not on_globe.all():
            i = int(np.argmin(on_globe))
            raise RowsError(
                f"{self._path}: the footprint of row {self._number[i]} lies outside the globe: its "
                f"centre is at latitude {self.lat[i]:g}, longitude {self.lon[i]:g}; expected "
                "degrees from -90 to 90 and from -180 to 180; make that row anew, or drop it"
            )
        lat, lon = self.cell_centres()
        cosine = np.cos(np.radians(lat))
        east = (self.lon - lon + 180) % 360 - 180
        north = (self.lat - lat) * _KM
        far = np.hypot(north, east * _KM * cosine) > FAR
        near_180 = 180 - np.abs(lon) < 2 * FAR / _KM / np.maximum(cosine, 0.01)
        # The mean of latitudes is right all the same; where it is not, the id is wrong.
        across = far & near_180 & (np.abs(north) <= FAR)
        if across.any():
            self._place(across)
        if (wrong := far & ~across).any():
            self._refuse(int(np.argmax(wrong)))

    def _refuse(self, i: int) -> NoReturn:
        lat, lon = (a[i] for a in self.cell_centres())
        raise RowsError(
            f"{self._path}: row {self._number[i]} contradicts itself: cell "
            f"{self._cell_text[self._cell[i]]} lies at latitude {lat:.3f}, longitude {lon:.3f}, "
            f"the centre of the row at {self.lat[i]:.3f}, {self.lon[i]:.3f}, which is in cell "
            f"{GRID.names(*(np.atleast_1d(a) for a in GRID.at(self.lat[i], self.lon[i])))[0]}; "
            "drop such rows, or get the file anew"
        )

    def _place(self, chosen: NDArray[np.bool_]) -> None:
        """Make the centres of some fragments anew, from their boxes in the images of cells."""
        epsg, box = self.epsg[chosen], self.box[chosen]
        left, top = self._squares(chosen)
        east = left + PIXEL * (box[:, 0] + box[:, 2]) / 2
        north = top - PIXEL * (box[:, 1] + box[:, 3]) / 2
        self.lat, self.lon = self.lat.copy(), self.lon.copy()
        self.lat[chosen], self.lon[chosen] = unproject(east, north, epsg)

    def corners(self, table: "pa.Table") -> Floats:
        """Footprints as closed polygons, (n, 5, 2): as given, or made of boxes."""
        corners = np.zeros((len(self.row), 5, 2))
        made = self.moved
        if "geometry" in table.column_names:
            given, plain = _polygons(table.column("geometry"))
            made = made | ~plain
            corners[plain] = given[plain]
            lon = corners[..., 0]
            corners[..., 0] = lon[:, :1] + (lon - lon[:, :1] + 180) % 360 - 180
        else:
            made = np.ones_like(made)
        left, top = self._squares(made)
        corners[made] = footprints(left, top, self.epsg[made], self.box[made]).corners
        return corners

    def _squares(self, chosen: NDArray[np.bool_]) -> tuple[Floats, Floats]:
        """Upper left corners of the images of some fragments, once for all of one image."""
        images = np.stack([self.row, self.col, self.epsg], axis=1)[chosen]
        # Fragments of an image stand side by side in most files.
        first = np.flatnonzero(np.any(np.diff(images, axis=0, prepend=-1), axis=1))
        left, top = squares(*images[first].T)
        times = np.diff(np.append(first, len(images)))
        return np.repeat(left, times), np.repeat(top, times)

    def rows(self, lat: Floats, lon: Floats) -> Rows:
        """Rows of the fragments, in the cells that hold some points."""
        starts = [str(text)[:2] for text in self._product_text]
        if unknown := [i for i, start in enumerate(starts) if start not in _MODALITIES]:
            row = self._number[int(np.argmax(self._product == unknown[0]))]
            raise RowsError(
                f"{self._path}: row {row}: product {self._product_text[unknown[0]]!r:.80} is of no "
                "known sensor; expected names that begin with S1, S2 or DEM"
            )
        modality = np.array([ORDER[_MODALITIES[start]] for start in starts], np.int8)
        hashes = [hashlib.blake2b(str(t).encode(), digest_size=8) for t in self._product_text]
        product = np.array([int.from_bytes(h.digest(), signed=True) for h in hashes], np.int64)
        try:
            dates = np.array([yyyymmdd(text) for text in self._time_text], object)
        except OptionError as error:
            raise RowsError(f"{self._path}: column timestamp: {error!s:.200}") from error
        # Row, column and first pixels of the box as one number: none exceeds its bits.
        place = ((self.row + 2048) << 12 | (self.col + 2048)) << 28
        place |= (self.box[:, 1] << 14) | self.box[:, 0]
        return Rows(
            lattice.grid_id(*lattice.cell_at(lat, lon)),
            modality[self._product],
            self._cell_text[self._cell],
            dates[self._time],
            np.empty((len(self.row), 0), np.float32),
            identity=np.stack([place, product[self._product]]),
        )


def provenance(path: str | Path, assign: Assign, position: Position) -> dict[str, str]:
    """What made the vectors of a file, and what is done with them, for the attributes of a cube.

    Raises
    ------
    RowsError
        If the file is missing or is not parquet.
    """
    noted = read_provenance(path)
    order = noted.pop("footprints", None)
    found = {
        "product": "Major TOM",
        "title": "Major TOM embeddings on ERA5's 0.25 degree grid",
        "license": LICENCE,
        "references": _REFERENCE,
        "encoder_page": _PAGE,
    }
    # Released files say nothing of their model but by the name of their set.
    if names := [m[0] for m in map(_SET.search, reversed(Path(path).parts)) if m]:
        name = names[0].removesuffix(".parquet")
        found |= {"encoder": name, "source": f"Major TOM, {name}"}
        found["encoder_page"] = f"{_PAGE.replace('.co/', '.co/datasets/')}/{name}"
    found |= {"preprocessing": "as the embeddings' makers did it"} | noted
    found["aggregation_assign"] = _ASSIGNED[assign]
    if assign != "cell":
        found["footprints"] = _POSITIONS[position, order or order_of(path)]
    return found


def remarks(files: Sequence[str | Path], assign: Assign, position: Position) -> Iterator[str]:
    """Say in sentences what is done about the footprints of files, if that must be known.

    Raises
    ------
    RowsError
        If a file cannot be read.
    """
    if assign == "cell" or position != "auto":
        return
    orders = [order_of(file) for file in files]
    if transposed := orders.count("transposed"):
        yield (
            f"{transposed} of {len(files)} files have transposed footprints, as those that were "
            "released; their fragments are put back in place (--footprints given leaves them)"
        )
    if "unknown" in orders:
        yield (
            f"{files[orders.index('unknown')]}: the order of its rows does not tell whether "
            f"footprints are transposed, nor in {orders.count('unknown') - 1} files more; they are "
            "taken as given (--footprints swap puts them back, --assign cell makes no use of them)"
        )


_PAGE = "https://huggingface.co/Major-TOM"
_REFERENCE = "https://arxiv.org/abs/2412.05600"
_ASSIGNED = {
    "centre": "to the cell that holds the centre of the fragment",
    "area": "to all cells that the fragment overlaps, weighted by the share of its footprint",
    "cell": "to the cell that holds the centre of the fragment's Major TOM cell",
}
_POSITIONS: dict[tuple[str, str], str] = {
    ("auto", "transposed"): "transposed in the files, and put back",
    ("auto", "right"): "right in the files",
    (
        "auto",
        "unknown",
    ): "taken as given: the order of the rows does not tell if they are transposed",
    **{("given", order): f"taken as given ({order})" for order in get_args(Order)},
    **{
        ("swap", order): f"rows and columns exchanged, as asked ({order})"
        for order in get_args(Order)
    },
}


def order_of(path: str | Path) -> Order:
    """Whether the boxes of a file's fragments are right or transposed, or cannot be told.

    Raises
    ------
    RowsError
        If the file cannot be read.
    """
    changed = 0 if is_remote(path) else os.stat(path).st_mtime_ns if os.path.exists(path) else 0
    return _order_of(str(path), changed)


@lru_cache(maxsize=4096)
def _order_of(path: str, _changed: int) -> Order:
    noted = read_provenance(path).get("footprints")
    if noted in ("right", "transposed"):
        return noted  # type: ignore[return-value]
    columns = ("grid_cell", "product_id", "centre_lat", "centre_lon", "pixel_bbox")
    with reading_parquet(path, columns=columns) as file:
        check(file.schema_arrow, path)
        batch = next(file.iter_batches(_LOOK, columns=list(columns)), None)
    if batch is None:
        return "unknown"
    import pyarrow as pa

    table = pa.Table.from_batches([batch])
    cell, product = (distinct(table.column(name))[1] for name in columns[:2])
    lat, lon = (_floats(table.column(name)) for name in columns[2:4])
    box = boxes(table.column("pixel_bbox"), path, np.arange(len(table)))
    return order(cell, product, lat, lon, box)


def order(cell: Integers, product: Integers, lat: Floats, lon: Floats, box: Integers) -> Order:
    """Whether fragments, in the order in which they were embedded, have right or transposed boxes.

    Parameters
    ----------
    cell, product : numpy.ndarray
        Numbers of cell and product of each, (n,).
    lat, lon : numpy.ndarray
        Centres in degrees, (n,).
    box : numpy.ndarray
        Boxes, (n, 4).

    Returns
    -------
    {"right", "transposed", "unknown"}
        Unknown if the rows of a cell do not stand side by side in a raster, as in files that were
        sorted otherwise, or a cell has a single fragment.
    """
    if (box[:, 0] == box[:, 1]).all():
        return "right"  # as the central fragment alone: it is its own transpose
    same = (np.diff(cell) == 0) & (np.diff(product) == 0)
    x, y = np.diff(box[:, 0])[same], np.diff(box[:, 1])[same]
    north, east = np.diff(lat)[same], np.diff(lon)[same]
    # Steps of a raster go forward along one side, or back to its beginning on the next line.
    along_x = (
        (x > 0) & (y == 0) & (np.abs(east * np.cos(np.radians(lat[1:][same]))) > np.abs(north))
    )
    along_y = (
        (y > 0) & (x == 0) & (np.abs(east * np.cos(np.radians(lat[1:][same]))) < np.abs(north))
    )
    next_line = ((x < 0) & (y > 0)) | ((x > 0) & (y < 0))
    if not (along_x | along_y | next_line).all():
        return "unknown"
    if along_x.any() and not along_y.any():
        return "right"
    if along_y.any() and not along_x.any():
        return "transposed"
    return "unknown"


def _numbers(file: "pq.ParquetFile", row_groups: Sequence[int]) -> Integers:
    """Numbers in the file of the rows of some row groups."""
    sizes = np.array([file.metadata.row_group(g).num_rows for g in range(file.num_row_groups)])
    first = np.cumsum(sizes) - sizes
    ranges = [np.arange(first[g], first[g] + sizes[g]) for g in row_groups]
    return np.concatenate([np.empty(0, np.int64), *ranges])


def _floats(column: "pa.ChunkedArray") -> Floats:
    """Numbers of a column in float64, NaN for what is missing."""
    import pyarrow as pa

    column = column.cast(pa.float64())
    parts = [np.asarray(_plain(chunk), np.float64) for chunk in column.chunks]
    return np.concatenate([np.empty(0), *parts])


def _plain(array: "pa.Array") -> NDArray[Any]:
    # Not `to_numpy` unless it must be, which imports pandas.
    return array.to_numpy(zero_copy_only=False) if array.null_count else np.from_dlpack(array)


def boxes(column: "pa.ChunkedArray", path: str | Path, number: Integers) -> Integers:
    """Boxes (n, 4) of a column of lists.

    Raises
    ------
    RowsError
        If one is missing or is none; names its row, by the numbers of the rows.
    """
    import pyarrow as pa

    found = [np.empty((0, 4), np.int64)]
    start = 0
    for chunk in column.chunks:
        here = number[start : start + len(chunk)]
        start += len(chunk)
        values, four = chunk.flatten(), len(chunk) * 4
        if chunk.null_count or values.null_count or len(values) != four:
            lengths = [len(box or []) for box in chunk.to_pylist()]
            bad = next((i for i, n in enumerate(lengths) if n != 4), 0)
            raise RowsError(
                f"{path}: pixel_bbox of row {here[bad]} is not four numbers [x0, y0, x1, y1]"
            )
        found.append(_plain(values.cast(pa.int64())).reshape(-1, 4))
    box = np.concatenate(found)
    wrong = (box[:, :2] < 0) | (box[:, 2:] <= box[:, :2]) | (box[:, 2:] >= _MOST)
    if wrong.any():
        i = int(np.argmax(wrong.any(axis=1)))
        raise RowsError(
            f"{path}: pixel_bbox of row {number[i]} is {box[i].tolist()}; expected "
            f"[x0, y0, x1, y1] inside an image, such as [0, 211, 224, 435]"
        )
    return box


def _polygons(column: "pa.ChunkedArray") -> tuple[Floats, NDArray[np.bool_]]:
    """Corners (n, 5, 2) of well-known binary, and which are polygons of five points."""
    found = [np.empty(0, _POLYGON)]
    for chunk in column.chunks:
        offsets, data = _binary(chunk)
        record = np.zeros(len(chunk), _POLYGON)
        whole = np.flatnonzero(np.diff(offsets) == _POLYGON.itemsize)
        # A view of each polygon's bytes, wherever they begin.
        starts = offsets[whole, np.newaxis] + np.arange(_POLYGON.itemsize)
        record[whole] = np.ascontiguousarray(data[starts]).view(_POLYGON)[:, 0]
        found.append(record)
    records = np.concatenate(found)
    plain: NDArray[np.bool_] = (records["head"] == np.frombuffer(_HEAD, np.uint8)).all(axis=1)
    return records["points"].astype(np.float64), plain


def _binary(chunk: "pa.Array") -> tuple[Integers, NDArray[np.uint8]]:
    """Offsets (n + 1,) and bytes of a column of bytes, without copying them."""
    import pyarrow as pa

    chunk = chunk.cast(pa.large_binary())
    _, offsets, data = chunk.buffers()
    ends = np.frombuffer(offsets, np.int64)[chunk.offset : chunk.offset + len(chunk) + 1]
    return ends, np.frombuffer(data or b"", np.uint8)


_HEAD = b"\x01\x03\x00\x00\x00\x01\x00\x00\x00\x05\x00\x00\x00"
