"""Commands that use cubes: info, validate, reduce, merge, export, convert, compare."""

import argparse
import logging
from pathlib import Path

from copcube.cli.common import (
    Arguments,
    Commands,
    command,
    overwrite,
    positive,
    say,
    show,
    table,
)
from copcube.cli.cubes import (
    CUBE,
    add_cube,
    add_groups,
    chosen,
    cube_of,
    groups_of,
    inputs,
    naming,
    open_any,
    require_output,
    save,
    warn_of,
)
from copcube.cli.look import add_fields, statics_of
from copcube.errors import OptionError

log = logging.getLogger("copcube")


def add(commands: Commands) -> None:
    """Add the commands to the parser."""
    _add_info(commands)
    _add_validate(commands)
    _add_reduce(commands)
    _add_merge(commands)
    _add_export(commands)
    _add_convert(commands)
    _add_compare(commands)


def _add_info(commands: Commands) -> None:
    info = command(
        commands,
        "info",
        _info,
        "show what a cube or a reduction holds",
        "copcube info world.zarr\n  copcube info fields.zarr",
    )
    info.add_argument("cube", metavar="CUBE", help="a reduction, or " + CUBE)


def _add_validate(commands: Commands) -> None:
    validate = command(
        commands,
        "validate",
        naming(_validate, "cube"),
        "check that a cube is complete and correct",
        "copcube validate world.zarr",
    )
    validate.add_argument("cube", metavar="CUBE.zarr")


def _add_reduce(commands: Commands) -> None:
    reduce = command(
        commands,
        "reduce",
        naming(_reduce, "cube", "basis", "given"),
        "reduce a cube to its principal components",
        "copcube reduce world.zarr fields.zarr --k 16\n"
        "  copcube reduce embed_map_310k.npz fields.nc --k 0.95\n"
        "  copcube reduce world.zarr news.zarr --given era5_static.nc --fields z,lsm,sdor,slor",
        details="The basis is kept beside the components, to project other cubes on it (--basis).",
    )
    add_cube(reduce, what=CUBE)
    reduce.add_argument("out", metavar="OUT", help=".zarr or .nc")
    reduce.add_argument(
        "--k",
        type=_count_or_share,
        default=16,
        help="how many components, or, below 1, the share of variance to keep (default: 16)",
    )
    reduce.add_argument(
        "--weights",
        choices=("area", "none"),
        default="area",
        help="weight cells by their area (default), or all equally",
    )
    reduce.add_argument("--whiten", action="store_true", help="give components unit variance")
    reduce.add_argument(
        "--basis", metavar="FIELDS", help="project on the basis of another reduction instead"
    )
    reduce.add_argument(
        "--given",
        metavar="STATICS",
        help="reduce the residual of a regression on these fields: NetCDF, GRIB or Zarr",
    )
    add_fields(reduce)
    reduce.add_argument(
        "--degree",
        type=int,
        choices=(1, 2, 3),
        default=1,
        help="also regress on products of up to this many given fields (default: 1, no products)",
    )
    _saved(reduce)


def _add_merge(commands: Commands) -> None:
    merge = command(
        commands,
        "merge",
        naming(_merge, "cube", "era5"),
        "put a cube or a reduction beside ERA5 fields, on their grid",
        "copcube merge fields.zarr era5_static.nc both.nc",
    )
    add_cube(merge, "FIELDS")
    merge.add_argument("era5", metavar="ERA5", help="static fields: NetCDF, GRIB or Zarr")
    merge.add_argument("out", metavar="OUT", help=".nc or .zarr")
    merge.add_argument(
        "--fill", type=float, metavar="VALUE", help="fill missing cells with this instead of NaN"
    )
    merge.add_argument("--mask", action="store_true", help="add a mask of cells with vectors")
    _saved(merge)


def _saved(command: argparse.ArgumentParser) -> None:
    """Add the options for output saved as .zarr or .nc."""
    _layout(command, "first in .nc, last in .zarr")
    command.add_argument(
        "--zarr-format",
        type=int,
        choices=(3, 2),
        help="version of .zarr (default: 3); 2 for old readers",
    )
    overwrite(command)


def _layout(command: argparse.ArgumentParser, default: str) -> None:
    command.add_argument(
        "--layout",
        choices=("first", "separate", "last"),
        help="components before latitude and longitude (first), one variable each (separate), or "
        f"after them (last); default: {default}",
    )


