"""A small, made-up Copernicus-Pretrain in either published layout.

Names, shapes, dtypes and metadata are the published ones; the pixels are drawn (`scenes`). The
cells lie in four regions, each difficult in its own way: one beyond 60°N, where rasters grow wide,
one south of the equator across 180°, one across Greenwich, one plain. A region grows in square
shells, so a small sample is the beginning of a larger one.

Every image has a random stream of its own, keyed by (seed, cell, modality, patch, date). So the
order of writing is free, files have the same bytes in every run, and both layouts of one seed hold
the same images: the tensors are `to_tensor_form` of the rasters.
"""

import gzip
import io
import json
import math
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import date as Date
from datetime import timedelta
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from copcube import grid, progress
from copcube.arguments import one_of, whole_number
from copcube.errors import MissingPackageError
from copcube.files.atomic import atomic_folder, vacant_folder
from copcube.files.regular import bytes_below
from copcube.grid import cell_at, centre, format_cell, grid_id
from copcube.images.sample.geotiff import geotiff
from copcube.images.sample.scenes import Terrain, draw
from copcube.images.tensor_form import to_tensor_form
from copcube.modalities import MODALITIES, ORDER, Modality, select

Layout = Literal["geotiff", "webdataset"]

_MAX_CELLS, _MAX_PATCHES, _MAX_DATES = 10_000, 9, 12
_KM_PER_DEGREE = 111.32
_BOX_KM = 28.0


@dataclass(frozen=True)
class _Region:
    """Centre of the first cell of a region, in its north-west, and its landscape."""

    lat: float
    lon: float
    terrain: Terrain


REGIONS = (
    _Region(67.25, 128.5, Terrain((0.3, 0.4, 0.1, 0.2), 250, 120)),
    _Region(-16.75, 179.75, Terrain((0.1, 0.35, 0.55, 1e-6), 30, 150)),
    _Region(51.5, -0.25, Terrain((0.35, 0.5, 0.1, 1e-3), 70, 35)),
    _Region(44.0, -96.0, Terrain((0.45, 0.45, 0.05, 0.05), 500, 30)),
)
"""Regions of samples, and their landscapes."""


@dataclass(frozen=True)
class _Place:
    """A cell (number 0) or one of its local patches, with its published text form."""

    number: int
    text: str
    lon: float
    lat: float


@dataclass(frozen=True)
class _Cell:
    """A cell, its local patches, and the dates of each place by modality."""

    grid_id: int
    region: _Region
    whole: _Place
    patches: tuple[_Place, ...]
    dates: dict[str, list[tuple[str | None, ...]]]

    def places(self, key: str) -> tuple[_Place, ...]:
        return self.patches if MODALITIES[key].local else (self.whole,)


@dataclass(frozen=True)
class SampleSummary:
    """Result of `write_sample`.

    Parameters
    ----------
    folder : Path
        The folder of the sample.
    layout : str
        ``geotiff`` or ``webdataset``.
    cells : int
        Number of cells.
    images : dict of str to int
        Number of different images of each written modality, repeated dates not counted.
    bytes : int
        Size of all files.
    """

    folder: Path
    layout: Layout
    cells: int
    images: dict[str, int]
    bytes: int


