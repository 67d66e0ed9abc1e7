"""Tables of points: arrays, frames, datasets, CSV and parquet files."""

import json
from collections.abc import Container, Hashable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from copcube.cube.caution import caution
from copcube.cube.pointwise import as_points, demand_same_labels
from copcube.cube.schema import counts_images, group_labels
from copcube.cube.view import how_to_select
from copcube.errors import MissingPackageError, OptionError, in_a_line
from copcube.files.contents import refuse_other
from copcube.files.limits import rule_out_shortage
from copcube.files.parquet_pages import demand_local_pages
from copcube.files.regular import open_regular
from copcube.grid import Floats
from copcube.interchange.replacing import appearing
from copcube.lookup.csv import read_csv
from copcube.lookup.regions import in_degrees, require_degrees

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

T = TypeVar("T")

NAMES = {
    "lat": ("lat", "latitude", "lats", "latitudes"),
    "lon": ("lon", "longitude", "lons", "longitudes", "lng", "long"),
}
"""Names of columns that are taken for coordinates, in lower case."""


def are_places(lat: Floats, lon: Floats) -> NDArray[np.bool_]:
    """Which pairs of degrees are places; longitudes may be one turn either way.

    Fill values such as -999 do not count as longitudes of a further turn.
    """
    return np.isfinite(lat) & np.isfinite(lon) & (np.abs(lat) <= 90) & (np.abs(lon) <= 360)


def read_table(table: Any, lat: str | None, lon: str | None) -> "xr.Dataset":
    """Bring a table of points into one form.

    Parameters
    ----------
    table : tuple, mapping, frame, dataset, str or Path
        Anything that `copcube.lookup.points.points` takes.
    lat, lon : str, optional
        Names of the columns with degrees north and east.

    Returns
    -------
    xarray.Dataset
        ``lat`` and ``lon``, float64 along the dimensions of the points, NaN where the table has
        no number; its index and its other columns as coordinates.

    Raises
    ------
    OptionError
        If it is not a table, cannot be read, or lacks the columns.
    """
    import pandas as pd
    import xarray as xr

    if isinstance(table, str | Path):
        table = _read_file(str(table))
    elif isinstance(table, xr.Dataset):
        return _of_dataset(table, lat, lon)
    elif isinstance(table, Mapping) or getattr(getattr(table, "dtype", None), "names", None):
        table = _frame(table)
    elif isinstance(table, Sequence) or (isinstance(table, np.ndarray) and table.ndim):
        return _of_pair(table, lat, lon)
    geometric = hasattr(table, "geometry") and hasattr(table, "to_crs")
    if geometric and lat is None and lon is None:
        return _of_frame(_ungeometric(table), "_copcube_lat", "_copcube_lon")
    if isinstance(table, pd.DataFrame):
        return _of_frame(table, lat, lon)
    raise OptionError(
        f"the table is a {type(table).__name__}; expected (lat, lon), a frame, a dataset, or the "
        "path of a .csv or .parquet"
    )


def _of_pair(table: Any, lat: str | None, lon: str | None) -> "xr.Dataset":
    """Take points from two arrays, latitudes and longitudes."""
    import xarray as xr

    if any(isinstance(part, Mapping) for part in table):
        raise OptionError(
            "the table is a list of rows; expected columns, such as pandas.DataFrame(rows)"
        )
    if len(table) != 2:
        raise OptionError(
            f"the table has {len(table)} parts; expected two, latitudes and longitudes: "
            "(lats, lons), or a frame with such columns"
        )
    if (lat, lon) != (None, None):
        raise OptionError(
            "lat= and lon= name columns, but (lat, lon) has none: leave them out, or give columns "
            "by name, {name: values}"
        )
    if isinstance(table, list) and all(isinstance(v, tuple) and len(v) == 2 for v in table):
        raise OptionError(
            "the table is a list of two pairs, which could be points or latitudes and longitudes; "
            "give a tuple of all latitudes and all longitudes, (lats, lons)"
        )
    demand_same_labels(*table)
    # Values without names of dimensions may be anything, not only numbers.
    y, x = as_points(
        *(v if isinstance(v, xr.DataArray) else np.atleast_1d(_degrees(v)) for v in table)
    )
    coords = {k: c for k, c in y.coords.items() if k not in ("lat", "lon")}
    return xr.Dataset({"lat": y.drop_vars(y.coords), "lon": x.drop_vars(x.coords)}, coords)


