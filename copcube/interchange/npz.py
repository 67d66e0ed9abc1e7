"""NumPy archives: the format in which the map is published, and exports in it.

``embed_map_310k.npz`` holds one array, ``arr_0`` (721, 1440, 768). Stored members are read in
place; deflated ones must be read completely.
"""

import tokenize
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from copcube import grid
from copcube.arguments import flag
from copcube.errors import CubeError
from copcube.files.contents import refuse_other
from copcube.files.zip_directory import open_directory
from copcube.interchange.cache import FilledCells
from copcube.interchange.metadata import KEY, MapMetadata
from copcube.interchange.packing import DTYPES, MISSING_CODE, Exported, Packing
from copcube.interchange.sources import Decoded, InPlace, MapSource, demand_band, filled_cells
from copcube.interchange.writer import writing_map

if TYPE_CHECKING:
    import xarray as xr

_BESIDE = (KEY, "scale", "offset")
PLACES = {"lat": grid.N_LAT, "latitude": grid.N_LAT, "lon": grid.N_LON, "longitude": grid.N_LON}
"""Names of coordinates that may lie beside a map, and how many there are."""
SMALL = 1 << 26
"""Maximum bytes of a member beside a map."""

_BROKEN = (
    *(zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError),
    *(SyntaxError, tokenize.TokenError),  # for NumPy's headers, which are Python literals
)
_READABLE = ("float16", "float32", "float64", "int8")


@dataclass(frozen=True)
class Deflated(Decoded):
    """A compressed member of an npz.

    Parameters
    ----------
    member : str
        Its name.
    skip : int
        Bytes of the array's header.
    """

    member: str = "arr_0.npy"
    skip: int = 0

    def cells(self) -> Iterator[FilledCells]:  # noqa: D102
        dtype = np.dtype(self.packing.dtype)
        with (
            _reading(self.path),
            zipfile.ZipFile(self.path) as archive,
            archive.open(self.member) as stream,
        ):
            stream.read(self.skip)
            for rows in grid.bands():
                numbers = np.empty((rows.stop - rows.start, grid.N_LON, self.dim), dtype)
                _fill(stream, numbers)
                yield filled_cells(numbers, rows.start, 0, self.packing)
            stream.read(1)  # read to the end, where the checksum is compared


def open_npz(path: str) -> MapSource:
    """Find the map in an npz, without reading it.

    Raises
    ------
    CubeError
        If the file is not an archive, or holds no array of (721, 1440, D) numbers.
    """
    refuse_other(path, ("npz", "zip"), "an npz archive", CubeError)
    with _reading(path), open_directory(path) as directory, zipfile.ZipFile(path) as archive:
        names = [name.removesuffix(".npy") for name in directory.entries]
        maps = [name for name in names if name not in _BESIDE]
        # numpy.savez names an unnamed array arr_0; users may choose any name.
        name = "arr_0" if "arr_0" in maps else maps[0] if len(maps) == 1 else None
        if name is None:
            raise CubeError(
                f"{path}: expected the array arr_0, or a single array; found "
                f"{', '.join(maps)[:400] or 'none'}"
            )
        info = archive.getinfo(f"{name}.npy")
        with _member_of(archive, info) as stream:
            shape, in_columns, dtype = array_header(stream)
            skip = stream.tell()
        beside = (*_BESIDE, *PLACES)
        small = {key: _small(archive, f"{key}.npy") for key in beside if key in names}
    metadata = MapMetadata.loads(str(small[KEY]) if KEY in small else None, path)
    require_map(path, name, shape, dtype.name)
    refuse_other_places(path, small, metadata)
    packing = packing_of(path, dtype, shape[-1], small.get("scale"), small.get("offset"))
    if in_columns or not dtype.isnative:
        raise CubeError(
            f"{path}: {name} is stored in {'column order' if in_columns else 'foreign byte order'};"
            f" save it again as numpy.ascontiguousarray(array, {dtype.name!r})"
        )
    # `object` for the product: int64 could overflow on a shape that a broken file claims.
    if info.file_size != skip + int(np.prod(shape, dtype=object)) * dtype.itemsize:
        raise CubeError(
            f"{path}: {name} does not have the length of its shape {shape}; get a new copy"
        )
    if info.compress_type != zipfile.ZIP_STORED:
        return Deflated(path, "npz, deflated", shape[-1], packing, metadata, info.filename, skip)
    with _reading(path), open_directory(path) as directory:
        start = directory.locate(info.filename)[0] + skip
    return InPlace(path, "npz, stored", shape[-1], packing, metadata, start)


