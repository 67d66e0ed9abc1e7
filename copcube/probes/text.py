"""Tables of a probe's results, beside the paper's figures, as text in several formats."""

import csv
import io
import math
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

from copcube.arguments import one_of
from copcube.cube.caution import caution
from copcube.errors import CubeError
from copcube.probes import reference

if TYPE_CHECKING:
    import xarray as xr

Form = Literal["csv", "markdown", "latex"]

_DECIMALS = {"°C": 2, "m/year": 3, "Pa": 1, "m/s": 2}
_LABELS = {
    "lonlat": "coord raw",
    "fourier": "coord FE",
    "embedding": "embed",
    "embedding+fourier": "embed + coord",
    reference.SATCLIP: "SatCLIP coord",
}
"""The paper's names of its rows."""

Row = tuple[str, ...]


def table(found: "xr.Dataset", form: Form = "markdown") -> str:
    """Write what `copcube.probes.probe` found as a table.

    Parameters
    ----------
    found : xarray.Dataset
        Its result.
    form : {"csv", "markdown", "latex"}
        ``csv`` has a line for every input and target, with all figures; the others have the
        form of the paper's table, a line for an input and a column for a statistic, and the
        paper's own lines below ours.

    Returns
    -------
    str

    Raises
    ------
    CubeError
        If the dataset is not the result of a probe.
    OptionError
        If the form is unknown.
    """
    one_of(form, "form", get_args(Form))
    return _csv(found) if form == "csv" else as_text(form, *grid_of(found))


def grid_of(found: "xr.Dataset", statistic: str | None = None) -> tuple[Row, list[Row]]:
    """Heads and rows in the form of the paper's table.

    Parameters
    ----------
    found : xarray.Dataset
        Of a probe.
    statistic : str, optional
        Only targets whose name ends so, such as ``mean``.
    """
    _require(found)
    if statistic is not None:
        chosen = [str(name).endswith(statistic) for name in found["target"].values]
        found = found.isel(target=np.flatnonzero(chosen))
    names, labels, units = ([*map(str, found[k].values)] for k in ("target", "label", "unit"))
    head = ("input", *(f"{label} ({u or '1'})" for label, u in zip(labels, units, strict=True)))
    mean, spread = found["rmse"].mean("seed").values, _spread(found).values
    rows = []
    for i, name in enumerate(map(str, found["input"].values)):
        rows.append((name, *map(_cell, mean[i], spread[i], units)))
        rows += _of_paper(name, names, units)
    rows += _of_paper(reference.SATCLIP, names, units)
    if said := caution(found.attrs):
        rows.append((said, *("" for _ in names)))
    if "embedding_adds" in found:
        adds = found["embedding_adds"].mean("seed").values
        for i, over in enumerate(found["over"].values):
            shares = (f"{100 * share:.1f} %" for share in adds[i])
            rows.append((f"embedding adds to {over}", *shares))
    return head, rows


def _of_paper(name: str, targets: list[str], units: list[str]) -> list[Row]:
    """The paper's row of an input, if it has one, with a dash where it has no figure."""
    figures = [reference.error(name, target) for target in targets]
    if not any(figures):
        return []
    cells = [
        _cell(*figure, unit) if figure else "-" for figure, unit in zip(figures, units, strict=True)
    ]
    return [(f"paper: {_LABELS[name]}", *cells)]


def _spread(found: "xr.Dataset") -> "xr.DataArray":
    """Standard deviation of the errors over the seeds; NaN of a single one, which has none."""
    return found["rmse"].std("seed").where(found.sizes["seed"] > 1)


def _cell(value: float, spread: float, unit: str) -> str:
    alone = np.isnan(spread)
    if unit not in _DECIMALS:
        return f"{value:.4g}" + ("" if alone else f" ± {spread:.2g}")
    # Errors far below the paper's get two digits of their own.
    small = 1 - math.floor(math.log10(value)) if value > 0 else 0
    decimals = min(max(_DECIMALS[unit], small), 9)
    return f"{value:.{decimals}f}" + ("" if alone else f" ± {spread:.{decimals}f}")


def as_text(form: Literal["markdown", "latex"], head: Row, rows: list[Row]) -> str:
    """Write heads and rows as a table of Markdown, or of LaTeX's package booktabs."""
    return _markdown(head, rows) if form == "markdown" else _latex(head, rows)


def _markdown(head: Row, rows: list[Row]) -> str:
    lines = [head, ("---", *("---:" for _ in head[1:])), *rows]
    return "".join(
        "| " + " | ".join(c.replace("|", "\\|") for c in line) + " |\n" for line in lines
    )


def _latex(head: Row, rows: list[Row]) -> str:
    def line(cells: Row) -> str:
        return " & ".join(cell.translate(_LATEX) for cell in cells) + r" \\"

    body = "\n".join(line(row) for row in rows)
    return (
        f"\\begin{{tabular}}{{l{'r' * (len(head) - 1)}}}\n\\toprule\n{line(head)}\n\\midrule\n"
        f"{body}\n\\bottomrule\n\\end{{tabular}}\n"
    )


_LATEX = str.maketrans(
    {character: f"\\{character}" for character in "&%$#_{}"}
    | {"\\": r"\textbackslash{}", "±": r"$\pm$", "°": r"$^\circ$"}
)


def _csv(found: "xr.Dataset") -> str:
    _require(found)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    head = ("input", "components", "target", "unit", "rmse", "rmse_std", "r2")
    # One more column if there is a caution; for proper results there is none.
    said = [*filter(None, [caution(found.attrs)])]
    writer.writerow((*head, "published_rmse", "published_std", *("caution" for _ in said)))
    mean, spread = found["rmse"].mean("seed"), _spread(found)
    r2 = found["r2"].mean("seed")
    paper, its_spread = found["published_rmse"].values, found["published_spread"].values
    for i, name in enumerate(found["input"].values):
        for j, target in enumerate(found["target"].values):
            figures = (mean[i, j], spread[i, j], r2[i, j], paper[i, j], its_spread[i, j])
            texts = (f"{float(v):.6g}" if np.isfinite(v) else "" for v in figures)
            unit = str(found["unit"].values[j])
            k = int(found["components"].values[i])
            writer.writerow((str(name), k or "", str(target), unit, *texts, *said))
    return text.getvalue()


def _require(found: "xr.Dataset") -> None:
    if not {"rmse", "published_rmse"} <= {*getattr(found, "variables", ())}:
        raise CubeError("expected the result of a probe, with rmse by input and target")
