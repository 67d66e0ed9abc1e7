"""Components of what given fields leave over, against scikit-learn's regression and PCA."""

import numpy as np
import pytest
import xarray as xr
from sklearn.decomposition import PCA
from sklearn.linear_model import LinearRegression
from sklearn.preprocessing import PolynomialFeatures

from copcube import pca, plot
from copcube.cli import main
from copcube.errors import CubeError, GridError, OptionError

LAT, LON = np.arange(72, 45, -0.25), np.arange(3, 27, 0.25)
DIM = 12


def statics(lat=LAT, lon=LON, seed=7):
    """Fields of ERA5's names and sizes, in its own order."""
    rng = np.random.default_rng(seed)
    shape = (len(lat), len(lon))
    return xr.Dataset(
        {
            "z": (("latitude", "longitude"), (2e4 * rng.gamma(1, size=shape)).astype("f4")),
            "lsm": (("latitude", "longitude"), rng.random(shape).astype("f4")),
            "sdor": (("latitude", "longitude"), (100 * rng.random(shape)).astype("f4")),
        },
        {"latitude": lat, "longitude": lon},
    )


def cube(given, seed=3, noise=0.5, lead=()):
    """A cube whose vectors are partly linear in the given fields; a third is missing."""
    rng = np.random.default_rng(seed)
    g = np.stack([given[n].values / float(given[n].std()) for n in given.data_vars], axis=-1)
    shape = (*(size for _, size in lead), *g.shape[:2])
    x = g @ rng.normal(size=(g.shape[-1], DIM)) + 3 + rng.normal(size=DIM)
    x = x + noise * rng.normal(size=(*shape, DIM)) * 1.4 ** -np.arange(DIM)
    x[rng.random(shape) < 1 / 3] = np.nan
    dims = (*(name for name, _ in lead), "lat", "lon")
    ds = xr.Dataset({"embedding": ((*dims, "dim"), x.astype("f4"))}, {"lat": LAT, "lon": LON})
    return ds.assign(n_images=(dims, np.isfinite(x).all(-1).astype("i4")))


def table(ds, given, degree=1):
    """Vectors, given fields and whether both are there, one cell a line, in float64."""
    x = ds.embedding.values.reshape(-1, DIM).astype(float)
    g = np.stack([given[n].values.ravel() for n in given.data_vars], axis=-1)
    g = PolynomialFeatures(degree, include_bias=False).fit_transform(g.astype("f4")).astype(float)
    return x, g, np.isfinite(x).all(-1) & np.isfinite(g).all(-1)


def test_fields_that_were_not_decoded_are_refused():
    given = statics()
    given["z"] = given.z.assign_attrs(missing_value=-9999)
    with pytest.raises(CubeError, match="z declares missing_value -9999"):
        pca.reduce(cube(statics()), 2, given=given)


def test_what_is_shared_is_what_the_fields_leave_over():
    given = statics()
    whole, rest = (pca.reduce(cube(given), 2, given=g) for g in (None, given))
    assert whole.explained_variance_ratio.long_name.startswith("share of the whole variance")
    assert rest.explained_variance_ratio.long_name.endswith("that the given fields leave over")
    assert "leave" in rest.pc.long_name
    assert "leave" not in whole.pc.long_name


@pytest.mark.parametrize("degree", [1, 2])
def test_components_are_those_of_what_a_regression_leaves_over(degree):
    given = statics()
    ds = cube(given)
    fields = pca.reduce(ds, 5, weights=None, given=given, degree=degree)
    x, g, there = table(ds, given, degree)
    scaled = (g[there] - g[there].mean(0)) / g[there].std(0)
    left = x[there] - LinearRegression().fit(scaled, x[there]).predict(scaled)
    whole = PCA().fit(left)
    turn = np.sign(np.sum(whole.components_[:5] * fields.components.values, axis=1))
    np.testing.assert_allclose(fields.components, whole.components_[:5] * turn[:, None], atol=1e-6)
    np.testing.assert_allclose(fields.explained_variance, whole.explained_variance_[:5], rtol=1e-6)
    ratio = whole.explained_variance_ratio_[:5]
    np.testing.assert_allclose(fields.explained_variance_ratio, ratio, rtol=1e-6)
    pc = fields.pc.values.reshape(-1, 5)
    np.testing.assert_allclose(pc[there], whole.transform(left)[:, :5] * turn, atol=2e-5)
    np.testing.assert_array_equal(np.isfinite(pc).all(-1), there)
    explained = 1 - left.var(axis=0).sum() / x[there].var(axis=0).sum()
    assert fields.reduction_given_explains == pytest.approx(explained, rel=1e-9)


