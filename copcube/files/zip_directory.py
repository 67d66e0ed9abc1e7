"""Positions of the members of a zip archive whose data are read in place.

``torch.save`` and ``numpy.savez`` store members without compression, so their numbers can be read
or mapped in place. Readers of zip archives disagree about archives that contradict themselves: one
believes the end record, another searches for a directory. Such archives are refused here. An
accepted archive consists of its members, one central directory directly after them, and the end
records. Sections in comments refer to PKWARE's APPNOTE.TXT.
"""

import os
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import BinaryIO, NamedTuple
from zipfile import ZIP_STORED, BadZipFile

Read = Callable[[int, int], bytes]
"""Returns the bytes at a position, given the position and how many; fewer at the end."""


def reader_of(file: BinaryIO) -> Read:
    """Return a function that reads an open file at any position, for one thread."""

    def read(start: int, length: int) -> bytes:
        file.seek(start)
        return file.read(length)

    return read


_TAIL = 2048
"""Bytes at the end of an archive that usually hold the whole directory."""
_MAX_DIRECTORY = 1 << 20

_END = struct.Struct("<4s4H2LH")  # 4.3.16
_END_64 = struct.Struct("<4s12x2L4Q")  # 4.3.14, without extensible data
_LOCATOR_64 = struct.Struct("<4sLQL")  # 4.3.15
_ENTRY = struct.Struct("<4s4x2H8x2L3H4x2L")  # 4.3.12
_LOCAL = struct.Struct("<4s2x2H16x2H")  # 4.3.7

_ENCRYPTED, _UTF_8 = 0x41, 0x800  # general purpose flags, 4.4.4
_FOLDER = 0x10  # attribute of MS-DOS
_ELSEWHERE_16, _ELSEWHERE_32 = 0xFFFF, 0xFFFFFFFF  # the value stands in a zip64 record


class Entry(NamedTuple):
    """Directory entry of a member; `header` is the position of its local header."""

    name: bytes
    header: int
    size: int
    packed: int
    method: int
    flags: int
    attributes: int


@dataclass(frozen=True)
class ZipDirectory:
    """The central directory of a zip archive.

    Parameters
    ----------
    read : callable
        Reads the archive.
    entries : dict of str to Entry
        All members by name, in the order of the directory.
    start : int
        Position of the directory, before which all members end.
    """

    read: Read
    entries: dict[str, Entry]
    start: int

    @classmethod
    def of(cls, read: Read, size: int) -> "ZipDirectory":
        """Read the directory of an archive of a size in bytes.

        Raises
        ------
        zipfile.BadZipFile
            If it is not a zip archive, is damaged, contradicts itself, or its directory is larger
            than 1 MiB.
        """
        tail_start = max(0, size - _TAIL)
        tail = read(tail_start, size - tail_start)
        start, length, number = _find_directory(tail, size)
        if length > _MAX_DIRECTORY:
            raise BadZipFile(f"its directory has {length} bytes; expected at most {_MAX_DIRECTORY}")
        if start < tail_start:
            return cls(read, _entries(read(start, length), number), start)
        at = start - tail_start
        return cls(read, _entries(tail[at : at + length], number), start)

    def locate(self, name: str) -> tuple[int, int]:
        """Position and length in bytes of the content of a stored member.

        Raises
        ------
        zipfile.BadZipFile
            If there is no such member, if it is compressed, encrypted or a folder, or if its local
            header disagrees or puts it outside the archive.
        """
        if name not in self.entries:
            raise BadZipFile(f"it has no member {name!r}")
        raw, at, size, packed, method, flags, attributes = self.entries[name]
        if flags & _ENCRYPTED:
            raise BadZipFile(f"{name!r} is encrypted")
        if method != ZIP_STORED or packed != size:
            raise BadZipFile(f"{name!r} is compressed; expected it uncompressed")
        # torch returns uninitialised memory for a member that claims to be a folder.
        if attributes & _FOLDER or name.endswith("/"):
            raise BadZipFile(f"{name!r} is a folder; expected a file")
        length = _LOCAL.size + len(raw)
        header = self.read(at, length)
        if len(header) < length:
            raise BadZipFile(f"{name!r} lies outside the archive")
        *found, extra_length = _LOCAL.unpack_from(header)
        if found != [b"PK\3\4", flags, method, len(raw)] or not header.endswith(raw):
            raise BadZipFile(f"the header of {name!r} contradicts the directory")
        start: int = at + length + extra_length
        if start + size > self.start:
            raise BadZipFile(f"{name!r} of {size} bytes at {start} extends beyond the members")
        return start, size

    def content(self, name: str, limit: int) -> bytes:
        """Content of a stored member of at most `limit` bytes.

        Raises
        ------
        zipfile.BadZipFile
            If it is larger, or as for `locate`.
        """
        start, length = self.locate(name)
        if length > limit:
            raise BadZipFile(f"{name!r} has {length} bytes; expected at most {limit}")
        return self.read(start, length)


