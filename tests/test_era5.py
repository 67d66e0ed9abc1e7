import logging

import dask.array as da
import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from copcube import era5, grid, pca
from copcube.cube.caution import of_vectors
from copcube.cube.latlon import LatLon
from copcube.errors import CubeError, GridError, OptionError
from copcube.grid import lattice_index

LAT, LON = grid.latitudes(), grid.longitudes()


def places(rows=slice(None), cols=slice(None), name="pc") -> xr.Dataset:
    """Fields whose vectors are the cell's own latitude and longitude, so that a cell that
    went elsewhere shows."""
    lat, lon = LAT[rows], LON[cols]
    dim = {"pc": "component", "embedding": "dim"}[name]
    vectors = np.stack(np.meshgrid(lat, lon, indexing="ij"), axis=-1).astype(np.float32)
    return xr.Dataset(
        {
            name: (("lat", "lon", dim), vectors, {"long_name": "a field", "units": "1"}),
            "n_images": (("lat", "lon"), np.full(vectors.shape[:2], 3, np.int32)),
        },
        coords={
            "lat": ("lat", lat, {"standard_name": "latitude"}),
            "lon": ("lon", lon, {"standard_name": "longitude"}),
            dim: np.arange(2, dtype=np.int16),
            "crs": ((), np.int32(0), {"grid_mapping_name": "x", "GeoTransform": "0 1 0"}),
        },
        attrs={"encoder": "stub", "title": "fields", "Conventions": "CF-1.11"},
    )


@pytest.fixture(scope="module")
def world() -> xr.Dataset:
    return places()


def dataset(lat, lon, dims=("latitude", "longitude"), **coords) -> xr.Dataset:
    """A dataset like ERA5's statics on some coordinates."""
    sizes = {"latitude": len(lat), "longitude": len(lon)}
    shape = tuple(sizes[d] for d in dims)
    rng = np.random.default_rng(0)
    return xr.Dataset(
        {
            "z": (dims, rng.normal(size=shape).astype(np.float32), {"units": "m2 s-2"}),
            "slt": (dims, rng.integers(0, 8, shape).astype(np.float32), {"long_name": "Soil type"}),
        },
        coords={
            "latitude": ("latitude", lat, {"units": "degrees_north"}),
            "longitude": ("longitude", lon, {"units": "degrees_east"}),
            **coords,
        },
        attrs={"institution": "ECMWF", "history": "made by hand"},
    )


def assert_in_place(merged, lat="latitude", lon="longitude", name="pc"):
    """Every vector is the latitude and longitude of the place where it lies."""
    field = merged[name].transpose(lat, lon, ...)
    assert np.allclose(field[..., 0], merged[lat].values[:, None], atol=1e-3)
    east = (field[..., 1].values - merged[lon].values + 180) % 360 - 180
    assert np.abs(east).max() < 1e-3


# ------------------------------------------------------------------------------ the lattice


GREENWICH = np.r_[350:360:0.25, 0:10.25:0.25]
DATE_LINE = np.r_[170:180:0.25, -180:-169.75:0.25]
COORDINATES = {
    "ERA5's own": (LAT, LON),
    "first 720 rows": (LAT[:720], LON),
    "ascending latitudes": (LAT[::-1], LON),
    "-180 to 180": (LAT, np.arange(-180, 180, 0.25)),
    "float32": (LAT.astype(np.float32), LON.astype(np.float32)),
    "float32 with rounding errors": (
        np.linspace(90, -90, 721, dtype=np.float32) + np.float32(3e-5),
        LON.astype(np.float32) - np.float32(3e-5),
    ),
    "region": (LAT[100:200], LON[300:500]),
    "Europe, below 0": (LAT[80:220], np.arange(-15, 40, 0.25)),
    "across Greenwich, 0 to 360": (LAT[80:220], GREENWICH),
    "across Greenwich, sorted": (LAT[80:220], np.sort(GREENWICH)),
    "across the date line": (LAT[80:220], DATE_LINE),
    "across the date line, above 180": (LAT[80:220], np.arange(170, 190.25, 0.25)),
    "across the date line, sorted": (LAT[80:220], np.sort(DATE_LINE)),
    "the meridian twice": (LAT, np.r_[LON, 360.0]),
    "both 180": (LAT, np.arange(-180, 180.25, 0.25)),
    "one cell": (LAT[5:6], LON[7:8]),
    "one row": (LAT[5:6], LON),
    "descending longitudes": (LAT, LON[::-1]),
}


TURNED = ("ERA5's own", "across Greenwich, sorted", "the meridian twice", "one cell", "one row")


@pytest.mark.parametrize(
    ("case", "transposed"),
    [*((case, False) for case in COORDINATES), *((case, True) for case in TURNED)],
)
def test_every_vector_lies_where_it_belongs_on_any_coordinates(world, case, transposed):
    lat, lon = COORDINATES[case]
    dims = ("longitude", "latitude") if transposed else ("latitude", "longitude")
    target = dataset(lat, lon, dims)
    merged = era5.merge(world, target)
    assert merged.pc.dims == (*dims, "component")
    assert merged.pc.dtype == np.float32
    assert merged.n_images.dims == dims
    assert merged.n_images.dtype == np.int32
    assert bool((merged.n_images == 3).all())
    for name in ("latitude", "longitude"):
        assert merged[name].variable.identical(target[name].variable)
        assert merged[name].dtype == target[name].dtype
    assert_in_place(merged)


@st.composite
def windows(draw):
    """A window of the lattice, wrapping or not, in any order and turn."""
    row, col = draw(st.integers(0, 718)), draw(st.integers(0, 1439))
    height, width = draw(st.integers(2, 40)), draw(st.integers(2, 40))
    lat = LAT[row : row + height][:: draw(st.sampled_from((1, -1)))]
    lon = (col + np.arange(width)) * 0.25 + draw(st.sampled_from((-360, 0, 360)))
    if draw(st.booleans()):
        lon = (lon + 180) % 360 - 180
    if draw(st.booleans()):
        lon = np.sort(lon)
    dtype = draw(st.sampled_from((np.float32, np.float64)))
    return lat.astype(dtype), lon.astype(dtype)


