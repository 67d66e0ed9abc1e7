import errno
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
import warnings
from dataclasses import replace

import jsonschema
import numpy as np
import pytest
import xarray as xr
import zarr
from strategies import random_rows
from zarr.storage import LocalStore

from copcube import cube, grid
from copcube.aggregate import Aggregation, cell_statistics
from copcube.cells import Cells
from copcube.cube import nodes, schema
from copcube.errors import CubeError, OptionError, StorageError
from copcube.files.folders import LocalFolder
from copcube.files.states import FileState
from copcube.grouping import MONTHS, SEASONS
from copcube.modalities import MODALITIES

DIM = 6
GROUPS = {
    None: (),
    "modality": ("s1_grd", "dem"),
    "season": SEASONS,
}


def cells_of(by=None, seed=0) -> Cells:
    """Statistics of 60 cells, of fewer where there are groups, each with its own chunks."""
    n, cells = (400, 60) if by is None else (120, 15)
    rows = random_rows(n, cells, DIM, seed)
    return cell_statistics(rows, Aggregation(by=by), GROUPS[by])


def band_of(cells):
    return grid.row_col(cells.grid_id)[0] // grid.BLOCK


def build(path, cells, by=None, order=range(grid.N_BANDS), finish=True):
    cube.create(path, dim=DIM, by=by, groups=GROUPS[by], attrs={"encoder": "x"})
    for band in order:
        cube.write_band(path, band, cells.take(band_of(cells) == band))
    if finish:
        cube.finish(path, {"history": "made in a test"})
    return path


