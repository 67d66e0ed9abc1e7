"""Commands that look at cubes and print or draw what they see."""

import argparse
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from copcube.cli.common import Arguments, Commands, columns, command, overwrite, positive, say
from copcube.cli.cubes import (
    CUBE,
    add_cube,
    add_groups,
    appears,
    chosen,
    cube_of,
    groups_of,
    naming,
    open_any,
    place_in_cube,
    require_form,
    save_fields,
    warn_of,
)
from copcube.errors import OptionError
from copcube.files.limits import demand_piece
from copcube.files.regular import open_regular
from copcube.version import __version__

if TYPE_CHECKING:
    import xarray as xr
    from numpy.typing import NDArray

log = logging.getLogger("copcube")

DRAWN = {".png": "Software", ".pdf": "Creator", ".svg": "Creator"}
"""Formats of pictures, and the metadata key of each for the program that drew it."""

_OF_PICTURES = ("show", "component", "projection", "extent", "dpi", "save_basis")
"""Options that do not apply to a page, whose viewer chooses."""


def add(commands: Commands) -> None:
    """Add the commands to the parser."""
    _add_explain(commands)
    _add_similar(commands)
    _add_nearest(commands)
    _add_change(commands)
    _add_map(commands)


def _add_explain(commands: Commands) -> None:
    explain = command(
        commands,
        "explain",
        naming(_explain, "cube", "given"),
        "measure how well static fields and components explain each other",
        "copcube explain fields.zarr era5_static.nc --fields z,lsm,sdor,slor --plot r2.png",
        details="Prints R² of linear regressions over all cells, and over held-out cells in\n"
        "squares of 10°.",
    )
    add_cube(explain, "FIELDS", "a reduction")
    explain.add_argument("given", metavar="STATICS", help="static fields: NetCDF, GRIB or Zarr")
    add_fields(explain)
    explain.add_argument("--plot", metavar="OUT", help="also draw the table, as .png, .pdf or .svg")
    overwrite(explain)


def _add_similar(commands: Commands) -> None:
    similar = command(
        commands,
        "similar",
        naming(_similar, "cube"),
        "list the places most similar to one",
        "copcube similar world.zarr 48.1 11.6 --exclude-km 500\n"
        "  copcube similar fields.zarr -- -3.1 -60.0",
        details="Listed places are at least --exclude-km apart, since neighbours look alike.\n"
        "Write -- before a place with negative degrees. For embeddings in parquet files, see\n"
        "copcube nearest.",
    )
    place_in_cube(similar)
    _add_places(similar)


def _add_nearest(commands: Commands) -> None:
    nearest = command(
        commands,
        "nearest",
        naming(_nearest, "rows"),
        "list the rows or fragments of parquet files most similar to one, an image or a text",
        "copcube nearest Core-S2RGB-SigLIP --at 48.1 11.6\n"
        "  copcube nearest Core-S2RGB-SigLIP --text 'a salt lake'\n"
        "  copcube nearest world.build/rows --image field.tif --modality s2_toa --date 2024-07-01",
        details="ROWS is a parquet file, a folder or a glob: rows of a build, or embeddings of\n"
        "Major TOM. Those listed are at least --exclude-km apart, since neighbours look alike. An\n"
        "image is embedded by the encoder that ROWS name; of a larger image, the middle is used.",
    )
    nearest.add_argument("rows", metavar="ROWS")
    example = nearest.add_mutually_exclusive_group(required=True)
    example.add_argument(
        "--at", type=float, nargs=2, metavar=("LAT", "LON"), help="the one nearest to a place"
    )
    example.add_argument(
        "--row", type=int, metavar="N", help="a row, counted from 0 over all files"
    )
    example.add_argument("--vector", metavar="NPY", help="a vector of the same encoder")
    example.add_argument("--text", help="in English, for embeddings by SigLIP; needs open_clip")
    example.add_argument("--image", metavar="TIF", help="a GeoTIFF, or a product of Major TOM")
    nearest.add_argument("--modality", metavar="KEY", help="modality of the image, such as s2_toa")
    nearest.add_argument("--date", metavar="DAY", help="when it was taken, such as 2024-07-01")
    nearest.add_argument(
        "--weights", metavar="PATH", help="the encoder's (default: those that ROWS name)"
    )
    _add_places(nearest)


