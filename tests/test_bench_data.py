"""Copernicus-Bench: the table of its tasks, its data in the published forms, broken data.

Trees are written here with plain rasterio, or by `copcube sample --layout bench`.
"""

import base64
import json
import threading
import warnings
import zlib
from datetime import date

import netCDF4
import numpy as np
import pyproj
import pytest
import rasterio
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from rasterio.errors import NotGeoreferencedWarning

from copcube.cli import main
from copcube.errors import (
    CopcubeError,
    ImageError,
    MissingFileError,
    OptionError,
    SourceError,
    WriteError,
)
from copcube.hub.published import BENCH
from copcube.probes.bench.catalogue import TASKS, find
from copcube.probes.bench.layouts.base import true_area
from copcube.probes.bench.layouts.codes import CLOUD_S3, DFC2020, LC100, to_classes
from copcube.probes.bench.layouts.opencv import cubic, nearest
from copcube.probes.bench.opening import LAYOUTS, open_dataset
from copcube.probes.bench.sample import write_bench_sample
from copcube.probes.bench.samples import SPLITS

EPOCH = date(1970, 1, 1).toordinal()

FACTS = """
cloud-s2       segmentation   13 512  4   1699/567/551    66.7
cloud-s3       segmentation   21 224  5   1197/399/399    62.0
eurosat-s1     classification  2 224 10 16200/5400/5400   87.2
eurosat-s2     classification 13 224 10 16200/5400/5400   97.9
bigearthnet-s1 multilabel      2 224 19 11894/6117/5991   77.9
bigearthnet-s2 multilabel     12 224 19 11894/6117/5991   79.0
lc100cls-s3    multilabel     21  96 23  5181/1727/1727   93.3
dfc2020-s1     segmentation    2 256  8  3156/986/986     52.4
dfc2020-s2     segmentation   13 256  8  3156/986/986     64.5
lc100seg-s3    segmentation   21 288 23  5181/1727/1727   24.1
flood-s1       change          2 224  3  3000/1000/1000   77.7
lcz-s2         classification 10 112 17 15000/5000/5000   84.4
biomass-s3     regression     21 288  1  3000/1000/1000   66.3
aq-no2-s5p     regression      1  56  1  1480/493/494      2.8
aq-o3-s5p      regression      1  56  1  1480/493/494    789.4
"""
"""The published table: kind, bands, side, classes, images, score of Copernicus-FM."""

# label (3, 17) one-hot of 16, 0, 9; sen2 (3, 32, 32, 10) gzip, sample + band / 16; by h5py 3.16.
H5PY = """
c-rgqaB<`1lHy_j0S*oZ76t(ZWbhvfJmgUMF!=;1%?PDCp!5nRm^dR?P68?}2sIyFT}Y6tD@gT!Gyt>5fCWOMx^5JV6y
V|N7yzOppnO<*I>CghE+;W5H3vu+r{)<Ur%MMi?PX+Og_ywz<7+@@CWrttJY6&3;0u7Y3c!uv0F$gh8pLN}f*8aB^${~
8Q~`rAnoAl6MLY!i`MWSOFu@$jpumh@JuJUgu#To-)O5v$maaS?Gz)6FQb41*(9#)hc?q!5f(r5sEKn8V91P<1P<eRzV
}_(ZZlFAf!3cK`2e{-;NlnX1EJ<bHgzDpf+QiJn3X5ANXfz9ejb(sZ2hAs=V2GtlMm$Ltnw4+8J+V=+!9al7(X`DsQ(j
0&Xjh1RZbg{!@`TCtrC)oWyvu4aJSLIc10l*fuKLV-_jX^NFGB3t4asectV~YPAj1{{4P#*0Am7-T5SpSY6nRpj=hFPe
;)0W(*iDYCf9lm&bk6emoMH&^ws7&hs_biUK9IQmMC?;qbmgeKhL5`z@-iq0upAWTU}>84V!zh9zVkkt(kAao*?QM+_u
0=j=MiX+B0so2@QV4sg$x0ZUPGW>2IhlZ2|(b$@h>z`_KDulr;`gO-weC`*5o{j?tc{^%?H-Y6)Zm^FlsT~EFLXrN5Lo
<1OU|UW&}3f(EHuKB${Ik?GShqP>0?PXn^YTCD4CB2d4?xCxF8~2~O<x5h{_AIkDR(K)`<+2-t_q-rof5!{t8@Xa~TC0
ns=o226(Pvn8Mp-M;e#?8D_h9&Y^h;q)IjcKZm$Un>s#2*uw)0`}pu_a6cKaQV-Q2bE7qAIoSFHVQ_;C>RB!U=)mkQ7{
Sy0002*F=$W
"""


def put(path, pixels, crs=None, transform=None):
    """Write a GeoTIFF as anybody would."""
    pixels = np.asarray(pixels)
    pixels = pixels if pixels.ndim == 3 else pixels[None]
    path.parent.mkdir(parents=True, exist_ok=True)
    place = {} if crs is None else {"crs": crs, "transform": transform}
    bands, rows, columns = pixels.shape
    profile = {"count": bands, "height": rows, "width": columns, "dtype": pixels.dtype}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with rasterio.open(path, "w", driver="GTiff", **profile, **place) as raster:
            raster.write(pixels)


