"""Vectors straight from pages: the same as arrow's, whoever wrote the file."""

import tracemalloc

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from copcube.errors import RowsError
from copcube.files import limits
from copcube.rows import map_vectors, row_group_sizes, vectors
from copcube.rows.pages import _hybrid

KINDS = {
    "list": lambda flat, dim: pa.FixedSizeListArray.from_arrays(flat, dim).cast(
        pa.list_(pa.float32())
    ),
    "large": lambda flat, dim: pa.FixedSizeListArray.from_arrays(flat, dim).cast(
        pa.large_list(pa.float32())
    ),
    "fixed": pa.FixedSizeListArray.from_arrays,
}


def write(path, x, kind="list", name="embedding", **options):
    """Write vectors as a column."""
    column = KINDS[kind](pa.array(x.reshape(-1)), x.shape[1])
    pq.write_table(pa.table({name: column}), path, **options)


def read(path, wanted=None, threads=0):
    """Wanted vectors, (n, D)."""
    groups = range(len(sizes := row_group_sizes(path)))
    wanted = np.ones(sum(sizes), bool) if wanted is None else wanted
    blocks = list(map_vectors(lambda *b: b, path, groups, wanted, threads=threads))
    starts = np.cumsum([0, *(len(block) for _, block in blocks)])
    assert [start for start, _ in blocks] == starts[:-1].tolist()
    return np.concatenate([block for _, block in blocks])


@pytest.fixture
def decoded(monkeypatch):
    """How many blocks were decoded here, and how many by arrow."""
    count = {"pages": 0, "arrow": 0}
    decode, batches = vectors.decode, vectors._batches

    def counted(name, function):
        def call(*arguments):
            count[name] += 1
            return function(*arguments)

        return call

    monkeypatch.setattr(vectors, "decode", counted("pages", decode))
    monkeypatch.setattr(vectors, "_batches", counted("arrow", batches))
    return count


