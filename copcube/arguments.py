"""Checks of single arguments of public functions.

Otherwise, one value instead of several, or several instead of one, would fail deep inside, with an
error that names no argument.
"""

import operator
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeGuard

from copcube.errors import OptionError


def one_path(value: Any, name: str, remedy: str = "") -> str:
    """Return a path, or an address, as a text.

    Raises
    ------
    OptionError
        If it is something else, such as a list of paths; `remedy` then says what to do.
    """
    if isinstance(value, str | os.PathLike):
        text = os.fspath(value)
        if isinstance(text, str) and text and "\0" not in text:
            return text
    raise OptionError(
        f"{name} is {as_given(value)}; expected one path, as text or pathlib.Path{remedy}"
    )


def is_in_utf8(path: str | os.PathLike[str]) -> bool:
    """Whether the name of a file is UTF-8, which HDF5, GDAL and Arrow require."""
    try:
        os.fspath(path).encode()
    except UnicodeEncodeError:
        return False
    return True


def without_scheme(text: str) -> str:
    """Return the path that an address such as ``file:///data/world.zarr`` means; others as given.

    Examples
    --------
    >>> without_scheme("file:///data/my%20world.zarr"), without_scheme("s3://bucket/world.zarr")
    ('/data/my world.zarr', 's3://bucket/world.zarr')
    """
    if not text.startswith("file://"):
        return text
    from urllib.parse import urlsplit
    from urllib.request import url2pathname

    return url2pathname(urlsplit(text).path)


def as_whole(value: Any) -> int | None:
    """Return a whole number of any type, and None for anything else, such as True."""
    try:
        return None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        return None


def whole_number(
    value: Any, name: str, least: int, most: int | None = None, remedy: str = ""
) -> int:
    """Return a whole number of any type, within bounds.

    Raises
    ------
    OptionError
        If it is not one, or out of bounds; `remedy` then says what to do.
    """
    number = as_whole(value)
    limits = f"{least} or more" if most is None else f"{least} to {most}"
    if number is None:
        raise OptionError(f"{name} is {as_given(value)}; expected a whole number, {limits}{remedy}")
    if number < least or (most is not None and number > most):
        raise OptionError(f"{name} is {number}; expected {limits}{remedy}")
    return number


def number(value: Any, name: str, remedy: str = "") -> float:
    """Return one real number.

    Raises
    ------
    OptionError
        If it is something else, such as several; `remedy` then says what to do.
    """
    try:
        if not getattr(value, "ndim", 0):
            return _real(value)
    except (TypeError, ValueError, OverflowError):
        pass
    raise OptionError(f"{name} is {as_given(value)}; expected one number{remedy}")


def numbers(value: Any, name: str, each: str = "band") -> tuple[float, ...]:
    """Return the numbers of any sequence, one for `each`; a single number is accepted too.

    Raises
    ------
    OptionError
        If there is something else among them.
    """
    try:
        # Neither a set nor a mapping says which number belongs to which band.
        if not isinstance(value, set | frozenset | Mapping):
            return tuple(map(_real, listed(value)))
    except (TypeError, ValueError, OverflowError):
        pass
    raise OptionError(f"{name} is {as_given(value)}; expected one number per {each}")


def is_several(value: Any) -> TypeGuard[Iterable[Any]]:
    """Whether there may be several values; a text is one, and so is an array of no dimension."""
    several = isinstance(value, Iterable) and not isinstance(value, str | bytes)
    return several and bool(getattr(value, "ndim", 1))


def listed(value: Any) -> Iterable[Any]:
    """Return several values unchanged, and a single one as a list of one."""
    return value if is_several(value) else (value,)


def _real(value: Any) -> float:
    """Return a real number; raise TypeError for other types that `float` would convert."""
    kind = getattr(getattr(value, "dtype", None), "kind", "")
    if isinstance(value, str | bytes | bool) or kind in tuple("bcmMSUT"):
        raise TypeError("texts, flags, times and complex numbers are not real numbers")
    return float(value)


def one_of(value: Any, name: str, allowed: Sequence[str]) -> None:
    """Check that a text is one of some words.

    Raises
    ------
    OptionError
        If it is a different one, or not a text, such as an array of texts.
    """
    if not isinstance(value, str) or value not in allowed:
        raise OptionError(f"{name}={value!r}; expected {' or '.join(allowed)}")


def flag(value: Any, name: str) -> bool:
    """Return a flag, which texts such as 'no' are not.

    Raises
    ------
    OptionError
        If it is neither true nor false.
    """
    # Arrays and datasets, such as a mask passed instead of a flag, compare element by element.
    if isinstance(value, str) or not _single(value) or value not in {True, False}:
        raise OptionError(f"{name} is {as_given(value)}; expected True or False")
    return bool(value)


def _single(value: Any) -> bool:
    try:
        hash(value)
    except TypeError:
        return False
    return not getattr(value, "ndim", 0)


def as_given(value: Any) -> str:
    """Describe what was given: its type, and the value if it is short."""
    text = repr(value)
    kind = type(value).__name__
    return f"{text} ({kind})" if len(text) <= 60 and "\n" not in text else f"a {kind}"
