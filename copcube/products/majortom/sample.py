"""Small sets of embeddings in the form of Major TOM's 249k family, to try things on.

Six sets of the same cells: one vector a cell, of the central 384 × 384 pixels of its image, from
six models. The vectors are synthetic: every model sees the same smooth fields over the globe, with
its own mixing and some noise; so the sets agree like those of models that see the same. Names,
columns, types and footprints are those of the released sets.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from copcube.arguments import whole_number
from copcube.files.atomic import atomic_folder, vacant_folder
from copcube.files.regular import bytes_below
from copcube.grid import Floats
from copcube.products.majortom.grid import GRID, SIDE
from copcube.products.majortom.hilbert import hilbert
from copcube.products.majortom.table import Embeddings
from copcube.products.majortom.writing import writing_embeddings

SETS = {
    "Core-S2RGB-249k-SigLIP": 1152,
    "Core-S2RGB-249k-DINOv2": 1024,
    "Core-S2RGB-249k-FarSLIP": 512,
    "Core-S2L2A-249k-SatCLIP": 512,
    "Core-S2L2A-249k-Clay-v1_5": 1024,
    "Core-S2L2A-249k-OlmoEarth-Base": 768,
}
"""Names of the sets, and the length of their vectors here."""

_CENTRAL = 384
_FIELDS = 8
"""Smooth fields that all models see."""

_WEST, _SOUTH, _WIDTH, _HEIGHT = 4.0, 44.0, 12.0, 8.0
"""Where the cells lie: around the Alps."""


@dataclass(frozen=True)
class SampleSets:
    """What `write_embeddings` wrote.

    Parameters
    ----------
    folder : Path
        The folder of the sets.
    sets : tuple of str
        Their folders' names.
    cells : int
        Cells, hence rows, of each.
    bytes : int
        Size of all files.
    """

    folder: Path
    sets: tuple[str, ...]
    cells: int
    bytes: int


def write_embeddings(folder: str | Path, *, seed: int = 0, cells: int = 400) -> SampleSets:
    """Write six synthetic sets of embeddings in the form of Major TOM's 249k family.

    Parameters
    ----------
    folder : str or Path
        A new or empty folder, which appears when the sets are whole.
    seed : int
        Not negative; different seeds give different vectors.
    cells : int
        How many cells, 1 to 8000.

    Raises
    ------
    OptionError
        If an option is out of its range.
    WriteError
        If the folder is not empty or cannot be written.
    """
    seed = whole_number(seed, "seed", 0, 2**32 - 1)
    cells = whole_number(cells, "cells", 1, 8000)
    root = vacant_folder(folder)
    places = _places(cells)
    with atomic_folder(root, replace=False) as partial:
        for number, (name, dim) in enumerate(SETS.items()):
            (partial / name).mkdir(parents=True)
            rng = np.random.default_rng([seed, number])
            about = {"synthetic": "drawn at random by copcube sample; no image was read"}
            path = partial / name / "part_00001.parquet"
            with writing_embeddings(path, dim, sources=True, about=about) as file:
                file.write(_rows(*places, _vectors(*GRID.centre(*places), dim, seed, rng)))
        size = bytes_below(partial)
    return SampleSets(root, tuple(SETS), cells, size)


def _places(number: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of cells, spread evenly over the region."""
    row, col = GRID.cells(_SOUTH, _SOUTH + _HEIGHT)
    lat, lon = GRID.centre(row, col)
    inside = np.flatnonzero((lon >= _WEST) & (lon < _WEST + _WIDTH))
    inside = inside[np.argsort(hilbert(lat[inside], lon[inside]))]
    chosen = inside[np.linspace(0, len(inside) - 1, number).astype(np.int64)]
    return row[chosen], col[chosen]


def _rows(row: np.ndarray, col: np.ndarray, vectors: np.ndarray) -> Embeddings:
    n = len(row)
    first = (SIDE - _CENTRAL) // 2
    box = np.tile([first, first, first + _CENTRAL, first + _CENTRAL], (n, 1))
    days = [f"2022{1 + i % 12:02d}{1 + i % 28:02d}T103021" for i in range(n)]
    tile = "N0400_R108_T32TMS"
    url = "https://huggingface.co/datasets/Major-TOM/Core-S2L2A-249k/resolve/main/images/"
    return Embeddings(
        row,
        col,
        np.array([f"S2B_MSIL2A_{day}_{tile}_{day[:8]}T180000" for day in days], object),
        np.array(days, object),
        GRID.utm(row, col),
        box,
        vectors,
        parquet_url=np.full(n, f"{url}part_00001.parquet", object),
        parquet_row=np.arange(n),
    )


def _vectors(lat: Floats, lon: Floats, dim: int, seed: int, rng: np.random.Generator) -> np.ndarray:
    """Fields that all models share, mixed by one of them, with its noise; (n, dim) float32."""
    common = np.random.default_rng([seed, 1 << 20])
    waves = common.normal(0, 0.8, (2, _FIELDS))
    phases = common.uniform(0, 2 * np.pi, _FIELDS)
    fields = np.cos(np.stack([lat, lon], axis=1) @ waves + phases)
    mixing = rng.normal(size=(_FIELDS, dim)) / np.sqrt(_FIELDS)
    noise = rng.normal(0, 0.3, (len(lat), dim))
    # einsum adds in the same order on every processor; what BLAS does depends on its kernel.
    mixed = np.einsum("nf,fd->nd", fields, mixing)
    return np.asarray(rng.normal(size=dim) + mixed + noise, np.float32)
