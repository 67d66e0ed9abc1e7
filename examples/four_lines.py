"""From embeddings to fields beside ERA5's own, in four lines.

python examples/four_lines.py [CUBE] [ERA5.nc] [--k 16] [--overwrite]

CUBE is a cube of copcube or any published form: .npz, .pt, .tif, averages as .parquet.
"""

import argparse

import synthetic
import xarray as xr

import copcube  # noqa: F401  (ds.copembed)
from copcube import era5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cube", nargs="?", help="default: a synthetic one")
    parser.add_argument("era5", nargs="?", help="ERA5's static fields (default: synthetic)")
    parser.add_argument("--k", type=float, default=2, help="components, or share of variance < 1")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing fields.npz")
    args = parser.parse_args()
    statics = era5.open_static(args.era5) if args.era5 else synthetic.era5_static()
    k = args.k if args.k < 1 else int(args.k)

    ds = _open(args.cube) if args.cube else synthetic.cube()
    fields = ds.copembed.reduce(k=k)
    both = fields.copembed.merge(statics)
    print(fields.copembed.to_npz("fields.npz", overwrite=args.overwrite))

    print(ds.copembed)
    print(fields.copembed)
    print(both)


def _open(path: str) -> xr.Dataset:
    return (
        xr.open_zarr(path) if path.endswith(".zarr") else xr.open_dataset(path, engine="copembed")
    )


if __name__ == "__main__":
    main()
