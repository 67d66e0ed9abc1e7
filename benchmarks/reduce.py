"""Time, peak memory and error of a PCA of the whole world, side by side with its peers.

    python benchmarks/reduce.py [--cells 312567] [--quick] [--k 16] [--only NAME ...]

A synthetic cube with the size of the published map: 312,567 land-like cells on
721 × 1440 × 768, standard deviations i^-0.8 along randomly rotated axes, mean not zero.
copcube reads it as Zarr; the peers load the same vectors from an npz in the form of the
published one (stored, zeros for missing), for they have no other way. Each method runs in
a process of its own, from the file to components and fields, and does what its users would
write down; its error is against products of all vectors in float64. A peer that is not
installed, takes too long or runs out of memory is reported as such.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

import numpy as np

from copcube import grid

DIM = 768
CELLS = 312_567


def land(cells):
    """Flat positions, in ERA5's order, of cells in a few continents of smooth outline."""
    rng = np.random.default_rng(7)
    lat = np.radians(grid.latitudes())[:, None]
    lon = np.radians(grid.longitudes())[None, :]
    height = np.zeros((grid.N_LAT, grid.N_LON))
    for degree in range(1, 40):
        for _ in range(4):
            phase, tilt = rng.uniform(0, 2 * np.pi, 2)
            wave = degree * (lat * np.sin(tilt)) + round(degree * np.cos(tilt)) * lon
            height += rng.normal() / degree * np.cos(wave + phase)
    height[np.abs(grid.latitudes()) > 85] = -np.inf
    return np.sort(np.argpartition(-height.ravel(), cells)[:cells])


