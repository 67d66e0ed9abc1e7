"""A small, made-up Copernicus-Bench: the published names, shapes and codes, drawn pixels.

Every class has its own levels in every band, so that even an untrained encoder gives vectors that
separate the classes; targets of a regression follow the level. Files have the same bytes in every
run.
"""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from copcube.arguments import whole_number
from copcube.errors import OptionError
from copcube.files.atomic import atomic_folder, vacant_folder
from copcube.files.regular import bytes_below
from copcube.grid import WGS84, format_cell
from copcube.images.sample.geotiff import geotiff
from copcube.probes.bench.catalogue import TASKS, Task, find
from copcube.probes.bench.classes import LC100_CODES
from copcube.probes.bench.opening import LAYOUTS
from copcube.probes.bench.samples import SPLITS, Split

_MAX_IMAGES = 10_000
# Levels of Sentinel-3 in radiances and of the gases in mol/m², which the tasks do not scale.
_LEVELS = {"s3_olci": (60.0, 20.0), "s5p_no2": (2.5e-5, 8e-6), "s5p_o3": (0.13, 0.01)}
_DFC_CODES = np.array([1, 2, 4, 5, 6, 7, 9, 10])
_NUMBERS = dict(zip(SPLITS, range(len(SPLITS)), strict=True))


@dataclass(frozen=True)
class BenchSample:
    """Result of `write_bench_sample`.

    Parameters
    ----------
    folder : Path
        Folder that holds those of the data sets.
    images : dict of str to int
        Samples of each task, of all splits.
    bytes : int
        Size of all files.
    """

    folder: Path
    images: dict[str, int]
    bytes: int