def flat(values, side, dtype):
    """Bands that hold one value each."""
    values = np.asarray(values, dtype=dtype)[:, None, None]
    return np.broadcast_to(values, (len(values), side, side))


def text(path, *lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))


def lonlat(epsg, x, y):
    return pyproj.Transformer.from_crs(epsg, 4326, always_xy=True).transform(x, y)


UTM = "EPSG:32632", rasterio.Affine(10, 0, 500_000, 0, -10, 5_400_000)
DEGREES = "EPSG:4326", rasterio.Affine(0.0027, 0, 10, 0, -0.0027, 50)


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    """Small trees of all tasks."""
    folder = tmp_path_factory.mktemp("bench") / "all"
    made = write_bench_sample(folder, images=2)
    assert made.images == dict.fromkeys(TASKS, 4)
    return folder


# The table


def test_the_table_agrees_with_the_published_one():
    rows = [line.split() for line in FACTS.split("\n") if line]
    assert [row[0] for row in rows] == list(TASKS)
    for name, kind, bands, size, classes, counts, score in rows:
        task = find(name)
        assert (task.kind, task.size, task.published) == (kind, int(size), float(score))
        assert "/".join(map(str, task.counts)) == counts
        sensor = task.sensor
        assert len(task.classes) == len(set(task.classes)) == int(classes)
        for values in (sensor.bands, sensor.scale, sensor.mean, sensor.std):
            assert len(values) == int(bands)
        assert task.size % sensor.kernel == 0
        # One square kilometre is a token of a hundred by a hundred pixels of 10 m.
        side = 16 if name == "biomass-s3" else sensor.kernel
        assert task.nominal_area == pytest.approx((side * sensor.gsd / 1000) ** 2)


def test_every_task_has_a_reader_and_an_archive():
    assert set(LAYOUTS) == set(BENCH) == set(TASKS)
    for name, files in BENCH.items():
        folder = LAYOUTS[name][1].split("/")[0]
        for file in files:
            assert file.path.startswith(f"{folder}/")
            assert file.licence == TASKS[name].licence


def test_unknown_tasks_name_the_known_ones():
    with pytest.raises(OptionError, match=r"'eurosat'; expected one of cloud-s2, .*aq-o3-s5p"):
        find("eurosat")


# What all have in common


@pytest.mark.slow
@pytest.mark.parametrize("name", TASKS)
def test_samples_have_the_form_that_the_task_says(bench, name):
    task = find(name)
    data = open_dataset(task, bench)
    assert data.task is task
    for split, count in zip(SPLITS, (2, 1, 1), strict=True):
        names = data.names(split)
        assert len(names) == len(set(names)) == count
        for index, listed in enumerate(names):
            sample = data.read(split, index)
            pair = task.kind == "change"
            assert sample.name == listed
            assert len(sample.images) == len(sample.metadata) == 1 + pair
            for image in sample.images:
                assert image.shape[0] == len(task.sensor.bands)
                assert image.dtype == (
                    np.uint16
                    if image.max() > 400 and image.min() >= 1 and task.sensor.key == "s2_toa"
                    else np.float32
                )
            assert sample.metadata.dtype == np.float64
            assert (sample.metadata[:, 3] == task.nominal_area).all()
            target = sample.target
            if task.kind == "classification":
                assert (target.shape, target.dtype) == ((), np.int64)
                assert 0 <= target < len(task.classes)
            elif task.kind == "multilabel":
                assert (target.shape, target.dtype) == ((len(task.classes),), np.uint8)
                assert set(target) == {0, 1}
            elif task.kind == "regression":
                assert (target.shape, target.dtype) == ((task.size, task.size), np.float32)
            else:
                assert target.dtype == np.uint8
                assert target.shape == (task.size, task.size) or name == "cloud-s3"
                assert set(np.unique(target)) <= {*range(len(task.classes)), task.ignore}


@pytest.mark.slow
def test_metadata_are_unknown_where_the_data_say_nothing(bench):
    for name in TASKS:
        unknown = np.isnan(open_dataset(find(name), bench).read("val", 0).metadata[0])
        nowhere = name.startswith(("dfc2020", "lcz"))
        expected = [nowhere, nowhere, nowhere or name.startswith("eurosat"), False]
        assert unknown.tolist() == expected, name


def test_places_are_centres_of_pixels_and_dates_whole_days(tmp_path):
    """Against pyproj: the pixel (rows // 2, columns // 2), half a pixel off the middle."""
    name = "ROI_00002__20200422T141729_20200422T142243_T19GDN"
    put(tmp_path / f"s2_toa/{name}.tif", flat(range(1, 14), 512, np.uint16), *UTM)
    put(tmp_path / f"cloud/{name}.tif", np.zeros((512, 512), np.uint8), *UTM)
    text(tmp_path / "val.csv", name)
    sample = open_dataset(find("cloud-s2"), tmp_path).read("val", 0)
    lon, lat = lonlat(32632, 500_000 + 2565, 5_400_000 - 2565)
    assert sample.metadata[0, :2] == pytest.approx([lon, lat], abs=1e-9)
    assert sample.metadata[0, 2] == date(2020, 4, 22).toordinal() - EPOCH


