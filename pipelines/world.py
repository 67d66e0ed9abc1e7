"""Build the cube of all of Copernicus-Pretrain, or embed some of its shards.

python pipelines/world.py 'pretrain/*/example-*.tar' world.zarr --workers auto

SOURCE, OUT.zarr and all options but those below are those of `copcube build`. A shard keeps
its published number, 0 to 3210, wherever it lies.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path, PurePosixPath

from copcube.cli import main as copcube
from copcube.errors import CopcubeError, SourceError
from copcube.hub.published import LAST_SHARD, published
from copcube.images import open_source

SLURM = Path(__file__).parent / "slurm" / "jobqueue.yaml"


def partitions(source: str, shards: str | None, subset: bool) -> list[str]:
    """Ranges A-B of partitions that hold these shards, of a source that holds them all."""
    world = {PurePosixPath(file.path).name for file in published("shards", f"0-{LAST_SHARD}")}
    found = [PurePosixPath(p.paths[0]).name for p in open_source(source).partitions()]
    for name, times in Counter(found).items():
        if times > 1 or name not in world:
            raise SourceError(f"{source}: {name} is there twice, or is no published shard's name")
    missing = sorted(world - set(found))
    if missing and not subset:
        raise SourceError(
            f"{source}: of {len(world)} shards {len(missing)} are missing: "
            f"{', '.join(missing[:3])}{', …' if len(missing) > 3 else ''}; `copcube fetch shards "
            "A-B --to DIR` brings them, --subset makes do without"
        )
    if shards is None:
        return []
    wanted = {PurePosixPath(file.path).name for file in published("shards", shards)}
    numbers = [number for number, name in enumerate(found) if name in wanted]
    if not numbers:
        raise SourceError(f"{source}: holds none of shards {shards}")
    runs = groupby(enumerate(numbers), lambda item: item[1] - item[0])
    lists = [[number for _, number in run] for _, run in runs]
    return [f"{run[0]}-{run[-1]}" for run in lists]


@contextmanager
def slurm(jobs: int) -> Iterator[str]:
    """Address of a dask cluster of so many SLURM jobs; a job that ends is replaced."""
    import dask
    import yaml
    from dask_jobqueue import SLURMCluster

    settings = yaml.safe_load(SLURM.read_text("utf-8"))["jobqueue"]["slurm"]
    options = {f"jobqueue.slurm.{key}": value for key, value in settings.items()}
    with dask.config.set(options), SLURMCluster() as cluster:
        print(f"{cluster.job_script()}\ndashboard: {cluster.dashboard_link}", file=sys.stderr)
        cluster.adapt(minimum_jobs=jobs, maximum_jobs=jobs)
        yield cluster.scheduler_address


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("source", metavar="SOURCE", help="pattern that matches all 3,211 shards")
    parser.add_argument("out", metavar="OUT.zarr")
    parser.add_argument(
        "--shards",
        metavar="A-B",
        help="embed just these, such as 0-99; any number of such runs may work at once, and a "
        "last one without --shards makes the cube",
    )
    parser.add_argument("--subset", action="store_true", help="not all shards need be there")
    parser.add_argument(
        "--slurm-jobs", type=int, metavar="N", help="embed on N SLURM jobs; see slurm/jobqueue.yaml"
    )
    args, options = parser.parse_known_args(argv)
    try:
        ranges = partitions(args.source, args.shards, args.subset)
    except CopcubeError as error:
        print(f"world.py: {error}", file=sys.stderr)
        return 1
    command = ["build", args.source, args.out, *options]
    if args.slurm_jobs:
        with slurm(args.slurm_jobs) as address:
            return run([*command, "--scheduler", address], ranges)
    return run(command, ranges)


def run(command: list[str], ranges: list[str]) -> int:
    """Exit code of `copcube`, called once for each range of partitions, or for all."""
    worst = 0
    for extra in [["--partitions", each] for each in ranges] or [[]]:
        code = copcube([*command, *extra])
        if code not in (0, 3):
            return code
        worst = max(worst, code)
    return worst


if __name__ == "__main__":
    sys.exit(main())
