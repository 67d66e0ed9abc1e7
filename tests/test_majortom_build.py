"""Making Major TOM's embeddings: images, encoders and builds, against others' code and by hand.

Known answers were computed with transformers 5.24 (`Dinov2Model`, `SiglipVisionModel` with its
plain GELU, as timm's and open_clip's model has, and `BitImageProcessor`) on the weights that
`untrained` draws.
"""

import io
import json
import shutil
from dataclasses import replace

import dask
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import rasterio
import timm
import tiny_kinds
import torch
import torch.nn.functional as F
import torchvision
import xarray as xr
from builds_helpers import FORKED, SOAK, contents
from memory_bucket import memory_bucket
from rasterio.windows import Window, bounds
from tiny_kinds import IMAGENET, TINY

import copcube
from copcube.builds import aggregate, build, estimate, validate_rows
from copcube.cli import build as cli_build
from copcube.cli import main, parser
from copcube.cube import validate
from copcube.encoder.timm_encoder import _built, untrained
from copcube.encoder.timm_kinds import KINDS, RGB, S2L1C, TimmSpec
from copcube.errors import BuildError, ImageError, OptionError, RowsError, SourceError, WeightsError
from copcube.files.objects import access, stores
from copcube.grid import cell_at
from copcube.hub.published import ENCODERS
from copcube.products.majortom import COLUMNS, Fragmentation, Fragments, Grid, open_core
from copcube.products.majortom.bands import stacked
from copcube.products.majortom.core_sample import SETS, write_core
from copcube.selection import Selection

EVERYTHING = Selection.of()

# First values of a vector of `counts(3, side, 1)`.
TINY_DINOV2 = (0.36227128, 0.58947182, -1.24550593, -2.06591749, -1.03406620, -1.25250137)
DINOV2 = (0.41809142, 0.03770377, -0.22803785, 0.22070557, -0.44571874, 0.30864954)
DINOV2_COMPAT = (-0.18814337, -0.03016417, 0.36324519, -0.50274932, 0.20539384, -0.86809045)
TINY_SIGLIP = (-0.00809890, 0.64183664, 0.78660309, -2.88061714, 1.30236089, 1.14096057)
SIGLIP = (0.20263869, -0.23317142, 0.48477149, -2.70813274, 0.74666727, 0.35499358)
# What the processor makes of it: means of its channels, and one pixel.
COMPAT_MEANS = (-2.10651588, -2.02404761, -1.79281366)
COMPAT_PIXEL = (-2.10378003, -2.03112245, -1.79149604)


@pytest.fixture(autouse=True, scope="module")
def tiny():
    """Small models beside the real ones, through the same class."""
    with pytest.MonkeyPatch.context() as patch:
        for name, kind in TINY.items():
            patch.setitem(KINDS, name, kind)
        yield


@pytest.fixture(scope="module")
def core(tmp_path_factory):
    """Sets of three cells, whose images of 300 pixels have 9 fragments of 96."""
    root = tmp_path_factory.mktemp("core") / "core"
    write_core(root, seed=1, cells=3, side=300)
    return root


def spec(name, seed=0, **options):
    return TimmSpec(name, f"untrained:{seed}", dtype="float32", **options)


def made(source, out, name, **options):
    compat = options.pop("compat", None)
    return build(source, out, product="majortom", encoder=spec(name, compat=compat), **options)


@pytest.fixture(scope="module")
def built(core, tmp_path_factory):
    """A cube of Sentinel-2, and its rows."""
    out = tmp_path_factory.mktemp("built") / "world.zarr"
    report = made(core, out, "tiny-s2", batch_size=5)
    return out, report


def counts(bands, size, n=2, seed=0, high=6000):
    return np.random.default_rng(seed).integers(0, high, (n, bands, size, size)).astype(np.uint16)


def rows_of(folder):
    table = pq.read_table(folder).to_pylist()
    return sorted(table, key=lambda row: (row["grid_cell"], row["product_id"], row["pixel_bbox"]))


# Encoders


def reference(name, pixels, model, train=False):
    """What torchvision's ResNet makes of stored pixels with the weights of an encoder."""
    kind = KINDS[name]
    model.conv1 = torch.nn.Conv2d(len(kind.bands), 64, 7, 2, 3, bias=False)
    model.fc = torch.nn.Identity()
    model.load_state_dict(untrained(_built(kind), 0))
    x = torch.from_numpy(pixels.astype(np.float32))
    if kind.values == "decibels":
        mean, std = (torch.tensor(v)[:, None, None] for v in (kind.mean, kind.std))
        x = 10 * torch.log10(torch.clamp(x, min=1e-10))
        x = ((x - (mean - 2 * std)) / ((mean + 2 * std) - (mean - 2 * std))).clip(0, 1)
    else:
        x = x / 1e4
    with torch.no_grad():
        return model.train(train)(x).numpy()


