"""The published head of segmentation, change and regression, and a linear one beside it.

UPerNet (Xiao et al., 2018, arXiv:1807.10221) on a pyramid made of four levels of a plain vision
transformer, as configured in the official evaluation of Copernicus-Bench, which takes it from
mmsegmentation 1.2.2: the same layers, order of concatenation and initial values. Batch norms are
those of one device.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_SCALES = (1, 2, 3, 6)
_AUXILIARY = 256
"""Channels of the auxiliary head."""
_DROPPED = 0.1


class UPerNet(nn.Module):
    """Main and auxiliary head on the levels of an encoder; 41,110,792 parameters for 4 classes.

    Parameters
    ----------
    dim : int
        Length of a token.
    classes : int
        Channels of the output: classes, or 1 of a regression.
    channels : int
        Channels inside the main head.
    """

    def __init__(self, dim: int, classes: int, channels: int = 512) -> None:
        super().__init__()
        self.neck = _Neck(dim)
        self.laterals = nn.ModuleList(_conv(dim, channels, 1) for _ in range(3))
        self.pooled = nn.ModuleList(_conv(dim, channels, 1) for _ in _SCALES)
        self.coarsest = _conv(dim + len(_SCALES) * channels, channels, 3)
        self.smoothed = nn.ModuleList(_conv(channels, channels, 3) for _ in range(3))
        self.fused = _conv(4 * channels, channels, 3)
        self.main = nn.Sequential(nn.Dropout2d(_DROPPED), nn.Conv2d(channels, classes, 1))
        self.auxiliary = nn.Sequential(
            _conv(dim, _AUXILIARY, 3), nn.Dropout2d(_DROPPED), nn.Conv2d(_AUXILIARY, classes, 1)
        )

    def forward(self, levels: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Predict from four maps of tokens.

        Parameters
        ----------
        levels : sequence of Tensor
            Four of (batch, dim, h, w), from the first block to the last.

        Returns
        -------
        main : Tensor
            (batch, classes, 4 h, 4 w).
        auxiliary : Tensor
            (batch, classes, h, w).
        """
        *finer, last = pyramid = self.neck(levels)
        maps = [lateral(level) for lateral, level in zip(self.laterals, finer, strict=True)]
        maps.append(self._coarsest(last))
        for n in (2, 1, 0):
            maps[n] = maps[n] + _resized(maps[n + 1], maps[n].shape[2:])
        # The coarsest map, last, was mixed already and joins as it is.
        maps[:3] = [conv(x) for conv, x in zip(self.smoothed, maps, strict=False)]
        finest = maps[0].shape[2:]
        fused = self.fused(torch.cat([_resized(x, finest) for x in maps], dim=1))
        return self.main(fused), self.auxiliary(pyramid[2])

    def _coarsest(self, x: Tensor) -> Tensor:
        """Put a map beside means of its surroundings, and mix them."""
        means = [
            _resized(conv(F.adaptive_avg_pool2d(x, scale)), x.shape[2:])
            for scale, conv in zip(_SCALES, self.pooled, strict=True)
        ]
        mixed: Tensor = self.coarsest(torch.cat([x, *means], dim=1))
        return mixed


class LinearHead(nn.Module):
    """One linear map for every token, on the levels side by side, brought to unit variance.

    Parameters
    ----------
    dim : int
        Length of a token.
    classes : int
        Channels of the output: classes, or 1 of a regression.
    levels : int
        Number of levels.
    """

    def __init__(self, dim: int, classes: int, levels: int) -> None:
        super().__init__()
        # Some channels of a transformer's blocks are hundreds of times larger than others.
        self.norm = nn.BatchNorm2d(dim * levels, affine=False)
        self.linear = nn.Conv2d(dim * levels, classes, 1)

    def forward(self, levels: Sequence[Tensor]) -> tuple[Tensor, None]:
        """Predict from maps (batch, dim, h, w): (batch, classes, h, w), and nothing auxiliary."""
        return self.linear(self.norm(torch.cat(list(levels), dim=1))), None


class _Neck(nn.Module):
    """Maps of 4, 2, 1 and half the size of the levels, in this order."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.quadrupled = nn.Sequential(
            nn.ConvTranspose2d(dim, dim, 2, 2),
            nn.BatchNorm2d(dim),
            nn.GELU(),
            nn.ConvTranspose2d(dim, dim, 2, 2),
        )
        self.doubled = nn.ConvTranspose2d(dim, dim, 2, 2)

    def forward(self, levels: Sequence[Tensor]) -> list[Tensor]:
        first, second, third, fourth = levels
        return [self.quadrupled(first), self.doubled(second), third, F.max_pool2d(fourth, 2)]


def _conv(inputs: int, outputs: int, size: int) -> nn.Sequential:
    """Convolution without bias, batch norm, ReLU."""
    # The batch norm behind it shifts, so a bias would do nothing.
    conv = nn.Conv2d(inputs, outputs, size, padding=size // 2, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU())


def _resized(x: Tensor, size: Sequence[int]) -> Tensor:
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=False)
