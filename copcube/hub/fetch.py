"""Bring published files here, once, and verify them.

Files for the encoder go into the hub's cache, files for people into a folder of their
choice, under their published paths. A file counts as here once its checksum was verified,
which a hidden stamp beside it records; what is here is never asked for again. A connection
that breaks is taken up where it broke; a process that is killed loses the file under way.
"""

import fnmatch
import hashlib
import json
import logging
import os
import re
import shutil
import stat
import sys
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from copcube.errors import CopcubeError, FetchError, MissingPackageError, StorageError
from copcube.files.atomic import atomic_folder, atomic_path, writing
from copcube.hub.published import ARCHIVE, CHECKPOINT, Published, describe, published, summary
from copcube.progress import size as in_words
from copcube.version import __version__

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile, RepoFolder

__all__ = ["Fetched", "cached", "describe", "fetch", "fetch_files", "unpack"]

log = logging.getLogger("copcube")

MAX_MEMBERS, MAX_BYTES, MAX_RATIO = 100_000, 50_000_000_000, 100


@dataclass(frozen=True)
class Fetched:
    """A published file that is here and verified.

    Parameters
    ----------
    path : Path
        Where it is.
    commit : str
        Commit it was published with.
    sha256 : str
        Its checksum.
    size : int
        Its size in bytes.
    """

    path: Path
    commit: str
    sha256: str
    size: int


def fetch(what: str, folder: str | Path, which: str | None = None) -> tuple[Fetched, ...]:
    """Bring a product: weights into the hub's cache, all else into a folder.

    The archive of the example is unpacked beside itself.

    Parameters
    ----------
    what, which : str
        As in `published`.
    folder : str or Path
        Folder for all but the weights; published paths continue in it.

    Raises
    ------
    OptionError, FetchError, StorageError
        As `published`, `fetch_files` and `unpack`.
    """
    here = fetch_files(published(what, which), None if what == "weights" else folder)
    if what == "example":
        unpack(Path(folder) / ARCHIVE.path)
    return here


def fetch_files(
    files: Sequence[Published], folder: str | Path | None = None
) -> tuple[Fetched, ...]:
    """Bring published files here, unless they are, and verify their checksums.

    The hub is ``HF_ENDPOINT`` where that is set; with ``HF_HUB_OFFLINE=1`` only what is
    here already is used. A bar shows the progress on a terminal, log lines elsewhere.

    Parameters
    ----------
    files : sequence of Published
        What to bring. Without a folder their revisions must be commits.
    folder : str or Path, optional
        Where to; the hub's cache by default.

    Returns
    -------
    tuple of Fetched
        In the order given, with patterns replaced by what they match.

    Raises
    ------
    FetchError
        If the hub cannot be reached, does not hold a file or denies access, or if a
        checksum is wrong.
    StorageError
        If there is no room, or no permission.
    """
    cache, root = _cache(), None if folder is None else Path(folder)
    here = {file: _here(file, root) for file in files}
    missing = [file for file, got in here.items() if got is None]
    listed = _listed(missing) if missing else {}
    wanted = [one for file in missing for one in listed[file] if not _here(one, root)]
    for line in summary(wanted).splitlines():
        log.info("fetching %s", line)
    _demand_room(sum(one.size or 0 for one in wanted), root or cache)
    found: list[Fetched] = []
    for file in files:
        got = here[file]
        found += [got] if got else [_here(one, root) or _bring(one, root) for one in listed[file]]
    return tuple(found)


def cached(file: Published) -> Path | None:
    """Where the hub's cache holds a file, if it does; asks nobody."""
    cache = _cache()
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(
        file.repo, file.path, cache_dir=cache, revision=file.revision, repo_type=file.kind
    )
    return Path(found) if isinstance(found, str) else None


def unpack(archive: str | Path) -> Path:
    """Unpack a zip archive of rasters into a folder of its name beside it.

    The folder appears when it is complete; if it is there, nothing is done.

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
        If the archive is broken, or refused: it names paths outside its folder, holds
        links, repeats a name, or is larger than any example can be.
    StorageError
        If there is no room, or no permission.
    """
    archive = Path(archive)
    folder = archive.with_suffix("")
    if folder.is_dir():
        return folder
    try:
        with zipfile.ZipFile(archive) as file, atomic_folder(folder, replace=False) as partial:
            members = _members(file, archive)
            _demand_room(sum(member.file_size for member in members.values()), folder.parent)
            for path, member in members.items():
                target = partial / path
                target.parent.mkdir(parents=True, exist_ok=True)
                with file.open(member) as source, target.open("wb") as sink:
                    shutil.copyfileobj(source, sink, 1 << 20)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise FetchError(
            f"{archive}: not a readable zip archive ({error}); remove it and fetch it again"
        ) from error
    return folder


