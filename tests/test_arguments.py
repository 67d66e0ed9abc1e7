"""One value where several are expected, and several where one is."""

import datetime
import os
import re
import runpy
import subprocess
import sys
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import cftime
import numpy as np
import pandas as pd
import pytest
import xarray as xr

import copcube
from copcube.arguments import flag, number, numbers, one_of, whole_number
from copcube.builds import aggregate
from copcube.builds.dask import local_cluster
from copcube.builds.guard import require_main_guard
from copcube.builds.plan import BuildOptions
from copcube.cube.view import CubeView
from copcube.embedding import SharedEncoder
from copcube.errors import CopcubeError, OptionError, WriteError
from copcube.hub.fetch import fetch
from copcube.images import open_source
from copcube.images.sample.writing import write_sample
from copcube.interchange import export, to_geotiff, to_zarr
from copcube.interchange.engine import open_map
from copcube.probes.bench.catalogue import find
from copcube.selection import Selection

SPEC = copcube.EncoderSpec(weights="untrained:0")


def test_a_modality_alone_is_one():
    for given in ("s5p_co", ["s5p_co"], ("s5p_co",)):
        assert Selection.of(given).modalities == ("s5p_co",)
    assert Selection.of("dem, s5p_co") == Selection.of(["s5p_co", "dem"])
    for given in (5, [5], [None], b"dem"):
        with pytest.raises(OptionError, match="expected"):
            Selection.of(given)


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (2021, "2021"),
        (202103, "2021-03"),
        (np.int64(20210301), "2021-03-01"),
        (datetime.date(2021, 3, 1), "2021-03-01"),
        (datetime.datetime(2021, 3, 1, 12), "2021-03-01"),
        (pd.Timestamp("2021-03-01"), "2021-03-01"),
        (np.datetime64("2021-03"), "2021-03"),
        (np.datetime64("2021-03-01T12"), "2021-03-01"),
        (cftime.DatetimeGregorian(2021, 3, 1), "2021-03-01"),
        ((2021, "2022-03"), "2021..2022-03"),
        (["2021", None], "2021.."),
    ],
)
def test_dates_of_any_kind(given, text):
    assert Selection.of("s5p_co", given) == Selection.of("s5p_co", text)


@pytest.mark.parametrize("given", [5, 2021.5, True, ["2021"], b"2021", {}])
def test_what_is_no_date_is_refused(given):
    with pytest.raises(OptionError, match="is not a date; expected a year"):
        Selection.of("s5p_co", given)


def test_dates_of_elevation_alone_choose_nothing():
    assert Selection.of("dem", 2021) == Selection.of("dem")
    with pytest.raises(OptionError):
        Selection.of("dem", "yesterday")


def test_an_encoder_by_the_name_of_its_weights():
    for given in ("untrained:0", Path("untrained:0")):
        assert BuildOptions.of("dem", None, given).encoder == SharedEncoder(SPEC)
    assert copcube.EncoderSpec(Path("a.pth")) == copcube.EncoderSpec("a.pth")
    for given in (copcube.EncoderSpec, 0, {"weights": "hub"}, [SPEC]):
        with pytest.raises(OptionError, match="encoder="):
            BuildOptions.of("dem", None, given)
    for wrong in ({"weights": 0}, {"device": 0}, {"pooling": ["cls"]}, {"language": ["a"]}):
        with pytest.raises(OptionError, match=next(iter(wrong))):
            copcube.EncoderSpec(**wrong)


@pytest.mark.parametrize(
    "wrong",
    [
        {"crop": "middle"},
        {"crop": ["center"]},
        {"by": ["season"]},
        {"balance": ["image"]},
        {"batch_size": "8"},
        {"batch_size": 0},
        {"threads": 1.5},
        {"threads": True},
        {"workers": "2"},
        {"workers": 0},
        {"workers": -1},
        {"client": "tcp://127.0.0.1:1"},
    ],
)
def test_options_of_a_build_name_what_they_expect(wrong, tmp_path):
    write_sample(tmp_path / "tree", cells=1, modalities="dem")
    with pytest.raises(OptionError, match=next(iter(wrong))):
        copcube.build(tmp_path / "tree", tmp_path / "a.zarr", encoder=SPEC, **wrong)


