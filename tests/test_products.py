"""Vectors of pixels of other products on the lattice: AlphaEarth and TESSERA, in released form."""

import os

import numpy as np
import pytest
import rasterio
import xarray as xr
import zarr
from pyproj import Proj
from rasterio.transform import Affine

from copcube import describe, grid
from copcube.builds import aggregate
from copcube.cli import main
from copcube.cube import validate
from copcube.errors import BuildError, OptionError, ReadError, RowsError
from copcube.files.objects import ObjectFolder
from copcube.lookup import points
from copcube.products import pixels, tables
from copcube.products.alphaearth import AlphaEarth
from copcube.products.place import Place
from copcube.products.tessera import Tessera

EAST, NORTH = 583_000.0, 5_332_000.0
"""Near a corner of four cells, 48.125° N 10.125° E, in zone 32."""


def write_tif(path, values, *, epsg=32632, east=EAST, north=NORTH, up=False, step=10.0, **options):
    """A file of bands (64, h, w), first line in the north, or stored from the south if `up`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    bands, height, width = values.shape
    transform = Affine(step, 0, east, 0, -step, north)
    if up:
        values, transform = values[:, ::-1], Affine(step, 0, east, 0, step, north - step * height)
    profile = {"count": bands, "height": height, "width": width, "dtype": values.dtype}
    profile |= {"transform": transform, "tiled": True, "blockxsize": 128, "blockysize": 128}
    profile |= {"crs": epsg and f"EPSG:{epsg}", "nodata": -128, "compress": "deflate"} | options
    with rasterio.open(path, "w", driver="GTiff", **profile) as file:
        file.write(values)
    return path


def stored(shape, seed=0, dim=64):
    rng = np.random.default_rng(seed)
    values = rng.integers(-127, 128, (dim, *shape)).astype(np.int8)
    values[:, rng.random(shape) < 0.1] = -128
    return values


def dequantised(values):
    v = values.astype(np.float64)
    return np.where(values == -128, np.nan, (v / 127.5) ** 2 * np.sign(v))


def plain(vectors, epsg, x, y):
    """Cell → pixels, mean and spread, by NumPy and PROJ alone; vectors (dim, h, w), NaN missing."""
    x, y = np.meshgrid(x, y)
    if epsg == 4326:
        lon, lat = x, y
        e2 = 0.00669437999014
        area = np.cos(np.radians(lat)) / (1 - e2 * np.sin(np.radians(lat)) ** 2) ** 2
    else:
        zone = Proj(f"EPSG:{epsg}")
        lon, lat = zone(x, y, inverse=True)
        area = 1 / zone.get_factors(lon, lat).areal_scale
    row = np.floor((90.125 - lat) / 0.25).astype(int)
    col = np.floor((lon + 0.125) / 0.25).astype(int) % 1440
    found = {}
    valid = np.isfinite(vectors).all(axis=0)
    for place in np.unique((row * 1440 + col)[valid]).tolist():
        place = divmod(place, 1440)
        mask = valid & (row == place[0]) & (col == place[1])
        v, w = vectors[:, mask], area[mask] / area[mask].sum()
        mean = v @ w
        spread = np.sqrt((((v - mean[:, None]) ** 2).sum(axis=0) * w).sum())
        found[place] = int(mask.sum()), mean, spread
    return found


def check(cube, expected):
    with xr.open_zarr(cube, chunks=None) as ds:
        there = np.argwhere(ds.n_images.values > 0)
        assert {(int(a), int(b)) for a, b in there} == set(expected)
        for (row, col), (number, mean, spread) in expected.items():
            cell = ds.isel(lat=row, lon=col)
            assert int(cell.n_images) == number
            np.testing.assert_allclose(cell.embedding, mean, rtol=2e-6, atol=1e-7)
            np.testing.assert_allclose(cell.spread, spread, rtol=1e-5)
        return dict(ds.attrs)


def centres(n, start, step=10.0):
    return start + step * (np.arange(n) + 0.5)


@pytest.fixture(scope="module")
def alphaearth(tmp_path_factory):
    """Two neighbouring files, the second stored from the south, as some of the released."""
    root = tmp_path_factory.mktemp("aef")
    left, right = stored((300, 140), 1), stored((300, 150), 2)
    write_tif(root / "2021" / "32N" / "a.tiff", left)
    write_tif(root / "2021" / "32N" / "b.tiff", right, east=EAST + 1400, up=True)
    whole = dequantised(np.concatenate([left, right], axis=2))
    return root, plain(whole, 32632, centres(290, EAST), centres(300, NORTH, -10.0))


@pytest.mark.slow
def test_alphaearth_is_averaged_as_numpy_does_it(alphaearth, tmp_path):
    root, expected = alphaearth
    assert len(expected) == 4  # so that files and tiles are divided between cells
    aggregate(root, tmp_path / "aef.zarr")
    attrs = check(tmp_path / "aef.zarr", expected)
    assert attrs["product"].startswith("AlphaEarth")
    assert attrs["license"] == "CC-BY-4.0"
    assert "Google DeepMind" in attrs["attribution"]
    assert attrs["product_years"] == "2021"
    assert attrs["aggregation_weights"].startswith("area")
    assert attrs["aggregation"] == "mean over all images alike"
    assert validate(tmp_path / "aef.zarr") == []
    with xr.open_zarr(tmp_path / "aef.zarr", chunks=None) as ds:
        # All pixels count as one modality, so that none is missing.
        assert set(points(ds, ([48.25, 48.0], [10.0, 10.25])).status.values) == {0}


@pytest.mark.slow
def test_the_command_takes_a_file_and_groups_by_year(tmp_path):
    values = {year: stored((40, 30), year) for year in (2020, 2023)}
    for year, some in values.items():
        write_tif(tmp_path / "in" / f"{year}" / "32N" / "a.tif", some)
    out = tmp_path / "years.zarr"
    assert main(["aggregate", str(tmp_path / "in"), str(out), "--by", "year"]) == 0
    with xr.open_zarr(out, chunks=None) as ds:
        assert ds.year.values.tolist() == [2020, 2023]
        for year, some in values.items():
            v = dequantised(some)
            expected = v[:, np.isfinite(v[0])].mean(axis=1)
            cell = ds.sel(year=year, lat=48.25, lon=10.0)
            np.testing.assert_allclose(cell.embedding, expected, atol=1e-5)
    aggregate(tmp_path / "in", tmp_path / "all.zarr")
    with xr.open_zarr(tmp_path / "all.zarr", chunks=None) as ds:
        assert ds.attrs["product_years"] == "2020 2023"
        assert describe(ds)["temporal"]["supported_years"] == [2020, 2023]
    one = tmp_path / "one.zarr"
    told = "covers a whole year, here 2020, 2023; choose years, such as --dates 2020"
    with pytest.raises(OptionError, match=told):
        aggregate(tmp_path / "in", one, dates="2023-03")
    assert main(["aggregate", str(tmp_path / "in"), str(one), "--dates", "2023"]) == 0
    with xr.open_zarr(one, chunks=None) as ds:
        assert int(ds.n_images.sum()) == int((values[2023][0] != -128).sum())
        assert ds.attrs["product_years"] == "2023"
        assert describe(ds)["temporal"]["supported_years"] == [2023]


def test_of_which_year_a_file_is_does_not_depend_on_where_the_command_runs(tmp_path, monkeypatch):
    values = stored((3, 3))
    named = {
        "2021/54N/a.tiff": 2021,
        "2019/2021/a.tiff": 2021,  # the nearest of two
        "project2017/2021/a.tiff": 2021,
        "brought_2025/54N/tile_2023.tiff": 2023,
        "brought_2025/54N/tile.tiff": 2025,
        "some/54N/tile.tiff": None,
    }
    for name, year in named.items():
        path = write_tif(tmp_path / name, values)
        for folder in (tmp_path, path.parent.parent, path.parent):
            monkeypatch.chdir(folder)
            (raster,) = AlphaEarth().rasters(str(path.relative_to(folder)))
            assert raster.year == year, name
    capital = tmp_path / "2021" / "54N" / "a.tiff"
    capital = capital.rename(capital.with_name("A.TIF"))
    assert tables.files(tmp_path / "2021") == tables.files(capital) == [str(capital)]


def test_a_tile_is_found_from_within_its_folders(tessera, tmp_path, monkeypatch):
    values, scales = np.moveaxis(tessera[0][0], 0, -1), tessera[1][0]
    path = write_tile(tmp_path, values, scales, np.ones(scales.shape, np.uint8))
    monkeypatch.chdir(path.parent)
    assert Tessera().rasters(path.name)[0].year == 2024


def test_years_that_nothing_says_can_be_chosen_by_nothing(tmp_path, capsys):
    write_tif(tmp_path / "in" / "54N" / "a.tif", stored((3, 3)))
    write_tif(tmp_path / "in" / "2024" / "b.tif", stored((3, 3)))
    for option in (["--dates", "2023"], ["--by", "year"]):
        out = str(tmp_path / f"{option[1]}.zarr")
        assert main(["aggregate", str(tmp_path / "in"), out, *option]) == 1
        said = capsys.readouterr().err
        assert "54N/a.tif: neither its name nor its folders give its year" in said


def test_a_file_that_was_replaced_lies_where_it_says(tmp_path):
    """Also in the process that has read the one before."""
    cells = set()
    for east in (EAST, EAST + 50_000):
        path = write_tif(tmp_path / "2024" / "a.tif", stored((3, 3)), east=east)
        found = set(tables.read(path, [0], "centre", "auto").grid_id.tolist())
        assert found
        assert cells.isdisjoint(found)
        cells |= found


@pytest.mark.slow
def test_bits_depend_neither_on_what_is_read_at_a_time_nor_on_blocks(
    alphaearth, tmp_path, monkeypatch
):
    """Small tiles here, so that many of them make a cell."""
    root, expected = alphaearth
    monkeypatch.setattr(pixels, "TILE", 64)
    cubes = []
    for block, most, threads in ((16, 1 << 26, 0), (1, 1 << 18, 3), (3, 1 << 20, 2)):
        monkeypatch.setattr(pixels, "BLOCK", block)
        monkeypatch.setattr(pixels, "_BYTES", most)
        monkeypatch.setattr(pixels, "computing_threads", lambda most, threads=threads: threads)
        tables._blocks_of.cache_clear()
        out = tmp_path / f"{block}.zarr"
        aggregate(root, out)
        check(out, expected)
        with xr.open_zarr(out, chunks=None) as ds:
            near = ds.sel(lat=slice(49, 47), lon=slice(9, 11))
            cubes.append((near.embedding.values, near.spread.values))
    tables._blocks_of.cache_clear()
    for embedding, spread in cubes[1:]:
        assert embedding.tobytes() == cubes[0][0].tobytes()
        assert spread.tobytes() == cubes[0][1].tobytes()


@pytest.mark.slow
def test_degrees_across_the_date_line_and_to_the_pole_weigh_by_area(tmp_path):
    values = stored((30, 40), 3)
    write_tif(tmp_path / "2022" / "a.tif", values, epsg=4326, east=179.5, north=90.0, step=0.025)
    aggregate(tmp_path / "2022", tmp_path / "out.zarr")
    lon, lat = centres(40, 179.5, 0.025), centres(30, 90.0, -0.025)
    check(tmp_path / "out.zarr", plain(dequantised(values), 4326, lon, lat))


@pytest.mark.parametrize(("epsg", "y"), [(32632, 5.3e6), (32701, 1.2e6), (32660, 9.2e6)])
def test_areas_are_those_of_the_projection(epsg, y):
    place = Place(epsg, 166_000.0, y, 1000.0, -1000.0)
    rows, cols = slice(0, 4), slice(0, 668)
    lat, lon = place.centres(rows, cols)
    exact = 1e6 / Proj(f"EPSG:{epsg}").get_factors(lon, lat).areal_scale
    np.testing.assert_allclose(
        np.broadcast_to(place.areas(rows, cols), lat.shape), exact, rtol=2e-7
    )


@pytest.mark.parametrize("seed", range(20))
def test_no_cell_of_a_tile_is_overlooked(seed):
    rng = np.random.default_rng(seed)
    zone, step = rng.integers(1, 61), rng.choice([-10.0, 10.0])
    north = rng.uniform(0, 9.2e6)
    place = Place(32600 + int(zone), rng.uniform(2e5, 8e5), north, 10.0, float(step))
    rows, cols = slice(0, 256), slice(0, 256)
    lat, lon = place.centres(rows, cols)
    cells = grid.grid_id(*grid.cell_at(lat, lon))
    assert set(np.unique(cells)) <= set(place.cells(rows, cols).tolist())


def write_zone(root, values, scales, *, zone=32, north=NORTH, affine=True):
    """A zone of TESSERA's store with plain zarr: values (T, 128, h, w), scales (T, h, w)."""
    group = zarr.open_group(root, mode="a").create_group(f"utm{zone}")
    height, width = scales.shape[1:]
    chunks = (1, 128, 32, 32)
    group.create_array("embeddings", data=values, chunks=chunks, shards=(1, 128, 256, 256))
    group.create_array("scales", data=scales, chunks=chunks[:1] + chunks[2:])
    group.create_array("time", data=np.arange(2023, 2023 + len(scales), dtype=np.int32))
    if affine:
        group.attrs["proj:code"] = f"EPSG:{32600 + zone}"
        group.attrs["spatial:transform"] = [10.0, 0.0, EAST, 0.0, -10.0, north]
    else:
        group.create_array("x", data=centres(width, EAST))
        group.create_array("y", data=centres(height, north, -10.0))
    return group


