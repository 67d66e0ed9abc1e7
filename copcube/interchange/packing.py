"""How a file's numbers encode vectors: their precision, and what means missing."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from copcube.errors import CubeError, OptionError

DTYPES = ("float32", "float16", "int8")
MISSING_CODE = -128
_TOP = 127
_HUGE = 1e38
"""Above this, a number is float32's largest or lowest, as many tools mark missing values."""


@dataclass(frozen=True)
class Packing:
    """Precision of the stored numbers, and what a missing cell holds.

    Parameters
    ----------
    dtype : str
        Stored data type, one of `DTYPES` in exports.
    scale, offset : numpy.ndarray, optional
        For integers: ``value = code · scale + offset``, (D,) float64 each, or float32.
    missing : float
        Value of a missing cell in all its dimensions. If numbers are the values themselves, NaN and
        numbers beyond 1e38 mean missing too.
    zero_is_missing : bool
        Whether 0 means missing too, whatever a file declares: published maps have zeros, and tools
        that change the declared value leave the numbers unchanged.
    """

    dtype: str = "float32"
    scale: NDArray[np.floating] | None = field(default=None, compare=False)
    offset: NDArray[np.floating] | None = field(default=None, compare=False)
    missing: float = 0
    zero_is_missing: bool = True

    def pack(self, vectors: NDArray[np.float32]) -> NDArray[np.generic]:
        """Encode vectors (n, D) as stored numbers.

        Raises
        ------
        OptionError
            If a value is too large for float16.
        """
        if self.scale is not None and self.offset is not None:
            codes = np.rint((vectors - self.offset) / self.scale)
            return np.asarray(np.clip(codes, -_TOP, _TOP).astype(self.dtype))
        with np.errstate(over="ignore"):
            packed = vectors.astype(self.dtype, copy=False)
        if self.dtype == "float16" and not np.isfinite(packed).all():
            worst = float(np.abs(vectors).max())
            raise OptionError(
                f"a value of size {worst:.6g} exceeds float16's maximum of 65504; choose "
                "dtype='float32' or 'int8'"
            )
        return packed

    def unpack(self, numbers: NDArray[np.generic]) -> NDArray[np.float32]:
        """Decode vectors (n, D) from stored numbers of filled cells."""
        if self.scale is None or self.offset is None:
            return numbers.astype(np.float32, copy=False)
        codes = numbers.astype(self.scale.dtype)  # the precision in which CF readers decode
        return np.asarray(codes * self.scale + self.offset, np.float32)

    def filled(self, numbers: NDArray[np.generic]) -> NDArray[np.bool_]:
        """Which cells of stored numbers (…, D) hold a vector."""
        if self.scale is not None:
            return np.asarray((numbers != self.missing).any(axis=-1))
        found: NDArray[np.bool_] = np.ones(numbers.shape[:-1], bool)
        if self.zero_is_missing:
            found = (numbers != 0).any(axis=-1)
        # Only if both ends of a vector mean missing is all of it examined.
        unsure = found & self._means_missing(numbers[..., [0, -1]]).all(axis=-1)
        if unsure.any():
            found[unsure] = ~self._means_missing(numbers[unsure]).all(axis=-1)
        return found

    def _means_missing(self, numbers: NDArray[Any]) -> NDArray[np.bool_]:
        """Which numbers, if they are the values themselves, mean missing."""
        with np.errstate(over="ignore"):
            missing = (numbers == self.missing) | ~(np.abs(numbers) < _HUGE)
        return np.asarray(missing | (numbers == 0) if self.zero_is_missing else missing)


def int8_packing(dim: int, parts: Iterable[NDArray[np.float32]]) -> Packing:
    """Packing as int8, with codes -127…127 spread over the range of every dimension.

    Parameters
    ----------
    dim : int
        Length of the vectors.
    parts : iterable
        All vectors, (n, dim) each.

    Raises
    ------
    CubeError
        If there are none.
    """
    low, high = np.full(dim, np.inf), np.full(dim, -np.inf)
    for part in parts:
        low = np.minimum(low, part.min(axis=0, initial=np.inf))
        high = np.maximum(high, part.max(axis=0, initial=-np.inf))
    if not np.isfinite(low).all():
        raise CubeError("no cell holds a vector: int8 has no range to span")
    # -128 is left for missing cells, so that the codes are symmetric.
    scale = (high - low) / (2 * _TOP)
    # A dimension with a single value has no range; any scale will do, as all its codes are 0.
    return Packing("int8", np.where(scale > 0, scale, 1.0), (high + low) / 2, MISSING_CODE)


