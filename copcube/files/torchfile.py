"""Files of ``torch.save``, read without torch and without running anything in them.

Such a file is a zip archive of stored members: the pickle ``data.pkl`` describes tensors,
``data/0`` holds the numbers of the first. Versions before 1.6 wrote pickles one after another
and the numbers behind them. A pickle is a program. Here it is run by an interpreter of a few
operations that knows nothing but descriptions of tensors, and numbers are used where they lie.

No file can run code, take endless time or ask for more memory than it has bytes itself:

- Only the names of `_NAMES` are resolved, to functions and words of this module.
- What an operation builds is no larger than the operation, and nothing that it builds is
  compared, hashed or printed: a few bytes of nested tuples can take years to hash. Keys of
  dictionaries are texts or small numbers.
- A pickle has at most 1 MiB. That of the published weights, of 200 tensors, has 30 kB.
"""

import io
import math
import os
import pickletools
import struct
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from copcube.errors import CopcubeError
from copcube.files.regular import open_regular
from copcube.files.zip_directory import Read, ZipDirectory

Shape = tuple[int, ...]

MAX_PICKLE = 1 << 20
_MAX_AXES = 16
_MAX_KEY = 1 << 31
_MAX_COUNT = 1 << 48
_LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
"""First bytes of a file of a version before 1.6: a pickled number that means nothing else."""


class TorchFileError(ValueError):
    """A file is no whole file of ``torch.save``."""


class OtherObjectError(TorchFileError):
    """A file of ``torch.save`` holds something else than tensors; the message names it."""


class Tensor(NamedTuple):
    """A tensor as a pickle describes it.

    Its storage is the member `key` of `nbytes` bytes; the tensor starts at the storage's
    number `offset`, and `steps` are its strides in numbers.
    """

    dtype: str
    key: str
    nbytes: int
    offset: int
    shape: Shape
    steps: Shape

    @property
    def itemsize(self) -> int:
        """Bytes of a number."""
        return ITEMSIZES[self.dtype]

    @property
    def is_contiguous(self) -> bool:
        """Whether its numbers follow each other, the last axis first."""
        expected = 1
        for count, step in zip(reversed(self.shape), reversed(self.steps), strict=True):
            if count != 1 and step != expected:
                return False
            expected *= count
        return True


class Parameter(Tensor):
    """A tensor that was a parameter of a module."""


@dataclass(frozen=True)
class TorchFile:
    """What a file of ``torch.save`` holds.

    Parameters
    ----------
    content : Any
        A `Tensor`, or dictionaries, lists, tuples, texts and numbers with tensors in them.
    starts : callable
        Position in the file of a tensor's storage, given the tensor.
    byte_order : {"<", ">"}
        Whether the least or the most significant byte of a number comes first.
    beside : callable
        Content of another member by the end of its name, given a limit too; None if there is
        none of that name.
    """

    content: Any
    starts: Callable[[Tensor], int]
    byte_order: Literal["<", ">"]
    beside: Callable[[str, int], bytes | None]

    def start(self, tensor: Tensor) -> int:
        """Position in the file of a tensor's first number.

        Raises
        ------
        TorchFileError
            If its storage is not there, has another length, or does not hold all of it.
        """
        last = tensor.offset + sum(
            (n - 1) * step for n, step in zip(tensor.shape, tensor.steps, strict=True)
        )
        end = tensor.nbytes // tensor.itemsize
        if min(tensor.offset, *tensor.steps, *tensor.shape, 0) < 0 or (
            math.prod(tensor.shape) and last >= end
        ):
            raise TorchFileError(f"a tensor is not in its storage of {tensor.nbytes} bytes")
        return self.starts(tensor) + tensor.offset * tensor.itemsize

    def numbers(self, tensor: Tensor, file: Any) -> NDArray[Any]:
        """Numbers of a tensor as a view of the file's bytes; those of bfloat16 as uint16.

        Raises
        ------
        TorchFileError
            As `start`.
        """
        dtype = np.dtype("uint16" if tensor.dtype == "bfloat16" else tensor.dtype)
        steps = [step * tensor.itemsize for step in tensor.steps]
        start = self.start(tensor)
        try:
            return np.ndarray(tensor.shape, dtype.newbyteorder(self.byte_order), file, start, steps)
        except (TypeError, ValueError) as error:
            raise TorchFileError(f"a tensor of shape {tensor.shape}: {error}") from error


