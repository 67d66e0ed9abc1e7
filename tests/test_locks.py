"""Locks: one owner of a build at a time, on a file system and in an object store."""

import errno
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial, partialmethod
from pathlib import Path

import pytest
from distributed import Client, LocalCluster
from memory_bucket import memory_bucket
from sleepers import OPTIONS, STAGES, sleepers

from copcube.builds import build
from copcube.builds.executors import DaskExecutor
from copcube.builds.folder import BuildFolder
from copcube.builds.stages import Stage, run_stage
from copcube.cube import validate
from copcube.errors import BuildError, WriteError
from copcube.files import lock
from copcube.files.folders import LocalFolder, open_folder
from copcube.files.lock import PREFIX
from copcube.files.objects import ObjectFolder, listing
from copcube.files.objects.lockfiles import ObjectLockFiles
from copcube.files.processes import machine
from copcube.images.sample import writing as sample

TESTS = str(Path(__file__).parent)


@pytest.fixture(params=["local", "store"])
def folder(request, tmp_path):
    if request.param == "local":
        return LocalFolder(tmp_path / "world.build")
    return ObjectFolder(f"{request.getfixturevalue('memory')}/world.build")


def lock_files(folder):
    """All that is in an otherwise empty folder, hidden or not."""
    if isinstance(folder, LocalFolder):
        return sorted(os.listdir(folder._path))
    return [entry.name for entry in listing(folder._url)]


def write_lock_file(folder, **changes):
    """Lock file of an owner on another machine, which does not renew it."""
    about = {"host": "far", "machine": "other", "pid": 1, "token": "t"}
    folder.write(f"{PREFIX}t", json.dumps({**about, "successor": "", **changes}).encode())


def assert_refused(folder, match="another process is working on this build", **options):
    with pytest.raises(BuildError, match=match), folder.lock(**options):
        pytest.fail("it has two owners")


# Who owns a folder.


def test_one_owner_at_a_time(folder):
    with folder.lock():
        for shared in (False, True):
            who = rf"another process .*\(process {os.getpid()} on {socket.gethostname()}\)"
            assert_refused(folder, who, shared=shared)
        assert len(lock_files(folder)) == 1
        assert folder.names() == [], "the lock is none of the files of the build"
    assert lock_files(folder) == []
    with folder.lock():
        pass
    assert lock_files(folder) == []


def test_owners_that_share_are_many_and_keep_out_one_that_does_not(folder):
    with folder.lock(shared=True), folder.lock(shared=True):
        assert_refused(folder)
        with folder.lock(shared=True):
            assert len(lock_files(folder)) == 3
    with folder.lock():
        pass
    assert lock_files(folder) == []


def test_of_several_at_once_one_owns_it_at_a_time(folder):
    owners, most = 0, 0
    begin = threading.Barrier(6)

    def own(_):
        nonlocal owners, most
        begin.wait()
        try:
            with folder.lock():
                owners += 1
                most = max(most, owners)
                time.sleep(0.05)
                owners -= 1
        except BuildError:
            return False
        return True

    for _ in range(3):
        with ThreadPoolExecutor(6) as pool:
            won = list(pool.map(own, range(6)))
        assert sum(won) >= 1
        assert most == 1
        assert lock_files(folder) == []


def test_no_lock_of_the_operating_system_is_relied_on(tmp_path, monkeypatch):
    """Some shared file systems keep them on each machine, and always say yes."""
    monkeypatch.setattr("fcntl.flock", lambda descriptor, operation: None)
    monkeypatch.setattr("fcntl.lockf", lambda *arguments: None)
    with LocalFolder(tmp_path).lock():
        assert_refused(LocalFolder(tmp_path))


def test_hard_links_are_not_needed(tmp_path, monkeypatch):
    def refuse(*arguments, **options):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(os, "link", refuse)
    write_lock_file(LocalFolder(tmp_path))
    os.utime(tmp_path / f"{PREFIX}t", (0, 0))
    with LocalFolder(tmp_path).lock():
        assert_refused(LocalFolder(tmp_path))


# Who counts as dead.