def _add_change(commands: Commands) -> None:
    change = command(
        commands,
        "change",
        naming(_change, "cube", "other"),
        "measure what changed from one cube to another of the same encoder",
        "copcube change 2020.zarr 2021.zarr change.nc\n"
        "  copcube change years.zarr years.zarr change.png --groups 2020 2021",
        details="Writes the distance of the two vectors of every cell, and the distance expected\n"
        "if nothing had changed, as .nc or .zarr, or a map of it as .png, .pdf or .svg. Lists\n"
        "the places that changed most, at least --exclude-km apart.",
    )
    change.add_argument("cube", metavar="A", help="a reduction, or " + CUBE)
    change.add_argument("other", metavar="B", help="the same")
    change.add_argument("out", metavar="OUT")
    add_groups(change)
    _add_places(change)
    overwrite(change)


def _add_places(command: argparse.ArgumentParser) -> None:
    command.add_argument("-n", type=positive, default=20, help="how many places (default: 20)")
    command.add_argument("--metric", choices=("cosine", "euclidean"), default="cosine")
    command.add_argument(
        "--exclude-km", type=float, default=100, metavar="KM", help="(default: 100)"
    )


def _add_map(commands: Commands) -> None:
    drawn = command(
        commands,
        "map",
        naming(_map, "cube", "basis"),
        "draw a map of a cube or a reduction",
        "copcube map fields.zarr world.png --projection Robinson\n"
        "  copcube map fields.zarr alps.pdf --show component --component 1 --extent 5 17 43 49\n"
        "  copcube map world.zarr world.html",
        details="The extension of OUT chooses the format: .png, .pdf or .svg for a picture; .html\n"
        "for one file below 20 MB that opens in a browser, offline, to pan and zoom, choose what\n"
        "is shown, and click for similar places. A page takes --group, --basis, --k, --overwrite.",
    )
    add_cube(drawn, what="a reduction, parquet files, or " + CUBE)
    drawn.add_argument("out", metavar="OUT")
    drawn.add_argument(
        "--show",
        choices=("rgb", "component", "counts", "spread", "coverage"),
        help="three components as colours (default), one component, or one of the other variables",
    )
    # No defaults from here on: an option that does not apply to the format is refused if given.
    drawn.add_argument("--component", type=int, help="which one (default: 0, the first)")
    drawn.add_argument("--basis", metavar="FIELDS", help="the reduction whose axes are used")
    drawn.add_argument(
        "--save-basis",
        metavar="NC",
        help="for parquet files: write the basis found, for use with --basis in other regions",
    )
    drawn.add_argument(
        "--projection", metavar="NAME", help="one of cartopy's, such as Robinson (default: degrees)"
    )
    drawn.add_argument(
        "--extent",
        nargs=4,
        type=float,
        metavar=("WEST", "EAST", "SOUTH", "NORTH"),
        help="in degrees (default: that of the cube)",
    )
    drawn.add_argument("--dpi", type=positive, help="resolution of .png (default: 150)")
    drawn.add_argument(
        "--k", type=positive, metavar="K", help="most components in .html (default: 16)"
    )
    overwrite(drawn)


def add_fields(command: argparse.ArgumentParser) -> None:
    """Add the option that chooses among static fields."""
    command.add_argument(
        "--fields",
        dest="names",
        metavar="NAMES",
        help="which of STATICS, such as z,lsm (default: all)",
    )


def _explain(arguments: Arguments) -> None:
    from copcube.pca import explain

    out = None if arguments.plot is None else require_form(arguments.plot, DRAWN, arguments)
    found = explain(cube_of(arguments), statics_of(arguments))
    for what, by in (("component", "static fields"), ("static", "components")):
        seen, unseen = found[f"{what}_r2"].values, found[f"{what}_r2_held_out"].values
        columns(
            (what, f"R² by {by}", "held out"),
            (
                (str(name), f"{a:.3f}", f"{b:.3f}")
                for name, a, b in zip(found[what].values.tolist(), seen, unseen, strict=True)
            ),
        )
    if out is not None:
        from copcube.plot import explained

        draw(explained(found), out, arguments)


def _similar(arguments: Arguments) -> None:
    from copcube.lookup import similar

    found = similar(
        cube_of(arguments),
        arguments.lat,
        arguments.lon,
        n=arguments.n,
        metric=arguments.metric,
        exclude_km=arguments.exclude_km,
    )
    what = "distance" if arguments.metric == "euclidean" else "similarity"
    names = ("place_lat", "place_lon", f"place_{what}")
    columns(
        ("latitude", "longitude", what),
        (
            (f"{lat:.2f}", f"{lon:.2f}", f"{value:.4f}")
            for lat, lon, value in zip(*(found[name].values for name in names), strict=True)
        ),
    )


