"""The stages of a build: embed the partitions, combine their rows into cells, write the cube.

A stage is all tasks of one kind. `run_stage` hands unfinished tasks to the executor, counts
finished ones and retries failed ones.
"""

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any, Generic

from copcube import cube, progress
from copcube.aggregate import Aggregation
from copcube.builds.executors import Executor, KilledError, Task
from copcube.builds.folder import BuildFolder
from copcube.builds.plan import Plan, cube_attributes, digest
from copcube.builds.receipts import Receipt, to_json
from copcube.builds.tasks import (
    AssembleTask,
    EmbedTask,
    Surveyed,
    counts,
    digest_of,
    run_balance_task,
    run_combine_task,
    run_embed_task,
    run_write_task,
    variances_of,
)
from copcube.errors import BuildError, CopcubeError, ReadError, RowsError, few
from copcube.files.objects import is_remote
from copcube.grid import N_BANDS
from copcube.images import Partition, Rejected
from copcube.images.units import remedy
from copcube.lookahead import map_ahead
from copcube.modalities import kinds
from copcube.parts import keeping_rows
from copcube.products import tables

log = logging.getLogger("copcube")

ATTEMPTS = 3
"""How often a task is tried if it fails to read."""

HOPELESS = 10
"""Failures without a single success after which a stage is given up."""

READERS = 8
"""Files of rows in a store whose small columns are requested at once."""

_PASSING = (KilledError, ReadError)
"""Errors of copcube that end a task but not the stage."""

Counts = dict[str, Any]


class Stage(Generic[Task]):
    """All tasks of one kind, and how each is handled.

    Parameters
    ----------
    folder : BuildFolder
        Where the work is done.
    title, unit : str
        Label of the bar, and the plural of what it counts.
    function : callable
        Runs one task.
    tasks : sequence
        The tasks that are not done.
    total : int or None
        The bar's total, if known.
    skipped : int
        How much of it an earlier run did.
    """

    embeds = False
    """Whether the tasks need the encoder."""
    at_once = 1
    """How many tasks are worth running at once in one process."""

    def __init__(
        self,
        folder: BuildFolder,
        title: str,
        unit: str,
        function: Callable[..., Counts],
        tasks: Sequence[Task],
        total: int | None,
        skipped: int,
    ) -> None:
        self.folder, self.title, self.unit = folder, title, unit
        self.function, self.tasks = function, tasks
        self.total, self.skipped = total, skipped

    def name(self, task: Task) -> str:
        """Name of a task, for messages and files."""
        raise NotImplementedError

    def size(self, counts: Counts) -> int:
        """How much a finished task counts in the bar."""
        return 1

    def done(self, task: Task, counts: Counts) -> None:
        """Record a finished task."""

    def killed(self, task: Task, error: KilledError) -> bool:
        """Whether a task that kills its workers is left out; otherwise it counts as failed."""
        return False

    def update(self, bar: progress.Bar) -> None:
        """Update the bar's total."""


def run_stage(executor: Executor, stage: Stage[Task]) -> None:
    """Run the tasks of one stage.

    A task that fails to read is retried after all others, as network file systems recover; one that
    fails for another reason is left for the next run, and the others continue. The build's folder
    records what failed and why.

    Raises
    ------
    BuildError
        At the end, if tasks failed, naming them; or early, if all fail.
    CopcubeError
        At once, if nothing can continue: a full disk, a different encoder, a broken image in a
        strict build.
    """
    failed: dict[str, Exception] = {}
    tasks, successes = stage.tasks, 0
    # Notes of tasks that failed in an earlier run are removed once these are done.
    noted = set(stage.folder.files.names("failed/")) if tasks else set()

    def advance(number: int) -> None:
        # A driver that lost its build stops here, not only when its task is done.
        stage.folder.check_lock()
        bar.advance(number)

    with progress.show(stage.title, stage.total, stage.unit, skip=stage.skipped) as bar:
        stage.update(bar)
        for attempt in range(1, ATTEMPTS + 1):
            again: list[Task] = []
            outcomes = executor.map(
                stage.function,
                tasks,
                advance=advance,
                embeds=stage.embeds,
                at_once=stage.at_once,
            )
            for task, outcome in outcomes:
                stage.folder.check_lock()
                name = stage.name(task)
                if isinstance(outcome, KilledError) and stage.killed(task, outcome):
                    stage.update(bar)
                    bar.advance(0)
                elif isinstance(outcome, Exception):
                    if isinstance(outcome, CopcubeError) and not isinstance(outcome, _PASSING):
                        raise outcome
                    failed[name] = outcome
                    _note_failure(stage.folder, name, outcome, attempt)
                    # Reading may succeed later; other failures would only repeat.
                    if isinstance(outcome, OSError):
                        again.append(task)
                    # A wrong path or missing package fails every task; ten of them are enough to
                    # know.
                    if not successes and len(failed) >= HOPELESS:
                        raise _error(failed, stage.folder) from outcome
                else:
                    note = f"failed/{name}.json"
                    if failed.pop(name, None) or note in noted:
                        stage.folder.files.remove(note)
                    successes += 1
                    stage.done(task, outcome)
                    stage.update(bar)
                    # Even with nothing to count, it shows the stage's note.
                    bar.advance(0 if executor.reports_progress else stage.size(outcome))
            tasks = again
            if not again:
                break
    if failed:
        raise _error(failed, stage.folder) from next(iter(failed.values()))


