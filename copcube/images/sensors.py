"""Users' own sensors: their descriptions and checks.

A sensor is a `Modality` other than the eight. It is described in TOML, or by the same fields in
Python, and always passed whole: to `copcube.build` as `sensors=`, to `copcube.embed` as
`modality=`. There is no global list of sensors: sources and tasks carry them, and the files of a
build record them.
"""

import difflib
import hashlib
import math
import os
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from copcube.arguments import flag, is_several, number, numbers, whole_number
from copcube.errors import OptionError
from copcube.files.regular import open_regular
from copcube.images.language import language_embedding
from copcube.images.naming import FOLDERS, is_inside
from copcube.modalities import (
    AREA,
    KEY,
    LANGUAGE_DIM,
    MODALITIES,
    MOST_SENSORS,
    Modality,
    modality,
)

FIELDS = (
    *("key", "title", "bands", "wavelengths", "bandwidths", "language", "language_key"),
    *("mean", "std", "scale", "gsd", "kernel", "stored_size", "input_size"),
    *("folder", "local", "dated", "zero_is_missing", "units", "typical"),
)
"""Fields of a description."""

_DECISIVE = (
    *("bands", "wavelengths", "bandwidths", "language_key", "language", "scale", "mean", "std"),
    *("gsd", "kernel", "stored_size", "input_size", "local", "zero_is_missing"),
)
"""Fields of `Modality` that decide a vector."""

_TEXTS = ("bands", "folders")
_NUMBERS = ("wavelengths", "bandwidths", "scale", "mean", "std", "typical")
"""Fields of `Modality` that are sequences."""

_NM = (100.0, 1e9)
"""Wavelengths in nm that the model's code accepts; bandwidths start at 1 nm."""
_MOST_BYTES = 1 << 20
"""Maximum bytes of a description, which usually has about 1000."""
_MOST_PIXELS = 8192

Given = Modality | Mapping[str, Any] | str | os.PathLike[str]


def sensor(description: Given) -> Modality:
    """Describe a sensor other than the eight modalities.

    Parameters
    ----------
    description : str or Path, mapping, or Modality
        A TOML file, the same fields by name, or a `copcube.modalities.Modality` made in another
        way, such as by `dataclasses.replace`. The fields are:

        ``key``
            Its name in files, cubes and messages: small letters, digits and
            ``_``, a letter first and 40 at most.
        ``bands``
            Names of the bands, in the order of the images.
        ``wavelengths``, ``bandwidths``
            Centre and width of every band in nm; or, for a variable of one band,
        ``language``, ``language_key``
            a file of its language embedding, 2048 numbers in ``.npy`` or ``.pt`` (there under the
            name `language_key`), or only the name of one that comes with the weights.
        ``mean``, ``std``, ``scale``
            Normalisation ``(pixel * scale - mean) / std`` by band; `scale` is 1 by default.
        ``gsd``
            Size of a pixel of the stored images in metres.
        ``stored_size``, ``input_size``, ``kernel``
            Side in pixels of the stored images, of the part in their middle that is embedded
            (default: all), and of a token (default: 16). Rasters of another size are resized to
            `stored_size`.
        ``folder``
            Folder of the images in a GeoTIFF tree (default: ``KEY/images``).
        ``local``
            Whether a cell holds local patches rather than one image (default: false).
        ``dated``
            Whether images have a date (default: true).
        ``zero_is_missing``
            Whether 0 in every band means that there is no data (default: false).
        ``title``, ``units``, ``typical``
            Name and units for display, and a range that certainly contains an image's median.

    Returns
    -------
    Modality

    Raises
    ------
    OptionError
        If a field is unknown or missing, values do not fit together, or the key is taken.

    Examples
    --------
    >>> hcho = sensor({"key": "s5p_hcho", "language_key": "Sentinel 5P Ozone", "mean": 0,
    ...                "std": 1, "gsd": 1000, "kernel": 4, "stored_size": 28})
    >>> hcho.bands, hcho.input_size, hcho.folders
    (('s5p_hcho',), 28, ('s5p_hcho/images',))
    """
    where = "the sensor"
    try:
        if isinstance(description, Modality):
            where = f"the sensor {description.key!r:.60}"
            return _checked(_plain(description))
        folder = Path()
        if isinstance(description, str | os.PathLike):
            path = Path(description)
            where, folder = str(path), path.parent
            description = _read(path)
        if not isinstance(description, Mapping):
            raise OptionError(
                f"it is {description!r:.80}; expected a TOML file, fields by name, or a Modality"
            )
        return _checked(_modality(description, folder))
    except OptionError as error:
        # Added only here: the checks below know neither file nor key.
        reason = str(error).removeprefix(f"{where}: ")
        raise OptionError(f"{where}: {reason}") from error.__cause__


