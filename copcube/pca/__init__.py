"""Exact principal components of the cells, streamed over the blocks of the lattice."""

from copcube.pca.components import fit, project, reduce, restore
from copcube.pca.explain import explain

__all__ = ["explain", "fit", "project", "reduce", "restore"]
