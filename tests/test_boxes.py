"""Regions, against shapely's polygons in an equal-area projection and closed forms."""

import json

import numpy as np
import pandas as pd
import pyproj
import pytest
import shapely
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from shapely.geometry import Polygon, mapping

from copcube import grid
from copcube.cli import main
from copcube.cube.view import CubeView
from copcube.errors import CubeError, GridError, OptionError
from copcube.lookup import box, polygon
from copcube.lookup.boxes import polygons
from copcube.lookup.regions import box_rings, polygon_rings, region

EARTH = 4 * np.pi * 6371.0088**2


def globe():
    """A reduction of the globe whose vectors say where they are."""
    rows, cols = np.meshgrid(np.arange(721.0), np.arange(1440.0), indexing="ij")
    return xr.Dataset(
        {"pc": (("lat", "lon", "component"), np.stack([rows, cols], -1).astype("f4"))},
        {"lat": grid.latitudes(), "lon": grid.longitudes()},
    )


WORLD = globe()
VIEW = CubeView.of(WORLD)
AREAS = grid.areas()


def sphere(shape):
    """Area on the unit sphere of a shape in degrees, by shapely: straight pieces of 0.0005°."""
    fine = shapely.segmentize(shape, 0.0005)
    return shapely.transform(
        fine, lambda x: np.stack([np.radians(x[:, 0]), np.sin(np.radians(x[:, 1]))], 1)
    ).area


def expected(shape):
    """Fractions of cells, by (row, col) of the lattice, by cutting the shape with each cell."""
    west, south, east, north = shape.bounds
    found = {}
    for row in range(int((90.125 - north) / 0.25), int((90.125 - south) / 0.25) + 1):
        high, low = min(90.125 - row / 4, 90), max(89.875 - row / 4, -90)
        for col in range(int(np.floor((west + 0.125) * 4)), int(np.floor((east + 0.125) * 4)) + 1):
            cell = shapely.box(col / 4 - 0.125, low, col / 4 + 0.125, high)
            if (area := sphere(shape.intersection(cell))) > 0:
                found[row, col % 1440] = area / AREAS[row]
    return found


def fractions(rings):
    found = region(VIEW.latlon, rings)
    return dict(
        zip(zip(found.i.tolist(), found.j.tolist(), strict=True), found.fraction, strict=True)
    )


def agree(ours, theirs):
    cells = ours.keys() | theirs.keys()
    pairs = np.array([(ours.get(cell, 0), theirs.get(cell, 0)) for cell in cells])
    np.testing.assert_allclose(*pairs.T, rtol=0, atol=2e-6)


SHAPES = {
    "triangle": Polygon([(5.1, 45.2), (7.9, 45.9), (6.3, 47.7)]),
    "hole": Polygon(
        [(0.1, 60), (2.2, 60.1), (2, 62.3), (0.2, 62)], [[(0.9, 61), (1.3, 60.8), (1.4, 61.6)]]
    ),
    "sub-cell": Polygon([(10.01, 3.02), (10.1, 3.0), (10.06, 3.09)]),
    "across Greenwich": Polygon([(-1.3, -20.3), (1.4, -19.6), (0.2, -18.9)]),
    "of cell edges": Polygon([(0.125, 10.125), (0.625, 10.125), (0.625, 10.625), (0.125, 10.625)]),
    "near the pole": Polygon([(3, 88.9), (8, 89.1), (5, 90), (4, 90)]),
    "far north, long edges": Polygon([(20, 84), (27, 84.05), (26, 84.2)]),
}


@pytest.mark.parametrize("name", SHAPES)
def test_fractions_are_those_of_shapely(name):
    agree(fractions(polygon_rings(SHAPES[name])), expected(SHAPES[name]))
    turned = shapely.reverse(SHAPES[name])
    agree(fractions(polygon_rings(json.dumps(mapping(turned)))), expected(SHAPES[name]))


# GEOS cuts a triangle wrongly whose corners are at a longitude of 1.8e-307.
LONGITUDES = st.floats(0, 1.5).map(lambda x: round(x, 9))