def _nearest(arguments: Arguments) -> None:
    from copcube.lookup import Fragments

    options = ("row", "text", "image", "modality", "date", "n", "metric", "exclude_km")
    found = Fragments.open(arguments.rows).nearest(
        *(arguments.at or ()),
        vector=_vector(arguments.vector),
        encoder=arguments.weights,
        **{name: getattr(arguments, name) for name in options},
    )
    warn_of(found.attrs, arguments.rows)
    what = "distance" if arguments.metric == "euclidean" else "similarity"
    more = [name for name in ("cell", "product", "modality", "date") if f"place_{name}" in found]
    names = ["lat", "lon", what, *more, "number"]
    columns(
        ("latitude", "longitude", *names[2:]),
        (
            (f"{lat:.4f}", f"{lon:.4f}", f"{value:.4f}", *map(str, others))
            for lat, lon, value, *others in zip(
                *(found[f"place_{name}"].values for name in names), strict=True
            )
        ),
    )


def _vector(path: str | None) -> "NDArray[Any] | None":
    """Read a vector from a NumPy file; objects, which could run code, are refused."""
    import numpy as np

    from copcube.interchange.npz import array_header

    if path is None:
        return None
    try:
        with open_regular(path, OptionError) as file:
            shape, _, dtype = array_header(file)
            demand_piece(f"--vector {path}", "its array", shape, dtype.itemsize, OptionError)
            file.seek(0)
            return np.lib.format.read_array(file, allow_pickle=False)
    except OptionError:
        raise
    except (OSError, ValueError) as error:
        raise OptionError(f"--vector {path}: not a readable .npy file ({error})") from error


def _map(arguments: Arguments) -> None:
    form, forms = Path(arguments.out).suffix.lower(), (*DRAWN, ".html")
    others = _OF_PICTURES if form == ".html" else ("k",)
    unknown = [
        f"--{name.replace('_', '-')}" for name in others if getattr(arguments, name) is not None
    ]
    # An unknown extension is refused next, with a list of what may be given.
    if form in forms and unknown:
        raise OptionError(f"{form} has no option {', '.join(unknown)}; leave it out")
    out = require_form(arguments.out, forms, arguments)
    if form == ".html":
        _page(arguments)
    else:
        _picture(arguments, out)


def _page(arguments: Arguments) -> None:
    from copcube.lookup.fragment_files import holds_fragments
    from copcube.plot import page

    if holds_fragments(arguments.cube):
        raise OptionError(
            f"{arguments.cube} holds embeddings of images, but a page shows cubes; choose "
            f"{', '.join(DRAWN)}, or make a cube of them with `copcube aggregate`"
        )
    basis = None if arguments.basis is None else open_any(arguments.basis)
    options = {"basis": basis, "overwrite": arguments.overwrite, **chosen(arguments, "k")}
    say(page(cube_of(arguments), arguments.out, **options))


def _picture(arguments: Arguments, out: Path) -> None:
    from copcube import plot
    from copcube.lookup.fragment_files import holds_fragments

    options = {"projection": arguments.projection, "extent": arguments.extent}
    # Published averages, a form of cube, are parquet too, so the columns decide.
    if holds_fragments(arguments.cube):
        draw(_fragments(arguments, options), out, arguments, arguments.dpi)
        return
    if arguments.save_basis is not None:
        raise OptionError(f"--save-basis is for parquet files; {arguments.cube} is a cube")
    show = arguments.show or "rgb"
    if arguments.component is not None and show != "component":
        raise OptionError(f"--component needs --show component; {show} is shown")
    if arguments.basis is not None and show not in ("rgb", "component"):
        raise OptionError(f"--basis is for components, but {show} is shown; leave it out")
    ds = cube_of(arguments)
    match show:
        case "rgb" | "component":
            basis = None if arguments.basis is None else open_any(arguments.basis)
            which = () if show == "rgb" else (arguments.component or 0,)
            axes = getattr(plot, show)(ds, *which, basis=basis, **options)
        case _:
            axes = getattr(plot, show)(ds, **options)
    draw(axes, out, arguments, arguments.dpi)


