"""Reading GeoTIFF trees."""

import gzip
import json
import pickle
import re
import shutil
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import rasterio
from affine import Affine
from hypothesis import given
from hypothesis import strategies as st
from rasterio.control import GroundControlPoint
from rasterio.errors import NotGeoreferencedWarning
from rasterio.warp import reproject

from copcube.errors import SourceError
from copcube.grid import block_of, centre, format_cell
from copcube.images import Image, Rejected, geotiff, open_source
from copcube.modalities import MODALITIES
from copcube.selection import Selection

CELL, NEXT, FAR = format_cell(772176), format_cell(772177), format_cell(906994)
LOCAL = "0865831_-95.92_43.96"
ALL = Selection.of()
NAMES = {
    "s1_grd": "S1A_IW_GRDH_1SDV_20200919T001234_20200919T001259_034424_0400CE_F6F5.tif",
    "s2_toa": "20201002T221611_20201002T221610_T60HWB.tif",
    "s3_olci": "S3A_20190507T135736_20190507T135744.tif",
    "s5p_co": "2021-04-01_2021-05-01.tif",
    "dem": "dem.tif",
}
DATES = {"s1_grd": "20200919", "s2_toa": "20201002", "s3_olci": "20190507", "dem": None}


def name_of(key):
    return NAMES.get(key, NAMES["s5p_co"])


def place(key, cell=CELL, name=None, folder=None):
    local = f"/{LOCAL}" if MODALITIES[key].local else ""
    return f"{folder or MODALITIES[key].folders[0]}/{cell}{local}/{name or name_of(key)}"


def drawn(key, seed=0, shape=None):
    rng = np.random.default_rng(seed)
    pixels = rng.uniform(1, 9000, shape or MODALITIES[key].shape)
    return pixels.astype("uint16" if key == "s2_toa" else "float32")


def write(path, pixels, descriptions=None, scale=1.0, offset=0.0, units=None, **profile):
    path.parent.mkdir(parents=True, exist_ok=True)
    count, height, width = pixels.shape
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with rasterio.open(
            path,
            "w",
            driver="GTiff",
            count=count,
            height=height,
            width=width,
            dtype=pixels.dtype,
            **profile,
        ) as raster:
            raster.write(pixels)
            if descriptions:
                raster.descriptions = descriptions
            if units:
                raster.units = [units] * count
            if (scale, offset) != (1, 0):
                raster.scales, raster.offsets = [scale] * count, [offset] * count


def read(source, selection=ALL):
    """Everything a source gives, in order: images and rejections."""
    found = []
    for partition in source.partitions():
        for job in source.jobs(partition, selection):
            found += job() if callable(job) else [job]
    return [f for f in found if isinstance(f, Image)], [f for f in found if isinstance(f, Rejected)]


@pytest.fixture
def tree(tmp_path):
    """Return a writer of files: tree({path: pixels}) gives the folder."""

    def plant(files, root=tmp_path / "tree"):
        for path, pixels in files.items():
            write(root / path, pixels)
        return root

    return plant


def test_a_real_sentinel_2_file_has_its_bytes(shared_data, tmp_path):
    path = shared_data / "S2_20201002T221611_20201002T221610_T60HWB.tif"
    target = tmp_path / place("s2_toa")
    target.parent.mkdir(parents=True)
    shutil.copy(path, target)
    (image,), rejected = read(open_source(tmp_path))
    # The file is uncompressed and ends with its pixels, 13 values after another.
    raw = path.read_bytes()[-264 * 264 * 13 * 2 :]
    stored = np.frombuffer(raw, "<u2").reshape(264, 264, 13).transpose(2, 0, 1)
    assert image.pixels.dtype == np.uint16
    np.testing.assert_array_equal(image.pixels, stored)
    assert (image.grid_id, image.local_id, image.date) == (772176, LOCAL, "20201002")
    assert (image.lon, image.lat) == (-95.92, 43.96)
    assert image.origin == place("s2_toa")
    assert not rejected


