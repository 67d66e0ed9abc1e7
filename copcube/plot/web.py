"""A map as one page for a browser, complete in itself and without network access.

The page is `browser/page.html` with its style, its script, and the numbers of the cells packed:
a signed byte a component and cell, deflated (RFC 1950) and in base64, in text blocks that no
browser runs. The script is named to the browser by its SHA-256 (Content Security Policy,
level 3), so that nothing else in the page can run, whatever the attributes of a dataset hold.
"""

import json
import logging
import zlib
from base64 import b64encode
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from copcube import grid
from copcube.arguments import one_path, whole_number
from copcube.cube.card import card, whose_variance
from copcube.cube.caution import caution, of_vectors
from copcube.cube.schema import counts_images, group_labels
from copcube.cube.view import CubeView
from copcube.cube.whole import at_once, with_maps
from copcube.errors import CubeError, OptionError, printable
from copcube.grid import STEP
from copcube.interchange.packing import Exported, Packer, int8_packing
from copcube.interchange.replacing import appearing, require_free
from copcube.plot.stretch import limit, reduced
from copcube.plot.window import Window
from copcube.version import __version__

if TYPE_CHECKING:
    import xarray as xr

log = logging.getLogger("copcube")

LIMIT = 20_000_000
"""Maximum bytes of a page."""

_SHELL = 150_000
"""Bytes left for the script, the style and the description of the dataset."""

_ALL = 1 - 1e-9
"""Share of variance that means all existing components."""

_SCRIPTS = ("data.js", "map.js", "show.js", "page.js")


def page(
    ds: "xr.Dataset",
    path: str | Path,
    *,
    k: int = 16,
    basis: "xr.Dataset | None" = None,
    overwrite: bool = False,
) -> Exported:
    """Write a map that opens in a browser, without a server or a network.

    The page shows three components as colours, one of them, and the number of images and the
    spread where the dataset has them; it finds the places most like one by the cosine of its
    components.

    Parameters
    ----------
    ds : xarray.Dataset
        A cube or a reduction, whole or in part. Of a cube the components are computed first; a
        reduction has lost its counts of images, so give the cube and, as `basis`, the reduction.
    path : str or Path
        File to write, ending in .html.
    k : int
        Most components on the page; fewer if there are fewer, or if they do not fit into 20 MB.
    basis : xarray.Dataset, optional
        The basis on which a cube is projected, by default its own; see `copcube.plot.maps.rgb`.
    overwrite : bool
        Whether to replace a page of copcube's that is there already.

    Returns
    -------
    Exported
        What was written, and the error of rounding to a byte.

    Raises
    ------
    CubeError
        If the dataset is not a cube or reduction, has leading dimensions or no vector.
    GridError
        If its cells are not those of the lattice.
    OptionError
        If the name does not end in .html, or `k` or the basis is none.
    WriteError
        If something is there that must stay, or the page cannot be written.

    Examples
    --------
    >>> cube.copembed.plot.page("world.html")  # doctest: +SKIP
    """
    if Path(one_path(path, "output")).suffix.lower() not in (".html", ".htm"):
        raise OptionError(f"{path}: expected a name ending in .html")
    k = whole_number(k, "k", 1)
    inputs = ds, basis
    out = require_free(path, overwrite, *inputs)
    ds = with_maps(CubeView.of(ds).dataset, ("n_images", "n_images_by_modality"))
    fields = _components(ds, k, basis)
    cells = _Cells.of(fields)
    packing = int8_packing(cells.values.shape[1], [cells.values])
    codes = np.asarray(packing.pack(cells.values), np.int8)
    head = {"mask": _deflated(np.packbits(cells.mask).tobytes()), "coast": _coast()}
    more, about = _beside(CubeView.of(ds), cells)
    scales = zip(packing.scale, packing.offset, strict=True)  # type: ignore[arg-type]
    described = []
    for i, (scale, offset) in enumerate(scales):
        block, plane = _plane(f"pc{i}", codes[:, i], float(scale), float(offset))
        plane |= {"limit": limit(fields, i)}
        share = float(fields["explained_variance_ratio"].values[i])
        described.append(plane | {"share": share})
        # The first picture shows three components; what it needs comes first in the page.
        (head if i < 3 else more)[plane["id"]] = block
    room = LIMIT - _SHELL - sum(map(len, (head | more).values()))
    while room < 0 and len(described) > 1:
        last = str(described.pop()["id"])
        room += len((more if last in more else head).pop(last))
    if (kept := len(described)) < codes.shape[1]:
        log.warning("%s: the first %d of %d components fit", path, kept, codes.shape[1])
    about |= {
        **cells.window,
        "cells": len(codes),
        "components": described,
        "whose": whose_variance(fields.attrs),
        "lines": [[name, printable(text)] for name, text in _lines(ds, fields)],
        "computed": _computed(fields, kept),
    }
    html = _document(_title(ds), caution(ds.attrs), about, head, more)
    with appearing(path, overwrite, *inputs) as temporary:
        temporary.write_text(html, "utf-8")
    # Packed once more, since components that did not fit have no part in the error.
    packed = int8_packing(kept, [cells.values[:, :kept]])
    packer = Packer(packed)
    packer.pack(cells.values[:, :kept])
    return packer.result(str(path), kept, out.stat().st_size)


