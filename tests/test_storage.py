import errno
import os
import shutil
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest

from copcube.errors import StorageError, WriteError
from copcube.files.atomic import atomic_folder, atomic_path, sync


def test_a_file_appears_whole_and_nothing_else_stays(tmp_path):
    target = tmp_path / "a.txt"
    with atomic_path(target) as temporary:
        temporary.write_text("new")
        assert temporary.parent == tmp_path
        assert not target.exists()
    assert target.read_text() == "new"
    assert os.listdir(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("error", [RuntimeError("broken"), KeyboardInterrupt()])
def test_a_failure_leaves_the_former_file(tmp_path, error):
    target = tmp_path / "a.txt"
    target.write_text("old")

    def write() -> None:
        with atomic_path(target) as temporary:
            temporary.write_text("half")
            raise error

    with pytest.raises(type(error)):
        write()
    assert target.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (errno.ENOSPC, "disk is full"),
        (errno.EDQUOT, "quota"),
        (errno.EACCES, "permission denied"),
        (errno.ENAMETOOLONG, "choose a shorter one"),
    ],
)
def test_refusals_name_path_and_remedy(tmp_path, number, remedy):
    target = tmp_path / "a.txt"
    with pytest.raises(StorageError, match=rf"a\.txt.*{remedy}") as caught, atomic_path(target):
        raise OSError(number, os.strerror(number))
    assert caught.value.errno == number
    assert isinstance(caught.value, OSError)
    assert isinstance(caught.value, WriteError)


def test_a_missing_folder_is_said(tmp_path):
    target = tmp_path / "none" / "a.txt"
    with pytest.raises(StorageError, match="folder does not exist"), atomic_path(target) as file:
        file.write_text("x")


def test_a_body_that_writes_nothing_is_an_error(tmp_path):
    with pytest.raises(StorageError), atomic_path(tmp_path / "a.txt"):
        pass


def test_other_os_errors_pass_unchanged(tmp_path):
    with pytest.raises(TimeoutError), atomic_path(tmp_path / "a.txt"):
        raise TimeoutError(errno.ETIMEDOUT, "slow")


def test_without_replace_a_former_file_stays(tmp_path):
    target = tmp_path / "a.txt"
    with atomic_path(target, replace=False) as temporary:
        temporary.write_text("first")
    with pytest.raises(FileExistsError), atomic_path(target, replace=False) as temporary:
        temporary.write_text("second")
    assert target.read_text() == "first"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_a_path_below_a_file_is_said(tmp_path):
    (tmp_path / "file").touch()
    for context in (atomic_path, atomic_folder):
        with (
            pytest.raises(WriteError, match="a part of its path is a file"),
            context(tmp_path / "file" / "a") as temporary,
        ):
            temporary.mkdir()


def test_where_folders_cannot_be_opened_only_files_are_flushed(tmp_path, monkeypatch):
    """As on Windows, where a file must be open for writing to be flushed."""
    opened = []
    real = os.open

    def spy(path, flags):
        opened.append((Path(path).name, flags))
        return real(path, flags)

    (tmp_path / "a").touch()
    with monkeypatch.context() as patch:
        patch.setattr(sys, "platform", "win32")
        patch.setattr(os, "open", spy)
        sync(tmp_path)
        sync(tmp_path / "a")
    assert opened == [("a", os.O_RDWR)]


def test_sync_takes_files_and_folders(tmp_path):
    (tmp_path / "a").write_text("x")
    sync(tmp_path / "a")
    sync(tmp_path)


@pytest.mark.parametrize("former", ["nothing", "file", "folder"])
def test_a_folder_appears_whole_and_replaces_what_was_there(tmp_path, former):
    out = tmp_path / "cube.zarr"
    if former == "file":
        out.write_text("old")
    elif former == "folder":
        out.mkdir()
        (out / "old").write_text("old")
    with atomic_folder(out) as temporary:
        temporary.mkdir()
        (temporary / "new").write_text("new")
        assert former == "nothing" or out.exists()
    assert [path.name for path in tmp_path.iterdir()] == ["cube.zarr"]
    assert [path.name for path in out.iterdir()] == ["new"]


def test_a_failed_folder_leaves_the_former_one(tmp_path):
    out = tmp_path / "cube.zarr"
    out.mkdir()
    (out / "old").write_text("old")

    def fail():
        with atomic_folder(out) as temporary:
            temporary.mkdir()
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert [path.name for path in tmp_path.iterdir()] == ["cube.zarr"]
    assert [path.name for path in out.iterdir()] == ["old"]


