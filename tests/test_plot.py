"""Maps: what is drawn where, on which colours; the pixels are compared with xarray's own lookup."""

import numpy as np
import pytest
import xarray as xr
from builds_helpers import run_code

from copcube import pca, plot
from copcube.cli import main
from copcube.errors import CubeError, GridError, OptionError
from copcube.plot.coast import coastlines

DIM = 6


def cube(lat, lon, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(len(lat), len(lon), DIM)).astype("f4")
    x *= 1 + np.arange(DIM)[::-1]
    x[rng.random(x.shape[:2]) < 0.5] = np.nan
    there = np.isfinite(x).all(-1)
    return xr.Dataset(
        {
            "embedding": (("lat", "lon", "dim"), x),
            "n_images": (("lat", "lon"), np.where(there, rng.integers(1, 50, there.shape), 0)),
            "spread": (("lat", "lon"), rng.random(there.shape).astype("f4")),
        },
        {"lat": lat, "lon": lon},
    )


@pytest.fixture(scope="module")
def europe():
    return cube(np.arange(60, 34.75, -0.25), np.arange(-10, 30.25, 0.25))


@pytest.fixture(scope="module")
def fields(europe):
    return pca.reduce(europe, 4)


def image(ax):
    """The pixels of a map, and the degrees or metres of their centres."""
    (drawn,) = ax.get_images()
    west, east, south, north = drawn.get_extent()
    values = np.ma.filled(np.ma.masked_invalid(drawn.get_array()).astype(float), np.nan)
    rows, columns = values.shape[:2]
    x = west + (np.arange(columns) + 0.5) * (east - west) / columns
    y = north - (np.arange(rows) + 0.5) * (north - south) / rows
    return values, y, x


@pytest.mark.slow
def test_every_pixel_shows_the_cell_that_holds_it(fields):
    ax = plot.component(fields, 1, extent=(-3, 8, 40, 51))
    values, y, x = image(ax)
    want = fields.pc.isel(component=1).sel(lat=y, lon=x, method="nearest").values
    # A point on an edge may be either side's; centres of pixels are on none.
    np.testing.assert_allclose(values, want, rtol=1e-6)
    assert ax.get_xlim() == (-3, 8)
    assert ax.get_ylim() == (40, 51)
    assert "degrees east" in ax.get_xlabel()
    limit = 2.5 * np.sqrt(float(fields.explained_variance[1]))
    assert ax.get_images()[0].get_clim() == pytest.approx((-limit, limit))


@pytest.mark.slow
def test_maps_across_180_degrees():
    lon = np.arange(170, 190.25, 0.25)
    ds = cube(np.arange(-30, -40.25, -0.25), lon % 360)
    values, y, x = image(plot.counts(ds))
    assert (x.min(), x.max()) == pytest.approx((169.875, 190.125), abs=0.1)
    moved = ds.assign_coords(lon=lon)
    want = moved.n_images.sel(lat=y, lon=x, method="nearest").values
    np.testing.assert_array_equal(np.nan_to_num(values), want)
    written = image(plot.counts(ds, extent=(175, -175, -38, -32)))
    assert (written[2].min(), written[2].max()) == pytest.approx((175, 185), abs=0.2)


def test_a_narrow_map_and_its_scale_stand_in_the_middle(fields):
    figure = plot.component(fields, 0, extent=(5, 15, 40, 55)).figure
    figure.draw_without_rendering()
    drawn = figure.get_tightbbox()
    assert drawn.x0 == pytest.approx(figure.get_figwidth() - drawn.x1, abs=0.5)


@pytest.mark.slow
def test_in_a_projection_pixels_show_their_place(fields):
    crs = pytest.importorskip("cartopy.crs")
    projection = crs.LambertAzimuthalEqualArea(10, 50)
    values, y, x = image(plot.component(fields, 0, projection=projection, extent=(0, 20, 42, 55)))
    i, j = np.argwhere(np.isfinite(values))[::997].T
    lon, lat = crs.PlateCarree().transform_points(projection, x[j], y[i])[:, :2].T
    want = fields.pc.isel(component=0).sel(
        lat=xr.DataArray(lat, dims="p"), lon=xr.DataArray(lon, dims="p"), method="nearest"
    )
    np.testing.assert_allclose(values[i, j], want, rtol=1e-6)
    assert (lon > 0).all()
    assert (lon < 20).all()


