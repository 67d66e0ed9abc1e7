"""Tensors found in their files: the same numbers as `torch.load` gives, or refused."""

import io
import pickle
import zipfile

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from copcube.errors import ImageError
from copcube.files.torch_pickle import TorchFileError
from copcube.images.naming import Identity
from copcube.images.tar import Member
from copcube.images.torchfile import _described, locate_tensor
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


def stored(raw, shape):
    return locate_tensor(lambda at, n: raw[at : at + n], len(raw), [shape])


def located(raw, shape):
    """The tensor that is found in a file, or None."""
    try:
        tensor = stored(raw, shape)
    except ImageError:
        return None
    length = int(np.prod(shape)) * tensor.itemsize
    return tensor.decode(raw[tensor.start : tensor.start + length]).reshape(shape)


@pytest.mark.slow
@given(SHAPES.filter(lambda shape: np.prod(shape) < 200_000), st.sampled_from(["int16", "float32"]))
def test_what_torch_saves_is_found(shape, dtype):
    tensor = drawn(shape, dtype)
    found = located(saved(tensor), tuple(shape))
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, tensor)


@pytest.mark.parametrize("number", [1, 255, 256, 65535, 65536, 70_000])
def test_a_number_is_pickled_in_as_many_bytes_as_it_needs(number):
    tensor = torch.arange(number).to(torch.int16)
    np.testing.assert_array_equal(located(saved(tensor), (number,)), tensor)


def test_a_file_may_have_a_long_name(tmp_path):
    tensor = drawn((3, 5), "int16")
    torch.save(tensor, tmp_path / f"{'0772176' * 10}.s2_toa.pth")
    (path,) = tmp_path.iterdir()
    np.testing.assert_array_equal(located(path.read_bytes(), (3, 5)), tensor)


PLAIN = drawn((2, 1, 28, 28), "float32")


@pytest.mark.parametrize("shape", [(2, 1, 28, 28), (28, 28), (1, 2, 28, 28), (10**9, 10**9)])
def test_another_shape_is_not_found(shape):
    assert (located(saved(PLAIN), shape) is not None) == (shape == PLAIN.shape)


@pytest.mark.parametrize(
    "dtype",
    [
        *("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64"),
        *("float16", "bfloat16", "float32", "float64"),
    ],
)
def test_every_real_dtype_is_read_as_torch_reads_it(dtype):
    tensor = torch.linspace(0, 100, 2 * 28 * 28).reshape(PLAIN.shape).to(getattr(torch, dtype))
    try:
        raw = saved(tensor)
    except KeyError:
        pytest.skip(f"torch {torch.__version__} cannot save {dtype}")
    found = located(raw, PLAIN.shape)
    assert found.dtype == ("float32" if dtype == "bfloat16" else dtype)
    np.testing.assert_array_equal(found, (tensor.float() if dtype == "bfloat16" else tensor))


@pytest.mark.parametrize(
    "value",
    [torch.cat([PLAIN, PLAIN])[1:3], torch.cat([PLAIN, PLAIN])[2:], PLAIN.clone().requires_grad_()],
    ids=["middle of a larger storage", "end of a larger storage", "a gradient wanted"],
)
def test_a_tensor_need_not_have_its_storage_to_itself(value):
    found = located(saved(value), PLAIN.shape)
    np.testing.assert_array_equal(found, value.detach())


