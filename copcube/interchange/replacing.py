"""Checks that an output may be written at a path; see `copcube.cube.replacing`."""

import csv
import errno
import hashlib
import os
import re
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from copcube import grid
from copcube.arguments import flag, one_path
from copcube.cube.replacing import (
    foreign,
    overlap,
    require_outside,
    require_store_name,
    says_copcube,
    unusual,
)
from copcube.cube.store import is_group, require_inputs_unchanged
from copcube.errors import WriteError
from copcube.files import limits
from copcube.files.atomic import atomic_folder, atomic_path, sweep_abandoned
from copcube.files.contents import first_bytes, form
from copcube.files.limits import demand, load_json
from copcube.files.zip_directory import open_directory
from copcube.interchange.metadata import KEY


def require_free(path: str | Path, overwrite: bool, *inputs: object) -> Path:
    """Check that an output may be written, before any work.

    Hidden remains of this output that killed processes left beside it are removed after a day.

    Parameters
    ----------
    path : str or Path
        The output.
    overwrite : bool
        Whether to replace what copcube wrote there.
    *inputs
        Inputs of the output: paths, or datasets that may have been opened from some.

    Raises
    ------
    OptionError
        If `path` is not a path, or `overwrite` is neither true nor false.
    WriteError
        If something there must stay or is an input; if the folder is missing, or lies in a cube.
    """
    out = Path(one_path(path, "output"))
    overwrite = flag(overwrite, "overwrite")
    # A broken link is in the way too.
    if os.path.lexists(out):
        _require_replaceable(out, path, overwrite)
    for source in (place for item in inputs for place in _places(item)):
        if (how := overlap(out, source)) is not None:
            raise WriteError(
                f"{path} {how} {source}, which is read to make it; choose another name"
            )
    if not out.parent.is_dir():
        raise WriteError(f"{path} cannot be written: its folder does not exist; create it first")
    require_outside(out)
    sweep_abandoned(out)
    return out


def require_free_store(path: str | Path, overwrite: bool, *inputs: object) -> Path:
    """Check that a Zarr store may be written, as `require_free`, and replaces no file.

    Raises
    ------
    OptionError
        As `require_free`; if the name has the ending of a file.
    WriteError
        As `require_free`; if a file is there.
    """
    out = require_free(path, overwrite, *inputs)
    if os.path.isfile(out):  # also False for too long a name, which is refused later
        raise WriteError(f"{path} is a file, not a Zarr store; choose another name")
    require_store_name(path)
    return out


@contextmanager
def appearing(
    path: str | Path, overwrite: bool, *inputs: object, folder: bool = False
) -> Iterator[Path]:
    """Write an output that appears when complete, unless something else appeared there meanwhile.

    Parameters
    ----------
    path, overwrite, *inputs
        As `require_free`, which is called before any work and again at the end.
    folder : bool
        Whether a folder is written.

    Yields
    ------
    Path
        Temporary name, from `atomic_path` or `atomic_folder`.

    Raises
    ------
    WriteError
        As `require_free` and `atomic_path`.
    CubeError
        If an input of the command was replaced meanwhile.
    """
    try:
        # `require_free` removes what killed processes left.
        write = partial(atomic_folder, sweep=False) if folder else atomic_path
        with write(path, replace=overwrite) as temporary:
            yield temporary
            require_inputs_unchanged()
            require_free(path, overwrite, *inputs)
    except OSError as error:
        # Of two processes that write to one name at once, the second gets here.
        if error.errno in (errno.EEXIST, errno.ENOTEMPTY):
            raise _taken(path) from error
        raise


def _taken(path: str | Path) -> WriteError:
    return WriteError(
        f"{path} exists already; choose another name, or replace it with overwrite=True "
        "(--overwrite)"
    )


def _require_replaceable(out: Path, path: str | Path, overwrite: bool) -> None:
    if not overwrite:
        if out.is_dir() and not is_group(out):
            raise WriteError(f"{path} is a folder; choose another name, or name a file in it")
        raise _taken(path)
    found = unusual(out)
    if found is None and out.is_dir():
        found = foreign(out)
    elif found is None and not _is_own_file(out):
        found = "a file that copcube did not write"
    if found is not None:
        raise WriteError(
            f"{path}: only what copcube made is replaced, found {found}; remove it yourself, or "
            "choose another name"
        )


