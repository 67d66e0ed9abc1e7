"""Which group of a cube an image belongs to: its modality, month, season or year."""

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from copcube.rows import Rows
from copcube.selection import Selection

By = Literal["modality", "month", "season", "year"]

MONTHS = tuple(f"{month:02d}" for month in range(1, 13))
SEASONS = ("DJF", "MAM", "JJA", "SON")


def group_names(by: By | None, selection: Selection, dates: set[str]) -> tuple[str, ...]:
    """Return the names of the groups, in order; none without `by`.

    Parameters
    ----------
    by : {"modality", "month", "season", "year"}, optional
        What makes a group.
    selection : Selection
        What takes part.
    dates : set of str
        All dates of images that do, as YYYYMMDD.
    """
    match by:
        case None:
            return ()
        case "modality":
            return selection.modalities
        case "month":
            return MONTHS
        case "season":
            return SEASONS
        case "year":
            return tuple(sorted({date[:4] for date in dates}))


def groups_of(rows: Rows, by: By | None, groups: tuple[str, ...]) -> NDArray[np.int64]:
    """Return the number of the group of every row, (n,); -1 for none."""
    if by is None:
        return np.zeros(len(rows), np.int64)
    if by == "modality":
        # A modality that is not selected has no group, hence -1.
        position = {key: i for i, key in enumerate(groups)}
        return np.array([position.get(key, -1) for key in rows.labels])[rows.modality]
    # Each date is parsed once, not in every row; December belongs to the winter that follows.
    label = {None: None} | {
        date: {"month": date[4:6], "season": SEASONS[int(date[4:6]) % 12 // 3]}.get(by, date[:4])
        for date in set(rows.date)
        if date is not None
    }
    position_of = {name: i for i, name in enumerate(groups)}
    return np.array([position_of.get(label[date], -1) for date in rows.date], np.int64)