def close(found, wanted):
    """Within 1e-4 of the largest value, which is what is promised."""
    return np.abs(found - wanted).max() <= 1e-4 * np.abs(wanted).max()


@pytest.mark.slow
def test_radar_goes_through_a_resnet_as_torchvisions():
    pixels = np.random.default_rng(0).exponential(0.1, (3, 2, 96, 96)).astype(np.float32)
    pixels[0, 0, :3] = 0  # has no decibels
    found = spec("tiny-s1").load()("s1_grd", pixels)
    assert close(found, reference("tiny-s1", pixels, torchvision.models.resnet18()))


@pytest.mark.slow
def test_batch_norms_are_folded_but_where_they_normalise_by_the_batch():
    for compat, count in ((None, 0), ("majortom", 20)):
        layers = spec("tiny-s1", compat=compat).load()._model.modules()
        assert sum(isinstance(layer, torch.nn.BatchNorm2d) for layer in layers) == count


@pytest.mark.slow
def test_compat_normalises_by_the_statistics_of_the_batch():
    pixels = np.random.default_rng(0).exponential(0.1, (9, 2, 96, 96)).astype(np.float32)
    encoder = spec("tiny-s1", compat="majortom").load()
    found = encoder("s1_grd", pixels)
    resnet = torchvision.models.resnet18()
    assert close(found, reference("tiny-s1", pixels, resnet, train=True))
    # It learns nothing from what it has seen, and a fragment depends on the others.
    assert np.array_equal(encoder("s1_grd", pixels), found)
    assert not np.allclose(encoder("s1_grd", pixels[:4])[0], found[0], atol=1e-2)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ssl4eo-s2", "ssl4eo-s1rtc"])
def test_resnet50_is_torchvisions(name):
    kind = KINDS[name]
    pixels = counts(len(kind.bands), 224)
    if kind.values == "decibels":
        pixels = (pixels / 6000).astype(np.float32)
    found = spec(name).load()(kind.modality, pixels)
    assert found.shape == (2, 2048)
    assert close(found, reference(name, pixels, torchvision.models.resnet50()))


@pytest.mark.slow
def test_mean_of_tokens_with_resampled_positions_is_that_of_transformers(tmp_path):
    torch.save(untrained(timm.create_model("vit_tiny_patch16_224", num_classes=0), 5),
               tmp_path / "tiny.pth")  # fmt: skip
    encoder = TimmSpec("tiny-rgb", tmp_path / "tiny.pth", dtype="float32").load()
    found = encoder("s2_toa", counts(3, 96, 1))
    assert np.allclose(found[0, :6], TINY_DINOV2, atol=1e-5)
    assert encoder.provenance["encoder_trained"] == 1


@pytest.mark.slow
def test_dinov2_is_that_of_transformers(tmp_path):
    published = replace(KINDS["dinov2"], size=518)  # of which the positions are resampled
    torch.save(untrained(_built(published), 5), tmp_path / "dinov2.pth")
    pixels = counts(3, 224, 1)
    for compat, known in ((None, DINOV2), ("majortom", DINOV2_COMPAT)):
        encoder = TimmSpec("dinov2", tmp_path / "dinov2.pth", dtype="float32", compat=compat)
        assert np.allclose(encoder.load()("s2_toa", pixels)[0, :6], known, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("tiny-siglip", TINY_SIGLIP),
        pytest.param(
            "siglip",
            SIGLIP,
            marks=pytest.mark.skipif(not SOAK, reason="make soak draws 428 million weights"),
        ),
    ],
)
def test_siglip_is_that_of_transformers(name, known):
    encoder, kind = spec(name, 7), KINDS[name]
    found = encoder.load()("s2_toa", counts(3, kind.size, 1))
    assert found.shape == (1, kind.dim)
    assert np.allclose(found[0, :6], known, atol=1e-4)


