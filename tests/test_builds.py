"""Builds: what they make, and that no death loses or changes anything."""

import errno
import json
import multiprocessing
import os
import random
import shutil
import signal
import time

import numpy as np
import pyarrow.parquet as pq
import pytest
import xarray as xr
from builds_helpers import assert_undisturbed, contents, leftovers
from stub import StubEncoder

from copcube import grid
from copcube.builds import aggregate, build, estimate
from copcube.cube import validate
from copcube.errors import BuildError, ImageError, SourceError, StorageError
from copcube.images import open_source
from copcube.images.sample.writing import write_sample

FORK = multiprocessing.get_context("forkserver")
FORK.set_forkserver_preload(
    ["copcube.builds", "copcube.images.geotiff", "pyarrow.parquet", "rasterio", "stub", "zarr"]
)


@pytest.fixture(scope="session")
def trees(tmp_path_factory):
    """The same sample in both layouts."""
    folder = tmp_path_factory.mktemp("sample")
    for layout in ("geotiff", "webdataset"):
        write_sample(folder / layout, layout, seed=3, cells=4)
    return folder


@pytest.fixture(scope="session")
def undisturbed(trees, tmp_path_factory):
    """A build that nobody disturbed."""
    out = tmp_path_factory.mktemp("undisturbed") / "world.zarr"
    build(trees / "geotiff", out, encoder=StubEncoder())
    return out


def test_the_cube_holds_the_mean_of_every_cell(trees, undisturbed):
    """Against a plain loop over the source, with numpy alone."""
    cube = xr.open_zarr(undisturbed).load()
    assert validate(undisturbed) == []
    encoder = StubEncoder()
    images = {}
    source = open_source(trees / "geotiff")
    from copcube.embedding.partition import cropped, metadata
    from copcube.modalities import MODALITIES
    from copcube.selection import Selection

    for partition in source.partitions():
        for job in source.jobs(partition, Selection.of()):
            for image in job() if callable(job) else ():
                pixels = cropped(image.pixels, MODALITIES[image.modality], "center")
                vector = encoder.vector(pixels, np.array(metadata(image)))
                images.setdefault(image.grid_id, {}).setdefault(image.modality, []).append(vector)
    assert len(images) == 4 == int((cube.n_images > 0).sum())
    for grid_id, by_modality in images.items():
        lat, lon = grid.centre(grid_id)
        cell = cube.sel(lat=lat, lon=lon % 360)
        means = [np.mean(np.array(v, dtype=np.float64), axis=0) for v in by_modality.values()]
        np.testing.assert_allclose(cell.embedding, np.mean(means, axis=0), rtol=1e-6)
        assert cell.n_images == sum(len(v) for v in by_modality.values())


def test_both_layouts_give_the_same_cube(trees, undisturbed, tmp_path):
    build(trees / "webdataset", tmp_path / "w.zarr", encoder=StubEncoder())
    one, other = xr.open_zarr(undisturbed).load(), xr.open_zarr(tmp_path / "w.zarr").load()
    for name in one.variables:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)


def test_the_same_build_gives_the_same_bytes(trees, undisturbed, tmp_path):
    build(trees / "geotiff", tmp_path / "world.zarr", encoder=StubEncoder(), threads=1)
    assert contents(tmp_path / "world.zarr") == contents(undisturbed)
    rows = undisturbed.with_name("world.build") / "rows"
    assert contents(tmp_path / "world.build" / "rows") == contents(rows)
    assert not leftovers(tmp_path / "world.build")


def test_a_finished_build_is_not_done_again(trees, undisturbed):
    encoder = StubEncoder()
    report = build(trees / "geotiff", undisturbed, encoder=encoder)
    assert encoder.calls == []
    assert report.resumed > 0
    assert sum(report.images.values()) > 0


def _child(source, out, die_at):
    """Build in a process that kills itself at the n-th change of the file system."""
    if die_at is not None:
        count = 0

        def mortal(function):
            def call(*arguments, **options):
                nonlocal count
                count += 1
                if count == die_at:
                    os.kill(os.getpid(), signal.SIGKILL)
                return function(*arguments, **options)

            return call

        for name in ("replace", "rename", "fsync"):
            setattr(os, name, mortal(getattr(os, name)))
    build(source, out, encoder=StubEncoder(seconds=0.01))


