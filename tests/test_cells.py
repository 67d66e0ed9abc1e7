import numpy as np
import pyarrow as pa
import pytest

from copcube import grid
from copcube.cells import Cells, decode_cells, encode_cells
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
def test_the_bytes_of_bands_give_back_the_cells(groups):
    cells = random_cells(2000, groups)
    data = encode_cells(cells)
    found = {band: decode_cells(data, "a", band) for band in range(grid.N_BANDS)}
    assert same(Cells.concatenate(list(found.values())), cells)
    for band, some in found.items():
        row, _ = grid.row_col(some.grid_id)
        assert set(row // grid.BLOCK) == {band}
        assert same(some, Cells.concatenate([some]))


def test_an_empty_table_goes_round():
    cells = random_cells(3).take(np.zeros(3, bool))
    assert same(decode_cells(encode_cells(cells), "a", 3), cells)
    assert list(cells.by_band()) == []


def test_bytes_are_the_same_and_duplicates_are_kept():
    cells = Cells(*(getattr(random_cells(50), name) for name in FIELDS), duplicates=7)
    one, other = (bytes(encode_cells(cells)) for _ in range(2))
    assert one == other
    assert decode_cells(one, "a", 0).duplicates == 7


def test_vectors_are_views_of_the_bytes():
    data = bytes(encode_cells(random_cells(500)))
    before = pa.total_allocated_bytes()
    cells = decode_cells(data, "a", 8)
    assert len(cells) > 0
    assert pa.total_allocated_bytes() - before < cells.embedding.nbytes
    assert not cells.embedding.flags.owndata
    assert not cells.embedding.flags.writeable


def test_pieces_join_to_the_whole():
    cells = random_cells(300, groups=2)
    mask = np.random.default_rng(1).random(300) < 0.5
    assert same(Cells.concatenate([cells.take(mask), cells.take(~mask)]), cells)
    with pytest.raises(RowsError, match="occurs twice"):
        Cells.concatenate([cells, cells.take(slice(5, 6))])
    with pytest.raises(RowsError, match=r"lengths \[4, 5\]"):
        Cells.concatenate([cells, random_cells(2, dim=4)])


def test_of_a_file_one_band_is_read(tmp_path):
    cells = random_cells(400)
    path = tmp_path / "a.arrow"
    path.write_bytes(encode_cells(cells))
    band = grid.row_col(cells.grid_id)[0] // grid.BLOCK
    assert same(decode_cells(str(path), "a", 11), cells.take(band == 11))
    polar = cells.take(band < 11)
    path.write_bytes(encode_cells(polar))
    assert len(decode_cells(str(path), "a", 11)) == 0
    with pytest.raises(FileNotFoundError):
        decode_cells(str(tmp_path / "b.arrow"), "b", 11)


@pytest.mark.parametrize("data", [b"", b"ARROW1, not"])
def test_other_bytes_are_refused(data):
    with pytest.raises(RowsError, match=r"a\.arrow: not a readable file of cells"):
        decode_cells(data, "a.arrow", 0)
