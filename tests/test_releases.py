"""Cubes, rows and build folders of all releases are read by this one."""

import tarfile
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from copcube import cube
from copcube.builds import aggregate, status, validate_rows
from copcube.builds.folder import BuildFolder
from copcube.version import __version__

ARCHIVES = sorted((Path(__file__).parent / "releases").glob("*.tar.xz"))


@pytest.fixture(scope="module", params=ARCHIVES, ids=lambda path: path.name.removesuffix(".tar.xz"))
def release(request, tmp_path_factory):
    """What a release wrote: a cube by season, its build folder, and a build that is half done."""
    folder = tmp_path_factory.mktemp("release")
    with tarfile.open(request.param) as archive:
        archive.extractall(folder, filter="data")
    return folder


def test_this_release_is_among_them():
    assert f"{__version__}.tar.xz" in [path.name for path in ARCHIVES], "run tests/releases/make.py"


@pytest.mark.slow
def test_cubes_are_valid_and_open(release):
    assert cube.validate(release / "world.zarr") == []
    ds = xr.open_zarr(release / "world.zarr")
    assert int((ds.n_images > 0).any("season").sum()) == 2
    assert ds.copembed.reduce(k=2).pc.dims == ("season", "lat", "lon", "component")


@pytest.mark.slow
def test_rows_are_those_of_their_receipts_and_make_the_cube_again(release, tmp_path):
    assert validate_rows(release / "world.zarr") == []
    aggregate(release / "world.build" / "rows", tmp_path / "again.zarr", by="season")
    assert cube.validate(tmp_path / "again.zarr") == []  # nothing but NaN where no images are
    before, after = (
        xr.open_zarr(p, chunks=None) for p in (release / "world.zarr", tmp_path / "again.zarr")
    )
    np.testing.assert_array_equal(before.n_images, after.n_images)
    _, lat, lon = (xr.DataArray(i, dims="cell") for i in np.nonzero(before.n_images.values))
    for name in ("embedding", "spread"):
        np.testing.assert_array_equal(*(ds[name].isel(lat=lat, lon=lon) for ds in (before, after)))


def test_a_build_that_is_half_done_is_known(release):
    folder = BuildFolder(release / "part.zarr")
    plan = folder.plan()
    names = [partition.name for partition in folder.partitions()]
    receipts = folder.receipts.done(plan.id, "embed", names)
    assert len(receipts) == 1
    assert sum(receipts[names[0]]["images"].values()) > 0
    now = status(folder.path)
    assert (now.stage, now.done, now.units) == ("embedding", 1, len(names))
