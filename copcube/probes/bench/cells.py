"""What a cube's own vectors are worth: land cover, biomass and air quality of whole cells.

Three data sets of Copernicus-Bench have labels of places as large as a cell. LC100's are cells of
the lattice; those of biomass and air quality are squares of 28 and 62 km, whose vector is the mean
of the cells under them, weighted by area. Labels are the classes of the whole place, or the mean of
its pixels. No image is read. The published splits are kept, but not the published question, so
scores are not comparable with published ones; those of coordinates alone, and of a constant, stand
beside them instead.
"""

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from copcube.arguments import one_of, one_path, whole_number
from copcube.cube.view import CubeView
from copcube.errors import CubeError, in_a_line
from copcube.files.damage import naming_damage
from copcube.files.processors import THREADS
from copcube.grid import Floats, Integers
from copcube.lookahead import map_ahead
from copcube.lookup.gathering import gathered_vectors
from copcube.lookup.regions import region
from copcube.probes.bench.catalogue import Task, find
from copcube.probes.bench.fast import logistic, ridge
from copcube.probes.bench.metrics import SCORES
from copcube.probes.bench.opening import open_dataset
from copcube.probes.bench.results import Result
from copcube.probes.bench.running import RESAMPLES, Benched, each, judged
from copcube.probes.bench.samples import BROKEN, SPLITS, Dataset, Place, Split
from copcube.probes.coordinates import harmonics
from copcube.version import __version__

if TYPE_CHECKING:
    import xarray as xr

log = logging.getLogger("copcube")

CELL_TASKS = ("lc100cls-s3", "biomass-s3", "aq-no2-s5p", "aq-o3-s5p")
"""Tasks with labels of whole cells."""

_INPUTS = {"cells": "vectors", "cells-coordinates": "codes", "cells-constant": None}
"""Probes, and what they predict from."""
_LEAST = 100
_LEAST_OF_A_SPLIT = 5
_DEGREE = 10
"""Of the spherical harmonics to which the vectors are compared."""

Array = NDArray[np.float32]


class Labelled(NamedTuple):
    """Places of a split that have a vector and a target.

    Parameters
    ----------
    vectors : numpy.ndarray
        (places, dim) float32.
    codes : numpy.ndarray
        (places, 120) float32, spherical harmonics of their centres.
    target : numpy.ndarray
        (places, classes) uint8, or (places,) float64.
    """

    vectors: Array
    codes: Array
    target: NDArray[Any]


def bench_cells(
    cube: "xr.Dataset",
    root: str | Path,
    tasks: str | Sequence[str] | None = None,
    *,
    resamples: int = RESAMPLES,
) -> Benched:
    """Predict labels of whole cells from a cube's own vectors; no image is read.

    Parameters
    ----------
    cube : xarray.Dataset
        A cube, or a reduction, without leading dimensions, whole or in part, lazy or not.
    root : str or path-like
        Folder of the data, as for `bench`.
    tasks : str or sequence of str, optional
        Some of lc100cls-s3, biomass-s3, aq-no2-s5p and aq-o3-s5p; all by default.
    resamples : int
        Of the test split, for an interval; 0 for none.

    Returns
    -------
    Benched
        Of three probes a task: see `score_cells`.

    Raises
    ------
    CubeError
        If the dataset is not a cube, or has groups.
    OptionError
        If there is no such task, or an option has a value that it cannot have.
    """
    names = CELL_TASKS if tasks is None else [tasks] if isinstance(tasks, str) else tasks
    chosen, root = [find(name) for name in names], one_path(root, "root")
    resamples = whole_number(resamples, "resamples", 0)
    CubeView.of(cube).ungrouped()  # invalid arguments fail at once, not once per task

    def work(task: Task) -> Iterator[Result]:
        one_of(task.name, "task", CELL_TASKS)  # before its data are required
        yield from score_cells(open_dataset(task, root), cube, resamples=resamples)

    return each(chosen, work)


@naming_damage()
def score_cells(
    dataset: Dataset, cube: "xr.Dataset", *, resamples: int = RESAMPLES
) -> list[Result]:
    """Predict the labels of places from a cube's vectors.

    Several classes by logistic regression, numbers by ridge regression, whose strengths
    the validation split chooses.

    Parameters
    ----------
    dataset : Dataset
        Of a task in `CELL_TASKS`; only its lists and labels are read.
    cube : xarray.Dataset
        A cube or a reduction without leading dimensions, whole or in part.
    resamples : int
        How often the test split is resampled for the interval.

    Returns
    -------
    list of Result
        Of the probes "cells"; "cells-coordinates", the same from spherical harmonics of the
        places up to degree 10; and "cells-constant", the mean of the training places. Their
        details hold the numbers of ``places`` that were used and those ``without_vector``, and
        the chosen ``strength``.

    Raises
    ------
    CubeError
        If the dataset is not a cube, has vectors at fewer than 100 places, or a target is constant.
    OptionError
        If the task has no labels of whole cells.
    MissingFileError, SourceError, GridError
        If a list of a split is not there, or is not of the published form.
    """
    task = dataset.task
    view = CubeView.of(cube).ungrouped()
    skipped: dict[str, str] = {}
    places = {split: _places(dataset, split, skipped) for split in SPLITS}
    found = {split: _joined(view, places[split]) for split in SPLITS}
    counts = {split: len(one.target) for split, one in found.items()}
    without = {split: len(places[split]) - counts[split] for split in SPLITS}
    _require(task, view, counts, without, found["train"].target)
    about = provenance(dataset, cube)
    results = []
    for probe, inputs in _INPUTS.items():
        began = time.perf_counter()
        predicted = _predicted(task, found, inputs)
        target = found["test"].target
        score = judged(task, predicted.test, target, predicted.validation, resamples)
        details = {
            "places": counts,
            "without_vector": without,
            **({} if inputs is None else {"strength": predicted.strength}),
        }
        seconds = time.perf_counter() - began
        results.append(
            Result(task.name, probe, (score,), about, seconds, details, skipped, __version__)
        )
    return results