@settings(max_examples=15, deadline=None)
@given(
    st.lists(st.tuples(LONGITUDES, st.floats(-60, -58.7)), min_size=3, max_size=7),
    st.sampled_from([-170, 0, 100]),
)
def test_fractions_of_any_hull(corners, shift):
    shape = shapely.MultiPoint([(x + shift, y) for x, y in corners]).convex_hull
    if shape.geom_type != "Polygon" or shape.area < 1e-3:
        return
    agree(fractions(polygon_rings(shape)), expected(shape))


@pytest.mark.parametrize(
    "corners",
    [(5, 45, 10, 48), (5.1, 45.03, 5.2, 45.06), (170, -20, -170, -10), (-180, 80, 180, 90)],
)
def test_areas_of_boxes_are_those_of_the_sphere(corners):
    west, south, east, north = corners
    width = east - west if east > west else east - west + 360
    band = np.sin(np.radians(north)) - np.sin(np.radians(south))
    found = box(WORLD, *corners)
    assert float(found.area) == pytest.approx(band / 2 * width / 360 * EARTH, rel=1e-12)
    assert float(found.coverage) == pytest.approx(1)


@pytest.mark.slow
def test_the_globe_is_one_region():
    for corners in ((-180, -90, 180, 90), (0, -90, 360, 90)):
        found = box(WORLD, *corners)
        assert int(found.cells) == 721 * 1440
        assert float(found.area) == pytest.approx(EARTH)
    want = np.average(np.arange(721), weights=AREAS)
    np.testing.assert_allclose(found.pc, [want, 719.5], rtol=1e-6)
    whole = Polygon([(-180, -90), (180, -90), (180, 90), (-180, 90)])
    assert float(polygon(WORLD, whole).area) == pytest.approx(EARTH)


def test_across_the_antimeridian_in_any_writing():
    want = box(WORLD, 170, -20, -170, -10)
    for west, east in ((170, 190), (-190, -170)):
        xr.testing.assert_allclose(box(WORLD, west, -20, east, -10), want)
    naive = Polygon([(170, -20), (-170, -20), (-170, -10), (170, -10)])
    split = shapely.union(shapely.box(170, -20, 180, -10), shapely.box(-180, -20, -170, -10))
    for shape in (naive, split):
        xr.testing.assert_allclose(polygon(WORLD, shape), want)
    cells = box(WORLD, 170, -20, -170, -10, pooling=None)
    assert cells.lon.values.tolist() == np.arange(170, 190.25, 0.25).tolist()
    assert cells.pc[0, 0].values.tolist() == [400, 680]
    assert (np.diff(cells.lat) < 0).all()


@pytest.mark.slow
@pytest.mark.parametrize("pole", [1, -1])
def test_a_ring_around_a_pole_holds_it(pole):
    ring = [(lon, pole * 80.0) for lon in (-150, -30, 90)]
    found = polygon(WORLD, Polygon(ring))
    assert float(found.area) == pytest.approx((1 - np.sin(np.radians(80))) / 2 * EARTH)
    south, north = sorted((pole * 80, pole * 90))
    same = box(WORLD, -180, south, 180, north)
    assert int(found.cells) == int(same.cells)


@pytest.mark.slow
@pytest.mark.parametrize("begin", [-180, 0])
@pytest.mark.parametrize("pole", [1, -1])
def test_a_ring_around_a_pole_may_close_at_both_ends_of_a_turn(pole, begin):
    lat = [pole * y for y in (86, 87.3, 88, 83, 85.9, 87)]
    ring = [(begin + 60.0 * n, y) for n, y in enumerate(lat)]
    both = [*ring, (begin + 360, lat[0]), (begin, lat[0])]
    cap = fractions(polygon_rings(Polygon(ring)))
    for corners in (both, both[::-1], [*both[3:-1], *both[:4]]):
        agree(fractions(polygon_rings(Polygon(corners))), cap)
    # A band is none: its side goes on along the meridian.
    level = [(lon, pole * 88) for lon, _ in both[-2::-1]]
    band = [(begin, pole * 84), (begin + 360, pole * 84), *level]
    found = region(VIEW.latlon, polygon_rings(Polygon(band)))
    share = (np.sin(np.radians(88)) - np.sin(np.radians(84))) / 2
    assert found.area.sum() == pytest.approx(4 * np.pi * share)


