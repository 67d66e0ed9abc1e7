"""Rows to cells: the mean of a cell's images, their number and their spread.

The mean is a weighted sum over images in float64, whose order is fixed by cell, modality, local
patch and date; and a cell is always computed from all its rows together. So the result is the same
to the last bit for any order of files, number of workers and division of rows into parts.

`copcube.parts` divides files into parts, and these into runs. `survey` finds which cells lie in
several runs; `combine` computes the cells that are complete in a run, `combine_pass` the others.
"""

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from copcube import grid, provenance
from copcube.arguments import one_of
from copcube.balance import Variances, equalised
from copcube.cells import Cells
from copcube.errors import OptionError, RepeatedError, RowsError, few
from copcube.files.processors import computing_threads
from copcube.grouping import By, group_names, groups_of
from copcube.lookahead import map_ahead
from copcube.means import Means
from copcube.modalities import MODALITIES
from copcube.parts import Part, read_part, runs
from copcube.products import tables
from copcube.products.pixels import day_of
from copcube.products.tables import Assign, Position
from copcube.rows import Rows, describe, repeated
from copcube.selection import Selection

__all__ = [
    "Aggregation",
    "Cells",
    "Survey",
    "cell_statistics",
    "combine",
    "combine_pass",
    "passes",
    "survey",
]

Balance = Literal["modality", "image", "variance"]
Duplicates = Literal["refuse", "drop"]

_PASS = 100_000
_THREADS = 4
"""Most threads on which a part is decoded; each takes about 20 MB."""


@dataclass(frozen=True)
class Aggregation:
    """How images become cells.

    Parameters
    ----------
    balance : {"modality", "image", "variance"}
        Mean of the modalities' means; of all images alike; or of the modalities' means after
        each modality was scaled so that all have the same variance over cells
        (`copcube.balance`).
    by : {"modality", "month", "season", "year"}, optional
        Make one cell a group instead of one in all. Images without a date (the DEM) are in
        no month, season or year and are left out of such groups.
    selection : Selection
        Modalities and dates that take part.
    duplicates : {"refuse", "drop"}
        What to do with a second row of the same cell, modality, local patch and date: an
        error, or keep the first one in the order of file names and rows.
    assign : {"centre", "area", "cell"}
        To which cells the fragments of another product belong; see
        `copcube.products.majortom.reading.read`. Rows of images name their cells.
    footprints : {"auto", "given", "swap"}
        How to treat transposed footprints of such a product; see there.
    """

    balance: Balance = "modality"
    by: By | None = None
    selection: Selection = field(default_factory=lambda: Selection(tuple(MODALITIES)))
    duplicates: Duplicates = "refuse"
    assign: Assign = "centre"
    footprints: Position = "auto"

    def __post_init__(self) -> None:
        kinds = {"balance": Balance, "by": By, "duplicates": Duplicates}
        for name, kind in (kinds | {"assign": Assign, "footprints": Position}).items():
            if name != "by" or self.by is not None:
                one_of(getattr(self, name), name, get_args(kind))


@dataclass(frozen=True)
class Survey:
    """Result of a first look at the small columns of all parts.

    Parameters
    ----------
    groups : tuple of str
        Labels of the groups, in order; empty without ``by``.
    dim : int
        Length of the vectors.
    rows, images : int
        Rows in all, and those that are selected, repeated images included; a fragment in
        several cells counts in each.
    images_by_modality : tuple of int
        Selected rows of every modality that belong to a group, in the order of
        `Selection.labels`; what has no date belongs to no month, season or year.
    cells : int
        Cells that have a selected image.
    provenance : dict
        What made the vectors, as far as all files agree on it.
    split_cell, split_part, split_rows : numpy.ndarray
        Cells with selected images in several runs of parts, ordered from north to south; in
        which part, by its number, and in how many rows of it. (m,) int64, one entry a cell
        and part.
    """

    groups: tuple[str, ...]
    dim: int
    rows: int
    images: int
    images_by_modality: tuple[int, ...]
    cells: int
    provenance: dict[str, str]
    split_cell: NDArray[np.int64]
    split_part: NDArray[np.int64]
    split_rows: NDArray[np.int64]


