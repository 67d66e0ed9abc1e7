"""Download published files from the Hugging Face hub, once, and verify their checksums.

`huggingface_hub` downloads: it keeps the cache, resumes a connection that breaks, shows bars, and
knows ``HF_ENDPOINT``, ``HF_TOKEN`` and ``HF_HUB_OFFLINE``. It compares sizes, not contents. So this
module hashes what arrived, and a hidden mark beside the file records that its SHA-256 was right:
the file is not hashed or requested again. For weights known only by a branch, commit and SHA-256
are noted when they are first fetched; from then on no other file is accepted.
"""

import fnmatch
import hashlib
import json
import logging
import os
import re
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from copcube.arguments import one_path
from copcube.errors import CopcubeError, FetchError, MissingPackageError
from copcube.files.atomic import write_text, writing
from copcube.hub.published import (
    CHECKPOINT,
    ENCODERS,
    Published,
    published,
    sizes_and_licences,
)
from copcube.hub.unzip import demand_room, is_inside, unpack
from copcube.progress import size as in_words
from copcube.version import __version__

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile, RepoFolder

log = logging.getLogger("copcube")

_PATHS = 500
"""Paths requested from the hub at once."""

_TRIES = 5
"""How often a download with a broken connection is tried."""

_BROKEN = {"ChunkedEncodingError", "RemoteProtocolError"}
"""Errors of requests and of httpx when a connection breaks within a file."""


@dataclass(frozen=True)
class Fetched:
    """A published file that is on this machine and verified.

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


def fetch(
    what: str,
    folder: str | Path,
    which: str | Sequence[str] | None = None,
    encoder: str | None = None,
) -> tuple[Fetched, ...]:
    """Download a product: weights into the hub's cache, everything else into a folder.

    The archives of the example and of tasks are unpacked beside themselves.

    Parameters
    ----------
    what, which, encoder
        As in `published`.
    folder : str or Path
        Folder for everything except weights; published paths continue in it.

    Raises
    ------
    OptionError, FetchError, StorageError
        As `published`, `fetch_files` and `unpack`.
    """
    found = fetch_files(published(what, which, encoder), None if what == "weights" else folder)
    for file in found:
        if file.path.suffix == ".zip":
            log.info("unpacking %s", file.path)
            unpack(file.path)
    return found


def fetch_files(
    files: Sequence[Published], folder: str | Path | None = None
) -> tuple[Fetched, ...]:
    """Download published files unless they are here, and verify them.

    Parameters
    ----------
    files : sequence of Published
        Files to download.
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
    cache, root = _cache(), None if folder is None else Path(one_path(folder, "folder"))
    files = [_pinned(file) for file in files] if root is None else files
    known = {file: _known(file, root) for file in files}
    unknown = [file for file, found in known.items() if found is None]
    listed = _listed(unknown) if unknown else {}
    # A pattern, or a branch, becomes files of a commit, some of which may be there already.
    known |= {one: _known(one, root) for several in listed.values() for one in several}
    wanted = [one for several in listed.values() for one in several if known[one] is None]
    if wanted:
        for line in sizes_and_licences(wanted).splitlines():
            log.info("fetching %s", line)
    demand_room(sum(one.size or 0 for one in wanted), root or cache)
    brought: list[Fetched] = []
    for file in files:
        several = [known[one] or _bring(one, root) for one in listed.get(file, [file])]
        if root is None and _is_open(file):
            _pin(file, several[0])
        brought += several
    return tuple(brought)


def cached(file: Published) -> Path | None:
    """Return where the hub's cache holds a file, None if it does not; the hub is not asked."""
    cache = _cache()
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(
        file.repo, file.path, cache_dir=cache, revision=file.revision, repo_type=file.kind
    )
    return Path(found) if isinstance(found, str) else None


def _is_open(file: Published) -> bool:
    """Whether neither commit nor checksum says which bytes of a branch are meant."""
    by_hash = file.sha256 or file.md5 or re.fullmatch(r"[0-9a-f]{40}", file.revision)
    return not by_hash and "*" not in file.path


def _pin_path(file: Published) -> Path:
    """Where the cache notes what was first taken of a branch."""
    folder = f"{file.kind}s--{file.repo}".replace("/", "--")
    return _cache() / folder / f".{file.path.replace('/', '--')}.pinned"


def _pinned(file: Published) -> Published:
    """Complete a file of a branch by what was first taken of it, if anything was."""
    if not _is_open(file):
        return file
    try:
        pin = json.loads(_pin_path(file).read_text())
        return replace(file, revision=str(pin["commit"]), sha256=(str(pin["sha256"]),))
    except (OSError, ValueError, KeyError, TypeError):
        return file


def _pin(file: Published, found: Fetched) -> None:
    """Note commit and checksum of what was taken of a branch: later, only that is right."""
    pin = _pin_path(file)
    try:
        write_text(pin, json.dumps({"commit": found.commit, "sha256": found.sha256}))
        noted = f"noted in {pin}: from now on only this file is accepted"
    except OSError as error:  # for instance a cache that belongs to another user
        noted = f"which cannot be noted ({error}): compare them the next time"
    log.warning(
        "%s/%s: its checksum is not known here; the branch %s is commit %s with SHA-256 %s, %s",
        *(file.repo, file.path, file.revision, found.commit, found.sha256, noted),
    )


