"""Copernicus-Bench: metrics, cached vectors, protocols of classification, results, the command."""

import copy
import csv
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.linear_model import Ridge as SklearnRidge
from sklearn.metrics import average_precision_score, f1_score, jaccard_score
from sklearn.neighbors import KNeighborsClassifier

import copcube.encoder
from copcube.cli import main
from copcube.encoder import FrozenEncoder
from copcube.encoder.weights import untrained_weights
from copcube.errors import ImageError, OptionError, SourceError
from copcube.probes.bench import (
    Result,
    Score,
    bench,
    bench_table,
    fast,
    metrics,
    official,
    read_results,
    running,
    vectors,
    write_results,
)
from copcube.probes.bench.catalogue import find
from copcube.probes.bench.metrics import Jaccard, Pooled, RootMeanSquare, fed
from copcube.probes.bench.sample import write_bench_sample
from copcube.probes.bench.samples import Sample
from copcube.probes.bench.vectors import Vectors, embedded

CLASSES = replace(find("eurosat-s1"), size=32, batch=4, classes=("a", "b", "c"), counts=(20, 8, 8))
SEVERAL = replace(find("bigearthnet-s1"), size=32, batch=4, classes=("a", "b", "c"))


class Made:
    """Images of 20 × 20 pixels whose level follows from their class."""

    def __init__(self, task=CLASSES, counts=(20, 8, 8), seed=0):
        self.task, self.broken, self.area = task, {}, task.nominal_area
        self.counts = dict(zip(("train", "val", "test"), counts, strict=True))
        self.seed = seed

    def names(self, split):
        return [f"{split}-{n}" for n in range(self.counts[split])]

    def read(self, split, index):
        name = self.names(split)[index]
        if name in self.broken:
            raise ImageError(f"{name}: {self.broken[name]}")
        rng = np.random.default_rng([self.seed, len(split), index])
        levels = 7 if self.task.kind == "regression" else len(self.task.classes)
        chosen = index % levels
        image = rng.normal(4 * chosen - 14, 2, (2, 20, 20)).astype(np.float32)
        target = np.array(chosen)
        if self.task.kind == "multilabel":
            target = (np.arange(len(self.task.classes)) <= chosen).astype(np.uint8)
        if self.task.kind == "regression":
            target = np.full((5, 5), image.mean(), np.float32)
            target[0] = np.nan
        metadata = np.array([[10.0, 50.0, 18000.0, self.area]])
        return Sample(name, (image,), metadata, target)


class Counting:
    """Vectors of a tiny encoder, and how many images it was given."""

    def __init__(self, most=10**9):
        self.inner, self.images, self.most = tiny(), 0, most

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def batch_size(self, modality, size):
        return 8

    def __call__(self, modality, pixels, metadata):
        if self.images + len(pixels) > self.most:
            raise KeyboardInterrupt
        self.images += len(pixels)
        return self.inner(modality, pixels, metadata)


def tiny():
    weights = untrained_weights(0, embed_dim=32, depth=1, heads=2, pooling="mean")
    return FrozenEncoder(weights, device="cpu", dtype="float32")


@pytest.fixture
def parts(monkeypatch):
    """Files of eight samples."""
    monkeypatch.setattr(vectors, "_PART", 8)


# Metrics


def test_a_score_is_averaged_over_batches_and_found_of_all():
    metric = RootMeanSquare()
    metric.add(np.ones((4, 5, 5)), np.zeros((4, 5, 5)))
    metric.add(np.full((4, 5, 5), 3.0), np.zeros((4, 5, 5)))
    assert metric.bench == 2
    assert metric.dataset == pytest.approx(5**0.5)


def test_batches_weigh_as_many_samples_as_they_have():
    predicted, target = np.array([0, 0, 1, 1, 2]), np.array([0, 1, 1, 1, 0])
    metric = fed(Pooled(metrics.accuracy), predicted, target, 2)
    assert metric.bench == pytest.approx((2 * 50 + 2 * 100 + 0) / 5)
    assert metric.dataset == pytest.approx(60)


