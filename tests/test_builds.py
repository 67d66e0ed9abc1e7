"""Builds: what they make, and that no death loses or changes anything."""

import errno
import json
import os
import random
import shutil
import signal
import tempfile
import threading
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xarray as xr
from builds_helpers import (
    FORK,
    SEED,
    SOAK,
    assert_undisturbed,
    contents,
    leftovers,
    run_build,
)
from strategies import random_rows, write_rows
from stub import StubEncoder, StubSpec

from copcube import cube, grid
from copcube.builds import aggregate, api, build, estimate, stages, status, tasks
from copcube.builds.dask import local_cluster
from copcube.builds.executors import LocalExecutor
from copcube.builds.folder import BuildFolder
from copcube.builds.partitions import chosen_partitions
from copcube.builds.plan import BuildOptions, EncoderFacts, plan_aggregate, plan_build
from copcube.cube import read_attributes, validate
from copcube.cube.averaging import averaging_order
from copcube.embedding.partition import cropped, metadata
from copcube.errors import (
    BuildError,
    CubeError,
    ImageError,
    OptionError,
    RowsError,
    SourceError,
    StorageError,
)
from copcube.files.processors import available_processors, computing_threads
from copcube.images import Partition, open_source
from copcube.images.sample.writing import write_sample
from copcube.lookup import Fragments, points
from copcube.modalities import MODALITIES
from copcube.products import tables
from copcube.selection import Selection

