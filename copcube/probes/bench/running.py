"""Running tasks of Copernicus-Bench one after the other, even if some fail."""

import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from copcube.arguments import flag, is_several, one_of, one_path, whole_number
from copcube.embedding.encoders import Encoder, Spec
from copcube.errors import CopcubeError, in_a_line
from copcube.files.atomic import make_folder, write_text
from copcube.interchange.cache import cache_folder
from copcube.probes.bench import fast, official
from copcube.probes.bench.catalogue import Task, find
from copcube.probes.bench.metrics import SCORES, f1, fed, guess, interval, metric_of
from copcube.probes.bench.results import (
    EPOCHS,
    Result,
    Score,
    Which,
    read_results,
    write_results,
)
from copcube.probes.bench.samples import SPLITS, Dataset, Split
from copcube.probes.bench.vectors import Vectors, can_be_used, describe, embedded
from copcube.version import __version__

log = logging.getLogger("copcube")

Probe = Literal["official", "fast"]

FIRST_SEED = 42
"""That of the official code; those of its other runs are not known."""

RESAMPLES = 200

_POOLED = ("classification", "multilabel")


@dataclass(frozen=True)
class Benched:
    """What a run found.

    Parameters
    ----------
    results : list of Result
        By task and protocol, in the requested order.
    failures : dict
        Why tasks failed, by their names.
    """

    results: list[Result]
    failures: dict[str, str]


@dataclass(frozen=True)
class _Options:
    """Options that decide how heads are trained and scored."""

    seeds: tuple[int, ...]
    epochs: int
    resamples: int
    levels: Which = "four"
    keep: bool = True


def bench(
    tasks: str | Dataset | Sequence[str | Dataset],
    root: str | Path | None = None,
    *,
    probe: Probe = "official",
    encoder: Encoder | Spec | None = None,
    weights: str = "hub",
    language: str | None = None,
    device: str = "auto",
    dtype: str = "float32",
    area: str = "official",
    seeds: int | Sequence[int] = 3,
    epochs: int = EPOCHS,
    resamples: int = RESAMPLES,
    levels: Which = "four",
    keep: bool = True,
    cache: str | Path | None = None,
) -> Benched:
    """Run tasks of Copernicus-Bench with a frozen encoder.

    A task that fails is recorded, and the others continue. Vectors and results are kept in the
    cache and not computed again, and a killed run continues.

    Parameters
    ----------
    tasks : str, Dataset, or sequence of them
        Names of tasks, see `copcube.probes.bench.catalogue.TASKS`; or your own data, whose `Task`
        describes them and their sensor.
    root : str or path-like
        Folder of the data of tasks that are named, as ``copcube fetch bench`` and the official
        script leave it.
    probe : {"official", "fast"}
        The published protocol; or nearest neighbours and logistic regression on vectors, a
        linear head on tokens, and ridge regression of the mean of each image.
    encoder : Encoder or copcube.EncoderSpec, optional
        The encoder; by default `weights` with the mean of the patch tokens, as in the official
        code, on `device` in `dtype`.
    weights, language : str
        As for `copcube.encoder.load_weights`.
    device, dtype : str
        As for `copcube.EncoderSpec`; published scores are of float32.
    area : {"official", "true"}
        Area of a token given to the encoder: as the official code states it, or the true one.
    seeds : int or sequence of int
        How many runs of what is trained at random, or their seeds; three as published.
    epochs : int
        Of what is trained at random.
    resamples : int
        Of the test split, for an interval of the fast tier's scores; 0 for none.
    levels : {"four", "last"}
        Blocks whose tokens the linear head of the fast tier sees: at a third, half, two thirds
        and the end of the encoder, side by side, or the last alone.
    keep : bool
        Whether these tokens are computed once and kept in the cache, as float16: 6 KB a token of a
        ViT-B, so 6 MB an image of Cloud-S2. Otherwise each epoch embeds the images again.
    cache : str or path-like, optional
        Folder of vectors and results; by default ``bench`` in that of the decoded maps.

    Returns
    -------
    Benched

    Raises
    ------
    OptionError
        If an option has a value that it cannot have, or there is no such task.
    WeightsError, FetchError
        If the weights cannot be loaded.

    Examples
    --------
    >>> from copcube.probes.bench import bench, bench_table             # doctest: +SKIP
    >>> found = bench(["eurosat-s1", "eurosat-s2"], "copernicusbench")  # doctest: +SKIP
    >>> print(bench_table(found.results))                               # doctest: +SKIP
    """
    from copcube.probes.bench.opening import open_dataset

    # Data of one's own may be iterable, too.
    several = is_several(tasks) and not hasattr(tasks, "task")
    listed: list[Any] = list(tasks) if several else [tasks]  # type: ignore[arg-type]
    own = {one.task.name: one for one in listed if hasattr(one, "task")}
    chosen = [one.task if hasattr(one, "task") else find(one) for one in listed]
    options = _Options(
        _seeds(seeds),
        whole_number(epochs, "epochs", 1),
        whole_number(resamples, "resamples", 0),
        levels,
        flag(keep, "keep"),
    )
    one_of(levels, "levels", get_args(Which))
    one_of(probe, "probe", get_args(Probe))
    if root is not None or len(own) < len(chosen):
        root = one_path(root, "root", ": the folder of the data")
    folder = cache_folder() / "bench" if cache is None else Path(one_path(cache, "cache"))
    model = _loaded(encoder, weights, language, device, dtype)

    def work(task: Task) -> Iterator[Result]:
        dataset = own.get(task.name) or open_dataset(task, str(root), area=area)  # type: ignore[arg-type]
        return run(dataset, model, folder, probe, options)

    return each(chosen, work)


