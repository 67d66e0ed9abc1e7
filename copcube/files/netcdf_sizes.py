"""Sizes of the variables of a netCDF file, before any is expanded.

A file of some kilobytes may hold a variable of terabytes, of which nothing was ever written,
or a chunk that decompresses to gigabytes.
"""

from typing import Any

from copcube.errors import CopcubeError
from copcube.files.limits import demand_piece, demand_vectors


def demand_variables(path: str, error: type[CopcubeError], content: bytes | None = None) -> None:
    """Refuse a file with a chunk, or with coordinates, too large to be read at once.

    Parameters
    ----------
    path : str
        File, or name of the content.
    error : type
        What is raised.
    content : bytes, optional
        Bytes of the file, if it is in memory.

    Raises
    ------
    CopcubeError
        The `error`.
    OSError
        If it is not netCDF.
    """
    import netCDF4

    name = path if content is None else "memory"
    with netCDF4.Dataset(name, memory=content) as file:
        for variable in file.variables.values():
            # Coordinates of dimensions are read as soon as a file is opened.
            size = _itemsize(variable)
            demand_vectors(path, variable.name, variable.shape, size, error)
            whole = variable.dimensions == (variable.name,)
            read = variable.shape if whole else variable.chunking()
            if read != "contiguous" and read is not None:
                what = f"{'' if whole else 'a chunk of '}{variable.name}"
                demand_piece(path, what, tuple(read), size, error)


def _itemsize(variable: Any) -> int:
    # Texts and lists have any length; their pointers have at least this size.
    return int(getattr(variable.dtype, "itemsize", 16))
