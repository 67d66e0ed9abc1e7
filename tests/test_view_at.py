import dask.array as da
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from copcube import grid
from copcube.cube.view import CubeView
from copcube.era5.merge import merge
from copcube.errors import CubeError, GridError, OptionError

LAT, LON = grid.latitudes(), grid.longitudes()


def world(filled=None):
    """A cube whose vectors say where they are."""
    rows, cols = np.meshgrid(np.arange(721), np.arange(1440), indexing="ij")
    ds = xr.Dataset(
        {"embedding": (("lat", "lon", "dim"), np.stack([rows, cols], -1).astype("f4"))},
        coords={"lat": LAT, "lon": LON},
    )
    ds["n_images"] = (("lat", "lon"), np.ones((721, 1440), "i4") if filled is None else filled)
    return ds


WORLD = world()
VIEWS = {
    "as ERA5": WORLD,
    "as published": WORLD.assign_coords(lon=(LON + 180) % 360 - 180).sortby("lon"),
    "south first": WORLD.sortby("lat"),
    "single precision": WORLD.assign_coords(lat=LAT.astype("f4"), lon=LON.astype("f4")),
    "dask": WORLD.chunk(lat=100, lon=200),
    "renamed": WORLD.rename(lat="latitude", lon="longitude"),
    "transposed": WORLD.transpose("dim", "lon", "lat"),
}


@pytest.mark.slow
@settings(deadline=None)
@given(
    lat=st.floats(-90, 90),
    lon=st.floats(-540, 540),
    view=st.sampled_from([*VIEWS]),
)
def test_a_point_finds_the_cell_of_the_rule(lat, lon, view):
    row, col = grid.cell_at(lat, lon)
    assert CubeView.of(VIEWS[view]).at(lat, lon).embedding.values.tolist() == [row, col]


def test_the_cell_comes_with_all_its_variables():
    cell = CubeView.of(WORLD).at(48.1, 11.6)
    assert (float(cell.lat), float(cell.lon)) == (48.0, 11.5)
    assert (cell.n_images.ndim, cell.embedding.dims) == (0, ("dim",))


def test_a_cell_whose_vector_alone_is_masked_holds_none():
    # It was NaN, without a word.
    east = WORLD.isel(lat=slice(9)).chunk(lat=3)
    east["embedding"] = east.embedding.where(east.lon < 180)
    assert east.copembed.at(89.5, 10).embedding.values.tolist() == [2, 40]
    for use in (lambda c: c.at(89.5, 200), lambda c: c.similar(89.5, 200)):
        with pytest.raises(CubeError, match="counted, but its vector is not finite"):
            use(east.copembed)


def test_lazy_stays_lazy():
    assert CubeView.of(VIEWS["dask"]).at([0], [0]).embedding.chunks is not None


@pytest.mark.parametrize("lead", [(), ("season",)])
def test_the_vector_of_a_place_is_read_once(lead):
    ds, read = WORLD.isel(lat=slice(9), lon=slice(9)).expand_dims(lead), []
    for name in ("embedding", "n_images"):
        array = ds[name].chunk(lat=3, lon=3).data
        noted = da.map_blocks(
            lambda b, name: (read.append(name), b)[1], array, name, dtype=array.dtype
        )
        ds[name] = ds[name].dims, noted, ds[name].attrs
    read.clear()
    found = ds.copembed.at(89.5, 1)
    assert found.load().embedding.values.ravel().tolist() == [2, 4]
    assert sorted(read) == ["embedding", "n_images"]


def test_empty_cells_and_places_outside_are_told():
    filled = np.zeros((721, 1440), "i4")
    filled[168, 46] = 2
    ds = world(filled)
    assert int(CubeView.of(ds).at(48.1, 11.6).n_images) == 2
    with pytest.raises(CubeError, match=r"cell at lat 48\.00, lon -11\.50, which holds no vector"):
        CubeView.of(ds).at(48.1, -11.6)
    europe = ds.sel(lat=slice(60, 40), lon=slice(0, 30))
    with pytest.raises(GridError, match=r"does not reach; it has lat 40 to 60 and lon 0 to 30"):
        CubeView.of(europe).at(48.1, -11.6)
    with pytest.raises(GridError, match="beyond a pole"):
        CubeView.of(ds).at(91, 0)


def test_without_counts_the_vector_tells():
    ds = WORLD.drop_vars("n_images")
    ds["embedding"] = ds.embedding.where(ds.lat > 0)
    assert CubeView.of(ds).at(10, 10).embedding.notnull().all()
    with pytest.raises(CubeError, match="holds no vector"):
        CubeView.of(ds).at(-10, 10)


