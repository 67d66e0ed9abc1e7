"""What functions return says nothing of the files it came from, and any writer takes it."""

import shutil
import sys
from datetime import date
from fractions import Fraction

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from copcube import era5, grid
from copcube.cube import open_cube, schema
from copcube.cube.results import as_result, plain_attributes
from copcube.pca import explain, fit

LAT, LON = np.arange(60, 39.75, -0.25), np.arange(0, 20, 0.25)
DIM = 5
STRUCTURES = {"zarr_conventions": [{"name": "geoemb:"}], "geoemb:chip_layout": {"a": [1, 1]}}
"""Attributes that netCDF cannot hold, as cubes of the first release have them."""


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    """A cube in Zarr 3 whose chunks disagree, and ERA5 in Zarr 2, packed and with filters."""
    folder = tmp_path_factory.mktemp("stores")
    rng = np.random.default_rng(0)
    shape = len(LAT), len(LON)
    axes = {
        "lat": ("lat", LAT, {"standard_name": "latitude", "bounds": "lat_bnds"}),
        "lon": ("lon", LON, {"standard_name": "longitude"}),
        "lat_bnds": (("lat", "bnds"), np.stack([LAT + 0.125, LAT - 0.125], -1)),
        "crs": ((), np.int32(0), {"grid_mapping_name": "latitude_longitude"}),
    }
    cube = xr.Dataset(
        {
            "embedding": (
                ("lat", "lon", "dim"),
                rng.normal(size=(*shape, DIM)).astype(np.float32),
                {"grid_mapping": "crs", "units": "1"},
            ),
            "n_images": (("lat", "lon"), np.ones(shape, np.int32), {"grid_mapping": "crs"}),
        },
        coords=axes,
        attrs={"encoder": "stub", "trained": True, "nothing": None, **STRUCTURES},
    )
    chunks = {"embedding": (45, 45, DIM), "n_images": (45, 80), "lat_bnds": (81, 2)}
    encoding = {name: {"chunks": sizes} for name, sizes in chunks.items()}
    cube.to_zarr(folder / "cube.zarr", zarr_format=3, encoding=encoding, consolidated=False)
    z = xr.DataArray(rng.normal(size=shape), {"latitude": LAT, "longitude": LON})
    onto = z.to_dataset(name="z").assign_attrs(notes={"of": ["a", "service"]}, valid=True)
    onto = onto.assign_coords(time=np.datetime64("2020-01-01", "ns"))
    packed = {"dtype": "int16", "scale_factor": 0.01, "add_offset": 0.0, "_FillValue": -9999}
    onto.to_zarr(
        folder / "era5.zarr",
        zarr_format=2,
        encoding={"z": {"chunks": (81, 80), **packed}},
        consolidated=False,
    )
    return folder


def opened(stores, name="cube.zarr", **options):
    return xr.open_zarr(stores / name, consolidated=False, **options)


RESULTS = {
    "fit": lambda cube, onto: fit(cube, 2),
    "reduce": lambda cube, onto: cube.copembed.reduce(2),
    "reduce a region": lambda cube, onto: cube.isel(lat=slice(7, 60)).copembed.reduce(2),
    "project": lambda cube, onto: cube.copembed.project(fit(cube, 2)),
    "restore": lambda cube, onto: cube.copembed.reduce(2).copembed.restore(),
    "merge": lambda cube, onto: cube.copembed.merge(onto, mask=True),
    "merge a reduction": lambda cube, onto: cube.copembed.reduce(2).copembed.merge(onto),
    "merge turned": lambda cube, onto: cube.copembed.merge(onto.sortby("latitude")),
    "compare": lambda cube, onto: cube.copembed.compare(cube).fields,
    "explain": lambda cube, onto: explain(cube.copembed.reduce(2), onto[["z"]], block=2.0),
    "at": lambda cube, onto: cube.copembed.at(50, 10),
    "at many": lambda cube, onto: cube.copembed.at([50, 45, 59], [10, 11, 0]),
    "points": lambda cube, onto: cube.copembed.points(([50, 45, 0], [10, 11, 0])),
    "box": lambda cube, onto: cube.copembed.box(0, 45, 10, 60),
    "cells of a box": lambda cube, onto: cube.copembed.box(0, 45, 10, 60, pooling=None),
    "similar": lambda cube, onto: cube.copembed.similar(50, 10, n=3),
    "cluster": lambda cube, onto: cube.copembed.cluster(2),
    "filled": lambda cube, onto: cube.copembed.filled().to_dataset(),
}


