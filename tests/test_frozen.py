"""Stored images through the encoder: normalisation, what counts as missing, memory, devices."""

import contextlib
import logging
import math
import pickle
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partialmethod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from builds_helpers import SOAK
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from copcube.embedding import as_encoder
from copcube.encoder import (
    CopernicusFM,
    EncoderSpec,
    FrozenEncoder,
    TimmSpec,
    Weights,
    devices,
    frozen,
)
from copcube.errors import OptionError, WeightsError
from copcube.modalities import MODALITIES, Modality

SIZES = {key: 2 * modality.kernel for key, modality in MODALITIES.items()}
"""Small images: two tokens a side."""


def weights(trained: int = 1, depth: int = 2) -> Weights:
    torch.manual_seed(0)
    model = CopernicusFM(embed_dim=64, depth=depth, heads=2).eval()
    keys = [m.language_key for m in MODALITIES.values() if m.language_key]
    provenance: dict[str, str | int] = {
        "encoder": "tiny",
        "encoder_trained": trained,
        "encoder_weights": "by hand",
    }
    return Weights(model, {key: torch.randn(2048) for key in keys}, provenance)


TINY = weights()


@pytest.fixture(scope="module")
def encoder() -> FrozenEncoder:
    return FrozenEncoder(TINY, device="cpu", dtype="float32")


def typical(key: str, batch: int = 2, seed: int = 0) -> NDArray[np.float32]:
    """Images with the statistics of their modality, (batch, bands, rows, columns)."""
    modality = MODALITIES[key]
    scale, mean, std = (
        np.array(values)[:, None, None] for values in (modality.scale, modality.mean, modality.std)
    )
    shape = batch, len(modality.bands), SIZES[key], SIZES[key]
    noise = np.random.default_rng(seed).standard_normal(shape)
    return ((noise * std + mean) / scale).astype(np.float32)


def places(key: str, batch: int = 2) -> NDArray[np.float64]:
    return np.array([(11.5, 48.25, 18628.0, MODALITIES[key].token_area)] * batch)


def expected(key: str, normalised: NDArray[Any]) -> NDArray[np.float32]:
    """What the model makes of images that are normalised already."""
    modality = MODALITIES[key]
    words = TINY.language.get(modality.language_key or "")
    with torch.no_grad():
        vectors = TINY.model(
            torch.from_numpy(normalised.astype(np.float32)),
            torch.from_numpy(places(key, len(normalised))),
            wavelengths=modality.wavelengths,
            bandwidths=modality.bandwidths,
            language_embedding=words,
            kernel_size=modality.kernel,
        )
    return np.asarray(vectors)


def normalised(key: str, pixels: NDArray[Any]) -> NDArray[np.float64]:
    modality = MODALITIES[key]
    scale, mean, std = (
        np.array(values)[:, None, None] for values in (modality.scale, modality.mean, modality.std)
    )
    return (pixels.astype(np.float64) * scale - mean) / std


# --- normalisation


@pytest.mark.parametrize("key", MODALITIES)
def test_is_the_model_of_normalised_images(encoder: FrozenEncoder, key: str) -> None:
    pixels = typical(key)
    found = encoder(key, pixels, places(key))
    assert found.shape == (2, encoder.dim)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected(key, normalised(key, pixels)), atol=1e-5)


def test_normalised_images_on_the_device_are_embedded_as_they_are(encoder: FrozenEncoder) -> None:
    images = normalised("s2_toa", typical("s2_toa")).astype(np.float32)
    rows = torch.from_numpy(places("s2_toa"))
    found = encoder.embed_normalised("s2_toa", torch.from_numpy(images), rows)
    assert not found.requires_grad
    np.testing.assert_array_equal(found, expected("s2_toa", images))


