"""The contract of rs-embed (github.com/cybergis/rs-embed, 0.2.1) over any cube.

Requests, keys of the metadata and names of errors are those of its model ``copernicus``, which
reads the published GeoTIFF. By default the answers are those of `copcube.lookup.boxes`: weighted by
the share of each cell, over cells that have a vector, for regions smaller than a cell, across the
antimeridian and over poles too. With ``compat=True`` the numbers are rs-embed's own: a window of
whole cells of equal weight, in which missing vectors count as zeros.
"""

import os
import re
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import ceil, floor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from copcube import grid
from copcube.arguments import as_given, one_path
from copcube.cube.caution import caution, of_vectors
from copcube.cube.schema import group_labels
from copcube.cube.view import CubeView
from copcube.errors import CopcubeError, ModelError, SpecError
from copcube.files.objects import is_remote
from copcube.lookup.boxes import Pooling, box
from copcube.lookup.gathering import gathered_vectors
from copcube.lookup.regions import box_rings, region
from copcube.lookup.specs import (
    Corners,
    Output,
    Temporal,
    corners_of,
    is_list,
    output_of,
    temporal_of,
)

if TYPE_CHECKING:
    import xarray as xr

_YEAR = 2021
"""The year of the published map, and of cubes that do not state their years."""
_FOLDER = "data/copernicus_embed"
_WEST, _NORTH = -180 - grid.STEP / 2, 90 + grid.STEP / 2
_EAST, _SOUTH = _WEST + 360, _NORTH - grid.STEP * grid.N_LAT
"""Edges of the published map in degrees."""
_NOTE = (
    "Embeddings lie on their own grid of 0.25 degrees in EPSG:4326; they are not projected to "
    "EPSG:3857, as other models of rs-embed are."
)


@dataclass
class Embedding:
    """What rs-embed returns for a place.

    Parameters
    ----------
    data : numpy.ndarray or xarray.DataArray
        (d,) float32, or (d, y, x) for the cells.
    meta : dict
        Metadata under rs-embed's keys.
    """

    data: "NDArray[np.float32] | xr.DataArray"
    meta: dict[str, Any]


def get_embedding(
    cube: "xr.Dataset | str | Path | None" = None,
    *,
    spatial: Any,
    temporal: Any = None,
    output: Any = None,
    sensor: Any = None,
    modality: str | None = None,
    backend: str = "auto",
    device: str = "auto",
    compat: bool = False,
) -> Embedding:
    """Look up the vector of a place, or its cells, as rs-embed's ``get_embedding`` does.

    Parameters
    ----------
    cube : xarray.Dataset, str, Path or None
        A cube or a reduction, or the path of one: a Zarr cube, a published map, or a folder with an
        ``embed_map_*.tif``. By default the folder that `sensor` names in rs-embed's way
        (``collection="dir:…"``), else that of RS_EMBED_COP_DIR, else data/copernicus_embed.
    spatial : object, mapping or sequence
        rs-embed's BBox or PointBuffer, a mapping with their fields, (minlon, minlat, maxlon,
        maxlat), or (lon, lat, buffer_m). A minlon east of maxlon is a box across the
        antimeridian.
    temporal : object, mapping, int, tuple or None
        rs-embed's TemporalSpec, a year, or two days of which the second is not included. A cube
        with a dimension ``year``, or one year selected from it, answers by that; others hold the
        years stated in their attributes, or 2021.
    output : object, mapping, str or None
        rs-embed's OutputSpec, "mean", "max" or "grid"; by default the mean.
    sensor : object, optional
        rs-embed's SensorSpec, of which only ``collection`` counts.
    modality : str, optional
        Group of a cube by modality.
    backend, device : str
        "auto" or "local"; any device, since nothing is computed on one.
    compat : bool
        Give rs-embed's own numbers, and refuse what it refuses.

    Returns
    -------
    Embedding
        Its meta has rs-embed's keys and, without `compat`, ``cells``, ``cells_missing`` and
        ``coverage``.

    Raises
    ------
    SpecError
        If place, time or output are not described correctly.
    ModelError
        If there is no cube, or it has no answer: no vector there, or not that year.

    Examples
    --------
    >>> get_embedding(cube, spatial=(5, 45, 10, 48)).data.shape  # doctest: +SKIP
    (768,)
    """
    _demand_local(backend)
    ds, where = _opened(cube, sensor)
    return _answer(ds, where, spatial, temporal, output_of(output), modality, compat)


