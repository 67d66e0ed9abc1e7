"""The package as a whole: what it imports, and that its declarations agree."""

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "copcube"

HEAVY = {"torch", "timm", "distributed", "huggingface_hub", "rasterio", "rioxarray", "zarr"}
HEAVY |= {"pyarrow", "scipy", "pandas", "xarray", "rich", "dask", "obstore"}

ALLOWED = {  # third-party package → modules that may import it
    "torch": {"encoder", "images.pth", "images.sample", "interchange"},
    "timm": {"encoder"},
    "rasterio": {"images.geotiff", "images.sample", "interchange"},
    "zarr": {"cube", "objects.stores"},
    "obstore": {"objects"},
    "huggingface_hub": {"fetch"},
    "distributed": {"builds.cluster", "builds.crew", "builds.run"},
}

SPINE = [
    "errors",
    "grid",
    "modalities",
    "storage",
    "objects",
    "folders",
    "blas",
    "progress",
    "images",
    "published",
]
SPINE += [
    "fetch",
    "encoder",
    "rows",
    "embedding",
    "georeference",
    "tiles",
    "cells",
    "aggregate",
    "cube",
]
SPINE += ["builds", "mask", "latlon", "conservative", "moments", "pca", "query", "statics"]
SPINE += ["era5", "interchange", "averaging", "compare", "card", "accessor", "cli", "__main__"]
"""Along the spine a module imports only what stands to its left."""


def modules():
    for path in sorted(PACKAGE.rglob("*.py")):
        name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        yield name.removesuffix(".__init__"), ast.parse(path.read_text())


def imports(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "absolute imports only"
            if node.module == "copcube":
                yield from (f"copcube.{alias.name}" for alias in node.names)
            else:
                yield node.module


@pytest.mark.parametrize(
    ("name", "tree"), list(modules()), ids=lambda v: v if type(v) is str else ""
)
def test_imports_point_one_way(name, tree):
    here = name.split(".")[0]
    if here == "__init__":
        return
    for target in imports(tree):
        first, *rest = target.split(".")
        if first == "copcube" and rest and rest[0] != "__version__":
            assert SPINE.index(rest[0]) <= SPINE.index(here), f"{name} imports {target}"
        elif first in ALLOWED:
            allowed = ALLOWED[first]
            assert {name, here} & allowed, f"{name} imports {target}; only {allowed} may"


@pytest.mark.parametrize(
    "command",
    ["import copcube", "from copcube.cli import main\ntry: main(['--help'])\nexcept SystemExit: 0"],
)
def test_the_first_second_stays_light(command):
    code = f"import sys\n{command}\nprint('HEAVY', *sorted(sys.modules.keys() & {HEAVY!r}))"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.splitlines()[-1] == "HEAVY"


def requirements(lines):
    names = {"torch": "pytorch", "dask[array]": "dask", "moto[server]": "moto"}
    found = set()
    for line in lines:
        name, bound, version = line.partition(">=")
        found.add(names.get(name, name) + bound + version)
    return found


def test_environment_is_in_step_with_the_project():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = [*project["dependencies"], *extras["build"], *extras["cloud"], *extras["test"]]
    wanted = [line for line in wanted if not line.startswith("copcube[")]
    wanted.append(f"python{project['requires-python']}")
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert set(environment["dependencies"]) == requirements(wanted)


def test_only_the_fixed_names_stand_at_the_top():
    if not (ROOT / ".git").exists():
        pytest.skip("not a checkout")
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    top = {line.split("/")[0] for line in listed.stdout.splitlines()}
    assert {name for name in top if not name.startswith(".")} <= {
        *("copcube", "pipelines", "tests", "examples", "benchmarks", "docs"),
        *("environment.yml", "pyproject.toml", "README.md", "LICENSE", "Makefile"),
    }
