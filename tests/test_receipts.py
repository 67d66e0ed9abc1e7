"""Receipts: what they hold, that nothing is read to write them, and what a resume reads."""

import builtins
import hashlib
import io
import json
import os
import shutil
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from builds_helpers import contents
from stub import StubEncoder

from copcube import cube, grid
from copcube.builds import build, estimate, tasks, validate_rows
from copcube.builds import plan as plans
from copcube.builds.folder import BuildFolder
from copcube.builds.plan import BuildOptions, plan_build
from copcube.builds.quarantine import rows_digest
from copcube.builds.tasks import describe
from copcube.files.objects import access
from copcube.images.base import Image, Partition


@dataclass(frozen=True)
class FakeSource:
    """As many partitions as are asked for, each of two small images of one cell."""

    number: int = 5
    root: str = "fake"
    layout: str = "geotiff"

    @property
    def reader(self):
        return self

    def partitions(self):
        return [Partition(f"p{i:05d}", (f"{i}.tif",), 2, 1) for i in range(self.number)]

    def fingerprint(self):
        return f"fingerprint of {self.number}"

    def count(self, partition, selection):
        return Counter(s5p_co=2)

    def jobs(self, partition, selection):
        number = int(partition.name[1:])
        cell = grid.grid_id(number * 97 % 721, number * 7 % 1440)
        pixels = np.random.default_rng(number).random((2, 1, 28, 28), np.float32)
        dates = ("20210101", "20210701")
        yield lambda: [
            Image(cell, "s5p_co", None, date, 0.0, 0.0, image, "")
            for date, image in zip(dates, pixels, strict=True)
        ]


@pytest.fixture
def source(monkeypatch):
    source = FakeSource()
    monkeypatch.setattr(plans, "open_source", lambda *_: source)
    return source


@pytest.fixture
def opened(monkeypatch):
    """Path and mode of every file that Python opens; pyarrow opens rows past it."""
    seen = []
    real, create = io.open, os.open

    def spy_on_new(file, flags, *arguments, **options):
        if flags & os.O_CREAT:  # others are opened to be flushed
            seen.append((str(file), "w"))
        return create(file, flags, *arguments, **options)

    def spy(file, mode="r", *arguments, **options):
        seen.append((str(file), mode))
        return real(file, mode, *arguments, **options)

    monkeypatch.setattr(io, "open", spy)
    monkeypatch.setattr(builtins, "open", spy)
    monkeypatch.setattr(os, "open", spy_on_new)
    return seen


def reads(opened, part):
    """How often each file was opened for reading whose path holds a part, by name."""
    names = [Path(path).name for path, mode in opened if "r" in mode and part in path]
    return Counter(names)


def receipt_of(out, name="p00000"):
    return out.with_name("world.build") / "receipts" / "embed" / f"{name}.json"


# What is written.


@pytest.mark.slow
def test_an_undisturbed_build_reads_nothing_back(source, tmp_path, opened, monkeypatch):
    """What is written is read only to be assembled: rows by pyarrow, of cells one band a time."""
    decoded = []
    decode = tasks.decode_cells

    def spy(source, name, band):
        decoded.append((name, band))
        return decode(source, name, band)

    monkeypatch.setattr(tasks, "decode_cells", spy)
    build("fake", tmp_path / "world.zarr", encoder=StubEncoder())
    written = [path for path, mode in opened if "w" in mode and ".partial" in path]
    assert len([path for path in written if "/rows/" in path]) == source.number
    chunks = [path for path in written if "/cube.zarr/" in path and "/embedding/.c." in path]
    assert len(chunks) == source.number
    # Beside what pyarrow reads: headers of pages, to check them and to find vectors, and these.
    assert reads(opened, "/rows/") == {f"{p.name}.parquet": 3 for p in source.partitions()}
    assert reads(opened, "/c.") == {}, "chunks were read"
    assert reads(opened, "/cells/") == {}
    assert len(decoded) == len(set(decoded))
    assert len({name for name, _ in decoded}) == 1  # partitions this small are combined together


