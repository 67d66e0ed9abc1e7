"""Maps: components as colours, one by one, counts, spread, coverage, similarity, change.

Every function draws on the axes it is given or on new ones, and returns them; nothing global is
changed. Colours can be distinguished by people with red-green colour blindness. What is drawn from
a reduction is stretched by the standard deviations in its basis, so that maps of parts of the
world, and of other cubes on the same basis, have the same colours.
"""

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from copcube.arguments import whole_number
from copcube.cube.card import whose_variance
from copcube.cube.schema import counts_images
from copcube.cube.view import CubeView
from copcube.cube.whole import at_once
from copcube.errors import CubeError, OptionError
from copcube.plot.coast import coastlines
from copcube.plot.figures import (
    axes_of,
    coloured,
    degrees_of,
    require_matplotlib,
    three_of,
    titled,
)
from copcube.plot.stretch import limit, reduced
from copcube.plot.window import Extent, Window, cartopy_projection, draw

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.axes import Axes

    from copcube.lookup.similar import Metric

_WIDE, _FEW = 60.0, 500
"""Degrees across, and cells, for which each cell is drawn as a dot, too."""

_LAND = "#e6e6e6"
_MARK: dict[str, Any] = {"linestyle": "none", "markeredgecolor": "white"}
_COAST = "#404040"


def rgb(
    ds: "xr.Dataset",
    components: tuple[int, int, int] = (0, 1, 2),
    *,
    basis: "xr.Dataset | None" = None,
    ax: "Axes | None" = None,
    projection: Any = None,
    extent: Extent | None = None,
) -> "Axes":
    """Draw three components as red, green and blue.

    Parameters
    ----------
    ds : xarray.Dataset
        A reduction; or a cube, of which the components are computed first.
    components : tuple of int
        Which of them are red, green and blue.
    basis : xarray.Dataset, optional
        The basis on which a cube is projected; by default its own. A fixed one, such as that of
        the whole world, makes maps comparable.
    ax : matplotlib.axes.Axes, optional
        Axes to draw on; new ones by default. Those for a projection must have it.
    projection : cartopy.crs.Projection or str, optional
        Such as ``"Robinson"``; by default longitude and latitude.
    extent : tuple of float, optional
        West, east, south and north in degrees; by default that of the dataset.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    CubeError
        If the dataset is not a cube or reduction or has leading dimensions.
    OptionError
        If a component or the extent is not there, or the projection is unknown.
    MissingPackageError
        If matplotlib, or for a projection cartopy, is not installed.
    """
    three = three_of(components)
    fields = reduced(ds, max(three) + 1, basis)
    view = CubeView.of(fields, "pc").ungrouped()
    limits = [limit(fields, i) for i in three]
    planes = [plane / end for plane, end in zip(_planes(view, *three), limits, strict=True)]
    # The mean, 0, is grey; the limits of a component are none and all of its colour.
    values = np.clip(0.5 + np.stack(planes, axis=-1) / 2, 0, 1)
    axes, _ = _map(view, values, ax, projection, extent)
    return titled(axes, fields, coloured(three))


def component(
    ds: "xr.Dataset",
    i: int = 0,
    *,
    basis: "xr.Dataset | None" = None,
    ax: "Axes | None" = None,
    projection: Any = None,
    extent: Extent | None = None,
) -> "Axes":
    """Draw one component; parameters and errors are those of `rgb`."""
    i = whole_number(i, "the component", 0)
    fields = reduced(ds, i + 1, basis)
    view = CubeView.of(fields, "pc").ungrouped()
    end, (plane,) = limit(fields, i), _planes(view, i)
    axes, image = _map(view, plane, ax, projection, extent, cmap="PuOr", vmin=-end, vmax=end)
    share = float(fields["explained_variance_ratio"].values[i])
    _bar(axes, image, f"component {i}", extend="both")
    whose = whose_variance(fields.attrs)
    return titled(axes, fields, f"component {i}, {share:.1%} of {whose}")


def counts(
    ds: "xr.Dataset",
    *,
    ax: "Axes | None" = None,
    projection: Any = None,
    extent: Extent | None = None,
) -> "Axes":
    """Draw how many images each cell has; parameters and errors are those of `rgb`."""
    view = CubeView.of(ds).ungrouped()
    values = _field(view, "n_images")
    values = np.where(values > 0, values, np.nan)
    # Counts differ by orders of magnitude, which linear colours would not show.
    style: dict[str, Any] = {"norm": "log", "vmin": 1, "vmax": np.nanmax(values, initial=2)}
    axes, image = _map(view, values, ax, projection, extent, cmap="cividis", **style)
    _bar(axes, image, "images in the cell")
    return titled(axes, ds, "number of images")


def spread(
    ds: "xr.Dataset",
    *,
    ax: "Axes | None" = None,
    projection: Any = None,
    extent: Extent | None = None,
) -> "Axes":
    """Draw how much the images of a cell disagree; parameters and errors are those of `rgb`."""
    view = CubeView.of(ds).ungrouped()
    values = _field(view, "spread")
    values = np.where(view.filled().values, values, np.nan)
    axes, image = _map(view, values, ax, projection, extent, cmap="viridis", vmin=0)
    _bar(axes, image, "spread of the embeddings")
    return titled(axes, ds, "how much the images of a cell disagree")