def write_bench_sample(
    folder: str | Path,
    *,
    tasks: Iterable[str] | str | None = None,
    images: int = 20,
    seed: int = 0,
) -> BenchSample:
    """Write synthetic data in the layout of Copernicus-Bench's unpacked archives.

    Parameters
    ----------
    folder : str or Path
        A new or empty folder, which appears when the sample is complete.
    tasks : iterable of str, optional
        Names of tasks; all by default. Tasks that share an archive are written together.
    images : int
        Samples to train with, 2 or more; half as many each to validate and test.
    seed : int
        Not negative; different seeds give different images.

    Raises
    ------
    OptionError
        If an option is out of its range, or a task is unknown.
    WriteError
        If the folder is not empty or cannot be written.
    """
    seed = whole_number(seed, "seed", 0, 2**32 - 1)
    images = whole_number(images, "images", 2, _MAX_IMAGES)
    names = TASKS if tasks is None else [tasks] if isinstance(tasks, str) else tasks
    chosen = [find(name) for name in names]
    if not chosen:
        raise OptionError(f"no task chosen; give one or more of {', '.join(TASKS)}")
    root = vacant_folder(folder)
    counts = dict(zip(SPLITS, (images, images // 2, images // 2), strict=True))
    with atomic_folder(root, replace=False) as partial:
        partial.mkdir(parents=True)
        for key in dict.fromkeys(LAYOUTS[task.name][1].split("/", 1)[1] for task in chosen):
            for split, count in counts.items():
                streams = [
                    np.random.default_rng([seed, list(_WRITERS).index(key), _NUMBERS[split], i])
                    for i in range(count)
                ]
                _WRITERS[key](partial / key, split, streams)
        size = bytes_below(partial)
    return BenchSample(root, {task.name: sum(counts.values()) for task in chosen}, size)


# Pixels.


def _levels(task: Task) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Usual level and spread of every band, in stored units."""
    sensor = task.sensor
    mean, std = _LEVELS.get(sensor.key, (sensor.mean, sensor.std))
    count = len(sensor.bands)
    scale = np.broadcast_to(sensor.scale, count)
    return np.broadcast_to(mean, count) / scale, np.broadcast_to(std, count) / scale


def _draw(
    task: Task, kind: NDArray[Any], rng: np.random.Generator, shape: tuple[int, int]
) -> NDArray[np.float64]:
    """Draw an image of a coarse map of levels, (bands, rows, columns) in stored units.

    The map holds numbers from 0 to 1, such as classes by their number of them: from the first
    to the last the first band falls by four spreads, the next goes half a wave, and so on.
    """
    mean, std = _levels(task)
    waves = np.arange(1, len(mean) + 1)[:, None, None]
    coarse = 2 * np.cos(np.pi * waves * kind) + 0.3 * rng.standard_normal((len(mean), *kind.shape))
    return _spread(mean[:, None, None] + std[:, None, None] * coarse, shape)


def _spread(coarse: NDArray[Any], shape: tuple[int, int]) -> NDArray[Any]:
    """Repeat the cells of a coarse map until it has a shape."""
    rows, columns = (np.arange(n) * m // n for n, m in zip(shape, coarse.shape[-2:], strict=True))
    return coarse[..., rows[:, None], columns]


def _counts(pixels: NDArray[np.float64]) -> NDArray[np.uint16]:
    return np.clip(np.rint(pixels), 1, 20_000).astype(np.uint16)


def _stored(task: Task, pixels: NDArray[np.float64]) -> NDArray[Any]:
    """Sentinel-2 in whole counts, all else in float32."""
    return _counts(pixels) if task.sensor.key == "s2_toa" else pixels.astype(np.float32)


def _write(
    path: Path,
    pixels: NDArray[Any],
    crs: str | None = None,
    corner: tuple[float, float] = (0.0, 0.0),
    step: float = 1.0,
) -> None:
    """Write a GeoTIFF, without a georeference if no system of coordinates is given."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(geotiff(pixels, crs, corner, step))


def _utm(rng: np.random.Generator) -> tuple[float, float]:
    """Return a corner in UTM zone 32 north, somewhere over Europe."""
    east, north = rng.integers((30_000, 480_000), (60_000, 560_000))
    return 10.0 * east, 10.0 * north


def _degrees(rng: np.random.Generator) -> tuple[float, float]:
    lon, lat = rng.integers((-600, -200), (600, 200))
    return lon / 4 - 0.125, lat / 4 + 0.125


def _date(rng: np.random.Generator, year: int) -> str:
    return f"{year}{rng.integers(1, 13):02d}{rng.integers(1, 29):02d}"


def _list(path: Path, lines: Iterable[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))


# The data sets.

_Streams = Sequence[np.random.Generator]


def _cloud_s2(root: Path, split: Split, streams: _Streams) -> None:
    task, names = TASKS["cloud-s2"], []
    for i, rng in enumerate(streams):
        day = _date(rng, 2020)
        number = 1000 * _NUMBERS[split] + i
        name = f"ROI_{number:05d}__{day}T141729_{day}T142243_T19GDN"
        kind, corner = rng.integers(4, size=(8, 8)), _utm(rng)
        pixels = _counts(_draw(task, kind / 3, rng, (512, 512)))
        _write(root / f"s2_toa/{name}.tif", pixels, "EPSG:32632", corner, 10)
        codes = _spread(kind, (512, 512)).astype(np.uint8)
        _write(root / f"cloud/{name}.tif", codes, "EPSG:32632", corner, 10)
        names.append(name)
    _list(root / f"{split}.csv", names)


def _cloud_s3(root: Path, split: Split, streams: _Streams) -> None:
    task, names = TASKS["cloud-s3"], []
    for i, rng in enumerate(streams):
        time = f"{_date(rng, 2020)}T154217"
        number = 1000 * _NUMBERS[split] + i
        name = f"S3A_OL_1_EFR____{time}_{time}_{number:04d}_LN1_O_NT_002_01_01.tif"
        kind, corner = rng.integers(5, size=(8, 8)), _degrees(rng)
        pixels = _draw(task, kind / 4, rng, (256, 256)).astype(np.float32)
        codes = _spread(kind + 1, (256, 256)).astype(np.uint8)
        # A corner without data has no radiance, and the code of what is invalid.
        pixels[:, :20, :20], codes[:20, :20] = np.nan, 0
        _write(root / "s3_olci" / name, pixels, WGS84, corner, 0.0035)
        _write(root / "cloud_multi" / name, codes, WGS84, corner, 0.0035)
        binary = np.minimum(codes, 2) - (codes > 3)
        _write(root / "cloud_binary" / name, binary.astype(np.uint8), WGS84, corner, 0.0035)
        names.append(name)
    _list(root / f"{split}.csv", names)


def _eurosat(root: Path, split: Split, streams: _Streams) -> None:
    task, names = TASKS[root.name.replace("_", "-")], []
    for i, rng in enumerate(streams):
        label = i % len(task.classes)
        stem = f"{task.classes[label]}_{1000 * _NUMBERS[split] + i + 1}"
        kind = np.full((4, 4), label / (len(task.classes) - 1))
        pixels = _stored(task, _draw(task, kind, rng, (64, 64)))
        if len(pixels) == 13:  # the files hold B8A last
            pixels = pixels[[*range(8), *range(9, 13), 8]]
        path = root / "all_imgs" / task.classes[label] / f"{stem}.tif"
        _write(path, pixels, "EPSG:32632", _utm(rng), 9.9)
        names.append(f"{stem}.jpg")
    _list(root / f"eurosat-{split}.txt", names)


def _bigearthnet(root: Path, split: Split, streams: _Streams) -> None:
    first, second = TASKS["bigearthnet-s1"], TASKS["bigearthnet-s2"]
    classes = second.classes
    rows = [",".join(("s1_path", "s2_path", *(f'"{name}"' for name in classes)))]
    for i, rng in enumerate(streams):
        day, place = _date(rng, 2017), f"33UUP_{_NUMBERS[split]}{i:04d}_39"
        corner, label = _utm(rng), i % len(classes)
        kind = np.full((4, 4), label / (len(classes) - 1))
        flags = np.arange(len(classes)) == label
        # A second class of half of them covers half of the image.
        if rng.random() < 0.5:
            kind[:2] = (other := int(rng.integers(len(classes)))) / (len(classes) - 1)
            flags[other] = True
        paths = []
        for task, scene in (
            (first, f"S1A_IW_GRDH_1SDV_{day}T165043"),
            (second, f"S2A_MSIL2A_{day}T101031_N9999_R022_T33UUP"),
        ):
            patch = f"{scene}_{place.removeprefix('33UUP_') if task is second else place}"
            paths.append(f"{scene}/{patch}/{patch}_allbands.tif")
            pixels = _stored(task, _draw(task, kind, rng, (120, 120)))
            folder = f"BigEarthNet-{task.name[-2:].upper()}-5%"
            _write(root / folder / paths[-1], pixels, "EPSG:32633", corner, 10)
        rows.append(",".join((*paths, *(str(int(flag)) for flag in flags))))
    _list(root / f"multilabel-{split}.csv", rows)


def _olci(
    root: Path, task: Task, name: str, kind: NDArray[Any], rng: np.random.Generator, year: int
) -> tuple[str, tuple[float, float]]:
    """Write a place's images, of which only the first shows the labels; return its name."""
    corner, file = _degrees(rng), ""
    for number in range(2):
        time = f"{_date(rng, year)}T234457"
        shown = kind if number == 0 else np.zeros_like(kind, dtype=float)
        pixels = _draw(task, shown, rng, (93, 94)).astype(np.float32)
        pixels[:, 40, 40] = np.nan
        path = root / f"s3_olci/{name}/S3{'BA'[number]}_{time}_{time}.tif"
        _write(path, pixels, WGS84, corner, 0.002695)
        file = file or path.name
    return file, corner


def _lc100(root: Path, split: Split, streams: _Streams) -> None:
    task = TASKS["lc100seg-s3"]
    codes = np.array(LC100_CODES)
    rows, files = [",".join(("id", *(f"class {code}" for code in codes)))], []
    for i, rng in enumerate(streams):
        name = format_cell(200_000 + 1000 * _NUMBERS[split] + i)
        present = rng.choice(len(codes), size=4, replace=False)
        present[0] = i % len(codes)
        kind = present[rng.integers(4, size=(6, 6))]
        file, corner = _olci(root, task, name, kind / (len(codes) - 1), rng, 2019)
        land = _spread(codes[kind], (280, 282)).astype(np.uint8)
        _write(root / f"lc100/{name}.tif", land, WGS84, corner, 0.000898)
        flags = np.isin(np.arange(len(codes)), kind).astype(int)
        rows.append(",".join((name, *map(str, flags))))
        files.append(f"{name},{file}")
    _list(root / f"multilabel-{split}.csv", rows)
    # In a different order from the labels, so that only a join by name is right.
    _list(root / f"static_fnames-{split}.csv", files[::-1])


def _dfc2020(root: Path, split: Split, streams: _Streams) -> None:
    names = []
    for i, rng in enumerate(streams):
        name = f"ROIs0000_{split}_{{}}_0_p{i}.tif"
        kind = rng.integers(8, size=(8, 8))
        for sensor in ("s1", "s2"):
            pixels = _draw(TASKS[f"dfc2020-{sensor}"], kind / 7, rng, (256, 256))
            stored = _counts(pixels) if sensor == "s2" else pixels
            _write(root / sensor / name.format(sensor), stored)
        codes = _spread(_DFC_CODES[kind], (256, 256)).astype(np.uint8)
        # Background, savanna and snow, which do not count.
        codes[:5, :30] = np.repeat([0, 3, 8], 10)
        _write(root / "dfc" / name.format("dfc"), codes)
        names.append(name.format("dfc"))
    _list(root / f"dfc-{split}-new.csv", names)


def _flood(root: Path, split: Split, streams: _Streams) -> None:
    task, listing = TASKS["flood-s1"], {}
    mean, std = (column[:, None, None] for column in _levels(task))
    for i, rng in enumerate(streams):
        key = f"{_NUMBERS[split] * 10_000 + i:032x}"
        folder = f"1111013/01/{key}"
        kind, corner = rng.integers(3, size=(7, 7)), _utm(rng)
        # Water is dark: permanent water in all images, a flood only in the last.
        for image, wet, day in (
            ("SL2", kind == 1, "20190301"),
            ("SL1", kind == 1, "20190325"),
            ("MS1", kind > 0, "20190418"),
        ):
            noise = 0.1 * rng.standard_normal((2, *kind.shape))
            pixels = _spread(mean + std * (np.where(wet, -1.5, 0.5) + noise), (224, 224))
            pixels[:, -3:, -3:] = np.nan
            for band, values in zip(("IVV", "IVH"), pixels.astype(np.float32), strict=True):
                path = root / "data" / folder / f"{image}_{band}_1111013_01_{day}.tif"
                _write(path, values, "EPSG:3857", corner, 10)
        codes = _spread(kind, (224, 224)).astype(np.uint8)
        codes[-3:, -3:] = 3
        for mask, values in (
            ("MLU", codes),
            ("MNA", (codes < 3).astype(np.uint8)),
            ("DEM", np.full((224, 224), 83, dtype=np.float32)),
        ):
            path = root / "data" / folder / f"MK0_{mask}_1111013_01_20190418.tif"
            _write(path, values, "EPSG:3857", corner, 10)
        (path.parent / f"{path.name}.aux.xml").write_text("<PAMDataset/>\n")
        info = {"actid": 1111013, "aoiid": 1, "datasets": {}}
        listing[key] = {"path": folder, "info": info, "clz": 1}
    root.mkdir(parents=True, exist_ok=True)
    (root / f"grid_dict_{split}.json").write_text(json.dumps(listing))


def _lcz(root: Path, split: Split, streams: _Streams) -> None:
    import netCDF4

    task = TASKS["lcz-s2"]
    classes = len(task.classes)
    labels = np.eye(classes, dtype=np.uint8)[np.arange(len(streams)) % classes]
    kinds = labels.argmax(axis=1) / (classes - 1)
    images = [
        _draw(task, np.full((4, 4), kind), rng, (32, 32))
        for kind, rng in zip(kinds, streams, strict=True)
    ]
    root.mkdir(parents=True, exist_ok=True)
    with netCDF4.Dataset(str(root / f"lcz_{split}.h5"), "w", format="NETCDF4") as file:
        for name, size in (("n", len(streams)), ("class", classes), ("y", 32), ("x", 32)):
            file.createDimension(name, size)
        file.createDimension("sen1_band", 8)
        file.createDimension("sen2_band", len(task.sensor.bands))
        file.createVariable("label", "u1", ("n", "class"))[:] = labels
        file.createVariable("sen1", "f4", ("n", "y", "x", "sen1_band"), zlib=True)[:] = 0
        sen2 = file.createVariable("sen2", "f4", ("n", "y", "x", "sen2_band"), zlib=True)
        sen2[:] = np.maximum(np.moveaxis(np.stack(images), 1, -1), 0)


def _biomass(root: Path, split: Split, streams: _Streams) -> None:
    task, files = TASKS["biomass-s3"], []
    for i, rng in enumerate(streams):
        number = f"{_NUMBERS[split]}{i:04d}"
        name = f"S30E140_ESACCI-BIOMASS-L4-AGB-MERGED-100m-2020-fv4.0_02_{number}"
        share = rng.random((6, 6))
        file, corner = _olci(root, task, name, share, rng, 2020)
        stored = _spread(np.rint(300 * share), (281, 283)).astype(np.uint16)
        _write(root / f"biomass/{name}.tif", stored, WGS84, corner, 0.000889)
        files.append(f"{name},{file}")
    _list(root / f"static_fnames-{split}.csv", files)


def _air_quality(root: Path, split: Split, streams: _Streams) -> None:
    gas, names = root.name, []
    task = TASKS[f"aq-{gas}-s5p"]
    mean, std = task.target
    year = "2021-01-01", "2021-04-01", "2021-07-01", "2021-10-01", "2021-12-31"
    for i, rng in enumerate(streams):
        name = f"EEA_1kmgrid_2021_{gas}_avg_{_NUMBERS[split]}_{i}"
        share = rng.random((7, 7))
        corner = (4e6 + 56_000.0 * i, 3e6 + 1e6 * _NUMBERS[split])
        pixels = _draw(task, share, rng, (56, 56)).astype(np.float32)
        pixels[:, 3, 3] = np.nan
        periods = [("annual", year[0], year[-1])]
        periods += [("seasonal", *pair) for pair in pairwise(year)]
        for period, start, end in periods:
            path = root / f"s5p_{period}/{name}/{start}_{end}.tif"
            _write(path, pixels, "EPSG:3035", corner, 1113.2)
        label = _spread(mean + std * (2 * share - 1), (56, 56)).astype(np.float32)
        label[0, :2] = -np.inf, np.finfo(np.float32).max
        _write(root / f"label_annual/{name}.tif", label, "EPSG:3035", corner, 1113.2)
        names.append(name)
    _list(root / f"{split}.csv", names)


_WRITERS: dict[str, Callable[[Path, Split, _Streams], None]] = {
    "cloud_s2": _cloud_s2,
    "cloud_s3": _cloud_s3,
    "eurosat_s1": _eurosat,
    "eurosat_s2": _eurosat,
    "bigearthnet_s1s2": _bigearthnet,
    "lc100_s3": _lc100,
    "dfc2020_s1s2": _dfc2020,
    "flood_s1": _flood,
    "lcz_s2": _lcz,
    "biomass_s3": _biomass,
    "airquality_s5p/no2": _air_quality,
    "airquality_s5p/o3": _air_quality,
}
"""What writes a split of a data set, by the folder to which its archive unpacks."""