@dataclass(frozen=True, eq=False)
class _Cells:
    """Cells with a vector, row by row from the north and from the western edge of a window.

    Parameters
    ----------
    window : dict
        First row and column on the lattice, rows, columns, and how much higher than wide a
        degree is drawn.
    mask : numpy.ndarray
        Which cells of the window have a vector, (rows, cols) bool.
    values : numpy.ndarray
        Their components, (n, k) float32.
    at : tuple of numpy.ndarray
        Positions of these cells along latitude and longitude of the dataset, (n,) int64 each.
    """

    window: dict[str, Any]
    mask: NDArray[np.bool_]
    values: NDArray[np.float32]
    at: tuple[NDArray[np.int64], NDArray[np.int64]]

    @classmethod
    def of(cls, fields: "xr.Dataset") -> "_Cells":
        view = CubeView.of(fields, "pc").ungrouped()
        rows, cols = view.positions()
        edges = Window.of(view, None)
        first, last = int(view.row.min()), int(view.row.max())
        west = int(np.floor((edges.west + STEP / 2) / STEP)) % grid.N_LON
        width = round((edges.east - edges.west) / STEP)
        i = rows[first : last + 1]
        j = cols[(west + np.arange(width)) % grid.N_LON]
        there, vectors = view.read((slice(None), slice(None)))
        mask = there[np.ix_(i, j)] & (i >= 0)[:, None] & (j >= 0)
        y, x = np.nonzero(mask)
        if len(y) == 0:
            raise CubeError("no cell holds a vector: there is nothing to draw")
        window: dict[str, Any] = {"row0": first, "col0": west, "rows": len(i), "cols": width}
        window["aspect"] = round(float(1 / np.cos(np.radians(edges.middle))), 4)
        at = i[y], j[x]
        return cls(window, mask, np.asarray(vectors[at], np.float32), at)

    def field(self, view: CubeView, name: str) -> NDArray[Any]:
        """Values of a variable (…, lat, lon) at the cells, (…, n)."""
        variable = at_once(view.dataset[name]).transpose(..., view.lat, view.lon)
        return np.asarray(variable.values[(..., *self.at)])


def _components(ds: "xr.Dataset", k: int, basis: "xr.Dataset | None") -> "xr.Dataset":
    """Return a reduction with k components, or as many as there are."""
    from copcube.pca import fit

    CubeView.of(ds).ungrouped()
    if "pc" not in ds and basis is None:
        basis = fit(ds, _ALL)
    fields = reduced(ds, 1, None if basis is None else basis.isel(component=slice(k)))
    return fields.isel(component=slice(k))


def _beside(view: CubeView, cells: _Cells) -> tuple[dict[str, str], dict[str, Any]]:
    """Blocks of what a dataset has beside its vectors, and what the script must know of them."""
    ds, flat = view.dataset, {view.lat, view.lon}
    blocks: dict[str, str] = {}
    about: dict[str, Any] = {"counts": None, "spread": None, "modalities": None}
    if "n_images" in ds and set(ds["n_images"].dims) == flat and counts_images(ds.attrs):
        counts = cells.field(view, "n_images").astype("<u4")
        # High bytes, most of them zero, lie together.
        blocks["counts"] = _deflated(counts.view(np.uint8).reshape(-1, 4).T.tobytes())
        about["counts"] = {"most": int(counts.max())}
    if "spread" in ds and set(ds["spread"].dims) == flat:
        spread = np.nan_to_num(cells.field(view, "spread").astype(np.float32))
        packing = int8_packing(1, [spread[:, None]])
        codes = np.asarray(packing.pack(spread[:, None]), np.int8)[:, 0]
        scale, offset = float(packing.scale[0]), float(packing.offset[0])  # type: ignore[index]
        blocks["spread"], plane = _plane("spread", codes, scale, offset)
        about["spread"] = plane | {"limit": float(spread.max())}
    name = "n_images_by_modality"
    if name in ds and set(ds[name].dims) == flat | {"modality"}:
        counted, keys = cells.field(view, name) > 0, group_labels(ds["modality"])
        if len(keys) > 8:  # a cell has a byte: those that have images are most often fewer
            there = np.flatnonzero(counted.any(axis=1))
            counted, keys = counted[there], tuple(keys[i] for i in there)
        if len(keys) <= 8:
            packed = np.packbits(counted, axis=0, bitorder="little")
            blocks["modalities"] = _deflated(packed.tobytes())
            about["modalities"] = list(keys)
    return blocks, about


