"""GeoTIFFs: the map as torchgeo redistributes it (``embed_map_310k.tif``), one band per dimension.

Layout of the published file: EPSG:4326, 721 × 1440 pixels of 0.25° whose upper left corner
is (180.125°W, 90.125°N), so that pixel centres are ERA5's nodes; float32, 0 where missing and
no nodata value, tiles of 256, pixel-interleaved, deflated.
"""

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from copcube import grid
from copcube.arguments import flag
from copcube.cube.schema import is_numbered
from copcube.cube.view import LENGTHWISE
from copcube.errors import CubeError, OptionError
from copcube.files import limits
from copcube.files.contents import refuse_other
from copcube.files.limits import demand
from copcube.interchange.cache import FilledCells
from copcube.interchange.metadata import KEY, MapMetadata
from copcube.interchange.npz import packing_of
from copcube.interchange.packing import Exported
from copcube.interchange.sources import Decoded, MapSource, demand_band, filled_cells
from copcube.interchange.writer import MapWriter, writing_map

if TYPE_CHECKING:
    import rasterio
    import xarray as xr

log = logging.getLogger("copcube")

TILE = 256
_WEST = {"published": -180 - grid.STEP / 2, "era5": -grid.STEP / 2}
"""Western edge of the raster in degrees."""
_CACHE = 512
"""Megabytes that GDAL may cache while it writes: two tiles of 768 bands."""

_RS_EMBED_BYTES = 700 * 1024 * 1024
_TORCHGEO_NAME = "embed_map_"
"""Prefix of the names of files that torchgeo reads; it applies no scales."""


@dataclass(frozen=True)
class Raster(Decoded):
    """Bands of a GeoTIFF, whose tiles hold all bands and cannot be decoded in part."""

    def cells(self) -> Iterator[FilledCells]:  # noqa: D102
        with _opened(self.path) as file:
            for _, tile in file.block_windows(1):
                numbers = np.moveaxis(file.read(window=tile), 0, -1)
                yield filled_cells(numbers, tile.row_off, tile.col_off, self.packing)


def open_geotiff(path: str) -> MapSource:
    """Find the map in a GeoTIFF, without reading its pixels.

    Raises
    ------
    CubeError
        If it is not a GeoTIFF, or lies on another grid.
    """
    with _without_warning(), _opened(path) as file:
        dtypes = sorted(set(file.dtypes))
        order = _order(path, file)
        text = file.tags().get(KEY.upper())
        metadata = MapMetadata(order=order) if text is None else MapMetadata.loads(text, path)
        if metadata.order != order:
            raise CubeError(
                f"{path}: its description says {metadata.order} order, its transform {order}"
            )
        _require_order(path, file.descriptions, metadata)
        if dtypes not in (["float32"], ["float64"], ["int8"]):
            raise CubeError(
                f"{path}: bands of {', '.join(dtypes)}; expected float32, as the published map"
            )
        scaled = np.array(file.scales, float), np.array(file.offsets, float)
        packing = packing_of(path, np.dtype(dtypes[0]), file.count, *scaled)
        # The published file declares no nodata value, and its zeros mean missing whatever is
        # declared.
        if packing.scale is None and file.nodata is not None:
            packing = replace(packing, missing=file.nodata)
        demand_band(path, file.count, np.dtype(dtypes[0]).itemsize)
        for rows, cols in set(file.block_shapes):
            needed = rows * cols * file.count * np.dtype(dtypes[0]).itemsize
            demand(limits.PIECE, needed, f"{path}: a tile of {rows} × {cols} pixels", CubeError)
        return Raster(path, "GeoTIFF", file.count, packing, metadata)


def is_described(path: str) -> bool:
    """Whether a GeoTIFF carries the description of a map that copcube wrote."""
    with _without_warning(), _opened(path) as file:
        return KEY.upper() in file.tags()


