"""The model against the published code's outputs, and what batching must not do."""

import copy
import functools
import math
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from reference_weights import draw, drawn, published_model
from torch import Tensor, nn

from copcube.encoder.block import Block
from copcube.encoder.copernicus_fm import CopernicusFM, _patches, token_grid
from copcube.encoder.kernels import Kernel, fourier
from copcube.errors import OptionError
from copcube.modalities import MODALITIES

REFERENCE = "copernicusfm_reference.npz"
NAN = math.nan
S2 = MODALITIES["s2_toa"]
MUNICH = (11.5, 48.25, 18628.0, 0.0256)

# case: image shape, metadata, modality (the table in the reference file's README)
CASES: dict[str, tuple[tuple[int, ...], list[tuple[float, ...]], str]] = {
    "s2_toa": ((2, 13, 224, 224), [MUNICH, (-70.0, -33.5, 18700, 0.0256)], "s2_toa"),
    "s1_grd": ((1, 2, 224, 224), [MUNICH], "s1_grd"),
    "s3_olci": ((1, 21, 96, 96), [(120.25, -0.5, 18800, 5.76)], "s3_olci"),
    "s5p_no2": ((1, 1, 28, 28), [(0.0, 51.5, 18900, 16.0)], "s5p_no2"),
    "s5p_no2_56": ((1, 1, 56, 56), [(0.0, 51.5, 18900, 16.0)], "s5p_no2"),
    "dem": ((1, 1, 960, 960), [(86.75, 28.0, NAN, 3.6864)], "dem"),
    "s2_no_metadata": ((1, 13, 224, 224), [(NAN, NAN, NAN, NAN)], "s2_toa"),
}


def bands(key: str) -> dict[str, Any]:
    """Arguments that describe the bands of a modality."""
    modality = MODALITIES[key]
    if modality.language_key:
        words = draw("language/" + modality.language_key, (2048,))
        return {"language_embedding": words, "kernel_size": modality.kernel}
    return {
        "wavelengths": modality.wavelengths,
        "bandwidths": modality.bandwidths,
        "kernel_size": modality.kernel,
    }


def tiny(pooling: Any = "cls") -> CopernicusFM:
    model = CopernicusFM(pooling, embed_dim=64, depth=2, heads=2)
    model.load_state_dict(tiny_state(pooling))
    return model.eval()


@functools.cache
def tiny_state(pooling: Any) -> dict[str, Tensor]:
    with torch.device("meta"):
        model = CopernicusFM(pooling, embed_dim=64, depth=2, heads=2)
    return drawn({name: tensor.shape for name, tensor in model.state_dict().items()})


def images(*shape: int) -> Tensor:
    return draw("tests", shape)


@torch.no_grad()
def s1(model: nn.Module, batch: int = 1, **options: Any) -> Tensor:
    vectors: Tensor = model(
        images(batch, 2, 64, 64), torch.tensor([MUNICH] * batch), **bands("s1_grd"), **options
    )
    return vectors


@torch.no_grad()
def dem(model: nn.Module) -> Tensor:
    vectors: Tensor = model(images(1, 1, 128, 128), torch.tensor([MUNICH]), **bands("dem"))
    return vectors


# --- the published model


@pytest.fixture(scope="module", params=["cls", "mean"])
def published(request: pytest.FixtureRequest) -> CopernicusFM:
    return published_model(request.param)


class Once(nn.Module):
    """Blocks that two models have in common, and that run once where both show them the same."""

    def __init__(self, blocks: nn.ModuleList) -> None:
        super().__init__()
        self.blocks, self.known = blocks, list[tuple[Tensor, Tensor]]()

    def forward(self, x: Tensor) -> Tensor:
        for shown, made in self.known:
            if torch.equal(shown, x):
                return made
        made = functools.reduce(lambda y, block: block(y), self.blocks, x)
        self.known.append((x, made))
        return made


@pytest.fixture(scope="module")
def once() -> Once:
    return Once(published_model("cls").blocks)


