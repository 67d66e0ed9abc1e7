import gzip
import hashlib
import io
import json
import re
import shutil
import subprocess
import sys
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from rasterio.warp import transform_bounds

from copcube.errors import MissingPackageError, OptionError, StorageError
from copcube.grid import format_cell, parse_cell, parse_local, row_col
from copcube.images.sample.writing import _mgrs_tile, _patch, write_sample
from copcube.images.tensor_form import rescale_s3, to_tensor_form
from copcube.modalities import MODALITIES
from copcube.probes.bench.sample import write_bench_sample
from copcube.products.majortom.core_sample import write_core
from copcube.products.majortom.sample import write_embeddings

SMALL = {"cells": 6, "local_patches": 2, "dates": 2}
FOLDERS = {
    "s1_grd": "s1_grd_utm/images",
    "s2_toa": "s2_toa_mix/images",
    "s3_olci": "s3_olci_wgs/images",
    "s5p_co": "s5p_l3_wgs/images/CO_column_number_density",
    "s5p_no2": "s5p_l3_wgs/images/tropospheric_NO2_column_number_density",
    "s5p_so2": "s5p_l3_wgs/images/SO2_column_number_density",
    "s5p_o3": "s5p_l3_wgs/images/O3_column_number_density",
    "dem": "dem_grid_wgs/images",
}
MONTHLY = r"(\d{4})-(\d\d)-(\d\d)_\d{4}-\d\d-\d\d\.tif"
NAMES = {
    "s1_grd": r"S1A_IW_GRDH_1SDV_(\d{8})T\d{6}_\1T\d{6}_\d{6}_[0-9A-F]{6}_[0-9A-F]{4}\.tif",
    "s2_toa": r"(\d{8})T\d{6}_\1T\d{6}_T\d\d[C-X][A-Z][A-V]\.tif",
    "s3_olci": r"S3[AB]_(\d{8})T\d{6}_\1T\d{6}\.tif",
    "dem": r"()dem\.tif",
} | dict.fromkeys(("s5p_co", "s5p_no2", "s5p_so2", "s5p_o3"), MONTHLY)
SHAPES = {
    "s1_grd": (4, 2, 264, 264),
    "s2_toa": (4, 13, 264, 264),
    "s3_olci": (8, 21, 96, 96),
    "dem": (960, 960),
} | dict.fromkeys(("s5p_co", "s5p_no2", "s5p_so2", "s5p_o3"), (12, 1, 28, 28))


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    """Both layouts of one seed, as folders, with their summaries."""
    root = tmp_path_factory.mktemp("samples")
    summaries = {
        layout: write_sample(root / layout, layout, seed=7, **SMALL)
        for layout in ("geotiff", "webdataset")
    }
    yield root, summaries
    shutil.rmtree(root)


def rasters(root):
    """Every raster of a tree: (modality, cell, local, date) -> path, by names alone."""
    found = {}
    for key, folder in FOLDERS.items():
        depth = "*/*/*.tif" if MODALITIES[key].local else "*/*.tif"
        for path in sorted((root / folder).glob(depth)):
            match = re.fullmatch(NAMES[key], path.name)
            assert match, path.name
            local = path.parent.name if MODALITIES[key].local else None
            cell = path.parents[1].name if local else path.parent.name
            found[key, parse_cell(cell), local, "".join(match.groups()) or None] = path
    return found


def members(root):
    """Contents of all shards by member name."""
    contents = {}
    for shard in sorted(root.glob("*.tar")):
        with tarfile.open(shard) as tar:
            for member in tar:
                assert member.isreg()
                assert (member.mtime, member.uid, member.uname) == (0, 0, "")
                assert member.name not in contents
                contents[member.name] = tar.extractfile(member).read()
    return contents


def load(content):
    return torch.load(io.BytesIO(content), weights_only=True)


def digests(root):
    return {
        path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in root.rglob("*")
        if path.is_file()
    }