def test_only_the_whole_globe_begins_at_its_corner():
    """GDAL and rioxarray lay a raster where ``GeoTransform`` says, whatever the coordinates."""
    crs = schema.variables(1, None, ())["crs"]
    x = np.ones((721, 1440, 1), np.float32)
    axes = {"lat": grid.latitudes(), "lon": grid.longitudes(), "crs": ((), crs.values, crs.attrs)}
    world = xr.Dataset({"embedding": (("lat", "lon", "dim"), x)}, axes)
    assert as_result(world).crs.GeoTransform == crs.attrs["GeoTransform"]
    part = world.isel(lat=slice(5, 9))
    for result in (as_result(part), world.copembed.at(5, 5), world.copembed.box(0, 45, 10, 60)):
        assert "GeoTransform" not in result.crs.attrs
        assert result.crs.attrs["crs_wkt"]
    assert "GeoTransform" in part.crs.attrs  # that of the caller stays
    part.crs.attrs["GeoTransform"] = "0 1 0 0 0 -1"  # of somebody who knows what it says
    assert as_result(part).crs.GeoTransform == "0 1 0 0 0 -1"


PLAIN = ["reduce", "merge", "at many"]
"""Those that are tried without dask, too."""


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::zarr.errors.UnstableSpecificationWarning")  # of texts
@pytest.mark.parametrize(
    ("what", "lazy"), [*((what, True) for what in RESULTS), *((what, False) for what in PLAIN)]
)
def test_results_can_be_written_in_every_form_and_divided_by_chunks(stores, tmp_path, what, lazy):
    options = {} if lazy else {"chunks": None}
    with np.errstate(invalid="ignore"):
        cube, onto = opened(stores, **options), opened(stores, "era5.zarr", **options)
        result = RESULTS[what](cube, onto)
    assert {name: v.encoding for name, v in result.variables.items() if v.encoding} == {}
    assert result.encoding == {}
    sizes = {dim: sum(cuts) for dim, cuts in result.chunksizes.items()}
    assert sizes.items() <= dict(result.sizes).items()
    values = result.compute()
    for form in (2, 3):
        result.to_zarr(tmp_path / f"{form}.zarr", zarr_format=form, consolidated=False)
        again = xr.open_zarr(tmp_path / f"{form}.zarr", consolidated=False)
        xr.testing.assert_equal(again.compute(), values)
    result.to_netcdf(tmp_path / "a.nc")
    with xr.open_dataset(tmp_path / "a.nc") as again:
        xr.testing.assert_equal(again.compute(), values)
    # What is written beside ERA5 does not change ERA5.
    if "merge" in what and what != "merge turned":
        shutil.copytree(stores / "era5.zarr", beside := tmp_path / "era5.zarr")
        result.drop_vars("z").to_zarr(beside, mode="a", zarr_format=2, consolidated=False)
        xr.testing.assert_equal(opened(tmp_path, "era5.zarr").compute(), values)


