"""Sensors of one's own: how they are described, and that they reach all of a build."""

import io
import json
import math
import re
import tarfile
from dataclasses import replace

import numpy as np
import pytest
import rasterio
import torch
import xarray as xr
from affine import Affine
from hypothesis import given
from hypothesis import strategies as st
from strategies import random_rows, write_rows
from stub import StubEncoder, StubSpec

import copcube
from copcube.builds import aggregate, build, estimate
from copcube.builds.folder import BuildFolder
from copcube.cli import main
from copcube.cube import summary, validate
from copcube.embedding.encoders import as_encoder
from copcube.encoder import FrozenEncoder
from copcube.encoder.weights import untrained_weights
from copcube.errors import BuildError, CopcubeError, OptionError, RowsError
from copcube.grid import centre, format_cell, row_col
from copcube.images import open_source
from copcube.images.sample.writing import write_sample
from copcube.images.sensors import FIELDS as KNOWN
from copcube.images.sensors import described, modality_of, sensor, sensors
from copcube.images.tensor_form import has_valid_pixel, mend
from copcube.images.units import remedy, strange
from copcube.modalities import MODALITIES, labels, modality, select
from copcube.pca.components import reduce
from copcube.probes.bench.catalogue import TASKS
from copcube.rows import Rows, read_provenance, read_rows

TOML = """
key = "landsat8"
title = "Landsat 8 OLI"
bands = ["B2", "B3", "B4"]
wavelengths = [482.0, 561.4, 654.6]  # nm
bandwidths = [60.0, 57.3, 37.5]
scale = [1e-4, 1e-4, 1e-4]
mean = [0.12, 0.11, 0.10]
std = [0.08, 0.08, 0.09]
gsd = 30
kernel = 8
stored_size = 40
input_size = 32
"""
FIELDS = {
    "key": "landsat8",
    "title": "Landsat 8 OLI",
    "bands": ["B2", "B3", "B4"],
    "wavelengths": [482.0, 561.4, 654.6],
    "bandwidths": [60.0, 57.3, 37.5],
    "scale": [1e-4] * 3,
    "mean": [0.12, 0.11, 0.10],
    "std": [0.08, 0.08, 0.09],
    "gsd": 30,
    "kernel": 8,
    "stored_size": 40,
    "input_size": 32,
}
VARIABLE = {"key": "hcho", "mean": 0, "std": 1e-4, "gsd": 1000, "kernel": 4, "stored_size": 28}
CELLS = (772176, 772177, 906994)
DATES = ("20210301", "2021-04-02")
AXIS = np.arange(64) * 3e-4


@pytest.fixture
def toml(tmp_path):
    path = tmp_path / "landsat8.toml"
    path.write_text(TOML)
    return path


def write(path, pixels, descriptions=()):
    path.parent.mkdir(parents=True, exist_ok=True)
    count, height, width = pixels.shape
    profile = {"crs": "EPSG:4326", "transform": Affine(0.1, 0, 0, 0, -0.1, 1)}
    with rasterio.open(
        path, "w", "GTiff", width, height, count, dtype=pixels.dtype, **profile
    ) as raster:
        raster.write(pixels)
        if descriptions:
            raster.descriptions = descriptions


def images_of(seed=0):
    """Pixels by path: three cells, two dates, the second with names of bands in another order."""
    rng = np.random.default_rng(seed)
    return {
        f"landsat8/images/{format_cell(cell)}/LC08_L1TP_193026_{date}_02_T1.tif": rng.integers(
            500, 4000, (3, 40, 40), dtype="uint16"
        )
        for cell in CELLS
        for date in DATES
    }


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """A GeoTIFF tree of Sentinel-5P and of a sensor of one's own."""
    root = tmp_path_factory.mktemp("tree") / "images"
    write_sample(root, seed=1, cells=3, dates=2, modalities=["s5p_co"])
    for path, pixels in images_of().items():
        if "2021-04" in path:
            write(root / path, pixels[[2, 0, 1]], ("SR_B4", "SR_B02", "SR_B3"))
        else:
            write(root / path, pixels)
    return root