@pytest.mark.parametrize("ended", ["reaped", "zombie"])
def test_the_lock_of_a_process_that_is_gone_is_free_at_once(folder, ended):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    os.waitid(os.P_PID, gone.pid, os.WEXITED | os.WNOWAIT)
    if ended == "reaped":
        gone.wait()
    write_lock_file(folder, machine=machine(), pid=gone.pid)
    with folder.lock():
        assert len(lock_files(folder)) == 1
    gone.wait()
    assert lock_files(folder) == []


def test_a_number_means_another_process_elsewhere(folder):
    """On another machine, or in another container on this one."""
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    write_lock_file(folder, machine="other", pid=gone.pid)
    assert_refused(folder, rf"\(process {gone.pid} on far\)")


def test_the_lock_of_an_earlier_process_of_this_number_is_free_at_once(folder):
    """As in a container that was started again."""
    write_lock_file(folder, machine=machine(), pid=os.getpid())
    with folder.lock():
        assert_refused(folder)


@pytest.mark.slow
def test_an_owner_that_does_not_renew_its_lock_dies_and_one_that_does_lives(folder):
    write_lock_file(folder)
    assert_refused(folder, "far", dead=0.8)
    time.sleep(0.9)
    with folder.lock(beat=0.05, dead=0.8):
        time.sleep(1.0)
        assert_refused(folder, beat=0.05, dead=0.8)


def test_another_one_that_is_refused_takes_the_empty_folder_from_nobody(tmp_path, monkeypatch):
    made, owned, refused = lock.make_folder, tmp_path / "world.build", iter([True, True])

    def taken(path):
        made(path)
        if next(refused, False):
            owned.rmdir()

    monkeypatch.setattr(lock, "make_folder", taken)
    with LocalFolder(owned).lock():
        assert len(os.listdir(owned)) == 1


def test_the_clock_of_this_machine_does_not_matter(folder, monkeypatch):
    with folder.lock():
        monkeypatch.setattr(time, "time", lambda: 4e9)
        assert_refused(folder)
    write_lock_file(folder)
    monkeypatch.setattr(time, "time", lambda: 0.0)
    time.sleep(0.3)
    with folder.lock(dead=0.2):
        pass


@pytest.mark.parametrize(
    "garbage", [b"", b"{", b"[]", b"null", b"\xff", b"{}", b'{"pid": "1", "machine": 7}']
)
def test_a_lock_file_that_cannot_be_read_counts_until_it_is_old(folder, garbage):
    folder.write(f"{PREFIX}x", garbage)
    assert_refused(folder, "on an unknown machine", dead=0.2)
    time.sleep(0.25)
    with folder.lock(dead=0.2):
        pass


# Takeovers.


def test_a_lock_file_of_the_future_is_old_when_it_is_said_to_be(tmp_path):
    """The clock was set back after its owner had died, so that its time comes in a year."""
    write_lock_file(LocalFolder(tmp_path))
    os.utime(tmp_path / f"{PREFIX}t", (time.time() + 3e7,) * 2)
    options = {"beat": 0.02, "dead": 0.1}
    assert_refused(LocalFolder(tmp_path), r"If it has died, start again in 0 s", **options)
    time.sleep(0.2)
    with LocalFolder(tmp_path).lock(**options):
        pass


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("finished", [False, True])
def test_a_sleeper_is_succeeded_and_finds_out(folder, shared, finished):
    """It renews its lock too late; the successor may have finished before."""
    who = rf"process {os.getpid()} on {socket.gethostname()} took over this build.*same command"
    with ExitStack() as successor:

        def sleep():
            with folder.lock(shared=shared, beat=60, dead=0.2) as sleeper:
                sleeper.prove()
                time.sleep(0.25)
                owner.append(successor.enter_context(folder.lock(beat=0.05, dead=0.2)))
                if finished:
                    successor.close()
                for _ in range(2):
                    with pytest.raises(BuildError, match=who):
                        sleeper.prove()

        owner = []
        with pytest.raises(BuildError, match=who):
            sleep()
        if not finished:
            owner[0].prove()
            assert_refused(folder)
    assert lock_files(folder) == []


def test_an_owner_that_sleeps_with_nobody_else_there_goes_on(folder):
    with folder.lock(beat=60, dead=0.1) as sleeper:
        time.sleep(0.2)
        sleeper.check()
        sleeper.prove()
    assert lock_files(folder) == []


