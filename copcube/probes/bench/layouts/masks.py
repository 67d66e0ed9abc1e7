"""An image and a class for each of its pixels: Cloud-S2, Cloud-S3, DFC2020."""

from typing import Any

import numpy as np

from copcube.probes.bench.layouts.base import Layout, days, part
from copcube.probes.bench.layouts.codes import (
    CLOUD_S3,
    CLOUD_S3_SHIFTED,
    DFC2020,
    to_classes,
)
from copcube.probes.bench.samples import Sample, Split


class CloudS2(Layout):
    """``s2_toa/<name>.tif`` and ``cloud/<name>.tif``; lists lack the ending."""

    listing = "{split}.csv"

    def _sample(self, split: Split, name: str, listed: Any) -> Sample:
        raster = self._raster(split, f"s2_toa/{name}.tif")
        codes = self._band(split, f"cloud/{name}.tif", raster).pixels[0]
        table = {code: code for code in range(4)}
        target = to_classes(codes, table, str(self.root / f"cloud/{name}.tif"))
        date = days(part(name, 1, "__")[:8], name)
        return Sample(name, (raster.pixels,), self._metadata(raster, date), target)


class CloudS3(Layout):
    """``s3_olci/<name>`` and ``cloud_multi/<name>``; lists have the ending.

    NaN of a radiance becomes 0, as in the official reader.
    """

    listing = "{split}.csv"

    def _sample(self, split: Split, name: str, listed: Any) -> Sample:
        raster = self._raster(split, f"s3_olci/{name}")
        path = f"cloud_multi/{name}"
        codes = self._band(split, path, raster).pixels[0]
        # The official code subtracts 1. Files from which it was already subtracted hold 255, which
        # is not a code otherwise.
        shifted = self.codes == "shifted"
        target = to_classes(
            codes,
            CLOUD_S3_SHIFTED if shifted else CLOUD_S3,
            str(self.root / path),
            remedy=f"codes={'raw' if shifted else 'shifted'!r} reads the other form",
        )
        date = days(part(name, 1, "____")[:8], name)
        pixels = np.nan_to_num(raster.pixels, nan=0, posinf=np.inf, neginf=-np.inf)
        return Sample(name, (pixels,), self._metadata(raster, date), target)


class DFC2020Patches(Layout):
    """``s1/…_s1_…``, ``s2/…_s2_…`` and ``dfc/…_dfc_…``, listed by the last; no place, no date."""

    listing = "dfc-{split}-new.csv"

    def _sample(self, split: Split, name: str, listed: Any) -> Sample:
        # Names differ in the part that says what a file is: dfc, s1 or s2.
        sensor = self.task.name[-2:]
        raster = self._raster(split, f"{sensor}/{name.replace('dfc', sensor)}")
        path = f"dfc/{name}"
        codes = self._band(split, path, raster).pixels[0]
        target = to_classes(codes, DFC2020, str(self.root / path))
        pixels = raster.pixels
        if pixels.dtype == np.float64:  # more digits than any sensor has
            pixels = pixels.astype(np.float32)
        metadata = self._metadata(raster, np.nan)
        # Even if a copy has a georeference, the official reader gives none.
        metadata[:, :2] = np.nan
        return Sample(name, (pixels,), metadata, target)
