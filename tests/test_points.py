"""Points of tables, against xarray's selection, SciPy's interpolation and closed forms."""

import warnings

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from scipy.interpolate import RegularGridInterpolator

from copcube import grid
from copcube.cli import main
from copcube.errors import OptionError
from copcube.lookup import points
from copcube.lookup.points import STATUS
from copcube.lookup.tables import write_table

LAT, LON = np.arange(60, 40, -0.25), np.arange(-10, 10, 0.25)
DIM = 3


def cube(filled=0.7, seed=0):
    """A cube of a region, with images of two modalities of three."""
    rng = np.random.default_rng(seed)
    there = rng.random((len(LAT), len(LON))) < filled
    x = np.where(there[..., None], rng.normal(size=(*there.shape, DIM)), np.nan).astype("f4")
    by = np.stack([there, there & (rng.random(there.shape) < 0.5), 0 * there]).astype("i4")
    return xr.Dataset(
        {
            "embedding": (("lat", "lon", "dim"), x, {"units": "1"}),
            "n_images": (("lat", "lon"), by.sum(0).astype("i4")),
            "n_images_by_modality": (("modality", "lat", "lon"), by),
        },
        {
            "lat": ("lat", LAT, {"units": "degrees_north"}),
            "lon": LON,
            "modality": (
                "modality",
                np.arange(3, dtype="i1"),
                {"flag_values": [0, 1, 2], "flag_meanings": "s2_toa dem s1_grd"},
            ),
        },
        {"modalities": "s2_toa dem"},
    )


CUBE = cube()
rng = np.random.default_rng(5)
Y, X = rng.uniform(41, 59, 400), rng.uniform(-9, 9, 400)
SAMPLES = {
    "in memory": CUBE,
    "chunks": CUBE.chunk(lat=17, lon=33),
    "chunks of vectors": CUBE.chunk(lat=50, dim=2),
    "transposed": CUBE.transpose("dim", "lon", "modality", "lat").chunk(lon=20),
    "south first": CUBE.sortby("lat").chunk(lat=9),
    "0 to 360": CUBE.assign_coords(lon=CUBE.lon % 360).chunk(lon=30),
}


@pytest.mark.parametrize("name", SAMPLES)
def test_nearest_is_the_selection_of_xarray(name):
    found = points(SAMPLES[name], (Y, X))
    want = CUBE.sel(
        lat=xr.DataArray(Y, dims="point"), lon=xr.DataArray(X, dims="point"), method="nearest"
    )
    np.testing.assert_array_equal(found.embedding.transpose("point", "dim"), want.embedding)
    np.testing.assert_array_equal(found.n_images, want.n_images)
    np.testing.assert_array_equal(found.cell_lat, want.lat)
    np.testing.assert_allclose((found.cell_lon - want.lon + 180) % 360, 180)
    np.testing.assert_array_equal(found.lat, Y)
    by = found.n_images_by_modality.values
    expected = np.select([~(by.sum(0) > 0), (by[:2] > 0).all(0)], [2, 0], 1)
    np.testing.assert_array_equal(found.status, expected)
    assert set(expected) == {0, 1, 2}


def test_from_zarr_with_and_without_dask(tmp_path):
    CUBE.to_zarr(
        tmp_path / "c.zarr", encoding={"embedding": {"chunks": (20, 20, DIM)}}, consolidated=False
    )
    want = points(CUBE, (Y, X))
    for chunks in ({}, None):
        ds = xr.open_zarr(tmp_path / "c.zarr", chunks=chunks, consolidated=False)
        xr.testing.assert_equal(points(ds, (Y, X)), want)


def test_other_schedulers_give_the_same():
    import dask

    want = points(CUBE, (Y, X))
    with dask.config.set(scheduler="synchronous"):
        xr.testing.assert_equal(points(SAMPLES["chunks"], (Y, X)), want)


