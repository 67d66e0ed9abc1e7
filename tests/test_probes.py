"""Climate probes: against scikit-learn, scipy, xarray, closed forms and the encoder's own code."""

import csv
import math

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr
from scipy.ndimage import gaussian_filter
from scipy.special import lpmv
from sklearn.linear_model import LinearRegression, Ridge
from sklearn.preprocessing import StandardScaler

import copcube  # noqa: F401  (registers the accessor)
from copcube import pca, plot
from copcube.cli import main
from copcube.cube.view import CubeView
from copcube.encoder import copernicus_fm, kernels
from copcube.errors import CubeError, GridError, OptionError
from copcube.pca.moments import Moments
from copcube.probes import probe, reference, sgd, table
from copcube.probes.coordinates import fourier, harmonics, lonlat, xyz
from copcube.probes.inputs import Input
from copcube.probes.parameters import unit_of
from copcube.probes.ridge import PENALTIES, PartMoments
from copcube.probes.ridge import Ridge as Ours
from copcube.probes.splits import parted, sampled
from copcube.probes.statistics import Targets
from copcube.probes.text import as_text

LAT, LON = np.arange(60, 40, -0.25), np.arange(-10, 15, 0.25) % 360
DIM = 12
SMALL = {"cells": 2000, "inputs": ["lonlat", "embedding", "pc2", "embedding+lonlat"], "seeds": 2}


def cube(seed=0, counts=True):
    """A cube with vectors in 70 % of its cells, whose components have different variances."""
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=(len(LAT), len(LON), DIM)) * 1.5 ** -np.arange(DIM)
    x = scores @ np.linalg.qr(rng.normal(size=(DIM, DIM)))[0] + 2
    there = rng.random(x.shape[:2]) < 0.7
    x[~there] = np.nan
    ds = xr.Dataset(
        {"embedding": (("lat", "lon", "dim"), x.astype("f4"))}, {"lat": LAT, "lon": LON}
    )
    return ds.assign(n_images=(("lat", "lon"), there.astype("i4"))) if counts else ds


def field(values, name="t2m", unit="K"):
    return xr.Dataset(
        {name: (("latitude", "longitude"), values, {"units": unit})},
        {"latitude": LAT, "longitude": LON},
    )


def noise(seed=5):
    return np.random.default_rng(seed).normal(size=(len(LAT), len(LON)))


def months(n=24, name="t2m", unit="K", seed=3):
    rng = np.random.default_rng(seed)
    data = 280 + 8 * rng.normal(size=(n, len(LAT), len(LON)))
    time = np.datetime64("2010-01") + np.arange(n)
    return xr.Dataset(
        {name: (("time", "latitude", "longitude"), data, {"units": unit})},
        {"time": time.astype("M8[ns]"), "latitude": LAT, "longitude": LON},
    )


# Coordinates


def test_the_fourier_code_is_that_of_the_encoder():
    lat = np.array([-90, -33.25, 0, 47.5, 89.75, 90])
    lon = np.array([0.25, 359.75, -180, 11.5, 179.75, 180])
    turned = (lon + 180) % 360 - 180
    halves = (torch.tensor(turned + 180), torch.tensor(lat + 90))
    want = torch.cat([kernels.fourier(x, *copernicus_fm._DEGREES, 384) for x in halves], dim=-1)
    np.testing.assert_allclose(fourier(lat, lon), want.numpy(), atol=6e-8)
    assert fourier(lat, lon).shape == (6, 768)


def test_harmonics_are_the_closed_form():
    rng = np.random.default_rng(0)
    lat, lon = rng.uniform(-90, 90, 40), rng.uniform(0, 360, 40)
    got = iter(harmonics(lat, lon, 7).T)
    for n in range(1, 8):
        for m in range(-n, n + 1):
            k = abs(m)
            norm = math.sqrt((2 * n + 1) / (4 * math.pi) * math.factorial(n - k))
            norm /= math.sqrt(math.factorial(n + k))
            want = (-1) ** k * norm * lpmv(k, n, np.sin(np.radians(lat)))
            angle = k * np.radians(lon)
            want *= 1 if m == 0 else math.sqrt(2) * (np.sin(angle) if m < 0 else np.cos(angle))
            np.testing.assert_allclose(next(got), want, atol=1e-12)
    assert next(got, None) is None


def test_raw_coordinates_and_points_of_the_sphere():
    np.testing.assert_array_equal(lonlat([10, -5], [350, 180]), [[-10, 10], [-180, -5]])
    np.testing.assert_allclose(xyz([0, 90, 0], [0, 45, 90]), np.eye(3)[[0, 2, 1]], atol=1e-15)


# Ridge


def parts_of(x, y, cuts):
    both = np.concatenate([x, y], axis=1)
    return [PartMoments.of(Moments.of(p, np.ones(len(p)))) for p in np.split(both, cuts)]


