"""The command bench: Copernicus-Bench with a frozen encoder, in one table."""

import argparse
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from copcube.cli.common import (
    TABLES,
    Arguments,
    Commands,
    add_model,
    columns,
    command,
    overwrite,
    positive,
)
from copcube.cli.cubes import add_group, appears, cube_of, require_form
from copcube.errors import OptionError

if TYPE_CHECKING:
    from copcube.probes.bench import Benched, Result

log = logging.getLogger("copcube")

_OF_IMAGES = (
    *("probe", "area", "weights", "language", "device", "dtype", "seeds", "epochs"),
    *("levels", "stream", "cache"),
)
"""Options that do not apply to a cube's own vectors: those of images, encoder and heads."""


def add(commands: Commands) -> None:
    """Add the command to the parser."""
    bench = command(
        commands,
        "bench",
        _bench,
        "run tasks of Copernicus-Bench with the frozen encoder",
        "copcube bench eurosat-s1 eurosat-s2 --root copernicusbench\n"
        "  copcube bench all --root copernicusbench --probe fast --out results.json "
        "--out table.md\n"
        "  copcube bench lcz-s2 --root copernicusbench --weights large --seeds 1\n"
        "  copcube bench all --root copernicusbench --cube world.zarr",
        details="Prints the scores, and beside them the published ones of a random ViT-B and of\n"
        "Copernicus-FM, in parentheses if the protocol differs. Tasks: "
        "eurosat-s1, eurosat-s2,\n"
        "bigearthnet-s1, bigearthnet-s2, lc100cls-s3, lcz-s2 (classes of images); cloud-s2,\n"
        "cloud-s3, dfc2020-s1, dfc2020-s2, lc100seg-s3, flood-s1 (of pixels); biomass-s3,\n"
        "aq-no2-s5p, aq-o3-s5p (numbers). `copcube fetch bench TASK` downloads their data. A task\n"
        "that fails does not stop the others; the exit code is then 1. The same command continues\n"
        "where it was stopped. With --cube, labels of whole cells (lc100cls-s3, biomass-s3,\n"
        "aq-no2-s5p, aq-o3-s5p) are predicted from its own vectors, and no image is read.",
    )
    bench.add_argument("tasks", metavar="TASK", nargs="+", help="names of tasks, or all")
    bench.add_argument("--root", metavar="DIR", required=True, help="folder of the data")
    bench.add_argument("--cube", metavar="CUBE", help="a cube whose own vectors are used instead")
    add_group(bench)
    bench.add_argument(
        "--probe",
        choices=("official", "fast"),
        default="official",
        help="as published (default), or neighbours and linear models, without seeds",
    )
    bench.add_argument(
        "--area",
        choices=("official", "true"),
        default="official",
        help="area of a token given to the encoder: the published one (default), or the true one",
    )
    add_model(bench)
    bench.add_argument(
        "--dtype",
        choices=("auto", "float32", "bfloat16"),
        default="float32",
        help="precision (default: float32, as published)",
    )
    bench.add_argument("--seeds", type=positive, default=3, help="how many runs (default: 3)")
    bench.add_argument(
        "--epochs", type=positive, default=50, help="training epochs (default: 50, as published)"
    )
    bench.add_argument(
        "--resamples",
        type=_natural,
        default=200,
        help="how many, for intervals; 0: none (default: 200)",
    )
    bench.add_argument(
        "--levels",
        choices=("four", "last"),
        default="four",
        help="blocks whose tokens the linear heads use (default: four)",
    )
    bench.add_argument(
        "--stream", action="store_true", help="keep no tokens; each epoch embeds images again"
    )
    bench.add_argument(
        "--cache", metavar="DIR", help="folder of vectors and results (default: the user's)"
    )
    bench.add_argument(
        "--out",
        metavar="FILE",
        action="append",
        default=[],
        help="results as .json, to which this run adds its own; a table as .csv, .md or "
        ".tex; may be given several times",
    )
    overwrite(bench)
    bench.set_defaults(of_images={name: bench.get_default(name) for name in _OF_IMAGES})


def _bench(arguments: Arguments) -> int:
    from copcube.cube.store import reading
    from copcube.probes.bench import bench, bench_cells
    from copcube.probes.bench.catalogue import TASKS
    from copcube.probes.bench.results import read_results

    for path in arguments.out:
        if Path(path).suffix.lower() == ".json" and Path(path).exists():
            read_results(path)  # which are extended, not replaced
        else:
            require_form(path, (".json", *TABLES), arguments)
    # What "all" means depends on the input: images, or whole cells of a cube.
    tasks = None if arguments.tasks == ["all"] else arguments.tasks
    if arguments.cube:
        usual = arguments.of_images
        if given := [f"--{name}" for name in usual if getattr(arguments, name) != usual[name]]:
            raise OptionError(
                f"{', '.join(given)}: for images and their encoder; --cube uses the cube's own "
                "vectors: leave it out"
            )
        with reading(arguments.cube):
            cube = cube_of(arguments)
            found = bench_cells(cube, arguments.root, tasks, resamples=arguments.resamples)
        return _report(found, arguments)
    if arguments.group is not None:
        raise OptionError("--group is for a cube; give one with --cube, or leave it out")
    if arguments.levels == "last" and arguments.probe != "fast":
        raise OptionError("--levels is for the linear heads of --probe fast; add --probe fast")
    found = bench(
        [*TASKS] if tasks is None else tasks,
        arguments.root,
        probe=arguments.probe,
        weights=arguments.weights,
        language=arguments.language,
        device=arguments.device,
        dtype=arguments.dtype,
        area=arguments.area,
        seeds=arguments.seeds,
        epochs=arguments.epochs,
        resamples=arguments.resamples,
        levels=arguments.levels,
        keep=not arguments.stream,
        cache=arguments.cache,
    )
    return _report(found, arguments)


def _report(found: "Benched", arguments: Arguments) -> int:
    """Print and write the results; return the exit code."""
    from copcube.probes.bench.results import grid_of

    if found.results:
        columns(*grid_of(found.results))
    for path in arguments.out:
        if found.results:
            _save(path, found.results, arguments)
    if found.failures:
        number = len(found.failures)
        tasks = f"{number} task{'s' * (number > 1)}"
        log.error("%s failed: %s", tasks, ", ".join(found.failures))
    return 1 if found.failures else 0


def _save(path: str, results: "list[Result]", arguments: Arguments) -> None:
    from copcube.probes.bench import bench_table, write_results
    from copcube.probes.bench.results import read_results

    form = TABLES.get(Path(path).suffix.lower())
    if form is None:
        # A repeated run replaces its former results; others stay, also those added meanwhile.
        before = read_results(path) if Path(path).exists() else []
        named = {(one.task, one.probe, str(one.provenance)): one for one in [*before, *results]}
        write_results(path, [*named.values()])
    else:
        with appears(path, arguments) as temporary:
            temporary.write_text(bench_table(results, form), "utf-8")  # type: ignore[arg-type]
    log.info("%s is done", path)


def _natural(text: str) -> int:
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"expected a whole number, 0 or more, got {text!r}")
    return int(text)
