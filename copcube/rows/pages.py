"""Vectors straight from the pages of a local parquet file, a few thousand rows at a time.

Arrow decodes the pages of a column chunk one after another, and looks at the levels of every value,
which say where a list begins and whether it is missing. If all lists are complete and alike, those
levels repeat from page to page, so they are examined once, and any thread can begin with any page.
Other encodings are left to arrow.

Levels and encodings are those of Parquet's format: https://parquet.apache.org/docs/file-format
"""

from collections.abc import Iterator
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from copcube.files.parquet_pages import Page, pages_of, varint
from copcube.files.zip_directory import reader_of

if TYPE_CHECKING:
    import pyarrow.parquet as pq

_PLAIN, _PLAIN_DICTIONARY, _RLE_DICTIONARY, _BYTE_STREAM_SPLIT = 0, 2, 8, 9
_KNOWN = {_PLAIN, _PLAIN_DICTIONARY, _RLE_DICTIONARY, _BYTE_STREAM_SPLIT}
_CODECS = {"UNCOMPRESSED": None, "SNAPPY": "snappy", "ZSTD": "zstd"}
_LONGEST_LEVELS = 1 << 16
"""Bytes of levels that are remembered."""
VALUES = 3 << 20
"""Values that are decoded at a time: 4096 vectors of 768, twelve pages as arrow writes them."""
_MOST_BITS = 24
"""Of numbers in a dictionary."""


class Pages(NamedTuple):
    """Pages of the vectors of a row group.

    Parameters
    ----------
    path : str or Path
        Of the file.
    codec : str or None
        Arrow's name of the compression.
    dim : int
        Length of the vectors.
    deepest : int
        Definition level of a value that is there.
    first : tuple of int
        Number of the first value of each page, and of all values.
    pages : tuple of Page
        Those of data.
    dictionary : Page or None
        That of the values which other pages count through.
    """

    path: str | Path
    codec: str | None
    dim: int
    deepest: int
    first: tuple[int, ...]
    pages: tuple[Page, ...]
    dictionary: Page | None

    @property
    def rows(self) -> int:
        """How many rows the row group has."""
        return self.first[-1] // self.dim


class IrregularError(Exception):
    """Vectors are missing, or differ in length."""


def column_index(metadata: "pq.FileMetaData", name: str) -> int:
    """Index of the column that holds the values of a column of lists."""
    paths = (metadata.schema.column(n).path for n in range(metadata.num_columns))
    return next(n for n, path in enumerate(paths) if path.partition(".")[0] == name)


def find_pages(
    file: BinaryIO, path: str | Path, metadata: "pq.FileMetaData", group: int, column: int, dim: int
) -> Pages | None:
    """Pages of a row group of a local file; None if they cannot be decoded here.

    Parameters
    ----------
    file, path : binary file, str or Path
        The file, whose pages were looked at (`copcube.files.parquet_pages`).
    metadata : pyarrow.parquet.FileMetaData
        Its footer.
    group : int
        The row group.
    column : int
        As `column_index` gives it.
    dim : int
        Length of the lists.
    """
    row_group = metadata.row_group(group)
    chunk, kind = row_group.column(column), metadata.schema.column(column)
    if (
        chunk.physical_type != "FLOAT"
        or chunk.compression not in _CODECS
        or kind.max_repetition_level != 1
        or chunk.num_values != row_group.num_rows * dim
    ):
        return None
    every = list(pages_of(reader_of(file), chunk))
    dictionary = every.pop(0) if every and every[0].is_dictionary else None
    first = tuple(accumulate((page.values for page in every), initial=0))
    # A page is decoded whole for each block that it reaches into: few larger ones would cost much.
    if (
        not {page.encoding for page in every} <= _KNOWN
        or first[-1] != chunk.num_values
        or max(page.values for page in every) > VALUES // 2
    ):
        return None
    codec, deepest = _CODECS[chunk.compression], kind.max_definition_level
    return Pages(path, codec, dim, deepest, first, tuple(every), dictionary)