def test_area_weights_are_those_of_the_regression_too():
    given = statics()
    ds = cube(given)
    fields = pca.reduce(ds, 4, given=given)
    x, g, there = table(ds, given)
    edges = np.sin(np.radians([LAT + 0.125, LAT - 0.125]))
    w = np.repeat(edges[0] - edges[1], len(LON))[there]
    line = LinearRegression().fit(g[there], x[there], sample_weight=w)
    left = x[there] - line.predict(g[there])
    covariance = np.cov(left.T, aweights=w)
    variance, axes = np.linalg.eigh(covariance)
    np.testing.assert_allclose(fields.explained_variance, variance[::-1][:4], rtol=1e-6)
    overlap = np.abs(np.sum(axes.T[::-1][:4] * fields.components.values, axis=1))
    np.testing.assert_allclose(overlap, 1, atol=1e-9)
    np.testing.assert_allclose(fields.regression, line.coef_.T, rtol=1e-5, atol=1e-12)
    # Uncorrelated with every given field, which is what the reduction is for.
    pc = fields.pc.values.reshape(-1, 4)[there]
    both = np.corrcoef(np.concatenate([pc, g[there]], axis=1).T)  # weights near 1 throughout
    assert np.abs(both[:4, 4:]).max() < 0.02


@pytest.mark.slow
@pytest.mark.parametrize("chunks", [None, {"lat": 20, "lon": 30}])
@pytest.mark.parametrize("lead", [(), (("season", 2),)])
def test_restore_adds_what_the_fields_explained(chunks, lead):
    given = statics()
    ds = cube(given, lead=lead)
    ds = ds if chunks is None else ds.chunk(chunks)
    fields = pca.reduce(ds, DIM, given=given)
    assert (fields.pc.chunks is None) == (chunks is None)
    back = pca.restore(fields)
    np.testing.assert_allclose(back.embedding, ds.embedding, atol=1e-5)


def test_the_statics_may_lie_anyhow_and_be_more_or_less_than_the_cube():
    given = statics(np.arange(90, 40, -0.25), np.arange(0, 40, 0.25))
    ds = cube(given.sel(latitude=LAT, longitude=LON))
    want = pca.reduce(ds, 3, given=given)
    turned = given.sortby("latitude").transpose("longitude", "latitude")
    turned = turned.assign_coords(longitude=turned.longitude - 360).expand_dims(time=1)
    turned["bounds"] = ("latitude", "two"), np.zeros((turned.sizes["latitude"], 2))
    xr.testing.assert_identical(pca.reduce(ds, 3, given=turned), want)
    half = given.sel(longitude=slice(0, 14.75))
    fields = pca.reduce(ds, 3, given=half)
    there = np.isfinite(fields.pc).all("component")
    assert not there.sel(lon=slice(15, None)).any()
    assert there.sel(lon=slice(None, 14.75)).any()


def test_a_basis_serves_another_cube_with_its_fields():
    given = statics()
    one, other = cube(given), cube(given, seed=4)
    basis = pca.fit(one, 3, given=given)
    assert "predictors" not in basis
    with pytest.raises(OptionError, match=r"given=statics"):
        pca.project(other, basis)
    fields = pca.project(other, basis, given=given)
    xr.testing.assert_identical(pca.project(other, pca.reduce(one, 3, given=given)), fields)
    xr.testing.assert_identical(pca.project(other, fields), fields)


@pytest.mark.parametrize("engine", ["netcdf4", "zarr"])
def test_the_regression_travels_in_files(tmp_path, engine):
    given = statics()
    fields = pca.reduce(cube(given), 3, given=given, degree=2)
    if engine == "zarr":
        fields.to_zarr(tmp_path / "fields", zarr_format=2)
    else:
        fields.to_netcdf(tmp_path / "fields")
    with xr.open_dataset(tmp_path / "fields", engine=engine) as again:
        again.load()
    xr.testing.assert_identical(pca.restore(again).embedding, pca.restore(fields).embedding)
    products = "z*z z*lsm z*sdor lsm*lsm lsm*sdor sdor*sdor"
    assert again.attrs["reduction_given"] == f"z lsm sdor {products}"


def test_predictors_that_repeat_each_other_change_nothing():
    given = statics()
    ds = cube(given)
    twice = given.assign(again=given.z * 3, constant=given.z * 0 + 5)
    a, b = pca.reduce(ds, 3, given=given), pca.reduce(ds, 3, given=twice)
    np.testing.assert_allclose(a.pc, b.pc, atol=1e-5)


def test_what_the_fields_explain_whole_has_no_components():
    given = statics()
    # Few bits, so that the vectors are exact multiples of the fields.
    given = given.map(lambda v: (np.round(v / v.std() * 64) / 64).astype("f4"))
    g = np.stack([given[n].values for n in given.data_vars], axis=-1)
    x = g @ np.round(8 * np.random.default_rng(0).normal(size=(3, DIM))) / 8
    ds = xr.Dataset({"embedding": (("lat", "lon", "dim"), x)}, {"lat": LAT, "lon": LON})
    assert pca.fit(ds, 3).sizes["component"] == 3
    with pytest.raises(OptionError, match="rank 0"):
        pca.fit(ds, 1, given=given)


