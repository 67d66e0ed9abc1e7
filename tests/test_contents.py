"""Files that hold something else than expected are called by what they hold."""

import gzip
import io
import json
import tarfile
import zipfile

import numpy as np
import pytest
import torch
import xarray as xr

from copcube import era5
from copcube.encoder.weights import load_weights
from copcube.errors import CopcubeError
from copcube.files.contents import HEAD, form
from copcube.images import open_source
from copcube.interchange.engine import find_map, open_map
from copcube.rows import read_rows
from copcube.selection import Selection


def zipped(name):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(name, b"CDF\x01")
    return buffer.getvalue()


OTHER = {
    b"": "an empty file",
    bytes(1000): "only zero bytes",
    gzip.compress(b"x"): "a gzip archive; unpack it first",
    b"\n<!DOCTYPE html><title>404</title>": "an HTML page",
    b'<?xml version="1.0"?><Error><Code>NoSuchKey</Code></Error>': "an XML document",
    b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n": "a Git LFS pointer",
    b"../.git/annex/objects/XX/yy/SHA256E-s10--00.tif": "a git-annex pointer",
    b'{"detail": "not found"}': "JSON text",
    "Not found: größer\n".encode(): "text, which begins 'Not found: gr",
    b"%PDF-1.7\n\xff": "a PDF document",
    zipped("data_stream-oper.nc"): "Climate Data Store",
}


def written(**arrays):
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def saved():
    buffer = io.BytesIO()
    torch.save(torch.zeros(3), buffer)
    return buffer.getvalue()


def packed():
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("0772176.json"))
    return buffer.getvalue()


def test_what_libraries_write_is_recognised(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq
    import rasterio

    pq.write_table(pa.table({"a": [1]}), tmp_path / "a.parquet")
    ds = xr.Dataset({"a": ("x", [1.0])})
    ds.to_netcdf(tmp_path / "a.nc")
    ds.to_netcdf(tmp_path / "b.nc", format="NETCDF3_CLASSIC")
    raster = {"width": 1, "height": 1, "count": 1, "dtype": "uint8", "BIGTIFF": True}
    place = rasterio.Affine(1, 0, 5, 0, -1, 5)
    with rasterio.open(tmp_path / "a.tif", "w", driver="GTiff", transform=place, **raster) as file:
        file.write(np.ones((1, 1, 1), np.uint8))
    files = {"parquet": "a.parquet", "hdf5": "a.nc", "netcdf": "b.nc", "tiff": "a.tif"}
    found = {name: form((tmp_path / file).read_bytes()[:HEAD])[0] for name, file in files.items()}
    assert found == {name: name for name in files}
    assert form(written(a=np.zeros(3)))[0] == "npz"
    assert form(saved())[0] == "torch"
    assert form(packed())[0] == "tar"
    assert form(json.dumps({"a": 1}).encode())[0] == "json"
    assert form(np.random.default_rng(0).bytes(HEAD)) == ("", "")


def shard(path):
    (rejected,) = (
        item
        for partition in open_source(path).partitions()
        for item in open_source(path).jobs(partition, Selection.of())
    )
    raise CopcubeError(f"{rejected.file}: {rejected.reason}")


@pytest.mark.parametrize(
    ("name", "opened"),
    [
        ("a.npz", find_map),
        ("a.pt", find_map),
        ("a.tif", find_map),
        ("a.parquet", find_map),
        ("a.nc", open_map),
        ("a.nc", era5.open_static),
        ("a.grib", era5.open_static),
        ("a.pth", lambda path: load_weights(str(path))),
        ("rows.parquet", read_rows),
        ("a.tar", shard),
        ("a.images", open_source),
    ],
)
def test_every_door_says_what_lies_there(name, opened, tmp_path):
    for data, says in OTHER.items():
        if name == "a.tar" and data == bytes(1000):  # how an empty tar archive begins
            continue
        (tmp_path / name).write_bytes(data)
        with pytest.raises(CopcubeError, match=f"{name}: expected .*found .*{says}"):
            opened(tmp_path / name)


def test_the_published_forms_are_told_apart(tmp_path):
    for name, data, says in [
        ("a.npz", saved(), "found a file of torch.save"),
        ("a.pt", written(arr_0=np.zeros(3)), "found an npz archive of NumPy arrays"),
        ("a.tif", packed(), "found a tar archive"),
    ]:
        (tmp_path / name).write_bytes(data)
        with pytest.raises(CopcubeError, match=f"{name}: expected .*{says}"):
            find_map(tmp_path / name)