@pytest.mark.slow
def test_files_are_durable_before_their_receipt_and_the_cube_before_its_name(
    source, tmp_path, monkeypatch
):
    """A power cut takes what was not flushed: a file's bytes, or its name in a folder."""
    out, flushed, named = tmp_path / "world.zarr", set(), {}
    fsync, replace, rename_folder = os.fsync, os.replace, os.rename

    def flush(descriptor):
        fsync(descriptor)
        path = os.readlink(f"/proc/self/fd/{descriptor}")
        state = os.fstat(descriptor)
        if os.path.isdir(path):
            # The names that lie there now stay, of files and of folders.
            flushed.update(os.path.join(path, name) for name in os.listdir(path))
        else:
            flushed.add((state.st_ino, state.st_mtime_ns, state.st_size))

    def is_durable(path):
        state = os.stat(path)
        above = [path, *(p for p in Path(path).parents if tmp_path / "world.build" in p.parents)]
        bytes_stay = (state.st_ino, state.st_mtime_ns, state.st_size) in flushed
        return bytes_stay and all(str(p) in flushed for p in above)

    def rename(before, after):
        after = str(after)
        if "/receipts/" in after:
            for name in json.loads(Path(before).read_text())["files"]:
                assert is_durable(tmp_path / "world.build" / name), name
                named[name] = after
        replace(before, after)
        flushed.discard(after)

    def move(path, after):
        if Path(after) == out:
            for name in Path(path).rglob("*"):
                assert name.is_dir() or is_durable(name), name
            named["cube"] = str(after)
        return rename_folder(path, after)

    monkeypatch.setattr(os, "fsync", flush)
    monkeypatch.setattr(os, "replace", rename)
    monkeypatch.setattr(os, "rename", move)
    build("fake", out, encoder=StubEncoder())
    kinds = {name.partition("/")[0] for name in named}
    assert kinds == {"rows", "cells", "cube.zarr", "cube"}
    assert str(out) in flushed


@pytest.mark.slow
def test_a_receipt_holds_size_checksum_and_stamp_of_what_is_there(source, tmp_path):
    out = tmp_path / "world.zarr"
    build("fake", out, encoder=StubEncoder())
    receipt = json.loads(receipt_of(out).read_text())
    rows = tmp_path / "world.build" / "rows" / "p00000.parquet"
    data, state = rows.read_bytes(), rows.stat()
    name = "rows/p00000.parquet"
    assert receipt["files"] == {name: [len(data), hashlib.sha256(data).hexdigest()]}
    assert receipt["stamps"] == {name: f"{state.st_mtime_ns} {state.st_ino}"}


@pytest.mark.slow
def test_the_name_of_the_rows_is_made_of_their_checksums_alone(source, tmp_path):
    out = tmp_path / "world.zarr"
    build("fake", out, encoder=StubEncoder())
    receipts = [json.loads(receipt_of(out, p.name).read_text()) for p in source.partitions()]
    known = [
        {name: [len(data), hashlib.sha256(data).hexdigest()]}
        for name, data in (
            (
                f"rows/{p.name}.parquet",
                (tmp_path / f"world.build/rows/{p.name}.parquet").read_bytes(),
            )
            for p in source.partitions()
        )
    ]
    expected = hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()
    assert rows_digest(receipts) == expected
    assert cube.read_attributes(out)["copcube_rows"] == expected
    assert rows_digest([{"files": {"rows/a.parquet": [3, "abc"]}}]) == (
        "8e7c8a1c1b5d86368d9ef0a273633ff3d8f910d9a8468643099e5abc10907ce3"
    )


# What a resume reads.


def fake_build(folder, source, stamps=True):
    """Receipts and rows of all partitions, as a build would leave them, but of a few bytes."""
    options = BuildOptions.of(["s5p_co"], encoder=StubEncoder())
    plan, partitions = plan_build(source, options, describe(options))
    folder.write_plan(plan)
    for directory in ("rows", "receipts/embed"):
        Path(folder.path, directory).mkdir(parents=True)
    receipts, work = [], plan.id
    for partition in partitions:
        data = partition.name.encode()
        name, path = f"rows/{partition.name}.parquet", Path(folder.rows(partition.name))
        path.write_bytes(data)
        receipt = {
            "work": work,
            "files": {name: [len(data), hashlib.sha256(data).hexdigest()]},
            "images": {"s5p_co": 2},
            "rescaled": 0,
            "rejected": [],
            "seconds": {"embedding": 1.0},
            "finished": 0.0,
        }
        if stamps:
            state = path.stat()
            receipt["stamps"] = {name: f"{state.st_mtime_ns} {state.st_ino}"}
        receipts.append(receipt)
        receipt_of(Path(folder.out), partition.name).write_text(json.dumps(receipt))
    return plan, rows_digest(receipts)


@pytest.mark.slow
def test_resuming_10000_partitions_reads_no_row(tmp_path, monkeypatch, opened, capsys):
    source = FakeSource(10_000)
    monkeypatch.setattr(plans, "open_source", lambda *_: source)
    out, encoder = tmp_path / "world.zarr", StubEncoder()
    plan, rows = fake_build(BuildFolder(out), source)
    cube.create(out, dim=4, attrs={"copcube_plan": plan.id, "copcube_rows": rows})
    cube.finish(out)
    opened.clear()
    begin = time.perf_counter()
    report = build("fake", out, encoder=encoder, modalities=["s5p_co"])
    with capsys.disabled():
        print(
            f" resumed {report.resumed} partitions in {time.perf_counter() - begin:.1f} s", end=""
        )
    assert (report.resumed, report.finished, encoder.calls) == (10_000, True, [])
    # The rows are no parquet files: whatever read one would fail, also past the spy.
    assert reads(opened, "/rows/") == {}
    assert sum(reads(opened, "/receipts/").values()) == 20_000, "one to check, one to count"


