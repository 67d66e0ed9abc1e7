"""Sizes of the pages of a parquet file, before a page is expanded.

A column consists of pages, each decompressed at once. A page's expanded size is only in its own
header, not in the file's footer: a kilobyte may expand to two gigabytes. Headers are those of
parquet.thrift (PageHeader) in Thrift's compact protocol.
"""

from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from copcube.errors import CopcubeError
from copcube.files import limits
from copcube.files.limits import demand
from copcube.files.regular import open_regular
from copcube.files.zip_directory import Read, reader_of

if TYPE_CHECKING:
    import pyarrow.parquet as pq

_HEADER = 512
"""Bytes of a header to read first; statistics of long texts make it longer."""
_LONGEST_HEADER = 1 << 20
_MOST_DEPTH = 8
_RLE = 3
"""Number of the hybrid of run lengths and packed bits, in parquet.thrift (Encoding)."""
_MOST_PAGES = 100_000
"""A row group of a million vectors of 768 has 3000."""


def demand_pages(
    read: Read | None,
    metadata: "pq.FileMetaData",
    columns: Collection[str],
    path: str,
    error: type[CopcubeError],
) -> None:
    """Refuse a file with a page that is too large, or with pages that contradict its footer.

    Parameters
    ----------
    read : callable or None
        Reads the file, given a position and a length in bytes. None if a request for every page
        would cost too much: the footer is then trusted.
    metadata : pyarrow.parquet.FileMetaData
        Its footer.
    columns : collection of str
        Names of the columns to be read.
    path : str
        Its name, for messages.
    error : type
        What is raised.

    Raises
    ------
    CopcubeError
        The `error`.
    """
    for group in range(metadata.num_row_groups):
        row_group = metadata.row_group(group)
        for number in range(row_group.num_columns):
            column = row_group.column(number)
            name = column.path_in_schema.partition(".")[0]
            if name not in columns:
                continue
            what = f"{path}: column {name} of row group {group}"
            values, unfolded = column.num_values, column.total_uncompressed_size
            try:
                if read is not None:
                    values, unfolded = _measure(read, column, what, error)
            except (IndexError, ValueError, RecursionError) as failure:
                if isinstance(failure, CopcubeError):
                    raise
                raise error(f"{what}: damaged, {failure}; get a new copy") from failure
            if values != column.num_values:
                raise error(
                    f"{what}: its pages hold {values} values, but its footer says "
                    f"{column.num_values}; get a new copy"
                )
            # Lists of numbers are read some rows at a time; everything else at once.
            if "." not in column.path_in_schema:
                demand(limits.PIECE, unfolded + _BYTES_OF_A_TEXT * values, what, error)


def demand_local_pages(
    metadata: "pq.FileMetaData",
    columns: Collection[str] | None,
    path: str,
    error: type[CopcubeError],
) -> None:
    """Refuse a local file with pages that are too large, in all columns if None are named.

    Raises
    ------
    CopcubeError
        The `error`, as `demand_pages`, or if the file is not seekable.
    """
    if columns is None:
        paths = (metadata.schema.column(n).path for n in range(metadata.num_columns))
        columns = {name.partition(".")[0] for name in paths}
    with open_regular(path, error) as file:
        demand_pages(reader_of(file), metadata, columns, path, error)


_BYTES_OF_A_TEXT = 64
"""Bytes per row for each text, whose characters are held once for all rows."""


def _measure(read: Read, column: Any, what: str, error: type[CopcubeError]) -> tuple[int, int]:
    """Number of values of a column chunk, and bytes that its pages expand to."""
    pages = list(pages_of(read, column))
    demand(limits.PAGE, max((page.unfolded for page in pages), default=0), f"{what}: a page", error)
    most = max((page.values for page in pages), default=0)
    demand(limits.PAGE, 4 * most, f"{what}: a page of {most} values", error)
    # The values of a dictionary are not rows.
    values = sum(page.values for page in pages if not page.is_dictionary)
    return values, sum(page.unfolded for page in pages)


