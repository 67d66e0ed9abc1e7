"""Builds: source → rows → cube, resumable however they end."""

from copcube.builds.api import Report, aggregate, build
from copcube.builds.dask import connect
from copcube.builds.inspect import Estimate, Status, estimate, status, validate_rows

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
