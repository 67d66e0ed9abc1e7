"""What a climate is predicted from: names of inputs, and their columns of one table."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from copcube.errors import OptionError
from copcube.grid import Floats
from copcube.probes import coordinates

_KINDS = ("embedding", "pc", "given", "lonlat", "fourier", "xyz", "harmonics")
"""Parts in their order in a name and in the table."""
_DEGREE = 10
"""Default degree of harmonics: 120 functions."""

COMPONENTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
"""Numbers of components that are tried by default, up to the length of the vectors."""


@dataclass(frozen=True)
class Input:
    """Something to predict from, made of parts side by side.

    Parameters
    ----------
    parts : tuple of str
        Such as ``("pc16", "given")``.
    components : int
        The k of its principal components; 0 if it has none.
    """

    parts: tuple[str, ...]
    components: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a name: parts with ``+`` between them, in any order.

        Raises
        ------
        OptionError
            If a part is unknown or repeated.

        Examples
        --------
        >>> str(Input.parse("harmonics+pc16"))
        'pc16+harmonics10'
        """
        kinds: dict[str, str] = {}
        components = 0
        for part in str(text).split("+"):
            match = re.fullmatch(r"([a-z]+)(\d*)", part.strip())
            kind, number = match.groups() if match else ("", "")
            numbered = kind in ("pc", "harmonics")
            if kind == "harmonics" and not number:
                number = str(_DEGREE)
            right = kind in _KINDS and bool(number) == numbered and kind not in kinds
            if not right or (numbered and int(number) < 1):
                raise OptionError(
                    f"input {text!r}; expected embedding, pc16 (that many components), given, "
                    "lonlat, fourier, xyz or harmonics10 (up to that degree), or several of them "
                    "joined with +, each once"
                )
            kinds[kind] = f"{kind}{number}"
            components = int(number) if kind == "pc" else components
        return cls(tuple(kinds[kind] for kind in _KINDS if kind in kinds), components)

    def __str__(self) -> str:
        return "+".join(self.parts)

    @property
    def reads_vectors(self) -> bool:
        """Whether it needs the vectors of the cube."""
        return self.components > 0 or "embedding" in self.parts


def usual(*, given: bool, k: Sequence[int]) -> tuple[str, ...]:
    """Names of the inputs that are compared by default."""
    names = ["lonlat", "fourier", "xyz", "harmonics", "embedding", "embedding+fourier"]
    names += ["given", "embedding+given"] if given else []
    names += [f"pc{n}" for n in k]
    return tuple(names + ([f"pc{n}+given" for n in k] if given else []))


@dataclass(frozen=True, eq=False)
class Layout:
    """Positions of the columns of parts in one table, before those of the targets.

    Parameters
    ----------
    places : dict
        Slices of columns by the name of the part; all components of vectors follow from the
        columns ``embedding`` and lie behind the table
        (`copcube.probes.ridge.PartMoments.extended`).
    width : int
        Number of columns with those of the targets.
    """

    places: dict[str, slice]
    width: int

    @classmethod
    def of(cls, inputs: Sequence[Input], given: int, dim: int, targets: int) -> Self:
        """Lay out what inputs need, given the numbers of fields, dimensions and targets."""
        parts = {part for one in inputs for part in one.parts if not part.startswith("pc")}
        if any(one.reads_vectors for one in inputs):
            parts.add("embedding")
        places, start = {}, 0
        # In a fixed order, so that sums are rounded alike however inputs are listed.
        for part in sorted(parts):
            width = _width(part, given, dim)
            places[part] = slice(start, start + width)
            start += width
        return cls({**places, "targets": slice(start, start + targets)}, start + targets)

    def table(
        self, lat: Floats, lon: Floats, others: dict[str, NDArray[Any]]
    ) -> NDArray[np.float64]:
        """Make the table of some cells, (cell, width).

        Parameters
        ----------
        lat, lon : numpy.ndarray
            (cell,) degrees.
        others : dict of numpy.ndarray
            (cell, …) values of ``embedding``, ``given`` and ``targets``, as far as they are
            needed; what is not there stays 0.
        """
        result = np.zeros((len(lat), self.width))
        for part, place in self.places.items():
            if part in others:
                result[:, place] = others[part]
            elif part.startswith("harmonics"):
                result[:, place] = coordinates.harmonics(lat, lon, int(part[len("harmonics") :]))
            elif part in ("lonlat", "fourier", "xyz"):
                result[:, place] = getattr(coordinates, part)(lat, lon)
        return result

    def columns(self, one: Input) -> NDArray[np.intp]:
        """Columns of an input; its components lie behind the table."""
        components = self.width + np.arange(one.components)
        parts = (components if p.startswith("pc") else self.columns_of(p) for p in one.parts)
        return np.concatenate([*parts])

    def columns_of(self, part: str) -> NDArray[np.intp]:
        """Columns of one part."""
        return np.arange(self.width)[self.places[part]]


def _width(part: str, given: int, dim: int) -> int:
    if part.startswith("harmonics"):
        return (int(part[len("harmonics") :]) + 1) ** 2 - 1
    return {"embedding": dim, "given": given, "lonlat": 2, "fourier": 768, "xyz": 3}[part]