@pytest.mark.parametrize("dtype", ["<i2", "<u2", ">i2", ">u2", "<f4", ">f4", "<f8", "<i4", "u1"])
def test_takes_any_stored_dtype(encoder: FrozenEncoder, dtype: str) -> None:
    pixels = np.random.default_rng(0).integers(1, 256, (2, 13, 32, 32)).astype(dtype)
    found = encoder("s2_toa", pixels, places("s2_toa"))
    np.testing.assert_allclose(found, expected("s2_toa", normalised("s2_toa", pixels)), atol=1e-5)


@settings(deadline=None, max_examples=25)
@given(
    pixels=st.sampled_from([np.int16, np.uint16]).flatmap(
        lambda dtype: hnp.arrays(dtype, (1, 13, 2, 3), elements=hnp.from_dtype(np.dtype(dtype)))
    )
)
def test_integers_keep_their_value(pixels: NDArray[Any]) -> None:
    """Also below 0 as int16 and above 32767 as uint16."""
    encoder = FrozenEncoder(TINY, device="cpu", dtype="float32")
    kind = replace(MODALITIES["s2_toa"], mean=(0.0,) * 13, std=(1.0,) * 13, zero_is_missing=False)
    statistics = torch.tensor([kind.scale, kind.mean, kind.std])[..., None, None]
    found = frozen._normalised(*encoder._packed(pixels), kind, statistics)
    np.testing.assert_array_equal(found.numpy(), pixels.astype(np.float32))


def test_leaves_the_callers_arrays_alone(encoder: FrozenEncoder) -> None:
    pixels = typical("s1_grd")
    pixels[0, 0, 0, 0] = np.nan
    before = pixels.copy()
    pixels.flags.writeable = False  # as of a memory-mapped file; torch would warn
    rows = places("s1_grd")
    rows.flags.writeable = False
    once = encoder("s1_grd", pixels, rows)
    np.testing.assert_array_equal(pixels, before)
    np.testing.assert_array_equal(encoder("s1_grd", pixels[:, :, ::-1][:, :, ::-1], rows), once)


# --- what is missing counts as average


@pytest.mark.parametrize("key", MODALITIES)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_not_finite_is_average(encoder: FrozenEncoder, key: str, value: float) -> None:
    pixels = typical(key)
    pixels[0, -1, 3:9, 2:5] = value
    average = normalised(key, pixels)
    average[0, -1, 3:9, 2:5] = 0
    found = encoder(key, pixels, places(key))
    np.testing.assert_allclose(found, expected(key, average), atol=1e-5)


def test_too_large_for_float32_is_missing(encoder: FrozenEncoder) -> None:
    pixels = typical("s1_grd").astype(np.float64)
    pixels[1, 0, 4:9, 4:9] = 1e300
    average = normalised("s1_grd", pixels)
    average[1, 0, 4:9, 4:9] = 0
    found = encoder("s1_grd", pixels, places("s1_grd"))
    np.testing.assert_allclose(found, expected("s1_grd", average), atol=1e-5)


@pytest.mark.parametrize("dtype", [np.int16, np.uint16, np.float32])
def test_zero_in_every_band_of_s2_is_missing(encoder: FrozenEncoder, dtype: Any) -> None:
    pixels = np.abs(typical("s2_toa")).clip(1).astype(dtype)
    pixels[0, :, 3:9, 2:5] = 0
    pixels[1, :12, 3:9, 2:5] = 0  # band B12 saw something: a real zero
    average = normalised("s2_toa", pixels)
    average[0, :, 3:9, 2:5] = 0
    found = encoder("s2_toa", pixels, places("s2_toa"))
    np.testing.assert_allclose(found, expected("s2_toa", average), atol=1e-5)


@pytest.mark.parametrize("key", ["s1_grd", "s3_olci", "s5p_no2", "dem"])
def test_zero_is_a_value_elsewhere(encoder: FrozenEncoder, key: str) -> None:
    assert not MODALITIES[key].zero_is_missing
    pixels = typical(key)
    pixels[0, :, 3:9, 2:5] = 0
    found = encoder(key, pixels, places(key))
    np.testing.assert_allclose(found, expected(key, normalised(key, pixels)), atol=1e-5)


# --- what is made once


