"""The interface of encoders, and how a process keeps one.

An encoder may be passed as an object, or as a small description that is loaded where it is used.
Inside public functions both are an `Encoder`: `as_encoder` makes a `SharedEncoder` of a
description, which pickles to that description, so that graphs and tasks carry a few hundred bytes
and never weights.
"""

import os
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from copcube.errors import OptionError
from copcube.modalities import Modality

LOADED_AT_ONCE = 2
"""Encoders that a process keeps; a ViT-B takes 350 MB."""


class Encoder(Protocol):
    """A frozen model that turns images into vectors; several threads may call it."""

    @property
    def streams(self) -> int:
        """Calls that are worth having under way at once, so that copies hide behind them."""

    @property
    def dim(self) -> int:
        """Length of a vector."""

    @property
    def provenance(self) -> Mapping[str, str | int]:
        """What must be known about the encoder to reproduce its vectors."""

    def batch_size(self, modality: str | Modality, size: int) -> int:
        """Images of `size` pixels per side to embed at once, for speed within memory."""

    def __call__(
        self,
        modality: str | Modality,
        pixels: Sequence[NDArray[Any]] | NDArray[Any],
        metadata: NDArray[np.float64],
    ) -> NDArray[np.float32]:
        """Embed one batch.

        Parameters
        ----------
        modality : str
            Key of the modality of all the images; for a user's own sensor, the
            `copcube.modalities.Modality` that describes it.
        pixels : sequence of numpy.ndarray
            The images, each (bands, rows, columns), in their stored dtype.
        metadata : numpy.ndarray
            (batch, 4) float64: lon and lat in degrees, days since 1970-01-01, area of
            one token in km²; NaN where unknown.

        Returns
        -------
        numpy.ndarray
            (batch, dim) float32.
        """


@runtime_checkable
class Spec(Protocol):
    """A small, hashable description of an encoder, such as `copcube.EncoderSpec`."""

    def load(self) -> Encoder:
        """Load the encoder."""


@dataclass(frozen=True)
class SharedEncoder:
    """The encoder of a description, loaded at first use and once per process.

    Parameters
    ----------
    spec : Spec
        The description; all that is pickled.
    """

    spec: Spec

    @property
    def streams(self) -> int:
        """See `Encoder`."""
        return _load(self.spec).streams

    @property
    def dim(self) -> int:
        """See `Encoder`."""
        return _load(self.spec).dim

    @property
    def provenance(self) -> Mapping[str, str | int]:
        """See `Encoder`."""
        return _load(self.spec).provenance

    def batch_size(self, modality: Any, size: int) -> int:
        """See `Encoder`."""
        return _load(self.spec).batch_size(modality, size)

    def __call__(
        self, modality: Any, pixels: Any, metadata: NDArray[np.float64], **options: Any
    ) -> NDArray[np.float32]:
        """See `Encoder`; further options are those of the encoder itself."""
        return _load(self.spec)(modality, pixels, metadata, **options)


def as_encoder(given: "Encoder | Spec | str | Path | None", **described: Any) -> Encoder:
    """Make an encoder from a caller's argument.

    Parameters
    ----------
    given : Encoder, Spec, str, path-like or None
        An encoder, a description of one, the name of weights of Copernicus-FM, or None for the
        published ones.
    **described
        How Copernicus-FM is described, as in `copcube.encoder.EncoderSpec`, if nothing is given.

    Returns
    -------
    Encoder
        An object is returned unchanged, unless its attribute ``spec`` says how another process
        would load it.

    Raises
    ------
    OptionError
        If it is something else.
    """
    if given is None or isinstance(given, str | os.PathLike):
        from copcube.encoder import EncoderSpec

        named = described if given is None else {"weights": os.fspath(given)}
        return SharedEncoder(EncoderSpec(**named))
    if isinstance(given, type) or not (isinstance(given, Spec) or callable(given)):
        raise OptionError(
            f"encoder={given!r:.80}; expected copcube.EncoderSpec(…), an encoder, or its weights: "
            "'hub', 'large', the path of a file, 'untrained:SEED'"
        )
    if isinstance(given, Spec):
        return SharedEncoder(given)
    if isinstance(given, SharedEncoder):
        return given
    spec = getattr(given, "spec", None)
    # One without a description works in this process, but is refused if it would be sent.
    if not isinstance(spec, Spec):
        return given
    # Kept, so that it is not loaded a second time from its description.
    with _LOADING:
        _keep(spec, given)
    return SharedEncoder(spec)


_LOADING = threading.Lock()
_LOADED: "OrderedDict[Spec, Encoder]" = OrderedDict()


def _load(spec: Spec) -> Encoder:
    """Return the encoder of a spec, loaded if this process has not."""
    with _LOADING:  # otherwise every thread that finds none would load one
        encoder = _LOADED.get(spec)
        return _keep(spec, spec.load() if encoder is None else encoder)


def _keep(spec: Spec, encoder: Encoder) -> Encoder:
    """Keep the encoder as the most recently used, and drop the least recently used."""
    _LOADED[spec] = encoder
    _LOADED.move_to_end(spec)
    while len(_LOADED) > LOADED_AT_ONCE:
        _LOADED.popitem(last=False)
    return encoder