@pytest.fixture(scope="module")
def tessera():
    values = stored((270, 120), 5, dim=256).reshape(2, 128, 270, 120)
    rng = np.random.default_rng(6)
    scales = rng.uniform(0.01, 0.2, (2, 270, 120)).astype(np.float32)
    scales[:, :40, :50] = np.nan  # water
    scales[1, 200:] = np.inf  # not filled
    return values, scales


@pytest.mark.slow
@pytest.mark.parametrize("affine", [True, False])
def test_tessera_store(tessera, tmp_path, affine):
    values, scales = tessera
    south = -4_000_000.0
    write_zone(tmp_path / "tessera.zarr", values, scales, north=south, affine=affine)
    aggregate(tmp_path / "tessera.zarr", tmp_path / "out.zarr", by="year")
    finite = np.where(np.isfinite(scales), scales, np.nan)[:, None]
    with xr.open_zarr(tmp_path / "out.zarr", chunks=None) as ds:
        assert ds.year.values.tolist() == [2023, 2024]
        assert ds.attrs["product"] == "TESSERA"
        for i, year in enumerate((2023, 2024)):
            x, y = centres(120, EAST), centres(270, south, -10.0)
            one = ds.sel(year=year)
            for (row, col), (n, mean, spread) in plain(values[i] * finite[i], 32632, x, y).items():
                cell = one.isel(lat=row, lon=col)
                assert int(cell.n_images) == n
                np.testing.assert_allclose(cell.embedding, mean, rtol=1e-4, atol=1e-5)
                np.testing.assert_allclose(cell.spread, spread, rtol=1e-5)


