"""Folders: the same behaviour on a file system and in an object store."""

import errno
import hashlib
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from copcube.errors import WriteError
from copcube.files import folders
from copcube.files.atomic import atomic_folder, atomic_path
from copcube.files.folders import LocalFolder, absolute, open_folder
from copcube.files.states import FileState


@pytest.fixture(params=["local", "store"])
def folder(request, tmp_path):
    path = tmp_path / "f" if request.param == "local" else request.getfixturevalue("memory") + "/f"
    return open_folder(path)


def test_files_come_and_go(folder):
    assert folder.names() == []
    for name in ("a.json", "rows/b.parquet", "rows/c.parquet", "rows.txt"):
        folder.write(name, name.encode())
    assert folder.names() == ["a.json", "rows.txt", "rows/b.parquet", "rows/c.parquet"]
    assert folder.names("rows/") == ["rows/b.parquet", "rows/c.parquet"]
    assert folder.names("rows/b") == ["rows/b.parquet"]
    assert folder.names("none/") == []
    assert folder.read("rows/b.parquet") == b"rows/b.parquet"
    written = folder.write("a.json", memoryview(b"new"))
    assert (written.size, written.sha256) == (3, hashlib.sha256(b"new").hexdigest())
    assert folder.read("a.json") == b"new"
    folder.remove("rows")
    folder.remove("none")
    assert folder.names() == ["a.json", "rows.txt"]
    with pytest.raises(FileNotFoundError):
        folder.read("rows/b.parquet")
    folder.flush(["a.json"])


@pytest.mark.parametrize("flush", [True, False])
def test_what_was_written_is_known_without_reading(folder, monkeypatch, flush):
    data = np.arange(500, dtype="f4").reshape(5, 100)
    monkeypatch.setattr(Path, "read_bytes", None)
    written = folder.write("rows/a", data, flush=flush)
    folder.flush(["rows/a"])
    assert (written.size, written.sha256) == (2000, hashlib.sha256(data.tobytes()).hexdigest())
    assert folder.states(["rows/a", "none", "rows/a/none"]) == {
        "rows/a": FileState(2000, written.stamp)
    }
    again = folder.write("rows/a", data)
    assert again.stamp != written.stamp
    monkeypatch.undo()


def test_a_change_in_place_changes_the_stamp(tmp_path):
    folder = LocalFolder(tmp_path)
    before = folder.write("a", b"old")
    time.sleep(0.02)  # the clock that stamps files may stand still for some ms
    (tmp_path / "a").write_bytes(b"new")
    state = folder.states(["a"])["a"]
    assert state.size == before.size
    assert state.stamp != before.stamp


def test_only_flushed_files_are_flushed(tmp_path, monkeypatch):
    flushed = []
    fsync = os.fsync

    def spy(descriptor):
        flushed.append(os.path.relpath(os.readlink(f"/proc/self/fd/{descriptor}"), tmp_path))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", spy)
    folder = LocalFolder(tmp_path)
    folder.write("c/a", b"1", flush=False)
    assert flushed == []
    folder.flush(["c/a"])
    # Names are flushed after what they name; several at once, in any order.
    assert flushed[0] == "c/a"
    assert sorted(flushed[1:]) == [".", "..", "c"]
    flushed.clear()
    folder.flush([])
    assert flushed == []
    folder.write("c/b", b"1")
    assert [name.partition(".")[0] for name in flushed] == ["c/", "c"]


