"""Modalities of equal variance, against pandas and NumPy in float64."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from hypothesis import given
from strategies import random_rows, rows, table, write_rows

from copcube import grid
from copcube.aggregate import Aggregation, cell_statistics
from copcube.builds import aggregate, tasks
from copcube.cli import main
from copcube.cube import validate
from copcube.cube.averaging import averaging_order
from copcube.errors import CubeError, WriteError
from copcube.lookup import change
from copcube.modalities import MODALITIES, ORDER
from copcube.selection import Selection

KEYS = tuple(MODALITIES)
WIDTHS = (5, 1, 0.3, 2, 0.01, 1, 8, 3)


def uneven_rows(seed=0, n=600, cells=40, dim=6):
    """Rows whose modalities have other means and vary in other widths."""
    found = random_rows(n, cells, dim, seed)
    # In two blocks of two bands, so that little is to be read of a cube.
    places = np.unique(found.grid_id, return_inverse=True)[1]
    found = replace(found, grid_id=grid.grid_id(35 + places // 2, 100 + places % 7 + places % 2))
    widths = np.array(WIDTHS)[found.modality][:, np.newaxis]
    offsets = np.arange(8)[found.modality][:, np.newaxis]
    place = np.random.default_rng(seed).normal(size=(n, dim))  # of cells, not of images
    place = place[np.unique(found.grid_id, return_inverse=True)[1]]
    vectors = offsets + widths * (place + 0.3 * found.embedding)
    return replace(found, embedding=vectors.astype(np.float32))


def region(path):
    """The blocks of a cube that hold its cells, in memory."""
    return xr.open_zarr(path).isel(lat=slice(0, 90), lon=slice(90, 135)).load()


def area(cell):
    """Of a cell on the unit sphere, by the zone formula: 2π (sin a - sin b) / 1440."""
    lat = -90 + np.asarray(cell) // 1440 / 4
    edges = np.clip([lat - 0.125, lat + 0.125], -90, 90)
    return np.diff(np.sin(np.radians(edges)), axis=0)[0] * 2 * np.pi / 1440


def reference(found):
    """Mean, spread and scales in float64, by their definitions."""
    frame = pd.DataFrame(found.embedding.astype(np.float64))
    keys = [pd.Series(found.grid_id, name="cell"), pd.Series(found.modality, name="key")]
    means = frame.groupby(keys).mean()
    cell, key = (means.index.get_level_values(name).to_numpy() for name in ("cell", "key"))
    centre, variance = {}, {}
    for k in np.unique(key):
        x, a = means.to_numpy()[key == k], area(cell[key == k])
        centre[k] = np.average(x, axis=0, weights=a)
        variance[k] = np.average(((x - centre[k]) ** 2).sum(axis=1), weights=a)
    varies = [v for v in variance.values() if v > 0]
    scale = {k: np.sqrt(np.mean(varies) / v) if v > 0 else 1.0 for k, v in variance.items()}

    def scaled(x, keys):
        c, s = (np.array([of[k] for k in keys]) for of in (centre, scale))
        return c + s[:, np.newaxis] * (x - c)

    vectors = pd.DataFrame(scaled(means.to_numpy(), key)).groupby(cell).mean()
    y = scaled(found.embedding.astype(np.float64), found.modality)
    numbers = frame.groupby(keys).size()
    spread = {}
    for c, m in vectors.iterrows():
        mine = found.grid_id == c
        n = numbers.loc[c]
        weight = 1 / n.loc[found.modality[mine]].to_numpy() / len(n)
        spread[c] = np.sqrt(weight @ ((y[mine] - m.to_numpy()) ** 2).sum(axis=1))
    return vectors, pd.Series(spread), scale


def test_means_and_spreads_are_those_of_float64():
    found = uneven_rows()
    cells = cell_statistics(found, Aggregation("variance"), ())
    vectors, spread, scale = reference(found)
    np.testing.assert_allclose(cells.embedding, vectors.loc[cells.grid_id], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(cells.spread, spread.loc[cells.grid_id], rtol=1e-5)
    assert max(scale.values()) / min(scale.values()) > 100  # there was something to balance
    plain = cell_statistics(found, Aggregation("modality"), ())
    for name in ("grid_id", "group", "n_images", "n_by_modality"):
        np.testing.assert_array_equal(getattr(cells, name), getattr(plain, name))
        assert getattr(cells, name).dtype == getattr(plain, name).dtype


def test_every_modality_then_has_the_same_variance_and_its_own_mean():
    found = uneven_rows(1)
    kinds = {}
    for balance in ("modality", "variance"):
        cells = cell_statistics(found, Aggregation(balance, by="modality"), KEYS)
        x, a = cells.embedding.astype(float), area(cells.grid_id)
        for k in range(8):
            mine = cells.group == k
            mean = np.average(x[mine], axis=0, weights=a[mine])
            square = ((x[mine] - mean) ** 2).sum(axis=1)
            kinds[balance, k] = mean, np.average(square, weights=a[mine])
    before = [kinds["modality", k][1] for k in range(8)]
    after = [kinds["variance", k][1] for k in range(8)]
    np.testing.assert_allclose(after, np.mean(before), rtol=1e-5)
    for k in range(8):
        np.testing.assert_allclose(kinds["variance", k][0], kinds["modality", k][0], atol=1e-4)


@pytest.mark.slow
@given(rows=rows(min_size=2))
def test_any_rows_give_the_cells_and_counts_of_plain_means(rows):
    """Also modalities in one cell or of equal vectors, which cannot be scaled."""
    cells = cell_statistics(rows, Aggregation("variance"), ())
    plain = cell_statistics(rows, Aggregation("modality"), ())
    np.testing.assert_array_equal(cells.grid_id, plain.grid_id)
    np.testing.assert_array_equal(cells.n_by_modality, plain.n_by_modality)
    assert np.isfinite(cells.embedding).all()
    assert np.isfinite(cells.spread).all()


def test_a_modality_that_does_not_vary_stays_as_it_is():
    cells = (772176, 773616)
    keys = [(c, k, None, None) for c in cells for k in (0, 7)]
    x = np.array([[1, 0], [0.1, 0.7], [3, 0], [0.1, 0.7]])  # the last modality is the same
    found = cell_statistics(table(keys, x), Aggregation("variance"), ())
    plain = cell_statistics(table(keys, x), Aggregation("modality"), ())
    np.testing.assert_allclose(found.embedding, plain.embedding, rtol=1e-6)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Rows in three files, cells divided between them; and the cube of them."""
    folder = tmp_path_factory.mktemp("balance")
    found = uneven_rows(2)
    (folder / "rows").mkdir()
    for i in range(3):
        write_rows(folder / "rows" / f"{i}.parquet", found.take(slice(i, None, 3)), {})
    command = ["aggregate", str(folder / "rows"), str(folder / "world.zarr")]
    assert main([*command, "--balance", "variance"]) == 0
    return folder, found


