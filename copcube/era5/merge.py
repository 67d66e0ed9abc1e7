"""Merging embeddings with ERA5: the fields are added to the dataset, which stays unchanged.

`merge` puts the fields of a cube or a reduction on the coordinates of an ERA5 dataset, in
its order, names and turn of longitude. On the 0.25° lattice values are joined by index, on
coarser grids they are averaged by area; nothing is ever interpolated.
"""

import logging
import warnings
from collections.abc import Hashable, Iterable, Mapping
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from copcube import grid
from copcube.arguments import as_given, flag, number
from copcube.cube.caution import SPEAKING
from copcube.cube.latlon import CELL, LatLon, reach
from copcube.cube.results import as_result, described
from copcube.cube.schema import OF_CUBES_ONLY, counts_images
from copcube.cube.view import CubeView, require_dataset
from copcube.era5.conservative import Overlaps
from copcube.era5.statics import squeezed
from copcube.errors import CubeError, OptionError
from copcube.files.damage import naming_damage
from copcube.grid import Integers, lattice_index
from copcube.version import __version__

if TYPE_CHECKING:
    import xarray as xr

MASK = "embedding_mask"
"""Name of the mask that `merge` adds on request."""

_LOG = logging.getLogger(__name__)

_ROW, _COL, _ONE = "_copcube_row", "_copcube_col", "_copcube_one"
"""Names of dimensions while `merge` works, which no dataset has."""
_CRS = ("crs", "spatial_ref")
_CHUNK = 1 << 27
"""Bytes up to which a chunk of the fields may grow to match the chunks of ERA5."""
_CUBES_ONLY = (*OF_CUBES_ONLY, "Conventions")
"""Prefixes of the names of attributes that apply only to a whole cube."""


