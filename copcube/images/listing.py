"""The JSON listing of a GeoTIFF tree, ``fnames_*.json.gz``, read one cell at a time.

The published ones name up to 18.7 million paths in two gigabytes of text. Only one cell's text is
parsed at a time, and a text longer than any listing is refused beforehand.
"""

import codecs
import gzip
import json
import os
import re
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, BinaryIO, cast

from copcube import grid
from copcube.errors import SourceError
from copcube.files import limits
from copcube.files.contents import refuse_other
from copcube.files.limits import demand
from copcube.files.regular import open_regular
from copcube.images.naming import FOLDERS, folder_of
from copcube.modalities import Modality

_PART = 1 << 22
"""Bytes of text that are read at a time."""
_MOST_DEFLATED = 1032
"""Most bytes that a byte of deflate can expand to: 258 for two bits (zlib's manual)."""
_SPACE = re.compile(r"[ \t\n\r]*")
_AFTER = re.compile(r"[ \t\n\r,:}\]]")
_LONGEST = 5000
"""More digits than Python reads in a number."""


def listed(
    root: str, fnames: str, folders: Mapping[str, Modality] = FOLDERS
) -> Iterator[tuple[str, bool]]:
    """Yield the paths of a listing, and whether each is listed under a cell other than its own.

    A listing may say ``s3_olci_utm`` for files in ``s3_olci_wgs``: a path gets the existing folder
    of its modality.

    Raises
    ------
    SourceError
        If it is not such a listing, or expands to more than any published one.
    """
    existing = [folder for folder in folders if os.path.isdir(os.path.join(root, folder))]
    home = {
        folder: next((f for f in existing if folders[f] is modality), folder)
        for folder, modality in folders.items()
    }
    keys = dict.fromkeys(modality.key for modality in folders.values())
    for key, entry in _cells(fnames):
        if not isinstance(entry, dict):
            raise SourceError(f"{fnames}: cell {key!r} is not a JSON object")
        cell = entry.get("grid_id_coord")
        try:
            own = isinstance(cell, str) and key.isdecimal() and grid.parse_cell(cell) == int(key)
        except ValueError:
            own = False
        for modality in keys:
            for path in _paths(fnames, key, entry.get(modality, [])):
                folder = folder_of(path, folders) or ""
                inner = path[len(folder) :]
                yield home.get(folder, "") + inner, not (own and inner.startswith(f"/{cell}/"))


def _paths(fnames: str, key: str, value: Any) -> Iterator[str]:
    """Yield the paths of a list, or of the lists in an object."""
    for paths in value.values() if isinstance(value, dict) else [value]:
        if not (isinstance(paths, list) and all(isinstance(path, str) for path in paths)):
            raise SourceError(f"{fnames}: cell {key!r} lists {paths!r:.80}; expected paths")
        yield from paths


def _cells(fnames: str) -> Iterator[tuple[str, Any]]:
    """Yield the keys and values of a listing, JSON or gzipped JSON."""
    try:
        with _opened(fnames) as text:
            yield from _Text(text, fnames).items()
    except SourceError:
        raise
    except (EOFError, ValueError, RecursionError, zlib.error, gzip.BadGzipFile) as error:
        raise SourceError(f"{fnames}: not a listing of files in JSON: {error}") from error


@contextmanager
def _opened(fnames: str) -> Iterator[BinaryIO]:
    """Open a text, after checking its length."""
    zipped = fnames.endswith(".gz")
    form = "gzip" if zipped else "json"
    expected = f"a listing of files in {'gzipped ' if zipped else ''}JSON"
    with open_regular(fnames, SourceError) as raw:
        refuse_other(fnames, (form,), expected, SourceError)
        size = os.fstat(raw.fileno()).st_size
        if not zipped:
            demand(limits.LISTING, size, fnames, SourceError)
            yield raw
            return
        with gzip.open(raw) as text:
            # A text that may be too long is measured first, without keeping it.
            if size * _MOST_DEFLATED > limits.LISTING.allowed:
                while text.read(_PART):
                    demand(limits.LISTING, text.tell(), fnames, SourceError, least=True)
                text.seek(0)
            yield cast(BinaryIO, text)


class _Text:
    """A text of which only the part being parsed is held, `rest` from position `at` on."""

    def __init__(self, text: BinaryIO, fnames: str) -> None:
        self.text, self.fnames = text, fnames
        # Decoded like `json.loads` does: a byte order mark and single surrogates are accepted.
        self.decode = codecs.getincrementaldecoder("utf-8-sig")("surrogatepass").decode
        self.rest, self.at, self.ended = "", 0, False

    def items(self) -> Iterator[tuple[str, Any]]:
        """Keys and values of the text's JSON object."""
        self._mark("{")
        mark = self._mark('"}', take=False)
        while mark != "}":
            mark = self._mark('"', take=False)
            key = self._value()
            self._mark(":")
            yield key, self._value()
            mark = self._mark(",}", take=False)
            self.at += mark == ","
        self.at += 1
        if end := self._next():
            raise ValueError(f"{end!r} follows its end")

    def _mark(self, expected: str, *, take: bool = True) -> str:
        """Return the next character, which must be one of those expected."""
        found = self._next()
        if not found or found not in expected:
            raise ValueError(f"expected {' or '.join(expected)}, found {found or 'its end'!r}")
        self.at += take
        return found

    def _next(self) -> str:
        """Return the next character after white space, empty at the end."""
        while True:
            self.at = _SPACE.match(self.rest, self.at).end()  # type: ignore[union-attr]
            if self.at < len(self.rest) or self.ended:
                return self.rest[self.at : self.at + 1]
            self._read()

    def _value(self) -> Any:
        """Parse the next value once all of it is read."""
        self._next()
        while True:
            try:
                value, end = _SCAN(self.rest, self.at)
                # A number at the end may continue.
                if self.ended or _AFTER.match(self.rest, end) or end + _LONGEST < len(self.rest):
                    self.at = end
                    return value
            except ValueError:
                if self.ended:
                    raise
            length = len(self.rest) - self.at
            demand(limits.CELL, length, f"{self.fnames}: a cell", SourceError, least=True)
            self._read()

    def _read(self) -> None:
        raw = self.text.read(_PART)
        self.ended = not raw
        self.rest, self.at = self.rest[self.at :] + self.decode(raw, self.ended), 0


_SCAN = json.JSONDecoder().raw_decode