def _add_export(commands: Commands) -> None:
    export = command(
        commands,
        "export",
        naming(_export, "cube", "statics"),
        "write a cube or a reduction in a published format, or as a weather model reads it",
        "copcube export fields.zarr fields.npz\n"
        "  copcube export world.zarr world.tif --order era5 --dtype int8\n"
        "  copcube export fields.zarr fields.npy --rows 720\n"
        "  copcube export fields.zarr invariants.h5 --for makani -k 8 --statics era5_static.nc",
        details="The extension of OUT chooses the format: .npz, .npy, .pt, .tif, .nc or .parquet.\n"
        "With --for it must be that of the model's files; components are then standardised.\n"
        "If a format lacks an option, the error lists those it has.",
    )
    add_cube(export)
    export.add_argument("out", metavar="OUT")
    export.add_argument(
        "--order",
        choices=("published", "era5"),
        help="columns from 180°W, or from 0°E as in ERA5 (default only for .npy)",
    )
    export.add_argument(
        "--dtype",
        choices=("float32", "float16", "int8"),
        help="type of the stored values (default: float32)",
    )
    _layout(export, "first in .nc, and separate for int8; last in .npy")
    export.add_argument(
        "--rows",
        type=int,
        choices=(721, 720),
        help="for .npy, makani and aurora: all rows, or without the south pole",
    )
    _for_models(export)
    export.add_argument(
        # Neither is the default here, since each format has its own.
        "--compress",
        action=argparse.BooleanOptionalAction,
        help="deflate (default for .tif and .nc), or not (default for .npz)",
    )
    export.add_argument(
        "--compat", choices=("rs-embed",), help="for .tif: refuse what this reader would refuse"
    )
    overwrite(export)


def _for_models(export: argparse.ArgumentParser) -> None:
    """Add the options of files for weather models."""
    models = export.add_argument_group("files for weather models")
    models.add_argument(
        "--for",
        dest="model",
        choices=(
            # Repeated here: the modules that write them import xarray, which --help must not.
            *("makani", "aurora", "graphcast", "weathernext", "pangu"),
            *("aifs", "anemoi", "neuralgcm", "neural-lam", "weathergenerator"),
        ),
        help="the model that will read the file",
    )
    models.add_argument("-k", type=positive, help="how many components (default: 8)")
    models.add_argument(
        "--statics",
        metavar="STATICS",
        help="ERA5's fields; the model's own are put before the components: NetCDF, GRIB or Zarr",
    )
    models.add_argument(
        "--grid",
        metavar="GRID",
        help="for neuralgcm: TL63 (default), TL127, TL255; for neural-lam: a file with latitude "
        "and longitude of every point",
    )
    models.add_argument(
        "--stations",
        metavar="TABLE",
        help="for weathergenerator: .csv or .parquet with lat and lon (default: all cells)",
    )


def _add_convert(commands: Commands) -> None:
    convert = command(
        commands,
        "convert",
        naming(_convert, "map"),
        "turn a published map into a Zarr cube",
        "copcube convert embed_map_310k.npz world.zarr",
        details="For the published embeddings of images (full_chunks) see copcube aggregate.",
    )
    convert.add_argument("map", metavar="IN", help=".npz, .pt, .tif, or .parquet of averages")
    convert.add_argument("out", metavar="OUT.zarr")
    overwrite(convert)


def _add_compare(commands: Commands) -> None:
    compare = command(
        commands,
        "compare",
        naming(_compare, "a", "b", "rows"),
        "measure how far two cubes agree",
        "copcube compare world.zarr embed_map_310k.npz\n"
        "  copcube compare --rows world.build/rows world.zarr",
        details="With --rows, finds the order in which the rows were averaged to make the cube.",
    )
    compare.add_argument("a", metavar="A", help=CUBE)
    compare.add_argument("b", metavar="B", nargs="?")
    compare.add_argument(
        "--rows", metavar="ROWS", help="embeddings of images of which A may be the average"
    )
    add_groups(compare)


