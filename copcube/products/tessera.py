"""TESSERA's annual embeddings: the Zarr store of UTM zones, and tiles of 0.1° as ``.npy`` files.

A value of the vector is an int8 times the scale of its pixel, float32. A scale that is not a number
marks water, an infinite one what is not filled yet. In the store a zone is a group ``utm32`` with
``embeddings`` (time, band, y, x), ``scales`` (time, y, x) and ``time``, the years; its place is in
the attributes ``proj:code`` and ``spatial:transform``, or in ``x`` and ``y``, centres of pixels.
South of the equator northings are negative. Of a tile there are ``grid_LON_LAT.npy`` (y, x, band)
and ``grid_LON_LAT_scales.npy`` below ``global_0.1_degree_representation/YEAR``, and a GeoTIFF of
land and water, whose place is also theirs, in ``global_0.1_degree_tiff_all``.
"""

import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from copcube.errors import CopcubeError, RowsError, in_a_line
from copcube.files.folders import absolute
from copcube.files.limits import rule_out_shortage
from copcube.files.objects import insisting, is_remote, listing, sizes, zarr_store
from copcube.files.regular import bytes_below
from copcube.grid import Floats
from copcube.products import geotiff
from copcube.products.pixels import Pixels, Raster
from copcube.products.place import Place

if TYPE_CHECKING:
    import zarr

T = TypeVar("T")
DIM = 128
_ZONE = re.compile(r"utm(\d\d)")
_LAND = "global_0.1_degree_tiff_all"
_YEAR = re.compile(r"20[12]\d")
_SCALES = "_scales.npy"
_METADATA = ("zarr.json", *(f"{name}/zarr.json" for name in ("embeddings", "scales", "time")))


class _Quantised:
    """What is common to both forms: vectors of int8, scaled by the pixel."""

    dim = DIM

    def decode(self, values: NDArray[Any], out: Floats) -> None:
        """Decode values; see `copcube.products.pixels.Raster`."""
        out[...] = values


def _pixels(values: NDArray[Any], scale: NDArray[np.float32], name: str) -> Pixels:
    valid = np.isfinite(scale)
    if (negative := valid & (scale < 0)).any():
        raise RowsError(
            f"{name}: a scale is {scale[negative][0]:g}; expected positive ones. These may be the "
            "scales of something else; get new copies"
        )
    return Pixels(values, valid, np.where(valid, scale, np.float32(0)))


class TesseraZone(_Quantised):
    """A year of a UTM zone in the store; see `copcube.products.pixels.Raster`.

    Parameters
    ----------
    path : str
        Folder of the zone's group.
    index : int
        Which year.
    """

    def __init__(self, path: str, index: int) -> None:
        self.path, self._index = path, index
        _asking(path, self._open)

    def _open(self) -> None:
        path, group = self.path, _group(self.path)
        embeddings, scales = (_array(group, name, path) for name in ("embeddings", "scales"))
        shape = embeddings.shape
        if embeddings.ndim != 4 or shape[1] != DIM or embeddings.dtype != np.int8:
            raise RowsError(
                f"{path}: its embeddings are {embeddings.dtype} of the shape {shape}; expected "
                f"int8 of (time, {DIM}, y, x), as in TESSERA's store"
            )
        if scales.shape != (shape[0], *shape[2:]) or scales.dtype != np.float32:
            raise RowsError(
                f"{path}: its scales are {scales.dtype} of the shape {scales.shape}, its "
                f"embeddings have the shape {shape}; expected float32 of {(shape[0], *shape[2:])}"
            )
        self.height, self.width = shape[2:]
        self.place = _place(group, path)
        self.year: int | None = int(np.asarray(_array(group, "time", path)[self._index]))

    def read(self, rows: slice, cols: slice) -> Pixels:
        """Read a window; see `copcube.products.pixels.Raster`."""
        try:
            values, scale = _asking(self.path, lambda: self._window(rows, cols))
        except CopcubeError:
            raise
        except (ValueError, RuntimeError, OSError) as error:
            rule_out_shortage(error)
            raise RowsError(f"{self.path}: damaged ({in_a_line(error)}); get a new copy") from error
        return _pixels(values, scale, self.path)

    def _window(self, rows: slice, cols: slice) -> tuple[NDArray[Any], NDArray[np.float32]]:
        group, at = _group(self.path), self._index
        scale = np.asarray(_array(group, "scales", self.path)[at, rows, cols])
        if not np.isfinite(scale).any():  # most of a store is sea, or not filled
            return np.zeros((DIM, *scale.shape), np.int8), scale
        return np.asarray(_array(group, "embeddings", self.path)[at, :, rows, cols]), scale


