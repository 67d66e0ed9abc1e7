"""Dense tasks of Copernicus-Bench: levels of the encoder, heads, augmentations, training."""

import math

import kornia
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from copcube.encoder import CopernicusFM, FrozenEncoder, Weights
from copcube.errors import OptionError
from copcube.modalities import MODALITIES
from copcube.probes.bench.augment import Augmentation, rotated
from copcube.probes.bench.upernet import LinearHead, UPerNet


def tiny(depth: int = 6) -> Weights:
    torch.manual_seed(0)
    model = CopernicusFM("mean", embed_dim=16, depth=depth, heads=2).eval()
    keys = [m.language_key for m in MODALITIES.values() if m.language_key]
    return Weights(
        model, {key: torch.randn(2048) for key in keys}, {"encoder": "tiny", "encoder_trained": 1}
    )


# --- levels of the encoder


@pytest.mark.parametrize(("rows", "columns"), [(32, 32), (64, 96), (224, 224)])
def test_levels_are_what_leaves_the_blocks(rows: int, columns: int) -> None:
    weights = tiny()
    left: dict[int, Tensor] = {}
    for number, block in enumerate(weights.model.blocks):
        block.register_forward_hook(lambda m, a, out, number=number: left.update({number: out}))
    encoder = FrozenEncoder(weights, device="cpu", dtype="float32")
    images = np.random.default_rng(0).normal(-12, 4, (3, 2, rows, columns)).astype(np.float32)
    metadata = np.full((3, 4), np.nan)
    levels = encoder("s1_grd", images, metadata, levels=(1, 2, 5))
    assert levels.shape == (3, 3, rows // 16 * (columns // 16), 16)
    assert levels.dtype == np.float32
    for n, number in enumerate((1, 2, 5)):
        np.testing.assert_array_equal(levels[:, n], left[number][:, 1:])
    normalised = encoder.normalise("s1_grd", images)
    again = encoder.embed_normalised(
        "s1_grd", normalised, torch.from_numpy(metadata), levels=(1, 2, 5)
    )
    np.testing.assert_array_equal(levels, again)


@pytest.mark.parametrize("levels", [(5, 3), (3, 3), (6,), (-1,)])
def test_levels_that_are_not_there(levels: tuple[int, ...]) -> None:
    encoder = FrozenEncoder(tiny(), device="cpu", dtype="float32")
    images = np.zeros((1, 2, 32, 32), np.float32)
    with pytest.raises(OptionError, match="ascending numbers of blocks, 0 to 5"):
        encoder("s1_grd", images, np.full((1, 4), np.nan), levels=levels)


# --- heads


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


def test_parameters_of_the_published_head() -> None:
    with torch.device("meta"):
        four, five = UPerNet(768, 4), UPerNet(768, 5)
    assert parameters(four) == 41_110_792
    assert parameters(four.neck) == 7_081_728
    assert parameters(four.auxiliary) == 1_771_012
    assert parameters(five.main) - parameters(four.main) == 513
    assert parameters(five.auxiliary) - parameters(four.auxiliary) == 257


def test_initial_values_of_the_published_head() -> None:
    torch.manual_seed(0)
    head = UPerNet(64, 3, 64)
    fused, norm = head.fused[0].weight, head.fused[1]
    assert fused.std().item() == pytest.approx(math.sqrt(2 / (64 * 9)), rel=0.02)
    assert head.laterals[0][0].weight.std().item() == pytest.approx(math.sqrt(2 / 64), rel=0.05)
    assert (norm.weight == 1).all() and (norm.bias == 0).all()
    bound = 1 / math.sqrt(64)
    for classifier, width in ((head.main[1], 64), (head.auxiliary[2], 256)):
        assert classifier.weight.abs().max() <= 1 / math.sqrt(width)
        assert classifier.weight.std().item() == pytest.approx(1 / math.sqrt(3 * width), rel=0.1)
    assert head.main[1].bias.abs().max() <= bound


def by_formula(head: UPerNet) -> list[Tensor]:
    """Give a head weights that a formula says, and maps to predict from."""
    with torch.no_grad():
        for k, p in enumerate(head.parameters()):
            line = torch.arange(p.numel(), dtype=torch.float64) * 0.7 + k
            p.copy_(0.5 * line.sin().reshape(p.shape))
    line = torch.arange(2 * 8 * 5 * 7, dtype=torch.float64) * 0.3
    return [(line + k).cos().reshape(2, 8, 5, 7).float() for k in range(4)]


def test_the_published_head_computes_what_mmsegmentation_does() -> None:
    """Figures of mmsegmentation 1.2.2: Feature2Pyramid, UPerHead and FCNHead, in training mode."""
    head = UPerNet(8, 4, 16)
    levels = by_formula(head)
    for module in head.modules():
        if isinstance(module, nn.Dropout2d):
            module.p = 0.0
    with torch.no_grad():
        main, auxiliary = head(levels)
    assert main.shape == (2, 4, 20, 28) and auxiliary.shape == (2, 4, 5, 7)
    for found, figures in (
        (main[0, :, 3, 5], (1.048064947, 1.550327182, 0.137168676, -1.122528315)),
        (main[1, :, 19, 27], (1.052304745, 1.725012660, 0.203852862, -1.270139337)),
        (auxiliary[0, :, 2, 3], (8.365536690, -6.522199631, 5.309547901, -2.416392803)),
        (torch.stack([main.mean(), main.std()]), (0.401625609, 1.021996863)),
        (torch.stack([auxiliary.mean(), auxiliary.std()]), (1.184447857, 6.145369661)),
    ):
        torch.testing.assert_close(found, torch.tensor(figures), rtol=1e-4, atol=1e-4)


def test_levels_enter_the_published_head_from_fine_to_coarse() -> None:
    head = UPerNet(8, 2, 4).eval()
    maps = [torch.randn(1, 8, 6, 6) for _ in range(4)]
    sizes = [tuple(x.shape[2:]) for x in head.neck(maps)]
    assert sizes == [(24, 24), (12, 12), (6, 6), (3, 3)]
    with torch.no_grad():
        _, before = head(maps)
        maps[2] += 1
        _, after = head(maps)
    assert not torch.equal(before, after), "the auxiliary head is on the third level"


def test_the_linear_head_is_a_regression_of_each_token() -> None:
    head = LinearHead(8, 3, 2).train()
    levels = [100 + 50 * torch.randn(4, 8, 5, 5) for _ in range(2)]
    with torch.no_grad():
        found, _ = head(levels)
    x = torch.cat(levels, 1).permute(0, 2, 3, 1).reshape(-1, 16).double()
    x = (x - x.mean(0)) / (x.var(0, unbiased=False) + 1e-5).sqrt()
    weight = head.linear.weight[..., 0, 0].double()
    expected = x @ weight.T + head.linear.bias.double()
    expected = expected.reshape(4, 5, 5, 3).permute(0, 3, 1, 2).float()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert parameters(LinearHead(768, 4, 4)) == 3072 * 4 + 4


# --- augmentations


@pytest.mark.parametrize("sampling", ["bilinear", "nearest"])
@pytest.mark.parametrize("shape", [(4, 3, 17, 17), (4, 2, 24, 24), (4, 1, 13, 20)])
def test_rotations_are_those_of_kornia(shape: tuple[int, ...], sampling: str) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator)
    angles = torch.tensor([-89.0, -30.0, 12.5, 77.0])
    expected = kornia.geometry.transform.rotate(x, angles, mode=sampling, align_corners=True)
    found = rotated(x, angles, sampling)
    if sampling == "nearest":  # a pixel may lie between two to rounding
        assert (found == expected).double().mean() > 0.99
    else:
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=2e-4)
    assert (found == 0).any(), "corners that open are 0"