def write_sample(
    folder: str | Path,
    layout: Layout = "geotiff",
    *,
    seed: int = 0,
    cells: int = 12,
    local_patches: int = 3,
    dates: int = 3,
    modalities: Iterable[str] | str | None = None,
    cells_per_shard: int = 6,
) -> SampleSummary:
    """Write a made-up Copernicus-Pretrain: the published form, drawn pixels.

    The first cell of a region is complete; every other one lacks one or two modalities.

    Parameters
    ----------
    folder : str or Path
        A new or empty folder, which appears when the sample is complete.
    layout : {"geotiff", "webdataset"}
        A GeoTIFF tree with its ``fnames_*.json.gz``, or shards ``example-*.tar``.
    seed : int
        Not negative. The same seed gives the same images in both layouts.
    cells : int
        How many cells, 1 to 10,000, assigned in turn to the four regions.
    local_patches : int
        Most local patches a cell may have, 1 to 9; few have many, as published.
    dates : int
        Most dates a modality may have at one place, 1 to 12 (Sentinel-1 and -2 have at
        most 4, Sentinel-3 at most 8).
    modalities : iterable of str, optional
        Keys of the modalities to write; all by default. Leaving some out does not change the
        others.
    cells_per_shard : int
        Most cells in one shard of the WebDataset layout.

    Returns
    -------
    SampleSummary

    Raises
    ------
    OptionError
        If an option is out of its range, or a modality is unknown.
    WriteError
        If the folder is not empty or cannot be written.
    MissingPackageError
        If ``layout`` is "webdataset" and torch is not installed.
    """
    one_of(layout, "layout", get_args(Layout))
    seed = whole_number(seed, "seed", 0, 2**32 - 1)
    cells = whole_number(cells, "cells", 1, _MAX_CELLS)
    local_patches = whole_number(local_patches, "local_patches", 1, _MAX_PATCHES)
    dates = whole_number(dates, "dates", 1, _MAX_DATES)
    cells_per_shard = whole_number(cells_per_shard, "cells_per_shard", 1, _MAX_CELLS)
    from threadpoolctl import threadpool_limits

    chosen = select(modalities)
    every = (_cell(seed, i, local_patches, dates) for i in range(cells))
    world = [
        replace(cell, dates={key: times for key, times in cell.dates.items() if key in chosen})
        for cell in sorted(every, key=lambda cell: cell.grid_id)
    ]
    root = vacant_folder(folder)
    with atomic_folder(root, replace=False) as partial:
        partial.mkdir(parents=True)
        # Products of such small matrices are several times slower on several threads, and on one
        # thread they are the same on machines with any number of cores.
        with (
            progress.show("writing sample", cells, "cells") as bar,
            threadpool_limits(limits=1, user_api="blas"),
        ):
            if layout == "geotiff":
                steps = _write_geotiffs(partial, world, seed)
            else:
                steps = _write_shards(partial, world, seed, cells_per_shard)
            for _ in steps:
                bar.advance()
        size = bytes_below(partial)
    images = {
        key: sum(len(at_place) for cell in world for at_place in cell.dates.get(key, ()))
        for key in chosen
    }
    return SampleSummary(root, layout, cells, images, size)


# The content: cells, local patches, dates.


def _rng(seed: int, purpose: int, *key: int) -> np.random.Generator:
    return np.random.default_rng([seed, purpose, *key])


_CELL, _SCENE, _IMAGE, _NAME, _PADDING = range(5)


def _cell(seed: int, index: int, local_patches: int, dates: int) -> _Cell:
    region, nth = REGIONS[index % len(REGIONS)], index // len(REGIONS)
    shell = math.isqrt(nth)
    rest = nth - shell**2
    south, east = (rest, shell) if rest < shell else (shell, rest - shell)
    row, col = cell_at(region.lat - 0.25 * south, region.lon + 0.25 * east)
    number = grid_id(int(row), int(col))
    lat, lon = centre(number)
    rng = _rng(seed, _CELL, number)
    patches = []
    for i in range(min(int(rng.geometric(0.6)), local_patches)):
        north, east_of = rng.uniform(-0.1, 0.1, 2)
        patches.append(_patch(number * _MAX_PATCHES + 1 + i, lon + east_of, lat + north))
    missing = rng.choice(list(MODALITIES), int(rng.integers(1, 3)), replace=False)
    times = {
        key: [_dates(rng, modality, dates) for _ in (patches if modality.local else [None])]
        for key, modality in MODALITIES.items()
    }
    if nth % 2:
        times = {key: at_places for key, at_places in times.items() if key not in missing}
    whole = _Place(0, format_cell(number), lon, lat)
    return _Cell(number, region, whole, tuple(patches), times)


def _patch(number: int, lon: float, lat: float) -> _Place:
    lon, lat = (round(lon, 2) + 180) % 360 - 180, round(lat, 2)
    return _Place(number, f"{number:07d}_{lon:.2f}_{lat:.2f}", lon, lat)


