"""A real Sentinel-2 patch, through the whole spine with the full model."""

import functools
import shutil

import numpy as np
import pytest
import rasterio
import torch
import xarray as xr
from rasterio.warp import transform

import copcube
from copcube import grid
from copcube.encoder import load_weights
from copcube.modalities import modality

PATCH = "S2_20201002T221611_20201002T221610_T60HWB.tif"
CELL, LOCAL = "0295191_177.75_-39.00", "0865831_177.74_-38.95"
DAYS = 18537  # 2020-10-02


@pytest.mark.slow
def test_a_real_patch_fills_one_cell_in_new_zealand(shared_data, tmp_path, monkeypatch):
    load = functools.cache(load_weights)  # the build and this test draw the same noise
    monkeypatch.setattr("copcube.encoder.weights.load_weights", load)
    folder = tmp_path / "pretrain" / "s2_toa_mix" / "images" / CELL / LOCAL
    folder.mkdir(parents=True)
    shutil.copy(shared_data / PATCH, folder / PATCH.removeprefix("S2_"))
    out = tmp_path / "world.zarr"
    spec = copcube.EncoderSpec(weights="untrained:0", device="cpu", dtype="float32")
    report = copcube.build(tmp_path / "pretrain", out, encoder=spec)
    assert report.images == {"s2_toa": 1}
    assert report.rejected == {}

    with rasterio.open(shared_data / PATCH) as raster:
        pixels = raster.read()
        middle = [(a + b) / 2 for a, b in zip(raster.bounds[:2], raster.bounds[2:], strict=True)]
        (lon,), (lat,) = transform(raster.crs, "EPSG:4326", [middle[0]], [middle[1]])
    cube = xr.open_zarr(out, chunks=None)
    row, col = np.argwhere(cube.n_images.values == 1)[0]
    assert int((cube.n_images > 0).sum()) == 1
    assert (row, col) == tuple(int(i) for i in grid.cell_at(lat, lon))
    assert (float(cube.lat[row]), float(cube.lon[col])) == (-39.0, 177.75)

    s2 = modality("s2_toa")
    x = pixels[:, 20:244, 20:244].astype("float32")
    x = (x - np.array(s2.mean)[:, None, None]) / np.array(s2.std)[:, None, None]
    weights = load(spec.weights, language=None, pooling=None)
    assert weights.provenance["encoder"] == "Copernicus-FM ViT-B/16"
    with torch.no_grad():
        direct = weights.model(
            torch.tensor(x[None], dtype=torch.float32),
            torch.tensor([[177.74, -38.95, DAYS, 0.0256]], dtype=torch.float64),
            wavelengths=s2.wavelengths,
            bandwidths=s2.bandwidths,
            kernel_size=16,
        )
    np.testing.assert_allclose(cube.embedding[row, col], direct[0], atol=1e-4)
    assert cube.attrs["encoder_trained"] == 0
