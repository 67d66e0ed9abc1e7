"""A NumPy batch, and the other doors through which the same pixels come."""

import datetime

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr
from stub import StubEncoder
from test_webdataset import KEY, LOCAL, sample, saved, shard, tensor

import copcube
from copcube.embedding.batch import embed_batch
from copcube.embedding.tiles import embed
from copcube.encoder import FrozenEncoder
from copcube.errors import OptionError
from copcube.modalities import MODALITIES
from copcube.rows import read_rows

S2, S3, S5P, DEM = (MODALITIES[key] for key in ("s2_toa", "s3_olci", "s5p_co", "dem"))
DATES = ["20210301", "20200715"]
DAYS = [18687.0, 18458.0]
PLACES = [(-95.92, 43.96), (-96.01, 44.02)]


def published(modality):
    """A tensor as a published shard may hold it: wrapped counts, two bands 1e9 too large."""
    if modality is S2:
        counts = np.random.default_rng(0).integers(20_000, 50_000, (2, 2, *S2.shape), "uint16")
        return counts.view("int16")
    values = tensor(modality, (2,)).numpy()
    values[:, [0, 9]] *= 1e9
    return values


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """Vectors of a build from a shard of such tensors, by modality, local patch and date."""
    folder = tmp_path_factory.mktemp("doors")
    members = sample(KEY, [S2, S3])
    for modality in (S2, S3):
        tensor = saved(torch.from_numpy(published(modality)))
        members[f"{KEY}.{modality.key}.pth"] = tensor
    shard(folder / "example-000000.tar", members)
    copcube.build(folder / "example-000000.tar", folder / "w.zarr", encoder=StubEncoder())
    found = read_rows(folder / "w.build" / "rows" / "example-000000.parquet")
    names = zip(found.modality, found.local_id, found.date, strict=True)
    return dict(zip(names, found.embedding, strict=True))


def by_name(rows, modality):
    """The rows of a modality in the order of its published tensor."""
    order = list(MODALITIES).index(modality.key)
    local = LOCAL if modality.local else [None]
    found = [[rows[order, patch, date] for date in DATES] for patch in local]
    return np.array(found if modality.local else found[0])


@pytest.mark.slow
def test_a_batch_has_the_vectors_of_a_build(rows):
    lon, lat = np.array(PLACES).T[..., None]
    found = embed_batch(
        published(S2), "s2_toa", lon=lon, lat=lat, date=DATES, encoder=StubEncoder()
    )
    assert found.shape == (2, 2, 8)
    np.testing.assert_array_equal(found, by_name(rows, S2))
    options = {"lon": -96, "lat": 44, "date": DATES, "encoder": StubEncoder()}
    found = embed_batch(published(S3), "s3_olci", **options)
    np.testing.assert_array_equal(found, by_name(rows, S3))


@pytest.mark.slow
@pytest.mark.parametrize("modality", [S2, S3])
def test_tiles_have_the_pixels_of_a_build(rows, modality):
    size = modality.input_size
    edge = (modality.stored_size - size) // 2
    pixels = published(modality)[..., edge : edge + size, edge : edge + size]
    lead = ("patch", "time")[-(pixels.ndim - 3) :]
    degrees = {"lat": 44 - np.arange(size) * 1e-4, "lon": -96 + np.arange(size) * 1e-4}
    images = xr.DataArray(pixels, dims=(*lead, "band", "lat", "lon"), coords=degrees)
    found = embed(images, modality.key, encoder=StubEncoder(), date="2021-03-01").values
    expected = by_name(rows, modality)
    np.testing.assert_array_equal(found[..., 0, 0, :5], expected[..., :5])
    kept = embed(
        images,
        modality.key,
        encoder=StubEncoder(),
        date="2021-03-01",
        mean=[0] * len(modality.bands),
        std=[1] * len(modality.bands),
    )
    assert (kept.values[..., 0] != found[..., 0]).all()


@pytest.mark.parametrize("modality", [S2, S3])
def test_the_encoder_mends_what_it_is_given(modality):
    from test_frozen import TINY

    encoder = FrozenEncoder(TINY, device="cpu", dtype="float32")
    raw = published(modality).reshape(-1, *modality.shape)[:2, :, :32, :32]
    mended = raw.view("uint16") if modality is S2 else raw.copy()
    if modality is S3:
        mended[:, [0, 9]] *= 1e-9
    rows = np.full((2, 4), np.nan)
    np.testing.assert_array_equal(
        encoder(modality.key, raw, rows), encoder(modality.key, mended, rows)
    )


@pytest.mark.parametrize(
    "date",
    [
        ["2021-03-01", "2020-07-15"],
        [20210301, 20200715],
        np.array(["2021-03-01T23", "2020-07-15"], "M8[ns]"),
        [datetime.date(2021, 3, 1), datetime.datetime(2020, 7, 15, 5)],
        pd.DatetimeIndex(["2021-03-01", "2020-07-15"]),
    ],
)
def test_metadata_for_each_image(date):
    images = tensor(S5P, (2,)).numpy()
    found = embed_batch(
        images, "s5p_co", lon=[-180, 359.75], lat=[-90, 44.5], date=date, encoder=StubEncoder()
    )
    np.testing.assert_array_equal(found[:, 5:], [[-180, -90, DAYS[0]], [-0.25, 44.5, DAYS[1]]])