def own_sensor(wavelength: float) -> Modality:
    """A sensor of one's own, with one band."""
    return replace(
        MODALITIES["s1_grd"],
        key="general",
        bands=("one",),
        wavelengths=(wavelength,),
        bandwidths=(50.0,),
        scale=(1.0,),
        mean=(0.0,),
        std=(1.0,),
    )


def test_kernels_and_positions_are_made_once_a_modality(monkeypatch: pytest.MonkeyPatch) -> None:
    source = weights()
    encoder = FrozenEncoder(source, device="cpu", dtype="float32")
    made: list[str] = []
    for name in ("patch_embed_spectral", "patch_embed_variable"):
        source.model.get_submodule(name).register_forward_hook(
            lambda *_, name=name: made.append(name)
        )
    positions = source.model.positions
    monkeypatch.setattr(
        source.model, "positions", lambda *grid: made.append("positions") or positions(*grid)
    )
    for number in (2, 3, 1):
        for key in ("s1_grd", "dem"):
            encoder(key, typical(key, number), places(key, number))
    assert made == ["patch_embed_spectral", "positions", "patch_embed_variable", "positions"]
    assert not any(isinstance(v, torch.Tensor) for v in vars(source.model).values())


def test_what_was_made_is_told_apart_and_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frozen, "_MOST_PREPARED", 3)
    encoder = FrozenEncoder(TINY, device="cpu", dtype="float32")
    rows = places("s1_grd", 1)
    calls = [(own_sensor(400.0 + 50 * i), side) for i in range(3) for side in (32, 48)]
    images = {side: typical("s1_grd", 1)[:, :1].repeat(2, 2)[..., :side] for side in (32, 48)}
    images = {side: image.repeat(2, 3)[..., :side, :] for side, image in images.items()}
    first = [encoder(sensor, images[side], rows) for sensor, side in calls]
    again = [encoder(sensor, images[side], rows) for sensor, side in calls]
    assert len(encoder._prepared) <= 3
    np.testing.assert_array_equal(again, first)
    assert len(np.unique(np.concatenate(first), axis=0)) == len(calls)


# --- arguments


def test_arguments_that_do_not_fit(encoder: FrozenEncoder) -> None:
    with pytest.raises(OptionError, match=r"unknown modality 's2_to'.*did you mean 's2_toa'"):
        encoder("s2_to", typical("s2_toa"), places("s2_toa"))
    with pytest.raises(OptionError, match=r"unknown modality 's4'"):
        encoder.batch_size("s4", 224)
    with pytest.raises(OptionError, match=r"s2_toa images have shape \(2, 32, 32\).*13"):
        encoder("s2_toa", typical("s1_grd"), places("s2_toa"))
    with pytest.raises(OptionError, match=r"metadata of 2 images has shape \(3, 4\)"):
        encoder("s1_grd", typical("s1_grd"), places("s1_grd", 3))
    with pytest.raises(OptionError, match="longitude of image 1 is 200"):
        encoder("s1_grd", typical("s1_grd"), places("s1_grd") + np.array([[0], [188.5]]))


def test_no_images(encoder: FrozenEncoder) -> None:
    assert encoder("s1_grd", typical("s1_grd", 0), np.empty((0, 4))).shape == (0, 64)


def test_a_variable_without_its_language_embedding() -> None:
    bare = FrozenEncoder(Weights(TINY.model, {}, TINY.provenance), device="cpu")
    with pytest.raises(WeightsError, match=r"dem needs .*'Copernicus Digital.*none.*leave dem out"):
        bare("dem", typical("dem"), places("dem"))
    assert bare("s1_grd", typical("s1_grd"), places("s1_grd")).shape == (2, 64)


# --- batches and memory


@pytest.mark.parametrize("key", ["s1_grd", "dem"])
def test_a_vector_does_not_depend_on_its_batch(encoder: FrozenEncoder, key: str) -> None:
    pixels, rows = typical(key, 5), places(key, 5)
    together = encoder(key, pixels, rows)
    alone = [encoder(key, pixels[i : i + 1], rows[i : i + 1]) for i in range(5)]
    np.testing.assert_allclose(together, np.concatenate(alone), atol=1e-5)
    np.testing.assert_array_equal(encoder(key, pixels, rows), together)