@pytest.mark.parametrize("key", MODALITIES)
def test_every_modality_reads_in_every_published_folder(key, tree):
    pixels = drawn(key)
    for i, folder in enumerate(MODALITIES[key].folders):
        root = tree({place(key, folder=folder): pixels}, tree({}) / str(i))
        (image,), rejected = read(open_source(root))
        np.testing.assert_array_equal(image.pixels, pixels)
        assert image.pixels.dtype == pixels.dtype
        assert (image.modality, image.date) == (key, DATES.get(key, "20210401"))
        lat, lon = centre(772176)
        assert (image.lat, image.lon) == ((43.96, -95.92) if MODALITIES[key].local else (lat, lon))
        assert not rejected


@pytest.mark.parametrize(
    ("folder", "key"),
    [
        ("Sentinel-5P/images/NO2_column_number_density", "s5p_no2"),
        ("Copernicus-DEM/images", "dem"),
        ("dem/images", "dem"),
    ],
)
def test_the_readme_s_other_names(folder, key, tree):
    (image,), _ = read(open_source(tree({place(key, folder=folder): drawn(key)})))
    assert image.modality == key


def test_a_tree_one_level_down_is_found_but_not_one_of_two(tree, tmp_path):
    root = tree({place("s5p_co"): drawn("s5p_co")}, tmp_path / "here" / "data")
    assert open_source(tmp_path / "here").root == str(root)
    tree({place("s5p_co"): drawn("s5p_co")}, tmp_path / "here" / "more")
    with pytest.raises(SourceError, match="several trees"):
        open_source(tmp_path / "here")


def test_other_paths_are_not_recognised(tmp_path):
    (tmp_path / "notes.txt").write_text("")
    assert geotiff.recognise(str(tmp_path)) is None
    assert geotiff.recognise(str(tmp_path / "notes.txt")) is None
    assert geotiff.recognise(str(tmp_path / "absent")) is None


def test_wide_rasters_take_the_published_size(tree):
    keys = {"s3_olci": (21, 67, 174), "s5p_co": (1, 26, 66), "dem": (1, 936, 1002)}
    root = tree({place(key, FAR): drawn(key, shape=shape) for key, shape in keys.items()})
    images, _ = read(open_source(root))
    assert {i.modality: i.pixels.shape for i in images} == {k: MODALITIES[k].shape for k in keys}


def test_images_come_by_modality_cell_patch_and_date(tree):
    names = [f"2021-{month:02d}-01_x.tif" for month in (11, 2, 7)]
    files = [place("s5p_co", cell, name) for name in names for cell in (NEXT, CELL)]
    files += [place("dem", CELL), place("s1_grd", NEXT)]
    images, _ = read(open_source(tree({f: drawn("s5p_co") for f in files if "dem" not in f})))
    order = [(i.modality, i.grid_id, i.date) for i in images]
    dates = ("20210201", "20210701", "20211101")
    assert order == [("s5p_co", c, d) for c in (772176, 772177) for d in dates]


def test_selection_comes_before_reading(tree):
    names = [f"2021-{month:02d}-01_x.tif" for month in range(1, 13)]
    root = tree({place("s5p_co", name=name): drawn("s5p_co") for name in names})
    for name in names[:3] + names[9:]:
        (root / place("s5p_co", name=name)).write_text("reading this is an error")
    (root / place("dem")).parent.mkdir(parents=True)
    (root / place("dem")).write_text("so is this")
    source, selection = open_source(root), Selection.of(["s5p_co"], "2021-04..2021-09")
    images, rejected = read(source, selection)
    assert [i.date[4:6] for i in images] == ["04", "05", "06", "07", "08", "09"]
    assert not rejected
    (partition,) = source.partitions()
    assert source.count(partition, selection) == {"s5p_co": 6}
    assert source.count(partition, ALL) == {"s5p_co": 12, "dem": 1}


def test_the_same_image_in_two_files_counts_once(tree):
    a, b = (place("s3_olci", name=f"S3{x}_20190507T135736.tif") for x in "AB")
    utm = place("s3_olci", folder="s3_olci_utm/images", name="S3A_20190507T135736.tif")
    root = tree({a: drawn("s3_olci", 1), b: drawn("s3_olci", 2), utm: drawn("s3_olci", 3)})
    (image,), rejected = read(open_source(root))
    assert image.origin == a
    assert [(r.file, r.kind) for r in rejected] == [(b, "duplicate"), (utm, "duplicate")]
    assert a in rejected[0].reason