@pytest.mark.slow
@pytest.mark.parametrize("pooling", ["cls", "mean"])
@pytest.mark.parametrize("case", CASES)
def test_reproduces_the_published_code(
    pooling: str, case: str, once: Once, shared_data: Path
) -> None:
    """Of both poolings the blocks have the same weights."""
    shape, metadata, key = CASES[case]
    rows = torch.tensor(metadata, dtype=torch.float64)
    model = published_model(pooling)
    model.blocks = nn.ModuleList([once])
    with torch.inference_mode():
        found = model(draw("input/" + case, shape), rows, **bands(key))
    feature = "cls" if pooling == "cls" else "mean_pool"
    expected = np.load(shared_data / REFERENCE)[f"{case}/{feature}"]
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_has_the_published_tensors(published: CopernicusFM) -> None:
    state = published.state_dict()
    assert len(state) == 203
    assert sum(tensor.numel() for tensor in state.values()) == 139_452_544
    assert state["patch_embed_spectral.weight_generator.fc_weight.weight"].shape == (196608, 128)
    assert state["patch_embed_variable.language_proj.weight"].shape == (128, 2048)
    assert state["blocks.11.attn.qkv.weight"].shape == (2304, 768)
    assert ("norm.weight" in state) == (published.pooling == "cls")
    assert ("fc_norm.weight" in state) == (published.pooling == "mean")
    frozen = [key for key, tensor in published.named_parameters() if not tensor.requires_grad]
    assert frozen == ["pos_embed"]


@pytest.mark.slow
def test_bfloat16_points_the_same_way(published: CopernicusFM) -> None:
    shape, metadata, key = CASES["s5p_no2"]
    inputs = draw("input/s5p_no2", shape), torch.tensor(metadata)
    half = published_model(published.pooling)  # around the same tensors
    half.blocks.to(torch.bfloat16)
    with torch.inference_mode():
        exact, rounded = published(*inputs, **bands(key)), half(*inputs, **bands(key))
    assert rounded.dtype == torch.float32
    assert F.cosine_similarity(exact, rounded).item() > 0.999


# --- features


@pytest.mark.slow
def test_tokens_are_what_is_pooled() -> None:
    model = tiny("mean")
    with torch.no_grad():
        nn.init.ones_(model.fc_norm.weight)
        nn.init.zeros_(model.fc_norm.bias)
    hidden: list[Tensor] = []
    model.blocks[-1].register_forward_hook(lambda *call: hidden.append(call[2]))
    tokens, vector = s1(model, tokens=True), s1(model)
    assert tokens.shape == (1, 16, 64)
    torch.testing.assert_close(tokens, F.layer_norm(hidden[0][:, 1:], (64,), eps=1e-6))
    torch.testing.assert_close(vector, F.layer_norm(hidden[1][:, 1:].mean(1), (64,), eps=1e-6))


@settings(deadline=None, max_examples=25)
@given(size=st.integers(1, 20), rows=st.integers(18, 70), columns=st.integers(18, 70))
def test_patches_are_those_of_a_padded_convolution(size: int, rows: int, columns: int) -> None:
    x, kernel = images(2, 3, rows, columns), draw("kernel", (5, 3, size, size))
    patches = _patches(x, size)
    expected = F.conv2d(x.double(), kernel.double(), stride=size, padding=1)
    assert token_grid(rows, columns, size) == tuple(expected.shape[2:])
    found = (patches.double() @ kernel.double().flatten(1).T).transpose(1, 2)
    torch.testing.assert_close(found, expected.flatten(2))