def digests(path):
    return {
        str(file.relative_to(path)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(path.rglob("*"))
        if file.is_file()
    }


@pytest.fixture(scope="module", autouse=True)
def no_flushing():
    """Nothing here is about power cuts, and flushing takes a third of the time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(scope="module")
def cells():
    return cells_of()


@pytest.fixture(scope="module")
def world(tmp_path_factory, cells):
    """A finished cube without groups; read only."""
    return build(tmp_path_factory.mktemp("cube") / "world.zarr", cells)


@pytest.fixture
def copy(world, tmp_path):
    """The same, to be spoilt."""
    return shutil.copytree(world, tmp_path / "copy.zarr")


@pytest.mark.slow
@pytest.mark.parametrize("by", GROUPS)
def test_every_cell_comes_back_and_the_cube_is_valid(tmp_path, by):
    cells, rows = cells_of(by), slice(None)
    if by == "season":  # of the north alone, for the globe has 2,176 chunks of each variable
        cells, rows = cells.take(band_of(cells) < 4), slice(4 * 45)
    path = build(tmp_path / "a.zarr", cells, by)
    assert cube.validate(path) == []
    ds = xr.open_zarr(path, chunks=None).isel(lat=rows).load()
    row, col = grid.row_col(cells.grid_id)
    lead = () if by is None else (cells.group,)
    assert np.array_equal(ds.embedding.values[(*lead, row, col)], cells.embedding)
    assert np.array_equal(ds.spread.values[(*lead, row, col)], cells.spread)
    assert np.array_equal(ds.n_images.values[(*lead, row, col)], cells.n_images)
    filled = np.zeros(ds.n_images.shape, bool)
    filled[(*lead, row, col)] = True
    assert np.array_equal(filled, ds.n_images.values > 0)
    assert np.array_equal(filled, ds.embedding.notnull().all("dim").values)
    assert np.array_equal(filled, ds.embedding.notnull().any("dim").values)
    assert np.array_equal(filled, ds.spread.notnull().values)
    if by == "modality":
        assert "n_images_by_modality" not in ds
    else:
        by_modality = np.moveaxis(ds.n_images_by_modality.values, -3, -1)
        assert np.array_equal(by_modality[(*lead, row, col)], cells.n_by_modality)
    assert ds.embedding.dims == (*(() if by is None else (by,)), "lat", "lon", "dim")


@pytest.mark.slow
def test_the_schema_of_the_design(world):
    ds = xr.open_zarr(world)
    found = {name: (v.dims, v.dtype.name, v.encoding.get("chunks")) for name, v in ds.items()}
    assert found == {
        "embedding": (("lat", "lon", "dim"), "float32", (45, 45, DIM)),
        "spread": (("lat", "lon"), "float32", (45, 45)),
        "n_images": (("lat", "lon"), "int32", (45, 45)),
        "n_images_by_modality": (("modality", "lat", "lon"), "int32", (8, 45, 45)),
    }
    coords = {name: v.dtype.name for name, v in ds.coords.items()}
    assert coords == {
        "lat": "float64",
        "lon": "float64",
        "dim": "int16",
        "modality": "int8",
        "lat_bnds": "float64",
        "lon_bnds": "float64",
        "crs": "int32",
    }
    assert np.array_equal(ds.lat, np.linspace(90, -90, 721))
    assert np.array_equal(ds.lon, np.arange(0, 360, 0.25))
    assert ds.modality.attrs["flag_meanings"].split() == list(MODALITIES)
    assert ds.modality.attrs["flag_values"] == list(range(8))
    assert ds.attrs["Conventions"] == "CF-1.11"
    assert (ds.attrs["encoder"], ds.attrs["history"]) == ("x", "made in a test")
    assert list(zarr.open_group(world, mode="r").attrs) == sorted(ds.attrs | {"coordinates": 0})


@pytest.mark.slow
def test_the_era5_coordinates_are_those_of_a_real_file(world, era5_static):
    ds = xr.open_zarr(world)
    with xr.open_dataset(era5_static) as era5:
        lat = era5["latitude" if "latitude" in era5 else "lat"]
        lon = era5["longitude" if "longitude" in era5 else "lon"]
        assert np.array_equal(lat, ds.lat)
        assert np.array_equal(lon, ds.lon)


@pytest.fixture
def era5_static(request):
    path = request.config.rootpath.parent / "shared" / "data" / "era5_static_025.nc"
    if not path.exists():
        pytest.skip(f"{path.name} is not there")
    return path


@pytest.mark.slow
@pytest.mark.parametrize(("by", "groups"), [("year", ("1999", "2021")), ("month", MONTHS[::6])])
def test_numbers_label_times(tmp_path, by, groups):
    cube.create(tmp_path / "a.zarr", dim=DIM, by=by, groups=groups)
    cube.finish(tmp_path / "a.zarr")
    ds = cube.open_cube(tmp_path / "a.zarr")
    assert ds[by].dtype == np.int16
    assert ds[by].values.tolist() == [int(label) for label in groups]
    assert {dim: sizes[0] for dim, sizes in ds.chunksizes.items() if dim in ds.embedding.dims} == {
        by: 1,
        "lat": 45,
        "lon": 45,
        "dim": DIM,
    }
    assert cube.summary(tmp_path / "a.zarr").groups == groups


@pytest.mark.slow
def test_plain_xarray_opens_it_silently_without_copcube(world, cells):
    code = """
        import sys, warnings
        warnings.simplefilter("error")
        # xarray before 2026 loads every engine that is installed, whichever it needs.
        warnings.filterwarnings("ignore", "Engine 'copembed' loading failed")
        class Blocked:
            def find_spec(self, name, path=None, target=None):
                if name.split(".")[0] == "copcube":
                    raise ImportError("copcube is not installed here")
        sys.meta_path.insert(0, Blocked())
        import xarray as xr
        assert xr.open_zarr(sys.argv[1]).embedding.chunks
        ds = xr.open_zarr(sys.argv[1], chunks=None)  # dask takes seconds for 544 chunks
        print(int(ds.n_images.sum()), int(ds.embedding.notnull().all("dim").sum()))
        try:
            import copcube
        except ImportError:
            print("alone")
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), str(world)],
        capture_output=True,
        text=True,
        cwd=world.parent,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    assert done.stdout.split() == ["400", str(len(cells)), "alone"]


