"""Change between two cubes, against scipy's distances, drawn images and closed forms."""

import logging

import numpy as np
import pytest
import xarray as xr
from scipy.spatial.distance import cosine, euclidean
from strategies import table

from copcube import plot
from copcube.aggregate import Aggregation, cell_statistics
from copcube.cli import main
from copcube.errors import CubeError, GridError, OptionError
from copcube.grid import grid_id
from copcube.lookup import change
from copcube.modalities import ORDER
from copcube.pca import project, reduce
from copcube.products.majortom import about

LAT, LON = np.arange(60, 50, -0.25), np.arange(-5, 5, 0.25)
DIM = 8
ENCODER = {"encoder": "ViT", "encoder_sha256": "abc", "encoder_pooling": "cls"}
IMAGES = {"aggregation": "mean over all images alike", "aggregation_by": "none"}


def cube(seed=0, lat=LAT, lon=LON, **attrs):
    """A cube of vectors without counts, a third of them missing."""
    rng = np.random.default_rng(seed)
    x = (rng.normal(size=(len(lat), len(lon), DIM)) + 1).astype("f4")
    x[rng.random(x.shape[:2]) < 1 / 3] = np.nan
    return xr.Dataset(
        {"embedding": (("lat", "lon", "dim"), x)}, {"lat": lat, "lon": lon}, ENCODER | attrs
    )


def counted(ds, images, spread, by_modality=None):
    """The cube with counts and spreads, numbers or (lat, lon)."""
    there = np.isfinite(ds.embedding.values).all(-1)
    ds = ds.assign(
        n_images=(("lat", "lon"), np.where(there, images, 0)),
        spread=(("lat", "lon"), np.where(there, spread, np.nan)),
    )
    if by_modality is None:
        return ds
    return ds.assign(n_images_by_modality=(("modality", "lat", "lon"), by_modality * there))


def test_distances_are_those_of_scipy():
    a, b = cube(0), cube(1)
    found = change(a, b.isel(lat=slice(None, None, -1)).chunk({"lat": 7}), n=5)
    x, y = (ds.embedding.values.astype(float) for ds in (a, b))
    there = np.isfinite(x + y).all(-1)
    for name, of in (("distance", euclidean), ("cosine_distance", cosine)):
        want = np.full(there.shape, np.nan)
        want[there] = [of(u, v) for u, v in zip(x[there], y[there], strict=True)]
        np.testing.assert_allclose(found[name], want, rtol=1e-6)
    order = np.argsort(-found.cosine_distance.values[there])[:5]
    i, j = np.nonzero(there)
    np.testing.assert_array_equal(found.place_lat, LAT[i[order]])
    np.testing.assert_array_equal(found.place_lon, LON[j[order]])
    assert "noise" not in found
    assert "same_modalities" not in found


def test_counts_of_modalities_are_read_once():
    ds, read = counted(cube(), 3, 0.5, np.array([1, 2])[:, None, None]), []
    ds = ds.assign_attrs(aggregation="mean of the means of the modalities")
    lazy = ds.n_images_by_modality.chunk()
    noted = lazy.data.map_blocks(lambda b: (read.append(1), b)[1], dtype=lazy.dtype)
    read.clear()
    found = change(ds.assign(n_images_by_modality=(lazy.dims, noted)), ds)
    assert {"noise", "same_modalities"} <= {*found}
    assert len(read) == 1


def test_a_cube_has_not_changed_from_itself():
    found = change(cube(), cube())
    assert float(found.distance.max()) == 0
    assert float(found.cosine_distance.max()) == 0  # exactly: 1 - cos would leave 1e-16


def test_the_longest_vectors_and_the_shortest_differences():
    a = cube()
    b = a.assign(embedding=a.embedding * (1 + 2.0**-20))
    assert float(change(a, b).cosine_distance.max()) < 1e-13  # float32 has rounded b
    np.testing.assert_allclose(
        change(a, b).distance, np.linalg.norm(a.embedding, axis=-1) * 2.0**-20, rtol=0.3
    )


