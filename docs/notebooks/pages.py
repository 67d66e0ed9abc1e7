"""Pages of the site from the notebooks of this folder: a hook of mkdocs, which cannot show them."""

import json
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files


def on_files(files: Files, config: Any) -> Files:
    """Put a page in the place of each notebook."""
    for file in [file for file in files if file.src_uri.endswith(".ipynb")]:
        files.remove(file)
        text = page(Path(file.abs_src_path))
        files.append(File.generated(config, _as_page(file.src_uri), content=text))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Let links to notebooks lead to their pages."""
    return _as_page(markdown)


def page(path: Path) -> str:
    """Write the cells of a notebook, and what it has stored of their outputs, as Markdown."""
    parts = []
    for cell in json.loads(path.read_text("utf-8"))["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
            continue
        parts.append(_fenced(source, "python"))
        for output in cell["outputs"]:
            data = output.get("data", {})
            if "image/png" in data:
                picture = "".join(data["image/png"]).replace("\n", "")
                parts.append(f'<img alt="" src="data:image/png;base64,{picture}">')
            else:
                parts.append(_fenced("".join(output.get("text") or data["text/plain"]), "text"))
    return "\n\n".join(parts) + "\n"


def _as_page(text: str) -> str:
    return text.replace(".ipynb", ".md")


def _fenced(text: str, language: str) -> str:
    return f"````{language}\n{text.rstrip()}\n````"
