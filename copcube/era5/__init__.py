"""ERA5: its invariant fields, and joining them with embeddings."""

from copcube.era5.merge import merge
from copcube.era5.statics import open_static

__all__ = ["merge", "open_static"]
