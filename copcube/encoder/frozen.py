"""The frozen encoder: stored images in, vectors out.

Pixels travel to the device in their stored dtype and are normalised there. The weights never
change, so what depends on the modality alone, its kernel and position embeddings, is made once.
Only returning the vectors waits for the device; on a GPU several batches may be under way, so that
one is computed while the next are copied on another stream.
"""

import copy
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from copcube import modalities
from copcube.encoder import devices
from copcube.encoder.copernicus_fm import token_grid
from copcube.encoder.kernels import Kernel
from copcube.encoder.spec import EncoderSpec
from copcube.encoder.streaming import Streaming, attention, widened
from copcube.errors import OptionError, WeightsError
from copcube.images.tensor_form import mend
from copcube.modalities import Modality

if TYPE_CHECKING:
    from copcube.encoder.weights import Weights

_MOST_PREPARED = 64
"""Modalities, or users' own sensors, whose kernels an encoder keeps: up to 13 MB each."""


class _Prepared(NamedTuple):
    """What the images of one modality and size need, on the device.

    Parameters
    ----------
    statistics : Tensor
        (3, bands, 1, 1) float32: scale, mean and standard deviation of the bands.
    kernel : Kernel
        Their patch embedding.
    positions : Tensor
        Position embeddings of their tokens.
    """

    statistics: Tensor
    kernel: Kernel
    positions: Tensor