@pytest.mark.slow
def test_rasters_are_as_published(samples):
    root, summaries = samples
    found = rasters(root / "geotiff")
    assert len(found) == len(list((root / "geotiff").rglob("*.tif")))
    assert Counter(key for key, *_ in found) == summaries["geotiff"].images
    for (key, cell, local, _), path in found.items():
        modality = MODALITIES[key]
        with rasterio.open(path) as raster:
            assert raster.descriptions == modality.bands
            assert raster.compression.value == "DEFLATE"
            assert raster.tags()["TIFFTAG_IMAGEDESCRIPTION"].startswith("SYNTHETIC: ")
            assert set(raster.dtypes) == {"uint16" if key == "s2_toa" else "float32"}
            assert raster.nodata == (0 if key == "s2_toa" else None)
            lat, lon = parse_local(local or format_cell(cell))
            west, south, east, north = transform_bounds(raster.crs, "EPSG:4326", *raster.bounds)
            pixel = raster.res[0] / (111_000 if modality.local else 1)
            across = pixel / np.cos(np.radians(lat)) if modality.local else pixel
            assert (south + north) / 2 == pytest.approx(lat, abs=pixel)
            east += 360 * (east < west)
            assert ((west + east) / 2 - lon + 180) % 360 == pytest.approx(180, abs=across)
            assert raster.res[0] == raster.res[1]
            if modality.local:
                zone, south_of_equator = int((lon + 180) // 6) + 1, lat < 0
                assert raster.crs.to_epsg() == 32600 + 100 * south_of_equator + zone
                assert raster.res == (10, 10)
                assert f"_T{zone:02d}" in path.name or key == "s1_grd"
            else:
                assert raster.crs.to_epsg() == 4326
                assert (north - south) * 111.32 == pytest.approx(28)
                width = (east - west) * 111.32 * np.cos(np.radians(lat))
                assert width == pytest.approx(28, rel=0.04)


@pytest.mark.slow
def test_rasters_of_the_published_cell_have_its_shapes(samples):
    """The cell at 67.25°N: wide in degrees, turned in UTM."""
    shapes = {}
    for (key, cell, *_), path in rasters(samples[0] / "geotiff").items():
        if format_cell(cell) == "0906994_128.50_67.25":
            with rasterio.open(path) as raster:
                shapes[key] = raster.shape
    expected = {"s1_grd": (268, 267), "s2_toa": (268, 267), "s3_olci": (67, 174)}
    gases = dict.fromkeys(("s5p_co", "s5p_no2", "s5p_so2", "s5p_o3"), (26, 66))
    assert shapes == expected | gases | {"dem": (936, 2402)}


@pytest.mark.slow
def test_json_lists_the_rasters(samples):
    root = samples[0] / "geotiff"
    packed = (root / "fnames_6_union.json.gz").read_bytes()
    listing = json.loads(gzip.decompress(packed))
    listed = []
    for number, entry in listing.items():
        assert entry.keys() == {"grid_id_coord", *MODALITIES}
        assert entry["grid_id_coord"] == format_cell(int(number))
        assert number == str(int(number))
        for key, modality in MODALITIES.items():
            paths = entry[key]
            if modality.local:
                assert all(local in path for local, some in paths.items() for path in some)
                paths = [path for some in paths.values() for path in some]
            assert all(entry["grid_id_coord"] in path for path in paths)
            listed += paths
    assert any(path.startswith("s3_olci_utm/") for path in listed)
    there = {path.relative_to(root).as_posix() for path in rasters(root).values()}
    assert sorted(path.replace("s3_olci_utm", "s3_olci_wgs") for path in listed) == sorted(there)


@pytest.mark.slow
def test_shards_are_as_published(samples):
    contents = members(samples[0] / "webdataset")
    for name, content in contents.items():
        number, suffix = name.split(".", 1)
        assert re.fullmatch(r"\d{7}", number)
        names = json.loads(contents[f"{number}.json"])
        if suffix == "json":
            present = {n.split(".")[1] for n in contents if n.startswith(number)} - {"json"}
            assert names.keys() == present
            continue
        key = suffix.removesuffix(".pth")
        tensor = load(content)
        assert tensor.dtype == (torch.int16 if key == "s2_toa" else torch.float32)
        assert tensor.is_contiguous()
        shape = tuple(tensor.shape[1:] if MODALITIES[key].local else tensor.shape)
        assert shape == SHAPES[key]
        leaves = np.array(names[key])
        assert leaves.shape == ((1, 1) if key == "dem" else (*tensor.shape[: leaves.ndim - 1], 1))


@pytest.mark.slow
def test_both_layouts_hold_the_same_images(samples):
    """Each tensor is the tensor form of the raster of its name; repeated dates repeat it."""
    root, summaries = samples
    on_disk = rasters(root / "geotiff")
    contents = members(root / "webdataset")
    seen = set()
    for name in contents:
        number, key, *_ = name.split(".")
        if key == "json":
            continue
        modality = MODALITIES[key]
        leaves = np.array(json.loads(contents[f"{number}.json"])[key]).ravel()
        tensor = load(contents[name]).numpy().reshape(-1, *modality.shape)
        assert len(leaves) == len(tensor)
        for leaf, pixels in zip(leaves, tensor, strict=True):
            parts = leaf.split("/")
            assert parts[0] == format_cell(int(number))
            local = parts[1] if modality.local else None
            date = parts[-1] if modality.dates > 1 else None
            image = key, int(number), local, date
            with rasterio.open(on_disk[image]) as raster:
                expected = to_tensor_form(raster.read(), modality)
            np.testing.assert_array_equal(pixels, expected.astype(modality.tensor_dtype))
            seen.add(image)
    assert seen == on_disk.keys()
    assert summaries["webdataset"].images == summaries["geotiff"].images
    assert summaries["webdataset"].cells == SMALL["cells"]


@pytest.mark.slow
def test_limits_are_kept(samples):
    patches, dates = {}, Counter()
    for key, cell, local, _ in rasters(samples[0] / "geotiff"):
        patches.setdefault(cell, set()).update({local} - {None})
        dates[key, cell, local] += 1
    assert {len(locals_) for locals_ in patches.values()} == {1, 2}
    assert set(dates.values()) == {1, 2}


@pytest.mark.slow
def test_summary_counts_bytes(samples):
    root, summaries = samples
    for layout, summary in summaries.items():
        assert summary.folder == root / layout
        files = [path for path in (root / layout).rglob("*") if path.is_file()]
        assert summary.bytes == sum(path.stat().st_size for path in files)


@pytest.mark.slow
def test_first_cells_are_complete_and_some_others_are_not(samples):
    """Six cells: four regions' first ones, then two that lack one or two modalities."""
    have = {}
    for key, cell, *_ in rasters(samples[0] / "geotiff"):
        have.setdefault(cell, set()).add(key)
    lacking = sorted(len(MODALITIES) - len(keys) for keys in have.values())
    assert lacking[:4] == [0, 0, 0, 0]
    assert all(1 <= n <= 2 for n in lacking[4:])


@pytest.mark.slow
def test_regions_and_growth(tmp_path):
    keys = ["s1_grd", "s3_olci", "s5p_co", "dem"]
    options = {"seed": 3, "local_patches": 3, "dates": 1, "modalities": keys}
    write_sample(tmp_path / "small", cells=2, **options)
    write_sample(tmp_path / "large", cells=8, **options)
    small, large = digests(tmp_path / "small"), digests(tmp_path / "large")
    assert {k: v for k, v in small.items() if "json" not in k}.items() < large.items()

    patches = {}
    for _, cell, local, _ in rasters(tmp_path / "large"):
        patches.setdefault(cell, set()).update({local} - {None})
    places = [(90 - row / 4, col) for row, col in map(row_col, patches)]
    assert {col for lat, col in places if lat < 0} == {719, 720}, "across 180°"
    assert {col for lat, col in places if lat == 51.5} == {1439, 0}, "across Greenwich"
    assert sum(lat > 60 for lat, _ in places) == 2
    assert len({len(locals_) for locals_ in patches.values()}) > 1
    ids = [local.split("_")[0] for locals_ in patches.values() for local in locals_]
    assert len(set(ids)) == len(ids)
    for cell, locals_ in patches.items():
        lat, lon = parse_local(format_cell(cell))
        for y, x in map(parse_local, locals_):
            assert abs(y - lat) <= 0.105
            assert abs((x - lon + 180) % 360 - 180) <= 0.105


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["geotiff", "webdataset"])
def test_same_seed_same_bytes(tmp_path, layout):
    keys = ["s2_toa", "s5p_no2", "dem"]
    options = {"cells": 1, "local_patches": 1, "dates": 2, "modalities": keys}
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        write_sample(tmp_path / name, layout, seed=seed, **options)
    a, b, c = (digests(tmp_path / name) for name in "abc")
    assert a == b
    assert set(a.values()).isdisjoint(c.values())


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["geotiff", "webdataset"])
def test_some_modalities_are_the_same_as_in_a_sample_of_all(samples, tmp_path, layout):
    keys = ("s5p_no2", "s5p_co")
    some = write_sample(tmp_path / "some", layout, seed=7, modalities=keys, **SMALL)
    root, summaries = samples
    assert some.images == {key: summaries[layout].images[key] for key in keys}
    if layout == "geotiff":
        found, everything = digests(tmp_path / "some"), digests(root / layout)
        kept = tuple(f"{FOLDERS[key]}/" for key in keys)
        expected = {path: digest for path, digest in everything.items() if path.startswith(kept)}
        listing = found.pop("fnames_6_union.json.gz")
        assert listing != everything["fnames_6_union.json.gz"]
        assert found == expected
    else:
        found, everything = members(tmp_path / "some"), members(root / layout)
        wanted = tuple(f".{key}.pth" for key in keys)
        expected = {name: raw for name, raw in everything.items() if name.endswith(wanted)}
        assert {name: raw for name, raw in found.items() if name.endswith(".pth")} == expected
        assert len(expected) > len(keys)
        for name in found.keys() - expected.keys():
            assert json.loads(found[name]).keys() <= set(keys)


