"""Making a cube: creating a template, writing band by band, finishing.

`create` writes metadata and coordinates only. `write_band` writes the chunks of one band,
45 rows of cells all around the globe, and nothing else, so bands can be written in any
order, by several processes and again after an interruption, with the same bytes. `finish`
consolidates the metadata. What comes out opens with plain ``xarray.open_zarr``.

Metadata and chunks are encoded into memory, and a `copcube.files.folders.Folder` writes them. So
size and SHA-256 of every file are known without reading it back, and leftovers of an interrupted
write are never decoded.
"""

import json
import math
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from copcube import grid
from copcube.cells import Cells
from copcube.cube import nodes, schema
from copcube.cube.chunks import Chunks
from copcube.cube.store import open_group, parsing
from copcube.errors import CubeError
from copcube.files.atomic import writing
from copcube.files.folders import Folder, LocalFolder, open_folder
from copcube.files.processors import computing_threads
from copcube.files.states import Written
from copcube.lookahead import map_ahead

_OF_CELLS = ("embedding", "spread", "n_images", "n_images_by_modality")
"""Variables that `write_band` fills; all others are coordinates."""

_THREADS = 4
"""Most blocks encoded at once; each takes about 20 MB."""

_Encode = Callable[[], bytes | None]
_Chunk = tuple[str, _Encode | None]
"""Name of a chunk, and what encodes it; None if it has no cell and is not stored."""


def create(
    path: str | Path,
    *,
    dim: int,
    by: str | None = None,
    groups: tuple[str, ...] = (),
    attrs: Mapping[str, Any] | None = None,
    counted: bool = True,
) -> dict[str, Written]:
    """Write the template of a cube: metadata and coordinates, no cells.

    Parameters
    ----------
    path : str or Path
        Folder of the cube, or its URL in an object store; nothing may exist there.
    dim : int
        Length of the vectors.
    by : {"modality", "month", "season", "year"}, optional
        Leading dimension.
    groups : tuple of str
        Labels along it.
    attrs : mapping, optional
        Further attributes of the group; they take precedence over those of the conventions. Those
        that describe users' own sensors add them to the eight modalities that are counted.
    counted : bool
        Whether the number of images of a cell is known; see `copcube.cube.schema.variables`.

    Returns
    -------
    dict of str to Written
        Size, SHA-256 and stamp of every file in the cube, by name, sorted and flushed to the
        disk.

    Raises
    ------
    CubeError
        If something is already there.
    OptionError
        If `by` and `groups` do not fit.
    StorageError
        If the folder cannot be written.
    """
    folder = open_folder(path)
    modalities = schema.modalities_of(attrs or ())
    parts = schema.variables(dim, by, groups, counted=counted, modalities=modalities)
    known = {} if counted else {"n_images_known": 0}
    if folder.names():
        raise CubeError(f"{path} exists already; remove it or choose another name")
    about = attrs or {}
    # Without a page, vectors would pass for those of Copernicus-FM, which other products are not.
    page = about.get("encoder_page", about.get("references") if "product" in about else None)
    root = nodes.of_group(schema.group_attributes(known | dict(about)))
    conventions = nodes.of_group(schema.conventions(dim, page))
    files = {
        nodes.DOCUMENT: nodes.encoded(root),
        f"{schema.CONVENTIONS}/{nodes.DOCUMENT}": nodes.encoded(conventions),
    }
    for variable in parts.values():
        document = nodes.encoded(nodes.of_array(variable))
        files[f"{variable.name}/{nodes.DOCUMENT}"] = document
        if variable.values is not None:
            files |= Chunks.of(variable.name, document).encode_all(variable.values)
    with writing(path):
        # The group's own metadata comes last: before it, there is no cube.
        written = {name: folder.write(name, files[name], flush=False) for name in sorted(files)}
        folder.flush(written)
    return written


def write_band(path: str | Path, band: int, cells: Cells) -> dict[str, Written]:
    """Write all chunks of one band, replacing what an earlier write left.

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
    dict of str to Written
        Size, SHA-256 and stamp of the chunks' files in the cube, by name, sorted and flushed to
        the disk. Chunks without cells are not stored.

    Raises
    ------
    CubeError
        If it is not a cube, or the cells do not fit it or the band.
    StorageError
        If a chunk cannot be written.
    """
    with writing(path):
        folder = open_folder(path)
        arrays = _arrays(path, folder)
        embedding = arrays["embedding"]
        rows, row, col = _fit(path, embedding, band, cells)
        written: dict[str, Written] = {}
        empty = []

        def write(chunk: tuple[str, _Encode]) -> tuple[str, Written | None]:
            name, encode = chunk
            data = encode()
            # Flushed together at the end, which takes little longer than one file.
            return name, None if data is None else folder.write(name, data, flush=False)

        def chunks() -> Iterator[_Chunk]:
            # One empty index, (), without groups.
            for g, at in enumerate(np.ndindex(embedding.shape[:-3])):
                inside = cells.group == g
                yield from _chunks_of_vectors(embedding, at, band, cells, inside, row, col)
                fields = _fields(cells, inside, row, col, rows)
                yield from _chunks_of_fields(arrays, at, band, fields, col[inside])

        def filled() -> Iterator[tuple[str, _Encode]]:
            for name, encode in chunks():
                if encode is None:
                    empty.append(name)
                else:
                    yield name, encode

        with closing(map_ahead(write, filled(), computing_threads(_THREADS))) as done:
            for name, known in done:
                if known is None:
                    empty.append(name)
                else:
                    written[name] = known
        for chunk in folder.states(empty):  # from an earlier write
            folder.remove(chunk)
        folder.flush(written)
    return dict(sorted(written.items()))


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
    folder = open_folder(path)
    with writing(path):
        found = folder.names()
        with parsing(path):
            documents = {
                os.path.dirname(name): json.loads(folder.read(name))
                for name in found
                if os.path.basename(name) == nodes.DOCUMENT
            }
            root = documents.pop("", {"attributes": {}})["attributes"]
            whole = documents.keys() >= set(schema.ESSENTIAL)
            if root.get("copcube_schema") != schema.VERSION or not whole:
                open_group(path)  # says what is there instead
            attributes = dict(sorted((root | dict(attrs or {})).items()))
        if isinstance(folder, LocalFolder):  # a store has no half-written objects
            folder.sweep()
        for stray in (name for name in found if name.endswith(".partial")):
            folder.remove(stray)  # from zarr's own writer, which earlier releases used
        # Everything else was flushed when written.
        folder.write(nodes.DOCUMENT, nodes.encoded(nodes.of_group(attributes, documents)))


