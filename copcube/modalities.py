"""The eight Sentinel modalities of Copernicus-Pretrain, as data.

Bands, wavelengths, statistics, sizes and kernels as in the pretraining code of
Copernicus-FM (github.com/zhu-xlab/Copernicus-FM, ``engine_pretrain.py`` and the dataset
classes), arXiv:2503.11849. Normalisation is ``(pixel · scale - mean) / std``.

Pixels are wanted in `Modality.units`: Sentinel-1 in dB, Sentinel-2 in counts, which are
reflectances × 10⁴, Sentinel-3 in counts, which are radiances once multiplied by `Modality.scale`,
Sentinel-5P in mol m⁻², heights in metres. Since processing baseline 04.00 (25 January 2022, and
older scenes that were processed again) Sentinel-2 products hold counts that are 1000 higher.
Pretraining used Earth Engine's COPERNICUS/S2, which keeps them as they are, and
COPERNICUS/S2_HARMONIZED near the poles, which subtracts 1000; so it saw both. ``s2_offset=1000``
subtracts them.
"""

import difflib
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from copcube.arguments import is_several
from copcube.errors import OptionError

LANGUAGE_DIM = 2048
"""Length of a variable's language embedding."""

KEY = re.compile(r"[a-z][a-z0-9_]{0,39}", re.ASCII)
"""Pattern of the keys of users' own sensors, which name files and flags."""

SENSOR = "sensor_"
"""Prefix of the names under which rows and cubes hold descriptions of such sensors."""

MOST_SENSORS = 64
"""Most users' own sensors in a build; rows count them in a byte."""

AREA = (1e-3, 5.1e8)
"""Areas of a token in km² that the model's Fourier code accepts."""


