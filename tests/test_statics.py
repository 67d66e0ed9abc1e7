import logging
import os
import sys
import types
import zipfile

import dask.array as da
import numpy as np
import pytest
import xarray as xr
from s3_server import put_public

from copcube import era5
from copcube.era5.statics import STATICS, recognise
from copcube.errors import (
    CubeError,
    GridError,
    MissingFileError,
    MissingPackageError,
    OptionError,
    SourceError,
    StorageError,
)
from copcube.files.objects import ObjectFolder, stores

LAT, LON = np.arange(60, 50, -0.25), np.arange(0, 10, 0.25)
ORDER = [static.name for static in STATICS]

ARCO = {
    "z": "geopotential_at_surface",
    "lsm": "land_sea_mask",
    "slt": "soil_type",
    "cvl": "low_vegetation_cover",
    "cvh": "high_vegetation_cover",
    "tvl": "type_of_low_vegetation",
    "tvh": "type_of_high_vegetation",
    "cl": "lake_cover",
    "dl": "lake_depth",
    "sdor": "standard_deviation_of_orography",
    "isor": "anisotropy_of_sub_gridscale_orography",
    "anor": "angle_of_sub_gridscale_orography",
    "slor": "slope_of_sub_gridscale_orography",
    "sdfor": "standard_deviation_of_filtered_subgrid_orography",
}
"""Names in ARCO-ERA5 and WeatherBench2, written down beside the table that is tested."""

LONG = {
    "z": "Geopotential",
    "lsm": "Land-sea mask",
    "slt": "Soil type",
    "cvl": "Low vegetation cover",
    "cvh": "High vegetation cover",
    "tvl": "Type of low vegetation",
    "tvh": "Type of high vegetation",
    "cl": "Lake cover",
    "dl": "Lake total depth",
    "sdor": "Standard deviation of sub-gridscale orography",
    "isor": "Anisotropy of sub-gridscale orography",
    "anor": "Angle of sub-gridscale orography",
    "slor": "Slope of sub-gridscale orography",
    "sdfor": "Standard deviation of filtered subgrid orography (climatological)",
}
"""Long names as cfgrib and CDS give them."""

IDS = {
    "z": 129,
    "lsm": 172,
    "slt": 43,
    "cvl": 27,
    "cvh": 28,
    "tvl": 29,
    "tvh": 30,
    "cl": 26,
    "dl": 228007,
    "sdor": 160,
    "isor": 161,
    "anor": 162,
    "slor": 163,
    "sdfor": 74,
}


def value(name):
    """A field unlike those of other names."""
    return np.full((len(LAT), len(LON)), ORDER.index(name) + 0.5, np.float32)


def statics(names, attrs=None) -> xr.Dataset:
    """A dataset of all fields under other names."""
    attrs = attrs or {}
    return xr.Dataset(
        {
            new: (("latitude", "longitude"), value(name), attrs.get(name, {}))
            for name, new in reversed(names.items())
        },
        coords={"latitude": LAT, "longitude": LON},
        attrs={"title": "made by hand"},
    )


def assert_canonical(ds):
    assert list(ds) == ORDER
    for name in ORDER:
        assert ds[name].dims in (("latitude", "longitude"), ("longitude", "latitude"))
        assert np.array_equal(ds[name].transpose("latitude", "longitude"), value(name))
    assert set(ds.coords) == {"latitude", "longitude"}
    kinds = {name: ds[name].attrs["kind"] for name in ORDER}
    assert {n for n, kind in kinds.items() if kind == "categorical"} == {"slt", "tvl", "tvh"}
    assert {n for n, kind in kinds.items() if kind == "fraction"} == {"lsm", "cvl", "cvh", "cl"}
    assert {n for n, kind in kinds.items() if kind == "angle"} == {"anor"}
    assert all(ds[name].attrs["units"] for name in ORDER)


NAMINGS = {
    "short": statics({name: name for name in ORDER}),
    "ARCO": statics(ARCO),
    "CDS request, z on a surface": statics(ARCO | {"z": "geopotential"}),
    "upper case": statics({name: name.upper() for name in ORDER}),
    "CDO": statics({name: f"var{number}" for name, number in IDS.items()}),
    "ids": statics({name: f"{number}.128" for name, number in IDS.items()}),
    "GRIB ids": statics(
        {name: f"field {name}" for name in ORDER},
        {name: {"GRIB_paramId": np.int64(number)} for name, number in IDS.items()},
    ),
    "long names": statics(
        {name: f"a_{i}" for i, name in enumerate(ORDER)},
        {name: {"long_name": long} for name, long in LONG.items()},
    ),
}