@pytest.mark.slow
def test_siglip_is_the_model_of_its_name():
    model = _built(KINDS["siglip"])
    assert model.num_features == KINDS["siglip"].dim == 1152
    assert model.pos_embed.shape == (1, (384 // 14) ** 2, 1152)
    assert len(model.blocks) == 27
    assert sum(parameter.numel() for parameter in model.parameters()) == 428_225_600


@pytest.mark.slow
def test_compat_shows_dinov2_what_its_processor_makes():
    encoder = spec("tiny-rgb", compat="majortom").load()
    pixels = counts(3, 224, 1)
    seen = encoder._prepared(torch.from_numpy(pixels.astype(np.float32)))
    assert seen.shape == (1, 3, 224, 224)
    assert torch.allclose(seen.mean((0, 2, 3)), torch.tensor(COMPAT_MEANS), atol=1e-6)
    assert torch.allclose(seen[0, :, 100, 100], torch.tensor(COMPAT_PIXEL), atol=1e-6)
    # Almost constant: between what 0 and 1 / 255 become.
    assert -2.125 < seen.min() < seen.max() < -1.78


def test_right_pictures_are_scaled_once():
    encoder = spec("tiny-rgb").load()
    seen = encoder._prepared(torch.tensor([0.0, 2000, 4000, 9000]).repeat(1, 3, 1, 1))
    for channel, (mean, std) in enumerate(zip(IMAGENET["mean"], IMAGENET["std"], strict=True)):
        wanted = [(value - mean) / std for value in (0, 0.5, 1, 1)]
        assert np.allclose(seen[0, channel, 0], wanted, atol=1e-6)


@pytest.mark.slow
def test_noise_is_the_same_everywhere_and_said_to_be_noise(caplog):
    encoder = spec("tiny-s1", 3).load()
    assert "UNTRAINED WEIGHTS (untrained:3)" in caplog.text
    assert encoder.provenance["encoder_trained"] == 0
    other = spec("tiny-s1", 4).load()
    pixels = np.random.default_rng(0).exponential(0.1, (1, 2, 96, 96)).astype(np.float32)
    found = encoder("s1_grd", pixels)
    assert np.array_equal(found, spec("tiny-s1", 3).load()("s1_grd", pixels))
    assert not np.allclose(found, other("s1_grd", pixels), atol=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_files_of_weights_are_checked(tmp_path, suffix):
    from safetensors.torch import save_file

    state = untrained(_built(KINDS["tiny-s2"]), 0)
    path = tmp_path / f"weights.{suffix}"
    save = save_file if suffix == "safetensors" else torch.save

    def loaded():
        return TimmSpec("tiny-s2", path, dtype="float32").load()

    save(state | {"fc.weight": torch.zeros(3, 512)}, path)  # a head, which no vector needs
    pixels = counts(13, 96, 1)
    assert np.array_equal(loaded()("s2_toa", pixels), spec("tiny-s2").load()("s2_toa", pixels))
    for change, says in (
        (
            {"bn1.bias": torch.zeros(9, 9)},
            r"bn1.bias is \(9, 9\), expected",
        ),
        ({"strange": torch.zeros(1)}, "strange is unknown"),
        (
            {"bn1.weight": torch.full_like(state["bn1.weight"], torch.nan)},
            "bn1.weight is not finite",
        ),
    ):
        save(state | change, path)
        with pytest.raises(WeightsError, match=says):
            loaded()
    save({name: t for name, t in state.items() if name != "bn1.weight"}, path)
    with pytest.raises(WeightsError, match=r"bn1.weight is missing.*fetch weights --encoder"):
        loaded()
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(WeightsError, match="weights"):
        loaded()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("resnet50",), "expected one of ssl4eo-s2, ssl4eo-s1rtc, dinov2, siglip"),
        (("dinov2", "hub", "auto", "auto", "yes"), "compat is 'yes'"),
        (("dinov2", 3), "weights"),
        (("dinov2", "hub", 0), "device is 0"),
    ],
)
def test_specs_refuse_what_they_do_not_know(arguments, says):
    with pytest.raises(OptionError, match=says):
        TimmSpec(*arguments)


@pytest.mark.slow
def test_weights_of_a_size_of_copernicus_fm_are_none_of_other_models():
    with pytest.raises(OptionError, match="weights='large' are for Copernicus-FM, not for dinov2"):
        TimmSpec("dinov2", "large", device="cpu").load()


def test_encoders_refuse_other_images():
    encoder = spec("tiny-s2").load()
    with pytest.raises(OptionError, match=r"\(3, 96, 96\); tiny-s2 sees \(13, 96, 96\) of s2_toa"):
        encoder("s2_toa", counts(3, 96))
    assert encoder("s2_toa", []).shape == (0, 512)


def test_names_are_those_of_the_command_and_of_the_weights():
    assert tuple(KINDS)[:4] == cli_build.ENCODERS == tuple(ENCODERS)
    assert copcube.TimmSpec is TimmSpec
    for name in ENCODERS:
        assert TimmSpec(name).by_cell is False
        assert TimmSpec(name, compat="majortom").by_cell == name.startswith("ssl4eo")


# Images


def test_coarser_bands_repeat_pixels_as_nearest_interpolation():
    rng = np.random.default_rng(0)
    bands = [rng.random((n, n), np.float32) for n in (60, 30, 10, 7)]
    found = stacked(bands, 60)
    for band, larger in zip(bands, found, strict=True):
        wanted = F.interpolate(torch.from_numpy(band)[None, None], 60, mode="nearest")
        assert np.array_equal(larger, wanted[0, 0])