def _info(arguments: Arguments) -> None:
    from copcube.cube.store import read_attributes
    from copcube.cube.summary import cube_lines, of_whole_globe, reduction_lines

    path: str = arguments.cube
    # Decided by the attributes alone, as opening a large cube takes longer. Parts that users saved
    # have the same attributes.
    if "copcube_schema" in read_attributes(path) and of_whole_globe(path):
        show(path)
        return
    ds = open_any(path)
    table(path, reduction_lines(ds, path) if "pc" in ds else cube_lines(ds, path))


def _validate(arguments: Arguments) -> int:
    from copcube.builds import validate_rows
    from copcube.cube import validate
    from copcube.cube.store import read_attributes

    warn_of(read_attributes(arguments.cube), arguments.cube)
    problems = [*validate(arguments.cube), *validate_rows(arguments.cube)]
    for problem in problems:
        say(problem)
    if Path(arguments.cube).is_file():
        say("files are not examined; `copcube info` shows what a map or an export holds")
    if not problems:
        say(f"{arguments.cube}: a valid embedding cube")
    return 1 if problems else 0


def _reduce(arguments: Arguments) -> None:
    from copcube.pca.components import project, reduce

    require_output(arguments)
    if arguments.names and not arguments.given:
        raise OptionError("--fields chooses among the fields of --given; add --given")
    cube = cube_of(arguments)
    given = statics_of(arguments) if arguments.given else None
    if arguments.basis:
        fields = project(cube, open_any(arguments.basis), given=given)
    else:
        fields = reduce(
            cube,
            arguments.k,
            weights=None if arguments.weights == "none" else "area",
            whiten=arguments.whiten,
            given=given,
            degree=arguments.degree,
        )
    if given is not None:
        explained = fields.attrs["reduction_given_explains"]
        log.info("the given fields explain %.1f %% of variance", 100 * explained)
    share = float(fields.explained_variance_ratio.sum())
    whose = "variance" if given is None else "the remaining variance"
    log.info("%d components explain %.1f %% of %s", fields.sizes["component"], 100 * share, whose)
    save(fields, arguments)


def _merge(arguments: Arguments) -> None:
    from copcube.era5 import merge, open_static

    require_output(arguments)
    both = merge(
        cube_of(arguments),
        open_static(arguments.era5),
        fill=arguments.fill,
        mask=arguments.mask,
    )
    save(both, arguments)


def _export(arguments: Arguments) -> None:
    from copcube.interchange import export
    from copcube.interchange.replacing import require_free

    require_free(arguments.out, arguments.overwrite, *inputs(arguments))
    # Only what was given: each format has its own defaults, and refuses unknown options.
    options = chosen(arguments, "order", "dtype", "layout", "rows", "compress", "compat")
    of_models = chosen(arguments, "k", "statics", "grid", "stations")
    if arguments.model is not None:
        from copcube import models

        options |= of_models | {"overwrite": arguments.overwrite}
        say(models.write(cube_of(arguments), arguments.out, arguments.model, **options))
        return
    if of_models:
        names = ", ".join(f"{'-' if len(name) == 1 else '--'}{name}" for name in of_models)
        raise OptionError(f"{names}: for files of weather models; choose the model with --for")
    say(export(cube_of(arguments), arguments.out, overwrite=arguments.overwrite, **options))


def _convert(arguments: Arguments) -> None:
    from copcube.interchange import convert

    say(convert(arguments.map, arguments.out, overwrite=arguments.overwrite))


def _compare(arguments: Arguments) -> None:
    from copcube.cube.averaging import averaging_order
    from copcube.cube.compare import compare

    # ROWS takes the place of B, which argparse cannot express for a positional argument.
    if (arguments.b is None) == (arguments.rows is None):
        raise OptionError("compare takes two cubes, or --rows ROWS and one cube")
    if arguments.rows is not None:
        if arguments.groups is not None:
            raise OptionError("--groups is for two cubes; leave it out with --rows")
        say(averaging_order(arguments.rows, open_any(arguments.a)))
    else:
        say(compare(*groups_of(open_any(arguments.a), open_any(arguments.b), arguments.groups)))


def _count_or_share(text: str) -> int | float:
    """Read a number of components, or a share of variance below 1."""
    try:
        # So 1 is one component; 1.0 would be a share, all of the variance, and is refused.
        return int(text) if text.isdigit() else float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"expected a number of components or a share of variance, got {text!r}"
        ) from None