@pytest.mark.slow
def test_pooling_is_weighted_by_area_over_cells_that_have_a_vector():
    ds = WORLD.sel(lat=slice(60, 50), lon=slice(0, 10)).copy(deep=True)
    rng = np.random.default_rng(0)
    there = rng.random(ds.pc.shape[:2]) < 0.6
    ds["pc"] = ds.pc.where(xr.DataArray(there, dims=("lat", "lon")))
    shape = Polygon([(1.1, 51.2), (6.3, 52.1), (4.2, 57.7)])
    want = expected(shape)
    row, col = np.array([*want]).T
    w = np.array([*want.values()]) * AREAS[row]
    row -= (90 - 60) * 4
    here = there[row, col]
    x = ds.pc.values[row, col]
    for lazy in (ds, ds.chunk(lat=11, lon=7), ds.chunk().transpose("component", ...)):
        found = polygon(lazy, shape)
        np.testing.assert_allclose(found.pc, np.average(x[here], 0, w[here]), rtol=1e-5)
        assert int(found.cells_missing) == (~here).sum()
        assert float(found.coverage) == pytest.approx(w[here].sum() / w.sum(), abs=1e-6)
        np.testing.assert_array_equal(polygon(lazy, shape, pooling="max").pc, x[here].max(0))
    cells = polygon(ds.chunk(), shape, pooling=None)
    assert cells.pc.chunks is not None
    np.testing.assert_allclose(
        cells.pc.weighted(cells.fraction * np.cos(np.radians(cells.lat))).mean(("lat", "lon")),
        found.pc,
        rtol=1e-4,
    )


def test_less_than_a_cell_is_answered_by_its_cell_and_counts_count():
    found = box(WORLD, 10.01, 48.01, 10.02, 48.02)
    assert found.pc.values.tolist() == [(90 - 48) * 4, 40]
    assert int(found.cells) == 1
    counted = WORLD.assign(n_images=(("lat", "lon"), np.zeros((721, 1440), "i4")))
    counted.n_images[(90 - 48) * 4, 40] = 1
    found = box(counted, 9, 47, 11, 49)
    assert found.pc.values.tolist() == [(90 - 48) * 4, 40]
    assert int(found.cells_missing) == int(found.cells) - 1
    with pytest.raises(CubeError, match=r"none of the .* cells of the region holds a vector"):
        box(counted, 20, 47, 21, 49)


def test_regions_that_the_dataset_reaches_in_part():
    europe = WORLD.sel(lat=slice(60, 40), lon=slice(0, 30))
    found = box(europe, -2, 50, 2, 51)
    assert float(found.coverage) == pytest.approx(2.125 / 4)
    with pytest.raises(GridError, match="does not reach the region; it has lat 40 to 60"):
        box(europe, -20, 50, -10, 51)


@pytest.mark.parametrize("step", [1.5, 0.7])
def test_coarser_grids(step):
    lat, lon = np.arange(60, 40, -step), np.arange(-7, 14, step)
    x = np.stack(np.meshgrid(np.arange(len(lat)), np.arange(len(lon)), indexing="ij"), -1)
    ds = xr.Dataset(
        {"pc": (("lat", "lon", "component"), x.astype("f8"), {"cell_degrees": [step, step]})},
        {"lat": lat, "lon": lon},
    )
    found = box(ds, lon[3] - step / 4, lat[5] - step / 4, lon[4] + step / 2, lat[5] + step / 2)
    np.testing.assert_allclose(found.pc, [5, (3 * 0.75 + 4) / 1.75], rtol=1e-6)
    assert int(found.cells) == 2
    assert float(box(ds, -9, 50, -6, 51).coverage) == pytest.approx((1 + step / 2) / 3)


