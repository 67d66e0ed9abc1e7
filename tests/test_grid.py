import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from copcube import grid
from copcube.errors import GridError

PUBLISHED = {  # ids printed in the documents of Copernicus-Pretrain
    "0772176_-96.00_44.00": (772176, 44.0, -96.0),
    "0906994_128.50_67.25": (906994, 67.25, 128.5),
    "0200599_-70.25_-55.25": (200599, -55.25, -70.25),
}
ids = st.integers(0, grid.N_LAT * grid.N_LON - 1)


@pytest.mark.parametrize(("text", "known"), PUBLISHED.items())
def test_published_ids(text, known):
    number, lat, lon = known
    assert grid.parse_cell(text) == number
    assert grid.format_cell(number) == text
    assert grid.centre(number) == (lat, lon)
    row, col = grid.row_col(number)
    assert grid.latitudes()[row] == lat
    assert grid.longitudes()[col] == lon % 360


@pytest.mark.parametrize(("text", "known"), PUBLISHED.items())
def test_published_map_runs_the_other_way(text, known):
    """The published map is north-up from 180°W: its row is ours, its column half a turn off."""
    number, lat, lon = known
    row, col = grid.row_col(number)
    assert row == (90 - lat) / 0.25 == 720 - number // 1440
    assert (col + 720) % 1440 == (lon + 180) / 0.25 == number % 1440


def test_corners():
    assert grid.row_col(0) == (720, 720)  # south pole, 180°W
    assert grid.row_col(1038239) == (0, 719)  # north pole, 179.75°E
    assert grid.centre(0) == (-90, -180)
    assert grid.centre(1038239) == (90, 179.75)


@given(ids)
def test_ids_round_trip(number):
    assert grid.grid_id(*grid.row_col(number)) == number
    assert grid.parse_cell(grid.format_cell(number)) == number


def test_ids_round_trip_as_arrays():
    every = np.arange(grid.N_LAT * grid.N_LON)
    row, col = grid.row_col(every)
    np.testing.assert_array_equal(grid.grid_id(row, col), every)
    assert min(row.min(), col.min()) == 0
    taken = np.zeros((grid.N_LAT, grid.N_LON), bool)
    taken[row, col] = True
    assert taken.all()


@given(ids)
def test_the_centre_lies_in_its_cell(number):
    assert tuple(int(i) for i in grid.cell_at(*grid.centre(number))) == grid.row_col(number)


@given(st.floats(-90, 90), st.floats(-540, 540))
def test_a_point_lies_within_its_cell(lat, lon):
    row, col = (int(i) for i in grid.cell_at(lat, lon))
    assert abs(grid.latitudes()[row] - lat) <= 0.125 + 1e-9
    off = (grid.longitudes()[col] - lon + 180) % 360 - 180
    assert abs(off) <= 0.125 + 1e-9


@given(st.floats(-90, 90), st.integers(-1440 * 8, 1440 * 8).map(lambda i: i / 8))
def test_longitudes_wrap(lat, lon):
    here, there = grid.cell_at(lat, lon), grid.cell_at(lat, lon + 360)
    assert [int(i) for i in here] == [int(i) for i in there]


@pytest.mark.parametrize(
    ("lat", "lon", "node"),
    [
        (0.125, 0.0, (0.0, 0.0)),  # on a northern edge: the cell to its south
        (-0.125, 0.0, (-0.25, 0.0)),
        (0.0, 0.125, (0.0, 0.25)),  # on a western edge: the cell to its east
        (0.0, -0.125, (0.0, 0.0)),
        (0.0, 179.875, (0.0, 180.0)),  # the seam of the published lattice
        (0.0, 179.99, (0.0, 180.0)),
        (0.0, 180.0, (0.0, 180.0)),
        (0.0, -180.0, (0.0, 180.0)),
        (0.0, 360.0, (0.0, 0.0)),
        (0.0, 359.875, (0.0, 0.0)),
        (90.0, 10.0, (90.0, 10.0)),
        (89.875, 10.0, (89.75, 10.0)),
        (89.876, 10.0, (90.0, 10.0)),
        (-90.0, 10.0, (-90.0, 10.0)),
        (-89.875, 10.0, (-90.0, 10.0)),
    ],
)
def test_edges_are_half_open(lat, lon, node):
    row, col = (int(i) for i in grid.cell_at(lat, lon))
    assert (grid.latitudes()[row], grid.longitudes()[col]) == node


@pytest.mark.parametrize(("lat", "lon"), [(90.01, 0), (-91, 0), (np.nan, 0), (0, np.inf)])
def test_points_off_the_globe_are_refused(lat, lon):
    with pytest.raises(GridError):
        grid.cell_at(lat, lon)


