import numpy as np
import pandas as pd
import pytest
import xarray as xr
from hypothesis import given, settings
from strategies import CELLS, LOCALS, rows, table, write_rows

from copcube import grid
from copcube.aggregate import Aggregation, cell_statistics
from copcube.cube.averaging import ORDERS, averaging_order, nested_mean
from copcube.errors import CubeError, OptionError, RowsError
from copcube.rows import Rows

DIM = 6

LEVELS = {  # from the inside outwards, as pandas groups them
    "all images alike": (),
    "modalities alike": ("modality",),
    "patches, then dates, then modalities": ("date", "modality"),
    "dates, then patches, then modalities": ("local", "modality"),
}


def by_pandas(rows, order):
    """Nested means, one groupby a level: (cells, D), by ascending id."""
    frame = pd.DataFrame(rows.embedding.astype(np.float64))
    keys = {"cell": rows.grid_id, "modality": rows.modality, "local": rows.local_id}
    keys["date"] = rows.date
    index = [pd.Series(v, name=k) for k, v in keys.items()]
    frame.index = pd.MultiIndex.from_frame(pd.concat(index, axis=1).fillna("none"))
    levels = ["cell", *LEVELS[order][::-1]]
    while levels:
        frame = frame.groupby(level=levels).mean()
        levels.pop()
    return frame.to_numpy()


def pretrain(cells, seed=0, repeats=0):
    """Rows such as the published ones: patches and dates in unequal numbers."""
    rng = np.random.default_rng(seed)
    keys = []
    for cell in cells:
        for local in LOCALS[1 : 2 + rng.integers(1, 3)]:
            for modality in (0, 1):
                for month in rng.choice(12, rng.integers(1, 5), replace=False) + 1:
                    keys.append((cell, modality, local, f"2020{month:02d}03"))
        for modality in (2, 3, 5):
            for month in rng.choice(12, rng.integers(1, 9), replace=False) + 1:
                keys.append((cell, modality, None, f"2021{month:02d}01"))
        keys.append((cell, 7, None, None))
    found = table(keys, rng.normal(size=(len(keys), DIM)) + 1)
    again = rng.choice(len(keys), repeats, replace=False)
    return Rows.concatenate([found, found.take(again)])


