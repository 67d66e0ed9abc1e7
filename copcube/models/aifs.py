"""AIFS in earth2studio: a torch tensor of invariants (channel, 721, 1440).

Earth2studio keeps it as ``invariants.pt``: lsm, sdor, slor and z, then, for AIFS 2, the bathymetry
of the wave model, which is not a field of ERA5. Channels of the cube follow them.
"""

import json
from pathlib import Path

import numpy as np

from copcube.interchange.torch import save_tensor
from copcube.models.fields import Fields, Maps
from copcube.models.form import Form, required


def statics(fields: Maps) -> Maps:
    """Take the four fields that AIFS shares with ERA5, in its order."""
    return required(fields, {name: name for name in ("lsm", "sdor", "slor", "z")}, "AIFS")


def write(fields: Fields, path: Path) -> None:
    """Write the tensor, and its description as a record that torch passes over."""
    # In the order of `channels`: the reader knows its own four fields by their places.
    values = np.stack(list(fields.channels.values()))
    save_tensor(path, values, json.dumps(fields.description(), sort_keys=True))


FORMS = {".pt": Form(write, statics=statics)}
