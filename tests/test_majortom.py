"""Major TOM's embeddings: files in and out, and their way to ERA5's lattice."""

import hashlib
import json
import logging
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import shapely
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

from copcube import aggregate as aggregation
from copcube import grid as lattice
from copcube import tutorial
from copcube.aggregate import Aggregation
from copcube.builds import aggregate
from copcube.cells import Cells
from copcube.cli import main
from copcube.cube import validate
from copcube.errors import BuildError, OptionError, RowsError
from copcube.files.objects import ObjectFolder
from copcube.parts import parts, runs
from copcube.products.majortom import (
    COLUMNS,
    Embeddings,
    Fragmentation,
    Grid,
    common,
    hilbert,
    load,
    reading,
    writing_embeddings,
)
from copcube.products.majortom.about import remarks
from copcube.products.majortom.sample import SETS, write_embeddings
from copcube.products.majortom.transposed import order, order_of
from copcube.products.overlap import overlaps
from copcube.rows import rows_files

GRID = Grid()


def some(cells, dim=6, size=224, *, transposed=False, seed=0):
    """Embeddings of all fragments of some cells, cell by cell in raster order."""
    row, col = GRID.parse(cells)
    boxes = Fragmentation(size).boxes(transposed=transposed)
    row, col = np.repeat(row, len(boxes)), np.repeat(col, len(boxes))
    products = [f"S2A_MSIL1C_20230119T161811_N0509_R111_{i}" for i in range(len(cells))]
    return Embeddings(
        row,
        col,
        np.repeat(np.array(products, object), len(boxes)),
        np.full(len(row), "20230119T161811", object),
        GRID.utm(row, col),
        np.tile(boxes, (len(cells), 1)),
        np.random.default_rng(seed).normal(size=(len(row), dim)).astype(np.float32),
    )


