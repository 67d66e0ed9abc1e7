"""Tensors of ``torch.save``, found in their files without being loaded.

`torch.load` unpickles in Python and copies the data, and holds the interpreter all the
while: further decoding threads gain nothing, and one GPU computes faster than all of them
read. But a file of ``torch.save`` is an archive of stored records, one of them a pickle that
describes the tensor and one its data. So the pickle of the tensor that is expected is put
together and compared with the one in the file: where they are the same bytes, the data is
that tensor, nothing has been unpickled, and any image of it can be read by itself. Any other
file is left to `torch.load`.
"""

import io
import math
import pickle
import re
import struct
import zipfile
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from copcube.errors import ImageError

Shape = tuple[int, ...]

_STORAGES = {"int16": b"ShortStorage", "float32": b"FloatStorage"}
_PICKLE = (
    b"\x80\2ctorch._utils\n_rebuild_tensor_v2\nq\0((X\7\0\0\0storageq\1ctorch\n%b\nq\2"
    b"X\1\0\0\x000q\3X\3\0\0\0cpuq\4%btq\5QK\0%bq\6%bq\7\x89ccollections\nOrderedDict\n"
    b"q\x08)Rq\ttq\nRq\x0b."
)
_EDGE = 2048
"""Bytes at either end of a file that hold all but the numbers."""

_END = struct.Struct("<4s6xHIIH")
_ENTRY = struct.Struct("<4s6xH8xIIHHH8xI")
_LOCAL = struct.Struct("<4s22xHH")


def locate_tensor(
    read: Callable[[int, int], bytes], size: int, dtype: str, shape: Shape
) -> int | None:
    """Where in a file the numbers of a tensor begin, if it is a plain one of this dtype and shape.

    They lie there row by row, in little-endian order.

    Parameters
    ----------
    read : callable
        Reads the file, given a position and a length in bytes.
    size : int
        Length of the file, which ``torch.save`` of any version since 1.6 may have written.
    dtype : str
        ``int16`` or ``float32``; no tensor of another dtype is found.
    shape : tuple of int
        What its shape should be.

    Returns
    -------
    int or None
        None if the file holds anything else, or is damaged.
    """
    length = math.prod(shape) * np.dtype(dtype).itemsize
    if dtype not in _STORAGES or length > size:
        return None
    head, tail = read(0, min(size, _EDGE)), read(max(0, size - _EDGE), min(size, _EDGE))
    try:
        records = _records(tail, size)
        described = _content(head, records["data.pkl"])
        order = _content(head, records["byteorder"]) if "byteorder" in records else b"little"
        start = _begin(head, records["data/0"])
    except (struct.error, KeyError):
        return None
    if described != _pickled(dtype, shape) or order != b"little":
        return None
    return start if records["data/0"].size == length and start + length <= size else None


def load_tensor(raw: bytes) -> NDArray[Any]:
    """Read a file that holds one plain tensor of real numbers and nothing else.

    Returns
    -------
    numpy.ndarray
        int16 and uint16 as they are, everything else as float32.

    Raises
    ------
    ImageError
        If it is anything else: code, other objects, a tensor larger than its file.
    """
    import torch

    try:
        with zipfile.ZipFile(io.BytesIO(raw)) as archive:
            records = archive.infolist()
        total = sum(record.file_size for record in records)
        if total > len(raw):
            raise ImageError(f"records of {total} bytes in a file of {len(raw)}")
        tensor = torch.load(io.BytesIO(raw), map_location="cpu", weights_only=True)
    except ImageError:
        raise
    except pickle.UnpicklingError as error:  # whose text advises to load it without care
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = found[1] if found else "something"
        raise ImageError(f"it holds {what}, which is no plain tensor") from error
    except Exception as error:  # torch.load documents none of what it raises
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise ImageError(f"no tensor that torch can load: {reason:.200}") from error
    if type(tensor) is not torch.Tensor:
        raise ImageError(f"expected a tensor, found a {type(tensor).__name__}")
    if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.is_quantized:
        raise ImageError(f"expected a plain tensor, found {tensor.layout} on {tensor.device}")
    stored = sum(record.file_size for record in records if "/data/" in record.filename)
    size = max(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())
    if size > stored:
        raise ImageError(f"a tensor of {size} bytes over {stored} stored ones")
    if not tensor.is_contiguous():
        raise ImageError(f"expected a contiguous tensor, found strides {tensor.stride()}")
    if tensor.is_complex() or tensor.dtype == torch.bool:
        raise ImageError(f"expected real numbers, found {tensor.dtype}")
    if tensor.dtype not in (torch.int16, torch.uint16):
        tensor = tensor.float()
    return np.asarray(tensor.detach().resolve_neg())


class _Record(NamedTuple):
    """Where a stored record lies: its header's position, the length of its content."""

    at: int
    size: int


def _records(tail: bytes, size: int) -> dict[str, _Record]:
    """Stored records of an archive by their names within its folder, told from its end."""
    found: dict[str, _Record] = {}
    mark, number, _, at, _ = _END.unpack_from(tail, len(tail) - _END.size)
    at -= size - len(tail)
    if mark != b"PK\5\6" or at < 0:
        return {}
    for _ in range(number):
        mark, method, packed, whole, name, extra, comment, local = _ENTRY.unpack_from(tail, at)
        key = tail[at + _ENTRY.size : at + _ENTRY.size + name].partition(b"/")[2].decode("latin-1")
        at += _ENTRY.size + name + extra + comment
        if mark != b"PK\1\2" or key in found:
            return {}
        if method == zipfile.ZIP_STORED and packed == whole:
            found[key] = _Record(local, whole)
    return found


def _begin(head: bytes, record: _Record) -> int:
    """Where the content of a record begins."""
    mark, name, extra = _LOCAL.unpack_from(head, record.at)
    if mark != b"PK\3\4":
        raise KeyError(record)
    return record.at + _LOCAL.size + int(name) + int(extra)


def _content(head: bytes, record: _Record) -> bytes:
    begin = _begin(head, record)
    return head[begin : begin + record.size]


@lru_cache(maxsize=1024)
def _pickled(dtype: str, shape: Shape) -> bytes:
    """What ``torch.save`` pickles of a contiguous tensor that has its storage to itself."""
    steps = tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
    number = _integer(math.prod(shape))
    return _PICKLE % (_STORAGES[dtype], number, _integers(shape), _integers(steps))


def _integer(number: int) -> bytes:
    """Pickle a number by protocol 2: in one, two or four bytes."""
    for mark, size in (b"K", 1), (b"M", 2):
        if number < 256**size:
            return mark + number.to_bytes(size, "little")
    return b"J" + number.to_bytes(4, "little")


def _integers(numbers: Shape) -> bytes:
    """Pickle a tuple of numbers by protocol 2."""
    inside = b"".join(map(_integer, numbers))
    if len(numbers) > 3:
        return b"(" + inside + b"t"
    return inside + (b")", b"\x85", b"\x86", b"\x87")[len(numbers)]