def test_tokens_of_a_rectangle_run_row_by_row() -> None:
    model = tiny()
    x = images(1, 2, 32, 64)
    call = (torch.tensor([MUNICH]),)
    with torch.no_grad():
        for block in model.blocks:  # without attention and MLP, tokens stay where they are
            nn.init.zeros_(block.attn.proj.weight)
            nn.init.zeros_(block.mlp.fc2.weight)
        before = model(x, *call, **bands("s1_grd"), tokens=True)
        x[..., 17:30, 35:45] += 1  # inside the token of row 1, column 2
        after = model(x, *call, **bands("s1_grd"), tokens=True)
    assert before.shape == (1, 8, 64)
    assert (before != after).any(-1).nonzero().tolist() == [[0, 6]]


@pytest.mark.parametrize(("height", "width"), [(14, 14), (7, 7), (12, 5), (20, 31)])
def test_positions_vary_along_their_axis_only(height: int, width: int) -> None:
    model = CopernicusFM(embed_dim=64, depth=1, heads=2).eval()
    with torch.no_grad():
        grid = model.positions(height, width)[0, 1:].reshape(height, width, 64)
    column, row = grid[..., :32], grid[..., 32:]
    torch.testing.assert_close(column, column[:1].expand_as(column), rtol=0, atol=1e-5)
    torch.testing.assert_close(row, row[:, :1].expand_as(row), rtol=0, atol=1e-5)
    if (height, width) == (14, 14):  # closed form: waves of 10000^(-k/16)
        torch.testing.assert_close(column[3, 5, 4], torch.tensor(math.sin(5 * 10000 ** (-4 / 16))))
        torch.testing.assert_close(row[3, 5, 17], torch.tensor(math.cos(3 * 10000 ** (-1 / 16))))


@pytest.mark.slow
@pytest.mark.parametrize("size", [4, 8, 12, 20, 64])
def test_kernels_are_resized_as_flexivit_writes_it(size: int) -> None:
    weight = draw("resize", (3, 2, 16, 16)).double()
    one_hot = torch.eye(256, dtype=torch.float64).reshape(256, 1, 16, 16)
    resize = F.interpolate(one_hot, size=(size, size), mode="bicubic", antialias=True).flatten(1)
    expected = weight.flatten(2) @ torch.linalg.pinv(resize).T
    found = Kernel(weight, torch.zeros(3)).resized(size).weight
    torch.testing.assert_close(found.flatten(2), expected)


def test_an_enlarged_image_gets_the_answer_of_the_image() -> None:
    weight, patch = draw("resize", (3, 2, 16, 16)).double(), draw("patch", (1, 2, 16, 16)).double()
    large = F.interpolate(patch, size=(40, 40), mode="bicubic", antialias=True)
    resized = Kernel(weight, torch.zeros(3)).resized(40).weight
    torch.testing.assert_close((resized * large).sum((1, 2, 3)), (weight * patch).sum((1, 2, 3)))


def test_fourier_code_is_sines_then_cosines_of_decades() -> None:
    code = fourier(torch.tensor([0.0, 191.5], dtype=torch.float64), 1e-4, 1e2, 14)
    assert code[0].tolist() == [0.0] * 7 + [1.0] * 7
    # waves 1e-4 … 1e2 by decades: 191.5 is a whole number of the first four
    np.testing.assert_allclose(code[1, :4], 0, atol=1e-8)
    np.testing.assert_allclose(
        code[1, 4:7], np.sin(2 * np.pi * np.array([0.5, 0.15, 0.915])), atol=1e-8
    )
    np.testing.assert_allclose(
        code[1, 11:], np.cos(2 * np.pi * np.array([0.5, 0.15, 0.915])), atol=1e-8
    )


# --- metadata


