"""A small map of a dataset, as Braille dots and as a PNG, without a plotting package.

The PNG has a palette (W3C PNG, third edition) and is inlined in the HTML of a card, so it must stay
small.
"""

import struct
import zlib
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

PNG_LIMIT = 28_000
"""Maximum bytes of a map: 38 kB in base64."""

_TEXT_DOTS = (60, 120)
_PICTURE = (181, 360)
_LEVELS = 6
_RAMP = ((0.23, 0.20, 0.45), (0.16, 0.47, 0.56), (0.45, 0.73, 0.43), (0.98, 0.86, 0.35))


def _shrink(raster: NDArray[np.float64], size: tuple[int, int]) -> NDArray[np.float64]:
    """Average the finite values in squares of pixels, leaving at most `size` squares."""
    rows, cols = raster.shape[:2]
    # -(-a // b) rounds up: one square too many is better than a map that does not fit.
    side = max(1, -(-rows // size[0]), -(-cols // size[1]))
    padding = [(0, -rows % side), (0, -cols % side)] + [(0, 0)] * (raster.ndim - 2)
    padded = np.pad(raster, padding, constant_values=np.nan)
    blocks = padded.reshape(padded.shape[0] // side, side, -1, side, *raster.shape[2:])
    n = np.isfinite(blocks).sum(axis=(1, 3))
    total = np.nan_to_num(blocks, nan=0.0, posinf=0.0, neginf=0.0).sum(axis=(1, 3))
    return np.where(n > 0, total / np.maximum(n, 1), np.nan)


def braille(raster: NDArray[np.float64]) -> Iterator[str]:
    """Lines of dots where a raster is not NaN, 4 × 2 dots per character (Unicode block 2800)."""
    values = raster if raster.ndim == 2 else raster[..., 0]
    dots = ~np.isnan(_shrink(np.where(np.isnan(values), np.nan, 1.0), _TEXT_DOTS))
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
        # The compressed size is known only after compression.
        size = size[0] * 3 // 4, size[1] * 3 // 4


def _scaled(values: NDArray[np.float64], steps: int) -> NDArray[np.int64]:
    """Scale values by their 2 % and 98 % quantiles to steps 0 to steps - 1; NaN becomes 0."""
    known = values[np.isfinite(values)]
    # Otherwise a few outliers would leave all other cells one colour.
    low, high = np.quantile(known, (0.02, 0.98)) if known.size else (0.0, 1.0)
    share = (values - low) / (high - low) if high > low else np.full(values.shape, 0.5)
    return np.clip(np.nan_to_num(share) * steps, 0, steps - 1).astype(np.int64)


def _colours(raster: NDArray[np.float64]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Pixels and palette for one value per pixel."""
    steps = 24
    ramp = np.array(_RAMP)
    at = np.linspace(0, len(ramp) - 1, steps)
    palette = np.stack([np.interp(at, range(len(ramp)), ramp[:, i]) for i in range(3)], axis=1)
    pixels = np.where(np.isnan(raster), 0, 1 + _scaled(raster, steps))
    return pixels.astype(np.uint8), np.vstack([np.zeros((1, 3)), palette * 255]).astype(np.uint8)


def _mixed(raster: NDArray[np.float64]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Pixels and palette for three values per pixel, as red, green and blue."""
    red, green, blue = (_scaled(raster[..., i], _LEVELS) for i in range(3))
    # Colour 0 of the palette is transparent and means no vector.
    code = 1 + (red * _LEVELS + green) * _LEVELS + blue
    levels = np.linspace(20, 250, _LEVELS)
    cube = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), axis=-1).reshape(-1, 3)
    pixels = np.where(np.isnan(raster).any(axis=-1), 0, code)
    return pixels.astype(np.uint8), np.vstack([np.zeros((1, 3)), cube]).astype(np.uint8)


def png(pixels: NDArray[np.uint8], palette: NDArray[np.uint8]) -> bytes:
    """Write a PNG of palette colours (W3C PNG, third edition), the first of them transparent.

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
