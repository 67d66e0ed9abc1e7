"""Writing embeddings of fragments in Major TOM's columns, as GeoParquet 1.1.

Rows are written in a stream: what has gathered for a row group is ordered along Hilbert's curve and
written, so that memory stays near two row groups. If whole regions are written one after another,
in the order of `hilbert`, the whole file is in order.

Besides the columns of the released files there is ``bbox``, the covering box of the geometry, by
which readers skip what they need not read (geoparquet.org/releases/v1.1.0).
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from copcube.errors import RowsError
from copcube.files.atomic import atomic_path
from copcube.grid import Floats
from copcube.products.majortom.columns import HEAD, POLYGON
from copcube.products.majortom.fragments import Footprints
from copcube.products.majortom.grid import GRID
from copcube.products.majortom.hilbert import hilbert
from copcube.products.majortom.table import COLUMNS, LICENCE, SOURCES, Embeddings
from copcube.rows.table import PREFIX
from copcube.rows.vectors import require_finite
from copcube.version import __version__

if TYPE_CHECKING:
    import pyarrow as pa

ROW_GROUP = 128 << 20
"""Bytes of a row group before compression, about."""

_TEXTS = 600
"""Bytes of a row beside its vector, about."""


class EmbeddingsWriter:
    """Writes embeddings of fragments in a stream; see `writing_embeddings`."""

    def __init__(
        self,
        path: "Path | pa.NativeFile",
        name: str | Path,
        dim: int,
        *,
        transposed: bool,
        sources: bool,
        published_ids: bool,
        about: Mapping[str, str | int],
        row_group: int,
    ) -> None:
        import pyarrow.parquet as pq

        self._name, self._dim, self._published_ids = name, dim, published_ids
        self._sources = sources
        self._schema = _schema(sources)
        ours: dict[str, str | int] = {
            "product": "Major TOM",
            "license": LICENCE,
            "copcube_version": __version__,
            "footprints": "transposed" if transposed else "right",
        }
        self._about = ours | dict(about)
        self._size = max(1, row_group // (4 * dim + _TEXTS))
        self._waiting: list[Embeddings] = []
        self._rows = 0
        self._bounds = [180.0, 90.0, -180.0, -90.0]
        self._divided = False
        texts = ["timestamp", "product_id", "grid_cell", "utm_crs", *SOURCES[:1] * sources]
        measured = ["grid_cell", "grid_row_u", "grid_col_r", "centre_lat", "centre_lon"]
        self._file = pq.ParquetWriter(
            path,
            self._schema,
            compression="zstd",
            compression_level=1,
            use_dictionary=texts,
            # The bytes of floats compress only where those of equal weight lie together.
            column_encoding={"embedding.list.element": "BYTE_STREAM_SPLIT"},
            write_statistics=[*measured, *(f"bbox.{key}" for key in _BOX)],
            # Arrow's own schema would hide notes added at the end from readers of the schema.
            store_schema=False,
        )

    def write(self, rows: Embeddings) -> None:
        """Write some rows.

        Raises
        ------
        RowsError
            If vectors have another length or are not finite, or rows lack the columns of their
            images' places.
        GridError
            If a cell is not on the grid.
        """
        if rows.embedding.shape[1] != self._dim:
            raise RowsError(
                f"{self._name}: embeddings of length {rows.embedding.shape[1]}; expected "
                f"{self._dim}, as those before"
            )
        if self._sources and (rows.parquet_url is None or rows.parquet_row is None):
            raise RowsError(
                f"{self._name}: rows without parquet_url and parquet_row; expected both"
            )
        require_finite(rows.embedding, self._name, self._rows + np.arange(len(rows)))
        self._rows += len(rows)
        self._waiting.append(rows)
        if sum(map(len, self._waiting)) >= self._size:
            self._flush(least=self._size)

    def close(self) -> None:
        """Write what is left, and the metadata."""
        self._flush(least=1)
        west, south, east, north = self._bounds
        geometry: dict[str, Any] = {
            "encoding": "WKB",
            "geometry_types": ["Polygon", *(["MultiPolygon"] if self._divided else [])],
            "edges": "planar",
            "covering": {"bbox": {key: ["bbox", key] for key in _BOX}},
        }
        if self._rows:
            geometry["bbox"] = [west, south, east, north]
        about = {
            "version": "1.1.0",
            "primary_column": "geometry",
            "columns": {"geometry": geometry},
        }
        # No "crs": longitude and latitude of OGC:CRS84 are what its absence means.
        notes = {PREFIX + key: str(value) for key, value in sorted(self._about.items())}
        self._file.add_key_value_metadata({"geo": json.dumps(about)} | notes)
        self._file.close()

    def abandon(self) -> None:
        """Close the file without what is left."""
        self._file.close()

    def _flush(self, least: int) -> None:
        """Write full row groups, and what is left if it has at least `least` rows."""
        if not self._waiting:
            return
        rows = Embeddings.concatenate(self._waiting)
        start = 0
        while len(rows) - start >= least:
            self._write(rows.take(slice(start, start + self._size)))
            start += self._size
        self._waiting = [rows.take(slice(start, None))] if start < len(rows) else []

    def _write(self, rows: Embeddings) -> None:
        # The order decides nothing but how near neighbours lie, so ties go by cell and box.
        where = rows.footprints()
        keys = (*rows.box.T[::-1], rows.grid_col, rows.grid_row, hilbert(where.lat, where.lon))
        order = np.lexsort(keys)
        rows = rows.take(order)
        where = replace(where, **{k: v[order] for k, v in vars(where).items()})
        table, bounds, divided = _table(rows, where, self._schema, self._published_ids)
        low, high = np.minimum(bounds, self._bounds), np.maximum(bounds, self._bounds)
        self._bounds = [*low[:2].tolist(), *high[2:].tolist()]
        self._divided |= divided
        self._file.write_table(table, row_group_size=len(rows))


@contextmanager
def writing_embeddings(
    path: str | Path,
    dim: int,
    *,
    transposed: bool = False,
    sources: bool = False,
    published_ids: bool = False,
    about: Mapping[str, str | int] | None = None,
    row_group: int = ROW_GROUP,
) -> Iterator[EmbeddingsWriter]:
    """Write embeddings of fragments while the body runs; the file appears complete or not at all.

    Parameters
    ----------
    path : str or Path
        Of the file, such as ``part_00001.parquet``; one that exists is replaced.
    dim : int
        Length of the vectors.
    transposed : bool
        Whether boxes and footprints are transposed, as in the released files. It is noted in the
        file; the rows must come with such boxes.
    sources : bool
        Whether there are columns ``parquet_url`` and ``parquet_row``, as in the 249k family.
    published_ids : bool
        Whether ``unique_id`` is made as the released ones, of NumPy's printed vector. By default
        it is made of all the bytes of the vector, which takes a hundredth of the time.
    about : mapping, optional
        What made the vectors, such as ``encoder``; noted in the file.
    row_group : int
        Bytes of a row group before compression.

    Yields
    ------
    EmbeddingsWriter
        Its `write` takes an `Embeddings`.

    Raises
    ------
    WriteError
        If the file cannot be written.
    """
    with atomic_path(path) as temporary:
        writer = EmbeddingsWriter(
            temporary,
            path,
            dim,
            transposed=transposed,
            sources=sources,
            published_ids=published_ids,
            about=about or {},
            row_group=row_group,
        )
        try:
            yield writer
        except BaseException:
            writer.abandon()
            raise
        writer.close()


def encode_embeddings(
    rows: Embeddings,
    name: str | Path,
    *,
    transposed: bool = False,
    about: Mapping[str, str | int] | None = None,
) -> "pa.Buffer":
    """Embeddings as the bytes of a file; see `writing_embeddings`.

    With transposed boxes everything is as in the released files, and so is ``unique_id``.

    Parameters
    ----------
    rows : Embeddings
        All its rows.
    name : str or Path
        What errors call the file.
    transposed, about
        As there.

    Raises
    ------
    RowsError
        If a vector is not finite.
    """
    import pyarrow as pa

    sink = pa.BufferOutputStream()
    writer = EmbeddingsWriter(
        sink,
        name,
        rows.embedding.shape[1],
        transposed=transposed,
        sources=False,
        published_ids=transposed,
        about=about or {},
        row_group=ROW_GROUP,
    )
    writer.write(rows)
    writer.close()
    return sink.getvalue()


_BOX = ("xmin", "ymin", "xmax", "ymax")


def _schema(sources: bool) -> "pa.Schema":
    import pyarrow as pa

    kinds = {
        "embedding": pa.list_(pa.field("element", pa.float32())),
        "grid_row_u": pa.int16(),
        "grid_col_r": pa.int16(),
        "geometry": pa.binary(),
        "centre_lat": pa.float32(),
        "centre_lon": pa.float32(),
        "pixel_bbox": pa.list_(pa.field("element", pa.int64())),
        "parquet_row": pa.int64(),
    }
    box = pa.struct([pa.field(key, pa.float64()) for key in _BOX])
    names = (*COLUMNS, *(SOURCES if sources else ()))
    return pa.schema([*((n, kinds.get(n, pa.string())) for n in names), ("bbox", box)])


def _table(
    rows: Embeddings, where: Footprints, schema: "pa.Schema", published_ids: bool
) -> tuple["pa.Table", Floats, bool]:
    """Arrow's table of rows; west, south, east and north of all; whether one crosses 180°."""
    import pyarrow as pa

    corners = where.corners
    binary, boxes, divided = _geometries(corners)
    columns: dict[str, Any] = {
        "unique_id": _ids(rows, corners, binary, published_ids),
        "embedding": _lists(rows.embedding),
        "timestamp": rows.timestamp,
        "product_id": rows.product_id,
        "grid_cell": GRID.names(rows.grid_row, rows.grid_col),
        "grid_row_u": rows.grid_row.astype(np.int16),
        "grid_col_r": rows.grid_col.astype(np.int16),
        "geometry": binary,
        "centre_lat": where.lat.astype(np.float32),
        "centre_lon": where.lon.astype(np.float32),
        "utm_footprint": [_wkt(polygon) for polygon in where.utm.tolist()],
        "utm_crs": [f"EPSG:{code}" for code in rows.epsg.tolist()],
        "pixel_bbox": _lists(rows.box),
        "bbox": pa.StructArray.from_arrays([pa.array(b) for b in boxes.T], list(_BOX)),
        "parquet_url": rows.parquet_url,
        "parquet_row": rows.parquet_row,
    }
    arrays = [
        column if isinstance(column, pa.Array) else pa.array(column, field.type)
        for field in schema
        for column in [columns[field.name]]
    ]
    low, high = boxes.min(axis=0), boxes.max(axis=0)
    bounds = np.array([low[0], low[1], high[2], high[3]])
    if divided:
        bounds[[0, 2]] = -180.0, 180.0
    return pa.Table.from_arrays(arrays, schema=schema), bounds, divided