def test_degrees_of_a_box_are_of_any_turn():
    here = box(WORLD, -10, 45, 10, 48)
    for turned in ((350, 45, 370, 48), (-370, 45, -350, 48)):
        xr.testing.assert_allclose(box(WORLD, *turned), here)


@pytest.mark.parametrize(
    ("corners", "message"),
    [
        ((5, 48, 10, 45), "south 48 lies north of north 45: corners are swapped"),
        ((5, 45, 5, 48), "the region from 5 to 5 and 45 to 48 is empty"),
        ((5, 45, 6, 45), "is empty; use at or points for single places"),
        ((5, 45, 10, 95), "is not a box; expected degrees"),
        ((np.nan, 45, 10, 48), "is not a box; expected degrees"),
        ((-300, 45, 300, 48), "is not a box; expected degrees, spanning at most 360"),
        ((-999, 45, -990, 48), "is not a box; expected degrees, spanning at most 360"),
        (("5", 45, 10, 48), r"west is '5' \(str\); expected one number"),
        ((5, None, 10, 48), "south is None"),
        ((5, 45, [10], 48), "east is"),
    ],
)
def test_boxes_that_make_no_sense_are_refused(corners, message):
    with pytest.raises(OptionError, match=message):
        box(WORLD, *corners)


def test_corners_may_be_an_array():
    ring = [[3, 50], [8, 50], [8, 55], [3, 50]]
    region = {"type": "Polygon", "coordinates": np.array([ring])}
    listed = {"type": "Polygon", "coordinates": [ring]}
    xr.testing.assert_identical(polygon(WORLD, region), polygon(WORLD, listed))


@pytest.mark.parametrize(
    ("geometry", "message"),
    [
        (Polygon(), "the region is empty"),
        (shapely.Point(1, 2), "the region is a Point; expected a Polygon"),
        (Polygon([(0, 0), (1, 1), (2, 2)]), "the polygon has no area"),
        (Polygon([(0, 0), (4, 4), (4, 0), (0, 4)]), "crosses itself|no area"),
        (shapely.MultiPolygon([shapely.box(0, 0, 2, 2), shapely.box(1, 1, 3, 3)]), "parts overlap"),
        ("no json", "the region is a str"),
        ({"type": "Polygon", "coordinates": [[1, 2], [3]]}, "not lists of"),
        ({"type": "Polygon", "coordinates": [[[0, 0], [1, 95], [2, 0]]]}, "a corner that is no"),
        ({"type": "Polygon", "coordinates": [[[0, 0], [1, 5]]]}, "has 2 corners"),
        ({"type": "FeatureCollection", "features": []}, "has 0 features; expected one region"),
        ({"crs": {"properties": {"name": "EPSG:3035"}}}, "has coordinates in EPSG:3035; expected"),
        (None, "the region is a NoneType"),
        ({"type": "Feature", "geometry": None}, "the feature has no geometry"),
    ],
)
def test_polygons_that_make_no_sense_are_refused(geometry, message):
    with pytest.raises(OptionError, match=message):
        polygon(WORLD, geometry)


def test_what_is_no_list_of_polygons_is_refused():
    # Letters, keys and names of columns were regions without an answer, one each.
    square = shapely.box(0, 40, 10, 60)
    for one in ("a.geojson", square.__geo_interface__, square, None, pd.DataFrame({"a": [square]})):
        with pytest.raises(OptionError, match=r"geometries is .*; expected a list of them"):
            polygons(WORLD, one)
    assert polygons(WORLD, iter([square])).status.values.tolist() == ["present"]


class Series(list):
    """What of a series of geopandas is used: shapes in grads, of which 400 make a turn."""

    crs = pyproj.CRS(4807)

    def to_crs(self, crs):
        return [shapely.transform(shape, lambda x: 0.9 * x) for shape in self]