@pytest.mark.slow
@settings(max_examples=30)
@given(windows(), windows())
def test_regional_fields_fill_exactly_what_they_share_with_a_region(source, target):
    lat, lon = source
    row, col = lattice_index(lat, lon)
    fields = places(np.sort(row), col).isel(lat=np.argsort(np.argsort(row)))
    fields = fields.assign_coords(lat=lat, lon=lon)
    shared_lat = np.isin(target[0], lat)
    shared_lon = np.isin(target[1] % 360, lon % 360)
    onto = dataset(*target)
    if not (shared_lat.any() and shared_lon.any()):
        with pytest.raises(CubeError, match="no place in common"):
            era5.merge(fields, onto)
        return
    merged = era5.merge(fields, onto, mask=True)
    filled = shared_lat[:, None] & shared_lon
    assert np.array_equal(merged.pc.notnull().all("component"), filled)
    assert np.array_equal(merged.n_images, np.where(filled, 3, 0))
    assert np.array_equal(merged.embedding_mask, filled.astype(np.float32))
    assert_in_place(merged.isel(latitude=shared_lat, longitude=shared_lon))


@pytest.mark.parametrize("names", [("lat", "lon"), ("y", "x"), ("Latitude", "Longitude")])
def test_names_of_the_dataset_are_kept(world, names):
    target = dataset(LAT[10:30], LON[10:40])
    target.latitude.attrs["standard_name"] = "latitude"
    target.longitude.attrs["standard_name"] = "longitude"
    target = target.rename(latitude=names[0], longitude=names[1])
    merged = era5.merge(world, target)
    assert merged.pc.dims == (*names, "component")
    assert_in_place(merged, *names)
    assert set(merged.dims) == {*names, "component"}


def test_fields_may_be_renamed_turned_and_reversed(world):
    fields = world.rename(lat="latitude", lon="longitude")
    fields = fields.assign_coords(longitude=(fields.longitude + 180) % 360 - 180)
    fields = fields.sortby("longitude").sortby("latitude").transpose("component", ...)
    merged = era5.merge(fields, dataset(LAT, LON))
    assert merged.pc.dims == ("component", "latitude", "longitude")
    assert_in_place(merged.transpose(..., "component"))


def test_a_cube_merges_like_a_reduction():
    merged = era5.merge(places(slice(0, 9), slice(0, 9), "embedding"), dataset(LAT[:9], LON[:9]))
    assert_in_place(merged, name="embedding")


@pytest.mark.parametrize("onto", [dataset(LAT[:40], LON[:40]), dataset(LAT[:40:4], LON[:40:4])])
def test_a_leading_dimension_stays_in_front(onto):
    fields = places(slice(0, 40), slice(0, 40))
    seasons = xr.concat(
        [fields, fields + 1], "season", data_vars="all", coords="minimal", compat="override"
    )
    seasons = seasons.assign_coords(season=["DJF", "JJA"], lat=fields.lat, lon=fields.lon)
    seasons["n_images_by_modality"] = (
        ("season", "modality", "lat", "lon"),
        np.ones((2, 3, 40, 40), np.int32),
    )
    merged = era5.merge(seasons, onto, mask=True)
    assert merged.pc.dims == ("season", "latitude", "longitude", "component")
    assert merged.embedding_mask.dims == ("season", "latitude", "longitude")
    assert merged.n_images_by_modality.dims == ("season", "modality", "latitude", "longitude")
    assert list(merged.season) == ["DJF", "JJA"]
    alone = era5.merge(fields, onto)
    assert np.allclose(merged.pc.sel(season="DJF"), alone.pc)
    assert np.allclose(merged.pc.sel(season="JJA"), alone.pc + 1)


def test_a_grid_mapping_of_era5_wins_and_ours_says_nothing_of_an_extent(world):
    onto = dataset(LAT[:9], LON[:9])
    assert dict(era5.merge(world, onto).crs.attrs) == {"grid_mapping_name": "x"}
    onto = onto.assign_coords(crs=((), 7, {"grid_mapping_name": "y"}))
    assert era5.merge(world, onto).crs.variable.identical(onto.crs.variable)
    opened_otherwise = world.reset_coords("crs")
    assert "crs" in era5.merge(opened_otherwise, dataset(LAT[:9], LON[:9])).coords


# ------------------------------------------------------------------------------- real data


@pytest.fixture(scope="module")
def real(shared_data):
    with xr.open_dataset(shared_data / "era5_static_025.nc") as ds:
        return ds.load()


def fields_over_land(real) -> xr.Dataset:
    """Two components that follow the real orography, on land only, in a cube's own order."""
    rng = np.random.default_rng(1)
    height = real.z.values / 9.80665
    pc = np.stack([height + rng.normal(0, 500, height.shape), -height], axis=-1)
    pc[real.land_fraction.values < 0.5] = np.nan
    return xr.Dataset(
        {"pc": (("lat", "lon", "component"), pc.astype(np.float32))},
        coords={"lat": LAT, "lon": LON},
    )


def correlation(a, b):
    both = np.isfinite(a) & np.isfinite(b)
    return np.corrcoef(a[both].astype(float), b[both].astype(float))[0, 1]


