"""The README's examples, run one after another in one folder as a reader would."""

import re
import shlex
from importlib.metadata import entry_points
from pathlib import Path

import dask
import numpy as np
import pytest
import shallow
import xarray as xr
from builds_helpers import FORKED

from copcube.cli import main
from copcube.encoder import weights

README = Path(__file__).resolve().parents[1] / "README.md"
BLOCKS = re.findall(r"^```(bash|python)\n(.*?)^```", README.read_text("utf-8"), re.M | re.S)


def downloaded_statics(path):
    """What the Climate Data Store gives: ``z`` with a time of length 1."""
    lat, lon = 90 - 0.25 * np.arange(721), 0.25 * np.arange(1440)
    z = np.zeros((1, 721, 1440), dtype="float32")
    coords = {"valid_time": [np.datetime64("2021-01-01", "ns")], "latitude": lat, "longitude": lon}
    attrs = {"units": "m**2 s**-2", "long_name": "Geopotential"}
    ds = xr.Dataset({"z": (("valid_time", "latitude", "longitude"), z, attrs)}, coords)
    ds.to_netcdf(path)


@pytest.mark.slow
def test_the_examples_run(tmp_path, monkeypatch, no_encoders):
    """Blocks marked ``sh`` need a network or a large download.

    All run in this process, which imports the model once, and in workers forked from one that
    has imported dask; untrained weights have one narrow block instead of twelve.
    """
    monkeypatch.setattr(weights, "untrained_weights", shallow.shallow_weights)
    downloaded_statics(tmp_path / "era5_static.nc")
    monkeypatch.chdir(tmp_path)
    assert sum(kind == "bash" for kind, _ in BLOCKS) >= 3
    assert sum(kind == "python" for kind, _ in BLOCKS) >= 5
    with dask.config.set(FORKED | {"distributed.worker.preload": [shallow.__file__]}):
        for kind, text in BLOCKS:
            if kind == "python":
                exec(compile(text, "README.md", "exec"), {"__name__": "__main__"})
                continue
            for line in text.splitlines():
                if words := shlex.split(line, comments=True):
                    assert words[0] == "copcube", f"no command of copcube: {line}"
                    assert main(words[1:]) == 0, line


def test_the_command_is_installed():
    (command,) = entry_points(group="console_scripts", name="copcube")
    assert command.load() is main
