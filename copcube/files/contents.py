"""Recognising files by their first bytes, for messages about unexpected content.

Downloads may be error pages, repositories hold pointers instead of files, archives hide what was
expected. Code that opens a file of one format checks here first, so that the message names what the
file is and not where a reader failed. Signatures are those of the formats' specifications.
"""

import os
import stat
from pathlib import Path

from copcube.errors import CopcubeError

HEAD = 512
"""Number of first bytes that distinguish all formats: a tar's first header."""

_PACKED = "unpack it first"
_SIGNATURES: tuple[tuple[bytes, str, str], ...] = (
    (b"\x1f\x8b", "gzip", f"a gzip archive; {_PACKED}"),
    (b"BZh", "bzip2", f"a bzip2 archive; {_PACKED}"),
    (b"\xfd7zXZ\0", "xz", f"an xz archive; {_PACKED}"),
    (b"\x28\xb5\x2f\xfd", "zstd", f"a Zstandard archive; {_PACKED}"),
    (b"7z\xbc\xaf\x27\x1c", "7z", f"a 7z archive; {_PACKED}"),
    (b"Rar!\x1a\x07", "rar", f"a RAR archive; {_PACKED}"),
    (b"II*\0", "tiff", "a TIFF file"),
    (b"MM\0*", "tiff", "a TIFF file"),
    (b"II+\0", "tiff", "a TIFF file"),
    (b"MM\0+", "tiff", "a TIFF file"),
    (b"PAR1", "parquet", "a parquet file"),
    (b"\x89HDF\r\n\x1a\n", "hdf5", "an HDF5 or netCDF-4 file"),
    (b"CDF\x01", "netcdf", "a netCDF file"),
    (b"CDF\x02", "netcdf", "a netCDF file"),
    (b"CDF\x05", "netcdf", "a netCDF file"),
    (b"GRIB", "grib", "a GRIB file"),
    (b"BUFR", "bufr", "a BUFR file"),
    (b"\x93NUMPY", "npy", "a single NumPy array (.npy)"),
    (b"ARROW1", "arrow", "an Arrow file"),
    (b"%PDF-", "pdf", "a PDF document"),
    (b"\x89PNG\r\n\x1a\n", "png", "a PNG picture"),
    (b"\xff\xd8\xff", "jpeg", "a JPEG picture"),
    (b"\0\0\0\x0cjP  \r\n\x87\n", "jp2", "a JPEG 2000 picture, as in Sentinel-2's own products"),
    (b"\xffO\xffQ", "jp2", "a JPEG 2000 picture"),
    (b"SQLite format 3\0", "sqlite", "an SQLite database"),
    (b"\x7fELF", "program", "a program"),
)
_LFS = b"version https://git-lfs"
_ANNEX = b"/annex/objects/"


def refuse_other(
    path: str | Path, forms: tuple[str, ...], expected: str, error: type[CopcubeError]
) -> None:
    """Refuse a file whose first bytes are those of an unexpected format.

    A file that cannot be opened passes, as does one with unknown first bytes: the format's reader
    knows better what is wrong.

    Parameters
    ----------
    path : str or Path
        A file on disk.
    forms : tuple of str
        What it may hold, in the terms of `form`.
    expected : str
        The same in a message, such as "a GeoTIFF".
    error : type
        Class of the error.

    Raises
    ------
    CopcubeError
        Of that class, if the file holds something else.
    """
    if (other := other_than(forms, first_bytes(path))) is not None:
        raise error(f"{path}: expected {expected}, found {other}")


def first_bytes(path: str | Path) -> bytes | None:
    """Return the first bytes of a regular file; None if there is no readable one."""
    try:
        # A pipe would wait for somebody to write into it.
        if not stat.S_ISREG(os.stat(path).st_mode):
            return None
        with open(path, "rb") as file:
            return file.read(HEAD)
    except (OSError, ValueError):
        return None


def other_than(forms: tuple[str, ...], head: bytes | None) -> str | None:
    r"""Name the format of first bytes, if it is known and not an accepted one; else None.

    Parameters
    ----------
    forms : tuple of str
        Accepted formats.
    head : bytes or None
        The first `HEAD` bytes of a file, or all of them.

    Examples
    --------
    >>> other_than(("tiff",), b"<!DOCTYPE html><title>404</title>")
    "an HTML page, such as a server's error or login page; get a new copy"
    >>> other_than(("tiff",), b"II*\0") is None
    True
    """
    if head is None:
        return None
    found, words = form(head)
    return None if found in ("", *forms) else words


