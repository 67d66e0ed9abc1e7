"""Results of Copernicus-Bench: one file for all tasks, and one table."""

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from copcube.arguments import one_of
from copcube.cube.caution import caution
from copcube.errors import CopcubeError, OptionError, in_a_line
from copcube.files.atomic import write_text
from copcube.files.regular import open_regular
from copcube.interchange.metadata import KEY
from copcube.probes.bench.catalogue import METRICS, TASKS
from copcube.probes.text import Form, Row, as_text
from copcube.version import __version__

FORMAT = 1
"""Version of the file's form."""

PUBLISHED = ("official", "upernet")
"""Protocols by which the published scores were found, in `EPOCHS` epochs."""

EPOCHS = 50

Which = Literal["four", "last"]
"""Levels of the encoder that a linear head sees."""


@dataclass(frozen=True)
class Score:
    """Result of one run of a protocol, in the task's metric.

    Parameters
    ----------
    bench : float
        Mean over the batches of the test split, as published.
    dataset : float
        Score of the whole test split at once.
    validation : float
        Score that chose the model, of the validation split.
    low, high : float, optional
        Interval of 95 % of `dataset`, from resamples of the test split.
    """

    bench: float
    dataset: float
    validation: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Result:
    """Result of a protocol on a task.

    Parameters
    ----------
    task : str
        Name of the task.
    probe : str
        Name of the protocol: ``official``, ``knn``, ``logistic``, ``linear``, ``upernet``…
    scores : tuple of Score
        One a seed.
    provenance : dict
        All that decides the scores: encoder, area, data, options.
    seconds : float
        What it took, without the encoder's part where vectors are cached.
    details : dict
        Whatever else was found, such as ``f1`` or the strength that was chosen.
    skipped : dict
        Why samples were left out, by split and name.
    version : str
        Of copcube.
    """

    task: str
    probe: str
    scores: tuple[Score, ...]
    provenance: Mapping[str, Any]
    seconds: float
    details: Mapping[str, Any] = field(default_factory=dict)
    skipped: Mapping[str, str] = field(default_factory=dict)
    version: str = ""

    @property
    def title(self) -> str:
        """Name of the task in tables, with a note if the encoder was not trained."""
        name = TASKS[self.task].title if self.task in TASKS else self.task
        return name if self.caution is None else f"{name}, {self.caution.partition(':')[0]}"

    @property
    def caution(self) -> str | None:
        """Caution about the scores; None for a trained encoder."""
        # Of whole cells the cube says it, of images their encoder.
        return caution(self.provenance.get("cube", self.provenance))

    @property
    def metric(self) -> str:
        """Name of the score."""
        return METRICS[TASKS[self.task].kind if self.task in TASKS else self.provenance["kind"]]

    @property
    def units(self) -> str:
        """Units of the score: %, or those of a regression, empty if unknown."""
        if self.metric != "RMSE":
            return "%"
        known = TASKS[self.task].units if self.task in TASKS else self.provenance.get("units")
        return known or ""

    @property
    def published(self) -> tuple[float, float]:
        """Published scores of a random ViT-B and of Copernicus-FM; NaN for a user's own task."""
        task = TASKS.get(self.task)
        return (task.random, task.published) if task else (np.nan, np.nan)

    @property
    def comparable(self) -> bool:
        """Whether the protocol is that of the published scores, apart from draws and encoder."""
        task, said = TASKS.get(self.task), self.provenance
        if task is None or self.probe not in PUBLISHED:
            return False
        told: dict[str, Any] = {"epochs": EPOCHS, "area": task.nominal_area, "size": task.size}
        told |= {"sensor": task.described}
        if self.probe == "official":  # heads of pixels take tokens, whatever the pooling
            told |= {"encoder_pooling": "mean"}
        # What a result does not state is not counted against it.
        return all(str(said.get(name, value)) == str(value) for name, value in told.items())

    @property
    def bench(self) -> float:
        """Mean over the seeds of the score as published."""
        return float(np.mean([score.bench for score in self.scores]))

    @property
    def dataset(self) -> float:
        """Mean over the seeds of the score of the whole split."""
        return float(np.mean([score.dataset for score in self.scores]))


def write_results(path: str | Path, results: Sequence[Result]) -> None:
    """Write results as JSON, completely or not at all.

    Raises
    ------
    WriteError
        If the file cannot be written.
    """
    content = {
        KEY: {"bench": FORMAT, "version": __version__},
        "results": [_published(one) for one in results],
    }
    text = json.dumps(_plain(content), indent=1, ensure_ascii=False, allow_nan=False)
    write_text(path, text + "\n")