def test_a_cell_of_one_group_is_enough():
    ds = xr.concat([WORLD, WORLD.where(WORLD.lat < 0)], "season", join="exact")
    cell = CubeView.of(ds.transpose("season", ...)).at(48.1, 11.6)
    assert cell.embedding.notnull().all("dim").values.tolist() == [True, False]


@pytest.mark.slow
@settings(max_examples=25)
@given(
    places=st.lists(st.tuples(st.floats(-90, 90), st.floats(-540, 540)), max_size=20),
    view=st.sampled_from([*VIEWS]),
)
def test_many_points_find_the_cells_that_each_finds_alone(places, view):
    lat, lon = np.array(places).reshape(-1, 2).T
    found = CubeView.of(VIEWS[view]).at(lat, lon)
    row, col = grid.cell_at(lat, lon)
    assert found.embedding.transpose("point", "dim").values.tolist() == [
        [i, j] for i, j in zip(row.tolist(), col.tolist(), strict=True)
    ]
    names = ("latitude", "longitude") if view == "renamed" else ("lat", "lon")
    for name, nodes in zip(names, (LAT[row], LON[col]), strict=True):
        assert np.allclose((found[name] - nodes + 180) % 360, 180)


def test_points_of_a_dataset_keep_their_dimension_and_names():
    names = {"station": ["Munich", "Berlin"], "height": ("station", [520, 34])}
    lat = xr.DataArray([48.1, 52.5], names, dims="station")
    lon = xr.DataArray([11.6, 13.4], dims="station")
    found = CubeView.of(WORLD).at(lat, lon)
    assert found.embedding.dims == ("station", "dim")
    assert found.sel(station="Berlin").embedding.values.tolist() == list(grid.cell_at(52.5, 13.4))
    assert found.height.values.tolist() == [520, 34]
    mesh = CubeView.of(WORLD).at(*xr.broadcast(lat.rename(station="y"), lon.rename(station="x")))
    assert mesh.embedding.dims == ("y", "x", "dim")
    assert mesh.embedding[1, 0].values.tolist() == list(grid.cell_at(52.5, 11.6))


def test_points_in_empty_cells_have_no_vector_and_counts_are_read_there_alone(monkeypatch):
    filled = np.zeros((721, 1440), "i4")
    filled[168, 46] = 2
    ds = world(filled)
    ds["embedding"] = ds.embedding.where(ds.n_images > 0)
    lazy = ds.chunk(lat=45, lon=45)
    monkeypatch.setattr(CubeView, "counts", property(lambda self: pytest.fail("all counts")))
    found = CubeView.of(lazy).at([48.1, 0, 48.1], [11.6, 0, 371.6])
    assert found.embedding.chunks is not None
    assert found.n_images.values.tolist() == [2, 0, 2]
    assert found.embedding.notnull().all("dim").values.tolist() == [True, False, True]


@pytest.mark.parametrize(
    ("lat", "lon", "error", "message"),
    [
        ([1, 2], [1], OptionError, "lat has 2 along point, lon 1 along point"),
        ([1, 2], 1, OptionError, "lat has 2 along point, lon one value"),
        (xr.DataArray([1.0], dims="a"), [1.0], OptionError, "1 along a, lon 1 along point"),
        ([[1]], [[1]], OptionError, "lat has 2 dimensions; expected a number, a list"),
        (["48"], ["11"], OptionError, "expected degrees as numbers"),
        ("48", 11, OptionError, "expected degrees as numbers"),
        ([[1], [1, 2]], [1, 2], OptionError, "expected degrees as numbers"),
        ([np.nan, 1], [1, 2], GridError, "not finite"),
        ([91, 1], [1, 2], GridError, "beyond a pole"),
        ([50, 10, 0], [1, 2, 3], GridError, r"2 of 3 points lie .*first at lat 10, lon 2; it has"),
    ],
)
def test_points_that_make_no_sense_are_refused(lat, lon, error, message):
    europe = WORLD.sel(lat=slice(60, 40), lon=slice(0, 30))
    with pytest.raises(error, match=message):
        CubeView.of(europe).at(lat, lon)


def test_a_cube_beyond_a_pole_is_refused():
    beyond = WORLD.sel(lat=slice(60, 40)).assign_coords(lat=lambda ds: ds.lat + 50)
    beyond["lat"].attrs["cell_degrees"] = 0.25
    beyond["lon"].attrs["cell_degrees"] = 0.25
    with pytest.raises(GridError, match="lat reaches 110; expected degrees, -90 to 90"):
        CubeView.of(beyond).at(45, 10)


