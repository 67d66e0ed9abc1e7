"""Patch-embedding kernels made from the description of an image's bands.

The two hypernetworks of Copernicus-FM (arXiv:2503.11849), with the published tensor
names: one reads wavelengths and bandwidths, the other the language embedding of a
variable. Numbers are encoded by Fourier expansions as in Aurora (arXiv:2405.13063), and
kernels are resized as in FlexiViT (arXiv:2212.08013).
"""

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from copcube.errors import OptionError
from copcube.modalities import LANGUAGE_DIM

_SIDE = 16  # of the kernels that the networks make, in pixels
_WIDTH = 128  # of the networks
_WAVELENGTH = (1e2, 1e9)  # nm, as the next
_BANDWIDTH = (1.0, 1e9)


class Kernel(NamedTuple):
    """A patch embedding.

    Parameters
    ----------
    weight : Tensor
        (embed_dim, bands, rows, columns).
    bias : Tensor
        (embed_dim,).
    """

    weight: Tensor
    bias: Tensor

    def resized(self, size: int) -> "Kernel":
        """Bring to a side of `size` pixels, so that it responds alike to a resized image."""
        if size == _SIDE:
            return self
        spread = _pseudoinverse(size).to(self.weight)
        return Kernel(spread @ self.weight @ spread.T, self.bias)


class SpectralKernel(nn.Module):
    """Makes the kernel of spectral bands.

    Parameters
    ----------
    embed_dim : int
        Length of a token.
    """

    def __init__(self, embed_dim: int) -> None:
        super().__init__()
        self.weight_generator = _WeightGenerator(embed_dim)
        self.fclayer = _ResidualMLP()

    def forward(self, wavelengths: Sequence[float], bandwidths: Sequence[float]) -> Kernel:
        """Make the kernel of bands, given centre and width of each in nm.

        Raises
        ------
        OptionError
            If a number lies outside the range of its code.
        """
        centres = torch.tensor(wavelengths, dtype=torch.float64)
        widths = torch.tensor(bandwidths, dtype=torch.float64)
        require(centres, centres, _WAVELENGTH, "wavelength of band", "0, or 100 to 1e9 nm")
        require(widths, widths, _BANDWIDTH, "bandwidth of band", "0, or 1 to 1e9 nm")
        codes = fourier(centres, *_WAVELENGTH, _WIDTH) + fourier(widths, *_BANDWIDTH, _WIDTH)
        kernel: Kernel = self.weight_generator(self.fclayer(codes.to(self.fclayer.w1.weight)))
        return kernel


class VariableKernel(nn.Module):
    """Makes the kernel of a variable, such as elevation.

    Parameters
    ----------
    embed_dim : int
        Length of a token.
    """

    def __init__(self, embed_dim: int) -> None:
        super().__init__()
        self.language_proj = nn.Linear(LANGUAGE_DIM, _WIDTH)
        self.weight_generator = _WeightGenerator(embed_dim)
        self.fclayer = _ResidualMLP()

    def forward(self, embedding: Tensor) -> Kernel:
        """Make the kernel of the variable with this language embedding, (2048,)."""
        words = embedding.to(self.language_proj.weight)[None]
        kernel: Kernel = self.weight_generator(self.fclayer(self.language_proj(words)))
        return kernel


class _ResidualMLP(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w1 = nn.Linear(_WIDTH, _WIDTH)
        self.w2 = nn.Linear(_WIDTH, _WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return x + F.relu(self.w2(F.relu(self.w1(x))))


class _WeightGenerator(nn.Module):
    """One transformer layer over learned tokens and band codes (bands, 128)."""

    def __init__(self, embed_dim: int) -> None:
        super().__init__()
        self.weight_tokens = nn.Parameter(first_tokens(_WIDTH, _WIDTH))
        self.bias_token = nn.Parameter(first_tokens(1, _WIDTH))
        self.transformer_encoder = nn.TransformerEncoder(
            nn.TransformerEncoderLayer(
                _WIDTH, nhead=4, dim_feedforward=2048, dropout=0.0, activation="gelu"
            ),
            num_layers=1,
            # It is for padded batches, which do not occur, and torch warns if it cannot be used.
            enable_nested_tensor=False,
        )
        self.fc_weight = nn.Linear(_WIDTH, _SIDE * _SIDE * embed_dim)
        self.fc_bias = nn.Linear(_WIDTH, embed_dim)

    def forward(self, bands: Tensor) -> Kernel:
        out = self.transformer_encoder(torch.cat([self.weight_tokens, bands, self.bias_token]))
        weight = self.fc_weight(out[_WIDTH:-1] + bands)
        weight = weight.reshape(len(bands), _SIDE, _SIDE, -1).permute(3, 0, 1, 2)
        # The published code scales both so; the weights were trained with it.
        return Kernel(0.01 * weight, 0.01 * self.fc_bias(out[-1]))


def first_tokens(*shape: int) -> Tensor:
    """Draw the first values of learned tokens, normal with a deviation of 0.02.

    Nothing is drawn on the meta device, where models are made before weights are loaded: torch
    would import its compiler and SymPy for that.
    """
    tokens = torch.empty(shape)
    return tokens if tokens.is_meta else 0.02 * torch.randn(shape)


def fourier(x: Tensor, shortest: float, longest: float, width: int) -> Tensor:
    """Sines, then cosines, of numbers at waves evenly spaced in the logarithm.

    Parameters
    ----------
    x : Tensor
        (...) float64.
    shortest, longest : float
        First and last wave, in the unit of `x`.
    width : int
        Length of the code.

    Returns
    -------
    Tensor
        (..., width) float64.
    """
    waves = torch.logspace(
        math.log10(shortest), math.log10(longest), width // 2, dtype=x.dtype, device=x.device
    )
    phase = x.unsqueeze(-1) * (2 * math.pi / waves)
    return torch.cat([phase.sin(), phase.cos()], dim=-1)


def require(x: Tensor, given: Tensor, span: tuple[float, float], name: str, permitted: str) -> None:
    """Refuse numbers that are neither 0 nor within a span, as the published codes do.

    Parameters
    ----------
    x, given : Tensor
        (rows,), on the CPU: the numbers, and the values that they were made from.
    span : tuple of float
        Smallest and largest, both permitted.
    name, permitted : str
        What the message calls a row and the permitted values.

    Raises
    ------
    OptionError
        At the first such number, NaN included.
    """
    bad = ~((x == 0) | ((x >= span[0]) & (x <= span[1])))
    if bad.any():
        row = int(bad.nonzero()[0, 0])
        raise OptionError(f"{name} {row} is {given[row].item():.10g}; expected {permitted}")


@functools.cache
def _pseudoinverse(size: int) -> Tensor:
    """Pseudo-inverse (size, 16) of the bicubic resize of one axis from 16 to `size` pixels.

    The resize of an image is the Kronecker product of the resizes of its axes, hence so is
    its pseudo-inverse, of which FlexiViT's has size² x 256 entries.
    """
    with torch.inference_mode(False):
        rows = torch.eye(_SIDE, dtype=torch.float64)[None, None]
        resize = F.interpolate(rows, size=(_SIDE, size), mode="bicubic", antialias=True)[0, 0]
        inverse: Tensor = torch.linalg.pinv(resize)
        return inverse