@pytest.mark.parametrize("former", ["file", "folder"])
@pytest.mark.parametrize(
    "moment", ["the disk fails", "Ctrl-C at the first", "Ctrl-C at the second"]
)
def test_a_folder_that_does_not_take_its_name_leaves_the_former_one(
    tmp_path, monkeypatch, former, moment
):
    out = tmp_path / "cube.zarr"
    if former == "folder":
        out.mkdir()
    old = out / "old" if former == "folder" else out
    old.write_text("old")
    rename = Path.rename

    def fail(path, target):
        if path.suffix == ".partial":
            raise OSError(errno.EIO, moment) if moment == "the disk fails" else KeyboardInterrupt
        renamed = rename(path, target)
        if target.suffix == ".former" and moment == "Ctrl-C at the first":
            raise KeyboardInterrupt
        return renamed

    def write():
        with atomic_folder(out) as temporary:
            temporary.mkdir()

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises((OSError, KeyboardInterrupt)):
        write()
    assert [path.name for path in tmp_path.iterdir()] == ["cube.zarr"]
    assert old.read_text() == "old"


def test_what_one_left_that_was_stopped_while_it_removed_the_former_goes_with_the_next(
    tmp_path, monkeypatch
):
    out = tmp_path / "cube.zarr"
    out.mkdir()

    def stop(path):
        raise KeyboardInterrupt

    def write():
        with atomic_folder(out) as temporary:
            temporary.mkdir()

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", stop)
        with pytest.raises(KeyboardInterrupt):
            write()
    assert len(list(tmp_path.iterdir())) == 2
    write()
    assert list(tmp_path.iterdir()) == [out]


@pytest.mark.slow
def test_nothing_stays_of_a_writer_whose_threads_go_on_after_its_failure(tmp_path):
    stop = time.monotonic() + 0.15
    threads = []

    def go_on(folder: Path, number: int) -> None:
        while time.monotonic() < stop:
            with suppress(OSError):  # where the folder goes between the two
                folder.mkdir(parents=True, exist_ok=True)
                (folder / f"{number}").write_bytes(bytes(10))

    def write() -> None:
        with atomic_folder(tmp_path / "cube.zarr") as temporary:
            for number in range(4):
                thread = threading.Thread(target=go_on, args=(temporary / "c", number))
                thread.start()
                threads.append(thread)
            raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        write()
    for thread in threads:
        thread.join()
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("former", ["nothing", "empty"])
def test_without_replace_a_folder_comes_where_nothing_is(tmp_path, former):
    out = tmp_path / "out"
    if former == "empty":
        out.mkdir()
    (tmp_path / ".out.0123.partial").mkdir()
    with atomic_folder(out, replace=False) as temporary:
        assert not (tmp_path / ".out.0123.partial").exists(), "what a killed process left stays"
        temporary.mkdir()
        (temporary / "new").touch()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert [path.name for path in out.iterdir()] == ["new"]


@pytest.mark.parametrize("former", ["file", "folder"])
def test_without_replace_what_is_there_stays(tmp_path, former):
    out = tmp_path / "out"
    precious = out if former == "file" else out / "precious"

    def write():
        with atomic_folder(out, replace=False) as temporary:
            temporary.mkdir()
            precious.parent.mkdir(exist_ok=True)
            precious.write_text("data")

    with pytest.raises(OSError, match=r"(?i)not empty|cannot be written"):
        write()
    assert precious.read_text() == "data"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_folder_that_another_process_is_writing_is_left_alone(tmp_path):
    out = tmp_path / "out"

    def write(*further):
        with atomic_folder(out, replace=False) as temporary:
            temporary.mkdir()
            (temporary / "first").touch()
            for step in further:
                step()
            (temporary / "second").touch()

    with pytest.raises(WriteError, match="something appeared there meanwhile; choose another name"):
        write(write)
    assert {path.name for path in out.iterdir()} == {"first", "second"}
    assert list(tmp_path.iterdir()) == [out]


def test_of_two_that_replace_a_folder_at_once_one_stays_whole(tmp_path, monkeypatch):
    out = tmp_path / "cube.zarr"
    rename, others = Path.rename, iter(["second", "third"])

    def write(name):
        with atomic_folder(out) as temporary:
            temporary.mkdir()
            (temporary / name).touch()

    def renamed(path, target):
        rename(path, target)
        if target.suffix == ".former" and (name := next(others, None)):
            write(name)

    write("old")
    monkeypatch.setattr(Path, "rename", renamed)
    write("first")
    assert [path.name for path in out.iterdir()] == ["first"]
    assert list(tmp_path.iterdir()) == [out]