def get_embeddings_batch(
    cube: "xr.Dataset | str | Path | None" = None,
    *,
    spatials: Sequence[Any],
    temporal: Any = None,
    output: Any = None,
    sensor: Any = None,
    modality: str | None = None,
    backend: str = "auto",
    device: str = "auto",
    compat: bool = False,
) -> list[Embedding]:
    """Look up many places, as rs-embed's ``get_embeddings_batch`` does.

    Parameters
    ----------
    cube, temporal, output, sensor, modality, backend, device, compat
        As of `get_embedding`.
    spatials : sequence
        Places, each as `get_embedding` takes it. RS_EMBED_COPERNICUS_BATCH_WORKERS sets how many
        are looked up at once, by default 4.

    Returns
    -------
    list of Embedding
        In the order of the places.

    Raises
    ------
    SpecError, ModelError
        As `get_embedding`, for the first place without an answer, which is named.
    """
    _demand_local(backend)
    if not is_list(spatials):
        raise SpecError(f"spatials is {as_given(spatials)}; expected a list of places")
    if len(spatials) == 0:
        return []
    (ds, where), wanted = _opened(cube, sensor), output_of(output)

    def one(number: int) -> Embedding:
        try:
            return _answer(ds, where, spatials[number], temporal, wanted, modality, compat)
        except (SpecError, ModelError) as error:
            raise type(error)(f"spatials[{number}]: {error}") from error

    with ThreadPoolExecutor(min(len(spatials), _workers())) as pool:
        return list(pool.map(one, range(len(spatials))))


def describe(cube: "xr.Dataset | None" = None) -> dict[str, Any]:
    """Describe what can be requested, under the keys of rs-embed's ``describe_model``.

    Parameters
    ----------
    cube : xarray.Dataset, optional
        Its years are listed; without a cube, those of the published map.
    """
    years = [_YEAR] if cube is None else sorted(_years(CubeView.of(cube)))
    said = None if cube is None else caution(cube.attrs)
    return {
        "type": "precomputed",
        "backend": ["auto", "local"],
        "inputs": {"spatial": "BBox or PointBuffer (EPSG:4326)"},
        "temporal": {"mode": "year", "supported_years": years},
        "output": ["pooled", "grid"],
        "defaults": {
            "data_dir_env": "RS_EMBED_COP_DIR",
            "data_dir_default": _FOLDER,
            "download": False,
        },
        "notes": [
            "Cells count by the share of their area in the region, missing ones not at all.",
            "Regions smaller than a cell are answered by their cell.",
            "compat=True: windows of whole cells, all alike, zeros for missing ones.",
            _NOTE,
            *([] if said is None else [said]),
        ],
    }


def _demand_local(backend: str) -> None:
    if str(backend).strip().lower() not in ("auto", "local"):
        raise ModelError(f"backend={backend!r}; cubes are precomputed: expected 'auto' or 'local'")


def _workers() -> int:
    text = os.environ.get("RS_EMBED_COPERNICUS_BATCH_WORKERS", "4")
    try:
        return max(1, int(text))
    except ValueError:
        raise ModelError(
            f"RS_EMBED_COPERNICUS_BATCH_WORKERS={text!r}; expected a whole number"
        ) from None


def _opened(cube: Any, sensor: Any) -> tuple["xr.Dataset", str | None]:
    """Open a cube, and return its path too."""
    import xarray as xr

    from copcube.cube.store import is_group, open_stored
    from copcube.interchange.engine import CopembedBackend

    if isinstance(cube, xr.Dataset):
        return cube, cube.encoding.get("source")
    if cube is None:
        # The order is rs-embed's: the sensor's collection, the environment, a folder.
        collection = str(getattr(sensor, "collection", None) or "")
        named = collection.removeprefix("dir:").strip() if collection.startswith("dir:") else ""
        cube = named or os.environ.get("RS_EMBED_COP_DIR", _FOLDER)
    try:
        path = Path(one_path(cube, "cube", ", or a cube as xarray.Dataset")).expanduser()
        if path.is_dir() and not is_group(path):
            maps = sorted(path.glob("embed_map_*.tif"))
            if not maps:
                raise ModelError(
                    f"{path}: not a cube, and no embed_map_*.tif in it; put the map there"
                )
            path = maps[0]
        if path.is_file():
            return xr.open_dataset(path, engine=CopembedBackend, chunks={}), str(path)
        store = str(cube) if is_remote(str(cube)) else str(path)
        return open_stored(store), str(cube)
    except ModelError:
        raise
    except CopcubeError as error:
        raise ModelError(str(error)) from error