def _plane(
    name: str, codes: NDArray[np.int8], scale: float, offset: float
) -> tuple[str, dict[str, Any]]:
    """Block of a code a cell, and what the script must know of it."""
    plain, differences = (
        # Both wrap around within the byte: these differences, and their sums in the script.
        _deflated(part.tobytes())
        for part in (codes, np.diff(codes, prepend=np.int8(0)))
    )
    # Differences of neighbours are smaller where fields are smooth, and larger in noise.
    smooth = len(differences) < len(plain)
    described = {"id": name, "scale": scale, "offset": offset, "differences": smooth}
    return differences if smooth else plain, described


def _coast() -> str:
    return _deflated(np.load(str(files("copcube.plot") / "coast.npy")).astype("<i2").tobytes())


def _deflated(data: bytes) -> str:
    return b64encode(zlib.compress(data)).decode()


def _title(ds: "xr.Dataset") -> str:
    default = "Reduction of an embedding cube" if "pc" in ds else "Embedding cube"
    return printable(str(of_vectors(ds.attrs).get("title", default)))


def _lines(ds: "xr.Dataset", fields: "xr.Dataset") -> Iterator[tuple[str, str]]:
    """Facts about the dataset on the page: its card and origin."""
    yield from card(ds).lines
    if "pc" not in ds:
        share = float(fields["explained_variance_ratio"].sum())
        whose = whose_variance(fields.attrs)
        yield "reduced to", f"{fields.sizes['component']} components, {share:.1%} of {whose}"
    attrs = of_vectors(ds.attrs)
    for name in ("synthetic", "source", "encoder_weights", "encoder_sha256", "history"):
        if name in attrs:
            yield name.replace("_", " "), str(attrs[name])
    yield "written by", f"copcube {__version__}"


def _computed(fields: "xr.Dataset", k: int) -> str:
    """Describe how similarity is computed."""
    share = float(fields["explained_variance_ratio"].values[:k].sum())
    whose = whose_variance(fields.attrs)
    whitened = ""
    if fields.attrs.get("reduction_whiten") == 1:
        whitened = ", each divided by its standard deviation"
    return (
        f"Computed in this page from {k} principal components rounded to 8 bits{whitened}, which "
        f"hold {share:.1%} of {whose}. Cosines of whole embeddings differ: they contain the mean."
    )


def _document(
    title: str,
    warning: str | None,
    about: dict[str, Any],
    head: dict[str, str],
    rest: dict[str, str],
) -> str:
    """Assemble the page; `head` is what the first picture needs."""
    folder = files("copcube.plot") / "browser"
    style = (folder / "page.css").read_text("utf-8")
    script = "\n".join((folder / name).read_text("utf-8") for name in _SCRIPTS)
    # No text in JSON may look like the end of the block, or like a comment that hides it.
    facts = json.dumps(about, allow_nan=False).replace("<", r"\u003c")
    return Template((folder / "page.html").read_text("utf-8")).substitute(
        generator=f"copcube {__version__}",
        title=escape(title),
        caution="" if warning is None else f'<p class="caution">{escape(warning)}</p>',
        style=style,
        style_hash=_named(style),
        script=script,
        script_hash=_named(script),
        first=f'<script type="application/json" id="about">{facts}</script>\n{_blocks(head)}',
        rest=_blocks(rest),
    )


def _blocks(blocks: dict[str, str]) -> str:
    return "\n".join(
        f'<script type="text/plain" id="{name}">{data}</script>' for name, data in blocks.items()
    )


def _named(text: str) -> str:
    """Name of a script or a style in a Content Security Policy."""
    return f"sha256-{b64encode(sha256(text.encode()).digest()).decode()}"
