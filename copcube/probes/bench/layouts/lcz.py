"""LCZ-S2: one HDF5 file per split, with neither places nor dates."""

import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from copcube.errors import ImageError, MissingFileError, SourceError
from copcube.files.regular import require_file
from copcube.probes.bench.layouts.base import Layout, true_area
from copcube.probes.bench.samples import Sample, Split

if TYPE_CHECKING:
    import netCDF4

_ONE_AT_A_TIME = threading.Lock()
"""The HDF5 library is not safe for threads."""


class LCZ(Layout):
    """``lcz_<split>.h5``: ``label`` (N, 17) one-hot, ``sen2`` (N, 32, 32, 10) reflectances.

    Bands are B2 to B8, B8A, B11, B12. Names are the numbers of the samples. ``sen1`` is not used.
    """

    listing = "lcz_{split}.h5"

    def _listed(self, split: Split) -> list[tuple[str, Any]]:
        path = self.list_file(split)
        with _ONE_AT_A_TIME:
            file = _open(path)
            try:
                labels, images = self._checked(file, path)
            # Otherwise it stays open: images are read from it later, one by one.
            except BaseException:
                file.close()
                raise
        return [(str(i), (images, int(label))) for i, label in enumerate(labels)]

    def _checked(self, file: "netCDF4.Dataset", path: Path) -> tuple[NDArray[np.int64], Any]:
        """Return the class of every sample, and the images, which are not read yet."""
        bands, classes = len(self.task.sensor.bands), len(self.task.classes)
        labels, images = (_variable(file, path, key) for key in ("label", "sen2"))
        count = labels.shape[0]
        if labels.shape != (count, classes) or images.shape[0::3] != (count, bands):
            raise SourceError(
                f"{path}: label has the shape {labels.shape}, sen2 {images.shape}; expected "
                f"(N, {classes}) and (N, 32, 32, {bands})"
            )
        ones = np.asarray(labels[:])
        right = ((ones == 1).sum(axis=1) == 1) & ((ones == 0) | (ones == 1)).all(axis=1)
        if (wrong := np.flatnonzero(~right)).size:
            raise SourceError(
                f"{path}: the label of sample {wrong[0]} is not a single 1 among zeros; fetch it "
                "again"
            )
        return ones.argmax(axis=1), images

    def _sample(self, split: Split, name: str, listed: Any) -> Sample:
        images, label = listed
        path = self.list_file(split)
        try:
            with _ONE_AT_A_TIME:
                stored = np.asarray(images[int(name)])
        except (RuntimeError, OSError) as error:
            raise ImageError(f"{path}: sample {name} cannot be read ({error})") from error
        pixels = np.ascontiguousarray(np.moveaxis(stored, -1, 0))
        area = self.task.nominal_area
        if self.area == "true":
            area = true_area(self.task, pixels.shape[1:])
        metadata = np.array([[np.nan, np.nan, np.nan, area]])
        return Sample(name, (pixels,), metadata, np.array(label, dtype=np.int64))


def _open(path: Path) -> "netCDF4.Dataset":
    """Open an HDF5 file, of which netCDF-4 is a form; h5py is not needed."""
    import netCDF4

    require_file(path, SourceError)
    if not path.exists():
        raise MissingFileError(f"{path}: missing; download it with `copcube fetch bench lcz-s2`")
    try:
        file = netCDF4.Dataset(str(path))
    except OSError as error:
        raise SourceError(f"{path}: not a readable HDF5 file ({error}); fetch it again") from error
    # Else every array that is read would be a masked one.
    file.set_auto_maskandscale(False)
    return file


def _variable(file: "netCDF4.Dataset", path: Path, key: str) -> Any:
    if key not in file.variables:
        raise SourceError(f"{path}: holds {', '.join(file.variables)}; expected label and sen2")
    return file.variables[key]
