"""Object stores."""

import io
import os
import pickle
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from copcube.cube import open_cube
from copcube.errors import (
    CubeError,
    MissingPackageError,
    OptionError,
    ReadError,
    StorageError,
    WriteError,
)
from copcube.files import objects
from copcube.files.folders import LocalFolder
from copcube.files.objects import ObjectFolder, ReadAhead, ahead, is_remote, stores


@pytest.fixture
def folder(memory):
    return ObjectFolder(f"{memory}/world.build")


@pytest.fixture
def served(bucket):
    """The same on a server."""
    return ObjectFolder(f"{bucket}/world.build")


def fill(folder, names):
    for name in names:
        folder.write(name, name.encode())


# Addresses and errors.


def test_what_is_an_address(tmp_path):
    assert is_remote("s3://bucket/x")
    assert is_remote("https://host/x")
    assert not is_remote(str(tmp_path))
    assert not is_remote(tmp_path)
    assert not is_remote("a:b/c")
    for wrong in ("ftp://host/x", "s3://", "s3:///x"):
        with pytest.raises(OptionError, match="expected a local path, or an address s3://bucket"):
            objects.read(wrong)


def test_without_obstore_the_message_says_what_to_install(monkeypatch):
    stores._store.cache_clear()
    monkeypatch.setitem(sys.modules, "obstore.store", None)
    with pytest.raises(MissingPackageError, match=r"pip install 'copcube\[cloud\]'"):
        objects.read("s3://bucket/x")


def test_a_local_endpoint_needs_no_further_settings(bucket):
    assert "AWS_ALLOW_HTTP" not in os.environ
    fill(ObjectFolder(bucket), ["a"])
    assert objects.read(f"{bucket}/a") == b"a"


def test_what_is_absent_or_denied_is_named(bucket, web):
    with pytest.raises(FileNotFoundError, match=r"no such object: 's3://bucket/none'"):
        objects.read(f"{bucket}/none")
    with pytest.raises(StorageError, match=r"s3://other/x: there is no such bucket"):
        objects.listing("s3://other/x")
    with pytest.raises(FileNotFoundError):
        objects.stat(f"{web.url}/none")
    web.files["x"], web.status["x"] = b"abc", 403
    with pytest.raises(StorageError, match="/x: access denied"):
        objects.read(f"{web.url}/x")
    with pytest.raises(StorageError, match="do not list folders"):
        objects.listing(web.url)
    del web.status["x"]
    web.ranges = False
    with pytest.raises(StorageError, match="does not support range requests"):
        objects.read_range(f"{web.url}/x", 1, 1)


def test_a_server_that_fails_is_asked_again_and_then_named(web):
    web.files["x"] = bytes(range(100))
    web.cut["x"] = 2
    assert objects.read_range(f"{web.url}/x", 3, 50) == bytes(range(3, 53))
    assert len(web.requests) == 3
    web.status["x"] = 503
    with pytest.raises(StorageError, match=r"/x: unexpected answer from the store .*503"):
        objects.read(f"{web.url}/x")
    with pytest.raises(StorageError, match=r"127\.0\.0\.1:9/x: unexpected answer from the store"):
        objects.read("http://127.0.0.1:9/x")


def test_sizes_listing_and_ranges(bucket):
    fill(ObjectFolder(bucket), ["a/1", "a/22", "a/b/333", "ab/1", "c"])
    urls = [f"{bucket}/{name}" for name in ("a/22", "none", "c")]
    assert objects.sizes(urls) == [4, None, 1]
    assert objects.file_size(urls[0]) == 4
    found = [(entry.name, entry.size) for entry in objects.listing(f"{bucket}/a")]
    assert found == [("1", 3), ("22", 4), ("b/333", 7)]
    assert [e.name for e in objects.listing(f"{bucket}/a/", deep=False)] == ["1", "22"]
    assert len(objects.listing(bucket)) == 5
    assert objects.read_range(urls[0], 2, 100) == b"22"


def test_files_and_objects_have_another_version_when_they_are_written_again(bucket, tmp_path):
    store, folder = tmp_path / "store", ObjectFolder(bucket)
    for name in ("a", "store/.zgroup", "store/0/zarr.json"):
        LocalFolder(tmp_path).write(name, b"former")
        folder.write(name, b"former")
    places = [tmp_path / "a", store, f"{bucket}/a"]
    known = [objects.version(place) for place in places]
    assert known == [objects.version(place) for place in places]
    LocalFolder(store).write("new", b"")  # of a folder the metadata count
    assert objects.version(store) == known[1]
    for name in ("a", "store/0/zarr.json"):
        LocalFolder(tmp_path).write(name, b"latter")
        os.utime(tmp_path / name, ns=(1, 1))
    folder.write("a", b"latter")
    for place, version in zip(places, known, strict=True):
        assert objects.version(place) != version
    none = [objects.version(f"{place}/none") for place in places]
    assert none == ["", "", ""]


