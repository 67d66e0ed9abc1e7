"""Run a build: plan → embed partitions → assemble the cube.

Each stage is a plain function of one unit: `embed_unit` here, `combine_unit` and
`write_unit` of `copcube.builds.assemble`. `build` and `aggregate` find out which units
are missing and call them.
"""

import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from copcube.aggregate import Aggregation, Balance, By
from copcube.builds.assemble import assemble, complete
from copcube.builds.folder import BuildFolder, Receipt
from copcube.builds.plan import Plan, digest, partitions_digest, read_partitions, write_partitions
from copcube.embedding import Crop, Encoder, Spec, embed_partition
from copcube.errors import BuildError
from copcube.images import Partition, Selection, Source, open_source
from copcube.modalities import MODALITIES
from copcube.progress import stage
from copcube.rows import rows_files, write_rows
from copcube.storage import atomic_path


@dataclass(frozen=True)
class Report:
    """What a build did.

    Parameters
    ----------
    cube : Path
        The finished cube.
    rows : Path
        Its rows, from which other cubes can be made.
    images : dict of str to int
        Images in the cube, by modality.
    rejected : dict of str to int
        Images left out, by kind: broken, stale, duplicate, empty.
    resumed : int
        Partitions that an earlier run had finished.
    seconds : dict of str to float
        Wall time of this run: ``total``, and of its embedding ``waiting`` for decoded
        images and ``encoding``.
    """

    cube: Path
    rows: Path
    images: dict[str, int] = field(default_factory=dict)
    rejected: dict[str, int] = field(default_factory=dict)
    resumed: int = 0
    seconds: dict[str, float] = field(default_factory=dict)


def build(
    source: str | Path,
    out: str | Path,
    *,
    modalities: Iterable[str] | None = None,
    dates: str | None = None,
    crop: Crop = "center",
    balance: Balance = "modality",
    by: By | None = None,
    encoder: Encoder | Spec | None = None,
    batch_size: int | None = None,
    threads: int | None = None,
    strict: bool = False,
    overwrite: bool = False,
) -> Report:
    """Build a cube from images; go on where an earlier run stopped.

    Parameters
    ----------
    source : str or Path
        A GeoTIFF tree, WebDataset shards, or an ``fnames_*.json.gz``; see
        `copcube.images.open_source`.
    out : str or Path
        The cube, such as ``world.zarr``. Work goes on in ``world.build`` beside it, where
        the rows stay.
    modalities : iterable of str, optional
        Keys to take; all by default.
    dates : str, optional
        Dates to take, such as ``2021`` or ``2021-03..2021-08-15``, inclusive. Images
        without a date (the DEM) always pass.
    crop : {"center", "full"}
        What of a stored image is embedded: the pretraining size from its middle, or all.
    balance : {"modality", "image"}
        Mean of the modalities' means, or of all images alike.
    by : {"modality", "month", "season", "year"}, optional
        Add a leading dimension.
    encoder : Encoder or Spec, optional
        What embeds the images, or an `EncoderSpec` of it; by default Copernicus-FM with the
        published weights.
    batch_size : int, optional
        Images a batch; by default chosen by modality and device.
    threads : int, optional
        Decoding threads; by default as many as processors, up to four.
    strict : bool
        Whether a broken image stops the build; by default it is recorded and skipped.
    overwrite : bool
        Whether to throw away what is at `out` and in its build folder.

    Returns
    -------
    Report

    Raises
    ------
    SourceError, OptionError, WeightsError, FetchError
        If the arguments cannot be used.
    BuildError
        If a build of other options, or another process, is in the way.
    StorageError
        If the output cannot be written; running again goes on.
    ImageError
        With `strict`, at a broken image.
    """
    begin = time.perf_counter()
    selection = Selection.of(modalities, dates)
    aggregation = Aggregation(balance=balance, by=by, selection=selection, duplicates="drop")
    images = open_source(source)
    folder = BuildFolder(Path(out))
    with folder.lock():
        model = loaded(encoder)
        plan, partitions = plan_build(images, model, aggregation, crop, batch_size)
        plan = _admitted(folder, plan, overwrite, keep_batches=batch_size is None)
        if folder.plan() is None:
            write_partitions(folder.partitions, partitions)
            folder.write_plan(plan)
        receipts = {
            partition.name: receipt
            for partition in partitions
            if (receipt := folder.receipt(plan, "embed", partition.name)) is not None
        }
        resumed = len(receipts)
        seconds: Counter[str] = Counter()
        with stage("embedding", None, "images", skip=_images(receipts)) as bar:
            bar.expect(_expected(partitions, receipts))
            for partition in partitions:
                if partition.name in receipts:
                    continue
                receipts[partition.name] = receipt = embed_unit(
                    folder,
                    plan,
                    images,
                    partition,
                    model,
                    selection,
                    threads=threads or min(os.cpu_count() or 1, 4),
                    strict=strict,
                    advance=bar.advance,
                )
                seconds.update(receipt["seconds"])
                bar.expect(_expected(partitions, receipts))
                left_out = sum(len(r["rejected"]) for r in receipts.values())
                bar.note = f"{len(receipts)}/{len(partitions)} partitions, {left_out} left out"
        receipts = {partition.name: receipts[partition.name] for partition in partitions}
        rejected = _write_quarantine(folder.quarantine, receipts)
        if not complete(folder, plan):
            facts = {
                "images_rejected": " ".join(f"{kind}:{n}" for kind, n in rejected.items()),
                "s3_images_rescaled": sum(r["rescaled"] for r in receipts.values()),
            }
            files = [folder.rows / f"{p.name}.parquet" for p in partitions]
            assemble(folder, plan, aggregation, files, facts)
    total: Counter[str] = Counter()
    for receipt in receipts.values():
        total.update(receipt["images"])
    return Report(
        cube=folder.out,
        rows=folder.rows,
        images={key: total[key] for key in MODALITIES if total[key]},
        rejected=rejected,
        resumed=resumed,
        seconds={**seconds, "total": time.perf_counter() - begin},
    )