def _note_failure(folder: BuildFolder, name: str, error: Exception, attempt: int) -> None:
    reason = f"{type(error).__name__}: {error}"
    folder.files.write(f"failed/{name}.json", to_json({"reason": reason, "attempts": attempt}))


def _error(failed: dict[str, Exception], folder: BuildFolder) -> BuildError:
    lines = [f"  {name}: {type(e).__name__}: {e}" for name, e in sorted(failed.items())[:5]]
    more = [f"  and {len(failed) - 5} more"] if len(failed) > 5 else []
    tasks = "task" if len(failed) == 1 else "tasks"
    listed = ";\n".join([*lines, *more])
    if any(isinstance(error, MemoryError) for error in failed.values()):
        listed += ".\nFewer threads, fewer workers or smaller batches need less memory"
    return BuildError(
        f"{len(failed)} {tasks} of {folder.path} failed:\n{listed}.\n"
        "Everything else is kept; the same command retries them"
    )


# Images to rows.


class EmbedStage(Stage[EmbedTask]):
    """Embed the remaining partitions; leave out those that kill workers.

    Parameters
    ----------
    folder : BuildFolder
        Where the work is done.
    plan : Plan
        The plan of the build.
    partitions : sequence of Partition
        All partitions, in the order of their numbers.
    tasks : sequence of EmbedTask
        Tasks of the partitions to embed.
    receipts : dict
        Counts of finished partitions, by name; those of the tasks are added to it.

    Attributes
    ----------
    seconds : Counter
        Seconds spent, summed over the partitions; see `copcube.builds.Report`.
    """

    embeds = True

    def __init__(
        self,
        folder: BuildFolder,
        plan: Plan,
        partitions: Sequence[Partition],
        tasks: Sequence[EmbedTask],
        receipts: dict[str, Receipt],
    ) -> None:
        self.receipts, self.seconds = receipts, Counter[str]()
        self._plan, self._partitions = plan, partitions
        self._warned = {key for receipt in receipts.values() for key in receipt["strange"]}
        self._count = len(tasks) + len(receipts)
        self._images = sum(self.size(receipt) for receipt in receipts.values())
        self._rejected = sum(receipt["rejected"] for receipt in receipts.values())
        listed = [partitions[task.number].images for task in tasks]
        self._listed = None not in listed
        self._left = sum(images or 0 for images in listed)
        super().__init__(folder, "embedding", "images", run_embed_task, tasks, None, self._images)

    def name(self, task: EmbedTask) -> str:
        """See `Stage`."""
        return task.name

    def size(self, counts: Counts) -> int:
        """See `Stage`; the bar counts images."""
        return sum(counts["images"].values())

    def done(self, task: EmbedTask, counts: Counts) -> None:
        """See `Stage`."""
        self.receipts[task.name] = counts
        self.seconds.update(counts["seconds"])
        for key, (_, example) in counts["strange"].items():
            if key not in self._warned:
                self._warned.add(key)
                log.warning("%s; %s", example, remedy(kinds(task.options.sensors)[key]))
        self._images += self.size(counts)
        self._rejected += counts["rejected"]
        self._left -= self._partitions[task.number].images or 0

    def killed(self, task: EmbedTask, error: KilledError) -> bool:
        """See `Stage`; a strict build leaves nothing out."""
        if task.options.strict:
            return False
        self.done(task, self._quarantine(self._partitions[task.number], str(error)))
        return True

    def update(self, bar: progress.Bar) -> None:
        """Set the total: the images listed, or else an estimate from finished partitions."""
        if self._listed:
            bar.expect(self._images + self._left)
        elif self.receipts:
            bar.expect(round(self._images / len(self.receipts) * self._count))
        bar.note = f"{len(self.receipts)}/{self._count} partitions, {self._rejected} left out"

    def _quarantine(self, partition: Partition, reason: str) -> Receipt:
        """Write the receipt of a partition that is left out entirely."""
        why, images = f"{partition.name}: {reason}", partition.images or 0
        rejected = Rejected(partition.paths[0], "", "killer", why, images)
        facts = {
            "images": {},
            "rescaled": 0,
            "rejected": [asdict(rejected)],
            "seconds": {},
            "quarantined": reason,
        }
        log.warning("%s is left out: %s", partition.name, reason)
        return counts(self.folder.receipts.write(self._plan.id, "embed", partition.name, {}, facts))