def test_too_large_sentinel_3_bands_are_corrected(tree):
    pixels = drawn("s3_olci")
    pixels[[0, 9]] *= 1e9
    (image,), _ = read(open_source(tree({place("s3_olci"): pixels})))
    assert image.rescaled
    np.testing.assert_allclose(image.pixels, drawn("s3_olci"), rtol=1e-6)


# What a raster may not be.


def test_nodata_becomes_nan_and_nothing_but_nodata_is_empty(tmp_path):
    pixels = drawn("s5p_co")
    pixels[0, :5] = -9999
    write(tmp_path / place("s5p_co"), pixels, nodata=-9999)
    write(tmp_path / place("dem"), np.full((1, 960, 960), -32768, "int16"), nodata=-32768)
    write(tmp_path / place("s2_toa"), np.full((13, 264, 264), 65535, "uint16"), nodata=65535)
    huge = np.full((1, 28, 28), -3.4028234663852886e38, "float32")
    write(tmp_path / place("s5p_o3"), huge, nodata=-3.4028234663852886e38)
    (image,), rejected = read(open_source(tmp_path))
    assert np.isnan(image.pixels[0, :5]).all()
    np.testing.assert_array_equal(image.pixels[0, 5:], pixels[0, 5:])
    assert [(r.kind, r.images) for r in rejected] == [("empty", 1)] * 3
    assert "s2_toa 0772176_-96.00_44.00 0865831_-95.92_43.96 20201002" in rejected[0].reason


@pytest.mark.parametrize("dtype", ["float32", "int16"])
def test_a_nodata_value_of_0_needs_all_bands_in_whole_numbers(tmp_path, dtype):
    pixels = drawn("s1_grd").astype(dtype)
    pixels[0, :5] = pixels[:, 5:9] = 0
    write(tmp_path / place("s1_grd"), pixels, nodata=0)
    (image,), _ = read(open_source(tmp_path))
    expected = pixels.astype(np.float32)
    expected[:, 5:9] = np.nan
    if dtype == "float32":
        expected[0, :5] = np.nan
    np.testing.assert_array_equal(image.pixels, expected)


def test_counts_below_zero_may_be_nodata(tmp_path):
    pixels = drawn("s2_toa").astype(np.int16)
    pixels[:, :5] = -9999
    write(tmp_path / place("s2_toa"), pixels, nodata=-9999)
    (image,), _ = read(open_source(tmp_path))
    assert not image.pixels[:, :5].any()
    np.testing.assert_array_equal(image.pixels[:, 5:], pixels[:, 5:])


def test_pixels_outside_of_the_mask_of_a_file_are_no_data(tmp_path):
    pixels = {key: drawn(key) for key in ("s2_toa", "s5p_co")}
    for key, of_key in pixels.items():
        path, (_, rows, columns) = tmp_path / place(key), of_key.shape
        # From the south, so that the mask has to be turned as the pixels are.
        write(path, of_key[:, ::-1], transform=Affine(0.01, 0, 0, 0, 0.01, 0))
        mask = np.broadcast_to(np.arange(rows)[::-1, None] > 4, (rows, columns))
        with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(path, "r+") as raster:
            raster.write_mask(mask)
    images, _ = read(open_source(tmp_path))
    for image in images:
        rest = pixels[image.modality][:, 5:]
        missing = 0 if image.modality == "s2_toa" else np.nan
        np.testing.assert_array_equal(image.pixels[:, :5], np.full_like(rest[:, :5], missing))
        np.testing.assert_array_equal(image.pixels[:, 5:], rest)
    assert len(images) == 2


def test_the_mask_beside_a_file_is_heeded_and_must_be_one(tmp_path):
    pixels, path = drawn("s5p_co"), tmp_path / place("s5p_co")
    north_up = {"transform": Affine(1, 0, 0, 0, -1, 28)}
    write(path, pixels, **north_up)
    without = open_source(tmp_path).fingerprint()
    mask = np.random.default_rng(1).random((28, 28)) > 0.5
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=False), rasterio.open(path, "r+") as raster:
        raster.write_mask(mask)
    beside = path.with_name(f"{path.name}.msk")
    (image,), _ = read(open_source(tmp_path))
    np.testing.assert_array_equal(image.pixels, np.where(mask, pixels, np.nan))
    assert open_source(tmp_path).fingerprint() != without
    for content, reason in (
        (b"<VRTDataset/>", r"\.msk: expected a GeoTIFF, found"),
        (beside.read_bytes()[:300], "not a readable GeoTIFF"),
        (None, r"\.msk: the mask has 14 × 14 pixels in 1 bands, and the image 28 × 28 in 1"),
    ):
        if content is None:
            write(tmp_path / "small.tif", np.ones((1, 14, 14), "uint8"), **north_up)
            content = (tmp_path / "small.tif").read_bytes()
        beside.write_bytes(content)
        _, (rejected,) = read(open_source(tmp_path))
        assert re.search(reason, rejected.reason), rejected.reason