def _frame(columns: Mapping[Any, Any]) -> "pd.DataFrame":
    import pandas as pd

    try:
        one = isinstance(columns, Mapping) and all(np.ndim(v) == 0 for v in columns.values())
        return pd.DataFrame([columns] if one else columns)
    except ValueError as error:
        raise OptionError(f"the columns do not form a table: {in_a_line(error)}") from None


def _degrees(values: Any) -> Floats:
    """Numbers of a column, NaN for anything else; texts may have a decimal comma."""
    import pandas as pd

    try:
        column = pd.Series(values)
    except (ValueError, TypeError) as error:
        raise OptionError(
            f"the coordinates are not a list of numbers: {in_a_line(error)}"
        ) from None
    if column.dtype.kind not in "iuf":
        texts = column.astype("string").str.strip().str.replace(",", ".", regex=False)
        column = pd.to_numeric(texts, errors="coerce")
    return np.asarray(column.astype("float64").to_numpy(np.float64, na_value=np.nan))


def _of_frame(frame: "pd.DataFrame", lat: str | None, lon: str | None) -> "xr.Dataset":
    import pandas as pd
    import xarray as xr

    named = {"lat": lat, "lon": lon}
    y, x = (_column(list(frame.columns), axis, name) for axis, name in named.items())
    index = frame.index
    dim = str(index.name) if index.name is not None and index.nlevels == 1 else "point"
    dim = dim if dim not in ("lat", "lon", "dim", "component") else "point"
    degrees = {"lat": (dim, _degrees(frame[y])), "lon": (dim, _degrees(frame[x]))}
    levels = index.names if isinstance(index, pd.MultiIndex) else ()
    columns: list[tuple[Hashable, Any]] = [
        *(
            (name if name is not None else f"level_{level}", index.get_level_values(level))
            for level, name in enumerate(levels)
        ),
        *((str(name), frame[name]) for name in frame.columns if name not in (y, x)),
    ]
    coords: dict[Hashable, Any] = {} if levels else {dim: (dim, _plain(index))}
    for name, values in columns:
        taken = name in degrees or name in coords
        coords[f"table_{name}" if taken else name] = (dim, _plain(values))
    return xr.Dataset(degrees, coords)


def beside(own: Mapping[Any, T], taken: Container[Hashable]) -> dict[Hashable, T]:
    """Columns of a table, renamed ``table_NAME`` if a result has the name NAME."""
    return {f"table_{name}" if name in taken else name: c for name, c in own.items()}


def _plain(column: Any) -> NDArray[Any]:
    """Values of a column as a NumPy array; texts and categories as objects."""
    import pandas as pd

    values = column.to_numpy()
    if pd.api.types.is_integer_dtype(column.dtype) and values.dtype.kind not in "iu":
        # With missing values, whole numbers become floats, which cannot hold the longest.
        values = column.to_numpy(np.float64, na_value=np.nan)
        if (np.abs(values) > 2**53).any():
            values = column.astype(object).to_numpy()
    return np.asarray(values if isinstance(values, np.ndarray) else values.astype(object))


def _column(columns: Sequence[Any], axis: str, name: str | None) -> Any:
    """Find the column that holds the coordinates."""
    if name is not None:
        if not isinstance(name, Hashable) or name not in set(columns):
            raise OptionError(
                f"the table has no column {name!r}; it has {', '.join(map(str, columns)) or 'none'}"
            )
        return name
    for known in NAMES[axis]:
        for column in columns:
            if str(column).strip().lower() == known:
                return column
    raise OptionError(
        f"the table has no column named {axis} or {NAMES[axis][1]}; it has "
        f"{', '.join(map(str, columns)) or 'none'}: name it with {axis}= (--{axis})"
    )