def test_regions_in_no_degrees_are_brought_to_them():
    square = shapely.box(0, 36, 9, 54)
    grads = Series([shapely.transform(square, lambda x: x / 0.9)])
    np.testing.assert_allclose(polygons(WORLD, grads).pc[0], polygon(WORLD, square).pc, rtol=1e-6)


def test_the_extent_of_a_region_across_greenwich_is_told():
    # Least and greatest are 0 and 359.75, and 0° to 359.75° hold the point.
    lon = [359.75, 0, 0.25]
    ds = xr.Dataset({"pc": (("lat", "lon", "component"), np.ones((1, 3, 2)))}, {"lat": [45]})
    ds = ds.assign_coords(lon=lon)
    for look in (lambda: box(ds, 9, 45, 10, 46), lambda: ds.copembed.at(45, 9)):
        with pytest.raises(GridError, match=r"and lon -0.25 to 0.25"):
            look()
    era5 = xr.Dataset({"z": (("lat", "lon"), np.ones((1, 3)))}, {"lat": [45], "lon": [4, 5, 6]})
    with pytest.raises(CubeError, match=r"longitudes -0.25…0.25, era5 45…45 and 4…6"):
        ds.copembed.merge(era5)


def test_groups_are_pooled_each():
    both = xr.concat([WORLD, WORLD.where(WORLD.lat > 50)], "season").transpose("season", ...)
    found = box(both, 0, 40, 10, 60)
    assert found.pc.dims == ("season", "component")
    assert found.cells_missing.values[0] == 0 < found.cells_missing.values[1]
    with pytest.raises(OptionError, match="pooling='sum'; expected"):
        box(both, 0, 40, 10, 60, pooling="sum")
    with pytest.raises(OptionError, match="expected mean or max"):
        box(both, 0, 40, 10, 60, pooling=np.array(["mean", "max"]))
    assert np.isnan(box(both, 0, 40, 10, 45).pc.values[1]).all()


@pytest.mark.parametrize(("pooling", "named"), [("mean", "mean"), ("max", "maximum")])
def test_what_is_pooled_is_not_called_that_of_a_cell(pooling, named):
    europe = WORLD.sel(lat=slice(60, 40), lon=slice(0, 30))
    said = {"long_name": "embedding of the cell", "ancillary_variables": "spread n_images"}
    found = box(europe.assign(pc=europe.pc.assign_attrs(said)), 0, 40, 10, 45, pooling=pooling)
    assert found.pc.attrs == {
        "long_name": f"pc, {named} over the region",
        "cell_methods": f"area: {named}",
    }


def test_rings_of_a_box_begin_in_the_south_west():
    assert box_rings(350, 1, 10, 2)[0][0].tolist() == [[350, 1], [370, 1], [370, 2], [350, 2]]


@pytest.mark.parametrize("pooling", ["mean", "max"])
def test_a_region_without_a_vector_has_its_cells_all_the_same(pooling):
    shapes = [SHAPES["triangle"], shapely.box(0, 40, 10, 60)]
    empty = WORLD.where(WORLD.lat > 65)
    found = polygons(empty, shapes, pooling=pooling)
    for text, cells in zip(found.status.values, found.cells.values, strict=True):
        assert text.startswith(f"none of the {cells:,} cells of the region holds a vector")
    whole = polygons(WORLD, shapes, pooling=pooling)
    for name in ("cells", "area"):
        np.testing.assert_array_equal(found[name], whole[name])
    np.testing.assert_array_equal(found.cells_missing, whole.cells)
    assert found.pc.isnull().all()
    assert (found.coverage == 0).all()
    with pytest.raises(CubeError, match="cells of the region holds a vector"):
        polygon(empty, shapes[0], pooling=pooling)
    assert polygon(empty, shapes[0], pooling=None).pc.isnull().all()