def to_geotiff(
    ds: "xr.Dataset",
    path: str | Path,
    *,
    order: str = "published",
    dtype: str = "float32",
    compress: bool = True,
    compat: Literal["rs-embed"] | None = None,
    overwrite: bool = False,
) -> Exported:
    """Write a cube or a reduction as the published GeoTIFF, one band per dimension.

    Bands are named ``dim_000``… or ``pc_00``…; torchgeo finds the file if its name begins
    with ``embed_map_``.

    Parameters
    ----------
    ds : xarray.Dataset
        Cube or reduction, of any region.
    path : str or Path
        File to write, atomically.
    order : {"published", "era5"}
        Whether columns run from 180°W or from 0°E.
    dtype : {"float32", "int8"}
        Int8 with scale and offset of every band in its tags, and nodata -128.
    compress : bool
        Deflate, as the published file.
    compat : {"rs-embed"}, optional
        Refuse what rs-embed would refuse to read: names other than ``embed_map_*.tif`` and files
        under 700 MiB.
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
        If an option has no such value, or the file would not suit `compat`.
    WriteError
        If the file exists already or cannot be written.
    """
    import rasterio

    out = Path(path)
    if compat is not None and not (isinstance(compat, str) and compat == "rs-embed"):
        raise OptionError(f"compat={compat!r}; expected 'rs-embed' or None")
    if compat and not (out.name.startswith(_TORCHGEO_NAME) and out.suffix == ".tif"):
        raise OptionError(f"rs-embed reads files named embed_map_*.tif; {out.name} is not")
    if compat and dtype != "float32":
        raise OptionError(f"rs-embed would mistake {dtype} codes for values; choose float32")
    with writing_map(
        ds, path, "GeoTIFF", ("float32", "int8"), dtype=dtype, order=order, overwrite=overwrite
    ) as writer:
        with (
            rasterio.Env(GDAL_CACHEMAX=_CACHE),
            rasterio.open(writer.file, "w", **_profile(writer, order, compress)) as file,
        ):
            file.update_tags(**{KEY.upper(): writer.metadata.dumps()})
            file.descriptions = writer.names
            packing = writer.packing
            if packing.scale is not None and packing.offset is not None:
                file.scales, file.offsets = packing.scale.tolist(), packing.offset.tolist()
            # Tile by tile, since GDAL would read back a tile that is written in parts.
            for _, tile in file.block_windows(1):
                file.write(np.moveaxis(writer.window(*tile.toslices()), -1, 0), window=tile)
        _require_whole(writer.file)
        size = writer.file.stat().st_size
        if compat and size < _RS_EMBED_BYTES:
            raise OptionError(
                f"rs-embed refuses files under 700 MiB, this one has {size / 2**20:.0f} MiB; write "
                "all dimensions of the cube, with compress=False (--no-compress) if need be"
            )
    if dtype == "int8" and out.name.startswith(_TORCHGEO_NAME):
        log.warning(
            "%s: torchgeo and rs-embed read files named embed_map_* without their scales and would "
            "mistake int8 codes for values; give it another name, or choose dtype='float32'",
            path,
        )
    return writer.result(path)


def _require_whole(path: Path) -> None:
    """Check that all tiles are in the file, without overlap.

    GDAL holds back tiles until the file is closed, which raises nothing if the disk is full.

    Raises
    ------
    OSError
        If one is missing.
    """
    import rasterio
    from rasterio.errors import RasterioError

    try:
        with rasterio.open(path, driver="GTiff") as file:
            windows = (place for place, _ in file.block_windows(1))
            names = [f"{column}_{row}" for row, column in windows]
            offsets, sizes = (
                np.array(
                    [int(file.get_tag_item(f"{what}_{name}", "TIFF", 1) or 0) for name in names]
                )
                for what in ("BLOCK_OFFSET", "BLOCK_SIZE")
            )
    except RasterioError as error:
        raise OSError(f"GDAL could not write it ({error})") from error
    order = np.argsort(offsets)
    ends = np.append(offsets[order][1:], path.stat().st_size)
    if not sizes.all() or (offsets[order] + sizes[order] > ends).any():
        raise OSError("GDAL could not write all of it")