def stub_means():
    """Mean over the dates of a cell of what the stand-in encoder gives, made without copcube."""
    found = {}
    for path, pixels in images_of().items():
        cell = int(path.split("/")[2][:7])
        day = np.datetime64("2021-03-01" if DATES[0] in path else "2021-04-02", "D")
        lat, lon = centre(cell)
        vector = StubEncoder.vector(
            pixels[:, 4:36, 4:36].astype("f4"), np.array([lon, lat, day.astype(int), 0.0])
        )
        found.setdefault(cell, []).append(vector)
    return {cell: np.mean(vectors, axis=0) for cell, vectors in found.items()}


@pytest.fixture(scope="module")
def built(tree, tmp_path_factory):
    out = tmp_path_factory.mktemp("built") / "world.zarr"
    report = build(tree, out, sensors=FIELDS, encoder=StubSpec())
    return out, report


# What is described.


def test_a_file_fields_and_a_modality_say_the_same(toml):
    found = sensor(toml)
    assert found == sensor(str(toml)) == sensor(FIELDS) == sensor(found)
    assert (found.key, found.title, found.shape) == ("landsat8", "Landsat 8 OLI", (3, 40, 40))
    assert found.token_area == pytest.approx(0.24**2)
    assert found.folders == ("landsat8/images",)
    assert (found.is_published, found.asked) == (False, found)
    assert copcube.sensor(toml) == found
    assert modality_of(str(toml)) == found
    assert modality_of("dem") is MODALITIES["dem"]
    assert MODALITIES["dem"].asked == "dem"
    # Statistics as NumPy computes them.
    mean, std = np.float32(found.mean), np.float64(found.std)
    sizes = {"gsd": np.float32(found.gsd), "stored_size": np.int64(found.stored_size)}
    again = sensor(replace(found, mean=mean, std=std, **sizes))
    assert json.loads(json.dumps(described(again))) == described(
        sensor(replace(found, mean=mean.tolist()))
    )
    assert "np." not in repr(again)


def test_sentinel_2_without_a_band_is_made_of_the_published_one():
    whole = modality("s2_toa")
    kept = [i for i, band in enumerate(whole.bands) if band != "B10"]
    values = ("bands", "wavelengths", "bandwidths", "scale", "mean", "std")
    fields = {name: tuple(getattr(whole, name)[i] for i in kept) for name in values}
    l2a = sensor(replace(whole, key="s2_l2a", folders=("s2_l2a/images",), **fields))
    assert len(l2a.bands) == 12
    assert l2a.local
    assert (l2a.stored_size, l2a.input_size, l2a.kernel) == (264, 224, 16)
    assert l2a.tensor_dtype == "float32"
    listed = replace(l2a, **{name: list(value) for name, value in fields.items()})
    assert sensor(listed) == l2a
    assert described(replace(l2a, dates=9)) == described(l2a)


def test_values_within_its_statistics_are_not_strange():
    column = sensor(VARIABLE | {"language": words(), "mean": 8e15, "std": 4e15})
    raw = np.full((1, 28, 28), 1e16)
    assert strange(raw, column) is None
    assert strange(raw * 10, column) == "pixels of 1e+17"
    assert strange(np.full((3, 40, 40), -9999.0), sensor(FIELDS)) == "pixels of -9999"
    counts = sensor(FIELDS | {"typical": [100, 20000], "units": "counts"})
    assert strange(np.full((3, 40, 40), 0.2), counts) == "a median of 0.2"
    assert "in counts, with a median between 100 and 20000: see the units" in remedy(counts)
    assert "OLI is expected in any units, with the value of missing" in remedy(sensor(FIELDS))


def test_tokens_too_small_for_the_model_have_no_area(caplog, tree, tmp_path):
    small = sensor(FIELDS | {"gsd": 3, "kernel": 8})
    assert math.isnan(small.token_area)
    build(tree, tmp_path / "a.zarr", sensors=[small], encoder=StubEncoder(), partitions=0)
    assert "has 0.00058 km², but the model accepts 0.001 to" in caplog.text