@contextmanager
def open_directory(path: str) -> Iterator[ZipDirectory]:
    """Open the directory of an archive; members can be found while the body runs.

    Raises
    ------
    zipfile.BadZipFile
        See `ZipDirectory.of`.
    OSError
        If the file cannot be read.
    """
    with open(path, "rb") as file:
        yield ZipDirectory.of(reader_of(file), file.seek(0, os.SEEK_END))


def _find_directory(tail: bytes, size: int) -> tuple[int, int, int]:
    """Position, length and number of entries of the directory, from the end records in the tail."""
    at = len(tail) - _END.size
    if at < 0 or not tail.startswith(b"PK\5\6", at):
        raise BadZipFile("it does not end like a zip archive; it may be truncated")
    _, *found, comment = _END.unpack_from(tail, at)
    if tail.startswith(b"PK\6\7", max(0, at - _LOCATOR_64.size)):
        _, *locator = _LOCATOR_64.unpack_from(tail, at - _LOCATOR_64.size)
        at -= _LOCATOR_64.size + _END_64.size
        if at < 0 or locator != [0, size - len(tail) + at, 1]:
            raise BadZipFile("its end records contradict each other")
        mark, *exact = _END_64.unpack_from(tail, at)
        elsewhere = 4 * [_ELSEWHERE_16] + 2 * [_ELSEWHERE_32]
        pairs = zip(found, exact, elsewhere, strict=True)
        if mark != b"PK\6\6" or any(value not in known for value, *known in pairs):
            raise BadZipFile("its end records contradict each other")
        found = exact
    # A comment could itself look like an end record, which some readers would take for the last.
    disk, first_disk, number_here, number, length, start = found
    if disk or first_disk or number_here != number or comment:
        raise BadZipFile("it is one of several parts, or ends with a comment")
    # Readers that search for the directory would find a different one.
    end = size - len(tail) + at
    if start + length != end:
        raise BadZipFile(f"its directory ends at {start + length}, its end record begins at {end}")
    return start, length, number


def _entries(listing: bytes, number: int) -> dict[str, Entry]:
    """Parse a directory that must consist of exactly a number of entries."""
    found: dict[str, Entry] = {}
    at = 0
    try:
        for _ in range(number):
            mark, flags, method, packed, size, *lengths, attributes, header = _ENTRY.unpack_from(
                listing, at
            )
            name_at, extra_at = at + _ENTRY.size, at + _ENTRY.size + lengths[0]
            raw = listing[name_at:extra_at]
            at = name_at + sum(lengths)
            name = raw.decode("utf-8" if flags & _UTF_8 else "cp437")
            if mark != b"PK\1\2" or name in found:
                raise BadZipFile(f"its directory is damaged at {name!r:.80}")
            if _ELSEWHERE_32 in (size, packed, header):
                extra = listing[extra_at : extra_at + lengths[1]]
                size, packed, header = _large(extra, size, packed, header)
            found[name] = Entry(raw, header, size, packed, method, flags, attributes)
    except (struct.error, UnicodeDecodeError) as error:
        raise BadZipFile(f"its directory is damaged: {error}") from error
    if at != len(listing):
        raise BadZipFile(f"its directory does not have exactly {number} entries")
    return found


def _large(extra: bytes, *values: int) -> Iterator[int]:
    """Values too large for an entry, from its extra field (4.5.3)."""
    at = 0
    while at < len(extra):
        kind, length = struct.unpack_from("<2H", extra, at)
        if kind == 1:
            exact = iter(struct.unpack_from(f"<{length // 8}Q", extra, at + 4))
            return (next(exact, v) if v == _ELSEWHERE_32 else v for v in values)
        at += 4 + length
    return iter(values)