@dataclass(frozen=True)
class Modality:
    """The fixed properties of one modality.

    Parameters
    ----------
    key : str
        Name in files, JSON and parquet.
    title : str
        Name for display.
    bands : tuple of str
        Band names in stored order.
    gsd : float
        Nominal size of a pixel in metres.
    stored_size : int
        Side of the published tensors in pixels.
    input_size : int
        Side of the pretraining crop in pixels.
    kernel : int
        Side of a token in pixels.
    tensor_dtype : str
        dtype of the published tensors.
    dates : int
        Length of the date axis of the published tensors; 1 means no such axis.
    local : bool
        Whether a cell holds local patches of 2.64 km rather than one image of 28 km.
    folders : tuple of str
        Folders of the published GeoTIFF trees, the one to write first.
    wavelengths, bandwidths : tuple of float, optional
        Centre and width of every band in nm; absent for variables.
    language_key : str, optional
        Key of the variable's language embedding; absent for spectral modalities.
    language : bytes, optional
        The language embedding of a user's own variable, 2048 little-endian float32.
    scale, mean, std : tuple of float
        Normalisation, one value per band.
    zero_is_missing : bool
        Whether a pixel that is 0 in every band holds no data.
    units : str
        Units of the pixels, before the scale is applied.
    typical : tuple of float
        Range that certainly contains the median of an image, in those units.
    remedy : str
        What to do with images in other common units.
    """

    key: str
    title: str
    bands: tuple[str, ...]
    gsd: float
    stored_size: int
    input_size: int
    kernel: int
    tensor_dtype: str
    dates: int
    local: bool
    folders: tuple[str, ...]
    wavelengths: tuple[float, ...] | None = None
    bandwidths: tuple[float, ...] | None = None
    language_key: str | None = None
    language: bytes | None = field(default=None, repr=False)
    scale: tuple[float, ...] = (1.0,)
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    zero_is_missing: bool = False
    units: str = "any units"
    typical: tuple[float, float] = (-math.inf, math.inf)
    remedy: str = ""

    @property
    def token_area(self) -> float:
        """Nominal area of one token in km², the model's third metadata field.

        NaN, which means unknown, if the model does not accept such an area.
        """
        # A constant of the modality: the published code does not correct it for latitude either.
        area = (self.kernel * self.gsd / 1000) ** 2
        return area if AREA[0] <= area <= AREA[1] else math.nan

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape (bands, rows, columns) of one published image."""
        return len(self.bands), self.stored_size, self.stored_size

    @property
    def is_published(self) -> bool:
        """Whether it is exactly one of the eight."""
        return MODALITIES.get(self.key) == self

    @property
    def asked(self) -> "str | Modality":
        """How an encoder identifies it: by its key, or, for other sensors, by itself."""
        return self.key if self.is_published else self


_S2 = (
    ("B1", 440, 20, 1612.9, 791.0),
    ("B2", 490, 65, 1397.6, 854.3),
    ("B3", 560, 35, 1322.3, 878.7),
    ("B4", 665, 30, 1373.1, 1144.9),
    ("B5", 705, 15, 1561.0, 1127.5),
    ("B6", 740, 15, 2108.4, 1164.2),
    ("B7", 783, 20, 2390.7, 1276.0),
    ("B8", 842, 115, 2318.7, 1249.5),
    ("B8A", 860, 20, 2581.0, 1345.9),
    ("B9", 940, 20, 837.7, 577.5),
    ("B10", 1370, 30, 22.0, 47.5),
    ("B11", 1610, 90, 2195.2, 1340.0),
    ("B12", 2190, 180, 1537.4, 1142.9),
)

# The centre of Oa21 is 1020 nm in reality; the weights were trained with 1029.
_S3 = (
    ("Oa01", 400, 15, 0.0139465),
    ("Oa02", 412.5, 10, 0.0133873),
    ("Oa03", 442.5, 10, 0.0121481),
    ("Oa04", 490, 10, 0.0115198),
    ("Oa05", 510, 10, 0.0100953),
    ("Oa06", 560, 10, 0.0123538),
    ("Oa07", 620, 10, 0.00879161),
    ("Oa08", 665, 10, 0.00876539),
    ("Oa09", 673.75, 7.5, 0.0095103),
    ("Oa10", 681.25, 7.5, 0.00773378),
    ("Oa11", 708.75, 10, 0.00675523),
    ("Oa12", 753.75, 7.5, 0.0071996),
    ("Oa13", 761.25, 7.5, 0.00749684),
    ("Oa14", 764.375, 3.75, 0.0086512),
    ("Oa15", 767.5, 2.5, 0.00526779),
    ("Oa16", 778.75, 15, 0.00530267),
    ("Oa17", 865, 20, 0.00493004),
    ("Oa18", 885, 10, 0.00549962),
    ("Oa19", 900, 10, 0.00502847),
    ("Oa20", 940, 20, 0.00326378),
    ("Oa21", 1029, 40, 0.00324118),
)


def _s5p(
    gas: str, title: str, band: str, language_key: str, typical: tuple[float, float]
) -> Modality:
    return Modality(
        key=f"s5p_{gas}",
        title=f"Sentinel-5P {title}",
        bands=(band,),
        gsd=1000,
        stored_size=28,
        input_size=28,
        kernel=4,
        tensor_dtype="float32",
        dates=12,
        local=False,
        folders=(f"s5p_l3_wgs/images/{band}", f"Sentinel-5P/images/{band}"),
        language_key=language_key,
        units="mol m-2",
        typical=typical,
        # Avogadro's number by 10⁴ cm² m⁻²; 1 DU is 2.6867e20 molecules m⁻².
        remedy="divide molecules cm-2 by 6.02214e19, Dobson units by 2241.5, µmol m-2 by 1e6",
    )


MODALITIES: dict[str, Modality] = {
    m.key: m
    for m in (
        Modality(
            key="s1_grd",
            title="Sentinel-1 GRD",
            bands=("VV", "VH"),
            gsd=10,
            stored_size=264,
            input_size=224,
            kernel=16,
            tensor_dtype="float32",
            dates=4,
            local=True,
            folders=("s1_grd_utm/images", "Sentinel-1/images"),
            wavelengths=(5e7, 5e7),
            bandwidths=(1e9, 1e9),
            scale=(1.0, 1.0),
            mean=(-12.59, -20.26),
            std=(5.26, 5.91),
            units="dB",
            typical=(-50, 0),
            remedy="make dB of linear power by 10 * log10(power)",
        ),
        Modality(
            key="s2_toa",
            title="Sentinel-2 TOA",
            bands=tuple(b[0] for b in _S2),
            gsd=10,
            stored_size=264,
            input_size=224,
            kernel=16,
            tensor_dtype="int16",
            dates=4,
            local=True,
            folders=("s2_toa_mix/images", "Sentinel-2/images"),
            wavelengths=tuple(float(b[1]) for b in _S2),
            bandwidths=tuple(float(b[2]) for b in _S2),
            scale=(1.0,) * len(_S2),
            mean=tuple(b[3] for b in _S2),
            std=tuple(b[4] for b in _S2),
            zero_is_missing=True,
            units="counts (reflectance × 10⁴)",
            typical=(50, 30_000),
            remedy="multiply reflectances of 0 to 1 by 10,000",
        ),
        Modality(
            key="s3_olci",
            title="Sentinel-3 OLCI",
            bands=tuple(b[0] for b in _S3),
            gsd=300,
            stored_size=96,
            input_size=96,
            kernel=8,
            tensor_dtype="float32",
            dates=8,
            local=False,
            folders=("s3_olci_wgs/images", "s3_olci_utm/images", "Sentinel-3/images"),
            wavelengths=tuple(float(b[1]) for b in _S3),
            bandwidths=tuple(float(b[2]) for b in _S3),
            scale=tuple(b[3] for b in _S3),
            mean=(0.0,) * len(_S3),
            std=(1.0,) * len(_S3),
            units="counts (radiance in W m-2 sr-1 µm-1, divided by the scale of the band)",
            typical=(1, 65_535),
            remedy="divide radiances by modality('s3_olci').scale",
        ),
        _s5p("co", "CO", "CO_column_number_density", "Sentinel 5P Carbon Monoxide", (1e-3, 1)),
        _s5p(
            "no2",
            "NO2",
            "tropospheric_NO2_column_number_density",
            "Sentinel 5P Nitrogen Dioxide",
            (-1e-3, 1e-2),
        ),
        _s5p("o3", "O3", "O3_column_number_density", "Sentinel 5P Ozone", (1e-2, 1)),
        _s5p("so2", "SO2", "SO2_column_number_density", "Sentinel 5P Sulfur Dioxide", (-0.1, 0.1)),
        Modality(
            key="dem",
            title="Copernicus DEM",
            bands=("elevation",),
            gsd=30,
            stored_size=960,
            input_size=960,
            kernel=64,
            tensor_dtype="float32",
            dates=1,
            local=False,
            folders=("dem_grid_wgs/images", "DEM/images"),
            language_key="Copernicus Digital Elevation Model",
            std=(10000.0,),
            units="m",
            typical=(-500, 9000),
            remedy="convert feet or centimetres to metres",
        ),
    )
}
"""The modalities by key, in the order of the pretraining loop."""

ORDER: dict[str, int] = {key: i for i, key in enumerate(MODALITIES)}
"""Position of every modality in that order."""


def modality(key: str) -> Modality:
    """Return the modality of a key.

    Raises
    ------
    OptionError
        If there is no such modality; names the nearest and all known ones.

    Examples
    --------
    >>> modality("s1_grd").bands
    ('VV', 'VH')
    """
    return MODALITIES[_known(key, MODALITIES)]


def kinds(sensors: Iterable[Modality] = ()) -> dict[str, Modality]:
    """Return the modalities and users' own sensors by key."""
    return MODALITIES | {sensor.key: sensor for sensor in sensors}