def form(head: bytes) -> tuple[str, str]:
    """Name the format of a file by its first bytes, and describe it; empty if unknown.

    Returns
    -------
    form : str
        One of ``empty``, ``zeros``, ``pointer``, ``html``, ``xml``, ``json``, ``text``,
        ``tar``, ``npz``, ``torch``, ``zip``, ``pickle``, ``safetensors`` and those of formats
        with a signature, such as ``tiff``, ``parquet``, ``hdf5``, ``netcdf``, ``grib``, ``gzip``.
    words : str
        The same for a message, with a remedy if known.
    """
    if not head:
        return "empty", "an empty file; get a new copy"
    for signature, name, words in _SIGNATURES:
        if head.startswith(signature):
            return name, words
    # An archive without members begins with its end record.
    if head.startswith((b"PK\3\4", b"PK\5\6")):
        return _zip(head)
    # A tar begins with the name of its first member; its signature comes after that.
    if head[257:262] == b"ustar":
        return "tar", "a tar archive"
    if not any(head):
        return "zeros", "only zero bytes, as left by a broken download; get a new copy"
    if head[:1] == b"\x80" and head[1:2] in (b"\2", b"\3", b"\4", b"\5"):
        return "pickle", "a Python pickle"
    # Such a file begins with the length of a JSON text, in 8 bytes, and the text itself.
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 1 << 32:
        return "safetensors", "a safetensors file"
    return _text(head)


def _zip(head: bytes) -> tuple[str, str]:
    """Identify a zip archive by the name of its first member."""
    # The name follows the 30 bytes of the local header, which holds its length at 26.
    name = head[30 : 30 + int.from_bytes(head[26:28], "little")].decode("utf-8", "replace")
    suffix = os.path.splitext(name)[1].lower()
    if suffix == ".npy":
        return "npz", "an npz archive of NumPy arrays"
    if name.endswith(("/data.pkl", "/.format_version", "/byteorder", "/version")):
        return "torch", "a file of torch.save"
    if suffix in (".nc", ".grib", ".grib2", ".grb"):
        return "packed", (
            f"a ZIP archive that holds {name!a:.80}, as the Climate Data Store (CDS) sends them; "
            "unpack it and give the files in it"
        )
    if suffix in (".tif", ".tiff", ".tar", ".parquet", ".json", ".pth", ".pt", ".npz", ".html"):
        return "packed", f"a ZIP archive that holds {name!a:.80}; {_PACKED}"
    holds = f" that holds {name!a:.80}" if name else ""
    return "zip", f"a ZIP archive{holds}; {_PACKED}"


def _text(head: bytes) -> tuple[str, str]:
    """Identify a text; what is not text stays unknown."""
    # Some editors put a byte order mark before UTF-8 text.
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if head.startswith(_LFS) or _ANNEX in head[:200]:
        tool, remedy = (
            ("Git LFS", "git lfs pull") if head.startswith(_LFS) else ("git-annex", "git annex get")
        )
        return "pointer", f"a {tool} pointer, not the file itself; download it: {remedy}"
    lower = text.lower()
    if lower.startswith((b"<!doctype html", b"<html", b"<head", b"<!doctype xhtml")) or (
        lower.startswith((b"<?xml", b"<!--")) and b"<html" in lower
    ):
        return "html", "an HTML page, such as a server's error or login page; get a new copy"
    if lower.startswith((b"<?xml", b"<error")):
        return "xml", "an XML document, such as the error message of an object store"
    # At the end of the bytes, a character of several bytes may be cut.
    clear = text.decode("utf-8", "ignore").encode()
    if len(text) - len(clear) > 3 or not text or any(c < 32 and c not in b"\t\n\r\f" for c in text):
        return "", ""
    if text[:1] in b"{[":
        return "json", f"JSON text, {_beginning(text)}"
    return "text", f"text, {_beginning(text)}"


def _beginning(text: bytes) -> str:
    words = " ".join(text.decode("utf-8", "replace").split())
    return f"which begins {words[:40]!a}"