def _members(file: zipfile.ZipFile, archive: Path) -> dict[PurePosixPath, zipfile.ZipInfo]:
    """Files of an archive by their safe paths."""
    infos = [info for info in file.infolist() if not info.is_dir()]
    total = sum(info.file_size for info in infos)
    if len(infos) > MAX_MEMBERS or total > MAX_BYTES or total > MAX_RATIO * _bytes(archive):
        raise FetchError(
            f"{archive}: refused: {len(infos)} files that unpack to {in_words(total)}; expected at "
            f"most {MAX_MEMBERS} files, {in_words(MAX_BYTES)} and {MAX_RATIO} times its size"
        )
    members: dict[PurePosixPath, zipfile.ZipInfo] = {}
    for info in infos:
        path = PurePosixPath(info.filename)
        kind = stat.S_IFMT(info.external_attr >> 16)
        if not _is_inside(info.filename) or path in members or kind not in (0, stat.S_IFREG):
            raise FetchError(
                f"{archive}: refused: member {info.filename!r} is a link, repeats a name or "
                f"leaves its folder; expected plain files"
            )
        members[path] = info
    if {path.parts[0] for path in members} == {archive.stem}:
        return {path.relative_to(archive.stem): info for path, info in members.items()}
    return members


def _is_inside(name: str) -> bool:
    """Whether a path from outside stays in the folder it is relative to."""
    parts = name.split("/")
    return not ({"", ".", ".."} & set(parts) or re.search(r"[\\:\x00-\x1f]", name))


def _here(file: Published, root: Path | None) -> Fetched | None:
    """Find a file that is here and verified; one in the cache is verified on sight."""
    if "*" in file.path:
        return None
    path = cached(file) if root is None else root / file.path
    if path is None or not path.is_file():
        return None
    stamp = _read_stamp(path)
    if stamp and (
        stamp.sha256 in file.sha256 or (not file.sha256 and stamp.commit == file.revision)
    ):
        return stamp
    return _verified(file, path) if root is None else None


def _listed(files: Iterable[Published]) -> dict[Published, list[Published]]:
    """Ask the hub what it holds of each: paths for patterns, commits, sizes, checksums."""
    from huggingface_hub.hf_api import RepoFile

    api = _api()
    repos: dict[tuple[str, str, str], list[Published]] = {}
    for file in files:
        repos.setdefault((file.repo, file.kind, file.revision), []).append(file)
    listed: dict[Published, list[Published]] = {}
    for (repo, kind, revision), wanted in repos.items():
        with _explained(wanted[0]):
            commit = revision
            if not re.fullmatch(r"[0-9a-f]{40}", revision):
                commit = api.repo_info(repo, repo_type=kind, revision=revision).sha or revision
                log.info("%s: %s is commit %s", repo, revision, commit)
            entries = {
                entry.path: entry
                for entry in _entries(api, repo, kind, commit, [file.path for file in wanted])
                if isinstance(entry, RepoFile)
            }
        for file in wanted:
            paths = [p for p in sorted(entries) if fnmatch.fnmatchcase(p, file.path)]
            if not paths or not all(map(_is_inside, paths)):
                raise FetchError(
                    f"{repo} holds no file {file.path} at revision {commit}; see {file.page} for "
                    f"what it holds{_ways_out(file)}"
                )
            listed[file] = [_resolved(file, commit, entries[path]) for path in paths]
    return listed


def _entries(
    api: "HfApi", repo: str, kind: str, commit: str, paths: list[str]
) -> Iterator["RepoFile | RepoFolder"]:
    """Entries of a repository for paths and for patterns, which share one folder."""
    exact = [path for path in paths if "*" not in path]
    for begin in range(0, len(exact), 500):
        yield from api.get_paths_info(
            repo, exact[begin : begin + 500], revision=commit, repo_type=kind
        )
    for folder in {path.split("*")[0].rpartition("/")[0] for path in paths if "*" in path}:
        yield from api.list_repo_tree(repo, folder, recursive=True, revision=commit, repo_type=kind)


def _resolved(file: Published, commit: str, entry: "RepoFile") -> Published:
    """Complete a file as the hub describes it; known checksums must agree with the hub's."""
    declared = (entry.lfs.sha256,) if entry.lfs else ()
    if file.sha256 and declared and declared[0] not in file.sha256:
        raise FetchError(
            f"{file}: the hub now holds another file: expected SHA-256 "
            f"{' or '.join(file.sha256)}, found {declared[0]}; if you trust it, download it by "
            f"hand from {file.page} and give its path"
        )
    return replace(
        file,
        revision=commit,
        path=entry.path,
        size=entry.size,
        sha256=file.sha256 or declared,
    )


def _bring(file: Published, root: Path | None) -> Fetched:
    """Download a file of a known commit and verify it."""
    with _explained(file), _bars(), writing(root or _cache()):
        log.info("%s (%s)", file.path, in_words(file.size or 0))
        path = _api().hf_hub_download(
            file.repo,
            file.path,
            repo_type=file.kind,
            revision=file.revision,
            local_dir=root,
            cache_dir=_cache(),
        )
    return _verified(file, Path(path))