@pytest.mark.parametrize("path", [None, 5, ["a"], b"a", "", xr.Dataset()])
def test_what_is_no_path_is_refused(path, tmp_path):
    for opened in (
        open_source,
        lambda p: aggregate(p, tmp_path / "a.zarr"),
        lambda p: copcube.build(tmp_path, p, encoder=SPEC) if p else open_source(p),
        copcube.era5.open_static,
        lambda p: export(xr.Dataset(), p),
        lambda p: write_sample(p, cells=1),
        lambda p: fetch("example", p) if p is not None else open_source(p),
    ):
        with pytest.raises((OptionError, copcube.CopcubeError)):
            opened(path)


@pytest.mark.parametrize("name", ["x" * 230, "x" * 300, "nul\0"])
def test_names_that_no_file_can_have(name, tmp_path):
    with pytest.raises((WriteError, OptionError), match=r"too long|expected one path"):
        to_zarr(xr.Dataset({"z": ("x", [1.0])}), f"{tmp_path}/{name}.zarr")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_attributes_of_any_type_are_written_as_plain_ones(tmp_path):
    """A time, a flag of NumPy or a number inside of a mapping is no JSON."""
    attrs = {
        "time": pd.Timestamp("2021-03-01"),
        "day": np.datetime64("2021-03-01"),
        "span": np.timedelta64(5, "D"),
        "flag": np.True_,
        "flags": np.array([True, False]),
        "half": np.float16(0.5),
        "nested": {"a": np.int64(1)},
        "path": Path("a"),
        "large": 10**30,
    }
    vectors = ("lat", "lon", "dim"), np.ones((2, 2, 2), np.float32)
    cube = xr.Dataset({"embedding": vectors}, {"lat": [50.0, 49.75], "lon": [10.0, 10.25]}, attrs)
    cube["lat"].attrs |= attrs
    for suffix in (".npz", ".pt", ".tif", ".nc", ".parquet"):
        export(cube, tmp_path / f"a{suffix}")
    to_zarr(cube, tmp_path / "a.zarr")
    assert cube.attrs == cube.lat.attrs == attrs
    for again in (
        xr.open_dataset(tmp_path / "a.nc"),
        xr.open_zarr(tmp_path / "a.zarr"),
        open_map(tmp_path / "a.npz"),
    ):
        assert {"time", "day", "span", "flag", "half", "nested"} <= set(again.attrs)
        assert "2021-03-01" in again.attrs["time"]
        assert (again.attrs["flag"], again.attrs["half"]) == (1, 0.5)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="names are in Unicode here")
def test_paths_that_are_not_in_utf8(tmp_path):
    """HDF5, GDAL and Arrow need that; what is written as bytes may lie anywhere."""
    folder = tmp_path / os.fsdecode(b"\xe9t\xe9")
    folder.mkdir()
    axes = {"lat": [50.0, 49.75], "lon": [10.0, 10.25]}
    vectors = ("lat", "lon", "dim"), np.ones((2, 2, 2), np.float32)
    cube = xr.Dataset({"embedding": vectors}, axes)
    for suffix in (".nc", ".tif", ".parquet"):
        with pytest.raises(WriteError, match=r"cannot be written: its path is not UTF-8"):
            export(cube, folder / f"a{suffix}")
    assert list(folder.iterdir()) == []
    write_sample(folder / "tree", cells=1, modalities="dem")
    with pytest.raises(WriteError, match=r"its path is not UTF-8"):
        copcube.build(folder / "tree", folder / "a.zarr", encoder=SPEC)
    to_zarr(cube, folder / "a.zarr")
    for suffix in (".parquet", ".tif"):
        export(cube, tmp_path / f"a{suffix}")
        (tmp_path / f"a{suffix}").rename(folder / f"a{suffix}")
        with pytest.raises(CopcubeError, match=r"not a readable .* surrogates not allowed"):
            open_map(folder / f"a{suffix}")


