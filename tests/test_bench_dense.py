"""Dense tasks of Copernicus-Bench: levels of the encoder, heads, augmentations, training."""

import functools
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import kornia
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from copcube.encoder import CopernicusFM, FrozenEncoder, Weights
from copcube.errors import ImageError, OptionError, SourceError
from copcube.modalities import MODALITIES
from copcube.probes.bench import bench, levels
from copcube.probes.bench.augment import Augmentation, rotated
from copcube.probes.bench.catalogue import Task, find
from copcube.probes.bench.dense import Training, score
from copcube.probes.bench.levels import Cached, Streamed, numbers
from copcube.probes.bench.resizing import resized, resized_labels
from copcube.probes.bench.sample import write_bench_sample
from copcube.probes.bench.samples import SPLITS, Sample, Split
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


def test_images_of_different_shapes_are_not_normalised_together() -> None:
    encoder = FrozenEncoder(tiny(), device="cpu", dtype="float32")
    with pytest.raises(OptionError, match=r"expected one shape, \(2, rows, columns\)"):
        encoder.normalise("s1_grd", [np.zeros((2, 32, 32)), np.zeros((2, 32, 48))])


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
    assert (norm.weight == 1).all()
    assert (norm.bias == 0).all()
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
    assert main.shape == (2, 4, 20, 28)
    assert auxiliary.shape == (2, 4, 5, 7)
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
    assert angles.min() < -88
    assert angles.max() > 88
    assert angles.abs().max() <= 90
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
    assert torch.equal(found[0], x[0])
    assert torch.equal(found[7], x[7])
    assert torch.equal(found[2], x[2].flip(-1))
    assert torch.equal(found[3], x[3].flip(-2))
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


# --- sizes


def test_sizes_are_those_of_kornia() -> None:
    x = torch.randn(2, 3, 16, 16)
    resize = kornia.augmentation.Resize((13, 13), align_corners=True)
    torch.testing.assert_close(resized(x, 13), resize(x))
    labels = torch.randint(0, 5, (2, 16, 16), dtype=torch.uint8)
    nearest = kornia.augmentation.Resize((13, 13), resample="nearest")
    found = resized_labels(labels, 13)
    assert found.dtype == torch.uint8
    assert torch.equal(found.float(), nearest(labels[:, None].float())[:, 0])
    assert resized_labels(labels, 16) is labels


# --- training


class Synthetic:
    """Images of squares that are bright or dark, of which a task's target is made."""

    def __init__(self, task: Task, n: int = 16) -> None:
        self.task, self.n = task, n
        self.reads = 0

    def names(self, split: Split) -> list[str]:
        return [f"{split}{n}" for n in range(self.n if split == "train" else 6)]

    def read(self, split: Split, index: int) -> Sample:
        self.reads += 1
        rng = np.random.default_rng([SPLITS.index(split), index])
        task, kernel = self.task, self.task.sensor.kernel
        side = task.size // kernel // 2
        bands = len(task.sensor.bands)
        dates = 2 if task.kind == "change" else 1
        squares = rng.integers(0, 2, (dates, side, side))
        pixels = squares.repeat(2 * kernel, 1).repeat(2 * kernel, 2)
        noise = 0.1 * rng.normal(size=(dates, bands, task.size, task.size))
        values = pixels[:, None] * 2.0 - 1 + noise
        images = tuple(
            (v * np.array(sensor.std)[:, None, None] + np.array(sensor.mean)[:, None, None]).astype(
                np.float32
            )
            for v, sensor in zip(values, task.sensors, strict=False)
        )
        target: Any = pixels[-1].astype(np.uint8)
        if task.kind == "change":
            target = (pixels[1] - pixels[0] + 1).astype(np.uint8)
        if task.kind == "regression":
            target = (task.target[0] + task.target[1] * values[0, 0]).astype(np.float32)
            target[:3, :3] = np.nan
        elif task.ignore is not None:
            target[:3, :3] = task.ignore
        return Sample(f"{split}{index}", images, np.full((dates, 4), np.nan), target)


TASKS = {
    "segmentation": replace(find("dfc2020-s1"), size=64, batch=4, classes=("dark", "bright")),
    "change": replace(find("flood-s1"), size=64, batch=4),
    "regression": replace(find("aq-no2-s5p"), size=32, batch=4),
}


@pytest.fixture(scope="module")
def encoder() -> FrozenEncoder:
    return FrozenEncoder(tiny(), device="cpu", dtype="float32")


LONG = {"linear": 12, "upernet": 8}
"""Epochs that are enough for the synthetic tasks."""


