"""Which image a path names; names beside tensors are tested with the shards."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from copcube.errors import CopcubeError
from copcube.grid import format_cell
from copcube.images.naming import FOLDERS, Identity, folder_of, from_path, is_inside
from copcube.modalities import MODALITIES, ORDER

CELL = "0772176_-96.00_44.00"


@given(
    folder=st.sampled_from(list(FOLDERS)),
    cell=st.integers(0, 721 * 1440 - 1),
    patch=st.integers(0, 1_300_000),
    day=st.dates(),
)
def test_a_published_path_names_its_image(folder, cell, patch, day):
    modality = FOLDERS[folder]
    local = f"{patch:07d}_{patch % 360 - 180:.2f}_{patch % 180 - 90:.2f}"
    iso, plain = f"{day.isoformat()}", day.isoformat().replace("-", "")
    name = {"s": f"X_{plain}T101112_{plain}T101113.tif", "5": f"{iso}_2999-01-01.tif"}
    parts = [folder, format_cell(cell), *([local] if modality.local else [])]
    path = "/".join([*parts, name["5" if "s5p" in modality.key else "s"]])
    assert folder_of(path) == folder
    assert from_path(path) == Identity(
        modality.key,
        cell,
        local if modality.local else None,
        None if modality.key == "dem" else plain,
    )


@pytest.mark.parametrize(
    "name",
    ["20210301.tif", "x_2021-03-01_2021-04-01.tif", "00030512_20210301.tif", "99887766-20210301T1"],
)
def test_the_first_day_in_a_name_is_the_date_of_another_sensor(name):
    """00030512 would be a day in the year 3."""
    sensor = replace(MODALITIES["s3_olci"], key="mine")
    assert from_path(f"mine/images/{CELL}/{name}", {"mine/images": sensor}).date == "20210301"


def test_the_order_is_modality_cell_patch_date():
    some = [
        Identity(key, cell, patch, date)
        for key in reversed(MODALITIES)
        for cell in (10_000, 9)
        for patch in ("0000010_1.00_1.00", "0000009_1.00_1.00")
        for date in ("20210101", "20201231")
    ]
    ordered = sorted(some, key=lambda image: image.order)
    assert ordered == sorted(
        some, key=lambda i: (ORDER[i.modality], i.grid_id, int(i.local_id[:7]), int(i.date))
    )


@pytest.mark.parametrize(
    "path",
    [
        f"dem_grid_wgs/images/{CELL}/..",
        f"dem_grid_wgs/images/{CELL}/.",
        f"dem_grid_wgs/images/{CELL}/",
        f"dem_grid_wgs/images/{CELL}/..\\x.tif",
        f"dem_grid_wgs/images/{CELL}/\x00.tif",
        f"dem_grid_wgs/images/{CELL}/\n.tif",
        f"dem_grid_wgs/images/{CELL}/\ud800.tif",
    ],
)
def test_a_path_that_leaves_its_place_names_nothing(path):
    assert not is_inside(path)
    with pytest.raises(CopcubeError, match="not a path inside the tree"):
        from_path(path)


@given(st.text(), st.sampled_from(["", *FOLDERS]), st.sampled_from(["", CELL]))
def test_any_text_names_an_image_or_is_refused(text, folder, cell):
    try:
        image = from_path(f"{folder}/{cell}/{text}")
    except CopcubeError:
        return
    assert image.grid_id == 772176
    assert image.modality == "dem" or any(c.isdecimal() for c in text)


def test_the_meridian_of_180_has_one_longitude():
    import numpy as np

    pixels = np.ones((2, 264, 264), "float32")
    image = Identity("s1_grd", 720, "0000001_180.00_-89.95", "20210101").image(
        pixels, MODALITIES["s1_grd"], "x.tif"
    )
    assert (image.lon, image.lat) == (-180, -89.95)
