"""Cubes on the command line: opening inputs, writing outputs."""

import argparse
import logging
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from copcube.cli.common import Arguments
from copcube.errors import OptionError

if TYPE_CHECKING:
    import xarray as xr

log = logging.getLogger("copcube")

CUBE = "a cube, or a published map (.npz, .pt, .tif, .parquet)"


def open_any(path: str) -> "xr.Dataset":
    """Open a cube, a reduction or a published map, according to its path.

    Files that users saved, such as part of a cube, are opened if they hold vectors.
    """
    import xarray as xr

    from copcube.cube.store import open_stored
    from copcube.interchange.engine import CopembedBackend
    from copcube.interchange.export import WRITERS

    # The extensions of published maps, and .nc of a saved reduction.
    if Path(path).suffix.lower() in WRITERS:
        # To find a backend by name, xarray imports those of all packages. Some crash together:
        # cfgrib's and rioxarray's each bring a PROJ.
        ds = xr.open_dataset(path, engine=CopembedBackend, chunks={})
    else:
        ds = open_stored(path)
    warn_of(ds.attrs, path)
    return ds


def warn_of(attrs: Mapping[Any, Any], path: str) -> None:
    """Warn about numbers that look like results but are not."""
    from copcube.cube.caution import caution

    if said := caution(attrs):
        log.warning("%s: %s", path, said)


def naming(
    run: Callable[[Arguments], int | None], *inputs: str
) -> Callable[[Arguments], int | None]:
    """Make a command name its inputs if values that it reads lazily are damaged.

    Parameters
    ----------
    run : callable
        The command.
    inputs : str
        Names of arguments that may hold input paths, one or a list each.
    """

    def named(arguments: Arguments) -> int | None:
        from copcube.cube.store import reading

        with reading(*_paths(arguments, inputs)):
            return run(arguments)

    return named


def add_cube(
    command: argparse.ArgumentParser, metavar: str = "CUBE", what: str = "a reduction, or " + CUBE
) -> None:
    """Add the cube that a command reads, and the option to select a group of it."""
    command.add_argument("cube", metavar=metavar, help=what)
    add_group(command)


def add_group(command: argparse.ArgumentParser) -> None:
    """Add the option to select a group of a cube."""
    command.add_argument(
        "--group", metavar="LABEL", help="select one group of a cube that has groups, such as JJA"
    )


def cube_of(arguments: Arguments) -> "xr.Dataset":
    """Open the cube that a command reads, or the group of it that was selected."""
    ds = open_any(arguments.cube)
    return ds if arguments.group is None else group(ds, arguments.group)


def groups_of(a: "xr.Dataset", b: "xr.Dataset", labels: list[str] | None) -> "list[xr.Dataset]":
    """Select a group of each of two cubes, if some are given."""
    both = [a, b]
    if labels is None:
        return both
    return [group(ds, label, "--groups") for ds, label in zip(both, labels, strict=True)]


def add_groups(command: argparse.ArgumentParser) -> None:
    """Add the option to select a group of each of two cubes, A and B."""
    command.add_argument(
        "--groups", nargs=2, metavar="LABEL", help="which group of A and of B, such as 2020 2021"
    )


def place_in_cube(command: argparse.ArgumentParser) -> None:
    """Add the arguments of a command about one place in a cube."""
    add_cube(command)
    command.add_argument("lat", type=float, metavar="LAT", help="degrees north")
    command.add_argument("lon", type=float, metavar="LON", help="degrees east")


def inputs(arguments: Arguments) -> list[str]:
    """Paths that a command reads."""
    # Under whatever name a command has it: what is read must not be replaced.
    names = ["cube", "basis", "era5", "given", "statics", "stations", "other"]
    names += ["table", "regions", "statistics"]
    return _paths(arguments, names)


def _paths(arguments: Arguments, names: Iterable[str]) -> list[str]:
    """Paths in some arguments, one or a list each; arguments not given hold none."""
    given = (getattr(arguments, name, None) for name in names)
    paths = [path for one in given for path in (one if isinstance(one, list) else [one])]
    return [path for path in paths if path is not None]


