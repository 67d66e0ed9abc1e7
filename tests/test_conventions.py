"""Other programs read what we write: CF's checkers, GDAL, xarray alone, numpy."""

import json
import subprocess
import sys
import warnings
from importlib.util import find_spec
from pathlib import Path

import netCDF4
import numpy as np
import pandas as pd
import pytest
import rasterio
import xarray as xr
from test_interchange import build, opened, same

from copcube import cube, era5, pca
from copcube.errors import CubeError, OptionError, WriteError
from copcube.interchange import convert, export, to_geotiff, to_netcdf, to_npy, to_npz, to_zarr
from copcube.interchange.conventions import conforming

LAYOUTS = ("first", "separate", "last")
NORTH = 241
"""Rows from the pole to 30°N, which merges of ERA5 have here."""

# Every test needs a cube of the whole globe, which takes seconds to write.
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A cube of 184 cells, in memory."""
    path = build(tmp_path_factory.mktemp("cube") / "world.zarr")
    return xr.open_zarr(path, chunks=None).drop_encoding().load()


@pytest.fixture(scope="module")
def fields(world):
    return pca.reduce(world, k=3)


@pytest.fixture(scope="module")
def merged(fields):
    """Fields of the north beside what the Climate Data Store gives: a time, bare axes."""
    lat, lon = 90 - 0.25 * np.arange(NORTH), 0.25 * np.arange(1440)
    z = np.ones((1, NORTH, 1440), "float32")
    coords = {
        "valid_time": [np.datetime64("2021-01-01", "ns")],
        "latitude": lat,
        "longitude": lon,
    }
    attrs = {"units": "m**2 s**-2", "long_name": "Geopotential", "standard_name": "geopotential"}
    statics = xr.Dataset({"z": (("valid_time", "latitude", "longitude"), z, attrs)}, coords)
    return era5.merge(fields, statics, mask=True)


@pytest.fixture(scope="module")
def seasons(tmp_path_factory):
    """The north of a cube by season."""
    path = build(tmp_path_factory.mktemp("cube") / "seasons.zarr", "season", bands=[2, 3])
    ds = xr.open_zarr(path, chunks=None).isel(lat=slice(90, 170))
    return ds.drop_encoding().load()


@pytest.fixture(scope="module")
def files(world, fields, merged, seasons, tmp_path_factory):
    """Files of every kind, by name."""
    folder = tmp_path_factory.mktemp("nc")
    region = fields.sel(lat=slice(60, -30), lon=slice(200, 330)).sortby("lat")
    transposed = merged.transpose("longitude", "latitude", ...)
    kinds = {
        "reduction": (fields, {}),
        "a variable each": (fields, {"layout": "separate"}),
        "int8": (fields, {"dtype": "int8"}),
        "merged": (merged, {}),
        "merged, a variable each": (merged, {"layout": "separate"}),
        "merged, transposed": (transposed, {}),
        "region, south up": (region, {}),
        "cube": (world, {}),
        "season": (seasons.isel(season=2), {}),
        "seasons": (seasons, {"layout": "separate"}),
    }
    paths = {name: folder / f"{n}.nc" for n, name in enumerate(kinds)}
    for name, (ds, options) in kinds.items():
        to_netcdf(ds, paths[name], **options)
    return paths


KINDS = (
    "reduction",
    "a variable each",
    "int8",
    "merged",
    "merged, a variable each",
    "merged, transposed",
    "region, south up",
    "cube",
    "season",
    "seasons",
)


def test_the_checker_of_ioos_finds_nothing(files, tmp_path):
    """compliance-checker, for CF 1.11."""
    pytest.importorskip("compliance_checker", reason="compliance-checker is not installed")
    command = [Path(sys.executable).parent / "compliance-checker", "--test=cf:1.11"]
    command += ["-f", "json_new", "-o", tmp_path / "all.json", *files.values()]
    subprocess.run(command, capture_output=True)
    reports = json.loads((tmp_path / "all.json").read_text())
    assert len(reports) == len(files)
    for path, report in reports.items():
        found = report["cf:1.11"]
        checks = [*found["high_priorities"], *found["medium_priorities"], *found["low_priorities"]]
        assert len(checks) > 10
        said = [message for check in checks for message in check["msgs"]]
        assert said == [], path


CFCHECKS = """
import ctypes.util, glob, json, os, sys
import cf_units, compliance_checker
site, tables = os.path.dirname(os.path.dirname(cf_units.__file__)), sys.argv[1]
# cf-units brings UDUNITS along, which cfchecker looks for in the system.
for library in glob.glob(site + "/cf_units.libs/libudunits2*"):
    find = ctypes.util.find_library
    ctypes.util.find_library = lambda name: library if name == "udunits2" else find(name)
    os.environ["UDUNITS2_XML_PATH"] = site + "/cf_units/etc/share/udunits2.xml"
