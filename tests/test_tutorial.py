"""The synthetic cube of the globe: a real cube in form, and never taken for one in meaning."""

import json

import numpy as np
import pandas as pd
import pytest
import xarray as xr

import copcube
from copcube import cube, grid, plot, probes, tutorial
from copcube.cli import main
from copcube.cube.caution import caution
from copcube.errors import OptionError, WriteError


@pytest.fixture(scope="module")
def drawn():
    """The cells of the world, drawn once."""
    return tutorial._cells(0)


@pytest.fixture(scope="module")
def world(drawn):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tutorial, "_cells", lambda seed: drawn)
        return tutorial.open()


@pytest.fixture
def band(monkeypatch):
    """Makes worlds of a band of land, which takes a moment only."""
    land = np.zeros((721, 1440), bool)
    land[200:220] = tutorial.land()[200:220]
    return lambda: monkeypatch.setattr(tutorial, "land", lambda: land)


@pytest.fixture(scope="module")
def written(drawn, tmp_path_factory):
    path = tmp_path_factory.mktemp("world") / "world.zarr"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tutorial, "_cells", lambda seed: drawn)
        tutorial.write(path)
    return path


def test_land_is_where_it_is():
    land = tutorial.land()
    share = (land * grid.areas()[:, None]).sum() / (4 * np.pi)
    assert share == pytest.approx(0.292, abs=0.01)  # 148.9 of 510.1 million km²
    lat = [48.1, -23.5, 65, 0, -75, 35, -25, 64.8, 67, -80, -16.3, 72, -90]
    lon = [11.6, -46.6, 100, 25, 0, -100, 135, -18.5, 179.9, 100, 28, -40, 7]
    assert land[grid.cell_at(lat, lon)].all()
    lat = [0, 40, -40, 90, 36, 42, 30, -55, 60, -30, 75, 0]
    lon = [-30, -160, 80, 0, 18, 51, 180, -180, 0, 179.9, -170, -179.9]
    assert not land[grid.cell_at(lat, lon)].any()  # the Mediterranean and the Caspian Sea, too


@pytest.mark.slow
def test_in_memory_and_on_disk_it_is_the_same_cube(world, written, band):
    assert cube.validate(written) == []
    opened = xr.open_zarr(written, chunks=None)
    xr.testing.assert_identical(opened.load().drop_attrs(), world.drop_attrs())
    assert opened.attrs == world.attrs
    assert world.n_images.dtype == np.int32
    assert (world.n_images == world.n_images_by_modality.sum("modality")).all()
    assert ((world.n_images > 0).values == tutorial.land()).all()
    band()
    part = {"lat": slice(200, 220)}
    other, same = tutorial.open(seed=1).embedding[part], world.embedding[part]
    assert np.array_equal(other.notnull(), same.notnull())
    assert not np.allclose(other, same, equal_nan=True)


@pytest.mark.slow
def test_neighbours_are_alike_and_there_is_no_seam(world):
    x = world.embedding.values - np.nanmean(world.embedding.values, axis=(0, 1))
    x /= np.linalg.norm(x, axis=-1, keepdims=True)
    near = np.nansum(x * np.roll(x, 1, axis=1), axis=-1)
    both = np.isfinite(x[..., 0]) & np.isfinite(np.roll(x, 1, axis=1)[..., 0])
    assert near[both].mean() > 0.95
    assert near[:, 0][both[:, 0]].mean() > 0.95  # between 359.75° and 0°


@pytest.mark.slow
def test_it_says_everywhere_that_it_is_synthetic(world, written, band, tmp_path, caplog, capsys):
    band()
    tutorial.open()
    assert "SYNTHETIC cube: drawn at random" in caplog.text
    part = world.isel(lat=slice(160, 180))
    fields = part.copembed.reduce(3)
    told = "no satellite image was read"
    for ds in (part, fields):
        assert "SYNTHETIC" in plot.component(ds).get_title()
        assert told in repr(ds.copembed)
        assert told in ds.copembed._repr_html_()
    assert "SYNTHETIC" in plot.counts(part).get_title()
    for name in ("fields.npz", "fields.pt", "fields.nc", "fields.tif"):
        copcube.interchange.export(fields, tmp_path / name)
        with xr.open_dataset(tmp_path / name, engine="copembed") as again:
            assert again.attrs["synthetic"] == world.attrs["synthetic"]
            assert int(again.attrs["encoder_trained"]) == 0
    plot.page(part, tmp_path / "page.html")
    assert '<p class="caution">SYNTHETIC' in (tmp_path / "page.html").read_text()
    assert main(["info", str(written)]) == 0
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert told in shown
    assert "none: synthetic" in shown
    noted = json.loads((written / "conventions" / "zarr.json").read_text())["attributes"]
    assert "Copernicus" not in f"{noted['geoemb:model']} {noted['geoemb:source_data']}"


