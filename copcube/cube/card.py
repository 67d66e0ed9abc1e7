"""A dataset at a glance: what it covers, what made it, and a small map, as text and HTML.

Vectors are never read from a file or computed: counts of images, or else the spread, say where
they are, or a few values of each vector where they lie in memory. The map is a palette PNG,
written here so that it needs no plotting package.
"""

import struct
import zlib
from base64 import b64encode
from collections.abc import Iterator
from dataclasses import dataclass, field
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from copcube.cube.latlon import LatLon
from copcube.cube.schema import labels
from copcube.cube.view import counted, filled, vectors
from copcube.errors import CopcubeError, GridError

if TYPE_CHECKING:
    import xarray as xr

PNG_LIMIT = 28_000
"""Bytes of a map at most: 38 kB in base64."""

_TEXT_DOTS = (60, 120)
_PICTURE = (181, 360)
_LEVELS = 6
_RAMP = ((0.23, 0.20, 0.45), (0.16, 0.47, 0.56), (0.45, 0.73, 0.43), (0.98, 0.86, 0.35))


@dataclass(frozen=True)
class Card:
    """What there is to say about a dataset.

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
        figures = (f"  {name:<{width}}  {text}" for name, text in self.lines)
        drawn = () if self.raster is None else _braille(~np.isnan(_flat(self.raster)))
        return "\n".join([f"<copembed: {self.title}>", *figures, *(f"  {row}" for row in drawn)])

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
        Anything; if it is no cube, the card says why.
    """
    try:
        data = vectors(ds)
    except CopcubeError as error:
        return Card("not an embedding cube", (("why", str(error)),))
    mask, raster = _known(ds, data)
    title = "reduction of an embedding cube" if data.name == "pc" else "embedding cube"
    return Card(title, tuple(_lines(ds, data, mask)), raster)


def coverage(ds: "xr.Dataset") -> float:
    """Share of the globe's area that the cells with a vector cover, 0 to 1.

    With a leading dimension, cells count that have a vector in any group. Without
    ``n_images``, all vectors are read.

    Raises
    ------
    CubeError
        If the dataset is no cube.
    GridError
        If its grid is irregular, or finer than 0.25°.
    """
    return _area(filled(ds))


def _known(
    ds: "xr.Dataset", data: "xr.DataArray"
) -> "tuple[xr.DataArray | None, NDArray[np.float64] | None]":
    """Which cells hold a vector and a map of them, as far as that is told without reading any."""
    *lead, lat, lon, along = map(str, data.dims)
    mask = counted(ds)
    values: xr.DataArray
    at_hand = data.chunks is None if data.name == "pc" else mask is None and data._in_memory
    if at_hand:
        some = data.isel({along: slice(3)})
        if mask is None:
            mask = some.isel({along: 0}, drop=True).notnull()
        if data.name == "embedding":  # of zeros is missing, as in published maps
            mask &= (some != 0).any(along)
        values = some.where(mask).isel({dim: 0 for dim in lead})
        values = values if values.shape[-1] == 3 else values.isel({along: 0})
    elif mask is not None:
        values = ds["n_images"].sum(lead)
        values = values.where(values > 0)
    elif "spread" in ds and set(ds["spread"].dims) == {*lead, lat, lon}:
        values = ds["spread"].mean(lead)
        mask = ds["spread"].notnull().compute().transpose(*lead, lat, lon)
    else:
        return None, None
    rows, cols = _north_up(values[lat].values, values[lon].values)
    found = values.transpose(lat, lon, ...).isel({lat: rows, lon: cols}).values.astype(np.float64)
    return mask, np.log2(found) if values.name == "n_images" else found


