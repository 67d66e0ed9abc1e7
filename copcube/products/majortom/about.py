"""Texts about Major TOM's files of embeddings: attributes of cubes, and log messages."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from copcube.products.majortom.reading import Assign
from copcube.products.majortom.table import LICENCE
from copcube.products.majortom.transposed import Position, order_of
from copcube.rows import read_provenance

_SET = re.compile(r"Core-[A-Za-z0-9_.-]+")
_PAGE = "https://huggingface.co/Major-TOM"
_REFERENCE = "https://arxiv.org/abs/2412.05600"
_ASSIGNED = {
    "centre": "to the cell that holds the centre of the fragment",
    "area": "to all cells that the fragment overlaps, weighted by the share of its footprint",
    "cell": "to the cell that holds the centre of the fragment's Major TOM cell",
}
_FOUND = {
    "transposed": "transposed in the files, and put back",
    "right": "right in the files",
    "unknown": "taken as given: the order of the rows does not tell if they are transposed",
}
_ASKED = {"given": "taken as given", "swap": "rows and columns exchanged, as asked"}
"""Texts about footprints as found, and about those treated as requested."""


def provenance(path: str | Path, assign: Assign, position: Position) -> dict[str, str]:
    """What made the vectors of a file, and what is done with them, for the attributes of a cube.

    Raises
    ------
    RowsError
        If the file is missing or is not parquet.
    """
    noted = read_provenance(path)
    order = noted.pop("footprints", None)
    found = {
        "product": "Major TOM",
        "title": "Major TOM embeddings on ERA5's 0.25 degree grid",
        "license": LICENCE,
        "references": _REFERENCE,
        "encoder_page": _PAGE,
    }
    # Released files identify their model only by the name of their set.
    if names := [m[0] for m in map(_SET.search, reversed(Path(path).parts)) if m]:
        name = names[0].removesuffix(".parquet")
        found |= {"encoder": name, "source": f"Major TOM, {name}"}
        found["encoder_page"] = f"{_PAGE.replace('.co/', '.co/datasets/')}/{name}"
    found |= {"preprocessing": "as the embeddings' makers did it"} | noted
    found["aggregation_assign"] = _ASSIGNED[assign]
    if assign != "cell":
        order = order or order_of(path)
        footprints = _FOUND[order] if position == "auto" else f"{_ASKED[position]} ({order})"
        found["footprints"] = footprints
    return found


def remarks(files: Sequence[str | Path], assign: Assign, position: Position) -> Iterator[str]:
    """Describe how the footprints of files are treated, if users need to know.

    Raises
    ------
    RowsError
        If a file cannot be read.
    """
    if assign == "cell" or position != "auto":
        return
    orders = [order_of(file) for file in files]
    if transposed := orders.count("transposed"):
        yield (
            f"{transposed} of {len(files)} files have transposed footprints, as the released ones "
            "do; they are corrected (--footprints given leaves them)"
        )
    if "unknown" in orders:
        yield (
            f"{files[orders.index('unknown')]}: the order of its rows does not show whether "
            f"footprints are transposed, nor in {orders.count('unknown') - 1} more files; they are "
            "taken as given (--footprints swap corrects them, --assign cell does not use them)"
        )
