"""Streamed covariance of weighted vectors, and its principal axes, in float64 throughout.

The vectors of a block are centred on their own mean before they are multiplied, and blocks are
then merged (Chan, Golub & LeVeque, 1983, doi:10.1080/00031305.1983.10483115). So a mean m that
is large against the standard deviation σ costs only what rounding it does, |m|/σ times 1e-16.

A covariance squares the scale: a variance is exact to about 1e-15 of the largest one, and anything
smaller counts as none.

Covariances are unbiased: ``Σ wᵢ(xᵢ-m)(xᵢ-m)ᵀ / (W - Σ wᵢ²/W)`` with ``W = Σ wᵢ``, as
``numpy.cov(aweights=w)`` defines them; with equal weights that divides by n - 1.
"""

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from scipy.linalg.blas import dsyr, dsyrk

from copcube.errors import CubeError, OptionError
from copcube.grid import Floats
from copcube.pca.blas import one_thread

_ROWS = 512
"""Vectors centred and multiplied at once, so that their copy in float64 stays in the cache."""

_LENIENT = np.errstate(over="ignore", invalid="ignore")
"""Overflow gives a covariance that is not finite, which `Axes.of` refuses."""


def mirrored(lower: Floats) -> Floats:
    """Symmetric matrix of which the lower triangle is given."""
    return lower + np.tril(lower, -1).T


@dataclass
class Moments:
    """Number, weight, mean and scatter of some vectors.

    Parameters
    ----------
    cells : int
        Number of vectors.
    weight, square : float
        Sums of their weights, and of the squares of these.
    mean : numpy.ndarray
        (dim,) float64 weighted mean.
    lower : numpy.ndarray
        (dim, dim) float64 in Fortran order, the lower triangle of the scatter
        ``Σ wᵢ(xᵢ-m)(xᵢ-m)ᵀ``. The other half follows by symmetry and is not computed.
    """

    cells: int
    weight: float
    square: float
    mean: Floats
    lower: Floats

    @classmethod
    def zero(cls, dim: int) -> Self:
        """Return the moments of no vectors of a length."""
        # In Fortran's order, in which BLAS adds in place rather than to a copy.
        return cls(0, 0.0, 0.0, np.zeros(dim), np.zeros((dim, dim), order="F"))

    @classmethod
    @_LENIENT
    def of(cls, x: NDArray[Any], w: Floats) -> Self:
        """Find the moments of vectors, (n, dim), n ≥ 1, of weights (n,) above zero."""
        shift = x.mean(axis=0, dtype=np.float64)
        root, total = np.sqrt(w), np.zeros(x.shape[1])
        lower = np.zeros((x.shape[1], x.shape[1]), order="F")
        for start in range(0, len(x), _ROWS):
            rows = slice(start, start + _ROWS)
            y = x[rows].astype(np.float64)
            y -= shift
            y *= root[rows, np.newaxis]
            total += root[rows] @ y
            # dsyrk computes one triangle, half the work of y.T @ y, and adds it in place.
            lower = dsyrk(1.0, y.T, lower=1, beta=1.0, c=lower, overwrite_c=1)
        # The plain mean is not the weighted one; the difference is taken out afterwards.
        weight = float(w.sum())
        lower = dsyr(-1 / weight, total, lower=1, a=lower, overwrite_a=1)
        return cls(len(x), weight, float((w**2).sum()), shift + total / weight, lower)

    @_LENIENT
    def merge(self, other: Self) -> None:
        """Add the moments of other vectors, in place."""
        weight = self.weight + other.weight
        step = other.mean - self.mean
        self.lower += other.lower
        between = self.weight * (other.weight / weight)
        self.lower = dsyr(between, step, lower=1, a=self.lower, overwrite_a=1)
        self.mean = self.mean + step * (other.weight / weight)
        self.cells += other.cells
        self.weight, self.square = weight, self.square + other.square

    @property
    def covariance(self) -> Floats:
        """Unbiased covariance, (dim, dim) float64; zero for a single vector."""
        freedom = self.weight - self.square / self.weight
        if self.cells < 2 or freedom <= 0:
            return np.zeros_like(self.lower)
        return mirrored(self.lower) / freedom


@dataclass(frozen=True)
class Axes:
    """All principal axes, by falling variance.

    Parameters
    ----------
    mean : numpy.ndarray
        (dim,) float64.
    components : numpy.ndarray
        (dim, dim) float64, one axis per row, of length 1.
    variance : numpy.ndarray
        (dim,) float64, along each axis.
    cells : int
        Number of vectors that they were found from.
    largest : float
        The largest variance that went into their products: what is less than rounding of it
        is none.
    """

    mean: Floats
    components: Floats
    variance: Floats
    cells: int
    largest: float

    @classmethod
    def of(cls, moments: Moments, largest: float = 0) -> Self:
        """Decompose a covariance; the entry of largest magnitude of every axis is positive.

        Parameters
        ----------
        moments : Moments
            Of the vectors.
        largest : float
            A variance that the vectors had before something was subtracted from them.

        Raises
        ------
        CubeError
            If its products overflowed.
        """
        covariance = moments.covariance
        if not np.isfinite(covariance).all():
            raise CubeError("the vectors hold values too large to be squared in float64")
        with one_thread():  # more of them would be slower for a matrix of this size
            variance, columns = np.linalg.eigh(covariance)
        # `eigh` sorts ascending, and rounding may make a variance of nothing negative.
        variance, components = np.maximum(variance[::-1], 0), columns.T[::-1]
        peaks = np.abs(components).argmax(axis=1)
        signs = np.sign(components[np.arange(len(components)), peaks])
        components = np.ascontiguousarray(components * signs[:, None])
        largest = max(largest, float(variance[0]))
        return cls(moments.mean, components, variance, moments.cells, largest)

    def count(self, k: int | float) -> int:
        """Return the number of components that `k` means: a number or a share of variance.

        Raises
        ------
        OptionError
            If it is larger than the rank.
        """
        vectors, rank = f"the {self.cells} vectors of length {len(self.mean)}", self._rank
        if rank == 0:
            raise OptionError(f"{vectors} are all alike (rank 0): they have no components")
        if k < 1:
            explained = np.cumsum(self.variance) / self.variance.sum()
            return min(int(np.searchsorted(explained, k)) + 1, rank)
        if k > rank:
            raise OptionError(f"k={k} is larger than {rank}, the rank of {vectors}; choose fewer")
        return int(k)

    @property
    def _rank(self) -> int:
        # Rounding leaves a little variance along axes that have none: relative to the largest
        # one and, as vectors are centred by a rounded mean, to the square of that mean.
        eps = len(self.mean) * np.finfo(np.float64).eps
        floor = max(eps * self.largest, (eps * np.abs(self.mean).max()) ** 2)
        return min(int((self.variance > floor).sum()), self.cells - 1)
