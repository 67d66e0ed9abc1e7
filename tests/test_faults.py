"""Whatever dies while a cluster builds, the finished cube has the same bytes.

Every test ends with the bytes of an undisturbed build in one process, with nothing embedded
twice that had a receipt, and without a leftover in the build's folder.
"""

import json
import os
import pickle
import random
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import cloudpickle
import dask
import distributed.system  # distributed's settings must be there before some are set
import pyarrow.parquet as pq
import pytest
import xarray as xr
from builds_helpers import assert_undisturbed, contents
from stub import StubEncoder, StubSpec
from workers import DiesOnce, KillsAt, WorkerSpec

from copcube.builds import build, connect, status
from copcube.builds.dask import local_cluster
from copcube.builds.executors import Cluster, Here
from copcube.builds.folder import BuildFolder
from copcube.builds.plan import Plan
from copcube.builds.tasks import AssembleTask, EmbedTask, combine_unit, embed_unit, write_unit
from copcube.cube import validate
from copcube.encoder import EncoderSpec
from copcube.errors import BuildError, OptionError, StorageError
from copcube.images import geotiff, open_source
from copcube.images.sample import writing as sample
from copcube.images.webdataset import WebDatasetSource
from copcube.selection import Selection

pytestmark = pytest.mark.slow

TESTS = str(Path(__file__).parent)
KEYS = ["s5p_co", "s5p_no2", "s5p_o3"]
OPTIONS = {"modalities": KEYS, "threads": 1}
SEED = int(os.environ.get("COPCUBE_FAULTS_SEED", "0"))
"""Another seed, other moments of death."""


@pytest.fixture(scope="module", autouse=True)
def images(tmp_path_factory):
    """Twelve cells, each a partition of its own."""
    folder = tmp_path_factory.mktemp("images") / "images"
    sample.write_sample(folder, "geotiff", seed=5, cells=12)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(geotiff, "_IMAGES_PER_PARTITION", 1)
        assert len(open_source(folder).partitions()) == 12
        yield folder


@pytest.fixture(scope="module")
def undisturbed(images, tmp_path_factory):
    """A build that nobody disturbed, in this process."""
    out = tmp_path_factory.mktemp("undisturbed") / "world.zarr"
    build(images, out, encoder=StubEncoder(), **OPTIONS)
    assert validate(out) == []
    return out


@pytest.fixture
def diary(tmp_path):
    folder = tmp_path / "diary"
    folder.mkdir()
    return str(folder)


@contextmanager
def cluster(workers=2, deaths=1):
    """A cluster of processes here whose scheduler gives a task up after some deaths."""
    with (
        dask.config.set({"distributed.scheduler.allowed-failures": deaths}),
        local_cluster(workers, gpus=False) as client,
    ):
        yield client


def embedded(out):
    """When each partition's rows were last signed for, by its name."""
    receipts = Path(str(out).replace(".zarr", ".build"), "receipts", "embed")
    return {path.stem: path.stat().st_mtime_ns for path in receipts.glob("*.json")}


@contextmanager
def meanwhile(out, *steps):
    """Do something each time that so many partitions are done, while the body runs."""
    over = threading.Event()

    def act():
        for number, action in steps:
            while len(embedded(out)) < number:
                if over.wait(0.01):
                    return
            action()

    thread = threading.Thread(target=act)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


# What a cluster makes.


def test_workers_make_the_same_bytes(images, undisturbed, tmp_path, diary):
    spec = WorkerSpec(diary)
    with cluster() as client:
        report = build(images, tmp_path / "world.zarr", encoder=spec, client=client, **OPTIONS)
    assert_undisturbed(tmp_path / "world.zarr", undisturbed)
    assert report.finished
    assert report.quarantined == ()
    assert report.seconds["embedding"] >= report.seconds["encoding"] > 0
    assert len(set(spec.noted("call"))) == 2
    assert os.getpid() not in spec.noted("call")
    assert sorted(spec.noted("load")) == sorted(set(spec.noted("load")))
    assert str(status(tmp_path / "world.build")).startswith(
        f"{tmp_path}/world.build: done, 12 of 12 partitions done"
    )