def test_a_cube_that_may_not_be_read_is_not_called_something_else(web):
    web.files["world.zarr/zarr.json"], web.status["world.zarr/zarr.json"] = b"{}", 403
    with pytest.raises(ReadError, match=r"world.zarr/zarr.json: access denied; check whether"):
        open_cube(f"{web.url}/world.zarr")
    with pytest.raises(CubeError, match=r"expected an embedding cube .*, found nothing"):
        open_cube(f"{web.url}/none.zarr")


def test_an_object_as_a_file(memory):
    content = os.urandom(1_000_000)
    ObjectFolder(memory).write("x", content)
    there, here = objects.open_file(f"{memory}/x"), io.BytesIO(content)
    for offset, whence, length in [(5, 0, 10), (-8, 2, 8), (3, 1, 9), (400_000, 0, 500_000)]:
        assert there.seek(offset, whence) == here.seek(offset, whence)
        assert there.read(length) == here.read(length)
    assert there.read() == here.read()
    assert there.read() == b""


# Reading ahead.


@pytest.fixture
def parts(monkeypatch):
    """Every part that is fetched, (first byte, length), and how many are held at most."""
    fetched = []
    fetch = ahead.read_range

    def spy(url, start, length):
        fetched.append((start, length))
        return fetch(url, start, length)

    monkeypatch.setattr(ahead, "read_range", spy)
    return fetched


def test_a_sequential_reader_fetches_every_byte_once_and_ahead(memory, parts):
    content = os.urandom(10_050)
    ObjectFolder(memory).write("x", content)
    stream = ReadAhead(f"{memory}/x", part=100, ahead=3)
    assert stream.size == len(content)
    assert stream.read(0, 10) == content[:10]
    until = time.monotonic() + 20
    while len(parts) < 4 and time.monotonic() < until:  # threads of their own fetch them
        time.sleep(0.01)
    assert len(parts) == 4
    found = [stream.read(start, 77) for start in range(0, len(content), 77)]
    assert b"".join(found) == content
    assert sorted(parts) == [(s, min(100, len(content) - s)) for s in range(0, len(content), 100)]
    assert len(stream._parts) <= ahead.KEPT
    assert stream.read(len(content), 5) == b""
    assert stream.read(len(content) - 2, 5) == content[-2:]


def test_any_access_is_right_and_holds_a_bounded_number_of_parts(memory, parts, monkeypatch):
    monkeypatch.setattr(ahead, "KEPT", 6)
    content = os.urandom(5_000)
    ObjectFolder(memory).write("x", content)
    stream = ReadAhead(f"{memory}/x", part=100, ahead=3)
    most = 0

    def read(start):
        nonlocal most
        with stream._lock:  # else it may be seen between a part more and a part less
            most = max(most, len(stream._parts))
        return stream.read(start, 350) == content[start : start + 350]

    starts = [(i * 7919) % 5_000 for i in range(60)]
    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(read, starts))
    assert 1 < most <= 6
    assert len(parts) > 60, "what was gone was not fetched again"


def test_a_part_that_failed_is_fetched_when_it_is_read_again(web):
    web.files["x"] = bytes(1000)
    stream = ReadAhead(f"{web.url}/x", part=100, ahead=0)
    web.status["x"] = 500
    with pytest.raises(StorageError, match="500"):
        stream.read(0, 10)
    del web.status["x"]
    assert stream.read(0, 10) == bytes(10)


def test_an_object_that_becomes_shorter_is_an_error_of_the_store(web):
    web.files["x"] = bytes(1000)
    stream = ReadAhead(f"{web.url}/x", part=100, ahead=0)
    web.files["x"] = bytes(150)
    with pytest.raises(StorageError, match="expected 100 bytes at 100, found 50; it changed"):
        stream.read(100, 100)


# Folders.


@pytest.mark.slow
def test_a_folder_as_the_local_one(served, tmp_path):
    from copcube.files.folders import LocalFolder

    names = ["a.json", "rows/1.parquet", "rows/2.parquet", "rows2/1.parquet"]
    for folder in (served, LocalFolder(tmp_path / "x")):
        assert folder.names() == []
        fill(folder, names)
        folder.write("a.json", memoryview(b"new"))
        folder.flush(names)
        assert folder.read("a.json") == b"new"
        assert folder.names() == names
        assert folder.names("rows") == names[1:]
        assert folder.names("rows/") == names[1:3]
        assert folder.names("rows/2") == names[2:3]
        assert folder.names("none/") == []
        assert folder.create("b", b"first")
        assert not folder.create("b", b"second")
        assert folder.read("b") == b"first"
        with pytest.raises(FileNotFoundError):
            folder.read("none")
        for gone in ("rows", "none", "a.json"):
            folder.remove(gone)
        assert folder.names() == ["b", "rows2/1.parquet"]
        folder.remove("")
        assert folder.names() == []


