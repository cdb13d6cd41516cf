"""A URI becomes a Store: bytes in and out of one folder. Knows nothing of images or tables."""

import io
import os
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, cast

import fsspec
import fsspec.asyn

from batchdet.errors import AccessDeniedError, StorageError
from batchdet.storage.foreign import mapped_errors, without_secrets
from batchdet.storage.location import locate
from batchdet.storage.patience import PATIENCE, Patience
from batchdet.storage.ranged import RangedFile

__all__ = ["Store", "mapped_errors", "open_filesystem", "open_store"]

MAX_CONNECTIONS = 64
CONNECT_TIMEOUT_S = 4
READ_TIMEOUT_S = 20
CACHES_LISTINGS = ("s3", "gs", "az", "abfs", "abfss")
WHOLE_BYTES = 4 << 20
"""Size up to which an object is read whole, in one request, where only parts of it may be wanted."""
PROBE_NAME = ".batchdet-probe"


@dataclass(frozen=True)
class Store:
    """One folder of one filesystem. Usable from threads, after a fork, and in any process it is pickled to.

    Attributes:
        uri: the folder with scheme, without trailing slash.
        protocol: fsspec's name of the filesystem.
        root: the folder as that filesystem spells it.
        options: fsspec storage options.
        patience: how long the filesystem is waited for.
    """

    uri: str
    protocol: str
    root: str
    options: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)
    patience: Patience = field(default=PATIENCE, repr=False)

    @property
    def fs(self) -> fsspec.AbstractFileSystem:
        """The filesystem of this process; fsspec keeps one for equal options."""
        return open_filesystem(self.protocol, self.options)

    @property
    def is_local(self) -> bool:
        """Whether it lies on a disk of this machine."""
        return self.protocol == "file"

    def path(self, name: str) -> str:
        """`name`, relative to the store, as the filesystem spells it.

        Raises:
            StorageError: the name leads out of the store.
        """
        if not name:
            return self.root
        if "\0" in name or not {".", "..", ""}.isdisjoint(name.split("/")):
            raise StorageError(self.child_uri(name.replace("\0", "�")), "not a name inside the folder")
        return f"{self.root.rstrip('/')}/{name}"

    def child_uri(self, name: str) -> str:
        """`name`, relative to the store, as a full URI."""
        return f"{self.uri}{'' if self.uri.endswith('/') else '/'}{name}" if name else self.uri

    def read_bytes(self, name: str) -> bytes:
        """The whole object.

        Raises:
            NotFoundError, AccessDeniedError, TransientStorageError, StorageError
        """
        path = self.path(name)

        def read() -> bytes:
            with mapped_errors(self.child_uri(name)):
                return bytes(self.fs.cat_file(path))

        return self.patience.run(read)

    def open_input(self, name: str) -> BinaryIO:
        """The object as a seekable file: a small one is read whole, of a large one a `read` requests just its range.

        Raises:
            NotFoundError, AccessDeniedError, TransientStorageError, StorageError: here and in its `read`.
        """
        path, uri = self.path(name), self.child_uri(name)

        def size() -> int:
            with mapped_errors(uri):
                return int(self.fs.size(path))

        def read(start: int, end: int) -> bytes:
            with mapped_errors(uri):
                return bytes(self.fs.cat_file(path, start=start, end=end))

        length = self.patience.run(size)
        if length <= WHOLE_BYTES:
            return io.BytesIO(self.read_bytes(name))
        return cast(BinaryIO, RangedFile(length, lambda start, end: self.patience.run(partial(read, start, end))))

    def write_bytes(self, name: str, data: bytes) -> None:
        """Write the object whole or not at all, replacing one that is there.

        An object store takes it in one PUT (in parts over 100 MB), a local disk under a hidden name, then renamed.

        Raises:
            AccessDeniedError, TransientStorageError, StorageError
        """
        path = self.path(name)
        limit_s = self.patience.write_s + len(data) / 1e6

        def write() -> None:
            with mapped_errors(self.child_uri(name)):
                if self.is_local:
                    _replace_file(Path(path), data)
                else:
                    _put(self.fs, path, data, limit_s)

        self.patience.run(write)

    def delete(self, name: str) -> None:
        """Remove the object; one that is not there is gone already.

        Raises:
            AccessDeniedError, TransientStorageError, StorageError
        """
        path = self.path(name)

        def delete() -> None:
            with mapped_errors(self.child_uri(name)):
                try:
                    self.fs.rm_file(path)
                except FileNotFoundError:
                    return

        self.patience.run(delete)

    def list(self, folder: str) -> Iterator[str]:
        """Names of the files directly in `folder`, relative to the store, sorted; none if it does not exist.

        Hidden names (`.…`) are left out: they are what a killed write leaves behind.
        """
        return self._children(folder, "file")

    def list_folders(self, folder: str) -> Iterator[str]:
        """Names of the folders directly in `folder`, relative to the store, sorted; none if it does not exist."""
        return self._children(folder, "directory")

    def sizes(self, folder: str) -> dict[str, int]:
        """Bytes of every file below `folder`, by name relative to the store; pages, no request per file."""
        path, prefix = self.path(folder), self.path("").rstrip("/") + "/"

        def find() -> dict[str, dict[str, Any]]:
            with mapped_errors(self.child_uri(folder)):
                found: dict[str, dict[str, Any]] = self.fs.find(path, detail=True)
                return found

        return {name.removeprefix(prefix): int(info["size"]) for name, info in self.patience.run(find).items()}

    def exists(self, name: str) -> bool:
        """Whether the object or folder is there."""
        path = self.path(name)

        def exists() -> bool:
            with mapped_errors(self.child_uri(name)):
                return bool(self.fs.exists(path))

        return self.patience.run(exists)

    def modified(self, name: str) -> datetime:
        """When the object was last written, by the store's clock; some stores say it to the second.

        Raises:
            NotFoundError, AccessDeniedError, TransientStorageError, StorageError
        """
        path = self.path(name)

        def modified() -> datetime:
            with mapped_errors(self.child_uri(name)):
                return cast(datetime, self.fs.modified(path))

        return self.patience.run(modified)

    def probe_writable(self) -> None:
        """Write a small hidden object and remove it, so that a job fails before its work, not after it.

        Raises:
            NotFoundError: no such bucket.
            AccessDeniedError, TransientStorageError, StorageError
        """
        self.write_bytes(PROBE_NAME, b"")
        try:
            self.delete(PROBE_NAME)
        except AccessDeniedError:
            # A store may take objects and never give them up; the probe is hidden and always the same.
            return

    def _children(self, folder: str, kind: str) -> Iterator[str]:
        path = self.path(folder)

        def entries() -> list[dict[str, Any]]:
            with mapped_errors(self.child_uri(folder)):
                try:
                    return list(self.fs.ls(path, detail=True, refresh=True))
                except (FileNotFoundError, NotADirectoryError):
                    return []

        for entry in sorted(self.patience.run(entries), key=lambda entry: str(entry["name"])):
            parent, _, base = str(entry["name"]).removesuffix("/" if kind == "directory" else "").rpartition("/")
            inside = parent.strip("/") == path.strip("/")
            if inside and entry["type"] == kind and base and not base.startswith("."):
                yield f"{folder}/{base}" if folder else base