@pytest.mark.parametrize(
    ("name", "shape", "gsd", "km2"),
    [
        ("eurosat-s2", (64, 64), None, 0.00209),
        ("bigearthnet-s1", (120, 120), None, 0.00735),
        ("lcz-s2", (32, 32), None, 0.00209),
        ("lc100seg-s3", (96, 96), None, 0.64),
        ("biomass-s3", (96, 96), None, 0.64),
        ("aq-o3-s5p", (56, 56), 1113.2, 19.8),
        ("cloud-s2", (512, 512), None, 0.0256),
    ],
)
def test_true_areas_follow_from_the_resizing(name, shape, gsd, km2):
    assert true_area(find(name), shape, gsd) == pytest.approx(km2, rel=5e-3)


@pytest.mark.slow
def test_area_is_chosen_by_name(bench):
    areas = [
        open_dataset(find("aq-no2-s5p"), bench, area=area).read("test", 0).metadata[0, 3]
        for area in ("official", "true")
    ]
    assert areas == [16, pytest.approx((4 * 1.1132) ** 2)]
    with pytest.raises(OptionError, match="area='real'; expected official or true"):
        open_dataset(find("aq-no2-s5p"), bench, area="real")


@pytest.mark.parametrize(
    ("task", "where"),
    [
        ("eurosat-s1", "eurosat_s1"),
        ("eurosat-s1", "l2_eurosat_s1s2/eurosat_s1"),
        ("lcz-s2", "lcz_s2"),
        ("lcz-s2", "lcz_s1s2"),
        ("lcz-s2", ""),
        ("lcz-s2", "l3_lcz_s2"),
        ("aq-o3-s5p", "airquality_s5p/o3"),
        ("aq-o3-s5p", "o3"),
        ("aq-o3-s5p", "l3_airquality_s5p/airquality_s5p/o3"),
        ("dfc2020-s2", "l2_dfc2020_s1s2/dfc2020/dfc2020_s1s2"),
        ("dfc2020-s2", "l2_dfc2020_s1s2/dfc2020"),
        ("bigearthnet-s2", "l2_bigearthnet_s1s2/bigearthnetv2/bigearthnet_s1s2"),
    ],
)
def test_data_are_found_where_scripts_and_archives_put_them(tmp_path, task, where):
    folder = tmp_path / where
    folder.mkdir(parents=True, exist_ok=True)
    kind = LAYOUTS[task][0]
    kind(find(task), folder).list_file("train").write_text("")
    assert open_dataset(find(task), tmp_path).root == folder


# Traps of single data sets


def test_eurosat_s2_files_hold_b8a_last(tmp_path):
    folder = tmp_path / "eurosat_s2"
    put(folder / "all_imgs/SeaLake/SeaLake_7.tif", flat(range(1, 14), 64, np.uint16), *UTM)
    text(folder / "eurosat-train.txt", "SeaLake_7.jpg")
    sample = open_dataset(find("eurosat-s2"), tmp_path).read("train", 0)
    assert sample.images[0][:, 5, 5].tolist() == [*range(1, 9), 13, *range(9, 13)]
    assert find("eurosat-s2").sensor.bands[7:10] == ("B8", "B8A", "B9")
    assert sample.target == 9 == sorted(find("eurosat-s2").classes).index("SeaLake")
    assert np.isnan(sample.metadata[0, 2])


def test_bigearthnet_names_both_sensors_and_their_dates(tmp_path):
    first = "S1A_IW_GRDH_1SDV_20170613T165043/S1A_IW_GRDH_1SDV_20170613T165043_33UUP_61_39"
    second = "S2A_MSIL2A_20170617T101031/S2A_MSIL2A_20170617T101031_N9999_R022_T33UUP_61_39"
    first, second = (f"{path}/{path.split('/')[1]}_allbands.tif" for path in (first, second))
    put(tmp_path / "BigEarthNet-S1-5%" / first, flat([-10, -17], 120, np.float32), *UTM)
    put(tmp_path / "BigEarthNet-S2-5%" / second, flat(range(1, 13), 120, np.uint16), *UTM)
    names = [f'"{name}"' for name in find("bigearthnet-s1").classes]
    flags = [0] * 17 + [1, 1]
    text(
        tmp_path / "multilabel-test.csv",
        ",".join(["s1_path", "s2_path", *names]),
        ",".join([first, second, *map(str, flags)]),
    )
    for task, day, bands in (("bigearthnet-s1", 13, 2), ("bigearthnet-s2", 17, 12)):
        sample = open_dataset(find(task), tmp_path).read("test", 0)
        assert sample.images[0].shape == (bands, 120, 120)
        assert sample.metadata[0, 2] == date(2017, 6, day).toordinal() - EPOCH
        assert sample.target.tolist() == flags
    assert find("bigearthnet-s2").classes[17:] == ("Inland waters", "Marine waters")


