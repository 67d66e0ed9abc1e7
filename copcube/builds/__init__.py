"""Builds: source → rows → cube, resumable after any death."""

from copcube.builds.estimate import estimate
from copcube.builds.run import Report, aggregate, build, validate_rows

__all__ = ["Report", "aggregate", "build", "estimate", "validate_rows"]
