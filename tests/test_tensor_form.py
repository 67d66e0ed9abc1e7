import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from copcube.errors import ImageError
from copcube.images.tensor_form import has_valid_pixel, rescale_s3, to_tensor_form
from copcube.modalities import MODALITIES

S5P, S3, DEM, S2 = (MODALITIES[key] for key in ("s5p_no2", "s3_olci", "dem", "s2_toa"))
PUBLISHED = [
    ("s3_olci", (67, 174), (96, 249)),
    ("s5p_co", (26, 66), (28, 71)),
    ("dem", (936, 2402), (960, 2463)),
    ("s2_toa", (268, 267), (264, 264)),
    ("s1_grd", (264, 264), (264, 264)),
    ("dem", (960, 965), (960, 964)),
]
"""Rasters of the published cell at 67.25°N, and one that kornia's truncation shortens
because 960 · (965 / 960) is 964.99…, each with the size that kornia gives it."""


def by_torch(pixels, size, resized):
    """The whole raster resized by torch, then cut as kornia's centre crop does."""
    batch = torch.from_numpy(pixels[None])
    whole = torch.nn.functional.interpolate(
        batch, size=resized, mode="bilinear", align_corners=False
    )[0].numpy()
    top, left = int(resized[0] / 2 - size / 2), int(resized[1] / 2 - size / 2)
    return whole[:, top : top + size, left : left + size]


def by_kornia_rule(shape, size):
    aspect = shape[1] / shape[0]
    return (int(size / aspect), size) if aspect < 1 else (size, int(size * aspect))


def assert_rounding_only(found, expected, shape, scale):
    # The place of a pixel is a float32 number as large as the raster is wide.
    tolerance = 2 * np.finfo(np.float32).eps * max(*shape, *expected.shape) * scale
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance)


@given(
    rows=st.integers(1, 130),
    cols=st.integers(1, 130),
    bands=st.integers(1, 3),
    modality=st.sampled_from([S5P, S3]),
    seed=st.integers(0, 99),
)
@settings(max_examples=100)
def test_equals_torch_and_kornias_rules(rows, cols, bands, modality, seed):
    pixels = np.random.default_rng(seed).uniform(-1, 1, (bands, rows, cols)).astype(np.float32)
    size = modality.stored_size
    found = to_tensor_form(pixels, modality)
    assert found.shape == (bands, size, size)
    assert found.dtype == np.float32
    expected = by_torch(pixels, size, by_kornia_rule((rows, cols), size))
    assert_rounding_only(found, expected, (rows, cols), 1)


@pytest.mark.parametrize(("key", "shape", "resized"), PUBLISHED)
def test_published_shapes(key, shape, resized):
    modality = MODALITIES[key]
    pixels = np.random.default_rng(0).normal(size=(2, *shape)).astype(np.float32)
    assert by_kornia_rule(shape, modality.stored_size) == resized
    found = to_tensor_form(pixels, modality)
    expected = by_torch(pixels, modality.stored_size, resized)
    assert_rounding_only(found, expected, shape, abs(pixels).max())


def test_a_plane_stays_a_plane():
    """Bilinear sampling of a linear ramp is exact: the places follow in closed form."""
    rows, cols = np.mgrid[:67, :174].astype(np.float64)
    found = to_tensor_form(np.stack([rows, cols]), S3)
    row = (np.arange(96) + 0.5) * 67 / 96 - 0.5
    col = (np.arange(76, 76 + 96) + 0.5) * 174 / 249 - 0.5
    inside = slice(1, -1)
    np.testing.assert_allclose(found[0, inside], np.tile(row[inside, None], 96), atol=1e-10)
    np.testing.assert_allclose(found[1], np.tile(col, (96, 1)), atol=1e-10)


