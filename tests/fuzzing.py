"""Runs commands on mutated files, in a process of its own: ``python fuzzing.py SEEDS FIRST LAST``.

`make_seeds` writes one small file or folder of each form that copcube reads. A number decides a
case: which form, which file of it, how that is mutated, which command reads it. What a command
left behind is removed before the next. Prints a line of JSON for each case that did not end as
a command has to, and at last how many there were and the memory that they took.
"""

import contextlib
import faulthandler
import gzip
import io
import json
import logging
import random
import resource
import shutil
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

SECONDS = 300
"""After which a case counts as hanging; the slowest take about two, on a busy machine sixty."""

OTHERS = (
    b"",
    b"\0" * 4096,
    b"<!DOCTYPE html><html><title>404</title></html>",
    b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 558000000\n",
    b'{"error": "not found"}',
    b"[]",
    b"null",
    b"nothing of the kind\n",
    gzip.compress(b"hello", mtime=0),
    b"\x80\x02}q\0.",
    b"PK\5\6" + b"\0" * 18,
    b"PAR1PAR1",
    b"\x93NUMPY\1\0",
)
VALUES = (None, True, -1, 0, 1e308, 2**63, "", "x", "\x1b[31m", [], [[]], {}, {"a": None}, [1, "a"])

_BUILD = "build {0} {out}.zarr --modalities dem,s5p_co --weights {weights} --language {language}"
COMMANDS: dict[str, tuple[str, ...]] = {
    "tree": (_BUILD, _BUILD + " --strict", _BUILD + " --dry-run"),
    "shards": (_BUILD, _BUILD + " --dry-run"),
    "listed": (_BUILD, _BUILD + " --dry-run"),
    "rows": ("aggregate {0} {out}.zarr", "compare {cube} --rows {0}"),
    "map.npz": ("export {0} {out}.pt", "convert {0} {out}.zarr", "compare {0} {cube}"),
    "map.pt": ("export {0} {out}.npz", "convert {0} {out}.zarr"),
    "map.tif": ("export {0} {out}.npz", "convert {0} {out}.zarr"),
    "map.parquet": ("export {0} {out}.npz", "convert {0} {out}.zarr"),
    "fields.nc": (
        "export {0} {out}.npz",
        "merge {0} {era5} {out}.nc",
        "compare {0} {fields}",
        "explain {0} {era5}",
        "map {0} {out}.png --show component --dpi 20",
    ),
    "fields.npz": ("merge {0} {era5} {out}.zarr", "reduce {cube} {out}.nc --basis {0}"),
    "era5.nc": ("merge {fields} {0} {out}.nc",),
    "era5.zarr": ("merge {fields} {0} {out}.zarr",),
    "cube.zarr": (
        "info {0}",
        "validate {0}",
        "reduce {0} {out}.zarr --k 2",
        "export {0} {out}.npz",
        "export {0} {out}.nc",
        "merge {0} {era5} {out}.zarr",
        "compare {0} {cube}",
        "similar {0} 48 11",
        "change {0} {cube} {out}.nc",
        "map {0} {out}.png --show counts --dpi 20",
    ),
    "fields.zarr": (
        "info {0}",
        "export {0} {out}.parquet",
        "merge {0} {era5} {out}.nc",
        "reduce {cube} {out}.zarr --basis {0}",
    ),
    "built": (
        "status {0}/a.build",
        "validate {0}/a.zarr",
        "build {tree} {0}/a.zarr --modalities dem,s5p_co --weights {weights} --language {language}",
        "aggregate {0}/a.build/rows {out}.zarr",
    ),
    "weights.pth": (_BUILD.replace("{0}", "{tree}").replace("{weights}", "{0}"),),
    "language.pt": (_BUILD.replace("{0}", "{tree}").replace("{language}", "{0}"),),
}
"""Commands that read each form, where ``{0}`` is the mutated one."""


def make_seeds(folder: Path) -> None:
    """Write one of each form."""
    import numpy as np
    import torch
    import xarray as xr

    from copcube.cli import main
    from copcube.encoder.weights import untrained_weights
    from copcube.images.sample.writing import write_sample

    drawn = untrained_weights(0, embed_dim=64, depth=1, heads=1)
    torch.save(drawn.model.state_dict(), folder / "weights.pth")
    torch.save(drawn.language, folder / "language.pt")
    keys = ["dem", "s5p_co"]
    for name, layout in (("tree", "geotiff"), ("shards", "webdataset")):
        write_sample(folder / name, layout, cells=4, dates=1, local_patches=1, modalities=keys)
    # A folder with a listing is read by it, so that the tree alone is tried too.
    shutil.copytree(folder / "tree", folder / "listed")
    for listing in (folder / "tree").glob("fnames_*"):
        listing.unlink()
    built = folder / "built"
    built.mkdir()
    places = {"weights": "weights.pth", "language": "language.pt", "cube": "cube.zarr"}
    where = {key: str(folder / name) for key, name in places.items()}
    run = [
        _BUILD.format(folder / "tree", out=built / "a", **where),
        f"reduce {built}/a.zarr {folder}/fields.zarr --k 2",
        *(f"export {folder}/fields.zarr {folder}/fields.{form}" for form in ("npz", "nc")),
        *(f"export {folder}/fields.zarr {folder}/map.{form}" for form in ("npz", "pt", "tif")),
        f"export {folder}/fields.zarr {folder}/map.parquet",
    ]
    for line in run:
        assert main([*line.split(), "--quiet"]) == 0, line
    shutil.copytree(built / "a.zarr", folder / "cube.zarr")
    shutil.copytree(built / "a.build" / "rows", folder / "rows")
    lat, lon = 90 - 1.5 * np.arange(121), 1.5 * np.arange(240)
    era5 = xr.Dataset(
        {"lsm": (("latitude", "longitude"), np.ones((121, 240), np.float32))},
        {"latitude": lat, "longitude": lon},
    )
    era5.to_netcdf(folder / "era5.nc")
    with warnings.catch_warnings(action="ignore"):
        era5.to_zarr(folder / "era5.zarr", zarr_format=3)


