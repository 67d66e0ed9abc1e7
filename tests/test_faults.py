"""Whatever dies while a cluster builds, the finished cube has the same bytes.

Every test ends with the bytes of an undisturbed build in one process, with nothing embedded
twice that had a receipt, and without a leftover in the build's folder. What needs no dead
process runs on a cluster inside this one.
"""

import errno
import json
import os
import pickle
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import cloudpickle
import dask
import distributed.system  # distributed's settings must be there before some are set
import psutil
import pyarrow.parquet as pq
import pytest
import xarray as xr
from builds_helpers import FORK, FORKED, SEED, SOAK, assert_undisturbed, contents, run_build
from distributed import Client, KilledWorker, LocalCluster
from stub import StubEncoder, StubSpec
from workers import Broken, DiesOnce, KillsAt, WorkerSpec

from copcube.builds import build, connect, status
from copcube.builds.dask import closing_cluster, local_cluster
from copcube.builds.executors import DaskExecutor, KilledError
from copcube.builds.folder import BuildFolder
from copcube.builds.plan import BuildOptions, Plan
from copcube.builds.tasks import (
    AssembleTask,
    EmbedTask,
    run_combine_task,
    run_embed_task,
    run_write_task,
)
from copcube.cube import validate
from copcube.encoder import EncoderSpec
from copcube.errors import BuildError, OptionError, StorageError
from copcube.files.processors import available_processors
from copcube.images import geotiff, open_source
from copcube.images.sample import writing as sample
from copcube.images.webdataset import WebDatasetSource
from copcube.selection import Selection

TESTS = str(Path(__file__).parent)
KEYS = ["s5p_co", "s5p_no2", "s5p_o3"]
OPTIONS = {"modalities": KEYS, "threads": 1}


@pytest.fixture(scope="module", autouse=True)
def images(tmp_path_factory):
    """Twelve cells, each a partition of its own."""
    folder = tmp_path_factory.mktemp("images") / "images"
    sample.write_sample(folder, "geotiff", seed=5, cells=12, modalities=KEYS)
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
def cluster(workers=2, deaths=0):
    """A cluster of processes here whose scheduler gives a task up after some deaths."""
    settings = FORKED | {"distributed.scheduler.allowed-failures": deaths}
    with pytest.MonkeyPatch.context() as patch, dask.config.set(settings):
        patch.setattr("copcube.builds.dask._free_port", lambda wanted: 0)
        with local_cluster(workers, gpus=False) as client:
            yield client


@contextmanager
def threads(**options):
    """A cluster whose workers are threads of this process."""
    options = {"n_workers": 2, "threads_per_worker": 1} | options
    with (
        LocalCluster(processes=False, dashboard_address=":0", **options) as here,
        Client(here, set_as_default=False) as client,
    ):
        yield client


@pytest.fixture(scope="module")
def client():
    """Of a cluster of two workers in this process, which no test may leave changed."""
    with threads() as client:
        yield client


def embedded(out):
    """When each partition was embedded, by its name, as its receipt says."""
    receipts = Path(str(out).replace(".zarr", ".build"), "receipts", "embed")
    # Not the time of the file: a receipt may be renewed, such as when two jobs embed the same.
    return {
        path.stem: json.loads(path.read_bytes()).get("finished") for path in receipts.glob("*.json")
    }


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


@pytest.mark.slow
def test_workers_make_the_same_bytes(images, undisturbed, tmp_path, diary, client):
    spec = WorkerSpec(diary, seconds=0.002)
    report = build(images, tmp_path / "world.zarr", encoder=spec, client=client, **OPTIONS)
    assert_undisturbed(tmp_path / "world.zarr", undisturbed)
    assert report.finished
    assert report.quarantined == ()
    assert report.seconds["embedding"] >= report.seconds["encoding"] > 0
    assert len(spec.workers()) == 2
    assert str(status(tmp_path / "world.build")).startswith(
        f"{tmp_path}/world.build: done, 12 of 12 partitions done"
    )


@pytest.mark.slow
def test_workers_are_started_on_request(images, undisturbed, tmp_path, diary, monkeypatch):
    monkeypatch.setattr("copcube.builds.dask._free_port", lambda wanted: 0)
    spec = WorkerSpec(diary, seconds=0.01)
    # Workers that dask starts as it does by default are those of interrupts and of sensors.
    with dask.config.set(FORKED):
        build(images, tmp_path / "world.zarr", encoder=spec, workers=2, **OPTIONS)
    assert_undisturbed(tmp_path / "world.zarr", undisturbed)
    assert len(set(spec.noted("call"))) == 2
    assert os.getpid() not in spec.noted("call")
    assert sorted(spec.noted("load")) == sorted(set(spec.noted("load")))


