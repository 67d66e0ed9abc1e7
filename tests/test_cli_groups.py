"""Cubes with groups on the command line: one of them is selected, or each has its row."""

import json

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from copcube.cli import main

BOX = (1, 55.5, 3, 57)
FILES = ("OUT", "TABLE")


@pytest.fixture(scope="module")
def seasons(tmp_path_factory):
    """A cube of two groups of a region, as users save one."""
    path = tmp_path_factory.mktemp("seasons") / "seasons.zarr"
    lat, lon = 60 - 0.25 * np.arange(20), 0.25 * np.arange(30)
    values = np.random.default_rng(0).normal(size=(2, 20, 30, 3)).astype("float32")
    values[1, :8] = np.nan
    xr.Dataset(
        {"embedding": (("season", "lat", "lon", "dim"), values)},
        {"season": ["DJF", "JJA"], "lat": lat, "lon": lon},
    ).to_zarr(path, zarr_format=2)  # has a form of text of its own
    return path


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        ["export", "OUT.npz"],
        ["map", "OUT.png"],
        ["map", "OUT.html"],
        ["points", "TABLE.csv", "OUT.csv"],
        ["box", "--regions", "TABLE.geojson", "--out", "OUT.csv"],
        ["similar", "56", "2"],
    ],
    ids=" ".join,
)
def test_one_is_selected_where_one_is_needed(seasons, words, tmp_path, capsys):
    (tmp_path / "TABLE.csv").write_text("lat,lon\n56,2\n")
    west, south, east, north = BOX
    ring = [[west, south], [east, south], [east, north], [west, north], [west, south]]
    region = {"type": "Polygon", "coordinates": [ring]}
    (tmp_path / "TABLE.geojson").write_text(json.dumps(region))
    name, *rest = (str(tmp_path / word) if word.startswith(FILES) else word for word in words)
    words = [name, str(seasons), *rest]
    assert main(words) == 1
    said = capsys.readouterr().err
    assert "along season" in said
    assert "--group on the command line" in said
    assert main([*words, "--group", "MAM"]) == 1
    assert capsys.readouterr().err == "copcube: --group MAM: expected one of DJF, JJA\n"
    assert not [*tmp_path.glob("OUT*")]
    assert main([*words, "--group", "JJA"]) == 0
    one, outputs = xr.open_zarr(seasons).sel(season="JJA"), [*tmp_path.glob("OUT*")]
    match name, [path.suffix for path in outputs]:
        case "export", _:
            again = xr.open_dataset(outputs[0], engine="copembed").embedding
            np.testing.assert_array_equal(again.sel(lat=one.lat, lon=one.lon), one.embedding)
        case (("points" | "box"), _):
            vectors = pd.read_csv(outputs[0]).filter(like="embedding_").to_numpy()
            wanted = one.sel(lat=56, lon=2) if name == "points" else one.copembed.box(*BOX)
            np.testing.assert_allclose(vectors, [wanted.embedding], rtol=1e-6)
        case "map", suffixes:
            assert len(suffixes) == 1
        case "similar", []:
            assert capsys.readouterr().out.count("\n") > 10


@pytest.mark.slow
def test_a_box_has_a_row_for_each(seasons, capsys):
    assert main(["box", str(seasons), *map(str, BOX)]) == 0
    said = [line.split() for line in capsys.readouterr().out.splitlines()]
    rows = [line for line in said if line and line[0] in ("DJF", "JJA")]
    found = xr.open_zarr(seasons).copembed.box(*BOX)
    assert [row[0] for row in rows] == ["DJF", "JJA"]
    assert [int(row[2]) for row in rows] == found.cells_missing.values.tolist()
    assert [float(row[3]) for row in rows] == pytest.approx(found.coverage.values, abs=5e-4)


@pytest.mark.slow
def test_a_place_has_lines_for_each(seasons, capsys):
    assert main(["at", str(seasons), "59", "2"]) == 0
    said = capsys.readouterr().out
    values = xr.open_zarr(seasons).embedding.sel(lat=59, lon=2, season="DJF").values
    assert f"embedding DJF │ {' '.join(f'{value:.4g}' for value in values)} " in said
    assert "embedding JJA │ nan nan nan " in said


@pytest.mark.slow
def test_changed_places_are_told_to_the_cell_and_by_group(tmp_path, capsys):
    flags = {"flag_values": np.int8([0, 1]), "flag_meanings": "DJF JJA"}
    seasons = xr.DataArray(np.int8([0, 1]), dims="season", attrs=flags)
    places = {"season": seasons, "lat": [10.25], "lon": [123.25]}
    for name, of_summer in (("a.zarr", 1), ("b.zarr", -1)):
        values = np.float32([1, of_summer])[:, None, None, None] * np.float32([1, 2, 3])
        cube = xr.Dataset({"embedding": (("season", "lat", "lon", "dim"), values)}, places)
        cube.to_zarr(tmp_path / name, zarr_format=2)
    words = [str(tmp_path / name) for name in ("a.zarr", "b.zarr", "out.nc")]
    assert main(["change", *words]) == 0
    (row,) = [line.split() for line in capsys.readouterr().out.splitlines() if "10.25" in line]
    assert row[:3] == ["10.25", "123.25", "JJA"]


@pytest.mark.slow
def test_reductions_and_comparisons_of_some(seasons, tmp_path, capsys):
    fields, both, z = (str(tmp_path / f"{name}.nc") for name in ("fields", "both", "z"))
    lat, lon = 90 - 0.25 * np.arange(100, 160), 0.25 * np.arange(40)
    field = (("latitude", "longitude"), np.ones((60, 40), "float32"))
    xr.Dataset({"z": field}, {"latitude": lat, "longitude": lon}).to_netcdf(z)
    assert main(["reduce", str(seasons), fields, "--k", "2", "--group", "JJA"]) == 0
    wanted = xr.open_zarr(seasons).sel(season="JJA").copembed.reduce(2)
    np.testing.assert_array_equal(xr.open_dataset(fields).pc.transpose(*wanted.pc.dims), wanted.pc)
    assert main(["merge", str(seasons), z, both, "--group", "JJA"]) == 0
    assert "season" not in xr.open_dataset(both).dims
    assert main(["merge", fields, z, both, "--group", "JJA", "--overwrite"]) == 1
    assert "expected a cube with groups; this one has no groups" in capsys.readouterr().err
    pair = [str(seasons), str(seasons), "--groups"]
    assert main(["compare", *pair, "DJF", "DJF"]) == 0
    assert "identical            100.00%" in capsys.readouterr().out
    assert main(["compare", *pair, "DJF", "JJA"]) == 0
    assert "only in the first    240" in capsys.readouterr().out
    assert main(["compare", *pair, "DJF", "MAM"]) == 1
    assert "--groups MAM: expected one of DJF, JJA" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (["bench", "cloud-s2", "--root", ".", "--group", "JJA"], "--group is for a cube"),
        (["compare", "--rows", "r", "a.zarr", "--groups", "DJF", "JJA"], "--groups is for two"),
    ],
)
def test_a_group_of_nothing_is_refused(words, match, capsys):
    assert main(words) == 1
    assert match in capsys.readouterr().err
