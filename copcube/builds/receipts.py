"""Receipts of the tasks of a build, from which it continues where it stopped.

A task counts as done when its receipt names the work it belongs to and its files have the recorded
sizes and stamps (time of the last change and inode, or the entity tag of an object). The recorded
checksums are computed from the bytes as they are written; they are compared if a stamp differs, and
by `copcube validate`. A receipt is written last, after its files are durable, so killing a build at
any moment loses only what had no receipt.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from copcube import progress
from copcube.files.folders import Folder
from copcube.files.states import FileState, Written

Receipt = dict[str, Any]


class Receipts:
    """The receipts in the folder of a build, ``receipts/STAGE/NAME.json`` each.

    Parameters
    ----------
    files : Folder
        The folder of the build.
    """

    def __init__(self, files: Folder) -> None:
        self._files = files

    def names(self, stage: str) -> set[str]:
        """Names of the units of a stage that have a receipt, whatever its content."""
        return {Path(file).stem for file in self._files.names(f"receipts/{stage}/")}

    def read(self, stage: str, name: str) -> Receipt:
        """Receipt of a unit as it is, without checking its files."""
        receipt: Receipt = json.loads(self._files.read(_path(stage, name)))
        return receipt

    def readable(self, stage: str) -> Iterator[tuple[str, Receipt]]:
        """Names and receipts of a stage, of any work, except damaged ones."""
        for name in sorted(self.names(stage)):
            if (receipt := self._claim(stage, name)) is not None:
                yield name, receipt

    def is_done(self, work: str, stage: str, name: str) -> bool:
        """Whether a unit is done; see `done`."""
        receipt = self._claim(stage, name, work)
        if receipt is None:
            return False
        states = self._files.states(receipt["files"])
        return self._stamps(receipt, states, hashes=False) is not None

    def done(
        self,
        work: str,
        stage: str,
        names: Iterable[str],
        *,
        hashes: bool = False,
        renew: bool = False,
    ) -> dict[str, Receipt]:
        """Receipts of the units that are done, by name, in the order of the names.

        A unit is done if its receipt belongs to this work and its files are unchanged. A file whose
        size and stamp match the receipt is not opened. If only the stamp differs, as in a copy of
        the folder or with a receipt of an earlier copcube that has no stamps, the SHA-256 of the
        file decides.

        Parameters
        ----------
        work : str
            Hash of everything that decides the bytes of the files.
        stage : str
            Stage of the units.
        names : iterable of str
            The units.
        hashes : bool
            Whether to read all files and compare their SHA-256, whatever their stamps are.
        renew : bool
            Whether to note new stamps in the receipts, so that the next run need not read
            the same files again.
        """
        # One listing shows which receipts exist; in a store, checking each would be a request.
        known = self.names(stage)
        wanted = [name for name in names if name in known]
        if not wanted:
            return {}
        found = {}
        with (
            progress.show("checking", len(wanted), "receipts") as bar,
            ThreadPoolExecutor() as pool,
        ):
            read = pool.map(lambda name: (name, self._claim(stage, name, work)), wanted)
            claims = {name: receipt for name, receipt in read if receipt is not None}
            bar.advance(len(wanted) - len(claims))
            states = self._files.states(file for r in claims.values() for file in r["files"])
            checks = pool.map(lambda r: self._stamps(r, states, hashes), claims.values())
            for (name, receipt), stamps in zip(claims.items(), checks, strict=True):
                bar.advance()
                if stamps is None:
                    continue
                if renew and stamps != receipt.get("stamps", {}):
                    receipt["stamps"] = stamps
                    self._files.write(_path(stage, name), to_json(receipt))
                found[name] = receipt
        return found

    def write(
        self,
        work: str,
        stage: str,
        name: str,
        files: Mapping[str, Written],
        facts: Mapping[str, Any],
    ) -> Receipt:
        """Write the receipt of a unit whose files are durable, and return it.

        Parameters
        ----------
        work : str
            Hash of everything that decides the bytes of the files.
        stage, name : str
            Which unit.
        files : mapping of str to Written
            Its files, by their names in the folder of the build.
        facts : mapping
            What else to record about it.
        """
        receipt = {
            "work": work,
            "files": {file: [written.size, written.sha256] for file, written in files.items()},
            # Kept apart from the checksums, which identify the rows: a copy has other stamps.
            "stamps": {file: written.stamp for file, written in files.items()},
            **facts,
        }
        self._files.write(_path(stage, name), to_json(receipt))
        return receipt

    def _claim(self, stage: str, name: str, work: str | None = None) -> Receipt | None:
        """Receipt of a unit if readable and of this work; its files are not checked."""
        try:
            receipt = self.read(stage, name)
            known = _is_receipt(receipt, stage) and (work is None or receipt["work"] == work)
            return receipt if known else None
        except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError):
            return None

    def _stamps(
        self, receipt: Receipt, states: Mapping[str, FileState], hashes: bool
    ) -> dict[str, str | None] | None:
        """Current stamps of a receipt's files; None if a file has changed."""
        stamps: dict[str, str | None] = {}
        known = receipt.get("stamps", {})
        for file, expected in receipt["files"].items():
            state = states.get(file)
            if state is None or state.size != expected[0]:
                return None
            stamps[file] = state.stamp
            unchanged = state.stamp is not None and state.stamp == known.get(file)
            if (hashes or not unchanged) and not self._has_checksum(file, expected):
                return None
        return stamps

    def _has_checksum(self, file: str, expected: list[int | str]) -> bool:
        try:
            data = self._files.read(file)
        except FileNotFoundError:  # removed since its state was read
            return False
        return [len(data), hashlib.sha256(data).hexdigest()] == expected


def _path(stage: str, name: str) -> str:
    return f"receipts/{stage}/{name}.json"


def _is_receipt(receipt: Any, stage: str) -> bool:
    """Whether something read from a file has the form of a receipt of a stage.

    Raises
    ------
    AttributeError, KeyError, TypeError
        Possibly, if it does not.
    """
    if not all(len(known) == 2 for known in receipt["files"].values()):
        return False
    if not isinstance(receipt.get("stamps", {}), dict):
        return False
    if stage != "embed":
        return True
    rejected, strange = receipt["rejected"], receipt.get("strange", {}).values()
    figures = [*receipt["images"].values(), *(item["images"] for item in rejected)]
    figures += [receipt["rescaled"], *(number for number, _ in strange)]
    whole = all(type(figure) is int for figure in figures)
    named = ("file", "member", "kind", "reason")
    texts = [*(item[key] for item in rejected for key in named), *(text for _, text in strange)]
    are_texts = all(isinstance(text, str) for text in texts)
    times = [*receipt["seconds"].values(), receipt.get("finished", 0.0)]
    numbers = all(isinstance(time, int | float) for time in times)
    timed = "embedding" in receipt["seconds"] or receipt["quarantined"] is not None
    return whole and are_texts and numbers and timed


def to_json(value: Any) -> bytes:
    """Bytes of a value as JSON with sorted keys."""
    return json.dumps(value, sort_keys=True).encode()