def _lines(
    ds: "xr.Dataset", data: "xr.DataArray", mask: "xr.DataArray | None"
) -> Iterator[tuple[str, str]]:
    attrs = ds.attrs
    shape = " × ".join(f"{size}" for size in data.shape)
    yield "shape", f"{shape} ({', '.join(map(str, data.dims))})"
    for dim in data.dims[:-3]:
        yield str(dim), ", ".join(_groups(ds, str(dim)))
    if mask is None:
        yield "coverage", "not known without reading all vectors, as .copembed.coverage does"
    else:
        cells = int(mask.any(mask.dims[:-2]).sum())
        try:
            share = f"{_area(mask):.2%} of the globe's area"
        except GridError:
            share = f"{cells / max(1, mask.shape[-1] * mask.shape[-2]):.2%} of this grid"
        yield "coverage", f"{cells:,} cells, {share}"
    if "n_images" in ds:
        counts = ", ".join(f"{name} {n:,}" for name, n in _by_modality(ds, data) if n)
        total = int(ds["n_images"].sum(dtype=np.float64))
        yield "images", f"{total:,}" + (f" ({counts})" if counts else "")
    if "explained_variance_ratio" in ds:
        explained = f"{float(ds['explained_variance_ratio'].sum()):.2%} of the variance"
        fitted = attrs.get("reduction_cells")
        told = f", fitted to {fitted:,} cells" if isinstance(fitted, int | np.integer) else ""
        yield "components", explained + told
    if "encoder" in attrs:
        yield "encoder", f"{attrs['encoder']}{_TRAINED.get(attrs.get('encoder_trained', -1), '')}"
    for name, key in (("aggregation",) * 2, ("dates",) * 2, ("licence", "license")):
        if key in attrs:
            yield name, str(attrs[key])


_TRAINED = {0: ", NOT TRAINED: its numbers mean nothing", 1: ", trained"}


def _groups(ds: "xr.Dataset", dim: str) -> tuple[str, ...]:
    coordinate = ds[dim]
    if coordinate.dtype.kind == "i" and dim in ds.coords:
        return labels(dim, coordinate.values, coordinate.attrs)
    return tuple(map(str, coordinate.values))


def _by_modality(ds: "xr.Dataset", data: "xr.DataArray") -> Iterator[tuple[str, int]]:
    """Images of every modality, where the dataset counts them."""
    name = "n_images_by_modality"
    if name not in ds and "modality" in data.dims:
        name = "n_images"
    if name in ds and "modality" in ds[name].dims:
        others = [dim for dim in ds[name].dims if dim != "modality"]
        sums = ds[name].sum(others, dtype=np.float64).values.astype(np.int64).tolist()
        yield from zip(_groups(ds, "modality"), sums, strict=True)


def _area(mask: "xr.DataArray") -> float:
    """Share of the globe's area under the cells of a mask, which are as wide as their spacing."""
    where = LatLon.of(mask.to_dataset(name="mask"))
    south, north = np.sin(np.radians(where.south_north))
    cells = mask.any(mask.dims[:-2]).transpose(where.lat, where.lon).values.sum(axis=1)
    return float(cells @ (north - south) * where.dx / 720)


