"""Torch files: a map as a bare tensor (721, 1440, D), as ``embed_map_310k.pt``.

A ``.pt`` is a zip archive whose storages lie in it uncompressed. Torch says, unpickling
nothing but tensors, what is in it; the numbers are then mapped where they lie, so that
neither workers nor memory need torch.
"""

import pickle
import re
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from copcube import grid
from copcube.errors import CubeError, MissingPackageError
from copcube.files.contents import refuse_other
from copcube.files.zip_directory import open_directory
from copcube.interchange.metadata import KEY, MapMetadata
from copcube.interchange.npz import SMALL, packing_of, require_map
from copcube.interchange.packing import DTYPES, Exported
from copcube.interchange.sources import Mapped, MapSource
from copcube.interchange.writer import writing_map

if TYPE_CHECKING:
    import torch
    import xarray as xr

_ALIGNMENT = 64
_STORAGES = {"float32": "Float", "float16": "Half", "float64": "Double", "int8": "Char"}


def open_pt(path: str) -> MapSource:
    """Find the map in a torch file, without reading it.

    Raises
    ------
    CubeError
        If the file holds more than tensors, none of (721, 1440, D) or several.
    MissingPackageError
        If torch is not installed.
    """
    tensors = _tensors(path)
    maps = {name: tensor for name, tensor in tensors.items() if tensor.ndim > 1}
    if len(maps) != 1:
        found = ", ".join(f"{n} {tuple(t.shape)}" for n, t in tensors.items()) or "none"
        raise CubeError(f"{path}: expected a tensor, or a dict with one map; found {found}")
    ((name, tensor),) = maps.items()
    shape, dtype = tuple(tensor.shape), str(tensor.dtype).removeprefix("torch.")
    require_map(path, name, shape, dtype)
    storage = tensor.untyped_storage()
    try:
        with open_directory(path) as archive:
            records = [
                member
                for member, entry in archive.entries.items()
                if "/data/" in member and entry.size == storage.nbytes()
            ]
            start = archive.locate(records[0])[0] if records else 0
            described, order = (
                next((archive.content(m, SMALL) for m in archive.entries if m.endswith(end)), None)
                for end in (f"/{KEY}.json", "/byteorder")
            )
    except zipfile.BadZipFile as error:
        raise CubeError(
            f"{path}: {error}; save it again with torch.save(tensor.contiguous(), path)"
        ) from error
    # Only a tensor that lies in the file as it is in memory can be mapped.
    if not tensor.is_contiguous() or len(records) != 1 or order not in (None, b"little"):
        raise CubeError(
            f"{path}: {name} does not lie plainly in the file; save it again with "
            "torch.save(tensor.contiguous(), path)"
        )
    small = {key: tensors[key].numpy() for key in ("scale", "offset") if key in tensors}
    packing = packing_of(path, np.dtype(dtype), shape[-1], small.get("scale"), small.get("offset"))
    start += int(tensor.storage_offset()) * tensor.element_size()
    text = None if described is None else described.decode("utf-8", "replace")
    return Mapped(path, "pt", shape[-1], packing, MapMetadata.loads(text, path), start)


def to_pt(
    ds: "xr.Dataset",
    path: str | Path,
    *,
    order: str = "published",
    dtype: str = "float32",
    overwrite: bool = False,
) -> Exported:
    """Write a cube or a reduction as a torch tensor (721, 1440, D), as published.

    ``torch.load(path, weights_only=True, mmap=True)`` gives the bare tensor; for int8 a dict
    of it and of ``scale`` and ``offset``. Parameters, result and errors are those of
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
        with _record(archive, "data.pkl") as stream:
            _Pickler(stream, protocol=2).dump(content)
        with _record(archive, "byteorder") as stream:
            stream.write(b"little")
        with _record(archive, "data/0") as stream:
            for rows in writer.bands():
                stream.write(writer.window(rows).data)
        for number, values in enumerate(small, 1):
            with _record(archive, f"data/{number}") as stream:
                stream.write(values.tobytes())
        with _record(archive, "version") as stream:
            stream.write(b"3\n")
        with _record(archive, f"{KEY}.json") as stream:
            stream.write(writer.metadata.dumps().encode())
    return writer.result(path)


@dataclass(frozen=True)
class _Tensor:
    """Stands for a tensor in a pickle, whose numbers are written as a record apart.

    So `torch.save` lays out its archives, but it would need all numbers in memory.
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
    """Write a record whose data start at a multiple of 64 bytes, as torch's do."""
    info = zipfile.ZipInfo(f"archive/{name}")  # of 1980: the same cube gives the same bytes
    start = archive.start_dir + 30 + len(info.filename) + 20  # 20 of zip64, which comes after
    padding = -(start + 4) % _ALIGNMENT
    info.extra = struct.pack("<HH", 0x4246, padding) + bytes(padding)
    with archive.open(info, "w", force_zip64=True) as stream:
        yield stream


def _tensors(path: str) -> "dict[str, torch.Tensor]":
    """All tensors of a file by name; a bare one is called tensor."""
    torch = _torch()
    refuse_other(path, ("torch", "zip", "pickle", "tar"), "a file of torch.save", CubeError)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        culprit = re.search(r"GLOBAL ([\w.]+)", str(error))
        found = culprit[1] if culprit else "unknown content"
        raise CubeError(
            f"{path}: holds more than tensors ({found}) and was not loaded, since such "
            "a file can run code; get it anew, or save the tensor alone"
        ) from error
    except (RuntimeError, ValueError, EOFError, OSError) as error:
        raise CubeError(
            f"{path}: not a whole torch file ({str(error).splitlines()[0]}); it may be truncated "
            "or older than torch 1.6: get it anew, or save it again with torch.save"
        ) from error
    named = content if isinstance(content, dict) else {"tensor": content}
    if not all(isinstance(tensor, torch.Tensor) for tensor in named.values()):
        found = ", ".join(sorted({type(value).__name__ for value in named.values()}))
        raise CubeError(f"{path}: expected a tensor or a dict with one; found {found}")
    return {str(name): tensor for name, tensor in named.items()}


def _torch() -> Any:
    try:
        import torch
    except ImportError as error:
        raise MissingPackageError(
            "torch files need torch; install copcube[build], or use the npz"
        ) from error
    return torch