@pytest.mark.slow
@given(st.integers(0, 2**32 - 1), st.integers(1, 8))
def test_accuracy_does_not_depend_on_batches_and_the_root_of_squares_only_falls(seed, batch):
    rng = np.random.default_rng(seed)
    guess, truth = rng.integers(0, 3, (2, 11))
    metric = fed(Pooled(metrics.accuracy), guess, truth, batch)
    assert metric.bench == pytest.approx(metric.dataset)
    numbers = rng.normal(size=(2, 11, 4))
    squares = fed(RootMeanSquare(std=2.5), *numbers, batch)
    assert squares.bench <= squares.dataset * (1 + 1e-12)
    assert squares.dataset == pytest.approx(2.5 * np.sqrt(((numbers[0] - numbers[1]) ** 2).mean()))


def test_unknown_targets_and_empty_batches_do_not_count():
    metric = RootMeanSquare()
    metric.add(np.array([[1.0, 7.0]]), np.array([[0.0, np.nan]]))
    metric.add(np.array([[1.0, 7.0]]), np.array([[np.nan, np.nan]]))
    assert metric.bench == metric.dataset == 1
    assert np.isnan(RootMeanSquare().bench)
    assert np.isnan(Jaccard(3).dataset)
    assert np.isnan(Pooled(metrics.accuracy).dataset)


@pytest.mark.slow
@given(st.integers(0, 2**32 - 1))
def test_precision_and_f1_are_those_of_scikit_learn(seed):
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=(9, 4)).round(1)  # some are equal
    truth = rng.random((9, 4)) < 0.4
    truth[0, 0] = True
    expected = 100 * average_precision_score(truth, scores, average="micro")
    assert metrics.average_precision(scores, truth) == pytest.approx(expected)
    expected = 100 * f1_score(truth, scores > 0, average="micro", zero_division=0)
    assert metrics.f1(scores, truth) == pytest.approx(expected)


@pytest.mark.slow
@given(st.integers(0, 2**32 - 1))
def test_intersection_over_union_leaves_out_absent_classes_and_ignored_pixels(seed):
    rng = np.random.default_rng(seed)
    guess, truth = rng.integers(0, 4, (2, 3, 6, 6))
    truth[rng.random(truth.shape) < 0.3] = 255
    metric = Jaccard(6, ignore=255)
    metric.add(guess, truth)
    there = truth != 255
    labels = np.union1d(guess[there], truth[there])
    expected = jaccard_score(truth[there], guess[there], labels=labels, average="macro")
    assert metric.bench == pytest.approx(100 * expected)


def test_a_class_that_does_not_exist_is_refused():
    with pytest.raises(OptionError, match="target has class 0 or 3; expected 0 to 2"):
        Jaccard(3).add(np.zeros((1, 2), int), np.array([[0, 3]]))
    Jaccard(3, ignore=3).add(np.zeros((1, 2), int), np.array([[0, 3]]))


def test_no_class_at_all_has_no_precision():
    assert np.isnan(metrics.average_precision(np.ones((2, 3)), np.zeros((2, 3))))
    assert metrics.f1(-np.ones((2, 3)), np.zeros((2, 3))) == 0


def test_an_interval_holds_the_score():
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 2, 2000)
    guess = np.where(rng.random(2000) < 0.8, truth, 1 - truth)
    low, high = metrics.interval(metrics.accuracy, guess, truth)
    assert low < metrics.accuracy(guess, truth) < high
    # The binomial distribution's: 1.96 · √(0.8 · 0.2 / 2000) on either side.
    assert high - low == pytest.approx(2 * 1.96 * 100 * (0.16 / 2000) ** 0.5, rel=0.2)
    # So that a table has no column of it, whether it was computed now or read.
    assert metrics.interval(metrics.accuracy, guess, truth, 0) == (None, None)


# The official protocol


def test_the_schedule_is_that_of_the_official_code():
    found = [official.one_cycle(step, 4000, 1.0) for step in (0, 1999, 3999)]
    rates, momenta = zip(*found, strict=True)
    assert rates == pytest.approx([0.999999845788, 0.500002, 4e-6], rel=1e-9)
    assert momenta == pytest.approx([0.85000002, 0.9, 0.95], abs=1e-8)


def test_the_schedule_is_torchs_one_cycle_without_a_warm_up():
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimiser = torch.optim.SGD([parameter], lr=1, momentum=0.9)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, max_lr=0.1, total_steps=37, pct_start=0.0
    )
    for step in range(37):
        group = optimiser.param_groups[0]
        expected = group["lr"], group["momentum"]
        assert official.one_cycle(step, 37, 0.1) == pytest.approx(expected, rel=1e-12)
        optimiser.step()
        if step < 36:
            schedule.step()