def _dates(rng: np.random.Generator, modality: Modality, limit: int) -> tuple[str | None, ...]:
    """Dates of one place: seasons of 2020-2022, days of 2021 or months of 2021."""
    if modality.dates == 1:
        return (None,)
    count = int(rng.integers(1, min(limit, modality.dates), endpoint=True))
    if modality.local:
        days = [
            Date(2022 - int(rng.integers(3)), 3 * int(season) + 3, 21)
            + timedelta(days=int(rng.integers(-30, 31)))
            for season in rng.choice(4, count, replace=False)
        ]
    elif modality.key == "s3_olci":
        days = [Date(2021, 1, 1) + timedelta(int(d)) for d in rng.choice(365, count, False)]
    else:
        days = [Date(2021, int(month) + 1, 1) for month in rng.choice(12, count, False)]
    return tuple(f"{day:%Y%m%d}" for day in sorted(days))


def _pixels(seed: int, cell: _Cell, place: _Place, key: str, date: str | None) -> NDArray[Any]:
    """Draw one raster of the sample, (bands, rows, columns)."""
    scene = _rng(seed, _SCENE, cell.grid_id, place.number)
    image = _rng(seed, _IMAGE, ORDER[key], cell.grid_id, place.number, int(date or 0))
    return draw(MODALITIES[key], cell.region.terrain, place.lat, date, scene, image)


# Writing a GeoTIFF tree.


def _write_geotiffs(root: Path, world: list[_Cell], seed: int) -> Iterator[None]:
    """Write the rasters, one cell at each step, and then the JSON that lists them."""
    listing: dict[str, dict[str, Any]] = {}
    for cell in world:
        entry: dict[str, Any] = {"grid_id_coord": cell.whole.text}
        for key, modality in MODALITIES.items():
            entry[key] = {} if modality.local else []
            for place, dates in zip(cell.places(key), cell.dates.get(key, ()), strict=False):
                inner = (cell.whole.text, place.text) if modality.local else (cell.whole.text,)
                folder = Path(modality.folders[0], *inner)
                (root / folder).mkdir(parents=True)
                paths = []
                for date in dates:
                    path = folder / _file_name(seed, cell, place, key, date)
                    pixels = _pixels(seed, cell, place, key, date)
                    _write_raster(root / path, pixels, modality, place)
                    # Published listings name a folder that does not exist.
                    paths.append(path.as_posix().replace("s3_olci_wgs", "s3_olci_utm"))
                if modality.local:
                    entry[key][place.text] = paths
                else:
                    entry[key] = paths
        listing[str(cell.grid_id)] = entry
        yield
    text = json.dumps(listing).encode()
    # gzip would write the time into the file, so no two samples would be the same.
    (root / f"fnames_{len(world)}_union.json.gz").write_bytes(gzip.compress(text, mtime=0))


def _file_name(seed: int, cell: _Cell, place: _Place, key: str, date: str | None) -> str:
    """File name as Earth Engine exports it."""
    if date is None:
        return "dem.tif"
    day = Date.fromisoformat(date)
    if key.startswith("s5p"):
        end = Date(2021, day.month + 1, 1) if day.month < 12 else Date(2021, 12, 31)
        return f"{day}_{end}.tif"
    rng = _rng(seed, _NAME, ORDER[key], cell.grid_id, place.number, int(date))
    # Less than a day, so that an image ends on the same day.
    second = int(rng.integers(86_000))

    def time(later: int) -> str:
        at = second + later
        return f"{date}T{at // 3600:02d}{at // 60 % 60:02d}{at % 60:02d}"

    if key == "s1_grd":
        orbit, take, crc = (
            int(n) for n in rng.integers((20_000, 1 << 18, 0), (60_000, 1 << 19, 1 << 16))
        )
        return f"S1A_IW_GRDH_1SDV_{time(0)}_{time(25)}_{orbit:06d}_{take:06X}_{crc:04X}.tif"
    if key == "s2_toa":
        return f"{time(0)}_{time(0)}_T{_mgrs_tile(place)}.tif"
    return f"S3{'AB'[rng.integers(2)]}_{time(0)}_{time(8)}.tif"