def test_images_may_come_one_by_one_and_from_several_threads(encoder: FrozenEncoder) -> None:
    pixels, rows = typical("s2_toa", 6), places("s2_toa", 6)
    whole = encoder("s2_toa", pixels, rows)
    np.testing.assert_array_equal(encoder("s2_toa", list(pixels), rows), whole)
    same = [image.clip(0, 30_000).astype(np.uint16) for image in pixels]
    mixed = [image.astype(np.int16) if i % 2 else image for i, image in enumerate(same)]
    np.testing.assert_allclose(
        encoder("s2_toa", mixed, rows), encoder("s2_toa", same, rows), atol=1e-6
    )
    with ThreadPoolExecutor(4) as pool:
        found = pool.map(lambda _: encoder("s2_toa", pixels, rows), range(8))
        for vectors in found:
            np.testing.assert_array_equal(vectors, whole)
    with pytest.raises(OptionError, match=r"expected one shape, \(13, rows, columns\)"):
        encoder("s2_toa", [pixels[0], pixels[1][:, :16]], rows[:2])


@pytest.mark.slow
@pytest.mark.parametrize(
    "backend",
    [
        "aot_eager",
        pytest.param(
            "inductor",
            marks=pytest.mark.skipif(
                not SOAK or shutil.which("g++") is None, reason="make soak compiles, with g++"
            ),
        ),
    ],
)
def test_compiled_once_for_batches_of_any_size(
    monkeypatch: pytest.MonkeyPatch, backend: str
) -> None:
    by_backend = partialmethod(torch.nn.Module.compile, backend=backend)
    monkeypatch.setattr(torch.nn.Module, "compile", by_backend)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    shallow = weights(depth=1)
    encoder = FrozenEncoder(shallow, device="cpu", dtype="float32")
    compiled = FrozenEncoder(shallow, device="cpu", dtype="float32", compile=True)
    for number in (5, 8, 3, 11, 2, 7):
        for key in ("s1_grd", "s5p_co"):
            found = compiled(key, typical(key, number), places(key, number))
            expected = encoder(key, typical(key, number), places(key, number))
            np.testing.assert_allclose(found, expected, atol=1e-5)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 2


class SmallDevice:
    """A model on a device that holds no more than so many images."""

    embed_dim = 1
    refusal: RuntimeError = torch.OutOfMemoryError("CUDA out of memory")

    def __init__(self, room: int) -> None:
        self.room = room
        self.batches: list[int] = []

    def kernel(self, **_: Any) -> None:
        pass

    def positions(self, height: int, width: int) -> None:
        pass

    def encode(
        self,
        images: torch.Tensor,
        metadata: torch.Tensor,
        *_: None,
        tokens: bool,
        levels: tuple[int, ...],
    ) -> torch.Tensor:
        self.batches.append(len(images))
        if len(images) > self.room:
            raise self.refusal
        return metadata[:, :1].float()


def small_device(room: int) -> tuple[FrozenEncoder, SmallDevice]:
    model = SmallDevice(room)
    encoder = FrozenEncoder(
        Weights(model, {}, TINY.provenance),  # type: ignore[arg-type]
        device="cpu",
        dtype="float32",
    )
    return encoder, model


def test_out_of_memory_halves_the_batch(caplog: pytest.LogCaptureFixture) -> None:
    encoder, model = small_device(room=3)
    rows = np.column_stack([np.arange(11.0), np.zeros((11, 3))])
    found = encoder("s1_grd", typical("s1_grd", 11), rows)
    assert found[:, 0].tolist() == list(range(11))
    assert model.batches == [11, 6, 3, 3, 3, 2]
    assert "s1_grd: out of memory, continuing with batches of 3" in caplog.messages
    encoder("s1_grd", typical("s1_grd", 11), rows)  # it has learned
    assert model.batches[6:] == [3, 3, 3, 2]