def test_an_unknown_modality_writes_nothing(tmp_path):
    with pytest.raises(OptionError, match="did you mean 's2_toa'"):
        write_sample(tmp_path / "x", modalities=["s2"])
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(("number", "shards"), [(1, 3), (2, 2), (6, 1)])
def test_shards_hold_as_many_cells_as_asked_for(tmp_path, number, shards):
    write_sample(
        tmp_path / "s", "webdataset", cells=3, modalities=["s5p_co"], cells_per_shard=number
    )
    assert len(list((tmp_path / "s").glob("*.tar"))) == shards
    whole = members(tmp_path / "s")
    assert len({name.split(".")[0] for name in whole}) == 3


@pytest.mark.slow
@pytest.mark.parametrize("key", ["s1_grd", "s2_toa", "s3_olci", "dem", "s5p_no2", "s5p_o3"])
def test_pixels_are_plausible(samples, key):
    """Within the spread of the published statistics, smooth, and mostly there."""
    modality = MODALITIES[key]
    for (found, *_), path in rasters(samples[0] / "geotiff").items():
        if found != key:
            continue
        with rasterio.open(path) as raster:
            pixels = rescale_s3(raster.read())[0] if key == "s3_olci" else raster.read()
        missing = ~pixels.any(axis=0) if key == "s2_toa" else np.isnan(pixels).any(axis=0)
        assert missing.mean() < 0.5 or key == "dem"
        band = pixels[-1][~missing].astype(float)
        low, high = {
            "s1_grd": (-40, 0),
            "s2_toa": (1, 20_000),
            "s3_olci": (10, 65_535),
            "dem": (0, 9_000),
            "s5p_no2": (-1e-4, 3e-4),
            "s5p_o3": (0.05, 0.25),
        }[key]
        assert low <= band.min() <= band.max() <= high
        normalised = (
            pixels[:, ~missing].mean(axis=1) * modality.scale - modality.mean
        ) / modality.std
        assert np.abs(normalised).max() < (400 if key == "s3_olci" else 8)
        both = ~missing[:, 1:] & ~missing[:, :-1]
        left, right = pixels[0][:, :-1][both], pixels[0][:, 1:][both]
        assert np.corrcoef(left, right)[0, 1] > 0.3 or np.ptp(left) == 0


