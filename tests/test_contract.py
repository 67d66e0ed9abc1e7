"""The contract of rs-embed, against a reader of the GeoTIFF that is written here from its rules."""

import math
import sys
import types
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import rasterio
import xarray as xr

import copcube
from copcube import grid
from copcube.errors import ModelError, SpecError
from copcube.interchange import to_geotiff
from copcube.lookup import box
from copcube.lookup.contract import Embedding
from copcube.lookup.rs_embed import register_rs_embed
from copcube.pca.components import reduce

DIM = 5
KEYS = ["model", "type", "backend", "source", "sensor", "temporal", "image_size", "data_dir"]
KEYS += ["download", "bbox_4326", "chw_shape", "dataset_path", "input_crs", "output_crs"]
KEYS += ["projection_mode", "projection_note", "product_resolution_deg"]


@dataclass(frozen=True)
class BBox:
    minlon: float
    minlat: float
    maxlon: float
    maxlat: float
    crs: str = "EPSG:4326"


@dataclass(frozen=True)
class PointBuffer:
    lon: float
    lat: float
    buffer_m: float
    crs: str = "EPSG:4326"


@dataclass(frozen=True)
class TemporalSpec:
    """As there: the default of `year` is the function that has its name."""

    mode: str
    year: Any = None
    start: str | None = None
    end: str | None = None

    @staticmethod
    def year(y):  # noqa: F811
        return TemporalSpec("year", year=y)


@dataclass(frozen=True)
class OutputSpec:
    mode: str
    pooling: str = "mean"
    grid_orientation: str = "north_up"


POOLED, MAX, GRID = OutputSpec("pooled"), OutputSpec("pooled", "max"), OutputSpec("grid")


@pytest.fixture(scope="module")
def cube():
    rng = np.random.default_rng(0)
    there = rng.random((721, 1440)) < 0.6
    x = np.where(there[..., None], 3 * rng.normal(size=(721, 1440, DIM)) + 1, np.nan)
    return xr.Dataset(
        {
            "embedding": (("lat", "lon", "dim"), x.astype("f4")),
            "n_images": (("lat", "lon"), there.astype("i4")),
        },
        {"lat": grid.latitudes(), "lon": grid.longitudes()},
    )


@pytest.fixture(scope="module")
def tif(cube, tmp_path_factory):
    path = tmp_path_factory.mktemp("map") / "embed_map_test.tif"
    to_geotiff(cube, path, compress=False)
    return path


class Reader:
    """rs-embed's rules for the map, read off its documentation and its source."""

    def __init__(self, path):
        with rasterio.open(path) as file:
            # A pixel's bands lie side by side in the file, and so in memory.
            self.pixels = np.ascontiguousarray(np.moveaxis(file.read(), 0, -1))
            self.left, self.top = file.transform.c, file.transform.f

    def window(self, minlon, minlat, maxlon, maxlat):
        height, width = self.pixels.shape[:2]
        west, east = max(minlon, self.left), min(maxlon, self.left + width * 0.25)
        south, north = max(minlat, self.top - height * 0.25), min(maxlat, self.top)
        rows = math.floor((self.top - north) / 0.25), math.ceil((self.top - south) / 0.25)
        cols = math.floor((west - self.left) / 0.25), math.ceil((east - self.left) / 0.25)
        return np.moveaxis(self.pixels[slice(*rows), slice(*cols)], -1, 0)


@pytest.fixture(scope="module")
def reader(tif):
    return Reader(tif)


rng = np.random.default_rng(3)
BOXES = [
    (5, 45, 10, 48),
    (-180, 89.625, -179.5, 90),
    (179, -90, 180, -89),
    (-0.125, 0, 0.125, 0.25),
]
BOXES += [(-180, 40, 180, 41), (-2.3, 51.1, 1.9, 52.4)]
BOXES += [
    (x, y, x + w, y + h)
    for x, y, w, h in zip(
        rng.uniform(-180, 150, 20),
        rng.uniform(-85, 60, 20),
        rng.uniform(0.25, 30, 20),
        rng.uniform(0.25, 20, 20),
        strict=True,
    )
]