# Rows to cube.


class AssembleStage(Stage[AssembleTask]):
    """Combine rows into cells, find variances of modalities, or write bands of the cube.

    Parameters
    ----------
    folder : BuildFolder
        Where the work is done.
    kind : {"combine", "balance", "write"}
        Which of the three.
    task : AssembleTask
        Any one of its tasks.
    count : int
        How many tasks there are, including finished ones.
    """

    # While one task reads keys of a part, or flushes files of a band, another decodes.
    at_once = 2

    def __init__(self, folder: BuildFolder, kind: str, task: AssembleTask, count: int) -> None:
        function, title, unit, width = {
            "combine": (run_combine_task, "combining", "parts", 6),
            "balance": (run_balance_task, "balancing", "bands", 2),
            "write": (run_write_task, "writing", "bands", 2),
        }[kind]
        self._kind, self._width = kind, width
        names = [f"{i:0{width}d}" for i in range(count)]
        done = folder.receipts.done(task.work, kind, names, renew=True)
        tasks = [replace(task, number=i) for i, name in enumerate(names) if name not in done]
        if kind == "combine":
            # The passes come first: each reads from many parts, and would run alone if it came
            # last.
            tasks.reverse()
        super().__init__(folder, title, unit, function, tasks, count, len(done))

    def name(self, task: AssembleTask) -> str:
        """See `Stage`."""
        return f"{self._kind}-{task.number:0{self._width}d}"


