"""Axes to draw on, and their titles."""

from typing import TYPE_CHECKING, Any

from copcube.errors import MissingPackageError

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.axes import Axes


def new_axes(size: tuple[float, float], projection: Any = None) -> "Axes":
    """Make the axes of a new figure of a size in inches.

    Raises
    ------
    MissingPackageError
        If matplotlib is not installed.
    """
    try:
        # A figure of its own, not pyplot's, which would keep and show it.
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingPackageError("maps need matplotlib: pip install 'copcube[plot]'") from None
    axes: Axes = Figure(figsize=size, layout="constrained").add_subplot(projection=projection)
    return axes


def titled(axes: "Axes", ds: "xr.Dataset", title: str) -> "Axes":
    """Give axes a title, which says whether the encoder of a dataset was not trained."""
    # Numbers of an encoder without training must not be taken for results.
    untrained = ds.attrs.get("encoder_trained") == 0
    axes.set_title(title + ("\nUNTRAINED encoder: the values mean nothing" if untrained else ""))
    return axes
