"""Every script in examples/ runs and says what it promises; own_imagery.py in test_tiles.py."""

import functools
import io
import re
import runpy
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from copcube.errors import WriteError
from copcube.interchange import to_zarr
from copcube.interchange.engine import CopembedBackend

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
sys.path.append(str(EXAMPLES))
import synthetic  # noqa: E402

ELSEWHERE = {"own_imagery", "synthetic"}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def islands():
    """Of the synthetic cubes all examples in this process have some islands, made once."""
    whole = synthetic.cube

    @functools.cache
    def cube(*arguments):
        ds = whole(*arguments)
        here = (abs(ds.lat) < 35) & (ds.lon > 180) & (ds.lon < 300)
        return ds.assign(embedding=ds.embedding.where(here), n_images=ds.n_images * here)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(synthetic, "cube", cube)
        yield


def run(name, folder, *args):
    """Output of an example, which runs as a script in this process; a warning is an error."""
    with (
        pytest.MonkeyPatch.context() as patch,
        redirect_stdout(io.StringIO()) as out,
        redirect_stderr(io.StringIO()) as errors,
    ):
        patch.chdir(folder)
        patch.setattr(sys, "argv", [f"{name}.py", *map(str, args)])
        runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    assert errors.getvalue() == ""
    return out.getvalue()


def test_four_lines(tmp_path):
    out = run("four_lines", tmp_path, "--k", "3")
    with xr.open_dataset(tmp_path / "fields.npz", engine=CopembedBackend) as fields:
        assert fields.pc.shape == (721, 1440, 3)
    cells = int(synthetic.cube().n_images.sum())
    assert out.count(f"{cells:,} cells") >= 2
    for name in ("pc ", "lsm ", "z ", "<copembed: reduction of an embedding cube>"):
        assert name in out


def test_examples_overwrite_nothing_unasked(forms, tmp_path):
    for name, out in (("four_lines", "fields.npz"), ("published_forms", "embed_map.npz")):
        (tmp_path / out).write_text("mine")
        with pytest.raises(WriteError, match=f"{out} exists already"):
            run(name, tmp_path)
        assert (tmp_path / out).read_text() == "mine"
        # Also with --overwrite only what copcube wrote is replaced.
        with pytest.raises(WriteError, match="found a file that copcube did not write"):
            run(name, tmp_path, "--overwrite")
        assert (tmp_path / out).read_text() == "mine"
    (tmp_path / "fields.npz").unlink()
    run("four_lines", tmp_path)
    run("four_lines", tmp_path, "--overwrite")
    assert (tmp_path / "fields.npz").read_bytes()[:2] == b"PK"


def test_same_axes(forms, tmp_path):
    folder, _ = forms
    whole = xr.open_zarr(folder / "embed_map.zarr", chunks=None)
    part = whole.sel(lat=slice(36, -36), lon=slice(180, 300))  # dask takes long for many chunks
    to_zarr(part, tmp_path / "part.zarr")
    out = run("same_axes", tmp_path, folder / "embed_map.npz", tmp_path / "part.zarr")
    share, lost = (
        float(re.search(text, out)[1]) for text in (r"explain ([\d.]+)%", r"by (\S+) rms")
    )
    assert 50 < share < 100
    assert 0.01 < lost < 0.1  # of the noise of 0.1 that is not on the axes
    assert re.search(r"deviations: \[0\. 0\. 0\. 0\.\]", out)
    moved = re.search(r"deviations: \[([^]]*)\]", run("same_axes", tmp_path))[1]
    assert all(float(text) > 0 for text in moved.split())


@pytest.fixture(scope="module")
def forms(tmp_path_factory):
    """Folder with the forms that published_forms.py wrote, and its output."""
    pytest.importorskip("torch", reason="writing .pt needs torch")
    folder = tmp_path_factory.mktemp("forms")
    return folder, run("published_forms", folder, folder)


def test_published_forms(forms):
    folder, out = forms
    suffixes = {".npz", ".pt", ".tif", ".parquet", ".nc", ".zarr"}
    assert {path.suffix for path in folder.iterdir()} == suffixes
    cells = int(synthetic.cube().n_images.sum())
    assert out.count(f"{cells:,} cells are the same") == 6
    vectors = {" ".join(text.split()) for text in re.findall(r"120°W: \[([^]]*)\]", out)}
    (vector,) = vectors
    expected = synthetic.cube().embedding.sel(lat=10, lon=240).values
    assert np.allclose(np.array(vector.split(), float), expected, atol=1e-6)


@pytest.mark.parametrize(
    "name", ["embed_map.npz", "embed_map.pt", "embed_map.tif", "embeddings_avg.parquet"]
)
def test_the_four_lines_take_each_form(forms, tmp_path, name):
    folder, _ = forms
    run("four_lines", tmp_path, folder / name)
    with xr.open_dataset(tmp_path / "fields.npz", engine=CopembedBackend) as fields:
        assert np.array_equal(fields.pc.notnull().all("component"), synthetic.cube().n_images > 0)


def test_compare_cubes(forms, tmp_path):
    folder, _ = forms
    assert re.search(r"identical +0\.00%", run("compare_cubes", tmp_path))
    same = run("compare_cubes", tmp_path, folder / "embed_map.npz", folder / "embed_map.tif")
    assert re.search(r"identical +100\.00%", same)


@pytest.mark.timeout(180)
def test_dataloader(tmp_path):
    """In a process of its own, whose workers import the script; if they hang, it is timed out."""
    pytest.importorskip("torch")
    done = subprocess.run(
        [sys.executable, "-W", "error", EXAMPLES / "dataloader.py"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    cells = int((synthetic.era5_static().lsm > 0).sum())
    assert done.stdout == f"{cells:,} cells, read by 2 workers\n{cells:,} cells, loaded once\n"


def test_averaging_order(tmp_path):
    (match,) = [line for line in run("averaging_order", tmp_path).splitlines() if "matches" in line]
    assert match.startswith("dates, then patches, then modalities")


def test_every_example_is_short_and_has_a_test():
    for path in EXAMPLES.glob("*.py"):
        assert len(path.read_text().splitlines()) <= 60, path.name
        assert path.stem in ELSEWHERE or f"test_{path.stem}" in globals(), path.name
