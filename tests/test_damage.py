"""Chunks that are damaged, cut or lost: found by name, and never read silently."""

import asyncio
import json
import re
import shutil

import numpy as np
import pytest
import xarray as xr
import zarr
from builds_helpers import run_code
from strategies import random_rows
from zarr.core.sync import _get_loop, sync

from copcube import cube, grid
from copcube.aggregate import Aggregation, cell_statistics
from copcube.cli.main import main
from copcube.cube.view import CubeView
from copcube.errors import CubeError
from copcube.files.damage import UNDECODABLE, let_zarr_finish, naming_damage
from copcube.files.objects import ObjectFolder
from copcube.interchange import export, to_zarr
from copcube.pca.components import project, reduce

DIM = 6
GROUPS = {None: (), "modality": ("s1_grd", "dem"), "year": ("2020", "2021")}


def make(path, by=None):
    rows = random_rows(300, 40, DIM, seed=2)
    cells = cell_statistics(rows, Aggregation(by=by), GROUPS[by])
    cube.create(path, dim=DIM, by=by, groups=GROUPS[by])
    bands = grid.row_col(cells.grid_id)[0] // grid.BLOCK
    for band in range(grid.N_BANDS):
        cube.write_band(path, band, cells.take(bands == band))
    cube.finish(path)
    return path


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A cube, to be left as it is."""
    return make(tmp_path_factory.mktemp("cube") / "world.zarr")


@pytest.fixture
def sick(world, tmp_path):
    """A cube with a flipped bit, and the chunk that has it."""
    path = shutil.copytree(world, tmp_path / "sick.zarr")
    chunk = next(chunk for chunk in chunks_of(path) if chunk.startswith("embedding"))
    flip(path / chunk)
    return path, chunk


def chunks_of(path):
    files = (file for file in path.rglob("*") if file.is_file() and file.name != "zarr.json")
    return sorted(file.relative_to(path).as_posix() for file in files)


def flip(file, where=0.6):
    """Flip a bit at a place between the beginning and the end of a file.

    In a small one it is a bit of the checksum: some bits of a frame's header mean nothing.
    """
    data = bytearray(file.read_bytes())
    data[int(where * (len(data) - 1)) if len(data) > 64 else -1] ^= 16
    file.write_bytes(data)


DAMAGES = {
    "flipped": flip,
    "cut": lambda file: file.write_bytes(file.read_bytes()[:-3]),
    "empty": lambda file: file.write_bytes(b""),
    "zeros": lambda file: file.write_bytes(bytes(file.stat().st_size)),
    "missing": lambda file: file.unlink(),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "by"),
    [*((kind, None) for kind in DAMAGES), ("flipped", "modality"), ("cut", "year")],
)
def test_every_damaged_chunk_is_found_by_name(world, tmp_path, kind, by):
    path = tmp_path / "world.zarr"
    shutil.copytree(world, path) if by is None else make(path, by)
    chunks = chunks_of(path)
    assert len(chunks) > 60
    if kind == "missing":  # where all that speaks of a cell is lost, nothing says that it was there
        chunks = [chunk for chunk in chunks if chunk.startswith(("embedding", "l", "dim"))]
    for chunk in chunks:
        DAMAGES[kind](path / chunk)
    *problems, mending = cube.validate(path)
    assert sorted(problem.partition(":")[0] for problem in problems) == chunks
    assert all((": missing; " if kind == "missing" else ": damaged (") in p for p in problems)
    assert mending.startswith("to repair the cube:")
    assert cube.problems(path) == problems


@pytest.mark.slow
@pytest.mark.parametrize("name", ["n_images", "spread", "n_images_by_modality"])
def test_a_missing_map_is_told_from_cells_without_images(world, tmp_path, name):
    path = shutil.copytree(world, tmp_path / "world.zarr")
    chunk = next(chunk for chunk in chunks_of(path) if chunk.startswith(f"{name}/"))
    (path / chunk).unlink()
    problem, _ = cube.validate(path)
    assert problem.startswith(f"{chunk}: missing; {name} of cells of lat ")


@pytest.mark.slow
def test_an_array_that_somebody_stored_otherwise_is_examined_too(world, tmp_path):
    """Its chunks in a folder each, which is Zarr's default."""
    path = shutil.copytree(world, tmp_path / "world.zarr")
    about = json.loads((path / "spread" / "zarr.json").read_bytes())
    about["chunk_key_encoding"]["configuration"]["separator"] = "/"
    (path / "spread" / "zarr.json").write_text(json.dumps(about))
    root = json.loads((path / "zarr.json").read_bytes())
    root["consolidated_metadata"]["metadata"]["spread"] = about
    (path / "zarr.json").write_text(json.dumps(root))
    for chunk in [chunk for chunk in chunks_of(path) if chunk.startswith("spread/c.")]:
        new = path / "spread" / chunk.partition("/")[2].replace(".", "/")
        new.parent.mkdir(parents=True, exist_ok=True)
        (path / chunk).rename(new)
    assert cube.validate(path) == []
    flip(damaged := min((path / "spread").glob("c/*/*")))
    problem, _ = cube.validate(path)
    assert problem.startswith(
        f"{damaged.relative_to(path).as_posix()}: damaged (its checksum does not match); "
    )


