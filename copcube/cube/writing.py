"""Making a cube: a template, written band by band, and finished.

`create` writes metadata and coordinates only. `write_band` writes the chunks of one band,
45 rows of cells all around the globe, and nothing else, so bands can be written in any
order, by several processes and again after an interruption, with the same bytes. `finish`
consolidates the metadata. What comes out opens with plain ``xarray.open_zarr``.
"""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from copcube import grid
from copcube.cells import Cells
from copcube.cube import schema
from copcube.cube.store import address, array, chunk_name, open_group
from copcube.errors import CubeError
from copcube.files.atomic import writing
from copcube.files.folders import Folder, folder
from copcube.modalities import MODALITIES


def create(
    path: str | Path,
    *,
    dim: int,
    by: str | None = None,
    groups: tuple[str, ...] = (),
    attrs: Mapping[str, Any] | None = None,
    counted: bool = True,
) -> None:
    """Write the template of a cube: metadata and coordinates, no cells.

    Parameters
    ----------
    path : str or Path
        Folder of the cube, or its URL in an object store; nothing may be there.
    dim : int
        Length of the vectors.
    by : {"modality", "month", "season", "year"}, optional
        Leading dimension.
    groups : tuple of str
        Labels along it.
    attrs : mapping, optional
        Further attributes of the group; they win over those of the conventions.
    counted : bool
        Whether it is known how many images made a cell; see `copcube.cube.schema.variables`.

    Raises
    ------
    CubeError
        If something is there already.
    OptionError
        If `by` and `groups` do not fit.
    StorageError
        If the folder cannot be written.
    """
    import zarr
    from zarr.codecs import ZstdCodec

    place = folder(path)
    parts = schema.variables(dim, by, groups, counted=counted)
    known = {} if counted else {"n_images_known": 0}
    if place.names():
        raise CubeError(f"{path} exists already; remove it or choose another name")
    with writing(path), _settings():
        group = zarr.create_group(
            address(path),
            zarr_format=3,
            attributes=schema.group_attributes(dim, known | dict(attrs or {})),
        )
        for v in parts.values():
            created = group.create_array(
                v.name,
                shape=v.shape,
                chunks=v.chunks,
                dtype=v.dtype,
                fill_value=v.fill,
                compressors=[ZstdCodec(level=schema.ZSTD_LEVEL)],
                dimension_names=v.dims,
                attributes=v.attrs,
            )
            if v.values is not None:
                created[...] = v.values
        place.flush(place.names())


def write_band(path: str | Path, band: int, cells: Cells) -> list[str]:
    """Write all chunks of one band; what an earlier write left there is replaced.

    Parameters
    ----------
    path : str or Path
        Cube made by `create`.
    band : int
        Band of blocks, 0 (north) to 16.
    cells : Cells
        All cells of the band, each once in a group, in any order.

    Returns
    -------
    list of str
        Names of the chunks' files in the cube, sorted, flushed to the disk. Chunks without
        cells are not stored.

    Raises
    ------
    CubeError
        If the cube is not one, or the cells do not fit it or the band.
    StorageError
        If a chunk cannot be written.
    """
    with writing(path), _settings():
        place, group = folder(path), open_group(path, "r+")
        embedding = array(group, "embedding")
        rows, row, col = _fit(path, embedding, band, cells)
        written: list[str] = []
        for g in range(embedding.shape[0] if embedding.ndim == 4 else 1):
            at = (g,) if embedding.ndim == 4 else ()
            mine = cells.group == g
            written += _write_vectors(place, embedding, at, band, cells, mine, row, col)
            for name, field in _fields(cells, mine, row, col, rows):
                if name in group:
                    target = array(group, name)
                    chunk = chunk_name(target, (*at, *(0,) * (target.ndim - len(at) - 2), band, 0))
                    if mine.any():
                        target[(*at, ..., rows, slice(None))] = field
                        written.append(chunk)
                    else:
                        place.remove(chunk)
        place.flush(written)
    return sorted(written)