def rewritten(raw, **members):
    """The same archive with the content of some members replaced, written by `zipfile`."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(raw)) as old, zipfile.ZipFile(out, "w") as new:
        for record in old.infolist():
            name = record.filename.partition("/")[2]
            new.writestr(record.filename, members.get(name, old.read(record)))
    return out.getvalue()


@pytest.mark.parametrize("dtype", ["int16", "float32", "bfloat16"])
def test_numbers_of_the_other_byte_order_are_turned_round(dtype):
    tensor = drawn((3, 5), "float32").to(getattr(torch, dtype))
    words = tensor.view(torch.uint8).numpy().reshape(-1, tensor.element_size())
    content = {"byteorder": b"big", "data/0": words[:, ::-1].tobytes()}
    raw = rewritten(saved(tensor), **content)
    expected = torch.load(io.BytesIO(raw), weights_only=True)
    np.testing.assert_array_equal(located(raw, (3, 5)), expected.float())
    np.testing.assert_array_equal(expected.float(), tensor.float())
    with pytest.raises(ImageError, match="expected the byte order little or big, found b'none'"):
        stored(rewritten(raw, byteorder=b"none"), (3, 5))


@given(st.binary(max_size=200))
def test_any_bytes_are_taken_for_no_tensor(raw):
    assert located(raw, (1,)) is None


@pytest.mark.slow
@given(st.data())
@settings(max_examples=200)
def test_of_a_damaged_file_the_right_numbers_are_found_or_none(data):
    """Those that lie there or, where its own headers say so, those that torch takes."""
    whole = saved(drawn((3, 5), "int16"))
    start = stored(whole, (3, 5)).start
    raw = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(raw) - 1))
        raw[at] = data.draw(st.integers(0, 255))
    cut = data.draw(st.sampled_from([len(raw), len(raw) - 1, len(raw) // 2]))
    damaged = bytes(raw[:cut])
    found = located(damaged, (3, 5))
    if found is None or found.tobytes() == damaged[start : start + found.nbytes]:
        return
    try:
        expected = torch.load(io.BytesIO(damaged), weights_only=True)
    except Exception:
        return
    np.testing.assert_array_equal(found, expected)


# Pickles. Hostile files of every kind are tested with the shards.


NO_HOOKS = b"ccollections\nOrderedDict\n)R"
STORAGE = b"(X\7\0\0\0storagectorch\nFloatStorage\nX\1\0\0\x000X\3\0\0\0cpuK\2tQ"
REBUILD = b"ctorch._utils\n_rebuild_tensor_v2\n"
PIECES = [b"(", b")", b"\x85", b"\x86", b"\x87", b"t", b"Q", b"R", b"\x88", b"q\0", b"K\2"]
PIECES += [b"M\0\1", b"J\xff\xff\xff\xff", b"\x8a\x01\x05", b"X\1\0\0\x000", NO_HOOKS, STORAGE]
PIECES += [REBUILD, b"K\0K\2\x85K\1\x85\x89", b"ctorch\nuint16\n"]


@pytest.mark.slow
@given(st.lists(st.sampled_from(PIECES), max_size=14))
@settings(max_examples=200)
def test_any_allowed_operations_give_a_tensor_or_are_refused(pieces):
    try:
        tensor = _described(b"\x80\2" + b"".join(pieces) + b".")
    except TorchFileError:
        return
    assert (tensor.dtype, tensor.key, tensor.nbytes) == ("float32", "0", 8)


def test_a_pickle_put_together_by_hand_is_read():
    described = b"\x80\2" + REBUILD + b"(" + STORAGE + PIECES[-2] + NO_HOOKS + b"tR."
    assert _described(described) == ("float32", "0", 8, 0, (2,), (1,))


REFUSED = {
    "nested deeply": b")" + 1900 * b"\x85" + b".",
    "a large number": b"\x8a\xff" + 255 * b"\x7f" + b".",
    "a storage alone": STORAGE + b".",
    "no tuple stored": b"K\1Q.",
    "a called word": b"ctorch\nFloatStorage\n)R.",
    "a called number": b"K\1)R.",
    "hooks": REBUILD + b"(" + STORAGE + PIECES[-2] + b"ccollections\nOrderedDict\nK\1\x85RtR.",
    "a tensor of a tensor": REBUILD + b"(" + REBUILD + b"tRK\0))\x89" + NO_HOOKS + b"tR.",
    "strides of words": REBUILD + b"(" + STORAGE + b"K\0K\2\x85X\1\0\0\x000\x85\x89)tR.",
    "a true length": REBUILD + b"(" + STORAGE + b"K\0\x88\x85K\1\x85\x89)tR.",
    "fewer strides": REBUILD + b"(" + STORAGE + b"K\0K\2\x85)\x89)tR.",
    "a place far away in the memo": b"r\xff\xff\xff\x7f.",
    "what was used before": b")q\0h\0\x86.",
    "a list": b"].",
    "a dictionary": b"}.",
    "any attribute": b"cos\nsystem\n.",
    "an attribute of what is known": b"ctorch._utils\n_rebuild_tensor_v2.__globals__\n.",
    "no end": b")",
    "nothing on the stack": b"R.",
    "longer text than there is": b"X\xff\xff\xff\x7fa.",
    "no operation": b"\xfe.",
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_pickle_of_anything_else_is_refused(kind):
    with pytest.raises(TorchFileError):
        _described(b"\x80\2" + REFUSED[kind])


@pytest.mark.parametrize("protocol", range(6))
def test_pickles_of_objects_are_refused(protocol):
    for value in (3, "x", [1], {"a": 1}, np.zeros(3), torch.zeros, object()):
        with pytest.raises(TorchFileError):
            _described(pickle.dumps(value, protocol))


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
def test_published_tensors_are_read_in_place(key):
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
        PLAIN.half(),
        PLAIN.bfloat16(),
        PLAIN.int(),
    ],
    ids=["part of a larger storage", "a gradient wanted", "float64", "float16", "bfloat16", "int"],
)
def test_other_numbers_become_float32(value):
    found, _ = pixels(saved(value), "s5p_co", (2,))
    assert {image.dtype for image in found} == {np.dtype("float32")}
    np.testing.assert_array_equal(found, value.detach().float())
