"""Two images and what changed between them: Flood-S1."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from copcube.errors import MissingFileError, SourceError
from copcube.files.limits import LISTING, load_json
from copcube.probes.bench.layouts.base import Layout, days, inside, text_of
from copcube.probes.bench.layouts.codes import to_classes
from copcube.probes.bench.layouts.rasters import Raster
from copcube.probes.bench.samples import Sample, Split

_BRIGHTEST = 0.15
"""Linear power that the official reader clips at, and puts where there is none."""


class Flood(Layout):
    """``data/<path>/<image>_<band>_…_<date>.tif``, listed in ``grid_dict_<split>.json``.

    SL1 is the earlier image, MS1 that of the flood, each with the bands IVV and IVH; SL2, one
    more earlier image, is not used. Without the mask MK0_MLU nothing is flooded.
    """

    listing = "grid_dict_{split}.json"

    def _listed(self, split: Split) -> list[tuple[str, Any]]:
        path = self.list_file(split)
        grids = load_json(text_of(path).encode(), LISTING, str(path), SourceError)
        if not isinstance(grids, dict):
            raise SourceError(f"{path}: not a table of samples by name; unpack the archive again")
        found = []
        for name, grid in grids.items():
            where = grid.get("path") if isinstance(grid, dict) else None
            if not isinstance(where, str):
                raise SourceError(f"{path}: {name!r:.80} has no 'path'; unpack the archive again")
            found.append((name, inside(where.strip("/"), path, name)))
        return found

    def _sample(self, split: Split, name: str, listed: Any) -> Sample:
        folder = f"data/{listed}"
        files = sorted(path.name for path in (self.root / folder).glob("*.tif"))

        def band(start: str, like: Raster | None = None) -> tuple[Raster, str]:
            file = next((file for file in files if file.startswith(f"{start}_")), None)
            if file is None:
                raise MissingFileError(
                    f"{self.root / folder}: no file {start}_….tif, but {self.list_file(split)} "
                    "names this folder; unpack the archive again"
                )
            return self._band(split, f"{folder}/{file}", like), file

        images: list[NDArray[Any]] = []
        places: list[Raster] = []
        dates: list[float] = []
        for image in ("SL1", "MS1"):
            first, file = band(f"{image}_IVV", places[0] if places else None)
            second, _ = band(f"{image}_IVH", first)
            images.append(np.concatenate([_clipped(first), _clipped(second)]))
            places.append(first)
            dates.append(days(file.removesuffix(".tif").split("_")[-1], file))
        # The place of both is that of the flood, as in the official reader.
        metadata = [self._metadata(places[-1], date) for date in dates]
        if any(file.startswith("MK0_MLU_") for file in files):
            mask, file = band("MK0_MLU", places[0])
            where = str(self.root / folder / file)
            target = to_classes(mask.pixels[0], {code: code for code in range(4)}, where)
        else:
            target = np.zeros(images[0].shape[1:], dtype=np.uint8)
        return Sample(name, tuple(images), np.concatenate(metadata), target)


def _clipped(raster: Raster) -> NDArray[np.float32]:
    """Linear power as the official reader gives it; NaN, too, is the brightest."""
    pixels = np.clip(raster.pixels.astype(np.float32), 0, _BRIGHTEST)
    return np.nan_to_num(pixels, nan=_BRIGHTEST)
