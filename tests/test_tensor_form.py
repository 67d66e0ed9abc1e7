import kornia.augmentation
import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from copcube.errors import ImageError
from copcube.images.tensor_form import has_valid_pixel, rescale_s3, to_tensor_form
from copcube.modalities import MODALITIES

S5P, S3, DEM, S2 = (MODALITIES[key] for key in ("s5p_no2", "s3_olci", "dem", "s2_toa"))
PUBLISHED = [
    ("s3_olci", (67, 174), (96, 249)),
    ("s3_olci", (99, 99), (96, 96)),
    ("s5p_co", (26, 66), (28, 71)),
    ("s5p_no2", (66, 26), (71, 28)),
    ("s5p_o3", (25, 25), (28, 28)),
    ("s5p_so2", (28, 29), (28, 29)),
    ("dem", (936, 2402), (960, 2463)),
    ("dem", (1030, 936), (1056, 960)),
    ("s2_toa", (268, 267), (264, 264)),
    ("s2_toa", (264, 300), (264, 300)),
    ("s1_grd", (268, 267), (264, 264)),
    ("s1_grd", (264, 264), (264, 264)),
    ("dem", (960, 965), (960, 964)),
]
"""Rasters of the published cell at 67.25°N and others, wide and tall, each with the size that
kornia gives it. Its truncation shortens the last, because 960 · (965 / 960) is 964.99…"""

FUSED = torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")
"""Whether torch multiplies and adds in one step, as on the machines that made the tensors."""


def by_kornia(pixels, size):
    """The whole raster resized, and its tensor form, as the official writer makes them: floats."""
    batch = torch.from_numpy(pixels[None].astype(np.result_type(pixels, np.float32)))
    resized = kornia.augmentation.SmallestMaxSize(size)(batch)
    return resized, kornia.augmentation.CenterCrop(size)(resized)[0].numpy()


def drawn(modality, shape, seed=0):
    """Pixels of the scale of a modality, in the dtype of its rasters."""
    rng = np.random.default_rng(seed)
    mean, std = (np.reshape(values, (-1, 1, 1)) for values in (modality.mean, modality.std))
    pixels = mean + std * rng.normal(size=(len(modality.bands), *shape))
    if modality.tensor_dtype == "int16":
        return pixels.clip(0, 65_535).astype(np.uint16)
    return pixels.astype(np.float32)


def assert_rounding_only(found, expected):
    """Equal up to two roundings of the largest number."""
    tolerance = 2 * np.finfo(np.float32).eps * np.abs(expected).max(initial=0)
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize(("key", "shape", "resized"), PUBLISHED)
def test_equals_kornia(key, shape, resized):
    """Every modality, wide and tall; integers are truncated, as the official writer does."""
    modality = MODALITIES[key]
    pixels = drawn(modality, shape)
    found = to_tensor_form(pixels, modality)
    whole, expected = by_kornia(pixels, modality.stored_size)
    assert whole.shape[2:] == resized
    assert found.dtype == pixels.dtype
    assert found.shape == expected.shape == modality.shape
    if modality.tensor_dtype == "int16":
        expected = torch.from_numpy(expected).to(torch.int16).numpy().view(np.uint16)
    # For results as small as those of S5P torch sums in another order.
    if FUSED and modality.stored_size > 28:
        np.testing.assert_array_equal(found, expected)
    elif modality.tensor_dtype == "int16":
        assert np.abs(found.astype(float) - expected).max() <= 1
    else:
        assert_rounding_only(found, expected)


@pytest.mark.slow
@given(
    rows=st.integers(1, 130),
    cols=st.integers(1, 130),
    bands=st.integers(1, 3),
    modality=st.sampled_from([S5P, S3]),
    dtype=st.sampled_from([np.float32, np.float64, np.uint16, np.int16, np.uint8, np.int32]),
    seed=st.integers(0, 99),
)
@example(rows=1, cols=1, bands=1, modality=S5P, dtype=np.float32, seed=0)
@settings(max_examples=100)
def test_equals_kornia_for_any_size_and_dtype(rows, cols, bands, modality, dtype, seed):
    pixels = np.random.default_rng(seed).uniform(-100, 100, (bands, rows, cols))
    pixels = (abs(pixels) if np.dtype(dtype).kind == "u" else pixels).astype(dtype)
    size = modality.stored_size
    found = to_tensor_form(pixels, modality)
    assert found.shape == (bands, size, size)
    assert found.dtype == dtype
    _, expected = by_kornia(pixels, size)
    if np.issubdtype(dtype, np.floating):
        assert_rounding_only(found, expected)
        return
    near = np.abs(expected - np.rint(expected)) < 1e-4
    assert np.all(np.abs(found - expected) < 1 + 1e-4)
    np.testing.assert_array_equal(found[~near], np.trunc(expected)[~near])


def test_a_plane_stays_a_plane():
    """Bilinear sampling of a linear ramp is exact: the places follow in closed form."""
    rows, cols = np.mgrid[:67, :174].astype(np.float64)
    found = to_tensor_form(np.stack([rows, cols]), S3)
    row = np.arange(96) * 66 / 95
    col = np.arange(76, 76 + 96) * 173 / 248
    np.testing.assert_allclose(found[0], np.tile(row[:, None], 96), atol=1e-10)
    np.testing.assert_allclose(found[1], np.tile(col, (96, 1)), atol=1e-10)


@pytest.mark.parametrize("modality", MODALITIES.values(), ids=lambda m: m.key)
@pytest.mark.parametrize("extra", [0, 6])
def test_nothing_is_copied_when_nothing_is_resized(modality, extra):
    size = modality.stored_size
    pixels = np.arange(size * (size + extra), dtype=np.float32).reshape(1, size, size + extra)
    found = to_tensor_form(pixels, modality)
    assert np.shares_memory(found, pixels)
    np.testing.assert_array_equal(found, pixels[:, :, extra // 2 : extra // 2 + size])


@pytest.mark.slow
@given(
    hnp.arrays(
        np.float32,
        st.sampled_from([(1, 14, 14), (1, 28, 28), (1, 56, 56), (1, 14, 42), (1, 28, 60)]),
        elements=st.sampled_from([np.nan, np.inf, 1.0, 2.0]),
    )
)
def test_what_is_not_finite_spreads_as_in_kornia(pixels):
    found = to_tensor_form(pixels, S5P)
    _, expected = by_kornia(pixels, 28)
    finite = np.isfinite(expected)
    np.testing.assert_array_equal(np.isfinite(found), finite)
    assert_rounding_only(found[finite], expected[finite])


def test_a_nan_does_not_spread_where_nothing_is_resized():
    pixels = np.ones((1, 28, 28), np.float32)
    pixels[0, 3, 4] = np.nan
    assert np.isnan(to_tensor_form(pixels, S5P)).sum() == 1
    wide = np.ones((1, 28, 60), np.float32)
    wide[0, 3, 30] = np.nan
    assert np.isnan(to_tensor_form(wide, S5P)).sum() == 1


@pytest.mark.parametrize("dtype", [np.int16, np.uint16])
def test_the_largest_integer_stays(dtype):
    pixels = np.full((13, 268, 267), np.iinfo(dtype).max, dtype)
    np.testing.assert_array_equal(to_tensor_form(pixels, S2), pixels[:, :264, :264])


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


@pytest.mark.slow
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
