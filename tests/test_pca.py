import json
import os
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

import copcube
from copcube import cube as cubes
from copcube import grid, pca
from copcube.cells import Cells
from copcube.cube.view import CubeView
from copcube.errors import CubeError, OptionError
from copcube.pca.blas import one_thread
from copcube.pca.moments import Moments

LAT, LON = np.arange(72, 45, -0.25), np.arange(3, 27, 0.25)
DIM = 20
BASIS = ["components", "mean", "explained_variance", "explained_variance_ratio"]
PARTS = [*BASIS, "pc"]


def made(values, lead=(), counts=True, lat=LAT, lon=LON):
    """A cube of given vectors (…, lat, lon, dim)."""
    dims = (*lead, "lat", "lon")
    ds = xr.Dataset({"embedding": ((*dims, "dim"), values)}, {"lat": lat, "lon": lon})
    if counts:
        ds["n_images"] = dims, np.isfinite(values).all(-1).astype(np.int32)
    return ds


def drawn(seed=0, lead=(), dtype=np.float32, change=lambda x, rng: x, **options):
    """A cube of smooth spectrum, changed by a function, two thirds of it filled."""
    rng = np.random.default_rng(seed)
    shape = (*(size for _, size in lead), len(LAT), len(LON))
    turn = np.linalg.qr(rng.normal(size=(DIM, DIM)))[0]
    x = rng.normal(size=(*shape, DIM)) * (1.3 ** -np.arange(DIM)) @ turn + rng.normal(size=DIM)
    x = change(x, rng)
    x[rng.random(shape) < 1 / 3] = np.nan
    return made(x.astype(dtype), tuple(name for name, _ in lead), **options)


def reference(ds, weights="area"):
    """Components, variances, mean by a float64 SVD of all vectors; numpy's weighted cov."""
    x = ds.embedding.transpose(..., "lat", "lon", "dim").values.astype(np.float64)
    if isinstance(weights, str):
        edges = np.clip([LAT + 0.125, LAT - 0.125], -90, 90)
        north, south = np.sin(np.radians(edges))
        weights = np.broadcast_to((north - south)[:, None], (len(LAT), len(LON)))
    elif weights is None:
        weights = np.ones((len(LAT), len(LON)))
    here = np.isfinite(x).all(-1)
    w = np.broadcast_to(weights, here.shape)[here]
    x, w = x[here], w / w.sum()
    mean = x[0] + np.average(x - x[0], axis=0, weights=w)
    _, s, components = np.linalg.svd((x - mean) * np.sqrt(w)[:, None], full_matrices=False)
    return components, s**2 / (1 - (w**2).sum()), mean


def angle(a, b):
    """Sine of the largest angle between the spaces of the rows of a and b."""
    return np.linalg.norm(a - (a @ b.T) @ b, 2)


def same_bits(a, b, names=PARTS):
    return all(a[name].values.tobytes() == b[name].values.tobytes() for name in names)


NASTY = {
    "plain": (np.float32, lambda x, rng: x),
    "mean 1e4 sigma": (np.float32, lambda x, rng: x + 1e4),
    "tiny variance": (np.float32, lambda x, rng: 1 + 1e-5 * x),
    "tiny values": (np.float32, lambda x, rng: 1e-25 * x),
    "huge values": (np.float32, lambda x, rng: 1e30 * x),
    "float64, mean 1e9 sigma": (np.float64, lambda x, rng: 1e9 + x),
    "float64 beyond float32": (np.float64, lambda x, rng: 1e60 * x),
    "float16": (np.float16, lambda x, rng: x + 10),
    "constant dimension": (np.float32, lambda x, rng: np.where(np.arange(DIM) == 3, 7.1, x)),
    "outlying dimension": (np.float32, lambda x, rng: x * 1e3 ** (np.arange(DIM) == 3)),
    "steep spectrum": (np.float64, lambda x, rng: x * 2.0 ** -np.arange(DIM)),
    "no preferred direction": (np.float32, lambda x, rng: rng.normal(size=x.shape)),
    "drift": (np.float32, lambda x, rng: x + 10 * np.arange(len(LAT))[:, None, None]),
    "one cell far away": (np.float32, lambda x, rng: np.where(_first(x), 1e4, x)),
}


def _first(x):
    return (np.arange(x.shape[0])[:, None, None] < 2) & (np.arange(x.shape[1])[:, None] < 2)


