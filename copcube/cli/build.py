"""Commands that make cubes: build, aggregate, status, demo."""

import argparse
import contextlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from copcube.cli.common import (
    Arguments,
    Commands,
    add_model,
    command,
    overwrite,
    positive,
    say,
    show,
)
from copcube.cli.data import ENCODERS, add_modalities
from copcube.errors import CubeError, FetchError, MissingPackageError, OptionError, WriteError

if TYPE_CHECKING:
    from copcube.builds import Report
    from copcube.encoder import EncoderSpec, TimmSpec

log = logging.getLogger("copcube")

_COMPONENTS = 3
"""Number of components of the demo, which its maps need for colours."""

_RESULTS = (
    *("fields.zarr", "merged.nc", "fields.npz", "fields.pt", "fields.tif", "fields.png"),
    "world.html",
)
"""Names that the demo gives to what it makes of its cube."""


def add(commands: Commands) -> None:
    """Add the commands to the parser."""
    _add_build(commands)
    _add_aggregate(commands)
    _add_status(commands)
    _add_demo(commands)


def _add_build(commands: Commands) -> None:
    build = command(
        commands,
        "build",
        _build,
        "build a cube from images; the same command resumes",
        "copcube build images world.zarr\n"
        "  copcube build images world.zarr --workers auto\n"
        "  copcube build 'example-{000000..000009}.tar' example.zarr --modalities s2_toa,dem",
        details="SOURCE is a GeoTIFF tree of Copernicus-Pretrain, an fnames_*.json.gz of one, or\n"
        "WebDataset shards: a file, a folder, a glob or a brace pattern. With --product majortom\n"
        "it is a set of Major TOM's images, parquet or the downloader's tree. The build works in\n"
        "OUT.build beside the cube and leaves the rows there. Stop it at any moment; the same\n"
        "command continues it. OUT.build/quarantine.parquet lists what could not be read.\n"
        "Shards and cubes may lie in object stores (s3://, gs://, https://).\n\n"
        "Describe a sensor of your own in TOML: key, bands, wavelengths and bandwidths in nm (or\n"
        "language, a file), mean, std, gsd in metres, stored_size in pixels; and, if needed,\n"
        "input_size, kernel, scale, folder, local, dated. See docs/sensors.md.",
    )
    build.add_argument("source", metavar="SOURCE")
    build.add_argument("out", metavar="OUT.zarr")
    _choose(build)
    build.add_argument(
        "--sensor",
        action="append",
        metavar="FILE.toml",
        dest="sensors",
        help="description of your own sensor with images in SOURCE; may be given several times",
    )
    build.add_argument(
        "--crop",
        choices=("center", "full"),
        default="center",
        help="embed the pretraining size from the middle (default) or the whole image",
    )
    _encoder(build)
    build.add_argument(
        "--product", choices=("majortom",), help="embed images of Major TOM, fragment by fragment"
    )
    build.add_argument(
        "--encoder", choices=ENCODERS, help="which encoder of Major TOM (default: ssl4eo-s2)"
    )
    build.add_argument(
        "--compat",
        choices=("majortom",),
        help="reproduce the errors of Major TOM's embedder",
    )
    build.add_argument(
        "--s2-offset",
        type=int,
        default=0,
        metavar="N",
        help="subtract N from Sentinel-2 counts: 1000 for processing baseline 04.00 and later "
        "(default: 0)",
    )
    build.add_argument("--batch-size", type=positive, metavar="N", help="default: automatic")
    build.add_argument(
        "--threads",
        type=positive,
        metavar="N",
        help="decoding threads per partition (default: up to 8); a GPU has two partitions at once",
    )
    _workers(build)
    build.add_argument(
        "--partitions",
        metavar="A-B",
        help="embed only these (shards are numbered in the order of their names) and make no cube; "
        "any number of such runs may work on one OUT.build at once",
    )
    build.add_argument(
        "--retry-quarantined",
        action="store_true",
        help="try again the partitions that killed their worker",
    )
    build.add_argument("--strict", action="store_true", help="stop at the first broken image")
    build.add_argument(
        "--dry-run",
        action="store_true",
        help="print what would be done: images, disk, time from a measured batch; write nothing",
    )
    overwrite(build)


