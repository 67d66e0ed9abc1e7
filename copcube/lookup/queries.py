"""Vectors to search for: of an image, by the encoder of the vectors searched, or of a text.

The attributes of rows and cubes name that encoder. It gets the image as in a build, so that an
image of the build's source finds itself.
"""

import json
import logging
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from copcube.embedding.encoders import Encoder, Spec, as_encoder
from copcube.errors import (
    CopcubeError,
    FetchError,
    ImageError,
    MissingPackageError,
    OptionError,
    in_a_line,
)
from copcube.files.limits import rule_out_shortage
from copcube.hub.published import CHECKPOINTS
from copcube.images import Partition, Rejected
from copcube.images.naming import folder_of, folders_of, from_path
from copcube.images.sensors import Given, described, modality_of
from copcube.images.units import without_offset
from copcube.modalities import MODALITIES, SENSOR, Modality
from copcube.products.majortom import CoreSource, Fragments
from copcube.products.majortom.bands import as_pixels
from copcube.products.majortom.grid import PIXEL
from copcube.provenance import ENCODER, OR
from copcube.selection import Selection

if TYPE_CHECKING:
    import xarray as xr

    from copcube.images.raster import Stored

log = logging.getLogger("copcube")

EncoderLike = Encoder | Spec | str | Path | None

SIGLIP = "hf-hub:timm/ViT-SO400M-14-SigLIP-384"
"""Model of open_clip whose image tower made Major TOM's SigLIP embeddings."""

_SETS = {"Core-S2RGB-SigLIP": "siglip"}
"""Encoder by the name of a released set of Major TOM, if the name is enough. Other encoders
depend on `copcube.TimmSpec`'s compat, which the released files do not record."""

_NEAR = 0.05
"""Share by which the pixel size of an image may differ from 10 m."""


def image_vector(
    image: "str | Path | xr.DataArray",
    made_by: Mapping[str, Any],
    dim: int,
    *,
    modality: Given | None = None,
    date: Any = None,
    encoder: EncoderLike = None,
) -> NDArray[np.float32]:
    """Embed an image by the encoder that made other vectors.

    Parameters
    ----------
    image : str, Path or xarray.DataArray
        A GeoTIFF, read as in a build, or one image as `copcube.embed` takes it. If it is larger
        than the encoder's input, its middle is used. For the encoders of Major TOM also the folder
        of a product in the downloader's tree, ``ROW/CELL/PRODUCT``, with one file per band.
    made_by : mapping
        How they were made, as `copcube.rows.read_provenance` returns it. Attributes of a cube name
        only the encoder, not crop or offset.
    dim : int
        Their length.
    modality, date : optional
        What the image shows and when it was taken, as in `copcube.embed`; for Copernicus-FM. The
        path of a GeoTIFF in a tree of Copernicus-Pretrain gives both.
    encoder : Encoder, Spec, str or Path, optional
        The encoder, or a file of its weights; by default what `made_by` names.

    Returns
    -------
    numpy.ndarray
        (dim,).

    Raises
    ------
    OptionError
        If no encoder is named or known, a different one is given, or the image does not fit it.
    ImageError
        If the image cannot be read, or has no valid pixel.
    FetchError, WeightsError
        If the weights cannot be obtained.
    """
    model = encoder_of(made_by, dim, encoder)
    fragments = _fragments(model)
    if fragments is None:
        vector = _of_copernicus(image, made_by, model, modality, date)
    elif modality is not None or date is not None:
        raise OptionError(
            f"modality and date have no effect on {model.provenance['encoder']}, which sees only "
            "pixels"
        )
    else:
        vector = _of_fragment(image, made_by, model, fragments)
    if not np.isfinite(vector).all():
        raise ImageError(f"{_name(image)}: no valid pixel in what the encoder sees")
    return vector


def encoder_of(made_by: Mapping[str, Any], dim: int, given: EncoderLike = None) -> Encoder:
    """Encoder that vectors name as theirs; or a given one, if it is the same.

    Parameters are those of `image_vector`.

    Raises
    ------
    OptionError
        If none is named or known, or a different one is given.
    FetchError, WeightsError
        If the weights cannot be obtained.
    """
    if given is None or isinstance(given, str | Path):
        given = _spec(made_by, given)
    model = as_encoder(given)
    if model.dim != dim:
        raise OptionError(
            f"{model.provenance.get('encoder', 'the encoder')} makes vectors of {model.dim}; those "
            f"searched have {dim}: give the encoder that made them"
        )
    for key in ENCODER:
        ours, theirs = str(model.provenance.get(key, "")), str(made_by.get(key, ""))
        # Attributes that are not given cannot differ: names of sets, weights without language.
        if theirs and ours and ours != theirs and "encoder_sha256" in made_by:
            raise OptionError(
                f"the vectors searched come from a different encoder ({key}: {theirs}; the one "
                f"given has {ours}); give the encoder that made them"
            )
    return model


