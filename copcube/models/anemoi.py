"""Anemoi: CF netCDF with one variable per channel and one time, for ``repeat-dates`` of a recipe.

Anemoi-datasets skips variables without a time, and requires that a source has the grid of the
others: 90°N and 0°E first, as ERA5.
"""

from pathlib import Path

from copcube.models.fields import Fields
from copcube.models.form import Form, of_the_same_names, write_netcdf


def write(fields: Fields, path: Path) -> None:
    """Write the variables."""
    write_netcdf(fields, path, time=True)


FORMS = {".nc": Form(write, statics=of_the_same_names)}
