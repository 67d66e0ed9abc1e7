"""Which vectors are present: finite ones, where zeros may mean a missing one."""

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from copcube.errors import CubeError

if TYPE_CHECKING:
    import xarray as xr


def present(values: NDArray[Any], *, zeros_allowed: bool = False) -> NDArray[np.bool_]:
    """Find which vectors, along the last axis, are finite.

    Raises
    ------
    CubeError
        If zeros are not allowed and a vector is all zeros.
    """
    if not zeros_allowed:
        refuse_zeros(values)
    found = np.asarray(np.isfinite(values[..., 0]))
    # Most cells of the globe are missing in all their values, so one value is enough to tell.
    if 4 * np.count_nonzero(found) > found.size:
        return np.asarray(np.isfinite(values).all(axis=-1))
    found[found] = np.isfinite(values[found]).all(axis=-1)
    return found


def refuse_zeros(values: NDArray[Any]) -> NDArray[Any]:
    """Return vectors, along the last axis, unchanged, if none of them is all zeros.

    Raises
    ------
    CubeError
        If one is.
    """
    zeros = np.asarray(values[..., 0] == 0)
    if zeros.any():
        zeros[zeros] = ~values[zeros].any(axis=-1)
    if zeros.any():
        raise CubeError(
            f"{int(zeros.sum())} cells hold vectors of zeros and the cube has no n_images to show "
            "whether they are missing; in published maps zeros mean missing: open those with "
            "engine='copembed', or set such vectors to NaN"
        )
    return values


def refuse_unusable(field: "xr.DataArray") -> None:
    """Refuse an empty selection, and vectors that are no decoded floating-point numbers.

    Raises
    ------
    CubeError
        If either is the case.
    """
    if empty := [str(dim) for dim, size in field.sizes.items() if size == 0]:
        raise CubeError(
            f"{field.name} has no values along {' and '.join(empty)}: the selection is empty; a "
            "slice must follow the coordinate: lat=slice(60, 40) if latitudes run from north to "
            "south, and lon=slice(350, 355), not slice(-10, -5), if longitudes begin at 0"
        )
    # Whole numbers cannot be missing, and their mean would lose its fraction.
    if field.dtype.kind != "f":
        raise CubeError(
            f"{field.name} holds {field.dtype} values; expected floating-point numbers, with NaN "
            "where there is no vector: let xarray decode packed values, or convert others with "
            f"ds.assign({field.name}=ds.{field.name}.astype('float32'))"
        )
    refuse_undecoded(field)


def refuse_undecoded(field: "xr.DataArray") -> None:
    """Refuse values among which missing ones are numbers.

    Raises
    ------
    CubeError
        If an attribute declares such a number, which xarray removes when it decodes a file.
    """
    for name in ("_FillValue", "missing_value"):
        value = np.asarray(field.attrs.get(name, np.nan))
        if value.dtype.kind in "iuf" and np.isfinite(value).any():
            raise CubeError(
                f"{field.name} declares {name} {field.attrs[name]} and was not decoded, so missing "
                "values may be that number: xarray.decode_cf(ds) makes them NaN"
            )
