import numpy as np
import pytest
import xarray as xr

from copcube.cube.latlon import spatial_dims
from copcube.cube.presence import present
from copcube.cube.view import CubeView
from copcube.errors import CubeError, GridError, OptionError

LAT, LON = np.arange(60, 30, -0.25), np.arange(0, 20, 0.25)


def small(counts=True, lead=()):
    """A cube of 120 × 80 cells, half of them filled; and its mask."""
    rng = np.random.default_rng(1)
    shape = (*(size for _, size in lead), len(LAT), len(LON))
    mask = rng.random(shape) < 0.5
    values = np.where(mask[..., None], rng.normal(size=(*shape, 5)), np.nan).astype(np.float32)
    dims = (*(name for name, _ in lead), "lat", "lon")
    ds = xr.Dataset({"embedding": ((*dims, "dim"), values)}, {"lat": LAT, "lon": LON})
    if counts:
        ds["n_images"] = dims, mask.astype(np.int32) * 3
    return ds, mask


@pytest.mark.parametrize("counts", [True, False])
@pytest.mark.parametrize("lead", [(), (("season", 3),)])
@pytest.mark.parametrize("chunks", [None, {}, {"lat": 7, "lon": 33, "dim": 2}])
def test_finds_the_filled_cells(counts, lead, chunks):
    ds, mask = small(counts, lead)
    ds = ds if chunks is None else ds.chunk(chunks)
    found = CubeView.of(ds).filled()
    assert found.dtype == bool
    assert found.chunks is None
    assert found.dims == (*(name for name, _ in lead), "lat", "lon")
    assert np.array_equal(found.values, mask)
    assert found.lat.identical(ds.lat)
    assert (CubeView.of(ds).counts is None) != counts


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("at", [0, 4])
def test_one_value_that_is_not_finite_makes_a_vector_missing(bad, at):
    ds, mask = small(counts=False)
    row, col = (int(i[0]) for i in np.nonzero(mask))
    ds.embedding[row, col, at] = bad
    mask[row, col] = False
    assert np.array_equal(CubeView.of(ds).filled(), mask)


def test_counts_are_believed_without_reading_vectors():
    import dask.array as da

    ds, mask = small()

    def refuse(block):
        raise AssertionError("the embedding was read")

    lazy = da.map_blocks(refuse, ds.embedding.chunk().data, meta=np.empty((0, 0, 0), "f4"))
    assert np.array_equal(
        CubeView.of(ds.assign(embedding=(ds.embedding.dims, lazy))).filled(), mask
    )


def test_counts_that_became_floats_by_masking():
    ds, mask = small()
    north = ds.where(ds.lat > 45)
    assert np.array_equal(CubeView.of(north).filled(), mask & (LAT > 45)[:, None])


def test_counts_on_other_dimensions_do_not_count():
    ds, mask = small(lead=(("season", 3),))
    partial = ds.assign(n_images=ds.n_images.sum("season"))
    assert CubeView.of(partial).counts is None
    assert np.array_equal(CubeView.of(partial).filled(), mask)


def test_what_is_no_dataset_is_refused():
    ds, _ = small()
    for other in ("world.zarr", ds.embedding, ds.embedding.values, None):
        with pytest.raises(CubeError, match=rf"found {type(other).__name__}; open a file with"):
            CubeView.of(other).filled()


@pytest.mark.parametrize("name", ["_FillValue", "missing_value"])
def test_what_was_opened_without_decoding_is_refused(name, tmp_path):
    """Missing vectors would be numbers: -9999 in every value."""
    ds, mask = small(counts=False)
    ds.to_netcdf(tmp_path / "a.nc", encoding={"embedding": {name: -9999.0}})
    with xr.open_dataset(tmp_path / "a.nc", mask_and_scale=False) as raw:
        with pytest.raises(CubeError, match=rf"embedding declares {name} -9999.*decode_cf"):
            CubeView.of(raw)
        assert np.array_equal(CubeView.of(xr.decode_cf(raw)).filled(), mask)