@pytest.mark.slow
@pytest.mark.parametrize("server", ["bucket", "web"])
def test_damage_is_found_at_an_address_too(sick, server, request):
    """A bucket says which chunks there are; of a web server each is asked for."""
    path, chunk = sick
    at = request.getfixturevalue(server)
    files = {f.relative_to(path).as_posix(): f.read_bytes() for f in path.rglob("*") if f.is_file()}
    if server == "web":
        at.files |= {f"world.zarr/{name}": data for name, data in files.items()}
        url = f"{at.url}/world.zarr"
    else:
        url = f"{at}/world.zarr"
        for name, data in files.items():
            ObjectFolder(url).write(name, data)
    problem, _ = cube.validate(url)
    assert problem.startswith(f"{chunk}: damaged (")
    assert not asyncio.all_tasks(_get_loop())
    here, there = cube.summary(path), cube.summary(url)
    assert (there.images, there.cells_by_group) == (here.images, here.cells_by_group)
    assert there.images_by_modality == here.images_by_modality
    assert [problem] == cube.problems(path)


def test_the_cells_of_a_chunk_are_named(world, tmp_path):
    path = shutil.copytree(world, tmp_path / "world.zarr")
    chunk = next(chunk for chunk in chunks_of(path) if chunk.startswith("embedding"))
    flip(path / chunk)
    problem, _ = cube.validate(path)
    i, j = map(int, chunk.split(".")[1:3])
    block = xr.open_zarr(path).embedding.isel(
        lat=slice(45 * i, 45 * i + 45), lon=slice(45 * j, 45 * j + 45)
    )
    south, north, west, east = re.findall(r"-?\d+\.\d+", problem.removeprefix(chunk))
    assert (float(south), float(north)) == (block.lat.min(), block.lat.max())
    assert (float(west), float(east)) == (block.lon.min(), block.lon.max())


@pytest.mark.slow
def test_no_bit_of_a_chunk_can_be_flipped_unnoticed(world, tmp_path):
    """Either reading fails, or the numbers are the same: some bits of a header mean nothing."""
    path = shutil.copytree(world, tmp_path / "world.zarr")
    array, file = zarr.open_array(path / "dim", mode="r"), path / "dim" / "c.0"
    whole, found = file.read_bytes(), 0
    values = array[:]
    for bit in range(8 * len(whole)):
        data = bytearray(whole)
        data[bit // 8] ^= 1 << bit % 8
        file.write_bytes(data)
        try:
            assert np.array_equal(array[:], values)
        except UNDECODABLE:
            found += 1
    assert found > 0.9 * 8 * len(whole)


READERS = {
    "reduce": lambda ds, path: reduce(ds, 2),
    "lazily reduce": lambda ds, path: reduce(ds, 2),
    "accessor": lambda ds, path: ds.copembed.to_npz(path / "a.npz"),
    "npz": lambda ds, path: export(ds, path / "a.npz"),
    "tif": lambda ds, path: export(ds, path / "a.tif"),
    "netcdf": lambda ds, path: export(ds, path / "a.nc"),
    "parquet": lambda ds, path: export(ds, path / "a.parquet"),
    "zarr": lambda ds, path: to_zarr(ds, path / "a.zarr"),
    "lazily projected": lambda ds, path: to_zarr(project(ds, basis(ds)), path / "a.zarr"),
    "filled": lambda ds, path: CubeView.of(ds.drop_vars("n_images")).filled(),
}


def basis(ds):
    rng = np.random.default_rng(0)
    small = ds.isel(lat=[0], lon=slice(-4, None)).load()  # of another chunk than the sick one
    small["embedding"] = small.embedding.dims, rng.normal(size=small.embedding.shape)
    small["n_images"] = small.n_images.dims, np.ones(small.n_images.shape, np.int32)
    return reduce(small, 2)


@pytest.mark.slow
@pytest.mark.parametrize("reader", READERS)
def test_readers_name_the_chunk_in_one_line(sick, tmp_path, reader):
    path, chunk = sick
    ds = xr.open_zarr(path, chunks={} if "lazily" in reader else None)
    if "lazily" in reader:  # in the band of the chunk, for dask takes seconds for all of them
        ds = ds.isel(lat=grid.Block(int(chunk.split(".")[1]), 0).rows)
    with pytest.raises(CubeError) as caught:
        READERS[reader](ds, tmp_path)
    assert str(caught.value).startswith(f"{path}/{chunk}: a damaged chunk (its checksum does not")
    assert "\n" not in str(caught.value)
    assert "copcube validate" in str(caught.value)
    assert [file.name for file in tmp_path.iterdir()] == ["sick.zarr"]


@pytest.mark.slow
def test_the_command_names_the_chunk(sick, tmp_path, capsys):
    path, chunk = sick
    out = str(tmp_path / "fields.zarr")
    assert main(["reduce", str(path), out, "--k", "2", "--quiet"]) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"copcube: {path}/{chunk}: a damaged chunk")
    assert said.count("\n") == 1
    assert main(["validate", str(path)]) == 1
    assert capsys.readouterr().out.startswith(f"{chunk}: damaged (its checksum does not match); ")


