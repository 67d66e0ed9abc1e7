"""The coordinate rows of the paper's table, from real climatologies that packages bring.

Optional, since it brings 184 MB: COPCUBE_REAL_CLIMATE=fetch downloads the packages with pip, and
COPCUBE_REAL_CLIMATE=FOLDER takes the wheels that lie there. Their arrays have terms of their own
and are not part of a checkout: maps of the ITU-R (P.1510, P.837) in itur, ERA5 and CRU in ecmean4.
"""

import io
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from copcube import grid
from copcube.cube.view import CubeView
from copcube.probes import probe, reference, table
from copcube.probes.statistics import Targets

WHEELS = {"itur": "0.4.0", "ecmean4": "0.1.17"}
WANTED = os.environ.get("COPCUBE_REAL_CLIMATE", "")


@pytest.fixture(scope="module")
def wheels(tmp_path_factory):
    """Open wheels of the packages, by name."""
    if not WANTED:
        pytest.skip("COPCUBE_REAL_CLIMATE is not set: fetch, or a folder with the wheels")
    folder = Path(WANTED)
    if WANTED == "fetch":
        folder = tmp_path_factory.mktemp("wheels")
        names = [f"{name}=={version}" for name, version in WHEELS.items()]
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "-d", str(folder)]
        fetched = subprocess.run([*pip, *names], capture_output=True, text=True)
        if fetched.returncode:
            pytest.skip(f"the packages cannot be had: {fetched.stderr.strip()[-200:]}")
    return {
        name: zipfile.ZipFile(next(folder.glob(f"{name}-{version}-*.whl")))
        for name, version in WHEELS.items()
    }


def array(wheel, name):
    with np.load(io.BytesIO(wheel.read(f"itur/data/{name}.npz"))) as stored:
        return stored[stored.files[0]]


def months(wheel, number, fields, axes, unit, name):
    """Twelve monthly means, of nodes whose coordinates the package has as two-dimensional maps."""
    lat, lon = (array(wheel, f"{number}/{axis}") for axis in axes)
    data = np.stack([array(wheel, f"{number}/{fields}{n:02d}") for n in range(1, 13)])
    dims = ("month", "lat", "lon")
    ds = xr.Dataset({name: (dims, data, {"units": unit})}, {"lat": lat[:, 0], "lon": lon[0]})
    return ds.sortby("lat")


def climatology(wheel, kind, name):
    """One of the climatologies of ERA5 or CRU, from 1990 to 2019."""
    path = f"ecmean/climatology/EC23/r360x180/{kind}_{name}_r360x180_1990-2019.nc"
    return xr.load_dataset(wheel.read(path))


def squeezed(ds, name):
    return ds[name].squeeze(drop=True)


@pytest.fixture(scope="module")
def statistics(wheels):
    """Temperature, rain and sea-level pressure, each on the grid of its package."""
    itur, ecmean4 = wheels["itur"], wheels["ecmean4"]
    warmth = months(itur, 1510, "v1_t_month", ("v1_lat", "v1_lon"), "K", "t2m")
    rain = months(itur, 837, "v7_mt_month", ("v7_lat_mt", "v7_lon_mt"), "mm/month", "tp")
    average = squeezed(climatology(ecmean4, "climate_average", "psl_ERA5"), "psl")
    by_season = squeezed(climatology(ecmean4, "seasons_average", "psl_ERA5"), "psl")
    within = squeezed(climatology(ecmean4, "seasons_variance", "psl_ERA5"), "psl")
    # Between seasons, and between the years of each.
    lead = by_season.dims[0]
    variance = ((by_season - by_season.mean(lead)) ** 2 + within).mean(lead)
    pressure = xr.Dataset(
        {
            "psl_mean": average.assign_attrs(units="Pa"),
            "psl_std": np.sqrt(variance).assign_attrs(units="Pa"),
        }
    )
    return [warmth, rain, pressure]


@pytest.fixture(scope="module")
def land(wheels):
    """A cube whose cells are those of land, by CRU; what its vectors are does not matter."""
    tas = squeezed(climatology(wheels["ecmean4"], "climate_average", "tas_CRU"), "tas")
    lat, lon = grid.latitudes(), grid.longitudes()
    there = tas.notnull().sel(lat=lat, lon=lon, method="nearest").values
    there &= ((lat > -56) & (lat < 84))[:, None]
    return xr.Dataset(
        {
            "embedding": (("lat", "lon", "dim"), np.ones((*there.shape, 1), "f4")),
            "n_images": (("lat", "lon"), there.astype("i4")),
        },
        {"lat": lat, "lon": lon},
    )


@pytest.mark.slow
def test_the_coordinate_rows_of_the_paper(statistics, land):
    found = probe(land, statistics, inputs=["lonlat", "fourier", "xyz", "harmonics"])
    print(table(found))
    errors = found.rmse.mean("seed").to_series().to_dict()
    for target in ("t2m_mean", "t2m_std", "msl_mean", "msl_std"):
        for name in ("lonlat", "fourier"):
            paper, _ = reference.error(name, target)
            assert errors[name, target] == pytest.approx(paper, rel=0.15), (name, target)
    # Rain is that of gauges here, which is smoother; in metres a year it is near all the same.
    for name in ("lonlat", "fourier"):
        for target in ("tp_mean", "tp_std"):
            paper, _ = reference.error(name, target)
            assert errors[name, target] == pytest.approx(paper, rel=0.25)
    assert all(errors["fourier", t] < errors["lonlat", t] for t in found["target"].values)


@pytest.mark.slow
def test_rain_of_a_cell_is_the_mean_of_its_corners(statistics, land):
    """The nodes of P.837 are the corners of the cells, weighted as their quarters are large."""
    corners = statistics[1].tp.values.mean(axis=0)[::-1] * 12e-3
    four = (corners[:-1, :-1] + corners[:-1, 1:] + corners[1:, :-1] + corners[1:, 1:]) / 4
    made = Targets.of(statistics[1], CubeView.of(land))
    rolled = np.roll(four[:, :-1], -720, axis=1)  # from 180°W, which is there twice, to 0°E
    there = land.n_images.values > 0
    np.testing.assert_allclose(made.values[there, 0], rolled[there], rtol=5e-3, atol=2e-4)
