"""Images to rows: embed the partitions that are not embedded, leave out what kills workers."""

import logging
from collections import Counter
from collections.abc import Iterable, Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from copcube.builds.executors import Crew, KilledError
from copcube.builds.folder import BuildFolder, Receipt
from copcube.builds.plan import Plan, digest
from copcube.builds.stages import drive
from copcube.builds.tasks import EmbedTask, counts, embed_unit
from copcube.images import Partition
from copcube.progress import stage

log = logging.getLogger("copcube")


def embed_partitions(
    folder: BuildFolder,
    plan: Plan,
    hands: Crew,
    tasks: Sequence[EmbedTask],
    listed: Sequence[Partition],
    receipts: dict[str, Receipt],
    number: int,
) -> dict[str, float]:
    """Embed partitions, and add their counts to the receipts.

    Parameters
    ----------
    folder : BuildFolder
        Where the work is done.
    plan : Plan
        What is made.
    hands : Crew
        Who embeds.
    tasks : sequence of EmbedTask
        What is to be embedded.
    listed : sequence of Partition
        All partitions, by their numbers.
    receipts : dict
        Counts of the partitions that are done, by name; those of the tasks are added.
    number : int
        Partitions in all, to be shown.

    Returns
    -------
    dict of str to float
        Seconds spent, summed over the partitions; see `copcube.builds.Report`.

    Raises
    ------
    BuildError, StorageError, ImageError
        As `copcube.builds.stages.drive`.
    """
    seconds: Counter[str] = Counter()
    known = all(listed[task.number].images is not None for task in tasks)
    left = sum(listed[task.number].images or 0 for task in tasks)
    images = _images(receipts.values())
    left_out = sum(receipt["rejected"] for receipt in receipts.values())
    with stage("embedding", None, "images", skip=images) as bar:

        def tell() -> None:
            """Expect as many images as are listed, else as many a partition as before."""
            if known:
                bar.expect(images + left)
            elif receipts:
                bar.expect(round(images / len(receipts) * number))
            bar.note = f"{len(receipts)}/{number} partitions, {left_out} left out"

        def signed(task: EmbedTask, receipt: Receipt) -> None:
            nonlocal images, left, left_out
            receipts[task.name] = receipt
            images += _images([receipt])
            left -= listed[task.number].images or 0
            left_out += receipt["rejected"]
            seconds.update(receipt["seconds"])
            tell()

        def killed(task: EmbedTask, error: KilledError) -> None:
            signed(task, _quarantine(folder, plan, listed[task.number], str(error)))

        tell()
        drive(
            hands,
            embed_unit,
            tasks,
            bar,
            lambda task: task.name,
            folder,
            embeds=True,
            size=lambda receipt: _images([receipt]),
            done=signed,
            killed=None if any(task.strict for task in tasks) else killed,
        )
    return dict(seconds)


def _quarantine(folder: BuildFolder, plan: Plan, partition: Partition, reason: str) -> Receipt:
    """Sign that a partition is left out as a whole."""
    entry = {
        "file": partition.paths[0],
        "member": "",
        "kind": "killer",
        "reason": f"{partition.name}: {reason}",
        "images": partition.images or 0,
    }
    facts = {
        "images": {},
        "rescaled": 0,
        "rejected": [entry],
        "seconds": {},
        "quarantined": reason,
    }
    log.warning("%s is left out: %s", partition.name, reason)
    return counts(folder.sign(plan.id, "embed", partition.name, [], facts))


def _images(receipts: Iterable[Receipt]) -> int:
    return sum(sum(receipt["images"].values()) for receipt in receipts)


def rows_digest(receipts: Iterable[Receipt]) -> str:
    """Hash of all rows, by the checksums in the receipts of their partitions, in order."""
    return digest([receipt["files"] for receipt in receipts])


def tally(folder: BuildFolder, names: Sequence[str]) -> tuple[dict[str, int], int, str]:
    """Read the receipts of all partitions once, and write what was rejected as one table.

    Returns
    -------
    rejected : dict of str to int
        Images left out, by kind.
    rescaled : int
        Sentinel-3 images that were corrected.
    rows : str
        Hash of all rows.
    """
    columns = {"file": pa.string(), "member": pa.string(), "kind": pa.string()}
    columns |= {"reason": pa.string(), "images": pa.int32(), "partition": pa.string()}
    schema, sink = pa.schema(columns), pa.BufferOutputStream()
    kinds: Counter[str] = Counter()
    rescaled, files = 0, []
    with pq.ParquetWriter(sink, schema, compression="zstd") as table:
        for name in names:
            receipt = folder.signed("embed", name)
            files.append({"files": receipt["files"]})
            rescaled += receipt["rescaled"]
            for item in receipt["rejected"]:
                kinds[item["kind"]] += item["images"]
            if receipt["rejected"]:
                rows = [item | {"partition": name} for item in receipt["rejected"]]
                table.write_table(pa.Table.from_pylist(rows, schema=schema))
    folder.require_lock()
    folder.files.write("quarantine.parquet", sink.getvalue())
    return dict(sorted(kinds.items())), rescaled, rows_digest(files)
