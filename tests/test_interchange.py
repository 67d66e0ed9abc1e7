"""Exports in every form: exact there and back, in the published layout, whole or not at all."""

import hashlib
import json
import os
import signal
import tracemalloc
from contextlib import contextmanager

import dask.array as da
import numpy as np
import pandas as pd
import pytest
import rasterio
import torch
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import random_rows
from xarray.backends.locks import CombinedLock
from xarray.backends.netCDF4_ import BaseNetCDF4Array

from copcube import cube, grid, interchange, models, pca
from copcube.accessor import Copembed
from copcube.aggregate import Aggregation, cell_statistics
from copcube.cube.card import card
from copcube.cube.view import CubeView
from copcube.errors import CubeError, GridError, OptionError, WriteError
from copcube.grouping import SEASONS
from copcube.interchange import convert, export, to_geotiff, to_npz, to_parquet
from copcube.interchange.engine import CopembedBackend
from copcube.interchange.export import WRITERS
from copcube.interchange.packing import Packer, Packing, int8_packing
from copcube.interchange.replacing import require_free

DIM = 3
SUFFIXES = ("npz", "pt", "tif", "parquet", "nc")
NARROW = [
    ("npz", "float16"),
    ("npz", "int8"),
    ("pt", "float16"),
    ("pt", "int8"),
    ("tif", "int8"),
    ("parquet", "float16"),
    ("nc", "int8"),
]

# Most tests need a cube of the whole globe, which takes seconds to write.
pytestmark = pytest.mark.slow


def build(path, by=None, bands=range(grid.N_BANDS)):
    groups = () if by is None else SEASONS
    cells = cell_statistics(random_rows(600, 200, DIM), Aggregation(by=by), groups)
    attrs = {"encoder": "x", "encoder_trained": 0, "history": "made in a test"}
    cube.create(path, dim=DIM, by=by, groups=groups, attrs=attrs)
    band = grid.row_col(cells.grid_id)[0] // grid.BLOCK
    for number in bands:
        cube.write_band(path, number, cells.take(band == number))
    cube.finish(path)
    return path


def test_vectors_that_were_merged_keep_their_own_licence(tmp_path):
    shape, rng = (20, 30), np.random.default_rng(0)
    lat, lon = 45 - np.arange(20) / 4, np.arange(30) / 4
    ours = {"license": "CC-BY-SA-4.0", "source": "Major TOM", "title": "vectors", "history": "made"}
    ds = xr.Dataset(
        {"embedding": (("lat", "lon", "dim"), rng.normal(size=(*shape, 4)).astype("f4"))},
        {"lat": lat, "lon": lon},
        ours,
    )
    theirs = {"license": "ECMWF's", "source": "ERA5", "title": "ERA5", "institution": "ECMWF"}
    z = xr.Dataset({"z": (("lat", "lon"), rng.random(shape))}, {"lat": lat, "lon": lon}, theirs)
    both = ds.copembed.merge(z)
    assert both.license == "ECMWF's"
    to_npz(both, tmp_path / "a.npz")
    models.write(both, tmp_path / "a.npy", "pangu", 2)
    about = json.loads((tmp_path / "a.npy.json").read_text())["copcube"]
    again = xr.open_dataset(tmp_path / "a.npz", engine="copembed")
    fields = both.copembed.reduce(2)
    for attrs in (about, again.attrs, fields.attrs, fields.copembed.restore().attrs):
        assert (attrs["license"], attrs["source"]) == ("CC-BY-SA-4.0", "Major TOM")
        assert attrs.get("title", "vectors") == "vectors"
        assert "institution" not in attrs
        assert attrs["history"].startswith("made\ncopcube ")
    assert dict(card(both).lines)["licence"] == "CC-BY-SA-4.0"


