"""Files for weather models, read as each model reads them; numbers against scikit-learn."""

import json
import os
import pickle
import re
import shutil
import subprocess
import zipfile
from functools import partial
from pathlib import Path

import netCDF4
import numpy as np
import pandas as pd
import pytest
import xarray as xr
import zarr
from scipy.special import roots_legendre
from sklearn.preprocessing import StandardScaler

from copcube import grid, models
from copcube.cli import main
from copcube.era5.conservative import Overlaps
from copcube.era5.statics import STATICS
from copcube.errors import CopcubeError, CubeError, GridError, OptionError, WriteError
from copcube.models import FORMS
from copcube.models.fields import gaussian
from copcube.models.form import Form
from copcube.pca import reduce

LAT, LON = np.arange(86, 41, -0.25), np.arange(-20, 25, 0.25)
K = 3
WHOLE = {"latitude": grid.latitudes(), "longitude": grid.longitudes()}


def reduction(k=K, seed=0):
    """A region with components of different spread, two thirds filled."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(len(LAT), len(LON), k)) * np.arange(1, k + 1) + 3
    x += np.sin(np.radians(LAT))[:, None, None]
    x[rng.random(x.shape[:2]) < 1 / 3] = np.nan
    ds = xr.Dataset({"pc": (("lat", "lon", "component"), x.astype("f4"))})
    return ds.assign_coords(lat=LAT, lon=LON).assign_attrs(encoder="an encoder")


@pytest.fixture(scope="module")
def statics():
    """ERA5's fields, each with values of its own; 90°S first, 180°W first."""
    values = np.add.outer(np.arange(grid.N_LAT) % 13, np.arange(grid.N_LON) % 7).astype("f4")
    fields = {s.name: (("latitude", "longitude"), values + i) for i, s in enumerate(STATICS)}
    for name in ("slt", "tvh", "tvl"):
        fields[name] = (("latitude", "longitude"), values % 8)
    return xr.Dataset(fields, WHOLE).isel(latitude=slice(None, None, -1)).roll(longitude=720)


def on_lattice(ds):
    """Components on the lattice, in ERA5's order, by xarray."""
    lon = (ds.lon + 360) % 360
    placed = ds.pc.assign_coords(lon=lon).reindex(lat=WHOLE["latitude"], lon=WHOLE["longitude"])
    return placed.transpose("component", "lat", "lon").values


def standardised(ds):
    """Standardised components by scikit-learn, 0 where missing, and which are there."""
    x = on_lattice(ds)
    there = np.isfinite(x).all(0)
    edges = np.clip(WHOLE["latitude"][:, None] + [0.125, -0.125], -90, 90)
    area = np.broadcast_to(-np.diff(np.sin(np.radians(edges))), there.shape)
    scaler = StandardScaler().fit(x[:, there].T.astype(float), sample_weight=area[there])
    out = np.zeros(x.shape)
    out[:, there] = scaler.transform(x[:, there].T.astype(float)).T
    return out, there


# Readers, written from the documented layout of each form: components, mask, statics by name.


def read_makani(path):
    with netCDF4.Dataset(path) as file:
        channels = [str(name) for name in file["channel"][:]]
        assert file["fields"].dimensions == ("channel", "lat", "lon")
        assert file["fields"].dtype == np.float32
        assert (file["valid_data"][:] == 1).all()
        np.testing.assert_array_equal(file["lat"][:], WHOLE["latitude"][: len(file["lat"])])
        np.testing.assert_array_equal(file["lon"][:], WHOLE["longitude"])
        return dict(zip(channels, np.asarray(file["fields"][:]), strict=True))


def read_pickle(path):
    with open(path, "rb") as stream:
        found = pickle.load(stream)
    assert all(type(v) is np.ndarray and v.dtype == np.float32 for v in found.values())
    return found


def read_first(path, channels=None):
    names = channels or json.loads(Path(f"{path}.json").read_text())["copcube"]["channels"]
    return dict(zip(names, np.load(path, allow_pickle=False), strict=True))


def read_tensor(path):
    torch = pytest.importorskip("torch")
    values = torch.load(path, weights_only=True).numpy()
    return {str(i): v for i, v in enumerate(values)}


