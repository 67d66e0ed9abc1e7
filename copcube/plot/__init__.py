"""Maps of cubes and reductions, for papers and for looking."""

from copcube.plot.maps import component, counts, coverage, residuals, rgb, similar, spread
from copcube.plot.probes import errors, residual_maps

__all__ = ["component", "counts", "coverage", "errors", "residual_maps", "residuals", "rgb"]
__all__ += ["similar", "spread"]
