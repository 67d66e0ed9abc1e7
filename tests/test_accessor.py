import inspect
import json
import subprocess
import sys

import numpy as np
import pytest
import xarray as xr
from test_cube import DIM, build, cells_of

from copcube import cube, era5, grid, pca
from copcube.accessor import Copembed
from copcube.errors import CubeError


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return build(tmp_path_factory.mktemp("cube") / "world.zarr", cells_of())


@pytest.fixture(scope="module")
def world(path):
    return xr.open_zarr(path, chunks=None).drop_encoding().load()


@pytest.fixture(scope="module")
def statics():
    lat, lon = grid.latitudes(), grid.longitudes()
    z = np.random.default_rng(0).normal(size=(721, 1440))
    return xr.Dataset({"z": (("latitude", "longitude"), z)}, {"latitude": lat, "longitude": lon})


FORKING = """
import json, os, sys, traceback
import cftime, dask, numpy, pandas, rasterio  # most of what the imports below take
import scipy.fftpack, scipy.sparse, scipy.special
assert not {"xarray", "copcube"} & {*sys.modules}
for name, code in json.load(sys.stdin).items():
    if os.fork() == 0:
        for stream, suffix in ((1, "out"), (2, "err")):
            os.dup2(os.open(f"{name}.{suffix}", os.O_WRONLY | os.O_CREAT), stream)
        try:
            exec(code, {})
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush(), sys.stderr.flush(), os._exit(0)
    os.wait()
"""
REGISTRATIONS = {
    "xarray first": "import xarray as xr; import copcube",
    "copcube first": "import copcube; import xarray as xr",
    "by whatever imports xarray": "import copcube; import rioxarray; import xarray as xr",
    "from a thread": "import copcube, threading, importlib\n"
    "t = threading.Thread(target=importlib.import_module, args=('xarray',)); t.start(); t.join()\n"
    "import xarray as xr",
    "twice": "import copcube, xarray as xr; import copcube.accessor",
    "after a question": "import importlib.util, copcube\n"
    "assert importlib.util.find_spec('xarray') is not None\n"
    "import xarray as xr",
    "by the engine": "import xarray as xr",
}


@pytest.fixture(scope="module")
def registered(world, tmp_path_factory):
    """What processes say that import xarray and copcube in many ways, by the way."""
    folder = tmp_path_factory.mktemp("registered")
    world.copembed.to_npz(folder / "map.npz")
    ask = "print(xr.Dataset().copembed, xr.DataArray([1]).copembed)"
    codes = {how: f"{code}\n{ask}" for how, code in REGISTRATIONS.items()}
    opened = "xr.open_dataset('map.npz', engine='copembed').copembed"
    codes["by the engine"] = f"{REGISTRATIONS['by the engine']}\nprint({opened})"
    command = [sys.executable, "-W", "error", "-c", FORKING]
    subprocess.run(command, input=json.dumps(codes), text=True, cwd=folder, check=True)
    assert {how: (folder / f"{how}.err").read_text() for how in codes} == dict.fromkeys(codes, "")
    return {how: (folder / f"{how}.out").read_text() for how in codes}


@pytest.mark.slow
@pytest.mark.parametrize("how", [how for how in REGISTRATIONS if how != "by the engine"])
def test_the_accessor_is_there_in_every_order(registered, how):
    assert registered[how].count("not an embedding cube") == 2


@pytest.mark.slow
def test_opening_with_the_engine_is_enough(registered):
    assert "copembed: embedding cube" in registered["by the engine"]


@pytest.mark.slow
def test_an_accessor_holds_its_dataset_and_nothing_else(world):
    before = world.copy(deep=True)
    accessor = world.copembed
    first = accessor.reduce(2)
    repr(accessor), accessor._repr_html_(), accessor.filled(), accessor.at(*somewhere(world))
    assert vars(accessor) == {"_obj": world}
    assert accessor._obj is world
    xr.testing.assert_identical(world, before)
    xr.testing.assert_identical(first, world.copembed.reduce(2))


def somewhere(ds):
    """Coordinates of a cell with a vector."""
    i, j = (int(k[0]) for k in np.nonzero(ds.n_images.values))
    return float(ds.lat[i]), float(ds.lon[j])


@pytest.mark.parametrize("name", ["reduce", "fit", "project", "restore", "merge", "compare"])
def test_methods_take_what_their_functions_take(name):
    module = {"merge": era5, "compare": sys.modules.get("copcube.cube.compare")}.get(name, pca)
    if module is None:
        from copcube.cube import compare as module
    theirs = list(inspect.signature(getattr(module, name)).parameters.values())[1:]
    ours = list(inspect.signature(getattr(Copembed, name)).parameters.values())[1:]
    assert [(p.kind, p.default) for p in ours] == [(p.kind, p.default) for p in theirs]
    if name != "compare":
        assert [p.name for p in ours] == [p.name for p in theirs]


