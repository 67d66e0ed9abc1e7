"""A view of a cube-like dataset: its vectors, its counts, and the positions of its cells.

Users pass datasets in any state: sliced, transposed, with renamed dimensions, lazy or in memory. A
dataset must have ``embedding`` (a cube) or ``pc`` (a reduction) on a latitude and a longitude,
which are recognised by their CF attributes or their names. Every public function makes one
`CubeView` of each dataset it gets, and uses only the view from then on.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from copcube import grid
from copcube.cube.latlon import LatLon, cell_size, reach, sole_positions, spatial_dims
from copcube.cube.pointwise import as_points, refuse_shared
from copcube.cube.presence import present, refuse_unusable, refuse_zeros
from copcube.cube.results import as_result, described
from copcube.cube.schema import group_labels, is_numbered
from copcube.cube.whole import at_once, opened, part_of, scheduled_here
from copcube.errors import CubeError, GridError
from copcube.files.damage import naming_damage
from copcube.grid import Integers, lattice_index

if TYPE_CHECKING:
    import xarray as xr

Part = tuple[Any, ...]
"""Positions along (…, lat, lon): one integer, slice or 1-D array for each dimension."""

LENGTHWISE = {"embedding": "dim", "pc": "component"}
"""Variables that hold vectors, and the usual name of the dimension along them."""


@dataclass(frozen=True, eq=False)
class CubeView:
    """A cube or a reduction, checked once. Make one with `CubeView.of`.

    What is costly to compute (`counts`, `row`, `col`, `groups`) is computed at first use and kept.

    Parameters
    ----------
    dataset : xarray.Dataset
        The dataset itself.
    field : xarray.DataArray
        Its vectors, (…, lat, lon, dim), with leading dimensions such as modality or season in
        front; lazy if the dataset is.

    Examples
    --------
    >>> view = CubeView.of(cube)  # doctest: +SKIP
    >>> view.field.dims, int(view.filled().sum())  # doctest: +SKIP
    (('lat', 'lon', 'dim'), 312567)
    """

    dataset: "xr.Dataset"
    field: "xr.DataArray"

    @classmethod
    def of(cls, ds: "xr.Dataset", holds: Literal["embedding", "pc"] | None = None) -> Self:
        """Find and check the vectors of a dataset.

        Parameters
        ----------
        ds : xarray.Dataset
            A cube or a reduction.
        holds : {"embedding", "pc"}, optional
            The required variable; by default ``embedding``, or else ``pc``.

        Raises
        ------
        CubeError
            If `ds` is not a dataset or lacks the variable, or if the variable lacks these
            dimensions, is empty along one of them, or does not hold floating-point numbers.
        GridError
            If a coordinate along latitude or longitude holds no numbers.
        """
        require_dataset(ds, "an embedding cube or its reduction")
        name: str | None = holds or next((name for name in LENGTHWISE if name in ds), None)
        if name is None or name not in ds:
            message, path = _not_there(ds, holds), ds.encoding.get("source")
            raise CubeError(message if path is None else f"{path}: {message}")
        lat, lon = spatial_dims(ds[name])
        others = [dim for dim in ds[name].dims if dim not in (lat, lon)]
        usual = LENGTHWISE[name]
        along = usual if usual in others else others[0] if len(others) == 1 else None
        if along is None:
            raise CubeError(
                f"{name} has the dimensions {', '.join(map(str, ds[name].dims))}; expected the "
                f"dimension along its vectors to be named {usual}; rename it"
            )
        refuse_unusable(ds[name])
        lead = [dim for dim in others if dim != along]
        return cls(ds, ds[name].transpose(*lead, lat, lon, along))

    @property
    def name(self) -> str:
        """``embedding`` or ``pc``."""
        return str(self.field.name)

    @property
    def lead(self) -> tuple[str, ...]:
        """Names of the leading dimensions."""
        return tuple(map(str, self.field.dims[:-3]))

    @property
    def lat(self) -> str:
        """Name of the dimension along latitude."""
        return str(self.field.dims[-3])

    @property
    def lon(self) -> str:
        """Name of the dimension along longitude."""
        return str(self.field.dims[-2])

    @property
    def dim(self) -> str:
        """Name of the dimension along the vectors."""
        return str(self.field.dims[-1])

    def ungrouped(self) -> Self:
        """Return the view; raise CubeError if it has leading dimensions."""
        if self.lead:
            raise CubeError(
                f"the dataset has groups along {', '.join(self.lead)}; select one of them, "
                f"{how_to_select(self.lead[0])}"
            )
        return self

    @property
    def lazy(self) -> bool:
        """Whether the vectors are a dask array."""
        return self.field.chunks is not None

    @cached_property
    def counts(self) -> "xr.DataArray | None":
        """Which cells have images, (…, lat, lon) bool in memory; None if they are not counted."""
        if self.images is None:
            return None
        with naming_damage():
            images = at_once(self.dataset["n_images"]).transpose(*self.field.dims[:-1])
            return _mask(images, images.values > 0)

    @property
    def images(self) -> "xr.DataArray | None":
        """``n_images`` with the dimensions of the field, if it has exactly those."""
        dims = self.field.dims[:-1]
        if "n_images" not in self.dataset or set(self.dataset["n_images"].dims) != set(dims):
            return None
        return self.dataset["n_images"].transpose(*dims)

    @property
    def zeros_allowed(self) -> bool:
        """Whether a vector of zeros is valid, rather than missing as in published maps."""
        return self.name != "embedding" or self.images is not None

    @cached_property
    def groups(self) -> dict[str, tuple[str, ...]]:
        """Labels along every leading dimension."""
        return {dim: group_labels(self.field[dim]) for dim in self.lead}

    @cached_property
    def _lattice(self) -> tuple[Integers, Integers]:
        if (size := self._size) is not None and max(size) > grid.STEP + grid.NEAR:
            raise GridError(
                f"{self.name} holds means over cells of {size[0]:g}° × {size[1]:g}°, as `merge` "
                "makes them; expected cells of 0.25°: give the dataset from before the merge "
                "(netCDF, Zarr and pictures of maps take cells of any size)"
            )
        return lattice_index(self.field[self.lat].values, self.field[self.lon].values)

    @property
    def row(self) -> Integers:
        """Row on the lattice by latitude; GridError if the cells are not the lattice's."""
        return self._lattice[0]

    @property
    def col(self) -> Integers:
        """Column on the lattice by longitude; GridError if the cells are not the lattice's."""
        return self._lattice[1]

    @cached_property
    def latlon(self) -> LatLon:
        """The grid of the cells: the lattice, or a coarser grid that `merge` averaged onto."""
        if self._size is None:
            return LatLon.of(self.dataset[[self.name]])
        y, x = (np.asarray(self.field[d].values, np.float64) for d in (self.lat, self.lon))
        return LatLon.of_size(self.lat, self.lon, y, x, self._size)

    @cached_property
    def _size(self) -> tuple[float, float] | None:
        return cell_size(self.dataset, self.name, self.lat, self.lon)

    def positions(self) -> tuple[Integers, Integers]:
        """Find the rows and columns of the lattice in this dataset.

        Returns
        -------
        rows, cols : numpy.ndarray
            (721,) and (1440,) int64 positions along `lat` and `lon`; -1 where outside.

        Raises
        ------
        GridError
            If the cells are not those of the lattice, or one occurs twice.
        """
        rows = sole_positions(self.row, grid.N_LAT, self.lat)
        return rows, sole_positions(self.col, grid.N_LON, self.lon)

    def blocks(self) -> Iterator[Part]:
        """Yield parts of the dataset, each in one block of the lattice, that have images.

        They come group by group and row by row of blocks, so that sums over them do not depend on
        the dataset's chunks. A dataset off the lattice is divided by the cells that hold its
        points.
        """
        # `cell_at` rather than `row`: a coarser grid, off the lattice, has blocks too.
        row = grid.cell_at(self.field[self.lat].values, 0)[0]
        col = grid.cell_at(0, self.field[self.lon].values)[1]
        for lead in np.ndindex(self.field.shape[:-3]):
            for rows in _runs(row // grid.BLOCK):
                for cols in _runs(col // grid.BLOCK):
                    part = (*lead, rows, cols)
                    if self.counts is None or self.counts.variable[part].values.any():
                        yield part

    def read(self, part: Part) -> tuple[NDArray[np.bool_], NDArray[Any]]:
        """Read a part of the vectors.

        Parameters
        ----------
        part : tuple
            One integer, slice or 1-D array of positions for each of (…, lat, lon); integers
            drop their dimension, arrays select along theirs alone.

        Returns
        -------
        filled : numpy.ndarray
            (cells…) bool: which cells hold a vector: they have images, if these are counted,
            and all values are finite.
        vectors : numpy.ndarray
            (cells…, dim) of all cells, in the dtype of the field. If no cell has images, the
            vectors are not read, and all are NaN.

        Raises
        ------
        CubeError
            If images are not counted and a vector of a cube is all zeros, or a chunk is damaged.
        """
        counted = None if self.counts is None else self.counts.variable[part].values
        if counted is not None and not counted.any():
            shape = (*counted.shape, self.field.shape[-1])
            # No vector here is used, so one number stands for all of them.
            return counted, np.broadcast_to(np.array(np.nan, self.field.dtype), shape)
        with naming_damage():
            values = self._values(part)
        filled = present(values, zeros_allowed=self.zeros_allowed)
        # Vectors may be missing where images are counted, if a user masked them.
        return (filled if counted is None else np.asarray(filled & counted)), values

    def _values(self, part: Part) -> NDArray[Any]:
        """All vectors of a part; if possible without dask, which needs a task per chunk."""
        if self._source is None or not all(isinstance(k, int | slice) for k in part):
            return part_of(self.field, part)
        return np.asarray(self._source[part])

    @cached_property
    def _source(self) -> Any:
        # Workers, if any, read in parallel, and may have the only fast access to the file.
        return opened(self.field) if self.lazy and scheduled_here(self.field) else None

    def filled(self) -> "xr.DataArray":
        """Which cells hold a vector: those with images or, without counts, a finite vector.

        Returns
        -------
        xarray.DataArray
            (…, lat, lon) bool, in memory. Without counts all vectors are read, in bounded
            memory, and one with a value that is not finite is missing.

        Raises
        ------
        CubeError
            If the dataset has neither counts nor NaN for missing cells but vectors of zeros, as
            published maps do.
        """
        if self.counts is not None:
            return self.counts
        mask = np.zeros(self.field.shape[:-1], bool)
        for lead in np.ndindex(mask.shape[:-2]):
            for start in range(0, mask.shape[-2], grid.BLOCK):
                part = (*lead, slice(start, start + grid.BLOCK), slice(None))
                mask[part], _ = self.read(part)
        return _mask(self.field.isel({self.dim: 0}, drop=True), mask)

    def masked(self) -> "xr.DataArray":
        """Return the vectors, with NaN where counts say that there are none.

        Returns
        -------
        xarray.DataArray
            Like `field`, lazy if it is. Without counts a cube's vectors are checked when they
            are computed, and computing raises CubeError if one is all zeros.
        """
        return self._marked(self.field, self.counts)

    def _marked(self, field: "xr.DataArray", counted: "xr.DataArray | None") -> "xr.DataArray":
        """Vectors of some cells, with NaN where `counted` says that there are none."""
        import xarray as xr

        if counted is not None:
            marked = field.where(counted)
        elif self.zeros_allowed:
            return field
        else:
            marked = xr.apply_ufunc(
                refuse_zeros,
                field,
                input_core_dims=[[self.dim]],
                output_core_dims=[[self.dim]],
                dask="parallelized",
                output_dtypes=[field.dtype],
                dask_gufunc_kwargs={"allow_rechunk": True},
                keep_attrs=True,
            ).transpose(*field.dims)
        return marked.drop_encoding().assign_attrs(described(field))

    def select(self, where: "dict[str, Any]") -> "xr.Dataset":
        """Select cells by their positions, with NaN for vectors where no image is counted.

        Parameters
        ----------
        where : dict
            Positions along latitude and longitude, as `xarray.Dataset.isel` takes them.

        Returns
        -------
        xarray.Dataset
            All variables of the cells, lazy if they were; vectors as those of `masked`.
        """
        return self._counted(self.dataset.isel(where))

    def _counted(self, cells: "xr.Dataset") -> "xr.Dataset":
        counted = None if self.images is None else cells["n_images"] > 0
        return cells.assign({self.name: self._marked(cells[self.name], counted)})

    def at(self, lat: "ArrayLike | xr.DataArray", lon: "ArrayLike | xr.DataArray") -> "xr.Dataset":
        """Select the cells that hold points: of one point, or of many at once.

        Parameters
        ----------
        lat, lon : float, array_like or xarray.DataArray
            Degrees north and east; -180…180 and 0…360 mean the same places. For many points both
            are one-dimensional with the same length, or DataArrays along the same dimensions.

        Returns
        -------
        xarray.Dataset
            All variables of the cells, lazy if they were, with their centres as coordinates; for a
            single point the vector is in memory, since it was read to check that there is one.
            Leading dimensions stay, with NaN where a group has no vector. Many points lie along
            ``point``, or along the dimensions of the DataArrays, whose coordinates stay. Those in
            cells without a vector have NaN; only the cells themselves are read.

        Raises
        ------
        GridError
            If a cell lies outside the dataset, or a point is not on the globe.
        CubeError
            If the cell of a single point holds no vector in any group.
        OptionError
            If the two differ in length or dimensions, or are not numbers.

        Examples
        --------
        >>> CubeView.of(cube).at(48.1, 11.6).embedding.values  # doctest: +SKIP
        >>> CubeView.of(cube).at([48.1, 52.5], [11.6, 13.4]).embedding.dims  # doctest: +SKIP
        ('point', 'dim')
        """
        y, x = as_points(lat, lon)
        return self._at_one(float(y), float(x)) if y.ndim == 0 else self._at_many(y, x)

    def _at_many(self, lat: "xr.DataArray", lon: "xr.DataArray") -> "xr.Dataset":
        import xarray as xr

        refuse_shared(lat, self)
        i, j = self.latlon.cells_at(lat.values, lon.values)
        if (outside := (i < 0) | (j < 0)).any():
            y, x = lat.values[outside][0], lon.values[outside][0]
            raise GridError(
                f"{int(outside.sum()):,} of {outside.size:,} points lie outside this dataset, the "
                f"first at lat {y:g}, lon {x:g}; it has {self.extent()}: leave such points out"
            )
        where = {self.lat: xr.DataArray(i, dims=lat.dims), self.lon: xr.DataArray(j, dims=lat.dims)}
        # Bounds and the like are small, and dask would make a task for every point and chunk.
        along_one = [n for n, v in self.dataset.variables.items() if len({*v.dims} & {*where}) == 1]
        small = {name: self.dataset[name].variable.compute() for name in along_one}
        cells = replace(self, dataset=self.dataset.assign(small)).select(where)
        # For example the name of a station; latitude and longitude are those of the cells. As
        # variables: a coordinate brings others along, such as the station's position.
        named = {k: c.variable for k, c in lat.coords.items() if k not in self.dataset.variables}
        return as_result(cells.assign_coords(named), self.name)

    def extent(self) -> str:
        """Describe the extent of the dataset."""
        y, (west, east) = self.field[self.lat].values, reach(self.field[self.lon].values)
        return f"{self.lat} {y.min():g} to {y.max():g} and {self.lon} {west:g} to {east:g}"

    def _at_one(self, lat: float, lon: float) -> "xr.Dataset":
        i, j = (int(position) for position in self.latlon.cells_at(lat, lon))
        if i < 0 or j < 0:
            raise GridError(
                f"lat {lat:g}, lon {lon:g} lies in a cell that this dataset does not reach; it has "
                f"{self.extent()}"
            )
        cells = self.dataset.isel({self.lat: i, self.lon: j})
        # Only the counts of this cell are read, unlike `self.counts`.
        why = "no image is there (open ocean and the poles have none)"
        there = counted = np.array(True)
        with naming_damage():
            if self.images is not None:
                cells["n_images"] = count = cells["n_images"].compute()
                there = counted = np.asarray(count.transpose(*self.lead).values > 0)
                why = (
                    "its images are counted, but its vector is not finite" if counted.any() else why
                )
            if counted.any():
                cells[self.name] = vector = cells[self.name].compute()
                values = vector.transpose(*self.lead, self.dim).values
                there = counted & present(values, zeros_allowed=self.zeros_allowed)
        if not there.any():
            y, x = (float(self.field[d].values[n]) for d, n in ((self.lat, i), (self.lon, j)))
            raise CubeError(
                f"lat {lat:g}, lon {lon:g} lies in the cell at lat {y:.2f}, lon "
                f"{(x + 180) % 360 - 180:.2f}, which holds no vector: {why}"
            )
        return as_result(self._counted(cells), self.name)


def how_to_select(dim: str) -> str:
    """Describe for messages how to select one of the groups along a dimension."""
    return f"such as ds.isel({dim}=0), or with --group on the command line"


def require_dataset(ds: object, what: str) -> None:
    """Check that an object is a dataset, not a path or a single array.

    Raises
    ------
    CubeError
        If it is not.
    """
    import xarray as xr

    if not isinstance(ds, xr.Dataset):
        raise CubeError(
            f"expected {what} as an xarray.Dataset, found {type(ds).__name__}; open a file with "
            "xarray.open_zarr or xarray.open_dataset, or convert an array with .to_dataset()"
        )


def _not_there(ds: "xr.Dataset", holds: str | None) -> str:
    """Message for a dataset that lacks the variable with the vectors."""
    if holds == "embedding" and "pc" in ds:
        return (
            "expected a cube with a variable embedding, found a reduction of one; give the cube, "
            "or select components of the reduction, ds.isel(component=slice(k))"
        )
    if holds == "pc" and "embedding" in ds:
        return "expected a reduction with a variable pc, found a cube; use ds.copembed.reduce(k)"
    wanted = {
        None: "an embedding cube with a variable embedding, or its reduction with pc",
        "embedding": "an embedding cube with a variable embedding",
        "pc": "a reduction with a variable pc",
    }[holds]
    found = f"expected {wanted}; found {', '.join(map(str, ds.data_vars)) or 'no variables'}"
    if any(map(is_numbered, ds.data_vars)):
        found += (
            "; open netCDF with one variable per component by xarray.open_dataset(path, "
            "engine='copembed')"
        )
    return found


def _mask(like: "xr.DataArray", values: NDArray[np.bool_]) -> "xr.DataArray":
    mask = like.copy(data=values).rename("filled")
    mask.attrs = {"long_name": "whether the cell holds a vector"}
    return mask.drop_encoding()


def _runs(index: NDArray[np.int64]) -> list[slice]:
    """Slices of equal neighbours."""
    cuts = [0, *(np.flatnonzero(np.diff(index)) + 1).tolist(), len(index)]
    return [slice(a, b) for a, b in pairwise(cuts)]