class TesseraTile(_Quantised):
    """A tile of 0.1°; see `copcube.products.pixels.Raster`.

    Parameters
    ----------
    path : str
        Its ``.npy`` file of vectors.
    """

    def __init__(self, path: str) -> None:
        self.path, self._scales = path, path.removesuffix(".npy") + _SCALES
        self._land = _land(path)
        head = geotiff.head(self._land)
        values, scales = _load(path), _load(self._scales)
        shape = (head.height, head.width)
        if values.dtype != np.int8 or values.shape != (*shape, DIM):
            raise RowsError(
                f"{path}: it holds {values.dtype} of the shape {values.shape}; expected int8 of "
                f"{(*shape, DIM)}, as {self._land} has {shape[0]} lines of {shape[1]} pixels"
            )
        if scales.dtype != np.float32 or scales.shape != shape:
            raise RowsError(
                f"{self._scales}: it holds {scales.dtype} of the shape {scales.shape}; expected "
                f"float32 of {shape}, one scale a pixel of {path}"
            )
        self.place, (self.height, self.width) = head.place, shape
        named = [part for part in Path(absolute(path)).parts[-3:] if _YEAR.fullmatch(part)]
        self.year = int(named[-1]) if named else None

    def read(self, rows: slice, cols: slice) -> Pixels:
        """Read a window; see `copcube.products.pixels.Raster`."""
        values = np.moveaxis(_window(self.path, rows, cols), -1, 0)
        scale = _window(self._scales, rows, cols)
        scale[geotiff.read(self._land, rows, cols, 1) == 0] = np.nan
        return _pixels(values, scale, self._scales)


class Tessera:
    """The product; see `copcube.products.pixels.Reader`."""

    about = {  # noqa: RUF012 (the protocol's attribute; nobody changes it)
        "product": "TESSERA",
        "encoder": "TESSERA",
        "title": "TESSERA embeddings on ERA5's 0.25 degree grid",
        "license": "CC-BY-4.0",
        "attribution": "TESSERA, University of Cambridge",
        "references": "https://arxiv.org/abs/2506.20380",
        "source": "TESSERA, annual, 10 m, of Sentinel-1 and Sentinel-2",
        "preprocessing": "dequantised: int8 times the scale of the pixel",
    }

    def files(self, path: str) -> list[str]:
        """Find zones of a store, or tiles; see `copcube.products.pixels.Reader`."""
        if is_remote(path):
            return _addresses(path.rstrip("/"))
        if os.path.exists(os.path.join(path, "zarr.json")):
            if _ZONE.fullmatch(os.path.basename(path.rstrip("/"))):
                return [path.rstrip("/")]
            found = sorted(os.path.join(path, name) for name in os.listdir(path))
            return [name for name in found if self.owns(name)]
        return [name for name in geotiff.find(path, [".npy"]) if self.owns(name)]

    def owns(self, file: str) -> bool:
        """Recognise one by its name; see `copcube.products.pixels.Reader`."""
        if file.endswith(".npy"):
            return not file.endswith(_SCALES)
        zone = _ZONE.fullmatch(os.path.basename(file))
        # Called often: at an address the name alone must suffice.
        return zone is not None and (
            is_remote(file) or os.path.exists(os.path.join(file, "zarr.json"))
        )

    def rasters(self, file: str) -> Sequence[Raster]:
        """Open one; see `copcube.products.pixels.Reader`."""
        if file.endswith(".npy"):
            return [TesseraTile(file)]
        years = _asking(file, lambda: len(_array(_group(file), "time", file)[:]))
        return [TesseraZone(file, index) for index in range(years)]

    def size(self, file: str) -> int:
        """Size in bytes of all that is read; see `copcube.products.pixels.Reader`."""
        if file.endswith(".npy"):
            names = file, file.removesuffix(".npy") + _SCALES, _land(file)
            return sum(os.stat(name).st_size for name in names if os.path.exists(name))
        if file.startswith("http"):  # a server that lists nothing
            return sum(filter(None, sizes(f"{file}/{name}" for name in _METADATA)))
        if is_remote(file):
            return sum(entry.size for entry in listing(file))
        return bytes_below(file)


