"""Standardised channels on the places of a model: the lattice, a Gaussian grid, or points.

A component is standardised on the places that hold a vector, weighted by area, and missing places
are 0 afterwards. So they have the mean, and coasts have no step that only shows where images end; a
further channel, the mask, shows that.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from copcube import grid
from copcube.arguments import one_of
from copcube.cube.latlon import LatLon
from copcube.era5.conservative import Overlaps
from copcube.errors import CubeError
from copcube.grid import Floats
from copcube.models.components import PREFIX, Components

MASK = f"{PREFIX}_mask"
"""Name of the channel that says where there are vectors."""

Maps = Mapping[str, NDArray[np.float32]]

GAUSSIAN = {"TL31": 32, "TL47": 48, "TL63": 64, "TL95": 96, "TL127": 128, "TL255": 256}
"""Gaussian grids by their truncation, and how many latitudes they have; with the poles' caps no
wider than a cell, so that none of their cells is smaller than one of the lattice."""


@dataclass(frozen=True, eq=False)
class Fields:
    """What a file holds.

    Parameters
    ----------
    names : tuple of str
        Of the standardised components.
    values : numpy.ndarray
        (k, …) float32, standardised, 0 where missing; along latitude and longitude, or points.
    mask : numpy.ndarray
        (…) float32: the share of the place that holds vectors, 0 or 1 on the lattice.
    lat, lon : numpy.ndarray
        Degrees north and east: of the rows and of the columns, or of each point.
    mean, std : numpy.ndarray
        (k,) float64: what was subtracted of a component, and then divided by.
    attrs : dict
        Attributes of the cube and its fingerprint.
    statics : mapping
        A model's own fields by name, (…) float32 in their own units.
    dims : tuple of str
        Names of the dimensions of the places, those of points as they came.
    coords : mapping
        Coordinates of points beside latitude and longitude: name to xarray.Variable.
    weights : str
        By what the places were weighted, as files say it.
    """

    names: tuple[str, ...]
    values: NDArray[np.float32]
    mask: NDArray[np.float32]
    lat: Floats
    lon: Floats
    mean: Floats
    std: Floats
    attrs: dict[str, Any]
    statics: Maps = field(default_factory=dict)
    dims: tuple[str, ...] = ("latitude", "longitude")
    coords: Mapping[str, Any] = field(default_factory=dict)
    weights: str = "area of the cells that hold a vector"

    @classmethod
    def standardised(
        cls,
        components: Components,
        values: NDArray[Any],
        mask: NDArray[np.float32],
        weights: Floats,
        lat: Floats,
        lon: Floats,
        statics: Maps,
    ) -> Self:
        """Standardise values (…, k) with weights (…) where the mask is above zero.

        Raises
        ------
        CubeError
            If it is above zero nowhere, or a component is the same everywhere.
        """
        there = mask > 0
        if not there.any():
            raise CubeError(
                "none of the model's places lies in a cell with a vector: there is nothing to write"
            )
        weight = (weights * mask)[there]
        weight /= weight.sum()
        result = np.zeros((values.shape[-1], *mask.shape), np.float32)
        mean, std = np.zeros((2, len(result)))
        for number, name in enumerate(components.names):
            x = values[..., number][there].astype(np.float64)
            # Its deviation would be of rounding alone, and make a field of noise of it.
            if x.min() == x.max():
                raise CubeError(
                    f"component {name} is the same at all places and cannot be standardised; "
                    "choose a smaller k or a larger region"
                )
            mean[number] = weight @ x
            # Centred first: the difference of mean square and squared mean would lose digits.
            x -= mean[number]
            std[number] = np.sqrt(weight @ x**2)
            result[number][there] = x / std[number]
        names, attrs = components.names, components.attrs
        return cls(names, result, mask, lat, lon, mean, std, attrs, statics)

    @property
    def channels(self) -> dict[str, NDArray[np.float32]]:
        """Static fields, components and mask by name, in the order of the file."""
        return {**self.statics, **dict(zip(self.names, self.values, strict=True)), MASK: self.mask}

    def description(self, **more: Any) -> dict[str, Any]:
        """Description of a file, in it if its format has room, or in a JSON text beside it."""
        return {
            **self.attrs,
            "channels": list(self.channels),
            "standardised": list(self.names),
            "mean": self.mean.tolist(),
            "std": self.std.tolist(),
            "weights": self.weights,
            "missing": f"0, the mean; {MASK} is 0 there",
            **more,
        }


def on_lattice(components: Components, statics: Maps, *, rows: int = grid.N_LAT) -> Fields:
    """Lay components out on the lattice, 90°N first and 0°E first.

    Parameters
    ----------
    components : Components
        What is written.
    statics : mapping
        Name to (721, 1440).
    rows : {721, 720}
        All rows, or all but the south pole's.

    Raises
    ------
    OptionError
        If `rows` is neither.
    """
    rows = grid.require_rows(rows)
    mask = components.filled[:rows].astype(np.float32)
    return Fields.standardised(
        components,
        components.values[:rows],
        mask,
        np.broadcast_to(grid.areas()[:rows, np.newaxis], mask.shape),
        grid.latitudes()[:rows],
        grid.longitudes(),
        {name: values[:rows] for name, values in statics.items()},
    )


def on_all_rows(components: Components, statics: Maps) -> Fields:
    """Lay components out on the lattice, for models that read 721 rows and no others."""
    return on_lattice(components, statics)


def on_gaussian(components: Components, statics: Maps, *, grid: str = "TL63") -> Fields:
    """Average components by area on a Gaussian grid, 0°E first and from south to north.

    Parameters
    ----------
    components : Components
        What is written.
    statics : mapping
        Ignored: there are none.
    grid : str
        Truncation of the model, one of `GAUSSIAN`: TL63 at 2.8°, TL127 at 1.4°, TL255 at 0.7°.

    Raises
    ------
    OptionError
        If there is no such grid.
    """
    one_of(grid, "grid", [*GAUSSIAN])
    coarse = gaussian(GAUSSIAN[grid])
    every = np.arange(components.filled.shape[0]), np.arange(components.filled.shape[1])
    overlaps = Overlaps.between(*every, coarse)
    # What is not finite has no part in the means; the zeros of missing cells would have.
    values = np.where(components.filled[..., np.newaxis], components.values, np.nan)
    area = np.outer(overlaps.height, overlaps.width)
    return Fields.standardised(
        components,
        overlaps.mean(values),
        overlaps.share(components.filled[..., np.newaxis])[..., 0],
        area,
        coarse.y,
        coarse.x,
        statics,
    )


class _Gaussian(LatLon):
    @property
    def south_north(self) -> tuple[Floats, Floats]:
        """Edges of the cells halfway between latitudes; the outermost reach the poles."""
        between = (self.y[1:] + self.y[:-1]) / 2
        return np.concatenate([[-90], between]), np.concatenate([between, [90]])


def gaussian(rows: int) -> LatLon:
    """Gaussian grid of some latitudes, from south to north, and twice as many longitudes."""
    # The sines of Gaussian latitudes are the zeros of a Legendre polynomial.
    sines, _ = np.polynomial.legendre.leggauss(rows)
    y = np.degrees(np.arcsin(sines))
    x = np.arange(2 * rows, dtype=np.float64) * (180 / rows)
    return _Gaussian("latitude", "longitude", y, x, 180 / rows, 180 / rows, False)
