"""Copernicus-FM: a vision transformer for images of any bands, place, time and scale.

The architecture of arXiv:2503.11849 (code: github.com/zhu-xlab/Copernicus-FM), with the tensor
names of the published weights. The kernel that cuts an image into tokens is made from the
description of its bands (`copcube.encoder.kernels`); place, time and scale of the image are added
to every token.

Unlike in the published code, an image without metadata does not affect the rest of its batch.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from copcube.encoder.block import Block
from copcube.encoder.kernels import (
    Kernel,
    SpectralKernel,
    VariableKernel,
    first_tokens,
    fourier,
    require,
)
from copcube.errors import OptionError
from copcube.modalities import AREA, LANGUAGE_DIM

Pooling = Literal["cls", "mean"]

_GRID = 14  # side of the stored position grid, in tokens
_EPS = 1e-6

# Shortest and longest wave of the metadata's Fourier codes, which are also the smallest
# and largest number, apart from 0, that the published code takes (any number of days).
_DEGREES = (1e-4, 720.0)
_DAYS = (1.0, 365.25)


class _Field(NamedTuple):
    """Permitted values of one metadata field, and what is added before encoding."""

    name: str
    offset: float
    span: tuple[float, float]
    permitted: str


_FIELDS = (
    _Field("longitude", 180, (1e-4, 360), "-180, or -179.9999 to 180 (wrap 0 to 360 first)"),
    _Field("latitude", 90, (1e-4, 180), "-90, or -89.9999 to 90"),
    _Field("time", 0, (-math.inf, math.inf), "a number of days since 1970-01-01"),
    _Field("token area", 0, AREA, "0, or 0.001 to 5.1e8 km²"),
)


class CopernicusFM(nn.Module):
    """Copernicus-FM encoder; the defaults are the published ViT-B/16.

    Parameters
    ----------
    pooling : {"cls", "mean"}
        Feature of an image: the class token after ``norm``, or the mean of the patch tokens, then
        ``fc_norm``. Only that norm exists.
    embed_dim, depth, heads : int
        Width, number of blocks, attention heads.

    Raises
    ------
    OptionError
        If `pooling` is neither, or `embed_dim` is not a multiple of 4 and of `heads`.

    Notes
    -----
    The model computes in the dtype of its blocks. The rest may stay in float32
    (``model.blocks.to(torch.bfloat16)``), which keeps kernels and metadata exact;
    ``model.to(torch.bfloat16)`` works too. Pooling and the last norm are always float32.

    `forward` makes the kernel and the position embeddings in every call. If the weights do not
    change, make them once with `kernel` and `positions` and call `encode`, as
    `copcube.encoder.FrozenEncoder` does.
    """

    def __init__(
        self,
        pooling: Pooling = "cls",
        *,
        embed_dim: int = 768,
        depth: int = 12,
        heads: int = 12,
    ) -> None:
        super().__init__()
        if pooling not in ("cls", "mean"):
            raise OptionError(f"pooling is {pooling!r}; expected 'cls' or 'mean'")
        if embed_dim % 4 or embed_dim % heads:
            raise OptionError(
                f"embed_dim is {embed_dim}; expected a multiple of 4 and of the {heads} heads"
            )
        self.pooling = pooling
        self.embed_dim = embed_dim

        self.patch_embed_spectral = SpectralKernel(embed_dim)
        self.patch_embed_variable = VariableKernel(embed_dim)
        self.cls_token = nn.Parameter(first_tokens(1, 1, embed_dim))
        # Copied, so that the model may be made on the meta device without computing there.
        positions = torch.empty(1, 1 + _GRID * _GRID, embed_dim).copy_(sincos_grid(embed_dim))
        self.pos_embed = nn.Parameter(positions, requires_grad=False)
        self.coord_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        self.scale_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        self.time_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        self.coord_fc = nn.Linear(embed_dim, embed_dim)
        self.scale_fc = nn.Linear(embed_dim, embed_dim)
        self.time_fc = nn.Linear(embed_dim, embed_dim)
        norm_layer: Any = functools.partial(nn.LayerNorm, eps=_EPS)
        self.blocks = nn.ModuleList(Block(embed_dim, heads, norm_layer) for _ in range(depth))
        # By the names in checkpoints, of which one has either.
        setattr(self, "norm" if pooling == "cls" else "fc_norm", norm_layer(embed_dim))

    @property
    def dtype(self) -> torch.dtype:
        """Data type in which the blocks compute."""
        return next(self.blocks.parameters()).dtype

    def forward(
        self,
        images: Tensor,
        metadata: Tensor,
        *,
        wavelengths: Sequence[float] | None = None,
        bandwidths: Sequence[float] | None = None,
        language_embedding: Tensor | None = None,
        kernel_size: int = 16,
        tokens: bool = False,
        levels: Sequence[int] = (),
    ) -> Tensor:
        """Embed a batch of images of the same bands.

        Parameters
        ----------
        images : Tensor
            (batch, bands, rows, columns), normalised, on the model's device.
        metadata : Tensor
            (batch, 4): longitude and latitude in degrees, days since 1970-01-01, area of one token
            in km²; NaN where unknown. Best kept on the CPU, where they are checked.
        wavelengths, bandwidths : sequence of float, optional
            Centre and width of every band in nm.
        language_embedding : Tensor, optional
            (2048,), instead of these: that of the variable in the images' only band.
        kernel_size : int
            Side of a token in pixels.
        tokens, levels
            As for `encode`.

        Returns
        -------
        Tensor
            See `encode`.

        Raises
        ------
        OptionError
            If arguments do not fit together or lie outside the range of their encoding.
        """
        # Checked before a kernel is made, which may have any number of bands and any size.
        _check_images(images, kernel_size)
        _check_bands(images.shape[1], wavelengths, bandwidths, language_embedding)
        kernel = self.kernel(
            wavelengths=wavelengths,
            bandwidths=bandwidths,
            language_embedding=language_embedding,
            kernel_size=kernel_size,
        )
        rows, columns = images.shape[2:]
        positions = self.positions(*token_grid(rows, columns, kernel_size))
        return self.encode(images, metadata, kernel, positions, tokens=tokens, levels=levels)

    def kernel(
        self,
        *,
        wavelengths: Sequence[float] | None = None,
        bandwidths: Sequence[float] | None = None,
        language_embedding: Tensor | None = None,
        kernel_size: int = 16,
    ) -> Kernel:
        """Make the patch embedding of bands, described as for `forward`, in the blocks' dtype.

        Raises
        ------
        OptionError
            If a wavelength or bandwidth lies outside the range of its encoding.
        """
        if language_embedding is not None:
            made = self.patch_embed_variable(language_embedding)
        else:
            made = self.patch_embed_spectral(wavelengths, bandwidths)
        weight, bias = made.resized(kernel_size)
        return Kernel(weight.to(self.dtype), bias.to(self.dtype))

    def positions(self, height: int, width: int) -> Tensor:
        """Position embeddings of the class token and of a grid, (1, 1 + h·w, embed_dim)."""
        return _resize_positions(self.pos_embed, height, width)

    def encode(
        self,
        images: Tensor,
        metadata: Tensor,
        kernel: Kernel,
        positions: Tensor,
        *,
        tokens: bool = False,
        levels: Sequence[int] = (),
    ) -> Tensor:
        """Embed a batch of images with a kernel and positions that were made before.

        Parameters
        ----------
        images, metadata : Tensor
            As for `forward`.
        kernel : Kernel
            Patch embedding of the bands of the images, made by `kernel`.
        positions : Tensor
            Position embeddings, made by `positions` for the grid of tokens that an image has
            (`token_grid`).
        tokens : bool
            Whether to return the patch tokens rather than one vector an image.
        levels : sequence of int
            Blocks, counted from 0 and ascending, whose patch tokens are returned as they leave
            them, without a norm.

        Returns
        -------
        Tensor
            (batch, embed_dim) float32; with `tokens` (batch, h·w, embed_dim), after the
            last norm, row by row from the top; with `levels` (batch, levels, h·w, embed_dim).

        Raises
        ------
        OptionError
            If the images do not fit the kernel, metadata lie outside the range of their
            encoding, or there are no such levels.
        """
        if list(levels) != sorted({*levels} & {*range(len(self.blocks))}):
            raise OptionError(
                f"levels={levels!r}; expected ascending numbers of blocks, 0 to "
                f"{len(self.blocks) - 1}"
            )
        patches = _patches(images.to(self.dtype), kernel.weight.shape[-1])
        x = F.linear(patches, kernel.weight.flatten(1), kernel.bias)
        x = torch.cat([self.cls_token.to(x).expand(len(x), -1, -1), x], dim=1)
        context = self._context(_codable(metadata, len(images)).to(x.device, non_blocking=True))
        x = (x + (positions + context)).to(self.dtype)
        left = []
        for number, block in enumerate(self.blocks):
            x = block(x)
            if number in levels:
                left.append(x[:, 1:].float())
        if levels:
            return torch.stack(left, dim=1)
        if tokens:
            return self._normed(x[:, 1:].float())
        return self._normed(x[:, 0].float() if self.pooling == "cls" else x[:, 1:].float().mean(1))

    def _normed(self, x: Tensor) -> Tensor:
        norm = self.norm if self.pooling == "cls" else self.fc_norm
        assert isinstance(norm, nn.LayerNorm)
        return F.layer_norm(x, (self.embed_dim,), norm.weight.float(), norm.bias.float(), _EPS)

    def _context(self, codable: Tensor) -> Tensor:
        """Sum of the vectors of place, scale and time, (batch, 1, embed_dim)."""
        east, north, days, area = codable.unsqueeze(1).unbind(-1)  # each (batch, 1)
        dim = self.embed_dim
        place = [fourier(degrees, *_DEGREES, dim // 2) for degrees in (east, north)]
        return (
            _known_or(torch.cat(place, dim=-1), self.coord_token, self.coord_fc)
            + _known_or(fourier(area, *AREA, dim), self.scale_token, self.scale_fc)
            + _known_or(fourier(days, *_DAYS, dim), self.time_token, self.time_fc)
        )


def _known_or(code: Tensor, token: Tensor, linear: nn.Linear) -> Tensor:
    """Project the codes (batch, 1, dim) of known values; use the token where they are NaN."""
    unknown = code.isnan().any(-1, keepdim=True)
    projected: Tensor = linear(torch.where(unknown, token, code.to(token.dtype)))
    return projected


def _codable(metadata: Tensor, batch: int) -> Tensor:
    """Bring metadata to the numbers to be encoded: (batch, 4) float64 on the CPU, checked.

    They are rounded to float32 on the way, as in pretraining: at the shortest waves the
    float32 nearest to 5.76 km² has another code, and the weights know only that one.
    """
    if metadata.shape != (batch, 4):
        raise OptionError(
            f"metadata has shape {tuple(metadata.shape)}; expected ({batch}, 4): longitude, "
            "latitude, days since 1970-01-01, token area in km²"
        )
    given = metadata.detach().cpu()
    numbers = given.float() + torch.tensor([field.offset for field in _FIELDS], dtype=torch.float32)
    for column, field in enumerate(_FIELDS):
        known = numbers[:, column].nan_to_num(nan=0.0, posinf=math.nan, neginf=math.nan)
        permitted = f"{field.permitted}, or NaN if unknown"
        require(known, given[:, column], field.span, f"{field.name} of image", permitted)
    return numbers.double()


def _check_images(images: Tensor, size: int) -> None:
    if images.ndim != 4:
        raise OptionError(
            f"images have shape {tuple(images.shape)}; expected (batch, bands, rows, columns)"
        )
    rows, columns = images.shape[2:]
    if not 1 <= size <= min(rows, columns) + 2:
        raise OptionError(
            f"kernel_size is {size}; expected 1 to {min(rows, columns) + 2} for images of "
            f"{rows}x{columns} pixels"
        )


def _check_bands(
    count: int,
    wavelengths: Sequence[float] | None,
    bandwidths: Sequence[float] | None,
    embedding: Tensor | None,
) -> None:
    """Refuse a description that does not fit images of `count` bands."""
    if wavelengths is not None and bandwidths is not None and embedding is None:
        found = f"{len(wavelengths)} wavelengths and {len(bandwidths)} bandwidths"
        fits = len(wavelengths) == len(bandwidths) == count
    elif embedding is not None and wavelengths is None and bandwidths is None:
        found = f"a language embedding of shape {tuple(embedding.shape)}"
        fits = embedding.shape == (LANGUAGE_DIM,) and count == 1
    else:
        found, fits = "a different combination of these", False
    if not fits:
        raise OptionError(
            f"images of {count} bands came with {found}; expected as many wavelengths and "
            f"bandwidths, or, for one band, a language embedding of shape ({LANGUAGE_DIM},)"
        )


def token_grid(rows: int, columns: int, size: int) -> tuple[int, int]:
    """Tokens of `size` pixels along the rows and columns of an image, padded by one pixel."""
    return (rows + 2) // size, (columns + 2) // size


def _patches(images: Tensor, size: int) -> Tensor:
    """Cut images into patches, (batch, h·w, bands·size·size).

    The published convolution with stride `size` and padding 1 sees these patches: they
    start one pixel outside the image. A matrix product with them is as fast, and does not
    depend on how a library convolves or on its TF32 setting.
    """
    _check_images(images, size)
    batch, bands, rows, columns = images.shape
    h, w = token_grid(rows, columns, size)
    images = F.pad(images, (1, w * size - columns - 1, 1, h * size - rows - 1))
    images = images.reshape(batch, bands, h, size, w, size).permute(0, 2, 4, 1, 3, 5)
    return images.reshape(batch, h * w, bands * size * size)


def _resize_positions(stored: Tensor, height: int, width: int) -> Tensor:
    if (height, width) == (_GRID, _GRID):
        return stored
    grid = stored[:, 1:].float().reshape(1, _GRID, _GRID, -1).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, size=(height, width), mode="bicubic", antialias=True)
    return torch.cat([stored[:, :1], grid.flatten(2).transpose(1, 2).to(stored)], dim=1)


def sincos_grid(dim: int) -> Tensor:
    """Sine-cosine embedding of the grid, (1, 1 + 14·14, dim): zeros, then column and row."""
    with torch.device("cpu"):  # whatever device a model is made on
        waves = 10000.0 ** (-torch.arange(dim // 4, dtype=torch.float64) / (dim // 4))
        phase = torch.arange(_GRID, dtype=torch.float64)[:, None] * waves
        code = torch.cat([phase.sin(), phase.cos()], dim=1)
        grid = torch.cat([code.repeat(_GRID, 1), code.repeat_interleave(_GRID, 0)], dim=1)
        return torch.cat([torch.zeros(1, dim, dtype=torch.float64), grid])[None].float()
