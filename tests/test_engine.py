"""Published files, written here by numpy, torch, GDAL and pandas, open as the same cube."""

import io
import os
import pickle
import re
import shutil
import struct
import subprocess
import sys
import warnings
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import rasterio
import torch
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from copcube import era5, grid, pca
from copcube.cube import schema
from copcube.errors import CubeError, RowsError, WriteError
from copcube.interchange import cache, geotiff, to_npz
from copcube.interchange.engine import CopembedBackend
from copcube.interchange.sources import InPlace

DIM = 3
KNOWN = {772176: (44.0, 264.0), 906994: (67.25, 128.5), 200599: (-55.25, 289.75)}
CORNERS = (0, 719, 720, 1439, 720 * 1440, 720 * 1440 + 719, 721 * 1440 - 1)
FORMS = ("stored", "deflated", "pt", "tif", "parquet")
PROFILE = {
    "driver": "GTiff",
    "height": 721,
    "width": 1440,
    "crs": "EPSG:4326",
    "transform": rasterio.Affine(0.25, 0, -180.125, 0, -0.25, 90.125),
    "tiled": True,
    "blockxsize": 256,
    "blockysize": 256,
    "interleave": "pixel",
}


def vectors():
    """Published ids, ascending, and a vector for each; some sum to zero."""
    rng = np.random.default_rng(3)
    ids = np.unique(np.r_[rng.choice(721 * 1440, 500, replace=False), CORNERS, list(KNOWN)])
    values = rng.normal(size=(len(ids), DIM)).astype(np.float32)
    values[::50] = [1, -1, 0]
    return ids, values