def write(path, *tables, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    with writing_embeddings(path, tables[0].embedding.shape[1], **options) as file:
        for table in tables:
            file.write(table)
    return path


def near(lat, lon, number=6):
    """Ids of cells side by side."""
    row, col = GRID.at(lat, lon)
    return GRID.names(row + np.arange(number) // 3, col + np.arange(number) % 3).tolist()


def released(path, rows, *, column="embedding", kind=None, drop=(), noted=False):
    """The same rows as others write them: in the order given, without notes of ours."""
    scratch = path.with_suffix(".ours")
    with writing_embeddings(scratch, rows.embedding.shape[1], row_group=1 << 30) as file:
        file.write(rows)
    table = pq.read_table(scratch)
    scratch.unlink()
    # Back from Hilbert's order to that of the rows.
    where = {
        (cell, *box): i
        for i, (cell, box) in enumerate(
            zip(
                table["grid_cell"].to_pylist(),
                table["pixel_bbox"].to_pylist(),
                strict=True,
            )
        )
    }
    names = GRID.names(rows.grid_row, rows.grid_col).tolist()
    take = [where[name, *box] for name, box in zip(names, rows.box.tolist(), strict=True)]
    table = table.take(take).drop_columns(["bbox", *drop])
    if kind is not None:
        i = table.schema.get_field_index("embedding")
        table = table.set_column(i, "embedding", table["embedding"].cast(kind))
    table = table.rename_columns([column if n == "embedding" else n for n in table.column_names])
    if not noted:
        table = table.replace_schema_metadata({})
    pq.write_table(table, path)
    return path


def cells_of(path, **options):
    """Statistics of cells as a cube gets them, and what the survey knows, without a cube."""
    asked = Aggregation(**options)
    all_parts = parts(rows_files(path))
    survey = aggregation.survey(all_parts, asked)
    found = [aggregation.combine(all_parts[run], asked, survey) for run in runs(all_parts)]
    for entries in aggregation.passes(survey):
        found.append(aggregation.combine_pass(all_parts, asked, survey, entries))
    return Cells.concatenate(found), survey.provenance


def assert_same(a, b, *, exact=False):
    """Hold the statistics of cells of one against those of another."""
    np.testing.assert_array_equal(a.grid_id, b.grid_id)
    np.testing.assert_array_equal(a.n_images, b.n_images)
    tolerance = {"rtol": 0} if exact else {"rtol": 1e-5, "atol": 1e-6}
    np.testing.assert_allclose(a.embedding, b.embedding, **tolerance)
    np.testing.assert_allclose(a.spread, b.spread, **tolerance)


# Files.


def test_columns_and_types_are_those_of_released_files(tmp_path):
    table = some(near(45, 7, 3))
    path = write(tmp_path / "part_00001.parquet", table)
    schema = pq.read_schema(path)
    assert tuple(schema.names) == (*COLUMNS, "bbox")
    kinds = dict(zip(schema.names, map(str, schema.types), strict=True))
    assert kinds.pop("bbox").startswith("struct<xmin: double")
    assert kinds == {
        **dict.fromkeys(("unique_id", "timestamp", "product_id", "grid_cell"), "string"),
        **dict.fromkeys(("utm_footprint", "utm_crs"), "string"),
        **dict.fromkeys(("grid_row_u", "grid_col_r"), "int16"),
        **dict.fromkeys(("centre_lat", "centre_lon"), "float"),
        "embedding": "list<element: float>",
        "geometry": "binary",
        "pixel_bbox": "list<element: int64>",
    }
    compression = pq.read_metadata(path).row_group(0).column(1).compression
    assert compression == "ZSTD"


def test_geometry_as_shapely_and_pyproj_have_it(tmp_path):
    import pyproj

    path = write(tmp_path / "a.parquet", some(["922D_249L", "451U_946L"]), published_ids=True)
    for row in pq.read_table(path).to_pylist():
        utm = shapely.from_wkt(row["utm_footprint"])
        assert utm.wkt == row["utm_footprint"]
        transformer = pyproj.Transformer.from_crs(row["utm_crs"], "EPSG:4326", always_xy=True)
        made = shapely.transform(utm, lambda p, t=transformer: np.stack(t.transform(*p.T), axis=1))
        given_ = shapely.from_wkb(row["geometry"])
        assert given_.is_valid
        np.testing.assert_allclose(shapely.get_coordinates(given_), shapely.get_coordinates(made))
        centre = made.centroid
        np.testing.assert_allclose(
            [row["centre_lat"], row["centre_lon"]], [centre.y, centre.x], rtol=1e-6
        )
        np.testing.assert_allclose(list(row["bbox"].values()), made.bounds)
        assert utm.area == pytest.approx(2240.0**2)
        # As Major TOM's embedder makes it.
        vector = np.array(row["embedding"], np.float32)
        text = f"{given_}_{row['timestamp']}_{row['product_id']}_{vector}"
        assert row["unique_id"] == hashlib.sha256(text.encode()).hexdigest()


def test_geoparquet_metadata_and_covering(tmp_path):
    path = write(tmp_path / "a.parquet", some(near(45, 7, 6)), row_group=40_000)
    geo = json.loads(pq.read_metadata(path).metadata[b"geo"])
    assert (geo["version"], geo["primary_column"]) == ("1.1.0", "geometry")
    column = geo["columns"]["geometry"]
    assert column["encoding"] == "WKB"
    assert column["geometry_types"] == ["Polygon"]
    assert column["covering"]["bbox"]["xmin"] == ["bbox", "xmin"]
    table = pq.read_table(path)
    bounds = shapely.total_bounds(shapely.from_wkb(table["geometry"].to_pylist()))
    np.testing.assert_allclose(column["bbox"], bounds)
    # Neighbours in a row group are neighbours along the curve.
    metadata, start = pq.read_metadata(path), 0
    assert metadata.num_row_groups == 3
    for group in range(3):
        n = metadata.row_group(group).num_rows
        part = table.slice(start, n)
        places = hilbert(part["centre_lat"].to_numpy(), part["centre_lon"].to_numpy())
        assert (np.diff(places) >= 0).mean() > 0.95  # centres are rounded to float32
        start += n


def test_a_footprint_across_180_is_divided_there(tmp_path):
    name = GRID.names(*GRID.at([-16.5], [179.999]))[0]
    rows = pq.read_table(write(tmp_path / "a.parquet", some([name]))).to_pylist()
    shapes = [shapely.from_wkb(row["geometry"]) for row in rows]
    kinds = {shape.geom_type for shape in shapes}
    assert kinds == {"Polygon", "MultiPolygon"}
    for row, shape in zip(rows, shapes, strict=True):
        assert shape.is_valid
        west, _, east, _ = shape.bounds
        assert -180 <= west <= east <= 180
        if shape.geom_type == "MultiPolygon":
            assert row["bbox"]["xmin"] > row["bbox"]["xmax"]  # RFC 7946, 5.2
            parts = sorted(part.bounds[0] for part in shape.geoms)
            assert parts[0] == -180
        assert abs(row["centre_lon"]) > 179
    areas = [shape.area for shape in shapes]
    np.testing.assert_allclose(areas, np.mean(areas), rtol=1e-3)


def test_geopandas_reads_it(tmp_path):
    geopandas = pytest.importorskip("geopandas")
    rows = some([*near(45, 7, 6), "922D_249L"])
    path = write(tmp_path / "a.parquet", rows, row_group=40_000)
    frame = geopandas.read_parquet(path)
    assert frame.crs == "OGC:CRS84"
    assert frame.geometry.is_valid.all()
    middles = [shape.centroid.y for shape in frame.geometry]  # in degrees, as the columns
    np.testing.assert_allclose(middles, frame.centre_lat, rtol=1e-6)
    few = geopandas.read_parquet(path, bbox=(-180, -85, -170, -80))
    assert set(few.grid_cell) == {"922D_249L"}
    assert len(few) == 25


@pytest.mark.slow
def test_duckdbs_spatial_reader_reads_it(tmp_path):
    duckdb = pytest.importorskip("duckdb")
    extension = pytest.importorskip("duckdb_extension_spatial")
    (file,) = Path(extension.__file__).parent.rglob("*.duckdb_extension")
    path = write(tmp_path / "a.parquet", some([*near(45, 7, 6), "922D_249L"]))
    with duckdb.connect(config={"allow_unsigned_extensions": "true"}) as database:
        database.execute(f"LOAD '{file}'")
        box = "ST_MakeEnvelope(-180, -85, -170, -80)"
        query = f"FROM '{path}' SELECT grid_cell, len(embedding) WHERE ST_Within(geometry, {box})"
        assert set(database.sql(query).fetchall()) == {("922D_249L", 6)}


@pytest.mark.slow
@given(st.data())
def test_hilberts_curve_visits_every_square_once_side_by_side(data):
    """Of any square of 16 × 16 of the order's finest, the places are 256 and steps are single."""
    x0, y0 = (16 * data.draw(st.integers(0, 4095)) for _ in range(2))
    x, y = (a.ravel() for a in np.meshgrid(x0 + np.arange(16), y0 + np.arange(16)))
    places = hilbert((y + 0.5) / 65535 * 180 - 90, (x + 0.5) / 65535 * 360 - 180)
    by = np.argsort(places)
    assert np.ptp(places) == 255
    assert (np.abs(np.diff(x[by])) + np.abs(np.diff(y[by])) == 1).all()


def test_what_is_written_is_read_back(tmp_path):
    table = some(near(45, 7), 5)
    path = write(tmp_path / "a.parquet", table, row_group=20_000)
    again = load(path)
    mine, theirs = common(table, again)
    assert len(mine) == len(table) == len(again)
    np.testing.assert_array_equal(table.embedding[mine], again.embedding[theirs])
    np.testing.assert_array_equal(table.epsg[mine], again.epsg[theirs])


def test_the_249k_family_has_two_columns_more(tmp_path):
    sets = write_embeddings(tmp_path / "sets", cells=30)
    for name, dim in SETS.items():
        table = pq.read_table(sets.folder / name)
        assert table.column_names == [*COLUMNS, "parquet_url", "parquet_row", "bbox"]
        assert {len(v) for v in table["embedding"].to_pylist()} == {dim}
    ids = [set(pq.read_table(sets.folder / name)["unique_id"].to_pylist()) for name in SETS]
    assert not set.intersection(*ids)  # so they join nothing
    loaded = [load(sets.folder / name) for name in list(SETS)[:3]]
    shuffled = loaded[1].take(np.random.default_rng(0).permutation(30))
    index = common(loaded[0], shuffled, loaded[2])
    for rows, i in zip((loaded[0], shuffled, loaded[2]), index, strict=True):
        assert rows.take(i).product_id.tolist() == loaded[0].product_id.tolist()
    assert loaded[0].parquet_row is not None


def test_writing_refuses(tmp_path):
    table = some(near(45, 7, 1))
    with (
        pytest.raises(RowsError, match="length 6; expected 5"),
        writing_embeddings(tmp_path / "a.parquet", 5) as file,
    ):
        file.write(table)
    with pytest.raises(RowsError, match="parquet_url"):
        write(tmp_path / "a.parquet", table, sources=True)
    table.embedding[3, 2] = np.nan
    with pytest.raises(RowsError, match=r"row 3.*not finite"):
        write(tmp_path / "a.parquet", table)
    assert not list(tmp_path.iterdir())


# To the lattice.


def test_by_centre_as_pandas_does_it(tmp_path):
    import pandas as pd

    rows = some(near(45.05, 7.1, 6) + near(-33.9, 18.5, 3))
    found, noted = cells_of(write(tmp_path / "a.parquet", rows))
    where = rows.footprints()
    ids = lattice.grid_id(*lattice.cell_at(np.float32(where.lat), np.float32(where.lon)))
    groups = pd.DataFrame(rows.embedding.astype(np.float64)).groupby(ids)
    order = pd.Index(found.grid_id)
    np.testing.assert_array_equal(found.n_images, groups.size()[order])
    np.testing.assert_allclose(found.embedding, groups.mean().loc[order], rtol=1e-5, atol=1e-7)
    spread = np.sqrt(groups.var(ddof=0).sum(axis=1))[order]
    np.testing.assert_allclose(found.spread, spread, rtol=1e-5)
    assert noted["footprints"] == "right in the files"


def test_by_area_as_shapely_does_it(tmp_path):
    rows = some(near(45.05, 7.1, 6) + near(71, -20, 3))
    found, _ = cells_of(write(tmp_path / "a.parquet", rows), assign="area")
    shapes = shapely.polygons(rows.footprints().corners)
    vectors = rows.embedding.astype(np.float64)
    for i, number in enumerate(found.grid_id.tolist()):
        lat, lon = lattice.centre(number)
        cell = shapely.box(lon - 0.125, lat - 0.125, lon + 0.125, lat + 0.125)
        weight = shapely.area(shapely.intersection(shapes, cell)) / shapely.area(shapes)
        assert found.n_images[i] == (weight > 1e-6).sum()
        mean = weight @ vectors / weight.sum()
        np.testing.assert_allclose(found.embedding[i], mean, rtol=1e-5, atol=1e-6)
        off = ((vectors - mean) ** 2).sum(axis=1)
        assert found.spread[i] == pytest.approx(np.sqrt(weight @ off / weight.sum()), rel=1e-5)
    assert found.n_images.sum() > len(rows)


@pytest.mark.parametrize("turned", [False, True])
def test_a_footprint_divided_at_180_counts_where_it_is_given(tmp_path, turned):
    """Also of an image that is smaller than the square of its cell, or lies beside it."""
    name = GRID.names(*GRID.at([-16.5], [179.999]))[0]
    path = released(tmp_path / "a.parquet", some([name]))
    table = pq.read_table(path)
    shapes = shapely.from_wkb(table["geometry"].to_pylist())
    assert (shapely.get_type_id(shapes) == shapely.GeometryType.MULTIPOLYGON).any()
    shapes = shapely.transform(shapes, lambda xy: xy + np.array([0, 0.1]))
    if turned:  # the second part of each the other way round
        ends = [shapely.get_geometry(shapes, i) for i in (0, -1)]
        both = [shapely.multipolygons([a, b.reverse()]) for a, b in zip(*ends, strict=True)]
        shapes = np.where(ends[0] == ends[1], shapes, both)
    i = table.schema.get_field_index("geometry")
    pq.write_table(table.set_column(i, "geometry", pa.array(shapely.to_wkb(shapes))), path)
    found = reading.read(path, [0], "area", "given")
    share = {(s, c): w for s, c, w in zip(found.source, found.grid_id, found.weight, strict=True)}
    assert len({source for source, _ in share}) == len(table)
    for source, cell in share:
        lat, lon = lattice.centre(int(cell))
        boxes = [
            shapely.box(lon + turn - 0.125, lat - 0.125, lon + turn + 0.125, lat + 0.125)
            for turn in (-360, 0, 360)
        ]
        inside = shapely.area(shapely.intersection(shapes[source], shapely.union_all(boxes)))
        weight = inside / shapely.area(shapes[source])
        assert share[source, cell] == pytest.approx(weight, abs=1e-9)
    sums = np.bincount(found.source, found.weight)
    np.testing.assert_allclose(sums, 1, atol=1e-5)


@pytest.mark.parametrize("cut", [5, 9, 20, 60, -8, -1])
def test_a_footprint_that_is_no_division_at_180_is_made_anew(tmp_path, cut):
    name = GRID.names(*GRID.at([-16.5], [179.999]))[0]
    path = released(tmp_path / "a.parquet", some([name]))
    whole = reading.read(path, [0], "area", "given")
    table = pq.read_table(path)
    spoilt = [b[:cut] if len(b) > 93 else b for b in table["geometry"].to_pylist()]
    i = table.schema.get_field_index("geometry")
    pq.write_table(table.set_column(i, "geometry", pa.array(spoilt)), path)
    found = reading.read(path, [0], "area", "given")
    np.testing.assert_array_equal(found.grid_id, whole.grid_id)
    np.testing.assert_allclose(found.weight, whole.weight, atol=1e-6)


@pytest.mark.parametrize("size", [224, 384])
def test_no_overlap_is_missed_where_corners_are_not_projected(tmp_path, size):
    """All corners of all fragments give the same, bit by bit, at any latitude and across 180°."""
    lat = np.random.default_rng(1).uniform(-84, 84, 80)
    lon = np.random.default_rng(2).uniform(-180, 180, 80)
    lon[:20] = np.linspace(179.5, 180.5, 20)
    lon[lon > 180] -= 360
    row, col = GRID.at(lat, lon)
    rows = some(sorted(set(GRID.names(row, col).tolist())), size=size)
    path = released(tmp_path / "a.parquet", rows, drop=["geometry"])
    polygon, cell, share = overlaps(rows.footprints().corners)
    found = reading.read(path, range(pq.read_metadata(path).num_row_groups), "area", "given")
    np.testing.assert_array_equal(found.source, polygon)
    np.testing.assert_array_equal(found.grid_id, cell)
    np.testing.assert_array_equal(found.weight, share)


def test_by_cell_no_footprint_counts(tmp_path):
    cells = near(45.05, 7.1, 6)
    right, _ = cells_of(write(tmp_path / "a.parquet", some(cells)), assign="cell")
    wrong = released(tmp_path / "b.parquet", some(cells, transposed=True))
    other, noted = cells_of(wrong, assign="cell")
    assert_same(right, other)
    assert set(right.n_images % 25) == {0}
    assert "footprints" not in noted


@pytest.mark.parametrize("assign", ["centre", "area"])
def test_transposed_footprints_are_found_and_put_back(tmp_path, assign):
    cells = near(45.05, 7.1, 6)
    right, wrong = some(cells), some(cells, transposed=True)
    files = {
        "wrong": released(tmp_path / "wrong.parquet", wrong),
        "right": released(tmp_path / "right.parquet", right),
        # What our own writer notes counts whatever the order of the rows.
        "noted": write(tmp_path / "noted.parquet", wrong, transposed=True),
    }
    assert [order_of(file) for file in files.values()] == ["transposed", "right", "transposed"]
    want, _ = cells_of(files["right"], assign=assign)
    for name in ("wrong", "noted"):
        # Fragment by fragment the vectors are the same, and so they must come to the same cells.
        found, noted = cells_of(files[name], assign=assign)
        assert_same(found, want)
        assert noted["footprints"] == "transposed in the files, and put back"
    left, noted = cells_of(files["wrong"], assign=assign, footprints="given")
    assert not np.array_equal(left.embedding, want.embedding)
    assert noted["footprints"] == "taken as given (transposed)"


@pytest.mark.slow
def test_what_is_done_about_footprints_is_said_and_kept(tmp_path, caplog):
    cells = near(45.05, 7.1, 2)
    wrong = some(cells, transposed=True)
    released(tmp_path / "wrong.parquet", wrong)
    mixed = wrong.take(np.random.default_rng(3).permutation(50))
    assert order_of(released(tmp_path / "mixed.parquet", mixed)) == "unknown"
    caplog.set_level(logging.WARNING)
    (said,) = remarks([tmp_path / "wrong.parquet"], "area", "auto")
    assert "1 of 1 files have transposed" in said
    aggregate(tmp_path / "mixed.parquet", tmp_path / "a.zarr", assign="area")
    assert "does not show whether footprints are transposed" in caplog.text
    attrs = xr.open_zarr(tmp_path / "a.zarr").attrs
    assert attrs["footprints"].startswith("taken as given")
    assert attrs["license"] == "CC-BY-SA-4.0"
    assert "share of its footprint" in attrs["aggregation_assign"]
    assert (attrs["modalities"], attrs["aggregation"]) == ("s2_toa", "mean over all images alike")
    with open(tmp_path / "a.zarr" / "conventions" / "zarr.json") as file:
        noted = json.load(file)["attributes"]
    assert noted["geoemb:model"] == "https://huggingface.co/Major-TOM"
    assert not validate(tmp_path / "a.zarr")
    swapped, _ = cells_of(tmp_path / "mixed.parquet", footprints="swap")
    assert_same(swapped, cells_of(write(tmp_path / "b.parquet", some(cells)))[0])


@pytest.mark.slow
@given(st.sampled_from([224, 384, 500]), st.booleans(), st.integers(-940, 940), st.integers(0, 9))
def test_order_of_a_raster(size, transposed, row, number):
    cells = GRID.names(*(a[number : number + 3] for a in GRID.cells(*[GRID.latitude(row)] * 2)))
    rows = some(cells.tolist(), 2, size, transposed=transposed)
    where = rows.footprints()
    cell = np.repeat(np.arange(3), len(Fragmentation(size)))
    found = order(cell, cell, where.lat, where.lon, rows.box)
    assert found == ("transposed" if transposed else "right")


@pytest.mark.parametrize(
    ("column", "kind"),
    [
        ("embeddings", None),
        ("embedding", pa.large_list(pa.float32())),
        ("embedding", pa.list_(pa.float64(), 6)),
        ("embeddings", pa.list_(pa.float16())),
    ],
)
def test_other_columns_and_types(tmp_path, column, kind):
    rows = some(near(45.05, 7.1, 3))
    rows.embedding[:] = np.round(rows.embedding * 8) / 8  # exact in float16
    drop = ("unique_id", "geometry", "utm_footprint", "grid_row_u", "grid_col_r")
    path = released(tmp_path / "a.parquet", rows, column=column, kind=kind, drop=drop)
    ours = write(tmp_path / "b.parquet", rows)
    for assign in ("centre", "area"):
        assert_same(cells_of(path, assign=assign)[0], cells_of(ours, assign=assign)[0])


@pytest.mark.slow
def test_no_bit_depends_on_files_or_their_order(tmp_path):
    rows = some(near(45.05, 7.1, 6), 40)
    write(tmp_path / "one" / "a.parquet", rows)
    mixed = rows.take(np.random.default_rng(1).permutation(len(rows)))
    for i in range(3):
        write(tmp_path / "three" / f"{i}.parquet", mixed.take(slice(i, None, 3)), row_group=20_000)
    for assign in ("centre", "area", "cell"):
        one, _ = cells_of(tmp_path / "one", assign=assign)
        three, _ = cells_of(tmp_path / "three", assign=assign)
        assert_same(one, three, exact=True)


def test_a_centre_that_180_degrees_broke_is_made_anew(tmp_path):
    """The released centroid of such a footprint is a mean of longitudes on both sides."""
    name = GRID.names(*GRID.at([-16.5], [179.999]))[0]
    rows = some([name])
    path = released(tmp_path / "a.parquet", rows)
    table = pq.read_table(path)
    lon = np.where(np.arange(25) % 5 > 2, 3.5, table["centre_lon"].to_numpy()).astype(np.float32)
    i = table.schema.get_field_index("centre_lon")
    pq.write_table(table.set_column(i, "centre_lon", pa.array(lon)), path)
    whole = write(tmp_path / "b.parquet", rows)
    for assign in ("centre", "area"):
        assert_same(cells_of(path, assign=assign)[0], cells_of(whole, assign=assign)[0])


@pytest.mark.slow
@given(st.integers(0, 2**32 - 1), st.floats(-84, 84), st.floats(-200, 200))
def test_shares_sum_to_one(seed, lat, lon):
    rng = np.random.default_rng(seed)
    angle = np.sort(rng.uniform(0, 2 * np.pi, 5))
    ring = np.stack([np.cos(angle), np.sin(angle)], axis=1) * rng.uniform(1e-3, 0.4)
    ring = np.concatenate([ring, ring[:1]]) + np.array([lon, lat])
    polygon, cell, share = overlaps(ring[np.newaxis])
    assert (polygon == 0).all()
    assert share.sum() == pytest.approx(1, abs=1e-4)
    assert len(set(cell.tolist())) == len(cell)


# Bad input.


def broken(tmp_path, change, cells=None):
    """A released file with one column changed at row 7."""
    path = released(tmp_path / "part.parquet", some(cells or near(45.05, 7.1, 2)))
    table = pq.read_table(path)
    for name, value in change.items():
        column = table[name].to_pylist()
        column[7] = value
        i = table.schema.get_field_index(name)
        kind = table.schema.field(name).type
        table = table.set_column(i, name, pa.array(column, kind))
    pq.write_table(table, path)
    return path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"grid_cell": "9D_249L"}, r"row 7 contradicts itself: cell 9D_249L.*drop such rows"),
        ({"grid_cell": "183D_1921R"}, r"row 7 contradicts itself"),  # near 180°
        ({"grid_cell": "nowhere"}, r"row 7: 'nowhere' is not an id of Major TOM's grid"),
        ({"grid_cell": None}, r"row 7: .*is not an id"),
        ({"centre_lat": 91.5}, r"row 7 lies outside the globe.*drop it"),
        ({"centre_lon": 187.1}, r"row 7 lies outside the globe"),
        ({"centre_lon": float("nan")}, r"row 7 lies outside the globe"),
        ({"pixel_bbox": [0, 0, 224]}, r"pixel_bbox of row 7 is not four numbers"),
        ({"pixel_bbox": [224, 0, 0, 224]}, r"pixel_bbox of row 7 is \[224, 0, 0, 224\]"),
        ({"utm_crs": "EPSG:4326"}, r"row 7: EPSG:4326 is not a UTM zone"),
        ({"utm_crs": "UTM 32"}, r"row 7: utm_crs is 'UTM 32'"),
        ({"product_id": "LC08_L1TP"}, r"row 7: product 'LC08_L1TP' has an unknown sensor"),
        ({"timestamp": "last year"}, r"column timestamp"),
        ({"embedding": [1.0, 2.0]}, r"row 7 has an embedding of length 2; expected 6"),
        ({"embedding": None}, r"row 7 has no embedding"),
        ({"embedding": [1.0, 2, 3, 4, 5, float("inf")]}, r"embedding of row 7.*not finite"),
    ],
)
def test_a_bad_row_is_refused_with_file_and_row(tmp_path, change, message):
    path = broken(tmp_path, change)
    with pytest.raises(RowsError, match=message) as caught:
        cells_of(path, footprints="given")
    assert "part.parquet" in str(caught.value)


