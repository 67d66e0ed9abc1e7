"""Run a build: plan → embed partitions → assemble the cube.

`build` and `aggregate` find the missing tasks (`copcube.builds.folder`) and pass them, stage by
stage (`copcube.builds.stages`), to an executor (`copcube.builds.executors`).
"""

import logging
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from copcube.aggregate import Aggregation, Balance
from copcube.arguments import flag
from copcube.builds.dask import Workers, executor
from copcube.builds.executors import Executor
from copcube.builds.folder import BuildFolder
from copcube.builds.partitions import chosen_partitions
from copcube.builds.plan import BuildOptions, Plan, Product, plan_aggregate, plan_build
from copcube.builds.quarantine import write_quarantine
from copcube.builds.receipts import Receipt
from copcube.builds.stages import READERS, EmbedStage, assemble, complete, is_undamaged, run_stage
from copcube.builds.tasks import EmbedTask, counts, describe
from copcube.cube import read_attributes
from copcube.embedding import Crop, Encoder, SharedEncoder, Spec
from copcube.errors import BuildError, CopcubeError, OptionError, RepeatedError, RowsError
from copcube.files.objects import is_remote
from copcube.grouping import By
from copcube.images.sensors import Given, small_tokens
from copcube.lookahead import map_ahead
from copcube.modalities import described_in, rank
from copcube.products import tables
from copcube.products.tables import Assign, Position
from copcube.rows import are_finite, read_provenance
from copcube.selection import Selection

if TYPE_CHECKING:
    from distributed import Client

log = logging.getLogger("copcube")


@dataclass(frozen=True)
class Report:
    """Result of a build.

    Parameters
    ----------
    cube : Path or str
        The finished cube, a str if it is a URL; if only some partitions were embedded, where it
        will be.
    rows : Path or str
        Its rows, from which other cubes can be made.
    images : dict of str to int
        Images in the rows, by modality.
    rejected : dict of str to int
        Images left out, by kind: ``broken``, ``stale``, ``duplicate``, ``empty`` or
        ``killer``; see `copcube.images.Rejected`.
    resumed : int
        Partitions that an earlier run finished.
    finished : bool
        Whether the cube is made.
    quarantined : tuple of str
        Partitions left out entirely because they killed their worker.
    seconds : dict of str to float
        ``total``, the wall time of this run. Summed over the partitions it embedded: ``embedding``
        in all, which includes ``waiting`` for decoded images, ``encoding`` and ``writing`` rows;
        and ``decoding`` on parallel threads.
    """

    cube: Path | str
    rows: Path | str
    images: dict[str, int] = field(default_factory=dict)
    rejected: dict[str, int] = field(default_factory=dict)
    resumed: int = 0
    finished: bool = True
    quarantined: tuple[str, ...] = ()
    seconds: dict[str, float] = field(default_factory=dict)