def drawn(task, samples=50, variants=4, dim=16, seed=0):
    rng = np.random.default_rng(seed)
    target = rng.integers(0, len(task.classes), samples)
    x = rng.standard_normal((variants, samples, dim), np.float32)
    x[..., :3] += 1.5 * np.eye(3, dtype=np.float32)[target]
    x = x * np.geomspace(5, 0.2, dim).astype(np.float32) + 3
    if task.kind == "multilabel":
        target = (rng.random((samples, 3)) < 0.2 + 0.6 * np.eye(3)[target]).astype(np.uint8)
    return Vectors(x, target, {})


def by_torch(task, train, epochs, seed):
    """The official protocol written with torch, drawing as ours does."""
    rng = np.random.default_rng(seed)
    _, samples, dim = train.vectors.shape
    first = official.initial(dim, len(task.classes), rng)
    norm = torch.nn.BatchNorm1d(dim, affine=False, eps=1e-6)
    linear = torch.nn.Linear(dim, len(task.classes))
    with torch.no_grad():
        linear.weight.copy_(torch.from_numpy(first.weight.copy()))
        linear.bias.copy_(torch.from_numpy(first.bias.copy()))
    model = torch.nn.Sequential(norm, linear)
    one = task.kind == "classification"
    loss = torch.nn.CrossEntropyLoss() if one else torch.nn.MultiLabelSoftMarginLoss()
    optimiser = torch.optim.SGD(model.parameters(), lr=task.rate, momentum=0.9, weight_decay=1e-4)
    total = epochs * (samples // task.batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, max_lr=task.rate, total_steps=total, pct_start=0.0
    )
    for _ in range(epochs):
        for flips, order in official.batches(samples, len(train.vectors), task.batch, rng):
            optimiser.zero_grad()
            x = torch.from_numpy(train.vectors[flips, order])
            y = torch.from_numpy(train.target[order])
            loss(model(x), y if one else y.float()).backward()
            optimiser.step()
            if schedule.last_epoch < total - 1:
                schedule.step()
        yield copy.deepcopy(model).eval()


@pytest.mark.parametrize("task", [CLASSES, SEVERAL], ids=lambda task: task.kind)
@pytest.mark.parametrize("epochs", [1, 4])
def test_training_is_that_of_torch(task, epochs):
    train, validation = drawn(task), drawn(task, 20, 1, seed=1)
    found = official.train(task, train, validation, epochs=epochs, seed=5)
    norm, linear = every = list(by_torch(task, train, epochs, 5))[found.epoch - 1]
    np.testing.assert_allclose(found.head.weight, linear.weight.detach(), atol=1e-5)
    np.testing.assert_allclose(found.head.bias, linear.bias.detach(), atol=1e-5)
    np.testing.assert_allclose(found.head.mean, norm.running_mean, rtol=1e-5)
    np.testing.assert_allclose(found.head.variance, norm.running_var, rtol=1e-5)
    logits = every(torch.from_numpy(validation.vectors[0])).detach().numpy()
    ours = found.head.logits(validation.vectors[0])
    np.testing.assert_allclose(ours, logits, rtol=1e-5, atol=2e-5)


def test_the_epoch_that_validates_best_is_kept(monkeypatch):
    scores = iter([50.0, 80.0, 80.0, 60.0])

    class Judge:
        add = print
        bench = property(lambda self: next(scores))

    monkeypatch.setattr(official, "fed", lambda *arguments: Judge())
    train = drawn(CLASSES)
    found = official.train(CLASSES, train, drawn(CLASSES, 20, 1), epochs=4)
    assert (found.epoch, found.validation) == (2, 80)


def test_each_epoch_sees_each_sample_once_in_one_variant_and_drops_the_last_part_batch():
    rng = np.random.default_rng(0)
    seen = [np.concatenate([o for _, o in official.batches(50, 4, 8, rng)]) for _ in range(2)]
    assert all(len(one) == len({*one}) == 48 for one in seen)
    assert list(seen[0]) != list(seen[1])
    flips = np.concatenate([f for f, _ in official.batches(4000, 4, 8, rng)])
    assert np.bincount(flips) / 4000 == pytest.approx(0.25, abs=0.03)


def test_fewer_samples_than_a_batch_cannot_train():
    with pytest.raises(
        SourceError, match="3 training and 20 validation samples; expected at least 4"
    ):
        official.train(CLASSES, drawn(CLASSES, 3), drawn(CLASSES, 20, 1))


# The fast tier


