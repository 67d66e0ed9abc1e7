"""Exact principal components of the cells, streamed over the blocks of the lattice."""

from copcube.pca.components import Weights, fit, project, reduce, restore

__all__ = ["Weights", "fit", "project", "reduce", "restore"]