UNKNOWN = [
    MUNICH,
    (NAN, 48.25, 18628, 0.0256),
    (11.5, NAN, 18628, 0.0256),
    (11.5, 48.25, NAN, 0.0256),
    (11.5, 48.25, 18628, NAN),
    (NAN, NAN, NAN, NAN),
]


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_a_vector_does_not_depend_on_batch_mates(pooling: str) -> None:
    model, x, rows = tiny(pooling), images(len(UNKNOWN), 2, 64, 64), torch.tensor(UNKNOWN)
    with torch.no_grad():
        together = model(x, rows, **bands("s1_grd"))
        alone = [
            model(x[i : i + 1], rows[i : i + 1], **bands("s1_grd")) for i in range(len(UNKNOWN))
        ]
    torch.testing.assert_close(together, torch.cat(alone), rtol=0, atol=1e-5)
    with torch.no_grad():
        same_image = model(x[:1].expand_as(x), rows, **bands("s1_grd"))
    differ = (torch.cdist(same_image, same_image) > 1e-2).nonzero().tolist()
    n = range(len(UNKNOWN))  # all differ but rows 1 and 2: a place is known whole or not at all
    assert differ == [[i, j] for i in n for j in n if i != j and {i, j} != {1, 2}]


@pytest.mark.parametrize(
    ("token", "row"), [("coord_token", 1), ("scale_token", 4), ("time_token", 3)]
)
def test_an_unknown_field_takes_its_own_token(token: str, row: int) -> None:
    model, x, rows = tiny(), images(len(UNKNOWN), 2, 64, 64), torch.tensor(UNKNOWN)
    with torch.no_grad():
        before = model(x, rows, **bands("s1_grd"))
        getattr(model, token).add_(1)
        after = model(x, rows, **bands("s1_grd"))
    changed = {i for i in range(len(UNKNOWN)) if (before[i] - after[i]).abs().max() > 1e-4}
    assert changed == ({1, 2, 5} if token == "coord_token" else {row, 5})


def test_metadata_count_as_float32() -> None:
    """The published code gets them so; at the shortest waves it makes a difference."""
    model, x = tiny(), images(1, 2, 64, 64)
    exact = torch.tensor([[11.527, 48.251, 18628, 5.76]], dtype=torch.float64)
    with torch.no_grad():
        wide, narrow = (model(x, rows, **bands("s1_grd")) for rows in (exact, exact.float()))
    assert torch.equal(wide, narrow)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ((190.5, 0, 0, 1), r"longitude of image 1 is 190.5; expected -180.*wrap 0 to 360"),
        ((-180.5, 0, 0, 1), r"longitude of image 1 is -180.5"),
        ((-179.99995, 0, 0, 1), r"longitude of image 1 is -179.99995; .*-179.9999 to 180"),
        ((math.inf, 0, 0, 1), r"longitude of image 1 is inf"),
        ((0, 90.25, 0, 1), r"latitude of image 1 is 90.25; expected -90, or -89.9999 to 90"),
        ((0, -91, 0, 1), r"latitude of image 1 is -91"),
        ((0, 0, -math.inf, 1), r"time of image 1 is -inf; expected a number of days"),
        ((0, 0, 0, 0.0009), r"token area of image 1 is 0.0009; expected 0, or 0.001 to 5.1e8 km²"),
        ((0, 0, 0, -1), r"token area of image 1 is -1"),
        ((0, 0, 0, 6e8), r"token area of image 1 is 600000000; .*or NaN if unknown"),
    ],
)
def test_metadata_out_of_range(row: tuple[float, ...], message: str) -> None:
    rows = torch.tensor([(NAN,) * 4, row], dtype=torch.float64)
    with pytest.raises(OptionError, match=message):
        tiny_for_errors(images(2, 2, 64, 64), rows, **bands("s1_grd"))


@pytest.mark.parametrize(
    "row", [(-180, -90, -1, 0), (180, 90, 1e6, 0.001), (-179.999, -89.999, 0, 5.1e8)]
)
def test_metadata_at_the_ends_of_the_range(row: tuple[float, ...]) -> None:
    vectors = tiny_for_errors(images(1, 2, 64, 64), torch.tensor([row]), **bands("s1_grd"))
    assert vectors.isfinite().all()


tiny_for_errors = tiny()


