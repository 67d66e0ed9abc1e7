"""The fifteen tasks of Copernicus-Bench, as data.

Sensors, classes, sizes, learning rates and published scores as in the official code and its
results page (github.com/zhu-xlab/Copernicus-FM at da95635, ``Copernicus-Bench``), and
arXiv:2503.11849.
"""

from dataclasses import dataclass, replace
from typing import Literal

from copcube.errors import OptionError
from copcube.modalities import MODALITIES, Modality

Kind = Literal["classification", "multilabel", "segmentation", "change", "regression"]


@dataclass(frozen=True)
class Task:
    """What is fixed about one task.

    Parameters
    ----------
    name : str
        Name in the command and in files: ``eurosat-s2``.
    title : str
        Name in the published tables.
    kind : str
        What is predicted: one class or several an image, a class a pixel (of one image, or of
        what changed between two), or a number a pixel.
    sensor : Modality
        What the encoder is told of the images: bands in the order in which it gets them, and
        the task's own statistics.
    size : int
        Side of the image as the encoder gets it, in pixels.
    classes : tuple of str
        Names by index; a regression has one, the name of its target.
    counts : tuple of int
        Images that train, validate and test, as published.
    rate : float
        Learning rate of the official protocol.
    batch : int
        Batch size of the official protocol and of its metrics.
    random, published : float
        Scores of a frozen random ViT-B and of Copernicus-FM, as published: accuracy, average
        precision and IoU in %, RMSE in `units`.
    source, licence : str
        Where the images and labels come from, and their licence.
    ignore : int or None
        Code of pixels that do not count.
    nominal_area : float
        Area of a token in km² as the official code states it.
    target : tuple of float
        Mean and standard deviation of a regression's target.
    units : str
        Units of a regression's target; empty where the publication does not say.
    """

    name: str
    title: str
    kind: Kind
    sensor: Modality
    size: int
    classes: tuple[str, ...]
    counts: tuple[int, int, int]
    rate: float
    batch: int
    random: float
    published: float
    source: str
    licence: str
    ignore: int | None = None
    nominal_area: float = 0.0256
    target: tuple[float, float] = (0.0, 1.0)
    units: str = ""

    @property
    def metric(self) -> str:
        """Name of the published score."""
        return {
            "classification": "OA",
            "multilabel": "mAP",
            "segmentation": "mIoU",
            "change": "mIoU",
            "regression": "RMSE",
        }[self.kind]


def _sensor(key: str, **changes: object) -> Modality:
    """Return a modality as the official evaluation describes it.

    Pixels that are 0 are values here, not gaps: the evaluation has no rule for them.
    """
    return replace(MODALITIES[key], zero_is_missing=False, **changes)  # type: ignore[arg-type]


def _without(sensor: Modality, *bands: str) -> Modality:
    """Return the sensor without some bands."""
    kept = [i for i, band in enumerate(sensor.bands) if band not in bands]
    fields = ("bands", "wavelengths", "bandwidths", "scale", "mean", "std")
    return replace(sensor, **{f: tuple(getattr(sensor, f)[i] for i in kept) for f in fields})


_S1 = _sensor("s1_grd", mean=(-12.548, -20.192), std=(5.257, 5.912))
_S2 = _sensor(
    "s2_toa",
    mean=(
        *(1353.7, 1117.2, 1041.8, 946.5, 1199.1, 2003.0, 2374.0),
        *(2301.2, 2599.7, 732.1, 12.1, 1820.6, 1118.2),
    ),
    std=(
        *(897.3, 736.0, 684.8, 620.0, 791.9, 1341.3, 1595.4),
        *(1545.5, 1750.1, 475.1, 98.3, 1216.5, 736.7),
    ),
)
# Here the centre of Oa21 is the true one; the weights were trained with 1029 nm.
_S3 = _sensor("s3_olci", wavelengths=(*(MODALITIES["s3_olci"].wavelengths or ())[:-1], 1020.0))
_LCZ = replace(
    _without(_S2, "B1", "B9", "B10"),
    mean=(0.112, 0.104, 0.095, 0.120, 0.200, 0.237, 0.230, 0.260, 0.182, 0.112),
    std=(0.074, 0.068, 0.062, 0.079, 0.134, 0.160, 0.155, 0.175, 0.122, 0.074),
    units="reflectance",
)
# The statistics of the second date are misprinted in the official code, which uses them.
_FLOOD = _sensor("s1_grd", mean=(0.0981, 0.0253), std=(0.0430, 0.0174), units="linear power")

_CLOUDS = ("clear", "thick cloud", "thin cloud", "cloud shadow")
# Sources name the codes 2 and 3 both ways round, so they stay without a name of their own.
_CLOUDS_S3 = ("clear", "cloud (code 2)", "cloud (code 3)", "cloud shadow", "snow or ice")
_EUROSAT = (
    *("AnnualCrop", "Forest", "HerbaceousVegetation", "Highway", "Industrial", "Pasture"),
    *("PermanentCrop", "Residential", "River", "SeaLake"),
)
_BIGEARTHNET = (
    "Urban fabric",
    "Industrial or commercial units",
    "Arable land",
    "Permanent crops",
    "Pastures",
    "Complex cultivation patterns",
    "Land principally occupied by agriculture with natural vegetation",
    "Agro-forestry",
    "Broad-leaved forest",
    "Coniferous forest",
    "Mixed forest",
    "Natural grassland and sparsely vegetated areas",
    "Moors, heathland and sclerophyllous vegetation",
    "Transitional woodland, shrub",
    "Beaches, dunes, sands",
    "Inland wetlands",
    "Coastal wetlands",
    "Inland waters",
    "Marine waters",
)
LC100_CODES = (
    *(0, 20, 30, 40, 50, 60, 70, 80, 90, 100, 111, 112, 113),
    *(114, 115, 116, 121, 122, 123, 124, 125, 126, 200),
)
"""Codes of the CGLS land cover map by the index of their class."""
_LC100 = tuple(f"CGLS {code}" for code in LC100_CODES)
_DFC = (*("forest", "shrubland", "grassland", "wetlands", "croplands", "urban", "barren", "water"),)
_LCZ_CLASSES = tuple(f"LCZ {name}" for name in (*range(1, 11), *"ABCDEFG"))
_CC = "CC-BY-4.0"

TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task(
            *("cloud-s2", "Cloud-S2", "segmentation", _S2, 512, _CLOUDS, (1699, 567, 551)),
            *(1e-3, 16, 60.4, 66.7, "CloudSEN12", "CC0-1.0"),
        ),
        Task(
            *("cloud-s3", "Cloud-S3", "segmentation", _S3, 224, _CLOUDS_S3, (1197, 399, 399)),
            *(1e-4, 16, 60.9, 62.0, "Copernicus-Bench", _CC, 255, 5.76),
        ),
        Task(
            *("eurosat-s1", "EuroSAT-S1", "classification", _S1, 224, _EUROSAT),
            *((16200, 5400, 5400), 0.1, 64, 75.4, 87.2, "EuroSAT-SAR", _CC),
        ),
        Task(
            *("eurosat-s2", "EuroSAT-S2", "classification", _S2, 224, _EUROSAT),
            *((16200, 5400, 5400), 0.1, 64, 92.5, 97.9, "EuroSAT", "MIT"),
        ),
        Task(
            *("bigearthnet-s1", "BigEarthNet-S1", "multilabel", _S1, 224, _BIGEARTHNET),
            *((11894, 6117, 5991), 1.0, 64, 63.8, 77.9, "BigEarthNet v2, 5 %"),
            "CDLA-Permissive-1.0",
        ),
        Task(
            *("bigearthnet-s2", "BigEarthNet-S2", "multilabel", _without(_S2, "B10"), 224),
            *(_BIGEARTHNET, (11894, 6117, 5991), 1.0, 64, 71.6, 79.0, "BigEarthNet v2, 5 %"),
            "CDLA-Permissive-1.0",
        ),
        Task(
            *("lc100cls-s3", "LC100Cls-S3", "multilabel", _S3, 96, _LC100, (5181, 1727, 1727)),
            *(1.0, 64, 88.9, 93.3, "CGLS LC100", _CC, None, 5.76),
        ),
        Task(
            *("dfc2020-s1", "DFC2020-S1", "segmentation", _S1, 256, _DFC, (3156, 986, 986)),
            *(1e-3, 16, 45.4, 52.4, "DFC2020", _CC, 255),
        ),
        Task(
            *("dfc2020-s2", "DFC2020-S2", "segmentation", _S2, 256, _DFC, (3156, 986, 986)),
            *(1e-3, 16, 62.3, 64.5, "DFC2020", _CC, 255),
        ),
        Task(
            *("lc100seg-s3", "LC100Seg-S3", "segmentation", _S3, 288, _LC100),
            *((5181, 1727, 1727), 1e-4, 16, 18.2, 24.1, "CGLS LC100", _CC, None, 5.76),
        ),
        Task(
            *("flood-s1", "Flood-S1", "change", _FLOOD, 224),
            *(("no water", "permanent water", "flood"), (3000, 1000, 1000)),
            *(1e-3, 16, 75.1, 77.7, "Kuro Siwo", "MIT", 3),
        ),
        Task(
            *("lcz-s2", "LCZ-S2", "classification", _LCZ, 112, _LCZ_CLASSES),
            *((15000, 5000, 5000), 0.1, 64, 77.4, 84.4, "So2Sat LCZ42", _CC),
        ),
        # The official area is that of a token of 16 pixels, though the kernel has 8.
        Task(
            *("biomass-s3", "Biomass-S3", "regression", _S3, 288, ("above-ground biomass",)),
            *((3000, 1000, 1000), 1e-4, 16, 68.7, 66.3, "ESA CCI biomass 2020 v4.0", _CC),
            *(None, 23.04, (92.3196, 117.8162), "Mg ha-1"),
        ),
        Task(
            *("aq-no2-s5p", "AQ-NO2-S5P", "regression", _sensor("s5p_no2"), 56, ("NO2",)),
            *((1480, 493, 494), 1e-4, 16, 3.4, 2.8, "EEA 1 km grid 2021", _CC),
            *(None, 16.0, (5.3167, 3.9948)),
        ),
        Task(
            *("aq-o3-s5p", "AQ-O3-S5P", "regression", _sensor("s5p_o3"), 56, ("O3",)),
            *((1480, 493, 494), 1e-4, 16, 1741.6, 789.4, "EEA 1 km grid 2021", _CC),
            *(None, 16.0, (4654.2632, 2589.4207)),
        ),
    )
}
"""The tasks by name, in the order of the published table."""


def find(name: str) -> Task:
    """Return the task of a name.

    Raises
    ------
    OptionError
        If there is none.
    """
    try:
        return TASKS[name.lower()]
    except KeyError:
        raise OptionError(f"task={name!r}; expected one of {', '.join(TASKS)}") from None