def test_distance_is_that_along_a_great_circle():
    from sklearn.metrics.pairwise import haversine_distances

    found = points(CUBE, (Y, X))
    cells = np.radians(np.stack([found.cell_lat, found.cell_lon], 1))
    want = haversine_distances(np.radians(np.stack([Y, X], 1)), cells).diagonal() * 6371.0088
    np.testing.assert_allclose(found.distance, want, rtol=1e-5, atol=1e-4)


def test_bilinear_is_that_of_scipy_where_all_corners_are_there():
    whole = cube(filled=2)
    found = points(whole.chunk(lat=13, lon=13), (Y, X), method="bilinear")
    assert found.embedding.long_name == "embedding, interpolated between cells"
    values = whole.embedding.values[::-1].astype(float)
    want = RegularGridInterpolator((LAT[::-1], LON), values)(np.stack([Y, X], 1))
    np.testing.assert_allclose(found.embedding, want, atol=2e-6)


def test_bilinear_leaves_out_missing_corners():
    ds = cube(filled=2).isel(lat=slice(0, 2), lon=slice(0, 2)).copy(deep=True)
    ds.embedding[0, 0], ds.n_images[0, 0] = np.nan, 0
    a, b, c = (ds.embedding[place].values for place in ((0, 1), (1, 0), (1, 1)))
    lat, lon = LAT[0] - 0.05, LON[0] + 0.1  # a fifth of the way down, two fifths along
    want = (0.8 * 0.4 * a + 0.2 * 0.6 * b + 0.2 * 0.4 * c) / (1 - 0.8 * 0.6)
    found = points(ds, ([lat], [lon]), method="bilinear")
    np.testing.assert_allclose(found.embedding[0], want, rtol=1e-5)
    assert int(found.status[0]) in (0, 1)
    # On a node the others count for nothing, and this one is missing.
    on_it = points(ds, ([LAT[0]], [LON[0]]), method="bilinear")
    assert STATUS[int(on_it.status[0])] == "no_image"
    assert on_it.embedding.isnull().all()


@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_on_the_nodes_of_coarser_grids_too_the_others_count_for_nothing(dtype):
    # Multiples of 0.7 are rounded, so that neighbours have weights of some 1e-15, or 1e-5.
    lat, lon = (first + 0.7 * np.arange(15).astype(dtype) for first in (20, 3.1))
    x = cube(filled=0.5).embedding.values[:15, :15]
    ds = xr.Dataset({"embedding": (("lat", "lon", "dim"), x)}, {"lat": lat, "lon": lon})
    y, x_ = np.meshgrid(lat, lon, indexing="ij")
    found = points(ds, (y.ravel(), x_.ravel()), method="bilinear")
    np.testing.assert_allclose(found.embedding, x.reshape(-1, DIM), atol=1e-4)
    np.testing.assert_array_equal(found.status == 0, np.isfinite(x).all(-1).ravel())


def test_bilinear_across_greenwich_and_at_the_poles():
    rows, cols = np.meshgrid(np.arange(721), np.arange(1440), indexing="ij")
    x = np.stack([rows, np.cos(np.radians(cols / 4))], -1)
    ds = xr.Dataset(
        {"pc": (("lat", "lon", "component"), x)},
        {"lat": grid.latitudes(), "lon": grid.longitudes()},
    )
    found = points(ds, ([90, -90, 12.3], [10, -170, -0.1]), method="bilinear").pc.values
    np.testing.assert_allclose(found[:, 0], [0, 720, (90 - 12.3) * 4])
    np.testing.assert_allclose(found[2, 1], 0.6 + 0.4 * np.cos(np.radians(0.25)), rtol=1e-6)


def test_bilinear_in_the_western_half_of_the_first_column():
    # 0.7° do not close the circle: columns of a whole turn end within a column.
    lat, lon = 50 - 0.7 * np.arange(4), 20 + 0.7 * np.arange(5)
    x = np.random.default_rng(0).normal(size=(4, 5, 3))
    ds = xr.Dataset({"pc": (("lat", "lon", "component"), x)}, {"lat": lat, "lon": lon})
    for away in (-0.3, -0.1, 0.0):
        found = points(ds, ([lat[1]], [lon[0] + away]), method="bilinear")
        np.testing.assert_allclose(found.pc[0], x[1, 0])


