"""Images from WebDataset shards of Copernicus-Pretrain.

A shard is a tar of samples, one per cell: ``<cell id>.<modality>.pth``, tensors, and ``<cell
id>.json``, which names every image in them, ``<cell>/<local patch>/<date>`` nested as the tensor
is. The names identify the images, and are checked before a tensor is read: the script that wrote
the shards pads dates by repeating some, and if a cell lacks a modality, it repeats the tensor and
the names of the previous cell. If that modality is the elevation model, even the key is the
previous cell's.
"""

import glob
import hashlib
import itertools
import math
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from copcube.errors import CopcubeError, ImageError, SourceError, few
from copcube.files import limits
from copcube.files.limits import demand
from copcube.files.objects import is_remote, listing, sizes
from copcube.files.regular import matches, require_file
from copcube.images.archives import Archive, open_archive
from copcube.images.base import Image, Job, Partition, Rejected
from copcube.images.naming import Identity, Index, from_names, to_stored
from copcube.images.shard import Sample, image_names, require_cell, samples
from copcube.images.tar import Member
from copcube.images.torchfile import locate_tensor
from copcube.modalities import Modality, kinds
from copcube.selection import Selection

_MAX_PATTERN = 100_000
_SPAN = re.compile(r"(\d{1,9})\.\.(\d{1,9})", re.ASCII)
_BRACES = re.compile(r"\{(\d{1,9}\.\.\d{1,9}|[^{}]*,[^{}]*)\}", re.ASCII)
_READ_WHOLE = 1 << 20
"""Bytes up to which a tensor is read at once."""
_COMPRESSED = (".tar.gz", ".tgz", ".tar.zst", ".tar.bz2", ".tar.xz")


def recognise(path: str, sensors: tuple[Modality, ...] = ()) -> "WebDatasetSource | None":
    """Open shards; return None if the path names none.

    Parameters
    ----------
    path : str
        A shard ``*.tar``, a folder of shards, a glob, or a brace pattern such as
        ``example-{000000..000009}.tar``, each part a range or a list with commas; or the
        address of a shard or of a folder of shards, or a brace pattern of addresses.
    sensors : tuple of Modality
        Users' own sensors, whose tensors may be in the shards.

    Raises
    ------
    SourceError
        If shards of a pattern are missing, or the shards are compressed, or there are none
        at an address.
    StorageError
        If an object store cannot be reached or denies access.
    """
    if is_remote(path):
        return replace(_at_address(path), sensors=sensors)
    whole = os.path.abspath(path)
    if os.path.isdir(whole):
        inside = matches(os.path.join(glob.escape(whole), "*"))
        # Without shards, a folder of folders is a GeoTIFF tree.
        shards = sorted(name for name in inside if name.lower().endswith(".tar"))
        found = shards or ([] if any(map(os.path.isdir, inside)) else inside)
    elif os.path.exists(whole):
        found = [whole]
    else:
        names = _expand(whole)
        by_name = {name: matches(name) for name in names}
        missing = [name for name, match in by_name.items() if not match]
        # A single name that matches nothing may still be another kind of source.
        if missing and len(names) > 1 and whole.endswith(".tar"):
            raise _lacking(path, names, missing)
        found = sorted(set(itertools.chain.from_iterable(by_name.values())))
    _refuse_compressed(found)
    tars = [name for name in found if name.lower().endswith(".tar") and not os.path.isdir(name)]
    for name in tars:
        require_file(name, SourceError)
    shards = sorted(filter(os.path.isfile, tars), key=_by_name)
    if not shards:
        return None
    # Paths below a common folder, so that the plan is the same wherever the shards are mounted.
    root = os.path.commonpath([os.path.dirname(shard) for shard in shards])
    relative = (os.path.relpath(shard, root) for shard in shards)
    sized = tuple((name, os.path.getsize(os.path.join(root, name))) for name in relative)
    return WebDatasetSource(root, sized, sensors)


