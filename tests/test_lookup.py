"""Look-alikes and classes, against scikit-learn and closed forms."""

import inspect

import numpy as np
import pytest
import xarray as xr
from sklearn.metrics.pairwise import cosine_similarity, haversine_distances

from copcube.cli import main
from copcube.cli.main import parser
from copcube.errors import CubeError, GridError, OptionError
from copcube.lookup import Fragments, change, cluster, similar

LAT, LON = np.arange(72, 45, -0.25), np.arange(-10, 14, 0.25)
DIM = 9


def cube(seed=0, dtype=np.float32, counts=True, scale=1.0):
    """A cube whose cells are two thirds filled."""
    rng = np.random.default_rng(seed)
    x = (scale * rng.normal(size=(len(LAT), len(LON), DIM)) + 0.3 * scale).astype(dtype)
    there = rng.random(x.shape[:2]) < 2 / 3
    x[~there] = np.nan
    ds = xr.Dataset({"embedding": (("lat", "lon", "dim"), x)}, {"lat": LAT, "lon": LON})
    return ds.assign(n_images=(("lat", "lon"), there.astype("i4"))) if counts else ds


def test_places_lie_as_far_apart_in_python_as_by_the_command():
    for words, function in (
        (["similar", "world.zarr", "48", "11"], similar),
        (["change", "a.zarr", "b.zarr", "c.nc"], change),
        (["nearest", "rows", "--row", "0"], Fragments.nearest),
    ):
        in_python = inspect.signature(function).parameters["exclude_km"].default
        assert parser().parse_args(words).exclude_km == in_python == 100


def test_one_place_is_looked_for():
    # NumPy could not broadcast them, it said.
    with pytest.raises(OptionError, match=r"lat is \[60, 61\].*expected one number"):
        similar(cube(), [60, 61], [5, 6])
    with pytest.raises(OptionError, match="a vector as vector="):
        similar(cube(), cube().embedding[0, 0])


@pytest.mark.parametrize("counts", [True, False])
def test_cells_in_no_order_are_as_similar(counts):
    ds, rng = cube(counts=counts), np.random.default_rng(0)
    shuffled = ds.isel(lat=rng.permutation(len(LAT)), lon=rng.permutation(len(LON)))
    i, j = np.argwhere(np.isfinite(ds.embedding.values).all(-1))[777]
    want, found = (similar(c, LAT[i], LON[j], n=5) for c in (ds, shuffled))
    assert found.similarity.sortby(["lat", "lon"]).equals(want.similarity.sortby(["lat", "lon"]))
    assert found.place_lat.equals(want.place_lat)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("counts", [True, False])
