"""Tensors found in their files: the same numbers as `torch.load` gives, or left to it."""

import io

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from copcube.errors import ImageError
from copcube.images import webdataset
from copcube.images.naming import Identity
from copcube.images.tar import Member
from copcube.images.torchfile import load_tensor, locate_tensor
from copcube.images.webdataset import _pixels, _Tensor
from copcube.modalities import MODALITIES

SHAPES = st.lists(st.sampled_from([1, 2, 3, 7, 40, 255, 256, 300]), min_size=1, max_size=5)


def saved(value):
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def drawn(shape, dtype, seed=0):
    numbers = np.random.default_rng(seed).integers(-(2**15), 2**15, shape)
    return torch.from_numpy(numbers.astype(dtype))


def located(raw, dtype, shape):
    """The tensor that is found in a file, or None."""
    start = locate_tensor(lambda at, n: raw[at : at + n], len(raw), dtype, shape)
    if start is None:
        return None
    return np.frombuffer(raw, dtype, int(np.prod(shape)), start).reshape(shape)


@given(SHAPES.filter(lambda shape: np.prod(shape) < 200_000), st.sampled_from(["int16", "float32"]))
@settings(deadline=None)
def test_what_torch_saves_is_found(shape, dtype):
    tensor = drawn(shape, dtype)
    np.testing.assert_array_equal(located(saved(tensor), dtype, tuple(shape)), tensor)


@pytest.mark.parametrize("number", [1, 255, 256, 65535, 65536, 70_000])
def test_a_number_is_pickled_in_as_many_bytes_as_it_needs(number):
    tensor = torch.arange(number).to(torch.int16)
    np.testing.assert_array_equal(located(saved(tensor), "int16", (number,)), tensor)


def test_a_file_may_have_a_long_name(tmp_path):
    tensor = drawn((3, 5), "int16")
    torch.save(tensor, tmp_path / f"{'0772176' * 10}.s2_toa.pth")
    (path,) = tmp_path.iterdir()
    np.testing.assert_array_equal(located(path.read_bytes(), "int16", (3, 5)), tensor)


PLAIN = drawn((2, 1, 28, 28), "float32")


@pytest.mark.parametrize("dtype", ["int16", "float32", "uint8"])
@pytest.mark.parametrize("shape", [(2, 1, 28, 28), (28, 28), (1, 2, 28, 28), (10**9, 10**9)])
def test_another_dtype_or_shape_is_not_found(dtype, shape):
    found = located(saved(PLAIN), dtype, shape)
    assert (found is not None) == (dtype == "float32" and shape == PLAIN.shape)


@given(st.binary(max_size=200))
def test_any_bytes_are_taken_for_no_tensor(raw):
    assert located(raw, "float32", (1,)) is None


@given(st.data())
@settings(deadline=None, max_examples=300)
def test_of_a_damaged_file_the_right_numbers_are_found_or_none(data):
    """Those that lie there or, where its own headers say so, those that torch takes."""
    whole = saved(drawn((3, 5), "int16"))
    start = locate_tensor(lambda at, n: whole[at : at + n], len(whole), "int16", (3, 5))
    raw = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(raw) - 1))
        raw[at] = data.draw(st.integers(0, 255))
    cut = data.draw(st.sampled_from([len(raw), len(raw) - 1, len(raw) // 2]))
    damaged = bytes(raw[:cut])
    found = located(damaged, "int16", (3, 5))
    if found is None or found.tobytes() == damaged[start : start + found.nbytes]:
        return
    try:
        expected = load_tensor(damaged, [(3, 5)])
    except ImageError:
        return
    np.testing.assert_array_equal(found, expected)


# As members of a shard.


class Bytes:
    """An archive that is one file, and what was read of it."""

    streamed = False

    def __init__(self, raw):
        self.raw, self.size, self.lengths = raw, len(raw), []

    def read(self, start, length):
        self.lengths.append(length)
        return self.raw[start : start + length]


def pixels(raw, key, lead, chosen=None):
    """Images of a member, all or some of them, and what was read of it."""
    archive = Bytes(raw)
    images = tuple((Identity(key, 772176), index) for index in chosen or np.ndindex(lead))
    member = Member("0772176.x.pth", 0, len(raw))
    return _pixels(archive, _Tensor(member, MODALITIES[key], lead, images)), archive.lengths


@pytest.mark.parametrize("key", MODALITIES)
def test_published_tensors_are_never_unpickled(key, monkeypatch):
    monkeypatch.setattr(webdataset, "load_tensor", lambda *_: pytest.fail("it was"))
    modality = MODALITIES[key]
    lead = (2,) * modality.local + (2,) * (modality.dates > 1)
    tensor = drawn(lead + modality.shape, modality.tensor_dtype)
    found, _ = pixels(saved(tensor), key, lead)
    assert all(image.dtype == ("uint16" if key == "s2_toa" else "float32") for image in found)
    for image, expected in zip(found, tensor.reshape(-1, *modality.shape).numpy(), strict=True):
        np.testing.assert_array_equal(image.view(modality.tensor_dtype), expected)
    if key == "dem":
        (image,), _ = pixels(saved(tensor[0].clone()), key, lead)
        np.testing.assert_array_equal(image, tensor)


def test_images_that_are_not_wanted_are_not_read():
    modality = MODALITIES["s2_toa"]
    tensor = drawn((2, 4, *modality.shape), "int16")
    found, lengths = pixels(saved(tensor), "s2_toa", (2, 4), [(1, 2), (0, 3)])
    for image, expected in zip(found, (tensor[1, 2], tensor[0, 3]), strict=True):
        np.testing.assert_array_equal(image.view("int16"), expected)
    assert sum(lengths) < 2 * tensor[0, 0].nbytes + 10_000


@pytest.mark.parametrize(
    "value",
    [
        torch.cat([PLAIN, PLAIN])[2:],
        PLAIN.clone().requires_grad_(),
        PLAIN.double(),
        PLAIN.half().float().half(),
    ],
    ids=["part of a larger storage", "a gradient wanted", "float64", "float16"],
)
def test_other_files_are_left_to_torch(value):
    raw = saved(value)
    assert located(raw, "float32", (2, 1, 28, 28)) is None
    found, _ = pixels(raw, "s5p_co", (2,))
    np.testing.assert_array_equal(found, value.detach().float())
