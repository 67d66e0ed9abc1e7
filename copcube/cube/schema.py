"""What a cube consists of: variables, dimensions, chunks and attributes, as data.

A cube is one Zarr v3 group that any reader opens: data types and the zstd codec only, no strings
(their encoding is not in the core specification), so labels are integers with CF ``flag_meanings``.
Every chunk carries the checksum of zstd's own frame (RFC 8878), which libzstd checks when it
decompresses one; the codec ``crc32c`` would do the same, but some readers, such as GDAL 3.12, do
not open arrays that use it. All variables have the same chunks along a dimension, so that a cube
can be divided by its chunks. Conventions: CF 1.11 (cfconventions.org) and, in a group of their own,
``geoemb`` (github.com/geo-embeddings/embeddings-zarr-convention), ``spatial`` and ``proj``
(github.com/zarr-conventions).
"""

import re
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from copcube import grid
from copcube.errors import OptionError
from copcube.modalities import MODALITIES, described_in
from copcube.modalities import labels as in_order

if TYPE_CHECKING:
    import xarray as xr

ZSTD_LEVEL = 1
VERSION = 1
"""Version of this schema; a reader refuses a later one."""

ESSENTIAL = ("embedding", "n_images", "lat", "lon", "dim", "crs")
"""Variables without which a group is not a cube."""

_WEST, _NORTH = -grid.STEP / 2, 90 + grid.STEP / 2
"""Edges of the first column and the first row."""

GEO_TRANSFORM = f"{_WEST} {grid.STEP} 0.0 {_NORTH} 0.0 {-grid.STEP}"

OF_CUBES_ONLY = ("geoemb:", "zarr_conventions", "copcube_schema", "coordinates")
"""Prefixes of attributes that do not apply to what is made from a cube."""

CONVENTIONS = "conventions"
"""Name of the group that holds the attributes of the Zarr conventions."""


@dataclass(frozen=True)
class Variable:
    """One array of a cube.

    Parameters
    ----------
    name : str
        Name in the group.
    dims : tuple of str
        Names of its dimensions.
    shape, chunks : tuple of int
        Its shape and that of its chunks.
    dtype : str
        Data type of the Zarr core specification.
    attrs : dict
        CF attributes.
    fill : float or int
        Value of what is not stored.
    values : numpy.ndarray, optional
        Content, for coordinates.
    """

    name: str
    dims: tuple[str, ...]
    shape: tuple[int, ...]
    chunks: tuple[int, ...]
    dtype: str
    attrs: dict[str, Any]
    fill: float | int = 0
    values: NDArray[Any] | None = field(default=None, compare=False)


def variables(
    dim: int,
    by: str | None,
    groups: tuple[str, ...],
    *,
    counted: bool = True,
    modalities: tuple[str, ...] = tuple(MODALITIES),
) -> dict[str, Variable]:
    """All variables of a cube, by name.

    Parameters
    ----------
    dim : int
        Length of the vectors.
    by : {"modality", "month", "season", "year"}, optional
        Name of the leading dimension.
    groups : tuple of str
        Labels along it; empty without `by`.
    counted : bool
        Whether the number of images of a cell is known. If not, there is no ``spread`` and no
        ``n_images_by_modality``, and ``n_images`` is 1 where there is a vector.
    modalities : tuple of str
        What ``n_images_by_modality`` counts; see `modalities_of`.

    Raises
    ------
    OptionError
        If `by` and `groups` contradict each other or a label is not of its kind.
    """
    if (by is None) != (not groups):
        raise OptionError(f"by={by!r} and groups={groups!r} contradict each other")
    if dim < 1:
        raise OptionError(f"dim={dim}; vectors have at least one value")
    lead = () if by is None else (by,)
    n = () if by is None else (len(groups),)
    one = (1,) * len(n)
    cells, shape = (*lead, "lat", "lon"), (*n, grid.N_LAT, grid.N_LON)
    block = (*one, grid.BLOCK, grid.BLOCK)
    number = {"units": "1", "standard_name": "number_of_observations", "grid_mapping": "crs"}
    m = len(modalities)
    # CF's ancillary_variables may name only what exists.
    companions = ["spread", "n_images", "n_images_by_modality"] if counted else ["n_images"]
    if by == "modality" and counted:
        companions.remove("n_images_by_modality")
    data = [
        Variable(
            "embedding",
            (*cells, "dim"),
            (*shape, dim),
            (*block, dim),
            "float32",
            {
                "long_name": "embedding of the cell, mean over its images",
                "units": "1",
                "cell_methods": "area: time: mean (comment: weighted as in the attribute "
                "aggregation of the group)",
                "ancillary_variables": " ".join(companions),
                "grid_mapping": "crs",
            },
            fill=np.nan,
        ),
        Variable(
            "spread",
            cells,
            shape,
            block,
            "float32",
            {
                "long_name": "root of the mean squared distance of the images' embeddings "
                "from their mean",
                "units": "1",
                "cell_methods": "area: time: standard_deviation (comment: length over all "
                "dimensions of the embedding, weighted as the mean)",
                "grid_mapping": "crs",
            },
            fill=np.nan,
        ),
        Variable(
            "n_images",
            cells,
            shape,
            block,
            "int32",
            {
                "long_name": "images in the mean" if counted else "1 where there is a vector",
                "cell_methods": "area: time: sum",
                **number,
            },
        ),
    ]
    if "n_images_by_modality" in companions:
        data.append(
            Variable(
                "n_images_by_modality",
                (*lead, "modality", "lat", "lon"),
                (*n, m, grid.N_LAT, grid.N_LON),
                (*one, m, grid.BLOCK, grid.BLOCK),
                "int32",
                {
                    "long_name": "images of each modality in the mean",
                    "cell_methods": "area: time: sum",
                    **number,
                },
            )
        )
        data.append(_flags("modality", _MODALITY, modalities))
    if by is not None:
        data.append(_leading(by, groups))
    data = [v for v in data if v.name in ("embedding", *companions) or v.values is not None]
    return {v.name: v for v in (*data, *_coordinates(dim))}


