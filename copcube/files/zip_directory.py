"""Where the members of a zip archive lie, for archives whose data are read in place.

``torch.save`` and ``numpy.savez`` store members without compression, so that their numbers
can be read or mapped where they lie. Readers of zip archives disagree about archives that
contradict themselves: one believes the end record, another searches for a directory. Such
archives are refused here. An accepted one consists of its members, one central directory
right behind them, and the end records. Sections in comments are those of PKWARE's APPNOTE.TXT.
"""

import os
import struct
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

Read = Callable[[int, int], bytes]
"""Returns the bytes at a position, given the position and how many; fewer at the end."""

_TAIL = 2048
_MAX_DIRECTORY = 1 << 20

_END = struct.Struct("<4s4H2LH")  # 4.3.16
_END_64 = struct.Struct("<4s12x2L4Q")  # 4.3.14, without extensible data
_LOCATOR_64 = struct.Struct("<4sLQL")  # 4.3.15
_ENTRY = struct.Struct("<4s4x2H8x2L3H4x2L")  # 4.3.12
_LOCAL = struct.Struct("<4s2x2H16x2H")  # 4.3.7

_ENCRYPTED = 0x1 | 0x40
_PATCHED = 0x20
_UTF_8 = 0x800
_FOLDER = 0x10
_IN_EXTRA_16, _IN_EXTRA_32 = 0xFFFF, 0xFFFFFFFF