KEYS = ("s5p_co", "s5p_no2", "s5p_o3")
VARIED = ("s1_grd", "s5p_co", "dem")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A GeoTIFF tree of four cells, each a partition of its own."""
    folder = tmp_path_factory.mktemp("sample") / "images"
    write_sample(folder, seed=3, cells=4, dates=6, modalities=KEYS)
    return folder


@pytest.fixture(scope="module")
def undisturbed(images, tmp_path_factory):
    """A build that nobody disturbed."""
    out = tmp_path_factory.mktemp("undisturbed") / "world.zarr"
    build(images, out, encoder=StubEncoder())
    return out


@pytest.fixture(scope="module")
def trees(tmp_path_factory):
    """The same sample in both layouts: modalities with local patches, with dates, with neither."""
    folder = tmp_path_factory.mktemp("sample")
    for layout in ("geotiff", "webdataset"):
        write_sample(folder / layout, layout, seed=3, cells=2, modalities=VARIED)
    return folder


@pytest.fixture(scope="module")
def varied(trees, tmp_path_factory):
    """The cube of `trees`."""
    out = tmp_path_factory.mktemp("varied") / "world.zarr"
    build(trees / "geotiff", out, encoder=StubEncoder())
    return out


def chunks(path):
    """Checksum of every chunk of a cube."""
    found = {name: sha for name, sha in contents(path).items() if "/c." in name}
    assert found
    return found


class Failing(StubEncoder):
    """Fails at the seventh batch."""

    def __call__(self, modality, pixels, metadata):
        if len(self.calls) >= 6:
            raise RuntimeError("power cut")
        return super().__call__(modality, pixels, metadata)


@pytest.mark.slow
def test_the_cube_holds_the_mean_of_every_cell(trees, varied):
    """Against a plain loop over the source, with numpy alone."""
    cube = xr.open_zarr(varied, chunks=None).load()
    assert validate(varied) == []
    encoder = StubEncoder()
    images = {}
    source = open_source(trees / "geotiff")
    for partition in source.partitions():
        for job in source.jobs(partition, Selection.of()):
            for image in job() if callable(job) else ():
                kind = MODALITIES[image.modality]
                pixels = cropped(image.pixels, kind, "center")
                vector = encoder.vector(pixels, np.array(metadata(image, kind)))
                images.setdefault(image.grid_id, {}).setdefault(image.modality, []).append(vector)
    assert len(images) == 2 == int((cube.n_images > 0).sum())
    assert set().union(*images.values()) == set(VARIED)
    for grid_id, by_modality in images.items():
        lat, lon = grid.centre(grid_id)
        cell = cube.sel(lat=lat, lon=lon % 360)
        means = [np.mean(np.array(v, dtype=np.float64), axis=0) for v in by_modality.values()]
        np.testing.assert_allclose(cell.embedding, np.mean(means, axis=0), rtol=1e-6)
        assert cell.n_images == sum(len(v) for v in by_modality.values())


@pytest.mark.slow
def test_both_layouts_give_the_same_cube(trees, varied, tmp_path):
    build(trees / "webdataset", tmp_path / "w.zarr", encoder=StubEncoder())
    assert chunks(tmp_path / "w.zarr") == chunks(varied)  # the metadata name the sources


class Overflowing(StubEncoder):
    """Gives vectors that are not finite for images of one date."""

    def __call__(self, modality, pixels, metadata):
        vectors = super().__call__(modality, pixels, metadata)
        vectors[metadata[:, 2] == metadata[:, 2].min(), -1] = np.nan
        return vectors


@pytest.mark.slow
def test_images_whose_vectors_are_not_finite_are_left_out_by_name(images, tmp_path):
    report = build(images, tmp_path / "world.zarr", encoder=Overflowing(), batch_size=3)
    table = pq.read_table(tmp_path / "world.build" / "quarantine.parquet").to_pylist()
    broken = [row for row in table if row["kind"] == "broken"]
    assert len(broken) == report.rejected["broken"] > 4
    assert all((images / row["file"]).is_file() for row in broken)
    assert all("its vector holds values that are not finite" in row["reason"] for row in broken)
    left = sum(report.images.values()) + sum(row["images"] for row in table)
    assert left == len(list(images.rglob("*.tif")))
    assert validate(tmp_path / "world.zarr") == []
    with pytest.raises(ImageError, match=r"\.tif: its vector holds values .* without strict"):
        build(images, tmp_path / "strict.zarr", encoder=Overflowing(), strict=True)


@pytest.mark.slow
def test_rows_that_are_not_finite_are_mended_by_the_same_command(
    images, undisturbed, tmp_path, caplog
):
    """As an earlier version, or an encoder that checked nothing, may have left them."""
    out = tmp_path / "world.zarr"
    build(images, out, encoder=StubEncoder())
    folder = BuildFolder(out)
    name = folder.partitions()[1].name
    table = pq.read_table(folder.rows(name))
    vectors = np.array(table["embedding"].to_pylist(), "float32")
    vectors[2, 3] = np.inf
    spoilt = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), vectors.shape[1])
    sink = pa.BufferOutputStream()
    pq.write_table(table.set_column(4, "embedding", spoilt), sink)
    receipt = folder.receipts.read("embed", name)
    facts = {key: receipt[key] for key in ("images", "rescaled", "rejected", "seconds")}
    file = f"rows/{name}.parquet"
    files = {file: folder.files.write(file, sink.getvalue())}
    folder.receipts.write(folder.plan().id, "embed", name, files, facts)
    shutil.rmtree(out)
    encoder = StubEncoder()
    report = build(images, out, encoder=encoder)
    assert "not finite in float32" in caplog.text
    assert "1 partitions are embedded again" in caplog.text
    assert report.seconds["embedding"] > 0
    assert sum(shape[0] for _, shape in encoder.calls) == len(vectors)
    assert contents(out) == contents(undisturbed)


@pytest.mark.parametrize(
    ("partitions", "why"),
    {
        "3-1": "the range ends before it begins; expected 1-3",
        "1-999999": "this source has 4, numbered from 0 to 3",
        **dict.fromkeys(
            ["", "-1", "2-", "x", "1..2", "1-2-3", " 1"],
            "expected a number from 0, or a range such as 0-99",
        ),
    }.items(),
)
def test_what_is_wrong_with_a_choice_of_partitions_is_said(partitions, why):
    with pytest.raises(OptionError, match=f"^partitions '{partitions}': {why}$"):
        chosen_partitions(partitions, 4)


def test_a_source_without_images_has_an_estimate_and_no_partitions(tmp_path):
    (tmp_path / "images" / "s2_toa_mix" / "images").mkdir(parents=True)
    source, out, options = tmp_path / "images", tmp_path / "w.zarr", {"encoder": StubEncoder()}
    found = estimate(source, out, **options)
    assert (found.partitions, found.images, found.seconds, found.cube_bytes) == (0, {}, 0, 0)
    for call in (build, estimate):
        with pytest.raises(OptionError, match="partitions '0': this source has none"):
            call(source, out, partitions=0, **options)


@pytest.mark.slow
def test_the_same_build_gives_the_same_bytes(images, undisturbed, tmp_path):
    build(images, tmp_path / "world.zarr", encoder=StubEncoder(), threads=1)
    assert contents(tmp_path / "world.zarr") == contents(undisturbed)
    rows = undisturbed.with_name("world.build") / "rows"
    assert contents(tmp_path / "world.build" / "rows") == contents(rows)
    assert not leftovers(tmp_path / "world.build")


@pytest.mark.slow
def test_a_finished_build_is_not_done_again(images, undisturbed):
    encoder = StubEncoder()
    report = build(images, undisturbed, encoder=encoder)
    assert encoder.calls == []
    assert report.resumed > 0
    assert sum(report.images.values()) > 0


def _run(source, out, *, die_at=None, die_after=None):
    """Whether a child that is to die came to the end."""
    options = {"encoder": StubEncoder(), "die_at": die_at}
    child = FORK.Process(target=run_build, args=(source, out), kwargs=options)
    child.start()
    if die_after is not None:
        child.join(die_after)
        child.kill()
    child.join()
    assert child.exitcode in (0, -signal.SIGKILL)
    return child.exitcode == 0


@pytest.mark.slow
def test_dying_at_commits_changes_nothing(images, undisturbed, tmp_path):
    """Every run dies some changes of the file system later than the last."""
    out = tmp_path / "world.zarr"
    deaths, step = 0, 5 if SOAK else 11
    while not _run(images, out, die_at=2 + step * deaths):
        deaths += 1
        assert deaths < 100
    assert deaths > 5
    assert_undisturbed(out, undisturbed)


@pytest.mark.slow
def test_dying_at_random_moments_changes_nothing(images, undisturbed, tmp_path):
    first = FORK.Process(target=int)  # for which is imported what later ones are forked with
    first.start()
    first.join()
    begin = time.monotonic()
    assert _run(images, tmp_path / "whole.zarr")
    whole = time.monotonic() - begin
    moments = random.Random(SEED)
    for attempt in range(4 if SOAK else 1):
        deaths = 0
        while not deaths:
            out = Path(tempfile.mkdtemp(prefix=f"{attempt}-", dir=tmp_path)) / "world.zarr"
            for _ in range(3):
                moment = moments.uniform(0.2, 0.7) * whole
                deaths += not _run(images, out, die_after=moment)
            # The first run may have met a busier machine, and these have ended before they died.
            whole = whole if deaths else whole / 2
            assert whole > 0.01
        assert _run(images, out)
        assert_undisturbed(out, undisturbed)


@pytest.mark.slow
def test_nothing_is_embedded_twice(images, tmp_path):
    """A build that fails halfway keeps what has a receipt."""
    first, second, whole = Failing(), StubEncoder(), StubEncoder()
    with pytest.raises(RuntimeError, match="power cut"):
        build(images, tmp_path / "world.zarr", encoder=first)
    report = build(images, tmp_path / "world.zarr", encoder=second)
    build(images, tmp_path / "whole.zarr", encoder=whole)
    assert report.resumed > 0
    assert len(second.calls) < len(whole.calls)


@pytest.mark.slow
def test_resuming_keeps_batches_and_version_of_the_plan(images, undisturbed, tmp_path):
    """Automatic batch sizes of another machine, or a later copcube, do not bar the way."""

    class Larger(StubEncoder):
        def batch_size(self, modality, size):
            return 64

    out = tmp_path / "world.zarr"
    with pytest.raises(RuntimeError, match="power cut"):
        build(images, out, encoder=Failing())
    encoder = Larger()
    assert build(images, out, encoder=encoder).resumed > 0
    assert max(shape[0] for _, shape in encoder.calls) == 4
    assert contents(out) == contents(undisturbed)
    with pytest.raises(BuildError, match=r"batch_sizes\.s5p_co: was 4, now 2"):
        build(images, out, encoder=StubEncoder(), batch_size=2)


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["truncate", "flip", "remove"])
def test_a_receipt_without_its_data_is_void(images, undisturbed, tmp_path, damage):
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
    build(images, out, encoder=encoder)
    assert encoder.calls
    assert contents(out) == contents(undisturbed)


@pytest.mark.slow
def test_coordinates_that_were_damaged_before_the_cube_was_whole(
    images, undisturbed, tmp_path, monkeypatch
):
    out = tmp_path / "world.zarr"
    with monkeypatch.context() as patch:
        patch.setattr("copcube.cube.finish", lambda *arguments: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            build(images, out, encoder=StubEncoder())
    bounds = next(path for path in out.with_name("world.build").rglob("lat_bnds/c.*"))
    bounds.write_bytes(bounds.read_bytes()[:-1])
    build(images, out, encoder=StubEncoder())
    assert contents(out) == contents(undisturbed)


@pytest.mark.slow
def test_a_build_whose_rasters_were_resized_otherwise_is_not_gone_on_with(trees, tmp_path):
    """A plan that does not say how is one of a version that did not align the corners."""
    for layout, resampling in (("geotiff", "bilinear, corners aligned"), ("webdataset", None)):
        out = tmp_path / f"{layout}.zarr"
        options = {"encoder": StubEncoder(), "modalities": ["s5p_co"]}
        build(trees / layout, out, partitions="0", **options)
        path = out.with_suffix(".build") / "plan.json"
        plan = json.loads(path.read_text())
        assert plan["options"].pop("resampling", None) == resampling
        path.write_text(json.dumps(plan))
        if resampling is None:  # such tensors are taken as they were published
            build(trees / layout, out, **options)
            continue
        with pytest.raises(BuildError, match=r"was bilinear, edges aligned .*, now .* corners"):
            build(trees / layout, out, **options)
        build(trees / layout, out, overwrite=True, **options)
        assert xr.open_zarr(out).attrs["resampling"] == resampling


@pytest.mark.slow
def test_other_options_are_refused_by_name(images, undisturbed, tmp_path):
    out = tmp_path / "world.zarr"
    build(images, out, encoder=StubEncoder(), modalities=["s5p_co"])
    with pytest.raises(BuildError) as caught:
        build(images, out, encoder=StubEncoder(), modalities=["s5p_co"], balance="image")
    assert "options.balance: was modality, now image" in str(caught.value)
    assert "modalities" not in str(caught.value)
    assert "--overwrite" in str(caught.value)

    class Other(StubEncoder):
        @property
        def provenance(self):
            return super().provenance | {"encoder_trained": 1}

    with pytest.raises(BuildError, match=r"encoder\.encoder_trained: was 0, now 1"):
        build(images, out, encoder=Other(), modalities=["s5p_co"])


@pytest.mark.slow
def test_a_changed_source_is_refused(images, tmp_path):
    shutil.copytree(images, tmp_path / "images")
    out = tmp_path / "world.zarr"
    build(tmp_path / "images", out, encoder=StubEncoder(), modalities=["s5p_co"])
    shutil.rmtree(next((tmp_path / "images" / "s5p_l3_wgs" / "images").iterdir()))
    for listing in (tmp_path / "images").glob("fnames*"):
        listing.unlink()
    with pytest.raises(BuildError, match=r"sizes of files of images have changed. Restore them"):
        build(tmp_path / "images", out, encoder=StubEncoder(), modalities=["s5p_co"])
    with pytest.raises(BuildError, match=r"options.modalities: was"):
        build(tmp_path / "images", out, encoder=StubEncoder(), modalities=["s5p_no2"])


@pytest.mark.slow
def test_a_dry_run_foretells_what_the_build_does(images, tmp_path):
    options = {"encoder": StubEncoder(), "modalities": "s5p_co", "by": "month"}
    out = tmp_path / "w.zarr"
    assert estimate(images, out, **options).done == 0
    build(images, out, partitions="1-2", **options)
    found = estimate(images, out, **options)
    assert (found.partitions, found.done) == (4, 2)
    # The batch sizes follow the machine, and are kept as in a build.
    machine = options | {"encoder": other_machine()}
    assert estimate(images, out, **machine).done == 2
    one = estimate(images, out, partitions=2, **options)
    assert (one.partitions, one.done) == (1, 1)
    assert 0 < sum(one.images.values()) < sum(found.images.values())
    with pytest.raises(OptionError, match="this source has 4"):
        estimate(images, out, partitions="3-4", **options)
    with pytest.raises(BuildError, match=r"options.by: was month, now season"):
        estimate(images, out, **options | {"by": "season"})
    assert estimate(images, out, overwrite=True, **options | {"by": "season"}).done == 0
    (tmp_path / "notes.zarr").write_text("mine")
    with pytest.raises(BuildError, match="exists and is not the result of this build"):
        estimate(images, tmp_path / "notes.zarr", **options)
    with pytest.raises(BuildError, match="only what copcube made is replaced"):
        estimate(images, tmp_path / "notes.zarr", overwrite=True, **options)


def other_machine():
    encoder = StubEncoder()
    encoder.batch_size = lambda modality, size: 7
    return encoder


def test_a_file_where_the_build_would_work(images, tmp_path):
    (tmp_path / "w.build").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(
            BuildError, match=r"w.build: .* needs a folder of that name, which something"
        ):
            build(images, tmp_path / "w.zarr", encoder=StubEncoder(), overwrite=overwrite)
    assert (tmp_path / "w.build").read_text() == "mine"


def test_a_source_is_called_by_its_name_wherever_one_stands(images, undisturbed, monkeypatch):
    options = BuildOptions.of(encoder=StubEncoder())
    facts = EncoderFacts(8, {}, {})
    monkeypatch.chdir(images)
    names = {plan_build(open_source(path), options, facts)[0].source for path in (".", images)}
    assert names == {"images"}
    monkeypatch.chdir(undisturbed.with_name("world.build") / "rows")
    assert plan_aggregate(".", [], options.aggregation).source == "rows"


@pytest.mark.slow
def test_what_was_named_and_has_no_image_is_said(images, tmp_path, caplog):
    asked = {"modalities": "s5p_co,s2_toa", "encoder": StubEncoder()}
    build(images, tmp_path / "w.zarr", **asked)
    assert "NO IMAGE OF s2_toa: " in caplog.text
    caplog.clear()
    rows = tmp_path / "w.build" / "rows"
    aggregate(rows, tmp_path / "a.zarr", modalities=["s5p_co", "dem"])
    assert "NO IMAGE OF dem: " in caplog.text
    caplog.clear()
    aggregate(rows, tmp_path / "all.zarr")
    assert "NO IMAGE" not in caplog.text
    # Of what has no image nothing is missing at any point.
    with xr.open_zarr(tmp_path / "all.zarr", chunks=None) as cube:
        assert cube.attrs["modalities"] == "s5p_co"
        some = np.argwhere(cube.n_images.values)[0]
        place = ([cube.lat.values[some[0]]], [cube.lon.values[some[1]]])
        assert points(cube, place).status.values.tolist() == [0]


@pytest.mark.slow
def test_a_list_of_partitions_that_is_not_of_the_plan_is_replaced(images, undisturbed, tmp_path):
    """As after a kill between the two, by a driver that was refused, or by a damaged disk."""
    folder, known = BuildFolder(tmp_path / "world.zarr"), BuildFolder(undisturbed)
    damaged = [replace(p, paths=(p.paths[0] + "f", *p.paths[1:])) for p in known.partitions()]
    folder.write_partitions([Partition("a", ("b",))], 64 * "0")
    build(images, folder.out, encoder=StubEncoder(), partitions=1)
    folder.files.remove("partitions.parquet")
    folder.write_partitions(damaged, known.plan().partitions)
    build(images, folder.out, encoder=StubEncoder())
    assert_undisturbed(tmp_path / "world.zarr", undisturbed)


@pytest.mark.slow
def test_overwrite_starts_anew_and_keeps_the_old_cube_until_then(images, tmp_path):
    out = tmp_path / "world.zarr"
    build(images, out, encoder=StubEncoder(), modalities=["s5p_co"])
    before = contents(out)

    class Failing(StubEncoder):
        def __call__(self, modality, pixels, metadata):
            raise RuntimeError("power cut")

    options = {"modalities": ["s5p_co"], "balance": "image", "overwrite": True}
    with pytest.raises(RuntimeError):
        build(images, out, encoder=Failing(), **options)
    assert contents(out) == before
    assert validate(out) == []
    build(images, out, encoder=StubEncoder(), **options)
    assert xr.open_zarr(out).attrs["aggregation"] == "mean over all images alike"
    assert not leftovers(tmp_path / "world.build")


def test_a_cube_of_somebody_else_is_not_replaced(images, tmp_path):
    out = tmp_path / "world.zarr"
    out.mkdir()
    (out / "precious").write_text("data")
    with pytest.raises(BuildError, match="exists and is not the result of this build"):
        build(images, out, encoder=StubEncoder())
    assert (out / "precious").read_text() == "data"


def test_one_build_has_one_driver(images, tmp_path):
    with (
        BuildFolder(tmp_path / "world.zarr").lock(),
        pytest.raises(BuildError, match="another process is working on this build"),
    ):
        build(images, tmp_path / "world.zarr", encoder=StubEncoder())


def test_an_output_that_cannot_be_written(images, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"file/world\.build.*is a file, not a folder"):
        build(images, tmp_path / "file" / "world.zarr", encoder=StubEncoder())


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["embed", "assemble"])
def test_a_disk_that_fills_up_and_is_emptied(images, undisturbed, tmp_path, monkeypatch, stage):
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
        build(images, out, encoder=StubEncoder())
    assert not out.exists()
    monkeypatch.setattr(os, "fsync", fsync)
    build(images, out, encoder=StubEncoder())
    assert_undisturbed(out, undisturbed)


@pytest.mark.slow
def test_broken_images_are_recorded_and_skipped(images, tmp_path):
    images = shutil.copytree(images, tmp_path / "images")
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


@pytest.mark.slow
def test_a_dry_run_of_images_that_cannot_be_read_tells_no_rate(images, tmp_path):
    shutil.copytree(images, tmp_path / "images")
    for image in (tmp_path / "images").rglob("*.tif"):
        image.write_bytes(b"torn")
    found = estimate(tmp_path / "images", tmp_path / "w.zarr", encoder=StubEncoder())
    assert "images, no sample can be read\n" in str(found)
    assert "inf" not in str(found)


@pytest.mark.slow
def test_nothing_left_to_build(images, tmp_path):
    out = tmp_path / "w.zarr"
    options = {"encoder": StubEncoder(), "modalities": ["s5p_co"]}
    with pytest.raises(BuildError, match="no image is left"):
        build(images, out, **options, dates="1999")
    # A run that shares the build cannot know what others are at.
    with pytest.raises(BuildError, match="other options"):
        build(images, out, **options, partitions=0)
    # Nothing was made that the corrected command would throw away.
    assert estimate(images, out, **options).done == 0
    assert build(images, out, **options).finished
    assert out.exists()
    shutil.rmtree(out)
    with pytest.raises(BuildError, match="other options"):
        build(images, out, **options, dates="1999")


@pytest.mark.slow
def test_nothing_left_to_aggregate(undisturbed, tmp_path):
    rows = undisturbed.with_name("world.build") / "rows"
    out = tmp_path / "a.zarr"
    with pytest.raises(BuildError, match=r"none is of the chosen modalities and dates$"):
        aggregate(rows, out, modalities="dem")
    assert not (tmp_path / "a.build" / "quarantine.parquet").exists()
    aggregate(rows, out)
    with pytest.raises(BuildError, match=r"options.modalities: was .*, now \['dem'\]"):
        aggregate(rows, out, modalities="dem")


def test_the_rate_by_a_clock_that_is_ahead(undisturbed, tmp_path):
    shutil.copytree(undisturbed.with_name("world.build"), tmp_path / "world.build")
    for number, path in enumerate(sorted((tmp_path / "world.build/receipts/embed").iterdir())):
        receipt = json.loads(path.read_text())
        # Ten seconds each, one after the other.
        receipt["finished"] = time.time() + 1000 + 10 * number
        receipt["seconds"]["embedding"] = 10
        path.write_text(json.dumps(receipt))
    state = status(tmp_path / "world.build")
    assert state.rate == pytest.approx(sum(state.images.values()) / 600)
    assert state.stage != "embedding"
    assert "images/s" not in str(state)
    assert "images/s over the last ten minutes" in str(replace(state, stage="embedding"))


def test_the_state_of_a_build_that_has_only_its_plan(undisturbed, tmp_path):
    (tmp_path / "world.build").mkdir()
    shutil.copy(undisturbed.with_name("world.build") / "plan.json", tmp_path / "world.build")
    assert str(status(tmp_path / "world.build")) == f"{tmp_path / 'world.build'}: embedding"
    (tmp_path / "world.build").rename(tmp_path / "moved")
    with pytest.raises(BuildError, match=f"found none in {tmp_path}/moved.build"):
        status(tmp_path / "moved")


@pytest.mark.slow
def test_the_state_of_what_has_no_partitions(undisturbed, tmp_path):
    rows = undisturbed.with_name("world.build") / "rows"
    aggregate(next(rows.glob("*.parquet")), tmp_path / "a.zarr")
    assert str(status(tmp_path / "a.build")) == f"{tmp_path / 'a.build'}: done"
    (tmp_path / "a.zarr").rename(tmp_path / "a")  # as `aggregate(rows, "a")` calls it
    assert str(status(tmp_path / "a")) == f"{tmp_path / 'a.build'}: done"
    with pytest.raises(OptionError, match="expected one path"):
        status("")


def test_folders_that_hold_no_rows_name_those_that_do(undisturbed, tmp_path):
    work = undisturbed.with_name("world.build")
    with pytest.raises(RowsError, match=f"the folder of a build; give its rows, {work}/rows"):
        aggregate(work, tmp_path / "a.zarr")
    with pytest.raises(RowsError, match="For a cube, give the rows it was made from"):
        aggregate(undisturbed, tmp_path / "a.zarr")
    cube = xr.open_zarr(undisturbed, chunks=None)
    for read in (Fragments.open, lambda path: averaging_order(path, cube)):
        with pytest.raises(RowsError, match=f"the folder of a build; give its rows, {work}/rows"):
            read(work)
        with pytest.raises(RowsError, match="For a cube, give the rows it was made from"):
            read(undisturbed)


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


@pytest.mark.slow
def test_aggregating_the_rows_of_a_build_gives_its_cube(undisturbed, tmp_path):
    rows = undisturbed.with_name("world.build") / "rows"
    aggregate(rows, tmp_path / "again.zarr")
    assert chunks(tmp_path / "again.zarr") == chunks(undisturbed)
    one, other = (xr.open_zarr(p, chunks=None) for p in (undisturbed, tmp_path / "again.zarr"))
    for key in ("encoder", "encoder_sha256", "encoder_trained", "preprocessing"):
        assert other.attrs[key] == one.attrs[key]


@pytest.mark.slow
@pytest.mark.parametrize("by", ["modality", "season"])
def test_by_adds_a_leading_dimension(varied, tmp_path, by):
    rows = varied.with_name("world.build") / "rows"
    aggregate(rows, tmp_path / "by.zarr", by=by)
    assert validate(tmp_path / "by.zarr") == []
    cube = xr.open_zarr(tmp_path / "by.zarr", chunks=None)
    assert cube.embedding.dims == (by, "lat", "lon", "dim")
    whole = xr.open_zarr(varied, chunks=None)
    undated = int(whole.n_images_by_modality[-1].sum())
    assert undated == 2
    expected = int(whole.n_images.sum()) - (0 if by == "modality" else undated)
    assert int(cube.n_images.sum()) == expected


@pytest.mark.slow
def test_an_estimate_counts_every_image_and_writes_nothing(trees, varied, tmp_path):
    before = sorted(tmp_path.iterdir())
    for layout in ("geotiff", "webdataset"):
        found = estimate(trees / layout, tmp_path / "w.zarr", encoder=StubEncoder())
        assert sum(found.images.values()) == int(xr.open_zarr(varied, chunks=None).n_images.sum())
        assert found.counted
        assert found.seconds > 0
        assert "images/s" in str(found)
    assert sorted(tmp_path.iterdir()) == before


class Shuffled(LocalExecutor):
    """Runs tasks in any order, and some of them twice."""

    def __init__(self, seed):
        self.random = random.Random(seed)

    def map(self, function, tasks, *, advance=lambda number: None, embeds=False, at_once=1):
        tasks = list(tasks)
        self.random.shuffle(tasks)
        for task in tasks:
            for _ in range(self.random.randint(0, 1)):
                function(task, lambda number: None)
            yield from super().map(
                function, [task], advance=advance, embeds=embeds, at_once=at_once
            )


@pytest.mark.slow
def test_orders_and_clocks_do_not_matter(images, undisturbed, tmp_path, monkeypatch):
    clock = random.Random(SEED)
    monkeypatch.setattr(time, "time", lambda: clock.uniform(0, 4e9))
    monkeypatch.setattr("copcube.builds.dask.LocalExecutor", lambda: Shuffled(SEED))
    out = tmp_path / "world.zarr"
    build(images, out, encoder=StubEncoder(), partitions="1-2")
    for path in (tmp_path / "world.build").rglob("*.json"):
        os.utime(path, (0, clock.randint(0, 2**31)))
    build(images, out, encoder=StubEncoder())
    assert_undisturbed(out, undisturbed)


def test_the_plan_can_be_read(undisturbed):
    plan = json.loads((undisturbed.with_name("world.build") / "plan.json").read_text())
    assert plan["kind"] == "build"
    assert plan["encoder"]["encoder"] == "stub"
    assert plan["options"]["crop"] == "center"


class Planned:
    """A source that never changes."""

    root, layout = "/data/pretrain", "webdataset"

    def partitions(self):
        one = Partition("example-000000", ("a/example-000000.tar",))
        return [one, Partition("b", ("x.tif", "y.tif"), 2, 1)]

    def fingerprint(self):
        return 64 * "f"


def test_the_hash_of_a_plan_stays(tmp_path):
    """Else no build folder that is under way could be resumed by a later copcube."""
    facts = EncoderFacts(8, {"encoder": "stub", "encoder_trained": 0}, {"s5p_co": 4, "dem": 2})
    options = BuildOptions.of(
        ["dem", "s5p_co"],
        "2021-03..2021-08-15",
        StubSpec(),
        crop="full",
        balance="image",
        by="season",
    )
    plan, _ = plan_build(Planned(), options, facts)
    known = "927473aaaa48c838b566ee2ba25fbf542129e295e7f20ed6b3456f5a4c867bb3"
    assert replace(plan, version="0.9").id == known
    plan, _ = plan_build(Planned(), BuildOptions.of(encoder=StubSpec(), batch_size=16), facts)
    known = "bc591b22ed18cfd5c49c4fe15725f7435c28c023f0233c5eaf16ad6dae619d98"
    assert replace(plan, version="0.9").id == known
    (tmp_path / "rows").mkdir()
    plan = plan_aggregate(tmp_path / "rows", [], options.aggregation)
    known = "e1fc79c5c058921f43bdfdc170caa014ac44c87365f4cf8caa7051a99897ff21"
    assert replace(plan, version="0.9", fingerprint=64 * "f").id == known


@pytest.mark.slow
def test_a_strict_build_takes_over_nothing_that_lacks_an_image(tmp_path):
    source, out = tmp_path / "images", tmp_path / "world.zarr"
    write_sample(source, "geotiff", cells=1, modalities=["s5p_co", "dem"])
    broken = next(source.rglob("dem.tif"))
    whole = broken.read_bytes()
    broken.write_bytes(whole[:200] + bytes(len(whole) - 200))
    assert build(source, out, encoder=StubEncoder()).rejected == {"broken": 1}
    with pytest.raises(ImageError, match=r"dem\.tif: .* without strict"):
        build(source, out, encoder=StubEncoder(), strict=True)
    assert build(source, out, encoder=StubEncoder()).resumed == 1
    broken.write_bytes(whole)
    report = build(source, out, encoder=StubEncoder(), strict=True)
    assert (report.rejected, report.images["dem"]) == ({}, 1)
    assert validate(out) == []


@pytest.mark.slow
def test_rows_that_come_twice_are_refused_whatever_an_earlier_run_dropped(tmp_path):
    rows, out = tmp_path / "rows", tmp_path / "world.zarr"
    rows.mkdir()
    for name in ("a", "b"):
        write_rows(rows / f"{name}.parquet", random_rows(9, 3, 4), {})
    with pytest.raises(RowsError, match="has two rows"):
        aggregate(rows, out)
    assert not list(tmp_path.glob("world*"))
    assert aggregate(rows, out, duplicates="drop").finished
    made = contents(out)
    with pytest.raises(RowsError, match="has two rows"):
        aggregate(rows, out)
    aggregate(rows, out, duplicates="drop")
    assert contents(out) == made
    (rows / "b.parquet").unlink()
    aggregate(rows, tmp_path / "other.zarr")
    aggregate(rows, tmp_path / "other.zarr", duplicates="drop")
    assert read_attributes(tmp_path / "other.zarr")["copcube_duplicates"] == "drop"


@pytest.mark.slow
def test_what_workers_of_other_rows_still_write_gets_into_no_cube(tmp_path, monkeypatch):
    """Two that outlived their driver, one with cells and one with chunks to write."""
    rows, out = tmp_path / "rows.parquet", tmp_path / "world.zarr"
    monkeypatch.setattr(tables, "size", lambda file: 1)  # the rows change, and their plan does not
    run_stage, waiting, late = stages.run_stage, threading.Semaphore(0), []

    class Killed(BaseException):
        pass

    def held(name, module):
        """Have a function wait before it begins, in other threads than the driver's."""
        function, go = getattr(module, name), threading.Event()

        def wait(*arguments):
            if threading.current_thread() in late:
                waiting.release()
                go.wait(60)
            return function(*arguments)

        monkeypatch.setattr(module, name, wait)
        return go

    def work(function, task):
        with suppress(CubeError):  # its cube may be gone
            function(task)

    tasks_of = {}

    def note(executor, stage):
        tasks_of[stage.title] = stage.function, stage.tasks
        if stage.title == "writing":
            raise Killed
        run_stage(executor, stage)

    write_rows(rows, random_rows(9, 1, 4, seed=1), {})
    monkeypatch.setattr(stages, "run_stage", note)
    with pytest.raises(Killed):
        aggregate(rows, out, duplicates="drop")
    band = int(next((tmp_path / "world.build" / "cells").rglob("*.arrow")).stem[-2:])
    encode, write = held("encode_cells", tasks), held("write_band", cube)
    function, (combine,) = tasks_of["combining"]
    late.append(threading.Thread(target=work, args=(function, combine)))
    function, found = tasks_of["writing"]
    late.append(threading.Thread(target=work, args=(function, found[band])))
    for thread in late:
        thread.start()
        assert waiting.acquire(timeout=60)

    def go_on(executor, stage):
        if stage.title == "writing":
            encode.set()
            late[0].join()
        run_stage(executor, stage)
        if stage.title == "writing":
            write.set()
            late[1].join()

    monkeypatch.setattr(stages, "run_stage", go_on)
    write_rows(rows, random_rows(9, 1, 4, seed=2), {})
    aggregate(rows, out)
    monkeypatch.setattr(stages, "run_stage", run_stage)
    aggregate(rows, tmp_path / "undisturbed.zarr")
    assert contents(out) == contents(tmp_path / "undisturbed.zarr")


