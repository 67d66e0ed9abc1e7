"""The axes of users' own images: the dimension of bands, the order of bands, and north.

After `arranged`, an image is (leading…, y, x, band), its bands are those of the sensor in published
order, and its rows run from north to south, its columns from west to east.
"""

import logging
import re
from collections.abc import Hashable, Iterator, Sequence
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from copcube.errors import OptionError
from copcube.images.bands import order, refuse_contradiction
from copcube.images.tensor_form import refuse_unusable_scales, takes_scales
from copcube.images.units import refuse_units, require_offset
from copcube.modalities import Modality

log = logging.getLogger("copcube")

GENERAL = "general"
"""Key of a sensor given only by wavelengths and bandwidths."""

DEGREES = ("lat", "latitude", "lon", "longitude")
"""Names of dimensions that are WGS 84 without a CRS."""
_BAND_NAMES = (
    *("band", "bands", "channel", "channels", "wavelength", "variable"),
    *("polarization", "polarisation"),
)
_Y_NAMES = ("y", "lat", "latitude", "northing", "row", "rows")
_X_NAMES = ("x", "lon", "longitude", "easting", "col", "columns")
_GROUND = (*DEGREES, "northing", "easting")
"""Names of dimensions whose coordinates are places even without a CRS."""
_BASELINES = ("s2:processing_baseline", "processing:version", "processing_baseline")
"""Names under which STAC items and their readers give the processing baseline."""
_BASELINE = re.compile(r"\d{1,2}\.\d{1,2}", re.ASCII)
_SCALES = ("copcube_scale", "copcube_offset")
"""Coordinates along the bands in which `arranged` keeps what a file declares for each."""
_DECLARED = (("scale_factor", "scales"), ("add_offset", "offsets"))
"""Attributes of it, for all bands alike and for each, as CF and rioxarray name them."""
_NODATA = ("_FillValue", "missing_value", "fill_value", "nodata", "nodatavals")
"""Attributes in which rioxarray looks for the value that marks missing pixels."""
_OTHER_UNITS = {"rad": "radians", "km": "kilometres"}
"""Units of coordinates, by how they begin, that are not those of a CRS."""
_STANDARD = {
    "y": ("projection_y_coordinate", "latitude", "grid_latitude", "Y"),
    "x": ("projection_x_coordinate", "longitude", "grid_longitude", "X"),
}
"""Values of the CF attributes standard_name and axis."""


def require_images(images: object) -> None:
    """Check that images come as an array with named dimensions.

    Raises
    ------
    OptionError
        If they do not.
    """
    if not isinstance(images, xr.DataArray):
        raise OptionError(
            f"images is a {type(images).__name__}; expected an xarray.DataArray "
            "(rioxarray.open_rasterio reads a file as one; a Dataset of bands becomes one by "
            ".to_dataarray('band'); copcube.embed_batch takes NumPy arrays)"
        )


def arranged(images: xr.DataArray, sensor: Modality) -> xr.DataArray:
    """Order the dimensions as (leading…, y, x, band), the bands as published, north up.

    Values stay as stored; `scales_of` returns the scales declared for them.

    Raises
    ------
    OptionError
        If the image lacks the expected bands or dimensions, or the order of its bands, rows or
        columns is not understood.
    """
    require_images(images)
    if images.dtype.kind not in "iuf":
        raise OptionError(f"images has dtype {images.dtype}; expected real numbers")
    band, y, x = (
        next((dim for dim in images.dims if str(dim).lower() in names), None)
        for names in (_BAND_NAMES, _Y_NAMES, _X_NAMES)
    )
    if band is None and len(sensor.bands) == 1:
        band, images = "band", images.expand_dims("band")
    if band is None or y is None or x is None:
        raise OptionError(
            f"images has dimensions {images.dims}; expected a band, y and x (or lat and lon); "
            "rename them with .rename()"
        )
    refuse_units(images.attrs.get("units"), sensor)
    images = _in_published_order(_with_scales(images, band, sensor), band, sensor)
    if images.sizes[band] != len(sensor.bands):
        raise OptionError(
            f"images has {images.sizes[band]} bands; expected the {len(sensor.bands)} of "
            f"{sensor.title}, in this order: {', '.join(sensor.bands)}"
        )
    return _north_up(images, y, x).transpose(..., y, x, band)


def _in_published_order(images: xr.DataArray, band: Hashable, sensor: Modality) -> xr.DataArray:
    """Pick the sensor's bands by their labels; without labels leave them as they are."""
    refused: OptionError | None = None
    for labels, kind in _labels(images, band):
        # rioxarray numbers the bands of every file: that says nothing of descriptions that are not
        # understood, nor of wavelengths, which are given in the order of the image's bands.
        if kind == "number" and (refused is not None or sensor.key == GENERAL):
            continue
        try:
            places = order(labels, sensor, described=kind == "description")
        except OptionError as error:
            refused = refused or (None if kind == "other" else error)
            continue
        if places is not None:
            return images.isel({band: places})
    if sensor.key != GENERAL:
        if refused is not None:
            raise refused
    else:
        # The bands of another sensor may have any name, but not red where nir is given.
        for labels, _ in _labels(images, band):
            refuse_contradiction(labels, sensor)
    return images


