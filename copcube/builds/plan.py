"""What a build will do: fixed and written once, and compared when the build resumes.

`BuildOptions` holds what a user chose. A `Plan` holds everything that decides the bytes of the
result: the source's fingerprint, the encoder, the options, the batch sizes and the list of
partitions. Its hash names the build, so a receipt of another plan never counts.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from copcube.aggregate import Aggregation, Balance, Survey
from copcube.arguments import flag, one_of, whole_number
from copcube.embedding import Crop, Encoder, Spec, as_encoder
from copcube.embedding.fragments import encoder_of_fragments
from copcube.errors import BuildError, OptionError
from copcube.files.objects import is_remote
from copcube.grouping import By
from copcube.images import Partition, Source, open_source
from copcube.images.sensors import Given, described
from copcube.images.sensors import sensors as describe_sensors
from copcube.images.tensor_form import RESAMPLING
from copcube.images.units import require_offset
from copcube.modalities import MODALITIES, Modality, families, kinds
from copcube.products import tables
from copcube.products.majortom import CoreSource, Fragments, open_core
from copcube.provenance import OR
from copcube.selection import Selection
from copcube.version import __version__

Product = Literal["majortom"]
"""Products other than Copernicus-Embed-025deg that can be made."""

_OBJECTS = ("options", "encoder", "batch_sizes")
"""Parts of a plan that are JSON objects; all others are strings."""

_OF_FILES = {"fingerprint", "partitions"}
"""Parts of a plan that depend on the files of its source, and on no option."""

_UNSAID = {"options.resampling": "bilinear, edges aligned (earlier versions)"}
"""Values that older plans leave out."""


@dataclass(frozen=True)
class BuildOptions:
    """A user's choices about embedding and aggregating; small, and the same for all tasks.

    Parameters
    ----------
    selection : Selection
        Modalities and dates to take.
    encoder : Encoder
        What embeds the images; a `SharedEncoder` if tasks are sent to workers.
    crop : {"center", "full"}
        What part of a stored image is embedded.
    balance : {"modality", "image", "variance"}
        Mean of the modalities' means, or of all images alike.
    by : {"modality", "month", "season", "year"}, optional
        Leading dimension of the cube.
    batch_size : int, optional
        Images per batch; None leaves it to the encoder.
    threads : int, optional
        Decoding threads per partition; None leaves it to the machine.
    strict : bool
        Whether a broken image stops the build.
    s2_offset : int
        What is subtracted from Sentinel-2 counts.
    sensors : tuple of Modality
        Sensors of the selection other than the eight modalities.
    fragments : Fragments, optional
        What to embed of images of Major TOM; None for all other images.

    Raises
    ------
    OptionError
        If `crop`, `balance` or `by` is unknown, a number or flag is invalid, or `s2_offset` is not
        a count.
    """

    selection: Selection
    encoder: Encoder
    crop: Crop = "center"
    balance: Balance = "modality"
    by: By | None = None
    batch_size: int | None = None
    threads: int | None = None
    strict: bool = False
    s2_offset: int = 0
    sensors: tuple[Modality, ...] = ()
    fragments: Fragments | None = None

    def __post_init__(self) -> None:
        _ = self.aggregation  # refuses unknown values
        one_of(self.crop, "crop", get_args(Crop))
        # Plans are JSON, which does not accept NumPy numbers.
        plain = {"s2_offset": require_offset(self.s2_offset), "strict": flag(self.strict, "strict")}
        for name in ("batch_size", "threads"):
            if getattr(self, name) is not None:
                plain[name] = whole_number(getattr(self, name), name, 1)
        for name, value in plain.items():
            object.__setattr__(self, name, value)
        if self.fragments is not None:
            self._require_of_fragments(self.fragments)

    def _require_of_fragments(self, fragments: Fragments) -> None:
        if self.crop != "center":
            raise OptionError(f"crop={self.crop!r} has no effect on fragments, which are whole")
        if fragments.by_cell and self.batch_size is not None:
            raise OptionError(
                "batch_size cannot be chosen: with compat='majortom' a batch is the fragments of a "
                "cell, by which a ResNet50 normalises"
            )
        if self.s2_offset and fragments.modality != "s2_toa":
            raise OptionError(f"s2_offset is for Sentinel-2; these are {fragments.modality}")

    @classmethod
    def of(
        cls,
        modalities: Iterable[str] | str | None = None,
        dates: Any = None,
        encoder: "Encoder | Spec | str | Path | None" = None,
        *,
        sensors: Iterable[Given] | Given | None = None,
        product: Product | None = None,
        **options: Any,
    ) -> "BuildOptions":
        """Make options from the arguments of `copcube.build`, with its defaults.

        Raises
        ------
        OptionError
            If a value is unknown, the dates cannot be read, or a sensor cannot be used.
        """
        if product is not None:
            one_of(product, "product", get_args(Product))
            if modalities is not None or sensors is not None:
                raise OptionError(
                    "modalities and sensors cannot be chosen for Major TOM: the encoder decides"
                )
            chosen, fragments = encoder_of_fragments("ssl4eo-s2" if encoder is None else encoder)
            selection = Selection.of(fragments.modality, dates)
            return cls(selection, chosen, fragments=fragments, **options)
        own = describe_sensors(sensors)
        selection = Selection.of(modalities, dates, [sensor.key for sensor in own])
        own = tuple(sensor for sensor in own if sensor.key in selection.modalities)
        return cls(selection, as_encoder(encoder), sensors=own, **options)

    @property
    def aggregation(self) -> Aggregation:
        """How the rows become cells.

        An image in two partitions counts once.
        """
        return Aggregation(
            balance=self.balance, by=self.by, selection=self.selection, duplicates="drop"
        )

    @property
    def image_sizes(self) -> dict[str, int]:
        """Pixels per side of the images given to the encoder, by modality."""
        if self.fragments is not None:
            return {self.fragments.modality: self.fragments.size}
        known = kinds(self.sensors)
        return {
            key: known[key].input_size if self.crop == "center" else known[key].stored_size
            for key in self.selection.modalities
        }

    def open(self, source: str | Path) -> Source | CoreSource:
        """Open the images to be embedded.

        Raises
        ------
        SourceError
            If nothing is there, or something else is.
        StorageError
            If an object store cannot be reached or denies access.
        """
        if self.fragments is not None:
            return open_core(source, self.fragments)
        return open_source(source, self.sensors)


@dataclass(frozen=True)
class EncoderFacts:
    """What a plan must know about an encoder.

    Parameters
    ----------
    dim : int
        Length of its vectors.
    provenance : dict
        What must be known about the encoder to reproduce its vectors.
    batch_sizes : dict of str to int
        Images per batch, by modality.
    """

    dim: int
    provenance: dict[str, str | int]
    batch_sizes: dict[str, int]


@dataclass(frozen=True)
class Plan:
    """Everything that decides the bytes of a build.

    Parameters
    ----------
    kind : str
        ``build`` (from images) or ``aggregate`` (from rows).
    source : str
        Name of the source, without its folder.
    fingerprint : str
        SHA-256 over the names and sizes of the source's files.
    options : dict
        The options requested, by their names on the command line, as JSON values.
    encoder : dict
        Provenance of the encoder; empty when aggregating.
    batch_sizes : dict
        Images per batch, by modality.
    partitions : str
        SHA-256 over the list of partitions.
    version : str
        Version of copcube that planned it.
    """

    kind: str
    source: str
    fingerprint: str
    options: dict[str, Any]
    encoder: dict[str, str | int]
    batch_sizes: dict[str, int]
    partitions: str
    version: str = __version__

    @classmethod
    def of(cls, value: Any) -> "Plan":
        """Read a plan from JSON.

        Raises
        ------
        TypeError
            If it is something else, or a part of it has the wrong type.
        """
        plan = cls(**value)
        for name, found in vars(plan).items():
            if not isinstance(found, dict if name in _OBJECTS else str):
                raise TypeError(f"{name} is {found!r:.40}")
        return plan

    @property
    def id(self) -> str:
        """SHA-256 over the plan, the name of the build."""
        return digest(asdict(self))

    def refuse_changes(self, asked: "Plan", folder: str) -> None:
        """Raise an error if the requested plan differs from this one, which is under way.

        Raises
        ------
        BuildError
            Naming every key that differs, with both values.
        """
        # A later version may continue a build as long as the options are the same.
        old, new = _flat(asdict(self)), _flat(asdict(replace(asked, version=self.version)))
        differing = [key for key in sorted(old.keys() | new.keys()) if old.get(key) != new.get(key)]
        if not differing:
            return
        if _OF_FILES.issuperset(differing):
            raise BuildError(
                f"{folder} belongs to a build of other files: since it began, names or sizes of "
                f"files of {asked.source} have changed. Restore them to continue it, choose "
                "another output name to keep both, or give --overwrite to discard its result and "
                "start over"
            )
        # Punctuation still separates the entries where a message is shown in one line.
        lines = ";\n".join(
            f"  {key}: was {_short(old.get(key, _UNSAID.get(key)))}, now {_short(new.get(key))}"
            for key in differing
        )
        raise BuildError(
            f"{folder} belongs to a build with other options:\n{lines}.\n"
            "Give the same options to continue it, another output name to keep both, or "
            "--overwrite to discard its result and start over"
        )


def plan_build(
    source: Source | CoreSource, options: BuildOptions, encoder: EncoderFacts
) -> tuple[Plan, list[Partition]]:
    """Plan the build of a cube from a source.

    Returns
    -------
    plan : Plan
    partitions : list of Partition
        One for each task of embedding, in order.
    """
    partitions = source.partitions()
    # Tensors of shards were resized before they were published.
    resized = {"resampling": RESAMPLING} if source.layout == "geotiff" else {}
    own = {sensor.key: described(sensor) for sensor in options.sensors}
    seen: dict[str, Any] = {"crop": options.crop}
    if options.fragments is not None:
        seen = {"product": "majortom", **asdict(options.fragments)}
        seen["bands"] = list(options.fragments.bands)
    plan = Plan(
        kind="build",
        source=_name(source.root),
        fingerprint=source.fingerprint(),
        options=_to_json(options.aggregation)
        | seen
        | {"layout": source.layout}
        | resized
        # Set only if used, so that builds of earlier versions keep their plans.
        | ({"s2_offset": options.s2_offset} if options.s2_offset else {})
        | ({"sensors": own} if own else {}),
        encoder=encoder.provenance,
        batch_sizes={key: options.batch_size or n for key, n in encoder.batch_sizes.items()},
        # asdict would copy every path.
        partitions=digest([vars(partition) for partition in partitions]),
    )
    return plan, partitions


def plan_aggregate(rows: str | Path, files: Sequence[str | Path], aggregation: Aggregation) -> Plan:
    """Plan a cube made from files of rows.

    Parameters
    ----------
    rows : str or Path
        The user's input: a file, a folder or a glob.
    files : sequence of path
        Its files.
    aggregation : Aggregation
        How rows become cells.
    """
    return Plan(
        kind="aggregate",
        source=_name(rows),
        # Names and sizes, not content: that would mean reading all rows.
        fingerprint=digest([(_name(file), tables.size(file)) for file in files]),
        options=_to_json(aggregation),
        encoder={},
        batch_sizes={},
        partitions="",
    )


def cube_attributes(plan: Plan, aggregation: Aggregation, survey: Survey) -> dict[str, str | int]:
    """Attributes of the cube that record what it was made of, and how."""
    selection, made_by = aggregation.selection, dict(survey.provenance)
    crops = made_by.pop("crop", "").split(OR)
    counts = zip(selection.labels, survey.images_by_modality, strict=True)
    there = [key for key, number in counts if number]
    imagery = ", ".join(families(there))
    # Size and statistics of a user's own sensor come from its description.
    said = {"pretraining" if key in MODALITIES else "described" for key in there}
    whose = OR.join(sorted(said, reverse=True))
    cropped = OR.join(_CROPPED[crop] for crop in crops if crop in _CROPPED)
    seen = f"{cropped}, {_GIVEN}".format(whose) if cropped else "unknown: the rows do not say"
    offset = made_by.pop("s2_offset", "0")
    # Nothing is subtracted from other modalities, so their cubes are the same with any offset.
    is_lowered = offset != "0" and "s2_toa" in there
    lowered = f", {offset} subtracted from Sentinel-2 counts" if is_lowered else ""
    dates = f"{selection.start or 'first'} to {selection.end or 'last'}"
    # Whatever another product's vector was made of counts as one modality.
    balance = "image" if "product" in made_by else aggregation.balance
    return {
        # Another product's own title, source and preprocessing take precedence.
        "title": f"{imagery} embeddings on ERA5's 0.25 degree grid",
        "source": f"{imagery} imagery, {plan.source}",
        "preprocessing": f"{seen}{lowered}",
        # Parquet metadata are texts; CF has no booleans, so flags are 0 and 1.
        **{key: int(text) if text in ("0", "1") else text for key, text in made_by.items()},
        "source_fingerprint": plan.fingerprint,
        "aggregation": f"mean over {_BALANCE[balance]}",
        "aggregation_by": aggregation.by or "none",
        "modalities": " ".join(there),
        "dates": dates if selection.start or selection.end else "all",
        "history": f"copcube {plan.version} {plan.kind} {plan.source}",
        "copcube_version": plan.version,
        "copcube_plan": plan.id,
    }


def digest(value: Any) -> str:
    """SHA-256 of a value as JSON with sorted keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


