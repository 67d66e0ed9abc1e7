"""Weights of the encoder: the published file, a copy of it, or noise to try things with.

The published checkpoint of Copernicus-FM (arXiv:2503.11849) exists with and without the last norm
and with parts that only pretraining needs; all of these load, and anything else is refused by name.
Files are data here: nothing in them is ever executed.
"""

import contextlib
import hashlib
import logging
import math
import mmap
import re
import zlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from copcube.arguments import one_path
from copcube.encoder.copernicus_fm import CopernicusFM, Pooling, sincos_grid
from copcube.encoder.devices import undisturbed
from copcube.errors import MissingPackageError, OptionError, WeightsError, few
from copcube.files import limits
from copcube.files.contents import refuse_other
from copcube.files.limits import demand
from copcube.files.regular import open_regular
from copcube.files.torch_pickle import OtherObjectError, TorchFileError
from copcube.files.torch_pickle import Tensor as StoredTensor
from copcube.files.torchfile import TorchFile, open_torch_file
from copcube.hub.published import CHECKPOINTS, LANGUAGE
from copcube.modalities import LANGUAGE_DIM, MODALITIES

log = logging.getLogger("copcube")

HEAD_WIDTH = 64
SIZES = {(384, 12): "ViT-S/16", (768, 12): "ViT-B/16", (1024, 24): "ViT-L/16"}
"""Published sizes by width and number of blocks."""

_NORMS = ("norm.", "fc_norm.")
_PRETRAINING = ("head.", "mask_token", "decoder", "teacher", "student_proj")
_LANGUAGE_BESIDE = (LANGUAGE.path, Path(LANGUAGE.path).name, "var_embed_llama3.2_1B.pt")


@dataclass(frozen=True)
class Weights:
    """A frozen encoder, its variables' language embeddings, and the origin of both.

    Parameters
    ----------
    model : CopernicusFM
        Loaded, float32, on the CPU, in eval mode, without gradients.
    language : dict of str to Tensor
        Language embedding (2048,) float32 of every variable; empty where unknown.
    provenance : dict of str to str or int
        ``encoder``, ``encoder_trained`` (0 or 1), ``encoder_weights``, ``encoder_sha256``,
        ``encoder_pooling`` and ``encoder_language_sha256`` ("" without).
    """

    model: CopernicusFM
    language: dict[str, Tensor]
    provenance: dict[str, str | int]


@undisturbed()
def load_weights(
    weights: str = "hub", *, language: str | None = None, pooling: Pooling | None = None
) -> Weights:
    """Load the encoder.

    Parameters
    ----------
    weights : str
        ``hub`` for the published ViT-B/16, ``large`` for the ViT-L/16, fetched once; the path
        of a copy; or ``untrained:SEED`` for noise, the same on every machine.
    language : str, optional
        File of the variables' language embeddings. By default that of the hub; for a copy,
        the one beside it or in the hub's cache; for noise, noise.
    pooling : {"cls", "mean"}, optional
        Feature of an image. By default the class token if the file has a norm for it, else
        the mean of the patch tokens after a plain layer norm.

    Raises
    ------
    OptionError
        If an argument has another form.
    WeightsError
        If a file does not exist, is not a file of plain tensors, or its tensors are missing,
        unknown, of a wrong shape or not finite.
    FetchError, StorageError
        If the published files cannot be fetched.
    """
    weights = one_path(weights, "weights")
    if (seed := seed_of(weights)) is not None:
        noise = untrained_weights(seed, pooling="cls" if pooling is None else pooling)
        return noise if language is None else _with_language(noise, Path(language))
    if weights in CHECKPOINTS:
        from copcube.hub.fetch import fetch_files

        file = CHECKPOINTS[weights]
        here = fetch_files((file, LANGUAGE) if language is None else (file,))
        source = f"hf://{file.repo}@{here[0].commit}/{file.path}"
        loaded = _from_file(here[0].path, source, here[0].sha256, pooling)
        return _with_language(loaded, Path(language) if language else here[1].path)
    path = Path(weights)
    loaded = _from_file(path, path.name, checksum(path), pooling)
    words = Path(language) if language else _find_language(path.parent)
    if words is None:
        log.warning(
            "no language embeddings beside %s or in the cache: images of variables (S5P, DEM) "
            "cannot be embedded; give --language PATH or run `copcube fetch weights`",
            path.name,
        )
        return loaded
    return _with_language(loaded, words)