def read_netcdf(path, dims, lat):
    with xr.open_dataset(path, engine="netcdf4") as ds:
        assert all(v.dims == dims for v in ds.data_vars.values())
        np.testing.assert_array_equal(ds[dims[-2]], lat)
        np.testing.assert_array_equal(ds[dims[-1]], WHOLE["longitude"])
        assert all("units" in v.attrs for v in ds.data_vars.values())
        return {name: v.values.reshape(v.shape[-2:]) for name, v in ds.data_vars.items()}


def read_graphcast(path):
    found = read_netcdf(path, ("lat", "lon"), WHOLE["latitude"][::-1])
    for ending, value in (("mean", 0), ("stddev", 1)):
        numbers = xr.load_dataset(f"{str(path)[:-3]}_{ending}_by_level.nc")
        assert {name for name in found if "copembed" in name} == {*numbers}
        assert all(v.dims == () and v == value for v in numbers.values())
    return {name: v[::-1] for name, v in found.items()}


def read_zarr(path):
    with xr.open_zarr(path, consolidated=True) as ds:
        return {name: v.values for name, v in ds.data_vars.items()}


ON_LATTICE = {
    "makani": ("m.h5", read_makani),
    "aurora": ("a.pickle", read_pickle),
    "graphcast": ("g.nc", read_graphcast),
    "weathernext": ("w.nc", read_graphcast),
    "pangu": ("p.npy", read_first),
    "aifs": ("invariants.pt", read_tensor),
    "anemoi": (
        "a.nc",
        partial(read_netcdf, dims=("time", "latitude", "longitude"), lat=WHOLE["latitude"]),
    ),
    "neural-lam": ("n.zarr", read_zarr),
}
CHANNELS = [*(f"copembed_{i:02d}" for i in range(K)), "copembed_mask"]


@pytest.mark.slow
@pytest.mark.parametrize("model", ON_LATTICE)
def test_numbers_and_layout(tmp_path, model):
    name, read = ON_LATTICE[model]
    written = models.write(reduction(K + 2), tmp_path / name, model, k=K)
    found = read(tmp_path / name)
    want, there = standardised(reduction(K + 2).isel(component=slice(K)))
    assert written.cells == there.sum()
    assert list(written.channels) == CHANNELS
    if model != "aifs":  # which has no names
        assert list(found) == CHANNELS or model == "neural-lam"
        found = {name: found[name] for name in CHANNELS}
    *components, mask = found.values()
    np.testing.assert_allclose(components, want, atol=2e-6)
    np.testing.assert_array_equal(mask, there)
    assert str(written).startswith(str(tmp_path / name))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "names"),
    [
        ("makani", [s.name for s in STATICS]),
        ("graphcast", ["geopotential_at_surface", "land_sea_mask"]),
        ("aifs", ["lsm", "sdor", "slor", "z"]),
        ("anemoi", [s.name for s in STATICS]),
        ("neural-lam", [s.name for s in STATICS]),
    ],
)
def test_static_fields_come_first_and_stay_as_they_are(tmp_path, statics, model, names):
    name, read = ON_LATTICE[model]
    models.write(reduction(1), tmp_path / name, model, k=1, statics=statics)
    found = read(tmp_path / name)
    if model == "aifs":
        found = dict(zip([*names, "copembed_00", "copembed_mask"], found.values(), strict=True))
    assert {*found} == {*names, "copembed_00", "copembed_mask"}
    short = {"geopotential_at_surface": "z", "land_sea_mask": "lsm"}
    for key in names:
        want = statics[short.get(key, key)].sel(WHOLE)
        np.testing.assert_array_equal(found[key], want)


@pytest.mark.slow
def test_aurora_reads_one_field_a_class(tmp_path, statics):
    models.write(reduction(1), tmp_path / "a.pickle", "aurora", k=1, statics=statics)
    found = read_pickle(tmp_path / "a.pickle")
    for name in ("slt", "tvh", "tvl"):
        kind = statics[name].sel(WHOLE)
        classes = [key for key in found if key.startswith(f"{name}_")]
        for key in classes:
            np.testing.assert_array_equal(found[key], kind == int(key[4:]))
    # 36 of version 1.5, soil type of the first one, and two of the cube.
    assert len(found) == 39
    few = statics[["z", "lsm", "slt"]]
    models.write(reduction(1), tmp_path / "b.pickle", "aurora", k=1, statics=few)
    assert list(read_pickle(tmp_path / "b.pickle"))[:3] == ["lsm", "z", "slt"]