@pytest.mark.slow
@pytest.mark.parametrize("balance", ["image", "modality"])
def test_noise_is_what_images_drawn_again_differ_by(balance):
    """Cells of few images, drawn twice around one vector: distances agree with noise on average."""
    rng = np.random.default_rng(5)
    # In the order of aggregated cells: rows from the north, columns from Greenwich eastwards.
    lat, lon = LAT, np.arange(0, 10, 0.25)
    i, j = (index.ravel() for index in np.indices((len(lat), len(lon))))
    cells = grid_id((4 * (90 - lat[i])).astype(int), j)
    numbers = {"s1_grd": rng.integers(2, 5, i.size), "s2_toa": rng.integers(1, 9, i.size)}
    keys = [
        (int(cell), ORDER[key], f"{k:07d}_0.00_0.00", "20210101")
        for key, number in numbers.items()
        for cell, n in zip(cells, number, strict=True)
        for k in range(n)
    ]
    centre = np.concatenate([np.repeat(np.arange(i.size), n) for n in numbers.values()])
    centre = (20 + rng.normal(size=(i.size, DIM)))[centre]

    def drawn():
        rows = table(keys, centre + rng.normal(size=centre.shape))
        found = cell_statistics(rows, Aggregation(balance), ())
        shape = (len(lat), len(lon))
        text = "all images alike" if balance == "image" else "the means of the modalities"
        ds = xr.Dataset(
            {"embedding": (("lat", "lon", "dim"), found.embedding.reshape(*shape, DIM))},
            {"lat": lat, "lon": lon},
            {"aggregation": f"mean over {text}"},
        )
        by_modality = found.n_by_modality.T.reshape(-1, *shape)
        images, spread = found.n_images.reshape(shape), found.spread.reshape(shape)
        return counted(ds, images, spread, by_modality)

    result = change(drawn(), drawn())
    squares = (result.distance.astype(float) ** 2).values, (result.noise.astype(float) ** 2).values
    error = (squares[0] - squares[1]).std() / np.sqrt(squares[0].size)
    assert abs(squares[0].mean() - squares[1].mean()) < 4 * error
    assert 4 * error < 0.15 * squares[0].mean()  # the bound tells something
    # Half of cosine's noise is along the vector and turns nothing: one of eight directions.
    ratio = float(result.cosine_distance.mean() / result.cosine_noise.mean())
    assert ratio == pytest.approx(1 - 1 / DIM, abs=0.06)


def test_counts_of_slivers_tell_no_noise():
    """Of a fragment and a hundredth of another, counted as two, it was a seventh of what it is."""
    a, b = (counted(cube(seed, **IMAGES), 2, 0.1) for seed in (0, 1))
    assert "noise" in change(a, b)
    a.attrs["aggregation_assign"] = about._ASSIGNED["area"]
    found = change(a, b)
    assert not {"noise", "cosine_noise"} & {*found}
    assert found.sizes["place"] == 20
    a.attrs["aggregation_assign"] = about._ASSIGNED["centre"]
    assert "noise" in change(a, b)


def test_noise_of_a_single_image_is_unknown_and_it_is_not_listed():
    a, b = (counted(cube(seed, **IMAGES), 2, 0.1) for seed in (0, 1))
    one = a.n_images.where(a.lat < 55, 1).where(a.n_images > 0, 0)
    found = change(a.assign(n_images=one), b, n=10_000)
    there = np.isfinite(found.distance)
    np.testing.assert_array_equal(np.isfinite(found.noise), there & (found.lat < 55))
    assert found.place_lat.max() < 55
    np.testing.assert_allclose(found.noise.where(found.lat < 55).max(), np.sqrt(2) * 0.1, rtol=1e-6)


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_places_are_ranked_by_what_is_beyond_noise(metric):
    a = counted(cube(**IMAGES), 4, 0.01)
    x = a.embedding.values.copy()
    there = np.argwhere(np.isfinite(x).all(-1))
    (i, j), (k, m) = there[[10, 700]]
    x[i, j] += np.eye(DIM)[0] * 3
    x[k, m] += np.eye(DIM)[1] * 5
    b = a.assign(embedding=(a.embedding.dims, x))
    noisy = b.spread.values.copy()
    noisy[k, m] = 50
    found = change(a, b.assign(spread=(b.spread.dims, noisy)), n=1, metric=metric)
    assert (float(found.place_lat[0]), float(found.place_lon[0])) == (LAT[i], LON[j])
    assert float(change(a, b, n=1, metric="euclidean").place_lat[0]) == LAT[k]