def test_only_core_codecs_and_types_are_stored(world):
    for file in world.rglob("zarr.json"):
        metadata = json.loads(file.read_text())
        if metadata["node_type"] == "array":
            assert [codec["name"] for codec in metadata["codecs"]] == ["bytes", "zstd"]
            assert metadata["data_type"] in ("float32", "float64", "int8", "int16", "int32")


def test_rioxarray_reads_the_georeference(world):
    import rioxarray  # noqa: F401

    ds = xr.open_zarr(world)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PendingDeprecationWarning)  # of affine, in rioxarray
        for data in (ds, ds.n_images, ds.embedding):
            assert data.rio.crs.to_epsg() == 4326
        expected = (0.25, 0, -0.125, 0, -0.25, 90.125)
        assert tuple(ds.n_images.rio.transform())[:6] == expected
        assert tuple(ds.n_images.rio.transform(recalc=True))[:6] == expected
        assert (ds.n_images.rio.x_dim, ds.n_images.rio.y_dim) == ("lon", "lat")


def test_the_grid_mapping_is_what_pyproj_says(world):
    from pyproj import CRS

    codes = conventions(world)["attributes"]
    assert CRS.from_wkt(codes["proj:wkt2"]) == CRS.from_user_input(codes["proj:code"])
    attrs = xr.open_zarr(world).crs.attrs
    assert CRS.from_wkt(attrs["crs_wkt"]).to_epsg() == 4326
    assert CRS.from_cf(attrs) == CRS.from_wkt(attrs["crs_wkt"])
    usual = CRS.from_epsg(4326).to_cf()
    for name in ("grid_mapping_name", "semi_major_axis", "inverse_flattening"):
        assert attrs[name] == usual[name]


def test_bounds_reach_half_a_cell_and_stop_at_the_poles(world):
    ds = xr.open_zarr(world)
    assert ds.lat_bnds[0].values.tolist() == [90, 89.875]
    assert ds.lat_bnds[-1].values.tolist() == [-89.875, -90]
    assert ds.lon_bnds[0].values.tolist() == [-0.125, 0.125]
    assert (ds.lat.attrs["bounds"], ds.lon.attrs["bounds"]) == ("lat_bnds", "lon_bnds")


PAIR = {"type": "array", "items": {"type": "integer", "minimum": 1}, "minItems": 2, "maxItems": 2}
GEOEMB = {
    "type": "object",
    "required": ["zarr_format", "node_type", "attributes"],
    "properties": {
        "node_type": {"const": "group"},
        "attributes": {
            "type": "object",
            "required": [
                "zarr_conventions",
                *(f"geoemb:{n}" for n in ("type", "dimensions", "model", "source_data")),
                *(f"geoemb:{n}" for n in ("data_type", "chip_layout")),
            ],
            "properties": {
                "zarr_conventions": {
                    "type": "array",
                    "contains": {
                        "properties": {
                            "schema_url": {
                                "const": "https://raw.githubusercontent.com/geo-embeddings/"
                                "embeddings-zarr-convention/refs/tags/v1/schema.json"
                            },
                            "spec_url": {
                                "const": "https://github.com/geo-embeddings/"
                                "embeddings-zarr-convention/blob/v1/README.md"
                            },
                            "uuid": {"const": "61c12cc5-0e28-4056-999a-480cf3fb7e4c"},
                            "name": {"const": "geoemb:"},
                            "description": {
                                "const": "Geoembeddings convention for geospatial embedding "
                                "arrays with model provenance"
                            },
                        },
                        "required": ["uuid"],
                        "additionalProperties": False,
                    },
                },
                "geoemb:type": {"const": "chip"},
                "geoemb:dimensions": {"type": "integer", "minimum": 1},
                "geoemb:model": {"type": "string", "pattern": "^https://"},
                "geoemb:source_data": {
                    "type": "array",
                    "items": {"type": "string", "pattern": "^https://"},
                    "minItems": 1,
                },
                "geoemb:data_type": {"type": "string"},
                "geoemb:spatial_layout": {"enum": ["utm_zones", "global"]},
                "geoemb:chip_layout": {
                    "type": "object",
                    "properties": {
                        "layout_type": {"enum": ["regular_grid", "irregular"]},
                        "chip_size": PAIR,
                        "stride": PAIR,
                        "grid_id": {"type": "string"},
                        "grid_definition": {"type": "string"},
                    },
                    "required": ["layout_type", "chip_size"],
                    "additionalProperties": False,
                },
            },
        },
    },
}
"""Rules of schema.json of the geo-embeddings convention, version 1, for chips."""


