"""Read a cube in the workers of a PyTorch DataLoader.

python examples/dataloader.py [CUBE.zarr]

Zarr and dask keep threads that a forked process does not have, so that a forked worker may wait
for them for ever. These workers start afresh (on Windows by "spawn"); each opens the cube without
dask. What fits in memory (the published map has 1 GB) needs no workers: load it once.
"""

import argparse
import tempfile

import synthetic
import torch
import xarray as xr
from torch.utils.data import DataLoader, Dataset, TensorDataset

from copcube.interchange import to_zarr  # and ds.copembed


class Blocks(Dataset[torch.Tensor]):
    """Vectors of the filled cells, (n, dim), chunk by chunk of a cube: 45 × 45 cells."""

    def __init__(self, path: str) -> None:
        self.path = path  # travels to the workers, which an open store may not
        self.ds: xr.Dataset | None = None

    def __len__(self) -> int:
        return 17 * 32

    def __getitem__(self, number: int) -> torch.Tensor:
        if self.ds is None:
            self.ds = xr.open_zarr(self.path, chunks=None)
        row, col = (45 * n for n in divmod(number, 32))
        block = self.ds.isel(lat=slice(row, row + 45), lon=slice(col, col + 45))
        return torch.from_numpy(block.embedding.values[block.n_images.values > 0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cube", nargs="?", help="a Zarr cube; a synthetic one by default")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if args.cube is None:
            to_zarr(synthetic.cube(), f"{folder}/world.zarr")
        read(args.cube or f"{folder}/world.zarr")


def read(path: str) -> None:
    blocks = DataLoader(Blocks(path), None, num_workers=2, multiprocessing_context="forkserver")
    print(f"{len(torch.cat(list(blocks))):,} cells, read by 2 workers")

    ds = xr.open_zarr(path)
    whole = torch.from_numpy(ds.embedding.values[ds.copembed.filled().values])
    batches = DataLoader(TensorDataset(whole), batch_size=4096, shuffle=True)
    print(f"{sum(len(batch) for (batch,) in batches):,} cells, loaded once")


if __name__ == "__main__":  # which workers need, since they import this file
    main()
