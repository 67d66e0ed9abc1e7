"""What a cube holds, in a few figures."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from copcube import grid
from copcube.cube.store import array, leading, open_group, reading
from copcube.modalities import MODALITIES
from copcube.progress import size

_NOT_FOR_PEOPLE = ("Conventions", "coordinates", "copcube_schema", "geoemb:", "n_images", "zarr_")


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
        The same by modality key; empty if the cube does not count them so.
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
        """Name and text of every figure, for people."""
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
        known = self.attributes.get("n_images_known", 1)
        yield (
            "images",
            f"{self.images:,}" + (f" ({counts})" if counts else "") if known else "unknown",
        )
        if self.stored is not None:
            yield "on disk", size(self.stored)
        for name, value in self.attributes.items():
            if name == "encoder_trained":
                yield name.replace("_", " "), "yes" if value else "NO: the numbers mean nothing"
            elif not name.startswith(_NOT_FOR_PEOPLE):
                yield name.replace("_", " "), str(value)


def summary(path: str | Path) -> CubeSummary:
    """Count what is in a cube, without reading its vectors.

    Raises
    ------
    CubeError
        If the path holds no cube, or a damaged one.
    """
    with reading(path):
        return _summary(path)


def _summary(path: str | Path) -> CubeSummary:
    group = open_group(path)
    by, groups = leading(group)
    counts: NDArray[np.int32] = np.asarray(array(group, "n_images")[...])
    counts = counts.reshape(-1, grid.N_LAT, grid.N_LON)
    filled: NDArray[np.bool_] = np.any(counts > 0, axis=0)
    by_modality: dict[str, int] = {}
    if "n_images_by_modality" in group:
        by_modality = dict.fromkeys(MODALITIES, 0)
        source = array(group, "n_images_by_modality")
        # By bands: the counts of all modalities and groups together may take 400 MB.
        for band in range(grid.N_BANDS):
            part = np.asarray(source[(..., grid.Block(band, 0).rows, slice(None))], np.int64)
            sums = part.reshape(-1, len(MODALITIES), part.shape[-2] * grid.N_LON).sum(axis=(0, 2))
            for key, n in zip(MODALITIES, sums.tolist(), strict=True):
                by_modality[key] += n
    elif by == "modality":
        by_modality = dict(
            zip(groups, counts.sum(axis=(1, 2), dtype=np.int64).tolist(), strict=True)
        )
    rows = np.flatnonzero(filled.any(axis=1))
    lat = grid.latitudes()[rows[[-1, 0]]].tolist() if len(rows) else None
    folder = Path(path)
    return CubeSummary(
        shape=array(group, "embedding").shape,
        by=by,
        groups=groups,
        cells=int(filled.sum()),
        cells_by_group=tuple((counts > 0).sum(axis=(1, 2)).tolist()) if by is not None else (),
        area=float(filled.sum(axis=1) @ grid.areas() / (4 * np.pi)),
        lat=tuple(lat) if lat else None,
        lon=_arc(np.flatnonzero(filled.any(axis=0))),
        images=int(counts.sum(dtype=np.int64)),
        images_by_modality=by_modality,
        stored=sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())
        if folder.is_dir()
        else None,
        attributes=dict(group.attrs),
    )


def _arc(cols: NDArray[np.int64]) -> tuple[float, float] | None:
    """Ends of the shortest arc that holds some columns: it leaves out their widest gap."""
    if len(cols) == 0:
        return None
    if len(cols) == grid.N_LON:
        return -180.0, 180.0 - grid.STEP
    # The arc leaves out the widest gap, so that a region across 180° is not the whole globe.
    gaps = np.diff(cols, append=cols[0] + grid.N_LON)
    last = int(np.argmax(gaps))
    ends = cols[(last + 1) % len(cols)], cols[last]
    west, east = ((grid.STEP * int(col) + 180) % 360 - 180 for col in ends)
    return west, east
