"""A stand-in encoder whose vectors follow from pixels and metadata alone, exactly."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray


class StubEncoder:
    """Vectors of 8: five moments of the pixels, then lon, lat and days.

    Parameters
    ----------
    seconds : float
        How long to sleep for an image.
    """

    dim = 8
    streams = 1

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds
        self.calls: list[tuple[str, tuple[int, ...]]] = []

    @property
    def provenance(self) -> dict[str, str | int]:
        return {"encoder": "stub", "encoder_trained": 0, "encoder_sha256": "none"}

    def batch_size(self, modality: str, size: int) -> int:
        return 4

    def __call__(
        self, modality: str, pixels: Sequence[NDArray[Any]], metadata: NDArray[np.float64]
    ) -> NDArray[np.float32]:
        self.calls.append((modality, (len(pixels), *pixels[0].shape)))
        time.sleep(self.seconds * len(pixels))
        return np.stack([self.vector(p, m) for p, m in zip(pixels, metadata, strict=True)])

    @staticmethod
    def vector(pixels: NDArray[Any], metadata: NDArray[np.float64]) -> NDArray[np.float32]:
        x = np.nan_to_num(pixels.astype(np.float64), posinf=0, neginf=0)
        moments = [x.mean(), x.std(), x[0].mean(), x[-1].max(), x[:, : x.shape[1] // 2].mean()]
        return np.array([*moments, *metadata[:3]], dtype=np.float32)


@dataclass(frozen=True)
class StubSpec:
    """Description of a `StubEncoder` that travels to workers, which need no GPU for it."""

    seconds: float = 0.0
    device: ClassVar[str] = "cpu"

    def load(self) -> StubEncoder:
        return StubEncoder(self.seconds)