@pytest.mark.slow
@pytest.mark.parametrize("source", ["tif", "cube", "chunks"])
def test_compat_gives_the_same_bits(cube, tif, reader, source):
    of = {"tif": tif, "cube": cube, "chunks": cube.chunk(lat=45, lon=45)}[source]
    boxes = BOXES if source == "cube" else BOXES[::3]
    for corners in boxes:
        want = reader.window(*corners)
        ask = {"spatial": BBox(*corners), "temporal": TemporalSpec.year(2021), "compat": True}
        for output, pool in ((POOLED, want.mean), (MAX, want.max)):
            got = copcube.get_embedding(of, output=output, **ask)
            assert got.data.dtype == np.float32
            np.testing.assert_array_equal(got.data, pool(axis=(1, 2)).astype(np.float32))
            assert got.meta["chw_shape"] == want.shape
        cells = copcube.get_embedding(of, output=GRID, **ask).data
        np.testing.assert_array_equal(cells, want)
        assert cells.dims == ("d", "y", "x")
        assert cells.x.values.tolist() == [*range(want.shape[2])]


@pytest.mark.slow
def test_a_point_buffer_is_its_square(cube, reader):
    lat, lon, metres = 47.3, 8.5, 40_000
    dlat = metres / 111_320
    dlon = metres / (111_320 * math.cos(math.radians(lat)))
    want = reader.window(lon - dlon, lat - dlat, lon + dlon, lat + dlat).mean(axis=(1, 2))
    got = copcube.get_embedding(
        cube, spatial=PointBuffer(lon, lat, metres), temporal=2021, compat=True
    )
    np.testing.assert_array_equal(got.data, want)


def test_by_default_regions_count_by_area(cube):
    got = copcube.get_embedding(cube, spatial=BBox(5, 45, 10, 48), output=POOLED)
    want = box(cube, 5, 45, 10, 48)
    np.testing.assert_array_equal(got.data, want.embedding)
    assert got.meta["coverage"] == float(want.coverage)
    assert got.meta["cells_missing"] == int(want.cells_missing) > 0
    cells = copcube.get_embedding(cube, spatial=BBox(5, 45, 10, 48), output=GRID).data
    assert cells.shape == got.meta["chw_shape"] == cells.attrs["chw_shape"]
    assert cells.y[0] > cells.y[-1]
    assert float(cells.x[0]) == 5
    where = np.argwhere(np.isfinite(cells.values[0]))[7]
    place = cube.embedding.sel(lat=cells.y[where[0]], lon=cells.x[where[1]])
    np.testing.assert_array_equal(cells[:, where[0], where[1]], place)
    assert np.isnan(cells.values).any()


def test_by_default_small_places_seams_and_poles_are_answered(cube):
    full = cube.fillna(1).assign(n_images=cube.n_images * 0 + 1)
    small = copcube.get_embedding(full, spatial=PointBuffer(8.51, 47.01, 500)).data
    np.testing.assert_array_equal(small, full.embedding.sel(lat=47, lon=8.5))
    seam = copcube.get_embedding(full, spatial=(179, -1, -179, 1)).data
    np.testing.assert_array_equal(seam, box(full, 179, -1, 181, 1).embedding)
    pole = copcube.get_embedding(full, spatial={"lon": 5, "lat": 89.9, "buffer_m": 50_000})
    assert pole.meta["bbox_4326"][::2] == (-180, 180)
    for spatial in (PointBuffer(8.51, 47.01, 500), BBox(1, 2, 1.2, 3)):
        with pytest.raises(ModelError, match="is smaller than a cell"):
            copcube.get_embedding(full, spatial=spatial, temporal=2021, compat=True)


@pytest.mark.slow
@pytest.mark.parametrize("compat", [True, False])
def test_metadata_have_the_keys_of_the_contract(cube, tif, compat):
    got = copcube.get_embedding(tif, spatial=BOXES[0], temporal=2021, compat=compat)
    assert {*KEYS, "pooling"} <= got.meta.keys()
    assert got.meta["temporal"] == {
        "mode": "year",
        "year": 2021,
        "start": "2021-01-01",
        "end": "2022-01-01",
    }
    assert got.meta["dataset_path"] == str(tif)
    assert got.meta["product_resolution_deg"] == (0.25, 0.25)
    assert got.meta["pooling"] == "mean_hw"


