"""Major TOM's grid, against what was published on it and against its code's own recipe."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from copcube.errors import GridError, OptionError
from copcube.products.majortom import Fragmentation, Grid, footprints, squares, utm_epsg

# Of Core-S2L1C and Core-S2L2A: id, zone, centre in the metadata, upper left corner in the header
# of the image (github.com/ESA-PhiLab/Major-TOM, docs/evidence/results_*.jsonl at 61143e1).
PUBLISHED = """
326D_1211R 32751  -29.23566457301148   124.75319858965116 665046.6590038168  6769970.869145765
216D_1273R 32751  -19.35648664439238   121.28616714289012 314645.7886055014  7864174.789989208
233D_574R  32740  -20.883488682722746  55.24089797287144  311675.5267781975  7695085.358679821
395U_677L  32618  35.52396065785876    -74.61378636144383 529676.5940016491  3936559.4019485223
33D_1688R  32756  -2.918893456283584   151.85117574741156 366980.79828342824 9682646.581621211
282U_7L    32630  25.373671245400143   -0.6450409854894785 731616.9855874781 2813752.4130310463
164U_815R  32643  14.77559780284761    75.74319489138288  574643.6808842461  1638978.6602388835
77U_1037R  32646  6.961312041420804    93.86790724806367  590532.7034490716  774900.0612530739
453D_648L  32718  -40.64448672609527   -76.7017999587979  350766.50957433676 5504654.902046194
57D_449R   32737  -5.07443724239943    40.53597120787458  664929.9290056801  9444245.610461386
546U_691R  32646  49.08584833568501    94.76354262949135  623425.2573925925  5443836.9593596915
464U_52L   32629  41.72017715153562    -6.190547400243946 728359.6142129343  4627863.2358364565
150D_1777L 32703  -13.427680946278402  -164.06891427018115 595456.5006708922 8520717.66936883
695U_606R  32650  62.469616190945466   117.64087065108966 527708.8611989117  6932001.5507950345
589U_1152L 32602  52.94943614431831    -171.4397655320694 465112.7834967471  5872076.23962727
677U_927L  32602  60.85303676303826    -170.60832813759995 515941.6126777786 6751821.6271803295
873D_230L  32713  -78.36668395918085   -102.64331720437042 547696.877102393  1304979.2471263688
857U_249R  32647  77.02065594973608    99.35925629785062  503667.2730859184  8554445.725945678
811D_454L  32707  -72.79736915649389   -138.0131256195204 593222.164174542   1925009.2430125002
789U_307L  32616  70.91084621410998    -83.9662529341237  605352.683594177   7875563.678613251
87U_17R    32631  7.859739651661709    1.586358720228993  338809.7755021622  874394.8607821706
48U_704L   32620  4.356633159881315    -63.362517838266285 454436.35555845656 486897.8391013466
436U_1147R 32653  39.20775163312869    132.91364670865593 314520.43013734557 4347245.184466882
"""

# Of notebook 05 of the same repository: id, zone, fragment counted from 0 in the order of the
# file, box, first corner of its footprint in UTM and in degrees, centre.
FRAGMENTS = (
    ("922D_249L", 32701, 0, [0, 0, 224, 224], (480037.35680356843, 814306.7102547885)),
    ("922D_249L", 32701, 4, [0, 844, 224, 1068], (480037.35680356843, 805866.7102547885)),
    ("918D_75L", 32722, 20, [844, 0, 1068, 224], (506918.63283075346, 854703.0551686661)),
    ("918D_75L", 32722, 24, [844, 844, 1068, 1068], (506918.63283075346, 846263.0551686661)),
)
CORNERS = ((-178.41163, -82.72221), (-178.42636, -82.79780), (-50.53373, -82.36227))
CORNERS += ((-50.52909, -82.43788),)
CENTRES = ((-82.731987, -178.492844), (-82.807571, -178.508438), (-82.372375, -50.608696))
CENTRES += ((-82.447983, -50.604801),)


def code(spacing):
    """Latitudes of all rows and longitudes of a row, as the project's code makes them."""
    number = math.ceil(math.pi * 6378.137 / spacing)
    lats = np.sort(np.mod(np.linspace(-90, 90, number + 1)[:-1], 180) - 90)

    def lons(lat):
        around = 2 * math.pi * 6378.137 * math.cos(lat * math.pi / 180)
        ends = np.linspace(-180, 180, math.ceil(around / spacing) + 1)[:-1]
        return np.sort(np.mod(ends, 360) - 180)

    return lats, lons