def conventions(path):
    return json.loads((path / "conventions" / "zarr.json").read_text())


def test_geoemb_attributes_satisfy_the_schema_of_the_convention(world):
    metadata = conventions(world)
    jsonschema.validate(metadata, GEOEMB)
    assert metadata["attributes"]["geoemb:dimensions"] == DIM
    ds = xr.open_zarr(world)
    assert not [name for name in ds.attrs if ":" in name or name == "zarr_conventions"]


def test_vectors_of_other_products_are_not_called_those_of_copernicus_fm(tmp_path):
    known = {"product": "P", "references": "https://arxiv.org/abs/1"}
    pages = {
        "https://arxiv.org/abs/1": known,
        "https://a.b": known | {"encoder_page": "https://a.b"},
    }
    for number, (page, attrs) in enumerate(pages.items()):
        cube.create(tmp_path / f"{number}.zarr", dim=2, attrs=attrs)
        said = conventions(tmp_path / f"{number}.zarr")["attributes"]
        assert (said["geoemb:model"], said["geoemb:source_data"]) == (page, [page])


def numbers(count, **items):
    return {"type": "array", "items": items, "minItems": count, "maxItems": count}


def declared(uuid, name):
    """A convention of github.com/zarr-conventions, version 0.1, is among those declared."""
    known = {"uuid": uuid, "name": name}
    known["schema_url"] = (
        f"https://raw.githubusercontent.com/zarr-conventions/{name}/refs/tags/v0.1/schema.json"
    )
    entry = {"properties": {key: {"const": value} for key, value in known.items()}}
    entry |= {"required": ["uuid"], "additionalProperties": False}
    return {"zarr_conventions": {"type": "array", "contains": entry}}


SPATIAL = {
    "required": ["zarr_conventions", "spatial:dimensions", "spatial:transform"],
    "properties": {
        **declared("689b58e2-cf7b-45e0-9fff-9cfc0883d6b4", "spatial"),
        "spatial:dimensions": numbers(2, type="string"),
        "spatial:bbox": numbers(4, type="number"),
        "spatial:transform": numbers(6, type="number"),
        "spatial:shape": numbers(2, type="integer", minimum=1),
        "spatial:registration": {"enum": ["node", "pixel"]},
    },
}
PROJ = {
    "required": ["zarr_conventions", "proj:code", "proj:wkt2"],
    "properties": {
        **declared("f17cb550-5864-4468-aeb7-f3180cfb622f", "proj"),
        "proj:code": {"type": "string", "pattern": "^[A-Z]+:[0-9]+$"},
        "proj:wkt2": {"type": "string"},
    },
}
"""Rules of the conventions' schemas, for what a map on a regular grid has to say."""


@pytest.mark.parametrize("rules", [SPATIAL, PROJ], ids=["spatial", "proj"])
def test_spatial_and_proj_attributes_satisfy_the_schemas_of_their_conventions(world, rules):
    attrs = conventions(world)["attributes"]
    jsonschema.validate(attrs, rules)
    for name in rules["required"]:
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({k: v for k, v in attrs.items() if k != name}, rules)