def finish(path: str | Path, attrs: Mapping[str, Any] | None = None) -> None:
    """Complete a cube: final attributes and consolidated metadata, written once.

    Parameters
    ----------
    path : str or Path
        Cube whose bands are all written.
    attrs : mapping, optional
        Attributes of the group to add or change.

    Raises
    ------
    CubeError
        If there is no cube.
    StorageError
        If the metadata cannot be written.
    """
    import zarr

    with writing(path), _settings():
        place, group = folder(path), open_group(path, "r+")
        group.attrs.put(dict(sorted((dict(group.attrs) | dict(attrs or {})).items())))
        for stray in (name for name in place.names() if name.endswith(".partial")):
            place.remove(stray)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Consolidated metadata", module="zarr")
            zarr.consolidate_metadata(address(path), zarr_format=3)
        place.flush(place.names())


def _fit(
    path: str | Path, embedding: Any, band: int, cells: Cells
) -> tuple[slice, NDArray[np.int64], NDArray[np.int64]]:
    """Check cells against cube and band; rows of the band, row in it and column of each."""
    if not 0 <= band < grid.N_BANDS:
        raise CubeError(f"band {band} does not exist; bands run from 0 to {grid.N_BANDS - 1}")
    dim, groups = embedding.shape[-1], embedding.shape[0] if embedding.ndim == 4 else 1
    if embedding.chunks[-3:] != (grid.BLOCK, grid.BLOCK, dim):
        raise CubeError(f"{path}: chunks {embedding.chunks}; expected blocks of 45 × 45 cells")
    rows = grid.Block(band, 0).rows
    if len(cells) == 0:
        return rows, np.empty(0, np.int64), np.empty(0, np.int64)
    if cells.embedding.shape[1] != dim:
        raise CubeError(
            f"{path} holds vectors of length {dim}; the cells have {cells.embedding.shape[1]}"
        )
    row, col = grid.row_col(cells.grid_id)
    outside = (row < rows.start) | (row >= rows.stop)
    if outside.any() or cells.group.max() >= groups or len(np.unique(cells.place)) < len(cells):
        raise CubeError(
            f"band {band} of {path} takes each cell of its rows once in each of {groups} groups; "
            f"found {int(outside.sum())} cells of other rows, groups up to {cells.group.max()}, "
            f"{len(cells) - len(np.unique(cells.place))} cells twice"
        )
    return rows, row - rows.start, col


def _write_vectors(
    place: Folder,
    embedding: Any,
    at: tuple[int, ...],
    band: int,
    cells: Cells,
    mine: NDArray[np.bool_],
    row: NDArray[np.int64],
    col: NDArray[np.int64],
) -> Iterator[str]:
    """Write the vectors of one group, block by block; name the chunks that are stored."""
    for block in grid.band_blocks(band):
        chunk = chunk_name(embedding, (*at, block.i, block.j, 0))
        inside = np.flatnonzero(mine & (col >= block.cols.start) & (col < block.cols.stop))
        if len(inside):
            height, width = (s.stop - s.start for s in (block.rows, block.cols))
            values = np.full((height, width, embedding.shape[-1]), np.nan, np.float32)
            values[row[inside], col[inside] - block.cols.start] = cells.embedding[inside]
            embedding[(*at, block.rows, block.cols)] = values
            yield chunk
        else:
            place.remove(chunk)


def _fields(
    cells: Cells,
    mine: NDArray[np.bool_],
    row: NDArray[np.int64],
    col: NDArray[np.int64],
    rows: slice,
) -> Iterator[tuple[str, NDArray[Any]]]:
    """Maps of one group over the band, (rows, 1440) or (8, rows, 1440), by name."""
    shape = (rows.stop - rows.start, grid.N_LON)
    y, x = row[mine], col[mine]
    spread = np.full(shape, np.nan, np.float32)
    spread[y, x] = cells.spread[mine]
    yield "spread", spread
    n_images = np.zeros(shape, np.int32)
    n_images[y, x] = cells.n_images[mine]
    yield "n_images", n_images
    by_modality = np.zeros((len(MODALITIES), *shape), np.int32)
    by_modality[:, y, x] = cells.n_by_modality[mine].T
    yield "n_images_by_modality", by_modality


@contextmanager
def _settings() -> Iterator[None]:
    """Hold the one setting of zarr that decides what is stored against the user's own."""
    import zarr

    with zarr.config.set({"array.write_empty_chunks": False}):
        yield