@pytest.mark.slow
def test_batches_keep_their_order_and_name_what_fails(cube, monkeypatch):
    for workers in ("1", "3"):
        monkeypatch.setenv("RS_EMBED_COPERNICUS_BATCH_WORKERS", workers)
        found = copcube.get_embeddings_batch(cube, spatials=BOXES[:5])
        for one, corners in zip(found, BOXES, strict=False):
            want = copcube.get_embedding(cube, spatial=corners)
            np.testing.assert_array_equal(one.data, want.data)
    with pytest.raises(SpecError, match=r"spatials\[1\]: minlat=48"):
        copcube.get_embeddings_batch(cube, spatials=[BOXES[0], BBox(5, 48, 10, 45)])
    assert copcube.get_embeddings_batch(cube, spatials=[]) == []
    monkeypatch.setenv("RS_EMBED_COPERNICUS_BATCH_WORKERS", "many")
    with pytest.raises(ModelError, match="WORKERS='many'; expected a whole number"):
        copcube.get_embeddings_batch(cube, spatials=BOXES[:1])


def test_the_folder_comes_from_the_sensor_or_the_environment(tif, tmp_path, monkeypatch):
    monkeypatch.delattr("xarray.backends.plugins.list_engines")
    monkeypatch.setenv("RS_EMBED_COP_DIR", str(tmp_path))
    with pytest.raises(ModelError, match="not a cube, and no embed_map_"):
        copcube.get_embedding(spatial=BOXES[0], temporal=2021)
    sensor = types.SimpleNamespace(collection=f"dir:{tif.parent}")
    named = copcube.get_embedding(spatial=BOXES[0], temporal=2021, sensor=sensor)
    monkeypatch.setenv("RS_EMBED_COP_DIR", str(tif.parent))
    np.testing.assert_array_equal(copcube.get_embedding(spatial=BOXES[0]).data, named.data)


def test_years(cube):
    seasons = xr.concat([cube, 2 * cube], "year").assign_coords(year=np.array([2020, 2022], "i2"))
    one, two = (
        copcube.get_embedding(seasons, spatial=BOXES[0], temporal=time).data
        for time in (TemporalSpec("year", year=2020), ("2022-06-01", "2023-01-01"))
    )
    np.testing.assert_allclose(2 * one, two, rtol=1e-6)
    for time, message in (
        (2021, "the cube has no 2021; it holds 2020, 2022"),
        (None, "give one of the years 2020, 2022"),
    ):
        with pytest.raises(ModelError, match=message):
            copcube.get_embedding(seasons, spatial=BOXES[0], temporal=time)
    with pytest.raises(ModelError, match="has no 2019; it holds 2021 "):
        copcube.get_embedding(cube, spatial=BOXES[0], temporal=2019)
    dated = cube.assign_attrs(dates="2019-03..2020-05")
    assert copcube.describe(dated)["temporal"]["supported_years"] == [2019, 2020]
    spring = TemporalSpec("range", start="2019-12-01", end="2020-02-01")
    assert copcube.get_embedding(dated, spatial=BOXES[0], temporal=spring).meta["temporal"] == {
        "mode": "range",
        "start": "2019-12-01",
        "end": "2020-02-01",
    }
    with pytest.raises(ModelError, match="no time; give one of the years 2021"):
        copcube.get_embedding(cube, spatial=BOXES[0], compat=True)
    with pytest.warns(UserWarning, match="2021 is used"):
        copcube.get_embedding(
            cube, spatial=BOXES[0], temporal=("2021-05-01", "2022-05-01"), compat=True
        )


def test_modalities(cube):
    flags = {"flag_values": [0, 1], "flag_meanings": "s2_toa dem"}
    by = xr.concat([cube, 2 * cube], "modality").assign_coords(
        modality=("modality", np.arange(2, dtype="i1"), flags)
    )
    got = copcube.get_embedding(by, spatial=BOXES[0], modality="dem").data
    np.testing.assert_allclose(
        got, 2 * copcube.get_embedding(cube, spatial=BOXES[0]).data, rtol=1e-6
    )
    with pytest.raises(ModelError, match="modality='s9'; the cube has s2_toa, dem"):
        copcube.get_embedding(by, spatial=BOXES[0], modality="s9")
    with pytest.raises(ModelError, match="groups along modality"):
        copcube.get_embedding(by, spatial=BOXES[0])


