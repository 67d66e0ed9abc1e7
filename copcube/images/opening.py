"""Recognising the layout of a source."""

from pathlib import Path

from copcube.arguments import one_path
from copcube.errors import SourceError
from copcube.files.contents import first_bytes, form
from copcube.files.regular import require_file
from copcube.images.base import Source
from copcube.modalities import Modality


def open_source(path: str | Path, sensors: tuple[Modality, ...] = ()) -> Source:
    """Recognise and open a GeoTIFF tree or WebDataset shards.

    Parameters
    ----------
    path : str or Path
        A GeoTIFF tree, an ``fnames_*.json.gz`` beside or inside one, a shard, a folder of
        shards, a glob, or a brace pattern such as ``example-{000000..000009}.tar``; shards
        may also lie at addresses, such as ``s3://bucket/shards`` or
        ``https://host/example-{000000..000009}.tar``.
    sensors : tuple of Modality
        Sensors of your own, whose images are also looked for; see `copcube.images.sensors`.

    Raises
    ------
    SourceError
        If nothing is there or nothing in it is recognised.
    StorageError
        If an object store cannot be reached or denies access.
    """
    # Imported late, so that `copcube.images` alone loads neither module.
    from copcube.images import geotiff, webdataset

    path = one_path(
        path, "source", "; a glob or a brace pattern names several shards: 'a-{000000..000009}.tar'"
    )
    for layout in (webdataset, geotiff):
        # Addresses never reach the second layout: the first opens or refuses them.
        source: Source | None = layout.recognise(path, sensors)
        if source is not None:
            return source
    where = Path(path)
    if not where.is_dir():
        require_file(where, SourceError)
    if not where.exists():
        raise SourceError(f"{path}: no such file or folder")
    found = "an empty folder" if where.is_dir() and not any(where.iterdir()) else "neither"
    if where.is_file():
        found = form(first_bytes(where) or b"")[1] or "a file of another kind"
    own = "".join(f", or {folder!r}" for sensor in sensors for folder in sensor.folders)
    raise SourceError(
        f"{path}: expected a GeoTIFF tree of Copernicus-Pretrain (folders such as "
        f"'s2_toa_mix/images' or 'Sentinel-2/images'{own}) or WebDataset shards ('*.tar'), "
        f"found {found}; `copcube sample DIR` writes a small example of either"
    )
