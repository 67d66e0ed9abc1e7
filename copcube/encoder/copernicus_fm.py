"""Copernicus-FM: a vision transformer for images of any bands, place, time and scale.

The architecture of arXiv:2503.11849 (code: github.com/zhu-xlab/Copernicus-FM), with the
tensor names of the published weights. The kernel that cuts an image into tokens is made
from the description of its bands (`copcube.encoder.kernels`); where, when and at what
scale the image was taken is added to every token.

Unlike in the published code, metadata that one image lacks leaves its batch mates alone,
and kernels and position embeddings are kept between calls.
"""

import functools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, NamedTuple, ParamSpec, TypeVar

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from copcube.encoder.kernels import (
    LANGUAGE_DIM,
    Kernel,
    SpectralKernel,
    VariableKernel,
    fourier,
    require,
)
from copcube.errors import OptionError

__all__ = ["LANGUAGE_DIM", "CopernicusFM", "Pooling"]

Pooling = Literal["cls", "mean"]

_P = ParamSpec("_P")
_T = TypeVar("_T")

_GRID = 14  # side of the stored position grid, in tokens
_EPS = 1e-6
_KEPT = 64  # kernels and position embeddings kept at most

# Shortest and longest wave of the metadata's Fourier codes, which are also the smallest
# and largest number, apart from 0, that the published code takes (any number of days).
_DEGREES = (1e-4, 720.0)
_DAYS = (1.0, 365.25)
_AREA = (1e-3, 5.1e8)


class _Field(NamedTuple):
    """What one metadata value may be, and what is added to it before it is encoded."""

    name: str
    offset: float
    span: tuple[float, float]
    permitted: str


_FIELDS = (
    _Field("longitude", 180, (1e-4, 360), "-180, or -179.9999 to 180 (wrap 0 to 360 first)"),
    _Field("latitude", 90, (1e-4, 180), "-90, or -89.9999 to 90"),
    _Field("time", 0, (-math.inf, math.inf), "a number of days since 1970-01-01"),
    _Field("token area", 0, _AREA, "0, or 0.001 to 5.1e8 km²"),
)


def _eager(function: Callable[_P, _T]) -> Callable[_P, _T]:
    """Keep out of ``torch.compile``: what checks values or keeps tensors."""
    kept_out: Callable[_P, _T] = torch.compiler.disable(function)  # type: ignore[no-untyped-call]
    return kept_out