BAD = {
    "unknown field": (
        {"wavelength": [1]},
        r"field 'wavelength'; did you mean 'wavelengths'",
    ),
    "µm": (
        {"wavelengths": [0.48, 0.56, 0.65]},
        r"wavelengths has 0.48; expected nm, 100 to 1e",
    ),
    "widths in µm": (
        {"bandwidths": [0.06] * 3},
        r"bandwidths has 0.06; expected nm.*µm times",
    ),
    "too few": ({"mean": [1, 2]}, r"mean has 2 values; expected 3, one for each of .* B2, B3, B4"),
    "text": ({"std": "wide"}, r"std is 'wide' \(str\); expected one number per band"),
    "std 0": ({"std": [1, 0, 1]}, r"std is 1, 0, 1; expected finite numbers, and no 0"),
    "negative": ({"std": [1, -1, 1]}, r"std is 1, -1, 1; expected positive"),
    "taken": ({"key": "dem"}, r"key 'dem' is that of a published"),
    "key": ({"key": "Landsat 8"}, r"key is 'Landsat 8'; expected small letters"),
    "digit first": ({"key": "2a"}, r"key is '2a'; .* a letter first and 40 at most"),
    "long key": ({"key": "a" * 41}, r"a letter first and 40 at most"),
    "no multiple": ({"input_size": 30}, r"input_size is 30 .* kernel 8; expected .* such as 40"),
    "too large": ({"input_size": 48}, r"input_size is 48 pixels, stored_size 40"),
    "gsd": ({"gsd": 0}, r"gsd is 0; expected the side of a pixel in metres"),
    "size": ({"stored_size": 0}, r"stored_size is 0; expected 1 to"),
    "twice": ({"bands": ["B2", "B2", "B4"]}, r"bands are B2, B2, B4; expected each once"),
    "one text": ({"bands": "B2"}, r"bands is 'B2'; expected a list of names"),
    "a set": ({"bands": {"B2"}}, r"bands is {'B2'}; expected a list of names"),
    "outside": ({"folder": "../images"}, r"folder is '../images'; expected a path inside the tree"),
    "theirs": ({"folder": "Sentinel-2/images/x"}, r"folder 'Sentinel-2/images/x' is, or contains"),
    "above": (
        {"folder": "Sentinel-2"},
        r"folder 'Sentinel-2' is, or contains, that of .* modality",
    ),
    "flag": ({"local": "no"}, r"local is 'no' \(str\); expected True or False"),
    "typical": ({"typical": [5, 1]}, r"typical is not a range"),
    "both": ({"language_key": "x"}, r"expected either wavelengths and bandwidths"),
}


@pytest.mark.parametrize(("change", "message"), BAD.values(), ids=BAD)
def test_a_description_that_cannot_be_used_is_refused(change, message):
    with pytest.raises(OptionError, match=message):
        sensor(FIELDS | change)


ANYTHING = st.one_of(
    *(st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.just(10**400)),
    st.lists(st.one_of(st.integers(), st.floats(), st.text(max_size=4)), max_size=4),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
)


@given(st.dictionaries(st.sampled_from([*FIELDS, *KNOWN, "other"]), ANYTHING, max_size=4))
def test_any_fields_give_a_sensor_or_are_refused(change):
    try:
        found = sensor(FIELDS | change)
    except OptionError:
        return
    assert found.key not in MODALITIES
    assert found.input_size % found.kernel == 0
    assert hash(found) == hash(sensor(found))
    json.dumps(described(found), allow_nan=False)


def test_a_byte_order_mark_and_ends_of_lines_of_windows_say_nothing(toml):
    toml.write_bytes(b"\xef\xbb\xbf" + TOML.replace("\n", "\r\n").encode())
    assert sensor(toml) == sensor(FIELDS)


def test_what_is_missing_is_named_with_the_file(toml):
    toml.write_text(TOML.replace("std =", "# std =").replace("wavelengths =", "# w ="))
    with pytest.raises(OptionError, match=r"landsat8.toml: it lacks std, wavelengths and band"):
        sensor(toml)
    toml.write_text("key = ")
    with pytest.raises(OptionError, match=r"landsat8.toml: not readable as TOML"):
        sensor(toml)
    with pytest.raises(OptionError, match=r"none.toml: no such file"):
        sensor(toml.with_name("none.toml"))
    for odd in (None, 7, ["landsat8"]):
        with pytest.raises(OptionError, match=r"expected a TOML file, fields by name"):
            sensor(odd)
    assert sensors(None) == ()
    with pytest.raises(OptionError, match=r"'landsat8' and 'landsat8' have the same key"):
        sensors([FIELDS, FIELDS])
    with pytest.raises(OptionError, match=r"'landsat8' and 'other' have the same folder"):
        sensors([FIELDS, FIELDS | {"key": "other", "folder": "landsat8/images"}])


