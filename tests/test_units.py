"""Units of pixels: what is far outside is said once; the offset of Sentinel-2 is subtracted."""

import dask
import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from stub import StubEncoder

from copcube.builds import aggregate, build
from copcube.embedding.partition import crop_image
from copcube.embedding.tiles import embed
from copcube.errors import BuildError, OptionError
from copcube.images import Image, open_source
from copcube.images.sample.writing import write_sample
from copcube.images.units import remedy, strange, without_offset
from copcube.modalities import MODALITIES
from copcube.selection import Selection

RNG = np.random.default_rng(0)


class Stub(StubEncoder):
    """Takes the further arguments of `embed` too."""

    def __call__(self, modality, pixels, metadata, tokens=False):
        return super().__call__(modality, pixels, metadata)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sample") / "images"
    write_sample(folder, cells=3, seed=1)
    return folder


def sample(images, modalities=None):
    source = open_source(images)
    for partition in source.partitions():
        for job in source.jobs(partition, Selection.of(modalities)):
            yield from (item for item in job() if isinstance(item, Image))


@pytest.mark.slow
def test_what_is_in_the_published_units_is_not_strange(images):
    seen = set()
    for item in sample(images):
        image = crop_image(item, MODALITIES[item.modality], "center")
        assert strange(image.pixels, MODALITIES[image.modality]) is None, image.origin
        seen.add(image.modality)
    assert seen == set(MODALITIES)


@pytest.mark.parametrize(
    ("key", "change", "what"),
    [
        ("s1_grd", lambda x: 10 ** (x / 10), "a median of 0.0"),  # linear power
        ("s1_grd", lambda x: 10 ** (x / 20), "a median of 0."),  # amplitude
        ("s1_grd", lambda x: 100 * x, "a median of -"),
        ("s1_grd", lambda x: np.where(x < -10, -9999, x), "pixels of -9999"),
        ("s2_toa", lambda x: x / 10000, "a median of 0."),
        ("s5p_co", lambda x: x * 6.02214e19, "pixels of "),
        ("s5p_no2", lambda x: x * 1e6, "a median of "),
        ("s5p_o3", lambda x: x * 2241.5, "a median of "),
        ("dem", lambda x: np.where(x >= 0, -32768, x), "pixels of -32768"),
        ("dem", lambda x: x * 100 + 1e4, "a median of"),
    ],
)
def test_the_usual_mistakes_are_strange(images, key, change, what):
    found = [
        strange(change(item.pixels.astype("float32")), MODALITIES[key])
        for item in sample(images, key)
    ]
    assert len(found) > 2
    assert all(text is not None and text.startswith(what) for text in found)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int16"])
def test_pixels_of_any_type_are_compared_without_a_warning(dtype):
    # The bounds of what is possible are beyond float16, of whose overflow NumPy warned.
    assert strange(np.full((13, 8, 8), 1200, dtype), MODALITIES["s2_toa"]) is None
    pixels = np.full((13, 8, 8), -9999, dtype)
    assert strange(pixels, MODALITIES["s2_toa"]) == f"pixels of {pixels[0, 0, 0]:.7g}"


def test_every_modality_says_its_units_and_a_remedy():
    for modality in MODALITIES.values():
        low, high = modality.typical
        assert low < high
        assert modality.units in remedy(modality)
        assert modality.remedy in remedy(modality)
    units = [MODALITIES[key].units for key in ("s1_grd", "s5p_co", "dem")]
    assert units == ["dB", "mol m-2", "m"]


@given(
    arrays("uint16", (13, 3, 3)),
    st.integers(0, 10_000),
    st.sampled_from(["uint16", "int32", "float32"]),
)
def test_counts_are_lowered_without_becoming_missing(counts, offset, dtype):
    pixels = counts.astype(dtype)
    lowered = without_offset(pixels, offset)
    assert lowered.dtype == pixels.dtype
    expected = np.where(counts == 0, 0, np.maximum(counts.astype("int64") - offset, 1))
    np.testing.assert_array_equal(lowered, expected if offset else counts)
    if dtype == "float32":
        assert np.isnan(without_offset(np.full((13, 2, 2), np.nan, dtype), offset)).all()


def own(change=lambda x: x, **coords):
    counts = RNG.integers(300, 4000, (13, 448, 448)).astype("float32")
    return xr.DataArray(change(counts), dims=("band", "y", "x"), coords=coords)


@pytest.mark.parametrize("lazy", [False, True])
def test_one_warning_names_value_and_remedy(caplog, lazy):
    images = own(lambda x: x / 10000)
    result = embed(images.chunk(x=224) if lazy else images, "s2_toa", encoder=Stub(), date=20210601)
    dask.compute(result)
    (line,) = [r.message for r in caplog.records if "median" in r.message]
    assert "images has a median of 0.2" in line
    assert "Sentinel-2 TOA is expected in counts" in line
    assert "multiply reflectances of 0 to 1 by 10,000" in line
    caplog.clear()
    embed(own(), "s2_toa", encoder=Stub(), date=20210601)
    statistics = {"mean": [0.2] * 13, "std": [0.1] * 13}
    embed(images, "s2_toa", encoder=Stub(), date=20210601, **statistics)
    assert "median" not in caplog.text


def test_the_graph_of_an_image_stays_the_same():
    images = own().chunk(x=224)
    encoder = Stub()
    one, other = (embed(images, "s2_toa", encoder=encoder, date=20210601) for _ in range(2))
    assert one.data.name == other.data.name