def trained(training: Training, folder: Path, channels: int = 16) -> dict[str, Any]:
    training.start(16, torch.device("cpu"), channels=channels)
    return training.run(folder / "checkpoint.pt", {})


@pytest.mark.slow
@pytest.mark.parametrize("kind", TASKS)
@pytest.mark.parametrize("head", ["linear", "upernet"])
def test_heads_learn(head: Any, kind: str, encoder: FrozenEncoder, tmp_path: Path) -> None:
    dataset = Synthetic(TASKS[kind])
    source = Streamed(dataset, encoder)
    given = Cached(source, tmp_path / "levels") if head == "linear" else source
    sizes = {split: len(dataset.names(split)) for split in SPLITS}
    training = Training(dataset.task, given, sizes, head, LONG[head], 0)
    training.rate = 0.02
    training.start(16, torch.device("cpu"), channels=16)
    before = training.scored("test")
    found = trained(training, tmp_path)
    assert found["epoch"] > 1
    if kind == "regression":
        assert found["bench"] < 0.6 * dataset.task.target[1], "a constant has an error of 1"
        assert found["bench"] < 0.7 * before["bench"]
    else:
        assert found["dataset"] > 75
        assert found["dataset"] > before["dataset"] + 15


class Killed(Exception):
    """What a process that ends in the middle does not raise."""