@pytest.mark.parametrize("line", PUBLISHED.strip().splitlines(), ids=lambda line: line.split()[0])
def test_published_cells(line):
    name, zone, lat, lon, left, top = line.split()
    grid = Grid()
    row, col = grid.parse([name])
    assert grid.names(row, col).tolist() == [name]
    np.testing.assert_allclose(grid.utm(row, col), int(zone))
    found = grid.at(float(lat), float(lon))
    assert [a.tolist() for a in found] == [row[0], col[0]]
    # The header holds the corner of the square to the last digits, before rounding to pixels.
    np.testing.assert_allclose(
        np.ravel(squares(row, col, [int(zone)])), [float(left), float(top)], rtol=0, atol=1e-6
    )
    # Their centre is that of the image's square.
    whole = footprints(*squares(row, col, [int(zone)]), np.array([int(zone)]), WHOLE)
    np.testing.assert_allclose([whole.lat[0], whole.lon[0]], [float(lat), float(lon)], atol=2e-4)


WHOLE = np.array([[0, 0, 1068, 1068]])


@pytest.mark.parametrize("number", range(4))
def test_published_fragments_are_transposed(number):
    name, zone, fragment, box, first = FRAGMENTS[number]
    boxes = Fragmentation(224).boxes(transposed=True)
    assert boxes[fragment].tolist() == box
    row, col = Grid().parse([name])
    epsg = np.array([zone])
    made = footprints(*squares(row, col, epsg), epsg, boxes[[fragment]])
    np.testing.assert_allclose(made.utm[0, 0], first, rtol=0, atol=1e-6)
    np.testing.assert_allclose(made.corners[0, 0], CORNERS[number], rtol=0, atol=6e-6)
    centre = np.array([made.lat[0], made.lon[0]], np.float32)
    np.testing.assert_allclose(centre, CENTRES[number], rtol=1.2e-7)


def test_fragments_by_their_counts():
    """25 and 9 a cell, as 56,147,150 and 20,212,974 rows of 2,245,886 cells."""
    assert 25 * 2_245_886 == 56_147_150
    assert 9 * 2_245_886 == 20_212_974
    for size, number in ((224, 25), (384, 9), (1068, 1)):
        plan = Fragmentation(size)
        assert len(plan) == number == len(plan.boxes())
        right, wrong = plan.boxes(), plan.boxes(transposed=True)
        np.testing.assert_array_equal(right[:, [1, 0, 3, 2]], wrong)
        if number > 1:
            assert right[1, 1] == 0 < right[1, 0]  # x advances first
    with pytest.raises(OptionError, match="224 or 384"):
        Fragmentation(1069)


@given(st.sampled_from([224, 384]) | st.integers(64, 1068))
def test_fragments_reach_from_border_to_border(size):
    starts = Fragmentation(size).starts
    assert [starts[0], starts[-1]] == [0, 1068 - size]
    assert (np.diff(starts) > 0).all()
    if size in (224, 384):
        assert (np.diff(starts) <= size).all()