def test_colours_of_a_part_are_those_of_the_whole(fields):
    whole, _, _ = image(plot.rgb(fields, extent=(0, 10, 40, 50)))
    part = fields.sel(lat=slice(50, 40), lon=slice(0, 10))
    cut, _, _ = image(plot.rgb(part, extent=(0, 10, 40, 50)))
    np.testing.assert_array_equal(whole, cut)
    assert set(np.unique(whole[..., 3])) == {0, 1}  # opaque where a vector is
    limit = 2.5 * np.sqrt(fields.explained_variance.values[:3])
    want = np.clip(0.5 + fields.pc.values[..., :3] / limit / 2, 0, 1)
    assert np.isclose(np.nanmean(want), whole[whole[..., 3] == 1][:, :3].mean(), atol=0.01)


@pytest.mark.slow
def test_a_cube_is_reduced_first_and_a_basis_fixes_its_axes(europe, fields):
    own, _, _ = image(plot.component(europe, 0))
    np.testing.assert_allclose(own, image(plot.component(fields, 0))[0], rtol=1e-4, atol=1e-4)
    part = europe.sel(lon=slice(0, 10))
    on_basis, y, x = image(plot.component(part, 0, basis=fields))
    want = fields.pc.isel(component=0).sel(lat=y, lon=x, method="nearest")
    np.testing.assert_allclose(on_basis, want, rtol=1e-4, atol=1e-4)


def test_a_lazy_cube_is_read_twice_for_a_map(europe):
    # Once for its axes, and again for all three components, each of which read it alone.
    lazy, read = europe.sel(lat=slice(60, 56.5), lon=slice(0, 11)).chunk(), []
    noted = lazy.embedding.data.map_blocks(lambda b: (read.append(1), b)[1], dtype="f4")
    read.clear()
    plot.rgb(lazy.assign(embedding=(lazy.embedding.dims, noted)))
    assert len(read) == 2


def test_other_maps_show_what_they_say(europe):
    there = europe.n_images.values > 0
    for ax, want in (
        (plot.spread(europe), np.where(there, europe.spread, np.nan)),
        (plot.coverage(europe), np.where(there, 1, np.nan)),
    ):
        values, y, x = image(ax)
        want = xr.DataArray(want, europe.n_images.coords)
        np.testing.assert_array_equal(values, want.sel(lat=y, lon=x, method="nearest"))


def test_look_alikes_are_marked(europe):
    i, j = np.argwhere(europe.n_images.values > 0)[1000]
    lat, lon = float(europe.lat[i]), float(europe.lon[j])
    ax = plot.similar(europe, lat, lon, n=3, exclude_km=200)
    found = europe.copembed.similar(lat, lon, n=3, exclude_km=200)
    *_, best, here = ax.get_lines()
    np.testing.assert_array_equal(best.get_xydata(), np.c_[found.place_lon, found.place_lat])
    np.testing.assert_array_equal(here.get_xydata(), [[lon, lat]])


def test_a_place_of_few_bits_is_marked(europe):
    """A longitude of eight bits has no room for the turns at which marks are drawn."""
    whole = europe.n_images.sel(lat=europe.lat % 1 == 0, lon=europe.lon % 1 == 0)
    i, j = np.argwhere(whole.values > 0)[0]
    lat, lon = (np.int8(axis.values[n]) for axis, n in ((whole.lat, i), (whole.lon, j)))
    *_, here = plot.similar(europe, lat, lon, n=3).get_lines()
    np.testing.assert_array_equal(here.get_xydata(), [[lon, lat]])


@pytest.mark.slow
def test_axes_given_are_drawn_on_and_nothing_global_is_touched(fields):
    from matplotlib import pyplot
    from matplotlib.figure import Figure

    before = pyplot.get_fignums()
    ax = Figure().add_subplot()
    assert fields.copembed.plot.rgb(ax=ax) is ax
    again = fields.copembed.plot(ax=Figure().add_subplot())
    np.testing.assert_array_equal(again.images[0].get_array(), ax.images[0].get_array())
    assert fields.copembed.plot.component(0) is not ax
    assert pyplot.get_fignums() == before


