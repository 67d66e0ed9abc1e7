"""Lazy embedding of one's own imagery: places, dates, laziness, blocks, errors."""

import datetime
import logging
import pickle
import re
import runpy
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import cftime
import cloudpickle
import dask
import dask.array as da
import numpy as np
import pandas as pd
import pyproj
import pytest
import rioxarray
import xarray as xr
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st

from copcube.embedding import as_encoder
from copcube.embedding.encoders import LOADED_AT_ONCE, _load
from copcube.embedding.tiles import embed
from copcube.errors import OptionError
from copcube.modalities import MODALITIES

# rioxarray multiplies transforms in a way that a later affine will not know.
pytestmark = pytest.mark.filterwarnings("ignore:Use `@` matmul:PendingDeprecationWarning")

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared" / "data"


class Stub:
    """Vectors from which one can read what the encoder was given.

    (first pixel, last pixel, lon, lat, days, token area); of tokens, the mean of each.
    """

    dim = 6
    provenance = {"encoder": "stub", "encoder_trained": 0}  # noqa: RUF012

    def __init__(self, count=3):
        self.calls = []
        self.count = count

    def batch_size(self, modality, size):
        return self.count

    def __call__(self, modality, pixels, metadata, tokens=False):
        self.calls.append((modality, pixels.copy(), metadata.copy()))
        assert pixels.dtype == np.float32
        ends = np.stack([pixels[:, 0, 0, 0], pixels[:, -1, -1, -1]], axis=1)
        vectors = np.concatenate([ends, metadata], axis=1).astype(np.float32)
        if not tokens:
            return vectors
        k = MODALITIES[modality].kernel if isinstance(modality, str) else modality.kernel
        n = pixels.shape[-1] // k
        means = pixels[:, 0].reshape(-1, n, k, n, k).mean(axis=(2, 4)).reshape(-1, n * n)
        out = np.repeat(vectors[:, np.newaxis], n * n, axis=1)
        out[:, :, 0] = means
        return out

    @property
    def metadata(self):
        return np.concatenate([metadata for _, _, metadata in self.calls])


@dataclass(frozen=True)
class StubSpec:
    """A description that loads a stub, and counts how often."""

    weights: str = "stub"
    loads = []  # noqa: RUF012

    def load(self):
        self.loads.append(self.weights)
        time.sleep(0.02)
        return Stub()


def random_pixels(*shape):
    return np.random.default_rng(0).integers(1, 9000, shape, dtype=np.int16)


def utm(rows=448, cols=672, *, gsd=10.0, crs="EPSG:32632", bands=2, west=500_000, north=5_400_000):
    """A Sentinel-1-like image as rioxarray opens one: (band, y, x), y descending."""
    pixels = random_pixels(bands, rows, cols)
    coords = {
        "band": np.arange(1, bands + 1),
        "y": north - gsd * (np.arange(rows) + 0.5),
        "x": west + gsd * (np.arange(cols) + 0.5),
    }
    images = xr.DataArray(pixels, dims=("band", "y", "x"), coords=coords)
    return images.rio.write_crs(crs).rio.write_transform(Affine(gsd, 0, west, 0, -gsd, north))


def degrees(lat, lon, bands=1, names=("lat", "lon")):
    pixels = random_pixels(bands, len(lat), len(lon)).astype(np.float32)
    return xr.DataArray(pixels, dims=("band", *names), coords={names[0]: lat, names[1]: lon})


# Places


def test_tiles_of_a_projected_image_lie_where_they_are():
    images, stub = utm(), Stub()
    result = embed(images, "s1_grd", encoder=stub, date="2021-06-01")
    assert result.dims == ("y", "x", "dim")
    assert result.shape == (2, 3, 6)
    np.testing.assert_array_equal(result.y, [5_400_000 - 1120, 5_400_000 - 3360])
    np.testing.assert_array_equal(result.x, [501_120, 503_360, 505_600])
    to_degrees = pyproj.Transformer.from_crs("EPSG:32632", "EPSG:4326")
    lat, lon = to_degrees.transform(*np.meshgrid(result.x, result.y))
    np.testing.assert_allclose(result.lat, lat, atol=1e-9)
    np.testing.assert_allclose(result.lon, lon, atol=1e-9)
    np.testing.assert_allclose(stub.metadata[:, 0], lon.ravel(), atol=1e-9)
    np.testing.assert_allclose(stub.metadata[:, 1], lat.ravel(), atol=1e-9)
    np.testing.assert_array_equal(stub.metadata[:, 2], 18779)
    np.testing.assert_array_equal(stub.metadata[:, 3], 0.0256)


def test_every_tile_holds_its_own_pixels_and_metadata():
    images = utm()
    result = embed(images, "s1_grd", encoder=Stub(), date="2021-06-01")
    for i, j in np.ndindex(2, 3):
        tile = images.values[:, 224 * i : 224 * (i + 1), 224 * j : 224 * (j + 1)]
        assert result.values[i, j, 0] == tile[0, 0, 0]
        assert result.values[i, j, 1] == tile[-1, -1, -1]
        np.testing.assert_allclose(result.values[i, j, 2], result.lon[i, j], rtol=1e-6)
        np.testing.assert_allclose(result.values[i, j, 3], result.lat[i, j], rtol=1e-6)


