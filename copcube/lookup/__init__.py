"""Questions to a cube: what is at places, which look alike, which belong together."""

from copcube.lookup.boxes import box, polygon
from copcube.lookup.clusters import cluster
from copcube.lookup.points import points
from copcube.lookup.similar import similar

__all__ = ["box", "cluster", "points", "polygon", "similar"]
