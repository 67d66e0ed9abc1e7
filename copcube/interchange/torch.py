"""Torch files: a map as a bare tensor (721, 1440, D), as ``embed_map_310k.pt``.

A ``.pt`` is a zip archive with uncompressed storages. The numbers are read in place, so reading
needs neither torch nor much memory, and no code in a file runs.
"""

import mmap
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from copcube import grid
from copcube.errors import CubeError, MissingPackageError
from copcube.files.contents import refuse_other
from copcube.files.torch_pickle import OtherObjectError, Tensor, TorchFileError
from copcube.files.torchfile import TorchFile, open_torch_file
from copcube.interchange.metadata import KEY, MapMetadata
from copcube.interchange.npz import PLACES, SMALL, packing_of, refuse_other_places, require_map
from copcube.interchange.packing import DTYPES, Exported
from copcube.interchange.sources import InPlace, MapSource
from copcube.interchange.writer import writing_map

if TYPE_CHECKING:
    import xarray as xr

_ALIGNMENT = 64
_STORAGES = {"float32": "Float", "float16": "Half", "float64": "Double", "int8": "Char"}


def open_pt(path: str) -> MapSource:
    """Find the map in a torch file, without reading it.

    Raises
    ------
    CubeError
        If the file holds more than tensors, none of (721, 1440, D) or several.
    """
    with _named(path) as (file, tensors):
        maps = {name: tensor for name, tensor in tensors.items() if len(tensor.shape) > 1}
        if len(maps) != 1:
            found = ", ".join(f"{n} {t.shape!s:.80}" for n, t in tensors.items()) or "none"
            raise CubeError(
                f"{path}: expected a tensor, or a dict with one map; found {found:.400}"
            )
        ((name, tensor),) = maps.items()
        require_map(path, name, tensor.shape, tensor.dtype)
        # Only a tensor stored as it is in memory can be read in place.
        if not tensor.is_contiguous or file.byte_order != "<":
            raise CubeError(
                f"{path}: {name} is not stored contiguously; save it again with "
                "torch.save(tensor.contiguous(), path)"
            )
        start, dim = file.start(tensor), tensor.shape[-1]
        small = [_small(path, file, tensors.get(key), dim) for key in ("scale", "offset")]
        places = {key: _small(path, file, tensors.get(key), n) for key, n in PLACES.items()}
        described = file.beside(f"{KEY}.json", SMALL)
    packing = packing_of(path, np.dtype(tensor.dtype), dim, *small)
    text = None if described is None else described.decode("utf-8", "replace")
    metadata = MapMetadata.loads(text, path)
    refuse_other_places(path, places, metadata)
    return InPlace(path, "pt", dim, packing, metadata, start)


@contextmanager
def _named(path: str) -> Iterator[tuple[TorchFile, dict[str, Tensor]]]:
    """Open a file, and find its tensors by name; a bare one is called tensor."""
    refuse_other(path, ("torch", "zip", "pickle", "tar"), "a file of torch.save", CubeError)
    try:
        with open_torch_file(path, CubeError) as file:
            content = file.content
            named = content if isinstance(content, dict) else {"tensor": content}
            if not all(isinstance(tensor, Tensor) for tensor in named.values()):
                found = ", ".join(sorted({type(value).__name__ for value in named.values()}))
                raise CubeError(f"{path}: expected a tensor or a dict with one; found {found}")
            yield file, {str(name): tensor for name, tensor in named.items()}
    except OtherObjectError as error:
        raise CubeError(
            f"{path}: holds more than tensors ({error}) and was not loaded, since such a file can "
            "run code; get a new copy, or save the tensor alone"
        ) from error
    except (TorchFileError, OSError) as error:
        raise CubeError(
            f"{path}: not a complete torch file ({error}); save it again with "
            "torch.save(tensor.contiguous(), path), or get a new copy"
        ) from error