class CopernicusFM(nn.Module):
    """Copernicus-FM encoder; the defaults are the published ViT-B/16.

    Parameters
    ----------
    pooling : {"cls", "mean"}
        Feature of an image: the class token after ``norm``, or the mean of the patch
        tokens, then ``fc_norm``. Only the one norm exists.
    embed_dim, depth, heads : int
        Width, number of blocks, attention heads.

    Raises
    ------
    OptionError
        If `pooling` is neither, or `embed_dim` is no multiple of 4 and of `heads`.

    Notes
    -----
    The model computes in the dtype of its blocks. What lies outside them may stay in
    float32 (``model.blocks.to(torch.bfloat16)``), which keeps kernels and metadata exact;
    ``model.to(torch.bfloat16)`` works too. Pooling and the last norm are always float32.

    Kernels and resized position embeddings are kept while the model is in eval mode and
    gradients are off. A kept value is valid as long as the parameters that it was made
    from are the same objects, at the same address, with the same version counter: that
    sees ``load_state_dict``, ``copy_`` and replaced parameters, without touching the
    device. All are dropped by `train`, `eval`, `to` and a forward pass with gradients,
    for the sake of what counters miss: fused optimisers and edits through ``.data``.
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
        self._kept: dict[object, _Kept] = {}

        self.patch_embed_spectral = SpectralKernel(embed_dim)
        self.patch_embed_variable = VariableKernel(embed_dim)
        self.cls_token = nn.Parameter(0.02 * torch.randn(1, 1, embed_dim))
        self.pos_embed = nn.Parameter(sincos_grid(embed_dim), requires_grad=False)
        self.coord_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        self.scale_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        self.time_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        self.coord_fc = nn.Linear(embed_dim, embed_dim)
        self.scale_fc = nn.Linear(embed_dim, embed_dim)
        self.time_fc = nn.Linear(embed_dim, embed_dim)
        norm_layer: Any = functools.partial(nn.LayerNorm, eps=_EPS)
        self.blocks = nn.ModuleList(
            Block(embed_dim, heads, qkv_bias=True, norm_layer=norm_layer) for _ in range(depth)
        )
        setattr(self, "norm" if pooling == "cls" else "fc_norm", norm_layer(embed_dim))

    @property
    def dtype(self) -> torch.dtype:
        """What the blocks compute in."""
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
    ) -> Tensor:
        """Embed a batch of images of the same bands.

        Parameters
        ----------
        images : Tensor
            (batch, bands, rows, columns), normalised, on the model's device.
        metadata : Tensor
            (batch, 4): longitude and latitude in degrees, days since 1970-01-01, area of
            one token in km²; NaN where unknown. Best kept on the CPU, where it is checked.
        wavelengths, bandwidths : sequence of float, optional
            Centre and width of every band in nm.
        language_embedding : Tensor, optional
            (2048,), instead of these: that of the variable in the images' only band. Best
            kept on the CPU, where it is hashed.
        kernel_size : int
            Side of a token in pixels.
        tokens : bool
            Whether to return the patch tokens rather than one vector an image.

        Returns
        -------
        Tensor
            (batch, embed_dim) float32; with `tokens` (batch, h·w, embed_dim), after the
            last norm, row by row from the top.

        Raises
        ------
        OptionError
            If arguments do not fit each other or lie outside the range of their encoding.
        """
        kernel = self._kernel(images, wavelengths, bandwidths, language_embedding, kernel_size)
        patches, grid = _patches(images.to(self.dtype), kernel_size)
        x = F.linear(patches, *kernel)
        x = torch.cat([self.cls_token.to(x).expand(len(x), -1, -1), x], dim=1)
        context = self._context(_codable(metadata, len(images)).to(x.device, non_blocking=True))
        x = (x + (self._positions(*grid) + context)).to(self.dtype)
        for block in self.blocks:
            x = block(x)
        if tokens:
            return self._normed(x[:, 1:].float())
        return self._normed(x[:, 0].float() if self.pooling == "cls" else x[:, 1:].float().mean(1))

    def train(self, mode: bool = True) -> "CopernicusFM":
        """Set training or eval mode, and drop what was kept."""
        self._kept.clear()
        return super().train(mode)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "CopernicusFM":
        self._kept.clear()
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call, no-any-return]

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
            + _known_or(fourier(area, *_AREA, dim), self.scale_token, self.scale_fc)
            + _known_or(fourier(days, *_DAYS, dim), self.time_token, self.time_fc)
        )

    @_eager
    def _kernel(
        self,
        images: Tensor,
        wavelengths: Sequence[float] | None,
        bandwidths: Sequence[float] | None,
        embedding: Tensor | None,
        size: int,
    ) -> Kernel:
        """Patch embedding of these bands, its weight flat: (embed_dim, bands·size·size)."""
        _check_images(images, size)
        description: tuple[Any, ...]
        key: Any
        if wavelengths is not None and bandwidths is not None and embedding is None:
            key = description = (tuple(map(float, wavelengths)), tuple(map(float, bandwidths)))
            network: nn.Module = self.patch_embed_spectral
            found = f"{len(key[0])} wavelengths and {len(key[1])} bandwidths"
            fits = len(key[0]) == len(key[1]) == images.shape[1]
        elif embedding is not None and wavelengths is None and bandwidths is None:
            description = (embedding,)
            key = embedding.detach().to("cpu", torch.float32).numpy().tobytes()
            network = self.patch_embed_variable
            found = f"a language embedding of shape {tuple(embedding.shape)}"
            fits = embedding.shape == (LANGUAGE_DIM,) and images.shape[1] == 1
        else:
            found, fits = "another combination of these", False
        if not fits:
            raise OptionError(
                f"images of {images.shape[1]} bands came with {found}; expected as many "
                f"wavelengths and bandwidths, or, for one band, a language embedding of shape "
                f"({LANGUAGE_DIM},)"
            )
        dtype = self.dtype

        def make() -> Kernel:
            weight, bias = network(*description).resized(size)
            return Kernel(weight.flatten(1).to(dtype), bias.to(dtype))

        return self._keep((key, size, dtype), network.parameters(), make)

    @_eager
    def _positions(self, height: int, width: int) -> Tensor:
        """Position embeddings of the class token and of a grid, (1, 1 + h·w, embed_dim)."""
        return self._keep(
            (height, width),
            [self.pos_embed],
            lambda: _resize_positions(self.pos_embed, height, width),
        )

    def _keep(self, key: object, sources: Iterable[nn.Parameter], make: Callable[[], _T]) -> _T:
        """Return what `make` makes of the sources, or made of them as they are now."""
        if self.training or torch.is_grad_enabled():
            self._kept.clear()
            return make()
        sources = tuple(sources)
        if any(source.is_inference() for source in sources):  # these count no versions
            return make()
        stamp = [(id(source), source.data_ptr(), source._version) for source in sources]
        kept = self._kept.get(key)
        if kept is None or kept.stamp != stamp:
            if len(self._kept) >= _KEPT:
                self._kept.clear()
            kept = self._kept[key] = _Kept(make(), stamp, sources)
        value: _T = kept.value
        return value


class _Kept(NamedTuple):
    """A value, and what it was made from: holding that keeps its ids from being reused."""

    value: Any
    stamp: list[tuple[int, int, int]]
    sources: tuple[nn.Parameter, ...]


def _known_or(code: Tensor, token: Tensor, linear: nn.Linear) -> Tensor:
    """Project the codes (batch, 1, dim) of what is known, and the token where it is NaN."""
    unknown = code.isnan().any(-1, keepdim=True)
    projected: Tensor = linear(torch.where(unknown, token, code.to(token.dtype)))
    return projected


@_eager
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
    numbers = given.float() + torch.tensor([field.offset for field in _FIELDS]).float()
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


def _patches(images: Tensor, size: int) -> tuple[Tensor, tuple[int, int]]:
    """Cut images into patches, (batch, h·w, bands·size·size), and tell (h, w).

    The published convolution with stride `size` and padding 1 sees these patches: they
    start one pixel outside the image. A matrix product with them is as fast, and does not
    depend on how a library convolves or on its TF32 setting.
    """
    batch, bands, rows, columns = images.shape
    h, w = (rows + 2) // size, (columns + 2) // size
    images = F.pad(images, (1, w * size - columns - 1, 1, h * size - rows - 1))
    images = images.reshape(batch, bands, h, size, w, size).permute(0, 2, 4, 1, 3, 5)
    return images.reshape(batch, h * w, bands * size * size), (h, w)


def _resize_positions(stored: Tensor, height: int, width: int) -> Tensor:
    if (height, width) == (_GRID, _GRID):
        return stored
    grid = stored[:, 1:].float().reshape(1, _GRID, _GRID, -1).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, size=(height, width), mode="bicubic", antialias=True)
    return torch.cat([stored[:, :1], grid.flatten(2).transpose(1, 2).to(stored)], dim=1)


def sincos_grid(dim: int) -> Tensor:
    """Sine-cosine embedding of the grid, (1, 1 + 14·14, dim): zeros, then column and row."""
    waves = 10000.0 ** (-torch.arange(dim // 4, dtype=torch.float64) / (dim // 4))
    phase = torch.arange(_GRID, dtype=torch.float64)[:, None] * waves
    code = torch.cat([phase.sin(), phase.cos()], dim=1)
    grid = torch.cat([code.repeat(_GRID, 1), code.repeat_interleave(_GRID, 0)], dim=1)
    return torch.cat([torch.zeros(1, dim, dtype=torch.float64), grid])[None].float()
