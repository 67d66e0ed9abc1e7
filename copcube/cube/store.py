"""Opening cubes, and where their chunks lie."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from copcube.cube import schema
from copcube.cube.results import as_result
from copcube.errors import CubeError
from copcube.files.objects import is_remote, zarr_store

if TYPE_CHECKING:
    import xarray as xr
    import zarr


def open_cube(path: str | Path) -> "xr.Dataset":
    """Open a cube lazily, after checking that it is one; else as ``xarray.open_zarr``.

    Parameters
    ----------
    path : str or Path
        Folder, or any address that zarr can read.

    Returns
    -------
    xarray.Dataset
        With the variables of `copcube.cube.schema`, backed by dask.

    Raises
    ------
    CubeError
        If the path holds something else.
    """
    import xarray as xr

    open_group(path)
    return as_result(xr.open_zarr(address(path)), "embedding")


def address(path: str | Path) -> Any:
    """Return what zarr opens a path, or the URL of an object store, through."""
    return zarr_store(str(path)) if is_remote(path) else str(path)


def read_attributes(path: str | Path) -> dict[str, Any]:
    """Attributes of a cube's group; empty where there is no Zarr group."""
    import zarr
    from zarr.errors import BaseZarrError

    try:
        return dict(zarr.open_group(address(path), mode="r", zarr_format=3).attrs)
    except (BaseZarrError, OSError, ValueError, KeyError):
        return {}


def open_group(path: str | Path, mode: Literal["r", "r+"] = "r") -> "zarr.Group":
    """Open the group of a cube.

    Raises
    ------
    CubeError
        If there is none, or it was written by a later copcube, or it lacks variables.
    """
    import zarr

    attributes = read_attributes(path)
    if "copcube_schema" not in attributes:
        found = "a Zarr group of something else" if attributes else "something else"
        found = found if is_remote(path) or os.path.exists(path) else "nothing"
        raise CubeError(f"{path}: expected an embedding cube made by copcube, found {found}")
    version = attributes["copcube_schema"]
    # A later schema may give the same names another meaning, so that reading on would be a guess.
    if not isinstance(version, int) or version > schema.VERSION:
        raise CubeError(
            f"{path}: the cube has schema {version!r}, this copcube knows up to "
            f"{schema.VERSION}; update copcube"
        )
    # The consolidated metadata is left aside: while a cube is written it is not there yet, and
    # a later change of one array would not be in it.
    group = zarr.open_group(address(path), mode=mode, zarr_format=3, use_consolidated=False)
    missing = [name for name in schema.ESSENTIAL if name not in group]
    if missing:
        raise CubeError(f"{path}: the cube lacks {', '.join(missing)}; was its making stopped?")
    return group


def leading(group: "zarr.Group") -> tuple[str | None, tuple[str, ...]]:
    """Name and labels of the leading dimension of a cube; None and () without one.

    Raises
    ------
    CubeError
        If its coordinate is missing.
    """
    dims: tuple[str | None, ...] = array(group, "embedding").metadata.dimension_names or ()
    by = dims[0] if len(dims) == 4 else None
    if by is None:
        return None, ()
    if by not in group:
        raise CubeError(f"{group.store_path}: the dimension {by} has no coordinate")
    coordinate = array(group, by)
    return by, schema.labels(by, np.asarray(coordinate[...]), dict(coordinate.attrs))


def array(group: "zarr.Group", name: str) -> Any:
    """Return an array of the group; as Any, since zarr's own types are wide unions."""
    return group[name]


def chunk_name(array: Any, index: tuple[int, ...]) -> str:
    """Name of a chunk's file in the cube."""
    return f"{array.path}/{array.metadata.encode_chunk_key(index)}"


def is_stored(array: Any, index: tuple[int, ...]) -> bool:
    """Whether a chunk may be stored; only in a folder is it worth finding out."""
    # In an object store the question would cost a request, as much as reading the chunk does.
    root = getattr(array.store, "root", None)
    return root is None or Path(root, chunk_name(array, index)).exists()