class FrozenEncoder(Streaming):
    """Encoder that turns stored images into vectors.

    Parameters
    ----------
    weights : Weights
        The loaded model. It is not changed, and on a CPU in float32 not copied: changing its
        weights afterwards gives vectors of a mixture.
    device : str
        ``auto`` (the GPU if there is one), ``cpu``, ``cuda`` or ``cuda:N``.
    dtype : str
        Of the transformer: ``float32``, ``bfloat16``, or ``auto``, which is bfloat16 where
        the hardware multiplies it natively, and then logged: each vector differs by about
        0.9 %. Kernels, metadata, pooling and the last norm are always float32.
    compile : bool
        Whether to compile the blocks of the transformer, once for batches of any size.
    spec : EncoderSpec, optional
        What another process loads the same encoder from.

    Raises
    ------
    OptionError
        If the device or dtype is not available.

    Notes
    -----
    On one device, an image has the same vector in every batch of the same size; between
    batch sizes and devices, vectors agree to rounding.

    An encoder with a `spec` pickles to it: no weights are sent, and unpickling loads them. One
    without cannot be pickled.
    """

    @devices.undisturbed()
    def __init__(
        self,
        weights: "Weights",
        *,
        device: str = "auto",
        dtype: str = "auto",
        compile: bool = False,
        spec: EncoderSpec | None = None,
    ) -> None:
        self.spec = spec
        super().__init__(device, dtype)
        self._model = weights.model
        if self.device.type != "cpu" or self.dtype != torch.float32:
            self._model = copy.deepcopy(weights.model).to(self.device)
            self._model.blocks.to(self.dtype)
        # `compile` changes a block in place, and the weights may serve others.
        if compile:
            self._model = copy.deepcopy(self._model)
            for block in self._model.blocks:
                block.compile(dynamic=True)
        self._language = weights.language
        self._prepared: dict[tuple[Modality, int, int], _Prepared] = {}
        self._note(weights.provenance)

    def __reduce__(self) -> tuple[Callable[[], "FrozenEncoder"], tuple[()]]:
        if self.spec is None:
            raise OptionError(
                "an encoder made from weights in memory cannot be sent to other processes; give an "
                "EncoderSpec (or weights=) that each of them loads"
            )
        return self.spec.load, ()

    @property
    def dim(self) -> int:
        """Length of a vector."""
        return self._model.embed_dim

    @property
    def depth(self) -> int:
        """Number of blocks."""
        return len(self._model.blocks)

    def batch_size(self, modality: str | Modality, size: int) -> int:
        """Images of `size` pixels per side to embed at once, for speed within memory.

        The same on every call and on every machine of the same kind: on the GPU it
        follows from the total, not the free memory. Should that be short, `__call__`
        splits the batch.

        Raises
        ------
        OptionError
            If there is no such modality.
        """
        kind = _kind(modality)
        height, width = token_grid(size, size, kind.kernel)
        return devices.batch_size(
            self.device,
            self.dtype,
            values=len(kind.bands) * size**2,
            tokens=height * width + 1,
            width=self.dim,
        )

    @devices.undisturbed()
    def __call__(
        self,
        modality: str | Modality,
        pixels: Sequence[NDArray[Any]] | NDArray[Any],
        metadata: NDArray[np.float64],
        *,
        tokens: bool = False,
        levels: Sequence[int] = (),
    ) -> NDArray[np.float32]:
        """Embed one batch.

        NaN, infinities and, where the modality says so, pixels that are 0 in every band
        count as average: 0 after normalisation, as in pretraining.

        Parameters
        ----------
        modality : str or Modality
            Key of the modality of all the images, or a description of another sensor.
        pixels : sequence of numpy.ndarray
            The images, each (bands, rows, columns), or all as one array; int16, uint16 and float32
            are uploaded unchanged, any other dtype as float32. Effects of publishing are undone,
            see `copcube.images.tensor_form.mend`.
        metadata : numpy.ndarray
            (batch, 4) float64: lon and lat in degrees, days since 1970-01-01, area of one
            token in km²; NaN where unknown.
        tokens : bool
            Whether to return the patch tokens rather than one vector an image.
        levels : sequence of int
            Blocks whose patch tokens are returned, as for `CopernicusFM.encode`.

        Returns
        -------
        numpy.ndarray
            (batch, dim) float32; with `tokens` (batch, tokens, dim), row by row; with `levels`
            (batch, levels, tokens, dim).

        Raises
        ------
        OptionError
            If there is no such modality, or arrays or metadata do not fit.
        WeightsError
            If the modality needs a language embedding that did not come with the weights.
        torch.OutOfMemoryError
            If not even one image fits the GPU; larger batches are halved until they do.
        """
        kind = _kind(modality)
        shape = _shape(kind, pixels)
        rows = torch.tensor(metadata, dtype=torch.float64)
        if rows.shape != (len(pixels), 4):
            raise OptionError(
                f"metadata of {len(pixels)} images has shape {tuple(rows.shape)}; expected "
                f"({len(pixels)}, 4)"
            )
        if not len(pixels):
            return np.empty((0, self.dim), dtype=np.float32)
        # Before they are packed: what is undone depends on how an image is stored.
        mended = [mend(image, kind)[0] for image in pixels]

        def encode(part: slice) -> NDArray[np.float32]:
            def compute(images: Tensor, unsigned: bool) -> Tensor:
                statistics = self._prepare(kind, *images.shape[2:]).statistics
                x = _normalised(images, unsigned, kind, statistics)
                return self.embed_normalised(kind, x, rows[part], tokens=tokens, levels=levels)

            return self._computed(mended[part], compute)

        return self._in_parts(kind.key, (len(pixels), *shape), encode)

    @devices.undisturbed()
    @torch.inference_mode()
    def normalise(
        self, modality: str | Modality, pixels: Sequence[NDArray[Any]] | NDArray[Any]
    ) -> Tensor:
        """Bring images, as for `__call__`, to the device and to what `embed_normalised` takes."""
        kind = _kind(modality)
        _shape(kind, pixels)
        host, unsigned = self._packed([mend(image, kind)[0] for image in pixels])
        statistics = self._prepare(kind, *host.shape[2:]).statistics
        uploaded = host.to(self.device, non_blocking=True)
        return _normalised(uploaded, unsigned, kind, statistics)

    @devices.undisturbed()
    @torch.inference_mode()
    def embed_normalised(
        self,
        modality: str | Modality,
        images: Tensor,
        metadata: Tensor,
        *,
        tokens: bool = False,
        levels: Sequence[int] = (),
    ) -> Tensor:
        """Embed normalised images that lie on the device, without waiting for it.

        This is what `__call__` does between its copies; one thread may do it at a time.

        Parameters
        ----------
        modality : str or Modality
            As for `__call__`.
        images : Tensor
            (batch, bands, rows, columns) float32, on the encoder's device.
        metadata : Tensor
            (batch, 4) float64, on the CPU, as for `__call__`.
        tokens, levels
            As for `CopernicusFM.encode`.

        Returns
        -------
        Tensor
            As of `CopernicusFM.encode`, on the device.
        """
        _, kernel, positions = self._prepare(_kind(modality), *images.shape[2:])
        with attention(self.device):
            return self._model.encode(
                images, metadata, kernel, positions, tokens=tokens, levels=levels
            )

    def _prepare(self, kind: Modality, rows: int, columns: int) -> _Prepared:
        """Return what images of a modality and size need, made at first use."""
        key = (kind, rows, columns)
        prepared = self._prepared.get(key)
        if prepared is None:
            published = torch.tensor([kind.scale, kind.mean, kind.std], dtype=torch.float32)
            statistics = published[..., None, None]
            prepared = _Prepared(
                statistics.to(self.device),
                self._model.kernel(**self._describe(kind), kernel_size=kind.kernel),
                self._model.positions(*token_grid(rows, columns, kind.kernel)),
            )
            # A build needs eight or a few more; only tiles of many sizes come here more often.
            if len(self._prepared) >= _MOST_PREPARED:
                self._prepared.clear()
            self._prepared[key] = prepared
        return prepared

    def _describe(self, kind: Modality) -> dict[str, Any]:
        """Arguments that tell the model what the bands are."""
        if kind.language is not None:
            words = np.frombuffer(kind.language, "<f4").astype(np.float32)
            return {"language_embedding": torch.from_numpy(words)}
        if kind.language_key is None:
            return {"wavelengths": kind.wavelengths, "bandwidths": kind.bandwidths}
        if kind.language_key not in self._language:
            known = ", ".join(map(repr, self._language)) or "none"
            raise WeightsError(
                f"{kind.key} needs the language embedding {kind.language_key!r}; "
                f"there are {known}. Name the published file, varname_embed_llama3.2_1B.pt "
                f"(`copcube fetch` downloads it), or leave {kind.key} out"
            )
        return {"language_embedding": self._language[kind.language_key]}


