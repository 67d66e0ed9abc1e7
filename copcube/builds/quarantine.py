"""What a build leaves out, as one table, and the hash of the rows that it keeps."""

from collections import Counter
from collections.abc import Iterable, Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from copcube.builds.folder import BuildFolder
from copcube.builds.plan import Plan, digest
from copcube.builds.receipts import Receipt
from copcube.errors import BuildError, few


def rows_digest(receipts: Iterable[Receipt]) -> str:
    """Hash of all rows, by the checksums in the receipts of their partitions, in order."""
    return digest([receipt["files"] for receipt in receipts])


def write_quarantine(
    folder: BuildFolder, plan: Plan, names: Sequence[str]
) -> tuple[dict[str, int], int, str]:
    """Read the receipts of all partitions once, and write what was rejected as one table.

    Returns
    -------
    rejected : dict of str to int
        Images left out, by kind.
    rescaled : int
        Sentinel-3 images that were corrected.
    rows : str
        Hash of all rows.

    Raises
    ------
    BuildError
        If a worker of another plan replaced rows or their receipt meanwhile.
    """
    columns = {"file": pa.string(), "member": pa.string(), "kind": pa.string()}
    columns |= {"reason": pa.string(), "images": pa.int32(), "partition": pa.string()}
    schema, sink = pa.schema(columns), pa.BufferOutputStream()
    kinds: Counter[str] = Counter()
    rescaled = 0
    receipts = folder.receipts.done(plan.id, "embed", names)
    if replaced := [name for name in names if name not in receipts]:
        raise BuildError(
            f"{folder.path}: rows of {few(replaced)} were replaced while this build ran, perhaps "
            "by workers left over from a build with other options; once those have ended, the same "
            "command embeds the rows again"
        )
    with pq.ParquetWriter(sink, schema, compression="zstd") as table:
        for name, receipt in receipts.items():
            rescaled += receipt["rescaled"]
            for item in receipt["rejected"]:
                kinds[item["kind"]] += item["images"]
            if receipt["rejected"]:
                rows = [item | {"partition": name} for item in receipt["rejected"]]
                table.write_table(pa.Table.from_pylist(rows, schema=schema))
    folder.require_lock()
    folder.files.write("quarantine.parquet", sink.getvalue())
    return dict(sorted(kinds.items())), rescaled, rows_digest(receipts.values())
