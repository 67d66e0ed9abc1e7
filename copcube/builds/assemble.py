"""Rows to cube: combine the parts to cells, write the bands, put the cube in its place."""

from collections.abc import Mapping, Sequence
from typing import Any

from copcube import cube
from copcube.aggregate import Aggregation, Survey
from copcube.builds.executors import Crew
from copcube.builds.folder import BuildFolder
from copcube.builds.plan import Plan
from copcube.builds.stages import drive
from copcube.builds.tasks import AssembleTask, Surveyed, combine_unit, digest_of, write_unit
from copcube.errors import BuildError
from copcube.files.folders import folder as folder_at
from copcube.grid import N_BANDS
from copcube.progress import stage


def assemble(
    folder: BuildFolder,
    plan: Plan,
    aggregation: Aggregation,
    files: Sequence[str],
    facts: Mapping[str, Any],
    crew: Crew,
) -> None:
    """Make the cube of a plan from files of rows; go on where an earlier run stopped.

    Parameters
    ----------
    folder : BuildFolder
        Where the work is done.
    plan : Plan
        What is made.
    aggregation : Aggregation
        How cells are aggregated.
    files : sequence of str
        Files of rows, in a fixed order.
    facts : mapping
        Further attributes for the cube.
    crew : Crew
        Who combines and writes.

    Raises
    ------
    BuildError
        If no row is left to aggregate, or units failed.
    """
    found = Surveyed.of(files, aggregation)
    if not found.survey.images:
        raise BuildError(
            f"{plan.source}: no image is left to make a cube of; the modalities and dates chosen "
            f"admit none, or all were rejected ({folder.path}/quarantine.parquet says why)"
        )
    data = found.to_json()
    if _known_survey(folder) != data:
        folder.discard("cells", "cube.zarr")
        folder.files.write("survey.json", data)
    task = AssembleTask(folder.out, plan.id, digest_of(data), 0)
    _do(folder, crew, task, "combine", len(found.parts) + len(found.passes))
    if folder.receipt(task.work, "create", "cube") is None:
        folder.discard("cube.zarr")
        cube.create(
            folder.cube,
            dim=found.survey.dim,
            by=aggregation.by,
            groups=found.survey.groups,
            attrs={**_attributes(plan, found.survey), **facts},
        )
        metadata = [f"cube.zarr/{name}" for name in folder_at(folder.cube).names()]
        metadata = [name for name in metadata if name.endswith("zarr.json")]
        folder.sign(task.work, "create", "cube", metadata, {})
    _do(folder, crew, task, "write", N_BANDS)
    folder.require_lock()
    cube.finish(folder.cube)
    folder.publish()
    folder.sweep()


def complete(folder: BuildFolder, plan: Plan, rows: str) -> bool:
    """Whether the finished cube of this very plan and these very rows is in its place."""
    attributes = cube.read_attributes(folder.out)
    return (attributes.get("copcube_plan"), attributes.get("copcube_rows")) == (plan.id, rows)


def _do(folder: BuildFolder, crew: Crew, task: AssembleTask, name: str, number: int) -> None:
    """Do the units of one stage that are not done."""
    function, title, width, unit = {
        "combine": (combine_unit, "combining", 6, "parts"),
        "write": (write_unit, "writing", 2, "bands"),
    }[name]
    names = [f"{i:0{width}d}" for i in range(number)]
    done = folder.receipts(task.work, name, names)
    todo = [
        AssembleTask(task.out, task.plan, task.survey, i)
        for i, unit_name in enumerate(names)
        if unit_name not in done
    ]
    with stage(title, number, unit, skip=len(done)) as bar:
        drive(crew, function, todo, bar, lambda t: f"{name}-{t.number:0{width}d}", folder)


def _known_survey(folder: BuildFolder) -> bytes | None:
    try:
        return folder.files.read("survey.json")
    except FileNotFoundError:
        return None


def _attributes(plan: Plan, survey: Survey) -> dict[str, str | int]:
    options, made_by = plan.options, dict(survey.provenance)
    crop = made_by.pop("crop", "")
    dates = f"{options['start'] or 'first'} to {options['end'] or 'last'}"
    return {
        **{key: int(text) if text in ("0", "1") else text for key, text in made_by.items()},
        "source": f"Copernicus Sentinel imagery, {plan.source}",
        "source_fingerprint": plan.fingerprint,
        "preprocessing": _PREPROCESSING.get(crop, "unknown: the rows do not say"),
        "aggregation": f"mean over {_BALANCE[options['balance']]}",
        "aggregation_by": options["by"] or "none",
        "modalities": " ".join(options["modalities"]),
        "dates": "all" if not options["start"] and not options["end"] else dates,
        "history": f"copcube {plan.version} {plan.kind} {plan.source}",
        "copcube_version": plan.version,
        "copcube_plan": plan.id,
    }


_BALANCE = {"modality": "the means of the modalities", "image": "all images alike"}
_GIVEN = "normalised with pretraining statistics, metadata (lon, lat, date, token area) given"
_PREPROCESSING = {
    "center": f"centre crop to the pretraining size, {_GIVEN}",
    "full": f"whole stored image, {_GIVEN}",
}