def test_an_offset_is_subtracted_from_one_s_own_imagery():
    low, encoder = own(), Stub()
    high = low + 1000
    low[:, :9], high[:, :9] = 0, 0
    want = embed(low, "s2_toa", encoder=encoder, date=20210601)
    for lazy in (high, high.astype("uint16").chunk(x=224)):
        found = embed(lazy, "s2_toa", encoder=encoder, date=20210601, s2_offset=1000)
        np.testing.assert_array_equal(found, want)
        assert found.attrs["s2_offset"] == 1000
    assert "s2_offset" not in want.attrs
    for key, offset in (("s2_toa", -1), ("s2_toa", 1000.0), ("s2_toa", True), ("s1_grd", 1000)):
        with pytest.raises(OptionError, match="s2_offset"):
            embed(low, key, encoder=encoder, date=20210601, s2_offset=offset)


@pytest.mark.parametrize(
    ("said", "warned"),
    [("05.09", True), ("04.00", True), ("03.01", False), ("2.14", False), ("", False), (5.1, True)],
)
def test_a_known_baseline_is_spoken_of(caplog, said, warned):
    for images in (
        own(**{"s2:processing_baseline": said}),
        own().assign_attrs({"processing:version": said}),
    ):
        caplog.clear()
        embed(images, "s2_toa", encoder=Stub(), date=20210601)
        assert ("s2_offset=1000" in caplog.text) == warned
        caplog.clear()
        embed(images, "s2_toa", encoder=Stub(), date=20210601, s2_offset=1000)
        assert "baseline" not in caplog.text


@pytest.mark.slow
def test_a_build_subtracts_an_offset_and_says_so(images, tmp_path):
    one, other = tmp_path / "one.zarr", tmp_path / "other.zarr"
    build(images, one, encoder=StubEncoder(), modalities=["s2_toa", "dem"])
    report = build(
        images, other, encoder=StubEncoder(), modalities=["s2_toa", "dem"], s2_offset=200
    )
    assert set(report.images) == {"s2_toa", "dem"}
    plain, lowered = (xr.open_zarr(path, chunks=None) for path in (one, other))
    assert lowered.attrs["preprocessing"].endswith(", 200 subtracted from Sentinel-2 counts")
    assert plain.attrs["preprocessing"] == lowered.attrs["preprocessing"].split(", 200")[0]
    there = plain.n_images.values > 0
    apart = np.abs(plain.embedding.values - lowered.embedding.values)[there].max(axis=-1)
    assert (apart > 1).all()
    # As of scenes of both baselines.
    for name in ("one", "other"):
        rows = next((tmp_path / f"{name}.build" / "rows").glob("*.parquet"))
        (tmp_path / f"{name}.parquet").symlink_to(rows)
    aggregate(tmp_path / "o*.parquet", tmp_path / "both.zarr", duplicates="drop")
    both = xr.open_zarr(tmp_path / "both.zarr", chunks=None)
    assert both.attrs["preprocessing"].endswith(", 0 or 200 subtracted from Sentinel-2 counts")
    aggregate(tmp_path / "other.parquet", tmp_path / "dem.zarr", modalities=["dem"])
    dem = xr.open_zarr(tmp_path / "dem.zarr", chunks=None)
    assert "subtracted" not in dem.attrs["preprocessing"]
    with pytest.raises(BuildError, match=r"options\.s2_offset: was nothing, now 200"):
        build(images, one, encoder=StubEncoder(), modalities=["s2_toa", "dem"], s2_offset=200)
    with pytest.raises(OptionError, match="s2_offset is -1"):
        build(images, tmp_path / "x.zarr", encoder=StubEncoder(), s2_offset=-1)


def test_an_offset_may_be_a_number_of_any_type():
    image = xr.DataArray(np.full((13, 32, 32), 3000, "u2"), dims=("band", "y", "x"))
    options = {"tile": 16, "encoder": StubEncoder(), "date": "2021-06-01"}
    plain = embed(image, "s2_toa", s2_offset=1000, **options)
    for offset in (np.int64(1000), np.uint16(1000), np.array(1000)):
        same = embed(image, "s2_toa", s2_offset=offset, **options)
        xr.testing.assert_identical(same, plain)
        assert type(same.attrs["s2_offset"]) is int
    for wrong in (1000.0, "1000", True, 10_001):
        with pytest.raises(OptionError, match=r"s2_offset is .* 1000 for Sentinel-2 of processing"):
            embed(image, "s2_toa", s2_offset=wrong, **options)


@pytest.mark.slow
def test_a_build_says_once_that_images_are_strange(images, tmp_path, caplog, monkeypatch):
    from copcube.images import geotiff

    decode = geotiff._decode
    monkeypatch.setattr(
        geotiff,
        "_decode",
        lambda raw, m, _: 10 ** (decode(raw, m) / 10) if m.key == "s1_grd" else decode(raw, m),
    )
    build(images, tmp_path / "w.zarr", encoder=StubEncoder(), modalities=["s1_grd", "dem"])
    (line,) = [r.message for r in caplog.records if "median" in r.message]
    assert "s1_grd_utm/images" in line
    assert "10 * log10(power)" in line
    attrs = xr.open_zarr(tmp_path / "w.zarr").attrs
    assert attrs["images_strange"] == f"s1_grd:{len([*sample(images, 's1_grd')])}"