def sensors(given: Iterable[Given] | Given | None) -> tuple[Modality, ...]:
    """Describe several sensors, in the order of their keys.

    Raises
    ------
    OptionError
        As `sensor`, or if two have the same key or the same folder.
    """
    if given is None:
        return ()
    if isinstance(given, Modality | Mapping | str | os.PathLike):
        given = (given,)
    found: dict[str, Modality] = {}
    if not is_several(given):
        raise OptionError(f"sensors={given!r:.80}; expected descriptions, see copcube.sensor")
    for one in map(sensor, given):
        for other in found.values():
            if other.key == one.key or set(other.folders) & set(one.folders):
                what = "key" if other.key == one.key else f"folder {one.folders[0]!r}"
                raise OptionError(
                    f"sensors {other.key!r} and {one.key!r} have the same {what}; give each its own"
                )
        found[one.key] = one
    if len(found) > MOST_SENSORS:
        raise OptionError(f"{len(found)} sensors given; expected at most {MOST_SENSORS}")
    # Sorted, so that the order given does not affect the plan.
    return tuple(found[key] for key in sorted(found))


def modality_of(given: Given) -> Modality:
    """Return one of the eight modalities by its key, or a user's own sensor as described.

    Texts that end in ``.toml`` are files.

    Raises
    ------
    OptionError
        If there is no such modality, or the description cannot be used.
    """
    if isinstance(given, str) and not given.endswith(".toml"):
        return modality(given)
    if isinstance(given, Modality) and given.is_published:
        return given
    return sensor(given)


def described(kind: Modality) -> dict[str, Any]:
    """What decides a sensor's vectors, as JSON values; for a language embedding its hash."""
    values = {name: getattr(kind, name) for name in _DECISIVE} | {"dated": kind.dates > 1}
    if kind.language is not None:
        values["language"] = f"sha256:{hashlib.sha256(kind.language).hexdigest()}"
    return {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in values.items()
        if value is not None
    }


def _read(path: Path) -> dict[str, Any]:
    """Read a TOML file."""
    try:
        with open_regular(path, OptionError) as file:
            raw = file.read(_MOST_BYTES + 1)
        if len(raw) > _MOST_BYTES:
            raise OptionError(f"larger than {_MOST_BYTES} bytes; expected a description in TOML")
        # Some editors put a byte order mark before UTF-8 text.
        return tomllib.loads(raw.decode("utf-8-sig"))
    except FileNotFoundError as error:
        raise OptionError("no such file; expected a sensor's description in TOML") from error
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        raise OptionError(f"not readable as TOML: {error}") from error