def _run(source, out, *, die_at=None, die_after=None):
    """Whether a child that is to die came to the end."""
    child = FORK.Process(target=_child, args=(str(source), str(out), die_at))
    child.start()
    if die_after is not None:
        child.join(die_after)
        child.kill()
    child.join()
    assert child.exitcode in (0, -signal.SIGKILL)
    return child.exitcode == 0


@pytest.mark.slow
def test_dying_at_commits_changes_nothing(trees, undisturbed, tmp_path):
    """Every run dies some changes of the file system later than the last."""
    out = tmp_path / "world.zarr"
    deaths = 0
    while not _run(trees / "geotiff", out, die_at=2 + 7 * deaths):
        deaths += 1
        assert deaths < 100
    assert deaths > 8
    assert_undisturbed(out, undisturbed)


@pytest.mark.slow
def test_dying_at_random_moments_changes_nothing(trees, undisturbed, tmp_path):
    _run(trees / "geotiff", tmp_path / "warm.zarr", die_after=0.1)
    begin = time.monotonic()
    assert _run(trees / "geotiff", tmp_path / "whole.zarr")
    whole = time.monotonic() - begin
    moments = random.Random(0)
    deaths = 0
    for attempt in range(4):
        out = tmp_path / str(attempt) / "world.zarr"
        out.parent.mkdir()
        for _ in range(3):
            moment = moments.uniform(0.1, 0.6) * whole
            deaths += not _run(trees / "geotiff", out, die_after=moment)
        assert _run(trees / "geotiff", out)
        assert_undisturbed(out, undisturbed)
    assert deaths >= 4


def test_nothing_is_embedded_twice(trees, tmp_path):
    """A build that fails halfway keeps what it signed for."""

    class Failing(StubEncoder):
        def __call__(self, modality, pixels, metadata):
            if len(self.calls) >= 12:
                raise RuntimeError("power cut")
            return super().__call__(modality, pixels, metadata)

    first, second, whole = Failing(), StubEncoder(), StubEncoder()
    with pytest.raises(RuntimeError, match="power cut"):
        build(trees / "geotiff", tmp_path / "world.zarr", encoder=first)
    report = build(trees / "geotiff", tmp_path / "world.zarr", encoder=second)
    build(trees / "geotiff", tmp_path / "whole.zarr", encoder=whole)
    assert report.resumed > 0
    assert len(second.calls) < len(whole.calls)


def test_resuming_keeps_batches_and_version_of_the_plan(trees, undisturbed, tmp_path):
    """Automatic batch sizes of another machine, or a later copcube, do not bar the way."""

    class Failing(StubEncoder):
        def __call__(self, modality, pixels, metadata):
            if len(self.calls) >= 12:
                raise RuntimeError("power cut")
            return super().__call__(modality, pixels, metadata)

    class Larger(StubEncoder):
        def batch_size(self, modality, size):
            return 64

    out = tmp_path / "world.zarr"
    with pytest.raises(RuntimeError, match="power cut"):
        build(trees / "geotiff", out, encoder=Failing())
    encoder = Larger()
    assert build(trees / "geotiff", out, encoder=encoder).resumed > 0
    assert max(shape[0] for _, shape in encoder.calls) == 4
    assert contents(out) == contents(undisturbed)
    with pytest.raises(BuildError, match=r"batch_sizes\.dem: was 4, now 2"):
        build(trees / "geotiff", out, encoder=StubEncoder(), batch_size=2)