def test_nothing_is_asked_while_nobody_can_have_taken_over(folder, monkeypatch):
    with folder.lock() as owner, monkeypatch.context() as patch:
        patch.setattr(lock.Lock, "prove", lambda self: pytest.fail("it asked"))
        owner.check()


def test_who_lost_it_stops_at_the_next_heartbeat(folder, caplog):

    def work():
        with folder.lock(beat=0.05) as owner:
            (name,) = lock_files(folder)
            said = json.loads(folder.read(name))
            folder.write(name, json.dumps(said | {"successor": "process 7 on far"}).encode())
            deadline = time.monotonic() + 20
            while not owner.lost and time.monotonic() < deadline:
                time.sleep(0.01)
            owner.check()
            pytest.fail("it went on")

    with pytest.raises(BuildError, match="far took over this"):
        work()
    assert "process 7 on far took over this build" in caplog.text


@pytest.mark.parametrize("beat", [0.01, 60])
def test_what_fails_because_of_a_takeover_says_so(folder, beat):
    """Whether or not the heartbeat has found out before."""

    def work():
        with folder.lock(beat=beat) as owner:
            for name in lock_files(folder):
                folder.remove(name)
            while beat < 1 and not owner.lost:
                time.sleep(0.01)
            folder.read("cells/00.arrow")

    with pytest.raises(BuildError, match="took over this build") as caught:
        work()
    assert isinstance(caught.value.__context__, FileNotFoundError)


def test_who_sleeps_until_its_work_ends_finds_out(folder):
    """No heartbeat comes between its waking and its end."""

    def sleep():
        with folder.lock(beat=60, dead=0.2):
            time.sleep(0.25)
            with folder.lock(dead=0.2):
                pass

    with pytest.raises(BuildError, match="took over this build"):
        sleep()
    assert lock_files(folder) == []


def test_an_owner_that_wakes_up_while_it_is_succeeded_stays(folder, monkeypatch):
    with folder.lock(beat=60, dead=0.2) as sleeper:
        time.sleep(0.25)
        files = type(sleeper._files)
        replace = files.replace

        def woken(self, name, data, version):
            monkeypatch.setattr(files, "replace", replace)
            sleeper.prove()
            return replace(self, name, data, version)

        monkeypatch.setattr(files, "replace", woken)
        assert_refused(folder, dead=0.2)
        sleeper.prove()


def test_a_disk_that_is_full_for_a_while_does_not_lose_the_lock(folder, caplog):
    with folder.lock(beat=0.02, dead=2.0) as owner:
        files, full = type(owner._files), threading.Event()
        renew = files.renew

        def failing(self, *arguments):
            full.set()
            raise WriteError(errno.ENOSPC, "the disk is full")

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(files, "renew", failing)
            full.wait(10)
            owner.check()
            with pytest.raises(WriteError, match="the disk is full"):
                owner.prove()
            assert_refused(folder, beat=0.02, dead=2.0)
        assert files.renew is renew
        owner.prove()
    assert "the lock of this build could not be renewed" in caplog.text
    assert lock_files(folder) == []


def test_a_lock_that_cannot_be_removed_is_named(folder, monkeypatch, caplog):
    def refuse(files, name):
        raise PermissionError(errno.EACCES, "no longer allowed")

    with monkeypatch.context() as patch, folder.lock():
        for kind in (lock.LocalLockFiles, ObjectLockFiles):
            patch.setattr(kind, "remove", refuse)
    assert "world.build: its lock could not be removed ([Errno 13] no longer" in caplog.text
    with folder.lock():  # which this machine knows to be nobody's
        pass


@pytest.mark.slow
def test_a_driver_stops_while_it_waits_for_its_workers(tmp_path, monkeypatch):
    """Also if none of them has anything to report."""
    monkeypatch.setattr("copcube.builds.executors._SECONDS_BETWEEN_LOOKS", 0.05)
    build_folder, hurry = BuildFolder(tmp_path / "world.zarr"), tmp_path / "hurry"

    def wait(task, advance=None):
        while not hurry.exists():
            time.sleep(0.01)

    def work():
        with build_folder.lock(beat=0.05):
            for file in Path(build_folder.path).iterdir():
                file.unlink()
            stage = Stage(build_folder, "waiting", "tasks", wait, [0], 1, 0)
            run_stage(DaskExecutor(client), stage)

    options = {"n_workers": 1, "threads_per_worker": 1, "processes": False}
    with LocalCluster(**options, dashboard_address=":0") as here, Client(here) as client:
        with pytest.raises(BuildError, match="took over this build"):
            work()
        hurry.touch()