def split(task, samples, seed):
    made = drawn(task, samples, 1, seed=seed)
    return made.vectors[0], made.target


@pytest.mark.parametrize("task", [CLASSES, SEVERAL], ids=lambda task: task.kind)
def test_neighbours_are_those_of_scikit_learn(task, monkeypatch):
    monkeypatch.setattr(fast, "_BLOCK", 7)
    x, y = split(task, 60, 0)
    asked, _ = split(task, 25, 1)
    model = KNeighborsClassifier(5).fit(x, y)
    found = fast.neighbours(task, x, y, asked)
    if task.kind == "classification":
        assert found.tolist() == model.predict(asked).tolist()
    else:
        nearest = model.kneighbors(asked, return_distance=False)
        np.testing.assert_allclose(found, y[nearest].mean(axis=1))


@pytest.mark.slow
@pytest.mark.parametrize("strength", [1e-4, 1.0, 300.0])
def test_logistic_regression_is_that_of_scikit_learn(strength):
    x, y = split(CLASSES, 200, 0)
    model = LogisticRegression(C=strength, tol=1e-10, max_iter=20_000).fit(x.astype(float), y)
    problem = fast._Problem(CLASSES, x, y)
    problem.solve(strength / 2)
    logits = problem.solve(strength).logits(x)
    likely = np.exp(logits - logits.max(axis=1, keepdims=True))
    likely /= likely.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(likely, model.predict_proba(x.astype(float)), atol=2e-3)


def test_several_classes_have_a_logistic_regression_each():
    x, y = split(SEVERAL, 200, 0)
    logits = fast._Problem(SEVERAL, x, y).solve(0.1).logits(x)
    for column in range(3):
        model = LogisticRegression(C=0.1, tol=1e-10, max_iter=20_000)
        expected = model.fit(x.astype(float), y[:, column]).decision_function(x.astype(float))
        np.testing.assert_allclose(logits[:, column], expected, atol=5e-3)


@pytest.mark.parametrize("task", [CLASSES, SEVERAL], ids=lambda task: task.kind)
def test_validation_chooses_the_strength_and_both_splits_are_fitted(task):
    train, validation = split(task, 100, 0), split(task, 60, 1)
    model, strength, score = fast.logistic(task, train, validation, (1e-6, 1e-3, 1e-1, 10.0))
    tried = {}
    for one in (1e-6, 1e-3, 1e-1, 10.0):
        logits = fast._Problem(task, *train).solve(one).logits(validation[0])
        tried[one] = metrics.SCORES[task.kind](metrics.guess(task, logits), validation[1])
    assert score == pytest.approx(max(tried.values()), abs=0.5)
    assert tried[strength] == pytest.approx(max(tried.values()), abs=0.5)
    x, y = (np.concatenate(pair) for pair in zip(train, validation, strict=True))
    again = fast._Problem(task, x, y).solve(strength)
    np.testing.assert_allclose(model.logits(x), again.logits(x))


def test_validation_without_any_class_chooses_nothing():
    train, (x, y) = split(SEVERAL, 100, 0), split(SEVERAL, 60, 1)
    with pytest.raises(SourceError, match="none of the 60 validation samples has any class"):
        fast.logistic(SEVERAL, train, (x, np.zeros_like(y)), (1e-3, 1.0))


def test_fewer_samples_than_dimensions_and_constant_dimensions_are_fitted():
    x, y = split(CLASSES, 12, 0)
    x = np.concatenate([x, np.full((12, 3), 7, np.float32), x[:, :2]], axis=1)
    model = LogisticRegression(C=1, tol=1e-10, max_iter=20_000).fit(x.astype(float), y)
    logits = fast._Problem(CLASSES, x, y).solve(1.0).logits(x)
    np.testing.assert_allclose(
        logits - logits.mean(axis=1, keepdims=True),
        model.decision_function(x.astype(float)),
        atol=1e-2,
    )


def test_ridge_is_that_of_scikit_learn():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((80, 6), np.float32)
    y = x @ np.arange(6) + rng.normal(size=80)
    y[3] = np.nan
    found = fast.ridge((x[:50], y[:50]), (x[50:], y[50:]), x)
    known = np.delete(np.arange(50), 3)
    scale = x[known].std(axis=0, dtype=float)
    model = SklearnRidge(found.strength * len(known)).fit(x[known] / scale, y[known])
    np.testing.assert_allclose(found.output, model.predict(x / scale), rtol=1e-5)


# Cached vectors


