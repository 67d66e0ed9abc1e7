"""Models of timm as encoders of fragments, with published weights or noise.

Each image goes through the preprocessing of its `Kind` on the device. With ``compat`` it reproduces
the deviations of Major TOM's embedder: see `copcube.encoder.timm_kinds.TimmSpec`.
"""

import hashlib
import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from copcube.encoder import devices
from copcube.encoder.streaming import Streaming, attention, widened
from copcube.encoder.timm_kinds import Kind, TimmSpec
from copcube.encoder.weights import checksum, read_tensors, seed_of, uniform
from copcube.errors import OptionError, WeightsError, few
from copcube.files import limits
from copcube.files.limits import demand
from copcube.modalities import Modality

_HEADS = ("fc.", "head.", "mask_token", "text.", "logit_")
"""Prefixes of names of tensors that no vector depends on."""

_TOWER = "visual.trunk."
"""Prefix of the names of the image tower if the text tower is in the same file."""

_FLOOR = 1e-10
"""Smallest power converted to decibels."""

_POOLINGS = {"head": "the model's own", "tokens": "mean of all tokens"}

_LARGER, _SEEN = 256, 224
"""Sizes to which DINOv2's processor resizes the shorter side of pictures, and crops."""


class TimmEncoder(Streaming):
    """Encoder that turns fragments into vectors.

    Parameters
    ----------
    spec : TimmSpec
        Which encoder, and where.

    Raises
    ------
    OptionError, FetchError, WeightsError
        As `TimmSpec.load`.

    Notes
    -----
    Where vectors depend on the other fragments of a cell (`TimmSpec.by_cell`), a batch must be
    the fragments of one.
    """

    @devices.undisturbed()
    def __init__(self, spec: TimmSpec) -> None:
        super().__init__(spec.device, spec.dtype)
        self.spec, self.kind = spec, spec.kind
        model, noted = _loaded(spec)
        self._layout = torch.preserve_format
        if self.kind.architecture.startswith("resnet"):
            # Channels last, with which convolutions are fastest.
            self._layout = torch.channels_last
            if not spec.by_cell:
                _fold(model)
        self._model = model.to(self.device)
        _to_dtype(self._model, self.dtype)
        self._model.to(memory_format=self._layout)
        if spec.by_cell:
            for layer in self._model.modules():
                if isinstance(layer, nn.modules.batchnorm._BatchNorm):
                    layer.train()
                    layer.momentum = 0.0  # nothing is learned
        shape = (len(self.kind.bands), 1, 1)
        self._mean, self._std = (
            torch.tensor(
                values or [fill] * shape[0], dtype=torch.float32, device=self.device
            ).reshape(shape)
            for values, fill in ((self.kind.mean, 0.0), (self.kind.std, 1.0))
        )
        self._note(noted | {"compat": spec.compat or "none"})

    def __reduce__(self) -> tuple[Callable[[], "TimmEncoder"], tuple[()]]:
        return self.spec.load, ()

    @property
    def dim(self) -> int:
        """Length of a vector."""
        return self.kind.dim

    def batch_size(self, modality: str | Modality, size: int) -> int:
        """Images of `size` pixels per side to embed at once, for speed within memory."""
        patch = 14 if "patch14" in self.kind.architecture else 16
        return devices.batch_size(
            self.device,
            self.dtype,
            values=len(self.kind.bands) * size**2,
            tokens=(size // patch) ** 2 + 1,
            width=self.dim,
        )

    @devices.undisturbed()
    def __call__(
        self,
        modality: str | Modality,
        pixels: Sequence[NDArray[Any]] | NDArray[Any],
        metadata: NDArray[np.float64] | None = None,
    ) -> NDArray[np.float32]:
        """Embed one batch.

        Parameters
        ----------
        modality : str
            Key of the modality of all the images.
        pixels : sequence of numpy.ndarray
            The images, each (bands, rows, columns), or all as one array, as they are stored:
            counts of Sentinel-2, linear power of Sentinel-1.
        metadata : optional
            Not used; these models see pixels alone.

        Returns
        -------
        numpy.ndarray
            (batch, dim) float32.

        Raises
        ------
        OptionError
            If images are of another modality or shape.
        torch.OutOfMemoryError
            If not even one image, or not the fragments of one cell, fit the GPU.
        """
        shape = (len(self.kind.bands), self.kind.size, self.kind.size)
        if modality != self.kind.modality or any(image.shape != shape for image in pixels):
            other = next((image.shape for image in pixels if image.shape != shape), shape)
            raise OptionError(
                f"{modality} images of shape {other}; {self.spec.encoder} sees {shape} of "
                f"{self.kind.modality}, bands {', '.join(self.kind.bands)}"
            )
        if not len(pixels):
            return np.empty((0, self.dim), np.float32)

        def encode(part: slice) -> NDArray[np.float32]:
            return self._computed(pixels[part], self._vectors)

        if self.spec.by_cell:
            return encode(slice(None))
        return self._in_parts(self.spec.encoder, (len(pixels), *shape), encode)

    def _vectors(self, images: Tensor, unsigned: bool) -> Tensor:
        x = self._prepared(widened(images, unsigned).float())
        x = x.to(self.dtype, memory_format=self._layout)
        with attention(self.device):
            if self.kind.pooling == "head":
                return self._model(x).float()  # type: ignore[no-any-return]
            tokens = self._model.forward_features(x)  # type: ignore[operator]
            return tokens.float().mean(dim=1)  # type: ignore[no-any-return]

    def _prepared(self, x: Tensor) -> Tensor:
        """Make of stored pixels, float32, what the model sees; in place, as memory is slow."""
        match self.kind.values:
            case "reflectance":
                x.div_(1e4)
            case "picture":
                x.mul_(2.5).div_(1e4).clamp_(0.0, 1.0)
                if self.spec.compat and self.kind.pooling == "tokens":
                    x = _processed_again(x)
            case "decibels":
                x.nan_to_num_(0.0, 0.0, 0.0).clamp_(min=_FLOOR).log10_().mul_(10)
                return x.sub_(self._mean - 2 * self._std).div_(4 * self._std).clamp_(0.0, 1.0)
        return x.sub_(self._mean).div_(self._std) if self.kind.mean else x


def _processed_again(x: Tensor) -> Tensor:
    """Apply DINOv2's processor to pixels from 0 to 1 instead of the expected 0 to 255.

    It resizes by bicubic interpolation, crops, and divides by 255 a second time.
    """
    x = F.interpolate(x, (_LARGER, _LARGER), mode="bicubic", align_corners=False, antialias=True)
    start = (_LARGER - _SEEN) // 2
    return x[..., start : start + _SEEN, start : start + _SEEN] / 255


def _fold(model: nn.Module) -> None:
    """Fold batch norms, whose statistics stay, into the convolutions before them, in place.

    That spares a pass over all activations for each. Of two children in a row, as ResNets of timm
    name them, the second works on what the first returns.
    """
    for layer in list(model.modules()):
        children = list(layer.named_children())
        for (first, conv), (second, norm) in pairwise(children):
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                setattr(layer, first, fuse_conv_bn_eval(conv, norm))
                setattr(layer, second, nn.Identity())


def _to_dtype(model: nn.Module, dtype: torch.dtype) -> None:
    """Convert a model to a dtype, except batch statistics, which need all their digits."""
    for layer in model.modules():
        if not isinstance(layer, nn.modules.batchnorm._BatchNorm):
            for tensor in (*layer.parameters(recurse=False), *layer.buffers(recurse=False)):
                if tensor.is_floating_point():
                    tensor.data = tensor.data.to(dtype)


def _built(kind: Kind) -> nn.Module:
    """Make the model on the meta device, where it takes no memory."""
    of_tokens: dict[str, Any] = (
        {} if kind.architecture.startswith("resnet") else {"img_size": kind.size}
    )
    build = partial(
        timm.create_model,
        kind.architecture,
        pretrained=False,
        num_classes=0,
        in_chans=len(kind.bands),
        **of_tokens,
    )
    try:
        with torch.device("meta"):
            return build()
    except RuntimeError:
        # Old versions of timm ask tensors for their values while they build a transformer, and
        # old ones of torch have none on the meta device.
        return build()


def _loaded(spec: TimmSpec) -> tuple[nn.Module, dict[str, str | int]]:
    """Load the model's weights on the CPU in float32, and facts to record about them."""
    kind, model = spec.kind, _built(spec.kind)
    if (seed := seed_of(spec.weights)) is not None:
        state = untrained(model, seed)
        sha256 = hashlib.sha256(f"{spec.weights} {kind.architecture}".encode()).hexdigest()
        source, trained = spec.weights, 0
    else:
        path, source, sha256 = _located(spec)
        state, trained = _matched(path, model), 1
    model.load_state_dict(state, assign=True)
    noted: dict[str, str | int] = {
        "encoder": kind.title,
        "encoder_trained": trained,
        "encoder_weights": source,
        "encoder_sha256": sha256,
        "encoder_pooling": _POOLINGS[kind.pooling],
        "encoder_language_sha256": "",
    }
    if kind.published is not None:
        noted["encoder_page"] = kind.published.page
    return model.requires_grad_(False).eval(), noted


def _located(spec: TimmSpec) -> tuple[Path, str, str]:
    """Path of a file of weights, fetched if need be, where it comes from, and its SHA-256."""
    published = spec.kind.published
    if spec.weights != "hub":
        path = Path(spec.weights)
        # The name of a size of Copernicus-FM, of which there is none here.
        if spec.weights == "large" and not path.exists():
            raise OptionError(
                f"weights='large' are for Copernicus-FM, not for {spec.encoder}; give 'hub', the "
                "path of a file, or 'untrained:SEED'"
            )
        return path, path.name, checksum(path)
    if published is None:
        raise OptionError(f"no weights of {spec.encoder} are published; give their path")
    from copcube.hub.fetch import fetch_files

    (here,) = fetch_files([published])
    return here.path, f"hf://{published.repo}@{here.commit}/{published.path}", here.sha256


def untrained(model: nn.Module, seed: int) -> dict[str, Tensor]:
    """Draw tensors for a model whose vectors mean nothing, the same on every machine.

    Each is drawn from its name and the seed, see `copcube.encoder.weights.uniform`: scales of
    norms and variances scatter around 1 by 0.1, matrices and kernels by the root of one over
    their inputs, all else around 0 by 0.1.
    """
    state = {}
    for name, tensor in model.state_dict().items():
        if not tensor.is_floating_point():
            state[name] = torch.zeros(tensor.shape, dtype=tensor.dtype)
            continue
        noise = torch.from_numpy(uniform(seed, name, math.prod(tensor.shape)))
        noise = noise.reshape(tensor.shape)
        if name.endswith("running_var") or (tensor.ndim == 1 and name.endswith("weight")):
            state[name] = 1 + 0.1 * noise
        elif tensor.ndim in (2, 4):
            state[name] = noise / math.sqrt(math.prod(tensor.shape[1:]))
        else:
            state[name] = 0.1 * noise
    return state


def _matched(path: Path, model: nn.Module) -> dict[str, Tensor]:
    """Tensors of a file that a model needs, as float32.

    Raises
    ------
    WeightsError
        If one is missing, has another shape or is not finite, or the file has others.
    """
    found = _read(path)
    if isinstance(found.get("state_dict"), dict):
        found = found["state_dict"]
    if any(name.startswith(_TOWER) for name in found):
        found = {n.removeprefix(_TOWER): t for n, t in found.items() if n.startswith(_TOWER)}
    wanted = model.state_dict()
    others = [name for name in found if name not in wanted and not name.startswith(_HEADS)]
    state, wrong = {}, []
    for name, like in wanted.items():
        tensor = found.get(name)
        # A training counter, absent in files of early versions of torch.
        if tensor is None and name.endswith("num_batches_tracked"):
            state[name] = torch.zeros(like.shape, dtype=like.dtype)
            continue
        if not isinstance(tensor, Tensor):
            wrong.append(f"{name} is missing")
            continue
        if name == "pos_embed" and tensor.ndim == 3 and tensor.shape != like.shape:
            tensor = _resampled(tensor.float(), like.shape)
        if tensor.shape != like.shape:
            wrong.append(f"{name} is {tuple(tensor.shape)}, expected {tuple(like.shape)}")
            continue
        # A copy, since what was read may be a view of the mapped file.
        own = tensor.detach().to(like.dtype, copy=True).contiguous()
        if own.is_floating_point() and not own.isfinite().all():
            wrong.append(f"{name} is not finite")
        state[name] = own
    if wrong or others:
        problems = [*wrong, *(f"{name} is unknown" for name in others)]
        raise WeightsError(
            f"{path}: not the weights of timm's {model.__class__.__name__}: "
            f"{few(problems, 4, '; ')}; `copcube fetch weights --encoder NAME` downloads them"
        )
    return state


def _read(path: Path) -> dict[str, Any]:
    """Tensors of a file by name; nothing in it is executed."""
    if path.suffix != ".safetensors":
        return read_tensors(path)
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        demand(limits.WEIGHTS, path.stat().st_size, f"{path}: its tensors", WeightsError)
        return dict(load_file(path))
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path}: not readable as safetensors ({error}); fetch it again") from (
            error
        )


def _resampled(positions: Tensor, shape: torch.Size) -> Tensor:
    """Position embeddings (1, tokens, dim) of a square grid for another, as DINOv2 does it.

    Bicubic, without the smoothing that timm's own resampling adds. A class token comes first if
    the count of tokens is one more than a square.
    """
    count, wanted = positions.shape[1], shape[1]
    side, to = math.isqrt(count), math.isqrt(wanted)
    first = count - side**2
    if first not in (0, 1) or wanted - to**2 != first or positions.shape[2] != shape[2]:
        return positions
    grid = positions[:, first:].reshape(1, side, side, -1).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, (to, to), mode="bicubic", align_corners=False)
    return torch.cat([positions[:, :first], grid.permute(0, 2, 3, 1).reshape(1, to * to, -1)], 1)
