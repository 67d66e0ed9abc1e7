"""The description of an encoder, from which any process loads it."""

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from copcube.arguments import flag, one_path
from copcube.errors import OptionError

if TYPE_CHECKING:
    from copcube.encoder.copernicus_fm import Pooling
    from copcube.encoder.frozen import FrozenEncoder

_DTYPES = ("float32", "bfloat16")
_DEVICES = re.compile(r"auto|(cpu|cuda)(:\d+)?")


# Names are checked here, without torch, which takes seconds to import.


def require_device(name: object) -> None:
    """Check that a device may have this name; raise OptionError if not."""
    if not (isinstance(name, str) and _DEVICES.fullmatch(name)):
        raise OptionError(f"device is {name!r:.60}; expected auto, cpu, cuda or cuda:N")


def require_dtype(name: object) -> None:
    """Check that an encoder may compute in this dtype; raise OptionError if not."""
    if not (isinstance(name, str) and name in ("auto", *_DTYPES)):
        raise OptionError(f"dtype is {name!r:.60}; expected auto, {' or '.join(_DTYPES)}")


@dataclass(frozen=True)
class EncoderSpec:
    """Which encoder to load and where; small enough to send to any worker.

    Parameters
    ----------
    weights : str or path-like
        ``hub``, ``large``, a path, or ``untrained:SEED``, see `copcube.encoder.load_weights`.
    language : str or path-like, optional
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

    Raises
    ------
    OptionError
        If a value has another type.
    """

    weights: str = "hub"
    language: str | None = None
    pooling: "Pooling | None" = None
    device: str = "auto"
    dtype: str = "auto"
    compile: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "weights", one_path(self.weights, "weights"))
        if self.language is not None:
            object.__setattr__(self, "language", one_path(self.language, "language"))
        if not isinstance(self.pooling, str | None):
            raise OptionError(f"pooling is {self.pooling!r:.60}; expected 'cls' or 'mean'")
        object.__setattr__(self, "compile", flag(self.compile, "compile"))
        require_device(self.device)
        require_dtype(self.dtype)

    def load(self) -> "FrozenEncoder":
        """Load the weights and put them on the device.

        Raises
        ------
        OptionError
            If the device or dtype is not available.
        FetchError, WeightsError
            If the weights cannot be fetched, or do not fit.
        """
        from copcube.encoder.frozen import FrozenEncoder
        from copcube.encoder.weights import load_weights

        weights = load_weights(self.weights, language=self.language, pooling=self.pooling)
        return FrozenEncoder(
            weights, device=self.device, dtype=self.dtype, compile=self.compile, spec=self
        )