def build(
    source: str | Path,
    out: str | Path,
    *,
    modalities: Iterable[str] | str | None = None,
    sensors: Iterable[Given] | Given | None = None,
    dates: Any = None,
    crop: Crop = "center",
    balance: Balance = "modality",
    by: By | None = None,
    encoder: Encoder | Spec | str | Path | None = None,
    batch_size: int | None = None,
    threads: int | None = None,
    strict: bool = False,
    s2_offset: int = 0,
    overwrite: bool = False,
    workers: Workers | None = None,
    client: "Client | None" = None,
    partitions: str | int | None = None,
    retry_quarantined: bool = False,
    product: Product | None = None,
) -> Report:
    """Build a cube from images; continue where an earlier run stopped.

    Parameters
    ----------
    source : str or Path
        A GeoTIFF tree, WebDataset shards, also in an object store, or an
        ``fnames_*.json.gz``; see `copcube.images.open_source`.
    out : str or Path
        The cube, such as ``world.zarr`` or ``s3://bucket/world.zarr``. The build works in
        ``world.build`` beside it, where the rows stay.
    modalities : iterable of str, or str, optional
        Keys to take; all by default.
    sensors : iterable of str, Path, mapping or Modality, or one of them, optional
        Your own sensors whose images are in the source, beside those of the eight modalities: TOML
        files, or whatever `copcube.sensor` takes.
    dates : optional
        Dates to take, inclusive: such as ``2021``, ``2021-03..2021-08-15``, or whatever
        `copcube.selection.Selection.of` takes. Images without a date (the DEM) always pass.
    crop : {"center", "full"}
        What part of a stored image is embedded: the pretraining size from its middle, or all.
    balance : {"modality", "image", "variance"}
        Mean of the modalities' means; of all images alike; or of the modalities' means after
        each modality was scaled about its mean over cells so that all have the same variance
        over cells (`copcube.balance` has the formula). The last keeps up to eight times as much
        in the build's folder until the cube is written.
    by : {"modality", "month", "season", "year"}, optional
        Add a leading dimension.
    encoder : Encoder, Spec, str or Path, optional
        An encoder, its `EncoderSpec`, or the name of its weights; by default Copernicus-FM with the
        published weights.
    batch_size : int, optional
        Images per batch; by default chosen by modality and device.
    threads : int, optional
        Decoding threads per partition, by default the number of processors, up to eight. A GPU
        embeds two partitions at a time.
    strict : bool
        Whether a broken image stops the build; by default it is recorded and skipped.
    s2_offset : int
        What to subtract from Sentinel-2 counts: 1000 for images of processing baseline 04.00 or
        later, unless that was already done.
    overwrite : bool
        Whether to replace a cube at `out` that copcube made, once the new one is complete, and to
        discard what is in its build folder. Anything else at `out` is refused.
    workers : int or "auto", optional
        Worker processes to start on this machine; ``auto`` starts one for each visible GPU, or else
        one for every two processors. By default this process does everything.
    client : distributed.Client, optional
        Client of a dask cluster whose workers see `source` and `out` under the same names. Workers
        with a GPU should offer the resource ``GPU``, one per process.
    partitions : str or int, optional
        Which partitions to embed, such as ``0-99`` or 7, by their numbers in the plan (shards are
        sorted by name). No cube is made then, and any number of such runs may work on the same
        build at once.
    retry_quarantined : bool
        Whether to retry partitions that killed their worker.
    product : {"majortom"}, optional
        What to make, if not rows of images of Copernicus-Pretrain: embeddings of Major TOM.
        `source` is then a set of its images, see `copcube.products.majortom.open_core`, and
        `encoder` ``ssl4eo-s2`` (the default), ``ssl4eo-s1rtc``, ``dinov2``, ``siglip``, or a
        `copcube.TimmSpec`. The rows are GeoParquet in Major TOM's columns.

    Returns
    -------
    Report

    Raises
    ------
    SourceError, OptionError, WeightsError, FetchError
        If the arguments cannot be used.
    BuildError
        If a build with other options, or another process, is in the way; if tasks failed; if the
        connection to the cluster is lost. Running again continues the build.
    StorageError
        If the output cannot be written; running again continues the build.
    ImageError
        With `strict`, at a broken image.
    """
    begin = time.perf_counter()
    retry_quarantined = flag(retry_quarantined, "retry_quarantined")
    if flag(overwrite, "overwrite") and partitions is not None:
        raise OptionError(
            "--overwrite would discard what other runs of --partitions have made; to start over, "
            "remove the build's folder first, or leave out --partitions"
        )
    options = BuildOptions.of(
        modalities,
        dates,
        encoder,
        sensors=sensors,
        crop=crop,
        balance=balance,
        by=by,
        batch_size=batch_size,
        threads=threads,
        strict=strict,
        s2_offset=s2_offset,
        product=product,
    )
    # Only what the user named: by default, a source may lack modalities.
    asked = options.selection.modalities
    if modalities is None:
        asked = tuple(sensor.key for sensor in options.sensors)
    images = options.open(source)
    for own in options.sensors:
        if note := small_tokens(own):
            log.warning(note)
    if (client is not None or workers is not None) and not isinstance(
        options.encoder, SharedEncoder
    ):
        raise OptionError(
            "workers need a small description of the encoder, such as copcube.EncoderSpec; found "
            f"a {type(options.encoder).__name__}"
        )
    folder = BuildFolder(out)
    folder.require_apart(source, overwrite=overwrite)
    spec = getattr(options.encoder, "spec", None)
    # Each worker gets a GPU unless the encoder runs on the CPU.
    gpus = getattr(spec, "device", "auto") != "cpu"
    with (
        folder.lock(shared=partitions is not None),
        executor(client, workers, gpus=gpus) as runner,
    ):
        plan, listed = plan_build(images, options, runner.call(describe, options))
        chosen = chosen_partitions(partitions, len(listed))
        plan = _admitted(folder, plan, overwrite, batch_size is None, alone=partitions is None)
        folder.write_plan(plan)
        folder.write_partitions(listed, plan.partitions)
        names = [listed[i].name for i in chosen]
        receipts = _embedded(folder, plan, names, options.strict, retry_quarantined)
        resumed = len(receipts)
        seconds: Counter[str] = Counter()

        def embed_missing() -> None:
            tasks = [
                EmbedTask(folder.out, plan.id, i, listed[i].name, images.reader, options)
                for i in chosen
                if listed[i].name not in receipts
            ]
            stage = EmbedStage(folder, plan, listed, tasks, receipts)
            run_stage(runner, stage)
            seconds.update(stage.seconds)

        embed_missing()
        rejected: dict[str, int] = {}
        if partitions is None:
            assembled = partial(
                _assembled, folder, plan, options, receipts, names, runner, asked, overwrite
            )
            try:
                rejected = assembled()
            except RowsError as error:
                # Rows may be damaged, or come from earlier versions or an encoder that checked
                # nothing.
                if not (again := _spoilt(folder, plan, names, receipts)):
                    raise
                folder.distrust(plan)
                log.warning("%s; %d partitions are embedded again", error, len(again))
                for name in again:
                    del receipts[name]
                embed_missing()
                rejected = assembled()
        quarantined = tuple(name for name in names if receipts[name]["quarantined"])
    total: Counter[str] = Counter()
    for receipt in receipts.values():
        total.update(receipt["images"])
    return Report(
        cube=_path(folder.out),
        rows=_path(folder.rows()),
        images={key: total[key] for key in sorted(total, key=rank) if total[key]},
        rejected=rejected,
        resumed=resumed,
        finished=partitions is None,
        quarantined=quarantined,
        seconds={**seconds, "total": time.perf_counter() - begin},
    )