def test_the_result_is_georeferenced_for_gdal():
    images = utm(500, 700)
    result = embed(images, "s1_grd", encoder=Stub(), date="2021-06-01")
    assert result.rio.crs == images.rio.crs
    assert result.rio.resolution() == (2240.0, -2240.0)
    whole = images.isel(y=slice(448), x=slice(672))
    assert result.transpose("dim", "y", "x").rio.bounds(recalc=True) == whole.rio.bounds(
        recalc=True
    )
    assert result.rio.transform(recalc=False) == result.rio.transform(recalc=True)


def test_a_sliced_image_does_not_drag_its_old_transform_along():
    images = utm().isel(x=slice(224, None), y=slice(224, None))
    result = embed(images, "s1_grd", encoder=Stub(), date="2021-06-01")
    assert result.rio.transform().c == images.x[0] - 5
    assert result.rio.transform().f == images.y[0] + 5


@pytest.mark.parametrize("names", [("lat", "lon"), ("latitude", "longitude")])
def test_geographic_dimensions_stay_the_coordinates(names):
    lat, lon = 50 - 0.01 * np.arange(56), 190 + 0.01 * np.arange(84)
    stub = Stub()
    result = embed(degrees(lat, lon, names=names), "s5p_no2", encoder=stub, date="2021-06-01")
    assert result.dims == (*names, "dim")
    np.testing.assert_allclose(result[names[0]], 50 - 0.135 - 0.28 * np.arange(2), rtol=1e-12)
    np.testing.assert_allclose(result[names[1]], 190.135 + 0.28 * np.arange(3), rtol=1e-12)
    assert set(result.coords) == set(names)
    np.testing.assert_allclose(stub.metadata[:3, 0], 190.135 - 360 + 0.28 * np.arange(3))
    np.testing.assert_allclose(stub.metadata[::3, 1], result[names[0]])


def test_degrees_in_y_and_x_are_known_by_their_crs():
    lat, lon = 50 - 0.01 * np.arange(28), 10 + 0.01 * np.arange(56)
    images = degrees(lat, lon, names=("y", "x")).rio.write_crs("EPSG:4326")
    result = embed(images, "s5p_no2", encoder=Stub(), date="2021-06-01")
    np.testing.assert_allclose(result.lat, np.full((1, 2), 50 - 0.135))
    np.testing.assert_allclose(result.lon, [[10.135, 10.415]])


@pytest.mark.parametrize("turn", [180, 360])
def test_tiles_on_the_seam_of_longitudes_lie_on_the_seam(turn):
    # 28 pixels of 0.01°, centred on the seam: 179.87 … 179.99, -180.00 … -179.87.
    lon = (turn - 0.135 + 0.01 * np.arange(56)) % 360
    lon = np.where(lon >= 180, lon - 360, lon) if turn == 180 else lon
    stub = Stub()
    result = embed(
        degrees(50.0 - 0.01 * np.arange(28), lon), "s5p_co", encoder=stub, date="2021-01-01"
    )
    west = -180 if turn == 180 else 0
    expected = (turn + np.array([0, 0.28]) - west) % 360 + west
    np.testing.assert_allclose(result.lon - expected, 0, atol=1e-9)
    away = (stub.metadata[:, 0] - turn - np.array([0, 0.28]) + 180) % 360 - 180
    np.testing.assert_allclose(away, 0, atol=1e-9)
    assert (np.abs(stub.metadata[:, 0]) <= 180).all()
    np.testing.assert_allclose(stub.metadata[0, 3], stub.metadata[1, 3])


def test_a_rotated_pole_is_no_longitude():
    crs = pyproj.CRS.from_user_input("+proj=ob_tran +o_proj=longlat +o_lat_p=39.25 +lon_0=18")
    lat, lon = 3 - 0.01 * np.arange(28), -5 + 0.01 * np.arange(28)
    images = degrees(lat, lon, names=("y", "x")).rio.write_crs(crs)
    stub = Stub()
    embed(images, "s5p_no2", encoder=stub, date="2021-06-01")
    # Spherical trigonometry: the rotated pole lies at 39.25°N, 162°W.
    phi, lam, pole = np.radians([lat[13:15].mean(), lon[13:15].mean(), 39.25])
    true = np.arcsin(np.cos(phi) * np.cos(lam) * np.cos(pole) + np.sin(phi) * np.sin(pole))
    np.testing.assert_allclose(stub.metadata[0, 1], np.degrees(true), atol=1e-6)


def test_without_a_crs_the_place_is_unknown(caplog):
    images = utm().drop_vars("spatial_ref")
    stub = Stub()
    result = embed(images, "s1_grd", encoder=stub, date="2021-06-01")
    assert np.isnan(stub.metadata[:, :2]).all()
    np.testing.assert_array_equal(stub.metadata[:, 3], 0.0256)
    assert "embedded without longitude and latitude" in caplog.text
    assert "lat" not in result.coords


def test_an_image_without_coordinates_leaves_no_transform_of_its_pixels_behind():
    stub = Stub()
    result = embed(utm().drop_vars(["x", "y"]), "s1_grd", encoder=stub, date="2021-06-01")
    assert np.isnan(stub.metadata[:, :2]).all()
    assert set(result.coords) == set()


