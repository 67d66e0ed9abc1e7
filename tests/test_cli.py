"""The command line: what each command says, writes and returns."""

import errno
import io
import os
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
import xarray as xr
from builds_helpers import run_code
from stub import StubEncoder

import copcube
import copcube.encoder
from copcube.cli import main, parser
from copcube.cli.common import columns, table
from copcube.images.sample.writing import write_sample


@pytest.fixture(scope="session")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli") / "images"
    write_sample(folder, "geotiff", cells=2, modalities=["s2_toa", "s5p_co", "dem"])
    return folder


@pytest.fixture
def stubbed(monkeypatch, no_encoders):
    """The command line with a stub in place of the model."""
    monkeypatch.setattr(copcube.encoder.EncoderSpec, "load", lambda self: StubEncoder())


@pytest.fixture(scope="session")
def built(images, tmp_path_factory):
    """Folder of a cube and its build, made once; tests get copies, which they may change."""
    folder = tmp_path_factory.mktemp("built")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(copcube.encoder.EncoderSpec, "load", lambda self: StubEncoder())
        assert main(["build", str(images), str(folder / "world.zarr"), "--quiet"]) == 0
    return folder


@pytest.fixture
def world(built, stubbed, tmp_path):
    shutil.copytree(built, tmp_path, dirs_exist_ok=True)
    return tmp_path / "world.zarr"


@pytest.fixture(scope="session")
def part(built, tmp_path_factory):
    """The region of the cube around both cells, of 48 chunks instead of 544; nothing changes it."""
    path = tmp_path_factory.mktemp("part") / "part.zarr"
    ds = xr.open_zarr(built / "world.zarr").isel(lat=slice(90, 450), lon=slice(495, 765))
    ds.drop_encoding().to_zarr(path, consolidated=False)
    return path


COMMANDS = ["sample", "fetch", "build", "aggregate", "status", "demo", "info", "validate"]
COMMANDS += ["reduce", "merge", "export", "convert", "compare"]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_shows_an_example(command, capsys):
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    assert f"example:\n  copcube {command}" in shown


def test_examples_of_the_help_can_be_parsed():
    import shlex

    whole = parser()
    for action in whole._subparsers._group_actions:
        for command in action.choices.values():
            for line in command.epilog.splitlines()[1:]:
                assert whole.parse_args(shlex.split(line.strip())[1:]).run


def test_wrong_usage_is_code_2(capsys):
    for argv in ([], ["nonsense"], ["build", "only-one"], ["build", "a", "b", "--threads", "0"]):
        with pytest.raises(SystemExit) as stop:
            main(argv)
        assert stop.value.code == 2
    assert "positive whole number" in capsys.readouterr().err


@pytest.mark.slow
def test_a_terminal_that_lacks_letters(part, tmp_path, monkeypatch):
    """Such as a log in Latin letters: a healthy map was called damaged for a ×."""
    shown = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", shown)
    assert main(["export", str(part), str(tmp_path / "map.npz"), "--quiet"]) == 0
    shown.flush()
    assert b"2 cells \\xd7 8 float32" in shown.buffer.getvalue()


class NoRoom(io.StringIO):
    """An output that takes nothing."""

    def __init__(self, error):
        super().__init__()
        self.error = error

    def write(self, text):
        raise self.error


