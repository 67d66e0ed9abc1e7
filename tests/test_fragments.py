"""The nearest of many embeddings in tables, against NumPy; fragments as colours on maps."""

import os
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import random_rows, table, write_rows

from copcube import grid, plot
from copcube.cli import main
from copcube.errors import FetchError, MissingPackageError, OptionError, RowsError
from copcube.lookup import Fragments, fit_fragments, project_fragments
from copcube.lookup.fragment_files import holds_fragments
from copcube.lookup.queries import text_vector
from copcube.lookup.ranking import candidates, estimate_squares, lowest
from copcube.lookup.similar import lengths_of, scores
from copcube.products.majortom.sample import write_embeddings


@pytest.fixture(scope="module")
def majortom(tmp_path_factory):
    """Six synthetic sets of Major TOM, 200 fragments each."""
    root = tmp_path_factory.mktemp("majortom") / "sets"
    write_embeddings(root, cells=200, seed=1)
    return sorted(path for path in root.iterdir() if path.is_dir())


@pytest.fixture(scope="module")
def fragments(majortom):
    return Fragments.open(majortom[0])


def plain(x, wanted, metric):
    x, wanted = x.astype(np.float64), np.asarray(wanted, np.float64)
    if metric == "euclidean":
        return np.linalg.norm(x - wanted, axis=1)
    return x @ wanted / np.linalg.norm(x, axis=1) / np.linalg.norm(wanted)