def test_a_real_geotiff():
    path = SHARED / "S2_20201002T221611_20201002T221610_T60HWB.tif"
    if not path.exists():
        pytest.skip(f"no {path}: real data is not part of a checkout")
    images = rioxarray.open_rasterio(path, chunks={"x": 100, "y": 100})
    stub = Stub()
    result = embed(images, "s2_toa", encoder=stub, date="2020-10-02").compute(scheduler="sync")
    ((_, pixels, metadata),) = stub.calls
    np.testing.assert_array_equal(pixels[0], images[:, :224, :224])
    west, _, _, north = images.rio.bounds()
    to_degrees = pyproj.Transformer.from_crs("EPSG:32760", "EPSG:4326")
    lat, lon = to_degrees.transform(west + 1120, north - 1120)
    np.testing.assert_allclose(metadata, [[lon, lat, 18537, 0.0256]], rtol=1e-9)
    np.testing.assert_allclose([lon, lat], [174, -41], atol=7, err_msg="not New Zealand")
    assert result.rio.crs.to_epsg() == 32760


@pytest.mark.slow
def test_places_off_the_projection_are_unknown():
    images = utm(crs="EPSG:3035", gsd=10, west=9e9)
    stub = Stub()
    embed(images, "s1_grd", encoder=stub, date="2021-06-01")
    assert np.isnan(stub.metadata[:, :2]).all()


# Size of a token


@pytest.mark.parametrize(
    ("crs", "gsd", "metres"),
    [("EPSG:32632", 20.0, 20.0), ("EPSG:2263", 100.0, 30.48006), ("EPSG:32632", 10.3, 10.0)],
)
def test_token_area_is_that_of_the_pixels_on_the_ground(crs, gsd, metres):
    images = utm(224, 224, crs=crs, gsd=gsd, north=200_000 if crs == "EPSG:2263" else 5_400_000)
    images = images.assign_coords(x=images.x + 480_000 if crs == "EPSG:2263" else images.x)
    stub = Stub()
    embed(images, "s1_grd", encoder=stub, date="2021-06-01")
    np.testing.assert_allclose(stub.metadata[0, 3], (16 * metres / 1000) ** 2, rtol=2e-3)


@pytest.mark.parametrize("lat0", [0.2, 48.0, -60.0])
def test_token_area_in_degrees_equals_the_geodesic_polygon(lat0):
    step = 0.005
    images = degrees(lat0 - step * np.arange(96), 10 + step * np.arange(96), bands=21)
    stub = Stub()
    embed(images, "s3_olci", encoder=stub, date="2021-06-01")
    south, north = lat0 - step * 95.5, lat0 + step / 2
    east, west = 10 + step * 95.5, 10 - step / 2
    area, _ = pyproj.Geod(ellps="WGS84").polygon_area_perimeter(
        [west, east, east, west], [south, south, north, north]
    )
    np.testing.assert_allclose(stub.metadata[0, 3], area / 96**2 * 64 / 1e6, rtol=1e-3)


def test_mercator_pixels_count_as_they_are_on_the_ground():
    # At 60° one metre of Web Mercator is half a metre.
    north = pyproj.Transformer.from_crs(4326, 3857).transform(60, 0)[1] + 2240
    images = utm(224, 224, crs="EPSG:3857", gsd=20, north=north)
    stub = Stub()
    embed(images, "s1_grd", encoder=stub, date="2021-06-01")
    assert stub.metadata[0, 3] == 0.0256


def test_metadata_that_the_model_cannot_take_are_unknown(caplog):
    stub = Stub()
    images = utm(32, 32, gsd=0.5)
    options = {"wavelengths": [490, 560], "bandwidths": [60, 30], "date": "2021-06-01"}
    embed(images, **options, tile=32, encoder=stub)
    assert np.isnan(stub.metadata[0, 3])
    assert np.isfinite(stub.metadata[0, :3]).all()
    assert "tokens have 6.4e-05 km², but the model accepts 0.001 to 5.1e+08 km²" in caplog.text
    edge = 1e-6 * np.arange(28) - 180
    embed(degrees(1e-6 * np.arange(28)[::-1] - 90, edge), "s5p_co", encoder=stub, date="2021-01-01")
    np.testing.assert_array_equal(stub.metadata[1, :2], [-180, -90])


def test_gsd_can_be_given():
    stub = Stub()
    embed(utm(), "s1_grd", encoder=stub, date="2021-06-01", gsd=5)
    np.testing.assert_allclose(stub.metadata[:, 3], 0.08**2)


# Dates


def test_every_time_step_has_its_date():
    images = xr.concat([utm(224, 224)] * 3, "time").assign_coords(
        time=np.array(["2020-02-29T23:59", "1970-01-02", "NaT"], dtype="datetime64[ns]")
    )
    stub = Stub()
    result = embed(images.transpose("band", "y", "time", "x"), "s1_grd", encoder=stub)
    assert result.dims == ("time", "y", "x", "dim")
    np.testing.assert_array_equal(stub.metadata[:, 2], [18321, 1, np.nan])
    xr.testing.assert_equal(result.time, images.time)


@pytest.mark.parametrize("name", ["time", "t", "date"])
@pytest.mark.parametrize(
    "times",
    [
        ["2020-02-29", "19700102", None],
        [20200229, 19700102.0, np.nan],
        [20200229, 19700102, 20200301],
        [pd.Timestamp("2020-02-29 12:00"), datetime.date(1970, 1, 2), pd.NaT],
        [cftime.DatetimeGregorian(2020, 2, 29, 12), cftime.DatetimeNoLeap(1970, 1, 2), None],
        np.array(["2020-02-29", "1970-01-02", "NaT"], dtype="datetime64[s]"),
    ],
    ids=["text", "floats", "numbers", "pandas", "cftime", "numpy"],
)
def test_time_coordinates_of_every_kind_are_read(name, times):
    times = np.array(times, None if isinstance(times[0], int) else getattr(times, "dtype", object))
    images = xr.concat([utm(224, 224)] * 3, "when").assign_coords({name: ("when", times)})
    stub = Stub()
    embed(images, "s1_grd", encoder=stub)
    last = np.nan if times.dtype != np.int64 else 18322
    np.testing.assert_array_equal(stub.metadata[:, 2], [18321, 1, last])


