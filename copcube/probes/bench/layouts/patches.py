"""Small images with one class or several: EuroSAT and BigEarthNet."""

from pathlib import PurePosixPath
from typing import Any

import numpy as np

from copcube.errors import SourceError
from copcube.probes.bench.layouts.base import Layout, days, flags, inside, part, rows
from copcube.probes.bench.samples import Sample, Split

# Files of EuroSAT-S2 hold B8A last: places of B1 to B12 with B8A after B8.
_EUROSAT_BANDS = [*range(8), 12, *range(8, 12)]


class EuroSAT(Layout):
    """``all_imgs/<class>/<class>_<number>.tif``, listed as ``.jpg``; no dates."""

    listing = "eurosat-{split}.txt"

    def _sample(self, split: Split, name: str, listed: Any) -> Sample:
        kind, stem = name.split("_")[0], name.removesuffix(".jpg").removesuffix(".tif")
        if kind not in self.task.classes:
            raise SourceError(
                f"{self.list_file(split)} names {name}, of the class {kind!r}; expected one of "
                f"{', '.join(self.task.classes)}"
            )
        raster = self._raster(split, f"all_imgs/{kind}/{stem}.tif")
        pixels = raster.pixels[_EUROSAT_BANDS] if len(raster.pixels) == 13 else raster.pixels
        metadata = self._metadata(raster, np.nan)
        target = np.array(self.task.classes.index(kind), dtype=np.int64)
        return Sample(name, (pixels,), metadata, target)


class BigEarthNet(Layout):
    """``BigEarthNet-S1-5%/<path>`` or ``-S2-5%/<path>``, with 19 columns of 0 and 1.

    Names are those of the first column, the paths of Sentinel-1, for both sensors.
    """

    listing = "multilabel-{split}.csv"

    def _listed(self, split: Split) -> list[tuple[str, Any]]:
        path, found = self.list_file(split), []
        for name, other, *labels in rows(path, 2 + len(self.task.classes), header=True):
            found.append((name, (inside(other, path, name), flags(labels, path, name))))
        return found

    def _sample(self, split: Split, name: str, listed: Any) -> Sample:
        other, target = listed
        first = self.task.name.endswith("s1")
        path = f"BigEarthNet-S1-5%/{name}" if first else f"BigEarthNet-S2-5%/{other}"
        raster = self._raster(split, path)
        date = days(part(PurePosixPath(path).name, 4 if first else 2)[:8], path)
        return Sample(name, (raster.pixels,), self._metadata(raster, date), target)