def seed_of(weights: str) -> int | None:
    """Seed in the name of untrained weights, ``untrained:SEED``; None for other names.

    Raises
    ------
    OptionError
        If it is not a whole number of up to 18 digits.
    """
    if weights != "untrained" and not weights.startswith("untrained:"):
        return None
    match = re.fullmatch(r"untrained:([0-9]{1,18})", weights)
    if match is None:
        raise OptionError(f"weights are {weights!r}; expected a seed, such as 'untrained:0'")
    return int(match[1])


def untrained_weights(
    seed: int,
    *,
    embed_dim: int = 768,
    depth: int = 12,
    heads: int = 12,
    pooling: Pooling = "cls",
) -> Weights:
    """Draw an encoder whose vectors mean nothing, the same on every machine.

    Every tensor is drawn from its name and the seed alone: bits of PCG64, whose stream is
    fixed, made uniform by exact arithmetic. Norms scatter around 1 by 0.1, matrices by one
    over the root of their inputs, all else around 0 by 0.1; positions are the real ones.

    Parameters
    ----------
    seed : int
        Not negative.
    embed_dim, depth, heads : int
        Size of the model.
    pooling : {"cls", "mean"}
        Feature of an image.
    """
    with torch.device("meta"):
        model = CopernicusFM(pooling, embed_dim=embed_dim, depth=depth, heads=heads)
    state = {
        name: torch.from_numpy(_draw(seed, name, tuple(tensor.shape)))
        for name, tensor in model.state_dict().items()
        if name != "pos_embed"
    }
    state["pos_embed"] = sincos_grid(embed_dim)
    keys = [m.language_key for m in MODALITIES.values() if m.language_key]
    language = {
        key: torch.from_numpy(uniform(seed, f"language/{key}", LANGUAGE_DIM)) for key in keys
    }
    drawn = f"untrained:{seed} width {embed_dim} blocks {depth} heads {heads}"
    provenance: dict[str, str | int] = {
        "encoder": _title(embed_dim, depth),
        "encoder_trained": 0,
        "encoder_weights": f"untrained:{seed}",
        "encoder_sha256": hashlib.sha256(drawn.encode()).hexdigest(),
        "encoder_pooling": pooling,
        "encoder_language_sha256": hashlib.sha256(
            f"untrained:{seed} language".encode()
        ).hexdigest(),
    }
    return Weights(_frozen(model, state), language, provenance)