@pytest.mark.slow
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


@pytest.mark.slow
def test_the_encoder_is_loaded_once_by_the_threads_of_a_worker(images, tmp_path, diary):
    spec = WorkerSpec(diary, seconds=0.01)
    with threads(n_workers=1, threads_per_worker=4) as client:
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
    options = BuildOptions.of(encoder=spec, dates="2019-01-01..2022-12-31", threads=8)
    embed = EmbedTask(f"{root}/w.zarr", 64 * "0", 3000, "p" * 99, sources[layout], options)
    rest = AssembleTask(f"{root}/w.zarr", 64 * "0", 64 * "1", 3210)
    functions = (run_embed_task, run_combine_task, run_write_task)
    for function, task in zip(functions, (embed, rest, rest), strict=True):
        assert len(cloudpickle.dumps((function, task))) < 10_000
        assert pickle.loads(pickle.dumps(task)) == task


def test_a_live_encoder_cannot_be_sent_to_workers(images, tmp_path):
    with pytest.raises(OptionError, match=r"workers need a small description.*found a StubEncoder"):
        build(images, tmp_path / "world.zarr", encoder=StubEncoder(), workers=1)


@pytest.mark.slow
def test_only_workers_with_a_gpu_embed(images, undisturbed, tmp_path, diary):
    from distributed import Scheduler, SpecCluster, Worker

    spec = WorkerSpec(diary)
    options = {"nthreads": 2}
    workers = {
        "gpu": {"cls": Worker, "options": {**options, "resources": {"GPU": 1}}},
        "cpu": {"cls": Worker, "options": options},
    }
    scheduler = {
        "cls": Scheduler,
        "options": {"protocol": "inproc://", "dashboard_address": ":0"},
    }
    with (
        SpecCluster(workers=workers, scheduler=scheduler) as two,
        Client(two, set_as_default=False) as client,
    ):
        build(images, tmp_path / "world.zarr", encoder=spec, client=client, **OPTIONS)
    assert {worker.partition("@")[0] for worker in spec.workers()} == {"gpu"}
    assert_undisturbed(tmp_path / "world.zarr", undisturbed)