def each(chosen: Sequence[Task], work: Callable[[Task], Iterable[Result]]) -> Benched:
    """Run one task after another; a failure is recorded, and the others continue."""
    results: list[Result] = []
    failures = {}
    for task in chosen:
        try:
            for result in work(task):  # so that those before an error count
                results.append(result)
        except Exception as error:  # whatever happened to this one, the others must run
            known = isinstance(error, CopcubeError)
            failures[task.name] = str(error) if known else f"unexpected error, {in_a_line(error)}"
            log.error("%s failed: %s", task.title, failures[task.name])
            log.debug("%s failed", task.title, exc_info=True)
    return Benched(results, failures)


def run(
    dataset: Dataset, encoder: Encoder, folder: Path, probe: Probe, options: _Options
) -> Iterator[Result]:
    """Run one task, reusing results of the same provenance in the folder; yield the results."""
    task = dataset.task
    about = describe(dataset, encoder)
    here = folder / f"{task.name}-{_key(about)}"
    make_folder(here)
    # For readers of the cache, whose names are hashes.
    write_text(here / "about.json", json.dumps(about, indent=1) + "\n")
    vectors: dict[Split, Vectors] = {}
    for name, function, deciding in _protocols(task, probe, options):
        provenance = about | deciding
        # Named by all that decides it, so that with other options it is not taken for the same.
        kept = here / f"{name}-{_key(provenance)}.json"
        if kept.exists():
            results = read_results(kept)
            if not any(_mended(dataset, one) for one in results):
                log.info("%s, %s: taken from %s", task.title, name, kept)
                yield from results
                continue
            # Heads of pixels first: a run that is killed in between comes back here.
            for head in here.glob(f"{name}-{options.epochs}-*/checkpoint.pt"):
                head.unlink()
            kept.unlink()
        if function is None:
            result = _dense(dataset, encoder, here, name, options, provenance)
        else:
            # Once for all protocols of a task, and not at all where every result is there.
            if not vectors:
                vectors = embedded(dataset, encoder, here)
            begin = time.perf_counter()
            scores, details = function(task, vectors, options)
            seconds = time.perf_counter() - begin
            skipped = {f"{s}/{n}": why for s in SPLITS for n, why in vectors[s].skipped.items()}
            result = Result(
                task.name, name, scores, provenance, seconds, details, skipped, __version__
            )
        write_results(kept, [result])
        yield result


def _mended(dataset: Dataset, result: Result) -> bool:
    """Whether a sample that the result left out can now be used."""
    return any(
        can_be_used(dataset, split, index, why)
        for split in SPLITS
        for index, name in enumerate(dataset.names(split))
        if (why := result.skipped.get(f"{split}/{name}")) is not None
    )


Found = tuple[tuple[Score, ...], dict[str, Any]]
_Function = Callable[[Task, Mapping[Split, Vectors], _Options], Found]


def _protocols(
    task: Task, probe: Probe, options: _Options
) -> list[tuple[str, _Function | None, dict[str, Any]]]:
    """Protocols of a task: name, what runs it on vectors if it does, what decides its scores."""
    trained = {"seeds": [*options.seeds], "epochs": options.epochs}
    resampled = {"resamples": options.resamples}
    if task.kind in _POOLED:
        if probe == "official":
            return [("official", _official, trained)]
        return [("knn", _knn, resampled), ("logistic", _logistic, resampled)]
    if probe == "official":
        return [("upernet", None, trained)]
    linear = "linear" if options.levels == "four" else "linear-last"
    dense: list[tuple[str, _Function | None, dict[str, Any]]] = [(linear, None, trained)]
    return [("ridge-of-means", _ridge, resampled), *dense] if task.kind == "regression" else dense