def scales_of(images: xr.DataArray) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """Scales and offsets of the bands of an arranged image, (bands, 1, 1); None without any."""
    if _SCALES[0] not in images.coords:
        return None
    scales, offsets = (images.coords[name].values[:, None, None] for name in _SCALES)
    return scales, offsets


def _with_scales(images: xr.DataArray, band: Hashable, sensor: Modality) -> xr.DataArray:
    """Make coordinates along the bands of the scales and offsets that attributes declare.

    Raises
    ------
    OptionError
        If it is unknown whether they were applied already, or to which bands they belong.
    """
    if not takes_scales(sensor):
        return images
    count, found = images.sizes[band], {}
    for name, (one, each), none in zip(_SCALES, _DECLARED, (1.0, 0.0), strict=True):
        given = images.attrs.get(each, images.attrs.get(one, none))
        try:
            values = np.asarray(given, np.float64).ravel()
        except (TypeError, ValueError) as error:
            raise OptionError(
                f"images declares {given!r} as {one}, which is not a number: {error}"
            ) from error
        if values.size != 1:
            values = np.asarray(_of_each(values, images, band, each))
        found[name] = (band, np.broadcast_to(values, count))
    scales, offsets = (values for _, values in found.values())
    refuse_unusable_scales(scales, offsets)
    if not ((scales != 1) | (offsets != 0)).any():
        return images
    if images.dtype.kind == "f":
        raise OptionError(
            f"images holds {images.dtype} and declares a scale of {scales[0]:g} and an offset of "
            f"{offsets[0]:g}, and it is unknown whether they were applied: open the file with "
            "mask_and_scale=True, or remove these attributes from values that are scaled"
        )
    return images.assign_coords(found)


def nodata_of(images: xr.DataArray) -> float | None:
    """Return the value of missing pixels of an image, as rioxarray finds it; None without one.

    NaN needs no mark.

    Raises
    ------
    OptionError
        If pixels of this type cannot have it.
    """
    import rioxarray  # noqa: F401  (registers .rio)

    try:
        nodata: float | None = images.rio.nodata
    except (TypeError, ValueError, OverflowError) as error:
        given = [images.attrs[name] for name in _NODATA if name in images.attrs]
        if images.rio.encoded_nodata is not None or "nan" in map(str, given):
            return None  # whole numbers made of floats
        raise OptionError(
            f"images holds {images.dtype} and declares nodata {', '.join(map(str, given))}; "
            "expected one number of that type: remove the attribute, or write another with "
            "images.rio.write_nodata()"
        ) from error
    return None if nodata is None or not np.isfinite(nodata) else nodata


def _of_each(
    values: Sequence[Any] | NDArray[Any], images: xr.DataArray, band: Hashable, name: str
) -> list[Any]:
    """Select the values of an attribute, one for each band of a file, for the image's bands."""
    own = images.coords[band].values.tolist() if band in images.coords else []
    if own and all(isinstance(n, int) and 0 < n <= len(values) for n in own):
        return [values[n - 1] for n in own]
    if len(values) != images.sizes[band]:
        raise OptionError(
            f"images has {images.sizes[band]} bands, and its attribute {name} names "
            f"{len(values)}: {', '.join(map(str, values))[:400]}; expected one for each: say which "
            f"bands of the file they are by numbers from 1, assign_coords({band}=[…])"
        )
    return list(values)


def _labels(images: xr.DataArray, band: Hashable) -> Iterator[tuple[list[Any], str]]:
    """Yield labels of the bands, the ones to prefer first, and their kind.

    Kinds are "name" and "description", which must be understood, "number" and "other".
    """
    own = images.coords[band].values.tolist() if band in images.coords else []
    is_text = any(isinstance(label, str) for label in own)
    if is_text:
        yield own, "name"
    # rioxarray keeps the descriptions of a file's bands here, all of them even after a selection.
    described = images.attrs.get("long_name", images.attrs.get("descriptions"))
    if isinstance(described, str) and images.sizes[band] == 1:
        yield [described], "description"
    elif images.name and images.sizes[band] == 1 and band not in images.coords:
        yield [images.name], "description"  # as xarray calls a variable of a dataset
    elif isinstance(described, tuple | list | np.ndarray):
        yield _of_each(described, images, band, "long_name"), "description"
    for name, coordinate in images.coords.items():
        if coordinate.dims == (band,) and name != band and coordinate.dtype.kind in "UO":
            yield coordinate.values.tolist(), "other"
    if own and not is_text:
        counting = sorted(own) in (list(range(len(own))), list(range(1, len(own) + 1)))
        yield own, "number" if counting else "name"