def _verified(file: Published, path: Path) -> Fetched:
    """Verify a file's checksum and say so beside it; remove it if it is wrong."""
    expected = file.sha256
    if not expected and re.fullmatch(r"[0-9a-f]{64}", path.resolve().name):
        expected = (path.resolve().name,)  # the cache names a large file after its checksum
    with path.open("rb") as handle:
        found = hashlib.file_digest(handle, "sha256").hexdigest()
    if expected and found not in expected:
        _remove(path)
        raise FetchError(
            f"{path} has a wrong checksum: expected SHA-256 {' or '.join(expected)}, found "
            f"{found}; it was removed: fetch it again{_ways_out(file)}"
        )
    fetched = Fetched(path, file.revision, found, _bytes(path))
    _write_stamp(fetched)
    return fetched


def _stamp(path: Path) -> Path:
    real = path.resolve()
    return real.with_name(f".{real.name}.verified")


def _read_stamp(path: Path) -> Fetched | None:
    """Read what was verified, unless the file has changed since."""
    try:
        stamp = json.loads(_stamp(path).read_text())
        if (stamp["size"], stamp["mtime_ns"]) != (_bytes(path), path.stat().st_mtime_ns):
            return None
        return Fetched(path, str(stamp["commit"]), str(stamp["sha256"]), _bytes(path))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write_stamp(file: Fetched) -> None:
    stamp = {
        "commit": file.commit,
        "sha256": file.sha256,
        "size": file.size,
        "mtime_ns": file.path.stat().st_mtime_ns,
    }
    try:
        with atomic_path(_stamp(file.path)) as path:
            path.write_text(json.dumps(stamp))
    except OSError as error:  # a cache that others filled, for instance
        log.debug("%s: cannot be marked as verified (%s)", file.path, error)


def _remove(path: Path) -> None:
    """Remove a file, and what its links lead to."""
    while path.is_symlink():
        target = path.parent / path.readlink()
        path.unlink()
        path = target
    path.unlink(missing_ok=True)


def _api() -> "HfApi":
    from huggingface_hub import HfApi

    return HfApi(
        endpoint=os.environ.get("HF_ENDPOINT") or None,
        library_name="copcube",
        library_version=__version__,
    )


def _cache() -> Path:
    try:
        from huggingface_hub import constants
    except ImportError as error:
        raise MissingPackageError(
            "fetching needs huggingface_hub; pip install 'copcube[build]'"
        ) from error
    return Path(constants.HF_HUB_CACHE)


@contextmanager
def _bars() -> Iterator[None]:
    """Show the hub's own bars on a terminal where messages are shown, and nowhere else."""
    from huggingface_hub import constants
    from huggingface_hub.utils.tqdm import (
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )

    hide = (
        not (sys.stderr.isatty() and log.isEnabledFor(logging.INFO))
        and constants.HF_HUB_DISABLE_PROGRESS_BARS is None
        and not are_progress_bars_disabled()
    )
    if hide:
        disable_progress_bars()
    try:
        yield
    finally:
        if hide:
            enable_progress_bars()


@contextmanager
def _explained(file: Published) -> Iterator[None]:
    """Turn whatever goes wrong with the hub into an error that says what to do."""
    from huggingface_hub import constants
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        yield
    except CopcubeError:
        raise
    except Exception as error:
        cause = error.__cause__ if isinstance(error, LocalEntryNotFoundError) else error
        code = cause.response.status_code if isinstance(cause, HfHubHTTPError) else None
        if constants.HF_HUB_OFFLINE:
            reason = "not here, and HF_HUB_OFFLINE forbids to ask for it; unset it and try again"
        elif code == 404:
            reason = f"not there (404): no such repository, revision or file; see {file.page}"
        elif code in (401, 403):
            reason = (
                f"access denied ({code}): the repository is missing, private or gated; see "
                f"{file.page}, then log in with `hf auth login` or set HF_TOKEN"
            )
        elif code is not None:
            reason = f"the hub answered {code}; try again later"
        else:
            hub = os.environ.get("HF_ENDPOINT") or constants.ENDPOINT
            what = str(cause or error).strip().partition("\n")[0] or type(error).__name__
            reason = f"could not be fetched from {hub} ({what}); check the connection, try again"
        raise FetchError(f"{file}: {reason}{_ways_out(file)}") from error


def _ways_out(file: Published) -> str:
    if file.repo == CHECKPOINT.repo:
        return (
            "; or do without: `--weights PATH` takes a local copy, `--weights untrained:SEED` "
            "gives meaningless vectors to try things with"
        )
    return ""


def _demand_room(needed: int, folder: Path) -> None:
    """Refuse to begin what the disk cannot hold."""
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise StorageError(
            f"{folder} has {in_words(free)} free and {in_words(needed)} are needed; free some "
            f"space or choose another place"
        )


def _bytes(path: Path) -> int:
    return path.stat().st_size
