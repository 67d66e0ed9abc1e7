"""Maps of cubes and reductions, and what statics say of them, for papers and for looking."""

from copcube.plot.explained import explained
from copcube.plot.maps import change, component, counts, coverage, rgb, similar, spread

__all__ = ["change", "component", "counts", "coverage", "explained", "rgb", "similar", "spread"]
