"""Torch files: a map as a bare tensor (721, 1440, D), as ``embed_map_310k.pt``.

A ``.pt`` is a zip archive whose storages lie in it uncompressed. Torch says, unpickling
nothing but tensors, what is in it; the numbers are then mapped where they lie, so that
neither workers nor memory need torch.
"""

import logging
import pickle
import re
import tempfile
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from copcube import grid
from copcube.errors import CubeError, MissingPackageError
from copcube.interchange.canvas import Canvas, require_free
from copcube.interchange.legend import KEY, Legend
from copcube.interchange.npz import SMALL, data_offset, packing_of, require_map
from copcube.interchange.packing import DTYPES, Exported, Tally
from copcube.interchange.sources import Mapped, Source
from copcube.storage import atomic_path

if TYPE_CHECKING:
    import torch
    import xarray as xr

log = logging.getLogger("copcube")

_LEGEND = f"archive/{KEY}.json"


def open_pt(path: str) -> Source:
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
    with zipfile.ZipFile(path) as archive:
        records = [
            info
            for info in archive.infolist()
            if "/data/" in info.filename and info.file_size == storage.nbytes()
        ]
        legends = [i for i in archive.infolist() if i.filename.endswith(f"/{KEY}.json")]
        if any(info.file_size > SMALL for info in legends):
            raise CubeError(f"{path}: its description is larger than such a text can be")
        text = archive.read(legends[0]).decode("utf-8", "replace") if legends else None
        orders = [archive.read(i) for i in archive.infolist() if i.filename.endswith("/byteorder")]
    plain = tensor.is_contiguous() and len(records) == 1 and orders in ([], [b"little"])
    if not plain or records[0].compress_type != zipfile.ZIP_STORED:
        raise CubeError(
            f"{path}: {name} does not lie plainly in the file; save it again with "
            "torch.save(tensor.contiguous(), path)"
        )
    small = {key: tensors[key].numpy() for key in ("scale", "offset") if key in tensors}
    packing = packing_of(path, np.dtype(dtype), shape[-1], small.get("scale"), small.get("offset"))
    start = data_offset(path, records[0]) + int(tensor.storage_offset()) * tensor.element_size()
    return Mapped(path, "pt", shape[-1], packing, Legend.loads(text, path), start)


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
    `copcube.interchange.to_npz`; while it writes, as much disk again is in use.

    Raises
    ------
    MissingPackageError
        If torch is not installed.
    """
    torch = _torch()
    out = require_free(path, overwrite)
    canvas = Canvas.of(ds, order)
    packing = canvas.packing(dtype, DTYPES, "pt")
    tally = Tally(packing)
    shape = grid.N_LAT, grid.N_LON, canvas.dim
    with atomic_path(out) as temporary, tempfile.TemporaryFile(dir=out.parent) as scratch:
        for rows in canvas.bands():
            scratch.write(canvas.window(rows, slice(None), packing, tally).data)
        scratch.flush()
        tensor = torch.from_numpy(np.memmap(scratch, packing.dtype, "r+", shape=shape))
        content: Any = tensor
        if packing.scale is not None:
            scale, offset = (torch.from_numpy(a) for a in (packing.scale, packing.offset))
            content = {canvas.legend.variable: tensor, "scale": scale, "offset": offset}
        with temporary.open("wb") as stream:  # through a handle, the archive has a fixed name
            torch.save(content, stream)
        with zipfile.ZipFile(temporary, "a") as archive:
            archive.writestr(zipfile.ZipInfo(_LEGEND), canvas.legend.dumps())
    result = tally.result(str(path), canvas.dim, out.stat().st_size)
    log.info("%s", result)
    return result


def _tensors(path: str) -> "dict[str, torch.Tensor]":
    """All tensors of a file by name; a bare one is called tensor."""
    torch = _torch()
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