def _add_aggregate(commands: Commands) -> None:
    aggregate = command(
        commands,
        "aggregate",
        _aggregate,
        "make a cube from rows, without images or GPU",
        "copcube aggregate world.build/rows seasons.zarr --by season",
        details="ROWS is a parquet file, a folder or a glob: the rows of a build, the published\n"
        "full_chunks of Copernicus-Embed-025deg, or embeddings of Major TOM, one model at a time.\n"
        "It may also be GeoTIFF files of AlphaEarth, the Zarr store of TESSERA or its .npy tiles.",
    )
    aggregate.add_argument("rows", metavar="ROWS")
    aggregate.add_argument("out", metavar="OUT.zarr")
    _choose(aggregate)
    aggregate.add_argument(
        "--duplicates",
        choices=("refuse", "drop"),
        default="refuse",
        help="what to do when two rows embed the same image",
    )
    aggregate.add_argument(
        "--assign",
        choices=("centre", "area", "cell"),
        default="centre",
        help="for Major TOM: a fragment belongs to the cell of its centre (default), to all cells "
        "that it overlaps by the share of its area, or to that of its Major TOM cell's centre",
    )
    aggregate.add_argument(
        "--footprints",
        choices=("auto", "given", "swap"),
        default="auto",
        help="for Major TOM: correct footprints that are found to be transposed (default), take "
        "all as given, or swap all",
    )
    _workers(aggregate)
    overwrite(aggregate)


def _add_status(commands: Commands) -> None:
    status = command(
        commands,
        "status",
        _status,
        "show the progress of a build, from any machine that sees its folder",
        "copcube status world.build",
        details="Shows what is done, running, failed and quarantined, and why; the rate, and the\n"
        "time left.",
    )
    status.add_argument("folder", metavar="OUT.build")


def _add_demo(commands: Commands) -> None:
    demo = command(
        commands,
        "demo",
        _demo,
        "make sample images, build their cube, reduce, merge and export it",
        "copcube demo demo\n  copcube demo --world world.zarr",
        details="Uses the published weights if it can download them. Without a network it uses\n"
        "untrained weights, and says so: the cube then has the right form but no meaning.\n"
        "With --world it only writes a small cube of the whole globe, in seconds and without\n"
        "images, weights or network; its values are synthetic and mean nothing.",
    )
    demo.add_argument("--world", metavar="OUT.zarr", help="only write a synthetic cube there")
    demo.add_argument("folder", metavar="DIR", nargs="?", default="demo")


def _choose(command: argparse.ArgumentParser) -> None:
    add_modalities(command, ", or of your own sensors")
    command.add_argument(
        "--dates", metavar="FROM..TO", help="such as 2021 or 2021-03..2021-08-15, inclusive"
    )
    command.add_argument(
        "--balance",
        choices=("modality", "image", "variance"),
        default="modality",
        help="mean of the modalities' means (default), of all images equally, or of the "
        "modalities' means scaled so that all vary equally from cell to cell",
    )
    command.add_argument(
        "--by",
        choices=("modality", "month", "season", "year"),
        help="add a leading dimension to the cube",
    )


def _encoder(command: argparse.ArgumentParser) -> None:
    add_model(command)
    command.add_argument(
        "--pooling", choices=("cls", "mean"), help="which feature (default: as the weights require)"
    )
    command.add_argument(
        "--dtype",
        choices=("auto", "float32", "bfloat16"),
        default="auto",
        help="precision; auto is bfloat16 on GPUs and new CPUs, 0.9 %% off: use float32 to "
        "compare vectors with published ones",
    )
    command.add_argument(
        "--compile", action="store_true", help="compile the model with torch.compile"
    )


def _workers(command: argparse.ArgumentParser) -> None:
    who = command.add_mutually_exclusive_group()
    who.add_argument(
        "--workers",
        type=lambda text: text if text == "auto" else positive(text),
        metavar="N|auto",
        help="start worker processes here; auto: one for each GPU, or else for two processors",
    )
    who.add_argument("--scheduler", metavar="ADDRESS", help="use a dask cluster, tcp://HOST:8786")
    who.add_argument(
        "--scheduler-file", metavar="FILE", help="use the dask cluster of a scheduler file"
    )


