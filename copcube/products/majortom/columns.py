"""The columns of Major TOM's files of embeddings, whatever wrote them, as arrays.

Accepted are 13 columns or 15, of which those in `NEEDED` are read, ``embedding`` or
``embeddings``, lists of any kind and floats of any precision.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from copcube.errors import RowsError, in_a_line
from copcube.grid import Floats, Integers
from copcube.rows import check_vectors, flattened, sizes_of_groups

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

TEXTS = ("grid_cell", "product_id", "timestamp", "utm_crs")
NEEDED = (*TEXTS, "centre_lat", "centre_lon", "pixel_bbox")

_MOST = 1 << 14
"""Pixels that no image has a side of; those of Core have 1068."""

POLYGON = np.dtype([("head", "u1", 13), ("points", "<f8", (5, 2))])
HEAD = b"\x01\x03\x00\x00\x00\x01\x00\x00\x00\x05\x00\x00\x00"
"""Well-known binary of a polygon of one ring of five points, and how it begins."""
_TWO = b"\x01\x06\x00\x00\x00\x02\x00\x00\x00"
"""How well-known binary of two polygons begins."""


_MODALITIES = {"S1": "s1_grd", "S2": "s2_toa", "Co": "dem", "DE": "dem"}


def modality_of(product: Any) -> str | None:
    """Key of a product's modality by the beginning of its name, whatever its level; or None."""
    return _MODALITIES.get(str(product)[:2])


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


def row_numbers(file: "pq.ParquetFile", row_groups: Sequence[int]) -> Integers:
    """Numbers in the file of the rows of some row groups."""
    sizes = np.array(sizes_of_groups(file.metadata))
    first = np.cumsum(sizes) - sizes
    ranges = [np.arange(first[g], first[g] + sizes[g]) for g in row_groups]
    return np.concatenate([np.empty(0, np.int64), *ranges])


def floats(column: "pa.ChunkedArray") -> Floats:
    """Numbers of a column in float64, NaN for what is missing."""
    import pyarrow as pa

    # A cast, even to the same type, would first make all functions that arrow has.
    if not pa.types.is_floating(column.type):
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
        values, four = flattened(chunk), len(chunk) * 4
        if chunk.null_count or values.null_count or len(values) != four:
            lengths = [len(box or []) for box in chunk.to_pylist()]
            bad = next((i for i, n in enumerate(lengths) if n != 4), 0)
            raise RowsError(
                f"{path}: pixel_bbox of row {here[bad]} is not four numbers [x0, y0, x1, y1]"
            )
        try:
            values = values if values.type == pa.int64() else values.cast(pa.int64())
        except pa.ArrowInvalid as error:
            raise RowsError(
                f"{path}: pixel_bbox does not hold whole numbers ({in_a_line(error)})"
            ) from error
        found.append(_plain(values).reshape(-1, 4))
    box = np.concatenate(found)
    wrong = (box[:, :2] < 0) | (box[:, 2:] <= box[:, :2]) | (box[:, 2:] >= _MOST)
    if wrong.any():
        i = int(np.argmax(wrong.any(axis=1)))
        raise RowsError(
            f"{path}: pixel_bbox of row {number[i]} is {box[i].tolist()}; expected "
            f"[x0, y0, x1, y1] inside an image, such as [0, 211, 224, 435]"
        )
    return box


def polygons(column: "pa.ChunkedArray") -> tuple[Floats, NDArray[np.bool_]]:
    """Corners (n, 5, 2) of well-known binary, and which are polygons of five points."""
    found = [np.empty(0, POLYGON)]
    for chunk in column.chunks:
        offsets, data = _binary(chunk)
        sizes = np.diff(offsets)
        if (sizes == POLYGON.itemsize).all():
            record = data[offsets[0] : offsets[-1]].view(POLYGON)
        else:
            record = np.zeros(len(chunk), POLYGON)
            whole = np.flatnonzero(sizes == POLYGON.itemsize)
            # A view of each polygon's bytes, wherever they begin.
            starts = offsets[whole, np.newaxis] + np.arange(POLYGON.itemsize)
            record[whole] = np.ascontiguousarray(data[starts]).view(POLYGON)[:, 0]
        found.append(record)
    records = np.concatenate(found)
    plain: NDArray[np.bool_] = (records["head"] == np.frombuffer(HEAD, np.uint8)).all(axis=1)
    return records["points"].astype(np.float64), plain


def divided(
    column: "pa.ChunkedArray", chosen: NDArray[np.bool_]
) -> tuple[Floats, NDArray[np.bool_]]:
    """Corners (n, 17, 2) of chosen footprints that were divided at 180°, and which those are."""
    rings = {i: _joined(column[i].as_py() or b"") for i in np.flatnonzero(chosen).tolist()}
    found = {i: ring for i, ring in rings.items() if ring is not None}
    return np.array([*found.values()]).reshape(-1, 17, 2), np.isin(np.arange(len(chosen)), [*found])


def _joined(binary: bytes) -> Floats | None:
    """Both rings of a footprint divided at 180° as one of 17 points; None of anything else.

    It goes from the first ring to the second and back the same way, so that its area is theirs.
    """
    rings, begin = [], len(_TWO)
    for _ in range(2):
        points = int.from_bytes(binary[begin + 9 : begin + 13], "little")
        end = begin + 13 + 16 * points
        if binary[begin : begin + 9] != HEAD[:9] or not 4 <= points <= 8 or len(binary) < end:
            return None
        ring = np.frombuffer(binary, "<f8", 2 * points, begin + 13).reshape(-1, 2)
        rings.append(np.stack([ring[:, 0] % 360, ring[:, 1]], axis=1))
        begin = end
    a, b = rings
    x, y = np.concatenate(rings).T
    turns = [float(np.sum(r[:-1, 0] * r[1:, 1] - r[1:, 0] * r[:-1, 1])) for r in rings]
    near = (np.abs(x - 180) < 10).all() and (np.abs(y) <= 90).all()
    closed = (a[0] == a[-1]).all() and (b[0] == b[-1]).all()
    if not (binary.startswith(_TWO) and begin == len(binary) and near and closed and all(turns)):
        return None
    b = b if turns[0] * turns[1] > 0 else b[::-1]
    return np.concatenate([a, b, np.repeat(a[:1], 17 - len(x), axis=0)])


def _binary(chunk: "pa.Array") -> tuple[NDArray[np.integer], NDArray[np.uint8]]:
    """Offsets (n + 1,) and bytes of a column of bytes, without copying them."""
    import pyarrow as pa

    if not pa.types.is_binary(chunk.type):
        chunk = chunk.cast(pa.large_binary())
    _, offsets, data = chunk.buffers()
    kind = np.dtype(np.int32 if pa.types.is_binary(chunk.type) else np.int64)
    ends = np.frombuffer(offsets, kind)[chunk.offset : chunk.offset + len(chunk) + 1]
    return ends, np.frombuffer(data or b"", np.uint8)