def _modality(given: Mapping[str, Any], folder: Path) -> Modality:
    """Make a modality from fields; paths are relative to a folder."""
    for name in given:
        if name not in FIELDS:
            near = difflib.get_close_matches(str(name), FIELDS, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise OptionError(f"unknown field {name!r:.60}{hint} (known: {', '.join(FIELDS)})")
    missing = [name for name in ("key", "mean", "std", "gsd", "stored_size") if name not in given]
    if "wavelengths" not in given and not {"language", "language_key"} & given.keys():
        missing += ["wavelengths and bandwidths (or, for a variable, language)"]
    if missing:
        raise OptionError(f"it lacks {', '.join(missing)}")
    key = _text(given["key"], "key")
    wavelengths = numbers(given["wavelengths"], "wavelengths") if "wavelengths" in given else None
    bandwidths = numbers(given["bandwidths"], "bandwidths") if "bandwidths" in given else None
    bands = given.get("bands")
    if bands is None and wavelengths is not None:
        bands = [f"{wavelength:g} nm" for wavelength in wavelengths]
    elif bands is None:
        bands = [key]
    # The order of a set differs in every process.
    if isinstance(bands, set | frozenset) or not is_several(bands):
        raise OptionError(f"bands is {bands!r:.60}; expected a list of names")
    bands = tuple(_text(band, "bands") for band in bands)
    language_key = _text(given["language_key"], "language_key") if "language_key" in given else None
    language = None
    if given.get("language") is not None:
        language = language_embedding(given["language"], folder, language_key)
        language_key = language_key or key
    typical = numbers(given.get("typical", Modality.typical), "typical")
    stored_size = whole_number(given["stored_size"], "stored_size", 1, _MOST_PIXELS)
    return Modality(
        key=key,
        title=_text(given.get("title", key), "title"),
        bands=bands,
        gsd=number(given["gsd"], "gsd", ", the side of a pixel in metres"),
        stored_size=stored_size,
        input_size=whole_number(given.get("input_size", stored_size), "input_size", 1),
        kernel=whole_number(given.get("kernel", 16), "kernel", 1),
        # Only published tensors have another: those of Sentinel-2 are whole numbers.
        tensor_dtype="float32",
        dates=2 if flag(given.get("dated", True), "dated") else 1,
        local=flag(given.get("local", False), "local"),
        folders=(_text(given.get("folder", f"{key}/images"), "folder"),),
        wavelengths=wavelengths,
        bandwidths=bandwidths,
        language_key=language_key,
        language=language,
        scale=numbers(given.get("scale", (1.0,) * len(bands)), "scale"),
        mean=numbers(given["mean"], "mean"),
        std=numbers(given["std"], "std"),
        zero_is_missing=flag(given.get("zero_is_missing", False), "zero_is_missing"),
        units=_text(given.get("units", Modality.units), "units"),
        typical=(typical[0], typical[-1]) if len(typical) == 2 else (math.nan, math.nan),
        remedy="see the units and statistics that the sensor is described with",
    )


def _plain(kind: Modality) -> Modality:
    """Return a modality with tuples, to be hashable, and with numbers that JSON can hold."""
    plain: dict[str, Any] = {name: tuple(getattr(kind, name)) for name in _TEXTS}
    for name in _NUMBERS:
        if (value := getattr(kind, name)) is not None:
            plain[name] = numbers(value, name)
    for name in ("stored_size", "input_size", "kernel"):
        plain[name] = whole_number(getattr(kind, name), name, 1)
    if not isinstance(kind.gsd, int):  # as for published ones, in plans too
        plain["gsd"] = number(kind.gsd, "gsd", ", the side of a pixel in metres")
    # Only published tensors of Sentinel-2 are read as whole numbers.
    return replace(kind, tensor_dtype="float32", **plain)


def _text(value: Any, name: str) -> str:
    if not (isinstance(value, str) and value.strip() and value.isprintable()):
        raise OptionError(f"{name} is {value!r:.60}; expected a text")
    return value


def _checked(kind: Modality) -> Modality:
    """Return a sensor after checking that its values fit together and fit the model."""
    if not (isinstance(kind.key, str) and KEY.fullmatch(kind.key)):
        raise OptionError(
            f"key is {kind.key!r:.60}; expected small letters, digits and _, a letter "
            "first and 40 at most, such as 'landsat8'"
        )
    if kind.key in MODALITIES or kind.key == "general":
        raise OptionError(
            f"key {kind.key!r} is that of a published modality; give the sensor its own key"
        )
    if len(set(kind.bands)) < len(kind.bands) or not kind.bands:
        raise OptionError(f"bands are {', '.join(kind.bands)}; expected each once")
    _check_lengths(kind)
    _check_kernel(kind)
    for name in ("mean", "std", "scale"):
        values = getattr(kind, name)
        if not all(map(math.isfinite, values)) or (name != "mean" and 0 in values):
            raise OptionError(f"{name} is {_listed(values)}; expected finite numbers, and no 0")
    # Unlike a scale, which may change a band's sign.
    if min(kind.std) < 0:
        raise OptionError(f"std is {_listed(kind.std)}; expected positive numbers")
    if not 0 < kind.gsd < math.inf:
        raise OptionError(f"gsd is {kind.gsd:g}; expected the side of a pixel in metres")
    if kind.input_size > kind.stored_size or kind.input_size % kind.kernel:
        raise OptionError(
            f"input_size is {kind.input_size} pixels, stored_size {kind.stored_size} and kernel "
            f"{kind.kernel}; expected an input_size that is a multiple of kernel, and at most "
            f"stored_size, such as {kind.stored_size // kind.kernel * kind.kernel}"
        )
    if not kind.typical[0] < kind.typical[1]:
        raise OptionError(
            "typical is not a range; expected its lower and upper end, as in [0, 10000]"
        )
    _check_folders(kind)
    return kind


def _check_lengths(kind: Modality) -> None:
    """Refuse fields with more or fewer values than there are bands."""
    count = len(kind.bands)
    for name in ("wavelengths", "bandwidths", "mean", "std", "scale"):
        values = getattr(kind, name)
        if values is not None and len(values) != count:
            raise OptionError(
                f"{name} has {len(values)} values; expected {count}, one for each of the bands "
                f"{', '.join(kind.bands)}"
            )


def _check_kernel(kind: Modality) -> None:
    """Refuse bands for which the model cannot make a kernel."""
    spectral = kind.wavelengths is not None
    if spectral == (kind.language_key is not None) or spectral != (kind.bandwidths is not None):
        raise OptionError(
            "expected either wavelengths and bandwidths of the bands, or the language embedding "
            "of a variable"
        )
    if not spectral and len(kind.bands) != 1:
        raise OptionError(
            f"{len(kind.bands)} bands and a language embedding; expected one band, the variable: "
            "describe several variables as several sensors"
        )
    if kind.language is not None and len(kind.language) != 4 * LANGUAGE_DIM:
        raise OptionError(f"language has {len(kind.language)} bytes; expected 4 × {LANGUAGE_DIM}")
    for name, least in (("wavelengths", _NM[0]), ("bandwidths", 1.0)):
        wrong = [v for v in getattr(kind, name) or () if not least <= v <= _NM[1]]
        if wrong:
            # Wavelengths of optical sensors in µm are below 100, so the unit can be guessed.
            hint = ": µm times 1000" if 0 < wrong[0] < least else ""
            raise OptionError(
                f"{name} has {wrong[0]:g}; expected nm, {least:g} to {_NM[1]:g}{hint}"
            )


def _check_folders(kind: Modality) -> None:
    """Refuse folders outside the tree, or those of other modalities."""
    for folder in kind.folders:
        parts = folder.split("/")
        if not is_inside(folder) or len(parts) > 3:
            raise OptionError(
                f"folder is {folder!r:.80}; expected a path inside the tree of one to three names, "
                "such as 'landsat8/images'"
            )
        for other in FOLDERS:
            theirs = other.split("/")
            if parts == theirs[: len(parts)] or theirs == parts[: len(theirs)]:
                raise OptionError(
                    f"folder {folder!r} is, or contains, that of a published modality, {other!r}; "
                    "give the sensor its own folder"
                )


def small_tokens(kind: Modality) -> str | None:
    """Return a note if a sensor's tokens are embedded without their area, else None."""
    if not math.isnan(kind.token_area):
        return None
    area = (kind.kernel * kind.gsd / 1000) ** 2
    return (
        f"{kind.title}: a token of {kind.kernel} pixels of {kind.gsd:g} m has {area:.2g} km², but "
        f"the model accepts {AREA[0]:g} to {AREA[1]:g} km²: the area is not given to it"
    )


def _listed(values: Iterable[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)