def test_areas_sum_to_the_sphere():
    area = grid.areas()
    assert area.min() > 0
    np.testing.assert_allclose(area.sum() * grid.N_LON, 4 * np.pi, rtol=1e-14)
    np.testing.assert_array_equal(area, area[::-1])


def test_area_of_a_polar_cell_is_its_share_of_the_cap():
    cap = 2 * np.pi * (1 - np.cos(np.radians(0.125)))
    np.testing.assert_allclose(grid.areas()[0], cap / grid.N_LON, rtol=1e-9)


def test_coordinates_are_exact_quarters():
    assert (grid.latitudes() * 4 == np.arange(360, -361, -1)).all()
    assert (grid.longitudes() * 4 == np.arange(1440)).all()


def test_bounds_meet():
    lat, lon = grid.latitude_bounds(), grid.longitude_bounds()
    assert (lat[:-1, 1] == lat[1:, 0]).all()
    assert (lon[:-1, 1] == lon[1:, 0]).all()
    assert lat[0, 0] == 90
    assert lat[-1, 1] == -90
    assert lon[-1, 1] - lon[0, 0] == 360


@pytest.mark.parametrize(
    "text",
    [
        "0772176_-96.25_44.00",  # a neighbour's longitude
        "0772176_-96.00_-44.00",  # counted from the other pole
        "0772176_264.00_44.00",
        "1038240_-180.00_90.25",  # beyond the lattice
        "772176_-96.00_44.00",
        "0772176_-96.0_44.0",
        "0772176_-96.00_44.00/..",
        "",
    ],
)
def test_contradictory_or_malformed_ids_are_refused(text):
    with pytest.raises(GridError):
        grid.parse_cell(text)


def test_a_contradiction_is_explained():
    with pytest.raises(GridError, match=r"772176 lies at lon -96.00, lat 44.00, not at lon -96.25"):
        grid.parse_cell("0772176_-96.25_44.00")


def test_local_patches():
    assert grid.parse_local("0865831_-95.92_43.96") == (43.96, -95.92)
    with pytest.raises(GridError):
        grid.parse_local("0865831_-195.92_43.96")


def test_blocks_tile_the_lattice():
    seen = np.zeros((grid.N_LAT, grid.N_LON), dtype=int)
    for band in range(grid.N_BANDS):
        for block in grid.band_blocks(band):
            seen[block.rows, block.cols] += 1
    assert (seen == 1).all()


@given(ids)
def test_a_cell_lies_in_its_block(number):
    row, col = grid.row_col(number)
    block = grid.block_of(number)
    assert block.rows.start <= row < block.rows.stop
    assert block.cols.start <= col < block.cols.stop


columns = st.integers(0, grid.N_LON - 1)


@given(columns)
def test_the_half_turn_to_the_published_map_is_its_own_inverse(col):
    turned = grid.published_column(np.array([col]))
    assert grid.published_column(turned).tolist() == [col]
    lon = grid.longitudes()[col]
    assert (-180 + turned[0] / 4 - lon) % 360 == 0


@given(ids)
def test_the_published_map_counts_rows_from_the_north_and_columns_as_its_ids(number):
    """Ids run south to north, rows of the map north to south; both start at 180°W."""
    row, col = grid.row_col(number)
    assert row == 720 - number // 1440
    assert grid.published_column(np.array([col])).tolist() == [number % 1440]


@pytest.mark.slow
@given(ids)
def test_a_published_map_turned_lies_on_era5_s_coordinates(number):
    image = np.arange(-180, 180, 0.25)[None] + 1000 * np.arange(90, -90.25, -0.25)[:, None]
    era5 = image[:, grid.published_column(np.arange(grid.N_LON))]
    row, col = grid.row_col(number)
    lat, lon = grid.centre(number)
    assert era5[row, col] == lon + 1000 * lat
    assert (grid.latitudes()[row], grid.longitudes()[col]) == (lat, lon % 360)


def test_what_is_no_whole_number_is_not_truncated():
    assert grid.row_col(np.array([772176.0]))[0].tolist() == [184]
    assert grid.grid_id(np.array([184], object), np.uint16([1056])).tolist() == [772176]
    for wrong in (5.5, np.nan, "5", None, True, [5, None]):
        with pytest.raises(GridError, match="expected whole numbers"):
            grid.row_col(wrong)
        with pytest.raises(GridError, match=r"columns are .*; expected whole numbers"):
            grid.grid_id(5, wrong)
    with pytest.raises(GridError, match="coordinates are not numbers"):
        grid.cell_at("north", 5)
