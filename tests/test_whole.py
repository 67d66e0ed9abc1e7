"""Maps of a cube on disk are read past dask, and are what dask would have read."""

import dask
import numpy as np
import pytest
import xarray as xr
from dask.callbacks import Callback
from test_cube import build, cells_of

from copcube import cube
from copcube.cube import whole
from copcube.cube.card import card
from copcube.cube.view import CubeView
from copcube.cube.whole import at_once


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return build(tmp_path_factory.mktemp("cube") / "a.zarr", cells_of())


def no_task(*arguments, **options):
    raise AssertionError("dask was asked")


@pytest.mark.slow
@pytest.mark.parametrize("how", [cube.open_cube, xr.open_zarr])
def test_maps_on_disk_are_read_past_dask(path, how):
    ds, plain = how(path), xr.open_zarr(path, chunks=None)
    with dask.config.set(scheduler=no_task):
        for name in ("n_images", "n_images_by_modality"):
            found = at_once(ds[name])
            assert found.chunks is None
            assert found.identical(plain[name])
        turned = CubeView.of(ds.assign(embedding=ds.embedding.transpose("lon", "lat", ...)))
        assert np.array_equal(turned.counts, plain.n_images > 0)
        told = dict(card(ds).lines)
        assert told["images"].startswith(f"{int(plain.n_images.sum()):,} (")
        with pytest.raises(AssertionError, match="dask was asked"):
            _ = ds.n_images.values


@pytest.mark.slow
def test_what_was_computed_or_is_large_is_left_to_dask(path, monkeypatch):
    ds = cube.open_cube(path)
    for array in (ds.n_images + 1, ds.n_images.isel(lat=slice(9)), ds.n_images.chunk(lat=90)):
        assert at_once(array) is array
    loaded = ds.n_images.astype(bool)[:2, :2].compute()
    assert at_once(loaded) is loaded
    monkeypatch.setattr(whole, "_BYTES", ds.n_images.nbytes - 1)
    assert at_once(ds.n_images).chunks == ds.n_images.chunks


@pytest.mark.slow
@pytest.mark.parametrize(("scheduler", "tasks"), [("threads", 0), ("processes", 0), ("sync", 1)])
def test_vectors_are_read_past_dask_unless_it_computes_elsewhere(path, scheduler, tasks):
    """As on workers, which read at the same time; any other scheduler may be one of theirs."""
    part, computed = (slice(0, 720), slice(0, 90)), []
    plain = xr.open_zarr(path, chunks=None)
    plain = plain.isel(lat=part[0], lon=part[1])
    ds = cube.open_cube(path)
    with dask.config.set(scheduler=scheduler), Callback(start=computed.append):
        filled, vectors = CubeView.of(ds).read(part)
    assert filled.any()
    assert len(computed) == tasks
    assert np.array_equal(filled, plain.n_images > 0)
    assert np.array_equal(vectors[filled], plain.embedding.values[filled])


@pytest.mark.slow
def test_no_pool_of_processes_is_started_for_each_part(path, monkeypatch):
    """Not even where something was computed from the vectors, so that dask must read them."""

    def started(*arguments, **options):
        raise AssertionError("a pool of processes was started")

    plain = xr.open_zarr(path, chunks=None).isel(lat=slice(0, 90)).load()
    lazy = plain.assign(embedding=plain.embedding.chunk(lat=45, lon=45) * 1)
    where = {dim: plain[dim].values[[40, 70]] for dim in ("lat", "lon")}
    monkeypatch.setattr("dask.multiprocessing.ProcessPoolExecutor", started)
    with dask.config.set(scheduler="processes"):
        fitted, found = lazy.copembed.fit(k=1), lazy.copembed.points(where)
    xr.testing.assert_equal(fitted, plain.copembed.fit(k=1))
    xr.testing.assert_equal(found, plain.copembed.points(where))