def test_a_count_that_is_no_data_in_some_bands_is_no_dark_pixel(tmp_path):
    pixels = drawn("s2_toa")
    pixels[3, :5] = pixels[:, 5:9] = 65535
    write(tmp_path / place("s2_toa"), pixels, nodata=65535)
    (image,), _ = read(open_source(tmp_path))
    expected = np.where(pixels == 65535, np.nan, pixels).astype("float32")
    np.testing.assert_array_equal(image.pixels, expected)


@pytest.mark.parametrize(
    ("key", "descriptions"),
    [
        ("s1_grd", ("VH", "VV")),
        ("s1_grd", ("angle", "vh", "vv")),
        ("s2_toa", (*(f"B{n}" for n in range(12, 0, -1)), "B8A")),
        ("s3_olci", tuple(f"Oa{n:02d}_radiance" for n in range(21, 0, -1))),
    ],
)
def test_bands_are_found_by_their_descriptions(key, descriptions, tmp_path):
    size = MODALITIES[key].stored_size
    pixels = drawn(key, shape=(len(descriptions), size, size))
    write(tmp_path / place(key), pixels, descriptions)
    (image,), rejected = read(open_source(tmp_path))
    assert not rejected
    named = dict(
        zip([d.upper().removesuffix("_RADIANCE") for d in descriptions], pixels, strict=True)
    )
    wanted = np.stack([named[band.upper()] for band in MODALITIES[key].bands])
    np.testing.assert_array_equal(image.pixels, wanted)


def test_bands_of_other_descriptions_are_rejected(tmp_path):
    write(tmp_path / place("s1_grd"), drawn("s1_grd"), ("left", "right"))
    images, (rejected,) = read(open_source(tmp_path))
    assert not images
    assert (rejected.file, rejected.kind) == (place("s1_grd"), "broken")
    assert "2 bands are labelled left, right" in rejected.reason
    assert "expected the 2 of Sentinel-1 GRD: VV, VH" in rejected.reason


@pytest.mark.parametrize("key", ["s1_grd", "s2_toa"])
@pytest.mark.parametrize("across", [False, True])
@pytest.mark.parametrize("south", [False, True])
@pytest.mark.parametrize("west", [False, True])
def test_rasters_in_every_direction_are_seen_north_up(key, across, south, west, tmp_path):
    """What GDAL makes of a turned raster, warped to north up, is what is read of it."""
    pixels, size = drawn(key), MODALITIES[key].stored_size
    east = Affine(-10, 0, 5e5 + 10 * size, 0, 1, 0) if west else Affine(10, 0, 5e5, 0, 1, 0)
    down = Affine(1, 0, 0, 0, 10, 5e6 - 10 * size) if south else Affine(1, 0, 0, 0, -10, 5e6)
    transform = Affine(east.a, 0, east.c, 0, down.e, down.f)
    if across:
        transform = Affine(0, transform.a, transform.c, transform.e, 0, transform.f)
    write(tmp_path / place(key), pixels, crs="EPSG:32632", transform=transform)
    (image,), _ = read(open_source(tmp_path))
    wanted = np.zeros_like(pixels)
    where = {"src_crs": "EPSG:32632", "dst_crs": "EPSG:32632", "src_transform": transform}
    reproject(pixels, wanted, dst_transform=Affine(10, 0, 5e5, 0, -10, 5e6), **where)
    np.testing.assert_array_equal(image.pixels, wanted)


def test_a_rotated_raster_is_rejected(tmp_path):
    transform = Affine.translation(5e5, 5e6) @ Affine.rotation(10) @ Affine.scale(10, -10)
    write(tmp_path / place("s1_grd"), drawn("s1_grd"), crs="EPSG:32632", transform=transform)
    images, (rejected,) = read(open_source(tmp_path))
    assert not images
    assert "its rows and columns are rotated" in rejected.reason