@pytest.mark.parametrize(
    "arrange",
    [
        lambda ds: ds,
        lambda ds: ds.isel(latitude=slice(720)),
        lambda ds: ds.sortby("latitude"),
        lambda ds: ds.assign_coords(longitude=(ds.longitude + 180) % 360 - 180).sortby("longitude"),
        lambda ds: ds.transpose("longitude", "latitude").astype(np.float64),
        lambda ds: ds.assign_coords(
            latitude=ds.latitude.astype("f4"), longitude=ds.longitude.astype("f4")
        ),
    ],
    ids=["its own order", "720 rows", "ascending", "-180 to 180", "transposed", "float32"],
)
def test_orography_correlates_as_on_the_cubes_own_grid(real, arrange):
    fields = fields_over_land(real)
    own = correlation(fields.pc.values[..., 0], real.z.values)
    merged = era5.merge(fields, arrange(real))
    pc, z = (merged[name].transpose("latitude", "longitude", ...) for name in ("pc", "z"))
    assert 0.5 < own < 0.999
    if merged.sizes["latitude"] == 720:
        own = correlation(fields.pc.values[:720, :, 0], real.z.values[:720])
    assert correlation(pc.values[..., 0], z.values) == pytest.approx(own, abs=1e-12)
    exact = -z.values / np.float64(9.80665)
    on_land = np.isfinite(pc.values[..., 1])
    assert np.allclose(pc.values[..., 1][on_land], exact[on_land], rtol=1e-6)
    himalaya = dict(latitude=28.0, longitude=86.75)
    assert float(z.sel(himalaya)) > 45_000  # the cell of Mount Everest, 5 km on average
    there = fields.pc.sel(lat=28.0, lon=86.75).values
    assert np.array_equal(pc.sel(himalaya).values, there)
    assert float(pc.sel(himalaya)[1]) < -4_500


def test_averaged_fields_say_that_they_are_averaged():
    spread = xr.Dataset(
        {
            "pc": (("lat", "lon", "component"), np.ones((40, 40, 1), "f4")),
            "spread": (("lat", "lon"), np.ones((40, 40), "f4")),
            "n_images": (("lat", "lon"), np.ones((40, 40), "i4"), {"cell_methods": "area: sum"}),
        },
        {"lat": LAT[:40], "lon": LON[:40]},
    )
    spread.spread.attrs["cell_methods"] = "area: standard_deviation"
    coarse = era5.merge(spread, dataset(np.arange(90, 82, -1.0), np.arange(0, 8, 1.0)))
    assert coarse.spread.cell_methods == "area: standard_deviation area: mean"
    assert coarse.n_images.cell_methods == "area: sum"
    fine = era5.merge(spread, dataset(LAT[:9], LON[:9]))
    assert fine.spread.cell_methods == "area: standard_deviation"


@pytest.mark.parametrize(
    ("step", "said"), [(1.0, "number of 0.25 degree cells"), (0.25, "1 where")]
)
def test_sums_of_ones_do_not_say_that_they_are_ones(step, said):
    """As of a published map that was converted, of which no images are counted."""
    ones = np.ones((40, 40), "i4"), {"long_name": "1 where there is a vector"}
    fields = xr.Dataset(
        {
            "pc": (("lat", "lon", "component"), np.ones((40, 40, 1), "f4")),
            "n_images": (("lat", "lon"), *ones),
        },
        {"lat": LAT[:40], "lon": LON[:40]},
        {"n_images_known": 0},
    )
    merged = era5.merge(fields, dataset(np.arange(90, 82, -step), np.arange(0, 8, step)))
    assert float(merged.n_images[3, 3]) == pytest.approx((step / 0.25) ** 2, rel=1e-3)
    assert merged.n_images.long_name.startswith(said)
    assert fields.n_images.long_name == "1 where there is a vector"


def test_orography_on_a_coarse_grid_is_that_of_the_real_field_averaged(real):
    fields = xr.Dataset(
        {"pc": (("lat", "lon", "component"), real.z.values[..., None])},
        coords={"lat": LAT, "lon": LON},
    )
    coarse = dataset(np.linspace(-90, 90, 121), np.arange(0, 360, 1.5), ("longitude", "latitude"))
    merged = era5.merge(fields, coarse)
    # 1.5° cells end in the middle of 0.25° cells: half of seven columns, whole of five.
    weight = np.r_[0.5, np.ones(5), 0.5]
    row, col = lattice_index(30.0, 87.0)
    z = real.z.values[row - 3 : row + 4, col - 3 : col + 4].astype(float)
    lat = LAT[row - 3 : row + 4]
    edges = np.clip(np.stack([lat - 0.125, lat + 0.125]), 29.25, 30.75)
    area = np.diff(np.sin(np.radians(edges)), axis=0)[0][:, None] * weight
    expected = (z * area).sum() / area.sum()
    assert float(merged.pc.sel(latitude=30, longitude=87)[0]) == pytest.approx(expected, rel=1e-6)


# --------------------------------------------------------------------------- coarser grids


def subcells(rows, cols, parts):
    """Latitude, longitude and area of equal parts of cells, far finer than any edge here."""
    edges = (np.arange(parts) + 0.5) / parts * 0.25 - 0.125
    lat = (LAT[rows][:, None] - edges).ravel()
    lon = (LON[cols][:, None] + edges).ravel()
    half = 0.125 / parts
    sines = np.sin(np.radians(np.clip(lat + half, -90, 90)))
    sines -= np.sin(np.radians(np.clip(lat - half, -90, 90)))
    sines[np.abs(lat) > 90] = 0
    return lat, lon, sines * np.radians(0.25 / parts)


def average_by_counting(values, rows, cols, lat, lon, step, parts=16):
    """Means over coarse cells, and the area that they rest on: each part of a cell goes to
    the coarse cell whose centre is nearest. Every edge here is one of such a part."""
    y, x, area = subcells(rows, cols, parts)
    i = np.abs(y[:, None] - lat).argmin(1)
    i = np.where(np.abs(y - lat[i]) < step / 2, i, -1)
    away = np.abs((x[:, None] - lon + 180) % 360 - 180)
    j = np.where(away.min(1) < step / 2, away.argmin(1), -1)
    fine = np.repeat(np.repeat(values, parts, 0), parts, 1)
    inside = (i >= 0)[:, None] & (j >= 0) & np.isfinite(fine).all(-1)
    total, weight = np.zeros((len(lat), len(lon), fine.shape[-1])), np.zeros((len(lat), len(lon)))
    where = np.nonzero(inside)
    at = i[where[0]], j[where[1]]
    np.add.at(weight, at, area[where[0]])
    np.add.at(total, at, fine[where] * area[where[0]][:, None])
    with np.errstate(invalid="ignore"):
        return total / weight[..., None], weight