def test_vectors_are_the_official_feature_of_images_that_were_normalised_and_then_resized(
    tmp_path, parts
):
    dataset, encoder = Made(), tiny()
    found = embedded(dataset, encoder, tmp_path)
    sensor = dataset.task.sensor
    mean, std = (torch.tensor(one)[:, None, None] for one in (sensor.mean, sensor.std))
    for name, axes in enumerate([(), (3,), (2,), (2, 3)]):
        sample = dataset.read("train", 11)
        x = (torch.from_numpy(sample.images[0]) - mean) / std
        x = F.interpolate(x[None], (32, 32), mode="bilinear", align_corners=True).flip(axes)
        tokens = torch.from_numpy(np.empty(0))
        tokens = encoder._model.encode(
            x,
            torch.from_numpy(sample.metadata),
            encoder._prepare(sensor, 32, 32).kernel,
            encoder._prepare(sensor, 32, 32).positions,
            tokens=False,
        )
        np.testing.assert_allclose(
            found["train"].vectors[name, 11], tokens[0].numpy(), rtol=1e-4, atol=1e-4
        )
    assert [found[s].vectors.shape for s in ("train", "val", "test")] == [
        (4, 20, 32),
        (1, 8, 32),
        (1, 8, 32),
    ]
    assert found["val"].target.tolist() == [0, 1, 2, 0, 1, 2, 0, 1]


def test_the_mean_of_tokens_goes_through_a_plain_norm_where_the_weights_have_none(tmp_path):
    weights = untrained_weights(0, embed_dim=64, depth=1, heads=1, pooling="cls")
    path = tmp_path / "weights.pth"
    torch.save(weights.model.state_dict(), path)  # has norm, and no fc_norm
    loaded = copcube.encoder.load_weights(str(path), pooling="mean")
    encoder = FrozenEncoder(loaded, device="cpu", dtype="float32")
    image = np.random.default_rng(0).normal(-14, 3, (1, 2, 32, 32)).astype(np.float32)
    place = np.array([[10.0, 50.0, 18000.0, 0.0256]])
    sensor = CLASSES.sensor
    model, prepared = loaded.model, encoder._prepare(sensor, 32, 32)
    last = {}
    model.blocks[-1].register_forward_hook(lambda block, given, out: last.update(out=out))
    vector = encoder(sensor, image, place)
    expected = F.layer_norm(last["out"][:, 1:].mean(1), (64,), eps=1e-6)
    np.testing.assert_allclose(vector, expected, atol=1e-5)
    assert prepared.positions.shape[1] == 1 + 4


@pytest.mark.slow
def test_a_run_that_was_killed_goes_on_and_a_finished_one_embeds_nothing(tmp_path, parts):
    dataset = Made()
    whole = embedded(dataset, tiny(), tmp_path / "whole")
    stopped = Counting(most=70)
    with pytest.raises(KeyboardInterrupt):
        embedded(dataset, stopped, tmp_path / "some")
    files = sorted(path.name for path in (tmp_path / "some").iterdir())
    assert files == ["train-000000.npz", "train-000008.npz"]
    going_on = Counting()
    found = embedded(dataset, going_on, tmp_path / "some")
    assert going_on.images == 4 * 4 + 8 + 8
    for split, one in whole.items():
        np.testing.assert_array_equal(found[split].vectors, one.vectors)
        np.testing.assert_array_equal(found[split].target, one.target)
    again = Counting()
    embedded(dataset, again, tmp_path / "some")
    assert again.images == 0


@pytest.mark.slow
def test_calls_that_are_under_way_at_once_give_the_same_vectors(tmp_path, parts):
    class Streaming(Counting):
        streams = 3

    one, several = Counting(), Streaming()
    found = [embedded(Made(), e, tmp_path / str(n)) for n, e in enumerate((one, several))]
    for split, expected in found[0].items():
        np.testing.assert_array_equal(found[1][split].vectors, expected.vectors)


