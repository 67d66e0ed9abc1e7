import os
from dataclasses import replace

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import random_rows, rows, table, write_rows

import copcube.means
import copcube.parts
from copcube import aggregate, grid
from copcube.aggregate import (
    Aggregation,
    Cells,
    cell_statistics,
    combine,
    combine_pass,
    passes,
    survey,
)
from copcube.builds import aggregate as build_of
from copcube.builds import stages, tasks
from copcube.cube import open_cube
from copcube.errors import OptionError, RowsError
from copcube.grouping import MONTHS, SEASONS
from copcube.lookup.points import STATUS
from copcube.modalities import MODALITIES
from copcube.parts import Part, parts, read_part, runs
from copcube.products import tables
from copcube.rows import Rows, rows_files
from copcube.selection import Selection

FIELDS = ("grid_id", "group", "n_images", "n_by_modality", "spread", "embedding")
KEYS = tuple(MODALITIES)
CELL = 772176


def same(a: Cells, b: Cells) -> bool:
    return all(np.array_equal(getattr(a, name), getattr(b, name)) for name in FIELDS)


def everything(files, aggregation, max_rows=65536, step=1) -> Cells:
    """All cells of some files, as a build makes them."""
    all_parts = parts(files, max_rows)[::step]
    found = survey(all_parts, aggregation)
    pieces = [combine(all_parts[run], aggregation, found) for run in runs(all_parts)]
    pieces += [combine_pass(all_parts, aggregation, found, entries) for entries in passes(found)]
    return Cells.concatenate(pieces)


def reference(rows: Rows, balance: str) -> pd.DataFrame:
    """Means by pandas in float64, indexed by cell."""
    frame = pd.DataFrame(rows.embedding.astype(np.float64))
    if balance == "image":
        return frame.groupby(rows.grid_id).mean()
    return frame.groupby([rows.grid_id, rows.modality]).mean().groupby(level=0).mean()


@pytest.mark.slow
@given(rows=rows(), balance=st.sampled_from(("image", "modality")))
@settings(deadline=None)
def test_means_are_those_of_pandas(rows, balance):
    cells = cell_statistics(rows, Aggregation(balance=balance), ())
    expected = reference(rows, balance).loc[cells.grid_id].to_numpy()
    assert len(cells) == len(set(rows.grid_id.tolist()))
    np.testing.assert_allclose(cells.embedding, expected, rtol=1e-6, atol=1e-5)
    counts = pd.Series(rows.grid_id).value_counts().loc[cells.grid_id]
    assert cells.n_images.tolist() == counts.tolist()
    assert cells.n_by_modality.sum(axis=1).tolist() == counts.tolist()


@pytest.mark.slow
@given(rows=rows(), balance=st.sampled_from(("image", "modality")))
@settings(deadline=None)
def test_spread_is_its_definition(rows, balance):
    cells = cell_statistics(rows, Aggregation(balance=balance), ())
    for i, cell in enumerate(cells.grid_id):
        mine = rows.take(rows.grid_id == cell)
        n = np.bincount(mine.modality, minlength=8)
        weight = 1 / n[mine.modality] / (n > 0).sum() if balance == "modality" else 1 / n.sum()
        weight = np.broadcast_to(weight, len(mine))
        assert weight.sum() == pytest.approx(1)
        x = mine.embedding.astype(np.longdouble)
        mean = weight @ x
        expected = np.sqrt(weight @ ((x - mean) ** 2).sum(axis=1))
        assert cells.spread[i] == pytest.approx(float(expected), rel=1e-6, abs=1e-9)


@pytest.mark.slow
@given(rows=rows(min_size=2, cancelling=True), data=st.data())
@settings(deadline=None)
def test_order_does_not_change_a_bit(rows, data):
    order = data.draw(st.permutations(range(len(rows))))
    for aggregation in (Aggregation(), Aggregation("image", "season"), Aggregation(by="modality")):
        groups = {"season": SEASONS, "modality": KEYS}.get(aggregation.by or "", ())
        a = cell_statistics(rows, aggregation, groups)
        b = cell_statistics(rows.take(np.array(order)), aggregation, groups)
        assert same(a, b)