COARSE = {
    "1.5° with poles": (np.linspace(-90, 90, 121), np.arange(0, 360, 1.5), 1.5),
    "5.625° without poles": (
        np.arange(-87.1875, 90, 5.625),
        np.arange(0, 360, 5.625),
        5.625,
    ),
    "2.8125°": (np.arange(-88.59375, 90, 2.8125), np.arange(0, 360, 2.8125), 2.8125),
    "1° from 0.5": (np.arange(89.5, -90, -1), np.arange(-179.5, 180), 1.0),
    "1° with poles": (np.arange(90, -91, -1.0), np.arange(0.0, 360), 1.0),
    "two longitudes": (np.arange(90, -91, -180.0), np.array([0.0, 180]), 180.0),
    "0.5°": (np.arange(90, -90.5, -0.5), np.arange(0, 360, 0.5), 0.5),
    "1.40625° in float32": (
        np.linspace(-90 + 0.703125, 90 - 0.703125, 128, dtype=np.float32),
        np.linspace(0, 360 - 1.40625, 256, dtype=np.float32),
        1.40625,
    ),
}


@pytest.mark.parametrize("case", COARSE)
@pytest.mark.parametrize(
    ("row", "col"), [(0, 1430), (713, 715), (300, 5), (41, 1439)], ids=["N", "S", "mid", "wrap"]
)
def test_means_by_area_are_those_of_counting_tiny_parts(case, row, col):
    lat, lon, step = COARSE[case]
    rng = np.random.default_rng(row)
    rows, cols = np.arange(row, min(row + 24, 721)), (col + np.arange(30)) % 1440
    values = rng.normal(5, 2, (len(rows), len(cols), 2)).astype(np.float32)
    values[rng.random(values.shape[:2]) < 0.4] = np.nan
    values[3:6, 7:20, 1] = np.nan  # a vector that is not whole is missing
    fields = places(rows, cols).drop_vars("n_images")
    fields["pc"] = fields.pc.copy(data=values)
    merged = era5.merge(fields, dataset(lat, lon), mask=True)
    expected, area = average_by_counting(values, rows, cols, lat.astype(float), lon, step)
    assert np.array_equal(np.isnan(merged.pc), np.isnan(expected))
    assert np.allclose(merged.pc, expected, rtol=3e-6, atol=1e-5, equal_nan=True)
    assert np.allclose(merged.embedding_mask * areas_of(lat, lon, step), area, atol=1e-10)


def areas_of(lat, lon, step):
    north, south = np.clip(lat + step / 2, -90, 90), np.clip(lat - step / 2, -90, 90)
    sines = np.sin(np.radians(north.astype(float))) - np.sin(np.radians(south.astype(float)))
    return np.outer(sines, np.full(len(lon), np.radians(step)))


@pytest.mark.slow
@pytest.mark.parametrize(
    "case",
    [
        "1.5° with poles",
        "5.625° without poles",
        "1° from 0.5",
        "two longitudes",
        "1.40625° in float32",
    ],
)
def test_the_global_integral_is_conserved_and_a_constant_stays_one(world, case):
    lat, lon, step = COARSE[case]
    rng = np.random.default_rng(3)
    values = rng.normal(1, 1, (721, 1440, 2)).astype(np.float32)
    values[..., 1] = 7
    missing = rng.random((721, 1440)) < 0.7
    values[missing] = np.nan
    fields = world.assign(pc=world.pc.copy(data=values))
    fields["n_images"] = fields.n_images.where(~missing, 0).astype(np.int32)
    merged = era5.merge(fields, dataset(lat, lon), mask=True)
    area = areas_of(lat, lon, step)
    assert area.sum() == pytest.approx(4 * np.pi, rel=1e-6)
    integral = np.nansum(
        merged.pc.values.astype(float) * (merged.embedding_mask.values * area)[..., None], (0, 1)
    )
    exact = np.nansum(values.astype(float) * grid.areas()[:, None, None], (0, 1))
    assert integral == pytest.approx(exact, rel=1e-6)
    filled = np.isfinite(merged.pc[..., 1].values)
    assert np.abs(merged.pc.values[..., 1][filled] - 7).max() < 1e-5
    assert np.array_equal(filled, merged.embedding_mask.values > 0)
    assert float(merged.n_images.sum()) == pytest.approx(int(fields.n_images.sum()), rel=1e-9)
    whole = era5.merge(world, dataset(lat, lon), mask=True)
    assert np.abs(whole.embedding_mask.values - 1).max() < 1e-5


@pytest.mark.parametrize(
    "lon", [np.r_[350:360:1.0, 0:11], np.sort(np.r_[350:360:1.0, 0:11]), np.arange(-10.0, 11)]
)
def test_coarse_regions_across_greenwich_are_the_same_in_any_form(lon):
    fields = places()
    values = np.random.default_rng(0).normal(size=(721, 1440, 2)).astype(np.float32)
    fields["pc"] = fields.pc.copy(data=values)
    whole = era5.merge(fields, dataset(np.arange(90.0, -91, -1), np.arange(360.0)))
    part = era5.merge(fields, dataset(np.arange(60.0, 40, -1), lon))
    expected = whole.pc.sel(latitude=part.latitude.values, longitude=lon % 360)
    assert np.array_equal(part.pc, expected)