BAD = [(np.nan, 0), (0, np.inf), (91, 0), (50, 400), (-999, -999)]


def test_a_point_may_be_given_by_numbers():
    one = points(cube(), {"lat": 48.1, "lon": 11.6, "name": "Munich"})
    assert one.drop_vars("point").equals(
        points(cube(), {"lat": [48.1], "lon": [11.6], "name": ["Munich"]}).drop_vars("point")
    )


def test_flags_are_no_degrees():
    found = points(CUBE, {"lat": [True, False], "lon": [5, 6]})
    assert [STATUS[n] for n in found.status.values] == ["not_a_place"] * 2


def test_every_point_has_a_status_and_bad_rows_spoil_no_others():
    empty = np.argwhere(CUBE.n_images.values == 0)[0]
    rows = [*BAD, (0, 0), (LAT[empty[0]], LON[empty[1]]), (Y[0], X[0])]
    found = points(CUBE.chunk(), tuple(zip(*rows, strict=True)))
    names = [STATUS[n] for n in found.status.values]
    assert names[:7] == ["not_a_place"] * 5 + ["outside_cube", "no_image"]
    assert names[7] == STATUS[int(points(CUBE, (Y[:1], X[:1])).status[0])]
    assert found.embedding[:7].isnull().all()
    assert found.distance.isnull().values.tolist() == [True] * 6 + [False] * 2
    assert found.status.attrs["flag_meanings"].split() == list(STATUS)


def test_a_frame_comes_back_with_its_index_its_columns_and_its_order():
    frame = pd.DataFrame(
        {
            "Latitude": Y[:4],
            "LONGITUDE": X[:4],
            "status": list("abcd"),
            "when": pd.Timestamp("2021"),
        },
        index=pd.Index([7, 3, 3, 9], name="station"),
    )
    found = points(CUBE, frame)
    assert found.embedding.dims == ("station", "dim")
    assert found.station.values.tolist() == [7, 3, 3, 9]
    assert found.table_status.values.tolist() == list("abcd")
    np.testing.assert_array_equal(found.lat, Y[:4])
    np.testing.assert_array_equal(found.embedding, points(CUBE, (Y[:4], X[:4])).embedding)
    pairs = points(CUBE, frame.set_index(["status", "when"]))
    assert pairs["table_status"].dims == ("point",)
    named = points(CUBE, {"a": Y[:4], "b": X[:4]}, lat="a", lon="b")
    xr.testing.assert_equal(
        named.embedding.drop_vars(named.embedding.coords),
        pairs.embedding.drop_vars(pairs.embedding.coords),
    )


def test_points_of_a_dataset_keep_their_dimensions():
    mesh = xr.Dataset(
        {"lat": (("y", "x"), Y[:6].reshape(2, 3)), "lon": (("x", "y"), X[:6].reshape(2, 3).T)},
        {"y": ["a", "b"]},
    )
    found = points(CUBE, mesh)
    assert found.embedding.dims == ("y", "x", "dim")
    flat = points(CUBE, (Y[:6], X[:6]))
    np.testing.assert_array_equal(found.embedding.values.reshape(6, -1), flat.embedding)
    assert found.y.values.tolist() == ["a", "b"]


class Points:
    """A column of geometries, as geopandas has them, in degrees."""

    crs = None
    name = "geometry"

    def __init__(self, y, x):
        self.y, self.x = np.asarray(y), np.asarray(x)
        self.geom_type = pd.Series(["Point"] * len(self.y))
        self.is_empty = pd.Series([False] * len(self.y))

    def __len__(self):
        return len(self.y)

    def isna(self):
        return ~(self.is_empty | True)

    def __getitem__(self, mask):
        return Points(self.y[mask], self.x[mask])


class Frame(pd.DataFrame):
    """What of geopandas's frame is used."""

    @property
    def geometry(self):
        return Points(self.attrs["y"], self.attrs["x"])

    def to_crs(self, crs):
        raise AssertionError("there is none")


