"""The encoders of Major TOM's embeddings, as data: their inputs and preprocessing.

Facts from github.com/ESA-PhiLab/Major-TOM (f7078cd), ``embedder/models``, described in
arXiv:2412.05600: four models of timm, each with the preprocessing of that code.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

from copcube.arguments import one_path
from copcube.encoder.spec import require_device, require_dtype
from copcube.errors import OptionError
from copcube.hub.published import ENCODERS, Published

if TYPE_CHECKING:
    from copcube.encoder.timm_encoder import TimmEncoder

Compat = Literal["majortom"]
Values = Literal["reflectance", "picture", "decibels"]

S2L1C = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B10", "B11", "B12")
RGB = ("B04", "B03", "B02")


@dataclass(frozen=True)
class Kind:
    """One encoder.

    Parameters
    ----------
    title : str
        Name in the attributes of cubes.
    architecture : str
        Name of the model in timm.
    dim : int
        Length of its vectors.
    modality : str
        Key of the modality whose images it sees.
    bands : tuple of str
        Names of the bands it sees, in their order; those of the columns and files.
    size : int
        Pixels per side of a fragment.
    values : {"reflectance", "picture", "decibels"}
        Conversion of stored pixels: counts divided by 10,000; 2.5 times that, within 0 and 1;
        decibels of linear power.
    mean, std : tuple of float
        Normalisation after that, one value per band. For decibels, two standard deviations about
        the mean become 0 to 1, and values beyond are clipped.
    pooling : {"head", "tokens"}
        The model's own output for an image, or the mean of all its tokens.
    published : Published, optional
        Its weights.
    """

    title: str
    architecture: str
    dim: int
    modality: str
    bands: tuple[str, ...]
    size: int
    values: Values
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    pooling: Literal["head", "tokens"] = "head"
    published: Published | None = None

    @property
    def in_words(self) -> str:
        """Describe the preprocessing, for the attributes of a cube."""
        scaled = {
            "reflectance": "counts / 10000",
            "picture": "2.5 × counts / 10000 clipped to 0..1",
            "decibels": "10 log10 of power, 2 standard deviations about the mean to 0..1, clipped",
        }[self.values]
        return f"fragments of {self.size} pixels, {scaled}"


KINDS = {
    "ssl4eo-s2": Kind(
        "SSL4EO-S12 ResNet50 DINO, Sentinel-2 L1C",
        "resnet50",
        2048,
        "s2_toa",
        S2L1C,
        224,
        "reflectance",
        published=ENCODERS["ssl4eo-s2"],
    ),
    "ssl4eo-s1rtc": Kind(
        "SSL4EO-S12 ResNet50 MoCo, Sentinel-1",
        "resnet50",
        2048,
        "s1_grd",
        ("vv", "vh"),
        224,
        "decibels",
        # Those of Major TOM's code; other transforms for the same weights have slightly others.
        (-12.548, -20.192),
        (5.257, 5.912),
        published=ENCODERS["ssl4eo-s1rtc"],
    ),
    "dinov2": Kind(
        "DINOv2 ViT-B/14",
        "vit_base_patch14_dinov2",
        768,
        "s2_toa",
        RGB,
        224,
        "picture",
        # ImageNet's.
        (0.485, 0.456, 0.406),
        (0.229, 0.224, 0.225),
        "tokens",
        ENCODERS["dinov2"],
    ),
    "siglip": Kind(
        "SigLIP SO400M/14 384",
        "vit_so400m_patch14_siglip_384",
        1152,
        "s2_toa",
        RGB,
        384,
        "picture",
        (0.5, 0.5, 0.5),
        (0.5, 0.5, 0.5),
        published=ENCODERS["siglip"],
    ),
}
"""The encoders by their names."""


@dataclass(frozen=True)
class TimmSpec:
    """Which of Major TOM's encoders to load and where; small enough to send to any worker.

    Parameters
    ----------
    encoder : str
        ``ssl4eo-s2``, ``ssl4eo-s1rtc``, ``dinov2`` or ``siglip``.
    weights : str or path-like
        ``hub`` for the published file, fetched once; the path of a copy; or ``untrained:SEED``
        for noise, the same on every machine.
    device, dtype : str
        As of `copcube.EncoderSpec`.
    compat : {"majortom"}, optional
        Whether to reproduce errors of Major TOM's embedder at f7078cd: boxes and footprints of
        fragments are transposed, DINOv2 sees pixels that were rescaled twice and cropped, and
        ResNet50 normalises by the statistics of the fragments of a cell.

    Raises
    ------
    OptionError
        If there is no such encoder, or a value has another type.

    Examples
    --------
    >>> TimmSpec("dinov2").kind.bands
    ('B04', 'B03', 'B02')
    """

    encoder: str
    weights: str = "hub"
    device: str = "auto"
    dtype: str = "auto"
    compat: Compat | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.encoder, str) or self.encoder not in KINDS:
            raise OptionError(
                f"encoder is {self.encoder!r:.60}; expected one of {', '.join(KINDS)}"
            )
        object.__setattr__(self, "weights", one_path(self.weights, "weights"))
        known = isinstance(self.compat, str) and self.compat in get_args(Compat)
        if self.compat is not None and not known:
            raise OptionError(f"compat is {self.compat!r:.60}; expected 'majortom' or nothing")
        require_device(self.device)
        require_dtype(self.dtype)

    @property
    def kind(self) -> Kind:
        """The kind of the encoder, with its inputs."""
        return KINDS[self.encoder]

    @property
    def by_cell(self) -> bool:
        """Whether the vector of a fragment depends on the others of its cell."""
        return self.compat is not None and self.kind.architecture.startswith("resnet")

    def load(self) -> "TimmEncoder":
        """Load the weights and put them on the device.

        Raises
        ------
        OptionError
            If the device or dtype is not available.
        FetchError, WeightsError
            If the weights cannot be fetched, or do not fit.
        """
        from copcube.encoder.timm_encoder import TimmEncoder

        return TimmEncoder(self)