@pytest.mark.slow
def test_rows_that_workers_of_other_options_still_write_get_into_no_cube(
    images, undisturbed, tmp_path, monkeypatch
):
    """A worker of a killed driver does, beside the build that --overwrite began."""
    out, other, run_stage = tmp_path / "world.zarr", tmp_path / "full.zarr", api.run_stage
    build(images, other, encoder=StubEncoder(), crop="full")

    def late(executor, stage):
        run_stage(executor, stage)
        for name in ("rows", "receipts/embed"):
            file = min(other.with_name("full.build").joinpath(name).iterdir())
            shutil.copy(file, out.with_name("world.build") / name)

    with monkeypatch.context() as patch:
        patch.setattr(api, "run_stage", late)
        with pytest.raises(BuildError, match=r"rows of .* were replaced while this build ran"):
            build(images, out, encoder=StubEncoder())
    build(images, out, encoder=StubEncoder())
    assert contents(out) == contents(undisturbed)


@pytest.mark.slow
def test_rows_that_were_refused_leave_their_output_s_name_to_others(undisturbed, tmp_path):
    rows, out = undisturbed.with_name("world.build") / "rows", tmp_path / "world.zarr"
    for refused in ({"assign": "area"}, {"modalities": "s1_grd"}):
        with pytest.raises((OptionError, BuildError), match=r"these rows name|no image is left"):
            aggregate(rows, out, **refused)
        assert not list(tmp_path.iterdir())
    aggregate(rows, out)
    made = contents(out)
    with pytest.raises(OptionError, match="these rows name"):
        aggregate(rows, out, assign="area", overwrite=True)
    aggregate(rows, out)
    assert contents(out) == made


