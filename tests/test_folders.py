"""Folders: the same behaviour on a file system and in an object store."""

import errno
import os
import threading

import pytest

from copcube.errors import StorageError
from copcube.files.folders import LocalFolder, absolute, checksum, folder


@pytest.fixture(params=["local", "store"])
def place(request, tmp_path):
    where = tmp_path / "f" if request.param == "local" else request.getfixturevalue("bucket") + "/f"
    return folder(where)


def test_files_come_and_go(place):
    assert place.names() == []
    for name in ("a.json", "rows/b.parquet", "rows/c.parquet", "rows.txt"):
        place.write(name, name.encode())
    assert place.names() == ["a.json", "rows.txt", "rows/b.parquet", "rows/c.parquet"]
    assert place.names("rows/") == ["rows/b.parquet", "rows/c.parquet"]
    assert place.names("rows/b") == ["rows/b.parquet"]
    assert place.names("none/") == []
    assert place.read("rows/b.parquet") == b"rows/b.parquet"
    assert checksum(place, "a.json")[0] == 6
    place.write("a.json", memoryview(b"new"))
    assert place.read("a.json") == b"new"
    place.remove("rows")
    place.remove("none")
    assert place.names() == ["a.json", "rows.txt"]
    with pytest.raises(FileNotFoundError):
        place.read("rows/b.parquet")
    place.flush(["a.json"])


def test_of_several_creators_one_succeeds(place):
    won = []

    def create(number):
        if place.create("plan.json", str(number).encode()):
            won.append(number)

    threads = [threading.Thread(target=create, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert place.read("plan.json") == str(won[0]).encode()
    assert place.names() == ["plan.json"]


def test_a_full_disk_leaves_what_was_there(tmp_path, monkeypatch):
    place = LocalFolder(tmp_path)
    place.write("a", b"old")

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    for write in (place.write, place.create):
        with pytest.raises(StorageError, match="the disk is full"):
            write("a", b"new")
    assert place.read("a") == b"old"
    assert os.listdir(tmp_path) == ["a"]


def test_a_file_system_without_hard_links(tmp_path, monkeypatch):
    def refuse(*arguments):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(os, "link", refuse)
    place = LocalFolder(tmp_path)
    assert place.create("a", b"1")
    assert not place.create("a", b"2")
    assert place.read("a") == b"1"


def test_what_killed_writers_left_is_swept(tmp_path):
    place = LocalFolder(tmp_path)
    place.write("rows/a", b"1")
    (tmp_path / "rows" / ".a.0123.partial").write_bytes(b"half")
    assert place.names() == ["rows/a"]
    place.sweep()
    assert os.listdir(tmp_path / "rows") == ["a"]


def test_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert absolute("world.zarr") == f"{tmp_path}/world.zarr"
    assert absolute("s3://bucket/world.zarr/") == "s3://bucket/world.zarr"
