"""The regular members of a tar archive, found by its headers alone.

Nothing is extracted and no member's name ever becomes a path. `tarfile` stops silently where an
archive is truncated or damaged; this module reports where.
"""

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, replace

from copcube.errors import ImageError
from copcube.files.contents import other_than
from copcube.images.archives import Archive

_BLOCK = 512
_MAX_HEADER = 1 << 20
_MAX_MEMBERS = 100_000
_WITHOUT_DATA = (
    tarfile.LNKTYPE,
    tarfile.SYMTYPE,
    tarfile.CHRTYPE,
    tarfile.BLKTYPE,
    tarfile.DIRTYPE,
    tarfile.FIFOTYPE,
)


@dataclass(frozen=True)
class Member:
    """Where a regular file lies in an archive.

    Parameters
    ----------
    name : str
        Its name, as written there.
    offset, size : int
        Position and length of its data in bytes.
    """

    name: str
    offset: int
    size: int

    def read(self, archive: Archive, start: int, length: int) -> bytes:
        """Read some of its data from the archive.

        Raises
        ------
        ImageError
            If the archive has become shorter.
        """
        data = archive.read(self.offset + start, length)
        if len(data) < length:
            where = self.offset + start
            raise ImageError(f"expected {length} bytes at {where}, found {len(data)}")
        return data


def members(archive: Archive) -> Iterator[Member]:
    """Regular files of an uncompressed tar, in order; links, folders and devices are left out.

    Parameters
    ----------
    archive : Archive
        The archive's bytes.

    Raises
    ------
    ImageError
        After the last complete member, if the archive is truncated, damaged or endless.
    """
    pending = Member("", 0, -1)  # fields of extension headers about the next member
    offset = 0
    for _ in range(_MAX_MEMBERS):
        block = archive.read(offset, _BLOCK)
        if offset == 0 and (other := other_than(("tar", "zeros"), block)) is not None:
            raise ImageError(f"expected a tar archive, found {other}")
        if len(block) == _BLOCK and not any(block):
            return
        if len(block) < _BLOCK:
            raise ImageError(f"the archive is truncated at byte {offset}: it has no end mark")
        try:
            header = tarfile.TarInfo.frombuf(block, "utf-8", "backslashreplace")
        except tarfile.TarError as error:
            raise ImageError(f"damaged at byte {offset}: {error}") from error
        extension = header.type in (tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME)
        # A header has room for sizes below 8 GiB; a larger one is in the extension before it.
        size = header.size if extension or pending.size < 0 else pending.size
        # A hard link may state the size of its target although no data follow.
        if header.type in _WITHOUT_DATA:
            size = 0
        if size < 0:
            raise ImageError(f"damaged at byte {offset}: a member of {size} bytes")
        start = offset + _BLOCK
        offset = start + -(-size // _BLOCK) * _BLOCK
        if start + size > archive.size:
            raise ImageError(
                f"the archive is truncated at byte {archive.size}: "
                f"{pending.name or header.name!r} of {size} bytes begins at {start}"
            )
        if extension:
            pending = _extend(pending, header.type, archive, start, size)
            continue
        if header.type in tarfile.REGULAR_TYPES and header.type != tarfile.GNUTYPE_SPARSE:
            yield Member(pending.name or header.name, start, size)
        pending = Member("", 0, -1)
    raise ImageError(f"more than {_MAX_MEMBERS} members, more than any shard has")


def _extend(pending: Member, kind: bytes, archive: Archive, start: int, size: int) -> Member:
    """Take name and size of the next member from an extension header, if it has them."""
    if size > _MAX_HEADER:
        raise ImageError(f"an extension header of {size} bytes; expected at most {_MAX_HEADER}")
    data = archive.read(start, size)
    if kind == tarfile.GNUTYPE_LONGNAME:
        return replace(pending, name=data.rstrip(b"\0").decode("utf-8", "backslashreplace"))
    at = 0
    while at < size:  # records "<their own length> <key>=<value>\n"
        digits = data[at : at + 8].partition(b" ")[0]
        length = int(digits) if digits.isdigit() else 0
        if not len(digits) + 1 < length <= size - at:
            raise ImageError(f"a damaged extension header, {data[at : at + 40]!r}")
        key, _, value = data[at + len(digits) + 1 : at + length - 1].partition(b"=")
        at += length
        if key == b"path":
            pending = replace(pending, name=value.decode("utf-8", "backslashreplace"))
        elif key == b"size" and value.isdigit() and len(value) < 20:
            pending = replace(pending, size=int(value))
    return pending
