"""Opening cubes, and the names of their chunks."""

import errno
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from copcube.arguments import one_path
from copcube.cube import schema
from copcube.cube.results import as_result
from copcube.errors import CopcubeError, CubeError, OptionError, in_a_line
from copcube.files.atomic import FULL
from copcube.files.contents import first_bytes, form, other_than
from copcube.files.damage import naming_damage
from copcube.files.folders import open_folder
from copcube.files.limits import demand_piece, demand_text, demand_vectors, rule_out_shortage
from copcube.files.objects import is_remote, stat, zarr_store
from copcube.files.regular import version_of

if TYPE_CHECKING:
    import xarray as xr
    import zarr

NODE = ("zarr.json", ".zgroup", ".zarray")
"""Files that make a folder a Zarr group or array, in both formats."""
METADATA = (*NODE, ".zattrs", ".zmetadata")
"""Files of metadata of Zarr."""


def open_cube(path: str | Path) -> "xr.Dataset":
    """Open a cube lazily like ``xarray.open_zarr``, after checking that it is one.

    Parameters
    ----------
    path : str or Path
        Folder, or the address of one in an object store, such as ``s3://bucket/world.zarr``.

    Returns
    -------
    xarray.Dataset
        With the variables of `copcube.cube.schema`, backed by dask.

    Raises
    ------
    CubeError
        If the path holds something else.
    ReadError
        If an object store denies access or cannot be reached.
    """
    import xarray as xr

    group = open_group(path)
    with parsing(path):
        _demand_group(group, str(path), CubeError)
        ds: xr.Dataset = xr.open_zarr(address(path))
    return as_result(ds, "embedding")


def open_stored(path: str) -> "xr.Dataset":
    """Open a cube as `open_cube`, or other Zarr with its vectors, such as a reduction or a part.

    Raises
    ------
    CubeError
        If the path holds neither.
    """
    try:
        return open_cube(path)
    except CubeError:
        ds = _open_plainly(path)
        if ds is None:
            raise
        return ds


def lacks_root(path: str) -> bool:
    """Whether a path holds a cube whose own ``zarr.json`` is lost or unreadable.

    Then nothing identifies it, and no reader can open it.
    """
    import zarr
    from zarr.core.buffer.cpu import Buffer
    from zarr.storage import MemoryStore

    folder = open_folder(path)
    known = folder.states(["embedding/zarr.json", ".zgroup"])
    if "embedding/zarr.json" not in known or ".zgroup" in known:
        return False
    try:
        root: dict[str, Any] = {"zarr.json": Buffer.from_bytes(folder.read("zarr.json"))}
        zarr.open_group(MemoryStore(root), mode="r", zarr_format=3, use_consolidated=False)
        return False
    except FileNotFoundError:
        return True
    except (OSError, CopcubeError):
        raise
    except Exception as error:  # damaged metadata make zarr raise almost anything
        rule_out_shortage(error)
        return True


def is_group(path: str | Path) -> bool:
    """Whether a local folder is a group of Zarr, of either format."""
    return any(Path(path, name).is_file() for name in ("zarr.json", ".zgroup"))


def _open_plainly(path: str) -> "xr.Dataset | None":
    """Open any Zarr folder with the vectors of a cube or a reduction; None for others."""
    import xarray as xr

    from copcube.cube.view import CubeView

    if not is_group(path):
        return None
    with warnings.catch_warnings(), parsing(path):
        # Folders that users saved may lack consolidated metadata, which only makes opening slower.
        warnings.filterwarnings("ignore", message="Failed to open Zarr store with consolid")
        _demand_metadata(path)
        demand_arrays(path, path, CubeError)
        ds: xr.Dataset = xr.open_zarr(path)
    try:
        CubeView.of(ds)
    except CubeError:
        return None
    return ds


@contextmanager
def parsing(path: str | Path) -> Iterator[None]:
    """Raise an error that names the store if the body reads damaged metadata.

    Raises
    ------
    CubeError
        If the body raises anything but an error of copcube's.
    """
    try:
        yield
    except CopcubeError:
        raise
    except Exception as error:  # damaged metadata make zarr raise almost anything
        rule_out_shortage(error)
        reason = f"its metadata are damaged ({in_a_line(error)})"
        raise CubeError(f"{path}: {reason}; {_ANEW}") from error


