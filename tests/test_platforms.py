"""Systems without POSIX: reading, reducing, merging and exporting need none of it."""

import subprocess
import sys
import textwrap

import pytest

WINDOWS = """
    import os, sys
    # Packages of others choose what they need by the name of the system, which is not changed.
    import dask.array, netCDF4, numpy, pyarrow.parquet, rioxarray, scipy.sparse, xarray, zarr

    for name in ("fcntl", "resource", "pwd", "grp", "termios"):
        sys.modules[name] = None
    for name in ("sched_getaffinity", "pwrite", "pread", "fork", "getuid", "O_DIRECTORY"):
        if hasattr(os, name):
            delattr(os, name)
    os.process_cpu_count = os.cpu_count  # of Python 3.13, where there is no affinity
"""

USE = """
    import numpy as np
    import xarray as xr

    import copcube.accessor, copcube.cube, copcube.era5, copcube.interchange, copcube.pca
    from copcube import cube, grid
    from copcube.cells import Cells

    n = 40
    rng = np.random.default_rng(0)
    cube.create("a.zarr", dim=6)
    for band in range(grid.N_BANDS):
        row = np.full(n if band < 3 else 0, grid.Block(band, 0).rows.start)
        size = len(row)
        counts = np.ones((size, 8), np.int32)
        cells = Cells(
            group=np.zeros(size, np.int16),
            grid_id=grid.grid_id(row, np.arange(size)),
            embedding=rng.random((size, 6), np.float32),
            spread=np.zeros(size, np.float32),
            n_images=counts.sum(axis=1, dtype=np.int32),
            n_by_modality=counts,
        )
        cube.write_band("a.zarr", band, cells)
    cube.finish("a.zarr")
    assert cube.validate("a.zarr") == []

    ds = xr.open_zarr("a.zarr")
    fields = ds.copembed.reduce(k=2).load()
    static = xr.Dataset(
        {"z": (("latitude", "longitude"), np.zeros((721, 1440), np.float32))},
        {"latitude": np.linspace(90, -90, 721), "longitude": np.arange(1440) / 4},
    )
    assert "z" in fields.copembed.merge(static)
    for name in ("npz", "nc", "tif", "parquet"):
        exported = ds if name == "parquet" else fields
        getattr(exported.copembed, {EXPORTS}[name])("a." + name)
        with xr.open_dataset("a." + name, engine="copembed") as again:
            again.load()
            assert again.sizes["lat"] == 721

    from copcube.cli import main

    assert main(["info", "a.zarr"]) == 0
    print("done")
"""


@pytest.mark.slow
def test_a_cube_is_used_where_there_is_no_posix(tmp_path):
    exports = {"npz": "to_npz", "nc": "to_netcdf", "tif": "to_geotiff", "parquet": "to_parquet"}
    code = textwrap.dedent(WINDOWS) + textwrap.dedent(USE).replace("{EXPORTS}", repr(exports))
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-1] == "done"
