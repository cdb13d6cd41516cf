"""A URI becomes a Store: bytes in and out of one folder. Knows nothing of images or tables.

Foreign errors (OSError, botocore, gcsfs, adlfs) become ours here and nowhere else.
"""

import os
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import fsspec

from batchdet.errors import AccessDeniedError, NotFoundError, StorageError


@dataclass(frozen=True)
class Store:
    """One folder of one filesystem.

    Attributes:
        uri: the folder with scheme, without trailing slash.
        fs: the fsspec filesystem that serves it.
        root: the folder as that filesystem spells it.
    """

    uri: str
    fs: fsspec.AbstractFileSystem
    root: str

    def path(self, name: str) -> str:
        """`name`, relative to the store, as the filesystem spells it."""
        return f"{self.root}/{name}" if name else self.root

    def child_uri(self, name: str) -> str:
        """`name`, relative to the store, as a full URI."""
        return f"{self.uri}/{name}"

    def read_bytes(self, name: str) -> bytes:
        """The whole object.

        Raises:
            NotFoundError, AccessDeniedError, TransientStorageError, StorageError
        """
        with mapped_errors(self.child_uri(name)):
            return bytes(self.fs.cat_file(self.path(name)))

    def write_bytes(self, name: str, data: bytes) -> None:
        """Write the object whole or not at all, replacing one that is there.

        Raises:
            AccessDeniedError, TransientStorageError, StorageError
        """
        with mapped_errors(self.child_uri(name)):
            if self.is_local:
                target = self.path(name)
                self.fs.makedirs(os.path.dirname(target), exist_ok=True)  # noqa: PTH120
                scratch = f"{os.path.dirname(target)}/.{uuid.uuid4().hex}.tmp"  # noqa: PTH120
                self.fs.pipe_file(scratch, data)
                os.replace(scratch, target)  # noqa: PTH105
            else:
                self.fs.pipe_file(self.path(name), data)

    def list(self, folder: str) -> Iterator[str]:
        """Names of the files directly in `folder`, relative to the store, sorted; none if it does not exist."""
        with mapped_errors(self.child_uri(folder)):
            try:
                found = self.fs.ls(self.path(folder), detail=True, refresh=True)
            except FileNotFoundError:
                return
            for entry in sorted(found, key=lambda entry: str(entry["name"])):
                base = str(entry["name"]).rsplit("/", 1)[-1]
                if entry["type"] == "file" and not base.endswith(".tmp"):
                    yield f"{folder}/{base}"

    def list_folders(self, folder: str) -> Iterator[str]:
        """Names of the folders directly in `folder`, relative to the store, sorted; none if it does not exist."""
        with mapped_errors(self.child_uri(folder)):
            try:
                found = self.fs.ls(self.path(folder), detail=True, refresh=True)
            except FileNotFoundError:
                return
            for entry in sorted(found, key=lambda entry: str(entry["name"])):
                if entry["type"] == "directory":
                    yield f"{folder}/{str(entry['name']).rstrip('/').rsplit('/', 1)[-1]}"

    def exists(self, name: str) -> bool:
        """Whether the object is there."""
        with mapped_errors(self.child_uri(name)):
            return bool(self.fs.exists(self.path(name)))

    @property
    def is_local(self) -> bool:
        """Whether it lies on a disk of this machine."""
        protocol = self.fs.protocol
        return "file" in ((protocol,) if isinstance(protocol, str) else protocol)


def open_store(uri: str, options: Mapping[str, Any]) -> Store:
    """The store of a URI (`s3://…`, `gs://…`, `az://…`, `memory://…`, `file://…` or a plain path).

    Args:
        uri: a folder; it need not exist.
        options: fsspec storage options.

    Raises:
        StorageError: no filesystem serves the scheme.
    """
    with mapped_errors(uri):
        fs, root = fsspec.core.url_to_fs(uri, **options)
    root = root.rstrip("/")
    return Store(uri=str(fs.unstrip_protocol(root)), fs=fs, root=root)


@contextmanager
def mapped_errors(uri: str) -> Iterator[None]:
    """Turn foreign storage errors raised inside into ours, naming `uri`."""
    try:
        yield
    except FileNotFoundError as error:
        raise NotFoundError(uri, "not found") from error
    except PermissionError as error:
        raise AccessDeniedError(uri, str(error)) from error
    except (OSError, ValueError, ImportError) as error:
        raise StorageError(uri, " ".join(str(error).split())) from error