def test_a_broken_image_is_left_out_until_it_can_be_read(tmp_path, parts, caplog):
    dataset = Made()
    dataset.broken = {"train-9": "cut short"}
    found = embedded(dataset, tiny(), tmp_path)
    assert found["train"].vectors.shape == (4, 19, 32)
    assert found["train"].skipped == {"train-9": "train-9: cut short"}
    assert "EuroSAT-S1, train: 1 samples are left out, such as train-9" in caplog.text
    whole = embedded(Made(), tiny(), tmp_path / "whole")["train"]
    kept = np.delete(np.arange(20), 9)
    np.testing.assert_allclose(found["train"].vectors, whole.vectors[:, kept], atol=1e-5)
    np.testing.assert_array_equal(found["train"].target, whole.target[kept])
    dataset.broken = {}
    encoder = Counting()
    found = embedded(dataset, encoder, tmp_path)
    assert found["train"].skipped == {}
    assert encoder.images == 8 * 4  # of the part in which it lies
    np.testing.assert_array_equal(found["train"].vectors, whole.vectors)


def test_a_vector_that_is_not_finite_is_left_out(tmp_path):
    class Failing(Counting):
        def __call__(self, modality, pixels, metadata):
            found = super().__call__(modality, pixels, metadata)
            found[[p.mean() > -8 for p in pixels]] = np.nan
            return found

    dataset = Made(counts=(20, 8, 8))
    with pytest.raises(SourceError, match=r"6 of 20 samples cannot be used.*not finite"):
        embedded(dataset, Failing(), tmp_path)


def test_more_than_a_tenth_of_broken_images_end_a_task(tmp_path):
    dataset = Made()
    dataset.broken = {"val-2": "no pixels"}
    with pytest.raises(SourceError, match=r"val: 1 of 8 samples cannot be used, .* val-2: no pix"):
        embedded(dataset, tiny(), tmp_path)


def test_a_label_outside_the_classes_ends_a_task(tmp_path):
    dataset = Made()
    dataset.task = replace(CLASSES, classes=("a", "b"))
    dataset.read = lambda split, index: replace_target(Made().read(split, index), 2)
    with pytest.raises(SourceError, match=r"train-0: label 2; expected a class, 0 to 1"):
        embedded(dataset, tiny(), tmp_path)


def replace_target(sample, target):
    return replace(sample, target=np.array(target))


# Running, results and the command


def ran(tmp_path, dataset, probe="official", encoder=None, epochs=4):
    options = running._Options((1, 2), epochs, 20, "four", True)
    return list(running.run(dataset, encoder or Counting(), tmp_path, probe, options))


@pytest.mark.slow
def test_results_are_kept_by_all_that_decides_them(tmp_path, parts):
    first = ran(tmp_path, Made())
    assert [one.probe for one in first] == ["official"]
    assert len(first[0].scores) == 2
    again = Counting()
    assert ran(tmp_path, Made(), encoder=again) == first
    assert again.images == 0
    longer = ran(tmp_path, Made(), encoder=again, epochs=5)
    assert again.images == 0  # the vectors are the same
    assert longer[0].provenance["epochs"] == 5
    other = Made(seed=1)  # of the same names
    ran(tmp_path, other, encoder=again)
    assert again.images == 20 * 4 + 16
    true = Made()
    true.area = 0.00209
    assert not ran(tmp_path, true)[0].comparable


def test_a_result_without_a_broken_image_is_found_again_once_it_can_be_read(tmp_path, parts):
    dataset = Made()
    dataset.broken = {"train-9": "cut short"}
    first = ran(tmp_path, dataset)[0]
    assert first.skipped == {"train/train-9": "train-9: cut short"}
    assert ran(tmp_path, dataset) == [first], "it is still broken"
    assert ran(tmp_path, Made())[0].skipped == {}


def test_a_result_without_a_vector_that_is_not_finite_is_kept(tmp_path, parts):
    class Failing(Counting):
        def __call__(self, modality, pixels, metadata):
            found = super().__call__(modality, pixels, metadata)
            found[[p.mean() > strange for p in pixels]] = np.nan
            return found

    dataset = Made()
    strange = sorted(dataset.read("train", n).images[0].mean() for n in range(20))[-2]
    first = ran(tmp_path, dataset, encoder=Failing())
    assert list(first[0].skipped), "its vector is not finite"
    again = Failing()
    assert ran(tmp_path, dataset, encoder=again) == first
    assert again.images == 0


@pytest.mark.slow
def test_the_fast_tier_scores_with_intervals(tmp_path, parts):
    found = {one.probe: one for one in ran(tmp_path, Made(), "fast")}
    assert [*found] == ["knn", "logistic"]
    for one in found.values():
        score = one.scores[0]
        assert one.bench == one.dataset > 80  # levels differ by class
        assert score.low <= score.dataset <= score.high
        assert not one.comparable
    assert found["logistic"].details["c"] in fast.STRENGTHS
    several = ran(tmp_path, Made(SEVERAL), "fast")
    assert [one.metric for one in several] == ["mAP", "mAP"]
    assert several[1].details["f1"] > 60


