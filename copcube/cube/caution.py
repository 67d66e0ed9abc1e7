"""What a dataset says of its vectors, and the warning that those carry which are no results."""

from collections.abc import Mapping
from typing import Any

_TRAINED = "encoder_trained"
_KEPT = ("encoder", _TRAINED, "synthetic")

SPEAKING = ("title", "history", "license", "references", "comment", "source", "institution")
"""Attributes that would speak for all of a merged dataset; before those of the vectors `merge` puts
the prefix ``copcube_``."""


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
    # `merge` puts a prefix before what both of two datasets say.
    if {"synthetic", "copcube_synthetic"} & attrs.keys():
        return "SYNTHETIC: no satellite image was read, the values mean nothing"
    if not all(map(trained, (attrs.get(name) for name in (_TRAINED, f"copcube_{_TRAINED}")))):
        return "UNTRAINED encoder: the values mean nothing"
    return None


def of_vectors(attrs: Mapping[Any, Any]) -> dict[str, Any]:
    """What a dataset says of its vectors, without the prefix where it was merged with others."""
    told = dict(attrs)
    ours = {key: told.pop(f"copcube_{key}") for key in SPEAKING if f"copcube_{key}" in told}
    if not ours:
        return told
    of_all = {key: told.pop(key, "") for key in SPEAKING}
    # That they were merged stands in the history of all.
    merged = [line for line in str(of_all["history"]).split("\n") if " merge: " in line]
    history = "\n".join(filter(None, (str(ours.get("history", "")), *merged)))
    return told | ours | ({"history": history} if history else {})


def trained(value: Any) -> bool:
    """Whether the attribute ``encoder_trained`` does not say that an encoder is untrained."""
    # Some forms of files hold every attribute as text.
    return str(value) != "0"


def of_encoder(*attrs: Mapping[Any, Any]) -> dict[str, Any]:
    """Attributes for what is made of vectors, and no cube any more: who made them, and cautions.

    Parameters
    ----------
    *attrs : mapping
        Of every dataset whose vectors were used. A caution of one is a caution of the result;
        the encoder is named where all have the same one.
    """
    result = {name: one[name] for one in attrs for name in _KEPT if name in one}
    if any(one.get("encoder") != result.get("encoder") for one in attrs):
        result.pop("encoder", None)
    if not all(trained(one.get(_TRAINED)) for one in attrs):
        result[_TRAINED] = 0
    return result
