"""A dataset's statements about its vectors, and the warning on those that are not results."""

from collections.abc import Mapping
from typing import Any

_TRAINED = "encoder_trained"
_KEPT = ("encoder", _TRAINED, "synthetic")

SPEAKING = ("title", "history", "license", "references", "comment", "source", "institution")
"""Attributes that would apply to all of a merged dataset; `merge` prefixes those of the vectors."""


def caution(attrs: Mapping[Any, Any]) -> str | None:
    """Return the warning that a dataset's attributes call for; None for results.

    Parameters
    ----------
    attrs : mapping
        Attributes of a cube, a reduction or what was made from one.

    Examples
    --------
    >>> caution({"encoder_trained": 0})
    'UNTRAINED encoder: the values mean nothing'
    """
    # `merge` adds a prefix to attributes that both datasets have.
    if {"synthetic", "copcube_synthetic"} & attrs.keys():
        return "SYNTHETIC: no satellite image was read, the values mean nothing"
    if not all(map(trained, (attrs.get(name) for name in (_TRAINED, f"copcube_{_TRAINED}")))):
        return "UNTRAINED encoder: the values mean nothing"
    return None


def of_vectors(attrs: Mapping[Any, Any]) -> dict[str, Any]:
    """A dataset's attributes about its vectors, without the prefix that `merge` adds."""
    found = dict(attrs)
    ours = {key: found.pop(f"copcube_{key}") for key in SPEAKING if f"copcube_{key}" in found}
    if not ours:
        return found
    of_all = {key: found.pop(key, "") for key in SPEAKING}
    # The history of the dataset records the merge.
    merged = [line for line in str(of_all["history"]).split("\n") if " merge: " in line]
    history = "\n".join(filter(None, (str(ours.get("history", "")), *merged)))
    return found | ours | ({"history": history} if history else {})


def trained(value: Any) -> bool:
    """Whether the encoder is trained, unless the attribute ``encoder_trained`` denies it."""
    # Some formats hold every attribute as text.
    return str(value) != "0"


def of_encoder(*attrs: Mapping[Any, Any]) -> dict[str, Any]:
    """Attributes for results that are no longer cubes: the encoder, and cautions.

    Parameters
    ----------
    *attrs : mapping
        Attributes of every dataset whose vectors were used. A caution on one applies to the result;
        the encoder is named if all have the same.
    """
    result = {name: one[name] for one in attrs for name in _KEPT if name in one}
    if any(one.get("encoder") != result.get("encoder") for one in attrs):
        result.pop("encoder", None)
    if not all(trained(one.get(_TRAINED)) for one in attrs):
        result[_TRAINED] = 0
    return result
