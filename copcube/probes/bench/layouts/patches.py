"""Small images with one class or several: EuroSAT and BigEarthNet."""

from pathlib import Path

import numpy as np

from copcube.errors import SourceError
from copcube.probes.bench.layouts.base import Layout
from copcube.probes.bench.samples import Sample, Split

# Files of EuroSAT-S2 hold B8A last: places of B1 to B12 with B8A after B8.
_EUROSAT_BANDS = [*range(8), 12, *range(8, 12)]


class EuroSAT(Layout):
    """``all_imgs/<class>/<class>_<number>.tif``, listed as ``.jpg``; no dates."""

    def list_file(self, split: Split) -> Path:  # noqa: D102
        return self.root / f"eurosat-{split}.txt"

    def _sample(self, split: Split, name: str) -> Sample:
        kind, stem = name.split("_")[0], name.removesuffix(".jpg").removesuffix(".tif")
        if kind not in self.task.classes:
            raise SourceError(
                f"{self.list_file(split)} names {name}, of the class {kind!r}; expected one of "
                f"{', '.join(self.task.classes)}"
            )
        raster = self._raster(split, f"all_imgs/{kind}/{stem}.tif")
        pixels = raster.pixels[_EUROSAT_BANDS] if len(raster.pixels) == 13 else raster.pixels
        metadata = self._metadata(raster, np.nan)[None]
        target = np.array(self.task.classes.index(kind), dtype=np.int64)
        return Sample(name, (pixels,), metadata, target)