def open_store(uri: str, options: Mapping[str, Any], patience: Patience = PATIENCE) -> Store:
    """The store of a URI (`s3://…`, `gs://…`, `memory://…`, `file://…`, a plain path, …); asks nothing of it yet.

    Args:
        uri: a folder; it need not exist.
        options: fsspec storage options.
        patience: how long the filesystem is waited for.

    Raises:
        StorageError: no filesystem serves the scheme, or it does not take the options.
        AccessDeniedError: the credentials' profile is not there.
    """
    location = locate(uri)
    root = location.path.rstrip("/") or location.path[:1]
    options = {**location.options, **options}
    with mapped_errors(uri):
        try:
            fs = open_filesystem(location.protocol, options)
            if location.protocol == "s3":
                fs.connect()
        except TypeError as error:
            raise StorageError(
                without_secrets(uri), f"its filesystem does not take the storage options: {error}"
            ) from error
        full_uri = str(fs.unstrip_protocol(root))
    return Store(full_uri, location.protocol, root, options, patience)


def open_filesystem(protocol: str, options: Mapping[str, Any]) -> fsspec.AbstractFileSystem:
    """The fsspec filesystem with fresh listings; on S3 also bounded waits, one request per object, no retries.

    Foreign errors pass: callers hold `mapped_errors`.
    """
    if protocol == "file":
        return fsspec.filesystem("file")
    settings = {"use_listings_cache": False, **options} if protocol in CACHES_LISTINGS else dict(options)
    if protocol == "s3":
        client = {
            "connect_timeout": CONNECT_TIMEOUT_S,
            "read_timeout": READ_TIMEOUT_S,
            "max_pool_connections": MAX_CONNECTIONS,
            "retries": {"mode": "standard", "total_max_attempts": 1},
        }
        # s3fs asks for the size before it reads unless an object may take one connection only.
        settings = {"max_concurrency": 1, **settings, "config_kwargs": {**client, **options.get("config_kwargs", {})}}
    fs = fsspec.filesystem(protocol, **settings)
    if protocol == "s3":
        fs.retries = 1
    return fs


def _put(fs: fsspec.AbstractFileSystem, path: str, data: bytes, limit_s: float) -> None:
    if isinstance(fs, fsspec.asyn.AsyncFileSystem):
        # A client that waits for `100 Continue` heeds no read time-out of its own.
        fsspec.asyn.sync(fs.loop, fs._pipe_file, path, data, timeout=limit_s)
    else:
        fs.pipe_file(path, data)


def _replace_file(target: Path, data: bytes) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = target.with_name(f".{uuid.uuid4().hex}.tmp")
    try:
        with scratch.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        scratch.replace(target)
    except BaseException:
        scratch.unlink(missing_ok=True)
        raise
    _sync_folder(target.parent)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