def published_map():
    """As published: rows from the north pole, columns from 180°W (facts of the demo notebook)."""
    ids, values = vectors()
    image = np.zeros((721, 1440, DIM), np.float32)
    image[720 - ids // 1440, ids % 1440] = values
    return image


def name_of(number):
    return f"{number:07d}_{-180 + number % 1440 / 4:.2f}_{-90 + number // 1440 / 4:.2f}"


def write(folder, form):
    image = published_map()
    match form:
        case "stored":
            np.savez(path := folder / "embed_map_310k.npz", image)
        case "deflated":
            np.savez_compressed(path := folder / "embed_map_deflated.npz", image)
        case "pt":
            torch.save(torch.from_numpy(image), path := folder / "embed_map_310k.pt")
        case "tif":
            path = folder / "embed_map_310k.tif"
            with rasterio.open(
                path, "w", count=DIM, dtype="float32", compress="deflate", **PROFILE
            ) as file:
                file.write(np.moveaxis(image, -1, 0))
        case "parquet":
            ids, values = vectors()
            order = np.random.default_rng(0).permutation(len(ids))
            frame = pd.DataFrame(
                {
                    "grid_id_coord": [name_of(int(i)) for i in ids[order]],
                    "embedding": list(values[order]),
                }
            )
            frame.to_parquet(path := folder / "embeddings_avg_310k.parquet", row_group_size=100)
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("published")
    return {form: write(folder, form) for form in FORMS}


@pytest.fixture(scope="module")
def truth():
    """(lat, lon, dim) in ERA5's order by numpy alone."""
    image = published_map()
    image[(image == 0).all(-1)] = np.nan
    return np.concatenate([image[:, 720:], image[:, :720]], axis=1)


def opened(path, **options):
    return xr.open_dataset(path, engine=CopembedBackend, **options)


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_the_same_cube_in_era5_s_order(files, truth, form):
    """Ids count from the south pole, the map from the north: both must meet."""
    ds = opened(files[form])
    assert ds.embedding.dtype == np.float32
    assert np.array_equal(ds.embedding, truth, equal_nan=True)
    ids, values = vectors()
    for number, (lat, lon) in KNOWN.items():
        expected = values[np.searchsorted(ids, number)]
        assert np.array_equal(ds.embedding.sel(lat=lat, lon=lon), expected)


@pytest.mark.parametrize("form", FORMS)
def test_the_schema_is_that_of_cubes(files, form):
    ds = opened(files[form])
    assert ds.embedding.dims == ("lat", "lon", "dim")
    for name in ("lat", "lon", "dim", "lat_bnds", "lon_bnds", "crs"):
        variable = schema.variables(DIM, None, ())[name]
        assert np.array_equal(ds[name], variable.values)
        assert ds[name].dtype == variable.dtype
        assert ds[name].attrs == variable.attrs
        assert name in ds.coords
    assert ds.attrs["source"].startswith(os.path.basename(files[form]))
    assert "not counted" in ds.attrs["aggregation"]
    assert "n_images" not in ds
    assert ds.embedding.attrs["grid_mapping"] == "crs"
    assert "ancillary_variables" not in ds.embedding.attrs


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_dask_and_pickle(files, truth, form):
    ds = opened(files[form], chunks={})
    assert np.array_equal(ds.embedding, truth, equal_nan=True)
    copy = pickle.loads(pickle.dumps(opened(files[form])))
    assert np.array_equal(copy.embedding[100:200], truth[100:200], equal_nan=True)
    assert len(pickle.dumps(opened(files[form]).embedding.variable._data)) < 20_000


def indexers(size):
    return st.one_of(
        st.integers(-size, size - 1),
        st.slices(size).filter(lambda s: len(range(size)[s])),
        st.lists(st.integers(0, size - 1), min_size=1, max_size=4).map(np.array),
    )


@pytest.mark.parametrize("form", FORMS)
def test_any_piece_is_what_numpy_says(files, truth, form):
    ds = opened(files[form])

    @settings(max_examples=25, deadline=None)
    @given(indexers(721), indexers(1440), indexers(DIM))
    def check(y, x, d):
        piece = ds.embedding.isel(lat=y, lon=x, dim=d)
        expected = truth[y, :, :]
        axis = 0 if isinstance(y, int) else 1
        expected = expected[(slice(None),) * axis + (x,)]
        axis += 0 if isinstance(x, int) else 1
        expected = expected[(slice(None),) * axis + (d,)]
        assert np.array_equal(piece.values, expected, equal_nan=True)

    check()


def test_points_are_found_by_coordinates(files, truth):
    ids, values = vectors()
    row, col = grid.row_col(ids)
    for form in FORMS:
        found = opened(files[form]).embedding.sel(
            lat=xr.DataArray(90 - row / 4, dims="cell"), lon=xr.DataArray(col / 4, dims="cell")
        )
        assert np.array_equal(found, values)


def test_only_what_is_asked_is_read(files, monkeypatch):
    asked = []
    read = InPlace.read
    monkeypatch.setattr(InPlace, "read", lambda *a: (asked.append(a[1:]), read(*a))[1])
    ds = opened(files["stored"])
    assert asked == []
    ds.embedding.isel(lat=3, lon=[0, 719]).values  # noqa: B018
    ((rows, cols, dims),) = asked
    assert (rows.tolist(), cols.tolist()) == ([3], [720, 1439])
    assert list(range(DIM)[dims]) == [0, 1, 2]


@pytest.mark.parametrize("form", FORMS)
def test_chunks_of_what_is_decoded_are_those_of_cubes(files, form):
    chunks = opened(files[form], chunks={}).embedding.chunks
    if form in ("stored", "pt"):
        assert chunks == ((721,), (1440,), (DIM,))
    else:
        assert chunks == ((*16 * [45], 1), 32 * (45,), (DIM,))


@pytest.fixture
def tif(files, tmp_path):
    """A map that was never decoded."""
    return shutil.copyfile(files["tif"], tmp_path / "embed_map_copy.tif")


@pytest.fixture
def decoded(monkeypatch):
    """Corners of the tiles of GeoTIFFs that are decoded."""
    found = []
    filled = geotiff.filled_cells
    monkeypatch.setattr(geotiff, "filled_cells", lambda *a: (found.append(a[1:3]), filled(*a))[1])
    return found


TILES = [(y, x) for y in range(0, 721, 256) for x in range(0, 1440, 256)]


@pytest.mark.slow
@pytest.mark.parametrize("chunks", [None, {}])
def test_a_map_is_decoded_once(files, tif, decoded, chunks):
    ds = opened(tif, chunks=chunks)
    assert decoded == []
    ds.embedding.sel(lat=48.25, lon=11.5).load()
    assert decoded == TILES
    part = {"lat": slice(90, 225), "lon": slice(360, 720)}  # dask takes seconds for all chunks
    fields = pca.reduce(opened(tif, chunks=chunks).isel(part), k=2).compute()
    assert decoded == TILES
    expected = pca.reduce(opened(files["stored"]).isel(part), k=2)
    assert fields.pc.values.tobytes() == expected.pc.values.tobytes()


@pytest.mark.slow
def test_threads_decode_a_map_once(tif, truth, decoded):
    ds = opened(tif)
    rows = [slice(start, start + 90) for start in range(0, 721, 30)]
    with ThreadPoolExecutor(8) as pool:
        for row, values in zip(rows, pool.map(lambda r: ds.embedding[r].values, rows), strict=True):
            assert np.array_equal(values, truth[row], equal_nan=True)
    assert decoded == TILES


@pytest.mark.slow
def test_a_changed_file_is_decoded_anew(tif, truth, decoded):
    assert np.array_equal(opened(tif).embedding, truth, equal_nan=True)
    with rasterio.open(tif, "w", count=DIM, dtype="float32", **PROFILE) as file:
        file.write(np.moveaxis(2 * published_map(), -1, 0))
    assert np.array_equal(opened(tif).embedding, 2 * truth, equal_nan=True)
    assert decoded == 2 * TILES


@pytest.mark.parametrize("form", ["stored", "pt"])
@pytest.mark.parametrize("change", ["replaced", "longer vectors", "cut", "overwritten", "removed"])
def test_a_file_that_changes_while_it_is_open_gives_no_numbers(files, tmp_path, form, change):
    path = tmp_path / files[form].name
    shutil.copy(files[form], path)
    ds = opened(path)
    assert ds.embedding[0].notnull().any()
    image = published_map()
    if change == "longer vectors":
        image = np.concatenate([image, image], axis=-1)
    np.savez(tmp_path / "other.npz", image)
    match change:
        case "cut":
            os.truncate(path, path.stat().st_size // 3)
        case "overwritten":
            shutil.copyfile(tmp_path / "other.npz", path)
        case "removed":
            path.unlink()
        case _:
            os.replace(tmp_path / "other.npz", path)
    with pytest.raises(CubeError, match=rf"{path.name}: changed or removed since it was opened"):
        ds.embedding[-1].load()


@pytest.mark.slow
def test_a_file_that_changes_while_it_is_decoded_leaves_nothing_in_the_cache(
    tif, monkeypatch, tmp_path
):
    monkeypatch.setenv("COPCUBE_CACHE", str(tmp_path / "cache"))
    cells = geotiff.Raster.cells

    def changing(self):
        yield from cells(self)
        os.utime(tif)

    monkeypatch.setattr(geotiff.Raster, "cells", changing)
    with pytest.raises(CubeError, match=r"\.tif: changed or removed since it was opened"):
        opened(tif).embedding[0].load()
    assert not list((tmp_path / "cache").iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("what", ["all", "one chunk", "half a chunk", "the metadata"])
def test_what_was_removed_from_the_cache_is_decoded_again(tif, truth, monkeypatch, tmp_path, what):
    monkeypatch.setenv("COPCUBE_CACHE", str(tmp_path / "cache"))
    ds = opened(tif)
    assert np.array_equal(ds.embedding[:100], truth[:100], equal_nan=True)
    (entry,) = (tmp_path / "cache").iterdir()
    chunk = min(path for path in entry.iterdir() if path.name.startswith("c."))
    match what:
        case "all":
            shutil.rmtree(entry)
        case "one chunk":
            chunk.unlink()
        case "half a chunk":
            os.truncate(chunk, 1000)
        case "the metadata":
            (entry / "zarr.json").unlink()
    assert np.array_equal(ds.embedding, truth, equal_nan=True)
    assert np.array_equal(opened(tif).embedding, truth, equal_nan=True)
    assert list((tmp_path / "cache").iterdir()) == [entry]


@pytest.mark.slow
def test_the_cache_keeps_what_was_used_last(tif, truth, monkeypatch, tmp_path):
    monkeypatch.setenv("COPCUBE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(cache, "KEEP", 2)
    for number in range(3):
        path = shutil.copyfile(tif, tmp_path / f"embed_map_{number}.tif")
        opened(path).embedding[0].load()
        os.utime(*[max((tmp_path / "cache").iterdir(), key=os.path.getmtime)], (number, number))
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_the_cache_may_lie_at_home(monkeypatch, tmp_path):
    """Files of settings, unlike shells, leave the mark for it as it is."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("COPCUBE_CACHE", "~/maps")
    assert cache.cache_folder() == tmp_path / "maps"


def test_a_cache_that_cannot_be_written_is_named(tif, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("COPCUBE_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(WriteError, match="set COPCUBE_CACHE to a folder with room"):
        opened(tif).embedding.load()


def test_damage_found_while_decoding_leaves_nothing(tif, monkeypatch, tmp_path):
    monkeypatch.setenv("COPCUBE_CACHE", str(tmp_path / "cache"))
    tif.write_bytes(tif.read_bytes()[:-200])
    ds = opened(tif)
    with pytest.raises(CubeError, match="not a readable GeoTIFF"):
        ds.embedding.load()
    assert list((tmp_path / "cache").iterdir()) == []


FORKED = """
import os, sys
import numpy as np, xarray as xr
from copcube.interchange.engine import CopembedBackend
path, truth = sys.argv[1], np.load(sys.argv[2])
ds = xr.open_dataset(path, engine=CopembedBackend, cache=False)
right = lambda rows: np.array_equal(ds.embedding[rows].values, truth[rows], equal_nan=True)
assert right(slice(0, 100))
go, ready = os.pipe()
child = os.fork()
if child == 0:
    os.read(go, 1)
    os._exit(0 if right(slice(300, 400)) and right(slice(0, 100)) else 1)
assert right(slice(600, 721))
os.write(ready, b"x")
assert os.waitpid(child, 0)[1] == 0
assert right(slice(600, 721)) and right(slice(None))
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_process_leaves_its_parent_s_vectors_alone(files, truth, tmp_path):
    np.save(tmp_path / "truth.npy", truth)
    command = [sys.executable, "-c", FORKED, files["tif"], tmp_path / "truth.npy"]
    subprocess.run(command, check=True)


@pytest.mark.slow
def test_float16_float64_and_nan_are_understood(tmp_path, truth):
    image = published_map()
    np.savez(tmp_path / "a.npz", image.astype("f8"))
    assert np.array_equal(opened(tmp_path / "a.npz").embedding, truth, equal_nan=True)
    np.savez_compressed(tmp_path / "b.npz", image.astype("f2"))
    half = truth.astype("f2").astype("f4")
    assert np.array_equal(opened(tmp_path / "b.npz").embedding, half, equal_nan=True)
    image[(image == 0).all(-1)] = np.nan
    np.savez(tmp_path / "c.npz", embeddings=image)
    assert np.array_equal(opened(tmp_path / "c.npz").embedding, truth, equal_nan=True)
    torch.save({"map": torch.from_numpy(image)}, tmp_path / "d.pt")
    assert np.array_equal(opened(tmp_path / "d.pt").embedding, truth, equal_nan=True)
    two = torch.from_numpy(np.stack([image, image]))  # a view that does not start at 0
    torch.save(two[1], tmp_path / "e.pt")
    assert np.array_equal(opened(tmp_path / "e.pt").embedding, truth, equal_nan=True)


def test_coordinates_beside_a_map_may_say_the_same(tmp_path, truth):
    lon = np.arange(1440, dtype="f4") / 4 - 180
    np.savez(tmp_path / "a.npz", published_map(), lon=lon % 360, lat=90 - np.arange(721) / 4)
    assert np.array_equal(opened(tmp_path / "a.npz").embedding, truth, equal_nan=True)


@pytest.mark.parametrize("value", ["f8", "f2"])
def test_averages_of_any_precision_and_in_parts(tmp_path, truth, value):
    ids, values = vectors()
    for part in (0, 1):
        frame = pd.DataFrame(
            {
                "grid_id_coord": [name_of(int(i)) for i in ids[part::2]],
                "embedding": [v.astype(value).tolist() for v in values[part::2]],
                "more": part,
            }
        )
        frame.to_parquet(tmp_path / f"embeddings_avg_{part}.parquet")
    expected = truth.astype(value).astype("f4")
    ds = opened(tmp_path / "embeddings_avg_*.parquet")
    assert np.array_equal(ds.embedding, expected, equal_nan=True)


@pytest.mark.slow
def test_every_form_is_reduced_merged_and_exported_alike(files, tmp_path, shared_data):
    """The four lines of the README."""
    results = set()
    with xr.open_dataset(shared_data / "era5_static_025.nc") as statics:
        for form in FORMS:
            ds = opened(files[form])
            fields = pca.reduce(ds, k=2)
            both = era5.merge(fields, statics)
            to_npz(fields, tmp_path / "fields.npz", overwrite=True)
            results.add(
                both.pc.values.tobytes() + np.load(tmp_path / "fields.npz")["arr_0"].tobytes()
            )
    assert len(results) == 1


@pytest.mark.slow
def test_every_form_can_be_saved_as_zarr(files, truth, tmp_path):
    for form in FORMS:
        opened(files[form]).to_zarr(tmp_path / f"{form}.zarr", consolidated=False)
        with xr.open_zarr(tmp_path / f"{form}.zarr", consolidated=False) as again:
            assert np.array_equal(again.embedding, truth, equal_nan=True)


def test_variables_can_be_dropped(files):
    assert "embedding" not in opened(files["stored"], drop_variables="embedding")
    assert "crs" not in opened(files["stored"], drop_variables=["crs", "nothing"])


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("embed_map_310k.npz", True),
        ("x/embed_map_310k.pt", True),
        ("embeddings_avg_310k.parquet", True),
        ("embed_map_310k.tif", True),
        ("dem.tif", False),
        ("world.zarr", False),
        ("", False),
        (b"a.npz", False),
        (None, False),
        (io.BytesIO(b"PK"), False),
        (3, False),
    ],
)
def test_guessing_looks_at_the_name(name, answer):
    assert CopembedBackend().guess_can_open(name) is answer


class Evil:
    def __reduce__(self):
        return os.mkdir, ("evil-was-here",)


def broken(folder, kind):
    """A broken file and what is said of it."""
    image = published_map()
    path = folder / ("a.pt" if "pt" in kind.split() else "a.npz")
    match kind:
        case "no file":
            return folder / "none.npz", "none.npz: no such file; .*copcube fetch map"
        case "no form":
            (path := folder / "a.h5").write_bytes(b"x")
            return path, "expected a map as .npz, .*; found .h5"
        case "truncated npz":
            np.savez(path, image)
            path.write_bytes(path.read_bytes()[: 1 << 20])
            return path, "a.npz: not a complete npz archive .*truncated: get a new copy"
        case "empty npz":
            path.write_bytes(b"")
            return path, "expected an npz archive, found an empty file"
        case "npz of no arrays":
            with zipfile.ZipFile(path, "w"):
                pass
            return path, "expected the array arr_0, or a single array; found none"
        case "npz of two":
            np.savez(path, a=image[:1], b=image[:1])
            return path, "found a, b"
        case "npz on its side":
            np.savez(path, np.zeros((1440, 721, 2), np.float32))
            return path, r"the shape \(1440, 721, 2\); expected \(721, 1440, D\)"
        case "npz of integers":
            np.savez(path, np.zeros((721, 1440, 2), np.int32))
            return path, "arr_0 holds int32; expected float16"
        case "npz of codes":
            np.savez(path, np.zeros((721, 1440, 2), np.int8))
            return path, "int8 numbers need scale and offset, 2 floats each; found none"
        case "npz of a pickle":
            np.savez(path, np.array([Evil()], object))
            return path, r"the shape \(1,\); expected"
        case "npz in column order":
            np.savez(path, np.asfortranarray(image))
            return path, "column order; save it again"
        case "npz with a lie":
            buffer = io.BytesIO()
            np.save(buffer, image)
            with zipfile.ZipFile(path, "w") as archive:
                archive.writestr("arr_0.npy", buffer.getvalue()[:5000])
            return path, "does not have the length of its shape"
        case "npz with a broken description":
            np.savez(path, arr_0=image, copcube='{"variable": "lies"}')
            return path, "description under 'copcube' is broken .*'lies'"
        case "npz with a foreign description":
            bad = {"dims": ["lat"], "dtype": "float64", "data": [1.0], "attrs": {}}
            text = str({"others": {"lat": bad}}).replace("'", '"')
            np.savez(path, arr_0=image, copcube=text)
            return path, "description under 'copcube' is broken"
        case "npz from Greenwich":
            np.savez(path, image, lat=90 - np.arange(721) / 4, lon=np.arange(1440) / 4)
            return path, "lon runs from 0 to 359.75; expected -180 to 179.75"
        case "npz from the south":
            np.savez(path, image, latitude=np.arange(721) / 4 - 90)
            return path, "latitude runs from -90 to 90; expected 90 to -90"
        case "pt from Greenwich":
            torch.save({"map": torch.from_numpy(image), "lon": torch.arange(1440) / 4}, path)
            return path, "lon runs from 0 to 359.75; expected -180 to 179.75"
        case "malicious pt":
            torch.save({"map": torch.from_numpy(image[:1]), "more": Evil()}, path)
            return path, "more than tensors .[a-z]+.mkdir. and was not loaded.*can run code"
        case "truncated pt":
            torch.save(torch.from_numpy(image), path)
            path.write_bytes(path.read_bytes()[: 1 << 20])
            return path, "not a complete torch file"
        case "pt of two directories":
            torch.save(torch.from_numpy(image), path)
            raw = path.read_bytes()
            length, start = struct.unpack("<2L", raw[-10:-2])
            path.write_bytes(raw[: start + length] + raw[start:])
            return path, r"its end records contradict each other\); save it again"
        case "pt of numbers":
            torch.save([1, 2], path)
            return path, "expected a tensor or a dict with one; found list"
        case "pt of two":
            part = torch.zeros(2, 2)
            torch.save({"a": part, "b": part}, path)
            return path, r"one map; found a \(2, 2\), b \(2, 2\)"
        case "pt on its side":
            torch.save(torch.from_numpy(image).movedim(-1, 0), path)
            return path, r"the shape \(3, 721, 1440\); expected"
        case "pt transposed":
            torch.save(torch.zeros(1440, 721, 2).transpose(0, 1), path)
            return path, "is not stored contiguously; save it again"
        case "pt of bfloat16":
            torch.save(torch.zeros(721, 1440, 2, dtype=torch.bfloat16), path)
            return path, "holds bfloat16"
    raise AssertionError(kind)


KINDS = re.findall(r'case "([a-z][^"]+)":', Path(__file__).read_text().split("def broken")[1])


@pytest.mark.parametrize("kind", KINDS)
def test_broken_files_are_named(tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    path, message = broken(tmp_path, kind)
    with pytest.raises(CubeError, match=message):
        opened(path)
    assert not (tmp_path / "evil-was-here").exists()


@pytest.mark.parametrize("cut", [0.1, 0.5, 0.9])
def test_damage_in_a_deflated_map_is_noticed(files, tmp_path, cut):
    raw = bytearray(files["deflated"].read_bytes())
    raw[int(cut * 0.98 * len(raw))] ^= 0xFF
    (path := tmp_path / "a.npz").write_bytes(raw)
    with pytest.raises(CubeError, match="not a complete npz archive"):
        opened(path).embedding.values  # noqa: B018


def table(folder, **columns):
    pd.DataFrame(columns).to_parquet(path := folder / "embeddings_avg.parquet")
    return path


V = [1.0, 2.0]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"grid_id_coord": [name_of(3)]}, "embedding missing .found grid_id_coord"),
        ({"cell": [3], "vector": [V]}, "grid_id_coord and embedding missing .found cell, vector"),
        (
            {"grid_id_coord": [name_of(3)], "modality": ["dem"], "embedding": [V]},
            "one row per image, not averages; .*copcube aggregate",
        ),
        ({"grid_id_coord": [name_of(3)] * 2, "embedding": [V, V]}, "0000003_.* occurs twice"),
        ({"grid_id_coord": ["0772176_-96.00_-44.00"], "embedding": [V]}, "contradicts itself"),
        ({"grid_id_coord": [name_of(3), name_of(4)], "embedding": [V, [1.0]]}, "length 1; exp"),
        ({"grid_id_coord": [name_of(3)], "embedding": [[np.nan, 1.0]]}, "not finite"),
        ({"grid_id_coord": [], "embedding": []}, "no rows with vectors"),
        ({"grid_id_coord": [3], "embedding": [V]}, "column grid_id_coord: .*'3'"),
        ({"grid_id_coord": [name_of(3)], "embedding": [["1", "2"]]}, "string>; expected lists of"),
        ({"grid_id_coord": [name_of(3)], "embedding": [[1, 2]]}, "int64>; expected lists of"),
    ],
)
def test_tables_of_something_else_are_refused(tmp_path, columns, message):
    path = table(tmp_path, **columns)
    with pytest.raises(RowsError, match=message):
        opened(path).embedding.values  # noqa: B018


