"""Copernicus-Bench: fifteen tasks that say what a frozen encoder's vectors are worth."""

from copcube.probes.bench.cells import bench_cells
from copcube.probes.bench.results import Result, Score, bench_table, read_results, write_results
from copcube.probes.bench.running import Benched, bench

__all__ = [
    "Benched",
    "Result",
    "Score",
    "bench",
    "bench_cells",
    "bench_table",
    "read_results",
    "write_results",
]
