"""How an array of a cube is divided into chunks, and the bytes of a chunk.

zarr reads cubes. Chunks are encoded here, to the same bytes as zarr's, and decoded when a cube is
examined: it has many thousands of them, and zarr's event loop and stores take as long as the
compression.
"""

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from copcube.errors import CubeError


@dataclass(frozen=True)
class Chunks:
    """An array written chunk by chunk.

    Parameters
    ----------
    name : str
        Name of the array.
    shape, chunks : tuple of int
        Shape of the array and of a chunk.
    dtype : numpy.dtype
        Little-endian type of the values.
    separator : str
        What separates the parts of a chunk's name; in cubes of the first release "/".
    fill : float or int
        Value where nothing is stored.
    level : int
        Level of zstd.
    checksum : bool
        Whether zstd's frames carry a checksum.
    """

    name: str
    shape: tuple[int, ...]
    chunks: tuple[int, ...]
    dtype: np.dtype[Any]
    separator: str
    fill: float
    level: int
    checksum: bool

    @classmethod
    def of(cls, name: str, metadata: bytes) -> "Chunks":
        """Read an array's ``zarr.json``.

        Raises
        ------
        CubeError
            If the array is not stored as `copcube.cube.create` stores it.
        """
        try:
            about = json.loads(metadata)
            order, packed = about["codecs"]
            names = about["chunk_key_encoding"]
            dtype = np.dtype(about["data_type"]).newbyteorder("<")
            # Numbers of one byte have no byte order.
            plain = {"name": "bytes"}
            known = (
                order in (plain | {"configuration": {"endian": "little"}}, plain)
                and (dtype.itemsize == 1 or order != plain)
                and packed["name"] == "zstd"
                and about["chunk_grid"]["name"] == "regular"
                and names["name"] == "default"
                and names["configuration"]["separator"] in (".", "/")
            )
            if not known:
                raise ValueError(name)
            return cls(
                name,
                tuple(about["shape"]),
                tuple(about["chunk_grid"]["configuration"]["chunk_shape"]),
                dtype,
                names["configuration"]["separator"],
                float(about["fill_value"]),
                packed["configuration"]["level"],
                packed["configuration"]["checksum"],
            )
        except (ValueError, KeyError, TypeError) as error:
            raise CubeError(
                f"{name}/zarr.json says that chunks are not stored as copcube stores them; create "
                "the cube again"
            ) from error

    def file(self, index: tuple[int, ...]) -> str:
        """Name of a chunk's file in the cube."""
        return f"{self.name}/{self.separator.join(('c', *map(str, index)))}"

    def encode_all(self, values: NDArray[Any]) -> dict[str, bytes]:
        """Bytes of all chunks that are stored, by their files, from the values of the array."""
        counts = (-(-n // size) for n, size in zip(self.shape, self.chunks, strict=True))
        files = {}
        for index in np.ndindex(*counts):
            inside = (
                slice(i * size, (i + 1) * size) for i, size in zip(index, self.chunks, strict=True)
            )
            data = self.encode(values[tuple(inside)])
            if data is not None:
                files[self.file(index)] = data
        return files

    def encode(self, values: NDArray[Any]) -> bytes | None:
        """Bytes of a chunk; None if it holds only missing values and is not stored.

        Parameters
        ----------
        values : numpy.ndarray
            The chunk's values, fewer than a full chunk at the end of the array.
        """
        empty = np.isnan(values) if np.isnan(self.fill) else values == self.fill
        if empty.all():
            return None
        whole = values
        if values.shape != self.chunks:
            # Zarr stores the chunks at the edge of an array in full size too.
            whole = self.missing()
            whole[tuple(slice(0, length) for length in values.shape)] = values
        return self.pack(whole)

    def missing(self) -> NDArray[Any]:
        """Values of an empty chunk."""
        return np.full(self.chunks, self.fill, self.dtype)

    def pack(self, whole: NDArray[Any]) -> bytes:
        """Bytes of a chunk of full size, whatever it holds."""
        from numcodecs.zstd import Zstd  # type: ignore[import-untyped]

        packed = Zstd(level=self.level, checksum=self.checksum).encode(
            np.ascontiguousarray(whole, self.dtype)
        )
        return bytes(packed)

    def unpack(self, data: bytes) -> NDArray[Any]:
        """Values of a chunk of full size from its bytes.

        Raises
        ------
        ValueError, RuntimeError
            If they cannot be decoded to exactly that many values, or their checksum does not match.
        """
        from numcodecs.zstd import Zstd

        whole = np.empty(self.chunks, self.dtype)
        Zstd().decode(data, whole)
        return whole