@naming_damage()
def merge(
    fields: "xr.Dataset",
    era5: "xr.Dataset",
    *,
    fill: float | None = None,
    mask: bool = False,
) -> "xr.Dataset":
    """Add the fields of a cube or a reduction to an ERA5 dataset, on its own grid.

    Parameters
    ----------
    fields : xarray.Dataset
        With ``embedding`` or ``pc`` on nodes of the 0.25° lattice, whole or in part, in any
        order, lazy or not. All its variables on latitude and longitude come along, and those
        that have neither: the basis, so that `copcube.pca.components.restore` works on the result.
    era5 : xarray.Dataset
        Any dataset on nodes of the lattice (721 or 720 rows, regions, across Greenwich or
        180°, float32 coordinates, either order of either axis, transposed), or on a coarser
        regular grid, such as 1.5° with poles or 5.625° without.
    fill : float, optional
        Value of missing cells in floating-point fields; NaN by default.
    mask : bool
        Also add ``embedding_mask``, (…, lat, lon) float32: the share of each cell's area that holds
        vectors, like ERA5's ``lsm`` for land. On the lattice 0 or 1.

    Returns
    -------
    xarray.Dataset
        A new dataset: all variables of `era5` with the fields beside them, which stay dask
        arrays if they are. Dimensions of length 1 named like times, members or versions
        become scalar coordinates; nothing else of `era5` changes. On coarser grids, fields
        are means over the filled cells by area (`copcube.era5.conservative`), counts of images
        are sums, as float64, and latitude and longitude say by ``cell_degrees`` how large the
        cells are. The attributes of `fields` follow, with the prefix ``copcube_``
        where they would speak for `era5`; ``history`` gets a line on the merge.

    Raises
    ------
    CubeError
        If `fields` is not a cube or reduction or has zeros for missing cells, `era5` is not a
        dataset, the two have no place in common, a name is in both, or a field of whole numbers
        other than counts would have to be averaged.
    GridError
        If `era5` is on a finer, Gaussian, curvilinear or irregular grid, or `fields` is not
        on the lattice.
    OptionError
        If `fill` is not a number.

    Examples
    --------
    >>> from copcube import era5
    >>> both = era5.merge(fields, era5.open_static("static.nc"))  # doctest: +SKIP
    """
    import xarray as xr

    if fill is not None:
        if isinstance(fill, bool | np.bool_):
            raise OptionError(f"fill={as_given(fill)}; expected a number, or None for NaN")
        fill = number(fill, "fill", ", or None for NaN")
    require_dataset(era5, "the ERA5 fields")
    mask = flag(mask, "mask")
    view, target = CubeView.of(fields), LatLon.of(era5)
    _refuse_merged(era5, view.name)
    # Files opened by others have the grid mapping among the data variables.
    fields = fields.set_coords([name for name in _CRS if name in fields])
    vectors = view.masked().transpose(*fields[view.name].dims)
    fields = fields.assign({view.name: vectors})

    spatial = {view.lat, view.lon}
    maps = {name: v.variable for name, v in fields.data_vars.items() if spatial <= {*v.dims}}
    for name, v in maps.items():
        # Counts that were masked, as by `where`, are floating-point numbers, NaN where none is.
        if v.dtype.kind == "f" and _counts(name, fields[name]):
            maps[name] = v.fillna(0)  # type: ignore[no-untyped-call]
            maps[name].encoding = v.encoding
    basis = {name: v.variable for name, v in fields.data_vars.items() if not spatial & {*v.dims}}
    if left_out := set(fields.data_vars) - {*maps, *basis}:
        _LOG.warning(f"left out, since they run along only one axis: {_names(left_out)}")
    if mask:
        maps[MASK] = _mask(view).variable
    placed, cells = _cells(xr.Dataset(maps), view)
    if target.on_lattice:
        placed = _by_index(placed, cells, target)
    else:
        placed = _by_area(placed, cells, target, view.dim)

    new = {name: _finished(name, v.variable, maps[name], fill) for name, v in placed.items()}
    if not target.on_lattice:
        for name, variable in new.items():
            variable.attrs[CELL] = [target.dy, target.dx]
            methods = variable.attrs.get("cell_methods")
            if methods is not None and not _counts(name, placed[name]):
                variable.attrs["cell_methods"] = f"{methods} area: mean"
        if "n_images" in new and not counts_images(fields.attrs):
            new["n_images"].attrs["long_name"] = "number of 0.25 degree cells with a vector"
    new |= {name: v.copy(deep=False) for name, v in basis.items()}
    result = squeezed(era5)
    _refuse_clashes(result, new)
    if not target.on_lattice:
        sizes = {target.lat: target.dy, target.lon: target.dx}
        result = result.assign_coords(
            {dim: result[dim].assign_attrs({CELL: size}) for dim, size in sizes.items()}
        )
    result = result.assign_coords(_further_coordinates(fields, spatial, result)).assign(new)
    how = "by lattice index" if target.on_lattice else "averaged by area"
    filling = "" if fill is None else f", missing cells set to {fill:g}"
    line = f"copcube {__version__} merge: {_names(new)} {how} on a {target}{filling}"
    result.attrs = _attributes(era5.attrs, fields.attrs, line)
    return as_result(result, _leading(result, new, target))


def _leading(
    result: "xr.Dataset", new: Mapping[Hashable, "xr.Variable"], target: LatLon
) -> str | None:
    """Return the variable whose chunks the others take, along latitude and longitude."""
    spatial = {target.lat, target.lon}
    lazy = {str(n): v for n, v in result.variables.items() if v.chunks and spatial <= {*v.dims}}
    ours = [name for name in lazy if name in new]
    theirs = [name for name in lazy if name not in new]
    # Stores list their variables in any order.
    largest = max(ours or theirs, key=lambda name: (lazy[name].size, name), default=None)
    if not (ours and theirs):
        return largest
    # Years of ERA5 in chunks of one map would be divided into millions of pieces. Reductions can
    # follow its chunks, but a chunk of whole vectors could exceed memory.
    first = max(theirs, key=lambda name: lazy[name].ndim)
    cells = prod(max(lazy[first].chunksizes[dim]) for dim in spatial)
    most = max(prod([*lazy[n].shape, lazy[n].dtype.itemsize]) for n in ours)
    most //= prod(result.sizes[dim] for dim in spatial)
    return first if cells * most <= _CHUNK else largest


def _mask(view: CubeView) -> "xr.DataArray":
    """Which cells hold a vector; lazy if finding out means reading all vectors."""
    import xarray as xr

    if view.counts is not None or not view.lazy:
        return view.filled()
    finite: xr.DataArray = xr.apply_ufunc(np.isfinite, view.field, dask="allowed")
    return finite.all(view.dim)