_MODALITY = "Copernicus Sentinel modality"


def modalities_of(attrs: Iterable[str]) -> tuple[str, ...]:
    """Modalities that a cube counts: the eight, then the sensors that its attributes describe."""
    return in_order(described_in(attrs))


def earlier_chunks(variable: Variable) -> tuple[int, ...]:
    """Chunks of a variable in cubes of the first release: maps by bands, bounds whole."""
    if variable.name in ("lat_bnds", "lon_bnds"):
        return variable.shape
    if variable.name == "embedding" or variable.dims[-2:] != ("lat", "lon"):
        return variable.chunks
    return (*variable.chunks[:-1], grid.N_LON)


def group_attributes(attrs: Mapping[str, Any]) -> dict[str, Any]:
    """Attributes of the group, sorted: those of CF and of cubes, then the caller's.

    All are texts and numbers, so that a dataset opened by xarray can be written in any format.
    """
    # The caller's attributes take precedence over these, which every cube has.
    ours: dict[str, Any] = {
        "Conventions": "CF-1.11",
        "title": "Copernicus Sentinel embeddings on ERA5's 0.25 degree grid",
        "references": "https://arxiv.org/abs/2503.11849",
        "license": "CC-BY-4.0",
        "coordinates": "crs lat_bnds lon_bnds",
        "copcube_schema": VERSION,
    }
    return dict(sorted((ours | dict(attrs)).items()))


def conventions(dim: int, page: str | None = None) -> dict[str, Any]:
    """Attributes of the group `CONVENTIONS`, sorted: what the Zarr conventions ask for.

    They are objects and lists of objects. At the root xarray would take them for attributes of the
    dataset, which could then not be written as netCDF.

    Parameters
    ----------
    dim : int
        Length of the vectors.
    page : str, optional
        Address of a page on what made the vectors, and from what; by default those of Copernicus-FM
        and its images.
    """
    attributes: dict[str, Any] = {
        "zarr_conventions": [
            {
                "uuid": "61c12cc5-0e28-4056-999a-480cf3fb7e4c",
                "name": "geoemb:",
                "schema_url": f"{_RAW}/geo-embeddings/embeddings-zarr-convention/refs/tags/v1/"
                "schema.json",
            },
            {
                "uuid": "689b58e2-cf7b-45e0-9fff-9cfc0883d6b4",
                "name": "spatial",
                "schema_url": f"{_RAW}/zarr-conventions/spatial/refs/tags/v0.1/schema.json",
            },
            {
                "uuid": "f17cb550-5864-4468-aeb7-f3180cfb622f",
                "name": "proj",
                "schema_url": f"{_RAW}/zarr-conventions/proj/refs/tags/v0.1/schema.json",
            },
        ],
        "geoemb:type": "chip",
        "geoemb:dimensions": dim,
        "geoemb:model": page or _MODEL,
        "geoemb:source_data": [page or _IMAGES],
        "geoemb:data_type": "float32",
        "geoemb:spatial_layout": "global",
        "geoemb:chip_layout": {  # a pixel of the cube is a cell, a cell is one chip
            "layout_type": "regular_grid",
            "chip_size": [1, 1],
            "stride": [1, 1],
            "grid_id": "era5-0p25",
        },
        "spatial:dimensions": ["lat", "lon"],
        "spatial:shape": [grid.N_LAT, grid.N_LON],
        # An affine transform has pixels of one size, so those at the poles reach beyond 90°.
        "spatial:transform": [grid.STEP, 0.0, _WEST, 0.0, -grid.STEP, _NORTH],
        "spatial:bbox": [_WEST, -_NORTH, _WEST + 360, _NORTH],
        "spatial:registration": "pixel",
        "proj:code": "EPSG:4326",
        "proj:wkt2": grid.WGS84,
    }
    return dict(sorted(attributes.items()))


