"""Untrained weights of one narrow block instead of twelve, also of workers of dask.

Workers take them where this file is a preload of theirs, of which dask calls `dask_setup`.
"""

from functools import partial
from typing import Any

from copcube.encoder import weights

shallow_weights = partial(weights.untrained_weights, embed_dim=64, depth=1, heads=1)


def dask_setup(worker: Any) -> None:
    """Draw no others in this process."""
    weights.untrained_weights = shallow_weights
