"""Samples of a WebDataset shard: the members of one cell each.

A sample is the tensors ``<cell id>.<modality>.pth`` that lie together, and ``<cell id>.json``,
which names the images in them.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from copcube import grid
from copcube.errors import ImageError
from copcube.files import limits
from copcube.files.contents import HEAD, other_than
from copcube.files.limits import demand, load_json
from copcube.images.archives import Archive
from copcube.images.tar import Member, members


@dataclass
class Sample:
    """Adjacent members with one key, by the part of their names after the key."""

    key: str
    parts: dict[str, Member] = field(default_factory=dict)


def samples(archive: Archive, known: Iterable[str]) -> Iterator[Sample | ImageError]:
    """Yield the samples of a shard in order, and its error, if it has one, last.

    A sample ends where the key changes or a part is repeated. In a shard packed in another order,
    such as all tensors of a modality together, tensors are apart from the JSON that names them:
    they are joined with it when the whole shard is known, and come last.
    """
    apart: dict[str, list[Sample]] = {}
    listings: dict[str, list[Member]] = {}
    failed: ImageError | None = None
    try:
        for sample in _runs(archive, known):
            if "json" in sample.parts:
                listings.setdefault(sample.key, []).append(sample.parts["json"])
            if "json" in sample.parts and len(sample.parts) > 1:
                yield sample
            else:
                apart.setdefault(sample.key, []).append(sample)
    except ImageError as error:
        failed = error
    for key, pieces in apart.items():
        yield from _joined(key, pieces, listings.get(key, []))
    if failed is not None:
        yield failed


def _runs(archive: Archive, known: Iterable[str]) -> Iterator[Sample]:
    """Yield adjacent members with one key; an error of the archive comes after them."""
    parts = {"json", *(f"{key}.pth" for key in known)}
    sample = Sample("")
    try:
        for member in members(archive):
            key, _, part = member.name.rpartition("/")[2].partition(".")
            if part not in parts:
                continue
            if key != sample.key or part in sample.parts:
                yield sample
                sample = Sample(key)
            sample.parts[part] = member
    except ImageError:
        yield sample
        raise
    yield sample


def _joined(key: str, pieces: list[Sample], listings: list[Member]) -> Iterator[Sample]:
    """Join separate pieces of one key, each tensor with the JSON of that key.

    If several JSONs have that key, it is unknown whose tensors these are: they get none.
    """
    sample = Sample(key)
    for piece in pieces:
        parts = {part: member for part, member in piece.parts.items() if part != "json"}
        if not parts.keys().isdisjoint(sample.parts):
            yield _named(sample, listings)
            sample = Sample(key)
        sample.parts |= parts
    yield _named(sample, listings)


def _named(sample: Sample, listings: list[Member]) -> Sample:
    if len(listings) == 1 or (listings and not sample.parts):
        sample.parts["json"] = listings[0]
    return sample


def require_cell(key: str) -> None:
    """Refuse a sample whose key is not a cell id.

    Raises
    ------
    ImageError, GridError
        If it is not the id of a cell.
    """
    if not re.fullmatch(r"\d{7}", key, re.ASCII):
        raise ImageError(f"the key {key!r} is not a cell id; expected seven digits")
    grid.row_col(int(key))


def image_names(archive: Archive, sample: Sample) -> dict[str, Any]:
    """Read a sample's JSON.

    Raises
    ------
    ImageError
        If it is absent or not a JSON object.
    """
    member = sample.parts.get("json")
    if member is None:
        raise ImageError(
            f"found no {sample.key}.json, which names its images; the members of a cell must be "
            "adjacent in a shard, or its JSON must occur once"
        )
    demand(limits.CELL, member.size, member.name, ImageError)
    data = member.read(archive, 0, member.size)
    if (other := other_than(("json",), data[:HEAD])) is not None:
        raise ImageError(f"{member.name}: expected JSON, found {other}")
    names = load_json(data, limits.PIECE, member.name, ImageError)
    if not isinstance(names, dict):
        raise ImageError(f"{member.name}: expected a JSON object, found a {type(names).__name__}")
    return names
