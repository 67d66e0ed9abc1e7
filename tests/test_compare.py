import dataclasses
import sys

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import orthogonal_procrustes
from scipy.spatial import procrustes
from scipy.stats import ortho_group

from copcube import cube, grid
from copcube.cube.compare import QUANTILES, compare
from copcube.errors import CubeError, GridError

LAT = np.arange(60, 45, -0.25)
LON = np.arange(355, 367.5, 0.25) % 360  # across Greenwich
SHAPE = len(LAT), len(LON)


def world(vectors, *, lat=LAT, lon=LON, counts=True, by=None):
    """A cube in memory of vectors (…, lat, lon, dim), NaN where missing."""
    dims = (*([] if by is None else [by]), "lat", "lon")
    ds = xr.Dataset(
        {"embedding": ((*dims, "dim"), np.asarray(vectors, np.float32))},
        coords={"lat": lat, "lon": lon},
    )
    if counts:
        ds["n_images"] = ds.embedding.notnull().all("dim").astype("int32") * 3
    return ds


def random(dim=5, seed=0, share=0.4, offset=0.0, shape=SHAPE):
    rng = np.random.default_rng(seed)
    vectors = rng.normal(offset, 1, (*shape, dim)) @ rng.normal(size=(dim, dim))
    vectors[rng.random(shape) > share] = np.nan
    return vectors.astype(np.float32)


def cloud(*arrays):
    """Vectors of the cells that all have, (n, dim) float64 each."""
    both = np.all([np.isfinite(a).all(-1) for a in arrays], axis=0)
    return [a[both].astype(np.float64) for a in arrays]


def kernel_cka(x, y):
    """CKA from n × n kernels, as Kornblith et al. define it by the HSIC."""
    n = len(x)
    h = np.eye(n) - 1 / n

    def hsic(k, m):
        return np.trace(k @ h @ m @ h)

    k, m = x @ x.T, y @ y.T
    return hsic(k, m) / np.sqrt(hsic(k, k) * hsic(m, m))


def test_a_cube_agrees_with_itself():
    a = world(random())
    found = compare(a, a)
    assert (found.both, found.only_a, found.only_b) == (int((a.n_images > 0).sum()), 0, 0)
    assert (found.identical, found.max_difference, found.dims) == (1, 0, (5, 5))
    assert all(value == pytest.approx(1, abs=1e-15) for value in found.cosine_quantiles.values())
    assert found.norm_ratio_median == 1
    assert found.cka == pytest.approx(1, abs=1e-12)
    assert found.procrustes == pytest.approx(0, abs=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("offset", [0, 1e3])
@pytest.mark.parametrize("seed", range(3))
def test_the_whole_agrees_with_scipy_and_with_kernels(seed, offset):
    a, b = random(seed=seed, offset=offset), random(seed=seed + 10, share=0.6)
    b = np.where(np.random.default_rng(seed).random() > 0.5, b, (a + 0.3 * b)).astype(np.float32)
    found = compare(world(a), world(b))
    x, y = cloud(a, b)
    assert found.both == len(x)
    assert found.procrustes == pytest.approx(procrustes(x, y)[2], rel=1e-8)
    assert found.cka == pytest.approx(kernel_cka(x, y), rel=1e-6)


def test_procrustes_is_what_the_best_rotation_leaves():
    a, b = random(seed=1, share=1), random(seed=2, share=1)
    x, y = (v - v.mean(axis=0) for v in cloud(a, b))
    x, y = x / np.linalg.norm(x), y / np.linalg.norm(y)
    rotation, scale = orthogonal_procrustes(y, x)
    left = np.linalg.norm(x - scale * y @ rotation) ** 2
    assert compare(world(a), world(b)).procrustes == pytest.approx(left, rel=1e-9)


@settings(deadline=None, max_examples=15)
@given(
    seed=st.integers(0, 2**16),
    cells=st.integers(2, 30),
    dims=st.tuples(st.integers(1, 90), st.integers(1, 90)),
    batch=st.integers(1, 30),
)
def test_procrustes_of_few_cells_of_long_vectors(seed, cells, dims, batch):
    """Products of them have a low rank; batches of them are kept until they are many."""
    rng = np.random.default_rng(seed)
    most = max(dims)
    a, b = (rng.normal(size=(1, cells, dim)) * np.logspace(0, -3, dim) for dim in dims)
    place = {"lat": LAT[:1], "lon": LON[:cells]}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys.modules[compare.__module__], "_BATCH", batch)
        found = compare(world(a, **place), world(b, **place))
    x, y = (np.pad(v, ((0, 0), (0, most - v.shape[1]))) for v in cloud(*map(np.float32, (a, b))))
    assert found.procrustes == pytest.approx(procrustes(x, y)[2], rel=1e-8, abs=1e-12)
    assert found.cka == pytest.approx(kernel_cka(x, y), rel=1e-8)