def _north_up(images: xr.DataArray, y: Hashable, x: Hashable) -> xr.DataArray:
    """Turn rows that run from south to north, and columns that run from east to west."""
    import rioxarray  # noqa: F401  (registers .rio)

    geographic = str(x).lower() in DEGREES or bool(
        images.rio.crs is not None and images.rio.crs.is_geographic
    )
    for dim, axis, usual in ((y, "y", -1), (x, "x", 1)):
        if dim not in images.coords:
            _refuse_turned_transform(images)
            continue
        coordinate = images.coords[dim]
        named = {coordinate.attrs.get("standard_name"), coordinate.attrs.get("axis")}
        if named & set(_STANDARD["x" if axis == "y" else "y"]):
            raise OptionError(
                f"the coordinate {dim} of images is declared as {', '.join(filter(None, named))}; "
                f"expected it along {axis}: rename the dimensions"
            )
        is_place = images.rio.crs is not None or str(dim).lower() in _GROUND
        if not (is_place or named & set(_STANDARD[axis])) or coordinate.size < 2:
            continue  # numbers of pixels
        values = _positions(images, coordinate, most=90 if geographic and axis == "y" else np.inf)
        steps = np.diff(np.unwrap(values, period=360) if geographic and axis == "x" else values)
        if not ((steps > 0).all() or (steps < 0).all()):
            raise OptionError(
                f"the coordinate {dim} of images neither rises nor falls throughout "
                f"({', '.join(f'{value:g}' for value in values[:3])}…); sort the image, "
                f"images.sortby({str(dim)!r})"
            )
        if np.sign(steps[0]) != usual:
            way = "south to north" if axis == "y" else "east to west"
            log.info(f"images runs from {way} along {dim}; it is turned north up")
            images = images.isel({dim: slice(None, None, -1)})
    return images


def _positions(images: xr.DataArray, coordinate: xr.DataArray, most: float) -> NDArray[np.float64]:
    """Values of a coordinate of places, in units of the CRS.

    Raises
    ------
    OptionError
        If they are not numbers, lie beyond `most` from 0, or have other units.
    """
    dim, units = coordinate.name, str(coordinate.attrs.get("units", "")).lower()
    if coordinate.dtype.kind not in "iuf":
        raise OptionError(
            f"the coordinate {dim} of images holds {coordinate.dtype} values; expected numbers"
        )
    values = np.asarray(coordinate.values, np.float64)
    if np.abs(values).max() > most + 1e-6:
        raise OptionError(
            f"the coordinate {dim} of images reaches {values[np.abs(values).argmax()]:g}; "
            f"expected degrees, at most {most:g} from 0"
        )
    other = next((name for start, name in _OTHER_UNITS.items() if units.startswith(start)), None)
    own = "" if images.rio.crs is None else str(images.rio.crs.linear_units).lower()
    if other is not None and not own.startswith(units[:1]):  # some CRS count in kilometres
        raise OptionError(
            f"the coordinate {dim} of images is in {other}; expected units of the CRS, degrees or "
            f"metres: multiply it, images.assign_coords({dim}=…)"
        )
    return values


def _refuse_turned_transform(images: xr.DataArray) -> None:
    """Refuse an image without coordinates whose transform is not that of a north-up image."""
    mapping = images.coords.get(images.rio.grid_mapping)
    numbers = str(mapping.attrs.get("GeoTransform", "")).split() if mapping is not None else []
    if len(numbers) != 6:
        return
    _, dx, turn, _, other_turn, dy = map(float, numbers)
    if dx < 0 or dy > 0 or turn or other_turn:
        raise OptionError(
            f"images has no coordinates along y and x, and its GeoTransform {' '.join(numbers)} is "
            "not that of a north-up image; open it with its coordinates, or warp it first"
        )


def checked_offset(images: xr.DataArray, sensor: Modality, s2_offset: int) -> int:
    """Return the offset to subtract; log one that the image declares and that is kept.

    Raises
    ------
    OptionError
        If it is not a count, or not for this sensor.
    """
    s2_offset = require_offset(s2_offset, sensor)
    if s2_offset or sensor.key != "s2_toa":
        return s2_offset
    for name in _BASELINES:
        known = images.coords[name].values if name in images.coords else images.attrs.get(name)
        for text in np.unique(np.atleast_1d(np.asarray(known, str)))[::-1]:
            if _BASELINE.fullmatch(text) and float(text) >= 4:
                log.warning(
                    f"images is of processing baseline {text}; since 04.00 counts are 1000 higher; "
                    "s2_offset=1000 subtracts them, unless that was done before"
                )
                return s2_offset
    return s2_offset
