"""The command probe: what vectors are worth, as a table, pictures and maps."""

import argparse
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from copcube.cli.common import TABLES, Arguments, Commands, columns, command, overwrite, positive
from copcube.cli.cubes import (
    add_cube,
    appears,
    chosen,
    cube_of,
    naming,
    require_form,
    save_fields,
)
from copcube.cli.look import DRAWN, add_fields, draw, statics_of
from copcube.errors import OptionError

if TYPE_CHECKING:
    import xarray as xr

log = logging.getLogger("copcube")


def add(commands: Commands) -> None:
    """Add the command to the parser."""
    probe = command(
        commands,
        "probe",
        naming(_probe, "cube", "given", "statistics"),
        "predict climate statistics from a cube, compared with coordinates",
        "copcube probe world.zarr era5_months.nc --given era5_static.nc --fields z,lsm\n"
        "  copcube probe world.zarr t2m.nc tp.nc --units tp=m/day --split blocks --out table.md\n"
        "  copcube probe fields.zarr era5_months.nc --plot errors.png --maps map.png",
        details="Prints the error of ridge regressions on test cells: mean ± standard deviation "
        "over the\nseeds, and the figures of Copernicus-FM's paper below. STATISTICS are monthly "
        "means, or\nmeans and standard deviations with such names (t2m_mean, t2m_std).",
    )
    add_cube(probe)
    probe.add_argument(
        "statistics", metavar="STATISTICS", nargs="+", help="files of ERA5: NetCDF, GRIB or Zarr"
    )
    probe.add_argument("--given", metavar="STATICS", help="fields that a weather model has")
    add_fields(probe)
    probe.add_argument(
        "--inputs",
        metavar="NAMES",
        type=_names,
        help="such as lonlat,fourier,pc16+given (default: those of the paper, and more)",
    )
    probe.add_argument(
        "--k", metavar="NUMBERS", type=_counts, help="numbers of components (default: 1,2,4 to 512)"
    )
    probe.add_argument(
        "--variables", metavar="NAMES", type=_names, help="such as t2m,tp_mean (default: all)"
    )
    probe.add_argument(
        "--units", metavar="NAME=UNIT", type=_unit, action="append", help="such as tp=m/day"
    )
    probe.add_argument(
        "--cells",
        type=_count_or_all,
        default=10_000,
        help="how many cells, or all (default: 10000)",
    )
    probe.add_argument(
        "--sampling",
        choices=("cells", "area"),
        default="cells",
        help="draw cells with equal probability (default), or by area",
    )
    probe.add_argument(
        "--incomplete", action="store_true", help="also draw cells that lack a modality"
    )
    probe.add_argument(
        "--split",
        choices=("random", "blocks"),
        default="random",
        help="split by cells (default), or by squares",
    )
    probe.add_argument(
        "--block", type=float, metavar="DEGREES", help="side of a square (default: 10)"
    )
    probe.add_argument(
        "--shares",
        type=_shares,
        default=(0.6, 0.2, 0.2),
        metavar="A,B,C",
        help="shares of cells that train, validate and test (default: 0.6,0.2,0.2)",
    )
    probe.add_argument(
        "--solver",
        choices=("ridge", "descent", "sgd"),
        default="ridge",
        help="how the regression is fitted (default: ridge)",
    )
    probe.add_argument("--seeds", type=positive, default=3, help="how many runs (default: 3)")
    probe.add_argument(
        "--out", metavar="FILE", help="the table as .csv, .md or .tex, or everything as .nc"
    )
    probe.add_argument(
        "--plot", metavar="FILE", help="errors by number of components: .png, .pdf or .svg"
    )
    probe.add_argument("--maps", metavar="FILE", help="maps of residuals: .png, .pdf or .svg")
    probe.add_argument(
        "--residuals",
        metavar="INPUT",
        help="whose residuals --maps, or --out as .nc, shows (default: embedding, or the last)",
    )
    overwrite(probe)


def _probe(arguments: Arguments) -> None:
    from copcube import plot
    from copcube.era5.statics import open_fields
    from copcube.probes import probe

    outputs = ((arguments.out, (*TABLES, ".nc")), (arguments.plot, DRAWN), (arguments.maps, DRAWN))
    # Checked before anything is computed, which may take minutes.
    for path, forms in outputs:
        if path:
            require_form(path, forms, arguments)
    named = [Path(path) for path, _ in outputs if path]
    if len({*named}) < len(named):
        raise OptionError("--out, --plot and --maps name one file twice; choose different names")
    if arguments.names and not arguments.given:
        raise OptionError("--fields chooses among the fields of --given; add --given")
    if arguments.block is not None and arguments.split != "blocks":
        raise OptionError(
            "--block is the side of the squares of --split blocks; add --split blocks"
        )
    as_maps = bool(arguments.maps or (arguments.out and arguments.out.lower().endswith(".nc")))
    if arguments.residuals and not as_maps:
        raise OptionError("--residuals chooses what is mapped; add --maps FILE, or --out FILE.nc")
    # Maps show one input: the cube's own vectors, or the last of those listed.
    residuals = arguments.residuals
    if arguments.maps and not residuals:
        residuals = "embedding" if arguments.inputs is None else arguments.inputs[-1]
    found = probe(
        cube_of(arguments),
        [ds for path in arguments.statistics for ds in open_fields(path)],
        given=statics_of(arguments) if arguments.given else None,
        inputs=arguments.inputs,
        k=arguments.k,
        variables=arguments.variables,
        units=dict(arguments.units or ()),
        cells=arguments.cells,
        sampling=arguments.sampling,
        complete=not arguments.incomplete,
        split=arguments.split,
        shares=arguments.shares,
        seeds=arguments.seeds,
        solver=arguments.solver,
        residuals=residuals,
        **chosen(arguments, "block"),
    )
    _print(found)
    if arguments.out:
        _save(found, arguments)
    if arguments.plot:
        draw(plot.errors(found), Path(arguments.plot), arguments)
    if arguments.maps:
        draw(plot.residual_maps(found), Path(arguments.maps), arguments)


def _print(found: "xr.Dataset") -> None:
    """Print spreads below means: side by side they are wider than a terminal."""
    from copcube.probes.text import grid_of

    for statistic in ("mean", "std"):
        head, rows = grid_of(found, statistic)
        if len(head) > 1:
            columns(head, rows)


def _save(found: "xr.Dataset", arguments: Arguments) -> None:
    from copcube.probes import table

    out = Path(arguments.out)
    form = TABLES.get(out.suffix.lower())
    if form is None:
        save_fields(found, arguments)
        return
    with appears(out, arguments) as temporary:
        temporary.write_text(table(found, form), "utf-8")  # type: ignore[arg-type]
    log.info("%s is done", out)


def _names(text: str) -> list[str]:
    return [name for part in text.split(",") if (name := part.strip())]


def _counts(text: str) -> list[int]:
    return [positive(part.strip()) for part in text.split(",")]


def _count_or_all(text: str) -> int | None:
    return None if text == "all" else positive(text)


def _unit(text: str) -> tuple[str, str]:
    name, found, unit = text.partition("=")
    if not found:
        raise argparse.ArgumentTypeError(f"expected NAME=UNIT, such as tp=m/day, got {text!r}")
    return name, unit


def _shares(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"expected three numbers, such as 0.6,0.2,0.2, got {text!r}"
        ) from None