@pytest.mark.parametrize("name", NASTY)
def test_agrees_with_an_svd_in_float64(name):
    dtype, change = NASTY[name]
    ds, k = drawn(dtype=dtype, change=change), 15
    basis = pca.fit(ds, k)
    components, variance, mean = reference(ds)
    deviation, eps = np.sqrt(variance[0]), np.finfo(np.float64).eps
    off = np.abs(basis.explained_variance - variance[:k]).max()
    assert off < 5e-14 * variance[0] + eps * np.abs(mean).max() * deviation
    assert np.allclose(basis.explained_variance, variance[:k], rtol=1e-6, atol=0)
    ratio = variance[:k] / variance.sum()
    assert np.allclose(basis.explained_variance_ratio, ratio, rtol=1e-6, atol=0)
    for few in (1, 5, 15):
        assert angle(basis.components.values[:few], components[:few]) < 1e-5
        assert same_bits(basis.isel(component=slice(few)), pca.fit(ds, few), BASIS)
    assert np.abs(basis["mean"] - mean).max() < 1e-6 * deviation + 1e-15 * np.abs(mean).max()
    identity = basis.components.values @ basis.components.values.T
    assert np.allclose(identity, np.eye(k), atol=1e-12)


SLOPES, SEEDS = (0, 0.5, 1, 2, 4, 8), 40
SPECTRA = """
import json, sys
import numpy as np
import threadpoolctl
import xarray as xr
from copcube import pca

n, dim, worst = (50, 40), 30, {}
lat, lon = 60 - 0.25 * np.arange(n[0]), 0.25 * np.arange(n[1])
for slope in map(float, sys.argv[2:]):
    errors = worst[slope] = [0.0, 0.0, 0.0]
    for seed in range(int(sys.argv[1])):
        rng = np.random.default_rng([seed, int(2 * slope)])
        x = rng.normal(size=(*n, dim)) * np.arange(1, dim + 1.0) ** -slope
        x = (x @ np.linalg.qr(rng.normal(size=(dim, dim)))[0]).astype(np.float32)
        ds = xr.Dataset({"embedding": (("lat", "lon", "dim"), x)}, {"lat": lat, "lon": lon})
        y = x.reshape(-1, dim).astype(np.longdouble)
        y -= y.mean(axis=0)
        s, axes = np.linalg.svd(y.astype(np.float64), full_matrices=False)[1:]
        exact = s**2 / (len(y) - 1)
        k = int((exact > 1e-9 * exact[0]).sum())
        basis = pca.fit(ds, k, weights=None)
        off = np.abs(basis.explained_variance.values - exact[:k])
        errors[0] = max(errors[0], (off / exact[0]).max())
        errors[1] = max(errors[1], (off / exact[:k])[exact[:k] > 1e-7 * exact[0]].max())
        for few in (1, 4, 12, 29):
            if few < k:  # by how much the space of the first turns, times what keeps it in place
                a, b = basis.components.values[:few], axes[:few]
                turn, gap = np.linalg.norm(a - (a @ b.T) @ b), exact[few - 1] - exact[few]
                errors[2] = max(errors[2], turn * gap / exact[0])
kernels = {lib.get("architecture") for lib in threadpoolctl.threadpool_info()} - {None}
print(json.dumps({"worst": worst, "kernels": sorted(kernels)}))
"""


