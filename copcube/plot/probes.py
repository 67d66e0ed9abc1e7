"""Pictures of a probe: errors against the number of components, all maps of residuals."""

from typing import TYPE_CHECKING, Any

from copcube.cube.caution import caution
from copcube.errors import CubeError
from copcube.plot.figures import new_figure
from copcube.plot.maps import residuals

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.figure import Figure

_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
"""Okabe and Ito's colours, which red-green colour-blind people can distinguish."""
_DASHES: tuple[Any, ...] = ("-", "--", ":", "-.", (0, (1, 3)), (0, (8, 2)), (0, (3, 1, 1, 1, 1, 1)))
_DASHES += ((0, (5, 1)), (0, (1, 1, 4, 1)))
"""Dashes that distinguish level lines without colours."""


def errors(found: "xr.Dataset") -> "Figure":
    """Draw the error of each statistic against the number of components.

    Parameters
    ----------
    found : xarray.Dataset
        Of `copcube.probes.probe`.

    Returns
    -------
    matplotlib.figure.Figure
        Axes for each statistic: a curve for the components alone, and one for each set of inputs
        that they stand beside, with the standard deviation over the seeds; inputs without
        components as level lines.

    Raises
    ------
    CubeError
        If the dataset is not the result of a probe, or has no input with components.
    MissingPackageError
        If matplotlib is not installed.
    """
    if "rmse" not in found or not (k := found["components"].values).any():
        raise CubeError(
            "expected the result of a probe with components among its inputs, such as pc16"
        )
    columns = min(found.sizes["target"], 4)
    rows = -(-found.sizes["target"] // columns)
    figure = new_figure((4 * columns, 3 * rows + 0.8))
    names = list(map(str, found["input"].values))
    beside = [name.partition("+")[2] if n else None for name, n in zip(names, k, strict=True)]
    curves = list(dict.fromkeys(one for one in beside if one is not None))
    levels = [name for name, n in zip(names, k, strict=True) if not n]
    mean, spread = found["rmse"].mean("seed").values, found["rmse"].std("seed").values
    for t in range(found.sizes["target"]):
        axes = figure.add_subplot(rows, columns, t + 1)
        for n, curve in enumerate(curves):
            # Once colours are used up, dashes distinguish curves.
            turn, which = divmod(n, len(_COLOURS))
            style: dict[str, Any] = {"color": _COLOURS[which], "ls": _DASHES[turn % len(_DASHES)]}
            at = [i for i, one in enumerate(beside) if one == curve]
            at.sort(key=lambda i: k[i])
            label = "components" + (f" + {curve}" if curve else "")
            axes.errorbar(k[at], mean[at, t], spread[at, t], marker="o", ms=3, label=label, **style)
        for n, name in enumerate(levels):
            style = {"color": "#808080", "ls": _DASHES[n % len(_DASHES)], "lw": 1}
            axes.axhline(mean[names.index(name), t], label=name, **style)
        # Numbers of components mostly double from one to the next.
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter("{x:.0f}")
        # Where all errors are nearly alike, a line would lie on the frame.
        axes.set_ylim(0, 1.05 * axes.get_ylim()[1])
        axes.set_title(str(found["label"].values[t]), fontsize="medium")
        axes.set_ylabel(f"error ({found['unit'].values[t] or '1'})")
        axes.set_xlabel("number of components")
    handles, labels = figure.axes[-1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5, fontsize="small")
    if text := caution(found.attrs):
        figure.suptitle(text)
    return figure


def residual_maps(found: "xr.Dataset") -> "Figure":
    """Draw the residuals of all statistics, two maps in a row.

    Parameters
    ----------
    found : xarray.Dataset
        Of `copcube.probes.probe` with ``residuals=``.

    Raises
    ------
    CubeError
        If the dataset has no residuals.
    MissingPackageError
        If matplotlib is not installed.
    """
    names = [str(name) for name in found["target"].values] if "target" in found else []
    columns = min(2, len(names)) or 1
    rows = -(-len(names) // columns) or 1
    figure = new_figure((8 * columns, 4.2 * rows))
    for n, name in enumerate(names or [None]):
        residuals(found, name, ax=figure.add_subplot(rows, columns, n + 1))
    return figure