COARSE = {
    "1.5° with poles": (np.linspace(90, -90, 121), np.arange(0, 360, 1.5)),
    "5.625° without, south first": (np.arange(-87.1875, 90, 5.625), np.arange(0, 360, 5.625)),
    "1° from the dateline": (np.linspace(90, -90, 181), np.arange(-180.0, 180)),
    "2° of a region, in float32": (
        np.arange(61, 30, -2).astype("f4"),
        np.arange(-21, 30, 2).astype("f4"),
    ),
    "0.7° of a region across Greenwich": (np.arange(60, 35, -0.7), np.arange(-14.0, 14, 0.7)),
}


@pytest.fixture(scope="module")
def merged():
    """Grids that `merge` averages onto; the vectors are replaced by what says where they are."""
    found = {}
    thin = WORLD.isel(lat=slice(0, None, 3), lon=slice(0, None, 3))
    thin["embedding"] = thin.embedding.assign_attrs(cell_degrees=[0.25, 0.25])
    for name, (lat, lon) in COARSE.items():
        target = xr.Dataset(
            {"z": (("lat", "lon"), np.zeros((len(lat), len(lon))))}, {"lat": lat, "lon": lon}
        )
        ds = merge(thin, target)
        here = np.stack(np.meshgrid(np.arange(len(lat)), np.arange(len(lon)), indexing="ij"), -1)
        found[name] = ds.assign(
            embedding=ds.embedding.copy(data=here.astype("f4")), n_images=ds.n_images * 0 + 1
        )
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", COARSE)
@settings(max_examples=60, deadline=None)
@given(lat=st.floats(-90, 90), lon=st.floats(-540, 540))
def test_on_grids_of_merge_a_point_finds_the_nearest_node_of_its_cell(merged, name, lat, lon):
    ds = merged[name]
    y, x = ds.lat.values.astype(float), ds.lon.values.astype(float)
    dy, dx = abs(y[1] - y[0]), x[1] - x[0]
    apart = np.abs(y - lat), np.abs((x - lon + 180) % 360 - 180)
    i, j = (int(a.argmin()) for a in apart)
    slack = [a[n] - d / 2 for a, n, d in zip(apart, (i, j), (dy, dx), strict=True)]
    if any(abs(s) < 1e-4 for s in slack):
        return  # on an edge; the rule is tested below
    if max(slack) > 0:
        with pytest.raises(GridError, match="does not reach"):
            CubeView.of(ds).at(lat, lon)
        return
    assert CubeView.of(ds).at(lat, lon).embedding.values.tolist() == [i, j]
    assert CubeView.of(ds).at([lat], [lon]).embedding.values.tolist() == [[i, j]]


def test_edges_of_coarse_cells_belong_to_the_south_and_the_east(merged):
    view = CubeView.of(merged["1.5° with poles"])
    assert view.at(89.25, 0.75).embedding.values.tolist() == [1, 1]
    assert view.at(-90, 359.25).embedding.values.tolist() == [120, 0]
    poles = CubeView.of(merged["5.625° without, south first"])
    assert poles.at([90, -90], [0, 0]).embedding.values[:, 0].tolist() == [31, 0]


def test_a_region_of_a_coarse_grid_and_a_row_of_it_keep_their_cells(merged):
    row = merged["1.5° with poles"].sel(lat=[48.0], lon=[12.0, 13.5])
    assert CubeView.of(row).at(48.7, 12.7).embedding.values.tolist() == [28, 8]
    with pytest.raises(GridError, match="does not reach"):
        CubeView.of(row).at(48.8, 12.7)


def test_two_rows_of_the_lattice_are_no_coarse_grid():
    two = WORLD.sel(lat=[60, 40])
    with pytest.raises(GridError, match="does not reach"):
        CubeView.of(two).at(50, 0)