def test_of_several_creators_one_succeeds(folder):
    won = []

    def create(number):
        if folder.create("plan.json", str(number).encode()):
            won.append(number)

    threads = [threading.Thread(target=create, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert folder.read("plan.json") == str(won[0]).encode()
    assert folder.names() == ["plan.json"]


def test_a_full_disk_leaves_what_was_there(tmp_path, monkeypatch):
    folder = LocalFolder(tmp_path)
    folder.write("a", b"old")

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    for write in (folder.write, folder.create):
        with pytest.raises(WriteError, match="the disk is full"):
            write("a", b"new")
    assert folder.read("a") == b"old"
    assert os.listdir(tmp_path) == ["a"]


def test_a_file_system_that_turns_read_only_is_named(tmp_path, monkeypatch):
    """As after an error of the disk: then nothing half written can be removed either."""

    def refuse(*arguments):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(os, "replace", refuse)
    monkeypatch.setattr(os, "unlink", refuse)
    with pytest.raises(WriteError, match="the file system is read-only; choose another place"):
        LocalFolder(tmp_path).write("a", b"new")


def test_a_name_that_is_too_long_is_refused_before_it_is_written(tmp_path):
    with pytest.raises(WriteError, match="too long"), atomic_path(tmp_path / f"{'w' * 240}.nc"):
        pytest.fail("HDF5 would say that permission is denied")


def test_a_file_system_without_hard_links(tmp_path, monkeypatch):
    def refuse(*arguments):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(os, "link", refuse)
    folder = LocalFolder(tmp_path)
    assert folder.create("a", b"1")
    assert not folder.create("a", b"2")
    assert folder.read("a") == b"1"


def test_what_killed_writers_left_is_swept(tmp_path):
    folder = LocalFolder(tmp_path)
    folder.write("rows/a", b"1")
    (tmp_path / "rows" / ".a.0123.partial").write_bytes(b"half")
    assert folder.names() == ["rows/a"]
    folder.sweep()
    assert os.listdir(tmp_path / "rows") == ["a"]


@pytest.mark.slow
def test_a_folder_that_threads_of_a_failed_writer_make_again_is_removed(tmp_path):
    """They pause, as on a busy machine, while the folder is removed."""
    folder = tmp_path / "w.zarr"

    def write_once_more():
        while temporary.exists():
            time.sleep(0.001)
        time.sleep(0.1)
        (temporary / "c").mkdir(parents=True)

    thread = threading.Thread(target=write_once_more)
    with suppress(KeyboardInterrupt), atomic_folder(folder, replace=False) as temporary:
        temporary.mkdir()
        thread.start()
        raise KeyboardInterrupt
    thread.join()
    assert os.listdir(tmp_path) == []


def test_a_second_interrupt_leaves_no_half_written_folder(tmp_path, monkeypatch):
    def interrupt(_):
        temporary.mkdir()
        raise KeyboardInterrupt

    monkeypatch.setattr(time, "sleep", interrupt)
    with suppress(KeyboardInterrupt), atomic_folder(tmp_path / "w", replace=False) as temporary:
        temporary.mkdir()
        raise KeyboardInterrupt
    assert os.listdir(tmp_path) == []


def test_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert absolute("world.zarr") == f"{tmp_path}/world.zarr"
    assert absolute("s3://bucket/world.zarr/") == "s3://bucket/world.zarr"


@pytest.mark.parametrize("flush", [True, False])
@pytest.mark.parametrize("error", [TypeError, KeyboardInterrupt])
def test_a_file_whose_writing_fails_is_as_it_was(tmp_path, monkeypatch, flush, error):
    folder = LocalFolder(tmp_path)
    folder.write("cells/a", b"old", flush=flush)

    def interrupted(*names):
        raise KeyboardInterrupt

    data = b"new"
    if error is TypeError:
        data = "not bytes"
    else:
        monkeypatch.setattr(os, "replace", interrupted)
    for name in ("cells/a", "others/a"):
        with pytest.raises(error):
            folder.write(name, data, flush=flush)
    found = [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")]
    assert sorted(found) == ["cells", "cells/a", "others"]
    assert folder.read("cells/a") == b"old"


def test_a_new_folder_stays_for_all_who_write_into_it(tmp_path, monkeypatch):
    """A second thread, which finds it there, would else be done before it is flushed."""
    flushed, begun = [], threading.Event()

    def slow(path):
        begun.set()
        time.sleep(0.2)
        flushed.append(path)

    monkeypatch.setattr(folders, "sync", slow)
    folder = LocalFolder(tmp_path)
    with ThreadPoolExecutor() as pool:
        first = pool.submit(folder.write, "cells/a", b"1")
        begun.wait()
        folder.write("cells/b", b"2")
        assert flushed == [tmp_path]
        first.result()
