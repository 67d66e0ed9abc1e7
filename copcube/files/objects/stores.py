"""Finding the store of an address, and turning its errors into copcube's."""

import errno
import os
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from copcube.errors import MissingPackageError, OptionError, ReadError, StorageError

if TYPE_CHECKING:
    from obstore.store import (
        ClientConfig,
        GCSStore,
        HTTPStore,
        ObjectStore,
        RetryConfig,
        S3Store,
    )

REQUESTS = 8
"""Simultaneous requests."""

_ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")
_RETRY: "RetryConfig" = {
    "max_retries": 8,
    "retry_timeout": timedelta(minutes=3),
    "backoff": {
        "init_backoff": timedelta(seconds=0.5),
        "max_backoff": timedelta(seconds=15),
        "base": 2,
    },
}
_REMEDIES = {
    "s3": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_SKIP_SIGNATURE=true for a "
    "public bucket",
    "gs": "set GOOGLE_APPLICATION_CREDENTIALS to the file of a service account, or "
    "GOOGLE_SKIP_SIGNATURE=true for a public bucket",
}


def is_remote(path: str | Path) -> bool:
    """Whether a path is an address in an object store, such as ``s3://…``.

    Examples
    --------
    >>> is_remote("s3://bucket/shards"), is_remote("/data/shards")
    (True, False)
    """
    return isinstance(path, str) and re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", path) is not None


def split(url: str) -> tuple[str, str]:
    """Divide an address into its bucket or host, and the key in it.

    Raises
    ------
    OptionError
        If it is of a kind that cannot be read.

    Examples
    --------
    >>> split("s3://bucket/shards/a.tar")
    ('s3://bucket', 'shards/a.tar')
    """
    scheme, _, rest = url.partition("://")
    bucket, _, key = rest.partition("/")
    if scheme not in ("s3", "gs", "https", "http") or not bucket:
        raise OptionError(
            f"{url}: expected a local path, or an address s3://bucket/…, gs://bucket/… or "
            "https://host/…"
        )
    # Web addresses are quoted; in a bucket, % is an ordinary character.
    return f"{scheme}://{bucket}", unquote(key) if scheme.startswith("http") else key


def locate(url: str) -> tuple["ObjectStore", str]:
    """Return the store of an address, and the key in it.

    Raises
    ------
    OptionError
        If it is of a kind that cannot be read.
    MissingPackageError
        If obstore is not installed.
    """
    root, key = split(url)
    return _store(root), key


def zarr_store(url: str, *, anonymous: bool = False) -> Any:
    """Return the `zarr.storage.ObjectStore` of an address.

    Parameters
    ----------
    url : str
        The Zarr group.
    anonymous : bool
        Whether to send requests without credentials, as for a public bucket.

    Raises
    ------
    OptionError, MissingPackageError
        As `locate`.
    """
    from zarr.storage import ObjectStore

    root, key = split(url)
    return ObjectStore(_store(root, key.strip("/"), anonymous))


@cache
def _store(
    root: str, prefix: str = "", anonymous: bool = False
) -> "S3Store | GCSStore | HTTPStore":
    """Open the store of a bucket or host, once per process."""
    try:
        from obstore.store import GCSStore, HTTPStore, S3Store
    except ImportError as error:
        raise MissingPackageError(
            f"{root}: object stores need obstore; install it with: pip install 'copcube[cloud]'"
        ) from error
    scheme, _, bucket = root.partition("://")
    client: ClientConfig = {"connect_timeout": "10s", "timeout": "60s"}
    options: dict[str, Any] = {"client_options": client, "retry_config": _RETRY}
    if scheme.startswith("http"):
        client["allow_http"] = scheme == "http"
        return HTTPStore.from_url(f"{root}/{prefix}", **options)
    # Left out unless requested, so that the environment may request it too.
    if anonymous:
        options["skip_signature"] = True
    if scheme == "gs":
        return GCSStore(bucket, prefix=prefix or None, **options)
    endpoint = next(filter(None, map(os.environ.get, _ENDPOINTS)), "")
    # For local servers, such as MinIO, which obstore would otherwise refuse to call.
    if endpoint.startswith("http://"):
        client["allow_http"] = True
    return S3Store(bucket, prefix=prefix or None, **options)


@cache
def pool() -> ThreadPoolExecutor:
    """Return the threads that make requests, shared by the whole process."""
    return ThreadPoolExecutor(REQUESTS, thread_name_prefix="objects")


@contextmanager
def asking(url: str, failure: type[StorageError] = ReadError) -> Iterator[None]:
    """Turn a store's errors into ones that name the address and the remedy.

    Before that, obstore has repeated requests that failed for a temporary reason, such as a dropped
    connection or an overloaded server.

    Parameters
    ----------
    url : str
        What is read or written.
    failure : type
        Error to raise: `ReadError`, or `WriteError` where something is written.

    Raises
    ------
    FileNotFoundError
        If it does not exist.
    ReadError, WriteError
        If the store denies access, cannot be reached, or refuses.
    """
    from obstore import exceptions

    try:
        yield
    except FileNotFoundError as error:
        raise FileNotFoundError(errno.ENOENT, "no such object", url) from error
    except (exceptions.AlreadyExistsError, exceptions.PreconditionError):
        raise  # answers to a conditional write, for its caller
    except exceptions.BaseError as error:
        raise failure(f"{url}: {_explained(url, error)}") from error
    except ValueError as error:
        raise OptionError(f"{url}: not the name of an object: {error}") from error


def _explained(url: str, error: Exception) -> str:
    """Describe in one line what is wrong and what to do."""
    from obstore import exceptions

    text = re.sub(r"\s+", " ", str(error).partition("\n\nDebug source")[0])
    denied = (exceptions.PermissionDeniedError, exceptions.UnauthenticatedError)
    # Without credentials obstore queries a cloud's metadata service, at 169.254.169.254.
    if isinstance(error, denied) or re.search(r"169\.254\.|40[13] (Forbidden|Unauth)", text):
        return f"access denied; {_REMEDIES.get(split(url)[0][:2], 'check whether it is public')}"
    if "NoSuchBucket" in text:
        return "there is no such bucket; check its name, and AWS_ENDPOINT_URL if you set it"
    if isinstance(error, exceptions.NotSupportedError):
        return "the server does not support range requests (parts of a file); use another one"
    return (
        f"unexpected answer from the store ({text:.300}); check the address, the "
        "connection and, for s3, AWS_REGION and AWS_ENDPOINT_URL"
    )