@pytest.mark.slow
def test_a_year_without_data_is_no_cube(tessera, tmp_path):
    values, scales = (some[..., :60, :50] for some in tessera)
    scales = np.where(np.arange(2)[:, None, None] == 0, np.float32(np.nan), scales)  # all water
    write_zone(tmp_path / "tessera.zarr", values, scales)
    out = tmp_path / "out.zarr"
    with pytest.raises(BuildError, match=r"tessera.zarr: no pixel of the chosen files and dates"):
        aggregate(tmp_path / "tessera.zarr", out, dates="2023")
    assert {path.name for path in tmp_path.iterdir()} == {"tessera.zarr"}
    aggregate(tmp_path / "tessera.zarr", out, dates="2024")


def write_tile(root, values, scales, land, name="grid_10.15_48.15"):
    folder = root / "global_0.1_degree_representation" / "2024" / name
    folder.mkdir(parents=True)
    np.save(folder / f"{name}.npy", values)
    np.save(folder / f"{name}_scales.npy", scales)
    write_tif(root / "global_0.1_degree_tiff_all" / f"{name}.tiff", land[None], nodata=None)
    return folder / f"{name}.npy"


@pytest.mark.slow
def test_tessera_tiles(tessera, tmp_path):
    values, scales = np.moveaxis(tessera[0][0], 0, -1), tessera[1][0]
    land = np.ones(scales.shape, np.uint8)
    land[100:120] = 0
    write_tile(tmp_path / "in", values, scales, land)
    aggregate(tmp_path / "in", tmp_path / "out.zarr")
    scale = np.where(np.isfinite(scales) & (land == 1), scales, np.nan)
    vectors = np.moveaxis(values, -1, 0) * scale
    expected = plain(vectors, 32632, centres(120, EAST), centres(270, NORTH, -10.0))
    with xr.open_zarr(tmp_path / "out.zarr", chunks=None) as ds:
        assert ds.attrs["product_years"] == "2024"
        assert int(ds.n_images.sum()) == int(np.isfinite(scale).sum())
        for (row, col), (_, mean, _) in expected.items():
            np.testing.assert_allclose(ds.embedding[row, col], mean, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_a_cell_of_one_pixel_and_of_equal_pixels_has_no_spread(tmp_path):
    values = np.full((64, 1, 1), 16, np.int8)
    write_tif(tmp_path / "a.tif", values)
    write_tif(tmp_path / "b.tif", np.full((64, 90, 90), 33, np.int8), east=EAST - 60_000)
    aggregate(tmp_path, tmp_path / "out.zarr")
    with xr.open_zarr(tmp_path / "out.zarr", chunks=None) as ds:
        assert ds.spread.values[ds.n_images.values > 0].tolist() == [0.0, 0.0]
    assert validate(tmp_path / "out.zarr") == []


def put(root, address):
    """Put files below a folder into a bucket."""
    folder = ObjectFolder(address)
    for file in root.rglob("*"):
        if file.is_file():
            folder.write(str(file.relative_to(root)), file.read_bytes())


def serve(root, web):
    web.files |= {str(f.relative_to(root)): f.read_bytes() for f in root.rglob("*") if f.is_file()}


def cells_of(address):
    """Cells of all that lies at an address or below it, without the making of a cube."""
    files = [str(file) for file in tables.files(address)]
    assert all(tables.size(file) > 0 for file in files)
    chosen = [(file, range(len(tables.row_group_sizes(file))), 0) for file in files]
    dim = tables.embedding_length(files[0])
    return tables.pixel_cells(chosen, lambda ids: np.ones(len(ids), bool), dim)


def same(one, other):
    """Compare cells, bit by bit."""
    a, b = cells_of(one), cells_of(other)
    assert len(a) == len(b) > 1
    for name in ("grid_id", "n_images", "embedding", "spread"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))


