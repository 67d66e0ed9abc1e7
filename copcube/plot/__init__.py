"""Maps of cubes and reductions, for papers and for looking."""

from copcube.plot.maps import component, counts, coverage, rgb, similar, spread

__all__ = ["component", "counts", "coverage", "rgb", "similar", "spread"]
