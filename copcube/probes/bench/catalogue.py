"""The fifteen tasks of Copernicus-Bench, as data.

Sensors, classes, sizes, learning rates and published scores as in the official code and its
results page (github.com/zhu-xlab/Copernicus-FM at da95635, ``Copernicus-Bench``), and
arXiv:2503.11849.
"""

from dataclasses import dataclass, replace
from typing import Literal

from copcube.errors import OptionError
from copcube.modalities import MODALITIES, Modality
from copcube.probes.bench.classes import (
    BIGEARTHNET,
    CLOUDS_S2,
    CLOUDS_S3,
    DFC2020,
    EUROSAT,
    LC100,
    LCZ,
)

Kind = Literal["classification", "multilabel", "segmentation", "change", "regression"]

METRICS: dict[Kind, str] = {
    "classification": "OA",
    "multilabel": "mAP",
    "segmentation": "mIoU",
    "change": "mIoU",
    "regression": "RMSE",
}
"""Names of the published scores."""


@dataclass(frozen=True)
class Task:
    """The fixed properties of one task.

    Parameters
    ----------
    name : str
        Name in the command and in files: ``eurosat-s2``.
    title : str
        Name in the published tables.
    kind : str
        What is predicted: one class or several an image, a class per pixel (of one image, or of
        what changed between two), or a number per pixel.
    sensor : Modality
        What the encoder receives about the images: bands in the order in which it gets them, and
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
        precision and IoU in %, RMSE in `units`; NaN for a task of your own.
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
    later : Modality or None
        What the encoder receives about the later image of a change, if its statistics differ.
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
    nominal_area: float = 0.0256  # 16 pixels of 10 m, squared
    target: tuple[float, float] = (0.0, 1.0)
    units: str = ""
    later: Modality | None = None

    @property
    def sensors(self) -> tuple[Modality, Modality]:
        """Sensors given to the encoder for the first and, for a change, the later image."""
        return self.sensor, self.later or self.sensor

    @property
    def described(self) -> str:
        """Everything given to the encoder, as named in results and the cache."""
        return repr(self.sensor if self.later is None else self.sensors)

    @property
    def metric(self) -> str:
        """Name of the published score."""
        return METRICS[self.kind]


def _sensor(key: str, **changes: object) -> Modality:
    """Return a modality as the official evaluation describes it.

    Pixels that are 0 are values here, not gaps: the evaluation has no rule for them.
    """
    return replace(MODALITIES[key], zero_is_missing=False, **changes)  # type: ignore[arg-type]


def _without(sensor: Modality, *bands: str) -> Modality:
    """Return the sensor without some bands."""
    kept = [i for i, band in enumerate(sensor.bands) if band not in bands]
    fields = ("bands", "wavelengths", "bandwidths", "scale", "mean", "std")
    values = {f: tuple(getattr(sensor, f)[i] for i in kept) for f in fields}
    return replace(sensor, **values)  # type: ignore[arg-type]


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
# So2Sat stores reflectances, of the ten bands that have 10 or 20 m.
_LCZ = replace(
    _without(_S2, "B1", "B9", "B10"),
    mean=(0.112, 0.104, 0.095, 0.120, 0.200, 0.237, 0.230, 0.260, 0.182, 0.112),
    std=(0.074, 0.068, 0.062, 0.079, 0.134, 0.160, 0.155, 0.175, 0.122, 0.074),
    units="reflectance",
)
_FLOOD = _sensor("s1_grd", mean=(0.0981, 0.0253), std=(0.0430, 0.0174), units="linear power")
# The deviations of the second date are misprinted in the official code, which uses them.
_FLOODED = replace(_FLOOD, std=(0.0981, 0.0253))

_CC = "CC-BY-4.0"

TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task(
            name="cloud-s2",
            title="Cloud-S2",
            kind="segmentation",
            sensor=_S2,
            size=512,
            classes=CLOUDS_S2,
            counts=(1699, 567, 551),
            rate=0.001,
            batch=16,
            random=60.4,
            published=66.7,
            source="CloudSEN12",
            licence="CC0-1.0",
        ),
        Task(
            name="cloud-s3",
            title="Cloud-S3",
            kind="segmentation",
            sensor=_S3,
            size=224,
            classes=CLOUDS_S3,
            counts=(1197, 399, 399),
            rate=0.0001,
            batch=16,
            random=60.9,
            published=62.0,
            source="Copernicus-Bench",
            licence=_CC,
            ignore=255,
            nominal_area=5.76,
        ),
        Task(
            name="eurosat-s1",
            title="EuroSAT-S1",
            kind="classification",
            sensor=_S1,
            size=224,
            classes=EUROSAT,
            counts=(16_200, 5400, 5400),
            rate=0.1,
            batch=64,
            random=75.4,
            published=87.2,
            source="EuroSAT-SAR",
            licence=_CC,
        ),
        Task(
            name="eurosat-s2",
            title="EuroSAT-S2",
            kind="classification",
            sensor=_S2,
            size=224,
            classes=EUROSAT,
            counts=(16_200, 5400, 5400),
            rate=0.1,
            batch=64,
            random=92.5,
            published=97.9,
            source="EuroSAT",
            licence="MIT",
        ),
        Task(
            name="bigearthnet-s1",
            title="BigEarthNet-S1",
            kind="multilabel",
            sensor=_S1,
            size=224,
            classes=BIGEARTHNET,
            counts=(11_894, 6117, 5991),
            rate=1.0,
            batch=64,
            random=63.8,
            published=77.9,
            source="BigEarthNet v2, 5 %",
            licence="CDLA-Permissive-1.0",
        ),
        Task(
            name="bigearthnet-s2",
            title="BigEarthNet-S2",
            kind="multilabel",
            sensor=_without(_S2, "B10"),
            size=224,
            classes=BIGEARTHNET,
            counts=(11_894, 6117, 5991),
            rate=1.0,
            batch=64,
            random=71.6,
            published=79.0,
            source="BigEarthNet v2, 5 %",
            licence="CDLA-Permissive-1.0",
        ),
        Task(
            name="lc100cls-s3",
            title="LC100Cls-S3",
            kind="multilabel",
            sensor=_S3,
            size=96,
            classes=LC100,
            counts=(5181, 1727, 1727),
            rate=1.0,
            batch=64,
            random=88.9,
            published=93.3,
            source="CGLS LC100",
            licence=_CC,
            nominal_area=5.76,
        ),
        Task(
            name="dfc2020-s1",
            title="DFC2020-S1",
            kind="segmentation",
            sensor=_S1,
            size=256,
            classes=DFC2020,
            counts=(3156, 986, 986),
            rate=0.001,
            batch=16,
            random=45.4,
            published=52.4,
            source="DFC2020",
            licence=_CC,
            ignore=255,
        ),
        Task(
            name="dfc2020-s2",
            title="DFC2020-S2",
            kind="segmentation",
            sensor=_S2,
            size=256,
            classes=DFC2020,
            counts=(3156, 986, 986),
            rate=0.001,
            batch=16,
            random=62.3,
            published=64.5,
            source="DFC2020",
            licence=_CC,
            ignore=255,
        ),
        Task(
            # The images of lc100cls-s3, 96 pixels per side, which the official reader enlarges
            # here.
            name="lc100seg-s3",
            title="LC100Seg-S3",
            kind="segmentation",
            sensor=_S3,
            size=288,
            classes=LC100,
            counts=(5181, 1727, 1727),
            rate=0.0001,
            batch=16,
            random=18.2,
            published=24.1,
            source="CGLS LC100",
            licence=_CC,
            nominal_area=5.76,
        ),
        Task(
            name="flood-s1",
            title="Flood-S1",
            kind="change",
            sensor=_FLOOD,
            later=_FLOODED,
            size=224,
            classes=("no water", "permanent water", "flood"),
            counts=(3000, 1000, 1000),
            rate=0.001,
            batch=16,
            random=75.1,
            published=77.7,
            source="Kuro Siwo",
            licence="MIT",
            ignore=3,
        ),
        Task(
            name="lcz-s2",
            title="LCZ-S2",
            kind="classification",
            sensor=_LCZ,
            size=112,
            classes=LCZ,
            counts=(15_000, 5000, 5000),
            rate=0.1,
            batch=64,
            random=77.4,
            published=84.4,
            source="So2Sat LCZ42",
            licence=_CC,
        ),
        # The official area is that of a token of 16 pixels, though the kernel has 8.
        Task(
            name="biomass-s3",
            title="Biomass-S3",
            kind="regression",
            sensor=_S3,
            size=288,
            classes=("above-ground biomass",),
            counts=(3000, 1000, 1000),
            rate=0.0001,
            batch=16,
            random=68.7,
            published=66.3,
            source="ESA CCI biomass 2020 v4.0",
            licence=_CC,
            nominal_area=23.04,
            target=(92.3196, 117.8162),
            units="Mg ha-1",
        ),
        Task(
            name="aq-no2-s5p",
            title="AQ-NO2-S5P",
            kind="regression",
            sensor=_sensor("s5p_no2"),
            size=56,
            classes=("NO2",),
            counts=(1480, 493, 494),
            rate=0.0001,
            batch=16,
            random=3.4,
            published=2.8,
            source="EEA 1 km grid 2021",
            licence=_CC,
            nominal_area=16.0,
            target=(5.3167, 3.9948),
        ),
        Task(
            name="aq-o3-s5p",
            title="AQ-O3-S5P",
            kind="regression",
            sensor=_sensor("s5p_o3"),
            size=56,
            classes=("O3",),
            counts=(1480, 493, 494),
            rate=0.0001,
            batch=16,
            random=1741.6,
            published=789.4,
            source="EEA 1 km grid 2021",
            licence=_CC,
            nominal_area=16.0,
            target=(4654.2632, 2589.4207),
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
    if isinstance(name, str) and name.lower() in TASKS:
        return TASKS[name.lower()]
    raise OptionError(f"task={name!r:.80}; expected one of {', '.join(TASKS)}")
