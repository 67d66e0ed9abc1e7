"""Resizing images and labels to the encoder's size, if readers have not done so.

As the official code does it by kornia: images linearly, with the centres of corners on each other,
labels by the nearest centre, as kornia from 0.9 on does; before, it took the pixel that the upper
left corner lies in. What the official readers resize themselves, those of
`copcube.probes.bench.layouts` do.
"""

import torch.nn.functional as F
from torch import Tensor


def resized(images: Tensor, size: int) -> Tensor:
    """Bring images, (batch, bands, rows, columns) float32, to squares of a size.

    The weights of neighbours sum to 1, so that it does not matter whether images are
    normalised before or after.
    """
    if tuple(images.shape[2:]) == (size, size):
        return images
    return F.interpolate(images, (size, size), mode="bilinear", align_corners=True)


def resized_labels(labels: Tensor, size: int) -> Tensor:
    """Bring maps of classes or numbers, (batch, rows, columns), to squares of a size."""
    if tuple(labels.shape[1:]) == (size, size):
        return labels
    return F.interpolate(labels[:, None].float(), (size, size), mode="nearest-exact")[:, 0].to(
        labels
    )