# Two machines.

OWNER = """
import sys
from copcube.files.folders import open_folder
with open_folder(sys.argv[1]).lock(beat=0.2, dead=float(sys.argv[2])):
    print("owned", flush=True)
    sys.stdin.read()
"""


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("unshare"), reason="no unshare here")
@pytest.mark.parametrize("where", ["local", "bucket"])
def test_two_machines(where, request, tmp_path):
    """The other one has a name and process numbers of its own."""
    path, dead = tmp_path / "world.build", 2.0
    if where == "bucket":
        path, dead = f"{request.getfixturevalue('bucket')}/world.build", 4.0
    shell = f'hostname far && exec "{sys.executable}" -c "$0" "$@"'
    apart = ["unshare", "--uts", "--pid", "--fork", "--mount-proc", "--kill-child"]
    if subprocess.run([*apart, "true"], capture_output=True).returncode:
        pytest.skip("this user may not make namespaces")
    command = [*apart, "sh", "-c", shell, OWNER, str(path), str(dead)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes) as other:
        assert other.stdout.readline() == "owned\n"
        assert_refused(open_folder(path), "process [1-9] on far", dead=dead)
        other.kill()
        other.wait()
        assert_refused(open_folder(path), "process [1-9] on far", dead=dead)
        time.sleep(dead + (0.1 if where == "local" else 1.1))  # a bucket counts whole seconds
        with open_folder(path).lock(dead=dead):
            pass


# Builds.


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    path = tmp_path_factory.mktemp("images") / "images"
    sample.write_sample(path, "geotiff", seed=5, cells=2, modalities=OPTIONS["modalities"])
    return path


def files_of(url):
    """Bytes of all files of a finished cube and of its rows."""
    tops = open_folder(url), open_folder(url.replace(".zarr", ".build/rows"))
    return {(i, name): top.read(name) for i, top in enumerate(tops) for name in top.names()}


def succeed(images, root, stages):
    """Take over from the drivers that stopped at these stages, and finish their cubes."""
    finished = {}
    for stage in stages:
        assert build(images, f"{root}/{stage}.zarr", **OPTIONS).finished
        finished[stage] = files_of(f"{root}/{stage}.zarr")
        assert finished[stage]
    return finished


def assert_stopped(images, root, said, finished):
    """All drivers ended with a message, and every byte is as their successor left it."""
    who = f"process {os.getpid()} on {socket.gethostname()} took over this build"
    for stage, files in finished.items():
        assert said[stage].startswith("BuildError: "), (stage, said[stage])
        assert who in said[stage], (stage, said[stage])
        assert "the same command continues from there" in said[stage]
        assert files_of(f"{root}/{stage}.zarr") == files, stage
        assert files == next(iter(finished.values()))
        assert build(images, f"{root}/{stage}.zarr", **OPTIONS).finished
        assert files_of(f"{root}/{stage}.zarr") == files, stage


@pytest.mark.slow
@pytest.mark.parametrize(
    ("where", "stages"),
    [("local", [s for s in STAGES if s != "copying"]), ("bucket", ["copying"])],
)
def test_a_driver_that_was_stopped_leaves_the_cube_of_its_successor(
    where, stages, request, images, tmp_path, monkeypatch
):
    """Whatever it is about to do when it goes on."""
    root, dead, more = str(tmp_path), 0.8, 0.1
    if where == "bucket":
        root, dead, more = request.getfixturevalue("bucket"), 2.0, 1.1  # it counts whole seconds
    monkeypatch.setattr(BuildFolder, "lock", partialmethod(BuildFolder.lock, beat=0.1, dead=dead))
    command = [sys.executable, f"{TESTS}/sleepers.py", images, root, str(dead), *stages]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as sleeping:
        _, status = os.waitpid(sleeping.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status), "it should have stopped itself"
        time.sleep(dead + more)
        finished = succeed(images, root, stages)
        sleeping.send_signal(signal.SIGCONT)
        said = json.load(sleeping.stdout)
    assert_stopped(images, root, said, finished)