UNTRAINED = {"encoder": "none", "encoder_trained": 0}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("attrs", "said"),
    [
        (UNTRAINED | {"synthetic": "drawn at random"}, "SYNTHETIC"),
        (UNTRAINED | {"encoder_trained": "0"}, "UNTRAINED"),  # as some forms of files hold it
    ],
)
def test_what_is_made_of_such_vectors_says_so(attrs, said, tmp_path, capsys):
    rng = np.random.default_rng(0)
    places = {"lat": 60 - 0.25 * np.arange(20), "lon": 0.25 * np.arange(24)}
    values = rng.normal(size=(20, 24, 3)).astype("float32")
    part = xr.Dataset({"embedding": (("lat", "lon", "dim"), values)}, places, attrs)
    like = part.assign_attrs(encoder_trained=1).drop_attrs(deep=False)
    statics = xr.Dataset({"z": (("lat", "lon"), rng.normal(size=(20, 24)))}, places)
    climate = statics.rename(z="x_mean")
    of_part = part.copembed
    found = of_part.probe(climate, cells=None, k=2, seeds=1)
    for made in (
        of_part.similar(58, 2),
        of_part.cluster(2),
        of_part.change(like),
        like.copembed.change(part),
        of_part.compare(like).fields,
        of_part.reduce(2).copembed.explain(statics, block=1),
        of_part.reduce(2).copembed.merge(statics.assign_attrs(synthetic="another")),
        found,
    ):
        assert caution(made.attrs).startswith(said) or made.attrs.get("synthetic") == "another"
    assert said in plot.changed(like.copembed.change(part), like).get_title()
    for text in (
        repr(of_part),
        str(like.copembed.compare(part)),
        *(probes.table(found, form) for form in ("csv", "markdown", "latex")),
        str(copcube.get_embedding(part, spatial=(1, 56, 3, 58), temporal=2021).meta),
        str(copcube.describe(part)),
    ):
        assert "NOT TRAINED" in text or said in text
    copcube.interchange.to_zarr(part, tmp_path / "part.zarr")
    (tmp_path / "places.csv").write_text("lat,lon\n58,2\n")
    for name, *rest in (
        ["points", "places.csv", "points.csv"],
        ["points", "places.csv", "points.parquet"],
        ["box", "1", "56", "3", "58", "--out", "box.csv"],
        ["at", "58", "2"],
    ):
        words = [str(tmp_path / w) if w.endswith((".csv", ".parquet")) else w for w in rest]
        assert main([name, str(tmp_path / "part.zarr"), *words]) == 0
        assert f"WARNING {tmp_path}/part.zarr: {said}" in capsys.readouterr().err
    for table in (
        pd.read_csv(tmp_path / "points.csv"),
        pd.read_parquet(tmp_path / "points.parquet"),
        pd.read_csv(tmp_path / "box.csv"),
    ):
        assert table.caution[0].startswith(said)


@pytest.mark.slow
def test_on_the_command_line(tmp_path, band, capsys):
    band()
    out = tmp_path / "world.zarr"
    assert main(["demo", "--world", str(out)]) == 0
    said = capsys.readouterr()
    assert "SYNTHETIC" in said.err
    assert "synthetic" in said.out
    assert cube.validate(out) == []
    assert main(["demo", "--world", str(out)]) == 1
    assert "exists already" in capsys.readouterr().err
    (tmp_path / "mine").mkdir()
    with pytest.raises(WriteError):
        tutorial.write(tmp_path / "mine", overwrite=True)
    tutorial.write(out, seed=1, overwrite=True)
    assert (
        list(tmp_path.iterdir()) == [out, tmp_path / "mine"] or len(list(tmp_path.iterdir())) == 2
    )


@pytest.mark.slow
def test_static_fields_are_of_the_same_world(world):
    fields = tutorial.statics()
    assert {*fields.data_vars} == {"z", "lsm", "sdor", "slor"}
    assert "SYNTHETIC" in fields.title
    assert (fields.lsm.values == tutorial.land()).all()
    height = fields.z.values.astype(float) / 9.80665
    assert (height[~tutorial.land()] == 0).all()
    assert 2000 < height.max() < 9000
    # The vectors hold the mountains: as linear functions of them, as well as of themselves.
    found = world.copembed.reduce(k=8).copembed.explain(fields[["z"]])
    assert float(found.static_r2_held_out.sel(static="z")) > 0.9


@pytest.mark.slow
def test_static_fields_are_what_their_names_say():
    """Beside NumPy's deviation, and slopes over distances along great circles."""
    fields = tutorial.statics(seed=1)
    height = fields.z.values.astype(float) / 9.80665
    for i, j in np.random.default_rng(0).choice(np.argwhere(height[3:-3] > 500), 20):
        i += 3
        columns = np.arange(j - 2, j + 3) % 1440
        assert fields.sdor.values[i, j] == pytest.approx(
            height[i - 2 : i + 3, columns].std(), rel=1e-2
        )
        lat = np.radians(90 - 0.25 * i)
        east = 2 * np.arcsin(np.cos(lat) * np.sin(np.radians(0.25))) * 6371e3
        north = np.radians(0.5) * 6371e3
        up = (height[i, columns[3]] - height[i, columns[1]]) / east
        along = (height[i - 1, j] - height[i + 1, j]) / north
        assert fields.slor.values[i, j] == pytest.approx(np.hypot(up, along), rel=1e-2)


@pytest.mark.parametrize("seed", ["1", -1, 1.5, None])
def test_a_seed_is_a_whole_number(seed):
    for make in (tutorial.open, tutorial.statics):
        with pytest.raises(OptionError, match=r"seed is .*; expected"):
            make(seed=seed)