def test_boxes_of_fractions_are_refused_by_file(tmp_path):
    path = released(tmp_path / "part.parquet", some(near(45.05, 7.1, 2)))
    table = pq.read_table(path)
    halves = pa.array([[0.5, 0.0, 224.5, 224.0]] * len(table))
    table = table.set_column(table.schema.get_field_index("pixel_bbox"), "pixel_bbox", halves)
    pq.write_table(table, path)
    with pytest.raises(RowsError, match=r"part\.parquet: pixel_bbox does not hold whole numbers"):
        cells_of(path, footprints="given")


def test_a_file_without_rows(tmp_path):
    rows = some(near(45, 7, 1))
    write(tmp_path / "a.parquet", rows)
    write(tmp_path / "b.parquet", rows.take(slice(0)))
    for assign in ("centre", "area", "cell"):
        assert_same(
            cells_of(tmp_path, assign=assign)[0], cells_of(tmp_path / "a.parquet", assign=assign)[0]
        )
    with pytest.raises(BuildError, match="no image is left"):
        aggregate(tmp_path / "b.parquet", tmp_path / "a.zarr")


def test_files_in_a_bucket_are_read_where_they_lie(memory, tmp_path):
    sets = write_embeddings(tmp_path / "sets", cells=20)
    name = "Core-S2L2A-249k-SatCLIP"
    for path in (sets.folder / name).iterdir():
        ObjectFolder(f"{memory}/{name}").write(path.name, path.read_bytes())
    there, noted = cells_of(f"{memory}/{name}", assign="area")
    assert_same(there, cells_of(sets.folder / name, assign="area")[0], exact=True)
    assert noted["encoder"] == name