def test_published_scores_compare_with_the_published_protocol_alone():
    scores = (Score(80, 81, 82),)
    told = {"area": "0.0256", "epochs": 50}
    assert Result("eurosat-s1", "official", scores, told, 1).comparable
    for change in ({"epochs": 3}, {"area": "0.002"}, {"encoder_pooling": "cls"}, {"size": 64}):
        assert not Result("eurosat-s1", "official", scores, told | change, 1).comparable
    assert not Result("eurosat-s1", "logistic", scores, told, 1).comparable


RESULTS = [
    Result(
        "eurosat-s2",
        "official",
        (Score(97.0, 97.1, 98.0), Score(98.0, 98.1, 98.5)),
        {"area": "0.0256", "epochs": 50, "seeds": (0, 1)},
        2.5,
        {"epoch": [3, np.int64(4)]},
        {"train/a_b": "cut short"},
        "0.1.0",
    ),
    Result("aq-o3-s5p", "ridge", (Score(900.0, 910.0, np.nan, 850.0, 960.0),), {}, 1.0),
]


def test_results_travel_through_json(tmp_path):
    path = tmp_path / "results.json"
    write_results(path, RESULTS)
    first, second = read_results(path)
    assert first.scores == RESULTS[0].scores
    assert first.skipped == {"train/a_b": "cut short"}
    assert first.details == {"epoch": [3, 4]}
    assert np.isnan(second.scores[0].validation)
    published = json.loads(path.read_text())["results"][0]["published"]
    assert published == {"random_vit_b": 92.5, "copernicus_fm": 97.9, "comparable": True}


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"copcube": {}}', '{"copcube": {"bench": 9}}']
)
def test_other_files_are_no_results(tmp_path, content):
    path = tmp_path / "other.json"
    path.write_text(content)
    with pytest.raises(OptionError, match="expected results that `copcube bench` wrote"):
        read_results(path)


def test_tables_hold_ours_beside_the_published_scores():
    text = bench_table(RESULTS)
    assert "| EuroSAT-S2 | OA | official | 97.5 ± 0.5 | 97.6 ± 0.5 |  | 92.5 | 97.9 |" in text
    assert "| ridge | 900.0 | 910.0 | 850.0 to 960.0 | (1741.6) | (789.4) |" in text
    assert r"EuroSAT-S2 & OA & official & 97.5 $\pm$ 0.5" in bench_table(RESULTS, "latex")
    lines = bench_table(RESULTS, "csv").splitlines()
    assert lines[1] == "eurosat-s2,OA,%,official,2,97.5,97.6,98.25,,,92.5,97.9,True,2.5"
    assert lines[2] == "aq-o3-s5p,RMSE,,ridge,1,900,910,,850,960,1741.6,789.4,False,1"
    with pytest.raises(OptionError, match="expected csv or markdown or latex"):
        bench_table(RESULTS, "html")


@pytest.mark.parametrize(
    ("provenance", "said"),
    [
        ({"encoder_trained": 0}, "UNTRAINED encoder"),
        ({"cube": {"encoder_trained": "0", "synthetic": "drawn at random"}}, "SYNTHETIC"),
    ],
)
def test_tables_say_whose_scores_mean_nothing(provenance, said):
    results = [RESULTS[0], replace(RESULTS[1], provenance=provenance)]
    text = bench_table(results)
    assert "| EuroSAT-S2 | OA |" in text
    assert f", {said} | RMSE" in text
    trained, untrained = csv.DictReader(bench_table(results, "csv").splitlines())
    assert trained["caution"] == ""
    assert untrained["caution"].startswith(said)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bench") / "data"
    write_bench_sample(folder, tasks=["eurosat-s1", "lcz-s2"], images=64)
    return folder


@pytest.fixture
def loaded(monkeypatch, no_encoders):
    """The command line with a tiny encoder."""
    monkeypatch.setattr(copcube.encoder.EncoderSpec, "load", lambda self: tiny())