def test_zeros_without_counts_are_refused_and_with_counts_are_vectors():
    ds, mask = small()
    zeros = ds.assign(embedding=ds.embedding * 0)
    assert np.array_equal(CubeView.of(zeros).filled(), mask)
    with pytest.raises(CubeError, match=f"{mask[:45].sum()} cells.*engine='copembed'"):
        CubeView.of(zeros.drop_vars("n_images")).filled()
    published = ds.embedding.fillna(0).to_dataset()
    with pytest.raises(CubeError, match="zeros"):
        CubeView.of(published).filled()


@pytest.mark.parametrize("share", [0.0, 0.05, 1.0])
@pytest.mark.parametrize("shape", [(30, 40, 3), (500, 3), (3,)])
def test_vectors_are_there_where_all_values_are_finite(shape, share):
    rng = np.random.default_rng(0)
    values = rng.choice([0.0, 1.0, 2.0, np.nan, np.inf], shape, p=[0.2, 0.3, 0.3, 0.1, 0.1])
    values[rng.random(shape[:-1]) >= share] = np.nan
    found = present(values, zeros_allowed=True)
    assert np.array_equal(found, np.isfinite(values).all(axis=-1))
    if values.any(axis=-1).all():  # NaN counts as something
        assert np.array_equal(present(values), found)
    else:
        with pytest.raises(CubeError, match=f"{(values == 0).all(axis=-1).sum()} cells hold vec"):
            present(values)


def test_reductions_may_hold_zeros():
    ds, mask = small(counts=False)
    pc = (ds.embedding * 0).rename("pc", dim="component").to_dataset()
    assert np.array_equal(CubeView.of(pc).filled(), mask)


@pytest.mark.parametrize(
    ("rename", "attrs"),
    [
        ({}, {}),
        ({"lat": "latitude", "lon": "longitude"}, {}),
        ({"lat": "LAT", "lon": "Lon"}, {}),
        ({"lat": "y", "lon": "x"}, {"standard_name": ("latitude", "longitude")}),
        ({"lat": "rows", "lon": "cols"}, {"units": ("degrees_north", "degrees_east")}),
    ],
)
def test_finds_latitude_and_longitude_by_name_or_convention(rename, attrs):
    ds, mask = small(counts=False)
    ds = ds.rename(rename)
    names = (rename.get("lat", "lat"), rename.get("lon", "lon"))
    for key, values in attrs.items():
        for name, value in zip(names, values, strict=True):
            ds[name].attrs[key] = value
    turned = ds.transpose("dim", *reversed(names))
    assert spatial_dims(turned) == spatial_dims(turned.embedding) == names
    assert CubeView.of(turned).field.dims == (*names, "dim")
    assert np.array_equal(CubeView.of(turned).filled(), mask)


def test_projected_coordinates_are_no_latitudes():
    ds = small()[0].rename(lat="y", lon="x")
    ds.y.attrs.update(standard_name="projection_y_coordinate", units="m")
    with pytest.raises(CubeError, match=r"one dimension of latitude.*found none among y, x, dim"):
        spatial_dims(ds)


def test_says_what_is_missing():
    ds, _ = small()
    with pytest.raises(CubeError, match=r"variable embedding.*found n_images"):
        CubeView.of(ds.drop_vars("embedding")).filled()
    with pytest.raises(CubeError, match="no variables"):
        CubeView.of(xr.Dataset()).filled()
    with pytest.raises(CubeError, match=r"latitude.*select by a list or a slice"):
        CubeView.of(ds.sel(lat=45)).filled()
    with pytest.raises(CubeError, match=r"longitude.*found none"):
        CubeView.of(ds.drop_vars("lon")).filled()
    twice = ds.expand_dims(latitude=[1.0])
    with pytest.raises(CubeError, match="latitude and lat"):
        CubeView.of(twice).filled()
    named = small(lead=(("season", 3),))[0].rename(dim="feature")
    with pytest.raises(CubeError, match=r"season, lat, lon, feature.*named dim"):
        CubeView.of(named).filled()