@pytest.mark.slow
@given(rows=rows(min_size=4, max_size=60, cancelling=True), data=st.data())
@settings(deadline=None, max_examples=40)
def test_files_parts_and_passes_do_not_change_a_bit(tmp_path_factory, rows, data):
    folder = tmp_path_factory.mktemp("rows")
    file = data.draw(st.lists(st.integers(0, 3), min_size=len(rows), max_size=len(rows)))
    for i in set(file):
        path = folder / f"{i}.parquet"
        write_rows(path, rows.take(np.array(file) == i), {})
        pq.write_table(pq.read_table(path), path, row_group_size=data.draw(st.integers(1, 9)))
    times = ("month", "season", "year") if any(rows.date) else ()
    by = data.draw(st.sampled_from((None, "modality", *times)))
    aggregation = Aggregation(data.draw(st.sampled_from(("image", "modality"))), by)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(aggregate, "_PASS", data.draw(st.integers(1, 20)))
        patch.setattr(copcube.parts, "_RUN", data.draw(st.integers(1, 20)))
        patch.setattr(copcube.means, "_WAITING", data.draw(st.integers(1, 20)))
        split = everything(rows_files(folder), aggregation, data.draw(st.integers(1, 12)))
    groups = survey(parts(rows_files(folder)), aggregation).groups
    assert same(split, cell_statistics(rows, aggregation, groups))


@given(sizes=st.lists(st.integers(1, 40_000), max_size=20))
def test_a_task_takes_parts_of_small_files_together(sizes):
    some = [Part(f"{i}.parquet", (0,), size) for i, size in enumerate(sizes)]
    found = runs(some)
    assert [part for run in found for part in some[run]] == some
    for run in found:
        rows = sum(sizes[run])
        assert rows <= 1 << 14 or run.stop - run.start == 1
        assert run.stop == len(sizes) or rows + sizes[run.stop] > 1 << 14


def test_blocks_of_pixels_are_tasks_of_their_own():
    some = [Part("2021/a.tif", (i,), 10) for i in range(3)]
    assert runs(some) == [slice(0, 1), slice(1, 2), slice(2, 3)]


@pytest.mark.slow
def test_many_small_files_make_the_cube_of_a_large_one(tmp_path, monkeypatch):
    rows = random_rows(400, 30, 6, 1)
    (tmp_path / "many").mkdir()
    for i in range(0, 400, 10):
        write_rows(tmp_path / "many" / f"{i:03d}.parquet", rows.take(np.arange(i, i + 10)), {})
    write_rows(tmp_path / "one.parquet", rows, {})
    monkeypatch.setattr(copcube.parts, "_RUN", 75)
    combined = []
    combine = tasks.run_combine_task

    def spy(task, advance=tasks.ignore):
        combined.append(combine(task, advance))
        return combined[-1]

    monkeypatch.setattr(stages, "run_combine_task", spy)
    build_of(tmp_path / "many", tmp_path / "many.zarr")
    # Six runs of seven files or fewer, and a pass over the cells that lie in several runs.
    assert len(combined) == 7
    build_of(tmp_path / "one.parquet", tmp_path / "one.zarr")
    many, one = (open_cube(tmp_path / f"{name}.zarr").load() for name in ("many", "one"))
    assert all(many[name].identical(one[name]) for name in many.data_vars)


