"""Two years on the same principal components, and how far the second is from the first.

python examples/same_axes.py [CUBE CUBE] [--k 4]

The cubes are of copcube or any published form: .npz, .pt, .tif, averages as .parquet.
"""

import argparse

import numpy as np
import synthetic
import xarray as xr

import copcube  # noqa: F401  (ds.copembed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cubes", nargs="*", metavar="CUBE", help="default: two synthetic ones")
    parser.add_argument("--k", type=int, default=4, help="components")
    args = parser.parse_args()
    if len(args.cubes) not in (0, 2):
        parser.error("give two cubes, or none for synthetic ones")
    first, second = map(_open, args.cubes) if args.cubes else map(synthetic.cube, (0, 1))

    basis = first.copembed.fit(args.k)
    one, two = first.copembed.project(basis), second.copembed.project(basis)
    share = float(basis.explained_variance_ratio.sum())
    print(f"{args.k} components explain {share:.2%} of the first cube's variance")

    moved = np.sqrt(((two.pc - one.pc) ** 2).mean(("lat", "lon")) / basis.explained_variance)
    print("rms difference of every component, in its standard deviations:", moved.values)

    again = two.copembed.restore()
    lost = ((again.embedding - second.embedding) ** 2).mean()
    print(f"restored vectors differ by {float(np.sqrt(lost)):.3g} rms a value")


def _open(path: str) -> xr.Dataset:
    return (
        xr.open_zarr(path) if path.endswith(".zarr") else xr.open_dataset(path, engine="copembed")
    )


if __name__ == "__main__":
    main()