@pytest.mark.parametrize(
    ("request_", "error", "message"),
    [
        ({"spatial": BBox(5, 48, 10, 45)}, SpecError, "minlat=48, maxlat=45"),
        ({"spatial": BBox(1, 2, 3, 4, "EPSG:3857")}, SpecError, "crs='EPSG:3857'"),
        ({"spatial": BBox(170, 2, -170, 4), "compat": True}, SpecError, "-180 <= minlon < maxlon"),
        ({"spatial": PointBuffer(1, 2, 0)}, SpecError, "buffer_m=0; expected metres"),
        ({"spatial": (1, np.nan, 3, 4)}, SpecError, "are not all numbers"),
        ({"spatial": "here"}, SpecError, "the place is a str"),
        ({"spatial": None}, SpecError, "the place is a NoneType"),
        ({"temporal": TemporalSpec("month")}, SpecError, "of mode 'month'"),
        ({"temporal": ("2021-05-01", "2021-04-01")}, SpecError, "is not before"),
        ({"temporal": ("May", "June")}, SpecError, "expected days, YYYY-MM-DD"),
        ({"temporal": "last"}, SpecError, "expected a calendar year"),
        ({"output": OutputSpec("pooled", "median")}, SpecError, "expected pooled or grid"),
        ({"output": 3}, SpecError, "expected pooled or grid"),
        ({"backend": "gee"}, ModelError, "backend='gee'"),
        ({"compat": "no"}, SpecError, "compat is 'no'"),
        ({"cube": xr.DataArray(0)}, ModelError, "cube is .*DataArray.*or a cube as xarray.Dataset"),
    ],
)
def test_requests_that_make_no_sense_are_refused_by_name(cube, request_, error, message):
    with pytest.raises(error, match=message):
        copcube.get_embedding(**{"cube": cube, "spatial": BOXES[0], "temporal": 2021, **request_})


def test_bounds_of_a_frame_and_years_of_a_cube_are_understood(cube):
    want = copcube.get_embedding(cube, spatial=BOXES[0], temporal=2021)
    found = copcube.get_embedding(cube, spatial=np.array(BOXES[0]), temporal=np.int16(2021))
    assert np.array_equal(found.data, want.data)
    assert found.meta == want.meta
    (batch,) = copcube.get_embeddings_batch(cube, spatials=np.array([BOXES[0]]), temporal=2021)
    assert np.array_equal(batch.data, want.data)
    for none in (None, 3, "5,45,10,48"):
        with pytest.raises(SpecError, match=r"spatials is .*; expected a list of places"):
            copcube.get_embeddings_batch(cube, spatials=none)


def test_a_year_or_a_modality_that_was_selected_is_that_of_the_cube(cube):
    years = xr.concat([cube, 2 * cube], "year").assign_coords(year=np.array([2020, 2022], "i2"))
    one = years.sel(year=2022)
    wanted = copcube.get_embedding(years, spatial=BOXES[0], temporal=2022)
    assert copcube.describe(one)["temporal"]["supported_years"] == [2022]
    for time in (2022, None):
        found = copcube.get_embedding(one, spatial=BOXES[0], temporal=time)
        np.testing.assert_array_equal(found.data, wanted.data)
        assert found.meta["temporal"]["year"] == 2022
    for time in (2020, 2021):
        with pytest.raises(ModelError, match=f"has no {time}; it holds 2022"):
            copcube.get_embedding(one, spatial=BOXES[0], temporal=time)
    with pytest.raises(ModelError, match="has no 2021; it holds 2022: rs-embed knows no other"):
        copcube.get_embedding(one, spatial=BOXES[0], temporal=2021, compat=True)
    flags = {"flag_values": np.int8([1, 7]), "flag_meanings": "s2_toa dem"}
    both = xr.concat([cube, 2 * cube], "modality")
    both = both.assign_coords(modality=("modality", np.int8([1, 7]), flags))
    dem = both.isel(modality=1)
    found = copcube.get_embedding(dem, spatial=BOXES[0], modality="dem")
    np.testing.assert_array_equal(found.data, wanted.data)
    with pytest.raises(ModelError, match="modality='s2_toa'; the cube has dem"):
        copcube.get_embedding(dem, spatial=BOXES[0], modality="s2_toa")


def test_years_that_cannot_be_answered_are_told(cube):
    years = xr.concat([cube, cube], "year").assign_coords(year=[2019, 2020])
    with pytest.raises(ModelError, match="no 2021; it holds 2019, 2020: rs-embed knows no other"):
        copcube.get_embedding(years, spatial=BOXES[0], temporal=2021, compat=True)
    dated = years.assign_coords(year=np.array(["2019-01-01", "2020-01-01"], "M8[ns]"))
    for ask in (
        lambda: copcube.get_embedding(dated, spatial=BOXES[0], temporal=2020),
        lambda: copcube.describe(dated),
    ):
        with pytest.raises(ModelError, match=r"expected calendar years: .*year.dt.year"):
            ask()


