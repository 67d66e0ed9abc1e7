"""Major TOM: its grid, its files of embeddings in and out.

The grid is that of the project's code (github.com/ESA-PhiLab/Major-TOM, ``grid.py`` at
7d7558f), which its released data were made with, and not that of its paper.
"""

from copcube.products.majortom.fragments import Footprints, Fragmentation, footprints
from copcube.products.majortom.grid import Grid, squares, utm_epsg
from copcube.products.majortom.hilbert import hilbert
from copcube.products.majortom.images import CoreSource, Fragments, Sample, open_core
from copcube.products.majortom.joining import common, load
from copcube.products.majortom.table import COLUMNS, Embeddings
from copcube.products.majortom.writing import encode_embeddings, writing_embeddings

__all__ = [
    "COLUMNS",
    "CoreSource",
    "Embeddings",
    "Footprints",
    "Fragmentation",
    "Fragments",
    "Grid",
    "Sample",
    "common",
    "encode_embeddings",
    "footprints",
    "hilbert",
    "load",
    "open_core",
    "squares",
    "utm_epsg",
    "writing_embeddings",
]
