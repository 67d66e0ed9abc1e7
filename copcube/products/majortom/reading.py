"""Files of embeddings in Major TOM's columns, released or our own, as rows on ERA5's lattice.

Fragments found to be transposed (`copcube.products.majortom.transposed`) are corrected: x and y of
the box are exchanged, and the centre is that of the box in the cell's image.
"""

import hashlib
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn

import numpy as np
from numpy.typing import NDArray

from copcube import grid as lattice
from copcube.dates import yyyymmdd
from copcube.errors import GridError, OptionError, RowsError
from copcube.files.processors import computing_threads
from copcube.grid import Floats, Integers
from copcube.lookahead import map_ahead
from copcube.modalities import ORDER
from copcube.products.majortom.columns import (
    NEEDED,
    TEXTS,
    boxes,
    check,
    divided,
    floats,
    modality_of,
    polygons,
    row_numbers,
)
from copcube.products.majortom.fragments import continuous, outlines
from copcube.products.majortom.grid import GRID, PIXEL, codes_of, squares, unproject
from copcube.products.majortom.transposed import Position, is_swapped
from copcube.products.overlap import overlaps
from copcube.rows import Rows, distinct, reading_parquet, row_group_sizes

if TYPE_CHECKING:
    import pyarrow as pa

Assign = Literal["centre", "area", "cell"]

FAR = 12.0
"""Most kilometres between the centre of a fragment and that of its cell; 7.5 in 10.68 km images."""

_KM = 111.32
"""Kilometres of a degree of latitude."""

_LEAST_KM = 110.5
"""Fewer kilometres than any degree of latitude has, or of longitude by its cosine."""

_INTERPOLATED, _MARGIN = 2048, 0.2
"""Most pixels of an image in which places are interpolated, and kilometres that allow for it: the
error is some d² tan(latitude) / 8R, hence below 0.05 km."""