@keeping_rows()
def assemble(
    folder: BuildFolder,
    plan: Plan,
    aggregation: Aggregation,
    files: Sequence[str],
    attributes: Mapping[str, Any],
    executor: Executor,
    *,
    asked: Iterable[str] = (),
    overwrite: bool = False,
) -> None:
    """Make the cube of a plan from files of rows; continue where an earlier run stopped.

    Parameters
    ----------
    folder : BuildFolder
        Where the work is done.
    plan : Plan
        The plan of the build.
    aggregation : Aggregation
        How cells are aggregated.
    files : sequence of str
        Files of rows, in a fixed order.
    attributes : mapping
        Further attributes for the cube.
    executor : Executor
        Runs the tasks.
    asked : iterable of str
        Modalities that the user named; a warning lists those without an image.
    overwrite : bool
        Whether to replace another cube of the final name, once this one is complete.

    Raises
    ------
    BuildError
        If no row or no pixel with data is left to aggregate, if tasks failed, or if something else
        has the final name.
    RowsError
        If files that are not the build's own changed while they were read.
    """
    known = _versions(plan, files)
    found = Surveyed.of(files, aggregation)
    if not found.survey.images:
        rejected = f", or all were rejected ({folder.path}/quarantine.parquet says why)"
        raise BuildError(
            f"{plan.source}: no image is left to make a cube of; none is of the chosen modalities "
            f"and dates{rejected if plan.kind == 'build' else ''}"
        )
    _warn_of_absent(found, asked)
    data = found.to_json(attributes.get("copcube_rows") or digest(known))
    # The rows differ, such as after --retry-quarantined: cells of the old ones must not be mixed
    # in.
    if _known_survey(folder) != data:
        folder.discard("cells", "variances", "cube.zarr")
        variances_of.cache_clear()
        folder.files.write("survey.json", data)
    task = AssembleTask(folder.out, plan.id, digest_of(data), 0)
    about = {**cube_attributes(plan, aggregation, found.survey), **attributes}
    combining = len(found.runs) + len(found.passes)
    _create(folder, task, found, about)
    run_stage(executor, AssembleStage(folder, "combine", task, combining))
    # Lines of pixels were counted, whether or not they hold data.
    if not folder.files.names(f"cells/{task.place}/"):
        raise BuildError(
            f"{plan.source}: no pixel of the chosen files and dates holds data, so there is no "
            "cell to make a cube of"
        )
    if aggregation.balance == "variance":
        run_stage(executor, AssembleStage(folder, "balance", task, N_BANDS))
        about["aggregation_scales"] = variances_of(task).in_words(found.labels)
    run_stage(executor, AssembleStage(folder, "write", task, N_BANDS))
    folder.require_lock()
    now = _versions(plan, files)
    if changed := [file for file in known if now[file] != known[file]]:
        folder.give_up()
        raise RowsError(
            f"{few(changed)}: replaced, changed or removed while it was aggregated; give the same "
            "command to start again"
        )
    # Again: the template may come from a run that failed, and its rows may have been remade.
    cube.finish(folder.cube(task.place), about)
    folder.publish(plan, task.place, overwrite=overwrite)
    folder.sweep()


def _versions(plan: Plan, files: Sequence[str]) -> dict[str, str]:
    """Versions of files of rows that are not the build's own, to notice changes."""
    if plan.kind != "aggregate":
        return {}
    # In a store each file costs a request.
    found = map_ahead(tables.version, files, READERS if any(map(is_remote, files)) else 0)
    return dict(zip(files, found, strict=True))


def _warn_of_absent(found: Surveyed, asked: Iterable[str]) -> None:
    counts = dict(zip(found.labels, found.survey.images_by_modality, strict=True))
    if absent := [key for key in asked if not counts[key]]:
        log.warning(
            "NO IMAGE OF %s: the source has none of the chosen dates, or none with a date to group "
            "by, or all were left out; the cube is made of the other modalities",
            ", ".join(absent),
        )


def _create(
    folder: BuildFolder, task: AssembleTask, found: Surveyed, attributes: Mapping[str, Any]
) -> None:
    """Write the template of the cube, unless an earlier run did."""
    if folder.receipts.is_done(task.work, "create", "cube"):
        return
    folder.discard("cube.zarr")
    written = cube.create(
        folder.cube(task.place),
        dim=found.survey.dim,
        by=found.aggregation.by,
        groups=found.survey.groups,
        attrs=attributes,
    )
    files = {f"cube.zarr/{task.place}/{name}": known for name, known in written.items()}
    folder.files.flush([f"cube.zarr/{task.place}/zarr.json"])  # with all parent folders
    folder.receipts.write(task.work, "create", "cube", files, {})


def complete(folder: BuildFolder, plan: Plan, rows: str) -> bool:
    """Whether the finished cube of exactly this plan and these rows exists and is kept."""
    attributes = cube.read_attributes(folder.out)
    made_of = attributes.get("copcube_plan"), attributes.get("copcube_rows")
    return made_of == (plan.id, rows) and not folder.is_replacing()


def is_undamaged(folder: BuildFolder) -> bool:
    """Whether the finished cube is undamaged; if not, log what is wrong."""
    problems = cube.problems(folder.out)
    for problem in problems[:3]:
        log.warning("%s: %s", folder.out, problem)
    if problems:
        folder.require_nothing_added()
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        log.warning("because of that%s, the cube is made again from its rows", more)
    return not problems


def _known_survey(folder: BuildFolder) -> bytes | None:
    try:
        return folder.files.read("survey.json")
    except FileNotFoundError:
        return None
