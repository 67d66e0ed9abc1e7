"""The command ``copcube``.

Exit codes: 0 done, 1 failed (the message says what to do), 2 wrong usage, 130 stopped by
Ctrl-C.
"""

import argparse
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from copcube import __version__
from copcube.errors import CopcubeError, CubeError, FetchError
from copcube.modalities import MODALITIES

if TYPE_CHECKING:
    from copcube.builds import Report
    from copcube.encoder import EncoderSpec

log = logging.getLogger("copcube")

Arguments = argparse.Namespace


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    argv : sequence of str, optional
        Arguments; those of the process by default.

    Returns
    -------
    int
        The exit code.
    """
    arguments = parser().parse_args(argv)
    _log_to_stderr(quiet=arguments.quiet)
    try:
        code: int | None = arguments.run(arguments)
    except CopcubeError as error:
        print(f"copcube: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("copcube: stopped; the same command goes on from here", file=sys.stderr)
        return 130
    return code or 0


def parser() -> argparse.ArgumentParser:
    """Make the parser of the command line."""
    root = argparse.ArgumentParser(
        prog="copcube",
        description="Turn Copernicus Sentinel imagery into an embedding datacube on ERA5's grid.",
        epilog="Try it: copcube demo. Each command has its own --help with an example.",
    )
    root.add_argument("--version", action="version", version=f"copcube {__version__}")
    commands = root.add_subparsers(title="commands", metavar="COMMAND", required=True)

    sample = _command(
        commands,
        "sample",
        _sample,
        "write a small Copernicus-Pretrain to try things on",
        "copcube sample images --layout geotiff --seed 0",
    )
    sample.add_argument("folder", metavar="DIR", help="a new or empty folder")
    sample.add_argument("--layout", choices=("geotiff", "webdataset"), default="geotiff")
    sample.add_argument("--seed", type=int, default=0, help="other seeds, other images")
    sample.add_argument("--cells", type=_positive, metavar="N", help="how many cells (default: 12)")

    fetch = _command(
        commands,
        "fetch",
        _fetch,
        "bring published files: weights, examples, shards, embeddings",
        "copcube fetch weights\n  copcube fetch shards 0-9 --to pretrain",
        details="What is there:\n"
        "  weights    the encoder and the variables' language embeddings, into the cache\n"
        "  example    100 cells of Copernicus-Pretrain in both layouts\n"
        "  shards     WebDataset shards 0 to 3210, such as 7 or 0-99\n"
        "  map        the published embedding map, 721 × 1440 × 768\n"
        "  averages   the published embedding of every cell, parquet\n"
        "  rows       the published embedding of every image, parquet\n"
        "Size and licence are said first. An interrupted download goes on.\n"
        "HF_HUB_OFFLINE=1 asks nobody and uses only what is here.",
    )
    fetch.add_argument("what", choices=("weights", "example", "shards", "map", "averages", "rows"))
    fetch.add_argument("range", nargs="?", metavar="A-B", help="which shards")
    fetch.add_argument("--to", metavar="DIR", default=".", help="folder (default: this one)")

    build = _command(
        commands,
        "build",
        _build,
        "build a cube from images; the same command resumes",
        "copcube build images world.zarr\n"
        "  copcube build 'example-{000000..000009}.tar' example.zarr --modalities s2_toa,dem",
        details="SOURCE is a GeoTIFF tree of Copernicus-Pretrain, an fnames_*.json.gz of one, or\n"
        "WebDataset shards: a file, a folder, a glob or a brace pattern. Work goes on in\n"
        "OUT.build beside the cube, where the rows stay; stop it at any moment and give the\n"
        "same command to go on. What could not be read is listed in OUT.build/quarantine.parquet.",
    )
    build.add_argument("source", metavar="SOURCE")
    build.add_argument("out", metavar="OUT.zarr")
    _choose(build)
    build.add_argument(
        "--crop",
        choices=("center", "full"),
        default="center",
        help="embed the pretraining size from the middle (default) or the whole image",
    )
    _encoder(build)
    build.add_argument("--batch-size", type=_positive, metavar="N", help="default: automatic")
    build.add_argument("--threads", type=_positive, metavar="N", help="decoding threads")
    build.add_argument("--strict", action="store_true", help="stop at the first broken image")
    build.add_argument(
        "--dry-run",
        action="store_true",
        help="say what would be done: images, disk, time from a measured batch; write nothing",
    )
    _overwrite(build)

    aggregate = _command(
        commands,
        "aggregate",
        _aggregate,
        "make a cube from rows, without images or GPU",
        "copcube aggregate world.build/rows seasons.zarr --by season",
        details="ROWS is a parquet file, a folder or a glob: the rows of a build, or the\n"
        "published full_chunks of Copernicus-Embed-025deg.",
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
    _overwrite(aggregate)

    info = _command(commands, "info", _info, "show what a cube holds", "copcube info world.zarr")
    info.add_argument("cube", metavar="CUBE.zarr")

    validate = _command(
        commands,
        "validate",
        _validate,
        "prove that a cube is whole and right",
        "copcube validate world.zarr",
    )
    validate.add_argument("cube", metavar="CUBE.zarr")

    demo = _command(
        commands,
        "demo",
        _demo,
        "sample images, build their cube, show it",
        "copcube demo demo",
        details="Uses the published weights where they can be had. Without a network it uses\n"
        "untrained weights, and says so: the cube then has the right form and no meaning.",
    )
    demo.add_argument("folder", metavar="DIR", nargs="?", default="demo")
    return root


def _command(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]",
    name: str,
    run: Callable[[Arguments], int | None],
    summary: str,
    example: str,
    details: str = "",
) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = commands.add_parser(
        name,
        help=summary,
        description=f"{summary[0].upper()}{summary[1:]}.\n\n{details}".rstrip(),
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument("--quiet", "-q", action="store_true", help="only warnings and errors")
    command.set_defaults(run=run)
    return command


def _choose(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--modalities",
        type=lambda text: text.split(","),
        metavar="KEY,…",
        help=f"which of {', '.join(MODALITIES)} (default: all)",
    )
    command.add_argument(
        "--dates", metavar="FROM..TO", help="such as 2021 or 2021-03..2021-08-15, inclusive"
    )
    command.add_argument(
        "--balance",
        choices=("modality", "image"),
        default="modality",
        help="mean of the modalities' means (default), or of all images alike",
    )
    command.add_argument(
        "--by",
        choices=("modality", "month", "season", "year"),
        help="add a leading dimension to the cube",
    )


def _encoder(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--weights",
        default="hub",
        metavar="hub|PATH|untrained:SEED",
        help="the published weights (default), a local file, or meaningless ones for tests",
    )
    command.add_argument(
        "--language", metavar="PATH", help="the variables' language embeddings (default: found)"
    )
    command.add_argument(
        "--pooling", choices=("cls", "mean"), help="which feature (default: what the weights ask)"
    )
    command.add_argument("--device", default="auto", help="auto (default), cpu, cuda, cuda:1")
    command.add_argument("--dtype", choices=("auto", "float32", "bfloat16"), default="auto")


def _overwrite(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--overwrite", action="store_true", help="replace an existing cube of other options"
    )


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"expected a positive whole number, got {text!r}")
    return int(text)


def _log_to_stderr(*, quiet: bool) -> None:
    for old in log.handlers[:]:
        log.removeHandler(old)
    handler = logging.StreamHandler()
    plain = "%(message)s" if sys.stderr.isatty() else "%(asctime)s %(levelname)s %(message)s"
    handler.setFormatter(logging.Formatter(plain, datefmt="%H:%M:%S"))
    log.addHandler(handler)
    log.setLevel(logging.WARNING if quiet else logging.INFO)
    log.propagate = False
    logging.getLogger("rasterio").setLevel(logging.CRITICAL)  # what it finds is rejected by name


def _sample(arguments: Arguments) -> None:
    from copcube.images.sample import write_sample
    from copcube.progress import size

    cells = {} if arguments.cells is None else {"cells": arguments.cells}
    made = write_sample(arguments.folder, arguments.layout, seed=arguments.seed, **cells)
    images = sum(made.images.values())
    log.info("%s: %d cells, %d images, %s", made.folder, made.cells, images, size(made.bytes))


def _fetch(arguments: Arguments) -> None:
    from copcube.fetch import fetch

    for file in fetch(arguments.what, arguments.to, arguments.range):
        print(file.path)


def _build(arguments: Arguments) -> None:
    from copcube.builds import build, estimate

    options = {
        "modalities": arguments.modalities,
        "dates": arguments.dates,
        "crop": arguments.crop,
        "encoder": _spec(arguments),
        "batch_size": arguments.batch_size,
        "threads": arguments.threads,
    }
    if arguments.dry_run:
        print(estimate(arguments.source, arguments.out, **options))
        return
    report = build(
        arguments.source,
        arguments.out,
        balance=arguments.balance,
        by=arguments.by,
        strict=arguments.strict,
        overwrite=arguments.overwrite,
        **options,
    )
    _tell(report)


def _aggregate(arguments: Arguments) -> None:
    from copcube.builds import aggregate

    report = aggregate(
        arguments.rows,
        arguments.out,
        modalities=arguments.modalities,
        dates=arguments.dates,
        balance=arguments.balance,
        by=arguments.by,
        duplicates=arguments.duplicates,
        overwrite=arguments.overwrite,
    )
    _tell(report)


def _tell(report: "Report") -> None:
    from copcube.progress import duration

    if report.images:
        log.info("%s", ", ".join(f"{key}: {count}" for key, count in report.images.items()))
    if report.rejected:
        left_out = ", ".join(f"{count} {kind}" for kind, count in report.rejected.items())
        quarantine = report.rows.parent / "quarantine.parquet"
        broken = report.rejected.get("broken", 0)
        log.log(
            logging.WARNING if broken else logging.INFO,
            "images left out: %s (reasons in %s)",
            left_out,
            quarantine,
        )
    log.info("%s is done, %s", report.cube, duration(report.seconds["total"]))


def _info(arguments: Arguments) -> None:
    _show(Path(arguments.cube))


def _show(cube: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    from copcube.cube import summary

    table = Table(title=str(cube), show_header=False, title_justify="left")
    for name, value in summary(cube).lines():
        table.add_row(name, value)
    Console().print(table)


def _validate(arguments: Arguments) -> int:
    from copcube.builds import validate_rows
    from copcube.cube import validate

    problems = [*validate(arguments.cube), *validate_rows(arguments.cube)]
    for problem in problems:
        print(problem)
    if not problems:
        print(f"{arguments.cube}: a valid embedding cube")
    return 1 if problems else 0


def _demo(arguments: Arguments) -> int:
    from copcube.builds import build
    from copcube.cube import validate
    from copcube.encoder import EncoderSpec
    from copcube.images.sample import write_sample

    folder = Path(arguments.folder)
    images, cube = folder / "images", folder / "world.zarr"
    if not images.exists():
        write_sample(images, "geotiff")
    try:
        encoder = EncoderSpec().load()
    except FetchError as error:
        log.warning("the published weights cannot be had here: %s", error)
        encoder = EncoderSpec(weights="untrained:0").load()
    _tell(build(images, cube, encoder=encoder))
    if problems := validate(cube):
        raise CubeError(f"{cube}: {'; '.join(problems)}")
    _show(cube)
    print(f"\nOpen it: xarray.open_zarr({str(cube)!r})")
    return 0


def _spec(arguments: Arguments) -> "EncoderSpec":
    from copcube.encoder import EncoderSpec

    return EncoderSpec(
        weights=arguments.weights,
        language=arguments.language,
        pooling=arguments.pooling,
        device=arguments.device,
        dtype=arguments.dtype,
    )


if __name__ == "__main__":
    sys.exit(main())