# --- arguments


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"wavelengths": (5e7,)}, "images of 2 bands came with 1 wavelengths and 2 bandwidths"),
        ({"wavelengths": None}, "came with a different combination"),
        ({"language_embedding": torch.zeros(2048)}, "came with a different combination"),
        (
            {"wavelengths": None, "bandwidths": None, "language_embedding": torch.zeros(2048)},
            r"images of 2 bands came with a language embedding of shape \(2048,\)",
        ),
        ({"wavelengths": (5e7, 99)}, "wavelength of band 1 is 99; expected 0, or 100 to 1e9 nm"),
        ({"bandwidths": (0.5, 1e9)}, "bandwidth of band 0 is 0.5; expected 0, or 1 to 1e9 nm"),
        ({"bandwidths": (NAN, 1e9)}, "bandwidth of band 0 is nan"),
        ({"kernel_size": 0}, "kernel_size is 0; expected 1 to 66 for images of 64x80 pixels"),
        ({"kernel_size": 67}, "kernel_size is 67"),
    ],
)
def test_bands_that_do_not_fit(change: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        tiny_for_errors(images(1, 2, 64, 80), torch.tensor([MUNICH]), **(bands("s1_grd") | change))


def test_arrays_that_do_not_fit() -> None:
    rows = torch.tensor([MUNICH])
    with pytest.raises(OptionError, match=r"images have shape \(2, 64, 64\)"):
        tiny_for_errors(images(2, 64, 64), rows, **bands("s1_grd"))
    with pytest.raises(OptionError, match=r"metadata has shape \(1, 4\); expected \(2, 4\)"):
        tiny_for_errors(images(2, 2, 64, 64), rows, **bands("s1_grd"))


def test_models_that_cannot_be() -> None:
    with pytest.raises(OptionError, match="pooling is 'max'"):
        CopernicusFM("max")  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="embed_dim is 66; expected a multiple of 4"):
        CopernicusFM(embed_dim=66, heads=2)


# --- kernels


def edit_load(model: CopernicusFM) -> None:
    model.load_state_dict({key: 1.5 * tensor for key, tensor in model.state_dict().items()})


def edit_optimiser(model: CopernicusFM) -> None:
    """Fine-tuning without ever leaving eval mode."""
    optimiser = torch.optim.AdamW(model.parameters(), lr=0.1, fused=True)
    inputs = images(1, 2, 64, 64), torch.tensor([MUNICH])
    loss = model(*inputs, **bands("s1_grd")).square().sum()
    variable = model(images(1, 1, 128, 128), inputs[1], **bands("dem"))
    (loss + variable.square().sum()).backward()
    weight = model.patch_embed_spectral.weight_generator.fc_weight.weight
    assert weight.grad is not None
    assert weight.grad.abs().sum() > 0
    optimiser.step()


def edit_data(model: CopernicusFM) -> None:
    """New values at the old addresses, which no version counter sees."""
    for parameter in model.parameters():
        parameter.data.mul_(1.5)


@pytest.mark.slow
@pytest.mark.parametrize("edit", [edit_load, edit_optimiser, edit_data])
def test_changed_weights_make_new_kernels(edit: Callable[[CopernicusFM], object]) -> None:
    model = tiny()
    before = s1(model), dem(model)
    edit(model)
    fresh = CopernicusFM(embed_dim=64, depth=2, heads=2).eval()
    fresh.load_state_dict(model.state_dict())
    after = s1(model), dem(model)
    assert not torch.equal(before[0], after[0])
    assert torch.equal(after[0], s1(fresh))
    assert torch.equal(after[1], dem(fresh))


@torch.no_grad()
@pytest.mark.parametrize("key", ["s1_grd", "dem"])
def test_a_kernel_made_before_gives_the_same_vectors(key: str) -> None:
    model, side = tiny(), 3 * MODALITIES[key].kernel
    inputs = images(2, len(MODALITIES[key].bands), side, side), torch.tensor([MUNICH] * 2)
    made = model.kernel(**bands(key)), model.positions(3, 3)
    assert torch.equal(model.encode(*inputs, *made), model(*inputs, **bands(key)))
    tokens = model(*inputs, **bands(key), tokens=True)
    assert torch.equal(model.encode(*inputs, *made, tokens=True), tokens)


