"""What vectors are worth: climate predicted from embeddings, coordinates and static fields."""

from copcube.probes.climate import probe
from copcube.probes.text import table

__all__ = ["probe", "table"]
