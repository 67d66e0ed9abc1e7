"""The page for a browser, looked at in one: colours against matplotlib's, places against ours."""

import re
import time

import matplotlib as mpl
import numpy as np
import pytest
import xarray as xr
from browser import Browser, found

from copcube import pca, plot
from copcube.cli import main
from copcube.errors import CubeError, GridError, OptionError, WriteError
from copcube.plot import web

DIM = 6
HOSTILE = (
    "</script><script>document.title='owned'</script><img src=x onerror=alert(1)>$style & \"'\u202e"
)


def cube(lat, lon, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(len(lat), len(lon), DIM)).astype("f4")
    x *= 1 + np.arange(DIM)[::-1]
    x[rng.random(x.shape[:2]) < 0.3] = np.nan
    there = np.isfinite(x).all(-1)
    counts = np.where(there, rng.integers(1, 100_000, there.shape), 0)
    by = np.stack([counts, np.zeros_like(counts)])
    by[1, :, ::2] = 1
    flags = {"flag_values": [0, 1], "flag_meanings": "s2_toa dem"}
    return xr.Dataset(
        {
            "embedding": (("lat", "lon", "dim"), x),
            "n_images": (("lat", "lon"), counts),
            "n_images_by_modality": (("modality", "lat", "lon"), by),
            "spread": (("lat", "lon"), rng.random(there.shape).astype("f4")),
        },
        {"lat": lat, "lon": lon, "modality": ("modality", np.arange(2, dtype="i1"), flags)},
        attrs={"title": HOSTILE, "encoder": HOSTILE, "encoder_trained": 0, "dates": "2021"},
    )


@pytest.fixture(scope="module")
def europe():
    return cube(np.arange(60, 39.75, -0.25), np.arange(-10, 20.25, 0.25))


@pytest.fixture(scope="module")
def fields(europe):
    return pca.reduce(europe, 5)


