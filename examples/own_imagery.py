"""Embed imagery of one's own: a Sentinel-2 GeoTIFF, or a synthetic one.

python examples/own_imagery.py [IMAGE.tif] [--weights hub] [--date 2021-06-01]
"""

import argparse

import numpy as np
import rioxarray
import xarray as xr

from copcube import embed


def synthetic(size: int) -> xr.DataArray:
    """Thirteen bands of smooth noise near Munich, 10 m, in UTM zone 32."""
    waves = np.random.default_rng(0).normal(size=(13, size // 8 + 1, size // 8 + 1))
    pixels = 1500 + 300 * waves.repeat(8, axis=1).repeat(8, axis=2)[:, :size, :size]
    coords = {
        "y": 5_340_000 - 10 * (np.arange(size) + 0.5),
        "x": 690_000 + 10 * (np.arange(size) + 0.5),
    }
    images = xr.DataArray(pixels.astype("uint16"), dims=("band", "y", "x"), coords=coords)
    georeferenced: xr.DataArray = images.rio.write_crs("EPSG:32632")
    return georeferenced.chunk(y=224, x=224)


def main() -> None:
    parser = argparse.ArgumentParser(description="Embed imagery of one's own.")
    parser.add_argument("image", nargs="?", help="a GeoTIFF of the 13 bands (default: synthetic)")
    parser.add_argument("--weights", default="untrained:0", help="'hub' for the published ones")
    parser.add_argument("--date", default="2021-06-01")
    parser.add_argument("--size", type=int, default=448, help="side of the synthetic image")
    args = parser.parse_args()

    images = (
        rioxarray.open_rasterio(args.image, chunks=True) if args.image else synthetic(args.size)
    )
    assert isinstance(images, xr.DataArray)  # some formats have several images in a file
    lazy = embed(images, "s2_toa", weights=args.weights, date=args.date)
    print(f"{dict(images.sizes)} pixels -> {dict(lazy.sizes)} vectors, nothing computed yet")
    vectors = lazy.compute()
    print(vectors)
    first = vectors[0, 0]
    similar = (vectors * first).sum("dim") / np.sqrt((vectors**2).sum("dim") * (first**2).sum())
    print("cosine similarity to the first tile:")
    print(similar.round(4).values)


if __name__ == "__main__":
    main()