def rank(key: str) -> tuple[int, str]:
    """Sort key of the fixed order: that of the modalities, then other sensors by name."""
    return ORDER.get(key, len(ORDER)), key


def labels(keys: Iterable[str]) -> tuple[str, ...]:
    """Names of what a table or a cube counts: all eight modalities, then other keys by name."""
    return tuple(sorted({*MODALITIES, *keys}, key=rank))


def families(keys: Iterable[str]) -> list[str]:
    """Sources of images, for display: the Sentinels together, and other sensors by their keys."""
    keys = tuple(keys)
    own = [key for key in keys if key not in MODALITIES]
    return own if own and len(own) == len(keys) else ["Copernicus Sentinel", *own]


def described_in(names: Iterable[str]) -> tuple[str, ...]:
    """Keys of the users' own sensors that attributes of these names describe.

    Names of another form are ignored, since they may come from other people's files.
    """
    keys = {name.removeprefix(SENSOR) for name in names if name.startswith(SENSOR)}
    return tuple(sorted(k for k in keys if KEY.fullmatch(k) and k not in MODALITIES))[:MOST_SENSORS]


def select(keys: Iterable[str] | str | None, others: Iterable[str] = ()) -> tuple[str, ...]:
    """Chosen modality keys, each once, in the fixed order; all of them for None.

    A single text is one key, or several with commas between them. `others` are keys of users' own
    sensors, which may be chosen too.

    Raises
    ------
    OptionError
        If a key is unknown or none is given.
    """
    known = labels(others)
    if isinstance(keys, str):
        keys = [key.strip() for key in keys.split(",")]
    if keys is not None and not is_several(keys):
        raise OptionError(f"modalities={keys!r}; expected keys such as ['s2_toa', 'dem']")
    chosen = set(known if keys is None else (_known(key, known) for key in keys))
    if not chosen:
        raise OptionError(f"no modality chosen; give one or more of {', '.join(known)}")
    return tuple(sorted(chosen, key=rank))


def _known(key: str, known: Iterable[str]) -> str:
    """Return a known key, and refuse others."""
    known = tuple(known)
    if not isinstance(key, str):
        raise OptionError(f"modality is {key!r:.80}; expected one of {', '.join(known)}")
    if key in known:
        return key
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.4)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise OptionError(
        f"unknown modality {key!r}{hint} (known: {', '.join(known)}); other sensors are given by a "
        "description, see copcube.sensor"
    )