@contextlib.contextmanager
def _executor(arguments: Arguments) -> Iterator[dict[str, Any]]:
    """Yield the options of `build` for its workers, connected while the body runs."""
    if arguments.scheduler is None and arguments.scheduler_file is None:
        yield {"workers": arguments.workers}
        return
    from copcube.builds import connect

    with connect(arguments.scheduler, arguments.scheduler_file) as client:
        yield {"client": client}


def _build(arguments: Arguments) -> int:
    from copcube.builds import build, estimate

    # An estimate depends on these as well.
    options = {
        "modalities": arguments.modalities,
        "sensors": arguments.sensors,
        "dates": arguments.dates,
        "crop": arguments.crop,
        "s2_offset": arguments.s2_offset,
        "encoder": _spec(arguments),
        "batch_size": arguments.batch_size,
        "threads": arguments.threads,
        "product": arguments.product,
        "balance": arguments.balance,
        "by": arguments.by,
        "overwrite": arguments.overwrite,
        "partitions": arguments.partitions,
    }
    if arguments.dry_run:
        say(estimate(arguments.source, arguments.out, **options))
        return 0
    with _executor(arguments) as executor:
        report = build(
            arguments.source,
            arguments.out,
            strict=arguments.strict,
            retry_quarantined=arguments.retry_quarantined,
            **executor,
            **options,
        )
    # The cube exists, but a script that continues with it must know that images are missing.
    _log_report(report)
    return 3 if report.quarantined else 0


def _aggregate(arguments: Arguments) -> None:
    from copcube.builds import aggregate

    with _executor(arguments) as executor:
        report = aggregate(
            arguments.rows,
            arguments.out,
            modalities=arguments.modalities,
            dates=arguments.dates,
            balance=arguments.balance,
            by=arguments.by,
            duplicates=arguments.duplicates,
            assign=arguments.assign,
            footprints=arguments.footprints,
            overwrite=arguments.overwrite,
            **executor,
        )
    _log_report(report)


def _status(arguments: Arguments) -> None:
    from copcube.builds import status

    say(status(arguments.folder))


def _log_report(report: "Report") -> None:
    from copcube.progress import duration

    build = f"{str(report.cube).removesuffix('.zarr')}.build"
    if report.images:
        log.info("%s", ", ".join(f"{key}: {count}" for key, count in report.images.items()))
    if report.rejected:
        left_out = ", ".join(f"{count} {kind}" for kind, count in report.rejected.items())
        log.log(
            # Broken files can be fetched again; the other kinds need no action.
            logging.WARNING if report.rejected.get("broken", 0) else logging.INFO,
            "images left out: %s (reasons in %s/quarantine.parquet)",
            left_out,
            build,
        )
    if report.quarantined:
        log.warning(
            "PARTITIONS LEFT OUT because they killed their worker: %s; --retry-quarantined retries "
            "them",
            ", ".join(report.quarantined),
        )
    if report.seconds.get("embedding"):
        log.info("%s", _times(report.seconds))
    what = f"{report.cube} is done" if report.finished else f"these partitions of {build} are done"
    log.info("%s, %s", what, duration(report.seconds["total"]))


def _times(seconds: dict[str, float]) -> str:
    """Show in one line where the time of embedding went."""
    from copcube.progress import duration

    whole = seconds["embedding"]
    shares = ", ".join(
        f"{what} {seconds[key] / whole:.0%}"
        for key, what in (
            ("encoding", "encoder busy"),
            ("waiting", "waiting for decoded images"),
            ("writing", "writing rows"),
        )
    )
    return (
        f"embedding took {duration(whole)} of workers' time: {shares}; parallel decoding "
        f"{duration(seconds['decoding'])}"
    )