def test_other_columns_are_refused(tmp_path):
    pq.write_table(pa.table({"a": [1], "b": [2]}), tmp_path / "a.parquet")
    with pytest.raises(RowsError, match="grid_id_coord"):
        cells_of(tmp_path / "a.parquet")
    released(tmp_path / "b.parquet", some(near(45, 7, 1)), drop=("centre_lat", "utm_crs"))
    with pytest.raises(RowsError, match=r"Major TOM.*utm_crs, centre_lat are missing"):
        cells_of(tmp_path / "b.parquet")
    released(tmp_path / "c.parquet", some(near(45, 7, 1)), drop=("embedding",))
    with pytest.raises(RowsError, match="embedding is missing"):
        cells_of(tmp_path / "c.parquet")


def test_models_are_not_mixed(tmp_path):
    sets = write_embeddings(tmp_path / "sets", cells=5)
    with pytest.raises(RowsError, match=r"length 1024.*one encoder at a time"):
        cells_of(sets.folder)
    for name in ("Core-S2RGB-249k-FarSLIP", "Core-S2L2A-249k-SatCLIP"):
        (sets.folder / name).rename(tmp_path / name)
    with pytest.raises(RowsError, match=r"different encoders.*FarSLIP"):
        cells_of(str(tmp_path / "Core-*" / "*.parquet"))
    # As their makers did it, faults and all, is another model.
    for compat, row in (("majortom", 45), ("none", 46)):
        about = {"encoder": "dinov2", "compat": compat}
        write(tmp_path / "two" / f"{compat}.parquet", some(near(row, 7, 1)), about=about)
    with pytest.raises(RowsError, match=r"compat: majortom and none"):
        cells_of(tmp_path / "two")
    assert cells_of(tmp_path / "two" / "majortom.parquet")[1]["compat"] == "majortom"
    # Without names of sets, the same fragment twice tells.
    for i, seed in enumerate((0, 1)):
        released(tmp_path / f"{i}.parquet", some(near(45, 7, 1), seed=seed))
    with pytest.raises(RowsError, match=r"has two rows, in .*0.parquet and in .*1.parquet"):
        cells_of(str(tmp_path / "?.parquet"))


