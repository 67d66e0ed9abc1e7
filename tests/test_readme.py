"""The README's examples, run one after another in one folder as a reader would."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

README = Path(__file__).resolve().parents[1] / "README.md"
BLOCKS = re.findall(r"^```(bash|python)\n(.*?)^```", README.read_text("utf-8"), re.M | re.S)


@pytest.mark.slow
def test_the_examples_run(tmp_path):
    """``bash`` blocks come first: they make the cube that the ``python`` blocks open.

    Blocks marked ``sh`` need a network or a large download.
    """
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "PYTHONWARNINGS": "error"}
    shells = [text for kind, text in BLOCKS if kind == "bash"]
    scripts = [text for kind, text in BLOCKS if kind == "python"]
    assert len(shells) >= 2
    assert len(scripts) >= 3
    for command in [
        *(["bash", "-e", "-c", text] for text in shells),
        *([sys.executable, "-c", text] for text in scripts),
    ]:
        result = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert result.returncode == 0, f"{command[-1]}\n{result.stdout}{result.stderr}"