@contextmanager
def open_torch_file(path: str | Path, error: type[CopcubeError]) -> Iterator[TorchFile]:
    """Find out what a file at a path holds, as `read_torch_file`, as long as the body runs.

    Raises
    ------
    CopcubeError
        The `error`, if it is no file, as `copcube.files.regular.open_regular` says.
    OSError
        If it is not there or cannot be read.
    """
    with open_regular(path, error) as file:

        def read(start: int, length: int) -> bytes:
            file.seek(start)
            return file.read(length)

        yield read_torch_file(read, file.seek(0, os.SEEK_END))


def read_torch_file(read: Read, size: int) -> TorchFile:
    """Find out what a file of ``torch.save`` of any version holds, reading no tensor.

    Parameters
    ----------
    read : callable
        Reads the file, given a position and a length in bytes.
    size : int
        Length of the file.

    Raises
    ------
    TorchFileError
        If it is damaged or no such file; `OtherObjectError` if it holds other objects.
    """
    if read(0, len(_LEGACY)) == _LEGACY:
        return _legacy(read, size)
    if read(0, 1) == b"\x80":
        raise OtherObjectError("a pickle of other objects")
    return read_torch_archive(read, size, described, MAX_PICKLE)


def read_torch_archive(
    read: Read, size: int, describe: Callable[[bytes], Any], max_pickle: int
) -> TorchFile:
    """Find out what a file of ``torch.save`` since version 1.6 holds, reading no tensor.

    Parameters
    ----------
    read, size
        As `read_torch_file`, which says what is raised.
    describe : callable
        `described`, or the same with a memory.
    max_pickle : int
        Bytes that its pickle may have.
    """
    try:
        directory = ZipDirectory.of(read, size)
        # torch names the folder inside of the archive after the file.
        folder = next(iter(directory.entries), "").partition("/")[0]
        content = describe(directory.content(f"{folder}/data.pkl", max_pickle))
        order = b"little"  # versions before 2.1 of torch do not say it
        if f"{folder}/byteorder" in directory.entries:
            order = directory.content(f"{folder}/byteorder", len(order))
    except zipfile.BadZipFile as error:
        raise TorchFileError(str(error)) from error
    if order not in (b"little", b"big"):
        raise TorchFileError(f"expected the byte order little or big, found {order!r:.80}")

    def starts(tensor: Tensor) -> int:
        try:
            start, length = directory.locate(f"{folder}/data/{tensor.key}")
        except zipfile.BadZipFile as error:
            raise TorchFileError(str(error)) from error
        if tensor.nbytes != length:
            raise TorchFileError(f"expected a storage of {tensor.nbytes} bytes, found {length}")
        return start

    def beside(end: str, limit: int) -> bytes | None:
        name = f"{folder}/{end}"
        return directory.content(name, limit) if name in directory.entries else None

    return TorchFile(content, starts, "<" if order == b"little" else ">", beside)


def _legacy(read: Read, size: int) -> TorchFile:
    """Read a file of a version before 1.6: four pickles, and the storages behind them."""
    head = read(0, min(size, 2 * MAX_PICKLE))
    at = len(_LEGACY)
    found = []
    for _ in range(4):  # version, system, content, keys of the storages
        length = _length_of_pickle(head[at : at + MAX_PICKLE])
        found.append(described(head[at : at + length]))
        at += length
    content, keys = found[2:]
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise TorchFileError("it has no list of its storages")
    order = {key: number for number, key in enumerate(keys)}
    begins = [at]
    sizes = {tensor.key: tensor for tensor in _storages(content)}
    for key in keys:
        if key not in sizes:
            raise TorchFileError("it lists a storage that no tensor uses")
        tensor = sizes[key]
        stored = tensor.nbytes // tensor.itemsize
        if read(begins[-1], 8) != struct.pack("<q", stored):
            raise TorchFileError(f"a storage of {stored} numbers is not where it should be")
        begins.append(begins[-1] + 8 + tensor.nbytes)
    if begins[-1] != size:
        raise TorchFileError(f"its storages end at byte {begins[-1]}, it has {size}")

    def starts(tensor: Tensor) -> int:
        if tensor.key not in order or sizes[tensor.key].nbytes != tensor.nbytes:
            raise TorchFileError("a tensor without a storage")
        return begins[order[tensor.key]] + 8

    return TorchFile(content, starts, "<", lambda end, limit: None)