def test_given_fields_that_cannot_be_used():
    given = statics()
    ds = cube(given)
    flat = (("lat", "lon"), np.ones((4, 4)))
    coarse = xr.Dataset({"z": flat}, {"lat": np.arange(4.0), "lon": np.arange(4.0)})
    corner = (given.latitude == 60) & (given.longitude < 4)
    cases = [
        (GridError, "expected the 0.25° lattice", {"given": coarse}),
        (CubeError, "no place in common", {"given": statics(LAT - 60, LON)}),
        (CubeError, "holds float32 along month", {"given": given.expand_dims(month=12)}),
        (CubeError, "no field along", {"given": xr.Dataset(coords=given.coords)}),
        (CubeError, "found str", {"given": "static.nc"}),
        (OptionError, "one word", {"given": given.rename(z="geo potential")}),
        (OptionError, r"degree is 4; expected 1 to 3", {"given": given, "degree": 4}),
        (OptionError, r"degree is 2.0 \(float\)", {"given": given, "degree": 2.0}),
        (OptionError, r"degree=2 applies to given fields", {"degree": 2}),
        (OptionError, r"weights=a Dataset; expected 'area'", {"weights": given}),
        (CubeError, "all given fields", {"given": given * np.nan}),
        (
            CubeError,
            "too few",
            {"given": given.where(corner)},
        ),
    ]
    for error, match, options in cases:
        with pytest.raises(error, match=match):
            pca.reduce(ds, 2, **options)
    with pytest.raises(OptionError, match="given fields change nothing"):
        pca.project(ds, pca.fit(ds, 2), given=given)


@pytest.mark.slow
def test_on_the_command_line(tmp_path, capsys):
    given = statics()
    given.z.attrs = {"standard_name": "geopotential", "units": "m**2 s**-2"}
    given.to_netcdf(tmp_path / "static.nc")
    ds = cube(given)
    ds.to_zarr(tmp_path / "cube.zarr", zarr_format=3, consolidated=False)
    at = {name: str(tmp_path / name) for name in ("static.nc", "cube.zarr", "fields.zarr")}
    words = ["reduce", at["cube.zarr"], at["fields.zarr"], "--k", "2", "--given", at["static.nc"]]
    assert main([*words, "--fields", "z,lsm", "--degree", "2"]) == 0
    assert "the given fields explain" in capsys.readouterr().err
    want = pca.reduce(ds, 2, given=given[["z", "lsm"]], degree=2)
    np.testing.assert_array_equal(xr.open_zarr(at["fields.zarr"]).pc, want.pc)
    assert main(["explain", at["fields.zarr"], at["static.nc"]]) == 0
    shown = capsys.readouterr().out
    assert "R² by static fields" in shown
    assert "sdor" in shown
    assert main([*words, "--overwrite", "--fields", "cl"]) == 1
    assert "holds z, lsm, sdor, but not cl" in capsys.readouterr().err


# Explaining