@pytest.mark.parametrize(
    ("dims", "times", "message"),
    [
        ("when", [0, 1, 2], "the coordinate time of images: 0 is not a date"),
        ("when", [2019, 2020, 2021], "2019 is not a date"),
        ("when", ["yesterday", "", "2021-01-01"], "'yesterday' is not a date"),
        ("y", np.full(224, np.datetime64("2021-01-01", "ns")), "time of images runs along y"),
    ],
)
def test_time_coordinates_that_are_not_understood_are_refused(dims, times, message):
    images = xr.concat([utm(224, 224)] * 3, "when").assign_coords(time=(dims, np.array(times)))
    with pytest.raises(OptionError, match=message):
        embed(images, "s1_grd", encoder=Stub())
    stub = Stub()
    embed(images, "s1_grd", encoder=stub, date=20210601)
    np.testing.assert_array_equal(stub.metadata[:, 2], 18779)


@pytest.mark.parametrize("date", [2021, "2021", np.datetime64("NaT", "ns"), 20210231, "soon"])
def test_a_date_that_is_none_is_refused(date):
    with pytest.raises(OptionError, match="is not a date"):
        embed(utm(224, 224), "s1_grd", encoder=Stub(), date=date)


def test_leading_dimensions_are_independent():
    images = utm(224, 224).expand_dims(orbit=["A", "D"], time=3).copy()
    images = images.assign_coords(time=np.datetime64("2021-01-01", "ns") + np.arange(3))
    images.values[1, 2] += 1
    result = embed(images, "s1_grd", encoder=Stub())
    assert result.dims == ("orbit", "time", "y", "x", "dim")
    one = embed(images.isel(orbit=1, time=2), "s1_grd", encoder=Stub())
    np.testing.assert_array_equal(result[1, 2], one)
    assert (result[0, 0, ..., 0] + 1 == one[..., 0]).all()
    np.testing.assert_array_equal(result[0, 0], result[0, 1])


@pytest.mark.parametrize(
    "date", ["2021-03-15", "20210315", np.datetime64("2021-03-15T12:00"), "2021-03-15T23:00"]
)
def test_a_given_date_wins(date):
    images = utm(224, 224).assign_coords(time=np.datetime64("1999-01-01", "ns"))
    stub = Stub()
    embed(images, "s1_grd", encoder=stub, date=date)
    assert stub.metadata[0, 2] == 18701
    embed(images, "s1_grd", encoder=stub)
    assert stub.metadata[1, 2] == 10592


def test_without_a_date_it_is_unknown_except_for_the_dem(caplog):
    stub = Stub()
    embed(utm(224, 224), "s1_grd", encoder=stub)
    assert np.isnan(stub.metadata[0, 2])
    assert "embedded without a date" in caplog.text
    caplog.clear()
    embed(utm(960, 960, gsd=30, bands=1), "dem", encoder=stub)
    assert stub.metadata[1, 2] == 16436
    assert not caplog.text


# Vectors that are not finite


@pytest.mark.parametrize("tokens", [False, True])
def test_tiles_whose_vectors_are_not_finite_are_left_out_by_place(caplog, tokens):
    class Overflowing(Stub):
        def __call__(self, modality, pixels, metadata, tokens=False):
            vectors = super().__call__(modality, pixels, metadata, tokens)
            vectors[np.abs(pixels).max(axis=(1, 2, 3)) > 1e30, ..., -1] = np.inf
            return vectors

    images = utm().astype("float32")
    images[0, 0, 300] = np.finfo("float32").min
    result = embed(images, "s1_grd", encoder=Overflowing(), date="2021-06-01", tokens=tokens)
    good = embed(utm(), "s1_grd", encoder=Stub(), date="2021-06-01", tokens=tokens)
    step = 14 if tokens else 1
    bad = slice(0, step), slice(step, 2 * step)
    assert np.isnan(result[bad]).all()
    assert int(result.isnull().sum()) == result[bad].size
    np.testing.assert_array_equal(result[step:], good[step:])
    place = re.search(r"the tile at lat ([\d.]+), lon ([\d.]+) is left out", caplog.text)
    middle = [result.lat[bad].mean(), result.lon[bad].mean()]
    np.testing.assert_allclose(list(map(float, place.groups())), middle, atol=1e-3)
    assert "its pixels are from -3.403e+38" in caplog.text


# Tokens


def test_tokens_lie_in_the_middle_of_their_pixels():
    images = utm(448, 224)
    result = embed(images, "s1_grd", encoder=Stub(), tokens=True, date="2021-06-01")
    expected = images.isel(band=0).astype("float32").coarsen(y=16, x=16).mean()
    assert result.shape == (28, 14, 6)
    np.testing.assert_array_equal(result[..., 0], expected)
    np.testing.assert_array_equal(result.x, expected.x)
    np.testing.assert_array_equal(result.y, expected.y)
    assert result.rio.resolution() == (160.0, -160.0)
    assert result.lat.shape == (28, 14)


def test_tokens_of_many_blocks_are_those_of_one():
    images = utm(224 * 3, 224 * 2).expand_dims(run=2)
    one = embed(images, "s1_grd", encoder=Stub(), tokens=True, date="2021-06-01")
    many = embed(
        images.chunk(y=300, x=224, run=1), "s1_grd", encoder=Stub(), tokens=True, date="2021-06-01"
    )
    assert many.chunks[1:3] == ((14, 28), (14, 14))
    xr.testing.assert_identical(many.compute(), one)


