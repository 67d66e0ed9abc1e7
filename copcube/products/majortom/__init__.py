"""Major TOM: its grid, its files of embeddings in and out.

The grid is that of the project's code (github.com/ESA-PhiLab/Major-TOM, ``grid.py`` at
7d7558f), which its released data were made with, and not that of its paper.
"""

from copcube.products.majortom.fragments import Fragmentation, footprints
from copcube.products.majortom.grid import Grid, squares, utm_epsg

__all__ = ["Fragmentation", "Grid", "footprints", "squares", "utm_epsg"]
