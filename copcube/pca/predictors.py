"""Regression of a cube's vectors on fields that a model already has, weighted and linear.

The components of an embedding largely repeat the terrain. A regression of the vectors on the
orography and similar fields removes what these explain, and the principal components of the
residual are new to a model that reads them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement
from typing import TYPE_CHECKING, Self

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import pinvh

from copcube import grid
from copcube.arguments import whole_number
from copcube.cube.latlon import LatLon, first_positions
from copcube.cube.presence import refuse_undecoded
from copcube.cube.schema import labels
from copcube.cube.view import CubeView, require_dataset
from copcube.errors import CubeError, GridError, OptionError
from copcube.grid import Floats
from copcube.pca.moments import Moments, mirrored

if TYPE_CHECKING:
    import xarray as xr

_TIMES = "*"
"""Separator of the names of fields whose product is a predictor."""

_COLLINEAR = 1e-10
"""Eigenvalue of the correlations, relative to the largest, below which predictors repeat each
other, the precision of a covariance in float64."""


@dataclass(frozen=True, eq=False)
class Predictors:
    """Fields on the cells of a cube that vectors are regressed on.

    Parameters
    ----------
    names : tuple of str
        Such as ``z``, or ``z*lsm`` for a product.
    values : numpy.ndarray
        (lat, lon, predictor) float32 in the cube's order; NaN where one is missing.
    """

    names: tuple[str, ...]
    values: NDArray[np.float32]

    @classmethod
    def of(cls, given: "xr.Dataset | xr.DataArray", view: CubeView, names: Sequence[str]) -> Self:
        """Bring fields to the cells of a cube, by lattice index, and multiply them.

        Raises
        ------
        CubeError
            If a field is not there, is not one of latitude and longitude alone, or has no
            place in common with the cube.
        GridError
            If the fields or the cube do not lie on the lattice.
        """
        given = as_fields(given)
        on = LatLon.of(given)
        if not on.on_lattice:
            raise GridError(
                f"the given fields lie on a {on}; expected the 0.25° lattice of the cube: "
                "retrieve them with grid 0.25/0.25"
            )
        rows, cols = grid.lattice_index(on.y, on.x)
        down = first_positions(rows, grid.N_LAT)[view.row]
        along = first_positions(cols, grid.N_LON)[view.col]
        outside = (down < 0)[:, None] | (along < 0)
        if outside.all():
            raise CubeError("the given fields and the cube have no place in common")
        # An index of -1 takes the last row or column; `outside` puts NaN there.
        singles = {
            name: np.where(
                outside,
                np.nan,
                given[name].transpose(on.lat, on.lon).values[np.ix_(down, along)],
            )
            for name in dict.fromkeys(part for name in names for part in name.split(_TIMES))
        }
        products = [np.prod([singles[part] for part in n.split(_TIMES)], axis=0) for n in names]
        return cls(tuple(names), np.stack(products, axis=-1).astype(np.float32))

    @classmethod
    def stored(cls, basis: "xr.Dataset", view: CubeView) -> Self:
        """Take the predictors that `reduce` put beside its result, for the cells of a cube.

        Raises
        ------
        OptionError
            If the basis holds only the regression.
        """
        import xarray as xr

        names = predictor_names(basis)
        if "predictors" not in basis:
            raise OptionError(
                f"the basis was fitted on the residual of {', '.join(names)}: give these fields "
                "for the cube's cells, project(cube, basis, given=statics)"
            )
        fields = {
            f"predictor_{i}": basis["predictors"].isel(predictor=i, drop=True)
            for i in range(len(names))
        }
        return cls(names, cls.of(xr.Dataset(fields), view, tuple(fields)).values)

    def there(self) -> NDArray[np.bool_]:
        """Cells, (lat, lon), at which all of them are finite."""
        return np.asarray(np.isfinite(self.values).all(axis=-1))


@dataclass(frozen=True, eq=False)
class Regression:
    """Least squares of vectors on predictors, with a constant.

    Parameters
    ----------
    coefficients : numpy.ndarray
        (predictor, dim) float64: change of the vector with one unit of the predictor.
    means : numpy.ndarray
        (predictor,) float64 weighted means of the predictors.
    explained : float
        Share of the vectors' variance that the predictors explain.
    """

    coefficients: Floats
    means: Floats
    explained: float

    @classmethod
    def of(cls, joint: Moments, n: int) -> tuple[Self, Moments]:
        """Regress, from moments of vectors that begin with `n` predictors.

        Returns
        -------
        regression : Regression
        residuals : Moments
            Of what the predictors leave over, about the mean of the vectors themselves.

        Raises
        ------
        CubeError
            If there are not more cells than predictors.
        """
        # As many coefficients as cells would explain any vectors.
        if joint.cells <= n + 1:
            raise CubeError(
                f"{joint.cells} cells hold a vector and all given fields: too few for a "
                f"regression on {n}"
            )
        coefficients = slopes(joint, n)
        together = joint.lower[n:, :n]
        whole = joint.lower[n:, n:]
        lower = np.asfortranarray(whole - together @ coefficients)
        residuals = Moments(joint.cells, joint.weight, joint.square, joint.mean[n:], lower)
        explained = 1 - np.trace(lower) / (np.trace(whole) or 1)
        return cls(coefficients, joint.mean[:n], float(explained)), residuals


def slopes(joint: Moments, n: int) -> Floats:
    """Coefficients of least squares, (predictor, dim), from moments that begin with `n` predictors.

    Predictors that repeat others share what they explain: the solution of least norm, in units
    of their standard deviations, is taken.
    """
    lower = joint.lower[:n, :n]
    scatter = mirrored(lower)
    scale = np.sqrt(np.diag(scatter))
    scale[scale == 0] = 1  # a constant field explains nothing
    inverse = pinvh(scatter / np.outer(scale, scale), rtol=_COLLINEAR)
    result: Floats = inverse @ (joint.lower[n:, :n].T / scale[:, None]) / scale[:, None]
    return result


def as_fields(given: "xr.Dataset | xr.DataArray") -> "xr.Dataset":
    """Return given fields as a dataset whose variables have latitude and longitude alone.

    Raises
    ------
    CubeError
        If a variable has other dimensions of more than one entry or was not decoded, or there is
        none.
    OptionError
        If a name cannot be listed with others.
    """
    import xarray as xr

    if isinstance(given, xr.DataArray):
        given = given.to_dataset(name=given.name or "given")
    require_dataset(given, "the given fields")
    on = LatLon.of(given)
    lat, lon = on.lat, on.lon
    others = [dim for dim, size in given.sizes.items() if size == 1 and dim not in (lat, lon)]
    given = given.isel(dict.fromkeys(others, 0), drop=True)
    # Bounds, reference systems and the like are not fields.
    given = given.drop_vars([n for n, v in given.data_vars.items() if not {lat, lon} <= {*v.dims}])
    for name, field in given.data_vars.items():
        if {*field.dims} != {lat, lon} or field.dtype.kind not in "fiub":
            dims = ", ".join(map(str, field.dims))
            raise CubeError(
                f"the given field {name} holds {field.dtype} along {dims}; expected numbers along "
                f"{lat} and {lon} only: select one with isel"
            )
        refuse_undecoded(field)
        if _TIMES in str(name) or len(str(name).split()) != 1:
            raise OptionError(f"the given field {str(name)!r} needs a name of one word; rename it")
    if not given.data_vars:
        raise CubeError("the given dataset holds no field along latitude and longitude")
    return given


def expanded(given: "xr.Dataset | xr.DataArray", degree: int) -> tuple[str, ...]:
    """Names of the predictors: the given fields and, up to `degree`, their products.

    Raises
    ------
    OptionError
        If the degree is not 1, 2 or 3.

    Examples
    --------
    >>> import xarray as xr
    >>> flat = (("lat", "lon"), [[1.0]])
    >>> expanded(xr.Dataset({"z": flat, "lsm": flat}, {"lat": [0], "lon": [0]}), 2)
    ('z', 'lsm', 'z*z', 'z*lsm', 'lsm*lsm')
    """
    degree = whole_number(degree, "degree", 1, 3)
    names = [str(name) for name in as_fields(given).data_vars]
    return tuple(
        _TIMES.join(several)
        for order in range(1, degree + 1)
        for several in combinations_with_replacement(names, order)
    )


def predictor_names(basis: "xr.Dataset") -> tuple[str, ...]:
    """Names of the predictors of a basis; none if it was fitted on the vectors themselves."""
    require_dataset(basis, "the basis of a reduction")
    if "regression" not in basis:
        return ()
    coordinate = basis["predictor"]
    return labels("predictor", coordinate.values, coordinate.attrs)