@pytest.mark.slow
def test_workers_take_a_gpu_each(monkeypatch):
    """As many as are visible, by whatever names; each worker sees its own alone."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,GPU-8f2e")

    def look():
        names = ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "MKL_NUM_THREADS")
        return [os.environ[name] for name in names]

    monkeypatch.setattr("copcube.builds.dask._free_port", lambda wanted: 0)
    with local_cluster("auto") as client:
        threads = str(max(1, available_processors() // 2))
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
    source, options = open_source(images), BuildOptions.of(KEYS, encoder=StubSpec())
    task = EmbedTask(str(out), "", 1, source.partitions()[1].name, source.reader, options)
    plan.write_text(json.dumps(edited))
    with pytest.raises(BuildError, match=r"encoder_device is None here and 'cuda' in the plan"):
        run_embed_task(replace(task, plan=Plan(**edited).id))
    with pytest.raises(BuildError, match="the plan of this build was replaced"):
        run_embed_task(replace(task, plan=64 * "0"))


# Independent jobs.


@pytest.mark.slow
def test_jobs_that_share_nothing_but_the_folder(images, undisturbed, tmp_path):
    out = tmp_path / "world.zarr"
    options = {"encoder": StubSpec(0.002), "files": 1, **OPTIONS}
    jobs = [
        FORK.Process(target=run_build, args=(images, out), kwargs=options | {"partitions": which})
        for which in ("0-6", "3-9")
    ]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join(120)
    assert [job.exitcode for job in jobs] == [0, 0]
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


@pytest.mark.slow
def test_a_worker_that_dies_is_replaced(images, undisturbed, tmp_path, diary):
    spec = DiesOnce(diary)
    with cluster(deaths=3) as client:
        build(images, tmp_path / "world.zarr", encoder=spec, client=client, **OPTIONS)
    assert len(spec.noted("death")) == 1
    assert_undisturbed(tmp_path / "world.zarr", undisturbed)


@pytest.mark.slow
@pytest.mark.skipif(not SOAK, reason="make soak kills workers at random moments")
def test_workers_killed_at_random_moments(images, undisturbed, tmp_path, diary):
    out = tmp_path / "world.zarr"
    moments = random.Random(SEED)
    with cluster(deaths=100) as client:
        pids = list(client.run(os.getpid).values())
        server = psutil.Process(pids[0]).parent()
        finished = threading.Event()
        killed = []

        def kill():
            while not finished.wait(moments.uniform(0.1, 0.6)) and len(killed) < 4:
                victims = [p.pid for p in server.children() if p.pid not in killed]
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


def _places(images):
    """Name and place of every partition."""
    source = open_source(images)
    for partition in source.partitions():
        jobs = filter(callable, source.jobs(partition, Selection.of(["s5p_co"])))
        first = next(jobs)()[0]
        yield partition.name, (first.lon, first.lat)


@pytest.mark.slow
def test_only_guilty_partitions_are_left_out(images, undisturbed, tmp_path, diary, client):
    out = tmp_path / "world.zarr"
    found = list(_places(images))
    names, places = zip(*(found[i] for i in (0, 4, 7)), strict=True)
    spec = KillsAt(diary, places=places, really=False)
    report = build(images, out, encoder=spec, client=client, **OPTIONS)
    _assert_left_out(report, out, spec, names)
    deaths = len(spec.noted("death"))
    assert build(images, out, encoder=spec, client=client, **OPTIONS).quarantined == names
    assert len(spec.noted("death")) == deaths
    before = embedded(out)
    report = build(images, out, encoder=StubSpec(), retry_quarantined=True, **OPTIONS)
    assert report.quarantined == ()
    after = embedded(out)
    assert {name for name in before if before[name] != after[name]} == set(names)
    assert_undisturbed(out, undisturbed)


@pytest.mark.slow
def test_a_partition_that_kills_is_found_among_others(images, undisturbed, tmp_path, diary):
    """The scheduler blames all that were on the worker, as it gives tasks up at the first death."""
    out = tmp_path / "world.zarr"
    name, place = list(_places(images))[4]
    spec = KillsAt(diary, places=(place,))
    with cluster(deaths=0) as client:
        report = build(images, out, encoder=spec, client=client, **OPTIONS)
    _assert_left_out(report, out, spec, (name,))
    build(images, out, encoder=StubSpec(), retry_quarantined=True, **OPTIONS)
    assert_undisturbed(out, undisturbed)


def _assert_left_out(report, out, spec, names):
    """Hold a build and all that is said of it against the partitions that killed workers."""
    assert report.quarantined == names
    assert report.rejected["killer"] > 0
    assert len(spec.noted("death")) >= 3 * len(names)
    listed = pq.read_table(out.with_name("world.build") / "quarantine.parquet").to_pylist()
    assert {row["partition"] for row in listed if row["kind"] == "killer"} == set(names)
    assert validate(out) == []
    assert int((xr.open_zarr(out, chunks=None).n_images > 0).sum()) == 12 - len(names)
    assert xr.open_zarr(out).attrs["partitions_quarantined"] == len(names)
    reason = f"quarantined: {names[0]}: it killed its worker while it ran alone"
    assert reason in str(status(out))


class _Suspects:
    """Which tasks were run, in order, and how many at a time once all of them are suspects."""

    def __init__(self):
        self.lock, self.ran = threading.Lock(), []
        self.running = self.most = 0


_SUSPECTS = _Suspects()


def _suspect(task, advance=None):
    """Be blamed at first; three tasks are blamed once more, and one always."""
    with _SUSPECTS.lock:
        _SUSPECTS.ran.append(task)
        _SUSPECTS.running += 1
        if len(_SUSPECTS.ran) > 10:
            _SUSPECTS.most = max(_SUSPECTS.most, _SUSPECTS.running)
    time.sleep(0.01)
    with _SUSPECTS.lock:
        _SUSPECTS.running -= 1
        times = _SUSPECTS.ran.count(task)
    if task == 5 or times <= (2 if task < 3 else 1):
        raise KilledWorker("task", SimpleNamespace(address="nowhere"), 0)
    return {"value": task}


@pytest.mark.slow
def test_suspects_run_alone_and_the_innocent_go_on(client):
    outcomes = dict(DaskExecutor(client).map(_suspect, range(10)))
    assert sorted(_SUSPECTS.ran[:10]) == list(range(10))
    assert sorted(_SUSPECTS.ran[10:]) == [0, 0, 1, 1, 2, 2, 3, 4, 5, 5, 6, 7, 8, 9]
    assert _SUSPECTS.most == 1
    assert isinstance(outcomes.pop(5), KilledError)
    assert outcomes == {task: {"value": task} for task in range(10) if task != 5}


@pytest.mark.slow
def test_strict_builds_fail_where_a_partition_kills(images, tmp_path, diary, client):
    spec = KillsAt(diary, places=tuple(place for _, place in _places(images)), really=False)
    options = OPTIONS | {"partitions": "0", "strict": True}
    with pytest.raises(BuildError, match="killed its worker while it ran alone"):
        build(images, tmp_path / "w.zarr", encoder=spec, client=client, **options)


@pytest.mark.slow
def test_workers_join_and_leave(images, undisturbed, tmp_path, diary):
    """As under a batch system: a job ends when its time is up, and the next one begins."""
    out = tmp_path / "world.zarr"
    with threads(n_workers=1) as client:
        spec = WorkerSpec(diary, seconds=0.02)
        # A worker that has gone is asked for its results all the same, for as long as this.
        patience = dask.config.set({"distributed.comm.timeouts.connect": "1s"})

        def replace_the_oldest(number):
            (oldest,) = client.scheduler_info()["workers"]
            client.cluster.scale(number)
            client.wait_for_workers(2, timeout=60)
            client.retire_workers([oldest])

        steps = [(done, partial(replace_the_oldest, n)) for n, done in enumerate((1, 4, 7), 2)]
        with patience, meanwhile(out, *steps):
            report = build(images, out, encoder=spec, client=client, **OPTIONS)
    assert len(spec.workers()) > 2
    assert report.quarantined == ()
    assert_undisturbed(out, undisturbed)


@pytest.mark.slow
def test_no_worker_is_there_at_first(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr("copcube.builds.executors._SECONDS_BETWEEN_LOOKS", 0.1)
    with threads(n_workers=0) as client:
        outcomes = DaskExecutor(client).map(_echo, range(20))
        timer = threading.Timer(0.5, client.cluster.scale, (1,))
        timer.start()
        assert sorted(task for task, _ in outcomes) == list(range(20))
        timer.join()
    warnings = [record.message for record in caplog.records]
    assert warnings.count("the cluster has no workers; waiting for one to join") == 1


@pytest.mark.slow
@pytest.mark.skipif(not SOAK, reason="make soak gives workers a lifetime")
def test_workers_with_a_lifetime(images, undisturbed, tmp_path, diary, lone_scheduler):
    """As under a batch system: a job ends when its time is up, and the next one begins."""
    _, worker, file = lone_scheduler
    worker.kill()
    job = [sys.executable, "-m", "distributed.cli.dask_worker", "--scheduler-file", str(file)]
    job += ["--nthreads", "1", "--no-nanny", "--host", "127.0.0.1", "--no-dashboard"]
    job += ["--local-directory", str(tmp_path), "--lifetime-stagger", "1s", "--lifetime"]
    over, jobs = threading.Event(), []

    def queue():
        while not over.wait(0.1):
            if sum(job.poll() is None for job in jobs) < 2:
                # Ever longer, since a busy machine takes seconds to start one.
                jobs.append(_started([*job, f"{6 + len(jobs)}s"]))

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


@pytest.mark.slow
def test_a_driver_killed_with_its_workers_still_running(images, undisturbed, tmp_path):
    """Some of its workers' tasks end after the next driver has begun."""
    script = tmp_path / "driver.py"
    script.write_text(DRIVER)
    out = tmp_path / "world.zarr"
    moments = random.Random(SEED)
    known: dict[str, int] = {}
    for _ in range(3 if SOAK else 1):
        driver = subprocess.Popen([sys.executable, script, TESTS, images, out], cwd=tmp_path)
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
    _without_stragglers(tmp_path)
    build(images, out, encoder=StubSpec(), **OPTIONS)
    assert_undisturbed(out, undisturbed)