def survey(parts: Sequence[Part], aggregation: Aggregation) -> Survey:
    """Read the small columns of all parts: groups, totals and cells in several runs of parts.

    Raises
    ------
    RowsError
        If a file cannot be read, files hold vectors of different lengths or encoders, or
        the groups are times and no selected image has a date.
    """
    files = sorted({part.file for part in parts})
    dim, made_by = provenance.of_all(
        files, aggregation.selection, aggregation.assign, aggregation.footprints
    )
    if any(map(tables.is_of_pixels, files)):
        _check_pixels(files, aggregation)
    names = aggregation.selection.labels
    total = images = 0
    by_modality = np.zeros(len(names), np.int64)
    dates: set[str] = set()
    by_time = aggregation.by in ("month", "season", "year")
    nothing = np.empty(0, np.int64)
    seen = [(nothing, nothing, nothing)]
    read = partial(read_part, assign=aggregation.assign, position=aggregation.footprints)
    for number, rows in enumerate(map_ahead(read, parts, computing_threads(_THREADS))):
        total += len(rows)
        rows = rows.labelled(names)
        rows = rows.take(_selected(rows, aggregation.selection))
        images += len(rows)
        modality = rows.modality
        if by_time:
            modality = modality[[date is not None for date in rows.date]]
        by_modality += np.bincount(modality, minlength=len(names))
        if aggregation.by:
            dates |= set(rows.date) - {None}
        cell, count = np.unique(rows.grid_id, return_counts=True)
        seen.append((cell, np.full(len(cell), number), count))
    if images and not dates and by_time:
        raise RowsError(
            f"none of the {images:,} selected images has a date, so none belongs to a "
            f"{aggregation.by}; select other modalities or another grouping"
        )
    cell, part_number, count = (np.concatenate(arrays) for arrays in zip(*seen, strict=True))
    distinct, inverse = np.unique(cell, return_inverse=True)
    together = runs(parts)
    run = np.repeat(np.arange(len(together)), [run.stop - run.start for run in together])
    pairs = np.unique(inverse * len(parts) + run[part_number])
    times = np.bincount(pairs // max(1, len(parts)), minlength=len(distinct))
    # A cell in two runs is averaged from all its rows, after the runs, since means of means would
    # not be exact.
    split = np.flatnonzero(times[inverse] > 1)
    split = split[np.lexsort((part_number[split], *grid.row_col(cell[split])[::-1]))]
    return Survey(
        groups=group_names(aggregation.by, aggregation.selection, dates),
        dim=dim,
        rows=total,
        images=images,
        images_by_modality=tuple(int(n) for n in by_modality),
        cells=len(distinct),
        provenance=made_by,
        split_cell=cell[split],
        split_part=part_number[split],
        split_rows=count[split],
    )


def cell_statistics(rows: Rows, aggregation: Aggregation, groups: tuple[str, ...]) -> Cells:
    """Statistics of the cells of rows; every cell must have all its rows.

    Parameters
    ----------
    rows : Rows
        In any order.
    aggregation : Aggregation
        What takes part and how.
    groups : tuple of str
        Labels of the groups, as `Survey.groups`; empty without ``by``.

    Returns
    -------
    Cells
        Weights are ``1 / n`` (balance "image") or ``1 / (modalities · images of the
        modality)`` (the others), within the cell and group; they sum to 1 and
        serve mean and spread alike, which `copcube.means` computes.

    Raises
    ------
    RowsError
        If an image occurs twice and duplicates are refused.
    """
    plan = _Sums(rows, aggregation, groups)
    means = plan.means(len(rows), rows.embedding.shape[1])
    means.wait([means.of_block(0, rows.embedding)])
    cells = plan.cells(means)
    return equalised(cells, Variances.of(cells)) if aggregation.balance == "variance" else cells


class _Sums:
    """Assignment of rows to cells, with weights.

    Parameters
    ----------
    rows, aggregation, groups
        As `cell_statistics`; the vectors are not looked at.
    files : numpy.ndarray, optional
        File of every row, (n,) object, to be named in messages.
    """

    def __init__(
        self,
        rows: Rows,
        aggregation: Aggregation,
        groups: tuple[str, ...],
        files: NDArray[np.object_] | None = None,
    ) -> None:
        # Images of sensors that were not selected get no number and are left out.
        rows = rows.labelled(aggregation.selection.labels)
        images = replace(rows, embedding=np.empty((len(rows), 0), np.float32))
        index = np.flatnonzero(_selected(images, aggregation.selection))
        keys = images.keys
        if len(index) < len(rows):
            keys = keys[:, index]
        order = np.lexsort(keys[::-1])
        index, again = index[order], repeated(keys.take(order, axis=1))
        if again.any() and aggregation.duplicates == "refuse":
            raise RepeatedError(_refusal(rows, index, int(np.argmax(again)), files))
        self.duplicates = int(again.sum())
        index = index[~again]
        group = groups_of(images, aggregation.by, groups)[index]
        index, group = index[group >= 0], group[group >= 0]
        if aggregation.balance == "variance":
            group = group * len(rows.labels) + rows.modality[index]

        row, col = grid.row_col(rows.grid_id[index])
        # The order of the cube: groups, then rows from the north, then columns from Greenwich.
        place = (group * grid.N_LAT + row) * grid.N_LON + col
        order = np.argsort(place, kind="stable")
        index, group = index[order], group[order]
        _, start, cell, n_images = np.unique(
            place[order], return_index=True, return_inverse=True, return_counts=True
        )
        n, m = len(start), len(rows.labels)
        slot = cell * m + rows.modality[index]
        n_by_modality = np.bincount(slot, minlength=n * m).reshape(n, m)
        # Weights within a cell and group sum to 1.
        if aggregation.balance == "image":
            weight = _shares(rows, index, cell, n_images)
        else:
            weight = _shares(rows, index, slot, n_by_modality.ravel())
            weight /= (n_by_modality > 0).sum(axis=1)[cell]
        self.grid_id, self.group = rows.grid_id[index[start]], group[start].astype(np.int16)
        self.n_images = n_images.astype(np.int32)
        self.n_by_modality = n_by_modality.astype(np.int32)
        self._index, self._weight, self._bounds = index, weight, np.append(start, len(index))

    def means(self, rows: int, dim: int) -> Means:
        """Return an object that computes the means of all rows."""
        return Means(rows, dim, self._index, self._weight, self._bounds)

    def cells(self, means: Means) -> Cells:
        """Cells of the means, once all rows have arrived."""
        return Cells(
            self.grid_id,
            self.group,
            self.n_images,
            self.n_by_modality,
            means.spread,
            means.mean,
            duplicates=self.duplicates,
        )


def _shares(
    rows: Rows, index: NDArray[np.int64], place: NDArray[np.int64], number: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Share of each image in what lies at its place, where there is a number of images."""
    if rows.weight is None:
        return 1.0 / number[place]
    weight = rows.weight[index]
    shares: NDArray[np.float64] = weight / np.bincount(place, weight, len(number))[place]
    return shares


def combine(parts: Sequence[Part], aggregation: Aggregation, survey: Survey) -> Cells:
    """Statistics of the cells that are complete in one run of parts.

    With the balance "variance" they are those of single modalities, which
    `copcube.balance.equalised` joins.

    Raises
    ------
    RowsError
        As `read_rows` and `cell_statistics`.
    """
    # Cells that other runs hold rows of too are left to `combine_pass`.
    return _combined(parts, aggregation, survey, survey.split_cell, leave_out=True)


def _combined(
    parts: Sequence[Part],
    aggregation: Aggregation,
    survey: Survey,
    cells: NDArray[np.int64],
    *,
    leave_out: bool = False,
) -> Cells:
    """Statistics of cells, or of all but those, whose rows are all in some parts."""
    # By name, so that the sums have the same order whatever the order of the files given.
    parts = sorted(parts, key=lambda part: (part.file, part.row_groups))
    read = [read_part(part, aggregation.assign, aggregation.footprints) for part in parts]
    if any(tables.is_of_pixels(part.file) for part in parts):
        groups = [_group_of_all(rows, aggregation, survey.groups) for rows in read]
        return tables.pixel_cells(
            [(p.file, p.row_groups, g) for p, g in zip(parts, groups, strict=True) if g >= 0],
            lambda ids: np.isin(ids, cells, invert=leave_out),
            survey.dim,
        )
    wanted = [np.isin(rows.grid_id, cells, invert=leave_out) for rows in read]
    chosen = [rows.take(mask) for rows, mask in zip(read, wanted, strict=True)]
    names = np.array([part.file for part in parts], object)
    files = np.repeat(names, [len(table) for table in chosen])
    rows = Rows.concatenate(chosen)
    sums = _Sums(rows, aggregation, survey.groups, files)
    means = sums.means(len(rows), survey.dim)
    threads, before = computing_threads(_THREADS), 0
    for part, table, mask in zip(parts, read, wanted, strict=True):
        # A block's complete cells are computed on threads as soon as it is decoded.
        left = tables.map_vectors(
            means.of_block, part.file, part.row_groups, table, mask, before, threads=threads
        )
        with closing(left):
            means.wait(left, threads)
        before += int(mask.sum())
    return sums.cells(means)


def passes(survey: Survey) -> list[slice]:
    """Divide the cells that lie in several runs into passes, from north to south.

    Returns
    -------
    list of slice
        Runs of the entries of `Survey.split_cell`; a pass has whole cells, of about 100,000
        rows.
    """
    if not len(survey.split_cell):
        return []
    first = np.flatnonzero(np.diff(survey.split_cell, prepend=-1))
    number = np.cumsum(np.add.reduceat(survey.split_rows, first)) // _PASS
    starts = first[np.flatnonzero(np.diff(number, prepend=-1))]
    stops = np.append(starts[1:], len(survey.split_cell))
    return [slice(int(a), int(b)) for a, b in zip(starts, stops, strict=True)]


def combine_pass(
    parts: Sequence[Part], aggregation: Aggregation, survey: Survey, entries: slice
) -> Cells:
    """Statistics of the cells of one pass, each of which lies in several runs of parts.

    Reads only the row groups that hold its cells. It is quick where files keep neighbouring cells
    together, whatever else they are divided by; rows in random order cost one reading of everything
    per pass.

    Parameters
    ----------
    parts : sequence of Part
        The same parts as in the survey.
    aggregation : Aggregation
        The same as in the survey.
    survey : Survey
        What `survey` found.
    entries : slice
        One of `passes`.

    Raises
    ------
    RowsError
        As `read_rows` and `cell_statistics`.
    """
    cells = np.unique(survey.split_cell[entries])
    holders = [parts[i] for i in np.unique(survey.split_part[entries])]
    return _combined(holders, aggregation, survey, cells)


def _check_pixels(files: Sequence[str], aggregation: Aggregation) -> None:
    """Check that the options apply to vectors of pixels, each of which covers a year."""
    if other := [file for file in files if not tables.is_of_pixels(file)]:
        raise RowsError(
            f"{other[0]} holds rows, {next(filter(tables.is_of_pixels, files))} one vector per "
            "pixel; aggregate them one at a time"
        )
    for name, refused in (("balance", ("variance",)), ("by", ("month", "season", "modality"))):
        if (value := getattr(aggregation, name)) in refused:
            raise OptionError(
                f"{name}={value!r} does not apply to {files[0]}: its vectors are of years, and not "
                "of a single modality; leave it out, or group them by year"
            )
    selection = aggregation.selection
    if aggregation.by == "year" or selection.start or selection.end:
        made = {file: tables.provenance(file, "centre", "auto") for file in files}
        if undated := [file for file, said in made.items() if "product_years" not in said]:
            raise RowsError(
                f"{undated[0]}: neither its name nor its folders give its year, which dates and "
                "groups need; put it into a folder named after its year, such as 2024"
            )
        years = sorted({year for said in made.values() for year in said["product_years"].split()})
        if not any(selection.admits(day_of(int(year))) for year in years):
            raise OptionError(
                f"the chosen dates admit no vector of {few(files, 1)}: each covers a whole year, "
                f"here {few(years)}; choose years, such as --dates {years[0]}"
            )


def _group_of_all(rows: Rows, aggregation: Aggregation, groups: tuple[str, ...]) -> int:
    """Group of rows that have a date and a modality in common; -1 if they are not selected."""
    first = rows.take(np.arange(min(1, len(rows)))).labelled(aggregation.selection.labels)
    if not _selected(first, aggregation.selection).all() or not len(first):
        return -1
    return int(groups_of(first, aggregation.by, groups)[0])


def _selected(rows: Rows, selection: Selection) -> NDArray[np.bool_]:
    # A modality whose label was left out has the number -1, hence the last place.
    among = np.zeros(len(rows.labels) + 1, bool)
    among[[rows.labels.index(key) for key in selection.modalities]] = True
    chosen: NDArray[np.bool_] = among[rows.modality]
    if selection.start or selection.end:
        admitted = {date: selection.admits(date) for date in set(rows.date)}
        chosen &= np.array([admitted[date] for date in rows.date], bool)
    return chosen


def _refusal(
    rows: Rows, index: NDArray[np.int64], second: int, files: NDArray[np.object_] | None
) -> str:
    where = ""
    if files is not None:
        a, b = files[index[second - 1]], files[index[second]]
        where = f", both in {a}" if a == b else f", in {a} and in {b}"
    return (
        f"the image {describe(rows, int(index[second]))} has two rows{where}; remove one, or "
        "keep the first by duplicates='drop'"
    )
