"""R² between static fields and components, as a table of coloured squares."""

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from copcube.errors import OptionError
from copcube.plot.figures import axes_of, titled

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.axes import Axes

_WIDTH, _HEIGHT = 0.75, 0.35
"""Inches of a square of the table."""


def explained(found: "xr.Dataset", *, ax: "Axes | None" = None) -> "Axes":
    """Draw R² of static fields → components, and of components → static fields.

    A row is a component, a column a static field, and the square of both their squared
    correlation. The last two columns show how well all static fields together explain the
    component, in the cells fitted to and in those held out; the last two rows, how well all
    components explain the static field.

    Parameters
    ----------
    found : xarray.Dataset
        What `copcube.pca.explain` returned.
    ax : matplotlib.axes.Axes, optional
        Axes to draw on; new ones by default.

    Returns
    -------
    matplotlib.axes.Axes
        The values, which may be negative where held out, are printed in the squares; a
        negative one has the colour of 0.

    Raises
    ------
    OptionError
        If `found` is something else.
    MissingPackageError
        If matplotlib is not installed.
    """
    if "pair_r2" not in found:
        raise OptionError("expected the dataset that `explain` returns, with pair_r2")
    table, rows, columns = _table(found)
    size = 2 + _WIDTH * len(columns), 1.5 + _HEIGHT * len(rows)
    axes = axes_of(ax, size)
    # cividis rises evenly in lightness, for eyes of every kind and on grey paper.
    image = axes.imshow(table, cmap="cividis", vmin=0, vmax=1, aspect="auto")
    axes.set_xticks(range(len(columns)), columns, rotation=30, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(rows)), rows)
    axes.set_xlabel("static field")
    axes.set_ylabel("component")
    style: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": "small"}
    for (i, j), value in np.ndenumerate(table):
        if np.isfinite(value):
            dark = value < 0.5
            axes.text(j, i, f"{value:.2f}", color="white" if dark else "black", **style)
    # Lines set off what all of them explain together.
    axes.axhline(len(rows) - 2.5, color="white", linewidth=3)
    axes.axvline(len(columns) - 2.5, color="white", linewidth=3)
    axes.figure.colorbar(image, ax=axes, label="share of variance explained, R²")
    return titled(axes, found, "what static fields and components say of each other")


def _table(found: "xr.Dataset") -> tuple[NDArray[Any], list[str], list[str]]:
    """Values (components + 2, static fields + 2), and the names of rows and columns."""
    pairs = found["pair_r2"].transpose("component", "static").values
    table = np.full((pairs.shape[0] + 2, pairs.shape[1] + 2), np.nan)
    table[:-2, :-2] = pairs
    for i, end in ((-2, ""), (-1, "_held_out")):
        table[:-2, i] = found[f"component_r2{end}"].values
        table[i, :-2] = found[f"static_r2{end}"].values
    last = ["all", "all, held out"]
    rows, columns = (
        [str(name) for name in found[dim].values.tolist()] + last for dim in ("component", "static")
    )
    return table, rows, columns