def to_npz(
    ds: "xr.Dataset",
    path: str | Path,
    *,
    order: str = "published",
    dtype: str = "float32",
    compress: bool = False,
    overwrite: bool = False,
) -> Exported:
    """Write a cube or a reduction as the published npz: key ``arr_0``, (721, 1440, D).

    Rows run from 90°N, columns from 180°W; missing cells are 0 (in int8 -128). A second key,
    ``copcube``, holds attributes and the basis of a reduction as JSON.

    Parameters
    ----------
    ds : xarray.Dataset
        Cube or reduction, of any region.
    path : str or Path
        File to write, atomically.
    order : {"published", "era5"}
        Whether columns run from 180°W or from 0°E.
    dtype : {"float32", "float16", "int8"}
        Int8 has the key ``codes`` instead of ``arr_0``, with ``scale`` and ``offset``: value = code
        · scale + offset.
    compress : bool
        Deflate, as in the published file; stored archives are read in place.
    overwrite : bool
        Replace what is there.

    Returns
    -------
    Exported
        What was written, and the error that `dtype` causes.

    Raises
    ------
    CubeError, GridError
        If the dataset is not a cube or reduction on the lattice.
    OptionError
        If an option has no such value.
    WriteError
        If the file exists already or cannot be written.
    """
    kind = zipfile.ZIP_DEFLATED if flag(compress, "compress") else zipfile.ZIP_STORED
    with (
        writing_map(
            ds, path, "npz", DTYPES, dtype=dtype, order=order, overwrite=overwrite
        ) as writer,
        zipfile.ZipFile(writer.file, "w", kind, True) as archive,
    ):
        packing = writer.packing
        # A reader of the published array must not find codes in its place.
        name = "arr_0" if packing.scale is None else "codes"
        with _member(archive, name, kind) as stream:
            shape = grid.N_LAT, grid.N_LON, writer.dim
            descr = np.lib.format.dtype_to_descr(np.dtype(packing.dtype))
            np.lib.format.write_array_header_1_0(
                stream, {"shape": shape, "fortran_order": False, "descr": descr}
            )
            for rows in grid.bands():
                stream.write(writer.window(rows).data)
        small = {"scale": packing.scale, "offset": packing.offset, KEY: writer.metadata.dumps()}
        for name, value in small.items():
            if value is not None:
                with _member(archive, name, kind) as stream:
                    np.lib.format.write_array(stream, np.asarray(value), allow_pickle=False)
    return writer.result(path)


def require_map(path: str, name: str, shape: tuple[int, ...], dtype: str) -> None:
    """Check that an array is a map.

    Raises
    ------
    CubeError
        If its shape or data type is wrong, or its vectors are too long.
    """
    if len(shape) != 3 or shape[:2] != (grid.N_LAT, grid.N_LON) or shape[2] < 1:
        raise CubeError(
            f"{path}: {name} has the shape {shape}; expected (721, 1440, D), rows from 90°N, "
            "columns from 180°W, vectors last"
        )
    if dtype not in _READABLE:
        raise CubeError(f"{path}: {name} holds {dtype}; expected {', '.join(_READABLE)}")
    demand_band(path, shape[2], np.dtype(dtype).itemsize)