@pytest.mark.parametrize("spread", [0, 1e-7, 1e-3, 1e-2, 0.3, 10])
def test_spreads_are_right_however_small_they_are(spread):
    # More rows than are summed at once, around a mean of length 100.
    rng = np.random.default_rng(0)
    x = (rng.standard_normal((1, 64)) * 12.5 + spread * rng.standard_normal((300, 64)) / 8).astype(
        np.float32
    )
    keys = [(CELL, 0, f"{i}", "20210101") for i in range(len(x))]
    cells = cell_statistics(table(keys, x), Aggregation(), ())
    exact = x.astype(np.longdouble)
    deviations = exact - exact.mean(axis=0)
    expected = np.sqrt((deviations**2).sum(axis=1).mean())
    assert cells.spread[0] == pytest.approx(float(expected), rel=1e-6, abs=1e-12)


def test_balance_closed_form():
    keys = [(CELL, 0, None, "20210101"), (CELL, 0, None, "20210102"), (CELL, 7, None, None)]
    rows = table(keys, [[1, 0], [3, 0], [8, 6]])
    image = cell_statistics(rows, Aggregation("image"), ())
    modality = cell_statistics(rows, Aggregation("modality"), ())
    assert image.embedding.tolist() == [[4, 2]]
    assert modality.embedding.tolist() == [[5, 3]]
    # squared distances 25 + 9, 9 + ... around (4, 2) and (5, 3), by hand
    assert image.spread[0] == pytest.approx(np.sqrt((13 + 5 + 32) / 3))
    assert modality.spread[0] == pytest.approx(np.sqrt((25 + 13) / 4 + 18 / 2))
    assert image.n_by_modality.tolist() == [[2, 0, 0, 0, 0, 0, 0, 1]]


@pytest.mark.slow
@given(rows=rows(max_size=8))
@settings(deadline=None)
def test_a_single_image_is_its_own_mean_without_spread(rows):
    one = rows.take(np.unique(rows.grid_id, return_index=True)[1])
    cells = cell_statistics(one, Aggregation(), ())
    assert (cells.spread == 0).all()
    order = np.argsort(one.grid_id)
    assert np.array_equal(cells.embedding[np.argsort(cells.grid_id)], one.embedding[order])


def test_spread_does_not_cancel_far_from_zero():
    keys = [(CELL, 0, None, f"202101{day:02d}") for day in range(1, 21)]
    offsets = np.linspace(-1, 1, 20)
    vectors = np.stack([np.float32(1e6) + offsets, np.zeros(20)], axis=1).astype(np.float32)
    cells = cell_statistics(table(keys, vectors), Aggregation(), ())
    assert cells.spread[0] == pytest.approx(np.std(vectors[:, 0].astype(np.float64)), rel=1e-6)


def test_groups():
    dates = [None, "20201222", "20210101", "20210301", "20210815", "20221130"]
    keys = [(CELL, 7 if date is None else 1, None, date) for date in dates]
    rows = table(keys, np.arange(6).reshape(6, 1))

    def grouped(by, groups):
        cells = cell_statistics(rows, Aggregation(by=by), groups)
        labels = [groups[g] for g in cells.group]
        return dict(zip(labels, cells.embedding[:, 0].tolist(), strict=True)), cells

    assert grouped("month", MONTHS)[0] == {"12": 1, "01": 2, "03": 3, "08": 4, "11": 5}
    seasons, cells = grouped("season", SEASONS)
    assert seasons == {"DJF": 1.5, "MAM": 3, "JJA": 4, "SON": 5}
    assert cells.n_images.tolist() == [2, 1, 1, 1]  # the DEM is in none
    assert grouped("year", ("2020", "2021", "2022"))[0] == {"2020": 1, "2021": 3, "2022": 5}
    modalities, cells = grouped("modality", KEYS)
    assert modalities == {"s2_toa": 3, "dem": 0}
    assert cells.n_by_modality.sum(axis=0).tolist() == [0, 5, 0, 0, 0, 0, 0, 1]


