"""pipelines/: what its scripts do, what its settings say, and that its page agrees with both."""

import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
import yaml
from builds_helpers import contents

from copcube.cli import main
from copcube.hub.published import published
from copcube.images.sample import writing as sample

ROOT = Path(__file__).resolve().parents[1]
PIPELINES = ROOT / "pipelines"
sys.path.append(str(PIPELINES))
import cost  # noqa: E402
import world  # noqa: E402

README = (PIPELINES / "README.md").read_text("utf-8")
KEYS = ("s5p_co", "s5p_no2")
SOME = ["--subset", "--modalities", ",".join(KEYS)]
# In bfloat16 vectors depend on the number of threads, of which jobs have their own.
SOME += ["--dtype", "float32"]

SBATCH = """#!/bin/bash
script=$(mktemp) && cp "${@: -1}" "$script"
setsid bash "$script" >>jobs.log 2>&1 </dev/null &
echo "Submitted batch job $!"
"""


@pytest.fixture(scope="module")
def pretrain(tmp_path_factory):
    """Pattern of three shards, in the two published folders."""
    folder = tmp_path_factory.mktemp("pretrain")
    sample.write_sample(
        folder / "s", "webdataset", cells=3, dates=2, modalities=KEYS, cells_per_shard=1
    )
    for i, number in enumerate((0, 1, 2256)):
        shard = folder / published("shards", str(number))[0].path
        shard.parent.mkdir(exist_ok=True)
        (folder / "s" / f"example-{i:06d}.tar").rename(shard)
    (folder / "s").rmdir()
    return f"{folder}/*/example-*.tar"


@pytest.fixture(scope="module")
def options(tmp_path_factory):
    """Options by which some images are embedded, by a small encoder."""
    torch = pytest.importorskip("torch")
    from copcube.encoder.weights import untrained_weights

    folder = tmp_path_factory.mktemp("weights")
    drawn = untrained_weights(0, embed_dim=64, depth=1, heads=1)
    torch.save(drawn.model.state_dict(), folder / "weights.pth")
    torch.save(drawn.language, folder / "language.pt")
    return [*SOME, "--weights", f"{folder}/weights.pth", "--language", f"{folder}/language.pt"]


@pytest.fixture(scope="module")
def whole(pretrain, options, tmp_path_factory):
    """The cube of one run over all shards."""
    out = tmp_path_factory.mktemp("whole") / "world.zarr"
    assert world.main([pretrain, str(out), *options]) == 0
    return out


def cells_of(path):
    """The cells of a cube that have images; all others would take 3 GB of NaN."""
    ds = xr.open_zarr(path)[["embedding", "spread", "n_images"]]
    lat, lon = (xr.DataArray(i, dims="cell") for i in np.nonzero(ds.n_images.values))
    return ds.isel(lat=lat, lon=lon).load()


@pytest.mark.slow
def test_runs_over_some_shards_each_make_the_cube_of_one_run(pretrain, options, whole, tmp_path):
    out = tmp_path / "world.zarr"
    for shards in ("1-2300", "0-99"):
        assert world.main([pretrain, str(out), "--shards", shards, *options]) == 0
        assert not out.exists()
    assert world.main([pretrain, str(out), *options]) == 0
    assert contents(out) == contents(whole)
    assert int((xr.open_zarr(out, chunks=None).n_images > 0).sum()) == 3


def test_shards_keep_their_published_numbers(pretrain):
    """Also where some are missing, and though the folder of the last sorts before the first."""
    assert world.partitions(pretrain, "0-2255", True) == ["0-1"]
    assert world.partitions(pretrain, "1-2256", True) == ["1-2"]
    assert world.partitions(pretrain, None, True) == []


@pytest.mark.slow
def test_the_whole_world_is_known(tmp_path):
    for shard in published("shards", "0-3210"):
        (tmp_path / shard.path).parent.mkdir(exist_ok=True)
        (tmp_path / shard.path).touch()
    source = f"{tmp_path}/*/example-*.tar"
    assert world.partitions(source, None, False) == []
    assert world.partitions(source, "3200-3210", False) == ["3200-3210"]
    assert world.partitions(source, "0-99", False) == ["0-99"]
    assert world.partitions(source, "2200-2299", False) == ["2200-2299"]