@lru_cache(maxsize=64)
def _utm(lon: float, lat: float) -> tuple[int, float, float]:
    """EPSG code of a point's UTM zone, and its easting and northing there in metres."""
    from rasterio.warp import transform

    # EPSG numbers the zones of the north from 32601 on and those of the south from 32701.
    epsg = (32601 if lat >= 0 else 32701) + int((lon + 180) // 6)
    (east,), (north,) = transform(grid.WGS84, f"EPSG:{epsg}", [lon], [lat])
    return epsg, east, north


def _mgrs_tile(place: _Place) -> str:
    """Tile of the military grid: zone, latitude band, letters of the 100 km square."""
    epsg, east, north = _utm(place.lon, place.lat)
    zone = epsg % 100
    band = "CDEFGHJKLMNPQRSTUVWX"[int(place.lat + 80) // 8]
    # Letters of columns restart after three zones. Rows of even zones are five letters ahead. I and
    # O are left out, since they look like digits.
    column = ("STUVWXYZ", "ABCDEFGH", "JKLMNPQR")[zone % 3][int(east // 1e5) - 1]
    row = "ABCDEFGHJKLMNPQRSTUV"[(int(north // 1e5) + 5 * (zone % 2 == 0)) % 20]
    return f"{zone:02d}{band}{column}{row}"


def _write_raster(path: Path, pixels: NDArray[Any], modality: Modality, place: _Place) -> None:
    _, rows, cols = pixels.shape
    if modality.local:
        epsg, x, y = _utm(place.lon, place.lat)
        crs = f"EPSG:{epsg}"
        step = modality.gsd
        x, y = step * round(x / step), step * round(y / step)
    else:
        crs, x, y = grid.WGS84, place.lon, place.lat
        step = _BOX_KM / _KM_PER_DEGREE / rows
    data = geotiff(
        pixels,
        crs,
        (x - cols // 2 * step, y + rows // 2 * step),
        step,
        descriptions=modality.bands,
        nodata=0 if modality.zero_is_missing else None,
    )
    path.write_bytes(data)


# Writing WebDataset shards.


def _write_shards(
    root: Path, world: list[_Cell], seed: int, cells_per_shard: int
) -> Iterator[None]:
    """Write the shards, one cell at each step."""
    for start in range(0, len(world), cells_per_shard):
        path = root / f"example-{start // cells_per_shard:06d}.tar"
        with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as shard:
            for cell in world[start : start + cells_per_shard]:
                for suffix, content in _members(cell, seed):
                    member = tarfile.TarInfo(f"{cell.grid_id:07d}.{suffix}")
                    member.size = len(content)
                    shard.addfile(member, io.BytesIO(content))
                yield


def _members(cell: _Cell, seed: int) -> Iterator[tuple[str, bytes]]:
    """Suffixes and contents of a cell's members; absent modalities have none."""
    try:
        import torch
    except ImportError as error:
        raise MissingPackageError(
            "WebDataset shards hold torch tensors: pip install 'copcube[build]', "
            "or write the 'geotiff' layout"
        ) from error
    names: dict[str, Any] = {}
    for key in cell.dates:
        pixels, names[key] = _tensor(cell, key, seed)
        buffer = io.BytesIO()
        torch.save(torch.from_numpy(pixels), buffer)
        yield f"{key}.pth", buffer.getvalue()
    yield "json", json.dumps(names).encode()


def _tensor(cell: _Cell, key: str, seed: int) -> tuple[NDArray[Any], Any]:
    """Tensor of a modality in its published shape, and the nested names beside it.

    Dates are padded to their published number by repeating some at random.
    """
    modality = MODALITIES[key]
    tensors, names = [], []
    for place, dates in zip(cell.places(key), cell.dates[key], strict=True):
        images = [to_tensor_form(_pixels(seed, cell, place, key, date), modality) for date in dates]
        rng = _rng(seed, _PADDING, ORDER[key], cell.grid_id, place.number)
        repeated = rng.integers(len(dates), size=modality.dates - len(dates))
        order = [*range(len(dates)), *repeated]
        tensors.append(np.stack([images[i] for i in order]).astype(modality.tensor_dtype))
        inner = [cell.whole.text, place.text] if modality.local else [cell.whole.text]
        # Published names are lists of one: a loader collated batches of one when they were made.
        # That of an elevation model lies one list deeper than its tensor, which has no date axis.
        names.append([["/".join(filter(None, [*inner, dates[i]]))] for i in order])
    if modality.local:
        return np.stack(tensors), names
    return (tensors[0] if modality.dates > 1 else tensors[0][0, 0]), names[0]