def test_labels_of_the_survey(tmp_path):
    dates = ["20221130", "20190101", None]
    rows = table([(CELL, 7, None, date) for date in dates], np.eye(3))
    write_rows(tmp_path / "a.parquet", rows, {"encoder": "x"})
    some = parts([tmp_path / "a.parquet"])
    two = Selection(("s1_grd", "dem"))
    assert survey(some, Aggregation()).groups == ()
    assert survey(some, Aggregation(by="year")).groups == ("2019", "2022")
    assert survey(some, Aggregation(by="month")).groups == MONTHS
    assert survey(some, Aggregation(by="season")).groups == SEASONS
    assert survey(some, Aggregation(by="modality", selection=two)).groups == ("s1_grd", "dem")


@pytest.mark.parametrize("by", ["month", "season", "year"])
def test_times_need_dates(tmp_path, by):
    write_rows(tmp_path / "a.parquet", table([(CELL, 7, None, None)], [[1, 2]]), {})
    with pytest.raises(RowsError, match=f"none of the 1 selected images has a date.* a {by}"):
        survey(parts([tmp_path / "a.parquet"]), Aggregation(by=by))


def test_selection():
    rows = random_rows(400, cells=5)
    chosen = Selection(("s1_grd", "dem"), "20210301", "20211001")
    cells = cell_statistics(rows, Aggregation("image", selection=chosen), ())
    admitted = [
        m in (0, 7) and (d is None or "20210301" <= d <= "20211001")
        for m, d in zip(rows.modality, rows.date, strict=True)
    ]
    kept = rows.take(np.array(admitted))
    assert same(cells, cell_statistics(kept, Aggregation("image"), ()))
    assert cells.n_images.sum() == sum(admitted)


def test_nothing_selected_is_an_empty_table():
    rows = table([(CELL, 1, None, "20210101")] * 1, [[1, 2]])
    for selection in (Selection(("s1_grd",)), Selection(KEYS, start="20990101")):
        cells = cell_statistics(rows, Aggregation(selection=selection), ())
        assert (len(cells), cells.embedding.shape, cells.n_by_modality.shape) == (0, (0, 2), (0, 8))


@pytest.fixture
def doubled(tmp_path):
    """Two files that share one image, with other vectors, and a third with it twice."""
    keys = [(CELL, 1, "0865831_-95.92_43.96", "20210704"), (CELL, 7, None, None)]
    write_rows(tmp_path / "a.parquet", table(keys, [[1, 1], [2, 2]]), {})
    write_rows(tmp_path / "b.parquet", table([keys[0], (5, 7, None, None)], [[9, 9], [3, 3]]), {})
    return tmp_path


IMAGE = "0772176_-96.00_44.00 s2_toa 0865831_-95.92_43.96 20210704"


def test_an_image_in_two_files_is_refused_by_name(doubled):
    with pytest.raises(RowsError, match=rf"{IMAGE} has two rows, in .*a.parquet and in .*b.par"):
        everything(rows_files(doubled), Aggregation("image"))


@pytest.mark.parametrize("step", [1, -1])
def test_or_the_first_one_is_kept_and_the_other_counted(doubled, step):
    cells = everything(rows_files(doubled), Aggregation("image", duplicates="drop"), step=step)
    assert cells.duplicates == 1
    assert dict(zip(cells.grid_id.tolist(), cells.embedding.tolist(), strict=True)) == {
        CELL: [1.5, 1.5],
        5: [3, 3],
    }


def test_an_image_twice_in_one_file(tmp_path):
    keys = [(CELL, 7, None, None)] * 2
    write_rows(tmp_path / "a.parquet", table(keys, [[1], [2]]), {})
    with pytest.raises(
        RowsError, match=r"dem has two rows, both in .*a\.parquet.*duplicates='drop'"
    ):
        everything(rows_files(tmp_path), Aggregation())
    cells = everything(rows_files(tmp_path), Aggregation(duplicates="drop"))
    assert (cells.embedding.tolist(), cells.n_images.tolist(), cells.duplicates) == ([[1]], [1], 1)