def coverage(
    ds: "xr.Dataset",
    *,
    ax: "Axes | None" = None,
    projection: Any = None,
    extent: Extent | None = None,
) -> "Axes":
    """Draw which cells hold a vector; parameters and errors are those of `rgb`."""
    require_matplotlib()
    from matplotlib.colors import ListedColormap

    view = CubeView.of(ds).ungrouped()
    values = np.where(view.filled().values, 1.0, np.nan)
    axes, _ = _map(view, values, ax, projection, extent, cmap=ListedColormap(["#0072b2"]))
    return titled(axes, ds, "cells with a vector")


def similar(
    ds: "xr.Dataset",
    lat: float,
    lon: float,
    *,
    n: int = 10,
    exclude_km: float = 500,
    metric: "Metric" = "cosine",
    ax: "Axes | None" = None,
    projection: Any = None,
    extent: Extent | None = None,
) -> "Axes":
    """Draw the similarity of every place to one, and mark the most similar.

    Parameters and errors are those of `rgb` and of `copcube.lookup.similar.similar`.
    """
    from copcube.lookup import similar as find

    found = find(ds, lat, lon, n=n, exclude_km=exclude_km, metric=metric)
    name = "distance" if metric == "euclidean" else "similarity"
    view = CubeView.of(ds)
    # Light is alike in both: a small distance, or a large cosine.
    colours = "cividis_r" if metric == "euclidean" else "cividis"
    values = found[name].transpose(view.lat, view.lon).values
    axes, image = _map(view, values, ax, projection, extent, cmap=colours)
    window = Window.of(view, extent)
    _places(axes, window, found)
    lat, lon = found.attrs["lat"], found.attrs["lon"]
    here = np.array([lon]), np.array([lat])
    _plot(axes, window, *here, **_MARK, marker="*", markersize=14, color="#cc79a7")
    _bar(axes, image, str(found[name].attrs["long_name"]))
    return titled(axes, ds, f"places like {lat:g}°, {lon:g}°")


def change(
    a: "xr.Dataset",
    b: "xr.Dataset",
    *,
    n: int = 10,
    exclude_km: float = 500,
    metric: "Metric" = "cosine",
    ax: "Axes | None" = None,
    projection: Any = None,
    extent: Extent | None = None,
) -> "Axes":
    """Draw how far the vectors of two cubes lie apart, and mark the most changed places.

    Parameters and errors are those of `rgb` and of `copcube.lookup.change.change`; leading
    dimensions are refused.
    """
    from copcube.lookup import change as find

    CubeView.of(a).ungrouped()  # refused before vectors are read
    found = find(a, b, n=n, exclude_km=exclude_km, metric=metric)
    return changed(found, a, ax=ax, projection=projection, extent=extent)


def changed(
    found: "xr.Dataset",
    a: "xr.Dataset",
    *,
    ax: "Axes | None" = None,
    projection: Any = None,
    extent: Extent | None = None,
) -> "Axes":
    """Draw what `copcube.lookup.change.change` found.

    Parameters
    ----------
    found : xarray.Dataset
        Its result.
    a : xarray.Dataset
        The first of the two cubes, whose extent is drawn.
    ax, projection, extent
        As for `copcube.plot.maps.rgb`.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    CubeError
        If there are leading dimensions.
    """
    view = CubeView.of(a).ungrouped()
    name = "distance" if found.attrs["metric"] == "euclidean" else "cosine_distance"
    values = found[name].reindex({view.lat: view.field[view.lat], view.lon: view.field[view.lon]})
    axes, image = _map(view, values.values, ax, projection, extent, cmap="cividis", vmin=0)
    _places(axes, Window.of(view, extent), found)
    _bar(axes, image, str(found[name].attrs["long_name"]))
    return titled(axes, found, "change from the first cube to the second")


def residuals(
    found: "xr.Dataset",
    target: str | None = None,
    *,
    ax: "Axes | None" = None,
    projection: Any = None,
    extent: Extent | None = None,
) -> "Axes":
    """Draw a map of truth minus prediction at the cells that no model has seen.

    Parameters
    ----------
    found : xarray.Dataset
        Of `copcube.probes.probe` with ``residuals=``.
    target : str, optional
        Which statistic; the first one by default.
    ax, projection, extent
        As for `copcube.plot.maps.rgb`.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    CubeError
        If the dataset has no residuals.
    OptionError
        If there is no such statistic.
    """
    if "residual" not in found:
        raise CubeError("expected the result of a probe with residuals: residuals='embedding'")
    names = list(map(str, found["target"].values))
    if target is not None and target not in names:
        raise OptionError(f"target={target!r}; the probe has {', '.join(names)}")
    n = 0 if target is None else names.index(target)
    # A reduction of as many components as statistics, for maps know those.
    as_fields = found[["residual"]].rename(residual="pc", target="component")
    view = CubeView.of(as_fields)
    values = np.asarray(view.field.values[..., n], np.float64)
    # A few large errors would leave everything else without colour.
    limit = float(np.nanpercentile(np.abs(values), 98)) if np.isfinite(values).any() else 1.0
    style = {"cmap": "PuOr", "vmin": -limit, "vmax": limit}
    axes, image = _map(view, values, ax, projection, extent, **style)
    label, unit = found["label"].values[n], found["unit"].values[n]
    _bar(axes, image, f"truth minus prediction ({unit or '1'})", extend="both")
    error = float(np.sqrt(np.nanmean(values**2)))
    by = found["residual"].attrs.get("input", "")
    return titled(axes, found, f"{label}, predicted from {by}: off by {error:.3g} {unit}")


