"""A small, made-up Core set of Major TOM: the published form, drawn pixels.

Cells lie in the regions of the other samples (`copcube.images.sample`), each with its landscape,
so that their vectors differ. Every image has a random stream of its own, so files are the same
bytes at every run.
"""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from copcube import progress
from copcube.arguments import whole_number
from copcube.encoder.timm_kinds import RGB, S2L1C
from copcube.errors import OptionError
from copcube.files.atomic import atomic_folder, vacant_folder
from copcube.images.sample.geotiff import geotiff
from copcube.images.sample.scenes import Terrain, draw
from copcube.images.sample.writing import REGIONS
from copcube.modalities import MODALITIES
from copcube.products.majortom.grid import GRID, PIXEL, SIDE, squares, unproject

_DATE = "20210704"
_COARSER = {"B01": 6, "B09": 6, "B10": 6}
_COARSER |= dict.fromkeys(("B05", "B06", "B07", "B8A", "B11", "B12"), 2)
SETS = {
    "Core-S2L1C": ("s2_toa", S2L1C),
    "Core-S2RGB": ("s2_toa", RGB),
    "Core-S1RTC": ("s1_grd", ("vv", "vh")),
}
"""Modality and bands of each set that is written."""


@dataclass(frozen=True)
class _Place:
    """A cell, the place of its image, and its landscape."""

    row: int
    col: int
    name: str
    epsg: int
    left: float
    top: float
    lat: float
    lon: float
    terrain: Terrain


def write_core(
    folder: str | Path, *, seed: int = 0, cells: int = 2, side: int = SIDE
) -> dict[str, Path]:
    """Write made-up sets ``Core-S2L1C``, ``Core-S2RGB`` and ``Core-S1RTC``.

    Parameters
    ----------
    folder : str or Path
        A new or empty folder, which appears when the sample is whole.
    seed : int
        Not negative; different seeds give different images.
    cells : int
        How many cells, 1 to 1000, dealt in turn to four regions.
    side : int
        Pixels per side of the images at 10 m, a multiple of 6; 1068 as published.

    Returns
    -------
    dict of str to Path
        Folder of each set.

    Raises
    ------
    OptionError
        If an option is out of its range.
    WriteError
        If the folder is not empty or cannot be written.
    """
    seed = whole_number(seed, "seed", 0, 2**32 - 1)
    cells = whole_number(cells, "cells", 1, 1000)
    side = whole_number(side, "side", 6, SIDE)
    if side % 6:
        raise OptionError(f"side is {side}; expected a multiple of 6, for bands of 60 m")
    root = vacant_folder(folder)
    places = [_place(i, side) for i in range(cells)]
    with (
        atomic_folder(root, replace=False) as partial,
        progress.show("writing sample", cells * len(SETS), "images") as bar,
    ):
        for name in SETS:
            (partial / name / "images").mkdir(parents=True)
            for _ in _write(partial / name, name, places, seed, side):
                bar.advance()
    return {name: root / name for name in SETS}


def _place(number: int, side: int) -> _Place:
    region, east = REGIONS[number % len(REGIONS)], number // len(REGIONS)
    row, col = (int(n[0]) for n in GRID.at([region.lat], [region.lon]))
    col += east
    epsg = int(GRID.utm([row], [col])[0])
    left, top = (float(a[0]) for a in squares([row], [col], [epsg]))
    inset = (SIDE - side) / 2 * PIXEL
    lat, lon = (float(a[0]) for a in GRID.centre([row], [col]))
    name = str(GRID.names([row], [col])[0])
    return _Place(row, col, name, epsg, left + inset, top - inset, lat, lon, region.terrain)


