"""Limits on how much of a file may be expanded at once.

A few bytes of a file can expand to more numbers than any memory holds. What would exceed a limit is
refused by name before it is expanded: sizes are taken from headers, and where a header can be
false, the content is expanded in small pieces.

Every limit is derived from the largest published file, with a margin. The environment variable
``COPCUBE_LIMITS`` multiplies all of them: 4 allows four times as much, 0.5 half.
"""

import errno
import json
import math
import os
from dataclasses import dataclass
from typing import Any

import numpy as np

from copcube import grid
from copcube.errors import CopcubeError, OptionError
from copcube.progress import size as in_words

VARIABLE = "COPCUBE_LIMITS"


@dataclass
class Limit:
    """Size to which a part of a file may expand.

    Parameters
    ----------
    count : int
        Bytes, before they are multiplied.
    published : str
        What the limit is derived from.
    """

    count: int
    published: str

    @property
    def allowed(self) -> int:
        """Bytes currently allowed.

        Raises
        ------
        OptionError
            If the environment variable is not a positive number.
        """
        return math.floor(self.count * _factor())


PIECE = Limit(1 << 30, "five times a tile of embed_map_310k.tif: 256 × 256 × 768 float32, 201 MB")
"""Bytes of what is decoded at once: a tile, a band of a map, a page, a chunk."""

PAGE = Limit(1 << 28, "256 times a page of pyarrow, 1 MiB")
"""Bytes of a page of a parquet file; one page per column is expanded at a time."""

RASTER = Limit(1 << 28, "an image of S3 as wide as any: 21 × 96 × 20,000 float32, 161 MB")
"""Bytes of an image, of which several are decoded at once."""

WEIGHTS = Limit(6 << 30, "four times the published ViT-L/16: 1.5 GB of float32")
"""Bytes of the tensors of an encoder."""

LISTING = Limit(4 << 30, "twice fnames_all_1m.json: 18.7 million paths of 115 bytes, 2.2 GB")
"""Bytes of text of a listing of files, which is parsed cell by cell."""

CELL = Limit(4 << 20, "a cell with 100 times the 92 images of Copernicus-Pretrain")
"""Bytes of JSON that name the images of a cell."""


def demand(
    limit: Limit, needed: float, what: str, error: type[CopcubeError], *, least: bool = False
) -> None:
    """Refuse what would expand beyond a limit.

    Parameters
    ----------
    limit : Limit
        Which one.
    needed : float
        Bytes that it would expand to.
    what : str
        The file, and what in it; the message begins with it.
    error : type
        Type of the error to raise.
    least : bool
        Whether it expands to even more, since reading stopped there.

    Raises
    ------
    CopcubeError
        The `error`, if it is more than is allowed.
    OptionError
        If the environment variable is not a positive number.
    """
    allowed = limit.allowed
    if needed > allowed:
        factor = f"{VARIABLE}={math.ceil(needed / limit.count)}"
        raise error(
            f"{what} would expand to {'more than ' * least}{in_words(needed)}; expected at most "
            f"{in_words(allowed)} ({limit.published}). If you trust the file and have the "
            f"memory, set the environment variable {factor}{' or more' * least}, which "
            "multiplies all such limits"
        )


def rule_out_shortage(error: Exception, needed: float = 0) -> None:
    """Raise an error if reading failed for lack of resources rather than damage.

    GDAL usually reports only that a block could not be read, and codecs raise the same error if a
    damaged header claims more than any memory holds.

    Parameters
    ----------
    error : Exception
        What reading raised.
    needed : float
        Bytes that reading needs, beyond what any reading needs.

    Raises
    ------
    MemoryError
        If there is less memory, for example limited by a batch system.
    Exception
        The error itself, if it says that no more files can be opened or threads started.
    """
    if "launch worker thread" in str(error):  # arrow's wording of Python's message below
        raise RuntimeError("can't start new thread") from error
    known = any(words in str(error) for words in ("can't start new thread", _NO_MEMORY))
    if known or getattr(error, "errno", None) in _SHORTAGES:
        raise error
    try:
        np.empty(_ANY_READING + math.ceil(needed), np.uint8)
    except MemoryError:
        why = str(error)[:200] or type(error).__name__
        raise MemoryError(f"{_NO_MEMORY} ({why})") from error


_SHORTAGES = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
_NO_MEMORY = "no memory is left to read more"

_ANY_READING = 1 << 26
"""Bytes that readers may need for themselves."""


def demand_piece(
    path: str, what: str, shape: tuple[int, ...], itemsize: int, error: type[CopcubeError]
) -> None:
    """Refuse to read an array at once if it is larger than `PIECE`."""
    needed = math.prod(shape) * itemsize
    demand(PIECE, needed, f"{path}: {what}, {' × '.join(map(str, shape))} values,", error)


def demand_vectors(
    path: str, name: str, shape: tuple[int, ...], itemsize: int, error: type[CopcubeError]
) -> None:
    """Refuse vectors of a cube so long that a block of cells is larger than `PIECE`."""
    if name in ("embedding", "pc"):
        # The dimension along the vectors may stand anywhere, and is the longest if it is too long.
        block = (grid.BLOCK, grid.BLOCK, max(shape, default=0))
        demand_piece(path, f"a block of {name}", block, itemsize, error)


def load_json(raw: bytes, limit: Limit, what: str, error: type[CopcubeError]) -> Any:
    """Parse a JSON text if its values take no more memory than allowed.

    Parameters
    ----------
    raw : bytes
        The text in UTF-8.
    limit, what, error
        As `demand`; the message about a text that is not JSON begins with `what` too.

    Raises
    ------
    CopcubeError
        The `error`, if it would expand to more, or is not JSON.
    """
    # A value takes at least two bytes of text, and an empty list 56 bytes of memory.
    values = raw.count(b",") + raw.count(b"[") + raw.count(b"{") + raw.count(b":")
    demand(limit, len(raw) + _BYTES_OF_A_VALUE * values, what, error)
    try:
        return json.loads(raw)
    # The parser recurses at every level, which a deeply nested text exhausts.
    except (ValueError, RecursionError) as failure:
        raise error(f"{what} is not JSON: {failure}") from failure


_BYTES_OF_A_VALUE = 64


def demand_text(size: int, what: str, error: type[CopcubeError]) -> None:
    """Refuse a JSON text, parsed elsewhere, whose size in bytes may expand beyond `PIECE`.

    Raises
    ------
    CopcubeError
        The `error`, if values of two bytes each would expand to more than allowed.
    """
    demand(PIECE, size * (1 + _BYTES_OF_A_VALUE / 2), what, error)


def _factor() -> float:
    text = os.environ.get(VARIABLE, "1")
    try:
        factor = float(text)
    except ValueError:
        factor = math.nan
    # Comparisons with NaN are false, so NaN is refused here too.
    if not 0 < factor < 1e9:
        raise OptionError(
            f"the environment variable {VARIABLE} is {text!r}; expected a factor for the default "
            "limits, such as 4"
        )
    return factor
