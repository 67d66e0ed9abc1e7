"""Weights of the reference outputs, which a rule draws from the names of the tensors."""

import functools
import math
import zlib
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from copcube.encoder.copernicus_fm import CopernicusFM


def draw(name: str, shape: tuple[int, ...]) -> Tensor:
    """Standard normal noise, the same for the same name."""
    generator = np.random.RandomState(zlib.crc32(name.encode()))
    return torch.from_numpy(generator.standard_normal(shape).astype(np.float32))


def drawn(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Tensors by the rule in the reference file's README."""
    state = {}
    for name, shape in shapes.items():
        x = draw(name, tuple(shape))
        if "norm" in name and name.endswith("weight"):
            state[name] = 1 + 0.1 * x
        elif x.ndim == 2 and name.endswith("weight"):
            state[name] = x / math.sqrt(x.shape[1])
        else:
            state[name] = 0.1 * x
    return state


@functools.cache
def published_state() -> dict[str, Tensor]:
    """Tensors of the ViT-B with the norms of both poolings; half a gigabyte, drawn once."""
    with torch.device("meta"):
        models = CopernicusFM("cls"), CopernicusFM("mean")
    return drawn({n: t.shape for model in models for n, t in model.state_dict().items()})


def published_model(pooling: str) -> CopernicusFM:
    """The ViT-B around those tensors."""
    with torch.device("meta"):
        model = CopernicusFM(pooling)  # type: ignore[arg-type]
    state = published_state()
    model.load_state_dict({name: state[name] for name in model.state_dict()}, assign=True)
    return model.eval()