@pytest.mark.parametrize("option", [{"balance": "none"}, {"by": "day"}])
def test_unknown_options_are_refused_before_anything_is_written(images, tmp_path, option):
    with pytest.raises(OptionError, match="; expected "):
        build(images, tmp_path / "w.zarr", encoder=StubEncoder(), **option)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("affinity", [True, False])
def test_processors_are_counted_everywhere(monkeypatch, affinity):
    """macOS and Windows have no os.sched_getaffinity."""
    assert available_processors() >= 1
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 5)
    if affinity:
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 2, 3}, raising=False)
    assert available_processors() == (3 if affinity else 5)


@pytest.mark.parametrize(
    ("processors", "alone", "with_another"),
    [(1, 0, 0), (2, 2, 0), (3, 3, 0), (5, 4, 2), (16, 4, 4)],
)
def test_tasks_that_run_at_once_share_the_processors(monkeypatch, processors, alone, with_another):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: processors)

    def threads(task, advance):
        return computing_threads(4)

    def mapped(tasks, **options):
        return {found for _, found in LocalExecutor().map(threads, tasks, **options)}

    assert computing_threads(4) == alone
    assert mapped("ab", at_once=2) == {with_another}
    assert mapped("a", at_once=2) == {alone}
    assert mapped("ab") == {alone}
    assert mapped([]) == set()
    assert computing_threads(4) == alone


@pytest.fixture
def no_affinity(monkeypatch):
    """As on macOS, where Python 3.13 counts all processors."""
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "process_cpu_count", os.cpu_count, raising=False)


@pytest.mark.slow
@pytest.mark.usefixtures("no_affinity")
def test_builds_work_without_affinity(images, undisturbed, tmp_path):
    build(images, tmp_path / "world.zarr", encoder=StubEncoder())
    assert contents(tmp_path / "world.zarr") == contents(undisturbed)


@pytest.mark.slow
@pytest.mark.usefixtures("no_affinity")
def test_workers_start_without_affinity():
    with local_cluster("auto", gpus=False) as client:
        expected = max(1, available_processors() // 2)
        client.wait_for_workers(expected, timeout=60)
        assert len(client.scheduler_info()["workers"]) == expected