@pytest.fixture(scope="module")
def written(europe, fields, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "europe.html"
    done = europe.copembed.plot.page(path, k=5, basis=fields)
    assert (done.path, done.cells, done.dim) == (str(path), int((europe.n_images > 0).sum()), 5)
    assert done.size == path.stat().st_size
    return path


@pytest.fixture(scope="module")
def browser():
    if found() is None:
        pytest.skip("no Chromium or Chrome on the path: the page is not looked at")
    tab = Browser(found())
    yield tab
    tab.close()


def seen(browser, lat, lon):
    """Colours of cells in the window, 0…255, beside their centres, where meridians run."""
    lat, lon = lat + 0.06, lon + 0.06
    left, top, width, height = browser.run(
        "(({left, top, width, height}) => [left, top, width, height])"
        "(canvas.getBoundingClientRect())"
    )
    view, aspect = browser.run("view"), browser.run("about.aspect")
    scale = width / view["across"]
    x = left + width / 2 + (lon - view["lon"]) * scale
    y = top + height / 2 - (lat - view["lat"]) * scale * aspect
    inside = (x > left + 1) & (x < left + width - 1) & (y > top + 1) & (y < top + height - 1)
    pixels = browser.picture()
    return pixels[y[inside].astype(int), x[inside].astype(int)].astype(float), inside


def test_nothing_in_the_page_can_ask_or_run_anything_else(browser, written):
    browser.open(written)
    assert browser.run("document.title") == web.printable(HOSTILE)
    assert browser.text("h1") == web.printable(HOSTILE)
    assert "UNTRAINED" in browser.text(".caution")
    assert HOSTILE[:-1] in browser.text("#about-table")
    assert browser.requests == [written.as_uri()]
    assert browser.errors == []
    assert browser.run("document.images.length") == 0
    # The policy of the page, and not only its escaping, keeps others out.
    browser.run(
        "document.body.append(Object.assign(document.createElement('script'), "
        "{textContent: 'document.title = 1'}))"
    )
    browser.run("fetch('https://example.org/').catch(() => 0)")
    assert browser.run("document.title") == web.printable(HOSTILE)
    assert not [url for url in browser.requests if url.startswith("http")]


@pytest.mark.parametrize("show", ["component,1", "rgb,2,0,1", "counts", "spread"])
def test_colours_are_those_of_the_maps(browser, written, europe, fields, show):
    browser.open(written, f"#lat=50&lon=5&across=12&show={show}")
    i, j = np.nonzero(europe.n_images.values > 0)
    lat, lon = europe.lat.values[i], europe.lon.values[j]
    colours, inside = seen(browser, lat, lon)
    pc = fields.pc.values[i, j][inside]
    limit = 2.5 * np.sqrt(fields.explained_variance.values)
    match show.split(",")[0]:
        case "component":
            want = mpl.colormaps["PuOr"](0.5 + pc[:, 1] / limit[1] / 2)[:, :3]
        case "rgb":
            want = np.clip(0.5 + pc[:, [2, 0, 1]] / limit[[2, 0, 1]] / 2, 0, 1)
        case "counts":
            n = europe.n_images.values
            want = mpl.colormaps["cividis"](np.log(n[i, j][inside]) / np.log(n.max()))[:, :3]
        case "spread":
            part = europe.spread.values[i, j]
            want = mpl.colormaps["cividis"](part[inside] / part.max())[:, :3]
    assert inside.sum() > 500
    # Coastlines and buttons lie over some of the cells.
    right = np.abs(colours - 255 * want).max(axis=1) < 8
    assert right.mean() > 0.9


def test_missing_cells_are_grey(browser, written, europe):
    browser.open(written, "#lat=50&lon=5&across=12")
    i, j = np.nonzero(europe.n_images.values == 0)
    colours, _ = seen(browser, europe.lat.values[i], europe.lon.values[j])
    assert (np.abs(colours - 0xE6).max(axis=1) < 2).mean() > 0.95


def test_the_cell_under_the_pointer_is_told(browser, written, europe, fields):
    browser.open(written, "#lat=50.1&lon=5.1&across=12&show=rgb,0,3,4")
    i, j = next((i, j) for i, j in np.argwhere(europe.n_images.values > 0) if (i, j) > (35, 55))
    lat, lon = float(europe.lat[i]), float(europe.lon[j])
    x, y = browser.run(
        f"(() => {{ const box = canvas.getBoundingClientRect(), [sx, sy] = scales();"
        f"return [box.left + box.width / 2 + ({lon} - view.lon) * sx,"
        f"box.top + box.height / 2 - ({lat} - view.lat) * sy]; }})()"
    )
    browser.mouse("Moved", x, y)
    browser.until("document.getElementById('readout').textContent.includes('modalities')")
    lines = browser.text("#readout").split("\n")
    assert lines[0] == f"{lat:g}°N {abs(lon):g}°{'W' if lon < 0 else 'E' if lon else ''}"
    told = dict(line.split(": ") for line in lines[1:] if line)
    scale = (fields.pc.max(("lat", "lon")) - fields.pc.min(("lat", "lon"))).values.astype(
        float
    ) / 254
    for k in (0, 3, 4):
        value = float(fields.pc[i, j, k])
        assert float(told[f"component {k}"]) == pytest.approx(value, rel=6e-3, abs=0.51 * scale[k])
    assert told["images"] == f"{int(europe.n_images[i, j]):,}"
    assert float(told["spread"]) == pytest.approx(float(europe.spread[i, j]), abs=0.01)
    assert told["modalities"] == ("all" if j % 2 == 0 else "s2_toa")


@pytest.mark.parametrize("apart", [0, 100, 500])
def test_a_click_finds_the_places_that_similar_finds(
    browser, written, europe, fields, tmp_path, apart
):
    # What 8 bits leave of the components, read back from a file that holds such, too.
    fields.copembed.to_npz(tmp_path / "fields.npz", dtype="int8")
    rounded = xr.open_dataset(tmp_path / "fields.npz", engine="copembed")
    i, j = np.argwhere(europe.n_images.values > 0)[2000]
    lat, lon = float(europe.lat[i]), float(europe.lon[j])
    browser.open(written, f"#lat={lat}&lon={lon}&across=20&apart={apart}")
    x, y = browser.run(
        "(({left, top, width, height}) => [left + width / 2, top + height / 2])"
        "(canvas.getBoundingClientRect())"
    )
    browser.click(x, y)
    browser.until("document.querySelectorAll('#places li').length > 0 && shown.kind === 'similar'")
    listed = browser.run("marks.best.map((cell) => [...centre(cell), asked.values[cell]])")
    want = rounded.copembed.similar(lat, lon, n=10, exclude_km=apart)
    np.testing.assert_array_equal(np.array(listed)[:, 0], want.place_lat)
    np.testing.assert_array_equal(np.array(listed)[:, 1], (want.place_lon + 180) % 360 - 180)
    np.testing.assert_allclose(np.array(listed)[:, 2], want.place_similarity, atol=2e-6)
    values = want.similarity.sel(lat=europe.lat, lon=europe.lon % 360).values
    np.testing.assert_allclose(
        browser.run("[...asked.values]"), values[europe.n_images.values > 0], atol=2e-6
    )
    assert browser.text("#places li span") == f"{listed[0][2]:.3f}"
    assert "5 principal components rounded to 8 bits" in browser.text("#computed")


def test_keys_do_what_a_pointer_does(browser, written):
    browser.open(written)
    browser.run("canvas.focus()")
    before = browser.run("view")
    for key in ("+", "+", "ArrowLeft", "ArrowUp"):
        browser.key(key)
    after = browser.run("view")
    assert after["across"] == pytest.approx(before["across"] / 2.25)
    assert (after["lon"] < before["lon"], after["lat"] > before["lat"]) == (True, True)
    for _ in range(20):  # the middle may lie in a cell without images
        if browser.run("cellAt(view.lat, view.lon) >= 0"):
            break
        browser.key("ArrowLeft")
    browser.key("Enter")
    assert browser.until("document.querySelectorAll('#places li').length") == 10
    assert browser.run("marks.cross")
    browser.until("location.hash.includes('place=')")
    browser.key("Escape")
    browser.until("location.hash && !location.hash.includes('place=')")
    assert browser.run("document.querySelectorAll('#places li').length") == 0
    browser.key("Home")
    assert browser.run("view") == pytest.approx(before)


def settled(browser):
    """The window's picture once it no longer changes: look-alikes come after the map."""
    last = browser.picture()
    for _ in range(50):
        time.sleep(0.1)
        now = browser.picture()
        if np.array_equal(now, last):
            break
        last = now
    return now


def test_an_address_shares_the_view(browser, written):
    browser.open(written, "#lat=52&lon=3.5&across=9&show=component,2&place=50,6&apart=100")
    first = settled(browser)
    assert browser.run("[view.lat, view.lon, view.across]") == [52, 3.5, 9]
    browser.run("zoomBy(1.01)")
    browser.run("zoomBy(1 / 1.01); remember()")
    address = browser.until("location.hash.includes('apart') && location.hash")
    browser.open(written, address)
    # A gradient may be rounded otherwise, and the edge of a letter or a coast.
    assert (np.abs(settled(browser).astype(int) - first).max(axis=2) > 2).mean() < 1e-3
    browser.run("location.hash = '#lat=45&lon=12&across=5&show=counts'")
    browser.until("shown.kind === 'counts' && view.lat === 45")
    caption = "document.querySelector('#legend figcaption').textContent"
    browser.until(f"{caption}.startsWith('images in the cell')")  # in the frame that follows


@pytest.mark.parametrize(
    "address",
    ["#lat=x&lon=&across=-5&show=rgb,9,9,9&place=99,99", "#place=0,0", "#%%%", "#show=fog"],
)
def test_an_address_that_means_nothing_changes_nothing(browser, written, address):
    browser.open(written, address)
    assert browser.run("document.documentElement.dataset.state") == "ready"
    assert browser.errors == []
    assert browser.run("shown.rgb.join()") == "0,1,2"


def test_a_phone_can_read_pan_and_pinch(browser, written):
    browser.open(written, size=(360, 740), scale=2)
    assert browser.run("document.documentElement.scrollWidth") == 360
    sizes = browser.run(
        "[...document.querySelectorAll('button, select')].filter((e) => "
        "e.offsetParent).map((e) => e.getBoundingClientRect().height)"
    )
    assert min(sizes) >= 44
    before = browser.run("view")

    def touch(kind, *points):
        browser.call(
            "Input.dispatchTouchEvent",
            type=f"touch{kind}",
            touchPoints=[{"x": x, "y": y, "id": i} for i, (x, y) in enumerate(points)],
        )

    y = browser.run("canvas.getBoundingClientRect().top + 150")
    touch("Start", (150, y), (210, y))
    for step in range(1, 6):
        touch("Move", (150 - 10 * step, y), (210 + 10 * step, y))
    touch("End")
    after = browser.run("view")
    assert before["across"] / after["across"] == pytest.approx(160 / 60, rel=0.3)
    touch("Start", (100, y))
    for step in range(1, 6):
        touch("Move", (100 + 20 * step, y))
    touch("End")
    assert browser.run("view.lon") < after["lon"]
    assert browser.run("marks.place") is None


def test_maps_across_180_degrees_and_at_a_pole(browser, tmp_path):
    lon = np.arange(170, 190.25, 0.25) % 360
    ds = cube(np.arange(-80, -90.25, -0.25), lon)
    plot.page(ds, tmp_path / "south.html", k=3)
    browser.open(tmp_path / "south.html")
    i, j = np.argwhere(ds.n_images.values > 0).T
    found = np.array(browser.run("Array.from({length: about.cells}, (_, cell) => centre(cell))"))
    np.testing.assert_array_equal(found[:, 0], ds.lat.values[i])
    np.testing.assert_array_equal(found[:, 1] % 360, ds.lon.values[j])
    points = [[float(ds.lat[a]), float(ds.lon[b]) - 360] for a, b in zip(i, j, strict=True)]
    places = f"{points}.map((point) => cellAt(...point))"
    assert browser.run(places) == list(range(len(i)))
    assert 180 - abs(browser.run("view.lon")) < 1
    assert browser.run("cellAt(-85, 0)") == -1


def test_a_page_that_was_cut_says_so(browser, written, tmp_path):
    text = written.read_text()
    (tmp_path / "cut.html").write_text(re.sub(r'id="pc1">.{200}', 'id="pc1">', text))
    browser.open(tmp_path / "cut.html")
    assert browser.run("document.documentElement.dataset.state") == "failed"
    assert "damaged; get a new copy" in browser.text("#status")


def test_what_a_dataset_lacks_is_not_offered(browser, fields, europe, tmp_path):
    two = europe.drop_vars(["spread", "n_images_by_modality"]).assign_attrs(n_images_known=0)
    plot.page(two, tmp_path / "two.html", k=2)
    browser.open(tmp_path / "two.html", "#show=rgb,0,1,2")
    kinds = "[...document.getElementById('show').options].map((each) => each.value)"
    assert browser.run(kinds) == ["component", "similar"]
    plot.page(fields, tmp_path / "fields.html")
    browser.open(tmp_path / "fields.html")
    assert browser.run(kinds) == ["rgb", "component", "similar"]
    assert browser.run("about.components.length") == 5


def test_a_page_stays_below_its_limit(europe, fields, tmp_path, monkeypatch, caplog):
    whole = plot.page(fields, tmp_path / "whole.html").size
    assert whole < web.LIMIT
    monkeypatch.setattr(web, "LIMIT", web._SHELL + 60_000)
    done = plot.page(fields, tmp_path / "less.html")
    assert done.dim < 5
    assert done.size <= web.LIMIT
    assert f"the first {done.dim} of 5 components fit" in caplog.text


def test_pages_that_cannot_be_written(europe, fields, tmp_path):
    (tmp_path / "mine.html").write_text("<!DOCTYPE html><title>copcube and I</title>")
    empty = europe.assign(embedding=europe.embedding * np.nan, n_images=europe.n_images * 0)
    bare = fields.drop_vars("explained_variance")
    cases = [
        (OptionError, "ending in .html", lambda: plot.page(fields, tmp_path / "a.htm1")),
        (OptionError, "k is 0", lambda: plot.page(fields, tmp_path / "a.html", k=0)),
        (OptionError, "k is 2.5", lambda: plot.page(fields, tmp_path / "a.html", k=2.5)),
        (OptionError, "has its own", lambda: plot.page(fields, tmp_path / "a.html", basis=fields)),
        (OptionError, "basis of the reduction", lambda: plot.page(bare, tmp_path / "a.html")),
        (
            OptionError,
            "basis of the reduction",
            lambda: plot.page(fields[["pc"]], tmp_path / "a.html"),
        ),
        (OptionError, "output is None", lambda: plot.page(fields, None)),
        (CubeError, "no cell holds", lambda: plot.page(empty, tmp_path / "a.html")),
        (CubeError, "no cell holds", lambda: plot.page(fields * np.nan, tmp_path / "a.html")),
        (
            CubeError,
            "groups along season",
            lambda: plot.page(fields.expand_dims(season=2), tmp_path / "a.html"),
        ),
        (
            GridError,
            "not a node",
            lambda: plot.page(fields.assign_coords(lat=fields.lat + 0.1), tmp_path / "a.html"),
        ),
        (WriteError, "exists already", lambda: plot.page(fields, tmp_path / "mine.html")),
        (
            WriteError,
            "only what copcube made",
            lambda: plot.page(fields, tmp_path / "mine.html", overwrite=True),
        ),
        (
            WriteError,
            "folder does not exist",
            lambda: plot.page(fields, tmp_path / "no" / "a.html"),
        ),
    ]
    for error, match, write in cases:
        with pytest.raises(error, match=match):
            write()
    assert [path.name for path in tmp_path.iterdir()] == ["mine.html"]


@pytest.mark.slow
def test_on_the_command_line(europe, fields, tmp_path, capsys):
    source, basis, out = tmp_path / "europe.nc", tmp_path / "fields.nc", tmp_path / "map.html"
    europe.drop_attrs(deep=False).to_netcdf(source)
    fields.to_netcdf(basis)
    words = ["map", str(source), str(out)]
    assert main([*words, "--k", "2", "--basis", str(basis)]) == 0
    assert "2 int8" in capsys.readouterr().out
    assert main(words) == 1
    assert "exists already" in capsys.readouterr().err
    assert main([*words, "--overwrite"]) == 0
    assert "6 int8" in capsys.readouterr().out
    assert main([*words, "--dpi", "90", "--show", "rgb"]) == 1
    assert ".html has no option --show, --dpi" in capsys.readouterr().err
    assert main(["map", str(source), str(tmp_path / "map.png"), "--k", "3"]) == 1
    assert ".png has no option --k" in capsys.readouterr().err