@pytest.mark.parametrize("inputs", ["normal", "fourier", "collinear"])
@pytest.mark.parametrize("strength", [1e-6, 1e-3, 1, 100])
def test_coefficients_are_those_of_scikit_learn(inputs, strength):
    rng = np.random.default_rng(1)
    lat, lon = rng.choice(LAT, 900), rng.choice(LON, 900)
    x = {
        "normal": 1e3 + rng.normal(size=(900, 20)) * 10.0 ** rng.integers(-3, 3, 20),
        "fourier": fourier(lat, lon, 192),
        "collinear": np.repeat(rng.normal(size=(900, 5)), 3, axis=1) + np.arange(15),
    }[inputs]
    y = np.stack([1e5 + 7e3 * np.sin(lat / 9) + lon, rng.normal(size=900)], axis=1)
    train, validation, _ = parts_of(x, y, [600, 750])
    n = x.shape[1]
    ours = Ours.fit(train, validation, np.arange(n), np.arange(n, n + 2), [strength])
    scaler = StandardScaler().fit(x[:600])
    theirs = Ridge(strength * 600, solver="svd").fit(scaler.transform(x[:600]), y[:600])
    ours_scaled = ours.coefficients * scaler.scale_[:, None]
    atol = 1e-6 * np.abs(theirs.coef_).max(axis=1)
    for t in range(2):
        np.testing.assert_allclose(ours_scaled[:, t], theirs.coef_[t], rtol=1e-6, atol=atol[t])
    predicted = x @ ours.coefficients + ours.intercept
    np.testing.assert_allclose(predicted, theirs.predict(scaler.transform(x)), rtol=1e-6, atol=1e-6)


def test_without_a_penalty_it_is_least_squares_of_least_norm():
    rng = np.random.default_rng(2)
    x = rng.normal(size=(300, 6))
    x = np.concatenate([x, x[:, :2], np.ones((300, 1))], axis=1)  # repeated and constant ones
    y = x @ rng.normal(size=(9, 3)) + 0.1 * rng.normal(size=(300, 3))
    train, validation, test = parts_of(x, y, [200, 250])
    ours = Ours.fit(train, validation, np.arange(9), np.arange(9, 12), [0.0])
    scaled = StandardScaler().fit(x[:200])
    theirs = LinearRegression().fit(scaled.transform(x[:200]), y[:200])
    predicted = theirs.predict(scaled.transform(x[250:]))
    np.testing.assert_allclose(x[250:] @ ours.coefficients + ours.intercept, predicted, rtol=1e-9)
    want = ((predicted - y[250:]) ** 2).mean(axis=0)
    np.testing.assert_allclose(ours.errors(train, test), want, rtol=1e-9)


def test_constant_inputs_explain_nothing_whatever_the_rounding():
    constants = np.random.default_rng(1).normal(size=300) * 1e3
    part = PartMoments.of(Moments.of(np.tile(constants, (211, 1)), np.ones(211)))
    assert np.isinf(part.scales(np.arange(300))).all()


def test_validation_chooses_the_strength_for_each_target():
    rng = np.random.default_rng(4)
    x = rng.normal(size=(200, 60))
    signal = x[:, :1] * 3
    y = np.concatenate(
        [signal + 1e-6 * noise()[:2, :100].reshape(-1, 1), rng.normal(size=(200, 1))], 1
    )
    train, validation, _ = parts_of(x, y, [100, 160])
    ours = Ours.fit(train, validation, np.arange(60), np.arange(60, 62))
    scaler = StandardScaler().fit(x[:100])
    z = scaler.transform(x)
    errors = []
    for strength in PENALTIES:
        model = Ridge(strength * 100) if strength else LinearRegression()
        off = model.fit(z[:100], y[:100]).predict(z[100:160]) - y[100:160]
        errors.append((off**2).mean(axis=0))
    assert ours.strength.tolist() == [PENALTIES[i] for i in np.argmin(errors, axis=0)]
    assert ours.strength[0] < 1e-2 < ours.strength[1]


@pytest.mark.parametrize("steps", [1, 7, 300])
def test_descent_is_gradient_descent_stopped_early(steps):
    rng = np.random.default_rng(6)
    x = rng.normal(size=(300, 8)) @ rng.normal(size=(8, 8)) + 5
    x[:, 7] = 2 * x[:, 0]
    y = x @ rng.normal(size=(8, 2)) + rng.normal(size=(300, 2))
    train, validation, _ = parts_of(x, y, [200, 250])
    columns, targets = np.arange(8), np.arange(8, 10)
    ours = Ours.fit(train, validation, columns, targets, [steps], "descent")
    z = StandardScaler().fit(x[:200]).transform(x[:200])
    off = y[:200] - y[:200].mean(axis=0)
    rate = 1 / np.linalg.eigvalsh(z.T @ z / 200)[-1]
    theirs = np.zeros((8, 2))
    for _ in range(steps):
        theirs -= rate * z.T @ (z @ theirs - off) / 200
    ours_scaled = ours.coefficients * x[:200].std(axis=0)[:, None]
    np.testing.assert_allclose(ours_scaled, theirs, rtol=1e-8, atol=1e-10)


def test_solvers_can_be_chosen():
    ds, made = cube(), field(270 + cube().embedding.fillna(0).values[..., 0])
    found = probe(ds, made, inputs=["embedding"], cells=1000, solver="descent")
    assert found.rmse.max() < 0.05
    assert found.steps.min() >= 1
    assert "penalty" not in found
    with pytest.raises(OptionError, match="solver='adam'; expected ridge or descent or sgd"):
        probe(ds, made, solver="adam")