@pytest.mark.slow
def test_alphaearth_of_a_bucket(alphaearth, bucket, tmp_path):
    root, expected = alphaearth
    put(root, f"{bucket}/annual")
    aggregate(f"{bucket}/annual/2021/32N", tmp_path / "remote.zarr")
    assert check(tmp_path / "remote.zarr", expected)["product_years"] == "2021"
    same(f"{bucket}/annual", root)


@pytest.mark.slow
def test_alphaearth_of_a_web_server_that_cuts_answers(tmp_path, web):
    blocks = {"tiled": True, "blockxsize": 256, "blockysize": 256, "interleave": "band"}
    write_tif(tmp_path / "2021" / "32N" / "a.tiff", stored((300, 300), 8), **blocks)
    serve(tmp_path, web)
    name = "2021/32N/a.tiff"
    web.cut[name] = 2
    same(f"{web.url}/{name}", tmp_path / name)
    assert web.cut[name] == 0
    assert max(last - first for first, last in web.fetched(name)) < len(web.files[name]) / 8


@pytest.mark.slow
def test_tessera_store_in_a_bucket(tessera, bucket, tmp_path):
    write_zone(tmp_path, *tessera)
    put(tmp_path, f"{bucket}/v1.zarr")
    same(f"{bucket}/v1.zarr", tmp_path)


