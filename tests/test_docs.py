"""The pages of docs/: the tests, files and pages they speak of exist."""

import ast
import re
from functools import cache
from pathlib import Path

import modalities_page
import pytest
import yaml

from copcube import grid
from copcube.cli.main import parser
from copcube.images.naming import from_path
from copcube.modalities import MODALITIES
from copcube.models.write import FORMS

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(p for p in DOCS.rglob("*.md") if p.parent.name != "notebooks")


def text(name):
    return (DOCS / name).read_text("utf-8")


def rows(name):
    """Cells of the tables of a page, row by row, without the lines below the headings."""
    lines = re.findall(r"^\|(.*)\|$", text(name), re.M)
    return [[cell.strip() for cell in line.split("|")] for line in lines if line.strip("-|")]


@cache
def names_of_tests(file):
    tree = ast.parse((ROOT / file).read_text("utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


@pytest.mark.slow
def test_every_test_that_is_named_exists():
    named = re.findall(r"(tests/\w+\.py)::(\w+)", text("guarantees.md"))
    assert len(named) > 100
    missing = [f"{file}::{test}" for file, test in named if test not in names_of_tests(file)]
    assert missing == []


def test_every_guarantee_names_a_test():
    promised = [row for row in rows("guarantees.md") if row[-1] != "tests"]
    assert len(promised) > 40
    assert [row for row in promised if "::test_" not in row[-1]] == []


@pytest.mark.parametrize("page", ["architecture.md", "contributing.md", "guarantees.md"])
def test_every_file_that_is_named_exists(page):
    """Paths are those of the repository or of the package; FORM and such stand for any."""
    quoted = set(re.findall(r"`([\w./]+)`", text(page)))
    paths = {name for name in quoted if re.search(r"/$|\.(py|md|toml|yml)$", name)}
    paths = {name for name in paths if not re.search(r"[A-Z]{2}", Path(name).stem)}
    assert paths
    missing = [name for name in paths if not any((top / name).exists() for top in TOPS)]
    assert sorted(missing) == []


TOPS = (ROOT, ROOT / "copcube")


def test_images_lie_where_the_page_on_formats_says():
    cell = "0795646_11.50_48.00"
    assert f"`{cell}`" in text("formats.md")
    assert grid.format_cell(int(grid.grid_id(*grid.cell_at(48.1, 11.6)))) == cell
    for m in MODALITIES.values():
        (path,) = re.findall(rf"`({m.folders[0]}/\S+\.tif)`", text("formats.md"))
        found = from_path(path.replace("CELL", cell).replace("PATCH", "0000001_11.60_48.10"))
        day = None if m.key == "dem" else "20210301"
        assert (found.modality, grid.format_cell(found.grid_id), found.date) == (m.key, cell, day)


@pytest.mark.parametrize("page", [*PAGES, ROOT / "README.md"], ids=lambda page: page.stem)
def test_every_option_that_is_named_exists(page):
    if page.stem == "changes":  # tells of what there was
        return
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", page.read_text("utf-8")))
    assert named - OPTIONS - {"--pre", "--execute", "--inplace"} == set()


OPTIONS = {
    option
    for command in parser()._subparsers._group_actions[0].choices.values()
    for action in command._actions
    for option in action.option_strings
}


def test_every_room_is_described():
    """The table of rooms has each folder and module of the package."""
    described = {name for row in rows("architecture.md") for name in re.findall("`(.+?)`", row[0])}
    package = {
        f"{path.name}/" if path.is_dir() else path.name
        for path in (ROOT / "copcube").iterdir()
        if (any(path.glob("*.py")) or path.suffix == ".py") and not path.name.startswith("__")
    }
    assert package - described == set()


def test_the_tables_of_modalities_are_those_of_the_code():
    written = text("modalities.md")
    assert modalities_page.page(written) == written, "run python tests/modalities_page.py"
    for m in MODALITIES.values():
        assert f"| `{m.key}` | {m.title} |" in written
        assert all(f"| `{m.key}` | {band} |" in written for band in m.bands)


def test_every_weather_model_has_its_line():
    described = {name for row in rows("models.md") for name in re.findall("`(.+?)`", row[0])}
    assert set(FORMS) - described == set()


def test_every_page_is_in_the_menu():
    settings = yaml.safe_load((ROOT / ".mkdocs.yml").read_text("utf-8"))
    listed = []
    for entry in settings["nav"]:
        for page in entry.values():
            listed += [page] if isinstance(page, str) else [p for sub in page for p in sub.values()]
    assert sorted(listed) == sorted(page.relative_to(DOCS).as_posix() for page in PAGES)


@pytest.mark.parametrize(
    "page", [*PAGES, ROOT / "README.md"], ids=lambda page: f"{page.parent.name}/{page.stem}"
)
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\((?!https?:)([^)#\s]+)", page.read_text("utf-8"))
    assert [link for link in links if not (page.parent / link).exists()] == []
