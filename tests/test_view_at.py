import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from copcube import grid
from copcube.cube.view import CubeView
from copcube.errors import CubeError, GridError

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