def _of_pin(file: Published) -> str:
    """Say how to accept a file other than the first of a branch; empty if none was noted."""
    pin = _pin_path(file)
    return f"; to take what is published now instead, remove {pin}" if pin.is_file() else ""


def _known(file: Published, root: Path | None) -> Fetched | None:
    """Find a file that is on this machine; one in the cache is hashed if it has no mark."""
    if "*" in file.path:
        return None
    path = cached(file) if root is None else root / file.path
    if path is None or not path.is_file():
        return None
    mark = _read_mark(path)
    # Of a file whose checksum is not known, the commit alone says whether it is the same. In the
    # cache a branch's name leads to what was brought of it.
    same = mark is not None and (root is None or mark.commit == file.revision)
    if mark and (mark.sha256 in file.sha256 if file.sha256 else same):
        return mark
    # In a folder of the user's, a file without a mark may be anything, or half a download.
    if root is not None:
        return None
    # The cache has a folder for each commit, so that the path says what a branch led to.
    return _verified(replace(file, revision=path.parents[file.path.count("/")].name), path)


def _listed(files: Iterable[Published]) -> dict[Published, list[Published]]:
    """Ask the hub for files and patterns: their paths, commits, sizes and checksums."""
    from huggingface_hub.hf_api import RepoFile

    repos: dict[tuple[str, str], list[Published]] = {}
    for file in files:
        repos.setdefault((file.repo, file.revision), []).append(file)
    listed: dict[Published, list[Published]] = {}
    for wanted in repos.values():
        with _explained(wanted[0]):
            commit = _commit(wanted[0])
            entries = _entries(wanted[0], commit, [file.path for file in wanted])
            found = {entry.path: entry for entry in entries if isinstance(entry, RepoFile)}
        for file in wanted:
            paths = [path for path in sorted(found) if fnmatch.fnmatchcase(path, file.path)]
            # Paths come from the hub, and one such as ../x would be written outside of the folder.
            if not paths or not all(map(is_inside, paths)):
                raise FetchError(
                    f"{file.repo} has no file {file.path} at revision {commit}; see {file.page} "
                    f"for its files{_ways_out(file)}"
                )
            listed[file] = [_resolved(file, commit, found[path]) for path in paths]
    return listed


def _entries(file: Published, commit: str, paths: list[str]) -> Iterator["RepoFile | RepoFolder"]:
    """Ask for paths and patterns of the repository that a file is in."""
    exact = [path for path in paths if "*" not in path]
    for begin in range(0, len(exact), _PATHS):
        some = exact[begin : begin + _PATHS]
        yield from _api().get_paths_info(file.repo, some, revision=commit, repo_type=file.kind)
    # Patterns of one folder share its listing.
    for folder in {path.split("*")[0].rpartition("/")[0] for path in paths if "*" in path}:
        yield from _api().list_repo_tree(
            file.repo, folder, recursive=True, revision=commit, repo_type=file.kind
        )


def _commit(file: Published) -> str:
    """Return the commit that a revision means."""
    if re.fullmatch(r"[0-9a-f]{40}", file.revision):
        return file.revision
    info = _api().repo_info(file.repo, repo_type=file.kind, revision=file.revision)
    if info.sha is None:
        raise FetchError(
            f"{file}: the hub does not return a commit for {file.revision}; try again later"
        )
    log.info("%s: %s is commit %s", file.repo, file.revision, info.sha)
    return info.sha


def _resolved(file: Published, commit: str, entry: "RepoFile") -> Published:
    """Complete a file as the hub describes it; known checksums must agree with the hub's."""
    declared = (entry.lfs.sha256,) if entry.lfs else ()
    if file.sha256 and declared and declared[0] not in file.sha256:
        raise FetchError(
            f"{file}: the hub now has a different file: expected SHA-256 "
            f"{' or '.join(file.sha256)}, found {declared[0]}; if you trust it, download it by "
            f"hand from {file.page} and give its path{_of_pin(file)}"
        )
    sha256 = file.sha256 or declared
    return replace(file, revision=commit, path=entry.path, size=entry.size, sha256=sha256)


def _bring(file: Published, root: Path | None) -> Fetched:
    """Download a file of a known commit and verify it."""
    with _explained(file), writing(root or _cache()):
        log.info("%s (%s)", file.path, in_words(file.size or 0))
        path = _downloaded(file, root)
    return _verified(file, path)


def _downloaded(file: Published, root: Path | None) -> Path:
    """Download a file; if the connection breaks, it continues from there."""
    tries = 0
    while True:
        try:
            path = _api().hf_hub_download(
                file.repo,
                file.path,
                repo_type=file.kind,
                revision=file.revision,
                local_dir=root,
                cache_dir=_cache(),
            )
            return Path(path)
        except Exception as error:
            # Before 1.20 huggingface_hub keeps what came but does not ask again itself. By name,
            # since either of the two packages may be missing.
            tries += 1
            if tries == _TRIES or type(error).__name__ not in _BROKEN:
                raise
            log.warning("%s: the connection broke (%s); trying again", file.path, error)
            time.sleep(1)