def _at_address(url: str) -> "WebDatasetSource":
    """Open shards in an object store or on a web server."""
    _refuse_compressed([url])
    names = sorted(set(_expand(url)), key=_by_name)
    if url.lower().endswith(".tar"):
        found = dict(zip(names, sizes(names), strict=True))
        missing = [name for name, size in found.items() if size is None]
        if missing and len(names) > 1:
            raise _lacking(url, names, missing)
    elif url.startswith("http"):
        raise SourceError(
            f"{url}: web servers do not list folders; name the shards, as in "
            "https://host/shards/example-{000000..000009}.tar"
        )
    else:
        folder = url.rstrip("/")
        found = {f"{folder}/{e.name}": e.size for e in listing(folder, deep=False)}
        _refuse_compressed(found)
    shards = [
        (n, size) for n, size in found.items() if n.lower().endswith(".tar") and size is not None
    ]
    if not shards:
        raise SourceError(
            f"{url}: expected WebDataset shards there ('*.tar'), found none; a GeoTIFF tree "
            "cannot be read from an object store, so copy or mount it"
        )
    root = shards[0][0].rpartition("/")[0]
    while not all(name.startswith(f"{root}/") for name, _ in shards):
        root = root.rpartition("/")[0]
    if "://" not in root:
        raise SourceError(f"{url}: shards in several buckets or hosts; build from one at a time")
    return WebDatasetSource(root, tuple((n.removeprefix(f"{root}/"), size) for n, size in shards))


def _by_name(path: str) -> tuple[str, str]:
    """Sort key of shards: their names, which number them, then their folders."""
    return path.rpartition("/")[2], path


def _lacking(path: str, names: list[str], missing: list[str]) -> SourceError:
    return SourceError(
        f"{path}: of {len(names)} shards {len(missing)} are missing: "
        f"{few([os.path.basename(name) for name in missing], 3)}"
    )


def _refuse_compressed(names: Iterable[str]) -> None:
    packed = min((name for name in names if name.endswith(_COMPRESSED)), default=None)
    if packed is not None:
        raise SourceError(
            f"{packed}: compressed; shards are read in place and GeoTIFF files from a folder, "
            "so decompress it first (and unpack it, if it holds GeoTIFF files)"
        )


def _expand(pattern: str) -> list[str]:
    """Expand a pattern with ``{a..b}`` and ``{x,y}`` to all texts, in order.

    As in a shell, braces around anything else are literal.
    """
    parts: list[list[str]] = []
    count = 1
    # Texts, each except the last followed by the content of its braces.
    for i, text in enumerate(_BRACES.split(pattern)):
        choices = text.split(",") if i % 2 else [text]
        if i % 2 and (span := _SPAN.fullmatch(text)):
            # A pattern of a few bytes could name 10⁹ files.
            numbers = range(int(span[1]), int(span[2]) + 1)
            width = len(span[1]) if span[1].startswith("0") else 0
            choices = [f"{n:0{width}d}" for n in numbers[: _MAX_PATTERN + 1]]
        count *= len(choices)
        if not 0 < count <= _MAX_PATTERN:
            raise SourceError(
                f"{pattern}: expected a pattern of 1 to {_MAX_PATTERN} files, found none or "
                f"more than {_MAX_PATTERN}"
            )
        parts.append(choices)
    return ["".join(choice) for choice in itertools.product(*parts)]


@dataclass(frozen=True)
class _Tensor:
    """A member to read, and the images to take from it, each with its index in the tensor."""

    member: Member
    modality: Modality
    lead: Index
    images: tuple[tuple[Identity, Index], ...]

    @property
    def cell(self) -> int:
        """Cell of all its images, of which there is at least one."""
        return self.images[0][0].grid_id