def _official(task: Task, vectors: Mapping[Split, Vectors], options: _Options) -> Found:
    scores, epochs, others = [], [], []
    test = vectors["test"]
    for seed in options.seeds:
        found = official.train(
            task, vectors["train"], vectors["val"], epochs=options.epochs, seed=seed
        )
        logits = found.head.logits(test.vectors[0])
        metric = fed(metric_of(task), guess(task, logits), test.target, task.batch)
        scores.append(Score(metric.bench, metric.dataset, found.validation))
        epochs.append(found.epoch)
        if task.kind == "multilabel":
            others.append(f1(logits, test.target))
    return tuple(scores), {"epoch": epochs} | ({"f1": others} if others else {})


def _knn(task: Task, vectors: Mapping[Split, Vectors], options: _Options) -> Found:
    train = vectors["train"]
    outputs = {
        split: fast.neighbours(task, train.vectors[0], train.target, vectors[split].vectors[0])
        for split in SPLITS[1:]
    }
    validation = fed(metric_of(task), outputs["val"], vectors["val"].target, task.batch).dataset
    target = vectors["test"].target
    score = judged(task, outputs["test"], target, validation, options.resamples)
    return (score,), {"neighbours": fast.NEIGHBOURS}


def _logistic(task: Task, vectors: Mapping[Split, Vectors], options: _Options) -> Found:
    pairs = {split: (one.vectors[0], one.target) for split, one in vectors.items()}
    model, strength, validation = fast.logistic(task, pairs["train"], pairs["val"])
    x, target = pairs["test"]
    logits = model.logits(x)
    details: dict[str, Any] = {"c": strength}
    if task.kind == "multilabel":
        details["f1"] = f1(logits, target)
    # The score is of before: since then the model was fitted to the validation split, too.
    return (judged(task, guess(task, logits), target, validation, options.resamples),), details


def _ridge(task: Task, vectors: Mapping[Split, Vectors], options: _Options) -> Found:
    pairs = {split: (one.vectors[0], one.target) for split, one in vectors.items()}
    (x, known), (x_test, target) = pairs["val"], pairs["test"]
    found = fast.ridge(pairs["train"], pairs["val"], np.concatenate([x, x_test]))
    output, test = np.split(found.output, [len(x)])
    validation = fed(metric_of(task), output, known, task.batch).dataset
    score = judged(task, test, target, validation, options.resamples)
    return (score,), {"penalty": found.strength}


def judged(
    task: Task, output: NDArray[Any], target: NDArray[Any], validation: float, resamples: int
) -> Score:
    """Score what was predicted of the test split, beside the score of the validation split."""
    metric = fed(metric_of(task), output, target, task.batch)
    low, high = interval(SCORES[task.kind], output, target, resamples)
    return Score(metric.bench, metric.dataset, validation, low, high)


def _dense(
    dataset: Dataset,
    encoder: Any,
    here: Path,
    probe: str,
    options: _Options,
    provenance: Mapping[str, Any],
) -> Result:
    """Train a head on tokens for each seed."""
    from copcube.probes.bench.dense import score

    begin = time.perf_counter()
    levels = here / f"levels-{options.levels}" if options.keep else None
    runs = [
        score(
            dataset,
            encoder,
            here / f"{probe}-{options.epochs}-{seed}",
            # The published head is built on four levels; only the linear one may do with the last.
            head="upernet" if probe == "upernet" else "linear",
            which="four" if probe == "upernet" else options.levels,
            levels=levels,
            epochs=options.epochs,
            seed=seed,
        )
        for seed in options.seeds
    ]
    scores = tuple(Score(r["bench"], r["dataset"], r["validation"]) for r in runs)
    details = {"epoch": [r["epoch"] for r in runs], "parameters": runs[0]["parameters"]}
    skipped = {name: why for run in runs for name, why in run["skipped"].items()}
    seconds = time.perf_counter() - begin
    task = dataset.task.name
    return Result(task, probe, scores, provenance, seconds, details, skipped, __version__)


def _loaded(
    encoder: Encoder | Spec | None, weights: str, language: str | None, device: str, dtype: str
) -> Encoder:
    if encoder is None:
        from copcube.encoder import EncoderSpec

        encoder = EncoderSpec(weights, language, pooling="mean", device=device, dtype=dtype)
    return encoder.load() if isinstance(encoder, Spec) else encoder


def _key(value: Mapping[str, Any]) -> str:
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _seeds(given: int | Sequence[int]) -> tuple[int, ...]:
    if is_several(given):
        return tuple(whole_number(seed, "seeds", 0) for seed in given)
    count = whole_number(given, "seeds", 1)
    return tuple(range(FIRST_SEED, FIRST_SEED + count))
