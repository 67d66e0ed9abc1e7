"""Copernicus-Bench: fifteen tasks that measure the value of a frozen encoder's vectors."""

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