def test_geometries_of_a_frame():
    frame = Frame({"geometry": [0, 0], "name": ["a", "b"]})
    frame.attrs |= {"y": Y[:2], "x": X[:2]}
    found = points(CUBE, frame)
    np.testing.assert_array_equal(found.embedding, points(CUBE, (Y[:2], X[:2])).embedding)
    assert found.name.values.tolist() == ["a", "b"]


def test_geopandas():
    geopandas = pytest.importorskip("geopandas")
    frame = geopandas.GeoDataFrame(
        {"name": ["a", "b"]}, geometry=geopandas.points_from_xy(X[:2], Y[:2]), crs=4326
    )
    want = points(CUBE, (Y[:2], X[:2])).embedding
    for crs in (4326, 3857, 3035):
        np.testing.assert_array_equal(points(CUBE, frame.to_crs(crs)).embedding, want)
    # Columns that are named are taken, and not the geometries.
    named = frame.assign(y=Y[2:4], x=X[2:4])
    assert points(CUBE, named, lat="y", lon="x").lat.values.tolist() == Y[2:4].tolist()
    with pytest.raises(OptionError, match="no column 'nowhere'"):
        points(CUBE, named, lat="nowhere")


def test_rows_of_a_structured_array():
    rows = np.array(list(zip(Y[:2], X[:2], strict=True)), [("lat", "f8"), ("lon", "f8")])
    want = points(CUBE, (Y[:2], X[:2])).embedding
    for table in (rows, rows.view(np.recarray)):
        np.testing.assert_array_equal(points(CUBE, table).embedding, want)


def test_no_column_of_the_table_is_lost(tmp_path):
    table = {"point": ["a", "b"], "lat": [0, 0], "y": Y[:2], "x": X[:2]}
    found = points(CUBE, table, lat="y", lon="x")
    assert found.table_point.values.tolist() == ["a", "b"]
    assert found.table_lat.values.tolist() == [0, 0]
    assert found.lat.values.tolist() == Y[:2].tolist()
    dataset = xr.Dataset(coords={name: ("point", values) for name, values in table.items()})
    found = points(CUBE, dataset, lat="y", lon="x")
    assert found.table_lat.values.tolist() == [0, 0]
    assert found.lat.values.tolist() == Y[:2].tolist()
    levels = pd.MultiIndex.from_arrays([[5, 6], ["c", "d"]], names=["lon", "k"])
    frame = pd.DataFrame({"k": [7, 8], "y": Y[:2], "x": X[:2]}, levels)
    found = points(CUBE, frame, lat="y", lon="x")
    assert found.k.values.tolist() == ["c", "d"]
    assert found.table_k.values.tolist() == [7, 8]
    assert found.table_lon.values.tolist() == [5, 6]
    write_table(
        points(CUBE, {"point": ["a", "b"], "lat": Y[:2], "lon": X[:2]}), tmp_path / "t.CSV", False
    )
    assert pd.read_csv(tmp_path / "t.CSV")["table_point"].tolist() == ["a", "b"]


def test_ones_of_a_converted_map_are_no_counts(tmp_path, capsys):
    converted = CUBE.drop_vars("n_images_by_modality").assign_attrs(n_images_known=0)
    for known, ds in {True: CUBE, False: converted}.items():
        write_table(points(ds, (Y[:2], X[:2])), tmp_path / f"{known}.csv", False)
        assert ("n_images" in pd.read_csv(tmp_path / f"{known}.csv")) is known
        ds.to_zarr(path := tmp_path / f"{known}.zarr", consolidated=False)
        assert main(["at", str(path), "50", "3"]) == 0
        assert ("n_images" in capsys.readouterr().out) is known


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_what_points_wrote_is_a_table_of_points_too(tmp_path, form):
    first, second = tmp_path / f"a.{form}", tmp_path / f"b.{form}"
    write_table(points(CUBE, (Y[:2], X[:2])), first, False)
    write_table(points(CUBE.isel(lat=slice(None, None, -1)), first), second, False)
    before, after = (
        pd.read_csv(path) if form == "csv" else pd.read_parquet(path) for path in (first, second)
    )
    for name in before:
        np.testing.assert_array_equal(np.stack(after[name]), np.stack(before[name]))
        if name not in ("lat", "lon"):
            np.testing.assert_array_equal(np.stack(after[f"table_{name}"]), np.stack(before[name]))
    assert len(after.columns) == 2 * len(before.columns) - 2


