"""Exact principal components of the cells, streamed over the blocks of the lattice."""

from copcube.pca.components import fit, project, reduce, restore
from copcube.pca.explain import explain
from copcube.pca.weights import Weights

__all__ = ["Weights", "explain", "fit", "project", "reduce", "restore"]
