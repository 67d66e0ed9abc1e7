"""The table of embeddings: one row per image, in memory."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from copcube import grid
from copcube.errors import RowsError
from copcube.modalities import MODALITIES, rank

COLUMNS = ("grid_id_coord", "modality", "local_id_coord", "date", "embedding")
PREFIX = "copcube:"
"""Prefix of the metadata keys that record what made a file."""


@dataclass(frozen=True)
class Rows:
    """Embeddings of n images.

    Parameters
    ----------
    grid_id : numpy.ndarray
        Published cell ids, (n,) int64.
    modality : numpy.ndarray
        Index into `labels`, (n,) int8; -1 where the label was left out.
    local_id, date : numpy.ndarray
        Local patch in its published text form and date YYYYMMDD, (n,) object, str or None.
    embedding : numpy.ndarray
        (n, D) float32; (n, 0) where the vectors were not read.
    labels : tuple of str
        Keys that `modality` counts through: the eight, in the order of
        `copcube.modalities.ORDER`, then those of other sensors by name.
    weight : numpy.ndarray, optional
        How much of each image lies in the cell, (n,) float64; equal by default.
    identity : numpy.ndarray, optional
        What distinguishes images of one cell and modality, (2, n) int64; by default local patch and
        date do.
    source : numpy.ndarray, optional
        Row of the file that each is, ascending, (n,) int64, where one may be in several cells;
        by default each is one of its own.
    """

    grid_id: NDArray[np.int64]
    modality: NDArray[np.int8]
    local_id: NDArray[np.object_]
    date: NDArray[np.object_]
    embedding: NDArray[np.float32]
    labels: tuple[str, ...] = tuple(MODALITIES)
    weight: NDArray[np.float64] | None = None
    identity: NDArray[np.int64] | None = None
    source: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.grid_id)

    @classmethod
    def empty(cls, dim: int) -> Self:
        """Return a table without rows, of vectors of length `dim`."""
        return cls(
            np.empty(0, np.int64),
            np.empty(0, np.int8),
            np.empty(0, object),
            np.empty(0, object),
            np.empty((0, dim), np.float32),
        )

    @cached_property
    def keys(self) -> NDArray[np.int64]:
        """Images as numbers, (4, n) int64: cell, modality, ranks of local patch and date.

        Equal columns are the same image; their lexicographic order is the canonical one.
        """
        within = self.identity
        if within is None:
            within = np.stack([_ranks(self.local_id), _ranks(self.date)])
        return np.stack([self.grid_id, self.modality.astype(np.int64), *within])

    def take(self, index: NDArray[Any] | slice) -> "Rows":
        """Return the rows at some positions, of a mask or of a slice, in that order."""
        if isinstance(index, np.ndarray) and index.dtype == bool and index.all():
            return self
        return Rows(
            self.grid_id[index],
            self.modality[index],
            self.local_id[index],
            self.date[index],
            self.embedding[index],
            labels=self.labels,
            weight=None if self.weight is None else self.weight[index],
            identity=None if self.identity is None else self.identity[:, index],
            source=None if self.source is None else self.source[index],
        )

    def labelled(self, labels: tuple[str, ...]) -> "Rows":
        """Return the same rows, whose modalities are counted through other labels."""
        if labels == self.labels:
            return self
        code = {label: i for i, label in enumerate(labels)}
        codes = np.array([code.get(label, -1) for label in self.labels], np.int8)
        return replace(self, modality=codes[self.modality], labels=labels)

    def sorted(self) -> "Rows":
        """Rows in canonical order: cell, modality, local patch, date, None first; stable."""
        # `lexsort` takes the key that decides first as its last; sorted rows are not copied.
        order = np.lexsort(self.keys[::-1])
        return self if np.array_equal(order, np.arange(len(self))) else self.take(order)

    @classmethod
    def concatenate(cls, parts: "Sequence[Rows]") -> "Rows":
        """Join tables one after another.

        Raises
        ------
        RowsError
            If their vectors have different lengths, they are of different products, or there are
            no tables.
        """
        if not parts:
            raise RowsError("no tables of embeddings to join")
        if len(parts) == 1:
            return parts[0]
        dims = sorted({part.embedding.shape[1] for part in parts})
        if len(dims) > 1:
            raise RowsError(
                f"embeddings of lengths {', '.join(map(str, dims))} cannot be joined; "
                "they come from different encoders"
            )
        weights = [part.weight for part in parts if part.weight is not None]
        identities = [part.identity for part in parts if part.identity is not None]
        if {len(weights), len(identities)} - {0, len(parts)}:
            raise RowsError(
                "rows of images and rows of another product cannot be joined; keep them in "
                "separate folders"
            )
        names = {label for part in parts for label in part.labels}
        parts = [part.labelled(tuple(sorted(names, key=rank))) for part in parts]
        return cls(
            np.concatenate([part.grid_id for part in parts]),
            np.concatenate([part.modality for part in parts]),
            np.concatenate([part.local_id for part in parts]),
            np.concatenate([part.date for part in parts]),
            np.concatenate([part.embedding for part in parts]),
            labels=parts[0].labels,
            weight=np.concatenate(weights) if weights else None,
            identity=np.concatenate(identities, axis=1) if identities else None,
        )


def describe(rows: Rows, i: int) -> str:
    """Name the image of one row for a message."""
    parts = [grid.format_cell(int(rows.grid_id[i])), rows.labels[rows.modality[i]]]
    parts += [str(text) for text in (rows.local_id[i], rows.date[i]) if text is not None]
    return " ".join(parts)


def repeated(keys: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Find what repeats what lies before it.

    Parameters
    ----------
    keys : numpy.ndarray
        (k, n) int64, in an order in which equal columns are neighbours, such as
        `Rows.keys` of sorted rows.

    Returns
    -------
    numpy.ndarray
        (n,) bool, true where a column equals the one before.
    """
    same = np.zeros(keys.shape[1], bool)
    same[1:] = (np.diff(keys) == 0).all(axis=0)
    return same


def _ranks(texts: NDArray[np.object_]) -> NDArray[np.int64]:
    """Return the rank of every text among the distinct ones, from 1; 0 for None."""
    every = texts.tolist()
    # None cannot be compared with texts, so it gets a separate rank.
    rank = {text: i for i, text in enumerate(sorted(set(every) - {None}), 1)} | {None: 0}
    return np.array([rank[text] for text in every], np.int64)