# zarr's warning is silenced for a moment where a cube is finished, which threads upset.
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Consolidated metadata")
def test_a_driver_without_heartbeat_leaves_the_cube_of_its_successor(images):
    """The same in a bucket, at all stages: whoever is cut off from it looks as if stopped."""
    asleep, woken = threading.Event(), threading.Event()

    def sleep():
        asleep.set()
        woken.wait(60)

    with (
        memory_bucket() as root,
        sleepers(images, root, list(STAGES), sleep, beat=60, dead=0.3) as end,
    ):
        assert asleep.wait(60), end()
        time.sleep(0.4)
        finished = succeed(images, root, STAGES)
        woken.set()
        assert_stopped(images, root, end(), finished)


REPLACING = {
    "clearing": (BuildFolder, "clear"),
    "publishing": (BuildFolder, "publish"),
    "removing": (ObjectFolder, "remove"),
    "renaming": (os, "rename"),
}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Consolidated metadata")
@pytest.mark.parametrize(
    ("where", "stage"),
    [
        ("local", "clearing"),
        ("local", "publishing"),
        ("local", "renaming"),
        ("bucket", "clearing"),
        ("bucket", "publishing"),
        ("bucket", "removing"),
    ],
)
def test_a_driver_that_sleeps_while_it_replaces_a_cube(images, tmp_path, where, stage):
    """Also between taking the old cube away and giving the new one its name."""
    asleep, woken, said = threading.Event(), threading.Event(), []
    owner, name = REPLACING[stage]
    function = getattr(owner, name)
    options = OPTIONS | {"overwrite": True, "balance": "image"}

    def sleep():
        if threading.current_thread().name == "sleeper" and not asleep.is_set():
            asleep.set()
            woken.wait(60)

    def before(*arguments, **more):
        sleep()
        return function(*arguments, **more)

    def after(*arguments, **more):
        result = function(*arguments, **more)
        if getattr(arguments[0], "_url", str(arguments[0])).endswith("world.zarr"):
            sleep()
        return result

    def drive(out):
        try:
            build(images, out, **options)
        except BuildError as error:
            said.append(str(error))

    with ExitStack() as stack:
        root = str(tmp_path) if where == "local" else stack.enter_context(memory_bucket())
        out = f"{root}/world.zarr"
        build(images, out, **OPTIONS)
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        lock = BuildFolder.lock
        patch.setattr(BuildFolder, "lock", partialmethod(lock, beat=60, dead=0.3))
        patch.setattr(owner, name, before if owner is BuildFolder else after)
        sleeper = threading.Thread(target=drive, args=(out,), name="sleeper", daemon=True)
        sleeper.start()
        assert asleep.wait(60), said
        time.sleep(0.4)
        assert build(images, out, **options).finished
        finished = files_of(out)
        woken.set()
        sleeper.join(60)
        assert said, "the sleeper should have failed"
        assert "took over this build" in said[0]
        assert files_of(out) == finished
        assert validate(out) == []


@pytest.mark.slow
def test_what_another_process_has_published_meanwhile_stays(bucket):
    mine, theirs = ObjectFolder(f"{bucket}/w.build/cube.zarr"), ObjectFolder(f"{bucket}/w.zarr")
    mine.write("zarr.json", b"mine")
    theirs.write("zarr.json", b"theirs")
    with pytest.raises(BuildError, match="another process wrote a cube there meanwhile"):
        mine.copy_to(f"{bucket}/w.zarr", last="zarr.json")
    assert theirs.read("zarr.json") == b"theirs"


def test_only_an_owner_publishes_and_removes(tmp_path):
    build_folder = BuildFolder(tmp_path / "world.zarr")
    publish = partial(build_folder.publish, None, "work", overwrite=True)
    for action in (publish, build_folder.sweep, build_folder.prepare):
        with pytest.raises(AssertionError, match="only the owner"):
            action()