def _arrays(path: str | Path, folder: Folder) -> dict[str, Chunks]:
    """Arrays of the cube that bands fill, by name."""
    found = {}
    for name in _OF_CELLS:
        try:
            found[name] = Chunks.of(name, folder.read(f"{name}/zarr.json"))
        except FileNotFoundError:
            continue  # a cube with unknown counts has no maps of them
    if "embedding" not in found:
        open_group(path)  # says what is there instead
        raise CubeError(f"{path}: the cube has no embedding; was its creation interrupted?")
    return found


def _fit(
    path: str | Path, embedding: Chunks, band: int, cells: Cells
) -> tuple[slice, NDArray[np.int64], NDArray[np.int64]]:
    """Check cells against cube and band; return the band's rows, and rows in it and columns."""
    if not 0 <= band < grid.N_BANDS:
        raise CubeError(f"band {band} does not exist; bands run from 0 to {grid.N_BANDS - 1}")
    dim, groups = embedding.shape[-1], math.prod(embedding.shape[:-3])
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
    if outside.any() or cells.group.max() >= groups or len(np.unique(cells.sort_key)) < len(cells):
        raise CubeError(
            f"band {band} of {path} takes each cell of its rows once in each of {groups} groups; "
            f"found {int(outside.sum())} cells of other rows, groups up to {cells.group.max()}, "
            f"{len(cells) - len(np.unique(cells.sort_key))} cells twice"
        )
    return rows, row - rows.start, col


def _chunks_of_vectors(
    embedding: Chunks,
    at: tuple[int, ...],
    band: int,
    cells: Cells,
    inside: NDArray[np.bool_],
    row: NDArray[np.int64],
    col: NDArray[np.int64],
) -> Iterator[_Chunk]:
    """Chunks of the vectors of one group, block by block; those without cells need no encoding."""
    kept = threading.local()

    def encode(here: NDArray[np.intp], first: int) -> bytes | None:
        vectors = cells.embedding[here]
        if np.isnan(vectors).all():
            return None
        # A thread reuses one array for its blocks: a block of scattered cells has few of them, and
        # a new array would be megabytes of missing values.
        if not hasattr(kept, "values"):
            kept.values = embedding.missing()
        place = (*(0,) * len(at), row[here], col[here] - first)
        kept.values[place] = vectors
        try:
            return embedding.pack(kept.values)
        finally:
            kept.values[place] = embedding.fill

    for block in grid.band_blocks(band):
        here = np.flatnonzero(inside & (col >= block.cols.start) & (col < block.cols.stop))
        name = embedding.file((*at, block.i, block.j, 0))
        yield name, partial(encode, here, block.cols.start) if len(here) else None


def _chunks_of_fields(
    arrays: Mapping[str, Chunks],
    at: tuple[int, ...],
    band: int,
    fields: Iterable[tuple[str, NDArray[Any]]],
    col: NDArray[np.int64],
) -> Iterator[_Chunk]:
    """Chunks of the maps of one group over the band, whose cells lie in some columns."""
    for name, field in fields:
        if name in arrays:
            array = arrays[name]
            field = field[(np.newaxis,) * (len(array.shape) - field.ndim)]
            between = (0,) * (len(array.shape) - len(at) - 2)
            # Cubes begun by an earlier release have one chunk all around the globe.
            width = array.chunks[-1]
            held = set((col // width).tolist())
            for j in range(math.ceil(grid.N_LON / width)):
                some = field[..., j * width : (j + 1) * width]
                file = array.file((*at, *between, band, j))
                yield file, partial(array.encode, some) if j in held else None


def _fields(
    cells: Cells,
    inside: NDArray[np.bool_],
    row: NDArray[np.int64],
    col: NDArray[np.int64],
    rows: slice,
) -> Iterator[tuple[str, NDArray[Any]]]:
    """Maps of one group over the band, (rows, 1440) or (modalities, rows, 1440), by name."""
    shape = (rows.stop - rows.start, grid.N_LON)
    y, x = row[inside], col[inside]
    spread = np.full(shape, np.nan, np.float32)
    spread[y, x] = cells.spread[inside]
    yield "spread", spread
    n_images = np.zeros(shape, np.int32)
    n_images[y, x] = cells.n_images[inside]
    yield "n_images", n_images
    by_modality = np.zeros((cells.n_by_modality.shape[1], *shape), np.int32)
    by_modality[:, y, x] = cells.n_by_modality[inside].T
    yield "n_images_by_modality", by_modality