@pytest.mark.parametrize("naming", NAMINGS)
def test_all_fields_are_recognised_by_any_name(tmp_path, naming):
    NAMINGS[naming].to_netcdf(tmp_path / "a.nc")
    with era5.open_static(tmp_path / "a.nc") as ds:
        assert_canonical(ds)
        assert ds.attrs == {"title": "made by hand"}
        assert ds.z.attrs["original_name"] == list(NAMINGS[naming])[-1]


def test_attributes_stay_and_missing_units_come(tmp_path):
    ds = statics(ARCO, {"dl": {"units": "metres", "comment": "deep"}})
    ds.to_netcdf(tmp_path / "a.nc")
    with era5.open_static(str(tmp_path / "a.nc")) as ds:
        assert ds.dl.attrs == {
            "units": "metres",
            "comment": "deep",
            "kind": "continuous",
            "original_name": "lake_depth",
        }
        assert ds.z.attrs["units"] == "m2 s-2"


def test_a_parameter_id_outweighs_a_name():
    field = xr.DataArray(0.0, attrs={"GRIB_paramId": 167})
    assert recognise("z", field) is None
    assert recognise("anything", field.assign_attrs(GRIB_paramId="26")).name == "cl"
    assert recognise("cl", field.drop_attrs()).name == "cl"
    assert recognise("t2m", field.drop_attrs()) is None


def test_a_file_of_the_climate_data_store(tmp_path):
    ds = statics({name: name for name in ORDER}).expand_dims(
        valid_time=np.array(["2020-01-01"], "datetime64[ns]")
    )
    ds = ds.assign_coords(number=((), 0), expver=("valid_time", ["0001"]))
    ds.to_netcdf(tmp_path / "a.nc", unlimited_dims=["valid_time"])
    with era5.open_static(tmp_path / "a.nc") as ds:
        assert_canonical(ds)
        ds.to_netcdf(tmp_path / "again.nc")


@pytest.mark.slow
@pytest.mark.parametrize(("zarr_format", "transposed"), [(2, True), (3, False)])
def test_a_store_of_weatherbench_or_arco(tmp_path, zarr_format, transposed, caplog):
    dims = ("longitude", "latitude") if transposed else ("latitude", "longitude")
    ds = statics(ARCO).transpose(*dims)
    ds = ds.assign_coords(
        latitude=LAT.astype(np.float32), longitude=LON.astype(np.float32), level=[500, 850]
    )
    shape = (3, 2, len(LAT), len(LON))
    ds["geopotential"] = ("time", "level", "latitude", "longitude"), np.zeros(shape, "f4")
    ds["2m_temperature"] = ("time", "latitude", "longitude"), np.zeros(shape[:1] + shape[2:], "f4")
    consolidated = {"consolidated": True} if zarr_format == 2 else {"consolidated": False}
    ds.to_zarr(tmp_path / "a.zarr", zarr_format=zarr_format, **consolidated)
    with caplog.at_level(logging.INFO, logger="copcube"):
        opened = era5.open_static(tmp_path / "a.zarr")
    assert_canonical(opened)
    assert opened.z.dims == dims
    assert opened.latitude.dtype == np.float32
    assert isinstance(opened.z.data, da.Array)
    assert "geopotential (on level)" in caplog.text
    assert "2m_temperature" in caplog.text


def on(level):
    ds = statics({"z": "z", "lsm": "lsm"})
    return ds.assign_coords({level: 500.0}) if level else ds


@pytest.mark.parametrize("level", ["level", "pressure_level", "isobaricInhPa"])
@pytest.mark.parametrize("as_dimension", [True, False])
def test_geopotential_of_a_pressure_level_is_not_the_orography(tmp_path, level, as_dimension):
    ds = on(level)
    if as_dimension:
        ds["z"] = ds.z.drop_vars(level).expand_dims({level: [500.0]})
    ds.to_netcdf(tmp_path / "a.nc")
    with era5.open_static(tmp_path / "a.nc") as opened:
        assert list(opened) == ["lsm"]
    ds.drop_vars("lsm").to_netcdf(tmp_path / "b.nc")
    with pytest.raises(CubeError, match=rf"found z \(on {level}\)"):
        era5.open_static(tmp_path / "b.nc")