@pytest.mark.slow
@pytest.mark.parametrize("version", [2, 3])
def test_a_part_or_a_reduction_is_taken_by_its_path(cube, tmp_path, monkeypatch, version):
    part = cube.sel(lat=slice(50, 44), lon=slice(4, 12))
    fields = reduce(part, 2)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name, ds in (("part.zarr", part), ("fields.zarr", fields)):
        ds.to_zarr(tmp_path / name, zarr_format=version, consolidated=version == 2)
        expected = copcube.get_embedding(ds, spatial=(5, 45, 10, 48))
        for path in (tmp_path / name, str(tmp_path / name), f"~/{name}"):
            found = copcube.get_embedding(path, spatial=(5, 45, 10, 48))
            np.testing.assert_array_equal(found.data, expected.data)
    (tmp_path / "other.zarr").mkdir()
    with pytest.raises(ModelError, match="not a cube, and no embed_map"):
        copcube.get_embedding(tmp_path / "other.zarr", spatial=(5, 45, 10, 48))


@pytest.fixture
def rs_embed(monkeypatch):
    """What of rs-embed the adapter uses, in the form that its contract states."""

    class RSEmbedError(Exception):
        pass

    errors = types.SimpleNamespace(
        SpecError=type("SpecError", (RSEmbedError,), {}),
        ModelError=type("ModelError", (RSEmbedError,), {}),
    )
    models = {}

    def register(name):
        def decorate(cls):
            models[name], cls.model_name = cls, name
            return cls

        return decorate

    @dataclass(frozen=True)
    class EmbedderCapabilities:
        input_chw: bool = False
        model_config_single: bool = False
        model_config_batch: bool = False

    @dataclass
    class Theirs:
        data: Any
        meta: dict

    parts = {
        "core": {"errors": errors},
        "core.errors": vars(errors),
        "core.registry": {"register": register},
        "core.types": {"EmbedderCapabilities": EmbedderCapabilities},
        "core.embedding": {"Embedding": Theirs},
        "embedders": {},
        "embedders.base": {"EmbedderBase": type("EmbedderBase", (), {})},
    }
    modules = {"rs_embed": types.ModuleType("rs_embed")}
    for name, content in parts.items():
        module = types.ModuleType(f"rs_embed.{name}")
        vars(module).update(content)
        modules[module.__name__] = module
    for name, module in modules.items():
        parent, _, last = name.rpartition(".")
        if parent:
            setattr(modules[parent], last, module)
        monkeypatch.setitem(sys.modules, name, module)
    return types.SimpleNamespace(models=models, errors=errors, Embedding=Theirs)


def test_a_cube_registers_as_a_model(rs_embed, cube, tif):
    register_rs_embed("copcube", cube)
    model = rs_embed.models["copcube"]()
    got = model.get_embedding(
        spatial=BBox(*BOXES[0]),
        temporal=TemporalSpec.year(2021),
        sensor=None,
        output=POOLED,
        backend="auto",
    )
    assert isinstance(got, rs_embed.Embedding)
    assert got.meta["model"] == "copcube"
    np.testing.assert_array_equal(got.data, copcube.get_embedding(cube, spatial=BOXES[0]).data)
    batch = model.get_embeddings_batch(
        spatials=[BBox(*b) for b in BOXES[:2]], model_config={"store": str(tif)}
    )
    np.testing.assert_allclose(batch[0].data, got.data, rtol=1e-6)
    assert model.capabilities.model_config_batch
    assert model.describe()["type"] == "precomputed"
    with pytest.raises(rs_embed.errors.ModelError, match="no 1999"):
        model.get_embedding(spatial=BBox(*BOXES[0]), temporal=TemporalSpec.year(1999))
    with pytest.raises(rs_embed.errors.SpecError, match="minlat"):
        model.get_embedding(spatial=BBox(1, 3, 2, 2))


def test_without_rs_embed_it_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "rs_embed", None)
    with pytest.raises(ImportError, match="pip install rs-embed"):
        register_rs_embed()


def test_embeddings_hold_what_they_say():
    assert Embedding(np.zeros(2, "f4"), {}).meta == {}