def test_cubes_and_reductions_are_not_taken_for_each_other():
    ds, _ = small()
    fields = ds.copembed.reduce(2)
    for use, remedy in (
        (lambda: ds.copembed.restore(), r"found a cube; use ds\.copembed\.reduce\(k\)"),
        (lambda: fields.copembed.reduce(1), r"select components of the reduction, ds\.isel"),
        (lambda: fields.pc.copembed.plot.component(0), "the dataset that reduce or project"),
    ):
        with pytest.raises((CubeError, OptionError), match=remedy):
            use()


def test_other_dimensions_of_the_dataset_do_not_confuse():
    ds, mask = small()
    ds["t2m"] = ("latitude",), [1.0, 2.0], {}
    ds = ds.assign_coords(latitude=[0.0, 1.0])
    assert np.array_equal(CubeView.of(ds).filled(), mask)


def test_means_over_coarser_cells_are_no_cells_of_the_lattice(tmp_path):
    # Nodes of 2.5° are nodes of the lattice too: files had one cell of 0.25° for each hundred.
    ds, _ = small()
    coarse = xr.Dataset(coords={"lat": np.arange(60, 30, -2.5), "lon": np.arange(0, 20, 2.5)})
    merged = ds.copembed.merge(coarse)
    for use in (
        lambda c: c.to_npz(tmp_path / "a.npz"),
        lambda c: c.to_parquet(tmp_path / "a.parquet"),
        lambda c: c.plot.page(tmp_path / "a.html"),
        lambda c: c.merge(coarse),
        lambda c: c.compare(ds),
        lambda c: c.change(merged),
    ):
        with pytest.raises(GridError, match=r"cells of 2\.5° × 2\.5°.*expected cells of 0\.25°"):
            use(merged.copembed)
    assert not list(tmp_path.iterdir())


def coarse():
    """A cube of cells of 2.5°, as `merge` makes them; their nodes are those of the lattice too."""
    lat, lon = np.arange(60, 30, -2.5), np.arange(0, 20, 2.5)
    merged = small()[0].copembed.merge(xr.Dataset(coords={"lat": lat, "lon": lon}))
    assert merged.lat.attrs["cell_degrees"] == merged.lon.attrs["cell_degrees"] == 2.5
    return merged


@pytest.mark.parametrize(
    "change",
    [
        lambda ds: ds * 1,
        lambda ds: ds.assign_coords(lon=ds.lon + 360) * 1,
        lambda ds: (ds.embedding * 1).to_dataset(name="embedding"),
    ],
)
def test_cells_keep_their_size_where_arithmetic_drops_attributes(change, tmp_path):
    # They became cells of 0.25° with nothing between them.
    merged = coarse()
    with xr.set_options(keep_attrs=False):
        changed = change(merged)
    assert not changed.embedding.attrs
    for use in (lambda c: c.at(51.1, 6).embedding, lambda c: c.box(2, 41, 9, 52).embedding):
        assert np.array_equal(use(changed.copembed), use(merged.copembed))
    assert changed.copembed.coverage == merged.copembed.coverage
    with pytest.raises(GridError, match=r"means over cells of 2\.5° × 2\.5°"):
        changed.copembed.to_npz(tmp_path / "a.npz")