def test_keys_follow_the_published_ones():
    assert labels(["b", "a"]) == (*MODALITIES, "a", "b")
    assert select(None, ["a"]) == (*MODALITIES, "a")
    assert select("a,dem", ["a"]) == ("dem", "a")
    with pytest.raises(OptionError, match=r"unknown modality 'landsat9'; did you mean 'landsat8'"):
        select("landsat9", ["landsat8"])


# Variables.


def words(seed=0):
    return np.random.default_rng(seed).normal(size=2048).astype("f4")


def test_a_language_embedding_comes_from_files_and_numbers(tmp_path):
    np.save(tmp_path / "words.npy", words().astype("f8"))
    torch.save({"HCHO": torch.from_numpy(words()), "x": torch.zeros(3)}, tmp_path / "words.pt")
    (tmp_path / "hcho.toml").write_text(
        'key = "hcho"\nlanguage = "words.pt"\nlanguage_key = "HCHO"\n'
        "mean = 0\nstd = 1e-4\ngsd = 1000\nkernel = 4\nstored_size = 28\n"
    )
    found = sensor(tmp_path / "hcho.toml")
    assert np.array_equal(np.frombuffer(found.language, "<f4"), words())
    assert found.bands == ("hcho",)
    for numbers in (tmp_path / "words.npy", words(), words().tolist()):
        assert sensor(VARIABLE | {"language": numbers}).language == found.language
    assert described(found)["language"].startswith("sha256:")
    assert sensor(VARIABLE | {"language_key": "Sentinel 5P Ozone"}).language is None


class Thief:
    def __reduce__(self):
        return print, ("stolen",)


def test_a_file_that_is_no_language_embedding_is_refused(tmp_path, capsys):
    def refused(name, message):
        with pytest.raises(OptionError, match=message):
            sensor(VARIABLE | {"language": tmp_path / name})

    torch.save(Thief(), tmp_path / "thief.pt")
    refused("thief.pt", r"language .*thief.pt: not a file of plain tensors")
    torch.save({"a": torch.zeros(2048), "b": torch.zeros(2048)}, tmp_path / "two.pt")
    refused("two.pt", r"no tensor named None, but 'a', 'b'; give one as language_key")
    torch.save(torch.zeros(768), tmp_path / "short.pt")
    refused("short.pt", r"short.pt is \(768,\) float32; expected 2048 finite")
    np.save(tmp_path / "objects.npy", np.array([Thief()] * 2048), allow_pickle=True)
    refused("objects.npy", r"objects.npy is .*; expected 2048 finite numbers")
    np.save(tmp_path / "whole.npy", np.arange(2048))
    refused("whole.npy", r"whole.npy is \(2048,\) int64; expected 2048")
    np.save(tmp_path / "square.npy", np.zeros((2, 1024)))
    refused("square.npy", r"square.npy is \(2, 1024\) float64")
    torch.save([torch.zeros(2048)], tmp_path / "list.pt")
    refused("list.pt", r"list.pt: it holds a list; expected a tensor")
    torch.save(torch.zeros(2048).bfloat16(), tmp_path / "half.pt")
    refused("half.pt", r"half.pt: its tensor is bfloat16")
    np.save(tmp_path / "nan.npy", np.full(2048, np.nan, "f4"))
    refused("nan.npy", r"nan.npy holds values that are not finite")
    (tmp_path / "text.npy").write_text("hello")
    refused("text.npy", r"text.npy: not readable")
    refused("absent.pt", r"absent.pt: no such file")
    np.save(tmp_path / "cut.npy", words())
    (tmp_path / "cut.npy").write_bytes((tmp_path / "cut.npy").read_bytes()[:-8])
    refused("cut.npy", r"cut.npy: not readable")
    assert "stolen" not in capsys.readouterr().out


@pytest.fixture(scope="module")
def small():
    weights = untrained_weights(0, embed_dim=64, depth=1, heads=1)
    return weights, FrozenEncoder(weights, device="cpu", dtype="float32")