def test_each_sample_is_augmented_on_its_own_and_as_its_target() -> None:
    drawn = Augmentation.draw(4000, torch.Generator().manual_seed(1))
    turned = drawn.angles != 0
    assert turned.double().mean().item() == pytest.approx(0.5, abs=0.03)
    assert drawn.mirrored.double().mean().item() == pytest.approx(0.5, abs=0.03)
    assert drawn.upside_down.double().mean().item() == pytest.approx(0.5, abs=0.03)
    angles = drawn.angles[turned]
    assert angles.min() < -88 and angles.max() > 88 and angles.abs().max() <= 90
    assert angles.std().item() == pytest.approx(180 / math.sqrt(12), rel=0.03)
    both = torch.stack([turned, drawn.mirrored, drawn.upside_down]).double()
    assert torch.corrcoef(both).fill_diagonal_(0).abs().max() < 0.06
    x = torch.randn(8, 2, 15, 15)
    some = Augmentation(
        torch.tensor([0.0, 40, 0, 0, 0, -70, 25, 0]),
        torch.tensor([0, 0, 1, 0, 1, 1, 0, 0], dtype=torch.bool),
        torch.tensor([0, 0, 0, 1, 1, 0, 1, 0], dtype=torch.bool),
    )
    before = x.clone()
    found = some(x)
    assert torch.equal(x, before)
    assert torch.equal(found[0], x[0]) and torch.equal(found[7], x[7])
    assert torch.equal(found[2], x[2].flip(-1)) and torch.equal(found[3], x[3].flip(-2))
    assert torch.equal(found[4], x[4].flip(-1).flip(-2))
    for n, flips in ((1, ()), (5, (-1,)), (6, (-2,))):
        expected = kornia.geometry.transform.rotate(x[n : n + 1], some.angles[n : n + 1])[0]
        torch.testing.assert_close(found[n], expected.flip(flips), rtol=1e-3, atol=2e-4)
    # What both channels hold stays together.
    same = some(x[:, :1].expand(-1, 2, -1, -1))
    assert torch.equal(same[:, 0], same[:, 1])


def test_unknown_pixels_spread_only_where_neighbours_are_mixed() -> None:
    x = torch.ones(1, 1, 21, 21)
    x[0, 0, 10, 14] = math.nan
    turn = torch.tensor([30.0])
    assert rotated(x, turn, "nearest").isnan().sum() <= 2
    spread = rotated(x, turn, "bilinear")
    assert 3 <= spread.isnan().sum() <= 6
    assert spread.nan_to_num(1.0).max() <= 1 + 1e-5