@contextmanager
def reading(*paths: str | Path) -> Iterator[None]:
    """Raise an error that names the files if the body cannot decode values it reads lazily.

    Raises
    ------
    CubeError
        If the body raises what decoders and file systems raise, but not copcube's own errors; as
        `require_inputs_unchanged`.
    """
    known = _READ.set(_READ.get() | {path: version_of(path) for path in paths})
    try:
        # A damaged chunk is named first, with what zarr knows about it.
        with naming_damage():
            yield
        require_inputs_unchanged()
    except (CopcubeError, RuntimeError, ValueError, OSError, KeyError, TypeError) as error:
        require_inputs_unchanged()
        if isinstance(error, CopcubeError):
            raise
        # Output of the body may find a full disk, or no reader, as with `| head`.
        if getattr(error, "errno", None) in (*FULL, errno.EPIPE):
            raise
        rule_out_shortage(error)
        names = " or ".join(map(str, paths))
        raise CubeError(f"{names}: damaged ({in_a_line(error)}); {_ANEW}") from error
    finally:
        _READ.reset(known)


def require_inputs_unchanged() -> None:
    """Check that the inputs of `reading` are unchanged since it began.

    Raises
    ------
    CubeError
        If something else now has an input's name, so that what was read may be a mixture.
    """
    for path, version in _READ.get().items():
        if version_of(path) != version:
            how = "replaced, changed or removed while it was read"
            raise CubeError(f"{path}: {how}; give the same command again")


_READ: ContextVar[dict[str | Path, str]] = ContextVar("read", default={})  # noqa: B039
"""Inputs being read, and their versions at the start."""

_ANEW = "get a new copy or make it again"


def refuse_chain(path: str | Path) -> None:
    """Refuse a local path that zarr would not recognise as one.

    Raises
    ------
    OptionError
        If two colons stand side by side in it.
    """
    if not is_remote(path) and "::" in str(path):
        raise OptionError(
            f"{path}: zarr and xarray read :: as a chain of file systems; give the folder a name "
            "without it"
        )


def address(path: str | Path) -> Any:
    """Return what zarr uses to open a path or the URL of an object store."""
    return zarr_store(str(path)) if is_remote(path) else str(path)


def compressors(zarr_format: Literal[2, 3] = 3) -> list[Any]:
    """Return zarr's compressor for chunks: zstd with checksums in its frames.

    Parameters
    ----------
    zarr_format : {2, 3}
        Format of the array; both name the same codec by other classes.
    """
    if zarr_format == 2:
        from numcodecs import Zstd  # type: ignore[import-untyped]

        return [Zstd(level=schema.ZSTD_LEVEL, checksum=True)]
    from zarr.codecs import ZstdCodec

    return [ZstdCodec(level=schema.ZSTD_LEVEL, checksum=True)]


def read_attributes(path: str | Path) -> dict[str, Any]:
    """Attributes of a cube's group; empty where there is no Zarr group.

    Raises
    ------
    PermissionError
        If it may not be read, so that its content is unknown.
    """
    if not is_remote(path) and not os.path.lexists(path):
        return {}  # before zarr is imported, which takes a while

    import zarr

    try:
        # They are in the group's own metadata; opening consolidated arrays would take longer.
        where = address(path)
        group = zarr.open_group(where, mode="r", zarr_format=3, use_consolidated=False)
        return dict(group.attrs)
    except PermissionError:
        raise
    except Exception as error:  # damaged metadata make zarr raise almost anything
        rule_out_shortage(error)
        return {}


def open_group(path: str | Path, mode: Literal["r", "r+"] = "r") -> "zarr.Group":
    """Open the group of a cube.

    Raises
    ------
    CubeError
        If there is none, it was written by a later copcube, or it lacks variables.
    ReadError
        If the store denies access or cannot be reached.
    OptionError
        As `refuse_chain`.
    """
    import zarr

    path = one_path(path, "cube")
    refuse_chain(path)
    _demand_metadata(path)
    attributes = read_attributes(path)
    if "copcube_schema" not in attributes:
        found = "a Zarr group of something else" if attributes else "something else"
        if not is_remote(path):
            found = _found(str(path), found)
        elif not attributes:
            found = _found_at(str(path), found)
        raise CubeError(f"{path}: expected an embedding cube made by copcube, found {found}")
    version = attributes["copcube_schema"]
    # A later schema may give the same names other meanings, so reading on would be a guess.
    if not isinstance(version, int) or version > schema.VERSION:
        raise CubeError(
            f"{path}: the cube has schema {version!r}, but this copcube knows only up to "
            f"{schema.VERSION}; update copcube"
        )
    # The consolidated metadata is not used: it does not exist while a cube is written, and would
    # not show a later change of one array.
    with parsing(path):
        group = zarr.open_group(address(path), mode=mode, zarr_format=3, use_consolidated=False)
        missing = [name for name in schema.ESSENTIAL if name not in group]
    if missing:
        raise CubeError(
            f"{path}: the cube lacks {', '.join(missing)}; was its creation interrupted?"
        )
    return group


