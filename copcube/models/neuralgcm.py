"""NeuralGCM: covariates on the model's Gaussian grid, longitude first, with units.

``FloatDataFeatures`` reads them by ``covariate_data_path`` and ``covariate_keys``. It demands
units that can be parsed, and the grid of the model, from south to north.
"""

from pathlib import Path

from copcube.models.fields import Fields, on_gaussian
from copcube.models.form import Form, write_netcdf


def write(fields: Fields, path: Path) -> None:
    """Write the variables."""
    write_netcdf(fields, path, dims=("lat", "lon"), transposed=True, units="dimensionless")


FORMS = {".nc": Form(write, on_gaussian)}