def _spec(made_by: Mapping[str, Any], weights: str | Path | None) -> Any:
    """Describe the encoder that made vectors, possibly with a copy of its weights."""
    from copcube.encoder.spec import EncoderSpec
    from copcube.encoder.timm_kinds import KINDS, TimmSpec

    said, dtype = str(made_by.get("encoder", "")), str(made_by.get("encoder_dtype", "float32"))
    if not said:
        raise OptionError(
            "the vectors searched do not say which encoder made them: give it as encoder=, or "
            "search by vector"
        )
    name = next((n for n, kind in KINDS.items() if kind.title == said), _SETS.get(said))
    if name is None and not said.startswith("Copernicus-FM"):
        raise OptionError(
            f"the vectors searched were made by {said:.80}, an encoder that copcube does not know: "
            "give it as encoder=, or search by vector"
        )
    path = _weights(made_by) if weights is None else os.fspath(weights)
    if name is None:
        return EncoderSpec(path, pooling=made_by.get("encoder_pooling"), dtype=dtype)
    compatible = made_by.get("compat") == "majortom"
    return TimmSpec(name, path, dtype=dtype, compat="majortom" if compatible else None)


def _weights(made_by: Mapping[str, Any]) -> str:
    """Name of published or meaningless weights, in the form of an option."""
    if made_by["encoder"] in _SETS:
        return "hub"
    if not (said := str(made_by.get("encoder_weights", ""))):
        raise OptionError(
            "the vectors searched do not all come from the same weights; search those of one "
            "encoder at a time"
        )
    if said.startswith("untrained:"):
        return said
    if not said.startswith("hf://"):
        raise OptionError(
            f"the vectors searched were made with weights from a file {said:.80}: give its path as "
            "encoder= (--weights PATH)"
        )
    sizes = CHECKPOINTS.items()
    return next((n for n, f in sizes if f"/{f.repo}@" in said and said.endswith(f.path)), "hub")


def _fragments(model: Encoder) -> Fragments | None:
    """What an encoder of Major TOM sees; None for other encoders."""
    from copcube.embedding.fragments import encoder_of_fragments
    from copcube.encoder.timm_kinds import TimmSpec

    of_fragments = isinstance(getattr(model, "spec", None), TimmSpec)
    return encoder_of_fragments(model)[1] if of_fragments else None


def _offset(made_by: Mapping[str, Any], image: Any) -> int:
    """What was subtracted from Sentinel-2 counts."""
    found = _first(made_by, "s2_offset", "0", image)
    try:
        return int(found)
    except ValueError:
        raise OptionError(
            f"{_name(image)}: the s2_offset of the vectors searched is {found!r:.60}; expected a "
            "number: embed the image with copcube.embed, and search by its vector"
        ) from None


def _first(made_by: Mapping[str, Any], key: str, default: str, image: Any) -> str:
    """What the vectors were made with; of several values the first, with a warning."""
    said = str(made_by.get(key, default))
    first, *others = said.split(OR)
    if others:
        log.warning(
            "%s: the vectors searched were made with different values of %s (%s), the image's with "
            "%s; for another value, search only the rows made with it",
            *(_name(image), key, said, first),
        )
    return first


def _name(image: Any) -> str:
    return str(image) if isinstance(image, str | os.PathLike) else "the image"


# Copernicus-FM.


def _of_copernicus(
    image: "str | Path | xr.DataArray",
    made_by: Mapping[str, Any],
    model: Encoder,
    modality: Given | None,
    date: Any,
) -> NDArray[np.float32]:
    from copcube.embedding.tiles import embed

    kind = None if modality is None else modality_of(modality)
    if kind is not None:
        _require_sensor(kind, made_by.get(SENSOR + kind.key))
    crop = _first(made_by, "crop", "center", image)
    if isinstance(image, str | os.PathLike) and date is None:
        found = _in_tree(os.fspath(image), model, kind, crop, made_by)
        if found is not None:
            return found
    if kind is None:
        raise OptionError(
            f"{_name(image)}: its modality is not known; give modality=, one of "
            f"{', '.join(MODALITIES)}, or a description of another sensor"
        )
    size = kind.input_size if crop == "center" else kind.stored_size
    if isinstance(image, str | Path):
        stored = _stored(image, kind, size)
        with _naming(image):
            middle = _placed(stored.of(kind), stored)
    else:
        middle = _middle(image, kind, size)
    offset = _offset(made_by, image) if kind.key == "s2_toa" else 0
    made = embed(middle, kind, tile=size, date=date, encoder=model, s2_offset=offset)
    return np.asarray(made.values.reshape(-1), np.float32)