def test_options_that_mean_nothing_for_rows_of_images(tmp_path):
    from strategies import random_rows, write_rows

    write_rows(tmp_path / "rows.parquet", random_rows(20), {})
    with pytest.raises(OptionError, match="assign='area'"):
        cells_of(tmp_path / "rows.parquet", assign="area")
    with pytest.raises(OptionError, match="expected centre or area or cell"):
        cells_of(tmp_path / "rows.parquet", assign="nearest")
    write(tmp_path / "tom.parquet", some(near(45, 7, 1)))
    with pytest.raises(RowsError, match="separate folders"):
        cells_of(tmp_path)


def test_joining_refuses(tmp_path):
    rows = some(near(45, 7, 1))
    with pytest.raises(RowsError, match="no fragment in common"):
        common(rows, some(near(-10, 7, 1)))
    with pytest.raises(RowsError, match=r"row 3 has the fragment .* a second time"):
        common(rows.take([0, 1, 2, 1]), rows)


# The documented example.


@pytest.mark.slow
def test_models_on_one_grid(tmp_path):
    sample = ["sample", str(tmp_path / "sets"), "--layout", "majortom-embeddings", "--cells", "150"]
    assert not main([*sample, "-q"])
    cubes = {}
    for name in list(SETS)[1::2]:
        out = str(tmp_path / f"{name}.zarr")
        rows = str(tmp_path / "sets" / name)
        assert not main(["aggregate", rows, out, "--assign", "cell", "--footprints", "given", "-q"])
        cubes[name] = xr.open_zarr(out, chunks=None).sel(lat=slice(53, 43), lon=slice(3, 17)).load()
        assert cubes[name].attrs["encoder"] == name
        assert cubes[name].attrs["license"] == "CC-BY-SA-4.0"
        assert cubes[name].sizes["dim"] == SETS[name]
    first, *others = cubes.values()
    for other in others:
        np.testing.assert_array_equal(first.n_images, other.n_images)
        assert first.copembed.compare(other).cka > 0.9
    fields = first.copembed.reduce(k=3)
    assert fields.attrs["license"] == "CC-BY-SA-4.0"
    statics = tutorial.statics()
    merged = fields.copembed.merge(statics)
    assert {"pc", "z"} <= set(merged)
