"""Driving a stage: hand its units to the crew, count what is done, try again what failed."""

from collections.abc import Callable, Iterable
from typing import Any

from copcube.builds.executors import Crew, KilledError, Outcome, Task
from copcube.builds.folder import BuildFolder, to_json
from copcube.errors import BuildError, CopcubeError
from copcube.progress import Stage

ROUNDS = 3
"""How often a unit that could not read is tried."""

HOPELESS = 10
"""Failures without a single success after which a stage is given up."""

Counts = dict[str, Any]


def drive(
    crew: Crew,
    function: Callable[..., Counts],
    tasks: Iterable[Task],
    bar: Stage,
    name: Callable[[Task], str],
    folder: BuildFolder,
    *,
    embeds: bool = False,
    size: Callable[[Counts], int] = lambda counts: 1,
    done: Callable[[Task, Counts], None] = lambda task, counts: None,
    killed: Callable[[Task, KilledError], None] | None = None,
) -> None:
    """Do the units of one stage.

    A unit that fails to read is tried again after all others, as network file systems
    recover; one that fails otherwise is left for the next run, and the others go on. What
    failed, and why, stands in the build's folder.

    Parameters
    ----------
    crew : Crew
        Who does them.
    function : callable
        What does one.
    tasks : iterable
        The units.
    bar : Stage
        What shows the progress.
    name : callable
        Names a unit for people and files.
    folder : BuildFolder
        Where failures are noted.
    embeds : bool
        Whether the units embed.
    size : callable
        How much a unit counts in the bar.
    done : callable
        Called with every unit that is done, and its counts.
    killed : callable, optional
        Called with every unit that kills its worker; without, it counts as failed.

    Raises
    ------
    BuildError
        In the end, if units failed, naming them; or if all do.
    CopcubeError
        At once, where nothing can go on: a full disk, another encoder, a strict build's
        broken image.
    """
    failed: dict[str, Exception] = {}
    successes = 0

    def advance(units: int) -> None:
        folder.check_lock()
        bar.advance(units)

    for attempt in range(1, ROUNDS + 1):
        again: list[Task] = []
        for task, outcome in crew.run(function, tasks, advance=advance, embeds=embeds):
            folder.check_lock()
            if killed is not None and isinstance(outcome, KilledError):
                killed(task, outcome)
                bar.advance(0)
            elif isinstance(outcome, Exception):
                _raise_if_final(outcome)
                failed[name(task)] = outcome
                _note(folder, name(task), outcome, attempt)
                if isinstance(outcome, OSError):
                    again.append(task)
                if not successes and len(failed) >= HOPELESS:
                    raise _error(failed, folder) from outcome
            else:
                if failed.pop(name(task), None):
                    folder.files.remove(f"failed/{name(task)}.json")
                successes += 1
                done(task, outcome)
                bar.advance(0 if crew.counts_units else size(outcome))
        tasks = again
        if not again:
            break
    if failed:
        raise _error(failed, folder) from next(iter(failed.values()))


def _raise_if_final(outcome: Outcome) -> None:
    if isinstance(outcome, CopcubeError) and not isinstance(outcome, KilledError):
        raise outcome


def _note(folder: BuildFolder, name: str, error: Exception, attempt: int) -> None:
    reason = f"{type(error).__name__}: {error}"
    folder.files.write(f"failed/{name}.json", to_json({"reason": reason, "attempts": attempt}))


def _error(failed: dict[str, Exception], folder: BuildFolder) -> BuildError:
    lines = [f"  {name}: {type(e).__name__}: {e}" for name, e in sorted(failed.items())[:5]]
    more = [f"  and {len(failed) - 5} more"] if len(failed) > 5 else []
    return BuildError(
        "\n".join([f"{len(failed)} units of {folder.path} failed:", *lines, *more])
        + "\nEverything else is kept; the same command tries them again"
    )
