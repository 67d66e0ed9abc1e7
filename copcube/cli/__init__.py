"""The command ``copcube``."""

from copcube.cli.main import main, parser

__all__ = ["main", "parser"]