def test_rows_in_no_order_are_read_together(tmp_path, monkeypatch):
    # A window was read row by row, for each of which a shuffled dask array needs many chunks.
    lat, lon = 45 - np.arange(90) / 4, np.arange(60) / 4
    values = np.random.default_rng(0).normal(size=(90, 60, 2)).astype("f4")
    ds = xr.Dataset({"embedding": (("lat", "lon", "dim"), values)}, {"lat": lat, "lon": lon})
    rng, parts, read = np.random.default_rng(1), [], CubeView.read
    monkeypatch.setattr(
        CubeView, "read", lambda view, part: (parts.append(part), read(view, part))[1]
    )
    to_npz(ds.isel(lat=rng.permutation(90), lon=rng.permutation(60)), tmp_path / "a.npz")
    assert len(parts) == 2
    found = xr.open_dataset(tmp_path / "a.npz", engine="copembed")
    assert np.array_equal(found.embedding.sel(lat=lat, lon=lon), values)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """A cube of 184 cells."""
    return build(tmp_path_factory.mktemp("cube") / "world.zarr")


@pytest.fixture(scope="module")
def lazy(path):
    """The same, backed by dask."""
    return cube.open_cube(path)


@pytest.fixture(scope="module")
def world(path):
    """The same in memory."""
    return xr.open_zarr(path, chunks=None).drop_encoding().load()


@pytest.fixture(scope="module")
def fields(world):
    return pca.reduce(world, k=2)


def opened(path, **options):
    return xr.open_dataset(path, engine=CopembedBackend, **options)


def same(a, b):
    """Equal in every bit, NaN included."""
    a, b = np.asarray(a), np.asarray(b)
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


