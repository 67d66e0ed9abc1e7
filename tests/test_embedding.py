import threading
import time
from dataclasses import dataclass

import numpy as np
import pytest
from stub import StubEncoder

from copcube.embedding.partition import Batch, cropped, embed_partition, metadata
from copcube.errors import ImageError
from copcube.images import Image, Partition, Rejected
from copcube.modalities import MODALITIES, ORDER, modality
from copcube.selection import Selection

CELL = 772176
EVERY = Selection.of()
SIZES = dict.fromkeys(MODALITIES, 4)


def image(key="s5p_co", *, local=None, date="20210101", value=1.0, grid_id=CELL):
    m = modality(key)
    pixels = np.full(m.shape, value, dtype="float32" if key != "s2_toa" else "uint16")
    return Image(grid_id, key, local, date, -96.0, 44.0, pixels, f"{key}/{local}/{date}.tif")


@dataclass
class ListSource:
    """A source whose jobs give what is on a list."""

    items: list
    decoding: int = 0
    most: int = 0
    delay: float = 0.0
    root: str = "memory"
    layout: str = "geotiff"

    def __post_init__(self):
        self.lock = threading.Lock()

    def jobs(self, partition, selection):
        for item in self.items:
            yield item if isinstance(item, Rejected) else self.job(item)

    def job(self, item):
        def decode():
            with self.lock:
                self.decoding += 1
                self.most = max(self.most, self.decoding)
            time.sleep(self.delay * np.random.default_rng().random())
            return [item]

        return decode


def embed(items, encoder=None, **options):
    source = ListSource(items) if isinstance(items, list) else items
    options = {"selection": EVERY, "batch_sizes": SIZES} | options
    return embed_partition(source, Partition("p", ()), encoder or StubEncoder(), **options)


def months(n, key="s5p_co"):
    return [image(key, date=f"2021{i + 1:02d}01", value=float(i)) for i in range(n)]


def test_every_image_becomes_one_row():
    items = [*months(6), image("dem", date=None, value=3.0)]
    rows, tally = embed(items)
    assert tally.images == {"s5p_co": 6, "dem": 1}
    assert list(rows.date) == [f"2021{i:02d}01" for i in range(1, 7)] + [None]
    assert list(rows.modality) == [ORDER["s5p_co"]] * 6 + [ORDER["dem"]]
    assert list(rows.embedding[:, 0]) == [0, 1, 2, 3, 4, 5, 3]


def test_batches_hold_one_modality_and_keep_the_size_asked_for():
    encoder = StubEncoder()
    embed([*months(9), *months(3, "s5p_o3")], encoder, threads=3)
    sizes = [(key, shape[0]) for key, shape in encoder.calls]
    assert sizes == [("s5p_co", 4), ("s5p_co", 4), ("s5p_co", 1), ("s5p_o3", 3)]


def test_vectors_that_are_not_finite_are_rejected_with_their_image():
    class Overflowing(StubEncoder):
        def __call__(self, modality, pixels, metadata):
            vectors = super().__call__(modality, pixels, metadata)
            return np.where(np.abs(vectors[:, :1]) > 1e30, np.nan, vectors)

    items = [*months(6), image("dem", date=None, value=-3.4e38)]
    items[1] = image(date="20210201", value=2e38)
    rows, tally = embed(items, Overflowing())
    assert list(rows.embedding[:, 0]) == [0, 2, 3, 4, 5]
    assert list(rows.date) == ["20210101", *(f"2021{i:02d}01" for i in range(3, 7))]
    assert [(r.file, r.kind) for r in tally.rejected] == [
        ("s5p_co/None/20210201.tif", "broken"),
        ("dem/None/None.tif", "broken"),
    ]
    assert "its pixels are from -3.4e+38 to -3.4e+38" in tally.rejected[1].reason
    with pytest.raises(ImageError, match=r"20210201\.tif: its vector holds values"):
        embed(items, Overflowing(), strict=True)


def test_batches_do_not_depend_on_how_modalities_alternate():
    one, other = months(9), months(9, "s5p_o3")
    apart, together = StubEncoder(), StubEncoder()
    rows, _ = embed([*one, *other], apart)
    mixed, _ = embed([item for pair in zip(other, one, strict=True) for item in pair], together)
    rows, mixed = rows.sorted(), mixed.sorted()  # as in the file; before, batch by batch
    assert sorted(apart.calls) == sorted(together.calls)
    assert len(apart.calls) == 6
    np.testing.assert_array_equal(rows.embedding, mixed.embedding)


@pytest.mark.parametrize("times", [1, 2, 3])
def test_what_cannot_be_read_is_read_again(monkeypatch, times):
    monkeypatch.setattr("copcube.embedding.partition.PAUSES", (0.0, 0.0))
    failures = []

    class Flaky(ListSource):
        def job(self, item):
            def decode():
                if len(failures) < times:
                    failures.append(item)
                    raise OSError(5, "Input/output error")
                return [item]

            return decode

    if times < 3:
        rows, tally = embed(Flaky(months(1)), threads=1)
        assert len(rows) == 1
        assert tally.rejected == []
    else:
        with pytest.raises(OSError, match="Input/output error"):
            embed(Flaky(months(1)), threads=1)
    assert len(failures) == times


