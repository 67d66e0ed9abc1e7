import datetime
import errno
import hashlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import random_rows, rows, table, write_rows

from copcube import grid
from copcube.errors import RowsError, StorageError
from copcube.files.objects import ObjectFolder
from copcube.modalities import MODALITIES
from copcube.rows import (
    ROW_GROUP,
    Rows,
    distinct,
    embedding_length,
    encode_rows,
    flattened,
    read_provenance,
    read_rows,
    row_group_sizes,
    rows_files,
)

FIELDS = ("grid_id", "modality", "local_id", "date", "embedding")
KEYS = [(772176, 1, "0865831_-95.92_43.96", "20210704"), (906994, 7, None, None)]


def same(a: Rows, b: Rows) -> bool:
    return all(np.array_equal(getattr(a, name), getattr(b, name)) for name in FIELDS)


def sha256(path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def foreign(path, embedding, **columns) -> None:
    """Write a file as others would: two rows, given columns in place of the usual."""
    usual = {
        "grid_id_coord": pa.array([grid.format_cell(key[0]) for key in KEYS]),
        "modality": pa.array(["s2_toa", "dem"]),
        "local_id_coord": pa.array([key[2] for key in KEYS]),
        "date": pa.array([key[3] for key in KEYS]),
        "embedding": embedding,
    }
    kept = {name: column for name, column in (usual | columns).items() if column is not None}
    pq.write_table(pa.table(kept), path)


@pytest.mark.slow
@given(table=rows())
@settings(deadline=None, max_examples=60)
def test_written_rows_are_the_published_layout_in_canonical_order(tmp_path_factory, table):
    path = tmp_path_factory.mktemp("rows") / "a.parquet"
    write_rows(path, table, {"encoder": "x"})
    frame = pq.read_table(path).to_pylist()
    expected = sorted(
        zip(*(getattr(table, name).tolist() for name in FIELDS), strict=True),
        key=lambda r: (r[0], r[1], r[2] is not None, r[2] or "", r[3] is not None, r[3] or ""),
    )
    names = list(MODALITIES)
    assert [
        (grid.parse_cell(r["grid_id_coord"]), r["modality"], r["local_id_coord"], r["date"])
        for r in frame
    ] == [(c, names[m], local, date) for c, m, local, date, _ in expected]
    assert [r["embedding"] for r in frame] == [vector for *_, vector in expected]
    assert same(read_rows(path), table.sorted())


@given(table=rows(min_size=2))
@settings(deadline=None, max_examples=30)
def test_the_same_rows_give_the_same_bytes(tmp_path_factory, table):
    folder = tmp_path_factory.mktemp("rows")
    shuffled = table.take(np.random.default_rng(len(table)).permutation(len(table)))
    write_rows(folder / "a.parquet", table, {"encoder": "x", "crop": "center"})
    write_rows(folder / "b.parquet", shuffled, {"crop": "center", "encoder": "x"})
    assert sha256(folder / "a.parquet") == sha256(folder / "b.parquet")


@pytest.mark.slow
def test_encodings_are_those_chosen(tmp_path):
    path = tmp_path / "a.parquet"
    write_rows(path, random_rows(ROW_GROUP + 3, dim=4), {})
    metadata = pq.ParquetFile(path).metadata
    assert [metadata.row_group(i).num_rows for i in range(2)] == [ROW_GROUP, 3]
    assert row_group_sizes(path) == [ROW_GROUP, 3]
    columns = {
        metadata.row_group(0).column(i).path_in_schema: metadata.row_group(0).column(i)
        for i in range(5)
    }
    embedding = columns.pop("embedding.list.element")
    assert "BYTE_STREAM_SPLIT" in embedding.encodings
    assert not embedding.has_dictionary_page
    assert embedding.compression == "ZSTD"
    assert all(column.has_dictionary_page for column in columns.values())
    assert pq.read_schema(path).field("embedding").type == pa.list_(pa.float32(), 4)


def test_provenance_is_kept(tmp_path):
    path = tmp_path / "a.parquet"
    write_rows(path, random_rows(3), {"encoder": "x", "encoder_trained": 0})
    assert read_provenance(path) == {"encoder": "x", "encoder_trained": "0"}
    assert pq.read_schema(path).metadata[b"copcube:encoder"] == b"x"
    foreign(path, pa.array([[1.0, 2.0]] * 2))
    assert read_provenance(path) == {}


def test_what_others_note_in_a_file_need_not_be_text(tmp_path):
    path = tmp_path / "rows.parquet"
    write_rows(path, random_rows(3), {})
    noted = {b"\xff": b"\x90", b"copcube:encoder": b"of \x90"}
    pq.write_table(pq.read_table(path).replace_schema_metadata(noted), path)
    assert read_provenance(path) == {"encoder": "of \ufffd"}


LISTS = {
    "list of double": pa.array([[1.0, 2.5], [3.0, -4.0]]),
    "list of float": pa.array([[1.0, 2.5], [3.0, -4.0]], pa.list_(pa.float32())),
    "large list": pa.array([[1.0, 2.5], [3.0, -4.0]], pa.large_list(pa.float32())),
    "fixed-size": pa.array([[1.0, 2.5], [3.0, -4.0]], pa.list_(pa.float64(), 2)),
    "half": pa.FixedSizeListArray.from_arrays(pa.array(np.float16([1.0, 2.5, 3.0, -4.0])), 2),
}


@pytest.mark.parametrize("embedding", LISTS.values(), ids=LISTS.keys())
def test_any_kind_of_list_is_read(tmp_path, embedding):
    path = tmp_path / "a.parquet"
    foreign(path, embedding)
    read = read_rows(path)
    assert read.embedding.dtype == np.float32
    assert same(read, table(KEYS, [[1.0, 2.5], [3.0, -4.0]]))
    assert embedding_length(path) == 2


def test_strings_of_any_kind_empty_ones_and_further_columns_are_read(tmp_path):
    path = tmp_path / "a.parquet"
    foreign(
        path,
        LISTS["list of float"],
        modality=pa.array(["s2_toa", "dem"]).dictionary_encode(),
        local_id_coord=pa.array([KEYS[0][2], ""], pa.large_string()),
        date=pa.array([KEYS[0][3], ""]),
        geometry=pa.array([b"a", b"b"]),
        __index_level_0__=pa.array([0, 1]),
    )
    assert same(read_rows(path), table(KEYS, [[1.0, 2.5], [3.0, -4.0]]))


@pytest.mark.parametrize("encoding", ["DELTA_BYTE_ARRAY", "DELTA_LENGTH_BYTE_ARRAY"])
def test_texts_of_any_encoding_are_read(tmp_path, encoding):
    """DuckDB and other writers of Parquet's second version use these."""
    foreign(path := tmp_path / "a.parquet", LISTS["list of float"])
    texts = dict.fromkeys(["grid_id_coord", "modality"], encoding)
    written = pq.read_table(path)
    pq.write_table(written, path, use_dictionary=False, column_encoding=texts)
    assert same(read_rows(path), table(KEYS, [[1.0, 2.5], [3.0, -4.0]]))


def test_a_column_of_nothing_but_nulls_is_read(tmp_path):
    path = tmp_path / "a.parquet"
    foreign(path, LISTS["list of float"], local_id_coord=pa.nulls(2), date=pa.nulls(2))
    assert read_rows(path).date.tolist() == [None, None]


@pytest.mark.parametrize(
    "dates",
    [
        pa.array(["2021-07-04", None]),
        pa.array([20210704, None]),
        pa.array([20210704.0, float("nan")]),  # as pandas holds whole numbers with gaps
        pa.array([datetime.date(2021, 7, 4), None]),
        pa.array([datetime.datetime(2021, 7, 4, 23), None], pa.timestamp("ns")),
        pa.array(["20210704", ""]).dictionary_encode(),
        pa.array([20210704, None]).dictionary_encode(),
    ],
    ids=lambda dates: str(dates.type),
)
def test_dates_of_every_kind_are_read(tmp_path, dates):
    path = tmp_path / "foreign.parquet"
    foreign(path, LISTS["list of float"], date=dates)
    assert read_rows(path).date.tolist() == ["20210704", None]


BROKEN = [
    ({"date": None, "modality": None}, r"modality, date are missing \(found grid_id_coord"),
    ({"date": None, "modality": None, "local_id_coord": None}, "has one row per cell, not one"),
    ({"modality": pa.array(["s2_toa", "s4"])}, "unknown modality s4; expected s1_grd"),
    ({"modality": pa.array(["s2_toa", None])}, "unknown modality None"),
    ({"modality": pa.array([1, 2])}, "column modality holds int64; expected strings"),
    ({"grid_id_coord": pa.array(["0772176_-96.00_44.25", "x"])}, "contradicts itself|not a cell"),
    ({"grid_id_coord": pa.array(["0772176_-96.00_44.00", None])}, "is not a cell id"),
    ({"date": pa.array(["2021-07", None])}, "column date: date '2021-07' is not a date.*20210601"),
    ({"date": pa.array(["20211304", None])}, "date '20211304'"),
    ({"date": pa.array(["20210231", None])}, "date '20210231'"),
    ({"date": pa.array([2021, None])}, "date 2021 is not a date"),
    ({"date": pa.array([2.5, 1], pa.float32())}, "column date holds float; expected strings"),
    ({"embedding": pa.array([[1.0, 2.0], [1.0]])}, r"row 1 has an embedding of length 1; exp.* 2"),
    ({"embedding": pa.array([[1.0, 2.0], None])}, "row 1 has no embedding"),
    ({"embedding": pa.array([[], []], pa.list_(pa.float32()))}, "row 0 .* of length 0"),
    ({"embedding": pa.array([[1.0, 2.0], [1.0, None]])}, "row 1, of length 2, .* not finite"),
    ({"embedding": pa.array([[1.0, np.nan], [1.0, 2.0]])}, "row 0, of length 2, .* not finite"),
    ({"embedding": pa.array([[1.0, 2.0], [1.0, 1e39]])}, "row 1, .* not finite in float32"),
    ({"embedding": pa.array([[1, 2], [3, 4]])}, "embedding holds list<.*int64>; expected lists of"),
    ({"embedding": pa.array([1.0, 2.0])}, "embedding holds double; expected lists of"),
]


@pytest.mark.parametrize(("columns", "message"), BROKEN)
def test_what_is_broken_is_named(tmp_path, columns, message):
    path = tmp_path / "a.parquet"
    columns = dict(columns)
    foreign(path, columns.pop("embedding", LISTS["list of float"]), **columns)
    with pytest.raises(RowsError, match=rf"a\.parquet.*({message})"):
        read_rows(path)


def test_the_row_named_is_that_of_the_file(tmp_path):
    path = tmp_path / "a.parquet"
    good = random_rows(100, cells=5, dim=3)
    write_rows(path, good, {})
    broken = pq.read_table(path).to_pydict()
    broken["embedding"][57] = [0.0, float("inf"), 0.0]
    fields = pa.table(broken).cast(
        pa.schema(
            [(n, pa.string()) for n in list(broken)[:4]] + [("embedding", pa.list_(pa.float32()))]
        )
    )
    pq.write_table(fields, path, row_group_size=10)
    with pytest.raises(RowsError, match="row 57,"):
        read_rows(path)
    with pytest.raises(RowsError, match="row 57,"):
        read_rows(path, row_groups=[2, 5])
    cell = good.sorted().grid_id[57]
    with pytest.raises(RowsError, match="row 57,"):
        read_rows(path, cells=np.array([cell]))
    others = np.setdiff1d(good.grid_id, [cell])
    assert len(read_rows(path, cells=others)) == (good.grid_id != cell).sum()


def test_a_file_that_may_not_be_read_is_not_broken(tmp_path, monkeypatch):
    """Else images in parquet files would be left out for a permission that can be granted."""
    write_rows(tmp_path / "a.parquet", table(KEYS, [[1, 2], [3, 4]]), {})

    def refuse(*_, **__):
        raise PermissionError(errno.EACCES, "Failed to open local file")

    monkeypatch.setattr(pq, "ParquetFile", refuse)
    with pytest.raises(PermissionError, match=r"Permission denied: '.*a\.parquet'"):
        read_rows(tmp_path / "a.parquet")


def test_files_that_are_none(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(RowsError, match=r"a\.parquet: not a readable parquet file"):
        read_rows(tmp_path / "a.parquet")
    with pytest.raises(RowsError, match="no such file"):
        read_rows(tmp_path / "b.parquet")
    with pytest.raises(RowsError, match="value that is not finite"):
        write_rows(tmp_path / "c.parquet", table(KEYS, [[1, 2], [np.nan, 1]]), {})
    assert not (tmp_path / "c.parquet").exists()


def test_row_groups_and_cells_choose(tmp_path):
    path = tmp_path / "a.parquet"
    whole = random_rows(95, cells=7, dim=3).sorted()
    write_rows(path, whole, {})
    pq.write_table(pq.read_table(path), path, row_group_size=10)
    chosen = read_rows(path, row_groups=[8, 1])
    index = np.r_[80:90, 10:20]
    assert same(chosen, whole.take(index))
    some = np.unique(whole.grid_id)[[0, 4]]
    assert same(read_rows(path, cells=some), whole.take(np.isin(whole.grid_id, some)))
    assert read_rows(path, cells=np.array([], np.int64)).embedding.shape == (0, 3)
    assert read_rows(path, row_groups=[]).embedding.shape == (0, 3)
    bare = read_rows(path, embedding=False)
    assert bare.embedding.shape == (95, 0)
    assert np.array_equal(bare.keys, whole.keys)


def test_an_empty_table_goes_round(tmp_path):
    path = tmp_path / "a.parquet"
    write_rows(path, random_rows(5, dim=3).take(np.arange(0)), {})
    assert read_rows(path).embedding.shape == (0, 3)
    assert row_group_sizes(path) in ([], [0])


def test_vectors_of_different_lengths_do_not_join():
    with pytest.raises(RowsError, match="lengths 3, 4"):
        Rows.concatenate([random_rows(2, dim=3), random_rows(2, dim=4)])


def test_files_of_a_name_a_folder_and_a_glob(tmp_path):
    for name in ("b/2.parquet", "1.parquet", "b/.3.parquet.partial", "b/.4.parquet", "x.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    both = [tmp_path / "1.parquet", tmp_path / "b/2.parquet"]
    assert rows_files(tmp_path) == both
    assert rows_files(str(tmp_path / "**" / "*.parquet")) == both
    assert rows_files(both[1]) == [both[1]]
    with pytest.raises(RowsError, match="no parquet files"):
        rows_files(tmp_path / "none")


def test_capitals_of_an_extension_hide_no_rows(tmp_path):
    files = [tmp_path / "1.PARQUET", tmp_path / "2.parquet"]
    for file in files:
        write_rows(file, random_rows(5, dim=3), {})
    assert rows_files(tmp_path) == files


def test_what_is_encoded_is_what_is_written(tmp_path):
    path = tmp_path / "a.parquet"
    write_rows(path, random_rows(50, dim=3), {"encoder": "x"})
    assert path.read_bytes() == bytes(encode_rows(random_rows(50, dim=3), {"encoder": "x"}, "b"))


@pytest.mark.slow
def test_rows_at_addresses_are_read_as_files(bucket, web, tmp_path):
    whole = random_rows(95, cells=7, dim=3).sorted()
    data = encode_rows(whole, {"encoder": "x"}, "a.parquet")
    folder = ObjectFolder(f"{bucket}/rows")
    for name in ("2.parquet", "b/1.parquet", ".3.parquet", "x.txt"):
        folder.write(name, data)
    both = [f"{bucket}/rows/2.parquet", f"{bucket}/rows/b/1.parquet"]
    assert rows_files(f"{bucket}/rows") == rows_files(f"{bucket}/rows/") == both
    assert rows_files(both[1]) == [both[1]]
    web.files["a.parquet"] = bytes(data)
    url = f"{web.url}/a.parquet"
    assert rows_files(url) == [url]
    cell = whole.grid_id[[50]]
    for path in (both[0], url):
        assert same(read_rows(path), whole)
        assert same(read_rows(path, cells=cell), whole.take(whole.grid_id == cell))
        assert read_provenance(path) == {"encoder": "x"}
        assert row_group_sizes(path) == [95]
        assert embedding_length(path) == 3
    with pytest.raises(RowsError, match="no parquet files"):
        rows_files(f"{bucket}/none")


def test_addresses_without_rows_and_stores_that_fail(bucket, web):
    with pytest.raises(RowsError, match=r"none\.parquet: no such file"):
        read_rows(f"{bucket}/none.parquet")
    ObjectFolder(bucket).write("x.parquet", b"PAR1 and no more")
    with pytest.raises(RowsError, match=r"x\.parquet: not a readable parquet file"):
        read_rows(f"{bucket}/x.parquet")
    with pytest.raises(StorageError, match="do not list folders"):
        rows_files(f"{web.url}/rows")
    web.files["a.parquet"], web.status["a.parquet"] = b"PAR1", 503
    with pytest.raises(StorageError, match="503"):
        read_rows(f"{web.url}/a.parquet")


TEXTS = st.lists(st.sampled_from(["a", "b", "", None]), max_size=40)


@pytest.mark.slow
@given(TEXTS, TEXTS, st.booleans(), st.integers(0, 9), st.integers(0, 40))
def test_distinct_texts_and_codes_give_the_column_back(first, second, encoded, start, length):
    column = pa.chunked_array([pa.array(part, pa.string()) for part in (first, second)])
    column = (column.dictionary_encode() if encoded else column).slice(start, length)
    texts, code = distinct(column)
    assert texts[code].tolist() == [text or None for text in column.to_pylist()]
    assert len(texts) <= len(set(column.to_pylist()))


@pytest.mark.slow
@given(
    st.lists(st.one_of(st.none(), st.lists(st.integers(0, 9), max_size=4)), max_size=12),
    st.sampled_from([pa.list_, pa.large_list]),
    st.integers(0, 5),
)
def test_lists_are_flattened_as_arrow_does(lists, kind, start):
    array = pa.array(lists, kind(pa.int64())).slice(start)
    assert flattened(array).equals(array.flatten())