def _map(
    view: CubeView,
    values: NDArray[Any],
    ax: "Axes | None",
    projection: Any,
    extent: Extent | None,
    **options: Any,
) -> tuple["Axes", Any]:
    """Draw values of cells, and coastlines; return the axes and the image."""
    projection = cartopy_projection(projection)
    window = Window.of(view, extent)
    axes = axes_of(ax, (10, 5), projection)
    if projection is None:
        projection = getattr(axes, "projection", None)
    # Where nothing is, grey; but a map of three colours has greys of its own.
    axes.set_facecolor(_LAND if values.ndim == 2 else "white")
    image = draw(view, values, window, axes, projection, **options)
    _dots(view, values, window, axes, image)
    frame(axes, window)
    return axes, image


def frame(axes: "Axes", window: Window) -> None:
    """Draw coastlines, and give axes in degrees their limits, labels and proportions."""
    for line in coastlines():
        _plot(axes, window, line[:, 0], line[:, 1], color=_COAST, linewidth=0.5)
    if not degrees_of(axes):
        axes.set_xlim(window.west, window.east)
        axes.set_ylim(window.south, window.north)
        axes.set_xlabel("longitude (degrees east)")
        axes.set_ylabel("latitude (degrees north)")
        # Degrees of longitude shorten with the cosine of the latitude.
        axes.set_aspect(1 / np.cos(np.radians(window.middle)))


def _dots(
    view: CubeView,
    values: NDArray[Any],
    window: Window,
    axes: "Axes",
    image: Any,
) -> None:
    """Mark the cells of a dataset that has only a few in a large window, where none can be seen."""
    there = np.isfinite(values if values.ndim == 2 else values[..., 0])
    if window.east - window.west < _WIDE or not 0 < there.sum() <= _FEW:
        return
    i, j = np.nonzero(there)
    x, y = view.field[view.lon].values[j], view.field[view.lat].values[i]
    style: dict[str, Any] = {"s": 20, "edgecolors": _COAST, "linewidths": 0.5, "zorder": 2}
    if values.ndim == 2:
        style |= {"cmap": image.cmap, "norm": image.norm}
    # In the turn of longitude that the window shows.
    x = window.west + (x - window.west) % 360
    axes.scatter(x, y, c=values[i, j], **style, **degrees_of(axes))


def _plot(axes: "Axes", window: Window, x: NDArray[Any], y: NDArray[Any], **style: Any) -> None:
    """Draw a line or marks at degrees east and north, at every turn that the window shows."""
    if degrees := degrees_of(axes):
        axes.plot(x, y, **degrees, **style)
        return
    for turn in (-360, 0, 360):
        turned = x + turn
        if (turned.max() >= window.west) and (turned.min() <= window.east):
            axes.plot(turned, y, **style)


def _places(axes: "Axes", window: Window, found: "xr.Dataset") -> None:
    """Mark the places that a look-up lists."""
    if found.sizes["place"]:
        x, y = found["place_lon"].values, found["place_lat"].values
        _plot(axes, window, x, y, **_MARK, marker="o", color="#d55e00")


def _bar(axes: "Axes", image: Any, label: str, **options: Any) -> None:
    axes.get_figure().colorbar(  # type: ignore[union-attr]
        image, ax=axes, label=label, shrink=0.8, pad=0.02, **options
    )


def _field(view: CubeView, name: str) -> NDArray[Any]:
    """Values of a map that a cube has beside its vectors, (lat, lon)."""
    if name not in view.dataset:
        raise CubeError(f"the dataset has no {name}, like all published maps")
    if name == "n_images" and not counts_images(view.dataset.attrs):
        raise CubeError(
            "the number of images per cell is not known, as for every published map; draw where "
            "there are vectors instead, plot.coverage() or --show coverage"
        )
    return np.asarray(at_once(view.dataset[name]).transpose(view.lat, view.lon).values, np.float64)


def _planes(view: CubeView, *components: int) -> list[NDArray[Any]]:
    # All at once: of a lazy reduction each alone would read the whole cube.
    chosen = at_once(view.field).isel({view.dim: list(components)})
    return [*np.moveaxis(np.asarray(chosen.values, np.float64), -1, 0)]
