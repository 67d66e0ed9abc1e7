"""Public names and modules of a package, imported at first use."""

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.util import find_spec
from typing import Any


def importer(package: str, homes: Mapping[str, str]) -> Callable[[str], Any]:
    """Return the ``__getattr__`` of a package whose import must stay light.

    Parameters
    ----------
    package : str
        Name of the package.
    homes : mapping of str to str
        By public name, the module that defines it, or the module of that name itself.

    Returns
    -------
    callable
        It imports the module of a name, or the module with this name, and keeps the result in the
        package.
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