class Metadata(StubEncoder):
    """Vectors that are the metadata, with -1 for NaN."""

    def __call__(self, modality, pixels, metadata):
        return np.nan_to_num(np.concatenate([metadata, metadata], axis=1), nan=-1)


def test_what_is_unknown_is_said(caplog):
    images = tensor(S5P, (2,)).numpy() / 1e5  # mol m⁻²
    found = embed_batch(
        images, "s5p_co", lon=[1, None], date=["20210301", None], encoder=Metadata()
    )
    np.testing.assert_array_equal(found[:, :4], [[1, -1, DAYS[0], 16], [-1, -1, -1, 16]])
    assert [record.getMessage() for record in caplog.records] == [
        "1 images are embedded without lon=",
        "2 images are embedded without lat=",
        "1 images are embedded without date=",
    ]
    dem = embed_batch(tensor(DEM, ()).numpy(), "dem", lon=1, lat=2, encoder=StubEncoder())
    np.testing.assert_array_equal(dem[5:], [1, 2, 16436])


def test_what_is_strange_or_not_finite_is_said(caplog):
    images = np.full((3, *S2.shape), 5000.0)
    images[1:] /= 10_000

    class Infinite(StubEncoder):
        def __call__(self, modality, pixels, metadata):
            return super().__call__(modality, pixels, metadata) / (metadata[:, :1] > 1)

    options = {"lon": [1, 2, 3], "lat": 2, "date": "20210301", "encoder": Infinite()}
    with np.errstate(divide="ignore", invalid="ignore"):
        found = embed_batch(images, "s2_toa", **options)
    assert np.isnan(found).all(axis=1).tolist() == [True, False, False]
    left_out, units = (record.getMessage() for record in caplog.records)
    assert left_out.startswith("image 0 is left out: its vector holds values that are not finite")
    assert "image 1 has a median of 0.5; Sentinel-2 TOA is expected in counts" in units


def test_an_offset_is_subtracted():
    images = np.full((1, *S2.shape), 5000, np.uint16)
    options = {"lon": 1, "lat": 2, "date": "20210301", "encoder": StubEncoder()}
    assert embed_batch(images, "s2_toa", s2_offset=1000, **options)[0, 0] == 4000
    for small in (np.uint8, np.int8):  # which hold no number as large as the offset
        few = np.full_like(images, 100, small)
        assert embed_batch(few, "s2_toa", s2_offset=1000, **options)[0, 0] == 1
    with pytest.raises(OptionError, match="s2_offset= is for Sentinel-2 counts"):
        embed_batch(tensor(S5P, (2,)).numpy(), "s5p_co", s2_offset=1000, **options)
    with pytest.raises(OptionError, match="s2_offset is -1"):
        embed_batch(images, "s2_toa", s2_offset=-1, **options)


def test_images_without_a_valid_pixel_have_no_vector():
    images = np.zeros((3, *S2.shape), np.int16)
    images[1] = 5
    encoder = StubEncoder()
    found = embed_batch(images, "s2_toa", lon=1, lat=2, date="20210301", encoder=encoder)
    assert np.isnan(found[[0, 2]]).all()
    assert np.isfinite(found[1]).all()
    assert encoder.calls == [("s2_toa", (1, 13, 224, 224))]