@pytest.mark.parametrize("streams", [1, 2])
def test_two_partitions_at_a_time_keep_a_gpu_busy(images, undisturbed, tmp_path, streams):
    class Watching(StubEncoder):
        most = 0

        def __call__(self, modality, pixels, metadata):
            running = list((tmp_path / "world.build" / "running").glob("*.json"))
            self.most = max(self.most, len(running))
            return super().__call__(modality, pixels, metadata)

    encoder = Watching(seconds=0.005)
    encoder.streams = streams
    build(images, tmp_path / "world.zarr", encoder=encoder, **OPTIONS)
    assert encoder.most == streams
    assert_undisturbed(tmp_path / "world.zarr", undisturbed)


def test_workers_are_started_on_request(images, undisturbed, tmp_path):
    build(images, tmp_path / "world.zarr", encoder=StubSpec(), workers=1, **OPTIONS)
    assert_undisturbed(tmp_path / "world.zarr", undisturbed)


def test_the_encoder_is_loaded_once_by_the_threads_of_a_worker(images, tmp_path, diary):
    from distributed import Client, LocalCluster

    spec = WorkerSpec(diary, seconds=0.01)
    with (
        LocalCluster(
            n_workers=1, threads_per_worker=4, dashboard_address=":0", host="127.0.0.1"
        ) as four,
        Client(four) as client,
    ):
        build(images, tmp_path / "world.zarr", encoder=spec, client=client, **OPTIONS)
    assert len(spec.noted("load")) == 1


@pytest.mark.parametrize("layout", ["webdataset", "geotiff"])
def test_a_task_is_small(layout):
    """Of the whole world, with the longest names there may be."""
    root = f"/{'a' * 200}/pretrain"
    names = tuple(f"{root}/ssl4eo_s_220k_aligned/example-{i:06d}.tar" for i in range(3211))
    sources = {
        "webdataset": WebDatasetSource(root, names).reader,
        "geotiff": geotiff.GeoTiffSource(root, f"{root}/fnames_union_310k.json.gz").reader,
    }
    spec = EncoderSpec(weights=f"/{'w' * 200}")
    embed = EmbedTask(f"{root}/w.zarr", 64 * "0", 3000, "p" * 99, sources[layout], spec, 8, False)
    rest = AssembleTask(f"{root}/w.zarr", 64 * "0", 64 * "1", 3210)
    for function, task in ((embed_unit, embed), (combine_unit, rest), (write_unit, rest)):
        assert len(cloudpickle.dumps((function, task))) < 10_000
        assert pickle.loads(pickle.dumps(task)) == task


def test_a_live_encoder_cannot_be_sent_to_workers(images, tmp_path):
    with pytest.raises(OptionError, match=r"must be a small description.*found a StubEncoder"):
        build(images, tmp_path / "world.zarr", encoder=StubEncoder(), workers=1)


def test_only_workers_with_a_gpu_embed(images, undisturbed, tmp_path, diary):
    from distributed import Client, Nanny, Scheduler, SpecCluster

    spec = WorkerSpec(diary)
    options = {"nthreads": 2, "host": "127.0.0.1"}
    workers = {
        0: {"cls": Nanny, "options": {**options, "resources": {"GPU": 1}}},
        1: {"cls": Nanny, "options": options},
    }
    scheduler = {"cls": Scheduler, "options": {"host": "127.0.0.1", "dashboard_address": ":0"}}
    with SpecCluster(workers=workers, scheduler=scheduler) as two, Client(two) as client:
        gpu = client.run(os.getpid, workers=[two.workers[0].worker_address])
        build(images, tmp_path / "world.zarr", encoder=spec, client=client, **OPTIONS)
    assert set(spec.noted("call")) == set(gpu.values())
    assert_undisturbed(tmp_path / "world.zarr", undisturbed)


