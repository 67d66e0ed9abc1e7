"""Small models beside the real ones, through the same class, also of workers of dask.

Workers know them where this file is a preload of theirs, of which dask calls `dask_setup`.
"""

from dataclasses import replace
from typing import Any

from copcube.encoder.timm_kinds import KINDS, RGB, S2L1C, Kind

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
TINY = {
    "tiny-s2": Kind("tiny", "resnet10t", 512, "s2_toa", S2L1C, 96, "reflectance"),
    "tiny-s1": replace(KINDS["ssl4eo-s1rtc"], architecture="resnet18", dim=512, size=96),
    "tiny-rgb": Kind(
        "tiny", "vit_tiny_patch16_224", 192, "s2_toa", RGB, 96, "picture", **IMAGENET,
        pooling="tokens",
    ),
    "tiny-siglip": replace(
        KINDS["siglip"], architecture="vit_base_patch16_siglip_224", dim=768, size=96
    ),
}  # fmt: skip


def dask_setup(worker: Any) -> None:
    """Add them to those that this process knows."""
    KINDS.update(TINY)