_AT_ONCE, _THREADS = 1 << 15, 4
"""Rows that a thread reads at a time, and most threads."""


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
        How to treat transposed fragments: correct those found, none, or all.

    Returns
    -------
    Rows
        With `Rows.identity`; with "area" also `Rows.weight` and `Rows.source`, and a row for
        every cell that a fragment overlaps.

    Raises
    ------
    RowsError
        If the file cannot be read or lacks columns, an id is invalid or contradicts its centre, a
        centre lies outside the globe, or a product's sensor is unknown.
    """
    swap = is_swapped(path, position)
    columns = (*NEEDED, *["geometry"] * (assign == "area"))
    # Pages of the columns are checked here, once, and not by each thread.
    sizes = row_group_sizes(path, columns)
    ends = np.cumsum([sizes[group] for group in row_groups])
    # Runs of row groups, each read by a thread.
    found = np.split(np.array(row_groups), np.flatnonzero(np.diff(ends // _AT_ONCE)) + 1)
    runs: list[list[int]] = [run.tolist() for run in found]
    read_run = partial(_read_run, path, columns=columns, assign=assign, swap=swap)
    with closing(map_ahead(read_run, runs, computing_threads(_THREADS))) as read_runs:
        tables = list(read_runs)
    table = Rows.concatenate(tables)
    if assign != "area" or len(tables) == 1:
        return table
    before = np.cumsum([0, *(sum(sizes[group] for group in run) for run in runs)])
    sources = [t.source + n for t, n in zip(tables, before, strict=False) if t.source is not None]
    return replace(table, source=np.concatenate(sources))


def _read_run(
    path: str | Path,
    row_groups: Sequence[int],
    *,
    columns: Sequence[str],
    assign: Assign,
    swap: bool,
) -> Rows:
    with reading_parquet(path, columns=columns) as file:
        check(file.schema_arrow, path)
        names = [name for name in columns if name in file.schema_arrow.names]
        table = file.read_row_groups(list(row_groups), columns=names)
        number = row_numbers(file, row_groups)
    part = _Part(path, table, number, swap=swap)
    if assign != "area" or not len(table):
        lat, lon = part.cell_centres() if assign == "cell" else part.centres()
        return part.rows(lattice.grid_id(*lattice.cell_at(lat, lon)))
    source, cell, share = part.overlaps(table)
    rows = part.rows(np.zeros(len(table), np.int64)).take(source)
    return replace(rows, grid_id=cell, weight=share, source=source)


def centres(
    path: str | Path, row_groups: Sequence[int], position: Position
) -> tuple[Floats, Floats]:
    """Latitudes and longitudes of the centres of fragments, in the order of the file.

    Parameters and errors are those of `read`.
    """
    swap = is_swapped(path, position)
    with reading_parquet(path, columns=NEEDED) as file:
        check(file.schema_arrow, path)
        table = file.read_row_groups(list(row_groups), columns=list(NEEDED))
        part = _Part(path, table, row_numbers(file, row_groups), swap=swap)
    return part.centres()


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
        row, col = self._each(self._cell_text, self._cell, GRID.parse)
        self.row, self.col = row[self._cell], col[self._cell]
        crs_text, crs = columns["utm_crs"]
        self.epsg = self._each(crs_text, crs, codes_of)[crs]
        self._middles = GRID.centre(row, col)
        self._lat, self._lon = (floats(table.column(f"centre_{axis}")) for axis in ("lat", "lon"))
        self.box = boxes(table.column("pixel_bbox"), path, number)
        self._check_centres()
        self.moved = np.zeros(len(number), bool)
        if swap:
            self.box = self.box[:, [1, 0, 3, 2]]
            self.moved = self.box[:, 0] != self.box[:, 1]

    def _each(self, texts: Any, code: Integers, parse: Any) -> Any:
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

    def centres(self) -> tuple[Floats, Floats]:
        """Latitudes and longitudes of the centres of fragments: as given, or made of boxes."""
        if self.moved.any():
            self._place(self.moved)
        return self._lat, self._lon

    def cell_centres(self) -> tuple[Floats, Floats]:
        """Latitudes and longitudes of the centres of the fragments' cells."""
        lat, lon = self._middles
        return lat[self._cell], lon[self._cell]

    def _check_centres(self) -> None:
        """Check that centres lie on the globe and near their cells.

        Across 180° the released centroids are means of longitudes on both sides, thus near 0; such
        centres are recomputed.
        """
        on_globe = (np.abs(self._lat) <= 90) & (np.abs(self._lon) <= 180)
        if not on_globe.all():
            i = int(np.argmin(on_globe))
            raise RowsError(
                f"{self._path}: the footprint of row {self._number[i]} lies outside the globe: its "
                f"centre is at latitude {self._lat[i]:g}, longitude {self._lon[i]:g}; expected "
                "degrees from -90 to 90 and from -180 to 180; make that row again, or drop it"
            )
        lat, lon = self.cell_centres()
        cosine = np.cos(np.radians(lat))
        east = (self._lon - lon + 180) % 360 - 180
        north = (self._lat - lat) * _KM
        far = np.hypot(north, east * _KM * cosine) > FAR
        near_180 = 180 - np.abs(lon) < 2 * FAR / _KM / np.maximum(cosine, 0.01)
        # The mean of latitudes is right nevertheless; if it is not, the id is wrong.
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
            f"the centre of the row at {self._lat[i]:.3f}, {self._lon[i]:.3f}, which is in cell "
            f"{GRID.names(*(np.atleast_1d(a) for a in GRID.at(self._lat[i], self._lon[i])))[0]}; "
            "drop such rows, or get a new copy of the file"
        )

    def _place(self, mask: NDArray[np.bool_]) -> None:
        """Recompute the centres of some fragments from their boxes in the images of cells."""
        chosen = np.flatnonzero(mask)
        epsg, box = self.epsg[chosen], self.box[chosen]
        left, top = self._squares(chosen)
        east = left + PIXEL * (box[:, 0] + box[:, 2]) / 2
        north = top - PIXEL * (box[:, 1] + box[:, 3]) / 2
        self._lat, self._lon = self._lat.copy(), self._lon.copy()
        self._lat[chosen], self._lon[chosen] = unproject(east, north, epsg)

    def overlaps(self, table: "pa.Table") -> tuple[Integers, Integers, Floats]:
        """Overlap of footprints with cells, as `copcube.products.overlap.overlaps`."""
        given, halves = np.empty((0, 5, 2)), np.empty((0, 17, 2))
        plain = two = np.zeros(len(table), bool)
        if "geometry" in table.column_names:
            given, plain = polygons(table.column("geometry"))
            halves, two = divided(table.column("geometry"), ~plain & ~self.moved)
        made = np.flatnonzero(self.moved | ~(plain | two))
        cell = self._only_cells(made)
        # Most fragments lie in one cell by far, so that no corner of theirs needs be known.
        inside, made = made[cell >= 0], made[cell < 0]
        kept = np.flatnonzero(plain & ~self.moved)
        polygon, cells, share = overlaps(
            np.concatenate([continuous(given[kept]), self._corners(made)])
        )
        half, beside_180, shares = overlaps(halves)
        source = np.concatenate([inside, np.append(kept, made)[polygon], np.flatnonzero(two)[half]])
        order = np.argsort(source, kind="stable")
        cells = np.concatenate([cell[cell >= 0], cells, beside_180])
        share = np.concatenate([np.ones(len(inside)), share, shares])
        return source[order], cells[order], share[order]

    def _corners(self, chosen: Integers) -> Floats:
        """Footprints made of boxes as closed polygons, (n, 5, 2)."""
        left, top = self._squares(chosen)
        return outlines(left, top, self.epsg[chosen], self.box[chosen])

    def _only_cells(self, chosen: Integers) -> Integers:
        """Cells that hold some fragments with all of their footprints; -1 where that is not sure.

        Where a fragment lies is interpolated between the corners of its image, which are fewer.
        """
        box, found = self.box[chosen], np.full(len(chosen), -1)
        side = box.max(initial=1)
        if side > _INTERPOLATED:
            return found
        first, times = self._images(chosen)
        left, top = self._squares(chosen[first])
        epsg = self.epsg[chosen[first]][:, np.newaxis]
        x = left[:, np.newaxis] + PIXEL * side * np.array([0, 1, 0, 1])
        y = top[:, np.newaxis] - PIXEL * side * np.array([0, 0, 1, 1])
        lat, lon = unproject(x, y, np.broadcast_to(epsg, x.shape))
        lon[np.ptp(lon, axis=1) > 180] = np.nan  # across 180°
        along, down = ((box[:, i] + box[:, i + 2]) / (2 * side) for i in (0, 1))
        weights = ((1 - along) * (1 - down), along * (1 - down), (1 - along) * down, along * down)
        lat, lon = (
            sum(w * np.repeat(corner, times) for w, corner in zip(weights, a.T, strict=True))
            for a in (lat, lon)
        )
        reach = _MARGIN + PIXEL / 2000 * np.hypot(box[:, 2] - box[:, 0], box[:, 3] - box[:, 1])
        cosine = np.cos(np.radians(np.abs(lat) + 0.1))
        north, east = reach / _LEAST_KM, reach / (_LEAST_KM * np.maximum(cosine, 0.1))
        i, j = (
            np.floor((a[:, np.newaxis] + b[:, np.newaxis] * [-1, 1]) / lattice.STEP + 0.5)
            for a, b in ((lat, north), (lon, east))
        )
        sure = (i[:, 0] == i[:, 1]) & (j[:, 0] == j[:, 1]) & (cosine > 0.1)
        row, col = (a[sure, 0].astype(np.int64) for a in (i, j))
        found[sure] = lattice.grid_id(360 - row, col % lattice.N_LON)
        return found

    def _squares(self, chosen: Integers) -> tuple[Floats, Floats]:
        """Upper left corners of the images of some fragments, once for all of one image."""
        first, times = self._images(chosen)
        some = chosen[first]
        left, top = squares(self.row[some], self.col[some], self.epsg[some])
        return np.repeat(left, times), np.repeat(top, times)

    def _images(self, chosen: Integers) -> tuple[Integers, Integers]:
        """First of some fragments of every image, and how many of it follow one another."""
        # They stand side by side in most files.
        new = np.ones(len(chosen), bool)
        new[1:] = False
        for number in (self.row, self.col, self.epsg):
            new[1:] |= np.diff(number[chosen]) != 0
        first = np.flatnonzero(new)
        return first, np.diff(np.append(first, len(chosen)))

    def rows(self, grid_id: Integers) -> Rows:
        """Rows of the fragments, in some cells."""
        keys = [modality_of(text) for text in self._product_text]
        if unknown := [i for i, key in enumerate(keys) if key is None]:
            row = self._number[int(np.argmax(self._product == unknown[0]))]
            raise RowsError(
                f"{self._path}: row {row}: product {self._product_text[unknown[0]]!r:.80} has an "
                "unknown sensor; expected names that begin with S1, S2 or DEM"
            )
        modality = np.array([ORDER[key] for key in keys if key], np.int8)
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
            grid_id,
            modality[self._product],
            self._cell_text[self._cell],
            dates[self._time],
            np.empty((len(self.row), 0), np.float32),
            identity=np.stack([place, product[self._product]]),
        )