@pytest.mark.slow
def test_one_bad_region_spoils_no_others(tmp_path, capsys):
    from copcube.lookup.boxes import polygons

    good = SHAPES["triangle"]
    far = shapely.box(40, 50, 41, 51)
    europe = WORLD.sel(lat=slice(60, 40), lon=slice(0, 30)).assign_coords(component=[0, 1])
    found = polygons(europe, [shapely.Point(1, 2), good, far])
    assert found.pc.dims == ("region", "component")
    np.testing.assert_array_equal(found.pc[1], polygon(europe, good).pc)
    assert found.pc[[0, 2]].isnull().all()
    says = found.status.values.tolist()
    assert (says[0][:23], says[1], says[2][:26]) == (
        "the region is a Point; ",
        "present",
        "the dataset does not reach",
    )
    features = [
        {"type": "Feature", "geometry": mapping(shape), "properties": {"name": name}}
        for shape, name in ((good, "a"), (far, "b"))
    ]
    path = tmp_path / "r.geojson"
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    europe.to_zarr(tmp_path / "c.zarr", consolidated=False)
    cube = str(tmp_path / "c.zarr")
    out = tmp_path / "o.csv"
    assert main(["box", cube, "--regions", str(path), "--out", str(out)]) == 0
    said = capsys.readouterr().err
    assert "region 2 of the file has no vector: the dataset does not reach" in said
    table = pd.read_csv(out)
    assert table.name.tolist() == ["a", "b"]
    assert table.status.str[:7].tolist() == ["present", "the dat"]
    np.testing.assert_allclose(table.pc_0[0], found.pc[1, 0], rtol=1e-6)
    # A number and a text: the cube was called damaged.
    features[0]["properties"]["name"] = 1
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    out = tmp_path / "o.parquet"
    assert main(["box", cube, "--regions", str(path), "--out", str(out)]) == 0
    assert pd.read_parquet(out).name.tolist() == ["1", "b"]
    # Properties have the names of results.
    features[0]["properties"] = {"area": 7, "status": "old", "pc": 3, "component": 1, "region": "x"}
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    for form in ("csv", "parquet"):
        out = tmp_path / f"names.{form}"
        assert main(["box", cube, "--regions", str(path), "--out", str(out)]) == 0
        assert "region 1 of the file" not in capsys.readouterr().err
        named = pd.read_csv(out) if form == "csv" else pd.read_parquet(out)
        assert named.area[0] == pytest.approx(float(found.area[1]))
        assert named.status[0] == "present"
        given = [named[name][0] for name in ("table_area", "table_status", "table_pc", "region")]
        assert [str(value) for value in given] in (
            ["7.0", "old", "3.0", "x"],
            ["7", "old", "3", "x"],
        )
    assert main(["box", cube, "5", "45", "10", "48"]) == 0
    assert "without a vector" in capsys.readouterr().out
    shapefile = tmp_path / "basins.shp"
    shapefile.write_bytes(b"\0\0\x27\x0a" + b"\xff" * 96)
    assert main(["box", cube, "--regions", str(shapefile)]) == 1
    said = capsys.readouterr().err
    assert "basins.shp: not GeoJSON; " in said
    assert "ogr2ogr -t_srs EPSG:4326 OUT.geojson IN" in said
    assert "codec" not in said
    shapefile.write_text("[" * 100_000)  # was said of the cube
    assert main(["box", cube, "--regions", str(shapefile)]) == 1
    assert "basins.shp: not GeoJSON (maximum recursion" in capsys.readouterr().err
    crs = {"type": "name", "properties": {"name": "urn:ogc:def:crs:EPSG::3035"}}
    other = tmp_path / "other.geojson"
    other.write_text(json.dumps({"type": "FeatureCollection", "crs": crs, "features": features}))
    (empty := tmp_path / "empty.geojson").write_text("{}")
    for wrong in (
        ["5", "45", "10"],
        ["5", "48", "10", "45"],
        ["--regions", str(other)],
        ["--regions", str(empty)],
        [],
    ):
        assert main(["box", cube, *wrong]) == 1
        assert capsys.readouterr().err.startswith("copcube: ")
