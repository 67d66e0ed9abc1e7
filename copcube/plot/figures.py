"""Axes to draw on, and their titles."""

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from copcube.arguments import as_given, whole_number
from copcube.cube.caution import caution
from copcube.errors import MissingPackageError, OptionError

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def require_matplotlib() -> None:
    """Check that matplotlib can be imported.

    Raises
    ------
    MissingPackageError
        If it is not installed.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise MissingPackageError("pictures need matplotlib: pip install 'copcube[plot]'") from None


def new_figure(size: tuple[float, float]) -> "Figure":
    """Make a figure of a size in inches; errors are those of `require_matplotlib`."""
    require_matplotlib()
    # Not a pyplot figure, which pyplot would keep and show.
    from matplotlib.figure import Figure

    # Otherwise a scale beside a map narrower than the figure would push it to the right.
    return Figure(figsize=size, layout="compressed")


def axes_of(ax: "Axes | None", size: tuple[float, float], projection: Any = None) -> "Axes":
    """Return axes that were given, or else those of a new figure of a size in inches.

    Raises
    ------
    OptionError
        If something else was given.
    MissingPackageError
        If matplotlib is not installed.
    """
    axes = new_figure(size).add_subplot(projection=projection) if ax is None else ax
    from matplotlib.axes import Axes

    if not isinstance(axes, Axes):
        raise OptionError(
            f"ax is {as_given(ax)}; expected axes of matplotlib, such as ax[0] of several"
        )
    return axes


def titled(axes: "Axes", ds: "xr.Dataset", title: str) -> "Axes":
    """Give axes a title, with a warning where the numbers are no results."""
    axes.set_title("\n".join([title, *filter(None, [caution(ds.attrs)])]))
    return axes


def three_of(components: Any) -> list[int]:
    """Check the components for red, green and blue.

    Raises
    ------
    OptionError
        If they are not three whole numbers.
    """
    if not isinstance(components, Collection) or len(components) != 3:
        raise OptionError(f"components={as_given(components)}; expected three of them")
    return [whole_number(i, "a component", 0) for i in components]


def coloured(three: list[int]) -> str:
    """Title that says which components are red, green and blue."""
    names = zip(("red", "green", "blue"), three, strict=True)
    return ", ".join(f"{colour}: pc {i}" for colour, i in names)


def degrees_of(axes: "Axes") -> dict[str, Any]:
    """Options that make cartopy axes interpret drawn values as degrees; none for other axes."""
    if not hasattr(axes, "projection"):
        return {}
    import cartopy.crs

    return {"transform": cartopy.crs.PlateCarree()}
