"""The frozen encoder: images as they are stored in, vectors out.

Pixels travel to the device in their stored dtype and are normalised there. Nothing waits
for the device but the return of the vectors; on a GPU several batches may be under way, so
that one is computed while the next are copied, on a stream beside it.
"""

import copy
import logging
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from copcube import modalities
from copcube.encoder.copernicus_fm import Pooling
from copcube.errors import OptionError, WeightsError
from copcube.modalities import Modality

if TYPE_CHECKING:
    from copcube.encoder.weights import Weights

log = logging.getLogger("copcube")

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_CPU_INFO = Path("/proc/cpuinfo")

# On two CPU cores a ViT-B/16 was fastest with 8 images of 197 tokens (5.4 images/s against
# 4.7 with 1 and 3.4 with 32, which no longer fit the caches).
_CPU_TOKENS = 8 * 197
_CPU_BATCH = 64
_CUDA_BATCH = 256

# Not cuDNN's, which torch prefers on some GPUs: it plans anew for every thread and size of
# batch, for tens of milliseconds.
_ATTENTION = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


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
        ``auto``, ``float32`` or ``bfloat16``.
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
        from copcube.encoder.weights import load_weights

        weights = load_weights(self.weights, language=self.language, pooling=self.pooling)
        return FrozenEncoder(weights, device=self.device, dtype=self.dtype, compile=self.compile)


