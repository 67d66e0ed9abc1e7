"""Tensors of ``torch.save``, found in their files without torch.

A file of ``torch.save`` is a zip archive of stored members: the pickle ``data.pkl`` describes
the tensor, ``data/0`` holds its numbers. `torch.load` copies the numbers and holds the
interpreter meanwhile, so that further decoding threads gain nothing. Here the pickle is read
by an unpickler that knows nothing but the description of one tensor, and any part of the
numbers can be read where it lies.

No file can run code, take endless time or ask for more memory than it has bytes itself:

- Only the names of `_NAMES` are resolved, to functions and words of this module.
- Only the operations of `_OPERATIONS` are allowed, which is looked up before anything is
  unpickled. They build no containers but tuples and use nothing twice, so that what they
  build is no larger than the pickle: a few bytes of shared tuples can take years to hash.
- The pickle has at most 2 KiB, and the archive is refused if it contradicts itself.
"""

import io
import math
import pickle
import pickletools
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from copcube.errors import ImageError
from copcube.files.contents import other_than
from copcube.files.zip_directory import Read, ZipDirectory

Shape = tuple[int, ...]

_HEAD = 2048
"""First bytes of a file, which hold its pickle and the headers of its members."""
_MAX_PICKLE = 2048
_OPERATIONS = {
    *("PROTO", "GLOBAL", "BINPUT", "MARK", "BINUNICODE", "BININT", "BININT1", "BININT2", "LONG1"),
    *("TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "EMPTY_TUPLE", "BINPERSID", "NEWTRUE", "NEWFALSE"),
    *("REDUCE", "STOP"),
}


@dataclass(frozen=True)
class StoredTensor:
    """Where the numbers of a contiguous tensor lie in a file.

    Parameters
    ----------
    start : int
        Position of the first number in the file; the others follow, the last axis first.
    dtype : str
        Its data type, ``bfloat16`` or one of NumPy's integers and floats.
    byte_order : {"<", ">"}
        Whether the least or the most significant byte comes first.
    """

    start: int
    dtype: str
    byte_order: Literal["<", ">"]

    @property
    def itemsize(self) -> int:
        """Bytes of a number."""
        return _ITEMSIZES[self.dtype]

    def decode(self, raw: bytes) -> NDArray[Any]:
        """Numbers (n,) of some bytes of the tensor, in its dtype; bfloat16 as float32.

        They share the memory of the bytes, and are read-only, where nothing is converted.
        """
        if self.dtype == "bfloat16":
            # The upper half of a float32; NumPy has no such type.
            upper = np.frombuffer(raw, f"{self.byte_order}u2").astype(np.uint32)
            return (upper << 16).view(np.float32)
        dtype = np.dtype(self.dtype)
        return np.frombuffer(raw, dtype.newbyteorder(self.byte_order)).astype(dtype, copy=False)


def locate_tensor(read: Read, size: int, shapes: Sequence[Shape]) -> StoredTensor:
    """Find the tensor of a file that holds one plain tensor of real numbers and nothing else.

    Parameters
    ----------
    read : callable
        Reads the file, given a position and a length in bytes.
    size : int
        Length of the file, which ``torch.save`` of any version since 1.6 may have written.
    shapes : sequence of tuple of int
        What its shape may be.

    Raises
    ------
    ImageError
        If it holds anything else: code, other objects, a tensor larger than its storage, one
        of another shape or that is not contiguous; or if the file is damaged.
    """
    head = read(0, min(size, _HEAD))

    def glance(start: int, length: int) -> bytes:
        if start + length <= len(head):
            return head[start : start + length]
        return read(start, length)

    try:
        directory = ZipDirectory.of(glance, size)
        # torch names the folder inside of the archive after the file.
        folder = next(iter(directory.entries), "").partition("/")[0]
        tensor = _described(directory.content(f"{folder}/data.pkl", _MAX_PICKLE))
        order = b"little"  # versions before 2.1 of torch do not say it
        if f"{folder}/byteorder" in directory.entries:
            order = directory.content(f"{folder}/byteorder", len(b"little"))
        start, length = directory.locate(f"{folder}/data/{tensor.key}")
    except zipfile.BadZipFile as error:
        if (other := other_than(("torch", "zip", "pickle"), head)) is not None:
            raise ImageError(f"expected a file of torch.save, found {other}") from error
        raise ImageError(
            f"not a whole file of torch.save: {error}; get it anew, or save the tensor again"
        ) from error
    if tensor.shape not in shapes:
        raise ImageError(
            f"expected shape {shapes[-1]} as its names say, found {tensor.shape!s:.80}"
        )
    if order not in (b"little", b"big"):
        raise ImageError(f"expected the byte order little or big, found {order!r:.80}")
    if tensor.nbytes != length:
        raise ImageError(f"expected a storage of {tensor.nbytes} bytes, found {length}")
    itemsize = _ITEMSIZES[tensor.dtype]
    begin = tensor.offset * itemsize
    end = begin + math.prod(tensor.shape) * itemsize
    if begin < 0 or end > length:
        raise ImageError(f"its bytes {begin} to {end} are not in a storage of {length} bytes")
    return StoredTensor(start + begin, tensor.dtype, "<" if order == b"little" else ">")


# The pickle.


class _Tensor(NamedTuple):
    """A contiguous tensor as a pickle describes it: dtype, and what its storage is.

    The storage is the member `key` of `nbytes` bytes; the tensor starts at its number `offset`.
    """

    dtype: str
    key: str
    nbytes: int
    offset: int
    shape: Shape


_STORAGES = {
    **{"ByteStorage": "uint8", "CharStorage": "int8", "ShortStorage": "int16"},
    **{"IntStorage": "int32", "LongStorage": "int64", "HalfStorage": "float16"},
    **{"BFloat16Storage": "bfloat16", "FloatStorage": "float32", "DoubleStorage": "float64"},
}
_UNTYPED = ("uint16", "uint32", "uint64")  # which lie in storages of bytes
_ITEMSIZES = {
    **dict.fromkeys(("uint8", "int8"), 1),
    **dict.fromkeys(("uint16", "int16", "float16", "bfloat16"), 2),
    **dict.fromkeys(("uint32", "int32", "float32"), 4),
    **dict.fromkeys(("uint64", "int64", "float64"), 8),
}


def _tensor(
    storage: Any,
    offset: Any,
    shape: Any,
    steps: Any,
    _gradient: Any,
    _hooks: Any,
    dtype: Any = None,
) -> _Tensor:
    """Make a tensor of what a pickle hands to torch's function, all of any type."""
    kind, key, length = storage
    dtype = dtype if kind == "bytes" else kind
    if not (isinstance(dtype, str) and isinstance(key, str) and dtype in _ITEMSIZES):
        raise ImageError("expected one plain tensor, found one of unknown type")
    if not all(type(number) is int for number in (length, offset, *shape, *steps)):
        raise ImageError("expected one plain tensor, found a shape that is no numbers")
    expected = 1
    for count, step in zip(reversed(shape), reversed(steps), strict=True):
        if count != 1 and step != expected:
            raise ImageError(f"expected a contiguous tensor, found strides {steps!s:.80}")
        expected *= count
    itemsize = 1 if kind == "bytes" else _ITEMSIZES[dtype]
    return _Tensor(dtype, key, length * itemsize, offset, tuple(shape))


def _no_hooks() -> None:
    """Stand for the ordered dictionary of a tensor's hooks, which is empty."""


_NAMES: dict[tuple[str, str], Any] = {
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_tensor_v3"): _tensor,
    ("collections", "OrderedDict"): _no_hooks,
    ("torch.storage", "UntypedStorage"): "bytes",
    **{("torch", name): dtype for name, dtype in _STORAGES.items()},
    **{("torch", dtype): dtype for dtype in _UNTYPED},
}


class _Unpickler(pickle.Unpickler):
    """Reads the description of a tensor; nothing from the file is imported or called."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _NAMES:
            raise ImageError(
                f"expected one plain tensor of real numbers, found {module:.80}.{name:.80}"
            )
        return _NAMES[module, name]

    def persistent_load(self, pid: Any) -> tuple[Any, Any, Any]:
        _, kind, key, _, length = pid
        return kind, key, length


# Tensors of one shape and dtype have the same pickle, so few are read of a whole build.
@lru_cache(maxsize=256)
def _described(pickled: bytes) -> _Tensor:
    """Read the pickle of one plain tensor.

    Raises
    ------
    ImageError
        If it describes anything else.
    """
    try:
        for operation, _, _ in pickletools.genops(pickled):
            if operation.name not in _OPERATIONS:
                raise ImageError(
                    f"expected one plain tensor, found the operation {operation.name} in its pickle"
                )
        tensor = _Unpickler(io.BytesIO(pickled)).load()
    except ImageError:
        raise
    except Exception as error:  # a damaged pickle may raise almost anything
        raise ImageError(f"its pickle cannot be read: {error!s:.200}") from error
    if not isinstance(tensor, _Tensor):
        raise ImageError(f"expected one plain tensor, found an object of {type(tensor).__name__}")
    return tensor