def test_stochastic_descent_is_that_of_torch(monkeypatch):
    """The same batches give the same weights; what is kept is the best epoch of each target."""
    monkeypatch.setattr(sgd, "EPOCHS", 3)
    rng = np.random.default_rng(5)
    x = rng.normal(size=(300, 6)) * [1, 9, 0.1, 2, 0, 3] + [5, 0, 2, 0, 7, 1]
    y = x @ rng.normal(size=(6, 2)) + 0.1 * rng.normal(size=(300, 2))
    table = np.hstack([x, y])
    columns, targets = np.arange(6), np.arange(6, 8)
    train = PartMoments.of(Moments.of(table[:200], np.ones(200)))
    ours = sgd.fit(train, x[:200], y[:200], (x[200:], y[200:]), columns, targets, seed=3)
    assert ours.strength.tolist() == [3, 3]

    scale = x[:200].std(axis=0)
    scale[4] = np.inf
    z = torch.tensor((x[:200] - x[:200].mean(axis=0)) / scale)
    t = torch.tensor((y[:200] - y[:200].mean(axis=0)) / y[:200].std(axis=0))
    weight = torch.zeros((6, 2), dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.SGD([weight], lr=(1 - sgd.MOMENTUM) / 5, momentum=sgd.MOMENTUM)
    order = np.random.default_rng(3)
    for _ in range(3):
        for some in np.split(order.permutation(200), [64, 128, 192]):
            optimiser.zero_grad()
            (((z[some] @ weight - t[some]) ** 2).sum(dim=1).mean() / 2).backward()
            optimiser.step()
    theirs = weight.detach().numpy() * y[:200].std(axis=0) / scale[:, None]
    np.testing.assert_allclose(ours.coefficients, theirs, rtol=1e-9, atol=1e-12)


def test_stochastic_descent_comes_near_ridge():
    ds, made = cube(), field(270 + cube().embedding.fillna(0).values[..., :3].sum(axis=-1))
    options = {"inputs": ["embedding", "pc4"], "cells": 600, "seeds": 2}
    exact = probe(ds, made, **options)
    found = probe(ds, made, solver="sgd", **options)
    assert found.epochs.min() >= 1
    spread = exact.rmse / np.sqrt(1 - exact.r2)
    assert (found.rmse - exact.rmse < 0.1 * spread).all()
    again = probe(ds, made, solver="sgd", **options)
    assert again.identical(found)


def test_stochastic_descent_takes_no_more_cells_than_fit_into_memory(monkeypatch):
    monkeypatch.setattr(sgd, "MOST_CELLS", 500)
    ds, made = cube(), field(270 + cube().embedding.fillna(0).values[..., 0])
    with pytest.raises(OptionError, match=r"600 are drawn; expected at most 500.*--cells"):
        probe(ds, made, inputs=["embedding"], cells=600, seeds=1, solver="sgd")


# The probe


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("counts", [True, False])
def test_a_statistic_made_of_components_is_recovered_to_rounding(lazy, counts):
    ds = cube(counts=counts)
    pc = pca.reduce(ds, 3, weights=None)
    exact = pc.pc.astype("f8").fillna(0)
    made = field((280 + 4 * exact[..., 0] - 2 * exact[..., 2]).values)
    ds = ds.chunk(lat=17, lon=45) if lazy else ds
    found = probe(
        ds, made, cells=None, inputs=["lonlat", "embedding", "pc2", "pc3"], residuals="embedding"
    )
    errors = found.rmse.mean("seed").squeeze("target").to_series()
    spread = float(made.t2m.where(ds.embedding[..., 0].notnull().values).std())
    assert errors["embedding"] < 2e-6 * spread
    assert errors["lonlat"] > 0.9 * spread
    # Components are those of the training cells, nearly those of all.
    assert errors["pc3"] < 0.1 * errors["pc2"]
    assert np.nanmax(np.abs(found.residual)) < 1e-5 * spread
    # From a reduction, whose components are its own, just so many suffice.
    own = (
        probe(pc, made, cells=None, inputs=["pc2", "pc3"])
        .rmse.mean("seed")
        .squeeze("target")
        .to_series()
    )
    assert own["pc3"] < 2e-6 * spread
    assert own["pc2"] > 0.1 * spread


def test_errors_are_those_of_scikit_learn_on_the_same_cells():
    ds, given = cube(), xr.merge([field(noise(7), "z", "m2 s-2"), field(noise(8), "lsm", "1")])
    y = 270 + 3 * ds.embedding.values[..., 0] + given.z.values + noise(9)
    found = probe(
        ds, field(y), given=given, cells=1500, seeds=[11], inputs=["embedding+given", "given"]
    )
    i, j = np.nonzero(ds.n_images.values)
    rng = np.random.default_rng(11)
    drawn = sampled(np.ones(len(i)), 1500, "cells", rng)
    i, j = i[drawn], j[drawn]
    part = parted(LAT[i], LON[j], "random", 10, (0.6, 0.2, 0.2), rng)
    x = np.concatenate(
        [ds.embedding.values[i, j], given.z.values[i, j, None], given.lsm.values[i, j, None]], 1
    )
    for name, columns in (("embedding+given", slice(None)), ("given", slice(DIM, None))):
        one = found.sel(input=name).squeeze()
        z = StandardScaler().fit(x[part == 0][:, columns]).transform(x[:, columns].astype(float))
        strength = float(one.penalty) * (part == 0).sum()
        model = Ridge(strength) if strength else LinearRegression()
        off = model.fit(z[part == 0], y[i, j][part == 0]).predict(z[part == 2]) - y[i, j][part == 2]
        assert float(one.rmse) == pytest.approx(np.sqrt((off**2).mean()), rel=1e-6)
        variance = (y[i, j][part == 2]).var()
        assert float(one.r2) == pytest.approx(1 - (off**2).mean() / variance, rel=1e-6)
    adds = 1 - (found.rmse.sel(input="embedding+given") / found.rmse.sel(input="given")) ** 2
    np.testing.assert_allclose(found.embedding_adds.sel(over="given"), adds)
    assert found.cells.values.tolist() == [[900, 300, 300]]
    assert found.attrs["given"] == ["z", "lsm"] or found.attrs["given"] == '["z", "lsm"]'


@pytest.mark.parametrize("solver", ["ridge", "descent"])
def test_components_beyond_the_rank_of_the_training_cells_explain_nothing(solver):
    few = cube().isel(lat=slice(0, 15), lon=slice(0, 15), dim=[0, 1, 2, 0, 1, 2, 0])
    inputs = ["pc3", "pc5", "pc7", "pc3+xyz", "pc7+xyz"]
    target = field(noise()).isel(latitude=slice(0, 15), longitude=slice(0, 15))
    target = target.rename(t2m="t2m_mean")
    found = probe(few, target, inputs=inputs, seeds=2, solver=solver)
    rmse = found.rmse.transpose("input", ...).values
    np.testing.assert_allclose(rmse[[1, 2, 4]], rmse[[0, 0, 3]], rtol=1e-9)


@pytest.mark.parametrize("split", ["random", "blocks"])
@pytest.mark.parametrize("name", ["embedding+lonlat", "pc4", "xyz"])
def test_residuals_are_the_errors_of_the_test_cells(split, name):
    ds = cube()
    y = 270 + ds.embedding.fillna(0).values[..., 0] + noise()
    found = probe(
        ds, field(y), cells=None, seeds=1, inputs=[name], split=split, block=5, residuals=name
    )
    off = found.residual.sel(target="t2m_mean").values
    assert np.isfinite(off).sum() == int(found.cells.sel(part="test")[0])
    assert np.sqrt(np.nanmean(off**2)) == pytest.approx(found.rmse.item(), rel=1e-5)
    assert not np.isfinite(off[ds.n_images.values == 0]).any()


def test_residuals_of_a_sample_lie_at_all_cells_that_no_model_saw():
    ds = cube()
    found = probe(
        ds, field(270 + noise()), cells=500, seeds=2, inputs=["lonlat"], residuals="lonlat"
    )
    there = np.isfinite(found.residual.values[0])
    # A cell would have to be among 400 of some 5,600 for both seeds.
    assert ds.n_images.values.sum() - there.sum() < 100
    np.testing.assert_array_equal(found.lat, LAT)


def test_blocks_are_never_divided():
    rng = np.random.default_rng(0)
    lat, lon = (a.ravel() for a in np.meshgrid(np.arange(90, -90.1, -2), np.arange(0, 360, 2.0)))
    part = parted(lat, lon, "blocks", 10.0, (0.6, 0.2, 0.2), rng)
    square = ((90 - lat) // 10) * 100 + lon // 10
    assert all(len(set(part[square == s])) == 1 for s in np.unique(square))
    np.testing.assert_allclose(np.bincount(part) / len(part), [0.6, 0.2, 0.2], atol=0.02)
    alone = parted(lat, lon, "random", 10.0, (0.5, 0.25, 0.25), rng)
    np.testing.assert_allclose(np.bincount(alone) / len(part), [0.5, 0.25, 0.25], atol=1e-3)


def test_blocks_are_harder_than_random_cells_where_neighbours_are_alike():
    """Smooth vectors say where a cell is, and so what its neighbours have, but no more."""
    rng = np.random.default_rng(0)
    smooth = gaussian_filter(rng.normal(size=(len(LAT), len(LON), 61)), (8, 8, 0))
    smooth /= smooth.std()
    ds = cube().assign(embedding=(("lat", "lon", "dim"), smooth[..., 1:].astype("f4")))
    options = {"inputs": ["embedding"], "cells": 3000, "block": 5}
    made = field(270 + smooth[..., 0])
    random, blocks = (probe(ds, made, split=s, **options).r2.mean() for s in ("random", "blocks"))
    assert random > 0.5
    assert blocks < 0.1


def test_area_makes_cells_likely_by_their_area():
    areas = np.repeat([1.0, 3.0], 5000)
    chosen = sampled(areas, 1000, "area", np.random.default_rng(0))
    assert chosen.sum() == 1000
    assert chosen[5000:].sum() == pytest.approx(750, abs=40)
    assert sampled(areas, 100, "cells", np.random.default_rng(0))[5000:].sum() < 65
    assert sampled(areas, None, "cells", np.random.default_rng(0)).all()


def test_only_complete_cells_are_drawn_where_modalities_are_counted():
    ds = cube()
    by = np.stack([ds.n_images.values, ds.n_images.values, 0 * ds.n_images.values]).astype("i4")
    by[1, :, ::2] = 0
    ds["n_images_by_modality"] = ("modality", "lat", "lon"), by
    made = field(270 + noise())
    whole = probe(ds, made, inputs=["lonlat"], cells=None)
    assert whole.attrs["cells_in_common"] == int((by[:2] > 0).all(axis=0).sum())
    every = probe(ds, made, inputs=["lonlat"], cells=None, complete=False)
    assert every.attrs["cells_in_common"] == int((by[0] > 0).sum())
    by[1, :, 2:] = 0
    ds["n_images_by_modality"] = ("modality", "lat", "lon"), by
    with pytest.raises(CubeError, match=r"[0-9]+ hold all modalities \(else --incomplete"):
        probe(ds, made)


def test_seeds_decide_everything():
    made = field(270 + noise())
    a, b = (probe(cube(), made, **SMALL) for _ in range(2))
    xr.testing.assert_identical(a, b)
    other = probe(cube(), made, **{**SMALL, "seeds": [7, 0]})
    np.testing.assert_allclose(other.rmse.sel(seed=0), a.rmse.sel(seed=0), rtol=1e-12)
    assert (other.rmse.sel(seed=7) != a.rmse.sel(seed=1)).all()


def test_vectors_that_were_masked_are_left_out():
    ds = cube()
    masked = ds.assign(embedding=ds.embedding.where(ds.lat > 50))
    found = probe(masked, field(270 + noise()), inputs=["embedding"], cells=None, seeds=1)
    assert int(found.cells.sum()) == int(ds.n_images.where(ds.lat > 50).sum())


@pytest.mark.slow
def test_the_default_inputs_are_those_of_the_issue():
    given = field(noise(), "z", "m2 s-2")
    found = probe(cube(), field(270 + noise()), given=given, cells=400, seeds=1)
    want = ["lonlat", "fourier", "xyz", "harmonics10", "embedding", "embedding+fourier", "given"]
    want += ["embedding+given", "pc1", "pc2", "pc4", "pc8"]
    assert found["input"].values.tolist() == want + [f"pc{k}+given" for k in (1, 2, 4, 8)]
    assert found["components"].values.tolist() == [0] * 8 + [1, 2, 4, 8] * 2
    assert found["over"].values.tolist() == ["fourier", "given"]


# Statistics


def of(ds, view=None, **options):
    return Targets.of(ds, view or CubeView.of(cube()), **options)


def test_months_become_mean_and_standard_deviation():
    ds = xr.merge([months(), months(name="tp", unit="m", seed=4)])
    ds.tp.attrs["GRIB_stepType"] = "avgad"
    ds["tp"] = ds.tp * 1e-5
    ds.tp.attrs |= {"units": "m", "GRIB_stepType": "avgad"}
    ds = ds.transpose("longitude", "time", "latitude").sortby("latitude")
    made = of(ds)
    names = [target.name for target in made.targets]
    assert (names, made.months, made.how) == (
        ["t2m_mean", "t2m_std", "tp_mean", "tp_std"],
        24,
        "by index",
    )
    ordered = ds.transpose("latitude", "longitude", "time").sel(latitude=LAT)
    for n, (name, factor, offset) in enumerate((("t2m", 1, -273.15), ("tp", 365.25, 0))):
        mean = factor * ordered[name].mean("time") + offset
        np.testing.assert_allclose(made.values[..., 2 * n], mean, rtol=1e-12)
        std = factor * ordered[name].std("time")
        np.testing.assert_allclose(made.values[..., 2 * n + 1], std, rtol=1e-10)


@pytest.mark.parametrize(
    ("name", "unit", "attrs", "want", "factor", "offset"),
    [
        ("2m_temperature", "K", {}, "t2m_mean", 1, -273.15),
        ("mean_2m_air_temperature", "K", {}, "t2m_mean", 1, -273.15),
        ("VAR", "K", {"GRIB_paramId": 167}, "t2m_mean", 1, -273.15),
        ("t2m_std", "K", {}, "t2m_std", 1, 0),
        ("std_2t", "degC", {}, "t2m_std", 1, 0),
        ("tas", "C", {"cell_methods": "time: standard_deviation"}, "t2m_std", 1, 0),
        ("avg_tprate", "kg m**-2 s**-1", {}, "tp_mean", 365.25 * 86.4, 0),
        ("total_precipitation", "mm/month", {}, "tp_mean", 0.012, 0),
        ("surface_pressure_avg", "hPa", {}, "sp_mean", 100, 0),
        ("psl", "millibars", {}, "msl_mean", 100, 0),
        ("10m_u_component_of_wind", "m s**-1", {}, "u10_mean", 1, 0),
        ("v_component_of_wind_10m", "m/s", {}, "v10_mean", 1, 0),
        ("swvl1", "m3 m-3", {}, "swvl1_mean", 1, 0),
        ("swvl1_stdev", "", {}, "swvl1_std", 1, 0),
    ],
)
def test_variables_are_known_by_any_usual_name_and_unit(name, unit, attrs, want, factor, offset):
    values = noise() + 3
    ds = field(values, name, unit)
    ds[name].attrs |= attrs
    made = of(ds)
    assert [target.name for target in made.targets] == [want]
    np.testing.assert_allclose(made.values[..., 0], factor * values + offset, rtol=1e-12)


@pytest.mark.parametrize("shift", [0, 360])
def test_a_coarser_grid_is_interpolated_as_xarray_does(shift):
    lat, lon = np.arange(-90, 90.1, 1.5), np.arange(-180, 180, 1.5) + shift
    rng = np.random.default_rng(0)
    data = rng.normal(size=(len(lat), len(lon)))
    ds = xr.Dataset({"swvl1": (("lat", "lon"), data)}, {"lat": lat, "lon": lon})
    made = of(ds)
    ring = xr.concat([ds, ds.isel(lon=[0]).assign_coords(lon=[lon[0] + 360])], "lon")
    at = (LON - lon[0]) % 360 + lon[0]
    want = ring.swvl1.interp(lat=LAT, lon=at).values
    np.testing.assert_allclose(made.values[..., 0], want, atol=1e-12)
    assert made.how == "interpolated"


def test_a_finer_grid_is_averaged_by_area():
    step = 0.05
    lat, lon = np.arange(39, 61, step), np.arange(-11, 16, step)
    data = np.random.default_rng(0).normal(size=(len(lat), len(lon)))
    ds = xr.Dataset({"swvl1": (("lat", "lon"), data)}, {"lat": lat, "lon": lon})
    made = of(ds)
    i, j = 33, 77
    y, x = LAT[i], (LON[j] + 180) % 360 - 180
    rows, cols = np.abs(lat - y) < 0.125, np.abs(lon - x) < 0.125
    assert (rows.sum(), cols.sum()) == (5, 5)
    edges = np.sin(np.radians(lat[rows] + step / 2)) - np.sin(np.radians(lat[rows] - step / 2))
    want = np.average(data[np.ix_(rows, cols)].mean(axis=1), weights=edges)
    assert made.values[i, j, 0] == pytest.approx(want, rel=1e-9)
    assert made.how == "averaged"
    # What is missing is left out of the mean while half of the cell is there.
    data[np.ix_(np.flatnonzero(rows)[:2], cols)] = np.nan
    want = np.average(data[np.ix_(rows, cols)][2:].mean(axis=1), weights=edges[2:])
    assert of(ds).values[i, j, 0] == pytest.approx(want, rel=1e-9)
    data[np.ix_(rows, np.flatnonzero(cols)[:4])] = np.nan
    assert np.isnan(of(ds).values[i, j, 0])


def test_half_of_a_cell_is_enough_whatever_the_rounding_of_its_shares():
    """Every second cell has a tenth and two fifths of it covered by nodes 0.1° apart."""
    nodes = np.arange(-110, 160)
    there = nodes % 5 < 3
    data = np.broadcast_to(np.where(there, 1.0, np.nan), (len(LAT), len(nodes)))
    ds = xr.Dataset({"swvl1": (("lat", "lon"), data)}, {"lat": LAT, "lon": nodes / 10})
    np.testing.assert_allclose(of(ds).values, 1)


def test_nodes_at_the_corners_of_cells_are_averaged():
    lat, lon = np.arange(-90.125, 90.2, 0.25), np.arange(-180.125, 180.2, 0.25)
    data = np.add.outer(lat, 0 * lon) + np.sin(np.radians(lon))
    ds = xr.Dataset({"swvl1": (("lat", "lon"), data)}, {"lat": lat, "lon": lon})
    want = np.add.outer(LAT, np.sin(np.radians(LON)))
    np.testing.assert_allclose(of(ds).values[..., 0], want, atol=1e-3)


def test_interpolation_needs_both_nodes_and_stays_in_the_region():
    lat, lon = np.arange(50, 61.0), np.arange(-5, 6.0)
    data = np.ones((len(lat), len(lon)))
    data[3, 3] = np.nan
    made = of(xr.Dataset({"swvl1": (("lat", "lon"), data)}, {"lat": lat, "lon": lon}))
    values = made.values[..., 0]
    inside = np.isfinite(values)
    y, x = np.meshgrid(LAT, (LON + 180) % 360 - 180, indexing="ij")
    near = (np.abs(y - 53) < 1) & (np.abs(x + 2) < 1)
    region = (y >= 49.5) & (np.abs(x) <= 5.5)
    np.testing.assert_array_equal(inside, region & ~near)


def test_several_datasets_have_grids_of_their_own():
    coarse = xr.Dataset(
        {
            "msl": (
                ("lat", "lon"),
                np.random.default_rng(0).normal(size=(181, 360)),
                {"units": "Pa"},
            )
        },
        {"lat": np.arange(-90, 91.0), "lon": np.arange(0, 360.0)},
    )
    made = of([coarse, months(12)])
    assert [target.name for target in made.targets] == ["t2m_mean", "t2m_std", "msl_mean"]
    assert made.how == "by index and interpolated"
    assert np.isfinite(made.values).all()


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("K", "K"),
        ("kg m-2 s-1", "mm/s"),
        ("m d**-1", "m/day"),
        ("mm a year", "mm/year"),
        ("m", "m"),
    ],
)
def test_units_are_spelled_in_many_ways(text, want):
    assert unit_of(text) == want


