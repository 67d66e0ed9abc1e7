import numpy as np
import pytest
from pyproj import Geod, Proj

from copcube.projecting import projected


@pytest.mark.parametrize("shape", [(1,), (1, 1), (3,), (2, 2), (0,)])
def test_arrays_keep_their_shape_whatever_their_size(shape):
    lon, lat = np.linspace(7, 9, 4)[: np.prod(shape)].reshape(shape), np.full(shape, 45.0)
    zone = Proj(proj="utm", zone=32, ellps="WGS84")
    east, north = projected(zone, lon, lat)
    assert east.shape == north.shape == shape
    back, again = projected(zone, east, north, inverse=True)
    np.testing.assert_allclose(back, lon, atol=1e-9)
    np.testing.assert_allclose(again, lat, atol=1e-9)
    for one, x, y in zip(east.flat, lon.flat, lat.flat, strict=True):
        assert one == zone(float(x), float(y))[0]
    distance = projected(Geod(ellps="WGS84").inv, lon, lat, lon, lat + 1)[2]
    assert distance.shape == shape
    assert np.all(np.abs(distance - 111_140) < 20)