def _lists(values: NDArray[Any]) -> "pa.Array":
    """Rows of a matrix as lists."""
    import pyarrow as pa

    n, width = values.shape
    flat = pa.array(np.ascontiguousarray(values).reshape(-1))
    offsets = pa.array(np.arange(0, (n + 1) * width, width, dtype=np.int32)[: n + 1])
    kind = pa.list_(pa.field("element", flat.type))
    return pa.ListArray.from_arrays(offsets, flat, type=kind)


def _geometries(corners: Floats) -> tuple[list[bytes], Floats, bool]:
    """Well-known binary of footprints, their boxes (n, 4), and whether one crosses 180°.

    One that does is divided there in two, and the box of it has its west greater than its east
    (RFC 7946, 3.1.9 and 5.2).
    """
    lon = corners[..., 0]
    west, east = lon.min(axis=1), lon.max(axis=1)
    # Where all of it lies beyond 180°, it is only named by another turn.
    turn = np.where(east <= -180, 360.0, np.where(west >= 180, -360.0, 0.0))
    shifted = corners + np.stack([turn, np.zeros_like(turn)], axis=-1)[:, np.newaxis]
    west, east = west + turn, east + turn
    south, north = corners[..., 1].min(axis=1), corners[..., 1].max(axis=1)
    crosses = (west < -180) | (east > 180)
    records = np.empty(len(corners), POLYGON)
    records["head"], records["points"] = np.frombuffer(HEAD, np.uint8), shifted
    binary = [record.tobytes() for record in records]
    for i in np.flatnonzero(crosses).tolist():
        edge = 180.0 if east[i] > 180 else -180.0
        binary[i] = _divided(shifted[i], edge)
    west, east = (west + 180) % 360 - 180, np.where(east > 180, east - 360, east)
    return binary, np.stack([west, south, east, north], axis=1), bool(crosses.any())


