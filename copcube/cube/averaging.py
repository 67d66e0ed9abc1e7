"""Finding the order in which a file of averages was averaged.

The published averages are "averaged over the available modalities", but in which order is not
stated: over all images at once, or first over those that belong together. It matters: a cell with
four local patches has about 89 images, of which 48 are Sentinel-5P's and one is the DEM. So every
documented order is tried on the images of a sample of cells, and the one that reproduces the
averages to the precision of float32 is the answer.

An order is a nested mean. Its levels name what is kept apart, outermost first: with levels
(modality, date), images of one modality and date are averaged first, then the dates of a modality,
then the modalities of the cell. An image then has the weight ``Π 1 / (parts of its group)`` over
the levels, so each order is one vector of weights.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from copcube import grid
from copcube.arguments import whole_number
from copcube.cube.pairing import unlike_encoders
from copcube.cube.view import CubeView
from copcube.errors import CubeError, RowsError
from copcube.files.damage import naming_damage
from copcube.parts import Part, parts
from copcube.provenance import of_one_encoder, shared
from copcube.rows import Rows, read_rows, repeated, rows_files

if TYPE_CHECKING:
    import xarray as xr

ORDERS: dict[str, tuple[str, ...]] = {
    "all images alike": (),
    "modalities alike": ("modality",),
    "patches, then dates, then modalities": ("modality", "date"),
    "dates, then patches, then modalities": ("modality", "local"),
}
"""Name and levels of the orders to try."""

PRECISION = 1e-5
"""Relative error up to which an order matches, for means of hundreds of float32 vectors."""

_KEY = {"cell": 0, "modality": 1, "local": 2, "date": 3}
_PARTS_TO_SAMPLE = 16


@dataclass(frozen=True)
class Candidate:
    """One order of averaging, and its errors.

    Parameters
    ----------
    order : str
        Name, one of `ORDERS`.
    repeated : {"counted", "dropped", "none"}
        How repeated images (same cell, modality, local patch and date) were treated; "none" if the
        sample has none.
    max_absolute : float
        Largest absolute error of a value.
    max_relative : float
        Largest ``‖mean - average‖ / ‖average‖`` of a cell.
    """

    order: str
    repeated: str
    max_absolute: float
    max_relative: float

    @property
    def matches(self) -> bool:
        """Whether it reproduces every average of the sample to the precision of float32."""
        return self.max_relative <= PRECISION


@dataclass(frozen=True)
class AveragingOrder:
    """All orders, the closest first.

    Parameters
    ----------
    candidates : tuple of Candidate
        Ranked by their largest relative error.
    cells, images : int
        Size of the sample.
    encoders : str
        How rows and averages differ about their encoder; empty if they do not.
    """

    candidates: tuple[Candidate, ...]
    cells: int
    images: int
    encoders: str = ""

    @property
    def matching(self) -> tuple[Candidate, ...]:
        """Candidates that match; several if the sample cannot distinguish them."""
        return tuple(candidate for candidate in self.candidates if candidate.matches)

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        yield f"{self.cells:,} cells, {self.images:,} images"
        yield f"{'order of averaging':<37} {'repeated':<9} {'abs. error':>10} {'rel. error':>10}"
        for c in self.candidates:
            match = "  matches" if c.matches else ""
            yield (
                f"{c.order:<37} {c.repeated:<9} {c.max_absolute:>10.2e} {c.max_relative:>10.2e}"
                f"{match}"
            )
        if not self.matching:
            yield (
                "none matches to float32 precision; other images, weights or a coarser data type "
                f"made these averages{self.encoders}"
            )


@naming_damage()
def averaging_order(
    rows: str | Path, averages: "xr.Dataset", *, cells: int = 256, seed: int = 0
) -> AveragingOrder:
    """Find the order of averaging that made a file or cube from embeddings of images.

    Parameters
    ----------
    rows : str or Path
        Parquet file, folder or glob of embeddings, one row per image, such as the published
        ``full_chunks`` and the rows of a build. All small columns are read, but only the vectors of
        the sample.
    averages : xarray.Dataset
        A cube, or a published map or file of averages opened by the engine ``copembed``.
    cells : int
        Cells to try, drawn at random from parts of all files.
    seed : int
        Seed of the random cells.

    Returns
    -------
    AveragingOrder
        Every order with and without repeated images, where the sample has any.

    Raises
    ------
    RowsError
        If the rows cannot be read, come from several encoders, or have vectors of a different
        length.
    CubeError
        If the averages are not a cube, have none of the sampled cells, or were made with the
        balance "variance".
    GridError
        If their coordinates are not nodes of the lattice.
    OptionError
        If `cells` or `seed` is not such a number.
    """
    if "aggregation_scales" in averages.attrs:
        raise CubeError(
            "the cube was made with the balance 'variance', which scales the modalities, so no "
            "order of averaging reproduces it: compare one made with another balance"
        )
    cells, seed = whole_number(cells, "cells", 1), whole_number(seed, "seed", 0)
    files = [str(file) for file in rows_files(rows)]
    _, made = of_one_encoder(files, "compare the rows of one encoder at a time")
    unlike = unlike_encoders(shared(made), averages.attrs)
    encoders = "" if unlike is None else " ({}: {} of the rows, {} of these)".format(*unlike)
    sources = parts(files)
    if not sources:
        raise RowsError(f"{rows}: no embeddings; the files hold no rows")
    chosen, target = _averages_of(averages, _sample(sources, cells, seed))
    found = Rows.concatenate([read_rows(p.file, p.row_groups, chosen) for p in sources])
    if found.embedding.shape[1] != target.shape[1]:
        raise RowsError(
            f"{rows}: embeddings of length {found.embedding.shape[1]}; the averages have "
            f"{target.shape[1]}, so another encoder made them{encoders}"
        )
    found = found.sorted()
    again = repeated(found.keys)
    ways = {"counted": found, "dropped": found.take(~again)}
    if not again.any():
        ways = {"none": found}
    size = np.linalg.norm(target, axis=1)
    candidates = []
    for way, images in ways.items():
        for order, levels in ORDERS.items():
            error = nested_mean(images, levels) - target
            relative = np.linalg.norm(error, axis=1) / size
            worst = float(np.abs(error).max()), float(relative.max())
            candidates.append(Candidate(order, way, *worst))
    ranked = sorted(candidates, key=lambda candidate: candidate.max_relative)
    return AveragingOrder(tuple(ranked), len(chosen), len(found), encoders)


def nested_mean(rows: Rows, levels: tuple[str, ...]) -> NDArray[np.float64]:
    """Means of cells in a given order of averaging.

    Parameters
    ----------
    rows : Rows
        All images of the cells.
    levels : tuple of {"modality", "local", "date"}
        What is kept apart, outermost first.

    Returns
    -------
    numpy.ndarray
        (cells, D) float64, cells by ascending id.
    """
    keys = rows.keys
    weight = np.ones(len(rows))
    cell, _ = _groups(keys[:1])
    outer = cell
    for depth in range(1, len(levels) + 1):
        inner, first = _groups(keys[[0, *(_KEY[level] for level in levels[:depth])]])
        weight /= np.bincount(outer[first])[outer]  # parts of an image's group
        outer = inner
    weight /= np.bincount(outer)[outer]
    # One sparse product of weights and vectors gives the means of all cells.
    mean = csr_array((weight, (cell, np.arange(len(rows)))))
    return np.asarray(mean @ rows.embedding.astype(np.float64))


def _groups(keys: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Group equal columns of keys: the group of each column, and a member of each group."""
    _, first, group = np.unique(keys, axis=1, return_index=True, return_inverse=True)
    # NumPy 2.0.0, and no other version, returns the inverse with as many axes as the keys.
    return group.ravel(), first