def _write(folder: Path, name: str, places: list[_Place], seed: int, side: int) -> Iterator[None]:
    """Write a set, one sample at each step."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    key, bands = SETS[name]
    time = "product_datetime" if key == "s1_grd" else "timestamp"
    kinds = {"product_id": pa.string(), "grid_cell": pa.string(), time: pa.string()}
    kinds |= dict.fromkeys(("thumbnail", *bands), pa.binary())
    schema = pa.schema(list(kinds.items()))
    known = []
    with pq.ParquetWriter(folder / "images" / "part_00001.parquet", schema) as file:
        for i, place in enumerate(places):
            images = _bands(place, key, seed, side)
            stamp = f"{_DATE}T{10 + i % 4:02d}{i % 60:02d}00"
            row: dict[str, Any] = {
                "product_id": _product(name, place, stamp),
                "grid_cell": place.name,
                time: stamp,
                "thumbnail": _thumbnail(images, key),
            }
            row |= {band: _geotiff(images[band], place, side) for band in bands}
            file.write_table(pa.Table.from_pylist([row], schema=schema))
            known.append(_known(row, time, place, i))
            yield
    pq.write_table(pa.Table.from_pylist(known), folder / "metadata.parquet")


def _bands(place: _Place, key: str, seed: int, side: int) -> dict[str, NDArray[Any]]:
    """Draw the bands of an image, each in its own resolution."""
    scene = np.random.default_rng([seed, 0, place.row & 0xFFFF, place.col & 0xFFFF])
    image = np.random.default_rng([seed, len(key), place.row & 0xFFFF, place.col & 0xFFFF])
    modality = MODALITIES[key]
    whole = draw(modality, place.terrain, place.lat, _DATE, scene, image, (side, side))
    if key == "s1_grd":
        power = np.nan_to_num(10 ** (whole / 10)).astype(np.float32)
        return dict(zip(("vv", "vh"), power, strict=True))
    bands = zip(S2L1C, whole, strict=True)
    return {n: band[:: _COARSER.get(n, 1), :: _COARSER.get(n, 1)] for n, band in bands}


def _product(name: str, place: _Place, stamp: str) -> str:
    if name == "Core-S1RTC":
        return f"S1A_IW_GRDH_1SDV_{stamp}_{stamp}_038629_{place.row & 0xFFFF:06X}_rtc"
    level = "MSIL1C" if name == "Core-S2L1C" else "MSIL2A"
    return f"S2A_{level}_{stamp}_N0301_R065_T{place.epsg % 100:02d}UQS_{stamp}"


def _known(row: dict[str, Any], time: str, place: _Place, number: int) -> dict[str, Any]:
    """Row of the set's table about a sample."""
    half = PIXEL * SIDE / 2
    left, top = squares([place.row], [place.col], [place.epsg])
    lat, lon = unproject(left + half, top - half, np.array([place.epsg]))
    return {
        "grid_cell": place.name,
        "grid_row_u": place.row,
        "grid_col_r": place.col,
        "product_id": row["product_id"],
        "timestamp": row[time],
        "cloud_cover": 0.0,
        "nodata": 0.0,
        "centre_lat": float(lat[0]),
        "centre_lon": float(lon[0]),
        "crs": f"EPSG:{place.epsg}",
        "parquet_url": "images/part_00001.parquet",
        "parquet_row": number,
    }


def _geotiff(pixels: NDArray[Any], place: _Place, side: int) -> bytes:
    step = PIXEL * side / len(pixels)
    return geotiff(pixels, f"EPSG:{place.epsg}", (place.left, place.top), step)


def _thumbnail(images: dict[str, NDArray[Any]], key: str) -> bytes:
    """A small picture as the bytes of a PNG."""
    from rasterio.errors import NotGeoreferencedWarning
    from rasterio.io import MemoryFile

    names = ("vv", "vh", "vv") if key == "s1_grd" else RGB
    scale = 500 if key == "s1_grd" else 255 * 2.5e-4
    picture = np.stack([images[name][::10, ::10] for name in names]) * scale
    picture = np.clip(picture, 0, 255).astype(np.uint8)
    with MemoryFile() as memory, warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        _, rows, columns = picture.shape
        with memory.open(
            driver="PNG", count=3, height=rows, width=columns, dtype="uint8"
        ) as raster:
            raster.write(picture)
        return bytes(memory.getbuffer())