@dataclass(frozen=True)
class WebDatasetSource:
    """Shards of samples.

    Parameters
    ----------
    root : str
        Folder, or address of one, that holds all shards.
    shards : tuple of (str, int)
        Path in it and size in bytes of every shard.
    sensors : tuple of Modality
        Users' own sensors, whose tensors are named after their keys: ``0772176.KEY.pth``.
    """

    root: str
    shards: tuple[tuple[str, int], ...]
    sensors: tuple[Modality, ...] = ()

    @property
    def layout(self) -> Literal["webdataset"]:
        """Published layout of the files."""
        return "webdataset"

    @property
    def reader(self) -> "WebDatasetSource":
        """A source that reads the same partitions but lists none, a few bytes when pickled."""
        return replace(self, shards=())

    def partitions(self) -> list[Partition]:
        """List the shards, one per partition, by name wherever they are."""
        paths = [path for path, _ in self.shards]
        names = [path.removesuffix(".tar").replace("/", "-") for path in paths]
        if len(set(names)) < len(names):  # as for a/b.tar and a-b.tar
            names = [f"{number:06d}-{name}" for number, name in enumerate(names)]
        return [Partition(name, (path,)) for name, path in zip(names, paths, strict=True)]

    def fingerprint(self) -> str:
        """SHA-256 over the names and sizes of the shards."""
        lines = (f"{path}\0{size}\n".encode() for path, size in self.shards)
        return hashlib.sha256(b"".join(lines)).hexdigest()

    def count(self, partition: Partition, selection: Selection) -> Counter[str]:
        """Count the selected images of a partition by modality, without reading a tensor."""
        counts: Counter[str] = Counter()
        for path in partition.paths:
            archive = open_archive(self._at(path), whole=False)
            for item in _chosen(archive, path, selection, kinds(self.sensors)):
                if isinstance(item, _Tensor):
                    counts[item.modality.key] += len(item.images)
        return counts

    def jobs(self, partition: Partition, selection: Selection) -> Iterator[Job | Rejected]:
        """Reading jobs, one per member, sample by sample in the shard's order.

        Within a sample they are ordered by modality. What is rejected by name alone comes between
        them, as `Rejected`.
        """
        for path in partition.paths:
            archive = open_archive(self._at(path), whole=True)
            for item in _chosen(archive, path, selection, kinds(self.sensors)):
                yield item if isinstance(item, Rejected) else partial(_read, archive, path, item)

    def _at(self, path: str) -> str:
        return f"{self.root}/{path}"


def _chosen(
    archive: Archive, path: str, selection: Selection, known: Mapping[str, Modality]
) -> Iterator[_Tensor | Rejected]:
    """Yield the tensors of a shard in order, each image only once, and what is rejected.

    A tensor is stale if it has no new image and names a cell other than those that do.
    """
    seen: set[Identity] = set()
    nothing = True
    for sample in samples(archive, known):
        if isinstance(sample, ImageError):
            yield Rejected(path, "", "broken", str(sample))
            nothing = False
            continue
        nothing = nothing and not sample.parts
        tensors: list[_Tensor] = []
        for item in _tensors(archive, path, sample, selection, known):
            if isinstance(item, Rejected):
                yield item
            else:
                tensors.append(item)
        if not tensors:
            continue
        new = [_once(tensor, seen) for tensor in tensors]
        # The cell of the new images decides, since the key may be the previous sample's.
        own = {tensor.cell for tensor in new if tensor.images} or {int(sample.key)}
        for tensor, rest in zip(tensors, new, strict=True):
            again = len(tensor.images) - len(rest.images)
            if tensor.cell not in own:
                reason = f"its images are those of cell {tensor.cell:07d}, which come before it"
                yield Rejected(path, tensor.member.name, "stale", reason, again)
            elif again:
                reason = f"{again} of {len(tensor.images)} images repeat earlier ones of this shard"
                yield Rejected(path, tensor.member.name, "duplicate", reason, again)
            if rest.images:
                yield rest
    if nothing:
        reason = "found no sample; expected members such as 0772176.s2_toa.pth, 0772176.json"
        yield Rejected(path, "", "broken", reason)


