"""Queries by an image: embedded by the encoder that made what is searched, or refused in a line."""

import shutil
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
import rasterio
import torch
import xarray as xr
from rasterio.enums import ColorInterp
from stub import StubEncoder
from test_geotiff import place, write

import copcube
from copcube.builds import aggregate, build
from copcube.cli import main
from copcube.embedding import as_encoder
from copcube.encoder.timm_encoder import _built, untrained
from copcube.encoder.timm_kinds import KINDS, RGB, S2L1C, Kind, TimmSpec
from copcube.encoder.weights import untrained_weights
from copcube.errors import FetchError, ImageError, OptionError, WeightsError
from copcube.images.sample import write_sample
from copcube.lookup import Fragments
from copcube.lookup.queries import encoder_of, image_vector
from copcube.modalities import MODALITIES
from copcube.products.majortom.core_sample import write_core

# rioxarray multiplies transforms in a way that a later affine will not know.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:Use `@` matmul:PendingDeprecationWarning"),
]


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Images of two cells, weights of a small model, and the rows that it makes of them."""
    root = tmp_path_factory.mktemp("small")
    write_sample(root / "images", cells=2, dates=2, local_patches=2, modalities="s2_toa,s1_grd")
    drawn = untrained_weights(0, embed_dim=64, depth=1, heads=1)
    torch.save(drawn.model.state_dict(), root / "weights.pth")
    spec = copcube.EncoderSpec(weights=root / "weights.pth", dtype="float32")
    build(root / "images", root / "world.zarr", encoder=spec)
    return root


@pytest.fixture(scope="module")
def rows(small):
    return Fragments.open(small / "world.build/rows").load()


@pytest.fixture(scope="module")
def majortom(tmp_path_factory):
    """Rows by a small model of Major TOM of images of 300 pixels, and these as trees."""
    root = tmp_path_factory.mktemp("majortom")
    kinds = {
        "tiny-s2": Kind("tiny of 13 bands", "resnet10t", 512, "s2_toa", S2L1C, 96, "reflectance"),
        "tiny-rgb": Kind("tiny of 3 bands", "resnet10t", 512, "s2_toa", RGB, 96, "picture"),
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, kind in kinds.items():
            patch.setitem(KINDS, name, kind)
        write_core(root / "core", seed=1, cells=2, side=300)
        torch.save(untrained(_built(kinds["tiny-s2"]), 0), root / "s2.pth")
        for name, weights in (("tiny-s2", root / "s2.pth"), ("tiny-rgb", "untrained:0")):
            spec = TimmSpec(name, weights, dtype="float32")
            build(root / "core/Core-S2L1C", root / f"{name}.zarr", product="majortom", encoder=spec)
        for row in pq.read_table(root / "core/Core-S2L1C/images").to_pylist():
            cell = row["grid_cell"]
            folder = root / "tree" / cell.split("_")[0] / cell / row["product_id"]
            folder.mkdir(parents=True)
            for band in S2L1C:
                (folder / f"{band}.tif").write_bytes(row[band])
        yield root


def products(root):
    return sorted(path for path in (root / "tree").glob("*/*/*") if path.is_dir())


def test_an_image_of_the_source_finds_itself(small, rows):
    for file in sorted((small / "images").rglob("*.tif"))[::3]:
        found = rows.nearest(image=file, encoder=small / "weights.pth", n=2)
        assert float(found.place_similarity[0]) == pytest.approx(1, abs=1e-6)
        assert found.place_modality.values[0] == ("s2_toa" if "s2" in str(file) else "s1_grd")
        assert found.place_date.values[0] in file.name.replace("-", "")
        assert found.place_cell.values[0] in str(file)
        assert float(found.place_similarity[1]) < 1 - 1e-5


def test_images_find_themselves_whatever_was_subtracted_and_cropped(small, tmp_path, caplog):
    spec = copcube.EncoderSpec(weights=small / "weights.pth", dtype="float32")
    build(small / "images", tmp_path / "b.zarr", encoder=spec, s2_offset=1000, crop="full")
    files = sorted((small / "images").rglob("*.tif"))[::3]
    lowered = Fragments.open(tmp_path / "b.build/rows").load()
    for file in files:
        found = lowered.nearest(image=file, encoder=small / "weights.pth", n=1)
        assert float(found.place_similarity[0]) == pytest.approx(1, abs=1e-6)
        assert found.place_cell.values[0] in str(file)
    assert "searched" not in caplog.text
    # Of rows that were made in several ways it is said which way is the image's.
    for name, folder in (("a", small / "world.build"), ("b", tmp_path / "b.build")):
        # Of two blocks the southern one, which the first files lie in.
        (tmp_path / f"{name}.parquet").symlink_to(max((folder / "rows").glob("*.parquet")))
    both = Fragments.open(tmp_path / "?.parquet")
    s1, s2 = (next(f for f in files if key in str(f)) for key in ("s1", "s2"))
    for file, said in ((s1, ("crop",)), (s2, ("crop", "s2_offset"))):
        caplog.clear()
        found = both.nearest(image=file, encoder=small / "weights.pth", n=1)
        assert found.place_file.values[0] == str(tmp_path / "a.parquet")
        assert [word for word in ("crop", "s2_offset") if f" of {word} (" in caplog.text] == [*said]
    assert "s2_offset (0 or 1000), the image's with 0;" in caplog.text
    assert "crop (center or full), the image's with center;" in caplog.text
    aggregate(tmp_path / "?.parquet", tmp_path / "both.zarr", duplicates="drop")
    said = xr.open_zarr(tmp_path / "both.zarr").attrs["preprocessing"]
    assert said.startswith("centre crop to the pretraining size or whole stored image, normalised")


def test_a_sensor_is_that_of_the_rows(small, tmp_path):
    shutil.copytree(small / "images/s1_grd_utm", tmp_path / "images/radar")
    own = replace(MODALITIES["s1_grd"], key="radar", folders=("radar/images",))
    spec = copcube.EncoderSpec(weights=small / "weights.pth", dtype="float32")
    build(tmp_path / "images", tmp_path / "w.zarr", encoder=spec, sensors=[own])
    made = Fragments.open(tmp_path / "w.build/rows").load()
    options = {"encoder": small / "weights.pth", "n": 1}
    for file in sorted((tmp_path / "images").rglob("*.tif")):
        found = made.nearest(image=file, modality=own, **options)
        assert float(found.place_similarity[0]) == pytest.approx(1, abs=1e-6)
        assert found.place_modality.values[0] == "radar"
    with pytest.raises(OptionError, match="'radar' is not that of the vectors searched"):
        made.nearest(image=file, modality=replace(own, mean=(0, 0), std=(9, 9)), **options)


@pytest.mark.parametrize("dtype", ["int16", "uint16"])
def test_what_the_mask_of_a_file_excludes_is_not_seen(small, rows, tmp_path, dtype):
    pixels = np.random.default_rng(0).integers(1, 9000, (13, 264, 264)).astype(dtype)
    options = {"modality": "s2_toa", "date": "2021-06-01", "encoder": small / "weights.pth"}
    found = []
    for masked in (True, False):
        pixels[:, :100] = 30_000 if masked else 0
        path = tmp_path / f"{masked}.tif"
        grid = {"crs": "EPSG:32632", "transform": rasterio.Affine(10, 0, 6e5, 0, -10, 5e6)}
        profile = {"count": 13, "height": 264, "width": 264, "dtype": dtype, **grid}
        with (
            rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True),
            rasterio.open(path, "w", driver="GTiff", **profile) as raster,
        ):
            raster.write(pixels)
            if masked:
                raster.write_mask(pixels[0] != 30_000)
        found.append(image_vector(path, rows.about, rows.dim, **options))
    np.testing.assert_array_equal(*found)


@pytest.mark.parametrize("kind", ["scaled", "mask", "masks", "alpha", "turned", "counts", "count"])
def test_an_image_is_seen_alike_in_a_tree_and_elsewhere(kind, tmp_path):
    key = "s2_toa" if kind == "counts" else "s1_grd"
    path = tmp_path / "tree" / place(key)
    rng, count = np.random.default_rng(0), len(MODALITIES[key].bands) + (kind in ("alpha", "count"))
    pixels = rng.integers(-3000, 3000, (count, 264, 264)).astype("int16")
    turned = rasterio.Affine(0, 10, 6e5, 10, 0, 5e6 - 2640)
    profile = {"crs": "EPSG:32632", "transform": rasterio.Affine(10, 0, 6e5, 0, -10, 5e6)}
    write(path, pixels, scale=0.01, offset=1.5, **profile)
    with rasterio.open(path, "r+") as raster:
        if kind != "count":
            raster.descriptions = [*MODALITIES[key].bands, "alpha"][:count]
        if kind == "alpha":
            raster.colorinterp = [ColorInterp.gray, ColorInterp.undefined, ColorInterp.alpha]
            raster.nodata = 7
            raster.write(np.tri(264, dtype="int16"), 3)
        if kind == "turned":
            raster.transform = turned
    if kind in ("mask", "masks", "counts"):
        flags = {f"INTERNAL_MASK_FLAGS_{n + 1}": 2 if kind == "mask" else 0 for n in range(count)}
        masks = rng.integers(0, 2, (1 if kind == "mask" else count, 264, 264), "uint8")
        write(tmp_path / "mask.tif", masks * np.uint8(255), **profile)
        with rasterio.open(tmp_path / "mask.tif", "r+") as raster:
            raster.update_tags(**flags)
        shutil.move(tmp_path / "mask.tif", f"{path}.msk")
    outside = tmp_path / "field.tif"
    for end in ("", ".msk"):
        if path.with_name(path.name + end).exists():
            shutil.copy(f"{path}{end}", f"{outside}{end}")
    seen = [Seeing(), Seeing()]
    if kind == "count":
        said = r"\.tif: expected 2 bands of s1_grd, found 3"
        for file, more in ((path, {}), (outside, {"modality": key})):
            with pytest.raises(ImageError, match=said):
                image_vector(file, {}, 1, encoder=seen[0], **more)
        return
    image_vector(path, {}, 1, encoder=seen[0])
    image_vector(outside, {}, 1, encoder=seen[1], modality=key, date="2021-06-01")
    a, b = (one.pixels.astype("f4") for one in seen)
    np.testing.assert_array_equal(np.where(np.isnan(a).all(0) | ~a.any(0), np.nan, a), b)
    expected = pixels[:2, 20:244, 20:244] * 0.01 + 1.5
    if kind == "turned":
        expected = expected.transpose(0, 2, 1)[:, ::-1]
    if kind == "alpha":
        expected[:, np.tri(264)[20:244, 20:244] == 0] = np.nan
        expected[pixels[:2, 20:244, 20:244] == 7] = np.nan
    if kind in ("mask", "masks"):
        expected[np.broadcast_to(masks[:, 20:244, 20:244] == 0, expected.shape)] = np.nan
    if kind != "counts":
        np.testing.assert_allclose(b, expected, rtol=1e-5, atol=1e-5)
    else:
        assert (np.isnan(b) == (masks[:, 20:244, 20:244] == 0)).all()


class Seeing:
    """An encoder that keeps the pixels of the one image it is given."""

    dim, streams, provenance = 1, 1, {"encoder": "seeing"}

    def batch_size(self, modality, size):
        return 1

    def __call__(self, modality, pixels, metadata):
        (self.pixels,) = pixels
        return np.zeros((1, 1), np.float32)


def test_an_image_elsewhere_is_embedded_as_by_embed(small, rows, tmp_path):
    file = next(f for f in sorted((small / "images").rglob("*.tif")) if "s2" in str(f))
    loose = tmp_path / "field.tif"
    with rasterio.open(file) as raster:
        pixels, profile = raster.read(), raster.profile
    profile |= {"crs": "EPSG:32632", "height": 300, "width": 320}
    profile |= {"transform": rasterio.Affine(10, 0, 6e5, 0, -10, 5e6)}
    wide = np.tile(pixels, (1, 2, 2))[:, :300, :320]
    with rasterio.open(loose, "w", **profile) as raster:
        raster.write(wide)
    encoder = copcube.EncoderSpec(weights=small / "weights.pth", dtype="float32")
    options = {"modality": "s2_toa", "date": "2021-06-01"}
    found = image_vector(loose, rows.about, rows.dim, encoder=small / "weights.pth", **options)
    middle = xr.DataArray(
        wide[:, 38:262, 48:272],
        dims=("band", "y", "x"),
        coords={"y": 5e6 - 10 * np.arange(38.5, 262), "x": 6e5 + 10 * np.arange(48.5, 272)},
    ).rio.write_crs("EPSG:32632")
    expected = copcube.embed(middle, tile=224, encoder=encoder, **options).values.ravel()
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    # And so is an image in memory.
    with xr.open_dataarray(loose, engine="rasterio") as opened:
        np.testing.assert_array_equal(
            image_vector(opened, rows.about, rows.dim, encoder=encoder, **options), found
        )


@pytest.mark.parametrize("name", ["tiny-s2", "tiny-rgb"])
def test_the_middle_of_a_product_finds_itself(majortom, name, tmp_path):
    made = Fragments.open(majortom / f"{name}.build/rows").load()
    weights = majortom / "s2.pth" if name == "tiny-s2" else None
    table = pq.read_table(majortom / f"{name}.build/rows")
    for product in products(majortom):
        found = made.nearest(image=product, encoder=weights, n=2)
        number = int(found.place_number[0])
        assert float(found.place_similarity[0]) == pytest.approx(1, abs=1e-6)
        assert float(found.place_similarity[1]) < 1 - 1e-5
        assert found.place_product.values[0] == product.name
        assert table["pixel_bbox"][number].as_py() == [102, 102, 198, 198]
    # The same pixels in one file, in another order of bands, which have names.
    bands = KINDS[name].bands[::-1]
    pixels, profile = [], {}
    for band in bands:
        with rasterio.open(products(majortom)[0] / f"{band}.tif") as raster:
            times = 300 // raster.shape[0]
            pixels.append(raster.read(1).repeat(times, 0).repeat(times, 1))
            profile = profile or raster.profile
    with rasterio.open(products(majortom)[0] / "B04.tif") as raster:
        profile = raster.profile | {"count": len(bands)}
    with rasterio.open(tmp_path / "all.tif", "w", **profile) as raster:
        raster.write(np.stack(pixels))
        raster.descriptions = tuple(band.replace("B0", "B") for band in bands)
    one = image_vector(tmp_path / "all.tif", made.about, made.dim, encoder=weights)
    other = image_vector(products(majortom)[0], made.about, made.dim, encoder=weights)
    np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def test_fragments_that_depend_on_their_cell_are_embedded_with_it(majortom, tmp_path):
    spec = TimmSpec("tiny-s2", "untrained:0", dtype="float32", compat="majortom")
    build(majortom / "core", tmp_path / "w.zarr", product="majortom", encoder=spec)
    made = Fragments.open(tmp_path / "w.build/rows")
    found = made.nearest(image=products(majortom)[1], n=1)
    assert float(found.place_similarity[0]) == pytest.approx(1, abs=1e-6)
    assert found.place_product.values[0] == products(majortom)[1].name
    with pytest.raises(OptionError, match=r"depend on all fragments of a cell.*ROW/CELL/PRODUCT"):
        made.nearest(image=products(majortom)[1] / "B04.tif")


def test_the_command_searches_by_an_image(small, capsys):
    file = next(f for f in sorted((small / "images").rglob("*.tif")) if "s2" in str(f))
    command = ["nearest", str(small / "world.build/rows"), "--image", str(file), "-n", "1"]
    assert main([*command, "--weights", str(small / "weights.pth")]) == 0
    out = capsys.readouterr().out
    assert "1.0000" in out
    assert "s2_toa" in out
    assert main(command) == 1
    assert "weights.pth: give its path" in capsys.readouterr().err


def test_an_encoder_that_is_not_the_rows_is_refused(small, rows, majortom, tmp_path):
    image = next((small / "images").rglob("*.tif"))
    about = rows.about
    with pytest.raises(OptionError, match="do not say which encoder"):
        image_vector(image, {}, 64)
    with pytest.raises(OptionError, match=r"made by AnySat, an encoder that copcube does not know"):
        image_vector(image, {"encoder": "AnySat"}, 64)
    with pytest.raises(OptionError, match="do not all come from the same weights"):
        image_vector(image, {"encoder": "Copernicus-FM ViT-B/16"}, 768)
    with pytest.raises(OptionError, match=r"weights from a file weights.pth: give its path"):
        image_vector(image, about, 64)
    with pytest.raises(WeightsError, match=r"missing.pth"):
        image_vector(image, about, 64, encoder=tmp_path / "missing.pth")
    drawn = untrained_weights(1, embed_dim=64, depth=1, heads=1)
    torch.save(drawn.model.state_dict(), tmp_path / "other.pth")
    with pytest.raises(OptionError, match=r"a different encoder \(encoder_sha256: "):
        image_vector(image, about, 64, encoder=tmp_path / "other.pth")
    with pytest.raises(OptionError, match="makes vectors of 8; those searched have 64"):
        image_vector(image, about, 64, encoder=StubEncoder())
    with pytest.raises(OptionError, match=r"a different encoder \(encoder: Copernicus-FM .* tiny"):
        image_vector(image, about, 512, encoder=TimmSpec("tiny-s2", "untrained:0"))
    with pytest.raises(OptionError, match="describe an image"):
        rows.nearest(row=1, date="2021-01-01")
    image = next(path for path in (small / "images").rglob("*.tif") if "s2" in str(path))
    weights = small / "weights.pth"
    with pytest.raises(OptionError, match=r"\.tif: .* s2_offset of the vectors searched is 'none'"):
        image_vector(image, about | {"s2_offset": "none"}, 64, encoder=weights)


def test_an_encoder_that_is_shared_already_stays_as_it_is():
    shared = as_encoder(copcube.EncoderSpec("untrained:0"))
    assert as_encoder(shared) is shared


def test_published_weights_are_found_by_their_name(monkeypatch):
    asked = []

    def load(self):
        asked.append((type(self).__name__, self.weights, self.dtype, getattr(self, "compat", "")))
        raise FetchError("no network")

    monkeypatch.setattr(copcube.EncoderSpec, "load", load)
    monkeypatch.setattr(TimmSpec, "load", load)
    from copcube.hub.published import CHECKPOINTS, ENCODERS

    for name, file in CHECKPOINTS.items():
        said = {"encoder": "Copernicus-FM ViT-B/16", "encoder_dtype": "bfloat16"}
        said["encoder_weights"] = f"hf://{file.repo}@0123/{file.path}"
        with pytest.raises(FetchError):
            encoder_of(said, 768)
        assert asked.pop() == ("EncoderSpec", name, "bfloat16", "")
    dinov2 = ENCODERS["dinov2"]
    said = {"encoder": "DINOv2 ViT-B/14", "compat": "majortom"}
    said["encoder_weights"] = f"hf://{dinov2.repo}@0123/{dinov2.path}"
    with pytest.raises(FetchError):
        encoder_of(said, 768)
    assert asked.pop() == ("TimmSpec", "hub", "float32", "majortom")
    with pytest.raises(FetchError):
        encoder_of({"encoder": "Core-S2RGB-SigLIP"}, 1152)
    assert asked.pop() == ("TimmSpec", "hub", "float32", None)


def test_images_that_cannot_be_taken_are_refused(small, rows, majortom, tmp_path):
    options = {"encoder": small / "weights.pth"}
    ask = lambda image, **more: rows.nearest(image=image, **options, **more)  # noqa: E731
    good = next(f for f in sorted((small / "images").rglob("*.tif")) if "s2" in str(f))
    loose = tmp_path / "loose.tif"
    shutil.copy(good, loose)
    with pytest.raises(OptionError, match=r"loose.tif: its modality is not known; give"):
        ask(loose)
    with pytest.raises(OptionError, match="is of s2_toa according to its path, not of s1_grd"):
        ask(good, modality="s1_grd")
    with pytest.raises(OptionError, match=r"loose.tif: 13 bands are labelled B1.* no VV, VH"):
        ask(loose, modality="s1_grd")
    with pytest.raises(ImageError, match=r"none.tif: no such file"):
        ask(tmp_path / "none.tif", modality="s2_toa")
    (tmp_path / "text.tif").write_text("no image")
    with pytest.raises(ImageError, match=r"text.tif: .*a GeoTIFF"):
        ask(tmp_path / "text.tif", modality="s2_toa")
    with rasterio.open(good) as raster:
        profile = raster.profile
    for name, side in (("small.tif", 40), ("empty.tif", 264)):
        with rasterio.open(tmp_path / name, "w", **profile | {"height": side, "width": side}) as r:
            r.write(np.zeros((13, side, side), profile["dtype"]))
    with pytest.raises(OptionError, match=r"small.tif: 40 × 40 pixels; .* at least 224 × 224"):
        ask(tmp_path / "small.tif", modality="s2_toa")
    with pytest.raises(ImageError, match=r"empty.tif: no valid pixel"):
        ask(tmp_path / "empty.tif", modality="s2_toa")
    damaged = tmp_path / "tree" / good.relative_to(small / "images")
    damaged.parent.mkdir(parents=True)
    damaged.write_bytes(good.read_bytes()[:400])
    with pytest.raises(ImageError, match=r"\.tif: not a readable GeoTIFF"):
        ask(damaged)

    made = Fragments.open(majortom / "tiny-rgb.build/rows")
    product = products(majortom)[0]
    with pytest.raises(OptionError, match="have no effect on tiny of 3 bands"):
        made.nearest(image=product, modality="s2_toa")
    with pytest.raises(ImageError, match=r"B04.tif: expected 3 bands of s2_toa, found 1"):
        made.nearest(image=product / "B04.tif")
    lacking = tmp_path / "0U" / "0U_0R" / "S2A_X"
    lacking.mkdir(parents=True)
    with pytest.raises(ImageError, match=r"S2A_X: .*expected the folder of a product"):
        made.nearest(image=lacking)
    with rasterio.open(product / "B04.tif") as raster:
        profile, pixels = raster.profile | {"count": 3}, raster.read()
    profile["transform"] = profile["transform"] @ rasterio.Affine.scale(2)
    with rasterio.open(tmp_path / "coarse.tif", "w", **profile) as raster:
        raster.write(np.repeat(pixels, 3, axis=0))
    with pytest.raises(OptionError, match=r"coarse.tif: its pixels are 20 m"):
        made.nearest(image=tmp_path / "coarse.tif")