def test_a_field_repeated_in_time_is_taken_once_and_a_changing_one_is_not(tmp_path, caplog):
    ds = statics({"z": "z", "lsm": "lsm", "cl": "cl"}).expand_dims(time=4).copy(deep=True)
    ds["lsm"][3, 3, 4] = 9
    ds["z"][:, 0, 0] = np.nan
    ds.to_netcdf(tmp_path / "a.nc")
    with caplog.at_level(logging.INFO, logger="copcube"):
        opened = era5.open_static(tmp_path / "a.nc")
    assert list(opened) == ["z", "cl"]
    assert opened.z.dims == ("latitude", "longitude")
    assert "lsm (differs along time)" in caplog.text


def test_other_names_of_coordinates_become_ours(tmp_path):
    ds = statics(ARCO).rename(latitude="lat", longitude="lon").isel(lat=slice(None, None, -1))
    ds.to_netcdf(tmp_path / "a.nc")
    with era5.open_static(tmp_path / "a.nc") as opened:
        assert opened.z.dims == ("latitude", "longitude")
        assert np.array_equal(opened.latitude, LAT[::-1])


def test_two_of_a_kind_are_refused(tmp_path):
    statics({"z": "z", "lsm": "land_sea_mask"}).assign(
        orog=xr.DataArray(value("z"), dims=("latitude", "longitude"), attrs={"code": 129})
    ).to_netcdf(tmp_path / "a.nc")
    with pytest.raises(CubeError, match="z and orog both are ERA5's z, geopotential_at_surface"):
        era5.open_static(tmp_path / "a.nc")


def test_a_field_of_members_is_refused(tmp_path):
    statics({"z": "z"}).expand_dims(quantile=2).to_netcdf(tmp_path / "a.nc")
    with pytest.raises(CubeError, match="z has the dimensions quantile, latitude, longitude"):
        era5.open_static(tmp_path / "a.nc")


def test_nothing_invariant_is_an_error(tmp_path):
    statics({"z": "t2m", "lsm": "u10"}).to_netcdf(tmp_path / "a.nc")
    with pytest.raises(CubeError, match=r"\(z, lsm, .*sdfor\), found u10, t2m"):
        era5.open_static(tmp_path / "a.nc")


def test_a_reduced_grid_is_refused(tmp_path):
    xr.Dataset(
        {"z": ("values", np.zeros(9))},
        coords={"latitude": ("values", np.zeros(9)), "longitude": ("values", np.zeros(9))},
    ).to_netcdf(tmp_path / "a.nc")
    with pytest.raises(GridError, match="reduced Gaussian"):
        era5.open_static(tmp_path / "a.nc")


# ------------------------------------------------------------------------------ bad input


def test_there_is_no_such_file(tmp_path):
    assert issubclass(MissingFileError, FileNotFoundError)
    with pytest.raises(MissingFileError, match=r"no such file; expected NetCDF, GRIB or a Zarr"):
        era5.open_static(tmp_path / "none.nc")


def test_something_else_is_named(tmp_path):
    (tmp_path / "a.nc").write_text("hello")
    with pytest.raises(SourceError, match="found text, which begins 'hello'"):
        era5.open_static(tmp_path / "a.nc")
    with zipfile.ZipFile(tmp_path / "b.nc", "w") as archive:
        archive.writestr("data.nc", "x")
    with pytest.raises(SourceError, match=r"ZIP archive .* 'data.nc', as the Climate .*unpack"):
        era5.open_static(tmp_path / "b.nc")
    (tmp_path / "folder").mkdir()
    with pytest.raises(SourceError, match="not a readable Zarr store"):
        era5.open_static(tmp_path / "folder")


def test_a_truncated_file_is_named(tmp_path):
    statics(ARCO).to_netcdf(tmp_path / "a.nc")
    whole = (tmp_path / "a.nc").read_bytes()
    (tmp_path / "a.nc").write_bytes(whole[:3000])
    with pytest.raises(SourceError, match=r"a\.nc: the NetCDF file cannot be read"):
        era5.open_static(tmp_path / "a.nc")


# -------------------------------------------------------------------------------- addresses


@pytest.mark.slow
def test_a_store_at_an_address(tmp_path):
    statics(ARCO).to_zarr(tmp_path / "a.zarr", consolidated=False)
    opened = era5.open_static((tmp_path / "a.zarr").as_uri())
    assert_canonical(opened)