def test_parts_that_overlap_or_are_no_parquet(tmp_path):
    path = table(tmp_path, grid_id_coord=[name_of(3)], embedding=[V])
    (tmp_path / "embeddings_avg_2.parquet").write_bytes(path.read_bytes())
    with pytest.raises(RowsError, match=r"occurs twice; .*parts that do not overlap"):
        opened(tmp_path / "*.parquet").embedding.values  # noqa: B018
    with pytest.raises(RowsError, match="no parquet files found"):
        opened(tmp_path / "none.parquet")
    path.write_bytes(b"PAR1")
    with pytest.raises(RowsError, match="not a readable parquet file"):
        opened(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"transform": rasterio.Affine(0.25, 0, -180, 0, -0.25, 90.125)},
            r"from \(-180, 90.125\); expected .*\(-180.125, 90.125\) or \(-0.125, 90.125\)",
        ),
        (
            {"height": 36, "width": 36, "blockxsize": 16, "blockysize": 16},
            "36 × 36 pixels .*expected 721 × 1440 .*gdalwarp",
        ),
        (
            {"crs": "EPSG:32632", "transform": rasterio.Affine(10, 0, 6e5, 0, -10, 5.3e6)},
            r"pixels of 10 metre × 10 metre from \(600000, 5.3e\+06\) in EPSG:32632; expected 721",
        ),
        ({"crs": "EPSG:3857"}, "reference system is EPSG:3857; expected EPSG:4326"),
        ({"dtype": "uint8"}, "bands of uint8; expected float32"),
    ],
)
def test_a_geotiff_on_another_grid_is_refused(tmp_path, change, message):
    profile = PROFILE | {"count": 2, "dtype": "float32"} | change
    with rasterio.open(tmp_path / "a.tif", "w", **profile):
        pass
    with pytest.raises(CubeError, match=message):
        opened(tmp_path / "a.tif")


