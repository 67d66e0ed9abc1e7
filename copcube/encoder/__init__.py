"""The frozen encoder: Copernicus-FM, its weights, and how images go through it."""

from copcube.encoder.copernicus_fm import CopernicusFM
from copcube.encoder.frozen import FrozenEncoder
from copcube.encoder.spec import EncoderSpec
from copcube.encoder.timm_kinds import TimmSpec
from copcube.encoder.weights import Weights, load_weights

__all__ = ["CopernicusFM", "EncoderSpec", "FrozenEncoder", "TimmSpec", "Weights", "load_weights"]