def test_the_affine_transform_of_the_conventions_is_that_of_the_coordinates(world):
    attrs, ds = conventions(world)["attributes"], xr.open_zarr(world)
    a, _, c, _, e, f = attrs["spatial:transform"]
    rows, cols = attrs["spatial:shape"]
    assert attrs["spatial:dimensions"] == ["lat", "lon"]
    assert np.array_equal(c + a * (np.arange(cols) + 0.5), ds.lon)
    assert np.array_equal(f + e * (np.arange(rows) + 0.5), ds.lat)
    assert attrs["spatial:bbox"] == [c, f + e * rows, c + a * cols, f]


@pytest.mark.slow
def test_a_cube_that_the_first_release_began_is_finished_as_it_is(world, cells, tmp_path):
    """Its maps have one chunk all around the globe, and each chunk lies in folders of its own."""
    variables, of_array = schema.variables, nodes.of_array

    def earlier(*arguments, **options):
        parts = variables(*arguments, **options)
        return {n: replace(v, chunks=schema.earlier_chunks(v)) for n, v in parts.items()}

    def in_folders(variable):
        names = {"name": "default", "configuration": {"separator": "/"}}
        return of_array(variable) | {"chunk_key_encoding": names}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(schema, "variables", earlier)
        patch.setattr(nodes, "of_array", in_folders)
        path = build(tmp_path / "a.zarr", cells)
    assert zarr.open_array(path / "n_images", mode="r").chunks == (45, 1440)
    assert [*path.glob("embedding/c/*/*/0")]
    assert not [*path.glob("*/c.*")]
    assert cube.validate(path) == []
    opened = [cube.open_cube(p).isel(lat=slice(45, 135)).compute() for p in (path, world)]
    xr.testing.assert_identical(*opened)
    loaded = [xr.open_zarr(p, chunks=None).load() for p in (path, world)]
    xr.testing.assert_identical(*loaded)
    # Results of it have one chunking all the same.
    assert xr.open_zarr(path).copembed.reduce(k=2).chunksizes["lon"] == 32 * (45,)


@pytest.mark.slow
def test_bytes_do_not_depend_on_order_or_repetition(world, cells, tmp_path):
    again = build(tmp_path / "again.zarr", cells, order=range(16, -1, -1))
    assert digests(again) == digests(world)
    for band in (0, 5, 9):
        cube.write_band(again, band, cells.take(band_of(cells) == band))
    cube.finish(again, {"history": "made in a test"})
    assert digests(again) == digests(world)


@pytest.mark.slow
def test_what_an_interrupted_write_left_is_replaced(world, cells, tmp_path):
    path = tmp_path / "a.zarr"
    cube.create(path, dim=DIM, attrs={"encoder": "x"})
    others = cells_of(seed=1)
    for band in range(grid.N_BANDS):
        cube.write_band(path, band, others.take(band_of(others) == band))
    (path / "embedding/c.3.1.0.0123.partial").write_bytes(b"half a chunk")
    (path / "embedding/.c.3.1.0.0123.partial").write_bytes(b"half a chunk")
    for name in ("embedding/c.16.0.0", "n_images/c.16.0", "n_images/c.3.0"):
        (path / name).write_bytes(b"a torn chunk")
    for band in range(grid.N_BANDS):
        cube.write_band(path, band, cells.take(band_of(cells) == band))
    cube.finish(path, {"history": "made in a test"})
    assert digests(path) == digests(world)


@pytest.mark.slow
def test_the_files_named_are_the_chunks_there(world, cells, tmp_path):
    path = tmp_path / "a.zarr"
    created = cube.create(path, dim=DIM)
    template = digests(path)
    assert {name: known.sha256 for name, known in created.items()} == template
    assert not any(name.startswith(("embedding/c", "n_images/c")) for name in template)
    named = {}
    for band in range(grid.N_BANDS):
        named |= cube.write_band(path, band, cells.take(band_of(cells) == band))
    assert {name: known.sha256 for name, known in named.items()} == {
        name: digest for name, digest in digests(path).items() if name not in template
    }
    assert all(known.size == (path / name).stat().st_size for name, known in named.items())
    assert LocalFolder(path).states(named) == {
        name: FileState(known.size, known.stamp) for name, known in named.items()
    }
    blocks = {grid.block_of(int(cell)) for cell in cells.grid_id}
    assert sum(name.startswith("embedding/") for name in named) == len(blocks)


