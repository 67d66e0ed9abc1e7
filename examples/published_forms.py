"""Write a cube in every published form, open each again, and find the same vectors in all.

python examples/published_forms.py [FOLDER] [--overwrite]
"""

import argparse
from pathlib import Path

import synthetic
import xarray as xr

import copcube  # and ds.copembed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path, default=Path("."), help="where to write")
    parser.add_argument("--overwrite", action="store_true", help="replace what is there")
    args = parser.parse_args()
    folder, options = args.folder, {"overwrite": args.overwrite}

    ds = synthetic.cube()
    written = [
        ds.copembed.to_npz(folder / "embed_map.npz", **options),
        ds.copembed.to_pt(folder / "embed_map.pt", **options),
        ds.copembed.to_geotiff(folder / "embed_map.tif", **options),
        ds.copembed.to_parquet(folder / "embeddings_avg.parquet", **options),
        ds.copembed.to_netcdf(folder / "embed_map.nc", **options),
    ]
    for export in written:
        print(export)
        engine = None if export.path.endswith(".nc") else "copembed"
        with xr.open_dataset(export.path, engine=engine) as again:
            check(ds, again)

    zarr = copcube.convert(folder / "embed_map.npz", folder / "embed_map.zarr", **options)
    print(f"{zarr}: made of the npz")
    check(ds, xr.open_zarr(zarr))


def check(ds: xr.Dataset, again: xr.Dataset) -> None:
    agreement = ds.copembed.compare(again)
    assert agreement.identical == 1
    here = again.copembed.at(lat=10, lon=-120)  # -120 or 240, as one likes
    print(f"  {agreement.both:,} cells are the same; at 10°N, 120°W: {here.embedding.values}")


if __name__ == "__main__":
    main()