# Laziness and blocks


def test_nothing_is_embedded_or_read_before_computing():
    def read(block_id=None):
        raise AssertionError("read at graph build")

    pixels = da.map_blocks(
        read, chunks=((2,), (224, 224), (300, 372)), dtype="int16", meta=np.empty((0,) * 3, "i2")
    )
    stub = Stub()
    result = embed(utm().copy(data=pixels), "s1_grd", encoder=stub, date="2021-06-01")
    assert result.chunks == ((1, 1), (1, 2), (6,))
    assert result.dtype == np.float32
    assert result.data._meta.dtype == np.float32
    assert stub.calls == []
    with pytest.raises(AssertionError, match="read at graph build"):
        result.compute(scheduler="sync")


@pytest.mark.slow
@settings(deadline=None, max_examples=15)
@given(data=st.data())
def test_any_blocks_give_the_same_values(data):
    images = degrees(
        10 - 0.01 * np.arange(28 * 4 + 5), 178 + 0.01 * np.arange(28 * 3), names=("lat", "lon")
    ).expand_dims(time=np.array(["2021-01-01", "2021-02-01"], "datetime64[ns]"))
    chunks = {
        dim: tuple(np.diff(sorted({0, size, *data.draw(st.sets(st.integers(1, size)))})))
        for dim, size in images.sizes.items()
    }
    count = data.draw(st.integers(1, 5))
    one = embed(images, "s5p_co", encoder=Stub())
    many = embed(images.chunk(chunks), "s5p_co", encoder=Stub(count))
    assert dask.is_dask_collection(many)
    xr.testing.assert_identical(many.compute(scheduler="sync"), one)


def test_chunks_that_hold_whole_tiles_are_left_alone():
    images = utm().chunk(y=224, x=448)
    before = set(images.transpose("y", "x", "band").data.__dask_graph__())
    result = embed(images, "s1_grd", encoder=Stub(), date="2021-06-01")
    names = {key[0] for key in result.data.__dask_graph__()}
    assert not any("rechunk" in str(name) for name in names)
    assert before


@pytest.mark.parametrize("scheduler", ["threads", "synchronous"])
def test_batches_run_in_order_and_one_at_a_time(scheduler):
    busy = threading.Lock()

    class Alone(Stub):
        def __call__(self, *args, **options):
            assert busy.acquire(blocking=False), "two batches at once"
            time.sleep(0.005)
            busy.release()
            return super().__call__(*args, **options)

    images = utm()
    many = embed(images.chunk(y=224, x=224), "s1_grd", encoder=Alone(), date="2021-06-01")
    one = embed(images, "s1_grd", encoder=Alone(), date="2021-06-01", batch_size=4)
    xr.testing.assert_identical(many.compute(scheduler=scheduler), one)


def test_batch_size_can_be_given():
    stub = Stub()
    embed(utm(), "s1_grd", encoder=stub, date="2021-06-01", batch_size=4)
    assert [len(pixels) for _, pixels, _ in stub.calls] == [4, 2]


def test_an_encoder_is_loaded_once_a_process():
    shared = as_encoder(StubSpec("once"))
    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(lambda _: shared.dim, range(8))) == {Stub.dim}
    result = embed(utm().chunk(y=224, x=224), "s1_grd", encoder=StubSpec("once"), date="2021-01-01")
    result.compute(scheduler="threads")
    assert StubSpec.loads.count("once") == 1


def test_a_process_keeps_the_encoders_it_used_last():
    first, *others = (as_encoder(StubSpec(f"kept {i}")) for i in range(1 + LOADED_AT_ONCE))
    assert [e.dim for e in (first, *others, first)] == [Stub.dim] * (2 + LOADED_AT_ONCE)
    assert StubSpec.loads.count("kept 0") == 2
    assert StubSpec.loads.count(f"kept {LOADED_AT_ONCE}") == 1


@pytest.mark.slow
def test_graphs_are_small_and_named_by_spec_and_input():
    def build(weights="a", date="2021-06-01", shift=0):
        images = (utm() + shift).chunk(y=224, x=224)
        pixels = da.zeros_like(images.data) + shift
        images = images.copy(data=pixels)
        return embed(images, "s1_grd", encoder=StubSpec(weights), date=date)

    first = build()
    assert len(cloudpickle.dumps(first.data.__dask_graph__())) < 10_000
    assert build().data.name == first.data.name
    others = [build(weights="b"), build(date="2021-06-02"), build(shift=1)]
    assert len({first.data.name, *(other.data.name for other in others)}) == 4


def test_a_live_encoder_that_knows_its_spec_travels_as_that():
    class Heavy(Stub):
        spec = StubSpec("heavy")

        def __reduce__(self):
            raise AssertionError("pickled")

    result = embed(utm().chunk(y=224), "s1_grd", encoder=Heavy(), date="2021-06-01")
    assert cloudpickle.dumps(result.data.__dask_graph__())
    stub = as_encoder(Heavy())
    assert pickle.loads(pickle.dumps(stub)) == stub
    assert isinstance(_load(Heavy.spec), Heavy)
    assert "heavy" not in StubSpec.loads


