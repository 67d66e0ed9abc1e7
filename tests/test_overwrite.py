"""What --overwrite replaces: results of copcube's at exactly that name, and nothing else."""

import os
import re
import shutil
import time
import warnings
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
import zarr
from builds_helpers import contents, leftovers
from memory_bucket import memory_bucket
from stub import StubEncoder

from copcube import grid, tutorial
from copcube.builds import aggregate, build, estimate, validate_rows
from copcube.builds.folder import BuildFolder
from copcube.cli import main
from copcube.cube import open_cube, read_attributes, validate, validation, view
from copcube.errors import BuildError, OptionError, StorageError
from copcube.files import atomic
from copcube.files.folders import LocalFolder
from copcube.files.objects import ObjectFolder
from copcube.images.sample.writing import write_sample
from copcube.interchange import convert, export, to_zarr
from copcube.interchange.replacing import require_free
from copcube.pca.components import reduce
from copcube.probes import table
from copcube.probes.bench import bench_table
from copcube.probes.bench.results import Result, Score

OPTIONS = {"modalities": ["s5p_co"], "threads": 1}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sample") / "images"
    write_sample(folder, seed=3, cells=2, modalities=["s5p_co"])
    return folder


@pytest.fixture(scope="module")
def finished(images, tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    build(images, folder / "world.zarr", encoder=StubEncoder(), **OPTIONS)
    return folder


@pytest.fixture
def world(finished, tmp_path):
    """A finished cube with its build, to do what one likes with."""
    shutil.copytree(finished, tmp_path / "here")
    return tmp_path / "here" / "world.zarr"


@pytest.fixture(scope="module")
def fields():
    """A small reduction without attributes or other marks."""
    lat, lon = grid.latitudes(), grid.longitudes()
    values = np.full((721, 1440, 2), np.nan, np.float32)
    values[300:303, 10:40] = np.random.default_rng(0).normal(size=(3, 30, 2))
    return xr.Dataset({"pc": (("lat", "lon", "component"), values)}, {"lat": lat, "lon": lon})


@pytest.mark.parametrize("no", ["no", "", None])
def test_what_is_no_flag_replaces_nothing(images, world, fields, tmp_path, no):
    before = contents(tmp_path)
    rows = world.with_name("world.build") / "rows"
    stub = StubEncoder()
    for made in (
        lambda: build(images, world, encoder=stub, overwrite=no),
        lambda: build(images, tmp_path / "b.zarr", encoder=stub, strict=no),
        lambda: build(images, tmp_path / "b.zarr", encoder=stub, retry_quarantined=no),
        lambda: estimate(images, world, encoder=stub, overwrite=no),
        lambda: aggregate(rows, world, overwrite=no),
        lambda: to_zarr(fields, world, overwrite=no),
        lambda: export(fields, tmp_path / "f.npz", overwrite=no),
    ):
        with pytest.raises(OptionError, match="; expected True or False"):
            made()
    assert contents(tmp_path) == before


def snapshot(folder):
    """Everything below a folder: content of files, targets of links."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            found[name] = os.readlink(path)
        elif path.is_file():
            found[name] = path.read_bytes()
        else:
            found[name] = "folder" if path.is_dir() else "special"
    return found


# Builds.


def again(source, out, **options):
    options = {"encoder": StubEncoder()} | OPTIONS | options
    return build(source, out, overwrite=True, **options)


@pytest.mark.parametrize(
    ("out", "source", "said"),
    [
        ("images", "images", "images is .*images, which is read"),
        ("images/../images/", "images", "is .*, which is read"),
        ("images/s5p_l3_wgs", "images", "lies in .*images, which is read"),
        (".", "images", "contains .*images, which is read"),
        ("link", "images", "is .*images, which is read"),
        ("images", "link", "is .*link, which is read"),
        ("other", "other.build", "other.build is .*other.build, which is read"),
    ],
)
def test_a_source_is_never_replaced(images, tmp_path, out, source, said):
    shutil.copytree(images, tmp_path / "images")
    shutil.copytree(images, tmp_path / "other.build")
    (tmp_path / "link").symlink_to(tmp_path / "images")
    before = snapshot(tmp_path)
    with pytest.raises(OptionError, match=said):
        again(f"{tmp_path}/{source}", f"{tmp_path}/{out}")
    assert snapshot(tmp_path) == before


@pytest.mark.slow
def test_rows_of_the_build_itself_are_not_aggregated_over_it(world):
    before = snapshot(world.parent)
    rows = world.with_name("world.build") / "rows"
    for source in (rows, f"{rows}/*.parquet", next(rows.iterdir())):
        with pytest.raises(OptionError, match=r"world.build contains .*rows.*, which is read"):
            aggregate(source, world, overwrite=True)
    assert snapshot(world.parent) == before


def documents(path):
    path.mkdir()
    (path / "thesis.txt").write_text("years")


def foreign_zarr(path):
    xr.Dataset({"temperature": ("x", np.ones(3))}).to_zarr(path, consolidated=False)


def note_inside(path):
    shutil.copytree(path.with_name("mine.zarr"), path)
    (path / ".note").write_text("mine")


def link_inside(path):
    shutil.copytree(path.with_name("mine.zarr"), path)
    (path / "more").symlink_to(path.with_name("mine.zarr"))


THINGS = {
    "documents": (documents, "a folder of something else"),
    "empty": (lambda path: path.mkdir(), "a folder of something else"),
    "file": (lambda path: path.write_text("years"), "a file.*"),
    "foreign Zarr": (foreign_zarr, "Zarr that copcube did not write"),
    "a note in a cube": (note_inside, ".note is not part of the data"),
    "a link in a cube": (link_inside, "more is not part of the data"),
    "link": (lambda path: path.symlink_to(path.with_name("mine.zarr")), "a link to .*mine.zarr"),
    "dead link": (lambda path: path.symlink_to("nowhere"), "a link to nowhere"),
    "pipe": (os.mkfifo, "a device, pipe or socket"),
}


@pytest.mark.parametrize("thing", THINGS)
@pytest.mark.parametrize("door", ["build", "aggregate", "reduction", "conversion"])
def test_only_zarr_of_copcube_s_own_is_replaced(images, finished, fields, tmp_path, thing, door):
    make, found = THINGS[thing]
    shutil.copytree(finished / "world.zarr", tmp_path / "mine.zarr")
    export(fields, tmp_path / "fields.npz")
    make(tmp_path / "out.zarr")
    before = snapshot(tmp_path)
    doors = {
        "build": lambda out: again(images, out),
        "aggregate": lambda out: aggregate(finished / "world.build/rows", out, overwrite=True),
        "reduction": lambda out: to_zarr(fields, out, overwrite=True),
        "conversion": lambda out: convert(tmp_path / "fields.npz", out, overwrite=True),
    }
    with pytest.raises((BuildError, StorageError), match=f"found .*{found}; remove it yourself"):
        doors[door](tmp_path / "out.zarr")
    shutil.rmtree(tmp_path / "out.build", ignore_errors=True)
    assert snapshot(tmp_path) == before


def test_a_folder_that_only_looks_like_that_of_a_build_is_left_alone(images, tmp_path):
    (tmp_path / "out.build" / "rows").mkdir(parents=True)
    (tmp_path / "out.build" / "rows" / "precious").write_text("years")
    (tmp_path / "cmake.build" / "cells").mkdir(parents=True)
    (tmp_path / "cmake.build" / "cells" / "main.o").write_text("years")
    (tmp_path / "cmake.build" / "plan.json").write_text("[]")
    (tmp_path / "cmake.build" / "Makefile").write_text("all:")
    before, stubbed = snapshot(tmp_path), OPTIONS | {"encoder": StubEncoder()}
    for name in ("out", "cmake"):
        for overwrite in (False, True):
            with pytest.raises(BuildError, match="it is not the folder of one: found"):
                build(images, tmp_path / f"{name}.zarr", overwrite=overwrite, **stubbed)
    assert snapshot(tmp_path) == before


@pytest.mark.slow
def test_a_note_beside_the_rows_is_kept(images, world):
    (world.with_name("world.build") / "note.txt").write_text("mine")
    again(images, world, balance="image")
    assert (world.with_name("world.build") / "note.txt").read_text() == "mine"


@pytest.mark.slow
def test_the_old_cube_stays_until_the_new_one_is_whole(images, world, monkeypatch):
    before, seen = contents(world), []
    rename = os.rename

    def watched(source, target):
        seen.append((str(source), contents(world) == before))
        rename(source, target)

    monkeypatch.setattr(os, "rename", watched)
    again(images, world, balance="image")
    (first, whole), (second, _) = [item for item in seen if ".zarr" in item[0]]
    assert first == str(world)
    assert whole
    assert "/cube.zarr/" in second
    assert xr.open_zarr(world).attrs["aggregation"] == "mean over all images alike"
    assert not leftovers(world.with_name("world.build"))


def test_a_build_without_images_leaves_the_old_cube(images, world):
    before = contents(world)
    with pytest.raises(BuildError, match="no image is left to make a cube of"):
        again(images, world, dates="1999")
    assert contents(world) == before
    assert validate(world) == []


@pytest.mark.slow
def test_one_that_is_stopped_before_it_has_a_plan_goes_on(finished, world, monkeypatch):
    rows, before = finished / "world.build" / "rows", contents(world)

    def stopped(self, name, data):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(LocalFolder, "create", stopped)
        with pytest.raises(KeyboardInterrupt):
            aggregate(rows, world, balance="image", overwrite=True)
    assert contents(world) == before
    aggregate(rows, world, balance="image", overwrite=True)
    assert xr.open_zarr(world).attrs["aggregation"] == "mean over all images alike"


class Killed(BaseException):
    """Nothing that runs afterwards does anything."""


def stop_between_renames(monkeypatch, images, world, by):
    """Replace a cube; raise an error when the old one is away and the new one has not its name."""
    rename = os.rename

    def failing(source, target):
        if "/cube.zarr/" in str(source):
            raise by
        rename(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", failing)
        with pytest.raises(type(by)):
            again(images, world, balance="image")


@pytest.mark.slow
@pytest.mark.parametrize("by", [OSError("disk gone"), KeyboardInterrupt()])
def test_a_failed_rename_brings_the_old_cube_back(images, world, monkeypatch, by):
    before = contents(world)
    stop_between_renames(monkeypatch, images, world, by)
    assert contents(world) == before
    encoder = StubEncoder()
    build(images, world, encoder=encoder, overwrite=True, balance="image", **OPTIONS)
    assert encoder.calls == []
    assert contents(world) != before


@pytest.mark.slow
def test_after_a_kill_between_the_renames_another_build_brings_the_old_cube_back(
    images, world, monkeypatch
):
    before = contents(world)
    stop_between_renames(monkeypatch, images, world, Killed())
    assert not world.exists()
    with pytest.raises(BuildError, match="no image is left"):
        again(images, world, dates="1999")
    assert contents(world) == before


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["build", "aggregate"])
def test_overwrite_makes_a_cube_of_the_same_plan_again(images, finished, tmp_path, kind):
    """Also where nothing seems to be damaged, as by a title that somebody changed."""
    make = {
        "build": partial(build, images, encoder=StubEncoder(), **OPTIONS),
        "aggregate": partial(aggregate, finished / "world.build" / "rows"),
    }[kind]
    out = tmp_path / "new.zarr"
    make(out)
    before = contents(out)
    zarr.open_group(out, mode="r+").attrs["title"] = "mine"
    make(out)
    assert contents(out) != before
    make(out, overwrite=True)
    assert contents(out) == before


@pytest.mark.slow
def test_a_kill_after_the_renames_has_nothing_made_again(images, world, monkeypatch):
    remove, seen = LocalFolder.remove, []

    def killed(folder, name):
        seen.append(name)
        if seen.count("cells") == 3:  # twice before the cube is made, once after
            raise Killed
        remove(folder, name)

    with monkeypatch.context() as patch:
        patch.setattr(LocalFolder, "remove", killed)
        with pytest.raises(Killed):
            again(images, world)
    inodes = {path: path.stat().st_ino for path in world.rglob("*")}
    build(images, world, encoder=StubEncoder(), **OPTIONS)
    assert {path: path.stat().st_ino for path in world.rglob("*")} == inodes


def test_what_jobs_share_is_not_overwritten(images, world):
    before = snapshot(world.parent)
    with pytest.raises(OptionError, match="remove the build's folder first, or leave out"):
        again(images, world, partitions=0)
    assert snapshot(world.parent) == before


@pytest.mark.slow
def test_replacing_a_cube_by_one_of_the_same_plan_goes_on_where_it_stopped(images, world):
    class Failing(StubEncoder):
        def __call__(self, *arguments):
            if self.calls:
                raise RuntimeError("power cut")
            return super().__call__(*arguments)

    before, whole, rest = contents(world), StubEncoder(), StubEncoder()
    again(images, world.with_name("other.zarr"), encoder=whole)
    with pytest.raises(RuntimeError, match="power cut"):
        again(images, world, encoder=Failing())
    assert contents(world) == before
    again(images, world, encoder=rest)
    assert 0 < len(rest.calls) < len(whole.calls)
    assert contents(world) == before
    assert not leftovers(world.with_name("world.build"))


@pytest.mark.slow
def test_what_comes_while_a_build_runs_is_not_replaced(images, tmp_path, monkeypatch):
    out, publish = tmp_path / "world.zarr", BuildFolder.publish

    def late(folder, *args, **more):
        documents(out)
        publish(folder, *args, **more)

    monkeypatch.setattr(BuildFolder, "publish", late)
    with pytest.raises(BuildError, match="exists and is not the result of this build"):
        build(images, out, encoder=StubEncoder(), **OPTIONS)
    assert (out / "thesis.txt").read_text() == "years"


@pytest.mark.slow
def test_in_a_bucket_documents_beside_a_cube_are_kept(images):
    with memory_bucket() as root:
        out = f"{root}/world.zarr"
        build(images, out, encoder=StubEncoder(), **OPTIONS)
        again(images, out, balance="image")
        ObjectFolder(out).write("thesis.txt", b"years")
        with pytest.raises(BuildError, match=r"found .* thesis.txt is not part of the data"):
            again(images, out)
        assert ObjectFolder(out).read("thesis.txt") == b"years"
        assert read_attributes(out)["aggregation"].startswith("mean over all")
        with pytest.raises(OptionError, match="expected a name in the bucket"):
            again(images, root)


# Mending.


def flip(path):
    """Flip a bit, which neither size nor time of the file show."""
    state, data = path.stat(), bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))


def reword(path):
    path.write_text(path.read_text().replace('"units": "degree', '"units": "degrie'))


DAMAGES = {
    "flipped": ("chunk", flip),
    "missing": ("chunk", os.unlink),
    "a text": ("lat/zarr.json", reword),
    "a text of the copies": ("zarr.json", reword),
    "root lost": ("zarr.json", os.unlink),
    "root cut": ("zarr.json", lambda path: os.truncate(path, 999)),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", DAMAGES)
def test_the_same_command_mends_a_damaged_cube_from_the_rows(images, world, kind, caplog):
    before = contents(world)
    chunk = next(
        path
        for path in (world / "embedding").rglob("*")
        if path.is_file() and path.name != "zarr.json"
    )
    name, damage = DAMAGES[kind]
    damage(chunk if name == "chunk" else world / name)
    assert re.search("give the command that made (it|the cube) again", validate(world)[-1])
    encoder = StubEncoder()
    build(images, world, encoder=encoder, **OPTIONS)
    assert encoder.calls == []
    assert contents(world) == before
    assert validate(world) == validate_rows(world) == []
    assert not leftovers(world.with_name("world.build"))
    if not kind.startswith("root"):
        assert "the cube is made again from its rows" in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["flipped", "root lost"])
def test_a_damaged_cube_to_which_somebody_added_is_not_replaced_unasked(images, world, kind):
    group = zarr.open_group(world, mode="r+")
    group["lat"].attrs["comment"] = "mine"
    assert validate(world) == []  # what was added is no damage
    group.create_array("mine", shape=(3,), dtype="f4")[:] = 1
    name, damage = DAMAGES[kind]
    chunk = next((world / "embedding").glob("c.*"))
    damage(chunk if name == "chunk" else world / name)
    with pytest.raises(BuildError, match="would remove mine, which copcube did not write"):
        build(images, world, encoder=StubEncoder(), **OPTIONS)
    assert (world / "mine" / "zarr.json").is_file()
    shutil.rmtree(world / "mine")
    build(images, world, encoder=StubEncoder(), **OPTIONS)
    assert validate(world) == []


@pytest.mark.slow
def test_rows_of_a_build_that_goes_on_are_not_called_damaged(images, world):
    said = []

    class Asking(StubEncoder):
        def __call__(self, *arguments):
            said.append(validate_rows(world))
            return super().__call__(*arguments)

    again(images, world, encoder=Asking())
    unfinished = "belongs to an unfinished build, or to another cube"
    assert {*map(tuple, said)} == {(f"{world.with_name('world.build')}: {unfinished}",)}
    assert validate_rows(world) == []


@pytest.mark.slow
def test_an_aggregated_cube_is_mended_too(finished, tmp_path):
    rows, out = finished / "world.build" / "rows", tmp_path / "again.zarr"
    aggregate(rows, out)
    before = contents(out)
    (out / "spread" / "zarr.json").unlink()
    for chunk in (out / "n_images").glob("c.*"):
        chunk.unlink()
    aggregate(rows, out)
    assert contents(out) == before
    (out / "zarr.json").unlink()
    aggregate(rows, out)
    assert contents(out) == before


def test_a_cube_without_its_root_is_only_replaced_beside_its_own_build(finished, tmp_path):
    rows, out = finished / "world.build" / "rows", tmp_path / "other.zarr"
    shutil.copytree(finished / "world.zarr", out)
    (out / "zarr.json").unlink()
    before = contents(tmp_path)
    for overwrite in (False, True):
        with pytest.raises(BuildError, match=r"other\.zarr"):
            aggregate(rows, out, overwrite=overwrite)
        assert contents(out) == {k.removeprefix("other.zarr/"): v for k, v in before.items()}


# Exports.


FORMS = ["npz", "pt", "tif", "nc", "parquet", "zarr"]


def write(ds, path, **options):
    if path.suffix == ".zarr":
        to_zarr(ds, path, **options)
    else:
        export(ds, path, **options)


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_exports_replace_exports_and_nothing_else(fields, tmp_path, form):
    path = tmp_path / f"a.{form}"
    write(fields, path)
    write(fields * 2, path, overwrite=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        engine = {} if form in ("zarr", "nc") else {"engine": "copembed"}
        opened = xr.open_dataset(path, **engine) if form != "zarr" else xr.open_zarr(path)
        np.testing.assert_array_equal(opened.pc.transpose(*fields.pc.dims), (fields * 2).pc)
        opened.close()
    (tmp_path / f"mine.{form}").write_bytes(b"years" * 100)
    (tmp_path / f"link.{form}").symlink_to(path)
    os.mkfifo(tmp_path / f"pipe.{form}")
    documents(tmp_path / f"documents.{form}")
    before = snapshot(tmp_path)
    for name in ("mine", "link", "pipe", "documents"):
        with pytest.raises(StorageError, match="only what copcube made is replaced, found"):
            write(fields, tmp_path / f"{name}.{form}", overwrite=True)
    assert snapshot(tmp_path) == before


def test_files_of_others_in_copcube_s_forms_are_kept(fields, tmp_path):
    import netCDF4
    import pyarrow as pa
    import pyarrow.parquet as pq
    import rasterio
    import torch

    values = np.zeros((721, 1440, 1), np.float32)
    np.savez(tmp_path / "map.npz", values)
    torch.save(torch.zeros(3), tmp_path / "map.pt")
    pq.write_table(pa.table({"a": [1]}), tmp_path / "map.parquet")
    profile = {"driver": "GTiff", "width": 2, "height": 2, "count": 1, "dtype": "uint8"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with rasterio.open(tmp_path / "map.tif", "w", **profile) as file:
            file.write(np.ones((1, 2, 2), np.uint8))
    with netCDF4.Dataset(tmp_path / "map.nc", "w") as file:
        file.createDimension("x", 2)
        file.createVariable("t2m", "f4", ("x",))
    before = snapshot(tmp_path)
    for path in tmp_path.iterdir():
        with pytest.raises(StorageError, match="found a file that copcube did not write"):
            export(fields, path, overwrite=True)
    assert snapshot(tmp_path) == before


def test_two_colons_are_named_where_zarr_takes_them_for_a_chain(finished, images, fields, tmp_path):
    world = shutil.copytree(finished / "world.zarr", tmp_path / "a::b" / "world.zarr")
    for use in (
        open_cube,
        lambda path: build(images, path.with_name("new.zarr"), encoder=StubEncoder(), **OPTIONS),
        lambda path: to_zarr(fields, path.with_name("fields.zarr")),
    ):
        with pytest.raises(OptionError, match=r"a::b/\w+\.zarr: zarr .* read :: .* without it"):
            use(world)
    assert [path.name for path in (tmp_path / "a::b").iterdir()] == ["world.zarr"]


def test_a_store_is_not_called_as_a_file(finished, images, fields, tmp_path):
    """Nothing would open it: readers go by the ending."""
    rows, world = finished / "world.build" / "rows", tmp_path / "world.nc"
    for make in (
        lambda out: build(images, out, encoder=StubEncoder(), **OPTIONS),
        lambda out: estimate(images, out, encoder=StubEncoder(), **OPTIONS),
        lambda out: aggregate(rows, out),
        lambda out: aggregate(rows, out.with_name("world.NPZ")),
        lambda out: to_zarr(fields, out),
        lambda out: convert(tmp_path / "map.npz", out),
        lambda out: tutorial.write(out),
    ):
        with pytest.raises(OptionError, match=r"Zarr is a folder, .* such as world\.zarr"):
            make(world)
    assert not [*tmp_path.iterdir()]


@pytest.mark.slow
def test_tables_replace_tables_and_no_other_text(fields, tmp_path):
    """Of points, of regions, of a probe and of a benchmark: texts have no room for a mark."""
    export(fields, tmp_path / "f.npz")
    stations = tmp_path / "stations.csv"
    stations.write_text("name,lat,lon\na,15.0,2.5\n")
    commands = (
        ["points", str(tmp_path / "f.npz"), str(stations), str(tmp_path / "points.csv")],
        ["box", str(tmp_path / "f.npz"), "2", "14", "4", "16", "--out", str(tmp_path / "box.csv")],
    )
    for command in commands * 2:
        assert main([*command, "--overwrite", "--quiet"]) == 0
    axes = "seed", "input", "target"
    found = xr.Dataset(
        {
            "rmse": (axes, np.ones((1, 1, 2))),
            "r2": (axes, np.ones((1, 1, 2))),
            "published_rmse": (axes[1:], np.ones((1, 2))),
            "published_spread": (axes[1:], np.ones((1, 2))),
        },
        {
            "input": ["xyz"],
            "target": ["t2m_mean", "own_std"],
            "components": ("input", [0]),
            "label": ("target", ["temperature, mean", "own, std"]),
            "unit": ("target", ["°C", ""]),
        },
    )
    score = Score(bench=90.0, dataset=90.0, validation=90.0)
    result = Result("eurosat-s2", "knn", (score,), {}, 1.0)
    for form, ending in (("csv", "csv"), ("markdown", "md"), ("latex", "tex")):
        for name, text in (("probe", table(found, form)), ("bench", bench_table([result], form))):
            path = tmp_path / f"{name}.{ending}"
            path.write_text(text, "utf-8")
            assert require_free(path, True) == path
    others = {"mine.md": "# Results\n", "mine.tex": "\\begin{document}", "a.csv": "a" * (1 << 18)}
    others["stations.csv"] = stations.read_text()
    for name, text in others.items():
        (tmp_path / name).write_text(text)
        with pytest.raises(StorageError, match="found a file that copcube did not write"):
            require_free(tmp_path / name, True)


@pytest.mark.parametrize("form", FORMS)
def test_an_input_is_not_replaced_by_what_is_made_of_it(fields, tmp_path, form):
    path = tmp_path / f"a.{form}"
    write(fields, path)
    engine = {} if form == "nc" else {"engine": "copembed"}
    opened = xr.open_zarr(path) if form == "zarr" else xr.open_dataset(path, **engine)
    before = snapshot(tmp_path)
    with opened, pytest.raises(StorageError, match="which is read to make it"):
        write(opened, path, overwrite=True)
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("where", ["world.zarr", "world.zarr/n_images", "link"])
def test_nothing_is_written_into_a_cube(world, images, fields, where, capsys):
    (world.parent / "link").symlink_to(world)
    folder, before = world.parent / where, snapshot(world.parent)
    for form in FORMS:
        with pytest.raises(StorageError, match=r"x\.\w+ lies in .*world\.zarr, which holds a cube"):
            write(fields, folder / f"x.{form}")
    with pytest.raises(StorageError, match=r"lies in .*world\.zarr, which"):
        build(images, folder / "x.zarr", encoder=StubEncoder(), **OPTIONS)
    assert main(["map", str(world), str(folder / "x.png")]) == 1
    assert "x.png lies in " in capsys.readouterr().err
    assert snapshot(world.parent) == before


@pytest.mark.slow
def test_no_command_replaces_its_input(world, fields, tmp_path, capsys):
    here = tmp_path / "here"
    cube = xr.open_zarr(world, chunks=None)
    to_zarr(reduce(cube, 1), here / "fields.zarr")
    export(cube, here / "map.npz")
    lat = np.arange(90, -90.1, -0.25)
    lsm = np.ones((721, 1440), np.float32)
    xr.Dataset(
        {"lsm": (("latitude", "longitude"), lsm)},
        {"latitude": lat, "longitude": np.arange(1440) / 4},
        {"history": "copcube would take this for its own"},
    ).to_netcdf(here / "era5.nc")
    (here / "link.zarr").symlink_to(world)
    before = snapshot(here)
    commands = [
        ["reduce", "world.zarr", "world.zarr"],
        ["reduce", "link.zarr", "world.zarr"],
        ["reduce", "world.zarr", "fields.zarr", "--basis", "fields.zarr"],
        ["merge", "fields.zarr", "era5.nc", "fields.zarr"],
        ["merge", "fields.zarr", "era5.nc", "era5.nc"],
        ["export", "map.npz", "map.npz"],
        ["build", "world.zarr", "world.zarr"],
        ["aggregate", "world.build/rows", "world.zarr"],
    ]
    for command in commands:
        words = [str(here / word) if "." in word else word for word in command]
        words = [word if word != "world.build/rows" else f"{here}/{word}" for word in words]
        assert main([*words, "--overwrite", "--quiet"]) == 1, command
        said = capsys.readouterr().err
        assert said.startswith("copcube: "), command
        assert "which is read" in said or "no imagery" in said or "expected" in said, said
    assert snapshot(here) == before


def test_something_that_comes_while_an_export_runs_is_kept(fields, tmp_path):
    import dask.array as da

    def appear(block):
        (tmp_path / "a.npz").write_text("years")
        return block

    lazy = fields.chunk(lat=45)
    lazy["pc"] = lazy.pc.dims, da.map_blocks(appear, lazy.pc.data, dtype=np.float32)
    with pytest.raises(StorageError, match="exists already"):
        export(lazy, tmp_path / "a.npz")
    assert snapshot(tmp_path) == {"a.npz": b"years"}


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [
        "export {world} {here}/a.npz",
        "export {world} {here}/a.nc",
        "reduce {world} {here}/a.zarr --k 1",
        "map {world} {here}/a.html --k 1",
        "map {world} {here}/a.png --show counts",
        "points {world} {here}/points.txt {here}/a.csv",
        "change {world} {world} {here}/a.nc",
    ],
)
def test_what_another_process_writes_at_the_same_moment_is_kept(
    finished, tmp_path, monkeypatch, capsys, command
):
    """Between the last look at the name and taking it: to flush a large file takes seconds."""
    sync, rename = atomic.sync, Path.rename
    (tmp_path / "points.txt").write_text("lat,lon\n45,7\n")
    words = command.format(world=finished / "world.zarr", here=tmp_path).split()
    out = next(Path(word) for word in words if Path(word).stem == "a")
    other = out / "zarr.json" if out.suffix == ".zarr" else out

    def late(path, *target):
        if Path(path).suffix == ".partial":
            other.parent.mkdir(exist_ok=True)
            other.write_text("{}")
        return rename(path, *target) if target else sync(path)

    monkeypatch.setattr(atomic, "sync", late)
    monkeypatch.setattr(Path, "rename", late)
    assert main(words) == 1
    assert f"{out} exists already; choose another name" in capsys.readouterr().err
    assert other.read_text() == "{}"
    assert {path.name for path in tmp_path.iterdir()} == {"points.txt", out.name}


@pytest.mark.slow
@pytest.mark.parametrize(
    "command", ["export {world} a.npz", "reduce {world} a.zarr --k 1", "validate {world}"]
)
def test_a_cube_that_is_replaced_while_it_is_read_makes_nothing(
    images, world, tmp_path, monkeypatch, capsys, command
):
    def replaced(*arguments, real=view.CubeView.of, **options):
        os.rename(world, tmp_path / "former.zarr")
        shutil.copytree(tmp_path / "former.zarr", world)
        return real(*arguments, **options)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(view.CubeView, "of", replaced)
    monkeypatch.setattr(validation, "open_group", partial(replaced, real=validation.open_group))
    assert main(command.format(world=world).split()) == 1
    assert (
        f"{world}: replaced, changed or removed while it was read; give" in capsys.readouterr().err
    )
    assert {path.name for path in tmp_path.iterdir()} == {"here", "former.zarr"}


@pytest.mark.slow
def test_what_killed_exports_left_goes_a_day_later(fields, tmp_path):
    def left(name, age):
        file = tmp_path / name / "chunk" if "zarr" in name else tmp_path / name
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(b"half")
        os.utime(file, times=(time.time() - age,) * 2)
        if file.parent != tmp_path:  # a folder looks no younger for what is written into it
            os.utime(file.parent, times=(0, 0))

    hour, week = 3600, 7 * 24 * 3600
    for name, write in (("a.zarr", to_zarr), ("a.npz", export)):
        left(f".{name}.of-a-killed-one.partial", week)
        left(f".{name}.of-one-at-work.partial", hour)
        left(f".other-{name}.of-a-killed-one.partial", week)
        write(fields, tmp_path / name)
    kept = {f".{name}.of-one-at-work.partial" for name in ("a.zarr", "a.npz")}
    kept |= {f".other-{name}.of-a-killed-one.partial" for name in ("a.zarr", "a.npz")}
    assert {path.name for path in tmp_path.iterdir()} == kept | {"a.zarr", "a.npz"}


def test_a_zarr_of_format_2_is_known(fields, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fields.to_zarr(tmp_path / "a.zarr", zarr_format=2)
    to_zarr(fields, tmp_path / "a.zarr", overwrite=True)
    assert zarr.open_group(tmp_path / "a.zarr").metadata.zarr_format == 3


@pytest.mark.slow
def test_a_text_is_no_permission_to_overwrite(tmp_path):
    # As from a configuration file: "no" and "False" counted as true.
    ds = xr.Dataset(
        {"pc": (("lat", "lon", "component"), np.ones((1, 2, 2), "f4"))},
        {"lat": [45.0], "lon": [7.0, 7.25]},
    )
    use = ds.copembed
    for write, name in (
        (use.to_netcdf, "a.nc"),
        (use.to_parquet, "a.parquet"),
        (lambda path, **options: to_zarr(ds, path, **options), "a.zarr"),
    ):
        out = tmp_path / name
        write(out)
        before = out.stat().st_mtime_ns
        for given in ("no", "False", 2, None):
            with pytest.raises(OptionError, match=r"overwrite is .*; expected True or False"):
                write(out, overwrite=given)
        assert out.stat().st_mtime_ns == before
    for write in (use.to_npz, use.to_netcdf, use.to_geotiff):
        with pytest.raises(OptionError, match="compress is 'no'"):
            write(tmp_path / "new", compress="no")
    assert not (tmp_path / "new").exists()
