"""How far do two cubes agree, and where do they differ most?

python examples/compare_cubes.py [A B]

A and B are cubes of copcube or any published form: .npz, .pt, .tif, averages as .parquet.
"""

import argparse

import synthetic
import xarray as xr

from copcube.cube.compare import compare


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cubes", nargs="*", metavar="A B", help="default: two synthetic ones")
    cubes = [_open(path) for path in parser.parse_args().cubes]
    if len(cubes) not in (0, 2):
        parser.error("give two cubes, or none for synthetic ones")
    a, b = cubes or (synthetic.cube(0), synthetic.cube(1))

    found = compare(a, b)
    print(found)
    worst = found.cosine.to_series().nsmallest(3)
    print(
        "least alike:", *(f"{place}: {cosine:.4f}" for place, cosine in worst.items()), sep="\n  "
    )


def _open(path: str) -> xr.Dataset:
    return (
        xr.open_zarr(path) if path.endswith(".zarr") else xr.open_dataset(path, engine="copembed")
    )


if __name__ == "__main__":
    main()