@pytest.mark.parametrize("chunks", [None, {"lat": 30}])
@pytest.mark.parametrize(
    "onto",
    [dataset(LAT[:90], LON[:90]), dataset(np.arange(90.0, 60, -1.5), np.arange(0, 24, 1.5))],
    ids=["lattice", "coarse"],
)
def test_counts_that_became_floats_by_masking_are_still_counts(onto, chunks):
    # Coarser cells had their mean, and cells without images what missing values are set to.
    fields = places(slice(90), slice(120))
    counted = fields.assign(n_images=fields.n_images.where(fields.lat < 75, 0))
    masked = fields.where(fields.lat < 75)
    masked = masked if chunks is None else masked.chunk(chunks)
    found = era5.merge(masked, onto, fill=-999.0).n_images
    xr.testing.assert_allclose(found, era5.merge(counted, onto).n_images)


def test_other_whole_numbers_than_counts_are_not_averaged(world):
    labelled = world.assign(cluster=world.n_images)
    coarse = dataset(*COARSE["1° with poles"][:2])
    with pytest.raises(CubeError, match=r"cluster holds int32 values.*drop_vars\('cluster'\)"):
        era5.merge(labelled, coarse)
    fine = era5.merge(labelled.isel(lat=slice(9)), dataset(LAT[:20], LON))
    assert int(fine.cluster[0, 0]) == 3
    assert bool(fine.cluster[10:].isnull().all())


# ----------------------------------------------------------------- what else stays or comes


def cds(lat=LAT[:9], lon=LON[:9], times=1) -> xr.Dataset:
    """As the Climate Data Store gives it since 2024."""
    time = np.datetime64("2020-01-01", "ns") + np.arange(times).astype("timedelta64[h]")
    ds = dataset(lat, lon).expand_dims(valid_time=time)
    ds = ds.assign_coords(number=((), 0), expver=("valid_time", np.full(times, "0001")))
    ds.encoding["unlimited_dims"] = {"valid_time"}
    return ds


def test_a_single_time_is_squeezed_and_the_result_can_be_written(world, tmp_path):
    path = tmp_path / "cds.nc"
    cds().to_netcdf(path)
    with xr.open_dataset(path) as ds:
        assert ds.z.dims == ("valid_time", "latitude", "longitude")
        merged = era5.merge(world, ds)
        assert merged.z.dims == ("latitude", "longitude")
        assert merged.pc.dims == ("latitude", "longitude", "component")
        assert merged.valid_time == np.datetime64("2020-01-01")
        assert {"number", "expver", "valid_time"} <= set(merged.coords) - set(merged.dims)
        merged.to_netcdf(tmp_path / "merged.nc")
    with xr.open_dataset(tmp_path / "merged.nc") as again:
        assert_in_place(again)
        assert np.array_equal(again.z, merged.z)


def test_versions_and_members_of_length_one_are_squeezed(world):
    ds = dataset(LAT[:9], LON[:9]).expand_dims(time=1, number=1, expver=["0005"])
    merged = era5.merge(world, ds)
    assert merged.z.dims == ("latitude", "longitude")
    assert str(merged.expver.values) == "0005"


def test_many_times_stay_and_fields_have_none(world):
    onto = cds(times=3)
    merged = era5.merge(world, onto)
    assert merged[list(onto)].drop_vars("crs").drop_attrs().identical(onto.drop_attrs())
    assert merged.pc.dims == ("latitude", "longitude", "component")


@pytest.mark.parametrize("coords", [COORDINATES["-180 to 180"], COARSE["1.5° with poles"][:2]])
def test_every_variable_of_era5_is_left_alone(world, coords):
    onto = dataset(*coords)
    onto["slt"] = onto.slt.astype(np.int8).assign_attrs(flag_values=list(range(8)))
    onto.slt.encoding = {"dtype": "int8", "_FillValue": -1}
    onto["levels"] = ("level", [1, 2, 3])
    onto["name"] = "a scalar"
    merged = era5.merge(world, onto, fill=0.0, mask=True)
    for name in onto.variables:
        # Coordinates of coarser cells say how large these are.
        merged[name].attrs.pop("cell_degrees", None)
        assert merged[name].variable.identical(onto[name].variable)
        assert merged[name].dtype == onto[name].dtype
        assert merged[name].encoding == {}  # which is true of the file it came from
    assert list(merged.data_vars) == [*onto.data_vars, "pc", "n_images", "embedding_mask"]


@pytest.mark.parametrize("case", ["ERA5's own", "-180 to 180", "1.5° with poles"])
def test_neither_dataset_is_changed_nor_shared(case):
    lat, lon = (COORDINATES | COARSE)[case][:2]
    fields, onto = places(), cds(lat, lon)
    fields.pc.encoding = {"chunks": (45, 45, 2), "grid_mapping": "crs"}
    before = fields.copy(deep=True), onto.copy(deep=True)
    merged = era5.merge(fields, onto, fill=1.0, mask=True)
    merged.pc.values[...] = -99
    merged.pc.attrs["mine"] = merged.attrs["mine"] = merged.crs.attrs["mine"] = 1
    assert fields.identical(before[0])
    assert onto.identical(before[1])
    assert onto.encoding["unlimited_dims"] == {"valid_time"}
    assert fields.pc.encoding["chunks"] == (45, 45, 2)
    assert merged.pc.encoding == {}
    assert merged.pc.attrs["grid_mapping"] == "crs"


