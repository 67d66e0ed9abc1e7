"""Moving pixels to a device and vectors back, waiting only for the vectors.

Pixels travel in their stored dtype. On a GPU several batches may be under way: one is computed
while the next are copied from pinned memory, on another stream. A batch that does not fit is halved
until it does.
"""

import logging
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from copcube.encoder import devices

log = logging.getLogger("copcube")

# Not cuDNN's attention, which torch prefers on some GPUs: it plans again for every thread and batch
# size, for tens of milliseconds.
_ATTENTION = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]

Compute = Callable[[Tensor, bool], Tensor]
"""Makes vectors of uploaded images; the flag says whether their int16 stand for uint16."""


class Streaming:
    """Base of encoders with a model on a device.

    Parameters
    ----------
    device, dtype : str
        Where and in what precision the model computes, see `copcube.encoder.EncoderSpec`.

    Raises
    ------
    OptionError
        If one of them is not available.
    """

    def __init__(self, device: str, dtype: str) -> None:
        self.device = devices.find_device(device)
        self.dtype = devices.find_dtype(dtype, self.device)
        self._computing = threading.Lock()
        self._under_way = threading.BoundedSemaphore(self.streams)
        self._copying: torch.cuda.Stream | None = None
        if self.device.type == "cuda":
            self._copying = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
        self._fits: dict[tuple[int, ...], int] = {}

    def _note(self, made_by: dict[str, str | int]) -> None:
        """Note what the encoder is and how it computes; warn if it is untrained."""
        self._provenance = made_by | {
            "encoder_dtype": str(self.dtype).removeprefix("torch."),
            "encoder_device": self.device.type,
        }
        if made_by["encoder_trained"] == 0:
            message = "UNTRAINED WEIGHTS (%s): the numbers mean nothing"
            log.warning(message, made_by["encoder_weights"])

    @property
    def provenance(self) -> dict[str, str | int]:
        """What must be known about the encoder to reproduce its vectors."""
        return dict(self._provenance)

    @property
    def streams(self) -> int:
        """Calls worth having under way at once.

        On a GPU one is computed while others are copied to it, and their images gathered,
        each by a thread: that takes several times as long as a fast GPU computes.
        """
        return 4 if self.device.type == "cuda" else 1

    def _in_parts(
        self, name: str, batch: tuple[int, ...], encode: Callable[[slice], NDArray[np.float32]]
    ) -> NDArray[np.float32]:
        """Encode a batch of a shape (images, bands, rows, columns) in parts that fit the device.

        Raises
        ------
        torch.OutOfMemoryError, MemoryError
            If not even one image fits the GPU, or the memory of the machine.
        """
        number = batch[0]
        vectors: list[NDArray[np.float32]] = []
        done, step = 0, self._fits.get(batch, number)
        while done < number:
            try:
                vectors.append(encode(slice(done, done + step)))
                done += step
                continue
            except RuntimeError as error:
                # For main memory, torch has no specific error.
                on_host = "DefaultCPUAllocator" in str(error)
                if not on_host and not isinstance(error, torch.OutOfMemoryError):
                    raise
                if step == 1:
                    too_much = f"one {name} image of {batch[2:]} pixels does not fit in memory"
                    if on_host:
                        raise MemoryError(too_much) from error
                    error.add_note(too_much)
                    raise
            # Only here, past the handler, are the failed attempt's tensors gone.
            torch.cuda.empty_cache()
            step = self._fits[batch] = (step + 1) // 2
            log.warning("%s: out of memory, continuing with batches of %d", name, step)
        return np.concatenate(vectors)

    @torch.inference_mode()
    def _computed(
        self, pixels: Sequence[NDArray[Any]] | NDArray[Any], compute: Compute
    ) -> NDArray[np.float32]:
        """Upload images, compute their vectors, and bring these back."""
        if self._copying is None:
            host, unsigned = self._packed(pixels)
            with self._computing:
                return np.asarray(compute(host, unsigned))
        with self._under_way:  # bounds pinned memory, which is never released
            host, unsigned = self._packed(pixels)
            with torch.cuda.stream(self._copying):
                uploaded = host.to(self.device, non_blocking=True)
                copied = self._copying.record_event()
            with self._computing:
                here = torch.cuda.current_stream(self.device)
                here.wait_event(copied)
                # Otherwise the allocator would reuse the memory while this stream still reads it.
                uploaded.record_stream(here)
                vectors = compute(uploaded, unsigned)
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


def widened(pixels: Tensor, unsigned: bool) -> Tensor:
    """Bring uploaded pixels to a dtype that torch computes with; uint16 came as int16."""
    return pixels.int().bitwise_and_(0xFFFF) if unsigned else pixels


def attention(device: torch.device) -> AbstractContextManager[Any]:
    """Compute attention while the body runs in a way that suits batches of several sizes."""
    return sdpa_kernel(_ATTENTION) if device.type == "cuda" else nullcontext()
