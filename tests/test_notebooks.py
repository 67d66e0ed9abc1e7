"""The notebooks of docs/notebooks/: they run, say what they show stored, and stay small."""

import ast
import contextlib
import io
import json
import re
import runpy
import shlex
from pathlib import Path
from typing import Any

import pytest

import copcube  # noqa: F401  (ds.copembed)
from copcube import tutorial
from copcube.cli import main

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "docs" / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
NUMBER = r"(?<![\w.])[-+]?\d[\d,]*(?:\.\d*)?(?:e[-+]?\d+)?"

each = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def cells_of(path: Path, kind: str) -> list[dict[str, Any]]:
    cells = json.loads(path.read_text("utf-8"))["cells"]
    return [cell for cell in cells if cell["cell_type"] == kind]


def text_of(lines: str | list[str]) -> str:
    return lines if isinstance(lines, str) else "".join(lines)


def shown(cell: dict[str, Any]) -> str:
    """What a cell has stored of standard output and of its last expression, as text."""
    found = []
    for output in cell["outputs"]:
        if output["output_type"] == "stream" and output["name"] == "stdout":
            found.append(text_of(output["text"]))
        elif output["output_type"] in ("execute_result", "display_data"):
            found.append(text_of(output["data"]["text/plain"]) + "\n")
    return "".join(found)


def run(source: str, names: dict[str, Any]) -> str:
    """What a cell says when it is run: its output, and the value of its last expression."""
    with contextlib.redirect_stdout(io.StringIO()) as out:
        for line in re.findall(r"^!copcube (.*)$", source, re.M):
            assert main(shlex.split(line)) == 0
        tree = ast.parse(re.sub(r"^[%!].*$", "", source, flags=re.M))
        last = None
        if tree.body and isinstance(tree.body[-1], ast.Expr):
            last = ast.Expression(tree.body.pop().value)
        exec(compile(tree, "<cell>", "exec"), names)
        value = None if last is None else eval(compile(last, "<cell>", "eval"), names)
        if value is not None:
            print(repr(value))
    return out.getvalue()


def alike(found: str, stored: str) -> bool:
    """Whether two texts have the same words, and numbers that agree to about two digits.

    The size of a figure is that of the screen, and a picture in braille changes with one dot.
    """
    texts = [re.sub(r"<Figure size .*?>|[\u2800-\u28ff]", "", text) for text in (found, stored)]
    words = [" ".join(re.sub(NUMBER, "#", text).split()) for text in texts]
    if words[0].replace("[ ", "[") != words[1].replace("[ ", "["):
        return False
    numbers = [[float(n.replace(",", "")) for n in re.findall(NUMBER, text)] for text in texts]
    return numbers[0] == pytest.approx(numbers[1], rel=0.02, abs=0.02)


@pytest.fixture(scope="module")
def once():
    """Worlds by function and arguments, each drawn once for all notebooks."""
    return {}


@pytest.mark.slow
@each
def test_notebook_runs_and_says_what_it_has_stored(path, once, tmp_path, monkeypatch):
    for name in ("open", "statics"):
        make = getattr(tutorial, name)
        if name not in once:
            once[name] = make()
        monkeypatch.setattr(tutorial, name, lambda name=name: once[name].copy())
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "__main__"}
    for cell in cells_of(path, "code"):
        source = text_of(cell["source"])
        found, stored = run(source, names), shown(cell)
        assert alike(found, stored), f"{source}\n--- says\n{found}\n--- has stored\n{stored}"


def test_texts_that_differ_are_told_apart():
    """The comparison above can fail: on words, on numbers and on how many there are."""
    assert alike("a 1.000 b [ 2. -3.]", "a  1.01 b [2. -3.]")
    for other in ("a 1.1 b [2. -3.]", "c 1.0 b [2. -3.]", "a 1.0 b [2. -3. 4.]", "a 1.0 b [2. 3.]"):
        assert not alike("a 1.000 b [ 2. -3.]", other)


def test_there_are_ten():
    assert [path.name[:2] for path in NOTEBOOKS] == [f"{n:02}" for n in range(1, 11)]


@each
def test_notebook_is_small_and_whole(path):
    """Of the form nbformat 4.5, short, without the paths, times and errors of a machine."""
    assert path.stat().st_size <= 200_000
    text = path.read_text("utf-8")
    notebook = json.loads(text)
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    assert notebook["metadata"]["kernelspec"]["name"] == "python3"
    ids = [cell["id"] for cell in notebook["cells"]]
    assert len(set(ids)) == len(ids)
    assert all(re.fullmatch(r"[\w-]{1,64}", name) for name in ids)
    assert set(map(type, ids)) == {str}
    code = cells_of(path, "code")
    assert 4 <= len(code) <= 8
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell["outputs"]]
    kinds = {"stream": {"name", "text"}, "execute_result": {"data", "metadata", "execution_count"}}
    for output in outputs:
        kind = output["output_type"]
        assert kind != "error"
        assert {*output} == kinds.get(kind, {"data", "metadata"}) | {"output_type"}
    pictures = [output.get("data", {}).get("image/png", "") for output in outputs]
    assert sum(map(bool, pictures)) <= 2
    assert max(map(len, pictures)) * 3 / 4 <= 60_000  # in base64
    assert not re.search(r"/(home|root|tmp|Users|work)/|Warning|Traceback|\d\d:\d\d:\d\d", text)


@each
def test_notebook_says_what_its_data_are_and_where_to_go_on(path):
    words = [text_of(cell["source"]) for cell in cells_of(path, "markdown")]
    assert words[0].startswith("# ")
    assert re.search("synthetic|untrained", words[0])
    assert words[-1].startswith("Where to go on: ")
    links = re.findall(r"\]\((?!https?:)([^)#\s]+)", "\n".join(words))
    assert [link for link in links if not (FOLDER / link).exists()] == []


@each
def test_the_site_shows_every_cell_and_picture(path):
    pytest.importorskip("mkdocs", reason="the site is made by mkdocs")
    page = runpy.run_path(str(FOLDER / "pages.py"))["page"](path)
    assert all(text_of(cell["source"]) in page for cell in cells_of(path, "code"))
    assert all(text_of(cell["source"]) in page for cell in cells_of(path, "markdown"))
    assert page.count("<img ") == path.read_text("utf-8").count('"image/png"')
    assert page.count("````") % 2 == 0


def test_the_page_lists_every_notebook():
    page = (ROOT / "docs" / "notebooks.md").read_text("utf-8")
    assert re.findall(r"\(notebooks/(\S+?)\)", page) == [path.name for path in NOTEBOOKS]
