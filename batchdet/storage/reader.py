"""A block of references becomes ordered bytes in one bulk read. Knows nothing of pixels."""

import os
import sys
from collections.abc import Hashable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import fsspec
import fsspec.asyn

from batchdet.errors import StorageError
from batchdet.records import EncodedImage, FailedImage, ImageRef
from batchdet.storage.filesystem import MAX_CONNECTIONS, open_filesystem
from batchdet.storage.foreign import mapped_errors
from batchdet.storage.location import Location, locate
from batchdet.storage.names import original_name
from batchdet.storage.objects import ObjectReads
from batchdet.storage.patience import PATIENCE, Patience
from batchdet.storage.prefetch import prefetch

__all__ = ["BlockReader", "prefetch"]

READ_THREADS = 16
"""Files read at once by one process where a filesystem has no connections to share; elsewhere MAX_CONNECTIONS."""


Read = EncodedImage | FailedImage
_Job = tuple[ImageRef, Location]


class BlockReader:
    """Reads blocks of images. Holds options only: picklable, usable from threads and after a fork.

    Args:
        options: fsspec storage options of the filesystems that are not local.
        patience: how long one image is waited for.
        max_bytes: an image listed as larger is refused unread, one that turns out larger is refused as well.
    """

    def __init__(self, options: Mapping[str, Any], patience: Patience = PATIENCE, max_bytes: int = sys.maxsize) -> None:
        self._options = dict(options)
        self._max_bytes = max_bytes
        self._patience = patience

    def fetch(self, refs: Sequence[ImageRef]) -> list[Read]:
        """Read all objects at once, one request each: one outcome per reference, in the given order.

        An object that cannot be read is a FailedImage of stage `read`, with the code of the storage error; transient
        faults were retried before, or `too_many_bytes`, or `unreadable_name` (see `names`). An empty
        object is an EncodedImage without bytes.
        """
        outcomes: dict[int, Read] = {}
        jobs: dict[Hashable, list[tuple[int, _Job]]] = {}
        for position, ref in enumerate(refs):
            if (ref.size_bytes or 0) > self._max_bytes:
                outcomes[position] = self._too_large(ref, ref.size_bytes or 0)
                continue
            try:
                location = locate(ref.uri)
            except StorageError as error:
                outcomes[position] = _failed(ref, error)
            else:
                key = (location.protocol, frozenset(location.options.items()))
                jobs.setdefault(key, []).append((position, (ref, location)))
        for same in jobs.values():
            read = self._fetch_alike([job for _, job in same])
            outcomes.update(zip((position for position, _ in same), read, strict=True))
        return [outcomes[position] for position in range(len(refs))]

    def _fetch_alike(self, jobs: Sequence[_Job]) -> list[Read]:
        first_ref, where = jobs[0]
        try:
            with mapped_errors(first_ref.uri):
                fs = open_filesystem(where.protocol, {**where.options, **self._options})
        except StorageError as error:
            return [_failed(ref, error) for ref, _ in jobs]
        threads = MAX_CONNECTIONS if isinstance(fs, fsspec.asyn.AsyncFileSystem) else READ_THREADS
        objects = ObjectReads(fs)
        return list(_pool(os.getpid(), threads).map(lambda job: self._read(objects, job), jobs))

    def _read(self, objects: ObjectReads, job: _Job) -> Read:
        ref, location = job

        def read() -> bytes:
            with mapped_errors(ref.uri):
                return objects.read(location.path)

        try:
            data = self._patience.run(read)
        except StorageError as error:
            return _unreadable(ref, location) or _failed(ref, error)
        # What the listing says nothing of.
        return EncodedImage(ref, data) if len(data) <= self._max_bytes else self._too_large(ref, len(data))

    def _too_large(self, ref: ImageRef, nbytes: int) -> FailedImage:
        return FailedImage(ref, "read", "too_many_bytes", f"{nbytes} bytes, more than plan.max_bytes {self._max_bytes}")


@cache
def _pool(_process: int, threads: int) -> ThreadPoolExecutor:
    """The threads that read in this process; a child has none of its parent's."""
    return ThreadPoolExecutor(threads, thread_name_prefix="batchdet-read")


def _unreadable(ref: ImageRef, location: Location) -> FailedImage | None:
    """The failure of a file on this disk whose name the URI can only show."""
    name = original_name(location.path) if location.protocol == "file" else None
    if name is None or os.path.exists(location.path) or not os.path.lexists(name):  # noqa: PTH110 (a name of bytes)
        return None
    reason = "the file's name is not UTF-8, each `\\x..` stands for a byte of it; rename the file"
    return FailedImage(ref, "read", "unreadable_name", reason)


def _failed(ref: ImageRef, error: StorageError) -> FailedImage:
    return FailedImage(ref, "read", error.code, error.reason)
