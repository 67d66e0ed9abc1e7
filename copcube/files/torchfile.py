"""Files of ``torch.save``, read without torch and without running anything in them.

Such a file is a zip archive of stored members: the pickle ``data.pkl`` describes tensors,
``data/0`` holds the numbers of the first. Versions before 1.6 wrote pickles one after another,
followed by the numbers. `copcube.files.torch_pickle` runs the pickles, and numbers are used in
place: no file can run code, take endless time or need more memory than its own size.
"""

import io
import os
import pickletools
import struct
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from copcube.errors import CopcubeError
from copcube.files.regular import open_regular
from copcube.files.torch_pickle import OtherObjectError, Tensor, TorchFileError, described
from copcube.files.zip_directory import Read, ZipDirectory, reader_of

MAX_PICKLE = 1 << 20
"""Bytes of a pickle. That of the published weights, of 200 tensors, has 30 kB."""
_LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
"""First bytes of a file of a version before 1.6: a pickled magic number."""


@dataclass(frozen=True)
class TorchFile:
    """Content of a file of ``torch.save``.

    Parameters
    ----------
    content : Any
        A `Tensor`, or dictionaries, lists, tuples, texts and numbers with tensors in them.
    starts : callable
        Position in the file of a tensor's storage, given the tensor.
    byte_order : {"<", ">"}
        Whether the least or the most significant byte of a number comes first.
    beside : callable
        Returns the content of another member, given the end of its name and a limit; None if there
        is none.
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
            If its storage is absent, has a wrong length, or does not hold all of it.
        """
        # Strides may be any numbers, so the farthest number decides, not their count.
        last = tensor.offset + sum(
            (n - 1) * step for n, step in zip(tensor.shape, tensor.steps, strict=True)
        )
        end = tensor.nbytes // tensor.itemsize
        if min(tensor.offset, *tensor.steps, *tensor.shape, 0) < 0 or (
            0 not in tensor.shape and last >= end
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
    """Open a file at a path, as `read_torch_file`, while the body runs.

    Raises
    ------
    CopcubeError
        The `error`, if it is not a file, as in `copcube.files.regular.open_regular`.
    OSError
        If it does not exist or cannot be read.
    """
    with open_regular(path, error) as file:
        yield read_torch_file(reader_of(file), file.seek(0, os.SEEK_END))


def read_torch_file(read: Read, size: int) -> TorchFile:
    """Read the description of a file of ``torch.save`` of any version, without its tensors.

    Parameters
    ----------
    read : callable
        Reads the file, given a position and a length in bytes.
    size : int
        Length of the file.

    Raises
    ------
    TorchFileError
        If it is damaged or not such a file; `OtherObjectError` if it holds other objects.
    """
    if read(0, len(_LEGACY)) == _LEGACY:
        return _legacy(read, size)
    if read(0, 1) == b"\x80":
        raise OtherObjectError("a pickle of other objects")
    return read_torch_archive(read, size, described, MAX_PICKLE)


def read_torch_archive(
    read: Read, size: int, describe: Callable[[bytes], Any], max_pickle: int
) -> TorchFile:
    """Read the description of a file of ``torch.save`` since version 1.6, without its tensors.

    Parameters
    ----------
    read, size
        As `read_torch_file`, which lists the errors too.
    describe : callable
        `described`, or the same with a cache.
    max_pickle : int
        Maximum bytes of its pickle.
    """
    try:
        directory = ZipDirectory.of(read, size)
        # torch names the folder inside the archive after the file.
        folder = next(iter(directory.entries), "").partition("/")[0]
        content = describe(directory.content(f"{folder}/data.pkl", max_pickle))
        order = b"little"  # torch before 2.1 does not record it
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
    """Read a file of a version before 1.6: four pickles, followed by the storages."""
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
    begins: dict[str, int] = {}
    storages = {tensor.key: tensor for tensor in _tensors(content)}
    for key in keys:
        if key not in storages:
            raise TorchFileError("it lists a storage that no tensor uses")
        tensor = storages[key]
        stored = tensor.nbytes // tensor.itemsize
        # Each storage is preceded by its count of numbers.
        if read(at, 8) != struct.pack("<q", stored):
            raise TorchFileError(f"a storage of {stored} numbers is not where it should be")
        begins[key] = at + 8
        at += 8 + tensor.nbytes
    if at != size:
        raise TorchFileError(f"its storages end at byte {at}, but it has {size}")

    def starts(tensor: Tensor) -> int:
        if tensor.key not in begins or storages[tensor.key].nbytes != tensor.nbytes:
            raise TorchFileError("a tensor without a storage")
        return begins[tensor.key]

    return TorchFile(content, starts, "<", lambda end, limit: None)


def _tensors(content: Any) -> list[Tensor]:
    """All tensors in a content; repeated objects are visited once."""
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
    except MemoryError:
        raise
    except Exception as error:  # a damaged pickle may raise almost anything
        raise TorchFileError(f"its pickle cannot be read: {error!s:.200}") from error
    raise TorchFileError("its pickle has no end")