def _cells(maps: "xr.Dataset", view: CubeView) -> tuple["xr.Dataset", tuple[Integers, Integers]]:
    """Maps along rows and columns of the lattice, each once, and which these are."""
    # `unique` drops a repeated meridian, such as 0° and 360°, and sorts the others.
    (row, down), (col, along) = (np.unique(i, return_index=True) for i in (view.row, view.col))
    maps = maps.rename({view.lat: _ROW, view.lon: _COL})
    for dim, first in ((_ROW, down), (_COL, along)):
        if not np.array_equal(first, np.arange(maps.sizes[dim])):
            maps = maps.isel({dim: first})
    return maps, (row, col)


def _by_index(maps: "xr.Dataset", cells: tuple[Integers, Integers], target: LatLon) -> "xr.Dataset":
    """Join cells with the points of the target that have the same row and column."""
    rows, cols = lattice_index(target.y, target.x)
    if not (np.isin(rows, cells[0]).any() and np.isin(cols, cells[1]).any()):
        raise _nothing_in_common(cells, target)
    # Counts stay whole numbers: a cell outside the fields has no images rather than NaN.
    nothing: dict[Hashable, Any] = {
        name: v.dtype.type(0) for name, v in maps.items() if name == MASK or _counts(name, v)
    }
    maps = maps.assign_coords({_ROW: cells[0], _COL: cells[1]})
    # dask warns of many chunks in the mask of rows and columns, which is small.
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Increasing number of chunks")
        maps = maps.reindex({_ROW: rows, _COL: cols}, fill_value=nothing)
    maps = maps.drop_vars([_ROW, _COL])
    maps = maps.map(lambda v: v.transpose(*_order(v.dims, target)))
    return maps.rename({_ROW: target.lat, _COL: target.lon})


def _by_area(
    maps: "xr.Dataset", cells: tuple[Integers, Integers], target: LatLon, along: str
) -> "xr.Dataset":
    """Average cells over those of the target, some rows at a time so that laziness pays."""
    import xarray as xr

    overlaps = Overlaps.between(*cells, target)
    if not (overlaps.down.nnz and overlaps.along.nnz):
        raise _nothing_in_common(cells, target)
    result = {}
    for name, v in maps.items():
        # Vectors go whole into the kernels, other fields as vectors of length 1.
        last = along if along in v.dims else _ONE
        fine = v if along in v.dims else v.expand_dims({_ONE: 1})
        kernel, dtype = _kernel(name, v)
        bands = [
            xr.apply_ufunc(
                getattr(band, kernel),
                fine.isel({_ROW: rows}),
                input_core_dims=[[_ROW, _COL, last]],
                output_core_dims=[[target.lat, target.lon, last]],
                dask="parallelized",
                output_dtypes=[dtype],
                dask_gufunc_kwargs={
                    "output_sizes": {
                        target.lat: band.down.shape[0],
                        target.lon: band.along.shape[0],
                    },
                    "allow_rechunk": True,
                },
            )
            for band, rows in overlaps.bands()
        ]
        whole = xr.concat(bands, target.lat)
        whole = whole.squeeze(_ONE) if last == _ONE else whole
        names: dict[Hashable, str] = {_ROW: target.lat, _COL: target.lon}
        result[name] = whole.transpose(*(names.get(d, d) for d in _order(v.dims, target)))
    return xr.Dataset(result)


def _kernel(name: Hashable, field: "xr.DataArray") -> tuple[str, Any]:
    """Which method of `Overlaps` brings a field to coarser cells, and its dtype."""
    if name == MASK:
        return "share", np.float32
    if _counts(name, field):
        return "total", np.float64
    if field.dtype.kind != "f":
        raise CubeError(
            f"{name} holds {field.dtype} values, which have no mean over coarser cells; leave it "
            f"out: fields.drop_vars({str(name)!r})"
        )
    return "mean", field.dtype


def _counts(name: Hashable, field: "xr.DataArray") -> bool:
    """Whether a field counts images: 0 where none are, a sum over larger cells."""
    return field.dtype.kind in "iuf" and (
        str(name).startswith("n_images")
        or field.attrs.get("standard_name") == "number_of_observations"
    )