def aggregate(
    rows: str | Path,
    out: str | Path,
    *,
    modalities: Iterable[str] | None = None,
    dates: str | None = None,
    balance: Balance = "modality",
    by: By | None = None,
    duplicates: Literal["refuse", "drop"] = "refuse",
    overwrite: bool = False,
) -> Report:
    """Make a cube from rows: those of a build, or the published ``full_chunks``.

    Parameters
    ----------
    rows : str or Path
        A parquet file, a folder of them, or a glob.
    out : str or Path
        The cube, such as ``world.zarr``.
    modalities, dates, balance, by, overwrite
        As in `build`.
    duplicates : {"refuse", "drop"}
        What to do when two rows embed the same image.

    Returns
    -------
    Report

    Raises
    ------
    RowsError
        If the rows lack columns or repeat an image.
    BuildError, StorageError, OptionError
        As in `build`.
    """
    begin = time.perf_counter()
    selection = Selection.of(modalities, dates)
    aggregation = Aggregation(balance=balance, by=by, selection=selection, duplicates=duplicates)
    files = rows_files(rows)
    folder = BuildFolder(Path(out))
    with folder.lock():
        plan = Plan(
            kind="aggregate",
            source=Path(rows).name,
            fingerprint=digest([(path.name, path.stat().st_size) for path in files]),
            options=_options(aggregation),
            encoder={},
            batch_sizes={},
            partitions="",
        )
        plan = _admitted(folder, plan, overwrite)
        folder.write_plan(plan)
        if not complete(folder, plan):
            assemble(folder, plan, aggregation, files, {})
    seconds = {"total": time.perf_counter() - begin}
    return Report(cube=folder.out, rows=Path(rows), seconds=seconds)


def validate_rows(out: str | Path) -> list[str]:
    """Examine the rows that a build left beside its cube, against their receipts.

    Parameters
    ----------
    out : str or Path
        The cube.

    Returns
    -------
    list of str
        What is wrong; empty if all is well or there is no build folder.
    """
    folder = BuildFolder(Path(out))
    plan = folder.plan()
    if plan is None or plan.kind != "build":
        return []
    if not complete(folder, plan):
        return [f"{folder.path}: belongs to a build that is not finished, or of another cube"]
    return [
        f"{folder.rows / partition.name}.parquet: not the rows that were signed for; "
        "build again to mend them"
        for partition in read_partitions(folder.partitions)
        if folder.receipt(plan, "embed", partition.name) is None
    ]


def loaded(encoder: Encoder | Spec | None) -> Encoder:
    """Return a live encoder: itself, loaded from its spec, or the published one."""
    if encoder is None:
        from copcube.encoder import EncoderSpec

        encoder = EncoderSpec()
    return encoder.load() if isinstance(encoder, Spec) else encoder