def km(lat, lon, lat0, lon0):
    a, b, c, d = (np.radians(v) for v in (lat, lon, lat0, lon0))
    h = np.sin((a - c) / 2) ** 2 + np.cos(a) * np.cos(c) * np.sin((b - d) / 2) ** 2
    return 2 * 6371.0088 * np.arcsin(np.sqrt(h))


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_scores_are_those_of_a_product_from_files_and_from_memory(fragments, metric):
    loaded = fragments.load()
    wanted = np.random.default_rng(0).normal(size=fragments.dim)
    expected = plain(loaded.vectors, wanted, metric)
    for some in (fragments, loaded):
        np.testing.assert_allclose(some.scores(wanted, metric), expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(fragments.vector(7), loaded.vectors[7])


@pytest.mark.parametrize("apart", [0, 40])
def test_the_list_is_that_of_a_plain_search(fragments, apart, monkeypatch):
    # Few candidates at first, so that more have to be looked at.
    monkeypatch.setattr("copcube.lookup.fragments._FIRST", 5)
    x = fragments.load().vectors
    found = fragments.nearest(row=3, n=6, exclude_km=apart)
    score = plain(x, x[3], "cosine")
    chosen = [3]
    for i in np.argsort(-score, kind="stable"):
        far = km(fragments.lat[i], fragments.lon[i], fragments.lat[chosen], fragments.lon[chosen])
        if i not in chosen and (not apart or far.min() > apart) and len(chosen) <= 6:
            chosen.append(int(i))
    assert found.place_number.values.tolist() == chosen[1:]
    assert len(chosen) > 2
    np.testing.assert_allclose(found.place_similarity, score[chosen[1:]], atol=1e-6)
    assert found.place_cell.values[0].count("_") == 1
    assert found.place_product.values[0].startswith("S2")


def in_memory(x, lat=None):
    lat = np.zeros(len(x)) if lat is None else lat
    x = np.asarray(x, np.float32)
    return Fragments(("none",), np.array([0, len(x)]), lat, lat, x.shape[1], x, lengths_of(x))


def near_duplicates(seed, n, dim, size):
    """Vectors of which some differ from each other in their last digits, or not at all."""
    rng = np.random.default_rng(seed)
    x = (rng.normal(size=dim) * size).astype(np.float32) * np.ones((n, 1), np.float32)
    x[n // 3 :] += (rng.normal(size=(n - n // 3, dim)) * size).astype(np.float32)
    for i in range(1, n // 3):
        x[i, i % dim] = np.nextafter(x[i, i % dim], np.float32(rng.choice([-np.inf, np.inf])))
    return x[rng.permutation(n)]


@pytest.mark.parametrize("size", [1.0, 1e-4, 1e4, 1e-22, 1e19])
@pytest.mark.parametrize("n", [1, 7, 60])
def test_distances_in_memory_are_those_of_differences(size, n, monkeypatch):
    monkeypatch.setattr("copcube.lookup.ranking.STEP", 16)
    monkeypatch.setattr("copcube.lookup.fragments._VALUES", 40 * 32)  # several tasks
    x = near_duplicates(0, 150, 32, size)
    some = in_memory(x)
    for wanted in (x[3].astype(np.float64), x[5] * (1 + 1e-9), np.full(32, size / 3)):
        direct = scores(x, wanted, "euclidean")
        numbers, values = some._ranked(wanted, "euclidean")(n)
        order = np.argsort(direct, kind="stable")[:n]
        np.testing.assert_array_equal(numbers, order)
        np.testing.assert_array_equal(values, direct[order])
        # And differences are those of float64, where single values of products leave float32 too.
        np.testing.assert_allclose(values, plain(x, wanted, "euclidean")[order], rtol=1e-5)


def test_distances_beyond_float32_are_not_listed():
    x = near_duplicates(0, 150, 32, 1.0)
    numbers, values = in_memory(x)._ranked(np.full(32, 1e60), "euclidean")(5)
    assert len(numbers) == len(values) == 0


numbers_of_any_size = st.floats(width=32, allow_nan=False, allow_infinity=False)


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_the_nearest_are_those_of_float64(data):
    dim = data.draw(st.integers(1, 5))
    vector = st.lists(numbers_of_any_size, min_size=dim, max_size=dim)
    given_ = data.draw(st.lists(vector, min_size=1, max_size=12))
    x = np.array(given_, np.float32)
    wanted = np.array(data.draw(vector), np.float64)
    n = data.draw(st.integers(1, 13))
    distance = plain(x, wanted, "euclidean")
    numbers, values = in_memory(x)._ranked(wanted, "euclidean")(n)
    with np.errstate(over="ignore"):
        listed = distance.astype(np.float32)
    assert len(numbers) == min(n, int(np.isfinite(scores(x, wanted, "euclidean")).sum()))
    np.testing.assert_allclose(values, listed[numbers], rtol=2e-6, atol=1e-40)
    # Nothing that is nearer, by more than a distance is rounded, is left out.
    others = np.setdiff1d(np.arange(len(x)), numbers)
    if len(others) and len(numbers):
        assert distance[others].min() >= distance[numbers].max() * (1 - 4e-6) - 1e-40
    assert (np.diff(values) >= 0).all()


@pytest.mark.parametrize("size", [1.0, 1e-14, 1e17, 1e25])
def test_estimates_are_within_their_slack(size, monkeypatch):
    monkeypatch.setattr("copcube.lookup.ranking.STEP", 32)
    x = near_duplicates(1, 200, 768, size)
    for wanted in (x[0].astype(np.float64), np.random.default_rng(2).normal(size=768) * size):
        values, slack = np.empty(200, np.float32), np.empty(7)
        estimate_squares(x, lengths_of(x), wanted, values, slack)
        square = (wanted**2).sum()
        for exact in (plain(x, wanted, "euclidean"), scores(x, wanted, "euclidean")):
            off = np.abs(values - (exact.astype(np.float64) ** 2 - square))
            assert (off <= np.repeat(slack, 32)[:200]).all()
        if size < 1e20:  # beyond, products leave float32, and nothing is known
            assert slack.max() < 1e-3 * 4 * (x.astype(np.float64) ** 2).sum(axis=1).max()
        else:
            assert np.isinf(slack).all()


def test_the_lowest_of_many_are_those_of_a_sort(monkeypatch):
    monkeypatch.setattr("copcube.lookup.ranking.STEP", 16)
    rng = np.random.default_rng(0)
    values = rng.integers(0, 60, 500).astype(np.float32)  # with many ties
    values[rng.random(500) < 0.2] = np.inf
    there = int(np.isfinite(values).sum())
    order = np.argsort(values, kind="stable")
    for n in (0, 1, 2, 31, 33, there, there + 1, 500, 600):
        assert lowest(values, n).tolist() == order[: min(n, there)].tolist()
    slack = rng.random(32)
    true = values + np.repeat(slack, 16)[:500] * rng.uniform(-1, 1, 500)
    order = np.argsort(true, kind="stable")
    for n in (1, 20, 200):
        assert set(order[:n]) <= set(candidates(values, slack, n).tolist())
    assert len(candidates(values, slack, 20)) < 100


def test_few_differences_are_made(monkeypatch):
    x = np.random.default_rng(0).normal(size=(20_000, 64))
    asked = []

    def counting(y, *arguments):
        asked.append(len(y))
        return scores(y, *arguments)

    monkeypatch.setattr("copcube.lookup.fragments.scores", counting)
    numbers, _ = in_memory(x)._ranked(x[0], "euclidean")(20)
    assert numbers[0] == 0
    assert sum(asked) < 40


def test_the_fragment_of_a_place_is_the_nearest(fragments):
    lat, lon = float(fragments.lat[11]) + 0.005, float(fragments.lon[11]) - 360
    assert fragments.at(lat, lon) == int(np.argmin(km(lat, lon, fragments.lat, fragments.lon)))
    by_place, by_row = fragments.nearest(lat, lon, n=3), fragments.nearest(row=11, n=3)
    assert by_place.place_number.values.tolist() == by_row.place_number.values.tolist()
    with pytest.raises(OptionError, match="no fragment within 50 km of latitude 89"):
        fragments.at(89.0, 0.0)


def test_rows_of_images_are_searched_too(tmp_path):
    rows = random_rows(300, 40, 16, 0)
    write_rows(tmp_path / "rows.parquet", rows, {})
    found = Fragments.open(tmp_path / "rows.parquet")
    score = plain(found.load().vectors, rows.embedding[5], "cosine")
    listed = found.nearest(vector=rows.embedding[5], n=4, exclude_km=0)
    assert listed.place_number.values.tolist() == np.argsort(-score)[:4].tolist()
    assert {"place_modality", "place_cell"} <= set(listed.data_vars)


def test_rows_of_patches_lie_where_their_names_say(tmp_path):
    patches = [None, "0865831_-95.92_43.96", "1000001_11.60_48.10"]
    cells = [
        int(grid.grid_id(*grid.cell_at(lat, lon)))
        for lat, lon in ((-60, -170), (44, -96), (48, 11.5))
    ]
    keys = [(cell, 1, patch, "20210601") for cell, patch in zip(cells, patches, strict=True)]
    write_rows(tmp_path / "rows.parquet", table(keys, np.eye(3)), {})
    found = Fragments.open(tmp_path / "rows.parquet")
    assert found.lat.tolist() == [-60, 43.96, 48.10]
    assert found.lon.tolist() == [-170, -95.92, 11.60]
    assert found.at(48.2, 11.5) == 2


def test_rows_of_patches_without_a_place_are_named(tmp_path):
    for patch in ("field 7", "1000001_11.6_48.1", "1000001_200.00_48.10"):
        keys = [(0, 0, None, None), (0, 1, patch, "20210601")]
        write_rows(tmp_path / "rows.parquet", table(keys, np.eye(2)), {})
        with pytest.raises(RowsError, match=rf"rows\.parquet: row 1: .*local_id_coord: .*{patch}"):
            Fragments.open(tmp_path)


def test_footprints_are_of_fragments_alone(tmp_path):
    write_rows(tmp_path / "rows.parquet", random_rows(5), {})
    with pytest.raises(OptionError, match=r"rows\.parquet: .*footprints='swap' do not apply"):
        Fragments.open(tmp_path, footprints="swap")
    with pytest.raises(OptionError, match="footprints='swop'; expected auto or given or swap"):
        Fragments.open(tmp_path, footprints="swop")


def test_rows_of_several_encoders_are_not_searched_together(tmp_path):
    said = {"encoder": "a", "encoder_sha256": "1", "encoder_pooling": "cls"}
    write_rows(tmp_path / "a.parquet", random_rows(5), said)
    for key, other in (("encoder", "b"), ("encoder_sha256", "2"), ("encoder_pooling", "mean")):
        write_rows(tmp_path / "b.parquet", random_rows(5, seed=1), said | {key: other})
        with pytest.raises(RowsError, match=rf"a\.par.*b\.par.*{key}: .* and {other}\); search"):
            Fragments.open(tmp_path)
    for name, offset in (("b", "1000"), ("c", "no number"), ("d", "200")):
        write_rows(tmp_path / f"{name}.parquet", random_rows(5), said | {"s2_offset": offset})
    assert Fragments.open(tmp_path).about["s2_offset"] == "no number or 0 or 200 or 1000"
    write_rows(tmp_path / "b.parquet", random_rows(5, dim=7), said)
    with pytest.raises(RowsError, match=r"length 6, .* of length 7; search the embeddings of one"):
        Fragments.open(tmp_path)


def test_what_made_the_vectors_is_read_once(tmp_path, monkeypatch):
    write_rows(tmp_path / "a.parquet", random_rows(5), {"encoder": "a"})
    fragments = Fragments.open(tmp_path)
    monkeypatch.setattr("copcube.products.tables.provenance", None)
    assert fragments.about["encoder"] == "a"
    assert fragments.nearest(row=0, n=1, exclude_km=0).encoder == "a"


def test_the_command_lists_fragments(majortom, fragments, capsys):
    assert holds_fragments(str(majortom[0]))
    assert main(["nearest", str(majortom[0]), "--row", "3", "-n", "2", "--exclude-km", "0"]) == 0
    out = capsys.readouterr().out
    best = fragments.nearest(row=3, n=2, exclude_km=0)
    for i in range(2):
        assert f"{float(best.place_lat[i]):.4f}" in out
        assert best.place_cell.values[i] in out


def test_the_command_names_a_file_that_holds_no_vector(majortom, tmp_path, capsys):
    np.savez(tmp_path / "v.npz", np.ones(3))
    np.save(tmp_path / "v.npy", np.array([None]))
    for name in ("v.npz", "v.npy", "none.npy"):
        assert main(["nearest", str(majortom[0]), "--vector", str(tmp_path / name)]) == 1
        assert f"{name}: not a readable .npy file (" in capsys.readouterr().err


def test_bad_questions_are_refused(fragments, majortom, tmp_path, capsys):
    with pytest.raises(OptionError, match="one of a place"):
        fragments.nearest()
    with pytest.raises(OptionError, match="one of a place"):
        fragments.nearest(row=1, text="a forest")
    with pytest.raises(OptionError, match="row 200; expected one from 0 to 199"):
        fragments.nearest(row=200)
    for row in (5.0, "5", [5], None):
        with pytest.raises(OptionError, match="expected one from 0 to 199"):
            fragments.vector(row)
    with pytest.raises(OptionError, match=r"row 5\.0; expected one from 0 to 199"):
        fragments.nearest(row=5.0)
    with pytest.raises(OptionError, match="every is '2'"):
        next(fragments.blocks(5, "2"))
    with pytest.raises(OptionError, match="lat is '5'"):
        fragments.at("5", 5)
    with pytest.raises(OptionError, match="footprints='SWAP'; expected auto or given or swap"):
        Fragments.open(majortom[0], footprints="SWAP")
    with pytest.raises(OptionError, match=r"the vector has the shape \(3,\)"):
        fragments.nearest(vector=[1, 2, 3])
    with pytest.raises(OptionError, match="zero or not finite"):
        fragments.nearest(vector=np.zeros(fragments.dim))
    with pytest.raises(RowsError, match="one encoder at a time"):
        Fragments.open(majortom[0].parent)
    with pytest.raises(OptionError, match="in 1152 values; these vectors have 768"):
        text_vector("a forest", 768)
    assert main(["nearest", str(tmp_path), "--row", "0"]) == 1
    assert "no parquet files found" in capsys.readouterr().err


class Clip:
    """Stands in for open_clip: what of it is called, as it is in version 3.3."""

    asked = ()

    def get_tokenizer(self, name):
        self.asked = (name,)
        return lambda texts: torch.tensor([[len(text) for text in texts] * 64])

    def create_model(self, name):
        assert self.asked == (name,)
        return self

    def eval(self):
        return self

    def encode_text(self, words, normalize):
        assert (words.shape, normalize) == ((1, 64), True)
        vector = torch.nn.functional.normalize(words[:, :1] + torch.arange(1152.0), dim=-1)
        return vector.requires_grad_()


def test_a_text_is_embedded_by_siglip(monkeypatch):
    monkeypatch.setitem(sys.modules, "open_clip", Clip())
    x = np.random.default_rng(0).normal(size=(50, 1152))
    x[7] = 9 + np.arange(1152.0)
    found = in_memory(x)._ranked(text_vector("salt lake", 1152).astype(np.float64), "cosine")(2)
    assert found[0][0] == 7
    assert found[1][0] == pytest.approx(1, abs=1e-6)


def test_a_text_needs_open_clip_and_its_weights(monkeypatch):
    def refuse(error):
        def call(name):
            raise error

        return call

    clip = Clip()
    monkeypatch.setitem(sys.modules, "open_clip", clip)
    monkeypatch.setattr(clip, "create_model", refuse(RuntimeError("Failed config\nno network")))
    with pytest.raises(FetchError, match=r"SigLIP.* cannot be loaded: Failed config no network"):
        text_vector("a forest", 1152)
    missing = ImportError("No module named 'transformers'")
    monkeypatch.setattr(clip, "get_tokenizer", refuse(missing))
    with pytest.raises(MissingPackageError, match=r"'transformers\[sentencepiece\]' \(No module"):
        text_vector("a forest", 1152)
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(MissingPackageError, match="open_clip_torch"):
        text_vector("a forest", 1152)


@pytest.mark.slow
def test_the_basis_is_that_of_numpy_and_projects_others(fragments, tmp_path):
    basis = fit_fragments(fragments, 3)
    x = fragments.load().vectors.astype(np.float64)
    variance, columns = np.linalg.eigh(np.cov(x.T))
    np.testing.assert_allclose(basis.explained_variance, variance[::-1][:3], rtol=1e-8)
    pc = project_fragments(fragments, basis)
    expected = (x - x.mean(axis=0)) @ columns[:, ::-1][:, :3]
    np.testing.assert_allclose(np.abs(pc), np.abs(expected), rtol=1e-3, atol=1e-5)
    np.testing.assert_array_equal(project_fragments(fragments.load(), basis), pc)
    every = fit_fragments(fragments, 3, every=2)
    np.testing.assert_allclose(every["mean"], x[::2].mean(axis=0), atol=1e-9)
    assert every.reduction_cells == 100
    assert every.encoder == fragments.about["encoder"]
    assert not {"title", "aggregation_assign"} & {*every.attrs}  # of cubes, not of fragments


def test_a_basis_is_of_the_same_vectors(tmp_path):
    said = {"encoder": "a", "encoder_sha256": "1", "encoder_pooling": "cls"}
    write_rows(tmp_path / "a.parquet", random_rows(9), said)
    found = Fragments.open(tmp_path)
    basis = fit_fragments(found, 2)
    for key in said:
        with pytest.raises(OptionError, match=rf"have {key} .* was fitted on 'other'; use one of"):
            project_fragments(found, basis.assign_attrs({key: "other"}))
    left = basis.assign(
        regression=(("predictor", "dim"), np.ones((1, found.dim))),
        predictor_mean=("predictor", [0.0]),
        predictor=("predictor", [0], {"flag_values": [0], "flag_meanings": "z"}),
    )
    with pytest.raises(OptionError, match="of the residual of z, fields that fragments"):
        project_fragments(found, left)


@pytest.mark.slow
def test_a_map_has_the_colours_of_its_fragments(fragments):
    basis = fit_fragments(fragments, 3)
    axes = plot.fragments(fragments, basis=basis)
    (image,) = axes.images
    pixels, ends = np.asarray(image.get_array()), image.get_extent()
    pc = project_fragments(fragments, basis)
    colour = np.clip(0.5 + pc / (2.5 * np.sqrt(basis.explained_variance.values)) / 2, 0, 1)
    rows, cols = pixels.shape[:2]
    i = ((ends[3] - fragments.lat) / (ends[3] - ends[2]) * rows).astype(int)
    j = ((fragments.lon - ends[0]) / (ends[1] - ends[0]) * cols).astype(int)
    assert (pixels[i, j, 3] == 1).all()
    assert "200 fragments" in axes.get_title()
    alone = [k for k in range(200) if ((i == i[k]) & (j == j[k])).sum() == 1]
    assert len(alone) > 20
    np.testing.assert_allclose(pixels[i, j][alone, :3], colour[alone], atol=1e-5)
    # A part of the region on the same basis has the same colours.
    west, east = np.quantile(fragments.lon, [0.2, 0.8])
    south, north = np.quantile(fragments.lat, [0.2, 0.8])
    part = plot.fragments(fragments, basis=basis, extent=(west, east, south, north))
    assert part.get_xlim() == (west, east)
    with pytest.raises(OptionError, match="no fragment lies in the extent"):
        plot.fragments(fragments, basis=basis, extent=(100, 101, -50, -49))


@pytest.mark.slow
def test_the_command_draws_fragments_and_stores_their_basis(majortom, tmp_path, capsys):
    first, second, basis = tmp_path / "a.png", tmp_path / "b.png", tmp_path / "basis.nc"
    command = ["map", str(majortom[0])]
    assert main([*command, str(first), "--save-basis", str(basis)]) == 0
    assert main([*command, str(second), "--basis", str(basis)]) == 0
    assert first.read_bytes() == second.read_bytes()
    other = ["map", str(majortom[1]), str(tmp_path / "c.png"), "--basis", str(basis)]
    assert main(other) == 1
    assert "basis" in capsys.readouterr().err


@pytest.mark.skipif(sys.platform == "win32", reason="no pipes in folders")
def test_a_pipe_in_place_of_a_basis_is_not_waited_for(majortom, tmp_path, capsys):
    basis = tmp_path / "basis.nc"
    os.mkfifo(basis)
    assert main(["map", str(majortom[0]), str(tmp_path / "a.png"), "--basis", str(basis)]) == 1
    assert f"{basis}: not a file but a named pipe" in capsys.readouterr().err


def test_a_basis_that_may_not_be_replaced_is_refused_before_it_is_computed(
    majortom, tmp_path, capsys, monkeypatch
):
    basis = tmp_path / "basis.nc"
    basis.write_bytes(b"mine")
    monkeypatch.setattr("copcube.lookup.fit_fragments", lambda _: pytest.fail("computed"))
    assert main(["map", str(majortom[0]), str(tmp_path / "a.png"), "--save-basis", str(basis)]) == 1
    assert str(basis) in capsys.readouterr().err
    assert basis.read_bytes() == b"mine"
    # netCDF by another name would not be found again, and the picture would replace it.
    picture = str(tmp_path / "a.png")
    assert main(["map", str(majortom[0]), picture, "--save-basis", picture]) == 1
    assert "expected .nc" in capsys.readouterr().err


def test_of_fragments_there_is_no_page(majortom, tmp_path, capsys):
    assert main(["map", str(majortom[0]), str(tmp_path / "a.html")]) == 1
    assert "a page shows cubes; choose .png" in capsys.readouterr().err