@pytest.mark.parametrize(
    ("before", "names", "end"),
    [
        ("", '"name; of; the; station",lat,lon', ""),
        ("\n\r\n", "name;lat;lon", ""),
        ("", "name;lat;lon", ";"),
        ("sep=;\n", "name;lat;lon", ""),
        ('\ufeff"sep=;"\n', "name;lat;lon", ""),
        ("sep=,\n", '"name; of; it",lat,lon', "\nlong,50,1,2,3"),
        ("\n", '"name, of it",lat,lon', "\nlong,50,1,2,3"),
    ],
)
def test_how_a_table_is_separated(tmp_path, before, names, end):
    mark = ";" if names.endswith(";lon") else ","
    rows = [f"{name}{mark}{y}{mark}{x}{end}" for name, y, x in zip("ab", Y, X, strict=False)]
    (tmp_path / "t.csv").write_text(before + "\n".join([names, *rows]), encoding="utf-8")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = points(CUBE, tmp_path / "t.csv")
    # The oldest pandas reads some numbers to the last bit but one.
    np.testing.assert_allclose(found.lat.values[found.lat != 50], Y[:2], rtol=1e-15)
    name = next(name for name in found.coords if "name" in str(name))
    assert found[name].values[found.lat != 50].tolist() == ["a", "b"]


@pytest.mark.parametrize("form", ["csv", "semicolons", "parquet"])
def test_files(tmp_path, form):
    frame = pd.DataFrame({"wmo": ["06610", "10", "x"], "lat": Y[:3], "lon": X[:3]})
    path = tmp_path / ("t.parquet" if form == "parquet" else "t.csv")
    if form == "parquet":
        frame.set_index("wmo").to_parquet(path)
    elif form == "csv":
        text = frame.to_csv(index=False)
        path.write_text(text.replace("x,", "x, ") + "bad,here,1\nlong,50,1,2,3\nshort,50\n")
    else:
        frame.to_csv(path, sep=";", decimal=",", index=False)
    found = points(CUBE, path)
    np.testing.assert_array_equal(found.embedding[:3], points(CUBE, (Y[:3], X[:3])).embedding)
    assert found.wmo.values.tolist()[:3] == ["06610", "10", "x"]
    if form == "csv":
        assert [STATUS[n] for n in found.status.values[3:]][::2] == ["not_a_place"] * 2
        assert float(found.lat[4]) == 50


def test_counts_of_modalities_are_written_alike_from_a_transposed_cube(tmp_path):
    """As many points as modalities: nothing but names tells the two axes apart."""
    cubes = {"one": CUBE, "other": CUBE.transpose("lon", "lat", "dim", "modality")}
    for name, ds in cubes.items():
        write_table(points(ds, (Y[:3], X[:3])), tmp_path / f"{name}.csv", False)
    one, other = (pd.read_csv(tmp_path / f"{name}.csv") for name in cubes)
    pd.testing.assert_frame_equal(other, one)


@pytest.mark.parametrize(
    ("rows", "row"),
    [
        (["45,5,7,25", "46,0,8,25"], "45,5,7,25"),  # decimal commas
        (["45,7", "45,5,7,25"], "45,5,7,25"),
        (["45,7,", "46,8,"], None),  # a separator at the end says nothing
        (["45,7", "46,8,,"], None),
    ],
)
def test_fields_that_are_left_out_are_named(tmp_path, caplog, rows, row):
    (tmp_path / "t.csv").write_text("\n".join(["lat,lon", *rows]))
    found = points(CUBE, tmp_path / "t.csv")
    assert found.lat.values.tolist() == [float(line.split(",")[0]) for line in rows]
    said = [record.message for record in caplog.records]
    assert len(said) == (row is not None)
    if row is not None:
        assert f"the row {row} has 4 fields for 2 names" in said[0]