def test_numbers_of_bands():
    assert numbers(550, "wavelengths") == (550.0,)
    assert numbers(np.array([1, 2]), "mean") == (1.0, 2.0)
    assert numbers(xr.DataArray(3.0), "mean") == (3.0,)
    strange = {443: 1.0}, {1.0, 2.0}, [True], [b"5"], np.array(["5"]), np.array([1 + 2j])
    for given in ("550", [None], {"a"}, *strange, np.timedelta64(5, "ns")):
        with pytest.raises(OptionError, match="expected one number per band"):
            numbers(given, "wavelengths")
    assert whole_number(np.int8(3), "tile", 1) == 3
    for given in ("3", 3.0, (3, 3), True, 0):
        with pytest.raises(OptionError, match="tile is"):
            whole_number(given, "tile", 1)


def test_one_number():
    for given in (5, np.float16(5), np.array(5), xr.DataArray(5), Fraction(5), Decimal(5)):
        assert type(number(given, "fill")) is float
        assert number(given, "fill") == 5
    # Of all these Python makes a number.
    strange = np.array("5"), np.str_("5"), b"5", np.timedelta64(5, "ns"), np.complex64(5j)
    for given in (True, np.True_, np.array(True), *strange):
        with pytest.raises(OptionError, match=r"fill is .*; expected one number"):
            number(given, "fill")


def test_options_of_a_build_are_plain():
    """NumPy's numbers are no JSON, in which plans are written."""
    given = {"batch_size": np.int64(2), "threads": np.array(1), "s2_offset": np.uint16(1000)}
    options = BuildOptions.of("dem", None, SPEC, strict=np.True_, **given)
    plain = BuildOptions.of("dem", None, SPEC, strict=True, batch_size=2, threads=1, s2_offset=1000)
    assert options == plain
    for name in (*given, "strict"):
        assert type(getattr(options, name)) is type(getattr(plain, name))


@pytest.mark.parametrize("value", [pd.NA, pd.Series(["a", "b"]), ["a"], {}, np.array(["center"])])
def test_words_of_other_types_are_refused_by_name(value):
    world = xr.Dataset({"z": ("x", [1.0])})
    for name, call in (
        ("crop", lambda: BuildOptions.of("dem", None, SPEC, crop=value)),
        ("by", lambda: BuildOptions.of("dem", None, SPEC, by=value)),
        ("workers", lambda: local_cluster(value).__enter__()),
        ("product", lambda: BuildOptions.of(product=value)),
        ("sensors", lambda: BuildOptions.of("dem", None, SPEC, sensors=5)),
        ("encoder", lambda: copcube.TimmSpec(value)),
        ("compat", lambda: copcube.TimmSpec("dinov2", compat=value)),
        ("compile", lambda: copcube.EncoderSpec(compile=value)),
        ("layout", lambda: to_zarr(world, "never.zarr", layout=value)),
        ("zarr_format", lambda: to_zarr(world, "never.zarr", zarr_format=value)),
        ("layout", lambda: write_sample("never", value)),
        ("task", lambda: find(value)),
        ("compat", lambda: to_geotiff(world, "never.tif", compat=value)),
    ):
        with pytest.raises(OptionError, match=name):
            call()


def test_a_cell_is_named_by_two_numbers():
    cube = xr.Dataset(
        {"embedding": (("lat", "lon", "dim"), np.ones((1, 1, 2), np.float32))},
        {"lat": [50.0], "lon": [10.0]},
    )
    for lat in ([50.0], "50", None, (50, 10), np.array(["50"])):
        with pytest.raises(OptionError, match=r"lat\b.*; expected"):
            CubeView.of(cube).at(lat, 10)


@pytest.mark.parametrize("plural", [("latitudes", "longitudes"), ("lats", "LONS")])
def test_grids_with_plural_names_merge(plural):
    axes = {"latitude": [50.0, 49.75], "longitude": [10.0, 10.25]}
    fields = xr.Dataset(
        {"pc": (("lat", "lon", "component"), np.ones((2, 2, 1), np.float32))},
        {"lat": axes["latitude"], "lon": axes["longitude"]},
    )
    statics = xr.Dataset({"lsm": (tuple(axes), np.ones((2, 2)))}, axes)
    named = statics.rename(dict(zip(axes, plural, strict=True)))
    merged = copcube.era5.merge(fields, named)
    assert merged.pc.dims == (*plural, "component")
    np.testing.assert_array_equal(merged.pc, copcube.era5.merge(fields, statics).pc)


