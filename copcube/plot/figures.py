"""Axes to draw on, and their titles."""

from typing import TYPE_CHECKING, Any

from copcube.arguments import as_given
from copcube.cube.caution import caution
from copcube.errors import MissingPackageError, OptionError

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def new_figure(size: tuple[float, float]) -> "Figure":
    """Make a figure of a size in inches.

    Raises
    ------
    MissingPackageError
        If matplotlib is not installed.
    """
    try:
        # A figure of its own, not pyplot's, which would keep and show it.
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingPackageError("pictures need matplotlib: pip install 'copcube[plot]'") from None
    return Figure(figsize=size, layout="constrained")


def new_axes(size: tuple[float, float], projection: Any = None) -> "Axes":
    """Make the axes of a new figure of a size in inches; errors are those of `new_figure`."""
    axes: Axes = new_figure(size).add_subplot(projection=projection)
    return axes


def axes_of(ax: "Axes | None", size: tuple[float, float], projection: Any = None) -> "Axes":
    """Axes that were given, or else new ones.

    Raises
    ------
    OptionError
        If something else was given.
    MissingPackageError
        If matplotlib is not installed.
    """
    if ax is None:
        return new_axes(size, projection)
    from matplotlib.axes import Axes

    if not isinstance(ax, Axes):
        raise OptionError(
            f"ax is {as_given(ax)}; expected axes of matplotlib, such as ax[0] of several"
        )
    return ax


def titled(axes: "Axes", ds: "xr.Dataset", title: str) -> "Axes":
    """Give axes a title, which says of numbers that are no results that they are none."""
    axes.set_title("\n".join([title, *filter(None, [caution(ds.attrs)])]))
    return axes