# Bad input


def whole_days():
    ds = months()
    return ds.assign_coords(time=np.datetime64("2010-01-01") + np.arange(24)).astype("f8")


@pytest.mark.parametrize(
    ("given", "options", "error", "words"),
    [
        (field(noise(), "tp", "m"), {}, OptionError, "which does not state the time"),
        (field(noise(), unit=""), {}, OptionError, r"t2m has no unit.*--units t2m=K"),
        (field(noise(), unit="furlong"), {}, OptionError, "t2m is in 'furlong'; expected one of K"),
        (field(noise()), {"variables": ["sp"]}, OptionError, "no variable sp .* they have t2m"),
        (field(noise()), {"variables": "t2m"}, OptionError, "expected a list"),
        (field(noise()), {"units": {"tp": "m"}}, OptionError, "no variable tp"),
        (field(0 * noise()), {}, CubeError, "t2m_mean is -273.15 °C at all [0-9]+ cells"),
        (xr.Dataset({"a": 1}), {}, CubeError, "latitude"),
        (months().expand_dims(level=2), {}, CubeError, "select one of level and time"),
        (months().rename(t2m="t2m_std"), {}, CubeError, "named as a std, yet runs along time"),
        (whole_days(), {}, CubeError, r"steps of 1 days along time.*resample"),
        (
            xr.merge([field(noise()), field(noise(), "2t")]),
            {},
            CubeError,
            "another variable already gives t2m_mean",
        ),
        (field(noise()).assign_coords(latitude=LAT - 80), {}, GridError, "where the cube has no"),
        (
            field(np.where(noise() > 2.2, 1, np.nan)),
            {},
            CubeError,
            "expected 100 or more.*t2m_mean",
        ),
        (field(noise()), {"inputs": ["pixels"]}, OptionError, "input 'pixels'; expected embedding"),
        (field(noise()), {"inputs": ["pc"]}, OptionError, "input 'pc'"),
        (field(noise()), {"inputs": ["xyz+xyz"]}, OptionError, "each once"),
        (field(noise()), {"inputs": "xyz"}, OptionError, "expected a list"),
        (field(noise()), {"inputs": []}, OptionError, "one or more"),
        (field(noise()), {"inputs": ["pc13"]}, OptionError, "vectors have 12 dimensions"),
        (field(noise()), {"inputs": ["given"]}, OptionError, "--given STATICS"),
        (field(noise()), {"k": [13]}, OptionError, "k is 13; expected 1 to 12"),
        (field(noise()), {"k": [1], "inputs": ["xyz"]}, OptionError, "k applies to the default"),
        (field(noise()), {"split": "time"}, OptionError, "random or blocks"),
        (field(noise()), {"sampling": "all"}, OptionError, "cells or area"),
        (field(noise()), {"block": 0}, OptionError, "block=0"),
        (field(noise()), {"shares": (1, 0, 0)}, OptionError, "three numbers above 0"),
        (field(noise()), {"shares": (1, 1, np.nan)}, OptionError, "three numbers above 0"),
        (field(noise()), {"shares": "most"}, OptionError, "expected one number per part"),
        (field(noise()), {"k": 13}, OptionError, "k is 13; expected 1 to 12"),
        (field(noise()), {"inputs": 5}, OptionError, "expected a list of names"),
        (field(noise()), {"variables": 5}, OptionError, "expected a list"),
        (field(noise()), {"variables": []}, OptionError, "one or more, or None for all"),
        (field(noise()), {"complete": "no"}, OptionError, "complete is 'no'"),
        (field(noise()), {"block": "10"}, OptionError, "block is '10'"),
        (field(noise()), {"seeds": [1, 1]}, OptionError, "different numbers"),
        (field(noise()), {"seeds": 10**5}, OptionError, "seeds is 100000; expected 1 to"),
        (field(noise()), {"cells": 10}, OptionError, "cells is 10; expected 100"),
        (field(noise()), {"split": "blocks", "block": 90}, CubeError, "smaller blocks"),
    ],
)
def test_bad_input_is_named_with_its_remedy(given, options, error, words):
    with pytest.raises(error, match=words):
        probe(cube(), given, **options)