@pytest.mark.slow
@pytest.mark.parametrize(("k", "last"), [(8, "copembed_07"), (7, "copembed_mask")])
def test_eight_channels_of_makani(tmp_path, k, last):
    written = models.write(reduction(8), tmp_path / "m.npy", "makani", k=k, rows=720)
    found = np.load(tmp_path / "m.npy")
    assert found.shape == (720, 1440, 8)
    assert found.dtype == np.float32
    assert written.channels[-1] == last
    want, there = standardised(reduction(8))
    np.testing.assert_allclose(np.moveaxis(found[..., :7], -1, 0), want[:7, :720], atol=2e-6)
    np.testing.assert_allclose(found[..., 7], (there if k == 7 else want[7])[:720], atol=2e-6)
    for model, name, read in (("makani", "m.h5", read_makani), ("aurora", "a.pickle", read_pickle)):
        models.write(reduction(1), tmp_path / name, model, k=1, rows=720)
        assert all(v.shape == (720, 1440) for v in read(tmp_path / name).values())


@pytest.mark.slow
def test_the_order_of_the_dataset_changes_no_byte(tmp_path):
    ds = reduction()
    others = [
        ds.isel(lat=slice(None, None, -1)).transpose("component", "lon", "lat"),
        ds.assign_coords(lon=(ds.lon + 360) % 360).sortby("lon"),
        ds.chunk({"lat": 50, "lon": 17}),
        ds.rename(lat="latitude", lon="longitude"),
    ]
    for name, model in (("p.npy", "pangu"), ("a.pickle", "aurora"), ("i.pt", "aifs")):
        models.write(ds, tmp_path / name, model, k=K)
        want = (tmp_path / name).read_bytes()
        for other in others:
            models.write(other, tmp_path / name, model, k=K, overwrite=True)
            assert (tmp_path / name).read_bytes() == want


@pytest.mark.slow
def test_a_cube_is_reduced_first(tmp_path):
    rng = np.random.default_rng(3)
    x = rng.normal(size=(len(LAT), len(LON), 6)).astype("f4") @ rng.normal(size=(6, 6))
    x[rng.random(x.shape[:2]) < 0.5] = np.nan
    cube = xr.Dataset({"embedding": (("lat", "lon", "dim"), x.astype("f4"))})
    cube = cube.assign_coords(lat=LAT, lon=LON)
    for name, ds in (("a", cube), ("b", reduce(cube, 2))):
        models.write(ds, tmp_path / f"{name}.npy", "pangu", k=2)
    assert (tmp_path / "a.npy").read_bytes() == (tmp_path / "b.npy").read_bytes()
    with pytest.raises(OptionError, match="k"):
        models.write(cube, tmp_path / "c.npy", "pangu", k=7)


@pytest.mark.slow
def test_fingerprint_is_of_the_cube_and_not_of_the_model(tmp_path):
    def fingerprint(path):
        match path.suffix:
            case ".zarr":
                return zarr.open_group(path, mode="r").attrs["copcube_fingerprint"]
            case ".pt":
                torch = pytest.importorskip("torch")
                assert torch.load(path, weights_only=True).ndim == 3
                with zipfile.ZipFile(path) as archive:
                    return json.loads(archive.read("archive/copcube.json"))["copcube_fingerprint"]
            case ".npy" | ".pickle":
                text = json.loads(Path(f"{path}.json").read_text())["copcube"]
                assert text["encoder"] == "an encoder"
                return text["copcube_fingerprint"]
        with netCDF4.Dataset(path) as file:
            assert file.encoder == "an encoder"
            return file.copcube_fingerprint

    found = set()
    names = {model: name for model, (name, _) in ON_LATTICE.items()}
    names |= {"neuralgcm": "n.nc", "weathergenerator": "w.zarr"}
    for model in FORMS:
        path = tmp_path / names[model]
        models.write(reduction(1), path, model, k=1)
        found.add(fingerprint(path))
    assert len(found) == 1
    assert re.fullmatch("[0-9a-f]{64}", found.pop())
    models.write(reduction(1, seed=5), tmp_path / "other.npy", "pangu", k=1)
    models.write(reduction(1), tmp_path / "same.npy", "pangu", k=1)
    assert fingerprint(tmp_path / "other.npy") != fingerprint(tmp_path / "same.npy")


# Other places than the lattice


