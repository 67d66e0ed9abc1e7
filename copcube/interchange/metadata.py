"""Metadata of a map of bare numbers, as a JSON text beside it.

The published formats hold one array. Our exports carry more: whether it is a cube or a reduction,
attributes, the basis of a reduction. These metadata are a key of the npz, a member of the ``.pt``,
a tag of the GeoTIFF or metadata of the parquet file, where readers of the published formats ignore
them. A file without them is a published map.
"""

import json
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from copcube.cube.caution import of_vectors
from copcube.cube.results import known_to_json
from copcube.cube.schema import OF_CUBES_ONLY
from copcube.cube.view import LENGTHWISE, CubeView
from copcube.errors import CubeError
from copcube.files import limits
from copcube.files.limits import load_json

KEY = "copcube"
ORDERS = ("published", "era5")


@dataclass(frozen=True)
class MapMetadata:
    """Metadata of a map in a file.

    Parameters
    ----------
    variable : {"embedding", "pc"}
        Name of the variable.
    order : {"published", "era5"}
        Whether columns start at 180°W or at 0°E.
    attrs, variable_attrs : dict
        Attributes of dataset and variable.
    others : dict
        Variables that are not on the map, such as the basis of a reduction: ``{"dims", "dtype",
        "data", "attrs", "coordinate"}`` by name.
    """

    variable: str = "embedding"
    order: str = "published"
    attrs: dict[str, Any] = field(default_factory=dict)
    variable_attrs: dict[str, Any] = field(default_factory=dict)
    others: dict[str, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def of(cls, view: CubeView, order: str) -> "MapMetadata":
        """Describe a cube or a reduction written in an order of columns."""
        ds, lat, lon, along = view.dataset, view.lat, view.lon, view.dim
        bases = [v for v in ds.data_vars.values() if not {lat, lon} & set(v.dims)]
        dims = {along}.union(*(v.dims for v in bases))
        others = {
            str(key): {
                "dims": [LENGTHWISE[view.name] if dim == along else str(dim) for dim in value.dims],
                "dtype": value.dtype.name,
                "data": value.values.tolist(),
                "attrs": _plain(value.attrs),
                "coordinate": key in ds.coords,
            }
            for key, value in ds.variables.items()
            # The reference system is the same for all maps; readers add it.
            if set(value.dims) <= dims and value.dtype.kind in "biuf" and key != "crs"
        }
        attrs = _of_maps(_plain(of_vectors(ds.attrs)))
        own = {k: v for k, v in _plain(view.field.attrs).items() if k != "ancillary_variables"}
        return cls(view.name, order, attrs, own, others)

    def dumps(self) -> str:
        """Write the metadata as JSON; the same metadata give the same text."""
        return json.dumps(self.__dict__, sort_keys=True, default=known_to_json)

    @classmethod
    def loads(cls, text: str | None, path: str) -> "MapMetadata":
        """Read a text from `dumps`; None means the published map.

        Raises
        ------
        CubeError
            If it is not such a text.
        """
        if text is None:
            return cls()
        try:
            what = f"{path}: its description under {KEY!r}"
            metadata = cls(
                **load_json(text.encode("utf-8", "replace"), limits.PIECE, what, CubeError)
            )
            metadata._check()
            metadata = replace(metadata, attrs=_of_maps(metadata.attrs))
        except CubeError:
            raise
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise CubeError(
                f"{path}: its description under {KEY!r} is broken ({error}); export it again"
            ) from error
        return metadata

    def _check(self) -> None:
        if self.variable not in LENGTHWISE or self.order not in ORDERS:
            raise ValueError(f"variable {self.variable!r} in order {self.order!r}")
        if not all(isinstance(a, dict) for a in (self.attrs, self.variable_attrs, self.others)):
            raise TypeError("attributes are not mappings")
        # The text may come from anywhere: only what the schema expects is used.
        for name, entry in self.others.items():
            if name in ("lat", "lon", self.variable) or {"lat", "lon"} & set(entry["dims"]):
                raise ValueError(f"a variable {name!r} along {entry['dims']!r}")
            if np.dtype(entry["dtype"]).kind not in "biuf" or not isinstance(entry["attrs"], dict):
                raise ValueError(f"a variable of {entry['dtype']!r}")
            if np.ndim(np.asarray(entry["data"], entry["dtype"])) != len(entry["dims"]):
                raise ValueError(f"a variable along {entry['dims']!r}")


def _of_maps(attrs: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in attrs.items() if not key.startswith(OF_CUBES_ONLY)}


def _plain(attrs: Any) -> dict[str, Any]:
    """Attributes with NumPy values turned into Python's."""
    return {
        str(key): value.tolist() if isinstance(value, np.ndarray | np.generic) else value
        for key, value in attrs.items()
    }