def test_a_raster_placed_by_ground_control_points_is_rejected(tmp_path):
    """Its rows may run in any direction: here they run north."""
    gcps = [
        GroundControlPoint(row, col, 11.59 + col / 1e4, 48.08 + row / 1e4)
        for row, col in ((0, 0), (0, 264), (264, 0), (264, 264))
    ]
    write(tmp_path / place("s1_grd"), drawn("s1_grd"), crs="EPSG:4326", gcps=gcps)
    images, (rejected,) = read(open_source(tmp_path))
    assert not images
    assert "placed by ground control points" in rejected.reason


def test_scales_and_offsets_are_applied_but_to_counts(tmp_path):
    decibels = np.random.default_rng(0).integers(-3000, -500, (2, 264, 264)).astype("int16")
    decibels[:, :9] = -32768
    counts = drawn("s2_toa")
    write(tmp_path / place("s1_grd"), decibels, scale=0.01, offset=1.5, nodata=-32768)
    write(tmp_path / place("s2_toa"), counts, scale=1e-4, offset=-0.1)
    (s1, s2), _ = read(open_source(tmp_path))
    np.testing.assert_array_equal(s2.pixels, counts)
    np.testing.assert_allclose(s1.pixels[:, 9:], decibels[:, 9:] * 0.01 + 1.5, rtol=1e-6)
    assert np.isnan(s1.pixels[:, :9]).all()
    assert s1.pixels.dtype == np.float32


@pytest.mark.parametrize(
    ("declared", "message"),
    [
        ({"scale": 0}, "a scale of 0 is declared"),
        ({"offset": np.nan}, "offset of nan is declared"),
        ({"units": "feet"}, "heights are in feet; expected metres"),
    ],
)
def test_scales_and_units_that_cannot_be_are_left_out(tmp_path, declared, message):
    write(tmp_path / place("dem"), np.full((1, 960, 960), 50, "int16"), **declared)
    images, (rejected,) = read(open_source(tmp_path))
    assert not images
    assert (rejected.kind, message in rejected.reason) == ("broken", True)


def test_integers_become_float32_but_for_sentinel_2(tree):
    heights = np.arange(960 * 960).reshape(1, 960, 960) % 4000 - 50
    root = tree({place("dem"): heights.astype("int16")})
    (image,), _ = read(open_source(root))
    assert image.pixels.dtype == np.float32
    np.testing.assert_array_equal(image.pixels, heights)


def broken(path, kind, small=b""):
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == "truncated":
        write(path, drawn("s3_olci"))
        path.write_bytes(path.read_bytes()[:-1000])
    elif kind == "beginning":
        write(path, drawn("s3_olci"))
        path.write_bytes(path.read_bytes()[:200])
    elif kind == "bands":
        write(path, drawn("s3_olci")[:3])
    elif kind == "complex":
        write(path, drawn("s3_olci").astype("complex64"))
    elif kind == "side":
        write(path, np.zeros((21, 1, 20_001), "float32"), compress="deflate", sparse_ok=True)
    elif kind == "bytes":
        profile = {"compress": "deflate", "sparse_ok": True, "dtype": "float32"}
        with rasterio.open(
            path,
            "w",
            driver="GTiff",
            count=21,
            height=9000,
            width=9000,
            transform=rasterio.Affine.scale(2),
            **profile,
        ):
            pass
    elif kind == "vrt":
        path.write_text(
            '<VRTDataset rasterXSize="2" rasterYSize="2"><VRTRasterBand dataType="Byte" band="1">'
            "<SimpleSource><SourceFilename>/etc/hostname</SourceFilename></SimpleSource>"
            "</VRTRasterBand></VRTDataset>"
        )
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "gone":
        path.symlink_to(path.parent / "nowhere")


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("truncated", "not a readable GeoTIFF of .* bytes"),
        ("beginning", "not a readable GeoTIFF of 200 bytes: the file: "),
        ("bands", "expected 21 bands of s3_olci, found 3"),
        ("complex", "expected real numbers, found complex64"),
        ("side", "1 × 20001 pixels in 21 bands"),
        ("bytes", "9000 × 9000 pixels in 21 bands"),
        ("vrt", "expected a GeoTIFF, found text, which begins '<VRT"),
        ("empty", "an empty file"),
        ("gone", "not there"),
    ],
)
def test_a_broken_file_is_rejected_and_its_neighbours_are_read(kind, reason, tree):
    good = place("s3_olci", name="S3A_20190101T000000.tif")
    root = tree({good: drawn("s3_olci")})
    broken(root / place("s3_olci"), kind)
    (image,), (rejected,) = read(open_source(root))
    assert image.origin == good
    assert (rejected.file, rejected.kind) == (place("s3_olci"), "broken")
    assert re.search(reason, rejected.reason), rejected.reason
    assert read(open_source(root))[1] == [rejected], "the same is said every time"


