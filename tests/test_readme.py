"""The README's examples, run one after another in one folder as a reader would."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

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
def test_the_examples_run(tmp_path):
    """Blocks marked ``sh`` need a network or a large download."""
    downloaded_statics(tmp_path / "era5_static.nc")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "PYTHONWARNINGS": "error"}
    assert sum(kind == "bash" for kind, _ in BLOCKS) >= 3
    assert sum(kind == "python" for kind, _ in BLOCKS) >= 5
    for kind, text in BLOCKS:
        command = ["bash", "-e"] if kind == "bash" else [sys.executable]
        result = subprocess.run(
            [*command, "-c", text], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert result.returncode == 0, f"{text}\n{result.stdout}{result.stderr}"
