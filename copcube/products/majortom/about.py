"""What is said of Major TOM's files of embeddings: in the attributes of cubes, and in the log."""

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
"""What is said of footprints as they were found, and of those with which something was asked."""


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
    # Released files say nothing of their model but by the name of their set.
    if names := [m[0] for m in map(_SET.search, reversed(Path(path).parts)) if m]:
        name = names[0].removesuffix(".parquet")
        found |= {"encoder": name, "source": f"Major TOM, {name}"}
        found["encoder_page"] = f"{_PAGE.replace('.co/', '.co/datasets/')}/{name}"
    found |= {"preprocessing": "as the embeddings' makers did it"} | noted
    found["aggregation_assign"] = _ASSIGNED[assign]
    if assign != "cell":
        order = order or order_of(path)
        said = _FOUND[order] if position == "auto" else f"{_ASKED[position]} ({order})"
        found["footprints"] = said
    return found


def remarks(files: Sequence[str | Path], assign: Assign, position: Position) -> Iterator[str]:
    """Say in sentences what is done about the footprints of files, if that must be known.

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
            f"{transposed} of {len(files)} files have transposed footprints, as those that were "
            "released; their fragments are put back in place (--footprints given leaves them)"
        )
    if "unknown" in orders:
        yield (
            f"{files[orders.index('unknown')]}: the order of its rows does not tell whether "
            f"footprints are transposed, nor in {orders.count('unknown') - 1} files more; they are "
            "taken as given (--footprints swap puts them back, --assign cell makes no use of them)"
        )