@pytest.mark.slow
@pytest.mark.parametrize("head", ["linear", "upernet"])
def test_a_run_that_was_killed_goes_on_as_if_it_had_not_been(
    head: Any, encoder: FrozenEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = Synthetic(TASKS["segmentation"], 8)
    source = Streamed(dataset, encoder)
    given = Cached(source, tmp_path / "levels") if head == "linear" else source
    sizes = {split: len(dataset.names(split)) for split in SPLITS}

    def training() -> Training:
        return Training(dataset.task, given, sizes, head, 3, 7)

    whole = training()
    expected = trained(whole, tmp_path)
    killed, folder = training(), tmp_path / "killed"
    folder.mkdir()
    epoch, seen = killed._epoch, []

    def dying(number: int) -> None:
        seen.append(number)
        epoch(number)
        if number == 1:
            raise Killed

    monkeypatch.setattr(killed, "_epoch", dying)
    with pytest.raises(Killed):
        trained(killed, folder)
    again = training()
    assert trained(again, folder) == expected
    assert again.done == 3
    for name, value in whole.head.state_dict().items():
        assert torch.equal(value, again.head.state_dict()[name]), name
    # What is finished is tested again, and nothing is trained.
    dataset.reads = 0
    assert trained(training(), folder) == expected
    assert dataset.reads == (0 if head == "linear" else 6)


def test_scores_of_a_whole_task(encoder: FrozenEncoder, tmp_path: Path) -> None:
    dataset = Synthetic(TASKS["segmentation"], 8)
    found = score(dataset, encoder, tmp_path, levels=tmp_path / "levels", epochs=2)
    assert found["levels"] == [1, 2, 3, 5]
    assert found["parameters"] == 4 * 16 * 2 + 2
    assert found["skipped"] == {}
    assert dataset.reads == 8 + 6 + 6, "every image is read once"
    kept = sorted((tmp_path / "levels").glob("*levels.npy"))
    assert [path.name[:5] for path in kept] == ["test-", "train", "val-0"]
    levels = np.load(kept[1])
    assert levels.dtype == np.float16
    assert levels.shape == (64, 4, 16, 4, 4)
    with pytest.raises(OptionError, match=r"other options: epochs 2 there, 3 here"):
        score(dataset, encoder, tmp_path, levels=tmp_path / "levels", epochs=3)
    dataset.reads = 0
    score(dataset, encoder, tmp_path / "again", levels=tmp_path / "levels", seed=7, epochs=1)
    assert dataset.reads == 0
    last = score(dataset, encoder, tmp_path / "last", which="last", epochs=2)
    assert last["levels"] == [5]
    assert last["parameters"] == 16 * 2 + 2
    assert dataset.reads == 2 * (8 + 6) + 6, "streamed levels are computed for each epoch"


class Broken(Synthetic):
    """Of which an image cannot be read."""

    broken: tuple[int, ...] = (5,)

    def read(self, split: Split, index: int) -> Sample:
        if split == "train" and index in self.broken:
            raise ImageError(f"train{index}.tif: not a readable GeoTIFF")
        return super().read(split, index)


@pytest.mark.slow
def test_a_head_is_trained_anew_once_what_was_left_out_can_be_read(
    encoder: FrozenEncoder, tmp_path: Path
) -> None:
    def head(broken: tuple[int, ...], cache: str) -> Tensor:
        dataset = Broken(TASKS["segmentation"])
        dataset.broken = broken
        options: Any = {"probe": "fast", "epochs": 1, "seeds": 1, "cache": tmp_path / cache}
        (result,) = bench(dataset, encoder=encoder, **options).results
        assert len(result.skipped) == len(broken)
        (checkpoint,) = (tmp_path / cache).glob("*/*/checkpoint.pt")
        states = torch.load(checkpoint, weights_only=True)["best_state"].values()
        return torch.cat([state.flatten() for state in states])

    without = head((5,), "cache")
    found = head((), "cache")
    assert torch.equal(found, head((), "other"))
    assert not torch.equal(found, without)


def test_samples_that_cannot_be_read_are_left_out(encoder: FrozenEncoder, tmp_path: Path) -> None:
    dataset = Broken(TASKS["segmentation"], 16)
    for n, kept in enumerate((tmp_path / "levels", None)):
        found = score(dataset, encoder, tmp_path / str(n), levels=kept, epochs=1)
        assert found["skipped"] == {"train/train5": "train5.tif: not a readable GeoTIFF"}
    reason = json.loads((tmp_path / "levels/train-000000-skipped.json").read_text())
    assert reason == {"5": "train5.tif: not a readable GeoTIFF"}
    source = Streamed(dataset, encoder)
    batches = [[4, 5, 6], [5]]
    (streamed,) = source.batches("train", batches)
    (kept,) = Cached(source, tmp_path / "levels").batches("train", batches)
    assert streamed.indices == kept.indices == [4, 6]
    torch.testing.assert_close(streamed.levels[3], kept.levels[3], rtol=1e-3, atol=2e-3)
    # Once the file is mended, its part is computed again.
    dataset.broken = ()
    (kept, _) = Cached(Streamed(dataset, encoder), tmp_path / "levels").batches("train", batches)
    assert kept.indices == [4, 5, 6]
    assert not (tmp_path / "levels/train-000000-skipped.json").exists()
    dataset.broken = (2, 9)
    with pytest.raises(SourceError, match=r"train: 2 or more of 16 samples cannot.*train[29]"):
        score(dataset, encoder, tmp_path / "many", epochs=1)


def test_levels_that_are_kept_are_those_that_are_streamed(
    encoder: FrozenEncoder, tmp_path: Path
) -> None:
    for kind, task in TASKS.items():
        source = Streamed(Synthetic(task, 8), encoder)
        batches = [[3, 1, 6], [0, 7]]
        kept = list(Cached(source, tmp_path / kind).batches("train", batches))
        streamed = list(source.batches("train", batches))
        for ours, theirs in zip(kept, streamed, strict=True):
            torch.testing.assert_close(ours.target, theirs.target, equal_nan=True)
            for a, b in zip(ours.levels, theirs.levels, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-3, atol=2e-3)


def test_levels_that_were_computed_are_not_computed_again(
    encoder: FrozenEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Dying(Synthetic):
        dead = True

        def read(self, split: Split, index: int) -> Sample:
            if self.dead and (split, index) == ("train", 9):
                raise Killed
            return super().read(split, index)

    monkeypatch.setattr(levels, "_PART", 4)
    monkeypatch.setattr(levels, "THREADS", 1)
    dataset = Dying(TASKS["segmentation"], 16)
    source = Streamed(dataset, encoder)
    with pytest.raises(Killed):
        Cached(source, tmp_path)
    there = {path.name for path in tmp_path.glob("*levels.npy")}
    assert there == {"train-000000-levels.npy", "train-000004-levels.npy"}
    dataset.dead, dataset.reads = False, 0
    kept = Cached(source, tmp_path)
    assert dataset.reads == 8 + 6 + 6
    (batch,) = kept.batches("train", [[15, 2, 9]])
    (expected,) = source.batches("train", [[15, 2, 9]])
    torch.testing.assert_close(batch.target, expected.target)
    torch.testing.assert_close(batch.levels[0], expected.levels[0], rtol=1e-3, atol=2e-3)


def test_a_class_that_the_task_has_not_is_named(encoder: FrozenEncoder, tmp_path: Path) -> None:
    class Wrong(Synthetic):
        def read(self, split: Split, index: int) -> Sample:
            sample = super().read(split, index)
            if index == 2:
                sample.target[5, 7] = 9
            return sample

    with pytest.raises(SourceError, match=r"train2: class 9; expected 0 to 1, or 255 where"):
        score(Wrong(TASKS["segmentation"]), encoder, tmp_path, epochs=1)


def test_change_is_later_minus_earlier_with_dates_of_their_own(encoder: FrozenEncoder) -> None:
    class Dated(Synthetic):
        def read(self, split: Split, index: int) -> Sample:
            sample = super().read(split, index)
            places = np.array([[10.0, 45, 18000, 0.0256], [10.0, 45, 18300, 0.0256]])
            return replace(sample, metadata=places)

    dataset = Dated(TASKS["change"])
    (batch,) = Streamed(dataset, encoder).batches("test", [[0, 1]])
    samples = [dataset.read("test", n) for n in (0, 1)]
    # Each date with the deviations of the published configuration, those of the second misprinted.
    deviations = (0.0430, 0.0174), (0.0981, 0.0253)
    found = [
        encoder(
            replace(dataset.task.sensor, std=deviations[n]),
            [sample.images[n] for sample in samples],
            np.stack([sample.metadata[n] for sample in samples]),
            levels=(1, 2, 3, 5),
        )
        for n in (0, 1)
    ]
    for n, level in enumerate(batch.levels):
        expected = (found[1] - found[0])[:, n].reshape(2, 4, 4, 16).transpose(0, 3, 1, 2)
        np.testing.assert_allclose(level, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_augmented_samples_keep_image_and_target_together(encoder: FrozenEncoder) -> None:
    """Tokens see no augmentation, so the targets say whether it happened, and what it left."""
    regression = Streamed(Synthetic(TASKS["regression"]), encoder)
    generator = torch.Generator().manual_seed(0)
    batches = [[n % 16 for n in range(a, a + 4)] for a in range(0, 40, 4)]
    changed = list(regression.batches("train", batches, generator))
    plain = list(regression.batches("train", batches))
    differ = [
        not torch.equal(a.nan_to_num(9), b.nan_to_num(9))
        for x, y in zip(changed, plain, strict=True)
        for a, b in zip(x.target, y.target, strict=True)
    ]
    assert 0.7 < np.mean(differ) < 0.98, "7 of 8 are rotated or flipped"
    corners = torch.cat([x.target for x in changed])[:, -1, -1]
    assert (corners == 0).any(), "opened corners have the target's mean, 0"
    flood = Streamed(Synthetic(TASKS["change"]), encoder)
    masks = [x.target for x in flood.batches("train", batches, generator)]
    assert {*torch.cat(masks).unique().tolist()} == {0, 1, 2, 3}
    assert masks[0].dtype == torch.int64


def test_pixels_that_do_not_count_do_not_train(encoder: FrozenEncoder) -> None:
    for kind, code in (("segmentation", 255), ("regression", math.nan)):
        task = TASKS[kind]
        source = Streamed(Synthetic(task), encoder)
        training = Training(task, source, {"train": 4, "val": 1, "test": 1}, "linear", 1, 0)
        training.start(16, torch.device("cpu"))
        (batch,) = source.batches("train", [[0, 1, 2, 3]])
        training.head.eval()
        target = batch.target.clone()
        with torch.no_grad():
            first = training.loss(batch._replace(target=target))
            target[:, 20:] = code
            rest = training.loss(batch._replace(target=target))
            target[:] = code
            none = training.loss(batch._replace(target=target))
        assert first != rest
        assert none == 0
        output = training.head(batch.levels)[0]
        large = torch.nn.functional.interpolate(output, target.shape[1:], mode="bilinear")
        if kind == "segmentation":
            expected = nn.CrossEntropyLoss(ignore_index=255)(large, batch.target)
        else:
            expected = (large[:, 0] - batch.target).abs().nanmean()
        torch.testing.assert_close(first, expected.detach())


def test_loss_of_the_published_head_is_that_of_both_heads(encoder: FrozenEncoder) -> None:
    task = TASKS["segmentation"]
    source = Streamed(Synthetic(task), encoder)
    training = Training(task, source, {"train": 4, "val": 1, "test": 1}, "upernet", 1, 0)
    training.start(16, torch.device("cpu"), channels=16)
    training.head.eval()
    (batch,) = source.batches("train", [[0, 1, 2, 3]])
    with torch.no_grad():
        main, auxiliary = training.head(batch.levels)
        parts = [
            nn.functional.cross_entropy(
                nn.functional.interpolate(x, (64, 64), mode="bilinear"),
                batch.target,
                ignore_index=255,
            )
            for x in (main, auxiliary)
        ]
        torch.testing.assert_close(training.loss(batch), parts[0] + 0.4 * parts[1])
    assert training.optimiser.param_groups[0]["weight_decay"] == 0.01


def test_steps_and_rates_are_those_of_the_protocol() -> None:
    for name, steps in (("cloud-s2", 106), ("flood-s1", 187), ("aq-o3-s5p", 92)):
        task = find(name)
        sizes = dict(zip(SPLITS, task.counts, strict=True))
        training = Training(task, None, sizes, "upernet", 50, 42)  # type: ignore[arg-type]
        assert (training.steps, training.rate) == (steps, task.rate)
    assert (numbers(12), numbers(24)) == ((3, 5, 7, 11), (7, 11, 15, 23))
    assert numbers(12, "last") == (11,)


# --- bad input


def test_what_cannot_be_trained_is_refused(encoder: FrozenEncoder, tmp_path: Path) -> None:
    dataset = Synthetic(TASKS["segmentation"], 3)
    with pytest.raises(SourceError, match=r"3 samples of train; expected 4 or more"):
        score(dataset, encoder, tmp_path)
    dataset = Synthetic(TASKS["segmentation"])
    for options, match in (
        ({"head": "mlp"}, "head='mlp'; expected linear or upernet"),
        ({"which": "first"}, "which='first'; expected four or last"),
        ({"head": "upernet", "which": "last"}, "needs four levels"),
        ({"epochs": 0}, "epochs is 0"),
        ({"seed": -1}, "seed is -1"),
    ):
        with pytest.raises(OptionError, match=match):
            score(dataset, encoder, tmp_path, **options)  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="EuroSAT-S2 is a task of classification"):
        score(Synthetic(find("eurosat-s2")), encoder, tmp_path)
    with pytest.raises(OptionError, match=r"gives no levels.*FrozenEncoder"):
        score(dataset, lambda *args: None, tmp_path)  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="has 4 blocks; expected 5 or more"):
        numbers(4)


def test_a_broken_checkpoint_is_named(encoder: FrozenEncoder, tmp_path: Path) -> None:
    dataset = Synthetic(TASKS["segmentation"], 4)
    checkpoint = tmp_path / "checkpoint.pt"
    for content in (b"", b"torn", b"PK\x03\x04"):
        checkpoint.write_bytes(content)
        with pytest.raises(SourceError, match=r"checkpoint\.pt: not the state of a head"):
            score(dataset, encoder, tmp_path, epochs=1)
    assert checkpoint.read_bytes() == b"PK\x03\x04"


# --- whole runs


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bench")
    write_bench_sample(folder / "root", tasks=["aq-o3-s5p", "flood-s1"], images=16)
    return folder / "root"


@pytest.mark.slow
def test_the_fast_tier_of_a_made_up_benchmark(
    root: Path, encoder: FrozenEncoder, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"probe": "fast", "encoder": encoder, "cache": tmp_path}
    found = bench(["aq-o3-s5p", "flood-s1"], root, epochs=2, seeds=2, **options)
    assert found.failures == {}
    assert [(r.task, r.probe) for r in found.results] == [
        *(("aq-o3-s5p", "ridge-of-means"), ("aq-o3-s5p", "linear"), ("flood-s1", "linear"))
    ]
    for result in found.results[1:]:
        assert len(result.scores) == 2
        assert not result.comparable
        assert np.isfinite(result.bench)
    levels = sorted(tmp_path.glob("*/levels-four"))
    assert len(levels) == 2, "both seeds share the levels"
    last = bench("flood-s1", root, epochs=1, seeds=1, levels="last", keep=False, **options)
    assert last.failures == {}
    assert last.results[0].probe == "linear-last"
    assert last.results[0].details["parameters"] == 3 * 16 + 3
    assert sorted(tmp_path.glob("*/levels-*")) == levels
    again = bench("flood-s1", root, epochs=2, seeds=2, **options)
    assert again.results[0].scores == found.results[2].scores
    with pytest.raises(OptionError, match="levels='all'; expected four or last"):
        bench("flood-s1", root, levels="all", **options)  # type: ignore[arg-type]


@pytest.mark.slow
def test_the_published_protocol_of_a_made_up_benchmark(
    root: Path,
    encoder: FrozenEncoder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    narrow = functools.partial(UPerNet, channels=8)
    monkeypatch.setattr("copcube.probes.bench.dense.UPerNet", narrow)
    found = bench("aq-o3-s5p", root, encoder=encoder, epochs=1, seeds=1, cache=tmp_path)
    assert found.failures == {}
    (result,) = found.results
    assert result.probe == "upernet"
    assert "AQ-O3-S5P: the published head is trained on a CPU" in caplog.text
    assert np.isfinite(result.bench)
    assert not result.comparable, "the published runs have 50 epochs"
    assert replace(result, provenance={**result.provenance, "epochs": 50}).comparable