@pytest.mark.slow
def test_the_known_faults_of_the_published_pixels_occur(samples):
    faults = Counter()
    for (key, *_), path in rasters(samples[0] / "geotiff").items():
        with rasterio.open(path) as raster:
            pixels = raster.read()
        if key == "s3_olci":
            faults["large"] += rescale_s3(pixels)[1]
            faults["fine"] += not rescale_s3(pixels)[1]
        faults["nan"] += bool(np.isnan(pixels).any())
        faults["nodata"] += key == "s2_toa" and not pixels.any(axis=0).all()
    assert all(faults[name] for name in ("large", "fine", "nan", "nodata")), faults


def test_mgrs_tile_of_the_published_example():
    """20201002T221611_20201002T221610_T60HWB.tif lies at 177.74°E, 38.95°S."""
    assert _mgrs_tile(_patch(1, 177.74211, -38.94613)) == "60HWB"


@pytest.mark.parametrize("lon", [-180.0, 179.999, 180.0, 180.05, -180.05, -0.001, 0.0])
def test_local_ids_never_leave_the_globe(lon):
    patch = _patch(1, lon, 1.0)
    assert parse_local(patch.text) == (patch.lat, pytest.approx(patch.lon))
    assert -180 <= patch.lon < 180
    assert "-0.00" not in patch.text


