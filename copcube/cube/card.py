"""A dataset at a glance: its coverage, its origin, and a small map, as text and HTML.

Vectors are never read from a file or computed: counts of images, or else the spread, show where
they are, or a few values of each vector if they are in memory.
"""

from base64 import b64encode
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from copcube.cube.caution import of_vectors
from copcube.cube.latlon import first_alike
from copcube.cube.schema import counts_images, group_labels
from copcube.cube.thumbnail import braille, picture
from copcube.cube.view import CubeView
from copcube.cube.whole import in_parts, with_maps
from copcube.errors import CopcubeError, GridError, printable
from copcube.files.damage import naming_damage

if TYPE_CHECKING:
    import xarray as xr

_NAMED = {
    "aggregation": "aggregation",
    "counted": "n_images_comment",
    "dates": "dates",
    "licence": "license",
}
SHOWN = frozenset({"synthetic", "encoder", "encoder_trained", *_NAMED.values()})
"""Attributes that a card shows."""

_COUNTS = ("n_images", "n_images_by_modality")
"""Variables that, unlike the vectors, are read completely."""


@dataclass(frozen=True)
class Card:
    """Facts about a dataset.

    Parameters
    ----------
    title : str
        What it is.
    lines : tuple of (str, str)
        Name and text of every figure.
    raster : numpy.ndarray or None
        Map, north up and west to east: (H, W) float64 of images or spread, or (H, W, 3) of
        three components; NaN where there is no vector.
    """

    title: str
    lines: tuple[tuple[str, str], ...]
    raster: NDArray[np.float64] | None = field(default=None, repr=False, compare=False)

    def text(self) -> str:
        """Write the card as plain text, the map in Braille dots."""
        width = max((len(name) for name, _ in self.lines), default=0)
        figures = (f"  {name:<{width}}  {printable(text)}" for name, text in self.lines)
        drawn = () if self.raster is None else braille(self.raster)
        return "\n".join(
            [f"<copembed: {printable(self.title)}>", *figures, *(f"  {row}" for row in drawn)]
        )

    def html(self) -> str:
        """Write the card as HTML, the map as an inline PNG."""
        rows = "".join(
            f"<tr><td style='text-align:left;opacity:.7'>{escape(name)}</td>"
            f"<td style='text-align:left'>{escape(text)}</td></tr>"
            for name, text in self.lines
        )
        image = ""
        if self.raster is not None:
            source = b64encode(picture(self.raster)).decode()
            image = (
                f"<img alt='where the cells are' src='data:image/png;base64,{source}' "
                "style='width:360px;image-rendering:pixelated;border:1px solid #8884'>"
            )
        return f"<div><b>copembed: {escape(self.title)}</b><table>{rows}</table>{image}</div>"


def card(ds: "xr.Dataset") -> Card:
    """Sum up a cube or a reduction without reading its vectors, if they are not in memory.

    Parameters
    ----------
    ds : xarray.Dataset
        Any dataset; if it is not a cube, the card says why.
    """
    try:
        view = CubeView.of(ds)
    except CopcubeError as error:
        return Card("not an embedding cube", (("why", str(error)),))
    with naming_damage():  # once for all figures made from them
        view = replace(view, dataset=with_maps(ds, _COUNTS))
    mask, raster = _mask_and_map(view)
    title = "reduction of an embedding cube" if view.name == "pc" else "embedding cube"
    return Card(title, tuple(_lines(view, mask)), raster)


def coverage(ds: "xr.Dataset") -> float:
    """Share of the globe's area under cells with a vector, 0 to 1.

    With a leading dimension, cells with a vector in any group count. Without ``n_images``, all
    vectors are read.

    Raises
    ------
    CubeError
        If the dataset is not a cube.
    GridError
        If its grid is irregular, or finer than 0.25°.
    """
    view = CubeView.of(ds)
    return share_of_globe(view, view.filled())


def whose_variance(attrs: Mapping[Any, Any]) -> str:
    """The variance that a reduction's shares refer to, from its attributes."""
    given = attrs.get("reduction_given")
    return f"the variance not explained by {given}" if given else "the variance"


def _mask_and_map(
    view: CubeView,
) -> "tuple[xr.DataArray | None, NDArray[np.float64] | None]":
    """Find which cells hold a vector, and a map of them, without reading vectors from a file."""
    ds, lead = view.dataset, list(view.lead)
    mask = view.counts
    values: xr.DataArray
    # A reduction is small enough to examine unless lazy; a cube only if it is in memory and nothing
    # else shows where its vectors are.
    in_memory = not view.lazy if view.name == "pc" else mask is None and view.field._in_memory
    if in_memory:
        first = view.field.isel({view.dim: slice(3)})
        if mask is None:
            mask = first.isel({view.dim: 0}, drop=True).notnull()
        if view.name == "embedding":  # in published maps a vector of zeros means missing
            mask &= (first != 0).any(view.dim)
        values = first.where(mask).isel({dim: 0 for dim in lead})
        values = values if values.shape[-1] == 3 else values.isel({view.dim: 0})
    elif mask is not None:
        values = ds["n_images"].sum(lead)
        values = values.where(values > 0)
    elif "spread" in ds and set(ds["spread"].dims) == {*lead, view.lat, view.lon}:
        values = ds["spread"].mean(lead)
        mask = ds["spread"].notnull().compute().transpose(*lead, view.lat, view.lon)
    else:
        return None, None
    rows, cols = _north_up(values[view.lat].values, values[view.lon].values)
    values = values.transpose(view.lat, view.lon, ...).isel({view.lat: rows, view.lon: cols})
    raster = values.values.astype(np.float64)
    # Counts differ by orders of magnitude: on a linear map all but the largest would look alike.
    return mask, np.log2(raster) if values.name == "n_images" else raster


