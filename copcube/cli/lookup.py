"""Commands that look up vectors at places: at, points, box."""

import argparse
import logging
from itertools import product

from copcube.cli.common import Arguments, Commands, columns, command, overwrite, table
from copcube.cli.cubes import add_cube, cube_of, inputs, naming, place_in_cube
from copcube.errors import OptionError

log = logging.getLogger("copcube")


def add(commands: Commands) -> None:
    """Add the commands to the parser."""
    _add_at(commands)
    _add_points(commands)
    _add_box(commands)


def _add_at(commands: Commands) -> None:
    at = command(
        commands,
        "at",
        naming(_at, "cube"),
        "show what a cube holds at a place",
        "copcube at world.zarr 48.1 11.6\n  copcube at fields.zarr -- -3.1 -60.0",
        details="Write -- before a place with negative degrees.",
    )
    place_in_cube(at)
    _add_method(at)


def _add_points(commands: Commands) -> None:
    points = command(
        commands,
        "points",
        naming(_points, "cube"),
        "look up the vectors at the points of a table",
        "copcube points world.zarr stations.csv vectors.parquet\n"
        "  copcube points fields.zarr stations.parquet values.csv --lat y --lon x",
        details="OUT has the rows of TABLE in their order, each with a status: present,\n"
        "modality_missing, no_image, outside_cube or not_a_place. In .parquet the vectors are a\n"
        "column of lists; .csv has a column for each value.",
    )
    add_cube(points)
    points.add_argument("table", metavar="TABLE", help=".csv or .parquet")
    points.add_argument("out", metavar="OUT", help=".csv or .parquet")
    points.add_argument("--lat", metavar="NAME", help="column of degrees north (default: lat…)")
    points.add_argument("--lon", metavar="NAME", help="column of degrees east (default: lon…)")
    _add_method(points)
    overwrite(points)


def _add_box(commands: Commands) -> None:
    box = command(
        commands,
        "box",
        naming(_box, "cube"),
        "pool the vectors of a box or of polygons",
        "copcube box world.zarr 5 45 10 48\n"
        "  copcube box fields.zarr --regions basins.geojson --out basins.csv",
        details="Cells count by the share of their area inside; those without a vector do not\n"
        "count. Write -- before a box with negative degrees. If EAST lies west of WEST, the box\n"
        "crosses 180°.",
    )
    add_cube(box)
    # Not nargs=4, or argparse would require them with --regions too.
    box.add_argument("corners", nargs="*", type=float, metavar="WEST SOUTH EAST NORTH")
    box.add_argument("--regions", metavar="GEOJSON", help="polygons, instead of a box")
    box.add_argument("--pooling", choices=("mean", "max"), default="mean")
    box.add_argument("--out", metavar="OUT", help="table with one row per region: .csv or .parquet")
    overwrite(box)


def _add_method(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--method",
        choices=("nearest", "bilinear"),
        default="nearest",
        help="the cell that holds the point (default), or interpolation between nodes around it",
    )


def _at(arguments: Arguments) -> None:
    import numpy as np

    from copcube.cube.schema import counts_images
    from copcube.cube.view import CubeView
    from copcube.lookup import points
    from copcube.lookup.points import STATUS

    place, cube = ([arguments.lat], [arguments.lon]), cube_of(arguments)
    found = points(cube, place, method=arguments.method).isel(point=0)
    lines = [("status", STATUS[int(found.status)].replace("_", " "))]
    lines.append(("cell", f"lat {float(found.cell_lat):g}, lon {float(found.cell_lon):g}"))
    lines.append(("distance", f"{float(found.distance):.1f} km"))
    untold = {"status", "distance", "cell_lat", "cell_lon"}
    untold |= set() if counts_images(found.attrs) else {"n_images"}
    labels = CubeView.of(cube).groups
    # A cube without groups is treated as one with a single, unnamed group.
    for group in np.ndindex(*map(len, labels.values())):
        which = dict(zip(labels, group, strict=True))
        names = [labels[dim][i] for dim, i in which.items()]
        for name, v in found.isel(which).data_vars.items():
            of_all = labels and not labels.keys() & {*found[name].dims}
            if name in untold or (of_all and any(group)):
                continue
            said = " ".join([str(name), *([] if of_all else names)])
            if v.ndim == 0:
                lines.append((said, f"{v.item():,}" if v.dtype.kind == "i" else f"{v.item():g}"))
            elif name in ("embedding", "pc"):
                # As many as fit on a line beside the name.
                values = [f"{value:.4g}" for value in v.values[:8]]
                more = f" … ({v.size} values)" if v.size > len(values) else ""
                lines.append((said, " ".join(values) + more))
    table(arguments.cube, lines)


def _points(arguments: Arguments) -> None:
    from copcube.interchange.replacing import require_free
    from copcube.lookup import points
    from copcube.lookup.points import STATUS
    from copcube.lookup.tables import require_table, write_table

    out = require_table(arguments.out)
    require_free(out, arguments.overwrite, *inputs(arguments))
    found = points(
        cube_of(arguments),
        arguments.table,
        lat=arguments.lat,
        lon=arguments.lon,
        method=arguments.method,
    )
    write_table(found, out, arguments.overwrite)
    counts = [int((found.status == n).sum()) for n in range(len(STATUS))]
    parts = (f"{n:,} {name}" for n, name in zip(counts, STATUS, strict=True) if n)
    log.info("%s is done: %s", out, ", ".join(parts) or "no points")


def _box(arguments: Arguments) -> None:
    from copcube.cube.view import CubeView
    from copcube.interchange.replacing import require_free
    from copcube.lookup import box
    from copcube.lookup.boxes import polygons
    from copcube.lookup.tables import beside, read_features, require_table, write_table

    if len(arguments.corners) != (4 if arguments.regions is None else 0):
        raise OptionError("box takes WEST SOUTH EAST NORTH, or --regions with polygons")
    out = None if arguments.out is None else require_table(arguments.out)
    if out is not None:
        require_free(out, arguments.overwrite, *inputs(arguments))
    cube = cube_of(arguments)
    if arguments.regions is None:
        # A table of one region, like that of polygons.
        found = box(cube, *arguments.corners, pooling=arguments.pooling).expand_dims("region")
    else:
        geometries, properties = read_features(arguments.regions)
        found = polygons(cube, geometries, pooling=arguments.pooling)
        taken = {*found.variables, *found.dims} - {"region"}
        found = found.assign_coords(beside(properties, taken))
        for number, status in enumerate(found.status.values):
            if status != "present":
                log.warning("region %d of the file has no vector: %s", number + 1, status)
    if out is not None:
        write_table(found, out, arguments.overwrite)
        log.info("%s is done: %d regions", out, found.sizes["region"])
        return
    names = ["cells", "cells_missing", "coverage", "area"]
    labels = CubeView.of(cube).groups
    rows = found[names].to_dataframe(dim_order=["region", *labels])[names].itertuples(index=False)
    keys = product(range(found.sizes["region"]), *labels.values())
    columns(
        (*labels, "cells", "without a vector", "covered", "km²"),
        (
            (*map(str, group), str(a), str(b), f"{c:.3f}", f"{d:,.0f}")
            for (_, *group), (a, b, c, d) in zip(keys, rows, strict=True)
        ),
    )