def lc100(folder, order=(0, 1, 2)):
    """Three places, whose first band and only class are their number."""
    codes = list(LC100)
    ids = [f"020059{i}_-70.25_-55.25" for i in range(3)]
    for i, name in enumerate(ids):
        for day in (5, 6):  # two images each, one of which is listed
            value = np.full((21, 90, 96), i + 1 if day == 5 else 100, np.float32)
            file = f"S3A_2019070{day}T134411_2019070{day}T134711.tif"
            put(folder / f"s3_olci/{name}/{file}", value, *DEGREES)
        land = np.full((270, 288), codes[i + 1], np.uint8)
        land[:30, :30] = 77
        put(folder / f"lc100/{name}.tif", land, *DEGREES)
    rows = [[name, *(int(c == i + 1) for c in range(23))] for i, name in enumerate(ids)]
    head = ",".join(["id", *map(str, codes)])
    text(folder / "multilabel-val.csv", head, *(",".join(map(str, row)) for row in rows))
    files = [f"{ids[i]},S3A_20190705T134411_20190705T134711.tif" for i in order]
    text(folder / "static_fnames-val.csv", *files)
    return ids


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_lc100_joins_by_place_whatever_the_order_of_lines(tmp_path, order):
    ids = lc100(tmp_path, order)
    several = open_dataset(find("lc100cls-s3"), tmp_path)
    assert list(several.names("val")) == ids
    each = open_dataset(find("lc100seg-s3"), tmp_path)
    assert list(each.names("val")) == [ids[i] for i in order]
    for data in (several, each):
        for index, name in enumerate(data.names("val")):
            number, sample = ids.index(name) + 1, data.read("val", index)
            assert np.allclose(sample.images[0], number, rtol=1e-6)
            assert sample.images[0].shape == (21, data.task.size, data.task.size)
            assert sample.metadata[0, 2] == date(2019, 7, 5).toordinal() - EPOCH
            if data is several:
                assert np.flatnonzero(sample.target).tolist() == [number]
            else:
                assert set(np.unique(sample.target)) == {0, number}
                assert (sample.target[:20, :20] == 0).all()  # 77 is no code: unknown


def test_lc100_codes_are_the_published_ones():
    codes = [0, *range(20, 101, 10), *range(111, 117), *range(121, 127), 200]
    assert dict(zip(codes, range(23), strict=True)) == LC100


def cloud_s3(folder, codes):
    name = "S3A_OL_1_EFR____20200703T154217_20200703T154517_LN1_O_NT_002_01_01.tif"
    pixels = np.full((21, 256, 256), 100, np.float32)
    pixels[:, 0, 0] = np.nan
    east = rasterio.Affine(0.004, 0, 179.9, 0, -0.003, 50)
    put(folder / f"s3_olci/{name}", pixels, "EPSG:4326", east)
    label = np.zeros((256, 256), np.uint8)
    label[0, : len(codes)] = codes
    put(folder / f"cloud_multi/{name}", label, "EPSG:4326", east)
    text(folder / "train.csv", name)


def test_cloud_s3_codes_lose_one_and_invalid_becomes_255(tmp_path):
    cloud_s3(tmp_path, range(6))
    sample = open_dataset(find("cloud-s3"), tmp_path).read("train", 0)
    assert sample.target[0, :7].tolist() == [255, 0, 1, 2, 3, 4, 255]
    assert sample.images[0][0, 0, 0] == 0
    assert not np.isnan(sample.images[0]).any()
    # The file begins west of 180°, and its middle lies east of it.
    assert sample.metadata[0, 0] == pytest.approx(179.9 + 128.5 * 0.004 - 360)


def test_cloud_s3_codes_of_the_other_reading(tmp_path):
    cloud_s3(tmp_path, [0, 1, 2, 3, 4, 255])
    sample = open_dataset(find("cloud-s3"), tmp_path, codes="shifted").read("train", 0)
    assert sample.target[0, :6].tolist() == [0, 1, 2, 3, 4, 255]
    message = r"cloud_multi/S3A\S+: the label at row 0, column 5 is 255; .*codes='shifted'"
    with pytest.raises(ImageError, match=message):
        open_dataset(find("cloud-s3"), tmp_path).read("train", 0)


@pytest.mark.slow
@given(
    arrays(st.sampled_from([np.uint8, np.int16, np.float32]), (3, 4), elements=st.integers(0, 127)),
    st.sampled_from([CLOUD_S3, DFC2020, LC100]),
)
def test_codes_are_looked_up_one_by_one(codes, table):
    """Against a dictionary, in every dtype; what it lacks is refused, or is `other`."""
    expected = [table.get(int(code), 0) for code in codes.flat]
    assert to_classes(codes, table, "file", other=0).ravel().tolist() == expected
    if all(int(code) in table for code in codes.flat):
        assert to_classes(codes, table, "file").ravel().tolist() == expected
    else:
        with pytest.raises(ImageError, match="file: the label at row"):
            to_classes(codes, table, "file")


@pytest.mark.parametrize("code", [-1, 256, 300, 2.5, np.nan, np.inf])
def test_codes_beyond_eight_bits_are_no_codes(code):
    with pytest.raises(ImageError, match="label at row 1, column 0"):
        to_classes(np.array([[1.0, 1.0], [code, 1.0]]), DFC2020, "file")


