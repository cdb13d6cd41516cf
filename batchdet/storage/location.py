"""A URI becomes the filesystem and path it names; no character of a key has a meaning. Opens nothing."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import fsspec

from batchdet.errors import StorageError
from batchdet.storage.foreign import mapped_errors, without_secrets

_CHAINED = "chained URLs are not served; give the URI of the files themselves"


@dataclass(frozen=True)
class Location:
    """Where a URI points.

    Attributes:
        protocol: fsspec's name of the filesystem.
        path: the object or folder as that filesystem spells it.
        options: what the URI itself says about the filesystem, e.g. a host.
    """

    protocol: str
    path: str
    options: Mapping[str, Any] = field(default_factory=dict)


def locate(uri: str) -> Location:
    """Take a URI or plain path apart without reading anything into its characters.

    Raises:
        StorageError: no filesystem serves the scheme, the URI is chained, or its filesystem would read another key.
    """
    scheme, separator, rest = uri.partition("://")
    if separator and re.fullmatch(r"[A-Za-z][A-Za-z0-9+.-]*::.*", scheme):
        raise StorageError(without_secrets(uri), _CHAINED)
    if not separator or not re.fullmatch(r"[A-Za-z][A-Za-z0-9+.-]*", scheme):
        return Location("file", _absolute(uri))
    scheme = scheme.lower()
    if scheme in ("file", "local"):
        return Location("file", _absolute(rest))
    if scheme == "memory":
        return Location("memory", f"/{rest.strip('/')}")
    if scheme in ("s3", "s3a"):
        return Location("s3", _bucket_path(uri, rest, "?versionId="))
    if scheme in ("gs", "gcs"):
        return Location("gs", _bucket_path(uri, rest))
    return _locate_by_class(uri, scheme, rest)


def _locate_by_class(uri: str, scheme: str, rest: str) -> Location:
    if "::" in rest:
        raise StorageError(without_secrets(uri), _CHAINED)
    with mapped_errors(uri):
        served = fsspec.get_filesystem_class(scheme)
        path = str(served._strip_protocol(uri))
        options = served._get_kwargs_from_urls(uri)
    if not path.rstrip("/").endswith(rest.partition("/")[2].rstrip("/")):
        raise StorageError(without_secrets(uri), "its filesystem cannot address this key exactly")
    return Location(scheme, path, options)


def _bucket_path(uri: str, rest: str, *cut_off: str) -> str:
    if not rest or rest.startswith("/"):
        raise StorageError(without_secrets(uri), "names no bucket")
    for mark in cut_off:
        if mark in rest:
            raise StorageError(without_secrets(uri), f"its filesystem cannot address a key with `{mark}` in it")
    return rest


def _absolute(path: str) -> str:
    return os.path.abspath(os.path.expanduser(path))  # noqa: PTH100, PTH111 (Path drops what a URI keeps)
