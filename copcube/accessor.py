"""``ds.copembed``: the functions of copcube as methods of xarray's datasets.

The accessor is a façade: it holds its dataset and nothing else, changes nothing, caches
nothing, and every method is one call of a plain function. ``import copcube`` registers it.
Opening a file with the engine ``copembed`` imports copcube too, so that
``xr.open_dataset(path, engine="copembed").copembed`` needs no import of its own.
"""

from typing import TYPE_CHECKING, Any

import xarray as xr

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from matplotlib.axes import Axes
    from numpy.typing import ArrayLike

    from copcube.cube.compare import Comparison
    from copcube.interchange import Exported
    from copcube.models import Written
    from copcube.pca.weighting import Weights
    from copcube.probes.bench import Benched


# Registered by `import copcube`: what its methods call is imported when they are called.
@xr.register_dataarray_accessor("copembed")  # type: ignore[no-untyped-call]
@xr.register_dataset_accessor("copembed")  # type: ignore[no-untyped-call]
class Copembed:
    """Methods of embedding cubes and their reductions; displays them as a card.

    Parameters
    ----------
    obj : xarray.Dataset or xarray.DataArray
        Anything with ``embedding`` (…, lat, lon, dim) or ``pc`` (…, lat, lon, component), or
        one of the two itself. Anything else is refused when a method is used.
    """

    def __init__(self, obj: xr.Dataset | xr.DataArray) -> None:
        self._obj = obj

    @property
    def _ds(self) -> xr.Dataset:
        return _dataset(self._obj)

    def __repr__(self) -> str:
        from copcube.cube.card import card

        return card(self._ds).text()

    def _repr_html_(self) -> str:
        from copcube.cube.card import card

        return card(self._ds).html()

    @property
    def coverage(self) -> float:
        """Share of the globe's area under cells with a vector; `copcube.cube.card.coverage`."""
        from copcube.cube.card import coverage

        return coverage(self._ds)

    @property
    def plot(self) -> "Plots":
        """Maps: ``plot.rgb()``, ``plot.component(0)``, ``plot.counts()`` and the like."""
        return Plots(self._ds)

    def filled(self) -> xr.DataArray:
        """Which cells hold a vector, (…, lat, lon) bool; `copcube.cube.view.CubeView.filled`."""
        from copcube.cube.view import CubeView

        return CubeView.of(self._ds).filled()

    def at(self, lat: "ArrayLike | xr.DataArray", lon: "ArrayLike | xr.DataArray") -> xr.Dataset:
        """Select the cells that hold points; `copcube.cube.view.CubeView.at`."""
        from copcube.cube.view import CubeView

        return CubeView.of(self._ds).at(lat, lon)

    def points(self, table: Any, **options: Any) -> xr.Dataset:
        """Vectors at the points of a table, each with a status; `copcube.lookup.points.points`."""
        from copcube.lookup import points

        return points(self._ds, table, **options)

    def box(
        self, west: float, south: float, east: float, north: float, **options: Any
    ) -> xr.Dataset:
        """Pool the vectors of a box, or return its cells; `copcube.lookup.boxes.box`."""
        from copcube.lookup import box

        return box(self._ds, west, south, east, north, **options)

    def polygon(self, geometry: Any, **options: Any) -> xr.Dataset:
        """Pool the vectors of a polygon, or return its cells; `copcube.lookup.boxes.polygon`."""
        from copcube.lookup import polygon

        return polygon(self._ds, geometry, **options)

    def reduce(
        self,
        k: int | float = 16,
        *,
        weights: "Weights | xr.DataArray" = "area",
        whiten: bool = False,
        given: xr.Dataset | xr.DataArray | None = None,
        degree: int = 1,
    ) -> xr.Dataset:
        """Principal components of the cells, with their basis; `copcube.pca.components.reduce`."""
        from copcube.pca.components import reduce

        return reduce(self._ds, k, weights=weights, whiten=whiten, given=given, degree=degree)

    def fit(
        self,
        k: int | float = 16,
        *,
        weights: "Weights | xr.DataArray" = "area",
        whiten: bool = False,
        given: xr.Dataset | xr.DataArray | None = None,
        degree: int = 1,
    ) -> xr.Dataset:
        """The basis alone, for `project`; `copcube.pca.components.fit`."""
        from copcube.pca.components import fit

        return fit(self._ds, k, weights=weights, whiten=whiten, given=given, degree=degree)

    def project(
        self, basis: xr.Dataset, *, given: xr.Dataset | xr.DataArray | None = None
    ) -> xr.Dataset:
        """Components of this cube on the basis of another one; `copcube.pca.components.project`."""
        from copcube.pca.components import project

        return project(self._ds, basis, given=given)

    def restore(self) -> xr.Dataset:
        """Embeddings from a reduction; `copcube.pca.components.restore`."""
        from copcube.pca.components import restore

        return restore(self._ds)

    def explain(self, statics: xr.Dataset | xr.DataArray, **options: Any) -> xr.Dataset:
        """R² between static fields and components; `copcube.pca.explain.explain`."""
        from copcube.pca.explain import explain

        return explain(self._ds, statics, **options)

    def merge(
        self, era5: xr.Dataset, *, fill: float | None = None, mask: bool = False
    ) -> xr.Dataset:
        """Join with ERA5 fields, on their coordinates; `copcube.era5.merge.merge`."""
        from copcube.era5.merge import merge

        return merge(self._ds, era5, fill=fill, mask=mask)

    def similar(
        self, lat: float | None = None, lon: float | None = None, **options: Any
    ) -> xr.Dataset:
        """Places most similar to one, or to a vector; `copcube.lookup.similar.similar`."""
        from copcube.lookup import similar

        return similar(self._ds, lat, lon, **options)

    def cluster(self, n: int, **options: Any) -> xr.Dataset:
        """Classes of similar places; `copcube.lookup.clusters.cluster`."""
        from copcube.lookup import cluster

        return cluster(self._ds, n, **options)

    def probe(self, statistics: "xr.Dataset | Sequence[xr.Dataset]", **options: Any) -> xr.Dataset:
        """Predict climate from vectors and from coordinates; `copcube.probes.climate.probe`."""
        from copcube.probes import probe

        return probe(self._ds, statistics, **options)

    def bench(self, root: "str | Path", **options: Any) -> "Benched":
        """Predict labels of whole cells from the vectors; `copcube.probes.bench.bench_cells`."""
        from copcube.probes.bench import bench_cells

        return bench_cells(self._ds, root, **options)

    def change(self, other: xr.Dataset, **options: Any) -> xr.Dataset:
        """Distance of another cube's vectors from these; `copcube.lookup.change.change`."""
        from copcube.lookup import change

        return change(self._ds, _dataset(other), **options)

    def compare(self, other: xr.Dataset) -> "Comparison":
        """Agreement with another cube; `copcube.cube.compare.compare`."""
        from copcube.cube.compare import compare

        return compare(self._ds, _dataset(other))

    def to_npz(self, path: "str | Path", **options: Any) -> "Exported":
        """Write the published ``.npz``; `copcube.interchange.to_npz`."""
        from copcube.interchange import to_npz

        return to_npz(self._ds, path, **options)

    def to_npy(self, path: "str | Path", **options: Any) -> "Exported":
        """Write a bare array, as weather models read it; `copcube.interchange.to_npy`."""
        from copcube.interchange import to_npy

        return to_npy(self._ds, path, **options)

    def to_pt(self, path: "str | Path", **options: Any) -> "Exported":
        """Write the published ``.pt``; `copcube.interchange.to_pt`."""
        from copcube.interchange import to_pt

        return to_pt(self._ds, path, **options)

    def to_geotiff(self, path: "str | Path", **options: Any) -> "Exported":
        """Write a GeoTIFF as published; `copcube.interchange.to_geotiff`."""
        from copcube.interchange import to_geotiff

        return to_geotiff(self._ds, path, **options)

    def to_netcdf(self, path: "str | Path", **options: Any) -> "Exported":
        """Write CF netCDF; `copcube.interchange.to_netcdf`."""
        from copcube.interchange import to_netcdf

        return to_netcdf(self._ds, path, **options)

    def to_parquet(self, path: "str | Path", **options: Any) -> "Exported":
        """Write averages as published, one row per cell; `copcube.interchange.to_parquet`."""
        from copcube.interchange import to_parquet

        return to_parquet(self._ds, path, **options)

    def to_model(self, path: "str | Path", model: str, k: int = 8, **options: Any) -> "Written":
        """Write static fields as a weather model reads them; `copcube.models.write.write`."""
        from copcube.models import write

        return write(self._ds, path, model, k, **options)