def averages(rows, order):
    """A cube with the averages in float32, NaN elsewhere."""
    values = np.full((grid.N_LAT, grid.N_LON, DIM), np.nan, np.float32)
    row, col = grid.row_col(np.unique(rows.grid_id))
    values[row, col] = by_pandas(rows, order)
    coords = {"lat": grid.latitudes(), "lon": grid.longitudes()}
    return xr.Dataset({"embedding": (("lat", "lon", "dim"), values)}, coords)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Folder of rows, cells split between files, some images twice; and the rows."""
    folder = tmp_path_factory.mktemp("rows")
    found = pretrain(CELLS, repeats=40)
    for i in range(3):
        write_rows(folder / f"chunk_{i}.parquet", found.take(np.arange(i, len(found), 3)), {})
    return folder, found


def distinct(rows):
    """Rows without repeated images."""
    _, first = np.unique(rows.keys, axis=1, return_index=True)
    return rows.take(first)


@pytest.mark.slow
@settings(deadline=None, max_examples=60)
@given(table=rows())
def test_nested_means_are_those_of_pandas(table):
    for order, levels in ORDERS.items():
        ours = nested_mean(table, levels)
        assert np.allclose(ours, by_pandas(table, order), rtol=1e-10, atol=1e-10)


@settings(deadline=None, max_examples=30)
@given(table=rows())
def test_aggregation_is_two_of_the_orders(table):
    for balance, order in (("image", "all images alike"), ("modality", "modalities alike")):
        ours = cell_statistics(table, Aggregation(balance), ())
        north_first = np.argsort(ours.grid_id)
        assert np.allclose(
            ours.embedding[north_first], nested_mean(table, ORDERS[order]), rtol=1e-6, atol=1e-6
        )


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("repeated", ["counted", "dropped"])
def test_the_order_is_told(files, order, repeated):
    folder, found = files
    cube = averages(found if repeated == "counted" else distinct(found), order)
    told = averaging_order(folder, cube)
    best, *others = told.candidates
    assert (best.order, best.repeated) == (order, repeated)
    assert told.matching == (best,)
    assert best.max_relative < 1e-6
    assert all(other.max_relative > 1e-3 for other in others)
    assert (told.cells, told.images, len(told.candidates)) == (len(CELLS), len(found), 8)
    lines = str(told).splitlines()
    assert lines[2].startswith(order)
    assert lines[2].endswith("matches")
    assert sum("matches" in line for line in lines) == 1


def test_errors_are_those_of_the_worst_cell(files):
    folder, found = files
    cube = averages(found, "modalities alike")
    row, col = grid.row_col(CELLS[2])
    size = np.linalg.norm(cube.embedding[row, col])
    cube.embedding[row, col, 3] += 0.5
    told = {(c.order, c.repeated): c for c in averaging_order(folder, cube).candidates}
    found = told["modalities alike", "counted"]
    assert found.max_absolute == pytest.approx(0.5, abs=1e-6)
    assert found.max_relative == pytest.approx(
        0.5 / np.linalg.norm(cube.embedding[row, col]), rel=1e-5
    )
    assert found.max_relative != pytest.approx(0.5 / size, rel=1e-3)
    assert "none matches" in str(averaging_order(folder, cube))


def test_a_sample_is_bounded_and_chosen_by_its_seed(files):
    folder, found = files
    cube = averages(found, "all images alike")
    told = averaging_order(folder, cube, cells=3)
    assert (told.cells, told.candidates[0].order) == (3, "all images alike")
    assert told.images < len(found)
    assert told == averaging_order(folder, cube, cells=3)
    assert told == averaging_order(folder, cube, cells=np.uint8(3), seed=np.array(0))
    for name, wrong in (("cells", 2.5), ("cells", 0), ("seed", "0"), ("seed", -1)):
        with pytest.raises(OptionError, match=f"{name} is"):
            averaging_order(folder, cube, **{name: wrong})
    sizes = {averaging_order(folder, cube, cells=3, seed=seed).images for seed in range(6)}
    assert len(sizes) > 1


def test_encoders_that_differ_are_named(tmp_path):
    found = pretrain(CELLS)
    write_rows(tmp_path / "a.parquet", found, {"encoder": "one", "encoder_sha256": "1"})
    cube = averages(found, "modalities alike").assign_attrs(encoder="one", encoder_sha256="2")
    told = averaging_order(tmp_path / "a.parquet", cube)
    assert "these averages" not in str(told)
    cube.embedding.values *= -1
    told = averaging_order(tmp_path / "a.parquet", cube)
    assert str(told).endswith("made these averages (encoder_sha256: 1 of the rows, 2 of these)")
    with pytest.raises(RowsError, match=r"another encoder made them \(encoder: one .*, two of"):
        averaging_order(tmp_path / "a.parquet", cube.isel(dim=[0]).assign_attrs(encoder="two"))


def test_without_repeated_images_there_is_one_way(tmp_path):
    found = pretrain(CELLS)
    write_rows(tmp_path / "a.parquet", found, {})
    told = averaging_order(tmp_path / "a.parquet", averages(found, "modalities alike"))
    assert {candidate.repeated for candidate in told.candidates} == {"none"}
    assert len(told.candidates) == len(ORDERS)


def test_orders_that_a_sample_cannot_tell_apart_all_match(tmp_path):
    one = table([(cell, 7, None, None) for cell in CELLS], np.ones((len(CELLS), DIM)))
    write_rows(tmp_path / "a.parquet", one, {})
    told = averaging_order(tmp_path / "a.parquet", averages(one, "all images alike"))
    assert len(told.matching) == len(ORDERS)


def test_cells_without_an_average_are_left_out(files):
    folder, found = files
    cube = averages(found, "modalities alike").isel(lat=slice(0, 360))
    north = [cell for cell in CELLS if grid.row_col(cell)[0] < 360]
    told = averaging_order(folder, cube.isel(lon=slice(None, None, -1)))
    assert (told.cells, told.candidates[0].order) == (len(north), "modalities alike")


def test_what_cannot_be_told_is_refused(files, tmp_path):
    folder, found = files
    cube = averages(found, "all images alike")
    with pytest.raises(CubeError, match="none of the 8 sampled cells has an average"):
        averaging_order(folder, cube * np.nan)
    with pytest.raises(CubeError, match="expected an embedding cube"):
        averaging_order(folder, cube.rename(embedding="n_images"))
    with pytest.raises(CubeError, match="groups along season"):
        averaging_order(folder, cube.expand_dims(season=2))
    with pytest.raises(RowsError, match="embeddings of length 6; the averages have 4"):
        averaging_order(folder, cube.isel(dim=slice(4)))
    write_rows(tmp_path / "empty.parquet", Rows.empty(DIM), {})
    with pytest.raises(RowsError, match="hold no rows"):
        averaging_order(tmp_path, cube)
    for name in "ab":
        write_rows(tmp_path / f"{name}.parquet", found.take(np.arange(9)), {"encoder": name})
    with pytest.raises(RowsError, match=r"a\.par.*b\.par.* encoders \(encoder: a and b\); compare"):
        averaging_order(tmp_path, cube)