def test_what_is_no_cube_or_has_groups_is_refused():
    with pytest.raises(CubeError, match="expected an embedding cube"):
        probe(field(noise()), field(noise()))
    with pytest.raises(CubeError, match="groups along season"):
        probe(cube().expand_dims(season=2), field(noise()))


# Tables, pictures, faces


@pytest.fixture(scope="module")
def found():
    ds = cube()
    statistics = months(12)
    statistics["t2m"] = statistics.t2m + ds.embedding[..., 0].fillna(0).values
    statistics.t2m.attrs["units"] = "K"
    return probe(ds, statistics, cells=800, k=[1, 2, 4], seeds=1, residuals="embedding")


@pytest.mark.slow
def test_tables_have_the_paper_beside(found):
    lines = table(found).splitlines()
    assert lines[0] == "| input | temperature, mean (°C) | temperature, std (°C) |"
    assert "| paper: coord raw | 8.36 ± 0.00 | 3.06 ± 0.00 |" in lines
    assert "| paper: SatCLIP coord | 3.67 ± 0.03 | 1.58 ± 0.00 |" in lines
    # A single seed has no spread: ± 0 would say that seeds agree.
    error = found.rmse.sel(input="xyz").values[0]
    assert f"| xyz | {error[0]:.2f} | {error[1]:.2f} |" in lines
    several = found.isel(seed=[0, 0])
    several["rmse"] = several.rmse + xr.DataArray([0.0, 1.0], dims="seed")
    ours = " | ".join(f"{value + 0.5:.2f} ± 0.50" for value in error)
    assert f"| xyz | {ours} |" in table(several)
    assert lines[-1].startswith("| embedding adds to fourier | ")
    read = list(csv.DictReader(table(found, "csv").splitlines()))
    assert len(read) == found.sizes["input"] * 2
    raw = next(row for row in read if row["input"] == "lonlat")
    assert (raw["target"], raw["published_rmse"], raw["components"]) == ("t2m_mean", "8.36", "")
    assert float(raw["rmse"]) == pytest.approx(float(found.rmse.mean("seed")[0, 0]), rel=1e-5)
    latex = table(found, "latex")
    assert latex.startswith("\\begin{tabular}{lrr}\n\\toprule\n")
    assert "embedding+fourier & " in latex
    assert "\\%" in latex
    assert latex.count("\\\\\n") == len(lines) - 1
    assert r"\textbackslash{}\{m\}\_" in as_text("latex", ("unit",), [(r"\{m}_",)])
    with pytest.raises(OptionError, match="expected csv or markdown or latex"):
        table(found, "html")
    with pytest.raises(CubeError, match="result of a probe"):
        table(cube())


