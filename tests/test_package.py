"""The package as a whole: what it imports, and that its declarations agree."""

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from strategies import random_rows, write_rows

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "copcube"

HEAVY = {"torch", "timm", "distributed", "huggingface_hub", "rasterio", "rioxarray", "zarr"}
HEAVY |= {"pyarrow", "scipy", "pandas", "xarray", "rich", "dask", "obstore"}

ALLOWED = {  # third-party package → modules that may import it
    "torch": {
        *("encoder", "images.sample.writing", "interchange.torch"),
        *(f"probes.bench.{m}" for m in ("augment", "dense", "levels", "resizing", "upernet")),
        "probes.bench.vectors",
    },
    "timm": {"encoder"},
    "rasterio": {
        *("images.geotiff", "images.raster", "images.sample.geotiff", "images.sample.writing"),
        *("interchange.geotiff", "products.geotiff", "probes.bench.layouts.rasters"),
        *("products.majortom.bands", "products.majortom.core_sample", "lookup.queries"),
    },
    "zarr": {
        *("cube", "files.objects.stores", "interchange.cache", "models.weathergenerator"),
        "products.tessera",
    },
    "obstore": {"files"},
    "huggingface_hub": {"hub"},
    "distributed": {"builds"},
    "matplotlib": {"plot", "accessor"},  # the accessor for types alone
    "cartopy": {"plot"},
    "sklearn": {"lookup"},
}

SPINE = ["version", "lazy", "errors", "arguments", "dates", "grid", "projecting", "modalities"]
SPINE += ["selection", "progress", "lookahead", "files", "hub", "rows", "cells", "images"]
SPINE += ["encoder", "means", "balance", "products", "provenance", "grouping", "parts"]
SPINE += ["aggregate", "embedding", "cube", "builds", "pca", "era5", "interchange"]
SPINE += ["lookup", "probes", "plot", "models", "tutorial", "accessor", "cli", "__main__"]
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


@pytest.mark.slow
def test_imports_point_one_way():
    for name, tree in modules():
        room = name.split(".")[0]
        if room == "__init__":
            continue
        for target in imports(tree):
            first, *rest = target.split(".")
            if first == "copcube" and rest:
                assert SPINE.index(rest[0]) <= SPINE.index(room), f"{name} imports {target}"
            elif first in ALLOWED:
                allowed = ALLOWED[first]
                assert {name, room} & allowed, f"{name} imports {target}; only {allowed} may"


def imported(code, *names):
    """Which heavy packages a fresh interpreter has imported after some code."""
    code = f"import sys\n{code}\nprint('HEAVY', *sorted(sys.modules.keys() & {set(names)!r}))"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    return result.stdout.splitlines()[-1].split()[1:]


@pytest.mark.slow
def test_xarray_writes_netcdf_in_one_module_where_an_interruption_ends_it():
    writing = {
        name
        for name, tree in modules()
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and node.attr == "to_netcdf"
    }
    assert writing == {"interchange.netcdf"}


def test_importing_copcube_imports_xarray_and_little_else():
    """Nor does describing an encoder, which is all that a driver of workers does with it."""
    heavy = HEAVY - {"xarray", "pandas", "pyarrow"}
    assert imported("import copcube; copcube.EncoderSpec()", *heavy) == []


@pytest.mark.slow
def test_rooms_that_the_pages_name_are_there_once_copcube_is_imported():
    # After the first use of ds.copembed some were, and before it none.
    code = "import copcube; copcube.interchange.to_zarr; copcube.modalities.modality\n"
    code += "copcube.cube.open_cube; copcube.lookup.boxes.polygons; copcube.images.open_source\n"
    code += "assert not hasattr(copcube, 'nonsense') and not hasattr(copcube, '__main__')"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_help_imports_nothing_heavy():
    code = "sys.argv = ['copcube', '--help']\nfrom copcube.cli import main\n"
    assert imported(f"{code}try: main(['--help'])\nexcept SystemExit: 0", *HEAVY) == []


@pytest.mark.slow
def test_aggregating_imports_nothing_that_takes_longer_than_the_reading(tmp_path):
    write_rows(tmp_path / "rows.parquet", random_rows(50, 5, 6, 0), {})
    command = ["aggregate", str(tmp_path / "rows.parquet"), str(tmp_path / "world.zarr")]
    code = f"sys.argv = ['copcube']\nfrom copcube.cli import main\nassert not main({command})\n"
    assert imported(code, "pandas", "scipy", "xarray", "zarr", "dask", "torch", "rasterio") == []


def requirements(lines):
    names = {
        "torch": "pytorch",
        "matplotlib": "matplotlib-base",
        "dask[array]": "dask",
        "moto[server]": "moto",
    }
    found = set()
    for line in lines:
        name, bound, version = line.partition(">=")
        found.add(names.get(name, name) + bound + version)
    return found


def test_environment_is_in_step_with_the_project():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = [*project["dependencies"], *extras["build"], *extras["cloud"], *extras["plot"]]
    wanted += extras["test"]
    # What is for one platform alone is not in conda-forge.
    wanted = [line for line in wanted if not line.startswith("copcube[") and ";" not in line]
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
