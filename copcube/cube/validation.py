"""Proving a cube: its schema, its coordinates, and that mask, counts and vectors agree."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from copcube import grid
from copcube.cube import schema
from copcube.cube.store import array, is_stored, leading, open_group, parsing, reading
from copcube.errors import CopcubeError

if TYPE_CHECKING:
    import zarr

_CODECS = ["bytes", "zstd"]


def validate(path: str | Path) -> list[str]:
    """Examine a whole cube, block by block.

    Checked are: variables, dimensions, data types, chunks, codecs and attributes against
    the schema; coordinates and bounds against ERA5's; that a vector is there, whole and
    finite exactly where images are counted; spread likewise and not negative; and that the
    modalities' counts add up.

    Parameters
    ----------
    path : str or Path
        The cube.

    Returns
    -------
    list of str
        What is wrong, each with the first place where it is; empty for a valid cube.
    """
    try:
        with parsing(path):
            group = open_group(path)
            by, groups = leading(group)
            dim, counted = array(group, "embedding").shape[-1], group.attrs.get("n_images_known", 1)
            expected = schema.variables(dim, by, groups, counted=bool(counted))
            # What has another structure cannot be compared value by value, so it comes first.
            problems = [*_attributes(group), *_structure(group, expected)]
    except CopcubeError as error:
        return [str(error)]
    if problems:
        return problems
    try:
        with reading(path):
            return _values(group, expected, by, groups)
    except CopcubeError as error:
        return [str(error)]


def _values(
    group: "zarr.Group",
    expected: dict[str, schema.Variable],
    by: str | None,
    groups: tuple[str, ...],
) -> list[str]:
    """Statements about values that are wrong, each with the first place where it is."""
    problems = [*_coordinates(group, expected)]
    found: dict[str, list[int]] = {}
    for g in range(max(1, len(groups))):
        for band in range(grid.N_BANDS):
            for problem, wrong in _band(group, () if by is None else (g,), band):
                if wrong.any():
                    row, col = np.argwhere(wrong)[0].tolist()
                    first = found.setdefault(problem, [0, g, band * grid.BLOCK + row, col])
                    first[0] += int(wrong.sum())
    for problem, (count, g, row, col) in found.items():
        lat, lon = grid.centre(grid.grid_id(row, col))
        where = f"lat {lat}, lon {lon}" + (f", {by} {groups[g]}" if by is not None else "")
        problems.append(f"{problem}: {count:,} cells, the first at {where}")
    return problems


def _attributes(group: "zarr.Group") -> Iterator[str]:
    for name, value in schema.group_attributes({}).items():
        if name not in group.attrs:
            yield f"attribute {name} is missing; expected such as {value!r}"
    # Cubes of the first release have the attributes of the conventions at the root.
    earlier = "zarr_conventions" in group.attrs
    found = dict(group.attrs if earlier else _conventions(group))
    for name, value in schema.conventions(array(group, "embedding").shape[-1]).items():
        if earlier and (name == "zarr_conventions" or not name.startswith("geoemb:")):
            continue
        if name not in found:
            yield f"attribute {name} is missing; expected {value!r}"
        elif name == "geoemb:dimensions" and found[name] != value:
            yield f"{name} is {found[name]!r}; vectors have {value} values"


def _conventions(group: "zarr.Group") -> Mapping[str, Any]:
    """Attributes of the group of the conventions; none if it is not there."""
    found: Any = group.get(schema.CONVENTIONS)
    return {} if found is None else found.attrs


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
                # Cubes of the first release have others, and are whole all the same.
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


def _coordinates(group: "zarr.Group", expected: dict[str, schema.Variable]) -> Iterator[str]:
    for name, variable in expected.items():
        if variable.values is not None:
            found = np.asarray(array(group, name)[...])
            if not np.array_equal(found, variable.values):
                yield f"{name}: values are not those of the schema, ERA5's grid for lat and lon"


def _band(
    group: "zarr.Group", at: tuple[int, ...], band: int
) -> Iterator[tuple[str, NDArray[np.bool_]]]:
    """Statements that must not hold, and the cells of the band for which they do."""
    rows = grid.Block(band, 0).rows
    count: NDArray[np.int32] = np.asarray(array(group, "n_images")[(*at, rows)])
    yield "negative count of images", count < 0
    if "spread" in group:
        spread: NDArray[np.float32] = np.asarray(array(group, "spread")[(*at, rows)])
        yield "images, but no finite spread", (count > 0) & ~(np.isfinite(spread) & (spread >= 0))
        yield "one image, but a spread", (count == 1) & (spread > 0)
        yield "spread without images", (count == 0) & ~np.isnan(spread)
    if "n_images_by_modality" in group:
        by_modality: NDArray[np.int32] = np.asarray(
            array(group, "n_images_by_modality")[(*at, slice(None), rows)]
        )
        unequal: NDArray[np.bool_] = by_modality.sum(axis=0) != count
        yield "counts of the modalities do not add up", unequal
        yield "negative count of a modality", np.min(by_modality, axis=0) < 0

    # Blocks are read one at a time, to hold 6 MB of vectors rather than the 200 MB of a band.
    absent, stray, broken = (np.zeros(count.shape, bool) for _ in range(3))
    embedding = array(group, "embedding")
    for block in grid.band_blocks(band):
        counted = count[:, block.cols] > 0
        # Most blocks are sea: their chunks are not stored and need not be read.
        if not counted.any() and not is_stored(embedding, (*at, block.i, block.j, 0)):
            continue
        try:
            vectors = np.asarray(embedding[(*at, block.rows, block.cols)])
        # A damaged chunk is reported like any other fault, and the other blocks are still examined.
        except (OSError, ValueError, RuntimeError):
            broken[:, block.cols] = True
            continue
        absent[:, block.cols] = counted & ~np.isfinite(vectors).all(axis=-1)
        stray[:, block.cols] = ~counted & ~np.isnan(vectors).all(axis=-1)
    yield "images, but no whole and finite vector", absent
    yield "vector without images", stray
    yield "vectors that cannot be decoded", broken
