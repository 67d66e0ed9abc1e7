import re
import warnings
from base64 import b64decode
from html.parser import HTMLParser

import dask
import dask.array as da
import numpy as np
import pytest
import rasterio
import xarray as xr
from dask.callbacks import Callback
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from test_cube import build, cells_of

from copcube import cube, grid
from copcube.cube.card import card, coverage
from copcube.cube.thumbnail import PNG_LIMIT, picture, png
from copcube.errors import CubeError

LAT, LON = grid.latitudes(), grid.longitudes()
ATTRS = {"encoder": "Copernicus-FM", "encoder_trained": 0, "license": "CC-BY-4.0", "dates": "2021"}


def counts(mask, **coords):
    """A cube whose vectors must not be read."""
    coords = {"lat": LAT, "lon": LON} | coords
    ds = xr.Dataset({"n_images": (("lat", "lon"), mask.astype("i4") * 3)}, coords, ATTRS)
    shape = (*mask.shape, 768)

    def fail(block):
        raise AssertionError("the vectors were read")

    vectors = da.zeros(shape, chunks=(45, 45, 768), dtype="f4").map_blocks(fail, dtype="f4")
    return ds.assign(embedding=(("lat", "lon", "dim"), vectors))


def earth(seed=0, share=0.3):
    return np.random.default_rng(seed).random((721, 1440)) < share


def decode(data, tmp_path):
    """Pixels (H, W, 4) as GDAL reads them."""
    (tmp_path / "a.png").write_bytes(data)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        file = rasterio.open(tmp_path / "a.png")
    with file:
        index = file.read(1)
        colours = file.colormap(1)
    return np.array([[colours[i] for i in row] for row in index])


def lines(ds):
    return dict(card(ds).lines)


def test_the_figures_are_those_of_the_cube():
    mask = np.zeros((721, 1440), bool)
    mask[100:200, 300:400] = True
    found = lines(counts(mask))
    share = (np.sin(np.radians(65.125)) - np.sin(np.radians(40.125))) * 100 / 1440 / 2
    assert found["shape"] == "721 × 1440 × 768 (lat, lon, dim)"
    assert found["coverage"] == f"10,000 cells, {share:.2%} of the globe's area"
    assert found["images"] == "30,000"
    assert found["encoder"] == "Copernicus-FM, NOT TRAINED: its numbers mean nothing"
    assert (found["licence"], found["dates"]) == ("CC-BY-4.0", "2021")
    assert coverage(counts(mask)) == pytest.approx(share)
    assert coverage(counts(np.ones((721, 1440), bool))) == pytest.approx(1)


def test_ones_of_a_converted_map_are_no_counts():
    found = lines(counts(earth()).assign_attrs(n_images_known=0))
    assert "coverage" in found
    assert "images" not in found


def test_what_is_counted_is_told_beside_the_counts():
    found = lines(counts(earth()).assign_attrs(n_images_comment="pixels"))
    assert found["counted"] == "pixels"


@pytest.mark.slow
@pytest.mark.parametrize("by", [None, "season"])
def test_cubes_on_disk_agree_with_their_summary(tmp_path, by):
    def no_task(*arguments, **options):
        raise AssertionError("dask was asked, which takes long for so many chunks")

    path = build(tmp_path / "a.zarr", cells_of(by), by)
    with dask.config.set(scheduler=no_task):
        found = card(cube.open_cube(path))
    known = cube.summary(path)
    told = dict(found.lines)
    assert told["coverage"] == f"{known.cells:,} cells, {known.area:.2%} of the globe's area"
    counted = ", ".join(f"{name} {n:,}" for name, n in known.images_by_modality.items() if n)
    assert told["images"] == f"{known.images:,} ({counted})"
    if by:
        assert told[by] == ", ".join(known.groups)
    assert found.raster.shape == (721, 1440)


def test_counts_of_a_part_are_computed_once():
    ds = counts(earth())
    part = ds.assign(n_images=ds.n_images.chunk(lat=45, lon=45)).isel(lat=slice(90), lon=slice(90))
    computed = []
    with Callback(start=computed.append):
        found = card(part)
    assert len(computed) == 1
    assert found.lines == card(ds.isel(lat=slice(90), lon=slice(90))).lines


def test_what_was_masked_is_not_counted():
    mask = earth()
    ds = counts(mask).drop_vars("embedding")
    ds = ds.assign(embedding=ds.n_images.astype("f4").expand_dims({"dim": 2}, axis=-1))
    north = lines(ds.where(ds.lat > 0))
    assert north["images"] == f"{mask[:360].sum() * 3:,}"
    assert north["coverage"].startswith(f"{mask[:360].sum():,} cells")