def test_workers_take_a_gpu_each(monkeypatch):
    """As many as are visible, by whatever names; each worker sees its own alone."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,GPU-8f2e")

    def look():
        names = ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "MKL_NUM_THREADS")
        return [os.environ[name] for name in names]

    with local_cluster("auto") as client:
        threads = str(max(1, len(os.sched_getaffinity(0)) // 2))
        assert sorted(client.run(look).values()) == [
            ["3", threads, threads],
            ["GPU-8f2e", threads, threads],
        ]
        workers = client.scheduler_info()["workers"].values()
        assert [worker["resources"] for worker in workers] == [{"GPU": 1}, {"GPU": 1}]
        assert [worker["nthreads"] for worker in workers] == [2, 2]
        assert sum(w["memory_limit"] for w in workers) > 0.9 * distributed.system.MEMORY_LIMIT
    with pytest.raises(OptionError, match="3 workers for 2 GPUs"), local_cluster(3):
        pass


def test_a_worker_with_another_encoder_is_refused(images, tmp_path):
    out = tmp_path / "world.zarr"
    build(images, out, encoder=StubSpec(), partitions="0", **OPTIONS)
    plan = tmp_path / "world.build" / "plan.json"
    edited = json.loads(plan.read_text())
    edited["encoder"]["encoder_device"] = "cuda"
    task = EmbedTask(
        str(out), "", 1, open_source(images).partitions()[1].name,
        open_source(images).reader, StubSpec(), 1, False,
    )  # fmt: skip
    plan.write_text(json.dumps(edited))
    with pytest.raises(BuildError, match=r"encoder_device is None here and 'cuda' in the plan"):
        embed_unit(EmbedTask(**{**vars(task), "plan": Plan(**edited).id}))
    with pytest.raises(BuildError, match="the plan of this build was replaced"):
        embed_unit(EmbedTask(**{**vars(task), "plan": 64 * "0"}))


# Independent jobs.


def test_jobs_that_share_nothing_but_the_folder(images, undisturbed, tmp_path):
    out = tmp_path / "world.zarr"
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from stub import StubSpec\nfrom copcube.builds import build\n"
        "from copcube.images import geotiff\ngeotiff._IMAGES_PER_PARTITION = 1\n"
        "report = build(sys.argv[2], sys.argv[3], encoder=StubSpec(0.002), modalities=KEYS,\n"
        "               threads=1, partitions=sys.argv[4])\n"
        "assert not report.finished\n"
    ).replace("KEYS", repr(KEYS))
    jobs = [
        subprocess.Popen([sys.executable, "-c", code, TESTS, str(images), str(out), which])
        for which in ("0-4", "5-9", "3-7")
    ]
    assert [job.wait(120) for job in jobs] == [0, 0, 0]
    assert not out.exists()
    assert len(embedded(out)) == 10
    before = embedded(out)
    report = build(images, out, encoder=StubSpec(), **OPTIONS)
    assert report.resumed == 10
    assert {name: embedded(out)[name] for name in before} == before
    assert_undisturbed(out, undisturbed)


@pytest.mark.parametrize("which", ["12", "3-12", "x", "3-", "-3", "5-4", "²"])
def test_partitions_that_are_not_there(images, tmp_path, which):
    with pytest.raises(OptionError, match="partitions '"):
        build(images, tmp_path / "w.zarr", encoder=StubEncoder(), partitions=which, **OPTIONS)


def test_jobs_keep_out_a_driver_of_the_whole(images, tmp_path):
    with (
        BuildFolder(tmp_path / "w.zarr").lock(shared=True),
        pytest.raises(BuildError, match="another process is working on this build"),
    ):
        build(images, tmp_path / "w.zarr", encoder=StubEncoder(), **OPTIONS)
    with (
        BuildFolder(tmp_path / "w.zarr").lock(),
        pytest.raises(BuildError, match="another process is working on this build"),
    ):
        build(images, tmp_path / "w.zarr", encoder=StubEncoder(), partitions="0", **OPTIONS)


# Workers that die.


def test_a_worker_that_dies_is_replaced(images, undisturbed, tmp_path, diary):
    spec = DiesOnce(diary)
    with cluster(deaths=3) as client:
        build(images, tmp_path / "world.zarr", encoder=spec, client=client, **OPTIONS)
    assert len(spec.noted("death")) == 1
    assert_undisturbed(tmp_path / "world.zarr", undisturbed)


def test_workers_killed_at_random_moments(images, undisturbed, tmp_path, diary):
    out = tmp_path / "world.zarr"
    moments = random.Random(SEED)
    with cluster(deaths=100) as client:
        pids = list(client.run(os.getpid).values())
        finished = threading.Event()
        killed = []

        def kill():
            while not finished.wait(moments.uniform(0.1, 0.6)) and len(killed) < 4:
                alive = [int(p) for p in _children(os.getpid()) if int(p) not in killed]
                victims = [pid for pid in alive if _is_worker(pid)]
                if victims:
                    killed.append(moments.choice(victims))
                    os.kill(killed[-1], signal.SIGKILL)

        thread = threading.Thread(target=kill)
        thread.start()
        try:
            spec = WorkerSpec(diary, seconds=0.02)
            report = build(images, out, encoder=spec, client=client, **OPTIONS)
        finally:
            finished.set()
            thread.join()
    assert killed
    assert set(killed) & set(pids)
    assert report.quarantined == ()
    assert_undisturbed(out, undisturbed)


def _children(pid):
    """Processes that the threads of a process have started."""
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        with suppress(OSError):
            found += (task / "children").read_text().split()
    return found


def _is_worker(pid):
    try:
        return b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


@pytest.mark.parametrize("guilty", [(0,), (4, 7)])
def test_only_the_guilty_partition_is_quarantined(images, undisturbed, tmp_path, diary, guilty):
    out = tmp_path / "world.zarr"
    source = open_source(images)
    there = []
    for partition in source.partitions():
        jobs = filter(callable, source.jobs(partition, Selection.of(["s5p_co"])))
        first = next(jobs)()[0]
        there.append((partition.name, (first.lon, first.lat)))
    spec = KillsAt(diary, places=tuple(there[i][1] for i in guilty))
    names = tuple(there[i][0] for i in guilty)
    with cluster() as client:
        report = build(images, out, encoder=spec, client=client, **OPTIONS)
        assert report.quarantined == names
        assert len(spec.noted("death")) >= 2 * len(guilty)
        listed = pq.read_table(tmp_path / "world.build" / "quarantine.parquet").to_pylist()
        assert {row["partition"] for row in listed if row["kind"] == "killer"} == set(names)
        assert validate(out) == []
        assert int((xr.open_zarr(out).n_images > 0).sum()) == 12 - len(guilty)
        assert xr.open_zarr(out).attrs["partitions_quarantined"] == len(guilty)
        assert f"quarantined: {names[0]}: it killed its worker while it ran alone" in str(
            status(out)
        )
        deaths = len(spec.noted("death"))
        assert build(images, out, encoder=spec, client=client, **OPTIONS).quarantined == names
        assert len(spec.noted("death")) == deaths
    before = embedded(out)
    report = build(images, out, encoder=StubSpec(), retry_quarantined=True, **OPTIONS)
    assert report.quarantined == ()
    after = embedded(out)
    assert {name for name in before if before[name] != after[name]} == set(names)
    assert_undisturbed(out, undisturbed)


def test_strict_builds_fail_where_a_partition_kills(images, tmp_path, diary):
    spec = DiesOnce(diary, times=10**6)
    with (
        cluster(workers=1, deaths=0) as client,
        pytest.raises(BuildError, match="killed its worker while it ran alone"),
    ):
        build(
            images, tmp_path / "w.zarr", encoder=spec, client=client, strict=True,
            partitions="0", **OPTIONS,
        )  # fmt: skip


def test_workers_join_and_leave(images, undisturbed, tmp_path, diary):
    out = tmp_path / "world.zarr"
    with cluster(workers=1) as client:
        first = client.cluster.workers[0].worker_address
        spec = WorkerSpec(diary, seconds=0.1)
        joining = [sys.executable, "-m", "distributed.cli.dask_worker", "--no-dashboard"]
        joining += ["--nthreads", "1", "--host", "127.0.0.1", client.scheduler.address]
        newcomers = []

        def leave():
            client.wait_for_workers(2, timeout=60)
            client.retire_workers([first])

        with meanwhile(out, (1, lambda: newcomers.append(_started(joining))), (2, leave)):
            build(images, out, encoder=spec, client=client, **OPTIONS)
        for newcomer in newcomers:
            newcomer.terminate()
            newcomer.wait()
    assert len(set(spec.noted("call"))) == 2
    assert_undisturbed(out, undisturbed)


def test_workers_with_a_lifetime(images, undisturbed, tmp_path, diary, lone_scheduler):
    """As under a batch system: a job ends when its time is up, and the next one begins."""
    _, worker, file = lone_scheduler
    worker.kill()
    job = [sys.executable, "-m", "distributed.cli.dask_worker", "--scheduler-file", str(file)]
    job += ["--nthreads", "1", "--no-nanny", "--host", "127.0.0.1", "--no-dashboard"]
    job += ["--local-directory", str(tmp_path), "--lifetime", "6s", "--lifetime-stagger", "1s"]
    over, jobs = threading.Event(), []

    def queue():
        while not over.wait(0.1):
            if sum(job.poll() is None for job in jobs) < 2:
                jobs.append(_started(job))

    thread = threading.Thread(target=queue)
    spec = WorkerSpec(diary, seconds=0.3)
    with connect(scheduler_file=str(file)) as client:
        thread.start()
        try:
            report = build(images, tmp_path / "w.zarr", encoder=spec, client=client, **OPTIONS)
        finally:
            over.set()
            thread.join()
            for process in jobs:
                process.kill()
                process.wait()
    assert len(jobs) > 2
    assert report.quarantined == ()
    assert contents(tmp_path / "w.zarr") == contents(undisturbed)


# Drivers and schedulers that die.

DRIVER = """
import sys; sys.path.insert(0, sys.argv[1])
if __name__ == "__main__":
    from stub import StubSpec
    from copcube.builds import build
    from copcube.images import geotiff
    geotiff._IMAGES_PER_PARTITION = 1
    build(sys.argv[2], sys.argv[3], encoder=StubSpec(0.01), modalities=KEYS, threads=1, workers=2)