def _profile(writer: MapWriter, order: str, compress: bool) -> dict[str, Any]:
    """Creation options of rasterio, as for the published file."""
    import rasterio

    integers = writer.packing.scale is not None
    profile: dict[str, Any] = {
        "driver": "GTiff",
        "height": grid.N_LAT,
        "width": grid.N_LON,
        "count": writer.dim,
        "dtype": writer.packing.dtype,
        "crs": rasterio.CRS.from_wkt(grid.WGS84),
        "transform": rasterio.Affine(grid.STEP, 0, _WEST[order], 0, -grid.STEP, 90 + grid.STEP / 2),
        "nodata": writer.packing.missing if integers else None,
        # A plain TIFF is limited to 4 GiB, and a compressed one's size is known only at the end.
        "BIGTIFF": "YES",
        "TILED": "YES",
        "BLOCKXSIZE": TILE,
        "BLOCKYSIZE": TILE,
        "INTERLEAVE": "PIXEL",
        "NUM_THREADS": "ALL_CPUS",
    }
    if flag(compress, "compress"):
        # Neighbours are similar, and differences compress better: predictor 2 is for integers, 3
        # for floats.
        profile |= {"COMPRESS": "DEFLATE", "PREDICTOR": 2 if integers else 3}
    return profile


def _order(path: str, file: "rasterio.DatasetReader") -> str:
    """Find where the columns of a raster start.

    Raises
    ------
    CubeError
        If it is not on the lattice.
    """
    transform = tuple(file.transform)[:6]
    for order, west in _WEST.items():
        wanted = (grid.STEP, 0, west, 0, -grid.STEP, 90 + grid.STEP / 2)
        if file.shape == (grid.N_LAT, grid.N_LON) and np.allclose(transform, wanted, atol=1e-6):
            # Another system could have the same numbers and mean other places.
            if not _is_wgs84(file.crs):
                raise CubeError(f"{path}: its reference system is {file.crs}; expected EPSG:4326")
            return order
    projected = file.crs is not None and file.crs.is_projected
    unit, where = (f" {file.crs.linear_units}", f" in {file.crs}") if projected else ("°", "")
    raise CubeError(
        f"{path}: {file.height} × {file.width} pixels of {transform[0]:g}{unit} × "
        f"{-transform[4]:g}{unit} from ({transform[2]:g}, {transform[5]:g}){where}; expected "
        "721 × 1440 of 0.25° from (-180.125, 90.125) or (-0.125, 90.125), centred on ERA5's nodes: "
        "warp it first, with gdalwarp"
    )


def _require_order(path: str, names: Sequence[str | None], metadata: MapMetadata) -> None:
    """Refuse bands that other software left in a different order from that of `to_geotiff`.

    Raises
    ------
    CubeError
        If the numbers in their names are not those in the description.
    """
    numbers = [int(str(name).rpartition("_")[2]) for name in names if is_numbered(name)]
    written = metadata.others.get(LENGTHWISE[metadata.variable], {}).get("data", [])
    labels = [f"{number}" for number in written]
    # A selection keeps its numbers in its order; other labels are counted from 0.
    wanted = (
        written if all(map(str.isdecimal, labels)) and len({*labels}) == len(labels) > 0 else []
    )
    if numbers and numbers != (wanted or sorted({*numbers})):
        raise CubeError(
            f"{path}: its bands are named {', '.join(map(str, names)):.400}; expected those that "
            f"were written, {', '.join(labels or ['each once, as they are numbered']):.400}: leave "
            "them in place, and select from the dataset"
        )


def _is_wgs84(crs: "rasterio.CRS | None") -> bool:
    """Whether the reference system is degrees on WGS 84."""
    import rasterio

    if crs is None or not crs.is_geographic:
        return False
    # EPSG:4326 has latitude first, and GDAL's rasters have the same with x first; and understanding
    # a file's code needs a database.
    wgs84 = rasterio.CRS.from_wkt(grid.WGS84)
    return bool(crs == wgs84 or crs.to_epsg() == 4326)


@contextmanager
def _without_warning() -> Iterator[None]:
    """Silence rasterio's warning of a file without georeference, which `_order` refuses."""
    from rasterio.errors import NotGeoreferencedWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        yield


@contextmanager
def _opened(path: str) -> Iterator["rasterio.DatasetReader"]:
    import rasterio
    from rasterio.errors import RasterioError

    refuse_other(path, ("tiff",), "a GeoTIFF", CubeError)
    try:
        # Other GDAL drivers may follow names in a file, to other files and addresses.
        with rasterio.open(path, driver="GTiff") as file:
            yield file
    except (RasterioError, OSError, UnicodeEncodeError) as error:
        raise CubeError(f"{path}: not a readable GeoTIFF ({error}); get a new copy") from error
