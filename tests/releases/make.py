"""Write what this release of copcube writes, small, for the tests of later ones to read.

Run once a release, from the folder of the repository: ``python tests/releases/make.py``.
"""

import sys
import tarfile
import tempfile
from pathlib import Path

from copcube.builds import build
from copcube.images.sample import write_sample
from copcube.version import __version__

HERE = Path(__file__).parent


def main() -> None:
    """Write ``VERSION.tar.xz`` beside this file: a finished build, and one that is half done."""
    sys.path.insert(0, str(HERE.parent))
    from stub import StubEncoder

    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        modalities = ["s5p_no2", "s5p_o3"]
        write_sample(root / "images", "geotiff", seed=1, cells=2, modalities=modalities)
        build(root / "images", root / "world.zarr", encoder=StubEncoder(), by="season")
        build(root / "images", root / "part.zarr", encoder=StubEncoder(), partitions="0")
        with tarfile.open(HERE / f"{__version__}.tar.xz", "w:xz") as archive:
            for name in ("world.zarr", "world.build", "part.build"):
                archive.add(root / name, name)


if __name__ == "__main__":
    main()