@pytest.mark.parametrize("chunks", [None, {"lat": 50, "lon": 17}])
def test_similarity_is_the_cosine(dtype, counts, chunks):
    ds = cube(dtype=dtype, counts=counts)
    i, j = np.argwhere(np.isfinite(ds.embedding.values).all(-1))[777]
    found = similar(ds if chunks is None else ds.chunk(chunks), LAT[i], LON[j], n=5)
    x = ds.embedding.values.reshape(-1, DIM).astype(float)
    there = np.isfinite(x).all(-1)
    want = np.full(len(x), np.nan)
    want[there] = cosine_similarity(x[there], x[i * len(LON) + j][None])[:, 0]
    np.testing.assert_allclose(found.similarity.values.ravel(), want, atol=1e-6)
    want[i * len(LON) + j] = np.nan  # its own cell
    best = np.argsort(np.where(np.isnan(want), -np.inf, want))[::-1][:5]
    np.testing.assert_array_equal(found.place_lat, LAT[best // len(LON)])
    np.testing.assert_array_equal(found.place_lon, LON[best % len(LON)])
    np.testing.assert_allclose(found.place_similarity, want[best], atol=1e-6)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_distance_is_exact_for_vectors_far_from_zero(dtype):
    ds = cube(dtype=np.float32)
    ds["embedding"] = (ds.embedding + 4096).astype(dtype)
    vector = ds.embedding.values[np.isfinite(ds.embedding.values).all(-1)][0]
    found = similar(ds, vector=vector, metric="euclidean", n=1)
    want = np.linalg.norm(ds.embedding.values.astype(float) - vector, axis=-1)
    np.testing.assert_allclose(found.distance, want, rtol=1e-6)
    assert float(found.place_distance[0]) == 0


def test_a_place_that_is_there_twice_is_listed_once():
    # The first of those like a place at 0° was that place itself, at 360°.
    ds = cube()
    closed = xr.concat([ds, ds.isel(lon=[0]).assign_coords(lon=ds.lon[:1] + 360)], "lon")
    row = int(np.flatnonzero(ds.n_images[:, 0])[0])
    places = [similar(one, LAT[row], LON[0], n=3) for one in (closed, ds)]
    for name in ("place_lat", "place_lon"):
        assert places[0][name].values.tolist() == places[1][name].values.tolist()


def test_places_lie_apart():
    ds = cube()
    i, j = np.argwhere(ds.n_images.values > 0)[400]
    found = similar(ds, LAT[i], LON[j], n=8, exclude_km=300)
    places = np.radians([[LAT[i], LON[j]], *found[["place_lat", "place_lon"]].to_array().values.T])
    apart = haversine_distances(places) * 6371.0088 + 1e9 * np.eye(len(places))
    assert found.sizes["place"] == 8
    assert apart.min() > 300
    # Whatever is better than a listed place lies near the point or one that is better still.
    values = found.similarity.values
    for rank in range(8):
        better = np.argwhere(values > float(found.place_similarity[rank]))
        near = haversine_distances(
            np.radians(np.stack([LAT[better[:, 0]], LON[better[:, 1]]], axis=1)), places[: rank + 1]
        )
        assert (near.min(axis=1) * 6371.0088 <= 300 + 1e-6).all()


def test_fewer_places_than_asked_for_and_all_of_them():
    ds = cube().isel(lat=slice(0, 3), lon=slice(0, 3))
    filled = int((ds.n_images > 0).sum())
    assert similar(ds, vector=np.ones(DIM), n=100, exclude_km=0).sizes["place"] == filled
    far = similar(ds, vector=np.ones(DIM), n=100, exclude_km=20000)
    assert far.sizes["place"] == 1
    assert float(far.place_similarity[0]) == float(far.similarity.max())


@pytest.mark.parametrize(("scale", "to"), [(1e25, 1e30), (1e-25, 1e-26)])
def test_values_whose_squares_leave_the_range_of_float32(scale, to):
    ds = cube(scale=scale)
    vector = np.full(DIM, to)
    x = ds.embedding.values.astype(float)
    for metric, want in (
        ("cosine", x @ vector / np.linalg.norm(x, axis=-1) / np.linalg.norm(vector)),
        ("euclidean", np.linalg.norm(x - vector, axis=-1)),
    ):
        found = similar(ds, vector=vector, metric=metric)
        values = found["similarity" if metric == "cosine" else "distance"]
        np.testing.assert_allclose(values, want, rtol=1e-5)


def test_counts_decide_what_is_there():
    ds = cube()
    ds["embedding"] = ds.embedding.fillna(1)  # values where no image is counted
    found = similar(ds, vector=np.ones(DIM))
    np.testing.assert_array_equal(np.isfinite(found.similarity), ds.n_images > 0)
    with pytest.raises(CubeError, match="vectors of zeros"):
        similar(ds.drop_vars("n_images").fillna(0) * 0, vector=np.ones(DIM))


def test_questions_without_an_answer():
    ds = cube()
    cases = [
        (OptionError, "as lat and lon, or a vector", {}),
        (OptionError, "as lat and lon, or a vector", {"lat": 50}),
        (OptionError, "as lat and lon, or a vector", {"lat": 50, "lon": 3, "vector": [1]}),
        (OptionError, r"shape \(1,\)", {"vector": [1]}),
        (OptionError, "nothing is like it", {"vector": np.zeros(DIM)}),
        (OptionError, "nothing is like it", {"vector": np.full(DIM, np.nan)}),
        (OptionError, "metric='angle'", {"vector": np.ones(DIM), "metric": "angle"}),
        (OptionError, "n is 0", {"vector": np.ones(DIM), "n": 0}),
        (OptionError, "exclude_km=-1", {"vector": np.ones(DIM), "exclude_km": -1}),
        (GridError, "does not reach", {"lat": -50, "lon": 3}),
        (GridError, "beyond a pole", {"lat": 95, "lon": 3}),
    ]
    for error, match, options in cases:
        with pytest.raises(error, match=match):
            similar(ds, **options)
    with pytest.raises(CubeError, match=r"isel\(season=0\)"):
        similar(ds.expand_dims(season=2), vector=np.ones(DIM))


def test_on_the_command_line(tmp_path, capsys):
    ds = cube()
    ds.to_netcdf(tmp_path / "cube.nc")
    i, j = np.argwhere(ds.n_images.values > 0)[500]
    words = ["similar", str(tmp_path / "cube.nc"), "-n", "3", "--exclude-km", "200", "--"]
    assert main([*words, str(LAT[i]), str(LON[j])]) == 0
    shown = capsys.readouterr().out
    found = similar(ds, LAT[i], LON[j], n=3, exclude_km=200)
    for lat, lon in zip(found.place_lat.values, found.place_lon.values, strict=True):
        assert f"{lat:.2f}" in shown
        assert f"{lon:.2f}" in shown
    assert main([*words, "95", "0"]) == 1
    assert "beyond a pole" in capsys.readouterr().err


# Classes


def groups(n=4, noise=0.05, seed=0):
    """A cube of n kinds of places, in bands of latitude, and which cell is of which."""
    rng = np.random.default_rng(seed)
    ds = cube(seed)
    kind = np.arange(len(LAT)) ** 2 * n // len(LAT) ** 2
    kind = np.broadcast_to(kind[:, None], ds.n_images.shape)
    x = rng.normal(size=(n, DIM))[kind] + noise * rng.normal(size=ds.embedding.shape)
    x[ds.n_images.values == 0] = np.nan
    return ds.assign(embedding=(ds.embedding.dims, x)), kind


def test_classes_are_the_kinds_by_falling_area():
    ds, kind = groups()
    found = cluster(ds, 4)
    there = ds.n_images.values > 0
    np.testing.assert_array_equal(found.cluster.values == -1, ~there)
    pairs = set(zip(found.cluster.values[there].tolist(), kind[there].tolist(), strict=True))
    assert len(pairs) == 4  # one class a kind
    area = np.broadcast_to(np.cos(np.radians(LAT))[:, None], there.shape)
    shares = np.array([area[found.cluster.values == i].sum() for i in range(4)])
    np.testing.assert_allclose(found.share, shares / shares.sum(), atol=1e-4)
    assert (np.diff(found.share) <= 0).all()
    for i in range(4):
        here = found.cluster.values == i
        mean = np.average(ds.embedding.values[here], axis=0, weights=area[here])
        np.testing.assert_allclose(found.centre[i], mean, atol=1e-4)
    assert 0 < found.within < 0.02


def test_centres_are_the_means_of_classes_that_are_hard_to_tell():
    ds, _ = groups(noise=1)
    found = cluster(ds, 7)
    x, there = ds.embedding.values, ds.n_images.values > 0
    area = np.broadcast_to(np.cos(np.radians(LAT))[:, None], there.shape)
    off = 0
    for i in range(7):
        here = found.cluster.values == i
        mean = np.average(x[here], axis=0, weights=area[here])
        np.testing.assert_allclose(found.centre[i], mean, atol=1e-9)
        off += (area[here] * ((x[here] - mean) ** 2).sum(1)).sum()
    mean = np.average(x[there], axis=0, weights=area[there])
    whole = (area[there] * ((x[there] - mean) ** 2).sum(1)).sum()
    np.testing.assert_allclose(found.within, off / whole, rtol=1e-9)


@pytest.mark.slow
def test_classes_do_not_depend_on_chunks_and_can_be_saved(tmp_path):
    ds, _ = groups(noise=1)
    found = cluster(ds, 5)
    closed = xr.concat([ds, ds.isel(lon=[0]).assign_coords(lon=ds.lon[:1] + 360)], "lon")
    xr.testing.assert_identical(cluster(closed, 5).isel(lon=slice(-1)), found)
    assert np.array_equal(cluster(closed, 5).cluster[:, -1], found.cluster[:, 0])
    xr.testing.assert_identical(cluster(ds.chunk({"lat": 11, "lon": 50}), 5), found)
    found.to_netcdf(tmp_path / "classes.nc")
    again = xr.load_dataset(tmp_path / "classes.nc")
    np.testing.assert_array_equal(again.cluster, found.cluster)


def test_classes_that_cannot_be():
    ds, _ = groups()
    for n in (1, 0, 2.5, True, 40000):
        with pytest.raises(OptionError, match="n is"):
            cluster(ds, n)
    with pytest.raises(OptionError, match="seed is -1"):
        cluster(ds, 2, seed=-1)
    with pytest.raises(OptionError, match="seed is 4294967296"):
        cluster(ds, 2, seed=2**32)
    with pytest.raises(CubeError, match="too few for 20000"):
        cluster(ds, 20000)
    with pytest.raises(CubeError, match="select one"):
        cluster(ds.expand_dims(season=2), 2)


@pytest.mark.parametrize(
    "form",
    [
        lambda ds: ds.isel(lat=slice(None, None, -1)),
        lambda ds: ds.isel(lon=slice(None, None, -1)).chunk(lat=11, lon=50),
        lambda ds: ds.assign_coords(lon=ds.lon % 360).sortby("lon"),
    ],
)
def test_classes_do_not_depend_on_the_order_of_the_cells(form):
    ds = cube().isel(lat=slice(30), lon=slice(60))
    found, other = cluster(ds, 4), cluster(form(ds), 4)
    assert list(other.lat) == list(form(ds).lat)
    assert list(other.lon) == list(form(ds).lon)
    other = other.assign_coords(lon=(other.lon + 180) % 360 - 180).sel(lat=ds.lat, lon=ds.lon)
    assert np.array_equal(other.cluster, found.cluster)
    assert np.array_equal(other.centre, found.centre)


@pytest.mark.parametrize("wrong", ["500", None, [500], np.nan, -1])
def test_distances_and_vectors_are_numbers(wrong):
    ds = cube().isel(lat=slice(3), lon=slice(3))
    with pytest.raises(OptionError, match="exclude_km"):
        ds.copembed.similar(vector=np.ones(DIM), exclude_km=wrong)
    with pytest.raises(OptionError, match="exclude_km"):
        ds.copembed.change(ds, exclude_km=wrong)
    for vector in ("a vector", ds, ["a"] * DIM, np.ones(DIM, complex), np.ones(DIM, "m8[s]")):
        with pytest.raises(OptionError, match=r"vector is .*; expected an array of numbers"):
            similar(ds, vector=vector)
    masked = np.ma.masked_greater(np.arange(DIM), 1)  # over numbers that look like any others
    with pytest.raises(OptionError, match="zero or not finite"):
        similar(ds, vector=masked)