""".replace("KEYS", repr(KEYS))


def test_a_driver_killed_with_its_workers_still_running(images, undisturbed, tmp_path):
    """Some of its workers' tasks end after the next driver has begun."""
    script = tmp_path / "driver.py"
    script.write_text(DRIVER)
    out = tmp_path / "world.zarr"
    moments = random.Random(SEED)
    known: dict[str, int] = {}
    for _ in range(3):
        driver = subprocess.Popen([sys.executable, script, TESTS, images, out])
        wanted = len(embedded(out)) + moments.randint(1, 3)
        while len(embedded(out)) < min(wanted, 12) and driver.poll() is None:
            time.sleep(0.01)
        driver.kill()
        driver.wait()
        assert not out.exists()
        assert {name: embedded(out)[name] for name in known} == known
        known = embedded(out)
    assert known
    build(images, out, encoder=StubSpec(), **OPTIONS)
    _without_stragglers()
    build(images, out, encoder=StubSpec(), **OPTIONS)
    assert_undisturbed(out, undisturbed)


def test_an_interrupt_ends_a_cluster_cleanly(images, undisturbed, tmp_path):
    script = tmp_path / "driver.py"
    script.write_text(DRIVER.replace("0.01", "0.2"))
    out = tmp_path / "world.zarr"
    driver = subprocess.Popen(
        [sys.executable, script, TESTS, images, out], stderr=subprocess.PIPE, text=True
    )
    while len(embedded(out)) < 2 and driver.poll() is None:
        time.sleep(0.01)
    workers = [int(pid) for pid in _children(driver.pid) if _is_worker(int(pid))]
    assert workers
    driver.send_signal(signal.SIGINT)
    _, errors = driver.communicate(timeout=60)
    assert driver.returncode != 0
    assert "KeyboardInterrupt" in errors
    assert not any(_is_worker(pid) for pid in workers)
    before = embedded(out)
    build(images, out, encoder=StubSpec(), **OPTIONS)
    assert {name: embedded(out)[name] for name in before} == before
    assert_undisturbed(out, undisturbed)