def _embedded(
    folder: BuildFolder, plan: Plan, names: Sequence[str], strict: bool, retry_quarantined: bool
) -> dict[str, Receipt]:
    """Counts of the partitions that an earlier run embedded and that are kept, by name."""
    done = folder.receipts.done(plan.id, "embed", names, renew=True)
    if len(done) < len(names):
        # What was made of the rows may include the spoilt ones.
        folder.distrust(plan)
    if retry_quarantined:
        done = {name: one for name, one in done.items() if not one.get("quarantined")}
    if strict:
        # Images that an earlier run left out stop a strict one, unless they can be read by now.
        left_out = {"broken", "killer"}
        done = {
            name: one
            for name, one in done.items()
            if left_out.isdisjoint(item["kind"] for item in one["rejected"])
        }
    return {name: counts(receipt) for name, receipt in done.items()}


def _spoilt(
    folder: BuildFolder, plan: Plan, names: Sequence[str], receipts: Mapping[str, Receipt]
) -> list[str]:
    """Find partitions whose rows changed or hold vectors that are not finite; read all rows."""
    whole = folder.receipts.done(plan.id, "embed", names, hashes=True)
    return [
        name
        for name in names
        if name not in whole or not (receipts[name]["quarantined"] or are_finite(folder.rows(name)))
    ]


def _assembled(
    folder: BuildFolder,
    plan: Plan,
    options: BuildOptions,
    receipts: Mapping[str, Receipt],
    names: Sequence[str],
    runner: Executor,
    asked: Sequence[str],
    overwrite: bool,
) -> dict[str, int]:
    """Make the cube of embedded partitions unless it exists; count rejected images by kind."""
    rejected, rescaled, rows = write_quarantine(folder, plan, names)
    # The cube may already exist, made from exactly these rows; then only leftovers are removed.
    if complete(folder, plan, rows) and is_undamaged(folder):
        folder.sweep()
        return rejected
    quarantined = [name for name in names if receipts[name]["quarantined"]]
    attributes = {
        "images_rejected": " ".join(f"{kind}:{n}" for kind, n in rejected.items()),
        "s3_images_rescaled": rescaled,
        "partitions_quarantined": len(quarantined),
        "copcube_rows": rows,
    }
    strange: Counter[str] = Counter()
    for receipt in receipts.values():
        strange.update({key: count for key, (count, _) in receipt["strange"].items()})
    if strange:
        attributes["images_strange"] = " ".join(f"{key}:{n}" for key, n in sorted(strange.items()))
    # The order is the plan's, so that the cube's bytes do not depend on which task was faster.
    files = [folder.rows(name) for name in names if name not in quarantined]
    assemble(
        folder,
        plan,
        options.aggregation,
        files,
        attributes,
        runner,
        asked=asked,
        overwrite=overwrite,
    )
    return rejected


