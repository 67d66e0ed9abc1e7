"""Labels of a place and an image of it, joined by the place's name: LC100, biomass, air quality.

The official readers resize images, and maps of biomass, by cubic convolution. Joining by the
order of lines, which other readers do, gives wrong labels where two lists are ordered
differently.
"""

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from copcube.errors import MissingFileError, SourceError, few
from copcube.grid import STEP, centre, parse_cell
from copcube.probes.bench.layouts.base import Layout, by_name, days, flags, inside, part
from copcube.probes.bench.layouts.codes import LC100, to_classes
from copcube.probes.bench.layouts.opencv import cubic, nearest
from copcube.probes.bench.layouts.rasters import Raster
from copcube.probes.bench.samples import Place, Sample, Split

_EEA_PIXEL = 1113.2
"""Size of a pixel of the air quality's images in metres; that of the sensor is 1000."""
_HALF = STEP / 2
_TOO_LARGE = 1e10
"""Beyond this a label of the air quality is a fill value: ±inf or 3.4e38."""


class _Olci(Layout):
    """``s3_olci/<place>/<file>``, of which ``static_fnames-<split>.csv`` names one a place."""

    listing = "static_fnames-{split}.csv"

    def _listed(self, split: Split) -> list[tuple[str, Any]]:
        return list(self._files(split).items())

    def _files(self, split: Split) -> dict[str, str]:
        """Return the image of every place."""
        path = self.root / f"static_fnames-{split}.csv"
        found = by_name(path, 2, header=False)
        return {name: inside(file.strip(), path, name) for name, (file,) in found.items()}

    def _image(self, split: Split, name: str, file: str) -> tuple[NDArray[Any], NDArray[Any]]:
        """Return an image at the task's size, NaN as 0, and its metadata."""
        raster = self._raster(split, f"s3_olci/{name}/{file}")
        date = days(part(file, 1)[:8], f"{name}/{file}")
        # By default infinity would become the largest finite number, and pass for a radiance.
        pixels = np.nan_to_num(raster.pixels, nan=0, posinf=np.inf, neginf=-np.inf)
        return cubic(pixels, self.task.size), self._metadata(raster, date)


class LC100Cls(_Olci):
    """``multilabel-<split>.csv``, with 23 columns of 0 and 1."""

    listing = "multilabel-{split}.csv"

    def _listed(self, split: Split) -> list[tuple[str, Any]]:
        path, files = self.list_file(split), self._files(split)
        labels = by_name(path, 1 + len(self.task.classes), header=True)
        if missing := labels.keys() - files.keys():
            raise SourceError(
                f"{path}: static_fnames-{split}.csv names no image of {few(sorted(missing), 1)}; "
                "unpack the archive again"
            )
        return [(name, (files[name], flags(row, path, name))) for name, row in labels.items()]

    def _sample(self, split: Split, name: str, listed: Any) -> Sample:
        file, target = listed
        pixels, metadata = self._image(split, name, file)
        return Sample(name, (pixels,), metadata, target)

    def place(self, split: Split, index: int) -> Place:  # noqa: D102
        name, (_, target) = self._list(split)[index]
        lat, lon = centre(parse_cell(name))
        west, south, east, north = lon - _HALF, lat - _HALF, lon + _HALF, lat + _HALF
        outline = np.array([(west, south), (east, south), (east, north), (west, north)])
        return Place(name, outline, target)


class LC100Seg(_Olci):
    """``lc100/<place>.tif``, codes of CGLS; those that the task lacks are class 0, unknown."""

    def _sample(self, split: Split, name: str, listed: Any) -> Sample:
        pixels, metadata = self._image(split, name, listed)
        path = f"lc100/{name}.tif"
        codes = nearest(self._band(split, path).pixels[0], self.task.size)
        target = to_classes(codes, LC100, str(self.root / path), other=0)
        return Sample(name, (pixels,), metadata, target)


class Biomass(_Olci):
    """``biomass/<tile>.tif``, whole Mg/ha, resized as such: what overshoots below 0 is 0."""

    def _sample(self, split: Split, name: str, listed: Any) -> Sample:
        pixels, metadata = self._image(split, name, listed)
        stored = self._band(split, f"biomass/{name}.tif").pixels[0]
        target = cubic(stored, self.task.size).astype(np.float32)
        return Sample(name, (pixels,), metadata, target)

    def place(self, split: Split, index: int) -> Place:  # noqa: D102
        name, _ = self._list(split)[index]
        raster = self._band(split, f"biomass/{name}.tif")
        return Place(name, raster.outline, np.asarray(raster.pixels.mean(dtype=np.float64)))


class AirQuality(Layout):
    """``s5p_annual/<place>/<from>_<to>.tif`` and ``label_annual/<place>.tif``, in a gas's folder.

    The date is the first of the year.
    """

    listing = "{split}.csv"

    def _sample(self, split: Split, name: str, listed: Any) -> Sample:
        folder = self.root / "s5p_annual" / name
        found = sorted(path.name for path in folder.glob("*.tif"))
        if len(found) != 1:
            raise MissingFileError(
                f"{folder}: {len(found)} files .tif; expected one, such as "
                f"2021-01-01_2021-12-31.tif, since {self.list_file(split)} names it"
            )
        raster = self._raster(split, f"s5p_annual/{name}/{found[0]}")
        pixels = cubic(np.nan_to_num(raster.pixels, nan=0), self.task.size)
        target = nearest(self._label(split, name).pixels[0], self.task.size)
        date = days(found[0].split("_")[0], f"{name}/{found[0]}")
        return Sample(name, (pixels,), self._metadata(raster, date, _EEA_PIXEL), target)

    def place(self, split: Split, index: int) -> Place:  # noqa: D102
        name, _ = self._list(split)[index]
        raster = self._label(split, name)
        known = raster.pixels[~np.isnan(raster.pixels)]
        mean = np.mean(known, dtype=np.float64) if known.size else np.float64(np.nan)
        return Place(name, raster.outline, np.asarray(mean))

    def _label(self, split: Split, name: str) -> Raster:
        """Read a label, NaN where it is a fill value."""
        raster = self._band(split, f"label_annual/{name}.tif")
        pixels = raster.pixels.astype(np.float32)
        # Not "above": NaN compares false, and is a fill value as well.
        pixels[~(np.abs(pixels) <= _TOO_LARGE)] = np.nan
        return replace(raster, pixels=pixels)