def copy_of(out, folder):
    """Copy of a build folder without its cube, made as ``cp -r`` does."""
    target = folder / "world.build"
    shutil.copytree(out.with_name("world.build"), target, copy_function=shutil.copyfile)
    return folder / "world.zarr"


@pytest.mark.slow
def test_the_rows_of_a_copied_folder_are_hashed_once_and_not_embedded_again(
    source, tmp_path, opened
):
    build("fake", tmp_path / "world.zarr", encoder=StubEncoder())
    out, encoder = copy_of(tmp_path / "world.zarr", tmp_path / "copy"), StubEncoder()
    # Once for its hash, then to be assembled.
    everything = {f"{p.name}.parquet": 4 for p in source.partitions()}
    for expected in (everything, {}):
        opened.clear()
        report = build("fake", out, encoder=encoder)
        assert (report.resumed, encoder.calls) == (source.number, [])
        assert reads(opened, "/copy/world.build/rows/") == expected
        assert contents(out) == contents(tmp_path / "world.zarr")
    assert validate_rows(out) == []


@pytest.mark.slow
def test_a_receipt_without_stamps_is_understood_and_checked_by_hash(source, tmp_path, opened):
    """Of releases that kept none."""
    out = tmp_path / "world.zarr"
    build("fake", out, encoder=StubEncoder())
    for partition in source.partitions():
        file = receipt_of(out, partition.name)
        receipt = json.loads(file.read_text())
        del receipt["stamps"]
        file.write_text(json.dumps(receipt))
    rows = tmp_path / "world.build" / "rows" / "p00003.parquet"
    rows.write_bytes(rows.read_bytes()[::-1])
    encoder = StubEncoder()
    opened.clear()
    report = build("fake", out, encoder=encoder)
    assert (report.resumed, len(encoder.calls)) == (source.number - 1, 1)
    assert len(reads(opened, "/rows/")) == source.number
    assert validate_rows(out) == []


@pytest.mark.slow
def test_an_estimate_changes_no_receipt(source, tmp_path, monkeypatch):
    monkeypatch.setattr(plans, "open_source", lambda *_: source)
    build("fake", tmp_path / "world.zarr", encoder=StubEncoder())
    out = copy_of(tmp_path / "world.zarr", tmp_path / "copy")
    before = contents(tmp_path / "copy")
    estimate("fake", out, encoder=StubEncoder())
    assert contents(tmp_path / "copy") == before


@pytest.mark.slow
@pytest.mark.parametrize("name", ["plan.json", "partitions.parquet"])
def test_a_damaged_list_beside_a_cube_is_a_finding(source, tmp_path, name):
    build("fake", tmp_path / "world.zarr", encoder=StubEncoder())
    (tmp_path / "world.build" / name).write_text("{")
    (problem,) = validate_rows(tmp_path / "world.zarr")
    assert problem.startswith(f"{tmp_path / 'world.build' / name}: ")


def test_any_damage_of_the_list_of_partitions_is_mended(tmp_path):
    folder, partitions = BuildFolder(tmp_path / "world.zarr"), FakeSource().partitions()
    folder.write_partitions(partitions, 64 * "a")
    path = tmp_path / "world.build" / "partitions.parquet"
    whole = path.read_bytes()
    for place in range(0, len(whole), 37):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << place % 8
        path.write_bytes(damaged)
        folder.write_partitions(partitions, 64 * "a")
        assert folder.partitions() == partitions


