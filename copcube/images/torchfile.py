"""The tensor of a member of a shard, found in its file without torch.

`torch.load` copies the numbers and holds the interpreter meanwhile, so that further decoding
threads gain nothing. Here any part of the numbers is read where it lies, by the reader of
`copcube.files.torchfile`, with which no file can run code, take endless time or ask for more
memory than it has bytes itself.
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
"""First bytes of a file, which hold its pickle and the headers of its members."""
_MAX_PICKLE = 2048


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
        return ITEMSIZES[self.dtype]

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
            f"not a whole file of torch.save: {error}; get it anew, or save the tensor again"
        ) from error


# Tensors of one shape and dtype have the same pickle, so few are read of a whole build.
@lru_cache(maxsize=256)
def _described(pickled: bytes) -> Tensor:
    """Read the pickle of one tensor; errors are those of `described`."""
    tensor = described(pickled)
    if type(tensor) is not Tensor:
        raise OtherObjectError(f"an object of {type(tensor).__name__}")
    return tensor
