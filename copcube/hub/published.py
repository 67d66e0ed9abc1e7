"""The published files as data: names, locations and licences.

Repositories, revisions, sizes and checksums as published on the Hugging Face hub by the authors of
Copernicus-FM (arXiv:2503.11849). `copcube.hub.fetch` downloads them.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from copcube.errors import OptionError
from copcube.progress import size as in_words

# Shards up to the first of these hold cells with all modalities.
LAST_ALIGNED, LAST_SHARD = 2255, 3210


@dataclass(frozen=True)
class Published:
    """One published file.

    Parameters
    ----------
    repo : str
        Repository on the hub.
    kind : {"model", "dataset"}
        Kind of the repository.
    revision : str
        Commit of 40 hexadecimal digits, or a branch where no commit is known.
    path : str
        Path in the repository; with ``*``, a pattern for several.
    licence : str
        Licence of the file.
    size : int or None
        Bytes, as far as known.
    sha256 : tuple of str
        Known checksums, any of which is right; empty if only the hub's own is known.
    md5 : str or None
        Checksum of that kind, if it is the one that is known.
    """

    repo: str
    kind: Literal["model", "dataset"]
    revision: str
    path: str
    licence: str
    size: int | None = None
    sha256: tuple[str, ...] = ()
    md5: str | None = None

    @property
    def page(self) -> str:
        """Landing page of the repository."""
        return f"https://huggingface.co/{'datasets/' if self.kind == 'dataset' else ''}{self.repo}"

    def __str__(self) -> str:
        return f"{self.repo}/{self.path} at {self.revision[:12]}"


# The first checksum is that of the present file, the second that of March 2025.
CHECKPOINT = Published(
    "wangyi111/Copernicus-FM",
    "model",
    "e1db406d517a122c8373802e1c130c5fc4789f84",
    "CopernicusFM_ViT_base_varlang_e100.pth",
    "CC-BY-4.0",
    557_931_327,
    (
        "085350e4fa0ebc6047a501aed1307394c4fcc23c013dd026db65af06411d6bee",
        "539c5dd95cdf5b95fac1c4540929eaeb24b53a694a3421535ef3322a51644397",
    ),
)
LANGUAGE = replace(
    CHECKPOINT,
    path="varname_embed/varname_embed_llama3.2_1B.pt",
    licence="Llama 3.2 Community License (passing it on needs a copy of the licence and a notice)",
    size=116_962,
    sha256=(),
)
# Copies of it that others list have this checksum.
LARGE = replace(
    CHECKPOINT,
    path="CopernicusFM_ViT_large_varlang_e100.pth",
    size=1_500_000_000,
    sha256=("e78a75c5b04a8980773de0a6f0efd4b237c3fb46c5180f397dd192de951a3ffc",),
)
WEIGHTS = (CHECKPOINT, LANGUAGE)
CHECKPOINTS = {"hub": CHECKPOINT, "large": LARGE}
"""The published sizes of the encoder, ViT-B/16 and ViT-L/16, by the names that weights have."""

ENCODERS = {
    "ssl4eo-s2": Published(
        "torchgeo/resnet50_sentinel2_all_dino",
        "model",
        "d7f14bf5530d70ac69d763e58e77e44dbecfec7c",
        "resnet50_sentinel2_all_dino-d6c330e9.pth",
        "CC-BY-4.0",
        94_470_597,
        ("d6c330e99fb65d7a8ed9cdf06f6ec752b9db74718fa2edf42314bf3fdf132dd4",),
    ),
    "ssl4eo-s1rtc": Published(
        "torchgeo/resnet50_sentinel1_all_moco",
        "model",
        "e79862c667853c10a709bdd77ea8ffbad0e0f1cf",
        "resnet50_sentinel1_all_moco-906e4356.pth",
        "CC-BY-4.0",
        None,
        ("906e4356da0ff06ce0388cba50dd4f310ba6abbee706c5303c129d8aead98082",),
    ),
    "dinov2": Published(
        "timm/vit_base_patch14_dinov2.lvd142m",
        "model",
        "4685c99dabffe5affac90bd99dbffd25801ae58d",
        "model.safetensors",
        "Apache-2.0",
        346_334_872,
        ("55cbb5d887b336d430e649c277b85a1429e724871f9d02ac16203235886d8c7b",),
    ),
    # Neither commit nor checksum is known: what the first fetch finds is noted and holds.
    "siglip": Published(
        "timm/vit_so400m_patch14_siglip_384.webli",
        "model",
        "main",
        "model.safetensors",
        "Apache-2.0",
    ),
}
"""Weights of the encoders of Major TOM's embeddings (arXiv:2412.05600), by their names here."""