def test_attributes_of_both_and_a_history(world):
    onto = dataset(LAT[:9], LON[:9])
    fields = world.assign_attrs(
        institution="ours", history="copcube build", copcube_schema=1, reduction_weights="area"
    )
    fields.attrs["geoemb:type"] = "chip"
    attrs = era5.merge(fields, onto, fill=-1.5).attrs
    assert attrs.pop("history").splitlines() == [
        "made by hand",
        "copcube 0.1.0 merge: n_images, pc by lattice index on a 9 × 9 grid of 0.25° × 0.25°, "
        "missing cells set to -1.5",
    ]
    assert attrs == {
        "institution": "ECMWF",
        "encoder": "stub",
        "reduction_weights": "area",
        "copcube_institution": "ours",
        "copcube_title": "fields",
        "copcube_history": "copcube build",
    }
    # Who takes the vectors out again takes what is said of them, and not of ERA5.
    alone = of_vectors(era5.merge(fields, onto).attrs)
    history = alone.pop("history").splitlines()
    assert (history[0], history[1][:19], len(history)) == (
        "copcube build",
        "copcube 0.1.0 merge",
        2,
    )
    told = {"institution": "ours", "title": "fields", "encoder": "stub"}
    assert alone == told | {"reduction_weights": "area"}
    assert of_vectors(fields.attrs) == fields.attrs
    coarse = era5.merge(fields.isel(lat=slice(90)), dataset(*COARSE["1° with poles"][:2]))
    assert "pc averaged by area on a 181 × 360 grid of 1° × 1°" in coarse.attrs["history"]
    assert coarse.pc.attrs == {"long_name": "a field", "units": "1", "cell_degrees": [1, 1]}


@pytest.mark.parametrize("onto", [dataset(LAT, LON), dataset(*COARSE["1.5° with poles"][:2])])
def test_missing_cells_are_nan_or_filled_and_the_mask_tells(onto):
    fields = places(slice(100, 200), slice(100, 200))
    fields.pc[10:30, 20:50] = np.nan
    fields.n_images[10:30, 20:50] = 0
    fields["spread"] = fields.pc[..., 0]
    plain = era5.merge(fields, onto)
    filled = era5.merge(fields, onto, fill=-5, mask=True)
    missing = plain.pc.isnull().all("component")
    assert bool((missing == plain.pc.isnull().any("component")).all())
    assert 0 < int(missing.sum()) < missing.size
    assert np.array_equal(filled.pc.where(~missing), plain.pc, equal_nan=True)
    assert bool((filled.pc.where(missing, -5) == -5).all())
    assert filled.pc.dtype == filled.spread.dtype == np.float32
    assert bool((filled.spread.where(missing, -5) == -5).all())
    assert np.array_equal(filled.embedding_mask == 0, missing)
    assert np.array_equal(filled.n_images == 0, missing)
    assert filled.embedding_mask.attrs["standard_name"] == "area_fraction"
    assert "embedding_mask" not in plain


@pytest.mark.parametrize("fill", ["zero", True, (1, 2)])
def test_a_fill_that_is_no_number(world, fill):
    with pytest.raises(OptionError, match="number, or None for NaN"):
        era5.merge(world, dataset(LAT[:9], LON[:9]), fill=fill)


def test_a_fill_may_be_numpy_s(world):
    merged = era5.merge(places(slice(5)), dataset(LAT[:9], LON[:9]), fill=np.float32(-5))
    assert (merged.pc[5:] == -5).all()


@pytest.mark.parametrize("mask", [False, True])
@pytest.mark.parametrize(
    "onto",
    [dataset(LAT[:90], LON), dataset(*COARSE["1.5° with poles"][:2])],
    ids=["lattice", "coarse"],
)
def test_zeros_that_mean_missing_are_refused(onto, mask):
    fields = places(slice(90), name="embedding").drop_vars("n_images")
    fields.embedding[3] = 0
    with pytest.raises(CubeError, match=r"1440 cells hold vectors of zeros .*engine='copembed'"):
        era5.merge(fields, onto, mask=mask)
    lazy = era5.merge(fields.chunk(lat=45, dim=1), onto, mask=mask)
    with pytest.raises(CubeError, match=r"cells hold vectors of zeros .*engine='copembed'"):
        lazy.compute()
    fields.embedding[3, :, 0] = 1  # a zero here and there is a value
    assert era5.merge(fields.chunk(lat=45, dim=1), onto, mask=mask).compute().embedding.any()


@pytest.mark.parametrize(
    ("value", "name", "chunks"),
    [
        (0, "pc", None),
        (-9999, "pc", {"lat": 50}),
        (-9999, "embedding", None),
        (0, "embedding", {"lat": 50}),
    ],
)
@pytest.mark.parametrize(
    "onto",
    [dataset(LAT[:90], LON), dataset(*COARSE["1.5° with poles"][:2])],
    ids=["lattice", "coarse"],
)
def test_what_the_counts_call_missing_is_missing_whatever_its_vector(onto, chunks, name, value):
    fields = places(slice(90), name=name).transpose("component" if name == "pc" else "dim", ...)
    fields[name].encoding["grid_mapping"] = "crs"
    fields.n_images[10:30, 20:50] = 0
    expected = era5.merge(fields.where(fields.n_images > 0), onto)[name]
    assert 0 < int(expected.isnull().sum()) < expected.size
    fields[name] = fields[name].where(fields.n_images > 0, value)
    fields = fields if chunks is None else fields.chunk(chunks)
    found = era5.merge(fields, onto)[name]
    xr.testing.assert_equal(found, expected)
    assert found.dims == expected.dims == ("component" if name == "pc" else "dim", *onto.z.dims)
    assert found.attrs["long_name"] == "a field"


@pytest.mark.parametrize("other", ["era5_static.nc", dataset(LAT[:9], LON[:9]).z, None])
def test_what_is_no_dataset_is_refused(world, other):
    with pytest.raises(CubeError, match=r"expected the ERA5 fields as an xarray\.Dataset, found"):
        era5.merge(world, other)


# -------------------------------------------------------------------------------- laziness


def unreadable(fields, chunks):
    """The same fields as dask arrays that must not be computed."""

    def explode(block):
        raise AssertionError("computed")

    lazy = fields.chunk(chunks)
    for name in ("pc", "embedding"):
        if name in lazy:
            array = lazy[name].data.map_blocks(explode, dtype=np.float32, meta=np.empty(0, "f4"))
            lazy[name] = lazy[name].copy(data=array)
    return lazy