def _storages(content: Any) -> list[Tensor]:
    """All tensors of a content; whatever it holds several times is visited once."""
    found, seen, pending = [], set(), [content]
    while pending:
        value = pending.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, dict):
            pending += value.values()
        elif isinstance(value, list | tuple):
            pending += value
    return found


def _length_of_pickle(head: bytes) -> int:
    try:
        for operation, _, at in pickletools.genops(io.BytesIO(head)):
            if operation.name == "STOP":
                return int(at or 0) + 1
    except Exception as error:  # a damaged pickle may raise almost anything
        raise TorchFileError(f"its pickle cannot be read: {error!s:.200}") from error
    raise TorchFileError("its pickle has no end")


# The names that a pickle may use.

_STORAGES = {
    **{"ByteStorage": "uint8", "CharStorage": "int8", "ShortStorage": "int16"},
    **{"IntStorage": "int32", "LongStorage": "int64", "HalfStorage": "float16"},
    **{"BFloat16Storage": "bfloat16", "FloatStorage": "float32", "DoubleStorage": "float64"},
    **{"BoolStorage": "bool"},
}
_UNTYPED = ("uint16", "uint32", "uint64")  # which lie in storages of bytes
ITEMSIZES = {
    **dict.fromkeys(("bool", "uint8", "int8"), 1),
    **dict.fromkeys(("uint16", "int16", "float16", "bfloat16"), 2),
    **dict.fromkeys(("uint32", "int32", "float32"), 4),
    **dict.fromkeys(("uint64", "int64", "float64"), 8),
}
"""Bytes of a number of every data type that is understood."""


class _Storage(NamedTuple):
    kind: str
    key: str
    count: int


def _tensor(
    storage: Any,
    offset: Any,
    shape: Any,
    steps: Any,
    _gradient: Any,
    _hooks: Any,
    dtype: Any = None,
) -> Tensor:
    """Make a tensor of what a pickle hands to torch's function, all of any type."""
    if not isinstance(storage, _Storage):
        raise OtherObjectError("a tensor without a storage")
    kind, key, count = storage
    dtype = dtype if kind == "bytes" else kind
    if not (isinstance(dtype, str) and dtype in ITEMSIZES):
        raise OtherObjectError("a tensor of unknown type")
    axes = shape, steps
    if not all(isinstance(axis, tuple) and len(axis) <= _MAX_AXES for axis in axes):
        raise OtherObjectError("a tensor of no shape")
    if not all(type(number) is int for number in (offset, *shape, *steps)):
        raise OtherObjectError("a tensor whose shape is no numbers")
    if len(shape) != len(steps):
        raise OtherObjectError(f"a tensor of {len(shape)} axes and {len(steps)} strides")
    nbytes = count * (1 if kind == "bytes" else ITEMSIZES[dtype])
    return Tensor(dtype, key, nbytes, offset, shape, steps)


def _parameter(tensor: Any, _gradient: Any, _hooks: Any) -> Tensor:
    if not isinstance(tensor, Tensor):
        raise OtherObjectError("a parameter that is no tensor")
    return Parameter(*tensor)


def _ordered(*items: Any) -> dict[str, Any]:
    if items:
        raise OtherObjectError("an ordered dictionary of items")
    return {}


def _size(*shape: Any) -> tuple[Any, ...]:
    return shape[0] if len(shape) == 1 and isinstance(shape[0], tuple) else ()


_NAMES: dict[str, Any] = {
    "torch._utils _rebuild_tensor_v2": _tensor,
    "torch._utils _rebuild_tensor_v3": _tensor,
    "torch._utils _rebuild_parameter": _parameter,
    "collections OrderedDict": _ordered,
    "torch Size": _size,
    "torch.storage UntypedStorage": "bytes",
    **{f"torch {name}": dtype for name, dtype in _STORAGES.items()},
    **{f"torch {dtype}": dtype for dtype in _UNTYPED},
}


def _persistent(pid: Any) -> _Storage:
    """Understand what torch puts in place of a storage; where it was before means nothing."""
    if not (isinstance(pid, tuple) and len(pid) in (5, 6) and (len(pid) == 5 or pid[5] is None)):
        raise OtherObjectError("an object that is no storage")
    _, kind, key, _, count = pid[:5]
    if not (isinstance(kind, str) and isinstance(key, str) and type(count) is int):
        raise OtherObjectError("a storage of unknown type")
    if not 0 <= count < _MAX_COUNT:
        raise OtherObjectError(f"a storage of {count} numbers")
    return _Storage(kind, key, count)