VIEWS = {
    "as written": lambda ds: ds,
    "dask": lambda ds: ds.isel(lat=slice(70, 340), lon=slice(0, 360)).chunk(lat=100, lon=150),
    "renamed": lambda ds: ds.rename(lat="latitude", lon="longitude"),
    "from -180, south first": lambda ds: (
        ds.assign_coords(lon=(ds.lon + 180) % 360 - 180).sortby("lon").sortby("lat")
    ),
    "transposed": lambda ds: ds.transpose("dim", "lon", "lat", ...),
    "without counts": lambda ds: ds.drop_vars("n_images"),
    "vectors alone": lambda ds: ds.embedding,
    "north": lambda ds: ds.sel(lat=slice(90, 0)),
    "blocks": lambda ds: ds.isel(lon=slice(0, 720), lat=slice(10, 700)),
}


@pytest.mark.slow
@pytest.mark.parametrize("view", VIEWS)
def test_cubes_work_as_people_leave_them(world, statics, view):
    ds = VIEWS[view](world)
    full = ds if isinstance(ds, xr.Dataset) else world
    fields = ds.copembed.reduce(k=3)
    cells = int(ds.copembed.filled().sum())
    assert cells == int((full.n_images > 0).sum()) if "n_images" in full else cells > 0
    assert int(fields.copembed.filled().sum()) == cells
    assert f"coverage    {cells:,} cells" in repr(fields.compute().copembed)
    assert f"fitted to {cells:,} cells" in repr(fields.copembed)
    again = fields.copembed.restore()
    assert again.embedding.sizes["dim"] == DIM
    assert ds.copembed.compare(ds).identical == 1
    assert ds.copembed.compare(again).both == cells
    assert 0 < ds.copembed.coverage < 1e-3
    # Of a region ERA5 is one, too: dask takes seconds for all blocks of the globe.
    onto = statics.isel(latitude=slice(45, 360), longitude=slice(0, 405))
    onto = onto if view == "dask" else statics
    both = fields.copembed.merge(onto)
    assert both.pc.sizes["latitude"] == onto.sizes["latitude"]
    assert int(both.copembed.filled().sum()) == cells
    there = next(axis for axis in ("lat", "latitude") if axis in fields.dims)
    i, j, *_ = np.argwhere(both.copembed.filled().values)[0]
    lat, lon = float(both.latitude[i]), float(both.longitude[j])
    expected = fields.copembed.at(lat, lon - 360)
    assert float(expected[there]) == lat
    assert np.array_equal(both.pc.values[i, j], expected.pc.values)


@pytest.mark.slow
@pytest.mark.parametrize("by", ["season"])
def test_groups_stay_in_front(tmp_path, by, statics):
    ds = cube.open_cube(build(tmp_path / "a.zarr", cells_of(by), by))
    ds = ds.isel(lat=slice(90, 360), lon=slice(1035, 1305))  # five cells
    fields = ds.copembed.reduce(2)
    assert fields.pc.dims == (by, "lat", "lon", "component")
    assert fields.copembed.merge(statics).pc.dims == (by, "latitude", "longitude", "component")
    assert ds.isel({by: 0}).copembed.filled().dims == ("lat", "lon")
    assert by in repr(ds.copembed)


@pytest.mark.slow
def test_a_basis_serves_other_cubes(world):
    north, south = world.sel(lat=slice(90, 0)), world.sel(lat=slice(0, -90))
    basis = north.copembed.fit(3)
    xr.testing.assert_identical(basis, pca.fit(north, 3))
    projected = south.copembed.project(basis)
    assert np.array_equal(projected.components, basis.components)
    xr.testing.assert_identical(projected, pca.project(south, basis))


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["npz", "pt", "geotiff", "netcdf", "parquet"])
def test_exports_are_those_of_interchange(world, monkeypatch, suffix):
    from copcube import interchange

    def spy(ds, path, **options):
        assert ds is world
        return path, options

    monkeypatch.setattr(interchange, f"to_{suffix}", spy)
    done = getattr(world.copembed, f"to_{suffix}")("out", dtype="float16")
    assert done == ("out", {"dtype": "float16"})


def test_what_is_no_cube_is_told_when_used_not_before():
    ds = xr.Dataset({"t2m": (("lat", "lon"), np.zeros((2, 2)))}, {"lat": [0, 1], "lon": [0, 1]})
    assert "found t2m" in repr(ds.copembed)
    assert "found t2m" in ds.copembed._repr_html_()
    for use in (
        lambda a: a.reduce(),
        lambda a: a.filled(),
        lambda a: a.coverage,
        lambda a: a.at(0, 0),
        lambda a: a.merge(ds),
        lambda a: a.compare(ds),
    ):
        with pytest.raises(CubeError, match=r"expected an embedding cube .* found t2m"):
            use(ds.copembed)
    with pytest.raises(CubeError):
        ds.t2m.copembed.reduce()
    assert "not an embedding cube" in repr(ds.t2m.copembed)


@pytest.mark.slow
def test_the_card_reads_no_vectors(path, monkeypatch):
    import zarr

    ds = xr.open_zarr(path, chunks=None)
    read = []
    plain = zarr.AsyncArray._get_selection if hasattr(zarr, "AsyncArray") else None
    assert plain is not None

    async def spy(self, *args, **kwargs):
        read.append(self.basename)
        return await plain(self, *args, **kwargs)

    monkeypatch.setattr(zarr.AsyncArray, "_get_selection", spy)
    assert "embedding cube" in repr(ds.copembed)
    assert len(ds.copembed._repr_html_()) < 40_000
    assert "n_images" in read
    assert "embedding" not in read