ARCHIVE = Published(
    "wangyi111/Copernicus-Pretrain",
    "dataset",
    "d17e1098bd4fef52e7994805658434ce7e5800fc",
    "example_100_grids/example_100_geotiff.zip",
    "CC-BY-4.0",
)
EXAMPLE = (
    *(
        replace(
            ARCHIVE,
            path=f"example_100_grids/example_100_webdataset/example-{i:06d}.tar",
            size=500_000_000,
        )
        for i in range(10)
    ),
    ARCHIVE,
    replace(ARCHIVE, path="example_100_grids/fnames_100_union.json.gz"),
)

_MAP = Published(
    "wangyi111/Copernicus-Embed-025deg",
    "dataset",
    "main",
    "embeddings_025_v1/embed_map_310k.npz",
    "CC-BY-4.0",
    841_216_664,
    ("be1d6537efd98c3fcfea5ed128b4c99659259080250ad2efcb65590ec29270dc",),
)
_AVERAGES = replace(
    _MAP, path="embeddings_025_v1/*embeddings_avg_310k.parquet", size=960_000_000, sha256=()
)
_ROWS = replace(_MAP, path="embeddings_025_v1/*_chunk_*.parquet", size=57_500_000_000, sha256=())

PRODUCTS = {
    "weights": WEIGHTS,
    "example": EXAMPLE,
    "map": (_MAP,),
    "averages": (_AVERAGES,),
    "rows": (_ROWS,),
}
"""The published files by the names that `copcube fetch` takes, beside ``shards`` and ``bench``."""


def _bench(path: str, md5: str, licence: str = "CC-BY-4.0") -> Published:
    return Published(
        "wangyi111/Copernicus-Bench",
        "dataset",
        "9d252acd3aa0e3da3128e05c6f028647f0e48e5f",
        path,
        licence,
        md5=md5,
    )


# Revision and checksums as torchgeo pins them (torchgeo/datasets/copernicus at 65507dc).
_CDLA = "CDLA-Permissive-1.0"
_BIGEARTHNET = _bench(
    "l2_bigearthnet_s1s2/bigearthnetv2.zip", "269355db0449e0da7213c95f30c346d4", _CDLA
)
_LC100 = _bench("l2_lc100_s3/lc100_s3.zip", "967d1da6286e0d0e346e425a8f3800e9")
_DFC2020 = _bench("l2_dfc2020_s1s2/dfc2020.zip", "f10ba017dab6f38b7a6857b169ea924b")
_AIR = _bench("l3_airquality_s5p/airquality_s5p.zip", "92081c7437c5c1daf783868ad7669877")
BENCH = {
    "cloud-s2": (
        _bench("l1_cloud_s2/cloud_s2.zip", "39a1f966e76455549a3e6c209ba751c1", "CC0-1.0"),
    ),
    "cloud-s3": (_bench("l1_cloud_s3/cloud_s3.zip", "1f82a8ccf16a0c44f0b1729e523e343a"),),
    "eurosat-s1": (_bench("l2_eurosat_s1s2/eurosat_s1.zip", "e7e7f8fc68fc55a7a689cb654912ff3f"),),
    "eurosat-s2": (
        _bench("l2_eurosat_s1s2/eurosat_s2.zip", "b2be02ca9767554c717f2e9bd15bbd23", "MIT"),
    ),
    "bigearthnet-s1": (_BIGEARTHNET,),
    "bigearthnet-s2": (_BIGEARTHNET,),
    "lc100cls-s3": (_LC100,),
    "dfc2020-s1": (_DFC2020,),
    "dfc2020-s2": (_DFC2020,),
    "lc100seg-s3": (_LC100,),
    "flood-s1": (_bench("l3_flood_s1/flood_s1.zip", "f4337fee5e90203c6d0c3efeb0b97b8a", "MIT"),),
    "lcz-s2": (
        _bench("l3_lcz_s2/lcz_train.h5", "e0b10cdb7f12e053cda8dd3ff12dbd9e"),
        _bench("l3_lcz_s2/lcz_val.h5", "be3b503dba5a1405ec6d5a770c2bee33"),
        _bench("l3_lcz_s2/lcz_test.h5", "4e95788c72a421d636f6f8dc7623d116"),
    ),
    "biomass-s3": (_bench("l3_biomass_s3/biomass_s3.zip", "4769ab8c2c23cd8957b99e15e071931c"),),
    "aq-no2-s5p": (_AIR,),
    "aq-o3-s5p": (_AIR,),
}
"""The archives of Copernicus-Bench by task; some serve two."""


