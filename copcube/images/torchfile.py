"""The tensor of a member of a shard, found in its file without torch.

`torch.load` copies the numbers and blocks the interpreter meanwhile, so that further decoding
threads gain nothing. Here any part of the numbers is read in place, by the reader of
`copcube.files.torchfile`, with which no file can run code, take endless time or need more memory
than its own size.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from copcube.errors import ImageError
from copcube.files.contents import other_than
from copcube.files.torch_pickle import (
    ITEMSIZES,
    OtherObjectError,
    Shape,
    Tensor,
    TorchFileError,
    described,
)
from copcube.files.torchfile import read_torch_archive
from copcube.files.zip_directory import Read

_HEAD = 2048
"""Bytes at the start of a file, with its pickle and the headers of its members."""
_MAX_PICKLE = 2048


@dataclass(frozen=True)
class StoredTensor:
    """Position of the numbers of a contiguous tensor in a file.

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
        return ITEMSIZES[self.dtype]

    def decode(self, raw: bytes) -> NDArray[Any]:
        """Decode bytes of the tensor to numbers (n,) in its dtype; bfloat16 becomes float32.

        Without conversion, they share the memory of the bytes and are read-only.
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
        If it holds anything else: code, other objects, a tensor larger than its storage, of another
        shape or not contiguous; or if the file is damaged.
    """
    head = read(0, min(size, _HEAD))

    def glance(start: int, length: int) -> bytes:
        if start + length <= len(head):
            return head[start : start + length]
        return read(start, length)

    try:
        file = read_torch_archive(glance, size, _described, _MAX_PICKLE)
        tensor = file.content
        if tensor.shape not in shapes:
            raise ImageError(
                f"expected shape {shapes[-1]} as its names say, found {tensor.shape!s:.80}"
            )
        if not tensor.is_contiguous:
            raise ImageError(f"expected a contiguous tensor, found strides {tensor.steps!s:.80}")
        return StoredTensor(file.start(tensor), tensor.dtype, file.byte_order)
    except OtherObjectError as error:
        raise ImageError(f"expected one plain tensor of real numbers, found {error}") from error
    except TorchFileError as error:
        if (other := other_than(("torch", "zip", "pickle"), head)) is not None:
            raise ImageError(f"expected a file of torch.save, found {other}") from error
        raise ImageError(
            f"not a complete file of torch.save: {error}; get a new copy, or save the tensor again"
        ) from error


# Tensors of one shape and dtype have the same pickle, so a build reads few of them.
@lru_cache(maxsize=256)
def _described(pickled: bytes) -> Tensor:
    """Read the pickle of one tensor; errors are those of `described`."""
    tensor = described(pickled)
    if type(tensor) is not Tensor:
        raise OtherObjectError(f"an object of {type(tensor).__name__}")
    return tensor
