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
import pickletools
import re
import struct
import zipfile
from collections.abc import Callable, Sequence
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
_FOLDER = 0x10
_GLOBALS = re.compile(
    r"torch\._utils _rebuild_tensor_v[23]|collections OrderedDict|torch \w+Storage"
    r"|torch\.storage UntypedStorage|torch u?int(8|16|32|64)"
)
_OPERATIONS = {
    *("PROTO", "GLOBAL", "BINPUT", "MARK", "BINUNICODE", "BININT", "BININT1", "BININT2", "LONG1"),
    *("TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "EMPTY_TUPLE", "BINPERSID", "NEWTRUE", "NEWFALSE"),
    *("REDUCE", "STOP"),
}
"""What rebuilds a tensor: no containers but tuples, nothing used twice."""

_EDGE = 2048
"""Bytes at either end of a file that hold all but the numbers."""

_END = struct.Struct("<4s6xHIIH")
_LOCATOR = struct.Struct("<8xQ4x")
_LARGE_END = struct.Struct("<48xQ")
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


def load_tensor(raw: bytes, shapes: Sequence[Shape]) -> NDArray[Any]:
    """Read a file that holds one plain tensor of real numbers and nothing else.

    Parameters
    ----------
    raw : bytes
        The file.
    shapes : sequence of tuple of int
        What its shape may be.

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
        stored = _examined(raw)
        tensor = torch.load(io.BytesIO(raw), map_location="cpu", weights_only=True)
        if type(tensor) is not torch.Tensor or tensor.is_nested:
            raise ImageError(f"expected a plain tensor, found a {type(tensor).__name__}")
        if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.is_quantized:
            raise ImageError(f"expected a plain tensor, found {tensor.layout} on {tensor.device}")
        size = max(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())
        if size > stored:
            raise ImageError(f"a tensor of {size} bytes over {stored} stored ones")
        if not tensor.is_contiguous():
            raise ImageError(f"expected a contiguous tensor, found strides {tensor.stride()}")
        if tensor.is_complex() or tensor.dtype == torch.bool:
            raise ImageError(f"expected real numbers, found {tensor.dtype}")
        if tuple(tensor.shape) not in shapes:
            found = tuple(tensor.shape)
            raise ImageError(f"expected shape {shapes[-1]} as its names say, found {found}")
        if tensor.dtype not in (torch.int16, torch.uint16):
            tensor = tensor.float()
        return np.asarray(tensor.detach())
    except ImageError:
        raise
    except Exception as error:  # torch.load documents none of what it raises
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise ImageError(f"no tensor that torch can load: {reason:.200}") from error


def _examined(raw: bytes) -> int:
    """Bytes of stored data in an archive in which torch finds what `zipfile` finds.

    Its pickle is read without being obeyed. `torch.load` is safe from code, but not from
    pickles that take endless time or memory.

    Raises
    ------
    ImageError
        If the records are not all stored, or the pickle does more than rebuild a tensor.
    zipfile.BadZipFile
        If it is no archive.
    """
    with zipfile.ZipFile(io.BytesIO(raw)) as archive:
        records, start = archive.infolist(), archive.start_dir
    ends = {_END.unpack_from(raw, len(raw) - _END.size)[3]}
    if raw[-_LOCATOR.size - _END.size :].startswith(b"PK\6\7"):
        (end,) = _LOCATOR.unpack_from(raw, len(raw) - _LOCATOR.size - _END.size)
        ends.add(_LARGE_END.unpack_from(raw, end)[0])
    names = {record.filename for record in records}
    if not raw.startswith(b"PK\3\4") or ends != {start} or len(names) < len(records):
        raise ImageError("its directory says one thing here and another there")
    if any(record.compress_type or record.external_attr & _FOLDER for record in records):
        raise ImageError("expected stored records, found compressed ones or folders")
    total = sum(record.file_size for record in records)
    if total > len(raw):
        raise ImageError(f"records of {total} bytes in a file of {len(raw)}")
    for record in records:
        if record.filename.endswith("data.pkl"):
            if record.file_size > _EDGE:
                raise ImageError(f"a pickle of {record.file_size} bytes; expected at most {_EDGE}")
            _refuse_unusual(_content(raw, _Record(record.header_offset, record.file_size)))
    return sum(record.file_size for record in records if "/data/" in record.filename)


def _refuse_unusual(pickled: bytes) -> None:
    """Refuse a pickle that does anything but rebuild one tensor."""
    for operation, argument, _ in pickletools.genops(pickled):
        if operation.name == "GLOBAL" and not _GLOBALS.fullmatch(str(argument)):
            name = str(argument).replace(" ", ".")
            raise ImageError(f"it holds {name}, which is no plain tensor")
        if operation.name not in _OPERATIONS:
            raise ImageError(f"its pickle holds {operation.name}, no plain tensor's does")


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
