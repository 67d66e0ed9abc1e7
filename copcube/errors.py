"""The errors copcube raises: one base, and each is also the builtin a caller would catch."""


class CopcubeError(Exception):
    """Base of every error raised on purpose by copcube."""


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


class CubeError(CopcubeError, ValueError):
    """A store is not a valid embedding cube."""


class BuildError(CopcubeError, RuntimeError):
    """A build cannot start, go on or finish."""


class StorageError(CopcubeError, OSError):
    """A file system or an object store refuses; the base of `ReadError` and `WriteError`."""


class ReadError(StorageError):
    """An object store cannot be read; that may pass, so trying again later is worth it."""


class WriteError(StorageError):
    """An output cannot be written; somebody has to make room or grant permission first."""
