"""Templates and finished cubes, against what zarr itself writes."""

import json
import warnings

import numpy as np
import pytest
import zarr
from zarr.storage import MemoryStore

from copcube import cube
from copcube.cube import schema
from copcube.cube.store import compressors
from copcube.errors import CubeError

GROUPS = {
    None: (),
    "modality": ("s1_grd", "s2_toa"),
    "month": ("03", "11"),
    "season": ("DJF", "JJA"),
    "year": ("2020", "2021"),
}


def by_zarr(dim, by, attrs, counted):
    """Files of a cube without cells that zarr creates, by name."""
    memory = {}
    with zarr.config.set({"array.write_empty_chunks": False}):
        attributes = schema.group_attributes(attrs)
        group = zarr.create_group(MemoryStore(memory), zarr_format=3, attributes=attributes)
        group.create_group(schema.CONVENTIONS, attributes=schema.conventions(dim))
        for v in schema.variables(dim, by, GROUPS[by], counted=counted).values():
            array = group.create_array(
                v.name,
                shape=v.shape,
                chunks=v.chunks,
                dtype=v.dtype,
                fill_value=v.fill,
                compressors=compressors(),
                chunk_key_encoding={"name": "default", "separator": "."},
                dimension_names=v.dims,
                attributes=v.attrs,
            )
            if v.values is not None:
                array[...] = v.values
    return memory


def parsed(name, data):
    if not name.endswith("zarr.json"):
        return data
    document = json.loads(data)
    if document.get("consolidated_metadata", "") is None:  # so zarr 3.0 says that there are none
        del document["consolidated_metadata"]
    return document


def files(folder):
    """Files below a folder by name; documents as what they say."""
    found = (path for path in folder.rglob("*") if path.is_file())
    names = {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}
    return {name: parsed(name, data) for name, data in names.items()}


@pytest.mark.parametrize("by", GROUPS)
@pytest.mark.parametrize("counted", [True, False])
def test_a_template_is_what_zarr_writes(tmp_path, by, counted):
    attrs = {"encoder": "Größe “x”", "number": 1.5, "flags": [1, 2]}
    written = cube.create(
        tmp_path / "a.zarr", dim=5, by=by, groups=GROUPS[by], attrs=attrs, counted=counted
    )
    more = {} if counted else {"n_images_known": 0}
    expected = by_zarr(5, by, attrs | more, counted)
    assert files(tmp_path / "a.zarr") == {
        name: parsed(name, data.to_bytes()) for name, data in expected.items()
    }
    assert written.keys() == expected.keys()


def test_metadata_are_consolidated_as_zarr_does(tmp_path):
    cube.create(tmp_path / "a.zarr", dim=5, by="month", groups=GROUPS["month"])
    cube.create(tmp_path / "b.zarr", dim=5, by="month", groups=GROUPS["month"])
    cube.finish(tmp_path / "a.zarr", {"history": "made in a test"})
    group = zarr.open_group(tmp_path / "b.zarr", use_consolidated=False)
    group.attrs.put(dict(sorted((dict(group.attrs) | {"history": "made in a test"}).items())))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Consolidated metadata")
        zarr.consolidate_metadata(tmp_path / "b.zarr", zarr_format=3)
    found = files(tmp_path / "a.zarr")
    assert found == files(tmp_path / "b.zarr")
    listed = list(found["zarr.json"]["consolidated_metadata"]["metadata"])
    assert "embedding" in listed
    assert listed == sorted(listed)


def test_values_that_zarr_reads_are_those_of_the_schema(tmp_path):
    cube.create(tmp_path / "a.zarr", dim=5)
    group = zarr.open_group(tmp_path / "a.zarr", mode="r", use_consolidated=False)
    for name, variable in schema.variables(5, None, ()).items():
        if variable.values is not None:
            assert group[name].dtype == variable.dtype
            np.testing.assert_array_equal(group[name][...], variable.values)


@pytest.mark.parametrize("version", [None, schema.VERSION + 1])
def test_nothing_is_removed_where_there_is_no_cube_to_finish(tmp_path, version):
    attributes = {} if version is None else {"copcube_schema": version}
    zarr.create_group(tmp_path, zarr_format=3, attributes=attributes)
    for name in ("mine.partial", ".mine.partial"):
        (tmp_path / name).write_text("mine")
    before = files(tmp_path)
    with pytest.raises(CubeError, match=r"expected an embedding cube|knows only up to"):
        cube.finish(tmp_path)
    assert files(tmp_path) == before