_BALANCE = {
    "modality": "the means of the modalities",
    "image": "all images alike",
    "variance": "the means of the modalities, each scaled about its mean over cells so that all "
    "have the same variance over cells",
}
_GIVEN = "normalised with {0} statistics, metadata (lon, lat, date, token area) given"
_CROPPED = {"center": "centre crop to the {0} size", "full": "whole stored image"}


def _to_json(aggregation: Aggregation) -> dict[str, Any]:
    """Return the options of aggregating in the form of a plan, whose hash they decide."""
    return {
        "modalities": list(aggregation.selection.modalities),
        "start": aggregation.selection.start,
        "end": aggregation.selection.end,
        "balance": aggregation.balance,
        "by": aggregation.by,
        # Set only if used, so that what was made from rows of images keeps its plan.
        **({"assign": aggregation.assign} if aggregation.assign != "centre" else {}),
        **({"footprints": aggregation.footprints} if aggregation.footprints != "auto" else {}),
    }


def _name(path: str | Path) -> str:
    """Last part of a path or URL, since a source that was moved is the same source."""
    text = str(path)
    if not is_remote(text):
        text = os.path.abspath(text)  # "." has a name too
    return text.rstrip("/").rpartition("/")[2]


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, item in value.items():
        if isinstance(item, Mapping):
            flat |= _flat(item, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = list(item) if isinstance(item, tuple) else item
    return flat


def _short(value: Any) -> str:
    text = "nothing" if value is None else str(value)
    return text if len(text) <= 60 else f"{text[:16]}…"