@pytest.mark.slow
def test_a_user_s_zarr_settings_do_not_change_the_bytes(world, cells, tmp_path):
    with zarr.config.set({"array.write_empty_chunks": True}):
        again = build(tmp_path / "again.zarr", cells)
    assert digests(again) == digests(world)


def test_the_template_costs_no_memory(tmp_path):
    cube.create(tmp_path / "a.zarr", dim=768, by="month", groups=MONTHS)
    assert sum(f.stat().st_size for f in tmp_path.rglob("*") if f.is_file()) < 60_000
    assert xr.open_zarr(tmp_path / "a.zarr", consolidated=False).embedding.nbytes > 38e9


def test_what_does_not_fit_is_refused(cells, tmp_path):
    path = tmp_path / "a.zarr"
    cube.create(path, dim=DIM)
    inside = cells.take(band_of(cells) == band_of(cells)[0])
    band = int(band_of(inside)[0])
    with pytest.raises(CubeError, match="cells of other rows"):
        cube.write_band(path, band + 1, inside)
    twice = inside.take(np.r_[np.arange(len(inside)), 0])
    with pytest.raises(CubeError, match="1 cells twice"):
        cube.write_band(path, band, twice)
    with pytest.raises(CubeError, match="band 17 does not exist"):
        cube.write_band(path, 17, inside)
    short = replace(inside, embedding=inside.embedding[:, :2])
    with pytest.raises(CubeError, match=f"vectors of length {DIM}; the cells have 2"):
        cube.write_band(path, band, short)
    grouped = replace(inside, group=np.full(len(inside), 2, np.int16))
    with pytest.raises(CubeError, match=r"in each of 1 groups.*groups up to 2"):
        cube.write_band(path, band, grouped)
    with pytest.raises(CubeError, match="exists already"):
        cube.create(path, dim=DIM)


@pytest.mark.parametrize(
    ("by", "groups"), [("month", ()), (None, ("a",)), ("week", ("1",)), ("year", ("x",))]
)
def test_dimensions_that_cannot_be(tmp_path, by, groups):
    with pytest.raises(OptionError):
        cube.create(tmp_path / "a.zarr", dim=DIM, by=by, groups=groups)
    assert not (tmp_path / "a.zarr").exists()


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(StorageError, match=r"a\.zarr cannot be written"):
        cube.create(tmp_path / "file" / "a.zarr", dim=DIM)


def spoil(path, name, where, value):
    with zarr.config.set({"array.write_empty_chunks": False}):
        zarr.open_array(path / name, mode="r+")[where] = value


def first(cells):
    row, col = grid.row_col(cells.grid_id)
    return int(row[0]), int(col[0])


def damage(path, cells, kind):
    row, col = first(cells)
    match kind:
        case "one value missing":
            spoil(path, "embedding", (row, col, 2), np.nan)
        case "infinite":
            spoil(path, "embedding", (row, col, 2), np.inf)
        case "chunk lost":
            (path / "embedding" / f"c.{row // 45}.{col // 45}.0").unlink()
        case "chunk broken":
            (path / "embedding" / f"c.{row // 45}.{col // 45}.0").write_bytes(b"\x00" * 20)
        case "stray vector":
            spoil(path, "embedding", (0, 0), np.ones(DIM))
        case "count":
            spoil(path, "n_images", (row, col), 99)
        case "negative spread":
            spoil(path, "spread", (row, col), -1.0)
        case "stray spread":
            spoil(path, "spread", (0, 0), 1.0)
        case "modalities":
            spoil(path, "n_images_by_modality", (3, row, col), 77)
        case "shifted lon":
            spoil(path, "lon", slice(None), np.arange(1440) / 4 - 180)
        case "variable lost":
            shutil.rmtree(path / "n_images_by_modality")
        case "attribute lost":
            group = zarr.open_group(path / "conventions", mode="r+")
            group.attrs.put({k: v for k, v in group.attrs.items() if k != "geoemb:model"})
        case "group lost":
            shutil.rmtree(path / "conventions")
        case "units":
            zarr.open_array(path / "lat", mode="r+").attrs["units"] = "metres"
        case "copies":
            text = (path / "zarr.json").read_text().replace("degrees_north", "degrees_south")
            (path / "zarr.json").write_text(text)


