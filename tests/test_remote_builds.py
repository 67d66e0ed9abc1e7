"""Builds from and into object stores: the same bytes as on the disk, whatever dies.

Where no other process takes part the bucket lies in the memory of this one.
"""

import json
import os
import random
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import xarray as xr
from builds_helpers import FORK, SEED, SOAK, contents, run_build
from memory_bucket import memory_bucket
from stub import StubEncoder, StubSpec

from copcube.builds import aggregate, build, status, validate_rows
from copcube.cli import main
from copcube.cube import open_cube, validate
from copcube.errors import BuildError
from copcube.files import objects
from copcube.images.sample import writing as sample

KEYS = ["s5p_co", "s5p_no2"]
OPTIONS = {"modalities": KEYS, "threads": 1}


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards") / "images"
    sample.write_sample(folder, "webdataset", seed=5, cells=8, modalities=KEYS, cells_per_shard=2)
    return folder


@pytest.fixture(scope="module")
def undisturbed(shards, tmp_path_factory):
    out = tmp_path_factory.mktemp("undisturbed") / "world.zarr"
    build(shards, out, encoder=StubEncoder(), **OPTIONS)
    return out


@pytest.fixture
def memory():
    """Address of a bucket in the memory of this process."""
    with memory_bucket() as url:
        yield url


@pytest.fixture
def uploaded(memory, shards):
    """The same shards in a bucket."""
    return upload(shards, f"{memory}/images")


def upload(shards, url):
    for path in sorted(shards.glob("*.tar")):
        objects.ObjectFolder(url).write(path.name, path.read_bytes())
    return url