def whole(k=1, seed=0, share=0.4):
    rng = np.random.default_rng(seed)
    x = np.broadcast_to(np.sin(np.radians(WHOLE["latitude"]))[:, None, None] * 5, (721, 1440, k))
    x = (x + rng.normal(size=x.shape)).astype("f4")
    x[rng.random(x.shape[:2]) > share] = np.nan
    coords = {"lat": WHOLE["latitude"], "lon": WHOLE["longitude"]}
    return xr.Dataset({"pc": (("lat", "lon", "component"), x)}, coords)


def test_gaussian_grid_of_neuralgcm(tmp_path):
    ds = whole()
    models.write(ds, tmp_path / "n.nc", "neuralgcm", k=1)
    found = xr.load_dataset(tmp_path / "n.nc")
    assert found.copembed_00.dims == ("lon", "lat")
    assert dict(found.sizes) == {"lon": 128, "lat": 64}
    assert found.copembed_00.attrs["units"] == found.copembed_mask.attrs["units"] == "dimensionless"
    np.testing.assert_allclose(found.lat, np.degrees(np.arcsin(roots_legendre(64)[0])), atol=1e-9)
    np.testing.assert_array_equal(found.lon, np.arange(128) * 2.8125)
    # What a first-order conservative remapping keeps: area and integral of what is there.
    y = found.lat.values
    edges = np.sin(np.radians([-90, *(y[1:] + y[:-1]) / 2, 90]))
    area = (np.diff(edges) * 2 * np.pi / 128 * found.copembed_mask.values).astype(float)
    raw = found.copembed_00 * found.copembed_00.standardised_std
    raw = (raw + found.copembed_00.standardised_mean).values
    x = ds.pc.values[..., 0].astype(float)
    fine = np.broadcast_to(grid.areas()[:, None], x.shape)
    there = np.isfinite(x)
    np.testing.assert_allclose(area.sum(), fine[there].sum(), rtol=1e-6)
    np.testing.assert_allclose((area * raw).sum(), (fine * x)[there].sum(), rtol=1e-4)
    z = found.copembed_00.values.astype(float)
    assert abs(np.average(z, weights=area)) < 1e-6
    np.testing.assert_allclose(np.average(z**2, weights=area), 1, rtol=1e-5)


def test_places_of_a_coarse_grid_without_vectors(tmp_path):
    models.write(reduction(1), tmp_path / "n.nc", "neuralgcm", k=1, grid="TL31")
    found = xr.load_dataset(tmp_path / "n.nc")
    assert found.sizes["lat"] == 32
    empty = found.copembed_mask == 0
    assert 0.9 < empty.mean() < 1
    assert (found.copembed_00.values[empty] == 0).all()
    assert np.isfinite(found.copembed_00).all()


def lam(n=12):
    """A grid of n × (n + 1) points, 0.1° apart and turned."""
    a, b = np.meshgrid(np.arange(n) * 0.1, np.arange(n + 1) * 0.1, indexing="ij")
    return xr.Dataset(
        coords={
            "latitude": (("x", "y"), 50 + 0.8 * a + 0.6 * b),
            "longitude": (("x", "y"), 1 + 0.6 * a - 0.8 * b),
            "x": np.arange(n) * 11e3,
            "y": np.arange(n + 1) * 11e3,
        }
    )


@pytest.mark.slow
@pytest.mark.parametrize("form", ["dataset", "nc", "zarr"])
def test_grid_of_neural_lam(tmp_path, statics, form):
    own, ds = lam(), reduction(2)
    given = own if form == "dataset" else tmp_path / f"grid.{form}"
    if form == "nc":
        own.to_netcdf(given)
    elif form == "zarr":
        own.to_zarr(given, zarr_format=2)
    out = tmp_path / "out.zarr"
    models.write(ds, out, "neural-lam", k=2, grid=given, statics=statics[["z"]])
    found = xr.open_zarr(out, chunks=None).load()
    assert found.copembed_00.dims == ("x", "y")
    for name in ("x", "y", "latitude", "longitude"):
        np.testing.assert_array_equal(found[name], own[name])
    nearest = {"lat": own.latitude, "lon": own.longitude}
    x = ds.pc.sel(nearest, method="nearest").values
    there = np.isfinite(x).all(-1)
    np.testing.assert_array_equal(found.copembed_mask, there)
    want = StandardScaler().fit_transform(x[there].astype(float))
    np.testing.assert_allclose(found.copembed_01.values[there], want[:, 1], atol=1e-5)
    assert (found.copembed_01.values[~there] == 0).all()
    assert found.attrs["weights"] == "all points alike that lie in a cell with a vector"
    y, x = own.latitude, own.longitude
    np.testing.assert_array_equal(
        found.z, statics.z.sel(latitude=y, longitude=x % 360, method="nearest")
    )
    assert found.z.units == "m2 s-2"