@pytest.mark.slow
@pytest.mark.parametrize("counts", [True, False])
@pytest.mark.parametrize(
    "onto",
    [
        dataset(LAT[:240], np.arange(-90, 90, 0.25)),
        dataset(np.arange(90.0, 30, -0.5), np.arange(-90.0, 90, 0.5)),
    ],
    ids=["lattice", "coarse"],
)
def test_lazy_fields_stay_lazy_and_come_out_the_same(world, onto, counts):
    fields = world.isel(lat=slice(240), lon=np.r_[1080:1440, 0:360])
    there = np.random.default_rng(0).random((240, 720)) < 0.3
    fields = fields.where(xr.DataArray(there, dims=("lat", "lon")))
    fields["n_images"] = fields.n_images.fillna(0).astype(np.int32)
    fields = fields if counts else fields.drop_vars("n_images")
    chunks = {"lat": 45, "lon": 180, "component": 1}
    merged = era5.merge(unreadable(fields, chunks), onto, fill=0.0, mask=True)
    assert isinstance(merged.pc.data, da.Array)
    assert np.prod([max(c) for c in merged.pc.chunks]) < merged.pc.size / 4
    expected = era5.merge(fields, onto, fill=0.0, mask=True)
    xr.testing.assert_identical(
        era5.merge(fields.chunk(chunks), onto, fill=0.0, mask=True).compute(), expected
    )


@pytest.mark.slow
def test_a_lazy_region_of_many_chunks_is_merged_without_a_warning(world):
    part, onto = world.isel(lat=slice(270)), dataset(LAT[:400], LON)
    merged = era5.merge(part.chunk(lat=45, lon=45), onto)
    xr.testing.assert_equal(merged.compute(), era5.merge(part, onto))


@pytest.mark.slow
@pytest.mark.parametrize("counts", [True, False])
@pytest.mark.parametrize("onto", [dataset(LAT[:9], LON[:9]), dataset(np.arange(90.0, 80, -1), LON)])
def test_each_dataset_is_viewed_and_checked_once(world, calls, onto, counts):
    fields = world.isel(lat=slice(45)).drop_vars([] if counts else ["n_images"])
    with calls("view.py", "latlon.py", "grid.py", "merge.py") as count:
        era5.merge(fields, onto, mask=True)
    assert count["CubeView.of"] == count["LatLon.of"] == 1
    assert count["spatial_dims"] == count["require_dataset"] == 2  # each dataset once
    assert count["CubeView.counts"] == count["CubeView._lattice"] == 1
    assert count["lattice_index"] == (2 if onto.sizes["latitude"] == 9 else 1)


def test_a_lazy_era5_stays_lazy(world):
    merged = era5.merge(world, dataset(LAT, LON).chunk(latitude=100))
    assert isinstance(merged.z.data, da.Array)
    assert merged.z.chunks[0][0] == 100


# ------------------------------------------------------------------------------- reductions


@pytest.fixture(scope="module")
def reduction():
    rng = np.random.default_rng(5)
    cube = places(slice(80, 140), slice(0, 60), "embedding").isel(dim=[0])
    vectors = rng.normal(size=(60, 60, 12)) @ rng.normal(size=(12, 12)) + 3
    vectors[rng.random((60, 60)) < 0.3] = np.nan
    cube = cube.drop_dims("dim").assign_coords(dim=np.arange(12, dtype=np.int16))
    cube["embedding"] = ("lat", "lon", "dim"), vectors.astype(np.float32)
    cube["n_images"] = cube.embedding.notnull().all("dim").astype(np.int32)
    return cube, pca.reduce(cube, k=4)


@pytest.mark.parametrize("transposed", [False, True])
def test_a_merged_reduction_is_restored_to_the_same_vectors(reduction, transposed):
    _, fields = reduction
    dims = ("longitude", "latitude") if transposed else ("latitude", "longitude")
    onto = dataset(LAT[80:140][::-1], LON[:60], dims)
    merged = era5.merge(fields, onto)
    again = pca.restore(merged).embedding.rename(latitude="lat", longitude="lon")
    expected = pca.restore(fields).embedding
    again = again.sortby("lat", ascending=False).transpose("lat", "lon", "dim")
    assert np.array_equal(again.values, expected.values, equal_nan=True)
    assert np.isfinite(expected).any()


def test_reduction_and_averaging_can_change_places(reduction):
    # Both are linear: the mean of the components is the component of the mean.
    cube, fields = reduction
    onto = dataset(np.arange(69, 56, -1.0), np.arange(0, 14.0))
    after = era5.merge(fields, onto)
    mean = era5.merge(cube, onto)
    basis, centre = fields.components.values, fields["mean"].values
    expected = (mean.embedding.values - centre) @ basis.T
    assert np.allclose(
        after.pc.transpose("latitude", "longitude", "component"),
        expected,
        atol=1e-4,
        equal_nan=True,
    )


# --------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda ds: ds.assign(mean=ds.z), r"both have mean.*rename\(\{'mean': 'era5_mean'\}\)"),
        (lambda ds: ds.assign(n_images=ds.z), "both have n_images"),
        (lambda ds: ds.assign(embedding_mask=ds.z), "both have embedding_mask"),
        (lambda ds: ds.assign_coords(component=("component", [5, 6])), "both have component"),
        (lambda ds: ds.expand_dims(component=7), "both have component"),
        (lambda ds: ds.rename(z="component"), "both have component"),
    ],
)
def test_names_in_both_are_refused(world, change, message):
    fields = world.assign(mean=("dim", [1.0, 2.0]))
    with pytest.raises(CubeError, match=message):
        era5.merge(fields, change(dataset(LAT[:9], LON[:9])), mask=True)


def test_the_same_coordinate_in_both_is_no_clash(world):
    onto = dataset(LAT[:9], LON[:9]).assign_coords(component=world.component.values)
    assert_in_place(era5.merge(world, onto))