@pytest.mark.slow
@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 2**16), scale=st.sampled_from((1e-3, 1.0, 40.0)))
def test_a_rotation_changes_no_figure_of_the_whole(seed, scale):
    a = random(seed=seed, shape=(20, 30)).astype(np.float64)
    turned = scale * a @ ortho_group.rvs(5, random_state=seed) + 3
    place = {"lat": LAT[:20], "lon": LON[:30]}
    found = compare(world(a, **place), world(turned, **place))
    assert found.cka == pytest.approx(1, abs=1e-6)
    assert found.procrustes == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("counts", [True, False])
def test_every_cell_has_its_cosine_and_ratio(counts):
    a, b = random(seed=3), random(seed=4)
    found = compare(world(a, counts=counts), world(b, counts=counts))
    cosine, ratio = np.full(a.shape[:2], np.nan), np.full(a.shape[:2], np.nan)
    for i, j in np.ndindex(a.shape[:2]):
        u, v = a[i, j].astype(float), b[i, j].astype(float)
        if not (np.isnan(u).any() or np.isnan(v).any()):
            lengths = np.sqrt(u @ u), np.sqrt(v @ v)
            cosine[i, j] = u @ v / lengths[0] / lengths[1]
            ratio[i, j] = lengths[1] / lengths[0]
    np.testing.assert_allclose(found.cosine, cosine, rtol=1e-6, atol=1e-12)
    np.testing.assert_allclose(found.norm_ratio, ratio, rtol=1e-6, atol=1e-12)
    inside = np.isfinite(found.cosine.values)
    expected = np.quantile(found.cosine.values[inside], QUANTILES)
    assert list(found.cosine_quantiles.values()) == expected.tolist()
    assert (found.only_a, found.only_b) == (
        (np.isfinite(a[..., 0]) & ~inside).sum(),
        (np.isfinite(b[..., 0]) & ~inside).sum(),
    )


def test_equal_vectors_and_the_largest_difference_are_counted():
    a = random(share=1)
    b = a.copy()
    b[:20] += np.float32(0.5)
    b[3, 4, 2] = a[3, 4, 2] - 7
    found = compare(world(a), world(b))
    assert found.identical == pytest.approx(1 - 20 / len(LAT))
    assert found.max_difference == pytest.approx(7)


def shuffled(ds):
    """The same cube upside down, from -180 and in other dimensions."""
    ds = ds.assign_coords(lon=(ds.lon + 180) % 360 - 180).sortby("lon").sortby("lat")
    return ds.assign(embedding=ds.embedding.transpose("lon", "dim", "lat"))


@pytest.mark.parametrize("chunks", [None, {"lat": 13, "lon": 17}])
def test_order_and_orientation_do_not_matter(chunks):
    a, b = world(random(seed=5)), world(random(seed=6))
    usual, other = compare(a, b), compare(a, shuffled(b).chunk(chunks) if chunks else shuffled(b))
    for name in ("both", "only_a", "only_b", "identical", "max_difference", "cosine_quantiles"):
        assert getattr(usual, name) == getattr(other, name)
    xr.testing.assert_identical(usual.fields, other.fields)
    flipped = compare(shuffled(a), b)
    assert flipped.cosine.lon.equals(shuffled(a).lon)
    assert np.allclose(
        flipped.cosine.sortby("lat", ascending=False).sel(lon=-2.5).values,
        usual.cosine.sel(lon=357.5).values,
        equal_nan=True,
    )
    assert flipped.cka == pytest.approx(usual.cka, rel=1e-12)


def test_only_the_common_region_is_compared():
    a, b = world(random(seed=7)), world(random(seed=8))
    part_a, part_b = a.isel(lat=slice(0, 50), lon=slice(10, 40)), b.isel(lat=slice(30, 56, 2))
    found = compare(part_a, part_b)
    expected = compare(a.isel(lat=slice(30, 50, 2), lon=slice(10, 40)), b)
    assert found.fields.identical(expected.fields)
    assert dataclasses.replace(found, cka=0, procrustes=0) == dataclasses.replace(
        expected, cka=0, procrustes=0
    )
    assert found.cka == pytest.approx(expected.cka, rel=1e-12)


def test_vectors_of_other_lengths_have_kernels_alone():
    a, b = random(dim=5, seed=1), random(dim=3, seed=2)
    found = compare(world(a), world(b))
    x, y = cloud(a, b)
    assert found.dims == (5, 3)
    assert found.cka == pytest.approx(kernel_cka(x, y), rel=1e-6)
    padded = np.pad(y, ((0, 0), (0, 2)))
    assert found.procrustes == pytest.approx(procrustes(x, padded)[2], rel=1e-8)
    assert (found.identical, found.max_difference, found.cosine_quantiles) == (None, None, None)
    assert np.isnan(found.cosine).all()
    assert np.isfinite(found.norm_ratio).sum() == found.both