def test_sentinel_2_must_be_counts(tree):
    _, (rejected,) = read(open_source(tree({place("s2_toa"): np.ones((13, 264, 264), "float32")})))
    assert rejected.reason == "expected s2_toa as uint16 or int16, found float32"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
@given(cut=st.integers(0, 3_281))
def test_a_cut_file_never_gives_other_pixels(cut, tmp_path_factory):
    pixels = drawn("s5p_co")
    path = tmp_path_factory.mktemp("cut") / "x.tif"
    write(path, pixels, transform=rasterio.Affine.scale(2))
    raw = path.read_bytes()
    try:
        found = geotiff._decode(raw[: min(cut, len(raw) - 1)], MODALITIES["s5p_co"])
    except geotiff.ImageError:
        return
    np.testing.assert_array_equal(found, pixels)


def test_failing_storage_is_no_broken_image(tree, monkeypatch):
    source = open_source(tree({place("s5p_co"): drawn("s5p_co")}))

    def fail(*_):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(geotiff, "open_regular", fail)
    with pytest.raises(OSError, match="Input/output"):
        read(source)


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        (f"s5p_l3_wgs/images/CO_column_number_density/{CELL}/monthly.tif", "found no date"),
        (f"s5p_l3_wgs/images/CO_column_number_density/{CELL}/2021-02-30_x.tif", "20210230"),
        (
            f"s5p_l3_wgs/images/CO_column_number_density/{CELL}/a/2021-02-01.tif",
            "expected .*<cell>",
        ),
        ("s5p_l3_wgs/images/CO_column_number_density/2021-02-01.tif", "expected .*<cell>"),
        (f"s3_olci_wgs/images/{CELL}/S3A_20191507T135736.tif", "20191507"),
        ("s3_olci_wgs/images/0772176_-96.00_44.25/S3A_20190507T1.tif", "contradicts itself"),
        ("s3_olci_wgs/images/cell/S3A_20190507T1.tif", "is not a cell id"),
        (f"s1_grd_utm/images/{CELL}/{NAMES['s1_grd']}", "<local patch>"),
        (f"s1_grd_utm/images/{CELL}/patch/{NAMES['s1_grd']}", "is not a local patch id"),
        (f"s1_grd_utm/images/{CELL}/0000001_999.00_43.96/{NAMES['s1_grd']}", "not a point"),
    ],
)
def test_a_file_in_the_wrong_place_is_reported(path, reason, tree):
    root = tree({place("dem", FAR): drawn("dem"), path: drawn("s5p_co")})
    source = open_source(root)
    assert [p.name for p in source.partitions()] == ["block-02-11-000", "unplaced-000"]
    (image,), (rejected,) = read(source)
    assert image.modality == "dem"
    assert (rejected.file, rejected.kind) == (path, "broken")
    assert re.search(reason, rejected.reason), rejected.reason
    assert read(source, Selection.of(["dem"]))[1] == []


def test_files_of_other_kinds_and_hidden_ones_are_ignored(tree):
    root = tree({place("s5p_co"): drawn("s5p_co")})
    folder = (root / place("s5p_co")).parent
    (folder / "2021-05-01_x.tif.aux.xml").write_text("")
    (folder / ".2021-05-01_x.tif").write_text("")
    (folder / ".hidden").mkdir()
    (folder / ".hidden" / "2021-05-01_x.tif").write_text("")
    images, rejected = read(open_source(root))
    assert (len(images), rejected) == (1, [])


# Partitions.


