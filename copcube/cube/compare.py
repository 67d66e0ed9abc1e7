"""Agreement of two cubes: cell by cell, and as two clouds of vectors.

Cells are paired by their place on the lattice, so orientation, order and extent may differ; so may
the length of the vectors, for what needs no pairs of values. Everything is streamed in windows:
mean and products of the centred vectors are merged in float64 from window to window (Chan, Golub &
LeVeque, 1983, doi:10.1080/00031305.1983.10483115), which is accurate even if the mean is large
compared with the scatter.

- Linear CKA is ``‖XᵀY‖² / (‖XᵀX‖ ‖YᵀY‖)`` in Frobenius norms, for centred X and Y
  (Kornblith et al., 2019, arXiv:1905.00414): 1 where one is a rotation of the other.
- The Procrustes distance is ``1 - (Σσ)² / (tr XᵀX · tr YᵀY)`` with the singular values σ of
  ``XᵀY``: the share of squared scatter that no rotation, reflection and scaling brings into
  agreement, as `scipy.spatial.procrustes` defines its disparity; 0 to 1.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from copcube.cube.caution import caution, of_encoder
from copcube.cube.pairing import pair, windows
from copcube.cube.view import CubeView
from copcube.files.damage import naming_damage

if TYPE_CHECKING:
    import xarray as xr

QUANTILES = (0.0, 0.01, 0.05, 0.25, 0.5, 0.75, 1.0)
_BATCH = 8192
"""Vectors multiplied at once, so that their copies in float64 stay in the cache."""


@dataclass(frozen=True)
class Comparison:
    """How far two cubes agree, on the cells of the lattice that both span.

    Parameters
    ----------
    both, only_a, only_b : int
        Cells with a vector in both cubes, in the first alone, in the second alone; cells of each
        group of a leading dimension count separately.
    dims : tuple of int
        Lengths of the vectors of the two.
    identical : float or None
        Share of the cells in both whose vectors are equal in every value. This and the
        next three are None where the lengths differ or no cell is in both.
    max_difference : float or None
        Largest absolute difference of two values.
    cosine_quantiles : dict or None
        Cosine by quantile (`QUANTILES`) over the cells in both.
    norm_ratio_median : float or None
        Median over the cells of the second vector's length divided by the first's.
    cka : float
        Linear CKA over the cells in both, 0 to 1; NaN where a cube does not vary.
    procrustes : float
        Procrustes distance over them, 0 to 1; NaN likewise.
    fields : xarray.Dataset
        ``cosine`` and ``norm_ratio`` of every cell, (…, lat, lon) float64 on the first
        cube's own coordinates; NaN where a vector is missing or zero, and ``cosine``
        everywhere if the lengths differ.
    """

    both: int
    only_a: int
    only_b: int
    dims: tuple[int, int]
    identical: float | None
    max_difference: float | None
    cosine_quantiles: dict[float, float] | None
    norm_ratio_median: float | None
    cka: float
    procrustes: float
    fields: "xr.Dataset" = field(repr=False, compare=False)

    @property
    def cosine(self) -> "xr.DataArray":
        """Cosine of the two vectors of every cell, (…, lat, lon)."""
        return self.fields["cosine"]

    @property
    def norm_ratio(self) -> "xr.DataArray":
        """Length of the second vector divided by that of the first, (…, lat, lon)."""
        return self.fields["norm_ratio"]

    def lines(self) -> Iterator[tuple[str, str]]:
        """Name and text of every figure, for display."""
        a, b = self.dims
        if said := caution(self.fields.attrs):
            yield "caution", said
        yield "dimensions", f"{a:,}" if a == b else f"{a:,} and {b:,}"
        yield "cells in both", f"{self.both:,}"
        yield "only in the first", f"{self.only_a:,}"
        yield "only in the second", f"{self.only_b:,}"
        if self.identical is not None:
            yield "identical", f"{self.identical:.2%}"
        if self.max_difference is not None:
            yield "largest difference", f"{self.max_difference:.4g}"
        if self.cosine_quantiles is not None:
            for q, value in self.cosine_quantiles.items():
                name = {0: "cosine, least", 0.5: "cosine, median", 1: "cosine, greatest"}
                yield name.get(q, f"cosine, {q:.0%}"), f"{value:.8f}"
        if self.norm_ratio_median is not None:
            yield "norm ratio, median", f"{self.norm_ratio_median:.8f}"
        yield "linear CKA", f"{self.cka:.8f}"
        yield "Procrustes distance", f"{self.procrustes:.3e}"

    def __str__(self) -> str:
        rows = list(self.lines())
        width = max(len(name) for name, _ in rows)
        return "\n".join(f"{name:<{width}}  {text}" for name, text in rows)


@naming_damage()
def compare(a: "xr.Dataset", b: "xr.Dataset") -> Comparison:
    """Compare two cubes, or two reductions, cell by cell and as a whole.

    Parameters
    ----------
    a, b : xarray.Dataset
        With ``embedding`` or ``pc`` on nodes of the 0.25° lattice, in any order, whole or
        in part, lazy or not. A leading dimension must be the same in both.

    Returns
    -------
    Comparison
        Memory is that of a few windows of 45 × 360 cells, whatever the size of the cubes.

    Raises
    ------
    CubeError
        If a dataset is not a cube, the leading dimensions differ, or no cell is in the extent of
        both.
    GridError
        If coordinates are not nodes of the lattice.

    Examples
    --------
    >>> from copcube.cube.compare import compare
    >>> print(compare(ours, theirs))  # doctest: +SKIP
    """
    of_a, of_b = CubeView.of(a), CubeView.of(b)
    first, second = pair(of_a, of_b)
    dims = of_a.field.shape[-1], of_b.field.shape[-1]
    paired, moments = dims[0] == dims[1], _Moments()
    cosine, ratio = np.full(first.shape, np.nan), np.full(first.shape, np.nan)
    only_a = only_b = identical = 0
    difference = 0.0
    for window in windows(first.shape):
        (in_a, vectors_a), (in_b, vectors_b) = first.read(window), second.read(window)
        only_a += int((in_a & ~in_b).sum())
        only_b += int((in_b & ~in_a).sum())
        if not (both := in_a & in_b).any():
            continue
        x, y = vectors_a[both], vectors_b[both]
        c, r = np.empty(len(x)), np.empty(len(x))
        for start in range(0, len(x), _BATCH):
            part = slice(start, start + _BATCH)
            u, v = x[part].astype(np.float64), y[part].astype(np.float64)
            # In float64: cosines of nearly equal vectors differ only in the last digits of float32.
            moments.add(u, v)
            c[part], r[part] = _cosine_and_ratio(u, v, paired)
            if paired:
                identical += int((u == v).all(axis=1).sum())
                difference = max(difference, float(np.abs(u - v).max()))
        cosine[..., *window][both], ratio[..., *window][both] = c, r
    fields = first.on_coordinates(_ATTRS, cosine=cosine, norm_ratio=ratio)
    moments.settle()
    # A vector of zeros has no cosine; such cells count in `both` and not in the quantiles.
    known = cosine[np.isfinite(cosine)]
    return Comparison(
        both=moments.n,
        only_a=only_a,
        only_b=only_b,
        dims=dims,
        identical=identical / moments.n if paired and moments.n else None,
        max_difference=difference if paired and moments.n else None,
        cosine_quantiles=dict(zip(QUANTILES, np.quantile(known, QUANTILES).tolist(), strict=True))
        if len(known)
        else None,
        norm_ratio_median=float(np.nanmedian(ratio)) if len(known) else None,
        cka=moments.cka(),
        procrustes=moments.procrustes(),
        fields=fields.assign_attrs(of_encoder(a.attrs, b.attrs)),
    )


_ATTRS = {
    "cosine": {"long_name": "cosine of the two vectors of the cell", "units": "1"},
    "norm_ratio": {"long_name": "length of the second vector over the first's", "units": "1"},
}


class _Moments:
    """Count, means and centred products of pairs of vectors, merged from batch to batch."""

    def __init__(self) -> None:
        self.n = 0
        self.xx = self.yy = self.xy = np.zeros((0, 0))
        self._few: list[tuple[NDArray[np.float64], NDArray[np.float64]]] = []

    def add(self, x: NDArray[np.float64], y: NDArray[np.float64]) -> None:
        """Add rows (n, p) and (n, q); they are kept while they are few compared with p and q."""
        self._few.append((x, y))
        if self.n or sum(len(x) for x, _ in self._few) >= min(x.shape[1], y.shape[1]) // 2:
            self._merge(*self._taken())

    def settle(self) -> None:
        """Add the rows still kept; nothing may be added afterwards.

        Use coordinates of the space that they span, which preserve their products.
        """
        if self._few:
            centred = (x - x.mean(axis=0) for x in self._taken())
            self._merge(*(np.linalg.qr(x.T).R.T for x in centred))

    def _taken(self) -> Iterator[NDArray[np.float64]]:
        taken, self._few = self._few, []
        return map(np.concatenate, zip(*taken, strict=True))

    def _merge(self, x: NDArray[np.float64], y: NDArray[np.float64]) -> None:
        n = len(x)
        mean_x, mean_y = x.mean(axis=0), y.mean(axis=0)
        x, y = x - mean_x, y - mean_y
        if self.n == 0:
            self.n, self.mean_x, self.mean_y = n, mean_x, mean_y
            self.xx, self.yy, self.xy = x.T @ x, y.T @ y, x.T @ y
            return
        dx, dy = mean_x - self.mean_x, mean_y - self.mean_y
        # Chan, Golub & LeVeque: two batches' products add up, apart from the step between their
        # means.
        weight = self.n * n / (self.n + n)
        self.xx += x.T @ x + weight * np.outer(dx, dx)
        self.yy += y.T @ y + weight * np.outer(dy, dy)
        self.xy += x.T @ y + weight * np.outer(dx, dy)
        self.n += n
        self.mean_x += dx * (n / self.n)
        self.mean_y += dy * (n / self.n)

    def cka(self) -> float:
        """Linear centred kernel alignment."""
        scatter = np.linalg.norm(self.xx) * np.linalg.norm(self.yy)
        return float(np.linalg.norm(self.xy) ** 2 / scatter) if scatter > 0 else float("nan")

    def procrustes(self) -> float:
        """Disparity after the best rotation, reflection and scaling."""
        scatter = np.trace(self.xx) * np.trace(self.yy)
        if not scatter > 0:
            return float("nan")
        # Rounding may give slightly less than 0.
        return max(0.0, float(1 - np.linalg.norm(self.xy, "nuc") ** 2 / scatter))


def _cosine_and_ratio(
    x: NDArray[np.float64], y: NDArray[np.float64], paired: bool
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    norm_x, norm_y = np.linalg.norm(x, axis=1), np.linalg.norm(y, axis=1)
    product = np.einsum("ij,ij->i", x, y) if paired else np.full(len(x), np.nan)
    some = (norm_x > 0) & (norm_y > 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        cosine = np.clip(product / norm_x / norm_y, -1, 1)
        return np.where(some, cosine, np.nan), np.where(some, norm_y / norm_x, np.nan)
