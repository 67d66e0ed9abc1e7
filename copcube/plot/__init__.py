"""Maps of cubes and reductions, for papers and for looking, as pictures and as pages."""

from copcube.plot.maps import component, counts, coverage, rgb, similar, spread
from copcube.plot.web import page

__all__ = ["component", "counts", "coverage", "page", "rgb", "similar", "spread"]