def _of_dataset(ds: "xr.Dataset", lat: str | None, lon: str | None) -> "xr.Dataset":
    """Take points from a dataset: two of its variables, along the same dimensions."""
    import xarray as xr

    names = [str(name) for name in ds.variables]
    y, x = (ds[_column(names, axis, name)] for axis, name in (("lat", lat), ("lon", lon)))
    if set(y.dims) != set(x.dims):
        raise OptionError(
            f"{y.name} runs along {', '.join(map(str, y.dims)) or 'nothing'}, {x.name} along "
            f"{', '.join(map(str, x.dims)) or 'nothing'}; expected points, both along the same "
            "dimensions"
        )
    along = {k: c for k, c in ds.variables.items() if {*c.dims} <= {*y.dims} and c.dims}
    coords = beside({k: c for k, c in along.items() if k not in (y.name, x.name)}, NAMES.keys())
    x = x.transpose(*y.dims)
    degrees = {
        name: (v.dims, _degrees(v.values.ravel()).reshape(v.shape))
        for name, v in (("lat", y), ("lon", x))
    }
    return xr.Dataset(degrees, coords)


def _ungeometric(frame: Any) -> "pd.DataFrame":
    """Turn a frame of point geometries into one with columns of degrees."""
    import pandas as pd

    geometry = in_degrees(frame.geometry)
    points = (geometry.geom_type == "Point").to_numpy() & ~geometry.is_empty.to_numpy()
    if len(geometry) and not (points | geometry.isna().to_numpy() | geometry.is_empty).any():
        raise OptionError(
            f"the geometries are {geometry.geom_type.iloc[0]}s; expected points, such as "
            "frame.geometry.centroid, or see polygon"
        )
    degrees = np.full((len(geometry), 2), np.nan)
    # Geometries have longitude first, whatever the order of axes of their reference system.
    degrees[points, 0] = geometry[points].y
    degrees[points, 1] = geometry[points].x
    plain = pd.DataFrame(frame.drop(columns=geometry.name))
    return plain.assign(_copcube_lat=degrees[:, 0], _copcube_lon=degrees[:, 1])


def _read_file(path: str) -> "pd.DataFrame":
    """Read a CSV or a parquet file."""
    form = Path(path).suffix.lower()
    if form not in (".csv", ".txt", ".tsv", ".parquet", ".geoparquet"):
        raise OptionError(
            f"{path}: expected a table, .csv or .parquet; in Python, read other formats with "
            "pandas or geopandas and give the frame"
        )
    try:
        return _read_parquet(path) if "parquet" in form else read_csv(path)
    except FileNotFoundError:
        raise OptionError(f"{path}: no such file") from None


def _read_parquet(path: str) -> "pd.DataFrame":
    import pandas as pd
    import pyarrow as pa
    import pyarrow.parquet as pq

    refuse_other(path, ("parquet",), "a parquet file", OptionError)
    try:
        with open_regular(path, OptionError) as file:
            demand_local_pages(pq.read_metadata(file), None, path, OptionError)
            table = pq.read_table(file)
        geometric = b"geo" in (table.schema.metadata or {})
        # With missing values, whole numbers would become floats, which cannot hold the longest.
        whole = {pa.int64(): pd.Int64Dtype(), pa.uint64(): pd.UInt64Dtype()}
        frame: pd.DataFrame = table.to_pandas(types_mapper=whole.get)
    except (pa.ArrowException, OSError, ValueError) as error:
        if isinstance(error, OptionError | MemoryError | FileNotFoundError):
            raise
        rule_out_shortage(error)
        raise OptionError(f"{path}: not a readable table ({in_a_line(error)})") from error
    columns = {str(name).lower() for name in frame.columns}
    if geometric and not all(columns & {*names} for names in NAMES.values()):
        try:
            import geopandas
        except ImportError:
            raise MissingPackageError(
                f"{path} holds geometries but no columns lat and lon; to read geometries: pip "
                "install geopandas"
            ) from None
        frame = geopandas.read_parquet(path)
    return frame


def require_table(path: str) -> Path:
    """Check that a name is that of a table that can be written.

    Raises
    ------
    OptionError
        If it has another extension.
    """
    if Path(path).suffix.lower() not in (".csv", ".parquet"):
        raise OptionError(f"{path}: expected .csv or .parquet")
    return Path(path)