def _without_stragglers():
    """Wait until no worker of a killed driver is left."""
    deadline = time.monotonic() + 60
    mine = set(_children(os.getpid()))
    while time.monotonic() < deadline:
        orphans = [
            p.name
            for p in Path("/proc").iterdir()
            if p.name.isdecimal() and p.name not in mine and _is_orphan(int(p.name))
        ]
        if not orphans:
            return
        time.sleep(0.1)
    raise AssertionError(f"workers {orphans} outlived their driver")


def _is_orphan(pid):
    try:
        parent = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1]
        return parent == "1" and _is_worker(pid)
    except OSError:
        return False


def _started(command):
    """A process, without output, that can import what stands beside this file."""
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return subprocess.Popen(command, env=os.environ | {"PYTHONPATH": TESTS}, **quiet)


@pytest.fixture
def lone_scheduler(tmp_path):
    """A scheduler and a worker in processes of their own, by a scheduler file."""
    file = tmp_path / "scheduler.json"
    where = ["--scheduler-file", str(file), "--host", "127.0.0.1", "--no-dashboard"]
    scheduler = _started(
        [sys.executable, "-m", "distributed.cli.dask_scheduler", "--port", "0", *where]
    )
    options = ["--nthreads", "1", "--no-nanny", "--local-directory", str(tmp_path)]
    worker = _started([sys.executable, "-m", "distributed.cli.dask_worker", *where, *options])
    deadline = time.monotonic() + 60
    while not file.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    yield scheduler, worker, file
    for process in (worker, scheduler):
        process.kill()
        process.wait()


