"""The xarray engine ``copembed``: published maps and our exports as embedding cubes."""

import os
import re
from collections.abc import Callable, Hashable, Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from xarray.backends import BackendArray, BackendEntrypoint
from xarray.core import indexing

from copcube import grid
from copcube.arguments import without_scheme
from copcube.cube import schema
from copcube.cube.results import as_result
from copcube.cube.view import LENGTHWISE
from copcube.errors import CubeError
from copcube.files.objects import is_remote
from copcube.files.regular import require_file
from copcube.interchange.cache import versions
from copcube.interchange.geotiff import open_geotiff
from copcube.interchange.netcdf import open_netcdf
from copcube.interchange.npz import open_npz
from copcube.interchange.parquet import open_averages
from copcube.interchange.sources import MapSource
from copcube.interchange.torch import open_pt

_COORDINATES = ("lat", "lon", "lat_bnds", "lon_bnds", "crs")


class CopembedBackend(BackendEntrypoint):
    """Open a map of embeddings as a cube in ERA5's order, lazily."""

    description = "Copernicus embedding maps on ERA5's grid (.npz, .pt, .tif, .parquet, .nc)"
    url = "https://huggingface.co/datasets/wangyi111/Copernicus-Embed-025deg"
    open_dataset_parameters = (
        "filename_or_obj",
        "drop_variables",
        "mask_and_scale",
        "decode_times",
        "concat_characters",
        "use_cftime",
        "decode_timedelta",
        "decode_coords",
    )

    def open_dataset(
        self,
        filename_or_obj: Any,
        *,
        drop_variables: str | Iterable[str] | None = None,
        mask_and_scale: Any = None,
        decode_times: Any = None,
        concat_characters: Any = None,
        use_cftime: Any = None,
        decode_timedelta: Any = None,
        decode_coords: Any = None,
    ) -> xr.Dataset:
        """Open a file.

        Parameters
        ----------
        filename_or_obj : str or path-like
            ``embed_map_310k.npz``, ``.pt`` or ``.tif``, ``embeddings_avg_*.parquet`` (a
            glob for several parts), or an export of copcube.
        drop_variables : str or iterable of str, optional
            Variables to leave out.
        mask_and_scale, decode_times, concat_characters, use_cftime, decode_timedelta, \
        decode_coords : optional
            Accepted as by every xarray engine, but without effect: a map is always opened as the
            cube that it stands for.

        Returns
        -------
        xarray.Dataset
            ``embedding`` (lat, lon, dim) float32, or the ``pc`` of a reduction with its
            basis; NaN where missing, latitudes from 90, longitudes from 0.

        Raises
        ------
        CubeError
            If there is no such file or it holds no map on the lattice.
        RowsError
            If a parquet file holds no averages.
        """
        ds = open_map(filename_or_obj)
        dropped = [drop_variables] if isinstance(drop_variables, str) else drop_variables or ()
        # The only part of an encoding that xarray uses here and no writer uses later. It is the
        # same for all variables, so that `chunks={}` divides them alike.
        preferred = _preferred(ds)
        result = as_result(ds.drop_vars(list(dropped), errors="ignore"))
        for name, v in result.variables.items():
            if own := {dim: preferred[dim] for dim in v.dims if dim in preferred}:
                result[name].encoding = {"preferred_chunks": own}
        return result

    def guess_can_open(self, filename_or_obj: Any) -> bool:
        """Whether a name is that of such a file; only the name is examined."""
        if not isinstance(filename_or_obj, str | os.PathLike):
            return False
        name = os.path.basename(os.fsdecode(filename_or_obj))
        suffix = os.path.splitext(name)[1].lower()
        # xarray asks each engine about any file, and a TIFF may be any picture: only the published
        # name is claimed without engine=. NetCDF is left to xarray's own engines.
        return suffix in (".npz", ".pt", ".parquet") or (
            suffix in (".tif", ".tiff") and name.startswith("embed_map_")
        )


def open_map(path: Any) -> xr.Dataset:
    """Open a map of any format, lazily; errors are those of the engine."""
    text = _local(path)
    return open_netcdf(text) if text.lower().endswith(".nc") else dataset(find_map(path))


def find_map(path: Any) -> MapSource:
    """Find the map in a file of any format, and how to read it.

    Raises
    ------
    CubeError
        If there is no such file or format, or no map in it.
    """
    text = _local(path)
    suffix = os.path.splitext(text)[1].lower()
    if suffix not in _OPENERS:
        other = "open a cube with xarray.open_zarr"
        if suffix == ".nc":
            other = "open it with engine='copembed' and save it with .to_zarr"
        raise CubeError(
            f"{text}: expected a map as {', '.join(_OPENERS)}; found "
            f"{suffix or 'a name without suffix'} ({other})"
        )
    if suffix != ".parquet":  # for which a folder or a glob may be given
        require_file(text, CubeError)
        if not os.path.isfile(text):
            raise CubeError(
                f"{text}: no such file; `copcube fetch map` downloads the published one"
            )
    found = _OPENERS[suffix](text)
    return replace(found, versions=versions(found.files))