def _require_sensor(kind: Modality, said: str | None) -> None:
    """Check that a sensor is that of the rows, if they describe one with its key."""
    if said is not None and said != json.dumps(described(kind), sort_keys=True):
        raise OptionError(
            f"the sensor {kind.key!r} is not that of the vectors searched; give the description "
            f"they were built with, which is in their metadata as {SENSOR}{kind.key}"
        )


def _in_tree(
    path: str, model: Encoder, kind: Modality | None, crop: Any, made_by: Mapping[str, Any]
) -> NDArray[np.float32] | None:
    """Embed a file of a tree of Copernicus-Pretrain as a build does; None for other files."""
    from copcube.embedding.partition import embed_partition
    from copcube.images.geotiff import GeoTiffSource

    own = () if kind is None or kind.is_published else (kind,)
    parts = os.path.abspath(path).split(os.sep)
    folders = folders_of(own)
    inside = ("/".join(parts[i:]) for i in range(1, len(parts)))
    name = next((name for name in inside if folder_of(name, folders)), None)
    try:
        file = from_path(name or "", folders)
    except CopcubeError:
        return None
    if kind is not None and kind.key != file.modality:
        raise OptionError(f"{path} is of {file.modality} according to its path, not of {kind.key}")
    root = os.path.abspath(path).removesuffix(str(name)).rstrip("/")
    rows, report = embed_partition(
        GeoTiffSource(root, None, own),
        Partition("image", (str(name),)),
        model,
        selection=Selection.of(file.modality, others=[one.key for one in own]),
        batch_sizes={file.modality: 1},
        sensors=own,
        crop=crop,
        s2_offset=_offset(made_by, path) if file.modality == "s2_toa" else 0,
    )
    if not len(rows):
        raise ImageError(f"{path}: {report.rejected[0].reason}")
    return np.asarray(rows.embedding[0])


def _stored(path: str | Path, sensor: Modality, size: int) -> "Stored":
    """Read a square from the middle of a GeoTIFF from anywhere.

    Raises
    ------
    ImageError
        If it does not exist, is not a readable GeoTIFF, or is not of that sensor.
    OptionError
        If it is smaller than that, or its bands are not understood.
    """
    from rasterio.errors import NotGeoreferencedWarning, RasterioError

    from copcube.images.raster import opened_file, places_of, read

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            with opened_file(path) as raster, _naming(path):
                return read(raster, places_of(raster, sensor), sensor, size)
    except RasterioError as error:
        rule_out_shortage(error)
        raise ImageError(f"{path}: not a readable GeoTIFF ({in_a_line(error)})") from error


@contextmanager
def _naming(path: str | Path) -> Iterator[None]:
    """Name the file in errors about its content."""
    try:
        yield
    except (ImageError, OptionError) as error:
        raise type(error)(f"{path}: {error}") from error


def _placed(pixels: NDArray[Any], stored: "Stored") -> "xr.DataArray":
    """Pixels (bands, rows, columns) as an image with coordinates."""
    import rioxarray  # noqa: F401  (registers .rio)
    import xarray as xr

    coordinates = {} if stored.y is None or stored.x is None else {"y": stored.y, "x": stored.x}
    images = xr.DataArray(pixels, dims=("band", "y", "x"), coords=coordinates)
    return images if stored.crs is None else images.rio.write_crs(stored.crs)