def test_the_published_table_is_whole():
    assert all(len(row) == len(reference.TARGETS) for row in reference.ROWS.values())
    assert all(len(row) == len(reference.TARGETS) for row in reference.SPREADS.values())
    assert all(str(Input.parse(name)) == name for name in reference.ROWS if name != "SatCLIP")
    assert reference.error("fourier", "msl_std") == (108.12, 0.01)
    assert reference.error("xyz", "msl_std") is None
    assert reference.error("fourier", "swvl1_mean") is None


@pytest.mark.slow
def test_pictures_show_curves_and_residuals(found):
    figure = plot.errors(found)
    assert [axes.get_title() for axes in figure.axes] == ["temperature, mean", "temperature, std"]
    curve = figure.axes[0].containers[0][0]
    np.testing.assert_array_equal(curve.get_xdata(), [1, 2, 4])
    at = found.rmse.mean("seed").sel(target="t2m_mean", input=["pc1", "pc2", "pc4"])
    np.testing.assert_allclose(curve.get_ydata(), at)
    # Of errors that are nearly alike, no line lies on the frame.
    alike = found.assign(rmse=3 + 0.001 * found.rmse / found.rmse.max())
    bottom, top = plot.errors(alike).axes[0].get_ylim()
    assert bottom == 0
    assert top > 1.04 * 3
    # More curves than there are colours: none is left out, and no two look alike.
    several = found.sel(input=["pc1", "pc2"] * 8)
    several["input"] = [f"pc{n}+{beside}" for beside in "abcdefgh" for n in (1, 2)]
    lines = [one[0] for one in plot.errors(several).axes[0].containers]
    assert len({(line.get_color(), line.get_linestyle()) for line in lines}) == 8
    axes = plot.residuals(found, "t2m_std")
    assert "temperature, std, predicted from embedding: off by" in axes.get_title()
    assert len(plot.residual_maps(found).axes) == 4
    with pytest.raises(CubeError, match="components among its inputs"):
        plot.errors(found.sel(input=["xyz"]))
    with pytest.raises(CubeError, match="residuals="):
        plot.residuals(found.drop_vars("residual"))
    with pytest.raises(OptionError, match="the probe has t2m_mean, t2m_std"):
        plot.residuals(found, "sp_mean")