def _local(path: Any) -> str:
    """Path of a file, or the address of tables in an object store.

    Raises
    ------
    CubeError
        If it is not a path, or is an address from which such a file cannot be read.
    """
    if not isinstance(path, str | os.PathLike):
        raise CubeError(f"expected a path, found {type(path).__name__}; save it to a file first")
    given = os.fsdecode(path)
    if (text := without_scheme(given)) != given:
        return text
    # `pathlib` turns two slashes into one.
    address = is_remote(text) or re.match(r"(https?|s3|gs|hf):/|/vsi\w+/", text) is not None
    if not address or text.lower().endswith(".zarr"):
        return text
    if text.startswith(("s3://", "gs://", "https://", "http://")):
        if text.lower().endswith(".parquet"):
            return text
        remedy = "download it, or convert it once to a Zarr cube, which is read in place"
    elif text.startswith("hf:/"):
        remedy = "download it with `copcube fetch map`, or with huggingface_hub.hf_hub_download"
    else:
        remedy = "download it"
    raise CubeError(
        f"{text} is an address, but maps are read from files: {remedy}, and give the path of "
        "the file"
    )


_OPENERS: dict[str, Callable[[str], MapSource]] = {
    ".npz": open_npz,
    ".pt": open_pt,
    ".tif": open_geotiff,
    ".tiff": open_geotiff,
    ".parquet": open_averages,
}


def dataset(source: MapSource) -> xr.Dataset:
    """Make the dataset of a map, with the parts of a cube's schema that the map has."""
    metadata = source.metadata
    parts = schema.variables(source.dim, None, ())
    along = LENGTHWISE[metadata.variable]
    coords = {
        name: xr.Variable(parts[name].dims, parts[name].values, parts[name].attrs)
        for name in _COORDINATES
    }
    others = {
        name: (
            xr.Variable(o["dims"], np.asarray(o["data"], o["dtype"]), o["attrs"]),
            o.get("coordinate", False),
        )
        for name, o in metadata.others.items()
    }
    # A published map has no coordinate along its vectors, but a cube has.
    if along not in others and along == "dim":
        dim = parts["dim"]
        others["dim"] = xr.Variable(dim.dims, dim.values, dim.attrs), True
    own = {k: v for k, v in parts["embedding"].attrs.items() if k != "ancillary_variables"}
    field = xr.Variable(
        ("lat", "lon", along),
        indexing.LazilyIndexedArray(MapArray(source)),
        metadata.variable_attrs or own,
        {"preferred_chunks": source.preferred_chunks},
    )
    try:
        return xr.Dataset(
            {metadata.variable: field}
            | {name: variable for name, (variable, is_coord) in others.items() if not is_coord},
            coords | {name: variable for name, (variable, is_coord) in others.items() if is_coord},
            metadata.attrs or _unknown(source),
        )
    except ValueError as error:
        raise CubeError(f"{source.path}: its description does not fit its map ({error})") from error


def _preferred(ds: xr.Dataset) -> dict[Hashable, int]:
    """Chunk sizes along the dimensions of the vectors that read nothing twice."""
    vectors = next(ds[name].variable for name in LENGTHWISE if name in ds)
    if vectors.chunks is not None:
        return {dim: max(sizes) for dim, sizes in vectors.chunksizes.items()}
    return dict(vectors.encoding.get("preferred_chunks", {}))


def _unknown(source: MapSource) -> dict[str, Any]:
    """Attributes of a map without a description."""
    attrs = schema.group_attributes({})
    for name in ("copcube_schema", "coordinates"):
        del attrs[name]
    return attrs | {
        "source": f"{os.path.basename(source.path)} ({source.form})",
        "aggregation": "unknown: published as one vector a cell; images are not counted",
    }


class MapArray(BackendArray):
    """A map in ERA5's order, read when it is indexed.

    Parameters
    ----------
    source : MapSource
        Where it lies.
    """

    def __init__(self, source: MapSource) -> None:
        self.source = source
        self.shape = (grid.N_LAT, grid.N_LON, source.dim)
        self.dtype = np.dtype(np.float32)

    def __getitem__(self, key: indexing.ExplicitIndexer) -> Any:
        return indexing.explicit_indexing_adapter(
            key, self.shape, indexing.IndexingSupport.OUTER, self._read
        )

    def _read(self, key: tuple[Any, ...]) -> NDArray[np.float32]:
        rows, cols = (np.arange(n)[k] for n, k in zip(self.shape[:2], key[:2], strict=True))
        if self.source.metadata.order == "published":
            # The lattice counts from 0°E, the file from 180°W.
            cols = grid.published_column(cols)
        dims = key[2] if isinstance(key[2], slice) else np.atleast_1d(key[2])
        values = self.source.read(np.atleast_1d(rows), np.atleast_1d(cols), dims)
        # The source returns all dimensions; xarray expects none for an index that is a single
        # number.
        return values[tuple(0 if isinstance(k, int | np.integer) else slice(None) for k in key)]