def test_cells_of_other_modalities_are_told_and_not_listed():
    by = np.zeros((2, len(LAT), len(LON)), int)
    by[0] = 3
    more = by.copy()
    more[1, :20] = 2
    attrs = {"aggregation": "mean over the means of the modalities"}
    a, b = counted(cube(0, **attrs), 3, 1, by), counted(cube(1, **attrs), 5, 1, more)
    found = change(a, b, n=5000)
    there = np.isfinite(found.distance.values)
    want = np.where(there, np.arange(len(LAT))[:, None] >= 20, -1)
    np.testing.assert_array_equal(found.same_modalities, want)
    assert found.place_lat.max() == LAT[20]


def test_sensors_are_the_same_by_key_and_description():
    by = np.ones((2, len(LAT), len(LON)), int)

    def with_sensor(seed, key, about, number=by):
        flags = {"flag_values": np.arange(2), "flag_meanings": f"dem {key}"}
        attrs = {"aggregation": "mean over the means of the modalities", f"sensor_{key}": about}
        ds = counted(cube(seed, **attrs), 2, 1, number)
        return ds.assign_coords(modality=("modality", np.arange(2), flags))

    a = with_sensor(0, "landsat8", "{}")
    there = np.isfinite(change(a, a).distance.values)
    for other, same in (("{}", 1), ('{"gsd": 15}', 0)):
        found = change(a, with_sensor(0, "landsat8", other)).same_modalities.values
        np.testing.assert_array_equal(found, np.where(there, same, -1))
    assert not (change(a, with_sensor(0, "landsat9", "{}")).same_modalities.values > 0).any()
    without = with_sensor(0, "landsat9", "{}", by * [[[1]], [[0]]])
    alone = change(without, without.isel(modality=[0]).drop_attrs(deep=False).assign_attrs(a.attrs))
    np.testing.assert_array_equal(alone.same_modalities.values, np.where(there, 1, -1))
    # Where one of the two has lost its flags, it is unknown which modalities are the same.
    unnamed = with_sensor(1, "landsat8", "{}").drop_vars("modality")
    unknown = change(a, unnamed)
    assert "same_modalities" not in unknown
    assert unknown.sizes["place"] == 20


def test_groups_of_one_cube_and_groups_side_by_side():
    years = xr.concat([cube(seed) for seed in range(3)], "year", join="exact")
    years = years.assign_coords(year=("year", [2019, 2020, 2021]))
    one = change(years.isel(year=0), years.isel(year=2))
    assert "year" not in one.coords
    xr.testing.assert_identical(one, change(cube(0), cube(2)))
    both = change(years, years.isel(year=[0, 1, 2]).assign(embedding=years.embedding + 1), n=3)
    assert both.distance.dims == ("year", "lat", "lon")
    best = both.sel(
        year=both.place_year, lat=both.place_lat, lon=both.place_lon
    )  # each place with its own year
    np.testing.assert_array_equal(best.distance, both.place_distance)
    assert float(best.cosine_distance[0]) == float(both.cosine_distance.max())
    with pytest.raises(CubeError, match="2019 2020 2021, the second year 2019 2020"):
        change(years, years.isel(year=slice(2)))


def test_reductions_need_one_basis():
    a, b = cube(0), cube(1)
    fields = reduce(a, 3)
    found = change(fields, project(b, fields))
    want = np.linalg.norm(fields.pc.astype(float) - project(b, fields).pc, axis=-1)
    np.testing.assert_allclose(found.distance, want, rtol=1e-5)
    with pytest.raises(CubeError, match="different bases"):
        change(fields, reduce(b, 3))
    with pytest.raises(CubeError, match="pc of length 3, the second embedding of length 8"):
        change(fields, b)


@pytest.mark.parametrize("name", ["encoder", "encoder_sha256", "encoder_pooling"])
def test_cubes_of_other_encoders_are_refused_by_name(name):
    with pytest.raises(CubeError, match=f"^{name} is '.*' in the first cube and 'other' in the"):
        change(cube(), cube(**{name: "other"}))


def test_what_cannot_be_compared():
    a = cube()
    cases = [
        (GridError, "not a node", cube(lat=LAT + 0.1), {}),
        (CubeError, "no cell of the lattice in common", cube(lat=LAT - 40), {}),
        (CubeError, "length 8, the second embedding of length 5", a.isel(dim=slice(5)), {}),
        (CubeError, "expected an embedding cube", xr.Dataset(), {}),
        (OptionError, "n is 0", a, {"n": 0}),
        (OptionError, "metric='angle'", a, {"metric": "angle"}),
        (OptionError, "exclude_km=-1", a, {"exclude_km": -1}),
    ]
    for error, match, other, options in cases:
        with pytest.raises(error, match=match):
            change(a, other, **options)


