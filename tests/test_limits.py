"""Small files that stand for huge ones are refused before they are unfolded, in every form.

What a refusal costs is measured in a child process: its memory is the peak of the process
beyond what the same process takes for a harmless file of the form.
"""

import contextlib
import errno
import glob
import gzip
import io
import json
import logging
import os
import pickle
import re
import socket
import sys
import textwrap
import zipfile
from pathlib import Path

import netCDF4
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import rasterio
import torch
import xarray as xr
import zarr
from builds_helpers import run_code
from hypothesis import given
from hypothesis import strategies as st
from strategies import random_rows, write_rows

import copcube
from copcube import era5
from copcube.cli import main
from copcube.cli.look import _vector
from copcube.cube.store import open_stored
from copcube.encoder import weights
from copcube.encoder.copernicus_fm import CopernicusFM
from copcube.encoder.weights import load_weights
from copcube.errors import (
    CubeError,
    ImageError,
    OptionError,
    RowsError,
    SourceError,
    WeightsError,
    printable,
)
from copcube.files import limits
from copcube.files.damage import naming_damage
from copcube.files.parquet_pages import pages_of
from copcube.files.regular import matches, open_regular
from copcube.files.torch_pickle import OtherObjectError, TorchFileError, described
from copcube.images import geotiff, listing, open_source
from copcube.interchange.engine import open_map
from copcube.lookup.tables import read_table
from copcube.modalities import MODALITIES
from copcube.models.neural_lam import on_grid
from copcube.probes.bench import read_results
from copcube.products import tessera
from copcube.products.geotiff import find
from copcube.rows import COLUMNS, read_rows, rows_files
from copcube.rows.opening import open_parquet, reading_parquet
from copcube.selection import Selection

CELL = "0772176_-96.00_44.00"


# Bombs: what makes one in a folder, and what opens it.


def rasters(path):
    """A tree of one image, as large as any and a thousand times that in its file."""
    place = path / "dem_grid_wgs" / "images" / CELL
    place.mkdir(parents=True)
    profile = {"driver": "GTiff", "count": 1, "dtype": "float32", "compress": "deflate"}
    profile |= {"width": 19_000, "height": 19_000, "tiled": True, "SPARSE_OK": "TRUE"}
    with rasterio.open(place / "dem.tif", "w", **profile):
        pass
    return path


def narrow(path):
    """A tree of one image that becomes a million times wider where its short side is resized."""
    place = path / "dem_grid_wgs" / "images" / CELL
    place.mkdir(parents=True)
    profile = {"driver": "GTiff", "count": 1, "dtype": "float32", "compress": "deflate"}
    with rasterio.open(place / "dem.tif", "w", width=65_000, height=1, **profile):
        pass
    return path