def _verified(file: Published, path: Path) -> Fetched:
    """Hash a file and mark it as verified; remove it if its checksum is wrong."""
    expected = file.sha256
    if not expected and re.fullmatch(r"[0-9a-f]{64}", path.resolve().name):
        expected = (path.resolve().name,)  # the cache names a large file after its checksum
    found = _digest(path, "sha256")
    checks = [("SHA-256", expected, found)] if expected else []
    # A checksum from elsewhere: the hub's own says nothing of a hub that holds another file.
    if file.md5:
        checks.append(("MD5", (file.md5,), _digest(path, "md5")))
    for kind, right, digest in checks:
        if digest not in right:
            _remove(path)
            raise FetchError(
                f"{path} has a wrong checksum: expected {kind} {' or '.join(right)}, found "
                f"{digest}; it was removed: fetch it again{_ways_out(file)}"
            )
    fetched = Fetched(path, file.revision, found, path.stat().st_size)
    _write_mark(fetched)
    return fetched


def _digest(path: Path, kind: str) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, kind).hexdigest()


def _remove(path: Path) -> None:
    """Remove a file and what its links lead to, else the hub would take it for fetched."""
    while path.is_symlink():
        target = path.parent / path.readlink()
        path.unlink()
        path = target
    path.unlink(missing_ok=True)


def _mark(path: Path) -> Path:
    real = path.resolve()
    return real.with_name(f".{real.name}.verified")


def _read_mark(path: Path) -> Fetched | None:
    """Read what was verified; None if the file has changed since, or the mark is broken."""
    try:
        mark = json.loads(_mark(path).read_text())
        now = path.stat()
        if (mark["size"], mark["mtime_ns"]) != (now.st_size, now.st_mtime_ns):
            return None
        return Fetched(path, str(mark["commit"]), str(mark["sha256"]), now.st_size)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write_mark(file: Fetched) -> None:
    mark = {
        "commit": file.commit,
        "sha256": file.sha256,
        "size": file.size,
        "mtime_ns": file.path.stat().st_mtime_ns,
    }
    try:
        write_text(_mark(file.path), json.dumps(mark))
    except OSError as error:  # for instance a cache that belongs to another user
        log.debug("%s: cannot be marked as verified (%s)", file.path, error)


def _api() -> "HfApi":
    from huggingface_hub import HfApi

    return HfApi(
        # huggingface_hub reads the variable only once, when it is imported.
        endpoint=os.environ.get("HF_ENDPOINT") or None,
        library_name="copcube",
        library_version=__version__,
    )


def _cache() -> Path:
    """Return the folder of the hub's cache."""
    try:
        from huggingface_hub import constants
    except ImportError as error:
        raise MissingPackageError(
            "fetching needs huggingface_hub; pip install 'copcube[build]'"
        ) from error
    return Path(constants.HF_HUB_CACHE)


@contextmanager
def _explained(file: Published) -> Iterator[None]:
    """Turn any error of the hub into one that says what to do."""
    from huggingface_hub import constants
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        yield
    except CopcubeError:
        raise
    except Exception as error:
        # The hub's client hides the answer it got behind "not in the cache either".
        cause = error.__cause__ if isinstance(error, LocalEntryNotFoundError) else error
        code = cause.response.status_code if isinstance(cause, HfHubHTTPError) else None
        if constants.HF_HUB_OFFLINE:
            reason = "not here, and HF_HUB_OFFLINE forbids downloading it; unset it and try again"
        elif code == 404:
            reason = f"not found (404): no such repository, revision or file; see {file.page}"
            reason += _of_pin(file)
        elif code in (401, 403):
            reason = (
                f"access denied ({code}): the repository is missing, private or gated; see "
                f"{file.page}, then log in with `hf auth login` or set HF_TOKEN"
            )
        elif code is not None:
            reason = f"the hub answered {code}; try again later"
        elif isinstance(cause, OSError) and cause.filename is not None:
            # Such as the token, which lies beside the cache.
            reason = (
                f"could not be fetched ({cause}); check that file, or set HF_HOME to another folder"
            )
        else:
            hub = os.environ.get("HF_ENDPOINT") or constants.ENDPOINT
            what = str(cause or error).strip().partition("\n")[0] or type(error).__name__
            reason = f"could not be fetched from {hub} ({what}); check the connection and try again"
        raise FetchError(f"{file}: {reason}{_ways_out(file)}") from error


def _ways_out(file: Published) -> str:
    """Describe alternatives to the published weights; empty for other files."""
    if file.repo not in {CHECKPOINT.repo, *(weights.repo for weights in ENCODERS.values())}:
        return ""
    return (
        "; alternatively, `--weights PATH` uses a local copy, and `--weights untrained:SEED` gives "
        "meaningless vectors for trials"
    )