def test_dfc2020_codes_and_names(tmp_path):
    name = "ROIs0000_test_{}_0_p609.tif"
    put(tmp_path / "s1" / name.format("s1"), flat([-10, -17], 256, np.float64))
    put(tmp_path / "s2" / name.format("s2"), flat(range(1, 14), 256, np.uint16))
    label = np.zeros((256, 256), np.uint8)
    label[0, :11] = range(11)
    put(tmp_path / "dfc" / name.format("dfc"), label)
    text(tmp_path / "dfc-test-new.csv", name.format("dfc"))
    for task, bands, dtype in (("dfc2020-s1", 2, np.float32), ("dfc2020-s2", 13, np.uint16)):
        sample = open_dataset(find(task), tmp_path).read("test", 0)
        assert sample.target[0, :11].tolist() == [255, 0, 1, 255, 2, 3, 4, 5, 255, 6, 7]
        assert np.isnan(sample.metadata[0, :3]).all()
        assert (sample.images[0].shape, sample.images[0].dtype) == ((bands, 256, 256), dtype)


def flood(folder, mask=True):
    path = "1111013/01/00ff"
    text(folder / "grid_dict_train.json", json.dumps({"00ff": {"path": path, "clz": 1}}))
    where = "EPSG:3857", rasterio.Affine(10, 0, 1e6, 0, -10, 5e6)
    for image, day in (("MS1", "20190418"), ("SL1", "20190325"), ("SL2", "20190301")):
        for band, value in (("IVV", 0.05), ("IVH", 0.02)):
            pixels = np.full((224, 224), value * (0.5 if image == "MS1" else 1), np.float32)
            pixels[0, :4] = 0.4, np.nan, -1, np.inf
            put(folder / f"data/{path}/{image}_{band}_1111013_01_{day}.tif", pixels, *where)
    (folder / f"data/{path}/MS1_IVV_1111013_01_20190418.tif.aux.xml").write_text("<P/>")
    if mask:
        codes = np.zeros((224, 224), np.uint8)
        codes[0, :4] = range(4)
        put(folder / f"data/{path}/MK0_MLU_1111013_01_20190418.tif", codes, *where)


def test_flood_gives_the_earlier_and_the_later_image_clipped(tmp_path):
    flood(tmp_path)
    sample = open_dataset(find("flood-s1"), tmp_path).read("train", 0)
    earlier, later = sample.images
    for image, factor in ((earlier, 1), (later, 0.5)):
        assert image[:, 100, 100] == pytest.approx([0.05 * factor, 0.02 * factor])
        assert image[0, 0, :4] == pytest.approx([0.15, 0.15, 0, 0.15])
    days = [date(2019, 3, 25).toordinal(), date(2019, 4, 18).toordinal()]
    assert sample.metadata[:, 2].tolist() == [day - EPOCH for day in days]
    lon, lat = lonlat(3857, 1e6 + 1125, 5e6 - 1125)
    assert sample.metadata[:, :2] == pytest.approx(np.array([[lon, lat]] * 2))
    assert sample.target[0, :5].tolist() == [0, 1, 2, 3, 0]
    assert find("flood-s1").ignore == 3


def test_without_a_mask_nothing_is_flooded(tmp_path):
    flood(tmp_path, mask=False)
    target = open_dataset(find("flood-s1"), tmp_path).read("train", 0).target
    assert (target.shape, target.dtype, target.any()) == ((224, 224), np.uint8, False)


def test_lcz_file_of_h5py_is_read(tmp_path):
    body = zlib.decompress(base64.b85decode("".join(H5PY.split())))
    (tmp_path / "lcz_s1s2").mkdir()
    (tmp_path / "lcz_s1s2/lcz_val.h5").write_bytes(body)
    data = open_dataset(find("lcz-s2"), tmp_path)
    assert data.names("val") == ["0", "1", "2"]
    for index, label in enumerate((16, 0, 9)):
        sample = data.read("val", index)
        assert sample.target == label
        assert sample.images[0].shape == (10, 32, 32)
        assert sample.images[0][:, 31, 0] == pytest.approx(index + np.arange(10) / 16)
        assert np.isnan(sample.metadata[0, :3]).all()