def _lines(view: CubeView, mask: "xr.DataArray | None") -> Iterator[tuple[str, str]]:
    ds, attrs = view.dataset, of_vectors(view.dataset.attrs)
    shape = " × ".join(f"{size}" for size in view.field.shape)
    yield "shape", f"{shape} ({', '.join(map(str, view.field.dims))})"
    for dim, names in view.groups.items():
        yield dim, ", ".join(names)
    if mask is None:
        yield "coverage", "not known without reading all vectors, as .copembed.coverage does"
    else:
        mask = _once(mask)
        cells = int(mask.any(mask.dims[:-2]).sum())
        try:
            share = f"{share_of_globe(view, mask):.2%} of the globe's area"
        except GridError:
            # An irregular grid has no cells of known area.
            share = f"{cells / max(1, mask.shape[-1] * mask.shape[-2]):.2%} of this grid"
        yield "coverage", f"{cells:,} cells, {share}"
    if "n_images" in ds and counts_images(attrs):
        counts = ", ".join(f"{name} {n:,}" for name, n in _by_modality(view) if n)
        total = int(ds["n_images"].sum(dtype=np.float64))
        yield "images", f"{total:,}" + (f" ({counts})" if counts else "")
    if "explained_variance_ratio" in ds:
        ratio = float(ds["explained_variance_ratio"].sum())
        explained = f"{ratio:.2%} of {whose_variance(attrs)}"
        cells_fitted = attrs.get("reduction_cells")
        if isinstance(cells_fitted, int | np.integer):
            explained += f", fitted to {cells_fitted:,} cells"
        yield "components", explained
    if "synthetic" in attrs:
        yield "SYNTHETIC", str(attrs["synthetic"])
    if "encoder" in attrs:
        yield "encoder", f"{attrs['encoder']}{_TRAINED.get(str(attrs.get('encoder_trained')), '')}"
    for name, key in _NAMED.items():
        if key in attrs:
            yield name, str(attrs[key])


# As text, since some formats hold every attribute as text.
_TRAINED = {"0": ", NOT TRAINED: its numbers mean nothing", "1": ", trained"}


def _by_modality(view: CubeView) -> Iterator[tuple[str, int]]:
    """Images of every modality, if the dataset counts them."""
    ds, name = view.dataset, "n_images_by_modality"
    if name not in ds and "modality" in view.lead:
        name = "n_images"
    if name in ds and "modality" in ds[name].dims:
        others = [dim for dim in ds[name].dims if dim != "modality"]
        # With groups they are too large to be read at once.
        parts = in_parts(ds[name], str(others[0])) if others else [ds[name]]
        sums = sum(part.sum(others, dtype=np.float64).values for part in parts)
        counts = np.asarray(sums, np.float64).astype(np.int64).tolist()
        yield from zip(group_labels(ds["modality"]), counts, strict=True)


def share_of_globe(view: CubeView, mask: "xr.DataArray") -> float:
    """Share of the globe's area under the cells of a mask, (…, lat, lon), of a dataset.

    Raises
    ------
    GridError
        If the size of its cells is not known.
    """
    mask = mask.transpose(..., view.lat, view.lon)
    mask = mask.assign_coords(area=(view.lat, view.latlon.areas))
    mask = _once(mask)
    cells = mask.any(mask.dims[:-2]).values.sum(axis=1)
    # Over the globe, areas add up to 2 and longitudes to 360, hence 720.
    return float(cells @ mask["area"].values * view.latlon.dx / 720)


def _once(mask: "xr.DataArray") -> "xr.DataArray":
    """Cells of a mask (…, lat, lon) without repeated ones, such as 360° beside 0°."""
    return mask.isel({dim: np.unique(first_alike(mask[dim].values)) for dim in mask.dims[-2:]})


def _north_up(lat: NDArray[Any], lon: NDArray[Any]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Positions from north to south, and from west to east: from -180 or the widest gap."""
    # From 180°W, as usual on a map, unless the region lies across that meridian.
    east = (np.asarray(lon, np.float64) + 180) % 360
    order = np.argsort(east, kind="stable")
    gaps = np.diff(east[order], append=east[order[0]] + 360) if len(order) else order
    first = int(np.argmax(gaps)) + 1 if len(gaps) and gaps.max() > 2 * np.median(gaps) else 0
    return np.argsort(-np.asarray(lat, np.float64)), np.roll(order, -first)