def test_a_field_with_which_a_reader_ends_the_table_is_refused(tmp_path):
    (tmp_path / "t.csv").write_text(f"lat,lon\n45,7\n46,8,9\n47,7,{'9' * 200_000}\n48,7")
    with pytest.raises(OptionError, match=r"t\.csv: not a readable table \(field larger than"):
        points(CUBE, tmp_path / "t.csv")


@pytest.mark.parametrize("form", ["csv", "frame", "parquet"])
def test_long_numbers_beside_a_missing_one_keep_their_digits(tmp_path, form):
    # As floats both would be 1.152921504606847e+18.
    given = pd.array([2**60 + 1, 2**60 + 2, None], "Int64")
    table = pd.DataFrame({"id": given, "few": pd.array([1, 2, None], "Int64")})
    table = table.assign(lat=Y[:3], lon=X[:3])
    path = tmp_path / f"t.{form}"
    if form == "frame":
        found = points(CUBE, table)
    else:
        table.to_csv(path, index=False) if form == "csv" else table.to_parquet(path)
        found = points(CUBE, path)
    assert list(map(str, found.id.values[:2])) == [str(2**60 + 1), str(2**60 + 2)]
    assert found.few.values[:2].tolist() == [1, 2]
    write_table(found, tmp_path / "o.parquet", False)
    again = pd.read_parquet(tmp_path / "o.parquet", dtype_backend="numpy_nullable")
    assert again.id.astype(str).tolist()[:2] == [str(2**60 + 1), str(2**60 + 2)]


def test_letters_of_spreadsheets_are_kept(tmp_path, caplog):
    names = ["Müller", "Möller", "Zürich – West"]
    frame = pd.DataFrame({"Näme": names, "lat": Y[:3], "lon": X[:3]})
    for encoding in ("cp1252", "utf-8", "utf-8-sig"):
        path = tmp_path / f"{encoding}.csv"
        frame.to_csv(path, sep=";", decimal=",", index=False, encoding=encoding)
        assert points(CUBE, path)["Näme"].values.tolist() == names
        said = [r.message for r in caplog.records]
        assert said == [
            f"{tmp_path}/cp1252.csv is not UTF-8 and is read as Windows-1252; save it as UTF-8 "
            "if letters come out wrong"
        ]


@pytest.mark.parametrize(
    ("table", "names", "message"),
    [
        (
            {"a": [1], "lon": [2]},
            {},
            r"no column named lat or latitude; it has a, lon: name it with lat= \(--lat\)",
        ),
        ({"lat": [1], "lon": [2]}, {"lat": "y"}, "no column 'y'; it has lat, lon"),
        ({"lat": [1], "lon": [1, 2]}, {}, "do not form a table"),
        (([1, 2], [1]), {}, "expected as many latitudes as longitudes"),
        ([1, 2, 3], {}, "has 3 parts; expected two, latitudes and"),
        ([{"lat": 45, "lon": 7}, {"lat": 46, "lon": 7}], {}, "a list of rows; expected columns"),
        (np.array(5), {}, "the table is a ndarray"),
        (5, {}, "the table is a int"),
        ("none.csv", {}, "none.csv: no such file"),
        ("none.xlsx", {}, "expected a table, .csv or .parquet; in Python, read other formats"),
        (xr.Dataset({"lat": ("a", [1]), "lon": ("b", [1])}), {}, "lat runs along a, lon along b"),
        ({"lat": [1], "lon": [2]}, {"method": "cubic"}, "expected nearest or bilinear"),
        ([(45, 7), (46, 8)], {}, "a list of two pairs, which could be points or"),
        (([45], [7]), {"lat": "y"}, "lat= and lon= name columns"),
        (
            (pd.Series([45, 46]), pd.Series([7, 8], index=[1, 0])),
            {},
            "lat and lon have different labels in their indexes",
        ),
        (
            pd.DataFrame({"lat": [45], "lon": [7]}).rename_axis("distance"),
            {},
            "along distance, a name that the dataset has too; rename",
        ),
    ],
)
def test_tables_that_make_no_sense_are_refused(table, names, message):
    with pytest.raises(OptionError, match=message):
        points(CUBE, table, **names)