def test_the_encoder_sees_what_the_description_says(small):
    weights, encoder = small
    kind, raw = sensor(FIELDS), np.random.default_rng(1).integers(0, 4000, (2, 3, 32, 32))
    metadata = np.array([[10.0, 50.0, 18687.0, 0.0576]] * 2)
    scale, mean, std = (np.array(FIELDS[n])[:, None, None] for n in ("scale", "mean", "std"))
    with torch.no_grad():
        expected = weights.model(
            torch.from_numpy(((raw * scale - mean) / std).astype("f4")),
            torch.from_numpy(metadata),
            wavelengths=FIELDS["wavelengths"],
            bandwidths=FIELDS["bandwidths"],
            kernel_size=8,
        )
    found = encoder(kind, raw.astype("uint16"), metadata)
    np.testing.assert_allclose(found, expected, rtol=2e-4, atol=2e-4)


def test_the_encoder_makes_the_kernel_of_a_variable_of_its_own_words(small):
    weights, encoder = small
    kind = sensor(VARIABLE | {"language": words()})
    raw, metadata = np.full((1, 1, 28, 28), 2e-4, "f4"), np.array([[10.0, 50.0, 18687.0, 16.0]])
    with torch.no_grad():
        expected = weights.model(
            torch.from_numpy(raw / np.float32(1e-4)),
            torch.from_numpy(metadata),
            language_embedding=torch.from_numpy(words()),
            kernel_size=4,
        )
    np.testing.assert_allclose(encoder(kind, raw, metadata), expected, rtol=2e-4, atol=2e-4)
    other = sensor(VARIABLE | {"language": words(1)})
    assert not np.allclose(encoder(other, raw, metadata), expected, atol=1e-2)


# Builds.


@pytest.mark.slow
def test_images_of_a_sensor_reach_rows_and_cube(built):
    out, report = built
    assert report.images == {"s5p_co": report.images["s5p_co"], "landsat8": 6}
    assert not report.rejected
    assert validate(out) == []
    ds = xr.open_zarr(out, chunks=None)
    counts = ds.n_images_by_modality.values
    assert ds.modality.attrs["flag_meanings"].split() == [*MODALITIES, "landsat8"]
    assert counts[8].sum() == 6
    assert summary(out).images_by_modality["landsat8"] == 6
    about = json.loads(ds.attrs["sensor_landsat8"])
    assert about == described(sensor(FIELDS))
    assert about["wavelengths"] == FIELDS["wavelengths"]
    assert ds.attrs["modalities"].split()[-1] == "landsat8"
    assert ds.attrs["source"] == "Copernicus Sentinel, landsat8 imagery, images"
    assert ds.attrs["title"].startswith("Copernicus Sentinel, landsat8 embeddings on ")
    assert "normalised with pretraining or described statistics" in ds.attrs["preprocessing"]
    file = next(out.with_name("world.build").glob("rows/*.parquet"))
    assert json.loads(read_provenance(file)["sensor_landsat8"]) == about
    assert "landsat8" in ds.copembed._repr_html_()


@pytest.mark.slow
def test_rows_of_a_sensor_give_the_means_that_its_pixels_give(built, tmp_path):
    rows = built[0].with_name("world.build") / "rows"
    report = aggregate(rows, tmp_path / "one.zarr", modalities="landsat8")
    ds = xr.open_zarr(report.cube, chunks=None)
    assert ds.attrs["title"] == "landsat8 embeddings on ERA5's 0.25 degree grid"
    assert "normalised with described statistics" in ds.attrs["preprocessing"]
    for cell, mean in stub_means().items():
        row, col = row_col(cell)
        np.testing.assert_allclose(ds.embedding[row, col], mean, rtol=1e-5)
    aggregate(rows, tmp_path / "both.zarr", by="modality")
    both = xr.open_zarr(tmp_path / "both.zarr", chunks=None)
    names = both.modality.attrs["flag_meanings"].split()
    assert names == [*MODALITIES, "landsat8"]
    row, col = row_col(np.array(CELLS))
    place = {"lat": xr.DataArray(row), "lon": xr.DataArray(col)}
    assert np.array_equal(both.embedding[8].isel(place), ds.embedding.isel(place))