def _places(item: object) -> set[str]:
    """Paths that an input may be read from: its own, or those a dataset was opened from."""
    import xarray as xr

    if not isinstance(item, xr.Dataset):
        return {os.fspath(item)} if isinstance(item, str | os.PathLike) else set()
    encodings = [item.encoding, *(variable.encoding for variable in item.variables.values())]
    sources = (encoding.get("source") for encoding in encodings)
    return {str(source) for source in sources if isinstance(source, str | os.PathLike)}


def _is_own_file(path: Path) -> bool:
    """Whether a file holds copcube's description."""
    try:
        match form(first_bytes(path) or b"")[0]:
            case "npz" | "torch" | "zip" | "packed":
                with open_directory(str(path)) as archive:
                    return any(
                        name == f"{KEY}.npy" or name.endswith(f"/{KEY}.json")
                        for name in archive.entries
                    )
            case "parquet":
                import pyarrow.parquet as pq

                return KEY.encode() in (pq.read_schema(path).metadata or {})
            case "tiff":
                from copcube.interchange.geotiff import is_described

                return is_described(str(path))
            case "hdf5" | "netcdf":
                return _is_own_netcdf(path)
            case "png" | "pdf" | "xml":  # pictures, which name the program that drew them
                return b"copcube" in path.read_bytes()
            case "html":
                return b'<meta name="generator" content="copcube ' in (first_bytes(path) or b"")
            case "json":
                return _described(path) is not None
            case "pickle":  # not loaded, since it could run code
                return _is_described_beside(path)
            case "npy":
                if _is_described_beside(path):
                    return True
                with open(path, "rb") as file:
                    np.lib.format.read_magic(file)
                    shape = np.lib.format.read_array_header_1_0(file)[0]
                # A bare array has no place for a description; components may come first.
                maps = (grid.N_LAT, grid.N_LON), (grid.N_LAT - 1, grid.N_LON)
                return len(shape) == 3 and (shape[:2] in maps or shape[1:] in maps)
            case "text":
                return _is_own_table(path)
    except (OSError, ValueError, EOFError, csv.Error, zipfile.BadZipFile):
        pass
    return False


_OF_PROBES = r"input(?:{0}[^\n]+, (?:mean|std) \([^\n]*\))+"
_OF_BENCH = "task{0}metric{0}probe{0}bench{0}dataset{0}"
_TABLES = tuple(
    re.compile(begin + head.format(between))
    for begin, between in ((r"\| ", r" \| "), (r"\\begin\{tabular\}\{lr+\}\n\\toprule\n", " & "))
    for head in (_OF_PROBES, _OF_BENCH)
)
"""Beginnings of the tables of `copcube.probes` in Markdown and LaTeX."""

_COLUMNS = (
    {"input", "components", "target", "unit", "rmse", "rmse_std", "r2", "published_rmse"},
    {"task", "metric", "units", "probe", "seeds", "bench", "dataset", "copernicus_fm"},
)
_BESIDE_VECTORS = (
    {"status", "cell_lat", "cell_lon", "distance_km"},
    {"cells", "cells_missing", "coverage", "area"},
)
"""Columns of CSV tables: of `copcube.probes`, and before vectors in those of `copcube.lookup`."""


def _is_own_table(path: Path) -> bool:
    """Whether a text begins like copcube's tables, which have no room for a description."""
    with open(path, encoding="utf-8", newline="") as file:
        start = file.read(1 << 20)
    if any(table.match(start) for table in _TABLES):
        return True
    names = next(csv.reader(start.splitlines()), [])
    vectors = [name for name in names if re.fullmatch(r"(?:embedding|pc)_\d+", name)]
    if vectors and names[-len(vectors) :] == vectors:
        return any(columns <= {*names} for columns in _BESIDE_VECTORS)
    return any(columns <= {*names} for columns in _COLUMNS)


def _is_described_beside(path: Path) -> bool:
    """Whether a JSON text beside a file is its description and has its SHA-256."""
    description = _described(path.with_name(f"{path.name}.json"))
    if description is None:
        return False
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == description.get("sha256")


def _described(path: Path) -> dict[str, Any] | None:
    """Description beside a file that has no room for one; None if there is none."""
    if form(first_bytes(path) or b"")[0] != "json":
        return None
    demand(limits.PIECE, path.stat().st_size, str(path), WriteError)
    text = load_json(path.read_bytes(), limits.PIECE, str(path), WriteError)
    description = text.get(KEY) if isinstance(text, dict) else None
    return description if isinstance(description, dict) else None


def _is_own_netcdf(path: Path) -> bool:
    import netCDF4

    with netCDF4.Dataset(path) as file:
        attributes = {name: file.getncattr(name) for name in file.ncattrs()}
        return says_copcube(file.variables, attributes)