_MODEL = "https://huggingface.co/wangyi111/Copernicus-FM"
_IMAGES = "https://huggingface.co/datasets/wangyi111/Copernicus-Pretrain"
_RAW = "https://raw.githubusercontent.com"


def is_numbered(name: Hashable) -> bool:
    """Whether a name is that of a variable for a single component.

    Examples
    --------
    >>> is_numbered("pc_00"), is_numbered("dim_767"), is_numbered("pc")
    (True, True, False)
    """
    return re.fullmatch(r"(pc|dim)_\d+", str(name)) is not None


def counts_images(attrs: Mapping[Any, Any]) -> bool:
    """Whether ``n_images`` counts images, and is not 1 for each vector of a converted map."""
    return bool(attrs.get("n_images_known", 1))


def labels(by: str, values: NDArray[Any], attrs: Mapping[str, Any]) -> tuple[str, ...]:
    """Labels along the leading dimension, from its coordinate's values and attributes."""
    if "flag_meanings" in attrs:
        meanings = str(attrs["flag_meanings"]).split()
        flags = np.asarray(attrs.get("flag_values", range(len(meanings)))).tolist()
        return tuple(dict(zip(flags, meanings, strict=True))[value] for value in values.tolist())
    return tuple(f"{value:0{2 if by == 'month' else 4}d}" for value in values.tolist())


def group_labels(coordinate: "xr.DataArray") -> tuple[str, ...]:
    """Labels along a leading dimension, from CF flags where the coordinate has any."""
    name = str(coordinate.dims[0])
    if coordinate.dtype.kind == "i" and name in coordinate.coords:
        return labels(name, coordinate.values, coordinate.attrs)
    return tuple(map(str, coordinate.values))


def _leading(by: str, groups: tuple[str, ...]) -> Variable:
    match by:
        case "modality":
            return _flags(by, _MODALITY, groups)
        case "season":
            return _flags(by, "meteorological season", groups)
        case "month" | "year":
            long_name = {"month": "month of the year", "year": "calendar year"}[by]
            if not all(label.isdecimal() for label in groups):
                raise OptionError(f"groups={groups!r} are not labels of {by}s; expected numbers")
            values = np.array([int(label) for label in groups], np.int16)
            return _coordinate(by, values, {"long_name": long_name, "units": "1"})
    raise OptionError(f"by={by!r} is unknown; expected modality, month, season or year")


def _flags(name: str, long_name: str, meanings: tuple[str, ...]) -> Variable:
    # Flags rather than strings, whose encoding is not in Zarr's core specification.
    values = np.arange(len(meanings), dtype=np.int8)
    flags = {"flag_values": values.tolist(), "flag_meanings": " ".join(meanings)}
    return _coordinate(name, values, {"long_name": long_name, **flags})


def _coordinates(dim: int) -> list[Variable]:
    lat = {"standard_name": "latitude", "long_name": "latitude", "units": "degrees_north"}
    lon = {"standard_name": "longitude", "long_name": "longitude", "units": "degrees_east"}
    crs = {
        "grid_mapping_name": "latitude_longitude",
        "longitude_of_prime_meridian": 0.0,
        "semi_major_axis": 6378137.0,
        "inverse_flattening": 298.257223563,
        "crs_wkt": grid.WGS84,
        "spatial_ref": grid.WGS84,
        "GeoTransform": GEO_TRANSFORM,
    }
    lat_bnds, lon_bnds = grid.latitude_bounds(), grid.longitude_bounds()
    return [
        _coordinate("lat", grid.latitudes(), {**lat, "axis": "Y", "bounds": "lat_bnds"}),
        _coordinate("lon", grid.longitudes(), {**lon, "axis": "X", "bounds": "lon_bnds"}),
        _coordinate(
            "dim",
            np.arange(dim, dtype=np.int16),
            {"long_name": "dimension of the embedding", "units": "1"},
        ),
        Variable("lat_bnds", ("lat", "bnds"), *_blocks(lat_bnds), {}, np.nan, lat_bnds),
        Variable("lon_bnds", ("lon", "bnds"), *_blocks(lon_bnds), {}, np.nan, lon_bnds),
        Variable("crs", (), (), (), "int32", crs, 0, np.array(0, np.int32)),
    ]


def _coordinate(name: str, values: NDArray[Any], attrs: dict[str, Any]) -> Variable:
    # No coordinate has this value, so none reads as missing.
    fill = np.nan if values.dtype.kind == "f" else -1
    return Variable(name, (name,), *_whole(values), attrs, fill, values)


def _blocks(values: NDArray[Any]) -> tuple[tuple[int, ...], tuple[int, ...], str]:
    return values.shape, (grid.BLOCK, *values.shape[1:]), values.dtype.name


def _whole(values: NDArray[Any]) -> tuple[tuple[int, ...], tuple[int, ...], str]:
    return values.shape, values.shape, values.dtype.name
