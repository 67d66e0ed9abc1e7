import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from copcube import grid
from copcube.cube.view import CubeView
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


def test_lazy_stays_lazy():
    assert CubeView.of(VIEWS["dask"]).at(0, 0).embedding.chunks is not None


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