def _draw(seed: int, name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Draw one tensor at the scale that its part needs."""
    noise = uniform(seed, name, math.prod(shape)).reshape(shape)
    if "norm" in name and name.endswith("weight"):
        return np.float32(1) + np.float32(0.1) * noise
    is_matrix = len(shape) == 2 and name.endswith("weight")
    noise *= np.float32(1 / math.sqrt(shape[1]) if is_matrix else 0.1)
    return noise


def uniform(seed: int, name: str, count: int) -> NDArray[np.float32]:
    """Draw uniform noise of mean 0 and variance 1; all steps but the last are exact."""
    stream = np.random.PCG64([seed, zlib.crc32(name.encode())])
    bits = stream.random_raw((count + 1) // 2).astype("<u8", copy=False).view("<u4")[:count]
    noise = (bits >> 9).astype(np.float32)  # 23 bits, which float32 holds exactly
    noise += np.float32(0.5 - 2**22)  # centred on 0
    noise *= np.float32(math.sqrt(12) / 2**23)  # the variance of a uniform number is 1/12
    return noise


def _from_file(path: Path, source: str, sha256: str, pooling: Pooling | None) -> Weights:
    """Load a checkpoint; its language embeddings come later."""
    tensors = read_tensors(path)
    if isinstance(tensors.get("model"), dict):
        tensors = tensors["model"]
    if odd := [str(name) for name, value in tensors.items() if not isinstance(value, Tensor)]:
        raise WeightsError(
            f"{path}: expected a state dict, tensors by name, plain or under 'model'; found other "
            f"things under {few(odd)}; save only the state dict"
        )
    width, depth = _measure(path, tensors)
    if pooling is None:
        pooling = "cls" if "norm.weight" in tensors else "mean"
    # On the meta device tensors have no memory: those of the file take their places.
    with torch.device("meta"):
        model = CopernicusFM(pooling, embed_dim=width, depth=depth, heads=width // HEAD_WIDTH)
    provenance: dict[str, str | int] = {
        "encoder": _title(width, depth),
        "encoder_trained": 1,
        "encoder_weights": source,
        "encoder_sha256": sha256,
        "encoder_pooling": pooling,
        "encoder_language_sha256": "",
    }
    return Weights(_frozen(model, _matched(path, tensors, model)), {}, provenance)


def _measure(path: Path, tensors: dict[str, Tensor]) -> tuple[int, int]:
    """Find the width and the number of blocks of a model by its tensors."""
    shape = tuple(tensors["cls_token"].shape) if "cls_token" in tensors else None
    width = shape[-1] if shape and shape[:-1] == (1, 1) else 0
    depth = len({name.split(".")[1] for name in tensors if name.startswith("blocks.")})
    if width not in range(HEAD_WIDTH, 4097, HEAD_WIDTH) or not 1 <= depth <= 64:
        raise WeightsError(
            f"{path}: not a Copernicus-FM encoder: cls_token has shape {shape} and there are "
            f"{depth} blocks; expected (1, 1, 768) and 12, as in ViT-B/16, or another size of it"
        )
    return width, depth


def _matched(path: Path, tensors: dict[str, Tensor], model: CopernicusFM) -> dict[str, Tensor]:
    """Match a file's tensors to a model's, one to one except as documented."""
    wanted = model.state_dict()
    norm = [name for name in wanted if name.startswith(_NORMS)]
    # The published checkpoint for pretraining lacks the last norm, which then is a plain one.
    identity = norm if not any(name in tensors for name in norm) else []
    missing = [name for name in wanted if name not in tensors and name not in identity]
    unneeded = [name for name in tensors if name not in wanted]
    unknown = [name for name in unneeded if not name.startswith((*_NORMS, *_PRETRAINING))]
    misshapen = [
        f"{name} {_form(tensors[name])}, expected {tuple(tensor.shape)}"
        for name, tensor in wanted.items()
        if name in tensors and not _fits(tensors[name], tensor.shape)
    ]
    if missing or unknown or misshapen:
        kinds = {"missing": missing, "unknown": unknown, "of the wrong shape or kind": misshapen}
        found = "; ".join(f"{len(n)} {kind}: {few(n)}" for kind, n in kinds.items() if n)
        raise WeightsError(
            f"{path}: not the tensors of {_title(model.embed_dim, len(model.blocks))}: {found}; "
            f"give the published checkpoint or its state dict"
        )
    if unneeded:
        log.info("%s: %d tensors not needed: %s", path.name, len(unneeded), few(unneeded))
    if identity and model.pooling == "cls":
        log.warning("%s has no norm for the class token: a plain one is used", path.name)
    # Tensors may share their numbers, so that a file may hold many times its bytes.
    needed = 4 * sum(tensor.numel() for tensor in wanted.values())
    demand(limits.WEIGHTS, needed, f"{path}: its {len(wanted)} tensors", WeightsError)
    plain = {
        name: torch.full((model.embed_dim,), float("weight" in name), dtype=torch.float32)
        for name in identity
    }
    return plain | {name: _own(path, name, tensors[name]) for name in wanted if name not in plain}


def _fits(tensor: Tensor, shape: torch.Size) -> bool:
    is_plain = tensor.is_floating_point() and tensor.layout == torch.strided and tensor.is_cpu
    return tensor.shape == shape and is_plain


def _form(tensor: Tensor) -> str:
    return f"is {tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"


def _own(path: Path, name: str, tensor: Tensor) -> Tensor:
    """Copy a tensor out of its file as float32, and refuse what is not finite."""
    own = tensor.detach().to(torch.float32, copy=True).contiguous()
    if not own.isfinite().all():
        raise WeightsError(f"{path}: {name} holds values that are not finite; fetch it again")
    return own


def _frozen(model: CopernicusFM, state: dict[str, Tensor]) -> CopernicusFM:
    model.load_state_dict(state, assign=True)
    return model.requires_grad_(False).eval()


def _find_language(folder: Path) -> Path | None:
    """Find the language embeddings beside a checkpoint, or in the hub's cache."""
    for name in _LANGUAGE_BESIDE:
        if (folder / name).is_file():
            return folder / name
    with contextlib.suppress(MissingPackageError):
        from copcube.hub.fetch import cached

        return cached(LANGUAGE)
    return None


def _with_language(weights: Weights, path: Path) -> Weights:
    """Add the language embeddings of a file."""
    provenance = {**weights.provenance, "encoder_language_sha256": checksum(path, _WORDS)}
    language = {}
    for name, tensor in read_tensors(path).items():
        if not isinstance(tensor, Tensor) or not _fits(tensor, torch.Size([LANGUAGE_DIM])):
            found = _form(tensor) if isinstance(tensor, Tensor) else f"is a {type(tensor).__name__}"
            raise WeightsError(
                f"{path}: {name!r} {found}; expected a language embedding of shape "
                f"({LANGUAGE_DIM},) for every name, as in {Path(LANGUAGE.path).name}"
            )
        language[name] = _own(path, repr(name), tensor)
    return replace(weights, language=language, provenance=provenance)


def read_tensors(path: Path) -> dict[str, Any]:
    """Read a PyTorch file that holds a dict by name, without executing anything in it.

    Its tensors are views of the mapped file, which are in memory once they are copied.
    """
    forms = ("torch", "zip", "pickle", "tar")
    refuse_other(path, forms, "a PyTorch file of the encoder's tensors", WeightsError)
    try:
        with open_torch_file(path, WeightsError) as file:
            content = file.content
            if not isinstance(content, dict) or not all(isinstance(n, str) for n in content):
                raise WeightsError(
                    f"{path}: expected tensors by name, found a {type(content).__name__}"
                )
            with path.open("rb") as opened:
                # Not ACCESS_READ: torch warns of arrays that cannot be written to.
                raw = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_COPY)
            return {name: _torch_tensors(file, value, raw) for name, value in content.items()}
    except WeightsError:
        raise
    except OtherObjectError as error:
        raise WeightsError(
            f"{path}: refused: it holds something other than plain tensors, {error}, and nothing "
            "in it was executed; expected the published file, or torch.save(model.state_dict(), "
            "...)"
        ) from error
    except (TorchFileError, OSError, RuntimeError) as error:
        limits.rule_out_shortage(error)
        raise WeightsError(
            f"{path}: not a readable PyTorch file ({error}); fetch it again"
        ) from error