@pytest.mark.slow
def test_without_counts_the_spread_tells_and_else_nothing_does():
    mask = earth()
    ds = counts(mask)
    spread = ds.drop_vars("n_images").assign(spread=(("lat", "lon"), np.where(mask, 0.5, np.nan)))
    assert lines(spread)["coverage"] == lines(ds)["coverage"]
    assert np.nanmax(card(spread).raster) == 0.5
    single = card(spread.assign(spread=spread.spread * 0))
    assert "coverage" in single.text()
    assert "<img" in single.html()
    groups = spread.expand_dims(season=3).transpose("season", ...)
    assert card(groups).lines[2:] == card(spread).lines[1:]
    unknown = card(ds.drop_vars("n_images"))
    assert dict(unknown.lines)["coverage"].startswith("not known without reading all vectors")
    assert unknown.raster is None
    assert "<img" not in unknown.html()
    assert len(unknown.text().splitlines()) == 1 + len(unknown.lines)


@pytest.mark.slow
@pytest.mark.parametrize("missing", [np.nan, 0])
def test_vectors_in_memory_tell_where_they_are(missing):
    mask = earth()
    vectors = np.random.default_rng(0).normal(size=(721, 1440, 4)).astype("f4")
    vectors[~mask] = missing
    vectors[mask, 1] = 0
    ds = xr.Dataset({"embedding": (("lat", "lon", "dim"), vectors)}, {"lat": LAT, "lon": LON})
    told = card(ds)
    assert dict(told.lines)["coverage"] == lines(counts(mask))["coverage"]
    vectors[~mask] = np.nan
    assert np.array_equal(told.raster, np.roll(vectors[..., :3], 720, axis=1), equal_nan=True)
    assert np.array_equal(ds.embedding.values[mask], vectors[mask])
    assert card(ds.isel(dim=[0])).raster.ndim == 2
    groups = ds.expand_dims(season=2).copy(deep=True)
    groups.embedding[0, 0] = np.nan
    assert dict(card(groups).lines)["coverage"] == dict(told.lines)["coverage"]
    assert np.isnan(card(groups).raster[0]).all()


def test_a_reduction_shows_three_components():
    pc = np.random.default_rng(0).normal(size=(721, 1440, 4))
    pc[~earth()] = np.nan
    ds = xr.Dataset(
        {"pc": (("lat", "lon", "component"), pc)},
        {"lat": LAT, "lon": LON},
    ).assign(explained_variance_ratio=("component", [0.5, 0.25, 0.125, 0.0625]))
    told = card(ds)
    assert "reduction" in told.title
    assert dict(told.lines)["components"] == "93.75% of the variance"
    left_over = card(ds.assign_attrs(reduction_given="z lsm"))
    assert dict(left_over.lines)["components"] == "93.75% of the variance not explained by z lsm"
    assert np.array_equal(told.raster, np.roll(pc[..., :3], 720, axis=1), equal_nan=True)
    assert card(ds.isel(component=slice(2))).raster.ndim == 2


def test_the_map_is_north_up_from_the_date_line_whatever_the_order():
    mask = earth(share=0.5)
    ds = counts(mask)
    upright = np.roll(mask, 720, axis=1)
    other = ds.assign_coords(lon=(ds.lon + 180) % 360 - 180).sortby("lon").sortby("lat")
    for view in (ds, other, ds.transpose("dim", "lon", "lat")):
        assert np.array_equal(~np.isnan(card(view).raster), upright)


@pytest.mark.parametrize(("start", "size"), [(1400, 80), (700, 60), (30, 50)])
def test_regions_are_drawn_in_one_piece(start, size):
    cols = (start + np.arange(size)) % 1440
    ds = counts(earth()).isel(lat=slice(100, 140))
    expected = ds.n_images.values[:, cols] > 0
    raster = card(ds.isel(lon=np.random.default_rng(0).permutation(cols))).raster
    assert np.array_equal(~np.isnan(raster), expected)


def test_dots_are_where_cells_are():
    mask = np.zeros((721, 1440), bool)
    mask[:361, :720] = True  # north-east
    drawn = [line.strip("\n")[2:] for line in card(counts(mask)).text().splitlines()]
    drawn = [line for line in drawn if re.fullmatch("[\u2800-\u28ff]+", line)]
    assert (len(drawn), {len(line) for line in drawn}) == (14, {56})
    assert all(line[:27] == "\u2800" * 27 for line in drawn)
    assert all(line[28:-1] == "\u28ff" * 27 for line in drawn[:6])
    assert all(set(line) == {"\u2800"} for line in drawn[8:])