class Page(NamedTuple):
    """Header of a page.

    Parameters
    ----------
    start, length : int
        Where the page itself begins in the file, after its header, and how long it is, bytes.
    unfolded : int
        Bytes that it decompresses to.
    values : int
        Values in it, missing ones included.
    encoding : int
        Number of their encoding in parquet.thrift, in a page of data of version 1 whose levels
        are run lengths; else -1.
    is_dictionary : bool
        Whether it holds the dictionary of the column.
    """

    start: int
    length: int
    unfolded: int
    values: int
    encoding: int
    is_dictionary: bool


def pages_of(read: Read, column: Any) -> Iterator[Page]:
    """Headers of the pages of a column chunk, a dictionary among them, in their order.

    Raises
    ------
    IndexError, ValueError, RecursionError
        If a header is damaged.
    """
    at = column.data_page_offset
    if column.has_dictionary_page and 0 < (column.dictionary_page_offset or 0) < at:
        # The dictionary comes before the pages of data.
        at = column.dictionary_page_offset
    end = at + column.total_compressed_size
    values = 0
    for _ in range(_MOST_PAGES):
        if at >= end or values >= column.num_values:
            return
        page = _page(read, at)
        yield page
        values += 0 if page.is_dictionary else page.values
        at = page.start + page.length
    raise ValueError(f"more than {_MOST_PAGES} pages")


def _page(read: Read, at: int) -> Page:
    """Parse the header of the page at a position."""
    size = _HEADER
    while True:
        raw = read(at, size)
        try:
            fields, length = _struct(raw, 0, 0)
            break
        except IndexError:
            if len(raw) < size or size >= _LONGEST_HEADER:
                raise ValueError("a header of a page is truncated") from None
            # Statistics of long texts are in the header: more of it is read.
            size *= 16
    # Data pages, dictionaries and data pages of version 2 each have their own header, which begins
    # with the number of values.
    of_kind = next((fields[n] for n in (5, 7, 8) if isinstance(fields.get(n), dict)), {1: 0})
    kind = _natural(fields, 1)
    is_known = kind == 0 and of_kind.get(3) == of_kind.get(4) == _RLE
    return Page(
        start=at + length,
        length=_natural(fields, 3),
        unfolded=_natural(fields, 2),
        values=_natural(of_kind, 1),
        encoding=_natural(of_kind, 2) if is_known else -1,
        is_dictionary=kind == 2,
    )


def _natural(fields: dict[int, Any], number: int) -> int:
    """Field that must be a non-negative number."""
    value = fields.get(number)
    if not isinstance(value, int) or value < 0:
        raise ValueError("a page of negative size")
    return value


def _struct(raw: bytes, at: int, depth: int) -> tuple[dict[int, Any], int]:
    """Integers and structs of a Thrift struct by their numbers, and where it ends."""
    if depth > _MOST_DEPTH:
        raise ValueError("a header of a page is nested too deeply")
    fields: dict[int, Any] = {}
    number = 0
    # A zero ends a struct. The upper half of a byte is the difference of the field's number from
    # the previous one; if it is 0, the number follows. The lower half is the type.
    while byte := raw[at]:
        at += 1
        if byte >> 4:
            number += byte >> 4
        else:
            number, at = _integer(raw, at)
        kind = byte & 15
        value: Any = None
        if 4 <= kind <= 6:
            value, at = _integer(raw, at)
        elif kind == 12:
            value, at = _struct(raw, at, depth + 1)
        elif kind == 8:
            length, at = varint(raw, at)
            at += length
        elif kind in (1, 2):  # true and false
            value = kind == 1
        elif kind == 3:
            value, at = raw[at], at + 1
        elif kind == 7:
            at += 8
        else:
            raise ValueError(f"a header of a page holds the type {kind}")
        fields[number] = value
    return fields, at + 1


def _integer(raw: bytes, at: int) -> tuple[int, int]:
    # Positive and negative numbers alternate, so that small negative ones are short too.
    zigzag, at = varint(raw, at)
    return (zigzag >> 1) ^ -(zigzag & 1), at


def varint(raw: bytes, at: int) -> tuple[int, int]:
    """Number with seven bits per byte at a position, and where it ends."""
    value = shift = 0
    while (byte := raw[at]) > 127:
        value |= (byte & 127) << shift
        shift += 7
        at += 1
        if shift > 63:  # ten times seven bits hold any number of 64
            raise ValueError("a header of a page holds a number without end")
    return value | byte << shift, at + 1