def test_several_streams_change_nothing():
    class Wide(StubEncoder):
        streams = 3

    rows, tally = embed(months(12))
    wide, same = embed(months(12), Wide(seconds=0.001))
    np.testing.assert_array_equal(rows.embedding, wide.embedding)
    assert list(rows.date) == list(wide.date)
    assert tally.images == same.images


def test_timing_changes_nothing():
    alone, _ = embed(months(12), threads=1)
    for _ in range(3):
        together, _ = embed(ListSource(months(12), delay=0.005), threads=4)
        np.testing.assert_array_equal(alone.embedding, together.embedding)
        assert list(alone.date) == list(together.date)


def test_decoding_runs_ahead_but_not_away():
    source = ListSource(months(12) * 5)
    encoder = StubEncoder()
    decoded_at_call = []
    inner = encoder.__class__.__call__

    class Watching(StubEncoder):
        def __call__(self, *args):
            decoded_at_call.append(source.decoding)
            return inner(self, *args)

    embed(source, Watching(seconds=0.002), threads=2)
    ahead = np.array(decoded_at_call) - 4 * np.arange(1, len(decoded_at_call) + 1)
    assert ahead.max() <= 2 * 2 + 1
    assert decoded_at_call[-1] == 60


def test_crop_takes_the_middle():
    s2 = modality("s2_toa")
    pixels = np.arange(264 * 264).reshape(1, 264, 264)
    middle = cropped(pixels, s2, "center")
    assert middle.shape == (1, 224, 224)
    np.testing.assert_array_equal(middle, pixels[:, 20:244, 20:244])
    assert cropped(pixels, s2, "full") is pixels


def test_crop_reaches_the_encoder():
    for crop, side in (("center", 224), ("full", 264)):
        encoder = StubEncoder()
        embed([image("s2_toa", value=7)], encoder, crop=crop)
        assert encoder.calls == [("s2_toa", (1, 13, side, side))]


def test_rows_come_batch_by_batch():
    rows, _ = embed([image("s5p_o3"), *months(5), image("dem", date=None)])
    keys = [*["s5p_co"] * 4, "s5p_co", "s5p_o3", "dem"]
    assert list(rows.modality) == [ORDER[key] for key in keys]
    assert list(rows.date[:5]) == [f"2021{i:02d}01" for i in range(1, 6)]


def test_seconds_are_measured_step_by_step():
    _, report = embed(ListSource(months(4), delay=0.01), StubEncoder(seconds=0.005), threads=1)
    assert report.encoding >= 4 * 0.005
    assert report.decoding > 0
    assert 0 < report.waiting < 60


@pytest.mark.parametrize("streams", [1, 3])
@pytest.mark.parametrize("failing", ["decoding", "encoding"])
def test_an_error_ends_all_threads(streams, failing):
    """As Ctrl-C does; what was not begun is not begun any more."""

    class Interrupted(StubEncoder):
        def __call__(self, *args):
            if failing == "encoding":
                raise KeyboardInterrupt
            return super().__call__(*args)

    class Source(ListSource):
        def job(self, item):
            decode = super().job(item)

            def call():
                if failing == "decoding" and self.decoding == 6:
                    raise KeyboardInterrupt
                return decode()

            return call

    encoder, source = Interrupted(), Source(months(12) * 5)
    encoder.streams = streams
    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt) as caught:
        embed(source, encoder, threads=2)
    assert caught.traceback  # which holds the frames, as a debugger or a logger does
    assert threading.active_count() == before
    assert source.decoding < 40


def test_an_image_whose_crop_is_empty_is_left_out():
    pixels = np.zeros((13, 264, 264), dtype="uint16")
    pixels[:, :10] = 500
    border = Image(CELL, "s2_toa", "l", "20210101", 0.0, 0.0, pixels, "a.tif")
    rows, tally = embed([border])
    assert len(rows) == 0
    assert [r.kind for r in tally.rejected] == ["empty"]
    rows, tally = embed([border], crop="full")
    assert len(rows) == 1


def test_metadata():
    assert metadata(image("s5p_co"), modality("s5p_co")) == (-96.0, 44.0, 18628.0, 16.0)
    lon, lat, days, area = metadata(image("dem", date=None), modality("dem"))
    assert (lon, lat, days) == (-96.0, 44.0, 16436.0)
    assert area == pytest.approx(3.6864)
    batch = Batch.of(months(2), MODALITIES["s5p_co"])
    assert batch.metadata.dtype == np.float64
    assert batch.metadata.shape == (2, 4)


def test_rejected_images_are_kept_account_of():
    bad = Rejected("x.tif", "", "broken", "expected 13 bands, found 3")
    rows, tally = embed([months(1)[0], bad, *months(3)[1:]])
    assert len(rows) == 3
    assert tally.rejected == [bad]


def test_strict_stops_at_a_broken_image_only():
    duplicate = Rejected("y.tif", "", "duplicate", "same patch and date")
    rows, _ = embed([duplicate, *months(1)], strict=True)
    assert len(rows) == 1
    bad = Rejected("x.tif", "", "broken", "expected 13 bands, found 3")
    with pytest.raises(ImageError, match=r"x\.tif: expected 13 bands, found 3"):
        embed([*months(1), bad], strict=True)


def test_nothing_gives_no_rows():
    rows, tally = embed([])
    assert rows.embedding.shape == (0, 8)
    assert tally.images == {}