@pytest.mark.slow
def test_it_computes_on_distributed():
    distributed = pytest.importorskip("distributed")
    images = utm()
    one = embed(images, "s1_grd", encoder=Stub(), date="2021-06-01")
    with (
        distributed.LocalCluster(
            n_workers=1, threads_per_worker=2, processes=False, dashboard_address=":0"
        ) as cluster,
        distributed.Client(cluster),
    ):
        lazy = embed(
            images.chunk(y=224, x=224), "s1_grd", encoder=StubSpec("far"), date="2021-06-01"
        )
        xr.testing.assert_identical(lazy.compute(), one)
        stub = Stub()
        lazy = embed(images.chunk(y=224, x=224), "s1_grd", encoder=stub, date="2021-06-01")
        xr.testing.assert_identical(lazy.compute(), one)


# Bands and pixels


def test_named_bands_are_put_in_order():
    bands = MODALITIES["s2_toa"].bands
    images = utm(224, 224, bands=13).assign_coords(band=list(bands))
    padded = [f"B{b[1:].zfill(2)}" if b[1:].isdigit() else b for b in bands]
    backwards = images.assign_coords(band=padded).isel(band=slice(None, None, -1))
    assert backwards.band[-1] == "B01"
    straight, reverse = Stub(), Stub()
    embed(images, "s2_toa", encoder=straight, date="2021-06-01")
    embed(backwards, "s2_toa", encoder=reverse, date="2021-06-01")
    np.testing.assert_array_equal(straight.calls[0][1], reverse.calls[0][1])
    more = xr.concat([backwards, backwards[:1].assign_coords(band=["SCL"])], "band")
    embed(more, "s2_toa", encoder=reverse, date="2021-06-01")
    np.testing.assert_array_equal(straight.calls[0][1], reverse.calls[1][1])


def test_a_single_band_needs_no_dimension():
    images = utm(960, 960, gsd=30, bands=1).isel(band=0)
    assert embed(images, "dem", encoder=Stub()).shape == (1, 1, 6)


def test_tiles_without_data_are_nan_and_not_embedded():
    images = utm(bands=13).astype("float32")
    images[:, :224, :224] = np.nan
    images[:, 224:, :224] = 0
    images[:5, :, 448:] = 0
    stub = Stub()
    result = embed(images, "s2_toa", encoder=stub, date="2021-06-01")
    assert np.isnan(result[:, 0]).all()
    assert np.isfinite(result[:, 1:]).all()
    assert len(stub.metadata) == 4


def test_declared_nodata_is_no_data():
    images = utm(224, 448)
    images.values[0, 0, 0] = -999
    images.values[:, :, 224:] = -999
    stub = Stub()
    result = embed(images.rio.write_nodata(-999), "s1_grd", encoder=stub, date="2021-06-01")
    ((_, pixels, _),) = stub.calls
    assert np.isnan(pixels[0, 0, 0, 0])
    assert np.isfinite(pixels[0, 1, 0, 0])
    assert np.isnan(result[0, 1]).all()


@pytest.mark.parametrize("dtype", ["uint16", "float32"])
def test_a_single_band_of_zero_is_dark_in_whole_numbers_and_else_missing(dtype):
    images = (utm(224, 224) % 100).astype(dtype)
    images.values[0, 0, :2] = 0
    images.values[1, 0, 1] = 0
    stub = Stub()
    embed(images.rio.write_nodata(0), "s1_grd", encoder=stub, date="2021-06-01")
    ((_, pixels, _),) = stub.calls
    assert pixels[0, 0, 0, 0] == 0 if dtype == "uint16" else np.isnan(pixels[0, 0, 0, 0])
    assert np.isfinite(pixels[0, 1, 0, 0])
    assert np.isnan(pixels[0, :, 0, 1]).all()


def test_scales_that_a_file_declares_are_applied_to_whole_numbers():
    images = utm(224, 224).astype("int16")
    images.attrs = {"scales": (0.25, 0.5), "add_offset": -3.0, "_FillValue": 5}
    options = {"encoder": (stub := Stub()), "date": "2021-06-01"}
    embed(
        images.assign_coords(band=[1, 2]).isel(band=[1, 0]).isel(band=[1, 0]), "s1_grd", **options
    )
    expected = images.values * np.array([0.25, 0.5])[:, None, None] - 3
    expected[images.values == 5] = np.nan
    np.testing.assert_array_equal(stub.calls.pop()[1][0], expected.astype("f4"))
    # What was scaled may have kept its attributes.
    with pytest.raises(OptionError, match=r"float32 and declares a scale of 0.25 and an offset"):
        embed(images.astype("float32", keep_attrs=True), "s1_grd", **options)
    # Statistics of one's own are those of stored pixels.
    embed(images, "s1_grd", mean=[0, 0], std=[1, 1], **options)
    stored = images.where(images != 5).values
    np.testing.assert_array_equal(stub.calls.pop()[1][0], stored)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int32", "float16", "float64", ">i2"])
def test_any_real_dtype_will_do(dtype):
    images = (utm(224, 224) % 100).astype(dtype)
    result = embed(images, "s1_grd", encoder=Stub(), date="2021-06-01")
    assert result[0, 0, 0] == images[0, 0, 0]


def test_incomplete_tiles_are_left_out_and_counted(caplog):
    with caplog.at_level(logging.WARNING):
        result = embed(utm(450, 700), "s1_grd", encoder=Stub(), date="2021-06-01")
    assert result.shape == (2, 3, 6)
    assert "2 of 450 rows and 28 of 700 columns" in caplog.text


# Sensors of one's own