@pytest.mark.slow
def test_whoever_reads_the_output_may_go_away(part, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdout", NoRoom(BrokenPipeError(errno.EPIPE, "Broken pipe")))
    assert main(["compare", str(part), str(part)]) == 141
    said = capsys.readouterr().err.splitlines()
    assert all("UNTRAINED encoder" in line for line in said)  # of the cube, and nothing else


@pytest.mark.slow
def test_a_full_disk_under_the_output_is_no_damage(part, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdout", NoRoom(OSError(errno.ENOSPC, "No space left on device")))
    assert main(["compare", str(part), str(part)]) == 1
    assert "the output cannot be written: No space left" in (said := capsys.readouterr().err)
    assert "damaged" not in said


@pytest.mark.slow
def test_an_output_that_is_closed(part, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    assert main(["export", str(part), str(tmp_path / "map.npz")]) == 0
    sys.stdout.close()
    sys.stderr.close()


@pytest.mark.slow
def test_sample_build_info_validate(images, stubbed, tmp_path, capsys):
    out = tmp_path / "world.zarr"
    assert main(["build", str(images), str(out)]) == 0
    said = capsys.readouterr().err
    assert f"{out} is done" in said
    assert "s2_toa:" in said
    assert main(["info", str(out)]) == 0
    table = capsys.readouterr().out
    for word in ("stub", "2, 0.00% of the globe", "s2_toa", "NO: the numbers mean nothing"):
        assert word in table
    assert main(["validate", str(out)]) == 0
    assert "a valid embedding cube" in capsys.readouterr().out


@pytest.mark.slow
def test_info_shows_reductions_in_every_form(tmp_path, capsys, monkeypatch):
    rng = np.random.default_rng(0)
    cube = xr.Dataset(
        {"embedding": (("lat", "lon", "dim"), rng.normal(size=(40, 40, 6)).astype("f4"))},
        {"lat": np.arange(50, 40, -0.25), "lon": np.arange(0, 10, 0.25)},
        attrs={"encoder": "stub", "encoder_trained": 0, "source": "images of ours"},
    )
    fields = cube.copembed.reduce(k=2, whiten=True)
    fields.to_zarr(tmp_path / "fields.zarr", consolidated=False)
    fields.copembed.to_npz(tmp_path / "fields.npz")
    fields.copembed.to_netcdf(tmp_path / "fields.nc")
    shares = ", ".join(f"{share:.2%}" for share in fields.explained_variance_ratio.values)
    for name in ("fields.zarr", "fields.npz", "fields.nc"):
        capsys.readouterr()
        with monkeypatch.context() as patch:
            if name == "fields.npz":
                # Backends of all packages are not imported; some crash beside each other.
                patch.delattr("xarray.backends.plugins.list_engines")
            assert main(["info", str(tmp_path / name)]) == 0
        shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
        for words in (
            "2, which explain",
            f"explained variance {shares}",
            "axes of vectors of length 6, fitted to 1,600 cells, weighted by area, whitened",
            "cells 1,600, 0.",
            "encoder trained NO: the numbers mean nothing",
            "source images of ours",
        ):
            assert words in shown
    # A part that users save keeps the attributes of the cube.
    counted = cube.assign(n_images=(("lat", "lon"), np.ones((40, 40), "i4")))
    kept = counted.assign_coords(dim=np.arange(6), crs=0).assign_attrs(copcube_schema=1)
    for name, part in (("part", cube), ("kept", kept)):
        path = tmp_path / f"{name}.zarr"
        part.to_zarr(path, zarr_format=3, consolidated=False)
        assert main(["info", str(path)]) == 0
        shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
        assert "40 × 40 × 6 (lat, lon, dim)" in shown
        # Whom to cite is known of a copy, too.
        assert "encoder stub, NOT TRAINED" in shown
        assert "source images of ours" in shown
        assert "encoder trained" not in shown


def test_a_sample_of_some_modalities(tmp_path, capsys):
    out = tmp_path / "images"
    assert main(["sample", str(out), "--cells", "1", "--modalities", "s5p_co,dem"]) == 0
    folders = {path.relative_to(out).parts[0] for path in out.rglob("*.tif")}
    assert folders == {"s5p_l3_wgs", "dem_grid_wgs"}


@pytest.mark.slow
def test_quiet_says_nothing(images, stubbed, tmp_path, capsys):
    assert main(["build", str(images), str(tmp_path / "w.zarr"), "--quiet"]) == 0
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""


@pytest.mark.slow
def test_validate_tells_what_is_wrong(world, capsys):
    chunk = next((world / "embedding").glob("c.*"))
    chunk.unlink()
    assert main(["validate", str(world)]) == 1
    name = chunk.relative_to(world).as_posix()
    assert f"{name}: missing; embedding of cells of lat " in capsys.readouterr().out


@pytest.mark.slow
def test_validate_proves_the_rows_beside_a_cube_too(world, capsys):
    rows = next((world.with_name("world.build") / "rows").glob("*.parquet"))
    rows.write_bytes(rows.read_bytes()[:-1])
    assert main(["validate", str(world)]) == 1
    assert f"{rows}: missing, or not the rows that this build wrote" in capsys.readouterr().out


@pytest.mark.slow
def test_dry_run_writes_nothing(images, stubbed, tmp_path, capsys):
    assert main(["build", str(images), str(tmp_path / "w.zarr"), "--dry-run"]) == 0
    assert list(tmp_path.iterdir()) == []
    said = capsys.readouterr().out
    assert "partitions" in said
    assert "images/s" in said
    assert "time: about" in said


@pytest.mark.slow
def test_aggregate(world, tmp_path):
    rows = tmp_path / "world.build" / "rows"
    out = tmp_path / "months.zarr"
    assert main(["aggregate", str(rows), str(out), "--by", "month", "--dates", "2021"]) == 0
    assert xr.open_zarr(out).sizes["month"] == 12


@pytest.mark.slow
def test_other_options_are_refused_and_overwrite_helps(images, world, stubbed, capsys):
    again = ["build", str(images), str(world), "--balance", "image"]
    assert main(again) == 1
    assert "options.balance: was modality, now image. Give the same" in capsys.readouterr().err
    assert main([*again, "--overwrite"]) == 0


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["build", "nowhere", "w.zarr"], "nowhere: no such file or folder"),
        (["build", "{images}", "w.zarr", "--modalities", "s2"], "did you mean 's2_toa'"),
        (["build", "{images}", "w.zarr", "--dates", "soon"], "'soon' is not a date"),
        (["aggregate", "nowhere", "w.zarr"], "no parquet files found"),
        (["info", "nowhere"], "expected an embedding cube"),
        (["sample", "{images}"], "images"),
        (["fetch", "shards", "5000"], "5000"),
        (["reduce", "{images}", "f.zarr"], "expected an embedding cube"),
        (["compare", "{images}"], "takes two cubes"),
        (["convert", "nowhere.npz", "w.zarr"], "nowhere.npz"),
        (["merge", "nowhere.nc", "e.nc", "b.nc"], "nowhere.nc: no such file"),
        (["reduce", "{images}", "f.tif"], "f.tif: expected .zarr or .nc"),
    ],
)
def test_errors_are_one_message_and_code_1(
    images, stubbed, tmp_path, argv, message, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    assert main([word.format(images=images) for word in argv]) == 1
    said = capsys.readouterr().err
    assert message in said
    assert "Traceback" not in said


@pytest.fixture(scope="session")
def statics(tmp_path_factory):
    """A field of ERA5 around both cells; nothing changes it."""
    path = tmp_path_factory.mktemp("statics") / "era5.nc"
    lat, lon = 90 - 0.25 * np.arange(80, 460), 0.25 * np.arange(480, 780)
    z = (("latitude", "longitude"), np.ones((380, 300), "float32"))
    xr.Dataset({"z": z}, {"latitude": lat, "longitude": lon}).to_netcdf(path)
    return path


@pytest.mark.slow
def test_reduce_merge_export(part, statics, tmp_path, capsys):
    fields, both = tmp_path / "fields.zarr", tmp_path / "both.nc"
    assert main(["reduce", str(part), str(fields), "--k", "1"]) == 0
    assert "1 components explain 100.0 % of variance" in capsys.readouterr().err
    assert main(["reduce", str(part), str(tmp_path / "AGAIN.NC"), "--basis", str(fields)]) == 0
    one, other = xr.open_zarr(fields), xr.open_dataset(tmp_path / "AGAIN.NC", engine="netcdf4")
    np.testing.assert_array_equal(one.pc, other.pc.transpose(*one.pc.dims))
    assert main(["merge", str(fields), str(statics), str(both), "--fill", "0", "--mask"]) == 0
    merged = xr.open_dataset(both)
    assert {"z", "pc", "embedding_mask"} <= set(merged)
    assert int((merged.embedding_mask == 1).sum()) == 2
    assert not merged.pc.isnull().any()
    assert main(["export", str(fields), str(tmp_path / "f.npz"), "--order", "era5"]) == 0
    assert "2 cells" in capsys.readouterr().out
    again = xr.open_dataset(tmp_path / "f.npz", engine="copembed")
    assert again.pc.shape == (721, 1440, 1)
    np.testing.assert_array_equal(again.pc.sel(lat=one.lat, lon=one.lon), one.pc)


@pytest.mark.slow
def test_options_of_what_is_written(part, tmp_path, capsys):
    fields = str(tmp_path / "fields.zarr")
    assert main(["reduce", str(part), fields, "--k", "1", "--zarr-format", "2"]) == 0
    assert (tmp_path / "fields.zarr" / ".zmetadata").is_file()
    again = ["reduce", str(part), str(tmp_path / "a.nc"), "--k", "1"]
    assert main([*again, "--layout", "separate"]) == 0
    assert "pc_00" in xr.open_dataset(tmp_path / "a.nc")
    assert main([*again, "--overwrite", "--zarr-format", "2"]) == 1
    assert "--zarr-format is for .zarr; " in capsys.readouterr().err
    for number, options in enumerate((["--compress"], ["--no-compress"])):
        assert main(["export", fields, str(tmp_path / f"{number}.tif"), *options]) == 0
    sizes = [(tmp_path / f"{number}.tif").stat().st_size for number in range(2)]
    assert sizes[0] < sizes[1] / 10
    assert main(["export", fields, str(tmp_path / "a.npy"), "--rows", "720"]) == 0
    assert np.load(tmp_path / "a.npy").shape == (720, 1440, 1)
    assert main(["export", fields, str(tmp_path / "a.tif"), "--compat", "rs-embed"]) == 1
    assert "rs-embed reads files named embed_map_*.tif" in capsys.readouterr().err
    assert main(["export", fields, str(tmp_path / "a.npz"), "--rows", "720"]) == 1
    assert ".npz files have no option rows" in capsys.readouterr().err


def test_era5_fields_that_are_not_there(world, tmp_path, capsys):
    assert main(["merge", str(world), "nowhere.grib", str(tmp_path / "both.nc")]) == 1
    assert "copcube: nowhere.grib: no such file; expected NetCDF, GRIB" in capsys.readouterr().err


@pytest.mark.slow
def test_of_two_inputs_the_one_without_vectors_is_named(part, statics, capsys):
    for both in ([part, statics], [statics, part]):
        assert main(["compare", *map(str, both)]) == 1
        assert f"copcube: {statics}: expected an embedding cube" in capsys.readouterr().err


def test_what_users_saved_themselves_is_opened(part, statics, tmp_path, capsys):
    ds = xr.open_zarr(part, consolidated=False)[["embedding"]]
    ds = ds.rename(lat="latitude", lon="longitude").drop_encoding()
    for zarr_format in (2, 3):
        mine = str(tmp_path / f"mine{zarr_format}.zarr")
        ds.to_zarr(mine, zarr_format=zarr_format, consolidated=False)
        assert main(["reduce", mine, str(tmp_path / f"f{zarr_format}.zarr"), "--k", "1"]) == 0
        assert main(["merge", mine, str(statics), str(tmp_path / f"m{zarr_format}.zarr")]) == 0
        assert main(["compare", str(tmp_path / f"m{zarr_format}.zarr"), str(part)]) == 0
        assert "identical            100.00%" in capsys.readouterr().out
    assert main(["export", str(part), str(tmp_path / "fields.tif")]) == 0
    assert main(["compare", str(tmp_path / "fields.tif"), mine]) == 0
    assert "identical            100.00%" in capsys.readouterr().out


@pytest.mark.slow
def test_convert_and_compare(world, tmp_path, capsys):
    assert main(["export", str(world), str(tmp_path / "map.npz")]) == 0
    assert main(["convert", str(tmp_path / "map.npz"), str(tmp_path / "again.zarr")]) == 0
    assert main(["validate", str(tmp_path / "again.zarr")]) == 0
    assert main(["compare", str(world), str(tmp_path / "again.zarr")]) == 0
    rows = str(tmp_path / "world.build" / "rows")
    assert main(["compare", "--rows", rows, str(world)]) == 0
    said = capsys.readouterr().out
    assert "identical            100.00%" in said
    assert "modalities alike" in said


@pytest.mark.slow
def test_outputs_are_not_overwritten_unasked(part, statics, tmp_path, capsys):
    reduce = ["reduce", str(part), str(tmp_path / "fields.zarr"), "--k", "1"]
    assert main(reduce) == 0
    assert main(reduce) == 1
    assert "--overwrite" in capsys.readouterr().err
    assert main([*reduce, "--overwrite"]) == 0
    others = {
        "both.nc": ["merge", str(tmp_path / "fields.zarr"), str(statics)],
        "both.zarr": ["merge", str(tmp_path / "fields.zarr"), str(statics)],
        "map.npz": ["export", str(part)],
        "again.zarr": ["convert", str(tmp_path / "map.npz")],
    }
    for name, command in others.items():
        out = tmp_path / name
        assert main([*command, str(out)]) == 0
        before = (inode := out.stat()).st_ino, inode.st_mtime_ns
        assert main([*command, str(out)]) == 1
        assert f"{out} exists already" in capsys.readouterr().err
        assert (out.stat().st_ino, out.stat().st_mtime_ns) == before
        assert main([*command, str(out), "--overwrite"]) == 0
        assert out.stat().st_ino != before[0]
    assert main(["reduce", "no.zarr", str(tmp_path / "fields.zarr")]) == 1  # before any work
    assert "exists already" in capsys.readouterr().err
    assert main(["merge", "no.zarr", "no.nc", str(tmp_path / "both.nc")]) == 1
    assert "exists already" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


@pytest.mark.slow
def test_without_network_build_names_both_ways_out(images, tmp_path):
    """The real loader, with a hub that refuses the connection."""
    environment = {
        "HF_ENDPOINT": "http://127.0.0.1:9",
        "HF_HOME": str(tmp_path / "cache"),
        "HF_HUB_CACHE": str(tmp_path / "cache"),
    }
    command = ["build", str(images), str(tmp_path / "w.zarr")]
    code = f"import os\nos.environ.update({environment!r})\nfrom copcube.cli import main\n"
    said = run_code(f"{code}print('ended with', main({command!r}))", tmp_path / "said.txt")
    assert said.endswith("ended with 1\n")
    assert "--weights PATH" in said
    assert "--weights untrained:SEED" in said
    assert not (tmp_path / "w.zarr").exists()


@pytest.mark.slow
def test_fetch_brings_shards_from_a_hub(tmp_path):
    """In a process of its own, from a hub on this machine."""
    from hub_server import Hub, Repo, serve

    from copcube.hub.published import shard

    file, body = shard(7), bytes(range(256)) * 40
    hub = Hub({file.repo: Repo(file.revision, {file.path: body})})
    with serve(hub):
        environment = os.environ | {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "cache")}
        command = [sys.executable, "-m", "copcube", "fetch", "shards", "7", "--to", str(tmp_path)]
        result = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == str(tmp_path / file.path)
    assert (tmp_path / file.path).read_bytes() == body
    assert "CC-BY-4.0" in result.stderr


