"""The axes of people's images: bands in any order, rows and columns in any direction."""

import logging

import dask
import numpy as np
import pytest
import rasterio
import rioxarray
import xarray as xr
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st

from copcube.embedding.axes import arranged
from copcube.errors import OptionError
from copcube.modalities import MODALITIES

# rioxarray multiplies transforms in a way that a later affine will not know.
pytestmark = pytest.mark.filterwarnings("ignore:Use `@` matmul:PendingDeprecationWarning")

S1, S2, DEM = (MODALITIES[key] for key in ("s1_grd", "s2_toa", "dem"))


def image(bands=2, rows=6, cols=8):
    """Pixels that tell band, row and column of a north-up image in UTM, without labels."""
    pixels = np.arange(bands * rows * cols, dtype=np.float32).reshape(bands, rows, cols)
    coords = {"y": 5e6 - 10.0 * np.arange(rows), "x": 5e5 + 10.0 * np.arange(cols)}
    return xr.DataArray(pixels, dims=("band", "y", "x"), coords=coords).rio.write_crs("EPSG:32632")


@pytest.mark.slow
@pytest.mark.parametrize("source", ["coordinate", "long_name", "descriptions", "other coordinate"])
@settings(max_examples=50)
@given(order=st.permutations(range(13)))
def test_bands_are_found_by_whatever_labels_them(source, order):
    plain, names = image(13), np.array(S2.bands)
    if source == "coordinate":
        given = plain.assign_coords(band=names).isel(band=order)
    elif source == "other coordinate":
        given = plain.assign_coords(title=("band", names)).isel(band=order)
    else:  # attributes stay as they are when bands are selected, as rioxarray's do
        key = source.split()[0]
        given = plain.assign_coords(band=np.arange(1, 14)).isel(band=order)
        given.attrs[key] = tuple(names)
    xr.testing.assert_equal(
        arranged(given, S2).drop_vars(["band", "title"], errors="ignore"), arranged(plain, S2)
    )


@given(order=st.permutations(range(2)))
def test_numbers_of_bands_are_their_places(order):
    plain = image()
    given = plain.assign_coords(band=[1, 2]).isel(band=order)
    np.testing.assert_array_equal(arranged(given, S1), arranged(plain, S1))


def test_descriptions_of_a_file_are_read_by_rioxarray(tmp_path):
    """A file of three bands in another order, as a whole and with bands selected."""
    plain, path = image(3), tmp_path / "s1.tif"
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        height=6,
        width=8,
        count=3,
        dtype="float32",
        crs="EPSG:32632",
        transform=Affine(10, 0, 5e5, 0, -10, 5e6),
    ) as file:
        file.write(plain.values)
        file.descriptions = ("angle", "VH", "VV")
    for opened in (
        rioxarray.open_rasterio(path),
        xr.open_dataset(path, engine="rasterio").band_data,
    ):
        for some in (opened, opened.sel(band=[2, 3]), opened.sel(band=[3, 2])):
            found = arranged(some.load(), S1)
            np.testing.assert_array_equal(found.transpose("band", ...), plain.values[[2, 1]])
        with pytest.raises(OptionError, match="labelled angle, VV, with no VH"):
            arranged(opened.sel(band=[1, 3]), S1)
        opened.close()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda i: i.assign_coords(band=["left", "right"]), "labelled left, right.*VV, VH"),
        (lambda i: i.assign_coords(band=[3, 4]), "labelled 3, 4"),
        (lambda i: i.assign_attrs(long_name=("left", "right")), "labelled left, right"),
        (  # rioxarray numbers the bands too
            lambda i: i.assign_coords(band=[1, 2]).assign_attrs(long_name=("VV", "angle")),
            "labelled VV, angle, with no VH",
        ),
        (
            lambda i: i.assign_attrs(long_name=("VV", "VH", "angle")),
            "2 bands, .* names 3: VV, VH, angle",
        ),
    ],
)
def test_labels_that_are_not_understood_are_refused(change, message):
    with pytest.raises(OptionError, match=message):
        arranged(change(image()), S1)


@pytest.mark.slow
def test_a_title_is_no_label():
    plain = image().assign_attrs(long_name="backscatter of Sentinel-1")
    np.testing.assert_array_equal(arranged(plain, S1), arranged(image(), S1))
    height = image(1).assign_attrs(long_name="height above the geoid")
    assert arranged(height, DEM).shape == (6, 8, 1)


@pytest.mark.slow
@pytest.mark.parametrize("lazy", [False, True])
@settings(max_examples=50)
@given(
    flip=st.sets(st.sampled_from(["y", "x"])),
    dims=st.permutations(["time", "band", "y", "x"]),
    reverse=st.booleans(),
)
def test_an_image_is_the_same_in_every_direction(lazy, flip, dims, reverse):
    plain = image().expand_dims(time=2).assign_coords(band=["VV", "VH"])
    turned = plain.isel({dim: slice(None, None, -1) for dim in flip}).transpose(*dims)
    turned = turned.isel(band=slice(None, None, -1)) if reverse else turned
    found = arranged(turned.chunk() if lazy else turned, S1)
    assert dask.is_dask_collection(found) == lazy
    xr.testing.assert_identical(found.load(), arranged(plain, S1))
    assert found.dims == ("time", "y", "x", "band")


@pytest.mark.parametrize("west", [170, -190, 350])
@pytest.mark.parametrize("flip", [False, True])
def test_longitudes_go_on_over_the_seam(west, flip):
    lon = (west + 2.0 * np.arange(8) + 180) % 360 - 180
    lon = lon % 360 if west == 170 else lon
    plain = image().drop_vars("spatial_ref").assign_coords(y=50.0 - np.arange(6), x=lon)
    plain = plain.rename(y="lat", x="lon")
    turned = plain.isel(lon=slice(None, None, -1)) if flip else plain
    np.testing.assert_array_equal(arranged(turned, S1).lon, lon)


def test_turning_is_said(caplog):
    caplog.set_level(logging.INFO, "copcube")
    arranged(image(), S1)
    assert not caplog.text
    arranged(image().isel(y=slice(None, None, -1), x=slice(None, None, -1)), S1)
    assert "runs from south to north along y" in caplog.text
    assert "runs from east to west along x" in caplog.text


def test_numbers_of_pixels_are_no_direction():
    plain = image().drop_vars("spatial_ref").assign_coords(y=np.arange(6), x=np.arange(8))
    np.testing.assert_array_equal(arranged(plain, S1).transpose("band", ...), plain)
    # Coordinates in metres are one, whether the CRS is known or not.
    metres = plain.assign_coords(
        y=("y", np.arange(6), {"standard_name": "projection_y_coordinate"})
    )
    np.testing.assert_array_equal(arranged(metres, S1)[..., 0], plain[0, ::-1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda i: i.isel(y=[0, 2, 1, 3, 4, 5]), r"y of images neither rises nor falls.*sortby"),
        (lambda i: i.assign_coords(x=[0.0, 0, 1, 2, 3, 4, 5, 6]), "x of images neither"),
        (lambda i: i.assign_coords(y=np.full(6, np.nan)), "y of images neither"),
        (
            lambda i: i.assign_coords(y=("y", i.y.values, {"standard_name": "longitude"})),
            "y of images is declared as longitude",
        ),
        (
            lambda i: i.rio.write_transform(Affine(10, 0, 5e5, 0, 10, 5e6)).drop_vars(["y", "x"]),
            "not that of a north-up image",
        ),
    ],
)
def test_directions_that_are_not_understood_are_refused(change, message):
    with pytest.raises(OptionError, match=message):
        arranged(change(image()), S1)