@pytest.mark.parametrize("modality", MODALITIES.values(), ids=lambda m: m.key)
@pytest.mark.parametrize("extra", [0, 6])
def test_nothing_is_copied_when_nothing_is_resized(modality, extra):
    size = modality.stored_size
    pixels = np.arange(size * (size + extra), dtype=np.float32).reshape(1, size, size + extra)
    found = to_tensor_form(pixels, modality)
    assert np.shares_memory(found, pixels)
    np.testing.assert_array_equal(found, pixels[:, :, extra // 2 : extra // 2 + size])


@given(
    hnp.arrays(
        np.float32,
        st.sampled_from([(1, 14, 14), (1, 28, 28), (1, 56, 56), (1, 14, 42), (1, 56, 28)]),
        elements=st.sampled_from([np.nan, np.inf, 1.0, 2.0]),
    )
)
def test_what_is_not_finite_spreads_as_in_torch(pixels):
    found = to_tensor_form(pixels, S5P)
    expected = by_torch(pixels, 28, by_kornia_rule(pixels.shape[1:], 28))
    finite = np.isfinite(expected)
    np.testing.assert_array_equal(np.isfinite(found), finite)
    np.testing.assert_array_equal(found[finite], expected[finite])


def test_a_nan_does_not_poison_an_axis_of_ratio_one():
    pixels = np.ones((1, 28, 28), np.float32)
    pixels[0, 3, 4] = np.nan
    assert np.isnan(to_tensor_form(pixels, S5P)).sum() == 1
    wide = np.ones((1, 28, 60), np.float32)
    wide[0, 3, 30] = np.nan
    assert np.isnan(to_tensor_form(wide, S5P)).sum() == 1


@pytest.mark.parametrize("dtype", [np.int16, np.uint16])
def test_integers_are_rounded_to_the_nearest(dtype):
    top = np.iinfo(dtype).max
    pixels = np.random.default_rng(1).integers(0, top, (3, 268, 267), endpoint=True, dtype=dtype)
    pixels[0] = top
    found = to_tensor_form(pixels, S2)
    exact = to_tensor_form(pixels.astype(np.float64), S2)
    assert found.dtype == dtype
    assert np.all(found[0] == top)
    assert np.abs(found - exact).max() <= 0.5 + 268 * np.finfo(np.float32).eps * top


@pytest.mark.parametrize("shape", [(28, 28), (1, 0, 28), (0, 28, 28), (1, 1, 28, 28)])
def test_what_is_no_image_is_refused(shape):
    with pytest.raises(ImageError, match=r"expected \(bands, rows, columns\)"):
        to_tensor_form(np.zeros(shape, np.float32), S5P)


@pytest.fixture
def radiances():
    return np.random.default_rng(2).uniform(500, 60000, (21, 9, 8)).astype(np.float32)


@pytest.mark.parametrize("wrong", [[0], [9], [0, 9]])
def test_s3_bands_a_milliard_too_large_are_corrected_in_a_copy(radiances, wrong):
    large = radiances.copy()
    large[wrong] *= 1e9
    large[:, 0, :] = np.nan
    before = large.copy()
    found, rescaled = rescale_s3(large)
    assert rescaled
    np.testing.assert_array_equal(large, before)
    np.testing.assert_allclose(found[:, 1:], radiances[:, 1:], rtol=1e-6)
    assert np.isnan(found[:, 0]).all()


@pytest.mark.parametrize(
    ("where", "spoilt"),
    [((0, 0, 0), 1e13), (slice(9), np.inf), (..., np.nan), (..., np.inf), (..., 1)],
)
def test_good_s3_bands_are_left_alone(radiances, where, spoilt):
    pixels = radiances.copy()
    pixels[where] *= spoilt
    found, rescaled = rescale_s3(pixels)
    assert found is pixels
    assert not rescaled


def test_other_s3_bands_are_never_touched(radiances):
    radiances[5] *= 1e9
    assert rescale_s3(radiances) == (radiances, False)


def test_valid_pixels():
    assert has_valid_pixel(np.zeros((1, 4, 4), np.float32), DEM)
    assert not has_valid_pixel(np.zeros((13, 4, 4), np.int16), S2)
    assert not has_valid_pixel(np.full((1, 4, 4), np.nan, np.float32), S5P)
    assert not has_valid_pixel(np.full((1, 4, 4), -np.inf, np.float32), DEM)


@given(
    hnp.arrays(
        np.float32,
        hnp.array_shapes(min_dims=3, max_dims=3, max_side=3),
        elements=st.sampled_from([np.nan, np.inf, 0.0, 1.0]),
    ),
    st.sampled_from(list(MODALITIES.values())),
)
def test_valid_pixels_by_their_definition(pixels, modality):
    usable = np.isfinite(pixels)
    if modality.zero_is_missing:
        usable &= pixels != 0
    assert has_valid_pixel(pixels, modality) == usable.any()