def test_workers_that_are_slow_to_end_do_not_hide_what_happened():
    class Slow:
        def close(self):
            raise TimeoutError

    with pytest.raises(KeyboardInterrupt), closing_cluster(Slow()):
        raise KeyboardInterrupt


@pytest.mark.slow
def test_an_interrupt_ends_a_cluster_cleanly(images, undisturbed, tmp_path):
    script = tmp_path / "driver.py"
    # Whoever runs the tests in the background has told this process to ignore interrupts.
    heeding = "import signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
    script.write_text(heeding + DRIVER.replace("0.01", "0.1"))
    out = tmp_path / "world.zarr"
    driver = subprocess.Popen(
        [sys.executable, script, TESTS, images, out],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    while len(embedded(out)) < 2 and driver.poll() is None:
        time.sleep(0.01)
    workers = [int(pid) for pid in _children(driver.pid) if _is_worker(int(pid))]
    assert workers
    # A terminal sends Ctrl-C to all processes in front of it.
    os.killpg(driver.pid, signal.SIGINT)
    _, errors = driver.communicate(timeout=60)
    assert driver.returncode != 0
    assert errors.endswith("KeyboardInterrupt\n")
    # The workers see nothing of it; dask may log what it was at.
    assert "Dask Worker process" not in errors
    assert errors.count("\nKeyboardInterrupt\n") == 1
    assert not any(_is_worker(pid) for pid in workers)
    before = embedded(out)
    build(images, out, encoder=StubSpec(), **OPTIONS)
    assert {name: embedded(out)[name] for name in before} == before
    assert_undisturbed(out, undisturbed)


def _without_stragglers(folder):
    """Wait until no worker is left of a killed driver that was started in a folder."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        orphans = [
            p.name
            for p in Path("/proc").iterdir()
            if p.name.isdecimal() and _is_orphan(int(p.name), folder)
        ]
        if not orphans:
            return
        time.sleep(0.1)
    raise AssertionError(f"workers {orphans} outlived their driver")


def _is_orphan(pid, folder):
    try:
        if not os.readlink(f"/proc/{pid}/cwd").startswith(str(folder)):
            return False
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


@pytest.mark.slow
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


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "s.json: No such file or directory; start a scheduler that writes it"),
        ("", "s.json: expected the JSON that `dask scheduler --scheduler-file` writes"),
        ("[]", "no address in it"),
    ],
)
def test_a_scheduler_file_that_nobody_writes(tmp_path, monkeypatch, text, message):
    monkeypatch.setattr("copcube.builds.dask._WRITTEN", 0)
    file = tmp_path / "s.json"
    if text is not None:
        file.write_text(text)
    with (
        dask.config.set({"distributed.comm.timeouts.connect": "50ms"}),
        pytest.raises(BuildError, match=message),
        connect(scheduler_file=str(file)),
    ):
        pass


@pytest.mark.slow
def test_no_scheduler_answers(tmp_path):
    with (
        dask.config.set({"distributed.comm.timeouts.connect": "1s"}),
        pytest.raises(BuildError, match="no dask scheduler answers there"),
        connect("tcp://127.0.0.1:9"),
    ):
        pass


# Disks and networks that fail.


@pytest.mark.slow
def test_a_full_disk_under_the_workers(images, undisturbed, tmp_path, diary, client, monkeypatch):
    out, full = tmp_path / "world.zarr", tmp_path / "full"
    spec = WorkerSpec(diary, seconds=0.02)
    fsync = os.fsync

    def failing(descriptor):
        if full.exists():
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", failing)
    with (
        meanwhile(out, (3, full.touch)),
        pytest.raises(StorageError, match="the disk is full; free some space"),
    ):
        build(images, out, encoder=spec, client=client, **OPTIONS)
    full.unlink()
    _wait_until_idle(client)
    before = embedded(out)
    assert 3 <= len(before) < 12
    build(images, out, encoder=spec, client=client, **OPTIONS)
    assert {name: embedded(out)[name] for name in before} == before
    assert_undisturbed(out, undisturbed)


def _wait_until_idle(client):
    """Wait until what was cancelled has ended, which threads cannot be made to."""
    deadline = time.monotonic() + 60
    while any(client.processing().values()) and time.monotonic() < deadline:
        time.sleep(0.02)


@pytest.mark.slow
@pytest.mark.parametrize("times", [2, 4])
def test_a_read_error_that_goes_away(images, undisturbed, tmp_path, monkeypatch, times):
    """Twice: the member is read again. Four times: the partition is tried again."""
    monkeypatch.setattr("copcube.embedding.partition.PAUSES", (0.0, 0.0))
    read, failures = geotiff._raw, []

    def flaky(path):
        if "NO2" in path and len(failures) < times:
            failures.append(path)
            raise OSError(5, "Input/output error")
        return read(path)

    monkeypatch.setattr(geotiff, "_raw", flaky)
    build(images, tmp_path / "world.zarr", encoder=StubEncoder(), **OPTIONS)
    assert len(failures) == times
    assert_undisturbed(tmp_path / "world.zarr", undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize("listed", [True, False])
def test_a_source_that_was_moved_loses_no_images(images, tmp_path, monkeypatch, listed):
    """As where a disk is unmounted: its images are not broken, and are read when it is back."""
    monkeypatch.setattr("copcube.embedding.partition.PAUSES", (0.0, 0.0))
    source, away, out = tmp_path / "images", tmp_path / "away", tmp_path / "world.zarr"
    shutil.copytree(images, source)
    if not listed:
        next(source.glob("fnames_*")).unlink()

    class Mover(StubEncoder):
        def __call__(self, *given):
            if len(self.calls) == 3:
                source.rename(away)
                source.mkdir()
            return super().__call__(*given)

    with pytest.raises(BuildError, match=r"FileNotFoundError: .*No such file"):
        build(source, out, encoder=Mover(), **OPTIONS)
    source.rmdir()
    away.rename(source)
    assert build(source, out, encoder=StubEncoder(), **OPTIONS).rejected == {}


@pytest.mark.slow
def test_lack_of_memory_fails_a_task_alone(images, tmp_path, monkeypatch):
    out = tmp_path / "world.zarr"
    partition = open_source(images).partitions()[5]
    read = geotiff._raw

    def failing(path):
        if path.endswith(partition.paths):
            raise MemoryError("no memory is left")
        return read(path)

    monkeypatch.setattr(geotiff, "_raw", failing)
    with pytest.raises(BuildError, match=rf"{partition.name}: MemoryError: .*\nFewer threads"):
        build(images, out, encoder=StubEncoder(), **OPTIONS)
    assert len(embedded(out)) == 11


@pytest.mark.slow
def test_a_read_error_that_stays(images, undisturbed, tmp_path, monkeypatch):
    out = tmp_path / "world.zarr"
    partition = open_source(images).partitions()[5]
    name = partition.name
    monkeypatch.setattr("copcube.embedding.partition.PAUSES", (0.0, 0.0))
    read = geotiff._raw

    def failing(path):
        if path.endswith(partition.paths):
            raise OSError(5, "Input/output error")
        return read(path)

    with monkeypatch.context() as patch:
        patch.setattr(geotiff, "_raw", failing)
        with pytest.raises(BuildError, match=rf"1 task of .*\n  {name}: OSError: .*Input/output"):
            build(images, out, encoder=StubEncoder(), **OPTIONS)
    assert len(embedded(out)) == 11
    text = str(status(tmp_path / "world.build"))
    assert "embedding, 11 of 12 partitions done" in text
    assert f"failed: {name}: OSError: [Errno 5] Input/output error (tried 3 times)" in text
    build(images, out, encoder=StubEncoder(), partitions=5, **OPTIONS)
    assert "failed" not in str(status(tmp_path / "world.build"))
    build(images, out, encoder=StubEncoder(), **OPTIONS)
    assert_undisturbed(out, undisturbed)


@pytest.mark.slow
def test_a_stage_in_which_everything_fails_is_given_up_early(images, tmp_path, diary, client):
    with pytest.raises(BuildError, match=r"10 tasks of .* failed:(.|\n)*no such kernel image"):
        build(images, tmp_path / "w.zarr", encoder=Broken(diary), client=client, **OPTIONS)


# Driving a cluster.


@pytest.mark.slow
def test_the_window_is_bounded(client):
    """Of a million tasks the scheduler knows a handful at a time."""
    seen = []
    for task, outcome in DaskExecutor(client).map(_echo, iter(range(100))):
        assert outcome == {"value": task}
        seen.append(len(client.cluster.scheduler.tasks))
    assert len(seen) == 100
    assert 2 <= max(seen) <= 20


def test_a_cluster_that_goes_away_is_no_endless_wait(tmp_path):
    with threads() as client:
        outcomes = DaskExecutor(client).map(_doze, range(100))
        next(outcomes)
        client.cluster.close()
        with pytest.raises(BuildError, match="connection to the scheduler is lost"):
            list(outcomes)


def test_what_is_left_is_cancelled_when_a_build_stops(client):
    outcomes = DaskExecutor(client).map(_doze, iter(range(1000)))
    next(outcomes)
    outcomes.close()
    deadline = time.monotonic() + 60
    while (known := _known(client)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not known


def _known(client):
    """Keys of dozing tasks that the scheduler knows."""
    return [key for key in client.cluster.scheduler.tasks if str(key).startswith("_doze")]


def _echo(task, advance=None):
    return {"value": task}


def _doze(task, advance=None):
    time.sleep(0.02)
    return {"value": task}