@pytest.mark.slow
def test_parts_of_a_cube_go_to_netcdf_by_xarray_alone(tmp_path):
    """As `copcube.cube.create` writes cubes."""
    from copcube import cube

    cube.create(tmp_path / "a.zarr", dim=2)
    cube.finish(tmp_path / "a.zarr")
    ds = xr.open_zarr(tmp_path / "a.zarr")
    assert {type(value) for value in ds.attrs.values()} <= {str, int}
    assert ds.chunksizes["lat"] == (*16 * [45], 1)
    ds.sel(lat=slice(50, 48), lon=slice(5, 7)).to_netcdf(tmp_path / "a.nc")
    with xr.open_dataset(tmp_path / "a.nc") as again:
        assert again.sizes["lat"] == 9
    part = ds.isel(lat=slice(180), lon=slice(180))  # dask takes seconds for all chunks
    counted = part.map_blocks(lambda block: block.n_images, template=part.n_images)
    assert int(counted.sum()) == 0
    assert open_cube(tmp_path / "a.zarr").n_images.encoding == {}


@pytest.mark.parametrize(("limit", "leads"), [(1 << 27, "z"), (1, "embedding")])
def test_fields_follow_the_chunks_of_era5_unless_they_would_be_too_large(
    stores, monkeypatch, limit, leads
):
    monkeypatch.setattr(sys.modules["copcube.era5.merge"], "_CHUNK", limit)
    onto = opened(stores, "era5.zarr")
    years = onto.z.expand_dims(hour=3).chunk(hour=1).to_dataset(name="z")
    both = opened(stores).copembed.merge(years)
    expected = ((81,), (80,)) if leads == "z" else ((45, 36), (45, 35))
    assert both.embedding.chunks == (*expected, (DIM,))
    assert both.z.chunks == ((1, 1, 1), *expected)
    assert both.n_images.chunks == expected


def test_what_cf_names_by_attributes_stays(stores):
    """xarray moves these to the encoding if it is asked to decode all coordinates."""
    cube = opened(stores, decode_coords="all")
    assert cube.embedding.encoding["grid_mapping"] == "crs"
    assert as_result(cube).embedding.attrs["grid_mapping"] == "crs"
    assert as_result(cube).lat.attrs["bounds"] == "lat_bnds"
    assert era5.merge(cube, opened(stores, "era5.zarr")).n_images.attrs["grid_mapping"] == "crs"


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**31), 2**31 - 1) | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=60)
@given(VALUES.filter(lambda value: "\x00" not in str(value) and "\\x00" not in repr(value)))
def test_attributes_are_what_netcdf_holds(value):
    import netCDF4

    plain = plain_attributes({"a": value})["a"]
    with netCDF4.Dataset("memory.nc", "w", diskless=True) as file:
        file.setncattr("a", plain)
    if isinstance(value, str | int | float) and not isinstance(value, bool):
        assert plain is value


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (np.float16(1.5), 1.5),
        (np.array([1.5, 2], np.float16), [1.5, 2]),
        (np.longdouble(1.5), 1.5),
        (2**70, str(2**70)),
        ([2**70, 1], f"[{2**70}, 1]"),
        ((1, 2.5), [1, 2.5]),
        ([np.float32(1), 2], [1, 2]),
        ([Fraction(1, 2)], '["1/2"]'),
        (np.ones((2, 2)), "[[1.0, 1.0], [1.0, 1.0]]"),
        (np.array(["a", "b"]), '["a", "b"]'),
        ("é".encode(), "é"),
        (np.datetime64("2020-01-01T06", "ns"), "2020-01-01T06:00:00.000000000"),
        (np.array(["2020-01-01"], "datetime64[us]"), '["2020-01-01T00:00:00.000000"]'),
        (np.timedelta64(3, "D"), "3 days"),
        (date(2020, 1, 1), "2020-01-01"),
    ],
    ids=str,
)
def test_attributes_of_any_type_are_written(value, expected, tmp_path):
    ds = xr.Dataset(attrs=plain_attributes({"a": value}))
    ds.to_netcdf(tmp_path / "a.nc")
    ds.to_zarr(tmp_path / "a.zarr")
    for found in (xr.load_dataset(tmp_path / "a.nc"), xr.open_zarr(tmp_path / "a.zarr")):
        assert np.array_equal(found.attrs["a"], expected)
