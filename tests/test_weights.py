"""Loading weights: every published layout, and nothing else."""

import functools
import hashlib
import inspect
import os
import pickle
import struct
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hub_server import Hub, Repo, serve
from huggingface_hub import constants
from reference_weights import draw, published_state

from copcube.encoder import weights as module
from copcube.encoder.copernicus_fm import CopernicusFM, sincos_grid
from copcube.encoder.weights import load_weights, untrained_weights
from copcube.errors import FetchError, OptionError, WeightsError
from copcube.hub.published import CHECKPOINTS, LANGUAGE
from copcube.modalities import MODALITIES

DATA = Path(__file__).parents[1].parent / "shared" / "data"
GOLDEN = "a95c2923c9f7536eb858f0728354c419eb5f49cd5365e651992a9965a71f9273"
NAMES = [m.language_key for m in MODALITIES.values() if m.language_key]


def layout(width: int, depth: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the published state dict, norms aside (its documentation's table)."""
    shapes: dict[str, tuple[int, ...]] = {
        **{f"{name}_token": (1, 1, width) for name in ("cls", "coord", "scale", "time")},
        "pos_embed": (1, 197, width),
        "patch_embed_variable.language_proj.weight": (128, 2048),
        "patch_embed_variable.language_proj.bias": (128,),
    }

    def linear(name: str, inputs: int, outputs: int) -> None:
        shapes[f"{name}.weight"] = (outputs, inputs)
        shapes[f"{name}.bias"] = (outputs,)

    def norm(name: str, size: int) -> None:
        shapes[f"{name}.weight"] = shapes[f"{name}.bias"] = (size,)

    for kind in ("spectral", "variable"):
        generator = f"patch_embed_{kind}.weight_generator"
        shapes[f"{generator}.weight_tokens"] = (128, 128)
        shapes[f"{generator}.bias_token"] = (1, 128)
        layer = f"{generator}.transformer_encoder.layers.0"
        shapes[f"{layer}.self_attn.in_proj_weight"] = (384, 128)
        shapes[f"{layer}.self_attn.in_proj_bias"] = (384,)
        linear(f"{layer}.self_attn.out_proj", 128, 128)
        linear(f"{layer}.linear1", 128, 2048)
        linear(f"{layer}.linear2", 2048, 128)
        norm(f"{layer}.norm1", 128)
        norm(f"{layer}.norm2", 128)
        linear(f"{generator}.fc_weight", 128, 256 * width)
        linear(f"{generator}.fc_bias", 128, width)
        linear(f"patch_embed_{kind}.fclayer.w1", 128, 128)
        linear(f"patch_embed_{kind}.fclayer.w2", 128, 128)
    for name in ("coord", "scale", "time"):
        linear(f"{name}_fc", width, width)
    for i in range(depth):
        norm(f"blocks.{i}.norm1", width)
        norm(f"blocks.{i}.norm2", width)
        linear(f"blocks.{i}.attn.qkv", width, 3 * width)
        linear(f"blocks.{i}.attn.proj", width, width)
        linear(f"blocks.{i}.mlp.fc1", width, 4 * width)
        linear(f"blocks.{i}.mlp.fc2", 4 * width, width)
    return shapes


def random_state(*extra: tuple[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
    """A state dict of the smallest encoder, with extra tensors."""
    return dict(drawn_at_random(extra))


@functools.cache
def drawn_at_random(extra: tuple[tuple[str, tuple[int, ...]], ...]) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = {**layout(64, 2), **dict(extra)}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


NORM = (("norm.weight", (64,)), ("norm.bias", (64,)))
FC_NORM = (("fc_norm.weight", (64,)), ("fc_norm.bias", (64,)))
PRETRAINING = (
    ("mask_token", (1, 1, 512)),
    ("decoder_blocks.0.attn.qkv.weight", (3, 3)),
    ("decoder_pos_embed", (1, 197, 512)),
    ("student_proj.weight", (2, 2)),
    ("teacher.norm.weight", (5,)),
)
HEAD = (("head.weight", (10, 64)), ("head.bias", (10,)))


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty cache of the hub's."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)


def saved(path: Path, content: object, **options: object) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, path, **options)
    return str(path)


# What loads


def test_published_layout_has_the_published_number_of_tensors_and_values():
    shapes = layout(768, 12) | {"norm.weight": (768,), "norm.bias": (768,)}
    assert len(shapes) == 203
    assert sum(int(np.prod(shape)) for shape in shapes.values()) == 139_452_544


@pytest.mark.parametrize("under", [None, "model"])
@pytest.mark.parametrize("zipped", [True, False])
def test_every_tensor_arrives_unchanged(tmp_path, under, zipped):
    state = random_state(*NORM)
    content = {under: state, "epoch": 100} if under else state
    path = saved(tmp_path / "w.pth", content, _use_new_zipfile_serialization=zipped)
    model = load_weights(path).model
    assert not model.training
    assert list(model.state_dict()) == list(
        CopernicusFM(embed_dim=64, depth=2, heads=1).state_dict()
    )
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, state[name]), name
        assert not parameter.requires_grad
        assert (parameter.dtype, parameter.device.type) == (torch.float32, "cpu")


@pytest.mark.parametrize(
    ("extra", "pooling", "expected", "norm", "warned"),
    [
        (NORM, None, "cls", "norm", False),
        ((), None, "mean", None, False),
        (FC_NORM, None, "mean", "fc_norm", False),
        ((*NORM, *FC_NORM), None, "cls", "norm", False),
        ((*NORM, *FC_NORM), "mean", "mean", "fc_norm", False),
        (NORM, "mean", "mean", None, False),
        ((), "cls", "cls", None, True),
        ((*NORM, *PRETRAINING, *HEAD), None, "cls", "norm", False),
        (PRETRAINING, None, "mean", None, False),
    ],
)
def test_optional_parts(tmp_path, caplog, extra, pooling, expected, norm, warned):
    state = random_state(*extra)
    loaded = load_weights(saved(tmp_path / "w.pth", state), pooling=pooling)
    model = loaded.model
    assert loaded.provenance["encoder_pooling"] == model.pooling == expected
    last = model.norm if expected == "cls" else model.fc_norm
    assert torch.equal(last.weight, state[f"{norm}.weight"] if norm else torch.ones(64))
    assert torch.equal(last.bias, state[f"{norm}.bias"] if norm else torch.zeros(64))
    assert ("no norm for the class token" in caplog.text) == warned


def test_parts_that_are_not_needed_are_reported(tmp_path, caplog):
    caplog.set_level("INFO", "copcube")
    load_weights(saved(tmp_path / "w.pth", random_state(*NORM, *PRETRAINING, *HEAD)))
    assert (
        "w.pth: 7 tensors not needed: mask_token, decoder_blocks.0.attn.qkv.weight" in caplog.text
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_become_float32(tmp_path, dtype):
    state = {name: tensor.to(dtype) for name, tensor in random_state(*NORM).items()}
    model = load_weights(saved(tmp_path / "w.pth", state)).model
    for name, parameter in model.named_parameters():
        assert parameter.dtype == torch.float32
        assert torch.equal(parameter, state[name].float())


@pytest.mark.parametrize(
    ("width", "depth", "heads", "title"),
    [
        (384, 12, 6, "Copernicus-FM ViT-S/16"),
        (768, 12, 12, "Copernicus-FM ViT-B/16"),
        (1024, 24, 16, "Copernicus-FM ViT-L/16"),
        (64, 2, 1, "Copernicus-FM ViT, 64 wide, 2 blocks"),
    ],
)
def test_sizes_are_recognised(width, depth, heads, title):
    """On the meta device: shapes without the gigabytes."""
    tensors = {name: torch.empty(s, device="meta") for name, s in layout(width, depth).items()}
    assert module._measure(Path("w.pth"), tensors) == (width, depth)
    assert module._title(width, depth) == title
    with torch.device("meta"):
        model = CopernicusFM("cls", embed_dim=width, depth=depth, heads=width // module.HEAD_WIDTH)
    assert model.blocks[0].attn.num_heads == heads
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    assert shapes == layout(width, depth) | {"norm.weight": (width,), "norm.bias": (width,)}


def test_file_may_go_away_after_loading(tmp_path):
    state = random_state(*NORM)
    path = Path(saved(tmp_path / "w.pth", state))
    model = load_weights(str(path)).model
    path.write_bytes(b"")
    assert torch.equal(model.blocks[1].mlp.fc2.weight, state["blocks.1.mlp.fc2.weight"])


def test_provenance_names_the_file_not_its_folder(tmp_path):
    path = saved(tmp_path / "secret" / "w.pth", random_state(*NORM))
    language = saved(tmp_path / "secret" / "words.pt", {"CO": torch.ones(2048)})
    provenance = load_weights(path, language=language).provenance
    assert provenance == {
        "encoder": "Copernicus-FM ViT, 64 wide, 2 blocks",
        "encoder_trained": 1,
        "encoder_weights": "w.pth",
        "encoder_sha256": hashlib.sha256(Path(path).read_bytes()).hexdigest(),
        "encoder_pooling": "cls",
        "encoder_language_sha256": hashlib.sha256(Path(language).read_bytes()).hexdigest(),
    }


@pytest.mark.slow
@pytest.mark.skipif(not DATA.is_dir(), reason="reference data are not in this checkout")
def test_loaded_weights_give_the_published_codes_vectors(tmp_path):
    """A full ViT-B checkpoint with all the extras, against outputs of the published code."""
    norms = {f"{n}.{part}": (768,) for n in ("norm", "fc_norm") for part in ("weight", "bias")}
    state = dict(published_state())
    assert {name: tuple(x.shape) for name, x in state.items()} == layout(768, 12) | norms
    state |= {"mask_token": torch.zeros(1, 1, 512), "head.weight": torch.zeros(10, 768)}
    path = saved(tmp_path / "base.pth", {"model": state})
    word = "Sentinel 5P Nitrogen Dioxide"
    saved(tmp_path / "varname_embed_llama3.2_1B.pt", {word: draw(f"language/{word}", (2048,))})
    reference = np.load(DATA / "copernicusfm_reference.npz")
    for pooling, key in (("cls", "cls"), ("mean", "mean_pool")):
        loaded = load_weights(path, pooling=pooling)
        with torch.no_grad():
            vector = loaded.model(
                draw("input/s5p_no2", (1, 1, 28, 28)),
                torch.tensor([[0.0, 51.5, 18900, 16.0]], dtype=torch.float64),
                language_embedding=loaded.language[word],
                kernel_size=4,
            )
        np.testing.assert_allclose(vector, reference[f"s5p_no2/{key}"], atol=2e-4)


# What does not


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda s: s.pop("blocks.1.mlp.fc2.bias"), "1 missing: blocks.1.mlp.fc2.bias;"),
        (
            lambda s: [s.pop(n) for n in list(s) if n.startswith("patch_embed_variable.")],
            r"24 missing: patch_embed_variable.*and 19 more",
        ),
        (lambda s: s.pop("norm.bias"), "1 missing: norm.bias"),
        (lambda s: s.update(layer_scale=torch.ones(3)), "1 unknown: layer_scale"),
        (
            lambda s: s.update({"blocks.0.attn.qkv.weight": torch.ones(3, 4)}),
            r"blocks.0.attn.qkv.weight is \(3, 4\) float32, expected \(192, 64\)",
        ),
        (
            lambda s: s.update({"coord_fc.bias": torch.ones(64, dtype=torch.int32)}),
            r"coord_fc.bias is \(64,\) int32, expected \(64,\)",
        ),
        (
            lambda s: s.update({"coord_fc.weight": torch.eye(64).to_sparse()}),
            r"refused: .*_rebuild_sparse_tensor.* nothing in it was executed",
        ),
        (lambda s: s.update({"norm.bias": torch.full((64,), torch.nan)}), "norm.bias holds values"),
        (lambda s: s.update({"time_fc.bias": torch.full((64,), torch.inf)}), "time_fc.bias holds"),
        (lambda s: s.pop("cls_token"), "not a Copernicus-FM encoder: cls_token has shape None"),
        (lambda s: s.update(cls_token=torch.ones(1, 1, 100)), r"has shape \(1, 1, 100\)"),
        (lambda s: s.update(cls_token=torch.ones(64)), r"has shape \(64,\)"),
        (lambda s: s.update(cls_token=torch.ones(1, 1, 0)), r"has shape \(1, 1, 0\)"),
        (
            lambda s: s.update(cls_token=torch.ones(1, 1, 1).expand(1, 1, 1 << 40)),
            r"has shape \(1, 1, 1099511627776\)",
        ),
        (lambda s: [s.pop(n) for n in list(s) if n.startswith("blocks.")], "there are 0 blocks"),
        (lambda s: s.update(epoch=100), "other things under epoch"),
        (lambda s: s.clear(), "not a Copernicus-FM encoder"),
    ],
)
def test_wrong_tensors_are_named(tmp_path, change, says):
    state = random_state(*NORM)
    change(state)
    path = saved(tmp_path / "w.pth", state)
    with pytest.raises(WeightsError, match=says) as caught:
        load_weights(path)
    assert str(caught.value).startswith(path)


class Malice:
    """A pickle that touches a file when it is loaded the naive way."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("form", ["zip", "legacy", "pickle", "beside", "language"])
def test_nothing_is_executed(tmp_path, form):
    mark = tmp_path / "executed"
    path = tmp_path / "w.pth"
    if form == "pickle":
        path.write_bytes(pickle.dumps({"cls_token": Malice(mark)}))
    elif form == "language":
        saved(path, random_state(*NORM))
        saved(tmp_path / "var_embed_llama3.2_1B.pt", {"CO": Malice(mark)})
    else:
        state = random_state(*NORM) if form == "beside" else {}
        content = {"model": state, "args": Malice(mark)} if form == "beside" else Malice(mark)
        saved(path, content, _use_new_zipfile_serialization=form != "legacy")
    with pytest.raises(WeightsError, match=r"refused: .*nothing in it was executed"):
        load_weights(str(path))
    assert not mark.exists()
    pickle.loads(pickle.dumps(Malice(mark)))  # the weapon is loaded
    assert mark.exists()


def compressed_zip(path: Path) -> None:
    """A checkpoint whose records are compressed, which torch does not write."""
    import zipfile

    whole = saved(path.with_suffix(".whole"), random_state(*NORM))
    with (
        zipfile.ZipFile(whole) as old,
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as new,
    ):
        for name in old.namelist():
            new.writestr(name, old.read(name))


@pytest.mark.parametrize(
    "make",
    [
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"version https://git-lfs.github.com/spec/v1\n"),
        lambda path: path.write_bytes(bytes(4096)),
        lambda path: path.write_bytes(struct.pack("<Q", 1 << 40) + b"{}"),
        lambda path: os.truncate(saved(path, random_state(*NORM)), 100_000),
        lambda path: saved(path, [torch.ones(3)]),
        lambda path: saved(path, torch.ones(3)),
        lambda path: saved(path, {1: torch.ones(3)}),
        lambda path: path.mkdir(),
        lambda path: None,
        pytest.param(compressed_zip, marks=pytest.mark.slow),
    ],
)
def test_broken_files_are_named(tmp_path, make):
    path = tmp_path / "w.pth"
    make(path)
    with pytest.raises(WeightsError, match=r"w\.pth"):
        load_weights(str(path))


@pytest.mark.parametrize("weights", ["untrained", "untrained:", "untrained:-1", "untrained:x"])
def test_bad_seeds_are_refused(weights):
    with pytest.raises(OptionError, match="expected a seed"):
        load_weights(weights)


def test_bad_pooling_is_refused(tmp_path):
    with pytest.raises(OptionError, match="pooling"):
        load_weights(saved(tmp_path / "w.pth", random_state()), pooling="max")


# Language embeddings


def words(value: float = 1.0) -> dict[str, torch.Tensor]:
    return {name: torch.full((2048,), value) for name in NAMES}


@pytest.mark.parametrize(
    "name",
    [
        "varname_embed/varname_embed_llama3.2_1B.pt",
        "varname_embed_llama3.2_1B.pt",
        "var_embed_llama3.2_1B.pt",
    ],
)
def test_language_beside_the_weights_is_found(tmp_path, name):
    path = saved(tmp_path / "w.pth", random_state(*NORM))
    saved(tmp_path / name, {k: v.half() for k, v in words(0.5).items()})
    language = load_weights(path).language
    assert set(language) == set(NAMES)
    assert all(torch.equal(v, torch.full((2048,), 0.5)) for v in language.values())
    assert (
        load_weights(path, language=saved(tmp_path / "o.pt", words(2.0))).language[NAMES[0]][0] == 2
    )


def test_without_language_there_is_a_warning_and_no_download(tmp_path, caplog, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    loaded = load_weights(saved(tmp_path / "w.pth", random_state(*NORM)))
    assert loaded.language == {}
    assert loaded.provenance["encoder_language_sha256"] == ""
    assert "no language embeddings beside w.pth" in caplog.text


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"CO": torch.ones(768)}, r"'CO' is \(768,\) float32; expected .*\(2048,\)"),
        ({"CO": torch.ones(2048, dtype=torch.int64)}, r"is \(2048,\) int64"),
        ({"CO": torch.full((2048,), torch.nan)}, "'CO' holds values"),
        ({"CO": [1.0]}, "'CO' is a list"),
        ([torch.ones(2048)], "found a list"),
    ],
)
def test_wrong_language_is_named(tmp_path, content, says):
    path = saved(tmp_path / "w.pth", random_state(*NORM))
    with pytest.raises(WeightsError, match=says):
        load_weights(path, language=saved(tmp_path / "words.pt", content))
    with pytest.raises(
        WeightsError, match=r"none\.pt: No such file.*; expected a file of language embeddings"
    ):
        load_weights(path, language=str(tmp_path / "none.pt"))


# The hub


@pytest.mark.slow
@pytest.mark.parametrize(("name", "file"), CHECKPOINTS.items())
def test_hub_brings_both_files_and_their_provenance(name, file, tmp_path, monkeypatch):
    state, language = tmp_path / "w.pth", tmp_path / "words.pt"
    saved(state, random_state(*NORM))
    saved(language, words())
    digest = hashlib.sha256(state.read_bytes()).hexdigest()
    monkeypatch.setitem(CHECKPOINTS, name, replace(file, sha256=(digest,)))
    files = {file.path: state.read_bytes(), LANGUAGE.path: language.read_bytes()}
    with serve(Hub({file.repo: Repo(file.revision, files)})) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        loaded = load_weights(name)
        local = load_weights(str(state))
    assert loaded.provenance == {
        **local.provenance,
        "encoder_weights": f"hf://{file.repo}@{file.revision}/{file.path}",
    }
    assert set(local.language) == set(NAMES)  # from the cache
    assert all(
        torch.equal(a, b)
        for a, b in zip(loaded.model.parameters(), local.model.parameters(), strict=True)
    )
    assert load_weights(name).provenance == loaded.provenance  # the hub is gone


def test_hub_out_of_reach_names_the_ways_out(monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(FetchError, match="--weights untrained:SEED"):
        load_weights("hub")


# Noise


def tiny(seed: int, **options: object):
    return untrained_weights(seed, embed_dim=64, depth=2, heads=2, **options)


def test_noise_is_the_same_everywhere_and_leaves_other_streams_alone():
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002
    before = torch.get_rng_state(), np.random.get_state()[1].tobytes()  # noqa: NPY002
    digest = hashlib.sha256()
    for name, tensor in tiny(0).model.state_dict().items():
        if name != "pos_embed":  # sines are the platform's
            digest.update(tensor.numpy().astype("<f4").tobytes())
    assert digest.hexdigest() == GOLDEN
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == np.random.get_state()[1].tobytes()  # noqa: NPY002


def test_noise_follows_its_rule():
    """Bits of PCG64 by numpy, and exact arithmetic by Python's fractions."""
    from fractions import Fraction

    stream = np.random.PCG64([7, zlib.crc32(b"coord_fc.weight")])
    bits = [int(b) for b in stream.random_raw(4)]
    words = [half for b in bits for half in (b & 0xFFFFFFFF, b >> 32)]
    exact = [(Fraction(w >> 9) + Fraction(1, 2)) / 2**23 - Fraction(1, 2) for w in words]
    drawn = tiny(7).model.coord_fc.weight.flatten()[:8].tolist()
    assert drawn == pytest.approx([float(x) * 12**0.5 / 8 for x in exact], rel=1e-6)


def test_noise_has_sensible_scales():
    state = tiny(0).model.state_dict()
    weight = state["patch_embed_spectral.weight_generator.fc_weight.weight"]
    assert weight.mean().abs() < 1e-3 / 128**0.5
    assert weight.std() * 128**0.5 == pytest.approx(1, abs=1e-3)
    assert state["norm.weight"].mean() == pytest.approx(1, abs=0.1)
    assert state["norm.bias"].std() == pytest.approx(0.1, rel=0.5)
    assert len({tuple(t.flatten()[:4].tolist()) for t in state.values()}) == len(state)


def test_positions_of_noise_are_the_published_ones():
    """Sine, cosine: first half the column, second half the row; zeros for the class token."""
    assert torch.equal(tiny(0).model.pos_embed, sincos_grid(64))
    positions = sincos_grid(768)[0].double().numpy()
    assert not positions[0].any()
    omega = 10000.0 ** (-np.arange(192) / 192)
    for row, column in ((0, 0), (3, 11), (13, 13)):
        code = [f(p * omega) for p in (column, row) for f in (np.sin, np.cos)]
        np.testing.assert_allclose(
            positions[1 + 14 * row + column], np.concatenate(code), atol=1e-6
        )


@pytest.fixture
def small_noise(monkeypatch):
    """Noise of the smallest model, where the full one would be drawn."""
    small = functools.partial(untrained_weights, embed_dim=64, depth=2, heads=2)
    monkeypatch.setattr(module, "untrained_weights", small)


def test_noise_is_drawn_for_the_published_size():
    defaults = inspect.signature(untrained_weights).parameters
    assert [defaults[name].default for name in ("embed_dim", "depth", "heads")] == [768, 12, 12]


def test_seeds_differ_and_are_told_apart(small_noise):
    zero, one = load_weights("untrained:0"), load_weights("untrained:1")
    again = untrained_weights(0, embed_dim=64, depth=1, heads=2)
    assert not torch.equal(zero.model.cls_token, one.model.cls_token)
    assert not torch.equal(zero.language[NAMES[0]], one.language[NAMES[0]])
    keys = ("encoder_sha256", "encoder_language_sha256", "encoder_weights")
    assert all(zero.provenance[key] != one.provenance[key] for key in keys)
    assert zero.provenance["encoder_sha256"] != again.provenance["encoder_sha256"]  # another size
    assert zero.provenance["encoder"] == "Copernicus-FM ViT, 64 wide, 2 blocks"
    assert zero.provenance["encoder_trained"] == 0
    assert zero.provenance["encoder_weights"] == "untrained:0"
    assert load_weights("untrained:0", pooling="mean").model.pooling == "mean"


def test_noise_takes_real_language_embeddings(small_noise, tmp_path):
    path = saved(tmp_path / "words.pt", words(3.0))
    loaded = load_weights("untrained:0", language=path)
    assert loaded.language[NAMES[0]][0] == 3
    assert loaded.provenance["encoder_trained"] == 0


@pytest.mark.parametrize("key", MODALITIES)
def test_noise_tells_images_apart(key):
    """Vectors are finite and not all alike, so that a build with noise tests something."""
    modality = MODALITIES[key]
    weights = tiny(0)
    size = min(modality.input_size, 4 * modality.kernel)
    images = torch.randn(
        2, len(modality.bands), size, size, generator=torch.Generator().manual_seed(0)
    )
    place = torch.tensor([[10.0, 50.0, 18700, modality.token_area]] * 2, dtype=torch.float64)
    with torch.no_grad():
        out = weights.model(
            images,
            place,
            wavelengths=modality.wavelengths,
            bandwidths=modality.bandwidths,
            language_embedding=weights.language.get(modality.language_key),
            kernel_size=modality.kernel,
        )
    assert out.isfinite().all()
    assert (out[0] - out[1]).abs().max() > 1e-3
    assert out.std() > 0.1
