"""How much of every cell a region covers: boxes and polygons on the sphere.

Edges are straight in degrees of longitude and latitude, as GeoJSON defines them (RFC 7946, section
3.1.1), and areas are on the sphere: the share of a cell is exact, for boxes and polygons alike.
Every edge is cut where it crosses the edges of cells. Each piece adds, with a sign for its
direction, the area between it and the eastern edge of its cell to that cell, and the whole band of
latitude that it spans to all cells east of it: Green's theorem, in closed form since the area
element cos φ dφ dλ can be integrated along a straight piece.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from copcube import grid
from copcube.arguments import number
from copcube.cube.latlon import LatLon
from copcube.errors import OptionError
from copcube.grid import Floats, Integers

_LEAST = 1e-9
"""Share of a cell below which it does not count as touched: below the rounding of coordinates."""
_NOISE = 1e-6


@dataclass(frozen=True, eq=False)
class Region:
    """Cells that a region touches.

    Parameters
    ----------
    i, j : numpy.ndarray
        (n,) int64 positions in the dataset along latitude and longitude, from north to south and
        from west to east; -1 where it does not reach.
    col : numpy.ndarray
        (n,) int64 columns of the grid, not wrapped: they grow eastwards across any meridian.
    fraction : numpy.ndarray
        (n,) float64 share of every cell's area inside the region, above 0 and up to 1.
    area : numpy.ndarray
        (n,) float64 area inside the region in steradians.
    """

    i: Integers
    j: Integers
    col: Integers
    fraction: Floats
    area: Floats


def box_rings(west: float, south: float, east: float, north: float) -> list[list[Floats]]:
    """Ring of a box; if its east lies west of its west, it crosses the antimeridian.

    Raises
    ------
    OptionError
        If the corners are not places, are swapped, or enclose nothing.
    """
    given = {"west": west, "south": south, "east": east, "north": north}
    west, south, east, north = (number(value, name) for name, value in given.items())
    if not np.isfinite([west, south, east, north]).all() or max(abs(south), abs(north)) > 90:
        raise OptionError(
            f"west {west:g}, south {south:g}, east {east:g}, north {north:g} is not a box; "
            "expected degrees, latitudes from -90 to 90"
        )
    # May cross 0° in degrees of any turn, such as 350 to 370; fill values are not degrees.
    if max(abs(west), abs(east)) > 540 or abs(east - west) > 360:
        raise OptionError(
            f"west {west:g} to east {east:g} is not a box; expected degrees, spanning at most 360"
        )
    if south > north:
        raise OptionError(f"south {south:g} lies north of north {north:g}: corners are swapped")
    if south == north or west == east:
        raise OptionError(
            f"the region from {west:g} to {east:g} and {south:g} to {north:g} is empty; use at or "
            "points for single places"
        )
    east = east if east > west else east + 360
    return [[np.array([[west, south], [east, south], [east, north], [west, north]])]]


def in_degrees(geometries: Any) -> Any:
    """Return geopandas geometries in degrees of WGS 84, and anything else unchanged."""
    crs = geometries.crs if hasattr(geometries, "to_crs") else None
    if crs is None or crs.equals(grid.WGS84, ignore_axis_order=True):
        return geometries
    return geometries.to_crs(grid.WGS84)


def require_degrees(found: Mapping[str, Any], what: str) -> None:
    """Check that GeoJSON names no other reference system, as it could before RFC 7946.

    Raises
    ------
    OptionError
        If it does.
    """
    try:
        named = str(found["crs"]["properties"]["name"])
    except (KeyError, TypeError):
        return
    if not named.endswith(("CRS84", ":4326")):
        raise OptionError(
            f"{what} has coordinates in {named}; expected longitudes and latitudes of WGS 84, "
            "as `ogr2ogr -t_srs EPSG:4326 -lco RFC7946=YES` writes them"
        )


def polygon_rings(geometry: Any) -> list[list[Floats]]:
    """Rings of polygons, unwrapped, the outer one of each first.

    Parameters
    ----------
    geometry : mapping, str or object
        GeoJSON of a Polygon, a MultiPolygon or a Feature of one, as mapping or text, or an object
        with ``__geo_interface__``, such as a shapely geometry.

    Raises
    ------
    OptionError
        If it is none of these, has no area, or is not in degrees.
    """
    geometry = in_degrees(geometry)
    found = getattr(geometry, "__geo_interface__", geometry)
    if isinstance(found, str):
        try:
            found = json.loads(found)
        except (ValueError, RecursionError):
            found = None
    if isinstance(found, Mapping):
        require_degrees(found, "the region")
    while isinstance(found, Mapping) and found.get("type") in ("Feature", "FeatureCollection"):
        features = found.get("features", [found])
        if not isinstance(features, list) or len(features) != 1:
            raise OptionError(
                f"the collection has {len(features)} features; expected one region: pass them one "
                "by one"
            )
        found = features[0].get("geometry") if isinstance(features[0], Mapping) else None
        if found is None:
            raise OptionError("the feature has no geometry; expected a Polygon or a MultiPolygon")
    kind = found.get("type") if isinstance(found, Mapping) else type(geometry).__name__
    if kind not in ("Polygon", "MultiPolygon"):
        raise OptionError(
            f"the region is a {kind}; expected a Polygon or a MultiPolygon, as GeoJSON or with "
            "__geo_interface__, or a box"
        )
    coordinates = found.get("coordinates")
    coordinates = [] if coordinates is None else coordinates
    polygons = [coordinates] if kind == "Polygon" else coordinates
    try:
        rings = [[_ring(ring) for ring in polygon] for polygon in polygons if len(polygon)]
    except (TypeError, ValueError, IndexError) as error:
        if isinstance(error, OptionError):
            raise
        raise OptionError(
            "the rings of the polygon are not lists of [longitude, latitude] pairs"
        ) from None
    if not rings:
        raise OptionError("the region is empty: the polygon has no corners")
    return rings


def _ring(points: Any) -> Floats:
    """Corners of a ring, unwrapped; a ring around a pole is continued over that pole."""
    corners = np.array([point[:2] for point in points], np.float64)
    if not np.isfinite(corners).all() or np.any(np.abs(corners[:, 1]) > 90):
        raise OptionError(
            "the polygon has a corner that is not a place; expected degrees, lon, lat"
        )
    if len(corners) < 3:
        raise OptionError(f"a ring of the polygon has {len(corners)} corners; expected 3 or more")
    if np.any(np.abs(corners[:, 0]) > 360):
        raise OptionError("the polygon has a longitude beyond ±360; expected degrees, lon, lat")
    corners = corners[(np.roll(corners, -1, axis=0) != corners).any(axis=1)]
    if len(corners) == 0:
        raise OptionError("a ring of the polygon is a single place; expected 3 or more corners")
    steps, rises = np.diff(corners, axis=0, append=corners[:1]).T
    # An edge of more than half a turn crosses the antimeridian; a whole turn is meant as such.
    turns = np.abs(steps) >= 360 - grid.NEAR
    across = (np.abs(steps) > 180) & ~turns
    steps[across] -= 360 * np.sign(steps[across])
    # But if a ring around a pole closes at -180 and 180, these are one place. The side of a box or
    # band continues along the meridian.
    if turns.sum() == 1:
        n = int(np.argmax(turns))
        if abs(rises[n]) < grid.NEAR and steps[n - 1] and steps[(n + 1) % len(steps)]:
            steps[n] = 0
    lon = corners[0, 0] + np.concatenate([[0], np.cumsum(steps)])
    lat = np.append(corners[:, 1], corners[0, 1])
    if abs(lon[-1] - lon[0]) > 180:
        pole = np.copysign(90.0, lat.mean())
        lon, lat = np.append(lon, [lon[-1], lon[0]]), np.append(lat, [pole, pole])
    else:
        lon, lat = lon[:-1], lat[:-1]
    return np.stack([lon, lat], axis=1)


def region(latlon: LatLon, polygons: list[list[Floats]]) -> Region:
    """Find the cells of a grid that polygons touch, and the share of each.

    Raises
    ------
    OptionError
        If the polygons cross themselves, overlap or have no area.
    """
    above = int(np.ceil((90 - latlon.origin[0]) / latlon.dy))
    north = latlon.origin[0] + (above + 0.5) * latlon.dy
    rows = int(np.ceil((north + 90) / latlon.dy)) + 1
    covered: dict[int, Floats] = {}
    for polygon in polygons:
        for position, ring in enumerate(polygon):
            first, areas = _areas(latlon, north, rows, ring)
            # In practice rings run either way round, whatever the standard says: a polygon's first
            # one adds area, and the others are holes.
            areas = areas if (areas.sum() > 0) == (position == 0) else -areas
            for n in np.flatnonzero(areas.any(axis=0)).tolist():
                covered[first + n] = covered.get(first + n, 0) + areas[:, n]
    edges = np.sin(np.radians(np.clip(north - latlon.dy * np.arange(rows + 1), -90, 90)))
    whole = edges[:-1] - edges[1:]
    cols = np.array(sorted(covered), np.int64)
    table = np.stack([covered[c] for c in cols.tolist()], 1) if len(cols) else np.zeros((rows, 0))
    share = table / np.where(whole > 0, whole, np.inf)[:, np.newaxis]
    if latlon.closed:
        cols, share, table = _folded(latlon, cols, share, table)
    if share.size and (share.min() < -_NOISE or share.max() > 1 + _NOISE):
        raise OptionError("the polygon crosses itself or its parts overlap; repair it first")
    r, c = np.nonzero(share > _LEAST)
    if len(r) == 0:
        raise OptionError("the region is empty: the polygon has no area")
    i, j = latlon.located(r - above, cols[c])
    # Columns of a grid that does not close do not repeat.
    inside = (i >= 0) & (j >= 0) & (latlon.closed | ((cols[c] >= 0) & (cols[c] < latlon.columns)))
    return Region(
        np.where(inside, i, -1),
        np.where(inside, j, -1),
        cols[c],
        np.minimum(share[r, c], 1),
        table[r, c] * np.radians(latlon.dx),
    )


def _folded(
    latlon: LatLon, cols: Integers, share: Floats, table: Floats
) -> tuple[Integers, Floats, Floats]:
    """Add up columns that coincide a turn apart, and order them from west to east."""
    turn, first = np.unique(cols % latlon.columns, return_inverse=True)
    if len(turn) < len(cols):
        sums = np.zeros((2, len(share), len(turn)))
        for n, k in enumerate(first.tolist()):
            sums[:, :, k] += share[:, n], table[:, n]
        cols, (share, table) = turn, sums
    if len(cols) == 0:
        return cols, share, table
    # They begin after the widest gap, to keep a region across a meridian in one piece.
    order = np.argsort(cols % latlon.columns, kind="stable")
    sorted_ = cols[order] % latlon.columns
    gaps = np.diff(sorted_, prepend=sorted_[-1] - latlon.columns)
    start = int(np.argmax(gaps)) if gaps.max() > 1 else 0
    order, sorted_ = np.roll(order, -start), np.roll(sorted_, -start)
    sorted_ = np.where(np.arange(len(sorted_)) >= len(sorted_) - start, latlon.columns, 0) + sorted_
    return sorted_, share[:, order], table[:, order]


def _areas(latlon: LatLon, north: float, rows: int, ring: Floats) -> tuple[int, Floats]:
    """Signed areas of a ring in every cell: first column, and (rows, cols) in columns of width 1.

    Rows count from `north`; the sum is positive for a ring that runs clockwise on the map.
    """
    u = _columns(latlon, ring[:, 0])
    v = (north - ring[:, 1]) / latlon.dy
    u, v = (np.append(a, a[0]) for a in (u, v))
    du, dv = np.diff(u), np.diff(v)
    edge, t = [np.arange(len(du))] * 2, [np.zeros(len(du)), np.ones(len(du))]
    for start, step in ((u[:-1], du), (v[:-1], dv)):
        low, high = np.minimum(start, start + step), np.maximum(start, start + step)
        first = np.floor(low).astype(np.int64) + 1
        count = np.maximum(np.ceil(high).astype(np.int64) - first, 0)
        of = np.repeat(np.arange(len(du)), count)
        within = np.arange(len(of)) - np.repeat(np.cumsum(count) - count, count)
        edge.append(of)
        t.append((first[of] + within - start[of]) / step[of])
    of, at = np.concatenate(edge), np.clip(np.concatenate(t), 0, 1)
    order = np.lexsort((at, of))
    of, at = of[order], at[order]
    a, b = at[:-1], at[1:]
    piece = (of[1:] == of[:-1]) & (b > a)
    of, a, b = of[:-1][piece], a[piece], b[piece]
    ua, ub = u[of] + a * du[of], u[of] + b * du[of]
    va, vb = v[of] + a * dv[of], v[of] + b * dv[of]
    col, row = np.floor((ua + ub) / 2).astype(np.int64), np.floor((va + vb) / 2).astype(np.int64)
    row = np.clip(row, 0, rows - 1)  # a ring along a pole
    middle = np.radians(north - latlon.dy * (va + vb) / 2)
    half = np.radians(va - vb) * latlon.dy / 2
    band = 2 * np.cos(middle) * np.sin(half)
    # ∫ (u − middle of u) cos φ dφ; for short pieces its bracket is a difference of close numbers.
    bracket = half**2 / 3 - half**4 / 30
    large = np.abs(half) > 0.05
    bracket[large] = np.sin(half[large]) / half[large] - np.cos(half[large])
    own = (col + 1 - (ua + ub) / 2) * band + (ub - ua) * np.sin(middle) * bracket
    west = int(col.min())
    areas = np.zeros((rows, int(col.max()) - west + 2))
    # With `areas[…] += band`, only the last of several pieces in a cell would count.
    np.add.at(areas, (row, col - west + 1), band)
    areas = np.cumsum(areas, axis=1)
    np.add.at(areas, (row, col - west), own)
    return west, areas[:, :-1]


def _columns(latlon: LatLon, lon: Floats) -> Floats:
    """Longitudes in columns from the western edge of column 0, in the turn nearest to the grid."""
    u = (lon - latlon.origin[1] + latlon.dx / 2) / latlon.dx
    turn = 360 / latlon.dx
    return np.asarray(u - turn * np.rint((u.mean() - len(latlon.x) / 2) / turn))