def map_of_one_tile(path):
    """A map on the lattice whose tiles hold so many bands that one takes gigabytes."""
    profile = {"driver": "GTiff", "count": 4000, "dtype": "float32", "crs": "EPSG:4326"}
    profile |= {"transform": rasterio.Affine(0.25, 0, -180.125, 0, -0.25, 90.125)}
    profile |= {"width": 1440, "height": 721, "tiled": True, "blockxsize": 1440 // 16 * 16}
    profile |= {"blockysize": 720, "interleave": "pixel", "SPARSE_OK": "TRUE", "BIGTIFF": "YES"}
    with rasterio.open(path / "embed_map_bomb.tif", "w", **profile):
        pass
    return path / "embed_map_bomb.tif"


def long_vectors(path):
    """An npz whose header, and directory, claim vectors of a million numbers."""
    header = io.BytesIO()
    shape = (721, 1440, 1 << 20)
    np.lib.format.write_array_header_1_0(
        header, {"shape": shape, "fortran_order": False, "descr": "<f4"}
    )
    with zipfile.ZipFile(path / "map.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("arr_0.npy", header.getvalue())
    return path / "map.npz"


def long_description(path):
    """An npz beside whose map lies an array that claims to be terabytes."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"shape": (1 << 40,), "fortran_order": False, "descr": "<f8"}
    )
    with zipfile.ZipFile(path / "map.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open("arr_0.npy", "w") as stream:
            np.save(stream, np.zeros((721, 1440, 1), np.int8))
        archive.writestr("scale.npy", header.getvalue())
    return path / "map.npz"


def packed_by_lzma(path):
    """An npz of a method that numpy never writes, and that unfolds without a bound."""
    with zipfile.ZipFile(path / "map.npz", "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("arr_0.npy", bytes(1 << 20))
    return path / "map.npz"


def values_of_json(path):
    """An npz whose description is a text of empty lists, each 20 times as large in memory."""
    text = '{"attrs": {"a": [' + "[]," * 4_000_000 + "[]]}}"
    with zipfile.ZipFile(path / "map.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, array in (
            ("arr_0.npy", np.zeros((721, 1440, 1), np.float16)),
            ("copcube.npy", np.array(text)),
        ):
            with archive.open(name, "w") as stream:
                np.save(stream, array)
    return path / "map.npz"


def tree(path):
    (path / "dem_grid_wgs" / "images").mkdir(parents=True)
    return path


def long_listing(path):
    """A listing of half a gigabyte of nothing, in two megabytes."""
    spaces = gzip.compress(b" " * (1 << 24), 1)
    text = gzip.compress(b"{") + 30 * spaces + gzip.compress(b"}")
    (tree(path) / "fnames_bomb.json.gz").write_bytes(text)
    return path / "fnames_bomb.json.gz"


def long_cell(path):
    """A listing of one cell with four million empty lists."""
    with gzip.open(tree(path) / "fnames_bomb.json.gz", "wb", 1) as file:
        file.write(b'{"772176": [[]' + b",[]" * 4_000_000 + b"]}")
    return path / "fnames_bomb.json.gz"


def rows(path, **columns):
    """A table of a row an image, some of its columns replaced."""
    given = {"grid_id_coord": [CELL], "modality": ["dem"], "local_id_coord": [None]}
    given |= {"date": [None], "embedding": [np.ones(4, np.float32)]} | columns
    table = pa.table(
        {
            "embedding": pa.array(given["embedding"], pa.list_(pa.float32())),
            **{name: pa.array(given[name], pa.string()) for name in COLUMNS[:-1]},
        }
    )
    pq.write_table(table, path / "rows.parquet", compression="zstd", data_page_size=1 << 33)
    return path / "rows.parquet"


def long_text(path):
    return rows(path, date=["2" * (30 << 20)])


def repeated_text(path):
    """Half a megabyte of text, once in the file and in a hundred thousand rows."""
    count = 100_000
    text = "2" * (1 << 19)
    column = pa.DictionaryArray.from_arrays(pa.array(np.zeros(count, np.int32)), pa.array([text]))
    table = {name: pa.array([None] * count, pa.string()) for name in COLUMNS[:-1]}
    table |= {"date": column, "embedding": pa.array([[1.0]] * count, pa.list_(pa.float32()))}
    table["grid_id_coord"] = pa.array([CELL] * count)
    table["modality"] = pa.array(["dem"] * count)
    pq.write_table(pa.table(table), path / "rows.parquet", compression="zstd")
    return path / "rows.parquet"


def long_vector(path):
    """A vector of ten million zeros."""
    return rows(path, embedding=[np.zeros(10_000_000, np.float32)])


def unwritten_coordinate(path):
    import netCDF4

    with netCDF4.Dataset(path / "static.nc", "w") as file:
        for name, length in (("latitude", 721), ("longitude", 1 << 34)):
            file.createDimension(name, length)
            chunks = (min(length, 1 << 16),)
            file.createVariable(name, "f8", (name,), zlib=True, chunksizes=chunks)
    return path / "static.nc"


def one_chunk(path):
    import netCDF4

    with netCDF4.Dataset(path / "static.nc", "w") as file:
        for name, length in (("latitude", 721), ("longitude", 1440), ("level", 500)):
            file.createDimension(name, length)
        shape = {"zlib": True, "chunksizes": (500, 721, 1440)}
        file.createVariable("lsm", "f4", ("level", "latitude", "longitude"), **shape)
    return path / "static.nc"


def unwritten_array(path):
    import zarr

    group = zarr.create_group(path / "static.zarr")
    for name in ("latitude", "longitude"):
        group.create_array(
            name, shape=(1 << 40,), chunks=(1 << 20,), dtype="f8", dimension_names=(name,)
        )
    return path / "static.zarr"


def expanded(path):
    """Weights of a model of 50 GB, of which each tensor is one number."""
    with torch.device("meta"):
        model = CopernicusFM("cls", embed_dim=4096, depth=64, heads=64)
    one = torch.ones(1)
    state = {name: one.expand(tensor.shape) for name, tensor in model.state_dict().items()}
    torch.save(state, path / "w.pth")
    return path / "w.pth"


def long_vectors_of_netcdf(path):
    """A cube of small chunks, of which nothing was written, with vectors of a billion numbers."""
    with netCDF4.Dataset(path / "cube.nc", "w") as file:
        for name, size in {"lat": 721, "lon": 1440, "dim": 10**9}.items():
            file.createDimension(name, size)
        file.createVariable("embedding", "f4", ("lat", "lon", "dim"), chunksizes=(45, 45, 64))
    return path / "cube.nc"


def long_vectors_of_zarr(path):
    group = zarr.create_group(path / "cube.zarr")
    shape, dims = (721, 1440, 10**9), ("lat", "lon", "dim")
    group.create_array(
        "embedding", shape=shape, chunks=(45, 45, 64), dtype="f4", dimension_names=dims
    )
    return path / "cube.zarr"


def nested_keys(path):
    """A dictionary by tuples of tuples, which would take years to hash."""
    pairs = (b"h%ch%c\x86q%c" % (i, i, i + 1) for i in range(60))
    pickled = b"\x80\x02K\x01K\x01\x86q\x00" + b"".join(pairs) + b"}h\x3cK\x01s."
    with zipfile.ZipFile(path / "map.pt", "w") as archive:
        archive.writestr("map/data.pkl", pickled)
        archive.writestr("map/version", b"3\n")
    return path / "map.pt"


def sparse(path):
    tensor = torch.sparse_coo_tensor([[0], [0], [0]], [1.0], (1 << 20, 1 << 20, 1 << 20))
    torch.save({"cls_token": tensor}, path / "map.pt")
    return path / "map.pt"


OPEN = {
    "source": "from copcube.images import open_source\nfrom copcube.selection import Selection\n"
    "s = open_source(p)\nq = s.partitions()\n"
    "found = [i if hasattr(i, 'reason') else i() for p in q for i in s.jobs(p, Selection.of())]\n"
    "raise SystemExit(str(found))",
    "map": "from copcube.interchange.engine import open_map\nopen_map(p)",
    "store": "from copcube.cube.store import open_stored\nopen_stored(p)",
    "rows": "from copcube.rows import read_rows\nread_rows(p)",
    "static": "from copcube import era5\nera5.open_static(p)",
    "weights": "from copcube.encoder.weights import load_weights\nload_weights(p)",
}
BOMBS = {
    rasters: ("source", r"19000 × 19000 pixels in 1 bands would expand to 1.4 GB"),
    narrow: ("source", r"1 × 65000 pixels in 1 bands, resized to 960, would expand to 240 GB"),
    map_of_one_tile: ("map", r"a tile of 720 × 1440 pixels would expand to 17 GB"),
    long_vectors: ("map", r"45 rows of cells with vectors of length 1048576 would expand to 272"),
    long_description: ("map", r"scale.npy does not have the size that it states"),
    packed_by_lzma: ("map", r"compressed by method 14; expected stored or deflated"),
    values_of_json: ("map", r"its description under 'copcube' would expand to 5\d\d MB", 0.1),
    long_listing: ("source", r"fnames_bomb.json.gz would expand to more than 4\d\d MB", 0.1),
    long_cell: ("source", r"fnames_bomb.json.gz: a cell would expand to more than"),
    long_text: ("rows", r"column date of row group 0: a page would expand to 31 MB", 0.1),
    repeated_text: ("rows", r"date '2222.* is not a date"),
    long_vector: ("rows", r"column embedding of row group 0: a page.* would expand to 40 MB", 0.1),
    unwritten_coordinate: ("static", r"longitude, 17179869184 values, would expand to 137 GB"),
    one_chunk: ("static", r"a chunk of lsm, 500 × 721 × 1440 values, would expand to 2.1 GB"),
    unwritten_array: ("static", r"l\w+itude, 1099511627776 values, would expand to 8.8 TB"),
    long_vectors_of_netcdf: ("map", r"a block of embedding, 45 × 45 × 1000000000 values, would"),
    long_vectors_of_zarr: ("store", r"a block of embedding, 45 × 45 × 1000000000 values, would"),
    nested_keys: ("map", r"a dictionary whose keys are not names"),
    expanded: ("weights", r"its \d+ tensors would expand to 5\d GB"),
    sparse: ("map", r"holds more than tensors .torch._utils._rebuild_sparse_tensor."),
}
ALLOWED = 1_200_000_000
"""Bytes that a child may take, with its libraries; what is not told by a factor unfolds to more."""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read in /proc")
@pytest.mark.filterwarnings("ignore:.*[Ss]parse", "ignore:Dataset has no geotransform")
@pytest.mark.parametrize("what", OPEN)
def test_a_bomb_is_refused_before_it_is_unfolded(what, tmp_path):
    """All of a kind in one process, whose peak is never above what is allowed."""
    code = "import os\nfrom copcube.errors import CopcubeError\n"
    bombs = {bomb: says for bomb, (kind, *says) in BOMBS.items() if kind == what}
    for bomb, (_, *factor) in bombs.items():
        (folder := tmp_path / bomb.__name__).mkdir()
        code += f"os.environ[{limits.VARIABLE!r}] = {str(*factor or (1,))!r}\n"
        code += f"p = {str(bomb(folder))!r}\ntry:\n" + textwrap.indent(OPEN[what], "    ")
        code += "\n    said = 'nothing'\n"
        code += "except (CopcubeError, SystemExit) as error:\n    said = str(error)\n"
        code += "peak = open('/proc/self/status').read().partition('VmHWM:')[2].split()[0]\n"
        code += "print(peak, ' '.join(said.split()))\n"
    said_by_all = run_code(code, tmp_path / "said.txt")
    for line, (bomb, (says, *_)) in zip(said_by_all.splitlines(), bombs.items(), strict=True):
        peak, said = line.split(maxsplit=1)
        assert re.search(says, said), (bomb, said)
        assert int(peak) * 1024 < ALLOWED, f"{bomb}: {peak} kB"


@contextlib.contextmanager
def little_memory():
    """Let this process have no more than some 16 MiB."""
    import resource

    status = Path("/proc/self/status").read_text()
    has = 1024 * int(re.search(r"VmSize:\s+(\d+) kB", status)[1])
    before = resource.getrlimit(resource.RLIMIT_AS)
    taken = []
    resource.setrlimit(resource.RLIMIT_AS, (has + (16 << 20), before[1]))
    try:
        # What this process has and does not use counts as well.
        with contextlib.suppress(MemoryError):
            while True:
                taken.append(np.empty(16 << 20, np.uint8))
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_lack_of_memory_is_no_damage(tmp_path, capsys):
    """What cannot be read is damaged only if there was memory to read it."""
    image = b"II*\0" + bytes(1000)
    chunk = zarr.create_array(tmp_path / "a.zarr", shape=(4,), chunks=(4,), dtype="f4")
    chunk[:] = 1
    damaged = tmp_path / "a.zarr" / "c" / "0"
    damaged.write_bytes(b"\x28\xb5\x2f\xfd" + damaged.read_bytes()[6:])

    def read_chunk():
        with naming_damage():
            return chunk[:]

    def read_image():
        return geotiff._decode(image, MODALITIES["s2_toa"])

    for read, error in ((read_image, ImageError), (read_chunk, CubeError)):
        with pytest.raises(error):
            read()
        with little_memory(), pytest.raises(MemoryError, match="no memory is left to read more"):
            read()
    with little_memory(), pytest.raises(MemoryError) as raised, naming_damage():
        read_chunk()
    assert str(raised.value).count("no memory is left") == 1
    for shortage in (OSError(errno.EMFILE, "Too many"), RuntimeError("can't start new thread")):
        with pytest.raises(type(shortage)), naming_damage():
            raise shortage
    of_arrow = pa.lib.ArrowException("Unknown error: Failed to launch worker thread: Resource")
    write_rows(tmp_path / "some.parquet", random_rows(3), {})
    with (
        pytest.raises(RuntimeError, match="can't start new thread"),
        reading_parquet(tmp_path / "some.parquet"),
    ):
        raise of_arrow
    table = tmp_path / "rows.parquet"
    table.write_bytes(b"PAR1")

    def exhausted(*_, **__):
        raise pa.lib.ArrowMemoryError("malloc of size 64 failed")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pq, "read_metadata", exhausted)
        patch.setattr(pq, "ParquetFile", exhausted)
        with pytest.raises(MemoryError):
            open_parquet(table)
        assert main(["aggregate", str(table), str(tmp_path / "b.zarr")]) == 1
    assert (
        "copcube: there is too little memory (malloc of size 64 failed); "
        in capsys.readouterr().err
    )


def test_an_image_takes_no_more_memory_than_it_has_bytes(tmp_path, monkeypatch):
    """One that grows while it is read is read up to the limit, and refused beyond."""
    file = tmp_path / "a.tif"
    file.write_bytes(b"II*\0" + bytes(1000))
    asked, more = [], b""

    class Handle(io.FileIO):
        def read(self, size=-1):
            if not asked:
                with file.open("ab") as grown:
                    grown.write(more)
            asked.append(size)
            return super().read(size)

    monkeypatch.setattr(geotiff, "open_regular", lambda path, error: Handle(path))
    assert geotiff._raw(str(file)) == file.read_bytes()
    assert asked == [1005]
    asked, more = [], bytes(10)
    assert geotiff._raw(str(file)) == file.read_bytes()
    monkeypatch.setenv(limits.VARIABLE, "1e-5")  # 2684 bytes
    asked, more = [], bytes(2000)
    with pytest.raises(ImageError, match=r"its bytes would expand to more than 2\.7 kB"):
        geotiff._raw(str(file))
    assert sum(asked) < 4000


def test_the_limits_are_multiplied_by_a_variable(tmp_path, monkeypatch):
    """The message says by how much, and then the file is opened."""
    np.savez(tmp_path / "a.npz", np.zeros((721, 1440, 2), np.float32))
    monkeypatch.setenv(limits.VARIABLE, "1e-6")
    with pytest.raises(CubeError, match=r"a\.npz: .*expected at most 1.1 kB .*201 MB") as caught:
        open_map(tmp_path / "a.npz")
    found = re.search(rf"set the environment variable ({limits.VARIABLE})=(\d+)", str(caught.value))
    monkeypatch.setenv(found[1], found[2])
    assert open_map(tmp_path / "a.npz").sizes["dim"] == 2
    for wrong in ("", "0", "-1", "nan", "inf", "4 GB"):
        monkeypatch.setenv(limits.VARIABLE, wrong)
        with pytest.raises(OptionError, match=r"COPCUBE_LIMITS is .*expected a factor"):
            open_map(tmp_path / "a.npz")


@pytest.mark.parametrize(
    "limit", [limits.PIECE, limits.PAGE, limits.RASTER, limits.WEIGHTS, limits.LISTING]
)
def test_the_published_forms_are_well_below_the_limits(limit):
    """The figure that a limit is derived from is its own arithmetic."""
    largest = {
        limits.PIECE.published: 256 * 256 * 768 * 4,
        limits.PAGE.published: 1 << 20,
        limits.RASTER.published: 21 * 96 * 20_000 * 4,
        limits.WEIGHTS.published: 1.5e9,
        limits.LISTING.published: 18_713_054 * 115,
    }[limit.published]
    limits.demand(limit, 1.5 * largest, "it", CubeError)
    with pytest.raises(CubeError, match="it would expand to"):
        limits.demand(limit, limit.count + 1, "it", CubeError)


# What is no file.


def pipe(path):
    os.mkfifo(path)


def endpoint(path):
    # A name of 108 bytes is the longest that a socket may have.
    here = os.getcwd()
    os.chdir(path.parent)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path.name)
    os.chdir(here)


def device(path):
    path.symlink_to("/dev/zero")


def loop(path):
    path.symlink_to(path.name)


NO_FILES = {pipe: "named pipe", endpoint: "socket", device: "device", loop: "loop of links"}
DOORS = {
    "map.npz": (open_map, CubeError),
    "map.pt": (open_map, CubeError),
    "map.tif": (open_map, CubeError),
    "map.nc": (open_map, CubeError),
    "map.parquet": (open_map, RowsError),
    "rows.parquet": (read_rows, RowsError),
    "static.nc": (era5.open_static, SourceError),
    "points.parquet": (lambda path: read_table(path, None, None), OptionError),
    "points.csv": (lambda path: read_table(path, None, None), OptionError),
    "grid.nc": (lambda path: on_grid(None, {}, grid=path), SourceError),
    "results.json": (read_results, OptionError),
    "w.pth": (lambda path: load_weights(str(path)), WeightsError),
    "example-000000.tar": (open_source, SourceError),
    "images": (open_source, SourceError),
    "sensor.toml": (copcube.sensor, OptionError),
    "vector.npy": (_vector, OptionError),
}


@pytest.mark.parametrize("shape", [(10**12,), (10**30,)])
def test_an_array_of_terabytes_is_refused_before_it_is_read(shape, tmp_path):
    header = {"shape": shape, "fortran_order": False, "descr": "<f4"}
    with open(tmp_path / "vector.npy", "wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
    with pytest.raises(
        OptionError, match=r"--vector .*vector.npy: its array, \d+.* would expand to"
    ):
        _vector(str(tmp_path / "vector.npy"))
    with pytest.raises(RowsError, match=r"vector\.npy: not a readable \.npy file"):
        tessera._load(str(tmp_path / "vector.npy"))


@pytest.mark.skipif(sys.platform == "win32", reason="no pipes in folders")
@pytest.mark.parametrize("kind", NO_FILES, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("door", DOORS)
def test_what_is_no_file_is_refused_at_every_door(kind, door, tmp_path):
    opened, error = DOORS[door]
    kind(tmp_path / door)
    message = rf"{door}: not a file but a {NO_FILES[kind]}.*; expected a file"
    with pytest.raises(error, match=message) as caught:
        opened(tmp_path / door)
    assert str(caught.value).count(door) == 1


@pytest.mark.skipif(sys.platform == "win32", reason="no pipes in folders")
@pytest.mark.parametrize("kind", NO_FILES, ids=lambda kind: kind.__name__)
def test_what_is_no_file_among_files_is_named(kind, tmp_path):
    """Among shards and rows it is refused; an image of a tree is left out with its reason."""
    shards, tables = tmp_path / "shards", tmp_path / "tables"
    images = tmp_path / "images" / "dem_grid_wgs" / "images" / CELL
    for folder in (shards, tables, images):
        folder.mkdir(parents=True)
    (shards / "example-000000.tar").write_bytes(bytes(1024))
    kind(shards / "example-000001.tar")
    with pytest.raises(SourceError, match=f"example-000001.tar: not a file but a {NO_FILES[kind]}"):
        open_source(shards)
    kind(tables / "a.parquet")
    with pytest.raises(RowsError, match=f"a.parquet: not a file but a {NO_FILES[kind]}"):
        open_map(str(tables / "*.parquet"))
    kind(images / "dem.tif")
    source = open_source(tmp_path / "images")
    (partition,) = source.partitions()
    (job,) = source.jobs(partition, Selection.of())
    (rejected,) = job()
    assert rejected.kind == "broken"
    assert f"not a file but a {NO_FILES[kind]}" in rejected.reason
    kind(tmp_path / "images" / "fnames_a.json")
    with pytest.raises(SourceError, match=f"fnames_a.json: not a file but a {NO_FILES[kind]}"):
        open_source(tmp_path / "images").partitions()


def test_folders_that_may_not_be_read_are_not_passed_over(tmp_path, monkeypatch):
    """As after `chmod -R 644`: else what lies in them would be left out, and nobody told."""
    allowed = os.access
    monkeypatch.setattr(
        os, "access", lambda path, mode: not str(path).endswith("closed") and allowed(path, mode)
    )
    tree = tmp_path / "s5p_l3_wgs/images/CO_column_number_density" / CELL / "closed"
    for folder in (tmp_path / "open", tmp_path / "closed", tree):
        folder.mkdir(parents=True)
        for name in ("a.parquet", "a.tar", "2021-01-01_2021-02-01.tif"):
            (folder / name).touch()
    for look in (
        lambda: rows_files(tmp_path),
        lambda: rows_files(tmp_path / "**" / "*.parquet"),
        lambda: rows_files(tmp_path / "*" / "*.parquet"),
        lambda: open_source(tmp_path / "*" / "*.tar"),
        lambda: open_source(tmp_path / "closed"),
        lambda: geotiff.GeoTiffSource(str(tmp_path)).partitions(),
        lambda: find(str(tmp_path), (".tif",)),
    ):
        with pytest.raises(PermissionError, match=r"Permission denied: '.*closed'"):
            look()
    assert len(rows_files(tmp_path / "open" / "*.parquet")) == 1


def test_a_file_that_is_missing_or_forbidden_is_told_as_before(tmp_path):
    with pytest.raises(FileNotFoundError):
        open_regular(tmp_path / "none", CubeError)
    (tmp_path / "a").write_bytes(b"abc")
    with open_regular(tmp_path / "a", CubeError) as file:
        assert (file.read(), file.name) == (b"abc", str(tmp_path / "a"))


TREE = ["a/b/c", "a/.h", "x", "a[1]/b"]
FILES = ["a/1.tar", "a/b/2.tar", "a/b/c/3.tar", "a/.h/4.tar", "x/5.tar", "a/b/.6.tar"]
FILES += ["a[1]/b/7.tar"]
PATTERNS = ["**/*.tar", "a/**/*.tar", "*/*.tar", "a/**/c/*.tar", "**", "a/**/b/**/*.tar"]
PATTERNS += ["a**/*.tar", "**/b/*.tar", "a[[]1]/**/*.tar", "none/**/*.tar"]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_globs_find_what_glob_finds_and_go_round_in_no_loop(pattern, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in TREE:
        (tmp_path / folder).mkdir(parents=True)
    for file in FILES:
        (tmp_path / file).touch()
    expected = sorted(map(os.path.normpath, glob.glob(pattern, recursive=True)))
    assert matches(pattern) == expected
    assert matches(f"{tmp_path}/{pattern}") == [str(tmp_path / name) for name in expected]
    for number in range(8):  # which `glob` would follow in 8 to the power of 40 ways
        (tmp_path / "a" / "b" / f"loop{number}").symlink_to("..")
    found = [name for name in matches(pattern) if "loop" not in name]
    assert found == [name for name in expected if "loop" not in name]


# Readers of headers.


def test_pages_are_those_that_pyarrow_wrote(tmp_path):
    """Values and bytes of all pages are what the footer counts, for every version and codec."""
    count = 3000
    columns = {"text": [f"{i % 50:0200d}" for i in range(count)], "number": list(range(count))}
    columns["list"] = [[float(i)] * 7 for i in range(count)]
    for codec in ("none", "snappy", "gzip", "zstd"):
        for version in ("1.0", "2.0"):
            path = tmp_path / "a.parquet"
            pq.write_table(
                pa.table(columns),
                path,
                compression=codec,
                data_page_version=version,
                data_page_size=2000,
                write_batch_size=100,
            )
            raw = path.read_bytes()
            footer = pq.read_metadata(path)
            for number in range(footer.num_columns):
                column = footer.row_group(0).column(number)
                at = min(column.dictionary_page_offset or 1 << 60, column.data_page_offset)
                pages = list(pages_of(lambda at, n, raw=raw: raw[at : at + n], column))
                assert pages[-1].start + pages[-1].length == at + column.total_compressed_size
                assert len(pages) > 1
                values = sum(page.values for page in pages if not page.is_dictionary)
                assert values == column.num_values
                unfolded = sum(page.unfolded for page in pages)
                assert 0 < column.total_uncompressed_size - unfolded < 500 * len(pages)


def test_a_footer_that_lies_about_its_pages_is_refused(tmp_path):
    """A page of more values than the footer admits."""
    path = rows(tmp_path, embedding=[np.arange(1000, dtype=np.float32)])
    raw = path.read_bytes()
    column = pq.read_metadata(path).row_group(0).column(0)
    assert column.num_values == 1000
    # The number of values stands in the footer as a zigzag varint.
    says = []
    for found in re.finditer(rb"\xd0\x0f", raw):
        at = found.start()
        path.write_bytes(raw[:at] + b"\xd2\x0f" + raw[at + 2 :])
        with contextlib.suppress(ValueError):
            assert len(read_rows(path).embedding[0]) == 1000  # a count that nobody uses
            continue
        with pytest.raises(RowsError) as caught:
            read_rows(path)
        says.append(str(caught.value))
    assert any("its pages hold 1000 values, but its footer says 1001" in text for text in says)
    assert any("its pages hold 1001 values, but its footer says 1000" in text for text in says)


@pytest.mark.slow
@given(
    st.dictionaries(
        st.text(max_size=5),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
            lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=3), inner),
            max_leaves=8,
        ),
        max_size=4,
    ),
    st.sampled_from([None, 1]),
    st.integers(1, 9),
    st.booleans(),
)
def test_a_listing_is_parsed_in_pieces_as_json_parses_it(content, indent, part, ascii_only):
    text = json.dumps(content, indent=indent, ensure_ascii=ascii_only).encode(
        "utf-8", "surrogatepass"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(listing, "_PART", part)
        found = dict(listing._Text(io.BytesIO(text), "a.json").items())
    assert found == json.loads(text)


@given(st.text('{}[]":, 1ea', max_size=12), st.integers(1, 4))
def test_a_text_is_a_listing_if_json_says_so(text, part):
    try:
        expected = json.loads(text)
    except ValueError:
        expected = None
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(listing, "_PART", part)
            found = dict(listing._Text(io.BytesIO(text.encode()), "a.json").items())
    except ValueError:
        found = None
    assert found == (expected if isinstance(expected, dict) else None)


# Pickles.


@pytest.mark.parametrize("zipped", [True, False])
def test_tensors_are_those_that_torch_loads(zipped, tmp_path):
    """Of state dicts with shared, strided, empty and single numbers, of every type."""
    base = torch.arange(60, dtype=torch.float32)
    state = {str(dtype): base.to(dtype) for dtype in (torch.float16, torch.bfloat16, torch.int64)}
    state |= {"strided": base.view(5, 12).T[::2], "shared": base[7:], "one": torch.tensor(3.0)}
    state |= {"empty": torch.zeros(0, 3), "bool": base > 3, "same": base}
    state["parameter"] = torch.nn.Parameter(base[:4].clone())
    path = tmp_path / "w.pth"
    torch.save(
        {"model": state, "epoch": 3, "lr": [0.1, None]}, path, _use_new_zipfile_serialization=zipped
    )
    expected = torch.load(path, weights_only=True)
    found = weights.read_tensors(path)
    assert (found["epoch"], found["lr"]) == (3, [0.1, None])
    assert list(found["model"]) == list(expected["model"])
    for name, tensor in expected["model"].items():
        assert found["model"][name].dtype == tensor.dtype
        assert torch.equal(found["model"][name], tensor.detach()), name


@given(st.binary(max_size=60))
def test_any_bytes_are_described_or_refused(raw):
    for pickled in (raw, b"\x80\2" + raw + b"."):
        with contextlib.suppress(TorchFileError):
            described(pickled)


@pytest.mark.parametrize("key", [(1, 2), 1.5, None, 1 << 40, b"x"])
def test_keys_that_could_be_made_to_collide_are_refused(key):
    with pytest.raises(OtherObjectError, match=r"keys are not names|operation|encode"):
        described(pickle.dumps({key: 1}, 2))
    assert described(pickle.dumps({"a": 1, 2: [3]}, 2)) == {"a": 1, 2: [3]}


# Text from files.


@given(st.text())
def test_printed_text_commands_no_terminal(text):
    shown = printable(text)
    assert shown.isprintable()
    assert printable(shown) == shown
    assert printable(text, lines=True).replace("\n", "").isprintable()
    if text.isprintable():
        assert shown == text
    assert str(CubeError(text)) == shown


ESCAPE = "\x1b[2Jgone\u202e"


def test_names_of_files_reach_the_terminal_without_control_characters(tmp_path, capfd):
    path = tmp_path / f"{ESCAPE}.npz"
    path.write_bytes(b"no archive")
    assert main(["info", str(path)]) == 1
    assert main(["export", str(path), str(tmp_path / "b.npz")]) == 1
    out, err = capfd.readouterr()
    assert "\x1b" not in out + err
    assert "\u202e" not in out + err
    assert err.count(r"\x1b[2Jgone\u202e.npz") == 2


def test_attributes_and_logs_are_printed_without_control_characters(tmp_path, capfd):
    metadata = json.dumps({"attrs": {"title": ESCAPE, "source": ESCAPE}})
    np.savez(tmp_path / "a.npz", arr_0=np.ones((721, 1440, 2), np.float32), copcube=metadata)
    ds = xr.open_dataset(tmp_path / "a.npz", engine="copembed")
    assert ds.attrs["source"] == ESCAPE  # nothing of the file is changed
    main(["info", str(tmp_path / "none.zarr")])
    logging.getLogger("copcube").warning("%s is odd", ESCAPE)
    out, err = capfd.readouterr()
    assert "\x1b" not in out + err
    assert r"\x1b[2Jgone" in err


@pytest.mark.parametrize("name", ["zarr.json", "embedding/zarr.json", ".zmetadata"])
def test_metadata_that_would_fill_the_memory_are_not_parsed(tmp_path, name):
    (tmp_path / "a.zarr" / name).parent.mkdir(parents=True)
    with open(tmp_path / "a.zarr" / name, "wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(CubeError, match=f"{name}: its text would expand to .*at most 1"):
        open_stored(str(tmp_path / "a.zarr"))