@pytest.mark.parametrize("form", [lambda ds: ds, lambda ds: ds.chunk(lat=2)])
def test_cells_without_images_hold_nan_whatever_the_dataset_has_there(form):
    # As after `fillna`, or where a writer put zeros: every other function takes it for missing.
    filled = np.array([[[1, 0], [1, 1]], [[1, 1], [0, 1]]])
    ds = xr.Dataset(
        {
            "embedding": (("season", "lat", "lon", "dim"), np.ones((2, 2, 2, 3), "f4")),
            "n_images": (("season", "lat", "lon"), filled),
        },
        {"lat": [45.25, 45.0], "lon": [7.0, 7.25]},
    )
    ds = form(ds.assign(embedding=ds.embedding.where(ds.n_images > 0, 0).assign_attrs(units="1")))
    there = filled.astype(bool)
    many = ds.copembed.at([45.25, 45.25, 45, 45], [7, 7.25, 7, 7.25]).embedding
    cells = ds.copembed.box(6.9, 44.9, 7.3, 45.3, pooling=None).embedding
    for found in (many.values.reshape(ds.embedding.shape), cells.values):
        assert np.array_equal(np.isfinite(found).all(-1), there)
        assert (found[there] == 1).all()
    one = ds.copembed.at(45.25, 7.25).embedding
    assert np.array_equal(np.isnan(one).all("dim"), [True, False])
    assert one.chunks is None
    assert (many.chunks is None) == (ds.embedding.chunks is None)
    assert cells.attrs["units"] == many.attrs["units"] == one.attrs["units"] == "1"
    # Nothing tells which zeros are vectors: refused here as by `points` and the mean of a box.
    bare = ds[["embedding"]]
    for found in (
        lambda c: c.at(45.25, 7.25),
        lambda c: c.at([45.25], [7.25]).compute(),
        lambda c: c.box(6.9, 44.9, 7.3, 45.3, pooling=None).compute(),
    ):
        with pytest.raises(CubeError, match="in published maps zeros mean missing"):
            found(bare.copembed)


@pytest.mark.parametrize("size", [2, 3])
def test_points_along_a_dimension_of_the_dataset_are_refused(size):
    # As many points as seasons: each point was paired with one of them, silently.
    ds = xr.Dataset(
        {"embedding": (("season", "lat", "lon", "dim"), np.ones((2, 1, 2, 3), "f4"))},
        {"lat": [45.0], "lon": [7.0, 7.25], "season": ["DJF", "JJA"]},
    )
    lat, lon = (xr.DataArray(np.full(size, v), dims="season") for v in (45.0, 7.0))
    frame = pd.DataFrame({"lat": lat, "lon": lon}, pd.Index(range(size), name="season"))
    for look in (
        lambda c: c.at(lat, lon),
        lambda c: c.points((lat, lon)),
        lambda c: c.points(frame),
        lambda c: c.points(xr.Dataset({"lat": lat, "lon": lon})),
    ):
        with pytest.raises(OptionError, match="along season, a name that the dataset has"):
            look(ds.copembed)


def test_latitudes_and_longitudes_of_other_labels_are_not_paired():
    lat = xr.DataArray([45, 46], {"station": ["a", "b"]})
    lon = xr.DataArray([7, 8], {"station": ["b", "a"]})
    for look in (lambda c: c.at(lat, lon), lambda c: c.points((lat, lon))):
        with pytest.raises(OptionError, match="different labels along their dimension"):
            look(WORLD.copembed)


def test_columns_of_pandas_with_other_labels_are_not_paired():
    frame = pd.DataFrame({"lat": [45.0, 45.25], "lon": [7.0, 7.0]}, index=[3, 3])
    found = WORLD.copembed.at(frame.lat, frame.lon)
    assert found.lat.values.tolist() == [45.0, 45.25]
    with pytest.raises(OptionError, match="different labels in their indexes"):
        WORLD.copembed.at(frame.lat, frame.lon.reset_index(drop=True))


def test_masked_values_are_no_places():
    # What lies below the mask was taken for a place.
    lat = np.ma.array([45.0, 45.25], mask=[False, True])
    for lats, lons in ((lat, [7.0, 7.0]), (lat[1], 7.0)):
        with pytest.raises(GridError, match="not finite"):
            WORLD.copembed.at(lats, lons)


@pytest.mark.parametrize("dim", ["n_images", "embedding"])
def test_points_along_a_variable_of_the_dataset_are_refused(dim):
    lat, lon = (xr.DataArray([v], {dim: ["a"]}) for v in (45.0, 7.0))
    for look in (lambda c: c.at(lat, lon), lambda c: c.points((lat, lon))):
        with pytest.raises(OptionError, match=f"along {dim}, a name that the dataset has too"):
            look(WORLD.copembed)


def test_coordinates_of_stations_do_not_replace_those_of_the_cells():
    about = {"lat": ("station", [45.1]), "n_images": ("station", [99]), "height": 3.0}
    lat = xr.DataArray([45.1], {"station": ["a"], **about}, "station")
    found = WORLD.copembed.at(lat, xr.DataArray([7.1], {"station": ["a"]}))
    assert found.lat.values.tolist() == [45.0]
    assert found.n_images.values.tolist() == [1]
    assert found.station.values.tolist() == ["a"]
    assert float(found.height) == 3
