"""The pickles of ``torch.save``, run by an interpreter that knows only descriptions of tensors.

A pickle is a program, and can do anything. Here only the operations that torch writes are executed,
and nothing is imported or called:

- Only the names of `_NAMES` are resolved, to functions and words of this module.
- The result of an operation is no larger than the operation, and is never compared, hashed or
  printed: a few bytes of nested tuples can take years to hash. Keys of dictionaries are texts or
  small numbers.
"""

import io
import pickletools
from typing import Any, NamedTuple

Shape = tuple[int, ...]

_MAX_AXES = 16
_MAX_KEY = 1 << 31
_MAX_COUNT = 1 << 48


class TorchFileError(ValueError):
    """A file is not a complete file of ``torch.save``."""


class OtherObjectError(TorchFileError):
    """A file of ``torch.save`` holds something other than tensors; the message names it."""


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
"""Bytes per number of every supported data type."""


class _Storage(NamedTuple):
    kind: str
    key: str
    length: int


def _tensor(
    storage: Any,
    offset: Any,
    shape: Any,
    steps: Any,
    _gradient: Any,
    _hooks: Any,
    dtype: Any = None,
) -> Tensor:
    """Make a tensor from a pickle's arguments of torch's function, which may have any type."""
    if not isinstance(storage, _Storage):
        raise OtherObjectError("a tensor without a storage")
    kind, key, count = storage
    dtype = dtype if kind == "bytes" else kind
    if not (isinstance(dtype, str) and dtype in ITEMSIZES):
        raise OtherObjectError("a tensor of unknown type")
    axes = shape, steps
    if not all(isinstance(axis, tuple) and len(axis) <= _MAX_AXES for axis in axes):
        raise OtherObjectError("a tensor without a shape")
    # `isinstance` would take True and False for numbers.
    if not all(type(number) is int for number in (offset, *shape, *steps)):
        raise OtherObjectError("a tensor whose shape is not numbers")
    if len(shape) != len(steps):
        raise OtherObjectError(f"a tensor of {len(shape)} axes and {len(steps)} strides")
    nbytes = count * (1 if kind == "bytes" else ITEMSIZES[dtype])
    return Tensor(dtype, key, nbytes, offset, shape, steps)


def _parameter(tensor: Any, _gradient: Any, _hooks: Any) -> Tensor:
    if not isinstance(tensor, Tensor):
        raise OtherObjectError("a parameter that is not a tensor")
    return Parameter(*tensor)


def _ordered(*items: Any) -> dict[str, Any]:
    # torch makes it empty and sets its items with further operations.
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
    """Interpret torch's placeholder for a storage; its former device is ignored."""
    if not (isinstance(pid, tuple) and len(pid) in (5, 6) and (len(pid) == 5 or pid[5] is None)):
        raise OtherObjectError("an object that is not a storage")
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
    except (TorchFileError, MemoryError):
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
            elif name in _EMPTY:
                self.stack.append(_EMPTY[name]())
            elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
                self._join(int(name[-1]))
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
        """Pop everything above the last mark."""
        at = self.marks.pop()
        taken = self.stack[at:]
        del self.stack[at:]
        return taken

    def _mark(self) -> None:
        self.marks.append(len(self.stack))

    def _tuple(self) -> None:
        self.stack.append(tuple(self._top()))

    def _join(self, count: int) -> None:
        """Make a tuple of the last values."""
        values = tuple(self.stack[-count:])
        if len(values) < count:
            raise TorchFileError("its pickle pops more than there is")
        self.stack[-count:] = [values]

    def _append(self) -> None:
        self._extend([self.stack.pop()])

    def _appends(self) -> None:
        self._extend(self._top())

    def _extend(self, values: list[Any]) -> None:
        if not isinstance(self.stack[-1], list):
            raise OtherObjectError("items without a list")
        self.stack[-1].extend(values)

    def _setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._update([key, value])

    def _setitems(self) -> None:
        self._update(self._top())

    def _update(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, dict):
            raise OtherObjectError("items without a dictionary")
        for key, value in zip(items[::2], items[1::2], strict=True):
            # Larger numbers can be chosen so that all have the same hash.
            if not isinstance(key, str) and not (type(key) is int and abs(key) < _MAX_KEY):
                raise OtherObjectError("a dictionary whose keys are not names")
            target[key] = value

    def _global(self, name: str) -> None:
        if name not in _NAMES:
            raise OtherObjectError(f"{name.replace(' ', '.'):.160}")
        self.stack.append(_NAMES[name])

    def _reduce(self) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        if not callable(function) or not isinstance(arguments, tuple):
            raise OtherObjectError("a call without a function")
        self.stack.append(function(*arguments))

    def _build(self) -> None:
        # Attributes that torch gives to dictionaries of tensors are ignored.
        self.stack.pop()
        if not isinstance(self.stack[-1], dict):
            raise OtherObjectError("an object with attributes")

    def _binpersid(self) -> None:
        self.stack.append(_persistent(self.stack.pop()))


_VALUES: dict[str, Any] = {
    **dict.fromkeys(("BINUNICODE", "SHORT_BINUNICODE", "BININT", "BININT1", "BININT2", "LONG1")),
    **{"BINFLOAT": None, "NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()},
}
"""Operations that push a value: their own, or that of their argument."""

_EMPTY = {"EMPTY_DICT": dict, "EMPTY_LIST": list}
"""Operations that push a new, empty container."""
