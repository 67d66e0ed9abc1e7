"""Write a cube in every published form, open each again, and find the same vectors in all.

python examples/published_forms.py [FOLDER]
"""

import argparse
from pathlib import Path

import synthetic
import xarray as xr

import copcube  # noqa: F401  (ds.copembed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path, default=Path("."), help="where to write")
    folder = parser.parse_args().folder

    ds = synthetic.cube()
    written = [
        ds.copembed.to_npz(folder / "embed_map.npz", overwrite=True),
        ds.copembed.to_pt(folder / "embed_map.pt", overwrite=True),
        ds.copembed.to_geotiff(folder / "embed_map.tif", overwrite=True),
        ds.copembed.to_parquet(folder / "embeddings_avg.parquet", overwrite=True),
        ds.copembed.to_netcdf(folder / "embed_map.nc", overwrite=True),
    ]
    for export in written:
        print(export)
        engine = None if export.path.endswith(".nc") else "copembed"
        with xr.open_dataset(export.path, engine=engine) as again:
            agreement = ds.copembed.compare(again)
            here = again.copembed.at(lat=10, lon=-120)  # -120 or 240, as one likes
            assert agreement.identical == 1, export.path
            print(
                f"  {agreement.both:,} cells are the same; at 10°N, 120°W: {here.embedding.values}"
            )


if __name__ == "__main__":
    main()
