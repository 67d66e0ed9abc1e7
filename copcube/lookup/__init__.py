"""Queries of cubes: vectors at places, similar places, classes of places, and change."""

from copcube.lookup.boxes import box, polygon
from copcube.lookup.change import change
from copcube.lookup.clusters import cluster
from copcube.lookup.fragment_components import fit_fragments, project_fragments
from copcube.lookup.fragments import Fragments
from copcube.lookup.points import points
from copcube.lookup.similar import similar

__all__ = ["Fragments", "box", "change", "cluster", "fit_fragments", "points", "polygon"]
__all__ += ["project_fragments", "similar"]