def test_groups_are_compared_one_by_one():
    a, b = random(shape=(4, *SHAPE)), random(shape=(4, *SHAPE), seed=9)
    cubes = world(a, by="season"), world(b, by="season")
    found = compare(*cubes)
    assert found.cosine.dims == ("season", "lat", "lon")
    for i in range(4):
        alone = compare(*(c.isel(season=i) for c in cubes))
        assert np.array_equal(alone.cosine, found.cosine.isel(season=i), equal_nan=True)
    assert found.both == len(cloud(a, b)[0])
    assert found.procrustes == pytest.approx(procrustes(*cloud(a, b))[2], rel=1e-8)
    with pytest.raises(CubeError, match="no leading dimension; choose the same groups"):
        compare(cubes[0], cubes[1].isel(season=0))


def test_groups_of_other_labels_are_refused():
    ds = world(random(shape=(2, *SHAPE)), by="modality")
    flags = {"flag_values": [0, 1]}
    a, b = (
        ds.assign_coords(modality=("modality", np.int8([0, 1]), flags | {"flag_meanings": text}))
        for text in ("s1_grd dem", "s1_grd s2_toa")
    )
    assert compare(a, a).identical == 1
    with pytest.raises(CubeError, match="modality s1_grd dem, the second modality s1_grd s2_toa"):
        compare(a, b)


def test_reductions_are_compared_alike():
    a = world(random()).rename(embedding="pc", dim="component").drop_vars("n_images")
    b = a.assign(pc=-2 * a.pc)
    found = compare(a, b)
    assert found.cosine_quantiles[0.5] == pytest.approx(-1)
    assert found.norm_ratio_median == 2
    assert found.cka == pytest.approx(1)


def test_what_does_not_vary_has_no_alignment():
    constant = np.ones((*SHAPE, 5))
    found = compare(world(constant), world(random()))
    assert np.isnan(found.cka)
    assert np.isnan(found.procrustes)
    nothing = compare(world(constant * np.nan), world(constant))
    assert (nothing.both, nothing.only_b, nothing.identical) == (0, LAT.size * LON.size, None)
    assert "nan" in str(nothing)


def test_a_vector_that_was_taken_away_is_missing_whatever_its_count():
    a = world(random(share=1))
    holed = a.assign(embedding=a.embedding.where(a.lat > 50))
    found = compare(a, holed)
    assert (found.both, found.only_a) == ((LAT > 50).sum() * len(LON), (LAT <= 50).sum() * len(LON))
    assert found.cka == pytest.approx(1)


def test_the_table_is_for_people():
    a = random(seed=1)
    lines = dict(compare(world(a), world(a + np.float32(0.25))).lines())
    assert lines["largest difference"] == "0.25"
    assert lines["identical"] == "0.00%"
    text = str(compare(world(a), world(random(dim=3))))
    assert "5 and 3" in text
    assert "cosine" not in text


def test_what_cannot_be_compared_is_refused():
    a = world(random())
    with pytest.raises(GridError, match=r"latitude 60\.1 is not a node"):
        compare(a, a.assign_coords(lat=LAT + 0.1))
    with pytest.raises(GridError, match=r"longitude .* is not a node"):
        compare(a.assign_coords(lon=LON + 0.05), a)
    with pytest.raises(CubeError, match="no cell of the lattice in common"):
        compare(a, a.assign_coords(lat=LAT - 90))
    with pytest.raises(CubeError, match="found ndarray; open a file with"):
        compare(a, a.embedding.values)
    with pytest.raises(CubeError, match="embedding"):
        compare(a, a.drop_vars(["embedding", "n_images"]).assign(z=("lat", LAT)))


@pytest.mark.slow
def test_a_cube_on_disk_is_read_in_tiles(tmp_path, monkeypatch):
    from test_cube import DIM, build, cells_of  # the writer's own test of what lies there

    cells = cells_of()
    path = build(tmp_path / "a.zarr", cells)
    lazy = cube.open_cube(path)
    whole = xr.open_zarr(path, chunks=None).load()
    whole["embedding"] = whole.embedding + xr.zeros_like(whole.lon).where(whole.lon < 90, 1.0)
    found = compare(lazy, whole)
    west = grid.row_col(cells.grid_id)[1] < 360
    assert found.both == len(cells)
    assert found.identical == pytest.approx(west.mean())
    assert found.dims == (DIM, DIM)
    assert found.fields.sizes == {"lat": 721, "lon": 1440}


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        ([0, 1, 2], [3, 4, 5], r"numbered 0 to 2, those of the other dataset 3 to 5"),
        ([0, 1, 3], [0, 1, 2], r"numbered 0 to 3, those"),
        ([0, 1, 2], [1, 2, 3], None),  # counted from 1
        (["a", "b", "c"], [0, 1, 2], None),
    ],
)
def test_other_selections_of_values_are_no_vectors_of_one_kind(a, b, message):
    one = world(random(3))
    first, second = one.assign_coords(dim=a), one.assign_coords(dim=b)
    if message is None:
        assert compare(first, second).identical == 1
        return
    with pytest.raises(CubeError, match=message):
        compare(first, second)