def test_every_description_has_its_own_kernel() -> None:
    model, x, rows = tiny(), images(1, 1, 64, 64), torch.tensor([MUNICH])
    calls = [
        {"wavelengths": [490.0], "bandwidths": [65.0]},
        {"wavelengths": [490.0], "bandwidths": [60.0]},
        {"wavelengths": [560.0], "bandwidths": [65.0]},
        {"wavelengths": [490.0], "bandwidths": [65.0], "kernel_size": 8},
        {"language_embedding": draw("a", (2048,))},
        {"language_embedding": draw("b", (2048,))},
    ]
    with torch.no_grad():
        vectors = torch.cat([model(x, rows, **call) for call in calls])
    assert len(vectors.unique(dim=0)) == len(calls)


def test_copies_and_pickles_stand_alone() -> None:
    model = tiny()
    before = s1(model)
    twin, revived = copy.deepcopy(model), pickle.loads(pickle.dumps(model))
    edit_data(model)
    assert torch.equal(s1(twin), before)
    assert torch.equal(s1(revived), before)
    edit_data(twin)
    assert torch.equal(s1(twin), s1(model))


# --- dtypes, compilation, side effects


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_bfloat16(pooling: str, whole: bool) -> None:
    model = tiny(pooling)
    exact = s1(model)
    (model if whole else model.blocks).to(torch.bfloat16)
    rounded = s1(model)
    assert rounded.dtype == torch.float32
    assert not torch.equal(rounded, rounded.bfloat16().float())  # pooled and normed after it
    assert F.cosine_similarity(exact, rounded).item() > 0.995


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_block_is_that_of_timm(dtype: torch.dtype) -> None:
    """Names, first values, vectors and gradients are the same in every bit."""
    from timm.models.vision_transformer import Block as Published

    norm: Any = functools.partial(nn.LayerNorm, eps=1e-6)
    torch.manual_seed(0)
    published = Published(96, 3, qkv_bias=True, norm_layer=norm).to(dtype)
    torch.manual_seed(0)
    block = Block(96, 3, norm).to(dtype)
    for (name, tensor), (other, expected) in zip(
        block.state_dict().items(), published.state_dict().items(), strict=True
    ):
        assert name == other
        assert torch.equal(tensor, expected)
    first = torch.randn(2, 7, 96, dtype=dtype)
    inputs = [first.clone().requires_grad_() for _ in range(2)]
    outputs = [model(x) for model, x in zip((block, published), inputs, strict=True)]
    assert torch.equal(*outputs)
    gradients = [
        torch.autograd.grad(y.square().sum(), x)[0] for y, x in zip(outputs, inputs, strict=True)
    ]
    assert torch.equal(*gradients)


@pytest.mark.slow
def test_compiles() -> None:
    model = tiny()
    del model.blocks[1:]  # they are alike
    expected = s1(model)
    compiled: Any = torch.compile(model, backend="aot_eager")
    torch.testing.assert_close(s1(compiled), expected)
    torch.testing.assert_close(s1(compiled), expected)


@pytest.mark.slow
def test_import_has_no_side_effects() -> None:
    # Some versions of torch (2.7, not 2.14) import sympy to draw numbers for no memory.
    code = (
        "import sys, torch, random; torch.empty(1, device='meta').uniform_();"
        "known = {*sys.modules}; state = torch.get_rng_state(), random.getstate();"
        "from copcube.encoder.weights import untrained_weights;"
        "assert torch.equal(state[0], torch.get_rng_state()) and state[1] == random.getstate();"
        "untrained_weights(0, embed_dim=64, depth=1, heads=1);"
        "assert not {'timm', 'torchvision'} & {*sys.modules};"
        "assert 'sympy' not in {*sys.modules} - known"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)