def fragments(name, **options):
    kind = KINDS[name]
    return Fragments(kind.bands, kind.modality, kind.size, **options)


def samples(source):
    for partition in source.partitions():
        for job in source.jobs(partition, EVERYTHING):
            yield from job()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Use `@` matmul:PendingDeprecationWarning")
def test_fragments_are_windows_of_the_image_and_lie_where_these_lie(core):
    source = open_core(core / "Core-S2RGB", fragments("tiny-rgb"))
    row = pq.read_table(core / "Core-S2RGB/images/part_00001.parquet").to_pylist()[1]
    sample = list(samples(source))[1]
    assert len(sample.pixels) == 9
    places = sample.rows.footprints()
    for i, (x0, y0, x1, y1) in enumerate(sample.rows.box.tolist()):
        window = Window(x0, y0, x1 - x0, y1 - y0)
        for band, pixels in zip(RGB, sample.pixels[i], strict=True):
            with rasterio.MemoryFile(row[band]) as memory, memory.open() as raster:
                assert np.array_equal(raster.read(1, window=window), pixels)
                west, south, east, north = bounds(window, raster.transform)
        low, high = places.utm[i].min(axis=0), places.utm[i].max(axis=0)
        assert np.allclose([*low, *high], [west, south, east, north])


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Sets of one cell whose images have the published size."""
    root = tmp_path_factory.mktemp("whole") / "core"
    write_core(root, cells=1)
    return root


@pytest.mark.slow
def test_published_images_have_25_or_9_fragments(whole):
    for name, number in (("dinov2", 25), ("siglip", 9)):
        source = open_core(whole / "Core-S2RGB", fragments(name))
        assert [len(sample.pixels) for sample in samples(source)] == [number]
        assert sum(source.count(source.partitions()[0], EVERYTHING).values()) == number


@pytest.fixture(scope="module")
def tree(core, tmp_path_factory):
    """The same images as the downloader lays them out."""
    root = tmp_path_factory.mktemp("tree") / "Core-S2L1C"
    for row in pq.read_table(core / "Core-S2L1C/images").to_pylist():
        folder = root / row["grid_cell"].split("_")[0] / row["grid_cell"] / row["product_id"]
        folder.mkdir(parents=True)
        for band in S2L1C:
            (folder / f"{band}.tif").write_bytes(row[band])
        (folder / "thumbnail.png").write_bytes(row["thumbnail"])
    return root


@pytest.mark.slow
def test_the_downloaders_tree_gives_the_same_rows(tree, built, tmp_path):
    out, _ = built
    report = made(tree, tmp_path / "world.zarr", "tiny-s2", batch_size=5)
    found, wanted = rows_of(report.rows), rows_of(out.with_name("world.build") / "rows")
    assert [r["timestamp"][:8] for r in found] == [r["timestamp"][:8] for r in wanted]
    for a, b in zip(found, wanted, strict=True):
        # Batches of other fragments: the same to rounding.
        assert np.allclose(a.pop("embedding"), b.pop("embedding"), atol=1e-4)
        del a["unique_id"], b["unique_id"]
        assert a == b


@pytest.mark.slow
def test_masks_beside_the_bands_of_a_tree_are_heeded(tree, tmp_path):
    folder = sorted(tree.glob("*/*/*"))[0]
    copy = tmp_path / "tree" / folder.relative_to(tree)
    shutil.copytree(folder, copy)
    source = open_core(tmp_path / "tree", fragments("tiny-rgb"))
    before, (plain,) = source.fingerprint(), samples(source)
    mask = np.full((300, 300), 255, np.uint8)
    mask[:, :60] = 0
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=False), rasterio.open(copy / "B03.tif", "r+") as band:
        band.write_mask(mask)
    beside = copy / "B03.tif.msk"
    assert open_core(tmp_path / "tree", fragments("tiny-rgb")).fingerprint() != before
    (masked,) = samples(source)
    for (x0, y0, x1, y1), a, b in zip(
        plain.rows.box.tolist(), plain.pixels, masked.pixels, strict=True
    ):
        a[RGB.index("B03")][mask[y0:y1, x0:x1] == 0] = 0
        assert np.array_equal(a, b)
    beside.write_bytes((copy / "B01.tif").read_bytes())
    (rejected,) = samples(source)
    assert rejected.reason.startswith("band B03: .msk: the mask has 50 × 50 pixels")


@pytest.mark.slow
def test_sources_are_found_by_their_bands(core, tree):
    radar = open_core(core, fragments("tiny-s1"))
    assert radar.root.endswith("Core-S1RTC")
    assert open_core(tree, fragments("tiny-rgb")).layout == "majortom tree"
    with pytest.raises(SourceError, match="Core-S2L1C, Core-S2RGB have these bands: choose one"):
        open_core(core, fragments("tiny-rgb"))
    with pytest.raises(SourceError, match=r"B01.*are missing; expected images of Major TOM"):
        open_core(core / "Core-S2RGB", fragments("tiny-s2"))
    with pytest.raises(SourceError, match=r"B01.*are missing"):
        open_core(core / "Core-S1RTC/images/part_00001.parquet", fragments("tiny-s2"))
    with pytest.raises(SourceError, match="expected images of Major TOM"):
        open_core(core / "nothing", fragments("tiny-s2"))


@pytest.mark.slow
def test_of_a_bucket_only_the_bands_asked_for_are_read(whole, monkeypatch):
    read = []
    original = access.read_range

    def counted(url, start, length):
        data = original(url, start, length)
        read.append(len(data))
        return data

    with memory_bucket() as url:
        file = whole / "Core-S2L1C/images/part_00001.parquet"
        store, key = stores.locate(f"{url}/Core-S2L1C/images/part_00001.parquet")
        store.put(key, file.read_bytes())
        monkeypatch.setattr(access, "read_range", counted)
        source = open_core(f"{url}/Core-S2L1C", fragments("tiny-rgb"))
        assert source.reader.files == ()
        found = list(samples(source))
    here = list(samples(open_core(whole / "Core-S2L1C", fragments("tiny-rgb"))))
    for ours, theirs in zip(found, here, strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(ours.pixels, theirs.pixels, strict=True))
    footer = pq.read_metadata(file)
    wanted = sum(
        footer.row_group(g).column(c).total_compressed_size
        for g in range(footer.num_row_groups)
        for c in range(footer.num_columns)
        if footer.row_group(g).column(c).path_in_schema in RGB
    )
    # Beside the bands there are footer and identity, in pieces of a buffer of 256 kB.
    assert wanted <= sum(read) < wanted + 8 * (256 << 10) < file.stat().st_size


# Builds


@pytest.mark.slow
def test_rows_are_major_toms_and_the_cube_their_means(core, built):
    out, report = built
    assert report.images == {"s2_toa": 27}
    assert report.rejected == {}
    assert validate(out) == []
    assert list(validate_rows(out)) == []
    files = list((out.with_name("world.build") / "rows").glob("*.parquet"))
    table = pq.read_table(files[0])
    assert tuple(table.column_names[:13]) == COLUMNS
    noted = {key.decode(): value.decode() for key, value in table.schema.metadata.items()}
    assert json.loads(noted["geo"])["version"] == "1.1.0"
    for key, value in {
        "compat": "none",
        "encoder_trained": "0",
        "footprints": "right",
        "license": "CC-BY-SA-4.0",
        "source": "Major TOM, Core-S2L1C",
        "preprocessing": "fragments of 96 pixels, counts / 10000",
    }.items():
        assert noted[f"copcube:{key}"] == value
    rows = table.to_pylist()
    original = pq.read_table(core / "Core-S2L1C/images").to_pylist()
    model = _built(TINY["tiny-s2"])
    model.load_state_dict(untrained(model, 0), assign=True)
    model.eval()
    for image in original:
        bands = []
        for band in S2L1C:
            with rasterio.MemoryFile(image[band]) as memory, memory.open() as raster:
                pixels = torch.from_numpy(raster.read(1).astype(np.float32))
            bands.append(F.interpolate(pixels[None, None], 300)[0, 0])
        mine = [row for row in rows if row["grid_cell"] == image["grid_cell"]]
        assert {row["timestamp"] for row in mine} == {image["timestamp"]}
        assert len(mine) == 9
        boxes = [row["pixel_bbox"] for row in mine]
        crops = [torch.stack(bands)[:, y0:y1, x0:x1] / 1e4 for x0, y0, x1, y1 in boxes]
        with torch.no_grad():
            wanted = model(torch.stack(crops)).numpy()
        assert close(np.array([row["embedding"] for row in mine]), wanted)
    vectors = np.array([row["embedding"] for row in rows])
    assert len(np.unique(vectors.round(3), axis=0)) == 27
    cells = [tuple(map(int, cell_at(row["centre_lat"], row["centre_lon"]))) for row in rows]
    with xr.open_zarr(out) as cube:
        assert cube.attrs["license"] == "CC-BY-SA-4.0"
        assert cube.attrs["compat"] == "none"
        assert int(cube.n_images.sum()) == 27
        for cell in set(cells):
            mean = vectors[[c == cell for c in cells]].mean(axis=0)
            assert np.allclose(cube.embedding[cell].values, mean, atol=1e-5)


@pytest.mark.slow
def test_builds_resume_with_the_same_bytes(core, tmp_path):
    parts = tmp_path / "parts" / "Core-S2L1C"
    whole = pq.ParquetFile(core / "Core-S2L1C/images/part_00001.parquet")
    parts.mkdir(parents=True)
    for i in range(3):
        pq.write_table(whole.read_row_group(i), parts / f"part_{i:05d}.parquet")
    first = made(parts, tmp_path / "a.zarr", "tiny-s2", partitions="1")
    assert not first.finished
    resumed = made(parts, tmp_path / "a.zarr", "tiny-s2")
    assert resumed.resumed == 1
    again = made(parts, tmp_path / "b.zarr", "tiny-s2")
    assert contents(resumed.rows) == contents(again.rows)
    assert contents(tmp_path / "a.zarr") == contents(tmp_path / "b.zarr")
    with pytest.raises(BuildError, match="compat: was False, now True"):
        made(parts, tmp_path / "a.zarr", "tiny-s2", compat="majortom")


@pytest.mark.slow
def test_compat_is_transposed_noted_and_never_mixed(core, built, tmp_path):
    out, _ = built
    report = made(core, tmp_path / "world.zarr", "tiny-s2", compat="majortom")
    file = next(report.rows.glob("*.parquet"))
    noted = pq.read_schema(file).metadata
    assert noted[b"copcube:footprints"] == b"transposed"
    assert noted[b"copcube:compat"] == b"majortom"
    transposed = Fragmentation(96, 300).boxes(transposed=True).tolist()
    # Batches are the fragments of one image: those of one cell, in the order of the raster.
    source = open_core(core, fragments("tiny-s2", compat=True))
    sample = next(iter(samples(source)))
    assert sample.rows.box.tolist() == transposed
    wanted = spec("tiny-s2", compat="majortom").load()("s2_toa", sample.pixels)
    cell = Grid().names(sample.rows.grid_row[:1], sample.rows.grid_col[:1])[0]
    mine = {
        tuple(row["pixel_bbox"]): row["embedding"]
        for row in rows_of(report.rows)
        if row["grid_cell"] == cell
    }
    assert close(np.array([mine[tuple(box)] for box in transposed]), wanted)
    mixed = tmp_path / "mixed"
    mixed.mkdir()
    shutil.copy(file, mixed / "a.parquet")
    shutil.copy(next((out.with_name("world.build") / "rows").glob("*")), mixed / "b.parquet")
    with pytest.raises(RowsError, match=r"different encoders \(compat: majortom and none"):
        aggregate(mixed, tmp_path / "mixed.zarr")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"modalities": "s2_toa"}, "modalities and sensors cannot be chosen"),
        ({"crop": "full"}, "crop='full' has no effect"),
        ({"product": "other"}, "product='other'; expected majortom"),
        ({"encoder": "vit"}, "expected one of ssl4eo-s2"),
        ({"encoder": copcube.EncoderSpec("untrained:0")}, "embeds no fragments of Major TOM"),
        ({"encoder": spec("dinov2"), "s2_offset": -1}, "s2_offset is -1"),
        (
            {"encoder": spec("ssl4eo-s2", compat="majortom"), "batch_size": 7},
            "batch_size cannot be chosen",
        ),
        ({"encoder": spec("ssl4eo-s1rtc"), "s2_offset": 1000}, "s2_offset is for Sentinel-2"),
    ],
)
def test_options_that_mean_nothing_are_refused(core, tmp_path, options, says):
    with pytest.raises(OptionError, match=says):
        build(core, tmp_path / "w.zarr", **{"product": "majortom", **options})


def changed(core, tmp_path, change):
    """A copy of the set of pictures in which a function has changed the samples."""
    path = core / "Core-S2RGB/images/part_00001.parquet"
    rows = pq.read_table(path).to_pylist()
    change(rows)
    folder = tmp_path / "changed"
    folder.mkdir()
    with pq.ParquetWriter(folder / "part.parquet", pq.read_schema(path)) as file:
        for row in rows:
            file.write_table(pa.Table.from_pylist([row], schema=pq.read_schema(path)))
    return folder


def geotiff(raw, **change):
    """The bytes of a GeoTIFF with another profile."""
    with rasterio.MemoryFile(raw) as memory, memory.open() as raster:
        profile, pixels = raster.profile | change, raster.read()
    with rasterio.MemoryFile() as memory:
        with memory.open(**profile) as raster:
            raster.write(pixels)
        return bytes(memory.getbuffer())


def cut(rows):
    rows[1]["B03"] = rows[1]["B03"][: len(rows[1]["B03"]) // 2]


def text(rows):
    rows[1]["B04"] = b"no image at all"


def gone(rows):
    rows[1]["B02"] = None


def elsewhere(rows):
    rows[1]["grid_cell"] = rows[2]["grid_cell"]


def nowhere(rows):
    rows[1]["grid_cell"] = "3000U_1R"


def undated(rows):
    rows[1]["timestamp"] = "last summer"


def impossible(rows):
    rows[1]["timestamp"] = "20210231T101559"


def foreign(rows):
    rows[1]["product_id"] = "LC09_L1TP_20210704T101559"


def degrees(rows):
    rows[1]["B04"] = geotiff(rows[1]["B04"], crs="EPSG:4326")


def coarse(rows):
    with rasterio.MemoryFile(rows[1]["B04"]) as memory, memory.open() as raster:
        step = raster.transform @ rasterio.Affine.scale(2)
    for band in RGB:
        rows[1][band] = geotiff(rows[1][band], transform=step)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "kind", "says"),
    [
        (cut, "broken", "band B03: not a readable GeoTIFF"),
        (text, "broken", "band B04: expected a GeoTIFF"),
        (gone, "broken", "band B02 is missing"),
        (elsewhere, "stale", "km from there"),
        (nowhere, "broken", "'3000U_1R' is not an id"),
        (undated, "broken", "timestamp is 'last summer'"),
        (impossible, "broken", "timestamp is '20210231T101559'"),
        (foreign, "broken", "is of an unknown sensor, according to its name; expected one of"),
        (degrees, "broken", "EPSG:4326; expected a UTM zone"),
        (coarse, "stale|broken", "km from there|finest pixels are of 20 m"),
    ],
)
def test_what_is_broken_is_recorded_and_its_neighbours_are_embedded(
    core, tmp_path, change, kind, says
):
    folder = changed(core, tmp_path, change)
    report = made(folder, tmp_path / "w.zarr", "tiny-rgb")
    assert report.images == {"s2_toa": 18}
    assert sum(report.rejected.values()) == len(Fragmentation(96))
    assert set(report.rejected) <= set(kind.split("|"))
    (row,) = pq.read_table(tmp_path / "w.build/quarantine.parquet").to_pylist()
    assert (row["file"], row["member"]) == ("part.parquet", "row 1")
    assert any(text in row["reason"] for text in says.split("|"))


def test_a_file_that_was_moved_is_not_broken(core, tmp_path):
    folder = changed(core, tmp_path, lambda rows: None)
    source = open_core(folder, fragments("tiny-rgb"))
    (partition,) = source.partitions()
    job, *_ = source.jobs(partition, EVERYTHING)
    next(folder.glob("*.parquet")).unlink()
    with pytest.raises(FileNotFoundError):
        job()
    with pytest.raises(FileNotFoundError):
        next(source.jobs(partition, EVERYTHING))


@pytest.mark.slow
def test_strict_stops_at_what_is_broken(core, tmp_path):
    with pytest.raises(ImageError, match=r"part.parquet \[row 1\]: band B03"):
        made(changed(core, tmp_path, cut), tmp_path / "w.zarr", "tiny-rgb", strict=True)


@pytest.mark.slow
def test_a_part_of_other_columns_is_left_out(core, tmp_path):
    folder = changed(core, tmp_path, lambda rows: None)
    pq.write_table(pa.table({"product_id": ["a"], "grid_cell": ["0U_0R"]}), folder / "z.parquet")
    report = made(folder, tmp_path / "w.zarr", "tiny-rgb")
    assert report.rejected == {"broken": 1}
    assert report.images == {"s2_toa": 27}
    reasons = pq.read_table(tmp_path / "w.build/quarantine.parquet")["reason"].to_pylist()
    assert "B04, B03, B02, timestamp missing" in reasons[0]


def black(rows):
    """Leave a quarter of the second image without data."""
    for band in RGB:
        with rasterio.MemoryFile(rows[1][band]) as memory, memory.open() as raster:
            profile, pixels = raster.profile, raster.read()
        pixels[:, :110, :110] = 0
        with rasterio.MemoryFile() as memory:
            with memory.open(**profile) as raster:
                raster.write(pixels)
            rows[1][band] = bytes(memory.getbuffer())


@pytest.mark.slow
def test_fragments_without_data_are_left_out_but_in_compat(core, tmp_path):
    folder = changed(core, tmp_path, black)
    report = made(folder, tmp_path / "w.zarr", "tiny-rgb")
    assert (report.images, report.rejected) == ({"s2_toa": 26}, {"empty": 1})
    source = open_core(folder, fragments("tiny-rgb", compat=True))
    assert [len(sample.pixels) for sample in samples(source)] == [9, 9, 9]


@pytest.mark.slow
def test_dates_choose_images_and_offsets_are_subtracted(core, tmp_path):
    with pytest.raises(BuildError, match="no image is left"):
        made(core, tmp_path / "none.zarr", "tiny-s2", dates="2020")
    plain = made(core, tmp_path / "a.zarr", "tiny-s2", dates="2021-07")
    lower = made(core, tmp_path / "b.zarr", "tiny-s2", s2_offset=1000)
    a, b = rows_of(plain.rows), rows_of(lower.rows)
    assert len(a) == len(b) == 27
    assert not np.allclose(a[0]["embedding"], b[0]["embedding"], atol=1e-3)
    # A cube of both names both.
    for report in (plain, lower):
        name = next(report.rows.rglob("*.parquet"))
        (tmp_path / f"{report.cube.stem}.parquet").symlink_to(name)
    aggregate(tmp_path / "?.parquet", tmp_path / "both.zarr", duplicates="drop")
    first, second = (xr.open_zarr(report.cube).attrs["preprocessing"] for report in (plain, lower))
    assert second == f"{first}, 1000 subtracted from counts"
    said = xr.open_zarr(tmp_path / "both.zarr").attrs["preprocessing"]
    assert said == f"{first} or {second}"


@pytest.mark.slow
def test_a_dry_run_counts_fragments(core, tmp_path):
    found = estimate(core, tmp_path / "w.zarr", product="majortom", encoder=spec("tiny-s2"))
    # As of images of the published size.
    assert found.images == {"s2_toa": 3 * len(Fragmentation(96))}
    assert found.rate["s2_toa"] > 0
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_workers_make_the_same_bytes(core, tmp_path):
    ours = made(core, tmp_path / "a.zarr", "tiny-s1", compat="majortom")
    with dask.config.set(FORKED | {"distributed.worker.preload": [tiny_kinds.__file__]}):
        theirs = made(core, tmp_path / "b.zarr", "tiny-s1", compat="majortom", workers=1)
    assert ours.images == theirs.images == {"s1_grd": 27}
    for a, b in zip(rows_of(ours.rows), rows_of(theirs.rows), strict=True):
        assert np.allclose(a["embedding"], b["embedding"], atol=1e-3)


# The command


@pytest.mark.slow
def test_the_command_builds(core, tmp_path):
    out = tmp_path / "world.zarr"
    command = ["build", str(core), str(out), "--product", "majortom", "--encoder", "tiny-s2"]
    command += ["--weights", "untrained:1", "--compat", "majortom"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cli_build, "ENCODERS", tuple(KINDS))
        parser.cache_clear()  # it knows the others
        assert main(command) == 0
    parser.cache_clear()
    with xr.open_zarr(out) as cube:
        assert cube.attrs["encoder_weights"] == "untrained:1"
        assert cube.attrs["footprints"] == "transposed in the files, and put back"


@pytest.mark.slow
def test_the_command_samples_and_builds(tmp_path):
    folder, out = tmp_path / "core", tmp_path / "world.zarr"
    assert main(["sample", str(folder), "--layout", "majortom", "--cells", "1"]) == 0
    assert sorted(p.name for p in folder.iterdir()) == sorted(SETS)
    command = ["build", str(folder), str(out), "--product", "majortom", "--encoder"]
    command += ["tiny-s1", "--weights", "untrained:1"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cli_build, "ENCODERS", tuple(KINDS))
        parser.cache_clear()  # it knows the others
        assert main(command) == 0
    parser.cache_clear()
    with xr.open_zarr(out) as cube:
        assert int(cube.n_images.sum()) == len(Fragmentation(96)) == 144
    metadata = pq.read_table(folder / "Core-S1RTC/metadata.parquet").to_pylist()[0]
    row, col = Grid().at(metadata["centre_lat"], metadata["centre_lon"])
    assert Grid().names(row, col) == metadata["grid_cell"]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--encoder", "dinov2"], "need --product majortom"),
        (["--product", "majortom", "--pooling", "cls"], "--pooling is for Copernicus-FM"),
    ],
)
def test_the_command_refuses_what_does_not_go_together(core, tmp_path, options, says, capsys):
    assert main(["build", str(core), str(tmp_path / "w.zarr"), *options]) != 0
    assert says in capsys.readouterr().err


@pytest.mark.slow
def test_samples_are_the_same_bytes_and_grow(core, tmp_path):
    write_core(tmp_path / "again", seed=1, cells=3, side=300)
    assert contents(tmp_path / "again") == contents(core)
    with pytest.raises(OptionError, match="multiple of 6"):
        write_core(tmp_path / "odd", side=100)
    one = pq.read_table(core / "Core-S2L1C/metadata.parquet").to_pylist()
    assert len({row["grid_cell"] for row in one}) == 3
    assert io.BytesIO(pq.read_table(core / "Core-S2L1C/images")["thumbnail"][0].as_py())