@pytest.mark.slow
def test_validate_finds_what_size_and_stamp_hide(source, tmp_path):
    """A bit that a disk has turned; the message says how to mend it, and that does."""
    out = tmp_path / "world.zarr"
    build("fake", out, encoder=StubEncoder())
    rows = tmp_path / "world.build" / "rows" / "p00002.parquet"
    state, whole = rows.stat(), rows.read_bytes()
    data = bytearray(whole)
    data[len(data) // 2] ^= 1
    with rows.open("r+b") as file:
        file.write(data)
    os.utime(rows, ns=(state.st_atime_ns, state.st_mtime_ns))
    encoder = StubEncoder()
    assert build("fake", out, encoder=encoder).resumed == source.number
    (problem,) = validate_rows(out)
    assert problem.startswith(f"{rows}: ")
    assert "remove the file if it exists, and build again" in problem
    rows.unlink()
    build("fake", out, encoder=encoder)
    assert len(encoder.calls) == 1
    assert rows.read_bytes() == whole
    assert validate_rows(out) == []


@pytest.mark.slow
def test_rows_that_cannot_be_read_are_embedded_again(source, tmp_path):
    """Also where size and stamp hide that, a build does not ask for new copies."""
    out, encoder = tmp_path / "world.zarr", StubEncoder()
    build("fake", out, encoder=StubEncoder())
    before = contents(tmp_path)
    rows = tmp_path / "world.build" / "rows" / "p00002.parquet"
    state = rows.stat()
    with rows.open("r+b") as file:
        file.write(bytes(100))
    os.utime(rows, ns=(state.st_atime_ns, state.st_mtime_ns))
    shutil.rmtree(out)
    build("fake", out, encoder=encoder)
    assert len(encoder.calls) == 1
    after = contents(tmp_path)
    receipt = "world.build/receipts/embed/p00002.json"
    assert {name for name in before | after if before.get(name) != after.get(name)} == {receipt}


@pytest.mark.slow
def test_a_cube_of_rows_that_are_embedded_again_is_made_again(source, tmp_path, monkeypatch):
    """A bit that a disk turned before the rows were combined is in the cube too."""
    out, other = tmp_path / "world.zarr", tmp_path / "other" / "world.zarr"

    class Other(StubEncoder):
        def __call__(self, *given):
            return super().__call__(*given) + 1

    build("fake", out, encoder=StubEncoder())
    build("fake", other, encoder=Other())
    whole = contents(out)
    shutil.copytree(other / "embedding", out / "embedding", dirs_exist_ok=True)
    (tmp_path / "world.build" / "rows" / "p00002.parquet").unlink()
    with monkeypatch.context() as patch:
        patch.setattr(BuildFolder, "publish", lambda *arguments, **options: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            build("fake", out, encoder=StubEncoder())
    assert "unfinished" in validate_rows(out)[0]
    build("fake", out, encoder=StubEncoder())
    assert contents(out) == whole
    assert validate_rows(out) == []


RECEIPT = {
    "work": "w",
    "files": {},
    "images": {},
    "rescaled": 0,
    "rejected": [],
    "seconds": {"embedding": 1.0},
}


@pytest.mark.parametrize(
    "text",
    [
        *("", "[]", "{}", '{"work": 1, "files": {"a": 1}}'),
        json.dumps({key: value for key, value in RECEIPT.items() if key != "rescaled"}),
        json.dumps(RECEIPT | {"rejected": [{"kind": "broken", "images": 1}]}),
        json.dumps(RECEIPT | {"strange": {"dem": 3}}),
    ],
)
def test_a_broken_receipt_counts_as_none(tmp_path, text):
    folder = BuildFolder(tmp_path / "world.zarr")
    folder.files.write("receipts/embed/a.json", text.encode())
    folder.files.write("receipts/embed/c.json", json.dumps(RECEIPT).encode())
    assert [*folder.receipts.done("w", "embed", ["a", "b", "c"])] == ["c"]
    assert not folder.receipts.is_done("w", "embed", "a")
    assert not folder.receipts.is_done("w", "embed", "b")


@pytest.mark.slow
def test_in_a_bucket_a_resume_lists_the_rows_and_reads_none(source, bucket, monkeypatch):
    fetched = []
    fetch = access.read_range

    def spy(url, start, length):
        fetched.append(url)
        return fetch(url, start, length)

    for module in ("access", "folder"):
        monkeypatch.setattr(f"copcube.files.objects.{module}.read", lambda url: spy(url, 0, None))
    out, encoder = f"{bucket}/world.zarr", StubEncoder()
    build("fake", out, encoder=encoder)
    assert not [url for url in fetched if "/rows/" in url or "/c." in url]
    calls = len(encoder.calls)
    receipt = json.loads(BuildFolder(out).files.read("receipts/embed/p00000.json"))
    assert receipt["stamps"]["rows/p00000.parquet"]
    fetched.clear()
    report = build("fake", out, encoder=encoder)
    assert (report.resumed, len(encoder.calls)) == (source.number, calls)
    assert not [url for url in fetched if "/rows/" in url]
    # To see that the cube is whole, each chunk that is there is asked for once, and no other.
    names = [f"{out}/{entry.name}" for entry in access.listing(out) if "/c." in entry.name]
    assert sorted(url for url in fetched if "/c." in url) == names
    assert validate_rows(out) == []
    assert len([url for url in fetched if "/rows/" in url]) == source.number
