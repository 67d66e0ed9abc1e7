"""``ds.copembed``: the functions of copcube as methods of xarray's datasets.

A façade: an accessor holds its dataset and nothing else, changes nothing, keeps nothing, and
every method is one call of a plain function. `register` is called by ``import copcube`` and
costs nothing: xarray itself is never imported for it. If it is there already, the accessor
is registered at once, else as soon as somebody imports it. Opening a file with our engine
imports copcube too, so ``xr.open_dataset(path, engine="copembed").copembed`` needs no import.
"""

import sys
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    import xarray as xr

    from copcube.compare import Comparison
    from copcube.interchange import Exported
    from copcube.pca import Weights

NAME = "copembed"


class Copembed:
    """Methods of embedding cubes and their reductions; shows itself as a card.

    Parameters
    ----------
    obj : xarray.Dataset or xarray.DataArray
        Anything with ``embedding`` (…, lat, lon, dim) or ``pc`` (…, lat, lon, component), or
        one of the two itself. That it is none is said when a method is used.
    """

    def __init__(self, obj: "xr.Dataset | xr.DataArray") -> None:
        self._obj = obj

    @property
    def _ds(self) -> "xr.Dataset":
        return _dataset(self._obj)

    def __repr__(self) -> str:
        from copcube.card import card

        return card(self._ds).text()

    def _repr_html_(self) -> str:
        from copcube.card import card

        return card(self._ds).html()

    @property
    def coverage(self) -> float:
        """Share of the globe's area under cells with a vector; `copcube.card.coverage`."""
        from copcube.card import coverage

        return coverage(self._ds)

    def filled(self) -> "xr.DataArray":
        """Which cells hold a vector, (…, lat, lon) bool; `copcube.mask.filled`."""
        from copcube.mask import filled

        return filled(self._ds)

    def at(self, lat: float, lon: float) -> "xr.Dataset":
        """Select the cell that holds a point, longitude of any turn; `copcube.query.at`."""
        from copcube.query import at

        return at(self._ds, lat, lon)

    def reduce(
        self,
        k: int | float = 16,
        *,
        weights: "Weights | xr.DataArray" = "area",
        whiten: bool = False,
    ) -> "xr.Dataset":
        """Principal components of the cells, with their basis; `copcube.pca.reduce`."""
        from copcube.pca import reduce

        return reduce(self._ds, k, weights=weights, whiten=whiten)

    def fit(
        self,
        k: int | float = 16,
        *,
        weights: "Weights | xr.DataArray" = "area",
        whiten: bool = False,
    ) -> "xr.Dataset":
        """The basis alone, for `project`; `copcube.pca.fit`."""
        from copcube.pca import fit

        return fit(self._ds, k, weights=weights, whiten=whiten)

    def project(self, basis: "xr.Dataset") -> "xr.Dataset":
        """Components of this cube on the basis of another one; `copcube.pca.project`."""
        from copcube.pca import project

        return project(self._ds, basis)

    def restore(self) -> "xr.Dataset":
        """Embeddings from a reduction; `copcube.pca.restore`."""
        from copcube.pca import restore

        return restore(self._ds)

    def merge(
        self, era5: "xr.Dataset", *, fill: float | None = None, mask: bool = False
    ) -> "xr.Dataset":
        """Join with ERA5 fields, on their coordinates; `copcube.era5.merge`."""
        from copcube.era5 import merge

        return merge(self._ds, era5, fill=fill, mask=mask)

    def compare(self, other: "xr.Dataset") -> "Comparison":
        """Agreement with another cube; `copcube.compare.compare`."""
        from copcube.compare import compare

        return compare(self._ds, _dataset(other))

    def to_npz(self, path: "str | Path", **options: Any) -> "Exported":
        """Write the published ``.npz``; `copcube.interchange.to_npz`."""
        from copcube.interchange import to_npz

        return to_npz(self._ds, path, **options)

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
        """Write averages as published, one row a cell; `copcube.interchange.to_parquet`."""
        from copcube.interchange import to_parquet

        return to_parquet(self._ds, path, **options)


def _dataset(obj: "xr.Dataset | xr.DataArray") -> "xr.Dataset":
    """Wrap a bare ``embedding`` or ``pc`` in a dataset; a dataset is taken as it is."""
    import xarray as xr

    if isinstance(obj, xr.DataArray):
        return obj.to_dataset(name="pc" if "component" in obj.dims else "embedding")
    return obj


def register() -> None:
    """Give xarray's datasets and arrays the accessor, now or once xarray is imported."""
    if "xarray" in sys.modules:
        _register()
    else:
        sys.meta_path.insert(0, _OnImport())


def _register() -> None:
    import xarray as xr

    if getattr(xr.Dataset, NAME, None) is not Copembed:
        xr.register_dataset_accessor(NAME)(Copembed)  # type: ignore[no-untyped-call]
        xr.register_dataarray_accessor(NAME)(Copembed)  # type: ignore[no-untyped-call]


class _OnImport:
    """Finder that steps in front of Python's own for xarray alone, and once."""

    def find_spec(
        self, name: str, path: object = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Find xarray as Python does, but register the accessor after it has been executed."""
        if name != "xarray":
            return None
        sys.meta_path.remove(self)
        spec = find_spec(name)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_and_register(module: ModuleType) -> None:
                execute(module)
                _register()

            spec.loader.exec_module = execute_and_register  # type: ignore[method-assign]
        return spec