@pytest.mark.slow
def test_tessera_store_of_a_web_server_that_cuts_answers(tessera, web, tmp_path):
    write_zone(tmp_path, *tessera)
    serve(tmp_path, web)
    web.cut = {name: 1 for name in web.files if "embeddings/c/0" in name}
    same(web.url, tmp_path)
    assert sum(web.cut.values()) == 0
    assert tables.files(f"{web.url}/utm32") == tables.files(web.url) == [f"{web.url}/utm32"]
    web.status["utm32"] = 403  # as some servers say of folders
    known = tables.version(f"{web.url}/utm32")
    web.files["utm32/zarr.json"] += b" "
    assert known not in ("", tables.version(f"{web.url}/utm32"))


@pytest.mark.slow
def test_what_cannot_be_read_at_an_address_is_said(alphaearth, tmp_path, web):
    root, _ = alphaearth
    serve(root, web)
    out = tmp_path / "out.zarr"
    name = "2021/32N/a.tiff"
    for absent in ("2021/32N", "2021/32N/none.tiff"):
        with pytest.raises(ReadError, match="servers do not list folders; name"):
            aggregate(f"{web.url}/{absent}", out, overwrite=True)
    with pytest.raises(RowsError, match="tiles of TESSERA are read from this machine only"):
        aggregate(f"{web.url}/grid_10.15_48.15.npy", out, overwrite=True)
    web.files["damaged.tiff"] = b"II*\0" + bytes(100)
    with pytest.raises(RowsError, match=r"damaged.tiff: not a readable GeoTIFF file"):
        aggregate(f"{web.url}/damaged.tiff", out, overwrite=True)
    web.cut[name] = 1000
    with pytest.raises(ReadError, match=rf"{name}: unexpected answer from the store"):
        aggregate(f"{web.url}/{name}", out, overwrite=True)
    web.cut[name] = 0
    web.status[name] = 403
    with pytest.raises(ReadError, match=rf"{name}: access denied"):
        aggregate(f"{web.url}/{name}", out, overwrite=True)