def test_a_general_sensor_is_described_to_the_encoder():
    images, stub = utm(64, 96, gsd=6, bands=4), Stub()
    result = embed(
        images,
        wavelengths=[490, 565, 665, 865],
        bandwidths=[50, 36, 30, 40],
        kernel_size=8,
        tile=32,
        mean=[1, 2, 3, 4],
        std=[1, 1, 1, 2],
        encoder=stub,
        date="2021-06-01",
    )
    assert result.shape == (2, 3, 6)
    sensor = stub.calls[0][0]
    assert sensor.wavelengths == (490, 565, 665, 865)
    assert sensor.bandwidths == (50, 36, 30, 40)
    assert (sensor.kernel, sensor.mean, sensor.std) == (8, (1, 2, 3, 4), (1, 1, 1, 2))
    assert hash(sensor) == hash(pickle.loads(pickle.dumps(sensor)))
    assert sensor == pickle.loads(pickle.dumps(sensor))
    np.testing.assert_allclose(stub.metadata[:, 3], 0.048**2, rtol=2e-3)


def test_wavelengths_are_in_the_order_of_the_image_s_bands():
    """However a file numbers them; names that contradict the wavelengths are refused."""
    images = utm(32, 32, bands=3).assign_coords(band=[1, 2, 3])
    given = {"wavelengths": [665, 560, 490], "bandwidths": [30, 36, 50], "tile": 32}
    given |= {"date": "2021-06-01", "mean": [0, 0, 0], "std": [1, 1, 1]}
    turned, plain = images.isel(band=[2, 1, 0]), images.drop_vars("band").isel(band=[2, 1, 0])
    vectors = [embed(one, encoder=Stub(), **given) for one in (turned, plain)]
    np.testing.assert_array_equal(*vectors)
    with pytest.raises(OptionError, match=r"labelled blue, green, red, .* in the order of"):
        embed(images.assign_attrs(long_name=("blue", "green", "red")), encoder=Stub(), **given)


def test_own_statistics_of_a_published_modality():
    stub = Stub()
    embed(utm(), "s1_grd", mean=[1, 2], std=[3, 4], encoder=stub, date="2021-06-01")
    sensor = stub.calls[0][0]
    assert (sensor.key, sensor.mean, sensor.std) == ("s1_grd", (1, 2), (3, 4))


# Attributes


def test_the_result_says_what_made_it():
    images = utm().assign_coords(platform="S1A")
    result = embed(images, "s1_grd", encoder=Stub(), date="2021-06-01")
    assert result.name == "embedding"
    assert result.attrs["units"] == "1"
    assert result.attrs["encoder"] == "stub"
    assert result.attrs["encoder_trained"] == 0
    assert result.attrs["modality"] == "s1_grd"
    assert result.platform == "S1A"
    assert result.encoding["grid_mapping"] == "spatial_ref"
    assert set(result.coords) == {"y", "x", "lat", "lon", "spatial_ref", "platform"}


# Errors


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"modality": "s1"}, "did you mean 's1_grd'"),
        ({"modality": None}, "either modality=.*or wavelengths="),
        ({"wavelengths": [1, 2], "bandwidths": [1, 1]}, "either modality="),
        ({"modality": None, "wavelengths": [490, 560]}, "2 wavelengths and 0 bandwidths"),
        (
            {"modality": None, "wavelengths": [1], "bandwidths": [1], "kernel_size": 0},
            "kernel_size is 0",
        ),
        ({"kernel_size": 8}, "'s1_grd' has its own"),
        ({"mean": [1, 2]}, "mean has 2 values and std 0; expected 2"),
        ({"mean": [1], "std": [1]}, "mean has 1 values"),
        ({"modality": "s2_toa"}, r"2 bands; expected the 13 of Sentinel-2 TOA.*B1, B2, .*B12"),
        ({"tile": 500}, "448 × 672 pixels are smaller than a tile of 500"),
        ({"tile": 8}, "at least a token of 16"),
        ({"tile": 230, "tokens": True}, "do not fill tiles of 230"),
        ({"date": "yesterday"}, "'yesterday' is not a date"),
        ({"date": "20211301"}, "'20211301' is not a date"),
        ({"gsd": 0}, "gsd is 0; expected"),
        ({"gsd": -10}, "gsd is -10; expected"),
        ({"gsd": np.nan}, "gsd is nan; expected"),
        ({"tokens": "no"}, "tokens is 'no'"),
        ({"mean": [1, 2], "std": [1, 0]}, "std .*deviations above 0"),
        ({"mean": [1, np.nan], "std": [1, 1]}, "mean is .*expected finite"),
    ],
)
def test_contradictions_are_refused(options, message):
    stub = Stub()
    with pytest.raises(OptionError, match=message):
        embed(utm(), **{"modality": "s1_grd", "encoder": stub, **options})
    assert stub.calls == []


