"""What may be replaced: Zarr that copcube wrote, at exactly the given name.

A name on the command line may be mistyped. So what has the name of an output is replaced only if
its content shows that copcube made all of it, and if it is not an input of the output.
"""

import os
import re
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from copcube.cube import schema
from copcube.cube.store import METADATA, NODE, address, is_group, refuse_chain
from copcube.errors import OptionError, WriteError
from copcube.files.objects import is_remote, listing

# Chunks are named c/0/0 in Zarr 3, and 0.0 or 0/0 in Zarr 2.
_CHUNK = re.compile(r"(?:(.*?)/)?(?:c(?:[/.]\d+)*|\d+(?:[/.]\d+)*)")
_VARIABLES = {*schema.variables(1, "month", ("01",)), "modality", "season", "year"}
_CUBE = {*_VARIABLES, schema.CONVENTIONS}
_PATTERN = re.compile(r"[*?\[{]")
_OF_FILES = (".nc", ".npz", ".npy", ".pt", ".tif", ".tiff", ".parquet")
"""Extensions from which readers infer a file."""


def require_store_name(path: str | Path) -> None:
    """Check that a name may be that of a Zarr store, before any work.

    Raises
    ------
    OptionError
        If it has the extension of a file, which nothing would open as a folder; as `refuse_chain`.
    """
    refuse_chain(path)
    name, ending = os.path.splitext(str(path).rstrip("/"))
    if ending.lower() in _OF_FILES:
        raise OptionError(
            f"{path}: Zarr is a folder, but {ending} is a file extension; choose a name such as "
            f"{os.path.basename(name)}.zarr (`copcube export` writes other formats)"
        )


def require_outside(path: str | Path) -> None:
    """Check that an output lies in no local cube, with whose files it would be mixed.

    Raises
    ------
    WriteError
        If it does.
    """
    if is_remote(path):
        return
    folder = Path(os.path.realpath(os.path.dirname(os.path.abspath(path))))
    for place in (folder, *folder.parents):
        if is_group(place) and says_copcube(os.listdir(place), _attributes(place)):
            raise WriteError(
                f"{path} lies in {place}, which holds a cube or what was made of one; choose a "
                "name outside of it"
            )


def foreign(path: str | Path, *, half: bool = False) -> str | None:
    """Say what is at a path, unless it is purely a Zarr group of copcube's.

    Parameters
    ----------
    path : str or Path
        A folder, or the URL of one in an object store, where something exists.
    half : bool
        Whether it is known to be part of a cube, without the metadata of the group.

    Returns
    -------
    str or None
        What was found; None for a cube, a reduction or a merged dataset of copcube's.
    """
    if not is_remote(path):
        if (found := unusual(path)) is not None:
            return found
        if not os.path.isdir(path):
            return "a file"
    names = _names(path)
    nodes = {name.rpartition("/")[0] for name in names if name.rpartition("/")[2] in NODE}
    if "" not in nodes and not half:
        return "a folder of something else"
    nodes |= _VARIABLES  # one of which may have lost its metadata
    for name in sorted(names):
        node, _, base = name.rpartition("/")
        chunk = _CHUNK.fullmatch(name)
        # A killed zarr writer leaves files whose names end in .partial.
        known = (base in METADATA and node in nodes) or base.endswith(".partial")
        if not known and (chunk is None or (chunk[1] or "") not in nodes):
            return f"a Zarr folder in which {name} is not part of the data"
    if half or says_copcube({name.partition("/")[0] for name in names}, _attributes(path)):
        return None
    return "Zarr that copcube did not write"


def added(path: str | Path) -> list[str]:
    """Names of variables and folders in a cube that copcube did not write there."""
    return sorted({name.partition("/")[0] for name in _names(path) if "/" in name} - _CUBE)


def unusual(path: str | Path) -> str | None:
    """Say what is at a local path if it is neither a plain file nor a folder."""
    mode = os.lstat(path).st_mode
    if stat.S_ISLNK(mode):
        return f"a link to {os.readlink(path)}"
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        return "a device, pipe or socket"
    return None


def says_copcube(names: Iterable[object], attributes: Mapping[Any, Any]) -> bool:
    """Whether variables and attributes are those of a dataset that copcube made.

    Parameters
    ----------
    names : iterable of str
        Of all variables.
    attributes : mapping
        Of the dataset.
    """
    if any("copcube" in str(key) for key in attributes):
        return True
    if "copcube" in str(attributes.get("history", "")):
        return True
    # A cube or a reduction without attributes, as one variable or one per component.
    known = {re.sub(r"^(embedding|pc)_\d+$", r"\1", str(name).lower()) for name in names}
    return bool(known & {"embedding", "pc"}) and all(
        known & axis for axis in ({"lat", "latitude"}, {"lon", "longitude"})
    )


def overlap(out: str | Path, source: object) -> str | None:
    """Say how an output conflicts with an input, if it does.

    Parameters
    ----------
    out : str or Path
        What would be replaced.
    source : object
        A path, address or pattern that is read; anything else conflicts with nothing.

    Returns
    -------
    str or None
        ``is``, ``lies in`` or ``contains``, to be read between the two names.
    """
    if not isinstance(source, str | os.PathLike):
        return None
    text = os.fsdecode(source)
    # For a pattern only the folder is known; files beside those it matches are not touched.
    pattern = _PATTERN.search(text)
    if pattern is not None:
        text = os.path.dirname(text[: pattern.start()])
    mine, theirs = _parts(str(out)), _parts(text)
    if mine is None or theirs is None or mine[0] != theirs[0]:
        return None
    if mine == theirs:
        return "is"
    if theirs[: len(mine)] == mine:
        return "contains"
    if mine[: len(theirs)] == theirs and pattern is None:
        return "lies in"
    try:
        # One file can have two names, by a hard link or a case-insensitive file system.
        return "is" if os.path.samefile(out, text) else None
    except (OSError, ValueError):
        return None


def _parts(path: str) -> tuple[str, ...] | None:
    """Parts of a path with links resolved, or of an address."""
    if is_remote(path):
        return tuple(part for part in path.split("/") if part)
    try:
        return Path(os.path.realpath(path)).parts
    except (OSError, ValueError):
        return None


def _names(path: str | Path) -> set[str]:
    """Names of all files below a folder, hidden ones and links included."""
    if is_remote(path):
        return {entry.name for entry in listing(str(path))}
    found = set()
    for root, folders, files in os.walk(path):
        links = [name for name in folders if os.path.islink(os.path.join(root, name))]
        for name in (*files, *links):
            found.add(os.path.relpath(os.path.join(root, name), path).replace(os.sep, "/"))
    return found


def _attributes(path: str | Path) -> dict[str, Any]:
    """Attributes of a Zarr group of either format; none if they cannot be read."""
    import zarr
    from zarr.errors import BaseZarrError

    try:
        return dict(zarr.open_group(address(path), mode="r", use_consolidated=False).attrs)
    except (BaseZarrError, OSError, ValueError, KeyError, TypeError):
        return {}
