"""What must be said aloud of numbers that look like results and are none."""

from collections.abc import Mapping
from typing import Any


def caution(attrs: Mapping[Any, Any]) -> str | None:
    """Say what numbers are not, by the attributes of their dataset; None for results.

    Parameters
    ----------
    attrs : mapping
        Of a cube, a reduction or what was made of one.

    Examples
    --------
    >>> caution({"encoder_trained": 0})
    'UNTRAINED encoder: the values mean nothing'
    """
    if "synthetic" in attrs:
        return "SYNTHETIC: no satellite image was read, the values mean nothing"
    # Some forms of files hold every attribute as text.
    if str(attrs.get("encoder_trained")) == "0":
        return "UNTRAINED encoder: the values mean nothing"
    return None