def decode(pages: Pages, start: int, wanted: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Decode the vectors of wanted rows among consecutive rows.

    Parameters
    ----------
    pages : Pages
        Those of the row group.
    start : int
        Number of the first of the rows in it.
    wanted : numpy.ndarray
        Which of the rows to take, (n,) bool. A page without a wanted row is not read.

    Returns
    -------
    numpy.ndarray
        (k, D) float32.

    Raises
    ------
    IrregularError
        If a vector is missing, or is of another length.
    """
    vectors = np.empty((len(wanted), pages.dim), np.float32)
    flat, begin = vectors.reshape(-1), start * pages.dim
    dictionary: NDArray[np.float32] | None = None
    with open(pages.path, "rb") as file:
        for page, first, end in _of_rows(pages, start, wanted):
            data = _values(pages, page, first, _unfolded(pages, page, file))
            a, b = max(first, begin), min(end, begin + flat.size)
            some, values = slice(a - first, b - first), flat[a - begin : b - begin]
            if page.encoding in (_PLAIN_DICTIONARY, _RLE_DICTIONARY):
                if dictionary is None and pages.dictionary is not None:
                    dictionary = _unfolded(pages, pages.dictionary, file).view("<f4")
                values[:] = _looked_up(data, page.values, dictionary)[some]
            elif data.size != 4 * page.values:
                raise IrregularError
            elif page.encoding == _PLAIN:
                values[:] = data.view("<f4")[some]
            else:  # the first bytes of all values, then their second ones, and so on
                for number, plane in enumerate(data.reshape(4, page.values)):
                    values.view(np.uint8)[number::4] = plane[some]
    return vectors if wanted.all() else vectors[wanted]


def _of_rows(
    pages: Pages, start: int, wanted: NDArray[np.bool_]
) -> Iterator[tuple[Page, int, int]]:
    """Pages that hold wanted rows, each with the numbers of its first value and of the next's."""
    dim, last = pages.dim, start + len(wanted)
    for page, first, end in zip(pages.pages, pages.first, pages.first[1:], strict=False):
        a, b = max(first // dim, start), min(-(-end // dim), last)
        if a < b and wanted[a - start : b - start].any():
            yield page, first, end


def _unfolded(pages: Pages, page: Page, file: BinaryIO) -> NDArray[np.uint8]:
    """Bytes of a page, decompressed."""
    import pyarrow as pa

    file.seek(page.start)
    data: Any = file.read(page.length)
    if pages.codec is not None:
        data = pa.Codec(pages.codec).decompress(data, page.unfolded)
    return np.frombuffer(data, np.uint8)


def _values(pages: Pages, page: Page, first: int, data: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Encoded values of a page, of which the first has a number among all of the row group."""
    # Levels of repetition, levels of definition, each after their length in bytes, then values.
    for deepest, dim in ((1, pages.dim), (pages.deepest, 0)):
        end = 4 + int.from_bytes(data[:4], "little")
        levels = data[4:end].tobytes()
        test = _are_regular if len(levels) <= _LONGEST_LEVELS else _are_regular.__wrapped__
        if not test(levels, page.values, deepest, dim, dim and first % dim):
            raise IrregularError
        data = data[end:]
    return data


def _looked_up(
    data: NDArray[np.uint8], count: int, dictionary: NDArray[np.float32] | None
) -> NDArray[np.float32]:
    """Values that stand as numbers of those of a dictionary, after the number of their bits."""
    bits = int(data[0]) if data.size else 0
    if dictionary is None or bits > _MOST_BITS:
        raise IrregularError
    # Of a single value the numbers have no bits.
    numbers = _hybrid(data[1:].tobytes(), count, bits) if bits else np.zeros(count, np.uint32)
    if len(numbers) < count or numbers.max(initial=0) >= len(dictionary):
        raise IrregularError
    # No number lies beyond it, so that none is clipped.
    return dictionary.take(numbers, mode="clip")


@lru_cache(maxsize=512)
def _are_regular(levels: bytes, count: int, deepest: int, dim: int, first: int) -> bool:
    """Whether all of some levels are the deepest; but for those at which a list begins.

    Parameters
    ----------
    levels : bytes
        In the hybrid of run lengths and packed bits.
    count : int
        How many they are.
    deepest : int
        What they are to be.
    dim : int
        Length of the lists whose first values have level 0; 0 if no list matters.
    first : int
        Number of the first value in its list.
    """
    expected = np.full(count, deepest, np.uint8)
    if dim:
        expected[-first % dim :: dim] = 0
    found = _hybrid(levels, count, deepest.bit_length())
    return np.array_equal(found, expected)


def _hybrid(raw: bytes, count: int, bits: int) -> NDArray[np.uint32]:
    """Numbers of `bits` bits in runs, repeated or packed; fewer than `count` if there are fewer.

    A run begins with twice its length where a number is repeated, and with twice the number of
    eights, and 1, where numbers are packed.
    """
    numbers, filled, at = np.empty(count, np.uint32), 0, 0
    while filled < count and at < len(raw):
        begin = at
        header, at = varint(raw, at)
        if header & 1:
            # No more is unpacked than requested, whatever the header says. Runs of one length
            # follow each other where many numbers are packed, and are taken together.
            needed = -(-(count - filled) // 8)
            eights, times = min(header >> 1, needed), 1
            head, period = at - begin, at - begin + eights * bits
            while (
                times * eights < needed
                and begin + (times + 1) * period <= len(raw)
                and raw.startswith(raw[begin:at], begin + times * period)
            ):
                times += 1
            at = begin + times * period
            data = np.frombuffer(raw[begin:at], np.uint8)
            run = _unpacked(data.reshape(times, -1)[:, head:], bits)
        else:
            end = at + -(-bits // 8)
            value = np.uint32(int.from_bytes(raw[at:end], "little"))
            run, at = np.broadcast_to(value, min(header >> 1, count)), end
        run = run[: count - filled]
        numbers[filled : filled + len(run)] = run
        filled += len(run)
    return numbers[:filled]


def _unpacked(data: NDArray[np.uint8], bits: int) -> NDArray[np.uint32]:
    """Numbers of at most 24 bits, packed from the lowest bit on."""
    eights = data.size // bits
    flat = np.append(data, np.zeros(4, np.uint8))
    numbers = np.empty((eights, 8), np.uint32)
    for i in range(8):
        # Each number begins within a byte, and ends within three more.
        byte, bit = divmod(i * bits, 8)
        words = np.ndarray(eights, "<u4", flat, byte, bits) >> bit
        words &= (1 << bits) - 1
        numbers[:, i] = words
    return numbers.reshape(-1)
