"""Open the data of a task of Copernicus-Bench, wherever below a folder it was unpacked."""

from collections.abc import Iterator
from pathlib import Path
from typing import get_args

from copcube.arguments import one_of, one_path
from copcube.errors import MissingFileError
from copcube.probes.bench.catalogue import Task
from copcube.probes.bench.layouts.base import Area, Codes, Layout
from copcube.probes.bench.layouts.lcz import LCZ
from copcube.probes.bench.layouts.masks import CloudS2, CloudS3, DFC2020Patches
from copcube.probes.bench.layouts.pairs import Flood
from copcube.probes.bench.layouts.patches import BigEarthNet, EuroSAT
from copcube.probes.bench.layouts.places import AirQuality, Biomass, LC100Cls, LC100Seg
from copcube.probes.bench.samples import SPLITS, Dataset

LAYOUTS: dict[str, tuple[type[Layout], str]] = {
    "cloud-s2": (CloudS2, "l1_cloud_s2/cloud_s2"),
    "cloud-s3": (CloudS3, "l1_cloud_s3/cloud_s3"),
    "eurosat-s1": (EuroSAT, "l2_eurosat_s1s2/eurosat_s1"),
    "eurosat-s2": (EuroSAT, "l2_eurosat_s1s2/eurosat_s2"),
    "bigearthnet-s1": (BigEarthNet, "l2_bigearthnet_s1s2/bigearthnet_s1s2"),
    "bigearthnet-s2": (BigEarthNet, "l2_bigearthnet_s1s2/bigearthnet_s1s2"),
    "lc100cls-s3": (LC100Cls, "l2_lc100_s3/lc100_s3"),
    "dfc2020-s1": (DFC2020Patches, "l2_dfc2020_s1s2/dfc2020_s1s2"),
    "dfc2020-s2": (DFC2020Patches, "l2_dfc2020_s1s2/dfc2020_s1s2"),
    "lc100seg-s3": (LC100Seg, "l2_lc100_s3/lc100_s3"),
    "flood-s1": (Flood, "l3_flood_s1/flood_s1"),
    "lcz-s2": (LCZ, "l3_lcz_s2/lcz_s2"),
    "biomass-s3": (Biomass, "l3_biomass_s3/biomass_s3"),
    "aq-no2-s5p": (AirQuality, "l3_airquality_s5p/airquality_s5p/no2"),
    "aq-o3-s5p": (AirQuality, "l3_airquality_s5p/airquality_s5p/o3"),
}
"""Reader of each task, and where its data are: the hub's folder, the archive's, one inside."""

# Folders of the same archives under other names: the archive's own, and that of a configuration.
_ALSO = {"bigearthnet_s1s2": "bigearthnetv2", "dfc2020_s1s2": "dfc2020", "lcz_s2": "lcz_s1s2"}


def open_dataset(
    task: Task, root: str | Path, *, area: Area = "official", codes: Codes = "raw"
) -> Dataset:
    """Open the data of a task.

    Parameters
    ----------
    task : Task
        Which task.
    root : str or Path
        Folder of the data set, or one that holds it: as `fetch` writes it or as the official
        script unpacks it.
    area : {"official", "true"}
        Area of a token for the encoder: as the official code states it, which published scores
        need, or that in the resized image.
    codes : {"raw", "shifted"}
        Codes of Cloud-S3's labels: 0 invalid and classes from 1, as the official code reads
        them, or 255 invalid and classes from 0, as others describe them.

    Raises
    ------
    MissingFileError
        If no list of a split is where one is expected.
    OptionError
        If an option is not valid.
    """
    one_of(area, "area", get_args(Area))
    one_of(codes, "codes", get_args(Codes))
    kind, folder = LAYOUTS[task.name]
    given = Path(one_path(root, "root"))
    places = list(_places(folder))
    for place in places:
        found = kind(task, given / place, area, codes)
        if any(found.list_file(split).is_file() for split in SPLITS):
            return found
    missing = found.list_file("train").name
    raise MissingFileError(
        f"{given}: no data of {task.title}: {missing} is neither there nor in "
        f"{folder.partition('/')[2]} or {folder} below it; download it with `copcube fetch bench "
        f"{task.name} --to {given}`"
    )


def _places(folder: str) -> Iterator[Path]:
    """Yield where the data of a task may be below a folder."""
    hub, name, *inner = folder.split("/")
    names = [name, _ALSO[name]] if name in _ALSO else [name]
    yield Path()
    yield Path(*inner)
    for top in ("", hub):
        for one in names:
            yield Path(top, one, *inner)
            # An archive that holds a folder of another name than its own has both.
            yield from (Path(top, one, below, *inner) for below in names if below != one)
    yield Path(hub, *inner)