def aggregate(
    rows: str | Path,
    out: str | Path,
    *,
    modalities: Iterable[str] | str | None = None,
    dates: Any = None,
    balance: Balance = "modality",
    by: By | None = None,
    duplicates: Literal["refuse", "drop"] = "refuse",
    assign: Assign = "centre",
    footprints: Position = "auto",
    overwrite: bool = False,
    workers: Workers | None = None,
    client: "Client | None" = None,
) -> Report:
    """Make a cube from rows, those of a build or the published ``full_chunks``.

    Embeddings of Major TOM, released or written by copcube, are taken as well, and those of
    AlphaEarth and TESSERA, whose pixels are averaged in streams.

    Parameters
    ----------
    rows : str or Path
        A parquet file, a folder of them, or a glob; GeoTIFF files of AlphaEarth, the Zarr store or
        the ``.npy`` tiles of TESSERA.
    out : str or Path
        The cube, such as ``world.zarr``.
    modalities, dates, balance, by, overwrite, workers, client
        As in `build`. Your own sensors may be chosen too: rows record their sensor.
    duplicates : {"refuse", "drop"}
        What to do when two rows embed the same image.
    assign : {"centre", "area", "cell"}
        To which cells a fragment of Major TOM belongs: the cell of its centre; all cells that it
        overlaps, weighted by the share of its footprint in each; or the cell of its Major TOM
        cell's centre, which no error inside that cell can change.
    footprints : {"auto", "given", "swap"}
        Released footprints are transposed inside their cell, up to 8.4 km off. By default those
        found to be transposed are corrected, which is logged; "given" takes all as they are, "swap"
        corrects all.

    Returns
    -------
    Report

    Raises
    ------
    RowsError
        If the rows lack columns, repeat an image or come from several models.
    BuildError, StorageError, OptionError
        As in `build`.
    """
    begin = time.perf_counter()
    files = tables.files(rows)
    # In a store each file costs some requests, of which many may run at once.
    tabular = [str(file) for file in files if not tables.is_of_pixels(file)]
    made = map_ahead(read_provenance, tabular, READERS if is_remote(str(rows)) else 0)
    own = {key for provenance in made for key in described_in(provenance)}
    selection = Selection.of(modalities, dates, own)
    aggregation = Aggregation(
        balance=balance,
        by=by,
        selection=selection,
        duplicates=duplicates,
        assign=assign,
        footprints=footprints,
    )
    folder = BuildFolder(out)
    folder.require_apart(rows, overwrite=overwrite)
    with folder.lock(), executor(client, workers, gpus=False) as runner:
        plan = _admitted(folder, plan_aggregate(rows, files, aggregation), overwrite)
        folder.write_plan(plan)
        if (
            complete(folder, plan, "")
            # What an earlier run dropped may have to be refused now, and vice versa.
            and read_attributes(folder.out).get("copcube_duplicates", "refuse") == duplicates
            and is_undamaged(folder)
        ):
            folder.sweep()
        else:
            names = [str(file) for file in files]
            for line in tables.remarks(names, assign, footprints):
                log.warning("%s", line)
            attributes = {"copcube_rows": ""}
            if duplicates == "drop":
                attributes["copcube_duplicates"] = duplicates
            try:
                assemble(
                    folder,
                    plan,
                    aggregation,
                    names,
                    attributes,
                    runner,
                    asked=() if modalities is None else selection.modalities,
                    overwrite=overwrite,
                )
            except CopcubeError as error:
                # A build that cannot be finished must not occupy the name.
                if isinstance(error, RepeatedError) or not folder.files.names("cells/"):
                    folder.give_up()
                raise
    seconds = {"total": time.perf_counter() - begin}
    return Report(cube=_path(folder.out), rows=_path(str(rows)), seconds=seconds)


def _admitted(
    folder: BuildFolder,
    plan: Plan,
    overwrite: bool,
    keep_batches: bool = True,
    alone: bool = True,
) -> Plan:
    """Return the plan to follow, and make the folder ready for it.

    Raises
    ------
    BuildError
        As `BuildFolder.followed`.
    """
    if overwrite:
        try:
            known = folder.plan()
        except BuildError:
            known = None
        folder.require_own_cube()
        if known is None or known.id != plan.id or folder.begins_anew(plan):
            folder.begin_replacing()
    else:
        known = folder.plan()
        plan = folder.followed(plan, known, keep_batches=keep_batches, alone=alone)
        if alone and known not in (None, plan):
            folder.clear()
    # Others that share the build may be writing what would be swept away.
    if alone:
        folder.prepare()
    return plan


def _path(path: str) -> Path | str:
    return path if is_remote(path) else Path(path)
