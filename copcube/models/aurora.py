"""Aurora: a pickled dictionary of static variables, name to (721 or 720, 1440) float32.

So are ``aurora-0.25-static.pickle`` and, for Aurora 1.5, ``aurora-0.25-v1.5-static.pickle``. The
names of the one-hot fields are those of ``aurora.AuroraV1p5``. Locations and scales of new
variables, 0 and 1 here since they are standardised, go into ``aurora.normalisation``; those of
the model's own fields are there, so that these stay in their own units.
"""

import pickle
from pathlib import Path

import numpy as np

from copcube.models.fields import Fields, Maps, on_lattice
from copcube.models.form import Form, required

_FIRST = ("lsm", "z", "slt")
_FURTHER = ("anor", "isor", "cvh", "cl", "dl", "cvl", "slor", "sdfor", "sdor")
_CLASSES = {
    "slt": (0, 1, 2, 3, 4, 5, 6, 7),
    "tvh": (0, 3, 4, 5, 6, 18, 19),
    "tvl": (0, 1, 2, 7, 9, 10, 11, 13, 16, 17),
}
"""Classes of which Aurora 1.5 reads a field each, 1 where the class is and 0 elsewhere."""


def statics(fields: Maps) -> Maps:
    """Take the three fields of the first version and, if all are there, those of 1.5.

    Raises
    ------
    CubeError
        If one of the first version's is missing.
    """
    result = dict(required(fields, {name: name for name in _FIRST}, "Aurora"))
    if {*_FURTHER, *_CLASSES} <= {*fields}:
        result |= {name: fields[name] for name in _FURTHER}
        for name, classes in _CLASSES.items():
            # Classes from packed files may be a little off whole numbers.
            kind = np.rint(fields[name])
            result |= {f"{name}_{c}": (kind == c).astype(np.float32) for c in classes}
    return result


def write(fields: Fields, path: Path) -> None:
    """Write the dictionary; protocol 4 is read by every Python that Aurora runs on."""
    channels = {name: np.ascontiguousarray(v) for name, v in fields.channels.items()}
    with open(path, "wb") as stream:
        pickle.dump(channels, stream, protocol=4)


FORMS = {".pickle": Form(write, on_lattice, statics, described=False)}
