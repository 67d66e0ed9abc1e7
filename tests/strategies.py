"""Hypothesis strategies shared by the tests: tables of embeddings and ways to split them."""

from pathlib import Path

import numpy as np
from hypothesis import strategies as st

from copcube import grid
from copcube.rows import Rows, encode_rows

CELLS = (0, 719, 772176, 772177, 773616, 906994, 200599, 1_038_239)
"""Both poles, the antimeridian, neighbours, published ids."""
LOCALS = (None, "0865831_-95.92_43.96", "0865832_-95.90_43.96", "1000001_-95.90_44.01")
DATES = (None, "20201222", "20210101", "20210228", "20210601", "20210831", "20221130")


def table(keys, vectors):
    """Rows from (cell, modality, local, date) tuples and an (n, D) array."""
    cell, modality, local, date = zip(*keys, strict=True) if keys else ((), (), (), ())
    return Rows(
        np.array(cell, np.int64),
        np.array(modality, np.int8),
        np.array(local, object),
        np.array(date, object),
        np.asarray(vectors, np.float32).reshape(len(keys), -1),
    )


@st.composite
def rows(draw, min_size=1, max_size=40, dim=5, cancelling=False):
    """Rows of different images, in any order, with vectors of very different sizes.

    With `cancelling`, sums of the vectors in float64 depend on their order.
    """
    key = st.tuples(
        st.sampled_from(CELLS),
        st.integers(0, 7),
        st.sampled_from(LOCALS),
        st.sampled_from(DATES),
    )
    keys = draw(st.lists(key, min_size=min_size, max_size=max_size, unique=True))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    if cancelling:
        return table(keys, rng.choice([1e25, -1e25, 3e20, -3e20, 1.1, 0.7], (len(keys), dim)))
    scale = 10.0 ** rng.integers(-3, 4, (len(keys), 1))
    return table(keys, rng.normal(draw(st.sampled_from((0, 1e3))), scale, (len(keys), dim)))


def random_rows(n, cells=50, dim=6, seed=0):
    """n rows of different images over some cells."""
    rng = np.random.default_rng(seed)
    chosen = rng.choice(grid.N_LAT * grid.N_LON, cells, replace=False)
    months = rng.integers(1, 13, n)
    keys = [
        (
            int(rng.choice(chosen)),
            int(rng.integers(0, 8)),
            f"{i:07d}_1.00_2.00",
            None if i % 9 == 0 else f"{2020 + i % 3}{month:02d}15",
        )
        for i, month in enumerate(months)
    ]
    return table(keys, rng.normal(size=(n, dim)))


def write_rows(path, rows: Rows, provenance: dict[str, str | int]) -> None:
    """Write rows to a parquet file."""
    Path(path).write_bytes(encode_rows(rows, provenance, path))