def test_a_world_with_holes_is_refused(pretrain, tmp_path, capsys):
    out = str(tmp_path / "world.zarr")
    assert world.main([pretrain, out]) == 1
    assert "of 3211 shards 3208 are missing: example-000002.tar, " in capsys.readouterr().err
    assert world.main([pretrain, out, "--subset", "--shards", "7"]) == 1
    assert "holds none of shards 7" in capsys.readouterr().err
    stranger = Path(pretrain).parents[1] / "more" / "example-000000.tar"
    stranger.parent.mkdir()
    try:
        stranger.write_bytes(b"")
        assert world.main([pretrain, out, "--subset"]) == 1
        assert "example-000000.tar is there twice, or is no published" in capsys.readouterr().err
    finally:
        stranger.unlink()
        stranger.parent.rmdir()
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("script", sorted(PIPELINES.rglob("*.py")), ids=lambda path: path.name)
def test_scripts_say_how_they_are_used(script):
    done = subprocess.run(
        [sys.executable, "-W", "error", script, "--help"], capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    assert f"python pipelines/{script.name}" in done.stdout


@pytest.mark.parametrize(
    ("task", "arguments"),
    [
        (None, ""),
        ("0", " --shards 0-99"),
        ("31", " --shards 3100-3199"),
        ("32", " --shards 3200-3210"),
    ],
)
def test_tasks_of_an_array_share_the_shards(tmp_path, task, arguments):
    script = PIPELINES / "slurm" / "world.sbatch"
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/bash\necho "$HF_HUB_OFFLINE" "$@"\n')
    python.chmod(0o755)
    environment = os.environ | {"SLURM_CPUS_PER_TASK": "6"}
    environment |= {"SLURM_ARRAY_TASK_ID": task} if task else {}
    subprocess.run(["bash", "-n", script], check=True)
    done = subprocess.run(
        ["bash", script, "pretrain/*/example-*.tar", "world.zarr"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    given = f"pretrain/*/example-*.tar world.zarr{arguments} --device cuda --threads 6"
    assert done.stdout == f"1 pipelines/world.py {given}\n"
    directives = re.findall(r"^#SBATCH (--\S+)", script.read_text(), re.M)
    assert {"--gres=gpu:1", "--cpus-per-task=8", "--time=12:00:00"} <= set(directives)


def test_the_page_submits_an_array_and_a_job_that_waits_for_it(tmp_path):
    (block,) = re.findall(r"^```sh\n(submit.*?)^```", README, re.M | re.S)
    (tmp_path / "sbatch").write_text('#!/bin/bash\necho "$@" >>calls\necho "77;cluster"\n')
    (tmp_path / "sbatch").chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    subprocess.run(["bash", "-e", "-c", block], cwd=tmp_path, env=environment, check=True)
    first, last = (tmp_path / "calls").read_text().splitlines()
    script = " pipelines/slurm/world.sbatch pretrain/*/example-*.tar world.zarr"
    assert first.endswith(f" --array=0-32{script}")
    assert last.endswith(f" --dependency=afterany:77{script}")


@pytest.mark.slow
def test_jobs_of_slurm_make_the_cube_of_one_run(pretrain, options, whole, tmp_path):
    """With a stand-in for SLURM that starts every job on this machine at once."""
    pytest.importorskip("dask_jobqueue", reason="dask-jobqueue is not installed")
    for name, text in (("sbatch", SBATCH), ("scancel", '#!/bin/bash\nkill -- "-$1"\n')):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    out = tmp_path / "world.zarr"
    done = subprocess.run(
        [sys.executable, PIPELINES / "world.py", pretrain, out, *options, "--slurm-jobs", "1"],
        cwd=tmp_path,
        env=os.environ | {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"},
        capture_output=True,
        text=True,
    )
    log = (tmp_path / "jobs.log").read_text()
    assert done.returncode == 0, f"{done.stderr}\n{log}"
    xr.testing.assert_allclose(cells_of(out), cells_of(whole), atol=1e-5)
    script, command = done.stderr.split("dashboard: ")[0].rstrip().rsplit("\n", 1)
    directives = {line.removeprefix("#SBATCH ") for line in script.splitlines()}
    assert {"-J copcube", "--cpus-per-task=8", "--mem=30G", "-t 12:00:00"} <= directives
    assert {"--gres=gpu:1", "export HF_HUB_OFFLINE=1"} <= directives
    for option in ("--nthreads 8", "--resources GPU=1", "--lifetime 690m", "--death-timeout 60"):
        assert option in command
    assert "tcp://" in command


def test_kubernetes_gives_each_worker_a_gpu_and_the_driver_their_scheduler():
    folder = PIPELINES / "kubernetes"
    cluster = yaml.safe_load((folder / "cluster.yaml").read_text("utf-8"))
    assert (cluster["apiVersion"], cluster["kind"]) == ("kubernetes.dask.org/v1", "DaskCluster")
    name = cluster["metadata"]["name"]
    scheduler, worker = cluster["spec"]["scheduler"], cluster["spec"]["worker"]
    (schedules,), (works,) = (part["spec"]["containers"] for part in (scheduler, worker))
    service = scheduler["service"]
    assert service["selector"] == {
        "dask.org/cluster-name": name,
        "dask.org/component": "scheduler",
    }
    ports = {port["name"]: port["containerPort"] for port in schedules["ports"]}
    assert ports == {port["name"]: port["port"] for port in service["ports"]}
    assert {port["targetPort"] for port in service["ports"]} == set(ports)
    assert "--resources=GPU=1" in works["args"]
    assert works["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert "nvidia.com/gpu" not in schedules["resources"]["limits"]

    job = yaml.safe_load((folder / "world.yaml").read_text("utf-8"))
    (driver,) = job["spec"]["template"]["spec"]["containers"]
    assert f"--scheduler=tcp://{name}-scheduler:{ports['tcp-comm']}" in driver["command"]
    assert driver["image"] == works["image"] == schedules["image"]
    assert driver["envFrom"] == works["envFrom"]
    assert "--from-literal=AWS_ACCESS_KEY_ID" in README
    assert driver["envFrom"][0]["secretRef"]["name"] in README
    assert job["spec"]["template"]["spec"]["restartPolicy"] == "Never"


def test_the_image_is_made_of_what_is_here():
    recipe = (PIPELINES / "kubernetes" / "Dockerfile").read_text("utf-8")
    for line in re.findall(r"^COPY (.+) \S+$", recipe, re.M):
        assert all((ROOT / name).exists() for name in line.split()), line
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    (wanted,) = re.findall(r"pip install .*'\.\[(.+)\]'", recipe)
    assert set(wanted.split(",")) <= extras["optional-dependencies"].keys()


def test_the_arithmetic():
    """A published shard is about 5 GB; a base model of 197 tokens takes about 35 GFLOP."""
    volume = sum(cost.stored(modality) for modality in cost.MODALITIES.values())
    assert 12.9e12 < volume < 13.1e12
    assert abs(cost.flop(cost.MODALITIES["s1_grd"]) / 35e9 - 1) < 0.01
    assert cost.COUNTS.keys() == cost.MODALITIES.keys()
    assert sum(images for _, images in cost.COUNTS.values()) == 18_713_054


def test_the_page_shows_what_cost_prints():
    assert cost.report() in README


def test_the_page_names_what_is_there(capsys):
    for path in re.findall(r"pipelines/[\w/.]+\.\w+", README):
        assert (ROOT / path).exists(), path
    for program, words in ((main, ["build", "--help"]), (world.main, ["--help"])):
        with pytest.raises(SystemExit):
            program(words)
    text = capsys.readouterr().out
    commands = " ".join(re.findall(r"(?:copcube build|world\.\w+)[^\n]*(?:\\\n[^\n]*)*", README))
    for option in re.findall(r"(?<![\w-])--[a-z-]+", commands):
        assert option in text, option


@pytest.mark.slow
def test_the_rehearsal_runs(options, tmp_path, monkeypatch):
    """With images of two modalities, since those of all take most of a minute, and a small encoder.

    That its weights are untrained, as the page says, is nothing else to the scripts. Commands run
    in this process, which saves what starting Python costs for each.
    """
    (block,) = re.findall(r"^```bash\n(.*?)^```", README, re.M | re.S)
    commands = re.compile(r"^(copcube sample|python pipelines/world\.py) .*", re.M)
    block, number = commands.subn(rf"\g<0> --modalities {','.join(KEYS)}", block)
    assert number == 2
    block, number = re.subn("--weights untrained:0", shlex.join(options[-4:]), block)
    assert number == 1
    monkeypatch.chdir(tmp_path)
    for line in block.splitlines():
        match shlex.split(line):
            case ["copcube", *words]:
                assert main(words) == 0, line
            case ["python", "pipelines/world.py", *words]:
                assert world.main(words) == 0, line
            case _:
                pytest.fail(f"no command of copcube: {line}")
    assert (tmp_path / "small.zarr").exists()