class Plots:
    """Maps of a cube or a reduction; those of `copcube.plot.maps` return matplotlib's axes.

    Parameters
    ----------
    ds : xarray.Dataset
        A cube or a reduction.
    """

    def __init__(self, ds: xr.Dataset) -> None:
        self._ds = ds

    def __call__(self, **options: Any) -> "Axes":
        """Draw what `copcube map` draws by default: `rgb`."""
        return self.rgb(**options)

    def rgb(self, components: tuple[int, int, int] = (0, 1, 2), **options: Any) -> "Axes":
        """Three components as red, green and blue; `copcube.plot.maps.rgb`."""
        from copcube.plot import rgb

        return rgb(self._ds, components, **options)

    def component(self, i: int = 0, **options: Any) -> "Axes":
        """One component; `copcube.plot.maps.component`."""
        from copcube.plot import component

        return component(self._ds, i, **options)

    def counts(self, **options: Any) -> "Axes":
        """How many images each cell has; `copcube.plot.maps.counts`."""
        from copcube.plot import counts

        return counts(self._ds, **options)

    def spread(self, **options: Any) -> "Axes":
        """How much the images of a cell disagree; `copcube.plot.maps.spread`."""
        from copcube.plot import spread

        return spread(self._ds, **options)

    def coverage(self, **options: Any) -> "Axes":
        """Which cells hold a vector; `copcube.plot.maps.coverage`."""
        from copcube.plot import coverage

        return coverage(self._ds, **options)

    def similar(self, lat: float, lon: float, **options: Any) -> "Axes":
        """Similarity of every place to one; `copcube.plot.maps.similar`."""
        from copcube.plot import similar

        return similar(self._ds, lat, lon, **options)

    def page(self, path: "str | Path", **options: Any) -> "Exported":
        """Write a map that opens in a browser, offline; `copcube.plot.web.page`."""
        from copcube.plot import page

        return page(self._ds, path, **options)

    def explain(
        self,
        statics: xr.Dataset | xr.DataArray,
        *,
        ax: "Axes | None" = None,
        **options: Any,
    ) -> "Axes":
        """R² between static fields and components; `copcube.plot.explained`."""
        from copcube.pca.explain import explain
        from copcube.plot import explained

        return explained(explain(self._ds, statics, **options), ax=ax)

    def change(self, other: xr.Dataset, **options: Any) -> "Axes":
        """Distance of another cube's vectors from these; `copcube.plot.maps.change`."""
        from copcube.plot import change

        return change(self._ds, _dataset(other), **options)


def _dataset(obj: xr.Dataset | xr.DataArray) -> xr.Dataset:
    """Wrap a bare ``embedding`` or ``pc`` in a dataset; a dataset is taken as it is."""
    if isinstance(obj, xr.DataArray):
        return obj.to_dataset(name="pc" if "component" in obj.dims else "embedding")
    return obj
