"""Maps of cubes and reductions, and tables and curves about them, as pictures and pages."""

from copcube.plot.explained import explained
from copcube.plot.fragments import fragments
from copcube.plot.maps import (
    change,
    changed,
    component,
    counts,
    coverage,
    residuals,
    rgb,
    similar,
    spread,
)
from copcube.plot.probes import errors, residual_maps
from copcube.plot.web import page

__all__ = ["change", "changed", "component", "counts", "coverage", "errors", "explained"]
__all__ += ["fragments", "page", "residual_maps", "residuals", "rgb", "similar", "spread"]
