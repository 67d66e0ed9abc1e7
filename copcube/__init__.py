"""copcube: Copernicus Sentinel imagery as an embedding datacube on ERA5's grid."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from copcube.accessor import register

if TYPE_CHECKING:
    from copcube import era5
    from copcube.builds import Report, build
    from copcube.encoder import EncoderSpec
    from copcube.errors import CopcubeError
    from copcube.interchange import convert
    from copcube.tiles import embed

__version__ = "0.1.0"
__all__ = [
    "CopcubeError",
    "EncoderSpec",
    "Report",
    "build",
    "convert",
    "embed",
    "era5",
]

_HOMES = {
    "CopcubeError": "copcube.errors",
    "EncoderSpec": "copcube.encoder",
    "Report": "copcube.builds",
    "build": "copcube.builds",
    "convert": "copcube.interchange",
    "embed": "copcube.tiles",
}

register()


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that `import copcube` stays light."""
    if name == "era5":
        return import_module("copcube.era5")
    if name not in _HOMES:
        raise AttributeError(f"module 'copcube' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
