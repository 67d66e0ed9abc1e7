"""Unpack a zip archive from elsewhere without trusting anything in it.

Archives come from the internet: their names may lead out of the folder, their members may be
links, repeat each other, or unpack to more than any disk holds.
"""

import errno
import re
import shutil
import stat
import zipfile
import zlib
from pathlib import Path, PurePosixPath

from copcube.errors import FetchError, WriteError
from copcube.files.atomic import atomic_folder
from copcube.progress import size as in_words

MAX_MEMBERS, MAX_BYTES = 200_000, 50_000_000_000
"""Twice the files of Flood-S1, 18 for each of 5000 pairs; twice the bytes of Cloud-S2."""
MAX_RATIO = 100
"""Bytes that an archive may unpack to for each byte of its own; rasters deflate far less."""

_BROKEN = (
    *(zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError),
    *(UnicodeDecodeError, OSError),  # of names, and of places in the file
)


def unpack(archive: str | Path) -> Path:
    """Unpack a zip archive of rasters into a folder of its name beside it.

    The folder appears when it is complete. If it already exists, nothing is done.

    Parameters
    ----------
    archive : str or Path
        The archive. It may hold its files in one folder of its own name.

    Returns
    -------
    Path
        The folder.

    Raises
    ------
    FetchError
        If the archive is broken, or refused: it holds no files, names paths outside its
        folder, holds links, repeats a name, compresses in an unusual way, or is larger than
        any that is published.
    WriteError
        If there is no room, or no permission.
    """
    archive = Path(archive)
    folder = archive.with_suffix("")
    if folder.is_dir():
        return folder
    try:
        with zipfile.ZipFile(archive) as file, atomic_folder(folder, replace=False) as partial:
            members = _members(file, archive)
            demand_room(sum(member.file_size for member in members.values()), folder.parent)
            for path, member in members.items():
                target = partial / path
                target.parent.mkdir(parents=True, exist_ok=True)
                with file.open(member) as source, target.open("wb") as sink:
                    shutil.copyfileobj(source, sink, 1 << 20)
    except WriteError as error:
        if error.errno != errno.ENOTEMPTY:
            raise
        # Another process that unpacked the same archive was faster.
    except _BROKEN as error:
        # A seek before the start of the file is not a fault of the disk.
        if isinstance(error, OSError) and error.errno != errno.EINVAL:
            raise
        raise FetchError(
            f"{archive}: not a readable zip archive ({error}); remove it and fetch it again"
        ) from error
    return folder


def _members(file: zipfile.ZipFile, archive: Path) -> dict[PurePosixPath, zipfile.ZipInfo]:
    """Return the files of an archive by their paths, after checking that all are safe."""
    infos = [info for info in file.infolist() if not info.filename.endswith("/")]
    # The sizes are the archive's own claims; `zipfile` stops a member that goes beyond its own.
    total = sum(info.file_size for info in infos)
    limit = MAX_RATIO * archive.stat().st_size
    if len(infos) > MAX_MEMBERS or total > MAX_BYTES or total > limit:
        raise FetchError(
            f"{archive}: refused: {len(infos)} files that unpack to {in_words(total)}; expected at "
            f"most {MAX_MEMBERS} files, {in_words(MAX_BYTES)} and {MAX_RATIO} times its size"
        )
    members: dict[PurePosixPath, zipfile.ZipInfo] = {}
    for info in infos:
        path = PurePosixPath(info.filename)
        # Unix archives keep the kind of a file here; 0 comes from systems without kinds.
        kind = stat.S_IFMT(info.external_attr >> 16)
        if not is_inside(info.filename) or path in members or kind not in (0, stat.S_IFREG):
            raise FetchError(
                f"{archive}: refused: member {info.filename!r} is a link, repeats a name or "
                f"leaves its folder; expected plain files"
            )
        # For other compressions, `zipfile` expands without a bound.
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise FetchError(
                f"{archive}: refused: member {info.filename!r} is compressed by method "
                f"{info.compress_type}; expected stored or deflated: unpack it by hand into "
                f"{archive.with_suffix('')}"
            )
        members[path] = info
    if both := members.keys() & {folder for path in members for folder in path.parents}:
        raise FetchError(
            f"{archive}: refused: {str(min(both))!r} is both a file and a folder in it; expected "
            "one"
        )
    if not members:
        raise FetchError(f"{archive}: holds no files; remove it and fetch it again")
    if {path.parent.parts[:1] for path in members} == {(archive.stem,)}:
        return {path.relative_to(archive.stem): info for path, info in members.items()}
    return members


def is_inside(name: str) -> bool:
    """Return whether a path from outside stays in the folder it is relative to."""
    # Backslashes and colons are harmless on Linux and lead elsewhere on Windows.
    parts = name.split("/")
    return not ({"", ".", ".."} & set(parts) or re.search(r"[\\:\x00-\x1f]", name))


def demand_room(needed: int, folder: Path) -> None:
    """Refuse to start if the disk has too little room.

    Raises
    ------
    WriteError
        If the disk of a folder, which need not exist yet, has fewer bytes free.
    """
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise WriteError(
            f"{folder} has {in_words(free)} free, but {in_words(needed)} are needed; free some "
            "space or choose another folder"
        )
