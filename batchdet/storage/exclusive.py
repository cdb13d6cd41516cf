"""Objects that are created once, or replaced only as they were read. Knows nothing of what is in them.

On S3 the store decides, by conditional writes; on a disk, a lock on the folder does. Elsewhere an object is written
whole and compared right before: two writers in the same instant can still both succeed there.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec.asyn

from batchdet.errors import ConflictError, NotFoundError
from batchdet.storage.filesystem import Store, mapped_errors


@dataclass(frozen=True, slots=True)
class Seen:
    """An object as it was read.

    Attributes:
        data: None where there was none.
        etag: the store's tag of it; None where the store has none.
    """

    data: bytes | None
    etag: str | None = None


def read_seen(store: Store, name: str) -> Seen:
    """The object, to be replaced by `replace_seen`.

    Raises:
        AccessDeniedError, TransientStorageError, StorageError
    """
    path, fs = store.path(name), store.fs

    def read() -> Seen:
        with mapped_errors(store.child_uri(name)):
            data, etag = fsspec.asyn.sync(fs.loop, _get, fs, path)
            return Seen(data, etag)

    try:
        return store.patience.run(read) if store.protocol == "s3" else Seen(store.read_bytes(name))
    except NotFoundError:
        return Seen(None)


async def _get(fs: Any, path: str) -> tuple[bytes, str]:
    """An S3 object and its tag in one request: of two, another writer could come between."""
    bucket, key, _ = fs.split_path(path)
    answer = await fs._call_s3("get_object", Bucket=bucket, Key=key)
    async with answer["Body"] as body:
        return await body.read(), str(answer["ETag"])


def create_bytes(store: Store, name: str, data: bytes) -> None:
    """Write an object that is not there yet, whole or not at all.

    Raises:
        ConflictError: there is one with other bytes.
        AccessDeniedError, TransientStorageError, StorageError
    """
    replace_seen(store, name, data, Seen(None))


def replace_seen(store: Store, name: str, data: bytes, seen: Seen) -> None:
    """Write an object whole or not at all, if it still is what it was.

    Raises:
        ConflictError: it is not.
        AccessDeniedError, TransientStorageError, StorageError
    """
    try:
        if store.protocol == "s3":
            _put_if(store, name, data, seen)
        else:
            with _locked(store, name):
                _require_same(store, name, seen)
                store.write_bytes(name, data)
    except ConflictError:
        # A first try may have written it, and only its answer been lost.
        if read_seen(store, name).data != data:
            raise


def remove_seen(store: Store, name: str, seen: Seen) -> None:
    """Remove an object, if it still is what it was; one that is not there is gone already.

    A store that knows no conditional deletes (Ceph's gateway, as tested) is only asked right before.

    Raises:
        ConflictError: it is not.
        AccessDeniedError, TransientStorageError, StorageError
    """
    if not store.exists(name):
        return
    if store.protocol == "s3":
        _require_same(store, name, seen)
        try:
            _delete(store, name, str(seen.etag))
        except ConflictError:
            _delete(store, name, str(seen.etag).strip('"'))
        return
    with _locked(store, name):
        _require_same(store, name, seen)
        store.delete(name)


def _delete(store: Store, name: str, etag: str) -> None:
    path, fs = store.path(name), store.fs
    bucket, key, _ = fs.split_path(path)

    def delete() -> None:
        with mapped_errors(store.child_uri(name)):
            call = fs._call_s3
            fsspec.asyn.sync(
                fs.loop, call, "delete_object", Bucket=bucket, Key=key, IfMatch=etag, timeout=store.patience.write_s
            )

    try:
        store.patience.run(delete)
    except NotFoundError:
        return


def _put_if(store: Store, name: str, data: bytes, seen: Seen) -> None:
    if seen.etag is None:
        _put(store, name, data, {"mode": "create"})
        return
    try:
        _put(store, name, data, {"IfMatch": seen.etag})
    except ConflictError:
        # Ceph's gateway compares the tag with its own without the quotes it sends; elsewhere this conflicts again.
        _put(store, name, data, {"IfMatch": seen.etag.strip('"')})


def _put(store: Store, name: str, data: bytes, condition: dict[str, str]) -> None:
    path, fs = store.path(name), store.fs
    limit_s = store.patience.write_s + len(data) / 1e6

    def put() -> None:
        with mapped_errors(store.child_uri(name)):
            fsspec.asyn.sync(fs.loop, fs._pipe_file, path, data, timeout=limit_s, **condition)

    try:
        store.patience.run(put)
    except NotFoundError as error:
        raise ConflictError(store.child_uri(name), "somebody else removed it meanwhile") from error


def _require_same(store: Store, name: str, seen: Seen) -> None:
    if read_seen(store, name).data != seen.data:
        raise ConflictError(store.child_uri(name), "somebody else wrote it meanwhile")


@contextmanager
def _locked(store: Store, name: str) -> Iterator[None]:
    """Alone in the object's folder, on a disk; elsewhere there is nothing to lock."""
    if not store.is_local:
        yield
        return
    folder = Path(store.path(name)).parent
    with mapped_errors(store.child_uri(name)):
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
