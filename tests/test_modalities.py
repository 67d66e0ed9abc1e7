import pytest

from copcube.errors import OptionError
from copcube.modalities import MODALITIES, ORDER, modality, select


def test_the_order_is_that_of_the_pretraining_loop():
    assert list(MODALITIES) == [
        "s1_grd",
        "s2_toa",
        "s3_olci",
        "s5p_co",
        "s5p_no2",
        "s5p_o3",
        "s5p_so2",
        "dem",
    ]
    assert list(ORDER.values()) == list(range(8))


@pytest.mark.parametrize(
    ("key", "km2"),
    [("s1_grd", 0.0256), ("s2_toa", 0.0256), ("s3_olci", 5.76), ("s5p_o3", 16), ("dem", 3.6864)],
)
def test_token_areas_are_the_published_constants(key, km2):
    assert modality(key).token_area == pytest.approx(km2, rel=1e-12)


@pytest.mark.parametrize("m", MODALITIES.values(), ids=lambda m: m.key)
def test_every_modality_is_consistent(m):
    bands = len(m.bands)
    assert len(m.scale) == len(m.mean) == len(m.std) == bands
    assert m.input_size % m.kernel == 0
    assert (m.stored_size - m.input_size) % 2 == 0
    if m.language_key is None:
        assert len(m.wavelengths) == len(m.bandwidths) == bands
    else:
        assert m.wavelengths is m.bandwidths is None
        assert bands == 1


def test_sentinel_2_runs_through_the_spectrum():
    s2 = modality("s2_toa")
    assert s2.bands[8] == "B8A"
    assert list(s2.wavelengths) == sorted(s2.wavelengths)


def test_unknown_modality_names_the_nearest_and_all():
    with pytest.raises(OptionError, match=r"'s2'.*did you mean 's2_toa'.*known: s1_grd, s2_toa"):
        modality("s2")


def test_select_orders_and_deduplicates():
    assert select(["dem", "s1_grd", "dem"]) == ("s1_grd", "dem")
    assert select(None) == tuple(MODALITIES)
    with pytest.raises(OptionError, match="no modality chosen"):
        select([])