def refuse_other_places(
    path: str, beside: Mapping[str, NDArray[Any] | None], metadata: MapMetadata
) -> None:
    """Refuse a map beside which coordinates lie that are not those of its layout.

    Raises
    ------
    CubeError
        If its rows or columns then lie elsewhere.
    """
    west = 180 if metadata.order == "published" else 0
    layout = {"lat": grid.latitudes(), "lon": grid.longitudes() - west}
    for name in PLACES:
        wanted, given = layout[name[:3]], beside.get(name)
        if given is None or given.shape != wanted.shape or given.dtype.kind not in "iuf":
            continue
        if (np.abs((given - wanted + 180) % 360 - 180) > grid.NEAR).any():
            raise CubeError(
                f"{path}: {name} runs from {given[0]:g} to {given[-1]:g}; expected "
                f"{wanted[0]:g} to {wanted[-1]:g}, as in a published map: bring the map into this "
                "order with numpy.flip or numpy.roll, and correct the coordinates"
            )


def packing_of(path: str, dtype: np.dtype[Any], dim: int, scale: Any, offset: Any) -> Packing:
    """Packing of an array's numbers.

    Raises
    ------
    CubeError
        If integers come without scale and offset, or those do not fit.
    """
    if dtype.kind == "f":
        return Packing(dtype.name)
    parts = [None if part is None else np.asarray(part) for part in (scale, offset)]
    if any(p is None or p.shape != (dim,) or p.dtype.kind != "f" for p in parts):
        raise CubeError(
            f"{path}: int8 numbers need scale and offset, {dim} floats each; found "
            f"{' and '.join('none' if p is None else f'{p.dtype} {p.shape}' for p in parts)}"
        )
    scales, offsets = (np.asarray(part, np.float64) for part in parts)
    return Packing(dtype.name, scales, offsets, MISSING_CODE)


@contextmanager
def _member(archive: zipfile.ZipFile, name: str, kind: int) -> Iterator[IO[bytes]]:
    info = zipfile.ZipInfo(f"{name}.npy")  # of 1980: the same cube gives the same bytes
    info.compress_type = kind
    # The size is not known before the end, and may need more than 32 bits.
    with archive.open(info, "w", force_zip64=True) as stream:
        yield stream


def array_header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Read what the header of an array states: shape, whether in column order, data type."""
    version = np.lib.format.read_magic(stream)
    if version == (1, 0):
        return np.lib.format.read_array_header_1_0(stream)
    return np.lib.format.read_array_header_2_0(stream)


def _small(archive: zipfile.ZipFile, name: str) -> NDArray[Any]:
    """Read a member beside a map, if it has the size that its header states."""
    info = archive.getinfo(name)
    if info.file_size > SMALL:
        raise CubeError(f"{archive.filename}: {name} is larger than such a member can be")
    with _member_of(archive, info) as stream:
        shape, _, dtype = array_header(stream)
        if stream.tell() + int(np.prod(shape, dtype=object)) * dtype.itemsize != info.file_size:
            raise CubeError(f"{archive.filename}: {name} does not have the size that it states")
        stream.seek(0)
        return np.asarray(np.lib.format.read_array(stream, allow_pickle=False))


@contextmanager
def _member_of(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Iterator[IO[bytes]]:
    """Open a member that NumPy may have written."""
    # For other compressions, `zipfile` expands without a bound.
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise CubeError(
            f"{archive.filename}: {info.filename} is compressed by method {info.compress_type}; "
            "expected stored or deflated: save it again with numpy.savez_compressed"
        )
    with archive.open(info) as stream:
        yield stream


def _fill(stream: IO[bytes], numbers: NDArray[Any]) -> None:
    """Read bytes into an array until it is full."""
    target = numbers.reshape(-1).view(np.uint8).data
    start = 0
    while start < len(target):
        read = stream.readinto(target[start : start + (1 << 20)])  # type: ignore[attr-defined]
        if not read:
            raise EOFError("the data end early")
        start += read


@contextmanager
def _reading(path: str) -> Iterator[None]:
    """Turn the exceptions of a broken archive into an error that names it."""
    try:
        yield
    except _BROKEN as error:
        raise CubeError(
            f"{path}: not a complete npz archive ({error}); it may be truncated: get a new copy"
        ) from error
    except ValueError as error:
        if isinstance(error, CubeError):
            raise
        raise CubeError(f"{path}: its array cannot be read ({error}); get a new copy") from error