@pytest.mark.slow
def test_a_cube_without_the_sensor_is_one_without_it(built, tree, tmp_path):
    rows = built[0].with_name("world.build") / "rows"
    aggregate(rows, tmp_path / "co.zarr", modalities="s5p_co")
    ds = xr.open_zarr(tmp_path / "co.zarr", chunks=None)
    assert ds.sizes["modality"] == 8
    assert "sensor_landsat8" not in ds.attrs
    assert ds.attrs["title"].startswith("Copernicus Sentinel embeddings on ")
    assert "normalised with pretraining statistics" in ds.attrs["preprocessing"]
    assert validate(tmp_path / "co.zarr") == []


@pytest.mark.slow
def test_all_vary_alike_with_a_sensor_too(built, tmp_path):
    rows = built[0].with_name("world.build") / "rows"
    aggregate(rows, tmp_path / "even.zarr", balance="variance")
    scales = xr.open_zarr(tmp_path / "even.zarr").attrs["aggregation_scales"]
    assert [part.split(":")[0] for part in scales.split()] == ["s5p_co", "landsat8"]
    aggregate(rows, tmp_path / "both.zarr", by="modality")
    for path in (tmp_path / "even.zarr", tmp_path / "both.zarr"):
        assert validate(path) == []


@pytest.mark.slow
def test_a_build_goes_on_with_the_same_sensor_alone(built, tree, tmp_path, toml):
    out, _ = built
    before = BuildFolder(out).plan().id
    assert build(tree, out, sensors=[toml], encoder=StubSpec()).resumed > 0
    assert BuildFolder(out).plan().id == before
    with pytest.raises(BuildError, match=r"options.sensors.landsat8.gsd: was 30.0, now 15.0"):
        build(tree, out, sensors=FIELDS | {"gsd": 15}, encoder=StubSpec())
    with pytest.raises(BuildError, match=r"options.modalities"):
        build(tree, out, encoder=StubSpec())
    # What people call it decides nothing.
    build(tree, out, sensors=FIELDS | {"title": "OLI"}, encoder=StubSpec())


def test_a_sensor_that_is_not_chosen_is_not_in_the_plan(tree, tmp_path):
    plans = []
    for name, own in (("a", FIELDS), ("b", None)):
        options = {"modalities": "s5p_co", "encoder": StubEncoder(), "partitions": 0}
        build(tree, tmp_path / f"{name}.zarr", sensors=own, **options)
        plans.append(BuildFolder(tmp_path / f"{name}.zarr").plan())
    assert plans[0].options == plans[1].options
    assert "sensors" not in plans[0].options


@pytest.mark.slow
def test_rows_of_two_sensors_of_one_key_are_not_mixed(built, tree, tmp_path):
    rows = built[0].with_name("world.build") / "rows"
    own = FIELDS | {"mean": [0, 0, 0]}
    build(tree, tmp_path / "x.zarr", sensors=own, encoder=StubSpec(), partitions=0)
    (other,) = (tmp_path / "x.build" / "rows").glob("*.parquet")
    (tmp_path / "both").mkdir()
    first = next(iter(sorted(rows.glob("*.parquet"))))
    (tmp_path / "both" / "a.parquet").write_bytes(first.read_bytes())
    (tmp_path / "both" / "b.parquet").write_bytes(other.read_bytes())
    with pytest.raises(RowsError, match=r"a.parquet and .*b.parquet hold images of different sens"):
        aggregate(tmp_path / "both", tmp_path / "d.zarr", duplicates="drop")
    aggregate(tmp_path / "both", tmp_path / "c.zarr", duplicates="drop", modalities="s5p_co")


@pytest.mark.slow
def test_workers_know_the_sensor(built, tree, tmp_path):
    report = build(tree, tmp_path / "w.zarr", sensors=FIELDS, encoder=StubSpec(), workers=1)
    assert report.images["landsat8"] == 6
    one, other = (xr.open_zarr(path, chunks=None) for path in (built[0], tmp_path / "w.zarr"))
    assert one.identical(other)