def _answer(
    ds: "xr.Dataset",
    where: str | None,
    spatial: Any,
    temporal: Any,
    output: Output,
    modality: str | None,
    compat: bool,
) -> Embedding:
    if not isinstance(compat, bool | np.bool_):
        raise SpecError(f"compat is {as_given(compat)}; expected True or False")
    corners = corners_of(spatial, strict=bool(compat))
    time = temporal_of(temporal)
    try:
        view = CubeView.of(ds)
        time = _served(time, view, compat)
        view = _group(view, time, modality)
        data, found = (_window if compat else _region)(view, corners, output)
    except (SpecError, ModelError):
        raise
    except CopcubeError as error:
        raise ModelError(str(error)) from error
    meta: dict[str, Any] = {
        # With compat, rs-embed's own words, which programs may read.
        "model": "copernicus" if compat else "copcube",
        "type": "precomputed",
        "backend": "vendored_geotiff" if compat else "copcube",
        "source": str(of_vectors(ds.attrs).get("source", where)),
        "sensor": None,
        "temporal": _by_keys(time),
        "image_size": None,
        "data_dir": None if where is None else str(Path(where).parent),
        "download": False,
        "bbox_4326": corners,
        "dataset_path": where,
        "input_crs": "EPSG:4326",
        "output_crs": "EPSG:4326",
        "projection_mode": "product_native_fixed",
        "projection_note": _NOTE,
        "product_resolution_deg": (view.latlon.dy, view.latlon.dx),
        **found,
        # Meaningless numbers must not be mistaken for rs-embed's.
        **({} if (said := caution(ds.attrs)) is None else {"caution": said}),
    }
    if output.mode == "pooled":
        return Embedding(data, {**meta, "pooling": f"{output.pooling}_hw"})
    return Embedding(data.assign_attrs(meta), meta)


def _years(view: CubeView) -> set[int]:
    """Years that a cube states to hold."""
    if years := _years_of_groups(view):
        return {*years}
    listed, named = (
        {int(year) for year in re.findall(r"\b(?:19|20)\d\d", str(view.dataset.attrs.get(key)))}
        for key in ("product_years", "dates")
    )
    # For a span of dates, the first and last years are given.
    return listed or ({*range(min(named), max(named) + 1)} if named else {_YEAR})


def _labels(view: CubeView, dim: str) -> tuple[str, ...]:
    """Labels of the groups along a dimension, or that of the selected group, if any."""
    coordinate = view.field.coords.get(dim)
    if dim in view.lead or coordinate is None or coordinate.ndim:
        return view.groups.get(dim, ())
    return group_labels(coordinate.expand_dims(dim))


def _years_of_groups(view: CubeView) -> list[int]:
    """Years along a dimension ``year``, or the one selected from it; none without either.

    Raises
    ------
    ModelError
        If its labels are not years.
    """
    labels = _labels(view, "year")
    try:
        return [int(label) for label in labels]
    except ValueError:
        raise ModelError(
            f"year holds {', '.join(labels)}; expected calendar years: for dates, use "
            "ds.assign_coords(year=ds.year.dt.year)"
        ) from None


def _served(time: Temporal | None, view: CubeView, compat: bool) -> Temporal | None:
    """Year that answers a request.

    Raises
    ------
    ModelError
        If the cube does not have it, or it is not a single year.
    """
    years = {_YEAR} if compat else _years(view)
    listed = ", ".join(map(str, sorted(years)))
    if time is None:
        if compat or ("year" in view.lead and len(years) > 1):
            raise ModelError(f"the request has no time; give one of the years {listed}")
        return Temporal(year=next(iter(years))) if _years_of_groups(view) else None
    asked = time.years
    if compat and time.year is None:
        # Four frames up is the user's line.
        warnings.warn(
            f"the cube holds whole years only: {asked[0]} is used", UserWarning, stacklevel=4
        )
        asked = asked[:1]
    if missing := sorted({*asked} - years):
        raise ModelError(
            f"the cube has no {', '.join(map(str, missing))}; it holds {listed}"
            + ("" if "year" in view.lead else " (cubes made with by='year' hold several)")
        )
    if "year" in view.lead and len(asked) > 1:
        raise ModelError(
            f"{time.start} to {time.end} spans several years; ask for each of {listed}"
        )
    return time if len(asked) > 1 else Temporal(year=asked[0])


def _by_keys(time: Temporal | None) -> dict[str, Any]:
    """Time under rs-embed's keys."""
    if time is None:
        return {"mode": None}
    if time.year is None:
        return {"mode": "range", "start": time.start, "end": time.end}
    ends = {"start": f"{time.year}-01-01", "end": f"{time.year + 1}-01-01"}
    return {"mode": "year", "year": time.year, **ends}