def contents(path):
    """Files of a file or a folder, by their names beside it."""
    files = [file for file in (path, *path.rglob("*")) if file.is_file()]
    return {str(file.relative_to(path.parent)): file.read_bytes() for file in files}


@pytest.fixture
def small():
    return statics(ARCO).isel(latitude=slice(3), longitude=slice(3))


@pytest.mark.slow
def test_a_private_bucket_is_read_with_the_access_of_everything_else(
    bucket, monkeypatch, tmp_path, small
):
    small.to_zarr(tmp_path / "a.zarr", zarr_format=3, consolidated=False)
    small.to_netcdf(tmp_path / "a.nc")
    for name, data in (contents(tmp_path / "a.zarr") | contents(tmp_path / "a.nc")).items():
        ObjectFolder(bucket).write(name, data)
    addresses = f"{bucket}/a.zarr", f"{bucket}/a.zarr/", f"{bucket}/a.nc"
    for address in addresses:
        with era5.open_static(address) as ds:
            assert list(ds) == ORDER
            for name in ORDER:
                assert float(ds[name][2, 2]) == ORDER.index(name) + 0.5
    stores._store.cache_clear()
    monkeypatch.setenv("AWS_SKIP_SIGNATURE", "true")
    for address in addresses:
        with pytest.raises(StorageError, match="access denied; set AWS_ACCESS_KEY_ID"):
            era5.open_static(address)


@pytest.mark.slow
def test_a_public_bucket_needs_no_credentials(bucket, s3_endpoint, monkeypatch, tmp_path, small):
    small.to_zarr(tmp_path / "a.zarr", zarr_format=2, consolidated=True)
    for name, data in contents(tmp_path / "a.zarr").items():
        put_public(s3_endpoint, "bucket", name, data)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    assert list(era5.open_static(f"{bucket}/a.zarr").load()) == ORDER


@pytest.mark.slow
def test_addresses_of_a_web_server(web, tmp_path, small):
    small.to_zarr(tmp_path / "a.zarr", zarr_format=2, consolidated=True)
    small.to_netcdf(tmp_path / "a.nc", format="NETCDF3_64BIT")
    web.files |= contents(tmp_path / "a.zarr") | contents(tmp_path / "a.nc")
    for name in ("a.zarr", "a.nc"):
        with era5.open_static(f"{web.url}/{name}") as ds:
            assert list(ds.load()) == ORDER
    web.files["b.nc"] = b"PK\x03\x04"
    web.files["c.nc"] = web.files["a.nc"][:100]
    web.files["d.html"] = b"<html>"
    web.status["e.nc"] = 403
    for name, error, says in [
        ("b.nc", SourceError, "b.nc: expected NetCDF, .*, found a ZIP archive; unpack"),
        ("c.nc", SourceError, "c.nc: the NetCDF file cannot be read"),
        (
            "d.html",
            SourceError,
            "d.html: expected NetCDF, .*, found an HTML page",
        ),
        ("e.nc", StorageError, "e.nc: access denied"),
        ("none.nc", SourceError, "none.nc: not a readable Zarr store of variables"),
        ("none.zarr", SourceError, "none.zarr: not a readable Zarr store of variables"),
    ]:
        with pytest.raises(error, match=says):
            era5.open_static(f"{web.url}/{name}")


def test_addresses_of_other_kinds_and_a_missing_package_are_named(monkeypatch):
    with pytest.raises(OptionError, match=r"ftp:.*expected a local path, or an address s3"):
        era5.open_static("ftp://a/b.nc")
    stores._store.cache_clear()
    monkeypatch.setitem(sys.modules, "obstore.store", None)
    with pytest.raises(MissingPackageError, match=r"obstore.*pip install 'copcube\[cloud\]'"):
        era5.open_static("gcs://somewhere/a.zarr")


# ------------------------------------------------------------------------------------- GRIB


def test_grib_without_cfgrib_says_what_to_install(tmp_path, monkeypatch):
    (tmp_path / "a.grib").write_bytes(b"GRIB" + bytes(50))
    monkeypatch.setitem(sys.modules, "cfgrib", None)
    monkeypatch.setitem(sys.modules, "cfgrib.xarray_store", None)
    with pytest.raises(MissingPackageError, match=r"needs cfgrib and ecCodes.*pip install cfgrib"):
        era5.open_static(tmp_path / "a.grib")


