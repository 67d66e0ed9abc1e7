"""Validating a cube: its schema, chunks and coordinates, and agreement of counts and vectors."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from copcube import grid
from copcube.cube import schema
from copcube.cube.presence import present
from copcube.cube.store import array, chunk_name, leading, open_group, parsing
from copcube.cube.stored import UNREADABLE, StoredChunks, overlapping
from copcube.errors import CopcubeError
from copcube.files.damage import let_zarr_finish, reason
from copcube.files.folders import open_folder
from copcube.files.limits import rule_out_shortage

if TYPE_CHECKING:
    import zarr

_CODECS = ["bytes", "zstd"]

_MENDING = {
    True: "to repair the cube: give the command that made it again (copcube build or aggregate); "
    "it remakes the cube from the rows, and embeds nothing",
    False: "to repair the cube: restore it from a copy, or make it again with --overwrite",
}
"""What to do, by whether a build made the cube."""


def validate(path: str | Path) -> list[str]:
    """Examine a whole cube, block by block.

    It checks variables, dimensions, data types, chunks, codecs and attributes against the schema;
    every chunk against its checksum; coordinates and bounds against ERA5's; that there is a
    complete, finite vector exactly where images are counted; that spread is there too and not
    negative; and that the modalities' counts add up.

    Parameters
    ----------
    path : str or Path
        The cube.

    Returns
    -------
    list of str
        Problems: each damaged or missing chunk by its name in the cube, with its cells; anything
        else with the first place where it occurs; finally how to repair the cube. Empty for a valid
        cube.
    """
    try:
        examined = _examine(path)
    except CopcubeError as error:
        return [str(error)]
    return [*examined.problems, _MENDING[examined.built]] if examined.problems else []


def problems(path: str | Path) -> list[str]:
    """Return what `validate` does, but not how to repair it."""
    try:
        return _examine(path).problems
    except CopcubeError as error:
        return [str(error)]


@dataclass
class _Examined:
    """Problems of a cube, by kind.

    Parameters
    ----------
    built : bool
        Whether a build made the cube, whose rows may lie beside it.
    structure, values : list of str
        Contradictions between the cube and the schema, and among its values.
    damaged : dict of str to str
        Problem of each damaged or missing chunk, by name.
    """

    built: bool
    structure: list[str] = field(default_factory=list)
    values: list[str] = field(default_factory=list)
    damaged: dict[str, str] = field(default_factory=dict)

    @property
    def problems(self) -> list[str]:
        """All problems, the worst first."""
        return [*self.structure, *self.damaged.values(), *self.values]


def _examine(path: str | Path) -> _Examined:
    """Examine a cube.

    Raises
    ------
    CopcubeError
        If it is not a cube.
    """
    with parsing(path):
        group = open_group(path)
        by, groups = _leading(group)
        dim, counted = array(group, "embedding").shape[-1], schema.counts_images(group.attrs)
        modalities = schema.modalities_of(group.attrs)
        expected = schema.variables(dim, by, groups, counted=counted, modalities=modalities)
        examined = _Examined("copcube_plan" in group.attrs)
        # A different structure prevents comparing values, so this comes first.
        examined.structure += [*_attributes(group), *_structure(group, expected)]
        examined.structure = examined.structure or [*_copies(path, group)]
    if examined.structure:
        return examined
    # Opened once: in a store each opening is a request.
    arrays = {name: array(group, name) for name in expected}
    chunks = _Chunks(path, by, groups, examined.damaged)
    examined.values += _coordinates(arrays, expected, chunks)
    found: dict[str, list[int]] = {}
    for g in range(max(1, len(groups))):
        for band in range(grid.N_BANDS):
            for problem, wrong in _band(arrays, () if by is None else (g,), band, chunks):
                if wrong.any():
                    row, col = np.argwhere(wrong)[0].tolist()
                    first = found.setdefault(problem, [0, g, band * grid.BLOCK + row, col])
                    first[0] += int(wrong.sum())
    for problem, (count, g, row, col) in found.items():
        lat, lon = grid.centre(grid.grid_id(row, col))
        where = f"lat {lat}, lon {lon}" + (f", {by} {groups[g]}" if by is not None else "")
        examined.values.append(f"{problem}: {count:,} cells, the first at {where}")
    return examined


def _leading(group: "zarr.Group") -> tuple[str | None, tuple[str, ...]]:
    """As `leading`, with numbers in place of unreadable labels."""
    try:
        return leading(group)
    except UNREADABLE as error:
        rule_out_shortage(error)
        # The error about it has what could not be decoded as its cause.
        if isinstance(error, CopcubeError) and error.__cause__ is None:
            raise
        stored = array(group, "embedding")
        by = str(stored.metadata.dimension_names[0])
        attrs = dict(array(group, by).attrs)
        if "flag_meanings" in attrs:
            return by, tuple(str(attrs["flag_meanings"]).split())
        return by, tuple(f"{number:02d}" for number in range(1, stored.shape[0] + 1))


def _attributes(group: "zarr.Group") -> Iterator[str]:
    for name, value in schema.group_attributes({}).items():
        if name not in group.attrs:
            yield f"attribute {name} is missing; expected such as {value!r}"
    # Cubes of the first release have the attributes of the conventions at the root.
    earlier = "zarr_conventions" in group.attrs
    if not earlier and schema.CONVENTIONS not in group:
        yield (
            f"group {schema.CONVENTIONS} is missing, as in a copy written by xarray; copy the "
            "cube's folder instead"
        )
        return
    found = dict((group if earlier else group[schema.CONVENTIONS]).attrs)
    for name, value in schema.conventions(array(group, "embedding").shape[-1]).items():
        if earlier and (name == "zarr_conventions" or not name.startswith("geoemb:")):
            continue
        if name not in found:
            yield f"attribute {name} is missing; expected {value!r}"
        elif name == "geoemb:dimensions" and found[name] != value:
            yield f"{name} is {found[name]!r}; vectors have {value} values"


def _structure(group: "zarr.Group", expected: dict[str, schema.Variable]) -> Iterator[str]:
    for name, variable in expected.items():
        if name not in group:
            yield f"variable {name} is missing"
            continue
        found = array(group, name)
        facts = {
            "dimensions": (found.metadata.dimension_names or (), variable.dims),
            "shape": (found.shape, variable.shape),
            "chunks": (
                found.chunks,
                # Cubes of the first release have others, and are valid too.
                found.chunks
                if found.chunks == schema.earlier_chunks(variable)
                else variable.chunks,
            ),
            "data type": (found.dtype.name, variable.dtype),
            "fill value": (
                # As text, since NaN is not equal to itself.
                str(found.fill_value),
                str(np.dtype(variable.dtype).type(variable.fill)),
            ),
            "codecs": ([codec.to_dict()["name"] for codec in found.metadata.codecs], _CODECS),
        }
        facts |= {f"attribute {k}": (found.attrs.get(k), v) for k, v in variable.attrs.items()}
        for what, (actual, wanted) in facts.items():
            if actual != wanted:
                yield f"{name}: {what} {actual!r}; expected {wanted!r}"


def _copies(path: str | Path, group: "zarr.Group") -> Iterator[str]:
    """Differences between metadata and their copy in the root, which readers use to open a cube."""
    folder = open_folder(path)
    root = json.loads(folder.read("zarr.json"))
    copies = (root.get("consolidated_metadata") or {}).get("metadata", {})
    for name, copy in copies.items():
        # Missing parts of a cube have already been reported.
        if name in group:
            own = json.loads(folder.read(f"{name}/zarr.json"))
            # A group's copy contains its members; its own metadata has none, or null.
            own.pop("consolidated_metadata", None)
            copy = {key: copy[key] for key in copy if key != "consolidated_metadata"}
            # An attribute added later is not damage.
            added = own.get("attributes", {}).keys() - copy.get("attributes", {}).keys()
            for key in added:
                del own["attributes"][key]
            if own != copy:
                yield f"{name}/zarr.json: not the same as its copy in zarr.json of the cube"


class _Chunks:
    """Read parts of a cube, and note which chunks are damaged or missing.

    Parameters
    ----------
    path : str or Path
        The cube.
    by, groups
        Name and labels of the leading dimension.
    damaged : dict of str to str
        Receives the problem of each chunk, by the chunk's name.
    """

    def __init__(
        self,
        path: str | Path,
        by: str | None,
        groups: tuple[str, ...],
        damaged: dict[str, str],
    ) -> None:
        self._stored = StoredChunks(path)
        self.may_hold = self._stored.may_hold
        self._by, self._groups, self._damaged = by, groups, damaged

    def may_be_stored(self, array: Any, part: tuple[Any, ...]) -> bool:
        """Whether a chunk of a part of an array is stored, or nothing can be listed."""
        return any(self.may_hold(array, index) for index, _ in overlapping(array, _slices(part)))

    def read(self, array: Any, part: tuple[Any, ...]) -> tuple[Any, NDArray[np.bool_]]:
        """Read a part of an array, and find which of its values are known.

        Parameters
        ----------
        array : zarr.Array
            Of a cube.
        part : tuple
            An integer, or a slice with both ends, for each dimension.

        Returns
        -------
        values : numpy.ndarray
            Of the part, with the fill value where a chunk cannot be read.
        known : numpy.ndarray
            Of the same shape: whether its chunk could be read.
        """
        if self._stored.form(array) is None:
            # zarr fetches all chunks of the part at once.
            try:
                values = np.asarray(array[part])
                return values, np.ones(values.shape, bool)
            except UNREADABLE as error:
                let_zarr_finish(error)
                rule_out_shortage(error)
        # Chunk by chunk: if one is damaged, the others can still be examined.
        whole = _slices(part)
        shape = [k.stop - k.start for k in whole]
        values = np.full(shape, array.fill_value, array.dtype)
        known = np.ones(shape, bool)
        for index, window, found in self._stored.windows(array, whole):
            if isinstance(found, Exception):
                known[window] = False
                self.note(array, index, f"damaged ({reason(found)})")
            else:
                values[window] = found
        drop = tuple(0 if isinstance(k, int) else slice(None) for k in part)
        return values[drop], known[drop]

    def note(self, array: Any, index: tuple[int, ...], what: str) -> None:
        """Note the problem of a chunk, and its cells."""
        dims = array.metadata.dimension_names or ()
        starts = {d: i * c for d, i, c in zip(dims, index, array.chunks, strict=True)}
        stops = {
            d: min(starts[d] + c, n)
            for d, c, n in zip(dims, array.chunks, array.shape, strict=True)
        }
        where = "all cells"
        if {"lat", "lon"} <= set(dims):
            north, west = grid.centre(grid.grid_id(starts["lat"], starts["lon"]))
            south, east = grid.centre(grid.grid_id(stops["lat"] - 1, stops["lon"] - 1))
            where = f"cells of lat {south} to {north}, lon {west % 360} to {east % 360}"
            if self._by in dims:
                where += f", {self._by} {self._groups[starts[str(self._by)]]}"
        name = chunk_name(array, index)
        self._damaged.setdefault(name, f"{name}: {what}; {array.path} of {where}")


def _slices(part: tuple[Any, ...]) -> tuple[slice, ...]:
    return tuple(slice(k, k + 1) if isinstance(k, int) else k for k in part)


def _coordinates(
    arrays: Mapping[str, Any], expected: Mapping[str, schema.Variable], chunks: _Chunks
) -> Iterator[str]:
    for name, variable in expected.items():
        if variable.values is not None:
            stored = arrays[name]
            whole = tuple(slice(0, n) for n in stored.shape)
            found, known = chunks.read(stored, whole)
            for index, part in overlapping(stored, whole):
                fill = np.full_like(found[part], stored.fill_value)
                # Values not stored read as the fill value, which no coordinate has.
                lost = np.array_equal(found[part], fill, equal_nan=fill.dtype.kind == "f")
                if variable.dims and lost and known[part].all():
                    chunks.note(stored, index, "missing")
                    known[part] = False
            if not np.array_equal(found[known], variable.values[known]):
                yield f"{name}: values are not those of the schema, ERA5's grid for lat and lon"


def _band(
    arrays: Mapping[str, Any], at: tuple[int, ...], band: int, chunks: _Chunks
) -> Iterator[tuple[str, NDArray[np.bool_]]]:
    """Problems that must not occur, and the cells of the band where they do."""
    rows = grid.Block(band, 0).rows
    shape = rows.stop - rows.start, grid.N_LON
    maps = [name for name in ("n_images", "spread", "n_images_by_modality") if name in arrays]
    parts = {name: _part(arrays[name], {"lat": rows}, at) for name in (*maps, "embedding")}
    # Most bands of a small cube are empty, and so have no problems.
    if not any(chunks.may_be_stored(arrays[name], part) for name, part in parts.items()):
        return
    values, known = {}, {}
    for name in maps:
        values[name], known[name] = chunks.read(arrays[name], parts[name])
    count: NDArray[np.int32] = values["n_images"]
    spread = values.get("spread", np.where(count > 0, np.float32(0), np.float32(np.nan)))
    by_modality = values.get("n_images_by_modality", count[np.newaxis])
    holds = {"n_images": count > 0, "spread": ~np.isnan(spread)}
    holds["n_images_by_modality"] = (by_modality != 0).any(axis=0)
    holds = {name: holds[name] for name in maps}

    # Blocks are read one at a time, to hold 6 MB of vectors rather than the 200 MB of a band.
    whole, known["embedding"] = np.zeros(shape, bool), np.ones(shape, bool)
    holds["embedding"], embedding = np.zeros(shape, bool), arrays["embedding"]
    for block in grid.band_blocks(band):
        window, index = (slice(None), block.cols), (*at, block.i, block.j, 0)
        # Most blocks are sea: their chunks are not stored and need not be read.
        may_be = chunks.may_hold(embedding, index)
        if may_be or any(held[window].any() for held in holds.values()):
            part = _part(embedding, {"lat": rows, "lon": block.cols}, at)
            vectors, readable = chunks.read(embedding, part)
            whole[window] = present(vectors, zeros_allowed=True)
            holds["embedding"][window] = ~np.isnan(vectors).all(axis=-1)
            known["embedding"][window] = readable.all(axis=-1)
    known = {name: np.asarray(k.reshape(-1, *shape).all(axis=0)) for name, k in known.items()}
    _find_missing(arrays, at, band, holds, known, chunks)

    counted = known["n_images"]
    yield "negative count of images", count < 0
    if "spread" in maps:
        both = counted & known["spread"]
        finite = np.isfinite(spread) & (spread >= 0)
        yield "images, but no finite spread", both & (count > 0) & ~finite
        yield "one image, but a spread", both & (count == 1) & (spread > 0)
        yield "spread without images", both & (count == 0) & holds["spread"]
    if "n_images_by_modality" in maps:
        both = counted & known["n_images_by_modality"]
        unequal: NDArray[np.bool_] = both & (by_modality.sum(axis=0) != count)
        yield "counts of the modalities do not add up", unequal
        yield "negative count of a modality", np.min(by_modality, axis=0) < 0
    both = counted & known["embedding"]
    yield "images, but no complete, finite vector", both & (count > 0) & ~whole
    yield "vector without images", both & (count <= 0) & holds["embedding"]


def _part(array: Any, chosen: Mapping[str, slice], at: tuple[int, ...]) -> tuple[Any, ...]:
    """Index of a part of an array: the first indices, then slices by dimension, else everything."""
    rest = zip(array.metadata.dimension_names[len(at) :], array.shape[len(at) :], strict=True)
    return *at, *(chosen.get(name, slice(0, n)) for name, n in rest)


def _find_missing(
    arrays: Mapping[str, Any],
    at: tuple[int, ...],
    band: int,
    holds: Mapping[str, NDArray[np.bool_]],
    known: Mapping[str, NDArray[np.bool_]],
    chunks: _Chunks,
) -> None:
    """Note as unknown the cells of chunks that are empty where other variables have cells.

    Chunks not stored read as missing cells. If one other variable has a value there, either may be
    wrong; if two do, or there is only one other, the chunk is lost.
    """
    columns = {name: held.any(axis=0) for name, held in holds.items()}
    for name, held in columns.items():
        stored = arrays[name]
        axis = stored.metadata.dimension_names.index("lon")
        width = stored.chunks[axis]
        edges = np.arange(0, grid.N_LON, width)
        others = [
            np.logical_or.reduceat(other, edges) for key, other in columns.items() if key != name
        ]
        lost = np.sum(others, axis=0, dtype=int) >= min(2, len(others))
        lost &= ~np.logical_or.reduceat(held, edges)
        lost &= np.logical_and.reduceat(known[name].all(axis=0), edges)
        for j in np.flatnonzero(lost).tolist():
            between = (0,) * (axis - 1 - len(at))
            after = (0,) * (stored.ndim - axis - 1)
            chunks.note(stored, (*at, *between, band, j, *after), "missing")
            known[name][:, j * width : (j + 1) * width] = False
