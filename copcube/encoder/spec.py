"""The description of an encoder, from which any process loads it."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from copcube.encoder.copernicus_fm import Pooling

if TYPE_CHECKING:
    from copcube.encoder.frozen import FrozenEncoder


@dataclass(frozen=True)
class EncoderSpec:
    """Which encoder to load and where; small enough to send to any worker.

    Parameters
    ----------
    weights : str
        ``hub``, a path, or ``untrained:SEED``, see `copcube.encoder.load_weights`.
    language : str, optional
        Path of the variables' language embeddings.
    pooling : {"cls", "mean"}, optional
        Feature; None leaves it to the weights.
    device : str
        ``auto`` (the GPU if there is one), ``cpu``, ``cuda`` or ``cuda:N``.
    dtype : str
        ``float32``, ``bfloat16``, or ``auto``: bfloat16 where the hardware multiplies it
        natively, on CPUs with AVX512-BF16 or AMX too, which changes each vector by about
        0.9 %. Give float32 to compare vectors with published ones.
    compile : bool
        Whether to compile the transformer with ``torch.compile``, which takes about a
        minute at first.
    """

    weights: str = "hub"
    language: str | None = None
    pooling: Pooling | None = None
    device: str = "auto"
    dtype: str = "auto"
    compile: bool = False

    def load(self) -> "FrozenEncoder":
        """Load the weights and put them on the device.

        Raises
        ------
        OptionError
            If the device or dtype cannot be had.
        FetchError, WeightsError
            If the weights cannot be fetched, or are not such.
        """
        from copcube.encoder.frozen import FrozenEncoder
        from copcube.encoder.weights import load_weights

        weights = load_weights(self.weights, language=self.language, pooling=self.pooling)
        return FrozenEncoder(
            weights, device=self.device, dtype=self.dtype, compile=self.compile, spec=self
        )
