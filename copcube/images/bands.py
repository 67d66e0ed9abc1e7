"""Finding the bands of an image by their names.

Archives and readers name the same band differently: B02, B2, ``blue``, ``B02_10m``, "B2, central
wavelength 490 nm"; some number bands, some give wavelengths. `order` finds the bands of a modality
among such labels, and refuses labels it does not understand: bands in a wrong order would give
vectors that look like any others.
"""

import re
from collections.abc import Hashable, Sequence
from functools import lru_cache
from typing import Any

from copcube.errors import OptionError
from copcube.modalities import MODALITIES, Modality

# Common names of the STAC extension eo (v2.0.0) and the keys of assets in Earth Search and the
# Planetary Computer. The plain "rededge" of older catalogues means three bands, so it is not used
# here.
_S2_NAMES = {
    "B1": ("coastal", "aerosol", "coastal aerosol", "coastalaerosol", "ultra blue"),
    "B2": ("blue",),
    "B3": ("green",),
    "B4": ("red",),
    "B5": ("rededge071", "rededge1", "red edge 1", "re1"),
    "B6": ("rededge075", "rededge2", "red edge 2", "re2"),
    "B7": ("rededge078", "rededge3", "red edge 3", "re3"),
    "B8": ("nir", "nir1", "near infrared"),
    "B8A": ("nir08", "nir2", "nirnarrow", "narrow nir", "nir narrow", "rededge4", "re4"),
    "B9": ("nir09", "watervapour", "watervapor", "water vapour", "water vapor"),
    "B10": ("cirrus", "swir cirrus"),
    "B11": ("swir16", "swir1", "swir 1"),
    "B12": ("swir22", "swir2", "swir 2"),
}
# Ranges in nm from the same extension, each wide enough for its sensors.
_RANGES = {
    **{"coastal": (400, 460), "blue": (440, 540), "green": (500, 605), "yellow": (575, 630)},
    **{"red": (600, 710), "rededge": (680, 800), "nir": (740, 1000), "nir08": (740, 1000)},
    **{"nir09": (840, 1060), "cirrus": (1300, 1450), "swir16": (1500, 1800)},
    **{"swir22": (2000, 2400), "lwir": (10_000, 13_000)},
}
# Columns as Earth Engine, and as the product files of Sentinel-5P name them.
_VARIABLES = {
    "s5p_co": ("co", "carbonmonoxide total column"),
    "s5p_no2": (
        "no2",
        "no2 column number density",
        "nitrogendioxide tropospheric column",
    ),
    "s5p_o3": ("o3", "ozone", "ozone total vertical column"),
    "s5p_so2": ("so2", "sulfurdioxide total vertical column"),
    "dem": ("dem", "dsm", "dtm", "height", "altitude", "topography", "orography"),
}
_NOTHING = re.compile(r"(band|layer|channel|data|image)?( ?data| array)?", re.ASCII)
"""Names that readers give to a band of unknown meaning."""
_NUMBER = re.compile(r"(?:band|layer|channel|b)? ?0*(\d+)", re.ASCII)
_NEAR = 0.05
"""Relative tolerance of a band's wavelength: sensors of one kind differ by less."""


def order(
    labels: Sequence[Any], modality: Modality, *, described: bool = False
) -> list[int] | None:
    """Find the bands of a modality among the labels of an image's bands.

    Parameters
    ----------
    labels : sequence
        A label for each band of the image, in its order: texts, numbers of bands from 0 or 1,
        wavelengths in nm or µm; None or an empty text where a band has none.
    modality : Modality
        What the image shows.
    described : bool
        Whether the labels are descriptions; that of a single band may say anything except that it
        belongs to another modality.

    Returns
    -------
    list of int or None
        Position in the image of each band of the modality; None if the labels say nothing, so that
        the bands are in the modality's order.

    Raises
    ------
    OptionError
        If the labels are not understood, name a band twice, or lack one. Plain numbers for a
        different count of bands are left to the caller.

    Examples
    --------
    >>> order(["vh", "vv"], MODALITIES["s1_grd"])
    [1, 0]
    """
    texts = ["" if label is None else _words(label) for label in labels]
    if all(_NOTHING.fullmatch(text) for text in texts):
        return None
    named = [_named(text, modality) for text in texts]
    if set(modality.bands) <= set(named):
        if twice := [band for band in modality.bands if named.count(band) > 1]:
            raise _refusal(labels, modality, f"{', '.join(twice)} more than once")
        return [named.index(band) for band in modality.bands]
    # A single band has no order.
    if (
        len(modality.bands) == len(labels) == 1
        and (described or _NUMBER.fullmatch(texts[0]))
        and not _elsewhere(texts[0], modality)
    ):
        return None
    found = _by_number(texts) or _by_wavelength(labels, modality)
    if found is not None:
        # With more or fewer bands, numbers alone do not identify them.
        return found if len(found) == len(modality.bands) else None
    missing = [band for band in modality.bands if band not in named]
    why = f"no {', '.join(missing)}"
    if missing == ["B10"]:
        why += " (Level-2A has none; the modality is top of atmosphere, Level-1C)"
    raise _refusal(labels, modality, why)


