"""Random rotations and flips of images and their targets, sample by sample.

As in the official evaluation, which uses kornia: each sample is rotated with probability 0.5 by
an angle that is uniform from -90 to 90 degrees, then flipped along each axis with probability
0.5. Corners that a rotation opens become 0: the mean of a normalised image or target, and class 0
of a map of classes.
"""

from dataclasses import dataclass
from typing import Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor

Mode = Literal["nearest", "bilinear"]

_LARGEST = 90.0
_LIKELY = 0.5


@dataclass(frozen=True, eq=False)
class Augmentation:
    """Rotation and flips of each sample of a batch.

    Parameters
    ----------
    angles : Tensor
        (batch,) degrees, counter-clockwise; 0 leaves a sample as it is.
    mirrored, upside_down : Tensor
        (batch,) bool: whether columns and rows are reversed.
    """

    angles: Tensor
    mirrored: Tensor
    upside_down: Tensor

    @classmethod
    def draw(cls, batch: int, generator: torch.Generator) -> Self:
        """Draw for a number of samples."""
        rotated, mirrored, upside_down = torch.rand(3, batch, generator=generator) < _LIKELY
        angles = (2 * torch.rand(batch, generator=generator) - 1) * _LARGEST
        return cls(torch.where(rotated, angles, 0.0), mirrored, upside_down)

    def __call__(self, x: Tensor, mode: Mode = "bilinear") -> Tensor:
        """Rotate and flip a batch.

        Parameters
        ----------
        x : Tensor
            (batch, channels, rows, columns) float32, on any device.
        mode : {"nearest", "bilinear"}
            How rotated pixels are taken. With "bilinear", NaN spreads to all pixels that it is
            among the neighbours of.

        Returns
        -------
        Tensor
            Of the same shape.
        """
        x = x.clone()
        turned = self.angles.nonzero().flatten()
        if len(turned):
            here = turned.to(x.device)
            x[here] = rotated(x[here], self.angles[turned], mode)
        for flipped, axis in ((self.mirrored, -1), (self.upside_down, -2)):
            here = flipped.nonzero().flatten().to(x.device)
            x[here] = x[here].flip(axis)
        return x


def rotated(x: Tensor, angles: Tensor, mode: Mode) -> Tensor:
    """Rotate images about the middle of their pixels' centres.

    Parameters
    ----------
    x : Tensor
        (batch, channels, rows, columns) float32.
    angles : Tensor
        (batch,) degrees, counter-clockwise.
    mode : {"nearest", "bilinear"}
        How pixels are taken; those from outside are 0.
    """
    rows, columns = x.shape[2:]
    radians = torch.deg2rad(angles.to(x))
    cos, sin, none = radians.cos(), radians.sin(), torch.zeros_like(radians)
    # A grid from -1 to 1 along both sides has pixels of two lengths unless the image is square.
    aspect = max(rows - 1, 1) / max(columns - 1, 1)
    back = torch.stack([cos, -aspect * sin, none, sin / aspect, cos, none], dim=1)
    grid = F.affine_grid(back.reshape(-1, 2, 3), list(x.shape), align_corners=True)
    return F.grid_sample(x, grid, mode=mode, padding_mode="zeros", align_corners=True)