@pytest.mark.slow
def test_the_command_runs_tasks_and_says_which_failed(data, loaded, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    command = ["bench", "eurosat-s1", "eurosat-s2", "lcz-s2", "--root", str(data)]
    command += ["--cache", str(tmp_path / "cache"), "--seeds", "1", "--epochs", "2"]
    outputs = ["--out", str(tmp_path / "r.json"), "--out", str(tmp_path / "t.md")]
    assert main([*command, *outputs]) == 1
    out, err = capsys.readouterr()
    assert "EuroSAT-S1" in out, err
    assert "LCZ-S2" in out
    assert "EuroSAT-S2 failed" in err
    assert "copcube fetch bench eurosat-s2" in err
    assert [one.task for one in read_results(tmp_path / "r.json")] == ["eurosat-s1", "lcz-s2"]
    assert (tmp_path / "t.md").read_text().count("official") == 2
    command = ["bench", "eurosat-s1", "--root", str(data), "--cache", str(tmp_path / "cache")]
    assert main([*command, "--probe", "fast", "--out", str(tmp_path / "r.json")]) == 0
    probes = [one.probe for one in read_results(tmp_path / "r.json")]
    assert probes == ["official", "official", "knn", "logistic"]
    assert main([*command, "--out", str(tmp_path / "t.md")]) == 1
    assert "exists already" in capsys.readouterr().err


def test_what_another_run_adds_to_the_results_meanwhile_stays(tmp_path, monkeypatch):
    path = tmp_path / "r.json"

    def found(task):
        return Result(task, "knn", (Score(90.0, 90.0, 91.0),), {"seeds": 1}, 1.0)

    def other_run_ends(*arguments, **options):
        write_results(path, [found("eurosat-s1"), found("eurosat-s2")])
        return running.Benched([found("lcz-s2")], {})

    monkeypatch.setattr(copcube.probes.bench, "bench", other_run_ends)
    write_results(path, [found("eurosat-s1")])
    assert main(["bench", "lcz-s2", "--root", str(tmp_path), "--out", str(path)]) == 0
    kept = [one.task for one in read_results(path)]
    assert kept == ["eurosat-s1", "eurosat-s2", "lcz-s2"]


def test_data_and_a_sensor_of_ones_own_are_run_like_the_published_ones(tmp_path):
    bands = {"wavelengths": (600.0, 900.0), "bandwidths": (30.0, 40.0), "kernel": 8}
    task = replace(CLASSES, name="mine", title="Mine", random=np.nan, published=np.nan)
    task = replace(task, sensor=replace(task.sensor, key="mine", title="Mine", **bands))
    dataset = Made(task)
    found = bench(dataset, encoder=tiny(), cache=tmp_path, seeds=1, epochs=2)
    assert not found.failures
    fast_ones = bench([Made(task)], encoder=tiny(), cache=tmp_path, probe="fast")
    results = found.results + fast_ones.results
    write_results(tmp_path / "r.json", results)
    again = read_results(tmp_path / "r.json")
    assert again == results
    assert [(one.metric, one.units, one.comparable) for one in again] == [("OA", "%", False)] * 3
    text = bench_table(again)
    assert "| mine, UNTRAINED encoder | OA | logistic |" in text
    assert text.count("| - | - |") == 3
    assert ",OA,%,official,1," in bench_table(again, "csv")


def test_a_regression_of_images_means_is_a_ridge(tmp_path):
    task = replace(CLASSES, kind="regression", classes=("level",), units="dB")
    vectors = embedded(Made(task, (40, 16, 16)), tiny(), tmp_path)
    options = running._Options((1,), 1, 20, "four", True)
    (score,), details = running._ridge(task, vectors, options)
    assert score.dataset < 0.5 * vectors["test"].target.std()
    assert score.low < score.dataset < score.high
    assert details["penalty"] >= 0


@pytest.mark.slow
def test_options_that_mean_nothing_are_refused_before_any_work(data):
    with pytest.raises(OptionError, match=r"root is None .* the folder of the data"):
        bench("eurosat-s1", encoder=tiny())
    with pytest.raises(OptionError, match="task='eurosat'; expected one of cloud-s2"):
        bench("eurosat", data, encoder=tiny())
    with pytest.raises(OptionError, match="probe='knn'"):
        bench("eurosat-s1", data, encoder=tiny(), probe="knn")
    assert running._seeds(np.int64(2)) == running._seeds(np.array(2)) == running._seeds(2)
    assert running._seeds(np.array([3, 4])) == (3, 4)
    with pytest.raises(OptionError, match="task=5; expected one of"):
        bench([5], data, encoder=tiny())
    with pytest.raises(OptionError, match="seeds"):
        bench("eurosat-s1", data, encoder=tiny(), seeds=0)