def _fragments(arguments: Arguments, options: dict[str, Any]) -> Any:
    """Draw fragments on a given basis, or on their own, which may be saved."""
    from copcube import plot
    from copcube.era5.statics import open_fields
    from copcube.interchange.netcdf import write_by_xarray
    from copcube.interchange.replacing import require_free
    from copcube.lookup import Fragments, fit_fragments

    if arguments.show not in (None, "rgb") or arguments.component is not None:
        raise OptionError("for parquet files only three components can be shown, as colours")
    if arguments.group is not None:
        raise OptionError(f"--group is for cubes; {arguments.cube} holds embeddings of images")
    if arguments.save_basis is not None:
        if arguments.basis is not None:
            raise OptionError("give --save-basis or --basis, not both")
        # Checked before the basis is computed, which may take minutes.
        if Path(arguments.save_basis).suffix.lower() != ".nc":
            raise OptionError(f"--save-basis {arguments.save_basis}: expected .nc")
        require_free(Path(arguments.save_basis), arguments.overwrite, arguments.cube)
    found = Fragments.open(arguments.cube)
    basis = fit_fragments(found) if arguments.basis is None else open_fields(arguments.basis)[0]
    if arguments.save_basis is not None:
        with appears(arguments.save_basis, arguments) as temporary:
            write_by_xarray(basis, temporary, {})
    return plot.fragments(found, basis=basis, **options)


def draw(axes: Any, out: Path, arguments: Arguments, dpi: int | None = None) -> None:
    """Write a picture, which appears when complete and names the program that drew it."""
    # Given explicitly, since matplotlib would use the extension of the temporary name.
    form = out.suffix.lower()
    drawn_by = {DRAWN[form]: f"copcube {__version__}"}
    with appears(out, arguments) as temporary:
        axes.figure.savefig(temporary, format=form[1:], dpi=dpi or 150, metadata=drawn_by)
    log.info("%s is done", out)


def _change(arguments: Arguments) -> None:
    from copcube.lookup import change

    expected = f".nc or .zarr, or {', '.join(DRAWN)}"
    out = require_form(arguments.out, (".nc", ".zarr", *DRAWN), arguments, expected)
    a, b = groups_of(open_any(arguments.cube), open_any(arguments.other), arguments.groups)
    options = {"n": arguments.n, "metric": arguments.metric, "exclude_km": arguments.exclude_km}
    found = change(a, b, **options)
    # The list of places only: maps are for files.
    names = [str(name) for name in found.data_vars if found[name].dims == ("place",)]
    heads = [name.removeprefix("place_") for name in names]
    texts = [_texts(head, found[name]) for head, name in zip(heads, names, strict=True)]
    columns([head.replace("_", " ") for head in heads], zip(*texts, strict=True))
    if not found.sizes["place"]:
        _say_why_none(found)
    if out.suffix.lower() in DRAWN:
        from copcube.plot import changed

        draw(changed(found, a), out, arguments)
    else:
        save_fields(found, arguments)


def _say_why_none(found: "xr.Dataset") -> None:
    """Warn that no changed place is listed, and why."""
    both = found.distance.notnull()
    why = [f"{int(both.sum()):,} cells hold a vector in both cubes"]
    if "same_modalities" in found:
        others = int((found.same_modalities == 0).sum())
        why.append(f"{others:,} of them are made of different modalities")
    if "noise" in found:
        unknown = int((both & found.noise.isnull()).sum())
        why.append(f"the noise of {unknown:,} is unknown")
    log.warning("no place is listed: %s", ", ".join(why))


def _texts(name: str, of_places: "xr.DataArray") -> Iterable[str]:
    """Format the numbers or groups of places."""
    from copcube.cube.schema import labels

    values = of_places.values
    if values.dtype.kind == "i":
        return labels(name, values, of_places.attrs)
    if values.dtype.kind != "f":
        return map(str, values)
    # Centres of cells are quarters of a degree.
    form = ".2f" if name in ("lat", "lon") else ".4g"
    return [f"{value:{form}}" for value in values]


def statics_of(arguments: Arguments) -> "xr.Dataset":
    """Open the static fields of --given, or only those that --fields names."""
    from copcube.era5 import open_static

    statics = open_static(arguments.given)
    if not arguments.names:
        return statics
    names = arguments.names.split(",")
    if unknown := [name for name in names if name not in statics.data_vars]:
        raise OptionError(
            f"{arguments.given} holds {', '.join(map(str, statics.data_vars))}, but not "
            f"{', '.join(unknown)}"
        )
    chosen: xr.Dataset = statics[names]
    return chosen