def test_partitions_are_runs_of_whole_cells_of_one_block(tree, monkeypatch):
    monkeypatch.setattr(geotiff, "_IMAGES_PER_PARTITION", 4)
    cells = [772176 + i for i in range(5)] + [906994]
    files = {
        place("s5p_co", format_cell(cell), f"2021-{month:02d}-01_x.tif"): drawn("s5p_co")
        for cell in cells
        for month in range(1, 2 + cell % 3)
    }
    source = open_source(tree(files))
    partitions = source.partitions()
    assert sorted(path for p in partitions for path in p.paths) == sorted(files)
    of = [{path.split("/")[-2] for path in p.paths} for p in partitions]
    assert sum(map(len, of)) == len(cells), "a cell spans two partitions"
    assert [len(p.paths) for p in partitions] == [p.images for p in partitions]
    assert [len(cells) for cells in of] == [p.cells for p in partitions]
    for p, names in zip(partitions, of, strict=True):
        (block,) = {block_of(int(name[:7])) for name in names}
        assert p.name.startswith(f"block-{block.i:02d}-{block.j:02d}-")
        assert p.images <= 4
    assert len({p.name for p in partitions}) == len(partitions)
    assert partitions == open_source(source.root).partitions()


@given(sizes=st.lists(st.integers(1, 2500), max_size=30))
def test_runs_keep_every_cell_once_in_order(sizes):
    files = {cell: [((0, 0, "", ""), "x")] * n for cell, n in enumerate(sizes)}
    runs = list(geotiff._runs(list(files), files))
    assert [cell for run in runs for cell in run] == list(files)
    for run, after in zip(runs, [*runs[1:], []], strict=False):
        total = sum(sizes[cell] for cell in run)
        assert total <= 1000 or len(run) == 1
        assert not after or total + sizes[after[0]] > 1000, "ended too early"


def test_fingerprint_follows_names_and_sizes_not_the_place(tree, tmp_path):
    root = tree({place("s5p_co"): drawn("s5p_co"), place("dem"): drawn("dem")})
    before = open_source(root).fingerprint()
    copy = shutil.copytree(root, tmp_path / "copy")
    assert open_source(copy).fingerprint() == before
    with open(copy / place("dem"), "ab") as file:
        file.write(b"0")
    longer = open_source(copy).fingerprint()
    (root / place("dem")).rename(root / place("dem", name="DEM.tif"))
    assert len({before, longer, open_source(root).fingerprint()}) == 3


def test_threads_read_what_one_thread_reads_and_a_source_pickles(tree):
    names = [f"2021-{month:02d}-01_x.tif" for month in range(1, 13)]
    root = tree({place("s5p_co", name=n): drawn("s5p_co", i) for i, n in enumerate(names)})
    source = open_source(root)
    serial, _ = read(source)
    again = pickle.loads(pickle.dumps(source))
    assert again == source
    (partition,) = again.partitions()
    with ThreadPoolExecutor(4) as pool:
        found = [job.result()[0] for job in [pool.submit(j) for j in again.jobs(partition, ALL)]]
    assert [i.date for i in found] == [i.date for i in serial]
    for one, other in zip(found, serial, strict=True):
        np.testing.assert_array_equal(one.pixels, other.pixels)


# The JSON listing.


def entry(paths, cell=CELL):
    """Entry of a listing: {modality: [paths]}, as published."""
    found = {"grid_id_coord": cell}
    for key, modality in MODALITIES.items():
        listed = paths.get(key, [])
        found[key] = ({LOCAL: listed} if listed else {}) if modality.local else listed
    return found


def listing(root, content, name="fnames_3_union.json.gz"):
    text = content if isinstance(content, bytes) else json.dumps(content).encode()
    (root / name).write_bytes(gzip.compress(text) if name.endswith("gz") else text)
    return root / name