@pytest.mark.slow
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_every_form_gives_what_was_written(tmp_path, decoded, data):
    draw = data.draw
    dim, n = draw(st.integers(1, 70)), draw(st.integers(1, 400))
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    x = rng.standard_normal((n, dim), np.float32)
    if distinct := draw(st.sampled_from([0, 1, 2, 3, 200])):
        x = rng.choice(x.ravel(), distinct)[rng.integers(distinct, size=x.shape)]
    path, split = tmp_path / "a.parquet", draw(st.booleans())
    write(
        path,
        x,
        draw(st.sampled_from(sorted(KINDS))),
        compression=draw(st.sampled_from(["none", "snappy", "zstd"])),
        use_dictionary=False if split else draw(st.booleans()),
        use_byte_stream_split=split,
        row_group_size=draw(st.sampled_from([7, 100, 1000])),
        data_page_size=draw(st.sampled_from([64, 1000, 1 << 20])),
        dictionary_pagesize_limit=draw(st.sampled_from([100, 1000, 1 << 20])),
        write_batch_size=draw(st.sampled_from([1, 10, 1024])),
    )
    wanted = rng.random(n) < draw(st.sampled_from([0.02, 0.5, 1]))
    wanted[rng.integers(n)] = True
    before = dict(decoded)
    np.testing.assert_array_equal(read(path, wanted), x[wanted])
    assert decoded["pages"] > before["pages"]
    assert decoded["arrow"] == before["arrow"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"compression": "zstd", "use_dictionary": False},
        {"compression": "zstd", "use_dictionary": False, "use_byte_stream_split": True},
        {},
    ],
)
@pytest.mark.parametrize("dim", [48, 768])
def test_large_row_groups_come_in_blocks(tmp_path, decoded, options, dim):
    """Pages as they are by default, some ending within a vector."""
    x = np.random.default_rng(0).standard_normal((6_000_000 // dim, dim), np.float32)
    write(tmp_path / "a.parquet", x, **options)
    np.testing.assert_array_equal(read(tmp_path / "a.parquet", threads=2), x)
    assert decoded == {"pages": 2, "arrow": 0}


@pytest.mark.parametrize(
    "options",
    [
        {"data_page_version": "2.0"},
        {"compression": "gzip"},
        {"use_dictionary": False, "data_page_size": 1 << 30},
        {"use_dictionary": False, "column_encoding": {"embedding.list.element": "PLAIN"}},
    ],
)
def test_other_forms_are_left_to_arrow(tmp_path, decoded, options):
    shape = (9000, 200) if "data_page_size" in options else (300, 5)
    x = np.random.default_rng(0).standard_normal(shape, np.float32)
    if "column_encoding" in options:
        x = x.astype(np.float64)
    column = pa.array(list(x), pa.list_(pa.from_numpy_dtype(x.dtype)))
    pq.write_table(pa.table({"embedding": column}), tmp_path / "a.parquet", **options)
    np.testing.assert_array_equal(read(tmp_path / "a.parquet"), x.astype(np.float32))
    assert not decoded["pages"]
    assert decoded["arrow"]


@pytest.mark.parametrize(
    ("lists", "says"),
    [
        ([[1.0, 2], None, [3, 4], [5, 6, 7, 8]], "row 1 has no embedding"),
        ([[1.0, 2], [3], [4, 5, 6]], "row 1 has an embedding of length 1"),
        ([[1.0, 2], [3, None]], "row 1, of length 2, holds a value that is not finite"),
        ([[1.0, 2], [np.inf, 3]], "row 1, of length 2, holds a value that is not finite"),
    ],
)
def test_vectors_that_are_not_alike_are_refused_by_row(tmp_path, lists, says):
    """Though they hold as many values as if they were."""
    table = pa.table({"embedding": pa.array(lists, pa.list_(pa.float32()))})
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(RowsError, match=says):
        read(tmp_path / "a.parquet")


@pytest.mark.parametrize("name", ["embedding", "embeddings"])
def test_a_page_that_unfolds_to_too_much_is_refused(tmp_path, monkeypatch, name):
    """Under both names of the column."""
    write(tmp_path / "a.parquet", np.zeros((100, 50), np.float32), name=name, compression="zstd")
    assert read(tmp_path / "a.parquet").shape == (100, 50)
    write(tmp_path / "b.parquet", np.zeros((100, 50), np.float32), name=name, use_dictionary=False)
    monkeypatch.setattr(limits, "PAGE", limits.Limit(10_000, "a test"))
    with pytest.raises(RowsError, match=f"column {name} of row group 0: a page"):
        read(tmp_path / "b.parquet")


@pytest.mark.slow
@pytest.mark.parametrize("split", [True, False])
@pytest.mark.parametrize("compression", ["none", "snappy", "zstd"])
def test_damaged_bytes_are_what_they_are_to_arrow(tmp_path, monkeypatch, compression, split):
    path = tmp_path / "a.parquet"
    x = np.random.default_rng(0).choice(np.float32([1, 2, 3, 4, 5]), (64, 9))
    kind = {"use_dictionary": not split, "use_byte_stream_split": split}
    write(path, x, compression=compression, data_page_size=500, **kind)
    raw, same = path.read_bytes(), 0
    column = pq.read_metadata(path).row_group(0).column(0)
    start = column.dictionary_page_offset or column.data_page_offset

    def outcome():
        try:
            return read(path).tobytes()
        except RowsError as error:
            return str(error)

    rng = np.random.default_rng(1)
    for at in rng.integers(start, start + column.total_compressed_size, 120).tolist():
        flipped = bytes([raw[at] ^ 1 << int(rng.integers(8))])
        path.write_bytes(raw[:at] + flipped + raw[at + 1 :])
        ours = outcome()
        with monkeypatch.context() as patch:
            patch.setattr(vectors, "find_pages", lambda *_: None)
            assert ours == outcome()
        same += ours == x.tobytes()
    assert same < 120


def test_what_was_cut_off_is_not_made_up():
    """Hundred numbers of three bits, in runs of eight; a run has a header and three bytes."""
    raw = (b"\x03" + bytes([0b01101011, 0b00011010, 0b11111010])) * 13
    whole = _hybrid(raw, 100, 3)
    assert whole[:8].tolist() == [3, 5, 1, 5, 1, 4, 6, 7]
    assert len(whole) == 100
    for length in range(len(raw)):
        assert _hybrid(raw[:length], 100, 3).tolist() == whole[: 8 * (length // 4)].tolist()


@pytest.mark.parametrize("raw", [b"\xff" * 9 + b"\x01", b"\xff\xff\xff\xff\x07", b"\x01" * 999])
def test_no_more_is_unpacked_than_is_asked_for(raw):
    """Headers of runs that stand for more numbers than any memory holds, or for none."""
    tracemalloc.start()
    try:
        assert len(_hybrid(raw + bytes(9), 100, 3)) <= 100
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()
