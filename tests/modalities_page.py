"""The tables of docs/modalities.md, made of `copcube.modalities`.

    python tests/modalities_page.py

writes them into the page, between its marks; `tests/test_docs.py` compares.
"""

import re
from pathlib import Path

from copcube.modalities import MODALITIES

PAGE = Path(__file__).resolve().parents[1] / "docs" / "modalities.md"
_MARKS = re.compile(r"(<!-- (\w+): [^>]*-->\n).*?(<!-- end -->)", re.S)


def table(heads, rows):
    """A table in Markdown."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "".join(f"| {' | '.join(map(str, line))} |\n" for line in lines)


def modalities():
    """One line a modality: sizes, units, dates."""
    heads = ["key", "modality", "bands", "pixel, m", "stored", "input", "kernel", "token, km²"]
    heads += ["images a cell", "units of the pixels"]
    rows = []
    for m in MODALITIES.values():
        place = "patches of 2.64 km" if m.local else "the cell"
        dates = f", {m.dates} dates" if m.dates > 1 else ", no date"
        rows.append(
            [
                *(f"`{m.key}`", m.title, len(m.bands), f"{m.gsd:g}"),
                *(f"{side} × {side}" for side in (m.stored_size, m.input_size, m.kernel)),
                *(f"{m.token_area:g}", place + dates, m.units),
            ]
        )
    return table(heads, rows)


def bands():
    """One line a band: what the kernels are made of, and the normalisation."""
    heads = ["modality", "band", "wavelength, nm", "bandwidth, nm", "`scale`", "`mean`", "`std`"]
    rows = []
    for m in MODALITIES.values():
        for i, band in enumerate(m.bands):
            if m.wavelengths is None or m.bandwidths is None:
                light = [f"by its name: “{m.language_key}”", "–"]
            else:
                light = [f"{m.wavelengths[i]:,.10g}", f"{m.bandwidths[i]:,.10g}"]
            rows.append([f"`{m.key}`", band, *light, m.scale[i], m.mean[i], m.std[i]])
    return table(heads, rows)


def page(text):
    """The text of the page with the tables as they are."""
    made = {"modalities": modalities, "bands": bands}
    return _MARKS.sub(lambda mark: f"{mark[1]}\n{made[mark[2]]()}\n{mark[3]}", text)


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text("utf-8")), "utf-8")