def _demo(arguments: Arguments) -> None:
    if arguments.world is not None:
        from copcube.tutorial import write

        write(arguments.world)
        show(arguments.world)
        return
    from copcube.builds import build
    from copcube.cube import summary, validate
    from copcube.encoder import EncoderSpec
    from copcube.images.sample.writing import write_sample

    folder = Path(arguments.folder)
    images, cube = folder / "images", folder / "world.zarr"
    # Later runs replace them; in the first they would be somebody else's.
    taken = [name for name in _RESULTS if os.path.lexists(folder / name)]
    if taken and not cube.exists():
        raise WriteError(f"{folder / taken[0]} exists already; choose another folder for the demo")
    # The same command continues in a folder where it was stopped, as a build does.
    if not images.exists():
        write_sample(images, "geotiff")
    try:
        # Loaded here rather than by the build, so that other weights can still be chosen.
        encoder = EncoderSpec().load()
    except FetchError as error:
        log.warning("the published weights are not available here: %s", error)
        encoder = EncoderSpec(weights="untrained:0").load()
    _log_report(build(images, cube, encoder=encoder))
    if problems := validate(cube):
        raise CubeError(f"{cube}: {'; '.join(problems)}")
    show(cube)
    print(f"\nOpen it: xarray.open_zarr({str(cube)!r})")
    if (cells := summary(cube).cells) > _COMPONENTS:
        _use(cube, folder)
    else:
        few = f"{cells} cells are too few for {_COMPONENTS} components"
        print(f"{few}: nothing is reduced or exported")


def _use(cube: Path, folder: Path) -> None:
    """Reduce a cube, merge the fields with static ones, export them."""
    import numpy as np
    import xarray as xr

    from copcube.cube import open_cube
    from copcube.cube.view import CubeView
    from copcube.era5.merge import merge
    from copcube.files.atomic import atomic_path
    from copcube.interchange import export, to_zarr
    from copcube.pca.components import reduce
    from copcube.plot import page, rgb

    world = open_cube(cube)
    fields = reduce(world, k=_COMPONENTS)
    to_zarr(fields, folder / "fields.zarr", overwrite=True)
    # ERA5's own fields need a download, and the demo runs without a network.
    land = CubeView.of(world).filled().rename(lat="latitude", lon="longitude").astype(np.float32)
    stand_in = xr.Dataset({"lsm": land.reset_coords(drop=True)})
    stand_in.lsm.attrs["comment"] = "a stand-in for ERA5's: 1 where the demo has images"
    both = merge(fields, stand_in, fill=0.0, mask=True)
    export(both, folder / "merged.nc", overwrite=True)
    for suffix in ("npz", "pt", "tif"):
        export(fields, folder / f"fields.{suffix}", overwrite=True)
    # matplotlib and cartopy are optional; the rest of the demo works without them.
    with contextlib.suppress(MissingPackageError):
        drawn = rgb(fields)
        with atomic_path(folder / "fields.png") as temporary:
            drawn.figure.savefig(temporary, format="png", dpi=150)  # type: ignore[union-attr]
    page(world, folder / "world.html", basis=fields, overwrite=True)
    print(f"Its 3 principal components, merged, exported and drawn: {folder}/fields.*, merged.nc")
    print(f"To explore them, open {folder}/world.html in a browser")


def _spec(arguments: Arguments) -> "EncoderSpec | TimmSpec":
    from copcube.encoder import EncoderSpec, TimmSpec

    if arguments.product:
        # Both kinds of encoder know weights, device and dtype.
        for name in ("language", "pooling", "compile"):
            if getattr(arguments, name):
                raise OptionError(f"--{name} is for Copernicus-FM, not for --product majortom")
        return TimmSpec(
            arguments.encoder or ENCODERS[0],
            weights=arguments.weights,
            device=arguments.device,
            dtype=arguments.dtype,
            compat=arguments.compat,
        )
    if arguments.encoder or arguments.compat:
        raise OptionError("--encoder and --compat need --product majortom")

    return EncoderSpec(
        weights=arguments.weights,
        language=arguments.language,
        pooling=arguments.pooling,
        device=arguments.device,
        dtype=arguments.dtype,
        compile=arguments.compile,
    )