def test_shares_are_those_of_scikit_learn():
    given = statics()
    fields = pca.reduce(cube(given), 4)
    found = pca.explain(fields, given, weights=None, folds=3, block=5)
    y = fields.pc.values.reshape(-1, 4).astype(float)
    g = np.stack([given[n].values.ravel() for n in given.data_vars], axis=-1).astype(float)
    fold = 2 * ((90 - LAT) // 5)[:, None] + LON // 5
    fold = (fold % 3).ravel()
    there = np.isfinite(y).all(-1)
    y, g, fold = y[there], g[there], fold[there]
    for name, a, b in (("component", g, y), ("static", y, g)):
        whole = ((b - b.mean(0)) ** 2).sum(0)
        seen = ((b - LinearRegression().fit(a, b).predict(a)) ** 2).sum(0)
        unseen = 0
        for i in range(3):
            line = LinearRegression().fit(a[fold != i], b[fold != i])
            unseen = unseen + ((b[fold == i] - line.predict(a[fold == i])) ** 2).sum(0)
        np.testing.assert_allclose(found[f"{name}_r2"], 1 - seen / whole, atol=1e-6)
        np.testing.assert_allclose(found[f"{name}_r2_held_out"], 1 - unseen / whole, atol=1e-6)
    pairs = np.corrcoef(y.T, g.T)[:4, 4:] ** 2
    np.testing.assert_allclose(found.pair_r2, pairs, atol=1e-6)
    assert list(found.static.values) == ["z", "lsm", "sdor"]


@pytest.mark.slow
def test_the_table_of_shares_has_each_of_them(tmp_path, capsys):
    fields = pca.reduce(cube(statics()), 3).assign_attrs(encoder_trained=0)
    given = statics().assign(flat=statics().z * 0 + 1)
    found = pca.explain(fields, given)
    ax = fields.copembed.plot.explain(given)
    printed = {(round(t.get_position()[1]), round(t.get_position()[0])): t for t in ax.texts}
    want = {(i, j): found.pair_r2.values[i, j] for i in range(3) for j in range(4)}
    want |= {(i, 4): found.component_r2.values[i] for i in range(3)}
    want |= {(i, 5): found.component_r2_held_out.values[i] for i in range(3)}
    want |= {(3, j): found.static_r2.values[j] for j in range(4)}
    want |= {(4, j): found.static_r2_held_out.values[j] for j in range(4)}
    want = {place: value for place, value in want.items() if np.isfinite(value)}
    assert all(place[1] != 3 for place in want)  # the constant field
    assert {place: t.get_text() for place, t in printed.items()} == {
        place: f"{value:.2f}" for place, value in want.items()
    }
    assert "UNTRAINED" in ax.get_title()
    names = [[t.get_text() for t in axis.get_ticklabels()] for axis in (ax.yaxis, ax.xaxis)]
    assert names[0] == ["0", "1", "2", "all", "all, held out"]
    assert names[1] == ["z", "lsm", "sdor", "flat", "all", "all, held out"]
    (image,) = ax.get_images()
    for place, t in printed.items():
        # WCAG's contrast of a text and what is behind it.
        back = np.array(image.cmap(image.norm(want[place]))[:3])
        front = 1.0 if t.get_color() == "white" else 0.0
        light = [((c + 0.055) / 1.055) ** 2.4 for c in back] @ np.array([0.2126, 0.7152, 0.0722])
        assert (max(light, front) + 0.05) / (min(light, front) + 0.05) > 4
    with pytest.raises(OptionError, match="the dataset that `explain` returns"):
        plot.explained(fields)
    given.to_netcdf(tmp_path / "static.nc")
    fields.to_netcdf(tmp_path / "fields.nc")
    words = ["explain", str(tmp_path / "fields.nc"), str(tmp_path / "static.nc"), "--plot"]
    assert main([*words, str(tmp_path / "r2.svg")]) == 0
    assert b"<svg" in (tmp_path / "r2.svg").read_bytes()
    assert main([*words, str(tmp_path / "r2.svg")]) == 1
    assert "exists already" in capsys.readouterr().err
    assert main([*words, str(tmp_path / "r2.txt")]) == 1
    assert "expected .png, .pdf, .svg" in capsys.readouterr().err


def test_components_of_the_remainder_are_explained_by_nothing():
    given = statics()
    ds = cube(given)
    before = pca.explain(pca.reduce(ds, 3), given)
    after = pca.explain(pca.reduce(ds, 3, given=given), given)
    assert float(before.component_r2.max()) > 0.5
    assert float(after.component_r2.max()) < 1e-6
    assert float(after.component_r2_held_out.max()) < 0.01


@pytest.mark.parametrize("cells", [5, 12])
def test_shares_of_few_cells_are_refused_or_said_to_be_chance(cells, caplog):
    # Of a dozen cells, the share held out came out as -1e11.
    given = statics()
    fields = pca.reduce(cube(given), 2)
    places = np.flatnonzero(np.isfinite(fields.pc[..., 0].values))
    there = np.zeros(fields.pc.shape[:2], bool)
    there.flat[np.random.default_rng(0).choice(places, cells, replace=False)] = True
    fields = fields.assign(pc=fields.pc.where(xr.DataArray(there, dims=("lat", "lon"))))
    if cells == 5:
        with pytest.raises(
            CubeError, match=r"too few cells for a regression: [1-4] cells, without"
        ):
            pca.explain(fields, given, folds=2, block=1)
    else:
        pca.explain(fields, given, folds=2, block=1)
        assert "the held-out shares are mostly chance" in caplog.text


def test_what_cannot_be_explained():
    given = statics()
    fields = pca.reduce(cube(given), 2)
    flat = pca.explain(fields, given.assign(flat=given.z * 0 + 1))
    assert np.isnan(flat.static_r2.sel(static="flat"))
    assert np.isfinite(flat.component_r2).all()
    cases = [
        (OptionError, "folds is 1", {"folds": 1}),
        (OptionError, "block=0", {"block": 0}),
        (CubeError, "parts have no cell", {"block": 90, "folds": 9}),
        (
            CubeError,
            "parts have no cell, since squares",
            {"folds": 10**30, "block": 90},
        ),
    ]
    for error, match, options in cases:
        with pytest.raises(error, match=match):
            pca.explain(fields, given, **options)
    with pytest.raises(CubeError, match="reduction with a variable pc"):
        pca.explain(cube(given), given)
