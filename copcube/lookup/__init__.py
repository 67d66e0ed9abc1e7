"""Questions to a cube: which places look alike, which belong together."""

from copcube.lookup.clusters import cluster
from copcube.lookup.similar import similar

__all__ = ["cluster", "similar"]