@pytest.mark.parametrize("spacing", [10.0, 100.0, 473.0])
def test_rows_and_columns_are_those_of_the_code(spacing):
    grid = Grid(spacing)
    lats, lons = code(spacing)
    if grid.n_rows % 2 == 0:
        rows = np.arange(grid.lowest, grid.lowest + grid.n_rows)
        np.testing.assert_allclose(grid.latitude(rows), lats, atol=1e-12)
        odd = [-800, -794, -581] if spacing == 10 else []  # the code's rounding shifts their names
        for row in [*odd, *rows[:: max(1, len(rows) // 40)]]:
            want = lons(lats[row - grid.lowest])
            zero = np.flatnonzero(want == 0)[0]
            cols = np.arange(len(want)) - zero
            np.testing.assert_allclose(grid.corner(row, cols)[1], want, atol=1e-10)
            with pytest.raises(GridError, match=f"run from {cols[0]} to {cols[-1]}"):
                grid.corner(row, cols[0] - 1)


@pytest.mark.slow
def test_how_many_cells():
    """The paper's 10 km grid: 2004 rows; 3,047 columns of row 451U (its specification, 5.1)."""
    grid = Grid()
    assert grid.n_rows == 2004
    assert grid.columns(451) == 3047
    row, col = grid.cells()
    assert len(row) == sum(
        math.ceil(2 * math.pi * 637.8137 * math.cos(math.radians(lat)))
        for lat in grid.latitude(np.unique(row))
    )
    np.testing.assert_array_equal(grid.at(*grid.corner(row, col)), (row, col))
    np.testing.assert_allclose(grid.centre([451], [-946]), [[40.553892], [-111.709879]], atol=1e-6)


@pytest.mark.slow
@given(st.floats(-90, 90), st.floats(-720, 720), st.sampled_from([10.0, 50.0, 333.0]))
def test_a_point_lies_in_its_cell(lat, lon, spacing):
    grid = Grid(spacing)
    row, col = grid.at(lat, lon)
    south, west = grid.corner(row, col)
    if grid.n_rows % 2 == 0:
        assert south <= lat <= south + grid.step + 1e-12
    width = 360 / grid.columns(row)
    assert (lon - west) % 360 < width + 1e-9 or (west - lon) % 360 < 1e-9
    again = grid.parse(grid.names(np.atleast_1d(row), np.atleast_1d(col)))
    np.testing.assert_array_equal(np.ravel(again), [row, col])


@given(st.integers(-946, 945), st.floats(0, 1, exclude_max=True))
def test_ids_and_corners_go_both_ways(row, share):
    grid = Grid()
    n = int(grid.columns(row))
    every = grid.cells(*[float(grid.latitude(row))] * 2)[1]
    col = int(every[int(share * n)])
    assert [a.tolist() for a in grid.at(*grid.corner(row, col))] == [row, col]


@given(st.floats(-80, 84), st.floats(-180, 179.999))
def test_zones_hold_their_points(lat, lon):
    """A zone's central meridian is within 3° of its points, or 6° in its wide ones."""
    code = int(utm_epsg(lat, lon).item())
    assert (code >= 32700) == (lat < 0)
    off = (lon - (6 * (code % 100) - 183) + 180) % 360 - 180
    assert abs(off) <= (3 if abs(lat) < 56 else 6)


def test_zones_as_the_code_has_them():
    points = [(-1, -174.34), (48, -4), (78, 13), (-34, 19.7), (-36, 175.7), (60, 4), (83, 41)]
    assert utm_epsg(*np.transpose(points)).tolist() == [
        *(32701, 32630, 32633, 32734, 32760, 32632, 32637),
    ]


@pytest.mark.parametrize(
    "name", ["", "922D", "922D_249", "0D_1R", "0U_0L", "01U_3R", "2000U_1R", "0U_3000R", "1u_1r"]
)
def test_no_ids(name):
    with pytest.raises(GridError, match=r"922D_249L|columns run"):
        Grid().parse([name])


def test_what_is_not_on_the_grid():
    grid = Grid()
    with pytest.raises(GridError, match="rows run from -1002 to 1001"):
        grid.corner([2000], [0])
    with pytest.raises(GridError, match="beyond a pole"):
        grid.at(91, 0)
    with pytest.raises(GridError, match="not finite"):
        grid.at(np.nan, 0)
    with pytest.raises(GridError, match="not a UTM zone"):
        squares([0], [0], [4326])
    with pytest.raises(GridError, match="such as 10"):
        Grid(0)


def test_footprints_near_180_are_continuous():
    row, col = Grid().at(-16.5, 179.999)
    row, col = np.atleast_1d(row), np.atleast_1d(col)
    epsg = Grid().utm(row, col)
    made = footprints(*squares(row, col, epsg), epsg, WHOLE)
    assert np.ptp(made.corners[..., 0]) < 0.2
    assert abs(made.lon[0]) > 179.9
    assert np.abs(made.corners[..., 0]).max() > 180


def test_numbers_of_other_types():
    assert Grid(np.float32(10)).names([1.0], [np.uint8(2)]).tolist() == ["1U_2R"]
    with pytest.raises(GridError, match=r"rows are \[1.5\] \(list\); expected whole numbers"):
        Grid().names([1.5], [2])
    with pytest.raises(OptionError, match="spacing is '10'"):
        Grid("10")
    with pytest.raises(OptionError, match="south is 'a'"):
        Grid().cells("a")
    plain = Fragmentation(224, 1068).boxes()
    small = Fragmentation(np.uint8(224), np.uint16(1068)).boxes()
    assert plain.dtype == small.dtype
    assert np.array_equal(plain, small)
    with pytest.raises(OptionError, match=r"size is 224.0 \(float\)"):
        Fragmentation(224.0)
