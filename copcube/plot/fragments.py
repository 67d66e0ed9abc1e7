"""Fragments as colours on a map: three components as red, green and blue."""

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from copcube.errors import OptionError
from copcube.grid import Floats
from copcube.lookup.fragment_components import fit_fragments, project_fragments
from copcube.lookup.fragments import Fragments
from copcube.plot.figures import axes_of, coloured, degrees_of, three_of, titled
from copcube.plot.maps import frame
from copcube.plot.stretch import limit
from copcube.plot.window import Extent, Window, cartopy_projection

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.axes import Axes

_COLUMNS = 1600
"""Columns of pixels of a map at most."""
_LOOSE = 1.25
"""Side of a pixel, in distances of fragments: fewer would leave holes between them."""


def fragments(
    found: Fragments,
    components: tuple[int, int, int] = (0, 1, 2),
    *,
    basis: "xr.Dataset | None" = None,
    ax: "Axes | None" = None,
    projection: Any = None,
    extent: Extent | None = None,
) -> "Axes":
    """Draw three components of fragments as red, green and blue.

    A pixel has the mean colour of the fragments whose centres lie in it, or, if there are none but
    most pixels around have some, the mean of these.

    Parameters
    ----------
    found : Fragments
        From files, or in memory.
    components : tuple of int
        Which components are red, green and blue.
    basis : xarray.Dataset, optional
        Result of `copcube.lookup.fit_fragments`, perhaps for other fragments of the same encoder;
        maps of regions on one basis have the same colours. By default that of these fragments.
    ax, projection, extent
        As in `copcube.plot.maps.rgb`.

    Raises
    ------
    OptionError
        If the basis is of other vectors, has fewer components, or no fragment lies in the extent.
    MissingPackageError
        If matplotlib, or for a projection cartopy, is not installed.
    """
    three = three_of(components)
    projection = cartopy_projection(projection)
    window = _window(found, extent)
    basis = fit_fragments(found, max(three) + 1) if basis is None else basis
    pc = project_fragments(found, basis)
    if max(three) >= pc.shape[1]:
        raise OptionError(f"components={components!r}; the basis has 0 to {pc.shape[1] - 1}")
    colours = np.stack([0.5 + pc[:, i] / limit(basis, i) / 2 for i in three], axis=-1)
    pixels, shown = _pixels(found, np.clip(colours, 0, 1), window)
    axes = axes_of(ax, (10, 5), projection)
    if degrees := degrees_of(axes):
        if extent is None:
            axes.set_global()  # type: ignore[attr-defined]
        else:
            axes.set_extent(window.extent, degrees["transform"])  # type: ignore[attr-defined]
    axes.imshow(pixels, origin="upper", extent=window.extent, interpolation="nearest", **degrees)
    frame(axes, window)
    return titled(axes, basis, f"{shown:,} fragments, {coloured(three)}")


def _window(found: Fragments, extent: Extent | None) -> Window:
    """Requested part of the globe, or that of all fragments with a margin."""
    if extent is not None:
        return Window.asked(extent)
    lon, lat = found.lon, found.lat
    # Across 180° fragments lie on both sides of it.
    turned = lon % 360
    lon = turned if np.ptp(turned) < np.ptp(lon) else lon
    margin = max(0.1, 0.03 * float(np.ptp(lat)))
    west, east = float(lon.min()) - margin, float(lon.max()) + margin
    # Nearly around the globe: then all of it, from 180°W as other maps.
    if east - west > 300:
        west, east = -180.0, 180.0
    south, north = max(float(lat.min()) - margin, -90.0), min(float(lat.max()) + margin, 90.0)
    return Window(west, east, south, north)


def _pixels(found: Fragments, colours: Floats, window: Window) -> tuple[NDArray[np.float32], int]:
    """Mean colours of the fragments in pixels, (rows, cols, 4), and how many these are."""
    width, height = window.east - window.west, window.north - window.south
    x = (found.lon - window.west) % 360
    inside = (x <= width) & (found.lat >= window.south) & (found.lat <= window.north)
    n = int(inside.sum())
    if not n:
        raise OptionError(f"no fragment lies in the extent {window.extent}; give another, or none")
    x, y = x[inside], window.north - found.lat[inside]
    # At a pole degrees of longitude, and with them pixels, would have no width.
    cosine = max(float(np.cos(np.radians(window.middle))), 0.05)
    # Squares of a degree that hold fragments tell how closely these lie there.
    squares = len(np.unique(np.floor(x * cosine) + 1j * np.floor(y)))
    apart = _LOOSE * np.sqrt(min(squares, width * cosine * height) / n)
    step = max(width * cosine / _COLUMNS, apart)
    cols = max(1, min(_COLUMNS, round(width * cosine / step)))
    rows = max(1, min(_COLUMNS, round(height / step)))
    i = np.minimum((y / height * rows).astype(np.int64), rows - 1)
    j = np.minimum((x / width * cols).astype(np.int64), cols - 1)
    place = i * cols + j
    counts = np.bincount(place, minlength=rows * cols)
    pixels = np.zeros((rows * cols, 4), np.float32)
    for band in range(3):
        total = np.bincount(place, colours[inside, band], rows * cols)
        pixels[:, band] = total / np.maximum(counts, 1)
    pixels[:, 3] = counts > 0
    return _closed(pixels.reshape(rows, cols, 4)), n


def _closed(pixels: NDArray[np.float32]) -> NDArray[np.float32]:
    """Give pixels without a fragment the mean colour of their neighbours, if most have one.

    Fragments lie on their own grid, so sometimes none has its centre in a pixel.
    """
    rows, cols = pixels.shape[:2]
    framed = np.pad(pixels * pixels[..., 3:], ((1, 1), (1, 1), (0, 0)))
    around = [
        framed[i : i + rows, j : j + cols] for i in range(3) for j in range(3) if (i, j) != (1, 1)
    ]
    total = np.sum(around, axis=0)
    empty = (pixels[..., 3] == 0) & (total[..., 3] > len(around) / 2)
    filled = pixels.copy()
    filled[empty] = total[empty] / total[empty][:, 3:]
    return filled