@dataclass(frozen=True)
class Exported:
    """What an export wrote, and the error of its precision.

    Parameters
    ----------
    path : str
        File written.
    cells : int
        Cells with a vector.
    dim : int
        Length of the vectors.
    dtype : str
        Data type stored.
    size : int
        Bytes of the file.
    max_error : float
        Largest difference between a value and what is read back, in the vectors' units.
    rms_error : float
        Root mean squared difference divided by the root mean squared deviation from each
        dimension's mean: the share of the signal that is lost.
    """

    path: str
    cells: int
    dim: int
    dtype: str
    size: int
    max_error: float
    rms_error: float

    def __str__(self) -> str:
        from copcube.progress import size

        cost = "exact"
        if self.max_error:
            cost = f"largest error {self.max_error:.3g}, rms error {self.rms_error:.3g} of the std"
        return (
            f"{self.path}: {self.cells:,} cells × {self.dim} {self.dtype}, "
            f"{size(self.size)}, {cost}"
        )


class Packer:
    """Pack vectors, and sum up the error.

    Parameters
    ----------
    packing : Packing
        How vectors are stored.
    """

    def __init__(self, packing: Packing) -> None:
        self._packing = packing
        self.cells = 0
        self._max, self._squares = 0.0, 0.0
        self._shift: NDArray[np.float64] | None = None
        self._sum = self._sum2 = np.zeros(0)

    def pack(self, vectors: NDArray[np.float32]) -> NDArray[np.generic]:
        """Pack vectors (n, D) of filled cells and count them.

        Raises
        ------
        CubeError
            If one would be read back as missing.
        OptionError
            As `Packing.pack`.
        """
        packed = self._packing.pack(vectors)
        if not len(vectors):
            return packed
        # Rounding to float16 can make a small vector zero, which would read as missing.
        if lost := int((~self._packing.filled(packed)).sum()):
            raise CubeError(
                f"{lost} cells hold vectors that are all {self._packing.missing:g} in "
                f"{self._packing.dtype}, which means missing in this file; set them to NaN, or "
                "write netCDF or Zarr in float32"
            )
        self.cells += len(vectors)
        if self._packing.dtype == "float32":
            return packed
        exact = vectors.astype(np.float64)
        error = self._packing.unpack(packed) - exact
        self._max = max(self._max, float(np.abs(error).max()))
        self._squares += float(np.square(error).sum())
        if self._shift is None:
            # Sums of squares about a value near the mean keep their digits.
            self._shift = exact[0].copy()
            self._sum = self._sum2 = np.zeros(len(exact[0]))
        exact -= self._shift
        self._sum = self._sum + exact.sum(axis=0)
        self._sum2 = self._sum2 + np.square(exact).sum(axis=0)
        return packed

    def result(self, path: str, dim: int, size: int) -> Exported:
        """Return the result."""
        n = max(self.cells, 1)
        deviations = float((self._sum2 - self._sum**2 / n).sum())
        rms = float(np.sqrt(self._squares / deviations)) if deviations > 0 else 0.0
        return Exported(path, self.cells, dim, self._packing.dtype, size, self._max, rms)


def required_dtype(dtype: Any, possible: tuple[str, ...], form: str) -> str:
    """Return the name of a requested data type if the format can hold it.

    Raises
    ------
    OptionError
        If the format cannot hold it.
    """
    name = dtype.name if isinstance(dtype, np.dtype) else dtype
    if not isinstance(name, str) or name not in possible:
        raise OptionError(f"dtype={dtype!r}: {form} holds {' or '.join(possible)} here; choose one")
    return name
