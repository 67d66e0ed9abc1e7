"""Check that the running script can be started again in every worker.

Python starts fresh worker processes, and each first runs the script that the program began with,
under a name other than ``__main__``. A script that starts workers without checking that name would
start them again in every worker.
"""

import ast
import os
import sys
from types import FrameType

from copcube.errors import OptionError


def require_main_guard() -> None:
    """Check that the call which starts workers is not repeated when workers run the script.

    Interactive sessions, notebooks and packages run with -m pass, since workers do not run them.

    Raises
    ------
    OptionError
        If the script has no ``if __name__ == "__main__":`` around the call, or is not a file.
    """
    main = sys.modules.get("__main__")
    # Workers do not run a package started by `python -m copcube`.
    if getattr(getattr(main, "__spec__", None), "name", "").endswith(".__main__"):
        return
    path = getattr(main, "__file__", None)
    # Python names a script that comes through a pipe "<stdin>".
    if path is not None and getattr(main, "__spec__", None) is None and not os.path.exists(path):
        raise OptionError(
            f"{path} is not a file, and workers run the script again: save it as a file, or leave "
            "out workers="
        )
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        # The outermost frame of the script itself; those of runpy lie further out.
        if frame.f_code.co_name == "<module>" and frame.f_globals is getattr(main, "__dict__", 0):
            break
        frame = frame.f_back
    if path is None or frame is None or frame.f_code.co_filename != path:
        return
    if not _is_guarded(path, frame.f_lineno):
        raise OptionError(
            f"{path}, line {frame.f_lineno}: workers run the script again, so the call that "
            'starts them must stand under `if __name__ == "__main__":`; put it there, or leave '
            "out workers="
        )


def _is_guarded(path: str, line: int) -> bool:
    """Whether the top-level statement at a line of a script checks ``__name__``."""
    try:
        with open(path, "rb") as file:
            tree = ast.parse(file.read())
    except (OSError, SyntaxError, ValueError):
        return True
    for statement in tree.body:
        if statement.lineno <= line <= (statement.end_lineno or line):
            return any(
                isinstance(part, ast.Name) and part.id == "__name__"
                for compared in ast.walk(statement)
                if isinstance(compared, ast.Compare)
                for part in ast.walk(compared)
            )
    return True