def test_a_geotiff_without_a_place_is_refused(tmp_path):
    profile = {key: value for key, value in PROFILE.items() if key not in ("crs", "transform")}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        with rasterio.open(tmp_path / "a.tif", "w", **profile, count=2, dtype="float32"):
            pass
    with pytest.raises(CubeError, match=r"pixels of 1° .*from \(0, 0\); expected 721 × 1440"):
        opened(tmp_path / "a.tif")


def test_what_is_no_geotiff(tmp_path):
    (tmp_path / "a.tif").write_bytes(b"II*\0 nothing")
    with pytest.raises(CubeError, match=r"a\.tif: not a readable GeoTIFF"):
        opened(tmp_path / "a.tif")


def test_a_truncated_geotiff_is_named(files, tmp_path):
    data = files["tif"].read_bytes()
    (tmp_path / "a.tif").write_bytes(data[: len(data) // 2])
    with pytest.raises(CubeError, match=r"a\.tif: not a readable GeoTIFF .*get a new copy"):
        opened(tmp_path / "a.tif").load()


@pytest.mark.slow
def test_a_geotiff_in_era5_s_order_and_with_nodata(tmp_path, truth):
    place = {"transform": rasterio.Affine(0.25, 0, -0.125, 0, -0.25, 90.125)}
    with rasterio.open(
        tmp_path / "a.tif", "w", count=DIM, dtype="float32", nodata=-9, **(PROFILE | place)
    ) as file:
        file.write(np.moveaxis(np.nan_to_num(truth, nan=-9), -1, 0))
    assert np.array_equal(opened(tmp_path / "a.tif").embedding, truth, equal_nan=True)


@pytest.mark.parametrize("nodata", [None, np.nan, 0, -9999, -3.39999999999999996e38])
def test_zeros_are_missing_whatever_a_geotiff_declares(tmp_path, nodata):
    """Tools rewrite the tag and leave the zeros, or fill in further values of their own."""
    bands = np.zeros((DIM, 721, 1440), "float32")
    bands[:, 100, 100] = 1
    bands[:, 200] = np.nan
    bands[:, 201] = np.finfo("float32").min
    bands[:, 202] = -0.0
    if nodata is not None:
        bands[:, 203] = nodata
    bands[:, 300, 300] = 0, 0, -2
    path = tmp_path / "m.tif"
    with rasterio.open(path, "w", count=DIM, dtype="float32", nodata=nodata, **PROFILE) as file:
        file.write(bands)
    filled = opened(path).embedding.notnull().all("dim").values
    np.testing.assert_array_equal(np.argwhere(filled), [[100, 820], [300, 1020]])


@pytest.mark.parametrize("form", ["npz", "pt"])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_zeros_and_nan_are_missing_in_arrays(tmp_path, form, dtype):
    numbers = np.zeros((721, 1440, 2), dtype)
    numbers[5, 6], numbers[7, 8], numbers[9] = (0, 1), (np.nan, 0), np.nan
    path = tmp_path / f"map.{form}"
    np.savez(path, numbers) if form == "npz" else torch.save(torch.tensor(numbers), path)
    assert np.argwhere(opened(path).embedding.notnull().all("dim").values).tolist() == [[5, 726]]


def test_zeros_are_missing_in_averages(tmp_path):
    cells = [grid.format_cell(cell) for cell in KNOWN]
    vectors = [np.zeros(DIM, "float32"), np.array([0, 0, 1], "float32"), np.zeros(DIM, "float32")]
    pd.DataFrame({"grid_id_coord": cells, "embedding": vectors}).to_parquet(tmp_path / "a.parquet")
    filled = opened(tmp_path / "a.parquet").embedding.notnull().all("dim")
    assert int(filled.sum()) == 1
    lat, lon = list(KNOWN.values())[1]
    assert bool(filled.sel(lat=lat, lon=lon))


def test_handles_are_no_paths():
    with pytest.raises(CubeError, match="expected a path, found BytesIO"):
        opened(io.BytesIO(b"PK"))


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_keywords_of_every_engine_change_nothing(files, form):
    expected = opened(files[form])
    for option in (
        {"mask_and_scale": True},
        {"mask_and_scale": False},
        {"decode_times": False, "decode_timedelta": False},
        {"decode_coords": "all", "concat_characters": False},
        {"decode_cf": False},
    ):
        xr.testing.assert_identical(opened(files[form], **option), expected)
    for dropped in ("crs", ["embedding", "lat_bnds", "not there"]):
        left = opened(files[form], drop_variables=dropped, mask_and_scale=True)
        assert {*left.variables} == {*expected.variables} - {*np.atleast_1d(dropped)}


@pytest.mark.parametrize("form", FORMS)
def test_what_is_opened_in_chunks_can_be_divided_by_them(files, form):
    ds = opened(files[form], chunks={})
    assert set(ds.chunksizes) >= {"lat", "lon", "dim"}
    assert {*ds.embedding.encoding} <= {"preferred_chunks", "source"}


@pytest.mark.parametrize(
    ("address", "remedy"),
    [
        ("https://example.org/embed_map_310k.npz", "download it, or convert it once"),
        ("s3://bucket/embed_map_310k.npz", "download it, or convert it once"),
        ("gs://bucket/fields.nc", "download it, or convert it once"),
        ("hf://datasets/a/b/embed_map_310k.pt", "copcube fetch map"),
        ("hf://datasets/a/b/averages.parquet", "copcube fetch map"),
        ("/vsicurl/https://example.org/embed_map_310k.tif", "download it, and give the path"),
        ("/vsis3/bucket/embed_map_310k.tif", "download it"),
        ("ftp://example.org/embed_map_310k.npz", "download it"),
        (Path("s3://bucket/embed_map_310k.npz"), "download it"),
        ("s3://bucket/world.zarr", "open a cube with xarray.open_zarr"),
    ],
)
def test_addresses_are_refused_as_addresses(address, remedy):
    with pytest.raises(CubeError, match=re.escape(remedy)) as error:
        opened(address)
    assert str(address) in str(error.value)
    assert "no such file" not in str(error.value)


def test_a_file_url_is_the_file(files, truth):
    ds = opened(files["stored"].as_uri())
    assert np.array_equal(ds.embedding[0], truth[0], equal_nan=True)


def test_tables_at_an_address_are_opened(files, truth, memory):
    from copcube.files.objects import ObjectFolder

    ObjectFolder(memory).write("averages.parquet", files["parquet"].read_bytes())
    ds = opened(f"{memory}/averages.parquet")
    assert np.array_equal(ds.embedding, truth, equal_nan=True)


STALE = """
import sys
import xarray as xr
from copcube.embedding.georeference import Georeference

fields = xr.open_dataset(sys.argv[1], engine="copembed")
fields.copembed.to_geotiff(sys.argv[2])
again = xr.open_dataset(sys.argv[2], engine="copembed")
assert again.embedding.equals(fields.embedding)
image = fields.n_images if "n_images" in fields else fields.embedding[:9, :9]
place = Georeference.of(image, "lat", "lon")
print(place.degrees(image.lat.values[:1], image.lon.values[:1]))
"""


@pytest.mark.slow
def test_a_proj_database_of_another_installation_does_no_harm(files, tmp_path):
    """Other packages set PROJ_DATA to databases whose layout this PROJ cannot use."""
    import sqlite3

    import pyproj

    shutil.copy(Path(pyproj.datadir.get_data_dir(), "proj.db"), tmp_path / "proj.db")
    with sqlite3.connect(tmp_path / "proj.db") as database:
        database.execute("UPDATE metadata SET value = 0 WHERE key LIKE 'DATABASE.LAYOUT.VERSION%'")
    database.close()
    stale = {name: str(tmp_path) for name in ("PROJ_DATA", "PROJ_LIB")}
    environment = {**os.environ, **stale}
    for command in (
        ["-c", STALE, str(files["tif"]), str(tmp_path / "embed_map_a.tif")],
        ["-m", "copcube", "sample", str(tmp_path / "images"), "--cells=1", "--modalities=dem"],
    ):
        done = subprocess.run(
            [sys.executable, *command], env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
    # The code is still there for readers with a database of their own.
    with rasterio.open(tmp_path / "embed_map_a.tif") as file:
        assert file.crs.to_epsg() == 4326