def _tensors(
    archive: Archive,
    path: str,
    sample: Sample,
    selection: Selection,
    known: Mapping[str, Modality],
) -> Iterator[_Tensor | Rejected]:
    """Yield the selected members of a sample with their images, named by its JSON."""
    wanted = [key for key in selection.modalities if f"{key}.pth" in sample.parts]
    if not wanted:
        return
    try:
        require_cell(sample.key)
        # Without its names no tensor of the sample can be located, so all of them are left out.
        names = image_names(archive, sample)
    except CopcubeError as error:
        for key in wanted:
            yield Rejected(path, sample.parts[f"{key}.pth"].name, "broken", str(error))
        return
    for key in wanted:
        member, modality = sample.parts[f"{key}.pth"], known[key]
        try:
            lead, images = from_names(names.get(key), modality)
            cells = sorted({f"{image.grid_id:07d}" for image, _ in images})
            if len(cells) > 1:
                raise ImageError(f"{key}: expected names of one cell, found {', '.join(cells)}")
        except CopcubeError as error:
            yield Rejected(path, member.name, "broken", f"{sample.key}.json: {error}")
            continue
        images = [item for item in images if selection.admits(item[0].date)]
        if images:
            yield _Tensor(member, modality, lead, tuple(images))


def _read(archive: Archive, path: str, tensor: _Tensor) -> list[Image | Rejected]:
    """Decode one member; runs on any thread."""
    name = tensor.member.name
    try:
        demand(limits.PIECE, tensor.member.size, "the tensor", ImageError)
        pixels = _pixels(archive, tensor)
    except ImageError as error:
        return [Rejected(path, name, "broken", str(error), len(tensor.images))]
    return [
        image.image(found, tensor.modality, path, name)
        for (image, _), found in zip(tensor.images, pixels, strict=True)
    ]


def _once(tensor: _Tensor, seen: set[Identity]) -> _Tensor:
    """Keep the images not seen before, in fixed order."""
    first: dict[Identity, Index] = {}
    for image, index in tensor.images:
        if image not in seen:
            seen.add(image)
            first[image] = index
    images = tuple(sorted(first.items(), key=lambda item: item[0].order))
    return _Tensor(tensor.member, tensor.modality, tensor.lead, images)


def _pixels(archive: Archive, tensor: _Tensor) -> list[NDArray[Any]]:
    """Pixels (bands, S, S) of the images of a member, in the stored dtype.

    Raises
    ------
    ImageError
        If it holds no tensor, or its shape or data type does not match the modality and its names.
    """
    member, modality = tensor.member, tensor.modality
    shape = tensor.lead + modality.shape
    shapes = [shape] if modality.dates > 1 else [shape[1:], shape]
    whole = member.read(archive, 0, member.size) if archive.streamed else None

    def read(start: int, length: int) -> bytes:
        if whole is None:
            return member.read(archive, start, length)
        return whole[start : start + length]

    stored = locate_tensor(read, member.size, shapes)
    size = math.prod(modality.shape) * stored.itemsize
    numbers = [int(np.ravel_multi_index(i, tensor.lead)) if i else 0 for _, i in tensor.images]
    if math.prod(tensor.lead) * size <= _READ_WHOLE:
        everything = stored.decode(read(stored.start, math.prod(tensor.lead) * size))
        stack = everything.reshape(-1, *modality.shape)
        images = [stack[number] for number in numbers]
    else:
        # Repeated and unselected images are not read. One buffer per image is also smaller than one
        # for all, so the allocator reuses it instead of requesting pages from the system.
        starts = [stored.start + number * size for number in numbers]
        images = [stored.decode(read(at, size)).reshape(modality.shape) for at in starts]
    return [to_stored(image, modality) for image in images]