@pytest.fixture
def unheeded():
    """Signals as a new process heeds them; whoever runs the tests may have some ignored."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, signal.SIG_DFL) for number in numbers}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in before.items():
        assert signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler)
        signal.signal(number, handler)


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129)])
def test_signals_end_a_build_in_good_order(
    name, code, images, unheeded, tmp_path, monkeypatch, capsys, no_encoders
):
    locks = []

    def interrupted(self):
        locks.extend(tmp_path.glob("w.build/*lock*"))
        signal.raise_signal(signal.Signals[name])

    monkeypatch.setattr(copcube.encoder.EncoderSpec, "load", interrupted)
    assert main(["build", str(images), str(tmp_path / "w.zarr")]) == code
    assert "the same command continues" in capsys.readouterr().err
    assert locks
    assert not any(lock.exists() for lock in locks)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_signals_leave_no_half_of_an_export(name, part, unheeded, tmp_path, monkeypatch):
    def interrupted(*arguments):
        assert list(tmp_path.glob(".w.npy.*.partial"))
        signal.raise_signal(signal.Signals[name])

    monkeypatch.setattr("numpy.lib.format.write_array_header_1_0", interrupted)
    assert main(["export", str(part), str(tmp_path / "w.npy")]) > 128
    assert not any(tmp_path.iterdir())


def test_quarantined_partitions_are_code_3(tmp_path, monkeypatch, capsys):
    report = copcube.Report(
        cube=tmp_path / "w.zarr", rows=tmp_path / "w.build/rows", quarantined=("example-000007",),
        images={"dem": 3}, rejected={"killer": 4}, seconds={"total": 90.0, "embedding": 60.0,
        "encoding": 45.0, "waiting": 9.0, "writing": 3.0, "decoding": 30.0},
    )  # fmt: skip
    monkeypatch.setattr("copcube.builds.build", lambda *arguments, **options: report)
    assert main(["build", "images", str(tmp_path / "w.zarr")]) == 3
    errors = capsys.readouterr().err
    assert "PARTITIONS LEFT OUT because they killed their worker: example-000007" in errors
    assert "encoder busy 75%, waiting for decoded images 15%, writing rows 5%" in errors
    assert "images left out: 4 killer" in errors


@pytest.mark.slow
def test_no_scheduler_is_code_1(images, tmp_path, monkeypatch, capsys):
    dask = pytest.importorskip("dask")
    pytest.importorskip("distributed")
    command = ["build", str(images), str(tmp_path / "w.zarr"), "--scheduler", "tcp://127.0.0.1:9"]
    with dask.config.set({"distributed.comm.timeouts.connect": "1s"}):
        assert main(command) == 1
    assert "tcp://127.0.0.1:9: no dask scheduler answers there" in capsys.readouterr().err
    with pytest.raises(SystemExit) as caught:
        main([*command, "--workers", "2"])
    assert caught.value.code == 2


def test_public_names():
    for name in copcube.__all__:
        assert getattr(copcube, name).__doc__
        assert name in dir(copcube)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = copcube.nonsense


def test_version_is_declared_once(capsys):
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out.strip() == f"copcube {copcube.__version__}"


@pytest.mark.slow
def test_the_address_of_a_local_file_is_its_path(world, capsys):
    for command in ("info", "validate", "status"):
        assert main([command, f"file://{world}"]) == 0
    assert str(world) in capsys.readouterr().out
    assert main(["export", world.as_uri(), world.with_name("map.npz").as_uri()]) == 0
    assert world.with_name("map.npz").is_file()


def test_a_working_folder_that_is_gone_is_said(images, stubbed, tmp_path, monkeypatch, capsys):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert main(["build", str(images), "world.zarr", "-q"]) == 1
    said = capsys.readouterr().err
    assert said == "copcube: the working directory no longer exists; change to another one\n"


def test_a_refusal_of_the_file_system_is_not_unexpected(capsys, monkeypatch, tmp_path):
    def refuse(*_):
        raise PermissionError(errno.EACCES, "Permission denied", "/data/images")

    monkeypatch.setattr(os, "scandir", refuse)
    assert main(["build", str(tmp_path), str(tmp_path / "world.zarr")]) == 1
    assert capsys.readouterr().err == "copcube: /data/images: Permission denied\n"


def test_a_library_that_does_not_fit_into_memory_is_said(capsys, monkeypatch, tmp_path):
    """As under `ulimit -v`, by which some batch systems limit memory."""

    def refuse(*_):
        raise ImportError("libtorch_cpu.so: failed to map segment from shared object")

    monkeypatch.setattr("copcube.cube.store.read_attributes", refuse)
    assert main(["info", str(tmp_path)]) == 1
    assert capsys.readouterr().err.startswith("copcube: there is too little memory (libtorch_cpu")


def test_a_demo_replaces_nothing_of_somebody_else(tmp_path, capsys):
    (tmp_path / "fields.png").write_bytes(b"a photograph")
    assert main(["demo", str(tmp_path)]) == 1
    assert "fields.png exists already; choose another folder" in capsys.readouterr().err
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"a photograph"]


@pytest.mark.slow
def test_a_demo_of_few_cells_reduces_nothing(images, stubbed, tmp_path, capsys):
    shutil.copytree(images, tmp_path / "images")
    assert main(["demo", str(tmp_path)]) == 0
    assert "2 cells are too few for 3 components: nothing is reduced" in capsys.readouterr().out
    assert (tmp_path / "world.zarr").is_dir()


@pytest.mark.parametrize(
    ("command", "name"),
    [
        (["demo", ""], "folder"),
        (["fetch", "example", "--to", ""], "to"),
        (["fetch", "example", "--to="], "to"),
        (["export", "", "a.npz"], "cube"),
        (["reduce", "a.zarr", "b.zarr", "--given", ""], "given"),
        (["build", "images", "b.zarr", "--scheduler-file", ""], "scheduler-file"),
        (["compare", "a.zarr", "b.zarr", "--groups", "", "JJA"], "groups"),
    ],
)
def test_empty_texts_are_refused_and_not_taken_for_the_current_folder(
    command, name, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    assert main(command) == 1
    said = capsys.readouterr().err
    assert said == f"copcube: the argument {name} is an empty text; give a value, or leave it out\n"
    assert not any(tmp_path.iterdir())


def test_tables_are_whole_where_there_is_no_terminal(monkeypatch, capsys):
    """A hash that was cut, or wrapped, cannot be searched for."""
    monkeypatch.setenv("COLUMNS", "40")
    long = "0123456789abcdef" * 12
    table("world.zarr", [("weights", long), ("source", "a word " * 30)])
    columns(("number", "name"), [("1", long)])
    said = capsys.readouterr().out.splitlines()
    assert sum(long in line for line in said) == 2
    assert sum("a word " * 29 in line for line in said) == 1