def _divided(corners: Floats, edge: float) -> bytes:
    """Well-known binary of a polygon (5, 2) divided at a longitude, as two polygons."""
    parts = []
    for side in (-1, 1):
        ring = _clipped(corners[:-1], side, edge)
        # What lies beyond 180° has longitudes of the other side.
        if side * edge > 0:
            ring[:, 0] -= 2 * edge
        ring = np.concatenate([ring, ring[:1]])
        head = np.array([3, 1, len(ring)], "<u4").tobytes()
        parts.append(b"\x01" + head + ring.astype("<f8").tobytes())
    return b"\x01" + np.array([6, 2], "<u4").tobytes() + b"".join(parts)


def _clipped(ring: Floats, side: int, edge: float) -> Floats:
    """Part of a convex ring (k, 2) on one side of a meridian (Sutherland & Hodgman, 1974)."""
    kept: list[Floats] = []
    for a, b in zip(ring, np.roll(ring, -1, axis=0), strict=True):
        inside, next_inside = side * (a[0] - edge) >= 0, side * (b[0] - edge) >= 0
        if inside:
            kept.append(a)
        if inside != next_inside:
            share = (edge - a[0]) / (b[0] - a[0])
            kept.append(np.array([edge, a[1] + share * (b[1] - a[1])]))
    return np.array(kept)


def _wkt(polygon: list[list[float]]) -> str:
    """Well-known text of a closed ring, with the shortest digits that are exact."""
    points = ", ".join(f"{_number(x)} {_number(y)}" for x, y in polygon)
    return f"POLYGON (({points}))"


def _number(value: float) -> str:
    return repr(value).removesuffix(".0")


def _ids(rows: Embeddings, corners: Floats, binary: list[bytes], published: bool) -> list[str]:
    """SHA-256 of geometry, time, product and vector, in hexadecimal digits."""
    names = list(zip(rows.timestamp.tolist(), rows.product_id.tolist(), strict=True))
    if published:
        polygons = corners.tolist()
        return [
            hashlib.sha256(f"{_wkt(g)}_{t}_{p}_{v}".encode()).hexdigest()
            for g, (t, p), v in zip(polygons, names, rows.embedding, strict=True)
        ]
    return [
        hashlib.sha256(g + f"_{t}_{p}_".encode() + v.tobytes()).hexdigest()
        for g, (t, p), v in zip(binary, names, np.ascontiguousarray(rows.embedding), strict=True)
    ]