def _north_up(lat: NDArray[Any], lon: NDArray[Any]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Positions from north to south, and from west to east: from -180 or the widest gap."""
    east = (np.asarray(lon, np.float64) + 180) % 360
    order = np.argsort(east, kind="stable")
    gaps = np.diff(east[order], append=east[order[0]] + 360) if len(order) else order
    first = int(np.argmax(gaps)) + 1 if len(gaps) and gaps.max() > 2 * np.median(gaps) else 0
    return np.argsort(-np.asarray(lat, np.float64)), np.roll(order, -first)


def _flat(raster: NDArray[np.float64]) -> NDArray[np.float64]:
    return raster if raster.ndim == 2 else raster[..., 0]


def _shrink(raster: NDArray[np.float64], size: tuple[int, int]) -> NDArray[np.float64]:
    """Means of what there is in squares of pixels, so that at most `size` of them are left."""
    rows, cols = raster.shape[:2]
    side = max(1, -(-rows // size[0]), -(-cols // size[1]))
    padding = [(0, -rows % side), (0, -cols % side)] + [(0, 0)] * (raster.ndim - 2)
    padded = np.pad(raster, padding, constant_values=np.nan)
    blocks = padded.reshape(padded.shape[0] // side, side, -1, side, *raster.shape[2:])
    n = np.isfinite(blocks).sum(axis=(1, 3))
    total = np.nan_to_num(blocks, nan=0.0, posinf=0.0, neginf=0.0).sum(axis=(1, 3))
    return np.where(n > 0, total / np.maximum(n, 1), np.nan)


def _braille(mask: NDArray[np.bool_]) -> Iterator[str]:
    """Lines of a mask, 4 × 2 dots a character (Unicode block 2800)."""
    dots = ~np.isnan(_shrink(np.where(mask, 1.0, np.nan), _TEXT_DOTS))
    dots = np.pad(dots, [(0, -size % step) for size, step in zip(dots.shape, (4, 2), strict=True)])
    weights = np.array([[0x01, 0x08], [0x02, 0x10], [0x04, 0x20], [0x40, 0x80]])
    cells = dots.reshape(dots.shape[0] // 4, 4, -1, 2)
    for row in np.einsum("iajb,ab->ij", cells, weights):
        yield "".join(chr(0x2800 + code) for code in row)


def picture(raster: NDArray[np.float64]) -> bytes:
    """Map of a raster as a PNG of at most `PNG_LIMIT` bytes; transparent where it is NaN."""
    size = _PICTURE
    while True:
        small = _shrink(raster, size)
        image = png(*(_colours(small) if small.ndim == 2 else _mixed(small)))
        if len(image) <= PNG_LIMIT:
            return image
        size = size[0] * 3 // 4, size[1] * 3 // 4


def _scaled(values: NDArray[np.float64], steps: int) -> NDArray[np.int64]:
    """Values by their 2 % and 98 % quantiles as steps, 0 to steps - 1; NaN as 0."""
    known = values[np.isfinite(values)]
    low, high = np.quantile(known, (0.02, 0.98)) if known.size else (0.0, 1.0)
    place = (values - low) / (high - low) if high > low else np.full(values.shape, 0.5)
    return np.clip(np.nan_to_num(place) * steps, 0, steps - 1).astype(np.int64)


def _colours(raster: NDArray[np.float64]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Pixels and palette of one value a pixel."""
    steps = 24
    ramp = np.array(_RAMP)
    at = np.linspace(0, len(ramp) - 1, steps)
    palette = np.stack([np.interp(at, range(len(ramp)), ramp[:, i]) for i in range(3)], axis=1)
    pixels = np.where(np.isnan(raster), 0, 1 + _scaled(raster, steps))
    return pixels.astype(np.uint8), np.vstack([np.zeros((1, 3)), palette * 255]).astype(np.uint8)


def _mixed(raster: NDArray[np.float64]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Pixels and palette of three values a pixel, as red, green and blue."""
    red, green, blue = (_scaled(raster[..., i], _LEVELS) for i in range(3))
    code = 1 + (red * _LEVELS + green) * _LEVELS + blue
    levels = np.linspace(20, 250, _LEVELS)
    cube = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), axis=-1).reshape(-1, 3)
    pixels = np.where(np.isnan(raster).any(axis=-1), 0, code)
    return pixels.astype(np.uint8), np.vstack([np.zeros((1, 3)), cube]).astype(np.uint8)


def png(pixels: NDArray[np.uint8], palette: NDArray[np.uint8]) -> bytes:
    """Write a PNG of palette colours (W3C PNG, third edition), of which the first is clear.

    Parameters
    ----------
    pixels : numpy.ndarray
        Indices into the palette, (H, W) uint8.
    palette : numpy.ndarray
        Red, green and blue, (n ≤ 256, 3) uint8.
    """

    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    height, width = pixels.shape
    lines = np.hstack([np.zeros((height, 1), np.uint8), pixels])  # filter 0 in front of a line
    return b"".join(
        [
            b"\x89PNG\r\n\x1a\n",
            chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)),
            chunk(b"PLTE", palette.tobytes()),
            chunk(b"tRNS", b"\x00"),
            chunk(b"IDAT", zlib.compress(lines.tobytes(), 9)),
            chunk(b"IEND", b""),
        ]
    )