def _order(dims: Iterable[Hashable], target: LatLon) -> list[Hashable]:
    """Dimensions in their order, with row and column in that of the target."""
    spatial = iter((_COL, _ROW) if target.transposed else (_ROW, _COL))
    return [next(spatial) if dim in (_ROW, _COL) else dim for dim in dims]


def _finished(
    name: Hashable, variable: "xr.Variable", original: "xr.Variable", fill: float | None
) -> "xr.Variable":
    """Fill and describe a field."""
    if name == MASK:
        variable = variable.astype(np.float32)
        variable.attrs = {
            "long_name": "share of the cell's area that holds an embedding",
            "standard_name": "area_fraction",
            "units": "1",
        }
        return variable
    if fill is not None and variable.dtype.kind == "f" and original.dtype.kind == "f":
        variable = variable.fillna(variable.dtype.type(fill))  # type: ignore[no-untyped-call]
    variable.attrs = described(original)
    return variable


def _further_coordinates(
    fields: "xr.Dataset", spatial: set[str], era5: "xr.Dataset"
) -> dict[Hashable, Any]:
    """Coordinates of the fields that are not of latitude and longitude, unless there already.

    Raises
    ------
    CubeError
        If `era5` has another coordinate or dimension of the same name.
    """
    coords: dict[Hashable, Any] = {}
    for name, v in fields.coords.items():
        if spatial & {*v.dims} or (name in _CRS and name in era5.variables):
            continue
        # A coordinate carries the scalar ones along, which are compared by themselves.
        if name in era5.variables and not era5[name].reset_coords(drop=True).equals(
            v.reset_coords(drop=True)
        ):
            raise _clash([name])
        if name not in era5.variables:
            # Attributes are changed below, and those of the user's own dataset have to stay.
            coords[name] = v.variable.copy(deep=False)
            # The affine transform is that of the fields' own order and extent.
            if name in _CRS:
                coords[name].attrs = {k: w for k, w in v.attrs.items() if k != "GeoTransform"}
    return coords


def _refuse_merged(era5: "xr.Dataset", name: Hashable) -> None:
    if name in era5.variables:
        raise CubeError(
            f"era5 already has {name}, as after an earlier merge; drop the fields first, "
            f"era5.drop_vars([{str(name)!r}, …]), or rename them"
        )


def _refuse_clashes(era5: "xr.Dataset", new: Mapping[Hashable, "xr.Variable"]) -> None:
    """Refuse names that `era5` has too, and dimensions that are of another size there."""
    sizes = {dim: size for v in new.values() for dim, size in v.sizes.items()}
    taken = [name for name in new if name in era5.variables or name in era5.dims]
    taken += [dim for dim, size in sizes.items() if era5.sizes.get(dim, size) != size]
    if taken:
        raise _clash(taken)


def _clash(names: Iterable[Hashable]) -> CubeError:
    first = str(next(iter(names)))
    return CubeError(
        f"fields and era5 both have {_names(names)}; rename those of one of them, such as "
        f"era5.rename({{{first!r}: 'era5_{first}'}}), or drop them"
    )


def _nothing_in_common(cells: tuple[Integers, Integers], target: LatLon) -> CubeError:
    lat = 90 - grid.STEP * cells[0]
    (west, east), (first, last) = reach(grid.STEP * cells[1]), reach(target.x)
    return CubeError(
        "fields and era5 have no place in common: fields has latitudes "
        f"{lat.min():g}…{lat.max():g} and longitudes {west:g}…{east:g}, era5 "
        f"{target.y.min():g}…{target.y.max():g} and {first:g}…{last:g}"
    )


def _attributes(
    era5: Mapping[Any, Any], fields: Mapping[Any, Any], line: str
) -> dict[Hashable, Any]:
    """Attributes of `era5`, then those of the fields; a line on the merge ends the history."""
    attrs: dict[Hashable, Any] = dict(era5)
    for key, value in fields.items():
        if str(key).startswith(_CUBES_ONLY):
            continue
        # Compared as texts, since arrays compare element by element.
        speaks = key in SPEAKING or str(attrs.get(key, value)) != str(value)
        attrs[f"copcube_{key}" if speaks else key] = value
    attrs["history"] = "\n".join(filter(None, (str(era5.get("history", "")), line)))
    return attrs


def _names(names: Iterable[Hashable]) -> str:
    return ", ".join(sorted(map(str, names)))
