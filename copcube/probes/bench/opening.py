"""Open the data of a task of Copernicus-Bench, wherever below a folder it was unpacked."""

from pathlib import Path
from typing import get_args

from copcube.arguments import one_path
from copcube.errors import MissingFileError, OptionError
from copcube.probes.bench.layouts.base import Area, Layout
from copcube.probes.bench.layouts.patches import EuroSAT
from copcube.probes.bench.samples import SPLITS, Dataset
from copcube.probes.bench.tasks import Task

_LAYOUTS: dict[str, tuple[type[Layout], str]] = {
    "eurosat-s1": (EuroSAT, "l2_eurosat_s1s2/eurosat_s1"),
    "eurosat-s2": (EuroSAT, "l2_eurosat_s1s2/eurosat_s2"),
}
"""Reader of each task, and the published folder of its data."""


def open_dataset(task: Task, root: str | Path, *, area: Area = "official") -> Dataset:
    """Open the data of a task.

    Parameters
    ----------
    task : Task
        Which task.
    root : str or Path
        Folder of the data set, or one that holds it: as `fetch` writes it or as the official
        script unpacks it.
    area : {"official", "true"}
        Area of a token that the encoder is told: as the official code states it, which
        published scores need, or as it is once the image was resized.

    Raises
    ------
    MissingFileError
        If no list of a split lies where any is expected.
    OptionError
        If an option has a value that it cannot have.
    """
    if area not in get_args(Area):
        raise OptionError(f"area={area!r}; expected 'official' or 'true'")
    kind, folder = _LAYOUTS[task.name]
    top, name = folder.split("/")
    given = Path(one_path(root, "root"))
    places = [given, given / name, given / folder, given / top]
    for place in places:
        found = kind(task, place, area)
        if any(found.list_file(split).is_file() for split in SPLITS):
            return found
    missing = found.list_file("train").name
    raise MissingFileError(
        f"{given}: no data of {task.title}: {missing} lies neither there nor in "
        f"{' or '.join(str(p.relative_to(given)) for p in places[1:])}; bring it by "
        f"`copcube fetch bench {task.name} --to {given}`"
    )