def test_the_command_refuses_what_would_change_nothing(tmp_path, capsys):
    words = ["probe", "cube.zarr", "months.nc"]
    for out in ([], ["--out", str(tmp_path / "t.csv")]):
        assert main([*words, "--residuals", "xyz", *out]) == 1
        assert "--residuals chooses what is mapped; add --maps FILE" in capsys.readouterr().err
    assert main([*words, "--block", "20"]) == 1
    assert "--block is the side of the squares of --split blocks" in capsys.readouterr().err
    twice = ["--plot", str(tmp_path / "p.png"), "--maps", f"{tmp_path}/./p.png"]
    assert main([*words, *twice, "--overwrite"]) == 1
    assert "--out, --plot and --maps name one file twice" in capsys.readouterr().err


@pytest.mark.slow
def test_the_command_writes_tables_and_pictures(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    ds = cube()
    ds.to_zarr("cube.zarr", consolidated=False)
    months(12).to_netcdf("months.nc")
    field(5 + noise(), "tp", "m").to_netcdf("tp.nc")
    xr.merge([field(noise(1), "z", "m2 s-2"), field(noise(2), "lsm", "1")]).to_netcdf("static.nc")
    begin = ["probe", "cube.zarr", "months.nc", "tp.nc"]
    assert main(begin) == 1
    assert "--units tp=m/day" in capsys.readouterr().err
    options = "--units tp=m/day --given static.nc --fields lsm --k 1,4 --cells 500 --seeds 1"
    options += " --variables t2m"
    outputs = "--out t.md --plot e.png --maps m.pdf"
    assert main([*begin, *options.split(), *outputs.split()]) == 0
    printed = capsys.readouterr().out
    assert "paper: coord FE" in printed
    assert "pc4+given" in printed
    statics = xr.open_dataset("static.nc")[["lsm"]]
    statistics = [xr.open_dataset("months.nc"), xr.open_dataset("tp.nc")]
    same = ds.copembed.probe(
        statistics,
        given=statics,
        units={"tp": "m/day"},
        k=[1, 4],
        cells=500,
        seeds=1,
        variables=["t2m"],
    )
    assert (tmp_path / "t.md").read_text("utf-8") == table(same)
    assert (tmp_path / "e.png").read_bytes()[:4] == b"\x89PNG"
    assert (tmp_path / "m.pdf").read_bytes()[:5] == b"%PDF-"
    # What exists is kept, and every form of table can be had.
    assert main([*begin, *options.split(), "--out", "t.md"]) == 1
    assert "--overwrite" in capsys.readouterr().err
    chosen = ["--inputs", "xyz,pc2", "--variables", "t2m_mean", "--cells", "all"]
    assert main([*begin, *chosen, "--out", "t.nc", "--shares", "2,1,1"]) == 0
    with xr.open_dataset("t.nc") as read:
        assert read.rmse.shape == (3, 2, 1)
    assert main([*begin, *chosen, "--out", "t.nc", "--overwrite"]) == 0
    assert main([*begin, *chosen, "--out", "t.html"]) == 1
    assert ".csv, .md, .tex, .nc" in capsys.readouterr().err
    # A file of statistics whose numbers are damaged is named.
    months(12).to_netcdf("broken.nc", encoding={"t2m": {"zlib": True}})
    data = bytearray((tmp_path / "broken.nc").read_bytes())
    data[len(data) // 2 : len(data) // 2 + 5000] = bytes(5000)
    (tmp_path / "broken.nc").write_bytes(data)
    assert main(["probe", "cube.zarr", "broken.nc", "--inputs", "xyz"]) == 1
    assert "broken.nc: damaged" in capsys.readouterr().err


def test_names_and_seeds_of_any_sequence():
    ds, statistics = cube(), field(noise(), "t2m_mean")
    inputs = ["lonlat"]
    want = probe(ds, statistics, inputs=inputs, cells=200, seeds=1, variables=["t2m_mean"])
    for names in (pd.Index(["t2m_mean"]), (name for name in ["t2m_mean"])):
        options = {"cells": np.uint8(200), "seeds": np.array(1), "variables": names}
        found = probe(ds, statistics, inputs=np.array(inputs), **options)
        xr.testing.assert_identical(found, want)
    with pytest.raises(OptionError, match="k is 9999; expected 1 to"):
        probe(ds, statistics, k=np.array(9_999))
    with pytest.raises(OptionError, match="block is '5'"):
        probe(ds, statistics, block="5")