@pytest.mark.slow
def test_a_cube_of_rows_in_several_files(made):
    folder, found = made
    cube = region(folder / "world.zarr")
    cells = cell_statistics(found, Aggregation("variance"), ())
    row, col = grid.row_col(cells.grid_id)
    col = col - 90
    np.testing.assert_allclose(cube.embedding.values[row, col], cells.embedding, rtol=1e-5)
    np.testing.assert_allclose(cube.spread.values[row, col], cells.spread, rtol=1e-5)
    np.testing.assert_array_equal(cube.n_images.values[row, col], cells.n_images)
    assert int((cube.n_images > 0).sum()) == len(cells)
    assert validate(folder / "world.zarr") == []
    assert "each scaled about its mean over cells" in cube.attrs["aggregation"]
    told = dict(item.split(":") for item in cube.attrs["aggregation_scales"].split())
    _, _, scale = reference(found)
    assert {key: float(text) for key, text in told.items()} == {
        key: pytest.approx(scale[ORDER[key]], rel=1e-5) for key in KEYS
    }
    assert not (folder / "world.build" / "variances").exists()


@pytest.mark.slow
def test_files_and_their_order_change_no_bit(made, tmp_path):
    folder, found = made
    rng = np.random.default_rng(0)
    write_rows(tmp_path / "all.parquet", found.take(rng.permutation(len(found))), {})
    aggregate(tmp_path / "all.parquet", tmp_path / "again.zarr", balance="variance")
    a, b = (region(path) for path in (folder / "world.zarr", tmp_path / "again.zarr"))
    xr.testing.assert_equal(a, b)


@pytest.mark.slow
def test_it_goes_on_where_it_stopped(made, tmp_path, monkeypatch):
    folder, _ = made
    out, write, done = tmp_path / "world.zarr", tasks.cube.write_band, []

    def failing(path, band, cells):
        if band == 1 and not done:
            done.append(band)
            raise WriteError("the disk is full")
        return write(path, band, cells)

    monkeypatch.setattr(tasks.cube, "write_band", failing)
    with pytest.raises(WriteError, match="the disk is full"):
        aggregate(folder / "rows", out, balance="variance")
    tasks.variances_of.cache_clear()
    monkeypatch.setattr(tasks, "run_balance_task", None)  # it must not be needed again
    aggregate(folder / "rows", out, balance="variance")
    xr.testing.assert_equal(region(out), region(folder / "world.zarr"))


@pytest.mark.slow
def test_seasons_and_modalities_left_out(made, tmp_path):
    folder, found = made
    chosen = ["s2_toa", "s5p_co"]
    options = {"balance": "variance", "by": "year", "modalities": chosen}
    aggregate(folder / "rows", tmp_path / "years.zarr", **options)
    cube = region(tmp_path / "years.zarr")
    years = tuple(f"{year}" for year in cube.year.values)
    selection = Selection.of(chosen)
    cells = cell_statistics(found, Aggregation("variance", "year", selection), years)
    row, col = grid.row_col(cells.grid_id)
    where = cells.group, row, col - 90
    np.testing.assert_allclose(cube.embedding.values[where], cells.embedding, rtol=1e-5)
    assert cube.attrs["modalities"] == "s2_toa s5p_co"
    assert int(cube.n_images_by_modality.sum("modality").sum()) == int(cells.n_images.sum())
    changed = change(cube.isel(year=0), cube.isel(year=1))
    assert np.isfinite(changed.noise).any()  # the weights of images are known


@pytest.mark.slow
def test_no_order_of_averaging_is_looked_for(made):
    folder, _ = made
    with pytest.raises(CubeError, match="balance 'variance'"):
        averaging_order(folder / "rows", xr.open_zarr(folder / "world.zarr"))