@pytest.mark.parametrize(
    "content",
    # A quote that nothing closes swallows all that follows.
    [b"", b"\0\1\2", b"lat\n", b"PAR1nonsensePAR1", b'name,lat,lon\n"a,45,7\nb,46,8\n'],
)
@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_files_that_are_no_tables_are_refused(tmp_path, content, ending):
    path = tmp_path / f"t.{ending}"
    path.write_bytes(content)
    with pytest.raises(OptionError, match=rf"t\.{ending}|no column"):
        points(CUBE, path)


@pytest.mark.slow
def test_the_command_writes_a_row_a_point(tmp_path, capsys):
    CUBE.to_zarr(tmp_path / "c.zarr", consolidated=False)
    frame = pd.DataFrame({"wmo": ["06610", "10", "x"], "lat": [Y[0], 99, Y[1]], "lon": X[:3]})
    frame.to_csv(tmp_path / "t.csv", index=False)
    lines = [str(tmp_path / "c.zarr"), str(tmp_path / "t.csv")]
    want = points(CUBE, frame)
    for name in ("o.parquet", "o.csv"):
        out = tmp_path / name
        assert main(["points", *lines, str(out)]) == 0
        got = pd.read_parquet(out) if name == "o.parquet" else pd.read_csv(out, dtype={"wmo": str})
        assert got.wmo.tolist() == frame.wmo.tolist()
        assert got.status.tolist() == [STATUS[n] for n in want.status.values]
        vectors = np.stack(got.embedding) if name == "o.parquet" else got.filter(like="embedding_")
        np.testing.assert_allclose(vectors, want.embedding, rtol=1e-6)
        np.testing.assert_array_equal(got.n_images_dem, want.n_images_by_modality[1])
        assert main(["points", *lines, str(out)]) == 1
        assert "exists already" in capsys.readouterr().err
    assert main(["points", *lines, str(tmp_path / "o.parquet"), "--overwrite"]) == 0
    assert main(["at", lines[0], str(Y[0]), "--", str(X[0])]) == 0
    assert "km" in capsys.readouterr().out
    assert main(["points", *lines, str(tmp_path / "o.xlsx")]) == 1
    assert "expected .csv or .parquet" in capsys.readouterr().err
    assert main(["at", lines[0], "95", "1"]) == 0
    assert "not a place" in capsys.readouterr().out


def test_no_points_and_groups():
    assert points(CUBE, ([], [])).embedding.shape == (0, DIM)
    both = xr.concat([CUBE, CUBE.where(CUBE.lat < 50)], "season", join="outer")
    both = both.drop_vars(["n_images", "n_images_by_modality"])
    found = points(both, (Y, X))
    assert found.embedding.dims == ("season", "point", "dim")
    np.testing.assert_array_equal(found.embedding[0], points(CUBE, (Y, X)).embedding)
    assert found.embedding[1, found.cell_lat >= 50].isnull().all()


def test_infinite_coordinates_are_no_places_and_no_warning():
    ds = xr.Dataset(
        {"embedding": (("lat", "lon", "dim"), np.ones((1, 1, 2), "f4"))}, {"lat": [45], "lon": [7]}
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = points(ds, ([np.inf, 45, 45], [7, -np.inf, 7]))
    assert found.status.values.tolist() == [4, 4, 0]


@pytest.mark.parametrize("name", [pd.NA, pd.Series(["lat"]), xr.DataArray("lat"), ["lat"]])
def test_names_of_columns_that_are_none(name):
    with pytest.raises(OptionError, match="the table has no column"):
        points(CUBE, {"lat": [50.0], "lon": [5.0]}, lat=name)
