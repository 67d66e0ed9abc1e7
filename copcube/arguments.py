"""Checks of single arguments, where public functions take them.

One value where several are expected, or several where one is, would else be noticed deep inside,
by an error that names no argument.
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
        If it is something else, such as a list of paths; `remedy` says what to do then.
    """
    if isinstance(value, str | os.PathLike):
        text = os.fspath(value)
        if isinstance(text, str) and text and "\0" not in text:
            return text
    raise OptionError(
        f"{name} is {as_given(value)}; expected one path, as text or pathlib.Path{remedy}"
    )


def is_in_utf8(path: str | os.PathLike[str]) -> bool:
    """Whether the name of a file is in UTF-8, as HDF5, GDAL and Arrow take names; many are not."""
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
    """Return a whole number of any type, and None for what is none, such as True."""
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
        If it is none, or lies outside; `remedy` says what to do then.
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
        If it is something else, such as several; `remedy` says what to do then.
    """
    try:
        if not getattr(value, "ndim", 0):
            return _real(value)
    except (TypeError, ValueError, OverflowError):
        pass
    raise OptionError(f"{name} is {as_given(value)}; expected one number{remedy}")


def numbers(value: Any, name: str, each: str = "band") -> tuple[float, ...]:
    """Return numbers of any sequence, one for `each`; a single one stands for itself.

    Raises
    ------
    OptionError
        If there is something else among them.
    """
    try:
        # Neither a set nor a mapping says which number is of which band.
        if not isinstance(value, set | frozenset | Mapping):
            return tuple(map(_real, listed(value)))
    except (TypeError, ValueError, OverflowError):
        pass
    raise OptionError(f"{name} is {as_given(value)}; expected one number a {each}")


def is_several(value: Any) -> TypeGuard[Iterable[Any]]:
    """Whether there may be several values; a text is one, and so is an array of no dimension."""
    several = isinstance(value, Iterable) and not isinstance(value, str | bytes)
    return several and bool(getattr(value, "ndim", 1))


def listed(value: Any) -> Iterable[Any]:
    """Return several values as they are, and a single one as the only one."""
    return value if is_several(value) else (value,)


def _real(value: Any) -> float:
    """Return a real number; raise TypeError for what `float` would make one of all the same."""
    kind = getattr(getattr(value, "dtype", None), "kind", "")
    if isinstance(value, str | bytes | bool) or kind in tuple("bcmMSUT"):
        raise TypeError("texts, flags, times and complex numbers are none")
    return float(value)


def one_of(value: Any, name: str, allowed: Sequence[str]) -> None:
    """Check that a text is one of some words.

    Raises
    ------
    OptionError
        If it is another, or no text, such as an array of them.
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
    # Arrays and datasets, such as a mask where the question is whether to make one, compare
    # value by value.
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
    """Say what was given: its kind, and the value where that is short."""
    text = repr(value)
    kind = type(value).__name__
    return f"{text} ({kind})" if len(text) <= 60 and "\n" not in text else f"a {kind}"