def read_features(path: str) -> tuple[list[Any], dict[str, Any]]:
    """Read the geometries of a GeoJSON file, and the properties of each by name.

    Returns
    -------
    geometries : list
        One per feature.
    properties : dict
        ``("region", values)`` by name, texts and numbers unchanged.

    Raises
    ------
    OptionError
        If it is not GeoJSON, or its coordinates are not longitudes and latitudes of WGS 84.
    """
    if not Path(path).exists():
        raise OptionError(f"{path}: no such file")
    try:
        with open_regular(path, OptionError) as file:
            content = json.load(file)
    except (ValueError, OSError, RecursionError) as error:
        if isinstance(error, OptionError):
            raise
        what = "" if isinstance(error, UnicodeError) else f" ({in_a_line(error)})"
        raise OptionError(
            f"{path}: not GeoJSON{what}; regions are read from GeoJSON only: ogr2ogr -t_srs "
            "EPSG:4326 OUT.geojson IN makes it from a shapefile or GeoPackage"
        ) from error
    single = [content] if isinstance(content, dict) and "type" in content else None
    features = content.get("features", single) if isinstance(content, dict) else None
    if not isinstance(features, list) or not features:
        raise OptionError(f"{path}: GeoJSON without features")
    require_degrees(content, path)
    found = [f.get("properties") or {} if isinstance(f, dict) else {} for f in features]
    properties = {}
    for name in dict.fromkeys(key for one in found for key in one):
        values = np.empty(len(found), object)
        # `np.array` would make a matrix of lists that have the same length.
        values[:] = [one.get(name) for one in found]
        properties[str(name)] = ("region", values)
    return features, properties


def write_table(found: "xr.Dataset", path: Path, overwrite: bool) -> None:
    """Write the results at points or for regions, one row each; the file appears complete.

    Parameters
    ----------
    found : xarray.Dataset
        From `copcube.lookup.points.points`, for a table with one dimension, or from
        `copcube.lookup.boxes.polygons`; from a cube without leading dimensions.
    path : Path
        A ``.csv`` or ``.parquet``. In parquet the vectors are one column of lists, in CSV one
        column per value. Values without a parquet type, such as numbers among texts, become texts.
        A column ``caution`` marks vectors that mean nothing.
    overwrite : bool
        Replace what is there.

    Raises
    ------
    OptionError
        If the cube has groups.
    WriteError
        If something exists there that must stay, or the file cannot be written.
    """
    import pandas as pd
    import pyarrow as pa
    import pyarrow.parquet as pq

    name = "embedding" if "embedding" in found else "pc"
    dims = [*map(str, found[name].dims)]
    along = dims.pop()
    dim = dims.pop(dims.index("region") if "region" in dims else -1)
    if dims:
        raise OptionError(
            f"the cube has groups along {', '.join(dims)}, but a table has one vector per row; "
            f"select one of them, {how_to_select(dims[0])}"
        )
    given = {k: c.values for k, c in found.coords.items() if c.dims == (dim,)}
    rows = given.get(dim) if dim == "point" else None
    if rows is not None and np.array_equal(rows, np.arange(len(rows))):
        del given[dim]  # only the row number
    columns: dict[Any, Any] = {}
    for key, v in found.data_vars.items():
        if key == "n_images" and not counts_images(found.attrs):
            continue  # 1 where there is a vector, not a count of images
        if v.dims == (dim,):
            columns[key] = v.values
        elif key == "n_images_by_modality":
            by_modality = v.transpose("modality", dim).values
            for label, counts in zip(group_labels(found["modality"]), by_modality, strict=True):
                columns[f"n_images_{label}"] = counts
    if "distance" in columns:
        meanings = np.array(str(found.status.attrs["flag_meanings"]).split())
        columns["status"] = meanings[found.status.values]
        columns["distance_km"] = columns.pop("distance")
    if said := caution(found.attrs):
        columns["caution"] = np.full(found.sizes[dim], said, object)
    vectors = found[name].values
    as_csv = path.suffix.lower() == ".csv"
    if as_csv:
        digits = len(str(vectors.shape[1] - 1))
        columns |= {f"{name}_{n:0{digits}d}": column for n, column in enumerate(vectors.T)}
    frame = pd.DataFrame(beside(given, columns) | columns)
    if as_csv:
        with appearing(path, overwrite) as file:
            frame.to_csv(file, index=False)
        return
    for name_of, column in frame.items():
        try:
            pa.array(column)
        except pa.ArrowException:  # values of several types, as in properties of GeoJSON
            frame[name_of] = column.astype("string")
    table = pa.Table.from_pandas(frame, preserve_index=False)
    lists = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), found.sizes[along])
    described = {**(table.schema.metadata or {}), b"copcube": b"points"}
    table = table.append_column(name, lists).replace_schema_metadata(described)
    with appearing(path, overwrite) as file:
        pq.write_table(table, file, compression="zstd")
