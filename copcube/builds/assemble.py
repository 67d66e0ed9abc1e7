"""Rows to cube: combine the parts to cells, write the bands, put the cube in its place."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from copcube import aggregate, cube
from copcube.aggregate import Aggregation, Part, Survey
from copcube.builds.folder import BuildFolder, Receipt
from copcube.builds.plan import Plan
from copcube.cells import Cells, read_cells, write_cells
from copcube.errors import BuildError
from copcube.grid import N_BANDS
from copcube.progress import stage


def assemble(
    folder: BuildFolder,
    plan: Plan,
    aggregation: Aggregation,
    files: Sequence[Path],
    facts: Mapping[str, str | int],
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
    files : sequence of Path
        Files of rows, in a fixed order.
    facts : mapping
        Further attributes for the cube.

    Raises
    ------
    BuildError
        If no row is left to aggregate.
    """
    parts = aggregate.parts(files)
    survey = aggregate.survey(parts, aggregation)
    if not survey.images:
        raise BuildError(
            f"{plan.source}: no image is left to make a cube of; the modalities and dates chosen "
            f"admit none, or all were rejected ({folder.quarantine} says why)"
        )
    names = [f"{i:06d}" for i in range(len(parts))]
    with stage("combining", len(parts), "parts") as bar:
        for name, part in zip(names, parts, strict=True):
            if folder.receipt(plan, "combine", name) is None:
                combine_unit(folder, plan, name, part, aggregation, survey)
            bar.advance()
    for i, cells in enumerate(aggregate.combine_split(parts, aggregation, survey)):
        names.append(f"split-{i:06d}")
        write_cells(folder.cells / f"{names[-1]}.arrow", cells)
    if folder.receipt(plan, "create", "cube") is None:
        shutil.rmtree(folder.cube, ignore_errors=True)
        attributes = {**_attributes(plan, survey), **facts}
        cube.create(
            folder.cube, dim=survey.dim, by=aggregation.by, groups=survey.groups, attrs=attributes
        )
        folder.sign(plan, "create", "cube", sorted(folder.cube.rglob("zarr.json")), {})
    with stage("writing", N_BANDS, "bands") as bar:
        for band in range(N_BANDS):
            if folder.receipt(plan, "write", f"{band:02d}") is None:
                write_unit(folder, plan, band, [folder.cells / f"{name}.arrow" for name in names])
            bar.advance()
    cube.finish(folder.cube)
    folder.cube.rename(folder.out)
    _sweep(folder)


def combine_unit(
    folder: BuildFolder, plan: Plan, name: str, part: Part, aggregation: Aggregation, survey: Survey
) -> Receipt:
    """Combine the rows of one part to the statistics of its whole cells, sign for them."""
    path = folder.cells / f"{name}.arrow"
    cells = aggregate.combine(part, aggregation, survey)
    write_cells(path, cells)
    return folder.sign(plan, "combine", name, [path], {"cells": len(cells)})


def write_unit(folder: BuildFolder, plan: Plan, band: int, files: Sequence[Path]) -> Receipt:
    """Write one band of blocks from the cells of all parts, sign for it."""
    cells = Cells.concatenate([read_cells(path, band) for path in files])
    written = cube.write_band(folder.cube, band, cells)
    return folder.sign(plan, "write", f"{band:02d}", written, {"cells": len(cells)})


def complete(folder: BuildFolder, plan: Plan) -> bool:
    """Whether the finished cube of this very plan is in its place."""
    if cube.read_attributes(folder.out).get("copcube_plan") != plan.id:
        return False
    _sweep(folder)
    return True


def _sweep(folder: BuildFolder) -> None:
    """Remove what only the making of a cube needs; rows, receipts and plan stay."""
    for scratch in (folder.cells, folder.replaced):
        shutil.rmtree(scratch, ignore_errors=True)
    for stage_name in ("combine", "create", "write"):
        shutil.rmtree(folder.path / "receipts" / stage_name, ignore_errors=True)


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