CALL = "from copcube.builds.guard import require_main_guard\n"
SCRIPTS = [
    ("require_main_guard()\n", False),
    ('if __name__ == "__main__":\n    require_main_guard()\n', True),
    ("def run():\n    require_main_guard()\nrun()\n", False),
    ("import logging\nlogging.getLogger(__name__)\nrequire_main_guard()\n", False),
    ('if __name__ == "__main__":\n    x = 1\nrequire_main_guard()\n', False),
    ('if "__main__" == __name__ and 1 < 2:\n    require_main_guard()\n', True),
    ('def run():\n    require_main_guard()\nif __name__ == "__main__":\n    run()\n', True),
    ('__name__ == "__main__" and require_main_guard()\n', True),
]


def refusal(script):
    line = len((CALL + script).splitlines())
    return rf'script\.py, line {line}: workers run the script again.*if __name__ == "__main__":'


@pytest.mark.parametrize(("script", "passes"), SCRIPTS)
def test_a_script_that_would_start_itself_again_is_refused(script, passes, tmp_path, monkeypatch):
    """As ``python script.py`` and ``python -m script`` run it, but in this process."""
    (tmp_path / "script.py").write_text(CALL + script)
    monkeypatch.syspath_prepend(tmp_path)
    for run in (
        lambda: runpy.run_path(str(tmp_path / "script.py"), run_name="__main__"),
        lambda: runpy.run_module("script", run_name="__main__", alter_sys=True),
    ):
        if passes:
            run()
            continue
        with pytest.raises(OptionError, match=refusal(script)):
            run()


def test_a_script_from_a_pipe_is_refused(monkeypatch):
    """As ``python - < script.py`` runs it, whose workers would look for a file ``<stdin>``."""
    main = type(sys)("__main__")
    main.__file__ = "<stdin>"
    monkeypatch.setitem(sys.modules, "__main__", main)
    script = CALL + 'if __name__ == "__main__":\n    require_main_guard()\n'
    with pytest.raises(OptionError, match=r"^<stdin> is not a file, and workers run"):
        exec(compile(script, "<stdin>", "exec"), vars(main))


def test_a_package_that_is_run_is_not_run_again(tmp_path, monkeypatch):
    """As ``python -m copcube``, whose ``__main__`` multiprocessing leaves alone in workers."""
    (tmp_path / "ours").mkdir()
    (tmp_path / "ours" / "__main__.py").write_text(CALL + "require_main_guard()\n")
    monkeypatch.syspath_prepend(tmp_path)
    runpy.run_module("ours", run_name="__main__", alter_sys=True)


@pytest.mark.slow
@pytest.mark.parametrize(("script", "passes"), SCRIPTS[:2])
def test_a_process_of_such_a_script_ends(script, passes, tmp_path):
    (tmp_path / "script.py").write_text(CALL + script)
    for command in ([str(tmp_path / "script.py")], ["-m", "script"]):
        done = subprocess.run(
            [sys.executable, *command], cwd=tmp_path, capture_output=True, text=True
        )
        assert (done.returncode == 0) == passes, done.stderr
        if not passes:
            assert re.search(refusal(script), done.stderr.splitlines()[-1])


@pytest.mark.slow
def test_what_is_no_script_may_start_workers():
    require_main_guard()
    code = "require_main_guard(); exec('require_main_guard()')"
    subprocess.run([sys.executable, "-c", CALL + code], check=True)


@pytest.mark.parametrize("value", ["c", ["a"], np.array(["a", "b"]), None])
def test_one_word_of_several(value):
    one_of("a", "name", ("a", "b"))
    with pytest.raises(OptionError, match=r"^name=.*; expected a or b$"):
        one_of(value, "name", ("a", "b"))


def test_flags_are_true_or_false():
    # `merge(mask=…)` asks whether to make a mask; it takes none.
    for given in (True, 0, np.True_, np.int8(1)):
        assert flag(given, "mask") == bool(given)
    mask = xr.DataArray([True, False])
    for given in (
        "no",
        None,
        2,
        [True],
        mask,
        mask.values,
        xr.Dataset({"a": mask}),
        pd.Series([1]),
        pd.NA,
        ([],),
    ):
        with pytest.raises(OptionError, match=r"mask is .*; expected True or False"):
            flag(given, "mask")