@pytest.mark.parametrize("damage", ["truncate", "flip", "remove"])
def test_a_receipt_without_its_data_is_void(trees, undisturbed, tmp_path, damage):
    out = tmp_path / "world.zarr"
    shutil.copytree(undisturbed, out)
    shutil.copytree(undisturbed.with_name("world.build"), tmp_path / "world.build")
    shutil.rmtree(out)
    rows = sorted((tmp_path / "world.build" / "rows").iterdir())[0]
    data = bytearray(rows.read_bytes())
    if damage == "remove":
        rows.unlink()
    elif damage == "truncate":
        rows.write_bytes(data[: len(data) // 2])
    else:
        data[len(data) // 2] ^= 1
        rows.write_bytes(data)
    encoder = StubEncoder()
    build(trees / "geotiff", out, encoder=encoder)
    assert encoder.calls
    assert contents(out) == contents(undisturbed)


def test_other_options_are_refused_by_name(trees, undisturbed, tmp_path):
    out = tmp_path / "world.zarr"
    build(trees / "geotiff", out, encoder=StubEncoder(), modalities=["dem"])
    with pytest.raises(BuildError) as caught:
        build(trees / "geotiff", out, encoder=StubEncoder(), modalities=["dem"], balance="image")
    assert "options.balance: was modality, now image" in str(caught.value)
    assert "modalities" not in str(caught.value)
    assert "--overwrite" in str(caught.value)

    class Other(StubEncoder):
        @property
        def provenance(self):
            return super().provenance | {"encoder_trained": 1}

    with pytest.raises(BuildError, match=r"encoder\.encoder_trained: was 0, now 1"):
        build(trees / "geotiff", out, encoder=Other(), modalities=["dem"])


def test_a_changed_source_is_refused(trees, tmp_path):
    shutil.copytree(trees / "geotiff", tmp_path / "images")
    out = tmp_path / "world.zarr"
    build(tmp_path / "images", out, encoder=StubEncoder(), modalities=["dem"])
    shutil.rmtree(next((tmp_path / "images" / "dem_grid_wgs" / "images").iterdir()))
    for listing in (tmp_path / "images").glob("fnames*"):
        listing.unlink()
    with pytest.raises(BuildError, match="fingerprint: was"):
        build(tmp_path / "images", out, encoder=StubEncoder(), modalities=["dem"])


def test_a_list_of_partitions_that_is_not_of_the_plan_is_replaced(trees, undisturbed, tmp_path):
    """As after a kill between the two, or by a driver that was refused."""
    folder = tmp_path / "world.build"
    folder.mkdir()
    build(trees / "webdataset", tmp_path / "other.zarr", encoder=StubEncoder())
    shutil.copy(tmp_path / "other.build" / "partitions.parquet", folder)
    build(trees / "geotiff", tmp_path / "world.zarr", encoder=StubEncoder())
    assert_undisturbed(tmp_path / "world.zarr", undisturbed)


def test_overwrite_starts_anew_and_keeps_the_old_cube_until_then(trees, tmp_path):
    out = tmp_path / "world.zarr"
    build(trees / "geotiff", out, encoder=StubEncoder(), modalities=["dem"])
    before = contents(out)

    class Failing(StubEncoder):
        def __call__(self, modality, pixels, metadata):
            raise RuntimeError("power cut")

    options = {"modalities": ["dem"], "balance": "image", "overwrite": True}
    with pytest.raises(RuntimeError):
        build(trees / "geotiff", out, encoder=Failing(), **options)
    assert contents(tmp_path / "world.build" / "replaced.zarr") == before
    build(trees / "geotiff", out, encoder=StubEncoder(), **options)
    assert xr.open_zarr(out).attrs["aggregation"] == "mean over all images alike"
    assert not leftovers(tmp_path / "world.build")


def test_a_cube_of_somebody_else_is_not_replaced(trees, tmp_path):
    out = tmp_path / "world.zarr"
    out.mkdir()
    (out / "precious").write_text("data")
    with pytest.raises(BuildError, match="exists and is not the result of this build"):
        build(trees / "geotiff", out, encoder=StubEncoder())
    assert (out / "precious").read_text() == "data"


def test_one_build_has_one_driver(trees, tmp_path):
    from copcube.builds.folder import BuildFolder

    with (
        BuildFolder(tmp_path / "world.zarr").lock(),
        pytest.raises(BuildError, match="another process is working on this build"),
    ):
        build(trees / "geotiff", tmp_path / "world.zarr", encoder=StubEncoder())


def test_an_output_that_cannot_be_written(trees, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"file/world\.build.*is a file, not a folder"):
        build(trees / "geotiff", tmp_path / "file" / "world.zarr", encoder=StubEncoder())


@pytest.mark.parametrize("stage", ["embed", "assemble"])
def test_a_disk_that_fills_up_and_is_emptied(trees, undisturbed, tmp_path, monkeypatch, stage):
    out = tmp_path / "world.zarr"
    fsync, written = os.fsync, 0

    def full(descriptor):
        nonlocal written
        written += 1
        rows = len(list((tmp_path / "world.build" / "rows").glob("*.parquet")))
        if rows >= (2 if stage == "embed" else 4) and written > 10:
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="the disk is full; free some space"):
        build(trees / "geotiff", out, encoder=StubEncoder())
    assert not out.exists()
    monkeypatch.setattr(os, "fsync", fsync)
    build(trees / "geotiff", out, encoder=StubEncoder())
    assert_undisturbed(out, undisturbed)


def test_broken_images_are_recorded_and_skipped(trees, tmp_path):
    images = tmp_path / "images"
    shutil.copytree(trees / "geotiff", images)
    broken = sorted((images / "s5p_l3_wgs").rglob("*.tif"))[0]
    broken.write_bytes(broken.read_bytes()[:300])
    report = build(images, tmp_path / "world.zarr", encoder=StubEncoder())
    assert report.rejected["broken"] == 1
    table = pq.read_table(tmp_path / "world.build" / "quarantine.parquet").to_pylist()
    (row,) = [row for row in table if row["kind"] == "broken"]
    assert row["file"] == str(broken.relative_to(images))
    assert row["reason"]
    attributes = xr.open_zarr(tmp_path / "world.zarr").attrs
    assert attributes["images_rejected"] == "broken:1"
    with pytest.raises(ImageError, match=broken.name):
        build(images, tmp_path / "strict.zarr", encoder=StubEncoder(), strict=True)


def test_nothing_left_to_build(trees, tmp_path):
    with pytest.raises(BuildError, match="no image is left"):
        build(
            trees / "geotiff",
            tmp_path / "w.zarr",
            encoder=StubEncoder(),
            modalities=["s3_olci"],
            dates="1999",
        )


@pytest.mark.parametrize("kind", ["empty", "missing", "other"])
def test_what_is_no_source(tmp_path, kind):
    source = tmp_path / "source"
    if kind != "missing":
        source.mkdir()
    if kind == "other":
        (source / "notes.txt").write_text("nothing here")
    with pytest.raises(SourceError, match="source"):
        build(source, tmp_path / "w.zarr", encoder=StubEncoder())
    assert not (tmp_path / "w.build").exists()


def test_aggregating_the_rows_of_a_build_gives_its_cube(undisturbed, tmp_path):
    rows = undisturbed.with_name("world.build") / "rows"
    aggregate(rows, tmp_path / "again.zarr")
    one, other = xr.open_zarr(undisturbed).load(), xr.open_zarr(tmp_path / "again.zarr").load()
    for name in one.variables:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)
    for key in ("encoder", "encoder_sha256", "encoder_trained", "preprocessing"):
        assert other.attrs[key] == one.attrs[key]


@pytest.mark.parametrize("by", ["modality", "month", "season", "year"])
def test_by_adds_a_leading_dimension(undisturbed, tmp_path, by):
    rows = undisturbed.with_name("world.build") / "rows"
    aggregate(rows, tmp_path / "by.zarr", by=by)
    assert validate(tmp_path / "by.zarr") == []
    cube = xr.open_zarr(tmp_path / "by.zarr")
    assert cube.embedding.dims == (by, "lat", "lon", "dim")
    whole = xr.open_zarr(undisturbed)
    dated = int(whole.n_images.sum()) - int(whole.n_images_by_modality[-1].sum())
    expected = int(whole.n_images.sum()) if by == "modality" else dated
    assert int(cube.n_images.sum()) == expected


def test_an_estimate_counts_every_image_and_writes_nothing(trees, undisturbed, tmp_path):
    before = sorted(tmp_path.iterdir())
    for layout in ("geotiff", "webdataset"):
        found = estimate(trees / layout, tmp_path / "w.zarr", encoder=StubEncoder())
        assert sum(found.images.values()) == int(xr.open_zarr(undisturbed).n_images.sum())
        assert found.counted
        assert found.seconds > 0
        assert "images/s" in str(found)
    assert sorted(tmp_path.iterdir()) == before


def test_the_plan_can_be_read(undisturbed):
    plan = json.loads((undisturbed.with_name("world.build") / "plan.json").read_text())
    assert plan["kind"] == "build"
    assert plan["encoder"]["encoder"] == "stub"
    assert plan["options"]["crop"] == "center"
