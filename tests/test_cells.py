import hashlib

import numpy as np
import pyarrow as pa
import pytest

from copcube import grid
from copcube.cells import Cells, read_cells, write_cells
from copcube.errors import RowsError

FIELDS = ("grid_id", "group", "n_images", "n_by_modality", "spread", "embedding")


def random_cells(n, groups=1, dim=5, seed=0) -> Cells:
    rng = np.random.default_rng(seed)
    places = rng.choice(groups * grid.N_LAT * grid.N_LON, n, replace=False)
    group, cell = np.divmod(places, grid.N_LAT * grid.N_LON)
    by_modality = rng.integers(0, 4, (n, 8)).astype(np.int32)
    cells = Cells(
        cell.astype(np.int64),
        group.astype(np.int16),
        by_modality.sum(axis=1, dtype=np.int32),
        by_modality,
        rng.random(n, np.float32),
        rng.normal(size=(n, dim)).astype(np.float32),
    )
    return Cells.concatenate([cells])


def same(a: Cells, b: Cells) -> bool:
    equal = all(np.array_equal(getattr(a, name), getattr(b, name)) for name in FIELDS)
    return equal and a.duplicates == b.duplicates


def test_order_is_group_then_north_to_south_then_west_to_east():
    cells = random_cells(500, groups=3)
    row, col = grid.row_col(cells.grid_id)
    keys = list(zip(cells.group, row, col, strict=True))
    assert keys == sorted(keys)


@pytest.mark.parametrize("groups", [1, 4])
def test_a_file_gives_back_the_cells_whole_and_by_band(tmp_path, groups):
    cells = random_cells(2000, groups)
    path = tmp_path / "a.arrow"
    write_cells(path, cells)
    assert same(read_cells(path), cells)
    row, _ = grid.row_col(cells.grid_id)
    for band in range(grid.N_BANDS):
        assert same(read_cells(path, band), cells.take(row // grid.BLOCK == band))


def test_an_empty_table_goes_round(tmp_path):
    cells = random_cells(3).take(np.zeros(3, bool))
    write_cells(tmp_path / "a.arrow", cells)
    assert same(read_cells(tmp_path / "a.arrow"), cells)
    assert read_cells(tmp_path / "a.arrow", 3).embedding.shape == (0, 5)


def test_bytes_are_the_same_and_duplicates_are_kept(tmp_path):
    cells = Cells(*(getattr(random_cells(50), name) for name in FIELDS), duplicates=7)
    digests = set()
    for name in "ab":
        write_cells(tmp_path / name, cells)
        digests.add(hashlib.sha256((tmp_path / name).read_bytes()).hexdigest())
    assert len(digests) == 1
    assert read_cells(tmp_path / "a").duplicates == 7


def test_vectors_are_views_of_the_file(tmp_path):
    write_cells(tmp_path / "a.arrow", random_cells(50))
    before = pa.total_allocated_bytes()
    cells = read_cells(tmp_path / "a.arrow")
    assert pa.total_allocated_bytes() - before < cells.embedding.nbytes
    assert not cells.embedding.flags.owndata
    assert not cells.embedding.flags.writeable


def test_pieces_join_to_the_whole():
    cells = random_cells(300, groups=2)
    mask = np.random.default_rng(1).random(300) < 0.5
    assert same(Cells.concatenate([cells.take(mask), cells.take(~mask)]), cells)
    with pytest.raises(RowsError, match="comes twice"):
        Cells.concatenate([cells, cells.take(slice(5, 6))])
    with pytest.raises(RowsError, match=r"lengths \[4, 5\]"):
        Cells.concatenate([cells, random_cells(2, dim=4)])


def test_other_files_are_refused(tmp_path):
    (tmp_path / "a.arrow").write_bytes(b"ARROW1, not")
    with pytest.raises(RowsError, match="not a readable file of cells"):
        read_cells(tmp_path / "a.arrow")
    with pytest.raises(RowsError, match="not a readable file of cells"):
        read_cells(tmp_path / "none.arrow")
