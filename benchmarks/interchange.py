"""Time and peak memory of published forms: out, in, and to the first vector.

    python benchmarks/interchange.py [--cells 312567] [--quick] [--only FORM ...] [--folder DIR]

A synthetic cube of the size of the published map (benchmarks/reduce.py) is written in every
form; each is opened, asked for the vector of one cell and converted to Zarr. Every step runs
in a process of its own; files are in the page cache, as far as it goes. NumPy's way, loading
the archive and indexing it, stands beside ours. 20 GB of disk are needed for the whole world.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import reduce

from copcube.progress import size

FORMS: dict[str, tuple[str, dict[str, Any]]] = {
    "npz stored": ("stored.npz", {}),
    "npz deflated": ("deflated.npz", {"compress": True}),
    "npz int8": ("int8.npz", {"dtype": "int8"}),
    "pt": ("a.pt", {}),
    "GeoTIFF": ("embed_map_a.tif", {}),
    "parquet": ("a.parquet", {}),
    "netCDF": ("a.nc", {}),
}


def write_form(folder, form):
    from copcube import cube
    from copcube.interchange import export

    name, options = FORMS[form]
    print(export(cube.open_cube(folder / "world.zarr"), folder / name, **options), file=sys.stderr)


def first_vector(folder, form, row, col):
    import xarray as xr

    from copcube.interchange.engine import CopembedBackend

    begin = time.perf_counter()
    if form == "Zarr":
        ds = xr.open_zarr(folder / "world.zarr", chunks=None)
    elif form == "NumPy":
        import numpy as np

        return float(np.load(folder / "deflated.npz")["arr_0"][row, (col + 720) % 1440].sum())
    elif form == "netCDF":
        ds = xr.open_dataset(folder / "a.nc", engine="netcdf4")
    else:
        ds = xr.open_dataset(folder / FORMS[form][0], engine=CopembedBackend)
    print(f"opened in {time.perf_counter() - begin:.3f} s", file=sys.stderr)
    return float(ds.embedding.isel(lat=row, lon=col).sum())


def to_zarr(folder, form):
    from copcube.interchange import convert

    convert(folder / FORMS[form][0], folder / "converted.zarr", overwrite=True)


def step(folder, what, form, *place):
    """One step in a process of its own: seconds without imports, peak memory with."""
    command = [sys.executable, __file__, "--folder", folder, "--step", what, form]
    done = subprocess.run(
        [*map(str, command), *map(str, place)], check=True, stdout=subprocess.PIPE, text=True
    )
    seconds, peak, value = json.loads(done.stdout.splitlines()[-1])
    print(f"{what:8} {form:13} {seconds:8.2f} s   peak {size(peak)}", flush=True)
    return value


def main():
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--cells", type=int, default=reduce.CELLS)
    options.add_argument("--quick", action="store_true", help="16 dimensions, few cells")
    options.add_argument("--only", nargs="+", default=list(FORMS), help=", ".join(FORMS))
    options.add_argument("--folder", type=Path, help="where to write; removed by default")
    options.add_argument("--step", nargs="+", help=argparse.SUPPRESS)
    chosen = options.parse_args()
    if chosen.step:
        what, form, *place = chosen.step
        import rasterio  # noqa: F401  (imports are no part of a step)
        import xarray as xr
        import zarr  # noqa: F401

        import copcube.interchange.engine  # noqa: F401

        xr.backends.list_engines()
        if form == "pt":
            import torch  # noqa: F401
        steps: dict[str, Callable[..., Any]]
        steps = {"write": write_form, "convert": to_zarr, "vector": first_vector}
        begin = time.perf_counter()
        value = steps[what](chosen.folder, form, *map(int, place))
        seconds = time.perf_counter() - begin
        status = Path("/proc/self/status").read_text()  # ru_maxrss counts the parent's, too
        peak = int(status.split("VmHWM:")[1].split()[0]) * 1024
        print(json.dumps([seconds, peak, value]))
        return
    if chosen.quick:
        chosen.cells, reduce.DIM = min(chosen.cells, 20_000), 16
    with tempfile.TemporaryDirectory(dir=chosen.folder) as name:
        folder = Path(name)
        reduce.write(folder, chosen.cells)
        (folder / "world.npz").unlink()
        for form in chosen.only:
            step(folder, "write", form)
            print(f"{'':22} {size((folder / FORMS[form][0]).stat().st_size)}")
        row, col = divmod(int(reduce.land(chosen.cells)[chosen.cells // 2]), 1440)
        found = {
            form: step(folder, "vector", form, row, col)
            for form in (
                "Zarr",
                *chosen.only,
                *(["NumPy"] if "npz deflated" in chosen.only else []),
            )
            if form != "npz int8"
        }
        assert max(found.values()) - min(found.values()) < 1e-3 * abs(found["Zarr"]) + 1e-3, found
        for form in (form for form in chosen.only if form not in ("netCDF", "npz int8")):
            step(folder, "convert", form)


if __name__ == "__main__":
    main()
