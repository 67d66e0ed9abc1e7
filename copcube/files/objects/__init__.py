"""The only access to object stores: ``s3://``, ``gs://`` and, for reading, ``https://`` addresses.

Everything about a store comes from the environment, as for its own tools: ``AWS_ACCESS_KEY_ID``,
``AWS_SECRET_ACCESS_KEY``, ``AWS_REGION``, ``AWS_ENDPOINT_URL``, ``AWS_SKIP_SIGNATURE=true`` for
public buckets, ``GOOGLE_APPLICATION_CREDENTIALS`` and so on. Keys are sent to the store as written;
in ``https://`` addresses ``%20`` is a space.
"""

from copcube.files.objects.access import (
    file_size,
    insisting,
    listing,
    open_file,
    read,
    read_range,
    sizes,
    stat,
    version,
)
from copcube.files.objects.ahead import ReadAhead
from copcube.files.objects.folder import ObjectFolder
from copcube.files.objects.stores import is_remote, zarr_store

__all__ = [
    "ObjectFolder",
    "ReadAhead",
    "file_size",
    "insisting",
    "is_remote",
    "listing",
    "open_file",
    "read",
    "read_range",
    "sizes",
    "stat",
    "version",
    "zarr_store",
]
