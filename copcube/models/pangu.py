"""Pangu-Weather: constant masks as NumPy arrays, 90°N and 0°E first, 721 rows.

Its own ``land_mask.npy``, ``soil_type.npy`` and ``topography.npy`` are files of one map each, and
scaled already; they stay as they are.
"""

from pathlib import Path

import numpy as np

from copcube.models.fields import Fields
from copcube.models.form import Form


def write(fields: Fields, path: Path) -> None:
    """Write all channels, (channel, 721, 1440) float32."""
    with open(path, "wb") as stream:
        np.save(stream, np.stack(list(fields.channels.values())))


FORMS = {".npy": Form(write, described=False)}