def download(url, to):
    folder = objects.ObjectFolder(url)
    for name in folder.names():
        path = Path(to, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(folder.read(name))
    return to


def assert_undisturbed(url, undisturbed, tmp_path):
    assert contents(download(url, tmp_path / "cube")) == contents(undisturbed)
    build_url = url.replace(".zarr", ".build")
    rows = download(f"{build_url}/rows", tmp_path / "rows")
    assert contents(rows) == contents(undisturbed.with_name("world.build") / "rows")
    tops = {name.partition("/")[0] for name in objects.ObjectFolder(build_url).names()}
    assert tops == {"plan.json", "partitions.parquet", "quarantine.parquet", "rows", "receipts"}


@pytest.mark.slow
def test_from_bucket_to_bucket(uploaded, memory, undisturbed, tmp_path):
    out = f"{memory}/out/world.zarr"
    report = build(uploaded, out, encoder=StubEncoder(), **OPTIONS)
    assert (report.cube, report.rows) == (out, f"{memory}/out/world.build/rows")
    assert_undisturbed(out, undisturbed, tmp_path)
    assert validate(out) == []
    assert validate_rows(out) == []
    assert "done, 4 of 4 partitions done" in str(status(f"{memory}/out/world.build"))
    xr.testing.assert_identical(
        open_cube(out).load(), xr.open_zarr(undisturbed, chunks=None).load()
    )
    encoder = StubEncoder()
    assert build(uploaded, out, encoder=encoder, **OPTIONS).resumed == 4
    assert not encoder.calls


@pytest.mark.slow
def test_nothing_is_copied_to_the_disk(uploaded, undisturbed, tmp_path, monkeypatch):
    """Of a shard; and a cube may be local while its images are not."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    out = tmp_path / "world.zarr"
    build(uploaded, out, encoder=StubEncoder(), **OPTIONS)
    assert contents(out) == contents(undisturbed)
    assert not list(scratch.iterdir())


@pytest.mark.slow
def test_from_a_web_server(web, shards, undisturbed, tmp_path):
    for path in shards.glob("*.tar"):
        web.files[f"images/{path.name}"] = path.read_bytes()
    out = tmp_path / "world.zarr"
    pattern = f"{web.url}/images/example-{{000000..000003}}.tar"
    build(pattern, out, encoder=StubEncoder(), **OPTIONS)
    assert contents(out) == contents(undisturbed)


@pytest.mark.slow
def test_a_cube_in_a_bucket_appears_whole(shards, memory, undisturbed, tmp_path, monkeypatch):
    """Its group's metadata come last, so what is there before is no cube."""
    out = f"{memory}/world.zarr"
    seen = []
    copy_to = objects.ObjectFolder.copy_to

    def watched(self, url, **options):
        real = objects.folder.locate

        def slow(address):
            if address.startswith(f"{out}/"):
                names = objects.ObjectFolder(out).names()
                seen.append(("zarr.json" in names, len(names)))
            return real(address)

        with monkeypatch.context() as patch:
            patch.setattr(objects.folder, "locate", slow)
            copy_to(self, url, **options)

    monkeypatch.setattr(objects.ObjectFolder, "copy_to", watched)
    build(shards, out, encoder=StubEncoder(), **OPTIONS)
    assert len(seen) > 10
    assert not any(whole for whole, _ in seen)
    assert max(count for _, count in seen) > 5
    assert_undisturbed(out, undisturbed, tmp_path)


@pytest.mark.slow
def test_a_cube_in_a_bucket_is_replaced_on_request_only(shards, memory, undisturbed, tmp_path):
    out = f"{memory}/world.zarr"
    objects.ObjectFolder(out).write("precious", b"data")
    with pytest.raises(BuildError, match="exists and is not the result of this build"):
        build(shards, out, encoder=StubEncoder(), **OPTIONS)
    with pytest.raises(BuildError, match="only what copcube made is replaced, found a folder of"):
        build(shards, out, encoder=StubEncoder(), overwrite=True, **OPTIONS)
    assert objects.ObjectFolder(out).read("precious") == b"data"
    objects.ObjectFolder(out).remove("precious")
    build(shards, out, encoder=StubEncoder(), balance="image", **OPTIONS)
    build(shards, out, encoder=StubEncoder(), overwrite=True, **OPTIONS)
    assert_undisturbed(out, undisturbed, tmp_path)
    with pytest.raises(BuildError, match=r"options\.balance: was modality, now image"):
        build(shards, out, encoder=StubEncoder(), balance="image", **OPTIONS)


@pytest.mark.slow
def test_a_store_that_fails_for_one_shard_does_not_stop_the_others(
    web, shards, undisturbed, tmp_path
):
    for path in shards.glob("*.tar"):
        web.files[f"images/{path.name}"] = path.read_bytes()
    out = tmp_path / "world.zarr"
    pattern = f"{web.url}/images/example-{{000000..000003}}.tar"

    class Failing(StubEncoder):
        """From the first image on, one shard cannot be had."""

        def __call__(self, *arguments):
            web.status["images/example-000002.tar"] = 503
            return super().__call__(*arguments)

    with pytest.raises(BuildError, match=r"1 task of .* failed:\n  example-000002: ReadError: "):
        build(pattern, out, encoder=Failing(), **OPTIONS)
    assert "embedding, 3 of 4 partitions done" in str(status(tmp_path / "world.build"))
    web.status.clear()
    assert build(pattern, out, encoder=StubEncoder(), **OPTIONS).resumed == 3
    assert contents(out) == contents(undisturbed)


@pytest.mark.slow
def test_rows_in_a_bucket_are_aggregated(uploaded, memory, undisturbed, tmp_path):
    build(uploaded, f"{memory}/world.zarr", encoder=StubEncoder(), **OPTIONS)
    aggregate(f"{memory}/world.build/rows", f"{memory}/modalities.zarr", by="modality")
    rows = undisturbed.with_name("world.build") / "rows"
    aggregate(rows, tmp_path / "modalities.zarr", by="modality")
    there = download(f"{memory}/modalities.zarr", tmp_path / "there")
    assert contents(there) == contents(tmp_path / "modalities.zarr")


@pytest.mark.slow
def test_a_driver_killed_while_it_builds_in_s3_and_workers_that_go_on(
    shards, bucket, undisturbed, tmp_path, monkeypatch
):
    """With processes, and a server, of their own."""
    monkeypatch.setattr("copcube.builds.dask._free_port", lambda wanted: 0)
    uploaded = upload(shards, f"{bucket}/images")
    out = f"{bucket}/world.zarr"
    receipts = objects.ObjectFolder(f"{bucket}/world.build")
    moments = random.Random(SEED)
    for wanted in (1, 2, 3) if SOAK else (2,):
        options = {"encoder": StubSpec(0.02), "environment": dict(os.environ), **OPTIONS}
        driver = FORK.Process(target=run_build, args=(uploaded, out), kwargs=options)
        driver.start()
        while len(receipts.names("receipts/embed/")) < wanted and driver.is_alive():
            time.sleep(0.02)
        time.sleep(moments.uniform(0, 0.2))
        driver.kill()
        driver.join()
    # Not forked: workers take the bucket's access from the environment of this process.
    report = build(uploaded, out, encoder=StubSpec(), workers=2, **OPTIONS)
    assert report.resumed >= 1
    assert_undisturbed(out, undisturbed, tmp_path)
    assert validate(out) == []


@pytest.mark.slow
def test_the_command_line_takes_addresses(uploaded, memory, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("copcube.encoder.EncoderSpec", lambda **options: StubSpec())
    out = f"{memory}/world.zarr"
    command = ["build", uploaded, out, "--modalities", ",".join(KEYS), "--threads", "1"]
    assert main([*command, "--partitions", "0-1"]) == 0
    assert main(["status", f"{memory}/world.build"]) == 0
    assert "embedding, 2 of 4 partitions done" in capsys.readouterr().out
    assert main(command) == 0
    assert main(["validate", out]) == 0
    assert main(["info", out]) == 0
    assert "s3://bucket/world.zarr" in capsys.readouterr().out
    receipts = objects.ObjectFolder(f"{memory}/world.build")
    names = receipts.names("receipts/embed/")
    assert [len(json.loads(receipts.read(name))["files"]) for name in names] == [1] * 4
    assert pq.ParquetFile(receipts.open("quarantine.parquet")).metadata.num_rows >= 0
    assert not os.path.exists("s3:")


@pytest.mark.slow
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_driver_killed_while_it_publishes_in_a_bucket(
    shards, memory, undisturbed, tmp_path, monkeypatch, overwrite
):
    """What it left of the cube has no metadata of the group, and is completed."""
    out, options = f"{memory}/world.zarr", OPTIONS | {"encoder": StubEncoder()}
    if overwrite:
        build(shards, out, balance="image", **options)
    copied, real = [], objects.ObjectFolder.copy_to

    def dying(folder, url, *, last, check):
        def until_some():
            copied.append(url)
            if len(copied) > 9:
                raise KeyboardInterrupt

        real(folder, url, last=last, check=until_some)

    with monkeypatch.context() as patch:
        patch.setattr(objects.ObjectFolder, "copy_to", dying)
        with pytest.raises(KeyboardInterrupt):
            build(shards, out, overwrite=overwrite, **options)
    there = objects.ObjectFolder(out)
    assert there.names()
    assert "zarr.json" not in there.names()
    there.write("thesis.txt", b"years")
    with pytest.raises(BuildError, match=r"thesis.txt is not part of the data"):
        build(shards, out, overwrite=overwrite, **options)
    there.remove("thesis.txt")
    build(shards, out, overwrite=overwrite, **options)
    assert_undisturbed(out, undisturbed, tmp_path)