def test_the_survey_counts_and_finds_split_cells(tmp_path, monkeypatch):
    rows = random_rows(500, cells=30)
    for i in range(3):
        write_rows(tmp_path / f"{i}.parquet", rows.take(np.arange(500) // 200 == i), {})
    some = parts(rows_files(tmp_path))
    assert not len(survey(some, Aggregation()).split_cell)  # so few rows are combined together
    monkeypatch.setattr(copcube.parts, "_RUN", 0)
    found = survey(some, Aggregation(selection=Selection(("s1_grd", "dem"))))
    chosen = np.isin(rows.modality, (0, 7))
    assert (found.rows, found.images, found.dim) == (500, chosen.sum(), 6)
    assert found.images_by_modality == (
        (rows.modality == 0).sum(),
        0,
        0,
        0,
        0,
        0,
        0,
        (rows.modality == 7).sum(),
    )
    where = {}
    for cell, part in zip(rows.grid_id[chosen], (np.arange(500) // 200)[chosen], strict=True):
        where.setdefault(int(cell), set()).add(int(part))
    assert found.cells == len(where)
    entries = set(zip(found.split_cell.tolist(), found.split_part.tolist(), strict=True))
    assert entries == {(c, p) for c, ps in where.items() if len(ps) > 1 for p in ps}
    row, _ = grid.row_col(found.split_cell)
    assert (np.diff(row) >= 0).all()


def test_parts_are_runs_of_row_groups(tmp_path):
    path = tmp_path / "a.parquet"
    write_rows(path, random_rows(100), {})
    pq.write_table(pq.read_table(path), path, row_group_size=30)
    assert parts([path], 60) == [Part(str(path), (0, 1), 60), Part(str(path), (2, 3), 40)]
    assert [part.rows for part in parts([path], 10)] == [30, 30, 30, 10]
    write_rows(tmp_path / "empty.parquet", random_rows(5).take(np.arange(0)), {})
    assert parts([tmp_path / "empty.parquet"]) == []


@pytest.mark.slow
def test_what_is_small_of_a_part_is_read_once_in_a_build(tmp_path, monkeypatch):
    files = [tmp_path / "a.parquet", tmp_path / "b.parquet"]
    for i, file in enumerate(files):  # most cells are in both, and combined by a pass
        write_rows(file, random_rows(60, 10).take(np.arange(60) % 2 == i), {})
    read, seen = tables.read, []
    monkeypatch.setattr(tables, "read", lambda *given: seen.append(given[0]) or read(*given))
    build_of(tmp_path, tmp_path / "world.zarr")
    assert sorted(seen) == [str(file) for file in files]
    # Outside of a build files may change, and are read again.
    part, _ = parts(files)
    for _ in range(2):
        assert len(read_part(part, "centre", "auto")) == part.rows
    assert len(seen) == 4


@pytest.mark.slow
def test_rows_that_change_while_they_are_aggregated_make_no_cube(tmp_path, monkeypatch):
    former = random_rows(200)
    latter = replace(former, embedding=2 * former.embedding)
    path, out = tmp_path / "rows.parquet", tmp_path / "a.zarr"
    write_rows(path, former, {})
    run_stage = stages.run_stage

    def changing(executor, stage):
        run_stage(executor, stage)
        write_rows(path, latter, {})
        os.utime(path, ns=(1, 1))

    with monkeypatch.context() as patch:
        patch.setattr(stages, "run_stage", changing)
        with pytest.raises(RowsError, match=r"rows\.parquet: replaced, changed or removed while"):
            build_of(path, out)
    assert not out.exists()
    build_of(path, out)
    write_rows(tmp_path / "latter.parquet", latter, {})
    build_of(tmp_path / "latter.parquet", tmp_path / "b.zarr")
    found, expected = (open_cube(tmp_path / name).embedding for name in ("a.zarr", "b.zarr"))
    np.testing.assert_array_equal(found, expected)


@pytest.mark.slow
def test_cells_of_rows_that_were_replaced_since_get_into_no_cube(tmp_path, monkeypatch):
    path, out = tmp_path / "rows.parquet", tmp_path / "a.zarr"

    def write(rows):
        write_rows(path, rows, {})
        table = pq.read_table(path)
        pq.write_table(table, path, compression="none", use_dictionary=False)
        return path.stat().st_size

    def stop(*_):
        raise KeyboardInterrupt

    former = random_rows(200)
    size = write(former)
    with monkeypatch.context() as patch:
        patch.setattr(stages.cube, "finish", stop)
        with pytest.raises(KeyboardInterrupt):
            build_of(path, out)
    assert write(replace(former, embedding=-former.embedding)) == size
    build_of(path, out)
    build_of(path, tmp_path / "b.zarr")
    found, expected = (open_cube(tmp_path / name).embedding for name in ("a.zarr", "b.zarr"))
    np.testing.assert_array_equal(found, expected)


@pytest.mark.slow
def test_a_modality_that_no_row_is_of_is_missing_in_no_cell(tmp_path):
    one, other = (grid.grid_id(*grid.cell_at(lat, 10)) for lat in (50, 60))
    keys = [(one, 1, "a", "20210101"), (one, 7, "a", None), (other, 1, "b", "20210101")]
    write_rows(tmp_path / "rows.parquet", table(keys, np.ones((3, 4))), {})
    build_of(tmp_path / "rows.parquet", tmp_path / "a.zarr")
    cube = open_cube(tmp_path / "a.zarr")
    assert cube.attrs["modalities"] == "s2_toa dem"
    status = cube.copembed.points(([50, 60], [10, 10])).status
    assert [STATUS[n] for n in status.values] == ["present", "modality_missing"]
    # An elevation model without a date belongs to no month.
    build_of(tmp_path / "rows.parquet", tmp_path / "b.zarr", by="month")
    cube = open_cube(tmp_path / "b.zarr")
    assert cube.attrs["modalities"] == "s2_toa"
    status = cube.copembed.points(([50, 60], [10, 10])).status
    assert [STATUS[n] for n in status.values] == ["present", "present"]


def test_encoders_and_lengths_do_not_mix(tmp_path):
    write_rows(tmp_path / "a.parquet", random_rows(5), {"encoder_sha256": "1", "crop": "full"})
    write_rows(tmp_path / "b.parquet", random_rows(5, seed=1), {"encoder_sha256": "1", "n": 2})
    found = survey(parts(rows_files(tmp_path)), Aggregation())
    assert found.provenance == {"encoder_sha256": "1"}
    write_rows(tmp_path / "b.parquet", random_rows(5), {"encoder_sha256": "2"})
    with pytest.raises(RowsError, match=r"a\.par.*b\.par.*different encoders.*sha256: 1 and 2"):
        survey(parts(rows_files(tmp_path)), Aggregation())
    write_rows(tmp_path / "b.parquet", random_rows(5, dim=7), {})
    with pytest.raises(RowsError, match=r"length 6, .* of length 7"):
        survey(parts(rows_files(tmp_path)), Aggregation())


def test_a_caution_of_one_file_is_one_of_the_cube(tmp_path):
    said = {"encoder_trained": 0, "synthetic": "drawn"}
    for about in ({}, {"encoder_trained": 1}):
        write_rows(tmp_path / "a.parquet", random_rows(5), said)
        write_rows(tmp_path / "b.parquet", random_rows(5, seed=1), about)
        found = survey(parts(rows_files(tmp_path)), Aggregation()).provenance
        assert found == {"encoder_trained": "0", "synthetic": "drawn"}


@pytest.mark.parametrize("options", [{"balance": "x"}, {"by": "day"}, {"duplicates": "x"}])
def test_unknown_options_are_refused(options):
    name, value = next(iter(options.items()))
    with pytest.raises(OptionError, match=f"{name}='{value}'; expected "):
        Aggregation(**options)