def test_a_scheduler_that_is_stopped(images, undisturbed, tmp_path, lone_scheduler, diary):
    scheduler, _, file = lone_scheduler
    out = tmp_path / "world.zarr"
    with (
        meanwhile(out, (3, scheduler.kill)),
        dask.config.set({"distributed.comm.timeouts.connect": "3s"}),
        connect(scheduler_file=str(file)) as client,
        pytest.raises(BuildError, match=r"connection to the scheduler is lost.*same command"),
    ):
        build(images, out, encoder=WorkerSpec(diary, seconds=0.05), client=client, **OPTIONS)
    before = embedded(out)
    assert len(before) >= 3
    report = build(images, out, encoder=StubSpec(), **OPTIONS)
    assert report.resumed >= 3
    assert_undisturbed(out, undisturbed)


def test_no_scheduler_answers(tmp_path):
    with (
        dask.config.set({"distributed.comm.timeouts.connect": "1s"}),
        pytest.raises(BuildError, match="no dask scheduler answers there"),
        connect("tcp://127.0.0.1:9"),
    ):
        pass


# Disks and networks that fail.


def _fill_disk(full):
    """Make a process's disk full as long as a file is there."""
    import errno
    import os

    fsync = os.fsync

    def failing(descriptor):
        if os.path.exists(full):
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(descriptor)

    os.fsync = failing


def test_a_full_disk_under_the_workers(images, undisturbed, tmp_path, diary):
    out, full = tmp_path / "world.zarr", tmp_path / "full"
    spec = WorkerSpec(diary, seconds=0.02)
    with cluster() as client:
        client.run(_fill_disk, str(full))
        with (
            meanwhile(out, (3, full.touch)),
            pytest.raises(StorageError, match="the disk is full; free some space"),
        ):
            build(images, out, encoder=spec, client=client, **OPTIONS)
        full.unlink()
        before = embedded(out)
        build(images, out, encoder=spec, client=client, **OPTIONS)
    assert {name: embedded(out)[name] for name in before} == before
    assert_undisturbed(out, undisturbed)


