"""Cell level of Copernicus-Bench: labels of places joined with a cube's own vectors."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import xarray as xr
from rasterio import Affine
from sklearn.metrics import average_precision_score

from copcube import grid
from copcube.cli import main
from copcube.cube.view import CubeView
from copcube.errors import CubeError, GridError, OptionError
from copcube.probes.bench import cells
from copcube.probes.bench.catalogue import find
from copcube.probes.bench.cells import score_cells
from copcube.probes.bench.opening import open_dataset
from copcube.probes.bench.samples import SPLITS, Place

LAT = np.arange(52.0, 39.9, -0.25)
LON = np.arange(0.0, 20.1, 0.25)
DIM = 6


@pytest.fixture(scope="module")
def cube() -> xr.Dataset:
    """A cube of Central Europe whose north-west corner holds nothing."""
    vectors = np.random.default_rng(0).normal(size=(len(LAT), len(LON), DIM)).astype(np.float32)
    images = np.ones(vectors.shape[:2], np.int32)
    images[:4, :4] = 0
    vectors[:4, :4] = np.nan
    return xr.Dataset(
        {
            "embedding": (("lat", "lon", "dim"), vectors),
            "n_images": (("lat", "lon"), images),
        },
        {"lat": LAT, "lon": LON},
        {"encoder": "made up", "encoder_trained": 1},
    )


def write_lc100(root: Path, cube: xr.Dataset, n: int = 60) -> None:
    """Lists of LC100 whose classes follow from the vectors, and no image."""
    rng = np.random.default_rng(1)
    task = find("lc100cls-s3")
    planes = rng.normal(size=(DIM, len(task.classes)))
    root.mkdir(parents=True)
    filled = np.flatnonzero(cube.n_images.values)
    chosen = rng.permutation(filled)[: 3 * n].reshape(3, n)
    chosen[0, 0] = 0  # without a vector
    for split, numbers in zip(SPLITS, chosen, strict=True):
        lines, files = [",".join(["id", *map(str, range(23))])], []
        for i, j in zip(*np.divmod(numbers, len(LON)), strict=True):
            row, col = grid.cell_at(LAT[i], LON[j])
            name = grid.format_cell(int(grid.grid_id(row, col)))
            vector = np.nan_to_num(cube.embedding.values[i, j])
            lines.append(",".join([name, *map(str, (vector @ planes > 0).astype(int))]))
            files.append(f"{name},S3A_20190601T000000_20190601T000300.tif")
        (root / f"multilabel-{split}.csv").write_text("\n".join(lines) + "\n")
        # Whatever the order of the other list, labels belong to the places that they name.
        (root / f"static_fnames-{split}.csv").write_text("\n".join(files[::-1]) + "\n")


@pytest.mark.slow
def test_classes_of_cells_are_joined_by_id(cube: xr.Dataset, tmp_path: Path) -> None:
    write_lc100(tmp_path / "lc100_s3", cube)
    found, coordinates, constant = score_cells(open_dataset(find("lc100cls-s3"), tmp_path), cube)
    assert [r.probe for r in (found, coordinates, constant)] == [*cells._INPUTS]
    assert found.task == "lc100cls-s3"
    assert found.details["places"] == {"train": 59, "val": 60, "test": 60}
    assert found.details["without_vector"] == {"train": 1, "val": 0, "test": 0}
    assert found.dataset > 95, "classes are half spaces of the vectors"
    (score,) = found.scores
    assert score.low < score.dataset < score.high
    assert coordinates.dataset < 75
    # Frequent classes first, which is what scikit-learn makes of the frequencies, too.
    dataset = open_dataset(find("lc100cls-s3"), tmp_path)
    labels = {s: [dataset.place(s, n).target for n in range(60)] for s in ("train", "test")}
    guess = np.tile(np.mean(labels["train"][1:], axis=0), (60, 1))
    expected = average_precision_score(np.array(labels["test"]), guess, average="micro")
    assert constant.dataset == pytest.approx(100 * expected)
    assert found.provenance["cube"]["encoder"] == "made up"
    assert not found.comparable
    # One batch of 64 holds all 60 test places.
    assert score.bench == pytest.approx(score.dataset)


def test_options_that_change_nothing_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["bench", "all", "--root", "root"]
    of_images = ["--probe", "fast", "--seeds", "5", "--stream"]
    assert main([*command, "--cube", "world.zarr", *of_images]) == 1
    assert "--probe, --seeds, --stream: for images" in capsys.readouterr().err
    assert main([*command, "--levels", "last"]) == 1
    assert "--levels is for the linear heads of --probe fast" in capsys.readouterr().err


@pytest.mark.slow
def test_the_command_and_the_accessor(
    cube: xr.Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_lc100(tmp_path / "root/l2_lc100_s3/lc100_s3", cube)
    root, out, world = tmp_path / "root", tmp_path / "table.md", tmp_path / "world.zarr"
    cube.to_zarr(world, consolidated=False, zarr_format=3)
    command = ["bench", "all", "--root", root, "--cube", world, "--resamples", "0", "--out", out]
    assert main([*map(str, command)]) == 1, "the other tasks have no data"
    said = capsys.readouterr()
    assert "Biomass-S3 failed" in said.err
    assert "copcube fetch bench biomass-s3" in said.err
    assert "95 %" not in out.read_text(), "nothing was resampled"
    head, _, *lines = out.read_text().splitlines()
    found = [dict(zip(head.split("|"), line.split("|"), strict=True)) for line in lines]
    assert [row[" probe "].strip() for row in found] == [*cells._INPUTS]
    assert {row[" Copernicus-FM "].strip() for row in found} == {"not comparable"}
    ours = cube.copembed.bench(root, tasks="lc100cls-s3", resamples=0)
    assert not ours.failures
    assert f"{ours.results[0].bench:.1f}" in lines[0]


def overlap(edges: tuple[float, float], node: float) -> tuple[float, float]:
    return max(edges[0], node - 0.125), min(edges[1], node + 0.125)


def area_mean(cube: xr.Dataset, west: float, south: float, east: float, north: float) -> Any:
    """Mean of the cells in a box, by the area of what they share with it on the sphere."""
    total, weights = np.zeros(DIM), 0.0
    for i, lat in enumerate(LAT):
        a, b = overlap((south, north), lat)
        for j, lon in enumerate(LON):
            c, d = overlap((west, east), lon)
            if a < b and c < d and cube.n_images.values[i, j]:
                weight = (np.sin(np.radians(b)) - np.sin(np.radians(a))) * (d - c)
                total += weight * cube.embedding.values[i, j]
                weights += weight
    return total / weights


@pytest.mark.parametrize(
    "box", [(5.03, 44.91, 5.29, 45.17), (0.7, 50.9, 1.2, 51.3), (19.9, 40.0, 20.4, 40.2)]
)
def test_vectors_of_places_are_means_by_area(
    cube: xr.Dataset, box: tuple[float, float, float, float]
) -> None:
    west, south, east, north = box
    outline = np.array([(west, south), (east, south), (east, north), (west, north)])
    places = [Place("a", outline, np.array(3.0)), Place("b", outline[::-1] - 0.01, np.array(4.0))]
    far = Place("far", outline + np.array([100, 0]), np.array(5.0))
    corner = np.array([(0, 52), (0.1, 52), (0.1, 51.9), (0, 51.9)])
    empty = Place("empty", corner, np.array(6.0))
    found = cells._joined(CubeView.of(cube), [far, *places, empty])
    expected = [area_mean(cube, *box), area_mean(cube, *(edge - 0.01 for edge in box))]
    np.testing.assert_allclose(found.vectors, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(found.target, [3, 4])
    assert found.codes.shape == (2, 120)


def write_raster(path: Path, values: np.ndarray, crs: str, corner: Any, step: float) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with rasterio.open(
        *(path, "w"),
        driver="GTiff",
        dtype=values.dtype,
        count=1,
        height=values.shape[0],
        width=values.shape[1],
        crs=crs,
        transform=Affine(step, 0, corner[0], 0, -step, corner[1]),
    ) as file:
        file.write(values, 1)


@pytest.mark.slow
def test_biomass_of_places(cube: xr.Dataset, tmp_path: Path) -> None:
    """Means that are a linear function of the vectors are found but for their rounding."""
    rng = np.random.default_rng(2)
    root = tmp_path / "biomass_s3"
    slope = rng.normal(size=DIM)
    for split in SPLITS:
        lines = []
        for n in range(40):
            west, north = rng.uniform(1.3, 19), rng.uniform(41, 50.5)
            mean = 200 + 30 * area_mean(cube, west, north - 0.256, west + 0.256, north) @ slope
            pixels = np.full((8, 8), max(round(mean), 0), np.uint16)
            pixels[:, ::2] += 7
            pixels[:, 1::2] -= min(7, int(pixels[0, 1]))
            name = f"S30E140_ESACCI-BIOMASS_{split}_{n}"
            write_raster(root / f"biomass/{name}.tif", pixels, "EPSG:4326", (west, north), 0.032)
            lines.append(f"{name},S3B_20200514T234457_20200514T234757.tif")
        (root / f"static_fnames-{split}.csv").write_text("\n".join(lines) + "\n")
    (root / "biomass/S30E140_ESACCI-BIOMASS_val_3.tif").write_bytes(b"torn")
    dataset = open_dataset(find("biomass-s3"), tmp_path)
    found, coordinates, constant = score_cells(dataset, cube, resamples=0)
    assert found.dataset < 0.1 * constant.dataset
    assert coordinates.dataset > 0.8 * constant.dataset
    assert [*found.skipped] == ["S30E140_ESACCI-BIOMASS_val_3"]
    assert found.details["places"]["val"] == 39


def test_air_quality_of_places(tmp_path: Path) -> None:
    folder = tmp_path / "airquality_s5p/no2"
    (folder / "label_annual").mkdir(parents=True)
    values = np.arange(16, dtype=np.float32).reshape(4, 4)
    values[0, 0], values[1, 1] = -np.inf, np.finfo(np.float32).max
    corner = (4_321_000.0, 3_210_000.0)  # the middle of the projection: 10°E, 52°N
    write_raster(folder / "label_annual/a.tif", values, "EPSG:3035", corner, 1000.0)
    for split in SPLITS:
        (folder / f"{split}.csv").write_text("a\n")
    place = open_dataset(find("aq-no2-s5p"), tmp_path).place("val", 0)
    assert place.target == pytest.approx((np.arange(16).sum() - 0 - 5) / 14)
    # 4 km south and east of the middle, on a sphere of the Earth's size.
    step = np.degrees(4000 / 6_371_000)
    east = 10 + step / np.cos(np.radians(52))
    expected = [(10, 52), (10, 52 - step), (east, 52 - step), (east, 52)]
    np.testing.assert_allclose(place.outline, expected, atol=3e-4)


def test_what_no_cube_tells_is_said_before_data_are_asked_for(
    cube: xr.Dataset, tmp_path: Path
) -> None:
    failures = cube.copembed.bench(tmp_path, tasks=["eurosat-s2", "biomass-s3"]).failures
    assert failures["eurosat-s2"] == (
        "task='eurosat-s2'; expected lc100cls-s3 or biomass-s3 or aq-no2-s5p or aq-o3-s5p"
    )
    assert "copcube fetch bench biomass-s3" in failures["biomass-s3"]
    with pytest.raises(CubeError, match="groups along year; select one"):
        cube.expand_dims(year=[2021]).copembed.bench(tmp_path)


@pytest.mark.slow
def test_cells_that_cannot_be_scored(cube: xr.Dataset, tmp_path: Path) -> None:
    write_lc100(tmp_path / "lc100_s3", cube)
    dataset = open_dataset(find("lc100cls-s3"), tmp_path)
    few = cube.isel(lat=slice(0, 20))
    with pytest.raises(CubeError, match=r"vectors at \d+ of 180 places .*expected 100 or more"):
        score_cells(dataset, few)
    small = tmp_path / "small"
    shutil.copytree(tmp_path / "lc100_s3", small)
    for split in SPLITS:
        path = small / f"multilabel-{split}.csv"
        path.write_text("".join(path.read_text().splitlines(True)[:9]))
    with pytest.raises(CubeError, match=r"of 24 places .*: download the whole data set"):
        score_cells(open_dataset(find("lc100cls-s3"), small), cube)
    for split in SPLITS:
        path = tmp_path / f"lc100_s3/multilabel-{split}.csv"
        head, *lines = path.read_text().splitlines()
        lines = [line.split(",")[0] + ",1" + ",0" * 22 for line in lines]
        path.write_text("\n".join([head, *lines]))
    with pytest.raises(CubeError, match="labels of all 59 training places are equal"):
        score_cells(open_dataset(find("lc100cls-s3"), tmp_path), cube)
    path.write_text(path.read_text().replace(lines[0].split(",")[0], "0772176_1.00_44.00"))
    files = tmp_path / "lc100_s3/static_fnames-test.csv"
    files.write_text(files.read_text() + "0772176_1.00_44.00,S3A_20190601T0_20190601T0.tif\n")
    with pytest.raises(GridError, match="contradicts itself"):
        score_cells(open_dataset(find("lc100cls-s3"), tmp_path), cube)
    root = tmp_path / "eurosat_s1"
    root.mkdir()
    for split in SPLITS:
        (root / f"eurosat-{split}.txt").write_text("Forest_1.jpg\n")
    with pytest.raises(OptionError, match="EuroSAT-S1 has no labels of whole cells"):
        score_cells(open_dataset(find("eurosat-s1"), tmp_path), cube)
    with pytest.raises(CubeError):
        score_cells(dataset, xr.Dataset())