class FrozenEncoder:
    """Turns stored images into vectors.

    Parameters
    ----------
    weights : Weights
        The loaded model; left as it is.
    device : str
        ``auto`` (the GPU if there is one), ``cpu``, ``cuda`` or ``cuda:N``.
    dtype : str
        Of the transformer: ``float32``, ``bfloat16``, or ``auto``, which is bfloat16 where
        the hardware multiplies it natively. Kernels, metadata, pooling and the last norm
        are always float32.
    compile : bool
        Whether to compile the blocks of the transformer, once for batches of any size.

    Raises
    ------
    OptionError
        If the device or dtype cannot be had.

    Notes
    -----
    On one device, an image has the same vector in every batch of the same size; between
    batch sizes and devices, vectors agree to rounding.
    """

    def __init__(
        self,
        weights: "Weights",
        *,
        device: str = "auto",
        dtype: str = "auto",
        compile: bool = False,
    ) -> None:
        self.device = _device(device)
        self.dtype = _dtype(dtype, self.device)
        self._model = weights.model
        if self.device.type != "cpu" or self.dtype != torch.float32:
            self._model = copy.deepcopy(weights.model).to(self.device)
            self._model.blocks.to(self.dtype)
        if compile:
            self._model = copy.deepcopy(self._model)
            for block in self._model.blocks:
                block.compile(dynamic=True)
        self._computing = threading.Lock()
        self._under_way = threading.BoundedSemaphore(self.streams)
        self._copying: torch.cuda.Stream | None = None
        if self.device.type == "cuda":
            self._copying = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
        self._language = weights.language
        self._statistics: dict[Modality, Tensor] = {}
        self._fits: dict[tuple[int, ...], int] = {}
        self._provenance = weights.provenance | {
            "encoder_dtype": str(self.dtype).removeprefix("torch."),
            "encoder_device": self.device.type,
        }
        if weights.provenance["encoder_trained"] == 0:
            log.warning(
                "UNTRAINED WEIGHTS (%s): the numbers mean nothing",
                weights.provenance["encoder_weights"],
            )

    @property
    def streams(self) -> int:
        """Calls worth having under way at once.

        On a GPU one is computed while others are copied to it, and their images gathered,
        each by a thread: that takes several times as long as a fast GPU computes.
        """
        return 4 if self.device.type == "cuda" else 1

    @property
    def dim(self) -> int:
        """Length of a vector."""
        return self._model.embed_dim

    @property
    def provenance(self) -> dict[str, str | int]:
        """What must be known of the encoder to make its vectors again."""
        return dict(self._provenance)

    def batch_size(self, modality: str | Modality, size: int) -> int:
        """Images of `size` pixels a side to embed at once, for speed within memory.

        The same on every call and on every machine of the same kind: on the GPU it
        follows from the total, not the free memory. Should that be short, `__call__`
        splits the batch.

        Raises
        ------
        OptionError
            If there is no such modality.
        """
        kind = _kind(modality)
        tokens = ((size + 2) // kind.kernel) ** 2 + 1
        if self.device.type == "cpu":
            return max(1, min(_CPU_BATCH, round(_CPU_TOKENS / tokens)))
        memory = torch.cuda.get_device_properties(self.device).total_memory
        return _cuda_batch(memory, len(kind.bands) * size**2, tokens * self.dim, self.dtype)

    def __call__(
        self,
        modality: str | Modality,
        pixels: Sequence[NDArray[Any]] | NDArray[Any],
        metadata: NDArray[np.float64],
        *,
        tokens: bool = False,
    ) -> NDArray[np.float32]:
        """Embed one batch.

        NaN, infinities and, where the modality says so, pixels that are 0 in every band
        count as average: 0 after normalisation, as in pretraining.

        Parameters
        ----------
        modality : str or Modality
            Key of the modality of all the images, or a description of another sensor.
        pixels : sequence of numpy.ndarray
            The images, each (bands, rows, columns), or all as one array; int16, uint16 and
            float32 travel as they are, any other dtype as float32.
        metadata : numpy.ndarray
            (batch, 4) float64: lon and lat in degrees, days since 1970-01-01, area of one
            token in km²; NaN where unknown.
        tokens : bool
            Whether to return the patch tokens rather than one vector an image.

        Returns
        -------
        numpy.ndarray
            (batch, dim) float32; with `tokens` (batch, tokens, dim), row by row.

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
        bands = self._describe(kind) | {"tokens": tokens}
        shapes = {image.shape for image in pixels}
        shape = shapes.pop() if shapes else (len(kind.bands), 0, 0)
        if shapes or len(shape) != 3 or shape[0] != len(kind.bands):
            raise OptionError(
                f"{kind.key} images have shape {', '.join(map(str, [shape, *shapes]))}; expected "
                f"one shape, ({len(kind.bands)}, rows, columns)"
            )
        places = torch.tensor(metadata, dtype=torch.float64)
        if places.shape != (len(pixels), 4):
            raise OptionError(
                f"metadata of {len(pixels)} images has shape {tuple(places.shape)}; expected "
                f"({len(pixels)}, 4)"
            )
        if not len(pixels):
            return np.empty((0, self.dim), dtype=np.float32)
        vectors: list[NDArray[np.float32]] = []
        batch = (len(pixels), *shape)
        done, step = 0, self._fits.get(batch, len(pixels))
        while done < len(pixels):
            part = slice(done, done + step)
            try:
                vectors.append(self._encode(kind, pixels[part], places[part], bands))
                done += step
                continue
            except torch.OutOfMemoryError as error:
                if step == 1:
                    error.add_note(f"one {kind.key} image of {shape[1:]} pixels is too much")
                    raise
            # Only here, past the handler, are the failed attempt's tensors gone.
            torch.cuda.empty_cache()
            step = self._fits[batch] = (step + 1) // 2
            log.warning("%s: out of device memory, going on with batches of %d", kind.key, step)
        return np.concatenate(vectors)

    @torch.inference_mode()
    def _encode(
        self,
        kind: Modality,
        pixels: Sequence[NDArray[Any]] | NDArray[Any],
        metadata: Tensor,
        bands: dict[str, Any],
    ) -> NDArray[np.float32]:
        if self._copying is None:
            host, unsigned = self._packed(pixels)
            with self._computing:
                vectors = self._model(self._normalised(host, unsigned, kind), metadata, **bands)
                return np.asarray(vectors)
        with self._under_way:  # bounds the memory that is pinned, which is never given back
            host, unsigned = self._packed(pixels)
            with torch.cuda.stream(self._copying):
                x = host.to(self.device, non_blocking=True)
                copied = self._copying.record_event()
            with self._computing, sdpa_kernel(_ATTENTION):
                here = torch.cuda.current_stream(self.device)
                here.wait_event(copied)
                x.record_stream(here)
                vectors = self._model(self._normalised(x, unsigned, kind), metadata, **bands)
                back = torch.empty(vectors.shape, dtype=torch.float32, pin_memory=True)
                back.copy_(vectors, non_blocking=True)
                # A thread that waits for a blocking event leaves its core to others.
                there = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
                there.record(here)
            there.synchronize()
            return back.numpy().copy()

    def _packed(self, pixels: Sequence[NDArray[Any]] | NDArray[Any]) -> tuple[Tensor, bool]:
        """Images as one tensor to be uploaded, and whether its int16 stand for uint16.

        For a GPU it lies in pinned memory. Every image is copied once.
        """
        stored = np.result_type(*{image.dtype.newbyteorder("=") for image in pixels})
        dtype = torch.int16 if stored in (np.int16, np.uint16) else torch.float32
        shape = (len(pixels), *pixels[0].shape)
        host = torch.empty(shape, dtype=dtype, pin_memory=self._copying is not None)
        view = host.numpy().view(np.uint16) if stored == np.uint16 else host.numpy()
        with np.errstate(over="ignore"):  # beyond float32 is infinite, hence missing
            for target, image in zip(view, pixels, strict=True):
                np.copyto(target, image, casting="unsafe")
        return host, bool(stored == np.uint16)

    def _normalised(self, pixels: Tensor, unsigned: bool, kind: Modality) -> Tensor:
        missing = (pixels == 0).all(1, keepdim=True) if kind.zero_is_missing else None
        if unsigned:  # torch computes little with uint16, which came as int16
            pixels = pixels.int().bitwise_and_(0xFFFF)
        if kind not in self._statistics:
            statistics = torch.tensor([kind.scale, kind.mean, kind.std])[..., None, None]
            self._statistics[kind] = statistics.to(self.device)
        scale, mean, std = self._statistics[kind]
        x = pixels.float()
        if set(kind.scale) != {1.0}:
            x.mul_(scale)
        x.sub_(mean).div_(std)
        if pixels.is_floating_point():
            x.nan_to_num_(0.0, 0.0, 0.0)
        return x if missing is None else x.masked_fill_(missing, 0.0)

    def _describe(self, kind: Modality) -> dict[str, Any]:
        """Arguments that tell the model what the bands are."""
        if kind.language_key is None:
            bands = {"wavelengths": kind.wavelengths, "bandwidths": kind.bandwidths}
            return bands | {"kernel_size": kind.kernel}
        if kind.language_key not in self._language:
            known = ", ".join(map(repr, self._language)) or "none"
            raise WeightsError(
                f"{kind.key} needs the language embedding {kind.language_key!r}; "
                f"there are {known}. Name the published file, varname_embed_llama3.2_1B.pt "
                f"(`copcube fetch` brings it), or leave {kind.key} out"
            )
        return {
            "language_embedding": self._language[kind.language_key],
            "kernel_size": kind.kernel,
        }


def _kind(given: str | Modality) -> Modality:
    return given if isinstance(given, Modality) else modalities.modality(given)


def cuda_devices() -> int:
    """How many CUDA devices torch sees."""
    return torch.cuda.device_count()


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda"):
        raise OptionError(f"device is {name!r}; expected auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise OptionError(
            f"device is {name!r}, but torch {torch.__version__} sees "
            f"{torch.cuda.device_count()} CUDA devices; use auto or cpu"
        )
    if name == "cuda":  # which is another one to each thread
        return torch.device("cuda", torch.cuda.current_device())
    return device


def _dtype(name: str, device: torch.device) -> torch.dtype:
    if name == "auto":
        return torch.bfloat16 if _multiplies_bfloat16(device) else torch.float32
    if name not in _DTYPES:
        raise OptionError(f"dtype is {name!r}; expected auto, {' or '.join(_DTYPES)}")
    return _DTYPES[name]


def _multiplies_bfloat16(device: torch.device) -> bool:
    """Whether the hardware does it; torch also emulates it, four times slower than float32."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    try:
        flags = _CPU_INFO.read_text(errors="replace").split()
    except OSError:  # not Linux
        return False
    return not {"avx512_bf16", "amx_bf16"}.isdisjoint(flags)


def _cuda_batch(memory: int, values: int, width: int, dtype: torch.dtype) -> int:
    """Power of two of images whose pixels (as float32) and tokens take a quarter of memory.

    A block holds its input, queries, keys and values, and the MLP's four-fold width twice:
    `width` numbers an image some 16 times. Pixels are there as stored, as float32, padded
    and cut.
    """
    image = 4 * 4 * values + 16 * width * dtype.itemsize
    fitting = max(1, memory // 4 // image)
    return int(min(_CUDA_BATCH, 1 << (fitting.bit_length() - 1)))
