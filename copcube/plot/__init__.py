"""Maps of cubes and reductions, for papers and for looking, as pictures and as pages."""

from copcube.plot.maps import component, counts, coverage, residuals, rgb, similar, spread
from copcube.plot.probes import errors, residual_maps
from copcube.plot.web import page

__all__ = ["component", "counts", "coverage", "errors", "page", "residual_maps", "residuals"]
__all__ += ["rgb", "similar", "spread"]