@pytest.mark.parametrize("form", ["frame", "csv", "parquet"])
def test_stations_of_weathergenerator(tmp_path, form, caplog):
    ds = reduction()
    there = np.isfinite(ds.pc.values).all(-1)
    (i, j), (no, none) = np.argwhere(there)[[5, 700]].T, np.argwhere(~there)[3]
    lat = [LAT[i[0]] + 0.1, LAT[i[1]], LAT[no], np.nan, 95, 0]
    lon = [LON[j[0]] - 0.1, LON[j[1]] % 360, LON[none], 3, 3, 0]
    table = pd.DataFrame({"name": list("abcdef"), "Lat": lat, "longitude": lon})
    given = table if form == "frame" else tmp_path / f"t.{form}"
    if form == "csv":
        table.to_csv(given, index=False)
    elif form == "parquet":
        table.to_parquet(given)
    models.write(ds, tmp_path / "w.zarr", "weathergenerator", k=K, stations=given)
    store = zarr.open(tmp_path / "w.zarr", mode="r")
    assert store["data"].shape == (2, 1, K + 1, 1, 1)
    assert store["dates"][:].dtype.kind == "M"
    np.testing.assert_array_equal(store["metadata"][:]["lat"], lat[:2])
    np.testing.assert_array_equal(store["metadata"][:]["lon"], lon[:2])
    row, col = (90 - LAT[i]) / 0.25, LON[j] % 360 / 0.25
    want = standardised(ds)[0][:, row.astype(int), col.astype(int)].T
    np.testing.assert_allclose(store["data"][:, 0, :-1, 0, 0], want, atol=2e-6)
    assert (store["data"][:, 0, -1] == 1).all()
    assert "2 rows of the table are not places" in caplog.text
    assert "2 of 4 stations lie in cells without a vector" in caplog.text


def test_all_cells_are_stations_by_default(tmp_path):
    ds = reduction()
    written = models.write(ds, tmp_path / "w.zarr", "weathergenerator", k=K)
    places = zarr.open(tmp_path / "w.zarr", mode="r")["metadata"][:]
    assert len(places) == written.cells == np.isfinite(ds.pc.values).all(-1).sum()


# Bad input


