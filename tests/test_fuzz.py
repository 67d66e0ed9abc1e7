"""Every command on mutated files of every form: one line, no traceback, no hang, bounded memory."""

import json
import subprocess
import sys
from pathlib import Path

import fuzzing
import pytest
from builds_helpers import SOAK

KILOBYTES = 3_000_000
"""Growth of a process over hundreds of cases; maps of 8 MB are read and written in it."""


@pytest.fixture(scope="module")
def seeds(tmp_path_factory):
    folder = tmp_path_factory.mktemp("seeds")
    fuzzing.make_seeds(folder)
    return folder


def faults(seeds: Path, folder: Path, first: int, last: int, processes: int) -> list[str]:
    """What went wrong in the cases of some numbers, run by some processes."""
    step = -(-(last - first) // processes)
    running = []
    for start in range(first, last, step):
        command = [sys.executable, "-W", "ignore", fuzzing.__file__, str(seeds)]
        command += [str(folder / f"work-{start}"), str(start), str(min(start + step, last))]
        running.append(
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        )
    found = []
    for process in running:
        said, errors = process.communicate()
        lines = [json.loads(line) for line in said.splitlines()]
        found += [str(line) for line in lines if "code" in line]
        end = lines[-1]
        if "done" not in end:
            found.append(f"{end} did not end: {errors[-2000:]}")
        elif end["kilobytes"] > KILOBYTES:
            found.append(f"memory grew by {end['kilobytes']} kB")
    return found


@pytest.mark.slow
def test_mutated_files_end_in_one_line(seeds, tmp_path):
    """One file of each form; two in the soak, before its two thousand."""
    assert faults(seeds, tmp_path, 0, (2 if SOAK else 1) * len(fuzzing.COMMANDS), 1) == []


@pytest.mark.timeout(7200)
@pytest.mark.skipif(not SOAK, reason="make soak runs two thousand")
def test_two_thousand_mutated_files_end_in_one_line(seeds, tmp_path):
    assert faults(seeds, tmp_path, 1000, 3000, 2) == []