def _kind(given: str | Modality) -> Modality:
    return given if isinstance(given, Modality) else modalities.modality(given)


def _shape(kind: Modality, pixels: Sequence[NDArray[Any]] | NDArray[Any]) -> tuple[int, int, int]:
    """Shape of all the images, which must be the same and have the modality's bands."""
    shapes = {image.shape for image in pixels}
    shape = shapes.pop() if shapes else (len(kind.bands), 0, 0)
    if shapes or len(shape) != 3 or shape[0] != len(kind.bands):
        raise OptionError(
            f"{kind.key} images have shape {', '.join(map(str, [shape, *shapes]))}; expected "
            f"one shape, ({len(kind.bands)}, rows, columns)"
        )
    return shape


def _normalised(pixels: Tensor, unsigned: bool, kind: Modality, statistics: Tensor) -> Tensor:
    """Normalise stored pixels to mean 0 and standard deviation 1; missing ones become 0."""
    # Checked before they are widened, in fewer bytes.
    missing = (pixels == 0).all(1, keepdim=True) if kind.zero_is_missing else None
    pixels = widened(pixels, unsigned)
    scale, mean, std = statistics
    x = pixels.float()
    # Most modalities have no scale, and pixels are many.
    if set(kind.scale) != {1.0}:
        x.mul_(scale)
    x.sub_(mean).div_(std)
    if pixels.is_floating_point():
        x.nan_to_num_(0.0, 0.0, 0.0)
    return x if missing is None else x.masked_fill_(missing, 0.0)
