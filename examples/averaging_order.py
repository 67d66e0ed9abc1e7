"""In which order was a file of averages averaged?

python examples/averaging_order.py [ROWS AVERAGES]

ROWS is a folder of embeddings of single images (published: full_chunks), AVERAGES what was
made of them: a cube or any published form.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
import xarray as xr

from copcube import grid
from copcube.cube.averaging import averaging_order, nested_mean
from copcube.modalities import ORDER
from copcube.rows import Rows, encode_rows


def images(cells: int = 40, dim: int = 8) -> Rows:
    """Embeddings such as the published ones: Sentinel-1 and -2 of local patches, and a DEM."""
    rng = np.random.default_rng(0)
    keys: list[tuple[int, int, str | None, str | None]] = []
    for number in rng.choice(grid.N_LAT * grid.N_LON, cells, replace=False):
        keys.append((number, ORDER["dem"], None, None))
        for code in (ORDER["s1_grd"], ORDER["s2_toa"]):
            for patch in range(rng.integers(1, 4)):
                for month in rng.choice(12, rng.integers(1, 5), replace=False) + 1:
                    keys.append((number, code, f"{patch:07d}_0.00_0.00", f"2021{month:02d}01"))
    cell, modality, local, date = np.array(keys, object).T
    vectors = rng.normal(size=(len(keys), dim)).astype("f4")
    return Rows(cell.astype("i8"), modality.astype("i1"), local, date, vectors)


def averages(rows: Rows) -> xr.Dataset:
    """What somebody made of them, without telling us how."""
    vectors = nested_mean(rows, ("modality", "local"))
    values = np.full((grid.N_LAT, grid.N_LON, vectors.shape[1]), np.nan, "f4")
    values[grid.row_col(np.unique(rows.grid_id))] = vectors
    coords = {"lat": grid.latitudes(), "lon": grid.longitudes()}
    return xr.Dataset({"embedding": (("lat", "lon", "dim"), values)}, coords)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="*", metavar="ROWS AVERAGES", help="default: synthetic")
    if files := parser.parse_args().files:
        print(averaging_order(files[0], xr.open_dataset(files[1], engine="copembed")))
        return
    with tempfile.TemporaryDirectory() as folder:
        rows = images()
        Path(folder, "rows.parquet").write_bytes(encode_rows(rows, {}, "rows.parquet"))
        print(averaging_order(folder, averages(rows)))


if __name__ == "__main__":
    main()
