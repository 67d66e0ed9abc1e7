"""Writing the file that a model reads, by the model's name."""

import hashlib
import inspect
import json
import logging
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from copcube.arguments import one_path
from copcube.errors import OptionError
from copcube.files.damage import naming_damage
from copcube.interchange.metadata import KEY
from copcube.interchange.replacing import appearing, require_free, require_free_store
from copcube.models import (
    aifs,
    anemoi,
    aurora,
    graphcast,
    makani,
    neural_lam,
    neuralgcm,
    pangu,
    weathergenerator,
)
from copcube.models.components import Components, static_fields
from copcube.models.fields import Fields
from copcube.models.form import Form

if TYPE_CHECKING:
    import xarray as xr

log = logging.getLogger("copcube")

FORMS: dict[str, dict[str, Form]] = {
    "makani": makani.FORMS,
    "aurora": aurora.FORMS,
    "graphcast": graphcast.FORMS,
    "weathernext": graphcast.FORMS,
    "pangu": pangu.FORMS,
    "aifs": aifs.FORMS,
    "anemoi": anemoi.FORMS,
    "neuralgcm": neuralgcm.FORMS,
    "neural-lam": neural_lam.FORMS,
    "weathergenerator": weathergenerator.FORMS,
}
"""Models by name, and the forms of each by the ending of the file."""


@dataclass(frozen=True)
class Written:
    """What was written for a model.

    Parameters
    ----------
    path : Path
        The file that the model reads.
    beside : tuple of Path
        Further files: its description, or statistics.
    model : str
        Name of the model.
    channels : tuple of str
        Names in the order of the file.
    cells : int
        Places with a vector.
    """

    path: Path
    beside: tuple[Path, ...]
    model: str
    channels: tuple[str, ...]
    cells: int

    def __str__(self) -> str:
        further = f", with {', '.join(path.name for path in self.beside)}" if self.beside else ""
        return (
            f"{self.path}: {len(self.channels)} channels for {self.model}, "
            f"{self.cells:,} places with a vector{further}"
        )


@naming_damage()
def write(
    ds: "xr.Dataset",
    path: str | Path,
    model: str,
    k: int = 8,
    *,
    statics: "xr.Dataset | str | Path | None" = None,
    overwrite: bool = False,
    **options: Any,
) -> Written:
    """Write the components of a cube as static fields, in the form that a weather model reads.

    Components are standardised on the places that hold a vector, weighted by area; a missing one is
    0, the mean. The channels are called ``copembed_00``… , and ``copembed_mask`` says where there
    are vectors.

    Parameters
    ----------
    ds : xarray.Dataset
        A reduction, of which the first `k` components are taken, or a cube, which is reduced.
    path : str or Path
        File or Zarr folder to write, atomically; its extension is that of the model's format.
    model : str
        One of `FORMS`.
    k : int
        Number of components.
    statics : xarray.Dataset, str or Path, optional
        ERA5's fields, as `copcube.era5.open_static` opens them, or their file: the model's own
        static fields are taken from them and stand before the components.
    overwrite : bool
        Replace what copcube wrote there.
    **options
        ``rows`` of makani and aurora: 721, or 720 without the south pole. ``grid`` of neuralgcm:
        TL63, TL127, TL255, …; of neural-lam: a dataset or file with latitude and longitude of
        every point. ``stations`` of weathergenerator: a table with lat and lon.

    Returns
    -------
    Written
        What was written.

    Raises
    ------
    CubeError, GridError
        If the dataset is not a cube or reduction on the lattice, without groups; if a static field
        is missing or has gaps.
    OptionError
        If there is no such model, extension or option; if `k` is more than there are components, or
        than the model takes.
    WriteError
        If something is there already, or it cannot be written.

    Examples
    --------
    >>> from copcube import models
    >>> models.write(fields, "invariants.h5", "makani", k=8)  # doctest: +SKIP
    """
    form = _form(path, model, k, options, statics is not None)
    free = require_free_store if form.folder else require_free
    out = Path(path)
    endings = {**form.beside} if form.described else {**form.beside, ".json": None}
    beside = {_named(out, ending): ending for ending in endings}
    for name in (out, *beside):
        free(name, overwrite, ds, statics, *options.values())
    own = {} if form.statics is None or statics is None else form.statics(static_fields(statics))
    fields = form.place(Components.of(ds, k), own, **options)
    with ExitStack() as stack:
        # Left in reverse order: the file that the model reads comes last.
        temporary = stack.enter_context(appearing(out, overwrite, ds, folder=form.folder))
        form.write(fields, temporary)
        for name, ending in beside.items():
            further = stack.enter_context(appearing(name, overwrite, ds))
            if ending in form.beside:
                form.beside[ending](fields, further)
            else:
                further.write_text(_description(fields, model, temporary), encoding="utf-8")
        for name in (out, *beside):
            free(name, overwrite, ds)  # again: something may have appeared there meanwhile
    # Of eight components and the mask, makani's switch takes the eight.
    channels = tuple(fields.channels)[: form.most]
    written = Written(out, tuple(beside), model, channels, int((fields.mask > 0).sum()))
    log.info("%s", written)
    return written


def _form(path: str | Path, model: str, k: int, options: dict[str, Any], statics: bool) -> Form:
    """Check the arguments before anything is read."""
    forms = FORMS.get(model) if isinstance(model, str) else None
    if forms is None:
        raise OptionError(f"unknown model {model!r}; expected {', '.join(FORMS)}")
    suffix = Path(one_path(path, "output")).suffix.lower()
    if suffix not in forms:
        raise OptionError(f"{path}: {model} reads {' or '.join(forms)}; choose such a name")
    form = forms[suffix]
    # The first two parameters are the components and the static fields, which are not options.
    known = [name for name in inspect.signature(form.place).parameters][2:]
    if unknown := [name for name in options if name not in known]:
        raise OptionError(
            f"{suffix} files for {model} have no option {', '.join(unknown)}; expected "
            f"{', '.join(known) or 'none'}"
        )
    if statics and form.statics is None:
        raise OptionError(
            f"{suffix} files for {model} do not hold the model's static fields; leave statics out"
        )
    if form.most is not None and k not in (form.most, form.most - 1):
        raise OptionError(
            f"k={k}; {suffix} files for {model} have {form.most} channels: {form.most} components, "
            f"or {form.most - 1} and the mask"
            + (f"; {others} takes any number" if (others := _others(forms, suffix)) else "")
        )
    return form


def _others(forms: dict[str, Form], suffix: str) -> str:
    return " or ".join(s for s, form in forms.items() if s != suffix and form.most is None)


def _named(path: Path, ending: str) -> Path:
    """Name of a file beside one: .json is added, other endings take the place of the suffix."""
    return path.with_name((path.name if ending == ".json" else path.stem) + ending)


def _description(fields: Fields, model: str, file: Path) -> str:
    """JSON text beside a file that has no room for one."""
    with open(file, "rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    latitudes = [float(fields.lat[0]), float(fields.lat[-1])]
    longitudes = [float(fields.lon[0]), float(fields.lon[-1])]
    places = {"latitudes": latitudes, "longitudes": longitudes, "shape": fields.mask.shape}
    text = fields.description(model=model, sha256=digest, **places)
    return json.dumps({KEY: text}, indent=1, sort_keys=True) + "\n"