def read_results(path: str | Path) -> list[Result]:
    """Read the results that `write_results` wrote.

    Raises
    ------
    OptionError
        If the file holds something else.
    """
    expected = "expected results that `copcube bench` wrote; choose another file"
    try:
        with open_regular(path, OptionError) as file:
            content = json.load(file)
        if content[KEY]["bench"] != FORMAT:
            raise OptionError(f"{path}: {expected}")
        return [_restored(one) for one in content["results"]]
    except CopcubeError:
        raise
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise OptionError(f"{path}: {in_a_line(error)}; {expected}") from error


def _published(result: Result) -> dict[str, Any]:
    """A result with the published figures beside it."""
    random, published = result.published
    beside = {
        "metric": result.metric,
        "units": result.units,
        "published": {
            "random_vit_b": random,
            "copernicus_fm": published,
            "comparable": result.comparable,
        },
    }
    return {**asdict(result), **beside}


def _restored(found: dict[str, Any]) -> Result:
    names = ("task", "probe", "provenance", "seconds", "details", "skipped", "version")
    scores = tuple(
        Score(**{name: np.nan if v is None and name in _NEEDED else v for name, v in one.items()})
        for one in found["scores"]
    )
    return Result(scores=scores, **{name: found[name] for name in names})


# Of these None was NaN; the others may be None because there is no interval.
_NEEDED = ("bench", "dataset", "validation")


def _plain(value: Any) -> Any:
    """Convert a value to JSON types, so that stored and computed values are equal."""
    if isinstance(value, Mapping):
        return {str(name): _plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, np.generic):
        value = value.item()
    # JSON has no number for it.
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def bench_table(results: Sequence[Result], form: Form = "markdown") -> str:
    """Write results as one table, with the published scores beside.

    Parameters
    ----------
    results : sequence of Result
        Of any tasks and protocols.
    form : {"csv", "markdown", "latex"}
        ``csv`` has all digits and the interval in columns of its own.

    Raises
    ------
    OptionError
        If the form is unknown.
    """
    one_of(form, "form", get_args(Form))
    return _csv(results) if form == "csv" else as_text(form, *grid_of(results))


def grid_of(results: Sequence[Result]) -> tuple[Row, list[Row]]:
    """Heads and rows of the table, for display."""
    head: Row = ("task", "metric", "probe", "bench", "dataset", "95 %")
    head += ("random ViT-B", "Copernicus-FM")
    rows: list[Row] = []
    for one in results:
        random, published = (f"{value:.1f}" for value in one.published)
        paper = (random, published) if one.comparable else (f"({random})", f"({published})")
        if one.probe.startswith("cells"):  # of whole cells, not of pixels or images of them
            paper = ("not comparable", "not comparable")
        elif one.task not in TASKS:
            paper = ("-", "-")
        metric = one.metric + (f" ({one.units})" if one.units not in ("", "%") else "")
        spans = [s for s in one.scores if s.low is not None and s.high is not None]
        span = f"{spans[0].low:.1f} to {spans[0].high:.1f}" if spans else ""
        ours = (_cell([getattr(s, name) for s in one.scores]) for name in ("bench", "dataset"))
        rows.append((one.title, metric, one.probe, *ours, span, *paper))
    if not any(row[5] for row in rows):  # the official protocol has no intervals
        head, *rows = ((*row[:5], *row[6:]) for row in (head, *rows))
    return head, rows


def _cell(values: Sequence[float]) -> str:
    mean, digits = np.mean(values), 1 if np.mean(values) >= 10 else 2
    spread = f" ± {np.std(values):.{digits}f}" if len(values) > 1 else ""
    return f"{mean:.{digits}f}{spread}"


def _csv(results: Sequence[Result]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    numbers = ("bench", "dataset", "validation", "low", "high")
    head = ("task", "metric", "units", "probe", "seeds", *numbers)
    # One more column if there is a caution; for trained encoders there is none.
    more = ("caution",) if any(one.caution for one in results) else ()
    writer.writerow((*head, "random_vit_b", "copernicus_fm", "comparable", "seconds", *more))
    for one in results:
        means = []
        for name in numbers:
            values = [getattr(score, name) for score in one.scores]
            known = None not in values and np.isfinite(values).all()
            means.append(f"{np.mean(values):.6g}" if known else "")
        paper = ("" if np.isnan(value) else value for value in one.published)
        facts = (one.task, one.metric, one.units, one.probe, len(one.scores))
        told = (one.comparable, f"{one.seconds:.3g}", *(one.caution or "" for _ in more))
        writer.writerow((*facts, *means, *paper, *told))
    return text.getvalue()
