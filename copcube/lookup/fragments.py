"""The nearest of millions of embeddings in tables: rows of images, or fragments of Major TOM.

The search is exact: a product with every vector, block by block on threads, from the files or, once
`Fragments.load` has read them, from memory, where the bandwidth of memory bounds it.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from copcube import rows
from copcube.arguments import as_whole, number, one_of, whole_number
from copcube.cube.caution import of_encoder
from copcube.cube.results import as_result
from copcube.errors import OptionError, RowsError
from copcube.files.processors import THREADS
from copcube.grid import Floats, Integers, on_sphere
from copcube.images.sensors import Given
from copcube.lookahead import map_ahead
from copcube.lookup import ranking
from copcube.lookup.fragment_files import centres, said_of_row
from copcube.lookup.queries import EncoderLike, image_vector, text_vector
from copcube.lookup.similar import (
    APART,
    EARTH_RADIUS,
    Metric,
    check_places,
    check_vector,
    first_apart,
    lengths_of,
    named,
    scores,
)
from copcube.pca.blas import one_thread
from copcube.products.majortom.transposed import Position
from copcube.provenance import of_one_encoder, shared

if TYPE_CHECKING:
    import xarray as xr

_VALUES = 1 << 22
"""Values per task, for vectors in memory."""
_PLACES = 1 << 17
"""Places whose distances are computed at once."""
_FIRST = 4096
"""Candidates examined first if listed fragments must lie apart."""
_FAR = 50.0
"""Distance in km beyond which a fragment does not belong to a place."""

Best = Callable[[int], tuple[Integers, NDArray[np.float32]]]
"""Returns the numbers and scores of the n best, best first; of equal ones the first."""


@dataclass(frozen=True)
class Fragments:
    """Embeddings in tables: where each lies, and how its vector is read.

    Parameters
    ----------
    files : tuple of str
        Parquet files.
    starts : numpy.ndarray
        Number of the first row of each file, and of all rows, (files + 1,) int64.
    lat, lon : numpy.ndarray
        Centres in degrees, (n,) float64.
    dim : int
        Length of the vectors.
    vectors : numpy.ndarray, optional
        (n, dim) float32, once they are in memory.
    lengths : numpy.ndarray, optional
        Lengths of these vectors, (n,) float32, from `copcube.lookup.similar.lengths_of`.
    made : mapping
        How each file says its vectors were made.
    """

    files: tuple[str, ...]
    starts: Integers
    lat: Floats
    lon: Floats
    dim: int
    vectors: NDArray[np.float32] | None = field(default=None, repr=False)
    lengths: NDArray[np.float32] | None = field(default=None, repr=False)
    made: Mapping[str, Mapping[str, str]] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return len(self.lat)

    @classmethod
    def open(cls, path: str | Path, *, footprints: Position = "auto") -> Self:
        """Find where the fragments of tables lie, without reading vectors.

        Parameters
        ----------
        path : str or Path
            A parquet file, a folder of them or a glob: rows of a build, the published
            ``full_chunks``, or embeddings of Major TOM.
        footprints : {"auto", "given", "swap"}
            How to treat transposed footprints, as in `copcube.aggregate`.

        Raises
        ------
        RowsError
            If there are no files, one cannot be read, or the vectors come from several encoders.
        OptionError
            If `footprints` is unknown, or given for rows of images, which have none.
        """
        one_of(footprints, "footprints", get_args(Position))
        files = [str(file) for file in rows.rows_files(path)]
        how = "search the embeddings of one encoder at a time"
        dim, made = of_one_encoder(files, how, position=footprints)
        if not dim:
            raise RowsError(f"{path}: it holds no embeddings")
        places = [centres(file, footprints) for file in files]
        lat, lon = (np.concatenate(axis) for axis in zip(*places, strict=True))
        starts = np.cumsum([0, *(len(place[0]) for place in places)])
        return cls(tuple(files), starts, lat, lon, dim, made=made)

    @property
    def about(self) -> dict[str, str]:
        """What made the vectors, as far as all files agree; see `copcube.provenance`."""
        return shared(self.made)

    def load(self) -> Self:
        """Return a copy with all vectors in memory, for many searches: 3 GB per million of 768."""
        vectors = np.empty((len(self), self.dim), np.float32)
        lengths = np.empty(len(self), np.float32)

        def keep(start: int, block: NDArray[np.float32]) -> None:
            vectors[start : start + len(block)] = block
            # Kept, so that a search reads each vector only once.
            lengths[start : start + len(block)] = lengths_of(block)

        self._from_files(keep)
        return replace(self, vectors=vectors, lengths=lengths)

    def vector(self, number: int) -> NDArray[np.float32]:
        """Vector of one fragment, by its number among all.

        Raises
        ------
        OptionError
            If there is none of this number.
        """
        row = self._row(number)
        if self.vectors is not None:
            return np.asarray(self.vectors[row])
        i = int(np.searchsorted(self.starts, row, side="right")) - 1
        wanted = np.arange(self.starts[i], self.starts[i + 1]) == row
        groups = range(len(rows.row_group_sizes(self.files[i])))
        found = next(rows.map_vectors(lambda _, v: v, self.files[i], groups, wanted))
        return np.asarray(found[0])

    def _row(self, given: object) -> int:
        """Check the number of a fragment, of any type, and return it as int."""
        row = as_whole(given)
        if row is None or not 0 <= row < len(self):
            raise OptionError(f"row {given!r:.60}; expected one from 0 to {len(self) - 1}")
        return row

    def at(self, lat: float, lon: float) -> int:
        """Number of the fragment whose centre is nearest to a place.

        Raises
        ------
        OptionError
            If it is not a place, or no fragment is within 50 km.
        """
        lat, lon = number(lat, "lat"), number(lon, "lon")
        if not (-90 <= lat <= 90 and np.isfinite(lon)):
            raise OptionError(f"latitude {lat!r}, longitude {lon!r}: not a place on the globe")
        best, least = -1, np.inf
        here = on_sphere(lat, lon)
        for start in range(0, len(self), _PLACES):
            some = slice(start, start + _PLACES)
            far = np.linalg.norm(on_sphere(self.lat[some], self.lon[some]) - here, axis=-1)
            if len(far) and far.min() < least:
                best, least = start + int(far.argmin()), float(far.min())
        distance = 2 * EARTH_RADIUS * np.arcsin(min(least / 2, 1.0))
        if distance > _FAR:
            raise OptionError(
                f"no fragment within {_FAR:g} km of latitude {lat:g}, longitude {lon:g}; the "
                f"nearest, at {self.lat[best]:.2f}, {self.lon[best]:.2f}, is {distance:.0f} km away"
            )
        return best

    def scores(self, vector: ArrayLike, metric: Metric = "cosine") -> NDArray[np.float32]:
        """Cosine with a vector, or distance from it, of every fragment, (n,) float32.

        Raises
        ------
        OptionError
            If the vector has another length, is zero or not finite, or the metric is unknown.
        RowsError
            If a file cannot be read.
        """
        check_places(1, metric, 0)
        rank = self._ranks(check_vector(vector, (self.dim,), "the fragments"), metric)
        if metric == "cosine":
            np.negative(rank, out=rank)
            rank[np.isinf(rank)] = np.nan
        return rank

    def _ranks(self, wanted: Floats, metric: Metric) -> NDArray[np.float32]:
        """Distances, or cosines with the opposite vector, so that the smallest is the best.

        Infinite where a vector has no direction.
        """
        result = np.empty(len(self), np.float32)

        def score(start: int, block: NDArray[np.float32]) -> None:
            rank = scores(block, wanted if metric == "euclidean" else -wanted, metric)
            rank[np.isnan(rank)] = np.inf
            result[start : start + len(block)] = rank

        if self.vectors is None:
            self._from_files(score)
            return result
        loaded, lengths = self.vectors, self.lengths
        opposite = (-wanted / np.linalg.norm(wanted)).astype(np.float32)

        def score_loaded(some: slice) -> None:
            if metric == "euclidean" or lengths is None:
                return score(some.start, loaded[some])
            with np.errstate(over="ignore", invalid="ignore"):
                np.matmul(loaded[some], opposite, out=result[some])
                result[some] /= lengths[some]
            if not np.isfinite(result[some]).all():  # for zeros, and products beyond float32
                score(some.start, loaded[some])
            return None

        self._in_memory(score_loaded)
        return result

    def nearest(
        self,
        lat: float | None = None,
        lon: float | None = None,
        *,
        row: int | None = None,
        vector: ArrayLike | None = None,
        text: str | None = None,
        image: "str | Path | xr.DataArray | None" = None,
        modality: Given | None = None,
        date: Any = None,
        encoder: EncoderLike = None,
        n: int = 20,
        metric: Metric = "cosine",
        exclude_km: float = APART,
    ) -> "xr.Dataset":
        """Find the fragments most like one, or like a vector, a text or an image.

        Parameters
        ----------
        lat, lon : float, optional
            A place; its fragment is the one with the nearest centre.
        row : int, optional
            Number of a fragment among all.
        vector : array_like, optional
            (dim,), such as `copcube.embed` makes of an image with the same encoder.
        text : str, optional
            In English; only for embeddings by SigLIP, and if open_clip is installed.
        image : str, Path or xarray.DataArray, optional
            A GeoTIFF, or one image as `copcube.embed` takes it, embedded by the encoder that the
            files name; if it is larger than the encoder's input, its middle is used. See
            `copcube.lookup.queries.image_vector`.
        modality, date : optional
            What the image shows and when it was taken, if its path does not say so.
        encoder : Encoder, Spec, str or Path, optional
            The encoder that made the vectors, or a file of its weights, if the files do not name
            published ones.
        n : int
            How many of the best to list, if there are that many.
        metric : {"cosine", "euclidean"}
            Cosine of the angle between vectors, largest first, or distance of vectors, least first.
        exclude_km : float
            Those listed are farther than this from the example and each other: neighbours look
            alike, and would fill the list.

        Returns
        -------
        xarray.Dataset
            Along ``place``, best first: ``place_lat`` and ``place_lon`` in degrees,
            ``place_similarity`` or ``place_distance``, ``place_number`` among all rows,
            ``place_file`` and ``place_row`` in it, and what the file says of the row: cell,
            product, date.

        Raises
        ------
        OptionError
            If not exactly one of place, row, vector, text and image is given, or a value is not
            valid; if the files do not name the encoder for the image, or a different one is given.
        RowsError
            If a file cannot be read.
        ImageError
            If the image cannot be read.
        FetchError, WeightsError
            If the encoder's weights cannot be obtained.
        MissingPackageError
            If a text is given and open_clip is not installed.
        """
        n, exclude_km = check_places(n, metric, exclude_km)
        place = None if lat is None and lon is None else (lat, lon)
        given = (place, row, vector, text, image)
        if sum(value is not None for value in given) != 1 or (lat is None) != (lon is None):
            raise OptionError(
                "give one of a place (lat and lon), a row, a vector, a text and an image"
            )
        if image is None and not (modality is None and date is None and encoder is None):
            raise OptionError("modality, date and encoder describe an image; give an image too")
        if lat is not None and lon is not None:
            row = self.at(lat, lon)
        elif row is not None:
            row = self._row(row)
        if text is not None:
            vector = text_vector(text, self.dim)
        if image is not None:
            options: dict[str, Any] = {"modality": modality, "date": date, "encoder": encoder}
            vector = image_vector(image, self.about, self.dim, **options)
        wanted = self.vector(row) if row is not None else vector
        best = self._ranked(check_vector(wanted, (self.dim,), "the fragments"), metric, row)  # type: ignore[arg-type]
        return self._listed(*self._apart(best, n, exclude_km, row), metric)

    def _ranked(self, wanted: Floats, metric: Metric, here: int | None = None) -> Best:
        """Compare a vector with all; return a function that lists the best, except one of them."""
        if metric == "euclidean" and self.vectors is not None and self.lengths is not None:
            return self._by_estimates(self.vectors, self.lengths, wanted, here)
        rank = self._ranks(wanted, metric)
        if here is not None:
            rank[here] = np.inf

        def best(n: int) -> tuple[Integers, NDArray[np.float32]]:
            found = ranking.lowest(rank, n)
            return found, rank[found] if metric == "euclidean" else -rank[found]

        return best

    def _by_estimates(
        self,
        x: NDArray[np.float32],
        lengths: NDArray[np.float32],
        wanted: Floats,
        here: int | None,
    ) -> Best:
        """Rank as `_ranked` by Euclidean distance; compute differences only for the nearest.

        A difference takes three times as long as a product, which shows what may be near. The
        result is the same as from differences with all vectors.
        """
        values = np.empty(len(self), np.float32)
        slack = np.empty(-(-len(self) // ranking.STEP))

        def estimate(some: slice) -> None:
            blocks = slice(some.start // ranking.STEP, -(-some.stop // ranking.STEP))
            parts = x[some], lengths[some], wanted, values[some], slack[blocks]
            ranking.estimate_squares(*parts)

        self._in_memory(estimate)
        if here is not None:
            values[here] = np.inf

        def best(n: int) -> tuple[Integers, NDArray[np.float32]]:
            found = ranking.candidates(values, slack, n)
            exact = np.empty(len(found), np.float32)

            def score(some: slice) -> None:
                exact[some] = scores(x[found[some]], wanted, "euclidean")

            self._in_memory(score, len(found))
            order = np.argsort(exact, kind="stable")[:n]
            order = order[np.isfinite(exact[order])]
            return found[order], exact[order]

        return best

    def _apart(
        self, best: Best, n: int, exclude_km: float, here: int | None
    ) -> tuple[Integers, NDArray[np.float32]]:
        """Numbers and scores of the n best that lie apart from each other."""
        start = None if here is None else on_sphere(self.lat[here], self.lon[here])
        looked = n if exclude_km == 0 else max(_FIRST, n)
        while True:
            found, values = best(looked)
            if exclude_km == 0:
                return found, values
            # A fragment excludes only others of worse rank, so a longer list of candidates begins
            # with the same choice.
            points = on_sphere(self.lat[found], self.lon[found])
            chosen = first_apart(points, n, exclude_km, start)
            if len(chosen) == n or len(found) < looked:
                return found[chosen], values[chosen]
            looked *= 8

    def _listed(self, best: Integers, values: NDArray[np.float32], metric: Metric) -> "xr.Dataset":
        import xarray as xr

        name, attrs = named(metric)
        i = np.searchsorted(self.starts, best, side="right") - 1
        metadata = [
            said_of_row(self.files[a], int(b))
            for a, b in zip(i, best - self.starts[i], strict=True)
        ]
        names = sorted({key for one in metadata for key in one})
        texts = {
            f"place_{key}": ("place", np.array([one.get(key, "") for one in metadata], object))
            for key in names
        }
        degrees = {"units": "degrees_north"}, {"units": "degrees_east"}
        found = xr.Dataset(
            {
                "place_lat": ("place", self.lat[best], degrees[0]),
                "place_lon": ("place", self.lon[best], degrees[1]),
                f"place_{name}": ("place", values, attrs),
                "place_number": ("place", best),
                "place_row": ("place", best - self.starts[i]),
                "place_file": ("place", np.array([self.files[a] for a in i], object)),
                **texts,
            },
            attrs={
                "title": "fragments that look alike",
                "metric": metric,
                **of_encoder(*(self.made[self.files[a]] for a in np.unique(i))),
            },
        )
        return as_result(found)

    def blocks(self, n: int, every: int = 1) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """Yield blocks of n vectors in order, fewer at ends of files, each after its first number.

        Of every `every` rows one is taken, and numbers count the rows taken.
        """
        n, every = whole_number(n, "n", 1), whole_number(every, "every", 1)
        if self.vectors is not None:
            x = self.vectors[::every]
            yield from ((start, x[start : start + n]) for start in range(0, len(x), n))
            return
        number = 0
        for file, start, stop in zip(self.files, self.starts, self.starts[1:], strict=False):
            wanted = np.arange(int(start), int(stop)) % every == 0
            groups = range(len(rows.row_group_sizes(file)))
            with closing(rows.map_vectors(lambda _, v: v, file, groups, wanted)) as found:
                for block in found:
                    yield number, block
                    number += len(block)

    def _in_memory(self, function: Callable[[slice], None], number: int | None = None) -> None:
        """Call a function on threads with slices of all vectors in memory, or of the first ones."""
        step, end = ranking.STEP, len(self) if number is None else number
        step *= max(1, _VALUES // (self.dim * step))
        parts = (slice(start, min(start + step, end)) for start in range(0, end, step))
        # BLAS runs on one thread in each: otherwise it would split every product between all
        # threads.
        with one_thread():
            for _ in map_ahead(function, parts, THREADS):
                pass

    def _from_files(self, function: Callable[[int, NDArray[np.float32]], None]) -> None:
        """Call a function on threads with number and vectors of blocks of all files."""
        for file, start, stop in zip(self.files, self.starts, self.starts[1:], strict=False):
            groups = range(len(rows.row_group_sizes(file)))
            every = np.ones(int(stop - start), bool)
            blocks = rows.map_vectors(function, file, groups, every, int(start), threads=THREADS)
            with one_thread(), closing(blocks) as results:
                for _ in results:
                    pass