def test_batches_and_crops():
    images, encoder = np.ones((5, *S2.shape), np.uint16), StubEncoder()
    options = {"lon": 1, "lat": 2, "date": "20210301", "encoder": encoder}
    embed_batch(images, "s2_toa", crop="full", batch_size=3, **options)
    embed_batch(images[..., :64, :64], "s2_toa", **options)
    assert encoder.calls == [
        ("s2_toa", (3, 13, 264, 264)),
        ("s2_toa", (2, 13, 264, 264)),
        ("s2_toa", (4, 13, 64, 64)),
        ("s2_toa", (1, 13, 64, 64)),
    ]
    assert embed_batch(images[:0], "s2_toa", **options).shape == (0, 8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": np.ones((2, 3, 28, 28))}, r"shape \(2, 3, 28, 28\); expected \(…, 1, rows"),
        ({"images": np.ones((28, 28))}, "expected"),
        ({"images": np.ones((1, 28, 20))}, "28 × 20 pixels; expected squares of at least 4"),
        ({"images": np.ones((1, 2, 2))}, "2 × 2 pixels"),
        ({"images": np.ones((1, 28, 28), complex)}, "dtype complex128"),
        ({"images": [[["a"]]]}, "expected real numbers"),
        ({"modality": "s5p"}, "unknown modality"),
        ({"lon": [1, 2, 3]}, r"lon does not fit images of shape \(2,\)"),
        ({"lon": "west"}, "lon does not fit"),
        ({"lat": 91}, "lat is 91; expected degrees, at most 90 from 0"),
        ({"lon": 361}, "lon is 361"),
        ({"date": "someday"}, "someday"),
        ({"date": ["20210301"] * 3}, "date does not fit"),
        ({"crop": "middle"}, "crop='middle'; expected center or full"),
        ({"images": [np.ones((1, 28, 28)), np.ones((1, 30, 30))]}, "of each size separately"),
        ({"images": xr.Dataset({"co": (("y", "x"), np.ones((28, 28)))})}, "a Dataset, which is no"),
        ({"lon": np.datetime64("1970-01-02")}, r"lon does not fit.*holds datetime64"),
        ({"lat": True}, "lat does not fit.*holds bool"),
        ({"lon": 1 + 2j}, "lon does not fit.*holds complex"),
        ({"date": np.datetime64("2021")}, "a whole year, month or week"),
        ({"date": np.array(["2021-03"], "M8[M]")}, "a whole year, month or week"),
        ({"batch_size": -1}, "batch_size is -1; expected 1 or more"),
        ({"batch_size": 2.5}, "batch_size is 2.5"),
    ],
)
def test_what_does_not_fit_is_refused(change, message):
    given = {"images": np.ones((2, 1, 28, 28)), "modality": "s5p_co", "lon": 1, "lat": 2}
    with pytest.raises(OptionError, match=message):
        embed_batch(**given | {"date": "20210301"} | change, encoder=StubEncoder())


def test_what_is_masked_is_no_data_and_unknown():
    given = {"lat": 2, "date": "20210301", "encoder": StubEncoder()}
    decibels = np.random.default_rng(0).normal(-15, 4, (2, 2, 32, 32)).astype("f4")
    hidden = np.zeros(decibels.shape, bool)
    hidden[0, :, :9] = True
    masked = np.ma.array(np.where(hidden, -9999, decibels), mask=hidden)
    known = {"lon": [1, np.nan], "date": ["20210301", None]}
    expected = embed_batch(np.where(hidden, np.nan, decibels), "s1_grd", **given | known)
    lon = np.ma.array([1.0, 77.0], mask=[False, True])
    for dates in (np.ma.array([20210301, 0], mask=lon.mask), np.ma.array(["2021-03-01"] * 2)):
        dates = np.ma.array(dates.data if dates.dtype.kind == "i" else dates.astype("M8[D]").data)
        dates.mask = lon.mask
        for images in (masked, list(masked)):
            found = embed_batch(images, "s1_grd", **given | {"lon": lon, "date": dates})
            np.testing.assert_array_equal(found, expected)
    assert np.isnan(embed_batch(np.ma.array(decibels, mask=True), "s1_grd", **given)).all()
    counts = np.random.default_rng(0).integers(40_000, 60_000, (13, 32, 32), "uint16")
    expected = embed_batch(np.where(hidden[0, :1], 0, counts), "s2_toa", lon=1, **given)
    masked = np.ma.array(counts.view("int16"), mask=np.broadcast_to(hidden[0, :1], counts.shape))
    np.testing.assert_array_equal(embed_batch(masked, "s2_toa", lon=1, **given), expected)


def test_labels_and_nodata_of_an_xarray_image_are_heeded():
    given = {"lon": 1, "lat": 2, "date": "20210301", "encoder": StubEncoder()}
    pixels = np.random.default_rng(0).normal(-15, 4, (3, 2, 32, 32)).astype("f4")
    expected = embed_batch(pixels, "s1_grd", **given)
    images = xr.DataArray(pixels, dims=("n", "band", "y", "x"), coords={"band": ["VV", "VH"]})
    for shown in (images, images.isel(band=[1, 0]), images.transpose("n", "y", "x", "band")):
        np.testing.assert_array_equal(embed_batch(shown, "s1_grd", **given), expected)
    with pytest.raises(OptionError, match="no VV"):
        embed_batch(images.assign_coords(band=["HH", "VH"])[:, 1:], "s1_grd", **given)
    pixels[0, :, :9] = np.nan
    marked = images.fillna(-9999).assign_attrs(_FillValue=-9999)
    marked[0, :, :9] = -9999
    np.testing.assert_array_equal(
        embed_batch(marked, "s1_grd", **given), embed_batch(pixels, "s1_grd", **given)
    )
    height = xr.DataArray(np.full((64, 64), 50, "i2"), dims=("y", "x"), attrs={"scale_factor": 10})
    assert embed_batch(height, "dem", **given)[0] == 500


def test_tensors_of_torch_come_as_they_are():
    given = {"lon": 1, "lat": 2, "date": "20210301", "encoder": StubEncoder()}
    images = torch.full((2, 1, 28, 28), 0.5, requires_grad=True)
    expected = embed_batch(np.full((2, 1, 28, 28), 0.5, "f4"), "s5p_co", **given)
    for same in (images, images.detach().bfloat16(), list(images.detach())):
        np.testing.assert_array_equal(embed_batch(same, "s5p_co", **given), expected)