def _middle(images: "xr.DataArray", sensor: Modality, size: int) -> "xr.DataArray":
    """Cut a square out of the middle of one image; (y, x, band), bands in order, north up."""
    from copcube.embedding.axes import arranged

    try:
        whole = arranged(images, sensor)
    except OptionError as error:
        raise OptionError(f"the image: {error}") from error
    rows, cols = whole.shape[-3:-1]
    if whole.ndim != 3 or min(rows, cols) < size:
        raise OptionError(
            f"the image has the shape {images.shape}; expected one image of at least {size} × "
            f"{size} pixels, which the encoder sees"
        )
    y, x = ((side - size) // 2 for side in (rows, cols))
    return whole[y : y + size, x : x + size].compute()


# The encoders of Major TOM.


def _of_fragment(
    image: "str | Path | xr.DataArray",
    made_by: Mapping[str, Any],
    model: Encoder,
    fragments: Fragments,
) -> NDArray[np.float32]:
    """Embed the fragment in the middle of an image."""
    offset = _offset(made_by, image)
    if isinstance(image, str | os.PathLike) and os.path.isdir(image):
        pixels, middle = _of_product(Path(image), fragments)
    elif fragments.by_cell:
        raise OptionError(
            "the vectors searched depend on all fragments of a cell (compat majortom): give the "
            "folder of a product with one file per band, ROW/CELL/PRODUCT"
        )
    else:
        pixels, middle = [_fragment(image, fragments)], 0
    if not fragments.by_cell:
        pixels, middle = [pixels[middle]], 0
    pixels = [without_offset(some, offset) for some in pixels]
    made = model(fragments.modality, pixels, np.full((len(pixels), 4), np.nan))
    return np.asarray(made[middle])


def _of_product(folder: Path, fragments: Fragments) -> tuple[list[NDArray[Any]], int]:
    """Fragments of a product in the downloader's tree, and which is in the middle."""
    folder = folder.absolute()
    source = CoreSource(str(folder.parents[2]), "tree", fragments)
    partition = Partition("image", ("/".join(folder.parts[-3:]),))
    for job in source.jobs(partition, Selection.of(fragments.modality)):
        found = [job] if isinstance(job, Rejected) else job()
        for sample in found:
            if not isinstance(sample, Rejected) and sample.pixels:
                box = sample.rows.box
                away = np.abs(box[:, :2] + box[:, 2:] - (box.min() + box.max())).sum(axis=1)
                return sample.pixels, int(np.argmin(away))
        why = next(item.reason for item in found if isinstance(item, Rejected))
        raise ImageError(
            f"{folder}: {why}; expected the folder of a product of Major TOM, ROW/CELL/PRODUCT, "
            f"with one file per band: {', '.join(fragments.bands)}"
        )
    raise AssertionError("a partition of one path has one job")


def _fragment(image: "str | Path | xr.DataArray", fragments: Fragments) -> NDArray[Any]:
    """Fragment from the middle of an image with pixels of 10 m."""
    from copcube.embedding.georeference import Georeference

    # In Major TOM band 2 is B02, elsewhere B2.
    bands = tuple(band.replace("B0", "B") for band in fragments.bands)
    sensor = replace(MODALITIES[fragments.modality], bands=bands)
    if isinstance(image, str | Path):
        stored = _stored(image, sensor, fragments.size)
        middle, missing = _placed(stored.pixels, stored), stored.missing
    else:
        middle = _middle(image, sensor, fragments.size)
        middle = middle.transpose(middle.dims[-1], *middle.dims[:-1])
        nodata = image.rio.nodata
        missing = None if nodata is None else middle.values == nodata
    where = Georeference.of(middle, *middle.dims[-2:])
    step = PIXEL if where is None else float(where.pixel_size(fragments.size)[0, 0])
    if abs(step / PIXEL - 1) > _NEAR:
        raise OptionError(
            f"{_name(image)}: its pixels are {step:.3g} m; the encoder was trained on pixels of "
            f"{PIXEL:g} m: resample it first"
        )
    return as_pixels(middle.values, missing)


def text_vector(text: str, dim: int) -> NDArray[np.float32]:
    """SigLIP's vector of a text, of length 1.

    Raises
    ------
    MissingPackageError
        If open_clip or its tokenizer is not installed.
    OptionError
        If vectors of this length are not SigLIP's.
    FetchError
        If SigLIP's weights cannot be obtained.
    """
    if dim != 1152:
        raise OptionError(
            f"SigLIP embeds texts in 1152 values; these vectors have {dim}. Search embeddings by "
            "SigLIP, or give a place, a row or a vector"
        )
    try:
        import open_clip  # type: ignore[import-not-found]

        # This loads transformers, which open_clip does not install.
        words = open_clip.get_tokenizer(SIGLIP)([text])
    except ImportError as error:
        raise MissingPackageError(
            "queries by text need open_clip and SigLIP's weights: "
            f"pip install open_clip_torch 'transformers[sentencepiece]' ({error})"
        ) from None
    try:
        model = open_clip.create_model(SIGLIP).eval()
    except (RuntimeError, OSError) as error:  # for any reason, its files cannot be fetched
        raise FetchError(
            f"SigLIP, which embeds texts, cannot be loaded: {in_a_line(error)}"
        ) from error
    found = model.encode_text(words, normalize=True)
    return np.asarray(found.detach().numpy()[0], np.float32)