def test_out_of_memory_with_one_image() -> None:
    encoder, model = small_device(room=0)
    with pytest.raises(torch.OutOfMemoryError) as error:
        encoder("s1_grd", typical("s1_grd"), places("s1_grd"))
    assert error.value.__notes__ == ["one s1_grd image of (32, 32) pixels does not fit in memory"]
    assert model.batches == [2, 1]


def test_out_of_memory_on_the_processor() -> None:
    encoder, model = small_device(room=1)
    model.refusal = RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")
    assert len(encoder("s1_grd", typical("s1_grd"), places("s1_grd"))) == 2
    model.room = 0
    with pytest.raises(MemoryError, match=r"one s1_grd image of \(32, 32\) pixels does not fit"):
        encoder("s1_grd", typical("s1_grd"), places("s1_grd"))
    model.refusal = RuntimeError("something else")
    with pytest.raises(RuntimeError, match="something else"):
        encoder("s1_grd", typical("s1_grd"), places("s1_grd"))


def test_batch_size_on_the_cpu(encoder: FrozenEncoder) -> None:
    found = {key: encoder.batch_size(key, m.input_size) for key, m in MODALITIES.items()}
    gases = dict.fromkeys(["s5p_co", "s5p_no2", "s5p_o3", "s5p_so2"], 32)
    assert found == {"s1_grd": 8, "s2_toa": 8, "s3_olci": 11, "dem": 7} | gases
    assert encoder.batch_size("s2_toa", 10_000) == 1
    assert encoder.batch_size("s5p_co", 4) == 64


def test_batch_size_on_a_gpu() -> None:
    def size(memory: int, dtype: torch.dtype = torch.bfloat16) -> int:
        return devices._cuda_batch(memory, 13 * 224**2, 197 * 768, dtype)

    gibibyte = 2**30
    assert size(139 * gibibyte) == 256
    assert size(8 * gibibyte) == 128
    assert size(8 * gibibyte, torch.float32) == 64
    assert size(1000) == 1
    for memory in np.geomspace(2**20, 2**40, 50).astype(int).tolist():
        assert size(memory).bit_count() == 1
        assert size(memory) <= size(2 * memory) <= 2 * size(memory)


# --- devices, dtypes, provenance