@pytest.mark.slow
def test_what_cannot_be_written(tmp_path, statics):
    ds, out = reduction(), tmp_path / "out"
    bad = pd.DataFrame({"a": [1]})
    nowhere = pd.DataFrame({"lat": [np.nan], "lon": [1]})
    sea = pd.DataFrame({"lat": [-40], "lon": [-30]})
    holes = statics[["z"]].where(statics.latitude > 0)
    flat = ds.assign(pc=ds.pc.where(ds.pc.isnull(), 1))
    cases = [
        (OptionError, "unknown model 'sfno'; expected makani", ds, ".h5", "sfno", {}),
        (OptionError, "makani reads .h5 or .npy", ds, ".nc", "makani", {}),
        (OptionError, "k is 0", ds, ".h5", "makani", {"k": 0}),
        (OptionError, "k is True", ds, ".h5", "makani", {"k": True}),
        (OptionError, "holds 3 components, but k=8", ds, ".h5", "makani", {"k": 8}),
        (OptionError, "8 channels: 8 components, or 7", ds, ".npy", "makani", {"k": 9}),
        (OptionError, r"\.h5 takes any number", ds, ".npy", "makani", {"k": 3}),
        (OptionError, "rows=700", ds, ".h5", "makani", {"rows": 700}),
        (OptionError, "have no option rows; expected none", ds, ".npy", "pangu", {"rows": 721}),
        (OptionError, "have no option grid; expected rows", ds, ".h5", "makani", {"grid": "x"}),
        (OptionError, "grid='TL64'; expected TL31", ds, ".nc", "neuralgcm", {"grid": "TL64"}),
        (OptionError, "not hold the model's static", ds, ".npy", "pangu", {"statics": statics}),
        (CubeError, "also needs lsm", ds, ".nc", "graphcast", {"statics": statics[["z"]]}),
        (CubeError, "z is missing in 519,840 cells", ds, ".h5", "makani", {"statics": holes}),
        (CubeError, "season", ds.expand_dims(season=2), ".h5", "makani", {}),
        (CubeError, "no cell holds a vector", ds.where(ds.lat > 99), ".h5", "makani", {}),
        (CubeError, "copembed_00 is the same", flat, ".h5", "makani", {}),
        (CubeError, "expected", xr.Dataset({"x": ("lat", [1.0])}), ".h5", "makani", {}),
        (
            OptionError,
            "no column named lat",
            ds,
            ".zarr",
            "weathergenerator",
            {"stations": bad},
        ),
        (OptionError, "none of 1 rows", ds, ".zarr", "weathergenerator", {"stations": nowhere}),
        (CopcubeError, "no such file", ds, ".zarr", "weathergenerator", {"stations": "no.csv"}),
        (CubeError, "no station lies", ds, ".zarr", "weathergenerator", {"stations": sea}),
        (CopcubeError, "no such file", ds, ".zarr", "neural-lam", {"grid": "no.nc"}),
        (GridError, "expected latitude", ds, ".zarr", "neural-lam", {"grid": xr.Dataset()}),
        (GridError, "both along the same", ds, ".zarr", "neural-lam", {"grid": statics}),
        (
            CubeError,
            "none of the model's places",
            ds,
            ".zarr",
            "neural-lam",
            {"grid": lam().assign_coords(latitude=-lam().latitude)},
        ),
    ]
    for part, match in (
        (statics.isel(latitude=slice(1, None)), "720 rows"),
        (statics.coarsen(latitude=4, longitude=4, boundary="trim").mean(), "expected the 0.25"),
    ):
        cases.append((GridError, match, ds, ".h5", "makani", {"statics": part}))
    for error, match, given, suffix, model, options in cases:
        with pytest.raises(error, match=match):
            models.write(given, f"{out}{suffix}", model, **{"k": K, **options})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_only_own_files_are_replaced(tmp_path):
    ds = reduction(1)
    names = {model: name for model, (name, _) in ON_LATTICE.items()}
    names |= {"neuralgcm": "n.nc", "weathergenerator": "w.zarr"}
    for model, name in names.items():
        path = tmp_path / model / name
        path.parent.mkdir()
        models.write(ds, path, model, k=1)
        with pytest.raises(WriteError, match="exists already"):
            models.write(ds, path, model, k=1)
        models.write(ds, path, model, k=1, overwrite=True)
    foreign = tmp_path / "f.pickle"
    foreign.write_bytes(pickle.dumps({"lsm": 1}, protocol=4))
    beside = tmp_path / "f.pickle.json"
    for text in (None, "{", "[1]", '{"copcube": 1}', '{"copcube": {"sha256": "0"}}'):
        if text is not None:
            beside.write_text(text)
        with pytest.raises(WriteError, match="only what copcube made is replaced"):
            models.write(ds, foreign, "aurora", k=1, overwrite=True)
    # A file that was changed since is not ours either.
    own = tmp_path / "aurora" / "a.pickle"
    own.write_bytes(own.read_bytes() + b"0")
    with pytest.raises(WriteError, match="only what copcube made is replaced"):
        models.write(ds, own, "aurora", k=1, overwrite=True)
    assert foreign.read_bytes() == pickle.dumps({"lsm": 1}, protocol=4)


