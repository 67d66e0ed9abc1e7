"""copcube: Copernicus Sentinel imagery as an embedding datacube on ERA5's grid."""

import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from copcube.lazy import importer
from copcube.version import __version__

if TYPE_CHECKING:
    from copcube import era5, tutorial
    from copcube.builds import Report, build
    from copcube.embedding import tiles
    from copcube.embedding.batch import embed_batch
    from copcube.embedding.tiles import embed
    from copcube.encoder import EncoderSpec, TimmSpec
    from copcube.errors import CopcubeError
    from copcube.images.sensors import sensor
    from copcube.interchange.convert import convert
    from copcube.lookup.contract import describe, get_embedding, get_embeddings_batch

__all__ = [
    "CopcubeError",
    "EncoderSpec",
    "Report",
    "TimmSpec",
    "__version__",
    "build",
    "convert",
    "describe",
    "embed",
    "embed_batch",
    "era5",
    "get_embedding",
    "get_embeddings_batch",
    "sensor",
    "tiles",
    "tutorial",
]

__getattr__ = importer(
    __name__,
    {
        "CopcubeError": "copcube.errors",
        "EncoderSpec": "copcube.encoder",
        "Report": "copcube.builds",
        "TimmSpec": "copcube.encoder",
        "build": "copcube.builds",
        "convert": "copcube.interchange",
        "describe": "copcube.lookup.contract",
        "embed": "copcube.embedding.tiles",
        "embed_batch": "copcube.embedding.batch",
        "era5": "copcube.era5",
        "get_embedding": "copcube.lookup.contract",
        "get_embeddings_batch": "copcube.lookup.contract",
        "sensor": "copcube.images.sensors",
        "tiles": "copcube.embedding.tiles",
        "tutorial": "copcube.tutorial",
    },
)

# Importing copcube registers `ds.copembed`, for which it imports xarray. Only the command
# starts without it, so that `copcube --help` answers at once; no command uses the accessor.
if Path(sys.argv[0]).stem != "copcube" and sys.orig_argv[1:3] != ["-m", "copcube"]:
    import_module("copcube.accessor")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