def demand_arrays(store: Any, name: str, error: type[CopcubeError]) -> None:
    """Refuse a store with a chunk, or with coordinates, too large to be read at once.

    Parameters
    ----------
    store
        What zarr uses to open a group.
    name : str
        Name of the store, for messages.
    error : type
        Type of the error to raise.

    Raises
    ------
    CopcubeError
        This `error`.
    """
    import zarr

    _demand_group(zarr.open_group(store, mode="r"), name, error)


def _demand_metadata(path: str) -> None:
    """Refuse a folder whose metadata, which zarr parses at once, would fill the memory."""
    if is_remote(path):
        return
    for name in METADATA:
        for file in (Path(path, name), *Path(path).glob(f"*/{name}")):
            if file.is_file():
                demand_text(file.stat().st_size, f"{file}: its text", CubeError)


def _demand_group(group: "zarr.Group", name: str, error: type[CopcubeError]) -> None:
    for key, found in group.arrays():
        # Coordinates of dimensions are read as soon as a store is opened.
        whole = found.ndim == 1
        shape, what = (found.shape, key) if whole else (found.chunks, f"a chunk of {key}")
        size = getattr(found.dtype, "itemsize", 16)
        demand_piece(name, what, shape, size, error)
        demand_vectors(name, key, found.shape, size, error)


def _found(path: str, otherwise: str) -> str:
    """Describe what is at a path that holds no cube."""
    if not os.path.exists(path):
        return "nothing"
    if os.path.isfile(path):
        return form(first_bytes(path) or b"")[1] or "a file"
    if os.path.isdir(path) and not os.listdir(path):
        return "an empty folder"
    if os.path.isfile(os.path.join(path, "plan.json")):
        return "the folder of a build, which `copcube status` describes"
    if not is_group(path) and any(Path(path).glob("*.parquet")):
        return "a folder of tables, from which `copcube aggregate` may make a cube"
    if any(os.path.isfile(os.path.join(path, "pc", name)) for name in ("zarr.json", ".zarray")):
        return "a reduction, alone or merged; `copcube info` describes it"
    if is_group(path) and any(schema.is_numbered(name) for name in os.listdir(path)):
        return (
            "vectors as one variable per component, for other readers; give what they were written "
            "from, or the same as netCDF"
        )
    if lacks_root(path):
        return (
            "a cube whose own zarr.json is missing or damaged; give the command that made it again"
        )
    head = first_bytes(os.path.join(path, "zarr.json"))
    other = other_than(("json",), head)
    return otherwise if other is None else f"a folder whose zarr.json is {other}"


def _found_at(url: str, otherwise: str) -> str:
    """Describe what is at an address without a cube; zarr does not say why it is unreadable."""
    try:
        stat(f"{url.rstrip('/')}/zarr.json")
    except FileNotFoundError:
        return "nothing"
    return otherwise


def leading(group: "zarr.Group") -> tuple[str | None, tuple[str, ...]]:
    """Name and labels of the leading dimension of a cube; None and () without one.

    Raises
    ------
    CubeError
        If its coordinate is missing.
    """
    with parsing(str(group.store_path)):
        dims: tuple[str | None, ...] = array(group, "embedding").metadata.dimension_names or ()
    by = dims[0] if len(dims) == 4 else None
    if by is None:
        return None, ()
    if by not in group:
        raise CubeError(f"{group.store_path}: the dimension {by} has no coordinate")
    with parsing(str(group.store_path)):
        coordinate = array(group, by)
        return by, schema.labels(by, np.asarray(coordinate[...]), dict(coordinate.attrs))


def array(group: "zarr.Group", name: str) -> Any:
    """Return an array of the group, typed as Any since zarr's own types are wide unions."""
    return group[name]


def chunk_name(array: Any, index: tuple[int, ...]) -> str:
    """Name of a chunk's file in the cube."""
    return f"{array.path}/{array.metadata.encode_chunk_key(index)}"
