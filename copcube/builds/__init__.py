"""Builds: source → rows → cube, resumable after any death."""

from copcube.builds.api import Report, aggregate, build, validate_rows
from copcube.builds.dask import connect
from copcube.builds.inspect import Estimate, Status, estimate, status

__all__ = [
    "Estimate",
    "Report",
    "Status",
    "aggregate",
    "build",
    "connect",
    "estimate",
    "status",
    "validate_rows",
]