def errors_of_spectra(kernel, seeds=SEEDS, slopes=SLOPES):
    """Largest errors by slope of the spectrum, and the names of the kernels of BLAS in use."""
    names = {key: value for key, value in os.environ.items() if key != "OPENBLAS_CORETYPE"}
    names["OPENBLAS_NUM_THREADS"] = "1"
    if kernel is not None:
        names["OPENBLAS_CORETYPE"] = kernel
    command = [sys.executable, "-c", SPECTRA, str(seeds), *map(str, slopes)]
    done = subprocess.run(command, env=names, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    return found["worst"], found["kernels"]


@pytest.mark.slow
def test_every_spectrum_is_exact_with_every_kernel():
    """What float64 promises: errors of a variance and of a space, relative to the largest one."""
    used = []
    for kernel in (None, "Prescott"):  # what suits the processor, and what every x86-64 has
        worst, kernels = errors_of_spectra(kernel)
        used.append(kernels)
        assert len(worst) == len(SLOPES)
        for slope, (absolute, relative, turn) in worst.items():
            assert absolute < 5e-14, (kernels, slope)
            assert relative < 1e-7, (kernels, slope)
            assert turn < 1e-13, (kernels, slope)
    if used[0] == used[1]:
        pytest.skip(f"the BLAS of this machine has but one kernel, {used[0]}")


def test_a_share_of_variance():
    ds = drawn()
    _, variance, _ = reference(ds)
    explained = np.cumsum(variance) / variance.sum()
    for share in (0.1, 0.5, 0.9, 0.999):
        basis = pca.fit(ds, share)
        assert basis.sizes["component"] == int((explained < share).sum()) + 1
        assert float(basis.explained_variance_ratio.sum()) >= share
        assert float(basis.explained_variance_ratio[:-1].sum()) < share


def test_unweighted_is_numpys_covariance():
    ds = drawn()
    x = ds.embedding.values.reshape(-1, DIM).astype(np.float64)
    values = np.linalg.eigvalsh(np.cov(x[np.isfinite(x).all(1)].T))[::-1]
    assert np.allclose(pca.fit(ds, 7, weights=None).explained_variance, values[:7], rtol=1e-9)


def test_weights_given_as_a_field():
    ds = drawn()
    rng = np.random.default_rng(5)
    field = ds.n_images.copy(data=rng.integers(0, 4, ds.n_images.shape).astype(np.float32))
    components, variance, _ = reference(ds, field.values)
    for weights in (field, field.T, field.rename(lat="latitude", lon="longitude"), field.chunk()):
        basis = pca.fit(ds, 4, weights=weights)
        assert np.allclose(basis.explained_variance, variance[:4], rtol=1e-6)
        assert angle(basis.components.values, components[:4]) < 1e-5
        assert basis.attrs["reduction_weights"] == "given"
    assert same_bits(basis, pca.fit(ds, 4, weights=field * 2.0**-90), BASIS)
    lat = np.cos(np.radians(ds.lat))  # away from the poles, areas go with it
    area = pca.fit(ds, 4, weights=xr.ones_like(field) * lat)
    assert np.allclose(area.components, pca.fit(ds, 4).components, atol=1e-10)


def test_weights_along_latitude_alone_are_those_of_all_longitudes():
    ds = drawn()
    cosine = np.cos(np.deg2rad(ds.lat))
    whole = pca.fit(ds, 3, weights=cosine * xr.ones_like(ds.lon))
    assert same_bits(pca.fit(ds, 3, weights=cosine), whole, BASIS)
    with pytest.raises(OptionError, match="weights differ from the cube in lat"):
        pca.fit(ds, 3, weights=cosine[::-1])


def test_cells_of_weight_zero_shape_nothing_but_are_projected():
    ds = drawn()
    ds.embedding[:40] *= 1000
    weights = xr.ones_like(ds.n_images, float)
    weights[:40] = 0
    fields = pca.reduce(ds, 3, weights=weights)
    rest = pca.fit(ds.isel(lat=slice(40, None)), 3, weights=None)
    assert np.allclose(fields.explained_variance, rest.explained_variance, rtol=1e-9)
    assert fields.attrs["reduction_cells"] == int(ds.n_images[40:].sum())
    assert np.array_equal(fields.pc.notnull().all("component"), ds.n_images > 0)


@pytest.mark.parametrize("turn", [360, 0])
def test_a_meridian_that_is_there_twice_counts_once(turn):
    # Maps are closed by the first meridian at their end; its vectors had twice the weight.
    ds = drawn()
    last = ds.isel(lon=[0]).assign_coords(lon=ds.lon[:1] + turn)
    closed = xr.concat([ds, last], "lon")
    assert same_bits(pca.fit(closed, 4), pca.fit(ds, 4), BASIS)
    assert pca.reduce(closed, 4).pc[:, -1].notnull().any()
    assert closed.copembed.coverage == pytest.approx(ds.copembed.coverage, rel=1e-12)


@pytest.mark.parametrize("step", [2.5, 5.625])
def test_cells_of_coarser_grids_have_their_own_size(step):
    rng = np.random.default_rng(0)
    lat, lon = 90 - step * np.arange(6), step * np.arange(20)
    x = rng.normal(size=(len(lat), len(lon), 3)) + np.arange(6)[:, None, None]
    ds = made(x, lat=lat, lon=lon)
    ds.embedding.attrs["cell_degrees"] = (step, step)
    edges = np.sin(np.radians(np.clip([lat + step / 2, lat - step / 2], -90, 90)))
    weights = np.broadcast_to((edges[0] - edges[1])[:, None], x.shape[:2])
    want = np.average(x, axis=(0, 1), weights=np.broadcast_to(weights[..., None], x.shape))
    fields = pca.reduce(ds, 3)
    np.testing.assert_allclose(fields["mean"], want, rtol=1e-12)
    # Nodes of 2.5° are nodes of the lattice: what comes of them says how large its cells are.
    for result in (fields, pca.restore(fields)):
        assert int(result.copembed.at(lat[2] + 1, lon[3] - 1).lat) == int(lat[2])


def test_weights_that_vanish_far_away():
    ds = drawn()
    distance = (ds.lat - 60) ** 2 + (ds.lon - 15) ** 2
    weights = np.exp(-1.5 * distance).where(ds.n_images > 0)
    assert 0 < float(weights.min()) < 1e-200
    components, variance, _ = reference(ds, weights.values)
    basis = pca.fit(ds, 2, weights=weights)
    assert np.allclose(basis.explained_variance, variance[:2], rtol=1e-6)
    assert angle(basis.components.values, components[:2]) < 1e-5


@pytest.mark.slow
def test_groups_are_fitted_together():
    ds = drawn(lead=(("season", 3),))
    components, variance, _ = reference(ds)
    for form in (ds, ds.transpose("dim", "lon", "season", "lat"), ds.chunk(season=1)):
        fields = pca.reduce(form, 4)
        assert fields.pc.dims == ("season", "lat", "lon", "component")
        assert np.allclose(fields.explained_variance, variance[:4], rtol=1e-6)
        assert angle(fields.components.values, components[:4]) < 1e-5
    one = pca.project(ds.isel(season=1), fields)
    assert same_bits(one, fields.isel(season=1), ["pc"])


def test_each_component_has_its_largest_entry_positive():
    for seed in range(5):
        components = pca.fit(drawn(seed), 10).components.values
        assert (components.max(axis=1) == np.abs(components).max(axis=1)).all()


CHUNKS = [
    {},
    {"lat": 45, "lon": 45},
    {"lat": 7, "lon": 50, "dim": 3},
    {"lat": 1},
    {"dim": 1},
    {"lat": (5, 100, 3), "lon": (95, 1)},
]


@pytest.mark.slow
@pytest.mark.parametrize("chunks", CHUNKS)
def test_the_same_bits_for_every_chunking(chunks):
    ds = drawn()
    chunked = ds.chunk(chunks)
    expected, found = pca.reduce(ds, 6), pca.reduce(chunked, 6)
    assert found.pc.chunks is not None
    assert same_bits(expected, found)
    assert same_bits(pca.restore(expected), pca.restore(found), ["embedding"])


@pytest.mark.slow
@settings(max_examples=6, deadline=None)
@given(
    lat=st.lists(st.integers(8, 60), min_size=1, max_size=6),
    lon=st.lists(st.integers(8, 60), min_size=1, max_size=6),
    dim=st.integers(1, DIM),
)
def test_the_same_bits_for_any_chunking(lat, lon, dim):
    def tiling(sizes, n):
        cuts = [c for c in np.cumsum(sizes).tolist() if c < n]
        return tuple(np.diff([0, *cuts, n]).tolist())

    ds = drawn()
    chunked = ds.chunk({"lat": tiling(lat, len(LAT)), "lon": tiling(lon, len(LON)), "dim": dim})
    assert same_bits(pca.reduce(ds, 3), pca.reduce(chunked, 3))


@pytest.mark.parametrize("shuffled", [("lat",), ("lon",), ("lat", "lon")])
def test_cells_in_no_order_are_read_once_and_have_the_same_components(shuffled):
    # Each cell was read, and multiplied, alone.
    ds, read = drawn(), []
    lazy = ds.chunk(lat=27, lon=24)
    noted = lazy.embedding.data.map_blocks(lambda b: (read.append(1), b)[1], dtype="f4")
    lazy = lazy.assign(embedding=(lazy.embedding.dims, noted))
    read.clear()
    rng = np.random.default_rng(0)
    for dim in shuffled:
        lazy = lazy.isel({dim: rng.permutation(ds.sizes[dim])})
    assert same_bits(pca.fit(lazy, 6), pca.fit(ds, 6), BASIS)
    assert len(read) == 16


@pytest.mark.slow
def test_the_same_bits_from_zarr_and_netcdf(tmp_path):
    ds = drawn()
    expected = pca.reduce(ds, 6)
    encoding = {"embedding": {"chunks": (50, 31, 7)}}
    ds.to_zarr(tmp_path / "a.zarr", encoding=encoding, zarr_format=3, consolidated=False)
    ds.to_netcdf(tmp_path / "a.nc")
    for chunks in ({}, None, "auto"):
        opened = xr.open_zarr(tmp_path / "a.zarr", chunks=chunks, consolidated=False)
        assert same_bits(expected, pca.reduce(opened, 6))
    with xr.open_dataset(tmp_path / "a.nc") as opened:
        assert same_bits(expected, pca.reduce(opened, 6))
        assert same_bits(expected, pca.reduce(opened.transpose(), 6))


def test_forms_that_users_make():
    ds = drawn()
    expected = pca.reduce(ds, 4)
    for form in (
        ds.drop_vars("n_images"),
        ds.transpose("dim", "lon", "lat"),
        ds.astype(np.float64),
        ds.assign(spread=ds.n_images * 1.0),
    ):
        assert np.allclose(pca.reduce(form, 4).pc, expected.pc, atol=1e-5, equal_nan=True)
    renamed = pca.reduce(ds.rename(lat="latitude", lon="longitude", dim="feature"), 4)
    assert renamed.pc.dims == ("latitude", "longitude", "component")
    assert same_bits(renamed, expected)
    half = pca.reduce(ds.astype(np.float16), 4)
    assert half.pc.dtype == np.float32
    assert np.allclose(half.pc, expected.pc, atol=0.02, equal_nan=True)
    flipped = pca.reduce(ds.isel(lat=slice(None, None, -1)).assign_coords(lon=ds.lon - 360), 4)
    assert np.allclose(flipped.pc[::-1], expected.pc, atol=1e-5, equal_nan=True)
    region = ds.sel(lat=slice(65, 50), lon=slice(10, 20.25))
    components = pca.fit(region, 4).components
    x = region.embedding.values.reshape(-1, DIM)
    w = np.repeat(np.cos(np.radians(region.lat.values)), region.sizes["lon"])
    x, w = x[np.isfinite(x).all(1)].astype(np.float64), w[np.isfinite(x).all(1)]
    vectors = np.linalg.eigh(np.cov(x.T, aweights=w))[1]
    assert angle(components.values, vectors[:, ::-1].T[:4]) < 1e-5


def test_cells_masked_in_the_embedding_alone_are_left_out():
    ds = drawn()
    masked = ds.assign(embedding=ds.embedding.where(ds.lat > 55))
    fields = pca.reduce(masked, 3)
    assert same_bits(fields, pca.reduce(masked.drop_vars("n_images"), 3))
    assert fields.attrs["reduction_cells"] == int(ds.n_images.where(ds.lat > 55).sum())
    assert fields.pc.where(ds.lat <= 55).isnull().all()


@pytest.mark.parametrize(
    ("value", "chunks", "lead"),
    [
        (0.0, None, ()),
        (-9999.0, None, (("season", 2),)),
        (-9999.0, {"lat": 30, "dim": 7}, ()),
        (0.0, {"lat": 30, "dim": 7}, (("season", 2),)),
    ],
)
def test_what_the_counts_call_missing_is_missing_whatever_its_vector(value, chunks, lead):
    ds = drawn(lead=lead)
    other = ds.fillna(value)
    assert int((other.embedding == value).all("dim").sum()) == int((ds.n_images == 0).sum()) > 0
    fields = pca.reduce(other if chunks is None else other.chunk(chunks), 3)
    assert same_bits(fields, pca.reduce(ds, 3))


@pytest.mark.parametrize("whiten", [False, True])
def test_fields_are_the_projections_and_restore_inverts_them(whiten):
    ds = drawn()
    fields = pca.reduce(ds, DIM, weights=None, whiten=whiten)
    x = ds.embedding.values.astype(np.float64) - fields["mean"].values
    y = x @ fields.components.values.T
    y /= np.sqrt(fields.explained_variance.values) if whiten else 1
    assert fields.pc.dtype == np.float32
    assert np.allclose(fields.pc, y, rtol=1e-6, atol=1e-6, equal_nan=True)
    spread = fields.pc.astype(np.float64).var(("lat", "lon"), ddof=1)
    expected = np.ones(DIM) if whiten else fields.explained_variance
    assert np.allclose(spread, expected, rtol=1e-5)
    back = pca.restore(fields)
    assert back.embedding.dims == ds.embedding.dims
    assert back.embedding.dtype == np.float32
    assert np.allclose(back.embedding, ds.embedding, atol=1e-5, equal_nan=True)


def test_restoring_fewer_components_loses_the_variance_they_do_not_explain():
    ds = drawn()
    fields = pca.reduce(ds, 12, weights=None)
    for n in (1, 5, 12):
        part = pca.restore(fields.isel(component=slice(0, n)))
        lost = ((part.embedding - ds.embedding) ** 2).sum("dim").where(ds.n_images > 0).mean()
        whole = float(fields.explained_variance[0] / fields.explained_variance_ratio[0])
        assert float(lost) == pytest.approx(
            whole - float(fields.explained_variance[:n].sum()), rel=1e-3
        )


def test_a_basis_serves_other_cubes():
    basis = pca.fit(drawn(0), 5)
    other = drawn(1).isel(lat=slice(10, 70))
    fields = pca.project(other, basis)
    expected = (other.embedding - basis["mean"]) @ basis.components.T
    assert np.allclose(fields.pc, expected, atol=1e-5, equal_nan=True)
    assert same_bits(fields, basis, BASIS)
    assert fields.lat.identical(other.lat)


def test_lazy_cubes_stay_lazy():
    import dask.array as da

    ds = drawn()
    basis = pca.fit(ds, 3)

    def refuse(block):
        raise AssertionError("the cube was read")

    lazy = da.map_blocks(refuse, ds.embedding.chunk().data, meta=np.empty((0, 0, 0), "f4"))
    fields = pca.project(ds.assign(embedding=(ds.embedding.dims, lazy)), basis)
    restored = pca.restore(fields)
    assert restored.embedding.shape == ds.embedding.shape
    with pytest.raises(AssertionError, match="was read"):
        restored.compute()


def test_blocks_without_images_are_not_read():
    import dask.array as da

    ds = drawn()
    ds.embedding[:, 42:87] = np.nan  # the block of columns 54° to 99° of the lattice
    ds["n_images"] = ds.embedding.notnull().all("dim").astype(int)
    expected = pca.fit(ds, 3)

    def guard(block):
        assert np.isfinite(block).any(), "an empty block was read"
        return block

    chunks = {"lat": (27, 45, 36), "lon": (33, 45, 18)}
    cut = ds.embedding.chunk(chunks)
    columns = {(part[1].start, part[1].stop) for part in CubeView.of(drawn()).blocks()}
    assert columns == {(0, 33), (33, 78), (78, 96)}
    cut[:, 33:78] = np.nan
    ds["n_images"] = ds.n_images.where(np.isfinite(cut[..., 0].compute()), 0)
    lazy = da.map_blocks(guard, cut.data, meta=np.empty((0, 0, 0), "f4"))
    found = pca.fit(ds.assign(embedding=(ds.embedding.dims, lazy)), 3)
    assert found.sizes == expected.sizes
    uncounted = drawn().assign(embedding=(ds.embedding.dims, lazy)).drop_vars("n_images")
    weights = xr.where((ds.lon < LON[33]) | (ds.lon >= LON[78]), ds.lat, 0)
    assert pca.fit(uncounted, 3, weights=weights).sizes == expected.sizes


def test_a_lazy_projection_reads_no_block_without_images():
    import dask.array as da

    ds = drawn()
    basis = pca.fit(ds, 3)
    ds.embedding[:, 45:90] = np.nan
    ds["n_images"] = ds.embedding.notnull().all("dim").astype(int)

    def guard(block):
        assert np.isfinite(block).any(), "an empty block was read"
        return block

    cut = ds.embedding.chunk(lat=45, lon=45)
    lazy = da.map_blocks(guard, cut.data, meta=np.empty((0, 0, 0), "f4"))
    found = pca.project(ds.assign(embedding=(ds.embedding.dims, lazy)), basis)
    assert found.pc.chunks[:2] == cut.chunks[:2]
    xr.testing.assert_identical(found.compute(), pca.project(ds, basis))


@pytest.mark.slow
def test_memory_is_bounded():
    import dask.array as da

    block = np.random.default_rng(0).normal(size=(45, 45, 64)).astype(np.float32)
    data = da.map_blocks(
        lambda block_info: block + np.float32(block_info[None]["chunk-location"][0]),
        chunks=((45,) * 8, (45,) * 8, (64,)),
        meta=np.empty((0, 0, 0), np.float32),
    )
    lat, lon = grid.latitudes()[:360], grid.longitudes()[:360]
    ds = xr.Dataset({"embedding": (("lat", "lon", "dim"), data)}, {"lat": lat, "lon": lon})
    tracemalloc.start()
    pca.fit(ds, 4)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < ds.embedding.nbytes / 3


@pytest.fixture(scope="module")
def band(tmp_path_factory):
    """A band of a cube of copcube's own on disk, with a thousand cells in two regions."""
    path = tmp_path_factory.mktemp("pca") / "world.zarr"
    rng = np.random.default_rng(3)
    row, col = np.divmod(np.arange(1000), 25)
    ids = np.sort(np.concatenate([grid.grid_id(row + 100, col + 1430 - 1440 * (col > 9))]))
    n = len(ids)
    cells = Cells(
        ids,
        np.zeros(n, np.int16),
        np.ones(n, np.int32),
        np.tile(np.int32([1] + [0] * 7), (n, 1)),
        np.zeros(n, np.float32),
        rng.normal(size=(n, 6)).astype(np.float32) * 2.0 ** -np.arange(6, dtype=np.float32),
    )
    attrs = {"encoder": "test", "encoder_sha256": "aa", "encoder_trained": 1, "source": "nowhere"}
    cubes.create(path, dim=6, attrs=attrs)
    rows, _ = grid.row_col(ids)
    for band in range(grid.N_BANDS):
        cubes.write_band(path, band, cells.take(np.flatnonzero(rows // grid.BLOCK == band)))
    cubes.finish(path)
    return cubes.open_cube(path).sel(lat=slice(66, 55))


@pytest.mark.slow
@pytest.mark.parametrize(("suffix", "whiten"), [("zarr", False), ("nc", True)])
def test_fields_and_basis_survive_a_file(band, tmp_path, suffix, whiten):
    ds = band
    lazy = pca.reduce(ds, 3, whiten=whiten)
    fields = lazy.compute()
    path = tmp_path / f"fields.{suffix}"
    if suffix == "zarr":
        lazy.to_zarr(path, zarr_format=3, consolidated=False)
        again = xr.open_zarr(path, consolidated=False)
    else:
        lazy.to_netcdf(path)
        again = xr.open_dataset(path)
    with again:
        assert again.equals(fields)
        assert same_bits(again, fields)
        assert set(again.coords) == {
            "lat",
            "lon",
            "lat_bnds",
            "lon_bnds",
            "crs",
            "component",
            "dim",
        }
        assert again.attrs["encoder_sha256"] == "aa"
        assert again.attrs["encoder_trained"] == 1
        assert again.attrs["reduction_weights"] == "area"
        assert again.attrs["history"].endswith(f"copcube {copcube.__version__} reduce")
        assert again.attrs["reduction_cells"] == 1000
        assert "copcube_schema" not in again.attrs
        region = {"lat": slice(66, 50), "lon": slice(0, 5)}
        assert same_bits(pca.project(ds, again).sel(region), fields.sel(region), ["pc"])
        restored, expected = (pca.restore(form).sel(region) for form in (again, fields))
        assert same_bits(restored, expected, ["embedding"])
        of_another = again.assign_attrs(images_strange="s2_toa:3")
        assert "images_strange" not in pca.project(ds, of_another).attrs
        untrained = again.assign_attrs(encoder_trained=0)
        assert pca.project(ds.drop_attrs(), untrained).encoder_trained == 0
        told = pca.restore(again.assign_attrs(title="Principal components of embeddings")).attrs
        assert "title" not in told  # they are components no more
        assert told["history"].endswith(f"reduce\ncopcube {copcube.__version__} restore")
        assert again.pc.attrs["grid_mapping"] == "crs"


@pytest.mark.slow
def test_slices_of_a_cube_on_disk_can_be_written(band, tmp_path):
    ds = band.sel(lon=slice(0, 3))
    pca.reduce(ds, 2).to_zarr(tmp_path / "a.zarr", zarr_format=3, consolidated=False)
    found = xr.open_zarr(tmp_path / "a.zarr", consolidated=False)
    assert same_bits(found, pca.reduce(ds.compute(), 2))


@pytest.mark.slow
def test_cubes_of_another_encoder_or_length_are_refused(band):
    ds = band
    basis = pca.fit(ds, 2)
    with pytest.raises(CubeError, match=r"encoder_sha256 'bb'.*fitted on 'aa'"):
        pca.project(ds.assign_attrs(encoder_sha256="bb"), basis)
    with pytest.raises(CubeError, match=r"length 5, those of the basis 6"):
        pca.project(ds.isel(dim=slice(0, 5)), basis)
    stranger = ds.drop_attrs()
    assert same_bits(pca.project(stranger, basis), pca.project(ds, basis))


def test_fewer_cells_than_dimensions():
    rng = np.random.default_rng(2)
    values = np.full((len(LAT), len(LON), 50), np.nan, np.float32)
    values[::12, 7] = rng.normal(size=(9, 50))
    ds = made(values)
    fields = pca.reduce(ds, 8, weights=None)
    x = values[::12, 7].astype(np.float64)
    s = np.linalg.svd(x - x.mean(0), compute_uv=False)
    assert np.allclose(fields.explained_variance, s[:8] ** 2 / 8, rtol=1e-6)
    assert float(fields.explained_variance_ratio.sum()) == pytest.approx(1, rel=1e-12)
    assert np.allclose(pca.restore(fields).embedding, values, atol=1e-5, equal_nan=True)
    with pytest.raises(OptionError, match=r"k=9 is larger than 8, the rank of the 9 vectors"):
        pca.fit(ds, 9)
    assert pca.fit(ds, 0.999999).sizes["component"] == 8


def test_the_rank_is_that_of_the_vectors():
    rng = np.random.default_rng(2)
    flat = rng.integers(-8, 8, (len(LAT), len(LON), 3)) @ rng.integers(-8, 8, (3, DIM))
    ds = made(flat.astype(np.float32))
    assert pca.fit(ds, 3).sizes["component"] == 3
    with pytest.raises(OptionError, match="k=4 is larger than 3, the rank"):
        pca.fit(ds, 4)


@pytest.mark.parametrize("value", [0.0, 1.0, 0.1, 1e20, 12345.678])
def test_vectors_all_alike_have_no_components(value):
    ds = made(np.full((len(LAT), len(LON), DIM), value, np.float32))
    with pytest.raises(OptionError, match=r"all alike \(rank 0\)"):
        pca.fit(ds, 1)
    with pytest.raises(OptionError, match=r"all alike \(rank 0\)"):
        pca.fit(ds.isel(lat=[5], lon=[5]), 0.5)


def test_nothing_to_reduce():
    ds = drawn()
    empty = ds.where(ds.lat > 90)
    for form in (empty, empty.drop_vars("n_images"), empty.chunk()):
        with pytest.raises(CubeError, match="no cell holds a vector"):
            pca.reduce(form, 2)
    with pytest.raises(CubeError, match="weight above zero"):
        pca.fit(ds, 2, weights=xr.zeros_like(ds.n_images))


@pytest.mark.parametrize("k", [0, -3, 1.0, 1.5, 0.0, -0.5, True, "16", None, np.nan])
def test_numbers_of_components_that_mean_nothing(k):
    with pytest.raises(OptionError, match=r"expected a number of components.*0\.95"):
        pca.fit(drawn(), k)


def test_weights_that_cannot_be_used():
    ds = drawn()
    good = xr.ones_like(ds.n_images, float)
    there = ds.n_images > 0
    pca.fit(ds, 2, weights=good.where(there))  # missing where nothing is: fine
    for bad, message in (
        (-good, "negative or not finite"),
        (good.where(ds.lat > 60), "negative or not finite"),
        (good * np.inf, "negative or not finite"),
        ("areas", "expected 'area', None or a DataArray"),
        (good.values, "expected 'area', None or a DataArray"),
        (good[1:], "differ from the cube in lat"),
        (good[::-1], "same order"),
        (good.expand_dims(season=2), "expected only"),
        (good.assign_coords(lon=good.lon - 360), "differ from the cube in lon"),
    ):
        with pytest.raises(OptionError, match=message):
            pca.fit(ds, 2, weights=bad)
    with pytest.raises(CubeError, match="latitude"):
        pca.fit(ds, 2, weights=good.drop_vars("lat"))


def test_what_is_no_cube_or_no_basis():
    ds = drawn()
    fields = pca.reduce(ds, 2)
    with pytest.raises(CubeError, match="found a reduction"):
        pca.reduce(fields, 1)
    with pytest.raises(CubeError, match="variable embedding"):
        pca.fit(ds[["n_images"]], 1)
    with pytest.raises(OptionError, match="found no components, mean"):
        pca.project(ds, ds)
    with pytest.raises(OptionError, match="no reduction_whiten"):
        pca.restore(fields.drop_attrs())
    with pytest.raises(CubeError, match=r"expected an embedding cube.*found str; open a file"):
        pca.reduce("world.zarr", 2)
    for basis in ("fields.zarr", fields.components):
        with pytest.raises(CubeError, match="expected the basis of a reduction as an xarray"):
            pca.project(ds, basis)
    with pytest.raises(CubeError, match="pc"):
        pca.restore(ds)
    zeros = ds.fillna(0).drop_vars("n_images")
    with pytest.raises(CubeError, match="engine='copembed'"):
        pca.fit(zeros, 1)
    with pytest.raises(CubeError, match="engine='copembed'"):
        pca.project(zeros, fields)


def test_values_too_large_for_float64():
    with pytest.raises(CubeError, match="too large"):
        pca.fit(drawn(dtype=np.float64, change=lambda x, rng: x * 1e200), 1)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), n=st.integers(2, 1300), batches=st.integers(1, 20))
def test_moments_do_not_depend_on_the_batches(seed, n, batches):
    rng = np.random.default_rng(seed)
    x, w = rng.normal(1e3, 1, (n, 4)), rng.uniform(0.1, 1, n)
    moments = Moments.zero(4)
    for part in np.array_split(np.arange(n), min(batches, n)):
        moments.merge(Moments.of(x[part], w[part]))
    assert np.allclose(moments.covariance, np.cov(x.T, aweights=w), rtol=1e-9, atol=1e-10)
    assert np.allclose(moments.mean, np.average(x, axis=0, weights=w), rtol=1e-13)
    assert moments.cells == n


def test_a_cube_is_viewed_and_checked_once(calls):
    ds = drawn(lead=(("season", 2),))
    with calls("view.py", "latlon.py", "blas.py", "components.py") as count:
        pca.reduce(ds, 3)
    assert count["CubeView.of"] == count["spatial_dims"] == count["CubeView.counts"] == 1
    assert count["require_dataset"] == 2  # the cube, and the basis that was made of it
    assert count["_fit"] == count["_project"] == 1


def test_blas_gets_its_threads_back():
    control = pytest.importorskip("threadpoolctl")

    def threads():
        return {
            lib["num_threads"] for lib in control.threadpool_info() if lib["user_api"] == "blas"
        }

    with control.threadpool_limits(3, user_api="blas"):
        assert threads() == {3}
        with one_thread():
            with one_thread():
                assert threads() == {1}
            assert threads() == {1}
        assert threads() == {3}
        with pytest.raises(CubeError):
            pca.fit(drawn() * np.nan, 2)
        pca.reduce(drawn(), 2)
        assert threads() == {3}


def test_several_bases_in_one_dataset_are_refused_by_name(tmp_path):
    """As `xarray.open_mfdataset` makes them of reductions, by its defaults."""
    fields = pca.reduce(drawn(), k=2)
    years = xr.concat([fields, fields], "year", data_vars="all", join="exact")
    message = r"components has the dimension year beside .* 2 bases, .*\.isel\(year=0\)"
    refused = {
        "restore": lambda: pca.restore(years),
        "project": lambda: pca.project(drawn(), years),
        "export": lambda: years.assign(pc=fields.pc).copembed.to_npz(tmp_path / "a.npz"),
    }
    for use in refused.values():
        with pytest.raises(CubeError, match=message):
            use()
    assert pca.restore(years.isel(year=0)).embedding.identical(pca.restore(fields).embedding)
    one = xr.concat([fields, fields], "year", data_vars="minimal", join="exact")
    one = one.assign(pc=fields.pc.expand_dims(year=2))
    assert pca.restore(one).embedding.sizes["year"] == 2
    with pytest.raises(CubeError, match=r"components lacks the dimension component.*\[0\]"):
        pca.project(drawn(), fields.isel(component=0))
    renamed = fields.rename(component="k")
    with pytest.raises(CubeError, match=r"expected component and dim: .*'k': 'component'"):
        pca.restore(renamed)
    with pytest.raises(CubeError, match=r"expected component and dim: .*'k': 'component'"):
        pca.project(drawn(), renamed)