def test_another_recipe_is_warned_of(caplog):
    log = logging.getLogger("copcube")
    log.propagate, before = True, log.propagate
    change(cube(preprocessing="crop"), cube(preprocessing="full"))
    log.propagate = before
    assert "preprocessing is 'crop' in the first cube and 'full'" in caplog.text


@pytest.mark.slow
def test_on_the_command_line(tmp_path, capsys):
    years = xr.concat([cube(seed) for seed in range(2)], "year", join="exact")
    years = years.assign_coords(year=("year", [2020, 2021]))
    years.to_netcdf(tmp_path / "years.nc")
    words = ["change", *[str(tmp_path / "years.nc")] * 2]
    options = ["--groups", "2020", "2021", "-n", "3", "--exclude-km", "0"]
    assert main([*words, str(tmp_path / "out.nc"), *options]) == 0
    found = change(cube(0), cube(1), n=3)
    shown = capsys.readouterr().out
    for value in found.place_cosine_distance.values:
        assert f"{value:.4g}" in shown
    again = xr.load_dataset(tmp_path / "out.nc")
    np.testing.assert_array_equal(again.distance, found.distance)
    assert main([*words, str(tmp_path / "out.nc"), *options]) == 1
    assert "exists already" in capsys.readouterr().err
    assert main([*words, str(tmp_path / "out.nc"), *options, "--overwrite"]) == 0
    assert main([*words, str(tmp_path / "out.zarr"), *options]) == 0
    np.testing.assert_array_equal(xr.open_zarr(tmp_path / "out.zarr").distance, found.distance)
    assert main([*words, str(tmp_path / "out.png"), *options]) == 0
    assert (tmp_path / "out.png").read_bytes()[1:4] == b"PNG"
    for out, wanted, match in (
        ("out.tif", ["2020", "2021"], "expected .nc or .zarr"),
        ("new.nc", ["2020", "2022"], "expected one of 2020, 2021"),
    ):
        assert main([*words, str(tmp_path / out), "--groups", *wanted]) == 1
        assert match in capsys.readouterr().err


@pytest.mark.slow
def test_a_list_without_places_says_why(tmp_path, capsys):
    alone, both = (np.array(images)[:, None, None] for images in ([4, 0], [4, 2]))
    for name, images in (("a.nc", alone), ("b.nc", both)):
        there = counted(cube(0, LAT[:2], LON[:2]), 4, 0.5, images * np.ones((2, 2, 2), int))
        there.to_netcdf(tmp_path / name)
    assert main(["change", *(str(tmp_path / f"{name}.nc") for name in ("a", "b", "out"))]) == 0
    n = int(np.isfinite(there.embedding.values).all(-1).sum())
    said = capsys.readouterr().err
    assert f"no place is listed: {n} cells hold a vector in both cubes, {n} of them" in said


@pytest.mark.slow
def test_the_map_of_change_marks_places():
    a, b = cube(0), cube(1)
    ax = a.copembed.plot.change(b, n=4, exclude_km=100)
    found = change(a, b, n=4, exclude_km=100)
    marks = [line for line in ax.get_lines() if line.get_marker() == "o"]
    np.testing.assert_array_equal(marks[0].get_ydata(), found.place_lat)
    with pytest.raises(CubeError, match="select one of them"):
        plot.change(a.expand_dims(season=2), b.expand_dims(season=2))


def test_values_of_vectors_in_another_order_are_not_taken_by_position():
    # As after sorting names: e1, e10, e2.
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 3, 4)).astype("f4")
    ds = xr.Dataset({"embedding": (("lat", "lon", "dim"), x)}, {"lat": [45.25, 45.0]})
    ds = ds.assign_coords(lon=[7.0, 7.25, 7.5], dim=["e1", "e2", "e3", "e10"])
    other = ds.sortby("dim")
    for use in (
        lambda: other.copembed.change(ds),
        lambda: other.copembed.compare(ds),
        lambda: other.copembed.project(ds.copembed.fit(2)),
    ):
        with pytest.raises(CubeError, match="different order, e10 where the other dataset has e2"):
            use()
    assert float(other.sel(dim=ds.dim).copembed.change(ds).distance.max()) == 0
    # Without labels there is but the position.
    assert float(ds.drop_vars("dim").copembed.change(ds).distance.max()) == 0