@contextmanager
def room(size):
    """Files of this process may grow to a size, as on a disk that has no more room."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_full_disk_is_named_and_leaves_what_was_there(world, tmp_path, suffix):
    """Also where the writer is GDAL, which says nothing, or HDF5, which does not say why."""
    region = world.isel(lat=slice(200, 240), lon=slice(0, 60))
    path = tmp_path / f"map.{suffix}"
    export(region, path)
    before = digest(path)
    for size in (path.stat().st_size // 2, path.stat().st_size - 1):
        with room(size), pytest.raises(WriteError, match=f"{path} cannot be written: .*large a"):
            export(region, path, overwrite=True)
        assert digest(path) == before
        assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_under_a_conversion_is_said_of_the_cube(world, tmp_path):
    np.savez_compressed(tmp_path / "map.npz", published(world))
    with room(200), pytest.raises(WriteError, match=f"{tmp_path}/a.zarr cannot be written: .*larg"):
        convert(tmp_path / "map.npz", tmp_path / "a.zarr")
    assert [path.name for path in tmp_path.iterdir()] == ["map.npz"]


def test_a_full_disk_under_the_cache_is_no_damage_of_the_map(world, tmp_path, monkeypatch):
    path = tmp_path / "map.tif"
    export(world.isel(lat=slice(200, 240), lon=slice(0, 60)), path)
    monkeypatch.setenv("COPCUBE_CACHE", str(tmp_path / "cache"))
    lazy = opened(path)["embedding"]
    with room(4096), pytest.raises(WriteError, match=r"set COPCUBE_CACHE .*cannot be written"):
        lazy.load()
    assert lazy.load().notnull().any()


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_cube_comes_back_in_every_bit(world, tmp_path, suffix):
    done = export(world, path := tmp_path / f"embed_map.{suffix}")
    assert (done.cells, done.dim, done.dtype) == (184, DIM, "float32")
    assert (done.max_error, done.rms_error) == (0, 0)
    assert (done.path, done.size) == (str(path), path.stat().st_size)
    with opened(path) as again:
        assert same(again.embedding, world.embedding)
        for name in ("lat", "lon", "dim", "lat_bnds", "lon_bnds", "crs"):
            found = again[name].variable.load()
            if (suffix, name) == ("nc", "crs"):  # checkers of CF ask for one
                assert found.attrs.pop("long_name") == "coordinate reference system"
            assert found.identical(world[name].variable.load())
        for name in ("encoder", "history", "references", "encoder_trained"):
            assert again.attrs[name] == world.attrs[name]
        if suffix != "nc":
            assert "copcube_schema" not in again.attrs
            assert "ancillary_variables" not in again.embedding.attrs


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_reduction_comes_back_with_its_basis(fields, tmp_path, suffix):
    export(fields, tmp_path / f"a.{suffix}")
    with opened(tmp_path / f"a.{suffix}") as again:
        assert again.pc.dims == ("lat", "lon", "component")
        assert set(again.variables) == set(fields.variables)
        for name, variable in fields.variables.items():
            assert same(again[name], variable), name
        for key, value in fields.attrs.items():
            assert np.array_equal(again.attrs[key], value), key
        restored = pca.restore(again)
        assert same(restored.embedding, pca.restore(fields).embedding)


@pytest.mark.parametrize("suffix", ["npz", "pt", "tif"])
def test_era5_s_order_is_a_wish(world, tmp_path, suffix):
    export(world, path := tmp_path / f"a.{suffix}", order="era5")
    assert same(opened(path).embedding, world.embedding)
    expected = np.nan_to_num(world.embedding)
    match suffix:
        case "npz":
            assert same(np.load(path)["arr_0"], expected)
        case "pt":
            assert same(torch.load(path, weights_only=True), expected)
        case "tif":
            with rasterio.open(path) as file:
                assert file.transform.c == -0.125
                assert same(np.moveaxis(file.read(), 0, -1), expected)
    with pytest.raises(OptionError, match=r"order='south'; expected published or era5"):
        export(world, tmp_path / f"b.{suffix}", order="south")


def published(ds, name="embedding"):
    """By numpy alone: from 180°W, zeros where missing."""
    values = np.nan_to_num(ds[name].values)
    return np.concatenate([values[:, 720:], values[:, :720]], axis=1)


@pytest.mark.parametrize("compress", [False, True])
def test_the_npz_is_the_published_one(world, tmp_path, compress):
    to_npz(world, tmp_path / "a.npz", compress=compress)
    with np.load(tmp_path / "a.npz", allow_pickle=False) as file:
        assert file.files == ["arr_0", "copcube"]
        assert same(file["arr_0"], published(world))
        assert json.loads(str(file["copcube"]))["attrs"]["encoder"] == "x"


def test_the_pt_is_a_bare_tensor(world, tmp_path):
    export(world, tmp_path / "a.pt")
    for mapped in (False, True):
        tensor = torch.load(tmp_path / "a.pt", weights_only=True, mmap=mapped)
        assert same(tensor.numpy(), published(world))
    export(world, tmp_path / "b.pt", dtype="int8")
    parts = torch.load(tmp_path / "b.pt", weights_only=True)
    assert {name: (p.dtype, tuple(p.shape)) for name, p in parts.items()} == {
        "embedding": (torch.int8, (721, 1440, DIM)),
        "scale": (torch.float64, (DIM,)),
        "offset": (torch.float64, (DIM,)),
    }


def test_the_geotiff_is_the_published_one(world, fields, tmp_path):
    to_geotiff(world, tmp_path / "embed_map_310k.tif")
    with rasterio.open(tmp_path / "embed_map_310k.tif") as file:
        assert (file.count, file.height, file.width) == (DIM, 721, 1440)
        assert set(file.dtypes) == {"float32"}
        assert file.nodata is None
        assert file.crs.to_epsg() == 4326
        assert file.crs.to_wkt().startswith('GEOGCS["WGS 84"')
        assert tuple(file.transform)[:6] == (0.25, 0, -180.125, 0, -0.25, 90.125)
        assert file.block_shapes[0] == (256, 256)
        assert file.profile["interleave"] == "pixel"
        assert file.profile["compress"] == "deflate"
        assert file.descriptions == ("dim_000", "dim_001", "dim_002")
        assert same(np.moveaxis(file.read(), 0, -1), published(world))
        for lon, lat in ((-96, 44), (0, 0), (179.75, -90)):  # GDAL finds the same cells
            there = next(file.sample([(lon, lat)]))
            assert same(there, np.nan_to_num(world.embedding.sel(lat=lat, lon=lon % 360)))
    raw = (tmp_path / "embed_map_310k.tif").read_bytes()[:4]
    assert raw == b"II\x2b\x00"  # BigTIFF
    to_geotiff(fields, tmp_path / "pc.tif", compress=False)
    with rasterio.open(tmp_path / "pc.tif") as file:
        assert file.descriptions == ("pc_00", "pc_01")
        assert "compress" not in file.profile


def test_an_int8_geotiff_explains_itself_to_gdal(world, tmp_path):
    to_geotiff(world, tmp_path / "a.tif", dtype="int8")
    with rasterio.open(tmp_path / "a.tif") as file:
        codes = np.moveaxis(file.read(masked=True), 0, -1)
        values = codes * np.array(file.scales) + np.array(file.offsets)
        assert file.nodata == -128
    expected = published(world)
    assert np.array_equal(values.mask.all(-1), (expected == 0).all(-1))
    assert np.abs(values - expected).max() <= max(file.scales) / 2 * 1.001


def test_the_averages_are_the_published_ones(world, tmp_path):
    to_parquet(world, tmp_path / "a.parquet")
    frame = pd.read_parquet(tmp_path / "a.parquet")
    assert list(frame) == ["grid_id_coord", "embedding"]
    numbers = [int(text.split("_")[0]) for text in frame.grid_id_coord]
    assert numbers == sorted(numbers)
    for text, vector in zip(frame.grid_id_coord, frame.embedding, strict=True):
        _, lon, lat = text.split("_")
        assert same(world.embedding.sel(lat=float(lat), lon=float(lon) % 360), vector)
    assert len(frame) == int(np.isfinite(world.embedding[..., 0]).sum())


def test_netcdf_keeps_all_and_opens_without_copcube(world, tmp_path):
    structure = {"side": [1, 1]}
    export(world.assign_attrs(structure=structure), tmp_path / "a.nc")
    with xr.open_dataset(tmp_path / "a.nc", engine="netcdf4") as again:
        assert set(again.variables) == set(world.variables)
        for name in world.variables:
            assert same(again[name].transpose(*world[name].dims), world[name]), name
        assert again.embedding.dims == ("dim", "lat", "lon")
        changed = {"cell_methods"}
        for key, value in world.embedding.attrs.items():
            assert key in changed or again.embedding.attrs[key] == value
        assert set(world.coords) == set(again.coords)
        assert json.loads(again.attrs["structure"]) == structure


def test_leading_dimensions_need_netcdf_or_a_choice(tmp_path):
    seasons = xr.open_zarr(build(tmp_path / "a.zarr", "season", bands=[2]), chunks=None)
    seasons = seasons.isel(lat=slice(90, 135)).drop_vars("n_images_by_modality")
    seasons = seasons.drop_encoding().load()
    for suffix in ("npz", "pt", "tif", "parquet"):
        with pytest.raises(CubeError, match=r"4 along season; select one.*isel\(season=0\)"):
            export(seasons, tmp_path / f"a.{suffix}")
    export(seasons, tmp_path / "a.nc")
    with opened(tmp_path / "a.nc") as again:
        assert same(again.embedding, seasons.embedding)
    export(seasons.isel(season=2), tmp_path / "a.npz")
    again = opened(tmp_path / "a.npz")
    assert same(again.embedding.sel(lat=seasons.lat), seasons.embedding[2])
    assert again.season == 2


REGIONS = (
    "box",
    "rows south to north",
    "from 180°W, renamed",
    "across Greenwich",
    "scattered, transposed",
    "float32",
)


@pytest.fixture(scope="module")
def regions(world):
    turned = world.assign_coords(lon=(world.lon + 180) % 360 - 180).sortby("lon")
    parts = (
        world.sel(lat=slice(60, -30), lon=slice(200, 330)),
        world.sortby("lat"),
        turned.rename(lat="latitude", lon="longitude"),
        turned.sel(lon=slice(-40, 40)),
        world.isel(lat=[700, 3, 5, 90], lon=[9, 1400, 8]).transpose(),
        world.assign_coords(lat=world.lat.astype("f4"), lon=world.lon.astype("f4")),
    )
    return dict(zip(REGIONS, parts, strict=True))


@pytest.mark.parametrize("name", REGIONS)
@pytest.mark.parametrize("suffix", ["npz", "tif", "parquet"])
def test_regions_lie_where_they_belong(world, regions, tmp_path, name, suffix):
    part = regions[name]
    done = export(part, tmp_path / f"a.{suffix}")
    again = opened(tmp_path / f"a.{suffix}").embedding.values
    lat = part["latitude" if "latitude" in part.dims else "lat"].values.astype(float)
    lon = part["longitude" if "longitude" in part.dims else "lon"].values.astype(float)
    keep = np.zeros((721, 1440), bool)
    keep[np.ix_(((90 - lat) * 4).astype(int), (lon % 360 * 4).astype(int))] = True
    expected = np.where(keep[..., None], world.embedding, np.nan)
    assert np.array_equal(again, expected, equal_nan=True)
    assert done.cells == np.isfinite(expected[..., 0]).sum()


def test_some_dimensions_keep_their_numbers(world, tmp_path):
    export(world.isel(dim=[2, 0]), tmp_path / "a.npz")
    again = opened(tmp_path / "a.npz")
    assert again.dim.values.tolist() == [2, 0]
    assert same(again.embedding.sel(dim=2), world.embedding.sel(dim=2))


def test_bands_that_other_software_reordered_are_refused(world, tmp_path):
    def copied(bands):
        with rasterio.open(tmp_path / "a.tif") as a:
            profile = a.profile | {"count": len(bands)}
            with rasterio.open(tmp_path / "b.tif", "w", **profile) as b:
                b.write(a.read(bands))
                b.descriptions = [a.descriptions[band - 1] for band in bands]
                b.update_tags(**a.tags())
        return tmp_path / "b.tif"

    export(world.isel(dim=[2, 0]), tmp_path / "a.tif")
    assert opened(copied([1, 2])).dim.values.tolist() == [2, 0]
    for bands in ([2, 1], [1], [1, 1]):
        with pytest.raises(CubeError, match=r"bands are named dim_.*expected .*written, 2, 0: "):
            opened(copied(bands))


def test_other_places_are_refused(world, tmp_path):
    between = world.assign_coords(lat=world.lat + 0.1)
    with pytest.raises(GridError, match=r"not a node of the 0\.25° lattice"):
        export(between, tmp_path / "a.npz")
    twice = xr.concat([world.isel(lon=[0]), world.isel(lon=[0]).assign_coords(lon=[360.0])], "lon")
    with pytest.raises(GridError, match="2 values on 1 places of the lattice"):
        export(twice, tmp_path / "a.npz")
    with pytest.raises(CubeError, match="expected an embedding cube"):
        export(world[["n_images"]], tmp_path / "a.npz")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("suffix", "dtype"), NARROW)
def test_the_error_of_narrow_types_is_what_is_said(world, tmp_path, suffix, dtype):
    done = export(world, path := tmp_path / f"a.{suffix}", dtype=dtype)
    with opened(path) as file:
        again = file.load()
    exact = world.embedding.values.astype(float)
    filled = np.isfinite(exact).all(-1)
    assert again.embedding.dtype == np.float32
    assert np.array_equal(np.isfinite(again.embedding).all("dim"), filled)
    error = (again.embedding.values - exact)[filled]
    std = exact[filled].std(axis=0)
    assert done.dtype == dtype
    assert done.max_error == np.abs(error).max()
    assert done.rms_error == pytest.approx(np.sqrt((error**2).mean() / (std**2).mean()))
    span = np.ptp(exact[filled], axis=0)
    bound = span / 254 / 2 * 1.001 if dtype == "int8" else np.abs(exact[filled]).max() * 2**-11
    assert (np.abs(error).max(axis=0) <= bound).all()
    assert done.max_error > 0
    # what was read can be written again at the same precision, and is the same
    export(again, tmp_path / f"b.{suffix}", dtype="float32" if dtype == "int8" else dtype)
    with opened(tmp_path / f"b.{suffix}") as twice:
        assert same(twice.embedding, again.embedding)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 20), st.integers(1, 4), st.integers(0, 2**32 - 1), st.floats(-1e3, 1e3))
def test_int8_spans_the_range(n, dim, seed, mean):
    values = np.random.default_rng(seed).normal(mean, 1, (n, dim)).astype(np.float32)
    packing = int8_packing(dim, [values[: n // 2], values[n // 2 :]])
    codes = packing.pack(values)
    assert codes.dtype == np.int8
    assert codes.min() >= -127
    assert packing.filled(codes).all()
    assert not packing.filled(np.full((1, dim), -128, np.int8)).any()
    error = np.abs(packing.unpack(codes).astype(float) - values)
    rounding = np.abs(values).max() * 2**-23
    assert (error <= np.ptp(values, axis=0) / 254 / 2 * 1.0001 + rounding).all()


def test_what_a_type_cannot_hold_is_refused(world, tmp_path):
    large = world.assign(embedding=world.embedding * 1e6)
    with pytest.raises(OptionError, match=r"float16's maximum of 65504; .*'float32' or 'int8'"):
        export(large, tmp_path / "a.npz", dtype="float16")
    tiny = world.assign(embedding=world.embedding * 1e-12)
    with pytest.raises(CubeError, match=r"vectors that are all 0 in float16"):
        export(tiny, tmp_path / "a.npz", dtype="float16")
    for suffix, dtype in (("tif", "float16"), ("nc", "float16"), ("parquet", "int8")):
        with pytest.raises(OptionError, match=rf"dtype='{dtype}': \w+ holds float32 or"):
            export(world, tmp_path / f"a.{suffix}", dtype=dtype)
    empty = world.isel(lat=slice(0, 1), lon=slice(0, 1))
    with pytest.raises(CubeError, match="no cell holds a vector"):
        export(empty, tmp_path / "a.npz", dtype="int8")
    zero = world.assign(embedding=world.embedding * 0)
    with pytest.raises(CubeError, match="cells hold vectors that are all 0"):
        export(zero, tmp_path / "a.npz")
    assert list(tmp_path.iterdir()) == []
    export(zero, tmp_path / "a.nc")  # where NaN means missing, zeros are vectors
    with opened(tmp_path / "a.nc") as again:
        assert same(again.embedding, zero.embedding)


@pytest.mark.parametrize("value", [0, -9999])
@pytest.mark.parametrize("dtype", ["float32", "int8"])
@pytest.mark.parametrize("suffix", ["npz", "nc"])
def test_what_the_counts_call_missing_is_written_as_missing(world, tmp_path, suffix, dtype, value):
    other = world.fillna(value).sel(lat=slice(90, -60))
    assert int((other.embedding == value).all("dim").sum()) > 800_000
    done = export(other, tmp_path / f"a.{suffix}", dtype=dtype)
    expected = export(world.sel(lat=slice(90, -60)), tmp_path / f"b.{suffix}", dtype=dtype)
    assert done.cells == expected.cells < 184
    assert done.max_error == expected.max_error
    with opened(tmp_path / f"a.{suffix}") as a, opened(tmp_path / f"b.{suffix}") as b:
        assert same(a.embedding, b.embedding)


def test_a_tally_of_nothing():
    assert Packer(Packing("float16")).result("a", 3, 10).rms_error == 0


@pytest.mark.parametrize("suffix", ["npz", "pt", "tif", "parquet"])
def test_bytes_do_not_depend_on_time_or_chunks(world, lazy, tmp_path, suffix):
    digests = set()
    whole = (world, lazy, world.chunk(lat=100, lon=333))
    parts = [ds.sel(lat=slice(70, 30)) for ds in whole]
    for n, ds in enumerate((*parts, parts[0].sortby("lat"))):
        export(ds, tmp_path / f"{n}.{suffix}")
        digests.add(digest(tmp_path / f"{n}.{suffix}"))
    assert len(digests) == 1


@pytest.mark.slow
def test_bytes_of_netcdf_do_not_depend_on_time_or_chunks_either(world, lazy, tmp_path):
    """They keep the order of latitude, unlike the others."""
    for n, ds in enumerate((world, lazy, lazy, lazy, world.chunk(lat=100, lon=333))):
        export(ds, tmp_path / f"{n}.nc")
    assert len({digest(path) for path in tmp_path.glob("*.nc")}) == 1


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_nothing_is_overwritten_and_nothing_half_written(world, tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(b"precious")
    with pytest.raises(WriteError, match=r"exists already; .*overwrite=True \(--overwrite\)"):
        export(world, path)
    with pytest.raises(WriteError, match="found a file that copcube did not write"):
        export(world, path, overwrite=True)
    assert path.read_bytes() == b"precious"
    path.unlink()
    export(world, path)
    before = digest(path)

    def fail(block):
        raise MemoryError("in the middle")

    values = da.concatenate(
        [
            da.from_array(world.embedding.values[:500], chunks=(100, 1440, DIM)),
            da.zeros((221, 1440, DIM), np.float32, chunks=(221, 1440, DIM)).map_blocks(
                fail, meta=np.empty((0, 0, 0), np.float32)
            ),
        ]
    )
    sick = world.assign(embedding=(("lat", "lon", "dim"), values))
    with pytest.raises(MemoryError, match="in the middle"):
        export(sick, path, overwrite=True)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    assert digest(path) == before
    export(world * 2, path, overwrite=True)
    with opened(path) as again:
        assert same(again.embedding, world.embedding * 2)
    with pytest.raises(WriteError, match="its folder does not exist; create it first"):
        export(world, tmp_path / "none" / f"a.{suffix}")
    (tmp_path / f"folder.{suffix}").mkdir()
    with pytest.raises(WriteError, match="found a folder of something else"):
        export(world, tmp_path / f"folder.{suffix}", overwrite=True)


def test_every_form_is_public_a_method_and_known_where_it_is_replaced(world, tmp_path):
    for suffix, write in WRITERS.items():
        assert write.__name__ in interchange.__all__
        assert hasattr(Copembed, write.__name__)
        write(world, tmp_path / f"a{suffix}")
        require_free(tmp_path / f"a{suffix}", True)  # with --overwrite


def test_the_suffix_chooses_and_options_are_checked(world, tmp_path):
    with pytest.raises(OptionError, match=r"ending in \.npz, .*; write Zarr with \.to_zarr"):
        export(world, tmp_path / "a.zarr")
    with pytest.raises(OptionError, match=r"\.parquet files have no option order; expected dtype"):
        export(world, tmp_path / "a.parquet", order="era5")
    assert list(tmp_path.iterdir()) == []


def test_what_rs_embed_would_refuse_is_refused(world, tmp_path):
    with pytest.raises(OptionError, match=r"embed_map_\*\.tif; world.tif is not"):
        to_geotiff(world, tmp_path / "world.tif", compat="rs-embed")
    with pytest.raises(OptionError, match=r"under 700 MiB, this one has \d+ MiB; write all dim"):
        to_geotiff(world, tmp_path / "embed_map_3.tif", compat="rs-embed")
    with pytest.raises(OptionError, match="compat='other'"):
        to_geotiff(world, tmp_path / "embed_map_3.tif", compat="other")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("suffix", ["npz", "pt", "tif", "parquet"])
def test_a_map_becomes_a_valid_cube(world, tmp_path, suffix):
    export(world, tmp_path / f"a.{suffix}")
    path = convert(tmp_path / f"a.{suffix}", tmp_path / "a.zarr")
    assert cube.validate(path) == []
    again = xr.open_zarr(path, chunks=None)
    assert same(again.embedding, world.embedding)
    assert np.array_equal(again.n_images > 0, world.n_images > 0)
    assert again.attrs["n_images_known"] == 0
    assert again.attrs["encoder"] == "x"
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([f"a.{suffix}", "a.zarr"])


def test_a_deflated_map_and_one_without_a_description(world, tmp_path):
    np.savez_compressed(tmp_path / "embed_map_310k.npz", published(world))
    path = convert(tmp_path / "embed_map_310k.npz", tmp_path / "a.zarr")
    assert cube.validate(path) == []
    assert same(xr.open_zarr(path, chunks=None).embedding, world.embedding)
    assert cube.read_attributes(path)["source"] == "embed_map_310k.npz (npz, deflated)"


def test_conversions_appear_whole_and_replace_only_stores(world, fields, tmp_path):
    values = published(world)
    np.savez(tmp_path / "good.npz", values)
    path = convert(tmp_path / "good.npz", tmp_path / "a.zarr")
    before = sorted(p.name for p in tmp_path.iterdir())
    with pytest.raises(WriteError, match="exists already"):
        convert(tmp_path / "good.npz", path)
    row, col = np.argwhere((values != 0).any(-1))[-1]
    values[row, col, 1] = np.inf
    np.savez(tmp_path / "good.npz", values)
    cell = f"{(720 - row) * 1440 + col:07d}_{-180 + col / 4:.2f}_{90 - row / 4:.2f}"
    with pytest.raises(CubeError, match=f"vector of cell {cell} holds a value that is not finite"):
        convert(tmp_path / "good.npz", path, overwrite=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == before
    assert cube.validate(path) == []
    np.savez(tmp_path / "good.npz", published(world) * 2)
    convert(tmp_path / "good.npz", path, overwrite=True)
    assert same(xr.open_zarr(path, chunks=None).embedding, world.embedding.values * 2)
    assert sorted(p.name for p in tmp_path.iterdir()) == before
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.txt").write_text("x")
    with pytest.raises(WriteError, match="found a folder of something else"):
        convert(tmp_path / "good.npz", tmp_path / "home", overwrite=True)
    with pytest.raises(WriteError, match="found a file that copcube did not write"):
        convert(tmp_path / "good.npz", tmp_path / "good.npz", overwrite=True)
    to_npz(fields, tmp_path / "pc.npz")
    with pytest.raises(WriteError, match="is a file, not a Zarr store"):
        convert(tmp_path / "good.npz", tmp_path / "pc.npz", overwrite=True)
    with pytest.raises(CubeError, match="holds a reduction"):
        convert(tmp_path / "pc.npz", tmp_path / "b.zarr")
    with pytest.raises(CubeError, match=r"found \.nc \(open it with engine='copembed' and save it"):
        convert(tmp_path / "a.nc", tmp_path / "b.zarr")


def test_memory_is_bounded_by_bands(tmp_path):
    """A map of 66 MB goes out and comes back in a fraction of that."""
    dim = 16
    # Drawn before memory is measured, which would slow that down and count it.
    values = np.random.default_rng(0).normal(size=(721, 1440, dim)).astype("f4")
    values[values[..., 0] <= 1] = np.nan
    ds = xr.Dataset(
        {"embedding": (("lat", "lon", "dim"), da.from_array(values, chunks=(45, 288, dim)))},
        {"lat": grid.latitudes(), "lon": grid.longitudes()},
    )
    sizes = {}
    for suffix in ("npz", "tif"):  # what is imported for them is no memory of a map
        export(ds.isel(lat=slice(45), lon=slice(45)), first := tmp_path / f"first.{suffix}")
        opened(first).load()
    for suffix, options in (("npz", {}), ("npz", {"compress": True}), ("tif", {})):
        tracemalloc.start()
        export(ds, tmp_path / f"a.{suffix}", overwrite=True, **options)
        opened(tmp_path / f"a.{suffix}").embedding.isel(dim=0).values  # noqa: B018
        sizes[suffix, *options] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert max(sizes.values()) < 45e6, sizes


@pytest.mark.slow
@pytest.mark.timeout(60)
def test_an_interruption_as_xarray_gives_its_lock_back_ends_the_writing(tmp_path, monkeypatch):
    write, give_back, written = BaseNetCDF4Array.__setitem__, CombinedLock.__exit__, []

    def writes(array, key, value):
        written.append(array)
        write(array, key, value)

    def gives_back(lock, *raised):
        if len(written) == 1:
            written.append(lock)
            os.kill(os.getpid(), signal.SIGINT)
        give_back(lock, *raised)

    maps = {"embedding": (("lat", "lon", "dim"), np.ones((4, 4, 3), "f4"))}
    maps["n_images"] = (("lat", "lon"), np.ones((4, 4), "i4"))
    ds = xr.Dataset(maps, {"lat": np.arange(4) / 4, "lon": np.arange(4) / 4})
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(BaseNetCDF4Array, "__setitem__", writes)
            patch.setattr(CombinedLock, "__exit__", gives_back)
            with pytest.raises(KeyboardInterrupt):
                interchange.to_netcdf(ds, tmp_path / "a.nc")
    finally:
        signal.signal(signal.SIGINT, before)
    assert list(tmp_path.iterdir()) == []
    interchange.to_netcdf(ds, tmp_path / "a.nc")
