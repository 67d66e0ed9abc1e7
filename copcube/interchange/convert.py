"""Published maps as Zarr cubes, band by band."""

import logging
from pathlib import Path

import numpy as np

from copcube import cube, grid, progress
from copcube.cells import Cells
from copcube.errors import CubeError
from copcube.interchange.cache import FilledCells
from copcube.interchange.engine import dataset, find_map
from copcube.interchange.replacing import appearing, require_free_store
from copcube.interchange.sources import MapSource
from copcube.modalities import MODALITIES

log = logging.getLogger("copcube")


def convert(path: str | Path, out: str | Path, *, overwrite: bool = False) -> Path:
    """Make a Zarr cube of a published map or of an export.

    A map does not say how many images its vectors are the means of: the cube has no
    ``spread`` and no ``n_images_by_modality``, its ``n_images`` is 1 where there is a vector,
    and the attribute ``n_images_known`` is 0.

    Parameters
    ----------
    path : str or Path
        File of any format that the engine ``copembed`` opens, except netCDF, which holds a dataset.
    out : str or Path
        Cube to write; it appears complete or not at all.
    overwrite : bool
        Replace what is there.

    Returns
    -------
    Path
        The cube.

    Raises
    ------
    CubeError
        If the file holds no map, or the reduction of one.
    RowsError
        If a parquet file holds no averages.
    WriteError
        If the cube exists already or cannot be written.
    """
    target = require_free_store(out, overwrite, path)
    source = find_map(path)
    if source.metadata.variable != "embedding":
        raise CubeError(
            f"{path}: holds a reduction, not the embeddings of a cube; open it with "
            "engine='copembed' and save it with .to_zarr"
        )
    attrs = dataset(source).attrs
    with appearing(out, overwrite, path, folder=True) as temporary:
        cube.create(temporary, dim=source.dim, attrs=attrs, counted=False)
        with progress.show("converting", grid.N_BANDS, "bands") as bar:
            for band, filled in enumerate(source.bands()):
                cube.write_band(temporary, band, _cells(source, filled))
                bar.advance()
        cube.finish(temporary)
    log.info("%s: made of %s", out, path)
    return target


def _cells(source: MapSource, filled: FilledCells) -> Cells:
    row, col, vectors = filled
    if source.metadata.order == "published":
        col = grid.published_column(col)
    # In a cube, such a vector would be missing although its cell counts images.
    if not np.isfinite(vectors).all():
        broken = int(np.argmin(np.isfinite(vectors).all(axis=1)))
        cell = grid.format_cell(grid.grid_id(int(row[broken]), int(col[broken])))
        raise CubeError(
            f"{source.path}: the vector of cell {cell} holds a value that is not finite; "
            "set such cells to 0, which means missing"
        )
    n = len(row)
    return Cells(
        grid.grid_id(row, col),
        np.zeros(n, np.int16),
        np.ones(n, np.int32),
        np.zeros((n, len(MODALITIES)), np.int32),
        np.zeros(n, np.float32),
        vectors,
    )