def test_grib_is_opened_a_variable_a_dataset(tmp_path, monkeypatch, web):
    # As cfgrib opens it: one dataset a variable, each with scalar coordinates of its own.
    (tmp_path / "a.grib").write_bytes(b"GRIB")
    ds = statics(
        {name: name for name in ORDER},
        {name: {"GRIB_paramId": i, "GRIB_typeOfLevel": "surface"} for name, i in IDS.items()},
    )
    surface = [
        ds[[name]].assign_coords(time=np.datetime64("2020-01-01", "ns"), step=i, surface=0.0)
        for i, name in enumerate(ds)
    ]
    above = ds[["z"]].assign_coords(isobaricInhPa=500.0)
    above.z.attrs |= {"GRIB_typeOfLevel": "isobaricInhPa"}
    asked = []
    module = types.ModuleType("cfgrib.xarray_store")
    module.open_variable_datasets = lambda *args: asked.append(args) or [above, *surface]
    monkeypatch.setitem(sys.modules, "cfgrib", types.ModuleType("cfgrib"))
    monkeypatch.setitem(sys.modules, "cfgrib.xarray_store", module)
    assert_canonical(era5.open_static(tmp_path / "a.grib"))
    assert asked == [(str(tmp_path / "a.grib"), {"indexpath": ""})]
    # At an address it is read from a copy, which is gone afterwards.
    web.files["b.grib"] = b"GRIB"
    assert_canonical(era5.open_static(f"{web.url}/b.grib"))
    assert not os.path.exists(asked[1][0])


@pytest.fixture
def eccodes():
    pytest.importorskip("cfgrib", reason="cfgrib is not installed", exc_type=ImportError)
    return pytest.importorskip("eccodes", reason="ecCodes is not installed", exc_type=ImportError)


def write_grib(eccodes, path, sample, ids, **keys):
    with open(path, "wb") as file:
        for number in ids:
            message = eccodes.codes_grib_new_from_samples(sample)
            for key, v in (keys | {"paramId": number}).items():
                eccodes.codes_set(message, key, v)
            size = eccodes.codes_get_size(message, "values")
            eccodes.codes_set_values(message, np.arange(size) + float(number % 1000))
            eccodes.codes_write(message, file)


@pytest.mark.filterwarnings("ignore")  # of cfgrib's and ecCodes' own
def test_real_grib(eccodes, tmp_path):
    write_grib(eccodes, tmp_path / "a.grib", "regular_ll_sfc_grib1", [167, *IDS.values()])
    ds = era5.open_static(tmp_path / "a.grib")
    assert list(ds) == ORDER
    for name, number in IDS.items():
        assert float(ds[name][0, 0]) == number % 1000
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.grib"]


@pytest.mark.filterwarnings("ignore")
def test_real_grib_on_a_reduced_grid_and_cut_off(eccodes, tmp_path):
    write_grib(eccodes, tmp_path / "a.grib", "reduced_gg_pl_48_grib1", [129], typeOfLevel="surface")
    with pytest.raises(GridError, match="reduced Gaussian"):
        era5.open_static(tmp_path / "a.grib")
    write_grib(eccodes, tmp_path / "b.grib", "regular_ll_sfc_grib1", [129])
    (tmp_path / "b.grib").write_bytes((tmp_path / "b.grib").read_bytes()[:400])
    with pytest.raises(SourceError, match="the GRIB file cannot be read"):
        era5.open_static(tmp_path / "b.grib")


def test_ids_and_short_names_are_those_of_eccodes(eccodes):
    message = eccodes.codes_grib_new_from_samples("regular_ll_sfc_grib1")
    for static in STATICS:
        eccodes.codes_set(message, "paramId", static.param_id)
        assert eccodes.codes_get(message, "shortName") == static.name
        long = eccodes.codes_get(message, "name")
        assert recognise("x", xr.DataArray(0, attrs={"long_name": long})) is static
        units = eccodes.codes_get(message, "units").replace("**", "")
        none = units.startswith(("(", "~")) or units == "Numeric"
        assert static.units == ("1" if none else units)


# ------------------------------------------------------------------------------- real data


def test_the_real_file(shared_data):
    with era5.open_static(shared_data / "era5_static_025.nc") as ds:
        assert list(ds) == ["z"]
        assert ds.z.shape == (721, 1440)
        assert ds.z.attrs["kind"] == "continuous"
        assert 50_000 < float(ds.z.max()) < 60_000
