"""Embedding: the images of a partition to rows, and the tiles of an xarray image to vectors."""

from copcube.embedding.encoders import Encoder, SharedEncoder, Spec, as_encoder
from copcube.embedding.partition import Batch, Crop, crop_image, embed_partition

__all__ = [
    "Batch",
    "Crop",
    "Encoder",
    "SharedEncoder",
    "Spec",
    "as_encoder",
    "crop_image",
    "embed_partition",
]