def test_the_command_takes_a_file(tree, toml, tmp_path, capsys, monkeypatch, no_encoders):
    monkeypatch.setattr(copcube.encoder.EncoderSpec, "load", lambda self: StubEncoder())
    out = str(tmp_path / "world.zarr")
    weights = ["--modalities", "landsat8"]
    assert main(["build", str(tree), out, "--sensor", str(toml), "--dry-run", *weights]) == 0
    assert re.search(r"landsat8\s+6 images", capsys.readouterr().out)
    assert main(["build", str(tree), out, *weights]) != 0
    assert "unknown modality 'landsat8'" in capsys.readouterr().err
    weights += ["--sensor", str(toml), "--partitions", "0"]
    assert main(["build", str(tree), out, *weights]) == 0
    assert re.search(r"landsat8: \d", capsys.readouterr().err)


def test_an_estimate_counts_its_images(tree, tmp_path):
    found = estimate(tree, tmp_path / "a.zarr", sensors=FIELDS, encoder=StubEncoder())
    assert found.images["landsat8"] == 6


def test_a_tree_of_nothing_else_is_a_source(tmp_path):
    for path, pixels in images_of().items():
        write(tmp_path / path, pixels)
    with pytest.raises(CopcubeError, match="expected a GeoTIFF tree"):
        open_source(tmp_path)
    source = open_source(tmp_path, sensors(FIELDS))
    assert sum(partition.images for partition in source.partitions()) == 6


def test_a_listing_decides_once_it_names_images_of_the_sensor(tree, tmp_path):
    """The sample's own listing, by which the other tests read, names none."""
    path = next(iter(images_of()))
    cell = path.split("/")[2]
    (tmp_path / "landsat8").symlink_to(tree / "landsat8")
    mine = tmp_path / "fnames_mine.json"
    listing = {str(int(cell[:7])): {"grid_id_coord": cell, "landsat8": [path]}}
    mine.write_text(json.dumps(listing))
    source = open_source(mine, sensors(FIELDS))
    assert [p.paths for p in source.partitions()] == [(path,)]
    mine.write_text(json.dumps({str(int(cell[:7])): {"grid_id_coord": cell}}))
    assert sum(p.images for p in source.partitions()) == 6


def test_images_that_are_none_of_the_sensor_are_left_out(tmp_path):
    pixels = next(iter(images_of().values()))
    folder = tmp_path / "landsat8" / "images" / format_cell(CELLS[0])
    write(folder / "good_20210301.tif", pixels)
    write(folder / "two_bands_20210302.tif", pixels[:2])
    write(folder / "no_date.tif", pixels)
    write(folder / "other_bands_20210303.tif", pixels, ("B5", "B6", "B7"))
    out = tmp_path / "world.zarr"
    report = build(tmp_path, out, sensors=FIELDS, encoder=StubEncoder(), partitions=None)
    assert (report.images, report.rejected) == ({"landsat8": 1}, {"broken": 3})
    lines = (tmp_path / "world.build" / "quarantine.parquet").read_bytes()
    assert lines


def test_shards_hold_a_sensor_by_its_key(tmp_path):
    kind = sensor(FIELDS)
    pixels = torch.from_numpy(
        np.random.default_rng(3).integers(1, 3000, (2, *kind.shape)).astype("int16")
    )
    cell, dates = format_cell(CELLS[0]), ("20210301", "20210402")
    names = {"landsat8": [f"{cell}/{date}" for date in dates]}
    buffer = io.BytesIO()
    torch.save(pixels, buffer)
    with tarfile.open(tmp_path / "example-000000.tar", "w") as archive:
        for name, content in (
            (f"{CELLS[0]:07d}.landsat8.pth", buffer.getvalue()),
            (f"{CELLS[0]:07d}.json", json.dumps(names).encode()),
        ):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    out = tmp_path / "world.zarr"
    report = build(tmp_path, out, sensors=kind, encoder=StubEncoder(), crop="full")
    assert report.images == {"landsat8": 2}
    found = read_rows(next((tmp_path / "world.build" / "rows").glob("*.parquet")))
    assert found.labels[found.modality[0]] == "landsat8"
    lat, lon = centre(CELLS[0])
    metadata = np.array([lon, lat, 18687, 0.0])
    assert np.allclose(found.embedding[0], StubEncoder.vector(pixels[0].numpy(), metadata))


