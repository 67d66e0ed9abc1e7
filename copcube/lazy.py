"""Public names of a package that are imported when they are first used."""

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def importer(package: str, homes: Mapping[str, str]) -> Callable[[str], Any]:
    """Return the ``__getattr__`` of a package whose import is to stay light.

    Parameters
    ----------
    package : str
        Name of the package.
    homes : mapping of str to str
        By public name, the module that defines it, or that is it where both have one name.

    Returns
    -------
    callable
        It imports the module of a name, and keeps what it finds in the package.
    """

    def __getattr__(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module = import_module(homes[name])
        value = module if homes[name].endswith(f".{name}") else getattr(module, name)
        setattr(sys.modules[package], name, value)
        return value

    return __getattr__