def test_cells_whose_size_nothing_tells_are_refused_until_it_is_said(tmp_path):
    stripped, thin = (
        ds.drop_attrs() for ds in (coarse(), small()[0].isel(lat=slice(None, None, 10)))
    )
    thin = thin.isel(lon=slice(None, None, 10))
    for ds in (stripped, thin):
        for use in (
            lambda c: c.at(50, 5),
            lambda c: c.points(([50], [5])),
            lambda c: c.box(0, 40, 10, 50),
            lambda c: c.coverage,
            lambda c: c.to_npz(tmp_path / "a.npz"),
        ):
            with pytest.raises(GridError, match=r"spaced by 2\.5° and 2\.5° on nodes.*not known"):
                use(ds.copembed)
        assert ds.copembed.reduce(2)  # of any size, areas go with the cosine
    assert not list(tmp_path.iterdir())
    stripped.embedding.attrs["cell_degrees"] = [2.5, 2.5]
    thin.embedding.attrs["cell_degrees"] = [0.25, 0.25]
    assert CubeView.of(stripped).latlon.dy == 2.5
    assert CubeView.of(thin).latlon.on_lattice


def test_bounds_tell_the_size_of_cells():
    for ds, size in (
        (coarse().drop_attrs(), 2.5),
        (small()[0].isel(lat=slice(None, None, 4)), 0.25),
    ):
        ds = ds if size > 1 else ds.isel(lon=slice(None, None, 4))
        for dim in ("lat", "lon"):
            edges = ds[dim].values[:, None] + np.array([-size / 2, size / 2])
            ds = ds.assign_coords({f"{dim}_bnds": ((dim, "bnds"), edges)})
        assert CubeView.of(ds).latlon.dy == CubeView.of(ds).latlon.dx == size


def test_fields_that_were_interpolated_have_no_cells_that_overlap():
    # The cell of 2.5° stayed, and of all points in it the first was found.
    fine = coarse().interp(lat=np.arange(55, 45, -0.25), lon=np.arange(5, 10, 0.25))
    found = fine.copembed.at(50, 7)
    assert (float(found.lat), float(found.lon)) == (50, 7)


def test_labels_of_a_selection_are_those_selected():
    ds, _ = small(lead=(("season", 3),))
    flags = {"flag_values": [0, 1, 2], "flag_meanings": "DJF MAM JJA"}
    ds = ds.assign_coords(season=("season", np.arange(3, dtype="i1"), flags))
    assert CubeView.of(ds.isel(season=[2, 0])).groups == {"season": ("JJA", "DJF")}


@pytest.mark.parametrize("dim", ["lat", "lon", "dim", "season"])
def test_an_empty_selection_is_said_to_be_one(dim):
    # Latitudes run southwards, so that a slice from the south selects nothing, silently.
    ds, _ = small(lead=(("season", 2),))
    empty = ds.sel(lat=slice(40, 50)) if dim == "lat" else ds.isel({dim: slice(0)})
    for use in (
        lambda c: c.reduce(2),
        lambda c: c.at(45, 5),
        lambda c: c.points(([45], [5])),
        lambda c: c.box(5, 45, 6, 46),
        lambda c: c.merge(ds[["n_images"]].rename(n_images="z")),
        lambda c: c.coverage,
    ):
        says = f"no values along {dim}: the selection is empty; .* lat=.* and lon="
        with pytest.raises(CubeError, match=says):
            use(empty.copembed)


@pytest.mark.parametrize("kind", ["i1", "i8", "?", "c8", "O", "U32"])
def test_vectors_are_floating_point_numbers(kind):
    # The mean of a region lost its fraction in whole numbers.
    ds, _ = small()
    other = ds.assign(embedding=ds.embedding.fillna(1).astype(kind))
    for use in (lambda c: c.box(5, 45, 6, 46), lambda c: c.reduce(2), lambda c: c.at([45], [5])):
        with pytest.raises(CubeError, match=r"expected floating-point numbers.*astype"):
            use(other.copembed)


def test_coordinates_are_numbers():
    ds, _ = small()
    with pytest.raises(GridError, match=r"lat holds <U.* values; expected degrees as numbers"):
        ds.assign_coords(lat=ds.lat.astype(str)).copembed.at(45, 5)