def _sample(sources: list[Part], cells: int, seed: int) -> NDArray[np.int64]:
    """Cell ids, ascending, from parts spread evenly over all files."""
    # From parts of all files: cells of one region could agree with several orders.
    some = np.unique(np.linspace(0, len(sources) - 1, _PARTS_TO_SAMPLE).round().astype(int))
    seen = [
        read_rows(sources[i].file, sources[i].row_groups, embedding=False).grid_id
        for i in some[: len(sources)]
    ]
    found = np.unique(np.concatenate([np.empty(0, np.int64), *seen]))
    chosen = np.random.default_rng(seed).choice(found, min(cells, len(found)), replace=False)
    return np.sort(chosen)


def _averages_of(
    averages: "xr.Dataset", cells: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Cells that have an average, and the averages (n, D)."""
    import xarray as xr

    view = CubeView.of(averages)
    if view.lead:
        raise CubeError(
            f"expected one average per cell, found groups along {view.lead[0]}; aggregate the rows "
            "without groups"
        )
    rows, cols = (
        index[of_cells]
        for index, of_cells in zip(view.positions(), grid.row_col(cells), strict=True)
    )
    inside = (rows >= 0) & (cols >= 0)
    # Pointwise selection: `CubeView.read` would read every row and column of a cell.
    i, j = (xr.DataArray(index[inside], dims="cell") for index in (rows, cols))
    values = view.field.isel({view.lat: i, view.lon: j}).transpose("cell", ...).values
    values = values.astype(np.float64)
    # In published averages a vector of zeros means a missing one.
    filled = np.isfinite(values).all(axis=1) & (values != 0).any(axis=1)
    if not filled.any():
        raise CubeError(
            f"none of the {len(inside)} sampled cells has an average; do the rows and the "
            "averages belong to the same cells?"
        )
    return cells[inside][filled], values[filled]