@pytest.mark.parametrize("times", [2, 4])
def test_a_read_error_that_goes_away(images, undisturbed, tmp_path, monkeypatch, times):
    """Twice: the member is read again. Four times: the partition is tried again."""
    monkeypatch.setattr("copcube.embedding.partition.PAUSES", (0.0, 0.0))
    read, failures = geotiff._bounded, []

    def flaky(handle, limit):
        if "NO2" in handle.name and len(failures) < times:
            failures.append(handle.name)
            raise OSError(5, "Input/output error")
        return read(handle, limit)

    monkeypatch.setattr(geotiff, "_bounded", flaky)
    build(images, tmp_path / "world.zarr", encoder=StubEncoder(), **OPTIONS)
    assert len(failures) == times
    assert_undisturbed(tmp_path / "world.zarr", undisturbed)


def test_a_read_error_that_stays(images, undisturbed, tmp_path, monkeypatch):
    out = tmp_path / "world.zarr"
    partition = open_source(images).partitions()[5]
    name = partition.name
    monkeypatch.setattr("copcube.embedding.partition.PAUSES", (0.0, 0.0))
    read = geotiff._bounded

    def failing(handle, limit):
        if handle.name.endswith(partition.paths):
            raise OSError(5, "Input/output error")
        return read(handle, limit)

    with monkeypatch.context() as patch:
        patch.setattr(geotiff, "_bounded", failing)
        with pytest.raises(BuildError, match=rf"1 units .*\n  {name}: OSError: .*Input/output"):
            build(images, out, encoder=StubEncoder(), **OPTIONS)
    assert len(embedded(out)) == 11
    text = str(status(tmp_path / "world.build"))
    assert "embedding, 11 of 12 partitions done" in text
    assert f"failed: {name}: OSError: [Errno 5] Input/output error (tried 3 times)" in text
    build(images, out, encoder=StubEncoder(), **OPTIONS)
    assert_undisturbed(out, undisturbed)


def test_a_stage_in_which_everything_fails_is_given_up_early(images, tmp_path, diary):
    class Failing(WorkerSpec):
        def misbehave(self, metadata):
            super().misbehave(metadata)
            raise RuntimeError("no such kernel image")

    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    try:
        with (
            cluster(workers=1) as client,
            pytest.raises(BuildError, match=r"10 units .* failed:(.|\n)*no such kernel image"),
        ):
            build(images, tmp_path / "w.zarr", encoder=Failing(diary), client=client, **OPTIONS)
    finally:
        cloudpickle.unregister_pickle_by_value(sys.modules[__name__])


# Orders and clocks.


class Shuffled(Here):
    """Does units in any order, and some of them twice."""

    def __init__(self, seed):
        self.random = random.Random(seed)

    def run(self, function, tasks, *, advance=lambda units: None, embeds=False):
        tasks = list(tasks)
        self.random.shuffle(tasks)
        for task in tasks:
            for _ in range(self.random.randint(0, 1)):
                function(task, lambda units: None)
            yield from super().run(function, [task], advance=advance, embeds=embeds)


def test_orders_and_clocks_do_not_matter(images, undisturbed, tmp_path, monkeypatch):
    clock = random.Random(SEED)
    monkeypatch.setattr(time, "time", lambda: clock.uniform(0, 4e9))
    monkeypatch.setattr("copcube.builds.dask.Here", lambda: Shuffled(SEED))
    out = tmp_path / "world.zarr"
    build(images, out, encoder=StubEncoder(), partitions="4-9", **OPTIONS)
    for path in (tmp_path / "world.build").rglob("*.json"):
        os.utime(path, (0, clock.randint(0, 2**31)))
    build(images, out, encoder=StubEncoder(), **OPTIONS)
    assert_undisturbed(out, undisturbed)


def test_the_window_is_bounded():
    """Of a million tasks the scheduler knows a handful at a time."""
    with cluster(workers=2) as client:
        seen = []

        for task, outcome in Cluster(client).run(_echo, iter(range(300))):
            assert outcome == {"value": task}
            seen.append(client.run_on_scheduler(lambda dask_scheduler: len(dask_scheduler.tasks)))
        assert len(seen) == 300
        assert 2 <= max(seen) <= 20


def _echo(task, advance=None):
    return {"value": task}