@pytest.mark.slow
def test_threads_read_one_lcz_file(bench):
    data = open_dataset(find("lcz-s2"), bench)
    expected = [data.read("train", i).images[0].sum() for i in range(2)]
    found = []

    def read(index):
        for _ in range(20):
            found.append(data.read("train", index).images[0].sum() == expected[index])

    threads = [threading.Thread(target=read, args=(i % 2,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [True] * 80


def test_biomass_is_resized_as_whole_numbers(tmp_path):
    tile = "S30E140_ESACCI-BIOMASS-L4-AGB-MERGED-100m-2020-fv4.0_02_11"
    file = "S3B_20200514T234457_20200514T234757.tif"
    put(tmp_path / f"s3_olci/{tile}/{file}", np.full((21, 96, 96), 5, np.float32), *DEGREES)
    stored = np.zeros((144, 144), np.uint16)
    stored[:, 72:] = 300
    put(tmp_path / f"biomass/{tile}.tif", stored, *DEGREES)
    text(tmp_path / "static_fnames-train.csv", f"{tile},{file}")
    sample = open_dataset(find("biomass-s3"), tmp_path).read("train", 0)
    # What OpenCV makes of an edge in whole numbers: it overshoots above, but not below 0.
    row = sample.target[100]
    assert row[139:149].tolist() == [0, 0, 0, 0, 68, 232, 332, 311, 300, 300]
    assert (row == np.rint(row)).all()
    assert sample.metadata[0, 2:].tolist() == [date(2020, 5, 14).toordinal() - EPOCH, 23.04]


def test_air_quality_has_fill_values_and_the_first_day(tmp_path):
    name = "EEA_1kmgrid_2021_no2_avg_34_13"
    where = "EPSG:3035", rasterio.Affine(1113.2, 0, 4e6, 0, -1113.2, 3e6)
    pixels = np.full((50, 52), 2e-5, np.float32)
    pixels[0, 0] = np.nan
    put(tmp_path / f"no2/s5p_annual/{name}/2021-01-01_2021-12-31.tif", pixels, *where)
    label = np.full((56, 56), 7, np.float32)
    label[0, :4] = 3.4e38, -np.inf, np.inf, np.nan
    put(tmp_path / f"no2/label_annual/{name}.tif", label, *where)
    text(tmp_path / "no2/test.csv", name)
    sample = open_dataset(find("aq-no2-s5p"), tmp_path).read("test", 0)
    assert np.isnan(sample.target[0]).tolist() == [True] * 4 + [False] * 52
    assert np.nanmin(sample.target) == np.nanmax(sample.target) == 7
    assert sample.metadata[0, 2] == 18628
    assert sample.images[0].shape == (1, 56, 56)
    assert not np.isnan(sample.images[0]).any()
    assert sample.images[0][0, 30, 30] == pytest.approx(2e-5)


# Resizing, against OpenCV 4.12 and 5.0

IMAGE = np.array([[0, 10, 0, 200], [5, 0, 90, 0], [7, 300, 0, 1]], np.uint16)


def test_cubic_resizing_is_that_of_opencv():
    floats = [
        [-1.174984, 9.929146, -19.127522, 52.766384, 233.0413],
        [2.8455198, -16.931007, 3.7533793, 70.249886, 127.24438],
        [5.303751, -8.5275, 52.96875, 74.81251, -5.467479],
        [-4.126018, 149.29167, 133.84167, 10.404407, -17.140715],
        [-12.345745, 276.2741, 189.31801, -43.126335, 1.6874595],
    ]
    assert cubic(IMAGE.astype(np.float32), 5) == pytest.approx(np.array(floats), abs=2e-4)
    whole = [
        [0, 7, 5, 0, 104, 241],
        [1, 0, 0, 8, 92, 166],
        [7, 0, 0, 66, 72, 42],
        [1, 35, 76, 87, 30, 0],
        [0, 139, 222, 60, 0, 0],
        [0, 201, 311, 44, 0, 2],
    ]
    assert cubic(IMAGE, 6).tolist() == whole
    assert cubic(IMAGE, 6).dtype == np.uint16


def test_nearest_resizing_is_that_of_opencv():
    rows = [[0, 0, 1, 2, 3], [0, 0, 1, 2, 3], [4, 4, 5, 6, 7], [4, 4, 5, 6, 7], [8, 8, 9, 10, 11]]
    assert nearest(np.arange(12).reshape(3, 4), 5).tolist() == rows


@given(st.integers(1, 40), st.integers(1, 40))
def test_resizing_keeps_a_constant_and_the_own_size(length, size):
    constant = np.full((2, length, length + 1), 7, np.float32)
    assert cubic(constant, size).shape == (2, size, size)
    assert np.allclose(cubic(constant, size), 7, rtol=1e-5)
    image = np.random.default_rng(0).random((size, size), dtype=np.float32)
    assert (cubic(image, size) == image).all()
    assert (nearest(image, size) == image).all()


# The sample


def test_sample_is_the_same_at_every_run_and_other_with_another_seed(tmp_path):
    def files(folder):
        return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}

    folders = [tmp_path / name for name in "abc"]
    for folder, seed in zip(folders, (0, 0, 1), strict=True):
        write_bench_sample(folder, tasks=["eurosat-s1", "lcz-s2", "aq-o3-s5p"], images=2, seed=seed)
    first, again, other = map(files, folders)
    assert first == again
    assert first.keys() == other.keys()
    assert first != other


@pytest.mark.slow
@pytest.mark.parametrize("name", ["eurosat-s1", "eurosat-s2", "lcz-s2"])
def test_classes_of_the_sample_can_be_told_apart(tmp_path, name):
    """The nearest class in the means of bands finds nearly all of what it has not seen."""
    write_bench_sample(tmp_path / "made", tasks=name, images=34)
    task = find(name)
    data = open_dataset(task, tmp_path / "made")

    def vectors(split):
        samples = [data.read(split, i) for i in range(len(data.names(split)))]
        means = np.array([s.images[0].astype(float).mean(axis=(1, 2)) for s in samples])
        return (means - task.sensor.mean) / task.sensor.std, np.array([s.target for s in samples])

    known, labels = vectors("train")
    new, right = vectors("val")
    found = labels[((new[:, None] - known) ** 2).sum(axis=-1).argmin(axis=1)]
    assert (found == right).mean() > 0.7


@pytest.mark.slow
def test_targets_of_the_sample_follow_the_image(bench):
    sample = open_dataset(find("aq-o3-s5p"), bench).read("train", 0)
    known = ~np.isnan(sample.target)
    r = np.corrcoef(sample.images[0][0][known], sample.target[known])[0, 1]
    assert abs(r) > 0.9


def test_sample_by_command(tmp_path, capsys):
    command = ["sample", str(tmp_path / "made"), "--layout", "bench"]
    assert main([*command, "--tasks", "eurosat-s1,lcz-s2", "--images", "2"]) == 0
    assert "2 tasks, 8 samples" in capsys.readouterr().err
    assert sorted(p.name for p in (tmp_path / "made").iterdir()) == ["eurosat_s1", "lcz_s2"]
    assert main([*command, "--tasks", "lcz-s2"]) == 1
    assert "not empty" in capsys.readouterr().err
    for wrong in (["--cells", "3"], ["--tasks", "lcz"], ["--images", "1"]):
        assert main(["sample", str(tmp_path / "other"), "--layout", "bench", *wrong]) == 1
    assert main(["sample", str(tmp_path / "other"), "--tasks", "lcz-s2"]) == 1
    assert "layout 'geotiff' has no option --tasks" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


# Broken trees


@pytest.fixture
def eurosat(tmp_path):
    write_bench_sample(tmp_path / "made", tasks="eurosat-s1", images=2)
    return tmp_path / "made/eurosat_s1"


def test_a_folder_without_the_data_says_where_they_are_expected(tmp_path):
    message = "no data of EuroSAT-S2: eurosat-train.txt is .* eurosat_s2 .*fetch bench eurosat-s2"
    with pytest.raises(MissingFileError, match=message):
        open_dataset(find("eurosat-s2"), tmp_path)


def test_a_missing_split_is_named_and_the_others_are_read(eurosat):
    (eurosat / "eurosat-val.txt").unlink()
    data = open_dataset(find("eurosat-s1"), eurosat)
    with pytest.raises(MissingFileError, match=r"eurosat-val\.txt: missing; .*unpack .* again"):
        data.names("val")
    assert len(data.names("train")) == 2


def test_a_missing_image_is_named_with_the_list_that_names_it(eurosat):
    data = open_dataset(find("eurosat-s1"), eurosat)
    (eurosat / "all_imgs/AnnualCrop/AnnualCrop_1.tif").unlink()
    with pytest.raises(MissingFileError, match=r"AnnualCrop_1\.tif: missing, but .*-train\.txt"):
        data.read("train", 0)
    assert data.read("train", 1).target == 1


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("Tundra_1.jpg", "names Tundra_1.jpg, of the class 'Tundra'; expected one of AnnualCrop"),
        ("../secret.jpg", "line 1 names '../secret.jpg'; expected a path inside"),
        ("/etc/passwd", "line 1 names '/etc/passwd'"),
    ],
)
def test_lists_that_name_what_cannot_be(eurosat, line, says):
    text(eurosat / "eurosat-test.txt", line)
    with pytest.raises(SourceError, match=says.replace(".", r"\.")):
        open_dataset(find("eurosat-s1"), eurosat).read("test", 0)