@pytest.mark.parametrize(
    ("flags", "dtype"),
    [
        ("flags : fpu avx2 avx512f", torch.float32),
        ("flags : fpu avx512_bf16", torch.bfloat16),
        ("flags : amx_bf16 amx_tile", torch.bfloat16),
        (None, torch.float32),
    ],
)
def test_bfloat16_only_where_the_cpu_multiplies_it(
    flags: str | None,
    dtype: torch.dtype,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    info = tmp_path / "cpuinfo"
    if flags is not None:
        info.write_text(flags)
    monkeypatch.setattr(devices, "_CPU_INFO", info)
    assert FrozenEncoder(TINY, device="cpu").dtype == dtype
    said = [r.levelname for r in caplog.records if "bfloat16" in r.getMessage()]
    assert said == (["WARNING"] if dtype == torch.bfloat16 else [])
    caplog.clear()
    for chosen in ("bfloat16", "float32"):
        FrozenEncoder(TINY, device="cpu", dtype=chosen)
    assert "bfloat16" not in caplog.text


def test_bfloat16_leaves_the_weights_alone(encoder: FrozenEncoder) -> None:
    half = FrozenEncoder(TINY, device="cpu", dtype="bfloat16")
    inputs = "s2_toa", typical("s2_toa"), places("s2_toa")
    exact, rounded = encoder(*inputs), half(*inputs)
    assert {p.dtype for p in TINY.model.parameters()} == {torch.float32}
    cosine = (exact * rounded).sum(1) / np.linalg.norm(exact, axis=1)
    assert np.all(cosine / np.linalg.norm(rounded, axis=1) > 0.999)
    assert not np.array_equal(exact, rounded)
    assert half.provenance["encoder_dtype"] == "bfloat16"


@contextlib.contextmanager
def on_meta() -> Iterator[None]:
    torch.set_default_device("meta")
    try:
        yield
    finally:
        torch.set_default_device(None)


@contextlib.contextmanager
def in_bfloat16() -> Iterator[None]:
    torch.set_default_dtype(torch.bfloat16)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize(
    "changed",
    [on_meta, in_bfloat16, lambda: torch.autocast("cpu", dtype=torch.bfloat16)],
    ids=["meta", "dtype", "auto"],
)
def test_what_somebody_else_told_torch_changes_nothing(
    tmp_path: Path, changed: Callable[[], contextlib.AbstractContextManager[Any]]
) -> None:
    torch.save(TINY.model.state_dict(), tmp_path / "tiny.pth")
    spec = EncoderSpec(str(tmp_path / "tiny.pth"), device="cpu", dtype="float32")
    expected = spec.load()("s1_grd", typical("s1_grd"), places("s1_grd"))
    with changed():
        found = spec.load()("s1_grd", typical("s1_grd"), places("s1_grd"))
    assert np.array_equal(found, expected)


def test_names_of_devices_and_dtypes_are_refused_at_once() -> None:
    with pytest.raises(OptionError, match="device is 'tpu'; expected auto, cpu, cuda or cuda:N"):
        EncoderSpec("untrained:0", device="tpu")
    with pytest.raises(OptionError, match="dtype is 'half'; expected auto, float32 or bfloat16"):
        TimmSpec("dinov2", dtype="half")


def test_devices_and_dtypes_that_cannot_be_had() -> None:
    for device in ("tpu", "mps", "cpu0"):
        with pytest.raises(OptionError, match=f"device is '{device}'; expected auto, cpu, cuda"):
            FrozenEncoder(TINY, device=device)
    with pytest.raises(OptionError, match=r"device is 'cuda:99', but torch .* sees \d+ CUDA"):
        FrozenEncoder(TINY, device="cuda:99")
    with pytest.raises(OptionError, match="dtype is 'float16'; expected auto, float32 or bfloat16"):
        FrozenEncoder(TINY, dtype="float16")


def test_provenance(encoder: FrozenEncoder) -> None:
    assert encoder.provenance == TINY.provenance | {
        "encoder_dtype": "float32",
        "encoder_device": "cpu",
    }
    encoder.provenance["encoder"] = "another"
    assert encoder.provenance["encoder"] == "tiny"


def test_untrained_weights_are_loud(caplog: pytest.LogCaptureFixture) -> None:
    FrozenEncoder(weights(trained=1), device="cpu", dtype="float32")
    assert not caplog.records
    FrozenEncoder(weights(trained=0), device="cpu", dtype="float32")
    assert [(record.name, record.levelno) for record in caplog.records] == [
        ("copcube", logging.WARNING)
    ]
    assert "UNTRAINED WEIGHTS (by hand): the numbers mean nothing" in caplog.text


def test_spec_is_small_and_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def load_weights(*arguments: Any, **options: Any) -> Weights:
        asked.append((arguments, options))
        return TINY

    monkeypatch.setattr("copcube.encoder.weights.load_weights", load_weights)
    spec = EncoderSpec("untrained:7", language="words.pt", pooling="mean", dtype="bfloat16")
    sent = pickle.dumps(spec)
    assert len(sent) < 1000
    assert pickle.loads(sent) == spec
    encoder = spec.load()
    assert asked == [(("untrained:7",), {"language": "words.pt", "pooling": "mean"})]
    assert encoder.dtype == torch.bfloat16

    sent = pickle.dumps(encoder)  # its spec, and no weights
    assert len(sent) < 1000
    revived = pickle.loads(sent)
    assert len(asked) == 2
    assert isinstance(revived, FrozenEncoder)
    assert revived.spec == encoder.spec == spec
    assert revived.provenance == encoder.provenance
    shared = as_encoder(encoder)
    assert pickle.loads(pickle.dumps(shared)) == shared
    np.testing.assert_array_equal(
        shared("s1_grd", typical("s1_grd"), places("s1_grd")),
        encoder("s1_grd", typical("s1_grd"), places("s1_grd")),
    )
    assert len(asked) == 2  # the process has it already


def test_an_encoder_of_weights_in_memory_stays_where_it_is(encoder: FrozenEncoder) -> None:
    with pytest.raises(OptionError, match="cannot be sent to other processes; give an EncoderSpec"):
        pickle.dumps(encoder)


class Timeline:
    """Stands in for `torch.cuda`: what streams and events are told, in order."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def stream(self, name: str) -> Any:
        timeline = self

        class Stream:
            def record_event(self) -> str:
                timeline.told.append(f"{name} records")
                return f"the event of {name}"

            def wait_event(self, event: str) -> None:
                timeline.told.append(f"{name} waits for {event}")

            def __repr__(self) -> str:
                return name

        return Stream()

    def event(self, **_: Any) -> Any:
        timeline = self

        class Event:
            def record(self, stream: Any) -> None:
                timeline.told.append(f"{stream} records the end")

            def synchronize(self) -> None:
                timeline.told.append("the thread waits for the end")

        return Event()


def on_a_timeline(monkeypatch: pytest.MonkeyPatch) -> tuple[FrozenEncoder, Timeline]:
    """An encoder that takes the steps of a GPU, on the CPU."""
    encoder, timeline = FrozenEncoder(TINY, device="cpu", dtype="float32"), Timeline()
    encoder._copying = timeline.stream("copying")
    computing, empty = timeline.stream("computing"), torch.empty

    def pinned(*shape: Any, pin_memory: bool = False, **options: Any) -> torch.Tensor:
        if pin_memory:
            timeline.told.append("pins")
        return empty(*shape, **options)

    def kept_until(_: torch.Tensor, stream: Any) -> None:
        timeline.told.append(f"pixels are kept for {stream}")

    monkeypatch.setattr(torch, "empty", pinned)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: computing)
    monkeypatch.setattr(torch.cuda, "Event", timeline.event)
    monkeypatch.setattr(torch.Tensor, "record_stream", kept_until)
    return encoder, timeline


def test_on_a_gpu_computing_waits_for_the_copy_and_the_thread_for_the_vectors(
    encoder: FrozenEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = encoder("s1_grd", typical("s1_grd"), places("s1_grd"))
    steps, timeline = on_a_timeline(monkeypatch)
    found = steps("s1_grd", typical("s1_grd"), places("s1_grd"))
    np.testing.assert_array_equal(found, expected)
    assert timeline.told == [
        "pins",
        "copying records",
        "computing waits for the event of copying",
        "pixels are kept for computing",
        "pins",
        "computing records the end",
        "the thread waits for the end",
    ]


def test_threads_of_a_gpu_do_not_mix_their_batches(
    encoder: FrozenEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches = [typical("s3_olci", 3, seed) for seed in range(8)]
    expected = [encoder("s3_olci", batch, places("s3_olci", 3)) for batch in batches]
    steps, _ = on_a_timeline(monkeypatch)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda batch: steps("s3_olci", batch, places("s3_olci", 3)), batches))
    np.testing.assert_array_equal(found, expected)


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("key", MODALITIES)
def test_gpu_agrees_and_waits_only_for_the_result(encoder: FrozenEncoder, key: str) -> None:
    gpu = FrozenEncoder(TINY, device="cuda", dtype="float32")
    pixels = np.abs(typical(key)).astype("u2" if key == "s2_toa" else "f4")
    rows = places(key)
    rows[1] = math.nan
    np.testing.assert_allclose(gpu(key, pixels, rows), encoder(key, pixels, rows), atol=1e-4)
    first = gpu(key, pixels, rows)
    try:
        torch.cuda.set_sync_debug_mode("error")
        again = gpu(key, pixels, rows)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    np.testing.assert_array_equal(again, first)