@pytest.mark.slow
def test_a_few_cells_of_the_globe_are_dots(europe):
    some = europe.reindex(lat=np.arange(90, -90.25, -0.25), lon=np.arange(0, 360, 0.25))
    few = np.zeros((721, 1440), bool)
    rows, cols = np.nonzero(some.n_images.values > 0)
    few[rows[::1000], cols[::1000]] = True
    some["n_images"] = some.n_images.where(few, 0).fillna(0).astype(int)
    some["embedding"] = some.embedding.where(some.n_images > 0)
    for projection in (None, "Robinson"):
        (dots,) = plot.counts(some, projection=projection).collections[:1]
        np.testing.assert_array_equal(np.sort(dots.get_array()), np.sort(some.n_images.values[few]))
    near = plot.counts(some, extent=(0, 20, 40, 50))
    assert not [c for c in near.collections if c.get_offsets().shape[0] == few.sum()]


@pytest.mark.slow
def test_numbers_of_an_untrained_encoder_are_marked(europe):
    assert "UNTRAINED" not in plot.counts(europe).get_title()
    assert "UNTRAINED" in plot.counts(europe.assign_attrs(encoder_trained=0)).get_title()


def test_coastlines_are_where_they_are():
    lines = coastlines()
    points = np.concatenate(lines)
    assert np.abs(points[:, 0]).max() <= 180
    assert np.abs(points[:, 1]).max() <= 90
    # Capes, to the third of a degree that a line at 1:110 million is off.
    for lon, lat in ((-9.50, 38.78), (20.0, -34.83), (-34.8, -7.15), (25.7, 71.1), (-67.3, -55.9)):
        assert np.hypot(points[:, 0] - lon, points[:, 1] - lat).min() < 0.7
    assert not any(np.abs(np.diff(line[:, 0])).max() > 180 for line in lines)


def test_maps_that_cannot_be_drawn(europe, fields):
    cases = [
        (OptionError, "extent=", lambda: plot.rgb(fields, extent=(0, 10, 50, 40))),
        (OptionError, "extent=", lambda: plot.rgb(fields, extent=(0, 10, 50, 95))),
        (OptionError, "extent='europe'", lambda: plot.rgb(fields, extent="europe")),
        (OptionError, "expected three", lambda: plot.rgb(fields, (0, 1))),
        (OptionError, "has 0 to 3", lambda: plot.component(fields, 4)),
        (OptionError, "expected three", lambda: plot.rgb(fields, 3)),
        (OptionError, "a component is '1'", lambda: plot.rgb(fields, (0, "1", 2))),
        (OptionError, "component is -1", lambda: plot.component(fields, -1)),
        (OptionError, "component is '0'", lambda: plot.component(fields, "0")),
        (OptionError, "has its own", lambda: plot.rgb(fields, basis=fields)),
        (
            OptionError,
            "basis of the reduction",
            lambda: plot.component(fields[["pc"]].assign_attrs(reduction_whiten=1)),
        ),
        (
            OptionError,
            "no such|projection='Robinsson'",
            lambda: plot.rgb(fields, projection="Robinsson"),
        ),
        (OptionError, "ax is .*; expected axes", lambda: plot.rgb(fields, ax=[1])),
        (OptionError, "needs parameters", lambda: plot.rgb(fields, projection="UTM")),
        (
            OptionError,
            "Orthographic does not show longitudes 170 to 178",
            lambda: plot.rgb(fields, projection="Orthographic", extent=(170, 178, -45, -40)),
        ),
        (CubeError, "has no spread", lambda: plot.spread(europe.drop_vars("spread"))),
        (
            CubeError,
            "the number of images per cell is not known",
            lambda: plot.counts(europe.assign_attrs(n_images_known=0)),
        ),
        (CubeError, "groups along season", lambda: plot.rgb(fields.expand_dims(season=2))),
        (
            GridError,
            "between the nodes",
            lambda: plot.coverage(europe.assign_coords(lat=europe.lat + 0.1)),
        ),
    ]
    for error, match, draw in cases:
        with pytest.raises(error, match=match):
            draw()


