"""Content of a cube or a reduction, in a few figures."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from copcube import grid
from copcube.cube import schema
from copcube.cube.card import SHOWN, card, share_of_globe, whose_variance
from copcube.cube.caution import of_vectors, trained
from copcube.cube.store import array, leading, open_group, reading
from copcube.cube.stored import StoredChunks
from copcube.cube.view import CubeView
from copcube.errors import CubeError
from copcube.progress import size

if TYPE_CHECKING:
    import xarray as xr
    import zarr

_NOT_FOR_PEOPLE = (
    *("Conventions", "coordinates", "copcube_schema", "geoemb:", "n_images_known", "sensor_"),
    "zarr_",
)


@dataclass(frozen=True)
class CubeSummary:
    """Figures of one cube.

    Parameters
    ----------
    shape : tuple of int
        Shape of ``embedding``.
    by : str or None
        Leading dimension.
    groups : tuple of str
        Labels along it.
    cells : int
        Cells with a vector in any group.
    cells_by_group : tuple of int
        Cells with a vector in each group; empty without groups.
    area : float
        Share of the globe's area that those cells cover, 0 to 1.
    lat : tuple of float, or None
        Southernmost and northernmost cell centre in degrees.
    lon : tuple of float, or None
        Western and eastern end, cell centres in degrees, -180 to 180, of the shortest arc
        that holds all cells; west > east if it crosses the antimeridian.
    images : int
        Images in all, over all groups.
    images_by_modality : dict
        Images by modality key; empty if the cube does not count them.
    stored : int or None
        Bytes on disk; None if the cube is not in a folder.
    attributes : dict
        Attributes of the group.
    """

    shape: tuple[int, ...]
    by: str | None
    groups: tuple[str, ...]
    cells: int
    cells_by_group: tuple[int, ...]
    area: float
    lat: tuple[float, float] | None
    lon: tuple[float, float] | None
    images: int
    images_by_modality: dict[str, int]
    stored: int | None
    attributes: dict[str, Any]

    def lines(self) -> Iterator[tuple[str, str]]:
        """Name and text of every figure, for display."""
        yield "shape", " × ".join(map(str, self.shape))
        if self.by is not None:
            pairs = zip(self.groups, self.cells_by_group, strict=True)
            yield f"cells by {self.by}", ", ".join(f"{name} {n:,}" for name, n in pairs)
        yield "cells", f"{self.cells:,}, {self.area:.2%} of the globe's area"
        if self.lat and self.lon:
            yield (
                "extent",
                " … ".join(f"{abs(v):g}°{'S' if v < 0 else 'N'}" for v in self.lat)
                + ", "
                + " … ".join(f"{abs(v):g}°{'W' if v < 0 else 'E'}" for v in self.lon),
            )
        counts = ", ".join(f"{key} {n:,}" for key, n in self.images_by_modality.items() if n)
        known = schema.counts_images(self.attributes)
        yield (
            "images",
            f"{self.images:,}" + (f" ({counts})" if counts else "") if known else "unknown",
        )
        if self.stored is not None:
            yield "on disk", size(self.stored)
        yield from _attributes(self.attributes)


def summary(path: str | Path) -> CubeSummary:
    """Summarise a cube, without reading its vectors.

    Raises
    ------
    CubeError
        If the path holds no cube, or a damaged one.
    """
    with reading(path):
        return _summary(path)


def of_whole_globe(path: str | Path) -> bool:
    """Whether the cells of a cube are those of the whole lattice, in its order.

    Raises
    ------
    CubeError
        If the path holds no cube, or a damaged one.
    """
    with reading(path):
        return _is_whole(open_group(path))


def _is_whole(group: "zarr.Group") -> bool:
    return all(
        name in group and np.array_equal(array(group, name)[...], values)
        for name, values in (("lat", grid.latitudes()), ("lon", grid.longitudes()))
    )


def _summary(path: str | Path) -> CubeSummary:
    group = open_group(path)
    by, groups = leading(group)
    chunks = StoredChunks(path)
    source = array(group, "n_images")
    if not _is_whole(group):
        raise CubeError(
            f"{path}: part of a cube, of {source.shape[-2]} × {source.shape[-1]} cells, or a cube "
            "in a different order; give the whole cube, or open it with xarray.open_zarr"
        )
    counts: NDArray[np.int32] = np.zeros(source.shape, np.int32)
    for window, found in chunks.values(source):
        counts[window] = found
    # From here on, a cube without groups counts as one with a single group.
    counts = counts.reshape(-1, grid.N_LAT, grid.N_LON)
    filled: NDArray[np.bool_] = np.any(counts > 0, axis=0)
    by_modality: dict[str, int] = {}
    if "n_images_by_modality" in group:
        keys = schema.modalities_of(group.attrs)
        sums = np.zeros(len(keys), np.int64)
        # Chunk by chunk: the counts of all modalities and groups together may take 400 MB.
        for window, found in chunks.values(array(group, "n_images_by_modality")):
            sums[window[-3]] += np.moveaxis(found, -3, 0).sum(axis=(*range(1, found.ndim),))
        by_modality = dict(zip(keys, sums.tolist(), strict=True))
    elif by == "modality":
        by_modality = dict(
            zip(groups, counts.sum(axis=(1, 2), dtype=np.int64).tolist(), strict=True)
        )
    rows = np.flatnonzero(filled.any(axis=1))
    # Rows run from the north, and extents from the south.
    lat = tuple(grid.latitudes()[rows[[-1, 0]]].tolist()) if len(rows) else None
    return CubeSummary(
        shape=array(group, "embedding").shape,
        by=by,
        groups=groups,
        cells=int(filled.sum()),
        cells_by_group=tuple((counts > 0).sum(axis=(1, 2)).tolist()) if by is not None else (),
        area=float(filled.sum(axis=1) @ grid.areas() / (4 * np.pi)),
        lat=lat,
        lon=grid.shortest_arc(np.flatnonzero(filled.any(axis=0))),
        images=int(counts.sum(dtype=np.int64)),
        images_by_modality=by_modality,
        stored=_stored(path),
        attributes=dict(group.attrs),
    )


def cube_lines(ds: "xr.Dataset", path: str | Path) -> Iterator[tuple[str, str]]:
    """Name and text of every figure of a cube in any form, for people; no vector is read.

    Parameters
    ----------
    ds : xarray.Dataset
        A cube, a part of one, or what it was merged with.
    path : str or Path
        Where it was opened from.
    """
    yield from card(ds).lines
    if (stored := _stored(path)) is not None:
        yield "on disk", size(stored)
    yield from _attributes({k: v for k, v in of_vectors(ds.attrs).items() if k not in SHOWN})


def reduction_lines(ds: "xr.Dataset", path: str | Path) -> Iterator[tuple[str, str]]:
    """Name and text of every figure of a reduction, for display; its ``pc`` is read.

    Parameters
    ----------
    ds : xarray.Dataset
        A reduction, alone or merged.
    path : str or Path
        Path it was opened from.

    Raises
    ------
    CubeError
        If there is no ``pc``.
    """
    view, attrs = CubeView.of(ds, "pc"), dict(ds.attrs)
    shape, dims = (map(str, part) for part in (view.field.shape, view.field.dims))
    yield "shape", f"{' × '.join(shape)} ({', '.join(dims)})"
    for dim, names in view.groups.items():
        yield dim, ", ".join(names)
    filled = view.filled()
    cells = int(filled.any(filled.dims[:-2]).sum())
    yield "cells", f"{cells:,}, {share_of_globe(view, filled):.2%} of the globe's area"
    components = f"{view.field.shape[-1]}"
    if "explained_variance_ratio" in ds:
        ratio = ds["explained_variance_ratio"].values
        components += f", which explain {ratio.sum():.2%} of {whose_variance(attrs)}"
        shares = ", ".join(f"{share:.2%}" for share in ratio[:_SHARES])
        yield "components", components
        yield "explained variance", shares + (", …" if len(ratio) > _SHARES else "")
    else:
        yield "components", components
    if "components" in ds:
        fitted = attrs.pop("reduction_cells", None)
        weights = attrs.pop("reduction_weights", None)
        whitened = attrs.pop("reduction_whiten", 0)
        attrs.pop("reduction", None)
        basis = [f"axes of vectors of length {ds.sizes['dim']}"]
        basis += [] if fitted is None else [f"fitted to {int(fitted):,} cells"]
        basis += [] if weights is None else [_WEIGHTED.get(weights, f"weights: {weights}")]
        basis += ["whitened"] if whitened else []
        yield "basis", ", ".join(basis)
    else:
        yield "basis", "none: embeddings cannot be restored from the components"
    if (stored := _stored(path)) is not None:
        yield "on disk", size(stored)
    yield from _attributes(attrs)


_SHARES = 16
_NO = "NO: the numbers mean nothing"
_WEIGHTED = {"area": "weighted by area", "none": "not weighted", "given": "with given weights"}


def _attributes(attrs: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Provenance of a cube or a reduction, for display."""
    for name, value in attrs.items():
        if name == "encoder_trained":
            yield "encoder trained", "yes" if trained(value) else _NO
        elif not name.startswith(_NOT_FOR_PEOPLE):
            yield name.replace("_", " "), str(value)


def _stored(path: str | Path) -> int | None:
    """Bytes of a file or a folder; None if it is elsewhere."""
    local = Path(path)
    if local.is_file():
        return local.stat().st_size
    if not local.is_dir():
        return None
    return sum(f.stat().st_size for f in local.rglob("*") if f.is_file())
