"""Embedding: the images of a partition to rows, and the tiles of an xarray image to vectors."""

from copcube.embedding.partition import Batch, Crop, Encoder, Spec, embed_partition

__all__ = ["Batch", "Crop", "Encoder", "Spec", "embed_partition"]