def test_other_bands_than_expected(eurosat):
    """The lists of both sensors are alike, so only the files tell them apart."""
    message = r"AnnualCrop_1\.tif: 2 bands; expected 13: is this the folder of another task"
    with pytest.raises(ImageError, match=message):
        open_dataset(find("eurosat-s2"), eurosat).read("train", 0)


@pytest.mark.parametrize("content", [b"", b"II*\0 cut", b"<html>not found</html>"])
def test_what_is_no_geotiff_is_named(eurosat, content):
    (eurosat / "all_imgs/AnnualCrop/AnnualCrop_1.tif").write_bytes(content)
    with pytest.raises(ImageError, match=r"AnnualCrop_1\.tif: not a readable GeoTIFF"):
        open_dataset(find("eurosat-s1"), eurosat).read("train", 0)


def test_control_points_alone_place_nothing(eurosat):
    """Radar scenes may have points of control instead of a transform, which is then an identity."""
    points = [
        rasterio.control.GroundControlPoint(r, c, 10 + c, 50 - r)
        for r, c in ((0, 0), (0, 63), (63, 0), (63, 63))
    ]
    path = eurosat / "all_imgs/AnnualCrop/AnnualCrop_1.tif"
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        count=2,
        height=64,
        width=64,
        dtype="float32",
        gcps=points,
        crs="EPSG:4326",
    ) as raster:
        raster.write(np.zeros((2, 64, 64), np.float32))
    metadata = open_dataset(find("eurosat-s1"), eurosat).read("train", 0).metadata
    assert np.isnan(metadata[0, :3]).all()


@pytest.mark.parametrize(
    ("name", "change", "says"),
    [
        (
            "multilabel-val.csv",
            lambda rows: [rows[0], rows[1].replace(",1", ",2")],
            "has the label '2'; expected 0 or 1",
        ),
        (
            "multilabel-val.csv",
            lambda rows: [rows[0], f"{rows[1]},0"],
            "line 2 has 25 columns; expected 24",
        ),
        ("multilabel-val.csv", lambda rows: [*rows, rows[1].replace(",1", ",0")], "occurs twice"),
        ("static_fnames-val.csv", lambda rows: rows[:2], r"names no image of 0200592_-70\.25"),
        (
            "static_fnames-val.csv",
            lambda rows: [f"{rows[0]}/../../x", *rows[1:]],
            "expected a path inside",
        ),
        (
            "static_fnames-val.csv",
            lambda rows: [r.replace("2019", "2o19") for r in rows],
            "missing, but",
        ),
    ],
)
def test_broken_tables_of_labels(tmp_path, name, change, says):
    lc100(tmp_path)
    rows = (tmp_path / name).read_text().splitlines()
    text(tmp_path / name, *change(rows))
    with pytest.raises(CopcubeError, match=says):
        open_dataset(find("lc100cls-s3"), tmp_path).read("val", 0)


