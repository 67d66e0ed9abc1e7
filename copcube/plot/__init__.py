"""Maps of cubes and reductions, for papers and for looking."""

from copcube.plot.maps import change, component, counts, coverage, rgb, similar, spread

__all__ = ["change", "component", "counts", "coverage", "rgb", "similar", "spread"]
