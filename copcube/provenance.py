"""The origin of the vectors of several files, and whether they may be averaged together."""

from collections.abc import Mapping, Sequence

from copcube.errors import RowsError
from copcube.modalities import MODALITIES, SENSOR
from copcube.products import tables
from copcube.products.pixels import day_of
from copcube.products.tables import Assign, Position
from copcube.selection import Selection

ENCODER = ("encoder", "encoder_sha256", "encoder_pooling", "encoder_language_sha256", "compat")
"""Attributes of an encoder, in rows and cubes, that decide its vectors."""

OR = " or "
"""Separator between crops or offsets that differ between files."""


def of_all(
    files: Sequence[str], selection: Selection, assign: Assign, position: Position
) -> tuple[int, dict[str, str]]:
    """Find the length of all vectors, and what all files record about their origin.

    Parameters
    ----------
    files : sequence of str
        Rows of images, or files of one other product.
    selection : Selection
        Modalities and dates to include; descriptions of its sensors are kept.
    assign, position
        As `copcube.products.tables.provenance`.

    Raises
    ------
    RowsError
        If they hold different things, vectors of different lengths or encoders, or images of
        different sensors of one name.
    """
    others = [file for file in files if tables.is_product(file)]
    if others and (images := set(files) - set(others)):
        held = (
            "one vector per pixel" if tables.is_of_pixels(others[0]) else "embeddings of Major TOM"
        )
        raise RowsError(
            f"{others[0]} holds {held}, {min(images)} rows of images; keep them in separate "
            "folders and aggregate one at a time"
        )
    so = "aggregate the rows of one encoder at a time"
    dim, made = of_one_encoder(files, so, assign, position)
    provenance = {key: text for key, text in shared(made).items() if not key.startswith(SENSOR)}
    provenance |= _sensors(made, selection)
    dated = (made[file].get("product_years", "") for file in others if tables.is_of_pixels(file))
    years = {year for text in dated for year in text.split()}
    if chosen := [year for year in sorted(years) if selection.admits(day_of(int(year)))]:
        provenance["product_years"] = " ".join(chosen)
    return dim, dict(sorted(provenance.items()))


def of_one_encoder(
    files: Sequence[str], so: str, assign: Assign = "centre", position: Position = "auto"
) -> tuple[int, dict[str, dict[str, str]]]:
    """Find the length of all vectors, 0 if there are none, and what each file says of its own.

    Parameters
    ----------
    files, assign, position
        As of `of_all`.
    so : str
        What to do if the vectors are those of several encoders.

    Raises
    ------
    RowsError
        If they are.
    """
    dims = {file: dim for file in files if (dim := tables.embedding_length(file))}
    made = {file: tables.provenance(file, assign, position) for file in files}
    for file, dim in dims.items():
        if dim != dims[min(dims)]:
            raise RowsError(
                f"{min(dims)} holds embeddings of length {dims[min(dims)]}, {file} of length "
                f"{dim}; {so}"
            )
    known = {file: what for file, what in made.items() if what}
    for file, what in known.items():
        for key in ENCODER:
            ours, theirs = known[min(known)].get(key), what.get(key)
            if ours != theirs:
                raise RowsError(
                    f"{min(known)} and {file} come from different encoders ({key}: {ours} and "
                    f"{theirs}); {so}"
                )
    return dims[min(dims)] if dims else 0, made


def shared(made: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    """Facts about the origin of vectors on which several files agree.

    Crops, offsets and preprocessing that differ, as of scenes of both baselines, whose counts
    were thus made alike, are all named: "0 or 1000". All vectors count as synthetic, or as those
    of an untrained encoder, if one file says so.
    """
    if not made:
        return {}
    common = dict(set.intersection(*(set(what.items()) for what in made.values())))
    known = [what for what in made.values() if what]
    several = {key: {w[key] for w in known if key in w} for key in ("crop", "preprocessing")}
    several["s2_offset"] = {what.get("s2_offset", "0") for what in known}
    for key, values in several.items():
        if len(values) > 1:
            # Texts, since other people's files may not hold numbers; of numbers the smallest first.
            common[key] = OR.join(
                sorted(values, key=lambda text: (text.isdigit() * len(text), text))
            )
    if any(what.get("encoder_trained") == "0" for what in known):
        common["encoder_trained"] = "0"
    if synthetic := sorted({what["synthetic"] for what in known if "synthetic" in what}):
        common["synthetic"] = OR.join(synthetic)
    return dict(sorted(common.items()))


def _sensors(known: Mapping[str, Mapping[str, str]], selection: Selection) -> dict[str, str]:
    """Descriptions of the selected sensors other than modalities, from the origin of each file."""
    found: dict[str, str] = {}
    for name in (SENSOR + key for key in selection.modalities if key not in MODALITIES):
        texts: dict[str, str] = {}
        for file, what in known.items():
            if name in what:
                texts.setdefault(what[name], file)
        if len(texts) > 1:
            first, second = sorted(texts.values())[:2]
            raise RowsError(
                f"{first} and {second} hold images of different sensors named "
                f"{name.removeprefix(SENSOR)!r}; give the sensors different keys, or aggregate "
                "the rows of one of them"
            )
        if texts:
            (found[name],) = texts
    return found