def _torch_tensors(file: TorchFile, value: Any, raw: Any) -> Any:
    """Make a tensor of a described one, also of those in a dictionary of them."""
    if isinstance(value, dict):
        return {
            name: _torch_tensors(file, v, raw) if isinstance(v, StoredTensor) else v
            for name, v in value.items()
        }
    if not isinstance(value, StoredTensor):
        return value
    numbers = file.numbers(value, raw)
    if not numbers.dtype.isnative:
        numbers = numbers.astype(numbers.dtype.newbyteorder("="))
    tensor = torch.from_numpy(numbers)
    # NumPy has no bfloat16, so its bits come as whole numbers.
    return tensor.view(torch.bfloat16) if value.dtype == "bfloat16" else tensor


_WEIGHTS = "'hub', 'large', the path of a file, or 'untrained:SEED'"
_WORDS = "a file of language embeddings, which `copcube fetch weights` downloads"


def checksum(path: Path, expected: str = _WEIGHTS) -> str:
    """SHA-256 of a file of weights, or of something else that is `expected`.

    Raises
    ------
    WeightsError
        If it cannot be read.
    """
    try:
        with open_regular(path, WeightsError) as handle:
            return hashlib.file_digest(handle, "sha256").hexdigest()
    except OSError as error:
        raise WeightsError(f"{path}: {error.strerror}; expected {expected}") from error


def _title(width: int, depth: int) -> str:
    return f"Copernicus-FM {SIZES.get((width, depth), f'ViT, {width} wide, {depth} blocks')}"