def refuse_contradiction(labels: Sequence[Any], sensor: Modality) -> None:
    """Refuse wavelengths that contradict the common names of their bands.

    Raises
    ------
    OptionError
        If every label is a common name of the STAC extension eo, and a wavelength of the sensor
        lies outside the range of its band's.
    """
    texts, wavelengths = [_words(label) for label in labels], sensor.wavelengths or ()
    if len(texts) != len(wavelengths) or not set(texts) <= _RANGES.keys():
        return
    for text, wavelength in zip(texts, wavelengths, strict=True):
        low, high = _RANGES[text]
        if not low <= wavelength <= high:
            raise OptionError(
                f"the bands are labelled {', '.join(texts)}, and the wavelengths given are "
                f"{', '.join(f'{nm:g}' for nm in wavelengths)} nm; {text} is "
                f"{low} to {high} nm: give them in the order of the bands"
            )


def _refusal(labels: Sequence[Any], modality: Modality, why: str) -> OptionError:
    given = ", ".join(str(label) for label in labels)
    return OptionError(
        f"{len(labels)} bands are labelled {given[:400]}, with {why}; expected the "
        f"{len(modality.bands)} of {modality.title}: {', '.join(modality.bands)}; "
        "rename them, or select the bands of the modality in this order and drop the names"
    )


def _words(label: Hashable) -> str:
    """Label in lower case, with single spaces for all other characters except decimal points."""
    text = f"{label:.9g}" if isinstance(label, float) else str(label)
    return re.sub(r"[^a-z0-9.]+|(?<!\d)\.|\.(?!\d)", " ", text.lower()).strip()


def _named(text: str, modality: Modality) -> str | None:
    """Band of a modality that a text names, whole or in one of its words."""
    names = _names(modality)
    if text in names:
        return names[text]
    found = {names[word] for word in text.split() if word in names}
    return found.pop() if len(found) == 1 else None


def _elsewhere(text: str, modality: Modality) -> bool:
    """Whether a text names a band of another modality."""
    others = (other for other in MODALITIES.values() if other != modality)
    return any(text in _names(other) or _named(text, other) for other in others)


@lru_cache(maxsize=64)
def _names(modality: Modality) -> dict[str, str]:
    """Band by every name it has, in the form of `_words`."""
    names: dict[str, str] = {}
    for number, band in enumerate(modality.bands, 1):
        text = _words(band)
        names[text] = band
        if match := re.fullmatch(r"(b|oa)0*(\d+)(a?)", text):
            letter, digits, a = match.groups()
            # Both B2 and B02 are in use.
            names |= {f"{letter}{int(digits):0{width}d}{a}": band for width in (1, 2, 3)}
        if modality.key == "s3_olci":  # as Sentinel Hub and openEO name them
            names |= {f"b{number}": band, f"b{number:02d}": band}
        names |= dict.fromkeys(_S2_NAMES.get(band, ()) if modality.key == "s2_toa" else (), band)
    if (
        modality.key == "s1_grd"
    ):  # polar images, whose HH and HV were in these positions in pretraining
        names |= {"hh": "VV", "hv": "VH"}
    names |= dict.fromkeys(_VARIABLES.get(modality.key, ()), modality.bands[0])
    return names


def _by_number(texts: Sequence[str]) -> list[int] | None:
    """Positions from numbers of bands, if these are 1 … n or 0 … n - 1."""
    matches = [_NUMBER.fullmatch(text) for text in texts]
    numbers = [int(match[1]) for match in matches if match]
    if len(numbers) == len(texts):
        for first in (1, 0):
            if sorted(numbers) == list(range(first, first + len(numbers))):
                return [numbers.index(first + band) for band in range(len(numbers))]
    return None


def _by_wavelength(labels: Sequence[Any], modality: Modality) -> list[int] | None:
    """Positions from wavelengths in nm or µm, if each is near that of its band."""
    wanted = modality.wavelengths
    try:
        given = [float(re.sub(r"\s*(nm|µm|um)$", "", str(label).strip())) for label in labels]
    except ValueError:
        return None
    if wanted is None or len(given) != len(wanted) or len(set(wanted)) < len(wanted):
        return None
    ascending = sorted(range(len(given)), key=given.__getitem__)
    target = sorted(range(len(wanted)), key=wanted.__getitem__)
    for unit in (1, 1000):
        pairs = list(zip(ascending, target, strict=True))
        if all(abs(given[i] * unit - wanted[k]) <= _NEAR * wanted[k] for i, k in pairs):
            place = {k: i for i, k in pairs}
            return [place[k] for k in range(len(wanted))]
    return None
