"""Builds: source → rows → cube, resumable after any death."""

from copcube.builds.api import Report, aggregate, build, validate_rows
from copcube.builds.dask import connect
from copcube.builds.estimate import estimate
from copcube.builds.status import Status, status

__all__ = [
    "Report",
    "Status",
    "aggregate",
    "build",
    "connect",
    "estimate",
    "status",
    "validate_rows",
]