def test_merging_twice_is_refused(world):
    merged = era5.merge(world, dataset(LAT[:9], LON[:9]))
    with pytest.raises(CubeError, match=r"already has pc.*earlier merge.*drop_vars\(\['pc'"):
        era5.merge(world, merged)
    assert_in_place(era5.merge(world, merged.drop_vars(["pc", "n_images"])))
    second = era5.merge(world, merged.rename(pc="pc_2020", n_images="n_2020"))
    assert np.array_equal(second.pc, second.pc_2020)


def gaussian(n=32):
    return np.degrees(np.arcsin(np.polynomial.legendre.leggauss(2 * n)[0]))[::-1]


def curvilinear():
    lat, lon = np.meshgrid(LAT[:5], LON[:6], indexing="ij")
    return xr.Dataset(
        {"z": (("y", "x"), lat)},
        coords={"latitude": (("y", "x"), lat), "longitude": (("y", "x"), lon)},
    )


def reduced():
    return xr.Dataset(
        {"z": ("values", np.zeros(50))},
        coords={"latitude": ("values", np.zeros(50)), "longitude": ("values", np.arange(50.0))},
    )


OTHER_GRIDS = {
    "Gaussian": (dataset(gaussian(), np.arange(0, 360, 2.8125)), "spaced by 2.76.*Gaussian"),
    "F320": (dataset(gaussian(320), np.arange(1280) * 0.28125), "Gaussian or irregular"),
    "reduced Gaussian": (reduced(), r"both run along 'values' \(50 points\).*reduced Gaussian"),
    "curvilinear": (curvilinear(), "functions of 'y' and 'x'.*curvilinear"),
    "finer": (dataset(np.arange(60, 50, -0.1), LON[:9]), "spaced by 0.1°.*not finer"),
    "finer longitudes": (dataset(LAT[:9], np.arange(0, 20, 0.125)), "longitude is spaced by 0.125"),
    "between nodes": (dataset(np.arange(89.875, -90, -0.25), LON + 0.125), "between the nodes"),
    "longitudes between": (dataset(LAT, LON + 0.125), "longitude lies between the nodes"),
    "irregular": (dataset([10.0, 11, 14], LON[:9]), "spaced by 1° to 3°.*irregular"),
    "stations": (dataset([10.0, 11], [3.0, 7, 8, 30]), "longitude is spaced by 1° to"),
    "NaN": (dataset([10.0, np.nan], LON[:9]), "not all of them finite"),
    "empty": (dataset([], LON[:9]), "latitude has no values: the selection is empty"),
    "no degrees": (dataset(np.arange(0, 1e6, 1e5), LON[:9]), "reaches 900000; expected degrees"),
    "own names": (
        xr.Dataset(
            {"z": (("y", "x"), np.zeros((3, 4)))},
            coords={"lat": ("y", LAT[:3]), "lon": ("x", LON[:4])},
        ),
        r"swap_dims\(\{'y': 'latitude', 'x': 'longitude'\}\)",
    ),
    "none": (xr.Dataset({"z": ("x", [1])}), "expected one dimension of latitude"),
}


@pytest.mark.parametrize("case", OTHER_GRIDS)
def test_other_grids_are_named_and_refused(world, case):
    onto, message = OTHER_GRIDS[case]
    with pytest.raises((GridError, CubeError), match=message):
        era5.merge(world, onto)


def test_fields_that_are_none_or_off_the_lattice_are_refused(world):
    world, onto = world.isel(lat=slice(90), lon=slice(90)), dataset(LAT[:9], LON[:9])
    with pytest.raises(CubeError, match="variable embedding, or its reduction with pc"):
        era5.merge(onto, onto)
    with pytest.raises(GridError, match=r"not a node of the 0\.25° lattice"):
        era5.merge(world.assign_coords(lat=world.lat - 0.1), onto)
    with pytest.raises(GridError, match="latitude 95"):
        era5.merge(world.assign_coords(lat=world.lat + 5), onto)
    for size in (2, 3):  # each third node is a node
        with pytest.raises(GridError, match=r"not a node|not known"):
            era5.merge(world.coarsen(lat=size, lon=size, boundary="trim").mean(), onto)


@pytest.mark.parametrize(
    "onto", [dataset(LAT[400:], LON), dataset(np.arange(-80, -60.0), np.arange(9.0))]
)
def test_nothing_in_common_is_an_error(onto):
    with pytest.raises(CubeError, match=r"no place in common: fields has latitudes 89\.5…90"):
        era5.merge(places(slice(3)), onto)


def test_a_field_along_one_axis_is_left_out_and_said(world, caplog):
    with caplog.at_level(logging.WARNING, logger="copcube"):
        merged = era5.merge(world.assign(zonal=world.pc[:, 0, 0]), dataset(LAT[:9], LON[:9]))
    assert "zonal" not in merged
    assert "left out" in caplog.text
    assert "zonal" in caplog.text


@given(st.integers(0, 720), st.integers(0, 1439), st.integers(-2, 2), st.floats(-9e-4, 9e-4))
def test_a_node_is_found_in_any_turn(row, col, turn, off):
    found = lattice_index([LAT[row] + off * (0 < row < 720)], [LON[col] + 360 * turn + off])
    assert tuple(int(i[0]) for i in found) == (row, col)


def test_spacing_of_grids_is_told():
    grid_of = LatLon.of(dataset(*COARSE["1.40625° in float32"][:2]))
    assert str(grid_of) == "128 × 256 grid of 1.406° × 1.406°"
    assert not grid_of.on_lattice
    assert grid_of.south_north[0].min() == pytest.approx(-90, abs=1e-4)
    thinned = LatLon.of(dataset(LAT[::2], LON[::2]))
    assert (thinned.dy, thinned.dx) == (0.5, 0.5)