def _small(path: str, file: TorchFile, tensor: Tensor | None, dim: int) -> NDArray[Any] | None:
    """Numbers (dim,) of a tensor beside a map; None if none has that shape."""
    if tensor is None or tensor.shape != (dim,):
        return None
    with open(path, "rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as raw:
        # In the machine's byte order, as a copy.
        return file.numbers(tensor, raw).astype(tensor.dtype)


def to_pt(
    ds: "xr.Dataset",
    path: str | Path,
    *,
    order: str = "published",
    dtype: str = "float32",
    overwrite: bool = False,
) -> Exported:
    """Write a cube or a reduction as a torch tensor (721, 1440, D), as published.

    ``torch.load(path, weights_only=True, mmap=True)`` returns the bare tensor; for int8 a dict with
    ``scale`` and ``offset`` too. Parameters, result and errors are those of
    `copcube.interchange.to_npz`.

    Raises
    ------
    MissingPackageError
        If torch is not installed.
    """
    _torch()
    with (
        writing_map(
            ds, path, "pt", DTYPES, dtype=dtype, order=order, overwrite=overwrite
        ) as writer,
        zipfile.ZipFile(writer.file, "w") as archive,
    ):
        packing, shape = writer.packing, (grid.N_LAT, grid.N_LON, writer.dim)
        content: Any = _Tensor("0", packing.dtype, shape)
        small = [a for a in (packing.scale, packing.offset) if a is not None]
        if small:
            scale, offset = (_Tensor(key, "float64", (writer.dim,)) for key in ("1", "2"))
            content = {writer.metadata.variable: content, "scale": scale, "offset": offset}
        windows = (writer.window(rows).data for rows in grid.bands())
        _save(archive, content, windows, small, writer.metadata.dumps())
    return writer.result(path)


def save_tensor(file: Path, values: NDArray[np.float32], description: str) -> None:
    """Write a bare tensor as `torch.save` would, always with the same bytes.

    Parameters
    ----------
    file : Path
        File to write.
    values : numpy.ndarray
        Numbers, float32.
    description : str
        JSON text stored beside the tensor, where torch does not look.

    Raises
    ------
    MissingPackageError
        If torch is not installed.
    """
    _torch()
    with zipfile.ZipFile(file, "w") as archive:
        numbers = np.ascontiguousarray(values).data
        _save(archive, _Tensor("0", "float32", values.shape), [numbers], [], description)


def _save(
    archive: zipfile.ZipFile,
    content: Any,
    first: Iterable[Any],
    small: Sequence[NDArray[Any]],
    description: str,
) -> None:
    """Write the records of an archive of tensors: the first in parts, small ones at once."""
    with _record(archive, "data.pkl") as stream:
        # torch itself writes protocol 2, and its safe loader knows few later operations.
        _Pickler(stream, protocol=2).dump(content)
    with _record(archive, "byteorder") as stream:
        stream.write(b"little")
    with _record(archive, "data/0") as stream:
        for part in first:
            stream.write(part)
    for number, values in enumerate(small, 1):
        with _record(archive, f"data/{number}") as stream:
            stream.write(values.tobytes())
    with _record(archive, "version") as stream:
        stream.write(b"3\n")
    with _record(archive, f"{KEY}.json") as stream:
        stream.write(description.encode())


@dataclass(frozen=True)
class _Tensor:
    """Placeholder in a pickle for a tensor whose numbers are written as a separate record.

    `torch.save` lays out archives like this, but would need all numbers in memory.
    """

    key: str
    dtype: str
    shape: tuple[int, ...]

    def __reduce__(self) -> tuple[Any, ...]:
        steps = tuple(int(np.prod(self.shape[i + 1 :])) for i in range(len(self.shape)))
        what = _Storage(self.key, self.dtype, int(np.prod(self.shape, dtype=np.int64)))
        rebuild = _torch()._utils._rebuild_tensor_v2
        return rebuild, (what, 0, self.shape, steps, False, OrderedDict())


@dataclass(frozen=True)
class _Storage:
    key: str
    dtype: str
    count: int


class _Pickler(pickle.Pickler):
    def persistent_id(self, obj: Any) -> tuple[Any, ...] | None:
        if not isinstance(obj, _Storage):
            return None
        kind = getattr(_torch(), f"{_STORAGES[obj.dtype]}Storage")
        return "storage", kind, obj.key, "cpu", obj.count


@contextmanager
def _record(archive: zipfile.ZipFile, name: str) -> Iterator[IO[bytes]]:
    """Write a record whose data start at a multiple of 64 bytes, as torch does."""
    info = zipfile.ZipInfo(f"archive/{name}")  # dated 1980: the same cube gives the same bytes
    start = archive.start_dir + 30 + len(info.filename) + 20  # 20 for zip64, which follows
    padding = -(start + 4) % _ALIGNMENT
    # torch pads with a field of the same number, FB; readers ignore it.
    info.extra = struct.pack("<HH", 0x4246, padding) + bytes(padding)
    with archive.open(info, "w", force_zip64=True) as stream:
        yield stream


def _torch() -> Any:
    try:
        import torch
    except ImportError as error:
        raise MissingPackageError(
            "torch files need torch: pip install 'copcube[build]', or use .npz"
        ) from error
    return torch
