"""The code of the tutorials, run from top to bottom in one folder as a reader would.

Commands run in this process, which saves what starting Python costs for each.
"""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from stub import StubEncoder

import copcube.encoder
from copcube.cli import main
from copcube.interchange import to_zarr

DOCS = Path(__file__).resolve().parents[1] / "docs"
HOWTO = [
    f"howto/{name}"
    for name in ("stations", "regions", "figure", "share", "components", "modalities")
]
LAT, LON = np.arange(60, 39.75, -0.25), np.arange(0, 30, 0.25)
DIM = 12
FLAGS = {"flag_values": np.arange(4, dtype="i1"), "flag_meanings": "DJF MAM JJA SON"}
SEASONS = {"season": ("season", np.arange(4, dtype="i1"), FLAGS)}


def blocks(page):
    return re.findall(
        r"^```(bash|python|toml)\n(.*?)^```", (DOCS / page).read_text("utf-8"), re.M | re.S
    )


def run(page):
    """Run the blocks of a page in the working folder; how many there were."""
    names = {}
    for kind, text in blocks(page):
        if kind == "toml":  # its first line names the file
            Path(text.partition("\n")[0].lstrip("# ")).write_text(text)
            continue
        if kind == "python":
            exec(compile(text, page, "exec"), names)
            continue
        for line in text.splitlines():
            program, *words = shlex.split(line, comments=True)
            assert program == "copcube"
            assert main(words) == 0, line
    return len(blocks(page))


def cube(seed, statics, lead=()):
    """A cube of a part of the world, whose vectors have to do with static fields."""
    rng = np.random.default_rng(seed)
    shape = (*lead, len(LAT), len(LON))
    fields = np.stack([(v - v.mean()) / v.std() for v in statics.data_vars.values()], axis=-1)
    x = 1 + fields @ rng.normal(size=(fields.shape[-1], DIM)) + 0.5 * rng.normal(size=(*shape, DIM))
    there = np.broadcast_to(statics.lsm.values > 0.2, shape)
    images = np.where(there, rng.integers(2, 40, shape), 0)
    attrs = {"encoder": "of the tests", "aggregation": "mean over the means of the modalities"}
    dims = ("season", "lat", "lon") if lead else ("lat", "lon")
    by_modality = np.stack([images // 2, images - images // 2])
    variables = {
        "embedding": ((*dims, "dim"), np.where(there[..., None], x, np.nan).astype("f4")),
        "n_images": (dims, images.astype("i4")),
        "n_images_by_modality": (("modality", *dims), by_modality.astype("i4")),
        "spread": (dims, np.where(there, 0.3, np.nan).astype("f4")),
    }
    return xr.Dataset(variables, {"lat": LAT, "lon": LON, **(SEASONS if lead else {})}, attrs)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """What a reader has: a cube, seasons of it, and ERA5's fields as downloaded."""
    folder = tmp_path_factory.mktemp("inputs")
    rng = np.random.default_rng(0)
    shape = (1, len(LAT), len(LON))
    coords = {"valid_time": [np.datetime64("2021-01-01", "ns")], "latitude": LAT, "longitude": LON}
    statics = xr.Dataset(
        {
            name: (("valid_time", "latitude", "longitude"), rng.random(shape).astype("f4"))
            for name in ("z", "lsm", "sdor", "slor")
        },
        coords,
    )
    statics.lsm[0, 48, 46] = statics.lsm[0, 30, 54] = statics.lsm[0, 58, 37] = 1  # the stations
    statics.to_netcdf(folder / "era5_static.nc")
    to_zarr(cube(1, statics.isel(valid_time=0)), folder / "world.zarr")
    to_zarr(cube(2, statics.isel(valid_time=0), (4,)), folder / "seasons.zarr")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("page", ["tutorial-modeller", "tutorial-analyst", "coming-from", *HOWTO])
def test_pages_on_a_cube(page, inputs, tmp_path, monkeypatch):
    for path in inputs.iterdir():
        (tmp_path / path.name).symlink_to(path)
    monkeypatch.chdir(tmp_path)
    assert run(f"{page}.md") == len(blocks(f"{page}.md")) > 0


@pytest.mark.slow
@pytest.mark.parametrize("page", ["tutorial-producer", "sensors"])
def test_pages_that_make_one(page, tmp_path, monkeypatch, no_encoders):
    """With a stand-in for the encoder; the notebook that builds a cube loads one of full size."""
    monkeypatch.setattr(copcube.encoder.EncoderSpec, "load", lambda self: StubEncoder())
    monkeypatch.chdir(tmp_path)
    assert run(f"{page}.md") >= 7


@pytest.mark.slow
def test_six_models_on_one_grid(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run("majortom.md") >= 6
    assert (tmp_path / "part_00001.parquet").exists()
