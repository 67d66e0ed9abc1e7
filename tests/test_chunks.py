import json

import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st
from zarr.storage import MemoryStore

from copcube.cube.chunks import Chunks
from copcube.cube.store import compressors
from copcube.errors import CubeError


def stored(values, chunks, fill, separator="."):
    """What zarr stores of an array, by the names of its chunks, and the array's metadata."""
    memory = {}
    with zarr.config.set({"array.write_empty_chunks": False}):
        array = zarr.create_array(
            MemoryStore(memory),
            name="field",
            shape=values.shape,
            chunks=chunks,
            dtype=values.dtype,
            fill_value=fill,
            compressors=compressors(),
            chunk_key_encoding={"name": "default", "separator": separator},
        )
        array[...] = values
    metadata = memory.pop("field/zarr.json").to_bytes()
    names = [name for name in memory if name.startswith(f"field/c{separator}")]
    return {name: memory[name].to_bytes() for name in names}, metadata


@pytest.mark.slow
@given(data=st.data())
def test_chunks_are_those_of_zarr(data):
    shape = data.draw(st.lists(st.integers(1, 7), min_size=2, max_size=4))
    chunks = tuple(data.draw(st.integers(1, length)) for length in shape)
    values = np.random.default_rng(0).integers(0, 3, shape)
    if data.draw(st.booleans()):
        values, fill = np.where(values > 0, values, np.nan).astype(np.float32), np.nan
    else:
        values, fill = values.astype(np.int32), 0
    expected, metadata = stored(values, chunks, fill, data.draw(st.sampled_from("./")))
    assert expected or (values == 0).all() or np.isnan(values).all()
    assert Chunks.of("field", metadata).encode_all(values) == expected


@pytest.mark.parametrize(
    "change",
    [
        {"codecs": [{"name": "bytes", "configuration": {"endian": "big"}}]},
        {"chunk_key_encoding": {"name": "v2", "configuration": {"separator": "."}}},
        {"chunk_key_encoding": {"name": "default", "configuration": {"separator": "/../"}}},
        {"codecs": None},
    ],
)
def test_arrays_that_are_stored_otherwise_are_refused(change):
    _, metadata = stored(np.ones((2, 2), np.float32), (1, 2), np.nan)
    with pytest.raises(CubeError, match=r"field/zarr\.json .* create the cube again"):
        Chunks.of("field", json.dumps(json.loads(metadata) | change).encode())
