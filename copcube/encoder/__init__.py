"""The frozen encoder: Copernicus-FM, its weights, and how images go through it."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from copcube.encoder.spec import EncoderSpec
from copcube.encoder.timm_kinds import TimmSpec

if TYPE_CHECKING:
    from copcube.encoder.copernicus_fm import CopernicusFM
    from copcube.encoder.frozen import FrozenEncoder
    from copcube.encoder.weights import Weights, load_weights

__all__ = ["CopernicusFM", "EncoderSpec", "FrozenEncoder", "TimmSpec", "Weights", "load_weights"]

_HOMES = {
    "CopernicusFM": "copcube.encoder.copernicus_fm",
    "FrozenEncoder": "copcube.encoder.frozen",
    "Weights": "copcube.encoder.weights",
    "load_weights": "copcube.encoder.weights",
}


def __getattr__(name: str) -> Any:
    """Import what needs torch when it is first used; who only describes an encoder does not."""
    if name not in _HOMES:
        raise AttributeError(f"module 'copcube.encoder' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value