def test_a_failure_leaves_nothing(tmp_path, monkeypatch):
    def fail(fields, path):
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setitem(FORMS["pangu"], ".npy", Form(fail))
    with pytest.raises(OSError, match="cannot be written"):
        models.write(reduction(1), tmp_path / "p.npy", "pangu", k=1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_on_the_command_line(tmp_path, capsys, statics):
    fields, given = tmp_path / "fields.nc", tmp_path / "static.nc"
    reduction().to_netcdf(fields)
    statics[["z", "lsm"]].to_netcdf(given)
    words = ["export", str(fields), str(tmp_path / "inv.h5"), "--for", "makani"]
    assert main([*words, "-k", "2", "--statics", str(given), "--rows", "720"]) == 0
    assert "5 channels for makani" in capsys.readouterr().out
    found = read_makani(tmp_path / "inv.h5")
    assert list(found) == ["z", "lsm", "copembed_00", "copembed_01", "copembed_mask"]
    assert main(words) == 1
    assert "exists already" in capsys.readouterr().err
    assert main([*words, "--overwrite"]) == 1
    assert "holds 3 components, but k=8" in capsys.readouterr().err
    assert main(["export", str(fields), str(tmp_path / "x.npy"), "-k", "3"]) == 1
    assert "-k: for files of weather models; choose the model with --for" in capsys.readouterr().err
    assert main([*words[:2], str(tmp_path / "y.h5"), *words[3:], "-k", "2", "--dtype", "int8"]) == 1
    assert "no option dtype" in capsys.readouterr().err


def test_the_command_knows_all_models(capsys):
    with pytest.raises(SystemExit):
        main(["export", "a", "b", "--for", "none"])
    choices = re.findall(r"[\w-]+", capsys.readouterr().err.split("choose from")[1])
    assert [word for word in choices if word in FORMS] == list(FORMS)


# The models' own readers, where they are installed


def test_h5py_reads_makanis_file(tmp_path):
    h5py = pytest.importorskip("h5py", reason="h5py, by which makani reads, is not installed")
    models.write(reduction(), tmp_path / "m.h5", "makani", k=K)
    with h5py.File(tmp_path / "m.h5") as file:
        names = [n.decode() if isinstance(n, bytes) else str(n) for n in file["channel"][...]]
        assert names == CHANNELS
        assert file["fields"].shape == (K + 1, 721, 1440)
        assert [list(dim.keys()) for dim in file["fields"].dims] == [["channel"], ["lat"], ["lon"]]
        assert file["lat"].dtype == np.float64


@pytest.mark.slow
def test_aurora_itself(tmp_path, monkeypatch):
    aurora = pytest.importorskip("aurora", reason="microsoft-aurora is not installed")
    import torch
    from aurora import normalisation

    models.write(reduction(), tmp_path / "a.pickle", "aurora", k=K)
    found = read_pickle(tmp_path / "a.pickle")
    for name in CHANNELS:
        monkeypatch.setitem(normalisation.locations, name, 0.0)
        monkeypatch.setitem(normalisation.scales, name, 1.0)
    model = aurora.AuroraSmallPretrained(static_vars=tuple(CHANNELS), use_lora=False).eval()
    part = np.s_[120:137, 0:32]
    batch = aurora.Batch(
        surf_vars={name: torch.randn(1, 2, 17, 32) for name in model.surf_vars},
        static_vars={name: torch.from_numpy(v[part].copy()) for name, v in found.items()},
        atmos_vars={name: torch.randn(1, 2, 2, 17, 32) for name in model.atmos_vars},
        metadata=aurora.Metadata(
            lat=torch.from_numpy(WHOLE["latitude"][part[0]]),
            lon=torch.from_numpy(WHOLE["longitude"][part[1]]),
            time=(pd.Timestamp("2020-01-01").to_pydatetime(),),
            atmos_levels=(500, 850),
        ),
    )
    with torch.inference_mode():
        forecast = model.forward(batch)
    assert torch.isfinite(forecast.surf_vars["2t"]).all()
    # The model hands its static variables on, without the last row.
    np.testing.assert_array_equal(
        forecast.static_vars[CHANNELS[1]], found[CHANNELS[1]][120:136, :32]
    )
    statics_of_v1p5 = aurora.AuroraV1p5.__init__.__kwdefaults__["static_vars"]
    from copcube.models.aurora import statics as own

    fields = {s.name: np.zeros((2, 2), np.float32) for s in STATICS}
    assert {*statics_of_v1p5} <= {*own(fields)}


@pytest.mark.slow
@pytest.mark.parametrize(("truncation", "rows"), [("TL63", 64), ("TL127", 128)])
def test_averages_are_those_of_neuralgcms_own_regridder(truncation, rows):
    horizontal = pytest.importorskip(
        "dinosaur.horizontal_interpolation", reason="dinosaur, of neuralgcm, is not installed"
    )
    import jax
    from dinosaur.spherical_harmonic import Grid

    x = np.random.default_rng(0).normal(size=(721, 1440))
    fine = Grid(latitude_nodes=721, longitude_nodes=1440, latitude_spacing="equiangular_with_poles")
    jax.config.update("jax_enable_x64", True)
    try:
        regridder = horizontal.ConservativeRegridder(fine, getattr(Grid, truncation)())
        want = np.asarray(regridder(x[::-1].T)).T
    finally:
        jax.config.update("jax_enable_x64", False)
    overlaps = Overlaps.between(np.arange(721), np.arange(1440), gaussian(rows))
    np.testing.assert_allclose(overlaps.mean(x[..., None])[..., 0], want, atol=1e-11)


@pytest.mark.slow
def test_neuralgcm_itself(tmp_path):
    features = pytest.importorskip("neuralgcm.legacy.features", reason="neuralgcm is not installed")
    import haiku
    import jax
    from dinosaur import coordinate_systems, primitive_equations, sigma_coordinates
    from dinosaur.spherical_harmonic import Grid

    models.write(reduction(), tmp_path / "n.nc", "neuralgcm", k=K)
    coords = coordinate_systems.CoordinateSystem(
        Grid.TL63(), sigma_coordinates.SigmaCoordinates.equidistant(8)
    )
    specs = primitive_equations.PrimitiveEquationsSpecs.from_si()

    def covariates():
        path = str(tmp_path / "n.nc")
        return features.FloatDataFeatures(
            coords, 1.0, specs, {}, covariate_data_path=path, covariate_keys=CHANNELS
        )({})

    run = haiku.transform(covariates)
    found = run.apply(run.init(jax.random.PRNGKey(0)), jax.random.PRNGKey(0))
    want = xr.load_dataset(tmp_path / "n.nc")
    for name in CHANNELS:
        np.testing.assert_allclose(found[name][0], want[name], rtol=1e-6)


def test_mllam_data_prep_itself(tmp_path):
    mdp = pytest.importorskip("mllam_data_prep", reason="mllam-data-prep is not installed")
    models.write(reduction(), tmp_path / "n.zarr", "neural-lam", k=K, grid=lam())
    (tmp_path / "recipe.yaml").write_text(f"""
schema_version: v0.6.0
dataset_version: v0.1.0
output: {{variables: {{static: [grid_index, static_feature]}}, coord_ranges: {{}}, chunking: {{}}}}
inputs:
  embeddings:
    path: {tmp_path / "n.zarr"}
    dims: [x, y]
    variables: {CHANNELS}
    dim_mapping:
      grid_index: {{method: stack, dims: [x, y]}}
      static_feature: {{method: stack_variables_by_var_name, name_format: "{{var_name}}"}}
    target_output_variable: static
""")
    found = mdp.create_dataset(mdp.Config.from_yaml_file(tmp_path / "recipe.yaml")).static
    want = xr.open_zarr(tmp_path / "n.zarr")
    for name in CHANNELS:
        np.testing.assert_array_equal(found.sel(static_feature=name), want[name].values.ravel())


@pytest.mark.slow
def test_anemoi_itself(tmp_path):
    # It wants Zarr 2 and so lives in an environment of its own; what it makes is read plainly.
    command = shutil.which("anemoi-datasets")
    if command is None:
        pytest.skip("anemoi-datasets is not on the path")
    models.write(reduction(), tmp_path / "a.nc", "anemoi", k=K)
    dynamic = {"t2m": (("time", *WHOLE), np.zeros((2, 721, 1440), "f4"))}
    times = {"time": pd.date_range("2020-01-01", periods=2, freq="6h")}
    with xr.open_dataset(tmp_path / "a.nc") as ds:
        axes = {name: ds[name] for name in WHOLE}
        xr.Dataset(dynamic, times | axes).to_netcdf(tmp_path / "dynamic.nc")
    (tmp_path / "recipe.yaml").write_text(f"""
dates: {{start: 2020-01-01, end: 2020-01-01T06:00:00, frequency: 6h}}
input:
  join:
    - netcdf: {{path: {tmp_path / "dynamic.nc"}, param: [t2m]}}
    - repeated-dates:
        mode: constant
        source: {{netcdf: {{path: {tmp_path / "a.nc"}, param: {CHANNELS}}}}}
""")
    environment = {key: v for key, v in os.environ.items() if key != "PYTHONPATH"}
    words = [command, "create", tmp_path / "recipe.yaml", tmp_path / "out.zarr"]
    subprocess.run(words, check=True, capture_output=True, env=environment)
    found = zarr.open(tmp_path / "out.zarr", mode="r")
    want, _ = standardised(reduction())
    at = found.attrs["variables"].index(CHANNELS[1])
    np.testing.assert_allclose(found["data"][0, at, 0], want[1].ravel(), atol=2e-6)
