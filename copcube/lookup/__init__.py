"""Questions to cubes: which places look alike, which belong together, which have changed."""

from copcube.lookup.change import change
from copcube.lookup.clusters import cluster
from copcube.lookup.similar import similar

__all__ = ["change", "cluster", "similar"]