def require_form(
    path: str, forms: Collection[str], arguments: Arguments, expected: str | None = None
) -> Path:
    """Check, before any work, that an output has one of some extensions and can be written.

    Raises
    ------
    OptionError
        If it has another extension; `expected` lists the possible ones in words.
    WriteError
        If something exists there that must stay.
    """
    from copcube.interchange.replacing import require_free

    out = Path(path)
    if out.suffix.lower() not in forms:
        raise OptionError(f"{out}: expected {expected or ', '.join(forms)}")
    return require_free(out, arguments.overwrite, *inputs(arguments))


def appears(path: str | Path, arguments: Arguments) -> "AbstractContextManager[Path]":
    """Write an output of a command, which appears when it is complete; see `appearing`."""
    from copcube.interchange.replacing import appearing

    return appearing(path, arguments.overwrite, *inputs(arguments))


def require_output(arguments: Arguments) -> None:
    """Check that the output can be written, before any work."""
    from copcube.interchange.replacing import require_free

    suffix = Path(arguments.out).suffix.lower()
    if suffix not in (".zarr", ".nc"):
        raise OptionError(
            f"{arguments.out}: expected .zarr or .nc; for other formats see `copcube export`"
        )
    if arguments.zarr_format and suffix != ".zarr":
        raise OptionError(f"--zarr-format is for .zarr; {arguments.out} is not")
    require_free(arguments.out, arguments.overwrite, *inputs(arguments))


def save(ds: "xr.Dataset", arguments: Arguments) -> None:
    """Write a dataset as Zarr or netCDF, with all its variables."""
    from copcube.interchange import to_netcdf, to_zarr

    write = to_zarr if Path(arguments.out).suffix.lower() == ".zarr" else to_netcdf
    options = chosen(arguments, "layout", "zarr_format")
    write(ds, arguments.out, overwrite=arguments.overwrite, **options)
    log.info("%s is done", arguments.out)


def save_fields(ds: "xr.Dataset", arguments: Arguments) -> None:
    """Write a dataset that is not a cube as Zarr or netCDF."""
    from copcube.interchange import to_zarr
    from copcube.interchange.netcdf import write_by_xarray

    if Path(arguments.out).suffix.lower() == ".zarr":
        to_zarr(ds, arguments.out, overwrite=arguments.overwrite)
    else:
        with appears(arguments.out, arguments) as temporary:
            # Maps hold almost all of the bytes.
            small = {"zlib": True, "complevel": 1}
            maps = [name for name in ds.data_vars if ds[name].ndim > 1]
            write_by_xarray(ds, temporary, dict.fromkeys(maps, small))
    log.info("%s is done", arguments.out)


def group(ds: "xr.Dataset", label: str, option: str = "--group") -> "xr.Dataset":
    """Select the group of a label along the one leading dimension of a cube.

    Raises
    ------
    OptionError
        If the cube does not have exactly one such dimension, or lacks the label.
    """
    from copcube.cube.view import CubeView
    from copcube.cube.whole import at_once

    view = CubeView.of(ds)
    groups = view.groups
    if len(groups) != 1:
        has = f"groups along {', '.join(groups)}" if groups else "no groups"
        raise OptionError(f"{option} {label}: expected a cube with groups; this one has {has}")
    (dim, labels), *_ = groups.items()
    if label not in labels:
        raise OptionError(f"{option} {label}: expected one of {', '.join(labels)}")
    # For a part of a map, dask would run a task for each chunk, at each use.
    names = [name for name in ds.data_vars if dim in ds[name].dims and name != view.name]
    maps = {name: at_once(ds[name]) for name in names}
    return ds.assign(maps).isel({dim: labels.index(label)})


def chosen(arguments: Arguments, *names: str) -> dict[str, Any]:
    """Those of some options that were given."""
    chosen = {name: getattr(arguments, name) for name in names}
    return {name: value for name, value in chosen.items() if value is not None}