def _group(view: CubeView, time: Temporal | None, modality: str | None) -> CubeView:
    """Select the requested year and modality."""
    ds = view.dataset
    held = _years_of_groups(view)
    if held and time is not None:
        if time.year not in held:
            raise ModelError(
                f"the cube has no {time.year}; it holds {', '.join(map(str, held))}: rs-embed "
                "knows no other year, but compat=False does"
            )
        ds = ds.isel(year=held.index(time.year), missing_dims="ignore")
    if modality is not None:
        labels = _labels(view, "modality")
        if modality not in labels:
            raise ModelError(
                f"modality={modality!r}; the cube has "
                + (", ".join(labels) or "one vector of all modalities")
            )
        ds = ds.isel(modality=labels.index(modality), missing_dims="ignore")
    return CubeView.of(ds).ungrouped()


def _region(view: CubeView, corners: Corners, output: Output) -> tuple[Any, dict[str, Any]]:
    """Answer by shares of cells, over cells with a vector."""
    import xarray as xr

    pooling: Pooling = "max" if output.pooling == "max" else "mean"
    found = box(view.dataset, *corners, pooling=pooling)
    touched = region(view.latlon, box_rings(*corners))
    inside = touched.i >= 0
    shape = tuple(len(np.unique(at[inside])) for at in (touched.i, touched.col))
    said = {
        "chw_shape": (view.field.shape[-1], *shape),
        "cells": int(found.cells),
        "cells_missing": int(found.cells_missing),
        "coverage": float(found.coverage),
    }
    if output.mode == "pooled":
        return found[view.name].values.astype(np.float32), said
    cells = box(view.dataset, *corners, pooling=None)
    field = CubeView.of(cells).masked().transpose(view.dim, view.lat, view.lon)
    data = xr.DataArray(
        field.values.astype(np.float32),
        {"d": np.arange(field.shape[0]), "y": field[view.lat].values, "x": field[view.lon].values},
        ("d", "y", "x"),
        name="embedding",
    )
    data["y"].attrs = {"standard_name": "latitude", "units": "degrees_north"}
    data["x"].attrs = {"standard_name": "longitude", "units": "degrees_east"}
    return data.assign_coords(fraction=(("y", "x"), cells.fraction.values)), said


def _window(view: CubeView, corners: Corners, output: Output) -> tuple[Any, dict[str, Any]]:
    """Answer as rs-embed does: all cells of a window weigh the same, missing ones are zeros."""
    import xarray as xr

    west, south, east, north = corners
    if east - west < grid.STEP or north - south < grid.STEP:
        raise ModelError(
            f"the box of {east - west:g}° × {north - south:g}° is smaller than a cell of 0.25°; "
            "compat=False answers with its cell"
        )
    left, right = max(west, _WEST), min(east, _EAST)
    bottom, top = max(south, _SOUTH), min(north, _NORTH)
    if right <= left or top <= bottom:
        raise ModelError(f"the box {corners} lies outside of the map")
    # The same floor, ceil and order of operations give the same result on edges of cells.
    cols = np.arange(
        max(0, min(grid.N_LON - 1, floor((left - _WEST) / grid.STEP))),
        min(grid.N_LON, ceil((right - _WEST) / grid.STEP)),
    )
    rows = np.arange(
        max(0, min(grid.N_LAT - 1, floor((_NORTH - top) / grid.STEP))),
        min(grid.N_LAT, ceil((_NORTH - bottom) / grid.STEP)),
    )
    at_row, at_col = view.positions()
    i, j = np.meshgrid(at_row[rows], at_col[grid.published_column(cols)], indexing="ij")
    inside = ((i >= 0) & (j >= 0)).ravel()
    i, j = np.where(inside, i.ravel(), -1), np.where(inside, j.ravel(), -1)
    # To rs-embed, zeros are a vector like any other, since missing ones are zeros there.
    x, there = gathered_vectors(view, i, j, zeros_allowed=True)
    x = x.astype(np.float32)
    x[~there] = 0
    # In the published file's memory order, which decides how float32 sums are rounded.
    chw = np.moveaxis(x.reshape(len(rows), len(cols), -1), -1, 0)
    said = {"chw_shape": chw.shape}
    if output.mode == "pooled":
        pool = chw.mean if output.pooling == "mean" else chw.max
        return pool(axis=(1, 2)).astype(np.float32), said
    coords = {dim: np.arange(n) for dim, n in zip("dyx", chw.shape, strict=True)}
    return xr.DataArray(chw, coords, ("d", "y", "x"), name="embedding"), said