def mutated(data: bytes, dice: random.Random, others: list[bytes]) -> bytes:
    """Return bytes that differ from some in one of the ways in which files go wrong."""
    size = len(data)

    def flips() -> bytes:
        out = bytearray(data)
        for _ in range(dice.choice((1, 1, 4, 64))):
            if out:
                # Headers and footers decide most, and are a small part of most files.
                near = dice.choice((min(size, 512), size))
                at = dice.randrange(near)
                out[dice.choice((at, size - 1 - at))] ^= 1 << dice.randrange(8)
        return bytes(out)

    def cut() -> bytes:
        return data[: dice.randrange(size + 1)]

    def zeroed() -> bytes:
        start = dice.randrange(size + 1)
        length = min(dice.choice((8, 512, size)), size - start)
        return data[:start] + bytes(length) + data[start + length :]

    def spliced() -> bytes:
        piece = dice.choice((*others, dice.randbytes(64), data))[: dice.choice((16, 4096))]
        start = dice.randrange(size + 1)
        return data[:start] + piece + data[start + dice.choice((0, len(piece))) :]

    def noise() -> bytes:
        return dice.randbytes(dice.choice((1, 100, 10_000)))

    def other() -> bytes:
        return dice.choice((*OTHERS, *others))

    def json_value() -> bytes:
        try:
            value = json.loads(data)
        except (ValueError, UnicodeDecodeError):
            return flips()
        place, keys = value, []
        while isinstance(place, dict | list) and place:
            keys.append(dice.choice(list(place) if isinstance(place, dict) else range(len(place))))
            inner = place[keys[-1]]
            if not isinstance(inner, dict | list) or not inner or dice.random() < 0.2:
                break
            place = inner
        if not keys:
            return json.dumps(dice.choice(VALUES)).encode()
        if dice.random() < 0.3:
            del place[keys[-1]]
        else:
            place[keys[-1]] = dice.choice(VALUES)
        return json.dumps(value).encode()

    ways: list[Callable[[], bytes]] = [flips, flips, cut, zeroed, spliced, noise, other]
    return dice.choice([*ways, *([json_value] * 8 if data[:1] in (b"{", b"[") else [])])()


def case(seeds: Path, number: int, work: Path) -> list[str]:
    """Lay out the files of a case in a folder, and return its command."""
    dice = random.Random(number)
    form = list(COMMANDS)[number % len(COMMANDS)]
    seed, target = seeds / form, work / f"{number}-{form}"
    if seed.is_dir():
        shutil.copytree(seed, target)
        files = sorted(path for path in target.rglob("*") if path.is_file())
        # Of a store, the small files are the metadata.
        small = [path for path in files if path.suffix in (".json", ".gz")]
        victim = dice.choice(small if small and dice.random() < 0.6 else files)
    else:
        shutil.copy(seed, target)
        victim = target
    others = [(seeds / name).read_bytes() for name in ("map.pt", "era5.nc", "weights.pth")]
    victim.write_bytes(mutated(victim.read_bytes(), dice, [o[:20_000] for o in others]))
    where = {key: str(seeds / key) for key in ("tree",)}
    names = {"weights": "weights.pth", "language": "language.pt", "cube": "cube.zarr"}
    where |= {key: str(seeds / name) for key, name in names.items()}
    where |= {"era5": str(seeds / "era5.nc"), "fields": str(seeds / "fields.zarr")}
    line = dice.choice(COMMANDS[form])
    return line.format(str(target), out=str(work / "out"), **where).split()


def run(arguments: list[str]) -> tuple[int | str, str]:
    """Run a command; return its exit code, or the error that escaped, and what it said."""
    from copcube.cli import main

    said = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(said):
        try:
            code: int | str = main([*arguments, "--quiet"])
        except BaseException as error:
            code = f"{type(error).__name__}: {error}"
    return code, said.getvalue()


def run_all(seeds: Path, work: Path, first: int, last: int) -> None:
    """Run the cases of some numbers."""
    warnings.simplefilter("ignore")
    logging.captureWarnings(False)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number in range(first, last):
        work.mkdir()
        arguments = case(seeds, number, work)
        print(json.dumps({"begun": number, "arguments": arguments}), flush=True)
        faulthandler.dump_traceback_later(SECONDS, exit=True)
        code, said = run(arguments)
        faulthandler.cancel_dump_traceback_later()
        shutil.rmtree(work)
        if code not in (0, 1) or "Traceback" in said or "unexpected error" in said:
            fault = {"number": number, "arguments": arguments, "code": code, "said": said[-2000:]}
            print(json.dumps(fault), flush=True)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    print(json.dumps({"done": last - first, "kilobytes": grown}))


if __name__ == "__main__":
    run_all(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
