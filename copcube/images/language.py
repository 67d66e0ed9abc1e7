"""The language embedding of a variable: 2048 numbers, from any file or from memory.

No code in a file runs, and no more is read than these numbers need.
"""

import math
import mmap
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from copcube.arguments import numbers
from copcube.errors import OptionError
from copcube.files.regular import open_regular
from copcube.files.torch_pickle import Tensor, TorchFileError
from copcube.files.torchfile import open_torch_file
from copcube.modalities import LANGUAGE_DIM

_EXPECTED = f"expected {LANGUAGE_DIM} finite numbers"


def language_embedding(given: Any, folder: Path, name: str | None = None) -> bytes:
    """Read a language embedding.

    Parameters
    ----------
    given : str, Path or sequence of float
        A ``.npy`` file, a file of ``torch.save``, or the numbers.
    folder : Path
        Folder of a relative path.
    name : str, optional
        Name of the tensor, in a file that holds several.

    Returns
    -------
    bytes
        2048 little-endian float32.

    Raises
    ------
    OptionError
        If it is something else.
    """
    if not isinstance(given, str | os.PathLike):
        return _as_bytes(np.asarray(numbers(given, "language")), "language")
    path = folder / given
    what = f"language {path}"
    try:
        return _as_bytes(_npy(path) if path.suffix == ".npy" else _pt(path, name), what)
    except OptionError as error:
        if str(error).startswith(what):
            raise
        reason = str(error).removeprefix(f"{path}: ")
        raise OptionError(f"{what}: {reason}") from error.__cause__
    except TorchFileError as error:
        raise OptionError(f"{what}: not a file of plain tensors: {error}") from error
    except FileNotFoundError as error:
        raise OptionError(f"{what}: no such file; {_EXPECTED} in .npy or .pt") from error
    except (OSError, ValueError) as error:
        raise OptionError(f"{what}: not readable ({error}); {_EXPECTED}") from error


def _as_bytes(values: NDArray[Any], what: str) -> bytes:
    _require(values.shape, values.dtype, what)
    vector = values.reshape(-1).astype("<f4")
    if not np.isfinite(vector).all():
        raise OptionError(f"{what} holds values that are not finite; {_EXPECTED}")
    return bytes(vector.tobytes())


def _require(shape: tuple[int, ...], dtype: Any, what: str) -> None:
    """Refuse a wrong count of numbers, or other types; axes of length 1 are allowed."""
    if math.prod(shape) != LANGUAGE_DIM or LANGUAGE_DIM not in shape or "float" not in str(dtype):
        raise OptionError(f"{what} is {shape!s:.60} {dtype!s:.20}; {_EXPECTED}")


def _npy(path: Path) -> NDArray[Any]:
    with open_regular(path, OptionError) as file:
        version = np.lib.format.read_magic(file)
        if version != (1, 0):
            raise ValueError(f"version {version} of the format")
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
        # The header alone shows how much would be read.
        _require(shape, dtype, f"language {path}")
        return np.frombuffer(file.read(LANGUAGE_DIM * dtype.itemsize), dtype).reshape(shape)


def _pt(path: Path, name: str | None) -> NDArray[Any]:
    with (
        open_torch_file(path, OptionError) as file,
        open_regular(path, OptionError) as opened,
        mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as raw,
    ):
        tensor = _named(file.content, name)
        _require(tuple(tensor.shape), tensor.dtype, f"language {path}")
        if tensor.dtype == "bfloat16":
            raise OptionError(f"its tensor is {tensor.dtype}; {_EXPECTED}, as float32")
        # A copy, since the file is closed afterwards.
        return np.array(file.numbers(tensor, raw))


def _named(content: Any, name: str | None) -> Tensor:
    """Take the named tensor, or the only one, from a file's content."""
    if isinstance(content, Mapping):
        if name not in content and len(content) != 1:
            names = ", ".join(map(repr, list(content)[:20]))
            raise OptionError(
                f"it holds no tensor named {name!r}, but {names}; give one as language_key"
            )
        content = content[name] if name in content else next(iter(content.values()))
    if not isinstance(content, Tensor):
        raise OptionError(f"it holds a {type(content).__name__}; expected a tensor")
    return content
