"""Public names and modules of a package that are imported when they are first used."""

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.util import find_spec
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
        It imports the module of a name, or the module that has this name, and keeps what it
        finds in the package.
    """

    def __getattr__(name: str) -> Any:
        home = homes.get(name, f"{package}.{name}")
        if name not in homes and (name.startswith("_") or find_spec(home) is None):
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module = import_module(home)
        value = module if home.endswith(f".{name}") else getattr(module, name)
        setattr(sys.modules[package], name, value)
        return value

    return __getattr__