def degrees_of(dim, values, units="degrees"):
    """An image whose coordinate along a dimension has these values."""
    images = utm() if dim in ("x", "y") else utm().rename(y="lat", x="lon").drop_vars("lon")
    return images.assign_coords({dim: (dim, values, {"units": units})})


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (utm().rename(y="up"), "rename"),
        (utm().rename(band="colour"), "rename"),
        (utm().to_dataset("band"), "to_dataarray"),
        (utm().values, "images is a ndarray; expected an xarray.DataArray"),
        ("scene.tif", r"images is a str; .*\(rioxarray.open_rasterio reads a file"),
        (utm().astype(complex), "real numbers"),
        (utm().assign_coords(x=[f"{x}" for x in utm().x.values]), "coordinate x .* holds <U"),
        (degrees_of("lat", np.linspace(93, 92, 448)), "lat of images reaches 93; expected degrees"),
        (degrees_of("lat", np.linspace(0.8, 0.7, 448), "radians"), "lat of images is in radians"),
        (degrees_of("x", np.linspace(0, 1, 672), "km"), "x of images is in kilometres"),
        (utm().astype("u2").assign_attrs(_FillValue=-9999), "uint16 and declares nodata -9999"),
        (utm().assign_attrs(scale_factor="a tenth"), "'a tenth' as scale_factor, which is no"),
        (utm().astype("i2").assign_attrs(scale_factor=0), "a scale of 0 is declared"),
        (utm().astype("i2").assign_attrs(add_offset=np.nan), "an? offset of nan is declared"),
    ],
)
def test_images_of_another_form_are_refused(images, message):
    with pytest.raises(OptionError, match=message):
        embed(images, "s1_grd", encoder=Stub())


def test_a_variable_of_another_name_or_unit_is_refused():
    gas = xr.DataArray(np.full((28, 28), 1e-4, "f4"), dims=("y", "x"), name="NO2")
    assert embed(gas, "s5p_no2", encoder=Stub()).shape[:2] == (1, 1)
    with pytest.raises(OptionError, match="NO2, with no SO2"):
        embed(gas, "s5p_so2", encoder=Stub())
    height = xr.DataArray(np.ones((960, 960), "f4"), dims=("y", "x"), attrs={"units": "feet"})
    with pytest.raises(OptionError, match="heights are in feet; expected metres"):
        embed(height, "dem", encoder=Stub())


# The real model, small


@pytest.fixture(scope="module")
def small():
    """A narrow, shallow, untrained Copernicus-FM, and the encoder around it."""
    pytest.importorskip("torch")
    from copcube.encoder.frozen import FrozenEncoder
    from copcube.encoder.weights import untrained_weights

    weights = untrained_weights(0, embed_dim=64, depth=2, heads=4)
    return weights.model, FrozenEncoder(weights, device="cpu", dtype="float32")


def normalised(images, key):
    kind = MODALITIES[key]
    mean, std = (np.array(values)[:, None, None] for values in (kind.mean, kind.std))
    return (images.values - mean) / std


@pytest.mark.slow
def test_the_real_model_in_blocks_and_in_one(small):
    _, encoder = small
    images = utm(bands=13)
    one = embed(images, "s2_toa", encoder=encoder, date="2021-06-01", batch_size=6)
    many = embed(images.chunk(y=224, x=300), "s2_toa", encoder=encoder, date="2021-06-01")
    assert one.attrs["encoder_trained"] == 0
    xr.testing.assert_allclose(many.compute(scheduler="threads"), one, rtol=1e-5, atol=1e-5)
    assert float(one.std(["y", "x"]).min()) > 0, "tiles have vectors of their own"


def test_the_real_model_sees_the_tile_and_its_metadata(small):
    import torch

    model, encoder = small
    images = utm(224, 448, bands=13)
    result = embed(images, "s2_toa", encoder=encoder, date="2021-06-01")
    lon, lat = float(result.lon[0, 1]), float(result.lat[0, 1])
    kind = MODALITIES["s2_toa"]
    with torch.no_grad():
        expected = model(
            torch.tensor(normalised(images, "s2_toa")[None, :, :, 224:]).float(),
            torch.tensor([[lon, lat, 18779, 0.0256]], dtype=torch.float64),
            wavelengths=kind.wavelengths,
            bandwidths=kind.bandwidths,
        )
    np.testing.assert_allclose(result[0, 1], expected[0], rtol=1e-4, atol=1e-5)


def test_tokens_and_own_bands_of_the_real_model(small):
    import torch

    model, encoder = small
    images = utm(64, 128, gsd=6, bands=3).astype("float32") / 3000 - 1.5
    bands = {"wavelengths": [490.0, 560.0, 665.0], "bandwidths": [65.0, 35.0, 30.0]}
    options = {**bands, "kernel_size": 8, "tile": 64, "gsd": 6.0, "date": "2021-06-01"}
    vectors = embed(images, **options, encoder=encoder)
    tokens = embed(images, **options, encoder=encoder, tokens=True)
    told = torch.tensor([[float(vectors.lon[0, 1]), float(vectors.lat[0, 1]), 18779, 0.048**2]])
    tile = torch.tensor(images.values[None, :, :, 64:])
    with torch.no_grad():
        whole = model(tile, told, **bands, kernel_size=8)
        parts = model(tile, told, **bands, kernel_size=8, tokens=True)
    assert tokens.shape == (8, 16, 64)
    np.testing.assert_allclose(vectors[0, 1], whole[0], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(tokens[:, 8:], parts[0].reshape(8, 8, 64), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Supplying chunks as dimension-order")  # rioxarray
def test_the_example_runs(tmp_path, monkeypatch, capsys, no_encoders):
    """With untrained weights of one block instead of twelve."""
    pytest.importorskip("torch")
    from copcube.encoder import weights

    monkeypatch.setattr(weights, "untrained_weights", partial(weights.untrained_weights, depth=1))
    utm(224, 224, bands=13).rio.to_raster(tmp_path / "image.tif")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["own_imagery.py", "image.tif"])
    runpy.run_path(str(ROOT / "examples" / "own_imagery.py"), run_name="__main__")
    said = capsys.readouterr().out
    assert "'dim': 768} vectors, nothing computed yet" in said
    assert said.endswith("cosine similarity to the first tile:\n[[1.]]\n")