@pytest.mark.slow
def test_what_is_not_installed_is_named(tmp_path, fields):
    """In a process that has imported neither."""
    fields.to_netcdf(tmp_path / "fields.nc")
    code = f"""
import sys
import xarray as xr, copcube
assert not {{"matplotlib", "cartopy"}} & {{*sys.modules}}
ds = xr.load_dataset({str(tmp_path / "fields.nc")!r})
for package, projection in (("matplotlib", None), ("cartopy", "Robinson")):
    missing = dict.fromkeys((package, package + ".figure"))
    sys.modules.update(missing)
    for draw in (ds.copembed.plot.rgb, ds.copembed.plot.coverage):
        try: draw(projection=projection)
        except copcube.CopcubeError as error: print(error)
    for name in missing: del sys.modules[name]
"""
    said = run_code(code, tmp_path / "said.txt").splitlines()
    for package, text in zip(("matplotlib", "matplotlib", "cartopy", "cartopy"), said, strict=True):
        assert package in text
        assert "copcube[plot]" in text


@pytest.mark.parametrize(
    "words",
    [["--component", "1"], ["--show", "counts", "--basis", "fields.nc"]],
    ids=" ".join,
)
def test_the_command_refuses_what_its_picture_does_not_show(words, tmp_path, capsys):
    assert main(["map", "world.zarr", str(tmp_path / "a.png"), *words]) == 1
    assert "is shown" in capsys.readouterr().err


@pytest.mark.slow
def test_on_the_command_line(fields, tmp_path, capsys):
    source, out = str(tmp_path / "fields.nc"), tmp_path / "map.png"
    fields.to_netcdf(source)
    words = ["map", source, str(out), "--extent", "0", "10", "40", "50", "--dpi", "40"]
    assert main([*words, "--show", "component", "--component", "1"]) == 0
    assert out.read_bytes().startswith(b"\x89PNG")
    assert main(words) == 1
    assert "exists already" in capsys.readouterr().err
    assert main([*words, "--overwrite", "--projection", "Mollweide"]) == 0
    assert main(["map", source, str(tmp_path / "map.gif")]) == 1
    assert "expected .png, .pdf, .svg" in capsys.readouterr().err
    for form in ("pdf", "svg"):
        twice = ["map", source, str(tmp_path / f"map.{form}"), *words[3:]]
        assert main(twice) == 0
        assert main([*twice, "--overwrite"]) == 0
    (tmp_path / "photo.png").write_bytes(b"\x89PNG of somebody else's")
    (tmp_path / "link.png").symlink_to(out)
    for name in ("photo.png", "link.png"):
        assert main(["map", source, str(tmp_path / name), "--overwrite"]) == 1
        assert "only what copcube made is replaced" in capsys.readouterr().err
    assert main(["map", source, str(tmp_path / "other.png"), "--show", "spread"]) == 1
    assert "has no spread" in capsys.readouterr().err
    pictures = {path.name for path in tmp_path.iterdir() if path.suffix == ".png"}
    assert pictures == {"map.png", "photo.png", "link.png"}


def test_cells_of_coarser_grids_are_drawn_whole():
    lat, lon = 60 - 2.5 * np.arange(4), (177.5 + 2.5 * np.arange(3)) % 360
    counts = np.arange(1, 13).reshape(4, 3)
    x = counts[..., None] * np.ones(2)
    ds = xr.Dataset({"embedding": (("lat", "lon", "dim"), x)}, {"lat": lat, "lon": lon})
    ds.embedding.attrs["cell_degrees"] = (2.5, 2.5)
    image = plot.counts(ds.assign(n_images=(("lat", "lon"), counts))).images[0]
    assert image.get_extent() == [176.25, 183.75, 51.25, 61.25]
    drawn = np.asarray(image.get_array())
    rows, cols = drawn.shape[0] // 4, drawn.shape[1] // 3
    np.testing.assert_array_equal(drawn, counts.repeat(rows, 0).repeat(cols, 1))