DAMAGES = {
    "one value missing": r"images, but no complete, finite vector: 1 cells, the first at lat",
    "infinite": r"images, but no complete, finite vector: 1 cells",
    "chunk lost": r"embedding/c\.\d+\.\d+\.0: missing; embedding of cells of lat",
    "chunk broken": r"embedding/c\.\d+\.\d+\.0: damaged \(not decodable: .*; embedding of",
    "stray vector": r"vector without images: 1 cells, the first at lat 90.0, lon 0.0",
    "count": r"counts of the modalities do not add up: 1 cells",
    "negative spread": r"images, but no finite spread: 1 cells",
    "stray spread": r"spread without images: 1 cells",
    "modalities": r"counts of the modalities do not add up: 1 cells",
    "shifted lon": r"lon: values are not those",
    "variable lost": r"variable n_images_by_modality is missing",
    "attribute lost": r"attribute geoemb:model is missing",
    "group lost": "group conventions is missing, as in a copy written by xarray",
    "units": r"lat: attribute units 'metres'; expected 'degrees_north'",
    "copies": r"lat/zarr.json: not the same as its copy in zarr.json of the cube",
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_damage_is_found_and_placed(copy, cells, kind):
    damage(copy, cells, kind)
    problems = cube.validate(copy)
    assert len(problems) == 2, problems
    assert problems[1].startswith("to repair the cube: restore it from a copy")
    assert re.search(DAMAGES[kind], problems[0])


def test_what_is_counted_is_told_beside_the_counts(tmp_path):
    cube.create(tmp_path / "a.zarr", dim=2, attrs={"n_images_comment": "pixels"})
    cube.finish(tmp_path / "a.zarr")
    assert dict(cube.summary(tmp_path / "a.zarr").lines())["n images comment"] == "pixels"


@pytest.mark.slow
def test_the_summary_counts(world, cells):
    found = cube.summary(world)
    row, _ = grid.row_col(cells.grid_id)
    assert found.shape == (721, 1440, DIM)
    assert (found.by, found.groups, found.cells_by_group) == (None, (), ())
    assert (found.cells, found.images) == (len(cells), 400)
    by_modality = dict(zip(MODALITIES, cells.n_by_modality.sum(axis=0).tolist(), strict=True))
    assert found.images_by_modality == by_modality
    lat = 90 - row / 4
    assert found.lat == (lat.min(), lat.max())
    edges = np.sin(np.radians(np.clip([lat + 0.125, lat - 0.125], -90, 90)))
    assert found.area == pytest.approx((edges[0] - edges[1]).sum() / 2 / 1440)
    assert found.attributes["encoder"] == "x"
    assert found.stored == sum(f.stat().st_size for f in world.rglob("*") if f.is_file())
    lines = dict(found.lines())
    assert lines["shape"] == f"721 × 1440 × {DIM}"
    assert lines["cells"].startswith(f"{len(cells)}, ")


@pytest.mark.slow
@pytest.mark.parametrize("by", ["modality", "season"])
def test_the_summary_counts_groups(tmp_path, by):
    cells = cells_of(by)
    found = cube.summary(build(tmp_path / "a.zarr", cells, by))
    assert (found.by, found.groups) == (by, GROUPS[by])
    counts = np.bincount(cells.group, minlength=len(GROUPS[by]))
    assert found.cells_by_group == tuple(counts)
    assert found.cells == len(set(cells.grid_id.tolist()))
    assert sum(found.images_by_modality.values()) == found.images == cells.n_images.sum()


def test_the_summary_looks_for_no_chunk_that_is_not_stored(world, monkeypatch):
    asked = []
    get = LocalStore.get

    async def noted(store, key, *args, **options):
        asked.append(key)
        return await get(store, key, *args, **options)

    monkeypatch.setattr(LocalStore, "get", noted)
    cube.summary(world)
    assert "n_images/zarr.json" in asked
    assert all((world / key).is_file() for key in asked if "/c." in key)


@pytest.mark.parametrize(
    ("cols", "ends"),
    [
        ([0], (0, 0)),
        ([1430, 5], (-2.5, 1.25)),
        ([700, 730], (175, -177.5)),
        (range(1440), (-180, 179.75)),
        ([], None),
    ],
)
def test_the_extent_is_the_shortest_arc(cols, ends):
    assert grid.shortest_arc(np.array(sorted(cols), np.int64)) == ends


def test_other_things_are_no_cubes(tmp_path):
    (tmp_path / "a.txt").write_text("x")
    zarr.create_group(tmp_path / "other.zarr")
    xr.Dataset({"x": ("y", [1.0])}, attrs={"title": "z"}).to_zarr(
        tmp_path / "more.zarr", consolidated=False
    )
    for name in ("world.build/plan.json", "world.build/rows/0000.parquet"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text("{}")
    (tmp_path / "empty").mkdir()
    fields = xr.Dataset({"pc": ("component", [1.0])}, attrs={"title": "z"})
    fields.to_zarr(tmp_path / "fields.zarr", consolidated=False)
    separate = fields.rename(pc="pc_00")
    separate.to_zarr(tmp_path / "separate.zarr", consolidated=False)
    for name, found in (
        ("none", "nothing"),
        ("empty", "an empty folder"),
        ("fields.zarr", "a reduction, alone or merged; `copcube info` describes it"),
        ("separate.zarr", "vectors as one variable per component, for other readers"),
        ("a.txt", "text, which begins 'x'"),
        ("world.build", "the folder of a build, which `copcube status` describes"),
        ("world.build/rows", "a folder of tables, from which `copcube aggregate` may make a cube"),
        ("other.zarr", "something else"),
        ("more.zarr", "a Zarr group of something else"),
    ):
        path = tmp_path / name
        for function in (cube.open_cube, cube.summary):
            with pytest.raises(CubeError, match=f"expected an embedding cube .*found {found}"):
                function(path)
        assert f"found {found}" in cube.validate(path)[0]
    assert cube.read_attributes(tmp_path / "none") == {}
    assert cube.read_attributes(tmp_path / "more.zarr") == {"title": "z"}


def test_a_later_schema_is_refused(copy):
    zarr.open_group(copy, mode="r+").attrs["copcube_schema"] = schema.VERSION + 1
    with pytest.raises(CubeError, match="update copcube"):
        cube.open_cube(copy)


def test_half_a_cube_is_refused(copy):
    shutil.rmtree(copy / "n_images")
    with pytest.raises(CubeError, match="lacks n_images"):
        cube.summary(copy)


def test_a_part_of_a_cube_is_not_called_damaged(copy, tmp_path):
    part = xr.open_zarr(copy, chunks=None).isel(lat=slice(0, 90))
    part.to_zarr(tmp_path / "part.zarr", consolidated=False)
    with pytest.raises(CubeError, match="part of a cube, of 90 × 1440 cells"):
        cube.summary(tmp_path / "part.zarr")


def test_a_cube_that_may_not_be_read_is_not_taken_for_something_else(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied", str(tmp_path / "zarr.json"))

    monkeypatch.setattr(zarr, "open_group", refuse)
    with pytest.raises(PermissionError, match=r"zarr\.json"):
        cube.read_attributes(tmp_path)
