"""The errors copcube raises: one base, and each is also the builtin a caller would catch."""

from collections.abc import Sequence


def printable(text: str, *, lines: bool = False) -> str:
    r"""Make a text safe for a terminal: control characters are escaped.

    File names, members and attributes may hold escape sequences that move the cursor, change
    the direction of writing or forge lines.

    Parameters
    ----------
    text : str
        Anything that may have come from a file.
    lines : bool
        Whether to keep line ends; otherwise they become spaces.

    Examples
    --------
    >>> printable("\x1b[2Jgone")
    '\\x1b[2Jgone'
    """
    if not lines:
        text = text.replace("\n", " ")
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text
    )


class CopcubeError(Exception):
    """Base of every error raised on purpose by copcube; its message can be printed unchanged."""

    def __str__(self) -> str:
        # Only messages of builds are intended to be longer than a line.
        return printable(super().__str__(), lines=isinstance(self, BuildError))


class OptionError(CopcubeError, ValueError):
    """An option or argument has a value that cannot be used."""


class MissingPackageError(CopcubeError, ImportError):
    """An optional dependency is needed and not installed."""


class GridError(CopcubeError, ValueError):
    """A cell id, coordinate or index does not fit the 0.25° lattice."""


class MissingFileError(CopcubeError, FileNotFoundError):
    """A file that is to be read does not exist."""


class SourceError(CopcubeError, ValueError):
    """A path holds no imagery in a form copcube knows."""


class ImageError(CopcubeError, ValueError):
    """One image, file or member is broken; a build records and skips it."""


class WeightsError(CopcubeError, ValueError):
    """A weights file does not hold the tensors of a Copernicus-FM encoder."""


class FetchError(CopcubeError, OSError):
    """A published file could not be fetched, or its checksum is wrong."""


class RowsError(CopcubeError, ValueError):
    """A table of embeddings lacks columns, holds wrong lengths or repeats an image."""


class RepeatedError(RowsError):
    """Two rows embed the same image, which was to be refused."""


class CubeError(CopcubeError, ValueError):
    """A store is not a valid embedding cube."""


class BuildError(CopcubeError, RuntimeError):
    """A build cannot start, continue or finish."""


class StorageError(CopcubeError, OSError):
    """A file system or an object store fails; the base of `ReadError` and `WriteError`."""


class ReadError(StorageError):
    """An object store cannot be read, which may be temporary: try again later."""


class WriteError(StorageError):
    """An output cannot be written until there is room or permission."""


class RSEmbedError(CopcubeError):
    """Base of the errors named like those of rs-embed."""


class SpecError(RSEmbedError, ValueError):
    """A place, a time or an output is not described as rs-embed describes it."""


class ModelError(RSEmbedError, RuntimeError):
    """A cube cannot answer a request in the manner of rs-embed."""


def few(names: Sequence[str], most: int = 5, mark: str = ", ") -> str:
    """List the first names, and the number of those left out."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return mark.join(names[:most]) + more


def in_a_line(error: BaseException) -> str:
    """Put an error of another package in one line: its message, or its type if it has none."""
    words = " ".join(str(error).split()) or type(error).__name__
    # The first words say where an error comes from, the last ones often why.
    return words if len(words) <= 300 else f"{words[:150]} … {words[-150:]}"