@pytest.mark.slow
def test_a_label_outside_the_codes_says_where(tmp_path):
    write_bench_sample(tmp_path / "made", tasks="cloud-s2", images=2)
    data = open_dataset(find("cloud-s2"), tmp_path / "made")
    path = data.root / f"cloud/{data.names('test')[0]}.tif"
    codes = np.zeros((512, 512), np.uint8)
    codes[7, 300] = 9
    put(path, codes, *UTM)
    message = rf"{path}: the label at row 7, column 300 is 9; expected one of 0, 1, 2, 3"
    with pytest.raises(ImageError, match=message):
        data.read("test", 0)


def test_masks_have_the_size_of_their_images(tmp_path):
    cloud_s3(tmp_path, range(6))
    (path,) = (tmp_path / "cloud_multi").iterdir()
    put(path, np.zeros((256, 250), np.uint8))
    with pytest.raises(ImageError, match=r"cloud_multi/\S+: 256 × 250 pixels; expected 256 × 256"):
        open_dataset(find("cloud-s3"), tmp_path).read("train", 0)


def test_a_place_that_no_projection_has_is_an_error_of_the_file(eurosat):
    nowhere = rasterio.Affine(10, 0, 1e12, 0, -10, 1e12)
    path = eurosat / "all_imgs/AnnualCrop/AnnualCrop_1.tif"
    put(path, np.zeros((2, 64, 64), np.float32), "EPSG:32632", nowhere)
    with pytest.raises(ImageError, match=r"AnnualCrop_1\.tif: not a readable GeoTIFF"):
        open_dataset(find("eurosat-s1"), eurosat).read("train", 0)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("[]", "not a table of samples"),
        ("{", "is not JSON"),
        ('{"a": {"clz": 1}}', "'a' has no 'path'"),
        ('{"a": {"path": "../../b"}}', "expected a path inside"),
        ('{"a": {"path": "1/2"}}', r"data/1/2: no file SL1_IVV_….tif"),
    ],
)
def test_broken_lists_of_floods(tmp_path, content, says):
    (tmp_path / "grid_dict_train.json").write_text(content)
    with pytest.raises(CopcubeError, match=says):
        open_dataset(find("flood-s1"), tmp_path).read("train", 0)


def test_broken_lcz_files(tmp_path):
    path = tmp_path / "lcz_train.h5"
    path.write_bytes(b"no HDF5")
    with pytest.raises(SourceError, match=r"lcz_train\.h5: not a readable HDF5 file"):
        open_dataset(find("lcz-s2"), tmp_path).names("train")
    for shape, label, says in (
        ((2, 32, 32, 10), np.zeros((2, 17)), "the label of sample 0 is not a single 1 among zeros"),
        (
            (2, 32, 32, 10),
            np.eye(17)[:2] - np.eye(17)[2:4],
            "the label of sample 0 is not a single 1",
        ),
        ((2, 32, 32, 8), np.eye(17)[:2], r"sen2 \(2, 32, 32, 8\)"),
        (None, np.eye(17)[:2], "holds label; expected label and sen2"),
    ):
        with netCDF4.Dataset(path, "w") as file:
            for i, size in enumerate((2, 17, *(shape or ())[1:])):
                file.createDimension(f"d{i}", size)
            file.createVariable("label", "i1", ("d0", "d1"))[:] = label
            if shape:
                file.createVariable("sen2", "f4", ("d0", "d2", "d3", "d4"))[:] = 0
        with pytest.raises(SourceError, match=says):
            open_dataset(find("lcz-s2"), tmp_path).read("train", 0)


def test_air_quality_without_its_image(tmp_path):
    write_bench_sample(tmp_path / "made", tasks="aq-o3-s5p", images=2)
    data = open_dataset(find("aq-o3-s5p"), tmp_path / "made")
    folder = data.root / "s5p_annual" / data.names("train")[0]
    for file in folder.iterdir():
        file.rename(folder / "later.tif")
    with pytest.raises(ImageError, match=r"found 'later\.tif' in place of a date in its name"):
        data.read("train", 0)
    (folder / "later.tif").unlink()
    with pytest.raises(MissingFileError, match=r"0 files \.tif; expected one"):
        data.read("train", 0)


def test_sample_refuses_what_it_cannot_write(tmp_path):
    for options in ({"images": 1}, {"seed": -1}, {"tasks": []}, {"tasks": "eurosat"}):
        with pytest.raises(OptionError):
            write_bench_sample(tmp_path / "made", **options)
    (tmp_path / "there").write_text("x")
    with pytest.raises(WriteError, match="not empty"):
        write_bench_sample(tmp_path)
