"""The frozen encoder: Copernicus-FM, its weights, and how images go through it."""

from typing import TYPE_CHECKING

from copcube.encoder.spec import EncoderSpec
from copcube.encoder.timm_kinds import TimmSpec
from copcube.lazy import importer

if TYPE_CHECKING:
    from copcube.encoder.copernicus_fm import CopernicusFM
    from copcube.encoder.frozen import FrozenEncoder
    from copcube.encoder.weights import Weights, load_weights

__all__ = ["CopernicusFM", "EncoderSpec", "FrozenEncoder", "TimmSpec", "Weights", "load_weights"]

if not TYPE_CHECKING:  # to type checkers it would define any name
    # Describing an encoder needs no torch, which takes seconds to import.
    __getattr__ = importer(
        __name__,
        {
            "CopernicusFM": "copcube.encoder.copernicus_fm",
            "FrozenEncoder": "copcube.encoder.frozen",
            "Weights": "copcube.encoder.weights",
            "load_weights": "copcube.encoder.weights",
        },
    )