# The interpreter.


def described(pickled: bytes) -> Any:
    """Run a pickle that describes tensors.

    Returns
    -------
    Any
        A `Tensor`, or dictionaries, lists, tuples, texts and numbers with tensors in them.

    Raises
    ------
    OtherObjectError
        If it describes anything else.
    TorchFileError
        If it is damaged.
    """
    try:
        return _Interpreter().run(pickled)
    except TorchFileError:
        raise
    except Exception as error:  # a damaged pickle may raise almost anything
        raise TorchFileError(f"its pickle cannot be read: {error!s:.200}") from error


class _Interpreter:
    """A stack of values, as in `pickletools`, for the operations that torch writes."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def run(self, pickled: bytes) -> Any:
        for operation, argument, _ in pickletools.genops(io.BytesIO(pickled)):
            name = operation.name
            if name in _VALUES:
                self.stack.append(_VALUES[name] if argument is None else argument)
            elif name in ("BINPUT", "LONG_BINPUT"):
                self.memo[int(argument or 0)] = self.stack[-1]
            elif name in ("BINGET", "LONG_BINGET"):
                self.stack.append(self.memo[int(argument or 0)])
            elif name == "STOP":
                return self.stack.pop()
            elif name not in ("PROTO", "FRAME"):
                method = getattr(self, f"_{name.lower()}", None)
                if method is None:
                    raise OtherObjectError(f"the operation {name} in its pickle")
                method() if argument is None else method(argument)
        raise TorchFileError("its pickle has no end")

    def _top(self) -> list[Any]:
        """Take off what lies above the last mark."""
        at = self.marks.pop()
        taken = self.stack[at:]
        del self.stack[at:]
        return taken

    def _mark(self) -> None:
        self.marks.append(len(self.stack))

    def _empty_dict(self) -> None:
        self.stack.append({})

    def _empty_list(self) -> None:
        self.stack.append([])

    def _tuple(self) -> None:
        self.stack.append(tuple(self._top()))

    def _tuple1(self) -> None:
        self._last(1)

    def _tuple2(self) -> None:
        self._last(2)

    def _tuple3(self) -> None:
        self._last(3)

    def _last(self, count: int) -> None:
        values = tuple(self.stack[-count:])
        if len(values) < count:
            raise TorchFileError("its pickle takes more than there is")
        self.stack[-count:] = [values]

    def _append(self) -> None:
        self._extend([self.stack.pop()])

    def _appends(self) -> None:
        self._extend(self._top())

    def _extend(self, values: list[Any]) -> None:
        if not isinstance(self.stack[-1], list):
            raise OtherObjectError("items of no list")
        self.stack[-1].extend(values)

    def _setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._update([key, value])

    def _setitems(self) -> None:
        self._update(self._top())

    def _update(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, dict):
            raise OtherObjectError("items of no dictionary")
        for key, value in zip(items[::2], items[1::2], strict=True):
            # Numbers beyond that can be chosen so that all of them have one hash.
            if not isinstance(key, str) and not (type(key) is int and abs(key) < _MAX_KEY):
                raise OtherObjectError("a dictionary whose keys are no names")
            target[key] = value

    def _global(self, name: str) -> None:
        if name not in _NAMES:
            raise OtherObjectError(f"{name.replace(' ', '.'):.160}")
        self.stack.append(_NAMES[name])

    def _reduce(self) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        if not callable(function) or not isinstance(arguments, tuple):
            raise OtherObjectError("a call of no function")
        self.stack.append(function(*arguments))

    def _build(self) -> None:
        # Attributes that torch gives to dictionaries of tensors mean nothing here.
        self.stack.pop()
        if not isinstance(self.stack[-1], dict):
            raise OtherObjectError("an object with attributes")

    def _binpersid(self) -> None:
        self.stack.append(_persistent(self.stack.pop()))


_VALUES: dict[str, Any] = {
    **dict.fromkeys(("BINUNICODE", "SHORT_BINUNICODE", "BININT", "BININT1", "BININT2", "LONG1")),
    **{"BINFLOAT": None, "NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()},
}
"""Operations that put a value on the stack: their own, or that of their argument."""
