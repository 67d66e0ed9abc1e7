"""Devices of this machine: what they compute natively, and how much fits them."""

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch

from copcube.encoder.spec import require_device, require_dtype
from copcube.errors import OptionError

log = logging.getLogger("copcube")

_CPU_INFO = Path("/proc/cpuinfo")

# On two CPU cores a ViT-B/16 was fastest with 8 images of 197 tokens (5.4 images/s against
# 4.7 with 1 and 3.4 with 32, which no longer fit the caches).
_CPU_TOKENS = 8 * 197
_CPU_BATCH = 64
_CUDA_BATCH = 256


def cuda_devices() -> int:
    """Count the CUDA devices that torch sees."""
    return torch.cuda.device_count()


@contextmanager
def undisturbed() -> Iterator[None]:
    """Compute as described even if torch has another default device, or autocast is active."""
    with ExitStack() as stack:
        # torch 2.6 cannot say what the default device is once it was set back.
        if torch.empty(0).device.type != "cpu":
            stack.enter_context(torch.device("cpu"))
        for kind in ("cpu", "cuda"):
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        yield


def find_device(name: str) -> torch.device:
    """Find the device that ``auto``, ``cpu``, ``cuda`` or ``cuda:N`` stands for.

    Raises
    ------
    OptionError
        If the name has another form, or there is no such device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    require_device(name)
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise OptionError(
            f"device is {name!r}, but torch {torch.__version__} sees "
            f"{torch.cuda.device_count()} CUDA devices; use auto or cpu"
        )
    if name == "cuda":  # the current device, which each thread may set for itself
        return torch.device("cuda", torch.cuda.current_device())
    return device


def find_dtype(name: str, device: torch.device) -> torch.dtype:
    """Find the dtype that ``auto``, ``float32`` or ``bfloat16`` stands for on a device.

    If ``auto`` means bfloat16, this is logged, as a warning on a CPU, where few expect it.

    Raises
    ------
    OptionError
        If the name is unknown.
    """
    if name == "auto":
        if not _multiplies_bfloat16(device):
            return torch.float32
        # Measured on a CPU for images of S1, S2, S3 and the DEM, relative to a vector's length.
        log.log(
            logging.WARNING if device.type == "cpu" else logging.INFO,
            "computing in bfloat16, which this %s multiplies natively: each vector differs by "
            "about 0.9 %% from that in float32; choose the dtype float32 to compare vectors with "
            "published ones",
            device.type.upper().replace("CUDA", "GPU"),
        )
        return torch.bfloat16
    require_dtype(name)
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def batch_size(
    device: torch.device, dtype: torch.dtype, *, values: int, tokens: int, width: int
) -> int:
    """Images to embed at once, for speed within memory.

    Parameters
    ----------
    device, dtype
        Where and in what precision the transformer runs.
    values : int
        Numbers in the pixels of one image.
    tokens : int
        Tokens of one image.
    width : int
        Length of a token.
    """
    if device.type == "cpu":
        return max(1, min(_CPU_BATCH, round(_CPU_TOKENS / tokens)))
    # The total rather than the free memory, so that every run has the same batches.
    memory = torch.cuda.get_device_properties(device).total_memory
    return _cuda_batch(memory, values, tokens * width, dtype)


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