def provenance(dataset: Dataset, cube: "xr.Dataset") -> dict[str, Any]:
    """Record everything that decides the scores: the cube's attributes, and the data set."""
    return {
        "cube": {str(name): str(value) for name, value in sorted(cube.attrs.items())},
        "sizes": {str(name): size for name, size in cube.sizes.items()},
        "samples": {split: len(dataset.names(split)) for split in SPLITS},
    }


class _Predicted(NamedTuple):
    """A model's predictions for the test places, its validation score, and its strength."""

    test: NDArray[Any]
    validation: float
    strength: float


def _places(dataset: Dataset, split: Split, skipped: dict[str, str]) -> list[Place]:
    """Read places and labels; a broken one is left out, with the reason."""
    names = dataset.names(split)

    def read(index: int) -> Place | str:
        try:
            return dataset.place(split, index)
        except BROKEN as error:
            return in_a_line(error)

    found = []
    with closing(map_ahead(read, range(len(names)), THREADS)) as ahead:
        for name, place in zip(names, ahead, strict=True):
            if isinstance(place, str):
                skipped[name] = place
                log.warning("%s is left out: %s", name, place)
            elif np.isfinite(place.target).all():
                found.append(place)
    return found


def _joined(view: CubeView, places: Sequence[Place]) -> Labelled:
    """Find the vectors of places, and leave out those that have none."""
    i, j, owner, area = _under(view, places)
    # Many places share cells; each cell is read once.
    cells, which = np.unique(np.stack([i, j]), axis=1, return_inverse=True)
    which = which.ravel()  # NumPy 2.0.0 gives it another dimension
    vectors, there = gathered_vectors(view, cells[0], cells[1], zeros_allowed=view.zeros_allowed)
    weights = area * there[which]
    total = np.zeros(len(places))
    np.add.at(total, owner, weights)
    sums = np.zeros((len(places), vectors.shape[-1]))
    # A cell without a vector may hold NaN, which a weight of 0 does not remove.
    some = np.flatnonzero(weights)
    np.add.at(sums, owner[some], weights[some, None] * vectors[which[some]])
    kept = total > 0
    centres = np.array([place.outline.mean(axis=0) for place in places]).reshape(-1, 2)[kept]
    targets = [place.target for place, good in zip(places, kept, strict=True) if good]
    return Labelled(
        (sums[kept] / total[kept, None]).astype(np.float32),
        harmonics(centres[:, 1], centres[:, 0], _DEGREE).astype(np.float32),
        np.array(targets),
    )


def _under(view: CubeView, places: Sequence[Place]) -> tuple[Integers, Integers, Integers, Floats]:
    """Cells under places that the cube reaches: rows, columns, whose they are, and areas."""
    found = [region(view.latlon, [[place.outline]]) for place in places]
    owner = np.repeat(np.arange(len(found)), [len(one.i) for one in found])
    i, j, area = (
        np.concatenate([getattr(one, name) for one in found] or [np.zeros(0)])
        for name in ("i", "j", "area")
    )
    inside = i >= 0
    return i[inside].astype(int), j[inside].astype(int), owner[inside], area[inside]


def _predicted(task: Task, found: Mapping[Split, Labelled], inputs: str | None) -> _Predicted:
    """Fit to the training places, choose by those of validation, predict those of the test."""
    score_of, target = SCORES[task.kind], {split: cells.target for split, cells in found.items()}
    if inputs is None:
        mean = target["train"].mean(axis=0)
        guess = {split: np.broadcast_to(mean, target[split].shape) for split in SPLITS}
        return _Predicted(guess["test"], score_of(guess["val"], target["val"]), np.nan)
    x = {split: getattr(cells, inputs) for split, cells in found.items()}
    train, validation = (x["train"], target["train"]), (x["val"], target["val"])
    if task.kind == "multilabel":
        model, strength, score = logistic(task, train, validation)
        return _Predicted(model.logits(x["test"]), score, strength)
    both = ridge(train, validation, np.concatenate([x["val"], x["test"]]))
    first, second = np.split(both.output, [len(x["val"])])
    return _Predicted(second, score_of(first, target["val"]), both.strength)


def _require(
    task: Task,
    view: CubeView,
    counts: Mapping[Split, int],
    without: Mapping[Split, int],
    target: NDArray[Any],
) -> None:
    """Refuse data from which nothing can be learnt.

    Raises
    ------
    CubeError
        If there are too few places, or their targets are constant.
    """
    total, least = sum(counts.values()), min(counts.values())
    if total < _LEAST or least < _LEAST_OF_A_SPLIT:
        numbers = ", ".join(f"{n} of {split}" for split, n in counts.items())
        places = {split: n + without[split] for split, n in counts.items()}
        # No cube helps if the data set has too few.
        small = sum(places.values()) < _LEAST or min(places.values()) < _LEAST_OF_A_SPLIT
        remedy = (
            f"download the whole data set (`copcube fetch bench {task.name}`)"
            if small
            else f"use a cube with more of them; its grid is {view.extent()}"
        )
        raise CubeError(
            f"{task.title}: the cube has vectors at {total} of {sum(places.values())} "
            f"places with a label ({numbers}); expected {_LEAST} or more, and "
            f"{_LEAST_OF_A_SPLIT} of each split: {remedy}"
        )
    if (target == target[0]).all():
        raise CubeError(
            f"{task.title}: the labels of all {len(target)} training places are equal; nothing can "
            "be learnt from them. Use a cube that holds more of the places"
        )