def test_what_is_written_halfway_does_not_appear(tmp_path, monkeypatch):
    from copcube.images.sample import writing as sample

    def interrupted(root, world, seed):
        (root / "half.tif").write_bytes(b"")
        yield
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(sample, "_write_geotiffs", interrupted)
        with pytest.raises(KeyboardInterrupt):
            write_sample(tmp_path / "images", cells=2)
    assert not (tmp_path / "images").exists()
    write_sample(tmp_path / "images", cells=1, modalities=["s5p_co"])
    assert [path.name for path in tmp_path.iterdir()] == ["images"]
    assert not list((tmp_path / "images").rglob("half.tif"))


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *(("seed", -1), ("cells", 0), ("cells", 10_001), ("local_patches", 10), ("dates", 0)),
        ("cells_per_shard", 0),
    ],
)
def test_options_out_of_range(tmp_path, option, value):
    with pytest.raises(OptionError, match=rf"{option} is {value}; expected \d+ to"):
        write_sample(tmp_path / "x", **{option: value})
    assert not (tmp_path / "x").exists()


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["pretrain", "bench"])
def test_a_full_disk_is_noticed_to_the_last_byte(tmp_path, layout):
    resource = pytest.importorskip("resource")

    def write(name):
        if layout == "pretrain":
            write_sample(tmp_path / name, cells=1, modalities="dem")
        else:
            write_bench_sample(tmp_path / name, tasks=["eurosat-s2"], images=10)

    write("whole")
    largest = max(file.stat().st_size for file in tmp_path.rglob("*.tif"))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest - 1, before[1]))
    try:
        with pytest.raises(StorageError, match="cannot be written"):
            write("cut")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [path.name for path in tmp_path.iterdir()] == ["whole"]


def test_numbers_of_numpy_draw_the_same_sample(tmp_path):
    digests = set()
    for name, kind in {"plain": int, "small": np.uint8, "array": np.array}.items():
        write_bench_sample(tmp_path / name / "bench", tasks="eurosat-s2", seed=kind(250), images=2)
        write_embeddings(tmp_path / name / "sets", seed=kind(250), cells=kind(2))
        write_core(tmp_path / name / "core", seed=kind(250), cells=kind(1), side=kind(6))
        files = sorted(path for path in (tmp_path / name).rglob("*") if path.is_file())
        digests.add(hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest())
    assert len(digests) == 1


def test_unknown_layout(tmp_path):
    with pytest.raises(OptionError, match="layout='zarr'; expected geotiff or webdataset"):
        write_sample(tmp_path, "zarr")


def test_a_folder_in_use_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(StorageError, match="not empty; choose another folder or remove"):
        write_sample(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize("where", ["file", "file/below"])
def test_a_path_that_cannot_be_written(tmp_path, where):
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="cannot be written"):
        write_sample(tmp_path / where)


def test_shards_need_torch(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingPackageError, match=r"copcube\[build\]"):
        write_sample(tmp_path, "webdataset", cells=1)


@pytest.mark.slow
def test_importing_is_light():
    code = "import sys, copcube.images.sample; print({'torch', 'rasterio'} & set(sys.modules))"
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert done.stdout.strip() == "set()", done.stderr