def refused(source, out, match, error=RowsError, **options):
    with pytest.raises(error, match=match):
        aggregate(source, out, **options)
    assert not out.exists()


@pytest.mark.slow
def test_other_geotiff_files_are_refused(tmp_path):
    out, small = tmp_path / "out.zarr", np.zeros((64, 8, 8), np.int8)
    floats = write_tif(tmp_path / "float.tif", small.astype(np.float32))
    refused(floats, out, r"64 bands of float32.*have 64 of int8")
    refused(write_tif(tmp_path / "bands.tif", small[:3]), out, "3 bands of int8")
    refused(
        write_tif(tmp_path / "crs.tif", small, epsg=None), out, "system is none; expected a UTM"
    )
    refused(write_tif(tmp_path / "web.tif", small, epsg=3857), out, "EPSG:3857; expected a UTM")
    refused(
        write_tif(tmp_path / "zero.tif", small, nodata=0), out, "without data by 0; expected -128"
    )
    (tmp_path / "text.tif").write_text("no picture")
    refused(tmp_path / "text.tif", out, "expected a GeoTIFF file, found text")
    broken = write_tif(tmp_path / "cut.tif", stored((512, 512)))
    broken.write_bytes(broken.read_bytes()[: broken.stat().st_size // 2])
    refused(broken, out, r"not a readable GeoTIFF file \(cut\.tif")
    good = write_tif(tmp_path / "2021.tif", small)
    refused(good, out, "pixels have only a centre", OptionError, assign="area")
    refused(good, out, "does not apply to", OptionError, by="month")
    refused(good, out, "does not apply to", OptionError, balance="variance")


def test_tiles_of_tessera_that_are_cut_while_they_are_read(tessera, tmp_path):
    values, scales = np.moveaxis(tessera[0][0], 0, -1)[100:150, :], tessera[1][0, 100:150, :]
    for order in "CF":
        path = write_tile(
            tmp_path / order, np.asarray(values, order=order), scales, np.ones(scales.shape, "u1")
        )
        (tile,) = Tessera().rasters(str(path))
        window = slice(3, 49), slice(40, 110)
        found = tile.read(*window).values
        os.truncate(path, 4096)
        # Of a mapped file, this would kill the process.
        np.testing.assert_array_equal(np.moveaxis(found, 0, -1), values[window])
        with pytest.raises(RowsError, match=r"48\.15\.npy: not a readable \.npy file"):
            tile.read(*window)


def test_other_files_of_tessera_are_refused(tessera, tmp_path):
    out = tmp_path / "out.zarr"
    values, scales = np.moveaxis(tessera[0][0], 0, -1)[:20, :30], tessera[1][0, :20, :30]
    land = np.ones(scales.shape, np.uint8)
    tile = write_tile(tmp_path / "a", values, scales[:19], land)
    refused(tile, out, r"_scales.npy: it holds float32 of the shape \(19, 30\).*\(20, 30\)")
    tile = write_tile(tmp_path / "b", values, -np.ones_like(scales), land)
    with pytest.raises(Exception, match="a scale is -1; expected positive ones"):
        aggregate(tile, tmp_path / "b.zarr")
    tile = write_tile(tmp_path / "c", values.astype(np.float32), scales, land)
    refused(tile, out, "it holds float32 of the shape")
    tile = write_tile(tmp_path / "d", values, scales, land)
    (tile.parent / f"{tile.stem}_scales.npy").unlink()
    refused(tile, out, r"_scales.npy: no such file; a tile of TESSERA")
    tile = write_tile(tmp_path / "e", values, scales, land)
    next((tmp_path / "e" / "global_0.1_degree_tiff_all").iterdir()).unlink()
    refused(tile, out, "taken for a tile of TESSERA, but its location is unknown")
    group = write_zone(tmp_path / "f.zarr", *(a[:, ..., :32, :32] for a in tessera))
    del group["scales"]
    refused(tmp_path / "f.zarr", out, "it has no array 'scales'")
    zarr.open_group(tmp_path / "g.zarr", mode="w")
    refused(tmp_path / "g.zarr", out, "a Zarr group without zones such as utm32")


def test_products_are_not_mixed(tmp_path):
    from strategies import random_rows, write_rows

    write_rows(tmp_path / "rows.parquet", random_rows(20, 5, 64, 0), {})
    write_tif(tmp_path / "a.tif", stored((8, 8)))
    both = f"{tmp_path}/*.[pt]*"
    refused(both, tmp_path / "out.zarr", "a.tif holds one vector per pixel, .*rows of images")


def test_a_tile_on_other_land_is_another_source(tmp_path):
    shape = 20, 30
    values, scales = np.zeros((*shape, 128), np.int8), np.ones(shape, np.float32)
    file = write_tile(tmp_path, values, scales, np.ones(shape, np.uint8))
    before = tables.size(file)
    (land,) = tmp_path.rglob("*.tiff")
    land.write_bytes(land.read_bytes()[:-1])
    assert tables.size(file) == before - 1


def test_a_store_that_was_filled_further_is_another_source(tessera, tmp_path):
    group = write_zone(tmp_path / "t.zarr", *(a[:, ..., :64, :64] for a in tessera))
    before = tables.size(tmp_path / "t.zarr" / "utm32")
    group["scales"].resize((3, 64, 64))
    group["scales"][2] = 0.5
    assert tables.size(tmp_path / "t.zarr" / "utm32") > before
