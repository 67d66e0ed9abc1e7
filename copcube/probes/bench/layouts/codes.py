"""From the codes of a label's file to the classes of a task."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from copcube.errors import ImageError
from copcube.probes.bench.classes import LC100_CODES

IGNORED = 255
DFC2020 = {0: IGNORED, 1: 0, 2: 1, 3: IGNORED, 4: 2, 5: 3, 6: 4, 7: 5, 8: IGNORED, 9: 6, 10: 7}
"""Codes of DFC2020: background, savanna and snow do not count."""
CLOUD_S3 = {0: IGNORED} | {code: code - 1 for code in range(1, 6)}
"""Codes of Cloud-S3: 0 is invalid, the classes begin with 1."""
CLOUD_S3_SHIFTED = {IGNORED: IGNORED} | {code: code for code in range(5)}
"""The same after 1 was taken off, as other readers describe the files."""
LC100 = {code: index for index, code in enumerate(LC100_CODES)}


def to_classes(
    codes: NDArray[Any],
    table: Mapping[int, int],
    where: str,
    *,
    other: int | None = None,
    remedy: str = "is this the file of another task?",
) -> NDArray[np.uint8]:
    """Look up the class of every pixel.

    Parameters
    ----------
    codes : numpy.ndarray
        Any shape, whole numbers in any dtype.
    table : mapping of int to int
        Class by code.
    where : str
        The file, for the message.
    other : int, optional
        Class of codes that the table lacks; without one they are refused.
    remedy : str
        What to do about a code that the table lacks.

    Raises
    ------
    ImageError
        If a code is not in the table; the message says where the first one is.
    """
    # Looked up rather than computed: 0 - 1 and 256 do not fit into the eight bits of a code.
    lookup = np.full(256, -1 if other is None else other, dtype=np.int16)
    lookup[list(table)] = list(table.values())
    fits = (codes >= 0) & (codes <= 255) & (codes == np.floor(codes))
    classes = lookup[np.where(fits, codes, 0).astype(np.uint8)]
    classes[~fits] = -1 if other is None else other
    if (wrong := classes < 0).any():
        place = tuple(int(i) for i in np.argwhere(wrong)[0])
        raise ImageError(
            f"{where}: the label at row {place[0]}, column {place[1]} is {codes[place]}; expected "
            f"one of {', '.join(map(str, sorted(table)))}: {remedy}"
        )
    return classes.astype(np.uint8)
