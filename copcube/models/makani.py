"""Makani (FourCastNet 3, SFNO): an invariants file, or the eight channels of its own switch.

The invariants file is that of ``data_process/convert_era5_invariants_to_makani_input.py``, read
by ``makani/utils/invariants.py``: ``fields`` (channel, lat, lon) float32, ``channel``, ``lat``,
``lon``, and ``valid_data`` (channel). The ``.npy`` is that of ``copernicus_emb_path``: (rows,
1440, 8) float32, read by ``makani/utils/auxiliary_fields.py``.
"""

from pathlib import Path

import numpy as np

from copcube.models.fields import Fields, on_lattice
from copcube.models.form import Form, attributes, of_the_same_names

CHANNELS = 8
"""Channels that makani gives names to when ``add_copernicus_emb`` is set."""


def write_invariants(fields: Fields, path: Path) -> None:
    """Write HDF5 by the netCDF library, whose dimensions are HDF5's dimension scales."""
    import netCDF4

    channels = fields.channels
    with netCDF4.Dataset(path, "w", format="NETCDF4") as file:
        for name, along in (("channel", channels), ("lat", fields.lat), ("lon", fields.lon)):
            file.createDimension(name, len(along))
        names = file.createVariable("channel", str, ("channel",))
        # netCDF4 writes texts of any length from objects alone.
        names[:] = np.array(list(channels), object)
        for name, units in (("lat", "degrees_north"), ("lon", "degrees_east")):
            # As exact as the metadata of makani's data, to which latitudes are compared.
            axis = file.createVariable(name, "f8", (name,))
            axis.units = units
            axis[:] = getattr(fields, name)
        file.createVariable("valid_data", "i4", ("channel",))[:] = 1
        numbers = file.createVariable(
            "fields", "f4", ("channel", "lat", "lon"), zlib=True, complevel=1, fill_value=np.nan
        )
        for i, values in enumerate(channels.values()):
            numbers[i] = values
        file.setncatts(attributes(fields))


def write_npy(fields: Fields, path: Path) -> None:
    """Write eight channels last: eight components, or seven and the mask."""
    channels = list(fields.channels.values())[:CHANNELS]
    with open(path, "wb") as stream:
        np.save(stream, np.stack(channels, axis=-1))


FORMS = {
    ".h5": Form(write_invariants, on_lattice, of_the_same_names),
    ".npy": Form(write_npy, on_lattice, described=False, most=CHANNELS),
}