def test_a_listing_says_what_to_read(tree, caplog):
    caplog.set_level("INFO", logger="copcube")
    s1, s3 = place("s1_grd"), place("s3_olci")
    other = place("s3_olci", NEXT)
    root = tree({p: drawn("s1_grd" if p == s1 else "s3_olci") for p in (s1, s3, other)})
    without = open_source(root).fingerprint()
    utm = s3.replace("s3_olci_wgs", "s3_olci_utm")
    file = listing(root, {"772176": entry({"s1_grd": [s1], "s3_olci": [utm]}), "5": entry({}, "")})
    for given_path in (root, file):
        source = open_source(given_path)
        images, rejected = read(source)
        assert [i.origin for i in images] == [s1, s3]
        assert not rejected
        assert source.fingerprint() != without
    assert caplog.messages == [
        f"reading the files listed in {file}, and no others; move it away to read all images"
    ]
    plain = listing(root, {"772177": entry({"s3_olci": [other]}, NEXT)}, "fnames_plain.json")
    assert [i.origin for i in read(open_source(plain))[0]] == [other]
    with pytest.raises(SourceError, match=r"2 listings, fnames_3_union.json.gz, fnames_plain.json"):
        open_source(root)


def test_a_listing_is_not_believed(tree, tmp_path):
    good, foreign = place("s3_olci"), place("s3_olci", NEXT)
    root = tree({good: drawn("s3_olci"), foreign: drawn("s3_olci")})
    write(tmp_path / "outside.tif", drawn("s3_olci"))
    absent = place("s3_olci", name="S3A_20200101T000000.tif")
    escapes = [
        "../outside.tif",
        str(tmp_path / "outside.tif"),
        f"s3_olci_wgs/images/{CELL}/../../../../outside.tif",
        f"s3_olci_wgs/images/{CELL}/./{name_of('s3_olci')}",
        f"s3_olci_wgs/images/../{CELL}/{name_of('s3_olci')}",
        f"s3_olci_wgs/images/{CELL}/20190507T\udcff\ud800.tif",
        f"s3_olci_wgs/images/{CELL}/20190507T\0.tif",
        "/vsicurl/http://localhost/20190507T.tif",
        "",
    ]
    long = f"s3_olci_wgs/images/{CELL}/20190508T{'x' * 5000}.tif"
    claims = {
        "772176": entry({"s3_olci": [good, foreign, absent, long, *escapes]}),
        "772177": entry({"s3_olci": [foreign]}, CELL),
        "9" * 5000: entry({"s3_olci": [foreign]}, CELL),
    }
    source = open_source(listing(root, claims))
    assert len(source.fingerprint()) == 64
    (image,), rejected = read(source)
    assert image.origin == good
    kinds = [r.kind for r in rejected]
    assert kinds.count("stale") == 3
    assert kinds.count("broken") == 2 + len(escapes)
    reasons = {r.file: r.reason for r in rejected}
    assert "listed in fnames_3_union.json.gz but not there" in reasons[absent]
    assert "under a cell other" in reasons[foreign]
    for partition in source.partitions():
        pickle.dumps(partition)
        "".join(partition.paths).encode()


@pytest.mark.parametrize(
    "content",
    [
        b"{",
        b"\xff\xfe",
        b"[]",
        b'{"772176": 3}',
        b'{"772176": {"grid_id_coord": "0772176_-96.00_44.00", "dem": [3]}}',
        b'{"772176": {"grid_id_coord": "0772176_-96.00_44.00", "dem": "dem.tif"}}',
        b"[" * 100_000,
        b" " * 3000,
    ],
    ids=lambda content: content[:20].decode(errors="replace"),
)
def test_a_listing_that_is_none_is_an_error(content, tree):
    root = tree({place("s5p_co"): drawn("s5p_co")})
    for name in ("fnames_a.json", "fnames_b.json.gz"):
        with pytest.raises(SourceError, match=name):
            open_source(listing(root, content, name)).partitions()


def test_a_damaged_or_lonely_listing_is_an_error(tree, tmp_path):
    root = tree({place("s5p_co"): drawn("s5p_co")})
    file = listing(root, {"772176": entry({"s5p_co": [place("s5p_co")]})})
    raw = file.read_bytes()
    for damaged in (raw[:-12], raw[:40] + b"\0\0\0" + raw[43:], b"no gzip"):
        file.write_bytes(damaged)
        with pytest.raises(SourceError, match="listing of files in"):
            open_source(file).partitions()
    (tmp_path / "elsewhere").mkdir()
    file.rename(tmp_path / "elsewhere" / file.name)
    with pytest.raises(SourceError, match="no GeoTIFF tree beside"):
        open_source(tmp_path / "elsewhere" / file.name)