def test_what_rows_of_others_say_of_sensors_is_looked_at(tmp_path):
    found = random_rows(6, 3, 4, 0)
    odd = {"sensor_two words": "{}", "sensor_dem": "{}", "sensor_landsat8": "{}"}
    write_rows(tmp_path / "rows.parquet", found, odd)
    assert read_rows(tmp_path / "rows.parquet").labels == (*MODALITIES, "landsat8")
    known = replace(found, modality=np.full_like(found.modality, 8), labels=labels(["planet"]))
    write_rows(tmp_path / "rows.parquet", known, odd)
    with pytest.raises(RowsError, match=r"unknown modality planet; expected .* dem, landsat8"):
        read_rows(tmp_path / "rows.parquet")


def test_rows_are_counted_through_other_labels():
    found = random_rows(6, 3, 4, 0)
    own = replace(found, modality=np.full_like(found.modality, 8), labels=labels(["planet"]))
    both = Rows.concatenate([found, own, found.labelled(labels(["b"]))])
    assert both.labels == (*MODALITIES, "b", "planet")
    assert set(both.modality[len(found) : len(found) + len(own)]) == {9}
    assert (both.labelled(tuple(MODALITIES)).modality[len(found) :][: len(own)] == -1).all()


# Embedding.


def test_embed_takes_a_description(toml, caplog):
    image = xr.DataArray(
        np.random.default_rng(0).integers(1, 4000, (3, 64, 64)),
        dims=("band", "lat", "lon"),
        coords={"band": ["B4", "B2", "B3"], "lat": 50 - AXIS, "lon": 10 + AXIS},
    )
    encoder = StubEncoder()
    found = copcube.embed(image, toml, encoder=encoder, gsd=30, date="2021-03-01")
    assert found.shape == (2, 2, 8)
    assert found.attrs["modality"] == "landsat8"
    assert encoder.calls[0][0] == sensor(toml)
    tile = image.sel(band=["B2", "B3", "B4"]).values[:, :32, :32]
    assert np.allclose(found[0, 0, :5], StubEncoder.vector(tile, np.zeros(4))[:5])
    with pytest.raises(OptionError, match=r"with no B2, B3, B4; expected the 3 of Landsat 8"):
        copcube.embed(image.assign_coords(band=["B7", "B8", "B9"]), str(toml), encoder=encoder)


def test_embed_batch_takes_a_description(small):
    raw = np.random.default_rng(0).integers(1, 4000, (2, 3, 40, 40)).astype("int16")
    raw[:, :, ::2] *= -1  # whole numbers of others do not wrap
    place = {"lon": 10.0, "lat": 50.0, "date": "2021-03-01"}
    found = copcube.embed_batch(raw, FIELDS, encoder=small[1], **place)
    metadata = np.array([[10.0, 50.0, 18687.0, 0.0576]] * 2)
    expected = small[1](sensor(FIELDS), raw[:, :, 4:36, 4:36].astype("f4"), metadata)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_nothing_is_mended_of_sensors_that_are_like_published_ones():
    """Those of the benchmark's tasks too: their images hold zeros and no wrapped counts."""
    wrapped, huge = np.full((13, 4, 4), -5, "int16"), np.full((21, 4, 4), 1e9, "f4")
    own = sensor(replace(modality("s2_toa"), key="s2", folders=("s2/images",)))
    for kind in (own, *(task.sensor for task in TASKS.values())):
        if len(kind.bands) == 13:
            assert mend(wrapped, kind)[0] is wrapped
        if len(kind.bands) == 21:
            assert not mend(huge, kind)[1]
        assert kind is own or has_valid_pixel(np.zeros((len(kind.bands), 4, 4)), kind)


# Other lengths of vectors.


@pytest.mark.slow
def test_vectors_of_another_length_go_all_the_way(tree, tmp_path):
    encoder = FrozenEncoder(
        untrained_weights(0, embed_dim=1024, depth=1, heads=16), device="cpu", dtype="float32"
    )
    out = tmp_path / "large.zarr"
    build(tree, out, sensors=FIELDS, modalities="landsat8,s5p_co", encoder=as_encoder(encoder))
    ds = xr.open_zarr(out, chunks=None)
    assert ds.sizes["dim"] == 1024
    assert validate(out) == []
    fields = reduce(ds, k=2)
    assert fields["components"].sizes["dim"] == 1024
