"""A block of a vision transformer: attention, then a perceptron, each beside a shortcut.

Tensor names, and the order in which their first values are drawn, are those of timm's `Block`, with
which the published weights were trained. Importing timm takes longer than importing torch, and
every worker would wait for it.
"""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn


class Block(nn.Module):
    """Attention and perceptron over tokens of some width, each after a norm.

    Parameters
    ----------
    dim : int
        Width of the tokens, a multiple of `heads`.
    heads : int
        Attention heads.
    norm_layer : callable
        Makes a norm for tokens of a width.
    """

    def __init__(self, dim: int, heads: int, norm_layer: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.norm1 = norm_layer(dim)
        self.attn = _Attention(dim, heads)
        self.norm2 = norm_layer(dim)
        self.mlp = _Perceptron(dim)

    def forward(self, x: Tensor) -> Tensor:
        """Transform tokens, (batch, tokens, dim)."""
        seen: Tensor = x + self.attn(self.norm1(x))
        transformed: Tensor = seen + self.mlp(self.norm2(seen))
        return transformed


class _Attention(nn.Module):
    """Attention of every token to all, by several heads."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.num_heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, dim = x.shape
        parts = self.qkv(x).reshape(batch, tokens, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        query, key, value = parts.unbind(0)
        seen = F.scaled_dot_product_attention(query, key, value)
        projected: Tensor = self.proj(seen.transpose(1, 2).reshape(batch, tokens, dim))
        return projected


class _Perceptron(nn.Module):
    """Two layers, the inner one of four times the width."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, 4 * dim)
        self.fc2 = nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        lifted: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return lifted