def _addresses(url: str) -> list[str]:
    """Zones at the address of a store, or of a zone."""
    if url.endswith(".npy"):
        raise RowsError(
            f"{url}: tiles of TESSERA are read from this machine only; download them (with "
            "geotessera), or give the address of the Zarr store, or of a zone of it"
        )
    if sizes([f"{url}/zarr.json"]) == [None]:
        return []
    if _ZONE.fullmatch(os.path.basename(url)):
        return [url]
    # Not listed: a web server does not do that, and a store has a great many objects.
    zones = [f"{url}/utm{number:02d}" for number in range(1, 61)]
    there = sizes(f"{zone}/zarr.json" for zone in zones)
    return [zone for zone, size in zip(zones, there, strict=True) if size is not None]


def _asking(path: str, ask: Callable[[], T]) -> T:
    """Call a function that reads from a store, again if it is at an address that fails."""
    return insisting(path, ask) if is_remote(path) else ask()


def _group(path: str) -> "zarr.Group":
    import zarr

    store = zarr_store(path) if is_remote(path) else path
    try:
        return zarr.open_group(store, mode="r", use_consolidated=False)
    except (ValueError, OSError, KeyError) as error:
        rule_out_shortage(error)
        raise RowsError(f"{path}: not a readable Zarr group ({in_a_line(error)})") from error


def _array(group: "zarr.Group", name: str, path: str) -> Any:
    try:
        return group[name]
    except KeyError as error:
        raise RowsError(
            f"{path}: it has no array {name!r}; a zone of TESSERA's store has embeddings, scales "
            "and time"
        ) from error


def _place(group: "zarr.Group", path: str) -> Place:
    """Place of a zone, by its attributes, or by the coordinates of its pixels."""
    attrs = dict(group.attrs)
    code = str(attrs.get("proj:code", "")).removeprefix("EPSG:")
    zone = _ZONE.fullmatch(os.path.basename(path))
    epsg = int(code) if code.isdecimal() else None if zone is None else 32600 + int(zone[1])
    if (affine := attrs.get("spatial:transform")) is None:
        x, y = (np.asarray(_array(group, axis, path)[:2], np.float64) for axis in "xy")
        if min(len(x), len(y)) < 2:
            raise RowsError(f"{path}: neither spatial:transform nor x and y give its location")
        dx, dy = float(x[1] - x[0]), float(y[1] - y[0])
        affine = [dx, 0.0, float(x[0]) - dx / 2, 0.0, dy, float(y[0]) - dy / 2]
    return Place.of(epsg, affine, path)  # type: ignore[arg-type]


def _load(path: str) -> "np.memmap[Any, Any]":
    """Map an array into memory; objects, which could run code, are refused."""
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)  # type: ignore[no-any-return]
    except FileNotFoundError as error:
        raise RowsError(
            f"{path}: no such file; a tile of TESSERA has its vectors in NAME.npy and one scale a "
            "pixel in NAME_scales.npy"
        ) from error
    except (ValueError, OverflowError, OSError, EOFError) as error:
        rule_out_shortage(error)
        raise RowsError(f"{path}: not a readable .npy file ({in_a_line(error)})") from error


def _window(path: str, rows: slice, cols: slice) -> NDArray[Any]:
    """Read a window of an array."""
    whole = _load(path)
    if not whole.flags.c_contiguous:
        return np.array(whole[rows, cols])
    values = np.empty_like(whole[rows, cols], subok=False)
    # Read, not mapped: if the file is truncated meanwhile, a mapping kills the process.
    with open(path, "rb") as file:
        for row, line in enumerate(values, rows.start):
            file.seek(whole.offset + row * whole.strides[0] + cols.start * whole.strides[1])
            if file.readinto(line.data) != line.nbytes:
                raise RowsError(f"{path}: truncated; get a new copy")
    return values


def _land(path: str) -> str:
    """GeoTIFF of land and water of a tile."""
    name = Path(path).stem
    for folder in Path(absolute(path)).parents:
        for end in (".tiff", ".tif"):
            if (found := folder / _LAND / f"{name}{end}").exists():
                return str(found)
    raise RowsError(
        f"{path}: taken for a tile of TESSERA, but its location is unknown: "
        f"{_LAND}/{name}.tiff, its GeoTIFF of land and water, is in none of the folders above it; "
        "download it too (with geotessera)"
    )