def test_a_folder_pickles_small_and_takes_buffers_of_any_kind(folder):
    import numpy as np
    import pyarrow as pa

    again = pickle.loads(pickle.dumps(folder))
    assert len(pickle.dumps(folder)) < 200
    again.write("a", pa.py_buffer(b"abc"))
    again.write("b", np.arange(3, dtype="u1"))
    again.write("c", b"")
    assert (folder.read("a"), folder.read("b"), folder.read("c")) == (b"abc", b"\0\1\2", b"")


def test_a_large_file_is_written_in_parts(served, monkeypatch):
    monkeypatch.setattr(objects.folder, "ONE_PUT", 6 << 20)
    content = os.urandom(13 << 20)
    served.write("large", content)
    assert served.read("large") == content


def test_of_several_that_create_a_file_one_succeeds(folder):
    """In memory: the server of the tests looks for a file and writes it in two steps."""
    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(lambda i: folder.create("x", b"%d" % i), range(16)))
    assert sum(won) == 1
    assert folder.read("x") == b"%d" % won.index(True)


def test_a_copy_ends_with_the_last_file(folder, memory, monkeypatch):
    names = [f"c/{i}" for i in range(20)] + ["zarr.json"]
    fill(folder, names)
    seen = []
    copy = stores.locate(memory)[0].copy

    class Store:
        def put(self, key, data, *, mode):
            assert mode == "create", "what somebody else has put there meanwhile must stay"
            seen.append(key)

        def copy(self, source, target):
            seen.append(target)
            copy(source, target)

    locate = stores.locate
    monkeypatch.setattr(objects.folder, "locate", lambda url: (Store(), locate(url)[1]))
    folder.copy_to(f"{memory}/world.zarr", last="zarr.json")
    monkeypatch.undo()
    assert seen[-1] == "world.zarr/zarr.json"
    assert len(seen) == 21


def test_a_copy_has_all_files_and_stays_in_its_bucket(served, bucket):
    names = [f"c/{i}" for i in range(20)] + ["zarr.json"]
    fill(served, names)
    served.copy_to(f"{bucket}/world.zarr", last="zarr.json")
    there = ObjectFolder(f"{bucket}/world.zarr")
    assert there.names() == served.names() == sorted(names)
    assert all(there.read(name) == name.encode() for name in names)
    with pytest.raises(OptionError, match=r"in the bucket of s3://bucket/world\.build"):
        served.copy_to("s3://other/world.zarr", last="zarr.json")


def test_zarr_writes_and_reads_at_an_address(bucket):
    import zarr

    group = zarr.create_group(objects.zarr_store(f"{bucket}/cube.zarr"))
    group.create_array("x", shape=(4,), chunks=(2,), dtype="f4")[:] = 1
    again = zarr.open_group(objects.zarr_store(f"{bucket}/cube.zarr/"), mode="r")
    assert again["x"][:].tolist() == [1, 1, 1, 1]
    assert "x/c/1" in ObjectFolder(f"{bucket}/cube.zarr").names()


def test_the_stamp_of_a_file_is_what_a_listing_says_of_it(served):
    names = ["plan.json", "rows/a", "rows/b/c"]
    written = {name: served.write(name, name.encode()) for name in names}
    states = served.states([*names, "none", "rows/none"])
    assert {name: (s.size, s.stamp) for name, s in states.items()} == {
        name: (w.size, w.stamp) for name, w in written.items()
    }
    assert all(state.stamp for state in states.values())
    served.write("rows/a", b"other!")
    assert served.states(["rows/a"])["rows/a"].stamp != written["rows/a"].stamp


def test_what_fails_says_whether_it_read_or_wrote(web):
    """A web server takes no files; and neither error is the other."""
    with pytest.raises(WriteError, match="/x: ") as caught:
        ObjectFolder(web.url).write("x", b"abc")
    assert not isinstance(caught.value, ReadError)
    web.files["x"], web.status["x"] = b"abc", 403
    with pytest.raises(ReadError, match="/x: access denied") as found:
        objects.read(f"{web.url}/x")
    assert not isinstance(found.value, WriteError)
    assert isinstance(found.value, StorageError)
