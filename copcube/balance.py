"""Modalities whose variances over cells are made equal: the balance "variance".

The embeddings of some modalities differ much from cell to cell, those of others hardly, and the
mean over modalities mostly shows the former. Each modality is therefore scaled about its own mean:

    mₖ + sₖ (x - mₖ)   with   sₖ = √(V / Vₖ),

where x is the mean of the cell's images of modality k, mₖ and Vₖ are mean and total variance,
``Σ aᵢ‖xᵢ - mₖ‖² / Σ aᵢ``, of these over all cells (of all groups) with images of modality k, the
weights aᵢ are the areas of the cells, and V is the mean of the Vₖ that are not 0. A cell's vector
is then the mean over its modalities, as with the balance "modality", but every modality has the
variance V. The mean mₖ stays, so that a cell without modality k is shifted by no more than
with the balance "modality". A modality that does not vary, such as one in a single cell, is not
scaled.

Until the variances of all cells are known, cells of single modalities are kept: their group is
that of the cell times the number of modalities, which is 8 without sensors of your own, plus the
number of the modality.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
from numpy.typing import NDArray

from copcube import grid
from copcube.cells import Cells
from copcube.grid import Floats
from copcube.modalities import MODALITIES

_CELLS = 4096
"""Cells in float64 at a time."""

_ROUNDING = 1e-12
"""Variance, relative to the squared length of vectors, that rounding to float32 may make."""


@dataclass(frozen=True)
class Variances:
    """Area, mean and scatter of the cells of every modality.

    Parameters
    ----------
    weight : numpy.ndarray
        Sum of the areas of its cells, (m,) float64; 0 for a modality without cells.
    mean : numpy.ndarray
        mₖ, (m, dim) float64.
    scatter : numpy.ndarray
        ``Σ aᵢ‖xᵢ - mₖ‖²``, (m,) float64.
    """

    weight: Floats
    mean: Floats
    scatter: Floats

    @classmethod
    def zero(cls, dim: int, modalities: int = len(MODALITIES)) -> Self:
        """Return those of no cells."""
        return cls(np.zeros(modalities), np.zeros((modalities, dim)), np.zeros(modalities))

    @classmethod
    def of(cls, cells: Cells) -> Self:
        """Find those of cells of single modalities."""
        n = cells.n_by_modality.shape[1]
        whole = cls.zero(cells.embedding.shape[1], n)
        area, modality = grid.areas()[grid.row_col(cells.grid_id)[0]], cells.group % n
        for k in np.unique(modality).tolist():
            mine = np.flatnonzero(modality == k)
            for start in range(0, len(mine), _CELLS):
                some = mine[start : start + _CELLS]
                x, w = cells.embedding[some].astype(np.float64), area[some]
                mean = w @ x / w.sum()
                one = cls.zero(x.shape[1], n)
                one.weight[k], one.mean[k] = w.sum(), mean
                one.scatter[k] = w @ np.square(x - mean).sum(axis=1)
                whole = whole.merged(one)
        return whole

    def merged(self, other: Self) -> Self:
        """Return those of the cells of both (Chan, Golub & LeVeque, 1983)."""
        weight = self.weight + other.weight
        share = other.weight / np.where(weight > 0, weight, 1)
        step = other.mean - self.mean
        between = self.weight * share * np.square(step).sum(axis=1)
        mean = self.mean + step * share[:, np.newaxis]
        return type(self)(weight, mean, self.scatter + other.scatter + between)

    @property
    def scales(self) -> Floats:
        """The factors sₖ, (m,)."""
        variance = self.scatter / np.where(self.weight > 0, self.weight, 1)
        varies = variance > _ROUNDING * np.square(self.mean).sum(axis=1)
        common = variance[varies].mean() if varies.any() else 1.0
        return np.sqrt(common / np.where(varies, variance, common))

    def in_words(self, labels: Sequence[str]) -> str:
        """Key and factor of every modality that has cells, as an attribute of the cube."""
        there = [(key, self.scales[i]) for i, key in enumerate(labels) if self.weight[i] > 0]
        return " ".join(f"{key}:{scale:.6g}" for key, scale in there)

    def to_json(self) -> bytes:
        """Return bytes that `from_json` reads, with all digits."""
        return json.dumps({key: value.tolist() for key, value in vars(self).items()}).encode()

    @classmethod
    def from_json(cls, data: bytes) -> Self:
        """Read the bytes of `to_json`."""
        return cls(**{key: np.array(value) for key, value in json.loads(data).items()})


def equalised(cells: Cells, variances: Variances) -> Cells:
    """Join cells of single modalities, scaled so that all modalities have the same variance.

    Parameters
    ----------
    cells : Cells
        Cells of single modalities, each with all of its modalities.
    variances : Variances
        Variances over all cells.

    Returns
    -------
    Cells
        Sorted as all cells. With M modalities, scaled means yₖ and their mean m, the spread is
        ``sqrt(Σ (sₖ² spreadₖ² + ‖yₖ - m‖²) / M)``: that around m of all images, scaled as their
        modality is.
    """
    modalities = cells.n_by_modality.shape[1]
    modality = (cells.group % modalities).astype(np.int64)
    whole = replace(cells, group=(cells.group // modalities).astype(np.int16))
    _, first, cell = np.unique(whole.sort_key, return_index=True, return_inverse=True)
    n, dim = len(first), cells.embedding.shape[1]
    mean, spread = np.empty((n, dim), np.float32), np.empty(n, np.float32)
    by_cell = np.argsort(cell, kind="stable")
    bounds = np.searchsorted(cell[by_cell], np.arange(0, n + _CELLS, _CELLS))
    for start, rows in zip(
        range(0, n, _CELLS), np.split(by_cell, bounds[1:-1]) if n else [], strict=True
    ):
        part = slice(start, min(start + _CELLS, n))
        mean[part], spread[part] = _joined(
            cells, rows, cell[rows] - start, modality[rows], part.stop - start, variances
        )
    by_modality = np.zeros((n, modalities), np.int32)
    np.add.at(by_modality, cell, cells.n_by_modality)
    chosen = whole.take(first)
    return replace(
        chosen,
        n_images=by_modality.sum(axis=1, dtype=np.int32),
        n_by_modality=by_modality,
        spread=spread,
        embedding=mean,
    )


def _joined(
    cells: Cells,
    rows: NDArray[np.int64],
    cell: NDArray[np.int64],
    modality: NDArray[np.int64],
    n: int,
    variances: Variances,
) -> tuple[Floats, Floats]:
    """Means and spreads of n cells from the rows of their modalities, float64."""
    scale = variances.scales
    total, count, square = np.zeros((n, cells.embedding.shape[1])), np.zeros(n), np.zeros(n)
    scaled = []
    # Modality by modality, of which a cell has each once: sums have a fixed order.
    for k in range(len(scale)):
        mine = modality == k
        centre = variances.mean[k]
        y = centre + scale[k] * (cells.embedding[rows[mine]].astype(np.float64) - centre)
        scaled.append((cell[mine], y, (scale[k] * cells.spread[rows[mine]].astype(float)) ** 2))
        total[cell[mine]] += y
        count[cell[mine]] += 1
    mean = total / count[:, np.newaxis]
    for where, y, within in scaled:
        square[where] += within + np.square(y - mean[where]).sum(axis=1)
    return mean, np.sqrt(square / count)