class Entry(NamedTuple):
    """What the central directory says of a member.

    Parameters
    ----------
    name : bytes
        Its name as it is written there.
    header : int
        Position of its local header.
    size, packed : int
        Bytes of its content, and bytes that they take in the archive.
    method : int
        How it is compressed; 0 is not at all.
    flags, attributes : int
        General purpose flags, and file attributes of MS-DOS.
    """

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
        Position of the directory, where all members have ended.
    """

    read: Read
    entries: dict[str, Entry]
    start: int

    @classmethod
    def of(cls, read: Read, size: int) -> "ZipDirectory":
        """Read the directory of an archive.

        Parameters
        ----------
        read : callable
            Reads the archive.
        size : int
            Its length in bytes.

        Raises
        ------
        zipfile.BadZipFile
            If it is no zip archive, is damaged, contradicts itself, or its directory is
            larger than 1 MiB.
        """
        tail_start = max(0, size - _TAIL)
        tail = read(tail_start, size - tail_start)
        start, length, number = _find_directory(tail, tail_start, size)
        if length > _MAX_DIRECTORY:
            raise zipfile.BadZipFile(
                f"its directory has {length} bytes; expected at most {_MAX_DIRECTORY}"
            )
        if start >= tail_start:
            listing = tail[start - tail_start : start - tail_start + length]
        else:
            listing = read(start, length)
        return cls(read, _entries(listing, number), start)

    def locate(self, name: str) -> tuple[int, int]:
        """Position and length in bytes of the content of a stored member.

        Raises
        ------
        zipfile.BadZipFile
            If there is no such member, if it is compressed, encrypted or a folder, or if
            its local header says otherwise or puts it outside of the archive.
        """
        entry = self.entries.get(name)
        if entry is None:
            raise zipfile.BadZipFile(f"it has no member {name!r}")
        if entry.flags & (_ENCRYPTED | _PATCHED):
            raise zipfile.BadZipFile(f"{name!r} is encrypted")
        if entry.method != zipfile.ZIP_STORED or entry.packed != entry.size:
            raise zipfile.BadZipFile(f"{name!r} is compressed; expected it as it is")
        # torch returns memory that it never filled for a member that claims to be a folder.
        if entry.attributes & _FOLDER or name.endswith("/"):
            raise zipfile.BadZipFile(f"{name!r} is a folder; expected a file")
        length = _LOCAL.size + len(entry.name)
        header = self.read(entry.header, length)
        if len(header) < length:
            raise zipfile.BadZipFile(f"{name!r} lies outside of the archive")
        mark, flags, method, name_length, extra_length = _LOCAL.unpack_from(header)
        written = flags, method, name_length, header[_LOCAL.size :]
        if mark != b"PK\3\4" or written != (entry.flags, entry.method, len(entry.name), entry.name):
            raise zipfile.BadZipFile(f"the header of {name!r} is not what the directory says")
        start = entry.header + length + extra_length
        if start + entry.size > self.start:
            raise zipfile.BadZipFile(f"{name!r} of {entry.size} bytes at {start} ends too late")
        return start, entry.size

    def content(self, name: str, limit: int) -> bytes:
        """Content of a stored member of at most so many bytes.

        Raises
        ------
        zipfile.BadZipFile
            If it is larger, or as for `locate`.
        """
        start, length = self.locate(name)
        if length > limit:
            raise zipfile.BadZipFile(f"{name!r} has {length} bytes; expected at most {limit}")
        return self.read(start, length)


@contextmanager
def open_directory(path: str) -> Iterator[ZipDirectory]:
    """Open the directory of an archive; members can be found as long as the body runs.

    Raises
    ------
    zipfile.BadZipFile
        See `ZipDirectory.of`.
    OSError
        If the file cannot be read.
    """
    with open(path, "rb") as file:

        def read(start: int, length: int) -> bytes:
            file.seek(start)
            return file.read(length)

        yield ZipDirectory.of(read, file.seek(0, os.SEEK_END))


def _find_directory(tail: bytes, tail_start: int, size: int) -> tuple[int, int, int]:
    """Position, length and number of entries of the central directory, by the end records.

    Parameters
    ----------
    tail : bytes
        Last bytes of the archive.
    tail_start, size : int
        Position of the tail, and length of the archive.
    """
    end = size - _END.size
    if end < 0 or not tail.startswith(b"PK\5\6", end - tail_start):
        raise zipfile.BadZipFile("it does not end as a zip archive does; it may be cut off")
    _, *classic, comment = _END.unpack_from(tail, end - tail_start)
    found = classic
    locator = end - _LOCATOR_64.size
    if locator >= tail_start and tail.startswith(b"PK\6\7", locator - tail_start):
        _, disk, position, disks = _LOCATOR_64.unpack_from(tail, locator - tail_start)
        end = locator - _END_64.size
        if (disk, position, disks) != (0, end, 1) or end < tail_start:
            raise zipfile.BadZipFile("its end records contradict each other")
        mark, *found = _END_64.unpack_from(tail, end - tail_start)
        if mark != b"PK\6\6" or any(
            value not in (exact, _IN_EXTRA_16 if i < 4 else _IN_EXTRA_32)
            for i, (value, exact) in enumerate(zip(classic, found, strict=True))
        ):
            raise zipfile.BadZipFile("its end records contradict each other")
    disk, first_disk, number_here, number, length, start = found
    if disk or first_disk or number_here != number or comment:
        raise zipfile.BadZipFile("it is one part of several, or ends with a comment")
    # Readers that search for the directory would find another one than readers that do not.
    if start + length != end:
        raise zipfile.BadZipFile(
            f"its directory ends at {start + length}, but its end record begins at {end}"
        )
    return start, length, number


def _entries(listing: bytes, number: int) -> dict[str, Entry]:
    """Parse the central directory, which has to consist of a number of entries exactly."""
    found: dict[str, Entry] = {}
    at = 0
    try:
        for _ in range(number):
            mark, flags, method, packed, size, *lengths, attributes, header = _ENTRY.unpack_from(
                listing, at
            )
            name_length, extra_length, comment_length = lengths
            at += _ENTRY.size
            raw = listing[at : at + name_length]
            name = _decoded(raw, flags)
            at += name_length
            if _IN_EXTRA_32 in (size, packed, header):
                extra = listing[at : at + extra_length]
                size, packed, header = _large(extra, size, packed, header)
            at += extra_length + comment_length
            if mark != b"PK\1\2" or name in found:
                raise zipfile.BadZipFile(f"its directory is damaged at {name!r:.80}")
            found[name] = Entry(raw, header, size, packed, method, flags, attributes)
    except struct.error as error:
        raise zipfile.BadZipFile("its directory is cut off") from error
    if at != len(listing):
        raise zipfile.BadZipFile(f"its directory of {number} entries is longer or shorter")
    return found


def _large(extra: bytes, size: int, packed: int, header: int) -> tuple[int, int, int]:
    """Size, packed size and position of a member from its zip64 extra field (4.5.3)."""
    at = 0
    while at < len(extra):
        kind, length = struct.unpack_from("<2H", extra, at)
        at += 4
        if kind == 1:
            # The field holds those values alone that the entry itself has no room for.
            numbers = iter(struct.unpack_from(f"<{length // 8}Q", extra, at))
            size, packed, header = (
                next(numbers, value) if value == _IN_EXTRA_32 else value
                for value in (size, packed, header)
            )
            break
        at += length
    return size, packed, header


def _decoded(name: bytes, flags: int) -> str:
    try:
        return name.decode("utf-8" if flags & _UTF_8 else "cp437")
    except UnicodeDecodeError as error:
        raise zipfile.BadZipFile(f"a member has the name {name!r:.80}, which is no text") from error