from cfchecker.cfchecks import CFChecker, CFVersion
checker = CFChecker(
    cfStandardNamesXML=os.path.dirname(compliance_checker.__file__)
    + "/data/cf-standard-name-table.xml",
    cfAreaTypesXML=tables + "/areas.xml",
    cfRegionNamesXML=tables + "/regions.xml",
    version=CFVersion((1, 8)),
    silent=True,
)
for path in sys.argv[2:]:
    checker.checker(path)
counts = checker.get_total_counts()
print("counts", counts["FATAL"], counts["ERROR"], counts["WARN"])
for path, result in checker.all_results.items():
    said = [(level, where[level]) for where in (result["global"], *result["variables"].values())
            for level in ("FATAL", "ERROR", "WARN") if where[level]]
    print(json.dumps([path, said]))
"""


def test_the_checker_of_cf_finds_nothing(files, tmp_path):
    """cfchecker, which knows CF up to 1.8; what it asks for is the same in 1.11."""
    for name in ("cfchecker", "cf_units", "compliance_checker"):
        if find_spec(name) is None:
            pytest.skip(f"{name} is not installed")
    for name, root in (("areas", "area_type_table"), ("regions", "standardized_region_list")):
        table = f"<{root}><version_number>1</version_number><date>2026-01-01</date></{root}>"
        (tmp_path / f"{name}.xml").write_text(table)
    copies = {tmp_path / f"{number}.nc": path for number, path in enumerate(files.values())}
    copies |= {tmp_path / "spoilt.nc": files["merged"]}
    for copy, path in copies.items():
        copy.write_bytes(path.read_bytes())
        with netCDF4.Dataset(copy, "a") as file:
            assert file.Conventions == "CF-1.11"
            file.Conventions = "CF-1.8"
            if copy.stem == "spoilt":
                file["crs"].grid_mapping_name = "of no projection"
    command = [sys.executable, "-c", CFCHECKS, tmp_path, *copies]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    said = dict(json.loads(line) for line in done.stdout.splitlines() if line.startswith("["))
    ((level, (_,)),) = said.pop(str(tmp_path / "spoilt.nc"))
    assert level == "ERROR"
    assert said == {str(copy): [] for copy in copies if copy.stem != "spoilt"}
    assert "counts 0 1 0\n" in done.stdout, done.stdout


@pytest.mark.parametrize("kind", KINDS)
def test_fields_name_their_grid_mapping_and_no_strange_coordinates(files, kind):
    with netCDF4.Dataset(files[kind]) as file:
        lat, lon = ("lat", "lon") if "lat" in file.dimensions else ("latitude", "longitude")
        gridded = [v for v in file.variables.values() if {lat, lon} <= {*v.dimensions}]
        assert len(gridded) >= 1
        for variable in gridded:
            assert variable.dimensions[-2:] == (lat, lon)
            assert variable.grid_mapping in file.variables
            assert variable.long_name
        # CDO warns of any variable that it cannot take for a coordinate.
        assert [v.name for v in file.variables.values() if "coordinates" in v.ncattrs()] == []
        for name in ("title", "history"):
            assert file.getncattr(name)
        assert file[lat].standard_name == "latitude"
        assert file[lon].units == "degrees_east"


def test_the_title_names_the_product(fields):
    assert conforming(fields).title == "Principal components of Copernicus Sentinel embeddings"
    others = conforming(fields.assign_attrs(product="TESSERA"))
    assert others.title == "Principal components of TESSERA embeddings"
    drawn = conforming(fields.assign_attrs(synthetic="drawn at random"))
    assert drawn.title == "Principal components of SYNTHETIC embeddings"
    drawn = conforming(fields.assign_attrs(synthetic="drawn at random", product="TESSERA"))
    assert drawn.title == "Principal components of SYNTHETIC TESSERA embeddings"
    for made_of, title in {
        "s1_grd dem": "Copernicus Sentinel",
        "landsat8": "landsat8",
        "dem landsat8": "Copernicus Sentinel, landsat8",
    }.items():
        own = conforming(fields.assign_attrs(modalities=made_of))
        assert own.title == f"Principal components of {title} embeddings"


def bands(path, variable):
    """What GDAL reads, (band, row, column), and where."""
    with rasterio.open(f"netcdf:{path}:{variable}") as file:
        assert file.crs.to_epsg() == 4326
        assert all(np.isnan(v) or v == -128 for v in file.nodatavals)
        return file.read(masked=True), tuple(file.transform)[:6], file.scales, file.offsets


with rasterio.Env() as gdal:
    HAS_NETCDF = "netCDF" in gdal.drivers()
needs_netcdf_of_gdal = pytest.mark.skipif(
    not HAS_NETCDF, reason="rasterio has no netCDF driver here"
)


@needs_netcdf_of_gdal
def test_gdal_reads_components_as_bands(files, fields, merged, world):
    whole = (0.25, 0, -0.125, 0, -0.25, 90.125)
    expected = fields.pc.transpose("component", "lat", "lon").values
    for kind in ("reduction", "merged", "merged, transposed"):
        values, transform, *_ = bands(files[kind], "pc")
        assert transform == whole
        rows = 721 if kind == "reduction" else NORTH
        assert np.array_equal(values.filled(np.nan), expected[:, :rows], equal_nan=True)
    assert bands(files["merged, transposed"], "z")[0].shape == (1, NORTH, 1440)
    values, *_ = bands(files["cube"], "embedding")
    expected = world.embedding.transpose("dim", "lat", "lon")
    assert np.array_equal(values.filled(np.nan), expected, equal_nan=True)
    part = fields.sel(lat=slice(60, -30), lon=slice(200, 330))
    values, transform, *_ = bands(files["region, south up"], "pc")
    assert transform == (0.25, 0, 199.875 - 360, 0, -0.25, 60.125)  # the same place
    expected = part.pc.transpose("component", "lat", "lon")
    assert np.array_equal(values.filled(np.nan), expected, equal_nan=True)


@needs_netcdf_of_gdal
@pytest.mark.parametrize("kind", ["a variable each", "merged, a variable each", "int8"])
def test_gdal_reads_a_variable_each(files, fields, kind):
    for number in range(3):
        values, _, (scale,), (offset,) = bands(files[kind], f"pc_{number:02d}")
        found = (values * scale + offset).filled(np.nan)[0]
        expected = fields.pc.isel(component=number, lat=slice(len(found)))
        assert np.array_equal(np.isnan(found), np.isnan(expected))
        bound = scale / 2 * 1.001 if kind == "int8" else 0
        assert np.nanmax(np.abs(found - expected)) <= bound


def test_int8_is_decoded_by_xarray_alone(files, fields):
    with xr.open_dataset(files["int8"], engine="netcdf4") as plain, opened(files["int8"]) as ours:
        for number in range(3):
            found = plain[f"pc_{number:02d}"]
            assert found.dtype == np.float32
            assert found.attrs["long_name"].endswith(f"pc_{number:02d}")
            assert same(found, ours.pc.isel(component=number))
            span = np.ptp(fields.pc.values[..., number][np.isfinite(fields.pc.values[..., number])])
            error = np.abs(found - fields.pc.isel(component=number)).max()
            assert 0 < error <= span / 254 / 2 * 1.001
        raw = xr.open_dataset(files["int8"], mask_and_scale=False)
        assert raw.pc_00.dtype == np.int8
        raw.close()
    with pytest.raises(OptionError, match="one scale per variable and int8 needs one per"):
        to_netcdf(fields, files["int8"], dtype="int8", layout="first", overwrite=True)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_comes_back(world, fields, merged, tmp_path, layout):
    for number, ds in enumerate((world, fields, merged)):
        to_netcdf(ds, path := tmp_path / f"{number}.nc", layout=layout)
        with opened(path) as again:
            name = "pc" if "pc" in ds else "embedding"
            assert again[name].dims == ds[name].dims
            assert same(again[name], ds[name])
            assert again[name].attrs["long_name"] == ds[name].attrs["long_name"]
            assert set(again.variables) == set(ds.variables)
            # lazily, in any part
            part = {again[name].dims[0]: [3, 200, 5], again[name].dims[1]: slice(None, 40, 7)}
            assert same(again[name].isel(part), ds[name].isel(part))
            assert same(again[name][3, [0, 5], 1], ds[name][3, [0, 5], 1])
            assert same(again[name][..., [2, 0]], ds[name][..., [2, 0]])
            assert same(again[name].chunk()[5:9], ds[name][5:9])
    with pytest.raises(OptionError, match="layout='south'; expected first or separate or last"):
        to_netcdf(fields, tmp_path / "a.nc", layout="south")
    assert not (tmp_path / "a.nc").exists()


def test_leading_dimensions_in_every_layout(seasons, tmp_path):
    for layout in LAYOUTS:
        to_netcdf(seasons, path := tmp_path / f"{layout}.nc", layout=layout)
        with opened(path) as again:
            assert again.embedding.dims == ("season", "lat", "lon", "dim")
            assert same(again.embedding, seasons.embedding)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        (pd.MultiIndex.from_product([[2020], ["a", "b"]], names=["y", "s"]), r"reset_index\('g'\)"),
        (pd.period_range("2020", periods=2, freq="M"), r"are period\[M\].*astype\(str\)"),
        (pd.CategoricalIndex(["a", "b"]), "are category.*astype"),
    ],
)
def test_labels_that_pandas_alone_knows_are_refused(fields, tmp_path, index, message):
    # xarray's and NumPy's own errors came through.
    part = fields.isel(lat=slice(4), lon=slice(4)).drop_vars("crs", errors="ignore")
    both = part.assign(pc=part.pc.expand_dims(g=2))
    labels = {"g": index}
    if index.nlevels > 1:
        labels = xr.Coordinates.from_pandas_multiindex(index, "g")
    both = both.assign_coords(labels)
    for write in (to_netcdf, to_zarr):
        with pytest.raises(CubeError, match=message):
            write(both, tmp_path / "x")
    if index.nlevels == 1:
        export(both.assign_coords(g=both.g.values.astype(str)), tmp_path / "x.nc")


@pytest.mark.parametrize("layout", ["first", "separate"])
def test_what_was_opened_without_decoding_is_written(fields, tmp_path, layout):
    # netCDF's own error came of an attribute _FillValue.
    to_zarr(fields.isel(lat=slice(9), lon=slice(9)), tmp_path / "x.zarr")
    raw = xr.open_zarr(tmp_path / "x.zarr", mask_and_scale=False, chunks=None)
    assert "_FillValue" in raw.pc.attrs
    export(raw, tmp_path / "x.nc", layout=layout)
    found = xr.open_dataset(tmp_path / "x.nc", engine="copembed").pc.values
    np.testing.assert_array_equal(found, raw.pc.values)


def test_components_that_are_a_variable_each_are_named_with_the_remedy(fields, tmp_path):
    to_netcdf(fields.isel(lat=slice(9), lon=slice(9)), tmp_path / "a.nc", layout="separate")
    with (
        xr.open_dataset(tmp_path / "a.nc") as plain,
        pytest.raises(CubeError, match=r"pc_00.*one variable per component by .*engine='copembed'"),
    ):
        plain.copembed.fit(k=1)


def test_a_selection_keeps_its_numbers(fields, tmp_path):
    some = fields.isel(component=[2, 0])
    to_netcdf(some, tmp_path / "a.nc", layout="separate")
    with netCDF4.Dataset(tmp_path / "a.nc") as file:
        assert [name for name in file.variables if name.startswith("pc_")] == ["pc_02", "pc_00"]
    with opened(tmp_path / "a.nc") as again:
        assert again.component.values.tolist() == [2, 0]
        assert same(again.pc, some.pc)
    to_geotiff(some, tmp_path / "a.tif")
    with rasterio.open(tmp_path / "a.tif") as file:
        assert file.descriptions == ("pc_02", "pc_00")


def test_coordinates_along_latitude_and_longitude_stay_coordinates(tmp_path):
    # xarray warned that it cannot say so, and they came back as variables.
    lat, lon = np.array([45.25, 45.0]), np.array([7.0, 7.25, 7.5])
    ds = xr.Dataset(
        {"embedding": (("lat", "lon", "dim"), np.ones((2, 3, 2), "f4"))},
        {
            "lat": lat,
            "lon": lon,
            "lat_bnds": (("lat", "bnds"), lat[:, None] + [0.125, -0.125]),
            "land": (("lat", "lon"), np.ones((2, 3))),
        },
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        to_netcdf(ds, tmp_path / "a.nc")
    for options in ({}, {"engine": "copembed"}):
        with xr.open_dataset(tmp_path / "a.nc", decode_coords="all", **options) as again:
            assert {"land", "lat_bnds"} <= {*again.coords}


def test_the_transform_of_a_region_is_not_that_of_the_globe(files):
    with netCDF4.Dataset(files["reduction"]) as file:
        assert file["crs"].GeoTransform == "-0.125 0.25 0.0 90.125 0.0 -0.25"
    with netCDF4.Dataset(files["region, south up"]) as file:
        assert "GeoTransform" not in file["crs"].ncattrs()


def test_compression_is_a_wish(fields, tmp_path):
    for compress in (False, True):
        to_netcdf(fields, tmp_path / f"{compress}.nc", compress=compress)
        with netCDF4.Dataset(tmp_path / f"{compress}.nc") as file:
            assert file["pc"].filters()["zlib"] is compress
    assert (tmp_path / "True.nc").stat().st_size < (tmp_path / "False.nc").stat().st_size / 10


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_zarr_of_either_version_in_every_layout(merged, tmp_path, zarr_format, layout):
    to_zarr(merged, path := tmp_path / "a.zarr", layout=layout, zarr_format=zarr_format)
    assert (path / ("zarr.json" if zarr_format == 3 else ".zmetadata")).is_file()
    again = xr.open_zarr(path)
    match layout:
        case "separate":
            assert "pc" not in again
            assert again.pc_01.dims == ("latitude", "longitude")
            assert same(again.pc_01, merged.pc.isel(component=1))
        case "first":
            assert again.pc.dims == ("component", "latitude", "longitude")
            assert same(again.pc, merged.pc.transpose("component", ...))
        case "last":
            assert same(again.pc, merged.pc)
            again.copembed.to_npz(tmp_path / "a.npz")
    assert set(again.coords) == set(merged.coords)
    assert again.z.attrs["grid_mapping"] == again.embedding_mask.attrs["grid_mapping"] == "crs"
    assert again.latitude.attrs["units"] == "degrees_north"
    # and is replaced by another one
    with pytest.raises(WriteError, match="exists already"):
        to_zarr(merged, path)
    to_zarr(merged[["z"]], path, overwrite=True)
    assert set(xr.open_zarr(path)) == {"z"}


@pytest.mark.parametrize("room", [1, 20_000, 1 << 25])
def test_chunks_in_zarr_do_not_depend_on_how_many_are_written_at_once(tmp_path, monkeypatch, room):
    monkeypatch.setattr("copcube.interchange.pieces._BYTES", room)
    values = np.arange(300 * 200, dtype=np.float32).reshape(300, 200)
    given = xr.Dataset({"z": (("y", "x"), values)}).chunk(y=(45, 90, 90, 75), x=45)
    to_zarr(given, path := tmp_path / "a.zarr")
    again = xr.open_zarr(path)
    assert again.z.encoding["chunks"] == (90, 45)
    assert np.array_equal(again.z, values)


def test_versions_of_zarr_are_two(fields, tmp_path):
    with pytest.raises(OptionError, match="zarr_format=4; expected 2 or 3"):
        to_zarr(fields, tmp_path / "a.zarr", zarr_format=4)


def test_numbers_and_data_types_of_numpy_are_written_as_python_s(fields, tmp_path):
    """A float 3.0 stood in zarr.json, and counts of an int8 file wrapped."""
    part = fields.sel(lat=slice(60, 50))
    for name, version in {"plain": 3, "numpy": np.int64(3), "array": np.array(3)}.items():
        to_zarr(part, tmp_path / name, zarr_format=version)
    texts = {(tmp_path / name / "zarr.json").read_text() for name in ("plain", "numpy", "array")}
    assert len(texts) == 1
    with pytest.raises(OptionError, match=r"zarr_format=3\.0; expected 2 or 3"):
        to_zarr(part, tmp_path / "float.zarr", zarr_format=3.0)
    for suffix in (".npz", ".pt"):
        done = export(part, tmp_path / f"numpy{suffix}", dtype=np.dtype("float16"))
        assert type(done.dtype) is str
        export(part, tmp_path / f"plain{suffix}", dtype="float16")
        assert len({(tmp_path / f"{n}{suffix}").read_bytes() for n in ("numpy", "plain")}) == 1


@pytest.mark.parametrize("rows", [721, np.int16(720)])
@pytest.mark.parametrize("layout", ["last", "first"])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_bare_array_is_what_weather_models_load(fields, tmp_path, rows, layout, dtype):
    for overwrite in (False, True):
        done = to_npy(
            fields, tmp_path / "a.npy", rows=rows, layout=layout, dtype=dtype, overwrite=overwrite
        )
    found = np.load(tmp_path / "a.npy", allow_pickle=False)
    expected = np.nan_to_num(fields.pc.values)[:rows].astype(dtype)
    assert same(found, expected if layout == "last" else np.moveaxis(expected, -1, 0))
    assert done.cells == int((expected != 0).any(-1).sum())


def test_a_bare_array_in_the_published_order(world, tmp_path):
    part = world.sel(lat=slice(60, -30)).sortby("lat")
    export(part, tmp_path / "a.npy", order="published")
    export(part, tmp_path / "a.npz")
    assert same(np.load(tmp_path / "a.npy"), np.load(tmp_path / "a.npz")["arr_0"])


def test_what_a_bare_array_cannot_be(fields, tmp_path):
    for options, message in (
        ({"rows": 700}, "rows=700; expected 721, or 720"),
        ({"rows": 721.0}, r"rows=721\.0; expected 721, or 720"),
        ({"dtype": np.array("float32")}, "npy holds float32 or float16"),
        ({"layout": "separate"}, "layout='separate'; expected last or first"),
        ({"dtype": "int8"}, "dtype='int8': npy holds float32 or float16"),
    ):
        with pytest.raises(OptionError, match=message):
            to_npy(fields, tmp_path / "a.npy", **options)
    assert list(tmp_path.iterdir()) == []


def test_codes_are_not_taken_for_values(fields, tmp_path, caplog):
    """An int8 npz has no array of the published name, a GeoTIFF of such a name is warned of."""
    to_npz(fields, tmp_path / "a.npz", dtype="int8")
    with np.load(tmp_path / "a.npz") as file:
        assert file.files == ["codes", "scale", "offset", "copcube"]
        values = file["codes"] * file["scale"] + file["offset"]
        filled = (file["codes"] != -128).any(-1)
    expected = np.roll(fields.pc.values, 720, axis=1)
    assert np.array_equal(filled, np.isfinite(expected).all(-1))
    assert np.abs(values - expected)[filled].max() < np.ptp(expected[filled]) / 254
    convertible = tmp_path / "b.npz"
    to_npz(pca.restore(fields), convertible, dtype="int8")
    assert cube.validate(convert(convertible, tmp_path / "b.zarr")) == []
    for name, dtype, warned in (
        ("embed_map_3.tif", "int8", True),
        ("embed_map_3.tif", "float32", False),
        ("fields.tif", "int8", False),
    ):
        caplog.clear()
        to_geotiff(fields, tmp_path / name, dtype=dtype, overwrite=True)
        assert ("would mistake int8 codes for values" in caplog.text) is warned
    with pytest.raises(OptionError, match="would mistake int8 codes for values"):
        to_geotiff(fields, tmp_path / "embed_map_9.tif", dtype="int8", compat="rs-embed")