def plan_build(
    source: Source,
    encoder: Encoder,
    aggregation: Aggregation,
    crop: Crop,
    batch_size: int | None = None,
) -> tuple[Plan, list[Partition]]:
    """Plan the build of a cube from a source.

    Returns
    -------
    plan : Plan
    partitions : list of Partition
        The units of embedding, in order.
    """
    partitions = source.partitions()
    sizes = {
        key: batch_size
        or encoder.batch_size(
            key, MODALITIES[key].input_size if crop == "center" else MODALITIES[key].stored_size
        )
        for key in aggregation.selection.modalities
    }
    plan = Plan(
        kind="build",
        source=Path(source.root).name,
        fingerprint=source.fingerprint(),
        options=_options(aggregation) | {"crop": crop, "layout": source.layout},
        encoder=dict(encoder.provenance),
        batch_sizes=sizes,
        partitions=partitions_digest(partitions),
    )
    return plan, partitions


def embed_unit(
    folder: BuildFolder,
    plan: Plan,
    source: Source,
    partition: Partition,
    encoder: Encoder,
    selection: Selection,
    *,
    threads: int,
    strict: bool = False,
    advance: Callable[[int], None],
) -> Receipt:
    """Embed one partition, write its rows, sign for them."""
    begin = time.perf_counter()
    rows, tally = embed_partition(
        source,
        partition,
        encoder,
        selection=selection,
        batch_sizes=plan.batch_sizes,
        crop=plan.options["crop"],
        threads=threads,
        strict=strict,
        advance=advance,
    )
    path = folder.rows / f"{partition.name}.parquet"
    write_rows(path, rows, plan.encoder | {"crop": plan.options["crop"]})
    facts = {
        "images": tally.images,
        "rescaled": tally.rescaled,
        "rejected": [asdict(item) for item in tally.rejected],
        "seconds": {
            "waiting": tally.waiting,
            "encoding": tally.encoding,
            "embedding": time.perf_counter() - begin,
        },
    }
    return folder.sign(plan, "embed", partition.name, [path], facts)


def _admitted(folder: BuildFolder, plan: Plan, overwrite: bool, keep_batches: bool = True) -> Plan:
    """Return the plan to follow: that of the build under way, if it is the one asked for.

    Raises
    ------
    BuildError
        If the build under way has other options, or a cube would be replaced unasked.
    """
    if overwrite:
        try:
            known = folder.plan()
        except BuildError:
            known = None
        if known is None or known.id != plan.id or complete(folder, plan):
            folder.clear()
        folder.set_aside()
    elif (known := folder.plan()) is not None:
        if keep_batches:
            plan = replace(plan, batch_sizes=known.batch_sizes)
        known.refuse_changes(plan, folder.path)
        plan = known
    if folder.out.exists() and not complete(folder, plan):
        raise BuildError(
            f"{folder.out} exists and is not the result of this build; give another output "
            "name, or --overwrite to replace it"
        )
    folder.prepare()
    return plan


def _options(aggregation: Aggregation) -> dict[str, Any]:
    return {
        "modalities": list(aggregation.selection.modalities),
        "start": aggregation.selection.start,
        "end": aggregation.selection.end,
        "balance": aggregation.balance,
        "by": aggregation.by,
    }


def _images(receipts: Mapping[str, Receipt]) -> int:
    return sum(sum(receipt["images"].values()) for receipt in receipts.values())


def _expected(partitions: list[Partition], receipts: Mapping[str, Receipt]) -> int | None:
    """Images in all: as listed, else as many a partition as in those that are done."""
    known = [partition.images for partition in partitions if partition.images is not None]
    if len(known) == len(partitions):
        return sum(known)
    return round(_images(receipts) / len(receipts) * len(partitions)) if receipts else None


def _write_quarantine(path: Path, receipts: Mapping[str, Receipt]) -> dict[str, int]:
    """Write what was rejected as one table, and count its images by kind."""
    found = [
        item | {"partition": name}
        for name, receipt in receipts.items()
        for item in receipt["rejected"]
    ]
    columns = {"file": pa.string(), "member": pa.string(), "kind": pa.string()}
    columns |= {"reason": pa.string(), "images": pa.int32(), "partition": pa.string()}
    with atomic_path(path) as temporary:
        pq.write_table(pa.Table.from_pylist(found, schema=pa.schema(columns)), temporary)
    kinds: Counter[str] = Counter()
    for item in found:
        kinds[item["kind"]] += item["images"]
    return dict(sorted(kinds.items()))
