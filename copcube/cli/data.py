"""Commands that bring data: sample, fetch."""

import argparse
import logging

from copcube.cli.common import Arguments, Commands, command, positive, say
from copcube.errors import OptionError
from copcube.modalities import MODALITIES

log = logging.getLogger("copcube")

ENCODERS = ("ssl4eo-s2", "ssl4eo-s1rtc", "dinov2", "siglip")
"""Encoders of Major TOM, repeated here since the parser imports nothing heavy."""


def add(commands: Commands) -> None:
    """Add the commands to the parser."""
    _add_sample(commands)
    _add_fetch(commands)


def _add_sample(commands: Commands) -> None:
    sample = command(
        commands,
        "sample",
        _sample,
        "write synthetic images, benchmark data or embeddings for trials",
        "copcube sample images --layout geotiff --seed 0\n"
        "  copcube sample benchdata --layout bench --tasks eurosat-s2,lcz-s2",
    )
    sample.add_argument("folder", metavar="DIR", help="a new or empty folder")
    sample.add_argument(
        "--layout",
        choices=("geotiff", "webdataset", "bench", "majortom", "majortom-embeddings"),
        default="geotiff",
        help="images of Copernicus-Pretrain (default: GeoTIFF), data sets of Copernicus-Bench, "
        "images of Major TOM, or synthetic embeddings of six models in Major TOM's format",
    )
    sample.add_argument("--seed", type=int, default=0, help="another seed gives other images")
    sample.add_argument(
        "--cells",
        type=positive,
        metavar="N",
        help="how many cells (default: 12; for Major TOM 2; for embeddings 400)",
    )
    add_modalities(sample)
    sample.add_argument(
        "--tasks",
        type=lambda text: text.split(","),
        metavar="TASK,…",
        help="with --layout bench: which tasks (default: all)",
    )
    sample.add_argument(
        "--images",
        type=positive,
        metavar="N",
        help="with --layout bench: how many training images, with half as many to validate and "
        "to test (default: 20)",
    )


def _add_fetch(commands: Commands) -> None:
    fetch = command(
        commands,
        "fetch",
        _fetch,
        "download published files: weights, examples, shards, embeddings, benchmark data",
        "copcube fetch weights\n  copcube fetch shards 0-9 --to pretrain\n"
        "  copcube fetch bench eurosat-s2 lcz-s2 --to benchdata",
        details="Available files:\n"
        "  weights    the encoder and the variables' language embeddings, into the cache;\n"
        "             weights large: the ViT-L/16, with vectors of 1024 instead of 768\n"
        "  example    100 cells of Copernicus-Pretrain in both layouts\n"
        "  shards     WebDataset shards 0 to 3210, such as 7 or 0-99\n"
        "  map        the published embedding map, 721 × 1440 × 768\n"
        "  averages   the published embedding of every cell, parquet\n"
        "  rows       the published embedding of every image, parquet\n"
        "  bench      the data of tasks of Copernicus-Bench, such as eurosat-s2, or all\n"
        "Size and licence are printed first. Every file is checked against its SHA-256, and\n"
        "those of bench also against their MD5; archives are unpacked. The same command fetches\n"
        "what is still missing. HF_HUB_OFFLINE=1 uses no network, only files already downloaded.",
    )
    fetch.add_argument(
        "what", choices=("weights", "example", "shards", "map", "averages", "rows", "bench")
    )
    fetch.add_argument(
        "which",
        nargs="*",
        default=[],  # without it, argparse says that it is required
        metavar="A-B|TASK|large",
        help="which shards, tasks or weights",
    )
    fetch.add_argument(
        "--encoder", choices=ENCODERS, help="whose weights (default: those of Copernicus-FM)"
    )
    fetch.add_argument("--to", metavar="DIR", default=".", help="folder (default: this one)")


def add_modalities(command: argparse.ArgumentParser, others: str = "") -> None:
    """Add the option that chooses modalities."""
    command.add_argument(
        "--modalities",
        type=lambda text: text.split(","),
        metavar="KEY,…",
        help=f"which of {', '.join(MODALITIES)}{others} (default: all)",
    )


def _sample(arguments: Arguments) -> None:
    bench = arguments.layout == "bench"
    # They have no defaults, so that one that does not apply to the layout is noticed.
    for option in ("cells", "modalities") if bench else ("tasks", "images"):
        if getattr(arguments, option) is not None:
            raise OptionError(f"layout {arguments.layout!r} has no option --{option}")
    if bench:
        _sample_bench(arguments)
    else:
        _sample_pretrain(arguments)


def _sample_pretrain(arguments: Arguments) -> None:
    from copcube.images.sample.writing import write_sample
    from copcube.progress import size

    cells = {} if arguments.cells is None else {"cells": arguments.cells}
    # Vectors without images: a warning, as for everything synthetic.
    if arguments.layout == "majortom-embeddings":
        from copcube.products.majortom.sample import write_embeddings

        if arguments.modalities is not None:
            raise OptionError("--modalities chooses images; embeddings of Major TOM have none")
        sets = write_embeddings(arguments.folder, seed=arguments.seed, **cells)
        what = f"{len(sets.sets)} sets of {sets.cells} embeddings, {size(sets.bytes)}"
        log.info("%s: SYNTHETIC: %s", sets.folder, what)
        return
    if arguments.layout == "majortom":
        from copcube.products.majortom.core_sample import write_core

        if arguments.modalities is not None:
            raise OptionError("--modalities cannot be chosen for Major TOM: all sets are written")
        for core in write_core(arguments.folder, seed=arguments.seed, **cells).values():
            log.info("%s", core)
        return
    made = write_sample(
        arguments.folder,
        arguments.layout,
        seed=arguments.seed,
        modalities=arguments.modalities,
        **cells,
    )
    images = sum(made.images.values())
    log.info("%s: %d cells, %d images, %s", made.folder, made.cells, images, size(made.bytes))


def _sample_bench(arguments: Arguments) -> None:
    from copcube.probes.bench.sample import write_bench_sample
    from copcube.progress import size

    images = {} if arguments.images is None else {"images": arguments.images}
    made = write_bench_sample(
        arguments.folder, tasks=arguments.tasks, seed=arguments.seed, **images
    )
    tasks = f"{len(made.images)} task{'s' * (len(made.images) > 1)}"
    samples = sum(made.images.values())
    log.info("%s: %s, %d samples, %s", made.folder, tasks, samples, size(made.bytes))


def _fetch(arguments: Arguments) -> None:
    from copcube.hub.fetch import fetch

    which = arguments.which
    if arguments.what != "bench":
        if len(which) > 1:
            raise OptionError(f"fetch {arguments.what} takes one range, got {' '.join(which)}")
        # For the others, one text: a range of shards, or the size of the weights.
        which = which[0] if which else None
    for file in fetch(arguments.what, arguments.to, which, arguments.encoder):
        say(file.path)