@pytest.mark.slow
def test_the_summary_names_the_chunk_and_nothing_is_left_to_be_read(world, tmp_path):
    """What zarr leaves to its thread, Python would speak of in thousands of lines when it ends."""
    path = shutil.copytree(world, tmp_path / "world.zarr")
    chunk = next(chunk for chunk in chunks_of(path) if chunk.startswith("n_images/c"))
    flip(path / chunk)
    ds = xr.open_zarr(path, chunks=None)
    for read in (lambda: cube.summary(path), lambda: CubeView.of(ds).filled()):
        with pytest.raises(CubeError, match=f"{chunk}: a damaged chunk"):
            read()
        assert not asyncio.all_tasks(_get_loop())


def test_what_zarr_still_reads_is_awaited_or_given_up():
    tasks = []

    async def read(seconds):
        tasks.append(asyncio.create_task(asyncio.sleep(seconds)))
        raise ValueError("damaged")

    for seconds, cancel in ((0.2, False), (3600, True)):
        with pytest.raises(ValueError, match="damaged") as caught:
            sync(read(seconds))
        assert not tasks[-1].done()
        let_zarr_finish(caught.value, cancel=cancel)
        assert tasks[-1].done()
        assert tasks[-1].cancelled() == cancel
    let_zarr_finish(KeyboardInterrupt())


def test_other_errors_pass(world):
    with pytest.raises(ValueError, match=r"^mine$"), naming_damage():
        raise ValueError("mine")
    with pytest.raises(IndexError), naming_damage():
        xr.open_zarr(world).embedding[999].load()


@pytest.mark.slow
def test_reductions_carry_checksums_too(world, tmp_path):
    path = tmp_path / "fields.zarr"
    part = xr.open_zarr(world).isel(lat=slice(90, 270))  # dask takes seconds for all chunks
    to_zarr(reduce(part, 2), path)
    chunks = {chunk.partition("/")[0]: chunk for chunk in chunks_of(path)}
    for chunk in chunks.values():
        flip(path / chunk, 0.9)
        with pytest.raises(CubeError, match=f"{chunk}: a damaged chunk"), naming_damage():
            zarr.open_array(path / chunk.partition("/")[0], mode="r")[...]
        flip(path / chunk, 0.9)
    assert chunks.keys() > {"pc", "components", "mean", "lat"}


@pytest.mark.slow
@pytest.mark.parametrize("left", ["future", "event"])
def test_an_interruption_that_leaves_a_lock_behind_ends_the_command(left, tmp_path):
    """Ctrl-C may come just as the main thread has locked what zarr's thread needs to answer."""
    zarr.create_group(tmp_path / "a.zarr")
    said = run_code(
        f"""
import sys, threading
from concurrent.futures import _base
from copcube.cli import main

leave, wait = _base._AcquireFutures.__exit__, threading.Event.wait

def holding_future(self, *arguments):
    _base._AcquireFutures.__exit__ = leave
    raise KeyboardInterrupt

def holding_event(self, timeout=None):
    if sys._getframe(1).f_globals is not vars(_base):
        return wait(self, timeout)
    threading.Event.wait = wait
    self._cond.acquire()
    raise KeyboardInterrupt

if {left == "future"}:
    _base._AcquireFutures.__exit__ = holding_future
else:
    threading.Event.wait = holding_event
print("ended with", main(["info", {str(tmp_path / "a.zarr")!r}]))
""",
        tmp_path / "said.txt",
    )
    assert "ended with 130" in said