@pytest.mark.slow
@settings(deadline=None)
@given(
    arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9)), elements=st.integers(0, 4))
)
def test_the_png_is_read_by_gdal(tmp_path_factory, pixels):
    palette = np.array([[0, 0, 0], [255, 0, 0], [0, 200, 1], [9, 8, 7], [255] * 3], np.uint8)
    read = decode(png(pixels, palette), tmp_path_factory.mktemp("png"))
    assert np.array_equal(read[..., :3], palette[pixels])
    assert np.array_equal(read[..., 3], np.where(pixels == 0, 0, 255))


def test_the_picture_shows_more_images_brighter_and_nothing_clear(tmp_path):
    raster = np.full((40, 80), np.nan)
    raster[10:30, 20:40], raster[10:30, 40:60] = 1.0, 5.0
    read = decode(picture(raster), tmp_path)
    assert np.array_equal(read[..., 3] == 255, ~np.isnan(raster))
    assert read[20, 50, :3].sum() > read[20, 30, :3].sum()


@pytest.mark.slow
@pytest.mark.parametrize("bands", [(), (3,)])
def test_the_worst_picture_is_small(bands):
    noise = np.random.default_rng(0).normal(size=(721, 1440, *bands))
    data = picture(noise)
    assert 1000 < len(data) <= PNG_LIMIT
    width = int.from_bytes(data[16:20])
    assert 90 <= width <= 360


def test_pictures_of_hardly_anything(tmp_path):
    for raster in (np.full((3, 4), np.nan), np.ones((1, 1)), np.full((2, 2, 3), np.nan)):
        assert decode(picture(raster), tmp_path).shape == (*raster.shape[:2], 4)


class Balanced(HTMLParser):
    """Checks that every tag that is opened is closed, and keeps the images."""

    def __init__(self):
        super().__init__()
        self.open, self.images = [], []

    def handle_starttag(self, tag, attrs):
        if tag == "img":
            self.images.append(dict(attrs)["src"])
        else:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_html_is_whole_small_and_harmless(tmp_path):
    ds = counts(earth()).assign_attrs(encoder="<script>alert(1)</script>")
    html = card(ds).html()
    parser = Balanced()
    parser.feed(html)
    assert parser.open == []
    assert "<script" not in html
    assert len(html) < 40_000
    (source,) = parser.images
    assert decode(b64decode(source.removeprefix("data:image/png;base64,")), tmp_path).ndim == 3


def test_what_is_no_cube_has_a_card_that_says_so():
    told = card(xr.Dataset({"t2m": ("x", [1.0])}))
    assert told.title == "not an embedding cube"
    assert "found t2m" in told.text()
    assert "found t2m" in told.html()
    with pytest.raises(CubeError, match="found t2m"):
        coverage(xr.Dataset({"t2m": ("x", [1.0])}))


def of_a_degree():
    """Counts on cells of a degree, as `merge` makes them."""
    ds = counts(earth()[:181, :360], lat=np.arange(90, -91, -1.0), lon=np.arange(0, 360, 1.0))
    return ds.assign(embedding=ds.embedding.assign_attrs(cell_degrees=[1.0, 1.0]))


def test_cells_that_are_there_twice_count_once():
    ds = of_a_degree()
    closed = xr.concat([ds, ds.isel(lon=[0]).assign_coords(lon=[360.0])], "lon")
    assert lines(closed)["coverage"] == lines(ds)["coverage"]


def test_coverage_is_of_the_cells_that_a_selection_keeps():
    # Of every fourth row and column, cells counted as if they were sixteen times as large.
    ds = counts(earth()).drop_vars("embedding").assign(embedding=counts(earth()).embedding)
    edges = np.clip([ds.lat + 0.125, ds.lat - 0.125], -90, 90)
    ds = ds.assign_coords(
        lat_bnds=(("lat", "bnds"), edges.T),
        lon_bnds=(("lon", "bnds"), np.c_[LON - 0.125, LON + 0.125]),
    )
    thin = ds.isel(lat=slice(None, None, 4), lon=slice(None, None, 4))
    padded = thin.n_images.reindex(lat=LAT, lon=LON, fill_value=0)
    whole = coverage(ds.assign(n_images=padded))
    assert coverage(thin) == pytest.approx(whole, rel=1e-12)


def test_a_merged_coarse_grid_has_a_card():
    ds = of_a_degree()
    filled = (ds.n_images > 0).values
    edges = np.sin(np.radians(np.clip([ds.lat + 0.5, ds.lat - 0.5], -90, 90)))
    share = filled.sum(axis=1) @ (edges[0] - edges[1]) / 720
    assert lines(ds)["coverage"] == f"{filled.sum():,} cells, {share:.2%} of the globe's area"
    gaussian = ds.assign_coords(lat=np.degrees(np.arcsin(np.linspace(1, -1, 181))))
    assert lines(gaussian)["coverage"].endswith("of this grid")