def shard(number: int) -> Published:
    """One WebDataset shard of Copernicus-Pretrain, about 97 cells.

    The folder called union holds the rest: cells that lack a modality.
    """
    folder = "ssl4eo_s_220k_aligned" if number <= LAST_ALIGNED else "ssl4eo_s_220k_310k_union"
    return replace(ARCHIVE, path=f"{folder}/example-{number:06d}.tar", size=5_000_000_000)


def published(
    what: str, which: str | Sequence[str] | None = None, encoder: str | None = None
) -> tuple[Published, ...]:
    """Files that a name stands for.

    Parameters
    ----------
    what : str
        ``weights``, ``example``, ``shards``, ``map``, ``averages``, ``rows`` or ``bench``.
    which : str or sequence of str, optional
        Of ``shards`` those to choose, such as ``7`` or ``0-99``; of ``bench`` names of tasks, or
        ``all``; of ``weights`` perhaps ``large``.
    encoder : str, optional
        Whose weights, one of `ENCODERS`; by default those of Copernicus-FM.

    Raises
    ------
    OptionError
        If there is no such product, shard, task or encoder.

    Examples
    --------
    >>> [file.path for file in published("shards", "2255-2256")]
    ['ssl4eo_s_220k_aligned/example-002255.tar', 'ssl4eo_s_220k_310k_union/example-002256.tar']
    """
    if encoder is not None:
        if what != "weights" or which is not None:
            given = what if which is None else f"{what} {which}"
            raise OptionError(
                f"only the weights of an encoder can be fetched; {encoder!r} has no {given!r}"
            )
        if encoder not in ENCODERS:
            raise OptionError(f"unknown encoder {encoder!r} (known: {', '.join(ENCODERS)})")
        return (ENCODERS[encoder],)
    if (what, which) == ("weights", "large"):
        return LARGE, LANGUAGE
    if what == "bench":
        return _archives([which] if isinstance(which, str) else which or [])
    if what != "shards":
        if what not in PRODUCTS:
            known = ", ".join((*PRODUCTS, "shards", "bench"))
            raise OptionError(f"unknown product {what!r} (known: {known})")
        if which is not None:
            parts = "only 'large'" if what == "weights" else "no parts"
            raise OptionError(f"{what!r} has {parts} to choose from, given {which!r}")
        return PRODUCTS[what]
    # (1, 0) is an empty range, so that one check refuses texts and numbers alike.
    match = re.fullmatch(r"([0-9]{1,6})(?:-([0-9]{1,6}))?", "" if which is None else str(which))
    first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
    if not first <= last <= LAST_SHARD:
        raise OptionError(f"expected shards such as 7 or 0-99 within 0-{LAST_SHARD}, got {which!r}")
    return tuple(shard(number) for number in range(first, last + 1))


def _archives(tasks: Sequence[str]) -> tuple[Published, ...]:
    """Archives of tasks of Copernicus-Bench, each once."""
    known = f"{', '.join(BENCH)}, or all"
    if not tasks:
        raise OptionError(f"no task given; expected one or more of {known}")
    names = list(BENCH) if list(tasks) == ["all"] else [task.lower() for task in tasks]
    if unknown := [name for name in names if name not in BENCH]:
        raise OptionError(f"unknown task {unknown[0]!r}; expected one or more of {known}")
    return tuple(dict.fromkeys(file for name in names for file in BENCH[name]))


def sizes_and_licences(files: Sequence[Published]) -> str:
    """Describe these files: count, size, licence, source.

    Examples
    --------
    >>> print(sizes_and_licences(published("map")))
    1 file, about 841 MB, CC-BY-4.0, https://huggingface.co/datasets/wangyi111/Copernicus-Embed-025deg
    """
    groups: dict[tuple[str, str], list[Published]] = {}
    for file in files:
        groups.setdefault((file.page, file.licence), []).append(file)
    lines = []
    for (page, licence), group in groups.items():
        several = len(group) > 1 or "*" in group[0].path
        count = "files" if "*" in group[0].path else f"{len(group)} file{'s' if several else ''}"
        total = sum(file.size or 0 for file in group)
        more = " and more" if any(file.size is None for file in group) else ""
        lines.append(f"{count}, about {in_words(total)}{more}, {licence}, {page}")
    return "\n".join(lines)