def write(folder, cells):
    """Write world.zarr and world.npz of the same vectors, band by band."""
    from copcube import cube
    from copcube.cells import Cells

    rng = np.random.default_rng(0)
    turn = np.linalg.qr(rng.normal(size=(DIM, DIM)))[0]
    spread = (np.arange(1, DIM + 1) ** -0.8)[:, None] * turn
    mean = 0.3 * rng.normal(size=DIM)
    row, col = np.divmod(land(cells), grid.N_LON)
    cube.create(folder / "world.zarr", dim=DIM, attrs={"encoder": "synthetic"})
    with (
        zipfile.ZipFile(folder / "world.npz", "w", zipfile.ZIP_STORED) as archive,
        archive.open("arr_0.npy", "w", force_zip64=True) as npz,
    ):
        header = {"descr": "<f4", "fortran_order": False, "shape": (grid.N_LAT, grid.N_LON, DIM)}
        np.lib.format.write_array_header_2_0(npz, header)
        for band in range(grid.N_BANDS):
            rows = grid.Block(band, 0).rows
            inside = (row >= rows.start) & (row < rows.stop)
            n = int(inside.sum())
            x = rng.standard_normal((n, DIM), np.float32) @ spread.astype(np.float32)
            x += mean.astype(np.float32)
            ones = np.ones(n, np.int32)
            ids = grid.grid_id(row[inside], col[inside])
            by_modality = np.tile(np.array([1, 0, 0, 0, 0, 0, 0, 0], np.int32), (n, 1))
            zeros = np.zeros(n, np.float32)
            part = Cells(ids, np.zeros(n, np.int16), ones, by_modality, zeros, x)
            cube.write_band(folder / "world.zarr", band, part)
            plane = np.zeros((rows.stop - rows.start, grid.N_LON, DIM), np.float32)
            plane[row[inside] - rows.start, (col[inside] + grid.N_LON // 2) % grid.N_LON] = x
            npz.write(plane.data)
    cube.finish(folder / "world.zarr")


def load(folder):
    """The filled vectors of the npz, as the peers' users load them."""
    embed_map = np.load(folder / "world.npz")["arr_0"]
    return embed_map[embed_map.any(axis=-1)]  # the map is freed with the return


def with_copcube(folder, k):
    """Components and fields by copcube, from Zarr on disk."""
    import xarray as xr

    from copcube.pca.components import reduce

    fields = reduce(xr.open_zarr(folder / "world.zarr"), k=k, weights=None).compute()
    return fields.components.values, fields.explained_variance.values


def with_copcube_given(folder, k):
    """Components of what nine given fields and products of them leave over, from Zarr on disk."""
    import xarray as xr

    from copcube.pca.components import reduce

    rng = np.random.default_rng(1)
    smooth = [np.cumsum(rng.normal(size=(grid.N_LAT, grid.N_LON)), axis=1) for _ in range(3)]
    given = xr.Dataset(
        {name: (("lat", "lon"), v) for name, v in zip(("z", "lsm", "sdor"), smooth, strict=True)},
        {"lat": grid.latitudes(), "lon": grid.longitudes()},
    )
    cube = xr.open_zarr(folder / "world.zarr")
    fields = reduce(cube, k=k, weights=None, given=given, degree=2).compute()
    # Unrelated fields explain next to nothing: the axes are those of the vectors themselves.
    return fields.components.values, fields.explained_variance.values


def with_sklearn(folder, k):
    """Components and scores by scikit-learn's PCA, with its defaults."""
    from sklearn.decomposition import PCA

    model = PCA(k)
    model.fit_transform(load(folder))
    return model.components_, model.explained_variance_


def with_incremental(folder, k):
    """Components and scores by scikit-learn's IncrementalPCA, with its default batches."""
    from sklearn.decomposition import IncrementalPCA

    model, x = IncrementalPCA(k), load(folder)
    model.fit(x)
    model.transform(x)
    return model.components_, model.explained_variance_


def with_xeofs(folder, k):
    """Components and scores by xeofs, for which the filled cells are samples."""
    import xarray as xr
    from xeofs.single import EOF

    model = EOF(n_modes=k, random_state=0)
    x = load(folder)
    coords = {"cell": np.arange(len(x)), "dim": np.arange(DIM)}
    model.fit(xr.DataArray(x, coords), dim="cell")
    model.scores().compute()
    components = model.components().transpose("mode", "dim").values
    return components, model.explained_variance().values


REFERENCE = "numpy in float64, npz"
METHODS = {
    "copcube reduce, Zarr": with_copcube,
    "copcube reduce, 9 predictors given": with_copcube_given,
    "scikit-learn PCA, npz": with_sklearn,
    "scikit-learn IncrementalPCA, npz": with_incremental,
    "xeofs EOF, npz": with_xeofs,
}


def reference(folder, k):
    """Components and variances from products of all vectors in float64."""
    x = load(folder)
    mean = x.mean(axis=0, dtype=np.float64)
    covariance = np.zeros((DIM, DIM))
    for start in range(0, len(x), 8192):
        y = x[start : start + 8192] - mean
        covariance += y.T @ y
    values, vectors = np.linalg.eigh(covariance / (len(x) - 1))
    return vectors[:, ::-1].T[:k], values[::-1][:k]


def child(name, folder, k):
    """Run one method here; print its figures as one line of JSON."""
    folder = Path(folder)
    method = reference if name == REFERENCE else METHODS[name]
    begin = time.perf_counter()
    try:
        components, variance = method(folder, k)
    except ImportError as missing:
        print(json.dumps({"note": f"not installed ({missing.name})"}))
        return
    seconds = time.perf_counter() - begin
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    if name == REFERENCE:
        np.savez(folder / "reference.npz", components=components, variance=variance)
    with np.load(folder / "reference.npz") as exact:
        spaces, variances = exact["components"], exact["variance"]
    turn = np.linalg.norm(components - (components @ spaces.T) @ spaces, 2)
    error = np.abs(variance / variances - 1).max()
    figures = {"seconds": seconds, "peak": peak, "error": float(error), "angle": float(turn)}
    print(json.dumps(figures))


def measure(name, folder, k, limit):
    """Run one method in a process of its own; its row of the table."""
    command = [sys.executable, __file__, "--child", name, str(folder), "--k", str(k)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit, check=False)
    except subprocess.TimeoutExpired:
        return f"| {name} | stopped after {limit} s | | | |"
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["killed"])[-1]
        return f"| {name} | failed: {reason} | | | |"
    found = json.loads(done.stdout.splitlines()[-1])
    if "note" in found:
        return f"| {name} | {found['note']} | | | |"
    return "| {name} | {seconds:.1f} | {peak:.2f} | {error:.1e} | {angle:.1e} |".format(
        name=name, **found
    )


def main():
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--cells", type=int, default=CELLS)
    options.add_argument("--quick", action="store_true", help="20,000 cells")
    options.add_argument("--k", type=int, default=16)
    options.add_argument("--only", nargs="+", metavar="NAME", help="methods that start so")
    options.add_argument("--limit", type=int, default=300, help="seconds a method may take")
    options.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    chosen = options.parse_args()
    if chosen.child:
        name, folder = chosen.child
        child(name, folder, chosen.k)
        return
    cells = 20_000 if chosen.quick else chosen.cells
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write(folder, cells)
        exact = measure(REFERENCE, folder, chosen.k, None)
        print(f"{cells:,} cells of 721 × 1440, {DIM} dimensions, k = {chosen.k}\n")
        print("| method | s | peak GB | error of variances | sine of angle |")
        print("|---|---|---|---|---|")
        print(exact, flush=True)
        for name in METHODS:
            if not chosen.only or name.startswith(tuple(chosen.only)):
                print(measure(name, folder, chosen.k, chosen.limit), flush=True)


if __name__ == "__main__":
    main()
