"""Bands by the names that archives and readers give them."""

import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from copcube.errors import OptionError
from copcube.images.bands import order, refuse_contradiction
from copcube.modalities import MODALITIES

S1, S2, S3 = (MODALITIES[key] for key in ("s1_grd", "s2_toa", "s3_olci"))

# As published: asset keys of the Planetary Computer and Earth Search, common names of the STAC
# extension eo, descriptions of GDAL's driver of SAFE folders, files of SAFE, Earth Engine.
PLANETARY = [
    f"B{number}"
    for number in (*("01", "02", "03", "04", "05", "06", "07", "08"), *("8A", "09", 10, 11, 12))
]
VISIBLE, INFRARED = ["coastal", "blue", "green", "red"], ["nir", "nir08", "nir09", "cirrus"]
INFRARED += ["swir16", "swir22"]
EARTH_SEARCH = [*VISIBLE, "rededge1", "rededge2", "rededge3", *INFRARED]
COMMON = [*VISIBLE, "rededge071", "rededge075", "rededge078", *INFRARED]
GDAL = [
    f"{band}, central wavelength {int(nm)} nm"
    for band, nm in zip(S2.bands, S2.wavelengths, strict=True)
]
SAFE = [f"T32UPU_20210601T101031_{band}.jp2" for band in PLANETARY]
NAMES = {
    "s2 planetary": (S2, PLANETARY),
    "s2 earth search": (S2, EARTH_SEARCH),
    "s2 common": (S2, COMMON),
    "s2 gdal": (S2, GDAL),
    "s2 safe": (S2, SAFE),
    "s2 resolution": (S2, [f"{band}_10m" for band in PLANETARY]),
    "s2 engine": (S2, [f"B{n}" for n in (1, 2, 3, 4, 5, 6, 7, 8, "8A", 9, 10, 11, 12)]),
    "s2 wavelengths": (
        S2,  # of Sentinel-2A, in the order of the bands
        [
            *(442.7, 492.4, 559.8, 664.6, 704.1, 740.5, 782.8, 832.8, 864.7, 945.1),
            *(1373.5, 1613.7, 2202.4),
        ],
    ),
    "s2 micrometres": (S2, [f"{nm / 1000:.3f}" for nm in S2.wavelengths]),
    "s3 products": (S3, [f"Oa{n:02d}_radiance" for n in range(1, 22)]),
    "s3 sentinel hub": (S3, [f"B{n:02d}" for n in range(1, 22)]),
    "s3 wavelengths": (S3, [round(nm) for nm in S3.wavelengths]),
    "s1 planetary": (S1, ["vv", "vh"]),
    "s1 polar": (S1, ["HH", "HV"]),
    "s1 snap": (S1, ["Gamma0_VV_db", "Gamma0_VH_db"]),
    "s1 numbers": (S1, [1, 2]),
    "s1 from 0": (S1, [0, 1]),
    "s1 gdal": (S1, ["Band 1", "band_2"]),
    "s1 engine": (S1, ["b1", "b2"]),
}


@pytest.mark.parametrize(("modality", "names"), NAMES.values(), ids=NAMES)
@given(data=st.data())
def test_published_names_are_understood_in_any_order_and_case(modality, names, data):
    places = data.draw(st.permutations(range(len(names))))
    change = data.draw(st.sampled_from([str, str.upper, str.lower, str.title]))
    labels = [
        change(names[place]) if isinstance(names[place], str) else names[place] for place in places
    ]
    found = order(labels, modality)
    assert [places[index] for index in found] == list(range(len(names)))


@given(st.permutations([*PLANETARY, "SCL", "AOT", "visual"]))
def test_other_bands_beside_those_of_the_modality_are_left_out(labels):
    assert [labels[index] for index in order(labels, S2)] == PLANETARY


@pytest.mark.parametrize(
    ("labels", "modality", "message"),
    [
        (["left", "right"], S1, "labelled left, right, .* no VV, VH; expected the 2 .*: VV, VH"),
        (["VV", "angle"], S1, "no VH"),
        (["VV", "VV"], S1, "no VH"),
        (["VV", "VH", "vv_db"], S1, "VV more than once"),
        ([2, 3], S1, "labelled 2, 3"),
        ([0.1, 0.2], S1, "labelled 0.1, 0.2"),
        ([band for band in PLANETARY if band != "B10"], S2, "no B10 .Level-2A has none"),
        (["rededge" if "rededge" in name else name for name in COMMON], S2, "no B5, B6, B7"),
        ([*EARTH_SEARCH, "B08"], S2, "B8 more than once"),
        ([f"Oa{n:02d}" for n in range(2, 23)], S3, "no Oa01"),
        (["NO2"], MODALITIES["s5p_co"], "labelled NO2.*no CO_column"),
        (["VV"], MODALITIES["dem"], "labelled VV"),
        (["B4"], MODALITIES["dem"], "labelled B4"),
        (["band_1", "VH"], S1, "no VV"),
    ],
)
def test_names_that_are_not_understood_are_refused_with_both_lists(labels, modality, message):
    with pytest.raises(OptionError, match=message) as error:
        order(labels, modality)
    for name in (*map(str, labels), *modality.bands):
        assert re.search(rf"\b{re.escape(name)}\b", str(error.value))


@pytest.mark.parametrize("labels", [["", None], [None, None], ["band_data", ""], []])
def test_labels_that_say_nothing_are_as_good_as_none(labels):
    assert order(labels, S1) is None


@pytest.mark.parametrize(
    ("label", "key"),
    [
        *(("NO2", "s5p_no2"), ("tropospheric_NO2_column_number_density", "s5p_no2")),
        *(("nitrogendioxide_tropospheric_column", "s5p_no2"), ("elevation", "dem"), ("DEM", "dem")),
        *(("CO_column_number_density", "s5p_co"), ("O3", "s5p_o3"), ("1", "s5p_so2"), (1, "dem")),
        *(("data", "dem"), ("band_data", "s5p_o3"), ("DSM", "dem")),
    ],
)
def test_a_band_alone(label, key):
    assert order([label], MODALITIES[key]) in (None, [0])


def test_a_description_of_a_band_alone_may_say_anything_but_another_modality():
    for text in ("above the geoid", "bathymetry", "heights of 2021"):
        assert order([text], MODALITIES["dem"], described=True) is None
    with pytest.raises(OptionError, match=r"labelled tropospheric NO2"):
        order(["tropospheric NO2"], MODALITIES["dem"], described=True)
    with pytest.raises(OptionError, match=r"labelled bathymetry, .* no elevation"):
        order(["bathymetry"], MODALITIES["dem"])


def test_a_general_sensor_is_known_by_its_wavelengths():
    sensor = replace(
        S1, key="general", bands=("490 nm", "560 nm"), wavelengths=(490.0, 560.0), folders=()
    )
    assert order([560, 490], sensor) == [1, 0]
    assert order(["490 nm", "560 nm"], sensor) == [0, 1]
    assert order([0.56, 0.49], sensor) == [1, 0]
    with pytest.raises(OptionError, match=r"labelled green, blue, and the wavelengths .* 490, 560"):
        refuse_contradiction(["green", "blue"], sensor)
    refuse_contradiction(["blue", "green"], sensor)
    refuse_contradiction(["one", "two"], sensor)
